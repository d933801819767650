/* int8, int4, int3 and int2 under a scale, and a zero point where they are asymmetric:
 *
 *   value[c] = scale[g] * (code[c] - zero[g]),   g = c / group_size
 *
 * int8: one signed byte a code. int4: signed codes -8..7 stored as code + 8, eight to a 32-bit
 * little-endian word, column k of the word in its bits 4k..4k+3; what is left of a row's last word
 * is zero (the nibble 0, not the code 0):
 *
 *   bit    31   28 27   24 23   20 19   16 15   12 11    8 7     4 3     0
 *        [  c7   |  c6   |  c5   |  c4   |  c3   |  c2   |  c1   |  c0   ]
 *
 * which is column 2j in the low nibble of byte j. int3, codes -4..3, and int2, codes -2..1, are
 * stored alike, 3 and 2 bits apart (codebits.h): a row of int3 is one string of bits, so that a
 * code may lie in two words.
 *
 * Zero points may be floats as well, for which affine_float.c has the arithmetic.
 *
 * Scales and zero points are chosen as compressed-tensors chooses them: symmetric
 * amax / ((qmax - qmin) / 2), asymmetric (max - min) / (qmax - qmin) over a range that is made to
 * contain 0. The scale is rounded to the type it is stored in before any code is taken with it. */
#include "numeric/affine.h"
#include "numeric/codebits.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <float.h>
#include <string.h>

static_assert(NB_F32 == 0 && NB_F16 == 1 && NB_BF16 == 2, "the order of the tables below");

/* By nb_float_type: the largest finite number, the smallest above zero, and the distance from 1
 * to the next number. */
static const float type_max[] = {FLT_MAX, 65504.0f, 0x1.fep127f};
static const float type_min[] = {0x1p-149f, 0x1p-24f, 0x1p-133f};
static const float type_epsilon[] = {0x1p-23f, 0x1p-10f, 0x1p-7f};

/* Columns are done in pieces of a constant length, because compilers turn such loops into vector
 * code at -O2. A shorter piece is padded. */
#define PIECE 32
#define LANES 8

/* What a group's values are mapped with. Codes stay in [lo, hi]. */
typedef struct {
    float scale;
    int zero, lo, hi;
} affine_map;

/* ---- choosing the map ---- */

/* The least and the largest of x[0, n) and 0. Minimum and maximum do not depend on the order, and
 * the sign of a zero does not matter here, so eight lanes may each look at their own columns. */
static void range_with_zero(const float *x, int64_t n, float *min, float *max)
{
    float lo[LANES] = {0}, hi[LANES] = {0};
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES)
        for (int l = 0; l < LANES; l++) {
            lo[l] = x[c + l] < lo[l] ? x[c + l] : lo[l];
            hi[l] = x[c + l] > hi[l] ? x[c + l] : hi[l];
        }
    for (; c < n; c++) {
        lo[0] = x[c] < lo[0] ? x[c] : lo[0];
        hi[0] = x[c] > hi[0] ? x[c] : hi[0];
    }
    *min = *max = 0;
    for (int l = 0; l < LANES; l++) {
        *min = lo[l] < *min ? lo[l] : *min;
        *max = hi[l] > *max ? hi[l] : *max;
    }
}

/* Stores a scale and returns it as stored: always a finite number above zero. A group of zeros
 * takes the type's epsilon, as compressed-tensors writes it. A scale that its type would round to
 * zero or to infinity becomes the type's least or largest number: the codes are chosen after it,
 * so tiny weights keep what that step can hold and huge ones are clipped, and neither becomes NaN.
 */
static float scale_put(const nb_mat *m, int64_t i, float wanted)
{
    nb_float_put(m->scales, m->scale_type, i, wanted);
    float stored = nb_float_get(m->scales, m->scale_type, i);
    if (stored > 0 && stored <= type_max[m->scale_type])
        return stored;
    stored = stored > 0 ? type_max[m->scale_type] : type_min[m->scale_type];
    nb_float_put(m->scales, m->scale_type, i, stored);
    return stored;
}

static int clamp_int(float v, int lo, int hi)
{
    const float floor = (float)lo, ceiling = (float)hi;
    const float clamped = v < floor ? floor : v > ceiling ? ceiling : v;
    return (int)(nb_f32_bits(clamped + 0x1.8p23f) - 0x4b400000u); /* as in codes_piece */
}

