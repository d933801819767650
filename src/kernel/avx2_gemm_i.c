/* Integer matrix products, AVX2. A panel is two registers of 8 rows; a tile is one panel by up to
 * 6 tokens, so that each activation is broadcast once for 16 rows, and 12 sums fill the registers.
 * AVX2 has no 8-bit multiply that is both wide and safe, so there are two ways:
 *
 * narrow  4-bit codes are vpmaddubsw's unsigned operand, and 32 columns of products stay in 16 bits
 *         (8 * 2 * 15 * 128 < 2^15) before they are widened: 2 instructions for 64 multiply-adds.
 *         The planes of i16 are two streams of activations, for half as many tokens.
 * wide    8-bit codes, which vpmaddubsw would saturate: activations become 16 bits wide, once for a
 *         few panels, and vpmaddwd multiplies them with zero-extended codes: 4 instructions for 64
 *         multiply-adds, in i16 as in i8.
 *
 * Sums are of stored codes, exact modulo 2^32, and take the zero point by `start`. */
#include "kernel/avx2_panel.h"

#define MAX_T 6 /* tokens of a tile */

/* ---- the end of a segment ---- */

/* Where a segment's parameters are. */
typedef struct {
    int64_t param;        /* of the panel's first row, in scales, zeros and mins */
    const float *x_scale; /* of the tile's first token, as the next two */
    const int32_t *xsum, *start;
} segment;

/* Adds a segment of T tokens: total [T][2] by acc [T][2], as A3 says. `plain`: there are no zeros
 * and no minima. */
INLINE void add_segment(__m256 *total, __m256i *acc, const nb_panels *w, const segment *s,
                        const bool plain, const int T)
{
    const __m256 scale[2] = {load_params(w->scales, w->scale_type, s->param),
                             load_params(w->scales, w->scale_type, s->param + 8)};
    if (!plain && w->zeros != NULL) {
        const __m256i zero[2] = {load_zeros(w, s->param), load_zeros(w, s->param + 8)};
        UNROLL
        for (int i = 0; i < 2 * T; i++)
            acc[i] =
                _mm256_sub_epi32(acc[i], _mm256_mullo_epi32(zero[i % 2], bcast(s->xsum + i / 2)));
    } else if (s->start != NULL) {
        UNROLL
        for (int i = 0; i < 2 * T; i++)
            acc[i] = _mm256_add_epi32(acc[i], bcast(s->start + i / 2));
    }
    UNROLL
    for (int i = 0; i < 2 * T; i++)
        total[i] = _mm256_fmadd_ps(
            _mm256_cvtepi32_ps(acc[i]),
            _mm256_mul_ps(scale[i % 2], _mm256_broadcast_ss(s->x_scale + i / 2)), total[i]);
    if (!plain && w->mins != NULL) {
        const __m256 min[2] = {load_params(w->mins, w->scale_type, s->param),
                               load_params(w->mins, w->scale_type, s->param + 8)};
        UNROLL
        for (int i = 0; i < 2 * T; i++) {
            const __m256 sum = _mm256_mul_ps(_mm256_cvtepi32_ps(bcast(s->xsum + i / 2)),
                                             _mm256_broadcast_ss(s->x_scale + i / 2));
            total[i] = _mm256_fmadd_ps(min[i % 2], sum, total[i]);
        }
    }
}

/* The segments of a panel and a tile, one after another. They nest, so the numbers of the weight's
 * and of the activations' scales advance one at a time, without a division. */
typedef struct {
    int64_t k, n;         /* the joint segment's columns, padding of the last included */
    int64_t w_end, x_end; /* where the next scale begins */
    segment at;
} cursor;

INLINE int64_t segment_columns(const nb_xtile *x, int64_t k)
{
    const int64_t n = (x->seg_len + 7) / 8 * 8;
    return k + n < x->k_pad ? n : x->k_pad - k;
}

