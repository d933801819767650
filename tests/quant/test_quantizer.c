/* The table of quantizers, and round to nearest. */
#include "quant/quantizer.h"

#include "base/rng.h"
#include "support/golden.h"

#include <math.h>
#include <string.h>

static void every_quantizer_is_found_by_its_name(void **state)
{
    (void)state;
    int n = 0;
    for (const nb_quantizer *const *q = nb_quantizers; *q != NULL; q++, n++) {
        nb_method found;
        nb_err err = {0};
        assert_int_equal(nb_method_parse(&found, (*q)->name, &err), NB_OK);
        assert_ptr_equal(found.quantizer, *q);
        assert_true((*q)->encode_rows != NULL || (*q)->encode_group != NULL ||
                    (*q)->tune_block != NULL);
        assert_true((*q)->encode_rows != NULL || (*q)->needs != NB_STAT_NONE);
        assert_non_null((*q)->source);
        assert_non_null((*q)->summary);
    }
    assert_true(n > 0);
}

static void unknown_names_are_refused_with_the_list(void **state)
{
    (void)state;
    nb_method found;
    nb_err err = {0};
    assert_int_equal(nb_method_parse(&found, "gptqx", &err), NB_USAGE);
    assert_non_null(strstr(err.text, "'gptqx'"));
    assert_non_null(strstr(err.text, "rtn"));
    assert_int_equal(nb_method_parse(&found, "", &err), NB_USAGE);
    assert_int_equal(nb_method_parse(&found, "rt", &err), NB_USAGE);
}

static nb_status any_option(const nb_method *m, unsigned *needs, nb_err *err)
{
    (void)needs;
    double x;
    static const char *const known[] = {"b", "aa", NULL};
    NB_TRY(nb_method_only(m, known, err));
    return nb_method_number(m, "b", 0.5, 0, 1, &x, err);
}

/* Options are words or numbers in any order; what is wrong with one is said. */
static void options_are_read_and_checked(void **state)
{
    (void)state;
    const nb_quantizer q = {.name = "q", .check = any_option};
    nb_method m = {.quantizer = &q, .options = {{"b", "0.25"}}, .n_options = 1};
    nb_err err = {0};
    double x = 0;
    assert_int_equal(nb_method_number(&m, "b", 0.5, 0, 1, &x, &err), NB_OK);
    assert_true(x == 0.25);
    assert_int_equal(nb_method_number(&m, "c", 0.5, 0, 1, &x, &err), NB_OK);
    assert_true(x == 0.5);
    assert_null(nb_method_option_of(&m, "c"));
    static const char *const bad[] = {"", "x", "1.5", "-1", "0.5x", "nan"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        strcpy(m.options[0].value, bad[i]);
        assert_int_equal(nb_method_number(&m, "b", 0.5, 0, 1, &x, &err), NB_USAGE);
    }
    static const char *const refused[] = {"rtn:",   "rtn:x",  "rtn:x=1", "rtn:x,x",
                                          "rtn:=1", "rtn:x,", "rtn,x",   "rtn:x=y=z"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_int_equal(nb_method_parse(&m, refused[i], &err), NB_USAGE);
}

/* No code next to the chosen one is nearer to the weight, except where the range ends. */
static void rtn_takes_the_nearest_code(void **state)
{
    (void)state;
    enum { ROWS = 7, COLS = 64, GROUP = 32 };
    float x[ROWS * COLS], scales[ROWS * COLS / GROUP];
    int8_t codes[ROWS * COLS], zeros[ROWS * COLS / GROUP];
    for (int i = 0; i < ROWS * COLS; i++)
        x[i] = (float)(nb_rng_uniform(3, 1, (uint64_t)i) - 0.3);
    nb_method rtn;
    nb_err err = {0};
    assert_int_equal(nb_method_parse(&rtn, "rtn", &err), NB_OK);
    for (int asym = 0; asym < 2; asym++) {
        nb_mat m = {.fmt = &nb_format_int8,
                    .n_rows = ROWS,
                    .n_cols = COLS,
                    .codes = codes,
                    .row_bytes = COLS,
                    .group_size = GROUP,
                    .scale_type = NB_F32,
                    .scales = scales,
                    .zeros = asym ? zeros : NULL};
        const nb_quant_job job = {.method = &rtn, .weight = x, .n_rows = ROWS, .n_cols = COLS};
        assert_int_equal(rtn.quantizer->encode_rows(&job, &m, &err), NB_OK);
        for (int i = 0; i < ROWS * COLS; i++) {
            const double s = (double)scales[i / GROUP], z = asym ? zeros[i / GROUP] : 0;
            const double off = fabs(s * (codes[i] - z) - (double)x[i]);
            for (int step = -1; step <= 1; step += 2) {
                if (codes[i] + step < -128 || codes[i] + step > 127)
                    continue;
                assert_true(off <= fabs(s * (codes[i] + step - z) - (double)x[i]) + 1e-6 * s);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_quantizer_is_found_by_its_name),
        cmocka_unit_test(unknown_names_are_refused_with_the_list),
        cmocka_unit_test(options_are_read_and_checked),
        cmocka_unit_test(rtn_takes_the_nearest_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
