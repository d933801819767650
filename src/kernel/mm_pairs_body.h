/* Tiles of products, and those in bfloat16: included by mm_body.h, and alone by the file of an
 * instruction set that only adds the dot product of pairs. Of what mm_body.h lists it needs vf,
 * VF_LANES, vf_zero, load, store, set1, add, SUB_ROWS, SUB_VECS, FOR_EACH_T, UNROLL, INLINE and
 * vf_fma; and, where there is one instruction for it, VF_DOT2 with
 *
 *   vf_dot2(a, b, c) = fma(low(a), low(b), fma(high(a), high(b), c)), lane by lane
 *
 * A lane holds a pair of bfloat16 numbers, that of the lower column in its low half. */
#include "kernel/kernel.h"

#include <assert.h>
#include <math.h>

enum {
    SUB_COLS = SUB_VECS * VF_LANES,
    SUB_SUMS = SUB_ROWS * SUB_VECS,
};
static_assert(NB_MM_ROWS % SUB_ROWS == 0 && NB_MM_COLS % SUB_COLS == 0,
              "a panel is cut into whole tiles");

/* c = sum, or += sum: T rows, and n columns or as many as there are registers for. */
INLINE void put_tile(float *c, int64_t ldc, int64_t n, const vf *sum, bool add, const int T)
{
    if (n >= SUB_COLS) {
        UNROLL
        for (int i = 0; i < T * SUB_VECS; i++) {
            float *to = c + i / SUB_VECS * ldc + i % SUB_VECS * VF_LANES;
            vf_store(to, vf_add(add ? vf_load(to) : vf_zero(), sum[i]));
        }
        return;
    }
    float rest[SUB_ROWS * SUB_COLS];
    UNROLL
    for (int i = 0; i < T * SUB_VECS; i++)
        vf_store(rest + i * VF_LANES, sum[i]);
    for (int t = 0; t < T; t++)
        for (int64_t j = 0; j < n; j++)
            c[t * ldc + j] = (add ? c[t * ldc + j] : 0) + rest[t * SUB_COLS + j];
}

static int64_t rows_of(int64_t left)
{
    return left < SUB_ROWS ? left : SUB_ROWS;
}

/* ---- numbers ---- */

typedef uint32_t vu __attribute__((vector_size(4 * VF_LANES), may_alias, aligned(4)));

/* nb_bf16_near (kernel.h), lane by lane: bits in the low half. */
INLINE vu bf16_near(vu u)
{
    const vu size = u & 0x7fffffff;
    const vu small = (vu)(size < NB_BF16_SMALL), nan = (vu)(size > 0x7f800000);
    const vu near = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return (near & ~nan & ~small) | ((u >> 16 | 0x40) & nan);
}

static void bf16_pairs(float *y, const float *low, const float *high, int64_t n)
{
    int64_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES)
        *(vu *)(void *)(y + i) = bf16_near(*(const vu *)(const void *)(low + i)) |
                                 bf16_near(*(const vu *)(const void *)(high + i)) << 16;
    for (; i < n; i++)
        nb_bf16_put(y + i, low[i], high[i]);
}

static void bf16_row(float *y, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + 2 * VF_LANES <= n; i += 2 * VF_LANES) {
        /* The low half of every other lane, then that of its neighbour. */
        typedef uint64_t vq __attribute__((vector_size(4 * VF_LANES), may_alias, aligned(4)));
        typedef uint32_t vh __attribute__((vector_size(2 * VF_LANES), may_alias, aligned(4)));
        for (int half = 0; half < 2; half++) {
            const vq q = (vq)bf16_near(*(const vu *)(const void *)(x + i + half * VF_LANES));
            *(vh *)(void *)(y + i / 2 + half * VF_LANES / 2) =
                __builtin_convertvector(q | q >> 16, vh);
        }
    }
    for (; i < n; i += 2)
        nb_bf16_put(y + i / 2, x[i], i + 1 < n ? x[i + 1] : 0);
}