/* The cursor at segment `seg`, its weight's `wseg` and its activations' `xseg`. */
INLINE cursor cursor_at(const nb_panels *w, int64_t p, const nb_xtile *x, int t0, int64_t seg,
                        int64_t wseg, int64_t xseg)
{
    const int64_t k = seg * x->seg_len;
    return (cursor){.k = k,
                    .n = segment_columns(x, k),
                    .w_end = (wseg + 1) * w->seg_len,
                    .x_end = (xseg + 1) * x->x_seg_len,
                    .at = {.param = (p * w->n_segs + wseg) * NB_PANEL_ROWS,
                           .x_scale = x->scale + xseg * x->n_tok + t0,
                           .xsum = x->xsum + seg * x->n_tok + t0,
                           .start = x->start == NULL ? NULL : x->start + seg * x->n_tok + t0}};
}

INLINE void next_segment(cursor *c, const nb_panels *w, const nb_xtile *x)
{
    c->k += c->n;
    c->n = segment_columns(x, c->k);
    c->at.xsum += x->n_tok;
    if (c->at.start != NULL)
        c->at.start += x->n_tok;
    if (c->k == c->w_end) {
        c->w_end += w->seg_len;
        c->at.param += NB_PANEL_ROWS;
    }
    if (c->k == c->x_end) {
        c->x_end += x->x_seg_len;
        c->at.x_scale += x->n_tok;
    }
}

/* ---- tiles ---- */

/* Cuts tokens into tiles of nearly equal width: how many of `left` the next one takes. */
static int next_tile(int left, int widest)
{
    const int n_tiles = (left + widest - 1) / widest;
    return (left + n_tiles - 1) / n_tiles;
}

/* Adds (with `first`, sets) the products of one token by two registers of codes: of the four bytes
 * at x, or the pair of 16-bit numbers, as MULTIPLY and ADD say. In assembly, because compilers move
 * broadcasts and products up and rearrange the additions until nothing fits in 16 registers, each
 * in its own way.
 */
#define DEFINE_STEP(name, MULTIPLY, ADD)                                                           \
    INLINE void name(__m256i *sum, const __m256i *code, const void *x, const bool first)           \
    {                                                                                              \
        __m256i a, b;                                                                              \
        if (first)                                                                                 \
            __asm__("vpbroadcastd %2, %1\n\t" MULTIPLY " %1, %3, %0\n\t" MULTIPLY " %1, %4, %1"    \
                    : "=&x"(sum[0]), "=&x"(sum[1])                                                 \
                    : "m"(*(const int32_t *)x), "x"(code[0]), "x"(code[1]));                       \
        else                                                                                       \
            __asm__("vpbroadcastd %4, %2\n\t" MULTIPLY " %2, %5, %3\n\t" MULTIPLY                  \
                    " %2, %6, %2\n\t" ADD " %3, %0, %0\n\t" ADD " %2, %1, %1"                      \
                    : "+x"(sum[0]), "+x"(sum[1]), "=&x"(a), "=&x"(b)                               \
                    : "m"(*(const int32_t *)x), "x"(code[0]), "x"(code[1]));                       \
    }
DEFINE_STEP(narrow_step, "vpmaddubsw", "vpaddw")
DEFINE_STEP(wide_step, "vpmaddwd", "vpaddd")
#undef DEFINE_STEP

/* p + n, computed here: compilers otherwise keep every multiple of a stride, and spill them. */
INLINE const void *forward(const void *p, int64_t n)
{
    p = (const uint8_t *)p + n;
    __asm__("" : "+r"(p));
    return p;
}

/* ---- narrow ---- */

/* Adds the products of 8 columns of 4-bit codes to sums [stream][2] in 16 bits (sets them if
 * `first`): streams are T tokens of the high plane, then with `two` those of the low one. Leaves hi
 * and lo behind them. */