static affine_map choose_map(const nb_mat *m, int64_t i, const float *x, int64_t n)
{
    const int qmin = -(1 << (m->fmt->bits - 1)), qmax = -qmin - 1;
    const float half_span = 0.5f * (float)(qmax - qmin);
    float min, max;
    range_with_zero(x, n, &min, &max);

    float wanted;
    if (min == 0 && max == 0)
        wanted = type_epsilon[m->scale_type];
    else if (m->zeros == NULL)
        wanted = (-min > max ? -min : max) / half_span;
    else if (max - min <= FLT_MAX)
        wanted = (max - min) / (2 * half_span);
    else /* the same quotient where the difference overflows */
        wanted = (0.5f * max - 0.5f * min) / half_span;

    affine_map map = {.lo = qmin, .hi = qmax};
    map.scale = scale_put(m, i, wanted);
    if (m->zeros != NULL) {
        map.zero = clamp_int((float)qmin - min / map.scale, qmin, qmax);
        m->zeros[i] = (int8_t)map.zero;
    }
    /* Next to FLT_MAX the outermost codes may mean infinity: they are not used then. */
    while (map.scale * (float)(map.lo - map.zero) < -FLT_MAX)
        map.lo++;
    while (map.scale * (float)(map.hi - map.zero) > FLT_MAX)
        map.hi--;
    return map;
}

void nb_affine_choose(const nb_mat *m, int64_t i, const float *x, int64_t n)
{
    if (m->float_zeros != NULL)
        nb_affine_float_choose(m, i, x, n);
    else
        (void)choose_map(m, i, x, n);
}

/* ---- codes ---- */

/* code = clamp(rne(x / scale) + zero). Adding 1.5 * 2^23 leaves the quotient, rounded to nearest
 * even by the adder, in the low bits of the sum; it is clamped before, so that it fits there. */
static void codes_piece(int8_t *restrict code, const float *restrict x, const affine_map *map)
{
    const float scale = map->scale;
    const float lo = (float)(map->lo - map->zero), hi = (float)(map->hi - map->zero);
    const uint32_t offset = (uint32_t)map->zero - 0x4b400000u;
    for (int i = 0; i < PIECE; i++) {
        float v = x[i] / scale;
        v = v > lo ? v : lo;
        v = v < hi ? v : hi;
        code[i] = (int8_t)(uint8_t)(nb_f32_bits(v + 0x1.8p23f) + offset);
    }
}

static void codes_take(int8_t *code, const float *x, int64_t n, const affine_map *map)
{
    if (n == PIECE) {
        codes_piece(code, x, map);
        return;
    }
    float padded[PIECE] = {0};
    int8_t full[PIECE];
    memcpy(padded, x, (size_t)n * sizeof *x);
    codes_piece(full, padded, map);
    memcpy(code, full, (size_t)n);
}

static void values_piece(float *restrict y, const int8_t *restrict code, float scale, int zero)
{
    for (int i = 0; i < PIECE; i++)
        y[i] = scale * (float)(code[i] - zero);
}

