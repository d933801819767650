/* What a list of latencies comes to: mean, spread and percentiles, as numpy defines them. */
#ifndef NB_LOAD_STATS_H
#define NB_LOAD_STATS_H

#include "base/alloc.h"

typedef struct {
    int64_t n; /* 0: all others are 0 */
    double mean, std, min, median, p90, p95, p99, max;
} nb_stats;

/* Sorts values[0, n), which are finite. The standard deviation is that of the values themselves
 * (divided by n). */
nb_stats nb_stats_of(double *values, int64_t n);

/* The q-th part (0 to 1) of sorted[0, n), n > 0: between two values in a straight line, at
 * position q * (n - 1). */
double nb_stats_quantile(const double *sorted, int64_t n, double q);

#endif
