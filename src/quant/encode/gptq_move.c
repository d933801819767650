/* Inputs x of a quantized model are not the x0 of the full-precision one. With D = sum of
 * (x0 - x) x^T, what is to be small is the error of q x against w x0,
 *
 *   |w x0 - q x|^2 = e H e^T + 2 w D e^T + const,   e = w - q.
 *
 * qronos: the real-valued minimum is w* = w (I + D H'^-1), and the whole is (w* - q) H (w* - q)^T
 * and a constant: so move to w* first, and then let the recursion of gptq run on w*.
 *
 * gptaq: when column i is chosen, the columns F after it move by the least-squares answer to w_i
 * times row i of D alone, w_i D[i,F] H'[F,F]^-1 = w_i P[i,F], P = triu_1(D U^T) U, U = R^-1. In
 * the terms of the recursion, whose e is measured from the unmoved weights, all that column k has
 * received from the columns before it is w_i N[i][k] each, with
 *
 *   N = triu_1(D R^-T) diag(1 / R[k][k]):
 *
 * H'[F,F]^-1 = U[F,F]^T U[F,F], and of the row D[i,F] U[F,F]^T U[F,F] only the first entry counts
 * when column k = min F is reached, which is (D U^T)[i][k] U[k][k]. (P's further rows of U are the
 * feedback of what was moved, which e already carries.) So neither U nor P is made. As in the
 * derivation, not the listing, of arXiv:2504.02692, w_i is the weight itself, not its updated
 * value: it is w that x0 is multiplied by. Then what is received does not depend on codes, and is
 * added to t before the recursion starts. */
#include "quant/encode/gptq.h"

#include <float.h>

#define STRIP 512

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

typedef struct {
    const nb_recursion *c;
    int64_t begin, end; /* rows or columns under way */
    double share;
    float *d;  /* [n][STRIP] or [STRIP][n] */
    double *v; /* [STRIP][n] */
    float *product;
} moving;

/* D as the recursion sees it: in order, scaled and shrunk like what is off H's diagonal. */
static double mismatch(const moving *m, int64_t i, int64_t j)
{
    const nb_gptq_job *job = m->c->job;
    const int64_t *order = job->feedback->order;
    return m->share * nb_moments_mismatch(job->moments, order[i], order[j]);
}

static double share_of(const nb_recursion *c)
{
    return c->job->strength * (1 - c->job->shrink) * c->job->feedback->scale;
}

static float as_float(double x)
{
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : (float)x;
}

/* ---- qronos ---- */

static void d_row(void *context, int64_t i, int thread)
{
    (void)thread;
    const moving *m = context;
    for (int64_t j = 0; j < m->c->n; j++)
        m->d[i * m->c->n + j] = as_float(mismatch(m, i, j));
}

static void widen_row(void *context, int64_t i, int thread)
{
    (void)thread;
    const moving *m = context;
    for (int64_t j = 0; j < m->c->n; j++)
        m->v[i * m->c->n + j] = m->product[i * m->c->n + j];
}

static void move_row(void *context, int64_t i, int thread)
{
    (void)thread;
    const moving *m = context;
    float *w = m->c->moved + (m->begin + i) * m->c->n;
    for (int64_t j = 0; j < m->c->n; j++) {
        const double v = (double)w[j] + m->v[i * m->c->n + j];
        if (v >= -(double)FLT_MAX && v <= (double)FLT_MAX)
            w[j] = (float)v;
    }
}

/* Strips of rows of w; D whole, in binary32. */
nb_status nb_gptq_move_first(nb_recursion *c, nb_err *err)
{
    nb_algebra *la = c->job->la;
    moving m = {.c = c, .share = share_of(c)};
    const int64_t strip = smaller(STRIP, c->n_rows);
    uint8_t *scratch = NULL;
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, NB_ALLOC(&m.d, c->n * c->n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&m.v, strip * c->n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&m.product, strip * c->n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&scratch,
                            nb_matmul_scratch_bytes(strip, c->n, c->n, nb_pool_n_threads(la->pool)),
                            err));
    nb_pool_run(la->pool, c->n, d_row, &m);
    for (m.begin = 0; m.begin < c->n_rows; m.begin = m.end) {
        m.end = smaller(m.begin + strip, c->n_rows);
        const int64_t n = m.end - m.begin;
        const nb_matmul_job product = {
            .c = m.product,
            .ldc = c->n,
            .m = n,
            .n = c->n,
            .depth = c->n,
            .a = {c->moved + m.begin * c->n, c->n, 1},
            .b = {m.d, c->n, 1},
        };
        nb_matmul(la->kernels, la->pool, &product, scratch);
        nb_pool_run(la->pool, n, widen_row, &m);
        NB_TRY_GOTO(s, nb_sym_solve_rows(la, &c->job->feedback->r, m.v, n, err));
        nb_pool_run(la->pool, n, move_row, &m);
    }
done:
    nb_free(m.d);
    nb_free(m.v);
    nb_free(m.product);
    nb_free(scratch);
    return s;
}

/* ---- gptaq ---- */

static void v_row(void *context, int64_t i, int thread)
{
    (void)thread;
    const moving *m = context;
    for (int64_t j = 0; j < m->c->n; j++)
        m->v[i * m->c->n + j] = mismatch(m, m->begin + i, j);
}

static void n_row(void *context, int64_t i, int thread)
{
    (void)thread;
    const moving *m = context;
    const nb_sym *r = &m->c->job->feedback->r;
    const int64_t n = m->c->n, diagonal = m->begin + i;
    for (int64_t k = m->begin; k < n; k++)
        m->d[i * n + k] = k <= diagonal ? 0 : as_float(m->v[i * n + k] / nb_sym_row(r, k)[k]);
}

/* Strips of rows of D. */
nb_status nb_gptq_move_stepwise(nb_recursion *c, nb_err *err)
{
    nb_algebra *la = c->job->la;
    moving m = {.c = c, .share = share_of(c)};
    const int64_t strip = smaller(STRIP, c->n);
    uint8_t *scratch = NULL;
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, NB_ALLOC(&m.d, strip * c->n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&m.v, strip * c->n, err));
    NB_TRY_GOTO(
        s, NB_ALLOC(&scratch,
                    nb_matmul_scratch_bytes(c->n_rows, c->n, strip, nb_pool_n_threads(la->pool)),
                    err));
    for (m.begin = 0; m.begin < c->n; m.begin = m.end) {
        m.end = smaller(m.begin + strip, c->n);
        const int64_t n = m.end - m.begin;
        nb_pool_run(la->pool, n, v_row, &m);
        NB_TRY_GOTO(s, nb_sym_half_solve_rows(la, &c->job->feedback->r, m.v, n, err));
        nb_pool_run(la->pool, n, n_row, &m);
        const nb_matmul_job product = {
            .c = c->t + m.begin,
            .ldc = c->n,
            .m = c->n_rows,
            .n = c->n - m.begin,
            .depth = n,
            .a = {c->base + m.begin, c->n, 1},
            .b = {m.d + m.begin, c->n, 1},
            .add = true,
        };
        nb_matmul(la->kernels, la->pool, &product, scratch);
    }
done:
    nb_free(m.d);
    nb_free(m.v);
    nb_free(scratch);
    return s;
}
