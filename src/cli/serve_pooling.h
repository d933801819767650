/* Which embedding a model was made for, as its files say. */
#ifndef NB_CLI_SERVE_POOLING_H
#define NB_CLI_SERVE_POOLING_H

#include "engine/engine.h"

/* A GGUF's "ARCH.pooling_type", or 1_Pooling/config.json of a folder of sentence-transformers.
 * NB_POOL_NONE: it says nothing. NB_UNSUPPORTED: another way than those of nb_pooling. */
nb_status nb_serve_pooling(const nb_store *store, nb_pooling *out, nb_err *err);

#endif
