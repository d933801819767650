/* A config that is written means, read again, what it was; what has no words is refused. */
#include "model/config.h"

#include "support/golden.h"
#include "support/gguf_bytes.h"
#include "support/scratch.h"
#include "support/st_bytes.h"

#include <string.h>

/* The config that a folder with this config.json has. */
static nb_status read_folder(const char *json, nb_config *out, nb_err *err)
{
    scratch_text("folder/config.json", json);
    nb_store *store;
    assert_int_equal(nb_store_open(&store, scratch_path("folder"), err), NB_OK);
    const nb_status s = nb_config_read(store, out, err);
    nb_store_close(store);
    return s;
}

/* The config that a GGUF with these keys has; some tensors stand for what config_read looks for. */
static nb_status read_gguf(const nb_buf *kv, int64_t n_kv, const nb_config *like, nb_config *out,
                           nb_err *err)
{
    gguf_bytes g = {.n_kv = (uint64_t)n_kv};
    gb_raw(&g.kv, kv->data, kv->len);
    static const float zeros[64] = {0};
    static float embed[100 * 64];
    gb_tensor(&g, "token_embd.weight", (uint64_t)like->d_model, (uint64_t)like->vocab_size, 0,
              embed, (size_t)(like->d_model * like->vocab_size) * 4);
    if (!like->tied_head)
        gb_tensor(&g, "output.weight", 4, 1, 0, zeros, 16);
    if (like->qkv_bias)
        gb_tensor(&g, "blk.0.attn_q.bias", (uint64_t)(like->n_heads * like->head_dim), 0, 0, zeros,
                  (size_t)(like->n_heads * like->head_dim) * 4);
    if (like->o_bias)
        gb_tensor(&g, "blk.0.attn_output.bias", 4, 0, 0, zeros, 16);
    if (like->mlp_bias)
        gb_tensor(&g, "blk.0.ffn_down.bias", 4, 0, 0, zeros, 16);
    nb_buf file = {0};
    gb_finish(&g, &file);
    scratch_write("m.gguf", file.data, file.len);
    nb_store *store;
    if (nb_store_open(&store, scratch_path("m.gguf"), err) != NB_OK)
        fail_msg("%s", err->text);
    const nb_status s = nb_config_read(store, out, err);
    nb_store_close(store);
    nb_buf_free(&file);
    gb_free(&g);
    return s;
}

static void assert_same_rope(const nb_rope *a, const nb_rope *b)
{
    assert_int_equal(a->type, b->type);
    assert_true(a->base == b->base && a->factor == b->factor);
    if (a->type == NB_ROPE_LLAMA3 || a->type == NB_ROPE_YARN) /* others do not use it */
        assert_int_equal(a->original_n_ctx, b->original_n_ctx);
    assert_true(a->low_freq_factor == b->low_freq_factor);
    assert_true(a->high_freq_factor == b->high_freq_factor);
    assert_true(a->beta_fast == b->beta_fast && a->beta_slow == b->beta_slow);
    assert_true(a->attention_factor == b->attention_factor);
    assert_true(a->mscale == b->mscale && a->mscale_all_dim == b->mscale_all_dim);
    assert_int_equal(a->truncate, b->truncate);
}

static void assert_same(const nb_config *a, const nb_config *b)
{
    assert_ptr_equal(a->arch, b->arch);
    assert_int_equal(a->n_layers, b->n_layers);
    assert_int_equal(a->n_heads, b->n_heads);
    assert_int_equal(a->n_kv_heads, b->n_kv_heads);
    assert_int_equal(a->head_dim, b->head_dim);
    assert_int_equal(a->d_model, b->d_model);
    assert_int_equal(a->d_ff, b->d_ff);
    assert_int_equal(a->vocab_size, b->vocab_size);
    assert_int_equal(a->n_ctx, b->n_ctx);
    assert_int_equal(a->rot_dim, b->rot_dim);
    assert_int_equal(a->sliding_window, b->sliding_window);
    assert_true(a->rms_eps == b->rms_eps);
    assert_int_equal(a->tied_head, b->tied_head);
    assert_int_equal(a->qkv_bias, b->qkv_bias);
    assert_int_equal(a->o_bias, b->o_bias);
    assert_int_equal(a->mlp_bias, b->mlp_bias);
    assert_int_equal(a->qk_norm, b->qk_norm);
    assert_same_rope(&a->rope, &b->rope);
}

#define SIZES                                                                                      \
    "\"num_hidden_layers\": 2, \"hidden_size\": 64, \"intermediate_size\": 96, "                   \
    "\"vocab_size\": 100, \"num_attention_heads\": 4, \"num_key_value_heads\": 2"

