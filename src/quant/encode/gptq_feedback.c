/* What the recursion needs of H: an order of the columns, and the factor of the damped H'. */
#include "quant/encode/gptq.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#define DAMP_STEP  0.0015
#define DAMP_TRIES 40

nb_status nb_feedback_init(nb_feedback *f, int64_t n, nb_err *err)
{
    nb_feedback made = {.n = n};
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, NB_ALLOC(&made.order, n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&made.importance, n, err));
    *f = made;
    return NB_OK;
done:
    nb_feedback_free(&made);
    return s;
}

void nb_feedback_drop_factor(nb_feedback *f)
{
    nb_sym_free(&f->r);
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
            const double d = nb_moments_diag(m, k);
            largest = d > largest ? d : largest;
        }
        for (int64_t k = begin; k < end; k++)
            places[k] = (place){
                .span_key = largest, .span = begin / len, .key = nb_moments_diag(m, k), .col = k};
    }
    qsort(places, (size_t)f->n, sizeof *places, compare_places);
    for (int64_t k = 0; k < f->n; k++)
        f->order[k] = places[k].col;
    nb_free(places);
    return NB_OK;
}

/* ---- H' ---- */

/* H comes band by band, from memory or from where it rests, and every row goes to its places in
 * the order of the feedback: what is read is read once, from end to end. */
typedef struct {
    const nb_feedback *f;
    const nb_moments *from;
    const int64_t *place; /* [n]: where a column is in `order` */
    const double *diag;   /* [n] of H, scaled */
    const double *h, *more;
    int64_t first; /* of the band */
    double shrink;
    nb_sym *to;  /* one of these */
    float *full; /* [n][n] */
} copying;

static void put_element(const copying *c, int64_t i, int64_t j, double v)
{
    const int64_t a = c->place[i], b = c->place[j], low = a < b ? a : b, high = a < b ? b : a;
    if (c->full == NULL)
        nb_sym_row(c->to, low)[high] = v;
    else
        c->full[a * c->f->n + b] = c->full[b * c->f->n + a] = (float)v;
}

/* What nb_sym_damp makes of an element; columns without second moments stand apart. */
static double damped(const copying *c, int64_t i, int64_t j, double v)
{
    const nb_feedback *f = c->f;
    const bool dead = c->diag[i] == 0;
    if (i == j)
        return dead ? 1 : v + f->damp * f->mean;
    if (dead || c->diag[j] == 0)
        return 0;
    return c->shrink != 0 ? v * (1 - c->shrink) : v;
}

static void copy_row(void *context, int64_t row, int thread)
{
    (void)thread;
    const copying *c = context;
    const int64_t width = c->f->n - c->first, i = c->first + row;
    const double *h = c->h + row * width, *more = c->more + row * width;
    for (int64_t j = row; j < width; j++) {
        const double v = c->f->scale * (h[j] + (c->from->more != NULL ? more[j] : 0));
        put_element(c, i, c->first + j, c->full == NULL ? v : damped(c, i, c->first + j, v));
    }
}

static nb_status copy_bands(copying *c, nb_algebra *la, nb_err *err)
{
    const int64_t n = c->f->n, n_bands = (n + NB_SYM_BLOCK - 1) / NB_SYM_BLOCK;
    const nb_moments *m = c->from;
    const bool rests = nb_sym_rests(m->h);
    const int64_t width = n < NB_SYM_BLOCK ? n : NB_SYM_BLOCK;
    double *room[2] = {NULL, NULL}, *diag = NULL;
    int64_t *place = NULL;
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, NB_ALLOC(&place, n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&diag, n, err));
    for (int64_t k = 0; k < n; k++) {
        place[c->f->order[k]] = k;
        diag[k] = c->f->scale * nb_moments_diag(m, k);
    }
    c->place = place;
    c->diag = diag;
    for (int i = 0; i < 2 && rests; i++)
        NB_TRY_GOTO(s, NB_ALLOC(&room[i], width * n, err));
    for (int64_t band = 0; band < n_bands; band++) {
        c->first = band * NB_SYM_BLOCK;
        NB_TRY_GOTO(s, nb_sym_band(m->h, band, room[0], &c->h, err));
        c->more = c->h;
        if (m->more != NULL)
            NB_TRY_GOTO(s, nb_sym_band(m->more, band, room[1], &c->more, err));
        nb_pool_run(la->pool, n - c->first < width ? n - c->first : width, copy_row, c);
    }
done:
    nb_free(place);
    nb_free(diag);
    nb_free(room[0]);
    nb_free(room[1]);
    return s;
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
        const double d = nb_moments_diag(m, k);
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
        const double d = nb_moments_diag(m, col) * f->scale, r = nb_sym_row(&f->r, k)[k];
        f->importance[col] = (float)(weigh == NB_WEIGH_DIAG || d == 0 ? d : r * r);
        f->weighed |= f->importance[col] > 0;
    }
}

nb_status nb_feedback_make(nb_feedback *f, nb_algebra *la, const nb_moments *m,
                           const nb_gptq_options *options, double shrink, int64_t span_len,
                           nb_err *err)
{
    if (f->r.a == NULL)
        NB_TRY(nb_sym_init(&f->r, f->n, err));
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
        copying c = {.f = f, .from = m, .to = &f->r};
        NB_TRY(copy_bands(&c, la, err));
        nb_sym_damp(&f->r, shrink, f->damp);
        NB_TRY(nb_sym_factor(la, &f->r, &positive, err));
    }
    if (!positive)
        become_blind(f);
    choose_importance(f, m, options->weigh);
    f->mean = 0;
    for (int64_t k = 0; k < f->n; k++) /* in the order of nb_sym_damp */
        f->mean += f->scale * nb_moments_diag(m, f->order[k]);
    f->mean /= (double)f->n;
    return NB_OK;
}

nb_status nb_feedback_full(const nb_feedback *f, nb_algebra *la, const nb_moments *m, double shrink,
                           float *full, nb_err *err)
{
    copying c = {.f = f, .from = m, .shrink = shrink, .full = full};
    return copy_bands(&c, la, err);
}
