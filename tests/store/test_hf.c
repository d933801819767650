/* Hugging Face folders: what is read from them, what is refused, and that what is written reads
 * back as it was, whatever fails on the way. */
#define _GNU_SOURCE
#include "base/rng.h"
#include "store/ct_pack.h"
#include "store/safetensors.h"
#include "store/store.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/st_bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- folders made by hand ---- */

#define CONFIG "{\"model_type\":\"llama\"}"

static void clear_folder(void)
{
    static const char *const files[] = {"config.json",
                                        "generation_config.json",
                                        "tokenizer_config.json",
                                        "model.safetensors",
                                        "model.safetensors.index.json",
                                        "one.safetensors",
                                        "two.safetensors",
                                        "pytorch_model.bin"};
    if (!scratch_exists("m"))
        scratch_mkdir("m");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[64];
        snprintf(path, sizeof path, "m/%s", files[i]);
        unlink(scratch_path(path));
    }
    scratch_text("m/config.json", CONFIG);
}

/* One tensor of a file to be. */
typedef struct {
    nb_st_tensor tensor;
    const void *data; /* NULL: zeros */
} piece;

#define PIECE(nm, ty, nd, d0, d1, bytes)                                                           \
    ((piece){.tensor = {.name = (nm), .dtype = (ty), .n_dims = (nd), .dims = {(d0), (d1)}},        \
             .data = (bytes)})

static void write_pieces(const char *name, const piece *pieces, int n)
{
    nb_st_tensor tensors[16];
    nb_buf file = {0};
    nb_err err;
    int64_t data = 0;
    assert_true(n <= 16);
    for (int i = 0; i < n; i++)
        tensors[i] = pieces[i].tensor;
    assert_int_equal(nb_st_write_header(&file, tensors, n, &data, &err), NB_OK);
    const size_t start = file.len;
    assert_int_equal(nb_buf_reserve(&file, (size_t)data + 1, &err), NB_OK);
    memset(file.data + start, 0, (size_t)data);
    for (int i = 0; i < n; i++) {
        if (pieces[i].data != NULL)
            memcpy(file.data + start + tensors[i].begin, pieces[i].data, (size_t)tensors[i].bytes);
    }
    scratch_write(name, file.data, start + (size_t)data);
    nb_buf_free(&file);
}

static nb_store *open_good(const char *name)
{
    nb_err err;
    nb_store *store;
    if (nb_store_open(&store, scratch_path(name), &err) != NB_OK)
        fail_msg("%s", err.text);
    return store;
}

static void expect_refused(nb_status status, const char *reason)
{
    const int64_t live = nb_alloc_live();
    nb_err err = {0};
    nb_store *store;
    const nb_status s = nb_store_open(&store, scratch_path("m"), &err);
    if (s != status || strstr(err.text, reason) == NULL)
        fail_msg("status %d, wanted %d with '%s': %s", s, status, reason, err.text);
    assert_null(store);
    if (strncmp(err.text, scratch_path("m"), strlen(scratch_path("m"))) != 0)
        fail_msg("the message does not begin with the folder: %s", err.text);
    assert_int_equal(nb_alloc_live(), live);
}

/* ---- plain folders ---- */

static void plain_weights_and_what_is_none(void **state)
{
    (void)state;
    static const float f32[6] = {1, -2, 3.5f, 0, 5, 6};
    static const uint16_t bf16[2] = {0x3f80, 0xc000};
    clear_folder();
    const piece pieces[] = {
        PIECE("model.a.weight", NB_ST_F32, 2, 2, 3, f32),
        PIECE("model.b.bias", NB_ST_BF16, 1, 2, 0, bf16),
        PIECE("rotary_emb.inv_freq", NB_ST_F32, 1, 4, 0, NULL),
        PIECE("position_ids", NB_ST_I64, 2, 1, 8, NULL),
        PIECE("mask", NB_ST_BOOL, 1, 3, 0, NULL),
        PIECE("counter", NB_ST_U8, 0, 0, 0, NULL),
        PIECE("nothing", NB_ST_F16, 1, 0, 0, NULL),
        PIECE("scalar", NB_ST_F32, 0, 0, 0, f32 + 2),
    };
    write_pieces("m/model.safetensors", pieces, 8);
    nb_store *store = open_good("m");
    assert_int_equal(nb_store_n_weights(store), 4);
    const nb_weight *w = nb_store_find(store, "model.a.weight");
    assert_non_null(w);
    assert_ptr_equal(w->fmt, &nb_format_f32);
    assert_int_equal(w->n_rows, 2);
    assert_int_equal(w->n_cols, 3);
    assert_int_equal(w->bytes, 24);
    assert_string_equal(w->file_name, "model.a.weight");
    nb_loaded loaded = {0};
    nb_err err;
    assert_int_equal(nb_store_read(store, w, &loaded, &err), NB_OK);
    assert_memory_equal(loaded.mat.codes, f32, sizeof f32);
    assert_int_equal(loaded.mat.row_bytes, 12);
    w = nb_store_find(store, "model.b.bias");
    assert_non_null(w);
    assert_int_equal(w->n_rows, 1);
    assert_int_equal(nb_store_read(store, w, &loaded, &err), NB_OK);
    assert_memory_equal(loaded.mat.codes, bf16, sizeof bf16);
    w = nb_store_find(store, "scalar");
    assert_non_null(w);
    assert_int_equal(w->n_dims, 0);
    assert_int_equal(nb_store_read(store, w, &loaded, &err), NB_OK);
    assert_int_equal(loaded.mat.n_rows * loaded.mat.n_cols, 1);
    assert_memory_equal(loaded.mat.codes, f32 + 2, 4);
    assert_non_null(nb_store_find(store, "rotary_emb.inv_freq"));
    assert_null(nb_store_find(store, "position_ids"));
    assert_null(nb_store_find(store, "nothing"));
    nb_loaded_free(&loaded);
    nb_store_close(store);
}

