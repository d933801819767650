/* See ct_group.h. */
#include "store/ct_group.h"

#include <stdio.h>
#include <string.h>

static nb_status unknown_key(const json_t *object, const char *const *known, nb_err *err)
{
    void *it = json_object_iter((json_t *)object);
    for (; it != NULL; it = json_object_iter_next((json_t *)object, it)) {
        const char *key = json_object_iter_key(it);
        int i = 0;
        while (known[i] != NULL && strcmp(known[i], key) != 0)
            i++;
        if (known[i] == NULL)
            return nb_fail(err, NB_UNSUPPORTED, "key '%.100s' is not known", key);
    }
    return NB_OK;
}

/* ---- arguments ---- */

static const char *const args_keys[] = {
    "num_bits", "type",     "symmetric",   "strategy", "group_size", "block_structure",
    "dynamic",  "actorder", "scale_dtype", "zp_dtype", "observer",   "observer_kwargs",
    NULL};

/* What a QuantizationArgs object says, with its defaults. */
typedef struct {
    int64_t bits, group_size; /* group_size 0: null */
    int64_t block[2];         /* rows and columns; 0: null */
    const char *type, *strategy;
    bool symmetric, dynamic, is_float;
} ct_args;

/* Strategy and group size must tell the same story; a missing strategy follows from the size. */
static nb_status check_strategy(ct_args *a, nb_err *err)
{
    if (a->strategy == NULL)
        a->strategy = a->group_size == 0 ? "tensor" : a->group_size < 0 ? "channel" : "group";
    const bool by_group =
        strcmp(a->strategy, "group") == 0 || strcmp(a->strategy, "tensor_group") == 0;
    const bool by_block = strcmp(a->strategy, "block") == 0;
    if (by_block != (a->block[0] > 0))
        return nb_fail(err, NB_DATA, "strategy '%.50s' %s block_structure", a->strategy,
                       by_block ? "needs a" : "does not go with a");
    if (by_group != (a->group_size > 0) && !by_block)
        return nb_fail(err, NB_DATA, "strategy '%.50s' does not go with a group_size of %lld",
                       a->strategy, (long long)a->group_size);
    return NB_OK;
}

/* actorder: columns that were only visited in another order ("weight") are stored as ever. */
static nb_status check_actorder(const json_t *object, nb_err *err)
{
    const json_t *v = json_object_get(object, "actorder");
    if (v == NULL || json_is_null(v) || json_is_false(v))
        return NB_OK;
    const char *order = json_is_true(v) ? "true" : json_string_value(v);
    if (order != NULL && (strcmp(order, "weight") == 0 || strcmp(order, "static") == 0))
        return NB_OK;
    return nb_fail(err, NB_UNSUPPORTED, "actorder '%.50s' is not supported (weight is)",
                   order == NULL ? "?" : order);
}

/* Scales are read in the dtype they are stored in; the key may only name one of those. */
static nb_status check_dtype_key(const json_t *object, const char *key, const char *const *allowed,
                                 nb_err *err)
{
    const char *dtype = NULL;
    NB_TRY(nb_json_text(object, key, false, &dtype, err));
    for (int i = 0; dtype != NULL; i++) {
        if (allowed[i] == NULL)
            return nb_fail(err, NB_UNSUPPORTED, "%s '%.50s' is not supported", key, dtype);
        if (strcmp(allowed[i], dtype) == 0)
            break;
    }
    return NB_OK;
}

static nb_status parse_dynamic(const json_t *object, bool *out, nb_err *err)
{
    const json_t *v = json_object_get(object, "dynamic");
    if (json_is_string(v))
        return nb_fail(err, NB_UNSUPPORTED, "dynamic '%.50s' is not supported",
                       json_string_value(v));
    return nb_json_bool(object, "dynamic", false, out, err);
}

