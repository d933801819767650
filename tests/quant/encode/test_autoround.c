/* Learned rounding of a block: that it learns, that what it stores is what it measured, that its
 * bits depend on the problem only, and that poor data ends well. */
#include "support/golden.h"
#include "support/must.h"

#include "base/rng.h"
#include "numeric/minifloat.h"
#include "quant/encode/autoround.h"
#include "quant/encode/rounding.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float uniform(uint64_t stream, int64_t i)
{
    return (float)(2 * nb_rng_uniform(21, stream, (uint64_t)i) - 1);
}

/* ---- a matrix of any format ---- */

enum { GROUP = 16 };

static void mat_open(nb_mat *m, const nb_format *fmt, bool zeros, int64_t n_rows, int64_t n_cols)
{
    nb_err err;
    *m = (nb_mat){.fmt = fmt, .n_rows = n_rows, .n_cols = n_cols};
    if (fmt->affine) {
        m->group_size = GROUP;
        m->row_bytes = (n_cols * fmt->bits + 31) / 32 * 4;
        m->scale_type = NB_BF16;
        m->scales = calloc((size_t)(n_rows * n_cols / GROUP), 2);
        m->zeros = zeros ? calloc((size_t)(n_rows * n_cols / GROUP), 1) : NULL;
    } else {
        must(nb_format_row_bytes(fmt, n_cols, &m->row_bytes, &err), &err);
    }
    m->codes = calloc((size_t)n_rows, (size_t)m->row_bytes);
}

static void mat_close(nb_mat *m)
{
    free(m->codes);
    free(m->scales);
    free(m->zeros);
}

/* ---- a block and its calibration data ---- */

enum { N_SEQ = 6, LEN = 24 };

typedef struct {
    nb_config config;
    nb_rope_table rope;
    nb_kernels kernels;
    nb_pool *pool;
    nb_block_weights weights;
    float *owned[NB_N_LINEARS], *gain;
    nb_mat mat[NB_N_LINEARS];
    float *x, *y; /* [N_SEQ * LEN][d_model] */
    int64_t n_tokens[N_SEQ];
    int64_t stop_at; /* progress stops there; -1: never */
    int64_t fail_at; /* so many fetches go well; -1: all */
    int64_t n_fetched;
    double share[4]; /* of the first steps */
} scene;

static nb_status fetch(void *context, int64_t seq, int64_t n, float *x, float *y, nb_err *err)
{
    scene *s = context;
    if (s->fail_at >= 0 && s->fail_at-- == 0)
        return nb_fail(err, NB_IO, "the spill is gone");
    const int64_t d = s->config.d_model, at = seq * LEN * d;
    assert_true(n >= 1 && n <= s->n_tokens[seq]);
    memcpy(x, s->x + at, (size_t)(n * d) * sizeof *x);
    memcpy(y, s->y + at, (size_t)(n * d) * sizeof *y);
    return NB_OK;
}

static bool progress(void *context, int64_t step, int64_t n_steps, double loss)
{
    scene *s = context;
    assert_true(step <= n_steps && !isnan(loss));
    if (step < 4)
        s->share[step] = loss;
    return step != s->stop_at;
}

/* Targets are the block's own outputs for inputs that were not yet disturbed. */
static void make_targets(scene *s)
{
    nb_err err;
    nb_block_train t;
    const int64_t d = s->config.d_model, n = N_SEQ * LEN * d;
    must(nb_block_train_init(&t, &s->config, &s->rope, &s->kernels, s->pool, N_SEQ, LEN, false,
                             &err),
         &err);
    nb_block_forward(&t, &s->weights, s->x, N_SEQ, LEN);
    memcpy(s->y, t.y, (size_t)n * sizeof *s->y);
    nb_block_train_free(&t);
    for (int64_t i = 0; i < n; i++)
        s->x[i] += 0.005f * uniform(77, i);
}

