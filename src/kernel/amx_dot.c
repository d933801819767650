/* Matrix products, AMX: tiles of 16 tokens by a panel of 16 rows, 64 columns to a multiply.
 *
 * A multiply is 32,768 operations in 16 cycles. What surrounds it decides the speed: loads of two
 * tiles (8 cycles each), the int32 tile's way through memory to the vector registers (16 stores, 16
 * loads), and three float operations a row (24 cycles on two ports): convert, fl(s_w * s_x), FMA.
 * Hence:
 *
 *   - Weights are unpacked to signed bytes, stored code - zero point, for a block of columns that
 *     stays in the first-level cache and serves all tokens. Nothing is left to correct afterwards.
 *   - Short segments (strip): one tile of tokens by one panel at a time, its 16 float totals in
 *     registers for the whole block. Three segments are under way at once: the tile of one is being
 *     multiplied, that of the next stored, that of the third scaled.
 *   - Long segments (square): two tiles of tokens by two panels, so that each operand loaded is
 *     used twice. The totals, and the integer sums of a row that is longer than a block, rest in y.
 *
 * i16 multiplies both planes and combines 256 * hi + lo before the one conversion. */
#include "kernel/amx_tile.h"
#include "kernel/avx512_dot.h"

/* Longest segment of a strip. Above it a segment keeps the multiplier busy for longer than its
 * scaling takes, and loads of tiles become what counts. */
#define STRIP_SEG 128
#define PANELS    2 /* at once */

static_assert(PANELS * NB_PANEL_ROWS * NB_ROWS_BLOCK <= 4 * NB_GEMM_SCRATCH, "a block fits");

/* Columns [begin, end) of up to two panels. */
typedef struct {
    const nb_panels *w;
    int64_t begin, end;
    int64_t step; /* columns of one multiply; it divides 64 and the segments */
    int64_t panel;
    int n_panels;
    /* Of each panel: signed codes [columns / 4][16][4], after the last of which a multiply may
     * meet anything, because the activations are 0 there; and whether some zero point is too large
     * to have been subtracted. */
    int8_t *codes[PANELS];
    bool left[PANELS];
} block;

/* ---- unpacking ---- */

INLINE __m512i zeros_at(const nb_panels *w, int64_t at)
{
    return w->zeros != NULL ? load_zeros(w, at) : _mm512_set1_epi32(w->zero_const);
}

/* What is subtracted from stored codes to make them signed bytes: the zero point if all
 * differences fit, which for codes of 8 bits means 128. */
INLINE __m512i offsets_of(const nb_panels *w, __m512i zeros)
{
    if (w->kind != NB_PANEL_U4)
        return _mm512_set1_epi32(128);
    return _mm512_max_epi32(_mm512_min_epi32(zeros, _mm512_set1_epi32(128)),
                            _mm512_set1_epi32(15 - 127));
}

/* Returns what block.left says. */
static bool unpack(int8_t *out, const nb_panels *w, int64_t p, int64_t begin, int64_t end)
{
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)w->table)); /* T4 only */
    const uint8_t *panel = w->codes + p * w->panel_bytes;
    bool left = false;
    int64_t k = begin;
    while (k < end) {
        const int64_t seg = k / w->seg_len, seg_end = (seg + 1) * w->seg_len;
        const __m512i zeros = zeros_at(w, (p * w->n_segs + seg) * NB_PANEL_ROWS);
        const __m512i offsets = offsets_of(w, zeros);
        left |= _mm512_cmpneq_epi32_mask(zeros, offsets) != 0;
        /* Each dword holds four columns of one row: its offset, four times. */
        const __m512i sub = _mm512_mullo_epi32(_mm512_and_epi32(offsets, _mm512_set1_epi32(255)),
                                               _mm512_set1_epi32(0x01010101));
        for (; k < seg_end && k < end; k += 8, out += 128) {
            __m512i a, b;
            if (w->kind == NB_PANEL_U8) {
                a = _mm512_loadu_si512(panel + k / 4 * 64);
                b = _mm512_loadu_si512(panel + k / 4 * 64 + 64);
            } else {
                const __m512i both = _mm512_loadu_si512(panel + k / 8 * 64);
                a = _mm512_and_si512(both, low);
                b = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
                if (w->kind == NB_PANEL_T4) {
                    a = _mm512_shuffle_epi8(table, a);
                    b = _mm512_shuffle_epi8(table, b);
                }
            }
            _mm512_storeu_si512(out, _mm512_sub_epi8(a, sub));
            _mm512_storeu_si512(out + 64, _mm512_sub_epi8(b, sub));
        }
    }
    return left;
}

