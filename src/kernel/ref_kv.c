/* The definition of the paged cache (A8): one cell at a time. Scalar, never optimised. */
#include "kernel/ref_kv.h"

#include "kernel/hadamard.h"
#include "kernel/packed.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <string.h>

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

/* Byte and bit of the packed code of key (d, p) and of value (p, d). */
typedef struct {
    size_t byte;
    int bit;
} place;

static place packed_key(const nb_kv_view *kv, int64_t d, int64_t p)
{
    const int bits = nb_kv_bits(kv->format), n = 8 / bits;
    return (place){(size_t)(d / n * NB_KV_PAGE + p % NB_KV_PAGE), (int)(d % n) * bits};
}

static place packed_value(const nb_kv_view *kv, int64_t d, int64_t p)
{
    const int bits = nb_kv_bits(kv->format), n = 8 / bits;
    const size_t row_bytes = nb_kv_scales_at(kv->format, kv->head_dim) / NB_KV_PAGE;
    return (place){(size_t)(p % NB_KV_PAGE) * row_bytes + (size_t)(d / (16 * n) * 16 + d % 16),
                   (int)(d / 16 % n) * bits};
}

static int packed_code(const uint8_t *at, place where, int bits)
{
    return at[where.byte] >> where.bit & ((1 << bits) - 1);
}

static void put_packed(uint8_t *at, place where, int bits, int code)
{
    const int mask = (1 << bits) - 1;
    at[where.byte] =
        (uint8_t)((at[where.byte] & ~(mask << where.bit)) | (code & mask) << where.bit);
}

/* Where the upper bits of the r-th wide dimension are, from the page's values on. */
static place wide_key(const nb_kv_view *kv, int64_t r, int64_t p)
{
    place at = packed_key(kv, r, p);
    at.byte += nb_kv_wide_at(kv->format, kv->head_dim);
    return at;
}

/* Of a packed number: its scale; its minimum comes n_scales later. */
static uint16_t *packed_scale(const nb_kv_view *kv, uint8_t *at, bool key, int64_t d, int64_t p)
{
    uint16_t *scales = (uint16_t *)(void *)(at + nb_kv_scales_at(kv->format, kv->head_dim));
    return key ? scales + d : scales + d / nb_kv_group(kv->format) * NB_KV_PAGE + p % NB_KV_PAGE;
}