static void scene_open(scene *s, const nb_format *fmt, bool zeros, int threads, unsigned isa)
{
    nb_err err;
    const bool wide = !fmt->affine && fmt->block_len > 32;
    *s = (scene){.stop_at = -1, .fail_at = -1};
    s->config = (nb_config){.d_model = wide ? 256 : 32,
                            .d_ff = wide ? 256 : 64,
                            .n_heads = wide ? 16 : 4,
                            .n_kv_heads = wide ? 16 : 2,
                            .head_dim = wide ? 16 : 8,
                            .rot_dim = 8,
                            .rms_eps = 1e-5f,
                            .rope = {.type = NB_ROPE_DEFAULT, .base = 100}};
    nb_kernels_init(&s->kernels, isa);
    must(nb_pool_open(&s->pool, threads, &err), &err);
    must(nb_rope_table_init(&s->rope, &s->config, LEN, NULL, &err), &err);
    const int64_t d = s->config.d_model;
    s->gain = malloc((size_t)d * sizeof *s->gain);
    for (int64_t i = 0; i < d; i++)
        s->gain[i] = 1 + 0.5f * uniform(1, i);
    s->weights.attn_norm = s->weights.ffn_norm = s->gain;
    for (int i = 0; i < NB_N_LINEARS; i++) {
        const int64_t rows = nb_linear_n_rows(&s->config, (nb_linear_id)i);
        const int64_t cols = nb_linear_n_cols(&s->config, (nb_linear_id)i);
        s->owned[i] = malloc((size_t)(rows * cols) * sizeof(float));
        for (int64_t j = 0; j < rows * cols; j++)
            s->owned[i][j] = 2 * uniform(10 + (uint64_t)i, j) / sqrtf((float)cols);
        s->weights.linear[i] = s->owned[i];
        mat_open(&s->mat[i], fmt, zeros, rows, cols);
    }
    s->x = malloc((size_t)(N_SEQ * LEN * d) * sizeof *s->x);
    s->y = malloc((size_t)(N_SEQ * LEN * d) * sizeof *s->y);
    for (int64_t i = 0; i < N_SEQ * LEN * d; i++) /* a few directions matter more, as they do */
        s->x[i] = uniform(50, i) * (i % d % 7 == 0 ? 3.0f : 1.0f);
    for (int i = 0; i < N_SEQ; i++)
        s->n_tokens[i] = LEN;
    make_targets(s);
}

static void scene_close(scene *s)
{
    for (int i = 0; i < NB_N_LINEARS; i++) {
        free(s->owned[i]);
        mat_close(&s->mat[i]);
    }
    free(s->gain);
    free(s->x);
    free(s->y);
    nb_rope_table_free(&s->rope);
    nb_pool_close(s->pool);
}

static nb_block_job job_of(scene *s)
{
    nb_block_job job = {.config = &s->config,
                        .rope = &s->rope,
                        .kernels = &s->kernels,
                        .pool = s->pool,
                        .weights = s->weights,
                        .n_seq = N_SEQ,
                        .n_tokens = s->n_tokens,
                        .fetch = fetch,
                        .progress = progress,
                        .context = s,
                        .seed = 3};
    for (int i = 0; i < NB_N_LINEARS; i++)
        job.out[i] = &s->mat[i];
    return job;
}

static nb_autoround_options options_of(int64_t iters)
{
    return (nb_autoround_options){.iters = iters,
                                  .batch = 4,
                                  .len = 512,
                                  .rate = 1 / (double)iters,
                                  .range_rate = 1 / (double)iters};
}

/* The mean squared error of the block with what the matrices stand for. */
static double stored_loss(scene *s)
{
    nb_err err;
    nb_block_train t;
    nb_block_weights w = s->weights;
    float *values[NB_N_LINEARS];
    for (int i = 0; i < NB_N_LINEARS; i++) {
        const nb_mat *m = &s->mat[i];
        values[i] = malloc((size_t)(m->n_rows * m->n_cols) * sizeof(float));
        for (int64_t r = 0; r < m->n_rows; r++)
            m->fmt->decode_row(m, r, values[i] + r * m->n_cols);
        w.linear[i] = values[i];
    }
    must(nb_block_train_init(&t, &s->config, &s->rope, &s->kernels, s->pool, 1, LEN, false, &err),
         &err);
    double loss = 0;
    int64_t n = 0;
    for (int64_t seq = 0; seq < N_SEQ; seq++) {
        const int64_t at = seq * LEN * s->config.d_model;
        nb_block_forward(&t, &w, s->x + at, 1, s->n_tokens[seq]);
        for (int64_t i = 0; i < s->n_tokens[seq] * s->config.d_model; i++, n++)
            loss +=
                ((double)t.y[i] - (double)s->y[at + i]) * ((double)t.y[i] - (double)s->y[at + i]);
    }
    nb_block_train_free(&t);
    for (int i = 0; i < NB_N_LINEARS; i++)
        free(values[i]);
    return loss / (double)n;
}

