/* FP8: every code, every rounding boundary, and scales by tensor, row, group and block. */
#include "numeric/mat.h"

#include "numeric/grid.h"

#include <float.h>

typedef struct {
    const nb_format *fmt;
    int exp_bits, man_bits, bias, top; /* top: the code of the largest number */
    float (*decode)(uint8_t);
    uint8_t (*encode)(float);
} fp8;

static const fp8 kinds[] = {
    {&nb_format_fp8_e4m3, 4, 3, 7, 0x7e, nb_e4m3_to_f32, nb_e4m3_from_f32},
    {&nb_format_fp8_e5m2, 5, 2, 15, 0x7b, nb_e5m2_to_f32, nb_e5m2_from_f32},
};

/* By the definition of a binary floating-point number, below the special codes. */
static double value_of(const fp8 *k, int code)
{
    const int e = (code & 0x7f) >> k->man_bits, m = code & ((1 << k->man_bits) - 1);
    const double size = e == 0 ? ldexp(m, 1 - k->bias - k->man_bits)
                               : ldexp(m + (1 << k->man_bits), e - k->bias - k->man_bits);
    return code & 0x80 ? -size : size;
}

static void every_code_has_its_value(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const fp8 *k = &kinds[i];
        for (int code = 0; code < 256; code++) {
            const float v = k->decode((uint8_t)code);
            assert_true(same_float(v, k->fmt->levels[code]));
            if ((code & 0x7f) <= k->top) {
                assert_true((double)v == value_of(k, code));
                assert_int_equal(signbit(v) != 0, code >> 7);
                assert_int_equal(k->encode(v), code);
            } else if (i == 1 && (code & 0x7f) == 0x7c) {
                assert_true(isinf(v) && (v < 0) == (code >> 7));
            } else {
                assert_true(isnan(v));
                assert_int_equal(k->encode(v) & 0x7f, 0x7f);
            }
        }
    }
}

/* The nearest code, of two the even one; what is larger than all is the last. */
static int slow_encode(const fp8 *k, float x)
{
    const double size = fabs((double)x);
    int low = 0, high = k->top;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        *(value_of(k, middle) <= size ? &low : &high) = middle;
    }
    const double below = size - value_of(k, low), above = value_of(k, high) - size;
    const bool up = above < below || (above == below && high % 2 == 0);
    return (up ? high : low) | (signbit(x) ? 0x80 : 0);
}

/* Numbers everywhere, and next to every code and every middle of two. */
static void every_number_rounds_to_the_nearest_code(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const fp8 *k = &kinds[i];
        for (uint32_t high = 0; high < 65536; high += 3) { /* every exponent and sign */
            const float x = nb_f32_from_bits(high << 16);
            if (!isnan(x))
                assert_int_equal(k->encode(x), slow_encode(k, x));
        }
        for (int code = 0; code <= k->top; code++) {
            const double next = value_of(k, code + 1); /* also past the last */
            const float at[] = {(float)value_of(k, code), (float)((value_of(k, code) + next) / 2)};
            for (int j = 0; j < 2; j++) {
                const float near[] = {at[j], nextafterf(at[j], 0), nextafterf(at[j], INFINITY)};
                for (int n = 0; n < 3; n++) {
                    assert_int_equal(k->encode(near[n]), slow_encode(k, near[n]));
                    assert_int_equal(k->encode(-near[n]), slow_encode(k, -near[n]));
                }
            }
        }
        assert_int_equal(k->encode(INFINITY), k->top);
        assert_int_equal(k->encode(-FLT_MAX), k->top | 0x80);
    }
}

static void golden_codes(void **state)
{
    (void)state;
    static const char *const decode[] = {"e4m3fn_decode", "e5m2_decode"};
    static const char *const encode[] = {"e4m3fn_encode_sat", "e5m2_encode_sat"};
    json_t *golden = golden_load("fp8.json");
    for (int i = 0; i < 2; i++) {
        const json_t *codes = golden_get(golden, decode[i]);
        assert_int_equal(json_array_size(codes), 256);
        for (size_t c = 0; c < 256; c++)
            assert_true(same_float(kinds[i].decode((uint8_t)c),
                                   (float)golden_number(json_array_get(codes, c))));
        const json_t *pairs = golden_get(golden, encode[i]);
        assert_true(json_array_size(pairs) >= 20);
        for (size_t p = 0; p < json_array_size(pairs); p++) {
            const json_t *pair = json_array_get(pairs, p);
            const float x = (float)golden_number(json_array_get(pair, 0));
            assert_int_equal(kinds[i].encode(x), json_integer_value(json_array_get(pair, 1)));
        }
    }
    json_decref(golden);
}

