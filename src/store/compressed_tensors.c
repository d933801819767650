/* See compressed_tensors.h. */
#include "store/compressed_tensors.h"

#include "store/ct_pack.h"
#include "store/fp8.h"

#include <stdio.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Regular expressions come from the file. A match stops after so many steps, which is fewer the
 * more matches there are, so that a folder cannot keep us busy. */
#define MAX_PATTERN_BYTES 4096
#define MAX_MATCHES       1000000
#define MAX_STEPS         100000000
#define MIN_STEPS         1000
#define MAX_HEAP_KIB      4096

struct nb_ct_regex {
    const char *pattern;
    int64_t value;
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *limits;
};

/* ---- arguments ---- */

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

static bool is_null(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return v == NULL || json_is_null(v);
}

/* A key that must be absent, null, or an empty object. */
static nb_status must_be_empty(const json_t *object, const char *key, nb_err *err)
{
    const json_t *v = json_object_get(object, key);
    if (is_null(object, key) || (json_is_object(v) && json_object_size(v) == 0))
        return NB_OK;
    return nb_fail(err, NB_UNSUPPORTED, "%s is not supported", key);
}

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
    if (is_null(object, "block_structure"))
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
    if (!is_null(object, "group_size") && a->group_size == 0)
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

/* ---- targets ---- */

static nb_status compile_regex(nb_ct_regex *regex, uint32_t max_steps, nb_err *err)
{
    if (strlen(regex->pattern) > MAX_PATTERN_BYTES)
        return nb_fail(err, NB_UNSUPPORTED, "a regular expression of more than %d bytes",
                       MAX_PATTERN_BYTES);
    int code;
    PCRE2_SIZE at;
    /* Python's re.match: anchored at the start, free at the end. */
    regex->code =
        pcre2_compile((PCRE2_SPTR)regex->pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_ANCHORED | PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if (regex->code == NULL) {
        PCRE2_UCHAR text[128];
        pcre2_get_error_message(code, text, sizeof text);
        return nb_fail(err, code == PCRE2_ERROR_HEAP_FAILED ? NB_MEMORY : NB_DATA,
                       "regular expression '%.200s': %s at byte %zu", regex->pattern,
                       (const char *)text, (size_t)at);
    }
    regex->data = pcre2_match_data_create_from_pattern(regex->code, NULL);
    regex->limits = pcre2_match_context_create(NULL);
    if (regex->data == NULL || regex->limits == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory: a regular expression");
    pcre2_set_match_limit(regex->limits, max_steps);
    pcre2_set_depth_limit(regex->limits, max_steps);
    pcre2_set_heap_limit(regex->limits, MAX_HEAP_KIB);
    return NB_OK;
}

static nb_status regex_matches(const nb_ct_regex *regex, const char *module, bool *out, nb_err *err)
{
    const int n = pcre2_match(regex->code, (PCRE2_SPTR)module, strlen(module), 0, 0, regex->data,
                              regex->limits);
    *out = n >= 0;
    if (n >= 0 || n == PCRE2_ERROR_NOMATCH)
        return NB_OK;
    PCRE2_UCHAR text[128];
    pcre2_get_error_message(n, text, sizeof text);
    return nb_fail(err, n == PCRE2_ERROR_NOMEMORY ? NB_MEMORY : NB_DATA,
                   "regular expression '%.200s' on '%.200s': %s", regex->pattern, module,
                   (const char *)text);
}

/* How many strings of a list (NULL: none) are regular expressions, how many are not. */
static nb_status count_targets(const json_t *list, int64_t *n_names, int64_t *n_regexes,
                               nb_err *err)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (text == NULL)
            return nb_fail(err, NB_DATA, "entry %zu is not a string", i);
        *(strncmp(text, "re:", 3) == 0 ? n_regexes : n_names) += 1;
    }
    return NB_OK;
}

/* Adds the strings of a list, which stand for `value`. Room was made for them. */
static nb_status add_targets(nb_ct_targets *t, nb_arena *arena, const json_t *list, int64_t value,
                             nb_err *err)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (strcmp(text, "Linear") == 0 && t->linear < 0)
            t->linear = value;
        char *copy;
        NB_TRY(nb_arena_text(arena, &copy, text, strlen(text), err));
        if (strncmp(copy, "re:", 3) == 0)
            t->regexes[t->n_regexes++] = (nb_ct_regex){.pattern = copy + 3, .value = value};
        else
            t->names[t->n_names++] = (nb_name){.name = copy, .value = value};
    }
    return NB_OK;
}

