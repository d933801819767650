/* FP8 and NF4 in Hugging Face folders: what is read, and what is refused. */
#include "numeric/nf4.h"
#include "store/float_folder.h"
#include "store/safetensors.h"
#include "store/store.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- folders made by hand ---- */

#define NOTHING ((piece){.data = NULL})

/* ---- FP8 ---- */

#define CT(weights, act)                                                                           \
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\",\"config_groups\":{"  \
    "\"group_0\":{\"targets\":[\"Linear\"],\"weights\":{\"num_bits\":8,\"type\":"                  \
    "\"float\"," weights "},\"input_activations\":" act "}}}"

#define TOKEN "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"token\",\"dynamic\":true}"

#define STATIC "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"tensor\",\"dynamic\":false}"

#define BLOCKS "{\"quant_method\":\"fp8\",\"weight_block_size\":[2,4]}"

static const uint8_t codes[4 * 6] = {0x38, 0x40, 0xc0, 0x01, 0x7e, 0xfe, 0x00, 0x80,
                                     0x30, 0x31, 0x32, 0x33, 0x38, 0x39, 0x3a, 0x3b,
                                     0x3c, 0x3d, 0x3e, 0x3f, 0x40, 0x41, 0x42, 0x43};

static const float scales[8] = {0.5f, 2, 0.25f, 4, 1, 8, 3, 7};

/* How a config and a shape of scales are read: which scale belongs to row r and column c. */
static const struct {
    const char *config, *scale;
    int n_dims;
    int64_t dims[2], rows, cols;
} fp8_cases[] = {
    {CT("\"strategy\":\"tensor\"", TOKEN), "weight_scale", 1, {1}, 4, 6},
    {CT("\"strategy\":\"channel\"", TOKEN), "weight_scale", 2, {4, 1}, 1, 6},
    {CT("\"strategy\":\"channel\"", "null"), "weight_scale", 1, {4}, 1, 6},
    {CT("\"strategy\":\"group\",\"group_size\":3", TOKEN), "weight_scale", 2, {4, 2}, 1, 3},
    {CT("\"strategy\":\"block\",\"block_structure\":[2,4]", TOKEN),
     "weight_scale",
     2,
     {2, 2},
     2,
     4},
    {CT("\"strategy\":\"block\",\"block_structure\":\"3x5\"", TOKEN),
     "weight_scale",
     2,
     {2, 2},
     3,
     5},
    {CT("\"strategy\":\"block\",\"block_structure\":[9,9]", TOKEN),
     "weight_scale",
     2,
     {1, 1},
     9,
     9},
    {BLOCKS, "weight_scale_inv", 2, {2, 2}, 2, 4},
    {"{\"quant_method\":\"fp8\"}", "weight_scale", 0, {0}, 4, 6},
    {"{\"quant_method\":\"fp8\"}", "weight_scale", 1, {1}, 4, 6},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":null}", "weight_scale", 2, {4, 1}, 1, 6},
};

static void fp8_scales_of_every_shape(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fp8_cases / sizeof *fp8_cases; i++) {
        char name[64];
        snprintf(name, sizeof name, "a.%s", fp8_cases[i].scale);
        write_folder(fp8_cases[i].config,
                     (const piece[]){PIECE(name, NB_ST_F32, fp8_cases[i].n_dims,
                                           fp8_cases[i].dims[0], fp8_cases[i].dims[1], scales),
                                     PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes)},
                     2);
        nb_store *store = open_good("m");
        nb_loaded loaded = {0};
        nb_err err;
        float row[6];
        assert_int_equal(nb_store_n_weights(store), 1);
        const nb_weight *w = nb_store_weight(store, 0);
        assert_string_equal(w->name, "a.weight");
        assert_int_equal(nb_store_read(store, w, &loaded, &err), NB_OK);
        const int64_t across = (6 + fp8_cases[i].cols - 1) / fp8_cases[i].cols;
        for (int64_t r = 0; r < 4; r++) {
            w->fmt->decode_row(&loaded.mat, r, row);
            for (int64_t c = 0; c < 6; c++) {
                const int64_t s = r / fp8_cases[i].rows * across + c / fp8_cases[i].cols;
                if (row[c] != nb_e4m3_to_f32(codes[6 * r + c]) * scales[s])
                    fail_msg("case %zu, [%d, %d]: %g", i, (int)r, (int)c, (double)row[c]);
            }
        }
        assert_int_equal(w->act.bits, i == 2 ? 0 : 8);
        assert_int_equal(w->act.is_float, i != 2);
        assert_int_equal(w->act.group_size, i == 7 ? 4 : 0);
        assert_int_equal(nb_mat_bytes(&loaded.mat), w->bytes);
        nb_loaded_free(&loaded);
        nb_store_close(store);
    }
}

