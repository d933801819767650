/* Coordinate descent after the recursion: each code in turn becomes the best one given all others,
 * those before it included, which the recursion could not know yet. With g = e H', changing a value
 * by d changes the loss by d^2 H'[k][k] - 2 d g_k: the value nearest to q_k + g_k / H'[k][k] wins,
 * and g moves by -d times row k of H'. The loss never rises.
 *
 * Scales were fitted before the codes of later groups were known, so with `refit` each scale in
 * turn becomes the best one given all codes, by the same rule with a group's levels v in place of a
 * column: d = v g^T / v H' v^T, as far as the scale can be stored; then the codes have their turn
 * again. */
#include "quant/encode/gptq.h"

#include <float.h>
#include <string.h>

#define CHUNK_ROWS 8

typedef struct {
    nb_recursion *c;
    const float *full; /* H', [n][n] */
    float *e;          /* [n_rows][n] */
    int64_t *place;    /* [n]: where a column is in the order of H' */
    float *y;          /* [n_threads][n] */
} polishing;

static void value_at(const nb_recursion *c, int64_t r, int64_t col, nb_grid_group *group,
                     int64_t *at)
{
    if (col / c->grid.group_len != *at) {
        nb_grid_group_at(&c->grid, c->job->out, r, col, group);
        *at = col / c->grid.group_len;
    }
}

static void error_row(void *context, int64_t r, int thread)
{
    (void)thread;
    const polishing *p = context;
    const nb_recursion *c = p->c;
    nb_grid_group group;
    int64_t at = -1;
    for (int64_t k = 0; k < c->n; k++) {
        const int64_t col = c->job->feedback->order[k];
        value_at(c, r, col, &group, &at);
        const float e =
            c->base[r * c->n + k] - nb_grid_value(&c->grid, &group, c->code[r * c->n + col]);
        p->e[r * c->n + k] = e;
    }
}

/* Whether any code changed. */
static bool sweep_row(const polishing *p, int64_t r)
{
    const nb_recursion *c = p->c;
    nb_axpy_fn *const axpy = c->job->la->kernels->axpy;
    float *g = c->t + r * c->n;
    uint8_t *code = c->code + r * c->n;
    nb_grid_group group;
    int64_t at = -1;
    bool changed = false;
    for (int64_t k = 0; k < c->n; k++) {
        const int64_t col = c->job->feedback->order[k];
        const float *h = p->full + k * c->n;
        value_at(c, r, col, &group, &at);
        const float is = nb_grid_value(&c->grid, &group, code[col]);
        const float want = is + g[k] / h[k];
        if (!(want >= -FLT_MAX && want <= FLT_MAX))
            continue;
        const int q = nb_grid_nearest(&c->grid, &group, want);
        const float d = nb_grid_value(&c->grid, &group, q) - is;
        if (q == code[col] ||
            !((double)d * (double)d * (double)h[k] < 2 * (double)d * (double)g[k]))
            continue;
        code[col] = (uint8_t)q;
        axpy(g, -d, h, c->n);
        changed = true;
    }
    return changed;
}

/* ---- scales ---- */

/* Rounds of scales and codes after the first sweeps. */
#define REFITS 2

/* A group under way: what a change by one unit does to g, and to the loss. */
typedef struct {
    int64_t begin, n; /* columns */
    float *y;         /* v H' */
    double slope, curve;
} change;

/* By the scale, or (all levels 1) by the offset. */
static float unit(const nb_recursion *c, const nb_grid_group *group, int code, bool by_offset)
{
    return by_offset ? 1.0f : c->grid.level[code] - (float)group->zero;
}

static change change_of(const polishing *p, int64_t r, int64_t begin, const nb_grid_group *group,
                        bool by_offset, float *y)
{
    const nb_recursion *c = p->c;
    const int64_t left = c->n - begin;
    change x = {.begin = begin, .n = left < c->grid.group_len ? left : c->grid.group_len, .y = y};
    const uint8_t *code = c->code + r * c->n + begin;
    const int64_t *place = p->place + begin;
    const float *g = c->t + r * c->n;
    memset(y, 0, (size_t)c->n * sizeof *y);
    for (int64_t i = 0; i < x.n; i++) {
        const float v = unit(c, group, code[i], by_offset);
        if (v != 0)
            c->job->la->kernels->axpy(y, v, p->full + place[i] * c->n, c->n);
    }
    for (int64_t i = 0; i < x.n; i++) {
        const double v = (double)unit(c, group, code[i], by_offset);
        x.slope += v * (double)g[place[i]];
        x.curve += v * (double)y[place[i]];
    }
    return x;
}

