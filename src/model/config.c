/* Reading a config from a folder's config.json or a GGUF's keys; see config.h. */
#include "model/config.h"

#include "kernel/kernel.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Stated maxima: far above any model, far below what could wrap a product. */
#define MAX_LAYERS 4096
#define MAX_HEADS  4096
#define MAX_WIDTH  (1 << 20)
#define MAX_FF     (1 << 22)
#define MAX_VOCAB  (1 << 24)
#define MAX_CTX    (1 << 27)

int64_t nb_config_kv_bytes(const nb_config *c, nb_kv_format cell)
{
    return 2 * c->n_layers * c->n_kv_heads * (int64_t)nb_kv_head_bytes(cell, (int)c->head_dim) /
           NB_KV_PAGE;
}

int64_t nb_config_kv_recent_bytes(const nb_config *c, nb_kv_format cell)
{
    return nb_kv_bits(cell) > 0
               ? (NB_KV_RECENT + (2 + NB_KV_FIRST) * NB_KV_PAGE) * nb_config_kv_bytes(c, NB_KV_F16)
               : 0;
}

static nb_status check_positive(const char *key, double v, nb_err *err)
{
    if (!(v > 0) || isinf(v))
        return nb_fail(err, NB_DATA, "key '%s' is %g: a positive, finite number is needed", key, v);
    return NB_OK;
}

static nb_status check_rope(const nb_config *c, nb_err *err)
{
    const nb_rope *r = &c->rope;
    if (c->rot_dim % 2 != 0 || c->rot_dim > c->head_dim || c->rot_dim < 2)
        return nb_fail(err, NB_DATA,
                       "%lld rotary dimensions: an even number up to the head's %lld is needed",
                       (long long)c->rot_dim, (long long)c->head_dim);
    if (r->type != NB_ROPE_DEFAULT && r->type != NB_ROPE_FACTORS)
        NB_TRY(check_positive("factor", r->factor, err));
    if (r->type == NB_ROPE_LLAMA3) {
        NB_TRY(check_positive("low_freq_factor", r->low_freq_factor, err));
        NB_TRY(check_positive("high_freq_factor", r->high_freq_factor, err));
        if (r->high_freq_factor <= r->low_freq_factor)
            return nb_fail(err, NB_DATA,
                           "key 'high_freq_factor' is %g: more than low_freq_factor's %g is needed",
                           r->high_freq_factor, r->low_freq_factor);
    }
    if (r->type == NB_ROPE_YARN) {
        NB_TRY(check_positive("beta_fast", r->beta_fast, err));
        NB_TRY(check_positive("beta_slow", r->beta_slow, err));
        if (r->attention_factor != 0)
            NB_TRY(check_positive("attention_factor", r->attention_factor, err));
    }
    return NB_OK;
}

/* What both sources must satisfy. */
static nb_status check(const nb_config *c, nb_err *err)
{
    if (c->n_heads % c->n_kv_heads != 0)
        return nb_fail(err, NB_DATA, "%lld attention heads cannot share %lld key-value heads",
                       (long long)c->n_heads, (long long)c->n_kv_heads);
    if (c->n_heads / c->n_kv_heads > NB_ATTN_ROWS)
        return nb_fail(err, NB_UNSUPPORTED,
                       "%lld query heads per key-value head; at most %d are supported",
                       (long long)(c->n_heads / c->n_kv_heads), NB_ATTN_ROWS);
    if (c->head_dim > NB_ATTN_MAX_DIM)
        return nb_fail(err, NB_UNSUPPORTED, "heads of %lld dimensions; at most %d are supported",
                       (long long)c->head_dim, NB_ATTN_MAX_DIM);
    return check_rope(c, err);
}

/* ---- Hugging Face ---- */

