/* The second moments of a linear layer's inputs, and the linear algebra that encoders need of them:
 * sums over tokens, damping, factorization, solving. All of it in binary64 and in one order (A10),
 * the same bits on any number of threads and any instruction set: an element of a factor, an
 * inverse or a solution is one chain of fused multiply-adds in the order in which columns become
 * known, then a multiplication by the reciprocal of the diagonal.
 *
 * H = sum over tokens of x x^T. For a change E of the weights [n_rows, n], tr(E H E^T) is the
 * squared error of the layer's outputs over those tokens. */
#ifndef NB_QUANT_INPUTS_HESSIAN_H
#define NB_QUANT_INPUTS_HESSIAN_H

#include "base/bytes.h"
#include "base/spill.h"
#include "kernel/matmul.h"

#define NB_SYM_BLOCK 128

/* The upper triangle of a symmetric (or an upper triangular) matrix [n, n], by bands of 128 rows:
 * band b holds columns 128 b to n of its rows, one row after the other. Elements below the
 * diagonal but inside a band are scratch. `{0}` is empty. */
typedef struct {
    int64_t n;
    double *a;
    int64_t *row_at;      /* [n]: element (i, j), j >= i, is a[row_at[i] + j] */
    const nb_spill *file; /* where it rests: `a` is NULL then */
    double *diag;         /* [n], of a matrix that rests */
} nb_sym;

int64_t nb_sym_bytes(int64_t n);
/* All zero. */
nb_status nb_sym_init(nb_sym *s, int64_t n, nb_err *err);
void nb_sym_free(nb_sym *s);
static inline double *nb_sym_row(const nb_sym *s, int64_t i)
{
    return s->a + s->row_at[i]; /* [j], j >= i */
}
void nb_sym_copy(nb_sym *to, const nb_sym *from); /* of equal n */
/* to += from, element by element. */
void nb_sym_add(nb_sym *to, const nb_sym *from);

/* A matrix that has no room beside others can rest in a file of nb_sym_rest_rows(n) rows of 8
 * bytes, which has to stay open. Its diagonal remains; what is below wants a matrix in memory. */
int64_t nb_sym_rest_rows(int64_t n);
nb_status nb_sym_rest(nb_sym *s, const nb_spill *file, nb_err *err);
static inline bool nb_sym_rests(const nb_sym *s)
{
    return s->file != NULL;
}
static inline bool nb_sym_is_empty(const nb_sym *s)
{
    return s->a == NULL && s->file == NULL;
}
/* *to: a copy in memory of a matrix that rests. Free it as any other. */
nb_status nb_sym_wake(nb_sym *to, const nb_sym *from, nb_err *err);
/* A band, 128 b the first of its rows: (*rows)[i * (n - 128 b) + j] is element (128 b + i, 128 b +
 * j). Of a matrix that rests it is read into `room` [NB_SYM_BLOCK * n]. */
nb_status nb_sym_band(const nb_sym *s, int64_t band, double *room, const double **rows,
                      nb_err *err);
static inline double nb_sym_diag(const nb_sym *s, int64_t i)
{
    return nb_sym_rests(s) ? s->diag[i] : nb_sym_row(s, i)[i];
}

/* What the functions below run on. `scratch` grows as needed, to about 1 KiB for each column (sums:
 * 4 KiB), and is freed by nb_algebra_free. */
typedef struct {
    const nb_kernels *kernels;
    nb_pool *pool;
    nb_buf scratch;
} nb_algebra;
void nb_algebra_free(nb_algebra *la);

/* s += X^T X for x [n_rows][ld], in pieces of 128 rows counted from the first one of the call,
 * added ascending: cut calls at sequences or at multiples of 128. */
nb_status nb_sym_add_rows(nb_algebra *la, nb_sym *s, const float *x, int64_t ld, int64_t n_rows,
                          nb_err *err);
/* c [n][n] += A^T B for a, b [n_rows][ld]: row i from a, column j from b. The same pieces. */
nb_status nb_cross_add_rows(nb_algebra *la, double *c, int64_t n, const float *a, const float *b,
                            int64_t ld, int64_t n_rows, nb_err *err);

/* H' = (1 - shrink) H + shrink diag(H) + damp mean(diag(H)) I. A column that is zero throughout
 * gets 1 on its diagonal. Ledoit and Wolf, doi:10.1016/S0047-259X(03)00096-4, for the shrinkage;
 * GPTQ, arXiv:2210.17323, for the damping. */
void nb_sym_damp(nb_sym *s, double shrink, double damp);

/* In place: S = R R^T with R upper triangular (the Cholesky factor of the matrix in reverse order).
 * Feedback of errors from column i to a later one k is then R(i, k) / R(k, k) (QuIP,
 * arXiv:2307.13304, theorem 6), and R^-1 is the upper Cholesky factor U of S^-1 = U^T U that GPTQ
 * uses. *positive is false where a pivot is not positive or not finite: s is then spoilt. */
nb_status nb_sym_factor(nb_algebra *la, nb_sym *s, bool *positive, nb_err *err);
/* In place: R -> R^-1, upper triangular. */
nb_status nb_sym_invert_factor(nb_algebra *la, nb_sym *r, nb_err *err);
/* v [n_rows][n] = v S^-1, from its factor R. */
nb_status nb_sym_solve_rows(nb_algebra *la, const nb_sym *r, double *v, int64_t n_rows,
                            nb_err *err);
/* v [n_rows][n] = v R^-T: the first half of nb_sym_solve_rows, whose v S^-1 is v R^-T R^-1. */
nb_status nb_sym_half_solve_rows(nb_algebra *la, const nb_sym *r, double *v, int64_t n_rows,
                                 nb_err *err);

/* loss[row] = e S e^T for each row of e [n_rows][n]. */
nb_status nb_sym_loss_rows(nb_algebra *la, const nb_sym *s, const float *e, int64_t n_rows,
                           double *loss, nb_err *err);

#endif
