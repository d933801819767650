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
        const nb_quantizer *found = NULL;
        nb_err err = {0};
        assert_int_equal(nb_quantizer_by_name(&found, (*q)->name, &err), NB_OK);
        assert_ptr_equal(found, *q);
        assert_non_null((*q)->encode);
        assert_non_null((*q)->source);
    }
    assert_true(n > 0);
}

static void unknown_names_are_refused_with_the_list(void **state)
{
    (void)state;
    const nb_quantizer *found = NULL;
    nb_err err = {0};
    assert_int_equal(nb_quantizer_by_name(&found, "gptqx", &err), NB_USAGE);
    assert_non_null(strstr(err.text, "'gptqx'"));
    assert_non_null(strstr(err.text, "rtn"));
    assert_int_equal(nb_quantizer_by_name(&found, "", &err), NB_USAGE);
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
    const nb_quantizer *rtn = NULL;
    nb_err err = {0};
    assert_int_equal(nb_quantizer_by_name(&rtn, "rtn", &err), NB_OK);
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
        assert_int_equal(rtn->encode(&(nb_quant_job){x, ROWS, COLS}, &m, &err), NB_OK);
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
        cmocka_unit_test(rtn_takes_the_nearest_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
