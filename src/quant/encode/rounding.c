/* See rounding.h. One pass over a row does everything: gradients of its factors and of V, the step,
 * the new scale, the new codes. A group is small enough to stay in the cache meanwhile. */
#include "quant/encode/rounding.h"

#include "quant/encode/by_row.h"

#include <math.h>
#include <string.h>

/* The factors stay in here: below, most weights would be clipped; above, levels are wasted. */
#define FACTOR_LEAST 0.5f
#define FACTOR_MOST  1.2f
/* Of a step, from a level to a place that still rounds to it. */
#define INSIDE 0.4375f
enum { PIECE = 64 };

/* ---- memory ---- */

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* The parts, in bytes from the start of `memory`; returns their end. */
static size_t lay_out(nb_rounding *r, int64_t n_rows, int64_t n_cols, int64_t n_groups)
{
    const size_t n = (size_t)(n_rows * n_cols), g = (size_t)(n_rows * n_groups);
    const size_t floats = aligned(n * sizeof(float)), bytes = aligned(n);
    const size_t groups = aligned(g * sizeof(nb_grid_group)), factors = aligned(g * sizeof(float));
    uint8_t *at = r->memory;
    if (at != NULL) {
        r->value = (void *)at;
        r->grad = (void *)(at + floats);
        r->v = (void *)(at + 2 * floats);
        r->group = (void *)(at + 3 * floats);
        r->first_group = (void *)(at + 3 * floats + groups);
        r->kept_group = (void *)(at + 3 * floats + 2 * groups);
        r->top = (void *)(at + 3 * floats + 3 * groups);
        r->bottom = (void *)(at + 3 * floats + 3 * groups + factors);
        r->code = at + 3 * floats + 3 * groups + 2 * factors;
        r->kept_code = r->code + bytes;
    }
    return 3 * floats + 3 * groups + 2 * factors + 2 * bytes;
}

int64_t nb_rounding_bytes(int64_t n_rows, int64_t n_cols, int64_t n_groups)
{
    nb_rounding none = {0};
    return (int64_t)lay_out(&none, n_rows, n_cols, n_groups);
}

void nb_rounding_free(nb_rounding *r)
{
    nb_free(r->memory);
    nb_free(r->moved);
    *r = (nb_rounding){0};
}

/* ---- codes ---- */

static float level_low(const nb_rounding *r)
{
    return r->grid.level[0];
}

static float level_high(const nb_rounding *r)
{
    return r->grid.level[r->grid.n_levels - 1];
}

/* The distance of the two levels around u, or of the two at that end. */
static float level_step(const nb_grid *grid, float u)
{
    if (grid->uniform)
        return 1;
    const float *at = grid->level;
    for (int n = grid->n_levels - 1; n > 1; n -= n / 2)
        at = at[n / 2] <= u ? at + n / 2 : at;
    return at[1] - at[0];
}

/* Where w lies among the levels. */
static inline float place(const nb_grid_group *g, float w)
{
    return (w - g->offset) / g->scale + (float)g->zero;
}

/* The codes and values of columns [col, col + n) of a row, one group: of w moved by V steps. */
static void round_group(nb_rounding *r, const nb_grid_group *g, int64_t at, int64_t n)
{
    float moved[PIECE];
    for (int64_t begin = 0; begin < n; begin += PIECE) {
        const int64_t count = n - begin < PIECE ? n - begin : PIECE;
        const float *w = r->w + at + begin, *v = r->v + at + begin;
        uint8_t *code = r->code + at + begin;
        float *value = r->value + at + begin;
        for (int64_t i = 0; i < count; i++) {
            const float step = r->grid.uniform ? 1 : level_step(&r->grid, place(g, w[i]));
            moved[i] = w[i] + g->scale * step * v[i];
        }
        nb_grid_nearest_n(&r->grid, g, moved, count, code);
        if (g->offset == 0) { /* the same without a call for the fused step */
            for (int64_t i = 0; i < count; i++)
                value[i] = g->scale * (r->grid.level[code[i]] - (float)g->zero);
            continue;
        }
        for (int64_t i = 0; i < count; i++)
            value[i] = nb_grid_value(&r->grid, g, code[i]);
    }
}

/* ---- the range ---- */

/* Whether both ends of the range can move by themselves. */
static bool two_ends(const nb_rounding *r)
{
    return r->grid.has_zero || r->grid.has_offset;
}

