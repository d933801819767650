/* Hugging Face folders: config.json and its companions, and the tensors of model.safetensors or of
 * the shards that model.safetensors.index.json names. Quantized linears of compressed-tensors are
 * put together from their parts here; what the parts mean is compressed_tensors.h's to know. */
#define _POSIX_C_SOURCE 200809L
#include "store/bnb.h"
#include "store/fp8.h"
#include "store/hf.h"
#include "store/hqq.h"
#include "store/kv_scheme.h"

#include <string.h>
#include <sys/stat.h>

/* What these files may have at most; the largest real ones have a few MB. */
#define MAX_CONFIG_BYTES    ((size_t)16 << 20)
#define MAX_TOKENIZER_BYTES ((size_t)32 << 20)
#define MAX_INDEX_BYTES     ((size_t)64 << 20)

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* ---- the JSON files ---- */

/* True also for a link that leads nowhere: such a file is there, and broken. */
static bool is_listed(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static nb_status path_in(nb_store *store, char **out, const char *name, nb_err *err)
{
    return nb_arena_format(&store->arena, out, err, "%s/%s", store->path, name);
}

static nb_status load_object(nb_store *store, json_t **out, const char *name, bool required,
                             size_t limit, nb_err *err)
{
    char *path;
    NB_TRY(path_in(store, &path, name, err));
    if (!required && !is_listed(path))
        return NB_OK;
    NB_TRY(nb_json_load(out, path, limit, err));
    if (!json_is_object(*out))
        return nb_fail(err, NB_DATA, "%s: not a JSON object", path);
    return NB_OK;
}

/* ---- the tensor files ---- */

/* A file of this folder and nothing else: no way leads out of it by name. */
static nb_status check_shard_name(const char *name, nb_err *err)
{
    if (strchr(name, '/') == NULL && name[0] != '.' && ends_with(name, ".safetensors"))
        return NB_OK;
    return nb_fail(err, NB_DATA, "'%.200s' is no name of a .safetensors file in this folder", name);
}

static nb_status open_files(nb_store *store, const nb_name *names, int64_t n, nb_err *err)
{
    nb_hf_state *hf = store->state;
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &hf->files, n, err));
    for (int64_t i = 0; i < n; i++) {
        char *path;
        NB_TRY(path_in(store, &path, names[i].name, err));
        NB_TRY(nb_st_open(&hf->files[i], &store->arena, path, err));
        hf->n_files++; /* so that closing closes it */
        store->file_bytes += hf->files[i].file.size;
    }
    return NB_OK;
}

/* The distinct values of the map, sorted: the shards. */
static nb_status list_shards(nb_store *store, json_t *map, nb_name **out, int64_t *n_out,
                             nb_err *err)
{
    nb_name *names;
    int64_t n = 0, kept = 0;
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &names, json_object_size(map), err));
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (name == NULL)
            return nb_fail(err, NB_DATA, "weight_map: '%.200s' is not mapped to a text", tensor);
        if (check_shard_name(name, err) != NB_OK)
            return nb_context(err, "weight_map: '%.200s'", tensor);
        names[n++] = (nb_name){.name = name};
    }
    nb_names_sort(names, n);
    for (int64_t i = 0; i < n; i++) {
        if (kept == 0 || strcmp(names[kept - 1].name, names[i].name) != 0)
            names[kept++] = names[i];
    }
    *out = names;
    *n_out = kept;
    return NB_OK;
}

/* All tensors of all files, and the table of their names. */
static nb_status list_tensors(nb_store *store, nb_err *err)
{
    nb_hf_state *hf = store->state;
    for (int64_t f = 0; f < hf->n_files; f++)
        hf->n_tensors += hf->files[f].n_tensors;
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &hf->tensors, hf->n_tensors, err));
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &hf->names, hf->n_tensors, err));
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &hf->used, hf->n_tensors, err));
    int64_t n = 0;
    for (int64_t f = 0; f < hf->n_files; f++) {
        const nb_safetensors *file = &hf->files[f];
        for (int64_t i = 0; i < file->n_tensors; i++, n++) {
            hf->tensors[n] = (nb_located){.file = file, .tensor = &file->tensors[i]};
            hf->names[n] = (nb_name){.name = file->tensors[i].name, .value = n};
        }
    }
    nb_names_sort(hf->names, n);
    const nb_name *twice = nb_names_twice(hf->names, n);
    if (twice != NULL)
        return nb_fail(err, NB_DATA, "%s: tensor '%.200s' is also in another shard",
                       hf->tensors[twice->value].file->file.path, twice->name);
    return NB_OK;
}

