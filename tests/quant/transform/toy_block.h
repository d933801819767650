/* A small decoder block in plain loops of doubles, for tests of transforms: its outputs, the
 * statistics of its inputs at all points, and a transform job that changes it. Positions are left
 * out: no transform touches what depends on them. */
#ifndef NB_TESTS_TOY_BLOCK_H
#define NB_TESTS_TOY_BLOCK_H

#include "quant/inputs/stats.h"
#include "quant/transform/transform.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    TOY_D = 64,
    TOY_HEADS = 4,
    TOY_HEAD_DIM = 16,
    TOY_FF = 96,
    TOY_TOKENS = 160,
    TOY_MAX = TOY_FF
};

typedef struct {
    nb_config config;
    float *weight[NB_N_LINEARS], *bias[NB_N_LINEARS], gain[2][TOY_D];
    float *x; /* [TOY_TOKENS][TOY_D]: what the block reads */
    nb_input_stats stats[NB_N_POINTS];
    nb_weight to[NB_N_LINEARS];
    nb_method method;
    nb_transform_job job;
} toy_block;

/* A vector times the rows of a linear, plus its bias. */
static inline void toy_linear(const toy_block *b, nb_linear_id id, const double *x, double *y)
{
    const int64_t n = b->to[id].n_cols;
    for (int64_t r = 0; r < b->to[id].n_rows; r++) {
        y[r] = b->bias[id] == NULL ? 0 : (double)b->bias[id][r];
        for (int64_t j = 0; j < n; j++)
            y[r] += (double)b->weight[id][r * n + j] * x[j];
    }
}

static inline void toy_norm(const double *x, const float *gain, double *y)
{
    double square = 1e-6;
    for (int j = 0; j < TOY_D; j++)
        square += x[j] * x[j] / TOY_D;
    for (int j = 0; j < TOY_D; j++)
        y[j] = x[j] / sqrt(square) * (double)gain[j];
}

/* out [TOY_TOKENS][TOY_D]; at[p] [TOY_TOKENS][n_cols of the point], as binary32; NULL: not told. */
static inline void toy_run(const toy_block *b, const float *x, double *out, float *const *at)
{
    const nb_config *c = &b->config;
    const int64_t kv = c->n_kv_heads * TOY_HEAD_DIM, per = TOY_HEADS / c->n_kv_heads;
    double *k = malloc(sizeof *k * TOY_TOKENS * (size_t)kv);
    double *v = malloc(sizeof *v * TOY_TOKENS * (size_t)kv);
    for (int64_t t = 0; t < TOY_TOKENS; t++) {
        double h[TOY_MAX], q[TOY_MAX], mixed[TOY_MAX] = {0}, y[TOY_MAX], res[TOY_D];
        double gate[TOY_FF], up[TOY_FF];
        for (int j = 0; j < TOY_D; j++)
            res[j] = (double)x[t * TOY_D + j];
        toy_norm(res, b->gain[0], h);
        for (int j = 0; at != NULL && j < TOY_D; j++)
            at[NB_AT_ATTN][t * TOY_D + j] = (float)h[j];
        toy_linear(b, NB_LINEAR_Q, h, q);
        toy_linear(b, NB_LINEAR_K, h, k + t * kv);
        toy_linear(b, NB_LINEAR_V, h, v + t * kv);
        for (int64_t head = 0; head < TOY_HEADS; head++) {
            const int64_t from = head / per * TOY_HEAD_DIM;
            double p[TOY_TOKENS], sum = 0;
            for (int64_t u = 0; u <= t; u++) {
                double score = 0;
                for (int64_t d = 0; d < TOY_HEAD_DIM; d++)
                    score += q[head * TOY_HEAD_DIM + d] * k[u * kv + from + d];
                p[u] = exp(score / 4);
                sum += p[u];
            }
            for (int64_t u = 0; u <= t; u++) {
                for (int64_t d = 0; d < TOY_HEAD_DIM; d++)
                    mixed[head * TOY_HEAD_DIM + d] += p[u] / sum * v[u * kv + from + d];
            }
        }
        for (int j = 0; at != NULL && j < TOY_D; j++)
            at[NB_AT_O][t * TOY_D + j] = (float)mixed[j];
        toy_linear(b, NB_LINEAR_O, mixed, y);
        for (int j = 0; j < TOY_D; j++)
            res[j] += y[j];
        toy_norm(res, b->gain[1], h);
        for (int j = 0; at != NULL && j < TOY_D; j++)
            at[NB_AT_FFN][t * TOY_D + j] = (float)h[j];
        toy_linear(b, NB_LINEAR_GATE, h, gate);
        toy_linear(b, NB_LINEAR_UP, h, up);
        for (int j = 0; j < TOY_FF; j++)
            gate[j] = gate[j] / (1 + exp(-gate[j])) * up[j];
        for (int j = 0; at != NULL && j < TOY_FF; j++)
            at[NB_AT_DOWN][t * TOY_FF + j] = (float)gate[j];
        toy_linear(b, NB_LINEAR_DOWN, gate, y);
        for (int j = 0; j < TOY_D; j++)
            out[t * TOY_D + j] = res[j] + y[j];
    }
    free(k);
    free(v);
}

