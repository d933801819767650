/* See back_rows.h. */
#include "model/back_rows.h"

#include <math.h>

enum { COLUMNS = 16, ROWS = 64 };

double nb_back_square_sum(const float *x, int64_t n)
{
    enum { LANES = 16 };
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += (double)x[i + j] * (double)x[i + j];
    for (int j = 0; i + j < n; j++)
        lane[j] += (double)x[i + j] * (double)x[i + j];
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

typedef struct {
    float *out;
    const float *dy, *x;
    int64_t n_rows, n;
    float eps, *rms;
} sums;

static void rms_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const sums *s = context;
    for (int64_t row = chunk * ROWS; row < s->n_rows && row < (chunk + 1) * ROWS; row++) {
        double square = 0;
        for (int64_t i = 0; i < s->n; i++)
            square += (double)s->x[row * s->n + i] * (double)s->x[row * s->n + i];
        s->rms[row] = (float)(1 / sqrt(square / (double)s->n + (double)s->eps));
    }
}

static void column_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const sums *s = context;
    const int64_t first = chunk * COLUMNS, left = s->n - first;
    const int64_t n = left < COLUMNS ? left : COLUMNS;
    double sum[COLUMNS] = {0};
    for (int64_t row = 0; row < s->n_rows; row++) {
        const float *x = s->x + row * s->n + first;
        const float *dy = s->dy == NULL ? NULL : s->dy + row * s->n + first;
        for (int64_t i = 0; i < n; i++)
            sum[i] +=
                dy == NULL ? (double)x[i] : (double)dy[i] * (double)x[i] * (double)s->rms[row];
    }
    for (int64_t i = 0; i < n; i++)
        s->out[first + i] = (float)((double)s->out[first + i] + sum[i]);
}

void nb_back_column_sums(nb_pool *pool, float *out, const float *x, int64_t n_rows, int64_t n)
{
    sums s = {.out = out, .x = x, .n_rows = n_rows, .n = n};
    nb_pool_run(pool, (n + COLUMNS - 1) / COLUMNS, column_chunk, &s);
}

void nb_back_gain_sums(nb_pool *pool, float *out, const float *dy, const float *x, int64_t n_rows,
                       int64_t n, float eps, float *rms)
{
    sums s = {.out = out, .dy = dy, .x = x, .n_rows = n_rows, .n = n, .eps = eps, .rms = rms};
    nb_pool_run(pool, (n_rows + ROWS - 1) / ROWS, rms_chunk, &s);
    nb_pool_run(pool, (n + COLUMNS - 1) / COLUMNS, column_chunk, &s);
}
