/* Loading: tensors and config have to be of the same model, and the message says which tensor and
 * both shapes when they are not. One small model that is right, and one change at a time. */
#include "base/rng.h"
#include "model/forward.h"
#include "model/model_pool.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/st_bytes.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a model that is right: 2 layers, width 8, 2 heads of 4 on 1, feed-forward 16, 12 tokens ----
 */

typedef struct {
    char name[80];
    const char *dtype; /* F32 or I32 */
    int64_t shape[3];
    int n_dims;
    bool zero;     /* all zeros, */
    int64_t other; /* but for element other - 1 */
} tensor;

static tensor tensors[40];

static int n_tensors;

static void add(const char *name, int64_t rows, int64_t cols)
{
    tensor *t = &tensors[n_tensors++];
    *t = (tensor){.dtype = "F32", .shape = {rows, cols}, .n_dims = cols == 0 ? 1 : 2};
    snprintf(t->name, sizeof t->name, "%s", name);
}

static void base_tensors(void)
{
    n_tensors = 0;
    add("model.embed_tokens.weight", 12, 8);
    for (int i = 0; i < 2; i++) {
        static const struct {
            const char *name;
            int64_t rows, cols;
        } parts[] = {{"self_attn.q_proj", 8, 8},        {"self_attn.k_proj", 4, 8},
                     {"self_attn.v_proj", 4, 8},        {"self_attn.o_proj", 8, 8},
                     {"mlp.gate_proj", 16, 8},          {"mlp.up_proj", 16, 8},
                     {"mlp.down_proj", 8, 16},          {"input_layernorm", 8, 0},
                     {"post_attention_layernorm", 8, 0}};
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            char name[80];
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", i, parts[p].name);
            add(name, parts[p].rows, parts[p].cols);
        }
    }
    add("model.norm.weight", 8, 0);
    add("lm_head.weight", 12, 8);
}

static tensor *find(const char *name)
{
    for (int i = 0; i < n_tensors; i++) {
        if (strcmp(tensors[i].name, name) == 0)
            return &tensors[i];
    }
    fail_msg("no tensor %s", name);
    return NULL;
}

static void write_tensors(void)
{
    char header[8192] = "{";
    size_t len = 1, at = 0;
    static float data[4096];
    for (int i = 0; i < n_tensors; i++) {
        const tensor *t = &tensors[i];
        size_t n = 1;
        len += (size_t)snprintf(header + len, sizeof header - len,
                                "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i > 0 ? "," : "", t->name,
                                t->dtype);
        for (int d = 0; d < t->n_dims; d++) {
            n *= (size_t)t->shape[d];
            len += (size_t)snprintf(header + len, sizeof header - len, "%s%lld", d > 0 ? "," : "",
                                    (long long)t->shape[d]);
        }
        assert_true(at + n <= sizeof data / sizeof *data);
        for (size_t k = 0; k < n; k++)
            data[at + k] = t->zero ? (float)((int64_t)k + 1 == t->other)
                                   : (float)nb_rng_uniform(5, (uint64_t)i, k) - 0.4f;
        len += (size_t)snprintf(header + len, sizeof header - len, "],\"data_offsets\":[%zu,%zu]}",
                                4 * at, 4 * (at + n));
        at += n;
    }
    len += (size_t)snprintf(header + len, sizeof header - len, "}");
    assert_true(len < sizeof header);
    st_write("m/model.safetensors", header, data, 4 * at);
}

/* config.json; `more` holds further keys, which win over the base's. */
static void write_config(const char *more)
{
    json_t *c = json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:b}", "model_type", "llama",
                          "num_hidden_layers", 2, "hidden_size", 8, "intermediate_size", 16,
                          "num_attention_heads", 2, "num_key_value_heads", 1, "vocab_size", 12,
                          "max_position_embeddings", 64, "tie_word_embeddings", 0);
    json_t *changes = json_loads(more, 0, NULL);
    assert_non_null(changes);
    assert_int_equal(json_object_update(c, changes), 0);
    char *text = json_dumps(c, 0);
    scratch_text("m/config.json", text);
    free(text);
    json_decref(c);
    json_decref(changes);
}