/* ---- shapes ----
 *
 * Registers 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights. A strip has 0 and 1 for one
 * segment and 2 and 3 for the next, high plane and low plane; a square has a tile of tokens in 0
 * and 1, one for each panel, and the other in 2 and 3. */

static void set_shapes(tile_shapes *shapes, int n_tok, int n_tok_2, int64_t step)
{
    if (shapes->rows[0] == n_tok && shapes->rows[2] == n_tok_2)
        return; /* in force already: step is the same throughout a call */
    *shapes = (tile_shapes){.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes->row_bytes[i] = (uint16_t)(i == 4 || i == 5 ? step : 64);
        shapes->rows[i] = (uint8_t)(i >= 6                       ? step / 4
                                    : i == 2 || i == 3 || i == 5 ? n_tok_2
                                                                 : n_tok);
    }
    TILE_SHAPES(shapes);
}

/* ---- short segments ---- */

/* The next segment to be multiplied. */
typedef struct {
    const int8_t *hi, *lo, *w;
    int64_t left; /* columns of the block, this segment's among them */
} feed;

/* Multiplies it into the registers of `side`. */
INLINE void feed_segment(feed *f, int64_t seg_len, int64_t step, int64_t row_stride, const int side,
                         const bool wide)
{
    const int64_t n = f->left < seg_len ? f->left : seg_len;
    const int8_t *hi = f->hi, *lo = f->lo, *w = f->w, *end = hi + n;
#define PLANE(c, a, b, plane)                                                                      \
    TILE_LOAD(a, plane, row_stride);                                                               \
    TILE_DOT(c, a, b)
    if (side == 0) {
        TILE_ZERO(0);
        if (wide)
            TILE_ZERO(1);
        do {
            TILE_LOAD(6, w, 64);
            PLANE(0, 4, 6, hi);
            if (wide) {
                PLANE(1, 5, 6, lo);
            }
            hi += step, lo += step, w += step * NB_PANEL_ROWS;
        } while (hi < end);
    } else {
        TILE_ZERO(2);
        if (wide)
            TILE_ZERO(3);
        do {
            TILE_LOAD(7, w, 64);
            if (wide) {
                PLANE(2, 4, 7, hi);
                PLANE(3, 5, 7, lo);
            } else {
                PLANE(2, 5, 7, hi);
            }
            hi += step, lo += step, w += step * NB_PANEL_ROWS;
        } while (hi < end);
    }
#undef PLANE
    /* Further than the end after the last segment: nothing is fed any more. */
    f->hi = hi;
    f->lo = lo;
    f->w = w;
    f->left -= n;
}

/* The sums of `side` to memory: the high plane's (or the only ones), then the low plane's. */
INLINE void store_sums(int32_t (*sums)[NB_ROWS_MAX][16], const int side, const bool wide)
{
    if (side == 0) {
        TILE_STORE(0, sums[0], 64);
        if (wide)
            TILE_STORE(1, sums[1], 64);
    } else {
        TILE_STORE(2, sums[0], 64);
        if (wide)
            TILE_STORE(3, sums[1], 64);
    }
}

/* Where the scales of a segment are, for a panel by a tile of tokens. */
typedef struct {
    int64_t at; /* of the weight's */
    const float *scale;
    const int32_t *xsum;
    int64_t w_left, x_left; /* segments, this one among them, that the scales hold for */
} cursor;

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

INLINE cursor cursor_at(const nb_panels *w, int64_t p, const nb_xtile *x, int64_t k)
{
    const int64_t w_seg = k / w->seg_len, x_seg = k / x->x_seg_len;
    return (cursor){.at = (p * w->n_segs + w_seg) * NB_PANEL_ROWS,
                    .scale = x->scale + x_seg * x->n_tok,
                    .xsum = x->xsum + k / x->seg_len * x->n_tok,
                    .w_left = ceil_div((w_seg + 1) * w->seg_len - k, x->seg_len),
                    .x_left = ceil_div((x_seg + 1) * x->x_seg_len - k, x->seg_len)};
}

/* Subtracts what unpack left of the zero points: (z - offset) * xsum. */
static void subtract_left(int32_t (*sums)[16], const nb_panels *w, int64_t at, const int32_t *xsum,
                          int n_tok)
{
    const __m512i zeros = zeros_at(w, at);
    const __m512i rest = _mm512_sub_epi32(zeros, offsets_of(w, zeros));
    for (int t = 0; t < n_tok; t++) {
        const __m512i much = _mm512_mullo_epi32(rest, _mm512_set1_epi32(xsum[t]));
        _mm512_store_si512(sums[t], _mm512_sub_epi32(_mm512_load_si512(sums[t]), much));
    }
}

