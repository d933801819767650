/* A mixture of formats: which candidate each linear layer takes, chosen from a table of
 * sensitivities for a budget, and written down as a recipe with reasons. */
#ifndef NB_QUANT_MIX_MIXTURE_H
#define NB_QUANT_MIX_MIXTURE_H

#include "quant/mix/allocate.h"
#include "quant/mix/sensitivity.h"

/* `{0}` is empty. Bytes are those of codes, scales and zero points: what bits per weight count. */
typedef struct {
    const nb_sensitivity *table; /* measured throughout */
    nb_item *items;              /* [n_linears] */
    const int **candidate;       /* [n_linears][choices]: which candidate a choice is */
    int *picked;                 /* [n_linears]: choices */
    nb_arena arena;
} nb_mixture;

nb_status nb_mixture_init(nb_mixture *m, const nb_sensitivity *table, nb_err *err);
void nb_mixture_free(nb_mixture *m);

/* Choose: least KL within the bytes, or least bytes within the predicted KL. NB_LIMIT with the
 * nearest that can be. */
nb_status nb_mixture_by_bytes(nb_mixture *m, int64_t bytes, nb_err *err);
nb_status nb_mixture_by_kl(nb_mixture *m, double kl, nb_err *err);
/* One candidate for all layers, which it has to fit. */
void nb_mixture_all(nb_mixture *m, int candidate);

int64_t nb_mixture_bytes(const nb_mixture *m);
double nb_mixture_bpw(const nb_mixture *m);
double nb_mixture_kl(const nb_mixture *m); /* predicted: the sum */
/* The candidate of a layer. */
int nb_mixture_of(const nb_mixture *m, int64_t linear);
/* Bytes of one candidate in all layers that it fits. */
int64_t nb_mixture_uniform_bytes(const nb_mixture *m, int candidate);
/* The largest candidate that fits all layers and takes no more than `bytes`; -1: none does. */
int nb_mixture_uniform(const nb_mixture *m, int64_t bytes);

/* A rule for each layer, named in full, with its reason. */
nb_status nb_mixture_recipe(const nb_mixture *m, const nb_method *method, nb_recipe *out,
                            nb_err *err);

/* Swaps all layers of a model for what was chosen, and measures. */
nb_status nb_mixture_measure(const nb_mixture *m, nb_swapped *s, double *kl, nb_err *err);

#endif
