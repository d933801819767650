/* Scenes for the checks of attention: a sequence in a paged cache, and queries at its end. */
#ifndef NB_TESTS_ATTN_SCENE_H
#define NB_TESTS_ATTN_SCENE_H

#include "support/golden.h"
#include "support/check.h"
#include "isas.h"
#include "numeric/minifloat.h"

#include <math.h>
#include <string.h>

/* A sequence in a cache, and queries that end at its last position. */
typedef struct {
    nb_kv_format cell;
    int n_kv_heads, head_dim, n_group, n_q;
    int64_t pos0, window;
    check_kind kind;
    uint64_t seed;
    int q_bits;
} scene;

static inline void scene_text(const scene *s, char out[200])
{
    snprintf(out, 200,
             "%s cells, q_bits %d, %d kv heads, head_dim %d, group %d, %d queries at %lld, window "
             "%lld, %s data, seed %llu",
             nb_kv_format_name(s->cell), s->q_bits, s->n_kv_heads, s->head_dim, s->n_group, s->n_q,
             (long long)s->pos0, (long long)s->window, check_kind_name(s->kind),
             (unsigned long long)s->seed);
}

/* The cache of a scene. Pages lie in a mixed order; those of no use to anyone come between, full
 * of NaN, as does the part of a page that no position filled. */
typedef struct {
    nb_kv_view view;
    uint8_t *arena, *recent;
    int32_t *table;
    size_t arena_bytes, recent_bytes;
    float *q; /* [n_q][heads][head_dim] */
    int64_t ld;
} cache;

/* Static scales F16 of fp8 cells, 2^-8 to 1: with some of them, numbers saturate. */
static const uint16_t scene_scales[] = {0x1c00, 0x2266, 0x1f03, 0x3c00, 0x1d55};

static inline cache cache_open(const scene *s, const nb_kernels *k)
{
    const int64_t n_positions = s->pos0 + s->n_q, n_pages = (n_positions + 31) / 32;
    const size_t part = (size_t)s->n_kv_heads * nb_kv_head_bytes(s->cell, s->head_dim);
    const size_t page_bytes = 2 * part + 64; /* room for something else, which stays NaN */
    cache c = {.arena_bytes = page_bytes * (size_t)(2 * n_pages + 1)};
    c.arena = check_alloc(c.arena_bytes);
    c.table = check_alloc((size_t)n_pages * sizeof *c.table);
    for (int64_t i = 0; i < n_pages; i++) /* odd numbers, from the middle to both sides */
        c.table[i] = (int32_t)(2 * (i % 2 ? n_pages / 2 - 1 - i / 2 : n_pages / 2 + i / 2) + 1);
    c.view = (nb_kv_view){.arena = c.arena,
                          .page_bytes = page_bytes,
                          .k_offset = 32 + part,
                          .v_offset = 32,
                          .table = c.table,
                          .format = s->cell,
                          .head_bytes = nb_kv_head_bytes(s->cell, s->head_dim),
                          .n_kv_heads = s->n_kv_heads,
                          .head_dim = s->head_dim};

    const int64_t width = (int64_t)s->n_kv_heads * s->head_dim;
    if (nb_kv_bits(s->cell) > 0) { /* the same pages, elsewhere, the heads in another order */
        const size_t head_bytes = nb_kv_head_bytes(NB_KV_F16, s->head_dim);
        const size_t recent_page = 2 * (size_t)s->n_kv_heads * head_bytes + 32;
        c.recent_bytes = recent_page * (size_t)(2 * n_pages + 1);
        c.recent = check_alloc(c.recent_bytes);
        c.view.recent = (nb_kv_pages){.arena = c.recent,
                                      .page_bytes = recent_page,
                                      .k_offset = 0,
                                      .v_offset = (size_t)s->n_kv_heads * head_bytes,
                                      .head_bytes = head_bytes,
                                      .table = c.table};
    }
    if (s->cell == NB_KV_FP8 && s->seed % 3 == 0) {
        c.view.k_scales = scene_scales;
        c.view.v_scales = scene_scales + 2;
    }
    float *key = check_floats(width), *value = check_floats(width);
    for (int64_t p = 0; p < n_positions; p++) {
        check_fill(key, width, s->kind, s->seed * 1000003 + (uint64_t)(2 * p));
        check_fill(value, width, s->kind, s->seed * 1000003 + (uint64_t)(2 * p + 1));
        const int some = (int)(p % (s->n_kv_heads + 1)); /* heads of one position in two calls */
        k->kv_store(&c.view, p, 0, some, key, value);
        k->kv_store(&c.view, p, some, s->n_kv_heads - some, key + some * s->head_dim,
                    value + some * s->head_dim);
    }
    /* the table has no entry for pages that nobody sees: following it would be a crash */
    if (s->window > 0 && s->window <= s->pos0)
        for (int64_t i = 0; i < (s->pos0 + 1 - s->window) / NB_KV_PAGE; i++)
            c.table[i] = INT32_MAX;
    check_free(key);
    check_free(value);

    c.ld = width * s->n_group + 3; /* rows need not touch */
    c.q = check_floats(s->n_q * c.ld);
    check_fill(c.q, s->n_q * c.ld, s->kind, s->seed * 1000003 + 999983);
    return c;
}

