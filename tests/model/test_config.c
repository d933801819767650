/* config.json: what is read, and what is refused, naming the key and the number. One base that is
 * right, and one change at a time. */
#include "model/config_check.h"
#include "support/scratch.h"

typedef struct {
    const char *key, *value; /* value: raw JSON; NULL: the key is left out */
} pair;

static const pair base[] = {
    {"model_type", "\"llama\""},     {"architectures", "[\"LlamaForCausalLM\"]"},
    {"hidden_act", "\"silu\""},      {"hidden_size", "64"},
    {"intermediate_size", "128"},    {"num_hidden_layers", "2"},
    {"num_attention_heads", "4"},    {"num_key_value_heads", "2"},
    {"vocab_size", "100"},           {"max_position_embeddings", "256"},
    {"rms_norm_eps", "1e-05"},       {"rope_theta", "10000.0"},
    {"tie_word_embeddings", "true"}, {"bos_token_id", "1"},
    {"eos_token_id", "2"},
};
#define N_BASE (sizeof base / sizeof *base)

/* config.json from the base with some keys changed, added or left out. */
static void write_json(const pair *changes, size_t n)
{
    char text[4096];
    size_t len = 0;
    const char *comma = "{";
#define PUT(k, v)                                                                                  \
    do {                                                                                           \
        len += (size_t)snprintf(text + len, sizeof text - len, "%s\n\"%s\": %s", comma, (k), (v)); \
        assert_true(len < sizeof text);                                                            \
        comma = ",";                                                                               \
    } while (0)
    for (size_t i = 0; i < N_BASE; i++) {
        bool changed = false;
        for (size_t c = 0; c < n; c++)
            changed = changed || strcmp(base[i].key, changes[c].key) == 0;
        if (!changed)
            PUT(base[i].key, base[i].value);
    }
    for (size_t c = 0; c < n; c++) {
        if (changes[c].value != NULL)
            PUT(changes[c].key, changes[c].value);
    }
#undef PUT
    len += (size_t)snprintf(text + len, sizeof text - len, "\n}\n");
    scratch_write("hf/config.json", text, len);
}

static nb_config read_json(const pair *changes, size_t n)
{
    nb_err err;
    nb_config c;
    write_json(changes, n);
    if (read_config(scratch_path("hf"), &c, &err) != NB_OK)
        fail_msg("%s", err.text);
    return c;
}

static nb_config with(const char *key, const char *value)
{
    return read_json(&(pair){key, value}, 1);
}

static void refused(const pair *changes, size_t n, nb_status want, const char *reason)
{
    nb_err err;
    nb_config c = {0}, before = c;
    write_json(changes, n);
    const nb_status s = read_config(scratch_path("hf"), &c, &err);
    check_refusal(changes[0].key, s, want, &err, scratch_path("hf/config.json"), reason);
    assert_memory_equal(&c, &before, sizeof c); /* the output is as it was */
}

static void a_config_is_read(void **state)
{
    (void)state;
    nb_config c = read_json(NULL, 0);
    assert_ptr_equal(c.arch, nb_arch_by_hf("llama"));
    assert_int_equal(c.n_layers, 2);
    assert_int_equal(c.n_heads, 4);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.rot_dim, 16);
    assert_int_equal(c.d_model, 64);
    assert_int_equal(c.d_ff, 128);
    assert_int_equal(c.vocab_size, 100);
    assert_int_equal(c.n_ctx, 256);
    assert_int_equal(c.sliding_window, 0);
    assert_true(c.rms_eps == 1e-5f && c.rope.base == 10000 && c.rope.type == NB_ROPE_DEFAULT);
    assert_true(c.tied_head && !c.qkv_bias && !c.o_bias && !c.mlp_bias && !c.qk_norm);
    assert_int_equal(c.bos, 1);
    assert_int_equal(c.eos, 2);
    assert_string_equal(c.warning, "");
    assert_int_equal(nb_config_kv_bytes(&c, NB_KV_F16), 2 * 2 * 2 * 16 * 2);
}

