"""Requests that ask a helper over a pipe a few times, beside a thread that computes statistics in Python code:
after each answer they wait until that thread gives the interpreter's lock up. The twin computes the statistics in
a process of its own."""

import multiprocessing
import os
import select
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


def compute_statistics(times, is_over):
    while not is_over(STATISTICS_EVERY - STATISTICS):
        for _ in range(times):
            compute()


def compute_statistics_apart(times, reader, writer):
    # The program may be killed, and then holds its end of the pipe no more. An event of multiprocessing has a lock:
    # killed while it held that, the program left this process waiting for ever.
    os.close(writer)
    compute_statistics(times, lambda seconds: select.select([reader], [], [], seconds)[0])


times = shift.calibrated(compute, STATISTICS)
if sys.argv[1] == "sick":
    over = threading.Event()
    statistics = threading.Thread(target=compute_statistics, args=(times, over.wait), daemon=True)
    end = over.set
else:
    reader, writer = os.pipe()
    context = multiprocessing.get_context("fork")
    statistics = context.Process(
        target=compute_statistics_apart, args=(times, reader, writer), daemon=True
    )
    end = lambda: os.close(writer)
statistics.start()
shift.work(WORKERS, 0.015, hire)
end()
