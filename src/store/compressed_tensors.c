/* See compressed_tensors.h. */
#include "store/compressed_tensors.h"

#include "store/ct_pack.h"
#include "store/fp8.h"
#include "store/kv_scheme.h"

#include <string.h>

/* ---- the configuration ---- */

/* A key that must be absent, null, or an empty object. */
static nb_status must_be_empty(const json_t *object, const char *key, nb_err *err)
{
    const json_t *v = json_object_get(object, key);
    if (!nb_json_given(object, key) || (json_is_object(v) && json_object_size(v) == 0))
        return NB_OK;
    return nb_fail(err, NB_UNSUPPORTED, "%s is not supported", key);
}

static nb_status parse_all_targets(nb_ct *ct, nb_arena *arena, const json_t *groups,
                                   const json_t *ignore, int64_t n_modules, nb_err *err)
{
    int64_t n_names = 0, n_regexes = 0, n_ignored_names = 0, n_ignored_regexes = 0;
    uint32_t steps;
    if (nb_ct_targets_count(ignore, &n_ignored_names, &n_ignored_regexes, err) != NB_OK)
        return nb_context(err, "ignore");
    void *it = json_object_iter((json_t *)groups);
    for (; it != NULL; it = json_object_iter_next((json_t *)groups, it)) {
        json_t *targets;
        nb_status s = nb_json_array(json_object_iter_value(it), "targets", true, &targets, err);
        if (s == NB_OK)
            s = nb_ct_targets_count(targets, &n_names, &n_regexes, err);
        if (s != NB_OK)
            return nb_context(err, "config_groups.%.100s", json_object_iter_key(it));
    }
    NB_TRY(nb_ct_targets_steps(n_regexes + n_ignored_regexes, n_modules, &steps, err));

    NB_TRY(nb_ct_targets_alloc(&ct->targets, arena, n_names, n_regexes, err));
    NB_TRY(nb_ct_targets_alloc(&ct->ignore, arena, n_ignored_names, n_ignored_regexes, err));
    NB_TRY(nb_ct_targets_add(&ct->ignore, arena, ignore, 0, err));
    int64_t i = 0;
    it = json_object_iter((json_t *)groups);
    for (; it != NULL; it = json_object_iter_next((json_t *)groups, it), i++) {
        const json_t *targets = json_object_get(json_object_iter_value(it), "targets");
        NB_TRY(nb_ct_targets_add(&ct->targets, arena, targets, i, err));
    }
    NB_TRY(nb_ct_targets_finish(&ct->targets, steps, err));
    return nb_ct_targets_finish(&ct->ignore, steps, err);
}

static nb_status parse_groups(nb_ct *ct, nb_arena *arena, json_t *groups, const char *format,
                              nb_err *err)
{
    ct->n_groups = (int64_t)json_object_size(groups);
    if (ct->n_groups == 0)
        return nb_fail(err, NB_DATA, "config_groups is empty");
    NB_TRY(NB_ARENA_ALLOC(arena, &ct->groups, ct->n_groups, err));
    nb_ct_group *group = ct->groups;
    void *it = json_object_iter(groups);
    for (; it != NULL; it = json_object_iter_next(groups, it), group++) {
        const char *key = json_object_iter_key(it);
        char *name;
        NB_TRY(nb_arena_text(arena, &name, key, strlen(key), err));
        group->name = name;
        if (nb_ct_group_parse(group, json_object_iter_value(it), format, err) != NB_OK)
            return nb_context(err, "config_groups.%.100s", key);
    }
    return NB_OK;
}

static nb_status parse(nb_ct *ct, nb_arena *arena, const json_t *config, int64_t n_modules,
                       nb_err *err)
{
    const char *method = NULL, *format = NULL, *status = NULL;
    json_t *groups = NULL, *ignore = NULL;
    NB_TRY(nb_json_text(config, "quant_method", true, &method, err));
    if (strcmp(method, "compressed-tensors") != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "quant_method '%.50s' is not supported (compressed-tensors is)", method);
    NB_TRY(nb_json_text(config, "format", true, &format, err));
    NB_TRY(nb_json_text(config, "quantization_status", false, &status, err));
    if (status != NULL && strcmp(status, "compressed") != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "quantization_status '%.50s' is not supported (compressed is)", status);
    NB_TRY(nb_kv_scheme_parse(&ct->kv, config, false, err));
    NB_TRY(must_be_empty(config, "sparsity_config", err));
    NB_TRY(must_be_empty(config, "transform_config", err));
    NB_TRY(nb_json_object(config, "config_groups", true, &groups, err));
    NB_TRY(nb_json_array(config, "ignore", false, &ignore, err));
    if (ct->kv != NB_KV_SCHEME_NONE && json_object_size(groups) == 0)
        return NB_OK; /* of the cache alone; what the format is called then depends on the writer */
    if (strcmp(format, "mixed-precision") != 0) { /* else each group brings its own */
        nb_ct_layout layout;
        NB_TRY(nb_ct_layout_parse(&layout, format, err));
    }
    NB_TRY(parse_groups(ct, arena, groups, format, err));
    return parse_all_targets(ct, arena, groups, ignore, n_modules, err);
}

