/* NF4 and its nested scales, against bitsandbytes' numbers. */
#include "numeric/mat.h"

#include "numeric/grid.h"
#include "numeric/nf4.h"

#include <float.h>

static float number_at(const json_t *list, size_t i)
{
    return (float)golden_number(json_array_get(list, i));
}

static void golden_tables(void **state)
{
    (void)state;
    json_t *nf4 = golden_load("nf4.json"), *bnb = golden_load("bitsandbytes.json");
    for (size_t i = 0; i < 16; i++)
        assert_true(nb_nf4_levels[i] == number_at(golden_get(nf4, "decode"), i));
    assert_int_equal(json_array_size(golden_get(bnb, "dynamic_map_256")), 256);
    for (size_t i = 0; i < 256; i++)
        assert_true(nb_nf4_map[i] == number_at(golden_get(bnb, "dynamic_map_256"), i));
    json_decref(nf4);
    json_decref(bnb);
}

static uint8_t code_at(const nb_mat *m, int64_t r, int64_t c)
{
    const uint8_t byte = ((const uint8_t *)nb_mat_row(m, r))[c / 2];
    return c % 2 == 0 ? byte >> 4 : byte & 15;
}

/* Under a scale of 1, which the last column makes. */
static void golden_codes(void **state)
{
    (void)state;
    json_t *golden = golden_load("nf4.json");
    const json_t *pairs = golden_get(golden, "encode");
    assert_true(json_array_size(pairs) > 10 && json_array_size(pairs) < 63);
    float x[64] = {[63] = -1};
    for (size_t i = 0; i < json_array_size(pairs); i++)
        x[i] = number_at(json_array_get(pairs, i), 0);
    nb_mat m = test_mat(&nb_format_nf4, 1, 64, 64, NB_F32, false);
    m.fmt->encode_row(&m, 0, x);
    for (size_t i = 0; i < json_array_size(pairs); i++)
        assert_int_equal(code_at(&m, 0, (int64_t)i),
                         json_integer_value(json_array_get(json_array_get(pairs, i), 1)));
    test_mat_free(&m);
    json_decref(golden);
}

static void golden_values(void **state)
{
    (void)state;
    json_t *golden = golden_load("bitsandbytes.json");
    const json_t *nf4 = golden_get(golden, "nf4"), *nested = golden_get(golden, "double_quant");
    size_t n;
    uint8_t *codes = golden_hex(nf4, "packed_hex", &n);
    assert_int_equal(n, 64);
    float scales[2], row[64];
    for (size_t i = 0; i < 2; i++)
        scales[i] = number_at(golden_get(nf4, "absmax"), i);
    const nb_mat m = {.fmt = &nb_format_nf4,
                      .n_rows = 2,
                      .n_cols = 64,
                      .codes = codes,
                      .row_bytes = 32,
                      .group_size = 64,
                      .scales = scales};
    for (size_t r = 0; r < 2; r++) {
        m.fmt->decode_row(&m, (int64_t)r, row);
        for (size_t c = 0; c < 64; c++)
            assert_true(row[c] == number_at(golden_get(nf4, "dequant"), 64 * r + c));
    }
    uint8_t code[2];
    for (size_t i = 0; i < 2; i++)
        code[i] = (uint8_t)json_integer_value(json_array_get(golden_get(nested, "absmax_u8"), i));
    float step = number_at(golden_get(nested, "nested_absmax"), 0), got[2];
    const nb_nested two = {.code = code,
                           .step = &step,
                           .offset = (float)golden_number(golden_get(nested, "nested_offset"))};
    nb_nf4_unnest(&two, got, 2);
    for (size_t i = 0; i < 2; i++)
        assert_true(got[i] == number_at(golden_get(nested, "absmax_reconstructed"), i));
    free(codes);
    json_decref(golden);
}

/* ---- encoding ---- */

enum { ROWS = 70, COLS = 320, GROUPS = ROWS * COLS / 64 };

static float weight[ROWS * COLS];
static uint8_t nested_codes[GROUPS];
static float nested_steps[(GROUPS + 255) / 256];

static nb_mat encoded(bool nested)
{
    nb_mat m = test_mat(&nb_format_nf4, ROWS, COLS, 64, NB_F32, false);
    if (nested) {
        m.nested = (nb_nested){.code = nested_codes, .step = nested_steps};
        for (int64_t r = ROWS - 1; r >= 0; r--) /* in any order */
            m.fmt->survey_row(&m, r, weight + r * COLS);
        m.fmt->settle(&m);
    }
    for (int64_t r = 0; r < ROWS; r++)
        m.fmt->encode_row(&m, r, weight + r * COLS);
    return m;
}

