/* The simple GGUF blocks, the K-quants and iq4_nl: recorded vectors, worked examples, and what the
 * encoders promise about any input. */
#include "numeric/mat.h"

static const nb_format *const SIMPLE[] = {&nb_format_q4_0, &nb_format_q4_1, &nb_format_q5_0,
                                          &nb_format_q5_1, &nb_format_q8_0};
#define N_SIMPLE 5

/* "Q4_0" of the golden files for q4_0. */
static const char *golden_name(const nb_format *f)
{
    static char name[8];
    size_t i = 0;
    for (; f->name[i] != 0 && i + 1 < sizeof name; i++)
        name[i] = (char)(f->name[i] >= 'a' ? f->name[i] - 'a' + 'A' : f->name[i]);
    name[i] = 0;
    return name;
}

/* Decoding equals, value for value, what ggml and gguf-py decode. All blocks of a format go in as
 * one row, so that a step from block to block is part of it. */
static void golden_blocks_decode(void **state)
{
    (void)state;
    json_t *golden = golden_load("gguf_blocks.json");
    int n_formats = 0;
    for (const nb_format *const *f = nb_formats; *f != NULL; f++) {
        if ((*f)->block_len == 1)
            continue;
        const json_t *entry = golden_get(golden, golden_name(*f));
        const json_t *blocks = golden_get(entry, "blocks");
        assert_int_equal(json_integer_value(golden_get(entry, "ggml_type")), (*f)->ggml_type);
        const int64_t n_blocks = (int64_t)json_array_size(blocks), len = (*f)->block_len;
        assert_true(n_blocks >= 4);
        nb_mat m = test_mat_block(*f, 1, n_blocks * len);
        for (int64_t b = 0; b < n_blocks; b++) {
            size_t n;
            uint8_t *bytes = golden_hex(json_array_get(blocks, (size_t)b), "hex", &n);
            assert_int_equal(n, (*f)->block_bytes);
            memcpy((uint8_t *)m.codes + b * (int64_t)n, bytes, n);
            free(bytes);
        }
        const size_t y_bytes = (size_t)(n_blocks * len) * sizeof(float);
        float *y = guarded_alloc(y_bytes, 0);
        (*f)->decode_row(&m, 0, y);
        for (int64_t i = 0; i < n_blocks * len; i++) {
            const json_t *values = golden_get(json_array_get(blocks, (size_t)(i / len)), "values");
            assert_int_equal(json_array_size(values), len);
            const double v = golden_number(json_array_get(values, (size_t)(i % len)));
            if (!((double)y[i] == v || (isnan(y[i]) && isnan(v))))
                fail_msg("%s: element %lld is %.9g, not %.9g", (*f)->name, (long long)i,
                         (double)y[i], v);
        }
        guarded_free(y, y_bytes);
        test_mat_free(&m);
        n_formats++;
    }
    assert_int_equal(n_formats, 11);
    json_decref(golden);
}

/* Encoding gives ggml's bytes. */
static void golden_inputs_encode(void **state)
{
    (void)state;
    json_t *golden = golden_load("gguf_quantize.json");
    for (int f = 0; f < N_SIMPLE; f++) {
        const json_t *cases = golden_get(golden_get(golden, golden_name(SIMPLE[f])), "cases");
        assert_true(json_array_size(cases) >= 4);
        for (size_t i = 0; i < json_array_size(cases); i++) {
            const json_t *input = golden_get(json_array_get(cases, i), "input");
            float x[32];
            for (size_t j = 0; j < 32; j++)
                x[j] = (float)golden_number(json_array_get(input, j));
            size_t n;
            uint8_t *expected = golden_hex(json_array_get(cases, i), "hex", &n);
            nb_mat m = test_mat_block(SIMPLE[f], 2, 32);
            SIMPLE[f]->encode_row(&m, 1, x);
            assert_int_equal(n, m.row_bytes);
            assert_memory_equal(nb_mat_row(&m, 1), expected, n);
            free(expected);
            test_mat_free(&m);
        }
    }
    json_decref(golden);
}

/* The six-bit scales and minima of q4_k, packed into twelve bytes, come apart as published:
 * (1,5)(2,6)(3,7)(4,8)(17,2)(19,20)(37,38)(55,56). */
