/* See inputs/stats.h. */
#include "quant/inputs/stats.h"

#include <math.h>
#include <string.h>

/* Columns that one thread sums at a time. */
#define SUM_COLS 64
/* Rows that are weighted at a time: a multiple of 128, so that sums are cut as without weights. */
#define WEIGHTED_ROWS 512

static bool wants(unsigned needs, unsigned stat)
{
    return (needs & stat) != 0;
}

int64_t nb_input_stats_bytes(int64_t n_cols, unsigned needs)
{
    const int64_t copies = wants(needs, NB_STAT_HELD_OUT) ? 2 : 1;
    int64_t bytes = 0;
    if (wants(needs, NB_STAT_HESSIAN))
        bytes += copies * nb_sym_bytes(n_cols);
    if (wants(needs, NB_STAT_CROSS))
        bytes += copies * n_cols * n_cols * (int64_t)sizeof(double);
    if (wants(needs, NB_STAT_MAGNITUDE))
        bytes += n_cols * 20;
    if (wants(needs, NB_STAT_SAMPLE))
        bytes += NB_SAMPLE_ROWS * n_cols * 4;
    if (wants(needs, NB_STAT_COVERAGE))
        bytes += n_cols * 16;
    if (wants(needs, NB_STAT_RANGE))
        bytes += NB_INPUT_RANGE_BYTES;
    return bytes;
}

int64_t nb_input_stats_weighted_bytes(int64_t n_cols, unsigned needs)
{
    if (!wants(needs, NB_STAT_HESSIAN | NB_STAT_CROSS))
        return 0;
    return (wants(needs, NB_STAT_CROSS) ? 2 : 1) * WEIGHTED_ROWS * n_cols * (int64_t)sizeof(float);
}

nb_status nb_input_stats_init(nb_input_stats *s, int64_t n_cols, unsigned needs, int64_t n_expected,
                              nb_err *err)
{
    *s = (nb_input_stats){.n_cols = n_cols, .n_expected = n_expected};
    nb_status status = NB_OK;
    const bool held = wants(needs, NB_STAT_HELD_OUT);
    const size_t square = (size_t)n_cols * (size_t)n_cols;
    if (wants(needs, NB_STAT_HESSIAN))
        NB_TRY_GOTO(status, nb_sym_init(&s->h, n_cols, err));
    if (wants(needs, NB_STAT_HESSIAN) && held)
        NB_TRY_GOTO(status, nb_sym_init(&s->held_h, n_cols, err));
    if (wants(needs, NB_STAT_CROSS))
        NB_TRY_GOTO(status, NB_ALLOC(&s->cross, square, err));
    if (wants(needs, NB_STAT_CROSS) && held)
        NB_TRY_GOTO(status, NB_ALLOC(&s->held_cross, square, err));
    if (wants(needs, NB_STAT_MAGNITUDE)) {
        NB_TRY_GOTO(status, NB_ALLOC(&s->mean_abs, n_cols, err));
        NB_TRY_GOTO(status, NB_ALLOC(&s->mean_square, n_cols, err));
        NB_TRY_GOTO(status, NB_ALLOC(&s->max_abs, n_cols, err));
    }
    if (wants(needs, NB_STAT_SAMPLE))
        NB_TRY_GOTO(status, NB_ALLOC(&s->sample, NB_SAMPLE_ROWS * n_cols, err));
    if (wants(needs, NB_STAT_COVERAGE) && s->held_h.a == NULL)
        NB_TRY_GOTO(status, NB_ALLOC(&s->held_square, n_cols, err));
    if (wants(needs, NB_STAT_COVERAGE) && s->h.a == NULL && s->mean_square == NULL)
        NB_TRY_GOTO(status, NB_ALLOC(&s->square, n_cols, err));
    if (wants(needs, NB_STAT_RANGE))
        NB_TRY_GOTO(status, nb_input_range_new(&s->range, err));
done:
    if (status != NB_OK)
        nb_input_stats_free(s);
    return status;
}