static const struct {
    const char *json;
    bool gguf; /* GGUF can say it, too */
} configs[] = {
    {"{\"model_type\": \"llama\", " SIZES "}", true},
    {"{\"model_type\": \"llama\", " SIZES ", \"rms_norm_eps\": 1e-5, \"rope_theta\": 100000.0, "
     "\"tie_word_embeddings\": true, \"bos_token_id\": 1, \"eos_token_id\": 2}",
     true},
    {"{\"model_type\": \"llama\", " SIZES ", \"attention_bias\": true, \"mlp_bias\": true}", true},
    {"{\"model_type\": \"llama\", " SIZES ", \"head_dim\": 32}", true},
    {"{\"model_type\": \"llama\", " SIZES ", \"rope_scaling\": {\"rope_type\": \"linear\", "
     "\"factor\": 4.0}}",
     true},
    {"{\"model_type\": \"llama\", " SIZES ", \"rope_scaling\": {\"rope_type\": \"dynamic\", "
     "\"factor\": 2.0}}",
     false},
    {"{\"model_type\": \"llama\", " SIZES ", \"rope_scaling\": {\"rope_type\": \"llama3\", "
     "\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "
     "\"original_max_position_embeddings\": 8192}}",
     false},                                                                      /* in a tensor */
    {"{\"model_type\": \"mistral\", " SIZES ", \"sliding_window\": 128}", false}, /* as llama */
    {"{\"model_type\": \"qwen2\", " SIZES ", \"max_position_embeddings\": 512}", true},
    {"{\"model_type\": \"qwen2\", " SIZES ", \"use_sliding_window\": true, \"sliding_window\": 64, "
     "\"max_window_layers\": 0}",
     true},
    {"{\"model_type\": \"qwen2\", " SIZES ", \"rope_scaling\": {\"rope_type\": \"yarn\", "
     "\"factor\": 4.0, \"original_max_position_embeddings\": 32768}}",
     true},
    {"{\"model_type\": \"qwen2\", " SIZES ", \"rope_scaling\": {\"rope_type\": \"yarn\", "
     "\"factor\": 4.0, \"original_max_position_embeddings\": 32768, \"beta_fast\": 16, "
     "\"beta_slow\": 2}}",
     true},
    {"{\"model_type\": \"qwen2\", " SIZES ", \"rope_scaling\": {\"rope_type\": \"yarn\", "
     "\"factor\": 4.0, \"original_max_position_embeddings\": 32768, \"truncate\": false}}",
     false},
    {"{\"model_type\": \"qwen2\", " SIZES ", \"rope_scaling\": {\"rope_type\": \"yarn\", "
     "\"factor\": 4.0, \"original_max_position_embeddings\": 32768, \"attention_factor\": 1.5}}",
     false},
    {"{\"model_type\": \"qwen3\", " SIZES ", \"head_dim\": 16, \"rope_theta\": 1000000}", true},
};
#define N_CONFIGS (sizeof configs / sizeof *configs)

static void as_json_and_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CONFIGS; i++) {
        nb_config was, is;
        nb_err err = {0};
        if (read_folder(configs[i].json, &was, &err) != NB_OK)
            fail_msg("%s", err.text);
        json_t *j = NULL;
        if (nb_config_to_json(&was, &j, &err) != NB_OK)
            fail_msg("config %zu: %s", i, err.text);
        char *text = json_dumps(j, 0);
        if (read_folder(text, &is, &err) != NB_OK)
            fail_msg("config %zu: %s", i, err.text);
        assert_same(&was, &is);
        assert_int_equal(was.bos, is.bos);
        assert_int_equal(was.eos, is.eos);
        assert_string_equal(
            json_string_value(json_array_get(json_object_get(j, "architectures"), 0)),
            was.arch->hf_class);
        free(text);
        json_decref(j);
    }
}

static void as_gguf_and_back(void **state)
{
    (void)state;
    int n = 0;
    for (size_t i = 0; i < N_CONFIGS; i++) {
        nb_config was, is;
        nb_err err = {0};
        assert_int_equal(read_folder(configs[i].json, &was, &err), NB_OK);
        if (!configs[i].gguf)
            continue;
        nb_buf kv = {0};
        int64_t n_kv = 0;
        if (nb_config_to_gguf(&was, &kv, &n_kv, &err) != NB_OK)
            fail_msg("config %zu: %s", i, err.text);
        if (read_gguf(&kv, n_kv, &was, &is, &err) != NB_OK)
            fail_msg("config %zu: %s", i, err.text);
        assert_same(&was, &is);
        nb_buf_free(&kv);
        n++;
    }
    assert_true(n > 8);
}

