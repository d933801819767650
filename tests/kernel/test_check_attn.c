/* The paged cache and attention over it: every variant against the scalar reference, bit for bit,
 * over shapes, positions, windows and data; independence of how queries are grouped into calls;
 * the reference against double arithmetic; and planted faults through the same checks. */
#include "support/golden.h"
#include "support/check.h"
#include "isas.h"
#include "kernel/math.h"
#include "numeric/minifloat.h"

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

static void scene_text(const scene *s, char out[200])
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
    uint8_t *arena;
    int32_t *table;
    size_t arena_bytes;
    float *q; /* [n_q][heads][head_dim] */
    int64_t ld;
} cache;

static cache cache_open(const scene *s, const nb_kernels *k)
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

static void cache_close(check_run *run, const char *what, cache *c)
{
    check_guard(run, what, c->arena);
    check_guard(run, what, c->q);
    check_free(c->arena);
    check_free(c->table);
    check_free(c->q);
}

/* A cell's value, from its bytes as kernel.h draws them. */
static double cell_value(const nb_kv_view *kv, bool key, int head, int64_t p, int64_t d)
{
    const uint8_t *at = kv->arena + (size_t)kv->table[p / 32] * kv->page_bytes +
                        (key ? kv->k_offset : kv->v_offset) + (size_t)head * kv->head_bytes;
    const int64_t dim = kv->head_dim, i = p % 32, float_cell = key ? d * 32 + i : i * dim + d;
    const int64_t padded = (dim + 3) / 4 * 4;
    switch (kv->format) {
    case NB_KV_F32:
        return (double)nb_float_get(at, NB_F32, float_cell);
    case NB_KV_F16:
        return (double)nb_float_get(at, NB_F16, float_cell);
    case NB_KV_BF16:
        return (double)nb_float_get(at, NB_BF16, float_cell);
    case NB_KV_INT8:
        break;
    }
    const double scale = (double)nb_float_get(at + padded * 32, NB_F16, i);
    const int code = key ? at[i / 16 * (16 * padded) + d / 4 * 64 + i % 16 * 4 + d % 4] - 128
                         : (int8_t)at[float_cell];
    return code * scale;
}

/* The arguments of all calls of a scene. */
static nb_attn_args args_of(const scene *s, const cache *c, int head, int first, int n, float *out,
                            float *scratch)
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

/* Attention of all query heads of tokens [first, first + n); `out` is the scene's. Scratch has just
 * the room it must have. */
static void attend(check_run *run, const char *what, const scene *s, const cache *c,
                   const nb_kernels *k, int first, int n, float *out)
{
    float *scratch = check_floats(nb_attn_scratch_floats(s->head_dim, s->pos0 + first + n));
    for (int head = 0; head < s->n_kv_heads; head++) {
        const nb_attn_args args = args_of(s, c, head, first, n, out, scratch);
        k->attention(&args);
    }
    check_guard(run, what, scratch);
    check_free(scratch);
}

