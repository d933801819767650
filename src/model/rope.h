/* Rotary position embeddings: the frequencies of each scaling rule and the cos/sin tables.
 * Su et al., arXiv:2104.09864; YaRN: arXiv:2309.00071; llama3: formats.md 11.3. */
#ifndef NB_MODEL_ROPE_H
#define NB_MODEL_ROPE_H

#include "model/config.h"

typedef struct {
    int64_t n_positions, half; /* half = rot_dim / 2 */
    float *cos, *sin;          /* [n_positions][half] */
} nb_rope_table;

/* theta[i], i < rot_dim / 2, in binary64, and the factor on cos and sin. `n_ctx` is the context
 * length fixed at load, which length-dependent rules use. `factors` are the divisors of
 * NB_ROPE_FACTORS, else NULL. */
void nb_rope_frequencies(const nb_config *c, int64_t n_ctx, const float *factors, double *theta,
                         double *factor);

/* Tables for positions [0, n_ctx), computed in binary64 and rounded once (A6). */
nb_status nb_rope_table_init(nb_rope_table *t, const nb_config *c, int64_t n_ctx,
                             const float *factors, nb_err *err);
void nb_rope_table_free(nb_rope_table *t);

#endif