static void values_give(float *y, const int8_t *code, int64_t n, float scale, int zero)
{
    if (n == PIECE) {
        values_piece(y, code, scale, zero);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        y[i] = scale * (float)(code[i] - zero);
}

static void nibbles_put_piece(uint8_t *restrict byte, const int8_t *restrict code)
{
    for (int j = 0; j < PIECE / 2; j++)
        byte[j] = (uint8_t)((code[2 * j] + 8) | (code[2 * j + 1] + 8) << 4);
}

static void nibbles_get_piece(int8_t *restrict code, const uint8_t *restrict byte)
{
    for (int j = 0; j < PIECE / 2; j++) {
        code[2 * j] = (int8_t)((byte[j] & 15) - 8);
        code[2 * j + 1] = (int8_t)((byte[j] >> 4) - 8);
    }
}

/* Columns [c, c + n) of a row of int4; those bytes were zero before. */
static void nibbles_put(uint8_t *row, int64_t c, const int8_t *code, int64_t n)
{
    if (n == PIECE && c % 2 == 0) {
        nibbles_put_piece(row + c / 2, code);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        row[(c + i) / 2] |= (uint8_t)((code[i] + 8) << ((c + i) % 2 * 4));
}

static void nibbles_get(int8_t *code, const uint8_t *row, int64_t c, int64_t n)
{
    if (n == PIECE && c % 2 == 0) {
        nibbles_get_piece(code, row + c / 2);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        code[i] = (int8_t)((row[(c + i) / 2] >> ((c + i) % 2 * 4) & 15) - 8);
}

/* Columns [c, c + n) of a row of codes that share bytes. */
static void packed_put(const nb_mat *m, uint8_t *row, int64_t c, const int8_t *code, int64_t n)
{
    if (m->fmt->bits == 4)
        nibbles_put(row, c, code, n);
    else
        nb_codebits_put(row, m->fmt->bits, c, code, n, 1 << (m->fmt->bits - 1));
}

static void packed_get(const nb_mat *m, int8_t *code, const uint8_t *row, int64_t c, int64_t n)
{
    if (m->fmt->bits == 4)
        nibbles_get(code, row, c, n);
    else
        nb_codebits_get(code, row, m->fmt->bits, c, n, 1 << (m->fmt->bits - 1));
}

/* ---- rows ---- */

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Codes are those of the grid. */
static void float_zeros_encode_row(nb_mat *m, int64_t r, const float *x)
{
    nb_grid grid;
    const int64_t n_groups = nb_mat_n_groups(m);
    nb_affine_grid.shape(m, &grid);
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t begin = g * m->group_size;
        nb_affine_float_choose(m, r * n_groups + g, x + begin,
                               smaller(m->group_size, m->n_cols - begin));
    }
    nb_grid_round_row(&grid, m, r, x);
}

static void int8_encode_row(nb_mat *m, int64_t r, const float *x)
{
    assert(m->group_size > 0);
    if (m->float_zeros != NULL) {
        float_zeros_encode_row(m, r, x);
        return;
    }
    int8_t *row = nb_mat_row(m, r);
    const int64_t n_groups = nb_mat_n_groups(m);
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t begin = g * m->group_size, end = smaller(begin + m->group_size, m->n_cols);
        const affine_map map = choose_map(m, r * n_groups + g, x + begin, end - begin);
        for (int64_t c = begin; c < end; c += PIECE)
            codes_take(row + c, x + c, smaller(PIECE, end - c), &map);
    }
}

static void packed_encode_row(nb_mat *m, int64_t r, const float *x)
{
    assert(m->group_size > 0);
    if (m->float_zeros != NULL) {
        float_zeros_encode_row(m, r, x);
        return;
    }
    uint8_t *row = nb_mat_row(m, r);
    const int64_t n_groups = nb_mat_n_groups(m);
    memset(row, 0, (size_t)m->row_bytes);
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t begin = g * m->group_size, end = smaller(begin + m->group_size, m->n_cols);
        const affine_map map = choose_map(m, r * n_groups + g, x + begin, end - begin);
        for (int64_t c = begin; c < end; c += PIECE) {
            int8_t code[PIECE];
            const int64_t n = smaller(PIECE, end - c);
            codes_take(code, x + c, n, &map);
            packed_put(m, row, c, code, n);
        }
    }
}

static void int8_decode_row(const nb_mat *m, int64_t r, float *y)
{
    assert(m->group_size > 0);
    const int8_t *row = nb_mat_row(m, r);
    const int64_t n_groups = nb_mat_n_groups(m);
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t end = smaller((g + 1) * m->group_size, m->n_cols), i = r * n_groups + g;
        const float scale = nb_float_get(m->scales, m->scale_type, i);
        const int zero = m->zeros != NULL ? m->zeros[i] : 0;
        if (m->float_zeros != NULL) {
            const int64_t c = g * m->group_size;
            nb_affine_float_values(m, i, row + c, end - c, y + c);
            continue;
        }
        for (int64_t c = g * m->group_size; c < end; c += PIECE)
            values_give(y + c, row + c, smaller(PIECE, end - c), scale, zero);
    }
}

