/* Second moments and their linear algebra: sums against plain loops; factor, inverse, solutions and
 * losses bit for bit against plain loops over scalars in the stated order, on every instruction set
 * and 1 to 3 threads; and against what they mean, within derived bounds. */
#include "kernel/machines.h"
#include "quant/inputs/hessian.h"
#include "support/check.h"
#include "support/golden.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static nb_err err;

/* The fastest table and two threads. */
static nb_algebra algebra(void)
{
    return (nb_algebra){.kernels = &tables[n_tables - 1], .pool = pools[1]};
}

static const int64_t sizes[] = {1, 2, 127, 128, 129, 300};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static double *doubles(int64_t n)
{
    double *p = calloc((size_t)n + 1, sizeof *p);
    assert_non_null(p);
    return p;
}

static double *element(const nb_sym *s, int64_t i, int64_t j)
{
    return nb_sym_row(s, i) + j;
}

/* Random rows with correlated columns: x = z + a sum of the others. */
static float *activations(int64_t n_rows, int64_t n, uint64_t seed)
{
    float *x = check_floats(n_rows * n);
    check_fill(x, n_rows * n, CHECK_RANDOM, seed);
    for (int64_t t = 0; t < n_rows; t++)
        for (int64_t j = 1; j < n; j++)
            x[t * n + j] += 0.5f * x[t * n + j - 1];
    return x;
}

/* A positive matrix with a full upper triangle; what lies below the diagonal is NaN. */
static void positive_sym(nb_sym *s, int64_t n, uint64_t seed)
{
    assert_int_equal(nb_sym_init(s, n, &err), NB_OK);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = i / 128 * 128; j < i; j++)
            *element(s, i, j) = NAN;
        for (int64_t j = i; j < n; j++)
            *element(s, i, j) = (double)check_pick(seed, (uint64_t)(i * n + j), 2001) / 1000 - 1 +
                                (i == j ? (double)n : 0);
    }
}

static void copy_of(nb_sym *to, const nb_sym *from)
{
    assert_int_equal(nb_sym_init(to, from->n, &err), NB_OK);
    nb_sym_copy(to, from);
}

static void check_upper(check_run *run, const char *what, const nb_sym *got, const nb_sym *want)
{
    for (int64_t i = 0; i < got->n; i++)
        for (int64_t j = i; j < got->n; j++)
            check_same_f64(run, what, *element(got, i, j), *element(want, i, j));
}

/* ---- storage ---- */

static void test_storage(void **state)
{
    (void)state;
    for (int i = 0; i < N_SIZES; i++) {
        const int64_t n = sizes[i];
        nb_sym s, t;
        assert_int_equal(nb_sym_init(&s, n, &err), NB_OK);
        int64_t end = 0;
        for (int64_t r = 0; r < n; r++) { /* rows follow each other without gaps */
            assert_int_equal(s.row_at[r] + r / 128 * 128, end);
            end = s.row_at[r] + n;
            for (int64_t j = r; j < n; j++) {
                assert_true(*element(&s, r, j) == 0);
                *element(&s, r, j) = (double)(r * n + j);
            }
        }
        assert_int_equal(nb_sym_bytes(n), end * 8 + n * 8);
        copy_of(&t, &s);
        nb_sym_add(&t, &s);
        for (int64_t r = 0; r < n; r++)
            for (int64_t j = r; j < n; j++)
                assert_true(*element(&t, r, j) == 2 * (double)(r * n + j));
        nb_sym_free(&s);
        nb_sym_free(&t);
    }
    nb_sym none;
    assert_int_equal(nb_sym_init(&none, 0, &err), NB_OK);
    nb_sym_damp(&none, 0.1, 0.1);
    nb_sym_free(&none);
    assert_int_equal(nb_sym_init(&none, INT64_MAX / 4, &err), NB_LIMIT);
    assert_int_equal(nb_sym_init(&none, -1, &err), NB_LIMIT);
    assert_null(none.a);
    nb_sym_free(&none);
}

/* ---- sums ---- */

static double plain_moment(const float *a, const float *b, int64_t ld, int64_t n_rows, int64_t i,
                           int64_t j)
{
    double c = 0;
    for (int64_t t0 = 0; t0 < n_rows; t0 += 128) {
        float sum = 0;
        for (int64_t t = t0; t < n_rows && t < t0 + 128; t++)
            sum = fmaf(a[t * ld + i], b[t * ld + j], sum);
        c += (double)sum;
    }
    return c;
}

