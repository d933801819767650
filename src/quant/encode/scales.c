/* See scales.h. */
#include "quant/encode/scales.h"

#include "quant/encode/by_row.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Adam's constants. The second moment forgets faster than usual: there are tens of steps, not
 * thousands. */
#define BETA1 0.9
#define BETA2 0.99
/* How far a scale may move: further, its codes have lost their meaning. */
#define MOST 0.5

/* One number that is learned. */
typedef struct {
    float x, mean, root; /* Adam's m, and the root of its v, whose squares may be too small */
} learned;

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

int64_t nb_scales_bytes(int64_t n_rows, int64_t n_cols, int64_t n_groups)
{
    const size_t n = (size_t)(n_rows * n_cols), g = (size_t)(n_rows * n_groups);
    return (int64_t)(2 * aligned(n * sizeof(float)) + aligned(g * sizeof(nb_grid_group)));
}

static int64_t n_values(const nb_grid *grid)
{
    return grid->has_offset ? 2 : 1;
}

static int64_t groups_of_row(const nb_grid *grid, const nb_mat *m)
{
    return (m->n_cols + grid->group_len - 1) / grid->group_len;
}

/* The grid of matrices like m, where each group has a scale that can be stored by itself. */
static bool grid_that_learns(const nb_mat *m, bool nested, nb_grid *grid)
{
    nb_err ignored = {0};
    return m->fmt->grid != NULL && m->fmt->grid->group_put != NULL && m->scale_rows <= 1 &&
           !nested && nb_grid_of(grid, m, &ignored) == NB_OK && !grid->whole;
}

int64_t nb_scales_floats(const nb_weight *to)
{
    nb_grid grid;
    const nb_mat shape = {.fmt = to->fmt,
                          .n_rows = to->n_rows,
                          .n_cols = to->n_cols,
                          .group_size = to->group_size,
                          .scale_rows = to->scale_rows,
                          .float_zeros = to->float_zeros ? &grid : NULL}; /* only asked for */
    if (!grid_that_learns(&shape, to->nested, &grid))
        return 0;
    return to->n_rows * groups_of_row(&grid, &shape) * n_values(&grid) *
           (int64_t)(sizeof(learned) / sizeof(float));
}

void nb_scales_free(nb_scales *s)
{
    nb_free(s->memory);
    *s = (nb_scales){0};
}

/* ---- by rows, on the pool ---- */

typedef struct {
    const nb_scales *s;
    const float *from; /* what was learned; NULL: nothing yet */
    float *to;
    double rate, mean_share, square_share;
} pass;

static void start_row(const void *context, int64_t row)
{
    const pass *p = context;
    const nb_scales *s = p->s;
    for (int64_t g = 0; g < s->n_groups; g++)
        nb_grid_group_at(&s->grid, s->out, row, g * s->grid.group_len,
                         &s->first[row * s->n_groups + g]);
    s->out->fmt->decode_row(s->out, row, s->value + row * s->out->n_cols);
}

/* A start that was stored can be stored again. An offset of -0 stays one, where nothing was learned
 * of it. */
static void set_row(const void *context, int64_t row)
{
    const pass *p = context;
    const nb_scales *s = p->s;
    for (int64_t g = 0; g < s->n_groups; g++) {
        const int64_t i = row * s->n_groups + g, col = g * s->grid.group_len;
        const learned *l = (const learned *)(const void *)p->from + i * n_values(&s->grid);
        const nb_grid_group *first = &s->first[i];
        nb_grid_group wanted = *first;
        if (first->scale == 0)
            continue;
        wanted.scale = first->scale * (1 + l[0].x);
        if (s->grid.has_offset && l[1].x != 0)
            wanted.offset = first->offset + first->scale * l[1].x;
        if (!nb_grid_group_put(&s->grid, s->out, row, col, &wanted))
            (void)nb_grid_group_put(&s->grid, s->out, row, col, first);
    }
    s->out->fmt->decode_row(s->out, row, s->value + row * s->out->n_cols);
}

static void descend(const pass *p, learned *l, double slope)
{
    if (!(fabs(slope) <= (double)FLT_MAX))
        return;
    const double root = (double)l->root;
    const double mean = BETA1 * (double)l->mean + (1 - BETA1) * slope;
    const double square = BETA2 * root * root + (1 - BETA2) * slope * slope;
    l->mean = (float)mean;
    l->root = (float)sqrt(square);
    if (l->root == 0)
        return;
    const double x =
        (double)l->x - p->rate * (mean / p->mean_share) / ((double)l->root / sqrt(p->square_share));
    l->x = (float)(x < -MOST ? -MOST : x > MOST ? MOST : x);
}

/* Slopes by a and b: sums in binary64, ascending. */
static void step_row(const void *context, int64_t row)
{
    const pass *p = context;
    const nb_scales *s = p->s;
    const int64_t n = s->out->n_cols;
    for (int64_t g = 0; g < s->n_groups; g++) {
        const int64_t i = row * s->n_groups + g, begin = g * s->grid.group_len;
        const int64_t end = begin + s->grid.group_len < n ? begin + s->grid.group_len : n;
        learned *l = (learned *)(void *)p->to + i * n_values(&s->grid);
        nb_grid_group is;
        nb_grid_group_at(&s->grid, s->out, row, begin, &is);
        double by_scale = 0, by_offset = 0;
        if (is.scale == 0)
            continue;
        for (int64_t c = row * n + begin; c < row * n + end; c++) {
            by_scale += (double)s->grad[c] * ((double)s->value[c] - (double)is.offset);
            by_offset += (double)s->grad[c];
        }
        const double first = (double)s->first[i].scale;
        descend(p, &l[0], by_scale / (double)is.scale * first);
        if (s->grid.has_offset)
            descend(p, &l[1], by_offset * first);
    }
}

nb_status nb_scales_init(nb_scales *s, nb_mat *out, nb_pool *pool, nb_err *err)
{
    nb_scales_free(s);
    nb_scales made = {.out = out};
    if (grid_that_learns(out, out->nested.code != NULL, &made.grid))
        made.n_groups = groups_of_row(&made.grid, out);
    const size_t floats = aligned((size_t)(out->n_rows * out->n_cols) * sizeof(float));
    NB_TRY(nb_alloc(&made.memory, (size_t)nb_scales_bytes(out->n_rows, out->n_cols, made.n_groups),
                    1, err));
    made.value = made.memory;
    made.grad = (void *)((uint8_t *)made.memory + floats);
    made.first = (void *)((uint8_t *)made.memory + 2 * floats);
    *s = made;
    const pass p = {.s = s};
    nb_by_row(s->out, pool, start_row, &p);
    return NB_OK;
}

void nb_scales_set(nb_scales *s, const float *from, nb_pool *pool)
{
    const pass p = {.s = s, .from = from};
    nb_by_row(s->out, pool, set_row, &p);
}

void nb_scales_step(const nb_scales *s, float *to, int64_t step, double rate, nb_pool *pool)
{
    double mean = 1, square = 1;
    for (int64_t i = 0; i < step; i++) {
        mean *= BETA1;
        square *= BETA2;
    }
    const pass p = {
        .s = s, .to = to, .rate = rate, .mean_share = 1 - mean, .square_share = 1 - square};
    nb_by_row(s->out, pool, step_row, &p);
}
