/* Writing a config: as a config.json, or as a GGUF's keys; see config.h. What the other side has
 * no word for is refused by name. */
#include "model/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A float as somebody would have written it: 1e-05, and not the 9.9999997473787516e-06 it is. */
static double shortest_decimal(float v)
{
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)v);
        const double back = strtod(text, NULL);
        if ((float)back == v)
            return back;
    }
    return (double)v;
}

/* ---- config.json ---- */

/* Whether a config.json of `arch` can say where this network has biases, norms and a window. */
static bool can_say(const nb_arch *arch, const nb_config *c)
{
    if (arch->qk_norm != c->qk_norm)
        return false;
    if (c->sliding_window != 0 && !arch->window_always && !arch->window_switch)
        return false;
    if (arch->bias_keys)
        return c->qkv_bias == c->o_bias;
    return c->qkv_bias == arch->qkv_bias && !c->o_bias && !c->mlp_bias;
}

/* GGUF calls several of Hugging Face's architectures by one name: of those, one that can say what
 * this network is. */
static nb_status find_hf_arch(const nb_config *c, const nb_arch **out, nb_err *err)
{
    *out = c->arch;
    if (can_say(c->arch, c))
        return NB_OK;
    for (const nb_arch *const *a = nb_archs; *a != NULL; a++) {
        *out = *a;
        if (strcmp((*a)->gguf_name, c->arch->gguf_name) == 0 && can_say(*a, c))
            return NB_OK;
    }
    return nb_fail(err, NB_UNSUPPORTED,
                   "no config.json of %s can say: biases on q, k, v %s, on o %s, in the MLP %s, "
                   "sliding window %lld",
                   c->arch->gguf_name, c->qkv_bias ? "yes" : "no", c->o_bias ? "yes" : "no",
                   c->mlp_bias ? "yes" : "no", (long long)c->sliding_window);
}

/* jansson's setters report a value that could not be made as well as a key that could not. */
static int set_int(json_t *j, const char *key, int64_t v)
{
    return json_object_set_new(j, key, json_integer(v));
}

static int set_real(json_t *j, const char *key, double v)
{
    return json_object_set_new(j, key, json_real(v));
}

static int set_bool(json_t *j, const char *key, bool v)
{
    return json_object_set_new(j, key, json_boolean(v));
}

static int set_optional_real(json_t *j, const char *key, double v)
{
    return v == 0 ? 0 : set_real(j, key, v);
}

static int set_yarn(json_t *j, const nb_rope *r)
{
    int bad = set_real(j, "beta_fast", r->beta_fast);
    bad |= set_real(j, "beta_slow", r->beta_slow);
    bad |= set_optional_real(j, "attention_factor", r->attention_factor);
    bad |= set_optional_real(j, "mscale", r->mscale);
    bad |= set_optional_real(j, "mscale_all_dim", r->mscale_all_dim);
    return bad | (r->truncate ? 0 : set_bool(j, "truncate", false));
}

static nb_status rope_scaling(const nb_config *c, json_t **out, nb_err *err)
{
    static const char *const names[] = {
        [NB_ROPE_LINEAR] = "linear",
        [NB_ROPE_DYNAMIC] = "dynamic",
        [NB_ROPE_LLAMA3] = "llama3",
        [NB_ROPE_YARN] = "yarn",
    };
    const nb_rope *r = &c->rope;
    *out = NULL;
    if (r->type == NB_ROPE_DEFAULT)
        return NB_OK;
    if (r->type == NB_ROPE_FACTORS)
        return nb_fail(err, NB_UNSUPPORTED,
                       "a table of RoPE factors has no place in a config.json");
    json_t *j = json_pack("{s:s,s:f}", "rope_type", names[r->type], "factor", r->factor);
    int bad = j == NULL;
    if (!bad && (r->type == NB_ROPE_LLAMA3 || r->type == NB_ROPE_YARN))
        bad = set_int(j, "original_max_position_embeddings", r->original_n_ctx);
    if (!bad && r->type == NB_ROPE_LLAMA3)
        bad = set_real(j, "low_freq_factor", r->low_freq_factor) |
              set_real(j, "high_freq_factor", r->high_freq_factor);
    if (!bad && r->type == NB_ROPE_YARN)
        bad = set_yarn(j, r);
    *out = j;
    if (!bad)
        return NB_OK;
    json_decref(j);
    return nb_fail(err, NB_MEMORY, "out of memory while writing rope_scaling");
}

