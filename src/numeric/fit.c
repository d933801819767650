/* Searching for uniform levels: a scale, a scale and a zero point, or a scale and an offset. All
 * three are the same search over points (scale, shift, offset),
 *
 *   value = scale * (u + shift) + offset,   u the code, 0 .. top,
 *
 * because the sums of p u, p u^2 and p w u say both what a point costs with these codes and which
 * point is the best one for them (least squares in what the family is free to choose). So a map is
 * scanned once, and counts as if its scale had been refitted. The three best are then refined: they
 * are moved a little, rounded as they will be stored, codes are taken by those, and the least
 * squares of these codes are the next points. See fit.h. */
#include "numeric/fit.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <float.h>
#include <math.h>

static_assert(NB_F32 == 0 && NB_F16 == 1 && NB_BF16 == 2, "the order of the tables below");
static const double type_max[] = {FLT_MAX, 65504.0, 0x1.fep127};
/* How far a scale is moved to try its neighbours. For F32 that is no rounding, but a small step. */
static const double type_step[] = {0x1p-9, 0x1p-10, 0x1p-7};

/* ---- data ---- */

double nb_fit_floor(const float *importance, int64_t n)
{
    if (importance == NULL)
        return 0;
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)importance[i];
    return 1e-6 * sum / (double)n;
}

void nb_fit_data_init(nb_fit_data *d, const float *w, const float *importance, int64_t n,
                      double floor)
{
    *d = (nb_fit_data){
        .w = w, .importance = importance, .n = n, .floor = floor, .min = w[0], .max = w[0]};
    for (int64_t i = 0; i < n; i++) {
        const double p = importance == NULL ? 1 : (double)importance[i] + floor, x = (double)w[i];
        d->min = w[i] < d->min ? w[i] : d->min;
        d->max = w[i] > d->max ? w[i] : d->max;
        d->p += p;
        d->px += p * x;
        d->pxx += p * x * x;
    }
}

float nb_fit_stored(nb_float_type type, double v)
{
    const double most = type_max[type];
    const float kept = (float)(v > most ? most : v < -most ? -most : v);
    switch (type) {
    case NB_F16:
        return nb_f16_to_f32(nb_f16_from_f32(kept));
    case NB_BF16:
        return nb_bf16_to_f32(nb_bf16_from_f32(kept));
    case NB_F32:
        break;
    }
    return kept;
}

float nb_fit_neighbour(nb_float_type type, double scale, int i)
{
    static const double moves[] = {0, 1, -1};
    return nb_fit_stored(type, scale * (1 + moves[i] * type_step[type]));
}

double nb_fit_far_move(int i)
{
    static const double moves[NB_FIT_N_FAR_MOVES] = {0,     0.006,  -0.006, 0.012, -0.012,
                                                     0.018, -0.018, 0.026,  -0.026};
    return moves[i];
}

/* ---- points ---- */

typedef enum { FREE_SCALE, FREE_ZERO, FREE_OFFSET, FREE_OFFSET_BELOW } freedom;

typedef struct {
    double scale, shift, offset, loss;
} point;

typedef struct {
    const nb_fit_data *d;
    freedom free;
    int top;
    nb_float_type type;
} search;

static nb_fit_map map_of(const point *at)
{
    const double inverse = at->scale != 0 ? 1 / at->scale : 0;
    return (nb_fit_map){.inverse = inverse, .base = -at->shift - at->offset * inverse};
}

/* What a point costs with the codes of these sums. */
static double loss_of(const search *s, const nb_fit_sums *sum, const point *at)
{
    const nb_fit_data *d = s->d;
    const double q = sum->u + at->shift * d->p, xq = sum->xu + at->shift * d->px;
    const double qq = sum->uu + at->shift * (2 * sum->u + at->shift * d->p);
    return d->pxx - 2 * (at->scale * xq + at->offset * d->px) +
           at->scale * (at->scale * qq + 2 * at->offset * q) + at->offset * at->offset * d->p;
}

