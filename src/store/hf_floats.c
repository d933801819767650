/* Reads float-coded weights of a Hugging Face folder: FP8 (fp8.h) and NF4 (bnb.h). What a file may
 * say wrongly about shapes is found when the folder is opened, what it may hold in its numbers when
 * they are read. */
#include "numeric/minifloat.h"
#include "numeric/nf4.h"
#include "store/bnb.h"
#include "store/fp8.h"
#include "store/hf.h"

#include <math.h>
#include <string.h>

bool nb_hf_is_floats(const nb_hf_state *hf, const nb_st_tensor *t)
{
    return t->dtype == NB_ST_F8_E4M3 || t->dtype == NB_ST_F8_E5M2 ||
           (hf->is_bitsandbytes && t->dtype == NB_ST_U8);
}

/* ---- describing ---- */

/* Symmetric activations have none, but some writers keep its zero. */
static nb_status check_input_zero(nb_store *store, const char *module, nb_err *err)
{
    nb_located at;
    uint8_t value[8] = {0};
    NB_TRY(nb_hf_find_part(store, &at, module, "input_zero_point", err));
    if (at.tensor == NULL)
        return NB_OK;
    const bool fits = at.tensor->bytes <= (int64_t)sizeof value;
    if (fits)
        NB_TRY(nb_st_read(at.file, at.tensor, value, err));
    for (size_t i = 0; i < sizeof value; i++)
        if (!fits || value[i] != 0)
            return nb_fail(err, NB_UNSUPPORTED,
                           "tensor '%.200s': activations with a zero point other than 0 are not "
                           "supported",
                           at.tensor->name);
    return NB_OK;
}

nb_status nb_hf_read_input_scale(nb_store *store, nb_weight *w, const char *module, nb_err *err)
{
    nb_located at;
    if (!w->act.is_static)
        return NB_OK;
    NB_TRY(nb_hf_find_part(store, &at, module, "input_scale", err));
    if (at.tensor == NULL)
        return nb_fail(err, NB_DATA,
                       "tensor '%.200s' has no input_scale, and activations are "
                       "static",
                       w->file_name);
    NB_TRY(check_input_zero(store, module, err));
    nb_float_type type = NB_F32;
    float value[1] = {0};
    NB_TRY(nb_ct_scale_type(at.tensor, &type, err));
    if (at.tensor->bytes != (int64_t)nb_float_bytes(type)) {
        char found[NB_ST_SHAPE_TEXT];
        return nb_fail(err, NB_DATA, "tensor '%.200s': wanted one number, found %s",
                       at.tensor->name,
                       nb_st_shape_text(found, at.tensor->n_dims, at.tensor->dims));
    }
    NB_TRY(nb_st_read(at.file, at.tensor, value, err));
    w->act.scale = nb_float_get(value, type, 0);
    w->bytes += at.tensor->bytes;
    if (!(w->act.scale >= 0x1p-100f && w->act.scale <= 0x1p100f))
        return nb_fail(err, NB_DATA, "tensor '%.200s': %g is no scale", at.tensor->name,
                       (double)w->act.scale);
    return NB_OK;
}

static nb_status find_fp8_group(nb_hf_state *hf, const nb_st_tensor *t, const char *module,
                                const nb_ct_group **out, nb_err *err)
{
    *out = hf->fp8.name != NULL ? &hf->fp8 : NULL;
    if (*out != NULL)
        return NB_OK;
    if (hf->ct.n_groups == 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s': codes of dtype %s, and config.json has no "
                       "quantization_config for them",
                       t->name, nb_st_dtype_name(t->dtype));
    NB_TRY(nb_ct_match(&hf->ct, module, out, err));
    if (*out == NULL)
        return nb_fail(err, NB_DATA,
                       "tensor '%.200s' holds codes, and quantization_config names no group for it",
                       t->name);
    if ((*out)->layout != NB_CT_FP8)
        return nb_fail(err, NB_DATA,
                       "tensor '%.200s': dtype %s, and group '%.100s' is not "
                       "float-quantized",
                       t->name, nb_st_dtype_name(t->dtype), (*out)->name);
    return NB_OK;
}

