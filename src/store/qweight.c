/* See qweight.h. */
#include "store/qweight.h"

#include "numeric/codebits.h"
#include "store/awq.h"
#include "store/compressed_tensors.h"
#include "store/gptq.h"

#include <string.h>

/* ---- the configuration ---- */

nb_status nb_qweight_parse(nb_qweight_spec *spec, const json_t *config, nb_err *err)
{
    const char *method = NULL;
    nb_status s = nb_json_text(config, "quant_method", true, &method, err);
    if (s == NB_OK)
        s = strcmp(method, "awq") == 0 ? nb_awq_parse(spec, config, err)
                                       : nb_gptq_parse(spec, config, err);
    return s == NB_OK ? NB_OK : nb_context(err, "quantization_config");
}

/* ---- the tensors of a module ---- */

/* Rows and columns of the matrix, by the packed codes alone. */
static nb_status shape_of(nb_weight *w, const nb_qweight_spec *spec, const nb_st_tensor *t,
                          nb_err *err)
{
    char shape[NB_ST_SHAPE_TEXT];
    if (t->dtype != NB_ST_I32 || t->n_dims != 2 || t->bytes == 0)
        return nb_fail(err, NB_DATA, "tensor '%.200s': %s %s is no I32 matrix of packed codes",
                       t->name, nb_st_dtype_name(t->dtype),
                       nb_st_shape_text(shape, t->n_dims, t->dims));
    const bool awq = spec->layout == NB_LAYOUT_AWQ;
    const int64_t packed_bits = 32 * t->dims[awq ? 1 : 0]; /* the file has as many */
    const int64_t n_codes = packed_bits / spec->bits;
    w->n_rows = awq ? n_codes : t->dims[1];
    w->n_cols = awq ? t->dims[0] : n_codes;
    if (packed_bits % spec->bits != 0 || (awq && w->n_cols % 8 != 0) ||
        w->n_rows * spec->bits % 32 != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s': %s words hold no whole matrix of %d-bit codes, its zero "
                       "points included",
                       t->name, nb_st_shape_text(shape, t->n_dims, t->dims), spec->bits);
    return NB_OK;
}

static nb_status scale_type_of(const nb_st_tensor *t, nb_float_type *out, nb_err *err)
{
    if (t->dtype == NB_ST_F16)
        *out = NB_F16;
    else if (t->dtype == NB_ST_BF16)
        *out = NB_BF16;
    else if (t->dtype == NB_ST_F32)
        *out = NB_F32;
    else
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s': scales of dtype %s are not supported (F16, BF16 and F32 "
                       "are)",
                       t->name, nb_st_dtype_name(t->dtype));
    return NB_OK;
}

static nb_status must_be_there(const nb_st_tensor *t, const nb_st_tensor *codes, const char *part,
                               nb_err *err)
{
    return t != NULL ? NB_OK
                     : nb_fail(err, NB_DATA, "tensor '%.200s' has no %s", codes->name, part);
}

nb_status nb_qweight_describe(nb_weight *w, const nb_qweight_spec *spec,
                              const nb_qweight_parts *parts, nb_err *err)
{
    const nb_st_tensor *codes = parts->qweight;
    NB_TRY(shape_of(w, spec, codes, err));
    const int64_t group =
        spec->group_size < 0 || spec->group_size > w->n_cols ? w->n_cols : spec->group_size;
    if (w->n_cols % group != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s': %lld columns are not divisible by the group_size %lld",
                       codes->name, (long long)w->n_cols, (long long)group);
    const int64_t n_groups = w->n_cols / group;
    NB_TRY(must_be_there(parts->scales, codes, "scales", err));
    NB_TRY(must_be_there(parts->qzeros, codes, "qzeros", err));
    NB_TRY(scale_type_of(parts->scales, &w->scale_type, err));
    NB_TRY(nb_st_expect(parts->scales, parts->scales->dtype, 2,
                        (const int64_t[]){n_groups, w->n_rows}, err));
    NB_TRY(nb_st_expect(parts->qzeros, NB_ST_I32, 2,
                        (const int64_t[]){n_groups, nb_codebits_words(w->n_rows, spec->bits)},
                        err));
    if (parts->g_idx != NULL)
        NB_TRY(nb_st_expect(parts->g_idx, NB_ST_I32, 1, (const int64_t[]){w->n_cols}, err));
    else if (spec->reorders)
        NB_TRY(must_be_there(NULL, codes, "g_idx, and desc_act is true", err));

    w->n_dims = 2;
    w->dims[0] = w->n_rows;
    w->dims[1] = w->n_cols;
    w->fmt = nb_format_of_bits(spec->bits);
    w->group_size = group;
    w->symmetric = spec->symmetric;
    w->layout = spec->layout;
    w->bytes = codes->bytes + parts->scales->bytes + parts->qzeros->bytes;
    w->bytes += parts->g_idx != NULL ? parts->g_idx->bytes : 0;
    return NB_OK;
}

