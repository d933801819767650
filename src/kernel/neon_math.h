/* Private to neon_*.c: 16 binary32 lanes as four registers, under the names that nn_body.h and
 * attn_body.h are written in. avx2_math.h and avx512_math.h have the same names. */
#ifndef NB_KERNEL_NEON_MATH_H
#define NB_KERNEL_NEON_MATH_H

#include "kernel/math.h"

#include <arm_neon.h>

#define V16_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define V16_UNROLL _Pragma("clang loop unroll(full)")
#else
#define V16_UNROLL _Pragma("GCC unroll 16")
#endif

/* The register tiles of attention: up to 6 rows by one v16 of widened cells, 24 registers of sums,
 * which leaves 8; or few rows by more cells straight from the cache, so that there are enough sums
 * to hide the latency of an FMA. */
#define V16_TILES(X)       X(1) X(2) X(3) X(4) X(5) X(6)
#define V16_TILE_ROWS      6
#define V16_TILE_VECS      1
#define V16_FEW_TILES(X)   X(1) X(2) X(3)
#define V16_FEW_ROWS       3
#define V16_FEW_VECS(rows) ((rows) == 1 ? 4 : (rows) == 2 ? 2 : 1)
#define V16_SOFTMAX_ROWS   2

typedef struct {
    float32x4_t a, b, c, d;
} v16;

/* f of each register of the v16's given. */
#define V16_EACH_1(f, x) ((v16){f((x).a), f((x).b), f((x).c), f((x).d)})
#define V16_EACH_2(f, x, y)                                                                        \
    ((v16){f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d)})
#define V16_EACH_3(f, x, y, z)                                                                     \
    ((v16){f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b), f((x).c, (y).c, (z).c),                 \
           f((x).d, (y).d, (z).d)})

V16_INLINE v16 v16_set1(float x)
{
    const float32x4_t v = vdupq_n_f32(x);
    return (v16){v, v, v, v};
}

V16_INLINE v16 v16_zero(void)
{
    return v16_set1(0);
}

V16_INLINE v16 v16_load(const float *p)
{
    return (v16){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}

V16_INLINE void v16_store(float *p, v16 x)
{
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
}

V16_INLINE float32x4_t v4_load_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

V16_INLINE v16 v16_load_f16(const uint16_t *p)
{
    return (v16){v4_load_f16(p), v4_load_f16(p + 4), v4_load_f16(p + 8), v4_load_f16(p + 12)};
}

V16_INLINE void v16_store_f16(uint16_t *p, v16 x)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x.a)));
    vst1_u16(p + 4, vreinterpret_u16_f16(vcvt_f16_f32(x.b)));
    vst1_u16(p + 8, vreinterpret_u16_f16(vcvt_f16_f32(x.c)));
    vst1_u16(p + 12, vreinterpret_u16_f16(vcvt_f16_f32(x.d)));
}

V16_INLINE float32x4_t v4_load_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}

V16_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    return (v16){v4_load_bf16(p), v4_load_bf16(p + 4), v4_load_bf16(p + 8), v4_load_bf16(p + 12)};
}

V16_INLINE v16 v16_load_i8(const int8_t *p)
{
    const int8x16_t codes = vld1q_s8(p);
    const int16x8_t lo = vmovl_s8(vget_low_s8(codes)), hi = vmovl_s8(vget_high_s8(codes));
    return (v16){
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(lo))),
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(hi)))};
}

/* Numbers in E4M3 (not NaN), times 2^-8: moved to where f16 has its fields, whose exponent has a
 * bias 8 larger. */
V16_INLINE v16 v16_load_e4m3(const uint8_t *p)
{
    const int8x16_t codes = vreinterpretq_s8_u8(vld1q_u8(p));
    const uint16x8_t fields = vdupq_n_u16(0xbf80);
    const uint16x8_t lo =
        vandq_u16(vreinterpretq_u16_s16(vshlq_n_s16(vmovl_s8(vget_low_s8(codes)), 7)), fields);
    const uint16x8_t hi =
        vandq_u16(vreinterpretq_u16_s16(vshlq_n_s16(vmovl_s8(vget_high_s8(codes)), 7)), fields);
    return (v16){vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(lo))),
                 vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(lo))),
                 vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(hi))),
                 vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(hi)))};
}

/* The j-th of the codes of `bits` bits that each of 16 bytes holds, the first in the lowest bits.
 */
