/* Super-blocks whose groups have scales of either sign, small integers under one F16 number. Each
 * group is first fitted on its own, with any scale. Then d is chosen so that its multiples come
 * near to what the groups want. Twice the integers of each group are moved, every one that is tried
 * with codes of its own, and d is refitted by least squares over the whole super-block.
 *
 * The integers are fine enough to be a search by themselves: the quick way fits groups alone by a
 * few shares of their extremes only, and moves integers further. It takes a third of the time, and
 * leaves about 2 % more error (5 % more of a weighted one). See fit_super.h. */
#include "numeric/fit_super.h"

#include <math.h>

/* One group: its data, and what it would like with the codes that it has at present: a scale, the
 * sum of p q^2 of its codes q, and what that scale leaves. */
typedef struct {
    nb_fit_data d;
    double scale, qq, left;
} group;

typedef struct {
    const nb_signed_form *form;
    group g[NB_SUPER_MAX_GROUPS];
} super;

/* The loss of the codes of these sums under any scale is left + qq * (that - scale)^2. */
static void take_sums(group *g, const nb_fit_sums *sum, int least)
{
    const double shift = least;
    const double xq = sum->xu + shift * g->d.px;
    g->qq = sum->uu + shift * (2 * sum->u + shift * g->d.p);
    g->scale = g->qq > 0 ? xq / g->qq : 0;
    g->left = g->d.pxx - g->scale * xq;
}

static double loss_at(const group *g, double scale)
{
    return g->left + g->qq * (scale - g->scale) * (scale - g->scale);
}

/* The multiple of d that is nearest to the scale a group would like. */
static int multiple(const nb_signed_form *form, double scale, double d)
{
    const double n = d != 0 ? scale / d : 0;
    return n <= form->scale_least  ? form->scale_least
           : n >= form->scale_most ? form->scale_most
                                   : (int)rint(n);
}

static double choose_all(const super *s, double d, nb_signed *out)
{
    double loss = 0;
    out->d = (float)d;
    for (int k = 0; k < s->form->n_groups; k++) {
        const int n = multiple(s->form, s->g[k].scale, d);
        out->scale[k] = (int8_t)n;
        loss += loss_at(&s->g[k], d * n);
    }
    return loss;
}

/* ---- d ---- */

#define N_UNITS 24

/* v as F16, and no less than the least number that it has: then at least the integers are free. */
static double stored(double v)
{
    const double kept = (double)nb_fit_stored(NB_F16, v);
    return v == 0 ? 0 : kept == 0 ? copysign(0x1p-24, v) : kept;
}

/* The largest scale is a little more or less than the longer end of the integers. */
static void choose_unit(const super *s, nb_signed *out)
{
    double most = 0, least = INFINITY;
    for (int k = 0; k < s->form->n_groups; k++)
        most = fabs(s->g[k].scale) > fabs(most) ? s->g[k].scale : most;
    for (int i = 0; i < N_UNITS; i++) {
        nb_signed tried = {0};
        const double loss =
            choose_all(s, stored(most / (s->form->scale_least * (1 + 0.02 * (1 - i)))), &tried);
        if (loss < least) {
            least = loss;
            *out = tried;
        }
    }
}

/* The least squares of d over the whole super-block, codes and integers as they are. */
static double refit_unit(const super *s, const nb_signed *at)
{
    double up = 0, down = 0;
    for (int k = 0; k < s->form->n_groups; k++) {
        const double n = at->scale[k];
        up += n * s->g[k].qq * s->g[k].scale;
        down += n * n * s->g[k].qq;
    }
    return down > 0 ? stored(up / down) : (double)at->d;
}

/* ---- integers ---- */

#define MAX_REACH 8
#define MAX_TRIED (2 * (2 * MAX_REACH + 1))

/* The integers that are tried for a group: those around its own, and, where `mirrored`, the same of
 * the other sign, which gives the longer end of the codes to the other side. The own one is the
 * first. */
static int tried_integers(const nb_signed_form *form, int n, int reach, bool mirrored, int *out)
{
    int count = 0;
    for (int sign = 1; sign >= (mirrored ? -1 : 1); sign -= 2) {
        for (int i = 0; i <= 2 * reach; i++) {
            const int step = i % 2 == 0 ? i / 2 : -(i + 1) / 2, a = sign * (n + step);
            if (a >= form->scale_least && a <= form->scale_most)
                out[count++] = a;
        }
    }
    return count;
}