static void base_model(void)
{
    base_tensors();
    write_tensors();
    write_config("{}");
}

static nb_status open_m(nb_model *m, nb_store **store, nb_err *err)
{
    *store = NULL;
    const nb_status s = nb_store_open(store, scratch_path("m"), err);
    return s != NB_OK
               ? s
               : nb_model_open(m, *store, &(nb_model_options){NB_COMPUTE_AUTO, 0}, pool, err);
}

static void accepted(void)
{
    nb_err err;
    nb_model m;
    nb_store *store;
    must(open_m(&m, &store, &err), &err);
    nb_model_close(&m);
    nb_store_close(store);
}

/* Refused with this status and, after the folder's path, this reason; nothing leaks. */
static void refused(nb_status want, const char *reason)
{
    nb_err err = {0};
    nb_model m;
    nb_store *store;
    const int64_t live = nb_alloc_live();
    const nb_status s = open_m(&m, &store, &err);
    nb_store_close(store);
    assert_int_equal(nb_alloc_live(), live);
    char message[1200];
    snprintf(message, sizeof message, "%s: %s", scratch_path("m"), reason);
    if (s != want || strcmp(err.text, message) != 0)
        fail_msg("%s, '%s'\nexpected %s, '%s'", nb_status_name(s), err.text, nb_status_name(want),
                 message);
}

/* As refused, and also by the check that reads no tensor. */
static void refused_unread(nb_status want, const char *reason)
{
    refused(want, reason);
    nb_err err = {0};
    nb_store *store;
    nb_config c;
    must(nb_store_open(&store, scratch_path("m"), &err), &err);
    must(nb_config_read(store, &c, &err), &err);
    const int64_t live = nb_alloc_live();
    nb_file_fail_at(1, EIO); /* it really reads nothing */
    assert_int_equal(nb_model_check(store, &c, &err), want);
    nb_file_fail_at(0, 0);
    assert_int_equal(nb_alloc_live(), live);
    assert_string_equal(err.text + strlen(scratch_path("m")) + 2, reason);
    nb_store_close(store);
}

static void what_fits_together_is_opened(void **state)
{
    (void)state;
    nb_err err;
    nb_model m;
    nb_store *store;
    base_model();
    must(open_m(&m, &store, &err), &err);
    int64_t n = 0;
    for (int i = 0; i < n_tensors; i++)
        n += tensors[i].shape[0] * (tensors[i].n_dims == 2 ? tensors[i].shape[1] : 1);
    assert_int_equal(m.n_params, n);
    assert_int_equal(m.weight_bytes, 4 * n);
    assert_true(m.packed_bytes >= 4 * (n - 5 * 8)); /* all but the norms; rows are padded */
    assert_int_equal(m.n_ctx, 64);
    assert_string_equal(nb_model_compute_name(&m), "f");
    assert_ptr_equal(nb_model_head(&m), &m.head);
    must(nb_model_check(store, &m.config, &err), &err);
    nb_model_close(&m);
    nb_model_close(&m); /* empty is fine */
    nb_store_close(store);
    write_config("{\"max_position_embeddings\": 131072}");
    must(open_m(&m, &store, &err), &err);
    assert_int_equal(m.n_ctx, NB_DEFAULT_CTX);
    nb_model_close(&m);
    nb_store_close(store);
    write_config("{\"tie_word_embeddings\": true}"); /* what lm_head holds then does not count */
    must(open_m(&m, &store, &err), &err);
    assert_ptr_equal(nb_model_head(&m), &m.embed);
    nb_model_close(&m);
    nb_store_close(store);
}

/* H23: every tensor, missing, transposed, flattened, as one row, with a dimension more, of
 * integers.
 */