/* The keys of rope_scaling or of rope_parameters; `top` is the object that holds it. */
static nb_status read_rope_scaling(const json_t *scaling, const json_t *top, nb_config *c,
                                   nb_err *err)
{
    nb_rope *r = &c->rope;
    const char *type = NULL;
    NB_TRY(nb_json_text(scaling, "rope_type", false, &type, err));
    if (type == NULL)
        NB_TRY(nb_json_text(scaling, "type", false, &type, err));
    if (type == NULL)
        return nb_fail(err, NB_DATA, "key 'rope_type' is missing");
    static const struct {
        const char *name;
        nb_rope_type type;
    } known[] = {{"default", NB_ROPE_DEFAULT},
                 {"linear", NB_ROPE_LINEAR},
                 {"dynamic", NB_ROPE_DYNAMIC},
                 {"llama3", NB_ROPE_LLAMA3},
                 {"yarn", NB_ROPE_YARN}};
    size_t i = 0;
    while (i < sizeof known / sizeof *known && strcmp(known[i].name, type) != 0)
        i++;
    if (i == sizeof known / sizeof *known)
        return nb_fail(err, NB_UNSUPPORTED, "rope_type '%s' is not supported", type);
    r->type = known[i].type;
    if (r->type == NB_ROPE_DEFAULT)
        return NB_OK;
    NB_TRY(nb_json_number(scaling, "factor", true, &r->factor, err));
    const bool original_needed = r->type == NB_ROPE_LLAMA3;
    int64_t original = 0;
    NB_TRY(nb_json_int(scaling, "original_max_position_embeddings", false, 1, MAX_CTX, &original,
                       err));
    if (original == 0)
        NB_TRY(nb_json_int(top, "original_max_position_embeddings", false, 1, MAX_CTX, &original,
                           err));
    if (original == 0 && original_needed)
        return nb_fail(err, NB_DATA, "key 'original_max_position_embeddings' is missing");
    r->original_n_ctx = original != 0 ? original : c->n_ctx;
    NB_TRY(nb_json_number(scaling, "low_freq_factor", original_needed, &r->low_freq_factor, err));
    NB_TRY(nb_json_number(scaling, "high_freq_factor", original_needed, &r->high_freq_factor, err));
    NB_TRY(nb_json_number(scaling, "beta_fast", false, &r->beta_fast, err));
    NB_TRY(nb_json_number(scaling, "beta_slow", false, &r->beta_slow, err));
    NB_TRY(nb_json_number(scaling, "attention_factor", false, &r->attention_factor, err));
    NB_TRY(nb_json_number(scaling, "mscale", false, &r->mscale, err));
    NB_TRY(nb_json_number(scaling, "mscale_all_dim", false, &r->mscale_all_dim, err));
    return nb_json_bool(scaling, "truncate", false, &r->truncate, err);
}

/* Where RoPE is described: `rope_parameters` holds everything in newer files, before there were
 * rope_theta, partial_rotary_factor and rope_scaling side by side. */
static nb_status read_rope_hf(const json_t *j, nb_config *c, nb_err *err)
{
    json_t *scaling = NULL, *parameters = NULL;
    double partial = 1;
    NB_TRY(nb_json_object(j, "rope_scaling", false, &scaling, err));
    NB_TRY(nb_json_object(j, "rope_parameters", false, &parameters, err));
    NB_TRY(nb_json_number(j, "rope_theta", false, &c->rope.base, err));
    NB_TRY(nb_json_number(j, "partial_rotary_factor", false, &partial, err));
    if (parameters != NULL) {
        NB_TRY(nb_json_number(parameters, "rope_theta", false, &c->rope.base, err));
        NB_TRY(nb_json_number(parameters, "partial_rotary_factor", false, &partial, err));
    }
    NB_TRY(check_positive("rope_theta", c->rope.base, err));
    if (!(partial > 0 && partial <= 1))
        return nb_fail(err, NB_DATA, "key 'partial_rotary_factor' is %g, outside 0 to 1", partial);
    c->rot_dim = (int64_t)((double)c->head_dim * partial);
    const bool has_scaling = scaling != NULL && json_object_size(scaling) > 0;
    if (has_scaling && parameters != NULL && !json_equal(scaling, parameters))
        return nb_fail(err, NB_UNSUPPORTED,
                       "rope_scaling and rope_parameters are both given, and differ");
    const char *key;
    json_t *v;
    json_object_foreach(parameters, key, v)
    {
        if (json_is_object(v))
            return nb_fail(err, NB_UNSUPPORTED,
                           "rope_parameters has an entry for '%s'; one RoPE for all layers is "
                           "supported",
                           key);
    }
    /* Without a type, and with nothing to scale by, rope_parameters hold the base and no more. */
    const bool plain = json_object_get(parameters, "rope_type") == NULL &&
                       json_object_get(parameters, "type") == NULL &&
                       json_object_get(parameters, "factor") == NULL;
    if (!has_scaling && plain)
        return NB_OK;
    const nb_status s = read_rope_scaling(has_scaling ? scaling : parameters, j, c, err);
    return s == NB_OK ? s : nb_context(err, has_scaling ? "rope_scaling" : "rope_parameters");
}

