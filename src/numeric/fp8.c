/* FP8 under scales: fp8_e4m3 and fp8_e5m2, one byte a code (OCP 8-bit floating point; minifloat.h
 * draws them).
 *
 *   value[c] = fl(scale[r][g] * number(code[c])),   g = c / group_size
 *
 * One scale for the matrix, for a row, or for a block of rows and columns. scale = amax / 448 (or
 * 57344), rounded to the type it is stored in before any code is taken with it; codes are
 * x / scale, rounded to nearest even, and never infinity or NaN. As compressed-tensors, and what
 * quant_method "fp8" calls weight_scale_inv. */
#include "numeric/fit.h"
#include "numeric/scale.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* ---- the numbers ---- */

/* The numbers of an exponent, upwards and downwards. */
#define UP8(u) 8 * (u), 9 * (u), 10 * (u), 11 * (u), 12 * (u), 13 * (u), 14 * (u), 15 * (u)
#define DOWN8(u)                                                                                   \
    -15 * (u), -14 * (u), -13 * (u), -12 * (u), -11 * (u), -10 * (u), -9 * (u), -8 * (u)
#define UP4(u)   4 * (u), 5 * (u), 6 * (u), 7 * (u)
#define DOWN4(u) -7 * (u), -6 * (u), -5 * (u), -4 * (u)

#define E4M3_ABOVE(u)                                                                              \
    1 * (u), 2 * (u), 3 * (u), 4 * (u), 5 * (u), 6 * (u), 7 * (u), UP8(u), UP8((u)*0x1p1f),        \
        UP8((u)*0x1p2f), UP8((u)*0x1p3f), UP8((u)*0x1p4f), UP8((u)*0x1p5f), UP8((u)*0x1p6f),       \
        UP8((u)*0x1p7f), UP8((u)*0x1p8f), UP8((u)*0x1p9f), UP8((u)*0x1p10f), UP8((u)*0x1p11f),     \
        UP8((u)*0x1p12f), UP8((u)*0x1p13f), 0x8p14f * (u), 0x9p14f * (u), 0xap14f * (u),           \
        0xbp14f * (u), 0xcp14f * (u), 0xdp14f * (u), 0xep14f * (u)
#define E4M3_BELOW(u)                                                                              \
    -0xep14f * (u), -0xdp14f * (u), -0xcp14f * (u), -0xbp14f * (u), -0xap14f * (u),                \
        -0x9p14f * (u), -0x8p14f * (u), DOWN8((u)*0x1p13f), DOWN8((u)*0x1p12f),                    \
        DOWN8((u)*0x1p11f), DOWN8((u)*0x1p10f), DOWN8((u)*0x1p9f), DOWN8((u)*0x1p8f),              \
        DOWN8((u)*0x1p7f), DOWN8((u)*0x1p6f), DOWN8((u)*0x1p5f), DOWN8((u)*0x1p4f),                \
        DOWN8((u)*0x1p3f), DOWN8((u)*0x1p2f), DOWN8((u)*0x1p1f), DOWN8(u), -7 * (u), -6 * (u),     \
        -5 * (u), -4 * (u), -3 * (u), -2 * (u), -1 * (u)

#define UP40(u)                                                                                    \
    UP4(u), UP4((u)*0x1p1f), UP4((u)*0x1p2f), UP4((u)*0x1p3f), UP4((u)*0x1p4f), UP4((u)*0x1p5f),   \
        UP4((u)*0x1p6f), UP4((u)*0x1p7f), UP4((u)*0x1p8f), UP4((u)*0x1p9f)
#define DOWN40(u)                                                                                  \
    DOWN4((u)*0x1p9f), DOWN4((u)*0x1p8f), DOWN4((u)*0x1p7f), DOWN4((u)*0x1p6f), DOWN4((u)*0x1p5f), \
        DOWN4((u)*0x1p4f), DOWN4((u)*0x1p3f), DOWN4((u)*0x1p2f), DOWN4((u)*0x1p1f), DOWN4(u)
#define E5M2_ABOVE(u) 1 * (u), 2 * (u), 3 * (u), UP40(u), UP40((u)*0x1p10f), UP40((u)*0x1p20f)
#define E5M2_BELOW(u)                                                                              \
    DOWN40((u)*0x1p20f), DOWN40((u)*0x1p10f), DOWN40(u), -3 * (u), -2 * (u), -1 * (u)

#define E4M3_UNIT 0x1p-9f
#define E5M2_UNIT 0x1p-16f
#define NOTHING   __builtin_nanf("")

