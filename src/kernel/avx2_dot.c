/* Matrix products in floats, AVX2 + FMA + F16C, and what AVX2 fills in. P panels by T tokens with
 * 2 * P * T <= 12 chains in registers; codes become floats a chunk at a time. */
#include "kernel/avx2_panel.h"

/* ---- float ---- */

/* The 16 weights of column k. Those of BF16 come as even rows and odd rows, which takes half as
 * many instructions; store_panel puts the results in order. */
INLINE void load_weights(__m256 *out, const uint8_t *w, int64_t k, const nb_panel_kind kind)
{
    const uint8_t *p = w + k * NB_PANEL_ROWS * (kind == NB_PANEL_F32 ? 4 : 2);
    if (kind == NB_PANEL_BF16) {
        const __m256i v = load(p);
        out[0] = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
        out[1] = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000)));
    } else if (kind == NB_PANEL_F16) {
        out[0] = _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
        out[1] = _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 16)));
    } else {
        out[0] = _mm256_loadu_ps((const void *)p);
        out[1] = _mm256_loadu_ps((const void *)(p + 32));
    }
}

/* acc += w * *x for 16 rows, in registers: compilers move the loads up until nothing fits. */
INLINE void float_step(__m256 *acc, const __m256 *w, const float *x)
{
    __m256 t;
    __asm__("vbroadcastss %3, %2\n\tvfmadd231ps %2, %4, %0\n\tvfmadd231ps %2, %5, %1"
            : "+x"(acc[0]), "+x"(acc[1]), "=&x"(t)
            : "m"(*x), "x"(w[0]), "x"(w[1]));
}

/* Adds the chunk's sums of one panel and token to the first n_rows of out (from +0 if `first`). */
INLINE void store_panel(float *out, int64_t n_rows, const __m256 *acc, bool first,
                        const nb_panel_kind kind)
{
    __m256 sum[2] = {acc[0], acc[1]};
    if (kind == NB_PANEL_BF16) {
        const __m256 a = _mm256_unpacklo_ps(acc[0], acc[1]), b = _mm256_unpackhi_ps(acc[0], acc[1]);
        sum[0] = _mm256_permute2f128_ps(a, b, 0x20);
        sum[1] = _mm256_permute2f128_ps(a, b, 0x31);
    }
    for (int half = 0; half < 2 && n_rows > 8 * half; half++) {
        const int64_t left = n_rows - 8 * half;
        const __m256 before = first       ? _mm256_setzero_ps()
                              : left >= 8 ? _mm256_loadu_ps(out + 8 * half)
                                          : _mm256_maskload_ps(out + 8 * half, lane_mask(left));
        store_rows(out + 8 * half, _mm256_add_ps(before, sum[half]), left);
    }
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
            __m256 wk[2];
            load_weights(wk, w + j * stride, k, kind);
            if (T == 1) { /* panels share the broadcast */
                const __m256 xk = _mm256_set1_ps(x[0]);
                acc[2 * j] = _mm256_fmadd_ps(wk[0], xk, acc[2 * j]);
                acc[2 * j + 1] = _mm256_fmadd_ps(wk[1], xk, acc[2 * j + 1]);
            } else {
                UNROLL
                for (int t = 0; t < T; t++)
                    float_step(&acc[2 * (j * T + t)], wk, x + t);
            }
        }
    }
    UNROLL
    for (int j = 0; j < P; j++) {
        UNROLL
        for (int t = 0; t < T; t++)
            store_panel(y + t * ldy + j * NB_PANEL_ROWS, n_rows - j * NB_PANEL_ROWS,
                        &acc[2 * (j * T + t)], first, kind);
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
    DEFINE(kind, 1, 5) DEFINE(kind, 1, 6) DEFINE(kind, 2, 1) DEFINE(kind, 2, 2) DEFINE(kind, 2, 3)
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
        tile_##kind##_2_1, tile_##kind##_2_2, tile_##kind##_2_3                                    \
    }
static tile_f_fn *const tiles_one[3][6] = {
    [NB_PANEL_F32] = ROW(F32), [NB_PANEL_BF16] = ROW(BF16), [NB_PANEL_F16] = ROW(F16)};
static tile_f_fn *const tiles_wide[3][3] = {[NB_PANEL_F32] = WIDE_ROW(F32),
                                            [NB_PANEL_BF16] = WIDE_ROW(BF16),
                                            [NB_PANEL_F16] = WIDE_ROW(F16)};

/* A stored code becomes a float without a conversion: its bits, at bit `shift` of a mantissa whose
 * unit is 2^(23 - shift), are the number unit + u, and subtracting unit + z leaves u - z, exactly.
 */
