/* What every operation of a forward pass gave for every token of one sequence, as hashes, and
 * where two passes part. The watcher of a probe is called from several threads at once. */
#ifndef NB_EVAL_PROBE_H
#define NB_EVAL_PROBE_H

#include "model/forward.h"

#include <stdatomic.h>

typedef struct {
    int64_t n_layers, n_tokens;
    int64_t input;          /* the sequence that counts, among the inputs of a step */
    _Atomic uint64_t *hash; /* [n_layers + 1][NB_N_OPS][n_tokens] */
} nb_probe;

/* `{0}` is empty. */
nb_status nb_probe_init(nb_probe *p, int64_t n_layers, int64_t n_tokens, int64_t input,
                        nb_err *err);
void nb_probe_free(nb_probe *p);
/* For nb_work's watcher; everything seen until the probe is freed is collected. */
nb_watcher nb_probe_watcher(nb_probe *p);

/* Where two passes part. */
typedef struct {
    int64_t layer, token;
    nb_op op;
} nb_place;

/* The first operation, in the order they run, whose results differ for one of the first n_tokens
 * tokens, and the first such token. False when there is none. Both are of equal shapes. */
bool nb_probe_part(const nb_probe *a, const nb_probe *b, int64_t n_tokens, nb_place *out);

#endif