static void test_sums(void **state)
{
    (void)state;
    check_run run = {.name = "sums over tokens"};
    for (int i = 0; i < N_SIZES; i++) {
        const int64_t n = sizes[i], n_rows = i % 2 ? 130 : 260;
        float *a = activations(n_rows, n, 1), *b = activations(n_rows, n, 2);
        for (int t = 0; t < MAX_THREADS; t++) {
            nb_algebra la = {.kernels = &tables[n_tables - 1], .pool = pools[t]};
            nb_sym s;
            assert_int_equal(nb_sym_init(&s, n, &err), NB_OK);
            double *cross = doubles(n * n);
            /* cut at a multiple of 128 */
            assert_int_equal(nb_sym_add_rows(&la, &s, a, n, 128, &err), NB_OK);
            assert_int_equal(nb_sym_add_rows(&la, &s, a + 128 * n, n, n_rows - 128, &err), NB_OK);
            assert_int_equal(nb_cross_add_rows(&la, cross, n, a, b, n, n_rows, &err), NB_OK);
            for (int64_t r = 0; r < n; r++)
                for (int64_t j = 0; j < n; j++) {
                    if (j >= r)
                        check_same_f64(&run, "moment", *element(&s, r, j),
                                       plain_moment(a, a, n, n_rows, r, j));
                    if (t == 0)
                        check_same_f64(&run, "cross moment", cross[r * n + j],
                                       plain_moment(a, b, n, n_rows, r, j));
                }
            nb_sym_free(&s);
            free(cross);
            nb_algebra_free(&la);
        }
        check_free(a);
        check_free(b);
    }
    check_finish(&run);
}

/* ---- damping ---- */

static void test_damp(void **state)
{
    (void)state;
    enum { N = 131 };
    nb_sym s, before;
    positive_sym(&s, N, 3);
    for (int64_t i = 0; i < N;
         i++) /* a column that is zero, and one whose squares were too small */
        for (int64_t j = i; j < N; j++)
            if (i == 7 || j == 7 || (i == 130 && j == 130))
                *element(&s, i, j) = 0;
    copy_of(&before, &s);
    double mean = 0;
    for (int64_t i = 0; i < N; i++)
        mean += *element(&s, i, i) / N;
    nb_sym_damp(&s, 0.25, 0.01);
    check_run run = {.name = "damping"};
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = i; j < N; j++) {
            const double was = *element(&before, i, j);
            double want = 0.75 * was;
            if (i == j)
                want = was == 0 ? 1 : was + 0.01 * mean;
            else if (j == 130)
                want = 0;
            check_near(&run, "", *element(&s, i, j), want, 1e-13 * fabs(want));
        }
    check_finish(&run);
    nb_sym_copy(&s, &before);
    nb_sym_damp(&s, 0, 0);
    for (int64_t i = 0; i < N; i++) {
        assert_true(*element(&s, i, i) == (i == 7 || i == 130 ? 1 : *element(&before, i, i)));
        if (i < 130 && i != 7)
            assert_true(*element(&s, i, 130) == 0 && *element(&before, i, 130) != 0);
    }
    nb_sym_free(&s);
    nb_sym_free(&before);
}

/* ---- the definitions, over scalars ---- */

static void plain_factor(const nb_sym *s)
{
    for (int64_t j = s->n - 1; j >= 0; j--) {
        *element(s, j, j) = sqrt(*element(s, j, j));
        for (int64_t i = 0; i < j; i++)
            *element(s, i, j) *= 1 / *element(s, j, j);
        for (int64_t i = 0; i < j; i++)
            for (int64_t k = i; k < j; k++)
                *element(s, i, k) = fma(-*element(s, i, j), *element(s, k, j), *element(s, i, k));
    }
}

/* y R = y */
static void plain_up(const nb_sym *r, double *y)
{
    for (int64_t j = 0; j < r->n; j++) {
        y[j] *= 1 / *element(r, j, j);
        for (int64_t k = j + 1; k < r->n; k++)
            y[k] = fma(-y[j], *element(r, j, k), y[k]);
    }
}

/* y R^T = y */
static void plain_down(const nb_sym *r, double *y)
{
    for (int64_t j = r->n - 1; j >= 0; j--) {
        y[j] *= 1 / *element(r, j, j);
        for (int64_t k = 0; k < j; k++)
            y[k] = fma(-y[j], *element(r, k, j), y[k]);
    }
}

