/* Scale and inverse of a group of activations, from its largest magnitude (A3). */
#ifndef NB_KERNEL_GROUP_SCALE_H
#define NB_KERNEL_GROUP_SCALE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* `bits` is the largest (bits of x) & 0x7fffffff. False when the group holds Inf or NaN. `given`
 * not 0: x are codes, and this is their scale. */
static inline bool group_scale(int32_t bits, float qmax, float given, float *scale, float *inv)
{
    float absmax;
    memcpy(&absmax, &bits, sizeof absmax);
    const bool bad = bits >= 0x7f800000, none = absmax < 0x1p-100f;
    *scale = bad ? NAN : given != 0 ? given : none ? 0.0f : absmax / qmax;
    *inv = bad || none ? 0.0f : given != 0 ? 1.0f : qmax / absmax;
    return !bad;
}

#endif
