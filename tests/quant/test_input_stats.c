/* Statistics in which tokens have weights: against those without, and against plain sums. */
#include "quant/input_stats.h"

#include "support/check.h"
#include "support/golden.h"

#include <math.h>

static void must(nb_status s, const nb_err *err)
{
    if (s != NB_OK)
        fail_msg("%s: %s", nb_status_name(s), err->text);
}

enum { COLS = 40, ROWS = 1300 };

static void fill(float *x, uint64_t seed, bool whole)
{
    check_fill(x, ROWS * COLS, whole ? CHECK_INTEGERS : CHECK_RANDOM, seed);
}

static void gather(nb_input_stats *s, nb_algebra *la, const float *x, const float *x0,
                   const float *weights)
{
    nb_err err = {0};
    const unsigned all =
        NB_STAT_HESSIAN | NB_STAT_CROSS | NB_STAT_HELD_OUT | NB_STAT_MAGNITUDE | NB_STAT_SAMPLE;
    const int64_t chosen = 1024;
    must(nb_input_stats_init(s, COLS, all, ROWS, &err), &err);
    must(nb_input_stats_add(s, la, x, x0, weights, chosen, false, &err), &err);
    must(nb_input_stats_add(s, la, x + chosen * COLS, x0 + chosen * COLS,
                            weights == NULL ? NULL : weights + chosen, ROWS - chosen, true, &err),
         &err);
    nb_input_stats_finish(s);
}

static void same_sums(check_run *run, const nb_input_stats *a, const nb_input_stats *b)
{
    for (int64_t i = 0; i < COLS; i++) {
        check_same_f64(run, "mean |x|", a->mean_abs[i], b->mean_abs[i]);
        check_same_f64(run, "mean x^2", a->mean_square[i], b->mean_square[i]);
        for (int64_t j = 0; j < COLS; j++) {
            if (j >= i) {
                check_same_f64(run, "h", nb_sym_row(&a->h, i)[j], nb_sym_row(&b->h, i)[j]);
                check_same_f64(run, "held h", nb_sym_row(&a->held_h, i)[j],
                               nb_sym_row(&b->held_h, i)[j]);
            }
            check_same_f64(run, "cross", a->cross[i * COLS + j], b->cross[i * COLS + j]);
            check_same_f64(run, "held cross", a->held_cross[i * COLS + j],
                           b->held_cross[i * COLS + j]);
        }
    }
    check_same_f32(run, "largest", a->max_abs, b->max_abs, COLS);
    check_same_f32(run, "sample", a->sample, b->sample, a->n_sample * COLS);
    assert_int_equal(a->n_sample, b->n_sample);
    assert_int_equal(a->n_tokens, b->n_tokens);
}

static void weights_of_one_change_nothing(void **state)
{
    (void)state;
    check_run run = {.name = "ones"};
    nb_kernels kernels;
    nb_err err = {0};
    nb_algebra la = {.kernels = &kernels};
    nb_kernels_init(&kernels, NB_ISA_ALL);
    must(nb_pool_open(&la.pool, 2, &err), &err);
    float *x = check_floats(ROWS * COLS), *x0 = check_floats(ROWS * COLS);
    float *ones = check_floats(ROWS);
    fill(x, 1, false);
    fill(x0, 2, false);
    for (int t = 0; t < ROWS; t++)
        ones[t] = 1;
    nb_input_stats with, without;
    gather(&with, &la, x, x0, ones);
    gather(&without, &la, x, x0, NULL);
    same_sums(&run, &with, &without);
    check_finish(&run);
    /* and one that is not 1 is not lost */
    nb_input_stats_free(&with);
    ones[700] = 4;
    ones[1290] = 4;
    gather(&with, &la, x, x0, ones);
    check_run planted = {.name = "planted"};
    same_sums(&planted, &with, &without);
    check_caught(&planted);
    assert_true(nb_sym_row(&with.h, 3)[5] != nb_sym_row(&without.h, 3)[5]);
    assert_true(nb_sym_row(&with.held_h, 3)[5] != nb_sym_row(&without.held_h, 3)[5]);
    nb_input_stats_free(&with);
    nb_input_stats_free(&without);
    check_free(x);
    check_free(x0);
    check_free(ones);
    nb_algebra_free(&la);
    nb_pool_close(la.pool);
}

/* On integers, and weights that are squares of powers of two, every sum is exact. */
static void sums_are_weighted(void **state)
{
    (void)state;
    check_run run = {.name = "weighted"};
    nb_kernels kernels;
    nb_err err = {0};
    nb_algebra la = {.kernels = &kernels};
    nb_kernels_init(&kernels, NB_ISA_ALL);
    must(nb_pool_open(&la.pool, 1, &err), &err);
    float *x = check_floats(ROWS * COLS), *x0 = check_floats(ROWS * COLS);
    float *weights = check_floats(ROWS);
    fill(x, 3, true);
    fill(x0, 4, true);
    for (int t = 0; t < ROWS; t++)
        weights[t] = (float[]){0, 0.25f, 1, 4}[check_pick(6, (uint64_t)t, 4)];
    nb_input_stats s;
    gather(&s, &la, x, x0, weights);
    for (int64_t i = 0; i < COLS; i++) {
        double mean = 0, square = 0, most = 0;
        for (int64_t j = 0; j < COLS; j++) {
            double h[2] = {0}, cross[2] = {0};
            for (int64_t t = 0; t < ROWS; t++) {
                const double w = (double)weights[t], b = (double)x[t * COLS + j];
                h[t >= 1024] += w * (double)x[t * COLS + i] * b;
                cross[t >= 1024] += w * (double)x0[t * COLS + i] * b;
            }
            if (j >= i) {
                check_same_f64(&run, "h", nb_sym_row(&s.h, i)[j], h[0]);
                check_same_f64(&run, "held h", nb_sym_row(&s.held_h, i)[j], h[1]);
            }
            check_same_f64(&run, "cross", s.cross[i * COLS + j], cross[0]);
            check_same_f64(&run, "held cross", s.held_cross[i * COLS + j], cross[1]);
        }
        for (int64_t t = 0; t < ROWS; t++) {
            const double a = fabs((double)x[t * COLS + i]);
            mean += (double)weights[t] * a;
            square += (double)weights[t] * a * a;
            most = fmax(most, a);
        }
        check_same_f64(&run, "mean |x|", s.mean_abs[i], mean / ROWS);
        check_same_f64(&run, "mean x^2", s.mean_square[i], square / ROWS);
        check_same_f64(&run, "largest", (double)s.max_abs[i], most);
    }
    check_finish(&run);
    nb_input_stats_free(&s);
    check_free(x);
    check_free(x0);
    check_free(weights);
    nb_algebra_free(&la);
    nb_pool_close(la.pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_of_one_change_nothing),
        cmocka_unit_test(sums_are_weighted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
