/* Tensor names: the table of formats.md 8.5 in both directions, and that no two names meet. */
#include "support/golden.h"

#include "store/gguf_names.h"

#include <stdio.h>
#include <string.h>

static void check_pair(const char *arch, const char *gguf, const char *hf)
{
    char out[NB_HF_NAME_MAX], back[NB_GGUF_NAME_MAX];
    nb_err err = {0};
    assert_true(nb_gguf_name_to_hf(arch, gguf, out));
    assert_string_equal(out, hf);
    assert_int_equal(nb_gguf_name_from_hf(arch, hf, back, &err), NB_OK);
    assert_string_equal(back, gguf);
}

static void names_translate_both_ways(void **state)
{
    (void)state;
    static const char *const rows[][3] = {
        {"llama", "token_embd.weight", "model.embed_tokens.weight"},
        {"llama", "output_norm.weight", "model.norm.weight"},
        {"llama", "output.weight", "lm_head.weight"},
        {"llama", "blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"},
        {"llama", "blk.31.attn_q.weight", "model.layers.31.self_attn.q_proj.weight"},
        {"qwen2", "blk.7.attn_k.bias", "model.layers.7.self_attn.k_proj.bias"},
        {"qwen2", "blk.999999999.attn_v.bias", "model.layers.999999999.self_attn.v_proj.bias"},
        {"llama", "blk.10.attn_output.weight", "model.layers.10.self_attn.o_proj.weight"},
        {"qwen3", "blk.1.attn_q_norm.weight", "model.layers.1.self_attn.q_norm.weight"},
        {"qwen3", "blk.1.attn_k_norm.weight", "model.layers.1.self_attn.k_norm.weight"},
        {"llama", "blk.2.ffn_norm.weight", "model.layers.2.post_attention_layernorm.weight"},
        {"gemma2", "blk.2.ffn_norm.weight", "model.layers.2.pre_feedforward_layernorm.weight"},
        {"gemma3", "blk.2.post_attention_norm.weight",
         "model.layers.2.post_attention_layernorm.weight"},
        {"olmo2", "blk.2.post_ffw_norm.weight", "model.layers.2.post_feedforward_layernorm.weight"},
        {"llama", "blk.2.ffn_gate.weight", "model.layers.2.mlp.gate_proj.weight"},
        {"llama", "blk.2.ffn_up.weight", "model.layers.2.mlp.up_proj.weight"},
        {"llama", "blk.2.ffn_down.weight", "model.layers.2.mlp.down_proj.weight"},
        {"phi3", "blk.2.ffn_up.weight", "model.layers.2.mlp.gate_up_proj.weight"},
        {"phi3", "blk.2.attn_qkv.weight", "model.layers.2.self_attn.qkv_proj.weight"},
        {"gpt-oss", "blk.2.attn_sinks.weight", "model.layers.2.self_attn.sinks"},
        {"gpt-oss", "blk.2.ffn_gate_inp.bias", "model.layers.2.mlp.router.bias"},
        {"llama", "blk.2.ffn_gate_inp.weight", "model.layers.2.block_sparse_moe.gate.weight"},
        {"qwen3moe", "blk.2.ffn_gate_inp.weight", "model.layers.2.mlp.gate.weight"},
        {"qwen2moe", "blk.2.ffn_up_shexp.weight",
         "model.layers.2.mlp.shared_expert.up_proj.weight"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_pair(rows[i][0], rows[i][1], rows[i][2]);
}

static void other_names_stay(void **state)
{
    (void)state;
    static const char *const names[] = {
        "rope_freqs.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.00.attn_q.weight",
        "blk.01.attn_q.weight",
        "blk.1000000000.attn_q.weight",
        "blk.-1.attn_q.weight",
        "blk..attn_q.weight",
        "blk.0",
        "blk.0.",
        "blk.+1.attn_q.weight",
        "xblk.0.attn_q.weight",
        "blk.0.token_embd.weight",
        "attn_q.weight",
        "blk.0.attn_q.weight.",
        "blk.0.attn_q",
        "model.layers.00.self_attn.q_proj.weight",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char out[NB_HF_NAME_MAX], back[NB_GGUF_NAME_MAX];
        nb_err err = {0};
        assert_false(nb_gguf_name_to_hf("llama", names[i], out));
        assert_string_equal(out, names[i]);
        assert_int_equal(nb_gguf_name_from_hf("llama", names[i], back, &err), NB_OK);
        assert_string_equal(back, names[i]);
    }
}

/* The tables of an architecture are one to one: what is translated comes back. */
static void every_translation_can_be_undone(void **state)
{
    (void)state;
    static const char *const archs[] = {"llama",   "qwen2", "gemma2",   "gemma3",   "olmo2",
                                        "gpt-oss", "phi3",  "qwen2moe", "qwen3moe", "unheard-of"};
    static const char *const stems[] = {"attn_norm",
                                        "attn_q",
                                        "attn_k",
                                        "attn_v",
                                        "attn_output",
                                        "attn_q_norm",
                                        "attn_k_norm",
                                        "attn_qkv",
                                        "attn_sinks",
                                        "ffn_norm",
                                        "post_attention_norm",
                                        "post_ffw_norm",
                                        "ffn_gate",
                                        "ffn_up",
                                        "ffn_down",
                                        "ffn_gate_inp",
                                        "ffn_gate_shexp",
                                        "ffn_up_shexp",
                                        "ffn_down_shexp",
                                        "ffn_gate_inp_shexp",
                                        "ffn_gate_exps",
                                        "ffn_up_exps"};
    int n_translated = 0;
    for (size_t a = 0; a < sizeof archs / sizeof *archs; a++) {
        for (size_t s = 0; s < sizeof stems / sizeof *stems; s++) {
            for (int bias = 0; bias < 2; bias++) {
                char name[NB_GGUF_NAME_MAX], hf[NB_HF_NAME_MAX], back[NB_GGUF_NAME_MAX];
                nb_err err = {0};
                snprintf(name, sizeof name, "blk.3.%s.%s", stems[s], bias ? "bias" : "weight");
                n_translated += nb_gguf_name_to_hf(archs[a], name, hf);
                assert_int_equal(nb_gguf_name_from_hf(archs[a], hf, back, &err), NB_OK);
                assert_string_equal(back, name);
            }
        }
    }
    assert_true(n_translated > 150);
}

static void names_too_long_for_gguf(void **state)
{
    (void)state;
    char name[80] = {0}, out[NB_GGUF_NAME_MAX];
    nb_err err = {0};
    memset(name, 'n', 64);
    assert_int_equal(nb_gguf_name_from_hf("llama", name, out, &err), NB_UNSUPPORTED);
    assert_non_null(strstr(err.text, "a name of 64 bytes, and GGUF allows at most 63"));
    name[63] = 0;
    assert_int_equal(nb_gguf_name_from_hf("llama", name, out, &err), NB_OK);
    assert_string_equal(out, name);
}

static void all_bytes_in_names(void **state)
{
    (void)state;
    for (int c = 0; c < 256; c++) {
        const char name[3] = {'a', (char)c, 'b'};
        nb_err err = {0};
        const bool printable = c > 0x20 && c < 0x7f;
        assert_int_equal(nb_gguf_check_name(name, 3, &err), printable ? NB_OK : NB_DATA);
    }
}

static void names_of_types(void **state)
{
    (void)state;
    assert_string_equal(nb_gguf_type_name(0), "F32");
    assert_string_equal(nb_gguf_type_name(30), "BF16");
    assert_string_equal(nb_gguf_type_name(42), "Q2_0");
    int n = 0;
    for (int64_t id = -2; id < 100; id++)
        n += nb_gguf_type_name(id) != NULL;
    assert_int_equal(n, 43 - 8);
    assert_null(nb_gguf_type_name(4));
    assert_null(nb_gguf_type_name(INT64_MIN));
    assert_null(nb_gguf_type_name(INT64_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_translate_both_ways),
        cmocka_unit_test(other_names_stay),
        cmocka_unit_test(every_translation_can_be_undone),
        cmocka_unit_test(names_too_long_for_gguf),
        cmocka_unit_test(all_bytes_in_names),
        cmocka_unit_test(names_of_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
