/* Matrix products, AVX-512 VNNI.
 *
 * A tile is one panel (16 outputs, one register) by T <= 12 tokens. Integer: T int32 sums of the
 * segment and T float totals stay in registers, weights are read once per tile, 4-bit codes are
 * unpacked there (2 operations for T multiplies), and each activation is vpdpbusd's broadcast
 * memory operand, so a multiply costs one instruction and no shuffle. The sums are exact integers,
 * so their order is free; the float steps follow the contract segment by segment.
 *
 * Float: T chains (times P panels when T is small, to hide the latency of the FMA), one per
 * output, cut every 128 columns; the totals live in y. */
#include "kernel/kernel.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

/* Lanes [0, n) of 16. */
INLINE __mmask16 lanes(int64_t n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u);
}

/* acc += for each lane the dot of 4 unsigned bytes of w and the 4 signed bytes at x. */
INLINE __m512i dot_bcst(__m512i acc, __m512i w, const int8_t *x)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t(*)[1])x));
    return acc;
}

INLINE __m512 load_params(const void *array, nb_float_type type, int64_t at)
{
    switch (type) {
    case NB_F16:
        return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)((const uint16_t *)array + at)));
    case NB_BF16:
        return _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)((const uint16_t *)array + at))),
            16));
    case NB_F32:
        break;
    }
    return _mm512_loadu_ps((const float *)array + at);
}

/* Adds the products of columns [0, 8 * n8) (both arguments already at the segment). */
INLINE void segment_sums(__m512i *acc, const uint8_t *w, const int8_t *x, int64_t n8, const bool u4,
                         const int T)
{
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t g = 0; g < n8; g++, x += 8 * T) {
        __m512i a, b;
        if (u4) {
            const __m512i both = _mm512_loadu_si512(w);
            a = _mm512_and_si512(both, low);
            b = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
            w += 64;
        } else {
            a = _mm512_loadu_si512(w);
            b = _mm512_loadu_si512(w + 64);
            w += 128;
        }
        UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = dot_bcst(acc[t], a, x + 4 * t);
        UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = dot_bcst(acc[t], b, x + 4 * (T + t));
    }
}

INLINE void tile_i(float *y, int64_t ldy, const nb_panels *w, int64_t p, const nb_xtile *xt,
                   const bool u4, const int T)
{
    const int64_t group8_bytes = u4 ? 64 : 128, n_pad8 = w->k_pad / 8;
    const int64_t seg8 = (xt->seg_len + 7) / 8;
    const uint8_t *codes = w->codes + p * w->panel_bytes;
    __m512 total[NB_TILE_MAX];
    UNROLL
    for (int t = 0; t < T; t++)
        total[t] = _mm512_setzero_ps();
    /* Segments nest, so the weight's and the activations' numbers advance one at a time. */
    int64_t w_end = w->seg_len, x_end = xt->x_seg_len;
    int64_t at = p * w->n_segs * NB_PANEL_ROWS;
    const float *sx = xt->scale;
    const int32_t *xsum = xt->xsum;
    for (int64_t g = 0; g < n_pad8; g += seg8, xsum += T) {
        if (g * 8 == w_end) {
            w_end += w->seg_len;
            at += NB_PANEL_ROWS;
        }
        if (g * 8 == x_end) {
            x_end += xt->x_seg_len;
            sx += T;
        }
        const int64_t n8 = g + seg8 < n_pad8 ? seg8 : n_pad8 - g;
        /* The sums start at -z * xsum: nothing is left to correct at the end. */
        __m512i acc[NB_TILE_MAX], start[NB_TILE_MAX];
        if (w->zeros == NULL) {
            UNROLL
            for (int t = 0; t < T; t++)
                start[t] = _mm512_set1_epi32(-w->zero_const * xsum[t]);
        } else {
            const __m512i z =
                _mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)(w->zeros + at)));
            UNROLL
            for (int t = 0; t < T; t++)
                start[t] = _mm512_mullo_epi32(z, _mm512_set1_epi32(-xsum[t]));
        }
        if (xt->lo == NULL) {
            UNROLL
            for (int t = 0; t < T; t++)
                acc[t] = start[t];
            segment_sums(acc, codes + g * group8_bytes, xt->hi + g * 8 * T, n8, u4, T);
        } else { /* x = 256 hi + lo: shift the high plane's sums, then add the low plane's */
            UNROLL
            for (int t = 0; t < T; t++)
                acc[t] = _mm512_setzero_si512();
            segment_sums(acc, codes + g * group8_bytes, xt->hi + g * 8 * T, n8, u4, T);
            UNROLL
            for (int t = 0; t < T; t++)
                acc[t] = _mm512_add_epi32(_mm512_slli_epi32(acc[t], 8), start[t]);
            segment_sums(acc, codes + g * group8_bytes, xt->lo + g * 8 * T, n8, u4, T);
        }
        const __m512 sw = load_params(w->scales, w->scale_type, at);
        UNROLL
        for (int t = 0; t < T; t++)
            total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[t]),
                                       _mm512_mul_ps(sw, _mm512_set1_ps(sx[t])), total[t]);
        if (w->mins != NULL) {
            const __m512 m = load_params(w->mins, w->scale_type, at);
            UNROLL
            for (int t = 0; t < T; t++)
                total[t] = _mm512_fmadd_ps(m, _mm512_set1_ps((float)xsum[t] * sx[t]), total[t]);
        }
    }
    const int64_t left = w->n_rows - p * NB_PANEL_ROWS;
    const __mmask16 mask = lanes(left);
    UNROLL
    for (int t = 0; t < T; t++)
        _mm512_mask_storeu_ps(y + t * ldy + p * NB_PANEL_ROWS, mask, total[t]);
}

