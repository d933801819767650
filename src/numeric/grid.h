/* The grid of a quantized matrix: which values its codes can stand for, and how the scales of a
 * group are chosen and stored. What every encoder that picks codes one by one works through, so
 * that methods and formats combine freely.
 *
 *   value = fma(scale, level[code] - zero, offset)    = what decode_row gives, bit for bit
 *
 * Grid codes 0 .. n_levels - 1 count the levels upwards; how a format stores them is its own
 * business. `offset` is 0 in formats without minimums (then the value is fl(scale * (level -
 * zero))), `zero` is 0 in formats without zero points. */
#ifndef NB_NUMERIC_GRID_H
#define NB_NUMERIC_GRID_H

#include "numeric/format.h"

typedef struct {
    int n_levels;
    const float *level; /* [n_levels], ascending */
    bool uniform;       /* level[i] = level[0] + i */
    int64_t group_len;  /* columns that share a scale */
    int64_t span_len;   /* columns whose scales are chosen and stored together: group_len, or a
                           super-block; n_cols where a row has to be known whole */
    bool whole;         /* scales depend on the whole matrix: nb_grid_fit_rows only */
    bool has_zero, has_offset; /* whether a group may have another zero or offset than 0 */
} nb_grid;

/* The scale of one group, as stored. */
typedef struct {
    float scale, offset;
    int zero;
} nb_grid_group;

/* How hard to search for a scale. */
typedef enum {
    NB_FIT_ABSMAX, /* the extremes of the group, no search: as encode_row, except for formats
                      whose encode_row searches too (iq4_nl, q2_k .. q6_k) */
    NB_FIT_SEARCH, /* least sum of importance * (w - value)^2 over candidates around them, and a
                      least-squares refit */
} nb_fit;

/* What a format tells of its grid: nb_format's member `grid`. Spans are cut to the row: n is
 * span_len or what is left. The functions of grid.c check what they are given; these need not. */
typedef struct nb_grid_form {
    void (*shape)(const nb_mat *m, nb_grid *grid);
    /* As nb_grid_fit; a search may end up worse than the extremes, which grid.c then stores. */
    void (*fit)(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w,
                const float *importance, int64_t n, nb_fit fit);
    void (*group_at)(const nb_mat *m, int64_t r, int64_t col, nb_grid_group *out);
    /* Rounds as it is stored; false, and nothing stored, where it cannot be. NULL: groups depend on
     * each other. */
    bool (*group_put)(nb_mat *m, int64_t r, int64_t col, const nb_grid_group *g);
    void (*put)(nb_mat *m, int64_t r, int64_t col, const uint8_t *code, int64_t n);
    /* With grid->whole, in place of fit. */
    void (*fit_whole)(const nb_grid *grid, nb_mat *m, const float *w, const float *importance,
                      nb_fit fit);
} nb_grid_form;

/* -128 .. 255: uniform levels are a part of it. */
extern const float nb_grid_integers[384];

/* The grid of matrices like m (codes and scales are not looked at). NB_UNSUPPORTED for formats that
 * have none ("f32 has no grid"). */
nb_status nb_grid_of(nb_grid *grid, const nb_mat *m, nb_err *err);

/* Chooses the scales of the span of row r that starts at column col, a multiple of span_len, for
 * the values w[0, n), n = span_len or what is left of the row, and stores them in m.
 * importance[0, n): weights of the squared errors, >= 0, not all need be positive; NULL: all equal.
 * Candidates are compared in binary64 with codes taken by the scale as stored; the first wins ties.
 * Never worse than NB_FIT_ABSMAX by that measure. w is finite, and then so are all values: scales
 * that their type would round to infinity are its largest number, and codes that would still mean
 * infinity are not chosen. Columns whose importance is 0 count a millionth of the mean, so that a
 * choice between equals is decided by them; where all are 0, all are equal. */
void nb_grid_fit(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w,
                 const float *importance, nb_fit fit);
/* The same for rows [begin, end) at once, w [m->n_rows][n_cols]; importance [n_cols] serves all
 * rows. With grid->whole, begin is 0 and end is n_rows. */
void nb_grid_fit_rows(const nb_grid *grid, nb_mat *m, int64_t begin, int64_t end, const float *w,
                      const float *importance, nb_fit fit);

/* The stored scale of the group that column col of row r belongs to. */
void nb_grid_group_at(const nb_grid *grid, const nb_mat *m, int64_t r, int64_t col,
                      nb_grid_group *out);

/* Stores another scale, zero and offset, as the format rounds them, for encoders that refine scales
 * themselves. False, with nothing stored, where the format cannot: its groups depend on each other
 * (K-quants), the scale rounds to 0, or the zero is none of its codes. */
bool nb_grid_group_put(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col,
                       const nb_grid_group *g);

/* Stores codes of row r for columns [col, col + n); col and n are multiples of group_len, or n
 * reaches the end of the row. */
void nb_grid_put(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const uint8_t *code,
                 int64_t n);

/* The columns from `col` on that belong to its span: span_len or what is left of the row. */
static inline int64_t nb_grid_span_at(const nb_grid *grid, const nb_mat *m, int64_t col)
{
    return m->n_cols - col < grid->span_len ? m->n_cols - col : grid->span_len;
}

static inline float nb_grid_value(const nb_grid *grid, const nb_grid_group *g, int code)
{
    const float step = grid->level[code] - (float)g->zero;
    return g->offset == 0 ? g->scale * step : __builtin_fmaf(g->scale, step, g->offset);
}

/* The code whose value is nearest to x (the lower code on ties, up to rounding of the division).
 * A scale of 0 gives the code whose level is nearest to zero. */
int nb_grid_nearest(const nb_grid *grid, const nb_grid_group *g, float x);
/* nb_grid_nearest for n values of one group. */
void nb_grid_nearest_n(const nb_grid *grid, const nb_grid_group *g, const float *x, int64_t n,
                       uint8_t *code);
/* Stores the nearest codes of row r, under the scales that are stored, for x [n_cols]. */
void nb_grid_round_row(const nb_grid *grid, nb_mat *m, int64_t r, const float *x);
/* Sum of importance * (x - nearest value)^2 over one group, in binary64, ascending; importance
 * NULL: all 1. */
double nb_grid_loss(const nb_grid *grid, const nb_grid_group *g, const float *x,
                    const float *importance, int64_t n);

#endif
