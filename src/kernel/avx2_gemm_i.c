/* Integer matrix products, AVX2. A panel is two registers of 8 rows; a tile is one panel by up to
 * 6 tokens, so that each activation is broadcast once for 16 rows, and 12 sums fill the registers.
 * AVX2 has no 8-bit multiply that is both wide and safe, so there are two ways:
 *
 * narrow  4-bit codes are vpmaddubsw's unsigned operand, and 32 columns of products stay in 16 bits
 *         (8 * 2 * 15 * 128 < 2^15) before they are widened: 2 instructions for 64 multiply-adds.
 *         The planes of i16 are two streams of activations, for half as many tokens.
 * wide    activations become 16 bits wide, once for a few panels, and vpmaddwd multiplies them with
 *         zero-extended codes: 4 instructions for 64 multiply-adds, in i16 as in i8. It takes
 *         8-bit codes, which vpmaddubsw would saturate, and in i16 is never the slower way for
 *         several tokens.
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

/* Adds a segment of T tokens: total [T][2] by acc [T][2], as A3 says. */
INLINE void add_segment(__m256 *total, __m256i *acc, const nb_panels *w, const segment *s,
                        const int T)
{
    const __m256 scale[2] = {load_params(w->scales, w->scale_type, s->param),
                             load_params(w->scales, w->scale_type, s->param + 8)};
    if (w->zeros != NULL) {
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
    if (w->mins != NULL) {
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

INLINE cursor first_segment(const nb_panels *w, int64_t p, const nb_xtile *x, int t0)
{
    return (cursor){.n = segment_columns(x, 0),
                    .w_end = w->seg_len,
                    .x_end = x->x_seg_len,
                    .at = {.param = p * w->n_segs * NB_PANEL_ROWS,
                           .x_scale = x->scale + t0,
                           .xsum = x->xsum + t0,
                           .start = x->start == NULL ? NULL : x->start + t0}};
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

/* ---- narrow ---- */

/* Adds the products of 8 columns of 4-bit codes to sums [stream][2] in 16 bits (sets them if
 * `first`): streams are T tokens of the high plane, then with `two` those of the low one. */
INLINE void narrow_columns(__m256i *sum, const uint8_t *w, const int8_t *hi, const int8_t *lo,
                           int64_t n_tok, const bool first, const bool two, const int T)
{
    const __m256i low = _mm256_set1_epi8(15);
    const int n_streams = two ? 2 * T : T;
    UNROLL
    for (int nibble = 0; nibble < 2; nibble++) {
        __m256i code[2];
        UNROLL
        for (int half = 0; half < 2; half++) {
            const __m256i both = load(w + 32 * half);
            code[half] = _mm256_and_si256(nibble ? _mm256_srli_epi16(both, 4) : both, low);
        }
        UNROLL
        for (int s = 0; s < n_streams; s++) {
            const __m256i x = bcast((s < T ? hi : lo) + 4 * (nibble * n_tok + s % T));
            UNROLL
            for (int half = 0; half < 2; half++) {
                const __m256i product = _mm256_maddubs_epi16(code[half], x);
                __m256i *at = &sum[2 * s + half];
                *at = first && !nibble ? product : pin(_mm256_add_epi16(*at, product));
            }
        }
    }
}

/* Adds 8 * n8 <= 32 columns to acc [T][2]. */
INLINE void narrow_block(__m256i *acc, const uint8_t *w, const int8_t *hi, const int8_t *lo,
                         int64_t n8, int64_t n_tok, const bool two, const int T)
{
    __m256i sum[2 * MAX_T];
    narrow_columns(sum, w, hi, lo, n_tok, true, two, T);
    if (n8 == 4) {
        UNROLL
        for (int g = 1; g < 4; g++)
            narrow_columns(sum, w + 64 * g, hi + 8 * g * n_tok, two ? lo + 8 * g * n_tok : NULL,
                           n_tok, false, two, T);
    } else {
        for (int64_t g = 1; g < n8; g++)
            narrow_columns(sum, w + 64 * g, hi + 8 * g * n_tok, two ? lo + 8 * g * n_tok : NULL,
                           n_tok, false, two, T);
    }
    const __m256i ones = _mm256_set1_epi16(1), high = _mm256_set1_epi16(256);
    UNROLL
    for (int i = 0; i < 2 * T; i++) {
        acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(sum[i], two ? high : ones));
        if (two)
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(sum[2 * T + i], ones));
    }
}

/* One panel by tokens [t0, t0 + T). With g32 every segment is 32 columns. */
INLINE void narrow_tile(float *y, int64_t ldy, const nb_panels *w, int64_t p, const nb_xtile *x,
                        int t0, const bool two, const bool g32, const int T)
{
    const int64_t n_tok = x->n_tok;
    const uint8_t *codes = w->codes + p * w->panel_bytes;
    const int8_t *hi = x->hi + 4 * t0, *lo = two ? x->lo + 4 * t0 : NULL;
    __m256 total[2 * MAX_T];
    UNROLL
    for (int i = 0; i < 2 * T; i++)
        total[i] = _mm256_setzero_ps();
    for (cursor c = first_segment(w, p, x, t0); c.k < x->k_pad; next_segment(&c, w, x)) {
        __m256i acc[2 * MAX_T];
        UNROLL
        for (int i = 0; i < 2 * T; i++)
            acc[i] = _mm256_setzero_si256();
        for (int64_t k = 0; k < (g32 ? 1 : c.n); k += 32) {
            const int64_t n8 = g32 || c.n - k >= 32 ? 4 : (c.n - k) / 8;
            narrow_block(acc, codes, hi, lo, n8, n_tok, two, T);
            codes += 64 * n8;
            hi += 8 * n8 * n_tok;
            lo = two ? lo + 8 * n8 * n_tok : NULL;
        }
        add_segment(total, acc, w, &c.at, T);
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

#define DEFINE(name, two, g32, T)                                                                  \
    static void name(float *y, int64_t ldy, const nb_panels *w, int64_t p, const nb_xtile *x,      \
                     int t0)                                                                       \
    {                                                                                              \
        narrow_tile(y, ldy, w, p, x, t0, two, g32, T);                                             \
    }
#define X(T)                                                                                       \
    DEFINE(narrow_##T, false, false, T)                                                            \
    DEFINE(narrow_g32_##T, false, true, T)
X(1)
X(2)
X(3) X(4) X(5) X(6)
#undef X
#define X(T)                                                                                       \
    DEFINE(narrow_two_##T, true, false, T)                                                         \
    DEFINE(narrow_two_g32_##T, true, true, T)
    X(1) X(2) X(3)
#undef X
#undef DEFINE

    /* Cuts n tokens into tiles of nearly equal width: how many of `left` the next one takes. */
    static int next_tile(int left, int widest)
{
    const int n_tiles = (left + widest - 1) / widest;
    return (left + n_tiles - 1) / n_tiles;
}

static void gemm_narrow(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                        const nb_xtile *x)
{
    static narrow_fn *const one[2][MAX_T] = {
        {narrow_1, narrow_2, narrow_3, narrow_4, narrow_5, narrow_6},
        {narrow_g32_1, narrow_g32_2, narrow_g32_3, narrow_g32_4, narrow_g32_5, narrow_g32_6}};
    static narrow_fn *const two[2][MAX_T / 2] = {
        {narrow_two_1, narrow_two_2, narrow_two_3},
        {narrow_two_g32_1, narrow_two_g32_2, narrow_two_g32_3}};
    const bool g32 = x->seg_len == 32 && x->k_pad % 32 == 0;
    narrow_fn *const *tiles = x->lo == NULL ? one[g32] : two[g32];
    for (int64_t p = begin; p < end; p++) {
        for (int t0 = 0; t0 < x->n_tok;) {
            const int T = next_tile(x->n_tok - t0, x->lo == NULL ? MAX_T : MAX_T / 2);
            tiles[T - 1](y, ldy, w, p, x, t0);
            t0 += T;
        }
    }
}

/* ---- wide ---- */

#define BLOCK_K     128 /* columns widened at a time */
#define WIDE_PANELS 4   /* panels that share them */

/* Activations of up to BLOCK_K columns in 16 bits: columns 4 g, 4 g + 2 of token t side by side at
 * even [g][t], columns 4 g + 1, 4 g + 3 at odd [g][t], as the bytes of a code fall when a register
 * of them is cut into its even and odd bytes. */
typedef struct {
    int32_t even[BLOCK_K / 4 * NB_TILE_MAX], odd[BLOCK_K / 4 * NB_TILE_MAX];
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

/* Adds the products of one column pair of each of 16 rows, [2] codes in 16 bits, to acc [T][2]. */
INLINE void wide_pairs(__m256i *acc, const __m256i *code, const int32_t *x, const int T)
{
    UNROLL
    for (int t = 0; t < T; t++) {
        const __m256i pair = _mm256_set1_epi32(x[t]);
        acc[2 * t] = pin(_mm256_add_epi32(acc[2 * t], _mm256_madd_epi16(code[0], pair)));
        acc[2 * t + 1] = pin(_mm256_add_epi32(acc[2 * t + 1], _mm256_madd_epi16(code[1], pair)));
    }
}

/* Adds four columns whose codes are bytes. */
INLINE void wide_bytes(__m256i *acc, __m256i code0, __m256i code1, const int32_t *even,
                       const int32_t *odd, const int T)
{
    const __m256i low = _mm256_set1_epi16(255);
    wide_pairs(acc, (__m256i[]){_mm256_and_si256(code0, low), _mm256_and_si256(code1, low)}, even,
               T);
    wide_pairs(acc, (__m256i[]){_mm256_srli_epi16(code0, 8), _mm256_srli_epi16(code1, 8)}, odd, T);
}

/* Adds 8 columns of a panel. */
INLINE void wide_columns(__m256i *acc, const uint8_t *w, __m256i table, const int32_t *even,
                         const int32_t *odd, int64_t n_tok, const nb_panel_kind kind, const int T)
{
    if (kind == NB_PANEL_U8) {
        wide_bytes(acc, load(w), load(w + 32), even, odd, T);
        wide_bytes(acc, load(w + 64), load(w + 96), even + n_tok, odd + n_tok, T);
        return;
    }
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i a = load(w), b = load(w + 32);
    if (kind == NB_PANEL_T4) {
        wide_bytes(acc, _mm256_shuffle_epi8(table, _mm256_and_si256(a, low)),
                   _mm256_shuffle_epi8(table, _mm256_and_si256(b, low)), even, odd, T);
        wide_bytes(acc, _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(a, 4), low)),
                   _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(b, 4), low)),
                   even + n_tok, odd + n_tok, T);
        return;
    }
    wide_bytes(acc, _mm256_and_si256(a, low), _mm256_and_si256(b, low), even, odd, T);
    wide_bytes(acc, _mm256_and_si256(_mm256_srli_epi16(a, 4), low),
               _mm256_and_si256(_mm256_srli_epi16(b, 4), low), even + n_tok, odd + n_tok, T);
}

/* A block of columns of one panel by T tokens: sums and totals are [T][16] in memory. */
typedef struct {
    const nb_panels *w;
    const uint8_t *codes;
    const int32_t *even, *odd;
    int64_t n8, n_tok;
    int32_t *sums; /* of the segment's blocks so far */
    float *totals;
    bool first, last; /* of the segment's blocks */
    segment at;
} wide_args;

INLINE void wide_tile(const wide_args *a, const nb_panel_kind kind, const int T)
{
    __m256i acc[2 * MAX_T];
    UNROLL
    for (int i = 0; i < 2 * T; i++)
        acc[i] = a->first ? _mm256_setzero_si256() : load(a->sums + 8 * i);
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)a->w->table));
    const uint8_t *codes = a->codes;
    const int32_t *even = a->even, *odd = a->odd;
    for (int64_t g = 0; g < a->n8; g++) {
        wide_columns(acc, codes, table, even, odd, a->n_tok, kind, T);
        codes += kind == NB_PANEL_U8 ? 128 : 64;
        even += 2 * a->n_tok;
        odd += 2 * a->n_tok;
    }
    if (!a->last) {
        UNROLL
        for (int i = 0; i < 2 * T; i++)
            _mm256_storeu_si256((void *)(a->sums + 8 * i), acc[i]);
        return;
    }
    __m256 total[2 * MAX_T];
    UNROLL
    for (int i = 0; i < 2 * T; i++)
        total[i] = _mm256_loadu_ps(a->totals + 8 * i);
    add_segment(total, acc, a->w, &a->at, T);
    UNROLL
    for (int i = 0; i < 2 * T; i++)
        _mm256_storeu_ps(a->totals + 8 * i, total[i]);
}

typedef void wide_fn(const wide_args *a);

#define X(T)                                                                                       \
    static void wide_u4_##T(const wide_args *a)                                                    \
    {                                                                                              \
        wide_tile(a, NB_PANEL_U4, T);                                                              \
    }                                                                                              \
    static void wide_t4_##T(const wide_args *a)                                                    \
    {                                                                                              \
        wide_tile(a, NB_PANEL_T4, T);                                                              \
    }                                                                                              \
    static void wide_u8_##T(const wide_args *a)                                                    \
    {                                                                                              \
        wide_tile(a, NB_PANEL_U8, T);                                                              \
    }
X(1)
X(2)
X(3) X(4) X(5) X(6)
#undef X

    /* P <= WIDE_PANELS panels from p. */
    static void wide_panels(float *y, int64_t ldy, const nb_panels *w, int64_t p, int P,
                            const nb_xtile *x)
{
    static wide_fn *const tiles[][MAX_T] = {
        [NB_PANEL_U4] = {wide_u4_1, wide_u4_2, wide_u4_3, wide_u4_4, wide_u4_5, wide_u4_6},
        [NB_PANEL_T4] = {wide_t4_1, wide_t4_2, wide_t4_3, wide_t4_4, wide_t4_5, wide_t4_6},
        [NB_PANEL_U8] = {wide_u8_1, wide_u8_2, wide_u8_3, wide_u8_4, wide_u8_5, wide_u8_6}};
    _Alignas(32) wide_x wide;
    _Alignas(32) int32_t sums[WIDE_PANELS][NB_TILE_MAX * NB_PANEL_ROWS];
    _Alignas(32) float totals[WIDE_PANELS][NB_TILE_MAX * NB_PANEL_ROWS];
    const int64_t n_tok = x->n_tok, group8_bytes = w->kind == NB_PANEL_U8 ? 128 : 64;
    for (int j = 0; j < P; j++)
        memset(totals[j], 0, (size_t)n_tok * NB_PANEL_ROWS * sizeof(float));
    for (cursor c = first_segment(w, p, x, 0); c.k < x->k_pad; next_segment(&c, w, x)) {
        for (int64_t k = 0; k < c.n; k += BLOCK_K) {
            const int64_t n = k + BLOCK_K < c.n ? BLOCK_K : c.n - k, at = (c.k + k) * n_tok;
            widen(&wide, x->hi + at, x->lo == NULL ? NULL : x->lo + at, n / 4 * n_tok);
            for (int j = 0; j < P; j++) {
                wide_args a = {.w = w,
                               .codes = w->codes + (p + j) * w->panel_bytes +
                                        (c.k + k) / 8 * group8_bytes,
                               .n8 = n / 8,
                               .n_tok = n_tok,
                               .first = k == 0,
                               .last = k + n == c.n};
                for (int t0 = 0, T; t0 < n_tok; t0 += T) {
                    T = next_tile((int)n_tok - t0, MAX_T);
                    a.even = wide.even + t0;
                    a.odd = wide.odd + t0;
                    a.sums = sums[j] + t0 * NB_PANEL_ROWS;
                    a.totals = totals[j] + t0 * NB_PANEL_ROWS;
                    a.at = (segment){.param = c.at.param + j * w->n_segs * NB_PANEL_ROWS,
                                     .x_scale = c.at.x_scale + t0,
                                     .xsum = c.at.xsum + t0,
                                     .start = c.at.start == NULL ? NULL : c.at.start + t0};
                    tiles[w->kind][T - 1](&a);
                }
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
    if (w->kind == NB_PANEL_U4 && (x->lo == NULL || x->n_tok < 3)) {
        gemm_narrow(y, ldy, w, begin, end, x);
        return;
    }
    for (int64_t p = begin; p < end; p += WIDE_PANELS)
        wide_panels(y, ldy, w, p, (int)(end - p < WIDE_PANELS ? end - p : WIDE_PANELS), x);
}
