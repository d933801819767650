/* Private: stores into the cache (A8) over v16, 16 lanes of binary32.
 *
 * Values lie as they come; a key is spread over its page, a cell or four bytes per cache line or
 * so, which no instruction helps with. What the vectors are for is the rounding. */
#ifndef NB_KERNEL_ATTN_STORE_H
#define NB_KERNEL_ATTN_STORE_H

#include "kernel/hadamard.h"
#include "kernel/kernel.h"
#include "kernel/packed.h"
#include "numeric/minifloat.h"

#include <assert.h>

/* The largest |x|, by its bits: NaN, and not a number, if one is. */
V16_INLINE float largest(const float *x, int64_t n)
{
    v16 top = v16_zero();
    int64_t d = 0;
    for (; d + 16 <= n; d += 16)
        top = v16_max_bits(v16_load(x + d), top);
    if (d < n)
        top = v16_max_bits(v16_load_n(x + d, n - d), top);
    return nb_f32_from_bits(v16_top_bits(top));
}

/* clamp(x * inv, -qmax, qmax) of elements [d, d + 16) of n, and zeros past them. qmax is an
 * integer, so that the clamp may come before rounding. */
V16_INLINE v16 scaled(const float *x, int64_t d, int64_t n, float inv, float qmax)
{
    const v16 limit = v16_set1(-qmax), zero = v16_zero();
    const v16 q = v16_mul(d + 16 <= n ? v16_load(x + d) : v16_load_n(x + d, n - d), v16_set1(inv));
    return v16_sub(zero, v16_max(v16_sub(zero, v16_max(q, limit)), limit));
}

/* The scale under which the largest of a head is `top`, as stored; `given` instead, unless NULL. */
V16_INLINE uint16_t scale_of(const float *x, int64_t n, float top, const uint16_t *given)
{
    const float absmax = largest(x, n), exact = absmax / top;
    if (!(absmax < INFINITY))
        return 0x7e00;
    return given != NULL ? *given : nb_f16_from_f32(exact < 65504.0f ? exact : 65504.0f);
}

/* A head of the cache: the scale as stored, and the codes taken with it, then zeros to a multiple
 * of 16. */
V16_INLINE uint16_t quantize_head(int8_t *codes, const float *x, int64_t n)
{
    const uint16_t stored = scale_of(x, n, 127.0f, NULL);
    const bool bad = stored == 0x7e00;
    const float s = nb_f16_to_f32(stored);
    if (bad || s == 0) { /* then x may be anything */
        memset(codes, 0, (size_t)(n + 15) / 16 * 16);
        return stored;
    }
    const float inv = 1.0f / s;
    for (int64_t d = 0; d < n; d += 16)
        v16_store_i8(codes + d, scaled(x, d, n, inv, 127.0f));
    return stored;
}

static void store_int8(const nb_kv_view *kv, uint8_t *keys, uint8_t *values, int64_t in_page,
                       const float *k, const float *v)
{
    const int64_t head_dim = kv->head_dim, n_groups = (head_dim + 3) / 4;
    const size_t scale_at = nb_kv_scales_at(kv->format, kv->head_dim) + (size_t)in_page * 2;
    int8_t codes[NB_ATTN_MAX_DIM];
    const uint16_t k_scale = quantize_head(codes, k, head_dim);
    memcpy(keys + scale_at, &k_scale, sizeof k_scale);
    uint8_t *key = keys + (in_page / 16 * n_groups * 16 + in_page % 16) * 4;
    for (int64_t g = 0; g < n_groups; g++, key += 64) {
        uint32_t four;
        memcpy(&four, codes + 4 * g, sizeof four);
        four ^= 0x80808080u; /* code + 128 */
        memcpy(key, &four, sizeof four);
    }
    const uint16_t v_scale = quantize_head(codes, v, head_dim);
    memcpy(values + scale_at, &v_scale, sizeof v_scale);
    memcpy(values + in_page * head_dim, codes, (size_t)head_dim);
}