static nb_status add_fp8(nb_store *store, nb_weight *w, nb_hf_recipe *r, const char *module,
                         nb_err *err)
{
    const nb_st_tensor *t = r->codes.tensor;
    const nb_ct_group *group;
    NB_TRY(find_fp8_group(store->state, t, module, &group, err));
    NB_TRY(nb_hf_find_part(store, &r->scale, module, "weight_scale", err));
    if (r->scale.tensor == NULL && group->name != NULL && strcmp(group->name, "fp8") == 0)
        NB_TRY(nb_hf_find_part(store, &r->scale, module, "weight_scale_inv", err));
    w->n_dims = t->n_dims;
    memcpy(w->dims, t->dims, sizeof w->dims);
    w->n_rows = t->n_dims == 2 ? t->dims[0] : 0;
    w->n_cols = t->n_dims == 2 ? t->dims[1] : 0;
    NB_TRY(nb_fp8_describe(w, group, t, r->scale.tensor, err));
    w->bytes = t->bytes + r->scale.tensor->bytes;
    return nb_hf_read_input_scale(store, w, module, err);
}

static nb_status add_nf4(nb_store *store, nb_weight *w, nb_hf_recipe *r, const char *module,
                         nb_err *err)
{
    const char *name = r->codes.tensor->name;
    nb_located state, map, nested_map;
    char text[NB_BNB_MAX_STATE];
    NB_TRY(nb_hf_find_part(store, &state, module, NB_BNB_STATE, err));
    if (state.tensor == NULL)
        return nb_fail(err, NB_DATA, "tensor '%.200s' has no quant_state.bitsandbytes__nf4", name);
    if (state.tensor->dtype != NB_ST_U8 || state.tensor->bytes > NB_BNB_MAX_STATE)
        return nb_fail(err, NB_DATA, "tensor '%.200s': no U8 of at most %d bytes",
                       state.tensor->name, NB_BNB_MAX_STATE);
    NB_TRY(nb_st_read(state.file, state.tensor, text, err));
    NB_TRY(nb_hf_find_part(store, &r->scale, module, "weight.absmax", err));
    NB_TRY(nb_hf_find_part(store, &r->steps, module, "weight.nested_absmax", err));
    NB_TRY(nb_hf_find_part(store, &map, module, "weight.quant_map", err));
    NB_TRY(nb_hf_find_part(store, &nested_map, module, "weight.nested_quant_map", err));
    const nb_bnb_parts parts = {.codes = r->codes.tensor,
                                .absmax = r->scale.tensor,
                                .steps = r->steps.tensor,
                                .map = map.tensor,
                                .nested_map = nested_map.tensor};
    NB_TRY(nb_bnb_describe(w, &r->nested_offset, text, (size_t)state.tensor->bytes, &parts, err));
    /* The tables are the format: other numbers would be another format. */
    float found[256];
    NB_TRY(nb_st_read(map.file, map.tensor, found, err));
    if (memcmp(found, nb_nf4_levels, sizeof nb_nf4_levels) != 0)
        return nb_fail(err, NB_UNSUPPORTED, "tensor '%.200s': not the table of nf4",
                       map.tensor->name);
    if (w->nested) {
        NB_TRY(nb_st_read(nested_map.file, nested_map.tensor, found, err));
        if (memcmp(found, nb_nf4_map, sizeof nb_nf4_map) != 0)
            return nb_fail(err, NB_UNSUPPORTED, "tensor '%.200s': not the dynamic map",
                           nested_map.tensor->name);
        w->bytes += r->steps.tensor->bytes + nested_map.tensor->bytes;
    }
    w->bytes +=
        r->codes.tensor->bytes + r->scale.tensor->bytes + map.tensor->bytes + state.tensor->bytes;
    return NB_OK;
}

nb_status nb_hf_add_floats(nb_store *store, nb_located at, const char *module, nb_err *err)
{
    nb_hf_state *hf = store->state;
    nb_weight *w = &store->weights[store->n_weights];
    nb_hf_recipe *r = &hf->recipes[store->n_weights];
    *w = (nb_weight){.name = at.tensor->name, .file_name = at.tensor->name};
    *r = (nb_hf_recipe){.floats = true, .codes = at};
    NB_TRY(at.tensor->dtype == NB_ST_U8 ? add_nf4(store, w, r, module, err)
                                        : add_fp8(store, w, r, module, err));
    store->n_weights++;
    return NB_OK;
}