static nb_status alloc_targets(nb_ct_targets *t, nb_arena *arena, int64_t n_names,
                               int64_t n_regexes, nb_err *err)
{
    *t = (nb_ct_targets){.linear = -1};
    NB_TRY(NB_ARENA_ALLOC(arena, &t->names, n_names, err));
    return NB_ARENA_ALLOC(arena, &t->regexes, n_regexes, err);
}

static nb_status finish_targets(nb_ct_targets *t, uint32_t max_steps, nb_err *err)
{
    nb_names_sort(t->names, t->n_names);
    for (int64_t i = 0; i < t->n_regexes; i++)
        NB_TRY(compile_regex(&t->regexes[i], max_steps, err));
    return NB_OK;
}

/* The first value whose target matches; -1: none. */
static nb_status find_target(const nb_ct_targets *t, const char *module, int64_t *out, nb_err *err)
{
    const nb_name *exact = nb_names_find(t->names, t->n_names, module);
    *out = exact != NULL ? exact->value : -1;
    for (int64_t i = 0; i < t->n_regexes && *out < 0; i++) {
        bool matches;
        NB_TRY(regex_matches(&t->regexes[i], module, &matches, err));
        if (matches)
            *out = t->regexes[i].value;
    }
    if (*out < 0 && !nb_ct_is_embedding(module, strlen(module)))
        *out = t->linear;
    return NB_OK;
}

static void free_targets(nb_ct_targets *t)
{
    for (int64_t i = 0; i < t->n_regexes; i++) {
        pcre2_code_free(t->regexes[i].code);
        pcre2_match_data_free(t->regexes[i].data);
        pcre2_match_context_free(t->regexes[i].limits);
    }
    t->n_regexes = 0;
}

bool nb_ct_is_embedding(const char *module, size_t len)
{
    static const char *const names[] = {"wte", "wpe", "tok_embeddings", "word_embeddings"};
    size_t begin = len;
    while (begin > 0 && module[begin - 1] != '.')
        begin--;
    const char *last = module + begin;
    const size_t n = len - begin;
    if (n >= 5 && memcmp(last, "embed", 5) == 0)
        return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (n == strlen(names[i]) && memcmp(last, names[i], n) == 0)
            return true;
    }
    return false;
}

nb_status nb_ct_match(const nb_ct *ct, const char *module, const nb_ct_group **out, nb_err *err)
{
    int64_t group, ignored;
    *out = NULL;
    NB_TRY(find_target(&ct->targets, module, &group, err));
    if (group < 0)
        return NB_OK;
    NB_TRY(find_target(&ct->ignore, module, &ignored, err));
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
    NB_TRY(find_target(&ct->ignore, module, &ignored, err));
    *out = ignored < 0;
    return NB_OK;
}

/* ---- the configuration ---- */

static nb_status parse_layout(nb_ct_layout *out, const char *format, nb_err *err)
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

static nb_status parse_group(nb_ct_group *group, const json_t *scheme, const char *format,
                             nb_err *err)
{
    static const char *const keys[] = {
        "targets", "weights", "input_activations", "output_activations", "format", NULL};
    if (!json_is_object(scheme))
        return nb_fail(err, NB_UNSUPPORTED, "a preset by its name is not supported");
    json_t *weights = NULL, *activations = NULL;
    NB_TRY(unknown_key(scheme, keys, err));
    NB_TRY(nb_json_text(scheme, "format", false, &format, err));
    NB_TRY(parse_layout(&group->layout, format, err));
    NB_TRY(nb_json_object(scheme, "weights", true, &weights, err));
    NB_TRY(nb_json_object(scheme, "input_activations", false, &activations, err));
    if (!is_null(scheme, "output_activations"))
        return nb_fail(err, NB_UNSUPPORTED, "output_activations are not supported");
    if (parse_weights(group, weights, err) != NB_OK)
        return nb_context(err, "weights");
    if (activations != NULL && parse_activations(group, activations, err) != NB_OK)
        return nb_context(err, "input_activations");
    return NB_OK;
}

/* The steps one match may take, when every module may meet every expression. */
static nb_status match_budget(int64_t n_regexes, int64_t n_modules, uint32_t *steps, nb_err *err)
{
    *steps = MAX_STEPS;
    if (n_regexes == 0 || n_modules == 0)
        return NB_OK;
    if (n_regexes > MAX_MATCHES / n_modules)
        return nb_fail(err, NB_UNSUPPORTED,
                       "%lld regular expressions for %lld tensors are too many",
                       (long long)n_regexes, (long long)n_modules);
    const int64_t share = MAX_STEPS / (n_regexes * n_modules);
    *steps = share < MIN_STEPS ? MIN_STEPS : (uint32_t)share;
    return NB_OK;
}

