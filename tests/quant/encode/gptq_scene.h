/* What the tests of second-order encoders share: correlated inputs, weights, and room for codes. */
#ifndef NB_TESTS_GPTQ_SCENE_H
#define NB_TESTS_GPTQ_SCENE_H

#include "quant/encode/gptq_shrink.h"

#include "base/rng.h"
#include "support/golden.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 320, MAX_COLS = 288 };

typedef struct {
    nb_kernels kernels;
    nb_pool *pool;
    nb_algebra la;
    nb_input_stats stats;
    float *weight;
    nb_mat out[NB_GROUP_LINEARS];
    nb_group_job job;
    nb_method method;
} scene;

/* Near enough to normal: a sum of four uniform numbers, with variance 1. */
static inline double normal(uint64_t seed, uint64_t i)
{
    uint32_t w[4];
    nb_philox(seed, 1, i, w);
    return ((double)w[0] + w[1] + w[2] + w[3] - 0x1p33) * (1.7320508 * 0x1p-32);
}

/* Rows of x: n_hidden causes mixed, one column much louder than the others. x0 differs from x. */
static inline void make_rows(float *x, float *x0, int64_t n_rows, int64_t n, uint64_t seed)
{
    enum { HIDDEN = 24 };
    static double mix[MAX_COLS * HIDDEN];
    for (int64_t i = 0; i < n * HIDDEN; i++)
        mix[i] = normal(7, (uint64_t)i) / 5;
    for (int64_t t = 0; t < n_rows; t++) {
        double cause[HIDDEN];
        for (int i = 0; i < HIDDEN; i++)
            cause[i] = normal(seed, (uint64_t)(t * HIDDEN + i));
        for (int64_t j = 0; j < n; j++) {
            double v = 0.3 * normal(seed + 1, (uint64_t)(t * n + j));
            for (int i = 0; i < HIDDEN; i++)
                v += cause[i] * mix[j * HIDDEN + i];
            v *= j % 37 == 5 ? 20 : 1;
            x[t * n + j] = (float)v;
            x0[t * n + j] = (float)(v * 1.05 + 0.3 * normal(seed + 2, (uint64_t)(t * n + j)));
        }
    }
}

static inline void sums(scene *s, nb_sym *h, double **cross, int64_t n_tokens, uint64_t seed)
{
    nb_err err = {0};
    const int64_t n = s->stats.n_cols;
    float *x = malloc((size_t)((n_tokens + 1) * n) * sizeof *x);
    float *x0 = malloc((size_t)((n_tokens + 1) * n) * sizeof *x0);
    make_rows(x, x0, n_tokens, n, seed);
    assert_int_equal(nb_sym_init(h, n, &err), NB_OK);
    assert_int_equal(nb_sym_add_rows(&s->la, h, x, n, n_tokens, &err), NB_OK);
    assert_int_equal(NB_ALLOC(cross, n * n, &err), NB_OK);
    assert_int_equal(nb_cross_add_rows(&s->la, *cross, n, x0, x, n, n_tokens, &err), NB_OK);
    free(x);
    free(x0);
}

static inline void open_pool(scene *s, int n_threads, unsigned isa)
{
    nb_err err = {0};
    nb_kernels_init(&s->kernels, isa);
    assert_int_equal(nb_pool_open(&s->pool, n_threads, &err), NB_OK);
    s->la = (nb_algebra){.kernels = &s->kernels, .pool = s->pool};
}

static inline void close_pool(scene *s)
{
    nb_algebra_free(&s->la);
    nb_pool_close(s->pool);
}

static inline nb_mat make_mat(const char *format, int64_t n_rows, int64_t n, int64_t group,
                              bool zeros)
{
    nb_err err = {0};
    nb_mat m = {.fmt = nb_format_by_name(format), .n_rows = n_rows, .n_cols = n};
    assert_non_null(m.fmt);
    if (m.fmt->affine) {
        m.group_size = group > 0 ? group : n;
        m.scale_type = NB_BF16;
        m.row_bytes = m.fmt == &nb_format_int4 ? 4 * ((n + 7) / 8) : n;
        m.scales = calloc((size_t)(n_rows * nb_mat_n_groups(&m)), 4);
        m.zeros = zeros ? calloc((size_t)(n_rows * nb_mat_n_groups(&m)), 1) : NULL;
    } else {
        assert_int_equal(nb_format_row_bytes(m.fmt, n, &m.row_bytes, &err), NB_OK);
    }
    m.codes = calloc((size_t)n_rows, (size_t)m.row_bytes);
    return m;
}