/* Of many sequences some decide between results, evenly apart, and what is told is their loss: here
 * each of six stands for itself fifty times. Tuning looks at all once, at a batch a step, and at
 * the judges twice at most. */
static nb_status fetch_folded(void *context, int64_t seq, int64_t n, float *x, float *y,
                              nb_err *err)
{
    ((scene *)context)->n_fetched++;
    return fetch(context, seq % N_SEQ, n, x, y, err);
}

static void some_of_many_sequences_decide(void **state)
{
    (void)state;
    enum { MANY = 50 * N_SEQ, JUDGES = 128, ITERS = 40 };
    scene s;
    nb_err err;
    nb_block_result result;
    int64_t n_tokens[MANY];
    scene_open(&s, &nb_format_int3, false, 1, NB_ISA_ALL);
    nb_block_job job = job_of(&s);
    job.n_seq = MANY;
    job.fetch = fetch_folded;
    job.n_tokens = n_tokens;
    for (int i = 0; i < MANY; i++)
        n_tokens[i] = LEN;
    const nb_autoround_options o = options_of(ITERS);
    must(nb_autoround(&job, &o, &result, &err), &err);
    assert_true(s.n_fetched >= MANY + JUDGES + (ITERS + 1) * o.batch);
    assert_true(s.n_fetched <= MANY + 3 * JUDGES + (ITERS + 1) * o.batch + o.batch);
    /* 128 of 300 are not each of the six equally often, but nearly. */
    assert_true(fabs(stored_loss(&s) / result.loss_after - 1) < 0.05);
    assert_true(result.loss_after < 0.7 * result.loss_before);
    scene_close(&s);
}

/* Formats by the kind of grid: with scales alone, with zero points, with minimums, with levels that
 * are not evenly spaced, with super-blocks. */
static const struct {
    const char *format;
    bool zeros;
    double at_most; /* of the loss of rounding to nearest */
} learned[] = {
    {"int2", false, 0.6}, {"int3", false, 0.7},   {"int4", false, 0.8},
    {"int4", true, 0.8},  {"int2", true, 0.6},    {"q4_0", false, 0.7},
    {"q4_1", false, 0.7}, {"iq4_nl", false, 0.8}, {"q4_k", false, 0.5},
};
enum { N_LEARNED = sizeof learned / sizeof *learned };

/* The error falls well below that of rounding to nearest, and the numbers told are those of the
 * bytes that were stored (up to the error of a cast: sums of losses are in binary64). */
static void the_block_comes_nearer(void **state)
{
    (void)state;
    for (int i = 0; i < N_LEARNED; i++) {
        const nb_format *fmt = nb_format_by_name(learned[i].format);
        if (fmt == NULL || fmt->grid == NULL)
            continue;
        scene s;
        nb_err err;
        nb_block_result result;
        scene_open(&s, fmt, learned[i].zeros, 1, NB_ISA_ALL);
        const nb_block_job job = job_of(&s);
        const nb_autoround_options o = options_of(fmt->block_len > 32 ? 20 : 60);
        must(nb_autoround(&job, &o, &result, &err), &err);
        const double stored = stored_loss(&s);
        printf("%-7s%s %.3e -> %.3e, step %lld\n", fmt->name, learned[i].zeros ? " asym" : "",
               result.loss_before, result.loss_after, (long long)result.best_step);
        assert_true(result.loss_before > 0 && result.best_step > 0);
        assert_true(fabs(stored - result.loss_after) <= 1e-6 * stored);
        if (!(result.loss_after <= learned[i].at_most * result.loss_before))
            fail_msg("%s: %g of %g", fmt->name, result.loss_after, result.loss_before);
        scene_close(&s);
    }
}