nb_status nb_qweight_check_order(const nb_weight *w, const int32_t *g_idx, bool *in_order,
                                 nb_err *err)
{
    const int64_t n_groups = w->n_cols / w->group_size;
    *in_order = true;
    for (int64_t k = 0; k < w->n_cols; k++) {
        if (g_idx[k] < 0 || g_idx[k] >= n_groups)
            return nb_fail(err, NB_DATA, "group %d of column %lld, and there are %lld",
                           (int)g_idx[k], (long long)k, (long long)n_groups);
        *in_order = *in_order && g_idx[k] == k / w->group_size;
    }
    return NB_OK;
}

/* ---- bytes ---- */

/* What version 1 takes off each zero point. */
static int taken_off(const nb_weight *w)
{
    return w->layout == NB_LAYOUT_GPTQ ? 1 : 0;
}

nb_status nb_qweight_read_zeros(int8_t *zeros, const nb_weight *w, const char *name,
                                const uint32_t *words, nb_err *err)
{
    const int64_t n_groups = w->n_cols / w->group_size;
    nb_status s = NB_OK;
    if (w->layout == NB_LAYOUT_AWQ)
        nb_awq_read_zeros(zeros, words, w->n_rows, n_groups);
    else
        s = nb_gptq_read_zeros(zeros, words, w->n_rows, n_groups, w->fmt->bits, taken_off(w), err);
    for (int64_t i = 0; s == NB_OK && w->symmetric && i < w->n_rows * n_groups; i++) {
        if (zeros[i] != 0)
            s = nb_fail(err, NB_DATA,
                        "output %lld has the zero point %d, and quantization_config says that all "
                        "are %d",
                        (long long)(i / n_groups), zeros[i] + (1 << (w->fmt->bits - 1)),
                        1 << (w->fmt->bits - 1));
    }
    return s == NB_OK ? NB_OK : nb_context(err, "tensor '%.200s'", name);
}

nb_status nb_qweight_write_zeros(uint32_t *words, const nb_weight *w, const nb_mat *m, nb_err *err)
{
    if (w->layout != NB_LAYOUT_AWQ)
        return nb_gptq_write_zeros(words, m, taken_off(w), err);
    nb_awq_write_zeros(words, m->zeros, m->n_rows, nb_mat_n_groups(m));
    return NB_OK;
}

void nb_qweight_read_codes(uint8_t *codes, const nb_weight *w, const uint32_t *words)
{
    if (w->layout == NB_LAYOUT_AWQ)
        nb_awq_read_codes(codes, words, w->n_rows, w->n_cols);
    else
        nb_gptq_read_codes(codes, words, w->n_rows, w->n_cols, w->fmt->bits);
}

void nb_qweight_write_codes(uint32_t *words, const nb_weight *w, const nb_mat *m)
{
    if (w->layout == NB_LAYOUT_AWQ)
        nb_awq_write_codes(words, m->codes, m->n_rows, m->n_cols);
    else
        nb_gptq_write_codes(words, m->codes, m->n_rows, m->n_cols, m->fmt->bits);
}

/* Square tiles: both sides stay within a few lines of a cache. */
#define TILE 16

#define TURN(type)                                                                                 \
    for (int64_t r0 = 0; r0 < n_rows; r0 += TILE)                                                  \
        for (int64_t c0 = 0; c0 < n_cols; c0 += TILE)                                              \
            for (int64_t c = c0; c < n_cols && c < c0 + TILE; c++)                                 \
                for (int64_t r = r0; r < n_rows && r < r0 + TILE; r++)                             \
                    ((type *)out)[c * n_rows + r] = ((const type *)in)[r * n_cols + c];

void nb_qweight_turn(void *out, const void *in, int64_t n_rows, int64_t n_cols, size_t size)
{
    if (size == 2) {
        TURN(uint16_t)
    } else {
        TURN(uint32_t)
    }
}

/* ---- planning to write ---- */

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static const char *layout_name(nb_layout layout)
{
    return layout == NB_LAYOUT_AWQ ? "AWQ" : "GPTQ";
}

nb_status nb_qweight_plan(nb_qweight_part parts[NB_QWEIGHT_MAX_PARTS], int *n_parts,
                          const nb_weight *w, nb_err *err)
{
    const bool awq = w->layout == NB_LAYOUT_AWQ;
    const char *name = layout_name(w->layout);
    const int bits = w->fmt->bits;
    const int64_t n = w->n_rows, k = w->n_cols, n_groups = k / w->group_size;
    if (nb_format_of_bits(bits) != w->fmt || (awq && bits != 4))
        return nb_fail(err, NB_UNSUPPORTED, "%s has no place for %s", name, w->fmt->name);
    if (w->act.bits != 0)
        return nb_fail(err, NB_UNSUPPORTED, "%s has no words for activations of %d bits", name,
                       w->act.bits);
    if (w->scale_type != NB_F16)
        return nb_fail(err, NB_UNSUPPORTED, "%s has scales of f16, not of %s", name,
                       nb_float_name(w->scale_type));
    const int64_t unit = awq ? 8 : 32;
    if (n % unit != 0 || k % unit != 0)
        return nb_fail(err, NB_UNSUPPORTED, "%s packs rows and columns by %lld, not %lld x %lld",
                       name, (long long)unit, (long long)n, (long long)k);
    *n_parts = 0;
    parts[(*n_parts)++] =
        (nb_qweight_part){NB_QWEIGHT_CODES,
                          ".qweight",
                          NB_ST_I32,
                          2,
                          {awq ? k : nb_codebits_words(k, bits), awq ? n / 8 : n}};
    parts[(*n_parts)++] = (nb_qweight_part){
        NB_QWEIGHT_ZEROS, ".qzeros", NB_ST_I32, 2, {n_groups, nb_codebits_words(n, bits)}};
    if (!awq)
        parts[(*n_parts)++] = (nb_qweight_part){NB_QWEIGHT_ORDER, ".g_idx", NB_ST_I32, 1, {k}};
    parts[(*n_parts)++] =
        (nb_qweight_part){NB_QWEIGHT_SCALES, ".scales", NB_ST_F16, 2, {n_groups, n}};
    return NB_OK;
}

