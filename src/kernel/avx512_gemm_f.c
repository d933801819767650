/* Matrix products in floats, AVX-512.
 *
 * T chains (times P panels when T is small, to hide the latency of the FMA), one per output, cut
 * every 128 columns; the totals live in y. Weights that are codes are dequantized by chunks, and a
 * chunk serves all tokens. */
#include "kernel/avx512_dot.h"

INLINE __m512 load_weights(const uint8_t *w, int64_t k, const nb_panel_kind kind)
{
    if (kind == NB_PANEL_BF16)
        return _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(w + 32 * k))), 16));
    if (kind == NB_PANEL_F16)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(w + 32 * k)));
    return _mm512_loadu_ps((const float *)(const void *)w + 16 * k);
}

/* P panels (weights of panel j at w + j * stride) by T tokens, one chunk of n columns. */
INLINE void tile_f(float *y, int64_t ldy, int64_t n_rows, const uint8_t *w, int64_t stride,
                   const float *x, int64_t n, bool first, const nb_panel_kind kind, const int P,
                   const int T)
{
    __m512 acc[2 * NB_TILE_MAX];
    UNROLL
    for (int j = 0; j < P * T; j++)
        acc[j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < n; k++, x += T) {
        UNROLL
        for (int j = 0; j < P; j++) {
            const __m512 wk = load_weights(w + j * stride, k, kind);
            UNROLL
            for (int t = 0; t < T; t++)
                acc[j * T + t] = _mm512_fmadd_ps(wk, _mm512_set1_ps(x[t]), acc[j * T + t]);
        }
    }
    UNROLL
    for (int j = 0; j < P; j++) {
        const __mmask16 mask = lanes(n_rows - j * NB_PANEL_ROWS);
        UNROLL
        for (int t = 0; t < T; t++) {
            float *out = y + t * ldy + j * NB_PANEL_ROWS;
            const __m512 before = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, out);
            _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(before, acc[j * T + t]));
        }
    }
}

/* Adds one chunk of n columns to y (from +0 if `first`): P panels of weights, panel j at
 * w + j * stride, by T of the n_tok tokens at x. n_rows is what is left of the matrix. */
typedef void tile_f_fn(float *y, int64_t ldy, int64_t n_rows, const uint8_t *w, int64_t stride,
                       const float *x, int64_t n_tok, int64_t n, bool first);