/* The values of the lowest and the highest level. */
static float bottom_of(const nb_rounding *r, const nb_grid_group *g)
{
    return g->offset + g->scale * (level_low(r) - (float)g->zero);
}

static float top_of(const nb_rounding *r, const nb_grid_group *g)
{
    return g->offset + g->scale * (level_high(r) - (float)g->zero);
}

/* Group i with its range scaled by its factors, as it can be stored; where it can not be, the one
 * of before stays. */
static void set_range(nb_rounding *r, int64_t i)
{
    const nb_grid_group *first = &r->first_group[i];
    const int64_t row = i / r->n_groups, col = i % r->n_groups * r->grid.group_len;
    nb_grid_group wanted = {.scale = first->scale * r->top[i]};
    if (two_ends(r)) {
        const float low = level_low(r), high = level_high(r);
        const float bottom = bottom_of(r, first) * r->bottom[i];
        wanted.scale = (top_of(r, first) * r->top[i] - bottom) / (high - low);
        if (r->grid.has_offset) {
            wanted.offset = bottom - wanted.scale * low;
        } else {
            const float zero = rintf(low - bottom / wanted.scale);
            wanted.zero = (int)(zero > low ? zero < high ? zero : high : low);
        }
    }
    if (nb_grid_group_put(&r->grid, r->out, row, col, &wanted))
        nb_grid_group_at(&r->grid, r->out, row, col, &r->group[i]);
}

static float sign(float x)
{
    return x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f;
}

static float descend(float x, float slope, float rate, float least, float most)
{
    x -= rate * sign(slope);
    return x < least ? least : x > most ? most : x;
}

/* ---- a step ---- */

/* Moves V, and gives the slopes of the loss by the scale (with the bottom of the range held) and by
 * the bottom. Rounding counts as the identity, and V has no slope where the range clips:
 *
 *   value = bottom + scale * (clip(round(u + V)) - lowest level),   u = (w - bottom) / scale
 *
 * The sums are in binary64, ascending. */
static void move_group(nb_rounding *r, const nb_grid_group *g, int64_t at, int64_t n, float rate,
                       double *by_scale, double *by_bottom)
{
    const nb_grid *grid = &r->grid;
    const bool uniform = grid->uniform, fixed_bottom = two_ends(r);
    const float lowest = level_low(r), from = fixed_bottom ? lowest : 0;
    const float least = lowest - 0.5f * level_step(grid, lowest);
    const float most = level_high(r) + 0.5f * level_step(grid, level_high(r));
    const float toward = sign(g->scale) * rate;
    double scale_sum = 0, bottom_sum = 0;
    for (int64_t i = at; i < at + n; i++) {
        const float u = place(g, r->w[i]), step = uniform ? 1 : level_step(grid, u);
        const float t = u + step * r->v[i], slope = r->grad[i], q = grid->level[r->code[i]];
        if (t >= least && t <= most) {
            r->v[i] = descend(r->v[i], slope, toward, -0.5f, 0.5f);
            scale_sum += (double)(slope * (q - u));
        } else {
            scale_sum += (double)(slope * (q - from));
            bottom_sum += (double)slope;
        }
    }
    *by_scale = scale_sum;
    *by_bottom = bottom_sum;
}

/* A factor's step moves the outermost of n levels by n / 2 times what it moves the first one by,
 * and all weights of the group at once: with many levels the noise of the signs would do more harm
 * than the factor can do good. Of the error of rounding to nearest, on held-out text, a block of a
 * 135M model kept after 40 steps, without factors and with: 0.520 and 0.492 at 2 bits, 0.545 and
 * 0.539 at 3, 0.529 and 0.519 at 4; at 4 bits with the whole rate 0.668. */