static void each_tensor_must_be_there_in_its_shape(void **state)
{
    (void)state;
    base_tensors();
    const int n = n_tensors;
    int n_transposed = 0;
    for (int i = 0; i < n; i++) {
        base_model();
        char reason[300];
        tensor *t = &tensors[i];
        const int64_t rows = t->n_dims == 2 ? t->shape[0] : 1;
        const int64_t cols = t->n_dims == 2 ? t->shape[1] : t->shape[0];
        const tensor good = *t;
        const char *name = good.name;

        snprintf(t->name, sizeof t->name, "nobody.asks.for.this");
        write_tensors();
        snprintf(reason, sizeof reason, "tensor '%s' is missing", name);
        refused_unread(NB_DATA, reason);
        *t = good;

        if (rows != cols && good.n_dims == 2) {
            t->shape[0] = cols;
            t->shape[1] = rows;
            write_tensors();
            snprintf(reason, sizeof reason,
                     "tensor '%s' is %lld x %lld, and the config wants %lld x %lld", name,
                     (long long)cols, (long long)rows, (long long)rows, (long long)cols);
            refused_unread(NB_DATA, reason);
            n_transposed++;
            *t = good;
        }
        if (good.n_dims == 2) {
            t->n_dims = 1;
            t->shape[0] = rows * cols;
            write_tensors();
            snprintf(reason, sizeof reason,
                     "tensor '%s' is 1 x %lld, and the config wants %lld x %lld", name,
                     (long long)(rows * cols), (long long)rows, (long long)cols);
            refused_unread(NB_DATA, reason);
            *t = good;
        }
        t->n_dims = good.n_dims == 2 ? 3 : 2;
        for (int d = t->n_dims - 1; d > 0; d--)
            t->shape[d] = good.shape[d - 1];
        t->shape[0] = 1;
        write_tensors();
        snprintf(reason, sizeof reason, "tensor '%s' has %d dimensions instead of %d", name,
                 t->n_dims, good.n_dims);
        refused_unread(NB_DATA, reason);
        *t = good;

        t->dtype = "I32";
        write_tensors();
        nb_err err;
        nb_model m;
        nb_store *store;
        assert_int_not_equal(open_m(&m, &store, &err), NB_OK);
        nb_store_close(store);
        assert_non_null(strstr(err.text, name));
    }
    assert_true(n_transposed > 10);
}

/* H36: both numbers are named. */
static void config_and_tensors_must_agree(void **state)
{
    (void)state;
    base_model();
    static const struct {
        const char *change, *reason;
    } cases[] = {
        {"{\"num_hidden_layers\": 3}", "the config has 3 layers, and the tensors have 2"},
        {"{\"num_hidden_layers\": 1}", "the config has 1 layers, and the tensors have 2"},
        {"{\"vocab_size\": 13}",
         "tensor 'model.embed_tokens.weight' is 12 x 8, and the config wants 13 x 8"},
        {"{\"vocab_size\": 16777216}",
         "tensor 'model.embed_tokens.weight' is 12 x 8, and the config wants 16777216 x 8"},
        {"{\"hidden_size\": 16}",
         "tensor 'model.embed_tokens.weight' is 12 x 8, and the config wants 12 x 16"},
        {"{\"intermediate_size\": 32}",
         "tensor 'model.layers.0.mlp.gate_proj.weight' is 16 x 8, and the config wants 32 x 8"},
        {"{\"head_dim\": 8}",
         "tensor 'model.layers.0.self_attn.q_proj.weight' is 8 x 8, and the config wants 16 x 8"},
        {"{\"num_key_value_heads\": 2}",
         "tensor 'model.layers.0.self_attn.k_proj.weight' is 4 x 8, and the config wants 8 x 8"},
        {"{\"attention_bias\": true}", "tensor 'model.layers.0.self_attn.q_proj.bias' is missing"},
        {"{\"mlp_bias\": true}", "tensor 'model.layers.0.mlp.gate_proj.bias' is missing"},
        {"{\"model_type\": \"qwen3\"}",
         "tensor 'model.layers.0.self_attn.q_norm.weight' is missing"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 1e-300}}",
         "RoPE turns dimension 0 by 1e+300 a position, which over 64 positions is no angle"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_config(cases[i].change);
        if (strncmp(cases[i].reason, "RoPE", 4) == 0)
            refused(NB_DATA, cases[i].reason);
        else
            refused_unread(NB_DATA, cases[i].reason);
    }
}

