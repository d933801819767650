/* Private: attention (A5) over v16, 16 lanes of binary32. avx2_attn.c and avx512_attn.c include it
 * after the header that says what a v16 is.
 *
 * Plan. The rows (tokens x query heads of one KV head, at most 24) share every key and value that
 * is read. They go in tiles of up to V16_TILE_ROWS, whose sums stay in registers:
 *
 *   scores   lanes are positions: per dimension, V16_TILE_VECS vectors of keys are loaded and one
 *            broadcast per row, for rows x vectors fused multiply-adds
 *   values   lanes are dimensions: per position the same, with the weights e broadcast
 *
 * A page is read once per tile, from the cache after the first; F16 cells are widened as they are
 * loaded. Tiles of few rows (decode) take more vectors, so that there are enough independent
 * chains to hide the latency of an FMA. Scores of cells that a row does not see are overwritten
 * with -infinity, whose exp is the +0 that A1 wants; in the products with values such cells are
 * left out, which is the same as adding +0 * +0. */
#include "kernel/kernel.h"
#include "kernel/attn_scratch.h"
#include "numeric/minifloat.h"

#include <assert.h>

enum {
    LANES = 16,
    PAGES = NB_KV_SPLIT / NB_KV_PAGE,
    STRIDE = NB_ATTN_SCORE_STRIDE,
};
static_assert(NB_CHUNK_K % NB_KV_PAGE == 0 && NB_KV_PAGE % LANES == 0, "cuts fall between pages");

/* ---- register tiles: straight loops, unrolled for constant rows and vecs ---- */

V16_INLINE v16 load_cells(const uint8_t *cells, int64_t i, bool f16)
{
    return f16 ? v16_load_f16((const uint16_t *)cells + i) : v16_load((const float *)cells + i);
}

/* s[r][16 v ...] = A2 over the dimensions, for the 16 positions whose cells of dimension 0 start
 * at keys[v]; q is [head_dim][n_rows]. */
V16_INLINE void score_tile(float *s, const float *q, int64_t n_rows, const uint8_t *const *keys,
                           int64_t head_dim, int rows, int vecs, bool f16)
{
    for (int64_t begin = 0; begin < head_dim; begin += NB_CHUNK_K) {
        const int64_t end = head_dim < begin + NB_CHUNK_K ? head_dim : begin + NB_CHUNK_K;
        v16 sum[V16_TILE_ROWS][4];
        V16_UNROLL
        for (int r = 0; r < rows; r++) {
            V16_UNROLL
            for (int v = 0; v < vecs; v++)
                sum[r][v] = v16_zero();
        }
        for (int64_t d = begin; d < end; d++) {
            v16 key[4];
            V16_UNROLL
            for (int v = 0; v < vecs; v++)
                key[v] = load_cells(keys[v], d * NB_KV_PAGE, f16);
            V16_UNROLL
            for (int r = 0; r < rows; r++) {
                const v16 one = v16_set1(q[d * n_rows + r]);
                V16_UNROLL
                for (int v = 0; v < vecs; v++)
                    sum[r][v] = v16_fma(one, key[v], sum[r][v]);
            }
        }
        V16_UNROLL
        for (int r = 0; r < rows; r++) {
            V16_UNROLL
            for (int v = 0; v < vecs; v++) {
                float *at = s + r * STRIDE + v * LANES;
                v16_store(at, v16_add(begin > 0 ? v16_load(at) : v16_zero(), sum[r][v]));
            }
        }
    }
}

/* Carries the chains chain[r][16 v ...] on over the cells [begin, end) of the split, in which row
 * r weighs cell c with e[r][c]; pages[i] is where page i has this tile's first dimension. */
