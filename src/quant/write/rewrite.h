/* Carries out a plan: streams the weights of a store into a sink, one after the other, the rows of
 * each on all threads. Memory stays near one weight's size: a large source is given back to the
 * system while its rows are being read, as its successor fills up.
 *
 * The output does not depend on the number of threads. */
#ifndef NB_QUANT_WRITE_REWRITE_H
#define NB_QUANT_WRITE_REWRITE_H

#include "base/pool.h"
#include "quant/weight/workdir.h"
#include "quant/write/slice.h"

/* Called after each weight, with bytes of the source. False stops with NB_INTERRUPTED. */
typedef bool nb_rewrite_progress(void *context, int64_t done, int64_t total);

typedef struct {
    const nb_method *method; /* of weights whose rule names none (nb_plan_method) */
    nb_nonfinite nonfinite;
    /* Weights that a walk has made already, and where they are; NULL: none. */
    const bool *made;  /* [plan->n] */
    int64_t made_from; /* weight i has number made_from + i there */
    const nb_workdir *dir;
    nb_rewrite_progress *progress; /* NULL: none */
    void *context;
} nb_rewrite_options;

typedef struct {
    nb_error_sum quantized; /* over all weights whose codes were chosen anew */
    nb_error_sum rounded;   /* over all that became other floats */
    int64_t n_zeroed;       /* values that were NaN or infinite */
    int64_t n_requantized;  /* rows whose codes could not be carried over */
} nb_rewrite_result;

/* Puts all weights into the sink; the caller commits or aborts it. Errors name the file, the
 * weight, and the row and column. */
nb_status nb_rewrite(nb_store *store, const nb_plan *plan, nb_sink *sink, nb_pool *pool,
                     const nb_rewrite_options *options, nb_rewrite_result *out, nb_err *err);

/* What the program will take at its largest, about. text_bytes: of config and tokenizer. */
int64_t nb_rewrite_memory(const nb_plan *plan, int64_t text_bytes, int n_threads);

/* Seconds that it will compute, from a measurement of a few milliseconds; reading and writing are
 * not in it. */
nb_status nb_rewrite_estimate(const nb_plan *plan, const nb_method *method, int n_threads,
                              double *seconds, nb_err *err);

#endif
