/* The limits of plain C: what the scalar reference could reach at most. The empty asm statements
 * keep the compiler from making vectors, or nothing at all, of the chains. */
#include "kernel/limits.h"

#include <math.h>
#include <string.h>

#define CHAINS 8

static uint16_t int8_run(int64_t n_steps)
{
    int32_t sum[CHAINS] = {0};
    int8_t a = 1, b = 1;
    for (int64_t i = 0; i < n_steps; i++) {
        for (int c = 0; c < CHAINS; c++) {
            __asm__ volatile("" : "+r"(a), "+r"(b));
            sum[c] += a * b;
            __asm__ volatile("" : "+r"(sum[c]));
        }
    }
    for (int c = 1; c < CHAINS; c++)
        sum[0] += sum[c];
    return (uint16_t)sum[0];
}

static uint16_t fma_run(int64_t n_steps)
{
    float sum[CHAINS] = {0}, a = 1;
    for (int64_t i = 0; i < n_steps; i++) {
        for (int c = 0; c < CHAINS; c++) {
            __asm__ volatile("" : "+m"(sum[c]), "+m"(a));
            sum[c] = fmaf(a, 1, sum[c]);
        }
    }
    for (int c = 1; c < CHAINS; c++)
        sum[0] += sum[c];
    return (uint16_t)(int64_t)sum[0];
}

static uint32_t read_run(const uint8_t *p, int64_t n)
{
    uint64_t a = 0, b = 0, c = 0, d = 0;
    const int64_t quarter = n / 4;
    for (int64_t i = 0; i < quarter; i += 8) {
        uint64_t w[4];
        for (int s = 0; s < 4; s++)
            memcpy(&w[s], p + s * quarter + i, 8);
        a |= w[0];
        b |= w[1];
        c |= w[2];
        d |= w[3];
    }
    a |= b | c | d;
    return (uint32_t)(a >> 32 | a);
}

void nb_limits_ref(nb_limit_loops *loops)
{
    *loops = (nb_limit_loops){.int8 = {"imul", 1, 2 * CHAINS, int8_run},
                              .fma = {"fmaf", 1, 2 * CHAINS, fma_run},
                              .read = read_run};
}
