/* The packed bits of compressed-tensors, against the golden vectors and against a definition of one
 * line. */
#include "base/rng.h"
#include "store/ct_pack.h"
#include "support/golden.h"

#include <stdlib.h>
#include <string.h>

/* ---- bits ---- */

static void golden_codes(const json_t *golden, const char *key)
{
    const json_t *g = golden_get(golden, key);
    const int bits = (int)json_integer_value(golden_get(g, "bits"));
    const int64_t n_rows = json_integer_value(golden_get(g, "N"));
    const int64_t n_cols = json_integer_value(golden_get(g, "K"));
    const json_t *q = golden_get(g, "q");
    size_t n_bytes;
    uint8_t *words = golden_hex(g, "weight_packed", &n_bytes);
    const int64_t stride = 4 * nb_ct_n_words(n_cols, bits);
    assert_int_equal(n_bytes, n_rows * stride);

    uint8_t *packed = calloc(1, n_bytes);
    int8_t *row = malloc((size_t)n_cols);
    assert_true(packed != NULL && row != NULL);
    nb_err err;
    for (int64_t r = 0; r < n_rows; r++) {
        for (int64_t c = 0; c < n_cols; c++)
            row[c] =
                (int8_t)json_integer_value(json_array_get(json_array_get(q, (size_t)r), (size_t)c));
        if (bits == 8)
            nb_ct_pack8_row(packed + r * stride, row, n_cols);
        else
            assert_int_equal(nb_ct_pack_row(packed + r * stride, row, n_cols, bits, &err), NB_OK);
    }
    assert_memory_equal(packed, words, n_bytes);
    if (bits == 8) {
        nb_ct_unpack8(words, n_rows, n_cols);
        for (int64_t i = 0; i < n_rows * n_cols; i++)
            assert_int_equal((int8_t)words[i],
                             json_integer_value(json_array_get(
                                 json_array_get(q, (size_t)(i / n_cols)), (size_t)(i % n_cols))));
    }
    const json_t *zp = json_object_get(g, "zero_point");
    if (zp != NULL) {
        const int64_t n_groups = (int64_t)json_array_size(json_array_get(zp, 0));
        uint8_t *zero_words = golden_hex(g, "weight_zero_point", &n_bytes);
        int8_t *zeros = malloc((size_t)(n_rows * n_groups));
        uint32_t *again = malloc(n_bytes);
        assert_true(zeros != NULL && again != NULL);
        assert_int_equal(n_bytes, 4 * nb_ct_n_words(n_rows, bits) * n_groups);
        nb_ct_unpack_zeros(zeros, (const uint32_t *)(const void *)zero_words, n_rows, n_groups,
                           bits);
        for (int64_t i = 0; i < n_rows * n_groups; i++)
            assert_int_equal(
                zeros[i], json_integer_value(json_array_get(
                              json_array_get(zp, (size_t)(i / n_groups)), (size_t)(i % n_groups))));
        nb_ct_pack_zeros(again, zeros, n_rows, n_groups, bits);
        assert_memory_equal(again, zero_words, n_bytes);
        free(zero_words);
        free(zeros);
        free(again);
    }
    free(words);
    free(packed);
    free(row);
}

static int golden_file(const char *name)
{
    json_t *golden = golden_load(name);
    int n = 0;
    const char *key;
    json_t *value;
    json_object_foreach(golden, key, value)
    {
        if (json_object_get(value, "q") != NULL) {
            golden_codes(golden, key);
            n++;
        }
    }
    json_decref(golden);
    return n;
}

static void golden_vectors(void **state)
{
    (void)state;
    assert_int_equal(golden_file("compressed_tensors.json"), 5);
    assert_int_equal(golden_file("compressed_tensors_low.json"), 4);
    json_t *golden = golden_load("compressed_tensors_low.json");
    assert_non_null(json_object_get(golden_get(golden, "w3_asym"), "zero_point"));
    json_decref(golden);
}

