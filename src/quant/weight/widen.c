/* See widen.h. */
#include "quant/weight/widen.h"

#include <math.h>
#include <stdatomic.h>

#define ROWS_PER_CHUNK 16

typedef struct {
    const nb_mat *from;
    float *to;
    bool look;       /* whether values are looked at, too */
    atomic_bool bad; /* some are not finite */
} widening;

static bool all_finite(const float *x, int64_t n)
{
    bool finite = true;
    for (int64_t i = 0; i < n; i++)
        finite &= isfinite(x[i]) != 0;
    return finite;
}

static void widen_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    widening *job = context;
    const int64_t end = (chunk + 1) * ROWS_PER_CHUNK, n = job->from->n_cols;
    for (int64_t r = chunk * ROWS_PER_CHUNK; r < end && r < job->from->n_rows; r++) {
        job->from->fmt->decode_row(job->from, r, job->to + r * n);
        if (job->look && !all_finite(job->to + r * n, n))
            atomic_store(&job->bad, true);
    }
}

static void widen(widening *job, nb_pool *pool)
{
    nb_pool_run(pool, (job->from->n_rows + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK, widen_chunk, job);
}

void nb_widen(const nb_mat *from, float *to, nb_pool *pool)
{
    widen(&(widening){.from = from, .to = to}, pool);
}

nb_status nb_widen_finite(const nb_store *store, const nb_weight *weight, int64_t first,
                          const nb_mat *from, float *to, nb_pool *pool, nb_err *err)
{
    widening job = {.from = from, .to = to, .look = true};
    widen(&job, pool);
    if (!atomic_load(&job.bad))
        return NB_OK;
    int64_t i = 0; /* whichever thread was first, it is the first in the matrix's order */
    while (isfinite(to[i]))
        i++;
    return nb_fail(err, NB_DATA, "%s: tensor '%.200s' holds %g at [%lld, %lld]",
                   nb_store_path(store), weight->name, (double)to[i],
                   (long long)(first + i / from->n_cols), (long long)(i % from->n_cols));
}
