/* Private to avx512_*.c: 16 binary32 lanes as one register, under the names that nn_body.h and
 * attn_body.h are written in. avx2_math.h has the same names for two registers. */
#ifndef NB_KERNEL_AVX512_MATH_H
#define NB_KERNEL_AVX512_MATH_H

#include "kernel/math.h"

#include <immintrin.h>

#define V16_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define V16_UNROLL _Pragma("clang loop unroll(full)")
#else
#define V16_UNROLL _Pragma("GCC unroll 16")
#endif

/* The register tiles of attention: up to 12 rows by two registers of widened cells, 24 sums, which
 * leaves 8 registers; or few rows by more registers of cells straight from the cache, so that there
 * are enough sums to hide the latency of an FMA. */
#define V16_TILES(X)       X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#define V16_TILE_ROWS      12
#define V16_TILE_VECS      2
#define V16_FEW_TILES(X)   X(1) X(2) X(3) X(4) X(5) X(6)
#define V16_FEW_ROWS       6
#define V16_FEW_VECS(rows) ((rows) == 1 ? 8 : 4)
#define V16_SOFTMAX_ROWS   4

typedef __m512 v16;

V16_INLINE v16 v16_zero(void)
{
    return _mm512_setzero_ps();
}

V16_INLINE v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}

V16_INLINE v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

V16_INLINE void v16_store(float *p, v16 x)
{
    _mm512_storeu_ps(p, x);
}

V16_INLINE v16 v16_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

V16_INLINE void v16_store_f16(uint16_t *p, v16 x)
{
    _mm256_storeu_si256((__m256i *)p,
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

V16_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

V16_INLINE v16 v16_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

/* Numbers in E4M3 (not NaN), times 2^-8: moved to where f16 has its fields, whose exponent has a
 * bias 8 larger. */
V16_INLINE v16 v16_load_e4m3(const uint8_t *p)
{
    const __m256i c = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
    return _mm512_cvtph_ps(
        _mm256_and_si256(_mm256_slli_epi16(c, 7), _mm256_set1_epi16((int16_t)0xbf80)));
}

/* The j-th of the codes of `bits` bits that each of 16 bytes holds, the first in the lowest bits.
 */
V16_INLINE v16 v16_load_bits(const uint8_t *p, int bits, int j)
{
    const __m512i u = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(u, (unsigned)(bits * j)),
                                               _mm512_set1_epi32((1 << bits) - 1)));
}

/* Byte j of each of 16 groups of four, less 128. */
V16_INLINE v16 v16_load_code(const uint8_t *p, int j)
{
    const __m512i u = _mm512_srli_epi32(_mm512_loadu_si512(p), 8 * (unsigned)j);
    return _mm512_cvtepi32_ps(
        _mm512_sub_epi32(_mm512_and_si512(u, _mm512_set1_epi32(255)), _mm512_set1_epi32(128)));
}

/* x to the nearest integer, halves to even; |x| < 2^31. */
V16_INLINE void v16_store_i32(int32_t *p, v16 x)
{
    _mm512_storeu_si512(p, _mm512_cvtps_epi32(x));
}

/* The same as bytes; |x| < 128. */
V16_INLINE void v16_store_i8(int8_t *p, v16 x)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}

/* The larger bits of m and |x|, as integers: no NaN is lost. */
V16_INLINE v16 v16_max_bits(v16 x, v16 m)
{
    const __m512i magnitude =
        _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    return _mm512_castsi512_ps(_mm512_max_epi32(magnitude, _mm512_castps_si512(m)));
}

/* The lane with the largest bits, as signed integers. */
V16_INLINE uint32_t v16_top_bits(v16 x)
{
    return (uint32_t)_mm512_reduce_max_epi32(_mm512_castps_si512(x));
}

/* Lanes below n, 0 <= n <= 15. */
V16_INLINE __mmask16 v16_mask_n(int64_t n)
{
    return (__mmask16)((1u << n) - 1);
}

/* The first n elements, the rest +0; memory past them is not touched. */
V16_INLINE v16 v16_load_n(const float *p, int64_t n)
{
    return _mm512_maskz_loadu_ps(v16_mask_n(n), p);
}

V16_INLINE void v16_store_n(float *p, v16 x, int64_t n)
{
    _mm512_mask_storeu_ps(p, v16_mask_n(n), x);
}

/* Lanes below n from x, the others from `rest`. */
V16_INLINE v16 v16_pick_n(v16 x, v16 rest, int64_t n)
{
    return _mm512_mask_mov_ps(rest, v16_mask_n(n), x);
}

V16_INLINE v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}

V16_INLINE v16 v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}

V16_INLINE v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}

V16_INLINE v16 v16_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}

/* a * b + c and a * b - c, rounded once. */
V16_INLINE v16 v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

V16_INLINE v16 v16_fms(v16 a, v16 b, v16 c)
{
    return _mm512_fmsub_ps(a, b, c);
}

/* The larger; m where x is NaN. */
V16_INLINE v16 v16_max(v16 x, v16 m)
{
    return _mm512_max_ps(x, m);
}

/* The larger; NaN where either is. */
V16_INLINE v16 v16_max_nan(v16 x, v16 m)
{
    return _mm512_mask_mov_ps(_mm512_max_ps(x, m), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

/* Bit i: lane i of a equals lane i of b. */
V16_INLINE unsigned v16_equal(v16 a, v16 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}

/* A1: lane j += lane j + 8, then 4, 2, 1. */
V16_INLINE float v16_tree(v16 x)
{
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

/* The largest lane that is a number; `x` has one. */
V16_INLINE float v16_top(v16 x)
{
    return _mm512_reduce_max_ps(x);
}

/* nb_expf. scalef multiplies by 2^n and rounds once, as the two products of nb_expf do. */
V16_INLINE v16 v16_exp(v16 x)
{
    const v16 one = v16_set1(1.0f);
    x = _mm512_min_ps(v16_set1(NB_EXP_HI), x); /* the second operand where one is NaN */
    x = _mm512_max_ps(v16_set1(NB_EXP_LO), x);
    const v16 t = v16_fma(x, v16_set1(NB_EXP_LOG2E), v16_set1(NB_EXP_MAGIC));
    const v16 n = v16_sub(t, v16_set1(NB_EXP_MAGIC));
    v16 r = v16_fma(n, v16_set1(-NB_EXP_LN2_HI), x);
    r = v16_fma(n, v16_set1(-NB_EXP_LN2_LO), r);
    v16 q = v16_fma(v16_set1(NB_EXP_C6), r, v16_set1(NB_EXP_C5));
    q = v16_fma(q, r, v16_set1(NB_EXP_C4));
    q = v16_fma(q, r, v16_set1(NB_EXP_C3));
    q = v16_fma(q, r, v16_set1(NB_EXP_C2));
    q = v16_fma(q, r, one);
    return _mm512_scalef_ps(v16_fma(q, r, one), n);
}

#endif