static void q4_k_scales_come_apart(void **state)
{
    (void)state;
    static const uint8_t packed[12] = {0x41, 0x42, 0x83, 0xc4, 0x05, 0x46,
                                       0x87, 0xc8, 0x21, 0x43, 0x65, 0x87};
    static const float sc[] = {1, 2, 3, 4, 17, 19, 37, 55}, mn[] = {5, 6, 7, 8, 2, 20, 38, 56};
    nb_mat m = test_mat_block(&nb_format_q4_k, 1, 256);
    uint8_t *b = m.codes;
    memset(b, 0, 144);
    b[1] = 0x3c; /* d = 1, dmin = 2 */
    b[3] = 0x40;
    memcpy(b + 4, packed, 12);
    int8_t code[256];
    float scale[8], min[8], y[256];
    const nb_int_row row = {.code = code, .scale = scale, .min = min};
    nb_format_q4_k.int_row(&m, 0, &row);
    nb_format_q4_k.decode_row(&m, 0, y);
    for (int k = 0; k < 8; k++) {
        assert_true(scale[k] == sc[k] && min[k] == -2 * mn[k]);
        assert_true(y[32 * k] == min[k] && y[32 * k + 31] == min[k]);
    }
    test_mat_free(&m);
}

/* q5_k has them in the same place, and its values are q4_k's where no fifth bit is set. */
static void q5_k_without_fifth_bits_is_q4_k(void **state)
{
    (void)state;
    nb_mat four = test_mat_block(&nb_format_q4_k, 1, 256);
    nb_mat five = test_mat_block(&nb_format_q5_k, 1, 256);
    float want[256], got[256], scale[8], min[8];
    int8_t code[256];
    const nb_int_row row = {.code = code, .scale = scale, .min = min};
    for (uint64_t trial = 0; trial < 100; trial++) {
        uint8_t *a = four.codes, *b = five.codes;
        test_random_bytes(a, 144, trial);
        memcpy(b, a, 16);
        memset(b + 16, 0, 32);
        memcpy(b + 48, a + 16, 128);
        nb_format_q4_k.decode_row(&four, 0, want);
        nb_format_q5_k.decode_row(&five, 0, got);
        for (int c = 0; c < 256; c++)
            assert_true(same_float(want[c], got[c]));
        /* Each bit of `high` adds 16 to one code, and to no other. */
        nb_format_q4_k.int_row(&four, 0, &row);
        int8_t plain[256];
        memcpy(plain, code, sizeof plain);
        const int l = (int)(trial % 32), k = (int)(trial / 4 % 8);
        b[16 + l] = (uint8_t)(1u << k);
        nb_format_q5_k.int_row(&five, 0, &row);
        for (int c = 0; c < 256; c++)
            assert_int_equal(code[c], plain[c] + (c == 32 * k + l ? 16 : 0));
    }
    test_mat_free(&four);
    test_mat_free(&five);
}

/* The scales of q3_k, six bits in twelve bytes, come apart as published. */
static void q3_k_scales_come_apart(void **state)
{
    (void)state;
    static const uint8_t packed[12] = {0x21, 0x43, 0x65, 0x87, 0xa9, 0xcb,
                                       0xed, 0x0f, 0x1b, 0x2c, 0x3d, 0x4e};
    static const float sc[] = {17, -29, -11, 7, 9, 27, 29, 31, -14, 4, 22, -24, -22, -20, -18, -16};
    nb_mat m = test_mat_block(&nb_format_q3_k, 1, 256);
    uint8_t *b = m.codes;
    memset(b, 0, 110);
    memcpy(b + 96, packed, 12);
    b[109] = 0x3c; /* d = 1 */
    int8_t code[256];
    float scale[16], y[256];
    const nb_int_row row = {.code = code, .scale = scale};
    nb_format_q3_k.int_row(&m, 0, &row);
    nb_format_q3_k.decode_row(&m, 0, y);
    for (int k = 0; k < 16; k++) {
        assert_true(scale[k] == sc[k]);
        assert_int_equal(code[16 * k], -4);
        assert_true(y[16 * k] == -4 * sc[k] && y[16 * k + 15] == -4 * sc[k]);
    }
    test_mat_free(&m);
}

/* q2_k: each of its sixteen bytes is one block's minimum and scale; with codes of 3 and of 0. */
static void q2_k_scales_come_apart(void **state)
{
    (void)state;
    nb_mat m = test_mat_block(&nb_format_q2_k, 1, 256);
    uint8_t *b = m.codes;
    float y[256];
    for (int fill = 0; fill < 2; fill++) {
        memset(b, fill == 0 ? 0 : 0xff, 84);
        for (int k = 0; k < 16; k++)
            b[k] = (uint8_t)((15 - k) << 4 | k);
        b[80] = b[82] = 0;
        b[81] = 0x3c; /* d = 1, dmin = 2 */
        b[83] = 0x40;
        nb_format_q2_k.decode_row(&m, 0, y);
        for (int c = 0; c < 256; c++)
            assert_true(y[c] == (float)(3 * fill * (c / 16) - 2 * (15 - c / 16)));
    }
    test_mat_free(&m);
}