static void weights_of_other_types_are_refused(void **state)
{
    (void)state;
    static const struct {
        nb_st_dtype dtype;
        const char *name, *reason;
    } cases[] = {
        {NB_ST_F64, "a.weight", "tensor 'a.weight': weights of dtype F64"},
        {NB_ST_F8_E4M3, "a.weight", "dtype F8_E4M3"},
        {NB_ST_U8, "a.bias", "tensor 'a.bias': weights of dtype U8"},
        {NB_ST_I64, "a.weight", "dtype I64"},
        {NB_ST_I8, "a.weight", "config.json has no quantization_config"},
        {NB_ST_I32, "a.weight_packed", "config.json has no quantization_config"},
        {NB_ST_F32, "a.weight_scale", "belongs to no quantized weight"},
        {NB_ST_I32, "a.qweight", "config.json has no quantization_config of theirs"},
        {NB_ST_I32, "a.qzeros", "belongs to no quantized weight"},
        {NB_ST_F32, "a.weight_scale_inv", "belongs to no quantized weight"},
        {NB_ST_F32, "model.k_proj.k_scale", "belongs to no quantized weight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        clear_folder();
        write_pieces("m/model.safetensors",
                     (const piece[]){PIECE(cases[i].name, cases[i].dtype, 2, 2, 2, NULL)}, 1);
        expect_refused(NB_UNSUPPORTED, cases[i].reason);
    }
    write_pieces("m/model.safetensors",
                 (const piece[]){PIECE("a.weight", NB_ST_F32, 2, 4, 0, NULL)}, 1);
    expect_refused(NB_DATA, "tensor 'a.weight' is empty: [4, 0]");
}

static void json_files_of_all_kinds(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text, *reason;
    } cases[] = {
        {"config.json", "", "config.json: not valid JSON"},
        {"config.json", "{\"a\":1", "config.json: not valid JSON"},
        {"config.json", "[]", "config.json: not a JSON object"},
        {"config.json", "7", "config.json: not a JSON object"},
        {"config.json", "{}{}", "config.json: not valid JSON"},
        {"config.json", "{\"a\":NaN}", "config.json: not valid JSON"},
        {"config.json", "{\"a\":1e999}", "config.json: not valid JSON"},
        {"config.json", "{/**/}", "config.json: not valid JSON"},
        {"config.json", "{\"a\":1,\"a\":2}", "config.json: not valid JSON"},
        {"config.json", "{\"a\":\"\\ud800\"}", "config.json: not valid JSON"},
        {"config.json", "{\"a\":\"\xff\"}", "config.json: not valid JSON"},
        {"generation_config.json", "[]", "generation_config.json: not a JSON object"},
        {"generation_config.json", "{", "generation_config.json: not valid JSON"},
        {"tokenizer_config.json", "null", "tokenizer_config.json: not a JSON object"},
        {"config.json", "{\"quantization_config\":[]}", "quantization_config: is not an object"},
        {"config.json", "{\"quantization_config\":{}}", "'quant_method' is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[64];
        clear_folder();
        write_pieces("m/model.safetensors", NULL, 0);
        snprintf(path, sizeof path, "m/%s", cases[i].name);
        scratch_text(path, cases[i].text);
        expect_refused(NB_DATA, cases[i].reason);
    }
    static const char *const unsupported[][2] = {
        {"{\"quantization_config\":{\"quant_method\":\"exl2\",\"bits\":4}}", "'exl2'"},
        {"{\"compression_config\":{}}", "key 'compression_config'"},
        {"{\"text_config\":{\"quantization_config\":{}}}", "key 'text_config.quantization_config'"},
        {"{\"text_config\":{\"compression_config\":{}}}", "key 'text_config.compression_config'"},
    };
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        scratch_text("m/tokenizer_config.json", "{}");
        scratch_text("m/config.json", unsupported[i][0]);
        expect_refused(NB_UNSUPPORTED, unsupported[i][1]);
    }
    char *deep = malloc(200001);
    assert_non_null(deep);
    memset(deep, '[', 200000);
    memcpy(deep, "{\"a\":", 5);
    deep[200000] = 0;
    scratch_text("m/config.json", deep);
    free(deep);
    expect_refused(NB_DATA, "config.json: not valid JSON");
    unlink(scratch_path("m/config.json"));
    expect_refused(NB_DATA, "config.json: No such file");
    scratch_text("m/config.json", "{\"quantization_config\":null}");
    nb_store_close(open_good("m"));
}

