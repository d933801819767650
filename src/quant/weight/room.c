/* See room.h. */
#include "quant/weight/room.h"

nb_status nb_room_reserve(nb_buf *b, size_t n, nb_err *err)
{
    if (b->cap < n)
        nb_buf_free(b); /* what it held is not needed: two large ones never meet */
    b->len = 0;
    return nb_buf_reserve(b, n, err);
}

nb_status nb_room_for(nb_loaded *made, const nb_weight *to, nb_err *err)
{
    nb_mat *m = &made->mat;
    *m = (nb_mat){.fmt = to->fmt, .n_rows = to->n_rows, .n_cols = to->n_cols};
    size_t bytes;
    NB_TRY(nb_format_row_bytes(to->fmt, to->n_cols, &m->row_bytes, err));
    if (!nb_mul_size((size_t)m->row_bytes, (size_t)to->n_rows, &bytes))
        return nb_fail(err, NB_MEMORY, "%lld rows do not fit in memory", (long long)to->n_rows);
    NB_TRY(nb_room_reserve(&made->codes, bytes, err));
    m->codes = made->codes.data;
    if (!to->fmt->affine)
        return NB_OK;
    m->group_size = to->group_size;
    m->scale_type = to->scale_type;
    const size_t n = (size_t)to->n_rows * (size_t)nb_mat_n_groups(m);
    NB_TRY(nb_room_reserve(&made->scales, n * nb_float_bytes(m->scale_type), err));
    m->scales = made->scales.data;
    m->scale_rows = to->scale_rows;
    if (to->nested) {
        const size_t n_steps = (n + NB_NESTED_BLOCK - 1) / NB_NESTED_BLOCK;
        NB_TRY(nb_room_reserve(&made->nested_codes, n, err));
        NB_TRY(nb_room_reserve(&made->nested_steps, n_steps * sizeof(float), err));
        m->nested.code = made->nested_codes.data;
        m->nested.step = (float *)(void *)made->nested_steps.data;
    }
    if (to->symmetric)
        return NB_OK;
    const size_t zero_bytes = to->float_zeros ? nb_float_bytes(m->scale_type) : 1;
    NB_TRY(nb_room_reserve(&made->zeros, n * zero_bytes, err));
    if (to->float_zeros)
        m->float_zeros = made->zeros.data;
    else
        m->zeros = (int8_t *)(void *)made->zeros.data;
    return NB_OK;
}
