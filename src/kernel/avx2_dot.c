/* Matrix products, AVX2 + FMA + F16C.
 *
 * A panel is two registers of 8 outputs. Integer: half a panel by up to 4 tokens. 4-bit codes are
 * vpmaddubsw's unsigned operand; 32 columns of them fit in int16 (8 * 2 * 15 * 128 < 2^15) before
 * they are widened. 8-bit codes take the sign trick, |w| * sign(x, w), which is exact because the
 * high plane of an activation is never -128; the low plane of i16 may be, so it is sign-extended
 * and multiplied in 16 bits.
 *
 * Float: P panels by T tokens with 2 * P * T <= 12 chains in registers. */
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

INLINE __m256 load_params(const void *array, nb_float_type type, int64_t at)
{
    switch (type) {
    case NB_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const void *)((const uint16_t *)array + at)));
    case NB_BF16:
        return _mm256_castsi256_ps(_mm256_slli_epi32(
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)((const uint16_t *)array + at))),
            16));
    case NB_F32:
        break;
    }
    return _mm256_loadu_ps((const float *)array + at);
}

INLINE __m256i load_zeros(const nb_panels *w, int64_t at, int bias)
{
    if (w->zeros == NULL)
        return _mm256_set1_epi32(w->zero_const - bias);
    return _mm256_sub_epi32(_mm256_cvtepi16_epi32(_mm_loadu_si128((const void *)(w->zeros + at))),
                            _mm256_set1_epi32(bias));
}

INLINE __m256i load(const uint8_t *p)
{
    return _mm256_loadu_si256((const void *)p);
}

INLINE __m256i bcast(const int8_t *x)
{
    int32_t v;
    memcpy(&v, x, sizeof v);
    return _mm256_set1_epi32(v);
}

/* Lanes [0, n) of 8 are in. */
INLINE __m256i lane_mask(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n < 8 ? n : 8)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* 4-bit codes: adds the products of 8 * n8 columns. x has n_tok tokens, of which T are taken. */
INLINE void sums_u4(__m256i *acc, const uint8_t *w, const int8_t *x, int64_t n8, int64_t n_tok,
                    const int T)
{
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int64_t g = 0; g < n8;) {
        const int64_t stop = g + 4 < n8 ? g + 4 : n8;
        __m256i narrow[4];
        UNROLL
        for (int t = 0; t < T; t++)
            narrow[t] = _mm256_setzero_si256();
        for (; g < stop; g++, w += 64, x += 8 * n_tok) {
            const __m256i both = load(w);
            const __m256i a = _mm256_and_si256(both, low);
            const __m256i b = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
            UNROLL
            for (int t = 0; t < T; t++) {
                narrow[t] = _mm256_add_epi16(narrow[t], _mm256_maddubs_epi16(a, bcast(x + 4 * t)));
                narrow[t] = _mm256_add_epi16(narrow[t],
                                             _mm256_maddubs_epi16(b, bcast(x + 4 * (n_tok + t))));
            }
        }
        UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = _mm256_add_epi32(acc[t], _mm256_madd_epi16(narrow[t], ones));
    }
}

/* 8-bit codes against a plane that is never -128. */
INLINE void sums_s8(__m256i *acc, const uint8_t *w, const int8_t *x, int64_t n4, int64_t n_tok,
                    const int T)
{
    const __m256i offset = _mm256_set1_epi8((char)-128), ones = _mm256_set1_epi16(1);
    for (int64_t g = 0; g < n4; g++, w += 64, x += 4 * n_tok) {
        const __m256i q = _mm256_xor_si256(load(w), offset), size = _mm256_abs_epi8(q);
        UNROLL
        for (int t = 0; t < T; t++) {
            const __m256i signed_x = _mm256_sign_epi8(bcast(x + 4 * t), q);
            acc[t] = _mm256_add_epi32(
                acc[t], _mm256_madd_epi16(_mm256_maddubs_epi16(size, signed_x), ones));
        }
    }
}

/* 8-bit codes against any plane, one token: 16-bit multiplies. */
INLINE __m256i sums_s8_wide(__m256i acc, const uint8_t *w, const int8_t *x, int64_t n4,
                            int64_t n_tok)
{
    const __m256i offset = _mm256_set1_epi8((char)-128);
    __m256i a = _mm256_setzero_si256(), b = a;
    for (int64_t g = 0; g < n4; g++, w += 64, x += 4 * n_tok) {
        const __m256i q = _mm256_xor_si256(load(w), offset);
        int32_t four;
        memcpy(&four, x, sizeof four);
        const __m256i wide = _mm256_cvtepi8_epi16(_mm_set1_epi32(four)); /* x0..x3, four times */
        a = _mm256_add_epi32(
            a, _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(q)), wide));
        b = _mm256_add_epi32(
            b, _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(q, 1)), wide));
    }
    /* Pairs of a row lie side by side: rows 0 1 4 5 | 2 3 6 7 after the horizontal add. */
    return _mm256_add_epi32(acc, _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8));
}

