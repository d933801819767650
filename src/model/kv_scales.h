/* Static scales of an FP8 key-value cache, which a folder has beside its weights (kv_scheme.h). */
#ifndef NB_MODEL_KV_SCALES_H
#define NB_MODEL_KV_SCALES_H

#include "base/arena.h"
#include "model/config.h"

/* As the kernels take them: F16 [n_layers][n_kv_heads]. NULL: there are none, and the cache finds
 * its own. */
typedef struct {
    const uint16_t *k, *v;
} nb_kv_scales;

/* Reads those of all layers, rounded to F16: a layer's only scale is that of each of its heads.
 * Refused are folders that have them for some layers and not for others, or not at all though the
 * config says so, other numbers of heads, and what is not positive and finite in F16, which holds
 * 2^-24 (as 0.00000006) to 65504. Errors name file and tensor.
 *
 * arena NULL: looks at names and shapes only, and reads nothing. */
nb_status nb_kv_scales_read(nb_kv_scales *out, nb_store *store, const nb_config *c, nb_arena *arena,
                            nb_err *err);

#endif