/* Blocks of 2 x 4 of a matrix of 4 x 6: the last ones are narrower. */
static void golden_blocks(void **state)
{
    (void)state;
    json_t *golden = golden_load("fp8_block.json");
    size_t n;
    uint8_t *codes = golden_hex(golden, "weight_hex", &n);
    assert_int_equal(n, 24);
    float scales[4][2], row[6];
    for (size_t r = 0; r < 4; r++)
        for (size_t g = 0; g < 2; g++)
            scales[r][g] = (float)golden_number(
                json_array_get(json_array_get(golden_get(golden, "weight_scale_inv"), r / 2), g));
    const nb_mat m = {.fmt = &nb_format_fp8_e4m3,
                      .n_rows = 4,
                      .n_cols = 6,
                      .codes = codes,
                      .row_bytes = 6,
                      .group_size = 4,
                      .scales = scales,
                      .scale_rows = 2};
    for (size_t r = 0; r < 4; r++) {
        m.fmt->decode_row(&m, (int64_t)r, row);
        for (size_t c = 0; c < 6; c++)
            assert_true(row[c] == (float)golden_number(json_array_get(
                                      json_array_get(golden_get(golden, "dequant"), r), c)));
    }
    assert_int_equal(nb_mat_bytes(&m), 24 + 4 * 4); /* four scales are stored */
    free(codes);
    json_decref(golden);
}

/* ---- encoding ---- */

enum { ROWS = 20, COLS = 50 };

static float weight[ROWS * COLS];

static void encode(nb_mat *m, const float *w, bool backwards)
{
    for (int64_t i = 0; i < m->n_rows && nb_mat_shares(m); i++) {
        const int64_t r = backwards ? m->n_rows - 1 - i : i;
        m->fmt->survey_row(m, r, w + r * m->n_cols);
    }
    if (nb_mat_shares(m))
        m->fmt->settle(m);
    for (int64_t r = 0; r < m->n_rows; r++)
        m->fmt->encode_row(m, r, w + r * m->n_cols);
}

/* The scale of the block that (r, c) lies in: that of its largest number, as stored. */
static float wanted_scale(const nb_mat *m, const fp8 *k, const float *w, int64_t r, int64_t c)
{
    const int64_t rows = m->scale_rows > 1 ? m->scale_rows : 1;
    const int64_t r0 = r / rows * rows, c0 = c / m->group_size * m->group_size;
    float most = 0, stored = 0;
    for (int64_t i = r0; i < r0 + rows && i < m->n_rows; i++)
        for (int64_t j = c0; j < c0 + m->group_size && j < m->n_cols; j++)
            most = fabsf(w[i * m->n_cols + j]) > most ? fabsf(w[i * m->n_cols + j]) : most;
    nb_float_put(&stored, m->scale_type, 0, most / k->fmt->levels[k->top]);
    stored = nb_float_get(&stored, m->scale_type, 0);
    return m->scale_type == NB_F16 && stored == 0 ? 0x1p-24f : stored; /* the least: never 0 */
}

/* Each code is the nearest one under its scale. */
static void check_encoded(const nb_mat *m, const fp8 *k, const float *w)
{
    const int64_t n_groups = nb_mat_n_groups(m);
    for (int64_t r = 0; r < m->n_rows; r++) {
        float scale = 0;
        for (int64_t c = 0; c < m->n_cols; c++) {
            if (c % m->group_size == 0) {
                scale = nb_float_get(m->scales, m->scale_type, r * n_groups + c / m->group_size);
                assert_true(scale == wanted_scale(m, k, w, r, c));
            }
            const uint8_t code = ((const uint8_t *)nb_mat_row(m, r))[c];
            assert_int_equal(code, slow_encode(k, w[r * m->n_cols + c] / scale));
        }
    }
}

static const struct {
    int64_t group_size, scale_rows;
} layouts[] = {{COLS, 0}, {COLS, ROWS}, {25, 0}, {16, 8}, {128, 128}, {1, 0}};
#define N_LAYOUTS (sizeof layouts / sizeof *layouts)

static void codes_are_nearest_under_the_stored_scale(void **state)
{
    (void)state;
    static const nb_float_type types[] = {NB_F32, NB_BF16, NB_F16};
    test_random_weights(weight, ROWS * COLS, 0.05, 0.01, 5);
    for (size_t i = 0; i < 2 * 3 * N_LAYOUTS; i++) {
        const fp8 *k = &kinds[i % 2];
        nb_mat m[2];
        for (int j = 0; j < 2; j++) {
            m[j] = test_mat(k->fmt, ROWS, COLS, layouts[i / 6].group_size, types[i / 2 % 3], false);
            m[j].scale_rows = layouts[i / 6].scale_rows;
            encode(&m[j], weight, j == 1);
        }
        check_encoded(&m[0], k, weight);
        assert_memory_equal(m[0].codes, m[1].codes, ROWS * COLS);
        test_mat_free(&m[0]);
        test_mat_free(&m[1]);
    }
}

/* Zeros, the largest and the smallest numbers: what is decoded is finite and no farther off than
 * half a step of the code. */
