/* Keys of GGUF files: what is read as a configuration, and what is refused, naming the key and the
 * number. One base that is right, and one change at a time. */
#include "model/config_check.h"
#include "support/gguf_bytes.h"
#include "support/scratch.h"

#include <math.h>

typedef enum { OMIT, U32, I32, U64, F32, F64, TEXT, FLAG, LIST } kind;

typedef struct {
    const char *key; /* without "llama.": see full_key */
    kind type;
    double value;
    const char *text;
} gguf_pair;

static const gguf_pair gguf_base[] = {
    {"general.architecture", TEXT, 0, "llama"},
    {"block_count", U32, 2, NULL},
    {"context_length", U32, 256, NULL},
    {"embedding_length", U32, 64, NULL},
    {"feed_forward_length", U32, 128, NULL},
    {"attention.head_count", U32, 4, NULL},
    {"attention.head_count_kv", U32, 2, NULL},
    {"attention.layer_norm_rms_epsilon", F32, 1e-5, NULL},
    {"rope.freq_base", F32, 10000, NULL},
    {"rope.dimension_count", U32, 16, NULL},
    {"vocab_size", U32, 100, NULL},
    {"tokenizer.ggml.bos_token_id", U32, 1, NULL},
    {"tokenizer.ggml.eos_token_id", U32, 2, NULL},
};

static const char *prefix = "llama";

static const char *full_key(const char *key)
{
    static char full[128];
    const bool whole = strncmp(key, "general.", 8) == 0 || strncmp(key, "tokenizer.", 10) == 0;
    snprintf(full, sizeof full, "%s%s%s", whole ? "" : prefix, whole ? "" : ".", key);
    return full;
}

static void put_gguf(gguf_bytes *g, const gguf_pair *p)
{
    const char *key = full_key(p->key);
    if (p->type == U32) {
        gb_u32(g, key, (uint32_t)(int64_t)p->value);
    } else if (p->type == F32) {
        gb_f32(g, key, (float)p->value);
    } else if (p->type == TEXT) {
        gb_text(g, key, p->text);
    } else if (p->type == LIST) {
        gb_array(g, key, 4, 2);
        gb_raw_u32(&g->kv, (uint32_t)p->value);
        gb_raw_u32(&g->kv, (uint32_t)p->value);
    } else if (p->type == I32) {
        gb_key(g, key, 5);
        gb_raw_u32(&g->kv, (uint32_t)(int32_t)p->value);
    } else if (p->type == U64) {
        gb_key(g, key, 10);
        gb_raw_u64(&g->kv, (uint64_t)p->value);
    } else if (p->type == F64) {
        gb_key(g, key, 12);
        gb_raw(&g->kv, &p->value, sizeof p->value);
    } else if (p->type == FLAG) {
        gb_key(g, key, 7);
        gb_raw_u8(&g->kv, p->value != 0);
    }
}

/* m.gguf with the base's keys, some changed, and an embedding of 100 x 64; tensors of 8 numbers
 * under the other names. */
static void write_gguf(const gguf_pair *changes, size_t n, const char *const *tensors)
{
    gguf_bytes g = {0};
    for (size_t i = 0; i < sizeof gguf_base / sizeof *gguf_base; i++) {
        bool changed = false;
        for (size_t c = 0; c < n; c++)
            changed = changed || strcmp(gguf_base[i].key, changes[c].key) == 0;
        if (!changed)
            put_gguf(&g, &gguf_base[i]);
    }
    for (size_t c = 0; c < n; c++)
        put_gguf(&g, &changes[c]);
    static const float zeros[100 * 64];
    gb_tensor(&g, "token_embd.weight", 64, 100, 0, zeros, sizeof zeros);
    for (; tensors != NULL && *tensors != NULL; tensors++)
        gb_tensor(&g, *tensors, 8, 0, 0, zeros, 8 * sizeof *zeros);
    nb_buf bytes = {0};
    gb_finish(&g, &bytes);
    scratch_write("m.gguf", bytes.data, bytes.len);
    nb_buf_free(&bytes);
    gb_free(&g);
}