static nb_status find_arch_hf(const json_t *j, const nb_arch **arch, nb_err *err)
{
    const char *type = NULL, *class_name = NULL;
    NB_TRY(nb_json_text(j, "model_type", false, &type, err));
    json_t *classes = NULL;
    NB_TRY(nb_json_array(j, "architectures", false, &classes, err));
    if (classes != NULL && json_is_string(json_array_get(classes, 0)))
        class_name = json_string_value(json_array_get(classes, 0));
    if (type == NULL && class_name == NULL)
        return nb_fail(err, NB_DATA, "keys 'model_type' and 'architectures' are missing");
    *arch = type != NULL ? nb_arch_by_hf(type) : nb_arch_by_class(class_name);
    if (*arch == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "model type '%s' is not supported",
                       type != NULL ? type : class_name);
    return NB_OK;
}

/* A token id, or the first of a list. One that the vocabulary does not have is ignored, as the
 * field does, and leaves a warning. */
static void read_token_id(const json_t *j, const char *key, nb_config *c, int64_t *out)
{
    const json_t *v = json_object_get(j, key);
    if (json_is_array(v))
        v = json_array_get(v, 0);
    if (v == NULL || json_is_null(v))
        return;
    if (json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) < c->vocab_size)
        *out = json_integer_value(v);
    else
        snprintf(c->warning, sizeof c->warning,
                 "key '%s' is no id of the vocabulary of %lld, and is ignored", key,
                 (long long)c->vocab_size);
}

static nb_status read_window_hf(const json_t *j, nb_config *c, nb_err *err)
{
    int64_t window = 0;
    bool use = c->arch->window_always;
    NB_TRY(nb_json_int(j, "sliding_window", false, 1, MAX_CTX, &window, err));
    if (c->arch->window_switch)
        NB_TRY(nb_json_bool(j, "use_sliding_window", false, &use, err));
    if (!use || window == 0)
        return NB_OK;
    if (c->arch->window_switch) {
        int64_t first = 0;
        NB_TRY(nb_json_int(j, "max_window_layers", false, 0, MAX_LAYERS, &first, err));
        if (first >= c->n_layers)
            return NB_OK;
        if (first > 0)
            return nb_fail(err, NB_UNSUPPORTED, "a sliding window on layers %lld and up only",
                           (long long)first);
    }
    c->sliding_window = window;
    return NB_OK;
}

/* Models that list a kind of attention per layer must list full attention everywhere. */
static nb_status check_layer_types(const json_t *j, const nb_config *c, nb_err *err)
{
    json_t *types = NULL;
    NB_TRY(nb_json_array(j, "layer_types", false, &types, err));
    size_t i;
    json_t *v;
    json_array_foreach(types, i, v)
    {
        const char *name = json_string_value(v);
        if (name != NULL && strcmp(name, "full_attention") == 0 && c->sliding_window == 0)
            continue;
        if (name != NULL && strcmp(name, "sliding_attention") == 0 && c->sliding_window != 0)
            continue;
        return nb_fail(err, NB_UNSUPPORTED, "layer_types[%zu] is '%s', which is not supported here",
                       i, name != NULL ? name : "not a string");
    }
    return NB_OK;
}

