/* Models from the containers they come in: the same numbers, in the compute mode that format and
 * user say; and steps that go wrong. */
#include "model/forward.h"
#include "model/model_pool.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- the same model from both containers ---- */

static void golden_path(char *out, size_t size, const char *name)
{
    snprintf(out, size, "%s/models/%s", NIBBLE_GOLDEN, name);
}

/* Copies a folder's model into scratch file `to`, as GGUF, with those matrices in `fmt` whose rows
 * fit (NULL: all as they are). */
static void write_gguf(const char *from, const char *to, const nb_format *fmt)
{
    nb_err err;
    nb_store *store;
    nb_config c;
    nb_buf kv = {0};
    int64_t n_kv = 0;
    nb_sink *sink;
    must(nb_store_open(&store, from, &err), &err);
    must(nb_config_read(store, &c, &err), &err);
    must(nb_config_to_gguf(&c, &kv, &n_kv, &err), &err);
    const int64_t n = nb_store_n_weights(store);
    nb_weight *plan = calloc((size_t)n, sizeof *plan);
    for (int64_t i = 0; i < n; i++) {
        plan[i] = *nb_store_weight(store, i);
        if (fmt != NULL && plan[i].n_dims == 2 && plan[i].n_cols % fmt->block_len == 0)
            plan[i].fmt = fmt;
    }
    const bool permuted = c.arch->gguf_permuted;
    must(nb_sink_open_gguf(&sink, scratch_path(to), true, plan, n, &kv, n_kv,
                           permuted ? c.n_heads : 0, permuted ? c.n_kv_heads : 0, &err),
         &err);
    nb_loaded loaded = {0};
    for (int64_t i = 0; i < n; i++) {
        must(nb_store_read(store, nb_store_weight(store, i), &loaded, &err), &err);
        nb_mat m = loaded.mat;
        if (plan[i].fmt == m.fmt) {
            must(nb_sink_put(sink, i, &m, &err), &err);
            continue;
        }
        nb_mat out = {.fmt = fmt, .n_rows = m.n_rows, .n_cols = m.n_cols};
        must(nb_format_row_bytes(fmt, m.n_cols, &out.row_bytes, &err), &err);
        out.codes = calloc((size_t)m.n_rows, (size_t)out.row_bytes);
        float *row = calloc((size_t)m.n_cols, sizeof *row);
        for (int64_t r = 0; r < m.n_rows; r++) {
            m.fmt->decode_row(&m, r, row);
            fmt->encode_row(&out, r, row);
        }
        must(nb_sink_put(sink, i, &out, &err), &err);
        free(row);
        free(out.codes);
    }
    must(nb_sink_commit(sink, &err), &err);
    nb_loaded_free(&loaded);
    nb_buf_free(&kv);
    free(plan);
    nb_store_close(store);
}

enum { N_TOKENS = 24 };

typedef struct {
    nb_store *store;
    nb_model model;
    nb_kernels kernels;
    nb_work work;
    nb_kv_pool kv;
    float *hidden;
} fixture;

static void open_fixture(fixture *f, const char *path, nb_compute_choice compute)
{
    nb_err err;
    *f = (fixture){0};
    must(nb_store_open(&f->store, path, &err), &err);
    must(nb_model_open(&f->model, f->store, &(nb_model_options){compute, 64}, pool, &err), &err);
    nb_kernels_init(&f->kernels, NB_ISA_ALL);
    must(nb_work_init(&f->work, &f->model, &f->kernels, pool, 64, &err), &err);
    must(nb_kv_pool_init(&f->kv, &f->model.config, NB_KV_F32, 2, &err), &err);
    f->hidden = calloc((size_t)(N_TOKENS * f->model.config.d_model), sizeof *f->hidden);
}

static void close_fixture(fixture *f)
{
    nb_kv_pool_free(&f->kv);
    nb_work_free(&f->work);
    nb_model_close(&f->model);
    nb_store_close(f->store);
    free(f->hidden);
}

static nb_status forward(fixture *f, uint64_t *hash, nb_err *err)
{
    nb_kv_seq seq;
    must(nb_kv_seq_init(&seq, &f->kv, 64, err), err);
    int32_t tokens[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * 29 + 3) % 64;
    const nb_step_input in = {&seq, tokens, N_TOKENS, N_TOKENS};
    const nb_status s = nb_forward(&f->work, &in, 1, f->hidden, err);
    const int64_t vocab = f->model.config.vocab_size;
    float *logits = calloc((size_t)(N_TOKENS * vocab), sizeof *logits);
    nb_logits(&f->work, f->hidden, N_TOKENS, logits);
    *hash = 0;
    for (int64_t i = 0; i < N_TOKENS; i++)
        *hash ^= nb_logits_hash(logits + i * vocab, vocab, (uint64_t)i);
    free(logits);
    nb_kv_seq_free(&seq);
    return s;
}

static uint64_t hash_of(const char *path, nb_compute_choice compute)
{
    nb_err err;
    fixture f;
    uint64_t hash;
    open_fixture(&f, path, compute);
    must(forward(&f, &hash, &err), &err);
    close_fixture(&f);
    return hash;
}