static void folders_without_tensors_say_what_they_have(void **state)
{
    (void)state;
    clear_folder();
    expect_refused(NB_DATA, "neither model.safetensors nor model.safetensors.index.json");
    scratch_write("m/pytorch_model.bin", "PK\3\4", 4);
    expect_refused(NB_UNSUPPORTED, "pytorch_model.bin holds pickled weights");
}

static void files_that_are_no_files(void **state)
{
    (void)state;
    clear_folder();
    assert_int_equal(mkfifo(scratch_path("m/model.safetensors"), 0666), 0);
    expect_refused(NB_DATA, "not a regular file");
    clear_folder();
    assert_int_equal(symlink("nowhere", scratch_path("m/model.safetensors")), 0);
    expect_refused(NB_DATA, "No such file");
    /* As in a cache of the hub: the file is a link to a blob elsewhere. */
    clear_folder();
    scratch_mkdir("blobs");
    write_pieces("blobs/0123", (const piece[]){PIECE("a.weight", NB_ST_F32, 2, 4, 4, NULL)}, 1);
    assert_int_equal(symlink("../blobs/0123", scratch_path("m/model.safetensors")), 0);
    nb_store *store = open_good("m");
    assert_int_equal(nb_store_n_weights(store), 1);
    nb_store_close(store);
    unlink(scratch_path("m/model.safetensors"));
    assert_int_equal(symlink("nowhere", scratch_path("m/generation_config.json")), 0);
    expect_refused(NB_DATA, "generation_config.json: No such file");
}

/* ---- shards ---- */

#define MAP(entries) "{\"metadata\":{\"total_size\":24},\"weight_map\":{" entries "}}"
#define A_IN_ONE     "\"a.weight\":\"one.safetensors\""
#define B_IN_TWO     "\"b.weight\":\"two.safetensors\""

static void write_shards(const char *index)
{
    static const float ones[2] = {1, 1}, twos[4] = {2, 2, 2, 2};
    clear_folder();
    write_pieces("m/one.safetensors", (const piece[]){PIECE("a.weight", NB_ST_F32, 1, 2, 0, ones)},
                 1);
    write_pieces("m/two.safetensors", (const piece[]){PIECE("b.weight", NB_ST_F32, 2, 2, 2, twos)},
                 1);
    scratch_text("m/model.safetensors.index.json", index);
}

static void shards_are_one_model(void **state)
{
    (void)state;
    write_shards(MAP(B_IN_TWO "," A_IN_ONE));
    nb_store *store = open_good("m");
    nb_loaded loaded = {0};
    nb_err err;
    assert_int_equal(nb_store_n_weights(store), 2);
    assert_int_equal(nb_store_read(store, nb_store_find(store, "b.weight"), &loaded, &err), NB_OK);
    assert_true(((const float *)loaded.mat.codes)[3] == 2);
    assert_int_equal(nb_store_read(store, nb_store_find(store, "a.weight"), &loaded, &err), NB_OK);
    assert_true(((const float *)loaded.mat.codes)[1] == 1);
    nb_loaded_free(&loaded);
    nb_store_close(store);
}

