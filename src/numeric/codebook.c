/* Codes that are places in a table of values, not numbers themselves.
 *
 * iq4_nl: 32 codes of 4 bits under an f16 scale; 4.5 bits per weight. The table is denser around
 * zero, where most weights are. The codes lie as in q4_0 (block.c):
 *
 *   byte   0    1 | 2  ...  17
 *        [   d    ][   low    ]              value[j] = d * table[code[j]]
 *
 * Table values have 7 bits and d has 11, so the product is exact in binary32. The encoder searches
 * for the d of least squared error: the table is lopsided, so that its extremes say little. */
#include "numeric/fit.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define BLOCK 32

typedef struct {
    uint16_t d;
    uint8_t low[16];
} iq4_nl_block;
static_assert(sizeof(iq4_nl_block) == 18, "a block is 18 bytes, with no padding");

static const int8_t iq4_nl_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

static void iq4_nl_decode_row(const nb_mat *m, int64_t r, float *y)
{
    assert(m->n_cols % BLOCK == 0);
    const iq4_nl_block *b = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c += BLOCK, b++) {
        const float d = nb_f16_to_f32(b->d);
        for (int j = 0; j < 16; j++) {
            y[c + j] = d * (float)iq4_nl_table[b->low[j] & 15];
            y[c + j + 16] = d * (float)iq4_nl_table[b->low[j] >> 4];
        }
    }
}

static void iq4_nl_int_form(const nb_mat *m, nb_int_form *form)
{
    (void)m;
    *form = (nb_int_form){
        .segment_len = BLOCK,
        .code_hi = 15,
        .scale_type = NB_F16,
        .table = iq4_nl_table,
    };
}

static void places(int8_t *restrict code, const uint8_t *restrict low)
{
    for (int j = 0; j < 16; j++)
        code[j] = (int8_t)(low[j] & 15);
    for (int j = 0; j < 16; j++)
        code[j + 16] = (int8_t)(low[j] >> 4);
}

static void iq4_nl_int_row(const nb_mat *m, int64_t r, const nb_int_row *out)
{
    assert(m->n_cols % BLOCK == 0);
    const iq4_nl_block *b = nb_mat_row(m, r);
    const int64_t n_blocks = m->n_cols / BLOCK;
    for (int64_t i = 0; i < n_blocks; i++) {
        places(out->code + i * BLOCK, b[i].low);
        out->scale[i] = nb_f16_to_f32(b[i].d);
    }
}

/* ---- the grid, and encoding through it ---- */

static const float iq4_nl_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

static void iq4_nl_grid_shape(const nb_mat *m, nb_grid *grid)
{
    (void)m;
    *grid =
        (nb_grid){.n_levels = 16, .level = iq4_nl_levels, .group_len = BLOCK, .span_len = BLOCK};
}

static iq4_nl_block *block_at(const nb_mat *m, int64_t r, int64_t col)
{
    return (iq4_nl_block *)nb_mat_row(m, r) + col / BLOCK;
}

/* The value of the largest magnitude on the longer end of the table; of several, the first. */
static float extreme_scale(const float *w, int64_t n)
{
    float extreme = 0;
    for (int64_t i = 0; i < n; i++)
        extreme = fabsf(w[i]) > fabsf(extreme) ? w[i] : extreme;
    return extreme == 0 ? 0 : nb_fit_stored(NB_F16, (double)extreme / -127.0);
}

/* Where the search finds no scale (a block of zeros), 0 says what there is. */
static void iq4_nl_grid_fit(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w,
                            const float *importance, int64_t n, nb_fit fit)
{
    float scale = 0;
    if (fit == NB_FIT_ABSMAX) {
        scale = extreme_scale(w, n);
    } else {
        nb_fit_data d;
        nb_fit_data_init(&d, w, importance, n, nb_fit_floor(importance, n));
        scale = nb_fit_scale_table(&d, grid->level, grid->n_levels, NB_F16);
    }
    block_at(m, r, col)->d = nb_f16_from_f32(scale);
}

static void iq4_nl_grid_group_at(const nb_mat *m, int64_t r, int64_t col, nb_grid_group *out)
{
    *out = (nb_grid_group){.scale = nb_f16_to_f32(block_at(m, r, col)->d)};
}

static bool iq4_nl_grid_group_put(nb_mat *m, int64_t r, int64_t col, const nb_grid_group *g)
{
    const float scale = nb_fit_stored(NB_F16, (double)g->scale);
    if (scale == 0)
        return false;
    block_at(m, r, col)->d = nb_f16_from_f32(scale);
    return true;
}

static void iq4_nl_grid_put(nb_mat *m, int64_t r, int64_t col, const uint8_t *code, int64_t n)
{
    assert(col % BLOCK == 0 && n % BLOCK == 0);
    iq4_nl_block *b = block_at(m, r, col);
    for (int64_t c = 0; c < n; c += BLOCK, b++) {
        for (int j = 0; j < 16; j++)
            b->low[j] = (uint8_t)(code[c + j] | code[c + j + 16] << 4);
    }
}

static const nb_grid_form iq4_nl_grid = {
    .shape = iq4_nl_grid_shape,
    .fit = iq4_nl_grid_fit,
    .group_at = iq4_nl_grid_group_at,
    .group_put = iq4_nl_grid_group_put,
    .put = iq4_nl_grid_put,
};

static void iq4_nl_encode_row(nb_mat *m, int64_t r, const float *x)
{
    nb_grid grid;
    iq4_nl_grid_shape(m, &grid);
    for (int64_t c = 0; c < m->n_cols; c += BLOCK)
        nb_grid_fit(&grid, m, r, c, x + c, NULL, NB_FIT_SEARCH);
    nb_grid_round_row(&grid, m, r, x);
}

const nb_format nb_format_iq4_nl = {
    .name = "iq4_nl",
    .ggml_type = 20,
    .block_len = BLOCK,
    .block_bytes = sizeof(iq4_nl_block),
    .bits = 4,
    .decode_row = iq4_nl_decode_row,
    .encode_row = iq4_nl_encode_row,
    .int_form = iq4_nl_int_form,
    .int_row = iq4_nl_int_row,
    .grid = &iq4_nl_grid,
};
