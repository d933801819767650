/* See fp8.h. */
#include "store/fp8.h"

#include "store/kv_scheme.h"

#include <string.h>

#define MAX_BLOCK 65536

/* ---- the configuration ---- */

static nb_status parse_block(nb_ct_group *group, const json_t *config, nb_err *err)
{
    const json_t *v = json_object_get(config, "weight_block_size");
    if (v == NULL || json_is_null(v))
        return NB_OK;
    int64_t n[2] = {0, 0};
    for (size_t i = 0; i < 2 && json_array_size(v) == 2; i++)
        n[i] = json_integer_value(json_array_get(v, i));
    if (n[0] < 1 || n[1] < 1 || n[0] > MAX_BLOCK || n[1] > MAX_BLOCK)
        return nb_fail(err, NB_DATA, "weight_block_size is no pair of rows and columns, 1 to %d",
                       MAX_BLOCK);
    group->strategy = NB_CT_BLOCK;
    group->block_rows = n[0];
    group->group_size = n[1];
    return NB_OK;
}

nb_status nb_fp8_parse(nb_ct_group *group, nb_kv_scheme *kv, const json_t *config, nb_err *err)
{
    const char *scheme = "dynamic";
    *group = (nb_ct_group){
        .name = "fp8", .layout = NB_CT_FP8, .bits = 8, .symmetric = true, .strategy = NB_CT_TENSOR};
    nb_status s = nb_json_text(config, "activation_scheme", false, &scheme, err);
    const bool is_static = s == NB_OK && strcmp(scheme, "static") == 0;
    if (s == NB_OK && !is_static && strcmp(scheme, "dynamic") != 0)
        s = nb_fail(err, NB_UNSUPPORTED,
                    "activation_scheme '%.50s' is not supported (dynamic and static are)", scheme);
    if (s == NB_OK)
        s = parse_block(group, config, err);
    if (s == NB_OK)
        s = nb_kv_scheme_parse(kv, config, true, err);
    if (s != NB_OK)
        return nb_context(err, "quantization_config");
    const bool blocks = group->strategy == NB_CT_BLOCK && !is_static;
    group->act = (nb_act_spec){.bits = 8,
                               .per_token = !blocks,
                               .is_float = true,
                               .group_size = blocks ? group->group_size : 0,
                               .is_static = is_static};
    return NB_OK;
}

/* ---- the tensors of a module ---- */

static nb_status wrong_scales(const nb_st_tensor *t, int n_dims, const int64_t *dims, nb_err *err)
{
    char wanted[NB_ST_SHAPE_TEXT], found[NB_ST_SHAPE_TEXT];
    return nb_fail(err, NB_DATA, "tensor '%.200s': wanted scales %s, found %s", t->name,
                   nb_st_shape_text(wanted, n_dims, dims),
                   nb_st_shape_text(found, t->n_dims, t->dims));
}

/* Scalars come as [] and as [1], columns of scales as [n, 1] and as [n]. */
static nb_status check_scales(const nb_st_tensor *t, int64_t n, int64_t m, nb_err *err)
{
    const int64_t dims[] = {n, m};
    const bool matrix = t->n_dims == 2 && t->dims[0] == n && t->dims[1] == m;
    const bool column = t->n_dims == 1 && t->dims[0] == n && m == 1;
    const bool scalar = t->n_dims == 0 && n == 1 && m == 1;
    return matrix || column || scalar ? NB_OK : wrong_scales(t, 2, dims, err);
}

/* Without a block size, quant_method "fp8" leaves it to the shape. */
static bool is_one(const nb_st_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++)
        n = t->dims[i] == 1 ? n : 0;
    return n == 1;
}

nb_status nb_fp8_describe(nb_weight *weight, const nb_ct_group *group, const nb_st_tensor *codes,
                          const nb_st_tensor *scale, nb_err *err)
{
    const int64_t n = weight->n_rows, k = weight->n_cols;
    if (codes->n_dims != 2 || n <= 0 || k <= 0) {
        char shape[NB_ST_SHAPE_TEXT];
        return nb_fail(err, NB_DATA, "tensor '%.200s': %s is the shape of no matrix", codes->name,
                       nb_st_shape_text(shape, codes->n_dims, codes->dims));
    }
    if (scale == NULL)
        return nb_fail(err, NB_DATA, "tensor '%.200s' has no weight_scale", codes->name);
    nb_float_type type = NB_F32;
    NB_TRY(nb_ct_scale_type(scale, &type, err));
    weight->fmt = codes->dtype == NB_ST_F8_E5M2 ? &nb_format_fp8_e5m2 : &nb_format_fp8_e4m3;
    weight->group_size = k;
    weight->scale_rows = 0;
    switch (group->strategy) {
    case NB_CT_TENSOR:
        if (is_one(scale))
            weight->scale_rows = n;
        else if (strcmp(group->name, "fp8") == 0)
            NB_TRY(check_scales(scale, n, 1, err));
        else
            return wrong_scales(scale, 1, (const int64_t[]){1}, err);
        break;
    case NB_CT_CHANNEL:
        NB_TRY(check_scales(scale, n, 1, err));
        break;
    case NB_CT_GROUP:
        if (k % group->group_size != 0)
            return nb_fail(err, NB_DATA,
                           "tensor '%.200s': %lld columns are not divisible by the group_size %lld",
                           codes->name, (long long)k, (long long)group->group_size);
        weight->group_size = group->group_size;
        NB_TRY(check_scales(scale, n, k / group->group_size, err));
        break;
    case NB_CT_BLOCK:
        weight->group_size = group->group_size; /* also where one block is wider than the row */
        weight->scale_rows = group->block_rows;
        NB_TRY(check_scales(scale, (n + group->block_rows - 1) / group->block_rows,
                            (k + group->group_size - 1) / group->group_size, err));
        break;
    }
    weight->symmetric = true;
    weight->scale_type = type;
    weight->act = group->act;
    return NB_OK;
}