static void step_group(nb_rounding *r, int64_t i, int64_t at, int64_t n, float rate,
                       float range_rate)
{
    const float levels = (float)r->grid.n_levels;
    if (r->group[i].scale == 0) /* all of it is 0 */
        return;
    range_rate *= levels > 4 ? 16 / (levels * levels) : 1;
    double by_scale, by_bottom;
    move_group(r, &r->group[i], at, n, rate, &by_scale, &by_bottom);
    if (range_rate > 0) {
        const nb_grid_group *first = &r->first_group[i];
        if (!two_ends(r)) {
            r->top[i] = descend(r->top[i], sign((float)by_scale) * sign(first->scale), range_rate,
                                FACTOR_LEAST, FACTOR_MOST);
        } else { /* scale = (top - bottom) / (highest - lowest level) */
            const double by_top = by_scale / (double)(level_high(r) - level_low(r));
            r->top[i] = descend(r->top[i], sign((float)by_top) * sign(top_of(r, first)), range_rate,
                                FACTOR_LEAST, FACTOR_MOST);
            r->bottom[i] =
                descend(r->bottom[i], sign((float)(by_bottom - by_top)) * sign(bottom_of(r, first)),
                        range_rate, FACTOR_LEAST, FACTOR_MOST);
        }
        set_range(r, i);
    }
    round_group(r, &r->group[i], at, n);
}

/* ---- by rows, on the pool ---- */

typedef struct {
    nb_rounding *r;
    const float *importance;
    float rate, range_rate;
} pass;

static int64_t group_len(const nb_rounding *r, int64_t group)
{
    const int64_t left = r->out->n_cols - group * r->grid.group_len;
    return left < r->grid.group_len ? left : r->grid.group_len;
}

static void fit_row(const void *context, int64_t row)
{
    const pass *p = context;
    nb_grid_fit_rows(&p->r->grid, p->r->out, row, row + 1, p->r->w, p->importance, NB_FIT_SEARCH);
}

/* Codes of the scales of the moment. */
static void round_row(const void *context, int64_t row)
{
    const pass *p = context;
    nb_rounding *r = p->r;
    for (int64_t g = 0; g < r->n_groups; g++)
        round_group(r, &r->group[row * r->n_groups + g],
                    row * r->out->n_cols + g * r->grid.group_len, group_len(r, g));
}

static void start_row(const void *context, int64_t row)
{
    const pass *p = context;
    nb_rounding *r = p->r;
    for (int64_t g = 0; g < r->n_groups; g++) {
        const int64_t i = row * r->n_groups + g;
        nb_grid_group_at(&r->grid, r->out, row, g * r->grid.group_len, &r->group[i]);
        r->first_group[i] = r->group[i];
        r->top[i] = r->bottom[i] = 1;
    }
    round_row(context, row);
}

/* Weights that round to the codes in `out`: those that do so already, and others at a place just
 * inside of what rounds to their code. */
static void move_row(const void *context, int64_t row)
{
    const pass *p = context;
    nb_rounding *r = p->r;
    const int64_t at = row * r->out->n_cols;
    float *w = r->moved + at, *value = r->value + at;
    r->out->fmt->decode_row(r->out, row, value);
    for (int64_t g = 0; g < r->n_groups; g++) {
        nb_grid_group group;
        const int64_t begin = g * r->grid.group_len, end = begin + group_len(r, g);
        nb_grid_group_at(&r->grid, r->out, row, begin, &group);
        for (int64_t i = begin; i < end; i++) {
            const int wanted = nb_grid_nearest(&r->grid, &group, value[i]);
            if (nb_grid_nearest(&r->grid, &group, w[i]) == wanted)
                continue;
            const float inside = value[i] + INSIDE * (w[i] - value[i] > 0 ? 1.0f : -1.0f) *
                                                fabsf(group.scale) *
                                                level_step(&r->grid, r->grid.level[wanted]);
            w[i] = nb_grid_nearest(&r->grid, &group, inside) == wanted ? inside : value[i];
        }
    }
}

static void step_row(const void *context, int64_t row)
{
    const pass *p = context;
    nb_rounding *r = p->r;
    for (int64_t g = 0; g < r->n_groups; g++)
        step_group(r, row * r->n_groups + g, row * r->out->n_cols + g * r->grid.group_len,
                   group_len(r, g), p->rate, p->range_rate);
}

/* Values of codes, and codes and scales into `out`. */
static void value_row(const void *context, int64_t row)
{
    const pass *p = context;
    nb_rounding *r = p->r;
    for (int64_t g = 0; g < r->n_groups; g++) {
        const int64_t at = row * r->out->n_cols + g * r->grid.group_len;
        for (int64_t i = 0; i < group_len(r, g); i++)
            r->value[at + i] =
                nb_grid_value(&r->grid, &r->group[row * r->n_groups + g], r->code[at + i]);
    }
}

