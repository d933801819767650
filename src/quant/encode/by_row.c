/* See by_row.h. */
#include "quant/encode/by_row.h"

enum { CHUNK = 1 << 14 }; /* weights */

typedef struct {
    nb_row_fn *task;
    const void *context;
    int64_t n_rows, rows; /* of the matrix; of a chunk */
} by_row;

static void run_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const by_row *b = context;
    const int64_t end = (chunk + 1) * b->rows;
    for (int64_t row = chunk * b->rows; row < b->n_rows && row < end; row++)
        b->task(b->context, row);
}

void nb_by_row(const nb_mat *m, nb_pool *pool, nb_row_fn *task, const void *context)
{
    const int64_t fit = CHUNK / m->n_cols;
    by_row b = {.task = task, .context = context, .n_rows = m->n_rows, .rows = fit > 0 ? fit : 1};
    nb_pool_run(pool, (b.n_rows + b.rows - 1) / b.rows, run_chunk, &b);
}
