/* Private to avx2_*.c: 16 binary32 lanes as two registers, under the names that nn_body.h and
 * attn_body.h are written in. avx512_math.h has the same names for one register. */
#ifndef NB_KERNEL_AVX2_MATH_H
#define NB_KERNEL_AVX2_MATH_H

#include "kernel/math.h"

#include <immintrin.h>

#define V16_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define V16_UNROLL _Pragma("clang loop unroll(full)")
#else
#define V16_UNROLL _Pragma("GCC unroll 16")
#endif

/* The register tiles of attention: up to 6 rows by one v16 of widened cells, 12 registers of sums,
 * which leaves 4; or few rows by more cells straight from the cache, so that there are enough sums
 * to hide the latency of an FMA. */
#define V16_TILES(X)       X(1) X(2) X(3) X(4) X(5) X(6)
#define V16_TILE_ROWS      6
#define V16_TILE_VECS      1
#define V16_FEW_TILES(X)   X(1) X(2) X(3)
#define V16_FEW_ROWS       3
#define V16_FEW_VECS(rows) ((rows) == 1 ? 4 : (rows) == 2 ? 2 : 1)
#define V16_SOFTMAX_ROWS   2

typedef struct {
    __m256 lo, hi;
} v16;

V16_INLINE v16 v16_zero(void)
{
    return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()};
}

V16_INLINE v16 v16_set1(float x)
{
    const __m256 v = _mm256_set1_ps(x);
    return (v16){v, v};
}

V16_INLINE v16 v16_load(const float *p)
{
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

V16_INLINE void v16_store(float *p, v16 x)
{
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}

V16_INLINE v16 v16_load_f16(const uint16_t *p)
{
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}

V16_INLINE void v16_store_f16(uint16_t *p, v16 x)
{
    enum { RNE = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.lo, RNE));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.hi, RNE));
}

V16_INLINE __m256 v8_load_bf16(const uint16_t *p)
{
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

V16_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    return (v16){v8_load_bf16(p), v8_load_bf16(p + 8)};
}

V16_INLINE v16 v16_load_i8(const int8_t *p)
{
    const __m128i codes = _mm_loadu_si128((const __m128i *)p);
    return (v16){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)),
                 _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)))};
}

V16_INLINE __m256 v8_load_e4m3(const uint8_t *p)
{
    const __m128i c = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(c, 7), _mm_set1_epi16((int16_t)0xbf80)));
}

/* Numbers in E4M3 (not NaN), times 2^-8: moved to where f16 has its fields, whose exponent has a
 * bias 8 larger. */
V16_INLINE v16 v16_load_e4m3(const uint8_t *p)
{
    return (v16){v8_load_e4m3(p), v8_load_e4m3(p + 8)};
}

V16_INLINE __m256 v8_load_bits(const uint8_t *p, int bits, int j)
{
    const __m256i u = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_cvtepi32_ps(
        _mm256_and_si256(_mm256_srli_epi32(u, bits * j), _mm256_set1_epi32((1 << bits) - 1)));
}

/* The j-th of the codes of `bits` bits that each of 16 bytes holds, the first in the lowest bits.
 */
V16_INLINE v16 v16_load_bits(const uint8_t *p, int bits, int j)
{
    return (v16){v8_load_bits(p, bits, j), v8_load_bits(p + 8, bits, j)};
}

V16_INLINE __m256 v8_load_code(const uint8_t *p, int j)
{
    const __m256i u = _mm256_srli_epi32(_mm256_loadu_si256((const __m256i *)p), 8 * j);
    return _mm256_cvtepi32_ps(
        _mm256_sub_epi32(_mm256_and_si256(u, _mm256_set1_epi32(255)), _mm256_set1_epi32(128)));
}

/* Byte j of each of 16 groups of four, less 128. */
V16_INLINE v16 v16_load_code(const uint8_t *p, int j)
{
    return (v16){v8_load_code(p, j), v8_load_code(p + 32, j)};
}

/* x to the nearest integer, halves to even; |x| < 2^31. */
V16_INLINE void v16_store_i32(int32_t *p, v16 x)
{
    _mm256_storeu_si256((__m256i *)p, _mm256_cvtps_epi32(x.lo));
    _mm256_storeu_si256((__m256i *)(p + 8), _mm256_cvtps_epi32(x.hi));
}

/* The same as bytes; |x| < 128. */
V16_INLINE void v16_store_i8(int8_t *p, v16 x)
{
    const __m256i lo = _mm256_cvtps_epi32(x.lo), hi = _mm256_cvtps_epi32(x.hi);
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(halves),
                                                   _mm256_extracti128_si256(halves, 1)));
}

V16_INLINE __m256 v8_max_bits(__m256 x, __m256 m)
{
    const __m256i magnitude =
        _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
    return _mm256_castsi256_ps(_mm256_max_epi32(magnitude, _mm256_castps_si256(m)));
}

/* The larger bits of m and |x|, as integers: no NaN is lost. */
V16_INLINE v16 v16_max_bits(v16 x, v16 m)
{
    return (v16){v8_max_bits(x.lo, m.lo), v8_max_bits(x.hi, m.hi)};
}

/* The lane with the largest bits, as signed integers. */
V16_INLINE uint32_t v16_top_bits(v16 x)
{
    const __m256i a = _mm256_max_epi32(_mm256_castps_si256(x.lo), _mm256_castps_si256(x.hi));
    const __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i c = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epi32(c, _mm_shuffle_epi32(c, 0xb1)));
}

