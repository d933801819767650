/* What --to takes: a container, and how it lays out quantized weights. */
#ifndef NB_QUANT_PLAN_TARGET_H
#define NB_QUANT_PLAN_TARGET_H

#include "quant/plan/plan.h"

/* "hf" (compressed-tensors), "gguf", "gptq", "gptq_v2", "awq"; ends with NULL. */
extern const char *const nb_target_names[];

const char *nb_target_name(const nb_plan_request *request);
/* Sets `to` and `layout` of the request; false: no such name. */
bool nb_target_by_name(nb_plan_request *request, const char *name);

/* GPTQ and AWQ, which have rules that compressed-tensors does not have: integers only, one format
 * for all, scales of F16. */
bool nb_target_turns(nb_layout layout);

/* NB_USAGE says what the scheme asks for that the target has no place for. What depends on the
 * weights is seen when they are planned, or written. */
nb_status nb_target_check(const nb_plan_request *request, nb_err *err);

#endif