V16_INLINE void value_tile(float *chain, const float *e, const uint8_t *const *pages, size_t offset,
                           int64_t begin, int64_t end, int64_t head_dim, int rows, int vecs,
                           bool f16)
{
    v16 sum[V16_TILE_ROWS][4];
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int v = 0; v < vecs; v++)
            sum[r][v] = v16_load(chain + r * head_dim + v * LANES);
    }
    for (int64_t c = begin; c < end;) {
        const uint8_t *values = pages[c / NB_KV_PAGE] + offset;
        const int64_t stop = (c / NB_KV_PAGE + 1) * NB_KV_PAGE;
        for (; c < end && c < stop; c++) {
            v16 value[4];
            V16_UNROLL
            for (int v = 0; v < vecs; v++)
                value[v] = load_cells(values, c % NB_KV_PAGE * head_dim + v * LANES, f16);
            V16_UNROLL
            for (int r = 0; r < rows; r++) {
                const v16 one = v16_set1(e[r * STRIDE + c]);
                V16_UNROLL
                for (int v = 0; v < vecs; v++)
                    sum[r][v] = v16_fma(one, value[v], sum[r][v]);
            }
        }
    }
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int v = 0; v < vecs; v++)
            v16_store(chain + r * head_dim + v * LANES, sum[r][v]);
    }
}

/* The dimensions of a head that fill no vector, one at a time. */
static void value_rest(float *chain, const float *e, const uint8_t *const *pages, int64_t begin,
                       int64_t end, int64_t head_dim, int rows, nb_float_type cell)
{
    for (int r = 0; r < rows; r++) {
        for (int64_t d = head_dim - head_dim % LANES; d < head_dim; d++) {
            float sum = chain[r * head_dim + d];
            for (int64_t c = begin; c < end; c++)
                sum = fmaf(e[r * STRIDE + c],
                           nb_float_get(pages[c / NB_KV_PAGE], cell, c % NB_KV_PAGE * head_dim + d),
                           sum);
            chain[r * head_dim + d] = sum;
        }
    }
}

typedef void score_fn(float *s, const float *q, int64_t n_rows, const uint8_t *const *keys,
                      int64_t head_dim, bool f16);
typedef void value_fn(float *chain, const float *e, const uint8_t *const *pages, int64_t begin,
                      int64_t end, int64_t head_dim, bool f16);

V16_INLINE void value_rows(float *chain, const float *e, const uint8_t *const *pages, int64_t begin,
                           int64_t end, int64_t head_dim, int rows, int vecs, bool f16)
{
    const size_t cell = f16 ? sizeof(uint16_t) : sizeof(float);
    int64_t d = 0;
    for (; d + vecs * LANES <= head_dim; d += vecs * LANES)
        value_tile(chain + d, e, pages, (size_t)d * cell, begin, end, head_dim, rows, vecs, f16);
    for (; d + LANES <= head_dim; d += LANES)
        value_tile(chain + d, e, pages, (size_t)d * cell, begin, end, head_dim, rows, 1, f16);
}

#define TILE(rows)                                                                                 \
    static void score_##rows(float *s, const float *q, int64_t n_rows, const uint8_t *const *keys, \
                             int64_t head_dim, bool f16)                                           \
    {                                                                                              \
        if (f16)                                                                                   \
            score_tile(s, q, n_rows, keys, head_dim, rows, V16_TILE_VECS(rows), true);             \
        else                                                                                       \
            score_tile(s, q, n_rows, keys, head_dim, rows, V16_TILE_VECS(rows), false);            \
    }                                                                                              \
    static void value_##rows(float *chain, const float *e, const uint8_t *const *pages,            \
                             int64_t begin, int64_t end, int64_t head_dim, bool f16)               \
    {                                                                                              \
        if (f16)                                                                                   \
            value_rows(chain, e, pages, begin, end, head_dim, rows, V16_TILE_VECS(rows), true);    \
        else                                                                                       \
            value_rows(chain, e, pages, begin, end, head_dim, rows, V16_TILE_VECS(rows), false);   \
    }
V16_TILES(TILE)
#undef TILE

#define TILE(rows) score_##rows,
static score_fn *const score_of_rows[V16_TILE_ROWS + 1] = {NULL, V16_TILES(TILE)};
#undef TILE
#define TILE(rows) value_##rows,
static value_fn *const value_of_rows[V16_TILE_ROWS + 1] = {NULL, V16_TILES(TILE)};
#undef TILE

/* ---- one split ---- */