/* [128, 128], or in old files "128x128". */
static nb_status parse_block(const json_t *object, int64_t block[2], nb_err *err)
{
    const json_t *v = json_object_get(object, "block_structure");
    long long n[2] = {0, 0};
    int end = 0;
    if (!nb_json_given(object, "block_structure"))
        return NB_OK;
    for (int i = 0; i < 2 && json_is_array(v) && json_array_size(v) == 2; i++)
        n[i] = json_integer_value(json_array_get(v, (size_t)i));
    const char *text = json_string_value(v);
    if (text != NULL && (strlen(text) > 20 ||
                         sscanf(text, "%lldx%lld%n", &n[0], &n[1], &end) != 2 || text[end] != 0))
        n[0] = 0;
    if (n[0] < 1 || n[1] < 1 || n[0] > 65536 || n[1] > 65536)
        return nb_fail(err, NB_DATA, "block_structure is no pair of rows and columns, 1 to 65536");
    block[0] = n[0];
    block[1] = n[1];
    return NB_OK;
}

static nb_status parse_args(ct_args *a, const json_t *object, nb_err *err)
{
    static const char *const scale_dtypes[] = {"torch.float16", "torch.bfloat16", "torch.float32",
                                               NULL};
    static const char *const zp_dtypes[] = {"torch.int8", NULL};
    static const char *const float_zp_dtypes[] = {"torch.float8_e4m3fn", NULL}; /* of none */
    *a = (ct_args){.bits = 8, .type = "int", .symmetric = true};
    NB_TRY(unknown_key(object, args_keys, err));
    NB_TRY(nb_json_int(object, "num_bits", false, 1, 64, &a->bits, err));
    NB_TRY(nb_json_text(object, "type", false, &a->type, err));
    NB_TRY(nb_json_bool(object, "symmetric", false, &a->symmetric, err));
    NB_TRY(nb_json_int(object, "group_size", false, -1, INT64_MAX, &a->group_size, err));
    if (nb_json_given(object, "group_size") && a->group_size == 0)
        return nb_fail(err, NB_DATA, "group_size is 0");
    NB_TRY(nb_json_text(object, "strategy", false, &a->strategy, err));
    NB_TRY(parse_dynamic(object, &a->dynamic, err));
    a->is_float = strcmp(a->type, "float") == 0;
    if (strcmp(a->type, "int") != 0 && !a->is_float)
        return nb_fail(err, NB_UNSUPPORTED, "type '%.50s' is not supported (int and float are)",
                       a->type);
    if (a->is_float && (a->bits != 8 || !a->symmetric))
        return nb_fail(err, NB_UNSUPPORTED,
                       "type 'float' of %lld bits, %s, is not supported (symmetric 8 bits are)",
                       (long long)a->bits, a->symmetric ? "symmetric" : "asymmetric");
    NB_TRY(parse_block(object, a->block, err));
    NB_TRY(check_strategy(a, err));
    NB_TRY(check_actorder(object, err));
    NB_TRY(check_dtype_key(object, "scale_dtype", scale_dtypes, err));
    NB_TRY(check_dtype_key(object, "zp_dtype", a->is_float ? float_zp_dtypes : zp_dtypes, err));
    return NB_OK;
}

static nb_status parse_weights(nb_ct_group *group, const json_t *object, nb_err *err)
{
    static const char *const names[] = {[NB_CT_TENSOR] = "tensor",
                                        [NB_CT_CHANNEL] = "channel",
                                        [NB_CT_GROUP] = "group",
                                        [NB_CT_BLOCK] = "block"};
    ct_args a;
    NB_TRY(parse_args(&a, object, err));
    if (nb_format_of_bits(a.bits) == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "num_bits %lld is not supported (2, 3, 4 and 8 are)",
                       (long long)a.bits);
    if (a.dynamic)
        return nb_fail(err, NB_UNSUPPORTED, "dynamic weights are not supported");
    if (a.is_float != (group->layout == NB_CT_FP8))
        return nb_fail(err, NB_DATA, "type '%.50s' does not go with the format", a.type);
    const int last = a.is_float ? NB_CT_BLOCK : NB_CT_GROUP;
    int strategy = 0;
    while (strategy <= last && strcmp(names[strategy], a.strategy) != 0)
        strategy++;
    if (strategy > last)
        return nb_fail(err, NB_UNSUPPORTED, "strategy '%.50s' is not supported (tensor, channel%s)",
                       a.strategy, a.is_float ? ", group and block are" : " and group are");
    group->bits = (int)a.bits;
    group->symmetric = a.symmetric;
    group->strategy = (nb_ct_strategy)strategy;
    group->group_size = strategy == NB_CT_GROUP   ? a.group_size
                        : strategy == NB_CT_BLOCK ? a.block[1]
                                                  : 0;
    group->block_rows = a.block[0];
    return NB_OK;
}

