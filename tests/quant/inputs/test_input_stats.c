/* Statistics of inputs: what naive sums give, however the rows came, and a sample from everywhere.
 */
#include "quant/inputs/stats.h"

#include "base/rng.h"
#include "support/check.h"
#include "support/golden.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALL_STATS                                                                                  \
    (NB_STAT_HESSIAN | NB_STAT_HELD_OUT | NB_STAT_CROSS | NB_STAT_MAGNITUDE | NB_STAT_SAMPLE)

static nb_err err;
static nb_kernels kernels;
static nb_pool *pool;

static int setup(void **state)
{
    (void)state;
    nb_kernels_init(&kernels, NB_ISA_ALL);
    return nb_pool_open(&pool, 2, &err) == NB_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    nb_pool_close(pool);
    return 0;
}

/* Three sequences, the second held out. */
#define N_SEQS 3
static const int64_t lengths[N_SEQS] = {300, 129, 128};
#define N_ROWS 557

typedef struct {
    int64_t n;
    float *x, *x0, *weights;
} rows;

static rows made(int64_t n)
{
    rows r = {n, malloc(sizeof(float) * (size_t)(N_ROWS * n)),
              malloc(sizeof(float) * (size_t)(N_ROWS * n)), malloc(sizeof(float) * N_ROWS)};
    assert_true(r.x != NULL && r.x0 != NULL && r.weights != NULL);
    for (int64_t i = 0; i < N_ROWS * n; i++) {
        r.x[i] = (float)(nb_rng_uniform(1, 1, (uint64_t)i) * 2 - 1);
        r.x0[i] = (float)(nb_rng_uniform(1, 2, (uint64_t)i) * 2 - 1);
    }
    for (int64_t t = 0; t < N_ROWS; t++) {
        if (n > 1)
            r.x[t * n + 1] = 0; /* a column that never speaks */
        r.weights[t] = t % 5 == 0 ? 0 : (float)(nb_rng_uniform(1, 3, (uint64_t)t) * 2.5);
    }
    return r;
}

static void drop(rows *r)
{
    free(r->x);
    free(r->x0);
    free(r->weights);
}

/* Adds all rows, at most `step` of a sequence at a time. */
static void add_all(nb_input_stats *s, const rows *r, unsigned needs, int64_t step, bool weighted)
{
    nb_algebra la = {.kernels = &kernels, .pool = pool};
    assert_int_equal(nb_input_stats_init(s, r->n, needs, N_ROWS, &err), NB_OK);
    int64_t first = 0;
    for (int q = 0; q < N_SEQS; q++) {
        for (int64_t at = 0; at < lengths[q]; at += step) {
            const int64_t left = lengths[q] - at, m = left < step ? left : step, row = first + at;
            assert_int_equal(nb_input_stats_add(s, &la, r->x + row * r->n,
                                                (needs & NB_STAT_CROSS) ? r->x0 + row * r->n : NULL,
                                                weighted ? r->weights + row : NULL, m, q == 1,
                                                &err),
                             NB_OK);
        }
        first += lengths[q];
    }
    nb_input_stats_finish(s);
    nb_algebra_free(&la);
}

static bool counts_in(int64_t t, bool held)
{
    return held == (t >= lengths[0] && t < lengths[0] + lengths[1]);
}

/* Sums of products, in double. The contract's pieces are in binary32, so each product may be off
 * by its rounding and those of at most 128 partial sums. */