/* In the order of their codes: sizes from zero upwards, then the same below zero. */
static const float e4m3_levels[256] = {0,     E4M3_ABOVE(E4M3_UNIT),  NOTHING,
                                       -0.0f, E4M3_ABOVE(-E4M3_UNIT), NOTHING};
static const float e5m2_levels[256] = {
    0,     E5M2_ABOVE(E5M2_UNIT),  INFINITY,  NOTHING, NOTHING, NOTHING,
    -0.0f, E5M2_ABOVE(-E5M2_UNIT), -INFINITY, NOTHING, NOTHING, NOTHING};

/* The finite ones upwards, zero once. */
static const float e4m3_grid_levels[] = {E4M3_BELOW(E4M3_UNIT), 0, E4M3_ABOVE(E4M3_UNIT)};
static const float e5m2_grid_levels[] = {E5M2_BELOW(E5M2_UNIT), 0, E5M2_ABOVE(E5M2_UNIT)};

/* The code of the largest number. */
#define E4M3_TOP 0x7e
#define E5M2_TOP 0x7b
static_assert(sizeof e4m3_grid_levels == (2 * E4M3_TOP + 1) * sizeof(float), "253 numbers");
static_assert(sizeof e5m2_grid_levels == (2 * E5M2_TOP + 1) * sizeof(float), "247 numbers");

static bool is_e4m3(const nb_mat *m)
{
    return m->fmt == &nb_format_fp8_e4m3;
}

static int top_code(const nb_mat *m)
{
    return is_e4m3(m) ? E4M3_TOP : E5M2_TOP;
}

/* ---- scales ---- */

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#define LANES 8
static float absmax(const float *x, int64_t n)
{
    float most[LANES] = {0};
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES)
        for (int l = 0; l < LANES; l++)
            most[l] = fabsf(x[c + l]) > most[l] ? fabsf(x[c + l]) : most[l];
    for (; c < n; c++)
        most[0] = fabsf(x[c]) > most[0] ? fabsf(x[c]) : most[0];
    for (int l = 1; l < LANES; l++)
        most[0] = most[l] > most[0] ? most[l] : most[0];
    return most[0];
}

static float scale_for(const nb_mat *m, float amax)
{
    const float top = m->fmt->levels[top_code(m)];
    const float wanted = amax > 0 ? amax / top : nb_scale_of_zeros(m->scale_type);
    return nb_scale_stored(m->scale_type, wanted, top);
}

/* Scales of the groups of one row, which shares them with no other. */
static void choose_scales(nb_mat *m, int64_t r, const float *x)
{
    const int64_t n_groups = nb_mat_n_groups(m);
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t begin = g * m->group_size, end = smaller(begin + m->group_size, m->n_cols);
        nb_float_put(m->scales, m->scale_type, r * n_groups + g,
                     scale_for(m, absmax(x + begin, end - begin)));
    }
}

/* For now every row has its own. A row of zeros takes part with the least scale there is. */
static void fp8_survey_row(nb_mat *m, int64_t r, const float *x)
{
    const int64_t n_groups = nb_mat_n_groups(m);
    const float top = m->fmt->levels[top_code(m)];
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t begin = g * m->group_size, end = smaller(begin + m->group_size, m->n_cols);
        const float amax = absmax(x + begin, end - begin);
        nb_float_put(m->scales, m->scale_type, r * n_groups + g,
                     amax > 0 ? nb_scale_stored(m->scale_type, amax / top, top) : 0.0f);
    }
}

/* Rounding is monotone: the largest of the stored scales is that of the largest number. */
static void fp8_settle(nb_mat *m)
{
    const int64_t n_groups = nb_mat_n_groups(m), step = m->scale_rows > 1 ? m->scale_rows : 1;
    for (int64_t r = 0; r < m->n_rows; r += step) {
        const int64_t end = smaller(r + step, m->n_rows);
        for (int64_t g = 0; g < n_groups; g++) {
            float most = 0;
            for (int64_t i = r; i < end; i++) {
                const float s = nb_float_get(m->scales, m->scale_type, i * n_groups + g);
                most = s > most ? s : most;
            }
            if (most == 0)
                most = scale_for(m, 0);
            for (int64_t i = r; i < end; i++)
                nb_float_put(m->scales, m->scale_type, i * n_groups + g, most);
        }
    }
}

/* ---- codes: pieces of a constant length, which compilers turn into vector code at -O2 ---- */

#define PIECE 32

static void e4m3_take(uint8_t *restrict code, const float *restrict x, float scale)
{
    for (int i = 0; i < PIECE; i++)
        code[i] = nb_e4m3_from_f32(x[i] / scale);
}

