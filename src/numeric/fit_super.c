/* Each group is first fitted on its own, with a scale and an offset of any value. Then d and dmin
 * are searched so that multiples of them come near to what the groups want; what "near" means is
 * each group's own quadratic form, which the sums over its codes give. In turn the codes are taken
 * again, d and dmin refitted by least squares over the whole super-block, and the integers of each
 * group moved by one step where that costs less. See fit_super.h. */
#include "numeric/fit_super.h"
#include "numeric/minifloat.h"

#include <math.h>

/* One group: its data, and the sums over the codes that it has at present. */
typedef struct {
    nb_fit_data d;
    nb_fit_sums sum;
    double scale, offset; /* what it would like */
} group;

typedef struct {
    const nb_super_form *form;
    group g[NB_SUPER_MAX_GROUPS];
} super;

static double loss_of(const group *g, double scale, double offset)
{
    return g->d.pxx - 2 * (scale * g->sum.xu + offset * g->d.px) +
           scale * (scale * g->sum.uu + 2 * offset * g->sum.u) + offset * offset * g->d.p;
}

/* ---- integers under d and dmin ---- */

/* v / unit, rounded, in 0 .. top. */
static int multiple(double v, double unit, int top)
{
    if (!(unit > 0) || !(v > 0))
        return 0;
    const double n = v / unit;
    return n < top ? (int)rint(n) : top;
}

/* The best integers of a group with the codes it has, d and dmin given: the two scales around the
 * one it would like, each with the minimum that goes with it. With dmin below 0 any offset does. */
static double choose_integers(const group *g, double d, double dmin, int top, uint8_t *scale,
                              uint8_t *min)
{
    double least = INFINITY;
    const int low = d > 0 && g->scale / d < top ? (int)floor(g->scale / d) : d > 0 ? top : 0;
    for (int a = low; a <= low + 1 && a <= top; a++) {
        const double s = d * a, wish = (g->d.px - s * g->sum.u) / g->d.p;
        const int b = multiple(-wish, dmin, top);
        const double offset = dmin >= 0 ? -dmin * b : wish < 0 ? wish : 0;
        const double loss = loss_of(g, s, offset);
        if (loss < least) {
            least = loss;
            *scale = (uint8_t)a;
            *min = (uint8_t)b;
        }
    }
    return least;
}

static double choose_all(const super *s, double d, double dmin, nb_super *out)
{
    double loss = 0;
    out->d = (float)d;
    out->dmin = (float)dmin;
    for (int k = 0; k < s->form->n_groups; k++)
        loss += choose_integers(&s->g[k], d, dmin, s->form->parameter_top, &out->scale[k],
                                &out->min[k]);
    return loss;
}

/* ---- d and dmin ---- */

#define N_UNITS 14

/* The i-th candidate of a unit whose largest multiple is to reach `most`: no less than the least
 * number that F16 has, under which the integers are still free. */
static double unit_candidate(double most, int top, int i)
{
    const double unit = (double)nb_fit_stored(NB_F16, most / (top + 1.5 - 0.75 * i));
    return unit == 0 && most > 0 ? 0x1p-24 : unit;
}

#define N_KEPT 3

typedef struct {
    double d, loss;
} kept_unit;

static void keep(kept_unit *kept, double d, double loss)
{
    int i = N_KEPT;
    for (; i > 0 && loss < kept[i - 1].loss; i--) {
        if (i < N_KEPT)
            kept[i] = kept[i - 1];
    }
    if (i < N_KEPT)
        kept[i] = (kept_unit){.d = d, .loss = loss};
}

/* d as if any minimum could be had, then dmin for the best three of them. */
static void choose_units(const super *s, nb_super *out)
{
    const int top = s->form->parameter_top, n = s->form->n_groups;
    double most_scale = 0, most_min = 0;
    for (int k = 0; k < n; k++) {
        most_scale = s->g[k].scale > most_scale ? s->g[k].scale : most_scale;
        most_min = -s->g[k].offset > most_min ? -s->g[k].offset : most_min;
    }
    kept_unit kept[N_KEPT];
    for (int i = 0; i < N_KEPT; i++)
        kept[i] = (kept_unit){.loss = INFINITY};
    nb_super tried;
    for (int i = 0; i < N_UNITS; i++) {
        const double d = unit_candidate(most_scale, top, i);
        keep(kept, d, choose_all(s, d, -1, &tried));
    }
    double least = INFINITY;
    for (int k = 0; k < N_KEPT; k++) {
        for (int i = 0; i < N_UNITS; i++) {
            const double dmin = unit_candidate(most_min, top, i);
            const double loss = choose_all(s, kept[k].d, dmin, &tried);
            if (loss < least) {
                least = loss;
                *out = tried;
            }
        }
    }
}

