/* Weights out of GGUF files: names, shapes, values, the row order of q and k, split files, and
 * what happens when memory, the disk or the file itself goes wrong on the way. */
#define _GNU_SOURCE
#include "support/golden.h"
#include "support/gguf_bytes.h"
#include "support/scratch.h"

#include "base/rng.h"
#include "store/store.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { F32 = 0, F16 = 1, Q8_0 = 8 };

static void write_file(gguf_bytes *g, const char *name)
{
    nb_buf bytes = {0};
    gb_finish(g, &bytes);
    scratch_write(name, bytes.data, bytes.len);
    nb_buf_free(&bytes);
    gb_free(g);
}

static nb_store *open_good(const char *name)
{
    nb_err err = {0};
    nb_store *store = NULL;
    if (nb_store_open(&store, scratch_path(name), &err) != NB_OK)
        fail_msg("%s", err.text);
    return store;
}

static void open_refused(const char *name, const char *file, const char *reason)
{
    nb_err err = {0};
    nb_store *store = NULL;
    const int64_t live = nb_alloc_live();
    assert_int_equal(nb_store_open(&store, scratch_path(name), &err), NB_DATA);
    assert_int_equal(nb_alloc_live(), live);
    const char *path = scratch_path(file);
    if (strncmp(err.text, path, strlen(path)) != 0 || strstr(err.text, reason) == NULL)
        fail_msg("expected '%s: ... %s ...' and got: %s", path, reason, err.text);
}

static gguf_bytes begin(const char *arch)
{
    gguf_bytes g = {0};
    gb_text(&g, "general.architecture", arch);
    return g;
}

