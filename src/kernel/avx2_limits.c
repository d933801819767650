/* The limits of AVX2 with FMA. Chains of registers, as many as hide the latency of the unit; asm,
 * because a compiler would notice that the operands never change. */
#include "kernel/limits.h"

#include <immintrin.h>

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16") /* every loop, or the sums would live in memory */
#endif

#define CHAINS 12

/* vpmaddubsw makes 32 products of bytes and adds them in pairs; the least that can follow is an
 * addition of 16-bit sums. Kernels pay more: they widen to 32 bits sooner or later. */
static uint16_t int8_run(int64_t n_steps)
{
    __m256i sum[CHAINS];
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        sum[c] = _mm256_setzero_si256();
    const __m256i w = _mm256_set1_epi8(1), x = _mm256_set1_epi8(1);
    for (int64_t i = 0; i < n_steps; i++) {
        UNROLL
        for (int c = 0; c < CHAINS; c++) {
            __m256i pair;
            __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(pair) : "x"(w), "x"(x));
            sum[c] = _mm256_add_epi16(sum[c], pair);
            __asm__ volatile("" : "+x"(sum[c]));
        }
    }
    UNROLL
    for (int c = 1; c < CHAINS; c++)
        sum[0] = _mm256_add_epi16(sum[0], sum[c]);
    return (uint16_t)_mm256_extract_epi16(sum[0], 0);
}

static uint16_t fma_run(int64_t n_steps)
{
    __m256 sum[CHAINS];
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        sum[c] = _mm256_setzero_ps();
    const __m256 a = _mm256_set1_ps(1), b = _mm256_set1_ps(1);
    for (int64_t i = 0; i < n_steps; i++) {
        UNROLL
        for (int c = 0; c < CHAINS; c++)
            __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(sum[c]) : "x"(a), "x"(b));
    }
    UNROLL
    for (int c = 1; c < CHAINS; c++)
        sum[0] = _mm256_add_ps(sum[0], sum[c]);
    return (uint16_t)(int64_t)_mm256_cvtss_f32(sum[0]);
}

/* Four streams: one alone leaves bandwidth unused on some machines. */
static uint32_t read_run(const uint8_t *p, int64_t n)
{
    __m256i sum[8];
    UNROLL
    for (int s = 0; s < 8; s++)
        sum[s] = _mm256_setzero_si256();
    const int64_t quarter = n / 4;
    for (int64_t i = 0; i < quarter; i += 64) {
        UNROLL
        for (int s = 0; s < 4; s++) {
            const __m256i *at = (const void *)(p + s * quarter + i);
            sum[2 * s] = _mm256_or_si256(sum[2 * s], _mm256_loadu_si256(at));
            sum[2 * s + 1] = _mm256_or_si256(sum[2 * s + 1], _mm256_loadu_si256(at + 1));
        }
    }
    UNROLL
    for (int s = 1; s < 8; s++)
        sum[0] = _mm256_or_si256(sum[0], sum[s]);
    uint32_t word[8], all = 0;
    _mm256_storeu_si256((void *)word, sum[0]);
    for (int i = 0; i < 8; i++)
        all |= word[i];
    return all;
}

void nb_limits_avx2(nb_limit_loops *loops)
{
    *loops = (nb_limit_loops){.int8 = {"vpmaddubsw", 16, CHAINS * 64, int8_run},
                              .fma = {"vfmadd231ps ymm", 8, CHAINS * 16, fma_run},
                              .read = read_run};
}