static nb_config read_gguf(const gguf_pair *changes, size_t n, const char *const *tensors)
{
    nb_err err;
    nb_config c;
    write_gguf(changes, n, tensors);
    if (read_config(scratch_path("m.gguf"), &c, &err) != NB_OK)
        fail_msg("%s", err.text);
    return c;
}

static void gguf_refused(const gguf_pair *changes, size_t n, const char *const *tensors,
                         nb_status want, const char *reason)
{
    nb_err err;
    nb_config c = {0}, before = c;
    write_gguf(changes, n, tensors);
    const nb_status s = read_config(scratch_path("m.gguf"), &c, &err);
    check_refusal(n > 0 ? changes[0].key : "base", s, want, &err, scratch_path("m.gguf"), reason);
    assert_memory_equal(&c, &before, sizeof c);
}

static void keys_of_a_gguf_file_are_read(void **state)
{
    (void)state;
    nb_config c = read_gguf(NULL, 0, NULL);
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
    assert_true(c.rms_eps == 1e-5f && c.rope.base == 10000 && c.rope.type == NB_ROPE_DEFAULT);
    assert_true(c.tied_head && !c.qkv_bias && !c.qk_norm);
    assert_int_equal(c.bos, 1);
    assert_int_equal(c.eos, 2);
    const gguf_pair fewer[] = {{"attention.head_count_kv", OMIT, 0, NULL},
                               {"rope.freq_base", OMIT, 0, NULL},
                               {"rope.dimension_count", OMIT, 0, NULL},
                               {"vocab_size", OMIT, 0, NULL},
                               {"tokenizer.ggml.bos_token_id", OMIT, 0, NULL},
                               {"tokenizer.ggml.eos_token_id", OMIT, 0, NULL}};
    c = read_gguf(fewer, 6, NULL);
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.rot_dim, 16);
    assert_int_equal(c.vocab_size, 100);
    assert_true(c.rope.base == 10000 && c.bos == -1 && c.eos == -1);
    const gguf_pair other_types[] = {{"block_count", U64, 2, NULL},
                                     {"rope.freq_base", F64, 5e5, NULL},
                                     {"expert_count", U32, 0, NULL},
                                     {"attention.key_length", U32, 32, NULL},
                                     {"attention.sliding_window", U32, 0, NULL}};
    c = read_gguf(other_types, 5, NULL);
    assert_true(c.n_layers == 2 && c.rope.base == 5e5 && c.head_dim == 32);
    const gguf_pair window[] = {{"attention.sliding_window", U32, 7, NULL}};
    assert_int_equal(read_gguf(window, 1, NULL).sliding_window, 7);
}

static void tensors_of_a_gguf_file_are_flags(void **state)
{
    (void)state;
    const char *const untied[] = {"output.weight", NULL};
    assert_false(read_gguf(NULL, 0, untied).tied_head);
    const char *const biased[] = {"blk.0.attn_q.bias", "blk.0.ffn_down.bias", NULL};
    nb_config c = read_gguf(NULL, 0, biased);
    assert_true(c.qkv_bias && c.mlp_bias && !c.o_bias);
    const char *const factors[] = {"rope_freqs.weight", NULL};
    assert_int_equal(read_gguf(NULL, 0, factors).rope.type, NB_ROPE_FACTORS);
    const gguf_pair scaled[] = {{"rope.scaling.type", TEXT, 0, "linear"},
                                {"rope.scaling.factor", F32, 2, NULL}};
    gguf_refused(scaled, 2, factors, NB_UNSUPPORTED,
                 "tensor 'rope_freqs.weight' and RoPE scaling by keys, both at once");
}