/* The map and the files must say the same about every tensor. `shards` are sorted as the files. */
static nb_status check_map(const nb_hf_state *hf, json_t *map, const nb_name *shards, nb_err *err)
{
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value)
    {
        const char *shard = json_string_value(value);
        const nb_name *found = nb_names_find(hf->names, hf->n_tensors, tensor);
        if (found == NULL ||
            strcmp(shards[hf->tensors[found->value].file - hf->files].name, shard) != 0)
            return nb_fail(err, NB_DATA, "weight_map: tensor '%.200s' is not in '%.200s'", tensor,
                           shard);
    }
    if ((int64_t)json_object_size(map) == hf->n_tensors)
        return NB_OK;
    for (int64_t i = 0; i < hf->n_tensors; i++) {
        if (json_object_get(map, hf->names[i].name) == NULL)
            return nb_fail(err, NB_DATA, "weight_map: tensor '%.200s' of '%.200s' is missing",
                           hf->names[i].name,
                           shards[hf->tensors[hf->names[i].value].file - hf->files].name);
    }
    return NB_OK;
}

static nb_status open_shards(nb_store *store, const char *index_path, nb_err *err)
{
    json_t *index = NULL, *map = NULL;
    nb_name *shards = NULL;
    int64_t n_shards = 0;
    NB_TRY(nb_json_load(&index, index_path, MAX_INDEX_BYTES, err));
    nb_status s = json_is_object(index) ? nb_json_object(index, "weight_map", true, &map, err)
                                        : nb_fail(err, NB_DATA, "not a JSON object");
    if (s == NB_OK)
        s = list_shards(store, map, &shards, &n_shards, err);
    if (s != NB_OK) {
        nb_context(err, "%s", index_path);
    } else {
        s = open_files(store, shards, n_shards, err);
        if (s == NB_OK)
            s = list_tensors(store, err);
        if (s == NB_OK) {
            s = check_map(store->state, map, shards, err);
            if (s != NB_OK)
                nb_context(err, "%s", index_path);
        }
    }
    json_decref(index);
    return s;
}

/* A folder without tensors that nibble reads: what it has instead. */
static nb_status no_tensors(nb_store *store, nb_err *err)
{
    static const struct {
        const char *name, *what;
    } others[] = {
        {"pytorch_model.bin", "pickled weights, which are never loaded because they can run code"},
        {"pytorch_model.bin.index.json",
         "pickled weights, which are never loaded because they can run code"},
        {"consolidated.safetensors", "weights in Mistral's own naming"},
        {"adapter_model.safetensors", "an adapter and not a model"},
        {"tf_model.h5", "TensorFlow weights"},
        {"flax_model.msgpack", "Flax weights"},
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char *path;
        NB_TRY(path_in(store, &path, others[i].name, err));
        if (is_listed(path))
            return nb_fail(err, NB_UNSUPPORTED, "%s: no model.safetensors; %s holds %s",
                           store->path, others[i].name, others[i].what);
    }
    return nb_fail(err, NB_DATA,
                   "%s: neither model.safetensors nor model.safetensors.index.json is there",
                   store->path);
}

static nb_status open_tensors(nb_store *store, nb_err *err)
{
    char *single, *index;
    NB_TRY(path_in(store, &single, "model.safetensors", err));
    NB_TRY(path_in(store, &index, "model.safetensors.index.json", err));
    if (is_listed(single)) { /* it wins, as in transformers */
        NB_TRY(open_files(store, &(nb_name){.name = "model.safetensors"}, 1, err));
        return list_tensors(store, err);
    }
    if (is_listed(index))
        return open_shards(store, index, err);
    return no_tensors(store, err);
}

/* ---- quantization ---- */