/* What the input statistics of a block are made of. `other`: the inputs of the model in full
 * precision, for NB_STAT_CROSS. */
static inline void toy_gather(const toy_block *b, nb_input_stats stats[NB_N_POINTS], unsigned needs,
                              const float *x, const float *other)
{
    nb_err err = {0};
    double *out = malloc(sizeof *out * TOY_TOKENS * TOY_D);
    float *at[NB_N_POINTS], *at0[NB_N_POINTS];
    for (int p = 0; p < NB_N_POINTS; p++) {
        at[p] = malloc(sizeof *at[p] * TOY_TOKENS * TOY_MAX);
        at0[p] = malloc(sizeof *at0[p] * TOY_TOKENS * TOY_MAX);
    }
    toy_run(b, x, out, at);
    toy_run(b, other, out, at0);
    for (int p = 0; p < NB_N_POINTS; p++) {
        const int64_t n = nb_point_n_cols(&b->config, (nb_point)p);
        const int64_t held = (needs & NB_STAT_HELD_OUT) != 0 ? TOY_TOKENS - 128 : 0;
        assert_int_equal(nb_input_stats_init(&stats[p], n, needs, TOY_TOKENS, &err), NB_OK);
        assert_int_equal(nb_input_stats_add(&stats[p], b->job.la, at[p], at0[p], NULL,
                                            TOY_TOKENS - held, false, &err),
                         NB_OK);
        if (held > 0)
            assert_int_equal(
                nb_input_stats_add(&stats[p], b->job.la, at[p] + (TOY_TOKENS - held) * n,
                                   at0[p] + (TOY_TOKENS - held) * n, NULL, held, true, &err),
                NB_OK);
        nb_input_stats_finish(&stats[p]);
        free(at[p]);
        free(at0[p]);
    }
    free(out);
}

typedef struct {
    uint64_t seed;
    int n_kv_heads; /* 0: 2 */
    bool biases;
    nb_float_type gain_type;
    const char *method;   /* NULL: rtn */
    const nb_format *fmt; /* NULL: int4 */
    int64_t group;        /* 0: 32; of affine formats */
    bool symmetric;
    int act_bits;
    unsigned needs;
    int outlier; /* channel whose gains and rows of v and up are 30 times the others; 0: none */
    bool empty;  /* no tokens were seen */
} toy_options;

static inline void toy_fill(float *w, int64_t n, float size, uint64_t seed)
{
    check_fill(w, n, CHECK_RANDOM, seed);
    for (int64_t i = 0; i < n; i++)
        w[i] *= size;
}

