/* Private: the backward pass's small steps over v16, 16 lanes of binary32. avx2_back.c,
 * avx512_back.c and neon_back.c include it after the header that says what a v16 is.
 *
 * The product keeps a tile of V16_TILE_ROWS rows by V16_TILE_VECS vectors in registers. Its
 * operands are read as they lie, without packing: they are a few hundred kB that the caller has
 * just written. */
#include "kernel/kernel.h"

enum { LANES = 16 };

/* ---- products ---- */

/* The part of one product that a tile does: rows from i, columns from j, one chunk of k. `lanes` of
 * the last vector count: 16, or fewer at the right edge. */
typedef struct {
    const nb_product *p;
    int64_t i, j, begin, end, lanes;
} product_part;

V16_INLINE v16 load_lanes(const float *x, bool partial, int64_t lanes)
{
    return partial ? v16_load_n(x, lanes) : v16_load(x);
}

V16_INLINE void product_tile(const product_part *t, int rows, int vecs, bool partial)
{
    const nb_product *p = t->p;
    const int64_t a_row = p->a_row, a_col = p->a_col, ldb = p->ldb;
    v16 sum[V16_TILE_ROWS][V16_TILE_VECS];
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int v = 0; v < vecs; v++)
            sum[r][v] = v16_zero();
    }
    const float *a = p->a + t->i * a_row + t->begin * a_col, *b = p->b + t->begin * ldb + t->j;
    for (int64_t k = t->begin; k < t->end; k++, a += a_col, b += ldb) {
        v16 y[V16_TILE_VECS];
        V16_UNROLL
        for (int v = 0; v < vecs; v++)
            y[v] = load_lanes(b + v * LANES, partial, t->lanes);
        V16_UNROLL
        for (int r = 0; r < rows; r++) {
            const v16 x = v16_set1(a[r * a_row]);
            V16_UNROLL
            for (int v = 0; v < vecs; v++)
                sum[r][v] = v16_fma(x, y[v], sum[r][v]);
        }
    }
    const bool fresh = t->begin == 0 && !p->add;
    float *c = p->c + t->i * p->ldc + t->j;
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int v = 0; v < vecs; v++) {
            float *at = c + r * p->ldc + v * LANES;
            const v16 old = fresh ? v16_zero() : load_lanes(at, partial, t->lanes);
            if (partial)
                v16_store_n(at, v16_add(old, sum[r][v]), t->lanes);
            else
                v16_store(at, v16_add(old, sum[r][v]));
        }
    }
}

typedef void product_tile_fn(const product_part *t);
#define TILE(rows)                                                                                 \
    static void product_wide_##rows(const product_part *t)                                         \
    {                                                                                              \
        product_tile(t, rows, V16_TILE_VECS, false);                                               \
    }                                                                                              \
    static void product_one_##rows(const product_part *t)                                          \
    {                                                                                              \
        product_tile(t, rows, 1, false);                                                           \
    }                                                                                              \
    static void product_edge_##rows(const product_part *t)                                         \
    {                                                                                              \
        product_tile(t, rows, 1, true);                                                            \
    }
V16_TILES(TILE)
#undef TILE
#define TILE(rows) {product_wide_##rows, product_one_##rows, product_edge_##rows},
static product_tile_fn *const product_tiles[][3] = {{NULL, NULL, NULL}, V16_TILES(TILE)};
#undef TILE

/* All rows of a strip of columns, for one chunk of k: the strip of b stays in the first cache. */
static void product_strip(product_part t, int kind)
{
    for (t.i = 0; t.i < t.p->m; t.i += V16_TILE_ROWS) {
        const int64_t left = t.p->m - t.i;
        product_tiles[left < V16_TILE_ROWS ? left : V16_TILE_ROWS][kind](&t);
    }
}

static void product_v16(const nb_product *p)
{
    enum { WIDE = V16_TILE_VECS * LANES };
    for (int64_t i = 0; p->depth <= 0 && !p->add && i < p->m; i++)
        memset(p->c + i * p->ldc, 0, (size_t)p->n * sizeof *p->c);
    for (int64_t begin = 0; begin < p->depth; begin += NB_CHUNK_K) {
        const int64_t left = p->depth - begin;
        product_part t = {
            .p = p, .begin = begin, .end = begin + (left < NB_CHUNK_K ? left : NB_CHUNK_K)};
        for (; t.j + WIDE <= p->n; t.j += WIDE)
            product_strip(t, 0);
        for (; t.j + LANES <= p->n; t.j += LANES)
            product_strip(t, 1);
        t.lanes = p->n - t.j;
        if (t.lanes > 0)
            product_strip(t, 2);
    }
}

/* ---- rows ---- */

V16_INLINE void rmsnorm_back_sums(v16 dy, v16 x, v16 g, v16 *square, v16 *dot)
{
    *square = v16_fma(x, x, *square);
    *dot = v16_fma(v16_mul(dy, g), x, *dot);
}

