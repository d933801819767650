/* The definition of the paged cache (A8): one cell at a time. Scalar, never optimised. */
#include "kernel/ref_kv.h"

#include "numeric/minifloat.h"

#include <assert.h>
#include <math.h>

/* The part of p's page that holds the keys (offset k_offset) or values (v_offset) of a head. */
static uint8_t *page_of(const nb_kv_view *kv, size_t offset, int head, int64_t p)
{
    return kv->arena + (size_t)kv->table[p / NB_KV_PAGE] * kv->page_bytes + offset +
           (size_t)head * kv->head_bytes;
}

/* Index, in cells, of key (d, p) and value (p, d) from the start of a head's part of a page. */
static int64_t key_cell(const nb_kv_view *kv, int64_t d, int64_t p)
{
    const int64_t in_page = p % NB_KV_PAGE;
    if (kv->format != NB_KV_INT8)
        return d * NB_KV_PAGE + in_page;
    const int64_t n_groups = (kv->head_dim + 3) / 4;
    return ((in_page / 16 * n_groups + d / 4) * 16 + in_page % 16) * 4 + d % 4;
}

static int64_t value_cell(const nb_kv_view *kv, int64_t d, int64_t p)
{
    const int64_t stride =
        kv->format == NB_KV_FP8 ? (kv->head_dim + 15) / 16 * 16 : (int64_t)kv->head_dim;
    return p % NB_KV_PAGE * stride + d;
}

static uint16_t *scale_cell(const nb_kv_view *kv, uint8_t *page, int64_t p)
{
    const size_t at = nb_kv_scales_at(kv->format, kv->head_dim);
    return (uint16_t *)(void *)(page + at) + p % NB_KV_PAGE;
}

static nb_float_type float_type(nb_kv_format format)
{
    return format == NB_KV_F32 ? NB_F32 : format == NB_KV_BF16 ? NB_BF16 : NB_F16;
}

/* ---- stores ---- */

/* The largest |x|; NaN or infinity if one is. */
static float largest(const float *x, int64_t n)
{
    uint32_t top = 0;
    for (int64_t d = 0; d < n; d++) {
        const uint32_t bits = nb_f32_bits(x[d]) & 0x7fffffffu;
        top = bits > top ? bits : top;
    }
    return nb_f32_from_bits(top);
}

/* The scale under which the largest is `top`; `given` instead, unless NULL. */
static uint16_t scale_of(const float *x, int64_t n, float top, const uint16_t *given)
{
    const float absmax = largest(x, n), exact = absmax / top;
    if (!isfinite(absmax))
        return 0x7e00;
    return given != NULL ? *given : nb_f16_from_f32(exact < 65504.0f ? exact : 65504.0f);
}

/* x by its scale; 0 where there is none. */
static float scaled(float x, uint16_t scale)
{
    const float s = nb_f16_to_f32(scale);
    return isnan(s) || s == 0 ? 0 : x * (1.0f / s);
}

static int int8_code(float x, uint16_t scale)
{
    const float q = rintf(scaled(x, scale));
    return (int)(q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q);
}

static void store_int8(const nb_kv_view *kv, uint8_t *keys, uint8_t *values, int64_t pos,
                       const float *k, const float *v)
{
    const int64_t n = kv->head_dim;
    const uint16_t k_scale = scale_of(k, n, 127.0f, NULL), v_scale = scale_of(v, n, 127.0f, NULL);
    *scale_cell(kv, keys, pos) = k_scale;
    *scale_cell(kv, values, pos) = v_scale;
    for (int64_t d = 0; d < (n + 3) / 4 * 4; d++) /* with padding */
        keys[key_cell(kv, d, pos)] = (uint8_t)((d < n ? int8_code(k[d], k_scale) : 0) + 128);
    for (int64_t d = 0; d < n; d++)
        values[value_cell(kv, d, pos)] = (uint8_t)int8_code(v[d], v_scale);
}

