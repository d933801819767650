/* See balance.h.
 *
 * The optimum is found by scaling in turn. The gradient of f in log s_j is down_j - up_j: up_j is
 * what would shrink if s_j grew (the inputs' maxima at channel j, the weights' errors through it),
 * down_j what would grow. Each step multiplies s_j by (up_j / down_j)^(1 / (P + 2)), which is where
 * the two meet if nothing else moves; maxima are replaced by P-norms there, so that channels close
 * to the maximum move as well. The best s is kept by f itself, with maxima as they are. */
#include "quant/transform/balance.h"

#include "kernel/math.h"

#include <float.h>
#include <math.h>

#define POWER      8 /* P; share_of is written for it */
#define STEPS      40
#define PIECE_ROWS 32 /* rows whose sums one thread makes; pieces are added in order */
#define LANES      16

typedef struct {
    const nb_balance_job *job;
    int64_t n;
    double *h;                     /* [n]: squares of the inputs */
    double *c[NB_BALANCE_LINEARS]; /* [n]: squares of the weights */
    double *u, *best;              /* [n]: log s, by source */
    double *up, *down;             /* [n], by source */
    double *x_max;                 /* [n]: sums of squared maxima, shared out to channels */
    double *w_max;
    float *s, *inverse; /* [n] */
    double *pieces;     /* [n_pieces][n] */
    int64_t n_pieces;
} balance;

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- sums over rows ---- */

typedef struct {
    const balance *b;
    const nb_balance_side *side;
    const float *by; /* [n]; NULL: plain squares of the columns, not maxima */
} summing;

/* Adds max_j z_j^2 of a group to the channels that are at the maximum, or near it, z = |a| by. */
static void share_group(const float *a, const float *by, int64_t n, double *sum)
{
    float most = 0;
    for (int64_t j = 0; j < n; j++) {
        const float z = fabsf(a[j] * by[j]);
        most = z > most ? z : most;
    }
    if (!(most > 0x1p-60f && most < 0x1p60f))
        return;
    const float to_one = 1 / most;
    double lane[LANES] = {0};
    for (int64_t j = 0; j < n; j++) {
        const float z = a[j] * by[j] * to_one, z2 = z * z, z4 = z2 * z2;
        lane[j % LANES] += (double)(z4 * z4);
    }
    double total = 0;
    for (int i = 0; i < LANES; i++)
        total += lane[i];
    const double each = (double)most * (double)most / total;
    for (int64_t j = 0; j < n; j++) {
        const float z = a[j] * by[j] * to_one, z2 = z * z, z4 = z2 * z2;
        sum[j] += each * (double)(z4 * z4);
    }
}

static void sum_piece(void *context, int64_t piece, int thread)
{
    (void)thread;
    const summing *x = context;
    const int64_t n = x->b->n, group = x->side->group;
    double *sum = x->b->pieces + piece * n;
    for (int64_t j = 0; j < n; j++)
        sum[j] = 0;
    const int64_t end = smaller((piece + 1) * PIECE_ROWS, x->side->n_rows);
    for (int64_t r = piece * PIECE_ROWS; r < end; r++) {
        const float *a = x->side->a + r * n;
        if (x->by == NULL) {
            for (int64_t j = 0; j < n; j++)
                sum[j] += (double)a[j] * (double)a[j];
            continue;
        }
        for (int64_t j = 0; j < n; j += group)
            share_group(a + j, x->by + j, smaller(group, n - j), sum + j);
    }
}

static int64_t n_pieces_of(const nb_balance_side *side)
{
    return (side->n_rows + PIECE_ROWS - 1) / PIECE_ROWS;
}

static void sum_rows(const balance *b, const nb_balance_side *side, const float *by, double *out)
{
    const int64_t n_pieces = n_pieces_of(side);
    nb_pool_run(b->job->pool, n_pieces, sum_piece, &(summing){b, side, by});
    for (int64_t j = 0; j < b->n; j++) {
        out[j] = 0;
        for (int64_t p = 0; p < n_pieces; p++)
            out[j] += b->pieces[p * b->n + j];
    }
}

/* ---- one step ---- */

/* One product of f, group by group: (sum of maxima) * (sum of errors). Where `out` is one of the
 * sides that grow with s and `in` the other one. Returns the sum of the products. */
static double add_products(const balance *b, const double *maxima, const double *squares,
                           const float *by, int64_t group, double factor, double *at_maxima,
                           double *at_squares)
{
    double f = 0;
    for (int64_t begin = 0; begin < b->n; begin += group) {
        const int64_t end = smaller(begin + group, b->n);
        double max_sum = 0, square_sum = 0;
        for (int64_t j = begin; j < end; j++) {
            max_sum += maxima[j];
            square_sum += squares[j] * (double)by[j] * (double)by[j];
        }
        for (int64_t j = begin; j < end; j++) {
            const double error = squares[j] * (double)by[j] * (double)by[j];
            at_maxima[b->job->source[j]] += factor * maxima[j] * square_sum;
            at_squares[b->job->source[j]] += factor * error * max_sum;
        }
        f += factor * max_sum * square_sum;
    }
    return f;
}

