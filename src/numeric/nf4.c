/* nf4: four bits a weight, codes into the quantiles of the normal distribution, as bitsandbytes
 * stores them (QLoRA, arXiv:2305.14314).
 *
 *   bit     7     4 3     0
 *        [  c2j   |  c2j+1 ]        value[c] = fl(level[code[c]] * scale[c / group_size])
 *
 * A group's scale is its absmax. With nested scales ("double quantization", 4.127 bits a weight
 * with groups of 64) it is a code itself, of 8 bits:
 *
 *   scale[i] = fl(fl(map[code[i]] * step[i / 256]) + offset)
 *
 * where i counts the groups of the matrix row by row, offset is the mean of all absmax, and step
 * the largest distance from it in a block of 256 groups.
 *
 * bitsandbytes takes the codes of weights by the absmax itself. Here they are taken by the scale as
 * stored, as everywhere: that one is what they will be multiplied with. */
#include "numeric/nf4.h"

#include "numeric/fit.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

const float nb_nf4_levels[16] = {
    -0x1p0f,         -0x1.647362p-1f, -0x1.0cd66p-1f,  -0x1.94654p-2f,
    -0x1.23449ap-2f, -0x1.7a6a7ep-3f, -0x1.74f0e2p-4f, 0,
    0x1.45f5fep-4f,  0x1.4995c6p-3f,  0x1.f809bap-3f,  0x1.5a0674p-2f,
    0x1.c3497p-2f,   0x1.200f56p-1f,  0x1.722766p-1f,  0x1p0f,
};

/* Halfway between neighbours, as bitsandbytes rounds it. */
static const float middles[15] = {
    -0x1.b239bp-1f,  -0x1.38a4ep-1f,  -0x1.d709p-2f,  -0x1.5bd4ecp-2f, -0x1.e079d8p-3f,
    -0x1.1a7178p-3f, -0x1.74f0e2p-5f, 0x1.45f5fep-5f, 0x1.ec90c4p-4f,  0x1.a0cfcp-3f,
    0x1.2b05a8p-2f,  0x1.8ea7f2p-2f,  0x1.00da08p-1f, 0x1.491b5ep-1f,  0x1.b913b4p-1f,
};