/* Returns the loss of the super-block. */
static double move_integers(super *s, nb_signed *at, int reach, bool mirrored)
{
    double total = 0;
    for (int k = 0; k < s->form->n_groups; k++) {
        group *g = &s->g[k];
        int tried[MAX_TRIED];
        nb_fit_map map[MAX_TRIED];
        nb_fit_sums sum[MAX_TRIED];
        const int n = tried_integers(s->form, at->scale[k], reach, mirrored, tried);
        for (int i = 0; i < n; i++) {
            const double scale = (double)at->d * tried[i];
            map[i] = (nb_fit_map){.inverse = scale != 0 ? 1 / scale : 0, .base = -s->form->least};
        }
        nb_fit_scan(&g->d, map, n, s->form->top, sum);
        double least = INFINITY;
        for (int i = 0; i < n; i++) {
            group moved = *g;
            take_sums(&moved, &sum[i], s->form->least);
            const double loss = loss_at(&moved, (double)at->d * tried[i]);
            if (loss < least) {
                least = loss;
                *g = moved;
                at->scale[k] = (int8_t)tried[i];
            }
        }
        total += least;
    }
    return total;
}

/* ---- the whole ---- */

static void fit_alone(group *g, const nb_signed_form *form)
{
    const double scale = (double)nb_fit_scale(&g->d, form->least, form->top, NB_F32);
    const nb_fit_map map = {.inverse = scale != 0 ? 1 / scale : 0, .base = -form->least};
    nb_fit_sums sum;
    nb_fit_scan(&g->d, &map, 1, form->top, &sum);
    take_sums(g, &sum, form->least);
}

/* The best of a few shares of the full range. */
#define N_SHARES 4
static void fit_alone_quickly(group *g, const nb_signed_form *form)
{
    double full[2], least = INFINITY;
    nb_fit_map map[2 * N_SHARES];
    nb_fit_sums sum[2 * N_SHARES];
    nb_fit_full_scales(&g->d, form->least, form->least + form->top, &full[0], &full[1]);
    for (int i = 0; i < 2 * N_SHARES; i++) {
        const double scale = full[i % 2] * (1 - 0.1 * (i / 2));
        map[i] = (nb_fit_map){.inverse = scale != 0 ? 1 / scale : 0, .base = -form->least};
    }
    nb_fit_scan(&g->d, map, 2 * N_SHARES, form->top, sum);
    for (int i = 0; i < 2 * N_SHARES; i++) {
        group tried = *g;
        take_sums(&tried, &sum[i], form->least);
        if (tried.left < least) {
            least = tried.left;
            *g = tried;
        }
    }
}

static void search(nb_signed *out, const nb_signed_form *form, const float *w,
                   const float *importance, bool quick)
{
    super s = {.form = form};
    const int64_t len = form->group_len;
    const double floor = nb_fit_floor(importance, len * form->n_groups);
    for (int k = 0; k < form->n_groups; k++) {
        nb_fit_data_init(&s.g[k].d, w + k * len, importance == NULL ? NULL : importance + k * len,
                         len, floor);
        if (quick)
            fit_alone_quickly(&s.g[k], form);
        else
            fit_alone(&s.g[k], form);
    }
    nb_signed first = {0}, second = {0};
    choose_unit(&s, &first);
    const double loss = move_integers(&s, &first, quick ? MAX_REACH : 3, true);
    (void)choose_all(&s, refit_unit(&s, &first), &second);
    *out = move_integers(&s, &second, quick ? 4 : 2, false) < loss ? second : first;
}

void nb_signed_search(nb_signed *out, const nb_signed_form *form, const float *w,
                      const float *importance)
{
    search(out, form, w, importance, false);
}

void nb_signed_quick(nb_signed *out, const nb_signed_form *form, const float *w)
{
    search(out, form, w, NULL, true);
}

void nb_signed_extremes(nb_signed *out, const nb_signed_form *form, const float *w)
{
    double scale[NB_SUPER_MAX_GROUPS], most = 0;
    for (int k = 0; k < form->n_groups; k++) {
        double far = 0;
        for (int i = 0; i < form->group_len; i++) {
            const double x = (double)w[k * form->group_len + i];
            far = fabs(x) > fabs(far) ? x : far;
        }
        scale[k] = far / form->least;
        most = fabs(scale[k]) > fabs(most) ? scale[k] : most;
    }
    *out = (nb_signed){.d = (float)stored(most / form->scale_least)};
    for (int k = 0; k < form->n_groups; k++)
        out->scale[k] = (int8_t)multiple(form, scale[k], (double)out->d);
}