/* ---- replay ---- */

static json_t *numbers(const float *x, int64_t n)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(list, json_real((double)x[i]));
    return list;
}

static json_t *stored_numbers(const scene *s, bool scales)
{
    json_t *list = json_array();
    for (int i = 0; i < NB_N_LINEARS; i++) {
        const nb_mat *m = &s->mat[i];
        float *x = malloc((size_t)(m->n_rows * m->n_cols) * sizeof *x);
        for (int64_t r = 0; r < m->n_rows; r++)
            m->fmt->decode_row(m, r, x + r * m->n_cols);
        for (int64_t g = 0; scales && g < m->n_rows * nb_mat_n_groups(m); g++)
            x[g] = nb_float_get(m->scales, m->scale_type, g);
        json_array_append_new(
            list, numbers(x, scales ? m->n_rows * nb_mat_n_groups(m) : m->n_rows * m->n_cols));
        free(x);
    }
    return list;
}

/* Gradients of half the square of the block's outputs. */
static json_t *gradients(scene *s)
{
    nb_err err;
    nb_block_train t;
    nb_block_grads grads = {0};
    json_t *list = json_array();
    for (int i = 0; i < NB_N_LINEARS; i++)
        grads.linear[i] = calloc((size_t)(s->mat[i].n_rows * s->mat[i].n_cols), sizeof(float));
    must(nb_block_train_init(&t, &s->config, &s->rope, &s->kernels, s->pool, N_SEQ, LEN, false,
                             &err),
         &err);
    nb_block_forward(&t, &s->weights, s->x, N_SEQ, LEN);
    nb_block_backward(&t, &s->weights, s->x, N_SEQ, LEN, &grads);
    nb_block_train_free(&t);
    for (int i = 0; i < NB_N_LINEARS; i++) {
        json_array_append_new(list, numbers(grads.linear[i], s->mat[i].n_rows * s->mat[i].n_cols));
        free(grads.linear[i]);
    }
    return list;
}

static json_t *inputs(const scene *s)
{
    const nb_config *c = &s->config;
    json_t *weights = json_array();
    for (int i = 0; i < NB_N_LINEARS; i++)
        json_array_append_new(weights, numbers(s->owned[i], s->mat[i].n_rows * s->mat[i].n_cols));
    const int64_t n = N_SEQ * LEN * c->d_model;
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:o, s:o, s:o, s:o}",
                     "d_model", (int)c->d_model, "d_ff", (int)c->d_ff, "n_heads", (int)c->n_heads,
                     "n_kv_heads", (int)c->n_kv_heads, "head_dim", (int)c->head_dim, "n_seq", N_SEQ,
                     "len", LEN, "group", GROUP, "theta", 100, "eps", (double)c->rms_eps, "norm",
                     numbers(s->gain, c->d_model), "weights", weights, "x", numbers(s->x, n), "y",
                     numbers(s->y, n));
}

/* With every sequence in every batch and few steps, what happens can be done again by others:
 * scripts/oracle_autoround.py does, from the file that NIBBLE_ORACLE names. */
static void a_replay_is_written(void **state)
{
    (void)state;
    const char *path = getenv("NIBBLE_ORACLE");
    scene s;
    nb_err err;
    nb_block_result result;
    scene_open(&s, &nb_format_int3, false, 1, NB_ISA_ALL);
    const nb_block_job job = job_of(&s);
    nb_autoround_options o = {.iters = 1, .batch = N_SEQ, .len = 512, .binary32 = true};
    must(nb_autoround(&job, &o, &result, &err), &err);
    json_t *scales = stored_numbers(&s, true);
    o.iters = 3;
    o.rate = o.range_rate = 0.03;
    must(nb_autoround(&job, &o, &result, &err), &err);
    assert_true(s.share[0] == 1 && s.share[1] < 1 && s.share[3] < 1);
    json_t *share = json_array();
    for (int i = 0; i <= o.iters; i++)
        json_array_append_new(share, json_real(s.share[i]));
    json_t *all =
        json_pack("{s:o, s:o, s:o, s:o, s:o, s:f, s:i, s:i}", "in", inputs(&s), "scales", scales,
                  "share", share, "values", stored_numbers(&s, false), "grads", gradients(&s),
                  "rate", o.rate, "iters", (int)o.iters, "best_step", (int)result.best_step);
    assert_non_null(all);
    if (path != NULL)
        assert_int_equal(json_dump_file(all, path, JSON_REAL_PRECISION(9)), 0);
    json_decref(all);
    scene_close(&s);
}

