/* Searching for the scale of levels from a table: as fit.c does for uniform ones, with the sums of
 * p level^2 and p w level, whose quotient is the least-squares scale of the codes they came from.
 * See fit.h. */
#include "numeric/fit.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define MAX_LEVELS 256
#define N_BINS     256
#define FEW_LEVELS 16

/* Levels and the midpoints between neighbours. Where levels are few, the range is also cut into
 * bins, each with the level that is nearest to its middle: next to a midpoint that may be the other
 * one, which costs nearly the same, and it is found at once. */
typedef struct {
    int n;
    double level[MAX_LEVELS], above[MAX_LEVELS - 1];
    double lo, hi, bins_a_unit, bin[N_BINS];
} table;

typedef struct {
    double xl, ll;
} table_sums;

/* Halving without a branch: which way it goes cannot be foretold. */
static inline double nearest_level(const table *t, double v)
{
    int at = 0;
    for (int n = t->n; n > 1; n -= n / 2)
        at = t->above[at + n / 2 - 1] < v ? at + n / 2 : at;
    return t->level[at];
}

static inline double bin_level(const table *t, double v)
{
    v = v > t->lo ? v : t->lo;
    v = v < t->hi ? v : t->hi;
    return t->bin[(int)((v - t->lo) * t->bins_a_unit + 0.5)];
}

static void bins_make(table *t)
{
    t->lo = t->level[0];
    t->hi = t->level[t->n - 1];
    t->bins_a_unit = (N_BINS - 1) / (t->hi - t->lo);
    for (int i = 0, at = 0; i < N_BINS; i++) {
        while (at + 1 < t->n && t->above[at] < t->lo + i / t->bins_a_unit)
            at++;
        t->bin[i] = t->level[at];
    }
}

static void table_make(table *t, const float *level, int n)
{
    assert(n > 1 && n <= MAX_LEVELS);
    t->n = n;
    for (int i = 0; i < n; i++)
        t->level[i] = (double)level[i];
    for (int i = 0; i + 1 < n; i++)
        t->above[i] = 0.5 * (t->level[i] + t->level[i + 1]);
    if (n <= FEW_LEVELS)
        bins_make(t);
}

static double importance_at(const nb_fit_data *d, int64_t i)
{
    return d->importance == NULL ? 1 : (double)d->importance[i] + d->floor;
}

/* Four sums side by side, because each addition waits for the one before. `few` is a constant where
 * this is called. */
#define LANES 4

static inline __attribute__((always_inline)) table_sums sums(const nb_fit_data *d, const table *t,
                                                             double inverse, bool few)
{
    double xl[LANES] = {0}, ll[LANES] = {0};
    for (int64_t begin = 0; begin < d->n; begin += LANES) {
        const int n = (int)(d->n - begin < LANES ? d->n - begin : LANES);
        for (int i = 0; i < n; i++) {
            const double x = (double)d->w[begin + i], p = importance_at(d, begin + i);
            const double l = few ? bin_level(t, x * inverse) : nearest_level(t, x * inverse);
            xl[i] += p * x * l;
            ll[i] += p * l * l;
        }
    }
    return (table_sums){.xl = (xl[0] + xl[2]) + (xl[1] + xl[3]),
                        .ll = (ll[0] + ll[2]) + (ll[1] + ll[3])};
}

static table_sums scan(const nb_fit_data *d, const table *t, double scale)
{
    return t->n <= FEW_LEVELS ? sums(d, t, 1 / scale, true) : sums(d, t, 1 / scale, false);
}

/* ---- the search ---- */

#define N_KEPT   3
#define N_ROUNDS 3

typedef struct {
    double scale, loss;
} trial;

static trial solve(const nb_fit_data *d, const table_sums *sum)
{
    if (!(sum->ll > 0) || sum->xl == 0)
        return (trial){.loss = INFINITY};
    return (trial){.scale = sum->xl / sum->ll, .loss = d->pxx - sum->xl * sum->xl / sum->ll};
}

static void keep_none(trial *kept)
{
    for (int i = 0; i <= N_KEPT; i++)
        kept[i].loss = INFINITY;
}

/* The least losses, in order; of equal ones the first only, for they are the same codes. */
static void keep(trial *kept, const trial *t)
{
    int i = N_KEPT;
    while (i > 0 && t->loss < kept[i - 1].loss)
        i--;
    if (i == N_KEPT || (i > 0 && t->loss == kept[i - 1].loss))
        return;
    memmove(kept + i + 1, kept + i, (size_t)(N_KEPT - 1 - i) * sizeof *kept);
    kept[i] = *t;
}

static void first_trials(const nb_fit_data *d, const table *t, trial *kept)
{
    const double lo = t->level[0], hi = t->level[t->n - 1];
    double full[2];
    nb_fit_full_scales(d, lo, hi, &full[0], &full[1]);
    const bool mirrored = -lo == hi;
    for (int i = 0; i < NB_FIT_N_SHARES; i++) {
        for (int sign = 0; sign < (mirrored ? 1 : 2); sign++) {
            const double scale = full[sign] * nb_fit_share(i);
            if (scale == 0)
                continue;
            const table_sums sum = scan(d, t, scale);
            const trial next = solve(d, &sum);
            keep(kept, &next);
        }
    }
}

/* Kept trials, moved and as stored, of which one may be the best so far; then the best scales for
 * their codes. */
static void refine(const nb_fit_data *d, const table *t, nb_float_type type, bool far, trial *kept,
                   trial *best)
{
    trial from[N_KEPT + 1];
    memcpy(from, kept, sizeof from);
    keep_none(kept);
    const int n_moves = far ? NB_FIT_N_FAR_MOVES : NB_FIT_N_NEIGHBOURS;
    for (int i = 0; i < N_KEPT * n_moves && from[i / n_moves].loss < INFINITY; i++) {
        const double was = from[i / n_moves].scale;
        trial v;
        v.scale = (double)(far ? nb_fit_stored(type, was * (1 + nb_fit_far_move(i % n_moves)))
                               : nb_fit_neighbour(type, was, i % n_moves));
        if (v.scale == 0)
            continue;
        const table_sums sum = scan(d, t, v.scale);
        v.loss = d->pxx - v.scale * (2 * sum.xl - v.scale * sum.ll);
        if (v.loss < best->loss)
            *best = v;
        v = solve(d, &sum);
        keep(kept, &v);
    }
}

float nb_fit_scale_table(const nb_fit_data *d, const float *level, int n_levels, nb_float_type type)
{
    table t;
    trial kept[N_KEPT + 1], best = {.loss = INFINITY};
    table_make(&t, level, n_levels);
    keep_none(kept);
    first_trials(d, &t, kept);
    for (int i = 0; i < N_ROUNDS; i++)
        refine(d, &t, type, i == 0, kept, &best);
    return best.loss < INFINITY ? (float)best.scale : 0.0f;
}
