/* Writing GGUF: what is written reads back as the same weights, byte for byte and in ggml's row
 * order on disk; sizes are as planned; a failure at any point leaves nothing behind. */
#define _GNU_SOURCE
#include "support/golden.h"
#include "support/gguf_bytes.h"
#include "support/scratch.h"

#include "store/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* A plan of a few weights, with bytes that tell rows apart. */
#define N_WEIGHTS 6
typedef struct {
    nb_weight plan[N_WEIGHTS];
    uint8_t bytes[N_WEIGHTS][2048];
} model;

static nb_weight weight(const char *name, int64_t n_rows, int64_t n_cols, const nb_format *fmt)
{
    nb_weight w = {.name = name, .fmt = fmt, .n_rows = n_rows, .n_cols = n_cols};
    w.n_dims = n_rows == 1 ? 1 : 2;
    w.dims[0] = n_rows;
    w.dims[w.n_dims - 1] = n_cols;
    w.bytes = n_rows * (n_cols / fmt->block_len) * fmt->block_bytes;
    return w;
}

static void make_model(model *m)
{
    m->plan[0] = weight("model.embed_tokens.weight", 3, 32, &nb_format_q8_0);
    m->plan[1] = weight("model.layers.0.self_attn.q_proj.weight", 16, 64, &nb_format_q4_1);
    m->plan[2] = weight("model.layers.0.self_attn.q_proj.bias", 1, 16, &nb_format_f32);
    m->plan[3] = weight("model.layers.0.self_attn.k_proj.weight", 8, 5, &nb_format_bf16);
    m->plan[4] = weight("model.layers.0.input_layernorm.weight", 1, 7, &nb_format_f16);
    m->plan[5] = weight("something.else", 2, 32, &nb_format_q4_0);
    for (int i = 0; i < N_WEIGHTS; i++) {
        assert_true(m->plan[i].bytes <= (int64_t)sizeof m->bytes[i]);
        for (size_t j = 0; j < sizeof m->bytes[i]; j++)
            m->bytes[i][j] = (uint8_t)(j * 31 + j / 256 + (size_t)i * 101);
    }
}

static nb_mat mat_of(model *m, int i)
{
    const nb_weight *w = &m->plan[i];
    return (nb_mat){.fmt = w->fmt,
                    .n_rows = w->n_rows,
                    .n_cols = w->n_cols,
                    .codes = m->bytes[i],
                    .row_bytes = w->bytes / w->n_rows};
}

static int64_t llama_pairs(nb_buf *kv, uint32_t alignment)
{
    nb_err err = {0};
    assert_int_equal(nb_gguf_put_text(kv, "general.architecture", "llama", 5, &err), NB_OK);
    assert_int_equal(nb_gguf_put_u32(kv, "llama.attention.head_count", 2, &err), NB_OK);
    assert_int_equal(nb_gguf_put_u32(kv, "llama.attention.head_count_kv", 1, &err), NB_OK);
    if (alignment == 0)
        return 3;
    assert_int_equal(nb_gguf_put_u32(kv, "general.alignment", alignment, &err), NB_OK);
    return 4;
}

/* Writes the model as a llama of two heads. */
static nb_status write_model(model *m, const char *path, const nb_buf *kv, int64_t n_kv,
                             int64_t n_heads, nb_err *err)
{
    nb_sink *sink = NULL;
    NB_TRY(nb_sink_open_gguf(&sink, path, false, m->plan, N_WEIGHTS, kv, n_kv, n_heads, n_heads / 2,
                             err));
    const int64_t planned = nb_sink_planned_bytes(sink);
    for (int i = 0; i < N_WEIGHTS; i++) {
        const nb_mat mat = mat_of(m, i);
        const nb_status s = nb_sink_put(sink, i, &mat, err);
        if (s != NB_OK) {
            nb_sink_abort(sink);
            return s;
        }
    }
    NB_TRY(nb_sink_commit(sink, err));
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, planned);
    return NB_OK;
}

