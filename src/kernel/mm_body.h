/* The tiles of general matrix products that do not depend on the instruction set, included by each
 * one's file after it has defined:
 *
 *   vf, vd, VF_LANES, VD_LANES       registers of binary32 and binary64
 *   vf_/vd_ zero, load, store, set1, add, fma; vd_fnma(a, b, c) = c - a * b
 *   vf_add_widened(c, v)             adds the lanes of v to the doubles at c
 *   vf_/vd_axpy_rest(y, a, x, n)     axpy of fewer elements than a register has
 *   SUB_ROWS, SUB_VECS               rows and registers of a tile whose sums stay in registers
 *   FOR_EACH_T(X)                    X(1) .. X(SUB_ROWS)
 *   UNROLL, INLINE
 *
 * A packed panel is NB_MM_ROWS rows by NB_MM_COLS columns whatever the machine; one with fewer
 * registers takes it in parts. A step of a tile is SUB_VECS loads of b, a broadcast of a for each
 * row, and SUB_ROWS * SUB_VECS fused multiply-adds, each into a sum of its own: enough of them to
 * hide their latency. Results that do not fill their registers go through a buffer. */
#include "kernel/mm_pairs_body.h"

enum { SUB_COLS_D = SUB_VECS * VD_LANES };
static_assert(NB_MM_COLS_D % SUB_COLS_D == 0, "a panel is cut into whole tiles");

INLINE void tile_widen(double *c, const int64_t *row_at, int64_t n, const float *a, const float *b,
                       int64_t depth, const int T)
{
    /* c comes from far away: it is on its way while the chains run. */
    if (n >= SUB_COLS)
        for (int t = 0; t < T; t++)
            for (int j = 0; j < SUB_COLS; j += 8)
                __builtin_prefetch(c + row_at[t] + j, 1);
    vf sum[SUB_SUMS];
    chains(sum, a, b, depth, false, T);
    if (n >= SUB_COLS) {
        UNROLL
        for (int i = 0; i < T * SUB_VECS; i++)
            vf_add_widened(c + row_at[i / SUB_VECS] + i % SUB_VECS * VF_LANES, sum[i]);
        return;
    }
    float rest[SUB_ROWS * SUB_COLS];
    UNROLL
    for (int i = 0; i < T * SUB_VECS; i++)
        vf_store(rest + i * VF_LANES, sum[i]);
    for (int t = 0; t < T; t++)
        for (int64_t j = 0; j < n; j++)
            c[row_at[t] + j] += (double)rest[t * SUB_COLS + j];
}

/* The same in binary64, from c on: `c` is T rows of SUB_COLS_D, ldc apart. */
INLINE void chains_sub_d(double *c, int64_t ldc, const double *a, const double *b, int64_t depth,
                         const int T)
{
    vd sum[SUB_SUMS];
    UNROLL
    for (int i = 0; i < T * SUB_VECS; i++)
        sum[i] = vd_load(c + i / SUB_VECS * ldc + i % SUB_VECS * VD_LANES);
    for (int64_t k = 0; k < depth; k++, a += NB_MM_ROWS, b += NB_MM_COLS_D) {
        vd bk[SUB_VECS];
        UNROLL
        for (int v = 0; v < SUB_VECS; v++)
            bk[v] = vd_load(b + v * VD_LANES);
        UNROLL
        for (int t = 0; t < T; t++) {
            const vd at = vd_set1(a[t]);
            UNROLL
            for (int v = 0; v < SUB_VECS; v++)
                sum[t * SUB_VECS + v] = vd_fnma(at, bk[v], sum[t * SUB_VECS + v]);
        }
    }
    UNROLL
    for (int i = 0; i < T * SUB_VECS; i++)
        vd_store(c + i / SUB_VECS * ldc + i % SUB_VECS * VD_LANES, sum[i]);
}