/* Reads a weight and compares it with `n` floats, by value. */
static void check_values(nb_store *store, const char *name, const float *expected, int64_t n)
{
    nb_err err = {0};
    const nb_weight *w = nb_store_find(store, name);
    if (w == NULL)
        fail_msg("there is no weight '%s'", name);
    nb_loaded loaded = {0};
    if (nb_store_read(store, w, &loaded, &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_int_equal(w->n_rows * w->n_cols, n);
    float *row = malloc((size_t)w->n_cols * sizeof *row);
    assert_non_null(row);
    for (int64_t r = 0; r < w->n_rows; r++) {
        w->fmt->decode_row(&loaded.mat, r, row);
        for (int64_t c = 0; c < w->n_cols; c++) {
            if (row[c] != expected[r * w->n_cols + c])
                fail_msg("%s[%d][%d] is %g, expected %g", name, (int)r, (int)c, (double)row[c],
                         (double)expected[r * w->n_cols + c]);
        }
    }
    /* A row without the others is the same, where rows lie as they are listed. */
    nb_loaded one = {0};
    for (int64_t r = 0; nb_store_reads_rows(store, w) && r < w->n_rows; r++) {
        assert_int_equal(nb_store_read_rows(store, w, r, 1, &one, &err), NB_OK);
        assert_memory_equal(one.mat.codes, nb_mat_row(&loaded.mat, r),
                            (size_t)loaded.mat.row_bytes);
    }
    nb_loaded_free(&one);
    free(row);
    nb_loaded_free(&loaded);
}

static void read_refused(nb_store *store, const char *name, nb_status status, const char *reason)
{
    nb_err err = {0};
    nb_loaded loaded = {0};
    assert_int_equal(nb_store_read(store, nb_store_find(store, name), &loaded, &err), status);
    if (strstr(err.text, reason) == NULL)
        fail_msg("expected '%s' in: %s", reason, err.text);
    nb_loaded_free(&loaded);
}

/* ---- values ---- */

/* The golden file says nothing about heads: it lists, the norm is read, and q is refused because
 * its row order is unknown. With one head of two rows the order is the file's. */
static void golden_values(void **state)
{
    (void)state;
    json_t *golden = golden_load("gguf_files.json");
    json_t *tensors = golden_get(golden, "good_tensors");
    float expected[2][64];
    static const char *const names[] = {"output_norm.weight", "blk.0.attn_q.weight"};
    static const size_t counts[] = {2, 64};
    for (int t = 0; t < 2; t++) {
        const json_t *values = golden_get(tensors, names[t]);
        assert_int_equal(json_array_size(values), counts[t]);
        for (size_t i = 0; i < counts[t]; i++)
            expected[t][i] = (float)golden_number(json_array_get(values, i));
    }
    size_t n;
    uint8_t *good = golden_hex(golden, "good", &n);
    scratch_write("good.gguf", good, n);
    nb_store *store = open_good("good.gguf");
    assert_int_equal(nb_store_n_weights(store), 2);
    assert_int_equal(nb_store_file_bytes(store), n);
    check_values(store, "model.norm.weight", expected[0], 2);
    const char *q = "model.layers.0.self_attn.q_proj.weight";
    read_refused(store, q, NB_DATA, "good.gguf: key 'llama.attention.head_count' is missing");
    nb_store_close(store);

    gguf_bytes g = begin("llama");
    gb_u32(&g, "llama.attention.head_count", 1);
    const size_t start = (size_t)json_integer_value(golden_get(golden, "good_data_offset"));
    gb_tensor(&g, "output_norm.weight", 2, 0, F32, good + start, 8);
    gb_tensor(&g, "blk.0.attn_q.weight", 32, 2, Q8_0, good + start + 32, 68);
    write_file(&g, "heads.gguf");
    store = open_good("heads.gguf");
    check_values(store, "model.norm.weight", expected[0], 2);
    check_values(store, q, expected[1], 64);
    nb_store_close(store);
    free(good);
    json_decref(golden);
}

static void weights_are_described(void **state)
{
    (void)state;
    gguf_bytes g = begin("qwen2");
    const float v[24] = {0};
    gb_info(&g, "some.stack", 3, (uint64_t[]){2, 3, 4}, F32, 0);
    gb_raw(&g.data, v, 96);
    gb_tensor(&g, "blk.12.attn_v.bias", 6, 0, F16, v, 12);
    gb_tensor(&g, "token_embd.weight", 32, 5, Q8_0, (uint8_t[170]){0}, 170);
    write_file(&g, "shapes.gguf");
    nb_store *store = open_good("shapes.gguf");
    assert_int_equal(nb_store_kind_of(store), NB_STORE_GGUF);
    assert_int_equal(nb_store_n_weights(store), 3);
    const nb_weight *w = nb_store_weight(store, 0);
    assert_string_equal(w->name, "some.stack"); /* unknown names stay */
    assert_int_equal(w->n_dims, 3);
    assert_int_equal(w->dims[0], 4);
    assert_int_equal(w->dims[1], 3);
    assert_int_equal(w->dims[2], 2);
    assert_int_equal(w->n_rows, 12);
    assert_int_equal(w->n_cols, 2);
    assert_int_equal(w->bytes, 96);
    w = nb_store_weight(store, 1);
    assert_string_equal(w->name, "model.layers.12.self_attn.v_proj.bias");
    assert_string_equal(w->file_name, "blk.12.attn_v.bias");
    assert_int_equal(w->n_dims, 1);
    assert_int_equal(w->n_rows, 1);
    assert_int_equal(w->n_cols, 6);
    assert_string_equal(w->fmt->name, "f16");
    assert_int_equal(w->bytes, 12);
    w = nb_store_weight(store, 2);
    assert_string_equal(w->name, "model.embed_tokens.weight");
    assert_int_equal(w->n_rows, 5);
    assert_int_equal(w->dims[0], 5);
    assert_int_equal(w->bytes, 170);
    nb_store_close(store);
}

/* NaN and infinities are values like any other to whoever lists or reads. */
static void nonfinite_weights_are_read(void **state)
{
    (void)state;
    gguf_bytes g = begin("llama");
    const float v[3] = {NAN, INFINITY, 1.0f};
    gb_tensor(&g, "output_norm.weight", 3, 0, F32, v, sizeof v);
    write_file(&g, "nan.gguf");
    nb_store *store = open_good("nan.gguf");
    nb_err err = {0};
    nb_loaded loaded = {0};
    assert_int_equal(nb_store_read(store, nb_store_weight(store, 0), &loaded, &err), NB_OK);
    assert_memory_equal(loaded.mat.codes, v, sizeof v);
    nb_loaded_free(&loaded);
    nb_store_close(store);
}

/* ---- the row order of q and k ---- */

/* The golden order: file row j holds Hugging Face's row order[j], for two heads of 8. */
static void golden_order(float file_rows[16])
{
    json_t *golden = golden_load("rope.json");
    const json_t *order = golden_get(golden, "permute_2heads_headdim8");
    assert_int_equal(json_array_size(order), 16);
    for (size_t j = 0; j < 16; j++)
        file_rows[j] = (float)golden_number(json_array_get(order, j));
    json_decref(golden);
}

static void head_counts(gguf_bytes *g, const char *arch, uint32_t n_heads, uint32_t n_kv_heads)
{
    char key[100];
    snprintf(key, sizeof key, "%s.attention.head_count", arch);
    gb_u32(g, key, n_heads);
    if (n_kv_heads == 0)
        return;
    snprintf(key, sizeof key, "%s.attention.head_count_kv", arch);
    gb_u32(g, key, n_kv_heads);
}

static void rows_of_q_and_k_come_back(void **state)
{
    (void)state;
    float file_rows[16], hf_rows[16], k_file[8], pairs[32], hf_pairs[32];
    golden_order(file_rows);
    for (int j = 0; j < 16; j++)
        hf_rows[j] = (float)j;
    memcpy(k_file, file_rows, sizeof k_file);
    for (int j = 0; j < 32; j++) {
        pairs[j] = file_rows[j / 2] * 10 + (float)(j % 2);
        hf_pairs[j] = hf_rows[j / 2] * 10 + (float)(j % 2);
    }
    static const char *const archs[] = {"llama", "smollm3", "qwen2"};
    for (int a = 0; a < 3; a++) {
        gguf_bytes g = begin(archs[a]);
        head_counts(&g, archs[a], 2, 1);
        gb_tensor(&g, "blk.0.attn_q.weight", 2, 16, F32, pairs, sizeof pairs);
        gb_tensor(&g, "blk.0.attn_q.bias", 16, 0, F32, file_rows, sizeof file_rows);
        gb_tensor(&g, "blk.0.attn_k.weight", 1, 8, F32, k_file, sizeof k_file);
        gb_tensor(&g, "blk.0.attn_k.bias", 8, 0, F32, k_file, sizeof k_file);
        gb_tensor(&g, "blk.0.attn_v.weight", 2, 16, F32, pairs, sizeof pairs);
        gb_tensor(&g, "blk.0.attn_v.bias", 16, 0, F32, file_rows, sizeof file_rows);
        gb_tensor(&g, "attn_q.weight", 2, 16, F32, pairs, sizeof pairs); /* of no layer */
        write_file(&g, "rows.gguf");
        nb_store *store = open_good("rows.gguf");
        const bool moved = a < 2;
        check_values(store, "model.layers.0.self_attn.q_proj.weight", moved ? hf_pairs : pairs, 32);
        check_values(store, "model.layers.0.self_attn.q_proj.bias", moved ? hf_rows : file_rows,
                     16);
        check_values(store, "model.layers.0.self_attn.k_proj.weight", moved ? hf_rows : k_file, 8);
        check_values(store, "model.layers.0.self_attn.k_proj.bias", moved ? hf_rows : k_file, 8);
        check_values(store, "model.layers.0.self_attn.v_proj.weight", pairs, 32);
        check_values(store, "model.layers.0.self_attn.v_proj.bias", file_rows, 16);
        check_values(store, "attn_q.weight", pairs, 32);
        nb_store_close(store);
    }
}

/* Head counts may differ by layer; without a count for k and v, theirs is q's. */
static void head_counts_by_layer(void **state)
{
    (void)state;
    float file_rows[16], hf_rows[16];
    golden_order(file_rows);
    for (int j = 0; j < 16; j++)
        hf_rows[j] = (float)j;
    const float one_head[16] = {0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15};
    gguf_bytes g = begin("llama");
    gb_array(&g, "llama.attention.head_count", 5, 2);
    gb_raw_u32(&g.kv, 2);
    gb_raw_u32(&g.kv, 1);
    gb_tensor(&g, "blk.0.attn_q.weight", 1, 16, F32, file_rows, sizeof file_rows);
    gb_tensor(&g, "blk.1.attn_q.weight", 1, 16, F32, one_head, sizeof one_head);
    gb_tensor(&g, "blk.0.attn_k.weight", 1, 16, F32, file_rows, sizeof file_rows);
    gb_tensor(&g, "blk.1.attn_k.weight", 1, 16, F32, one_head, sizeof one_head);
    write_file(&g, "layers.gguf");
    nb_store *store = open_good("layers.gguf");
    for (int64_t i = 0; i < 4; i++)
        check_values(store, nb_store_weight(store, i)->name, hf_rows, 16);
    nb_store_close(store);

    g = begin("llama");
    gb_array(&g, "llama.attention.head_count", 5, 2);
    gb_raw_u32(&g.kv, 2);
    gb_raw_u32(&g.kv, 1);
    gb_tensor(&g, "blk.2.attn_q.weight", 1, 16, F32, file_rows, sizeof file_rows);
    write_file(&g, "layers.gguf");
    open_refused("layers.gguf", "layers.gguf",
                 "key 'llama.attention.head_count' has 2 values, and there is a layer 2");
    g = begin("llama");
    gb_array(&g, "llama.attention.head_count", 6, 1);
    gb_raw_u32(&g.kv, 2);
    gb_tensor(&g, "blk.0.attn_q.weight", 1, 16, F32, file_rows, sizeof file_rows);
    write_file(&g, "layers.gguf");
    open_refused("layers.gguf", "layers.gguf", "array of something else");
}

static void head_counts_that_do_not_fit(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_heads, n_kv_heads, q_rows, k_rows;
        const char *reason;
    } cases[] = {
        {0, 1, 16, 8, "key 'llama.attention.head_count' is 0, expected 1 to"},
        {0xffffffffu, 1, 16, 8, "key 'llama.attention.head_count' is 4294967295, expected 1 to"},
        {2, 0xffffffffu, 16, 8, "key 'llama.attention.head_count_kv' is 4294967295"},
        {3, 1, 16, 8, "'blk.0.attn_q.weight' has 16 rows in 2 dimensions, expected 3 heads"},
        {16, 1, 16, 8, "expected 16 heads of an even number of rows"},
        {2, 3, 16, 8, "'blk.0.attn_k.weight' has 8 rows in 2 dimensions, expected 3 heads"},
        {32, 1, 16, 8, "expected 32 heads"},
    };
    const float v[16] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gguf_bytes g = begin("llama");
        head_counts(&g, "llama", cases[i].n_heads, cases[i].n_kv_heads);
        gb_tensor(&g, "blk.0.attn_q.weight", 1, cases[i].q_rows, F32, v, cases[i].q_rows * 4);
        gb_tensor(&g, "blk.0.attn_k.weight", 1, cases[i].k_rows, F32, v, cases[i].k_rows * 4);
        write_file(&g, "heads.gguf");
        open_refused("heads.gguf", "heads.gguf", cases[i].reason);
    }
    gguf_bytes g = begin("llama");
    gb_text(&g, "llama.attention.head_count", "2");
    gb_tensor(&g, "blk.0.attn_q.weight", 1, 16, F32, v, sizeof v);
    write_file(&g, "heads.gguf");
    open_refused("heads.gguf", "heads.gguf", "is a string, expected an integer");
}