static nb_status read_hf(const json_t *j, nb_config *c, nb_err *err)
{
    NB_TRY(find_arch_hf(j, &c->arch, err));
    NB_TRY(nb_json_int(j, "num_hidden_layers", true, 1, MAX_LAYERS, &c->n_layers, err));
    NB_TRY(nb_json_int(j, "hidden_size", true, 1, MAX_WIDTH, &c->d_model, err));
    NB_TRY(nb_json_int(j, "intermediate_size", true, 1, MAX_FF, &c->d_ff, err));
    NB_TRY(nb_json_int(j, "vocab_size", true, 1, MAX_VOCAB, &c->vocab_size, err));
    NB_TRY(nb_json_int(j, "num_attention_heads", true, 1, MAX_HEADS, &c->n_heads, err));
    c->n_kv_heads = c->n_heads;
    NB_TRY(nb_json_int(j, "num_key_value_heads", false, 1, MAX_HEADS, &c->n_kv_heads, err));
    NB_TRY(nb_json_int(j, "head_dim", false, 1, MAX_WIDTH, &c->head_dim, err));
    if (c->head_dim == 0 && c->d_model % c->n_heads != 0)
        return nb_fail(err, NB_DATA, "hidden_size %lld is no multiple of num_attention_heads %lld",
                       (long long)c->d_model, (long long)c->n_heads);
    if (c->head_dim == 0)
        c->head_dim = c->d_model / c->n_heads;
    c->n_ctx = 2048;
    NB_TRY(nb_json_int(j, "max_position_embeddings", false, 1, MAX_CTX, &c->n_ctx, err));
    double eps = 1e-6;
    NB_TRY(nb_json_number(j, "rms_norm_eps", false, &eps, err));
    c->rms_eps = (float)eps;
    NB_TRY(check_positive("rms_norm_eps", (double)c->rms_eps, err));

    const char *act = "silu";
    NB_TRY(nb_json_text(j, "hidden_act", false, &act, err));
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        return nb_fail(err, NB_UNSUPPORTED, "hidden_act '%s' is not supported for %s", act,
                       c->arch->name);
    c->tied_head = c->arch->tied_default;
    NB_TRY(nb_json_bool(j, "tie_word_embeddings", false, &c->tied_head, err));
    c->qkv_bias = c->arch->qkv_bias;
    c->qk_norm = c->arch->qk_norm;
    if (c->arch->bias_keys) {
        NB_TRY(nb_json_bool(j, "attention_bias", false, &c->qkv_bias, err));
        c->o_bias = c->qkv_bias;
        NB_TRY(nb_json_bool(j, "mlp_bias", false, &c->mlp_bias, err));
    }

    NB_TRY(read_rope_hf(j, c, err));
    NB_TRY(read_window_hf(j, c, err));
    NB_TRY(check_layer_types(j, c, err));
    read_token_id(j, "bos_token_id", c, &c->bos);
    read_token_id(j, "eos_token_id", c, &c->eos);
    return NB_OK;
}

/* ---- GGUF ---- */

static void key_name(char *out, size_t size, const nb_arch *arch, const char *suffix)
{
    snprintf(out, size, "%s.%s", arch->gguf_name, suffix);
}

static nb_status arch_int(const nb_gguf *g, const nb_arch *arch, const char *suffix, bool required,
                          int64_t max, int64_t *out, nb_err *err)
{
    char key[128];
    key_name(key, sizeof key, arch, suffix);
    return nb_gguf_int(g, key, required, 1, max, out, err);
}

static nb_status arch_number(const nb_gguf *g, const nb_arch *arch, const char *suffix,
                             bool required, double *out, nb_err *err)
{
    char key[128];
    key_name(key, sizeof key, arch, suffix);
    return nb_gguf_number(g, key, required, out, err);
}

static nb_status refuse_text(const nb_text *t, const char *what, nb_err *err)
{
    return nb_fail(err, NB_UNSUPPORTED, "%s '%.*s' is not supported", what,
                   (int)(t->len < 200 ? t->len : 200), t->text);
}

static bool text_is(const nb_text *t, const char *s)
{
    return t->len == strlen(s) && memcmp(t->text, s, t->len) == 0;
}

/* Keys that would change the numbers: each must be missing or have the value that changes nothing.
 */
typedef struct {
    const char *suffix;
    double harmless;
} neutral_key;

static nb_status check_neutral(const nb_gguf *g, const nb_arch *arch, const neutral_key *k,
                               nb_err *err)
{
    double v = k->harmless;
    NB_TRY(arch_number(g, arch, k->suffix, false, &v, err));
    if (v != k->harmless)
        return nb_fail(err, NB_UNSUPPORTED, "key '%s.%s' is %g, which is not supported",
                       arch->gguf_name, k->suffix, v);
    return NB_OK;
}

/* ggml's YaRN has the factor on cos and sin that follows from the scaling; what bends it further
 * is refused. */
