/* See slice.h. */
#include "quant/write/slice.h"

#include "quant/weight/repack.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Weights of a slice: large enough that threads meet rarely, small enough to stay in a cache. */
#define SLICE_WEIGHTS 65536
/* A multiple of every format's block. */
#define PIECE_COLS 32768

void nb_error_sum_add(nb_error_sum *sum, const nb_error_sum *more)
{
    sum->max = more->max > sum->max ? more->max : sum->max;
    sum->square += more->square;
    sum->power += more->power;
}

double nb_error_sum_rms(const nb_error_sum *sum)
{
    return sum->power > 0 ? sqrt(sum->square / sum->power) : 0.0;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

void nb_slicing_of(nb_slicing *s, const nb_mat *from, const nb_mat *to)
{
    const bool cuts = !from->fmt->affine && (to == NULL || !to->fmt->affine);
    *s = (nb_slicing){.n_rows = from->n_rows, .n_cols = from->n_cols};
    s->slice_cols = cuts ? smaller(PIECE_COLS, s->n_cols) : s->n_cols;
    const bool whole_rows = s->slice_cols == s->n_cols && s->n_cols < SLICE_WEIGHTS;
    s->slice_rows = whole_rows ? smaller(SLICE_WEIGHTS / s->n_cols, s->n_rows) : 1;
    const int64_t across = (s->n_cols + s->slice_cols - 1) / s->slice_cols;
    s->n_slices = (s->n_rows + s->slice_rows - 1) / s->slice_rows * across;
}

/* Floats of the slice, floats of one row, and what repacking needs. */
size_t nb_slice_scratch_bytes(const nb_slicing *s)
{
    const size_t row = (size_t)s->slice_cols;
    return ((size_t)s->slice_rows + 1) * row * sizeof(float) +
           nb_repack_scratch_bytes(s->slice_cols);
}

typedef struct {
    int64_t row, n_rows, col, n_cols;
} place;

static place place_of(const nb_slicing *s, int64_t i)
{
    const int64_t across = (s->n_cols + s->slice_cols - 1) / s->slice_cols;
    place p = {.row = i / across * s->slice_rows, .col = i % across * s->slice_cols};
    p.n_rows = smaller(s->slice_rows, s->n_rows - p.row);
    p.n_cols = smaller(s->slice_cols, s->n_cols - p.col);
    return p;
}

/* The part of a matrix, as a matrix. */
static nb_mat part_of(const nb_mat *m, const place *p)
{
    nb_mat part = *m;
    uint8_t *codes = nb_mat_row(m, p->row);
    part.n_rows = p->n_rows;
    part.n_cols = p->n_cols;
    part.codes = codes;
    if (m->fmt->affine) {
        const int64_t before = p->row * nb_mat_n_groups(m);
        assert(p->n_cols == m->n_cols);
        part.scales = (uint8_t *)m->scales + (size_t)before * nb_float_bytes(m->scale_type);
        part.zeros = m->zeros == NULL ? NULL : m->zeros + before;
        if (m->float_zeros != NULL)
            part.float_zeros =
                (uint8_t *)m->float_zeros + (size_t)before * nb_float_bytes(m->scale_type);
        part.nested.code = m->nested.code == NULL ? NULL : m->nested.code + before;
    } else {
        part.codes = codes + p->col / m->fmt->block_len * m->fmt->block_bytes;
    }
    return part;
}

/* ---- looking ---- */

/* Most rows are finite throughout: 32 at a time, in a loop that compilers turn into vector code. */
static bool all_finite(const float *x, int64_t n)
{
    int64_t c = 0;
    for (; c + 32 <= n; c += 32) {
        uint32_t bits[32], special = 0;
        memcpy(bits, x + c, sizeof bits);
        for (int j = 0; j < 32; j++)
            special |= (bits[j] & 0x7fffffffu) + 0x00800000u; /* carries out of the exponent */
        if (special >> 31 != 0)
            return false;
    }
    for (; c < n; c++) {
        if (!isfinite(x[c]))
            return false;
    }
    return true;
}

/* False when the job refuses what is there. */
static bool treat_nonfinite(const nb_slice_job *job, float *x, int64_t n, nb_slice_result *result)
{
    if (job->nonfinite == NB_NONFINITE_KEEP || all_finite(x, n))
        return true;
    for (int64_t c = 0; c < n; c++) {
        if (isfinite(x[c]))
            continue;
        if (job->nonfinite == NB_NONFINITE_REFUSE) {
            result->end = NB_SLICE_NONFINITE;
            result->col += c;
            result->value = x[c];
            return false;
        }
        x[c] = 0;
        result->n_zeroed++;
    }
    return true;
}

/* Sixteen sums at once, in an order that depends on nothing. */
static void measure_row(const float *was, const float *is, int64_t n, nb_error_sum *sum)
{
    enum { LANES = 16 };
    double square[LANES] = {0}, power[LANES] = {0};
    float max[LANES] = {0};
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES) {
        for (int j = 0; j < LANES; j++) {
            const float d = is[c + j] - was[c + j], a = fabsf(d);
            max[j] = a > max[j] ? a : max[j];
            square[j] += (double)d * (double)d;
            power[j] += (double)was[c + j] * (double)was[c + j];
        }
    }
    for (; c < n; c++) {
        const float d = is[c] - was[c], a = fabsf(d);
        max[0] = a > max[0] ? a : max[0];
        square[0] += (double)d * (double)d;
        power[0] += (double)was[c] * (double)was[c];
    }
    for (int j = 0; j < LANES; j++)
        nb_error_sum_add(sum, &(nb_error_sum){(double)max[j], square[j], power[j]});
}