/* ---- split files ---- */

/* Shard `no` of `count`, announcing `total` tensors, with `n` of them. */
static void write_shard(const char *name, int no, int count, uint32_t total, int n)
{
    gguf_bytes g = {0};
    if (no == 0)
        gb_text(&g, "general.architecture", "llama");
    gb_u16(&g, "split.no", (uint16_t)no);
    gb_u16(&g, "split.count", (uint16_t)count);
    gb_key(&g, "split.tensors.count", 5);
    gb_raw_u32(&g.kv, total);
    for (int i = 0; i < n; i++) {
        char tensor[64];
        snprintf(tensor, sizeof tensor, "blk.%d.attn_norm.weight", 10 * no + i);
        const float v[2] = {(float)no, (float)i};
        gb_tensor(&g, tensor, 2, 0, F32, v, sizeof v);
    }
    write_file(&g, name);
}

static const char *const shard_names[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                                          "m-00003-of-00003.gguf"};

static void write_good_split(void)
{
    write_shard(shard_names[0], 0, 3, 3, 0);
    write_shard(shard_names[1], 1, 3, 3, 2);
    write_shard(shard_names[2], 2, 3, 3, 1);
}

static void split_files_are_one_store(void **state)
{
    (void)state;
    write_good_split();
    nb_store *store = open_good(shard_names[0]);
    assert_int_equal(nb_store_n_weights(store), 3);
    check_values(store, "model.layers.10.input_layernorm.weight", (const float[]){1, 0}, 2);
    check_values(store, "model.layers.11.input_layernorm.weight", (const float[]){1, 1}, 2);
    check_values(store, "model.layers.20.input_layernorm.weight", (const float[]){2, 0}, 2);
    nb_store_close(store);
}

