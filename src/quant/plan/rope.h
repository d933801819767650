/* RoPE factors on the way between containers: a GGUF has a tensor of them, a folder the parameters
 * that give them. */
#ifndef NB_QUANT_PLAN_ROPE_H
#define NB_QUANT_PLAN_ROPE_H

#include "quant/plan/plan.h"

/* Into a GGUF: plans rope_freqs.weight where the config's parameters ask for it. There is room for
 * one more weight in the plan. */
nb_status nb_plan_add_rope(nb_plan *plan, nb_err *err);
/* Into a folder: which parameters give the store's factors, into plan->config. They have to be
 * published ones. `loaded` is reused. */
nb_status nb_plan_resolve_rope(nb_plan *plan, nb_store *store, nb_loaded *loaded, nb_err *err);

#endif