static void packed_decode_row(const nb_mat *m, int64_t r, float *y)
{
    assert(m->group_size > 0);
    const uint8_t *row = nb_mat_row(m, r);
    const int64_t n_groups = nb_mat_n_groups(m);
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t end = smaller((g + 1) * m->group_size, m->n_cols), i = r * n_groups + g;
        const float scale = nb_float_get(m->scales, m->scale_type, i);
        const int zero = m->zeros != NULL ? m->zeros[i] : 0;
        for (int64_t c = g * m->group_size; c < end; c += PIECE) {
            int8_t code[PIECE];
            const int64_t n = smaller(PIECE, end - c);
            packed_get(m, code, row, c, n);
            if (m->float_zeros != NULL)
                nb_affine_float_values(m, i, code, n, y + c);
            else
                values_give(y + c, code, n, scale, zero);
        }
    }
}

/* ---- the integer form: what the matrix is anyway ---- */

static void affine_int_form(const nb_mat *m, nb_int_form *form)
{
    const int qmin = -(1 << (m->fmt->bits - 1));
    *form = (nb_int_form){
        .segment_len = m->group_size,
        .code_lo = qmin,
        .code_hi = -qmin - 1,
        .has_zero = m->zeros != NULL,
        .scale_type = m->scale_type,
    };
    if (m->float_zeros == NULL)
        return;
    form->has_min = true;
    form->scale_type = NB_F32; /* a product of two numbers of 16 bits */
    if (m->fmt->bits == 8) {
        form->has_zero = true; /* -128, for int8_t holds no codes of 0 to 255 */
    } else {
        form->code_lo = 0;
        form->code_hi = -2 * qmin - 1;
    }
}

static void affine_int_parameters(const nb_mat *m, int64_t r, const nb_int_row *out)
{
    const int64_t n_groups = nb_mat_n_groups(m);
    for (int64_t g = 0; g < n_groups; g++)
        out->scale[g] = nb_float_get(m->scales, m->scale_type, r * n_groups + g);
    if (m->zeros != NULL)
        for (int64_t g = 0; g < n_groups; g++)
            out->zero[g] = m->zeros[r * n_groups + g];
    if (m->float_zeros == NULL)
        return;
    for (int64_t g = 0; g < n_groups; g++) {
        out->min[g] = nb_affine_float_offset(m, r * n_groups + g);
        if (m->fmt->bits == 8)
            out->zero[g] = INT8_MIN;
    }
}

static void int8_int_row(const nb_mat *m, int64_t r, const nb_int_row *out)
{
    memcpy(out->code, nb_mat_row(m, r), (size_t)m->n_cols);
    affine_int_parameters(m, r, out);
}

static void packed_int_row(const nb_mat *m, int64_t r, const nb_int_row *out)
{
    const uint8_t *row = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c += PIECE)
        packed_get(m, out->code + c, row, c, smaller(PIECE, m->n_cols - c));
    for (int64_t c = 0; m->float_zeros != NULL && c < m->n_cols; c++)
        out->code[c] = (int8_t)(out->code[c] + (1 << (m->fmt->bits - 1)));
    affine_int_parameters(m, r, out);
}

const nb_format nb_format_int8 = {
    .name = "int8",
    .ggml_type = -1,
    .block_len = 1,
    .bits = 8,
    .affine = true,
    .decode_row = int8_decode_row,
    .encode_row = int8_encode_row,
    .int_form = affine_int_form,
    .int_row = int8_int_row,
    .grid = &nb_affine_grid,
};

const nb_format nb_format_int4 = {
    .name = "int4",
    .ggml_type = -1,
    .block_len = 1,
    .bits = 4,
    .affine = true,
    .decode_row = packed_decode_row,
    .encode_row = packed_encode_row,
    .int_form = affine_int_form,
    .int_row = packed_int_row,
    .grid = &nb_affine_grid,
};

const nb_format nb_format_int3 = {
    .name = "int3",
    .ggml_type = -1,
    .block_len = 1,
    .bits = 3,
    .affine = true,
    .decode_row = packed_decode_row,
    .encode_row = packed_encode_row,
    .int_form = affine_int_form,
    .int_row = packed_int_row,
    .grid = &nb_affine_grid,
};

const nb_format nb_format_int2 = {
    .name = "int2",
    .ggml_type = -1,
    .block_len = 1,
    .bits = 2,
    .affine = true,
    .decode_row = packed_decode_row,
    .encode_row = packed_encode_row,
    .int_form = affine_int_form,
    .int_row = packed_int_row,
    .grid = &nb_affine_grid,
};