/* A layer that is named but not there in full is found by its tensors; names that only look like
 * layers are no layers. */
static void layers_are_counted_by_their_names(void **state)
{
    (void)state;
    base_model();
    add("model.layers.7.self_attn.rotary_emb.inv_freq", 4, 0);
    write_tensors();
    refused_unread(NB_DATA, "the config has 2 layers, and the tensors have 8");
    base_tensors();
    add("model.layers.99999999999999999999.weight", 4, 0);
    add("model.layers.x.weight", 4, 0);
    add("model.layers.", 4, 0);
    write_tensors();
    nb_err err;
    nb_model m;
    nb_store *store;
    assert_int_equal(open_m(&m, &store, &err), NB_OK); /* past counting: not a layer's number */
    nb_model_close(&m);
    nb_store_close(store);
}

/* H31: buffers and other people's tensors do no harm. */
static void tensors_that_nobody_asks_for_are_harmless(void **state)
{
    (void)state;
    base_model();
    add("model.layers.0.self_attn.rotary_emb.inv_freq", 4, 0);
    add("something.else", 3, 5);
    write_tensors();
    accepted();
}

/* But a bias or a head norm belongs to a network that computes something else. */
static void tensors_that_would_change_the_numbers_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t n;
    } extra[] = {{"model.layers.1.self_attn.q_proj.bias", 8},
                 {"model.layers.0.mlp.down_proj.bias", 8},
                 {"model.layers.1.self_attn.k_norm.weight", 4},
                 {"lm_head.bias", 12}};
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) {
        base_model();
        add(extra[i].name, extra[i].n, 0);
        write_tensors();
        char reason[200];
        snprintf(reason, sizeof reason, "tensor '%s' is there, and llama by this config has none",
                 extra[i].name);
        refused(NB_UNSUPPORTED, reason);
        find(extra[i].name)->zero = true; /* some writers add biases of zeros everywhere */
        write_tensors();
        accepted();
        for (int64_t k = 1; k <= extra[i].n; k++) {
            find(extra[i].name)->other = k;
            write_tensors();
            refused(NB_UNSUPPORTED, reason);
        }
        *find(extra[i].name) = (tensor){.dtype = "F32", .shape = {3, 2}, .n_dims = 2, .zero = true};
        snprintf(tensors[n_tensors - 1].name, sizeof tensors->name, "%s", extra[i].name);
        for (int64_t k = 1; k <= 6; k++) { /* whatever its shape */
            tensors[n_tensors - 1].other = k;
            write_tensors();
            refused(NB_UNSUPPORTED, reason);
        }
    }
}

/* ---- the same model from both containers ---- */