static void broken_splits_are_refused(void **state)
{
    (void)state;
    write_good_split();
    open_refused(shard_names[1], shard_names[1], "this is shard 2 of 3: open ");
    open_refused(shard_names[1], shard_names[1], "m-00001-of-00003.gguf");
    assert_int_equal(unlink(scratch_path(shard_names[2])), 0);
    open_refused(shard_names[0], shard_names[2], "No such file");
    scratch_mkdir(shard_names[2]);
    open_refused(shard_names[0], shard_names[2], "not a regular file");
    assert_int_equal(rmdir(scratch_path(shard_names[2])), 0);
    scratch_write(shard_names[2], "GGUF", 4);
    open_refused(shard_names[0], shard_names[2], "too short");
    const char zip[] = "PK\x03\x04 and so on, and so on";
    scratch_write(shard_names[2], zip, sizeof zip);
    open_refused(shard_names[0], shard_names[2], "not a GGUF file; it seems to be a ZIP archive");
    scratch_write(shard_names[2], "some text that is no GGUF", 25);
    open_refused(shard_names[0], shard_names[2], "73 6f 6d 65, expected 'GGUF'");
    write_shard(shard_names[2], 1, 3, 3, 1); /* its number */
    open_refused(shard_names[0], shard_names[2], "key 'split.no' is 1, expected 2");
    write_shard(shard_names[2], 2, 4, 3, 1); /* their number */
    open_refused(shard_names[0], shard_names[2], "key 'split.count' is 4, expected 3");
    write_shard(shard_names[2], 2, 3, 3, 2); /* one tensor too many in all */
    open_refused(shard_names[0], shard_names[0], "key 'split.tensors.count' is 3, expected 4");
    write_shard(shard_names[2], 2, 3, 4, 1); /* another total */
    open_refused(shard_names[0], shard_names[2], "key 'split.tensors.count' is 4, expected 3");
    write_good_split();
    gguf_bytes g = {0}; /* not a shard at all */
    write_file(&g, shard_names[1]);
    open_refused(shard_names[0], shard_names[1], "key 'split.no' is missing");
    write_good_split();
    write_shard("renamed.gguf", 0, 3, 3, 0);
    open_refused("renamed.gguf", "renamed.gguf", "expected NAME-00001-of-00003.gguf");
    write_shard("renamed.gguf", 1, 3, 3, 0);
    open_refused("renamed.gguf", "renamed.gguf", "this is shard 2 of 3: open the first one");
    write_shard("m-00001-of-00004.gguf", 0, 3, 3, 0);
    open_refused("m-00001-of-00004.gguf", "m-00001-of-00004.gguf", "expected NAME-00001-of-00003");
    write_shard("m-00002-of-00003.gguf", 0, 3, 3, 0);
    open_refused("m-00002-of-00003.gguf", "m-00002-of-00003.gguf", "expected NAME-00001-of-00003");
    write_shard("x-00001-of-65535.gguf", 0, 65535, 0, 0);
    open_refused("x-00001-of-65535.gguf", "x-00002-of-65535.gguf", "No such file");
}

