"""Requests that ask a helper over a pipe a few times, beside a thread that computes statistics in Python code:
after each answer they wait until that thread gives the interpreter's lock up. The twin computes the statistics in
a process of its own."""

import multiprocessing
import os
import subprocess
import sys
import threading

import shift

WORKERS = 4
ASKS = 16
STATISTICS = 0.045
STATISTICS_EVERY = 0.1


def compute():
    return sum(i * i % 7 for i in range(200))


def hire():
    helper = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def answer_request():
        for _ in range(ASKS):
            helper.stdin.write(b"?")
            helper.stdout.read(1)
            compute()

    return answer_request


def compute_statistics(times, over):
    # The process of its own ends with the program, which may be killed.
    parent = os.getppid()
    while os.getppid() == parent and not over.wait(STATISTICS_EVERY - STATISTICS):
        for _ in range(times):
            compute()


times = shift.calibrated(compute, STATISTICS)
if sys.argv[1] == "sick":
    over = threading.Event()
    statistics = threading.Thread(target=compute_statistics, args=(times, over), daemon=True)
else:
    context = multiprocessing.get_context("fork")
    over = context.Event()
    statistics = context.Process(target=compute_statistics, args=(times, over), daemon=True)
statistics.start()
shift.work(WORKERS, 0.015, hire)
over.set()