/* The same by splits, `at_once` of them a call, the last first. */
static void attend_by_splits(check_run *run, const char *what, const scene *s, const cache *c,
                             const nb_kernels *splits, const nb_kernels *merge, int64_t at_once,
                             float *out)
{
    float *scratch = check_floats(nb_attn_scratch_floats(s->head_dim, 0));
    for (int head = 0; head < s->n_kv_heads; head++) {
        nb_attn_args args = args_of(s, c, head, 0, s->n_q, NULL, scratch);
        const int64_t n = nb_attn_n_splits(&args), size = nb_attn_part_floats(&args);
        float *parts = check_floats(n * size);
        for (int64_t end = n; end > 0; end -= at_once)
            splits->attn_splits(&args, end > at_once ? end - at_once : 0, end, parts);
        args.out = out;
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
static float *open_out(const scene *s, const cache *c)
{
    float *out = check_floats(s->n_q * c->ld);
    for (int64_t i = 0; i < s->n_q * c->ld; i++)
        out[i] = 12345.0f;
    return out;
}

/* The cache as k fills it, and every output, equal the reference's bit for bit; and so does every
 * way to cut the queries into calls. */
static void check_scene(check_run *run, const nb_kernels *ref, const nb_kernels *k, const scene *s)
{
    char what[200];
    scene_text(s, what);
    cache c = cache_open(s, ref), own = cache_open(s, k);
    check_same_bytes(run, what, own.arena, c.arena, c.arena_bytes);

    float *want = open_out(s, &c), *got = open_out(s, &c);
    attend(run, what, s, &c, ref, 0, s->n_q, want);
    attend(run, what, s, &c, k, 0, s->n_q, got);
    check_same_f32(run, what, got, want, s->n_q * c.ld);
    check_guard(run, what, got);
    check_free(got);

    for (int size = 1; size < s->n_q; size = 2 * size + 1) {
        got = open_out(s, &c);
        for (int t = 0; t < s->n_q; t += size)
            attend(run, what, s, &c, k, t, t + size < s->n_q ? size : s->n_q - t, got);
        check_same_f32(run, what, got, want, s->n_q * c.ld);
        check_guard(run, what, got);
        check_free(got);
    }
    for (int64_t at_once = 1; at_once < 4; at_once += 2) {
        got = open_out(s, &c);
        attend_by_splits(run, what, s, &c, at_once == 1 ? k : ref, at_once == 1 ? ref : k, at_once,
                         got);
        check_same_f32(run, what, got, want, s->n_q * c.ld);
        check_guard(run, what, got);
        check_free(got);
    }
    check_free(want);
    cache_close(run, what, &own);
    cache_close(run, what, &c);
}

static int64_t one_of(uint64_t seed, uint64_t index, const int64_t *choices, int64_t n)
{
    return choices[check_pick(seed, index, n)];
}
#define ONE_OF(seed, index, ...)                                                                   \
    one_of(seed, index, (const int64_t[]){__VA_ARGS__},                                            \
           (int64_t)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))

/* Shapes and places where something begins or ends: pages of 32, cuts of 128, splits of 256. */
static scene random_scene(uint64_t seed)
{
    scene s = {.seed = seed};
    s.cell = (nb_kv_format)check_pick(seed, 0, 4);
    s.q_bits = s.cell == NB_KV_INT8 ? (int)(8 * check_pick(seed, 9, 3)) : 0;
    s.head_dim = (int)ONE_OF(seed, 1, 1, 2, 7, 15, 16, 17, 20, 32, 33, 48, 64, 64, 80, 96, 127, 128,
                             129, 160, 256);
    s.n_group = (int)ONE_OF(seed, 2, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 12, 13, 24);
    s.n_q = 1 + (int)check_pick(seed, 3, NB_ATTN_ROWS / s.n_group);
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
static int64_t scene_work(const scene *s)
{
    return (s->pos0 + s->n_q) * s->head_dim * s->n_kv_heads * (s->n_q * s->n_group + 4);
}

/* With `planted`, ends at the first fault. */
static void walk(check_run *run, const nb_kernels *ref, const nb_kernels *k, uint64_t n,
                 bool planted)
{
    for (uint64_t seed = 1; seed <= n; seed++) {
        if (planted && run->n_faults > 0)
            return;
        const scene s = random_scene(seed);
        if (scene_work(&s) < 1000000)
            check_scene(run, ref, k, &s);
    }
    static const scene fixed[] = {
        /* SmolLM2, prefill across a split and decode */
        {NB_KV_F16, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 1, 0},
        {NB_KV_F32, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 2, 0},
        {NB_KV_F16, 3, 64, 3, 1, 1100, 0, CHECK_RANDOM, 3, 0},
        /* the largest head, deep, with and without a window */
        {NB_KV_F16, 1, 512, 1, 2, 700, 0, CHECK_RANDOM, 4, 0},
        {NB_KV_F32, 1, 256, 2, 2, 3000, 0, CHECK_RANDOM, 5, 0},
        {NB_KV_F16, 1, 64, 1, 24, 2040, 10, CHECK_RANDOM, 6, 0},
        {NB_KV_F32, 1, 16, 1, 24, 250, 3, CHECK_RANDOM, 7, 0},
        {NB_KV_BF16, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 8, 0},
        {NB_KV_INT8, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 9, 8},
        {NB_KV_INT8, 3, 64, 3, 1, 1100, 0, CHECK_RANDOM, 10, 8},
        {NB_KV_INT8, 1, 512, 1, 3, 700, 0, CHECK_RANDOM, 11, 16},
        {NB_KV_INT8, 1, 512, 1, 3, 700, 0, CHECK_EQUAL, 12, 16}, /* the largest sums */
        {NB_KV_INT8, 1, 128, 4, 6, 1000, 300, CHECK_RANDOM, 13, 16},
        {NB_KV_INT8, 1, 512, 1, 2, 300, 0, CHECK_RANDOM, 14, 0},
        /* many rows, of which some see what is not finite and some do not */
        {NB_KV_F32, 1, 64, 1, 24, 250, 0, CHECK_SPECIAL, 15, 0},
        {NB_KV_F16, 1, 64, 2, 12, 250, 7, CHECK_SPECIAL, 16, 0},
        {NB_KV_INT8, 1, 64, 3, 8, 250, 7, CHECK_SPECIAL, 17, 8},
        {NB_KV_INT8, 1, 80, 1, 24, 500, 0, CHECK_WIDE, 18, 8},
    };
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        if (!planted || run->n_faults == 0)
            check_scene(run, ref, k, &fixed[i]);
}

static void variants_equal_the_reference(void **state)
{
    (void)state;
    nb_kernels ref, variants[N_ISA_MASKS];
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    const int n_variants = isa_tables(variants);
    for (int v = 0; v < n_variants; v++) {
        assert_true(variants[v].attention != ref.attention);
        assert_true(variants[v].kv_store != ref.kv_store);
        check_run run = {.name = nb_isa_name(variants[v].isa)};
        walk(&run, &ref, &variants[v], 500, false);
        check_finish(&run);
    }
}

/* The reference itself gives the same bits for every grouping. */
static void the_reference_does_not_depend_on_grouping(void **state)
{
    (void)state;
    nb_kernels ref;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    check_run run = {.name = "reference"};
    walk(&run, &ref, &ref, 100, false);
    check_finish(&run);
}

/* ---- what a query may not see ---- */

/* NaN and infinity at a position spoil the queries that see it and no others, in every table. */
static void poisoned_positions(const nb_kernels *k)
{
    for (int i = 0; i < 24; i++) {
        const nb_kv_format cell = (nb_kv_format)(i / 2 % 4);
        const int window = i % 2 * 4, n_group = i / 8 == 0 ? 2 : 1, n_q = i / 8 == 2 ? 6 : 12;
        const scene s = {cell, 1,      64,           n_group, n_q,
                         252,  window, CHECK_RANDOM, 5,       cell == NB_KV_INT8 ? 8 : 0};
        cache c = cache_open(&s, k);
        check_run run = {.name = "poison"};
        float *clean = open_out(&s, &c), *out = open_out(&s, &c);
        attend(&run, "clean", &s, &c, k, 0, s.n_q, clean);
        float *key = check_floats(64), *value = check_floats(64);
        for (int d = 0; d < 64; d++) {
            key[d] = NAN;
            value[d] = d % 2 ? INFINITY : NAN;
        }
        k->kv_store(&c.view, 256, 0, 1, key, value); /* the first of a split */
        attend(&run, "poisoned", &s, &c, k, 0, s.n_q, out);
        for (int t = 0; t < s.n_q; t++) {
            const int64_t pos = s.pos0 + t;
            const bool sees = pos >= 256 && (window == 0 || pos < 256 + window);
            for (int d = 0; d < n_group * s.head_dim; d++) {
                if (sees)
                    assert_true(isnan(out[t * c.ld + d]));
                else
                    check_same_f32(&run, "unseen", &out[t * c.ld + d], &clean[t * c.ld + d], 1);
            }
        }
        check_finish(&run);
        check_free(key);
        check_free(value);
        check_free(clean);
        check_free(out);
        cache_close(&run, "poison", &c);
    }
}

/* Equal scores and small integers: every sum is exact, so one cell lost or seen twice shows. */
static void exact_means(const nb_kernels *k)
{
    static const int64_t places[] = {0, 1, 31, 32, 127, 128, 255, 256, 300, 511, 512, 1000};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        for (int64_t window = 0; window <= 300; window += 75) {
            const scene s = {(nb_kv_format)(i % 3), 1, 36, 3, 5, places[i], window,
                             CHECK_INTEGERS,        i, 0};
            cache c = cache_open(&s, k);
            memset(c.q, 0, (size_t)(s.n_q * c.ld) * sizeof *c.q);
            check_run run = {.name = "mean"};
            float *out = open_out(&s, &c), *value = check_floats(36);
            attend(&run, "mean", &s, &c, k, 0, s.n_q, out);
            for (int t = 0; t < s.n_q; t++) {
                const int64_t end = s.pos0 + t + 1;
                const int64_t begin = window > 0 && window < end ? end - window : 0;
                float sum[36] = {0};
                for (int64_t p = begin; p < end; p++) {
                    check_fill(value, 36, s.kind, s.seed * 1000003 + (uint64_t)(2 * p + 1));
                    for (int d = 0; d < 36; d++)
                        sum[d] += value[d];
                }
                for (int d = 0; d < 36; d++)
                    sum[d] /= (float)(end - begin);
                for (int j = 0; j < s.n_group; j++)
                    check_same_f32(&run, "mean", out + t * c.ld + j * 36, sum, 36);
            }
            check_finish(&run);
            check_free(out);
            check_free(value);
            cache_close(&run, "mean", &c);
        }
    }
}

static void every_table_sees_what_it_should(void **state)
{
    (void)state;
    nb_kernels ref, variants[N_ISA_MASKS];
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    poisoned_positions(&ref);
    exact_means(&ref);
    const int n_variants = isa_tables(variants);
    for (int v = 0; v < n_variants; v++) {
        poisoned_positions(&variants[v]);
        exact_means(&variants[v]);
    }
}

/* ---- the reference against double ---- */

/* q as its scores are taken: q / sqrt(d), or what A3 makes of it as one group. */
static void query_values(const scene *s, const float *q, double *out)
{
    const float scale = 1.0f / sqrtf((float)s->head_dim), qmax = s->q_bits == 8 ? 127 : 32639;
    float absmax = 0;
    for (int64_t d = 0; d < s->head_dim; d++)
        absmax = fmaxf(absmax, fabsf(q[d] * scale));
    for (int64_t d = 0; d < s->head_dim; d++) {
        const float scaled = q[d] * scale;
        out[d] = (double)q[d] * (double)scale;
        if (s->q_bits > 0)
            out[d] = absmax < 0x1p-100f
                         ? 0
                         : (double)rintf(scaled * (qmax / absmax)) * (double)(absmax / qmax);
    }
}

/* Softmax attention of one query head as a textbook has it, on the cells' values, and a bound on
 * what the contract's roundings can change, to first order:
 *
 *   a score of n products is off by at most (n + 2) u sum |q k|   (q', products, chunk sums); of
 *   codes by three roundings, because truth takes the codes that A3 makes of q
 *   a weight then by twice the largest of these, by the roundings of s - m_j and m_j - m, by two
 *   exps and a product
 *   a sum of weights by 256 / 16 + 4 + splits roundings, of weighted values by 128 + 2 + splits,
 *   and one division */
static void truth_of_head(const scene *s, const cache *c, int t, int kv_head, const float *q,
                          double *out, double *bound)
{
    const double u = 0x1p-24;
    const int64_t dim = s->head_dim, end = s->pos0 + t + 1;
    const int64_t begin = s->window > 0 && s->window < end ? end - s->window : 0;
    const double n_splits = (double)(end / NB_KV_SPLIT + 1);
    double *score = check_alloc((size_t)end * sizeof *score), max = -(double)INFINITY, off = 0;
    double lowest = (double)INFINITY, *query = check_alloc((size_t)dim * sizeof *query);
    query_values(s, q, query);
    for (int64_t p = begin; p < end; p++) {
        double dot = 0, size = 0;
        for (int64_t d = 0; d < dim; d++) {
            const double product = query[d] * cell_value(&c->view, true, kv_head, p, d);
            dot += product;
            size += fabs(product);
        }
        score[p] = dot;
        max = fmax(max, score[p]);
        lowest = fmin(lowest, score[p]);
        off = fmax(off, s->q_bits > 0 ? 3 * u * fabs(dot) : (double)(dim + 2) * u * size);
    }
    check_free(query);
    const double weight_off =
        2 * off + 2 * (max - lowest + off) * u + (4 * NB_EXPF_MAX_ULP + 1) * u;
    double total = 0;
    for (int64_t p = begin; p < end; p++)
        total += exp(score[p] - max);
    for (int64_t d = 0; d < dim; d++) {
        double sum = 0, size = 0;
        for (int64_t p = begin; p < end; p++) {
            const double v = cell_value(&c->view, false, kv_head, p, d);
            sum += exp(score[p] - max) * v;
            size += exp(score[p] - max) * fabs(v);
        }
        out[d] = sum / total;
        bound[d] = size / total *
                   (2 * weight_off + (256.0 / 16 + 4 + 128 + 2 + 2 * n_splits + 1) * u) * 1.01;
    }
    check_free(score);
}

static void the_reference_is_near_the_truth(void **state)
{
    (void)state;
    nb_kernels ref;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    check_run run = {.name = "attention"};
    double want[256], bound[256];
    for (uint64_t seed = 1; seed <= 250; seed++) {
        scene s = random_scene(seed);
        s.kind = seed % 4 ? CHECK_RANDOM : CHECK_INTEGERS; /* with infinities there is no bound */
        if (scene_work(&s) > 500000)
            continue;
        char what[200];
        scene_text(&s, what);
        cache c = cache_open(&s, &ref);
        float *out = open_out(&s, &c);
        attend(&run, what, &s, &c, &ref, 0, s.n_q, out);
        for (int t = 0; t < s.n_q; t++) {
            for (int head = 0; head < s.n_kv_heads * s.n_group; head++) {
                const int64_t at = t * c.ld + (int64_t)head * s.head_dim;
                truth_of_head(&s, &c, t, head / s.n_group, c.q + at, want, bound);
                for (int d = 0; d < s.head_dim; d++)
                    check_near(&run, what, (double)out[at + d], want[d], bound[d]);
            }
        }
        check_free(out);
        cache_close(&run, what, &c);
    }
    check_finish(&run);
}

/* ---- planted faults ---- */

static nb_kernels good; /* what the broken ones are made from */

/* Every query of a call sees what the last one sees. */
static void sees_the_future(const nb_attn_args *args)
{
    nb_attn_args a = *args;
    for (int t = 0; t < args->n_q; t++) {
        a.n_q = 1;
        a.pos0 = args->pos0 + args->n_q - 1;
        a.q = args->q + t * args->ld;
        a.out = args->out + t * args->ld;
        good.attention(&a);
    }
}

static void window_off_by_one(const nb_attn_args *args)
{
    nb_attn_args a = *args;
    a.window -= a.window > 1; /* one more would be a crash, as it should */
    good.attention(&a);
}

/* The next float after the scale. */
static void scale_off(const nb_attn_args *args)
{
    nb_attn_args a = *args;
    a.scale = nextafterf(a.scale, 1);
    good.attention(&a);
}

/* Value (31, 7) of the first head is one bit off, as a wrong rounding of a tail would be. */
static void store_off(const nb_kv_view *kv, int64_t pos, int head, int n, const float *k,
                      const float *v)
{
    static const size_t bytes[] = {4, 2, 2, 1};
    good.kv_store(kv, pos, head, n, k, v);
    uint8_t *page = kv->arena + (size_t)kv->table[pos / 32] * kv->page_bytes;
    if (kv->head_dim > 7 && pos % 32 == 31)
        page[kv->v_offset + (size_t)(31 * kv->head_dim + 7) * bytes[kv->format]] ^= 1;
}

/* The scale of the keys at position 3 of each page of one head in one unit of its last place. */
static void key_scale_off(const nb_kv_view *kv, int64_t pos, int head, int n, const float *k,
                          const float *v)
{
    good.kv_store(kv, pos, head, n, k, v);
    uint8_t *page = kv->arena + (size_t)kv->table[pos / 32] * kv->page_bytes;
    if (kv->format == NB_KV_INT8 && pos % 32 == 3)
        page[kv->k_offset + nb_kv_scales_at(kv->head_dim) + 6] ^= 1;
}

/* 16-bit queries lose their low bits. */
static void narrow_queries(const nb_attn_args *args)
{
    nb_attn_args a = *args;
    a.q_bits = a.q_bits == 16 ? 8 : a.q_bits;
    good.attention(&a);
}

/* Float scores where the contract has integers. */
static void float_scores(const nb_attn_args *args)
{
    nb_attn_args a = *args;
    a.q_bits = 0;
    good.attention(&a);
}

/* The merge forgets the second split. */
static void merge_one_less(const nb_attn_args *args, const float *parts)
{
    const int64_t size = nb_attn_part_floats(args), n = nb_attn_n_splits(args);
    float *own = check_floats(n * size);
    memcpy(own, parts, (size_t)(n * size) * sizeof *own);
    for (int64_t i = 0; n > 1 && i < args->n_q * args->n_group; i++)
        own[size + i] = -1000;
    good.attn_merge(args, own);
    check_free(own);
}

/* A split's l is summed in another order: its last bit now and then. */
static void split_sum_off(const nb_attn_args *args, int64_t begin, int64_t end, float *parts)
{
    good.attn_splits(args, begin, end, parts);
    const int64_t n_rows = args->n_q * args->n_group;
    float *l = parts + begin * nb_attn_part_floats(args) + (n_rows + 15) / 16 * 16;
    l[n_rows - 1] = nextafterf(l[n_rows - 1], 0);
}

static void writes_before_scratch(const nb_attn_args *args)
{
    good.attention(args);
    args->scratch[-1] = 0;
}

static void planted_faults_are_caught(void **state)
{
    (void)state;
    nb_kernels ref;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    nb_kernels_init(&good, NB_ISA_ALL);
    static const struct {
        const char *name;
        nb_attention_fn *attention;
        nb_kv_store_fn *kv_store;
        nb_attn_splits_fn *splits;
        nb_attn_merge_fn *merge;
    } faults[] = {
        {.name = "sees the future", .attention = sees_the_future},
        {.name = "window off by one", .attention = window_off_by_one},
        {.name = "scale off by a bit", .attention = scale_off},
        {.name = "narrow queries", .attention = narrow_queries},
        {.name = "float scores", .attention = float_scores},
        {.name = "a cell off by a bit", .kv_store = store_off},
        {.name = "a key's scale off by a bit", .kv_store = key_scale_off},
        {.name = "writes before its scratch", .attention = writes_before_scratch},
        {.name = "a split is forgotten", .merge = merge_one_less},
        {.name = "a sum off by a bit", .splits = split_sum_off},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        nb_kernels broken = good;
        if (faults[i].attention != NULL)
            broken.attention = faults[i].attention;
        if (faults[i].kv_store != NULL)
            broken.kv_store = faults[i].kv_store;
        if (faults[i].splits != NULL)
            broken.attn_splits = faults[i].splits;
        if (faults[i].merge != NULL)
            broken.attn_merge = faults[i].merge;
        check_run run = {.name = faults[i].name};
        walk(&run, &ref, &broken, 60, true);
        check_caught(&run);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(variants_equal_the_reference),
        cmocka_unit_test(the_reference_does_not_depend_on_grouping),
        cmocka_unit_test(every_table_sees_what_it_should),
        cmocka_unit_test(the_reference_is_near_the_truth),
        cmocka_unit_test(planted_faults_are_caught),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
