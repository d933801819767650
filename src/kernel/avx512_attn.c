/* Attention on AVX-512 VNNI. Integer scores: the codes of a query are vpdpbusd's broadcast memory
 * operand and stored keys its unsigned one, 16 positions a register, so that a dot product needs no
 * shuffle and no reduction. Sums start at -128 times the sum of the query's codes, which undoes the
 * offset of the stored ones. */
#include "kernel/avx512_math.h"
#include "kernel/attn_tile.h"

#define INT_VECS(rows) ((rows) <= 6 ? 4 : 2)

/* One plane of int8 codes, or with `wide` two, 256 hi + lo. */
static void int_codes(float *out, const int32_t *codes, int64_t n, bool wide)
{
    int8_t *hi = (int8_t *)out, *lo = hi + NB_ATTN_MAX_DIM;
    for (int64_t i = 0; i < n; i += 16) {
        const __m512i code = _mm512_loadu_si512(codes + i);
        __m512i high = code;
        if (wide) {
            high = _mm512_srai_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(128)), 8);
            _mm_storeu_si128((__m128i *)(lo + i), _mm512_cvtepi32_epi8(code));
        }
        _mm_storeu_si128((__m128i *)(hi + i), _mm512_cvtepi32_epi8(high));
    }
}

/* acc += for each lane the dot of 4 unsigned bytes of w and the 4 signed bytes at x. */
V16_INLINE __m512i dot_bcst(__m512i acc, __m512i w, const int8_t *x)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t(*)[1])x));
    return acc;
}

V16_INLINE void int_sums(__m512i sum[][4], const int8_t *q, const uint8_t *const *keys,
                         const uint8_t *const *ahead, int64_t n_groups, int rows, int vecs)
{
    for (int64_t g = 0; g < n_groups; g++) {
        __m512i key[4];
        V16_UNROLL
        for (int v = 0; v < vecs; v++)
            key[v] = _mm512_loadu_si512(keys[v] + 64 * g);
        V16_UNROLL
        for (int v = 0; v < vecs && ahead != NULL; v++)
            ask_for(ahead[v] + 64 * g, 64);
        V16_UNROLL
        for (int r = 0; r < rows; r++) {
            V16_UNROLL
            for (int v = 0; v < vecs; v++)
                sum[r][v] = dot_bcst(sum[r][v], key[v], q + r * (4 * Q_STRIDE) + 4 * g);
        }
    }
}

/* s[r][16 v ...] = A3 over the head, for the 16 positions of panel keys[v] with those scales. */
V16_INLINE void int_tile(float *s, const float *q, const int32_t *start, const float *q_scale,
                         const uint8_t *const *keys, const uint8_t *const *ahead,
                         const float *scales, int64_t n_groups, bool wide, int rows, int vecs)
{
    const int8_t *hi = (const int8_t *)q;
    __m512i sum[V16_TILE_ROWS][4];
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int v = 0; v < vecs; v++)
            sum[r][v] = wide ? _mm512_setzero_si512() : _mm512_set1_epi32(start[r]);
    }
    int_sums(sum, hi, keys, rows <= 6 ? ahead : NULL, n_groups, rows, vecs);
    if (wide) {
        V16_UNROLL
        for (int r = 0; r < rows; r++) {
            V16_UNROLL
            for (int v = 0; v < vecs; v++)
                sum[r][v] =
                    _mm512_add_epi32(_mm512_slli_epi32(sum[r][v], 8), _mm512_set1_epi32(start[r]));
        }
        int_sums(sum, hi + NB_ATTN_MAX_DIM, keys, NULL, n_groups, rows, vecs);
    }
    V16_UNROLL
    for (int v = 0; v < vecs; v++) {
        const v16 scale = v16_load(scales + v * LANES);
        V16_UNROLL
        for (int r = 0; r < rows; r++)
            v16_store(s + r * STRIDE + v * LANES,
                      v16_mul(_mm512_cvtepi32_ps(sum[r][v]), v16_mul(v16_set1(q_scale[r]), scale)));
    }
}

#define TILE(rows)                                                                                 \
    static void int_score_##rows(float *s, const float *q, const int32_t *start,                   \
                                 const float *q_scale, const uint8_t *const *keys,                 \
                                 const uint8_t *const *ahead, const float *scales,                 \
                                 int64_t n_groups, bool wide)                                      \
    {                                                                                              \
        int_tile(s, q, start, q_scale, keys, ahead, scales, n_groups, wide, rows, INT_VECS(rows)); \
    }
V16_TILES(TILE)
#undef TILE

#include "kernel/attn_body.h"

void nb_kernels_avx512_attn(nb_kernels *k)
{
    fill_attn(k);
}