/* What was written, against what should have been. False when a finite value became infinite. */
static bool measure(const nb_mat *to, const float *x, float *y, nb_slice_result *result)
{
    const int64_t n = to->n_cols, first = result->row;
    for (int64_t r = 0; r < to->n_rows; r++) {
        const float *was = x + r * n;
        to->fmt->decode_row(to, r, y);
        if (all_finite(y, n)) {
            measure_row(was, y, n, &result->error);
            continue;
        }
        for (int64_t c = 0; c < n; c++) {
            if (isfinite(y[c])) {
                measure_row(was + c, y + c, 1, &result->error);
            } else if (isfinite(was[c])) {
                result->end = NB_SLICE_OVERFLOW;
                result->row = first + r;
                result->col += c;
                result->value = was[c];
                return false;
            }
        }
    }
    return true;
}

/* ---- doing ---- */

/* Embedding and head of a model whose layers were made by a method that needs data: that has no
 * word for them, so they are rounded. */
static bool encode(const nb_slice_job *job, const float *x, nb_mat *to, nb_slice_result *result,
                   nb_err *err)
{
    if (job->method->quantizer->encode_rows == NULL) {
        for (int64_t r = 0; r < to->n_rows; r++)
            to->fmt->encode_row(to, r, x + r * to->n_cols);
        return true;
    }
    const nb_quant_job rows = {
        .method = job->method, .weight = x, .n_rows = to->n_rows, .n_cols = to->n_cols};
    if (job->method->quantizer->encode_rows(&rows, to, err) == NB_OK)
        return true;
    result->end = NB_SLICE_FAILED;
    return false;
}

/* A row that held what is no number (its scale, say) cannot be carried over: it is encoded from
 * the numbers that took their place. */
static bool repack_row(nb_mat *to, const nb_mat *from, int64_t r, bool any_zeroed, float *y,
                       void *scratch)
{
    if (!nb_repack_row(to, from, r, scratch))
        return false;
    if (!any_zeroed)
        return true;
    to->fmt->decode_row(to, r, y);
    return all_finite(y, to->n_cols);
}

static bool repack(const nb_slice_job *job, const nb_mat *from, const float *x, nb_mat *to,
                   float *y, nb_slice_result *result, nb_err *err)
{
    const int64_t first = result->row;
    const bool any_zeroed = result->n_zeroed > 0;
    for (int64_t r = 0; r < to->n_rows; r++) {
        if (repack_row(to, from, r, any_zeroed, y, y + to->n_cols))
            continue;
        if (!job->requantize && !any_zeroed) {
            result->row = first + r;
            result->end = NB_SLICE_INEXACT;
            return false;
        }
        const place one = {.row = r, .n_rows = 1, .n_cols = to->n_cols};
        nb_mat row = part_of(to, &one);
        result->n_requantized++;
        if (!encode(job, x + r * to->n_cols, &row, result, err))
            return false;
    }
    return true;
}

void nb_slice_run(const nb_slice_job *job, const nb_slicing *s, int64_t i, void *scratch,
                  nb_slice_result *result, nb_err *err)
{
    const place p = place_of(s, i);
    const nb_mat from = part_of(job->from, &p);
    float *x = scratch, *y = x + p.n_rows * p.n_cols;
    *result = (nb_slice_result){.row = p.row, .col = p.col};
    for (int64_t r = 0; r < p.n_rows; r++) {
        result->row = p.row + r;
        from.fmt->decode_row(&from, r, x + r * p.n_cols);
        if (!treat_nonfinite(job, x + r * p.n_cols, p.n_cols, result))
            return;
    }
    result->row = p.row;
    if (job->how == NB_HOW_COPY)
        return;
    nb_mat to = part_of(job->to, &p);
    bool fine = true;
    if (job->survey) {
        for (int64_t r = 0; r < p.n_rows; r++)
            to.fmt->survey_row(&to, r, x + r * p.n_cols);
        return;
    }
    if (job->how == NB_HOW_QUANTIZE)
        fine = encode(job, x, &to, result, err);
    else if (job->how == NB_HOW_REPACK)
        fine = repack(job, &from, x, &to, y, result, err);
    else
        for (int64_t r = 0; r < p.n_rows; r++)
            to.fmt->encode_row(&to, r, x + r * p.n_cols);
    if (fine)
        measure(&to, x, y, result);
}