static inline void toy_open(toy_block *b, nb_algebra *la, const toy_options *o)
{
    nb_err err = {0};
    *b = (toy_block){.config = {.n_heads = TOY_HEADS,
                                .n_kv_heads = o->n_kv_heads == 0 ? 2 : o->n_kv_heads,
                                .head_dim = TOY_HEAD_DIM,
                                .d_model = TOY_D,
                                .d_ff = TOY_FF}};
    b->job = (nb_transform_job){.config = &b->config,
                                .la = la,
                                .method = &b->method,
                                .gain_type = o->gain_type,
                                .options = ""};
    assert_int_equal(nb_method_parse(&b->method, o->method == NULL ? "rtn" : o->method, &err),
                     NB_OK);
    for (int p = 0; p < NB_N_POINTS; p++) {
        int n;
        const int first = (int)nb_point_linears((nb_point)p, &n);
        for (int id = first; id < first + n; id++) {
            nb_weight *to = &b->to[id];
            *to = (nb_weight){.name = nb_linear_name((nb_linear_id)id),
                              .n_rows = nb_linear_n_rows(&b->config, (nb_linear_id)id),
                              .n_cols = nb_point_n_cols(&b->config, (nb_point)p),
                              .fmt = o->fmt == NULL ? &nb_format_int4 : o->fmt,
                              .symmetric = o->symmetric,
                              .scale_type = NB_BF16,
                              .act = {.bits = o->act_bits, .per_token = true}};
            to->group_size = !to->fmt->affine ? 0 : o->group == 0 ? 32 : o->group;
            if (o->group == -1)
                to->group_size = to->n_cols;
            const int64_t size = to->n_rows * to->n_cols;
            b->weight[id] = malloc(sizeof(float) * (size_t)size);
            toy_fill(b->weight[id], size, 0.25f, o->seed * 100 + (uint64_t)id);
            if (o->biases) {
                b->bias[id] = malloc(sizeof(float) * (size_t)to->n_rows);
                toy_fill(b->bias[id], to->n_rows, 0.5f, o->seed * 100 + 20 + (uint64_t)id);
            }
            b->job.weight[id] = b->weight[id];
            b->job.bias[id] = b->bias[id];
            b->job.to[id] = to;
        }
    }
    for (int i = 0; i < 2; i++) {
        toy_fill(b->gain[i], TOY_D, 1, o->seed * 100 + 40 + (uint64_t)i);
        for (int j = 0; j < TOY_D; j++)
            b->gain[i][j] = b->gain[i][j] < 0 ? b->gain[i][j] - 0.1f : b->gain[i][j] + 0.1f;
        b->gain[i][o->outlier] *= o->outlier > 0 ? 30 : 1;
        b->job.gain[i] = b->gain[i];
    }
    for (int j = 0; o->outlier > 0 && j < TOY_D; j++) {
        b->weight[NB_LINEAR_V][o->outlier % b->to[NB_LINEAR_V].n_rows * TOY_D + j] *= 30;
        b->weight[NB_LINEAR_UP][o->outlier * TOY_D + j] *= 30;
    }
    b->x = malloc(sizeof(float) * TOY_TOKENS * TOY_D);
    toy_fill(b->x, TOY_TOKENS * TOY_D, 1, o->seed * 100 + 50);
    if (!o->empty)
        toy_gather(b, b->stats, o->needs, b->x, b->x);
    for (int p = 0; p < NB_N_POINTS; p++) {
        if (o->empty)
            assert_int_equal(nb_input_stats_init(&b->stats[p],
                                                 nb_point_n_cols(&b->config, (nb_point)p), o->needs,
                                                 1, &err),
                             NB_OK);
        b->job.stats[p] = &b->stats[p];
    }
}

static inline void toy_close(toy_block *b)
{
    for (int id = 0; id < NB_N_LINEARS; id++) {
        free(b->weight[id]);
        free(b->bias[id]);
    }
    for (int p = 0; p < NB_N_POINTS; p++)
        nb_input_stats_free(&b->stats[p]);
    free(b->x);
    *b = (toy_block){0};
}

/* Largest difference between outputs, over the largest output. */
static inline double toy_distance(const double *a, const double *b)
{
    double most = 0, size = 0;
    for (int i = 0; i < TOY_TOKENS * TOY_D; i++) {
        most = fabs(a[i] - b[i]) > most ? fabs(a[i] - b[i]) : most;
        size = fabs(a[i]) > size ? fabs(a[i]) : size;
    }
    return most / size;
}

/* What a move would make of s. */
static inline void toy_settle(const toy_block *b, nb_point point, float *s)
{
    nb_err err = {0};
    nb_transform_bounds bounds;
    assert_int_equal(nb_transform_bounds_find(&bounds, &b->job, point, &err), NB_OK);
    nb_transform_settle(&b->job, &bounds, s);
    nb_transform_bounds_free(&bounds);
}

#endif