/* Permuted q and k, keys instead of config.json, other names: the same bits of every logit. */
static void a_folder_and_a_gguf_file_are_the_same_model(void **state)
{
    (void)state;
    static const char *const names[] = {"llama", "smollm", "llama_bias", "llama_linear",
                                        "qwen2", "qwen3",  "qwen2_yarn"};
    uint64_t seen[sizeof names / sizeof *names];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[1024];
        golden_path(path, sizeof path, names[i]);
        write_gguf(path, "m.gguf", NULL);
        seen[i] = hash_of(path, NB_COMPUTE_AUTO);
        if (seen[i] != hash_of(scratch_path("m.gguf"), NB_COMPUTE_AUTO))
            fail_msg("%s: the GGUF file gives other logits", names[i]);
        for (size_t j = 0; j < i; j++)
            assert_true(seen[i] != seen[j]); /* the hash tells models apart */
    }
}

static void compute_modes_are_what_the_format_and_the_user_say(void **state)
{
    (void)state;
    const nb_weight plain = {.fmt = &nb_format_bf16}, block = {.fmt = &nb_format_q4_0};
    const nb_weight a16 = {.fmt = &nb_format_int4};
    const nb_weight a8 = {.fmt = &nb_format_int8, .act = {.bits = 8, .per_token = true}};
    static const nb_compute want[4][4] = {
        /* auto, f, i8, i16 */
        {NB_COMPUTE_F, NB_COMPUTE_F, NB_COMPUTE_F, NB_COMPUTE_F},
        {NB_COMPUTE_I8, NB_COMPUTE_F, NB_COMPUTE_I8, NB_COMPUTE_I16},
        {NB_COMPUTE_I16, NB_COMPUTE_F, NB_COMPUTE_I8, NB_COMPUTE_I16},
        {NB_COMPUTE_I8, NB_COMPUTE_F, NB_COMPUTE_I8, NB_COMPUTE_I16},
    };
    const nb_weight *const weights[] = {&plain, &block, &a16, &a8};
    for (int w = 0; w < 4; w++) {
        for (int c = NB_COMPUTE_AUTO; c <= NB_COMPUTE_ALL_I16; c++)
            assert_int_equal(nb_weight_compute(weights[w], (nb_compute_choice)c), want[w][c + 1]);
    }
    char path[1024];
    golden_path(path, sizeof path, "llama");
    write_gguf(path, "q.gguf", &nb_format_q8_0);
    static const char *const names[] = {"i8", "f", "i8", "i16"};
    for (int c = NB_COMPUTE_AUTO; c <= NB_COMPUTE_ALL_I16; c++) {
        fixture f;
        open_fixture(&f, scratch_path("q.gguf"), (nb_compute_choice)c);
        /* down_proj has rows of 48, no whole blocks, and stayed f32 */
        const char *name = nb_model_compute_name(&f.model);
        char both[16];
        snprintf(both, sizeof both, "%s+f", names[c + 1]);
        assert_string_equal(name, c == NB_COMPUTE_ALL_F ? "f" : both);
        close_fixture(&f);
    }
}

/* A7: NaN inside an integer product is reported, with the layer; in floats it reaches the logits.
 * Other sequences of the step are not touched. */
static void nan_is_reported_with_its_layer(void **state)
{
    (void)state;
    char path[1024];
    golden_path(path, sizeof path, "llama");
    write_gguf(path, "q.gguf", &nb_format_q8_0);
    for (int c = NB_COMPUTE_ALL_F; c <= NB_COMPUTE_ALL_I16; c++) {
        nb_err err = {0};
        fixture f;
        uint64_t hash;
        open_fixture(&f, scratch_path("q.gguf"), (nb_compute_choice)c);
        f.model.layers[1].ffn_norm[5] = NAN;
        const nb_status s = forward(&f, &hash, &err);
        assert_int_equal(s, c == NB_COMPUTE_ALL_F ? NB_OK : NB_DATA);
        if (s != NB_OK)
            assert_string_equal(err.text, "the activations of layer 1 hold Inf or NaN");
        for (int64_t i = 0; i < N_TOKENS * f.model.config.d_model; i++)
            assert_true(isnan(f.hidden[i]));
        close_fixture(&f);
    }
}

/* A step of two sequences for which there are pages for one only: neither keeps any. */
static void a_step_that_does_not_fit_gives_its_pages_back(void **state)
{
    (void)state;
    char path[1024];
    golden_path(path, sizeof path, "llama");
    nb_err err;
    fixture f;
    open_fixture(&f, path, NB_COMPUTE_AUTO); /* with two pages */
    nb_kv_seq seqs[2];
    static const int32_t zeros[40];
    for (int i = 0; i < 2; i++)
        must(nb_kv_seq_init(&seqs[i], &f.kv, 64, &err), &err);
    const nb_step_input in[] = {{&seqs[0], zeros, 33, 0}, {&seqs[1], zeros, 1, 0}};
    assert_int_equal(nb_forward(&f.work, in, 2, f.hidden, &err), NB_LIMIT);
    assert_string_equal(err.text, "the KV cache is full: 1 pages are needed, 0 are free");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(seqs[i].n, 0);
        assert_int_equal(seqs[i].n_table, 0);
        nb_kv_seq_free(&seqs[i]);
    }
    assert_int_equal(f.kv.n_free, 2);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_folder_and_a_gguf_file_are_the_same_model),
        cmocka_unit_test(compute_modes_are_what_the_format_and_the_user_say),
        cmocka_unit_test(nan_is_reported_with_its_layer),
        cmocka_unit_test(a_step_that_does_not_fit_gives_its_pages_back),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