typedef struct {
    __m256 scale, min;
    __m256 zero[4]; /* unit + z for shifts 0, 4, 8 and 12 */
} decoder;

INLINE __m256 mantissa_unit(const int shift)
{
    return _mm256_set1_ps((float)(1 << (23 - shift)));
}

INLINE decoder decoder_of(const nb_panels *w, int64_t at)
{
    const __m256 z =
        _mm256_cvtepi32_ps(w->zeros != NULL ? load_zeros(w, at) : _mm256_set1_epi32(w->zero_const));
    decoder d = {.scale = load_params(w->scales, w->scale_type, at),
                 .min = w->mins == NULL ? _mm256_setzero_ps()
                                        : load_params(w->mins, w->scale_type, at)};
    UNROLL
    for (int i = 0; i < 4; i++)
        d.zero[i] = _mm256_add_ps(mantissa_unit(4 * i), z);
    return d;
}

/* The weights whose codes are `width` bits at bit `shift` of v. */
INLINE __m256 decode(const decoder *d, __m256i v, const int shift, const int width, const bool mins)
{
    const __m256i bits = _mm256_and_si256(v, _mm256_set1_epi32(((1 << width) - 1) << shift));
    const __m256 u = _mm256_or_ps(_mm256_castsi256_ps(bits), mantissa_unit(shift));
    const __m256 q = _mm256_sub_ps(u, d->zero[shift / 4]);
    return mins ? _mm256_fmadd_ps(d->scale, q, d->min) : _mm256_mul_ps(d->scale, q);
}

/* Eight columns of 8 rows to out [8][16]: v[0] holds columns 0 to 3 as bytes or, with nibbles, all
 * eight; v[1] holds columns 4 to 7. */
INLINE void decode_columns(float *out, const decoder *d, const __m256i *v, const bool nibbles,
                           const bool mins)
{
    UNROLL
    for (int c = 0; c < 8; c++) {
        /* Column c of a byte pair sits in the low half of v, or in the high half, shifted down. */
        const __m256i whole = v[nibbles ? 0 : c / 4];
        const __m256i half = c % 4 < 2 ? whole : _mm256_srli_epi32(whole, 16);
        const int shift = c % 2 * 8 + (nibbles ? c / 4 * 4 : 0);
        _mm256_storeu_ps(out + c * NB_PANEL_ROWS, decode(d, half, shift, nibbles ? 4 : 8, mins));
    }
}

/* Eight columns of 8 rows, from the codes of them. */
INLINE void dequantize_columns(float *out, const decoder *d, const uint8_t *codes, __m256i table,
                               const nb_panel_kind kind, const bool mins)
{
    __m256i v[2] = {load(codes)};
    if (kind == NB_PANEL_U8) {
        v[1] = load(codes + 64);
    } else if (kind == NB_PANEL_T4) {
        const __m256i low = _mm256_set1_epi8(15), both = v[0];
        v[0] = _mm256_shuffle_epi8(table, _mm256_and_si256(both, low));
        v[1] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
    }
    decode_columns(out, d, v, kind == NB_PANEL_U4, mins);
}

/* Columns [k0, k0 + n) of a panel, as binary32 [k][16]; k0 is a multiple of 8. */
INLINE void dequantize(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n,
                       const nb_panel_kind kind, const bool mins)
{
    const int64_t group_bytes = kind == NB_PANEL_U8 ? 128 : 64;
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)w->table));
    const uint8_t *codes = w->codes + p * w->panel_bytes + k0 / 8 * group_bytes;
    for (int half = 0; half < 2; half++) {
        int64_t seg = k0 / w->seg_len;
        for (int64_t k = k0; k < k0 + n; seg++) {
            const int64_t end = (seg + 1) * w->seg_len, stop = end < k0 + n ? end : k0 + n;
            const decoder d = decoder_of(w, (p * w->n_segs + seg) * NB_PANEL_ROWS + 8 * half);
            for (int64_t last; k < stop; k = last) {
                const int64_t group = k / 8 * 8;
                const uint8_t *from = codes + (group - k0) / 8 * group_bytes + 32 * half;
                float *to = out + (k - k0) * NB_PANEL_ROWS + 8 * half;
                last = group + 8 < stop ? group + 8 : stop;
                if (last - k == 8) {
                    dequantize_columns(to, &d, from, table, kind, mins);
                } else { /* another segment, or the matrix's end, cuts the group */
                    float part[8 * NB_PANEL_ROWS];
                    dequantize_columns(part, &d, from, table, kind, mins);
                    for (int64_t i = k; i < last; i++)
                        memcpy(to + (i - k) * NB_PANEL_ROWS, part + (i - group) * NB_PANEL_ROWS,
                               8 * sizeof(float));
                }
            }
        }
    }
}

