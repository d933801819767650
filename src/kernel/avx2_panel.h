/* How the AVX2 products read panels and write their results: a panel is two registers of 8 rows. */
#ifndef NB_KERNEL_AVX2_PANEL_H
#define NB_KERNEL_AVX2_PANEL_H

#include "kernel/kernel.h"

#include <immintrin.h>
#include <string.h>

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

/* Filled into the table by nb_kernels_avx2_dot. */
nb_gemm_i_fn nb_gemm_i_avx2;
nb_quantize_row_fn nb_quantize_row_avx2;
nb_pack_tile_fn nb_pack_tile_avx2;

INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256(p);
}

/* Four bytes, eight times. */
INLINE __m256i bcast(const void *x)
{
    int32_t v;
    memcpy(&v, x, sizeof v);
    return _mm256_set1_epi32(v);
}

/* Lanes [0, n) of 8 are in. */
INLINE __m256i lane_mask(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n < 8 ? n : 8)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Eight scales or minima. */
INLINE __m256 load_params(const void *array, nb_float_type type, int64_t at)
{
    switch (type) {
    case NB_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const void *)((const uint16_t *)array + at)));
    case NB_BF16:
        return _mm256_castsi256_ps(_mm256_slli_epi32(
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)((const uint16_t *)array + at))),
            16));
    case NB_F32:
        break;
    }
    return _mm256_loadu_ps((const float *)array + at);
}

/* Eight zero points of a matrix that has them. */
INLINE __m256i load_zeros(const nb_panels *w, int64_t at)
{
    return _mm256_cvtepi16_epi32(_mm_loadu_si128((const void *)(w->zeros + at)));
}

/* Writes the first `left` of 8 results. A masked store is slow, so only a matrix's end pays it. */
INLINE void store_rows(float *out, __m256 v, int64_t left)
{
    if (left >= 8)
        _mm256_storeu_ps(out, v);
    else
        _mm256_maskstore_ps(out, lane_mask(left), v);
}

#endif