static void indexes_that_lie(void **state)
{
    (void)state;
    static const struct {
        const char *index, *reason;
    } cases[] = {
        {"", "index.json: not valid JSON"},
        {"[]", "index.json: not a JSON object"},
        {"{}", "'weight_map' is missing"},
        {"{\"weight_map\":[]}", "'weight_map' is an array"},
        {MAP(A_IN_ONE "," B_IN_TWO "," A_IN_ONE), "not valid JSON"},
        {MAP(A_IN_ONE ",\"b.weight\":\"one.safetensors\""),
         "tensor 'b.weight' is not in 'one.safetensors'"},
        {MAP(A_IN_ONE "," B_IN_TWO ",\"c\":\"two.safetensors\""), "tensor 'c' is not in"},
        {MAP("\"b.weight\":\"one.safetensors\",\"a.weight\":\"two.safetensors\""), "is not in"},
        {MAP(A_IN_ONE ",\"b.weight\":\"three.safetensors\""), "three.safetensors: No such file"},
        {MAP(A_IN_ONE ",\"b.weight\":7"), "'b.weight' is not mapped to a text"},
        {MAP(A_IN_ONE ",\"b.weight\":null"), "'b.weight' is not mapped to a text"},
        {MAP(A_IN_ONE ",\"b.weight\":\"\""), "is no name of a .safetensors file"},
        {MAP(A_IN_ONE ",\"b.weight\":\"..\""), "is no name"},
        {MAP(A_IN_ONE ",\"b.weight\":\"../m/two.safetensors\""), "is no name"},
        {MAP(A_IN_ONE ",\"b.weight\":\"./two.safetensors\""), "is no name"},
        {MAP(A_IN_ONE ",\"b.weight\":\"/etc/two.safetensors\""), "is no name"},
        {MAP(A_IN_ONE ",\"b.weight\":\"..safetensors\""), "is no name"},
        {MAP(A_IN_ONE ",\"b.weight\":\"config.json\""), "is no name"},
        {MAP(A_IN_ONE ",\"b.weight\":\"model.safetensors.index.json\""), "is no name"},
        {MAP(A_IN_ONE ",\"b.weight\":\"two.safetensors\\u0000\""), "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_shards(cases[i].index);
        expect_refused(NB_DATA, cases[i].reason);
    }
    write_shards(MAP(B_IN_TWO)); /* other files of the folder are none of the model's */
    nb_store *store = open_good("m");
    assert_int_equal(nb_store_n_weights(store), 1);
    nb_store_close(store);
}

static void tensors_must_be_in_one_shard_and_in_the_map(void **state)
{
    (void)state;
    write_shards(MAP(A_IN_ONE "," B_IN_TWO));
    const piece both[] = {PIECE("b.weight", NB_ST_F32, 2, 2, 2, NULL),
                          PIECE("a.weight", NB_ST_F32, 1, 2, 0, NULL)};
    write_pieces("m/two.safetensors", both, 2);
    expect_refused(NB_DATA, "two.safetensors: tensor 'a.weight' is also in another shard");
    const piece more[] = {PIECE("b.weight", NB_ST_F32, 2, 2, 2, NULL),
                          PIECE("c.weight", NB_ST_F32, 1, 2, 0, NULL)};
    write_pieces("m/two.safetensors", more, 2);
    expect_refused(NB_DATA, "tensor 'c.weight' of 'two.safetensors' is missing");
    assert_int_equal(truncate(scratch_path("m/two.safetensors"), 20), 0);
    expect_refused(NB_DATA, "two.safetensors: a header of");
    /* model.safetensors wins over the index. */
    write_pieces("m/model.safetensors", more, 2);
    nb_store *store = open_good("m");
    assert_int_equal(nb_store_n_weights(store), 2);
    nb_store_close(store);
}

/* ---- quantized folders ---- */

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

/* ---- writing, and reading back ---- */

#define MAX_PLAN 18
typedef struct {
    nb_weight plan[MAX_PLAN];
    nb_mat mats[MAX_PLAN];
    char names[MAX_PLAN][48];
    int n;
    char *config;
} sample;

/* Bytes that depend on the place only, and for floats are finite. */
static void fill(void *out, size_t n, uint64_t stream, uint8_t mask)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t r[4];
        nb_philox(9, stream, i, r);
        ((uint8_t *)out)[i] = (uint8_t)(r[0] & mask);
    }
}

static void add_weight(sample *s, const nb_format *fmt, int64_t n_rows, int64_t n_cols,
                       int64_t group_size, bool symmetric, nb_float_type scale_type, int act)
{
    const int i = s->n++;
    nb_err err;
    nb_mat *m = &s->mats[i];
    assert_true(i < MAX_PLAN);
    snprintf(s->names[i], sizeof s->names[i], "model.layers.%d.proj.weight", i);
    s->plan[i] = (nb_weight){.name = s->names[i],
                             .n_dims = 2,
                             .dims = {n_rows, n_cols},
                             .n_rows = n_rows,
                             .n_cols = n_cols,
                             .fmt = fmt,
                             .group_size = group_size,
                             .symmetric = symmetric,
                             .scale_type = scale_type,
                             .act = {.bits = act, .per_token = act != 0}};
    *m = (nb_mat){.fmt = fmt, .n_rows = n_rows, .n_cols = n_cols};
    assert_int_equal(nb_format_row_bytes(fmt, n_cols, &m->row_bytes, &err), NB_OK);
    m->codes = malloc((size_t)(n_rows * m->row_bytes));
    assert_non_null(m->codes);
    fill(m->codes, (size_t)(n_rows * m->row_bytes), (uint64_t)i, fmt->affine ? 0xff : 0x3f);
    if (!fmt->affine)
        return;
    if (fmt->bits < 8)
        nb_ct_clear_padding(m->codes, n_rows, n_cols, fmt->bits);
    const size_t n_scales = (size_t)(n_rows * (n_cols / group_size));
    m->group_size = group_size;
    m->scale_type = scale_type;
    m->scales = malloc(n_scales * nb_float_bytes(scale_type));
    fill(m->scales, n_scales * nb_float_bytes(scale_type), 100 + (uint64_t)i, 0x3f);
    if (!symmetric) {
        m->zeros = malloc(n_scales);
        fill(m->zeros, n_scales, 200 + (uint64_t)i, 0xff);
        for (size_t z = 0; z < n_scales; z++)
            m->zeros[z] = (int8_t)(m->zeros[z] >> (8 - fmt->bits));
    }
}