static void a_tensor_in_two_shards_is_refused(void **state)
{
    (void)state;
    write_shard("d-00001-of-00002.gguf", 0, 2, 2, 1);
    gguf_bytes g = {0};
    gb_u16(&g, "split.no", 1);
    gb_u16(&g, "split.count", 2);
    gb_u32(&g, "split.tensors.count", 2);
    gb_tensor(&g, "blk.0.attn_norm.weight", 1, 0, F32, (const float[]){1}, 4);
    write_file(&g, "d-00002-of-00002.gguf");
    open_refused("d-00001-of-00002.gguf", "d-00001-of-00002.gguf",
                 "'model.layers.0.input_layernorm.weight' is there twice");
}

/* ---- failures on the way ---- */

/* A file with every kind of thing in it, small enough to break in every place. */
static void rich_file(nb_buf *out)
{
    gguf_bytes g = begin("llama");
    head_counts(&g, "llama", 2, 1);
    gb_array(&g, "tokenizer.ggml.tokens", 8, 3);
    gb_raw_string(&g.kv, "a");
    gb_raw_string(&g.kv, "");
    gb_raw_string(&g.kv, "token");
    gb_array(&g, "tokenizer.ggml.token_type", 5, 3);
    for (uint32_t i = 0; i < 3; i++)
        gb_raw_u32(&g.kv, i);
    gb_u32(&g, "general.alignment", 32);
    uint8_t data[544] = {0};
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    gb_tensor(&g, "token_embd.weight", 32, 4, Q8_0, data, 136);
    gb_tensor(&g, "blk.0.attn_q.weight", 32, 16, Q8_0, data, 544);
    gb_tensor(&g, "blk.0.attn_k.weight", 4, 8, F16, data, 64);
    gb_tensor(&g, "blk.0.attn_norm.weight", 5, 0, F32, data, 20);
    gb_finish(&g, out);
    gb_free(&g);
}