typedef struct {
    __m256i lo, hi;
} v16_mask;

/* Lanes below n, 0 <= n <= 15. */
V16_INLINE v16_mask v16_mask_n(int64_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), all = _mm256_set1_epi32((int)n);
    return (v16_mask){_mm256_cmpgt_epi32(all, lane),
                      _mm256_cmpgt_epi32(all, _mm256_add_epi32(lane, _mm256_set1_epi32(8)))};
}

/* The first n elements, the rest +0; memory past them is not touched. */
V16_INLINE v16 v16_load_n(const float *p, int64_t n)
{
    const v16_mask m = v16_mask_n(n);
    return (v16){_mm256_maskload_ps(p, m.lo), _mm256_maskload_ps(p + 8, m.hi)};
}

V16_INLINE void v16_store_n(float *p, v16 x, int64_t n)
{
    const v16_mask m = v16_mask_n(n);
    _mm256_maskstore_ps(p, m.lo, x.lo);
    _mm256_maskstore_ps(p + 8, m.hi, x.hi);
}

/* Lanes below n from x, the others from `rest`. */
V16_INLINE v16 v16_pick_n(v16 x, v16 rest, int64_t n)
{
    const v16_mask m = v16_mask_n(n);
    return (v16){_mm256_blendv_ps(rest.lo, x.lo, _mm256_castsi256_ps(m.lo)),
                 _mm256_blendv_ps(rest.hi, x.hi, _mm256_castsi256_ps(m.hi))};
}

V16_INLINE v16 v16_add(v16 a, v16 b)
{
    return (v16){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}

V16_INLINE v16 v16_sub(v16 a, v16 b)
{
    return (v16){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}

V16_INLINE v16 v16_mul(v16 a, v16 b)
{
    return (v16){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}

V16_INLINE v16 v16_div(v16 a, v16 b)
{
    return (v16){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}

/* a * b + c and a * b - c, rounded once. */
V16_INLINE v16 v16_fma(v16 a, v16 b, v16 c)
{
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}

V16_INLINE v16 v16_fms(v16 a, v16 b, v16 c)
{
    return (v16){_mm256_fmsub_ps(a.lo, b.lo, c.lo), _mm256_fmsub_ps(a.hi, b.hi, c.hi)};
}

/* The larger; m where x is NaN. */
V16_INLINE v16 v16_max(v16 x, v16 m)
{
    return (v16){_mm256_max_ps(x.lo, m.lo), _mm256_max_ps(x.hi, m.hi)};
}

/* The larger; NaN where either is. */
V16_INLINE v16 v16_max_nan(v16 x, v16 m)
{
    const v16 max = v16_max(x, m);
    return (v16){_mm256_blendv_ps(max.lo, x.lo, _mm256_cmp_ps(x.lo, x.lo, _CMP_UNORD_Q)),
                 _mm256_blendv_ps(max.hi, x.hi, _mm256_cmp_ps(x.hi, x.hi, _CMP_UNORD_Q))};
}

/* Bit i: lane i of a equals lane i of b. */
V16_INLINE unsigned v16_equal(v16 a, v16 b)
{
    const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ));
    const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ));
    return (unsigned)(hi << 8 | lo);
}

/* A1: lane j += lane j + 8, then 4, 2, 1. */
V16_INLINE float v16_tree(v16 x)
{
    const __m256 a = _mm256_add_ps(x.lo, x.hi);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

/* The largest lane; `x` has no NaN. */
V16_INLINE float v16_top(v16 x)
{
    const __m256 a = _mm256_max_ps(x.lo, x.hi);
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

V16_INLINE __m256 v8_exp2_int(__m256i e)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
}

/* nb_expf, 8 lanes. A NaN makes e meaningless, and stays NaN in the products. */
V16_INLINE __m256 v8_exp(__m256 x)
{
    const __m256 magic = _mm256_set1_ps(NB_EXP_MAGIC), one = _mm256_set1_ps(1.0f);
    x = _mm256_min_ps(_mm256_set1_ps(NB_EXP_HI), x); /* the second operand where one is NaN */
    x = _mm256_max_ps(_mm256_set1_ps(NB_EXP_LO), x);
    const __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(NB_EXP_LOG2E), magic);
    const __m256 n = _mm256_sub_ps(t, magic);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-NB_EXP_LN2_HI), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-NB_EXP_LN2_LO), r);
    __m256 q = _mm256_fmadd_ps(_mm256_set1_ps(NB_EXP_C6), r, _mm256_set1_ps(NB_EXP_C5));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(NB_EXP_C4));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(NB_EXP_C3));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(NB_EXP_C2));
    q = _mm256_fmadd_ps(q, r, one);
    const __m256 p = _mm256_fmadd_ps(q, r, one);
    const __m256i e = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(magic));
    const __m256i half = _mm256_srai_epi32(e, 1);
    return _mm256_mul_ps(_mm256_mul_ps(p, v8_exp2_int(half)),
                         v8_exp2_int(_mm256_sub_epi32(e, half)));
}

V16_INLINE v16 v16_exp(v16 x)
{
    return (v16){v8_exp(x.lo), v8_exp(x.hi)};
}

#endif