/* ---- bits ---- */

static void run_ways(const nb_format *fmt, bool zeros, int threads, unsigned isa, int64_t memory,
                     scene *s, nb_block_result *result)
{
    nb_err err;
    scene_open(s, fmt, zeros, threads, isa);
    s->n_tokens[2] = 7; /* not all of one length */
    s->n_tokens[5] = 1;
    nb_block_job job = job_of(s);
    job.memory = memory;
    const nb_autoround_options o = options_of(6);
    must(nb_autoround(&job, &o, result, &err), &err);
}

static int64_t least_memory(void)
{
    scene s;
    nb_err err;
    nb_block_result result;
    scene_open(&s, &nb_format_int4, true, 3, NB_ISA_ALL);
    nb_block_job job = job_of(&s);
    const nb_autoround_options o = options_of(1);
    int64_t memory = 1 << 12;
    const int64_t step = 1 << 12;
    for (job.memory = memory; nb_autoround(&job, &o, &result, &err) == NB_LIMIT; job.memory += step)
        memory = job.memory + step;
    scene_close(&s);
    return memory;
}

static void bits_depend_on_the_problem_only(void **state)
{
    (void)state;
    static const unsigned isas[] = {NB_ISA_ALL, NB_ISA_SCALAR, NB_ISA_AVX2, NB_ISA_ALL};
    static const int threads[] = {1, 2, 3, 3};
    scene want, got;
    nb_block_result a, b;
    run_ways(&nb_format_int4, true, 2, NB_ISA_ALL, 0, &want, &a);
    for (int way = 0; way < 4; way++) {
        run_ways(&nb_format_int4, true, threads[way], isas[way], way == 3 ? least_memory() : 0,
                 &got, &b);
        assert_true(a.loss_before == b.loss_before && a.loss_after == b.loss_after);
        for (int i = 0; i < NB_N_LINEARS; i++) {
            const nb_mat *m = &want.mat[i], *n = &got.mat[i];
            const size_t n_groups = (size_t)(m->n_rows * nb_mat_n_groups(m));
            assert_memory_equal(m->codes, n->codes, (size_t)(m->n_rows * m->row_bytes));
            assert_memory_equal(m->scales, n->scales, 2 * n_groups);
            assert_memory_equal(m->zeros, n->zeros, n_groups);
        }
        scene_close(&got);
    }
    scene_close(&want);
}

/* ---- poor data, and what goes wrong ---- */

static void poor_data_ends_well(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        scene s;
        nb_err err;
        nb_block_result result;
        scene_open(&s, &nb_format_int4, false, 1, NB_ISA_ALL);
        const size_t bytes = (size_t)(N_SEQ * LEN * s.config.d_model) * sizeof(float);
        nb_block_job job = job_of(&s);
        if (kind == 0) { /* nothing comes in, and nothing should come out */
            memset(s.x, 0, bytes);
            memset(s.y, 0, bytes);
        } else if (kind == 1) { /* one token in all */
            job.n_seq = 1;
            s.n_tokens[0] = 1;
        } else if (kind == 2) { /* a model whose outputs were not finite */
            s.y[5] = NAN;
        } else { /* weights that are all zero */
            for (int i = 0; i < NB_N_LINEARS; i++)
                memset(s.owned[i], 0, (size_t)(s.mat[i].n_rows * s.mat[i].n_cols) * sizeof(float));
        }
        const nb_autoround_options o = options_of(5);
        must(nb_autoround(&job, &o, &result, &err), &err);
        if (kind == 0)
            assert_true(result.loss_before == 0 && result.best_step == 0);
        if (kind == 1)
            assert_true(result.loss_after <= result.loss_before);
        if (kind == 2)
            assert_true(isnan(result.loss_after) && result.best_step == 0);
        if (kind != 3) /* there are codes, whatever the data */
            assert_true(((uint8_t *)s.mat[0].codes)[0] != 0 || ((uint8_t *)s.mat[0].codes)[1] != 0);
        scene_close(&s);
    }
}

