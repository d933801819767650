/* Scales that balance the rounding of inputs against that of weights, channel by channel.
 *
 * With one scale a token, m_t = max_j |x_tj| / s_j, and one a row of weights, M_r = max_j |W_rj|
 * s_j, the squared error of the products is, as rounding errors go (uniform, independent),
 *
 *   f(s) = sum_t m_t^2 / q_x^2 * sum_j s_j^2 c_j  +  sum_r M_r^2 / q_w^2 * sum_j h_j / s_j^2
 *
 * up to a factor, with c_j the squares of column j of the weights, h_j those of channel j of the
 * inputs, and q the largest codes; likewise group by group. It is convex in log s: there is one
 * optimum, each channel has its own s there, and no alpha is left to choose. */
#ifndef NB_QUANT_TRANSFORM_BALANCE_H
#define NB_QUANT_TRANSFORM_BALANCE_H

#include "base/pool.h"

#define NB_BALANCE_LINEARS 3

/* A matrix whose rows are rounded: inputs by token, weights by output. */
typedef struct {
    const float *a; /* [n_rows][n] */
    int64_t n_rows;
    int64_t group;  /* columns that share a scale */
    double largest; /* code; 0: not rounded at all */
} nb_balance_side;

typedef struct {
    nb_pool *pool;
    int64_t n; /* channels */
    nb_balance_side x;
    int n_linears;
    nb_balance_side w[NB_BALANCE_LINEARS];
    double
        power[NB_BALANCE_LINEARS]; /* squares of x w^T, which the linear's errors are divided by */
    const int64_t *source;         /* [n], below n: channels of one source get one s */
} nb_balance_job;

/* Bytes that it takes, for so many rows at most in any matrix. */
int64_t nb_balance_bytes(int64_t n, int64_t n_rows);
/* s [n], positive; 1 for channels without inputs or without weights. The same on any number of
 * threads. */
nb_status nb_balance(const nb_balance_job *job, float *s, nb_err *err);

#endif
