/* See bnb.h. */
#include "store/bnb.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- the configuration ---- */

nb_status nb_bnb_parse(bool *is_bnb, const json_t *config, nb_err *err)
{
    bool four = false;
    const char *type = "fp4"; /* as bitsandbytes presumes */
    nb_status s = nb_json_bool(config, "load_in_4bit", false, &four, err);
    if (s == NB_OK)
        s = nb_json_text(config, "bnb_4bit_quant_type", false, &type, err);
    if (s == NB_OK && !four)
        s = nb_fail(err, NB_UNSUPPORTED, "8-bit weights of bitsandbytes are not supported");
    if (s == NB_OK && strcmp(type, "nf4") != 0)
        s = nb_fail(err, NB_UNSUPPORTED, "bnb_4bit_quant_type '%.50s' is not supported (nf4 is)",
                    type);
    if (s != NB_OK)
        return nb_context(err, "quantization_config");
    *is_bnb = true;
    return NB_OK;
}

/* ---- the state ---- */

static nb_status parse_shape(nb_weight *w, const json_t *state, nb_err *err)
{
    json_t *shape;
    NB_TRY(nb_json_array(state, "shape", true, &shape, err));
    const json_int_t n = json_integer_value(json_array_get(shape, 0));
    const json_int_t k = json_integer_value(json_array_get(shape, 1));
    int64_t all;
    if (json_array_size(shape) != 2 || n < 1 || k < 1 || __builtin_mul_overflow(n, k, &all))
        return nb_fail(err, NB_DATA, "shape is no pair of rows and columns");
    w->n_dims = 2;
    w->n_rows = w->dims[0] = n;
    w->n_cols = w->dims[1] = k;
    return NB_OK;
}

static nb_status parse_state(nb_weight *w, float *offset, const json_t *state, nb_err *err)
{
    const char *type = NULL;
    int64_t block = 0, nested_block = NB_NESTED_BLOCK;
    NB_TRY(nb_json_text(state, "quant_type", true, &type, err));
    if (strcmp(type, "nf4") != 0)
        return nb_fail(err, NB_UNSUPPORTED, "quant_type '%.50s' is not supported (nf4 is)", type);
    NB_TRY(nb_json_int(state, "blocksize", true, 2, 65536, &block, err));
    NB_TRY(parse_shape(w, state, err));
    if (w->n_cols % block != 0 || block % 2 != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "blocks of %lld that do not end where rows of %lld columns end are not "
                       "supported",
                       (long long)block, (long long)w->n_cols);
    w->group_size = block;
    const json_t *v = json_object_get(state, "nested_offset");
    w->nested = v != NULL && !json_is_null(v);
    if (!w->nested)
        return NB_OK;
    *offset = (float)json_number_value(v);
    if (!json_is_number(v) || !isfinite(*offset))
        return nb_fail(err, NB_DATA, "nested_offset is no finite number");
    NB_TRY(nb_json_int(state, "nested_blocksize", false, 1, 65536, &nested_block, err));
    if (nested_block != NB_NESTED_BLOCK)
        return nb_fail(err, NB_UNSUPPORTED, "nested_blocksize %lld is not supported (%d is)",
                       (long long)nested_block, NB_NESTED_BLOCK);
    return NB_OK;
}

static nb_status parse_state_text(nb_weight *w, float *offset, const char *text, size_t len,
                                  nb_err *err)
{
    json_t *state = NULL;
    while (len > 0 && text[len - 1] == ' ')
        len--;
    NB_TRY(nb_json_parse(&state, text, len, err));
    const nb_status s = json_is_object(state) ? parse_state(w, offset, state, err)
                                              : nb_fail(err, NB_DATA, "not a JSON object");
    json_decref(state);
    return s;
}

/* ---- the parts ---- */

static nb_status check_part(const nb_st_tensor *t, const char *codes, const char *what,
                            nb_st_dtype dtype, int64_t n, nb_err *err)
{
    if (t == NULL)
        return nb_fail(err, NB_DATA, "tensor '%.200s' has no %s", codes, what);
    int64_t count = 1; /* [n], or [n, 1] */
    for (int i = 0; i < t->n_dims; i++)
        count = t->dims[i] == 1 ? count : count == 1 ? t->dims[i] : 0;
    if (t->dtype == dtype && count == n)
        return NB_OK;
    char found[NB_ST_SHAPE_TEXT];
    return nb_fail(err, NB_DATA, "tensor '%.200s': wanted %s [%lld], found %s %s", t->name,
                   nb_st_dtype_name(dtype), (long long)n, nb_st_dtype_name(t->dtype),
                   nb_st_shape_text(found, t->n_dims, t->dims));
}

