/* Reads weights of HQQ (hqq.h) out of a Hugging Face folder. What a module says about itself in
 * tensors of one number is data, but without it nobody knows its shape: that is read when the
 * folder is opened. */
#include "store/hf.h"
#include "store/hqq.h"

#include <string.h>

/* ---- describing ---- */

/* One integer, of whatever type. */
static nb_status read_number(nb_store *store, const char *module, const char *part, int64_t *out,
                             nb_err *err)
{
    nb_located at;
    uint8_t value[8] = {0};
    NB_TRY(nb_hf_find_part(store, &at, module, part, err));
    if (at.tensor == NULL)
        return nb_fail(err, NB_DATA, "tensor '%.200s.W_q' has no %s", module, part);
    const nb_st_dtype dtype = at.tensor->dtype;
    const bool is_signed = dtype == NB_ST_I8 || dtype == NB_ST_I16 || dtype == NB_ST_I32;
    const bool is_integer = is_signed || dtype == NB_ST_U8 || dtype == NB_ST_BOOL ||
                            dtype == NB_ST_U16 || dtype == NB_ST_U32 || dtype == NB_ST_I64;
    const int bits = nb_st_dtype_bits(dtype);
    if (!is_integer || at.tensor->bytes != bits / 8) {
        char found[NB_ST_SHAPE_TEXT];
        return nb_fail(err, NB_DATA, "tensor '%.200s': wanted one integer, found %s %s",
                       at.tensor->name, nb_st_dtype_name(dtype),
                       nb_st_shape_text(found, at.tensor->n_dims, at.tensor->dims));
    }
    NB_TRY(nb_st_read(at.file, at.tensor, value, err));
    uint64_t raw = 0;
    for (int i = 0; i < bits / 8; i++)
        raw |= (uint64_t)value[i] << (8 * i);
    const uint64_t top = (uint64_t)1 << (bits - 1);
    *out = (int64_t)(is_signed && (raw & top) != 0 ? raw - 2 * top : raw);
    return NB_OK;
}

static nb_status read_shape(nb_store *store, const char *module, int64_t shape[2], nb_err *err)
{
    nb_located at;
    NB_TRY(nb_hf_find_part(store, &at, module, "shape", err));
    if (at.tensor == NULL)
        return nb_fail(err, NB_DATA, "tensor '%.200s.W_q' has no shape", module);
    const nb_st_tensor *t = at.tensor;
    if (t->dtype != NB_ST_I64 || t->n_dims != 1 || t->dims[0] != 2) {
        char found[NB_ST_SHAPE_TEXT];
        return nb_fail(err, NB_DATA, "tensor '%.200s': wanted I64 [2], found %s %s", t->name,
                       nb_st_dtype_name(t->dtype), nb_st_shape_text(found, t->n_dims, t->dims));
    }
    return nb_st_read(at.file, t, shape, err);
}

static nb_status read_module(nb_store *store, const char *module, nb_hqq_module *h, nb_err *err)
{
    int64_t viewed = 0;
    NB_TRY(read_shape(store, module, h->shape, err));
    NB_TRY(read_number(store, module, "nbits", &h->nbits, err));
    NB_TRY(read_number(store, module, "group_size", &h->group_size, err));
    NB_TRY(read_number(store, module, "axis", &h->axis, err));
    NB_TRY(read_number(store, module, "view_as_float", &viewed, err));
    if (viewed == 0)
        return NB_OK;
    return nb_fail(err, NB_UNSUPPORTED, "tensor '%.200s': view_as_float is not supported",
                   h->codes->name);
}

nb_status nb_hf_add_hqq(nb_store *store, nb_located at, const char *module, nb_err *err)
{
    nb_hf_state *hf = store->state;
    nb_weight *w = &store->weights[store->n_weights];
    nb_hf_recipe *r = &hf->recipes[store->n_weights];
    *w = (nb_weight){.file_name = at.tensor->name};
    *r = (nb_hf_recipe){.codes = at, .hqq = true};
    char *name;
    NB_TRY(nb_arena_format(&store->arena, &name, err, "%s.weight", module));
    w->name = name;
    if (nb_names_find(hf->names, hf->n_tensors, name) != NULL)
        return nb_fail(err, NB_DATA, "tensors '%.200s' and '%.200s' are one weight, twice",
                       at.tensor->name, name);
    w->bytes = at.tensor->bytes;
    for (const char *const *part = nb_hqq_parts; *part != NULL; part++) {
        nb_located found;
        NB_TRY(nb_hf_find_part(store, &found, module, *part, err));
        w->bytes += found.tensor != NULL ? found.tensor->bytes : 0;
    }
    NB_TRY(nb_hf_find_part(store, &r->scale, module, "scale", err));
    NB_TRY(nb_hf_find_part(store, &r->zero_point, module, "zero", err));
    nb_hqq_module h = {.codes = at.tensor, .scale = r->scale.tensor, .zero = r->zero_point.tensor};
    NB_TRY(read_module(store, module, &h, err));
    NB_TRY(nb_hqq_describe(w, &h, err));
    store->n_weights++;
    return NB_OK;
}

/* ---- reading ---- */

static nb_status read_all(nb_buf *buf, nb_located at, nb_err *err)
{
    buf->len = 0;
    NB_TRY(nb_buf_reserve(buf, (size_t)at.tensor->bytes, err));
    return nb_st_read(at.file, at.tensor, buf->data, err);
}

nb_status nb_hf_read_hqq(const nb_hf_recipe *r, const nb_weight *w, nb_loaded *out, nb_err *err)
{
    nb_mat *m = &out->mat;
    size_t bytes;
    m->group_size = w->group_size;
    m->scale_type = w->scale_type;
    NB_TRY(nb_format_row_bytes(w->fmt, w->n_cols, &m->row_bytes, err));
    if (!nb_mul_size((size_t)m->row_bytes, (size_t)w->n_rows, &bytes))
        return nb_fail(err, NB_MEMORY, "%lld rows do not fit in memory", (long long)w->n_rows);
    NB_TRY(read_all(&out->scales, r->scale, err));
    NB_TRY(read_all(&out->zeros, r->zero_point, err));
    NB_TRY(read_all(&out->scratch, r->codes, err));
    out->codes.len = 0;
    NB_TRY(nb_buf_reserve(&out->codes, bytes, err));
    m->codes = out->codes.data;
    m->scales = out->scales.data;
    m->float_zeros = out->zeros.data;
    nb_hqq_read_codes(m, out->scratch.data);
    return NB_OK;
}
