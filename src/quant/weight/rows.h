/* Rows of a matrix in full precision: all in memory, or read as they are needed, because those of a
 * large model do not fit beside what is made of them. */
#ifndef NB_QUANT_WEIGHT_ROWS_H
#define NB_QUANT_WEIGHT_ROWS_H

#include "numeric/format.h"

typedef struct {
    const float *all; /* [n_rows][n_cols]; NULL: */
    /* out [n][n_cols] = rows [row, row + n) */
    nb_status (*read)(void *context, int64_t row, int64_t n, float *out, nb_err *err);
    void *context;
} nb_rows;

/* *out: rows [row, row + n), either where they are or in `room` [n][n_cols], which may be NULL
 * where all are in memory. */
static inline nb_status nb_rows_get(const nb_rows *r, int64_t n_cols, int64_t row, int64_t n,
                                    float *room, const float **out, nb_err *err)
{
    *out = r->all != NULL ? r->all + row * n_cols : room;
    return r->all != NULL ? NB_OK : r->read(r->context, row, n, room, err);
}

/* Rows [row, row + n) of a matrix whose rows share nothing. */
static inline nb_mat nb_mat_rows(const nb_mat *m, int64_t row, int64_t n)
{
    nb_mat rows = *m;
    const int64_t groups = nb_mat_n_groups(m) * row;
    rows.n_rows = n;
    rows.codes = nb_mat_row(m, row);
    if (m->scales != NULL)
        rows.scales = (uint8_t *)m->scales + groups * (int64_t)nb_float_bytes(m->scale_type);
    if (m->zeros != NULL)
        rows.zeros = m->zeros + groups;
    if (m->float_zeros != NULL)
        rows.float_zeros =
            (uint8_t *)m->float_zeros + groups * (int64_t)nb_float_bytes(m->scale_type);
    return rows;
}

/* Rows that are taken at a time: whatever is made of them, it takes so much room for each copy. */
#define NB_STRIP_BYTES ((int64_t)32 << 20)
static inline int64_t nb_strip_rows(int64_t n_rows, int64_t n_cols)
{
    const int64_t fit = NB_STRIP_BYTES / (4 * n_cols) / 16 * 16, rows = fit > 16 ? fit : 16;
    return rows < n_rows ? rows : n_rows;
}

#endif
