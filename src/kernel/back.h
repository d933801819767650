/* Slots of the kernel table that only the backward pass needs; part of kernel.h.
 *
 * Like all slots they are single-threaded, and every variant gives the bits of the scalar one. */
#ifndef NB_KERNEL_BACK_H
#define NB_KERNEL_BACK_H

#include <stdbool.h>
#include <stdint.h>

/* c[i * ldc + j] = sum over k of a[i * a_row + k * a_col] * b[k * ldb + j], i < m, j < n,
 * k < depth, by A2: what nb_matmul (matmul.h) does on the pool and by panels, for products so small
 * that their operands stay in the cache of one core as they are. With `add` the chunk sums are
 * added to what c holds. c overlaps neither a nor b. */
typedef struct {
    float *c;
    const float *a, *b;
    int64_t ldc, a_row, a_col, ldb;
    int64_t m, n, depth;
    bool add;
} nb_product;
typedef void nb_product_fn(const nb_product *p);

/* dx += the gradient of y = rmsnorm(x) for the gradient dy of y, n >= 1:
 * with r of rmsnorm's rule, h = fl(dy * g), t = sum of h * x by A1 (fma(h, x, lane)) and
 * c = fl(fl(fl(fl(r * r) * r) * t) / n):  dx = dx + fma(-c, x, fl(h * r)).
 * dx overlaps none of the others. */
typedef void nb_rmsnorm_back_fn(float *dx, const float *dy, const float *x, const float *g,
                                int64_t n, float eps);

/* In place, for y = swiglu(g, u) with the gradient dy of y: g becomes its own gradient, u too.
 * s = 1 / fl(1 + exp(-g)), a = fl(g * s):
 * dg = fl(fl(dy * u) * fma(a, fl(1 - s), s)), du = fl(dy * a). */
typedef void nb_swiglu_back_fn(float *g, float *u, const float *dy, int64_t n);

/* In place, one row of attention: s holds scores and dp the gradients of their softmax, n >= 1.
 * m = max (a NaN never is one), e = exp(s - m), l = sum of e, t = sum of e * dp (fma(e, dp, lane)),
 * both by A1; w = 1 / l:  s becomes p = fl(e * w), dp becomes fl(p * fl(dp - fl(t * w))). */
typedef void nb_softmax_back_fn(float *s, float *dp, int64_t n);

#endif