static void missing_keys_have_the_defaults_of_the_class(void **state)
{
    (void)state;
    static const pair fewer[] = {{"num_key_value_heads", NULL}, {"rms_norm_eps", NULL},
                                 {"rope_theta", NULL},          {"tie_word_embeddings", NULL},
                                 {"bos_token_id", NULL},        {"eos_token_id", NULL},
                                 {"hidden_act", NULL},          {"max_position_embeddings", NULL},
                                 {"model_type", NULL}};
    nb_config c = read_json(fewer, sizeof fewer / sizeof *fewer);
    assert_int_equal(c.n_kv_heads, 4);
    assert_true(c.rms_eps == 1e-6f && c.rope.base == 10000);
    assert_false(c.tied_head);
    assert_int_equal(c.n_ctx, 2048);
    assert_int_equal(c.bos, -1);
    assert_int_equal(c.eos, -1);
    assert_string_equal(c.warning, "");
    assert_int_equal(with("num_key_value_heads", "null").n_kv_heads, 4);
    assert_int_equal(with("head_dim", "null").head_dim, 16);
    assert_int_equal(with("head_dim", "32").head_dim, 32);
    assert_int_equal(with("partial_rotary_factor", "0.5").rot_dim, 8);
    assert_true(with("hidden_act", "\"swish\"").d_ff == 128);
    assert_true(with("auto_map", "{\"AutoConfig\": \"run.Me\"}").d_ff == 128); /* ignored */
}

static void architectures_have_their_flags(void **state)
{
    (void)state;
    nb_config c = with("attention_bias", "true");
    assert_true(c.qkv_bias && c.o_bias && !c.mlp_bias);
    assert_true(with("mlp_bias", "true").mlp_bias);
    const pair qwen2[] = {{"model_type", "\"qwen2\""}, {"sliding_window", "7"}};
    c = read_json(qwen2, 2);
    assert_true(c.qkv_bias && !c.o_bias && !c.qk_norm && c.sliding_window == 0);
    const pair sliding[] = {{"model_type", "\"qwen2\""},
                            {"sliding_window", "7"},
                            {"use_sliding_window", "true"},
                            {"max_window_layers", "0"}};
    assert_int_equal(read_json(sliding, 4).sliding_window, 7);
    const pair qwen3[] = {{"model_type", "\"qwen3\""}};
    c = read_json(qwen3, 1);
    assert_true(c.qk_norm && !c.qkv_bias);
    const pair mistral[] = {{"model_type", "\"mistral\""}, {"sliding_window", "7"}};
    assert_int_equal(read_json(mistral, 2).sliding_window, 7);
    const pair null_window[] = {{"model_type", "\"mistral\""}, {"sliding_window", "null"}};
    assert_int_equal(read_json(null_window, 2).sliding_window, 0);
    const pair by_class[] = {{"model_type", NULL}, {"architectures", "[\"Qwen3ForCausalLM\"]"}};
    assert_true(read_json(by_class, 2).qk_norm);
}

/* H10, H35: every size as everything that is no size. */
static void sizes_are_positive_integers(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        bool required;
        int max;
    } keys[] = {{"num_hidden_layers", true, 4096},    {"hidden_size", true, 1 << 20},
                {"intermediate_size", true, 1 << 22}, {"vocab_size", true, 1 << 24},
                {"num_attention_heads", true, 4096},  {"num_key_value_heads", false, 4096},
                {"head_dim", false, 1 << 20},         {"max_position_embeddings", false, 1 << 27}};
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        const char *key = keys[k].key;
        char reason[300];
        static const struct {
            const char *value, *is;
        } types[] = {{"\"4\"", "a string"}, {"4.0", "a number with a fraction"},
                     {"true", "a boolean"}, {"[4]", "an array"},
                     {"{}", "an object"},   {"1e300", "a number with a fraction"}};
        for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
            snprintf(reason, sizeof reason, "key '%s' is %s, not an integer", key, types[i].is);
            refused(&(pair){key, types[i].value}, 1, NB_DATA, reason);
        }
        static const char *const outside[] = {"0", "-1", "2147483648", "4294967360",
                                              "9223372036854775807"};
        for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
            snprintf(reason, sizeof reason, "key '%s' is %s, outside 1 to %d", key, outside[i],
                     keys[k].max);
            refused(&(pair){key, outside[i]}, 1, NB_DATA, reason);
        }
        if (keys[k].required) {
            snprintf(reason, sizeof reason, "key '%s' is missing", key);
            refused(&(pair){key, NULL}, 1, NB_DATA, reason);
            refused(&(pair){key, "null"}, 1, NB_DATA, reason);
        }
        /* What no integer type holds: 2^64 + 64. */
        nb_err err;
        nb_config c;
        write_json(&(pair){key, "18446744073709551680"}, 1);
        assert_int_equal(read_config(scratch_path("hf"), &c, &err), NB_DATA);
        assert_non_null(strstr(err.text, key));
    }
}

