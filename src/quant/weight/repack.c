/* See repack.h. */
#include "quant/weight/repack.h"

#include "numeric/codebits.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <string.h>

/* A row in its integer form, and how the target wants it. */
typedef struct {
    nb_int_form form;
    nb_int_row row;
    int64_t n_cols;
} source_row;

size_t nb_repack_scratch_bytes(int64_t n_cols)
{
    const size_t n = (size_t)n_cols;
    return n * (sizeof(float) + sizeof(float) + sizeof(int16_t) + sizeof(int8_t));
}

static bool read_row(source_row *s, const nb_mat *from, int64_t r, void *scratch)
{
    if (from->fmt->int_form == NULL)
        return false;
    const size_t n = (size_t)from->n_cols;
    float *floats = scratch;
    int16_t *zeros = (int16_t *)(void *)(floats + 2 * n);
    s->n_cols = from->n_cols;
    s->row = (nb_int_row){
        .scale = floats, .min = floats + n, .zero = zeros, .code = (int8_t *)(void *)(zeros + n)};
    from->fmt->int_form(from, &s->form);
    if (s->form.has_min)
        return false;
    from->fmt->int_row(from, r, &s->row);
    if (s->form.table != NULL) {
        for (int64_t c = 0; c < s->n_cols; c++)
            s->row.code[c] = s->form.table[s->row.code[c]];
        s->form.code_lo = INT8_MIN; /* whatever a table may hold */
        s->form.code_hi = INT8_MAX;
    }
    return true;
}

/* The scale of columns [c, c + n), if it is one and `type` holds it exactly. */
static bool scale_of(const source_row *s, int64_t c, int64_t n, nb_float_type type, void *array,
                     int64_t i)
{
    const int64_t first = c / s->form.segment_len, last = (c + n - 1) / s->form.segment_len;
    const float scale = s->row.scale[first];
    for (int64_t k = first + 1; k <= last; k++) {
        if (nb_f32_bits(s->row.scale[k]) != nb_f32_bits(scale))
            return false;
    }
    nb_float_put(array, type, i, scale);
    return nb_f32_bits(nb_float_get(array, type, i)) == nb_f32_bits(scale);
}

static bool codes_within(const source_row *s, int lo, int hi)
{
    if (s->form.code_lo >= lo && s->form.code_hi <= hi)
        return true;
    for (int64_t c = 0; c < s->n_cols; c++) {
        if (s->row.code[c] < lo || s->row.code[c] > hi)
            return false;
    }
    return true;
}

/* ---- what is written ---- */

/* The zero point of columns [c, c + n), if it is one and a code. */
static bool zero_of(const source_row *s, int64_t c, int64_t n, int half, int8_t *out)
{
    *out = 0;
    if (!s->form.has_zero)
        return true;
    const int64_t first = c / s->form.segment_len, last = (c + n - 1) / s->form.segment_len;
    const int zero = s->row.zero[first];
    for (int64_t k = first + 1; k <= last; k++) {
        if (s->row.zero[k] != zero)
            return false;
    }
    *out = (int8_t)zero;
    return zero >= -half && zero < half;
}

static bool write_affine(nb_mat *to, int64_t r, const source_row *s)
{
    const int half = 1 << (to->fmt->bits - 1);
    const int64_t n_groups = nb_mat_n_groups(to), n = to->group_size;
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t i = r * n_groups + g;
        if (!scale_of(s, g * n, n, to->scale_type, to->scales, i))
            return false;
        if (to->zeros != NULL && !zero_of(s, g * n, n, half, &to->zeros[i]))
            return false;
    }
    uint8_t *codes = nb_mat_row(to, r);
    if (to->fmt->bits == 8) {
        memcpy(codes, s->row.code, (size_t)to->n_cols);
        return true;
    }
    nb_codebits_put(codes, to->fmt->bits, 0, s->row.code, to->n_cols, half);
    nb_codebits_clear_rest(codes, to->fmt->bits, to->n_cols);
    return true;
}

/* Both have a F16 scale in front of 32 codes (formats.md 8.6). */
static bool write_blocks(nb_mat *to, int64_t r, const source_row *s)
{
    uint8_t *block = nb_mat_row(to, r);
    for (int64_t c = 0; c < to->n_cols; c += 32, block += to->fmt->block_bytes) {
        const int8_t *code = s->row.code + c;
        if (!scale_of(s, c, 32, NB_F16, block, 0))
            return false;
        if (to->fmt->bits == 8)
            memcpy(block + 2, code, 32);
        for (int j = 0; to->fmt->bits == 4 && j < 16; j++)
            block[2 + j] = (uint8_t)((code[j] + 8) | (code[j + 16] + 8) << 4);
    }
    return true;
}

bool nb_repack_row(nb_mat *to, const nb_mat *from, int64_t r, void *scratch)
{
    source_row s;
    assert(to->n_cols == from->n_cols);
    if (!read_row(&s, from, r, scratch))
        return false;
    const int bits = to->fmt->bits;
    if (!codes_within(&s, -(1 << (bits - 1)), (1 << (bits - 1)) - 1))
        return false;
    if (s.form.has_zero && to->zeros == NULL)
        return false; /* blocks have none either */
    if (to->fmt->affine)
        return write_affine(to, r, &s);
    assert(to->fmt == &nb_format_q4_0 || to->fmt == &nb_format_q8_0);
    return write_blocks(to, r, &s);
}
