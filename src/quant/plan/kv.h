/* Static scales of the key-value cache in a plan: those of the source, and new ones. */
#ifndef NB_QUANT_PLAN_KV_H
#define NB_QUANT_PLAN_KV_H

#include "quant/plan/plan.h"

/* Whether the target has no place for a scale of the source, or no use for it. */
bool nb_plan_drops_kv(const nb_plan_request *r, const nb_weight *w);
/* NB_UNSUPPORTED where new ones are asked for and the target has no place for them. */
nb_status nb_plan_check_kv(const nb_plan_request *r, nb_err *err);
/* Weights beside those of the store that the plan needs room for. */
int64_t nb_plan_n_kv(const nb_plan *plan);
/* Adds new ones, as NB_HOW_MAKE, if they are asked for: all 1 in plan->kv_scales until they are
 * found. */
nb_status nb_plan_add_kv(nb_plan *plan, nb_err *err);
/* Weight i of the plan, which is one of these, as it is now. */
nb_mat nb_plan_kv_mat(const nb_plan *plan, int64_t i);
/* Scales of weight i of the plan; NULL: it is none of these. */
const float *nb_plan_kv_scales(const nb_plan *plan, int64_t i);

#endif
