/* Sums over the rows of a block that trains: gradients of biases and of the gains of norms. Private
 * to the backward pass.
 *
 * One column is one sum over rows in ascending order, in binary64 and without fused steps, so that
 * threads may share out the columns. */
#ifndef NB_MODEL_BACK_ROWS_H
#define NB_MODEL_BACK_ROWS_H

#include "base/pool.h"

/* Sum of x^2 in 16 lanes of binary64, element i in lane i mod 16, then the tree 8-4-2-1. */
double nb_back_square_sum(const float *x, int64_t n);
/* out[c] += sum over rows of x[row * n + c]. */
void nb_back_column_sums(nb_pool *pool, float *out, const float *x, int64_t n_rows, int64_t n);
/* out[c] += sum over rows of dy * x * r, r = 1 / sqrt(mean of x^2 + eps); rms [n_rows] is scratch.
 */
void nb_back_gain_sums(nb_pool *pool, float *out, const float *dy, const float *x, int64_t n_rows,
                       int64_t n, float eps, float *rms);

#endif