/* What all tiles of a call share. Cells of a split are counted from its first position. */
typedef struct {
    const nb_attn_args *a;
    int n_rows;
    bool f16;
    float *scores, *q, *chain, *m, *l, *o;
    /* the current split */
    int64_t first;                              /* its first position */
    const uint8_t *keys[PAGES], *values[PAGES]; /* NULL: seen by no row */
} attention;

/* The cells of the current split that the row sees: [begin, end), empty if begin >= end. */
typedef struct {
    int64_t begin, end;
} cells;

static cells row_sees(const attention *at, int row)
{
    const nb_attn_args *a = at->a;
    const int64_t pos = a->pos0 + row / a->n_group;
    const int64_t begin = a->window > 0 && a->window <= pos ? pos + 1 - a->window : 0;
    return (cells){
        .begin = begin > at->first ? begin - at->first : 0,
        .end = pos + 1 < at->first + NB_KV_SPLIT ? pos + 1 - at->first : NB_KV_SPLIT,
    };
}

static void split_start(attention *at, int64_t split)
{
    const nb_kv_view *kv = &at->a->kv;
    const size_t head_bytes = kv->head_bytes;
    at->first = split * NB_KV_SPLIT;
    const cells sees = {row_sees(at, 0).begin, row_sees(at, at->n_rows - 1).end};
    for (int64_t i = 0; i < PAGES; i++) {
        at->keys[i] = at->values[i] = NULL;
        if (i < sees.begin / NB_KV_PAGE || i * NB_KV_PAGE >= sees.end)
            continue; /* the table may have no entry for it */
        const int64_t page = kv->table[split * PAGES + i];
        const uint8_t *bytes =
            kv->arena + (size_t)page * kv->page_bytes + (size_t)at->a->kv_head * head_bytes;
        at->keys[i] = bytes + kv->k_offset;
        at->values[i] = bytes + kv->v_offset;
    }
}

/* Scores of rows [row, row + rows) against every cell that one of them sees; others get junk. */
static void tile_scores(const attention *at, int row, int rows)
{
    const cells sees = {row_sees(at, row).begin, row_sees(at, row + rows - 1).end};
    const int64_t head_dim = at->a->kv.head_dim;
    const int vecs = V16_TILE_VECS(rows);
    const size_t block_bytes = LANES * (size_t)(at->f16 ? 2 : 4);
    const int64_t last = (sees.end - 1) / LANES;
    for (int64_t b = sees.begin / LANES / vecs * vecs; b <= last; b += vecs) {
        const uint8_t *keys[4];
        for (int v = 0; v < vecs; v++) { /* blocks outside repeat one that is inside */
            int64_t i = b + v < last ? b + v : last;
            i = i * LANES < sees.begin ? sees.begin / LANES : i;
            const int64_t per_page = NB_KV_PAGE / LANES;
            keys[v] = at->keys[i / per_page] + (size_t)(i % per_page) * block_bytes;
        }
        score_of_rows[rows](at->scores + row * STRIDE + b * LANES, at->q + row, at->n_rows, keys,
                            head_dim, at->f16);
    }
}

/* Turns a row's scores s into exp(s - m_j); gives m_j and l_j. */
static void row_softmax(float *s, cells sees, float *max, float *sum)
{
    const int64_t begin = sees.begin / LANES * LANES;
    const int64_t end = (sees.end + LANES - 1) / LANES * LANES;
    for (int64_t c = begin; c < sees.begin; c++)
        s[c] = -INFINITY;
    for (int64_t c = sees.end; c < end; c++)
        s[c] = -INFINITY;
    v16 top = v16_set1(-INFINITY);
    for (int64_t c = begin; c < end; c += LANES)
        top = v16_max(v16_load(s + c), top);
    *max = v16_top(top);
    const v16 m = v16_set1(*max);
    v16 lane = v16_zero();
    for (int64_t c = begin; c < end; c += LANES) {
        const v16 e = v16_exp(v16_sub(v16_load(s + c), m));
        v16_store(s + c, e);
        lane = v16_add(lane, e);
    }
    *sum = v16_tree(lane);
}

