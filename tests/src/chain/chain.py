# A known chain of calls that computes and sleeps, one that sorts, and a thread that waits for a lock.
import sys, threading, time


def burn(until):
    total = 0
    while time.perf_counter() < until:
        total += sum(range(50))
    return total


def compute():
    burn(time.perf_counter() + 0.02)


def rest():
    time.sleep(0.002)


def alternate(turn):
    if turn % 2:
        compute()
    else:
        rest()


def key_of(item):
    time.sleep(0.001)
    return -item


def ordered():
    return sorted([1, 2, 3], key=key_of)


def work():
    turn = 0
    while True:
        alternate(turn)
        ordered()
        turn += 1


def hold(lock):
    while True:
        with lock:
            time.sleep(0.003)
        time.sleep(0.0002)


def wait_for(lock):
    lock.acquire()
    lock.release()


def contend(lock):
    while True:
        wait_for(lock)


print("READY", __import__("os").getpid(), flush=True)
sys.stdin.readline()
shared = threading.Lock()
for target in (hold, contend):
    threading.Thread(target=target, args=(shared,), daemon=True).start()
work()