static void e5m2_take(uint8_t *restrict code, const float *restrict x, float scale)
{
    for (int i = 0; i < PIECE; i++)
        code[i] = nb_e5m2_from_f32(x[i] / scale);
}

static void e4m3_give(float *restrict y, const uint8_t *restrict code, float scale)
{
    for (int i = 0; i < PIECE; i++)
        y[i] = scale * nb_e4m3_to_f32(code[i]);
}

static void e5m2_give(float *restrict y, const uint8_t *restrict code, float scale)
{
    for (int i = 0; i < PIECE; i++)
        y[i] = scale * nb_e5m2_to_f32(code[i]);
}

static void take(bool e4m3, uint8_t *code, const float *x, int64_t n, float scale)
{
    for (int64_t c = 0; c < n; c += PIECE) {
        float padded[PIECE] = {0};
        uint8_t full[PIECE];
        const int64_t len = smaller(PIECE, n - c);
        const bool whole = len == PIECE;
        if (!whole)
            memcpy(padded, x + c, (size_t)len * sizeof *x);
        (e4m3 ? e4m3_take : e5m2_take)(whole ? code + c : full, whole ? x + c : padded, scale);
        if (!whole)
            memcpy(code + c, full, (size_t)len);
    }
}

static void give(bool e4m3, float *y, const uint8_t *code, int64_t n, float scale)
{
    int64_t c = 0;
    for (; c + PIECE <= n; c += PIECE)
        (e4m3 ? e4m3_give : e5m2_give)(y + c, code + c, scale);
    for (; c < n; c++)
        y[c] = scale * (e4m3 ? nb_e4m3_to_f32(code[c]) : nb_e5m2_to_f32(code[c]));
}

/* ---- rows ---- */

static void fp8_encode_row(nb_mat *m, int64_t r, const float *x)
{
    assert(m->group_size > 0);
    const int64_t n_groups = nb_mat_n_groups(m);
    if (!nb_mat_shares(m))
        choose_scales(m, r, x);
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t begin = g * m->group_size, end = smaller(begin + m->group_size, m->n_cols);
        take(is_e4m3(m), (uint8_t *)nb_mat_row(m, r) + begin, x + begin, end - begin,
             nb_float_get(m->scales, m->scale_type, r * n_groups + g));
    }
}

static void fp8_decode_row(const nb_mat *m, int64_t r, float *y)
{
    assert(m->group_size > 0);
    const int64_t n_groups = nb_mat_n_groups(m);
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t begin = g * m->group_size, end = smaller(begin + m->group_size, m->n_cols);
        give(is_e4m3(m), y + begin, (const uint8_t *)nb_mat_row(m, r) + begin, end - begin,
             nb_float_get(m->scales, m->scale_type, r * n_groups + g));
    }
}

static void fp8_code_row(const nb_mat *m, int64_t r, uint8_t *code)
{
    memcpy(code, nb_mat_row(m, r), (size_t)m->n_cols);
}

/* ---- the grid ---- */

static void fp8_shape(const nb_mat *m, nb_grid *grid)
{
    *grid = (nb_grid){
        .n_levels = 2 * top_code(m) + 1,
        .level = is_e4m3(m) ? e4m3_grid_levels : e5m2_grid_levels,
        .group_len = m->group_size,
        .span_len = m->group_size,
        .whole = nb_mat_shares(m),
    };
}

/* A block of rows and columns that shares a scale. */
typedef struct {
    const float *w;          /* its first number */
    const float *importance; /* of its columns; NULL: all 1 */
    int64_t n_rows, n_cols, stride;
    double floor; /* is added to every importance */
} fp8_block;

static double piece_loss(const fp8_block *b, int64_t r, int64_t c, int64_t n, bool e4m3,
                         float scale)
{
    float y[PIECE];
    uint8_t code[PIECE];
    const float *w = b->w + r * b->stride + c;
    take(e4m3, code, w, n, scale);
    give(e4m3, y, code, n, scale);
    double loss = 0;
    for (int64_t i = 0; i < n; i++) {
        const double e = (double)w[i] - (double)y[i];
        const double p = b->importance == NULL ? 1.0 : (double)b->importance[c + i] + b->floor;
        loss += p * (e * e);
    }
    return loss;
}

static double block_loss(const nb_mat *m, const fp8_block *b, float scale)
{
    double loss = 0;
    for (int64_t r = 0; r < b->n_rows; r++)
        for (int64_t c = 0; c < b->n_cols; c += PIECE)
            loss += piece_loss(b, r, c, smaller(PIECE, b->n_cols - c), is_e4m3(m), scale);
    return loss;
}

