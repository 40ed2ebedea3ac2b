# Known chains of Python calls that compute, sleep and wait for a lock, for the test `python`.
#
# Keeps step with the test over standard input and output like the workloads in Rust: READY, a line,
# and the work until it is killed. The test finds the lines of calls by their text.
import os
import sys
import threading
import time


def burn(until):
    total = 0
    while time.perf_counter() < until:
        total += 1
    return total


def compute():
    burn(time.perf_counter() + 0.01)


def rest(seconds):
    time.sleep(seconds)


# Both have frames of one size: on the native stack nothing tells which of them sleeps.
def short():
    rest(0.003)


def long():
    rest(0.009)


def alternate():
    compute()
    short()
    long()


def key_of(item):
    time.sleep(0.001)
    return -item


def ordered():
    return sorted([1, 2, 3], key=key_of)


def made(name):
    space = {"time": time}
    exec(f"def {name}(): time.sleep(0.15)", space)
    return space[name]


# The second function is most likely where the first was. Each is there long enough to be read.
def make():
    while True:
        made("first")()
        made("second")()


def work():
    while True:
        alternate()
        ordered()


def hold(lock):
    while True:
        with lock:
            time.sleep(0.003)


def take(lock):
    lock.acquire()
    lock.release()


def contend(lock):
    while True:
        take(lock)
        time.sleep(0.001)


if __name__ == "__main__":
    print("READY", os.getpid(), flush=True)
    sys.stdin.readline()
    shared = threading.Lock()
    for target, given in ((hold, (shared,)), (contend, (shared,)), (make, ())):
        threading.Thread(target=target, args=given, daemon=True).start()
    work()
