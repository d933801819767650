/* Mean, spread and percentiles, against numpy's numbers and against the definition. */
#include "support/golden.h"

#include "base/rng.h"
#include "load/stats.h"

#include <math.h>
#include <string.h>

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-12 * (1 + fabs(want))))
        fail_msg("%.17g is not %.17g", got, want);
}

/* numpy.percentile(..., method="linear"), numpy.std of the same lists. */
static void small_lists_have_numpys_numbers(void **state)
{
    (void)state;
    static const struct {
        int n;
        double values[6];
        nb_stats want;
    } rows[] = {
        {0, {0}, {0}},
        {1, {7.5}, {1, 7.5, 0, 7.5, 7.5, 7.5, 7.5, 7.5, 7.5}},
        {2, {3, 1}, {2, 2, 1, 1, 2, 2.8, 2.9, 2.98, 3}},
        {5, {5, 1, 4, 2, 3}, {5, 3, 1.4142135623730951, 1, 3, 4.6, 4.8, 4.96, 5}},
        {6,
         {-2, 10, 0, 0, 1e3, 0.5},
         {6, 168.08333333333334, 372.0645571970303, -2, 0.25, 505, 752.5, 950.5, 1000}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double values[6];
        memcpy(values, rows[i].values, sizeof values);
        const nb_stats s = nb_stats_of(values, rows[i].n), *want = &rows[i].want;
        assert_int_equal(s.n, want->n);
        near(s.mean, want->mean);
        near(s.std, want->std);
        near(s.min, want->min);
        near(s.median, want->median);
        near(s.p90, want->p90);
        near(s.p95, want->p95);
        near(s.p99, want->p99);
        near(s.max, want->max);
    }
}

/* A quantile lies between its neighbours, grows with q, and meets the values at their places. */
static void quantiles_meet_the_values(void **state)
{
    (void)state;
    double sorted[37];
    for (int i = 0; i < 37; i++)
        sorted[i] = i * i + nb_rng_uniform(1, 1, (uint64_t)i);
    double last = -1;
    for (int k = 0; k <= 3600; k++) {
        const double v = nb_stats_quantile(sorted, 37, k / 3600.0);
        assert_true(v >= last && v >= sorted[k / 100] - 1e-9);
        assert_true(k / 100 >= 36 || v <= sorted[k / 100 + 1] + 1e-9);
        if (k % 100 == 0)
            assert_true(fabs(v - sorted[k / 100]) < 1e-9);
        last = v;
    }
}

/* A mean far from zero does not drown the spread. */
static void spread_survives_a_large_mean(void **state)
{
    (void)state;
    enum { N = 100000 };
    static double values[N];
    for (int i = 0; i < N; i++)
        values[i] = 1e9 + (i % 2 == 0 ? 0.25 : -0.25);
    const nb_stats s = nb_stats_of(values, N);
    assert_true(fabs(s.std - 0.25) < 1e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_lists_have_numpys_numbers),
        cmocka_unit_test(quantiles_meet_the_values),
        cmocka_unit_test(spread_survives_a_large_mean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
