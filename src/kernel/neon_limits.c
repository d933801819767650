/* The limits of 64-bit ARM with 8-bit dot products; see avx2_limits.c. */
#include "kernel/limits.h"

#include <arm_neon.h>

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16") /* every loop, or the sums would live in memory */
#endif
#define CHAINS 16

static uint16_t int8_run(int64_t n_steps)
{
    int32x4_t sum[CHAINS];
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        sum[c] = vdupq_n_s32(0);
    const int8x16_t w = vdupq_n_s8(1), x = vdupq_n_s8(1);
    for (int64_t i = 0; i < n_steps; i++) {
        UNROLL
        for (int c = 0; c < CHAINS; c++)
            __asm__ volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum[c]) : "w"(w), "w"(x));
    }
    UNROLL
    for (int c = 1; c < CHAINS; c++)
        sum[0] = vaddq_s32(sum[0], sum[c]);
    return (uint16_t)vgetq_lane_s32(sum[0], 0);
}

static uint16_t fma_run(int64_t n_steps)
{
    float32x4_t sum[CHAINS];
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        sum[c] = vdupq_n_f32(0);
    const float32x4_t a = vdupq_n_f32(1), b = vdupq_n_f32(1);
    for (int64_t i = 0; i < n_steps; i++) {
        UNROLL
        for (int c = 0; c < CHAINS; c++)
            __asm__ volatile("fmla %0.4s, %1.4s, %2.4s" : "+w"(sum[c]) : "w"(a), "w"(b));
    }
    UNROLL
    for (int c = 1; c < CHAINS; c++)
        sum[0] = vaddq_f32(sum[0], sum[c]);
    return (uint16_t)(int64_t)vgetq_lane_f32(sum[0], 0);
}

/* Four streams: one alone leaves bandwidth unused on some machines. */
static uint32_t read_run(const uint8_t *p, int64_t n)
{
    uint8x16_t sum[8];
    UNROLL
    for (int s = 0; s < 8; s++)
        sum[s] = vdupq_n_u8(0);
    const int64_t quarter = n / 4;
    for (int64_t i = 0; i < quarter; i += 32) {
        UNROLL
        for (int s = 0; s < 4; s++) {
            const uint8_t *at = p + s * quarter + i;
            sum[2 * s] = vorrq_u8(sum[2 * s], vld1q_u8(at));
            sum[2 * s + 1] = vorrq_u8(sum[2 * s + 1], vld1q_u8(at + 16));
        }
    }
    UNROLL
    for (int s = 1; s < 8; s++)
        sum[0] = vorrq_u8(sum[0], sum[s]);
    const uint32x4_t word = vreinterpretq_u32_u8(sum[0]);
    return vgetq_lane_u32(word, 0) | vgetq_lane_u32(word, 1) | vgetq_lane_u32(word, 2) |
           vgetq_lane_u32(word, 3);
}

void nb_limits_neon(nb_limit_loops *loops)
{
    *loops = (nb_limit_loops){.int8 = {"sdot", 4, CHAINS * 32, int8_run},
                              .fma = {"fmla", 4, CHAINS * 8, fma_run},
                              .read = read_run};
}