/* With a rate of 0 nothing moves: what is stored is rounding to nearest. */
static void nothing_learned_is_rounding_to_nearest(void **state)
{
    (void)state;
    scene s;
    nb_err err;
    nb_block_result result;
    scene_open(&s, &nb_format_int4, false, 2, NB_ISA_ALL);
    const nb_block_job job = job_of(&s);
    const nb_autoround_options o = {.iters = 3, .batch = 2, .len = 512};
    must(nb_autoround(&job, &o, &result, &err), &err);
    assert_true(result.best_step == 0 && result.loss_after == result.loss_before);
    for (int i = 0; i < NB_N_LINEARS; i++) {
        nb_grid grid;
        must(nb_grid_of(&grid, &s.mat[i], &err), &err);
        float row[64];
        for (int64_t r = 0; r < s.mat[i].n_rows; r++) {
            s.mat[i].fmt->decode_row(&s.mat[i], r, row);
            for (int64_t c = 0; c < s.mat[i].n_cols; c++) {
                nb_grid_group g;
                nb_grid_group_at(&grid, &s.mat[i], r, c, &g);
                const float w = s.owned[i][r * s.mat[i].n_cols + c];
                assert_true(row[c] == nb_grid_value(&grid, &g, nb_grid_nearest(&grid, &g, w)));
            }
        }
    }
    scene_close(&s);
}

/* Codes of another method are taken as they are, however far from the nearest. */
static void codes_of_others_are_a_start(void **state)
{
    (void)state;
    for (int i = 0; i < N_LEARNED; i++) {
        enum { ROWS = 3, COLS = 256 };
        const nb_format *fmt = nb_format_by_name(learned[i].format);
        nb_mat m;
        nb_err err;
        nb_pool *pool;
        nb_rounding r;
        float w[ROWS * COLS], before[COLS];
        uint8_t code[COLS];
        for (int j = 0; j < ROWS * COLS; j++)
            w[j] = uniform(60, j);
        mat_open(&m, fmt, learned[i].zeros, ROWS, COLS);
        must(nb_pool_open(&pool, 2, &err), &err);
        must(nb_rounding_init(&r, &m, w, NULL, pool, &err), &err);
        for (int row = 0; row < ROWS; row++) {
            for (int j = 0; j < COLS; j++) /* anything at all */
                code[j] = (uint8_t)(nb_rng_uniform(9, (uint64_t)row, (uint64_t)j) *
                                    (double)r.grid.n_levels);
            nb_grid_put(&r.grid, &m, row, 0, code, COLS);
        }
        nb_rounding_free(&r);
        const size_t bytes = (size_t)(ROWS * m.row_bytes);
        uint8_t *kept = malloc(bytes);
        memcpy(kept, m.codes, bytes);
        must(nb_rounding_resume(&r, &m, w, pool, &err), &err);
        for (int row = 0; row < ROWS; row++) {
            fmt->decode_row(&m, row, before);
            assert_memory_equal(before, r.value + row * COLS, sizeof before);
        }
        nb_rounding_write(&r, pool);
        assert_memory_equal(m.codes, kept, bytes);
        /* and each has somewhere to go from there: a step of one half against a slope of 1 */
        for (int j = 0; j < ROWS * COLS; j++)
            r.grad[j] = 1;
        nb_rounding_step(&r, pool, 0.5f, 0);
        double fell = 0;
        for (int row = 0; row < ROWS; row++) {
            fmt->decode_row(&m, row, before);
            for (int j = 0; j < COLS; j++)
                fell += (double)before[j] - (double)r.value[row * COLS + j];
        }
        assert_true(fell > 0);
        nb_rounding_free(&r);
        nb_pool_close(pool);
        free(kept);
        mat_close(&m);
    }
}

