/* Llama 3's RoPE scaling is four numbers in a config.json, and a tensor of divisors in a GGUF
 * (rope_freqs.weight; formats.md 8.4): from one to the other, and back. */
#ifndef NB_QUANT_PLAN_ROPE_FACTORS_H
#define NB_QUANT_PLAN_ROPE_FACTORS_H

#include "model/config.h"

/* factors [rot_dim / 2] of a config whose rope is NB_ROPE_LLAMA3. scratch [rot_dim]. */
void nb_rope_factors_of(const nb_config *c, float *factors, double *scratch);

/* Makes the rope of *c, which is NB_ROPE_FACTORS, NB_ROPE_LLAMA3 with the published parameters
 * that give these factors; false (and *c unchanged) when none do. scratch [rot_dim]. */
bool nb_rope_factors_name(nb_config *c, const float *factors, double *scratch);

#endif