const float nb_nf4_map[256] = {
    -0x1.fc6666p-1f,  -0x1.f53332p-1f,  -0x1.eep-1f,      -0x1.e6ccccp-1f,
    -0x1.df9998p-1f,  -0x1.d86666p-1f,  -0x1.d13334p-1f,  -0x1.cap-1f,
    -0x1.c2ccccp-1f,  -0x1.bb9998p-1f,  -0x1.b46666p-1f,  -0x1.ad3332p-1f,
    -0x1.a6p-1f,      -0x1.9eccccp-1f,  -0x1.979998p-1f,  -0x1.906666p-1f,
    -0x1.893334p-1f,  -0x1.82p-1f,      -0x1.7acccep-1f,  -0x1.73999ap-1f,
    -0x1.6c6668p-1f,  -0x1.653334p-1f,  -0x1.5ep-1f,      -0x1.56cccep-1f,
    -0x1.4f999ap-1f,  -0x1.486666p-1f,  -0x1.413334p-1f,  -0x1.3ap-1f,
    -0x1.32ccccp-1f,  -0x1.2b999ap-1f,  -0x1.246668p-1f,  -0x1.1d3334p-1f,
    -0x1.16p-1f,      -0x1.0eccccp-1f,  -0x1.07999ap-1f,  -0x1.006666p-1f,
    -0x1.f26668p-2f,  -0x1.e4p-2f,      -0x1.d59998p-2f,  -0x1.c73334p-2f,
    -0x1.b8ccccp-2f,  -0x1.aa6664p-2f,  -0x1.9cp-2f,      -0x1.8d9998p-2f,
    -0x1.7f3334p-2f,  -0x1.70ccccp-2f,  -0x1.626664p-2f,  -0x1.54p-2f,
    -0x1.459998p-2f,  -0x1.373334p-2f,  -0x1.28ccccp-2f,  -0x1.1a6668p-2f,
    -0x1.0cp-2f,      -0x1.fb3334p-3f,  -0x1.de6668p-3f,  -0x1.c1999ap-3f,
    -0x1.a4ccccp-3f,  -0x1.88p-3f,      -0x1.6b3332p-3f,  -0x1.4e6666p-3f,
    -0x1.31999ap-3f,  -0x1.14ccccp-3f,  -0x1.fp-4f,       -0x1.b66668p-4f,
    -0x1.93d70ap-4f,  -0x1.8851eap-4f,  -0x1.7ccccep-4f,  -0x1.7147aep-4f,
    -0x1.65c29p-4f,   -0x1.5a3d7p-4f,   -0x1.4eb85p-4f,   -0x1.433334p-4f,
    -0x1.37ae14p-4f,  -0x1.2c28f6p-4f,  -0x1.20a3d6p-4f,  -0x1.151ebap-4f,
    -0x1.09999ap-4f,  -0x1.fc28f4p-5f,  -0x1.e51ebap-5f,  -0x1.ce147ap-5f,
    -0x1.b70a3ep-5f,  -0x1.ap-5f,       -0x1.88f5c2p-5f,  -0x1.71eb86p-5f,
    -0x1.5ae146p-5f,  -0x1.43d70ap-5f,  -0x1.2ccccep-5f,  -0x1.15c28ep-5f,
    -0x1.fd70a4p-6f,  -0x1.cf5c26p-6f,  -0x1.a147aep-6f,  -0x1.733334p-6f,
    -0x1.451eb8p-6f,  -0x1.170a3ep-6f,  -0x1.d1eb86p-7f,  -0x1.75c29p-7f,
    -0x1.3e76c8p-7f,  -0x1.2c083p-7f,   -0x1.19999ap-7f,  -0x1.072b02p-7f,
    -0x1.e978d4p-8f,  -0x1.c49ba6p-8f,  -0x1.9fbe76p-8f,  -0x1.7ae148p-8f,
    -0x1.56041ap-8f,  -0x1.3126e8p-8f,  -0x1.0c49bap-8f,  -0x1.ced914p-9f,
    -0x1.851eb8p-9f,  -0x1.3b645ap-9f,  -0x1.e353f8p-10f, -0x1.4fdf3ap-10f,
    -0x1.eecbfep-11f, -0x1.b3d07cp-11f, -0x1.78d5p-11f,   -0x1.3dd982p-11f,
    -0x1.02de02p-11f, -0x1.8fc506p-12f, -0x1.19ce0ap-12f, -0x1.47ae16p-13f,
    -0x1.743e96p-14f, -0x1.15df66p-14f, -0x1.6f0068p-15f, -0x1.64840cp-16f,
    -0x1.040bfep-17f, -0x1.b43528p-19f, -0x1.27476ep-21f, 0,
    0x1.27476ep-21f,  0x1.b43528p-19f,  0x1.040bfep-17f,  0x1.64840cp-16f,
    0x1.6f0068p-15f,  0x1.15df66p-14f,  0x1.743e96p-14f,  0x1.47ae16p-13f,
    0x1.19ce0ap-12f,  0x1.8fc506p-12f,  0x1.02de02p-11f,  0x1.3dd982p-11f,
    0x1.78d5p-11f,    0x1.b3d07cp-11f,  0x1.eecbfep-11f,  0x1.4fdf3ap-10f,
    0x1.e353f8p-10f,  0x1.3b645ap-9f,   0x1.851eb8p-9f,   0x1.ced914p-9f,
    0x1.0c49bap-8f,   0x1.3126e8p-8f,   0x1.56041ap-8f,   0x1.7ae148p-8f,
    0x1.9fbe76p-8f,   0x1.c49ba6p-8f,   0x1.e978d4p-8f,   0x1.072b02p-7f,
    0x1.19999ap-7f,   0x1.2c083p-7f,    0x1.3e76c8p-7f,   0x1.75c29p-7f,
    0x1.d1eb86p-7f,   0x1.170a3ep-6f,   0x1.451eb8p-6f,   0x1.733334p-6f,
    0x1.a147aep-6f,   0x1.cf5c26p-6f,   0x1.fd70a4p-6f,   0x1.15c28ep-5f,
    0x1.2ccccep-5f,   0x1.43d70ap-5f,   0x1.5ae146p-5f,   0x1.71eb86p-5f,
    0x1.88f5c2p-5f,   0x1.ap-5f,        0x1.b70a3ep-5f,   0x1.ce147ap-5f,
    0x1.e51ebap-5f,   0x1.fc28f4p-5f,   0x1.09999ap-4f,   0x1.151ebap-4f,
    0x1.20a3d6p-4f,   0x1.2c28f6p-4f,   0x1.37ae14p-4f,   0x1.433334p-4f,
    0x1.4eb85p-4f,    0x1.5a3d7p-4f,    0x1.65c29p-4f,    0x1.7147aep-4f,
    0x1.7ccccep-4f,   0x1.8851eap-4f,   0x1.93d70ap-4f,   0x1.b66668p-4f,
    0x1.fp-4f,        0x1.14ccccp-3f,   0x1.31999ap-3f,   0x1.4e6666p-3f,
    0x1.6b3332p-3f,   0x1.88p-3f,       0x1.a4ccccp-3f,   0x1.c1999ap-3f,
    0x1.de6668p-3f,   0x1.fb3334p-3f,   0x1.0cp-2f,       0x1.1a6668p-2f,
    0x1.28ccccp-2f,   0x1.373334p-2f,   0x1.459998p-2f,   0x1.54p-2f,
    0x1.626664p-2f,   0x1.70ccccp-2f,   0x1.7f3334p-2f,   0x1.8d9998p-2f,
    0x1.9cp-2f,       0x1.aa6664p-2f,   0x1.b8ccccp-2f,   0x1.c73334p-2f,
    0x1.d59998p-2f,   0x1.e4p-2f,       0x1.f26668p-2f,   0x1.006666p-1f,
    0x1.07999ap-1f,   0x1.0eccccp-1f,   0x1.16p-1f,       0x1.1d3334p-1f,
    0x1.246668p-1f,   0x1.2b999ap-1f,   0x1.32ccccp-1f,   0x1.3ap-1f,
    0x1.413334p-1f,   0x1.486666p-1f,   0x1.4f999ap-1f,   0x1.56cccep-1f,
    0x1.5ep-1f,       0x1.653334p-1f,   0x1.6c6668p-1f,   0x1.73999ap-1f,
    0x1.7acccep-1f,   0x1.82p-1f,       0x1.893334p-1f,   0x1.906666p-1f,
    0x1.979998p-1f,   0x1.9eccccp-1f,   0x1.a6p-1f,       0x1.ad3332p-1f,
    0x1.b46666p-1f,   0x1.bb9998p-1f,   0x1.c2ccccp-1f,   0x1.cap-1f,
    0x1.d13334p-1f,   0x1.d86666p-1f,   0x1.df9998p-1f,   0x1.e6ccccp-1f,
    0x1.eep-1f,       0x1.f53332p-1f,   0x1.fc6666p-1f,   0x1p0f,
};