/* An architecture that always has biases has them whether or not the first tensor is there. */
static void other_architectures_read_keys_of_their_own(void **state)
{
    (void)state;
    prefix = "qwen2";
    const gguf_pair arch = {"general.architecture", TEXT, 0, "qwen2"};
    const nb_config c = read_gguf(&arch, 1, NULL);
    prefix = "llama";
    assert_ptr_equal(c.arch, nb_arch_by_hf("qwen2"));
    assert_true(c.qkv_bias && !c.o_bias && c.n_layers == 2);
    gguf_refused(&arch, 1, NULL, NB_DATA, "key 'qwen2.block_count' is missing");
}

/* H10, H12: each number missing, of another type, 0, negative, huge. */
static void gguf_numbers_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        bool required;
        int max;
    } keys[] = {{"block_count", true, 4096},
                {"context_length", true, 1 << 27},
                {"embedding_length", true, 1 << 20},
                {"feed_forward_length", true, 1 << 22},
                {"attention.head_count", true, 4096},
                {"attention.head_count_kv", false, 4096},
                {"attention.key_length", false, 1 << 20},
                {"attention.value_length", false, 1 << 20},
                {"rope.dimension_count", false, 1 << 20},
                {"vocab_size", false, 1 << 24}};
    char reason[300];
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        const char *key = keys[k].key;
        static const struct {
            kind type;
            const char *is;
        } types[] = {{F32, "f32"}, {TEXT, "a string"}, {FLAG, "bool"}, {LIST, "an array of u32"}};
        for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
            nb_err err;
            nb_config c;
            const gguf_pair p = {key, types[i].type, 2, "2"};
            write_gguf(&p, 1, NULL);
            assert_int_equal(read_config(scratch_path("m.gguf"), &c, &err), NB_DATA);
            snprintf(reason, sizeof reason, "key '%s' is ", full_key(key));
            if (strstr(err.text, reason) == NULL ||
                strstr(err.text, ", expected an integer") == NULL)
                fail_msg("%s as %s: %s", key, types[i].is, err.text);
        }
        static const struct {
            kind type;
            double value;
            const char *text;
        } outside[] = {{U32, 0, "0"},
                       {I32, -1, "-1"},
                       {U32, 4294967295.0, "4294967295"},
                       {U64, 0x1p62, "4611686018427387904"},
                       {U64, 0x1p63, "9223372036854775808"}};
        for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
            const gguf_pair p = {key, outside[i].type, outside[i].value, NULL};
            snprintf(reason, sizeof reason, "key '%s' is %s, expected 1 to %d", full_key(key),
                     outside[i].text, keys[k].max);
            gguf_refused(&p, 1, NULL, NB_DATA, reason);
        }
        if (keys[k].required) {
            const gguf_pair p = {key, OMIT, 0, NULL};
            snprintf(reason, sizeof reason, "key '%s' is missing", full_key(key));
            gguf_refused(&p, 1, NULL, NB_DATA, reason);
        }
    }
}