/* Keys that would change what the tensors mean, and that only other readers know. */
static nb_status refuse_other_configs(const json_t *config, nb_err *err)
{
    const json_t *text = json_object_get(config, "text_config");
    const struct {
        const json_t *object;
        const char *key, *path;
    } keys[] = {
        {config, "compression_config", "compression_config"},
        {text, "compression_config", "text_config.compression_config"},
        {text, "quantization_config", "text_config.quantization_config"},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const json_t *v = json_object_get(keys[i].object, keys[i].key);
        if (v != NULL && !json_is_null(v))
            return nb_fail(err, NB_UNSUPPORTED, "key '%s' is not supported", keys[i].path);
    }
    return NB_OK;
}

static nb_status parse_quantization(nb_store *store, nb_err *err)
{
    nb_hf_state *hf = store->state;
    const json_t *q = json_object_get(store->config, "quantization_config");
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    nb_status s = refuse_other_configs(store->config, err);
    if (s == NB_OK && method != NULL && (strcmp(method, "gptq") == 0 || strcmp(method, "awq") == 0))
        s = nb_qweight_parse(&hf->qweight, q, err);
    else if (s == NB_OK && method != NULL && strcmp(method, "fp8") == 0)
        s = nb_fp8_parse(&hf->fp8, &store->kv_scheme, q, err);
    else if (s == NB_OK && method != NULL && strcmp(method, "bitsandbytes") == 0)
        s = nb_bnb_parse(&hf->is_bitsandbytes, q, err);
    else if (s == NB_OK && method != NULL && strcmp(method, "hqq") == 0)
        hf->is_hqq = true; /* each module says itself what it is */
    else if (s == NB_OK && q != NULL && !json_is_null(q))
        s = nb_ct_parse(&hf->ct, &store->arena, q, hf->n_tensors, err);
    if (s == NB_OK && hf->fp8.name == NULL)
        store->kv_scheme = hf->ct.kv;
    return s == NB_OK ? NB_OK : nb_context(err, "%s/config.json", store->path);
}

/* ---- weights ---- */

/* Finds a part of a module, and marks it as used. */
static nb_status find_part(nb_store *store, nb_located *out, const char *module, const char *part,
                           nb_err *err)
{
    nb_hf_state *hf = store->state;
    nb_buf name = {0};
    nb_status s = nb_buf_format(&name, err, "%s.%s", module, part);
    if (s == NB_OK) {
        const nb_name *found = nb_names_find(hf->names, hf->n_tensors, (const char *)name.data);
        *out = (nb_located){0};
        if (found != NULL) {
            *out = hf->tensors[found->value];
            hf->used[found->value] = true;
        }
    }
    nb_buf_free(&name);
    return s;
}

nb_status nb_hf_find_part(nb_store *store, nb_located *out, const char *module, const char *part,
                          nb_err *err)
{
    return find_part(store, out, module, part, err);
}

/* weight_shape is data, but without it the number of columns is not known: it is read now. */
static nb_status read_shape(nb_store *store, nb_weight *w, const char *module, nb_err *err)
{
    nb_located shape;
    int64_t dims[2] = {0, 0};
    NB_TRY(find_part(store, &shape, module, "weight_shape", err));
    if (shape.tensor == NULL)
        return nb_fail(err, NB_DATA, "tensor '%.200s' has no weight_shape", w->file_name);
    const nb_st_tensor *t = shape.tensor;
    if (t->dtype != NB_ST_I64 || t->n_dims != 1 || t->dims[0] != 2) {
        char found[NB_ST_SHAPE_TEXT];
        return nb_fail(err, NB_DATA, "tensor '%.200s': wanted I64 [2], found %s %s", t->name,
                       nb_st_dtype_name(t->dtype), nb_st_shape_text(found, t->n_dims, t->dims));
    }
    NB_TRY(nb_st_read(shape.file, t, dims, err));
    w->n_rows = dims[0];
    w->n_cols = dims[1];
    w->bytes += t->bytes;
    return NB_OK;
}

