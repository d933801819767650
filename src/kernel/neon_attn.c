/* Attention on NEON with dot products. Integer scores: stored keys, with their offset of 128 taken
 * off by a flip of the sign bit, times four codes of the query in every lane; 4 positions a
 * register, two planes in mode i16. */
#include "kernel/neon_math.h"
#include "kernel/attn_tile.h"

#define INT_VECS(rows) 1

/* One plane of int8 codes, or with `wide` two, 256 hi + lo. */
static void int_codes(float *out, const int32_t *codes, int64_t n, bool wide)
{
    int8_t *hi = (int8_t *)out, *lo = hi + NB_ATTN_MAX_DIM;
    for (int64_t i = 0; i < n; i++) {
        hi[i] = (int8_t)(wide ? (codes[i] + 128) >> 8 : codes[i]);
        lo[i] = (int8_t)(uint8_t)((uint32_t)codes[i] & 255u);
    }
}

V16_INLINE void int_sums(int32x4_t sum[][4], const int8_t *q, const uint8_t *keys, int64_t n_groups,
                         int rows)
{
    for (int64_t g = 0; g < n_groups; g++) {
        V16_UNROLL
        for (int i = 0; i < 4; i++) {
            const int8x16_t key =
                vreinterpretq_s8_u8(veorq_u8(vld1q_u8(keys + 64 * g + 16 * i), vdupq_n_u8(128)));
            V16_UNROLL
            for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, q + r * (4 * Q_STRIDE) + 4 * g, sizeof four);
                sum[r][i] = vdotq_s32(sum[r][i], key, vreinterpretq_s8_s32(vdupq_n_s32(four)));
            }
        }
    }
}

/* s[r] = A3 over the head, for the 16 positions of a panel with those scales. */
V16_INLINE void int_tile(float *s, const float *q, const float *q_scale, const uint8_t *keys,
                         const float *scales, int64_t n_groups, bool wide, int rows)
{
    const int8_t *hi = (const int8_t *)q;
    int32x4_t sum[V16_TILE_ROWS][4];
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        V16_UNROLL
        for (int i = 0; i < 4; i++)
            sum[r][i] = vdupq_n_s32(0);
    }
    int_sums(sum, hi, keys, n_groups, rows);
    if (wide) {
        V16_UNROLL
        for (int r = 0; r < rows; r++) {
            V16_UNROLL
            for (int i = 0; i < 4; i++)
                sum[r][i] = vshlq_n_s32(sum[r][i], 8);
        }
        int_sums(sum, hi + NB_ATTN_MAX_DIM, keys, n_groups, rows);
    }
    const v16 scale = v16_load(scales);
    V16_UNROLL
    for (int r = 0; r < rows; r++) {
        const v16 isum = {vcvtq_f32_s32(sum[r][0]), vcvtq_f32_s32(sum[r][1]),
                          vcvtq_f32_s32(sum[r][2]), vcvtq_f32_s32(sum[r][3])};
        v16_store(s + r * STRIDE, v16_mul(isum, v16_mul(v16_set1(q_scale[r]), scale)));
    }
}

#define TILE(rows)                                                                                 \
    static void int_score_##rows(float *s, const float *q, const int32_t *start,                   \
                                 const float *q_scale, const uint8_t *const *keys,                 \
                                 const uint8_t *const *ahead, const float *scales,                 \
                                 int64_t n_groups, bool wide)                                      \
    {                                                                                              \
        (void)start, (void)ahead; /* signed codes need none */                                     \
        int_tile(s, q, q_scale, keys[0], scales, n_groups, wide, rows);                            \
    }
V16_TILES(TILE)
#undef TILE

#include "kernel/attn_body.h"

void nb_kernels_neon_attn(nb_kernels *k)
{
    fill_attn(k);
}
