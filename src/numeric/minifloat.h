/* Conversions between binary32 and the small floats, one value at a time. Round to nearest even,
 * subnormals produced and kept, NaN stays a quiet NaN. Vector kernels must agree bit for bit.
 *
 *   binary32   s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm      bias 127
 *   f16        s eeeee mmmmmmmmmm                      bias 15
 *   bf16       s eeeeeeee mmmmmmm                      bias 127: the upper half of a binary32
 *   e4m3       s eeee mmm                              bias 7: no infinity, NaN is s.1111.111 alone
 *   e5m2       s eeeee mm                              bias 15: the upper half of an f16
 *
 * All cases are computed and one is selected by a mask, so that a loop over these becomes vector
 * code: of a choice between two expressions, gcc 12 makes a branch at -O2 and gives up. */
#ifndef NB_NUMERIC_MINIFLOAT_H
#define NB_NUMERIC_MINIFLOAT_H

#include "numeric/format.h"

#include <string.h>

static inline float nb_f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t nb_f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* a where `take_a`, else b. */
static inline uint32_t nb_select_u32(bool take_a, uint32_t a, uint32_t b)
{
    const uint32_t mask = 0u - (uint32_t)take_a;
    return (a & mask) | (b & ~mask);
}

static inline float nb_bf16_to_f32(uint16_t h)
{
    return nb_f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t nb_bf16_from_f32(float f)
{
    const uint32_t u = nb_f32_bits(f);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const uint32_t quiet = u >> 16 | 0x40u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

static inline float nb_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu, wide = rest << 13;
    /* 2^-14 (1 + m/1024) - 2^-14 is exact, and touches no subnormal operand, which some
     * processors handle a hundred times slower. */
    const float tiny = nb_f32_from_bits(0x38800000u | (wide & 0x7fffffu)) - 0x1p-14f;
    const uint32_t finite = nb_select_u32(rest < 0x400u, nb_f32_bits(tiny), wide + 0x38000000u);
    const uint32_t special = wide | 0x7f800000u | (uint32_t)(rest > 0x7c00u) << 22;
    return nb_f32_from_bits(sign | nb_select_u32(rest < 0x7c00u, finite, special));
}

/* |x| >= 65520 becomes infinity. */
static inline uint16_t nb_f16_from_f32(float f)
{
    const uint32_t u = nb_f32_bits(f), sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
    /* The unit in the last place of 0.5 is that of an f16 subnormal: the adder does the rounding.
     */
    const uint32_t tiny = nb_f32_bits(nb_f32_from_bits(mag) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (mag - 0x38000000u + 0xfffu + ((mag >> 13) & 1u)) >> 13;
    const uint32_t finite = nb_select_u32(mag < 0x38800000u, tiny, normal);
    const uint32_t nan = 0x7e00u | ((mag >> 13) & 0x3ffu);
    const uint32_t special = nb_select_u32(mag > 0x7f800000u, nan, 0x7c00u);
    return (uint16_t)(sign | nb_select_u32(mag < 0x477ff000u, finite, special));
}

static inline float nb_e4m3_to_f32(uint8_t c)
{
    const uint32_t sign = (uint32_t)(c & 0x80u) << 24, rest = c & 0x7fu, wide = rest << 20;
    /* 2^-6 (1 + m/8) - 2^-6, as above. */
    const float tiny = nb_f32_from_bits(0x3c800000u | wide) - 0x1p-6f;
    const uint32_t finite = nb_select_u32(rest < 8, nb_f32_bits(tiny), wide + 0x3c000000u);
    return nb_f32_from_bits(sign | nb_select_u32(rest < 0x7f, finite, 0x7fc00000u));
}

/* Saturates: what is larger than 448, and infinity, becomes 448. Producers of files clamp first;
 * where they do not, numbers above 464 become NaN (PyTorch). */
static inline uint8_t nb_e4m3_from_f32(float f)
{
    const uint32_t u = nb_f32_bits(f), sign = (u >> 24) & 0x80u, mag = u & 0x7fffffffu;
    /* The unit in the last place of 2^14 is that of a subnormal, 2^-9. */
    const uint32_t tiny = nb_f32_bits(nb_f32_from_bits(mag) + 0x1p14f) - 0x46800000u;
    const uint32_t normal = (mag - 0x3c000000u + 0x7ffffu + ((mag >> 20) & 1u)) >> 20;
    const uint32_t finite = nb_select_u32(mag < 0x3c800000u, tiny, normal);
    const uint32_t special = 0x7eu + (uint32_t)(mag > 0x7f800000u);
    return (uint8_t)(sign | nb_select_u32(mag < 0x43e00000u, finite, special));
}

static inline float nb_e5m2_to_f32(uint8_t c)
{
    return nb_f16_to_f32((uint16_t)(c << 8));
}

/* Saturates: what is larger than 57344, and infinity, becomes 57344. */
static inline uint8_t nb_e5m2_from_f32(float f)
{
    const uint32_t u = nb_f32_bits(f), sign = (u >> 24) & 0x80u, mag = u & 0x7fffffffu;
    const uint32_t tiny = nb_f32_bits(nb_f32_from_bits(mag) + 0x1p7f) - 0x43000000u;
    const uint32_t normal = (mag - 0x38000000u + 0xfffffu + ((mag >> 21) & 1u)) >> 21;
    const uint32_t finite = nb_select_u32(mag < 0x38800000u, tiny, normal);
    const uint32_t special = nb_select_u32(mag > 0x7f800000u, 0x7fu, 0x7bu);
    return (uint8_t)(sign | nb_select_u32(mag < 0x47600000u, finite, special));
}

/* Element i of an array of `type`. */
static inline float nb_float_get(const void *array, nb_float_type type, int64_t i)
{
    switch (type) {
    case NB_F16:
        return nb_f16_to_f32(((const uint16_t *)array)[i]);
    case NB_BF16:
        return nb_bf16_to_f32(((const uint16_t *)array)[i]);
    case NB_F32:
        break;
    }
    return ((const float *)array)[i];
}

static inline void nb_float_put(void *array, nb_float_type type, int64_t i, float v)
{
    switch (type) {
    case NB_F16:
        ((uint16_t *)array)[i] = nb_f16_from_f32(v);
        return;
    case NB_BF16:
        ((uint16_t *)array)[i] = nb_bf16_from_f32(v);
        return;
    case NB_F32:
        break;
    }
    ((float *)array)[i] = v;
}

#endif
