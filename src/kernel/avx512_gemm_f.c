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

/* ---- weights that are codes ---- */

/* What turns the codes of one panel and segment into numbers. A 4-bit code is an index of `table`,
 * which holds the stored codes less the matrix's zero point; an 8-bit code becomes 2^23 + code by
 * its bits alone, and loses 2^23 with the zero point. Both differences are exact. */
typedef struct {
    __m512 table, scale, zero, min;
} decoder;

#define TWO23 8388608.0f

INLINE decoder decoder_at(const nb_panels *w, int64_t at, __m512 table, const bool nibbles,
                          const bool zeros, const bool mins)
{
    decoder d = {.table = table, .scale = load_params(w->scales, w->scale_type, at)};
    if (zeros)
        d.zero = _mm512_cvtepi32_ps(load_zeros(w, at));
    else if (!nibbles)
        d.zero = _mm512_set1_ps((float)w->zero_const);
    if (!nibbles)
        d.zero = _mm512_add_ps(d.zero, _mm512_set1_ps(TWO23));
    if (mins)
        d.min = load_params(w->mins, w->scale_type, at);
    return d;
}

/* The numbers that the 16 values of a nibble stand for; integers less zero_const unless zeros vary.
 */
static __m512 nibble_table(const nb_panels *w)
{
    if (w->kind == NB_PANEL_L4)
        return _mm512_loadu_ps(w->levels);
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i code = w->kind == NB_PANEL_T4
                             ? _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)w->table))
                             : count;
    const int zero = w->zeros != NULL ? 0 : w->zero_const;
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(code, _mm512_set1_epi32(zero)));
}

/* Column i of the 16 dwords of four (8-bit) or eight (4-bit) columns: columns 0 to 3 in the bytes
 * or their low halves, 4 to 7 in the high halves. */
INLINE __m512 decode_column(__m512i dwords, int i, const decoder *d, const bool nibbles,
                            const bool zeros, const bool mins)
{
    const __m512i u = _mm512_srli_epi32(dwords, 8 * (unsigned)(i % 4) + (i >= 4 ? 4 : 0));
    __m512 q;
    if (nibbles) { /* the permutation reads the low 4 bits of an index */
        q = _mm512_permutexvar_ps(u, d->table);
        if (zeros)
            q = _mm512_sub_ps(q, d->zero);
    } else {
        const __m512i big = _mm512_ternarylogic_epi32(u, _mm512_set1_epi32(255),
                                                      _mm512_castps_si512(_mm512_set1_ps(TWO23)),
                                                      0xea); /* (a & b) | c */
        q = _mm512_sub_ps(_mm512_castsi512_ps(big), d->zero);
    }
    return mins ? _mm512_fmadd_ps(d->scale, q, d->min) : _mm512_mul_ps(d->scale, q);
}

/* Columns [first, last) of those in the dwords. */
INLINE void decode_group(float *out, const uint8_t *dwords, int64_t first, int64_t last,
                         const decoder *d, const bool nibbles, const bool zeros, const bool mins)
{
    const __m512i v = _mm512_loadu_si512(dwords);
    const int count = nibbles ? 8 : 4;
    UNROLL
    for (int i = 0; i < count; i++)
        if (i >= first && i < last)
            _mm512_storeu_ps(out + (i - first) * NB_PANEL_ROWS,
                             decode_column(v, i, d, nibbles, zeros, mins));
}

/* Columns [k0, k0 + n) of a panel of codes, as binary32 [k][16]. k0 is a multiple of 128. */
INLINE void dequantize_columns(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n,
                               const bool nibbles, const bool zeros, const bool mins)
{
    const int count = nibbles ? 8 : 4;
    const uint8_t *codes = w->codes + p * w->panel_bytes;
    const __m512 table = nibble_table(w);
    for (int64_t k = k0; k < k0 + n;) {
        const int64_t seg = k / w->seg_len, at = (p * w->n_segs + seg) * NB_PANEL_ROWS;
        const int64_t seg_end = (seg + 1) * w->seg_len, end = seg_end < k0 + n ? seg_end : k0 + n;
        const decoder d = decoder_at(w, at, table, nibbles, zeros, mins);
        while (k < end) {
            const int64_t group = k / count * count,
                          last = end - group < count ? end - group : count;
            const uint8_t *dwords = codes + group / count * 64;
            if (last - (k - group) == count)
                decode_group(out, dwords, 0, count, &d, nibbles, zeros, mins);
            else /* another segment, or the row's end, cuts the group */
                decode_group(out, dwords, k - group, last, &d, nibbles, zeros, mins);
            out += (group + last - k) * NB_PANEL_ROWS;
            k = group + last;
        }
    }
}