/* H11 */
static void heads_must_divide(void **state)
{
    (void)state;
    refused(&(pair){"num_key_value_heads", "3"}, 1, NB_DATA,
            "4 attention heads cannot share 3 key-value heads");
    refused(&(pair){"num_key_value_heads", "8"}, 1, NB_DATA,
            "4 attention heads cannot share 8 key-value heads");
    refused(&(pair){"num_attention_heads", "6"}, 1, NB_DATA,
            "hidden_size 64 is no multiple of num_attention_heads 6");
    const pair many[] = {{"num_attention_heads", "64"}, {"num_key_value_heads", "1"}};
    refused(many, 2, NB_UNSUPPORTED, "64 query heads per key-value head; at most 48 are supported");
    refused(&(pair){"head_dim", "1024"}, 1, NB_UNSUPPORTED,
            "heads of 1024 dimensions; at most 512 are supported");
}

/* H13 */
static void constants_must_make_sense(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value, *reason;
    } cases[] = {
        {"rms_norm_eps", "0", "key 'rms_norm_eps' is 0: a positive, finite number is needed"},
        {"rms_norm_eps", "-1e-5",
         "key 'rms_norm_eps' is -1e-05: a positive, finite number is needed"},
        {"rms_norm_eps", "1e-60", "key 'rms_norm_eps' is 0: a positive, finite number is needed"},
        {"rms_norm_eps", "1e300", "key 'rms_norm_eps' is inf: a positive, finite number is needed"},
        {"rms_norm_eps", "\"1e-5\"", "key 'rms_norm_eps' is a string, not a number"},
        {"rope_theta", "0", "key 'rope_theta' is 0: a positive, finite number is needed"},
        {"rope_theta", "-10000.0",
         "key 'rope_theta' is -10000: a positive, finite number is needed"},
        {"rope_theta", "[]", "key 'rope_theta' is an array, not a number"},
        {"partial_rotary_factor", "0", "key 'partial_rotary_factor' is 0, outside 0 to 1"},
        {"partial_rotary_factor", "1.5", "key 'partial_rotary_factor' is 1.5, outside 0 to 1"},
        {"partial_rotary_factor", "0.45",
         "7 rotary dimensions: an even number up to the head's 16 is needed"},
        {"partial_rotary_factor", "0.01",
         "0 rotary dimensions: an even number up to the head's 16 is needed"},
        {"head_dim", "17", "17 rotary dimensions: an even number up to the head's 17 is needed"},
        {"tie_word_embeddings", "1", "key 'tie_word_embeddings' is an integer, not a boolean"},
        {"attention_bias", "\"no\"", "key 'attention_bias' is a string, not a boolean"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(&(pair){cases[i].key, cases[i].value}, 1, NB_DATA, cases[i].reason);
}

/* H37: by name, and never guessed. */
static void the_unknown_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value, *reason;
    } cases[] = {
        {"model_type", "\"gpt2\"", "model type 'gpt2' is not supported"},
        {"model_type", "\"LLAMA\"", "model type 'LLAMA' is not supported"},
        {"model_type", "\"\"", "model type '' is not supported"},
        {"hidden_act", "\"gelu\"", "hidden_act 'gelu' is not supported for llama"},
        {"hidden_act", "\"gelu_pytorch_tanh\"",
         "hidden_act 'gelu_pytorch_tanh' is not supported for llama"},
        {"rope_scaling", "{\"rope_type\": \"longrope\", \"factor\": 2}",
         "rope_scaling: rope_type 'longrope' is not supported"},
        {"rope_scaling", "{\"type\": \"su\", \"factor\": 2}",
         "rope_scaling: rope_type 'su' is not supported"},
        {"rope_scaling", "{\"type\": \"mrope\"}",
         "rope_scaling: rope_type 'mrope' is not supported"},
        {"rope_parameters", "{\"rope_type\": \"ntk\", \"rope_theta\": 1e4}",
         "rope_parameters: rope_type 'ntk' is not supported"},
        {"rope_parameters", "{\"full_attention\": {\"rope_theta\": 1e4}}",
         "rope_parameters has an entry for 'full_attention'; one RoPE for all layers is supported"},
        {"layer_types", "[\"full_attention\", \"sliding_attention\"]",
         "layer_types[1] is 'sliding_attention', which is not supported here"},
        {"layer_types", "[\"full_attention\", 3]",
         "layer_types[1] is 'not a string', which is not supported here"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(&(pair){cases[i].key, cases[i].value}, 1, NB_UNSUPPORTED, cases[i].reason);
    refused(&(pair){"model_type", "5"}, 1, NB_DATA, "key 'model_type' is an integer, not a string");
    const pair nothing[] = {{"model_type", NULL}, {"architectures", NULL}};
    refused(nothing, 2, NB_DATA, "keys 'model_type' and 'architectures' are missing");
    const pair by_class[] = {{"model_type", NULL}, {"architectures", "[\"FooForCausalLM\"]"}};
    refused(by_class, 2, NB_UNSUPPORTED, "model type 'FooForCausalLM' is not supported");
    const pair some_layers[] = {{"model_type", "\"qwen2\""},
                                {"sliding_window", "7"},
                                {"use_sliding_window", "true"},
                                {"max_window_layers", "1"}};
    refused(some_layers, 4, NB_UNSUPPORTED, "a sliding window on layers 1 and up only");
}

static void rope_is_read_in_both_spellings(void **state)
{
    (void)state;
    nb_config c = with("rope_parameters", "{\"rope_theta\": 5e5}");
    assert_true(c.rope.type == NB_ROPE_DEFAULT && c.rope.base == 5e5);
    c = with("rope_parameters", "{\"rope_theta\": 5e5, \"rope_type\": \"default\"}");
    assert_true(c.rope.type == NB_ROPE_DEFAULT && c.rope.base == 5e5);
    c = with("rope_parameters", "{\"rope_theta\": 5e5, \"partial_rotary_factor\": 0.25}");
    assert_int_equal(c.rot_dim, 4);
    c = with("rope_scaling", "{\"type\": \"linear\", \"factor\": 2}");
    assert_true(c.rope.type == NB_ROPE_LINEAR && c.rope.factor == 2);
    c = with("rope_scaling", "{\"rope_type\": \"dynamic\", \"factor\": 4.5}");
    assert_true(c.rope.type == NB_ROPE_DYNAMIC && c.rope.factor == 4.5);
    c = with("rope_scaling", "null");
    assert_int_equal(c.rope.type, NB_ROPE_DEFAULT);
    c = with("rope_scaling", "{}");
    assert_int_equal(c.rope.type, NB_ROPE_DEFAULT);
    c = with("rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1,"
                             " \"high_freq_factor\": 4, \"original_max_position_embeddings\": 64}");
    assert_int_equal(c.rope.type, NB_ROPE_LLAMA3);
    assert_true(c.rope.low_freq_factor == 1 && c.rope.high_freq_factor == 4);
    assert_int_equal(c.rope.original_n_ctx, 64);
    c = with("rope_parameters",
             "{\"rope_theta\": 1e6, \"rope_type\": \"yarn\", \"factor\": 4, \"beta_fast\": 16,"
             " \"beta_slow\": 2, \"attention_factor\": 1.25, \"truncate\": false}");
    assert_int_equal(c.rope.type, NB_ROPE_YARN);
    assert_true(c.rope.beta_fast == 16 && c.rope.beta_slow == 2 && !c.rope.truncate);
    assert_true(c.rope.attention_factor == 1.25 && c.rope.base == 1e6);
    assert_int_equal(c.rope.original_n_ctx, 256); /* max_position_embeddings */
    c = with("rope_scaling", "{\"type\": \"yarn\", \"factor\": 4}");
    assert_true(c.rope.beta_fast == 32 && c.rope.beta_slow == 1 && c.rope.truncate);
    const pair outside[] = {{"rope_scaling", "{\"type\": \"yarn\", \"factor\": 4}"},
                            {"original_max_position_embeddings", "64"}};
    assert_int_equal(read_json(outside, 2).rope.original_n_ctx, 64);
    const pair both[] = {{"rope_scaling", "{\"rope_type\": \"linear\", \"factor\": 2}"},
                         {"rope_parameters", "{\"rope_type\": \"linear\", \"factor\": 2}"}};
    assert_int_equal(read_json(both, 2).rope.type, NB_ROPE_LINEAR);
}

static void rope_that_is_half_said_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value, *reason;
    } cases[] = {
        {"rope_scaling", "\"linear\"", "key 'rope_scaling' is a string, not an object"},
        {"rope_scaling", "{\"factor\": 2}", "rope_scaling: key 'rope_type' is missing"},
        {"rope_parameters", "{\"factor\": 2}", "rope_parameters: key 'rope_type' is missing"},
        {"rope_scaling", "{\"type\": \"linear\"}", "rope_scaling: key 'factor' is missing"},
        {"rope_scaling", "{\"type\": \"linear\", \"factor\": \"2\"}",
         "rope_scaling: key 'factor' is a string, not a number"},
        {"rope_scaling", "{\"type\": \"linear\", \"factor\": 0}",
         "key 'factor' is 0: a positive, finite number is needed"},
        {"rope_scaling", "{\"type\": \"yarn\", \"factor\": -4}",
         "key 'factor' is -4: a positive, finite number is needed"},
        {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 4, \"beta_fast\": 0}",
         "key 'beta_fast' is 0: a positive, finite number is needed"},
        {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 4, \"beta_slow\": -1}",
         "key 'beta_slow' is -1: a positive, finite number is needed"},
        {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 4, \"attention_factor\": -1}",
         "key 'attention_factor' is -1: a positive, finite number is needed"},
        {"rope_scaling", "{\"type\": \"llama3\", \"factor\": 8}",
         "rope_scaling: key 'original_max_position_embeddings' is missing"},
        {"rope_scaling",
         "{\"type\": \"llama3\", \"factor\": 8, \"original_max_position_embeddings\": 64}",
         "rope_scaling: key 'low_freq_factor' is missing"},
        {"rope_scaling",
         "{\"type\": \"llama3\", \"factor\": 8, \"original_max_position_embeddings\": 0}",
         "rope_scaling: key 'original_max_position_embeddings' is 0, outside 1 to 134217728"},
        {"rope_scaling",
         "{\"type\": \"llama3\", \"factor\": 8, \"original_max_position_embeddings\": 64,"
         " \"low_freq_factor\": 4, \"high_freq_factor\": 4}",
         "key 'high_freq_factor' is 4: more than low_freq_factor's 4 is needed"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(&(pair){cases[i].key, cases[i].value}, 1, NB_DATA, cases[i].reason);
    const pair both[] = {{"rope_scaling", "{\"rope_type\": \"linear\", \"factor\": 2}"},
                         {"rope_parameters", "{\"rope_type\": \"linear\", \"factor\": 3}"}};
    refused(both, 2, NB_UNSUPPORTED, "rope_scaling and rope_parameters are both given, and differ");
}

/* H16: ignored, and the user learns of it. */
static void token_ids_outside_the_vocabulary_are_ignored_with_a_warning(void **state)
{
    (void)state;
    static const char *const bad[] = {"100", "-1", "4294967297", "\"1\"", "1.0", "[100, 3]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const nb_config c = with("eos_token_id", bad[i]);
        assert_int_equal(c.eos, -1);
        assert_int_equal(c.bos, 1);
        assert_string_equal(c.warning,
                            "key 'eos_token_id' is no id of the vocabulary of 100, and is ignored");
    }
    static const char *const fine[] = {"99", "[99, 3]", "[99]"};
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        const nb_config c = with("eos_token_id", fine[i]);
        assert_int_equal(c.eos, 99);
        assert_string_equal(c.warning, "");
    }
    assert_int_equal(with("eos_token_id", "[]").eos, -1);
    assert_string_equal(with("bos_token_id", "null").warning, "");
}

