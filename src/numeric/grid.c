/* See grid.h. What a format's grid looks like is said by the format; here is what follows from it:
 * nearest codes, losses, and the promise that a search is never worse than no search. */
#include "numeric/grid.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define FOUR(x)    (x), (x) + 1, (x) + 2, (x) + 3
#define SIXTEEN(x) FOUR(x), FOUR((x) + 4), FOUR((x) + 8), FOUR((x) + 12)
#define SIXTY(x)   SIXTEEN(x), SIXTEEN((x) + 16), SIXTEEN((x) + 32), SIXTEEN((x) + 48)
const float nb_grid_integers[384] = {SIXTY(-128), SIXTY(-64), SIXTY(0),
                                     SIXTY(64),   SIXTY(128), SIXTY(192)};

/* Columns are done in pieces of a constant length, because compilers turn such loops into vector
 * code at -O2. A shorter piece is padded. */
#define PIECE 32

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- nearest codes ---- */

/* The codes of a group that mean finite numbers, and the steps they stand for. Only scales next to
 * FLT_MAX make some of them infinite. */
typedef struct {
    int first, last;
    float lo, hi;
} usable;

static bool means_infinity(const nb_grid *grid, const nb_grid_group *g, int code)
{
    return !(fabsf(nb_grid_value(grid, g, code)) <= FLT_MAX);
}

static usable usable_codes(const nb_grid *grid, const nb_grid_group *g)
{
    usable u = {.last = grid->n_levels - 1};
    if (fabsf(g->scale) > 0x1p100f) {
        while (u.first < u.last && means_infinity(grid, g, u.first))
            u.first++;
        while (u.last > u.first && means_infinity(grid, g, u.last))
            u.last--;
    }
    u.lo = grid->level[u.first] - (float)g->zero;
    u.hi = grid->level[u.last] - (float)g->zero;
    return u;
}

static int code_of_zero(const nb_grid *grid)
{
    int best = 0;
    for (int i = 1; i < grid->n_levels; i++) {
        if (fabsf(grid->level[i]) < fabsf(grid->level[best]))
            best = i;
    }
    return best;
}

/* Adding 1.5 * 2^23 leaves the quotient, rounded to nearest even by the adder, in the low bits of
 * the sum; where that went up from halfway, the code below is as near. */
static inline uint8_t uniform_code(float x, const nb_grid_group *g, const usable *u, uint32_t base)
{
    float t = (x - g->offset) / g->scale;
    t = t > u->lo ? t : u->lo;
    t = t < u->hi ? t : u->hi;
    float rounded = (t + 0x1.8p23f) - 0x1.8p23f;
    rounded -= rounded - t == 0.5f ? 1.0f : 0.0f;
    return (uint8_t)(nb_f32_bits(rounded + 0x1.8p23f) - base);
}

static uint32_t uniform_base(const nb_grid *grid, const nb_grid_group *g)
{
    return 0x4b400000u + (uint32_t)((int)grid->level[0] - g->zero);
}

static void uniform_piece(uint8_t *restrict code, const float *restrict x, const nb_grid_group *g,
                          const usable *u, uint32_t base)
{
    const nb_grid_group group = *g;
    const usable range = *u;
    for (int i = 0; i < PIECE; i++)
        code[i] = uniform_code(x[i], &group, &range, base);
}

static void uniform_codes(const nb_grid *grid, const nb_grid_group *g, const usable *u,
                          const float *x, int64_t n, uint8_t *code)
{
    const uint32_t base = uniform_base(grid, g);
    for (int64_t c = 0; c < n; c += PIECE) {
        if (c + PIECE <= n) {
            uniform_piece(code + c, x + c, g, u, base);
            continue;
        }
        float padded[PIECE] = {0};
        uint8_t full[PIECE];
        memcpy(padded, x + c, (size_t)(n - c) * sizeof *x);
        uniform_piece(full, padded, g, u, base);
        memcpy(code + c, full, (size_t)(n - c));
    }
}

/* Halving the range of levels without a branch: which way it goes cannot be foretold. */
static uint8_t table_code(const nb_grid *grid, const nb_grid_group *g, const usable *u, float x)
{
    float t = (x - g->offset) / g->scale;
    t = t > u->lo ? t : u->lo;
    t = t < u->hi ? t : u->hi;
    t += (float)g->zero;
    const float *at = grid->level + u->first;
    for (int n = u->last - u->first + 1; n > 1; n -= n / 2)
        at = at[n / 2] <= t ? at + n / 2 : at;
    const int below = (int)(at - grid->level);
    if (below == u->last || t - at[0] <= at[1] - t)
        return (uint8_t)below;
    return (uint8_t)(below + 1);
}

