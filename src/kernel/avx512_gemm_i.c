/* Matrix products in integers, AVX-512 VNNI.
 *
 * A tile is one panel (16 outputs, one register) by T <= 12 tokens. The T int32 sums of a segment
 * and T float totals stay in registers, weights are read once per tile, 4-bit codes are unpacked
 * there (3 operations for 2 * T multiplies), and each activation is vpdpbusd's broadcast memory
 * operand, so a multiply costs one instruction and no shuffle. The sums are exact integers, so
 * their order is free; the float steps follow the contract segment by segment.
 *
 * The limit at one multiply a cycle, and a multiply and an FMA for each segment and token: 8 of 10
 * cycles multiply at segments of 32 columns, 32 of 34 at 128. Few tokens have two sums each, so
 * that the multipliers do not wait for their own results. (Several panels at once did that too,
 * but memory delivers one stream of weights faster than four.) Mode i16 runs both planes past each
 * unpacked weight, unless the second set of sums would not fit in registers. */
#include "kernel/avx512_dot.h"

/* acc += for each lane the dot of 4 unsigned bytes of w and the 4 signed bytes at x. */
INLINE __m512i dot_bcst(__m512i acc, __m512i w, const int8_t *x)
{
    /* Intrinsics leave it to the compiler whether the broadcast is folded; gcc 12 does not. */
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t(*)[1])x));
    return acc;
}

/* The line that a tile will write in some thousand cycles, owned by then. */
INLINE void prefetch_to_write(const float *y)
{
    __asm__ volatile("prefetchw %0" : : "m"(*y));
}

/* Few tokens read weights at the speed of memory. Where segments of 4-bit codes are short, the
 * hardware asks for lines too late: codes are asked for this many bytes ahead. Past the end of a
 * panel lies the next one, and past the last one a prefetch is without effect. The hint keeps what
 * is read once from driving the activations out of the first-level cache. */
#define AHEAD_BYTES  8192
#define AHEAD_TOKENS 2
INLINE void prefetch_codes(const uint8_t *w, int bytes)
{
    _mm_prefetch((const char *)w, _MM_HINT_NTA);
    if (bytes > 64)
        _mm_prefetch((const char *)w + 64, _MM_HINT_NTA);
}

typedef struct {
    __m512i a, b; /* stored codes of columns 0 to 3 and 4 to 7 */
} codes8;

INLINE codes8 load_codes(const uint8_t *w, const nb_panel_kind kind, __m512i table)
{
    if (kind == NB_PANEL_U8)
        return (codes8){_mm512_loadu_si512(w), _mm512_loadu_si512(w + 64)};
    const __m512i low = _mm512_set1_epi8(15);
    __m512i both = _mm512_loadu_si512(w);
    __asm__("" : "+v"(both)); /* loaded once, not by both operations */
    const __m512i a = _mm512_and_si512(both, low);
    const __m512i b = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    if (kind == NB_PANEL_U4)
        return (codes8){a, b};
    return (codes8){_mm512_shuffle_epi8(table, a), _mm512_shuffle_epi8(table, b)};
}

/* The products of 8 columns at `w` with a plane at `x`. Columns 4 to 7 go to sums of their own, T
 * further on, if `split`. */
INLINE void add8(__m512i *acc, codes8 c, const int8_t *x, const int T, const bool split)
{
    const int second = split ? T : 0;
    UNROLL
    for (int t = 0; t < T; t++)
        acc[t] = dot_bcst(acc[t], c.a, x + 4 * t);
    UNROLL
    for (int t = 0; t < T; t++)
        acc[second + t] = dot_bcst(acc[second + t], c.b, x + 4 * (T + t));
}

