/* Private: stores into the cache (A8) over v16, 16 lanes of binary32.
 *
 * Values lie as they come; a key is spread over its page, a cell or four bytes per cache line or
 * so, which no instruction helps with. What the vectors are for is the rounding. */
#ifndef NB_KERNEL_ATTN_STORE_H
#define NB_KERNEL_ATTN_STORE_H

#include "kernel/kernel.h"
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
