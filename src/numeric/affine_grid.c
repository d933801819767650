/* The grid of affine formats: integers of the format's width under a scale, which is negative where
 * that gives the longer end of the integers to the side that needs it, or under a scale above zero
 * and a zero point. Float zero points are offsets, and then the levels count from 0.
 *
 * Scales are never stored as 0. Where a search finds nothing (a group of zeros, or of values far
 * below the least number of the scale's type), the scale of the plain encoder stays. */
#include "numeric/affine.h"
#include "numeric/codebits.h"
#include "numeric/fit.h"
#include "numeric/minifloat.h"

static int levels_below_zero(const nb_mat *m)
{
    return 1 << (m->fmt->bits - 1);
}

static int64_t group_index(const nb_mat *m, int64_t r, int64_t col)
{
    return r * nb_mat_n_groups(m) + col / m->group_size;
}

static void affine_shape(const nb_mat *m, nb_grid *grid)
{
    *grid = (nb_grid){
        .n_levels = 2 * levels_below_zero(m),
        .level = nb_grid_integers + 128 - (m->float_zeros != NULL ? 0 : levels_below_zero(m)),
        .uniform = true,
        .group_len = m->group_size,
        .span_len = m->group_size,
        .has_zero = m->zeros != NULL,
        .has_offset = m->float_zeros != NULL,
    };
}

static void affine_search(nb_mat *m, int64_t i, const nb_fit_data *d)
{
    const int below = levels_below_zero(m), top = 2 * below - 1;
    int zero = 0;
    if (m->float_zeros != NULL) {
        float offset;
        const float step = nb_fit_scale_offset(d, top, m->scale_type, false, &offset);
        (void)nb_affine_float_put(m, i, (double)step, (double)offset);
        return;
    }
    const float scale = m->zeros == NULL ? nb_fit_scale(d, -below, top, m->scale_type)
                                         : nb_fit_scale_zero(d, top, m->scale_type, &zero);
    if (scale == 0)
        return;
    nb_float_put(m->scales, m->scale_type, i, scale);
    if (m->zeros != NULL)
        m->zeros[i] = (int8_t)(zero - below);
}

static void affine_fit(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w,
                       const float *importance, int64_t n, nb_fit fit)
{
    (void)grid;
    const int64_t i = group_index(m, r, col);
    if (fit == NB_FIT_ABSMAX) {
        nb_affine_choose(m, i, w, n);
        return;
    }
    nb_fit_data d;
    nb_fit_data_init(&d, w, importance, n, nb_fit_floor(importance, n));
    affine_search(m, i, &d);
}

static void affine_group_at(const nb_mat *m, int64_t r, int64_t col, nb_grid_group *out)
{
    const int64_t i = group_index(m, r, col);
    *out = (nb_grid_group){
        .scale = nb_float_get(m->scales, m->scale_type, i),
        .offset = m->float_zeros == NULL ? 0 : nb_affine_float_offset(m, i),
        .zero = m->zeros == NULL ? 0 : m->zeros[i],
    };
}

static bool affine_group_put(nb_mat *m, int64_t r, int64_t col, const nb_grid_group *g)
{
    const int below = levels_below_zero(m);
    const int64_t i = group_index(m, r, col);
    if (m->float_zeros != NULL)
        return nb_affine_float_put(m, i, (double)g->scale, (double)g->offset);
    const float stored = nb_fit_stored(m->scale_type, (double)g->scale);
    if (stored == 0 || g->zero < -below || g->zero >= below)
        return false;
    nb_float_put(m->scales, m->scale_type, i, stored);
    if (m->zeros != NULL)
        m->zeros[i] = (int8_t)g->zero;
    return true;
}

/* Grid codes are what is stored, for codes are stored with their offset; but int8 has none. */
static void affine_put(nb_mat *m, int64_t r, int64_t col, const uint8_t *code, int64_t n)
{
    uint8_t *row = nb_mat_row(m, r);
    if (m->fmt->bits == 8) {
        for (int64_t i = 0; i < n; i++)
            row[col + i] = code[i] ^ 0x80;
        return;
    }
    nb_codebits_put(row, m->fmt->bits, col, (const int8_t *)code, n, 0);
    if (col + n == m->n_cols)
        nb_codebits_clear_rest(row, m->fmt->bits, m->n_cols);
}

const nb_grid_form nb_affine_grid = {
    .shape = affine_shape,
    .fit = affine_fit,
    .group_at = affine_group_at,
    .group_put = affine_group_put,
    .put = affine_put,
};
