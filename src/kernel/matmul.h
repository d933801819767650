/* Products of float matrices in any orientation, run on the pool: what statistics of activations,
 * encoders and the backward pass are made of. Products with the weights of a model that runs go
 * through packed panels instead (gemm.h); both are A2, so their results agree bit for bit. */
#ifndef NB_KERNEL_MATMUL_H
#define NB_KERNEL_MATMUL_H

#include "base/pool.h"
#include "kernel/kernel.h"

/* A matrix in memory: element (i, j) is p[i * row_step + j * col_step]. A transposed matrix is the
 * same one with its steps swapped. One of the steps is 1. */
typedef struct {
    const float *p;
    int64_t row_step, col_step;
} nb_view;

/* c[i * ldc + j] = sum over k of a(i, k) * b(k, j), i < m, j < n, k < depth: one chain of fused
 * multiply-adds in ascending k, cut every 128, chunk sums added ascending from +0 (A2). With `add`
 * the chunk sums are added to what c holds instead. c overlaps neither a nor b. */
typedef struct {
    float *c;
    int64_t ldc, m, n, depth;
    nb_view a, b;
    bool add;
} nb_matmul_job;

/* Bytes of scratch, for any orientation; aligned to 64 by the caller. */
int64_t nb_matmul_scratch_bytes(int64_t m, int64_t n, int64_t depth, int n_threads);
void nb_matmul(const nb_kernels *k, nb_pool *pool, const nb_matmul_job *job, void *scratch);

/* c[i * ldc + j] += (double) of the sum over t < n_rows <= 128 of a[t * lda + i] * b[t * ldb + j],
 * one chain of binary32 fused multiply-adds in ascending t: a piece of the sums over tokens (A10).
 * With `upper`, a == b and only elements j >= i are computed (others may be, by tile; they are then
 * what the rule says). Rows i of c start at c + row_at[i]: element (i, j) is c[row_at[i] + j], so
 * that a triangle needs no square. */
typedef struct {
    double *c;
    const int64_t *row_at; /* [m] */
    int64_t m, n, n_rows;
    const float *a, *b;
    int64_t lda, ldb;
    bool upper;
} nb_outer_job;

int64_t nb_outer_scratch_bytes(int64_t m, int64_t n, int n_threads);
void nb_outer_add(const nb_kernels *k, nb_pool *pool, const nb_outer_job *job, void *scratch);

#endif