/* ---- reading ---- */

static nb_status read_into(nb_buf *buf, nb_located at, nb_err *err)
{
    buf->len = 0;
    NB_TRY(nb_buf_reserve(buf, (size_t)at.tensor->bytes, err));
    NB_TRY(nb_st_read(at.file, at.tensor, buf->data, err));
    buf->len = (size_t)at.tensor->bytes;
    return NB_OK;
}

static nb_status check_finite(const nb_st_tensor *t, const void *numbers, nb_float_type type,
                              int64_t n, nb_err *err)
{
    for (int64_t i = 0; i < n; i++) {
        const float v = nb_float_get(numbers, type, i);
        if (!isfinite(v))
            return nb_fail(err, NB_DATA, "tensor '%.200s': element %lld is %g, and no scale",
                           t->name, (long long)i, (double)v);
    }
    return NB_OK;
}

/* Scales of blocks become scales of their rows. */
static nb_status read_fp8_scales(const nb_hf_recipe *r, const nb_weight *w, nb_loaded *out,
                                 nb_err *err)
{
    const nb_mat *m = &out->mat;
    const size_t n_groups = (size_t)nb_mat_n_groups(m);
    const size_t row = n_groups * nb_float_bytes(w->scale_type);
    const int64_t n_stored = nb_mat_n_scale_rows(m);
    size_t bytes;
    const bool shared = n_stored != w->n_rows || w->scale_rows > 1;
    nb_buf *stored = shared ? &out->scratch : &out->scales;
    NB_TRY(read_into(stored, r->scale, err));
    NB_TRY(check_finite(r->scale.tensor, stored->data, w->scale_type, n_stored * (int64_t)n_groups,
                        err));
    if (!shared)
        return NB_OK;
    if (!nb_mul_size(row, (size_t)w->n_rows, &bytes))
        return nb_fail(err, NB_MEMORY, "%lld scales do not fit in memory", (long long)w->n_rows);
    out->scales.len = 0;
    NB_TRY(nb_buf_reserve(&out->scales, bytes, err));
    for (int64_t i = 0; i < w->n_rows; i++)
        memcpy(out->scales.data + (size_t)i * row, stored->data + (size_t)(i / w->scale_rows) * row,
               row);
    return NB_OK;
}

static nb_status read_nf4_scales(const nb_hf_recipe *r, nb_loaded *out, nb_err *err)
{
    nb_mat *m = &out->mat;
    const int64_t n = m->n_rows * nb_mat_n_groups(m);
    if (r->steps.tensor == NULL) {
        NB_TRY(read_into(&out->scales, r->scale, err));
        return check_finite(r->scale.tensor, out->scales.data, NB_F32, n, err);
    }
    NB_TRY(read_into(&out->nested_codes, r->scale, err));
    NB_TRY(read_into(&out->nested_steps, r->steps, err));
    NB_TRY(check_finite(r->steps.tensor, out->nested_steps.data, NB_F32,
                        (n + NB_NESTED_BLOCK - 1) / NB_NESTED_BLOCK, err));
    m->nested = (nb_nested){.code = out->nested_codes.data,
                            .step = (float *)(void *)out->nested_steps.data,
                            .offset = r->nested_offset};
    out->scales.len = 0;
    NB_TRY(nb_buf_reserve(&out->scales, (size_t)n * sizeof(float), err));
    nb_nf4_unnest(&m->nested, (float *)(void *)out->scales.data, n);
    return NB_OK;
}

nb_status nb_hf_read_floats(const nb_hf_recipe *r, const nb_weight *w, nb_loaded *out, nb_err *err)
{
    nb_mat *m = &out->mat;
    m->group_size = w->group_size;
    m->scale_type = w->scale_type;
    m->scale_rows = w->scale_rows;
    NB_TRY(nb_format_row_bytes(w->fmt, w->n_cols, &m->row_bytes, err));
    NB_TRY(read_into(&out->codes, r->codes, err));
    m->codes = out->codes.data;
    NB_TRY(w->fmt == &nb_format_nf4 ? read_nf4_scales(r, out, err)
                                    : read_fp8_scales(r, w, out, err));
    m->scales = out->scales.data;
    return NB_OK;
}