static void finish_sample(sample *s)
{
    nb_err err;
    json_t *q = NULL;
    if (nb_ct_config(&q, s->plan, s->n, &err) != NB_OK)
        fail_msg("%s", err.text);
    json_t *config = json_pack("{s:s,s:o*}", "model_type", "llama", "quantization_config", q);
    s->config = json_dumps(config, 0);
    assert_non_null(s->config);
    json_decref(config);
}

static void free_sample(sample *s)
{
    for (int i = 0; i < s->n; i++) {
        free(s->mats[i].codes);
        free(s->mats[i].scales);
        free(s->mats[i].zeros);
    }
    free(s->config);
}

/* One of each kind, with sizes that leave padding everywhere. */
static void all_kinds(sample *s)
{
    *s = (sample){0};
    add_weight(s, &nb_format_bf16, 7, 9, 0, false, NB_F32, 0);
    add_weight(s, &nb_format_int4, 10, 64, 32, true, NB_BF16, 0);
    add_weight(s, &nb_format_int4, 9, 64, 32, false, NB_BF16, 0);
    add_weight(s, &nb_format_int4, 3, 41, 41, true, NB_F16, 0);
    add_weight(s, &nb_format_int4, 11, 43, 43, false, NB_F32, 0);
    add_weight(s, &nb_format_int4, 5, 64, 64, false, NB_F16, 8);
    add_weight(s, &nb_format_int8, 5, 64, 32, true, NB_F16, 0);
    add_weight(s, &nb_format_int8, 6, 37, 37, false, NB_F16, 0);
    add_weight(s, &nb_format_int8, 5, 39, 39, true, NB_BF16, 8);
    add_weight(s, &nb_format_int8, 5, 39, 13, false, NB_BF16, 8);
    add_weight(s, &nb_format_f32, 1, 3, 0, false, NB_F32, 0);
    add_weight(s, &nb_format_int3, 35, 64, 32, false, NB_F16, 0);
    add_weight(s, &nb_format_int3, 3, 41, 41, true, NB_BF16, 0);
    add_weight(s, &nb_format_int2, 19, 24, 8, false, NB_BF16, 0);
    add_weight(s, &nb_format_int2, 2, 33, 33, true, NB_F32, 0);
    finish_sample(s);
}

static nb_status write_sample(const sample *s, const char *name, bool force, int64_t shard_bytes,
                              int64_t *planned, nb_err *err)
{
    const nb_side_file side[] = {
        {.name = "config.json", .bytes = s->config, .len = strlen(s->config)},
        {.name = "tokenizer.json", .bytes = "{}", .len = 2},
    };
    nb_sink *sink;
    NB_TRY(nb_sink_open_hf(&sink, scratch_path(name), force, s->plan, s->n, side, 2, shard_bytes,
                           err));
    *planned = nb_sink_planned_bytes(sink);
    for (int i = 0; i < s->n; i++) {
        const nb_status status = nb_sink_put(sink, i, &s->mats[i], err);
        if (status != NB_OK) {
            nb_sink_abort(sink);
            return status;
        }
    }
    return nb_sink_commit(sink, err);
}

static void expect_same(const nb_mat *a, const nb_mat *b)
{
    assert_ptr_equal(a->fmt, b->fmt);
    assert_int_equal(a->n_rows, b->n_rows);
    assert_int_equal(a->n_cols, b->n_cols);
    assert_int_equal(a->row_bytes, b->row_bytes);
    assert_memory_equal(a->codes, b->codes, (size_t)(a->n_rows * a->row_bytes));
    assert_int_equal(a->group_size, b->group_size);
    if (!a->fmt->affine)
        return;
    const size_t n = (size_t)(a->n_rows * nb_mat_n_groups(a));
    assert_int_equal(a->scale_type, b->scale_type);
    assert_memory_equal(a->scales, b->scales, n * nb_float_bytes(a->scale_type));
    assert_int_equal(a->zeros == NULL, b->zeros == NULL);
    if (a->zeros != NULL)
        assert_memory_equal(a->zeros, b->zeros, n);
}

/* Rows that are read without the others are what they are among them, wherever that can be done. */
static void expect_rows(nb_store *store, const nb_weight *w, const nb_mat *all)
{
    nb_loaded rows = {0};
    nb_err err;
    assert_int_equal(nb_store_reads_rows(store, w), !w->fmt->affine);
    for (int64_t row = 0; row < w->n_rows && !w->fmt->affine; row++) {
        const int64_t n = row % 3 < w->n_rows - row ? row % 3 : w->n_rows - row;
        assert_int_equal(nb_store_read_rows(store, w, row, n, &rows, &err), NB_OK);
        assert_ptr_equal(rows.mat.fmt, w->fmt);
        assert_int_equal(rows.mat.n_rows, n);
        assert_int_equal(rows.mat.n_cols, w->n_cols);
        assert_memory_equal(rows.mat.codes, nb_mat_row(all, row), (size_t)(n * all->row_bytes));
    }
    nb_loaded_free(&rows);
}

