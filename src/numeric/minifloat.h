/* Conversions between binary32 and the small floats, one value at a time. Round to nearest even,
 * subnormals produced and kept, NaN stays a quiet NaN. Vector kernels must agree bit for bit. */
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

static inline float nb_bf16_to_f32(uint16_t h)
{
    return nb_f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t nb_bf16_from_f32(float f)
{
    const uint32_t u = nb_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float nb_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t rest = h & 0x7fffu;
    if (rest >= 0x7c00u) { /* inf, NaN (made quiet) */
        const uint32_t quiet = rest > 0x7c00u ? 0x400000u : 0;
        return nb_f32_from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13 | quiet);
    }
    if (rest >= 0x400u)
        return nb_f32_from_bits(sign | ((rest << 13) + 0x38000000u));
    /* subnormal: an exact product */
    return nb_f32_from_bits(sign | nb_f32_bits((float)rest * 0x1p-24f));
}

/* |x| >= 65520 becomes infinity. */
static inline uint16_t nb_f16_from_f32(float f)
{
    const uint32_t u = nb_f32_bits(f), sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | ((mag >> 13) & 0x3ffu));
    if (mag >= 0x477ff000u)
        return (uint16_t)(sign | 0x7c00u);
    if (mag < 0x38800000u) { /* result is subnormal or zero: let the adder round */
        const float t = nb_f32_from_bits(mag) + 0.5f;
        return (uint16_t)(sign | (nb_f32_bits(t) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((mag - 0x38000000u + 0xfffu + ((mag >> 13) & 1u)) >> 13));
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