/* Adds the products of 8 * n8 columns: with `hi` to acc, and if there is a `lo`, to acc_lo. */
INLINE void add_columns(__m512i *acc, __m512i *acc_lo, const uint8_t *w, int64_t ahead,
                        const int8_t *hi, const int8_t *lo, int64_t n8, const nb_panel_kind kind,
                        __m512i table, const int T, const bool split, const bool both)
{
    const int bytes = kind == NB_PANEL_U8 ? 128 : 64;
    /* Few tokens: four at a time, because the loop itself would take a third of the time. */
    const int step = T <= AHEAD_TOKENS ? 4 : 1;
    for (; n8 >= step; n8 -= step) {
        UNROLL
        for (int i = 0; i < step; i++, w += bytes, hi += 8 * T, lo += 8 * T) {
            if (T <= AHEAD_TOKENS)
                prefetch_codes(w + ahead, bytes);
            const codes8 c = load_codes(w, kind, table);
            add8(acc, c, hi, T, split);
            if (both)
                add8(acc_lo, c, lo, T, split);
        }
    }
    for (; n8 > 0; n8--, w += bytes, hi += 8 * T, lo += 8 * T) {
        const codes8 c = load_codes(w, kind, table);
        add8(acc, c, hi, T, split);
        if (both)
            add8(acc_lo, c, lo, T, split);
    }
}

/* What the sums of a segment start from: -z * xsum, so that nothing is left to correct at the end.
 * `start` and `xsum` are at the segment. With `high`, acc holds the sums of the high plane and
 * becomes 256 times as much and that start. */
INLINE void start_sums(__m512i *acc, const nb_panels *w, int64_t at, const int32_t *start,
                       const int32_t *xsum, const bool high, const int T)
{
    UNROLL
    for (int t = 0; t < T; t++)
        acc[t] = high ? _mm512_slli_epi32(acc[t], 8) : _mm512_setzero_si512();
    if (w->zeros != NULL) {
        const __m512i z = load_zeros(w, at);
        UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = _mm512_sub_epi32(acc[t], _mm512_mullo_epi32(z, _mm512_set1_epi32(xsum[t])));
    } else if (start != NULL) {
        UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = high ? _mm512_add_epi32(acc[t], _mm512_set1_epi32(start[t]))
                          : _mm512_set1_epi32(start[t]);
    }
}

/* The second sums of a split join the first. */
INLINE void join(__m512i *acc, const bool split, const int T)
{
    UNROLL
    for (int t = 0; split && t < T; t++)
        acc[t] = _mm512_add_epi32(acc[t], acc[T + t]);
}

INLINE void clear(__m512i *acc, int from, int to)
{
    UNROLL
    for (int t = from; t < to; t++)
        acc[t] = _mm512_setzero_si512();
}

/* Panel p by T tokens. */
INLINE void tile_i(float *y, int64_t ldy, const nb_panels *w, int64_t p, const nb_xtile *xt,
                   const nb_panel_kind kind, const bool wide, const int T)
{
    const bool split = T <= (wide ? 2 : 4);
    const int n_sums = split ? 2 * T : T, bytes = kind == NB_PANEL_U8 ? 128 : 64;
    const int64_t n_pad8 = w->k_pad / 8, seg8 = (xt->seg_len + 7) / 8;
    const int64_t ahead = kind != NB_PANEL_U8 && xt->seg_len <= 64 ? AHEAD_BYTES : 64;
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)w->table)); /* of T4 */
    const uint8_t *codes = w->codes + p * w->panel_bytes;
    const int8_t *hi = xt->hi, *lo = xt->lo;
    const float *sx = xt->scale;
    const int32_t *xsum = xt->xsum, *start = xt->start;
    y += p * NB_PANEL_ROWS;
    UNROLL
    for (int t = 0; t < T; t++)
        prefetch_to_write(y + t * ldy);

    __m512 total[NB_TILE_MAX];
    UNROLL
    for (int t = 0; t < T; t++)
        total[t] = _mm512_setzero_ps();
    /* Segments nest, so the weight's and the activations' numbers advance one at a time. */
    int64_t at = p * w->n_segs * NB_PANEL_ROWS, w_end = w->seg_len, x_end = xt->x_seg_len;
    for (int64_t g = 0;;) {
        const int64_t n8 = g + seg8 < n_pad8 ? seg8 : n_pad8 - g;
        __m512i acc[NB_TILE_MAX];
        if (!wide) {
            start_sums(acc, w, at, start, xsum, false, T);
            clear(acc, T, n_sums);
            add_columns(acc, acc, codes, ahead, hi, hi, n8, kind, table, T, split, false);
            join(acc, split, T);
        } else if (T <= 8) { /* x = 256 hi + lo */
            __m512i acc_lo[NB_TILE_MAX];
            clear(acc, 0, n_sums);
            start_sums(acc_lo, w, at, start, xsum, false, T);
            clear(acc_lo, T, n_sums);
            add_columns(acc, acc_lo, codes, ahead, hi, lo, n8, kind, table, T, split, true);
            join(acc, split, T);
            join(acc_lo, split, T);
            UNROLL
            for (int t = 0; t < T; t++)
                acc[t] = _mm512_add_epi32(_mm512_slli_epi32(acc[t], 8), acc_lo[t]);
        } else { /* the high plane's sums shifted, then the low plane */
            clear(acc, 0, T);
            add_columns(acc, acc, codes, ahead, hi, hi, n8, kind, table, T, false, false);
            start_sums(acc, w, at, start, xsum, true, T);
            add_columns(acc, acc, codes, ahead, lo, lo, n8, kind, table, T, false, false);
        }
        const __m512 sw = load_params(w->scales, w->scale_type, at);
        UNROLL
        for (int t = 0; t < T; t++)
            total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[t]),
                                       _mm512_mul_ps(sw, _mm512_set1_ps(sx[t])), total[t]);
        if (w->mins != NULL) {
            /* fl((float)xsum * s_x) of all tokens in one register, then broadcast from memory. */
            _Alignas(64) float xm[16];
            const __m512i sums = _mm512_maskz_loadu_epi32(lanes(T), xsum);
            _mm512_store_ps(
                xm, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_maskz_loadu_ps(lanes(T), sx)));
            const __m512 m = load_params(w->mins, w->scale_type, at);
            UNROLL
            for (int t = 0; t < T; t++)
                total[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(xm[t]), total[t]);
        }
        g += n8;
        if (g == n_pad8)
            break;
        codes += n8 * bytes;
        hi += n8 * 8 * T;
        lo += wide ? n8 * 8 * T : 0;
        xsum += T;
        start += start != NULL ? T : 0;
        if (g * 8 == w_end) {
            w_end += w->seg_len;
            at += NB_PANEL_ROWS;
        }
        if (g * 8 == x_end) {
            x_end += xt->x_seg_len;
            sx += T;
        }
    }
    const __mmask16 mask = lanes(w->n_rows - p * NB_PANEL_ROWS);
    UNROLL
    for (int t = 0; t < T; t++)
        _mm512_mask_storeu_ps(y + t * ldy, mask, total[t]);
}