/* Keys that some of the architectures have. */
static int set_flags(json_t *j, const nb_config *c, const nb_arch *arch)
{
    int bad = 0;
    if (arch->bias_keys)
        bad |= set_bool(j, "attention_bias", c->qkv_bias) | set_bool(j, "mlp_bias", c->mlp_bias);
    if (arch->window_switch)
        bad |= set_bool(j, "use_sliding_window", c->sliding_window != 0);
    if (arch->window_switch && c->sliding_window != 0)
        bad |= set_int(j, "max_window_layers", 0);
    if (c->sliding_window != 0)
        bad |= set_int(j, "sliding_window", c->sliding_window);
    else if (arch->window_always || arch->window_switch)
        bad |= json_object_set_new(j, "sliding_window", json_null());
    if (c->rot_dim != c->head_dim)
        bad |= set_real(j, "partial_rotary_factor", (double)c->rot_dim / (double)c->head_dim);
    if (c->bos >= 0)
        bad |= set_int(j, "bos_token_id", c->bos);
    if (c->eos >= 0)
        bad |= set_int(j, "eos_token_id", c->eos);
    return bad;
}

nb_status nb_config_to_json(const nb_config *c, json_t **out, nb_err *err)
{
    const nb_arch *arch = NULL;
    json_t *scaling = NULL;
    *out = NULL;
    NB_TRY(find_hf_arch(c, &arch, err));
    NB_TRY(rope_scaling(c, &scaling, err));
    /* Each list is short enough to be checked by eye against its format. */
    json_t *j = json_pack("{s:[s],s:s,s:s}", "architectures", arch->hf_class, "model_type",
                          arch->name, "hidden_act", "silu");
    json_t *sizes = json_pack(
        "{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "hidden_size", (json_int_t)c->d_model,
        "intermediate_size", (json_int_t)c->d_ff, "num_hidden_layers", (json_int_t)c->n_layers,
        "num_attention_heads", (json_int_t)c->n_heads, "num_key_value_heads",
        (json_int_t)c->n_kv_heads, "head_dim", (json_int_t)c->head_dim, "vocab_size",
        (json_int_t)c->vocab_size, "max_position_embeddings", (json_int_t)c->n_ctx);
    json_t *rest =
        json_pack("{s:f,s:f,s:o,s:b}", "rms_norm_eps", shortest_decimal(c->rms_eps), "rope_theta",
                  c->rope.base, "rope_scaling", scaling != NULL ? scaling : json_null(),
                  "tie_word_embeddings", (int)c->tied_head);
    const bool fine = j != NULL && sizes != NULL && rest != NULL &&
                      json_object_update(j, sizes) == 0 && json_object_update(j, rest) == 0 &&
                      set_flags(j, c, arch) == 0;
    json_decref(sizes);
    json_decref(rest);
    if (!fine) {
        json_decref(j);
        return nb_fail(err, NB_MEMORY, "out of memory while writing config.json");
    }
    *out = j;
    return NB_OK;
}

/* ---- GGUF ---- */

typedef struct {
    nb_buf *kv;
    int64_t n;
    const char *arch;
    char key[128];
} writer;

static const char *arch_key(writer *w, const char *suffix)
{
    snprintf(w->key, sizeof w->key, "%s.%s", w->arch, suffix);
    w->n++;
    return w->key;
}

static nb_status put_int(writer *w, const char *suffix, int64_t v, nb_err *err)
{
    if (v < 0 || v > UINT32_MAX)
        return nb_fail(err, NB_UNSUPPORTED, "%s.%s is %lld, which GGUF cannot hold", w->arch,
                       suffix, (long long)v);
    return nb_gguf_put_u32(w->kv, arch_key(w, suffix), (uint32_t)v, err);
}