#define PIECE 32
#define ZERO  7 /* the code of 0 */

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- nested scales ---- */

void nb_nf4_unnest(const nb_nested *nested, float *scales, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float part = nb_nf4_map[nested->code[i]] * nested->step[i / NB_NESTED_BLOCK];
        scales[i] = part + nested->offset;
    }
}

/* The nearest of the map, which ascends; the lower one on ties. */
static uint8_t nearest_of_map(float x)
{
    int low = 0, high = 255;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        *(nb_nf4_map[middle] <= x ? &low : &high) = middle;
    }
    return (uint8_t)(x - nb_nf4_map[low] <= nb_nf4_map[high] - x ? low : high);
}

/* The sum is one chain in binary64. */
static float mean_of(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i];
    return (float)(sum / (double)n);
}

/* Turns absmax, which the survey has left in `scales`, into codes and what they mean. */
static void nf4_settle(nb_mat *m)
{
    float *scales = m->scales;
    const int64_t n = m->n_rows * nb_mat_n_groups(m);
    m->nested.offset = mean_of(scales, n);
    for (int64_t begin = 0; begin < n; begin += NB_NESTED_BLOCK) {
        const int64_t end = smaller(begin + NB_NESTED_BLOCK, n);
        float step = 0;
        for (int64_t i = begin; i < end; i++) {
            const float distance = fabsf(scales[i] - m->nested.offset);
            step = distance > step ? distance : step;
        }
        m->nested.step[begin / NB_NESTED_BLOCK] = step;
        for (int64_t i = begin; i < end; i++)
            m->nested.code[i] =
                nearest_of_map(step > 0 ? (scales[i] - m->nested.offset) / step : 0.0f);
    }
    nb_nf4_unnest(&m->nested, scales, n);
}