/* Middles are rounded numbers: codes may be another neighbour's by that much. */
static void codes_are_nearest_under_the_stored_scale(void **state)
{
    (void)state;
    test_random_weights(weight, ROWS * COLS, 0.05, 0.01, 8);
    for (int nested = 0; nested < 2; nested++) {
        nb_mat m = encoded(nested);
        for (int64_t i = 0; i < ROWS * COLS; i++) {
            const double scale = (double)((const float *)m.scales)[i / 64];
            const double x = (double)weight[i] / scale;
            double best = DBL_MAX;
            for (int j = 0; j < 16; j++)
                best = fmin(best, fabs(x - (double)nb_nf4_levels[j]));
            const uint8_t code = code_at(&m, i / COLS, i % COLS);
            assert_true(fabs(x - (double)nb_nf4_levels[code]) <= best + 1e-6);
        }
        test_mat_free(&m);
    }
}

/* Each nested code is the nearest, steps reach the farthest absmax, and what is stored is 4.127
 * bits a weight where groups are many. */
static void nested_scales_are_near(void **state)
{
    (void)state;
    test_random_weights(weight, ROWS * COLS, 0.05, 0.01, 9);
    nb_mat plain = encoded(false), nested = encoded(true);
    const float *absmax = plain.scales, *scales = nested.scales;
    double sum = 0;
    for (int i = 0; i < GROUPS; i++)
        sum += (double)absmax[i];
    assert_true(nested.nested.offset == (float)(sum / GROUPS));
    for (int i = 0; i < GROUPS; i++) {
        const double step = (double)nested_steps[i / 256];
        const double part = (double)(absmax[i] - nested.nested.offset);
        assert_true(fabs(part) <= step);
        double best = DBL_MAX;
        for (int j = 0; j < 256; j++)
            best = fmin(best, fabs(part - step * (double)nb_nf4_map[j]));
        assert_true(fabs(part - step * (double)nb_nf4_map[nested_codes[i]]) <= best + 1e-7 * step);
        assert_true(fabs((double)scales[i] - (double)absmax[i]) <= best + 1e-6 * step);
    }
    const nb_mat large = {.fmt = &nb_format_nf4,
                          .n_rows = 4096,
                          .n_cols = 4096,
                          .row_bytes = 2048,
                          .group_size = 64,
                          .nested = {.code = nested_codes}};
    const double bits = 8.0 * (double)nb_mat_bytes(&large) / (4096.0 * 4096.0);
    assert_true(fabs(bits - 4.127) < 0.0005);
    test_mat_free(&plain);
    test_mat_free(&nested);
}

/* Zeros, and numbers whose reciprocals are infinite. */
static void extreme_weights_stay_finite(void **state)
{
    (void)state;
    static const float sizes[] = {0, FLT_MAX, FLT_MIN, 0x1p-149f};
    for (int i = 0; i < 8; i++) {
        for (int c = 0; c < ROWS * COLS; c++)
            weight[c] = c / COLS % 2 == 0 ? 0 : sizes[i / 2] * (float)(c % 3 - 1);
        nb_mat m = encoded(i % 2);
        float y[COLS];
        for (int64_t r = 0; r < ROWS; r++) {
            m.fmt->decode_row(&m, r, y);
            for (int64_t c = 0; c < COLS; c++) {
                assert_true(isfinite(y[c]));
                assert_true(weight[r * COLS + c] != 0 || y[c] == 0);
            }
        }
        test_mat_free(&m);
    }
}

static void the_grid_is_the_format(void **state)
{
    (void)state;
    nb_mat m = test_mat(&nb_format_nf4, 1, 64, 64, NB_F32, false);
    nb_grid grid;
    nb_err err;
    uint8_t code[64], back[64];
    float y[64];
    assert_int_equal(nb_grid_of(&grid, &m, &err), NB_OK);
    assert_int_equal(grid.n_levels, 16);
    assert_false(grid.whole);
    for (int c = 0; c < 64; c++)
        code[c] = (uint8_t)(c * 7 % 16);
    *(float *)m.scales = 0.3f;
    nb_grid_put(&grid, &m, 0, 0, code, 64);
    m.fmt->decode_row(&m, 0, y);
    m.fmt->code_row(&m, 0, back);
    nb_grid_group g;
    nb_grid_group_at(&grid, &m, 0, 0, &g);
    for (int c = 0; c < 64; c++) {
        assert_int_equal(back[c], code[c]);
        assert_true(y[c] == nb_grid_value(&grid, &g, code[c]));
    }
    m.nested.code = nested_codes;
    assert_int_equal(nb_grid_of(&grid, &m, &err), NB_OK);
    assert_true(grid.whole);
    test_mat_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_tables),
        cmocka_unit_test(golden_codes),
        cmocka_unit_test(golden_values),
        cmocka_unit_test(codes_are_nearest_under_the_stored_scale),
        cmocka_unit_test(nested_scales_are_near),
        cmocka_unit_test(extreme_weights_stay_finite),
        cmocka_unit_test(the_grid_is_the_format),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
