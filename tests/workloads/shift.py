"""A shift of workers, as in shift.rs: READY, a line to begin, a line to end, DONE with what was done."""

import json
import os
import sys
import threading
import time


def calibrated(unit, seconds):
    """How often `unit` runs in so many seconds: by the fastest of some tries."""
    def once():
        begun = time.perf_counter()
        unit()
        return time.perf_counter() - begun
    return max(1, round(seconds / min(once() for _ in range(20))))


def keep_at_it(unit, first, every, over):
    """Does units as they fall due until `over` is set; how many, and the time they took."""
    units, busy, due = 0, 0, first
    while not over.wait(max(0, due - time.perf_counter())):
        begun = time.perf_counter_ns()
        unit()
        busy += time.perf_counter_ns() - begun
        units += 1
        due = max(due + every, time.perf_counter())
    return units, busy


def work(workers, every, hire):
    """Has `workers` threads do a unit of work every so many seconds each, by what `hire` makes for it."""
    jobs = [hire() for _ in range(workers)]
    print("READY", os.getpid(), flush=True)
    sys.stdin.readline()
    begun = time.perf_counter()
    over = threading.Event()
    results = []

    def day(i):
        results.append(keep_at_it(jobs[i], begun + every * i / workers, every, over))

    team = [threading.Thread(target=day, args=(i,)) for i in range(workers)]
    for worker in team:
        worker.start()
    sys.stdin.readline()
    over.set()
    for worker in team:
        worker.join()
    wall = time.perf_counter() - begun
    figures = {
        "units": sum(units for units, _ in results),
        "busy_ns": sum(busy for _, busy in results),
        "wall_ns": round(wall * 1e9),
    }
    print("DONE", json.dumps(figures), flush=True)
