/* A libcuda.so.1 without a device: a kernel takes the time it is launched with, one after the other,
 * and whoever waits for it sleeps in poll(), as with the real driver. */

#define _GNU_SOURCE
#include <poll.h>
#include <stdint.h>
#include <time.h>

/* From the end of a kernel until its waiter is told. */
#define WAY_BACK_NS 40000

static uint64_t busy_until_ns;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

int cuLaunchKernel(uint64_t kernel_ns)
{
    uint64_t now = now_ns();
    busy_until_ns = (busy_until_ns > now ? busy_until_ns : now) + kernel_ns;
    return 0;
}

int cuStreamSynchronize(void *stream)
{
    uint64_t now, until = busy_until_ns + WAY_BACK_NS;
    (void)stream;
    while ((now = now_ns()) < until) {
        struct timespec left = {(time_t)((until - now) / 1000000000), (long)((until - now) % 1000000000)};
        ppoll(0, 0, &left, 0);
    }
    return 0;
}