/* Tuning goes on from what it left, and is never worse for it. */
static void tuning_can_go_on(void **state)
{
    (void)state;
    scene s;
    nb_err err;
    nb_block_result first, second;
    scene_open(&s, &nb_format_int4, true, 2, NB_ISA_ALL);
    nb_block_job job = job_of(&s);
    const nb_autoround_options o = options_of(8);
    must(nb_autoround(&job, &o, &first, &err), &err);
    job.resume = true;
    must(nb_autoround(&job, &o, &second, &err), &err);
    assert_true(second.loss_before == first.loss_after);
    assert_true(second.loss_after <= second.loss_before);
    scene_close(&s);
}

static void failures_are_told_and_leave_nothing(void **state)
{
    (void)state;
    scene s;
    nb_err err;
    nb_block_result result;
    scene_open(&s, &nb_format_int4, false, 1, NB_ISA_ALL);
    nb_block_job job = job_of(&s);
    const nb_autoround_options o = options_of(3);
    const int64_t live = nb_alloc_live();
    s.stop_at = 1;
    assert_int_equal(nb_autoround(&job, &o, &result, &err), NB_INTERRUPTED);
    s.stop_at = -1;
    for (int64_t i = 0; i < 30; i += 5) {
        s.fail_at = i;
        const nb_status status = nb_autoround(&job, &o, &result, &err);
        assert_int_equal(status, i < 26 ? NB_IO : NB_OK);
        assert_int_equal(nb_alloc_live(), live);
    }
    s.fail_at = -1;
    job.memory = 1 << 10;
    assert_int_equal(nb_autoround(&job, &o, &result, &err), NB_LIMIT);
    assert_non_null(strstr(err.text, "tokens"));
    job.memory = 0;
    int64_t n = 0;
    nb_status status;
    do {
        nb_alloc_fail_at(++n);
        status = nb_autoround(&job, &o, &result, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
        assert_true(status == NB_OK || status == NB_MEMORY);
    } while (status != NB_OK);
    assert_true(n > NB_N_LINEARS);
    job.n_seq = 0;
    assert_int_equal(nb_autoround(&job, &o, &result, &err), NB_USAGE);
    scene_close(&s);
}

static void options_are_read(void **state)
{
    (void)state;
    nb_method m;
    nb_err err;
    nb_autoround_options o;
    must(nb_method_parse(&m, "autoround", &err), &err);
    must(nb_autoround_options_parse(&o, &m, false, &err), &err);
    assert_true(o.iters == 200 && o.batch == 8 && o.len == 512 && o.rate == 1.0 / 200);
    assert_false(o.binary32);
    must(nb_method_parse(&m, "autoround:iters=50,batch=2,len=64,range-lr=0,amp=0", &err), &err);
    must(nb_autoround_options_parse(&o, &m, false, &err), &err);
    assert_true(o.binary32);
    assert_true(o.iters == 50 && o.batch == 2 && o.len == 64 && o.rate == 0.02);
    assert_true(o.range_rate == 0);
    static const char *const bad[] = {"autoround:iters=0", "autoround:lr=2", "autoround:x",
                                      "autoround:batch=4000"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(nb_method_parse(&m, bad[i], &err), NB_USAGE);
    int64_t least, most;
    const nb_config c = {.d_model = 64, .d_ff = 128, .n_heads = 1, .n_kv_heads = 1, .head_dim = 64};
    nb_autoround_bytes(&c, &o, 2, &least, &most);
    assert_true(least > 0 && most > least);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_block_comes_nearer),
        cmocka_unit_test(some_of_many_sequences_decide),
        cmocka_unit_test(a_replay_is_written),
        cmocka_unit_test(bits_depend_on_the_problem_only),
        cmocka_unit_test(poor_data_ends_well),
        cmocka_unit_test(nothing_learned_is_rounding_to_nearest),
        cmocka_unit_test(codes_of_others_are_a_start),
        cmocka_unit_test(tuning_can_go_on),
        cmocka_unit_test(failures_are_told_and_leave_nothing),
        cmocka_unit_test(options_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
