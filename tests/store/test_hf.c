/* Hugging Face folders of plain weights: what is read from them, shards and all, and what is
 * refused. */
#define _GNU_SOURCE
#include "store/hf_folder.h"
#include "store/safetensors.h"
#include "store/store.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

#define A_IN_ONE "\"a.weight\":\"one.safetensors\""

#define B_IN_TWO "\"b.weight\":\"two.safetensors\""

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

/* ---- failures ---- */

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
        cmocka_unit_test(files_that_change_while_they_are_read),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