static void plain_loss(const nb_sym *s, const float *e, double *loss)
{
    *loss = 0;
    for (int64_t j = 0; j < s->n; j++) {
        double y = 0;
        for (int64_t i = 0; i <= j; i++)
            y = fma(-(double)e[i], *element(s, i, j) * (i == j ? 0.5 : 1), y);
        *loss -= 2 * y * (double)e[j];
    }
}

/* ---- the same bits on every machine ---- */

static void test_bits(void **state)
{
    (void)state;
    enum { N_ROWS = 50 };
    check_run run = {.name = "linear algebra"};
    for (int i = 0; i < N_SIZES; i++) {
        const int64_t n = sizes[i];
        nb_sym s, factor, inverse;
        positive_sym(&s, n, 4);
        copy_of(&factor, &s);
        plain_factor(&factor);
        assert_int_equal(nb_sym_init(&inverse, n, &err), NB_OK);
        double *y = doubles(n), *v = doubles(N_ROWS * n), *solved = doubles(N_ROWS * n);
        for (int64_t r = 0; r < n; r++) {
            memset(y, 0, (size_t)n * sizeof *y);
            y[r] = 1;
            plain_up(&factor, y);
            memcpy(element(&inverse, r, r), y + r, (size_t)(n - r) * sizeof *y);
        }
        float *e = check_floats(N_ROWS * n);
        check_fill(e, N_ROWS * n, CHECK_RANDOM, 5);
        double loss[N_ROWS], want_loss[N_ROWS];
        for (int64_t r = 0; r < N_ROWS; r++) {
            for (int64_t j = 0; j < n; j++)
                solved[r * n + j] = (double)e[r * n + j];
            plain_down(&factor, solved + r * n);
            plain_up(&factor, solved + r * n);
            plain_loss(&s, e + r * n, &want_loss[r]);
        }
        for (int k = 0; k < n_tables; k++)
            for (int t = 0; t < MAX_THREADS; t++) {
                if (k == 0 && t != 1)
                    continue;
                nb_algebra la = {.kernels = &tables[k], .pool = pools[t]};
                char what[80];
                snprintf(what, sizeof what, "n = %lld, table %d, %d threads", (long long)n, k,
                         t + 1);
                nb_sym r;
                copy_of(&r, &s);
                bool positive = false;
                assert_int_equal(nb_sym_factor(&la, &r, &positive, &err), NB_OK);
                assert_true(positive);
                check_upper(&run, what, &r, &factor);
                for (int64_t a = 0; a < N_ROWS * n; a++)
                    v[a] = (double)e[a];
                assert_int_equal(nb_sym_solve_rows(&la, &r, v, N_ROWS, &err), NB_OK);
                for (int64_t a = 0; a < N_ROWS * n; a++)
                    check_same_f64(&run, what, v[a], solved[a]);
                assert_int_equal(nb_sym_invert_factor(&la, &r, &err), NB_OK);
                check_upper(&run, what, &r, &inverse);
                assert_int_equal(nb_sym_loss_rows(&la, &s, e, N_ROWS, loss, &err), NB_OK);
                for (int64_t a = 0; a < N_ROWS; a++)
                    check_same_f64(&run, what, loss[a], want_loss[a]);
                nb_sym_free(&r);
                nb_algebra_free(&la);
            }
        check_free(e);
        free(y);
        free(v);
        free(solved);
        nb_sym_free(&s);
        nb_sym_free(&factor);
        nb_sym_free(&inverse);
    }
    check_finish(&run);
}

/* ---- what they mean ---- */

/* Bounds from Higham, Accuracy and Stability of Numerical Algorithms, theorems 8.5 and 10.3, with
 * one rounding more for each multiplication by a reciprocal: gamma(n + 3) times the sum of the
 * magnitudes of what is added up. */
static double gamma_of(int64_t n)
{
    return (double)(n + 3) * DBL_EPSILON;
}

static void check_product(check_run *run, const char *what, const nb_sym *s, const nb_sym *r)
{
    for (int64_t i = 0; i < s->n; i++)
        for (int64_t j = i; j < s->n; j++) {
            double sum = 0, size = 0;
            for (int64_t k = j; k < s->n; k++) {
                sum += *element(r, i, k) * *element(r, j, k);
                size += fabs(*element(r, i, k) * *element(r, j, k));
            }
            check_near(run, what, sum, *element(s, i, j), 2 * gamma_of(s->n) * size);
        }
}

