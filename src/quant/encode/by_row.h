/* What is done to each row of a matrix by itself, on the pool. */
#ifndef NB_QUANT_ENCODE_BY_ROW_H
#define NB_QUANT_ENCODE_BY_ROW_H

#include "base/pool.h"
#include "numeric/format.h"

/* Called by several threads at once, for different rows. */
typedef void nb_row_fn(const void *context, int64_t row);

/* task(context, row) for every row of m; a thread takes some thousands of weights at a time. */
void nb_by_row(const nb_mat *m, nb_pool *pool, nb_row_fn *task, const void *context);

#endif
