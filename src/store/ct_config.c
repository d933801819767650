/* The quantization_config that describes a plan (formats.md 4.1, 4.2, 4.5): exactly the keys that
 * readers of any age know, because the reference reader refuses others. */
#include "store/compressed_tensors.h"
#include "store/kv_scheme.h"
#include "store/store.h"

#include <string.h>

/* What weights of one config group share. */
typedef struct {
    int bits;
    bool symmetric;
    int64_t group_size; /* 0: one scale a row */
    int act_bits;
    bool is_float;
    int64_t block_rows; /* FP8: rows that share scales; 0: each its own, -1: all of them do */
    int64_t act_group;  /* FP8 */
    bool act_static;
} ct_key;

/* The distinct keys of a plan, in order of appearance. Their number is bounded by what a scheme
 * can mix; a plan beyond that is nobody's. */
#define MAX_GROUPS 64
typedef struct {
    ct_key keys[MAX_GROUPS];
    int n;
    bool linears_only; /* no embedding is quantized: the class name can stand for all targets */
} ct_groups;

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Length of "module" in "module.weight". */
static size_t module_len(const char *name)
{
    return strlen(name) - strlen(".weight");
}

static bool same_key(const ct_key *a, const ct_key *b)
{
    return a->bits == b->bits && a->symmetric == b->symmetric && a->group_size == b->group_size &&
           a->act_bits == b->act_bits && a->is_float == b->is_float &&
           a->block_rows == b->block_rows && a->act_group == b->act_group &&
           a->act_static == b->act_static;
}

static int64_t block_rows(const nb_weight *w)
{
    const bool all = w->scale_rows >= w->n_rows && w->group_size == w->n_cols;
    return w->scale_rows <= 1 ? 0 : all ? -1 : w->scale_rows;
}

static ct_key key_of(const nb_weight *w)
{
    return (ct_key){.bits = w->fmt->bits,
                    .symmetric = w->symmetric,
                    .group_size = w->group_size,
                    .act_bits = w->act.bits,
                    .is_float = w->fmt->levels != NULL,
                    .block_rows = block_rows(w),
                    .act_group = w->act.group_size,
                    .act_static = w->act.is_static};
}

static int find_key(const ct_groups *groups, const ct_key *key)
{
    for (int i = 0; i < groups->n; i++) {
        if (same_key(&groups->keys[i], key))
            return i;
    }
    return -1;
}

/* The group of a weight. One group as wide as the row is "channel", unless weights with more
 * columns have groups of this very size: then it is one of them. */
static int group_of(const ct_groups *groups, const nb_weight *w)
{
    ct_key key = key_of(w);
    const int by_size = find_key(groups, &key);
    if (by_size >= 0 || w->group_size != w->n_cols)
        return by_size;
    key.group_size = 0;
    return find_key(groups, &key);
}

static nb_status check_weight(const nb_weight *w, nb_err *err)
{
    if (!ends_with(w->name, ".weight"))
        return nb_fail(err, NB_UNSUPPORTED, "'%.200s' is quantized, and no module's weight",
                       w->name);
    if (w->fmt == &nb_format_nf4 || w->fmt == &nb_format_fp8_e5m2)
        return nb_fail(err, NB_UNSUPPORTED, "'%.200s': compressed-tensors has no %s", w->name,
                       w->fmt->name);
    if (w->fmt->levels != NULL && w->act.bits != 0 && !w->act.is_float)
        return nb_fail(err, NB_UNSUPPORTED, "'%.200s': %s with integer activations", w->name,
                       w->fmt->name);
    if (w->fmt->levels != NULL)
        return NB_OK;
    if (nb_format_of_bits(w->fmt->bits) == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "'%.200s': %d bits in a Hugging Face folder", w->name,
                       w->fmt->bits);
    if (w->act.bits != 0 && (w->act.bits != 8 || !w->act.per_token))
        return nb_fail(err, NB_UNSUPPORTED,
                       "'%.200s': activations of %d bits %s cannot be written to a Hugging Face "
                       "folder",
                       w->name, w->act.bits, w->act.per_token ? "per token" : "per group");
    return NB_OK;
}