static void test_meaning(void **state)
{
    (void)state;
    enum { N_ROWS = 3 };
    check_run run = {.name = "meaning"};
    nb_algebra la = algebra();
    for (int i = 0; i < N_SIZES; i++) {
        const int64_t n = sizes[i], n_rows = 2 * n + 128;
        float *x = activations(n_rows, n, 6);
        nb_sym s, r, u;
        assert_int_equal(nb_sym_init(&s, n, &err), NB_OK);
        assert_int_equal(nb_sym_add_rows(&la, &s, x, n, n_rows, &err), NB_OK);
        nb_sym_damp(&s, 0, 0.01);
        copy_of(&r, &s);
        bool positive = false;
        assert_int_equal(nb_sym_factor(&la, &r, &positive, &err), NB_OK);
        assert_true(positive);
        check_product(&run, "S = R R^T", &s, &r);

        copy_of(&u, &r);
        assert_int_equal(nb_sym_invert_factor(&la, &u, &err), NB_OK);
        for (int64_t a = 0; a < n; a++)
            for (int64_t b = a; b < n; b++) {
                double sum = 0, size = 0;
                for (int64_t k = a; k <= b; k++) {
                    sum += *element(&u, a, k) * *element(&r, k, b);
                    size += fabs(*element(&u, a, k) * *element(&r, k, b));
                }
                check_near(&run, "R^-1 R = I", sum, a == b, 2 * gamma_of(n) * size);
            }

        /* v = w S^-1: the residual of v S, against |v| |R| |R^T| */
        double *v = doubles(N_ROWS * n), *w = doubles(N_ROWS * n), *z = doubles(n);
        for (int64_t a = 0; a < N_ROWS * n; a++)
            v[a] = w[a] = (double)x[a];
        assert_int_equal(nb_sym_solve_rows(&la, &r, v, N_ROWS, &err), NB_OK);
        for (int64_t row = 0; row < N_ROWS; row++) {
            for (int64_t k = 0; k < n; k++) {
                z[k] = 0;
                for (int64_t a = 0; a <= k; a++)
                    z[k] += fabs(v[row * n + a] * *element(&r, a, k));
            }
            for (int64_t b = 0; b < n; b++) {
                double sum = 0, size = 0;
                for (int64_t a = 0; a < n; a++)
                    sum += v[row * n + a] * (a <= b ? *element(&s, a, b) : *element(&s, b, a));
                for (int64_t k = b; k < n; k++)
                    size += z[k] * fabs(*element(&r, b, k));
                check_near(&run, "v S", sum, w[row * n + b], 4 * gamma_of(n) * size);
            }
        }

        double loss[N_ROWS];
        assert_int_equal(nb_sym_loss_rows(&la, &s, x, N_ROWS, loss, &err), NB_OK);
        for (int64_t row = 0; row < N_ROWS; row++) {
            double sum = 0, size = 0;
            for (int64_t a = 0; a < n; a++)
                for (int64_t b = 0; b < n; b++) {
                    const double h = a <= b ? *element(&s, a, b) : *element(&s, b, a);
                    sum += (double)x[row * n + a] * h * (double)x[row * n + b];
                    size += fabs((double)x[row * n + a] * h * (double)x[row * n + b]);
                }
            /* sums of n and n terms here, of n * n terms in the naive one */
            check_near(&run, "loss", loss[row], sum, gamma_of(n * n + 2 * n) * size);
        }
        free(v);
        free(w);
        free(z);
        check_free(x);
        nb_sym_free(&s);
        nb_sym_free(&r);
        nb_sym_free(&u);
    }
    nb_algebra_free(&la);
    check_finish(&run);
}

/* Exact numbers: S = R R^T of a known integer R gives R back to the last bit. */
static void test_exact(void **state)
{
    (void)state;
    enum { N = 200 };
    check_run run = {.name = "exact"};
    nb_algebra la = algebra();
    nb_sym s, r, u;
    assert_int_equal(nb_sym_init(&s, N, &err), NB_OK);
    assert_int_equal(nb_sym_init(&r, N, &err), NB_OK);
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = i; j < N; j++)
            *element(&r, i, j) = i == j ? 4 : (double)check_pick(7, (uint64_t)(i * N + j), 7) - 3;
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = i; j < N; j++)
            for (int64_t k = j; k < N; k++)
                *element(&s, i, j) += *element(&r, i, k) * *element(&r, j, k);
    bool positive = false;
    assert_int_equal(nb_sym_factor(&la, &s, &positive, &err), NB_OK);
    assert_true(positive);
    check_upper(&run, "integers", &s, &r);
    /* A planted fault: one element. */
    copy_of(&u, &r);
    *element(&u, 3, 150) += 1e-15;
    check_run fault = {.name = "planted"};
    check_upper(&fault, "", &u, &r);
    check_caught(&fault);
    check_finish(&run);
    nb_sym_free(&s);
    nb_sym_free(&r);
    nb_sym_free(&u);
    nb_algebra_free(&la);
}

