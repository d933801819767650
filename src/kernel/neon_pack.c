/* Packing of activations, NEON: codes by fcvtns (nearest even), narrowed 16 at a time; the sums of
 * codes by dot products with ones. */
#include "kernel/group_scale.h"
#include "kernel/kernel.h"

#include <arm_neon.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Largest (bits of x) & 0x7fffffff. */
static int32_t largest_magnitude(const float *x, int64_t n)
{
    const uint32x4_t magnitude = vdupq_n_u32(0x7fffffffu);
    uint32x4_t most = vdupq_n_u32(0);
    int64_t k = 0;
    for (; k + 4 <= n; k += 4)
        most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + k)), magnitude));
    if (k < n) {
        float rest[4] = {0};
        memcpy(rest, x + k, (size_t)(n - k) * sizeof *x);
        most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(rest)), magnitude));
    }
    return (int32_t)vmaxvq_u32(most);
}

INLINE int8x16_t narrow(const int32x4_t q[4])
{
    return vcombine_s8(vmovn_s16(vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]))),
                       vmovn_s16(vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]))));
}

/* Codes of 16 elements. In a group with Inf or NaN the inverse is 0, and what 0 times such an
 * element is, NaN, converts to 0 like the rest. */
INLINE void codes_16(const float *x, float inv, int32_t qmax, int8_t *hi, int8_t *lo)
{
    const int32x4_t most = vdupq_n_s32(qmax);
    int32x4_t q[4];
    for (int j = 0; j < 4; j++) {
        q[j] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * j), inv));
        q[j] = vmaxq_s32(vminq_s32(q[j], most), vnegq_s32(most));
    }
    if (lo != NULL) { /* the low bytes, signed, are lo as they are */
        vst1q_s8(lo, narrow(q));
        for (int j = 0; j < 4; j++)
            q[j] = vshrq_n_s32(vaddq_s32(q[j], vdupq_n_s32(128)), 8);
    }
    vst1q_s8(hi, narrow(q));
}

static bool quantize(const float *x, int64_t n, int64_t group, float given, int8_t *hi, int8_t *lo,
                     float *scale)
{
    const int32_t qmax = lo == NULL ? 127 : 32639;
    bool finite = true;
    for (int64_t g = 0; g * group < n; g++) {
        int64_t k = g * group;
        const int64_t end = k + group < n ? k + group : n;
        float inv;
        finite =
            group_scale(largest_magnitude(x + k, end - k), (float)qmax, given, &scale[g], &inv) &&
            finite;
        for (; k + 16 <= end; k += 16)
            codes_16(x + k, inv, qmax, hi + k, lo != NULL ? lo + k : NULL);
        if (k < end) {
            const size_t left = (size_t)(end - k);
            float rest[16] = {0};
            int8_t high[16], low[16];
            memcpy(rest, x + k, left * sizeof *x);
            codes_16(rest, inv, qmax, high, lo != NULL ? low : NULL);
            memcpy(hi + k, high, left);
            if (lo != NULL)
                memcpy(lo + k, low, left);
        }
    }
    return finite;
}

static bool quantize_row(const float *x, int64_t n, int64_t group, int8_t *hi, int8_t *lo,
                         float *scale)
{
    return quantize(x, n, group, 0, hi, lo, scale);
}

/* Sum of n codes; reads up to the next multiple of 8. */
static uint32_t sum_of_codes(const int8_t *code, int64_t n)
{
    int32x2_t sum = vdup_n_s32(0);
    for (int64_t k = 0; k < n; k += 8)
        sum = vdot_s32(sum, vld1_s8(code + k), vdup_n_s8(1));
    return (uint32_t)vaddv_s32(sum);
}

static void put_scales_and_sums(const nb_xtile *tile, int64_t t, const int8_t *hi, const int8_t *lo,
                                const float *scale)
{
    const int64_t n = tile->n_cols, n_tok = tile->n_tok;
    for (int64_t s = 0; s * tile->x_seg_len < n; s++)
        tile->scale[s * n_tok + t] = scale[s];
    for (int64_t s = 0; s * tile->seg_len < n; s++) {
        const int64_t k = s * tile->seg_len, left = n - k;
        const int64_t len = left < tile->seg_len ? left : tile->seg_len;
        uint32_t sum = sum_of_codes(hi + k, len);
        if (lo != NULL)
            sum = 256 * sum + sum_of_codes(lo + k, len);
        tile->xsum[s * n_tok + t] = (int32_t)sum;
        if (tile->start != NULL)
            tile->start[s * n_tok + t] = (int32_t)(0u - (uint32_t)tile->zero_const * sum);
    }
}

