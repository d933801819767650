/* Integer codes in Hugging Face folders, as compressed-tensors lays them out: golden weights, every
 * layout, and parts that do not fit each other. */
#include "store/ct_pack.h"
#include "store/hf_folder.h"
#include "store/safetensors.h"
#include "store/store.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* config.json with one group for all Linear modules. */
static void write_ct_config(const char *format, const char *weights, const char *ignore)
{
    char text[1000];
    snprintf(
        text, sizeof text,
        "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"%s\","
        "\"ignore\":[%s],\"config_groups\":{\"g\":{\"targets\":[\"Linear\"],\"weights\":{%s}}}}}",
        format, ignore, weights);
    scratch_text("m/config.json", text);
}

/* The golden weights decode to the golden values, exactly. */
static void golden_weights(void **state)
{
    (void)state;
    static const struct {
        const char *key, *weights;
    } cases[] = {
        {"w4_sym", "\"num_bits\":4,\"group_size\":16"},
        {"w4_asym", "\"num_bits\":4,\"group_size\":16,\"symmetric\":false"},
        {"w8_sym", "\"num_bits\":8,\"group_size\":%lld"},
        {"w4_oddcols", "\"num_bits\":4,\"group_size\":%lld"},
    };
    json_t *golden = golden_load("compressed_tensors.json");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const json_t *g = golden_get(golden, cases[i].key);
        const int64_t n = json_integer_value(golden_get(g, "N"));
        const int64_t k = json_integer_value(golden_get(g, "K"));
        const int64_t gs = json_integer_value(golden_get(g, "group_size"));
        const int64_t bits = json_integer_value(golden_get(g, "bits"));
        const bool symmetric = json_is_true(golden_get(g, "symmetric"));
        const int64_t n_groups = gs > 0 && gs < k ? k / gs : 1;
        char weights[100];
        snprintf(weights, sizeof weights, "\"num_bits\":%lld,\"group_size\":%lld,\"symmetric\":%s",
                 (long long)bits, gs > 0 && gs < k ? (long long)gs : -1LL,
                 symmetric ? "true" : "false");
        size_t len;
        uint8_t *packed = golden_hex(g, "weight_packed", &len);
        uint8_t *scale = golden_hex(g, "weight_scale_f16", &len);
        uint8_t *zero = symmetric ? NULL : golden_hex(g, "weight_zero_point", &len);
        const int64_t shape[2] = {n, k};
        const piece pieces[] = {
            PIECE("m.weight_shape", NB_ST_I64, 1, 2, 0, shape),
            PIECE("m.weight_packed", NB_ST_I32, 2, n, nb_ct_n_words(k, (int)bits), packed),
            PIECE("m.weight_scale", NB_ST_F16, 2, n, n_groups, scale),
            PIECE("m.weight_zero_point", NB_ST_I32, 2, nb_ct_n_words(n, (int)bits), n_groups, zero),
        };
        clear_folder();
        write_ct_config("pack-quantized", weights, "");
        write_pieces("m/model.safetensors", pieces, symmetric ? 3 : 4);
        nb_store *store = open_good("m");
        const nb_weight *w = nb_store_find(store, "m.weight");
        assert_non_null(w);
        assert_string_equal(w->file_name, "m.weight_packed");
        nb_safetensors file;
        nb_arena arena = {0};
        nb_err open_err;
        assert_int_equal(nb_st_open(&file, &arena, scratch_path("m/model.safetensors"), &open_err),
                         NB_OK);
        assert_int_equal(w->bytes,
                         file.file.size - file.data_start); /* all of it is the weight's */
        nb_st_close(&file);
        nb_arena_free(&arena);
        nb_loaded loaded = {0};
        nb_err err;
        if (nb_store_read(store, w, &loaded, &err) != NB_OK)
            fail_msg("%s", err.text);
        float y[64];
        assert_true(k <= 64);
        for (int64_t r = 0; r < n; r++) {
            const json_t *row = json_array_get(golden_get(g, "W"), (size_t)r);
            w->fmt->decode_row(&loaded.mat, r, y);
            for (int64_t c = 0; c < k; c++)
                assert_true(y[c] == (float)golden_number(json_array_get(row, (size_t)c)));
        }
        nb_loaded_free(&loaded);
        nb_store_close(store);
        free(packed);
        free(scale);
        free(zero);
    }
    json_decref(golden);
}

static const uint16_t half_scales[8] = {0x3c00, 0x4000, 0x4200, 0x4400,
                                        0x3c00, 0x3c00, 0x3c00, 0x3c00}; /* 1 2 3 4 1 1 1 1 */