/* Half a panel (rows 8 * half ..) by tokens [t0, t0 + T). */
INLINE void tile_i(float *y, int64_t ldy, const nb_panels *w, int64_t p, int half, int t0,
                   const nb_xtile *xt, const bool u4, const int T)
{
    const int64_t n_tok = xt->n_tok, n_pad8 = w->k_pad / 8, seg8 = (xt->seg_len + 7) / 8;
    const uint8_t *codes = w->codes + p * w->panel_bytes + 32 * half;
    __m256 total[4];
    UNROLL
    for (int t = 0; t < T; t++)
        total[t] = _mm256_setzero_ps();
    int64_t seg = 0;
    for (int64_t g = 0; g < n_pad8; g += seg8, seg++) {
        const int64_t n8 = g + seg8 < n_pad8 ? seg8 : n_pad8 - g;
        const int64_t wseg = g * 8 / w->seg_len, xseg = g * 8 / xt->x_seg_len;
        const int64_t at = (p * w->n_segs + wseg) * NB_PANEL_ROWS + 8 * half;
        const int32_t *xsum = xt->xsum + seg * n_tok + t0;
        const int8_t *hi = xt->hi + g * 8 * n_tok + 4 * t0;
        const int8_t *lo = xt->lo == NULL ? NULL : xt->lo + g * 8 * n_tok + 4 * t0;
        __m256i acc[4];
        UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = _mm256_setzero_si256();
        if (u4)
            sums_u4(acc, codes + g * 64, hi, n8, n_tok, T);
        else
            sums_s8(acc, codes + g * 128, hi, 2 * n8, n_tok, T);
        if (lo != NULL) {
            UNROLL
            for (int t = 0; t < T; t++)
                acc[t] = _mm256_slli_epi32(acc[t], 8);
            if (u4) {
                sums_u4(acc, codes + g * 64, lo, n8, n_tok, T);
            } else {
                UNROLL
                for (int t = 0; t < T; t++)
                    acc[t] = sums_s8_wide(acc[t], codes + g * 128, lo + 4 * t, 2 * n8, n_tok);
            }
        }
        const __m256i z = load_zeros(w, at, u4 ? 0 : 128);
        const __m256 sw = load_params(w->scales, w->scale_type, at);
        const float *sx = xt->scale + xseg * n_tok + t0;
        UNROLL
        for (int t = 0; t < T; t++) {
            const __m256i isum =
                _mm256_sub_epi32(acc[t], _mm256_mullo_epi32(z, _mm256_set1_epi32(xsum[t])));
            total[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum),
                                       _mm256_mul_ps(sw, _mm256_set1_ps(sx[t])), total[t]);
        }
        if (w->mins != NULL) {
            const __m256 m = load_params(w->mins, w->scale_type, at);
            UNROLL
            for (int t = 0; t < T; t++)
                total[t] = _mm256_fmadd_ps(m, _mm256_set1_ps((float)xsum[t] * sx[t]), total[t]);
        }
    }
    const int64_t row = p * NB_PANEL_ROWS + 8 * half, left = w->n_rows - row;
    UNROLL
    for (int t = 0; t < T; t++) {
        float *out = y + (t0 + t) * ldy + row;
        if (left >= 8)
            _mm256_storeu_ps(out, total[t]);
        else
            _mm256_maskstore_ps(out, lane_mask(left), total[t]);
    }
}

typedef void tile_i_fn(float *y, int64_t ldy, const nb_panels *w, int64_t p, int half, int t0,
                       const nb_xtile *xt);

#define X(T)                                                                                       \
    static void tile_u4_##T(float *y, int64_t ldy, const nb_panels *w, int64_t p, int half,        \
                            int t0, const nb_xtile *xt)                                            \
    {                                                                                              \
        tile_i(y, ldy, w, p, half, t0, xt, true, T);                                               \
    }                                                                                              \
    static void tile_u8_##T(float *y, int64_t ldy, const nb_panels *w, int64_t p, int half,        \
                            int t0, const nb_xtile *xt)                                            \
    {                                                                                              \
        tile_i(y, ldy, w, p, half, t0, xt, false, T);                                              \
    }
