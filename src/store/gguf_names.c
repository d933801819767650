/* See gguf_names.h. */
#include "store/gguf_names.h"

#include <stdio.h>
#include <string.h>

/* Architectures differ in a few names only; a row holds for those whose bit it has. */
enum {
    PLAIN = 1,    /* llama, qwen2, qwen3, smollm3, ...: two norms a layer */
    MIXTRAL = 2,  /* llama again: its experts are mixtral's */
    GEMMA = 4,    /* gemma2, gemma3: four norms a layer */
    OLMO2 = 8,    /* norms after each half only */
    GPT_OSS = 16, /* sinks, a router with a bias */
    PHI3 = 32,    /* fused qkv, fused gate and up */
    QWEN_MOE = 64,
    ALL = 127,
};

static const struct {
    const char *arch;
    unsigned flavour;
} flavours[] = {
    {"llama", PLAIN | MIXTRAL}, {"gemma2", GEMMA}, {"gemma3", GEMMA},      {"olmo2", OLMO2},
    {"gpt-oss", GPT_OSS},       {"phi3", PHI3},    {"qwen2moe", QWEN_MOE}, {"qwen3moe", QWEN_MOE},
};

typedef struct {
    const char *gguf, *hf;
    unsigned flavours;
} name_row;

static const name_row whole_rows[] = {
    {"token_embd.weight", "model.embed_tokens.weight", ALL},
    {"output_norm.weight", "model.norm.weight", ALL},
    {"output.weight", "lm_head.weight", ALL},
};

/* After "blk.LAYER." and "model.layers.LAYER.". Within a flavour no name stands twice on either
 * side. Stacked experts have no counterpart: Hugging Face stores each on its own. */
static const name_row layer_rows[] = {
    {"attn_norm.weight", "input_layernorm.weight", ALL},
    {"attn_q.weight", "self_attn.q_proj.weight", ALL},
    {"attn_q.bias", "self_attn.q_proj.bias", ALL},
    {"attn_k.weight", "self_attn.k_proj.weight", ALL},
    {"attn_k.bias", "self_attn.k_proj.bias", ALL},
    {"attn_v.weight", "self_attn.v_proj.weight", ALL},
    {"attn_v.bias", "self_attn.v_proj.bias", ALL},
    {"attn_output.weight", "self_attn.o_proj.weight", ALL},
    {"attn_output.bias", "self_attn.o_proj.bias", ALL},
    {"attn_q_norm.weight", "self_attn.q_norm.weight", ALL},
    {"attn_k_norm.weight", "self_attn.k_norm.weight", ALL},
    {"attn_qkv.weight", "self_attn.qkv_proj.weight", PHI3},
    {"attn_sinks.weight", "self_attn.sinks", GPT_OSS},
    {"ffn_norm.weight", "post_attention_layernorm.weight", PLAIN | PHI3 | QWEN_MOE},
    {"ffn_norm.weight", "pre_feedforward_layernorm.weight", GEMMA},
    {"post_attention_norm.weight", "post_attention_layernorm.weight", GEMMA | OLMO2 | GPT_OSS},
    {"post_ffw_norm.weight", "post_feedforward_layernorm.weight", GEMMA | OLMO2},
    {"ffn_gate.weight", "mlp.gate_proj.weight", ALL & ~(unsigned)PHI3},
    {"ffn_gate.bias", "mlp.gate_proj.bias", ALL & ~(unsigned)PHI3},
    {"ffn_up.weight", "mlp.up_proj.weight", ALL & ~(unsigned)PHI3},
    {"ffn_up.bias", "mlp.up_proj.bias", ALL & ~(unsigned)PHI3},
    {"ffn_up.weight", "mlp.gate_up_proj.weight", PHI3},
    {"ffn_down.weight", "mlp.down_proj.weight", ALL},
    {"ffn_down.bias", "mlp.down_proj.bias", ALL},
    {"ffn_gate_inp.weight", "block_sparse_moe.gate.weight", MIXTRAL},
    {"ffn_gate_inp.weight", "mlp.gate.weight", QWEN_MOE},
    {"ffn_gate_inp.weight", "mlp.router.weight", GPT_OSS},
    {"ffn_gate_inp.bias", "mlp.router.bias", GPT_OSS},
    {"ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight", QWEN_MOE},
    {"ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", QWEN_MOE},
    {"ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight", QWEN_MOE},
    {"ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", QWEN_MOE},
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static unsigned flavour_of(const char *arch)
{
    for (size_t i = 0; i < COUNT(flavours); i++) {
        if (strcmp(flavours[i].arch, arch) == 0)
            return flavours[i].flavour;
    }
    return PLAIN;
}

/* The name on the other side, or NULL. */
static const char *translate(const name_row *rows, size_t n, unsigned flavour, const char *name,
                             bool to_hf)
{
    for (size_t i = 0; i < n; i++) {
        if ((rows[i].flavours & flavour) != 0 &&
            strcmp(to_hf ? rows[i].gguf : rows[i].hf, name) == 0)
            return to_hf ? rows[i].hf : rows[i].gguf;
    }
    return NULL;
}

/* The number of "PREFIXnumber.rest". Only the one spelling that printing gives is a number, so
 * that "blk.00." is no second name for layer 0. */
static int64_t layer_after(const char *prefix, const char *name, const char **rest)
{
    *rest = NULL;
    const size_t n = strlen(prefix);
    if (strncmp(name, prefix, n) != 0)
        return -1;
    const char *p = name + n;
    if (*p < '0' || *p > '9' || (*p == '0' && p[1] != '.'))
        return -1;
    int64_t layer = 0;
    int n_digits = 0;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (++n_digits > 9)
            return -1;
        layer = layer * 10 + (*p - '0');
    }
    if (*p != '.')
        return -1;
    *rest = p + 1;
    return layer;
}

