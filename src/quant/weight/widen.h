/* Weights of any format as floats, on the pool. */
#ifndef NB_QUANT_WEIGHT_WIDEN_H
#define NB_QUANT_WEIGHT_WIDEN_H

#include "base/pool.h"
#include "store/store.h"

/* to [n_rows][n_cols]: all values. */
void nb_widen(const nb_mat *from, float *to, nb_pool *pool);

/* The same for a weight of a store, or for rows of it from `first` on; NB_DATA where one is not
 * finite, with the place of the first. A command looks at the whole model before it begins
 * (finite.h): this is for files that change meanwhile, and for callers that did not. */
nb_status nb_widen_finite(const nb_store *store, const nb_weight *weight, int64_t first,
                          const nb_mat *from, float *to, nb_pool *pool, nb_err *err);

#endif
