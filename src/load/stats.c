/* See stats.h. */
#include "load/stats.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double nb_stats_quantile(const double *sorted, int64_t n, double q)
{
    assert(n > 0 && q >= 0 && q <= 1);
    const double at = q * (double)(n - 1);
    const int64_t i = (int64_t)floor(at);
    if (i + 1 >= n)
        return sorted[n - 1];
    const double part = at - (double)i;
    return sorted[i] + part * (sorted[i + 1] - sorted[i]);
}

nb_stats nb_stats_of(double *values, int64_t n)
{
    nb_stats s = {.n = n};
    if (n == 0)
        return s;
    qsort(values, (size_t)n, sizeof *values, compare);
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++)
        sum += values[i];
    s.mean = sum / (double)n;
    /* About the mean: a sum of plain squares would lose the spread of long runs. */
    for (int64_t i = 0; i < n; i++)
        squares += (values[i] - s.mean) * (values[i] - s.mean);
    s.std = sqrt(squares / (double)n);
    s.min = values[0];
    s.median = nb_stats_quantile(values, n, 0.5);
    s.p90 = nb_stats_quantile(values, n, 0.9);
    s.p95 = nb_stats_quantile(values, n, 0.95);
    s.p99 = nb_stats_quantile(values, n, 0.99);
    s.max = values[n - 1];
    return s;
}
