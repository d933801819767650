/* What each linear layer costs in each of some formats: the bytes it takes, and the true KL
 * divergence of a model that is the original but for this one layer. The sum over layers predicts
 * what a mixture of formats will do, as long as all of it is small. */
#ifndef NB_QUANT_MIX_SENSITIVITY_H
#define NB_QUANT_MIX_SENSITIVITY_H

#include "quant/mix/swapped.h"
#include "quant/plan/plan.h"

#define NB_SENSITIVITY_MAX_CANDIDATES 16

/* Linear layers of the blocks in the order they run, each with all candidates. `{0}` is empty. */
typedef struct {
    int64_t n_linears, n_params; /* n_params: of all of them */
    int n_candidates;
    nb_scheme scheme[NB_SENSITIVITY_MAX_CANDIDATES]; /* with groups chosen */
    nb_plan plan[NB_SENSITIVITY_MAX_CANDIDATES];     /* each where it fits, elsewhere nothing */
    nb_recipe recipe[NB_SENSITIVITY_MAX_CANDIDATES];
    nb_method method;       /* how the codes were chosen that were measured */
    const nb_weight **from; /* [n_linears] */
    const nb_weight *
        *to;    /* [n_linears][n_candidates]; NULL: rows that the format does not divide */
    double *kl; /* [n_linears][n_candidates]; NaN: not measured */
    nb_arena arena;
} nb_sensitivity;

/* Plans all candidates, whose texts are separated by semicolons ("W4A16:g32;W8A16"), for the target
 * of `request`; `method`, which is copied, works on rows alone. NB_USAGE: a scheme that is none,
 * that the target has no words for, or twice the same; a list without one that fits. */
nb_status nb_sensitivity_init(nb_sensitivity *t, nb_store *store, const nb_plan_request *request,
                              const char *candidates, const nb_method *method, nb_err *err);
/* Whether every candidate of every layer is measured. */
bool nb_sensitivity_complete(const nb_sensitivity *t);
void nb_sensitivity_free(nb_sensitivity *t);

static inline int64_t nb_sensitivity_at(const nb_sensitivity *t, int64_t linear, int candidate)
{
    return linear * t->n_candidates + candidate;
}

/* Measures what is not measured yet. After each block `keep` is called, with which a caller saves
 * the table; it may be NULL. */
typedef nb_status nb_sensitivity_keep(void *context, const nb_sensitivity *t, nb_err *err);
nb_status nb_sensitivity_measure(nb_sensitivity *t, nb_swapped *s, nb_sensitivity_keep *keep,
                                 void *context, nb_err *err);
/* Operations that measuring takes, on so many tokens. */
double nb_sensitivity_flops(const nb_sensitivity *t, const nb_swapped_plan *plan, int64_t n_tokens);

/* The table as JSON, for a report or to go on from: an array of {name, candidates: [{scheme, bytes,
 * kl}]}. Reading takes the measurements that fit, and leaves the rest open. */
nb_status nb_sensitivity_json(const nb_sensitivity *t, json_t **out, nb_err *err);
void nb_sensitivity_take(nb_sensitivity *t, const json_t *rows);

#endif