static void expect_sample(const sample *s, const char *name, int64_t planned)
{
    nb_store *store = open_good(name);
    nb_loaded loaded = {0};
    nb_err err;
    assert_int_equal(nb_store_n_weights(store), s->n);
    assert_int_equal(nb_store_file_bytes(store), planned);
    for (int i = 0; i < s->n; i++) {
        const nb_weight *w = nb_store_weight(store, i), *p = &s->plan[i];
        assert_string_equal(w->name, p->name);
        assert_int_equal(w->n_dims, p->n_dims);
        assert_memory_equal(w->dims, p->dims, sizeof w->dims);
        assert_int_equal(w->act.bits, p->act.bits);
        assert_int_equal(w->act.per_token, p->act.per_token);
        if (p->fmt->affine)
            assert_int_equal(w->symmetric, p->symmetric);
        if (nb_store_read(store, w, &loaded, &err) != NB_OK)
            fail_msg("%s", err.text);
        expect_same(&loaded.mat, &s->mats[i]);
        expect_rows(store, w, &s->mats[i]);
    }
    nb_loaded_free(&loaded);
    nb_store_close(store);
}

static void what_is_written_reads_back(void **state)
{
    (void)state;
    sample s;
    all_kinds(&s);
    static const struct {
        int64_t shard_bytes;
        int n_files; /* tensors, and the index */
    } cases[] = {{0, 1}, {100000, 1}, {1, 16}, {1000, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t planned;
        nb_err err;
        if (write_sample(&s, "out", i > 0, cases[i].shard_bytes, &planned, &err) != NB_OK)
            fail_msg("%s", err.text);
        expect_sample(&s, "out", planned);
        if (cases[i].n_files > 0)
            assert_int_equal(scratch_count("out"), cases[i].n_files + 2);
        assert_int_equal(scratch_exists("out/model.safetensors"), cases[i].n_files == 1);
        assert_true(scratch_holds("out/tokenizer.json", "{}"));
        assert_true(scratch_holds("out/config.json", s.config));
    }
    free_sample(&s);
}

/* Every row and column count around the word sizes. */
static void every_small_shape_reads_back(void **state)
{
    (void)state;
    nb_err err;
    bool force = false;
    for (int64_t n_cols = 1; n_cols <= 10; n_cols++) {
        for (int64_t n_rows = 1; n_rows <= 10; n_rows += 3) {
            sample s = {0};
            int64_t planned;
            for (int k = 0; k < 8; k++)
                add_weight(&s, k & 1 ? &nb_format_int4 : &nb_format_int8, n_rows, n_cols,
                           k & 2 ? 1 : n_cols, (k & 4) != 0, NB_F16, 0);
            finish_sample(&s);
            if (write_sample(&s, "small", force, 0, &planned, &err) != NB_OK)
                fail_msg("%s", err.text);
            expect_sample(&s, "small", planned);
            free_sample(&s);
            force = true;
        }
    }
}

static void an_empty_plan_is_a_folder(void **state)
{
    (void)state;
    sample s = {0};
    int64_t planned;
    nb_err err;
    finish_sample(&s);
    assert_int_equal(write_sample(&s, "bare", false, 0, &planned, &err), NB_OK);
    expect_sample(&s, "bare", planned);
    free_sample(&s);
}

static void what_a_folder_cannot_hold(void **state)
{
    (void)state;
    nb_err err;
    nb_sink *sink;
    nb_weight w = {.name = "a.weight",
                   .n_dims = 2,
                   .dims = {4, 32},
                   .n_rows = 4,
                   .n_cols = 32,
                   .fmt = &nb_format_q4_0};
    const nb_side_file bad_names[] = {{.name = "../x"},
                                      {.name = ".x"},
                                      {.name = ""},
                                      {.name = "model.safetensors"},
                                      {.name = "model.safetensors.index.json"}};
    assert_int_equal(nb_sink_open_hf(&sink, scratch_path("no"), false, &w, 1, NULL, 0, 0, &err),
                     NB_UNSUPPORTED);
    assert_non_null(strstr(err.text, "weight 'a.weight': format q4_0"));
    w.fmt = &nb_format_int8;
    w.group_size = 32;
    w.name = "experts";
    assert_int_equal(nb_sink_open_hf(&sink, scratch_path("no"), false, &w, 1, NULL, 0, 0, &err),
                     NB_UNSUPPORTED);
    w.name = "a.weight";
    for (size_t i = 0; i < sizeof bad_names / sizeof *bad_names; i++)
        assert_int_equal(
            nb_sink_open_hf(&sink, scratch_path("no"), false, &w, 1, &bad_names[i], 1, 0, &err),
            NB_USAGE);
    assert_null(sink);
    assert_false(scratch_exists("no"));
    assert_false(scratch_exists(".no.nibble-tmp"));
}

static void nothing_is_there_before_the_end(void **state)
{
    (void)state;
    sample s;
    all_kinds(&s);
    nb_err err;
    const int64_t live = nb_alloc_live();
    for (int stop = 0; stop <= s.n; stop++) {
        nb_sink *sink;
        const nb_side_file side = {.name = "config.json", .bytes = s.config, .len = 2};
        assert_int_equal(
            nb_sink_open_hf(&sink, scratch_path("gone"), false, s.plan, s.n, &side, 1, 700, &err),
            NB_OK);
        for (int i = 0; i < stop; i++)
            assert_int_equal(nb_sink_put(sink, i, &s.mats[i], &err), NB_OK);
        assert_false(scratch_exists("gone"));
        assert_true(scratch_exists(".gone.nibble-tmp"));
        nb_sink_abort(sink);
        assert_false(scratch_exists("gone"));
        assert_false(scratch_exists(".gone.nibble-tmp"));
        assert_int_equal(nb_alloc_live(), live);
    }
    free_sample(&s);
}

static void folders_are_replaced_only_by_force(void **state)
{
    (void)state;
    sample s, t = {0};
    int64_t planned;
    nb_err err;
    all_kinds(&s);
    add_weight(&t, &nb_format_f32, 2, 2, 0, false, NB_F32, 0);
    finish_sample(&t);
    assert_int_equal(write_sample(&s, "kept", false, 900, &planned, &err), NB_OK);
    assert_int_equal(write_sample(&t, "kept", false, 0, &planned, &err), NB_USAGE);
    assert_int_equal(write_sample(&t, "kept", true, 0, &planned, &err), NB_OK);
    expect_sample(&t, "kept", planned);
    assert_int_equal(scratch_count("kept"), 3);
    free_sample(&s);
    free_sample(&t);
}

/* ---- failures ---- */

static void every_allocation_may_fail(void **state)
{
    (void)state;
    sample s;
    int64_t planned, n;
    nb_err err;
    all_kinds(&s);
    const int64_t live = nb_alloc_live();
    for (n = 1;; n++) {
        nb_alloc_fail_at(n);
        const nb_status status = write_sample(&s, "walk", false, 700, &planned, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
        assert_false(scratch_exists(".walk.nibble-tmp"));
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_MEMORY);
        assert_false(scratch_exists("walk"));
    }
    assert_true(n > 20);
    for (n = 1;; n++) {
        nb_store *store = NULL;
        nb_loaded loaded = {0};
        nb_alloc_fail_at(n);
        nb_status status = nb_store_open(&store, scratch_path("walk"), &err);
        for (int i = 0; status == NB_OK && i < s.n; i++)
            status = nb_store_read(store, nb_store_weight(store, i), &loaded, &err);
        nb_alloc_fail_at(0);
        nb_loaded_free(&loaded);
        nb_store_close(store);
        assert_int_equal(nb_alloc_live(), live);
        if (status == NB_OK)
            break;
        if (status != NB_MEMORY)
            fail_msg("allocation %lld: %s", (long long)n, err.text);
    }
    assert_true(n > 20);
    free_sample(&s);
}

static void every_transfer_may_fail(void **state)
{
    (void)state;
    sample s;
    int64_t planned = 0, n;
    nb_err err;
    all_kinds(&s);
    const int64_t live = nb_alloc_live();
    for (n = 1;; n++) {
        nb_file_fail_at(n, n % 2 ? ENOSPC : EIO);
        const nb_status status =
            write_sample(&s, "disk", n > 1 && scratch_exists("disk"), 700, &planned, &err);
        nb_file_fail_at(0, 0);
        assert_int_equal(nb_alloc_live(), live);
        assert_false(scratch_exists(".disk.nibble-tmp"));
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_IO);
        if (scratch_exists("disk")) /* only the sync after the rename failed */
            expect_sample(&s, "disk", planned);
    }
    assert_true(n > 30);
    expect_sample(&s, "disk", planned);
    for (n = 1;; n++) {
        nb_store *store = NULL;
        nb_loaded loaded = {0};
        nb_file_fail_at(n, EIO);
        nb_status status = nb_store_open(&store, scratch_path("disk"), &err);
        for (int i = 0; status == NB_OK && i < s.n; i++)
            status = nb_store_read(store, nb_store_weight(store, i), &loaded, &err);
        nb_file_fail_at(0, 0);
        nb_loaded_free(&loaded);
        nb_store_close(store);
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_IO);
    }
    assert_true(n > 30);
    free_sample(&s);
}

