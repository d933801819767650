/* Weights as floats: the values that rows of any format have, and the first that is not finite,
 * whichever thread meets one. */
#include "quant/weight/widen.h"

#include "support/check.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <math.h>
#include <stdio.h>

#define N_COLS 64
#define MOST   37 /* two chunks and a part of one */

static float values[MOST * N_COLS];

/* The same values in a format; rows lie one behind the other. */
static nb_mat mat_of(const nb_format *fmt, int64_t n_rows, uint8_t *codes)
{
    nb_mat m = {.fmt = fmt, .n_rows = n_rows, .n_cols = N_COLS, .codes = codes};
    m.row_bytes = N_COLS / fmt->block_len * fmt->block_bytes;
    for (int64_t r = 0; r < n_rows; r++)
        fmt->encode_row(&m, r, values + r * N_COLS);
    return m;
}

static void all_rows_are_there_and_nothing_else(void **state)
{
    (void)state;
    static const nb_format *const formats[] = {&nb_format_f32, &nb_format_bf16, &nb_format_f16,
                                               &nb_format_q8_0, &nb_format_q4_1};
    static const int64_t n_rows[] = {1, 15, 16, 17, 32, MOST};
    static uint8_t codes[sizeof values];
    check_run run = {.name = "widened rows"};
    nb_err err;
    check_fill(values, MOST * N_COLS, CHECK_RANDOM, 1);
    for (int threads = 1; threads <= 3; threads++) {
        nb_pool *pool;
        assert_int_equal(nb_pool_open(&pool, threads, &err), NB_OK);
        for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
            for (size_t i = 0; i < sizeof n_rows / sizeof *n_rows; i++) {
                float want[MOST * N_COLS];
                const int64_t n = n_rows[i] * N_COLS;
                const nb_mat m = mat_of(formats[f], n_rows[i], codes);
                float *got = check_floats(n);
                for (int64_t r = 0; r < n_rows[i]; r++)
                    m.fmt->decode_row(&m, r, want + r * N_COLS);
                nb_widen(&m, got, pool);
                check_same_f32(&run, formats[f]->name, got, want, n);
                check_guard(&run, formats[f]->name, got);
                check_free(got);
            }
        }
        nb_pool_close(pool);
    }
    check_finish(&run);
}

/* A value anywhere, and worse ones behind it that another thread may meet first. */
static void the_first_value_that_is_not_finite_is_named(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const char *const said[] = {"nan", "inf", "-inf"};
    static float out[MOST * N_COLS];
    const nb_weight weight = {.name = "blocks.w"};
    nb_store *store;
    nb_err err;
    assert_int_equal(nb_store_open(&store, tiny_model_write("m", &(tiny_model){0}), &err), NB_OK);
    for (int threads = 1; threads <= 3; threads++) {
        nb_pool *pool;
        assert_int_equal(nb_pool_open(&pool, threads, &err), NB_OK);
        check_fill(values, MOST * N_COLS, CHECK_EXTREME, (uint64_t)threads);
        const nb_mat m = {.fmt = &nb_format_f32,
                          .n_rows = MOST,
                          .n_cols = N_COLS,
                          .codes = (uint8_t *)values,
                          .row_bytes = N_COLS * (int64_t)sizeof(float)};
        assert_int_equal(nb_widen_finite(store, &weight, 0, &m, out, pool, &err), NB_OK);
        assert_memory_equal(out, values, sizeof out);
        for (int64_t at = MOST * N_COLS - 1; at >= 0; at -= at % 5 == 0 ? 1 : 13) {
            char want[300];
            const int kind = (int)(at % 3);
            values[at] = bad[kind];
            assert_int_equal(nb_widen_finite(store, &weight, 100, &m, out, pool, &err), NB_DATA);
            snprintf(want, sizeof want, "%.150s: tensor 'blocks.w' holds %s at [%d, %d]",
                     nb_store_path(store), said[kind], (int)(100 + at / N_COLS),
                     (int)(at % N_COLS));
            assert_string_equal(err.text, want);
        }
        nb_pool_close(pool);
    }
    nb_store_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_rows_are_there_and_nothing_else),
        cmocka_unit_test(the_first_value_that_is_not_finite_is_named),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
