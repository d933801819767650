/* Arrivals: reproducible, and of the distributions they are said to be of. */
#include "support/golden.h"

#include "load/arrival.h"
#include "load/stats.h"

#include <math.h>

/* The gap of (seed, i) is one number: not of what was asked before. */
static void gaps_are_a_function_of_seed_and_index(void **state)
{
    (void)state;
    static const double shapes[] = {0.25, 1, 4};
    for (int k = 0; k < 3; k++) {
        double first[50];
        for (int i = 0; i < 50; i++)
            first[i] = nb_arrival_gap(9, i, shapes[k]);
        for (int i = 49; i >= 0; i--) {
            assert_true(nb_arrival_gap(9, i, shapes[k]) == first[i]);
            assert_true(nb_arrival_gap(10, i, shapes[k]) != first[i]);
            assert_true(i == 0 || first[i] != first[i - 1]);
        }
    }
}

/* The largest distance between the shares of gaps below t and P(t), for `n` gaps. By Kolmogorov,
 * it passes 1.95 / sqrt(n) once in a thousand seeds; this seed is fixed. */
typedef double share_fn(double t);

static double exponential(double t)
{
    return 1 - exp(-t);
}

/* Gamma of shape 4 and mean 1. */
static double gamma_4(double t)
{
    const double x = 4 * t;
    return 1 - exp(-x) * (1 + x + x * x / 2 + x * x * x / 6);
}

/* Gamma of shape 1/2 and mean 1: the square of a normal number. */
static double gamma_half(double t)
{
    return erf(sqrt(t / 2));
}

static void gaps_have_their_distribution(void **state)
{
    (void)state;
    enum { N = 40000 };
    static double gaps[N];
    static const struct {
        double shape;
        share_fn *share;
    } rows[] = {{1, exponential}, {4, gamma_4}, {0.5, gamma_half}};
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < N; i++)
            gaps[i] = nb_arrival_gap(3, i, rows[k].shape);
        const nb_stats s = nb_stats_of(gaps, N); /* sorts */
        assert_true(s.min >= 0 && fabs(s.mean - 1) < 0.03);
        /* The test itself has to tell the shapes apart. */
        for (int other = 0; other < 3; other++) {
            double far = 0;
            for (int i = 0; i < N; i++) {
                const double p = rows[other].share(gaps[i]);
                far = fmax(far, fmax(fabs(p - (double)i / N), fabs(p - (i + 1.0) / N)));
            }
            assert_int_equal(far < 1.95 / sqrt(N), other == k);
        }
    }
}

/* The ends of what the command line takes give numbers. */
static void extreme_shapes_stay_finite(void **state)
{
    (void)state;
    static const double shapes[] = {0.01, 0.1, 0.999999, 1.000001, 100, 10000};
    for (int k = 0; k < 6; k++) {
        double sum = 0;
        for (int i = 0; i < 20000; i++) {
            const double gap = nb_arrival_gap(5, i, shapes[k]);
            assert_true(isfinite(gap) && gap >= 0);
            sum += gap;
        }
        assert_true(fabs(sum / 20000 - 1) < 5 / sqrt(20000 * shapes[k]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gaps_are_a_function_of_seed_and_index),
        cmocka_unit_test(gaps_have_their_distribution),
        cmocka_unit_test(extreme_shapes_stay_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