/* Token t's codes into a plane; `code` is zero past n_cols, up to the plane's length. */
static void put_plane(const nb_xtile *tile, int8_t *plane, int64_t t, const int8_t *code)
{
    if (tile->rows) {
        memcpy(plane + t * tile->row_stride, code, (size_t)tile->row_stride);
        return;
    }
    for (int64_t k = 0; k < tile->k_pad; k += 4)
        memcpy(plane + k * tile->n_tok + 4 * t, code + k, 4);
}

static bool pack_row_i(const nb_xtile *tile, int64_t t, const float *x, int8_t *staging)
{
    const int64_t n = tile->n_cols, width = (n + 63) / 64 * 64;
    int8_t *hi = staging, *lo = tile->lo != NULL ? hi + width : NULL;
    float *scale = (float *)(void *)(staging + 2 * width);
    memset(hi + n, 0, (size_t)(width - n));
    if (lo != NULL)
        memset(lo + n, 0, (size_t)(width - n));
    const bool finite = quantize(x, n, tile->x_seg_len, tile->given, hi, lo, scale);
    put_plane(tile, tile->hi, t, hi);
    if (lo != NULL)
        put_plane(tile, tile->lo, t, lo);
    put_scales_and_sums(tile, t, hi, lo, scale);
    return finite;
}

/* Tokens [t, t + 4), by transposing 4 of their columns at a time. */
static void pack_four_f(const nb_xtile *tile, int64_t t, const float *x, int64_t ld)
{
    const int64_t n_tok = tile->n_tok;
    float *out = tile->f + t;
    int64_t k = 0;
    for (; k + 4 <= tile->n_cols; k += 4) {
        const float32x4_t a = vld1q_f32(x + k), b = vld1q_f32(x + ld + k);
        const float32x4_t c = vld1q_f32(x + 2 * ld + k), d = vld1q_f32(x + 3 * ld + k);
        const float64x2_t ab01 = vreinterpretq_f64_f32(vzip1q_f32(a, b));
        const float64x2_t ab23 = vreinterpretq_f64_f32(vzip2q_f32(a, b));
        const float64x2_t cd01 = vreinterpretq_f64_f32(vzip1q_f32(c, d));
        const float64x2_t cd23 = vreinterpretq_f64_f32(vzip2q_f32(c, d));
        vst1q_f32(out + k * n_tok, vreinterpretq_f32_f64(vzip1q_f64(ab01, cd01)));
        vst1q_f32(out + (k + 1) * n_tok, vreinterpretq_f32_f64(vzip2q_f64(ab01, cd01)));
        vst1q_f32(out + (k + 2) * n_tok, vreinterpretq_f32_f64(vzip1q_f64(ab23, cd23)));
        vst1q_f32(out + (k + 3) * n_tok, vreinterpretq_f32_f64(vzip2q_f64(ab23, cd23)));
    }
    for (; k < tile->n_cols; k++)
        for (int64_t i = 0; i < 4; i++)
            out[k * n_tok + i] = x[i * ld + k];
}

static bool pack_tile(const nb_xtile *tile, const float *x, int64_t ld, void *staging)
{
    int64_t t = 0;
    if (tile->f != NULL) {
        for (; t + 4 <= tile->n_tok; t += 4)
            pack_four_f(tile, t, x + t * ld, ld);
        for (; t < tile->n_tok; t++)
            for (int64_t k = 0; k < tile->n_cols; k++)
                tile->f[k * tile->n_tok + t] = x[t * ld + k];
        return true;
    }
    bool finite = true;
    for (; t < tile->n_tok; t++)
        finite = pack_row_i(tile, t, x + t * ld, staging) && finite;
    return finite;
}

void nb_kernels_neon_pack(nb_kernels *k)
{
    k->quantize_row = quantize_row;
    k->pack_tile = pack_tile;
}