int64_t nb_gguf_name_layer(const char *name, const char **rest)
{
    return layer_after("blk.", name, rest);
}

bool nb_gguf_name_to_hf(const char *arch, const char *name, char out[NB_HF_NAME_MAX])
{
    const unsigned flavour = flavour_of(arch);
    const char *rest;
    const int64_t layer = nb_gguf_name_layer(name, &rest);
    const char *found = layer < 0 ? translate(whole_rows, COUNT(whole_rows), flavour, name, true)
                                  : translate(layer_rows, COUNT(layer_rows), flavour, rest, true);
    if (found != NULL && layer >= 0)
        snprintf(out, NB_HF_NAME_MAX, "model.layers.%lld.%s", (long long)layer, found);
    else
        snprintf(out, NB_HF_NAME_MAX, "%s", found != NULL ? found : name);
    return found != NULL;
}

nb_status nb_gguf_name_from_hf(const char *arch, const char *name, char out[NB_GGUF_NAME_MAX],
                               nb_err *err)
{
    const unsigned flavour = flavour_of(arch);
    const char *rest;
    const int64_t layer = layer_after("model.layers.", name, &rest);
    const char *found = layer < 0 ? translate(whole_rows, COUNT(whole_rows), flavour, name, false)
                                  : translate(layer_rows, COUNT(layer_rows), flavour, rest, false);
    int n;
    if (found != NULL && layer >= 0)
        n = snprintf(out, NB_GGUF_NAME_MAX, "blk.%lld.%s", (long long)layer, found);
    else
        n = snprintf(out, NB_GGUF_NAME_MAX, "%s", found != NULL ? found : name);
    if (n >= NB_GGUF_NAME_MAX)
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.100s': a name of %d bytes, and GGUF allows at most %d", name, n,
                       NB_GGUF_NAME_MAX - 1);
    return NB_OK;
}

nb_status nb_gguf_check_name(const char *name, size_t len, nb_err *err)
{
    if (len == 0)
        return nb_fail(err, NB_DATA, "a tensor with an empty name");
    if (len >= NB_GGUF_NAME_MAX)
        return nb_fail(err, NB_DATA, "a tensor name of %zu bytes, and GGUF allows at most %d", len,
                       NB_GGUF_NAME_MAX - 1);
    for (size_t i = 0; i < len; i++) {
        const unsigned char c = (unsigned char)name[i];
        if (c <= 0x20 || c >= 0x7f)
            return nb_fail(err, NB_DATA, "tensor name '%.*s' has byte 0x%02x in it", (int)len, name,
                           c);
    }
    return NB_OK;
}

const char *nb_gguf_type_name(int64_t ggml_type)
{
    /* Ids 4, 5, 31-33 and 36-38 were retired. */
    static const char *const names[] = {
        [0] = "F32",     [1] = "F16",      [2] = "Q4_0",   [3] = "Q4_1",    [6] = "Q5_0",
        [7] = "Q5_1",    [8] = "Q8_0",     [9] = "Q8_1",   [10] = "Q2_K",   [11] = "Q3_K",
        [12] = "Q4_K",   [13] = "Q5_K",    [14] = "Q6_K",  [15] = "Q8_K",   [16] = "IQ2_XXS",
        [17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S", [20] = "IQ4_NL", [21] = "IQ3_S",
        [22] = "IQ2_S",  [23] = "IQ4_XS",  [24] = "I8",    [25] = "I16",    [26] = "I32",
        [27] = "I64",    [28] = "F64",     [29] = "IQ1_M", [30] = "BF16",   [34] = "TQ1_0",
        [35] = "TQ2_0",  [39] = "MXFP4",   [40] = "NVFP4", [41] = "Q1_0",   [42] = "Q2_0",
    };
    return ggml_type >= 0 && ggml_type < (int64_t)COUNT(names) ? names[ggml_type] : NULL;
}