/* A weight in codes: `t` is P.weight_packed, or P.weight in I8. */
static nb_status add_quantized(nb_store *store, nb_located at, const char *module, bool packed,
                               nb_err *err)
{
    nb_hf_state *hf = store->state;
    const nb_st_tensor *t = at.tensor;
    const nb_ct_group *group;
    if (hf->ct.n_groups == 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s': codes of dtype %s, and config.json has no "
                       "quantization_config",
                       t->name, nb_st_dtype_name(t->dtype));
    NB_TRY(nb_ct_match(&hf->ct, module, &group, err));
    if (group == NULL)
        return nb_fail(err, NB_DATA,
                       "tensor '%.200s' holds codes, and quantization_config names no group for it",
                       t->name);
    if (packed != (group->layout == NB_CT_PACKED))
        return nb_fail(err, NB_DATA, "tensor '%.200s': group '%.100s' is %s", t->name, group->name,
                       packed ? "int-quantized" : "pack-quantized");

    nb_weight *w = &store->weights[store->n_weights];
    nb_hf_recipe *r = &hf->recipes[store->n_weights];
    *w = (nb_weight){.file_name = t->name, .n_dims = 2};
    *r = (nb_hf_recipe){.group = group, .codes = at};
    char *name;
    NB_TRY(nb_arena_format(&store->arena, &name, err, "%s.weight", module));
    w->name = name;
    if (packed) {
        if (nb_names_find(hf->names, hf->n_tensors, name) != NULL)
            return nb_fail(err, NB_DATA, "tensors '%.200s' and '%.200s' are one weight, twice",
                           t->name, name);
        NB_TRY(read_shape(store, w, module, err));
    } else if (t->n_dims == 2) {
        w->n_rows = t->dims[0];
        w->n_cols = t->dims[1];
    }
    w->dims[0] = w->n_rows;
    w->dims[1] = w->n_cols;
    NB_TRY(find_part(store, &r->scale, module, "weight_scale", err));
    NB_TRY(find_part(store, &r->zero_point, module, "weight_zero_point", err));
    const nb_ct_parts parts = {
        .codes = t, .scale = r->scale.tensor, .zero_point = r->zero_point.tensor};
    NB_TRY(nb_ct_describe(w, group, &parts, err));
    w->bytes += t->bytes + parts.scale->bytes;
    w->bytes += parts.zero_point != NULL ? parts.zero_point->bytes : 0;
    NB_TRY(nb_hf_read_input_scale(store, w, module, err));
    store->n_weights++;
    return NB_OK;
}

/* g_idx is data, but without it nobody knows whether groups are runs of columns. */
static nb_status read_order(nb_store *store, nb_hf_recipe *r, nb_weight *w, nb_err *err)
{
    const nb_st_tensor *t = r->order.tensor;
    if (t == NULL)
        return NB_OK;
    nb_buf g_idx = {0};
    bool in_order = true;
    nb_status s = nb_buf_reserve(&g_idx, (size_t)t->bytes, err);
    if (s == NB_OK)
        s = nb_st_read(r->order.file, t, g_idx.data, err);
    if (s == NB_OK && nb_qweight_check_order(w, (const int32_t *)(const void *)g_idx.data,
                                             &in_order, err) != NB_OK)
        s = nb_context(err, "tensor '%.200s'", t->name);
    nb_buf_free(&g_idx);
    if (s != NB_OK || in_order)
        return s;
    nb_weight *coded;
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &coded, 1, err));
    *coded = *w;
    r->turned = coded;
    w->fmt = &nb_format_f32;
    w->reordered = true;
    return NB_OK;
}

