// Five functions with frames of one size that sleep in turn, for the test `unwind`: inside,
// instruction and stack pointer are the same five times, and only a return address tells who called.
//
// Keeps step with the test over standard input and output like the workloads in Rust: READY, a
// line, the work, DONE with how often each of the five was taken off the CPU by its sleep: one that a
// hypervisor holds up between the start of its timer and the switch is not, and does not block.
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 2000
#define LINK __attribute__((noinline, noclone))
// Nothing may be left to do after a call for it to become a jump.
#define STAY() __asm__ volatile("" ::: "memory")

LINK void doze(long ns) {
    struct timespec length = {0, ns};
    nanosleep(&length, 0);
    STAY();
}

#define CALLER(name, ns)                                                                           \
    LINK void name(void) {                                                                         \
        doze(ns);                                                                                  \
        STAY();                                                                                    \
    }

CALLER(first, 200000)
CALLER(second, 250000)
CALLER(third, 300000)
CALLER(fourth, 350000)
CALLER(fifth, 400000)

// Times this thread gave up the CPU to wait for something (getrusage(2)).
static long blocks(void) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

int main(void) {
    void (*callers[])(void) = {first, second, third, fourth, fifth};
    long told[5] = {0};
    printf("READY %d\n", (int)getpid());
    fflush(stdout);
    if (getchar() == EOF)
        return 1;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < 5; i++) {
            long before = blocks();
            callers[i]();
            told[i] += blocks() - before;
        }
    }
    printf("DONE {\"first\": %ld, \"second\": %ld, \"third\": %ld, \"fourth\": %ld, \"fifth\": %ld}\n",
           told[0], told[1], told[2], told[3], told[4]);
    fflush(stdout);
    return getchar() == EOF;
}
