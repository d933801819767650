/* The measures of a model from its config; see advise.h. */
#include "quant/advise/advise.h"

#include <stdio.h>
#include <string.h>

#define MAX_LAYERS  4096
#define MAX_HEADS   4096
#define MAX_WIDTH   (1 << 20)
#define MAX_FF      (1 << 22)
#define MAX_VOCAB   (1 << 24)
#define MAX_CTX     (1 << 27)
#define MAX_EXPERTS (1 << 14)

void nb_advise_shape_of(nb_advise_shape *out, const nb_config *c)
{
    *out = (nb_advise_shape){.runs = true,
                             .n_layers = c->n_layers,
                             .d_model = c->d_model,
                             .n_heads = c->n_heads,
                             .n_kv_heads = c->n_kv_heads,
                             .head_dim = c->head_dim,
                             .d_ff = c->d_ff,
                             .vocab_size = c->vocab_size,
                             .n_ctx = c->n_ctx,
                             .tied_head = c->tied_head,
                             .qkv_bias = c->qkv_bias,
                             .o_bias = c->o_bias,
                             .mlp_bias = c->mlp_bias,
                             .qk_norm = c->qk_norm};
    snprintf(out->type, sizeof out->type, "%s", c->arch->name);
}

/* Mixtures of experts whose other parts are those of the family, by what their configs call
 * things. */
typedef struct {
    const char *type, *experts, *width; /* width NULL: intermediate_size */
    bool qkv_bias, qk_norm, shared;
} moe_family;

static const moe_family moe_families[] = {
    {"mixtral", "num_local_experts", NULL, false, false, false},
    {"qwen2_moe", "num_experts", "moe_intermediate_size", true, false, true},
    {"qwen3_moe", "num_experts", "moe_intermediate_size", false, true, false},
};

static const moe_family *find_moe(const char *type)
{
    for (size_t i = 0; i < sizeof moe_families / sizeof *moe_families; i++) {
        if (strcmp(moe_families[i].type, type) == 0)
            return &moe_families[i];
    }
    return NULL;
}

/* Whether a layer has experts: every decoder_sparse_step-th, unless mlp_only_layers names it. */
static nb_status count_moe_layers(nb_advise_shape *s, const json_t *j, nb_err *err)
{
    int64_t step = 1;
    json_t *dense = NULL;
    NB_TRY(nb_json_int(j, "decoder_sparse_step", false, 1, MAX_LAYERS, &step, err));
    NB_TRY(nb_json_array(j, "mlp_only_layers", false, &dense, err));
    for (int64_t i = 0; i < s->n_layers; i++) {
        bool sparse = (i + 1) % step == 0;
        for (size_t k = 0; k < json_array_size(dense); k++) {
            const json_t *v = json_array_get(dense, k);
            if (!json_is_integer(v))
                return nb_fail(err, NB_DATA, "mlp_only_layers[%zu] is no whole number", k);
            sparse = sparse && json_integer_value(v) != i;
        }
        s->n_moe_layers += sparse;
    }
    return NB_OK;
}

static nb_status read_moe(nb_advise_shape *s, const moe_family *family, const json_t *j,
                          nb_err *err)
{
    s->d_expert = s->d_ff;
    if (family->width != NULL)
        NB_TRY(nb_json_int(j, family->width, true, 1, MAX_FF, &s->d_expert, err));
    NB_TRY(nb_json_int(j, family->experts, true, 1, MAX_EXPERTS, &s->n_experts, err));
    NB_TRY(nb_json_int(j, "num_experts_per_tok", true, 1, s->n_experts, &s->n_active, err));
    if (family->shared)
        NB_TRY(
            nb_json_int(j, "shared_expert_intermediate_size", true, 1, MAX_FF, &s->d_shared, err));
    s->qkv_bias = family->qkv_bias;
    s->qk_norm = family->qk_norm;
    NB_TRY(count_moe_layers(s, j, err));
    return NB_OK;
}

