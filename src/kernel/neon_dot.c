/* Matrix products, NEON with dot products.
 *
 * sdot adds, for each of 4 rows, the products of 4 columns; its second operand is one lane of a
 * register, so that 4 tokens' codes are loaded at once and none is broadcast. Codes enter as signed
 * bytes: 0..15 as they are, 8-bit ones less their offset of 128, which then leaves the zero point
 * too; 4-bit tables are one lookup. Up to 4 tokens take a whole panel (16 rows, 4 registers of sums
 * for each), more take half of one, so that what is unpacked once serves up to 12 tokens. One token
 * keeps two sets of sums, to hide the latency of sdot. The sums are exact integers modulo 2^32, so
 * their order is free; the float steps follow the contract segment by segment.
 *
 * Float: P panels by T tokens with 4 * P * T <= 24 chains in registers, cut every 128 columns. */
#include "kernel/kernel.h"
#include "numeric/minifloat.h"

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE float32x4_t load_params(const void *array, nb_float_type type, int64_t at)
{
    switch (type) {
    case NB_F16:
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)array + at)));
    case NB_BF16:
        return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)array + at), 16));
    case NB_F32:
        break;
    }
    return vld1q_f32((const float *)array + at);
}

/* Zero points of 4 rows, less `bias`. */
INLINE int32x4_t load_zeros(const nb_panels *w, int64_t at, int32_t bias)
{
    if (w->zeros == NULL)
        return vdupq_n_s32(w->zero_const - bias);
    return vsubq_s32(vmovl_s16(vld1_s16(w->zeros + at)), vdupq_n_s32(bias));
}

/* The first n of the 4 outputs. */
INLINE void store_rows(float *y, float32x4_t v, int64_t n)
{
    if (n >= 4) {
        vst1q_f32(y, v);
        return;
    }
    float row[4];
    vst1q_f32(row, v);
    for (int64_t i = 0; i < n; i++)
        y[i] = row[i];
}

/* ---- integer ---- */

enum { WIDE_TOKENS = 4 }; /* up to so many take a whole panel */

/* 4 columns of 4 rows as signed codes: the low or the high halves of the bytes, or the bytes. */
INLINE int8x16_t unpack(uint8x16_t bytes, const bool high, int8x16_t table,
                        const nb_panel_kind kind)
{
    if (kind == NB_PANEL_U8)
        return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128)));
    const uint8x16_t code = high ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15));
    return kind == NB_PANEL_T4 ? vqtbl1q_s8(table, code) : vreinterpretq_s8_u8(code);
}

/* 4 codes of each of n <= 4 tokens, one token a lane. */
INLINE int8x16_t load_tokens(const int8_t *x, const int n)
{
    if (n == 4)
        return vld1q_s8(x);
    int32_t one;
    memcpy(&one, x + 4 * (n - 1), sizeof one);
    if (n == 1)
        return vreinterpretq_s8_s32(vdupq_n_s32(one));
    const int8x16_t two = vcombine_s8(vld1_s8(x), vdup_n_s8(0));
    return n == 2 ? two : vreinterpretq_s8_s32(vsetq_lane_s32(one, vreinterpretq_s32_s8(two), 2));
}

/* The lane has to be a constant where the intrinsic is written. */
INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t x, const int lane)
{
    switch (lane) {
    case 0:
        return vdotq_laneq_s32(acc, w, x, 0);
    case 1:
        return vdotq_laneq_s32(acc, w, x, 1);
    case 2:
        return vdotq_laneq_s32(acc, w, x, 2);
    default:
        return vdotq_laneq_s32(acc, w, x, 3);
    }
}

/* acc[t * R + j] += the products of 8 * n8 columns, for rows [4 * j, 4 * j + 4) of those at w and
 * tokens t of the n_tok at x. */