INLINE void narrow_columns(__m256i *sum, const uint8_t *w, const int8_t **hi, const int8_t **lo,
                           int64_t n_tok, const bool first, const bool two, const int T)
{
    const __m256i low = _mm256_set1_epi8(15);
    UNROLL
    for (int nibble = 0; nibble < 2; nibble++) {
        __m256i code[2];
        UNROLL
        for (int half = 0; half < 2; half++) {
            const __m256i both = load(w + 32 * half);
            code[half] = _mm256_and_si256(nibble ? _mm256_srli_epi16(both, 4) : both, low);
        }
        UNROLL
        for (int t = 0; t < T; t++)
            narrow_step(&sum[2 * t], code, *hi + 4 * t, first && !nibble);
        *hi = forward(*hi, 4 * n_tok);
        if (two) {
            UNROLL
            for (int t = 0; t < T; t++)
                narrow_step(&sum[2 * (T + t)], code, *lo + 4 * t, first && !nibble);
            *lo = forward(*lo, 4 * n_tok);
        }
    }
}

/* Adds 8 * n8 <= 32 columns to acc [T][2]; n8 is 4 if `whole`. */
INLINE void narrow_block(__m256i *acc, const uint8_t *w, const int8_t **hi, const int8_t **lo,
                         const bool whole, int64_t n8, int64_t n_tok, const bool two, const int T)
{
    __m256i sum[2 * MAX_T];
    narrow_columns(sum, w, hi, lo, n_tok, true, two, T);
    if (whole) {
        UNROLL
        for (int g = 1; g < 4; g++)
            narrow_columns(sum, w + 64 * g, hi, lo, n_tok, false, two, T);
    } else {
        for (int64_t g = 1; g < n8; g++)
            narrow_columns(sum, w + 64 * g, hi, lo, n_tok, false, two, T);
    }
    const __m256i ones = _mm256_set1_epi16(1), high = _mm256_set1_epi16(256);
    UNROLL
    for (int i = 0; i < 2 * T; i++) {
        acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(sum[i], two ? high : ones));
        if (two)
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(sum[2 * T + i], ones));
    }
}

/* One panel by tokens [t0, t0 + T). With g32 every segment is 32 columns; see add_segment about
 * `plain`. */
INLINE void narrow_tile(float *y, int64_t ldy, const nb_panels *w, int64_t p, const nb_xtile *x,
                        int t0, const bool two, const bool g32, const bool plain, const int T)
{
    const int64_t n_tok = x->n_tok;
    const uint8_t *codes = w->codes + p * w->panel_bytes;
    const int8_t *hi = x->hi + 4 * t0, *lo = two ? x->lo + 4 * t0 : NULL;
    __m256 total[2 * MAX_T];
    UNROLL
    for (int i = 0; i < 2 * T; i++)
        total[i] = _mm256_setzero_ps();
    for (cursor c = cursor_at(w, p, x, t0, 0, 0, 0); c.k < x->k_pad; next_segment(&c, w, x)) {
        __m256i acc[2 * MAX_T];
        UNROLL
        for (int i = 0; i < 2 * T; i++)
            acc[i] = _mm256_setzero_si256();
        const uint8_t *end = codes + 8 * (g32 ? 32 : c.n);
        if (g32) {
            narrow_block(acc, codes, &hi, &lo, true, 4, n_tok, two, T);
        } else {
            for (; end - codes >= 256; codes += 256)
                narrow_block(acc, codes, &hi, &lo, true, 4, n_tok, two, T);
            if (codes < end)
                narrow_block(acc, codes, &hi, &lo, false, (end - codes) / 64, n_tok, two, T);
        }
        codes = end;
        add_segment(total, acc, w, &c.at, plain, T);
    }
    const int64_t left = w->n_rows - p * NB_PANEL_ROWS;
    UNROLL
    for (int i = 0; i < 2 * T; i++)
        if (left > i % 2 * 8)
            store_rows(y + (t0 + i / 2) * ldy + p * NB_PANEL_ROWS + i % 2 * 8, total[i],
                       left - i % 2 * 8);
}

typedef void narrow_fn(float *y, int64_t ldy, const nb_panels *w, int64_t p, const nb_xtile *x,
                       int t0);