/* Everything a reader does with a file; the status of the first thing that fails. */
static nb_status use_all(const char *path, nb_err *err)
{
    nb_store *store = NULL;
    NB_TRY(nb_store_open(&store, path, err));
    nb_loaded loaded = {0};
    nb_status s = NB_OK;
    float *row = NULL;
    for (int64_t i = 0; s == NB_OK && i < nb_store_n_weights(store); i++) {
        const nb_weight *w = nb_store_weight(store, i);
        s = nb_store_read(store, w, &loaded, err);
        row = realloc(row, (size_t)w->n_cols * sizeof *row);
        for (int64_t r = 0; s == NB_OK && r < w->n_rows; r++)
            w->fmt->decode_row(&loaded.mat, r, row);
    }
    nb_arena arena = {0};
    nb_text *texts;
    int64_t n;
    const int32_t *ints;
    const nb_gguf *g = nb_store_gguf(store);
    if (s == NB_OK)
        s = nb_gguf_texts(g, "tokenizer.ggml.tokens", false, &arena, &texts, &n, err);
    if (s == NB_OK)
        s = nb_gguf_i32s(g, "tokenizer.ggml.token_type", false, &ints, &n, err);
    nb_arena_free(&arena);
    free(row);
    nb_loaded_free(&loaded);
    nb_store_close(store);
    return s;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    nb_buf bytes = {0};
    rich_file(&bytes);
    scratch_write("rich.gguf", bytes.data, bytes.len);
    nb_buf_free(&bytes);
    write_good_split();
    const char *const names[] = {"rich.gguf", shard_names[0]};
    for (int f = 0; f < 2; f++) {
        int64_t n = 1;
        for (;; n++) {
            const int64_t live = nb_alloc_live();
            nb_err err = {0};
            nb_alloc_fail_at(n);
            const nb_status s = use_all(scratch_path(names[f]), &err);
            nb_alloc_fail_at(0);
            assert_int_equal(nb_alloc_live(), live);
            if (s == NB_OK)
                break;
            assert_int_equal(s, NB_MEMORY);
        }
        assert_in_range(n, 8, 1000);
    }
}

static void every_read_may_fail(void **state)
{
    (void)state;
    nb_buf bytes = {0};
    rich_file(&bytes);
    scratch_write("rich.gguf", bytes.data, bytes.len);
    nb_buf_free(&bytes);
    int64_t n = 1;
    for (;; n++) {
        const int64_t live = nb_alloc_live();
        nb_err err = {0};
        nb_file_fail_at(n, EIO);
        const nb_status s = use_all(scratch_path("rich.gguf"), &err);
        nb_file_fail_at(0, 0);
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_IO);
        assert_non_null(strstr(err.text, "rich.gguf: "));
    }
    assert_in_range(n, 6, 100); /* the header, three tensors, and q in two heads */
}

