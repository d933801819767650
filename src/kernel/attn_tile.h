/* Private: the register tiles of attention over v16, 16 lanes of binary32, and the widening of
 * cells that feeds them. The header that says what a v16 is comes before it.
 *
 *   scores   lanes are positions: per dimension, a few vectors of keys are loaded and one
 *            broadcast per row, for rows x vectors fused multiply-adds
 *   values   lanes are dimensions: per position the same, with the weights e broadcast
 *
 * Conversions take slots of the FMA units or cost as much as three FMAs. So where many rows share
 * the cells, a page of keys or a cut of values is widened to binary32 once, into 16 kB that stay in
 * the nearest cache, and every tile of rows reads it there; a few rows (decode) widen the cells as
 * they load them from the cache of the sequence, which is then read once. */
#ifndef NB_KERNEL_ATTN_TILE_H
#define NB_KERNEL_ATTN_TILE_H

#include "kernel/attn_scratch.h"
#include "numeric/minifloat.h"

#include <assert.h>

enum {
    LANES = 16,
    PAGES = NB_KV_SPLIT / NB_KV_PAGE,
    STRIDE = NB_ATTN_SCORE_STRIDE,
    Q_STRIDE = NB_ATTN_Q_STRIDE,
    WIDE = 32, /* columns of widened cells: positions of a page, or dimensions */
    MAX_VECS = 8,
};
static_assert(NB_CHUNK_K % NB_KV_PAGE == 0 && NB_KV_PAGE == WIDE, "cuts fall between pages");

/* Codes, of which a number of binary32 times their scale is the value: load_scales has it. */
V16_INLINE bool has_scales(nb_kv_format format)
{
    return format == NB_KV_INT8 || format == NB_KV_FP8;
}

V16_INLINE size_t cell_bytes(nb_kv_format format)
{
    return format == NB_KV_F32 ? 4 : has_scales(format) ? 1 : 2;
}

/* From one position's values to the next. */
V16_INLINE int64_t value_stride(int64_t head_dim, nb_kv_format format)
{
    return format == NB_KV_FP8 ? (head_dim + LANES - 1) / LANES * LANES : head_dim;
}

V16_INLINE v16 load_cells(const uint8_t *cells, int64_t i, nb_kv_format format)
{
    switch (format) {
    case NB_KV_F16:
        return v16_load_f16((const uint16_t *)(const void *)cells + i);
    case NB_KV_BF16:
        return v16_load_bf16((const uint16_t *)(const void *)cells + i);
    case NB_KV_INT8:
        return v16_load_i8((const int8_t *)cells + i);
    case NB_KV_FP8:
        return v16_load_e4m3(cells + i);
    default:
        break;
    }
    return v16_load((const float *)(const void *)cells + i);
}

/* Asks for the n bytes at p, part of a page that will be read soon: pages of a sequence lie far
 * apart, and no processor guesses which is next. Into the second cache, because that has more
 * misses in flight than the first: 20 GB/s where the first gets 13. */
V16_INLINE void ask_for(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i += 64)
        __builtin_prefetch(p + i, 0, 2);
}

/* One chunk of A2 over n dimensions, for the 16 positions whose cells of its first dimension start
 * at keys[v]: s[r][16 v ...] gets its sum, or has it added unless `first`. scales are those of the
 * positions, where cells have some. Asks for the same cells of the pages at ahead[v], unless NULL,
 * where a pair of vectors is a page. */