/* The least gain, pxx - loss, with which a point may still be worth a look where losses from
 * `limit` on are not: a little less than that, so that rounding hides none. */
static double least_gain(const search *s, double limit)
{
    return s->d->pxx - limit - 1e-10 * s->d->pxx;
}

/* Most points are left without a division: there are many, and few are kept. */
static point solve_scale(const search *s, const nb_fit_sums *sum, double shift, double gain)
{
    const nb_fit_data *d = s->d;
    const double xq = sum->xu + shift * d->px;
    const double qq = sum->uu + shift * (2 * sum->u + shift * d->p);
    if (!(qq > 0) || xq == 0 || xq * xq < gain * qq)
        return (point){.loss = INFINITY};
    return (point){.scale = xq / qq, .shift = shift, .loss = d->pxx - xq * xq / qq};
}

static point solve_zero(const search *s, const nb_fit_sums *sum, double shift, double gain)
{
    point best = {.loss = INFINITY};
    static const double moves[] = {0, -1, 1};
    for (int i = 0; i < 3; i++) {
        const double moved = shift + moves[i];
        if (moved > 0 || moved < -(double)s->top)
            continue;
        const point p = solve_scale(s, sum, moved, gain);
        if (p.scale > 0 && p.loss < best.loss)
            best = p;
    }
    return best;
}

static point solve_offset(const search *s, const nb_fit_sums *sum)
{
    const nb_fit_data *d = s->d;
    const double det = d->p * sum->uu - sum->u * sum->u;
    point at = {.loss = INFINITY};
    if (det > 1e-12 * d->p * sum->uu) {
        at.scale = (d->p * sum->xu - sum->u * d->px) / det;
        at.offset = (d->px - at.scale * sum->u) / d->p;
        at.loss = loss_of(s, sum, &at);
    }
    if (s->free == FREE_OFFSET_BELOW && !(at.offset <= 0 && at.loss < INFINITY))
        at = solve_scale(s, sum, 0, -INFINITY);
    if (!(at.scale > 0))
        at.loss = INFINITY;
    return at;
}

/* The best point for the codes of these sums; losses from `limit` on may become infinite. */
static point solve(const search *s, const nb_fit_sums *sum, double shift, double limit)
{
    switch (s->free) {
    case FREE_SCALE:
        return solve_scale(s, sum, shift, least_gain(s, limit));
    case FREE_ZERO:
        return solve_zero(s, sum, shift, least_gain(s, limit));
    case FREE_OFFSET:
    case FREE_OFFSET_BELOW:
        break;
    }
    return solve_offset(s, sum);
}

/* ---- the search ---- */

#define MAX_POINTS 64
#define N_KEPT     3
#define N_ROUNDS   3
#define MAX_MOVES  NB_FIT_N_FAR_MOVES

/* The least losses, in order; of equal ones the first only, for they are the same codes. */
static void keep(point *kept, const point *p)
{
    int i = N_KEPT;
    while (i > 0 && p->loss < kept[i - 1].loss)
        i--;
    if (i == N_KEPT || (i > 0 && p->loss == kept[i - 1].loss))
        return;
    for (int k = N_KEPT - 1; k > i; k--)
        kept[k] = kept[k - 1];
    kept[i] = *p;
}

static void keep_none(point *kept)
{
    for (int i = 0; i <= N_KEPT; i++)
        kept[i].loss = INFINITY;
}

/* How kept points are moved before codes are taken: in the first round as far as to the next one
 * that was scanned, then to the neighbours that can be stored. */
typedef struct {
    double scale, offset; /* a share of the scale; in steps of it */
} move;
static const move far_offset_moves[] = {{0, 0},        {0.02, 0},     {-0.02, 0},
                                        {0.04, -0.25}, {-0.04, 0.25}, {0, 0.25},
                                        {0, -0.25},    {0.03, -0.5},  {-0.03, 0.5}};
static_assert(sizeof far_offset_moves / sizeof *far_offset_moves == MAX_MOVES, "all are tried");