static void write_row(const void *context, int64_t row)
{
    const pass *p = context;
    nb_rounding *r = p->r;
    nb_mat *m = r->out;
    for (int64_t g = 0; g < r->n_groups; g++) {
        const nb_grid_group *group = &r->group[row * r->n_groups + g];
        nb_grid_group stored;
        nb_grid_group_at(&r->grid, m, row, g * r->grid.group_len, &stored);
        if (stored.scale != group->scale || stored.offset != group->offset ||
            stored.zero != group->zero)
            nb_grid_group_put(&r->grid, m, row, g * r->grid.group_len, group);
    }
    nb_grid_put(&r->grid, m, row, 0, r->code + row * m->n_cols, m->n_cols);
}

/* The memory of a rounding; nothing is rounded yet. */
static nb_status open_rounding(nb_rounding *r, nb_mat *out, const float *w, nb_err *err)
{
    nb_rounding made = {.out = out, .w = w};
    NB_TRY(nb_grid_of(&made.grid, out, err));
    made.n_groups = (out->n_cols + made.grid.group_len - 1) / made.grid.group_len;
    const size_t bytes = lay_out(&made, out->n_rows, out->n_cols, made.n_groups);
    NB_TRY(nb_alloc(&made.memory, bytes, 1, err));
    lay_out(&made, out->n_rows, out->n_cols, made.n_groups);
    *r = made;
    return NB_OK;
}

nb_status nb_rounding_init(nb_rounding *r, nb_mat *out, const float *w, const float *importance,
                           nb_pool *pool, nb_err *err)
{
    NB_TRY(open_rounding(r, out, w, err));
    const pass p = {.r = r, .importance = importance};
    if (r->grid.whole)
        nb_grid_fit_rows(&r->grid, out, 0, out->n_rows, w, importance, NB_FIT_SEARCH);
    else
        nb_by_row(r->out, pool, fit_row, &p);
    nb_by_row(r->out, pool, start_row, &p);
    nb_rounding_keep(r);
    return NB_OK;
}

nb_status nb_rounding_resume(nb_rounding *r, nb_mat *out, const float *w, nb_pool *pool,
                             nb_err *err)
{
    const int64_t n = out->n_rows * out->n_cols;
    nb_rounding made;
    NB_TRY(open_rounding(&made, out, w, err));
    const nb_status s = NB_ALLOC(&made.moved, n, err);
    if (s != NB_OK) {
        nb_rounding_free(&made);
        return s;
    }
    memcpy(made.moved, w, (size_t)n * sizeof *w);
    made.w = made.moved;
    *r = made;
    const pass p = {.r = r};
    nb_by_row(r->out, pool, move_row, &p);
    nb_by_row(r->out, pool, start_row, &p);
    nb_rounding_keep(r);
    return NB_OK;
}

void nb_rounding_step(nb_rounding *r, nb_pool *pool, float rate, float range_rate)
{
    const pass p = {.r = r, .rate = rate, .range_rate = range_rate};
    nb_by_row(r->out, pool, step_row, &p);
}

void nb_rounding_keep(nb_rounding *r)
{
    memcpy(r->kept_code, r->code, (size_t)(r->out->n_rows * r->out->n_cols));
    memcpy(r->kept_group, r->group, (size_t)(r->out->n_rows * r->n_groups) * sizeof *r->group);
}

void nb_rounding_swap(nb_rounding *r, nb_pool *pool)
{
    const pass p = {.r = r};
    uint8_t *const code = r->code;
    nb_grid_group *const group = r->group;
    r->code = r->kept_code;
    r->kept_code = code;
    r->group = r->kept_group;
    r->kept_group = group;
    nb_by_row(r->out, pool, value_row, &p);
}

void nb_rounding_restart(nb_rounding *r, nb_pool *pool)
{
    const pass p = {.r = r};
    memset(r->v, 0, (size_t)(r->out->n_rows * r->out->n_cols) * sizeof *r->v);
    memcpy(r->group, r->first_group, (size_t)(r->out->n_rows * r->n_groups) * sizeof *r->group);
    nb_by_row(r->out, pool, round_row, &p);
}

void nb_rounding_write(nb_rounding *r, nb_pool *pool)
{
    const pass p = {.r = r};
    nb_by_row(r->out, pool, write_row, &p);
}