#define DEFINE(kind, mode, wide, T)                                                                \
    static void gemm_##kind##_##mode##_##T(float *y, int64_t ldy, const nb_panels *w,              \
                                           int64_t begin, int64_t end, const nb_xtile *x)          \
    {                                                                                              \
        for (int64_t p = begin; p < end; p++)                                                      \
            tile_i(y, ldy, w, p, x, NB_PANEL_##kind, wide, T);                                     \
    }
#define X(T)                                                                                       \
    DEFINE(U4, i8, false, T)                                                                       \
    DEFINE(U4, i16, true, T)                                                                       \
    DEFINE(T4, i8, false, T)                                                                       \
    DEFINE(T4, i16, true, T)                                                                       \
    DEFINE(U8, i8, false, T)                                                                       \
    DEFINE(U8, i16, true, T)
FOR_EACH_T(X)
#undef X

void nb_avx512_gemm_i(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                      const nb_xtile *x)
{
#define ROW(kind, mode)                                                                            \
    {                                                                                              \
        gemm_##kind##_##mode##_1, gemm_##kind##_##mode##_2, gemm_##kind##_##mode##_3,              \
            gemm_##kind##_##mode##_4, gemm_##kind##_##mode##_5, gemm_##kind##_##mode##_6,          \
            gemm_##kind##_##mode##_7, gemm_##kind##_##mode##_8, gemm_##kind##_##mode##_9,          \
            gemm_##kind##_##mode##_10, gemm_##kind##_##mode##_11, gemm_##kind##_##mode##_12        \
    }
    static nb_gemm_i_fn *const table[3][2][NB_TILE_MAX] = {
        {ROW(U4, i8), ROW(U4, i16)}, {ROW(T4, i8), ROW(T4, i16)}, {ROW(U8, i8), ROW(U8, i16)}};
    table[w->kind - NB_PANEL_U4][x->lo != NULL][x->n_tok - 1](y, ldy, w, begin, end, x);
}
static_assert(NB_PANEL_T4 == NB_PANEL_U4 + 1 && NB_PANEL_U8 == NB_PANEL_U4 + 2, "table's order");