nb_status nb_bnb_describe(nb_weight *weight, float *offset, const char *state, size_t len,
                          const nb_bnb_parts *parts, nb_err *err)
{
    const char *codes = parts->codes->name;
    if (parse_state_text(weight, offset, state, len, err) != NB_OK)
        return nb_context(err, "tensor '%.200s': quant_state", codes);
    const int64_t all = weight->n_rows * weight->n_cols, n = all / weight->group_size;
    NB_TRY(check_part(parts->codes, codes, "codes", NB_ST_U8, all / 2, err));
    NB_TRY(
        check_part(parts->absmax, codes, "absmax", weight->nested ? NB_ST_U8 : NB_ST_F32, n, err));
    NB_TRY(check_part(parts->map, codes, "quant_map", NB_ST_F32, 16, err));
    if (weight->nested) {
        NB_TRY(check_part(parts->steps, codes, "nested_absmax", NB_ST_F32,
                          (n + NB_NESTED_BLOCK - 1) / NB_NESTED_BLOCK, err));
        NB_TRY(check_part(parts->nested_map, codes, "nested_quant_map", NB_ST_F32, 256, err));
    }
    weight->fmt = &nb_format_nf4;
    weight->symmetric = true;
    weight->scale_type = NB_F32;
    weight->layout = NB_LAYOUT_BNB;
    return NB_OK;
}

/* ---- writing ---- */

/* Long enough for any shape, and so much longer that all U8 of a weight are whole words of 8 bytes:
 * tensors behind it stay aligned. */
#define STATE_BYTES 256

int64_t nb_bnb_state_bytes(const nb_weight *w)
{
    const int64_t n = w->n_rows * w->n_cols / w->group_size;
    const int64_t others = w->n_rows * w->n_cols / 2 + (w->nested ? n : 0);
    return STATE_BYTES + (8 - others % 8) % 8;
}

nb_status nb_bnb_state(nb_buf *out, const nb_weight *w, float offset, nb_err *err)
{
    const size_t bytes = (size_t)nb_bnb_state_bytes(w), start = out->len;
    NB_TRY(nb_buf_format(out, err,
                         "{\"quant_type\": \"nf4\", \"blocksize\": %lld, \"dtype\": "
                         "\"bfloat16\", \"shape\": [%lld, %lld]",
                         (long long)w->group_size, (long long)w->n_rows, (long long)w->n_cols));
    if (w->nested)
        NB_TRY(nb_buf_format(out, err,
                             ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", "
                             "\"nested_offset\": %.9g",
                             NB_NESTED_BLOCK, (double)offset));
    NB_TRY(nb_buf_u8(out, '}', err));
    while (out->len - start < bytes)
        NB_TRY(nb_buf_u8(out, ' ', err));
    return NB_OK;
}

static json_t *skipped_modules(const nb_weight *plan, int64_t n_weights)
{
    static const char end[] = ".weight";
    json_t *list = json_array();
    bool head = false;
    for (int64_t i = 0; i < n_weights && list != NULL; i++) {
        const size_t len = strlen(plan[i].name), tail = sizeof end - 1;
        if (plan[i].fmt->affine || plan[i].n_dims != 2 || len < tail ||
            strcmp(plan[i].name + len - tail, end) != 0 || strstr(plan[i].name, "embed") != NULL)
            continue;
        head = head || strcmp(plan[i].name, "lm_head.weight") == 0;
        if (json_array_append_new(list, json_stringn(plan[i].name, len - tail)) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    if (list != NULL && !head && json_array_append_new(list, json_string("lm_head")) != 0) {
        json_decref(list);
        return NULL;
    }
    return list;
}

nb_status nb_bnb_config(json_t **out, const nb_weight *plan, int64_t n_weights, nb_err *err)
{
    const nb_weight *first = NULL;
    *out = NULL;
    for (int64_t i = 0; i < n_weights; i++) {
        if (plan[i].fmt->affine && plan[i].fmt != &nb_format_nf4)
            return nb_fail(err, NB_UNSUPPORTED,
                           "quantization_config: '%.200s' is %s, and a folder of bitsandbytes "
                           "holds nf4 only",
                           plan[i].name, plan[i].fmt->name);
        if (plan[i].fmt == &nb_format_nf4 && first == NULL)
            first = &plan[i];
    }
    if (first == NULL)
        return NB_OK;
    *out = json_pack("{s:s,s:b,s:b,s:b,s:b,s:s,s:b,s:s,s:s,s:f,s:o,s:b,s:b}", "quant_method",
                     "bitsandbytes", "_load_in_4bit", 1, "_load_in_8bit", 0, "load_in_4bit", 1,
                     "load_in_8bit", 0, "bnb_4bit_quant_type", "nf4", "bnb_4bit_use_double_quant",
                     (int)first->nested, "bnb_4bit_compute_dtype", "bfloat16",
                     "bnb_4bit_quant_storage", "uint8", "llm_int8_threshold", 6.0,
                     "llm_int8_skip_modules", skipped_modules(plan, n_weights),
                     "llm_int8_enable_fp32_cpu_offload", 0, "llm_int8_has_fp16_weight", 0);
    return *out != NULL
               ? NB_OK
               : nb_fail(err, NB_MEMORY, "out of memory while writing quantization_config");
}
