"""Requests of a few steps, each with a little I/O, beside a thread that computes statistics in Python code:
after each step they wait until that thread gives the interpreter's lock up. The twin computes the statistics
in a process of its own."""

import multiprocessing
import os
import sys
import threading

import shift

WORKERS = 3
STATISTICS = 0.04
STATISTICS_EVERY = 0.1


def compute():
    return sum(i * i % 7 for i in range(200))


def answer_request():
    for _ in range(4):
        compute()
        os.stat("/")


def compute_statistics(times, over):
    while not over.wait(STATISTICS_EVERY - STATISTICS):
        for _ in range(times):
            compute()


times = shift.calibrated(compute, STATISTICS)
if sys.argv[1] == "sick":
    over = threading.Event()
    threading.Thread(target=compute_statistics, args=(times, over)).start()
else:
    context = multiprocessing.get_context("fork")
    over = context.Event()
    context.Process(target=compute_statistics, args=(times, over)).start()
shift.work(WORKERS, 0.01, answer_request)
over.set()