/* ---- float-coded weights ---- */

/* Eight numbers of a column of bytes. With its bits moved up, an E5M2 is an F16, and an E4M3 is an
 * F16 that is 2^8 times too small; its NaN, all ones, is made one. */
INLINE __m256 load_fp8(const uint8_t *codes, const bool e4m3)
{
    __m128i wide = _mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64((const void *)codes));
    if (!e4m3)
        return _mm256_cvtph_ps(wide);
    const __m128i nan = _mm_set1_epi16(0x7f00);
    const __m128i is_nan = _mm_cmpeq_epi16(_mm_and_si128(wide, nan), nan);
    wide = _mm_and_si128(_mm_srai_epi16(wide, 1), _mm_set1_epi16((short)0xbfff));
    wide = _mm_or_si128(wide, _mm_and_si128(is_nan, nan));
    return _mm256_mul_ps(_mm256_cvtph_ps(wide), _mm256_set1_ps(256.0f));
}

/* Eight of the levels: two permutations of a half each, of which bit 3 of the index takes one. */
INLINE __m256 pick_level(__m256 low, __m256 high, __m256i index)
{
    const __m256 a = _mm256_permutevar8x32_ps(low, index);
    const __m256 b = _mm256_permutevar8x32_ps(high, index);
    return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

INLINE __m256 load_level(const nb_panels *w, const uint8_t *panel, int64_t k, int half)
{
    const __m256i v = load(panel + k / 8 * 64 + 32 * half);
    const __m256i index = _mm256_srl_epi32(v, _mm_cvtsi32_si128((int)(k % 4 * 8 + k % 8 / 4 * 4)));
    return pick_level(_mm256_loadu_ps(w->levels), _mm256_loadu_ps(w->levels + 8), index);
}

INLINE void dequantize_levels(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n,
                              const nb_panel_kind kind)
{
    const uint8_t *panel = w->codes + p * w->panel_bytes;
    for (int64_t k = k0; k < k0 + n;) {
        const int64_t seg = k / w->seg_len, seg_end = (seg + 1) * w->seg_len;
        const int64_t end = seg_end < k0 + n ? seg_end : k0 + n;
        const int64_t at = (p * w->n_segs + seg) * NB_PANEL_ROWS;
        const __m256 scale[2] = {load_params(w->scales, w->scale_type, at),
                                 load_params(w->scales, w->scale_type, at + 8)};
        for (; k < end; k++, out += NB_PANEL_ROWS) {
            for (int half = 0; half < 2; half++) {
                const __m256 v =
                    kind == NB_PANEL_L4
                        ? load_level(w, panel, k, half)
                        : load_fp8(panel + k * NB_PANEL_ROWS + 8 * half, kind == NB_PANEL_E4M3);
                _mm256_storeu_ps(out + 8 * half, _mm256_mul_ps(scale[half], v));
            }
        }
    }
}

static void dequantize_chunk(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n)
{
    const bool mins = w->mins != NULL;
    switch (w->kind) {
    case NB_PANEL_L4:
        dequantize_levels(out, w, p, k0, n, NB_PANEL_L4);
        return;
    case NB_PANEL_E4M3:
        dequantize_levels(out, w, p, k0, n, NB_PANEL_E4M3);
        return;
    case NB_PANEL_E5M2:
        dequantize_levels(out, w, p, k0, n, NB_PANEL_E5M2);
        return;
    case NB_PANEL_U4:
        mins ? dequantize(out, w, p, k0, n, NB_PANEL_U4, true)
             : dequantize(out, w, p, k0, n, NB_PANEL_U4, false);
        return;
    case NB_PANEL_T4:
        mins ? dequantize(out, w, p, k0, n, NB_PANEL_T4, true)
             : dequantize(out, w, p, k0, n, NB_PANEL_T4, false);
        return;
    default:
        mins ? dequantize(out, w, p, k0, n, NB_PANEL_U8, true)
             : dequantize(out, w, p, k0, n, NB_PANEL_U8, false);
    }
}

#define TILE_TOKENS       6
#define PANELS_AT_ONCE(T) ((T) > 3 ? 1 : 2)
#include "kernel/dot_body.h"

void nb_kernels_avx2_dot(nb_kernels *k)
{
    k->gemm_f = gemm_f;
    k->gemm_i = nb_gemm_i_avx2;
    k->quantize_row = nb_quantize_row_avx2;
    k->pack_tile = nb_pack_tile_avx2;
}