#define DEFINE(name, two, g32, plain, T)                                                           \
    static void name##_##T(float *y, int64_t ldy, const nb_panels *w, int64_t p,                   \
                           const nb_xtile *x, int t0)                                              \
    {                                                                                              \
        narrow_tile(y, ldy, w, p, x, t0, two, g32, plain, T);                                      \
    }
#define X(T)                                                                                       \
    DEFINE(narrow, false, false, false, T)                                                         \
    DEFINE(narrow_g32, false, true, false, T)                                                      \
    DEFINE(narrow_g32_plain, false, true, true, T)
X(1)
X(2)
X(3)
X(4)
X(5)
X(6)
#undef X
#define X(T)                                                                                       \
    DEFINE(narrow_two, true, false, false, T)                                                      \
    DEFINE(narrow_two_g32, true, true, false, T)                                                   \
    DEFINE(narrow_two_g32_plain, true, true, true, T)
X(1)
X(2)
X(3)
#undef X
#undef DEFINE

#define ROW3(name)                                                                                 \
    {                                                                                              \
        name##_1, name##_2, name##_3                                                               \
    }
#define ROW(name)                                                                                  \
    {                                                                                              \
        name##_1, name##_2, name##_3, name##_4, name##_5, name##_6                                 \
    }

static void gemm_narrow(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                        const nb_xtile *x)
{
    static narrow_fn *const one[3][MAX_T] = {ROW(narrow), ROW(narrow_g32), ROW(narrow_g32_plain)};
    static narrow_fn *const two[3][MAX_T / 2] = {ROW3(narrow_two), ROW3(narrow_two_g32),
                                                 ROW3(narrow_two_g32_plain)};
    const bool g32 = x->seg_len == 32 && x->k_pad % 32 == 0;
    const int shape = !g32 ? 0 : w->zeros != NULL || w->mins != NULL ? 1 : 2;
    narrow_fn *const *tiles = x->lo == NULL ? one[shape] : two[shape];
    for (int64_t p = begin; p < end; p++) {
        for (int t0 = 0; t0 < x->n_tok;) {
            const int T = next_tile(x->n_tok - t0, x->lo == NULL ? MAX_T : MAX_T / 2);
            tiles[T - 1](y, ldy, w, p, x, t0);
            t0 += T;
        }
    }
}

/* ---- wide ---- */

#define WIDE_GROUPS                                                                                \
    768               /* groups of four activations widened at a time: 256 columns of 12 tokens    \
                       */
#define WIDE_PANELS 4 /* panels that share them */

/* Activations in 16 bits: columns 4 g, 4 g + 2 of token t side by side at
 * even [g][t], columns 4 g + 1, 4 g + 3 at odd [g][t], as the bytes of a code fall when a register
 * of them is cut into its even and odd bytes. */
typedef struct {
    int32_t even[WIDE_GROUPS], odd[WIDE_GROUPS];
} wide_x;

/* From n groups of four bytes. */
static void widen(wide_x *out, const int8_t *hi, const int8_t *lo, int64_t n)
{
    const __m256i high_byte = _mm256_set1_epi16((short)0xff00);
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i in = lane_mask(n - i);
        const __m256i h = _mm256_maskload_epi32((const int *)(const void *)(hi + 4 * i), in);
        __m256i even = _mm256_slli_epi16(h, 8), odd = h;
        if (lo == NULL) {
            even = _mm256_srai_epi16(even, 8);
            odd = _mm256_srai_epi16(odd, 8);
        } else {
            const __m256i l = _mm256_maskload_epi32((const int *)(const void *)(lo + 4 * i), in);
            even = _mm256_add_epi16(even, _mm256_srai_epi16(_mm256_slli_epi16(l, 8), 8));
            odd = _mm256_add_epi16(_mm256_and_si256(odd, high_byte), _mm256_srai_epi16(l, 8));
        }
        _mm256_storeu_si256((void *)(out->even + i), even);
        _mm256_storeu_si256((void *)(out->odd + i), odd);
    }
}

