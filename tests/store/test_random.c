/* Random weights: of every format, finite, about unit length a row, the same every time; and what
 * cannot be made is refused by name. */
#include "support/golden.h"
#include "base/alloc.h"
#include "store/random.h"

#include <math.h>
#include <string.h>

static nb_weight matrix(const nb_format *fmt, int64_t n_rows, int64_t n_cols, int64_t group,
                        bool symmetric)
{
    return (nb_weight){.name = "m",
                       .n_dims = 2,
                       .dims = {n_rows, n_cols},
                       .n_rows = n_rows,
                       .n_cols = n_cols,
                       .fmt = fmt,
                       .group_size = group,
                       .symmetric = symmetric,
                       .scale_type = NB_BF16};
}

static const struct {
    const nb_format *fmt;
    int64_t n_cols, group;
    bool symmetric;
} kinds[] = {
    {&nb_format_f32, 100, 0, true},     {&nb_format_f16, 100, 0, true},
    {&nb_format_bf16, 33, 0, true},     {&nb_format_q4_0, 256, 0, true},
    {&nb_format_q8_0, 96, 0, true},     {&nb_format_int4, 256, 32, true},
    {&nb_format_int4, 256, 128, false}, {&nb_format_int4, 37, 37, true},
    {&nb_format_int8, 101, 101, false}, {&nb_format_int8, 256, 64, true},
};
#define N_KINDS (sizeof kinds / sizeof *kinds)

static void every_format_is_finite_and_of_unit_length(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_KINDS; i++) {
        nb_err err = {0};
        const int64_t n_rows = 200, n_cols = kinds[i].n_cols;
        const nb_weight w =
            matrix(kinds[i].fmt, n_rows, n_cols, kinds[i].group, kinds[i].symmetric);
        nb_store *store;
        assert_int_equal(nb_store_open_random(&store, "r", NULL, &w, 1, 7, &err), NB_OK);
        nb_loaded loaded = {0};
        assert_int_equal(nb_store_read(store, nb_store_weight(store, 0), &loaded, &err), NB_OK);
        assert_int_equal(nb_store_weight(store, 0)->bytes, nb_mat_bytes(&loaded.mat));
        assert_int_equal(nb_store_file_bytes(store), nb_mat_bytes(&loaded.mat));
        assert_true((loaded.mat.zeros == NULL) == kinds[i].symmetric);
        float row[256], first[256] = {0};
        double squares = 0;
        int64_t n_repeats = 0;
        for (int64_t r = 0; r < n_rows; r++) {
            kinds[i].fmt->decode_row(&loaded.mat, r, row);
            for (int64_t c = 0; c < n_cols; c++) {
                assert_true(isfinite(row[c]));
                squares += (double)row[c] * (double)row[c];
            }
            n_repeats += r > 0 && memcmp(row, first, (size_t)n_cols * sizeof *row) == 0;
            if (r == 0)
                memcpy(first, row, sizeof first);
        }
        assert_int_equal(n_repeats, 0);
        assert_true(squares / (double)n_rows > 0.7 && squares / (double)n_rows < 1.5);
        nb_loaded_free(&loaded);
        nb_store_close(store);
    }
}

/* Words of eight nibbles: those behind the last column are 0, as every reader of such files wants
 * them. */
static void padding_is_zero(void **state)
{
    (void)state;
    nb_err err = {0};
    for (int64_t n_cols = 1; n_cols <= 17; n_cols++) {
        const nb_weight w = matrix(&nb_format_int4, 50, n_cols, n_cols, true);
        nb_store *store;
        nb_loaded l = {0};
        assert_int_equal(nb_store_open_random(&store, "r", NULL, &w, 1, 3, &err), NB_OK);
        assert_int_equal(nb_store_read(store, nb_store_weight(store, 0), &l, &err), NB_OK);
        unsigned inside = 0;
        for (int64_t r = 0; r < 50; r++) {
            const uint8_t *row = nb_mat_row(&l.mat, r);
            for (int64_t c = 0; c < 2 * l.mat.row_bytes; c++) {
                const unsigned nibble = c % 2 == 0 ? row[c / 2] & 15u : row[c / 2] >> 4;
                if (c >= n_cols)
                    assert_int_equal(nibble, 0);
                else
                    inside |= nibble;
            }
        }
        assert_int_equal(inside, 15);
        nb_loaded_free(&l);
        nb_store_close(store);
    }
}