static nb_status read_yarn_gguf(const nb_gguf *g, nb_config *c, nb_err *err)
{
    nb_rope *r = &c->rope;
    r->original_n_ctx = c->n_ctx;
    NB_TRY(arch_int(g, c->arch, "rope.scaling.original_context_length", false, MAX_CTX,
                    &r->original_n_ctx, err));
    NB_TRY(arch_number(g, c->arch, "rope.scaling.yarn_beta_fast", false, &r->beta_fast, err));
    NB_TRY(arch_number(g, c->arch, "rope.scaling.yarn_beta_slow", false, &r->beta_slow, err));
    static const neutral_key keys[] = {{"rope.scaling.attn_factor", 1},
                                       {"rope.scaling.yarn_attn_factor", 1},
                                       {"rope.scaling.yarn_ext_factor", 1},
                                       {"rope.scaling.yarn_log_multiplier", 0}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        NB_TRY(check_neutral(g, c->arch, &keys[i], err));
    return NB_OK;
}

/* A factor without a type scales linearly, and scale_linear is the older name of the factor, as
 * ggml reads them. */
static nb_status read_rope_gguf(const nb_gguf *g, nb_config *c, nb_err *err)
{
    nb_rope *r = &c->rope;
    char key[128];
    key_name(key, sizeof key, c->arch, "rope.freq_base");
    NB_TRY(nb_gguf_number(g, key, false, &r->base, err));
    NB_TRY(check_positive(key, r->base, err));
    NB_TRY(arch_number(g, c->arch, "rope.scale_linear", false, &r->factor, err));
    NB_TRY(arch_number(g, c->arch, "rope.scaling.factor", false, &r->factor, err));
    nb_text type = {0};
    key_name(key, sizeof key, c->arch, "rope.scaling.type");
    NB_TRY(nb_gguf_text(g, key, false, &type, err));
    if (type.text != NULL && text_is(&type, "none"))
        return NB_OK;
    if (type.text == NULL && (r->factor == 0 || r->factor == 1))
        return NB_OK;
    if (type.text == NULL || text_is(&type, "linear"))
        r->type = NB_ROPE_LINEAR;
    else if (text_is(&type, "yarn"))
        r->type = NB_ROPE_YARN;
    else
        return refuse_text(&type, "RoPE scaling", err);
    key_name(key, sizeof key, c->arch, "rope.scaling.factor");
    if (r->factor == 0)
        NB_TRY(nb_gguf_number(g, key, true, &r->factor, err));
    NB_TRY(check_positive(key, r->factor, err));
    return r->type == NB_ROPE_YARN ? read_yarn_gguf(g, c, err) : NB_OK;
}

static nb_status read_gguf(nb_store *store, nb_config *c, nb_err *err)
{
    const nb_gguf *g = nb_store_gguf(store);
    nb_text name;
    NB_TRY(nb_gguf_text(g, "general.architecture", true, &name, err));
    char arch_name[64];
    snprintf(arch_name, sizeof arch_name, "%.*s", (int)(name.len < 63 ? name.len : 63), name.text);
    c->arch = nb_arch_by_gguf(arch_name);
    if (c->arch == NULL)
        return refuse_text(&name, "architecture", err);
    const nb_arch *a = c->arch;
    NB_TRY(arch_int(g, a, "block_count", true, MAX_LAYERS, &c->n_layers, err));
    NB_TRY(arch_int(g, a, "embedding_length", true, MAX_WIDTH, &c->d_model, err));
    NB_TRY(arch_int(g, a, "feed_forward_length", true, MAX_FF, &c->d_ff, err));
    NB_TRY(arch_int(g, a, "attention.head_count", true, MAX_HEADS, &c->n_heads, err));
    c->n_kv_heads = c->n_heads;
    NB_TRY(arch_int(g, a, "attention.head_count_kv", false, MAX_HEADS, &c->n_kv_heads, err));
    NB_TRY(arch_int(g, a, "context_length", true, MAX_CTX, &c->n_ctx, err));
    NB_TRY(arch_int(g, a, "attention.key_length", false, MAX_WIDTH, &c->head_dim, err));
    int64_t value_length = c->head_dim;
    NB_TRY(arch_int(g, a, "attention.value_length", false, MAX_WIDTH, &value_length, err));
    if (c->head_dim == 0 && c->d_model % c->n_heads != 0)
        return nb_fail(err, NB_DATA,
                       "%s.embedding_length %lld is no multiple of attention.head_count %lld",
                       a->gguf_name, (long long)c->d_model, (long long)c->n_heads);
    if (c->head_dim == 0)
        c->head_dim = c->d_model / c->n_heads;
    if (value_length != 0 && value_length != c->head_dim)
        return nb_fail(err, NB_UNSUPPORTED, "keys of %lld and values of %lld dimensions",
                       (long long)c->head_dim, (long long)value_length);
    c->rot_dim = c->head_dim;
    NB_TRY(arch_int(g, a, "rope.dimension_count", false, MAX_WIDTH, &c->rot_dim, err));
    char key[128];
    double eps = 0;
    key_name(key, sizeof key, a, "attention.layer_norm_rms_epsilon");
    NB_TRY(nb_gguf_number(g, key, true, &eps, err));
    c->rms_eps = (float)eps;
    NB_TRY(check_positive(key, (double)c->rms_eps, err));
    static const neutral_key refused[] = {
        {"attn_logit_softcapping", 0}, {"final_logit_softcapping", 0}, {"attention.scale", 0},
        {"embedding_scale", 0},        {"residual_scale", 0},          {"logit_scale", 0},
        {"attention.clamp_kqv", 0}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        NB_TRY(check_neutral(g, a, &refused[i], err));
    int64_t n_experts = 0;
    key_name(key, sizeof key, a, "expert_count");
    NB_TRY(nb_gguf_int(g, key, false, 0, INT64_MAX, &n_experts, err));
    if (n_experts != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "key '%s' is %lld: mixtures of experts are not "
                       "supported",
                       key, (long long)n_experts);
    NB_TRY(read_rope_gguf(g, c, err));
    if (nb_store_find(store, "rope_freqs.weight") != NULL) {
        if (c->rope.type != NB_ROPE_DEFAULT)
            return nb_fail(err, NB_UNSUPPORTED,
                           "tensor 'rope_freqs.weight' and RoPE scaling by keys, both at once");
        c->rope.type = NB_ROPE_FACTORS;
    }
    key_name(key, sizeof key, a, "attention.sliding_window");
    NB_TRY(nb_gguf_int(g, key, false, 0, MAX_CTX, &c->sliding_window, err));

    /* The rows of the embedding are the vocabulary; a key that says otherwise lies. */
    const nb_weight *embed = nb_store_find(store, "model.embed_tokens.weight");
    if (embed == NULL)
        return nb_fail(err, NB_DATA, "tensor 'token_embd.weight' is missing");
    if (embed->n_rows > MAX_VOCAB)
        return nb_fail(err, NB_DATA, "a vocabulary of %lld tokens", (long long)embed->n_rows);
    c->vocab_size = embed->n_rows;
    int64_t said = embed->n_rows;
    NB_TRY(arch_int(g, a, "vocab_size", false, MAX_VOCAB, &said, err));
    if (said != embed->n_rows)
        return nb_fail(err, NB_DATA, "%s.vocab_size is %lld, and token_embd.weight has %lld rows",
                       a->gguf_name, (long long)said, (long long)embed->n_rows);
    NB_TRY(
        nb_gguf_int(g, "tokenizer.ggml.bos_token_id", false, 0, c->vocab_size - 1, &c->bos, err));
    NB_TRY(
        nb_gguf_int(g, "tokenizer.ggml.eos_token_id", false, 0, c->vocab_size - 1, &c->eos, err));
    c->tied_head = nb_store_find(store, "lm_head.weight") == NULL;
    c->qkv_bias =
        a->qkv_bias || nb_store_find(store, "model.layers.0.self_attn.q_proj.bias") != NULL;
    c->o_bias = nb_store_find(store, "model.layers.0.self_attn.o_proj.bias") != NULL;
    c->mlp_bias = nb_store_find(store, "model.layers.0.mlp.down_proj.bias") != NULL;
    c->qk_norm = a->qk_norm;
    return NB_OK;
}

nb_status nb_config_read(nb_store *store, nb_config *out, nb_err *err)
{
    nb_config c = {.rope = {.base = 10000, .beta_fast = 32, .beta_slow = 1, .truncate = true},
                   .bos = -1,
                   .eos = -1};
    nb_status s;
    if (nb_store_kind_of(store) == NB_STORE_HF) {
        if (nb_store_config(store) == NULL)
            s = nb_fail(err, NB_DATA, "the folder has no config.json");
        else
            s = read_hf(nb_store_config(store), &c, err);
    } else {
        s = read_gguf(store, &c, err);
    }
    if (s == NB_OK)
        s = check(&c, err);
    if (s != NB_OK) {
        const bool folder = nb_store_kind_of(store) == NB_STORE_HF;
        return nb_context(err, "%s%s", nb_store_path(store), folder ? "/config.json" : "");
    }
    c.kv_scheme = nb_store_kv_scheme(store);
    *out = c;
    return NB_OK;
}