/* f at s, and its gradient. */
static double look(balance *b)
{
    const nb_balance_job *job = b->job;
    double f = 0;
    for (int64_t j = 0; j < b->n; j++)
        b->up[j] = b->down[j] = 0;
    if (job->x.largest > 0) {
        sum_rows(b, &job->x, b->inverse, b->x_max);
        for (int i = 0; i < job->n_linears; i++)
            f +=
                add_products(b, b->x_max, b->c[i], b->s, job->x.group,
                             1 / (job->x.largest * job->x.largest * job->power[i]), b->up, b->down);
    }
    for (int i = 0; i < job->n_linears; i++) {
        const nb_balance_side *w = &job->w[i];
        sum_rows(b, w, b->s, b->w_max);
        f += add_products(b, b->w_max, b->h, b->inverse, w->group,
                          1 / (w->largest * w->largest * job->power[i]), b->down, b->up);
    }
    return f;
}

static bool active(const balance *b, int64_t source)
{
    return b->up[source] > 0 && b->down[source] > 0 && b->up[source] < DBL_MAX &&
           b->down[source] < DBL_MAX;
}

static void take_s(balance *b, const double *u)
{
    for (int64_t j = 0; j < b->n; j++) {
        const double v = u[b->job->source[j]];
        b->s[j] = (float)nb_exp64(v);
        b->inverse[j] = (float)nb_exp64(-v);
    }
}

/* Only ratios of s matter: the mean of log s over the channels that move stays 0. */
static void step(balance *b)
{
    double sum = 0;
    int64_t count = 0;
    for (int64_t i = 0; i < b->n; i++) {
        if (!active(b, i))
            continue;
        double move = nb_log64(b->up[i] / b->down[i]) / (POWER + 2);
        move = move > 1 ? 1 : move < -1 ? -1 : move;
        b->u[i] += move;
        sum += b->u[i];
        count++;
    }
    for (int64_t i = 0; i < b->n; i++) {
        if (!active(b, i))
            continue;
        const double v = b->u[i] - sum / (double)count;
        b->u[i] = v > 12 ? 12 : v < -12 ? -12 : v;
    }
}

static void run(balance *b, float *s)
{
    const nb_balance_job *job = b->job;
    double least = DBL_MAX;
    sum_rows(b, &job->x, NULL, b->h);
    for (int i = 0; i < job->n_linears; i++)
        sum_rows(b, &job->w[i], NULL, b->c[i]);
    for (int i = 0; i < STEPS; i++) {
        take_s(b, b->u);
        const double f = look(b);
        if (f < least) {
            least = f;
            for (int64_t j = 0; j < b->n; j++)
                b->best[j] = b->u[j];
        }
        step(b);
    }
    take_s(b, b->best);
    for (int64_t j = 0; j < b->n; j++)
        s[j] = b->s[j];
}

int64_t nb_balance_bytes(int64_t n, int64_t n_rows)
{
    return 8 * n * ((n_rows + PIECE_ROWS - 1) / PIECE_ROWS + NB_BALANCE_LINEARS + 9);
}

nb_status nb_balance(const nb_balance_job *job, float *s, nb_err *err)
{
    balance b = {.job = job, .n = job->n};
    const int64_t n = job->n;
    nb_status status = NB_OK;
    int64_t n_pieces = n_pieces_of(&job->x);
    for (int i = 0; i < job->n_linears; i++) {
        const int64_t more = n_pieces_of(&job->w[i]);
        n_pieces = more > n_pieces ? more : n_pieces;
        NB_TRY_GOTO(status, NB_ALLOC(&b.c[i], n, err));
    }
    NB_TRY_GOTO(status, NB_ALLOC(&b.h, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&b.u, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&b.best, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&b.up, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&b.down, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&b.x_max, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&b.w_max, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&b.s, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&b.inverse, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&b.pieces, n_pieces * n, err));
    run(&b, s);
done:
    for (int i = 0; i < NB_BALANCE_LINEARS; i++)
        nb_free(b.c[i]);
    nb_free(b.h);
    nb_free(b.u);
    nb_free(b.best);
    nb_free(b.up);
    nb_free(b.down);
    nb_free(b.x_max);
    nb_free(b.w_max);
    nb_free(b.s);
    nb_free(b.inverse);
    nb_free(b.pieces);
    return status;
}
