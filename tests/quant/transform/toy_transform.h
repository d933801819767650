/* A toy block under a transform: what the tests of all transforms that try out scales ask of them,
 * and the printing of cases for scripts/oracle_awq.py. */
#ifndef NB_TESTS_TOY_TRANSFORM_H
#define NB_TESTS_TOY_TRANSFORM_H

#include "support/golden.h"

#include "kernel/machines.h"
#include "quant/weight/room.h"
#include "toy_block.h"

static nb_err err;

static inline nb_algebra algebra(int threads, int table)
{
    return (nb_algebra){.kernels = &tables[table], .pool = pools[threads - 1]};
}

static inline nb_transform_result toy_apply(toy_block *b, const nb_transform *transform,
                                            const char *options)
{
    nb_transform_result r;
    b->job.options = options;
    assert_int_equal(nb_transform_apply(transform, &b->job, &r, &err), NB_OK);
    return r;
}

/* As if no tokens had come by. */
static inline void toy_forget(toy_block *b, nb_point point, unsigned needs)
{
    nb_input_stats_free(&b->stats[point]);
    assert_int_equal(
        nb_input_stats_init(&b->stats[point], nb_point_n_cols(&b->config, point), needs, 1, &err),
        NB_OK);
}

static inline void toy_same(const toy_block *a, const toy_block *b)
{
    for (int id = 0; id < NB_N_LINEARS; id++)
        assert_memory_equal(a->weight[id], b->weight[id],
                            sizeof(float) * (size_t)(a->to[id].n_rows * a->to[id].n_cols));
    assert_memory_equal(a->gain, b->gain, sizeof a->gain);
}

static inline void toy_finite(const toy_block *b)
{
    for (int id = 0; id < NB_N_LINEARS; id++) {
        for (int64_t i = 0; i < b->to[id].n_rows * b->to[id].n_cols; i++)
            assert_true(isfinite(b->weight[id][i]));
    }
    for (int j = 0; j < TOY_D; j++)
        assert_true(isfinite(b->gain[0][j]) && isfinite(b->gain[1][j]));
}

/* Blocks with which little can be done. */
typedef enum {
    TOY_EMPTY,       /* no tokens: toy_options.empty */
    TOY_DEAD,        /* 20 channels without gain, and without a row that feeds them */
    TOY_ONE_CHANNEL, /* and next to nothing else */
    TOY_NO_COLUMNS,  /* 40 columns without weights */
    TOY_NO_WEIGHTS,
    TOY_N_SPOILT
} toy_spoilt;

static inline void toy_spoil(toy_block *b, toy_spoilt kind, unsigned needs)
{
    if (kind == TOY_EMPTY)
        return;
    for (int j = 0; kind == TOY_DEAD && j < 20; j++)
        b->gain[0][j] = b->gain[1][j] = 0;
    for (int j = 1; kind == TOY_ONE_CHANNEL && j < TOY_D; j++)
        b->gain[0][j] = b->gain[1][j] = 1e-12f;
    if (kind == TOY_DEAD) {
        memset(b->weight[NB_LINEAR_V], 0, sizeof(float) * 20 * TOY_D);
        memset(b->weight[NB_LINEAR_UP], 0, sizeof(float) * 20 * TOY_D);
    }
    for (int id = 0; id < NB_N_LINEARS && kind >= TOY_NO_COLUMNS; id++) {
        const int64_t n = b->to[id].n_cols;
        for (int64_t r = 0; r < b->to[id].n_rows; r++)
            memset(b->weight[id] + r * n, 0,
                   (kind == TOY_NO_COLUMNS ? 40 : (size_t)n) * sizeof(float));
    }
    for (int p = 0; p < NB_N_POINTS; p++)
        nb_input_stats_free(&b->stats[p]);
    toy_gather(b, b->stats, needs, b->x, b->x);
}