static void gguf_contradictions_and_constants_are_refused(void **state)
{
    (void)state;
    static const struct {
        gguf_pair pair;
        nb_status status;
        const char *reason;
    } cases[] = {
        {{"general.architecture", OMIT, 0, NULL}, NB_DATA, "key 'general.architecture' is missing"},
        {{"general.architecture", TEXT, 0, "gpt2"},
         NB_UNSUPPORTED,
         "architecture 'gpt2' is not supported"},
        {{"general.architecture", TEXT, 0, "Llama"},
         NB_UNSUPPORTED,
         "architecture 'Llama' is not supported"},
        {{"attention.head_count_kv", U32, 3, NULL},
         NB_DATA,
         "4 attention heads cannot share 3 key-value heads"},
        {{"attention.head_count", U32, 6, NULL},
         NB_DATA,
         "llama.embedding_length 64 is no multiple of attention.head_count 6"},
        {{"rope.dimension_count", U32, 15, NULL},
         NB_DATA,
         "15 rotary dimensions: an even number up to the head's 16 is needed"},
        {{"rope.dimension_count", U32, 32, NULL},
         NB_DATA,
         "32 rotary dimensions: an even number up to the head's 16 is needed"},
        {{"vocab_size", U32, 101, NULL},
         NB_DATA,
         "llama.vocab_size is 101, and token_embd.weight has 100 rows"},
        {{"attention.value_length", U32, 8, NULL},
         NB_UNSUPPORTED,
         "keys of 16 and values of 8 dimensions"},
        {{"attention.layer_norm_rms_epsilon", OMIT, 0, NULL},
         NB_DATA,
         "key 'llama.attention.layer_norm_rms_epsilon' is missing"},
        {{"attention.layer_norm_rms_epsilon", F32, NAN, NULL},
         NB_DATA,
         "key 'llama.attention.layer_norm_rms_epsilon' is nan: a positive, finite number is "
         "needed"},
        {{"attention.layer_norm_rms_epsilon", F32, 0, NULL},
         NB_DATA,
         "key 'llama.attention.layer_norm_rms_epsilon' is 0: a positive, finite number is needed"},
        {{"rope.freq_base", F32, 0, NULL},
         NB_DATA,
         "key 'llama.rope.freq_base' is 0: a positive, finite number is needed"},
        {{"rope.freq_base", F32, -1, NULL},
         NB_DATA,
         "key 'llama.rope.freq_base' is -1: a positive, finite number is needed"},
        {{"rope.freq_base", F32, INFINITY, NULL},
         NB_DATA,
         "key 'llama.rope.freq_base' is inf: a positive, finite number is needed"},
        {{"tokenizer.ggml.bos_token_id", U32, 100, NULL},
         NB_DATA,
         "key 'tokenizer.ggml.bos_token_id' is 100, expected 0 to 99"},
        {{"tokenizer.ggml.eos_token_id", U32, 4294967295.0, NULL},
         NB_DATA,
         "key 'tokenizer.ggml.eos_token_id' is 4294967295, expected 0 to 99"},
        {{"expert_count", U32, 8, NULL},
         NB_UNSUPPORTED,
         "key 'llama.expert_count' is 8: mixtures of experts are not supported"},
        {{"final_logit_softcapping", F32, 30, NULL},
         NB_UNSUPPORTED,
         "key 'llama.final_logit_softcapping' is 30, which is not supported"},
        {{"rope.scaling.type", TEXT, 0, "longrope"},
         NB_UNSUPPORTED,
         "RoPE scaling 'longrope' is not supported"},
        {{"rope.scaling.type", TEXT, 0, "linear"},
         NB_DATA,
         "key 'llama.rope.scaling.factor' is missing"},
        {{"rope.scaling.factor", F32, -2, NULL},
         NB_DATA,
         "key 'llama.rope.scaling.factor' is -2: a positive, finite number is needed"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        gguf_refused(&cases[i].pair, 1, NULL, cases[i].status, cases[i].reason);
}

/* As ggml reads them. */
static void rope_scaling_of_a_gguf_file_is_read(void **state)
{
    (void)state;
    const gguf_pair none[] = {{"rope.scaling.type", TEXT, 0, "none"},
                              {"rope.scaling.factor", F32, 8, NULL}};
    assert_int_equal(read_gguf(none, 2, NULL).rope.type, NB_ROPE_DEFAULT);
    const gguf_pair linear[] = {{"rope.scaling.type", TEXT, 0, "linear"},
                                {"rope.scaling.factor", F32, 8, NULL}};
    nb_config c = read_gguf(linear, 2, NULL);
    assert_true(c.rope.type == NB_ROPE_LINEAR && c.rope.factor == 8);
    c = read_gguf(linear + 1, 1, NULL); /* without a type, a factor is linear */
    assert_true(c.rope.type == NB_ROPE_LINEAR && c.rope.factor == 8);
    const gguf_pair old[] = {{"rope.scale_linear", F32, 4, NULL}};
    c = read_gguf(old, 1, NULL);
    assert_true(c.rope.type == NB_ROPE_LINEAR && c.rope.factor == 4);
    const gguf_pair one[] = {{"rope.scaling.factor", F32, 1, NULL}};
    assert_int_equal(read_gguf(one, 1, NULL).rope.type, NB_ROPE_DEFAULT);
    const gguf_pair yarn[] = {{"rope.scaling.type", TEXT, 0, "yarn"},
                              {"rope.scaling.factor", F32, 4, NULL},
                              {"rope.scaling.original_context_length", U32, 64, NULL},
                              {"rope.scaling.yarn_beta_fast", F32, 16, NULL},
                              {"rope.scaling.attn_factor", F32, 1, NULL}};
    c = read_gguf(yarn, 5, NULL);
    assert_true(c.rope.type == NB_ROPE_YARN && c.rope.factor == 4 && c.rope.beta_fast == 16);
    assert_true(c.rope.original_n_ctx == 64 && c.rope.attention_factor == 0 && c.rope.truncate);
    c = read_gguf(yarn, 2, NULL);
    assert_int_equal(c.rope.original_n_ctx, 256);
    static const struct {
        const char *key, *reason;
    } bent[] = {{"rope.scaling.attn_factor",
                 "key 'llama.rope.scaling.attn_factor' is 2, which is not supported"},
                {"rope.scaling.yarn_ext_factor",
                 "key 'llama.rope.scaling.yarn_ext_factor' is 2, which is not supported"},
                {"rope.scaling.yarn_log_multiplier",
                 "key 'llama.rope.scaling.yarn_log_multiplier' is 2, which is not supported"}};
    for (size_t i = 0; i < sizeof bent / sizeof *bent; i++) {
        const gguf_pair more[] = {{"rope.scaling.type", TEXT, 0, "yarn"},
                                  {"rope.scaling.factor", F32, 4, NULL},
                                  {bent[i].key, F32, 2, NULL}};
        gguf_refused(more, 3, NULL, NB_UNSUPPORTED, bent[i].reason);
    }
}

/* The name is what its length says it is: a zero inside does not end it. */
static void an_architecture_name_with_a_zero_inside_is_another_name(void **state)
{
    (void)state;
    nb_err err;
    nb_config c;
    gguf_bytes g = {0};
    gb_key(&g, "general.architecture", 8);
    gb_raw_u64(&g.kv, 8);
    gb_raw(&g.kv, "llama\0xx", 8);
    for (size_t i = 1; i < sizeof gguf_base / sizeof *gguf_base; i++)
        put_gguf(&g, &gguf_base[i]);
    static const float zeros[100 * 64];
    gb_tensor(&g, "token_embd.weight", 64, 100, 0, zeros, sizeof zeros);
    nb_buf bytes = {0};
    gb_finish(&g, &bytes);
    scratch_write("zero.gguf", bytes.data, bytes.len);
    nb_buf_free(&bytes);
    gb_free(&g);
    assert_int_not_equal(read_config(scratch_path("zero.gguf"), &c, &err), NB_OK);
}

static void reading_survives_every_allocation_failure(void **state)
{
    (void)state;
    write_gguf(NULL, 0, NULL);
    int64_t n = 1;
    for (;; n++) {
        nb_err err;
        nb_config c;
        nb_alloc_fail_at(n);
        const nb_status s = read_config(scratch_path("m.gguf"), &c, &err);
        nb_alloc_fail_at(0);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
    }
    assert_true(n > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_of_a_gguf_file_are_read),
        cmocka_unit_test(tensors_of_a_gguf_file_are_flags),
        cmocka_unit_test(other_architectures_read_keys_of_their_own),
        cmocka_unit_test(gguf_numbers_are_checked),
        cmocka_unit_test(gguf_contradictions_and_constants_are_refused),
        cmocka_unit_test(rope_scaling_of_a_gguf_file_is_read),
        cmocka_unit_test(an_architecture_name_with_a_zero_inside_is_another_name),
        cmocka_unit_test(reading_survives_every_allocation_failure),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