static void round_trip(uint32_t alignment)
{
    model m;
    make_model(&m);
    nb_buf kv = {0};
    nb_err err = {0};
    const int64_t n_kv = llama_pairs(&kv, alignment), live = nb_alloc_live() - 1;
    if (write_model(&m, scratch_path("out.gguf"), &kv, n_kv, 2, &err) != NB_OK)
        fail_msg("%s", err.text);
    nb_buf_free(&kv);
    assert_int_equal(nb_alloc_live(), live);
    nb_store *store = NULL;
    if (nb_store_open(&store, scratch_path("out.gguf"), &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_int_equal(nb_store_n_weights(store), N_WEIGHTS);
    nb_loaded loaded = {0};
    for (int i = 0; i < N_WEIGHTS; i++) {
        const nb_weight *w = nb_store_weight(store, i);
        assert_string_equal(w->name, m.plan[i].name);
        assert_ptr_equal(w->fmt, m.plan[i].fmt);
        assert_int_equal(w->n_dims, m.plan[i].n_dims);
        assert_memory_equal(w->dims, m.plan[i].dims, (size_t)w->n_dims * sizeof *w->dims);
        assert_int_equal(nb_store_read(store, w, &loaded, &err), NB_OK);
        assert_memory_equal(loaded.mat.codes, m.bytes[i], (size_t)w->bytes);
    }
    nb_loaded_free(&loaded);
    nb_store_close(store);
    assert_int_equal(remove(scratch_path("out.gguf")), 0);
    assert_int_equal(scratch_count("."), 0);
}

static void what_is_written_reads_back(void **state)
{
    (void)state;
    static const uint32_t alignments[] = {0, 1, 8, 32, 64, 8192};
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++)
        round_trip(alignments[i]);
}

/* The whole file against one that was put together by hand: on disk q is interleaved. */
static void the_bytes_on_disk(void **state)
{
    (void)state;
    json_t *golden = golden_load("rope.json");
    const json_t *order = golden_get(golden, "permute_2heads_headdim8");
    float rows[16], interleaved[16];
    for (int j = 0; j < 16; j++) {
        rows[j] = (float)j;
        interleaved[j] = (float)golden_number(json_array_get(order, (size_t)j));
    }
    json_decref(golden);
    for (int64_t n_heads = 0; n_heads <= 2; n_heads += 2) {
        const float *on_disk = n_heads == 0 ? rows : interleaved;
        gguf_bytes g = {0};
        gb_text(&g, "general.architecture", "llama");
        gb_tensor(&g, "blk.0.attn_q.weight", 1, 16, 0, on_disk, sizeof rows);
        gb_tensor(&g, "blk.0.attn_q.bias", 16, 0, 0, on_disk, sizeof rows);
        gb_tensor(&g, "blk.0.attn_k.weight", 1, 8, 0, on_disk, sizeof rows / 2);
        gb_tensor(&g, "output_norm.weight", 3, 0, 0, rows, 12);
        nb_buf expected = {0}, kv = {0};
        gb_finish(&g, &expected);
        gb_free(&g);

        const nb_weight plan[] = {
            weight("model.layers.0.self_attn.q_proj.weight", 16, 1, &nb_format_f32),
            weight("model.layers.0.self_attn.q_proj.bias", 1, 16, &nb_format_f32),
            weight("model.layers.0.self_attn.k_proj.weight", 8, 1, &nb_format_f32),
            weight("model.norm.weight", 1, 3, &nb_format_f32),
        };
        nb_err err = {0};
        assert_int_equal(nb_gguf_put_text(&kv, "general.architecture", "llama", 5, &err), NB_OK);
        nb_sink *sink;
        if (nb_sink_open_gguf(&sink, scratch_path("disk.gguf"), false, plan, 4, &kv, 1, n_heads,
                              n_heads / 2, &err) != NB_OK)
            fail_msg("%s", err.text);
        assert_int_equal(nb_sink_planned_bytes(sink), expected.len);
        for (int i = 0; i < 4; i++) {
            const nb_mat mat = {.fmt = plan[i].fmt,
                                .n_rows = plan[i].n_rows,
                                .n_cols = plan[i].n_cols,
                                .codes = rows,
                                .row_bytes = plan[i].bytes / plan[i].n_rows};
            assert_int_equal(nb_sink_put(sink, i, &mat, &err), NB_OK);
        }
        assert_int_equal(nb_sink_commit(sink, &err), NB_OK);
        nb_buf found = {0};
        assert_int_equal(nb_file_slurp(&found, scratch_path("disk.gguf"), 1 << 20, &err), NB_OK);
        assert_int_equal(found.len, expected.len);
        assert_memory_equal(found.data, expected.data, expected.len);
        nb_buf_free(&found);
        nb_buf_free(&expected);
        nb_buf_free(&kv);
        assert_int_equal(remove(scratch_path("disk.gguf")), 0);
    }
}

static void open_refused(const nb_weight *plan, int64_t n, const nb_buf *kv, int64_t n_kv,
                         int64_t n_heads, nb_status status, const char *reason)
{
    nb_err err = {0};
    nb_sink *sink = NULL;
    const int64_t live = nb_alloc_live();
    assert_int_equal(nb_sink_open_gguf(&sink, scratch_path("no.gguf"), false, plan, n, kv, n_kv,
                                       n_heads, n_heads, &err),
                     status);
    if (strstr(err.text, reason) == NULL)
        fail_msg("expected '%s' in: %s", reason, err.text);
    assert_null(sink);
    assert_int_equal(nb_alloc_live(), live);
    assert_int_equal(scratch_count("."), 0);
}

static void plans_that_gguf_cannot_hold(void **state)
{
    (void)state;
    nb_buf kv = {0}, other = {0};
    nb_err err = {0};
    const int64_t n_kv = llama_pairs(&kv, 0);
    char name[80] = {0};
    memset(name, 'n', 64);
    nb_weight w = weight("model.norm.weight", 1, 32, &nb_format_f32);
    w.name = name;
    open_refused(&w, 1, &kv, n_kv, 0, NB_UNSUPPORTED, "a name of 64 bytes");
    w.name = "a\nb";
    open_refused(&w, 1, &kv, n_kv, 0, NB_DATA, "has byte 0x0a");
    w = weight("w", 4, 32, &nb_format_f32);
    w.fmt = &nb_format_int8;
    w.group_size = 32;
    w.symmetric = true;
    w.scale_type = NB_BF16;
    open_refused(&w, 1, &kv, n_kv, 0, NB_UNSUPPORTED, "'w' is int8, which GGUF does not hold");
    w = weight("w", 4, 33, &nb_format_q8_0);
    open_refused(&w, 1, &kv, n_kv, 0, NB_UNSUPPORTED, "33 ");
    w = weight("model.layers.0.self_attn.q_proj.weight", 15, 4, &nb_format_f32);
    open_refused(&w, 1, &kv, n_kv, 5, NB_DATA,
                 "15 rows in 2 dimensions, expected 5 heads of an even");
    w = weight("model.layers.0.self_attn.q_proj.weight", 16, 4, &nb_format_f32);
    open_refused(&w, 1, &kv, n_kv, 3, NB_DATA, "expected 3 heads");
    const nb_weight twice[2] = {weight("model.norm.weight", 1, 2, &nb_format_f32),
                                weight("output_norm.weight", 1, 2, &nb_format_f32)};
    open_refused(twice, 2, &kv, n_kv, 0, NB_DATA,
                 "two tensors would be named 'output_norm.weight'");
    /* Pairs that no reader would take. */
    open_refused(twice, 1, &kv, n_kv + 1, 0, NB_DATA, "");
    open_refused(twice, 1, &kv, n_kv - 1, 0, NB_DATA, "bytes follow the last");
    open_refused(twice, 1, &other, 0, 0, NB_DATA, "key 'general.architecture' is missing");
    assert_int_equal(nb_gguf_put_u32(&kv, "general.alignment", 3, &err), NB_OK);
    open_refused(twice, 1, &kv, n_kv + 1, 0, NB_DATA, "'general.alignment' is 3");
    nb_buf_free(&kv);
    nb_buf_free(&other);
}

static void an_existing_file_stays(void **state)
{
    (void)state;
    model m;
    make_model(&m);
    nb_buf kv = {0};
    nb_err err = {0};
    const int64_t n_kv = llama_pairs(&kv, 0);
    scratch_text("out.gguf", "precious");
    assert_int_equal(write_model(&m, scratch_path("out.gguf"), &kv, n_kv, 2, &err), NB_USAGE);
    assert_true(scratch_holds("out.gguf", "precious"));
    assert_int_equal(scratch_count("."), 1);
    assert_int_equal(remove(scratch_path("out.gguf")), 0);
    nb_buf_free(&kv);
}

static void an_aborted_sink_leaves_nothing(void **state)
{
    (void)state;
    model m;
    make_model(&m);
    nb_buf kv = {0};
    nb_err err = {0};
    const int64_t n_kv = llama_pairs(&kv, 0), live = nb_alloc_live();
    for (int n_put = 0; n_put <= N_WEIGHTS; n_put++) {
        nb_sink *sink;
        assert_int_equal(nb_sink_open_gguf(&sink, scratch_path("out.gguf"), false, m.plan,
                                           N_WEIGHTS, &kv, n_kv, 2, 1, &err),
                         NB_OK);
        for (int i = 0; i < n_put; i++) {
            const nb_mat mat = mat_of(&m, i);
            assert_int_equal(nb_sink_put(sink, i, &mat, &err), NB_OK);
        }
        assert_int_equal(scratch_count("."), 1);
        assert_false(scratch_exists("out.gguf"));
        nb_sink_abort(sink);
        assert_int_equal(scratch_count("."), 0);
        assert_int_equal(nb_alloc_live(), live);
    }
    nb_buf_free(&kv);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    model m;
    make_model(&m);
    nb_buf kv = {0};
    const int64_t n_kv = llama_pairs(&kv, 0), live = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_err err = {0};
        nb_alloc_fail_at(n);
        const nb_status s = write_model(&m, scratch_path("out.gguf"), &kv, n_kv, 2, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
        assert_int_equal(scratch_count("."), 0);
    }
    assert_in_range(n, 8, 200);
    assert_int_equal(remove(scratch_path("out.gguf")), 0);
    nb_buf_free(&kv);
}

static void every_write_may_fail(void **state)
{
    (void)state;
    model m;
    make_model(&m);
    nb_buf kv = {0};
    const int64_t n_kv = llama_pairs(&kv, 0), live = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_err err = {0};
        nb_file_fail_at(n, ENOSPC);
        const nb_status s = write_model(&m, scratch_path("out.gguf"), &kv, n_kv, 2, &err);
        nb_file_fail_at(0, 0);
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_IO);
        assert_non_null(strstr(err.text, "No space left"));
        /* After the rename the output is whole; before it there is none. */
        if (scratch_exists("out.gguf"))
            assert_int_equal(remove(scratch_path("out.gguf")), 0);
        assert_int_equal(scratch_count("."), 0);
    }
    assert_in_range(n, 10, 100);
    assert_int_equal(remove(scratch_path("out.gguf")), 0);
    nb_buf_free(&kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(the_bytes_on_disk),
        cmocka_unit_test(plans_that_gguf_cannot_hold),
        cmocka_unit_test(an_existing_file_stays),
        cmocka_unit_test(an_aborted_sink_leaves_nothing),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_write_may_fail),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