V16_INLINE void score_tile(float *s, const float *q, const uint8_t *const *keys,
                           const uint8_t *const *ahead, const float *scales, int64_t n, bool first,
                           int rows, int vecs, nb_kv_format format)
{
    v16 sum[V16_TILE_ROWS][MAX_VECS];
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int v = 0; v < vecs; v++)
            sum[r][v] = v16_zero();
    }
    for (int64_t d = 0; d < n; d++) {
        v16 key[MAX_VECS];
        V16_UNROLL
        for (int v = 0; v < vecs; v++)
            key[v] = has_scales(format) ? v16_mul(load_cells(keys[v], d * NB_KV_PAGE, format),
                                                  v16_load(scales + v * LANES))
                                        : load_cells(keys[v], d * NB_KV_PAGE, format);
        V16_UNROLL
        for (int v = 0; v < vecs && ahead != NULL; v += 2)
            ask_for(ahead[v] + (size_t)d * NB_KV_PAGE * cell_bytes(format),
                    NB_KV_PAGE * cell_bytes(format));
        V16_UNROLL
        for (int r = 0; r < rows; r++) {
            const v16 one = v16_set1(q[r * Q_STRIDE + d]);
            V16_UNROLL
            for (int v = 0; v < vecs; v++)
                sum[r][v] = v16_fma(one, key[v], sum[r][v]);
        }
    }
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int v = 0; v < vecs; v++) {
            float *at = s + r * STRIDE + v * LANES;
            v16_store(at, v16_add(first ? v16_zero() : v16_load(at), sum[r][v]));
        }
    }
}

/* One cut of A2 over the cells [begin, end) of the split, in which row r weighs cell c with
 * e[r][c]; o[r][16 v ...] gets its sum, or has it added unless `first`. pages[i] + offset is where
 * the cells of page i have this tile's first dimension, `stride` cells from one position to the
 * next; scales are those of the split's cells, where they have some. Asks for the same cells of the
 * pages ahead[i], unless NULL. */
V16_INLINE void value_tile(float *o, int64_t o_stride, bool first, const float *e,
                           const uint8_t *const *pages, const uint8_t *const *ahead, size_t offset,
                           const float *scales, int64_t begin, int64_t end, int64_t stride,
                           int rows, int vecs, nb_kv_format format)
{
    v16 sum[V16_TILE_ROWS][MAX_VECS];
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int v = 0; v < vecs; v++)
            sum[r][v] = v16_zero();
    }
    for (int64_t c = begin; c < end;) {
        const uint8_t *values = pages[c / NB_KV_PAGE] + offset;
        const uint8_t *asked = ahead != NULL ? ahead[c / NB_KV_PAGE] + offset : NULL;
        const int64_t stop = (c / NB_KV_PAGE + 1) * NB_KV_PAGE;
        for (; c < end && c < stop; c++) {
            if (ahead != NULL)
                ask_for(asked + (size_t)(c % NB_KV_PAGE * stride) * cell_bytes(format),
                        (size_t)(vecs * LANES) * cell_bytes(format));
            v16 value[MAX_VECS];
            V16_UNROLL
            for (int v = 0; v < vecs; v++) {
                value[v] = load_cells(values, c % NB_KV_PAGE * stride + v * LANES, format);
                if (has_scales(format))
                    value[v] = v16_mul(value[v], v16_set1(scales[c]));
            }
            V16_UNROLL
            for (int r = 0; r < rows; r++) {
                const v16 one = v16_set1(e[r * STRIDE + c]);
                V16_UNROLL
                for (int v = 0; v < vecs; v++)
                    sum[r][v] = v16_fma(one, value[v], sum[r][v]);
            }
        }
    }
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int v = 0; v < vecs; v++) {
            float *at = o + r * o_stride + v * LANES;
            v16_store(at, v16_add(first ? v16_zero() : v16_load(at), sum[r][v]));
        }
    }
}

/* ---- tiles of widened cells ---- */

/* A page of keys [n][32]. */
typedef void wide_score_fn(float *s, const float *q, const float *keys, int64_t n, bool first);
/* n_vecs (1 or 2) vectors of values: pages[i] is [32][32]. */
typedef void wide_value_fn(float *o, int64_t o_stride, bool first, const float *e,
                           const uint8_t *const *pages, int64_t begin, int64_t end, int n_vecs);

