/* Private: attention (A5) over v16, 16 lanes of binary32. avx2_attn.c and avx512_attn.c include it
 * after the header that says what a v16 is, attn_tile.h, and the tiles of integer scores:
 *
 *   int_score_<rows> scores of INT8 cells, for all of V16_TILES
 *   INT_VECS(rows)   vectors of 16 positions that they take at once
 *   int_codes        how the codes of a query are laid out for them
 *
 * Plan. The rows (tokens x query heads of one KV head, at most NB_ATTN_ROWS) share every key and
 * value that is read. Per split: scores of all rows, tile by tile; the softmax, a few rows at a
 * time, to hide the latency of exp; values, tile by tile.
 *
 * A tile works on every cell that one of its rows sees. The others get -infinity for a score, whose
 * exp is the +0 that A1 wants, and +0 as a weight: fma(+0, v, sum) is the sum for a finite v. (A
 * chain that is -0 becomes +0, which its addition to o would make of it anyway.) Where a value that
 * some rows do not see is not finite, the tiles are made of single tokens, whose rows see the
 * same. */
#include "kernel/attn_packed.h"
#include "kernel/attn_store.h"
#include "kernel/attn_tile.h"

#define TILE(rows) int_score_##rows,
static int_score_fn *const int_score[V16_TILE_ROWS + 1] = {NULL, V16_TILES(TILE)};
#undef TILE

/* ---- what is seen ---- */

/* Cells [begin, end) of a split, counted from its first position; none if begin >= end. */
typedef struct {
    int64_t begin, end;
} cells;

typedef struct {
    int row, rows;
    cells sees; /* what one of its rows sees */
} tile;

/* What all tiles of a call share. */
typedef struct {
    const nb_attn_args *a;
    int n_rows;
    bool few; /* rows, so that cells are widened as they are loaded, which packed ones are not */
    bool packed;
    int64_t n_sealed; /* pages, for every row */
    float *scores, *q, *wide;
    float q_scale[NB_ATTN_ROWS];
    int32_t q_start[NB_ATTN_ROWS];
    /* the current split */
    int64_t first;                                          /* its first position */
    const uint8_t *keys[PAGES], *values[PAGES];             /* NULL: seen by no row */
    nb_kv_format form[PAGES];                               /* of the cells of each */
    const uint8_t *keys_ahead[PAGES], *values_ahead[PAGES]; /* what to ask for meanwhile */
    float k_scales[NB_KV_SPLIT], v_scales[NB_KV_SPLIT];
    nb_attn_part part;
    tile tiles[NB_ATTN_ROWS];
    int n_tiles;
} attention;

