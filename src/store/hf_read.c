/* Reads the weights of a Hugging Face folder: the bytes of the parts, as nb_mat has them. */
#include "store/ct_pack.h"
#include "store/hf.h"

#include <string.h>

/* The bytes of a tensor, in a buffer that is used again and again. */
static nb_status read_into(nb_buf *buf, nb_located at, size_t extra, nb_err *err)
{
    buf->len = 0;
    NB_TRY(nb_buf_reserve(buf, (size_t)at.tensor->bytes + extra, err));
    NB_TRY(nb_st_read(at.file, at.tensor, buf->data, err));
    buf->len = (size_t)at.tensor->bytes;
    return NB_OK;
}

static nb_status read_codes(const nb_hf_recipe *r, const nb_weight *w, nb_loaded *out, nb_err *err)
{
    const bool packed = r->group->layout == NB_CT_PACKED;
    nb_mat *m = &out->mat;
    const int bits = r->group->bits;
    m->row_bytes = bits == 8 ? w->n_cols : 4 * nb_ct_n_words(w->n_cols, bits);
    if (packed || bits == 8) {
        NB_TRY(read_into(&out->codes, r->codes, 0, err));
        if (packed && bits == 8)
            nb_ct_unpack8(out->codes.data, w->n_rows, w->n_cols);
        else if (packed)
            nb_ct_clear_padding(out->codes.data, w->n_rows, w->n_cols, bits);
        m->codes = out->codes.data;
        return NB_OK;
    }
    NB_TRY(read_into(&out->scratch, r->codes, 0, err));
    out->codes.len = 0;
    NB_TRY(nb_buf_reserve(&out->codes, (size_t)(w->n_rows * m->row_bytes), err));
    for (int64_t row = 0; row < w->n_rows; row++) {
        if (nb_ct_pack_row(out->codes.data + row * m->row_bytes,
                           (const int8_t *)out->scratch.data + row * w->n_cols, w->n_cols, bits,
                           err) != NB_OK)
            return nb_context(err, "tensor '%.200s': row %lld", w->file_name, (long long)row);
    }
    m->codes = out->codes.data;
    return NB_OK;
}

/* One value for the whole tensor becomes one for every row, as nb_mat has it. */
static nb_status spread(nb_buf *buf, size_t size, int64_t n_rows, nb_err *err)
{
    size_t bytes;
    if (!nb_mul_size(size, (size_t)n_rows, &bytes))
        return nb_fail(err, NB_MEMORY, "%lld scales do not fit in memory", (long long)n_rows);
    NB_TRY(nb_buf_reserve(buf, bytes - buf->len, err));
    for (int64_t i = 1; i < n_rows; i++)
        memcpy(buf->data + (size_t)i * size, buf->data, size);
    buf->len = bytes;
    return NB_OK;
}

static nb_status read_scales(const nb_hf_recipe *r, const nb_weight *w, nb_loaded *out, nb_err *err)
{
    NB_TRY(read_into(&out->scales, r->scale, 0, err));
    if (r->group->strategy == NB_CT_TENSOR)
        NB_TRY(spread(&out->scales, nb_float_bytes(w->scale_type), w->n_rows, err));
    out->mat.scales = out->scales.data;
    return NB_OK;
}

static nb_status read_zeros(const nb_hf_recipe *r, const nb_weight *w, nb_loaded *out, nb_err *err)
{
    const int64_t n_groups = w->n_cols / w->group_size;
    const nb_ct_group *group = r->group;
    if (group->layout == NB_CT_PACKED && group->strategy != NB_CT_TENSOR) {
        NB_TRY(read_into(&out->scratch, r->zero_point, 0, err));
        out->zeros.len = 0;
        NB_TRY(nb_buf_reserve(&out->zeros, (size_t)(w->n_rows * n_groups), err));
        nb_ct_unpack_zeros((int8_t *)out->zeros.data, (const uint32_t *)out->scratch.data,
                           w->n_rows, n_groups, group->bits);
    } else {
        NB_TRY(read_into(&out->zeros, r->zero_point, 0, err));
        if (group->strategy == NB_CT_TENSOR)
            NB_TRY(spread(&out->zeros, 1, w->n_rows, err));
    }
    out->mat.zeros = (int8_t *)out->zeros.data;
    const int half = 1 << (group->bits - 1);
    for (int64_t i = 0; i < w->n_rows * n_groups; i++) {
        const int z = out->mat.zeros[i];
        if (z < -half || z >= half)
            return nb_fail(
                err, NB_DATA, "tensor '%.200s': zero point %d at row %lld, not in [%d, %d]",
                r->zero_point.tensor->name, z, (long long)(i / n_groups), -half, half - 1);
    }
    return NB_OK;
}

