/* Private: widening of packed cells (cells.h: int4 and int2), two or four codes to a byte, each by
 * fma(|scale|, code, minimum). Of keys a vector is 16 positions of a dimension, of values 16
 * dimensions of a position; 16 bytes hold the codes of 2 or 4 such vectors, which differ by a
 * shift. Padding makes every vector whole. */
#ifndef NB_KERNEL_ATTN_PACKED_H
#define NB_KERNEL_ATTN_PACKED_H

#include "kernel/attn_tile.h"

V16_INLINE void widen_packed_keys_as(float *out, const uint8_t *page, const uint16_t *scales,
                                     int64_t n_scales, int64_t d0, int64_t n, int bits)
{
    const int per_byte = 8 / bits;
    for (int64_t d = d0; d < d0 + n; d += LANES) {
        float scale[LANES], least[LANES];
        v16_store(scale, v16_load_f16(scales + d));
        v16_store(least, v16_load_f16(scales + n_scales + d));
        for (int v = 0; v < WIDE; v += LANES) {
            for (int i = 0; i < LANES; i += per_byte) {
                const uint8_t *codes = page + (d + i) / per_byte * NB_KV_PAGE + v;
                float *to = out + (d - d0 + i) * WIDE + v;
                V16_UNROLL
                for (int j = 0; j < per_byte; j++)
                    v16_store(to + j * WIDE,
                              v16_fma(v16_set1(scale[i + j]), v16_load_bits(codes, bits, j),
                                      v16_set1(least[i + j])));
            }
        }
    }
}

/* Dimension d again, whose codes have 4 bits: it is the r-th of that kind, the upper bits of which
 * are at `upper`. */
V16_INLINE void widen_wide_key(float *out, const uint8_t *page, const uint8_t *upper, int64_t d,
                               int64_t r, uint16_t scale, uint16_t least)
{
    const v16 s = v16_set1(nb_f16_to_f32(scale & 0x7fff)), m = v16_set1(nb_f16_to_f32(least));
    const uint8_t *low = page + d / 4 * NB_KV_PAGE, *high = upper + r / 4 * NB_KV_PAGE;
    for (int v = 0; v < WIDE; v += LANES) {
        const v16 code = v16_fma(v16_set1(4), v16_load_bits(high + v, 2, (int)(r % 4)),
                                 v16_load_bits(low + v, 2, (int)(d % 4)));
        v16_store(out + v, v16_fma(s, code, m));
    }
}

static void widen_wide_keys(float *out, const uint8_t *page, const uint8_t *upper,
                            const uint16_t *scales, int64_t n_scales, int64_t d0, int64_t n)
{
    int64_t r = 0;
    for (int64_t d = 0; d < d0; d++)
        r += nb_kv_is_wide(scales[d]);
    for (int64_t d = d0; d < d0 + n; d++)
        if (nb_kv_is_wide(scales[d]))
            widen_wide_key(out + (d - d0) * WIDE, page, upper, d, r++, scales[d],
                           scales[n_scales + d]);
}

/* out[d][32] = dimensions [d0, d0 + n) of a page's keys, and what is left of 16 more. `values` are
 * those of the page. */
static void widen_packed_keys(float *out, const uint8_t *page, const uint8_t *values,
                              const nb_kv_view *kv, int64_t d0, int64_t n)
{
    const size_t at = nb_kv_scales_at(kv->format, kv->head_dim);
    const uint16_t *scales = (const uint16_t *)(const void *)(page + at);
    const int64_t n_scales = (int64_t)nb_kv_n_scales(kv->format, kv->head_dim);
    if (nb_kv_bits(kv->format) == 4) {
        widen_packed_keys_as(out, page, scales, n_scales, d0, n, 4);
        return;
    }
    widen_packed_keys_as(out, page, scales, n_scales, d0, n, 2);
    widen_wide_keys(out, page, values + nb_kv_wide_at(kv->format, kv->head_dim), scales, n_scales,
                    d0, n);
}

V16_INLINE void widen_packed_values_as(float *out, const uint8_t *page, const uint16_t *scales,
                                       int64_t padded, int64_t begin, int64_t end, int64_t d0,
                                       int bits, int group)
{
    float scale[NB_KV_PAGE], least[NB_KV_PAGE];
    const int64_t n_scales = padded / group * NB_KV_PAGE;
    scales += d0 / group * NB_KV_PAGE;
    for (int i = 0; i < NB_KV_PAGE; i += LANES) {
        v16_store(scale + i, v16_load_f16(scales + i));
        v16_store(least + i, v16_load_f16(scales + n_scales + i));
    }
    const int64_t row_bytes = padded * bits / 8, per_byte = 8 / bits;
    const uint8_t *row = page + d0 / LANES / per_byte * LANES;
    const int first = (int)(d0 / LANES % per_byte);
    for (int64_t c = begin; c < end; c++, out += WIDE) {
        const uint8_t *codes = row + c * row_bytes;
        const v16 s = v16_set1(scale[c]), m = v16_set1(least[c]);
        v16_store(out, v16_fma(s, v16_load_bits(codes, bits, first), m));
        v16_store(out + LANES, v16_fma(s, v16_load_bits(codes, bits, first + 1), m));
    }
}

/* out[c - begin][32] = dimensions [d0, d0 + 32) of the values of positions [begin, end) of a page;
 * d0 is a multiple of 32. */
static void widen_packed_values(float *out, const uint8_t *page, const nb_kv_view *kv,
                                int64_t begin, int64_t end, int64_t d0)
{
    const size_t at = nb_kv_scales_at(kv->format, kv->head_dim);
    const uint16_t *scales = (const uint16_t *)(const void *)(page + at);
    const int64_t padded = (int64_t)nb_kv_n_scales(kv->format, kv->head_dim);
    if (nb_kv_bits(kv->format) == 2)
        widen_packed_values_as(out, page, scales, padded, begin, end, d0, 2,
                               nb_kv_group(NB_KV_INT2));
    else
        widen_packed_values_as(out, page, scales, padded, begin, end, d0, 4,
                               nb_kv_group(NB_KV_INT4));
}

/* Whether the values of a position are finite: those of a group are where its scale is, and NaN has
 * no other sign. */
static bool packed_value_finite(const uint8_t *page, const nb_kv_view *kv, int64_t in_page)
{
    const size_t at = nb_kv_scales_at(kv->format, kv->head_dim);
    const uint16_t *scale = (const uint16_t *)(const void *)(page + at) + in_page;
    for (int64_t d = 0; d < kv->head_dim; d += nb_kv_group(kv->format), scale += NB_KV_PAGE)
        if ((*scale & 0x7c00) == 0x7c00)
            return false;
    return true;
}

#endif