static void check_sums(check_run *run, const rows *r, const nb_input_stats *s, bool weighted)
{
    for (int held = 0; held < 2; held++) {
        const nb_sym *h = held ? &s->held_h : &s->h;
        const double *cross = held ? s->held_cross : s->cross;
        for (int64_t i = 0; i < r->n; i++) {
            for (int64_t j = 0; j < r->n; j++) {
                double sum = 0, sum0 = 0, size = 0, size0 = 0;
                for (int64_t t = 0; t < N_ROWS; t++) {
                    if (!counts_in(t, held))
                        continue;
                    const double w = weighted ? (double)r->weights[t] : 1;
                    const double a = (double)r->x[t * r->n + i], b = (double)r->x[t * r->n + j];
                    const double a0 = (double)r->x0[t * r->n + i];
                    sum += w * a * b;
                    sum0 += w * a0 * b;
                    size += fabs(w * a * b);
                    size0 += fabs(w * a0 * b);
                }
                const double ulps = (128 + (weighted ? 6 : 0)) * 0x1p-24;
                if (j >= i)
                    check_near(run, "h", nb_sym_row(h, i)[j], sum, ulps * size);
                check_near(run, "cross", cross[i * r->n + j], sum0, ulps * size0);
            }
        }
    }
}

static void check_magnitudes(check_run *run, const rows *r, const nb_input_stats *s, bool weighted)
{
    for (int64_t c = 0; c < r->n; c++) {
        double sum = 0, square = 0;
        float most = 0;
        for (int64_t t = 0; t < N_ROWS; t++) {
            const float a = fabsf(r->x[t * r->n + c]);
            const double w = weighted ? (double)r->weights[t] : 1;
            sum += w * (double)a;
            square += w * (double)a * (double)a;
            most = a > most ? a : most;
        }
        check_near(run, "mean |x|", s->mean_abs[c], sum / N_ROWS, 1e-12);
        check_near(run, "mean x^2", s->mean_square[c], square / N_ROWS, 1e-12);
        check_same_f32(run, "largest |x|", &s->max_abs[c], &most, 1);
    }
}

static void sums_are_what_naive_sums_are(void **state)
{
    (void)state;
    static const int64_t widths[] = {1, 7, 65, 130};
    for (size_t k = 0; k < sizeof widths / sizeof *widths; k++) {
        check_run run = {.name = "input statistics"};
        rows r = made(widths[k]);
        for (int weighted = 0; weighted < 2; weighted++) {
            nb_input_stats s;
            add_all(&s, &r, ALL_STATS, 2048, weighted);
            assert_int_equal(s.n_tokens, lengths[0] + lengths[2]);
            assert_int_equal(s.n_held, lengths[1]);
            check_sums(&run, &r, &s, weighted);
            check_magnitudes(&run, &r, &s, weighted);
            nb_input_stats_free(&s);
        }
        /* a row that is left out shows */
        nb_input_stats s;
        add_all(&s, &r, ALL_STATS, 2048, false);
        check_run planted = {.name = "a missing row"};
        r.x[0] += 0.25f;
        check_sums(&planted, &r, &s, false);
        check_caught(&planted);
        nb_input_stats_free(&s);
        check_finish(&run);
        drop(&r);
    }
}

/* Cut at any multiples of 128, the same bits. */
static void cuts_do_not_show(void **state)
{
    (void)state;
    rows r = made(70);
    for (int weighted = 0; weighted < 2; weighted++) {
        check_run run = {.name = "cuts"};
        nb_input_stats whole;
        add_all(&whole, &r, ALL_STATS, 2048, weighted);
        for (int64_t step = 128; step <= 384; step += 128) {
            nb_input_stats s;
            add_all(&s, &r, ALL_STATS, step, weighted);
            const size_t square = sizeof(double) * (size_t)(r.n * r.n);
            for (int64_t i = 0; i < r.n; i++) {
                const size_t n = sizeof(double) * (size_t)(r.n - i);
                check_same_bytes(&run, "h", nb_sym_row(&s.h, i) + i, nb_sym_row(&whole.h, i) + i,
                                 n);
                check_same_bytes(&run, "held h", nb_sym_row(&s.held_h, i) + i,
                                 nb_sym_row(&whole.held_h, i) + i, n);
            }
            check_same_bytes(&run, "cross", s.cross, whole.cross, square);
            check_same_bytes(&run, "held cross", s.held_cross, whole.held_cross, square);
            const size_t vector = sizeof(double) * (size_t)r.n;
            check_same_bytes(&run, "mean |x|", s.mean_abs, whole.mean_abs, vector);
            check_same_bytes(&run, "mean x^2", s.mean_square, whole.mean_square, vector);
            check_same_f32(&run, "largest", s.max_abs, whole.max_abs, r.n);
            assert_int_equal(s.n_sample, whole.n_sample);
            check_same_f32(&run, "sample", s.sample, whole.sample, s.n_sample * r.n);
            nb_input_stats_free(&s);
        }
        nb_input_stats_free(&whole);
        check_finish(&run);
    }
    drop(&r);
}

