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
 * the chunk sums are added to what c holds instead. c overlaps neither a nor b.
 *
 * With `pairs` an element of a or b is a pair of bfloat16 numbers, those of columns 2 k and 2 k + 1
 * of a and rows of b (kernel.h); depth counts pairs, and chunks are of 128 pairs. */
typedef struct {
    float *c;
    int64_t ldc, m, n, depth;
    nb_view a, b;
    bool add, pairs;
} nb_matmul_job;

/* Bytes of scratch, for any orientation; aligned to 64 by the caller. A few MiB at most, whatever
 * the shape. */
int64_t nb_matmul_scratch_bytes(int64_t m, int64_t n, int64_t depth, int n_threads);
void nb_matmul(const nb_kernels *k, nb_pool *pool, const nb_matmul_job *job, void *scratch);

/* The same product on one thread, for tasks of a pool that each have rows of their own and share b,
 * packed once for all of them. Any number of tasks may run at once, each with its own `scratch` of
 * NB_MATMUL_ROWS_SCRATCH bytes, aligned to 64.
 *
 * `packed` holds nb_matmul_packed_floats(n, depth) floats, aligned to 64. nb_matmul_pack fills in
 * the columns [begin, end) of all n; `begin` is a multiple of NB_MM_COLS, and so is `end` unless it
 * is n: tasks may share out the columns. nb_matmul_rows reads `packed` and not job->b. */
#define NB_MATMUL_ROWS_SCRATCH (96 * NB_CHUNK_K * (int64_t)sizeof(float))
int64_t nb_matmul_packed_floats(int64_t n, int64_t depth);
void nb_matmul_pack(float *packed, const nb_view *b, int64_t n, int64_t depth, int64_t begin,
                    int64_t end);
void nb_matmul_rows(const nb_kernels *k, const nb_matmul_job *job, const float *packed,
                    void *scratch);

/* The sums over tokens (A10). For each piece of 128 rows t (the last may be shorter), ascending:
 * c[i * ldc + j] += (double) of the sum over the rows of the piece of a[t * lda + i] *
 * b[t * ldb + j], one chain of binary32 fused multiply-adds in ascending t. Rows i of c start at
 * c + row_at[i]: element (i, j) is c[row_at[i] + j], so that a triangle needs no square.
 *
 * With `upper`, a is b, m is n, and only elements j >= i are computed. Others of the square of 128
 * rows and columns on the diagonal that i and j share may be, by tile; they are then what the rule
 * says. */
typedef struct {
    double *c;
    const int64_t *row_at; /* [m] */
    int64_t m, n, n_rows;
    const float *a, *b;
    int64_t lda, ldb;
    bool upper;
} nb_outer_job;

/* About 2 KiB for each row and each column of c. */
int64_t nb_outer_scratch_bytes(int64_t m, int64_t n, int n_threads);
void nb_outer_add(const nb_kernels *k, nb_pool *pool, const nb_outer_job *job, void *scratch);

#endif