/* A scale twice as large means the same codes one exponent lower, but for the few numbers at either
 * end: what matters is where in an octave the numbers fall. So 24 scales are tried from a little
 * below that of the largest number, which then saturates, to twice it. */
#define N_CANDIDATES 24
static float searched_scale(const nb_mat *m, const fp8_block *b, float amax)
{
    const float top = m->fmt->levels[top_code(m)];
    float best = scale_for(m, amax);
    double least = block_loss(m, b, best);
    for (int j = 0; j < N_CANDIDATES && amax > 0; j++) {
        const float wanted = amax / top * (0.8f + 0.05f * (float)j);
        const float scale = nb_scale_stored(m->scale_type, wanted, top);
        const double loss = block_loss(m, b, scale);
        if (loss < least) {
            least = loss;
            best = scale;
        }
    }
    return best;
}

static float block_scale(const nb_mat *m, const fp8_block *b, nb_fit fit)
{
    float amax = 0;
    for (int64_t r = 0; r < b->n_rows; r++) {
        const float most = absmax(b->w + r * b->stride, b->n_cols);
        amax = most > amax ? most : amax;
    }
    return fit == NB_FIT_SEARCH ? searched_scale(m, b, amax) : scale_for(m, amax);
}

static void fp8_fit(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w,
                    const float *importance, int64_t n, nb_fit fit)
{
    (void)grid;
    const fp8_block b = {.w = w,
                         .importance = importance,
                         .n_rows = 1,
                         .n_cols = n,
                         .floor = importance == NULL ? 0 : nb_fit_floor(importance, n)};
    nb_float_put(m->scales, m->scale_type, r * nb_mat_n_groups(m) + col / m->group_size,
                 block_scale(m, &b, fit));
}

static void fp8_fit_whole(const nb_grid *grid, nb_mat *m, const float *w, const float *importance,
                          nb_fit fit)
{
    (void)grid;
    const int64_t n_groups = nb_mat_n_groups(m);
    for (int64_t r = 0; r < m->n_rows; r += m->scale_rows) {
        for (int64_t g = 0; g < n_groups; g++) {
            const int64_t at = g * m->group_size;
            fp8_block b = {.w = w + r * m->n_cols + at,
                           .importance = importance == NULL ? NULL : importance + at,
                           .n_rows = smaller(m->scale_rows, m->n_rows - r),
                           .n_cols = smaller(m->group_size, m->n_cols - at),
                           .stride = m->n_cols};
            b.floor = importance == NULL ? 0 : nb_fit_floor(b.importance, b.n_cols);
            const float scale = block_scale(m, &b, fit);
            for (int64_t i = 0; i < b.n_rows; i++)
                nb_float_put(m->scales, m->scale_type, (r + i) * n_groups + g, scale);
        }
    }
}

static void fp8_group_at(const nb_mat *m, int64_t r, int64_t col, nb_grid_group *out)
{
    const int64_t i = r * nb_mat_n_groups(m) + col / m->group_size;
    *out = (nb_grid_group){.scale = nb_float_get(m->scales, m->scale_type, i)};
}

static void fp8_put(nb_mat *m, int64_t r, int64_t col, const uint8_t *code, int64_t n)
{
    uint8_t *row = (uint8_t *)nb_mat_row(m, r) + col;
    const int zero = top_code(m);
    for (int64_t i = 0; i < n; i++)
        row[i] = (uint8_t)(code[i] >= zero ? code[i] - zero : 0x80 | (zero - code[i]));
}

static const nb_grid_form fp8_grid = {
    .shape = fp8_shape,
    .fit = fp8_fit,
    .group_at = fp8_group_at,
    .put = fp8_put,
    .fit_whole = fp8_fit_whole,
};

#define FORMAT(id, numbers)                                                                        \
    const nb_format nb_format_##id = {                                                             \
        .name = #id,                                                                               \
        .ggml_type = -1,                                                                           \
        .block_len = 1,                                                                            \
        .bits = 8,                                                                                 \
        .affine = true,                                                                            \
        .decode_row = fp8_decode_row,                                                              \
        .encode_row = fp8_encode_row,                                                              \
        .levels = numbers,                                                                         \
        .code_row = fp8_code_row,                                                                  \
        .survey_row = fp8_survey_row,                                                              \
        .settle = fp8_settle,                                                                      \
        .grid = &fp8_grid,                                                                         \
    }
FORMAT(fp8_e4m3, e4m3_levels);
FORMAT(fp8_e5m2, e5m2_levels);