V16_INLINE v16 v16_load_bits(const uint8_t *p, int bits, int j)
{
    const uint8x16_t u = vandq_u8(vshlq_u8(vld1q_u8(p), vdupq_n_s8((int8_t)(-bits * j))),
                                  vdupq_n_u8((uint8_t)((1 << bits) - 1)));
    const uint16x8_t lo = vmovl_u8(vget_low_u8(u)), hi = vmovl_u8(vget_high_u8(u));
    return (v16){
        vcvtq_f32_u32(vmovl_u16(vget_low_u16(lo))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(lo))),
        vcvtq_f32_u32(vmovl_u16(vget_low_u16(hi))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(hi)))};
}

V16_INLINE float32x4_t v4_load_code(const uint8_t *p, int j)
{
    const uint32x4_t four = vreinterpretq_u32_u8(vld1q_u8(p));
    const uint32x4_t u = vandq_u32(vshlq_u32(four, vdupq_n_s32(-8 * j)), vdupq_n_u32(255));
    return vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(u), vdupq_n_s32(128)));
}

/* Byte j of each of 16 groups of four, less 128. */
V16_INLINE v16 v16_load_code(const uint8_t *p, int j)
{
    return (v16){v4_load_code(p, j), v4_load_code(p + 16, j), v4_load_code(p + 32, j),
                 v4_load_code(p + 48, j)};
}

/* x to the nearest integer, halves to even; |x| < 2^31. */
V16_INLINE void v16_store_i32(int32_t *p, v16 x)
{
    vst1q_s32(p, vcvtnq_s32_f32(x.a));
    vst1q_s32(p + 4, vcvtnq_s32_f32(x.b));
    vst1q_s32(p + 8, vcvtnq_s32_f32(x.c));
    vst1q_s32(p + 12, vcvtnq_s32_f32(x.d));
}

/* The same as bytes; |x| < 128. */
V16_INLINE void v16_store_i8(int8_t *p, v16 x)
{
    const int16x8_t lo =
        vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x.a)), vmovn_s32(vcvtnq_s32_f32(x.b)));
    const int16x8_t hi =
        vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x.c)), vmovn_s32(vcvtnq_s32_f32(x.d)));
    vst1q_s8(p, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
}

V16_INLINE float32x4_t v4_max_bits(float32x4_t x, float32x4_t m)
{
    const uint32x4_t magnitude = vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x7fffffff));
    return vreinterpretq_f32_u32(vmaxq_u32(magnitude, vreinterpretq_u32_f32(m)));
}

/* The larger bits of m and |x|, as integers: no NaN is lost. */
V16_INLINE v16 v16_max_bits(v16 x, v16 m)
{
    return V16_EACH_2(v4_max_bits, x, m);
}

/* The lane with the largest bits; none has a sign. */
V16_INLINE uint32_t v16_top_bits(v16 x)
{
    const uint32x4_t ab = vmaxq_u32(vreinterpretq_u32_f32(x.a), vreinterpretq_u32_f32(x.b));
    const uint32x4_t cd = vmaxq_u32(vreinterpretq_u32_f32(x.c), vreinterpretq_u32_f32(x.d));
    return vmaxvq_u32(vmaxq_u32(ab, cd));
}

/* The first n elements, 0 <= n <= 15, the rest +0; memory past them is not touched. */
V16_INLINE v16 v16_load_n(const float *p, int64_t n)
{
    float lane[16] = {0};
    memcpy(lane, p, (size_t)n * sizeof *p);
    return v16_load(lane);
}

V16_INLINE void v16_store_n(float *p, v16 x, int64_t n)
{
    float lane[16];
    v16_store(lane, x);
    memcpy(p, lane, (size_t)n * sizeof *p);
}

/* Lanes below n, less 4 * i. */
V16_INLINE uint32x4_t v4_mask_n(int64_t n, int i)
{
    static const int32_t lane[4] = {0, 1, 2, 3};
    return vcgtq_s32(vdupq_n_s32((int32_t)n - 4 * i), vld1q_s32(lane));
}

/* Lanes below n from x, the others from `rest`. */
V16_INLINE v16 v16_pick_n(v16 x, v16 rest, int64_t n)
{
    return (v16){vbslq_f32(v4_mask_n(n, 0), x.a, rest.a), vbslq_f32(v4_mask_n(n, 1), x.b, rest.b),
                 vbslq_f32(v4_mask_n(n, 2), x.c, rest.c), vbslq_f32(v4_mask_n(n, 3), x.d, rest.d)};
}

V16_INLINE v16 v16_add(v16 x, v16 y)
{
    return V16_EACH_2(vaddq_f32, x, y);
}