void nb_input_stats_free(nb_input_stats *s)
{
    nb_sym_free(&s->h);
    nb_sym_free(&s->held_h);
    void *arrays[] = {s->cross,  s->held_cross, s->mean_abs, s->mean_square, s->max_abs,
                      s->sample, s->weighted,   s->square,   s->held_square};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        nb_free(arrays[i]);
    nb_input_range_free(s->range);
    *s = (nb_input_stats){0};
}

/* ---- adding ---- */

typedef struct {
    nb_input_stats *s;
    const float *x, *weights;
    int64_t n_rows;
} sums;

/* Token by token, each column a chain of its own in binary64. */
static void sum_columns(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const sums *job = context;
    nb_input_stats *s = job->s;
    const int64_t begin = chunk * SUM_COLS, n = s->n_cols;
    const int64_t end = begin + SUM_COLS < n ? begin + SUM_COLS : n;
    for (int64_t t = 0; t < job->n_rows; t++) {
        const float *row = job->x + t * n;
        const double w = job->weights == NULL ? 1.0 : (double)job->weights[t];
        for (int64_t c = begin; c < end; c++) {
            const float a = fabsf(row[c]);
            s->mean_abs[c] += w * (double)a;
            s->mean_square[c] += w * ((double)a * (double)a);
            s->max_abs[c] = a > s->max_abs[c] ? a : s->max_abs[c];
        }
    }
}

/* Sums of squares alone. */
typedef struct {
    double *to;
    const float *x, *weights;
    int64_t n_cols, n_rows;
} squares;

static void sum_squares(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const squares *job = context;
    const int64_t begin = chunk * SUM_COLS, n = job->n_cols;
    const int64_t end = begin + SUM_COLS < n ? begin + SUM_COLS : n;
    for (int64_t t = 0; t < job->n_rows; t++) {
        const float *row = job->x + t * n;
        const double w = job->weights == NULL ? 1.0 : (double)job->weights[t];
        for (int64_t c = begin; c < end; c++)
            job->to[c] += w * ((double)row[c] * (double)row[c]);
    }
}

static void add_squares(nb_input_stats *s, nb_algebra *la, const float *x, const float *weights,
                        int64_t n_rows, bool held_out)
{
    const int64_t n_chunks = (s->n_cols + SUM_COLS - 1) / SUM_COLS;
    squares job = {s->square, x, weights, s->n_cols, n_rows};
    if (s->square != NULL)
        nb_pool_run(la->pool, n_chunks, sum_squares, &job);
    job.to = s->held_square;
    if (s->held_square != NULL && held_out)
        nb_pool_run(la->pool, n_chunks, sum_squares, &job);
    s->n_seen_held += held_out ? n_rows : 0;
}

/* Of n_expected tokens, one of each of NB_SAMPLE_ROWS stretches: at a place of its own in each, so
 * that all positions of sequences come by. In every sixteenth it is the first: where lengths are
 * round numbers, first tokens of sequences are among those, which are like no others, so rare that
 * chance would pass over them, and what smoothing has to know of. */
static bool in_sample(int64_t t, int64_t all)
{
    if (all <= NB_SAMPLE_ROWS)
        return true;
    const int64_t stretch = t * NB_SAMPLE_ROWS / all;
    const int64_t begin = (stretch * all + NB_SAMPLE_ROWS - 1) / NB_SAMPLE_ROWS;
    const int64_t end = ((stretch + 1) * all + NB_SAMPLE_ROWS - 1) / NB_SAMPLE_ROWS;
    const uint32_t place = (uint32_t)stretch * 2654435769u >> 16;
    return t - begin == (stretch % 16 == 0 ? 0 : (int64_t)place * (end - begin) >> 16);
}

static void take_sample(nb_input_stats *s, const float *x, int64_t n_rows)
{
    const int64_t first = s->n_tokens + s->n_held;
    for (int64_t t = 0; t < n_rows && s->n_sample < NB_SAMPLE_ROWS; t++) {
        if (in_sample(first + t, s->n_expected))
            memcpy(s->sample + s->n_sample++ * s->n_cols, x + t * s->n_cols,
                   (size_t)s->n_cols * sizeof *x);
    }
}