/* Carries the chains of rows on over the cells of `range` that lie in the cut. */
static void chain_values(const attention *at, int row, int rows, int64_t cut, cells range)
{
    const int64_t begin = range.begin > cut ? range.begin : cut;
    const int64_t end = range.end < cut + NB_CHUNK_K ? range.end : cut + NB_CHUNK_K;
    if (begin >= end)
        return;
    const int64_t head_dim = at->a->kv.head_dim;
    float *chain = at->chain + row * head_dim;
    const float *e = at->scores + row * STRIDE;
    value_of_rows[rows](chain, e, at->values, begin, end, head_dim, at->f16);
    if (head_dim % LANES != 0)
        value_rest(chain, e, at->values, begin, end, head_dim, rows, at->f16 ? NB_F16 : NB_F32);
}

/* The same over what each token of the tile sees before or after the cells that all of them see:
 * a few cells at the edges of the causal mask and of the window. */
static void chain_edges(const attention *at, int row, int rows, int64_t cut, cells common,
                        bool after)
{
    const int end = row + rows, n_group = at->a->n_group;
    while (row < end) {
        const int next = (row / n_group + 1) * n_group, stop = next < end ? next : end;
        cells range = row_sees(at, row);
        if (after)
            range.begin = range.begin > common.end ? range.begin : common.end;
        else
            range.end = range.end < common.begin ? range.end : common.begin;
        chain_values(at, row, stop - row, cut, range);
        row = stop;
    }
}

/* o_j of a tile's rows: A2 over the cells of the split, in two cuts. */
static void tile_values(const attention *at, int row, int rows, float *o)
{
    const int64_t head_dim = at->a->kv.head_dim, n = rows * head_dim;
    float *chain = at->chain + row * head_dim;
    cells common = {row_sees(at, row + rows - 1).begin, row_sees(at, row).end};
    if (common.begin >= common.end) /* then everything is an edge */
        common.begin = common.end = NB_KV_SPLIT;
    memset(o, 0, (size_t)n * sizeof *o);
    for (int64_t cut = 0; cut < NB_KV_SPLIT; cut += NB_CHUNK_K) {
        memset(chain, 0, (size_t)n * sizeof *chain);
        chain_edges(at, row, rows, cut, common, false);
        chain_values(at, row, rows, cut, common);
        chain_edges(at, row, rows, cut, common, true);
        for (int64_t i = 0; i < n; i++)
            o[i] += chain[i];
    }
}

/* ---- a call ---- */

static void attend_split(attention *at, int64_t split, int64_t slot)
{
    split_start(at, split);
    const int n_tiles = (at->n_rows + V16_TILE_ROWS - 1) / V16_TILE_ROWS;
    for (int i = 0; i < n_tiles; i++) {
        const int row = at->n_rows * i / n_tiles, rows = at->n_rows * (i + 1) / n_tiles - row;
        if (row_sees(at, row).begin >= row_sees(at, row + rows - 1).end)
            continue;
        tile_scores(at, row, rows);
        for (int r = row; r < row + rows; r++) {
            const cells sees = row_sees(at, r);
            if (sees.begin < sees.end)
                row_softmax(at->scores + r * STRIDE, sees, &at->m[slot * at->n_rows + r],
                            &at->l[slot * at->n_rows + r]);
        }
        tile_values(at, row, rows, at->o + (slot * at->n_rows + row) * at->a->kv.head_dim);
    }
}

/* out = O / L over the slots [begin, end) of one row. */
static void merge_row(const attention *at, int row, int64_t begin, int64_t end, float *out)
{
    const int64_t head_dim = at->a->kv.head_dim, n_rows = at->n_rows;
    float max = -INFINITY, L = 0;
    for (int64_t j = begin; j < end; j++)
        max = at->m[j * n_rows + row] > max ? at->m[j * n_rows + row] : max;
    float *O = at->chain;
    memset(O, 0, (size_t)head_dim * sizeof *O);
    for (int64_t j = begin; j < end; j++) {
        const float w = nb_expf(at->m[j * n_rows + row] - max);
        const float *o = at->o + (j * n_rows + row) * head_dim;
        L = fmaf(at->l[j * n_rows + row], w, L);
        for (int64_t d = 0; d < head_dim; d++)
            O[d] = fmaf(o[d], w, O[d]);
    }
    for (int64_t d = 0; d < head_dim; d++)
        out[d] = O[d] / L;
}