static point moved(const search *s, const point *p, int i, bool far)
{
    const bool any_offset = s->free == FREE_OFFSET || s->free == FREE_OFFSET_BELOW;
    const move m = !far         ? (move){0}
                   : any_offset ? far_offset_moves[i]
                                : (move){.scale = nb_fit_far_move(i)};
    const double offset = p->offset + m.offset * p->scale;
    const bool above = s->free == FREE_OFFSET_BELOW && offset > 0;
    point to = *p;
    to.scale = far ? (double)nb_fit_stored(s->type, p->scale * (1 + m.scale))
                   : (double)nb_fit_neighbour(s->type, p->scale, i);
    to.offset = (double)nb_fit_stored(s->type, above ? 0 : offset);
    return to;
}

/* One round for all kept points: codes are taken by points as stored, which may be the best so far;
 * the least squares of these codes are kept. */
static void refine(const search *s, point *kept, bool far, point *best)
{
    point at[N_KEPT * MAX_MOVES];
    nb_fit_map map[N_KEPT * MAX_MOVES];
    nb_fit_sums sum[N_KEPT * MAX_MOVES];
    const int n_moves = far ? MAX_MOVES : NB_FIT_N_NEIGHBOURS;
    int n = 0;
    for (int k = 0; k < N_KEPT && kept[k].loss < INFINITY; k++) {
        for (int i = 0; i < n_moves; i++) {
            at[n] = moved(s, &kept[k], i, far);
            map[n] = map_of(&at[n]);
            n += at[n].scale != 0;
        }
    }
    keep_none(kept);
    if (n == 0)
        return;
    nb_fit_scan(s->d, map, n, s->top, sum);
    for (int i = 0; i < n; i++) {
        at[i].loss = loss_of(s, &sum[i], &at[i]);
        if (at[i].loss < best->loss)
            *best = at[i];
        const point p = solve(s, &sum[i], at[i].shift, kept[N_KEPT - 1].loss);
        keep(kept, &p);
    }
}

static point search_among(const search *s, const point *first, int n)
{
    nb_fit_map map[MAX_POINTS] = {{0}}; /* gcc 12 cannot see that n is above 0 */
    nb_fit_sums sum[MAX_POINTS];
    assert(n > 0 && n <= MAX_POINTS);
    for (int i = 0; i < n; i++)
        map[i] = map_of(&first[i]);
    nb_fit_scan(s->d, map, n, s->top, sum);

    point kept[N_KEPT + 1], best = {.loss = INFINITY};
    keep_none(kept);
    for (int i = 0; i < n; i++) {
        const point p = solve(s, &sum[i], first[i].shift, kept[N_KEPT - 1].loss);
        keep(kept, &p);
    }
    for (int i = 0; i < N_ROUNDS; i++)
        refine(s, kept, i == 0, &best);
    return best;
}

/* ---- first points ---- */

/* Shares of the full range. The best ones of bell-shaped weights lie where the steps are small. The
 * rest is for groups so small that some codes are better not used, and for those with an outlier
 * that has to be given up, because it does not count. */
double nb_fit_share(int i)
{
    static const double rest[] = {1.13, 1.25, 1.5, 2, 0.27, 0.21, 0.15, 0.11, 0.07, 0.045, 0.028};
    return i < 21 ? 1.05 - 0.036 * i : rest[i - 21];
}
static_assert(NB_FIT_N_SHARES * 2 <= MAX_POINTS, "both signs are tried at once");

static double larger(double a, double b)
{
    return a > b ? a : b;
}

void nb_fit_full_scales(const nb_fit_data *d, double lo, double hi, double *positive,
                        double *negative)
{
    const double min = (double)d->min, max = (double)d->max;
    *positive = larger(larger(max, 0) / hi, larger(-min, 0) / -lo);
    *negative = -larger(larger(max, 0) / -lo, larger(-min, 0) / hi);
}