/* The scale as stored, and E4M3 codes taken with it, then zeros to a multiple of 16. */
V16_INLINE uint16_t quantize_fp8(uint8_t *codes, const float *x, int64_t n, const uint16_t *given)
{
    const uint16_t stored = scale_of(x, n, 448.0f, given);
    const float s = nb_f16_to_f32(stored);
    int64_t d = 0;
    memset(codes, 0, (size_t)(n + 15) / 16 * 16);
    if (!(s > 0)) /* none, or NaN: then x may be anything */
        return stored;
    const float inv = 1.0f / s;
    for (; d + 16 <= n; d += 16)
        for (int i = 0; i < 16; i++) /* a loop that compilers make vectors of */
            codes[d + i] = nb_e4m3_from_f32(x[d + i] * inv);
    for (; d < n; d++)
        codes[d] = nb_e4m3_from_f32(x[d] * inv);
    return stored;
}

static void store_fp8(const nb_kv_view *kv, int head, uint8_t *keys, uint8_t *values,
                      int64_t in_page, const float *k, const float *v)
{
    const int64_t head_dim = kv->head_dim, stride = (head_dim + 15) / 16 * 16;
    const size_t scale_at = nb_kv_scales_at(kv->format, kv->head_dim) + (size_t)in_page * 2;
    uint8_t codes[NB_ATTN_MAX_DIM];
    const uint16_t k_scale =
        quantize_fp8(codes, k, head_dim, kv->k_scales != NULL ? kv->k_scales + head : NULL);
    memcpy(keys + scale_at, &k_scale, sizeof k_scale);
    for (int64_t d = 0; d < head_dim; d++)
        keys[d * NB_KV_PAGE + in_page] = codes[d];
    const uint16_t v_scale =
        quantize_fp8(codes, v, head_dim, kv->v_scales != NULL ? kv->v_scales + head : NULL);
    memcpy(values + scale_at, &v_scale, sizeof v_scale);
    memcpy(values + in_page * stride, codes, (size_t)stride);
}

static void store_f32(float *keys, float *values, const float *k, const float *v, int64_t head_dim)
{
    memcpy(values, v, (size_t)head_dim * sizeof *v);
    for (int64_t d = 0; d < head_dim; d++)
        keys[d * NB_KV_PAGE] = k[d];
}

V16_INLINE void store_halves(uint16_t *keys, uint16_t *values, const float *k, const float *v,
                             int64_t head_dim, bool bf16)
{
    int64_t d = 0;
    for (; d + 16 <= head_dim; d += 16) {
        uint16_t key[16];
        if (bf16) { /* loops that compilers make vectors of */
            for (int i = 0; i < 16; i++)
                key[i] = nb_bf16_from_f32(k[d + i]);
            for (int i = 0; i < 16; i++)
                values[d + i] = nb_bf16_from_f32(v[d + i]);
        } else {
            v16_store_f16(key, v16_load(k + d));
            v16_store_f16(values + d, v16_load(v + d));
        }
        for (int i = 0; i < 16; i++)
            keys[(d + i) * NB_KV_PAGE] = key[i];
    }
    for (; d < head_dim; d++) {
        keys[d * NB_KV_PAGE] = bf16 ? nb_bf16_from_f32(k[d]) : nb_f16_from_f32(k[d]);
        values[d] = bf16 ? nb_bf16_from_f32(v[d]) : nb_f16_from_f32(v[d]);
    }
}

/* ---- packed codes ---- */

V16_INLINE void load_channel(float *x, const uint16_t *from, int64_t d)
{
    for (int i = 0; i < NB_KV_PAGE; i += 16)
        v16_store(x + i, v16_load_f16(from + d * NB_KV_PAGE + i));
}