/* The float steps of one segment. Rows past the tile's tokens hold anything and are computed too:
 * a loop of known length keeps the totals in registers. */
INLINE void scale_segment(__m512 *total, int32_t (*sums)[NB_ROWS_MAX][16], const nb_panels *w,
                          const cursor *c, int n_tok, bool left, const bool wide, const bool mins)
{
    if (left)
        subtract_left(sums[wide], w, c->at, c->xsum, n_tok);
    const __m512 sw = load_params(w->scales, w->scale_type, c->at);
    _Alignas(64) float copy[16], xs[16];
    const float *sx = c->scale;
    if (n_tok < NB_ROWS_MAX || mins) { /* sixteen of them, wherever the array ends */
        const __m512 v = _mm512_maskz_loadu_ps(lanes(n_tok), sx);
        _mm512_store_ps(copy, v);
        sx = copy;
        if (mins) {
            const __m512i n = _mm512_maskz_loadu_epi32(lanes(n_tok), c->xsum);
            _mm512_store_ps(xs, _mm512_mul_ps(_mm512_cvtepi32_ps(n), v));
        }
    }
    UNROLL
    for (int t = 0; t < NB_ROWS_MAX; t++) {
        __m512i sum = _mm512_load_si512(sums[0][t]);
        if (wide)
            sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), _mm512_load_si512(sums[1][t]));
        total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
                                   _mm512_mul_ps(sw, _mm512_set1_ps(sx[t])), total[t]);
    }
    if (mins) {
        const __m512 m = load_params(w->mins, w->scale_type, c->at);
        UNROLL
        for (int t = 0; t < NB_ROWS_MAX; t++)
            total[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(xs[t]), total[t]);
    }
}

/* Panel j of the block by a tile of tokens; y is at its first token. */
INLINE void strip(float *y, int64_t ldy, const block *b, int j, const nb_xtile *x, const bool wide,
                  const bool mins)
{
    const nb_panels *w = b->w;
    const int64_t p = b->panel + j, seg_len = x->seg_len, step = b->step, stride = x->row_stride;
    const int64_t n = ceil_div(b->end - b->begin, seg_len);
    const int64_t w_per = ceil_div(w->seg_len, seg_len), x_per = ceil_div(x->x_seg_len, seg_len);
    const int n_tok = x->n_tok;
    const __mmask16 rows = lanes(w->n_rows - p * NB_PANEL_ROWS);
    const bool resumed = b->begin > 0, left = b->left[j];
    y += p * NB_PANEL_ROWS;
    __m512 total[NB_ROWS_MAX];
    UNROLL
    for (int t = 0; t < NB_ROWS_MAX; t++)
        total[t] =
            resumed && t < n_tok ? _mm512_maskz_loadu_ps(rows, y + t * ldy) : _mm512_setzero_ps();
    _Alignas(64) int32_t sums[2][2][NB_ROWS_MAX][16]; /* [side][plane] */
    feed f = {.hi = x->hi + b->begin,
              .lo = (wide ? x->lo : x->hi) + b->begin,
              .w = b->codes[j],
              .left = b->end - b->begin};
    cursor c = cursor_at(w, p, x, b->begin);
    feed_segment(&f, seg_len, step, stride, 0, wide);
    if (n > 1)
        feed_segment(&f, seg_len, step, stride, 1, wide);
    store_sums(sums[0], 0, wide);
    /* Segment s: its sums are in memory, those of s + 1 in registers; s + 2 is next. */
#define SEGMENT(s, side, other)                                                                    \
    if ((s) + 2 < n)                                                                               \
        feed_segment(&f, seg_len, step, stride, side, wide);                                       \
    if ((s) + 1 < n)                                                                               \
        store_sums(sums[other], other, wide);                                                      \
    scale_segment(total, sums[side], w, &c, n_tok, left, wide, mins);                              \
    c.xsum += n_tok; /* segments nest, so the others advance one at a time */                      \
    if (--c.w_left == 0) {                                                                         \
        c.w_left = w_per;                                                                          \
        c.at += NB_PANEL_ROWS;                                                                     \
    }                                                                                              \
    if (--c.x_left == 0) {                                                                         \
        c.x_left = x_per;                                                                          \
        c.scale += n_tok;                                                                          \
    }
    for (int64_t s = 0; s < n; s += 2) {
        SEGMENT(s, 0, 1)
        if (s + 1 == n)
            break;
        SEGMENT(s + 1, 1, 0)
    }
#undef SEGMENT
    UNROLL
    for (int t = 0; t < NB_ROWS_MAX; t++) {
        if (t < n_tok)
            _mm512_mask_storeu_ps(y + t * ldy, rows, total[t]);
    }
}