/* A step of a walk has 2,048 rows, and rows are weighted some hundreds at a time: each gets its own
 * weight. Weights of 1 are none. */
static void rows_of_one_call_are_weighted_one_by_one(void **state)
{
    (void)state;
    enum { N = 1300, COLS = 24 };
    const unsigned needs = NB_STAT_HESSIAN | NB_STAT_CROSS | NB_STAT_MAGNITUDE;
    nb_algebra la = {.kernels = &kernels, .pool = pool};
    check_run run = {.name = "one call"};
    float *x = check_floats(N * COLS), *x0 = check_floats(N * COLS), *weights = check_floats(N);
    check_fill(x, N * COLS, CHECK_RANDOM, 1);
    check_fill(x0, N * COLS, CHECK_RANDOM, 2);
    for (int how = 0; how < 2; how++) {
        nb_input_stats whole, parts;
        assert_int_equal(nb_input_stats_init(&whole, COLS, needs, N, &err), NB_OK);
        assert_int_equal(nb_input_stats_init(&parts, COLS, needs, N, &err), NB_OK);
        for (int64_t t = 0; t < N; t++)
            weights[t] = how == 0 ? 1.0f : (float)(nb_rng_uniform(1, 4, (uint64_t)t) * 3);
        assert_int_equal(nb_input_stats_add(&whole, &la, x, x0, weights, N, false, &err), NB_OK);
        for (int64_t row = 0; row < N; row += 128)
            assert_int_equal(nb_input_stats_add(&parts, &la, x + row * COLS, x0 + row * COLS,
                                                how == 0 ? NULL : weights + row,
                                                N - row < 128 ? N - row : 128, false, &err),
                             NB_OK);
        for (int64_t i = 0; i < COLS; i++)
            check_same_bytes(&run, "h", nb_sym_row(&whole.h, i) + i, nb_sym_row(&parts.h, i) + i,
                             sizeof(double) * (size_t)(COLS - i));
        check_same_bytes(&run, "cross", whole.cross, parts.cross, sizeof(double) * COLS * COLS);
        check_same_bytes(&run, "mean |x|", whole.mean_abs, parts.mean_abs, sizeof(double) * COLS);
        check_same_bytes(&run, "mean x^2", whole.mean_square, parts.mean_square,
                         sizeof(double) * COLS);
        nb_input_stats_free(&whole);
        nb_input_stats_free(&parts);
    }
    check_finish(&run);
    check_free(x);
    check_free(x0);
    check_free(weights);
    nb_algebra_free(&la);
}

/* Of n tokens, min(n, 512), no two of which are further apart than n / 512, and then some. */
static void the_sample_is_spread_evenly(void **state)
{
    (void)state;
    static const int64_t counts[] = {1, 511, 512, 513, 1000, 1024, 5000};
    nb_algebra la = {.kernels = &kernels, .pool = pool};
    for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
        const int64_t n = counts[k];
        nb_input_stats s;
        assert_int_equal(nb_input_stats_init(&s, 1, NB_STAT_SAMPLE, n, &err), NB_OK);
        for (int64_t t = 0; t < n; t += 128) {
            float x[128];
            const int64_t m = n - t < 128 ? n - t : 128;
            for (int64_t i = 0; i < m; i++)
                x[i] = (float)(t + i);
            assert_int_equal(nb_input_stats_add(&s, &la, x, NULL, NULL, m, false, &err), NB_OK);
        }
        nb_input_stats_finish(&s);
        assert_int_equal(s.n_sample, n < NB_SAMPLE_ROWS ? n : NB_SAMPLE_ROWS);
        bool elsewhere = n < 2 * NB_SAMPLE_ROWS; /* not always at the same place of a stretch */
        for (int64_t i = 0; i < s.n_sample; i++) {
            const int64_t at = (int64_t)s.sample[i];
            const int64_t first = (i * n + s.n_sample - 1) / s.n_sample;
            assert_true(at * s.n_sample / n == i);
            if (i % 16 == 0)
                assert_int_equal(at, first); /* where sequences may begin */
            elsewhere |= at != first;
        }
        assert_true(elsewhere);
        nb_input_stats_free(&s);
    }
    nb_algebra_free(&la);
}

