/* Rows that are no whole blocks of a format: what takes its place, and saying so. */
#ifndef NB_QUANT_PLAN_FALLBACK_H
#define NB_QUANT_PLAN_FALLBACK_H

#include "quant/plan/plan.h"

/* What rows take that are no whole blocks of 256, as in llama.cpp; NULL: there is nothing smaller.
 */
const nb_format *nb_fallback_of(const nb_format *fmt);

/* Weights of a plan that became one format where another one was asked for. */
typedef struct {
    const nb_format *wanted, *became;
    int64_t n, first; /* how many, and the index of the first */
} nb_fallback;

/* The kinds there are, in the order of their first weights: true and the next one, `*at` being 0 at
 * first. */
bool nb_fallback_next(const nb_plan *plan, int64_t *at, nb_fallback *out);

/* Sets plan->warning where rows or columns of a folder's weights are no whole blocks of those that
 * share a scale. They stay as they are: nibble runs them, many other programs do not. */
nb_status nb_fallback_warn(nb_plan *plan, nb_err *err);

#endif