INLINE void segment_sums(int32x4_t *acc, const uint8_t *w, const int8_t *x, int64_t n8,
                         int64_t n_tok, int8x16_t table, const nb_panel_kind kind, const int R,
                         const int T)
{
    int32x4_t other[4];
    if (T == 1) {
        UNROLL
        for (int j = 0; j < R; j++)
            other[j] = vdupq_n_s32(0);
    }
    for (int64_t g = 0; g < n8; g++) {
        uint8x16_t bytes[4];
        UNROLL
        for (int half = 0; half < 2; half++, x += 4 * n_tok) {
            int8x16_t code[4], tokens[3];
            UNROLL
            for (int j = 0; j < R; j++) {
                if (half == 0 || kind == NB_PANEL_U8)
                    bytes[j] = vld1q_u8(w + 16 * j);
                code[j] = unpack(bytes[j], half != 0, table, kind);
            }
            if (half == 1 || kind == NB_PANEL_U8)
                w += 64;
            UNROLL
            for (int t = 0; t < T; t += 4)
                tokens[t / 4] = load_tokens(x + 4 * t, T - t < 4 ? T - t : 4);
            int32x4_t *sums = T == 1 && half == 1 ? other : acc;
            UNROLL
            for (int t = 0; t < T; t++) {
                UNROLL
                for (int j = 0; j < R; j++)
                    sums[t * R + j] = dot(sums[t * R + j], code[j], tokens[t / 4], t % 4);
            }
        }
    }
    if (T == 1) {
        UNROLL
        for (int j = 0; j < R; j++)
            acc[j] = vaddq_s32(acc[j], other[j]);
    }
}

/* acc -= (z - bias) * xsum, for the segment whose parameters begin at `at`: before the products, so
 * that a zero point common to all rows costs one product a token. */
INLINE void subtract_zeros(int32x4_t *acc, const nb_panels *w, int64_t at, const int32_t *xsum,
                           int32_t bias, const int R, const int T)
{
    if (w->zeros == NULL) {
        const uint32_t z = (uint32_t)w->zero_const - (uint32_t)bias;
        UNROLL
        for (int t = 0; t < T; t++) {
            const int32x4_t product = vdupq_n_s32((int32_t)(z * (uint32_t)xsum[t]));
            UNROLL
            for (int j = 0; j < R; j++)
                acc[t * R + j] = vsubq_s32(acc[t * R + j], product);
        }
        return;
    }
    UNROLL
    for (int j = 0; j < R; j++) {
        const int32x4_t z =
            vsubq_s32(vmovl_s16(vld1_s16(w->zeros + at + 4 * j)), vdupq_n_s32(bias));
        UNROLL
        for (int t = 0; t < T; t++)
            acc[t * R + j] = vmlsq_n_s32(acc[t * R + j], z, xsum[t]);
    }
}

/* Rows [row0, row0 + 4 * R) of panel p, by all T tokens of the tile. */
INLINE void tile_i(float *y, int64_t ldy, const nb_panels *w, int64_t p, int row0,
                   const nb_xtile *xt, const nb_panel_kind kind, const int R, const int T)
{
    const int32_t bias = kind == NB_PANEL_U4 ? 0 : 128;
    const int64_t group8_bytes = kind == NB_PANEL_U8 ? 128 : 64;
    const int64_t n_pad8 = w->k_pad / 8, seg8 = (xt->seg_len + 7) / 8;
    const uint8_t *codes = w->codes + p * w->panel_bytes + 4 * row0;
    const int8x16_t table = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w->table), vdupq_n_u8(128)));
    float32x4_t total[24];
    UNROLL
    for (int i = 0; i < R * T; i++)
        total[i] = vdupq_n_f32(0);
    /* Segments nest, so the weight's and the activations' numbers advance one at a time. */
    int64_t w_end = w->seg_len, x_end = xt->x_seg_len;
    int64_t at = p * w->n_segs * NB_PANEL_ROWS + row0;
    const float *sx = xt->scale;
    const int32_t *xsum = xt->xsum;
    for (int64_t g = 0; g < n_pad8; g += seg8, xsum += T) {
        if (g * 8 == w_end) {
            w_end += w->seg_len;
            at += NB_PANEL_ROWS;
        }
        if (g * 8 == x_end) {
            x_end += xt->x_seg_len;
            sx += T;
        }
        const int64_t n8 = g + seg8 < n_pad8 ? seg8 : n_pad8 - g;
        const int64_t x_at = g * 8 * T;
        int32x4_t acc[24];
        UNROLL
        for (int i = 0; i < R * T; i++)
            acc[i] = vdupq_n_s32(0);
        const int8_t *low = xt->hi;
        if (xt->lo != NULL) { /* x = 256 hi + lo */
            segment_sums(acc, codes + g * group8_bytes, xt->hi + x_at, n8, T, table, kind, R, T);
            UNROLL
            for (int i = 0; i < R * T; i++)
                acc[i] = vshlq_n_s32(acc[i], 8);
            low = xt->lo;
        }
        subtract_zeros(acc, w, at, xsum, bias, R, T);
        segment_sums(acc, codes + g * group8_bytes, low + x_at, n8, T, table, kind, R, T);
        UNROLL
        for (int j = 0; j < R; j++) {
            const float32x4_t sw = load_params(w->scales, w->scale_type, at + 4 * j);
            UNROLL
            for (int t = 0; t < T; t++) {
                const int i = t * R + j;
                total[i] = vfmaq_f32(total[i], vcvtq_f32_s32(acc[i]), vmulq_n_f32(sw, sx[t]));
            }
            if (w->mins != NULL) {
                const float32x4_t m = load_params(w->mins, w->scale_type, at + 4 * j);
                UNROLL
                for (int t = 0; t < T; t++)
                    total[t * R + j] = vfmaq_n_f32(total[t * R + j], m, (float)xsum[t] * sx[t]);
            }
        }
    }
    const int64_t row = p * NB_PANEL_ROWS + row0, left = w->n_rows - row;
    UNROLL
    for (int t = 0; t < T; t++) {
        UNROLL
        for (int j = 0; j < R; j++)
            store_rows(y + t * ldy + row + 4 * j, total[t * R + j], left - 4 * j);
    }
}