static nb_status add_key(ct_groups *groups, const ct_key *key, nb_err *err)
{
    if (find_key(groups, key) >= 0)
        return NB_OK;
    if (groups->n == MAX_GROUPS)
        return nb_fail(err, NB_UNSUPPORTED, "more than %d kinds of quantized weights", MAX_GROUPS);
    groups->keys[groups->n++] = *key;
    return NB_OK;
}

static nb_status find_groups(ct_groups *groups, const nb_weight *plan, int64_t n, nb_err *err)
{
    groups->linears_only = true;
    for (int64_t i = 0; i < n; i++) {
        if (!plan[i].fmt->affine)
            continue;
        NB_TRY(check_weight(&plan[i], err));
        if (nb_ct_is_embedding(plan[i].name, module_len(plan[i].name)))
            groups->linears_only = false;
        const ct_key key = key_of(&plan[i]);
        if (plan[i].group_size != plan[i].n_cols || key.block_rows > 0)
            NB_TRY(add_key(groups, &key, err));
    }
    for (int64_t i = 0; i < n; i++) {
        if (!plan[i].fmt->affine || group_of(groups, &plan[i]) >= 0)
            continue;
        ct_key key = key_of(&plan[i]);
        key.group_size = 0;
        NB_TRY(add_key(groups, &key, err));
    }
    return NB_OK;
}

/* ---- as JSON; jansson's "_new" functions take the value over also when they fail ---- */

static json_t *args_json(int bits, bool symmetric, const char *strategy, int64_t group_size,
                         bool dynamic)
{
    return json_pack("{s:i,s:s,s:b,s:s,s:o,s:n,s:b,s:n,s:o,s:{}}", "num_bits", bits, "type", "int",
                     "symmetric", (int)symmetric, "strategy", strategy, "group_size",
                     group_size > 0 ? json_integer(group_size) : json_null(), "block_structure",
                     "dynamic", (int)dynamic, "actorder", "observer",
                     dynamic ? json_null() : json_string("minmax"), "observer_kwargs");
}

/* FP8: "tensor", "channel", "group" or "block". */
static json_t *fp8_weights_json(const ct_key *key)
{
    const char *strategy = key->block_rows < 0    ? "tensor"
                           : key->block_rows > 0  ? "block"
                           : key->group_size == 0 ? "channel"
                                                  : "group";
    const bool group = key->block_rows == 0 && key->group_size > 0;
    json_t *args = args_json(8, true, strategy, group ? key->group_size : 0, false);
    int bad = json_object_set_new(args, "type", json_string("float"));
    if (key->block_rows > 0)
        bad |= json_object_set_new(
            args, "block_structure",
            json_pack("[I,I]", (json_int_t)key->block_rows, (json_int_t)key->group_size));
    if (bad == 0)
        return args;
    json_decref(args);
    return NULL;
}

static json_t *fp8_act_json(const ct_key *key)
{
    if (key->act_bits == 0)
        return json_null();
    json_t *args = args_json(8, true,
                             key->act_static      ? "tensor"
                             : key->act_group > 0 ? "group"
                                                  : "token",
                             key->act_group, !key->act_static);
    if (json_object_set_new(args, "type", json_string("float")) == 0)
        return args;
    json_decref(args);
    return NULL;
}

/* The format whose tensors nb_sink_open_hf writes for this group. */
static const char *format_of(const ct_key *key)
{
    if (key->is_float)
        return key->act_bits != 0 ? "float-quantized" : "naive-quantized";
    return key->act_bits != 0 && key->bits == 8 ? "int-quantized" : "pack-quantized";
}

/* A reader would take int-quantized for narrow weights with 8-bit activations, and readers have to
 * be told where groups differ: the group's own format is written then, and else not, because
 * older readers do not know the key. */
static json_t *group_json(const ct_key *key, bool own_format)
{
    json_t *weights = args_json(key->bits, key->symmetric,
                                key->group_size > 0 ? "group" : "channel", key->group_size, false);
    json_t *act = key->act_bits != 0 ? args_json(8, true, key->act_static ? "tensor" : "token", 0,
                                                 !key->act_static)
                                     : json_null();
    if (key->is_float) {
        json_decref(weights);
        json_decref(act);
        weights = fp8_weights_json(key);
        act = fp8_act_json(key);
    }
    json_t *group = json_pack("{s:[],s:o,s:o,s:n}", "targets", "weights", weights,
                              "input_activations", act, "output_activations");
    if (group != NULL && own_format &&
        json_object_set_new(group, "format", json_string(format_of(key))) != 0) {
        json_decref(group);
        return NULL;
    }
    return group;
}

