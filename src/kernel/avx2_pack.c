/* Packing of activations, AVX2: quantization by A3, and the layouts of nb_xtile.
 *
 * A tile's planes are [k / 4][token][4 bytes]: the transpose of tokens by groups of four bytes. So
 * 32 columns of 8 tokens are quantized into 8 registers of 8 groups each, which are transposed in
 * registers; packing of floats is the same transpose. */
#include "kernel/avx2_panel.h"
#include "kernel/group_scale.h"

/* ---- quantization ---- */

/* How the numbers of one group become codes. */
typedef struct {
    __m256 inv;
    __m256 keep; /* all ones; 0 where Inf or NaN made the group's codes 0 */
} group_rule;

/* Finds the rule and *scale of a group of n columns; false if it holds Inf or NaN. */
INLINE bool find_rule(group_rule *rule, float *scale, const float *x, int64_t n, float qmax,
                      float given)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256(), other = most;
    int64_t k = 0;
    for (; k + 16 <= n; k += 16) {
        most = _mm256_max_epi32(most, _mm256_and_si256(load(x + k), magnitude));
        other = _mm256_max_epi32(other, _mm256_and_si256(load(x + k + 8), magnitude));
    }
    for (; k < n; k += 8) {
        const __m256i v = _mm256_castps_si256(_mm256_maskload_ps(x + k, lane_mask(n - k)));
        most = _mm256_max_epi32(most, _mm256_and_si256(v, magnitude));
    }
    most = _mm256_max_epi32(most, other);
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    float inv;
    const bool good = group_scale(_mm_cvtsi128_si32(m), qmax, given, scale, &inv);
    rule->inv = _mm256_set1_ps(inv);
    rule->keep = _mm256_castsi256_ps(_mm256_set1_epi32(good ? -1 : 0));
    return good;
}

/* Codes of 8 columns. No clamp is needed: |x| <= absmax, so |x * inv| is less than half a step
 * above qmax. */
INLINE __m256i codes_of(const group_rule *rule, __m256 x)
{
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_and_ps(x, rule->keep), rule->inv));
}

/* Columns 8 j .. 8 j + 7 of v[j] as bytes. Packing keeps to the halves of a register: groups of
 * four columns 0 .. 7 come out in the order 0 2 4 6 1 3 5 7. */
INLINE void split_planes(__m256i *hi, __m256i *lo, const __m256i *v, const bool two)
{
    const __m256i a = _mm256_packs_epi32(v[0], v[1]), b = _mm256_packs_epi32(v[2], v[3]);
    if (!two) {
        *hi = _mm256_packs_epi16(a, b);
        return;
    }
    /* code = 256 hi + lo with lo in [-128, 127]; code + 128 fits in 16 bits. */
    const __m256i half = _mm256_set1_epi16(128);
    *hi = _mm256_packs_epi16(_mm256_srai_epi16(_mm256_add_epi16(a, half), 8),
                             _mm256_srai_epi16(_mm256_add_epi16(b, half), 8));
    *lo = _mm256_packs_epi16(_mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8),
                             _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
}

/* Codes of n <= 32 columns, 0 past them. */
INLINE void quantize_block(__m256i *hi, __m256i *lo, const group_rule *rule, const float *x,
                           int64_t n, const bool two)
{
    __m256i v[4];
    UNROLL
    for (int j = 0; j < 4; j++)
        v[j] = codes_of(rule, n >= 32 ? _mm256_loadu_ps(x + 8 * j)
                                      : _mm256_maskload_ps(x + 8 * j, lane_mask(n - 8 * j)));
    split_planes(hi, lo, v, two);
}

static void store_bytes(int8_t *out, __m256i v, int64_t n)
{
    if (n >= 32) {
        _mm256_storeu_si256((void *)out, v);
        return;
    }
    int8_t bytes[32];
    _mm256_storeu_si256((void *)bytes, v);
    memcpy(out, bytes, (size_t)n);
}

static bool quantize(const float *x, int64_t n, int64_t group, float given, int8_t *hi, int8_t *lo,
                     float *scale)
{
    const float qmax = lo == NULL ? 127.0f : 32639.0f;
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    bool finite = true;
    for (int64_t begin = 0; begin < n; begin += group) {
        const int64_t end = begin + group < n ? begin + group : n;
        group_rule rule;
        finite = find_rule(&rule, scale++, x + begin, end - begin, qmax, given) && finite;
        for (int64_t k = begin; k < end; k += 32) {
            __m256i h, l;
            if (lo == NULL) {
                quantize_block(&h, &l, &rule, x + k, end - k, false);
            } else {
                quantize_block(&h, &l, &rule, x + k, end - k, true);
                store_bytes(lo + k, _mm256_permutevar8x32_epi32(l, order), end - k);
            }
            store_bytes(hi + k, _mm256_permutevar8x32_epi32(h, order), end - k);
        }
    }
    return finite;
}

