/* Attention on AVX2. Integer scores: vpmaddwd on codes of 16 bits, which hold those of either mode
 * and the stored ones as they are, 0 to 255: no plane and no sign needs care. A register has two
 * sums of two products for each of 4 positions, which are added once, at the end. Sums are modulo
 * 2^32 until -128 times the sum of the query's codes, where they start, has made them exact. */
#include "kernel/avx2_math.h"
#include "kernel/attn_tile.h"

#define INT_VECS(rows) 1

static void int_codes(float *out, const int32_t *codes, int64_t n, bool wide)
{
    (void)wide;
    int16_t *to = (int16_t *)(void *)out;
    for (int64_t i = 0; i < n; i++)
        to[i] = (int16_t)codes[i];
}

/* The sums of 8 positions from two registers of pairs of halves. */
V16_INLINE __m256i add_halves(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);
}

/* s[r] = A3 over the head, for the 16 positions of a panel with those scales. */
V16_INLINE void int_tile(float *s, const float *q, const int32_t *start, const float *q_scale,
                         const uint8_t *keys, const float *scales, int64_t n_groups, int rows)
{
    __m256i sum[3][4];
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int i = 0; i < 4; i++)
            sum[r][i] = _mm256_setzero_si256();
    }
    for (int64_t g = 0; g < n_groups; g++) {
        __m256i four[3];
        V16_UNROLL
        for (int r = 0; r < rows; r++) {
            const int16_t *codes = (const int16_t *)(const void *)(q + r * Q_STRIDE) + 4 * g;
            four[r] = _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i *)codes));
        }
        V16_UNROLL
        for (int i = 0; i < 4; i++) {
            const __m256i key =
                _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(keys + 64 * g + 16 * i)));
            V16_UNROLL
            for (int r = 0; r < rows; r++)
                sum[r][i] = _mm256_add_epi32(sum[r][i], _mm256_madd_epi16(key, four[r]));
        }
    }
    const v16 scale = v16_load(scales);
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        const __m256i offset = _mm256_set1_epi32(start[r]);
        const __m256i lo = _mm256_add_epi32(add_halves(sum[r][0], sum[r][1]), offset);
        const __m256i hi = _mm256_add_epi32(add_halves(sum[r][2], sum[r][3]), offset);
        const v16 isum = {_mm256_cvtepi32_ps(lo), _mm256_cvtepi32_ps(hi)};
        v16_store(s + r * STRIDE, v16_mul(isum, v16_mul(v16_set1(q_scale[r]), scale)));
    }
}

/* Three rows at a time: 12 registers of sums. */
#define TILE(rows)                                                                                 \
    static void int_score_##rows(float *s, const float *q, const int32_t *start,                   \
                                 const float *q_scale, const uint8_t *const *keys,                 \
                                 const uint8_t *const *ahead, const float *scales,                 \
                                 int64_t n_groups, bool wide)                                      \
    {                                                                                              \
        (void)wide, (void)ahead;                                                                   \
        enum { FIRST = (rows) < 3 ? (rows) : 3, REST = (rows)-FIRST };                             \
        int_tile(s, q, start, q_scale, keys[0], scales, n_groups, FIRST);                          \
        if (REST > 0)                                                                              \
            int_tile(s + 3 * STRIDE, q + 3 * Q_STRIDE, start + 3, q_scale + 3, keys[0], scales,    \
                     n_groups, REST);                                                              \
    }
V16_TILES(TILE)
#undef TILE

#include "kernel/attn_body.h"

void nb_kernels_avx2_attn(nb_kernels *k)
{
    fill_attn(k);
}