/* One scale for all rows, 4-bit codes in a byte each, zero points in a byte each. */
static void int_quantized_layouts(void **state)
{
    (void)state;
    int8_t codes[3 * 5] = {-8, 7, 0, 1, 2, 3, 4, 5, 6, -7, -1, -2, -3, -4, -5};
    int8_t zeros[3] = {-8, 0, 7};
    nb_err err;
    nb_loaded loaded = {0};
    float y[5];

    clear_folder();
    write_ct_config("int-quantized", "\"num_bits\":8,\"strategy\":\"tensor\"", "");
    write_pieces("m/model.safetensors",
                 (const piece[]){PIECE("m.weight", NB_ST_I8, 2, 3, 5, codes),
                                 PIECE("m.weight_scale", NB_ST_F16, 1, 1, 0, half_scales + 1)},
                 2);
    nb_store *store = open_good("m");
    const nb_weight *w = nb_store_find(store, "m.weight");
    assert_int_equal(w->bytes, 17);
    assert_int_equal(w->group_size, 5);
    assert_int_equal(nb_store_read(store, w, &loaded, &err), NB_OK);
    for (int r = 0; r < 3; r++) {
        w->fmt->decode_row(&loaded.mat, r, y);
        for (int c = 0; c < 5; c++)
            assert_true(y[c] == 2.0f * codes[5 * r + c]);
    }
    nb_store_close(store);

    write_ct_config("int-quantized", "\"num_bits\":4,\"strategy\":\"channel\",\"symmetric\":false",
                    "");
    for (int bad = 0; bad < 4; bad++) {
        codes[7] = bad == 1 ? 8 : bad == 2 ? -9 : 5;
        zeros[1] = bad == 3 ? 8 : 0;
        write_pieces("m/model.safetensors",
                     (const piece[]){PIECE("m.weight", NB_ST_I8, 2, 3, 5, codes),
                                     PIECE("m.weight_scale", NB_ST_F16, 2, 3, 1, half_scales),
                                     PIECE("m.weight_zero_point", NB_ST_I8, 2, 3, 1, zeros)},
                     3);
        store = open_good("m");
        w = nb_store_find(store, "m.weight");
        assert_ptr_equal(w->fmt, &nb_format_int4);
        assert_false(w->symmetric);
        const nb_status s = nb_store_read(store, w, &loaded, &err);
        if (bad > 0) {
            assert_int_equal(s, NB_DATA);
            assert_non_null(strstr(err.text, bad < 3
                                                 ? "tensor 'm.weight': row 1: code"
                                                 : "tensor 'm.weight_zero_point': zero point 8"));
            assert_null(loaded.mat.codes);
            nb_store_close(store);
            continue;
        }
        assert_int_equal(s, NB_OK);
        for (int r = 0; r < 3; r++) {
            w->fmt->decode_row(&loaded.mat, r, y);
            for (int c = 0; c < 5; c++)
                assert_true(y[c] == (float)(r + 1) * (float)(codes[5 * r + c] - zeros[r]));
        }
        nb_store_close(store);
    }

    /* Packed, one asymmetric scale for all: the zero point is a plain byte. */
    const uint32_t words[2] = {0x76543210, 0xfedcba98};
    const int64_t shape[2] = {2, 8};
    write_ct_config("pack-quantized", "\"num_bits\":4,\"symmetric\":false", "");
    write_pieces("m/model.safetensors",
                 (const piece[]){PIECE("m.weight_packed", NB_ST_I32, 2, 2, 1, words),
                                 PIECE("m.weight_shape", NB_ST_I64, 1, 2, 0, shape),
                                 PIECE("m.weight_scale", NB_ST_F16, 1, 1, 0, half_scales),
                                 PIECE("m.weight_zero_point", NB_ST_I8, 1, 1, 0, zeros)},
                 4);
    store = open_good("m");
    w = nb_store_find(store, "m.weight");
    assert_int_equal(nb_store_read(store, w, &loaded, &err), NB_OK);
    float y8[8];
    for (int r = 0; r < 2; r++) {
        w->fmt->decode_row(&loaded.mat, r, y8);
        for (int c = 0; c < 8; c++)
            assert_true(y8[c] == (float)(8 * r + c - 8 + 8)); /* code minus a zero point of -8 */
    }
    nb_store_close(store);
    nb_loaded_free(&loaded);
}

