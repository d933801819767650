/* Embeddings of tokens, from a store: only rows that are needed, where the container can read these
 * alone. A table is larger than anything else of a model, and a text uses little of it. */
#ifndef NB_QUANT_WEIGHT_EMBEDDING_H
#define NB_QUANT_WEIGHT_EMBEDDING_H

#include "model/config.h"

typedef struct {
    nb_store *store;
    const nb_weight *weight;
    nb_loaded loaded;
    bool whole; /* `loaded` is the table, not a row of it */
} nb_embedding;

/* The store stays open meanwhile. NB_DATA where it has no table of the config's shape. `{0}` may be
 * closed, too. */
nb_status nb_embedding_open(nb_embedding *e, nb_store *store, const nb_config *c, nb_err *err);
void nb_embedding_close(nb_embedding *e);

/* x [n][d_model]; NB_DATA for ids that are outside the vocabulary. */
nb_status nb_embedding_rows(nb_embedding *e, const int32_t *ids, int64_t n, float *x, nb_err *err);

#endif