X(1)
X(2)
X(3)
X(4)
#undef X

static void gemm_i(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                   const nb_xtile *x)
{
    static tile_i_fn *const u4[] = {tile_u4_1, tile_u4_2, tile_u4_3, tile_u4_4};
    static tile_i_fn *const u8[] = {tile_u8_1, tile_u8_2, tile_u8_3, tile_u8_4};
    tile_i_fn *const *tiles = w->kind == NB_PANEL_U4 ? u4 : u8;
    for (int64_t p = begin; p < end; p++) {
        for (int half = 0; half < 2 && p * NB_PANEL_ROWS + 8 * half < w->n_rows; half++) {
            for (int t0 = 0; t0 < x->n_tok; t0 += 4)
                tiles[(x->n_tok - t0 < 4 ? x->n_tok - t0 : 4) - 1](y, ldy, w, p, half, t0, x);
        }
    }
}

/* ---- float ---- */

INLINE __m256 load_weights(const uint8_t *w, int64_t k, int half, const nb_panel_kind kind)
{
    const uint8_t *p = w + (k * NB_PANEL_ROWS + 8 * half) * (kind == NB_PANEL_F32 ? 4 : 2);
    if (kind == NB_PANEL_BF16)
        return _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
    if (kind == NB_PANEL_F16)
        return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
    return _mm256_loadu_ps((const void *)p);
}