/* Other writers may leave anything in the unused bits of a row; nb_mat wants zeros there. */
static void foreign_padding_is_cleared(void **state)
{
    (void)state;
    const uint32_t words[2] = {0xfff43210, 0xabc98765};
    const int64_t shape[2] = {2, 5};
    nb_err err;
    nb_loaded loaded = {0};
    clear_folder();
    write_ct_config("pack-quantized", "\"num_bits\":4,\"strategy\":\"channel\"", "");
    write_pieces("m/model.safetensors",
                 (const piece[]){PIECE("m.weight_packed", NB_ST_I32, 2, 2, 1, words),
                                 PIECE("m.weight_shape", NB_ST_I64, 1, 2, 0, shape),
                                 PIECE("m.weight_scale", NB_ST_F16, 2, 2, 1, half_scales)},
                 3);
    nb_store *store = open_good("m");
    assert_int_equal(nb_store_read(store, nb_store_weight(store, 0), &loaded, &err), NB_OK);
    const uint32_t cleared[2] = {0x00043210, 0x00098765};
    assert_memory_equal(loaded.mat.codes, cleared, sizeof cleared);
    nb_loaded_free(&loaded);
    nb_store_close(store);
}

/* Every part wrong in turn, of a weight that is right otherwise. */
static void parts_that_do_not_fit(void **state)
{
    (void)state;
    static const int64_t shape[2] = {10, 64}, wide[2] = {10, 65}, zero[2] = {0, 64},
                         negative[2] = {-10, 64}, huge[2] = {10, INT64_MAX};
    const piece good[] = {PIECE("m.weight_packed", NB_ST_I32, 2, 10, 8, NULL),
                          PIECE("m.weight_shape", NB_ST_I64, 1, 2, 0, shape),
                          PIECE("m.weight_scale", NB_ST_BF16, 2, 10, 2, NULL),
                          PIECE("m.weight_zero_point", NB_ST_I32, 2, 2, 2, NULL)};
    const struct {
        int which; /* part replaced */
        piece with;
        const char *reason;
    } cases[] = {
        {0, PIECE("m.weight_packed", NB_ST_I32, 2, 10, 9, NULL),
         "tensor 'm.weight_packed': wanted I32 [10, 8], found I32 [10, 9]"},
        {0, PIECE("m.weight_packed", NB_ST_I32, 2, 8, 10, NULL), "wanted I32 [10, 8]"},
        {0, PIECE("m.weight_packed", NB_ST_I32, 1, 80, 0, NULL), "found I32 [80]"},
        {0, PIECE("m.weight_packed", NB_ST_U8, 2, 10, 32, NULL), "found U8 [10, 32]"},
        {1, PIECE("m.weight_shape", NB_ST_I64, 1, 3, 0, NULL), "wanted I64 [2], found I64 [3]"},
        {1, PIECE("m.weight_shape", NB_ST_I32, 1, 2, 0, NULL), "found I32 [2]"},
        {1, PIECE("m.weight_shape", NB_ST_I64, 1, 2, 0, wide),
         "65 columns are not divisible by the group_size 32"},
        {1, PIECE("m.weight_shape", NB_ST_I64, 1, 2, 0, zero), "a matrix of 0 x 64"},
        {1, PIECE("m.weight_shape", NB_ST_I64, 1, 2, 0, negative), "a matrix of -10 x 64"},
        {1, PIECE("m.weight_shape", NB_ST_I64, 1, 2, 0, huge), "not divisible"},
        {1, PIECE("shape", NB_ST_I64, 1, 2, 0, shape), "'m.weight_packed' has no weight_shape"},
        {2, PIECE("m.weight_scale", NB_ST_BF16, 2, 10, 1, NULL), "wanted BF16 [10, 2]"},
        {2, PIECE("m.weight_scale", NB_ST_BF16, 2, 2, 10, NULL), "wanted BF16 [10, 2]"},
        {2, PIECE("m.weight_scale", NB_ST_BF16, 1, 20, 0, NULL), "wanted BF16 [10, 2]"},
        {2, PIECE("scale", NB_ST_BF16, 2, 10, 2, NULL), "has no weight_scale"},
        {3, PIECE("m.weight_zero_point", NB_ST_I32, 2, 10, 2, NULL), "wanted I32 [2, 2]"},
        {3, PIECE("m.weight_zero_point", NB_ST_I8, 2, 10, 2, NULL), "wanted I32 [2, 2]"},
        {3, PIECE("zero_point", NB_ST_I32, 2, 2, 2, NULL), "no zero points"},
    };
    clear_folder();
    write_ct_config("pack-quantized", "\"num_bits\":4,\"group_size\":32,\"symmetric\":false", "");
    write_pieces("m/model.safetensors", good, 4);
    nb_store_close(open_good("m"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        piece pieces[4];
        memcpy(pieces, good, sizeof good);
        pieces[cases[i].which] = cases[i].with;
        write_pieces("m/model.safetensors", pieces, 4);
        expect_refused(NB_DATA, cases[i].reason);
    }
    piece pieces[6];
    memcpy(pieces, good, sizeof good);
    pieces[2].tensor.dtype = NB_ST_F64;
    write_pieces("m/model.safetensors", pieces, 4);
    expect_refused(NB_UNSUPPORTED, "tensor 'm.weight_scale': scales of dtype F64");

    /* Parts too many. */
    memcpy(pieces, good, sizeof good);
    pieces[4] = PIECE("m.weight_g_idx", NB_ST_I32, 1, 64, 0, NULL);
    write_pieces("m/model.safetensors", pieces, 5);
    expect_refused(NB_UNSUPPORTED, "tensor 'm.weight_g_idx' belongs to no quantized weight");
    pieces[4] = PIECE("m.input_scale", NB_ST_F32, 1, 1, 0, NULL);
    write_pieces("m/model.safetensors", pieces, 5);
    expect_refused(NB_UNSUPPORTED, "tensor 'm.input_scale' belongs to no quantized weight");
    pieces[4] = PIECE("m.weight", NB_ST_F32, 2, 10, 64, NULL);
    write_pieces("m/model.safetensors", pieces, 5);
    expect_refused(NB_DATA, "are one weight, twice");
    write_ct_config("pack-quantized", "\"num_bits\":4,\"group_size\":32", "");
    write_pieces("m/model.safetensors", good, 4);
    expect_refused(NB_DATA, "'m.weight_zero_point': zero points, and group 'g' is symmetric");
    write_ct_config("int-quantized", "\"num_bits\":4,\"group_size\":32", "");
    expect_refused(NB_DATA, "group 'g' is int-quantized");
    write_ct_config("pack-quantized", "\"num_bits\":4,\"group_size\":32", "\"m\"");
    expect_refused(NB_DATA, "quantization_config names no group for it");
}

/* 576 columns and groups of 128: refused with both numbers, never padded. */
static void rows_that_groups_do_not_divide(void **state)
{
    (void)state;
    const int64_t shape[2] = {1, 576};
    clear_folder();
    write_ct_config("pack-quantized", "\"num_bits\":4,\"group_size\":128", "");
    write_pieces("m/model.safetensors",
                 (const piece[]){PIECE("m.weight_packed", NB_ST_I32, 2, 1, 72, NULL),
                                 PIECE("m.weight_shape", NB_ST_I64, 1, 2, 0, shape),
                                 PIECE("m.weight_scale", NB_ST_BF16, 2, 1, 5, NULL)},
                 3);
    expect_refused(NB_DATA, "tensor 'm.weight_packed': 576 columns are not divisible by the "
                            "group_size 128");
}

static void plain_weights_beside_quantized_ones(void **state)
{
    (void)state;
    clear_folder();
    write_ct_config("int-quantized", "\"strategy\":\"channel\"", "\"lm_head\"");
    const piece pieces[] = {PIECE("m.weight", NB_ST_I8, 2, 3, 5, NULL),
                            PIECE("m.weight_scale", NB_ST_F32, 2, 3, 1, NULL),
                            PIECE("m.bias", NB_ST_F32, 1, 3, 0, NULL),
                            PIECE("lm_head.weight", NB_ST_BF16, 2, 9, 5, NULL),
                            PIECE("norm.weight", NB_ST_BF16, 1, 5, 0, NULL)};
    write_pieces("m/model.safetensors", pieces, 5);
    nb_store *store = open_good("m");
    assert_int_equal(nb_store_n_weights(store), 4);
    assert_ptr_equal(nb_store_find(store, "m.weight")->fmt, &nb_format_int8);
    assert_ptr_equal(nb_store_find(store, "lm_head.weight")->fmt, &nb_format_bf16);
    nb_store_close(store);
    /* A module that a group names outright must have codes. */
    scratch_text("m/config.json",
                 "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
                 "\"format\":\"int-quantized\",\"config_groups\":{\"g\":{\"targets\":[\"m\","
                 "\"lm_head\"],\"weights\":{\"strategy\":\"channel\"}}}}}");
    expect_refused(NB_DATA, "'lm_head.weight': dtype BF16, and quantization_config says");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_weights),
        cmocka_unit_test(int_quantized_layouts),
        cmocka_unit_test(foreign_padding_is_cleared),
        cmocka_unit_test(parts_that_do_not_fit),
        cmocka_unit_test(rows_that_groups_do_not_divide),
        cmocka_unit_test(plain_weights_beside_quantized_ones),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
