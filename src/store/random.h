/* A store of no file: weights of given shapes and formats, whose values are random. So any network
 * can be run without its file; only what it says is nonsense. */
#ifndef NB_STORE_RANDOM_H
#define NB_STORE_RANDOM_H

#include "store/store.h"

/* A store that reads like a Hugging Face folder with this config.json, called `name` in messages.
 * The plan's names are copied; bytes need not be set. Reading a weight makes its values from the
 * seed and its place in the plan, the same every time: rows of a matrix of n columns have about
 * unit length, so that activations neither die nor explode, and vectors are near 1, as the gains of
 * norms are. Codes are drawn as codes: no matrix of floats is ever made. Takes the reference to
 * `config`, also on failure. NB_UNSUPPORTED for a format that nibble cannot encode. */
nb_status nb_store_open_random(nb_store **out, const char *name, json_t *config,
                               const nb_weight *plan, int64_t n_weights, uint64_t seed,
                               nb_err *err);

#endif
