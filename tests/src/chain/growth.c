// Memory that grows in one of three ways, for the test `growth`: `brk` (small pieces from the heap's top),
// `mmap` (large pieces, a mapping each), `reserved` (mapped, and never touched).
//
// Keeps step with the test over standard input and output like the workloads in Rust: READY, a line, the
// work, DONE with what was taken, by its own count of pieces and by how far the heap's top was moved.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define STEP (1 << 20)
#define STEPS 64
#define SMALL 1008
#define LINK __attribute__((noinline, noclone))
// Nothing may be left to do after a call for it to become a jump.
#define STAY() __asm__ volatile("" ::: "memory")

// With the eight bytes before it and rounded up to sixteen, a piece takes 1,024.
LINK void keep_small_records(void) {
    for (int i = 0; i < STEP / 1024; i++) {
        char *piece = malloc(SMALL);
        memset(piece, 1, SMALL);
        STAY();
    }
}

LINK void keep_large_buffer(void) {
    char *buffer = malloc(STEP);
    memset(buffer, 1, STEP);
    STAY();
}

LINK void reserve_room(void) {
    void *room = mmap(0, STEP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        abort();
    STAY();
}

int main(int count, char **arguments) {
    if (count != 2)
        return 2;
    void (*grow)(void) = keep_small_records;
    if (strcmp(arguments[1], "mmap") == 0)
        grow = keep_large_buffer;
    if (strcmp(arguments[1], "reserved") == 0)
        grow = reserve_room;
    printf("READY %d\n", (int)getpid());
    fflush(stdout);
    if (getchar() == EOF)
        return 1;
    char *top = sbrk(0);
    for (int step = 0; step < STEPS; step++) {
        struct timespec pause = {0, 100000000};
        grow();
        nanosleep(&pause, 0);
    }
    printf("DONE {\"taken_bytes\": %d, \"heap_bytes\": %ld}\n", STEP * STEPS,
           (long)((char *)sbrk(0) - top));
    fflush(stdout);
    return getchar() == EOF;
}
