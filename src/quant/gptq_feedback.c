/* What the recursion needs of H: an order of the columns, and the factor of the damped H'. */
#include "quant/gptq.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#define DAMP_STEP  0.0015
#define DAMP_TRIES 40

nb_status nb_feedback_init(nb_feedback *f, int64_t n, nb_err *err)
{
    nb_feedback made = {.n = n};
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, nb_sym_init(&made.r, n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&made.order, n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&made.importance, n, err));
    *f = made;
    return NB_OK;
done:
    nb_feedback_free(&made);
    return s;
}

void nb_feedback_free(nb_feedback *f)
{
    nb_sym_free(&f->r);
    nb_free(f->order);
    nb_free(f->importance);
    *f = (nb_feedback){0};
}

/* ---- order ---- */

/* A column: what its span is sorted by, which span that is, and the same for itself. */
typedef struct {
    double span_key, key;
    int64_t span, col;
} place;

static int descending(double a, double b)
{
    return a > b ? -1 : a < b;
}

static int compare_places(const void *a, const void *b)
{
    const place *p = a, *q = b;
    int c = descending(p->span_key, q->span_key);
    if (c == 0)
        c = p->span < q->span ? -1 : p->span > q->span;
    if (c == 0)
        c = descending(p->key, q->key);
    return c != 0 ? c : p->col < q->col ? -1 : p->col > q->col;
}

static nb_status choose_order(nb_feedback *f, const nb_moments *m, nb_gptq_order order,
                              int64_t span_len, nb_err *err)
{
    f->permuted = order != NB_ORDER_NONE && !f->blind;
    for (int64_t k = 0; k < f->n; k++)
        f->order[k] = k;
    if (!f->permuted)
        return NB_OK;
    place *places;
    NB_TRY(NB_ALLOC(&places, f->n, err));
    const int64_t len = order == NB_ORDER_DESC ? f->n : span_len;
    for (int64_t begin = 0; begin < f->n; begin += len) {
        const int64_t end = begin + len < f->n ? begin + len : f->n;
        double largest = 0;
        for (int64_t k = begin; k < end; k++) {
            const double d = nb_moments_h(m, k, k);
            largest = d > largest ? d : largest;
        }
        for (int64_t k = begin; k < end; k++)
            places[k] = (place){
                .span_key = largest, .span = begin / len, .key = nb_moments_h(m, k, k), .col = k};
    }
    qsort(places, (size_t)f->n, sizeof *places, compare_places);
    for (int64_t k = 0; k < f->n; k++)
        f->order[k] = places[k].col;
    nb_free(places);
    return NB_OK;
}

/* ---- H' ---- */

typedef struct {
    const nb_feedback *f;
    const nb_moments *from;
    nb_sym *to;
    float *full;
} copying;

static void copy_band(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const copying *c = context;
    const int64_t *order = c->f->order, n = c->f->n;
    for (int64_t i = chunk * NB_SYM_BLOCK; i < n && i < (chunk + 1) * NB_SYM_BLOCK; i++) {
        double *to = nb_sym_row(c->to, i);
        for (int64_t j = i; j < n; j++) {
            to[j] = c->f->scale * nb_moments_h(c->from, order[i], order[j]);
        }
    }
}

static void copy_in_order(const nb_feedback *f, nb_algebra *la, const nb_moments *m, nb_sym *to)
{
    copying c = {.f = f, .from = m, .to = to};
    nb_pool_run(la->pool, (f->n + NB_SYM_BLOCK - 1) / NB_SYM_BLOCK, copy_band, &c);
}

static void become_blind(nb_feedback *f)
{
    f->blind = true;
    for (int64_t i = 0; i < f->n; i++) {
        double *row = nb_sym_row(&f->r, i);
        for (int64_t j = i; j < f->n; j++)
            row[j] = i == j;
    }
}

/* A power of two that brings the largest of the diagonal near 1: H' then fits into binary32, and
 * the 1 on the diagonal of a dead column is of the size of the others. */
static void choose_scale(nb_feedback *f, const nb_moments *m)
{
    double largest = 0;
    f->blind = false;
    for (int64_t k = 0; k < f->n; k++) {
        const double d = nb_moments_h(m, k, k);
        if (!(d >= 0 && d <= DBL_MAX))
            f->blind = true;
        largest = d > largest ? d : largest;
    }
    f->scale = 1;
    if (largest > 0 && !f->blind) {
        for (; largest * f->scale >= 2; f->scale *= 0.5) {
        }
        for (; largest * f->scale < 1 && f->scale < 0x1p1000; f->scale *= 2) {
        }
    }
}

static void choose_importance(nb_feedback *f, const nb_moments *m, nb_gptq_weigh weigh)
{
    f->weighed = false;
    for (int64_t k = 0; k < f->n && !f->blind && weigh != NB_WEIGH_NONE; k++) {
        const int64_t col = f->order[k];
        const double d = nb_moments_h(m, col, col) * f->scale, r = nb_sym_row(&f->r, k)[k];
        f->importance[col] = (float)(weigh == NB_WEIGH_DIAG || d == 0 ? d : r * r);
        f->weighed |= f->importance[col] > 0;
    }
}

nb_status nb_feedback_make(nb_feedback *f, nb_algebra *la, const nb_moments *m,
                           const nb_gptq_options *options, double shrink, int64_t span_len,
                           nb_err *err)
{
    choose_scale(f, m);
    NB_TRY(choose_order(f, m, options->order, span_len, err));
    bool positive = false;
    double step = DAMP_STEP;
    f->damp = options->damp;
    for (int i = 0; i < DAMP_TRIES && !positive && !f->blind; i++) {
        if (i > 0) {
            f->damp += step;
            step *= 2; /* 40 steps of one size would not save a matrix that is far from positive */
        }
        copy_in_order(f, la, m, &f->r);
        nb_sym_damp(&f->r, shrink, f->damp);
        NB_TRY(nb_sym_factor(la, &f->r, &positive, err));
    }
    if (!positive)
        become_blind(f);
    choose_importance(f, m, options->weigh);
    return NB_OK;
}

/* ---- H' for sweeps ---- */

static void full_band(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const copying *c = context;
    const int64_t n = c->f->n;
    for (int64_t i = chunk * NB_SYM_BLOCK; i < n && i < (chunk + 1) * NB_SYM_BLOCK; i++)
        for (int64_t j = 0; j < n; j++)
            c->full[i * n + j] = (float)(i < j ? nb_sym_row(c->to, i)[j] : nb_sym_row(c->to, j)[i]);
}

void nb_feedback_full(const nb_feedback *f, nb_algebra *la, const nb_moments *m, double shrink,
                      nb_sym *work, float *full)
{
    copy_in_order(f, la, m, work);
    nb_sym_damp(work, shrink, f->damp);
    copying c = {.f = f, .to = work, .full = full};
    nb_pool_run(la->pool, (f->n + NB_SYM_BLOCK - 1) / NB_SYM_BLOCK, full_band, &c);
}