static size_t n_scales_of(const nb_kv_view *kv, bool key)
{
    return key ? nb_kv_n_scales(kv->format, kv->head_dim)
               : nb_kv_n_value_scales(kv->format, kv->head_dim);
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

/* A head's values at one position, by groups of dimensions. */
static void seal_values(const nb_kv_view *kv, uint8_t *at, int64_t p, const float *x)
{
    const int bits = nb_kv_bits(kv->format), size = nb_kv_group(kv->format);
    const int64_t padded = (int64_t)nb_kv_n_scales(kv->format, kv->head_dim);
    for (int64_t d = 0; d < padded; d += size) {
        nb_packed group = {0};
        uint16_t *scale = packed_scale(kv, at, false, d, p);
        const int64_t left = kv->head_dim - d;
        if (left > 0)
            nb_pack(&group, x + d, left < size ? left : size, bits);
        scale[0] = group.scale;
        scale[n_scales_of(kv, false)] = group.least;
        for (int64_t i = 0; i < size; i++)
            put_packed(at, packed_value(kv, d + i, p), bits, group.code[i]);
    }
}

/* Dimension d of a head's keys at the positions of a page. */
static void put_channel(const nb_kv_view *kv, uint8_t *at, int64_t d, const nb_packed *channel)
{
    const int bits = nb_kv_bits(kv->format);
    uint16_t *scale = packed_scale(kv, at, true, d, 0);
    scale[0] = channel->scale;
    scale[n_scales_of(kv, true)] = channel->least;
    for (int64_t p = 0; p < NB_KV_PAGE; p++)
        put_packed(at, packed_key(kv, d, p), bits, channel->code[p]);
}

/* The keys of a page, from F16 cells; with `values` for the upper bits of wide ones. */
static void seal_keys(const nb_kv_view *kv, uint8_t *keys, uint8_t *values, const uint8_t *from)
{
    const int64_t n = (int64_t)nb_kv_n_scales(kv->format, kv->head_dim), head_dim = kv->head_dim;
    float x[NB_ATTN_MAX_DIM][NB_KV_PAGE], left[NB_ATTN_MAX_DIM];
    bool wide[NB_ATTN_MAX_DIM];
    for (int64_t d = 0; d < n; d++) { /* with padding */
        nb_packed channel = {0};
        for (int64_t i = 0; i < NB_KV_PAGE && d < head_dim; i++)
            x[d][i] = nb_float_get(from, NB_F16, d * NB_KV_PAGE + i);
        if (d < head_dim)
            left[d] = nb_pack(&channel, x[d], NB_KV_PAGE, nb_kv_bits(kv->format));
        put_channel(kv, keys, d, &channel);
    }
    const int64_t n_wide = (int64_t)nb_kv_n_wide(kv->format, kv->head_dim);
    for (int64_t r = 0; r < n_wide; r++)
        for (int64_t p = 0; p < NB_KV_PAGE; p++)
            put_packed(values, wide_key(kv, r, p), 2, 0);
    nb_pack_wide(wide, left, head_dim, n_wide);
    for (int64_t d = 0, r = 0; d < head_dim; d++) {
        if (!wide[d])
            continue;
        nb_packed channel;
        nb_pack(&channel, x[d], NB_KV_PAGE, 4);
        channel.scale |= 0x8000;
        put_channel(kv, keys, d, &channel);
        for (int64_t p = 0; p < NB_KV_PAGE; p++)
            put_packed(values, wide_key(kv, r, p), 2, channel.code[p] >> 2);
        r++;
    }
}

/* The page of `recent` that holds position p. */
static uint8_t *recent_of(const nb_kv_view *kv, size_t offset, int head, int64_t p)
{
    const nb_kv_pages *r = &kv->recent;
    return r->arena + (size_t)r->table[p / NB_KV_PAGE] * r->page_bytes + offset +
           (size_t)head * r->head_bytes;
}

/* Quantizes the page whose last position is `pos`: keys by channel, values by position. */
static void seal(const nb_kv_view *kv, int head, uint8_t *keys, uint8_t *values, int64_t pos)
{
    const uint8_t *v = recent_of(kv, kv->recent.v_offset, head, pos);
    seal_keys(kv, keys, values, recent_of(kv, kv->recent.k_offset, head, pos));
    for (int64_t i = 0; i < NB_KV_PAGE; i++) {
        float x[NB_ATTN_MAX_DIM];
        for (int64_t d = 0; d < kv->head_dim; d++)
            x[d] = nb_float_get(v, NB_F16, i * kv->head_dim + d);
        seal_values(kv, values, i, x);
    }
}

static void store_packed(const nb_kv_view *kv, int head, uint8_t *keys, uint8_t *values,
                         int64_t pos, const float *k, const float *v)
{
    uint8_t *recent_keys = recent_of(kv, kv->recent.k_offset, head, pos);
    uint8_t *recent_values = recent_of(kv, kv->recent.v_offset, head, pos);
    const int64_t at = pos % NB_KV_PAGE;
    float x[NB_ATTN_MAX_DIM];
    memcpy(x, v, (size_t)kv->head_dim * sizeof *x);
    if (nb_kv_rotates(kv->format, kv->head_dim))
        nb_hadamard(x, kv->head_dim);
    for (int64_t d = 0; d < kv->head_dim; d++) {
        nb_float_put(recent_keys, NB_F16, d * NB_KV_PAGE + at, k[d]);
        nb_float_put(recent_values, NB_F16, at * kv->head_dim + d, x[d]);
    }
    if (at == NB_KV_PAGE - 1)
        seal(kv, head, keys, values, pos);
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
        else if (nb_kv_bits(kv->format) > 0)
            store_packed(kv, head, keys, values, pos, k, v);
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

/* What a packed cell holds. */
static float packed(const nb_kv_view *kv, bool key, int head, int64_t p, int64_t d)
{
    uint8_t *at = page_of(kv, key ? kv->k_offset : kv->v_offset, head, p);
    const uint16_t *scale = packed_scale(kv, at, key, d, p);
    const float least = nb_f16_to_f32(scale[n_scales_of(kv, key)]);
    int code = packed_code(at, key ? packed_key(kv, d, p) : packed_value(kv, d, p),
                           nb_kv_bits(kv->format));
    if (key && nb_kv_is_wide(*scale)) {
        int64_t r = 0;
        for (int64_t i = 0; i < d; i++)
            r += nb_kv_is_wide(*packed_scale(kv, at, true, i, p));
        code |= packed_code(page_of(kv, kv->v_offset, head, p), wide_key(kv, r, p), 2) << 2;
    }
    return fmaf(fabsf(nb_f16_to_f32(*scale)), (float)code, least);
}

/* Of what has not been sealed for a query. */
static float recent(const nb_kv_view *kv, bool key, int head, int64_t p, int64_t d)
{
    const uint8_t *at = recent_of(kv, key ? kv->recent.k_offset : kv->recent.v_offset, head, p);
    const int64_t i = p % NB_KV_PAGE;
    return nb_float_get(at, NB_F16, key ? d * NB_KV_PAGE + i : i * kv->head_dim + d);
}

float nb_ref_key(const nb_kv_view *kv, int head, int64_t n_sealed, int64_t p, int64_t d)
{
    if (nb_kv_bits(kv->format) > 0)
        return nb_kv_sees_sealed(n_sealed, p / NB_KV_PAGE) ? packed(kv, true, head, p, d)
                                                           : recent(kv, true, head, p, d);
    const uint8_t *keys = page_of(kv, kv->k_offset, head, p);
    const int64_t cell = key_cell(kv, d, p);
    if (kv->format == NB_KV_INT8)
        return (float)(keys[cell] - 128) * nb_ref_key_scale(kv, head, p);
    if (kv->format == NB_KV_FP8)
        return nb_e4m3_to_f32(keys[cell]) * nb_ref_key_scale(kv, head, p);
    return nb_float_get(keys, float_type(kv->format), cell);
}

float nb_ref_value(const nb_kv_view *kv, int head, int64_t n_sealed, int64_t p, int64_t d)
{
    if (nb_kv_bits(kv->format) > 0)
        return nb_kv_sees_sealed(n_sealed, p / NB_KV_PAGE) ? packed(kv, false, head, p, d)
                                                           : recent(kv, false, head, p, d);
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