V16_INLINE v16 v16_sub(v16 x, v16 y)
{
    return V16_EACH_2(vsubq_f32, x, y);
}

V16_INLINE v16 v16_mul(v16 x, v16 y)
{
    return V16_EACH_2(vmulq_f32, x, y);
}

V16_INLINE v16 v16_div(v16 x, v16 y)
{
    return V16_EACH_2(vdivq_f32, x, y);
}

/* x * y + z and x * y - z, rounded once. The intrinsic takes what is added first. */
V16_INLINE v16 v16_fma(v16 x, v16 y, v16 z)
{
    return V16_EACH_3(vfmaq_f32, z, x, y);
}

V16_INLINE v16 v16_fms(v16 x, v16 y, v16 z)
{
    return v16_fma(x, y, V16_EACH_1(vnegq_f32, z));
}

V16_INLINE float32x4_t v4_max(float32x4_t x, float32x4_t m)
{
    return vbslq_f32(vcgtq_f32(x, m), x, m);
}

/* The larger; m where x is NaN. */
V16_INLINE v16 v16_max(v16 x, v16 m)
{
    return V16_EACH_2(v4_max, x, m);
}

/* The larger; NaN where either is. */
V16_INLINE v16 v16_max_nan(v16 x, v16 m)
{
    return V16_EACH_2(vmaxq_f32, x, m);
}

/* Bit i: lane i of x equals lane i of y. */
V16_INLINE unsigned v16_equal(v16 x, v16 y)
{
    static const uint32_t bit[4] = {1, 2, 4, 8};
    const uint32x4_t a = vceqq_f32(x.a, y.a), b = vceqq_f32(x.b, y.b);
    const uint32x4_t c = vceqq_f32(x.c, y.c), d = vceqq_f32(x.d, y.d);
    const uint32x4_t bits = vld1q_u32(bit);
    return vaddvq_u32(vandq_u32(a, bits)) | vaddvq_u32(vandq_u32(b, bits)) << 4 |
           vaddvq_u32(vandq_u32(c, bits)) << 8 | vaddvq_u32(vandq_u32(d, bits)) << 12;
}

/* A1: lane j += lane j + 8, then 4, 2, 1. */
V16_INLINE float v16_tree(v16 x)
{
    const float32x4_t four = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/* The largest lane that is a number; `x` has one. */
V16_INLINE float v16_top(v16 x)
{
    return vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(x.a, x.c), vmaxnmq_f32(x.b, x.d)));
}

V16_INLINE float32x4_t v4_exp2_int(int32x4_t e)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(127)), 23));
}

/* nb_expf, 4 lanes. fmin and fmax keep a NaN; it makes e meaningless, and stays NaN in the
 * products. */
V16_INLINE float32x4_t v4_exp(float32x4_t x)
{
    const float32x4_t magic = vdupq_n_f32(NB_EXP_MAGIC), one = vdupq_n_f32(1);
    x = vminq_f32(x, vdupq_n_f32(NB_EXP_HI));
    x = vmaxq_f32(x, vdupq_n_f32(NB_EXP_LO));
    const float32x4_t t = vfmaq_f32(magic, x, vdupq_n_f32(NB_EXP_LOG2E));
    const float32x4_t n = vsubq_f32(t, magic);
    float32x4_t r = vfmaq_f32(x, n, vdupq_n_f32(-NB_EXP_LN2_HI));
    r = vfmaq_f32(r, n, vdupq_n_f32(-NB_EXP_LN2_LO));
    float32x4_t q = vfmaq_f32(vdupq_n_f32(NB_EXP_C5), vdupq_n_f32(NB_EXP_C6), r);
    q = vfmaq_f32(vdupq_n_f32(NB_EXP_C4), q, r);
    q = vfmaq_f32(vdupq_n_f32(NB_EXP_C3), q, r);
    q = vfmaq_f32(vdupq_n_f32(NB_EXP_C2), q, r);
    q = vfmaq_f32(one, q, r);
    const float32x4_t p = vfmaq_f32(one, q, r);
    const int32x4_t e = vsubq_s32(vreinterpretq_s32_f32(t), vreinterpretq_s32_f32(magic));
    const int32x4_t half = vshrq_n_s32(e, 1);
    return vmulq_f32(vmulq_f32(p, v4_exp2_int(half)), v4_exp2_int(vsubq_s32(e, half)));
}

V16_INLINE v16 v16_exp(v16 x)
{
    return V16_EACH_1(v4_exp, x);
}

#endif