/* All 16 values of iq4_nl, in both nibbles of every byte. */
static void iq4_nl_reads_its_table(void **state)
{
    (void)state;
    static const float table[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
    nb_mat m = test_mat_block(&nb_format_iq4_nl, 1, 32);
    uint8_t *b = m.codes;
    float y[32];
    for (int byte = 0; byte < 256; byte++) {
        for (int j = 0; j < 16; j++)
            b[2 + j] = (uint8_t)(byte + 17 * j);
        b[0] = 0;
        b[1] = 0xb8; /* d = -0.5 */
        nb_format_iq4_nl.decode_row(&m, 0, y);
        for (int j = 0; j < 16; j++) {
            assert_true(y[j] == -0.5f * table[b[2 + j] & 15]);
            assert_true(y[j + 16] == -0.5f * table[b[2 + j] >> 4]);
        }
    }
    test_mat_free(&m);
}

/* Every code in every place of a block reads back as itself. */
static void every_code_in_every_place(void **state)
{
    (void)state;
    for (const nb_format *const *f = nb_formats; *f != NULL; f++) {
        if ((*f)->block_len == 1)
            continue;
        nb_mat m = test_mat_block(*f, 1, (*f)->block_len);
        nb_int_form form;
        (*f)->int_form(&m, &form);
        int8_t code[256];
        float scale[16], min[16];
        const nb_int_row row = {.code = code, .scale = scale, .min = min};
        bool seen[256][256] = {{false}};
        const uint64_t n_trials = (*f)->bits < 8 ? 2000 : 12000;
        for (uint64_t trial = 0; trial < n_trials; trial++) {
            test_random_bytes(m.codes, (size_t)m.row_bytes, 100 + trial);
            (*f)->int_row(&m, 0, &row);
            for (int j = 0; j < (*f)->block_len; j++) {
                assert_in_range(code[j] - form.code_lo, 0, form.code_hi - form.code_lo);
                seen[j][code[j] - form.code_lo] = true;
            }
        }
        for (int j = 0; j < (*f)->block_len; j++)
            for (int c = 0; c <= form.code_hi - form.code_lo; c++)
                assert_true(seen[j][c]);
        test_mat_free(&m);
    }
}

/* No value loses more than the rounding of its code and of its block's parameters explains: half a
 * step, f16 roundings of the scale (times the code) and of the minimum; and half a step more at the
 * end that a signed block does not reach, where +8 becomes 7. The bound is nearly met, too: one
 * that nothing comes near would prove nothing. */
static void error_is_bounded(void **state)
{
    (void)state;
    enum { N_BLOCKS = 64, COLS = N_BLOCKS * 32 };
    static float x[COLS], y[COLS];
    static int8_t code[COLS];
    test_random_weights(x, COLS, 0.05, 0.01, 3);
    for (int f = 0; f < N_SIMPLE; f++) {
        nb_mat m = test_mat_block(SIMPLE[f], 1, COLS);
        nb_int_form form;
        float scale[N_BLOCKS], min[N_BLOCKS] = {0};
        const nb_int_row row = {.code = code, .scale = scale, .min = min};
        SIMPLE[f]->int_form(&m, &form);
        SIMPLE[f]->encode_row(&m, 0, x);
        SIMPLE[f]->decode_row(&m, 0, y);
        SIMPLE[f]->int_row(&m, 0, &row);
        double worst = 0;
        for (int i = 0; i < COLS; i++) {
            const double step = fabs((double)scale[i / 32]), unit = 0x1p-11;
            const bool at_short_end = !form.has_min && code[i] == form.code_hi;
            const double bound = (at_short_end ? 1.0 : 0.5) * step +
                                 unit * (fabs((double)min[i / 32]) + (abs(code[i]) + 1) * step);
            const double error = fabs((double)x[i] - (double)y[i]) / bound;
            worst = error > worst ? error : worst;
        }
        assert_true(worst <= 1.0 && worst > 0.8);
        test_mat_free(&m);
    }
}

static void encode_block(const nb_format *f, const float x[32], uint8_t *bytes)
{
    nb_mat m = test_mat_block(f, 1, 32);
    f->encode_row(&m, 0, x);
    memcpy(bytes, m.codes, (size_t)m.row_bytes);
    test_mat_free(&m);
}

/* Of two elements of the same magnitude the first decides the sign of the scale, wherever they
 * are. */
static void first_largest_decides_the_sign(void **state)
{
    (void)state;
    for (int i = 0; i < 32; i++)
        for (int j = i + 1; j < 32; j++) {
            float x[32] = {0};
            uint8_t b[18];
            x[i] = 8;
            x[j] = -8;
            encode_block(&nb_format_q4_0, x, b);
            assert_int_equal(b[1], 0xbc); /* d = -1 */
            x[i] = -8;
            x[j] = 8;
            encode_block(&nb_format_q4_0, x, b);
            assert_int_equal(b[1], 0x3c);
        }
}

/* q8_0 rounds halves away from zero; the largest number below one half is not a half. */
static void q8_0_rounds_halves_away(void **state)
{
    (void)state;
    const float x[32] = {127,          0.5f,       -0.5f,       1.5f,    -1.5f,
                         2.5f,         -2.5f,      126.5f,      -126.5f, 0.49999997f,
                         -0.49999997f, 1.4999999f, 0.50000006f, -0.0f,   1e-40f};
    const int expected[32] = {127, 1, -1, 2, -2, 3, -3, 127, -127, 0, 0, 1, 1, 0, 0};
    uint8_t b[34];
    encode_block(&nb_format_q8_0, x, b);
    for (int j = 0; j < 32; j++)
        assert_int_equal((int8_t)b[2 + j], expected[j]);
}

/* Whatever finite numbers come, the values are finite: scales beyond f16, differences beyond
 * binary32, scales whose inverse overflows. Blocks too small for an f16 scale become zeros. */
static void any_finite_block_encodes(void **state)
{
    (void)state;
    static const float scales[] = {0x1p-149f, 0x1p-140f, 0x1p-127f, 1e-37f, 1e-10f, 1e-7f,
                                   1.0f,      60000.0f,  1e6f,      1e7f,   1e30f,  3.4e38f};
    for (int f = 0; f < N_SIMPLE; f++)
        for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
            for (int kind = 0; kind < 4; kind++) {
                float x[32], y[32];
                for (int j = 0; j < 32; j++) {
                    const float wave = (float)(j * 7 % 32) / 16 - 1; /* -1 .. 15/16 */
                    x[j] = scales[s] * (kind == 0   ? wave
                                        : kind == 1 ? (j == 20 ? 1.0f : wave * 1e-6f)
                                        : kind == 2 ? 1.0f
                                                    : (j % 2 ? 1.0f : -1.0f));
                }
                nb_mat m = test_mat_block(SIMPLE[f], 1, 32);
                int64_t row, col;
                SIMPLE[f]->encode_row(&m, 0, x);
                assert_false(nb_mat_find_nonfinite(&m, y, &row, &col));
                SIMPLE[f]->decode_row(&m, 0, y);
                /* A scale without an inverse leaves the codes of zeros, not of infinities. */
                for (int64_t j = 2; s <= 2 && f == 4 && j < 34; j++)
                    assert_int_equal(((uint8_t *)m.codes)[j], 0);
                for (int64_t j = 2; s <= 2 && f == 0 && j < 18; j++)
                    assert_int_equal(((uint8_t *)m.codes)[j], 0x88);
                for (int j = 0; j < 32; j++) {
                    assert_true(fabsf(y[j]) <= 3e7f);
                    if (scales[s] < 1e-9f)
                        assert_true(y[j] == 0);
                    if (scales[s] > 1e7f && kind == 3 && f != 1 && f != 3)
                        assert_true((y[j] < 0) == (x[j] < 0)); /* clipped, the right way round */
                }
                test_mat_free(&m);
            }
}

/* Zeros encode to zeros, and to ggml's bytes for them, whatever the signs of the zeros. */
static void zeros_stay_zero(void **state)
{
    (void)state;
    for (int f = 0; f < N_SIMPLE; f++) {
        float x[32], y[32];
        for (int j = 0; j < 32; j++)
            x[j] = j % 3 ? 0.0f : -0.0f;
        nb_mat m = test_mat_block(SIMPLE[f], 1, 32);
        SIMPLE[f]->encode_row(&m, 0, x);
        SIMPLE[f]->decode_row(&m, 0, y);
        for (int j = 0; j < 32; j++)
            assert_true(y[j] == 0);
        /* q4_0 and q5_0 divide +0 by -8 and -16; q4_1 and q5_1 keep the first element as minimum */
        const uint16_t d = ((const uint16_t *)m.codes)[0], min = ((const uint16_t *)m.codes)[1];
        assert_int_equal(d, f == 0 || f == 2 ? 0x8000 : 0);
        if (f == 1 || f == 3)
            assert_int_equal(min, 0x8000);
        test_mat_free(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(q5_k_without_fifth_bits_is_q4_k),
        cmocka_unit_test(q3_k_scales_come_apart),
        cmocka_unit_test(q2_k_scales_come_apart),
        cmocka_unit_test(iq4_nl_reads_its_table),
        cmocka_unit_test(golden_blocks_decode),
        cmocka_unit_test(golden_inputs_encode),
        cmocka_unit_test(q4_k_scales_come_apart),
        cmocka_unit_test(every_code_in_every_place),
        cmocka_unit_test(error_is_bounded),
        cmocka_unit_test(first_largest_decides_the_sign),
        cmocka_unit_test(q8_0_rounds_halves_away),
        cmocka_unit_test(any_finite_block_encodes),
        cmocka_unit_test(zeros_stay_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