static inline void cache_close(check_run *run, const char *what, cache *c)
{
    check_guard(run, what, c->arena);
    check_guard(run, what, c->q);
    if (c->recent != NULL) {
        check_guard(run, what, c->recent);
        check_free(c->recent);
    }
    check_free(c->arena);
    check_free(c->table);
    check_free(c->q);
}

/* The same of packed codes; `values`, those of the page, has the upper bits of wide keys. */
static inline double packed_value(const nb_kv_view *kv, const uint8_t *at, const uint8_t *values,
                                  bool key, int64_t i, int64_t d)
{
    const int bits = kv->format == NB_KV_INT2 ? 2 : 4, n = 8 / bits;
    const int64_t wide = (kv->head_dim + 16 * n - 1) / (16 * n) * (16 * n);
    const int byte = key ? at[d / n * 32 + i] : at[i * wide / n + d / (16 * n) * 16 + d % 16];
    int code = byte >> (bits * (int)(key ? d % n : d / 16 % n)) & ((1 << bits) - 1);
    const int64_t group = bits == 2 ? 64 : 32, n_scales = key ? wide : wide / group * 32;
    const int64_t scale = key ? d : d / group * 32 + i;
    const uint8_t *scales = at + wide * 32 / n;
    const double s = (double)nb_float_get(scales, NB_F16, scale);
    if (key && signbit(s)) { /* sign bits tell which dimensions have four bits */
        int rank = 0;
        for (int64_t j = 0; j < d; j++)
            rank += signbit(nb_float_get(scales, NB_F16, j)) != 0;
        const uint8_t *upper = values + wide * 32 / n + 4 * (wide / 64 * 32);
        code += 4 * (upper[rank / 4 * 32 + i] >> (2 * (rank % 4)) & 3);
    }
    return fabs(s) * code + (double)nb_float_get(scales, NB_F16, n_scales + scale);
}

/* A cell's value for a query that sees n_sealed pages sealed, from its bytes as cells.h draws them.
 * Values of int4 and int2 are rotated ones. */
static inline double cell_value(const nb_kv_view *kv, int64_t n_sealed, bool key, int head,
                                int64_t p, int64_t d)
{
    const uint8_t *at = kv->arena + (size_t)kv->table[p / 32] * kv->page_bytes +
                        (key ? kv->k_offset : kv->v_offset) + (size_t)head * kv->head_bytes;
    const int64_t dim = kv->head_dim, i = p % 32, float_cell = key ? d * 32 + i : i * dim + d;
    const int64_t padded = (dim + 3) / 4 * 4, wide = (dim + 15) / 16 * 16;
    switch (kv->format) {
    case NB_KV_F32:
        return (double)nb_float_get(at, NB_F32, float_cell);
    case NB_KV_F16:
        return (double)nb_float_get(at, NB_F16, float_cell);
    case NB_KV_BF16:
        return (double)nb_float_get(at, NB_BF16, float_cell);
    case NB_KV_FP8:
        return (double)nb_e4m3_to_f32(at[key ? d * 32 + i : i * wide + d]) *
               (double)nb_float_get(at + wide * 32, NB_F16, i);
    case NB_KV_INT4:
    case NB_KV_INT4_PLAIN:
    case NB_KV_INT2:
        if (p < 64 || p / 32 >= n_sealed) {
            const nb_kv_pages *r = &kv->recent;
            at = r->arena + (size_t)r->table[p / 32] * r->page_bytes +
                 (key ? r->k_offset : r->v_offset) + (size_t)head * r->head_bytes;
            return (double)nb_float_get(at, NB_F16, float_cell);
        }
        return packed_value(kv, at,
                            kv->arena + (size_t)kv->table[p / 32] * kv->page_bytes + kv->v_offset +
                                (size_t)head * kv->head_bytes,
                            key, i, d);
    case NB_KV_INT8:
    case NB_KV_N_FORMATS:
        break;
    }
    const double scale = (double)nb_float_get(at + padded * 32, NB_F16, i);
    const int code = key ? at[i / 16 * (16 * padded) + d / 4 * 64 + i % 16 * 4 + d % 4] - 128
                         : (int8_t)at[float_cell];
    return code * scale;
}

/* The arguments of all calls of a scene. */
static inline nb_attn_args args_of(const scene *s, const cache *c, int head, int first, int n,
                                   float *out, float *scratch)
{
    return (nb_attn_args){.q = c->q + first * c->ld,
                          .out = out + first * c->ld,
                          .ld = c->ld,
                          .n_q = n,
                          .n_group = s->n_group,
                          .kv_head = head,
                          .pos0 = s->pos0 + first,
                          .window = s->window,
                          .scale = 1.0f / sqrtf((float)s->head_dim),
                          .q_bits = s->q_bits,
                          .kv = c->view,
                          .scratch = scratch};
}

/* Tokens from `first` on, at most n, that one call may have: those that see as many sealed pages.
 */