static void static_scales_of_activations_are_read(void **state)
{
    (void)state;
    static const uint16_t half = 0x3800; /* 0.5 */
    write_folder("{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}",
                 (const piece[]){PIECE("a.input_scale", NB_ST_F16, 0, 0, 0, &half),
                                 PIECE("a.weight_scale", NB_ST_F32, 0, 0, 0, scales),
                                 PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes)},
                 3);
    nb_store *store = open_good("m");
    const nb_act_spec *act = &nb_store_weight(store, 0)->act;
    assert_true(act->is_float && act->is_static && act->scale == 0.5f);
    assert_int_equal(nb_store_weight(store, 0)->bytes, 24 + 4 + 2);
    nb_store_close(store);
}

/* Integer weights have them, too; whoever wrote a zero point of 0 meant none. */
static void static_scales_of_integers(void **state)
{
    (void)state;
    static const char config[] =
        "{\"quant_method\":\"compressed-tensors\",\"format\":\"int-quantized\",\"config_groups\":{"
        "\"g\":{\"targets\":[\"Linear\"],\"weights\":{\"num_bits\":8,\"strategy\":\"channel\"},"
        "\"input_activations\":{\"num_bits\":8,\"strategy\":\"tensor\",\"dynamic\":false}}}}";
    static const float good = 0.125f, two[2] = {1, 1};
    static const float bad[] = {0, -0.5f, NAN, INFINITY, -INFINITY, 0x1p-120f, 0x1p120f};
    static const int8_t zero = 0, one = 1;
    const piece scale = PIECE("a.weight_scale", NB_ST_F32, 2, 4, 1, scales);
    const piece weight = PIECE("a.weight", NB_ST_I8, 2, 4, 6, codes);
    write_folder(config,
                 (const piece[]){scale, PIECE("a.input_scale", NB_ST_F32, 1, 1, 0, &good), weight,
                                 PIECE("a.input_zero_point", NB_ST_I8, 1, 1, 0, &zero)},
                 4);
    nb_store *store = open_good("m");
    const nb_act_spec *act = &nb_store_weight(store, 0)->act;
    assert_true(act->is_static && !act->is_float && act->bits == 8 && act->scale == good);
    assert_int_equal(nb_store_weight(store, 0)->bytes, 24 + 16 + 4);
    nb_store_close(store);

    nb_err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_folder(
            config,
            (const piece[]){scale, PIECE("a.input_scale", NB_ST_F32, 1, 1, 0, &bad[i]), weight}, 3);
        assert_int_equal(read_all("m", &err), NB_DATA);
        assert_non_null(strstr(err.text, "tensor 'a.input_scale': "));
        assert_non_null(strstr(err.text, "is no scale"));
        assert_null(strchr(err.text, '\n'));
    }
    const struct {
        piece scale, more;
        nb_status status;
        const char *reason;
    } cases[] = {
        {PIECE("a.input_scale", NB_ST_F32, 1, 2, 0, two), NOTHING, NB_DATA,
         "tensor 'a.input_scale': wanted one number, found [2]"},
        {PIECE("a.input_scale", NB_ST_I32, 1, 1, 0, NULL), NOTHING, NB_UNSUPPORTED,
         "tensor 'a.input_scale': scales of dtype I32"},
        {PIECE("b.input_scale", NB_ST_F32, 1, 1, 0, &good), NOTHING, NB_DATA,
         "tensor 'a.weight' has no input_scale, and activations are static"},
        {PIECE("a.input_scale", NB_ST_F32, 1, 1, 0, &good),
         PIECE("a.input_zero_point", NB_ST_I8, 1, 1, 0, &one), NB_UNSUPPORTED,
         "tensor 'a.input_zero_point': activations with a zero point"},
        {PIECE("a.input_scale", NB_ST_F32, 1, 1, 0, &good),
         PIECE("a.input_zero_point", NB_ST_I8, 1, 9, 0, NULL), NB_UNSUPPORTED,
         "tensor 'a.input_zero_point': activations with a zero point"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const bool more = cases[i].more.tensor.name != NULL;
        write_folder(config, (const piece[]){scale, cases[i].scale, weight, cases[i].more},
                     more ? 4 : 3);
        assert_int_equal(read_all("m", &err), cases[i].status);
        if (strstr(err.text, cases[i].reason) == NULL)
            fail_msg("case %zu: %s", i, err.text);
    }
}