/* Without held-out tokens, the second copies are dropped, and what was not asked for is not there.
 */
static void only_what_is_wanted_is_kept(void **state)
{
    (void)state;
    static const unsigned needs[] = {NB_STAT_HESSIAN,
                                     NB_STAT_HESSIAN | NB_STAT_HELD_OUT,
                                     NB_STAT_HESSIAN | NB_STAT_CROSS | NB_STAT_HELD_OUT,
                                     NB_STAT_MAGNITUDE,
                                     NB_STAT_SAMPLE,
                                     NB_STAT_MAGNITUDE | NB_STAT_SAMPLE};
    nb_algebra la = {.kernels = &kernels, .pool = pool};
    static const float x[3 * 4] = {1, 2, 3, 4, -1, -2, -3, -4, 0.5f, 0, 0, 1};
    const int64_t live = nb_alloc_live();
    for (size_t k = 0; k < sizeof needs / sizeof *needs; k++) {
        nb_input_stats s;
        assert_int_equal(nb_input_stats_init(&s, 4, needs[k], 3, &err), NB_OK);
        const float *x0 = (needs[k] & NB_STAT_CROSS) ? x : NULL;
        assert_int_equal(nb_input_stats_add(&s, &la, x, x0, NULL, 3, false, &err), NB_OK);
        nb_input_stats_finish(&s);
        assert_int_equal(s.h.a != NULL, (needs[k] & NB_STAT_HESSIAN) != 0);
        assert_int_equal(s.cross != NULL, (needs[k] & NB_STAT_CROSS) != 0);
        assert_int_equal(s.max_abs != NULL, (needs[k] & NB_STAT_MAGNITUDE) != 0);
        assert_int_equal(s.sample != NULL, (needs[k] & NB_STAT_SAMPLE) != 0);
        assert_true(s.held_h.a == NULL && s.held_cross == NULL);
        if (s.h.a != NULL)
            assert_true(nb_sym_row(&s.h, 0)[3] == 4 + 4 + 0.5);
        if (s.max_abs != NULL)
            assert_true(s.max_abs[3] == 4 && s.mean_abs[0] == 2.5 / 3);
        nb_input_stats_free(&s);
        nb_input_stats_free(&s);
    }
    nb_algebra_free(&la);
    assert_int_equal(nb_alloc_live(), live);
}

static void memory_that_fails_leaves_nothing(void **state)
{
    (void)state;
    rows r = made(9);
    const int64_t live = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_algebra la = {.kernels = &kernels, .pool = pool};
        nb_input_stats s = {0};
        nb_alloc_fail_at(n);
        nb_status status = nb_input_stats_init(&s, r.n, ALL_STATS, N_ROWS, &err);
        if (status == NB_OK)
            status = nb_input_stats_add(&s, &la, r.x, r.x0, r.weights, 200, true, &err);
        nb_alloc_fail_at(0);
        nb_input_stats_free(&s);
        nb_algebra_free(&la);
        assert_int_equal(nb_alloc_live(), live);
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_MEMORY);
    }
    assert_true(n > 8);
    drop(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_what_naive_sums_are),
        cmocka_unit_test(cuts_do_not_show),
        cmocka_unit_test(rows_of_one_call_are_weighted_one_by_one),
        cmocka_unit_test(the_sample_is_spread_evenly),
        cmocka_unit_test(only_what_is_wanted_is_kept),
        cmocka_unit_test(memory_that_fails_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
