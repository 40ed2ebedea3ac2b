// A known call chain that computes and blocks, built in several ways by the test `unwind`, as C and
// as C++: main, outer, middle, inner, leaf, and below that compute or nap.
//
// Keeps step with the test over standard input and output like the workloads in Rust: READY, a
// line, and the work until it is killed.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINK(kind) __attribute__((noinline, noclone, visibility("default"))) kind
// Nothing may be left to do after a call for it to become a jump.
#define STAY() __asm__ volatile("" ::: "memory")

#ifdef __cplusplus
extern "C" {
#endif

static volatile uint64_t sink;

LINK(void) compute(void) {
    uint64_t x = sink | 1;
    for (int i = 0; i < 600000; i++)
        x = x * 6364136223846793005u + 1442695040888963407u;
    sink = x;
}

LINK(void) nap(void) {
    struct timespec length = {0, 500000};
    nanosleep(&length, 0);
    STAY();
}

LINK(void) leaf(int depth) {
    // A frame of its own size, so that the stack pointer is nowhere near the next return address.
    volatile char room[200];
    memset((void *)room, depth, sizeof room);
    compute();
    STAY();
    nap();
    STAY();
}

#ifdef __cplusplus
}

struct Guard {
    int depth;
    // Runs while an exception is in flight: below a landing pad.
    LINK() ~Guard() {
        leaf(depth);
        STAY();
    }
};

extern "C" {
LINK(void) inner(int depth) {
    Guard guard = {depth};
    if (sink != 0)
        throw depth;
    STAY();
}
}
#else

static void on_signal(int number) {
    leaf(number);
    STAY();
}

static int by_signal;

LINK(void) inner(int depth) {
    if (by_signal)
        raise(SIGUSR1);
    else
        leaf(depth);
    STAY();
}
#endif

#ifdef __cplusplus
extern "C" {
#endif

LINK(void) middle(int depth) {
#ifdef __cplusplus
    try {
        inner(depth);
    } catch (int thrown) {
        sink = sink + (uint64_t)thrown;
    }
#else
    // Of a size known at run time only: the frame is found by a frame pointer of its own.
    volatile char room[depth + 64];
    room[depth] = 1;
    inner(depth);
#endif
    STAY();
}

LINK(void) outer(int depth) {
    middle(depth + 1);
    STAY();
}

#ifdef __cplusplus
}
#endif

int main(int argc, char **argv) {
    char line[16];
    (void)argc, (void)argv;
#ifndef __cplusplus
    by_signal = argc > 1 && strcmp(argv[1], "signal") == 0;
    signal(SIGUSR1, on_signal);
#endif
    printf("READY %d\n", (int)getpid());
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        return 1;
    for (;;) {
        outer(16);
        STAY();
    }
}