/* In any order and any number of times, into buffers that held something else. */
static void a_weight_is_the_same_every_time(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_weight plan[3] = {matrix(&nb_format_q4_0, 8, 64, 0, true),
                         matrix(&nb_format_int4, 8, 64, 32, false),
                         matrix(&nb_format_q4_0, 8, 64, 0, true)};
    plan[1].name = "b";
    plan[2].name = "c";
    uint8_t codes[3][512];
    nb_store *store;
    nb_loaded l = {0};
    for (uint64_t seed = 1; seed <= 2; seed++) {
        assert_int_equal(nb_store_open_random(&store, "r", NULL, plan, 3, seed, &err), NB_OK);
        static const int order[] = {0, 1, 2, 2, 0, 1, 1};
        for (int i = 0; i < 7; i++) {
            const int at = order[i];
            assert_int_equal(nb_store_read(store, nb_store_weight(store, at), &l, &err), NB_OK);
            if (i < 3 && seed == 2)
                assert_memory_not_equal(l.mat.codes, codes[at], (size_t)(8 * l.mat.row_bytes));
            if (i < 3)
                memcpy(codes[at], l.mat.codes, (size_t)(8 * l.mat.row_bytes));
            assert_memory_equal(l.mat.codes, codes[at], (size_t)(8 * l.mat.row_bytes));
        }
        assert_memory_not_equal(codes[0], codes[2], 8 * 36);
        assert_ptr_equal(nb_store_find(store, "b"), nb_store_weight(store, 1));
        nb_store_close(store);
    }
    nb_loaded_free(&l);
}

static void vectors_are_gains(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_weight w = matrix(&nb_format_f32, 1, 1000, 0, true);
    w.n_dims = 1;
    w.dims[0] = 1000;
    nb_store *store;
    nb_loaded l = {0};
    assert_int_equal(nb_store_open_random(&store, "r", NULL, &w, 1, 1, &err), NB_OK);
    assert_int_equal(nb_store_read(store, nb_store_weight(store, 0), &l, &err), NB_OK);
    const float *x = l.mat.codes;
    for (int i = 0; i < 1000; i++)
        assert_true(x[i] >= 0.75f && x[i] <= 1.25f);
    nb_loaded_free(&l);
    nb_store_close(store);
}

static void what_cannot_be_made_is_refused_by_name(void **state)
{
    (void)state;
    const struct {
        nb_weight w[2];
        int n;
        nb_status status;
        const char *says;
    } rows[] = {
        {{matrix(&nb_format_q4_0, 2, 40, 0, true)},
         1,
         NB_UNSUPPORTED,
         "r: weight 'm': 40 columns are no whole blocks of 32"},
        {{matrix(&nb_format_int4, 2, 40, 16, true)},
         1,
         NB_UNSUPPORTED,
         "r: weight 'm': rows of 40 columns, which groups of 16 do not divide"},
        {{matrix(&nb_format_int4, 2, 40, 0, true)},
         1,
         NB_UNSUPPORTED,
         "r: weight 'm': rows of 40 columns, which groups of 0 do not divide"},
        {{matrix(&nb_format_f32, 1, 1, 0, true), matrix(&nb_format_f32, 1, 1, 0, true)},
         2,
         NB_DATA,
         "r: weight 'm' is there twice"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nb_err err = {0};
        nb_store *store = NULL;
        json_t *config = json_object();
        const int64_t live = nb_alloc_live();
        assert_int_equal(nb_store_open_random(&store, "r", config, rows[i].w, rows[i].n, 1, &err),
                         rows[i].status);
        assert_string_equal(err.text, rows[i].says);
        assert_null(store);
        assert_int_equal(nb_alloc_live(), live);
    }
}

static void out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    const nb_weight w = matrix(&nb_format_int4, 4, 64, 32, false);
    const int64_t live = nb_alloc_live();
    int64_t n = 0;
    nb_status s;
    do {
        nb_err err = {0};
        nb_store *store = NULL;
        nb_loaded l = {0};
        nb_alloc_fail_at(++n);
        s = nb_store_open_random(&store, "r", json_object(), &w, 1, 1, &err);
        if (s == NB_OK)
            s = nb_store_read(store, nb_store_weight(store, 0), &l, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        nb_loaded_free(&l);
        nb_store_close(store);
        assert_int_equal(nb_alloc_live(), live);
    } while (s != NB_OK);
    assert_true(n > 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format_is_finite_and_of_unit_length),
        cmocka_unit_test(padding_is_zero),
        cmocka_unit_test(a_weight_is_the_same_every_time),
        cmocka_unit_test(vectors_are_gains),
        cmocka_unit_test(what_cannot_be_made_is_refused_by_name),
        cmocka_unit_test(out_of_memory_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
