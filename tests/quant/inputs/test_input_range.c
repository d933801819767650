/* What an observer that many threads fill has seen: the same for any number of them and however
 * rows were cut into calls; nothing that is no number; and nothing is lost where memory is. */
#include "support/golden.h"

#include "base/rng.h"
#include "quant/inputs/range.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N 70001 /* several chunks, and a rest */

/* Normal enough, with some values far out. */
static float *values(void)
{
    float *x = malloc(N * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < N; i++) {
        const double u = nb_rng_uniform(11, 5, (uint64_t)i) - 0.5;
        x[i] = (float)(u * u * u * (i % 997 == 0 ? 4000 : 8));
    }
    return x;
}

/* In calls of `step` values. */
static nb_input_range *fill(const float *x, int n_threads, int64_t step)
{
    nb_err err = {0};
    nb_input_range *r;
    nb_pool *pool;
    assert_int_equal(nb_pool_open(&pool, n_threads, &err), NB_OK);
    assert_int_equal(nb_input_range_new(&r, &err), NB_OK);
    for (int64_t i = 0; i < N; i += step)
        assert_int_equal(nb_input_range_add(r, pool, x + i, i + step < N ? step : N - i, &err),
                         NB_OK);
    nb_pool_close(pool);
    return r;
}

static void threads_and_calls_do_not_matter(void **state)
{
    (void)state;
    static const nb_observing ways[] = {{NB_OBSERVE_MINMAX, 0},
                                        {NB_OBSERVE_PERCENTILE, 0},
                                        {NB_OBSERVE_PERCENTILE, 97.5},
                                        {NB_OBSERVE_ENTROPY, 0},
                                        {NB_OBSERVE_MSE, 0}};
    float *x = values(), most = 0;
    for (int64_t i = 0; i < N; i++)
        most = fmaxf(most, fabsf(x[i]));
    nb_input_range *plain = fill(x, 1, N);
    float scales[5];
    for (int w = 0; w < 5; w++)
        scales[w] = nb_input_range_scale(plain, &ways[w], NB_RANGE_INT8);
    assert_true(scales[0] == most / 127.0f);
    for (int w = 1; w < 5; w++) /* to a bin of the histogram */
        assert_true(scales[w] > 0 && scales[w] < 1.01f * scales[0]);
    assert_true(scales[2] < scales[1] && scales[2] < 0.5f * scales[0]);
    for (int threads = 1; threads <= 5; threads += 2) {
        static const int64_t steps[] = {N, 16384, 577, 30000};
        for (int s = 0; s < 4; s++) {
            nb_input_range *r = fill(x, threads, steps[s]);
            assert_int_equal(r->all.n, N);
            for (int w = 0; w < 5; w++)
                assert_true(nb_input_range_scale(r, &ways[w], NB_RANGE_INT8) == scales[w]);
            nb_input_range_free(r);
        }
    }
    nb_input_range_free(plain);
    free(x);
}

/* Wherever it stands, in whichever thread's chunk. */
static void what_is_no_number_is_refused(void **state)
{
    (void)state;
    static const int64_t at[] = {0, 16383, 16384, 40000, N - 1};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    nb_err err = {0};
    nb_pool *pool;
    nb_input_range *r;
    float *x = values();
    assert_int_equal(nb_pool_open(&pool, 3, &err), NB_OK);
    assert_int_equal(nb_input_range_new(&r, &err), NB_OK);
    for (int i = 0; i < 5; i++) {
        for (int b = 0; b < 3; b++) {
            const float was = x[at[i]];
            x[at[i]] = bad[b];
            assert_int_equal(nb_input_range_add(r, pool, x, N, &err), NB_DATA);
            assert_string_equal(err.text, "an input of the layer is not finite");
            x[at[i]] = was;
        }
    }
    assert_int_equal(nb_input_range_add(r, pool, x, N, &err), NB_OK);
    nb_input_range_free(r);
    nb_input_range_free(NULL);
    nb_pool_close(pool);
    free(x);
}

static void allocation_failures_leave_it_as_it_was(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_pool *pool;
    nb_input_range *r = NULL;
    float *x = values();
    assert_int_equal(nb_pool_open(&pool, 2, &err), NB_OK);
    const int64_t live = nb_alloc_live();
    nb_alloc_fail_at(1);
    assert_int_equal(nb_input_range_new(&r, &err), NB_MEMORY);
    nb_alloc_fail_at(0);
    assert_int_equal(nb_alloc_live(), live);
    assert_int_equal(nb_input_range_new(&r, &err), NB_OK);
    nb_alloc_fail_at(1);
    assert_int_equal(nb_input_range_add(r, pool, x, N, &err), NB_MEMORY);
    nb_alloc_fail_at(0);
    assert_int_equal(r->all.n, 0);
    assert_int_equal(nb_input_range_add(r, pool, x, N, &err), NB_OK);
    assert_int_equal(r->all.n, N);
    nb_input_range_free(r);
    assert_int_equal(nb_alloc_live(), live);
    nb_pool_close(pool);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_and_calls_do_not_matter),
        cmocka_unit_test(what_is_no_number_is_refused),
        cmocka_unit_test(allocation_failures_leave_it_as_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