void nb_grid_nearest_n(const nb_grid *grid, const nb_grid_group *g, const float *x, int64_t n,
                       uint8_t *code)
{
    if (g->scale == 0) {
        memset(code, code_of_zero(grid), (size_t)n);
        return;
    }
    const usable u = usable_codes(grid, g);
    if (grid->uniform) {
        uniform_codes(grid, g, &u, x, n, code);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        code[i] = table_code(grid, g, &u, x[i]);
}

int nb_grid_nearest(const nb_grid *grid, const nb_grid_group *g, float x)
{
    if (g->scale == 0)
        return code_of_zero(grid);
    const usable u = usable_codes(grid, g);
    return grid->uniform ? uniform_code(x, g, &u, uniform_base(grid, g))
                         : table_code(grid, g, &u, x);
}

/* ---- losses ---- */

#define CHUNK 128

double nb_grid_loss(const nb_grid *grid, const nb_grid_group *g, const float *x,
                    const float *importance, int64_t n)
{
    double loss = 0;
    for (int64_t c = 0; c < n; c += CHUNK) {
        uint8_t code[CHUNK];
        const int64_t len = smaller(CHUNK, n - c);
        nb_grid_nearest_n(grid, g, x + c, len, code);
        for (int64_t i = 0; i < len; i++) {
            const double e = (double)x[c + i] - (double)nb_grid_value(grid, g, code[i]);
            loss += (importance == NULL ? 1.0 : (double)importance[c + i]) * (e * e);
        }
    }
    return loss;
}

static double span_loss(const nb_grid *grid, const nb_mat *m, int64_t r, int64_t col,
                        const float *w, const float *importance, int64_t n)
{
    double loss = 0;
    for (int64_t c = 0; c < n; c += grid->group_len) {
        nb_grid_group g;
        m->fmt->grid->group_at(m, r, col + c, &g);
        loss += nb_grid_loss(grid, &g, w + c, importance == NULL ? NULL : importance + c,
                             smaller(grid->group_len, n - c));
    }
    return loss;
}

/* ---- fitting ---- */

static bool any_positive(const float *importance, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (importance[i] > 0)
            return true;
    }
    return false;
}

void nb_grid_fit(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w,
                 const float *importance, nb_fit fit)
{
    assert(!grid->whole && col % grid->span_len == 0 && col < m->n_cols);
    const nb_grid_form *form = m->fmt->grid;
    const int64_t n = nb_grid_span_at(grid, m, col);
    if (importance != NULL && !any_positive(importance, n))
        importance = NULL;
    form->fit(grid, m, r, col, w, importance, n, NB_FIT_ABSMAX);
    if (fit == NB_FIT_ABSMAX)
        return;
    const double plain = span_loss(grid, m, r, col, w, importance, n);
    if (plain == 0)
        return;
    form->fit(grid, m, r, col, w, importance, n, fit);
    if (!(span_loss(grid, m, r, col, w, importance, n) < plain))
        form->fit(grid, m, r, col, w, importance, n, NB_FIT_ABSMAX);
}

void nb_grid_fit_rows(const nb_grid *grid, nb_mat *m, int64_t begin, int64_t end, const float *w,
                      const float *importance, nb_fit fit)
{
    if (grid->whole) {
        assert(begin == 0 && end == m->n_rows);
        m->fmt->grid->fit_whole(grid, m, w, importance, fit);
        return;
    }
    for (int64_t r = begin; r < end; r++) {
        for (int64_t c = 0; c < m->n_cols; c += grid->span_len)
            nb_grid_fit(grid, m, r, c, w + r * m->n_cols + c,
                        importance == NULL ? NULL : importance + c, fit);
    }
}

/* ---- what the format does ---- */

nb_status nb_grid_of(nb_grid *grid, const nb_mat *m, nb_err *err)
{
    if (m->fmt->grid == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "%s has no grid", m->fmt->name);
    nb_grid g = {0};
    m->fmt->grid->shape(m, &g);
    assert(g.n_levels > 1 && g.group_len > 0 && g.span_len % g.group_len == 0);
    *grid = g;
    return NB_OK;
}

void nb_grid_group_at(const nb_grid *grid, const nb_mat *m, int64_t r, int64_t col,
                      nb_grid_group *out)
{
    (void)grid;
    m->fmt->grid->group_at(m, r, col, out);
}

bool nb_grid_group_put(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col,
                       const nb_grid_group *g)
{
    if (m->fmt->grid->group_put == NULL)
        return false; /* whatever the group is: those of K-quants have offsets */
    assert((g->zero == 0 || grid->has_zero) && (g->offset == 0 || grid->has_offset));
    return m->fmt->grid->group_put(m, r, col, g);
}

void nb_grid_put(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const uint8_t *code,
                 int64_t n)
{
    assert(col % grid->group_len == 0 && (n % grid->group_len == 0 || col + n == m->n_cols));
    m->fmt->grid->put(m, r, col, code, n);
}

/* Codes of a group that is too long for the stack are stored a piece at a time; pieces have even
 * lengths, and only the last one of a row may be odd. */
static void round_group(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *x,
                        int64_t n)
{
    nb_grid_group g;
    m->fmt->grid->group_at(m, r, col, &g);
    for (int64_t c = 0; c < n; c += 2 * CHUNK) {
        uint8_t code[2 * CHUNK];
        const int64_t len = smaller(2 * CHUNK, n - c);
        nb_grid_nearest_n(grid, &g, x + c, len, code);
        m->fmt->grid->put(m, r, col + c, code, len);
    }
}

void nb_grid_round_row(const nb_grid *grid, nb_mat *m, int64_t r, const float *x)
{
    for (int64_t c = 0; c < m->n_cols; c += grid->group_len)
        round_group(grid, m, r, c, x + c, smaller(grid->group_len, m->n_cols - c));
}