/* ---- what is refused ---- */

static void test_not_positive(void **state)
{
    (void)state;
    nb_algebra la = algebra();
    static const double bad[] = {0, -1, NAN, INFINITY, -INFINITY};
    for (int i = 0; i < N_SIZES; i++)
        for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
            const int64_t n = sizes[i], places[] = {0, n / 2, n - 1};
            for (int p = 0; p < 3; p++) {
                nb_sym s;
                positive_sym(&s, n, 8);
                *element(&s, places[p], places[p]) = bad[b];
                bool positive = true;
                assert_int_equal(nb_sym_factor(&la, &s, &positive, &err), NB_OK);
                assert_false(positive);
                nb_sym_free(&s);
                if (n == 1)
                    continue;
                /* off the diagonal: more than the diagonals allow, or not a number */
                positive_sym(&s, n, 8);
                *element(&s, places[p] / 2, n - 1) = b < 2 ? 100 * (double)n : bad[b];
                positive = true;
                assert_int_equal(nb_sym_factor(&la, &s, &positive, &err), NB_OK);
                assert_false(positive);
                nb_sym_free(&s);
            }
        }
    nb_algebra_free(&la);
}

/* A matrix of rank 1 is not positive without damping, and is with it. */
static void test_damping_helps(void **state)
{
    (void)state;
    enum { N = 150 };
    nb_algebra la = algebra();
    float *x = activations(1, N, 9);
    nb_sym s, damped;
    assert_int_equal(nb_sym_init(&s, N, &err), NB_OK);
    assert_int_equal(nb_sym_add_rows(&la, &s, x, N, 1, &err), NB_OK);
    copy_of(&damped, &s);
    nb_sym_damp(&damped, 0, 0.01);
    bool positive = true;
    assert_int_equal(nb_sym_factor(&la, &s, &positive, &err), NB_OK);
    assert_false(positive);
    assert_int_equal(nb_sym_factor(&la, &damped, &positive, &err), NB_OK);
    assert_true(positive);
    check_free(x);
    nb_sym_free(&s);
    nb_sym_free(&damped);
    nb_algebra_free(&la);
}

/* Nothing leaks and nothing is written when the n-th allocation fails. */
static nb_status everything(nb_algebra *la, nb_sym *s, double *cross, const float *x, double *v)
{
    enum { N = 40 };
    bool positive;
    double loss[3];
    NB_TRY(nb_sym_init(s, N, &err));
    NB_TRY(nb_sym_add_rows(la, s, x, N, 3, &err));
    NB_TRY(nb_cross_add_rows(la, cross, N, x, x, N, 3, &err));
    nb_algebra_free(la);
    NB_TRY(nb_sym_loss_rows(la, s, x, 3, loss, &err));
    nb_algebra_free(la);
    nb_sym_damp(s, 0, 1);
    NB_TRY(nb_sym_factor(la, s, &positive, &err));
    nb_algebra_free(la);
    NB_TRY(nb_sym_solve_rows(la, s, v, 3, &err));
    nb_algebra_free(la);
    return nb_sym_invert_factor(la, s, &err);
}

static void test_no_memory(void **state)
{
    (void)state;
    enum { N = 40 };
    float *x = activations(3, N, 10);
    double *cross = doubles(N * N), *v = doubles(3 * N);
    const int64_t live = nb_alloc_live();
    int failures = 0;
    for (nb_status s = NB_MEMORY; s != NB_OK; failures++) {
        nb_algebra la = algebra();
        nb_sym h = {0};
        nb_alloc_fail_at(failures + 1);
        s = everything(&la, &h, cross, x, v);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        nb_sym_free(&h);
        nb_algebra_free(&la);
        assert_int_equal(nb_alloc_live(), live);
        assert_true(failures < 20);
    }
    assert_true(failures >= 7); /* two of a nb_sym and one of each function */
    check_free(x);
    free(cross);
    free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_storage),      cmocka_unit_test(test_sums),
        cmocka_unit_test(test_damp),         cmocka_unit_test(test_bits),
        cmocka_unit_test(test_meaning),      cmocka_unit_test(test_exact),
        cmocka_unit_test(test_not_positive), cmocka_unit_test(test_damping_helps),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