/* Quantizes a page of F16 keys by channel; left[head_dim]: the squares of what each is off. */
V16_INLINE void seal_keys(const nb_kv_view *kv, uint8_t *keys, const uint16_t *from, float *left,
                          int bits)
{
    const int64_t n_scales = (int64_t)nb_kv_n_scales(kv->format, kv->head_dim), n = 8 / bits;
    const size_t codes_end = nb_kv_scales_at(kv->format, kv->head_dim);
    uint16_t *scale = (uint16_t *)(void *)(keys + codes_end);
    for (int64_t d = 0; d < n_scales; d += n, keys += NB_KV_PAGE) {
        nb_packed channel[4] = {{0}};
        for (int64_t j = 0; j < n; j++, scale++) {
            float x[NB_KV_PAGE];
            if (d + j < kv->head_dim) {
                load_channel(x, from, d + j);
                left[d + j] = nb_pack(&channel[j], x, NB_KV_PAGE, bits);
            }
            scale[0] = channel[j].scale;
            scale[n_scales] = channel[j].least;
        }
        for (int i = 0; i < NB_KV_PAGE; i++) {
            unsigned byte = 0;
            for (int j = 0; j < n; j++)
                byte |= (unsigned)channel[j].code[i] << (bits * j);
            keys[i] = (uint8_t)byte;
        }
    }
}

/* Two bits in a row of bytes, one for each position. */
static void put_two_bits(uint8_t *row, int64_t j, const uint8_t *code, int shift)
{
    for (int i = 0; i < NB_KV_PAGE; i++)
        row[i] = (uint8_t)((row[i] & ~(3 << 2 * j)) | (code[i] >> shift & 3) << 2 * j);
}

/* Quantizes those channels again that need it most, with 4 bits. */
static void widen_keys_again(const nb_kv_view *kv, uint8_t *keys, uint8_t *values,
                             const uint16_t *from, const float *left)
{
    const int64_t n_scales = (int64_t)nb_kv_n_scales(kv->format, kv->head_dim);
    const int64_t n_wide = (int64_t)nb_kv_n_wide(kv->format, kv->head_dim);
    uint16_t *scale = (uint16_t *)(void *)(keys + nb_kv_scales_at(kv->format, kv->head_dim));
    uint8_t *upper = values + nb_kv_wide_at(kv->format, kv->head_dim);
    bool wide[NB_ATTN_MAX_DIM];
    memset(upper, 0, (size_t)n_wide / 4 * NB_KV_PAGE);
    nb_pack_wide(wide, left, kv->head_dim, n_wide);
    for (int64_t d = 0, r = 0; d < kv->head_dim; d++) {
        if (!wide[d])
            continue;
        nb_packed channel;
        float x[NB_KV_PAGE];
        load_channel(x, from, d);
        nb_pack(&channel, x, NB_KV_PAGE, 4);
        scale[d] = channel.scale | 0x8000;
        scale[n_scales + d] = channel.least;
        put_two_bits(keys + d / 4 * NB_KV_PAGE, d % 4, channel.code, 0);
        put_two_bits(upper + r / 4 * NB_KV_PAGE, r % 4, channel.code, 2);
        r++;
    }
}

/* The same for values, by groups of dimensions of a position. */
V16_INLINE void seal_values(const nb_kv_view *kv, uint8_t *values, const uint16_t *from, int bits,
                            int size)
{
    const int64_t padded = (int64_t)nb_kv_n_scales(kv->format, kv->head_dim), n = 8 / bits;
    const int64_t head_dim = kv->head_dim, n_scales = padded / size * NB_KV_PAGE;
    uint8_t *row = values;
    uint16_t *scales = (uint16_t *)(void *)(values + nb_kv_scales_at(kv->format, kv->head_dim));
    for (int64_t p = 0; p < NB_KV_PAGE; p++, from += head_dim) {
        float x[NB_ATTN_MAX_DIM];
        nb_packed groups[NB_ATTN_MAX_DIM / NB_KV_PAGE];
        int64_t d = 0;
        for (; d + 16 <= head_dim; d += 16)
            v16_store(x + d, v16_load_f16(from + d));
        for (; d < head_dim; d++)
            x[d] = nb_f16_to_f32(from[d]);
        for (d = 0; d < padded; d += size) {
            nb_packed *group = &groups[d / size];
            const int64_t left = head_dim - d;
            *group = (nb_packed){0};
            if (left > 0)
                nb_pack(group, x + d, left < size ? left : size, bits);
            scales[d / size * NB_KV_PAGE + p] = group->scale;
            scales[n_scales + d / size * NB_KV_PAGE + p] = group->least;
        }
        for (d = 0; d < padded; d += 16 * n, row += 16) {
            for (int i = 0; i < 16; i++) {
                unsigned byte = 0;
                for (int j = 0; j < n; j++)
                    byte |= (unsigned)groups[(d + 16 * j) / size].code[(d + 16 * j + i) % size]
                            << (bits * j);
                row[i] = (uint8_t)byte;
            }
        }
    }
}