/* ---- GPTQ and AWQ ---- */

static nb_status read_turned_zeros(const nb_hf_recipe *r, nb_loaded *out, nb_err *err)
{
    const nb_weight *w = r->turned;
    const int64_t n = w->n_rows * (w->n_cols / w->group_size);
    NB_TRY(read_into(&out->scratch, r->zero_point, 0, err));
    out->zeros.len = 0;
    NB_TRY(nb_buf_reserve(&out->zeros, (size_t)n, err));
    return nb_qweight_read_zeros((int8_t *)out->zeros.data, w, r->zero_point.tensor->name,
                                 (const uint32_t *)(const void *)out->scratch.data, err);
}

static nb_status read_turned_scales(const nb_hf_recipe *r, nb_loaded *out, nb_err *err)
{
    const nb_weight *w = r->turned;
    const size_t n = (size_t)r->scale.tensor->bytes;
    NB_TRY(read_into(&out->scratch, r->scale, 0, err));
    out->scales.len = 0;
    NB_TRY(nb_buf_reserve(&out->scales, n, err));
    nb_qweight_turn(out->scales.data, out->scratch.data, w->n_cols / w->group_size, w->n_rows,
                    nb_float_bytes(w->scale_type));
    return NB_OK;
}

/* Groups are no runs of columns: a row becomes the values that its codes mean. `m` has codes,
 * scales and zero points; its rows are written anew as f32, in `out`. */
static void spread_row(float *y, const nb_mat *m, int64_t r, const int32_t *g_idx,
                       const nb_int_row *row)
{
    m->fmt->int_row(m, r, row);
    for (int64_t k = 0; k < m->n_cols; k++) {
        const int64_t g = g_idx[k];
        y[k] = row->scale[g] * (float)(row->code[k] - (m->zeros != NULL ? row->zero[g] : 0));
    }
}

static nb_status read_reordered(const nb_hf_recipe *r, nb_loaded *out, nb_err *err)
{
    const nb_mat coded = out->mat;
    const size_t n_cols = (size_t)coded.n_cols, n_groups = (size_t)nb_mat_n_groups(&coded);
    size_t bytes;
    bool in_order;
    NB_TRY(read_into(&out->scratch, r->order, 0, err));
    const int32_t *g_idx = (const int32_t *)(const void *)out->scratch.data;
    if (nb_qweight_check_order(r->turned, g_idx, &in_order, err) != NB_OK)
        return nb_context(err, "tensor '%.200s'", r->order.tensor->name);
    if (!nb_mul_size(n_cols * sizeof(float), (size_t)coded.n_rows, &bytes))
        return nb_fail(err, NB_MEMORY, "%lld rows do not fit in memory", (long long)coded.n_rows);
    nb_buf values = {0}, room = {0};
    nb_status s = nb_buf_reserve(&values, bytes, err);
    if (s == NB_OK)
        s = nb_buf_reserve(&room, n_groups * (sizeof(float) + sizeof(int16_t)) + n_cols, err);
    if (s == NB_OK) {
        float *scale = (float *)(void *)room.data, *y = (float *)(void *)values.data;
        int16_t *zero = (int16_t *)(void *)(scale + n_groups);
        const nb_int_row row = {
            .scale = scale, .zero = zero, .code = (int8_t *)(void *)(zero + n_groups)};
        for (int64_t i = 0; i < coded.n_rows; i++)
            spread_row(y + i * coded.n_cols, &coded, i, g_idx, &row);
        nb_buf_free(&out->codes);
        out->codes = values;
        out->mat = (nb_mat){.fmt = &nb_format_f32,
                            .n_rows = coded.n_rows,
                            .n_cols = coded.n_cols,
                            .codes = y,
                            .row_bytes = coded.n_cols * (int64_t)sizeof *y};
    } else {
        nb_buf_free(&values);
    }
    nb_buf_free(&room);
    return s;
}

