/* train MODE SECONDS: a training loop against the accelerator of cuda.c. Prints READY and its process,
 * waits for a line, works, prints DONE and what it did, and waits for another line.
 *
 *   tiny     waits after each kernel of 20 us
 *   batched  launches 50 of them before it waits
 *   starved  reads each batch from a thread that takes 20 ms to load it
 *   fed      as starved, where loading takes 0.5 ms */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int cuLaunchKernel(uint64_t kernel_ns);
int cuStreamSynchronize(void *stream);

#define NEVER_INLINED __attribute__((noinline, noclone))

static int batches[2];
static long load_ns;
static uint64_t sync_ns, input_ns;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void *load_batches(void *unused)
{
    struct timespec takes = {0, load_ns};
    (void)unused;
    for (;;) {
        nanosleep(&takes, 0);
        if (write(batches[1], "b", 1) != 1)
            return 0;
    }
}

NEVER_INLINED static void next_batch(void)
{
    char batch;
    uint64_t start = now_ns();
    if (read(batches[0], &batch, 1) != 1)
        exit(1);
    input_ns += now_ns() - start;
}

NEVER_INLINED static void train_step(int kernels, uint64_t kernel_ns)
{
    uint64_t start;
    for (int i = 0; i < kernels; i++)
        cuLaunchKernel(kernel_ns);
    start = now_ns();
    cuStreamSynchronize(0);
    sync_ns += now_ns() - start;
}

int main(int argc, char **argv)
{
    char line[16];
    uint64_t kernels = 0, start, end;
    pthread_t loader;
    if (argc != 3)
        return 2;
    const char *mode = argv[1];
    int loads = !strcmp(mode, "starved") || !strcmp(mode, "fed");
    int each = !strcmp(mode, "tiny") ? 1 : 50;
    if (loads) {
        load_ns = !strcmp(mode, "starved") ? 20000000 : 500000;
        if (pipe(batches) || pthread_create(&loader, 0, load_batches, 0))
            return 1;
    }
    printf("READY %d\n", getpid());
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        return 1;
    start = now_ns();
    end = start + (uint64_t)(atof(argv[2]) * 1e9);
    sync_ns = input_ns = 0;
    while (now_ns() < end) {
        if (loads)
            next_batch();
        train_step(each, 20000);
        kernels += (uint64_t)each;
    }
    printf("DONE {\"kernels\":%lu,\"sync_ns\":%lu,\"input_ns\":%lu,\"wall_ns\":%lu}\n", kernels, sync_ns,
           input_ns, now_ns() - start);
    fflush(stdout);
    return fgets(line, sizeof line, stdin) ? 0 : 1;
}