static nb_status put_real(writer *w, const char *suffix, double v, nb_err *err)
{
    return nb_gguf_put_f32(w->kv, arch_key(w, suffix), (float)v, err);
}

static nb_status put_scaling(writer *w, const char *type, const nb_rope *r, nb_err *err)
{
    NB_TRY(nb_gguf_put_text(w->kv, arch_key(w, "rope.scaling.type"), type, strlen(type), err));
    return put_real(w, "rope.scaling.factor", r->factor, err);
}

/* ggml knows one YaRN: with truncated ranges, and with the factor on cos and sin that follows
 * from the scaling. */
static nb_status put_yarn(writer *w, const nb_rope *r, nb_err *err)
{
    if (!r->truncate)
        return nb_fail(err, NB_UNSUPPORTED, "rope_scaling: GGUF has no key for 'truncate'");
    if (r->attention_factor != 0 || (r->mscale != 0 && r->mscale_all_dim != 0))
        return nb_fail(err, NB_UNSUPPORTED,
                       "rope_scaling: GGUF has no key for 'attention_factor' and 'mscale'");
    NB_TRY(put_scaling(w, "yarn", r, err));
    NB_TRY(put_int(w, "rope.scaling.original_context_length", r->original_n_ctx, err));
    if (r->beta_fast != 32)
        NB_TRY(put_real(w, "rope.scaling.yarn_beta_fast", r->beta_fast, err));
    if (r->beta_slow != 1)
        NB_TRY(put_real(w, "rope.scaling.yarn_beta_slow", r->beta_slow, err));
    return NB_OK;
}

static nb_status put_rope(writer *w, const nb_config *c, nb_err *err)
{
    NB_TRY(put_real(w, "rope.freq_base", c->rope.base, err));
    NB_TRY(put_int(w, "rope.dimension_count", c->rot_dim, err));
    switch (c->rope.type) {
    case NB_ROPE_DEFAULT:
    case NB_ROPE_LLAMA3:  /* a tensor says it, and no key */
    case NB_ROPE_FACTORS: /* likewise */
        return NB_OK;
    case NB_ROPE_LINEAR:
        return put_scaling(w, "linear", &c->rope, err);
    case NB_ROPE_YARN:
        return put_yarn(w, &c->rope, err);
    case NB_ROPE_DYNAMIC:
        break;
    }
    return nb_fail(err, NB_UNSUPPORTED, "rope_scaling of type 'dynamic' has no GGUF keys");
}

static nb_status put_all(writer *w, const nb_config *c, nb_err *err)
{
    w->n++;
    NB_TRY(nb_gguf_put_text(w->kv, "general.architecture", w->arch, strlen(w->arch), err));
    NB_TRY(put_int(w, "block_count", c->n_layers, err));
    NB_TRY(put_int(w, "context_length", c->n_ctx, err));
    NB_TRY(put_int(w, "embedding_length", c->d_model, err));
    NB_TRY(put_int(w, "feed_forward_length", c->d_ff, err));
    NB_TRY(put_int(w, "attention.head_count", c->n_heads, err));
    NB_TRY(put_int(w, "attention.head_count_kv", c->n_kv_heads, err));
    if (c->n_heads * c->head_dim != c->d_model || c->qk_norm) {
        NB_TRY(put_int(w, "attention.key_length", c->head_dim, err));
        NB_TRY(put_int(w, "attention.value_length", c->head_dim, err));
    }
    NB_TRY(put_real(w, "attention.layer_norm_rms_epsilon", (double)c->rms_eps, err));
    NB_TRY(put_int(w, "vocab_size", c->vocab_size, err));
    if (c->sliding_window != 0)
        NB_TRY(put_int(w, "attention.sliding_window", c->sliding_window, err));
    return put_rope(w, c, err);
}

nb_status nb_config_to_gguf(const nb_config *c, nb_buf *kv, int64_t *n_kv, nb_err *err)
{
    writer w = {.kv = kv, .arch = c->arch->gguf_name};
    const size_t before = kv->len;
    const nb_status s = put_all(&w, c, err);
    if (s == NB_OK)
        *n_kv += w.n;
    else
        kv->len = before;
    return s;
}