#define TILE(rows)                                                                                 \
    static void wide_score_##rows(float *s, const float *q, const float *keys, int64_t n,          \
                                  bool first)                                                      \
    {                                                                                              \
        for (int v = 0; v < 2; v += V16_TILE_VECS) {                                               \
            const uint8_t *const at[2] = {(const uint8_t *)(keys + v * LANES),                     \
                                          (const uint8_t *)(keys + LANES)};                        \
            score_tile(s + v * LANES, q, at, NULL, NULL, n, first, rows, V16_TILE_VECS,            \
                       NB_KV_F32);                                                                 \
        }                                                                                          \
    }                                                                                              \
    static void wide_value_##rows(float *o, int64_t o_stride, bool first, const float *e,          \
                                  const uint8_t *const *pages, int64_t begin, int64_t end,         \
                                  int n_vecs)                                                      \
    {                                                                                              \
        const size_t vec_bytes = LANES * sizeof(float);                                            \
        int v = 0;                                                                                 \
        for (; v + V16_TILE_VECS <= n_vecs; v += V16_TILE_VECS)                                    \
            value_tile(o + v * LANES, o_stride, first, e, pages, NULL, (size_t)v * vec_bytes,      \
                       NULL, begin, end, WIDE, rows, V16_TILE_VECS, NB_KV_F32);                    \
        if (v < n_vecs)                                                                            \
            value_tile(o + v * LANES, o_stride, first, e, pages, NULL, (size_t)v * vec_bytes,      \
                       NULL, begin, end, WIDE, rows, 1, NB_KV_F32);                                \
    }
V16_TILES(TILE)
#undef TILE

#define TILE(rows) wide_score_##rows,
static wide_score_fn *const wide_score[V16_TILE_ROWS + 1] = {NULL, V16_TILES(TILE)};
#undef TILE
#define TILE(rows) wide_value_##rows,
static wide_value_fn *const wide_value[V16_TILE_ROWS + 1] = {NULL, V16_TILES(TILE)};
#undef TILE

/* ---- tiles of few rows, on the cells as they lie ---- */

/* As score_tile, for V16_FEW_VECS(rows) vectors. */
typedef void few_score_fn(float *s, const float *q, const uint8_t *const *keys,
                          const uint8_t *const *ahead, const float *scales, int64_t n, bool first);
/* As value_tile, for all whole vectors of the head. */
typedef void few_value_fn(float *o, int64_t o_stride, bool first, const float *e,
                          const uint8_t *const *pages, const uint8_t *const *ahead,
                          const float *scales, int64_t begin, int64_t end, int64_t head_dim);

V16_INLINE void few_values(float *o, int64_t o_stride, bool first, const float *e,
                           const uint8_t *const *pages, const uint8_t *const *ahead,
                           const float *scales, int64_t begin, int64_t end, int64_t head_dim,
                           int rows, nb_kv_format format)
{
    const size_t cell = cell_bytes(format);
    const int64_t stride = value_stride(head_dim, format);
    const int vecs = V16_FEW_VECS(rows);
    int64_t d = 0;
    for (; d + vecs * LANES <= head_dim; d += vecs * LANES)
        value_tile(o + d, o_stride, first, e, pages, ahead, (size_t)d * cell, scales, begin, end,
                   stride, rows, vecs, format);
    if (vecs == 8 && d + 4 * LANES <= head_dim) {
        value_tile(o + d, o_stride, first, e, pages, ahead, (size_t)d * cell, scales, begin, end,
                   stride, rows, 4, format);
        d += 4 * LANES;
    }
    for (; d + LANES <= head_dim; d += LANES)
        value_tile(o + d, o_stride, first, e, pages, ahead, (size_t)d * cell, scales, begin, end,
                   stride, rows, 1, format);
}