nb_status nb_ct_parse(nb_ct *ct, nb_arena *arena, const json_t *config, int64_t n_modules,
                      nb_err *err)
{
    *ct = (nb_ct){0};
    nb_status s;
    if (!json_is_object(config))
        s = nb_fail(err, NB_DATA, "is not an object");
    else
        s = parse(ct, arena, config, n_modules, err);
    if (s != NB_OK) {
        nb_ct_free(ct);
        return nb_context(err, "quantization_config");
    }
    return NB_OK;
}

void nb_ct_free(nb_ct *ct)
{
    nb_ct_targets_free(&ct->targets);
    nb_ct_targets_free(&ct->ignore);
    *ct = (nb_ct){0};
}

/* ---- which group ---- */

nb_status nb_ct_match(const nb_ct *ct, const char *module, const nb_ct_group **out, nb_err *err)
{
    int64_t group, ignored;
    *out = NULL;
    NB_TRY(nb_ct_targets_find(&ct->targets, module, &group, err));
    if (group < 0)
        return NB_OK;
    NB_TRY(nb_ct_targets_find(&ct->ignore, module, &ignored, err));
    if (ignored < 0)
        *out = &ct->groups[group];
    return NB_OK;
}

nb_status nb_ct_is_named(const nb_ct *ct, const char *module, bool *out, nb_err *err)
{
    *out = false;
    if (nb_names_find(ct->targets.names, ct->targets.n_names, module) == NULL)
        return NB_OK;
    int64_t ignored;
    NB_TRY(nb_ct_targets_find(&ct->ignore, module, &ignored, err));
    *out = ignored < 0;
    return NB_OK;
}

/* ---- the tensors of a module ---- */

nb_status nb_ct_scale_type(const nb_st_tensor *t, nb_float_type *out, nb_err *err)
{
    switch (t->dtype) {
    case NB_ST_F32:
        *out = NB_F32;
        return NB_OK;
    case NB_ST_F16:
        *out = NB_F16;
        return NB_OK;
    case NB_ST_BF16:
        *out = NB_BF16;
        return NB_OK;
    default:
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s': scales of dtype %s are not supported (F16, BF16 and F32 "
                       "are)",
                       t->name, nb_st_dtype_name(t->dtype));
    }
}

static nb_status check_zero_point(const nb_ct_group *group, const nb_ct_parts *parts,
                                  int64_t n_rows, nb_err *err)
{
    const nb_st_tensor *scale = parts->scale, *zero = parts->zero_point;
    if (group->symmetric) {
        if (zero == NULL)
            return NB_OK;
        return nb_fail(err, NB_DATA,
                       "tensor '%.200s': zero points, and group '%.100s' is symmetric", zero->name,
                       group->name);
    }
    if (zero == NULL)
        return nb_fail(err, NB_DATA,
                       "tensor '%.200s': no zero points, and group '%.100s' is not "
                       "symmetric",
                       scale->name, group->name);
    /* Packed along the rows, except the only one of a whole tensor. */
    if (group->layout == NB_CT_PACKED && group->strategy != NB_CT_TENSOR)
        return nb_st_expect(zero, NB_ST_I32, 2,
                            (const int64_t[]){nb_ct_n_words(n_rows, group->bits), scale->dims[1]},
                            err);
    return nb_st_expect(zero, NB_ST_I8, scale->n_dims, scale->dims, err);
}

nb_status nb_ct_describe(nb_weight *weight, const nb_ct_group *group, const nb_ct_parts *parts,
                         nb_err *err)
{
    const int64_t n_rows = weight->n_rows, n_cols = weight->n_cols;
    const bool packed = group->layout == NB_CT_PACKED;
    if (group->layout == NB_CT_FP8)
        return nb_fp8_describe(weight, group, parts->codes, parts->scale, err);
    if (n_rows <= 0 || n_cols <= 0)
        return nb_fail(err, NB_DATA, "tensor '%.200s': a matrix of %lld x %lld", parts->codes->name,
                       (long long)n_rows, (long long)n_cols);
    const int64_t group_size = group->strategy == NB_CT_GROUP ? group->group_size : n_cols;
    if (n_cols % group_size != 0)
        return nb_fail(err, NB_DATA,
                       "tensor '%.200s': %lld columns are not divisible by the group_size %lld",
                       parts->codes->name, (long long)n_cols, (long long)group_size);
    NB_TRY(nb_st_expect(
        parts->codes, packed ? NB_ST_I32 : NB_ST_I8, 2,
        (const int64_t[]){n_rows, packed ? nb_ct_n_words(n_cols, group->bits) : n_cols}, err));
    if (parts->scale == NULL)
        return nb_fail(err, NB_DATA, "tensor '%.200s' has no weight_scale", parts->codes->name);
    nb_float_type scale_type = NB_F32;
    NB_TRY(nb_ct_scale_type(parts->scale, &scale_type, err));
    if (group->strategy == NB_CT_TENSOR)
        NB_TRY(nb_st_expect(parts->scale, parts->scale->dtype, 1, (const int64_t[]){1}, err));
    else
        NB_TRY(nb_st_expect(parts->scale, parts->scale->dtype, 2,
                            (const int64_t[]){n_rows, n_cols / group_size}, err));
    NB_TRY(check_zero_point(group, parts, n_rows, err));

    weight->fmt = nb_format_of_bits(group->bits);
    weight->group_size = group_size;
    weight->symmetric = group->symmetric;
    weight->scale_type = scale_type;
    weight->act = group->act;
    return NB_OK;
}