static void store_packed(const nb_kv_view *kv, int head, uint8_t *keys, uint8_t *values,
                         int64_t pos, const float *k, const float *v)
{
    const nb_kv_pages *r = &kv->recent;
    const int64_t in_page = pos % NB_KV_PAGE;
    uint8_t *page = r->arena + (size_t)r->table[pos / NB_KV_PAGE] * r->page_bytes +
                    (size_t)head * r->head_bytes;
    uint16_t *recent_keys = (uint16_t *)(void *)(page + r->k_offset);
    uint16_t *recent_values = (uint16_t *)(void *)(page + r->v_offset);
    float turned[NB_ATTN_MAX_DIM];
    if (nb_kv_rotates(kv->format, kv->head_dim)) {
        memcpy(turned, v, (size_t)kv->head_dim * sizeof *v);
        nb_hadamard(turned, kv->head_dim);
        v = turned;
    }
    store_halves(recent_keys + in_page, recent_values + in_page * kv->head_dim, k, v, kv->head_dim,
                 false);
    if (in_page < NB_KV_PAGE - 1)
        return;
    float left[NB_ATTN_MAX_DIM];
    if (nb_kv_bits(kv->format) == 2) {
        seal_keys(kv, keys, recent_keys, left, 2);
        widen_keys_again(kv, keys, values, recent_keys, left);
        seal_values(kv, values, recent_values, 2, nb_kv_group(NB_KV_INT2));
    } else {
        seal_keys(kv, keys, recent_keys, left, 4);
        seal_values(kv, values, recent_values, 4, nb_kv_group(NB_KV_INT4));
    }
}

static void kv_store_v16(const nb_kv_view *kv, int64_t pos, int first_head, int n_heads,
                         const float *k, const float *v)
{
    const int64_t head_dim = kv->head_dim, in_page = pos % NB_KV_PAGE, row = in_page * head_dim;
    assert(head_dim <= NB_ATTN_MAX_DIM);
    uint8_t *page = kv->arena + (size_t)kv->table[pos / NB_KV_PAGE] * kv->page_bytes;
    uint8_t *keys = page + kv->k_offset + (size_t)first_head * kv->head_bytes;
    uint8_t *values = page + kv->v_offset + (size_t)first_head * kv->head_bytes;
    for (int head = 0; head < n_heads; head++) {
        switch (kv->format) {
        case NB_KV_F32:
            store_f32((float *)(void *)keys + in_page, (float *)(void *)values + row, k, v,
                      head_dim);
            break;
        case NB_KV_F16:
            store_halves((uint16_t *)(void *)keys + in_page, (uint16_t *)(void *)values + row, k, v,
                         head_dim, false);
            break;
        case NB_KV_BF16:
            store_halves((uint16_t *)(void *)keys + in_page, (uint16_t *)(void *)values + row, k, v,
                         head_dim, true);
            break;
        case NB_KV_INT8:
            store_int8(kv, keys, values, in_page, k, v);
            break;
        case NB_KV_FP8:
            store_fp8(kv, first_head + head, keys, values, in_page, k, v);
            break;
        case NB_KV_INT4:
        case NB_KV_INT4_PLAIN:
        case NB_KV_INT2:
            store_packed(kv, first_head + head, keys, values, pos, k, v);
            break;
        case NB_KV_N_FORMATS:
            break;
        }
        keys += kv->head_bytes;
        values += kv->head_bytes;
        k += head_dim;
        v += head_dim;
    }
}

#endif