static void extreme_weights_stay_finite(void **state)
{
    (void)state;
    static const float sizes[] = {0, FLT_MAX, FLT_MIN, 0x1p-149f, 0x1p-140f, 3e38f, 1};
    static const nb_float_type types[] = {NB_F32, NB_BF16, NB_F16};
    float row[COLS], y[COLS];
    for (size_t i = 0; i < 2 * 3 * 7 * 2; i++) {
        const bool shares = i / 42 == 1;
        for (int c = 0; c < COLS; c++)
            row[c] = sizes[i / 6 % 7] * (0.5f * (float)(c % 5 - 2));
        nb_mat m = test_mat(kinds[i % 2].fmt, 1, COLS, 25, types[i / 2 % 3], false);
        m.scale_rows = shares ? 2 : 0;
        encode(&m, row, false);
        m.fmt->decode_row(&m, 0, y);
        for (int c = 0; c < COLS; c++) {
            assert_true(isfinite(y[c]));
            assert_true(row[c] != 0 || y[c] == 0);
        }
        for (int64_t g = 0; g < 2; g++)
            assert_true(nb_float_get(m.scales, m.scale_type, g) > 0);
        test_mat_free(&m);
    }
}

/* A search looks also at scales above that of the largest number, which may not mean infinity. */
static void searched_scales_of_huge_weights_stay_finite(void **state)
{
    (void)state;
    float row[COLS], y[COLS];
    for (int c = 0; c < COLS; c++)
        row[c] = c % 3 == 0 ? FLT_MAX : -0.51f * FLT_MAX;
    for (int type = NB_F32; type <= NB_BF16; type++) {
        nb_mat m = test_mat(&nb_format_fp8_e4m3, 1, COLS, 25, (nb_float_type)type, false);
        nb_grid grid;
        nb_err err;
        assert_int_equal(nb_grid_of(&grid, &m, &err), NB_OK);
        nb_grid_fit_rows(&grid, &m, 0, 1, row, NULL, NB_FIT_SEARCH);
        nb_grid_round_row(&grid, &m, 0, row);
        m.fmt->decode_row(&m, 0, y);
        for (int c = 0; c < COLS; c++)
            assert_true(isfinite(y[c]));
        test_mat_free(&m);
    }
}

/* ---- the grid ---- */

static void grid_levels_are_all_finite_numbers(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const fp8 *k = &kinds[i];
        nb_mat m = test_mat(k->fmt, 1, 256, 256, NB_F32, false);
        nb_grid grid;
        nb_err err;
        uint8_t code[256];
        float y[256];
        assert_int_equal(nb_grid_of(&grid, &m, &err), NB_OK);
        assert_int_equal(grid.n_levels, 2 * k->top + 1);
        assert_false(grid.whole);
        for (int c = 0; c < 256; c++)
            code[c] = (uint8_t)(c < grid.n_levels ? c : 0);
        *(float *)m.scales = 0.75f;
        nb_grid_put(&grid, &m, 0, 0, code, 256);
        m.fmt->decode_row(&m, 0, y);
        nb_grid_group g;
        nb_grid_group_at(&grid, &m, 0, 0, &g);
        for (int c = 0; c < grid.n_levels; c++) {
            assert_true(c == 0 || grid.level[c] > grid.level[c - 1]);
            assert_true(y[c] == nb_grid_value(&grid, &g, c));
        }
        assert_true(grid.level[grid.n_levels - 1] == k->fmt->levels[k->top]);
        test_mat_free(&m);
    }
}

/* Searched scales lose less than those of the largest number, and blocks are known as a whole. */
static void a_search_is_never_worse(void **state)
{
    (void)state;
    test_random_weights(weight, ROWS * COLS, 0.05, 0.01, 6);
    double loss[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        nb_mat m = test_mat(&nb_format_fp8_e4m3, ROWS, COLS, COLS, NB_BF16, false);
        nb_grid grid;
        nb_err err;
        float y[COLS];
        assert_int_equal(nb_grid_of(&grid, &m, &err), NB_OK);
        nb_grid_fit_rows(&grid, &m, 0, ROWS, weight, NULL, i == 0 ? NB_FIT_ABSMAX : NB_FIT_SEARCH);
        for (int64_t r = 0; r < ROWS; r++)
            nb_grid_round_row(&grid, &m, r, weight + r * COLS);
        for (int64_t r = 0; r < ROWS; r++) {
            m.fmt->decode_row(&m, r, y);
            for (int c = 0; c < COLS; c++)
                loss[i] += pow((double)y[c] - (double)weight[r * COLS + c], 2);
        }
        m.scale_rows = 16;
        assert_int_equal(nb_grid_of(&grid, &m, &err), NB_OK);
        assert_true(grid.whole);
        test_mat_free(&m);
    }
    assert_true(loss[1] < loss[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_has_its_value),
        cmocka_unit_test(every_number_rounds_to_the_nearest_code),
        cmocka_unit_test(golden_codes),
        cmocka_unit_test(golden_blocks),
        cmocka_unit_test(codes_are_nearest_under_the_stored_scale),
        cmocka_unit_test(extreme_weights_stay_finite),
        cmocka_unit_test(searched_scales_of_huge_weights_stay_finite),
        cmocka_unit_test(grid_levels_are_all_finite_numbers),
        cmocka_unit_test(a_search_is_never_worse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
