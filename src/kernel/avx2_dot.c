/* Matrix products, AVX2 + FMA + F16C.
 *
 * A panel is two registers of 8 outputs. Integer: half a panel by up to 4 tokens. 4-bit codes are
 * vpmaddubsw's unsigned operand; 32 columns of them fit in int16 (8 * 2 * 15 * 128 < 2^15) before
 * they are widened. 8-bit codes take the sign trick, |w| * sign(x, w), which is exact because the
 * high plane of an activation is never -128; the low plane of i16 may be, so it is sign-extended
 * and multiplied in 16 bits.
 *
 * Float: P panels by T tokens with 2 * P * T <= 12 chains in registers. */
#include "kernel/avx2_panel.h"

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
                z = w->zeros != NULL ? load_zeros(w, at) : _mm256_set1_epi32(w->zero_const);
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

void nb_kernels_avx2_dot(nb_kernels *k)
{
    k->gemm_f = gemm_f;
    k->gemm_i = nb_gemm_i_avx2;
    k->quantize_row = nb_quantize_row_avx2;
    k->pack_tile = nb_pack_tile_avx2;
}
