/* The list of formats, row sizes, matrix sizes, and the search for values that are not finite. */
#include "numeric/mat.h"

/* Users and files name formats: every name and every GGUF id leads to its own description. */
static void list_is_complete_and_consistent(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int ggml_type, block_len, block_bytes, bits;
        bool encodes, integers;
    } expected[] = {
        {"f32", 0, 1, 4, 32, true, false},      {"f16", 1, 1, 2, 16, true, false},
        {"bf16", 30, 1, 2, 16, true, false},    {"q4_0", 2, 32, 18, 4, true, true},
        {"q4_1", 3, 32, 20, 4, true, true},     {"q5_0", 6, 32, 22, 5, true, true},
        {"q5_1", 7, 32, 24, 5, true, true},     {"q8_0", 8, 32, 34, 8, true, true},
        {"q2_k", 10, 256, 84, 2, true, true},   {"q3_k", 11, 256, 110, 3, true, true},
        {"q4_k", 12, 256, 144, 4, true, true},  {"q5_k", 13, 256, 176, 5, true, true},
        {"q6_k", 14, 256, 210, 6, true, true},  {"iq4_nl", 20, 32, 18, 4, true, true},
        {"int8", -1, 1, 0, 8, true, true},      {"int4", -1, 1, 0, 4, true, true},
        {"fp8_e4m3", -1, 1, 0, 8, true, false}, {"fp8_e5m2", -1, 1, 0, 8, true, false},
        {"nf4", -1, 1, 0, 4, true, false},      {"int3", -1, 1, 0, 3, true, true},
        {"int2", -1, 1, 0, 2, true, true},
    };
    size_t n = 0;
    while (nb_formats[n] != NULL)
        n++;
    assert_int_equal(n, sizeof expected / sizeof *expected);
    for (size_t i = 0; i < n; i++) {
        const nb_format *f = nb_format_by_name(expected[i].name);
        assert_non_null(f);
        assert_string_equal(f->name, expected[i].name);
        assert_int_equal(f->ggml_type, expected[i].ggml_type);
        assert_int_equal(f->block_len, expected[i].block_len);
        assert_int_equal(f->block_bytes, expected[i].block_bytes);
        assert_int_equal(f->bits, expected[i].bits);
        assert_int_equal(f->affine, f->ggml_type < 0);
        assert_non_null(f->decode_row);
        assert_int_equal(f->encode_row != NULL, expected[i].encodes);
        assert_int_equal(f->int_form != NULL, expected[i].integers);
        assert_int_equal(f->int_row != NULL, expected[i].integers);
        if (f->ggml_type >= 0)
            assert_ptr_equal(nb_format_by_ggml(f->ggml_type), f);
    }
}