static void reading_survives_every_allocation_failure(void **state)
{
    (void)state;
    write_json(NULL, 0);
    int64_t n = 1;
    for (;; n++) {
        nb_err err;
        nb_config c;
        nb_alloc_fail_at(n);
        const nb_status s = read_config(scratch_path("hf"), &c, &err);
        nb_alloc_fail_at(0);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
    }
    assert_true(n > 3);
}

static int set_up(void **state)
{
    if (scratch_setup(state) != 0)
        return -1;
    /* A folder is one with tensors; the config is read without looking at them. */
    static const char header[] = "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    uint8_t file[8 + sizeof header - 1 + 4] = {sizeof header - 1};
    memcpy(file + 8, header, sizeof header - 1);
    scratch_mkdir("hf");
    scratch_write("hf/model.safetensors", file, sizeof file);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_config_is_read),
        cmocka_unit_test(missing_keys_have_the_defaults_of_the_class),
        cmocka_unit_test(architectures_have_their_flags),
        cmocka_unit_test(sizes_are_positive_integers),
        cmocka_unit_test(heads_must_divide),
        cmocka_unit_test(constants_must_make_sense),
        cmocka_unit_test(the_unknown_is_refused_by_name),
        cmocka_unit_test(rope_is_read_in_both_spellings),
        cmocka_unit_test(rope_that_is_half_said_is_refused),
        cmocka_unit_test(token_ids_outside_the_vocabulary_are_ignored_with_a_warning),
        cmocka_unit_test(reading_survives_every_allocation_failure),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_teardown);
}