#define FEW_SCORE(rows, format)                                                                    \
    static void few_score_##format##_##rows(float *s, const float *q, const uint8_t *const *keys,  \
                                            const uint8_t *const *ahead, const float *scales,      \
                                            int64_t n, bool first)                                 \
    {                                                                                              \
        score_tile(s, q, keys, ahead, scales, n, first, rows, V16_FEW_VECS(rows), NB_KV_##format); \
    }
#define FEW_VALUE(rows, format)                                                                    \
    static void few_value_##format##_##rows(float *o, int64_t o_stride, bool first,                \
                                            const float *e, const uint8_t *const *pages,           \
                                            const uint8_t *const *ahead, const float *scales,      \
                                            int64_t begin, int64_t end, int64_t head_dim)          \
    {                                                                                              \
        few_values(o, o_stride, first, e, pages, ahead, scales, begin, end, head_dim, rows,        \
                   NB_KV_##format);                                                                \
    }
#define TILE(rows)                                                                                 \
    FEW_SCORE(rows, F32)                                                                           \
    FEW_SCORE(rows, F16)                                                                           \
    FEW_SCORE(rows, BF16)                                                                          \
    FEW_SCORE(rows, FP8)                                                                           \
    FEW_VALUE(rows, F32)                                                                           \
    FEW_VALUE(rows, F16) FEW_VALUE(rows, BF16) FEW_VALUE(rows, INT8) FEW_VALUE(rows, FP8)
V16_FEW_TILES(TILE)
#undef TILE
#undef FEW_SCORE
#undef FEW_VALUE

#define F32(rows)        few_score_F32_##rows,
#define F16(rows)        few_score_F16_##rows,
#define BF16(rows)       few_score_BF16_##rows,
#define FP8(rows)        few_score_FP8_##rows,
#define FEW(format, row) [NB_KV_##format] = {NULL, V16_FEW_TILES(row)}
static few_score_fn *const few_score[][V16_FEW_ROWS + 1] = {FEW(F32, F32), FEW(F16, F16),
                                                            FEW(BF16, BF16), FEW(FP8, FP8)};
#undef F32
#undef F16
#undef BF16
#undef FP8
#define F32(rows)  few_value_F32_##rows,
#define F16(rows)  few_value_F16_##rows,
#define BF16(rows) few_value_BF16_##rows,
#define INT8(rows) few_value_INT8_##rows,
#define FP8(rows)  few_value_FP8_##rows,
static few_value_fn *const few_value[][V16_FEW_ROWS + 1] = {
    FEW(F32, F32), FEW(F16, F16), FEW(BF16, BF16), FEW(INT8, INT8), FEW(FP8, FP8)};
#undef F32
#undef F16
#undef BF16
#undef INT8
#undef FP8
#undef FEW

/* ---- widening ---- */

V16_INLINE void widen_keys_as(float *out, const uint8_t *page, const float *scales,
                              int64_t head_dim, int64_t d0, int64_t n, nb_kv_format format)
{
    const size_t panel_bytes = (size_t)((head_dim + 3) / 4) * 64;
    for (int v = 0; v < WIDE; v += LANES) {
        const v16 scale = has_scales(format) ? v16_load(scales + v) : v16_zero();
        const uint8_t *panel = page + (size_t)(v / LANES) * panel_bytes;
        for (int64_t d = d0; d < d0 + n; d++) {
            const v16 key = format == NB_KV_INT8 ? v16_load_code(panel + d / 4 * 64, (int)(d % 4))
                                                 : load_cells(page, d * NB_KV_PAGE + v, format);
            v16_store(out + (d - d0) * WIDE + v, has_scales(format) ? v16_mul(key, scale) : key);
        }
    }
}

/* out[d][32] = dimensions [d0, d0 + n) of a page's keys; scales are the page's. */
static void widen_keys(float *out, const uint8_t *page, const float *scales, int64_t head_dim,
                       int64_t d0, int64_t n, nb_kv_format format)
{
    if (format == NB_KV_F16)
        widen_keys_as(out, page, scales, head_dim, d0, n, NB_KV_F16);
    else if (format == NB_KV_BF16)
        widen_keys_as(out, page, scales, head_dim, d0, n, NB_KV_BF16);
    else if (format == NB_KV_FP8)
        widen_keys_as(out, page, scales, head_dim, d0, n, NB_KV_FP8);
    else
        widen_keys_as(out, page, scales, head_dim, d0, n, NB_KV_INT8);
}

static float value_of(const uint8_t *cells, int64_t i, nb_kv_format format)
{
    switch (format) {
    case NB_KV_F16:
        return nb_float_get(cells, NB_F16, i);
    case NB_KV_BF16:
        return nb_float_get(cells, NB_BF16, i);
    case NB_KV_INT8:
        return (float)((const int8_t *)cells)[i];
    case NB_KV_FP8:
        return nb_e4m3_to_f32(cells[i]) * 0x1p-8f; /* as v16_load_e4m3 */
    default:
        break;
    }
    return nb_float_get(cells, NB_F32, i);
}

V16_INLINE v16 load_value(const uint8_t *cells, int64_t i, float scale, nb_kv_format format)
{
    const v16 value = load_cells(cells, i, format);
    return has_scales(format) ? v16_mul(value, v16_set1(scale)) : value;
}

V16_INLINE void widen_values_as(float *out, const uint8_t *const *pages, const float *scales,
                                int64_t begin, int64_t end, int64_t head_dim, int64_t d0,
                                nb_kv_format format)
{
    const int64_t n = head_dim - d0, stride = value_stride(head_dim, format);
    for (int64_t c = begin; c < end;) {
        const uint8_t *cells = pages[c / NB_KV_PAGE] + (size_t)d0 * cell_bytes(format);
        const int64_t stop = (c / NB_KV_PAGE + 1) * NB_KV_PAGE;
        for (; n >= WIDE && c < end && c < stop; c++, out += WIDE) {
            const int64_t at = c % NB_KV_PAGE * stride;
            v16_store(out, load_value(cells, at, scales[c], format));
            v16_store(out + LANES, load_value(cells, at + LANES, scales[c], format));
        }
        for (; c < end && c < stop; c++, out += WIDE) {
            const int64_t at = c % NB_KV_PAGE * stride, whole = n < LANES ? 0 : LANES;
            float rest[LANES] = {0}; /* the end of the head, perhaps of all memory */
            for (int64_t d = whole; d < n; d++)
                rest[d - whole] =
                    value_of(cells, at + d, format) * (has_scales(format) ? scales[c] : 1.0f);
            if (whole > 0)
                v16_store(out, load_value(cells, at, scales[c], format));
            if (whole < n)
                v16_store(out + whole, v16_load(rest));
        }
    }
}

/* out[c - begin][32] = dimensions [d0, d0 + 32) of the values of cells [begin, end) of the split,
 * as far as the head goes, and then zeros to a whole vector. */
static void widen_values(float *out, const uint8_t *const *pages, const float *scales,
                         int64_t begin, int64_t end, int64_t head_dim, int64_t d0,
                         nb_kv_format format)
{
    if (format == NB_KV_F32)
        widen_values_as(out, pages, scales, begin, end, head_dim, d0, NB_KV_F32);
    else if (format == NB_KV_F16)
        widen_values_as(out, pages, scales, begin, end, head_dim, d0, NB_KV_F16);
    else if (format == NB_KV_BF16)
        widen_values_as(out, pages, scales, begin, end, head_dim, d0, NB_KV_BF16);
    else if (format == NB_KV_FP8)
        widen_values_as(out, pages, scales, begin, end, head_dim, d0, NB_KV_FP8);
    else
        widen_values_as(out, pages, scales, begin, end, head_dim, d0, NB_KV_INT8);
}

/* Scores of INT8 cells from the codes of the queries: what each instruction set's file defines as
 * int_score_<rows> for all of V16_TILES, before it includes attn_body.h. */
typedef void int_score_fn(float *s, const float *q, const int32_t *start, const float *q_scale,
                          const uint8_t *const *keys, const uint8_t *const *ahead,
                          const float *scales, int64_t n_groups, bool wide);

#endif
