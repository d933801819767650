/* See kv_scheme.h. */
#include "store/kv_scheme.h"

#include <string.h>

/* ---- the configuration ---- */

static nb_status parse_object(nb_kv_scheme *out, const json_t *v, nb_err *err)
{
    int64_t bits = 8;
    const char *type = "int", *strategy = "tensor"; /* as readers take what is left out */
    bool symmetric = true, dynamic = false;
    NB_TRY(nb_json_int(v, "num_bits", false, 1, 64, &bits, err));
    NB_TRY(nb_json_text(v, "type", false, &type, err));
    NB_TRY(nb_json_bool(v, "symmetric", false, &symmetric, err));
    NB_TRY(nb_json_text(v, "strategy", false, &strategy, err));
    NB_TRY(nb_json_bool(v, "dynamic", false, &dynamic, err));
    if (bits != 8 || strcmp(type, "float") != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "a cache of type '%.30s' with %lld bits is not supported (float with 8 is)",
                       type, (long long)bits);
    if (!symmetric)
        return nb_fail(err, NB_UNSUPPORTED, "an asymmetric cache is not supported");
    const bool known = strcmp(strategy, "tensor") == 0 || strcmp(strategy, "attn_head") == 0 ||
                       (dynamic && strcmp(strategy, "token") == 0);
    if (!known)
        return nb_fail(err, NB_UNSUPPORTED,
                       "strategy '%.30s' is not supported (tensor and attn_head are)", strategy);
    *out = dynamic ? NB_KV_SCHEME_DYNAMIC : NB_KV_SCHEME_STATIC;
    return NB_OK;
}

static nb_status parse(nb_kv_scheme *out, const json_t *v, bool words, nb_err *err)
{
    const char *word = json_string_value(v);
    if (json_is_object(v))
        return parse_object(out, v, err);
    if (word == NULL || !words)
        return nb_fail(err, NB_DATA, "is %s, and has to be an object", nb_json_type_name(v));
    if (strcmp(word, "static") != 0 && strcmp(word, "dynamic") != 0)
        return nb_fail(err, NB_UNSUPPORTED, "'%.30s' is not supported (static and dynamic are)",
                       word);
    *out = strcmp(word, "static") == 0 ? NB_KV_SCHEME_STATIC : NB_KV_SCHEME_DYNAMIC;
    return NB_OK;
}

nb_status nb_kv_scheme_parse(nb_kv_scheme *out, const json_t *config, bool words, nb_err *err)
{
    *out = NB_KV_SCHEME_NONE;
    if (!nb_json_given(config, "kv_cache_scheme"))
        return NB_OK;
    const nb_status s = parse(out, json_object_get(config, "kv_cache_scheme"), words, err);
    return s == NB_OK ? NB_OK : nb_context(err, "kv_cache_scheme");
}

/* ---- names ---- */

static const char *const key_names[] = {"k_scale", "k_proj.k_scale", "k_proj.output_scale", NULL};
static const char *const value_names[] = {"v_scale", "v_proj.v_scale", "v_proj.output_scale", NULL};
static const char *const both_names[] = {"kv_scale", NULL};
static const char *const *const spellings[] = {key_names, value_names, both_names};

const char *nb_kv_scale_part(const char *name, size_t *prefix)
{
    static const char layers[] = "model.layers.", attention[] = ".self_attn.";
    if (strncmp(name, layers, sizeof layers - 1) != 0)
        return NULL;
    const char *digits = name + sizeof layers - 1;
    const size_t n = strspn(digits, "0123456789");
    if (n == 0 || strncmp(digits + n, attention, sizeof attention - 1) != 0)
        return NULL;
    const char *rest = digits + n + sizeof attention - 1;
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
        for (int j = 0; spellings[i][j] != NULL; j++) {
            if (strcmp(rest, spellings[i][j]) == 0) {
                *prefix = (size_t)(rest - name);
                return spellings[i][0];
            }
        }
    }
    return NULL;
}

const char *const *nb_kv_scale_spellings(const char *part)
{
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
        if (strcmp(spellings[i][0], part) == 0)
            return spellings[i];
    }
    return NULL;
}

bool nb_weight_is_kv_scale(const nb_weight *w)
{
    size_t prefix;
    return nb_kv_scale_part(w->name, &prefix) != NULL;
}

/* ---- writing ---- */

json_t *nb_kv_scheme_json(const nb_weight *plan, int64_t n_weights)
{
    bool any = false, by_head = false;
    for (int64_t i = 0; i < n_weights; i++) {
        const bool is = nb_weight_is_kv_scale(&plan[i]);
        any = any || is;
        by_head = by_head || (is && plan[i].n_dims == 3);
    }
    if (!any)
        return json_null();
    return json_pack("{s:i,s:s,s:b,s:s,s:n,s:n,s:b,s:n,s:s,s:{}}", "num_bits", 8, "type", "float",
                     "symmetric", 1, "strategy", by_head ? "attn_head" : "tensor", "group_size",
                     "block_structure", "dynamic", 0, "actorder", "observer", "minmax",
                     "observer_kwargs");
}