/* Appends the module of "module.weight". */
static int append_module(json_t *list, const char *name)
{
    return json_array_append_new(list, json_stringn(name, module_len(name)));
}

static bool is_plain_linear(const nb_weight *w)
{
    return !w->fmt->affine && w->n_dims == 2 && ends_with(w->name, ".weight") &&
           !nb_ct_is_embedding(w->name, module_len(w->name));
}

/* lm_head is a Linear of the model even where its weight is the embedding's and not in the file. */
static int fill_ignore(json_t *ignore, const nb_weight *plan, int64_t n)
{
    bool head_done = false;
    int bad = 0;
    for (int64_t i = 0; i < n; i++) {
        if (is_plain_linear(&plan[i]))
            bad |= append_module(ignore, plan[i].name);
        head_done = head_done || strcmp(plan[i].name, "lm_head.weight") == 0;
    }
    if (!head_done)
        bad |= json_array_append_new(ignore, json_string("lm_head"));
    return bad;
}

static int fill_targets(json_t *const *lists, const ct_groups *groups, const nb_weight *plan,
                        int64_t n)
{
    if (groups->n == 1 && groups->linears_only)
        return json_array_append_new(lists[0], json_string("Linear"));
    int bad = 0;
    for (int64_t i = 0; i < n; i++) {
        if (plan[i].fmt->affine)
            bad |= append_module(lists[group_of(groups, &plan[i])], plan[i].name);
    }
    return bad;
}

static json_t *config_json(const ct_groups *groups, const nb_weight *plan, int64_t n)
{
    const char *format = groups->n > 0 ? format_of(&groups->keys[0]) : "dense";
    bool mixed = false, surprising = false;
    for (int i = 0; i < groups->n; i++) {
        const ct_key *key = &groups->keys[i];
        mixed = mixed || strcmp(format, format_of(key)) != 0;
        surprising = surprising || (key->act_bits != 0 && key->bits < 8);
    }
    if (mixed)
        format = "mixed-precision";

    json_t *config =
        json_pack("{s:s,s:s,s:s,s:{},s:[],s:o,s:n}", "quant_method", "compressed-tensors", "format",
                  format, "quantization_status", "compressed", "config_groups", "ignore",
                  "kv_cache_scheme", nb_kv_scheme_json(plan, n), "global_compression_ratio");
    json_t *all = json_object_get(config, "config_groups");
    json_t *targets[MAX_GROUPS];
    int bad = config == NULL;
    for (int i = 0; i < groups->n && !bad; i++) {
        char name[32] = "group_";
        name[6] = (char)(i < 10 ? '0' + i : '0' + i / 10);
        name[7] = (char)(i < 10 ? 0 : '0' + i % 10);
        json_t *group = group_json(&groups->keys[i], mixed || surprising);
        targets[i] = json_object_get(group, "targets");
        bad = json_object_set_new(all, name, group) != 0;
    }
    if (!bad)
        bad = fill_targets(targets, groups, plan, n);
    if (!bad)
        bad = fill_ignore(json_object_get(config, "ignore"), plan, n);
    if (!bad)
        return config;
    json_decref(config);
    return NULL;
}

nb_status nb_ct_config(json_t **out, const nb_weight *plan, int64_t n_weights, nb_err *err)
{
    *out = NULL;
    ct_groups groups = {0};
    if (find_groups(&groups, plan, n_weights, err) != NB_OK)
        return nb_context(err, "quantization_config");
    bool any = groups.n > 0;
    for (int64_t i = 0; i < n_weights; i++)
        any = any || nb_weight_is_kv_scale(&plan[i]);
    if (!any)
        return NB_OK;
    *out = config_json(&groups, plan, n_weights);
    return *out != NULL
               ? NB_OK
               : nb_fail(err, NB_MEMORY, "out of memory while writing quantization_config");
}