static inline int one_call(const scene *s, int first, int n)
{
    const int64_t sealed = nb_kv_n_sealed(s->cell, s->pos0 + first);
    int m = 1;
    while (m < n && nb_kv_n_sealed(s->cell, s->pos0 + first + m) == sealed)
        m++;
    return m;
}

/* Attention of all query heads of tokens [first, first + n); `out` is the scene's. Scratch has just
 * the room it must have. */
static inline void attend(check_run *run, const char *what, const scene *s, const cache *c,
                          const nb_kernels *k, int first, int n, float *out)
{
    float *scratch = check_floats(nb_attn_scratch_floats(s->head_dim, s->pos0 + first + n));
    for (int t = first, m; t < first + n; t += m) {
        m = one_call(s, t, first + n - t);
        for (int head = 0; head < s->n_kv_heads; head++) {
            const nb_attn_args args = args_of(s, c, head, t, m, out, scratch);
            k->attention(&args);
        }
    }
    check_guard(run, what, scratch);
    check_free(scratch);
}

/* The same by splits, `at_once` of them a call, the last first. */
static inline void attend_by_splits(check_run *run, const char *what, const scene *s,
                                    const cache *c, const nb_kernels *splits,
                                    const nb_kernels *merge, int64_t at_once, float *out)
{
    float *scratch = check_floats(nb_attn_scratch_floats(s->head_dim, 0));
    for (int i = 0; i < s->n_kv_heads * s->n_q; i++) {
        const int head = i % s->n_kv_heads, t = i / s->n_kv_heads;
        const int64_t sealed = nb_kv_n_sealed(s->cell, s->pos0 + t);
        if (t > 0 && sealed == nb_kv_n_sealed(s->cell, s->pos0 + t - 1))
            continue; /* in the call before */
        nb_attn_args args = args_of(s, c, head, t, one_call(s, t, s->n_q - t), NULL, scratch);
        const int64_t n = nb_attn_n_splits(&args), size = nb_attn_part_floats(&args);
        float *parts = check_floats(n * size);
        for (int64_t end = n; end > 0; end -= at_once)
            splits->attn_splits(&args, end > at_once ? end - at_once : 0, end, parts);
        args.out = out + t * c->ld;
        args.q = args.scratch = NULL;
        args.kv.arena = NULL;
        merge->attn_merge(&args, parts);
        check_guard(run, what, parts);
        check_free(parts);
    }
    check_guard(run, what, scratch);
    check_free(scratch);
}

/* Outputs of a scene; what no head owns keeps its contents. */
static inline float *open_out(const scene *s, const cache *c)
{
    float *out = check_floats(s->n_q * c->ld);
    for (int64_t i = 0; i < s->n_q * c->ld; i++)
        out[i] = 12345.0f;
    return out;
}

static inline int64_t one_of(uint64_t seed, uint64_t index, const int64_t *choices, int64_t n)
{
    return choices[check_pick(seed, index, n)];
}
#define ONE_OF(seed, index, ...)                                                                   \
    one_of(seed, index, (const int64_t[]){__VA_ARGS__},                                            \
           (int64_t)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))

/* Shapes and places where something begins or ends: pages of 32, cuts of 128, splits of 256. */
static inline scene random_scene(uint64_t seed)
{
    scene s = {.seed = seed};
    s.cell = (nb_kv_format)check_pick(seed, 0, NB_KV_N_FORMATS);
    s.q_bits = s.cell == NB_KV_INT8 ? (int)(8 * check_pick(seed, 9, 3)) : 0;
    s.head_dim = (int)ONE_OF(seed, 1, 1, 2, 7, 15, 16, 17, 20, 32, 33, 48, 64, 64, 80, 96, 127, 128,
                             129, 160, 256);
    s.n_group = (int)ONE_OF(seed, 2, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 12, 13, 24, 48);
    s.n_q = 1 + (int)check_pick(seed, 3, NB_ATTN_ROWS / s.n_group);
    if (check_pick(seed, 10, 3) == 0) /* decode, where a few rows take another way */
        s.n_q = 1;
    s.n_kv_heads = 1 + (int)check_pick(seed, 4, 2);
    s.pos0 = ONE_OF(seed, 5, 0, 1, 2, 14, 30, 31, 32, 33, 60, 120, 126, 127, 128, 129, 200, 248,
                    250, 254, 255, 256, 257, 383, 500, 510, 511, 512, 600, 767, 769);
    s.window = ONE_OF(seed, 6, 0, 0, 0, 1, 2, 5, 16, 31, 32, 33, 100, 128, 255, 256, 257, 300, 513);
    s.kind = (check_kind)check_pick(seed, 7, CHECK_N_KINDS);
    if (check_pick(seed, 8, 2))
        s.kind = CHECK_RANDOM;
    return s;
}

/* The reference's work; scenes are kept small enough for it. */
static inline int64_t scene_work(const scene *s)
{
    return (s->pos0 + s->n_q) * s->head_dim * s->n_kv_heads * (s->n_q * s->n_group + 4);
}

#endif