/* Columns 0, 2 (part 0), 1, 3 (1), 4, 6 (2) and 5, 7 (3) of a group of 8 of 8 rows, 16 bits each.
 */
INLINE __m256i wide_codes(const uint8_t *w, __m256i table, const nb_panel_kind kind, const int part)
{
    const __m256i low8 = _mm256_set1_epi16(255), low4 = _mm256_set1_epi8(15);
    if (kind == NB_PANEL_U8) {
        const __m256i bytes = load(w + part / 2 * 64);
        return part % 2 ? _mm256_srli_epi16(bytes, 8) : _mm256_and_si256(bytes, low8);
    }
    const __m256i both = load(w);
    const __m256i index = _mm256_and_si256(part / 2 ? _mm256_srli_epi16(both, 4) : both, low4);
    const __m256i bytes = _mm256_shuffle_epi8(table, index);
    return part % 2 ? _mm256_srli_epi16(bytes, 8) : _mm256_and_si256(bytes, low8);
}

/* Adds 8 columns of a panel to acc [T][2]. */
INLINE void wide_columns(__m256i *acc, const uint8_t *w, __m256i table, const int32_t *even,
                         const int32_t *odd, int64_t n_tok, const nb_panel_kind kind, const int T)
{
    UNROLL
    for (int part = 0; part < 4; part++) {
        /* Loaded again for each part: a wide tile has no register to keep what another part needs.
         */
        const uint8_t *again = T > 4 ? forward(w, 0) : w;
        const __m256i code[2] = {wide_codes(again, table, kind, part),
                                 wide_codes(again + 32, table, kind, part)};
        const int32_t *x = (part % 2 ? odd : even) + part / 2 * n_tok;
        UNROLL
        for (int t = 0; t < T; t++)
            wide_step(&acc[2 * t], code, x + t, false);
    }
}

/* Columns [k, end) of a few panels. The numbers of the segments that hold column k. */
typedef struct {
    const nb_panels *w;
    const nb_xtile *x;
    wide_x *wide;
    int64_t k, end, seg, wseg, xseg;
} wide_block;

/* One panel by tokens [t0, t0 + T), with [T][16] totals. A segment cut by the block's begin or end
 * has its sums [T][16] so far. */
INLINE void wide_tile(const wide_block *a, int64_t p, int t0, int32_t *sums, float *totals,
                      const nb_panel_kind kind, const bool plain, const int T)
{
    const int64_t n_tok = a->x->n_tok, group_bytes = kind == NB_PANEL_U8 ? 128 : 64;
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)a->w->table));
    const uint8_t *codes = a->w->codes + p * a->w->panel_bytes + a->k / 8 * group_bytes;
    const int32_t *even = a->wide->even + t0, *odd = a->wide->odd + t0;
    cursor c = cursor_at(a->w, p, a->x, t0, a->seg, a->wseg, a->xseg);
    __m256 total[2 * MAX_T];
    UNROLL
    for (int i = 0; i < 2 * T; i++)
        total[i] = _mm256_loadu_ps(totals + 8 * i);
    for (int64_t k = a->k; k < a->end;) {
        const int64_t segment_end = c.k + c.n, stop = segment_end < a->end ? segment_end : a->end;
        __m256i acc[2 * MAX_T];
        UNROLL
        for (int i = 0; i < 2 * T; i++)
            acc[i] = k == c.k ? _mm256_setzero_si256() : load(sums + 8 * i);
        for (; k < stop; k += 8) {
            wide_columns(acc, codes, table, even, odd, n_tok, kind, T);
            codes += group_bytes;
            even += 2 * n_tok;
            odd += 2 * n_tok;
        }
        if (stop < segment_end) {
            UNROLL
            for (int i = 0; i < 2 * T; i++)
                _mm256_storeu_si256((void *)(sums + 8 * i), acc[i]);
            break;
        }
        add_segment(total, acc, a->w, &c.at, plain, T);
        next_segment(&c, a->w, a->x);
    }
    UNROLL
    for (int i = 0; i < 2 * T; i++)
        _mm256_storeu_ps(totals + 8 * i, total[i]);
}