static nb_status parse_all_targets(nb_ct *ct, nb_arena *arena, const json_t *groups,
                                   const json_t *ignore, int64_t n_modules, nb_err *err)
{
    int64_t n_names = 0, n_regexes = 0, n_ignored_names = 0, n_ignored_regexes = 0;
    uint32_t steps;
    if (count_targets(ignore, &n_ignored_names, &n_ignored_regexes, err) != NB_OK)
        return nb_context(err, "ignore");
    void *it = json_object_iter((json_t *)groups);
    for (; it != NULL; it = json_object_iter_next((json_t *)groups, it)) {
        json_t *targets;
        nb_status s = nb_json_array(json_object_iter_value(it), "targets", true, &targets, err);
        if (s == NB_OK)
            s = count_targets(targets, &n_names, &n_regexes, err);
        if (s != NB_OK)
            return nb_context(err, "config_groups.%.100s", json_object_iter_key(it));
    }
    NB_TRY(match_budget(n_regexes + n_ignored_regexes, n_modules, &steps, err));

    NB_TRY(alloc_targets(&ct->targets, arena, n_names, n_regexes, err));
    NB_TRY(alloc_targets(&ct->ignore, arena, n_ignored_names, n_ignored_regexes, err));
    NB_TRY(add_targets(&ct->ignore, arena, ignore, 0, err));
    int64_t i = 0;
    it = json_object_iter((json_t *)groups);
    for (; it != NULL; it = json_object_iter_next((json_t *)groups, it), i++) {
        const json_t *targets = json_object_get(json_object_iter_value(it), "targets");
        NB_TRY(add_targets(&ct->targets, arena, targets, i, err));
    }
    NB_TRY(finish_targets(&ct->targets, steps, err));
    return finish_targets(&ct->ignore, steps, err);
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
        if (parse_group(group, json_object_iter_value(it), format, err) != NB_OK)
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
    if (!is_null(config, "kv_cache_scheme"))
        return nb_fail(err, NB_UNSUPPORTED, "kv_cache_scheme is not supported");
    NB_TRY(must_be_empty(config, "sparsity_config", err));
    NB_TRY(must_be_empty(config, "transform_config", err));
    NB_TRY(nb_json_object(config, "config_groups", true, &groups, err));
    NB_TRY(nb_json_array(config, "ignore", false, &ignore, err));
    if (strcmp(format, "mixed-precision") != 0) { /* else each group brings its own */
        nb_ct_layout layout;
        NB_TRY(parse_layout(&layout, format, err));
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
    free_targets(&ct->targets);
    free_targets(&ct->ignore);
    *ct = (nb_ct){0};
}

/* ---- the tensors of a module ---- */

static nb_status check_part(const nb_st_tensor *t, nb_st_dtype dtype, int n_dims,
                            const int64_t *dims, nb_err *err)
{
    char wanted[NB_ST_SHAPE_TEXT], found[NB_ST_SHAPE_TEXT];
    bool same = t->dtype == dtype && t->n_dims == n_dims;
    for (int i = 0; i < n_dims && same; i++)
        same = t->dims[i] == dims[i];
    if (same)
        return NB_OK;
    return nb_fail(err, NB_DATA, "tensor '%.200s': wanted %s %s, found %s %s", t->name,
                   nb_st_dtype_name(dtype), nb_st_shape_text(wanted, n_dims, dims),
                   nb_st_dtype_name(t->dtype), nb_st_shape_text(found, t->n_dims, t->dims));
}

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
        return check_part(zero, NB_ST_I32, 2,
                          (const int64_t[]){nb_ct_n_words(n_rows, group->bits), scale->dims[1]},
                          err);
    return check_part(zero, NB_ST_I8, scale->n_dims, scale->dims, err);
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
    NB_TRY(check_part(
        parts->codes, packed ? NB_ST_I32 : NB_ST_I8, 2,
        (const int64_t[]){n_rows, packed ? nb_ct_n_words(n_cols, group->bits) : n_cols}, err));
    if (parts->scale == NULL)
        return nb_fail(err, NB_DATA, "tensor '%.200s' has no weight_scale", parts->codes->name);
    nb_float_type scale_type = NB_F32;
    NB_TRY(nb_ct_scale_type(parts->scale, &scale_type, err));
    if (group->strategy == NB_CT_TENSOR)
        NB_TRY(check_part(parts->scale, parts->scale->dtype, 1, (const int64_t[]){1}, err));
    else
        NB_TRY(check_part(parts->scale, parts->scale->dtype, 2,
                          (const int64_t[]){n_rows, n_cols / group_size}, err));
    NB_TRY(check_zero_point(group, parts, n_rows, err));

    weight->fmt = nb_format_of_bits(group->bits);
    weight->group_size = group_size;
    weight->symmetric = group->symmetric;
    weight->scale_type = scale_type;
    weight->act = group->act;
    return NB_OK;
}