float nb_fit_scale(const nb_fit_data *d, int lo, int top, nb_float_type type)
{
    point first[2 * NB_FIT_N_SHARES];
    double positive, negative;
    nb_fit_full_scales(d, lo, lo + top, &positive, &negative);
    for (int i = 0; i < NB_FIT_N_SHARES; i++) {
        first[2 * i] = (point){.scale = positive * nb_fit_share(i), .shift = lo};
        first[2 * i + 1] = (point){.scale = negative * nb_fit_share(i), .shift = lo};
    }
    const search s = {.d = d, .free = FREE_SCALE, .top = top, .type = type};
    const point best = search_among(&s, first, 2 * NB_FIT_N_SHARES);
    return best.loss < INFINITY ? (float)best.scale : 0.0f;
}

/* Shares of either end of the range: each with each of the first seven, and those for outliers on
 * one or both ends. */
#define N_ENDS  7
#define N_TAILS 4
#define N_PAIRS (N_ENDS * N_ENDS + 3 * N_TAILS)
static_assert(N_PAIRS <= MAX_POINTS, "all pairs are tried at once");

static void ends_of(int i, double *low, double *high)
{
    static const double ends[N_ENDS] = {1, 1.06, 0.93, 0.86, 0.78, 0.66, 0.52};
    static const double tails[N_TAILS] = {0.38, 0.23, 0.12, 0.05};
    if (i < N_ENDS * N_ENDS) {
        *low = ends[i / N_ENDS];
        *high = ends[i % N_ENDS];
        return;
    }
    const int k = i - N_ENDS * N_ENDS, which = k % 3;
    *low = which == 1 ? 0.8 : tails[k / 3];
    *high = which == 2 ? 0.8 : tails[k / 3];
}

/* The range always contains 0: of values on one side of it, only the other end is searched. */
static int first_zeros(const nb_fit_data *d, int top, point *first)
{
    const double min = d->min < 0 ? (double)d->min : 0, max = d->max > 0 ? (double)d->max : 0;
    const bool one_sided = min == 0 || max == 0;
    const int n = one_sided ? NB_FIT_N_SHARES : N_PAIRS;
    for (int i = 0; i < n; i++) {
        double low, high;
        if (one_sided)
            low = high = nb_fit_share(i);
        else
            ends_of(i, &low, &high);
        const double scale = (max * high - min * low) / top;
        /* to nearest: at most top, so that adding 1.5 * 2^52 rounds */
        const double below = scale > 0 ? (-min * low / scale + 0x1.8p52) - 0x1.8p52 : 0;
        first[i] = (point){.scale = scale, .shift = -below};
    }
    return n;
}

float nb_fit_scale_zero(const nb_fit_data *d, int top, nb_float_type type, int *zero)
{
    point first[MAX_POINTS];
    const int n = first_zeros(d, top, first);
    const search s = {.d = d, .free = FREE_ZERO, .top = top, .type = type};
    const point best = search_among(&s, first, n);
    *zero = (int)-best.shift;
    return best.loss < INFINITY ? (float)best.scale : 0.0f;
}

float nb_fit_scale_offset(const nb_fit_data *d, int top, nb_float_type type, bool below,
                          float *offset)
{
    const double min = below && d->min > 0 ? 0 : (double)d->min, max = (double)d->max;
    const double middle = 0.5 * min + 0.5 * max, half = 0.5 * max - 0.5 * min;
    point first[N_PAIRS];
    for (int i = 0; i < N_PAIRS; i++) {
        double low, high;
        ends_of(i, &low, &high);
        const double begin = middle - half * low;
        first[i] = (point){.scale = half * (low + high) / top, .offset = begin};
        if (below && begin > 0)
            first[i].offset = 0;
    }
    const search s = {
        .d = d, .free = below ? FREE_OFFSET_BELOW : FREE_OFFSET, .top = top, .type = type};
    const point best = search_among(&s, first, N_PAIRS);
    *offset = best.loss < INFINITY ? (float)best.offset : 0.0f;
    return best.loss < INFINITY ? (float)best.scale : 0.0f;
}