/* ---- tiles ---- */

/* Which of a lane a step multiplies: all of it, a number; or of a pair both in one instruction, or
 * one after the other. */
enum { NUMBERS, PAIRS, HIGHS, LOWS };

INLINE vf part_of(vf v, const int which)
{
    const vu u = (vu)v;
    return which == HIGHS ? (vf)(vu)(u & 0xffff0000) : which == LOWS ? (vf)(vu)(u << 16) : v;
}

/* One step of T rows by SUB_COLS columns. */
INLINE void step(vf *sum, const float *a, const float *b, const int which, const int T)
{
    vf bk[SUB_VECS];
    UNROLL
    for (int v = 0; v < SUB_VECS; v++)
        bk[v] = part_of(vf_load(b + v * VF_LANES), which);
    UNROLL
    for (int t = 0; t < T; t++) {
        const vf at = part_of(vf_set1(a[t]), which);
        UNROLL
        for (int v = 0; v < SUB_VECS; v++) {
            vf *s = &sum[t * SUB_VECS + v];
#if defined(VF_DOT2)
            *s = which == PAIRS ? vf_dot2(at, bk[v], *s) : vf_fma(at, bk[v], *s);
#else
            *s = vf_fma(at, bk[v], *s);
#endif
        }
    }
}

/* T rows by SUB_COLS columns; of a pair the higher column comes first. */
INLINE void chains(vf *sum, const float *a, const float *b, int64_t depth, const bool pairs,
                   const int T)
{
    UNROLL
    for (int i = 0; i < T * SUB_VECS; i++)
        sum[i] = vf_zero();
    for (int64_t k = 0; k < depth; k++, a += NB_MM_ROWS, b += NB_MM_COLS) {
        if (!pairs) {
            step(sum, a, b, NUMBERS, T);
        } else {
#if defined(VF_DOT2)
            step(sum, a, b, PAIRS, T);
#else
            step(sum, a, b, HIGHS, T);
            step(sum, a, b, LOWS, T);
#endif
        }
    }
}

INLINE void tile(float *c, int64_t ldc, int64_t n, const float *a, const float *b, int64_t depth,
                 bool add, const bool pairs, const int T)
{
    vf sum[SUB_SUMS];
    chains(sum, a, b, depth, pairs, T);
    put_tile(c, ldc, n, sum, add, T);
}

typedef void tile_fn(float *c, int64_t ldc, int64_t n, const float *a, const float *b,
                     int64_t depth, bool add);

static void all_tiles(tile_fn *const tiles[SUB_ROWS], float *c, int64_t ldc, int64_t m, int64_t n,
                      const float *a, const float *b, int64_t depth, bool add)
{
    for (int64_t j = 0; j < n; j += SUB_COLS)
        for (int64_t i = 0; i < m; i += SUB_ROWS)
            tiles[rows_of(m - i) - 1](c + i * ldc + j, ldc, n - j, a + i, b + j, depth, add);
}

#define X(T)                                                                                       \
    static void tile_pairs_##T(float *c, int64_t ldc, int64_t n, const float *a, const float *b,   \
                               int64_t depth, bool add)                                            \
    {                                                                                              \
        tile(c, ldc, n, a, b, depth, add, true, T);                                                \
    }
FOR_EACH_T(X)
#undef X

static void mm_pairs(float *c, int64_t ldc, int64_t m, int64_t n, const float *a, const float *b,
                     int64_t depth, bool add)
{
#define X(T) tile_pairs_##T,
    static tile_fn *const tiles_pairs[SUB_ROWS] = {FOR_EACH_T(X)};
#undef X
    all_tiles(tiles_pairs, c, ldc, m, n, a, b, depth, add);
}

static void fill_mm_pairs(nb_kernels *k)
{
    k->mm_pairs = mm_pairs;
    k->bf16_pairs = bf16_pairs;
    k->bf16_row = bf16_row;
}