/* The least squares of d and dmin over the whole super-block, codes and integers as they are. */
static void refit_units(const super *s, const nb_super *at, double *d, double *dmin)
{
    double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
    for (int k = 0; k < s->form->n_groups; k++) {
        const group *g = &s->g[k];
        const double a = at->scale[k], b = at->min[k];
        aa += a * a * g->sum.uu;
        ab += a * b * g->sum.u;
        bb += b * b * g->d.p;
        xa += a * g->sum.xu;
        xb += b * g->d.px;
    }
    *d = (double)at->d;
    *dmin = (double)at->dmin;
    const double det = aa * bb - ab * ab;
    if (det > 1e-9 * aa * bb) {
        *d = (xa * bb - xb * ab) / det;
        *dmin = (xa * ab - xb * aa) / det;
    } else if (aa > 0 && bb == 0) {
        *d = xa / aa;
    }
    *d = (double)nb_fit_stored(NB_F16, *d > 0 ? *d : 0);
    *dmin = (double)nb_fit_stored(NB_F16, *dmin > 0 ? *dmin : 0);
}

/* ---- steps of one ---- */

#define N_MOVES 9

/* The integers of each group and their neighbours, every time with codes of their own. Returns the
 * loss of the super-block. */
static double move_integers(super *s, nb_super *at)
{
    const int top = s->form->parameter_top;
    double total = 0;
    for (int k = 0; k < s->form->n_groups; k++) {
        group *g = &s->g[k];
        nb_fit_map map[N_MOVES];
        nb_fit_sums sum[N_MOVES];
        int a[N_MOVES], b[N_MOVES], n = 0;
        static const int steps[] = {0, -1, 1};
        for (int i = 0; i < N_MOVES; i++) {
            a[n] = at->scale[k] + steps[i / 3];
            b[n] = at->min[k] + steps[i % 3];
            if (a[n] < 0 || a[n] > top || b[n] < 0 || b[n] > top)
                continue;
            const double scale = (double)at->d * a[n];
            map[n].inverse = scale > 0 ? 1 / scale : 0;
            map[n].base = (double)at->dmin * b[n] * map[n].inverse;
            n++;
        }
        nb_fit_scan(&g->d, map, n, s->form->top, sum);
        double least = INFINITY;
        for (int i = 0; i < n; i++) {
            group moved = *g;
            moved.sum = sum[i];
            const double loss = loss_of(&moved, (double)at->d * a[i], -(double)at->dmin * b[i]);
            if (loss < least) {
                least = loss;
                *g = moved;
                at->scale[k] = (uint8_t)a[i];
                at->min[k] = (uint8_t)b[i];
            }
        }
        total += least;
    }
    return total;
}

/* ---- the whole ---- */

/* A group of equal values below zero has no scale: it wants the offset alone. */
static void fit_alone(group *g, int top)
{
    float offset;
    g->scale = (double)nb_fit_scale_offset(&g->d, top, NB_F32, true, &offset);
    g->offset = (double)offset;
    if (g->scale == 0)
        g->offset = g->d.px < 0 ? g->d.px / g->d.p : 0;
    const double inverse = g->scale > 0 ? 1 / g->scale : 0;
    const nb_fit_map map = {.inverse = inverse, .base = -g->offset * inverse};
    nb_fit_scan(&g->d, &map, 1, top, &g->sum);
}

#define N_ROUNDS 3

void nb_super_search(nb_super *out, const nb_super_form *form, const float *w,
                     const float *importance)
{
    super s = {.form = form};
    const int64_t len = form->group_len;
    const double floor = nb_fit_floor(importance, len * form->n_groups);
    for (int k = 0; k < form->n_groups; k++) {
        nb_fit_data_init(&s.g[k].d, w + k * len, importance == NULL ? NULL : importance + k * len,
                         len, floor);
        fit_alone(&s.g[k], form->top);
    }
    nb_super at;
    choose_units(&s, &at);
    double least = INFINITY;
    for (int i = 0; i < N_ROUNDS; i++) {
        const double loss = move_integers(&s, &at);
        if (loss < least) {
            least = loss;
            *out = at;
        }
        double d, dmin;
        refit_units(&s, &at, &d, &dmin);
        for (int k = 0; k < form->n_groups; k++) {
            s.g[k].scale = (double)at.d * at.scale[k];
            s.g[k].offset = -(double)at.dmin * at.min[k];
        }
        (void)choose_all(&s, d, dmin, &at);
    }
}

void nb_super_extremes(nb_super *out, const nb_super_form *form, const float *w)
{
    double scale[NB_SUPER_MAX_GROUPS], min[NB_SUPER_MAX_GROUPS], most_scale = 0, most_min = 0;
    for (int k = 0; k < form->n_groups; k++) {
        double lo = 0, hi = 0;
        for (int i = 0; i < form->group_len; i++) {
            const double x = (double)w[k * form->group_len + i];
            lo = x < lo ? x : lo;
            hi = i == 0 || x > hi ? x : hi;
        }
        scale[k] = (hi - lo) / form->top;
        min[k] = -lo;
        most_scale = scale[k] > most_scale ? scale[k] : most_scale;
        most_min = min[k] > most_min ? min[k] : most_min;
    }
    const int top = form->parameter_top;
    *out = (nb_super){.d = nb_fit_stored(NB_F16, most_scale / top),
                      .dmin = nb_fit_stored(NB_F16, most_min / top)};
    for (int k = 0; k < form->n_groups; k++) {
        out->scale[k] = (uint8_t)multiple(scale[k], (double)out->d, top);
        out->min[k] = (uint8_t)multiple(min[k], (double)out->dmin, top);
    }
}