/* What would change the arithmetic, whatever the architecture calls itself. */
static nb_status refuse_others(const json_t *j, nb_err *err)
{
    static const struct {
        const char *key, *what;
    } known[] = {
        {"kv_lora_rank", "latent attention, whose cache is no multiple of heads"},
        {"n_routed_experts", "experts that its own rules lay out"},
        {"ssm_cfg", "state spaces"},
        {"text_config", "a model inside another"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const json_t *v = json_object_get(j, known[i].key);
        if (v != NULL && !json_is_null(v))
            return nb_fail(err, NB_UNSUPPORTED, "key '%s' tells of %s: not known here",
                           known[i].key, known[i].what);
    }
    return NB_OK;
}

nb_status nb_advise_shape_read(nb_advise_shape *out, const json_t *j, nb_err *err)
{
    nb_advise_shape s = {0};
    const char *type = NULL;
    if (!json_is_object(j))
        return nb_fail(err, NB_DATA, "a config is an object");
    NB_TRY(refuse_others(j, err));
    NB_TRY(nb_json_text(j, "model_type", true, &type, err));
    const nb_arch *arch = nb_arch_by_hf(type);
    const moe_family *moe = find_moe(type);
    if (arch == NULL && moe == NULL)
        return nb_fail(err, NB_UNSUPPORTED,
                       "model type '%.100s' has no arithmetic here; llama, mistral, mixtral, "
                       "qwen2, qwen2_moe, qwen3 and qwen3_moe have",
                       type);
    snprintf(s.type, sizeof s.type, "%s", type);
    s.runs = arch != NULL;
    NB_TRY(nb_json_int(j, "num_hidden_layers", true, 1, MAX_LAYERS, &s.n_layers, err));
    NB_TRY(nb_json_int(j, "hidden_size", true, 1, MAX_WIDTH, &s.d_model, err));
    NB_TRY(nb_json_int(j, "intermediate_size", true, 1, MAX_FF, &s.d_ff, err));
    NB_TRY(nb_json_int(j, "vocab_size", true, 1, MAX_VOCAB, &s.vocab_size, err));
    NB_TRY(nb_json_int(j, "num_attention_heads", true, 1, MAX_HEADS, &s.n_heads, err));
    s.n_kv_heads = s.n_heads;
    NB_TRY(nb_json_int(j, "num_key_value_heads", false, 1, MAX_HEADS, &s.n_kv_heads, err));
    NB_TRY(nb_json_int(j, "head_dim", false, 1, MAX_WIDTH, &s.head_dim, err));
    if (s.head_dim == 0 && s.d_model % s.n_heads != 0)
        return nb_fail(err, NB_DATA, "hidden_size %lld is no multiple of num_attention_heads %lld",
                       (long long)s.d_model, (long long)s.n_heads);
    if (s.head_dim == 0)
        s.head_dim = s.d_model / s.n_heads;
    if (s.n_heads % s.n_kv_heads != 0)
        return nb_fail(err, NB_DATA, "%lld attention heads cannot share %lld key-value heads",
                       (long long)s.n_heads, (long long)s.n_kv_heads);
    s.n_ctx = 2048;
    NB_TRY(nb_json_int(j, "max_position_embeddings", false, 1, MAX_CTX, &s.n_ctx, err));
    s.tied_head = arch != NULL && arch->tied_default;
    NB_TRY(nb_json_bool(j, "tie_word_embeddings", false, &s.tied_head, err));
    if (moe != NULL)
        NB_TRY(read_moe(&s, moe, j, err));
    if (arch != NULL) {
        s.qkv_bias = arch->qkv_bias;
        s.qk_norm = arch->qk_norm;
    }
    if ((arch != NULL && arch->bias_keys) || (moe != NULL && moe->qk_norm)) {
        NB_TRY(nb_json_bool(j, "attention_bias", false, &s.qkv_bias, err));
        s.o_bias = s.qkv_bias;
    }
    if (arch != NULL && arch->bias_keys)
        NB_TRY(nb_json_bool(j, "mlp_bias", false, &s.mlp_bias, err));
    *out = s;
    return NB_OK;
}