/* What one weight says about all of them. */
static nb_status agree(nb_qweight_spec *spec, const nb_weight *w, const nb_weight *first,
                       nb_err *err)
{
    const char *name = layout_name(w->layout);
    if (!ends_with(w->name, ".weight") ||
        nb_ct_is_embedding(w->name, strlen(w->name) - strlen(".weight")))
        return nb_fail(err, NB_UNSUPPORTED, "'%.200s' is quantized, and no linear layer's weight",
                       w->name);
    if (w->layout == NB_LAYOUT_AWQ && strcmp(w->name, "lm_head.weight") == 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "'%.200s' is quantized, which AWQ's readers do not expect", w->name);
    if (w->fmt != first->fmt || w->symmetric != first->symmetric || w->layout != first->layout)
        return nb_fail(err, NB_UNSUPPORTED,
                       "'%.200s' is %s%s, and '%.200s' %s%s: %s has one format for all", w->name,
                       w->fmt->name, w->symmetric ? "" : " asym", first->name, first->fmt->name,
                       first->symmetric ? "" : " asym", name);
    if (w->group_size == w->n_cols && spec->group_size < 0)
        return NB_OK; /* one group a row, so far */
    if (spec->group_size < 0)
        spec->group_size = w->group_size;
    return NB_OK;
}

static nb_status find_spec(nb_qweight_spec *spec, const nb_weight *plan, int64_t n, nb_err *err)
{
    const nb_weight *first = NULL;
    for (int64_t i = 0; i < n; i++) {
        if (!plan[i].fmt->affine)
            continue;
        if (first == NULL) {
            first = &plan[i];
            *spec = (nb_qweight_spec){.layout = first->layout,
                                      .bits = first->fmt->bits,
                                      .group_size = -1,
                                      .symmetric = first->symmetric};
        }
        NB_TRY(agree(spec, &plan[i], first, err));
    }
    for (int64_t i = 0; i < n && spec->group_size > 0; i++) {
        if (plan[i].fmt->affine && plan[i].group_size != spec->group_size)
            return nb_fail(err, NB_UNSUPPORTED,
                           "'%.200s' has groups of %lld, and others of %lld: %s has one size for "
                           "all",
                           plan[i].name, (long long)plan[i].group_size, (long long)spec->group_size,
                           layout_name(spec->layout));
    }
    return NB_OK;
}

/* Linear layers that stay floats. GPTQ's readers expect that of the head, but of no other. */
static json_t *loose_linears(const nb_qweight_spec *spec, const nb_weight *plan, int64_t n)
{
    json_t *list = json_array();
    bool bad = list == NULL;
    for (int64_t i = 0; i < n && !bad; i++) {
        const char *name = plan[i].name;
        if (plan[i].fmt->affine || plan[i].n_dims != 2 || !ends_with(name, ".weight"))
            continue;
        const size_t len = strlen(name) - strlen(".weight");
        if (!nb_ct_is_embedding(name, len) && strcmp(name, "lm_head.weight") != 0)
            bad = json_array_append_new(list, json_stringn(name, len)) != 0;
    }
    if (!bad && spec->layout == NB_LAYOUT_AWQ) /* a Linear even where it is the embedding */
        bad = json_array_append_new(list, json_string("lm_head")) != 0;
    if (!bad)
        return list;
    json_decref(list);
    return NULL;
}

nb_status nb_qweight_config(json_t **out, const nb_weight *plan, int64_t n_weights, nb_err *err)
{
    nb_qweight_spec spec = {0};
    bool lm_head = false;
    *out = NULL;
    if (find_spec(&spec, plan, n_weights, err) != NB_OK)
        return nb_context(err, "quantization_config");
    for (int64_t i = 0; i < n_weights; i++)
        lm_head = lm_head || (plan[i].fmt->affine && strcmp(plan[i].name, "lm_head.weight") == 0);
    json_t *loose = loose_linears(&spec, plan, n_weights);
    if (loose != NULL)
        *out = spec.layout == NB_LAYOUT_AWQ ? nb_awq_config(&spec, loose)
                                            : nb_gptq_config(&spec, lm_head, loose);
    json_decref(loose);
    return *out != NULL
               ? NB_OK
               : nb_fail(err, NB_MEMORY, "out of memory while writing quantization_config");
}