static void store_fp8(const nb_kv_view *kv, int head, uint8_t *keys, uint8_t *values, int64_t pos,
                      const float *k, const float *v)
{
    const int64_t n = kv->head_dim;
    const uint16_t *given_k = kv->k_scales != NULL ? kv->k_scales + head : NULL;
    const uint16_t *given_v = kv->v_scales != NULL ? kv->v_scales + head : NULL;
    const uint16_t k_scale = scale_of(k, n, 448.0f, given_k);
    const uint16_t v_scale = scale_of(v, n, 448.0f, given_v);
    *scale_cell(kv, keys, pos) = k_scale;
    *scale_cell(kv, values, pos) = v_scale;
    for (int64_t d = 0; d < n; d++)
        keys[key_cell(kv, d, pos)] = nb_e4m3_from_f32(scaled(k[d], k_scale));
    for (int64_t d = 0; d < (n + 15) / 16 * 16; d++) /* with padding */
        values[value_cell(kv, d, pos)] = d < n ? nb_e4m3_from_f32(scaled(v[d], v_scale)) : 0;
}

static void store_floats(const nb_kv_view *kv, uint8_t *keys, uint8_t *values, int64_t pos,
                         const float *k, const float *v)
{
    const nb_float_type type = float_type(kv->format);
    for (int64_t d = 0; d < kv->head_dim; d++) {
        nb_float_put(keys, type, key_cell(kv, d, pos), k[d]);
        nb_float_put(values, type, value_cell(kv, d, pos), v[d]);
    }
}

static void kv_store_ref(const nb_kv_view *kv, int64_t pos, int first, int n_heads, const float *k,
                         const float *v)
{
    assert(kv->head_dim <= NB_ATTN_MAX_DIM);
    for (int head = first; head < first + n_heads; head++, k += kv->head_dim, v += kv->head_dim) {
        uint8_t *keys = page_of(kv, kv->k_offset, head, pos);
        uint8_t *values = page_of(kv, kv->v_offset, head, pos);
        if (kv->format == NB_KV_INT8)
            store_int8(kv, keys, values, pos, k, v);
        else if (kv->format == NB_KV_FP8)
            store_fp8(kv, head, keys, values, pos, k, v);
        else
            store_floats(kv, keys, values, pos, k, v);
    }
}

/* ---- what cells hold ---- */

int nb_ref_key_code(const nb_kv_view *kv, int head, int64_t p, int64_t d)
{
    return page_of(kv, kv->k_offset, head, p)[key_cell(kv, d, p)] - 128;
}

float nb_ref_key_scale(const nb_kv_view *kv, int head, int64_t p)
{
    return nb_f16_to_f32(*scale_cell(kv, page_of(kv, kv->k_offset, head, p), p));
}

float nb_ref_key(const nb_kv_view *kv, int head, int64_t p, int64_t d)
{
    const uint8_t *keys = page_of(kv, kv->k_offset, head, p);
    const int64_t cell = key_cell(kv, d, p);
    if (kv->format == NB_KV_INT8)
        return (float)(keys[cell] - 128) * nb_ref_key_scale(kv, head, p);
    if (kv->format == NB_KV_FP8)
        return nb_e4m3_to_f32(keys[cell]) * nb_ref_key_scale(kv, head, p);
    return nb_float_get(keys, float_type(kv->format), cell);
}

float nb_ref_value(const nb_kv_view *kv, int head, int64_t p, int64_t d)
{
    uint8_t *values = page_of(kv, kv->v_offset, head, p);
    const int64_t cell = value_cell(kv, d, p);
    if (kv->format == NB_KV_INT8)
        return (float)(int8_t)values[cell] * nb_f16_to_f32(*scale_cell(kv, values, p));
    if (kv->format == NB_KV_FP8)
        return nb_e4m3_to_f32(values[cell]) * nb_f16_to_f32(*scale_cell(kv, values, p));
    return nb_float_get(values, float_type(kv->format), cell);
}

void nb_kernels_ref_kv(nb_kernels *k)
{
    k->kv_store = kv_store_ref;
}