/* GGUF calls mistral llama; only its window tells which of the two a folder has to be. */
static void a_window_makes_a_mistral(void **state)
{
    (void)state;
    nb_config was, is;
    nb_err err = {0};
    nb_buf kv = {0};
    int64_t n_kv = 0;
    const char *json = "{\"model_type\": \"mistral\", " SIZES ", \"sliding_window\": 128}";
    assert_int_equal(read_folder(json, &was, &err), NB_OK);
    assert_int_equal(nb_config_to_gguf(&was, &kv, &n_kv, &err), NB_OK);
    assert_int_equal(read_gguf(&kv, n_kv, &was, &is, &err), NB_OK);
    assert_string_equal(is.arch->name, "llama");
    json_t *j;
    assert_int_equal(nb_config_to_json(&is, &j, &err), NB_OK);
    assert_string_equal(json_string_value(json_object_get(j, "model_type")), "mistral");
    assert_int_equal(json_integer_value(json_object_get(j, "sliding_window")), 128);
    json_decref(j);
    nb_buf_free(&kv);
}

static void numbers_look_as_people_write_them(void **state)
{
    (void)state;
    nb_config c;
    nb_err err = {0};
    assert_int_equal(read_folder(configs[0].json, &c, &err), NB_OK);
    static const double epsilons[] = {1e-5, 1e-6, 5e-6, 1.5e-5};
    for (size_t i = 0; i < sizeof epsilons / sizeof *epsilons; i++) {
        c.rms_eps = (float)epsilons[i];
        json_t *j;
        assert_int_equal(nb_config_to_json(&c, &j, &err), NB_OK);
        assert_true(json_real_value(json_object_get(j, "rms_norm_eps")) == epsilons[i]);
        json_decref(j);
    }
}

static void what_json_cannot_say(void **state)
{
    (void)state;
    nb_config c, good;
    nb_err err = {0};
    json_t *j = NULL;
    assert_int_equal(read_folder(configs[0].json, &good, &err), NB_OK);
    c = good;
    c.qkv_bias = true; /* on q, k, v, and not on o */
    assert_int_equal(nb_config_to_json(&c, &j, &err), NB_UNSUPPORTED);
    assert_null(j);
    c = good;
    c.sliding_window = 5;
    c.qkv_bias = c.o_bias = true; /* mistral has no biases */
    assert_int_equal(nb_config_to_json(&c, &j, &err), NB_UNSUPPORTED);
    c = good;
    c.rope.type = NB_ROPE_FACTORS;
    assert_int_equal(nb_config_to_json(&c, &j, &err), NB_UNSUPPORTED);
    assert_non_null(strstr(err.text, "RoPE"));
    assert_int_equal(read_folder(configs[8].json, &c, &err), NB_OK);
    c.qkv_bias = false; /* qwen2 always has them */
    assert_int_equal(nb_config_to_json(&c, &j, &err), NB_UNSUPPORTED);
}

/* And then nothing was appended. */
static void what_gguf_cannot_say(void **state)
{
    (void)state;
    static const struct {
        size_t config;
        const char *reason;
    } cases[] = {{5, "dynamic"}, {12, "truncate"}, {13, "attention_factor"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_config c;
        nb_err err = {0};
        nb_buf kv = {0};
        int64_t n_kv = 7;
        assert_int_equal(nb_buf_text(&kv, "before", &err), NB_OK);
        assert_int_equal(read_folder(configs[cases[i].config].json, &c, &err), NB_OK);
        assert_int_equal(nb_config_to_gguf(&c, &kv, &n_kv, &err), NB_UNSUPPORTED);
        if (strstr(err.text, cases[i].reason) == NULL)
            fail_msg("'%s' is not in: %s", cases[i].reason, err.text);
        assert_int_equal(kv.len, 6);
        assert_int_equal(n_kv, 7);
        nb_buf_free(&kv);
    }
}

static void out_of_memory(void **state)
{
    (void)state;
    nb_config c;
    nb_err err = {0};
    assert_int_equal(read_folder(configs[10].json, &c, &err), NB_OK);
    const int64_t live = nb_alloc_live();
    int n_failed = 0;
    for (int64_t n = 1;; n++) {
        nb_buf kv = {0};
        int64_t n_kv = 0;
        nb_alloc_fail_at(n);
        const nb_status s = nb_config_to_gguf(&c, &kv, &n_kv, &err);
        nb_alloc_fail_at(0);
        nb_buf_free(&kv);
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
        assert_int_equal(n_kv, 0);
        n_failed++;
    }
    assert_true(n_failed > 0);
}

static int setup(void **state)
{
    if (scratch_setup(state) != 0)
        return -1;
    scratch_mkdir("folder");
    st_write("folder/model.safetensors",
             "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", NULL, 8);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_json_and_back),
        cmocka_unit_test(as_gguf_and_back),
        cmocka_unit_test(a_window_makes_a_mistral),
        cmocka_unit_test(numbers_look_as_people_write_them),
        cmocka_unit_test(what_json_cannot_say),
        cmocka_unit_test(what_gguf_cannot_say),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, setup, scratch_teardown);
}
