/* The definition of the tiles that general matrix products are made of, and of axpy: scalar, in
 * the contract's order (A2, A10). Never optimised. */
#include "kernel/kernel.h"

#include <math.h>

static float chain(const float *a, const float *b, int64_t depth, int64_t i, int64_t j)
{
    float sum = 0;
    for (int64_t k = 0; k < depth; k++)
        sum = fmaf(a[k * NB_MM_ROWS + i], b[k * NB_MM_COLS + j], sum);
    return sum;
}

static void mm_ref(float *c, int64_t ldc, int64_t m, int64_t n, const float *a, const float *b,
                   int64_t depth, bool add)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            c[i * ldc + j] = (add ? c[i * ldc + j] : 0) + chain(a, b, depth, i, j);
}

static float half_of(const float *pair, bool high)
{
    const uint32_t u = nb_f32_bits(*pair);
    return nb_f32_from_bits(high ? u & 0xffff0000 : u << 16);
}

static void mm_pairs_ref(float *c, int64_t ldc, int64_t m, int64_t n, const float *a,
                         const float *b, int64_t depth, bool add)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = 0;
            for (int64_t k = 0; k < depth; k++)
                for (int high = 1; high >= 0; high--)
                    sum = fmaf(half_of(a + k * NB_MM_ROWS + i, high),
                               half_of(b + k * NB_MM_COLS + j, high), sum);
            c[i * ldc + j] = (add ? c[i * ldc + j] : 0) + sum;
        }
}

static void bf16_pairs_ref(float *y, const float *low, const float *high, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        nb_bf16_put(y + i, low[i], high[i]);
}

static void bf16_row_ref(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 2)
        nb_bf16_put(y + i / 2, x[i], i + 1 < n ? x[i + 1] : 0);
}

static void mm_widen_ref(double *c, const int64_t *row_at, int64_t m, int64_t n, const float *a,
                         const float *b, int64_t depth)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            c[row_at[i] + j] += (double)chain(a, b, depth, i, j);
}

static void mm_sub_d_ref(double *c, int64_t ldc, int64_t m, int64_t n, const double *a,
                         const double *b, int64_t depth)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t k = 0; k < depth; k++)
                c[i * ldc + j] =
                    fma(-a[k * NB_MM_ROWS + i], b[k * NB_MM_COLS_D + j], c[i * ldc + j]);
}

static void axpy_ref(float *y, float a, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = fmaf(a, x[i], y[i]);
}

static void axpy_d_ref(double *y, double a, const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = fma(a, x[i], y[i]);
}

void nb_kernels_ref_mm(nb_kernels *k)
{
    k->mm = mm_ref;
    k->mm_widen = mm_widen_ref;
    k->mm_sub_d = mm_sub_d_ref;
    k->mm_pairs = mm_pairs_ref;
    k->bf16_pairs = bf16_pairs_ref;
    k->bf16_row = bf16_row_ref;
    k->axpy = axpy_ref;
    k->axpy_d = axpy_d_ref;
}