static cells both(cells a, cells b)
{
    return (cells){a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

/* The cells of the current split that the row sees. */
static cells row_sees(const attention *at, int row)
{
    const nb_attn_args *a = at->a;
    const int64_t pos = a->pos0 + row / a->n_group;
    const int64_t begin = a->window > 0 && a->window <= pos ? pos + 1 - a->window : 0;
    return both((cells){begin - at->first, pos + 1 - at->first}, (cells){0, NB_KV_SPLIT});
}

/* What the first or the last of the rows sees: later rows see later cells. */
static cells rows_see(const attention *at, int row, int rows)
{
    return (cells){row_sees(at, row).begin, row_sees(at, row + rows - 1).end};
}

static void add_tile(attention *at, int row, int rows)
{
    const cells sees = rows_see(at, row, rows);
    if (sees.begin < sees.end)
        at->tiles[at->n_tiles++] = (tile){row, rows, sees};
}

/* The rows cut evenly. */
static void plan_tiles(attention *at)
{
    const int n = (at->n_rows + V16_TILE_ROWS - 1) / V16_TILE_ROWS;
    at->n_tiles = 0;
    for (int i = 0; i < n; i++) {
        const int row = at->n_rows * i / n;
        add_tile(at, row, at->n_rows * (i + 1) / n - row);
    }
}

/* No row of a tile sees what another does not. */
static void plan_tiles_of_one_token(attention *at)
{
    const int n_group = at->a->n_group;
    at->n_tiles = 0;
    for (int row = 0; row < at->n_rows;) {
        const int left = n_group - row % n_group;
        add_tile(at, row, left < V16_TILE_ROWS ? left : V16_TILE_ROWS);
        row += left < V16_TILE_ROWS ? left : V16_TILE_ROWS;
    }
}

/* What numbers of load_cells are multiplied with. */
static void load_scales(float *out, const uint8_t *page, const nb_kv_view *kv)
{
    const size_t at = nb_kv_scales_at(kv->format, kv->head_dim);
    const uint16_t *scales = (const uint16_t *)(const void *)(page + at);
    const v16 unit = v16_set1(kv->format == NB_KV_FP8 ? 0x1p8f : 1.0f);
    for (int i = 0; i < NB_KV_PAGE; i += LANES)
        v16_store(out + i, v16_mul(v16_load_f16(scales + i), unit));
}

/* Keys of page i of the sequence, and values; packed ones that have not been sealed are F16. */
static const uint8_t *page_at(const nb_attn_args *a, int64_t i)
{
    return a->kv.arena + (size_t)a->kv.table[i] * a->kv.page_bytes +
           (size_t)a->kv_head * a->kv.head_bytes + a->kv.k_offset;
}

static const uint8_t *values_of(const nb_attn_args *a, const uint8_t *keys)
{
    return keys + ((ptrdiff_t)a->kv.v_offset - (ptrdiff_t)a->kv.k_offset);
}

/* The order in which few rows read pages: keys first, first + 1 ... last of the split, its values,
 * keys of the next split. While one is read, the second after it is asked for; of keys, as many
 * further as a tile reads at once. */
static void plan_ahead(attention *at, int64_t split, int64_t first, int64_t last)
{
    const nb_kv_view *kv = &at->a->kv;
    const int64_t next = (split + 1) * PAGES;
    const bool more = next * NB_KV_PAGE < at->a->pos0 + at->a->n_q;
    const int64_t d_keys = V16_FEW_VECS(at->n_rows) > 4 ? 4 : 2, d_values = 2;
    for (int64_t i = first; i <= last; i++) {
        const int64_t k = i + d_keys, v = i + d_values;
        at->keys_ahead[i] = k <= last                      ? at->keys[k]
                            : first + k - last - 1 <= last ? at->values[first + k - last - 1]
                                                           : at->values[last];
        at->values_ahead[i] = v <= last ? at->values[v]
                              : more    ? page_at(at->a, next) /* one more may not exist */
                                        : at->values[last];
    }
    for (int64_t i = next; has_scales(kv->format) && i < next + PAGES; i++) {
        if (i * NB_KV_PAGE >= at->a->pos0 + at->a->n_q)
            break;
        const uint8_t *scales = page_at(at->a, i) + nb_kv_scales_at(kv->format, kv->head_dim);
        ask_for(scales, 64);
        ask_for(values_of(at->a, scales), 64);
    }
}

static void recent_page(attention *at, int64_t page, int64_t i)
{
    const nb_kv_pages *r = &at->a->kv.recent;
    const uint8_t *head =
        r->arena + (size_t)r->table[page] * r->page_bytes + (size_t)at->a->kv_head * r->head_bytes;
    at->keys[i] = head + r->k_offset;
    at->values[i] = head + r->v_offset;
    at->form[i] = NB_KV_F16;
}

static void split_start(attention *at, int64_t split)
{
    const nb_kv_view *kv = &at->a->kv;
    at->first = split * NB_KV_SPLIT;
    const cells sees = rows_see(at, 0, at->n_rows);
    for (int64_t i = 0; i < PAGES; i++) {
        at->keys[i] = at->values[i] = at->keys_ahead[i] = NULL;
        if (i < sees.begin / NB_KV_PAGE || i * NB_KV_PAGE >= sees.end)
            continue; /* the table may have no entry for it */
        const int64_t page = split * PAGES + i;
        if (at->packed && !nb_kv_sees_sealed(at->n_sealed, page)) {
            recent_page(at, page, i);
            continue;
        }
        at->keys[i] = page_at(at->a, page);
        at->values[i] = values_of(at->a, at->keys[i]);
        at->keys_ahead[i] = at->keys[i];
        at->form[i] = kv->format;
    }
    if (at->few && sees.begin < sees.end)
        plan_ahead(at, split, sees.begin / NB_KV_PAGE, (sees.end - 1) / NB_KV_PAGE);
    for (int64_t i = 0; i < PAGES; i++) {
        if (at->keys[i] != NULL && has_scales(kv->format)) {
            load_scales(at->k_scales + i * NB_KV_PAGE, at->keys[i], kv);
            load_scales(at->v_scales + i * NB_KV_PAGE, at->values[i], kv);
        }
    }
    plan_tiles(at);
}

/* ---- scores ---- */

/* The keys of `vecs` blocks of 16 positions from block b on; blocks that no row of the tile sees
 * repeat one that some do. */
static void key_blocks(const attention *at, cells sees, int64_t b, int vecs, size_t block_bytes,
                       const uint8_t **keys, const uint8_t **ahead)
{
    const int64_t first = sees.begin / LANES, last = (sees.end - 1) / LANES;
    const int64_t per_page = NB_KV_PAGE / LANES;
    for (int v = 0; v < vecs; v++) {
        const int64_t i = b + v < first ? first : b + v > last ? last : b + v;
        keys[v] = at->keys[i / per_page] + (size_t)(i % per_page) * block_bytes;
        ahead[v] = at->keys_ahead[i / per_page] + (size_t)(i % per_page) * block_bytes;
    }
}

static void tile_int_scores(const attention *at, const tile *t)
{
    const int64_t n_groups = (at->a->kv.head_dim + 3) / 4;
    const int vecs = INT_VECS(t->rows);
    for (int64_t b = t->sees.begin / LANES / vecs * vecs; b * LANES < t->sees.end; b += vecs) {
        const uint8_t *keys[MAX_VECS], *ahead[MAX_VECS];
        key_blocks(at, t->sees, b, vecs, (size_t)n_groups * 64, keys, ahead);
        int_score[t->rows](at->scores + t->row * STRIDE + b * LANES, at->q + t->row * Q_STRIDE,
                           at->q_start + t->row, at->q_scale + t->row, keys, ahead,
                           at->k_scales + b * LANES, n_groups, at->a->q_bits == 16);
    }
}

static void tile_few_scores(const attention *at, const tile *t)
{
    const nb_kv_view *kv = &at->a->kv;
    const int64_t head_dim = kv->head_dim;
    const size_t cell = cell_bytes(kv->format);
    const int vecs = V16_FEW_VECS(t->rows);
    for (int64_t b = t->sees.begin / LANES / vecs * vecs; b * LANES < t->sees.end; b += vecs) {
        const uint8_t *keys[MAX_VECS], *ahead[MAX_VECS];
        key_blocks(at, t->sees, b, vecs, LANES * cell, keys, ahead);
        for (int64_t d = 0; d < head_dim; d += NB_CHUNK_K) {
            const int64_t n = head_dim - d < NB_CHUNK_K ? head_dim - d : NB_CHUNK_K;
            few_score[kv->format][t->rows](at->scores + t->row * STRIDE + b * LANES,
                                           at->q + t->row * Q_STRIDE + d, keys, ahead,
                                           at->k_scales + b * LANES, n, d == 0);
            for (int v = 0; v < vecs; v++) {
                keys[v] += NB_CHUNK_K * NB_KV_PAGE * cell;
                ahead[v] += NB_CHUNK_K * NB_KV_PAGE * cell;
            }
        }
    }
}

static void all_wide_scores(const attention *at)
{
    const nb_kv_view *kv = &at->a->kv;
    const int64_t head_dim = kv->head_dim;
    for (int64_t i = 0; i < PAGES; i++) {
        if (at->keys[i] == NULL)
            continue;
        for (int64_t d = 0; d < head_dim; d += NB_CHUNK_K) {
            const int64_t n = head_dim - d < NB_CHUNK_K ? head_dim - d : NB_CHUNK_K;
            const float *keys = at->wide;
            if (at->form[i] == NB_KV_F32)
                keys = (const float *)(const void *)at->keys[i] + d * NB_KV_PAGE;
            else if (nb_kv_bits(at->form[i]) > 0)
                widen_packed_keys(at->wide, at->keys[i], at->values[i], kv, d, n);
            else
                widen_keys(at->wide, at->keys[i], at->k_scales + i * NB_KV_PAGE, head_dim, d, n,
                           at->form[i]);
            for (const tile *t = at->tiles; t < at->tiles + at->n_tiles; t++)
                if (i >= t->sees.begin / NB_KV_PAGE && i * NB_KV_PAGE < t->sees.end)
                    wide_score[t->rows](at->scores + t->row * STRIDE + i * NB_KV_PAGE,
                                        at->q + t->row * Q_STRIDE + d, keys, n, d == 0);
        }
    }
}

static void scores(const attention *at)
{
    const bool ints = at->a->q_bits > 0;
    if (!ints && (!at->few || at->a->kv.format == NB_KV_INT8)) {
        all_wide_scores(at);
        return;
    }
    for (const tile *t = at->tiles; t < at->tiles + at->n_tiles; t++) {
        if (ints)
            tile_int_scores(at, t);
        else
            tile_few_scores(at, t);
    }
}

/* ---- softmax ---- */

/* Turns scores [begin, end) of n rows into exp(s - m_j); gives m_j and l_j. */
V16_INLINE void softmax_rows(float *s, int64_t begin, int64_t end, float *m, float *l, int n)
{
    v16 top[V16_SOFTMAX_ROWS], lane[V16_SOFTMAX_ROWS];
    V16_UNROLL
    for (int r = 0; r < n; r++)
        top[r] = v16_set1(-INFINITY);
    for (int64_t c = begin; c < end; c += LANES) {
        V16_UNROLL
        for (int r = 0; r < n; r++)
            top[r] = v16_max(v16_load(s + r * STRIDE + c), top[r]);
    }
    V16_UNROLL
    for (int r = 0; r < n; r++) {
        m[r] = v16_top(top[r]);
        top[r] = v16_set1(m[r]);
        lane[r] = v16_zero();
    }
    for (int64_t c = begin; c < end; c += LANES) {
        V16_UNROLL
        for (int r = 0; r < n; r++) {
            const v16 e = v16_exp(v16_sub(v16_load(s + r * STRIDE + c), top[r]));
            v16_store(s + r * STRIDE + c, e);
            lane[r] = v16_add(lane[r], e);
        }
    }
    V16_UNROLL
    for (int r = 0; r < n; r++)
        l[r] = v16_tree(lane[r]);
}

static void tile_softmax(const attention *at, const tile *t)
{
    const int64_t begin = t->sees.begin / LANES * LANES;
    const int64_t end = (t->sees.end + LANES - 1) / LANES * LANES;
    for (int r = t->row; r < t->row + t->rows; r++) {
        const cells sees = row_sees(at, r);
        float *s = at->scores + r * STRIDE;
        for (int64_t c = begin; c < sees.begin && c < end; c++)
            s[c] = -INFINITY;
        for (int64_t c = sees.end > begin ? sees.end : begin; c < end; c++)
            s[c] = -INFINITY;
    }
    int r = t->row;
    const int stop = t->row + t->rows;
    for (; r + V16_SOFTMAX_ROWS <= stop; r += V16_SOFTMAX_ROWS)
        softmax_rows(at->scores + r * STRIDE, begin, end, at->part.m + r, at->part.l + r,
                     V16_SOFTMAX_ROWS);
    for (; r < stop; r++)
        softmax_rows(at->scores + r * STRIDE, begin, end, at->part.m + r, at->part.l + r, 1);
}

/* ---- values ---- */

/* Whether the values of these cells are finite; those of codes are where the scale is. */
static bool values_finite(const attention *at, cells range)
{
    const nb_kv_view *kv = &at->a->kv;
    for (int64_t c = range.begin; c < range.end; c++) {
        if (has_scales(kv->format)) {
            if (!isfinite(at->v_scales[c]))
                return false;
            continue;
        }
        const nb_kv_format form = at->form[c / NB_KV_PAGE];
        if (nb_kv_bits(form) > 0) {
            if (!packed_value_finite(at->values[c / NB_KV_PAGE], kv, c % NB_KV_PAGE))
                return false;
            continue;
        }
        v16 top = v16_zero();
        for (int64_t d = 0; d < kv->head_dim; d += WIDE) {
            float value[WIDE];
            widen_values(value, at->values, at->v_scales, c, c + 1, kv->head_dim, d, form);
            top = v16_max_bits(v16_load(value), top);
            if (d + LANES < kv->head_dim)
                top = v16_max_bits(v16_load(value + LANES), top);
        }
        float bits[LANES];
        v16_store(bits, top);
        for (int i = 0; i < LANES; i++)
            if (!isfinite(bits[i]))
                return false;
    }
    return true;
}

/* Whether rows may weigh with +0 what they do not see, but other rows of the call do. */
static bool edges_are_finite(const attention *at)
{
    const cells one = row_sees(at, 0), other = row_sees(at, at->n_rows - 1);
    const cells split = {0, NB_KV_SPLIT};
    return values_finite(at, both((cells){one.begin, other.begin}, split)) &&
           values_finite(at, both((cells){one.end, other.end}, split));
}

/* Dimensions [d, d + 32) of the values of cells, by pages, which have forms of their own. */
static void widen_pages(const attention *at, float *out, cells range, int64_t d)
{
    const nb_kv_view *kv = &at->a->kv;
    for (int64_t c = range.begin; c < range.end;) {
        const int64_t i = c / NB_KV_PAGE, next = (i + 1) * NB_KV_PAGE;
        const int64_t end = range.end < next ? range.end : next;
        if (nb_kv_bits(at->form[i]) > 0)
            widen_packed_values(out, at->values[i], kv, c % NB_KV_PAGE, end - i * NB_KV_PAGE, d);
        else
            widen_values(out, at->values, at->v_scales, c, end, kv->head_dim, d, at->form[i]);
        out += (end - c) * WIDE;
        c = end;
    }
}

/* Dimensions [d, d + 32) of o_j for all tiles, in the cut. */
static void wide_values(const attention *at, cells cut, int64_t d)
{
    const nb_kv_view *kv = &at->a->kv;
    const int n_vecs = d + LANES < kv->head_dim ? 2 : 1;
    const cells range = both(rows_see(at, 0, at->n_rows), cut);
    const int64_t offset = range.begin - cut.begin;
    const uint8_t *pages[PAGES];
    for (int64_t i = cut.begin; i < cut.end; i += NB_KV_PAGE)
        pages[i / NB_KV_PAGE] = (const uint8_t *)(at->wide + (i - cut.begin) * WIDE);
    if (!at->packed)
        widen_values(at->wide + offset * WIDE, at->values, at->v_scales, range.begin, range.end,
                     kv->head_dim, d, kv->format);
    else
        widen_pages(at, at->wide + offset * WIDE, range, d);
    for (const tile *t = at->tiles; t < at->tiles + at->n_tiles; t++) {
        const cells see = both(t->sees, cut);
        if (see.begin < see.end)
            wide_value[t->rows](at->part.o + t->row * at->part.row_floats + d, at->part.row_floats,
                                t->sees.begin >= cut.begin, at->scores + t->row * STRIDE, pages,
                                see.begin, see.end, n_vecs);
    }
}

static void tile_few_values(const attention *at, const tile *t, cells cut)
{
    const nb_kv_view *kv = &at->a->kv;
    const cells see = both(t->sees, cut);
    if (see.begin < see.end)
        few_value[kv->format][t->rows](at->part.o + t->row * at->part.row_floats,
                                       at->part.row_floats, t->sees.begin >= cut.begin,
                                       at->scores + t->row * STRIDE, at->values, at->values_ahead,
                                       at->v_scales, see.begin, see.end, kv->head_dim);
}

static void values(attention *at)
{
    const int64_t head_dim = at->a->kv.head_dim;
    if (!edges_are_finite(at))
        plan_tiles_of_one_token(at);
    for (int64_t first = 0; first < NB_KV_SPLIT; first += NB_CHUNK_K) {
        const cells cut = {first, first + NB_CHUNK_K};
        int64_t d = 0;
        if (at->few) {
            for (const tile *t = at->tiles; t < at->tiles + at->n_tiles; t++)
                tile_few_values(at, t, cut);
            d = head_dim / LANES * LANES;
        }
        for (; d < head_dim; d += WIDE)
            wide_values(at, cut, d);
    }
}

/* ---- queries ---- */

/* The codes of q' as one group (A3), its scale, and what integer sums of stored keys start from. */
static void quantize_query(attention *at, int row, const float *q)
{
    const int64_t n = at->a->kv.head_dim;
    const float qmax = at->a->q_bits == 8 ? 127.0f : 32639.0f;
    const float absmax = largest(q, n);
    const bool bad = !isfinite(absmax), none = absmax < 0x1p-100f;
    int32_t codes[NB_ATTN_MAX_DIM], sum = 0;
    for (int64_t d = 0; d < n; d += LANES) /* q may be anything where it has no codes */
        v16_store_i32(codes + d, bad || none ? v16_zero() : scaled(q, d, n, qmax / absmax, qmax));
    for (int64_t d = 0; d < n; d++)
        sum += codes[d];
    at->q_scale[row] = bad ? nb_f32_from_bits(0x7fc00000u) : none ? 0.0f : absmax / qmax;
    at->q_start[row] = -128 * sum;
    int_codes(at->q + row * Q_STRIDE, codes, (n + 3) / 4 * 4, at->a->q_bits == 16);
}

static void load_queries(attention *at)
{
    const nb_attn_args *a = at->a;
    const int64_t head_dim = a->kv.head_dim, head0 = (int64_t)a->kv_head * a->n_group;
    float one[NB_ATTN_MAX_DIM];
    for (int r = 0; r < at->n_rows; r++) {
        const float *q = a->q + r / a->n_group * a->ld + (head0 + r % a->n_group) * head_dim;
        float *to = a->q_bits > 0 ? one : at->q + r * Q_STRIDE;
        int64_t d = 0;
        for (; d + LANES <= head_dim; d += LANES)
            v16_store(to + d, v16_mul(v16_load(q + d), v16_set1(a->scale)));
        for (; d < head_dim; d++)
            to[d] = q[d] * a->scale;
        if (a->q_bits > 0)
            quantize_query(at, r, one);
    }
}

/* ---- a call ---- */

static void attn_splits_v16(const nb_attn_args *a, int64_t begin, int64_t end, float *parts)
{
    assert(a->n_q * a->n_group <= NB_ATTN_ROWS && a->kv.head_dim <= NB_ATTN_MAX_DIM);
    assert(a->q_bits == 0 || a->kv.format == NB_KV_INT8);
    assert(nb_kv_n_sealed(a->kv.format, a->pos0) ==
           nb_kv_n_sealed(a->kv.format, a->pos0 + a->n_q - 1));
    attention at;
    at.a = a;
    at.n_rows = a->n_q * a->n_group;
    at.packed = nb_kv_bits(a->kv.format) > 0;
    at.few = at.n_rows <= V16_FEW_ROWS && !at.packed;
    at.n_sealed = nb_kv_n_sealed(a->kv.format, a->pos0);
    at.scores = a->scratch + NB_ATTN_AT_SCORES;
    at.q = a->scratch + NB_ATTN_AT_Q;
    at.wide = a->scratch + NB_ATTN_AT_WIDE;
    load_queries(&at);
    const int64_t split0 = nb_attn_first_position(a) / NB_KV_SPLIT;
    for (int64_t i = begin; i < end; i++) {
        at.part = nb_attn_part_of(a, parts, i);
        split_start(&at, split0 + i);
        scores(&at);
        for (int t = 0; t < at.n_tiles; t++)
            tile_softmax(&at, &at.tiles[t]);
        values(&at);
    }
}

/* out = O / L over the splits [begin, end) of one row; with one split, weighing by exp(0) = 1
 * changes neither. */
static void merge_row(const nb_attn_args *a, const float *parts, int row, int64_t begin,
                      int64_t end, float *out)
{
    const int64_t head_dim = a->kv.head_dim;
    float max = -INFINITY, L = 0;
    for (int64_t j = begin; j < end; j++) {
        const float m = nb_attn_part_of(a, (float *)parts, j).m[row];
        max = m > max ? m : max;
    }
    float sum[NB_ATTN_MAX_DIM];
    const float *O = sum;
    memset(sum, 0, (size_t)((head_dim + LANES - 1) / LANES * LANES) * sizeof *sum);
    for (int64_t j = begin; j < end; j++) {
        const nb_attn_part part = nb_attn_part_of(a, (float *)parts, j);
        const float *o = part.o + row * part.row_floats;
        if (end - begin == 1) {
            L = part.l[row];
            O = o;
            break;
        }
        const float w = nb_expf(part.m[row] - max);
        L = fmaf(part.l[row], w, L);
        for (int64_t d = 0; d < head_dim; d += LANES)
            v16_store(sum + d, v16_fma(v16_load(o + d), v16_set1(w), v16_load(sum + d)));
    }
    int64_t d = 0;
    for (; d + LANES <= head_dim; d += LANES)
        v16_store(out + d, v16_div(v16_load(O + d), v16_set1(L)));
    for (; d < head_dim; d++)
        out[d] = O[d] / L;
    if (nb_kv_rotates(a->kv.format, a->kv.head_dim))
        nb_hadamard(out, head_dim);
}

static void attn_merge_v16(const nb_attn_args *a, const float *parts)
{
    const int64_t split0 = nb_attn_first_position(a) / NB_KV_SPLIT;
    const int64_t head0 = (int64_t)a->kv_head * a->n_group;
    for (int t = 0; t < a->n_q; t++) {
        const int64_t pos = a->pos0 + t;
        const int64_t seen = a->window > 0 && a->window <= pos ? pos + 1 - a->window : 0;
        for (int j = 0; j < a->n_group; j++)
            merge_row(a, parts, t * a->n_group + j, seen / NB_KV_SPLIT - split0,
                      pos / NB_KV_SPLIT + 1 - split0,
                      a->out + t * a->ld + (head0 + j) * a->kv.head_dim);
    }
}

static void attention_v16(const nb_attn_args *a)
{
    float *parts = a->scratch + NB_ATTN_AT_PARTS;
    attn_splits_v16(a, 0, nb_attn_n_splits(a), parts);
    attn_merge_v16(a, parts);
}

static void fill_attn(nb_kernels *k)
{
    k->kv_store = kv_store_v16;
    k->attention = attention_v16;
    k->attn_splits = attn_splits_v16;
    k->attn_merge = attn_merge_v16;
}