bool nb_quantize_row_avx2(const float *x, int64_t n, int64_t group, int8_t *hi, int8_t *lo,
                          float *scale)
{
    return quantize(x, n, group, 0, hi, lo, scale);
}

/* ---- layouts ---- */

/* v[i] lane j to v[j] lane i. */
INLINE void transpose8(__m256i *v)
{
    __m256i a[8], b[8];
    UNROLL
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 8; i += 4) {
        UNROLL
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

/* The first n of 8 lanes of four bytes. */
INLINE void store_lanes(void *out, __m256i v, int64_t n)
{
    uint8_t *p = out;
    if (n >= 8) {
        _mm256_storeu_si256((void *)p, v);
        return;
    }
    __m128i rest = _mm256_castsi256_si128(v);
    if (n & 4) {
        _mm_storeu_si128((void *)p, rest);
        rest = _mm256_extracti128_si256(v, 1);
        p += 16;
    }
    if (n & 2) {
        _mm_storel_epi64((void *)p, rest);
        rest = _mm_unpackhi_epi64(rest, rest);
        p += 8;
    }
    if (n & 1) {
        const int32_t last = _mm_cvtsi128_si32(rest);
        memcpy(p, &last, sizeof last);
    }
}

/* Columns [k, k + n) of token t0 + i, 32 at most, are row[i], in the order of split_planes: writes
 * them to the plane for n_row tokens, up to padding. */
INLINE void spread_block(int8_t *plane, __m256i *row, int64_t k, int64_t k_end, int64_t n_tok,
                         int64_t t0, int64_t n_row)
{
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    transpose8(row);
    UNROLL
    for (int i = 0; i < 8; i++)
        if (k + 4 * order[i] < k_end)
            store_lanes(plane + ((k / 4 + order[i]) * n_tok + t0) * 4, row[i], n_row);
}

/* Quantizes all tokens, a group at a time. Group ends are multiples of 8 columns, but for the last,
 * whose padding is written with it. */
INLINE bool pack_planes(const nb_xtile *tile, const float *x, int64_t ld, const bool two)
{
    const float qmax = two ? 32639.0f : 127.0f;
    const int64_t n_cols = tile->n_cols, n_tok = tile->n_tok;
    bool finite = true;
    for (int64_t begin = 0, g = 0; begin < n_cols; begin += tile->x_seg_len, g++) {
        const bool is_last = n_cols - begin <= tile->x_seg_len;
        const int64_t end = is_last ? n_cols : begin + tile->x_seg_len;
        const int64_t write_end = is_last ? tile->k_pad : end;
        group_rule rule[NB_TILE_MAX];
        for (int64_t t = 0; t < n_tok; t++)
            finite = find_rule(&rule[t], &tile->scale[g * n_tok + t], x + t * ld + begin,
                               end - begin, qmax, tile->given) &&
                     finite;
        for (int64_t k = begin; k < write_end; k += 32) {
            for (int64_t t0 = 0; t0 < n_tok; t0 += 8) {
                const int64_t n_row = n_tok - t0 < 8 ? n_tok - t0 : 8;
                __m256i hi[8], lo[8];
                for (int64_t i = 0; i < 8; i++) {
                    hi[i] = lo[i] = _mm256_setzero_si256();
                    if (i < n_row)
                        quantize_block(&hi[i], &lo[i], &rule[t0 + i], x + (t0 + i) * ld + k,
                                       end - k, two);
                }
                spread_block(tile->hi, hi, k, write_end, n_tok, t0, n_row);
                if (two)
                    spread_block(tile->lo, lo, k, write_end, n_tok, t0, n_row);
            }
        }
    }
    return finite;
}

/* Four products by one in each lane: sums of four bytes, times `weight`. */
INLINE __m256i sum4(__m256i x, int weight)
{
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), x),
                             _mm256_set1_epi16((short)weight));
}

INLINE __m256i sum4_planes(const int8_t *hi, const int8_t *lo, int64_t at, __m256i in)
{
    const __m256i h = _mm256_maskload_epi32((const int *)(const void *)(hi + at), in);
    if (lo == NULL)
        return sum4(h, 1);
    const __m256i l = _mm256_maskload_epi32((const int *)(const void *)(lo + at), in);
    return _mm256_add_epi32(sum4(h, 256), sum4(l, 1));
}

static void put_sum(const nb_xtile *tile, int64_t at, uint32_t sum)
{
    tile->xsum[at] = (int32_t)sum;
    if (tile->start != NULL)
        tile->start[at] = (int32_t)(0u - (uint32_t)tile->zero_const * sum);
}