static void a_file_that_changes_is_noticed(void **state)
{
    (void)state;
    nb_buf bytes = {0};
    rich_file(&bytes);
    scratch_write("changing.gguf", bytes.data, bytes.len);
    nb_store *store = open_good("changing.gguf");
    const char *q = "model.layers.0.self_attn.q_proj.weight";
    FILE *f = fopen(scratch_path("changing.gguf"), "ab");
    assert_non_null(f);
    assert_int_equal(fputc(0, f), 0);
    assert_int_equal(fclose(f), 0);
    read_refused(store, q, NB_DATA, "changing.gguf: changed while reading");
    nb_store_close(store);
    store = open_good("changing.gguf");
    assert_int_equal(truncate(scratch_path("changing.gguf"), (off_t)bytes.len / 2), 0);
    read_refused(store, "model.layers.0.input_layernorm.weight", NB_IO, "shrank");
    nb_store_close(store);
    nb_buf_free(&bytes);
}

/* Four thousand files with one to three bytes, words or lengths changed: each is either refused
 * with a reason, or can be used to the end. The sanitizers watch. */
static void mutated_files_do_no_harm(void **state)
{
    (void)state;
    static const uint64_t nasty[] = {0,          1,          0xff,       0x7fffffff, 0x80000000,
                                     0xffffffff, 1ull << 32, 1ull << 62, 1ull << 63, UINT64_MAX,
                                     31,         63,         64,         9,          8};
    nb_buf good = {0};
    rich_file(&good);
    uint8_t *bytes = malloc(good.len);
    assert_non_null(bytes);
    int n_refused = 0, n_used = 0;
    for (uint64_t i = 0; i < 4000; i++) {
        uint32_t r[4];
        nb_philox(17, 0, i, r);
        memcpy(bytes, good.data, good.len);
        size_t len = good.len;
        for (uint32_t m = 0; m <= r[0] % 3; m++) {
            uint32_t q[4];
            nb_philox(17, 1 + m, i, q);
            const size_t header = good.len - 800; /* most of the header; the rest is data */
            const size_t at = q[1] % (q[0] % 8 == 0 ? good.len : header);
            const size_t width = (size_t)1 << q[2] % 4;
            const uint64_t v = nasty[q[3] % (sizeof nasty / sizeof *nasty)];
            if (q[0] % 16 == 1)
                len = at + 1;
            else if (q[0] % 2 == 0)
                bytes[at] ^= (uint8_t)(1u << q[3] % 8);
            else if (at + width <= good.len)
                memcpy(bytes + at, &v, width);
        }
        /* A new file each time: overwriting one waits for the disk on some file systems. */
        (void)remove(scratch_path("mutant.gguf"));
        scratch_write("mutant.gguf", bytes, len);
        const int64_t live = nb_alloc_live();
        nb_err err = {0};
        const nb_status s = use_all(scratch_path("mutant.gguf"), &err);
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK) {
            n_used++;
            continue;
        }
        n_refused++;
        if ((s != NB_DATA && s != NB_UNSUPPORTED) || err.text[0] == 0)
            fail_msg("mutation %d: %s: %s", (int)i, nb_status_name(s), err.text);
    }
    assert_true(n_refused > 1000);
    assert_true(n_used > 100);
    free(bytes);
    nb_buf_free(&good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_values),
        cmocka_unit_test(weights_are_described),
        cmocka_unit_test(nonfinite_weights_are_read),
        cmocka_unit_test(rows_of_q_and_k_come_back),
        cmocka_unit_test(head_counts_by_layer),
        cmocka_unit_test(head_counts_that_do_not_fit),
        cmocka_unit_test(split_files_are_one_store),
        cmocka_unit_test(broken_splits_are_refused),
        cmocka_unit_test(a_tensor_in_two_shards_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_read_may_fail),
        cmocka_unit_test(a_file_that_changes_is_noticed),
        cmocka_unit_test(mutated_files_do_no_harm),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