/* The eight kinds of codes: name, nibbles, zeros, mins. */
#define FOR_EACH_CODES(X)                                                                          \
    X(u8, false, false, false)                                                                     \
    X(u8_m, false, false, true)                                                                    \
    X(u8_z, false, true, false)                                                                    \
    X(u8_zm, false, true, true)                                                                    \
    X(n4, true, false, false)                                                                      \
    X(n4_m, true, false, true)                                                                     \
    X(n4_z, true, true, false)                                                                     \
    X(n4_zm, true, true, true)
static int codes_kind(const nb_panels *w)
{
    return (w->kind != NB_PANEL_U8 ? 4 : 0) + (w->zeros != NULL ? 2 : 0) + (w->mins != NULL);
}

typedef void dequantize_fn(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n);
#define X(name, nibbles, zeros, mins)                                                              \
    static void dequantize_##name(float *out, const nb_panels *w, int64_t p, int64_t k0,           \
                                  int64_t n)                                                       \
    {                                                                                              \
        dequantize_columns(out, w, p, k0, n, nibbles, zeros, mins);                                \
    }
FOR_EACH_CODES(X)
#undef X

/* ---- FP8 ---- */

/* The numbers of a column of bytes. With its bits moved up, an E5M2 is an F16, and an E4M3 is an
 * F16 that is 2^8 times too small; its NaN, all ones, is made one. */
INLINE __m512 load_fp8(const uint8_t *codes, const bool e4m3)
{
    const __m256i wide =
        _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)codes)), 8);
    if (!e4m3)
        return _mm512_cvtph_ps(wide);
    const __m256i nan = _mm256_set1_epi16(0x7f00);
    const __mmask16 is_nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(wide, nan), nan);
    const __m256i half =
        _mm256_and_si256(_mm256_srai_epi16(wide, 1), _mm256_set1_epi16((short)0xbfff));
    const __m256i number = _mm256_mask_blend_epi16(is_nan, half, nan);
    return _mm512_mul_ps(_mm512_cvtph_ps(number), _mm512_set1_ps(256.0f));
}

INLINE void dequantize_fp8(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n,
                           const bool e4m3)
{
    const uint8_t *codes = w->codes + p * w->panel_bytes;
    for (int64_t k = k0; k < k0 + n;) {
        const int64_t seg = k / w->seg_len, seg_end = (seg + 1) * w->seg_len;
        const int64_t end = seg_end < k0 + n ? seg_end : k0 + n;
        const __m512 scale =
            load_params(w->scales, w->scale_type, (p * w->n_segs + seg) * NB_PANEL_ROWS);
        for (; k < end; k++, out += NB_PANEL_ROWS)
            _mm512_storeu_ps(out, _mm512_mul_ps(scale, load_fp8(codes + k * NB_PANEL_ROWS, e4m3)));
    }
}

static void dequantize_chunk(float *out, const nb_panels *w, int64_t p, int64_t k0, int64_t n)
{
    if (nb_panels_is_fp8(w)) {
        if (w->kind == NB_PANEL_E4M3)
            dequantize_fp8(out, w, p, k0, n, true);
        else
            dequantize_fp8(out, w, p, k0, n, false);
        return;
    }
#define X(name, nibbles, zeros, mins) dequantize_##name,
    static dequantize_fn *const kinds[8] = {FOR_EACH_CODES(X)};
#undef X
    kinds[codes_kind(w)](out, w, p, k0, n);
}

#define TILE_TOKENS       12
#define PANELS_AT_ONCE(T) ((T) > 6 ? 1 : (T) > 3 ? 2 : 4)
#include "kernel/dot_body.h"

/* ---- few tokens: codes are decoded into registers ---- */

/* A chunk written out would serve one tile alone, and four panels of it fill the first-level
 * cache. Instead each column is decoded and multiplied: 2 or 3 operations besides the T FMAs. */
#define DECODE_TOKENS 3
#define DECODE_PANELS 4

/* 16 * P outputs by T tokens of columns [k, end), which lie in one segment, starting at a multiple
 * of 8 columns: `codes` of panel j are at codes + j * stride, x at the tile. */