static void files_that_change_while_they_are_read(void **state)
{
    (void)state;
    static const float f32[16] = {1};
    nb_err err;
    for (int how = 0; how < 3; how++) {
        clear_folder();
        write_pieces("m/model.safetensors",
                     (const piece[]){PIECE("a.weight", NB_ST_F32, 2, 4, 4, f32)}, 1);
        nb_store *store = open_good("m");
        nb_loaded loaded = {0};
        assert_int_equal(nb_store_read(store, nb_store_weight(store, 0), &loaded, &err), NB_OK);
        struct stat st;
        assert_int_equal(stat(scratch_path("m/model.safetensors"), &st), 0);
        const struct timespec later[2] = {{.tv_sec = 1}, {.tv_sec = st.st_mtim.tv_sec + 5}};
        if (how == 0)
            assert_int_equal(truncate(scratch_path("m/model.safetensors"), st.st_size - 8), 0);
        else if (how == 1)
            assert_int_equal(truncate(scratch_path("m/model.safetensors"), st.st_size + 8), 0);
        else
            assert_int_equal(utimensat(AT_FDCWD, scratch_path("m/model.safetensors"), later, 0), 0);
        assert_int_equal(nb_store_read(store, nb_store_weight(store, 0), &loaded, &err),
                         how == 0 ? NB_IO : NB_DATA);
        assert_non_null(strstr(err.text, how == 0 ? "shrank" : "changed while reading"));
        assert_null(loaded.mat.codes);
        nb_loaded_free(&loaded);
        nb_store_close(store);
    }
}