/* GGUF's divisors of RoPE have to be divisors. */
static void rope_factors_must_be_positive(void **state)
{
    (void)state;
    base_model();
    nb_err err;
    nb_store *store;
    nb_config c;
    must(nb_store_open(&store, scratch_path("m"), &err), &err);
    must(nb_config_read(store, &c, &err), &err);
    static const struct {
        float value;
        int64_t n;
        const char *reason;
    } cases[] = {
        {2, 2, NULL},
        {0, 2, "tensor 'rope_freqs.weight' has 0 at 1"},
        {-1, 2, "tensor 'rope_freqs.weight' has -1 at 1"},
        {NAN, 2, "tensor 'rope_freqs.weight' has nan at 1"},
        {1e-30f, 2,
         "RoPE turns dimension 1 by 1e+28 a position, which over 64 positions is no angle"},
        {2, 4, "tensor 'rope_freqs.weight' is 1 x 4, and the config wants 1 x 2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int64_t n = nb_store_n_weights(store);
        nb_weight *plan = calloc((size_t)n + 1, sizeof *plan);
        for (int64_t w = 0; w < n; w++)
            plan[w] = *nb_store_weight(store, w);
        plan[n] = (nb_weight){.name = "rope_freqs.weight",
                              .n_dims = 1,
                              .dims = {cases[i].n},
                              .n_rows = 1,
                              .n_cols = cases[i].n,
                              .fmt = &nb_format_f32};
        nb_buf kv = {0};
        int64_t n_kv = 0;
        nb_sink *sink;
        must(nb_config_to_gguf(&c, &kv, &n_kv, &err), &err);
        must(nb_sink_open_gguf(&sink, scratch_path("r.gguf"), true, plan, n + 1, &kv, n_kv, 2, 1,
                               &err),
             &err);
        nb_loaded loaded = {0};
        for (int64_t w = 0; w < n; w++) {
            must(nb_store_read(store, nb_store_weight(store, w), &loaded, &err), &err);
            must(nb_sink_put(sink, w, &loaded.mat, &err), &err);
        }
        float factors[4] = {1, cases[i].value, 1, 1};
        const nb_mat m = {.fmt = &nb_format_f32,
                          .n_rows = 1,
                          .n_cols = cases[i].n,
                          .codes = factors,
                          .row_bytes = 4 * cases[i].n};
        must(nb_sink_put(sink, n, &m, &err), &err);
        must(nb_sink_commit(sink, &err), &err);
        nb_loaded_free(&loaded);
        nb_buf_free(&kv);
        free(plan);
        nb_store *gguf;
        nb_model model;
        must(nb_store_open(&gguf, scratch_path("r.gguf"), &err), &err);
        const nb_status s =
            nb_model_open(&model, gguf, &(nb_model_options){NB_COMPUTE_AUTO, 0}, pool, &err);
        if (cases[i].reason == NULL) {
            must(s, &err);
            nb_model_close(&model);
        } else {
            char message[1200];
            snprintf(message, sizeof message, "%s: %s", scratch_path("r.gguf"), cases[i].reason);
            assert_int_equal(s, NB_DATA);
            assert_string_equal(err.text, message);
        }
        nb_store_close(gguf);
    }
    nb_store_close(store);
}

/* Opening and making the buffers fail cleanly at every read. Allocations: test_forward. */
static void opening_survives_every_read_failure(void **state)
{
    (void)state;
    base_model();
    const int64_t before = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_err err;
        nb_model m;
        nb_store *store;
        nb_file_fail_at(n, EIO);
        const nb_status s = open_m(&m, &store, &err);
        nb_file_fail_at(0, 0);
        if (s == NB_OK) {
            nb_model_close(&m);
            nb_store_close(store);
            break;
        }
        assert_int_equal(s, NB_IO);
        nb_store_close(store);
        assert_int_equal(nb_alloc_live(), before);
    }
    assert_true(n > n_tensors);
}

static void making_buffers_survives_every_allocation_failure(void **state)
{
    (void)state;
    base_model();
    nb_err err;
    nb_model m;
    nb_store *store;
    must(open_m(&m, &store, &err), &err);
    nb_kernels k;
    nb_kernels_init(&k, NB_ISA_ALL);
    const int64_t before = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_work w;
        nb_alloc_fail_at(n);
        const nb_status s = nb_work_init(&w, &m, &k, pool, 16, &err);
        nb_alloc_fail_at(0);
        nb_work_free(&w);
        assert_int_equal(nb_alloc_live(), before);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
        assert_memory_equal(err.text, "buffers for steps of 16 tokens: ", 32);
    }
    assert_int_equal(n, 16);
    nb_model_close(&m);
    nb_store_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_fits_together_is_opened),
        cmocka_unit_test(each_tensor_must_be_there_in_its_shape),
        cmocka_unit_test(config_and_tensors_must_agree),
        cmocka_unit_test(layers_are_counted_by_their_names),
        cmocka_unit_test(tensors_that_nobody_asks_for_are_harmless),
        cmocka_unit_test(tensors_that_would_change_the_numbers_are_refused),
        cmocka_unit_test(rope_factors_must_be_positive),
        cmocka_unit_test(opening_survives_every_read_failure),
        cmocka_unit_test(making_buffers_survives_every_allocation_failure),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