/* The same block and losses on all kernel tables and any number of threads. */
static inline void toy_on_every_machine(const nb_transform *transform, const toy_options *o,
                                        const char *options)
{
    nb_algebra first_la = algebra(1, 0);
    toy_block first;
    toy_open(&first, &first_la, o);
    const nb_transform_result want = toy_apply(&first, transform, options);
    for (int threads = 1; threads <= 3; threads++) {
        for (int table = 0; table < n_tables; table++) {
            nb_algebra la = algebra(threads, table);
            toy_block b;
            toy_open(&b, &la, o);
            const nb_transform_result r = toy_apply(&b, transform, options);
            toy_same(&b, &first);
            assert_memory_equal(r.after, want.after, sizeof r.after);
            toy_close(&b);
            nb_algebra_free(&la);
        }
    }
    toy_close(&first);
    nb_algebra_free(&first_la);
}

/* Every third allocation fails: nothing leaks. */
static inline void toy_without_memory(const nb_transform *transform, const toy_options *o,
                                      const char *options)
{
    nb_algebra la = algebra(1, n_tables - 1);
    int n = 0;
    for (nb_status status = NB_MEMORY; status != NB_OK; n += 3) {
        toy_block b;
        toy_open(&b, &la, o);
        b.job.options = options;
        nb_algebra_free(&la); /* so that its scratch is asked for again */
        const int64_t live = nb_alloc_live();
        nb_transform_result r;
        nb_alloc_fail_at(n + 1);
        status = nb_transform_apply(transform, &b.job, &r, &err);
        nb_alloc_fail_at(0);
        assert_true(status == NB_OK || status == NB_MEMORY);
        nb_algebra_free(&la);
        assert_true(nb_alloc_live() <= live);
        toy_close(&b);
    }
    assert_true(n > 30);
}

/* ---- cases for scripts/oracle_awq.py ---- */

static inline void print_floats(const char *name, const float *x, int64_t n)
{
    printf(", \"%s\": [", name);
    for (int64_t i = 0; i < n; i++)
        printf("%s%.9g", i == 0 ? "" : ", ", (double)x[i]);
    printf("]");
}

/* The codes that plain rtn gives a linear. */
static inline void print_codes(const toy_block *b, int id)
{
    nb_loaded made = {0};
    const nb_weight *to = &b->to[id];
    const int64_t n = to->n_cols;
    int8_t code[TOY_MAX];
    float scale[TOY_MAX], min[TOY_MAX];
    int16_t zero[TOY_MAX];
    assert_int_equal(nb_room_for(&made, to, &err), NB_OK);
    printf(", \"codes_%d\": [", id);
    for (int64_t r = 0; r < to->n_rows; r++) {
        const nb_int_row row = {.code = code, .scale = scale, .zero = zero, .min = min};
        to->fmt->encode_row(&made.mat, r, b->weight[id] + r * n);
        to->fmt->int_row(&made.mat, r, &row);
        for (int64_t j = 0; j < n; j++)
            printf("%s%d", r + j == 0 ? "" : ", ", code[j]);
    }
    printf("]");
    nb_loaded_free(&made);
}

/* The beginning of a point's object: what was chosen, and s, from the block before and after. */
static inline void print_choice(const nb_transform *transform, const toy_block *was,
                                const toy_block *b, int p, const nb_transform_result *r)
{
    int count;
    const int first = (int)nb_point_linears((nb_point)p, &count);
    const int64_t n = was->to[first].n_cols;
    float s[TOY_MAX];
    for (int64_t j = 0; j < n; j++)
        s[j] = b->weight[first][j] / was->weight[first][j];
    printf("{\"transform\": \"%s\", \"point\": \"%s\", \"n\": %d, \"first\": %d, "
           "\"count\": %d, \"shared\": %d, \"head_dim\": %d, \"note\": \"%s\", "
           "\"before\": %.17g, \"after\": %.17g",
           transform->name, nb_point_name((nb_point)p), (int)n, first, count, p == NB_AT_O ? 2 : 1,
           TOY_HEAD_DIM, r->note[p], r->before[p], r->after[p]);
    print_floats("s", s, n);
}

#endif