typedef void wide_fn(const wide_block *a, int64_t p, int t0, int32_t *sums, float *totals);

#define DEFINE(name, kind, plain, T)                                                               \
    static void name##_##T(const wide_block *a, int64_t p, int t0, int32_t *sums, float *totals)   \
    {                                                                                              \
        wide_tile(a, p, t0, sums, totals, kind, plain, T);                                         \
    }
#define FOR_EACH_T(X) X(1) X(2) X(3) X(4) X(5) X(6)
#define X(T)                                                                                       \
    DEFINE(wide_t4, NB_PANEL_T4, false, T)                                                         \
    DEFINE(wide_t4_plain, NB_PANEL_T4, true, T)                                                    \
    DEFINE(wide_u8, NB_PANEL_U8, false, T)                                                         \
    DEFINE(wide_u8_plain, NB_PANEL_U8, true, T)
FOR_EACH_T(X)
#undef X
#undef DEFINE

/* P <= WIDE_PANELS panels from p. */
static void wide_panels(float *y, int64_t ldy, const nb_panels *w, int64_t p, int P,
                        const nb_xtile *x)
{
    static wide_fn *const all[2][2][MAX_T] = {{ROW(wide_t4), ROW(wide_t4_plain)},
                                              {ROW(wide_u8), ROW(wide_u8_plain)}};
    wide_fn *const *tiles = all[w->kind == NB_PANEL_U8][w->zeros == NULL && w->mins == NULL];
    _Alignas(32) wide_x wide;
    _Alignas(32) int32_t sums[WIDE_PANELS][NB_TILE_MAX * NB_PANEL_ROWS];
    _Alignas(32) float totals[WIDE_PANELS][NB_TILE_MAX * NB_PANEL_ROWS];
    const int64_t n_tok = x->n_tok;
    for (int j = 0; j < P; j++)
        memset(totals[j], 0, (size_t)n_tok * NB_PANEL_ROWS * sizeof(float));
    const int64_t room = WIDE_GROUPS / n_tok / 2 * 8, n = segment_columns(x, 0);
    const int64_t step = n < room ? room / n * n : room;
    for (int64_t k = 0; k < x->k_pad; k += step) {
        const wide_block block = {.w = w,
                                  .x = x,
                                  .wide = &wide,
                                  .k = k,
                                  .end = k + step < x->k_pad ? k + step : x->k_pad,
                                  .seg = k / x->seg_len,
                                  .wseg = k / w->seg_len,
                                  .xseg = k / x->x_seg_len};
        widen(&wide, x->hi + k * n_tok, x->lo == NULL ? NULL : x->lo + k * n_tok,
              (block.end - k) / 4 * n_tok);
        for (int j = 0; j < P; j++) {
            for (int t0 = 0, T; t0 < n_tok; t0 += T) {
                T = next_tile((int)n_tok - t0, MAX_T);
                tiles[T - 1](&block, p + j, t0, sums[j] + t0 * NB_PANEL_ROWS,
                             totals[j] + t0 * NB_PANEL_ROWS);
            }
        }
    }
    for (int j = 0; j < P; j++) {
        const int64_t row = (p + j) * NB_PANEL_ROWS;
        for (int t = 0; t < n_tok; t++)
            for (int half = 0; half < 2 && row + 8 * half < w->n_rows; half++)
                store_rows(y + t * ldy + row + 8 * half,
                           _mm256_loadu_ps(totals[j] + t * NB_PANEL_ROWS + 8 * half),
                           w->n_rows - row - 8 * half);
    }
}

void nb_gemm_i_avx2(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                    const nb_xtile *x)
{
    if (w->kind == NB_PANEL_U4) {
        gemm_narrow(y, ldy, w, begin, end, x);
        return;
    }
    for (int64_t p = begin; p < end; p += WIDE_PANELS)
        wide_panels(y, ldy, w, p, (int)(end - p < WIDE_PANELS ? end - p : WIDE_PANELS), x);
}