/* The sums of second moments. */
static nb_status add_products(nb_input_stats *s, nb_algebra *la, const float *x, const float *x0,
                              int64_t n_rows, bool apart, nb_err *err)
{
    const int64_t n = s->n_cols;
    nb_sym *h = apart ? &s->held_h : &s->h;
    if (h->a != NULL)
        NB_TRY(nb_sym_add_rows(la, h, x, n, n_rows, err));
    if (s->cross != NULL)
        NB_TRY(nb_cross_add_rows(la, apart ? s->held_cross : s->cross, n, x0, x, n, n_rows, err));
    return NB_OK;
}

typedef struct {
    const float *x, *weights;
    float *to;
    int64_t n;
} weighing;

static void weigh_row(void *context, int64_t row, int thread)
{
    (void)thread;
    const weighing *job = context;
    const float w = sqrtf(job->weights[row]), *x = job->x + row * job->n;
    float *to = job->to + row * job->n;
    for (int64_t c = 0; c < job->n; c++)
        to[c] = w * x[c];
}

static nb_status add_weighted(nb_input_stats *s, nb_algebra *la, const float *x, const float *x0,
                              const float *weights, int64_t n_rows, bool apart, nb_err *err)
{
    const int64_t n = s->n_cols;
    if (s->weighted == NULL)
        NB_TRY(NB_ALLOC(&s->weighted, (s->cross != NULL ? 2 : 1) * WEIGHTED_ROWS * n, err));
    float *second = s->cross != NULL ? s->weighted + WEIGHTED_ROWS * n : NULL;
    for (int64_t row = 0; row < n_rows; row += WEIGHTED_ROWS) {
        const int64_t m = n_rows - row < WEIGHTED_ROWS ? n_rows - row : WEIGHTED_ROWS;
        weighing job = {x + row * n, weights + row, s->weighted, n};
        nb_pool_run(la->pool, m, weigh_row, &job);
        if (second != NULL) {
            job = (weighing){x0 + row * n, weights + row, second, n};
            nb_pool_run(la->pool, m, weigh_row, &job);
        }
        NB_TRY(add_products(s, la, s->weighted, second, m, apart, err));
    }
    return NB_OK;
}

static nb_status add_moments(nb_input_stats *s, nb_algebra *la, const float *x, const float *x0,
                             const float *weights, int64_t n_rows, bool apart, nb_err *err)
{
    if (weights != NULL && (s->h.a != NULL || s->cross != NULL || apart))
        return add_weighted(s, la, x, x0, weights, n_rows, apart, err);
    return add_products(s, la, x, x0, n_rows, apart, err);
}

nb_status nb_input_stats_add_held(nb_input_stats *s, nb_algebra *la, const float *x,
                                  const float *weights, int64_t n_rows, nb_err *err)
{
    return add_moments(s, la, x, NULL, weights, n_rows, true, err);
}

nb_status nb_input_stats_add(nb_input_stats *s, nb_algebra *la, const float *x, const float *x0,
                             const float *weights, int64_t n_rows, bool held_out, nb_err *err)
{
    const int64_t n = s->n_cols;
    const bool apart = held_out && (s->held_h.a != NULL || s->held_later);
    if (!apart || !s->held_later)
        NB_TRY(add_moments(s, la, x, x0, weights, n_rows, apart, err));
    if (s->mean_abs != NULL) {
        sums job = {s, x, weights, n_rows};
        nb_pool_run(la->pool, (n + SUM_COLS - 1) / SUM_COLS, sum_columns, &job);
    }
    if (s->sample != NULL)
        take_sample(s, x, n_rows);
    if (s->range != NULL)
        NB_TRY(nb_input_range_add(s->range, la->pool, x, n_rows * n, err));
    add_squares(s, la, x, weights, n_rows, held_out);
    *(apart ? &s->n_held : &s->n_tokens) += n_rows;
    return NB_OK;
}

void nb_input_stats_finish(nb_input_stats *s)
{
    const double n = (double)(s->n_tokens + s->n_held);
    for (int64_t c = 0; s->mean_abs != NULL && n > 0 && c < s->n_cols; c++) {
        s->mean_abs[c] /= n;
        s->mean_square[c] /= n;
    }
    nb_free(s->weighted);
    s->weighted = NULL;
    if (s->n_held > 0)
        return;
    nb_sym_free(&s->held_h);
    nb_free(s->held_cross);
    s->held_cross = NULL;
}
