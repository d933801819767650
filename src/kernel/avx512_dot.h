/* What the AVX-512 matrix products share: avx512_gemm_i.c, avx512_gemm_f.c, avx512_pack.c and
 * amx_dot.c. */
#ifndef NB_KERNEL_AVX512_DOT_H
#define NB_KERNEL_AVX512_DOT_H

#include "kernel/kernel.h"

#include <assert.h>
#include <immintrin.h>

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define INLINE static inline __attribute__((always_inline))

#define FOR_EACH_T(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
static_assert(NB_TILE_MAX == 12, "FOR_EACH_T counts to it");

/* Lanes [0, n) of 16. */
INLINE __mmask16 lanes(int64_t n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u);
}

/* 16 scales or minimums. */
INLINE __m512 load_params(const void *array, nb_float_type type, int64_t at)
{
    switch (type) {
    case NB_F16:
        return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)((const uint16_t *)array + at)));
    case NB_BF16:
        return _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)((const uint16_t *)array + at))),
            16));
    case NB_F32:
        break;
    }
    return _mm512_loadu_ps((const float *)array + at);
}

/* 16 zero points. */
INLINE __m512i load_zeros(const nb_panels *w, int64_t at)
{
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)(w->zeros + at)));
}

nb_gemm_f_fn nb_avx512_gemm_f;
nb_gemm_i_fn nb_avx512_gemm_i;
nb_quantize_row_fn nb_avx512_quantize_row;
nb_pack_tile_fn nb_avx512_pack_tile;

#endif