static inline void free_mat(nb_mat *m)
{
    free(m->codes);
    free(m->scales);
    free(m->zeros);
}

/* One linear of n_rows by n. */
static inline void open_scene(scene *s, int64_t n_rows, int64_t n, int64_t n_tokens,
                              const char *format, int64_t group, bool zeros)
{
    *s = (scene){.stats = {.n_cols = n, .n_tokens = n_tokens, .n_held = n_tokens / 4}};
    open_pool(s, 2, ~0u);
    sums(s, &s->stats.h, &s->stats.cross, n_tokens, 11);
    sums(s, &s->stats.held_h, &s->stats.held_cross, n_tokens / 4, 12);
    s->weight = malloc((size_t)(n_rows * n) * sizeof(float));
    for (int64_t i = 0; i < n_rows * n; i++)
        s->weight[i] = (float)(0.05 * normal(13, (uint64_t)i));
    s->out[0] = make_mat(format, n_rows, n, group, zeros);
    s->job = (nb_group_job){.method = &s->method, .stats = &s->stats, .la = &s->la, .n = 1};
    s->job.linear[0].name = "w";
    s->job.linear[0].weight = s->weight;
    s->job.linear[0].n_rows = n_rows;
    s->job.linear[0].out = &s->out[0];
}

static inline void close_scene(scene *s)
{
    nb_sym_free(&s->stats.h);
    nb_sym_free(&s->stats.held_h);
    nb_free(s->stats.cross);
    nb_free(s->stats.held_cross);
    free(s->weight);
    free_mat(&s->out[0]);
    close_pool(s);
}

static inline nb_group_result encode(scene *s, const char *method)
{
    nb_err err = {0};
    nb_group_result result = {0};
    if (nb_method_parse(&s->method, method, &err) != NB_OK)
        fail_msg("%s", err.text);
    if (s->method.quantizer->encode_group(&s->job, &result, &err) != NB_OK)
        fail_msg("%s: %s", method, err.text);
    return result;
}

static inline void decode(const scene *s, float *q)
{
    for (int64_t r = 0; r < s->out[0].n_rows; r++)
        s->out[0].fmt->decode_row(&s->out[0], r, q + r * s->out[0].n_cols);
}

/* |w x0 - q x|^2 without what q does not change: by h, and by D = cross - h where given. */
static inline double loss(const scene *s, const nb_sym *h, const double *cross)
{
    const int64_t n = s->stats.n_cols;
    static float q[MAX_ROWS * MAX_COLS];
    decode(s, q);
    double total = 0;
    for (int64_t r = 0; r < s->out[0].n_rows; r++) {
        const float *w = s->weight + r * n;
        for (int64_t i = 0; i < n; i++) {
            const double e = (double)w[i] - (double)q[r * n + i];
            for (int64_t j = 0; j < n; j++) {
                const double hij = i < j ? nb_sym_row(h, i)[j] : nb_sym_row(h, j)[i];
                total += e * hij * ((double)w[j] - (double)q[r * n + j]);
                if (cross != NULL) /* w_j D[j][i] e_i */
                    total += 2 * e * (double)w[j] * (cross[j * n + i] - hij);
            }
        }
    }
    return total;
}

static inline void encode_plain(scene *s)
{
    for (int64_t r = 0; r < s->out[0].n_rows; r++)
        s->out[0].fmt->encode_row(&s->out[0], r, s->weight + r * s->out[0].n_cols);
}

static inline void clear(nb_sym *h)
{
    for (int64_t i = 0; i < h->n; i++)
        for (int64_t j = i; j < h->n; j++)
            nb_sym_row(h, i)[j] = 0;
}

static inline void round_all(scene *s, const nb_grid *grid)
{
    for (int64_t r = 0; r < s->out[0].n_rows; r++)
        nb_grid_round_row(grid, &s->out[0], r, s->weight + r * s->out[0].n_cols);
}

static const char *const formats[] = {"int4", "int4 asym", "int8", "q4_0", "iq4_nl"};

static inline void open_format(scene *s, const char *format, int64_t n_rows, int64_t n)
{
    const bool asym = strstr(format, "asym") != NULL;
    open_scene(s, n_rows, n, 700, asym ? "int4" : format, 32, asym);
}

#endif