static nb_status read_turned(const nb_hf_recipe *r, nb_loaded *out, nb_err *err)
{
    const nb_weight *w = r->turned;
    nb_mat *m = &out->mat;
    *m = (nb_mat){.fmt = w->fmt,
                  .n_rows = w->n_rows,
                  .n_cols = w->n_cols,
                  .group_size = w->group_size,
                  .scale_type = w->scale_type};
    NB_TRY(nb_format_row_bytes(w->fmt, w->n_cols, &m->row_bytes, err));
    NB_TRY(read_turned_zeros(r, out, err));
    NB_TRY(read_turned_scales(r, out, err));
    NB_TRY(read_into(&out->scratch, r->codes, 0, err));
    out->codes.len = 0;
    NB_TRY(nb_buf_reserve(&out->codes, (size_t)(w->n_rows * m->row_bytes), err));
    nb_qweight_read_codes(out->codes.data, w, (const uint32_t *)(const void *)out->scratch.data);
    m->codes = out->codes.data;
    m->scales = out->scales.data;
    m->zeros = w->symmetric ? NULL : (int8_t *)out->zeros.data;
    return NB_OK;
}

static nb_status read_weight(const nb_hf_recipe *r, const nb_weight *w, nb_loaded *out, nb_err *err)
{
    if (r->turned != NULL) {
        NB_TRY(read_turned(r, out, err));
        return w->reordered ? read_reordered(r, out, err) : NB_OK;
    }
    out->mat = (nb_mat){.fmt = w->fmt, .n_rows = w->n_rows, .n_cols = w->n_cols};
    if (r->floats)
        return nb_hf_read_floats(r, w, out, err);
    if (r->hqq)
        return nb_hf_read_hqq(r, w, out, err);
    if (r->group == NULL) {
        NB_TRY(read_into(&out->codes, r->codes, 0, err));
        out->mat.codes = out->codes.data;
        out->mat.row_bytes = w->bytes / w->n_rows;
        return NB_OK;
    }
    out->mat.group_size = w->group_size;
    out->mat.scale_type = w->scale_type;
    NB_TRY(read_codes(r, w, out, err));
    NB_TRY(read_scales(r, w, out, err));
    return w->symmetric ? NB_OK : read_zeros(r, w, out, err);
}

nb_status nb_hf_read(nb_store *store, int64_t i, nb_loaded *out, nb_err *err)
{
    const nb_hf_recipe *r = &((nb_hf_state *)store->state)->recipes[i];
    const nb_status s = read_weight(r, &store->weights[i], out, err);
    const nb_located parts[] = {r->codes, r->scale, r->zero_point, r->order, r->steps};
    /* Bytes that make no sense may come from a file that was replaced: say that, then. */
    if (s != NB_OK && s != NB_DATA)
        return s;
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        if (parts[p].tensor != NULL)
            NB_TRY(nb_file_check_unchanged(&parts[p].file->file, err));
    }
    return s == NB_OK ? NB_OK : nb_context(err, "%s", r->codes.file->file.path);
}

const nb_file *nb_hf_rows_at(const nb_store *store, int64_t i, int64_t *at)
{
    const nb_hf_recipe *r = &((const nb_hf_state *)store->state)->recipes[i];
    if (r->turned != NULL || r->floats || r->hqq || r->group != NULL)
        return NULL;
    *at = r->codes.file->data_start + r->codes.tensor->begin;
    return &r->codes.file->file;
}