/* P panels (weights of panel j at w + j * stride) by T of x's n_tok tokens, n columns. */
INLINE void tile_f(float *y, int64_t ldy, int64_t n_rows, const uint8_t *w, int64_t stride,
                   const float *x, int64_t n_tok, int64_t n, bool first, const nb_panel_kind kind,
                   const int P, const int T)
{
    __m256 acc[12];
    UNROLL
    for (int j = 0; j < 2 * P * T; j++)
        acc[j] = _mm256_setzero_ps();
    for (int64_t k = 0; k < n; k++, x += n_tok) {
        UNROLL
        for (int j = 0; j < P; j++) {
            const __m256 w0 = load_weights(w + j * stride, k, 0, kind);
            const __m256 w1 = load_weights(w + j * stride, k, 1, kind);
            UNROLL
            for (int t = 0; t < T; t++) {
                const __m256 xk = _mm256_set1_ps(x[t]);
                acc[2 * (j * T + t)] = _mm256_fmadd_ps(w0, xk, acc[2 * (j * T + t)]);
                acc[2 * (j * T + t) + 1] = _mm256_fmadd_ps(w1, xk, acc[2 * (j * T + t) + 1]);
            }
        }
    }
    UNROLL
    for (int j = 0; j < P; j++) {
        UNROLL
        for (int t = 0; t < T; t++) {
            for (int half = 0; half < 2; half++) {
                const int64_t row = j * NB_PANEL_ROWS + 8 * half;
                if (row >= n_rows)
                    break;
                const __m256i mask = lane_mask(n_rows - row);
                float *out = y + t * ldy + row;
                const __m256 before = first ? _mm256_setzero_ps() : _mm256_maskload_ps(out, mask);
                _mm256_maskstore_ps(out, mask, _mm256_add_ps(before, acc[2 * (j * T + t) + half]));
            }
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
        tile_f(y, ldy, n_rows, w, stride, x, n_tok, n, first, NB_PANEL_##kind, P, T);              \
    }
#define X(kind)                                                                                    \
    DEFINE(kind, 1, 1)                                                                             \
    DEFINE(kind, 1, 2)                                                                             \
    DEFINE(kind, 1, 3)                                                                             \
    DEFINE(kind, 1, 4)                                                                             \
    DEFINE(kind, 1, 5) DEFINE(kind, 1, 6) DEFINE(kind, 4, 1) DEFINE(kind, 2, 2) DEFINE(kind, 2, 3)
X(F32)
X(BF16)
X(F16)
#undef X

#define ROW(kind)                                                                                  \
    {                                                                                              \
        tile_##kind##_1_1, tile_##kind##_1_2, tile_##kind##_1_3, tile_##kind##_1_4,                \
            tile_##kind##_1_5, tile_##kind##_1_6                                                   \
    }
#define WIDE_ROW(kind)                                                                             \
    {                                                                                              \
        tile_##kind##_4_1, tile_##kind##_2_2, tile_##kind##_2_3                                    \
    }
static tile_f_fn *const tiles_one[3][6] = {
    [NB_PANEL_F32] = ROW(F32), [NB_PANEL_BF16] = ROW(BF16), [NB_PANEL_F16] = ROW(F16)};
static tile_f_fn *const tiles_wide[3][3] = {[NB_PANEL_F32] = WIDE_ROW(F32),
                                            [NB_PANEL_BF16] = WIDE_ROW(BF16),
                                            [NB_PANEL_F16] = WIDE_ROW(F16)};

/* Columns [k0, k0 + n) of a panel of codes, as binary32 [k][16]. */
static void dequantize_chunk(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n)
{
    const uint8_t *panel = w->codes + p * w->panel_bytes;
    for (int half = 0; half < 2; half++) {
        int64_t have = -1;
        __m256 s = _mm256_setzero_ps(), m = s;
        __m256i z = _mm256_setzero_si256();
        for (int64_t k = k0; k < k0 + n; k++) {
            const int64_t seg = k / w->seg_len;
            if (seg != have) {
                const int64_t at = (p * w->n_segs + seg) * NB_PANEL_ROWS + 8 * half;
                s = load_params(w->scales, w->scale_type, at);
                z = load_zeros(w, at, 0);
                if (w->mins != NULL)
                    m = load_params(w->mins, w->scale_type, at);
                have = seg;
            }
            const bool u8 = w->kind == NB_PANEL_U8;
            const __m256i u = load(panel + (u8 ? k / 4 : k / 8) * 64 + 32 * half);
            const int shift = (int)(8 * (k % 4)) + (!u8 && k % 8 >= 4 ? 4 : 0);
            const __m256i code = _mm256_and_si256(_mm256_srl_epi32(u, _mm_cvtsi32_si128(shift)),
                                                  _mm256_set1_epi32(u8 ? 255 : 15));
            const __m256 q = _mm256_cvtepi32_ps(_mm256_sub_epi32(code, z));
            _mm256_storeu_ps(out + (k - k0) * NB_PANEL_ROWS + 8 * half,
                             w->mins == NULL ? _mm256_mul_ps(s, q) : _mm256_fmadd_ps(s, q, m));
        }
    }
}

#define TILE_TOKENS       6
#define PANELS_AT_ONCE(T) ((T) > 3 ? 1 : (T) > 1 ? 2 : 4)
#include "kernel/dot_body.h"

/* ---- activations ---- */

static bool quantize_row(const float *x, int64_t n, int64_t group, int8_t *hi, int8_t *lo,
                         float *scale)
{
    const float qmax = lo == NULL ? 127.0f : 32639.0f;
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    bool finite = true;
    for (int64_t g = 0; g * group < n; g++) {
        const int64_t begin = g * group, end = begin + group < n ? begin + group : n;
        __m256i most = _mm256_setzero_si256();
        for (int64_t k = begin; k < end; k += 8) {
            const __m256 v = _mm256_maskload_ps(x + k, lane_mask(end - k));
            most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(v), magnitude));
        }
        int32_t lanes[8], bits = 0;
        _mm256_storeu_si256((void *)lanes, most);
        for (int i = 0; i < 8; i++)
            bits = lanes[i] > bits ? lanes[i] : bits;
        float inv;
        const bool good = group_scale(bits, qmax, &scale[g], &inv);
        finite = finite && good;
        const __m256 inv8 = _mm256_set1_ps(inv);
        const __m256i most_code = _mm256_set1_epi32((int)qmax);
        for (int64_t k = begin; k < end; k += 8) {
            const int64_t left = end - k < 8 ? end - k : 8;
            __m256 v = _mm256_maskload_ps(x + k, lane_mask(left));
            if (!good)
                v = _mm256_setzero_ps();
            __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(v, inv8)); /* nearest even */
            q = _mm256_max_epi32(_mm256_min_epi32(q, most_code),
                                 _mm256_sub_epi32(_mm256_setzero_si256(), most_code));
            int32_t code[8];
            _mm256_storeu_si256((void *)code, q);
            for (int64_t i = 0; i < left; i++) {
                const int32_t high = lo == NULL ? code[i] : (code[i] + 128) >> 8;
                hi[k + i] = (int8_t)high;
                if (lo != NULL)
                    lo[k + i] = (int8_t)(code[i] - 256 * high);
            }
        }
    }
    return finite;
}

void nb_kernels_avx2_dot(nb_kernels *k)
{
    k->gemm_f = gemm_f;
    k->gemm_i = gemm_i;
    k->quantize_row = quantize_row;
}