/* Sums of the joint segments, 8 tokens side by side. */
static void sum_planes(const nb_xtile *tile)
{
    const int64_t n_tok = tile->n_tok;
    const int64_t step = (tile->seg_len + 7) / 8 * 2; /* groups of four columns in a segment */
    for (int64_t g = 0, s = 0; g < tile->k_pad / 4; g += step, s++) {
        const int64_t end = g + step < tile->k_pad / 4 ? g + step : tile->k_pad / 4;
        for (int64_t t0 = 0; t0 < n_tok; t0 += 8) {
            const __m256i in = lane_mask(n_tok - t0);
            __m256i sum = _mm256_setzero_si256();
            for (int64_t i = g; i < end; i++)
                sum = _mm256_add_epi32(sum,
                                       sum4_planes(tile->hi, tile->lo, 4 * (i * n_tok + t0), in));
            const int64_t at = s * n_tok + t0;
            store_lanes(tile->xsum + at, sum, n_tok - t0);
            if (tile->start != NULL)
                store_lanes(tile->start + at,
                            _mm256_mullo_epi32(sum, _mm256_set1_epi32(-tile->zero_const)),
                            n_tok - t0);
        }
    }
}

/* One token, whose bytes lie side by side: a row of a tile of rows, or a tile of one token. */
static bool pack_row(const nb_xtile *tile, int64_t t, const float *x)
{
    const int64_t n_cols = tile->n_cols, n_tok = tile->n_tok;
    const int64_t width = tile->rows ? tile->row_stride : tile->k_pad;
    int8_t *hi = tile->hi + t * width, *lo = tile->lo == NULL ? NULL : tile->lo + t * width;
    bool finite = true;
    for (int64_t begin = 0, g = 0; begin < n_cols; begin += tile->x_seg_len, g++) {
        const int64_t n = n_cols - begin < tile->x_seg_len ? n_cols - begin : tile->x_seg_len;
        finite = quantize(x + begin, n, n, tile->given, hi + begin, lo == NULL ? NULL : lo + begin,
                          &tile->scale[g * n_tok + t]) &&
                 finite;
    }
    memset(hi + n_cols, 0, (size_t)(width - n_cols));
    if (lo != NULL)
        memset(lo + n_cols, 0, (size_t)(width - n_cols));
    for (int64_t begin = 0, s = 0; begin < n_cols; begin += tile->seg_len, s++) {
        /* A multiple of 8 columns: only the last segment reaches into the padding, which is 0. */
        const int64_t end = begin + tile->seg_len < n_cols ? begin + tile->seg_len : tile->k_pad;
        __m256i sum = _mm256_setzero_si256();
        for (int64_t k = begin; k < end; k += 32)
            sum = _mm256_add_epi32(sum, sum4_planes(hi, lo, k, lane_mask((end - k) / 4)));
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
        put_sum(tile, s * n_tok + t, (uint32_t)_mm_cvtsi128_si32(four));
    }
    return finite;
}

static void pack_floats(const nb_xtile *tile, const float *x, int64_t ld)
{
    const int64_t n = tile->n_cols, n_tok = tile->n_tok;
    if (n_tok == 1) {
        memcpy(tile->f, x, (size_t)n * sizeof(float));
        return;
    }
    for (int64_t k = 0; k < n; k += 8) {
        for (int64_t t0 = 0; t0 < n_tok; t0 += 8) {
            const int64_t n_row = n_tok - t0 < 8 ? n_tok - t0 : 8;
            __m256i row[8];
            for (int64_t i = 0; i < 8; i++) {
                const float *from = x + (t0 + i) * ld + k;
                row[i] = i >= n_row   ? _mm256_setzero_si256()
                         : n - k >= 8 ? load(from)
                                      : _mm256_maskload_epi32((const int *)(const void *)from,
                                                              lane_mask(n - k));
            }
            transpose8(row);
            for (int64_t i = 0; i < 8 && k + i < n; i++)
                store_lanes(tile->f + (k + i) * n_tok + t0, row[i], n_row);
        }
    }
}

bool nb_pack_tile_avx2(const nb_xtile *tile, const float *x, int64_t ld, void *staging)
{
    (void)staging; /* codes go from registers to where they belong */
    if (tile->f != NULL) {
        pack_floats(tile, x, ld);
        return true;
    }
    bool finite = true;
    if (tile->rows || tile->n_tok == 1) {
        for (int64_t t = 0; t < tile->n_tok; t++)
            finite = pack_row(tile, t, x + t * ld) && finite;
        return finite;
    }
    finite = tile->lo == NULL ? pack_planes(tile, x, ld, false) : pack_planes(tile, x, ld, true);
    sum_planes(tile);
    return finite;
}
