// Five functions with frames of one size that sleep in turn, for the test `unwind`: inside,
// instruction and stack pointer are the same five times, and only a return address tells who called.
//
// Keeps step with the test over standard input and output like the workloads in Rust: READY, a
// line, and the work until it is killed.
#include <stdio.h>
#include <time.h>
#include <unistd.h>

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

int main(void) {
    printf("READY %d\n", (int)getpid());
    fflush(stdout);
    if (getchar() == EOF)
        return 1;
    for (;;) {
        first();
        second();
        third();
        fourth();
        fifth();
    }
}