/* A weight of GPTQ or AWQ: `at` is P.qweight. */
static nb_status add_turned(nb_store *store, nb_located at, const char *module, nb_err *err)
{
    nb_hf_state *hf = store->state;
    if (!nb_qweight_is(hf->qweight.layout))
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s': codes of GPTQ or AWQ, and config.json has no "
                       "quantization_config of theirs",
                       at.tensor->name);
    nb_weight *w = &store->weights[store->n_weights];
    nb_hf_recipe *r = &hf->recipes[store->n_weights];
    *w = (nb_weight){.file_name = at.tensor->name};
    *r = (nb_hf_recipe){.codes = at, .turned = w};
    char *name;
    NB_TRY(nb_arena_format(&store->arena, &name, err, "%s.weight", module));
    w->name = name;
    if (nb_names_find(hf->names, hf->n_tensors, name) != NULL)
        return nb_fail(err, NB_DATA, "tensors '%.200s' and '%.200s' are one weight, twice",
                       at.tensor->name, name);
    NB_TRY(find_part(store, &r->scale, module, "scales", err));
    NB_TRY(find_part(store, &r->zero_point, module, "qzeros", err));
    if (hf->qweight.layout != NB_LAYOUT_AWQ)
        NB_TRY(find_part(store, &r->order, module, "g_idx", err));
    const nb_qweight_parts parts = {.qweight = at.tensor,
                                    .qzeros = r->zero_point.tensor,
                                    .scales = r->scale.tensor,
                                    .g_idx = r->order.tensor};
    NB_TRY(nb_qweight_describe(w, &hf->qweight, &parts, err));
    NB_TRY(read_order(store, r, w, err));
    store->n_weights++;
    return NB_OK;
}

static const nb_format *plain_format(nb_st_dtype dtype)
{
    switch (dtype) {
    case NB_ST_F32:
        return &nb_format_f32;
    case NB_ST_F16:
        return &nb_format_f16;
    case NB_ST_BF16:
        return &nb_format_bf16;
    default:
        return NULL;
    }
}

/* A tensor of plain numbers. What is no weight by its name, and nothing a weight can be, is none
 * of our business: buffers, counters, masks. */
static nb_status add_plain(nb_store *store, nb_located at, nb_err *err)
{
    nb_hf_state *hf = store->state;
    const nb_st_tensor *t = at.tensor;
    const nb_format *fmt = plain_format(t->dtype);
    const bool named = ends_with(t->name, ".weight") || ends_with(t->name, ".bias");
    if (fmt == NULL || t->bytes == 0) {
        if (!named)
            return NB_OK;
        if (fmt == NULL)
            return nb_fail(err, NB_UNSUPPORTED,
                           "tensor '%.200s': weights of dtype %s are not supported", t->name,
                           nb_st_dtype_name(t->dtype));
        char shape[NB_ST_SHAPE_TEXT];
        return nb_fail(err, NB_DATA, "tensor '%.200s' is empty: %s", t->name,
                       nb_st_shape_text(shape, t->n_dims, t->dims));
    }
    nb_weight *w = &store->weights[store->n_weights];
    *w = (nb_weight){.name = t->name, .file_name = t->name, .n_dims = t->n_dims, .fmt = fmt};
    memcpy(w->dims, t->dims, sizeof w->dims);
    w->bytes = t->bytes;
    w->n_cols = t->n_dims == 0 ? 1 : t->dims[t->n_dims - 1];
    w->n_rows = t->bytes / (nb_st_dtype_bits(t->dtype) / 8) / w->n_cols;
    hf->recipes[store->n_weights] = (nb_hf_recipe){.codes = at};
    store->n_weights++;
    return NB_OK;
}

/* Suffixes that belong to a quantized weight, and mean nothing without it. */
static bool is_part_name(const char *name)
{
    static const char *const parts[] = {
        ".weight_packed",
        ".weight_scale",
        ".weight_scale_inv",
        ".weight_zero_point",
        ".weight_shape",
        ".weight_g_idx",
        ".weight_scale_2",
        ".weight_global_scale",
        ".input_scale",
        ".input_zero_point",
        ".input_global_scale",
        ".output_scale",
        ".k_scale",
        ".v_scale",
        ".q_scale",
        ".kv_scale",
        ".qweight",
        ".qzeros",
        ".scales",
        ".g_idx",
        ".SCB",
        ".absmax",
        ".nested_absmax",
        ".quant_map",
        ".nested_quant_map",
        ".quant_state.bitsandbytes__nf4",
        ".quant_state.bitsandbytes__fp4",
        ".weight_format",
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (ends_with(name, parts[i]))
            return true;
    }
    return false;
}