INLINE void tile_sub_d(double *c, int64_t ldc, int64_t n, const double *a, const double *b,
                       int64_t depth, const int T)
{
    if (n >= SUB_COLS_D) {
        chains_sub_d(c, ldc, a, b, depth, T);
        return;
    }
    double rest[SUB_ROWS * SUB_COLS_D] = {0};
    for (int t = 0; t < T; t++)
        for (int64_t j = 0; j < n; j++)
            rest[t * SUB_COLS_D + j] = c[t * ldc + j];
    chains_sub_d(rest, SUB_COLS_D, a, b, depth, T);
    for (int t = 0; t < T; t++)
        for (int64_t j = 0; j < n; j++)
            c[t * ldc + j] = rest[t * SUB_COLS_D + j];
}

typedef void tile_widen_fn(double *c, const int64_t *row_at, int64_t n, const float *a,
                           const float *b, int64_t depth);
typedef void tile_sub_d_fn(double *c, int64_t ldc, int64_t n, const double *a, const double *b,
                           int64_t depth);
#define X(T)                                                                                       \
    static void tile_##T(float *c, int64_t ldc, int64_t n, const float *a, const float *b,         \
                         int64_t depth, bool add)                                                  \
    {                                                                                              \
        tile(c, ldc, n, a, b, depth, add, false, T);                                               \
    }                                                                                              \
    static void tile_widen_##T(double *c, const int64_t *row_at, int64_t n, const float *a,        \
                               const float *b, int64_t depth)                                      \
    {                                                                                              \
        tile_widen(c, row_at, n, a, b, depth, T);                                                  \
    }                                                                                              \
    static void tile_sub_d_##T(double *c, int64_t ldc, int64_t n, const double *a,                 \
                               const double *b, int64_t depth)                                     \
    {                                                                                              \
        tile_sub_d(c, ldc, n, a, b, depth, T);                                                     \
    }
FOR_EACH_T(X)
#undef X
#define X(T) tile_##T,
static tile_fn *const tiles[SUB_ROWS] = {FOR_EACH_T(X)};
#undef X
#define X(T) tile_widen_##T,
static tile_widen_fn *const tiles_widen[SUB_ROWS] = {FOR_EACH_T(X)};
#undef X
#define X(T) tile_sub_d_##T,
static tile_sub_d_fn *const tiles_sub_d[SUB_ROWS] = {FOR_EACH_T(X)};
#undef X

static void mm(float *c, int64_t ldc, int64_t m, int64_t n, const float *a, const float *b,
               int64_t depth, bool add)
{
    all_tiles(tiles, c, ldc, m, n, a, b, depth, add);
}

static void mm_widen(double *c, const int64_t *row_at, int64_t m, int64_t n, const float *a,
                     const float *b, int64_t depth)
{
    for (int64_t j = 0; j < n; j += SUB_COLS)
        for (int64_t i = 0; i < m; i += SUB_ROWS)
            tiles_widen[rows_of(m - i) - 1](c + j, row_at + i, n - j, a + i, b + j, depth);
}

static void mm_sub_d(double *c, int64_t ldc, int64_t m, int64_t n, const double *a, const double *b,
                     int64_t depth)
{
    for (int64_t j = 0; j < n; j += SUB_COLS_D)
        for (int64_t i = 0; i < m; i += SUB_ROWS)
            tiles_sub_d[rows_of(m - i) - 1](c + i * ldc + j, ldc, n - j, a + i, b + j, depth);
}

static void axpy(float *y, float a, const float *x, int64_t n)
{
    const vf va = vf_set1(a);
    int64_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES)
        vf_store(y + i, vf_fma(va, vf_load(x + i), vf_load(y + i)));
    vf_axpy_rest(y + i, a, x + i, n - i);
}

static void axpy_d(double *y, double a, const double *x, int64_t n)
{
    const vd va = vd_set1(a);
    int64_t i = 0;
    for (; i + VD_LANES <= n; i += VD_LANES)
        vd_store(y + i, vd_fma(va, vd_load(x + i), vd_load(y + i)));
    vd_axpy_rest(y + i, a, x + i, n - i);
}

static void fill_mm(nb_kernels *k)
{
    k->mm = mm;
    k->mm_widen = mm_widen;
    k->mm_sub_d = mm_sub_d;
    k->axpy = axpy;
    k->axpy_d = axpy_d;
    fill_mm_pairs(k);
}
