/* The values that the inputs of a point take over all tokens of a calibration set: an observer
 * (numeric/observer.h) that the threads of a pool fill together. What it saw depends neither on
 * their number nor on how rows were cut into calls. */
#ifndef NB_QUANT_INPUTS_RANGE_H
#define NB_QUANT_INPUTS_RANGE_H

#include "base/pool.h"
#include "numeric/observer.h"

typedef struct nb_input_range {
    nb_observer all;
    nb_observer *part; /* [n_parts], of the threads; empty between calls */
    int n_parts;
} nb_input_range;

/* Bytes of one, about: with 30 threads. */
#define NB_INPUT_RANGE_BYTES ((int64_t)1 << 20)

/* Empty. NULL is fine to free. */
nb_status nb_input_range_new(nb_input_range **out, nb_err *err);
void nb_input_range_free(nb_input_range *r);

/* Takes n values. NB_DATA when one is not finite. */
nb_status nb_input_range_add(nb_input_range *r, nb_pool *pool, const float *x, int64_t n,
                             nb_err *err);

/* How a range is chosen. */
typedef struct {
    nb_observer_kind kind;
    double percentile; /* 0: 99.99 */
} nb_observing;

/* "minmax", "average", "entropy", "mse", "percentile" or "percentile=99.9". NB_USAGE lists them. */
nb_status nb_observing_parse(nb_observing *out, const char *text, nb_err *err);

/* The static scale of activations that become `codes`: what the range of the observer gives, within
 * [2^-100, 2^100], which is what readers take. */
float nb_input_range_scale(const nb_input_range *r, const nb_observing *how, nb_range_codes codes);

#endif
