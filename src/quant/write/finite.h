/* Values of a model that are NaN or infinite, before anything is learned from it: whatever comes
 * after reads its weights through the store, and meets none. */
#ifndef NB_QUANT_WRITE_FINITE_H
#define NB_QUANT_WRITE_FINITE_H

#include "quant/write/slice.h"

/* `{0}` is a model that was not looked at. */
typedef struct {
    nb_store *store;
    int64_t *n_bad; /* [n_weights of the store]: values of each weight that are not finite */
} nb_finite;

/* Looks at all weights that take part in a forward pass, on the pool, a strip of rows at a time
 * where the container can read those. NB_NONFINITE_REFUSE: NB_DATA names file, tensor, value and
 * place of the first that is not finite. Else the store reads such values as zeros from now on.
 * Free it also after failures. */
nb_status nb_finite_settle(nb_finite *f, nb_store *store, nb_nonfinite what, nb_pool *pool,
                           nb_err *err);
/* Values of a weight that are read as zeros. */
int64_t nb_finite_n_zeroed(const nb_finite *f, const nb_weight *weight);
/* The same zeros in another store of the same model. */
nb_status nb_finite_repeat(const nb_finite *f, nb_store *store, nb_err *err);
/* The store reads again what the file holds. The counts stay. */
void nb_finite_lift(const nb_finite *f);
void nb_finite_free(nb_finite *f);

#endif
