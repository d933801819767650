/* A histogram that one thread fills and others read at any time, without a lock: what they read is
 * each number of some moment, and the count is that of the buckets they read. */
#ifndef NB_SERVE_HISTOGRAM_H
#define NB_SERVE_HISTOGRAM_H

#include "serve/wire.h"

#include <stdatomic.h>

#define NB_HISTOGRAM_MAX 40

typedef struct {
    int n; /* bounds, ascending */
    double bounds[NB_HISTOGRAM_MAX];
    atomic_ullong counts[NB_HISTOGRAM_MAX + 1]; /* the last: above all bounds */
    atomic_ullong sum_bits;                     /* of a double */
} nb_histogram;

void nb_histogram_init(nb_histogram *h, const double *bounds, int n);
/* One thread. What is negative or no number counts as 0: a clock's fault must not spoil a sum. */
void nb_histogram_add(nb_histogram *h, double value);
/* Appends the lines of one histogram; `labels` is what stands between the braces, or "". */
void nb_histogram_write(const nb_histogram *h, const char *name, const char *labels, nb_wire *out);

#endif