V16_INLINE v16 rmsnorm_back_step(v16 dx, v16 dy, v16 x, v16 g, v16 r, v16 minus_c)
{
    return v16_add(dx, v16_fma(minus_c, x, v16_mul(v16_mul(dy, g), r)));
}

static void rmsnorm_back_v16(float *dx, const float *dy, const float *x, const float *g, int64_t n,
                             float eps)
{
    const int64_t full = n - n % LANES, tail = n % LANES;
    v16 square = v16_zero(), dot = v16_zero();
    for (int64_t i = 0; i < full; i += LANES)
        rmsnorm_back_sums(v16_load(dy + i), v16_load(x + i), v16_load(g + i), &square, &dot);
    if (tail > 0) {
        v16 all_square = square, all_dot = dot;
        rmsnorm_back_sums(v16_load_n(dy + full, tail), v16_load_n(x + full, tail),
                          v16_load_n(g + full, tail), &all_square, &all_dot);
        square = v16_pick_n(all_square, square, tail);
        dot = v16_pick_n(all_dot, dot, tail);
    }
    const float r = 1.0f / sqrtf(v16_tree(square) / (float)n + eps);
    const float c = r * r * r * v16_tree(dot) / (float)n;
    const v16 rs = v16_set1(r), minus_c = v16_set1(-c);
    for (int64_t i = 0; i < full; i += LANES)
        v16_store(dx + i, rmsnorm_back_step(v16_load(dx + i), v16_load(dy + i), v16_load(x + i),
                                            v16_load(g + i), rs, minus_c));
    if (tail > 0)
        v16_store_n(dx + full,
                    rmsnorm_back_step(v16_load_n(dx + full, tail), v16_load_n(dy + full, tail),
                                      v16_load_n(x + full, tail), v16_load_n(g + full, tail), rs,
                                      minus_c),
                    tail);
}

V16_INLINE void swiglu_back_step(v16 *g, v16 *u, v16 dy)
{
    const v16 one = v16_set1(1.0f);
    const v16 s = v16_div(one, v16_add(one, v16_exp(v16_sub(v16_zero(), *g))));
    const v16 a = v16_mul(*g, s);
    *g = v16_mul(v16_mul(dy, *u), v16_fma(a, v16_sub(one, s), s));
    *u = v16_mul(dy, a);
}

static void swiglu_back_v16(float *g, float *u, const float *dy, int64_t n)
{
    const int64_t full = n - n % LANES, tail = n % LANES;
    for (int64_t i = 0; i < full; i += LANES) {
        v16 a = v16_load(g + i), b = v16_load(u + i);
        swiglu_back_step(&a, &b, v16_load(dy + i));
        v16_store(g + i, a);
        v16_store(u + i, b);
    }
    if (tail > 0) {
        v16 a = v16_load_n(g + full, tail), b = v16_load_n(u + full, tail);
        swiglu_back_step(&a, &b, v16_load_n(dy + full, tail));
        v16_store_n(g + full, a, tail);
        v16_store_n(u + full, b, tail);
    }
}

static void softmax_back_v16(float *s, float *dp, int64_t n)
{
    const int64_t full = n - n % LANES, tail = n % LANES;
    v16 top = v16_set1(-INFINITY), sum = v16_zero(), dot = v16_zero();
    for (int64_t i = 0; i < full; i += LANES)
        top = v16_max(v16_load(s + i), top);
    if (tail > 0)
        top = v16_pick_n(v16_max(v16_load_n(s + full, tail), top), top, tail);
    const v16 m = v16_set1(v16_top(top));
    for (int64_t i = 0; i < full; i += LANES) {
        const v16 e = v16_exp(v16_sub(v16_load(s + i), m));
        v16_store(s + i, e);
        sum = v16_add(sum, e);
        dot = v16_fma(e, v16_load(dp + i), dot);
    }
    if (tail > 0) {
        const v16 e = v16_exp(v16_sub(v16_load_n(s + full, tail), m));
        v16_store_n(s + full, e, tail);
        sum = v16_pick_n(v16_add(sum, e), sum, tail);
        dot = v16_pick_n(v16_fma(e, v16_load_n(dp + full, tail), dot), dot, tail);
    }
    const float w = 1.0f / v16_tree(sum);
    const v16 ws = v16_set1(w), mean = v16_set1(v16_tree(dot) * w);
    for (int64_t i = 0; i < full; i += LANES) {
        const v16 p = v16_mul(v16_load(s + i), ws);
        v16_store(s + i, p);
        v16_store(dp + i, v16_mul(p, v16_sub(v16_load(dp + i), mean)));
    }
    if (tail > 0) {
        const v16 p = v16_mul(v16_load_n(s + full, tail), ws);
        v16_store_n(s + full, p, tail);
        v16_store_n(dp + full, v16_mul(p, v16_sub(v16_load_n(dp + full, tail), mean)), tail);
    }
}

static void fill_back(nb_kernels *k)
{
    k->product = product_v16;
    k->rmsnorm_back = rmsnorm_back_v16;
    k->swiglu_back = swiglu_back_v16;
    k->softmax_back = softmax_back_v16;
}