static void attention_v16(const nb_attn_args *a)
{
    assert(a->n_q * a->n_group <= NB_ATTN_ROWS && a->kv.head_dim <= NB_ATTN_MAX_DIM);
    const nb_attn_room room = nb_attn_scratch(a->kv.head_dim, a->pos0 + a->n_q);
    attention at = {
        .a = a,
        .n_rows = a->n_q * a->n_group,
        .f16 = a->kv.format == NB_KV_F16,
        .scores = a->scratch + room.scores,
        .q = a->scratch + room.q,
        .chain = a->scratch + room.chain,
        .m = a->scratch + room.m,
        .l = a->scratch + room.l,
        .o = a->scratch + room.o,
    };
    const int64_t head_dim = a->kv.head_dim, head0 = (int64_t)a->kv_head * a->n_group;
    for (int r = 0; r < at.n_rows; r++) {
        const float *q = a->q + r / a->n_group * a->ld + (head0 + r % a->n_group) * head_dim;
        for (int64_t d = 0; d < head_dim; d++)
            at.q[d * at.n_rows + r] = q[d] * a->scale;
    }

    const int64_t split0 = row_sees(&at, 0).begin / NB_KV_SPLIT; /* at.first is 0 here */
    const int64_t split1 = (a->pos0 + a->n_q - 1) / NB_KV_SPLIT;
    for (int64_t j = split0; j <= split1; j++)
        attend_split(&at, j, j - split0);
    at.first = 0;
    for (int r = 0; r < at.n_rows; r++) {
        float *out = a->out + r / a->n_group * a->ld + (head0 + r % a->n_group) * head_dim;
        const int64_t pos = a->pos0 + r / a->n_group;
        merge_row(&at, r, row_sees(&at, r).begin / NB_KV_SPLIT - split0,
                  pos / NB_KV_SPLIT + 1 - split0, out);
    }
}

/* ---- the cache ---- */

/* Values lie as they come; a key is spread over the 32 columns of its page, a cell per cache line
 * or so, which no instruction helps with. What the vectors are for is the rounding to F16. */
static void store_f16(uint16_t *keys, uint16_t *values, const float *k, const float *v,
                      int64_t head_dim)
{
    int64_t d = 0;
    for (; d + LANES <= head_dim; d += LANES) {
        uint16_t key[LANES];
        v16_store_f16(key, v16_load(k + d));
        v16_store_f16(values + d, v16_load(v + d));
        for (int i = 0; i < LANES; i++)
            keys[(d + i) * NB_KV_PAGE] = key[i];
    }
    for (; d < head_dim; d++) {
        keys[d * NB_KV_PAGE] = nb_f16_from_f32(k[d]);
        values[d] = nb_f16_from_f32(v[d]);
    }
}

static void kv_store_v16(const nb_kv_view *kv, int64_t pos, int first_head, int n_heads,
                         const float *k, const float *v)
{
    const int64_t head_dim = kv->head_dim, in_page = pos % NB_KV_PAGE;
    const size_t cell = kv->format == NB_KV_F32 ? 4 : 2;
    uint8_t *page = kv->arena + (size_t)kv->table[pos / NB_KV_PAGE] * kv->page_bytes;
    uint8_t *keys = page + kv->k_offset + (size_t)in_page * cell;
    uint8_t *values = page + kv->v_offset + (size_t)(in_page * head_dim) * cell;
    keys += (size_t)first_head * kv->head_bytes;
    values += (size_t)first_head * kv->head_bytes;
    for (int head = 0; head < n_heads; head++) {
        if (kv->format == NB_KV_F16) {
            store_f16((uint16_t *)keys, (uint16_t *)values, k, v, head_dim);
        } else {
            memcpy(values, v, (size_t)head_dim * sizeof *v);
            for (int64_t d = 0; d < head_dim; d++)
                ((float *)keys)[d * NB_KV_PAGE] = k[d];
        }
        keys += kv->head_bytes;
        values += kv->head_bytes;
        k += head_dim;
        v += head_dim;
    }
}

static void fill_attn(nb_kernels *k)
{
    k->kv_store = kv_store_v16;
    k->attention = attention_v16;
}