#define FOR_EACH_T(X, kind)                                                                        \
    X(kind, 1)                                                                                     \
    X(kind, 2)                                                                                     \
    X(kind, 3)                                                                                     \
    X(kind, 4)                                                                                     \
    X(kind, 5) X(kind, 6) X(kind, 7) X(kind, 8) X(kind, 9) X(kind, 10) X(kind, 11) X(kind, 12)

#define X(kind, T)                                                                                 \
    static void panels_##kind##_##T(float *y, int64_t ldy, const nb_panels *w, int64_t begin,      \
                                    int64_t end, const nb_xtile *x)                                \
    {                                                                                              \
        for (int64_t p = begin; p < end; p++) {                                                    \
            if ((T) <= WIDE_TOKENS) {                                                              \
                tile_i(y, ldy, w, p, 0, x, NB_PANEL_##kind, 4, (T) <= WIDE_TOKENS ? (T) : 1);      \
            } else {                                                                               \
                tile_i(y, ldy, w, p, 0, x, NB_PANEL_##kind, 2, T);                                 \
                if (p * NB_PANEL_ROWS + 8 < w->n_rows)                                             \
                    tile_i(y, ldy, w, p, 8, x, NB_PANEL_##kind, 2, T);                             \
            }                                                                                      \
        }                                                                                          \
    }
FOR_EACH_T(X, U4)
FOR_EACH_T(X, T4)
FOR_EACH_T(X, U8)
#undef X

static void gemm_i(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                   const nb_xtile *x)
{
#define X(kind, T) panels_##kind##_##T,
    static nb_gemm_i_fn *const u4[NB_TILE_MAX] = {FOR_EACH_T(X, U4)};
    static nb_gemm_i_fn *const t4[NB_TILE_MAX] = {FOR_EACH_T(X, T4)};
    static nb_gemm_i_fn *const u8[NB_TILE_MAX] = {FOR_EACH_T(X, U8)};
#undef X
    nb_gemm_i_fn *const *panels = w->kind == NB_PANEL_U4 ? u4 : w->kind == NB_PANEL_T4 ? t4 : u8;
    panels[x->n_tok - 1](y, ldy, w, begin, end, x);
}

/* ---- float ---- */

/* Rows [4 * j, 4 * j + 4) of column k. */
INLINE float32x4_t load_weights(const uint8_t *w, int64_t k, int j, const nb_panel_kind kind)
{
    return load_params(w,
                       kind == NB_PANEL_F32   ? NB_F32
                       : kind == NB_PANEL_F16 ? NB_F16
                                              : NB_BF16,
                       k * NB_PANEL_ROWS + 4 * j);
}

/* One column of n <= 4 tokens. */
INLINE float32x4_t load_activations(const float *x, const int n)
{
    if (n == 4)
        return vld1q_f32(x);
    if (n == 1)
        return vdupq_n_f32(x[0]);
    const float32x4_t two = vcombine_f32(vld1_f32(x), vdup_n_f32(0));
    return n == 2 ? two : vsetq_lane_f32(x[2], two, 2);
}

INLINE float32x4_t fma_lane(float32x4_t acc, float32x4_t w, float32x4_t x, const int lane)
{
    switch (lane) {
    case 0:
        return vfmaq_laneq_f32(acc, w, x, 0);
    case 1:
        return vfmaq_laneq_f32(acc, w, x, 1);
    case 2:
        return vfmaq_laneq_f32(acc, w, x, 2);
    default:
        return vfmaq_laneq_f32(acc, w, x, 3);
    }
}

/* P panels (weights of panel p at w + p * stride) by T of x's n_tok tokens, n columns. */
INLINE void tile_f(float *y, int64_t ldy, int64_t n_rows, const uint8_t *w, int64_t stride,
                   const float *x, int64_t n_tok, int64_t n, bool first, const nb_panel_kind kind,
                   const int P, const int T)
{
    float32x4_t acc[24];
    UNROLL
    for (int i = 0; i < 4 * P * T; i++)
        acc[i] = vdupq_n_f32(0);
    for (int64_t k = 0; k < n; k++, x += n_tok) {
        float32x4_t tokens[2];
        UNROLL
        for (int t = 0; t < T; t += 4)
            tokens[t / 4] = load_activations(x + t, T - t < 4 ? T - t : 4);
        UNROLL
        for (int i = 0; i < 4 * P; i++) {
            const float32x4_t wk = load_weights(w + i / 4 * stride, k, i % 4, kind);
            UNROLL
            for (int t = 0; t < T; t++)
                acc[i * T + t] = fma_lane(acc[i * T + t], wk, tokens[t / 4], t % 4);
        }
    }
    UNROLL
    for (int i = 0; i < 4 * P; i++) {
        const int64_t left = n_rows - 4 * i;
        if (left <= 0)
            break;
        UNROLL
        for (int t = 0; t < T; t++) {
            float *out = y + t * ldy + 4 * i;
            float before[4] = {0};
            if (!first)
                memcpy(before, out, (left < 4 ? (size_t)left : 4) * sizeof *out);
            store_rows(out, vaddq_f32(vld1q_f32(before), acc[i * T + t]), left);
        }
    }
}

/* Adds one chunk of n columns to y (from +0 if `first`): P panels of weights, panel j at
 * w + j * stride, by T of the n_tok tokens at x. n_rows is what is left of the matrix. */
typedef void tile_f_fn(float *y, int64_t ldy, int64_t n_rows, const uint8_t *w, int64_t stride,
                       const float *x, int64_t n_tok, int64_t n, bool first);

#define DEFINE(kind, P, T)                                                                         \
    static void tile_##kind##_##P##_##T(float *y, int64_t ldy, int64_t n_rows, const uint8_t *w,   \
                                        int64_t stride, const float *x, int64_t n_tok, int64_t n,  \
                                        bool first)                                                \
    {                                                                                              \
        tile_f(y, ldy, n_rows, w, stride, x, n_tok, n, first, NB_PANEL_##kind, P, T);              \
    }
#define X(kind)                                                                                    \
    DEFINE(kind, 1, 1)                                                                             \
    DEFINE(kind, 1, 2)                                                                             \
    DEFINE(kind, 1, 3)                                                                             \
    DEFINE(kind, 1, 4)                                                                             \
    DEFINE(kind, 1, 5) DEFINE(kind, 1, 6) DEFINE(kind, 4, 1) DEFINE(kind, 2, 2) DEFINE(kind, 2, 3)
X(F32)
X(BF16)
X(F16)
#undef X

#define ROW(kind)                                                                                  \
    {                                                                                              \
        tile_##kind##_1_1, tile_##kind##_1_2, tile_##kind##_1_3, tile_##kind##_1_4,                \
            tile_##kind##_1_5, tile_##kind##_1_6                                                   \
    }
#define WIDE_ROW(kind)                                                                             \
    {                                                                                              \
        tile_##kind##_4_1, tile_##kind##_2_2, tile_##kind##_2_3                                    \
    }
static tile_f_fn *const tiles_one[3][6] = {
    [NB_PANEL_F32] = ROW(F32), [NB_PANEL_BF16] = ROW(BF16), [NB_PANEL_F16] = ROW(F16)};
static tile_f_fn *const tiles_wide[3][3] = {[NB_PANEL_F32] = WIDE_ROW(F32),
                                            [NB_PANEL_BF16] = WIDE_ROW(BF16),
                                            [NB_PANEL_F16] = WIDE_ROW(F16)};

/* Columns [k0, k0 + n) of a panel of codes, as binary32 [k][16]. k0 is a multiple of 128. */
INLINE void dequantize_columns(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n,
                               const nb_panel_kind kind)
{
    const int32_t bias = kind == NB_PANEL_U4 ? 0 : 128;
    const int64_t count = kind == NB_PANEL_U8 ? 4 : 8;
    const uint8_t *panel = w->codes + p * w->panel_bytes;
    const int8x16_t table = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w->table), vdupq_n_u8(128)));
    for (int64_t j = 0; j < 4; j++) {
        for (int64_t k = k0; k < k0 + n;) {
            const int64_t seg = k / w->seg_len, seg_end = (seg + 1) * w->seg_len;
            const int64_t end = seg_end < k0 + n ? seg_end : k0 + n;
            const int64_t at = (p * w->n_segs + seg) * NB_PANEL_ROWS + 4 * j;
            const float32x4_t s = load_params(w->scales, w->scale_type, at);
            const float32x4_t m =
                w->mins != NULL ? load_params(w->mins, w->scale_type, at) : vdupq_n_f32(0);
            const int32x4_t z = load_zeros(w, at, bias);
            for (int64_t g = k / count * count; g < end; g += count) {
                const uint8x16_t bytes = vld1q_u8(panel + g / count * 64 + 16 * j);
                UNROLL
                for (int i = 0; i < count; i++) {
                    const int32x4_t four = vreinterpretq_s32_s8(unpack(bytes, i >= 4, table, kind));
                    /* Byte i % 4 of each row: up to the top, and down with its sign. */
                    const int32x4_t code =
                        vshrq_n_s32(vshlq_s32(four, vdupq_n_s32(24 - 8 * (i % 4))), 24);
                    const float32x4_t q = vcvtq_f32_s32(vsubq_s32(code, z));
                    if (g + i >= k && g + i < end) /* the segment's own */
                        vst1q_f32(out + (g - k0 + i) * NB_PANEL_ROWS + 4 * j,
                                  w->mins == NULL ? vmulq_f32(s, q) : vfmaq_f32(m, s, q));
                }
            }
            k = end;
        }
    }
}