/* Thousands of broken configurations and indexes: a status, never a crash or a leak. */
static void mutations(void **state)
{
    (void)state;
    sample s;
    int64_t planned;
    nb_err err;
    all_kinds(&s);
    assert_int_equal(write_sample(&s, "mutant", false, 1500, &planned, &err), NB_OK);
    nb_buf files[2] = {{0}};
    static const char *const names[] = {"mutant/config.json",
                                        "mutant/model.safetensors.index.json"};
    for (int f = 0; f < 2; f++)
        assert_int_equal(nb_file_slurp(&files[f], scratch_path(names[f]), 1 << 20, &err), NB_OK);
    const int64_t live = nb_alloc_live();
    static const char bytes[] = "{}[]\",:0149-.aLnt\\\xff";
    int n_good = 0, n_bad = 0;
    for (uint64_t i = 0; i < 3000; i++) {
        uint32_t r[4];
        nb_philox(5, 0, i, r);
        const nb_buf *file = &files[i % 2];
        uint8_t *text = malloc(file->len);
        assert_non_null(text);
        memcpy(text, file->data, file->len);
        for (uint32_t k = 0; k <= r[0] % 2; k++)
            text[r[1 + k] % file->len] = (uint8_t)bytes[r[1 + k] / file->len % (sizeof bytes - 1)];
        scratch_write(names[i % 2], text, file->len);
        free(text);
        nb_store *store;
        nb_loaded loaded = {0};
        nb_status status = nb_store_open(&store, scratch_path("mutant"), &err);
        for (int64_t w = 0; status == NB_OK && w < nb_store_n_weights(store); w++)
            status = nb_store_read(store, nb_store_weight(store, w), &loaded, &err);
        assert_true(status == NB_OK || status == NB_DATA || status == NB_UNSUPPORTED);
        n_good += status == NB_OK;
        n_bad += status != NB_OK;
        nb_loaded_free(&loaded);
        nb_store_close(store);
        scratch_write(names[i % 2], file->data, file->len);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n_good > 10 && n_bad > 1000);
    nb_buf_free(&files[0]);
    nb_buf_free(&files[1]);
    free_sample(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_weights_and_what_is_none),
        cmocka_unit_test(weights_of_other_types_are_refused),
        cmocka_unit_test(json_files_of_all_kinds),
        cmocka_unit_test(folders_without_tensors_say_what_they_have),
        cmocka_unit_test(files_that_are_no_files),
        cmocka_unit_test(shards_are_one_model),
        cmocka_unit_test(indexes_that_lie),
        cmocka_unit_test(tensors_must_be_in_one_shard_and_in_the_map),
        cmocka_unit_test(golden_weights),
        cmocka_unit_test(int_quantized_layouts),
        cmocka_unit_test(foreign_padding_is_cleared),
        cmocka_unit_test(parts_that_do_not_fit),
        cmocka_unit_test(rows_that_groups_do_not_divide),
        cmocka_unit_test(plain_weights_beside_quantized_ones),
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(every_small_shape_reads_back),
        cmocka_unit_test(an_empty_plan_is_a_folder),
        cmocka_unit_test(what_a_folder_cannot_hold),
        cmocka_unit_test(nothing_is_there_before_the_end),
        cmocka_unit_test(folders_are_replaced_only_by_force),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_transfer_may_fail),
        cmocka_unit_test(files_that_change_while_they_are_read),
        cmocka_unit_test(mutations),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