static void nf4_survey_row(nb_mat *m, int64_t r, const float *x)
{
    float *scales = (float *)m->scales + r * nb_mat_n_groups(m);
    for (int64_t c = 0; c < m->n_cols; c++) {
        float *scale = &scales[c / m->group_size];
        const float size = fabsf(x[c]);
        *scale = c % m->group_size == 0 || size > *scale ? size : *scale;
    }
}

/* ---- codes ---- */

/* How many middles lie strictly below x / scale. The product with the reciprocal is what
 * bitsandbytes takes; where that overflows, the scale is too small for it to matter there. */
static void take_piece(uint8_t *restrict code, const float *restrict x, float inverse)
{
    for (int i = 0; i < PIECE; i++) {
        const float t = x[i] * inverse;
        int32_t n = 0;
        for (int j = 0; j < 15; j++)
            n += t > middles[j];
        code[i] = (uint8_t)n;
    }
}

static void take(uint8_t *code, const float *x, int64_t n, float scale)
{
    const float inverse = 1.0f / scale;
    if (scale == 0 || fabsf(inverse) > FLT_MAX) {
        for (int64_t c = 0; c < n; c++)
            code[c] = ZERO;
        return;
    }
    for (int64_t c = 0; c < n; c += PIECE) {
        float padded[PIECE] = {0};
        uint8_t full[PIECE];
        const int64_t len = smaller(PIECE, n - c);
        memcpy(padded, x + c, (size_t)len * sizeof *x);
        take_piece(full, padded, inverse);
        memcpy(code + c, full, (size_t)len);
    }
}

static void pair_codes(uint8_t *row, const uint8_t *code, int64_t n)
{
    for (int64_t i = 0; i < n; i += 2)
        row[i / 2] = (uint8_t)(code[i] << 4 | code[i + 1]);
}

/* ---- rows ---- */

static void check(const nb_mat *m)
{
    assert(m->group_size > 0 && m->n_cols % m->group_size == 0 && m->group_size % 2 == 0);
    assert(m->scale_type == NB_F32);
}

static void nf4_encode_row(nb_mat *m, int64_t r, const float *x)
{
    check(m);
    uint8_t *row = nb_mat_row(m, r);
    if (!nb_mat_shares(m))
        nf4_survey_row(m, r, x);
    const int64_t n_groups = nb_mat_n_groups(m);
    const float *scales = (const float *)m->scales + r * n_groups;
    for (int64_t g = 0; g < n_groups; g++) {
        const int64_t begin = g * m->group_size, end = begin + m->group_size;
        for (int64_t c = begin; c < end; c += PIECE) {
            uint8_t code[PIECE];
            const int64_t n = smaller(PIECE, end - c);
            take(code, x + c, n, scales[g]);
            pair_codes(row + c / 2, code, n);
        }
    }
}