/* Code k is bits k * b .. of a little-endian string, as formats.md 4.4 defines it. */
static void packing_is_the_definition_at_every_width(void **state)
{
    (void)state;
    static const int widths[] = {2, 3, 4};
    nb_err err;
    for (size_t i = 0; i < 3; i++) {
        const int bits = widths[i], half = 1 << (bits - 1);
        for (int64_t n_cols = 1; n_cols <= 70; n_cols++) {
            int8_t codes[70];
            uint8_t words[41], dirty[41];
            for (int64_t c = 0; c < n_cols; c++) {
                uint32_t r[4];
                nb_philox(3, (uint64_t)n_cols, (uint64_t)c, r);
                codes[c] = (int8_t)((int)(r[0] % (2u * (uint32_t)half)) - half);
            }
            const int64_t n_bytes = 4 * nb_ct_n_words(n_cols, bits);
            memset(words, 0xff, sizeof words);
            assert_int_equal(nb_ct_pack_row(words, codes, n_cols, bits, &err), NB_OK);
            for (int64_t b = 0; b < 8 * n_bytes; b++) {
                const int64_t c = b / bits;
                assert_int_equal(words[b / 8] >> b % 8 & 1,
                                 c < n_cols ? (codes[c] + half) >> b % bits & 1 : 0);
            }
            assert_int_equal(words[n_bytes], 0xff); /* and not a byte more */

            /* Foreign padding is cleared, and nothing else. */
            memcpy(dirty, words, sizeof dirty);
            for (int64_t b = n_cols * bits; b < 8 * n_bytes; b++)
                dirty[b / 8] |= (uint8_t)(1 << b % 8);
            nb_ct_clear_padding(dirty, 1, n_cols, bits);
            assert_memory_equal(dirty, words, sizeof dirty);
        }
    }
    for (int64_t n_cols = 1; n_cols <= 40; n_cols++) {
        int8_t codes[40];
        uint8_t words[40];
        for (int64_t c = 0; c < n_cols; c++)
            codes[c] = (int8_t)(37 * c + n_cols);
        nb_ct_pack8_row(words, codes, n_cols);
        for (int64_t c = 0; c < 4 * nb_ct_n_words(n_cols, 8); c++)
            assert_int_equal(words[c], c < n_cols ? codes[c] + 128 : 0);
    }
    assert_int_equal(nb_ct_n_words(INT64_MAX, 4), INT64_MAX / 8 + 1); /* no overflow */
}

static void codes_that_need_more_bits_are_refused(void **state)
{
    (void)state;
    static const struct {
        int bits, lo, hi;
        const char *reason;
    } widths[] = {{4, -8, 7, "at column 8, not in [-8, 7]"},
                  {3, -4, 3, "at column 8, not in [-4, 3]"},
                  {2, -2, 1, "at column 8, not in [-2, 1]"}};
    for (size_t i = 0; i < 3; i++) {
        for (int code = -128; code < 128; code++) {
            int8_t codes[9] = {0};
            uint8_t words[8];
            nb_err err;
            codes[8] = (int8_t)code;
            const bool fits = code >= widths[i].lo && code <= widths[i].hi;
            assert_int_equal(nb_ct_pack_row(words, codes, 9, widths[i].bits, &err),
                             fits ? NB_OK : NB_DATA);
            if (!fits)
                assert_non_null(strstr(err.text, widths[i].reason));
        }
    }
}

static void rows_of_8_bits_close_up(void **state)
{
    (void)state;
    for (int64_t n_cols = 1; n_cols <= 9; n_cols++) {
        enum { ROWS = 5 };
        const int64_t stride = 4 * nb_ct_n_words(n_cols, 8);
        uint8_t bytes[ROWS * 12];
        for (int64_t r = 0; r < ROWS; r++) {
            for (int64_t c = 0; c < stride; c++)
                bytes[r * stride + c] = c < n_cols ? (uint8_t)(r * 50 + c) : 0xee;
        }
        nb_ct_unpack8(bytes, ROWS, n_cols);
        for (int64_t i = 0; i < ROWS * n_cols; i++)
            assert_int_equal((int8_t)bytes[i], (int)(i / n_cols * 50 + i % n_cols) - 128);
    }
}

static void zero_points_at_every_height(void **state)
{
    (void)state;
    static const int widths[] = {2, 3, 4, 8};
    for (int i = 0; i < 4; i++) {
        const int bits = widths[i], half = 1 << (bits - 1);
        for (int64_t n_rows = 1; n_rows <= 40; n_rows++) {
            for (int64_t n_groups = 1; n_groups <= 3; n_groups++) {
                int8_t zeros[120], again[120];
                uint32_t words[40];
                for (int64_t k = 0; k < n_rows * n_groups; k++) {
                    uint32_t r[4];
                    nb_philox(4, (uint64_t)n_rows, (uint64_t)k, r);
                    zeros[k] = (int8_t)((int)(r[0] % (2u * (uint32_t)half)) - half);
                }
                nb_ct_pack_zeros(words, zeros, n_rows, n_groups, bits);
                for (int64_t b = 0; b < 32 * nb_ct_n_words(n_rows, bits); b++) {
                    for (int64_t g = 0; g < n_groups; g++) {
                        const int64_t r = b / bits;
                        const uint32_t got = words[b / 32 * n_groups + g] >> b % 32 & 1;
                        assert_int_equal(
                            got, r < n_rows ? (zeros[r * n_groups + g] + half) >> b % bits & 1 : 0);
                    }
                }
                nb_ct_unpack_zeros(again, words, n_rows, n_groups, bits);
                assert_memory_equal(again, zeros, (size_t)(n_rows * n_groups));
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_vectors),
        cmocka_unit_test(packing_is_the_definition_at_every_width),
        cmocka_unit_test(codes_that_need_more_bits_are_refused),
        cmocka_unit_test(rows_of_8_bits_close_up),
        cmocka_unit_test(zero_points_at_every_height),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
