/* Storing a scale above zero in the type that the file has for it. */
#ifndef NB_NUMERIC_SCALE_H
#define NB_NUMERIC_SCALE_H

#include "numeric/minifloat.h"

#include <float.h>

/* Where the scale of a group of zeros comes from: compressed-tensors stores the distance from 1 to
 * the next number of the type. */
static inline float nb_scale_of_zeros(nb_float_type type)
{
    return type == NB_F32 ? 0x1p-23f : type == NB_F16 ? 0x1p-10f : 0x1p-7f;
}

/* `wanted` as stored: a finite number above zero whose product with `top`, the largest level, is
 * finite. What the type would round to zero becomes its least number. */
static inline float nb_scale_stored(nb_float_type type, float wanted, float top)
{
    static const float least[] = {0x1p-149f, 0x1p-24f, 0x1p-133f};
    static const float most[] = {FLT_MAX, 65504.0f, 0x1.fep127f};
    uint8_t place[sizeof(float)] __attribute__((aligned(4)));
    nb_float_put(place, type, 0, wanted);
    float stored = nb_float_get(place, type, 0);
    stored = stored > most[type] ? most[type] : stored > 0 ? stored : least[type];
    if (!(stored * top > FLT_MAX))
        return stored;
    /* The type's last number whose product is finite; an F16 never comes here. */
    const uint32_t ulp = type == NB_F32 ? 1u : 0x10000u;
    stored = nb_f32_from_bits(nb_f32_bits(FLT_MAX / top) & ~(ulp - 1));
    return stored * top > FLT_MAX ? nb_f32_from_bits(nb_f32_bits(stored) - ulp) : stored;
}

#endif