static void nf4_decode_row(const nb_mat *m, int64_t r, float *y)
{
    check(m);
    const uint8_t *row = nb_mat_row(m, r);
    const float *scales = (const float *)m->scales + r * nb_mat_n_groups(m);
    for (int64_t g = 0; g * m->group_size < m->n_cols; g++) {
        float values[16];
        for (int i = 0; i < 16; i++)
            values[i] = nb_nf4_levels[i] * scales[g];
        for (int64_t c = g * m->group_size; c < (g + 1) * m->group_size; c += 2) {
            y[c] = values[row[c / 2] >> 4];
            y[c + 1] = values[row[c / 2] & 15];
        }
    }
}

static void nf4_code_row(const nb_mat *m, int64_t r, uint8_t *code)
{
    const uint8_t *row = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c += 2) {
        code[c] = row[c / 2] >> 4;
        code[c + 1] = row[c / 2] & 15;
    }
}

/* ---- the grid ---- */

static void nf4_shape(const nb_mat *m, nb_grid *grid)
{
    *grid = (nb_grid){
        .n_levels = 16,
        .level = nb_nf4_levels,
        .group_len = m->group_size,
        .span_len = m->group_size,
        .whole = nb_mat_shares(m),
    };
}

static float fitted(const nb_grid *grid, const float *w, const float *importance, int64_t n,
                    nb_fit fit)
{
    float most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
    if (fit == NB_FIT_ABSMAX)
        return most;
    nb_fit_data d;
    nb_fit_data_init(&d, w, importance, n, nb_fit_floor(importance, n));
    const float found = nb_fit_scale_table(&d, grid->level, grid->n_levels, NB_F32);
    return found != 0 ? found : most;
}

static void nf4_fit(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w,
                    const float *importance, int64_t n, nb_fit fit)
{
    ((float *)m->scales)[r * nb_mat_n_groups(m) + col / m->group_size] =
        fitted(grid, w, importance, n, fit);
}

/* A search turns some scales around, which nested ones cannot follow: they lie close together. */
static void nf4_fit_whole(const nb_grid *grid, nb_mat *m, const float *w, const float *importance,
                          nb_fit fit)
{
    const int64_t n_groups = nb_mat_n_groups(m);
    float *scales = m->scales;
    for (int64_t r = 0; r < m->n_rows; r++) {
        for (int64_t g = 0; g < n_groups; g++) {
            const int64_t at = g * m->group_size;
            scales[r * n_groups + g] =
                fabsf(fitted(grid, w + r * m->n_cols + at,
                             importance == NULL ? NULL : importance + at, m->group_size, fit));
        }
    }
    nf4_settle(m);
}

static void nf4_group_at(const nb_mat *m, int64_t r, int64_t col, nb_grid_group *out)
{
    const float *scales = m->scales;
    *out = (nb_grid_group){.scale = scales[r * nb_mat_n_groups(m) + col / m->group_size]};
}

/* Pieces begin and end at even columns: groups and rows have even lengths. */
static void nf4_put(nb_mat *m, int64_t r, int64_t col, const uint8_t *code, int64_t n)
{
    assert(col % 2 == 0 && n % 2 == 0);
    pair_codes((uint8_t *)nb_mat_row(m, r) + col / 2, code, n);
}

static const nb_grid_form nf4_grid = {
    .shape = nf4_shape,
    .fit = nf4_fit,
    .group_at = nf4_group_at,
    .put = nf4_put,
    .fit_whole = nf4_fit_whole,
};

const nb_format nb_format_nf4 = {
    .name = "nf4",
    .ggml_type = -1,
    .block_len = 1,
    .bits = 4,
    .affine = true,
    .decode_row = nf4_decode_row,
    .encode_row = nf4_encode_row,
    .levels = nb_nf4_levels,
    .code_row = nf4_code_row,
    .survey_row = nf4_survey_row,
    .settle = nf4_settle,
    .grid = &nf4_grid,
};