#define DEFINE(kind, P, T)                                                                         \
    static void tile_##kind##_##P##_##T(float *y, int64_t ldy, int64_t n_rows, const uint8_t *w,   \
                                        int64_t stride, const float *x, int64_t n_tok, int64_t n,  \
                                        bool first)                                                \
    {                                                                                              \
        (void)n_tok; /* a tile is never cut: its stride is T */                                    \
        tile_f(y, ldy, n_rows, w, stride, x, n, first, NB_PANEL_##kind, P, T);                     \
    }
#define X(T) DEFINE(F32, 1, T) DEFINE(BF16, 1, T) DEFINE(F16, 1, T)
FOR_EACH_T(X)
#undef X
/* Several panels at once where T alone leaves the FMA units waiting for their own results. */
#define FOR_EACH_SMALL_T(X) X(1) X(2) X(3)
#define X(T)                DEFINE(F32, 4, T) DEFINE(BF16, 4, T) DEFINE(F16, 4, T)
FOR_EACH_SMALL_T(X)
#undef X
#define FOR_EACH_MIDDLE_T(X) X(4) X(5) X(6)
#define X(T)                 DEFINE(F32, 2, T) DEFINE(BF16, 2, T) DEFINE(F16, 2, T)
FOR_EACH_MIDDLE_T(X)
#undef X

#define ROW(kind)                                                                                  \
    {                                                                                              \
        tile_##kind##_1_1, tile_##kind##_1_2, tile_##kind##_1_3, tile_##kind##_1_4,                \
            tile_##kind##_1_5, tile_##kind##_1_6, tile_##kind##_1_7, tile_##kind##_1_8,            \
            tile_##kind##_1_9, tile_##kind##_1_10, tile_##kind##_1_11, tile_##kind##_1_12          \
    }
#define WIDE_ROW(kind)                                                                             \
    {                                                                                              \
        tile_##kind##_4_1, tile_##kind##_4_2, tile_##kind##_4_3, tile_##kind##_2_4,                \
            tile_##kind##_2_5, tile_##kind##_2_6                                                   \
    }
static tile_f_fn *const tiles_one[3][NB_TILE_MAX] = {
    [NB_PANEL_F32] = ROW(F32), [NB_PANEL_BF16] = ROW(BF16), [NB_PANEL_F16] = ROW(F16)};
static tile_f_fn *const tiles_wide[3][6] = {[NB_PANEL_F32] = WIDE_ROW(F32),
                                            [NB_PANEL_BF16] = WIDE_ROW(BF16),
                                            [NB_PANEL_F16] = WIDE_ROW(F16)};

/* Columns [k0, k0 + n) of a panel of codes, as binary32 [k][16]. k0 is a multiple of 128, and a
 * segment ends at a multiple of 8 columns or at the end of the row. */
INLINE void dequantize_columns(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n,
                               const bool u4, const bool mins)
{
    const uint8_t *panel = w->codes + p * w->panel_bytes;
    const __m512i mask = _mm512_set1_epi32(u4 ? 15 : 255);
    for (int64_t k = k0; k < k0 + n;) {
        const int64_t seg = k / w->seg_len, at = (p * w->n_segs + seg) * NB_PANEL_ROWS;
        const int64_t seg_end = (seg + 1) * w->seg_len, end = seg_end < k0 + n ? seg_end : k0 + n;
        const __m512 s = load_params(w->scales, w->scale_type, at);
        const __m512 m = mins ? load_params(w->mins, w->scale_type, at) : s;
        const __m512i z =
            w->zeros != NULL
                ? _mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)(w->zeros + at)))
                : _mm512_set1_epi32(w->zero_const);
        while (k < end) {
            /* 16 dwords of four (8-bit) or eight (4-bit) columns: columns 0 to 3 in the bytes or
             * their low halves, 4 to 7 in the high halves. */
            const __m512i four = _mm512_loadu_si512(panel + (u4 ? k / 8 : k / 4) * 64);
            const int64_t left = end - k;
            const int count = u4 ? 8 : 4;
            UNROLL
            for (int i = 0; i < count; i++) {
                const unsigned shift = 8 * (unsigned)(i % 4) + (i >= 4 ? 4 : 0);
                const __m512i u = _mm512_and_si512(_mm512_srli_epi32(four, shift), mask);
                const __m512 q = _mm512_cvtepi32_ps(_mm512_sub_epi32(u, z));
                if (i < left)
                    _mm512_storeu_ps(out + (k - k0 + i) * NB_PANEL_ROWS,
                                     mins ? _mm512_fmadd_ps(s, q, m) : _mm512_mul_ps(s, q));
            }
            k += left < count ? left : count;
        }
    }
}

static void dequantize_chunk(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n)
{
    if (w->kind == NB_PANEL_U4 && w->mins == NULL)
        dequantize_columns(out, w, p, k0, n, true, false);
    else if (w->kind == NB_PANEL_U4)
        dequantize_columns(out, w, p, k0, n, true, true);
    else if (w->mins == NULL)
        dequantize_columns(out, w, p, k0, n, false, false);
    else
        dequantize_columns(out, w, p, k0, n, false, true);
}

#define TILE_TOKENS       12
#define PANELS_AT_ONCE(T) ((T) > 6 ? 1 : (T) > 3 ? 2 : 4)
#include "kernel/dot_body.h"

void nb_avx512_gemm_f(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                      const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                      float *scratch)
{
    gemm_f(y, ldy, w, begin, end, tiles, tile_first, n_tiles, scratch);
}