typedef void strip_fn(float *y, int64_t ldy, const block *b, int j, const nb_xtile *x);

#define DEFINE(name, wide, mins)                                                                   \
    static void name(float *y, int64_t ldy, const block *b, int j, const nb_xtile *x)              \
    {                                                                                              \
        strip(y, ldy, b, j, x, wide, mins);                                                        \
    }
DEFINE(strip_i8, false, false)
DEFINE(strip_i8_mins, false, true)
DEFINE(strip_i16, true, false)
DEFINE(strip_i16_mins, true, true)
#undef DEFINE

static strip_fn *const strips[2][2] = {{strip_i8, strip_i8_mins}, {strip_i16, strip_i16_mins}};

/* ---- long segments ---- */

/* What the columns of a block that lie in one segment add to y, for one panel and tile. */
static void settle(float *y, int64_t ldy, int32_t (*sums)[16], const block *b, int j,
                   const nb_xtile *x, int64_t begin, int64_t end)
{
    const nb_panels *w = b->w;
    const int64_t p = b->panel + j, seg = begin / x->seg_len;
    const int64_t seg_begin = seg * x->seg_len;
    const int64_t seg_end = seg_begin + x->seg_len < w->n_cols ? seg_begin + x->seg_len : w->n_cols;
    const __mmask16 rows = lanes(w->n_rows - p * NB_PANEL_ROWS);
    y += p * NB_PANEL_ROWS;
    if (begin > seg_begin) { /* the sums so far are in y */
        for (int t = 0; t < x->n_tok; t++) {
            const __m512i before = _mm512_maskz_loadu_epi32(rows, y + t * ldy);
            _mm512_store_si512(sums[t], _mm512_add_epi32(_mm512_load_si512(sums[t]), before));
        }
    }
    if (end < seg_end) {
        for (int t = 0; t < x->n_tok; t++)
            _mm512_mask_storeu_epi32(y + t * ldy, rows, _mm512_load_si512(sums[t]));
        return;
    }
    const cursor c = cursor_at(w, p, x, seg_begin);
    if (b->left[j])
        subtract_left(sums, w, c.at, c.xsum, x->n_tok);
    const __m512 sw = load_params(w->scales, w->scale_type, c.at);
    const __m512 m =
        w->mins != NULL ? load_params(w->mins, w->scale_type, c.at) : _mm512_setzero_ps();
    for (int t = 0; t < x->n_tok; t++) {
        __m512 total = seg > 0 ? _mm512_maskz_loadu_ps(rows, y + t * ldy) : _mm512_setzero_ps();
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums[t]));
        const float sx = c.scale[t];
        total = _mm512_fmadd_ps(sum, _mm512_mul_ps(sw, _mm512_set1_ps(sx)), total);
        if (w->mins != NULL)
            total = _mm512_fmadd_ps(m, _mm512_set1_ps((float)c.xsum[t] * sx), total);
        _mm512_mask_storeu_ps(y + t * ldy, rows, total);
    }
}

/* One or two tiles of tokens (T) by one or two panels (P). y is at the first tile's first token,
 * y2 at the second's. */
INLINE void square(float *y, float *y2, int64_t ldy, const block *b, const nb_xtile *x, const int T,
                   const int P)
{
    _Alignas(64) int32_t sums[2][2][NB_ROWS_MAX][16]; /* [tile][panel] */
    const nb_xtile *x2 = &x[T - 1];
    const int64_t stride = x->row_stride, step = b->step;
    for (int64_t k = b->begin; k < b->end;) {
        const int64_t seg_end = (k / x->seg_len + 1) * x->seg_len;
        const int64_t end = seg_end < b->end ? seg_end : b->end;
        const int8_t *w0 = b->codes[0] + (k - b->begin) * NB_PANEL_ROWS;
        const int8_t *w1 = b->codes[P - 1] + (k - b->begin) * NB_PANEL_ROWS;
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        for (int64_t i = k; i < end; i += step) {
            TILE_LOAD(4, x->hi + i, stride);
            TILE_LOAD(6, w0, 64);
            TILE_DOT(0, 4, 6);
            if (P > 1) {
                TILE_LOAD(7, w1, 64);
                TILE_DOT(1, 4, 7);
            }
            if (T > 1) {
                TILE_LOAD(5, x2->hi + i, stride);
                TILE_DOT(2, 5, 6);
                if (P > 1)
                    TILE_DOT(3, 5, 7);
            }
            w0 += step * NB_PANEL_ROWS;
            w1 += step * NB_PANEL_ROWS;
        }
        TILE_STORE(0, sums[0][0], 64);
        if (P > 1)
            TILE_STORE(1, sums[0][1], 64);
        if (T > 1) {
            TILE_STORE(2, sums[1][0], 64);
            if (P > 1)
                TILE_STORE(3, sums[1][1], 64);
        }
        for (int j = 0; j < P; j++)
            settle(y, ldy, sums[0][j], b, j, x, k, end);
        for (int j = 0; j < P && T > 1; j++)
            settle(y2, ldy, sums[1][j], b, j, x2, k, end);
        k = end;
    }
}