#define FOR_EACH_T(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

#define X(T)                                                                                       \
    static void panels_u4_##T(float *y, int64_t ldy, const nb_panels *w, int64_t begin,            \
                              int64_t end, const nb_xtile *x)                                      \
    {                                                                                              \
        for (int64_t p = begin; p < end; p++)                                                      \
            tile_i(y, ldy, w, p, x, true, T);                                                      \
    }                                                                                              \
    static void panels_u8_##T(float *y, int64_t ldy, const nb_panels *w, int64_t begin,            \
                              int64_t end, const nb_xtile *x)                                      \
    {                                                                                              \
        for (int64_t p = begin; p < end; p++)                                                      \
            tile_i(y, ldy, w, p, x, false, T);                                                     \
    }
FOR_EACH_T(X)
#undef X

static void gemm_i(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                   const nb_xtile *x)
{
    static nb_gemm_i_fn *const panels[2][NB_TILE_MAX] = {
#define X(T) panels_u8_##T,
        {FOR_EACH_T(X)},
#undef X
#define X(T) panels_u4_##T,
        {FOR_EACH_T(X)},
#undef X
    };
    panels[w->kind == NB_PANEL_U4][x->n_tok - 1](y, ldy, w, begin, end, x);
}

/* ---- float ---- */

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

/* ---- activations ---- */

static bool quantize_row(const float *x, int64_t n, int64_t group, int8_t *hi, int8_t *lo,
                         float *scale)
{
    const float qmax = lo == NULL ? 127.0f : 32639.0f;
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    bool finite = true;
    for (int64_t g = 0; g * group < n; g++) {
        const int64_t begin = g * group, end = begin + group < n ? begin + group : n;
        __m512i most = _mm512_setzero_si512();
        for (int64_t k = begin; k < end; k += 16) {
            const __mmask16 in = lanes(end - k);
            const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(in, x + k));
            most = _mm512_max_epi32(most, _mm512_and_si512(bits, magnitude));
        }
        const int32_t bits = _mm512_reduce_max_epi32(most);
        float inv;
        const bool good = group_scale(bits, qmax, &scale[g], &inv);
        finite = finite && good;
        const __m512 inv16 = _mm512_set1_ps(inv);
        const __m512i most_code = _mm512_set1_epi32((int)qmax);
        for (int64_t k = begin; k < end; k += 16) {
            const __mmask16 in = lanes(end - k);
            __m512 v = _mm512_maskz_loadu_ps(in, x + k);
            if (!good)
                v = _mm512_setzero_ps();
            __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, inv16)); /* nearest even */
            q = _mm512_max_epi32(_mm512_min_epi32(q, most_code),
                                 _mm512_sub_epi32(_mm512_setzero_si512(), most_code));
            if (lo != NULL) {
                const __m512i high =
                    _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
                const __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 8));
                _mm512_mask_cvtepi32_storeu_epi8(lo + k, in, low);
                q = high;
            }
            _mm512_mask_cvtepi32_storeu_epi8(hi + k, in, q);
        }
    }
    return finite;
}

void nb_kernels_avx512_dot(nb_kernels *k)
{
    k->gemm_f = gemm_f;
    k->gemm_i = gemm_i;
    k->quantize_row = quantize_row;
}