/* A GGUF may hold any id: -1, which marks "none" in the list, must not find int8. */
static void unknown_formats_are_not_found(void **state)
{
    (void)state;
    static const char *const names[] = {"", "q", "q4", "Q4_0", "q4_0 ", "q4_2", "int", "i8"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_null(nb_format_by_name(names[i]));
    static const int64_t ids[] = {
        -1, -2, 4, 5, 9, 31, 255, INT64_MIN, INT64_MAX, 1ll << 32, (1ll << 32) + 2};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        assert_null(nb_format_by_ggml(ids[i]));
}

static void float_names(void **state)
{
    (void)state;
    assert_string_equal(nb_float_name(NB_F32), "f32");
    assert_string_equal(nb_float_name(NB_F16), "f16");
    assert_string_equal(nb_float_name(NB_BF16), "bf16");
}

static void expect_bytes(const char *name, int64_t n_cols, int64_t bytes)
{
    nb_err err = {0};
    int64_t out = -1;
    assert_int_equal(nb_format_row_bytes(nb_format_by_name(name), n_cols, &out, &err), NB_OK);
    assert_int_equal(out, bytes);
}

static void expect_refused(const char *name, int64_t n_cols, nb_status status, const char *text)
{
    nb_err err = {0};
    int64_t out = -7;
    assert_int_equal(nb_format_row_bytes(nb_format_by_name(name), n_cols, &out, &err), status);
    assert_int_equal(err.status, status);
    assert_string_equal(err.text, text);
    assert_int_equal(out, -7);
}

/* 576 columns, the width of the model everyone tries first, are no whole blocks of 256. Sizes
 * come from files, so the arithmetic must not wrap. */
static void row_bytes(void **state)
{
    (void)state;
    expect_bytes("f32", 0, 0);
    expect_bytes("f32", 3, 12);
    expect_bytes("f16", 3, 6);
    expect_bytes("q4_0", 576, 324);
    expect_bytes("q4_1", 576, 360);
    expect_bytes("q5_0", 576, 396);
    expect_bytes("q5_1", 576, 432);
    expect_bytes("q8_0", 576, 612);
    expect_bytes("q2_k", 512, 168);
    expect_bytes("q3_k", 512, 220);
    expect_bytes("q4_k", 512, 288);
    expect_bytes("q5_k", 512, 352);
    expect_bytes("q6_k", 512, 420);
    expect_bytes("iq4_nl", 576, 324);
    expect_bytes("int8", 12, 12);
    expect_bytes("int4", 0, 0);
    expect_bytes("int4", 1, 4);
    expect_bytes("int4", 8, 4);
    expect_bytes("int4", 9, 8);
    expect_bytes("int4", 12, 8);
    expect_bytes("int4", INT64_MAX, INT64_MAX / 8 * 4 + 4);
    expect_bytes("int8", INT64_MAX, INT64_MAX);
    expect_refused("q4_k", 576, NB_UNSUPPORTED, "576 columns are no whole blocks of 256");
    expect_refused("q8_0", 31, NB_UNSUPPORTED, "31 columns are no whole blocks of 32");
    expect_refused("f32", -1, NB_DATA, "a row of -1 columns");
    expect_refused("f32", INT64_MAX, NB_DATA, "a row of 9223372036854775807 columns is too long");
    expect_refused("f32", 1ll << 62, NB_DATA, "a row of 4611686018427387904 columns is too long");
    expect_refused("q8_0", INT64_MAX - 31, NB_DATA,
                   "a row of 9223372036854775776 columns is too long");
}

/* Bits per weight count everything the matrix needs. */
static void mat_bytes(void **state)
{
    (void)state;
    nb_mat m = test_mat_block(&nb_format_q4_0, 3, 64);
    assert_int_equal(nb_mat_bytes(&m), 3 * 36);
    test_mat_free(&m);

    m = test_mat(&nb_format_int4, 3, 128, 32, NB_BF16, false);
    assert_int_equal(nb_mat_n_groups(&m), 4);
    assert_int_equal(nb_mat_bytes(&m), 3 * 64 + 3 * 4 * 2);
    test_mat_free(&m);

    m = test_mat(&nb_format_int4, 3, 96, 32, NB_BF16, true); /* nine zero points of 4 bits */
    assert_int_equal(nb_mat_bytes(&m), 3 * 48 + 9 * 2 + 5);
    test_mat_free(&m);

    m = test_mat(&nb_format_int8, 3, 100, 100, NB_F32, true);
    assert_int_equal(nb_mat_bytes(&m), 300 + 3 * 4 + 3);
    test_mat_free(&m);
}

/* quantize refuses a weight that is no number and names its place: the first, in row order, at
 * every place of a row, for every kind of special value. */
static void nonfinite_is_found_where_it_is(void **state)
{
    (void)state;
    enum { ROWS = 2, COLS = 70 };
    const uint32_t specials[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u, 0xffffffffu};
    nb_mat m = test_mat_block(&nb_format_f32, ROWS, COLS);
    float scratch[COLS];
    for (size_t s = 0; s < 5; s++)
        for (int64_t i = 0; i < ROWS * COLS; i++) {
            float *w = m.codes;
            for (int64_t k = 0; k < ROWS * COLS;
                 k++) /* the largest numbers there are, both signs */
                w[k] = nb_f32_from_bits(k % 2 ? 0x7f7fffffu : 0xff7fffffu);
            int64_t r = -1, c = -1;
            assert_false(nb_mat_find_nonfinite(&m, scratch, &r, &c));
            assert_int_equal(r, -1);
            w[i] = nb_f32_from_bits(specials[s]);
            w[ROWS * COLS - 1] = nb_f32_from_bits(specials[s]); /* a later one does not matter */
            assert_true(nb_mat_find_nonfinite(&m, scratch, &r, &c));
            assert_int_equal(r, i / COLS);
            assert_int_equal(c, i % COLS);
        }
    test_mat_free(&m);
}

/* In a coded matrix the parameters may be what is not finite; a scale of infinity times the code 0
 * is NaN. */
static void nonfinite_scales_are_found(void **state)
{
    (void)state;
    float scratch[512];
    int64_t r, c;
    nb_mat m = test_mat_block(&nb_format_q8_0, 2, 96);
    memset(m.codes, 0, 2 * 102);
    assert_false(nb_mat_find_nonfinite(&m, scratch, &r, &c));
    ((uint8_t *)m.codes)[102 + 34 + 1] = 0x7c; /* row 1, block 1 */
    assert_true(nb_mat_find_nonfinite(&m, scratch, &r, &c));
    assert_int_equal(r, 1);
    assert_int_equal(c, 32);
    test_mat_free(&m);

    m = test_mat(&nb_format_int4, 2, 12, 4, NB_F16, false);
    for (int64_t i = 0; i < 6; i++)
        nb_float_put(m.scales, NB_F16, i, 65504.0f);
    assert_false(nb_mat_find_nonfinite(&m, scratch, &r, &c));
    nb_float_put(m.scales, NB_F16, 5, NAN);
    assert_true(nb_mat_find_nonfinite(&m, scratch, &r, &c));
    assert_int_equal(r, 1);
    assert_int_equal(c, 8);
    test_mat_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list_is_complete_and_consistent),
        cmocka_unit_test(unknown_formats_are_not_found),
        cmocka_unit_test(float_names),
        cmocka_unit_test(row_bytes),
        cmocka_unit_test(mat_bytes),
        cmocka_unit_test(nonfinite_is_found_where_it_is),
        cmocka_unit_test(nonfinite_scales_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