INLINE void add_columns(__m512 *acc, const uint8_t *codes, int64_t stride, const decoder *d,
                        const float *x, int64_t k, int64_t end, const bool nibbles,
                        const bool zeros, const bool mins, const int P, const int T)
{
    const int count = nibbles ? 8 : 4;
    for (; k < end; k += count) {
        const uint8_t *at = codes + k / count * 64;
        const float *xk = x + k * T;
        UNROLL
        for (int j = 0; j < P; j++) {
            const __m512i v = _mm512_loadu_si512(at + j * stride);
            UNROLL
            for (int i = 0; i < count; i++) {
                if (k + i >= end) /* the end of the row */
                    break;
                const __m512 wk = decode_column(v, i, &d[j], nibbles, zeros, mins);
                UNROLL
                for (int t = 0; t < T; t++)
                    acc[j * T + t] =
                        _mm512_fmadd_ps(wk, _mm512_set1_ps(xk[i * T + t]), acc[j * T + t]);
            }
        }
    }
}

INLINE void decode_tile(float *y, int64_t ldy, const nb_panels *w, int64_t p, const float *x,
                        const bool nibbles, const bool zeros, const bool mins, const int P,
                        const int T)
{
    const uint8_t *codes = w->codes + p * w->panel_bytes;
    const __m512 table = nibble_table(w);
    __m512 total[DECODE_PANELS * DECODE_TOKENS], acc[DECODE_PANELS * DECODE_TOKENS];
    UNROLL
    for (int i = 0; i < P * T; i++)
        total[i] = _mm512_setzero_ps();
    int64_t seg = 0;
    decoder d[DECODE_PANELS];
    for (int64_t k0 = 0; k0 < w->n_cols; k0 += NB_CHUNK_K) {
        const int64_t chunk_end = k0 + NB_CHUNK_K < w->n_cols ? k0 + NB_CHUNK_K : w->n_cols;
        UNROLL
        for (int i = 0; i < P * T; i++)
            acc[i] = _mm512_setzero_ps();
        for (int64_t k = k0; k < chunk_end;) {
            if (k == seg * w->seg_len) { /* a segment begins */
                UNROLL
                for (int j = 0; j < P; j++)
                    d[j] = decoder_at(w, ((p + j) * w->n_segs + seg) * NB_PANEL_ROWS, table,
                                      nibbles, zeros, mins);
                seg++;
            }
            const int64_t seg_end = seg * w->seg_len;
            const int64_t end = seg_end < chunk_end ? seg_end : chunk_end;
            add_columns(acc, codes, w->panel_bytes, d, x, k, end, nibbles, zeros, mins, P, T);
            k = end;
        }
        UNROLL
        for (int i = 0; i < P * T; i++)
            total[i] = _mm512_add_ps(total[i], acc[i]);
    }
    UNROLL
    for (int j = 0; j < P; j++) {
        const __mmask16 mask = lanes(w->n_rows - (p + j) * NB_PANEL_ROWS);
        UNROLL
        for (int t = 0; t < T; t++)
            _mm512_mask_storeu_ps(y + t * ldy + (p + j) * NB_PANEL_ROWS, mask, total[j * T + t]);
    }
}

typedef void decode_panels_fn(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                              const float *x);
#define DEFINE_T(name, nibbles, zeros, mins, T)                                                    \
    static void decode_panels_##name##_##T(float *y, int64_t ldy, const nb_panels *w,              \
                                           int64_t begin, int64_t end, const float *x)             \
    {                                                                                              \
        for (; begin + DECODE_PANELS <= end; begin += DECODE_PANELS)                               \
            decode_tile(y, ldy, w, begin, x, nibbles, zeros, mins, DECODE_PANELS, T);              \
        for (; begin < end; begin++)                                                               \
            decode_tile(y, ldy, w, begin, x, nibbles, zeros, mins, 1, T);                          \
    }
#define X(name, nibbles, zeros, mins)                                                              \
    DEFINE_T(name, nibbles, zeros, mins, 1)                                                        \
    DEFINE_T(name, nibbles, zeros, mins, 2)                                                        \
    DEFINE_T(name, nibbles, zeros, mins, 3)
FOR_EACH_CODES(X)
#undef X

void nb_avx512_gemm_f(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                      const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                      float *scratch)
{
#define X(name, nibbles, zeros, mins)                                                              \
    {decode_panels_##name##_1, decode_panels_##name##_2, decode_panels_##name##_3},
    static decode_panels_fn *const kinds[8][DECODE_TOKENS] = {FOR_EACH_CODES(X)};
#undef X
    const bool whole_groups = w->n_segs == 1 || w->seg_len % 8 == 0;
    if (w->n_segs > 0 && !nb_panels_is_fp8(w) && whole_groups && n_tiles == 1 &&
        tiles->n_tok <= DECODE_TOKENS)
        kinds[codes_kind(w)][tiles->n_tok - 1](y + tile_first[0] * ldy, ldy, w, begin, end,
                                               tiles->f);
    else
        gemm_f(y, ldy, w, begin, end, tiles, tile_first, n_tiles, scratch);
}