/* Four numbers of a column of float codes. The conversions are plain arithmetic on bits, which the
 * compiler may turn into vector code. */
INLINE float32x4_t load_levels(const nb_panels *w, const uint8_t *panel, int64_t k, int64_t j)
{
    float v[4];
    for (int i = 0; i < 4; i++) {
        if (w->kind == NB_PANEL_L4) {
            const uint8_t byte = panel[k / 8 * 64 + 16 * j + 4 * i + k % 4];
            v[i] = w->levels[k % 8 < 4 ? byte & 15 : byte >> 4];
        } else {
            const uint8_t byte = panel[k * NB_PANEL_ROWS + 4 * j + i];
            v[i] = w->kind == NB_PANEL_E4M3 ? nb_e4m3_to_f32(byte) : nb_e5m2_to_f32(byte);
        }
    }
    return vld1q_f32(v);
}

static void dequantize_levels(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n)
{
    const uint8_t *panel = w->codes + p * w->panel_bytes;
    for (int64_t k = k0; k < k0 + n; k++, out += NB_PANEL_ROWS) {
        const int64_t at = (p * w->n_segs + k / w->seg_len) * NB_PANEL_ROWS;
        for (int64_t j = 0; j < 4; j++)
            vst1q_f32(out + 4 * j, vmulq_f32(load_params(w->scales, w->scale_type, at + 4 * j),
                                             load_levels(w, panel, k, j)));
    }
}

static void dequantize_chunk(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n)
{
    if (!nb_panels_has_ints(w))
        dequantize_levels(out, w, p, k0, n);
    else if (w->kind == NB_PANEL_U4)
        dequantize_columns(out, w, p, k0, n, NB_PANEL_U4);
    else if (w->kind == NB_PANEL_T4)
        dequantize_columns(out, w, p, k0, n, NB_PANEL_T4);
    else
        dequantize_columns(out, w, p, k0, n, NB_PANEL_U8);
}

#define TILE_TOKENS       6
#define PANELS_AT_ONCE(T) ((T) > 3 ? 1 : (T) > 1 ? 2 : 4)
#include "kernel/dot_body.h"

void nb_kernels_neon_dot(nb_kernels *k)
{
    k->gemm_f = gemm_f;
    k->gemm_i = gemm_i;
}