/* ---- the slot ---- */

static int64_t common_step(int64_t seg_len)
{
    int64_t step = 64;
    while (seg_len % step != 0)
        step /= 2;
    return step;
}

/* How many columns are unpacked at once: blocks of nearly equal length that end where a segment
 * does, or in a row of one segment anywhere. */
static int64_t block_length(int64_t n_cols, int64_t unit)
{
    const int64_t most = NB_ROWS_BLOCK / unit * unit, n_blocks = ceil_div(n_cols, most);
    const int64_t equal = ceil_div(n_cols, n_blocks);
    return ceil_div(equal, unit) * unit;
}

static void strip_all(float *y, int64_t ldy, const block *b, const nb_xtile *tiles,
                      const int64_t *tile_first, int64_t n_tiles, tile_shapes *shapes)
{
    for (int64_t i = 0; i < n_tiles; i++) {
        const nb_xtile *x = &tiles[i];
        set_shapes(shapes, x->n_tok, x->n_tok, b->step);
        for (int j = 0; j < b->n_panels; j++)
            strips[x->lo != NULL][b->w->mins != NULL](y + tile_first[i] * ldy, ldy, b, j, x);
    }
}

static void square_all(float *y, int64_t ldy, const block *b, const nb_xtile *tiles,
                       const int64_t *tile_first, int64_t n_tiles, tile_shapes *shapes)
{
    for (int64_t i = 0; i < n_tiles; i += 2) {
        const bool two = i + 1 < n_tiles, wide = b->n_panels > 1;
        const nb_xtile *x = &tiles[i];
        float *y1 = y + tile_first[i] * ldy, *y2 = y + tile_first[two ? i + 1 : i] * ldy;
        set_shapes(shapes, x[0].n_tok, x[two].n_tok, b->step);
        if (two && wide)
            square(y1, y2, ldy, b, x, 2, 2);
        else if (two)
            square(y1, y2, ldy, b, x, 2, 1);
        else if (wide)
            square(y1, y2, ldy, b, x, 1, 2);
        else
            square(y1, y2, ldy, b, x, 1, 1);
    }
}

static void gemm_rows(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                      const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                      float *scratch)
{
    const int64_t seg_len = tiles[0].seg_len, n_cols = w->n_cols;
    const bool one = seg_len >= n_cols, short_ = seg_len <= STRIP_SEG;
    assert(one || seg_len <= NB_ROWS_BLOCK);
    assert(short_ || tiles[0].lo == NULL); /* such sums of i16 would not fit in int32 */
    const int64_t step = one ? 64 : common_step(seg_len);
    const int64_t len = block_length(n_cols, one ? 64 : seg_len);
    block b = {.w = w, .step = step, .codes = {(int8_t *)scratch}};
    b.codes[1] = b.codes[0] + NB_ROWS_BLOCK * NB_PANEL_ROWS;
    tile_shapes shapes = {0};
    for (b.panel = begin; b.panel < end; b.panel += PANELS) {
        b.n_panels = b.panel + 1 < end ? 2 : 1;
        for (b.begin = 0; b.begin < n_cols; b.begin += len) {
            b.end = b.begin + len < n_cols ? b.begin + len : n_cols;
            for (int j = 0; j < b.n_panels; j++)
                b.left[j] = unpack(b.codes[j], w, b.panel + j, b.begin, b.end);
            (short_ ? strip_all : square_all)(y, ldy, &b, tiles, tile_first, n_tiles, &shapes);
        }
    }
    TILE_RELEASE();
}

void nb_kernels_amx_dot(nb_kernels *k)
{
    k->gemm_rows = gemm_rows;
}