/* One scale for a whole tensor would make a token depend on its neighbours: each takes its own. */
static nb_status parse_float_activations(nb_ct_group *group, const ct_args *a, nb_err *err)
{
    const bool tensor = strcmp(a->strategy, "tensor") == 0,
               token = strcmp(a->strategy, "token") == 0;
    const bool by_group = strcmp(a->strategy, "group") == 0;
    if (a->dynamic ? !tensor && !token && !by_group : !tensor)
        return nb_fail(err, NB_UNSUPPORTED,
                       "%s with strategy '%.50s' is not supported (dynamic: tensor, token and "
                       "group; static: tensor)",
                       a->dynamic ? "dynamic" : "static", a->strategy);
    group->act = (nb_act_spec){.bits = 8,
                               .per_token = !by_group,
                               .is_float = true,
                               .group_size = by_group ? a->group_size : 0,
                               .is_static = !a->dynamic};
    return NB_OK;
}

static nb_status parse_activations(nb_ct_group *group, const json_t *object, nb_err *err)
{
    ct_args a;
    NB_TRY(parse_args(&a, object, err));
    if (a.is_float != (group->layout == NB_CT_FP8))
        return nb_fail(err, NB_UNSUPPORTED, "type '%.50s' with weights of type '%.50s'", a.type,
                       a.is_float ? "int" : "float");
    if (a.is_float)
        return parse_float_activations(group, &a, err);
    /* A scale for each channel would stand inside the sum over channels, where integers meet. */
    if (a.bits != 8 || !a.symmetric || strcmp(a.strategy, a.dynamic ? "token" : "tensor") != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "%s, %lld bits, strategy '%.50s', %s: only symmetric 8 bits are supported, "
                       "dynamic with strategy 'token' or static with 'tensor'",
                       a.dynamic ? "dynamic" : "static", (long long)a.bits, a.strategy,
                       a.symmetric ? "symmetric" : "asymmetric");
    group->act = (nb_act_spec){.bits = 8, .per_token = true, .is_static = !a.dynamic};
    return NB_OK;
}

/* ---- the group ---- */

nb_status nb_ct_layout_parse(nb_ct_layout *out, const char *format, nb_err *err)
{
    if (strcmp(format, "pack-quantized") == 0)
        *out = NB_CT_PACKED;
    else if (strcmp(format, "int-quantized") == 0)
        *out = NB_CT_INT8;
    else if (strcmp(format, "float-quantized") == 0 || strcmp(format, "naive-quantized") == 0)
        *out = NB_CT_FP8;
    else
        return nb_fail(err, NB_UNSUPPORTED,
                       "format '%.50s' is not supported (pack-quantized, int-quantized and "
                       "float-quantized are)",
                       format);
    return NB_OK;
}

nb_status nb_ct_group_parse(nb_ct_group *group, const json_t *scheme, const char *format,
                            nb_err *err)
{
    static const char *const keys[] = {
        "targets", "weights", "input_activations", "output_activations", "format", NULL};
    if (!json_is_object(scheme))
        return nb_fail(err, NB_UNSUPPORTED, "a preset by its name is not supported");
    json_t *weights = NULL, *activations = NULL;
    NB_TRY(unknown_key(scheme, keys, err));
    NB_TRY(nb_json_text(scheme, "format", false, &format, err));
    NB_TRY(nb_ct_layout_parse(&group->layout, format, err));
    NB_TRY(nb_json_object(scheme, "weights", true, &weights, err));
    NB_TRY(nb_json_object(scheme, "input_activations", false, &activations, err));
    if (nb_json_given(scheme, "output_activations"))
        return nb_fail(err, NB_UNSUPPORTED, "output_activations are not supported");
    if (parse_weights(group, weights, err) != NB_OK)
        return nb_context(err, "weights");
    if (activations != NULL && parse_activations(group, activations, err) != NB_OK)
        return nb_context(err, "input_activations");
    return NB_OK;
}
