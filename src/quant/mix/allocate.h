/* Who gets how many bytes: each of many items takes one of its choices, so that the sum of losses
 * is least within a budget of bytes, or the sum of bytes least within a bound on the loss. */
#ifndef NB_QUANT_MIX_ALLOCATE_H
#define NB_QUANT_MIX_ALLOCATE_H

#include "base/status.h"

typedef struct {
    int64_t bytes; /* >= 0 */
    double loss;   /* finite */
} nb_choice;

typedef struct {
    const nb_choice *choice; /* [n], n >= 1, in any order */
    int n;
} nb_item;

#define NB_ALLOCATE_MAX_CHOICES 64

/* Both fill picked[n_items] with indices into the choices. Choices that another one of the item
 * beats in both numbers are never taken; of equal ones the first. The same input gives the same
 * picks, which are the best there are where the sizes have a large common divisor or the items are
 * few, and else those of sizes rounded up by at most one part in 100,000 of the whole, improved by
 * what then still fits.
 *
 * NB_LIMIT says what the least is, when all of it is above the budget, or the bound. */
nb_status nb_allocate_bytes(const nb_item *items, int64_t n_items, int64_t budget, int *picked,
                            nb_err *err);
nb_status nb_allocate_loss(const nb_item *items, int64_t n_items, double bound, int *picked,
                           nb_err *err);

/* Sums over the picks. */
int64_t nb_allocated_bytes(const nb_item *items, int64_t n_items, const int *picked);
double nb_allocated_loss(const nb_item *items, int64_t n_items, const int *picked);

#endif
