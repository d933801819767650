/* The list of formats, and what can be said of a matrix through its format alone. */
#include "numeric/format.h"
#include "numeric/codebits.h"
#include "numeric/minifloat.h"

#include <inttypes.h>
#include <string.h>

const nb_format *const nb_formats[] = {
#define X(id) &nb_format_##id,
#include "numeric/formats.def"
#undef X
    NULL,
};

const char *nb_float_name(nb_float_type t)
{
    switch (t) {
    case NB_F16:
        return "f16";
    case NB_BF16:
        return "bf16";
    case NB_F32:
        break;
    }
    return "f32";
}

const nb_format *nb_format_by_name(const char *name)
{
    for (const nb_format *const *f = nb_formats; *f != NULL; f++)
        if (strcmp((*f)->name, name) == 0)
            return *f;
    return NULL;
}

const nb_format *nb_format_by_ggml(int64_t ggml_type)
{
    if (ggml_type < 0) /* -1 marks the formats that GGUF does not have */
        return NULL;
    for (const nb_format *const *f = nb_formats; *f != NULL; f++)
        if ((*f)->ggml_type == ggml_type)
            return *f;
    return NULL;
}

const nb_format *nb_format_of_bits(int64_t bits)
{
    for (const nb_format *const *f = nb_formats; *f != NULL; f++)
        if ((*f)->affine && (*f)->int_form != NULL && (*f)->bits == bits)
            return *f;
    return NULL;
}

nb_status nb_format_row_bytes(const nb_format *fmt, int64_t n_cols, int64_t *out, nb_err *err)
{
    if (n_cols < 0)
        return nb_fail(err, NB_DATA, "a row of %" PRId64 " columns", n_cols);
    if (!fmt->affine && n_cols % fmt->block_len != 0)
        return nb_fail(err, NB_UNSUPPORTED, "%" PRId64 " columns are no whole blocks of %d", n_cols,
                       fmt->block_len);
    int64_t bytes = n_cols;
    if (fmt->affine && fmt->bits < 8) /* whole 32-bit words where there are several to a byte */
        bytes = nb_codebits_bytes(n_cols, fmt->bits);
    else if (!fmt->affine &&
             __builtin_mul_overflow(n_cols / fmt->block_len, fmt->block_bytes, &bytes))
        bytes = -1;
    if (bytes < 0)
        return nb_fail(err, NB_DATA, "a row of %" PRId64 " columns is too long", n_cols);
    *out = bytes;
    return NB_OK;
}

int64_t nb_mat_bytes(const nb_mat *m)
{
    int64_t bytes = m->n_rows * m->row_bytes;
    if (m->fmt->affine) {
        const int64_t n = nb_mat_n_scale_rows(m) * nb_mat_n_groups(m);
        if (m->nested.code == NULL)
            bytes += n * (int64_t)nb_float_bytes(m->scale_type);
        else /* and the offset */
            bytes += n + 4 * ((n + NB_NESTED_BLOCK - 1) / NB_NESTED_BLOCK) + 4;
        if (m->zeros != NULL)
            bytes += (n * m->fmt->bits + 7) / 8;
        if (m->float_zeros != NULL)
            bytes += n * (int64_t)nb_float_bytes(m->scale_type);
    }
    return bytes;
}

/* Most rows hold finite values only: pieces are tested as a whole, the culprit searched after. */
#define PIECE 32

static bool finite_piece(const float *x)
{
    uint32_t special = 0;
    for (int i = 0; i < PIECE; i++) /* the top bit: did adding one to the exponent carry? */
        special |= (nb_f32_bits(x[i]) & 0x7fffffffu) + 0x00800000u;
    return special >> 31 == 0;
}

bool nb_mat_find_nonfinite(const nb_mat *m, float *scratch, int64_t *row, int64_t *col)
{
    for (int64_t r = 0; r < m->n_rows; r++) {
        m->fmt->decode_row(m, r, scratch);
        for (int64_t c = 0; c < m->n_cols;) {
            if (c + PIECE <= m->n_cols && finite_piece(scratch + c)) {
                c += PIECE;
                continue;
            }
            if ((nb_f32_bits(scratch[c]) & 0x7f800000u) == 0x7f800000u) {
                *row = r;
                *col = c;
                return true;
            }
            c++;
        }
    }
    return false;
}

void nb_mat_list_arrays(nb_mat *m, nb_mat_arrays *out)
{
    *out = (nb_mat_arrays){.n = 1};
    out->array[0].data = m->codes;
    out->array[0].bytes = (size_t)m->row_bytes * (size_t)m->n_rows;
    const size_t n_groups = (size_t)(m->n_rows * nb_mat_n_groups(m));
    if (m->scales != NULL) {
        out->array[out->n].data = m->scales;
        out->array[out->n++].bytes = n_groups * nb_float_bytes(m->scale_type);
    }
    if (m->zeros != NULL) {
        out->array[out->n].data = m->zeros;
        out->array[out->n++].bytes = n_groups;
    }
    if (m->float_zeros != NULL) {
        out->array[out->n].data = m->float_zeros;
        out->array[out->n++].bytes = n_groups * nb_float_bytes(m->scale_type);
    }
    if (m->nested.code != NULL) {
        out->array[out->n].data = m->nested.code;
        out->array[out->n++].bytes = n_groups;
        out->array[out->n].data = m->nested.step;
        out->array[out->n++].bytes =
            (n_groups + NB_NESTED_BLOCK - 1) / NB_NESTED_BLOCK * sizeof *m->nested.step;
        out->array[out->n].data = &m->nested.offset;
        out->array[out->n++].bytes = sizeof m->nested.offset;
    }
}