static bool all_finite(const nb_recursion *c, const nb_grid_group *group, const uint8_t *code,
                       int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float value = nb_grid_value(&c->grid, group, code[i]);
        if (!(value >= -FLT_MAX && value <= FLT_MAX))
            return false;
    }
    return true;
}

/* Whether the group's scale, or offset, changed. */
static bool refit_group(const polishing *p, int64_t r, int64_t begin, bool by_offset, float *y)
{
    nb_recursion *c = p->c;
    nb_grid_group is, wanted, stored;
    nb_grid_group_at(&c->grid, c->job->out, r, begin, &is);
    const change x = change_of(p, r, begin, &is, by_offset, y);
    if (is.scale == 0 || !(x.curve > 0))
        return false;
    wanted = is;
    if (by_offset)
        wanted.offset = (float)((double)is.offset + x.slope / x.curve);
    else
        wanted.scale = (float)((double)is.scale + x.slope / x.curve);
    if (!nb_grid_group_put(&c->grid, c->job->out, r, begin, &wanted))
        return false;
    nb_grid_group_at(&c->grid, c->job->out, r, begin, &stored);
    const float d = by_offset ? stored.offset - is.offset : stored.scale - is.scale;
    const bool alone = by_offset ? stored.scale == is.scale : stored.offset == is.offset;
    if (!alone || stored.zero != is.zero ||
        !all_finite(c, &stored, c->code + r * c->n + begin, x.n) ||
        !((double)d * (double)d * x.curve < 2 * (double)d * x.slope)) {
        (void)nb_grid_group_put(&c->grid, c->job->out, r, begin, &is);
        return false;
    }
    c->job->la->kernels->axpy(c->t + r * c->n, -d, x.y, c->n);
    return true;
}

static bool refit_row(const polishing *p, int64_t r, float *y)
{
    const nb_grid *grid = &p->c->grid;
    bool changed = false;
    for (int64_t begin = 0; begin < p->c->n; begin += grid->group_len) {
        changed |= refit_group(p, r, begin, false, y);
        if (grid->has_offset)
            changed |= refit_group(p, r, begin, true, y);
    }
    return changed;
}

static void sweep_codes(const polishing *p, int64_t r)
{
    int n_left = p->c->job->options->polish;
    while (n_left > 0 && sweep_row(p, r))
        n_left--;
}

static void sweep_chunk(void *context, int64_t chunk, int thread)
{
    const polishing *p = context;
    float *y = p->y + thread * p->c->n;
    for (int64_t r = chunk * CHUNK_ROWS; r < p->c->n_rows && r < (chunk + 1) * CHUNK_ROWS; r++) {
        sweep_codes(p, r);
        for (int i = 0; i < REFITS && p->c->job->refit && refit_row(p, r, y); i++)
            sweep_codes(p, r);
    }
}

nb_status nb_gptq_polish(nb_recursion *c, nb_err *err)
{
    const nb_gptq_job *job = c->job;
    nb_algebra *la = job->la;
    polishing p = {.c = c};
    float *full = NULL;
    uint8_t *scratch = NULL;
    nb_status s = NB_OK;
    p.full = job->full;
    if (p.full == NULL) {
        NB_TRY_GOTO(s, NB_ALLOC(&full, c->n * c->n, err));
        NB_TRY_GOTO(s, nb_feedback_full(job->feedback, la, job->moments, job->shrink, full, err));
        p.full = full;
    }
    NB_TRY_GOTO(s, NB_ALLOC(&p.e, c->n_rows * c->n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&p.place, c->n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&p.y, nb_pool_n_threads(la->pool) * c->n, err));
    for (int64_t k = 0; k < c->n; k++)
        p.place[job->feedback->order[k]] = k;
    NB_TRY_GOTO(
        s,
        NB_ALLOC(&scratch,
                 nb_matmul_scratch_bytes(c->n_rows, c->n, c->n, nb_pool_n_threads(la->pool)), err));
    nb_pool_run(la->pool, c->n_rows, error_row, &p);
    const nb_matmul_job gradient = {
        .c = c->t, /* its work is done */
        .ldc = c->n,
        .m = c->n_rows,
        .n = c->n,
        .depth = c->n,
        .a = {p.e, c->n, 1},
        .b = {p.full, c->n, 1},
    };
    nb_matmul(la->kernels, la->pool, &gradient, scratch);
    nb_pool_run(la->pool, (c->n_rows + CHUNK_ROWS - 1) / CHUNK_ROWS, sweep_chunk, &p);
done:
    nb_free(full);
    nb_free(p.e);
    nb_free(p.place);
    nb_free(p.y);
    nb_free(scratch);
    return s;
}