static void fp8_that_is_refused(void **state)
{
    (void)state;
    static const float bad[] = {1, NAN, INFINITY, -1};
    static const float zero = 0, huge = 1e38f;
    const struct {
        const char *config;
        piece scale, weight, more;
        nb_status status;
        const char *reason;
    } cases[] = {
        {BLOCKS, PIECE("a.weight_scale_inv", NB_ST_F32, 2, 2, 2, bad),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA,
         "tensor 'a.weight_scale_inv': element 1 is nan, and no scale"},
        {BLOCKS, PIECE("a.weight_scale_inv", NB_ST_F32, 2, 2, 3, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA,
         "tensor 'a.weight_scale_inv': wanted scales [2, 2], found [2, 3]"},
        {BLOCKS, PIECE("a.weight_scale_inv", NB_ST_F64, 2, 2, 2, NULL),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_UNSUPPORTED,
         "scales of dtype F64"},
        {BLOCKS, PIECE("b.weight_scale_inv", NB_ST_F32, 2, 2, 2, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA,
         "tensor 'a.weight' has no weight_scale"},
        {BLOCKS, PIECE("a.weight_scale_inv", NB_ST_F32, 2, 2, 2, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 1, 24, 0, codes), NOTHING, NB_DATA,
         "tensor 'a.weight': [24] is the shape of no matrix"},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[0,128]}",
         PIECE("a.weight_scale_inv", NB_ST_F32, 2, 2, 2, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA,
         "quantization_config: weight_block_size is no pair of rows and columns"},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":7}",
         PIECE("a.weight_scale_inv", NB_ST_F32, 2, 2, 2, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA, "weight_block_size"},
        {"{\"quant_method\":\"fp8\",\"activation_scheme\":\"odd\"}",
         PIECE("a.weight_scale", NB_ST_F32, 0, 0, 0, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_UNSUPPORTED,
         "activation_scheme 'odd'"},
        {"{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}",
         PIECE("a.weight_scale", NB_ST_F32, 0, 0, 0, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA,
         "tensor 'a.weight' has no input_scale, and activations are static"},
        {"{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}",
         PIECE("a.weight_scale", NB_ST_F32, 0, 0, 0, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes),
         PIECE("a.input_scale", NB_ST_F32, 1, 1, 0, &zero), NB_DATA,
         "tensor 'a.input_scale': 0 is no scale"},
        {"{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}",
         PIECE("a.weight_scale", NB_ST_F32, 0, 0, 0, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes),
         PIECE("a.input_scale", NB_ST_F32, 1, 1, 0, &huge), NB_DATA, "is no scale"},
        {"{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}",
         PIECE("a.weight_scale", NB_ST_F32, 0, 0, 0, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes),
         PIECE("a.input_scale", NB_ST_F32, 1, 2, 0, scales), NB_DATA, "wanted one number"},
        {"{\"quant_method\":\"fp8\"}", PIECE("a.weight_scale", NB_ST_F32, 0, 0, 0, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes),
         PIECE("a.input_scale", NB_ST_F32, 1, 1, 0, scales), NB_UNSUPPORTED,
         "tensor 'a.input_scale' belongs to no quantized weight"},
        {"null", PIECE("a.weight_scale", NB_ST_F32, 0, 0, 0, scales),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_UNSUPPORTED,
         "codes of dtype F8_E4M3, and config.json has no quantization_config for them"},
        {CT("\"strategy\":\"channel\"", TOKEN), PIECE("a.weight_scale", NB_ST_F32, 2, 6, 1, NULL),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA,
         "wanted scales [4, 1], found [6, 1]"},
        {CT("\"strategy\":\"tensor\"", TOKEN), PIECE("a.weight_scale", NB_ST_F32, 2, 4, 1, NULL),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA,
         "wanted scales [1], found [4, 1]"},
        {CT("\"strategy\":\"group\",\"group_size\":4", TOKEN),
         PIECE("a.weight_scale", NB_ST_F32, 2, 4, 2, NULL),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA,
         "6 columns are not divisible by the group_size 4"},
        {CT("\"strategy\":\"channel\"", STATIC), PIECE("a.weight_scale", NB_ST_F32, 2, 4, 1, NULL),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA, "has no input_scale"},
        {CT("\"strategy\":\"block\"", TOKEN), PIECE("a.weight_scale", NB_ST_F32, 2, 4, 1, NULL),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA,
         "strategy 'block' needs a block_structure"},
        {CT("\"strategy\":\"block\",\"block_structure\":\"3y5\"", TOKEN),
         PIECE("a.weight_scale", NB_ST_F32, 2, 4, 1, NULL),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_DATA,
         "block_structure is no pair"},
        {CT("\"symmetric\":false,\"strategy\":\"channel\"", TOKEN),
         PIECE("a.weight_scale", NB_ST_F32, 2, 4, 1, NULL),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_UNSUPPORTED, "asymmetric"},
        {CT("\"strategy\":\"channel\"",
            "{\"num_bits\":8,\"type\":\"int\",\"strategy\":\"token\",\"dynamic\":true}"),
         PIECE("a.weight_scale", NB_ST_F32, 2, 4, 1, NULL),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_UNSUPPORTED,
         "type 'int' with weights of type 'float'"},
        {CT("\"strategy\":\"channel\"",
            "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"token\",\"dynamic\":false}"),
         PIECE("a.weight_scale", NB_ST_F32, 2, 4, 1, NULL),
         PIECE("a.weight", NB_ST_F8_E4M3, 2, 4, 6, codes), NOTHING, NB_UNSUPPORTED,
         "static with strategy 'token'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const piece pieces[] = {cases[i].scale, cases[i].weight, cases[i].more};
        write_folder(cases[i].config, pieces, cases[i].more.tensor.name != NULL ? 3 : 2);
        expect_unread(cases[i].status, cases[i].reason);
    }
}

/* ---- NF4 ---- */

#define BNB                                                                                        \
    "{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true,\"bnb_4bit_quant_type\":\"nf4\"}"

#define STATE(rest) "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [2, 64]" rest "}"

#define NESTED ", \"nested_blocksize\": 256, \"nested_offset\": 0.04895505681633949"

#define S "a.weight.quant_state.bitsandbytes__nf4"

static void golden_nf4(void **state)
{
    (void)state;
    json_t *golden = golden_load("bitsandbytes.json");
    const json_t *nf4 = golden_get(golden, "nf4"), *nested = golden_get(golden, "double_quant");
    size_t n, n_state;
    uint8_t *packed = golden_hex(nf4, "packed_hex", &n);
    uint8_t *text = golden_hex(golden, "quant_state_tensor_hex", &n_state);
    static const uint8_t absmax_codes[2] = {255, 0};
    const float step = (float)golden_number(json_array_get(golden_get(nested, "nested_absmax"), 0));
    float absmax[2], row[64];
    for (size_t i = 0; i < 2; i++)
        absmax[i] = (float)golden_number(json_array_get(golden_get(nf4, "absmax"), i));
    for (int kind = 0; kind < 2; kind++) {
        static const char nested_state[] = STATE(NESTED);
        const piece pieces[] = {
            PIECE("a.weight.quant_map", NB_ST_F32, 1, 16, 0, nb_nf4_levels),
            PIECE("a.weight.nested_quant_map", NB_ST_F32, 1, 256, 0, nb_nf4_map),
            PIECE("a.weight.nested_absmax", NB_ST_F32, 1, 1, 0, &step),
            PIECE("a.weight.absmax", NB_ST_U8, 1, 2, 0, absmax_codes),
            PIECE("a.weight", NB_ST_U8, 2, 64, 1, packed),
            PIECE(S, NB_ST_U8, 1, sizeof nested_state - 1, 0, nested_state)};
        const piece plain[] = {pieces[0], PIECE("a.weight.absmax", NB_ST_F32, 1, 2, 0, absmax),
                               pieces[4], PIECE(S, NB_ST_U8, 1, (int64_t)n_state, 0, text)};
        write_folder(BNB, kind == 0 ? plain : pieces, kind == 0 ? 4 : 6);
        nb_store *store = open_good("m");
        nb_loaded loaded = {0};
        nb_err err;
        assert_int_equal(nb_store_n_weights(store), 1);
        const nb_weight *w = nb_store_weight(store, 0);
        assert_int_equal(w->n_rows, 2);
        assert_int_equal(w->n_cols, 64);
        assert_int_equal(w->nested, kind == 1);
        assert_int_equal(nb_store_read(store, w, &loaded, &err), NB_OK);
        for (size_t r = 0; r < 2; r++) {
            w->fmt->decode_row(&loaded.mat, (int64_t)r, row);
            const float scale =
                (float)golden_number(json_array_get(golden_get(nested, "absmax_reconstructed"), r));
            for (size_t c = 0; c < 64; c++) {
                const uint8_t byte = packed[32 * r + c / 2];
                const float level = nb_nf4_levels[c % 2 == 0 ? byte >> 4 : byte & 15];
                assert_true(row[c] == (kind == 0 ? (float)golden_number(json_array_get(
                                                       golden_get(nf4, "dequant"), 64 * r + c))
                                                 : level * scale));
            }
        }
        nb_loaded_free(&loaded);
        nb_store_close(store);
    }
    free(packed);
    free(text);
    json_decref(golden);
}

static void nf4_that_is_refused(void **state)
{
    (void)state;
    static const float nan_absmax[2] = {1, NAN}, absmax[2] = {1, 2};
    float other_map[16];
    memcpy(other_map, nb_nf4_levels, sizeof other_map);
    other_map[3] = -0.4f;
    const piece map = PIECE("a.weight.quant_map", NB_ST_F32, 1, 16, 0, nb_nf4_levels);
    const piece scale = PIECE("a.weight.absmax", NB_ST_F32, 1, 2, 0, absmax);
    const piece weight = PIECE("a.weight", NB_ST_U8, 2, 64, 1, NULL);
    const struct {
        const char *config, *state;
        piece map, scale, weight;
        nb_status status;
        const char *reason;
    } cases[] = {
        {BNB, "{", map, scale, weight, NB_DATA, "tensor 'a.weight': quant_state: not valid JSON"},
        {BNB, "7", map, scale, weight, NB_DATA, "quant_state: "},
        {BNB, "[]", map, scale, weight, NB_DATA, "quant_state: not a JSON object"},
        {BNB, "{\"quant_type\":\"fp4\"}", map, scale, weight, NB_UNSUPPORTED, "quant_type 'fp4'"},
        {BNB, "{\"quant_type\":\"nf4\",\"shape\":[2,64]}", map, scale, weight, NB_DATA,
         "'blocksize' is missing"},
        {BNB, "{\"quant_type\":\"nf4\",\"blocksize\":64}", map, scale, weight, NB_DATA,
         "'shape' is missing"},
        {BNB, "{\"quant_type\":\"nf4\",\"blocksize\":64,\"shape\":[2]}", map, scale, weight,
         NB_DATA, "shape is no pair"},
        {BNB, "{\"quant_type\":\"nf4\",\"blocksize\":64,\"shape\":[2,-64]}", map, scale, weight,
         NB_DATA, "shape is no pair"},
        {BNB, "{\"quant_type\":\"nf4\",\"blocksize\":64,\"shape\":[4294967296,4294967296]}", map,
         scale, weight, NB_DATA, "shape is no pair"},
        {BNB, "{\"quant_type\":\"nf4\",\"blocksize\":64,\"shape\":[2,128]}", map, scale, weight,
         NB_DATA, "tensor 'a.weight': wanted U8 [128], found U8 [64, 1]"},
        {BNB, "{\"quant_type\":\"nf4\",\"blocksize\":64,\"shape\":[4,32]}", map, scale, weight,
         NB_UNSUPPORTED, "blocks of 64 that do not end where rows of 32 columns end"},
        {BNB, "{\"quant_type\":\"nf4\",\"blocksize\":32,\"shape\":[2,64]}", map, scale, weight,
         NB_DATA, "tensor 'a.weight.absmax': wanted F32 [4], found F32 [2]"},
        {BNB, STATE(", \"nested_offset\": \"x\""), map, scale, weight, NB_DATA, "nested_offset"},
        {BNB, STATE(", \"nested_offset\": 1, \"nested_blocksize\": 64"), map, scale, weight,
         NB_UNSUPPORTED, "nested_blocksize 64"},
        {BNB, STATE(NESTED), map, scale, weight, NB_DATA,
         "tensor 'a.weight.absmax': wanted U8 [2], found F32 [2]"},
        {BNB, STATE(NESTED), map, PIECE("a.weight.absmax", NB_ST_U8, 1, 2, 0, NULL), weight,
         NB_DATA, "tensor 'a.weight' has no nested_absmax"},
        {BNB, STATE(""), PIECE("a.weight.quant_map", NB_ST_F32, 1, 16, 0, other_map), scale, weight,
         NB_UNSUPPORTED, "tensor 'a.weight.quant_map': not the table of nf4"},
        {BNB, STATE(""), PIECE("a.weight.quant_map", NB_ST_F32, 1, 15, 0, NULL), scale, weight,
         NB_DATA, "wanted F32 [16], found F32 [15]"},
        {BNB, STATE(""), PIECE("x", NB_ST_F32, 1, 16, 0, NULL), scale, weight, NB_DATA,
         "tensor 'a.weight' has no quant_map"},
        {BNB, STATE(""), map, PIECE("a.weight.absmax", NB_ST_F32, 1, 2, 0, nan_absmax), weight,
         NB_DATA, "tensor 'a.weight.absmax': element 1 is nan, and no scale"},
        {BNB, STATE(""), map, scale, PIECE("a.weight", NB_ST_U8, 2, 32, 1, NULL), NB_DATA,
         "wanted U8 [64], found U8 [32, 1]"},
        {"{\"quant_method\":\"bitsandbytes\",\"load_in_8bit\":true}", STATE(""), map, scale, weight,
         NB_UNSUPPORTED, "quantization_config: 8-bit weights of bitsandbytes"},
        {"{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true}", STATE(""), map, scale, weight,
         NB_UNSUPPORTED, "bnb_4bit_quant_type 'fp4'"},
        {"null", STATE(""), map, scale, weight, NB_UNSUPPORTED, "a.weight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const piece pieces[] = {
            cases[i].map, cases[i].scale, cases[i].weight,
            PIECE(S, NB_ST_U8, 1, (int64_t)strlen(cases[i].state), 0, cases[i].state)};
        write_folder(cases[i].config, pieces, 4);
        expect_unread(cases[i].status, cases[i].reason);
    }
    write_folder(BNB, (const piece[]){map, scale, weight}, 3);
    expect_unread(NB_DATA, "tensor 'a.weight' has no quant_state.bitsandbytes__nf4");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp8_scales_of_every_shape),
        cmocka_unit_test(static_scales_of_activations_are_read),
        cmocka_unit_test(static_scales_of_integers),
        cmocka_unit_test(fp8_that_is_refused),
        cmocka_unit_test(golden_nf4),
        cmocka_unit_test(nf4_that_is_refused),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
