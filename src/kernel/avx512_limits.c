/* The limits of AVX-512 with VNNI; see avx2_limits.c. */
#include "kernel/limits.h"

#include <immintrin.h>

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16") /* every loop, or the sums would live in memory */
#endif

#define CHAINS 16

static uint16_t int8_run(int64_t n_steps)
{
    __m512i sum[CHAINS];
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        sum[c] = _mm512_setzero_si512();
    const __m512i w = _mm512_set1_epi8(1), x = _mm512_set1_epi8(1);
    for (int64_t i = 0; i < n_steps; i++) {
        UNROLL
        for (int c = 0; c < CHAINS; c++)
            __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum[c]) : "v"(w), "v"(x));
    }
    UNROLL
    for (int c = 1; c < CHAINS; c++)
        sum[0] = _mm512_add_epi32(sum[0], sum[c]);
    return (uint16_t)_mm_cvtsi128_si32(_mm512_castsi512_si128(sum[0]));
}

static uint16_t fma_run(int64_t n_steps)
{
    __m512 sum[CHAINS];
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        sum[c] = _mm512_setzero_ps();
    const __m512 a = _mm512_set1_ps(1), b = _mm512_set1_ps(1);
    for (int64_t i = 0; i < n_steps; i++) {
        UNROLL
        for (int c = 0; c < CHAINS; c++)
            __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(sum[c]) : "v"(a), "v"(b));
    }
    UNROLL
    for (int c = 1; c < CHAINS; c++)
        sum[0] = _mm512_add_ps(sum[0], sum[c]);
    return (uint16_t)(int64_t)_mm512_cvtss_f32(sum[0]);
}

static uint32_t read_run(const uint8_t *p, int64_t n)
{
    __m512i sum[4];
    UNROLL
    for (int s = 0; s < 4; s++)
        sum[s] = _mm512_setzero_si512();
    const int64_t quarter = n / 4;
    for (int64_t i = 0; i < quarter; i += 64) {
        UNROLL
        for (int s = 0; s < 4; s++)
            sum[s] = _mm512_or_si512(sum[s], _mm512_loadu_si512(p + s * quarter + i));
    }
    const __m512i all =
        _mm512_or_si512(_mm512_or_si512(sum[0], sum[1]), _mm512_or_si512(sum[2], sum[3]));
    return (uint32_t)_mm512_reduce_or_epi32(all);
}

void nb_limits_avx512(nb_limit_loops *loops)
{
    *loops = (nb_limit_loops){.int8 = {"vpdpbusd zmm", 16, CHAINS * 128, int8_run},
                              .fma = {"vfmadd231ps zmm", 16, CHAINS * 32, fma_run},
                              .read = read_run};
}