static nb_status add_tensor(nb_store *store, int64_t i, nb_err *err)
{
    nb_hf_state *hf = store->state;
    const nb_located at = hf->tensors[i];
    const char *name = at.tensor->name;
    const bool packed = ends_with(name, ".weight_packed");
    const bool int8 = ends_with(name, ".weight") && at.tensor->dtype == NB_ST_I8;
    const bool turned = ends_with(name, ".qweight");
    const bool floats = ends_with(name, ".weight") && nb_hf_is_floats(hf, at.tensor);
    const bool hqq = hf->is_hqq && ends_with(name, ".W_q");
    const bool float_weight = ends_with(name, ".weight") && !int8 && !floats;
    const char *dot = strrchr(name, '.');
    size_t prefix;
    const bool kv_scale = nb_hf_has_kv_scales(store) && nb_kv_scale_part(name, &prefix) != NULL;
    const bool hqq_part = hf->is_hqq && dot != NULL && nb_hqq_is_part(dot + 1);
    if (!packed && !turned && !kv_scale && (is_part_name(name) || hqq_part))
        return NB_OK; /* looked for by name; whether it was is asked at the end */
    hf->used[i] = true;
    if (kv_scale)
        return nb_hf_add_kv_scale(store, at, err);
    if (!packed && !int8 && !turned && !floats && !hqq && (!float_weight || hf->ct.n_groups == 0))
        return add_plain(store, at, err);

    char *module;
    NB_TRY(nb_arena_text(&store->arena, &module, name, (size_t)(dot - name), err));
    if (turned)
        return add_turned(store, at, module, err);
    if (hqq)
        return nb_hf_add_hqq(store, at, module, err);
    if (floats)
        return nb_hf_add_floats(store, at, module, err);
    if (packed || int8)
        return add_quantized(store, at, module, packed, err);
    bool named;
    NB_TRY(nb_ct_is_named(&hf->ct, module, &named, err));
    if (named)
        return nb_fail(err, NB_DATA,
                       "tensor '%.200s': dtype %s, and quantization_config says it is quantized",
                       name, nb_st_dtype_name(at.tensor->dtype));
    return add_plain(store, at, err);
}

static nb_status list_weights(nb_store *store, nb_err *err)
{
    nb_hf_state *hf = store->state;
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &store->weights, hf->n_tensors, err));
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &hf->recipes, hf->n_tensors, err));
    for (int64_t i = 0; i < hf->n_tensors; i++) {
        if (add_tensor(store, i, err) != NB_OK)
            return nb_context(err, "%s", hf->tensors[i].file->file.path);
    }
    for (int64_t i = 0; i < hf->n_tensors; i++) {
        if (!hf->used[i])
            return nb_fail(err, NB_UNSUPPORTED,
                           "%s: tensor '%.200s' belongs to no quantized weight that nibble reads",
                           hf->tensors[i].file->file.path, hf->tensors[i].tensor->name);
    }
    return NB_OK;
}

static nb_status hf_open(nb_store *store, const char *path, nb_err *err)
{
    nb_hf_state *hf;
    (void)path; /* the store's own */
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &hf, 1, err));
    store->state = hf;
    NB_TRY(load_object(store, &store->config, "config.json", true, MAX_CONFIG_BYTES, err));
    NB_TRY(load_object(store, &store->generation_config, "generation_config.json", false,
                       MAX_CONFIG_BYTES, err));
    NB_TRY(load_object(store, &store->tokenizer_config, "tokenizer_config.json", false,
                       MAX_TOKENIZER_BYTES, err));
    NB_TRY(open_tensors(store, err));
    NB_TRY(parse_quantization(store, err));
    return list_weights(store, err);
}

static void hf_close(nb_store *store)
{
    nb_hf_state *hf = store->state;
    if (hf == NULL)
        return;
    for (int64_t i = 0; i < hf->n_files; i++)
        nb_st_close(&hf->files[i]);
    nb_ct_free(&hf->ct);
    store->state = NULL; /* its memory is the arena's */
}

const nb_container nb_container_hf = {
    .name = "hf",
    .kind = NB_STORE_HF,
    .open = hf_open,
    .read = nb_hf_read,
    .rows_at = nb_hf_rows_at,
    .close = hf_close,
};
