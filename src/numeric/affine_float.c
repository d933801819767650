/* Float zero points of affine formats, as HQQ stores them (Badri and Shaji, 2023):
 *
 *   value = scale * (u - zero),   u = code + 2^(bits - 1) = 0 .. 2^bits - 1
 *
 * where scale and zero are both of scale_type. What is computed is fma(scale, u, m) with
 * m = fl(-scale * zero): the form of q4_1, which the kernels have already. The product of two
 * numbers of 16 bits is exact in binary32, and so the value is scale * (u - zero), rounded once.
 *
 * A zero point of 16 bits has 11 or 8 significant bits. In a group that is narrow and far from 0 it
 * is large, and if its own steps were more than 1 apart, all codes might lie beside the group: such
 * a group takes a wider scale, under which they are 1 apart. */
#include "numeric/affine.h"
#include "numeric/fit.h"
#include "numeric/minifloat.h"
#include "numeric/scale.h"

#include <assert.h>
#include <float.h>
#include <math.h>

static_assert(NB_F32 == 0 && NB_F16 == 1 && NB_BF16 == 2, "the order of the tables below");
static const double zero_max[] = {FLT_MAX, 65504.0, 0x1.fep127};
/* Up to here, zero points are at most 1 apart. */
static const double zero_exact[] = {0x1p24, 0x1p11, 0x1p8};

float nb_affine_float_offset(const nb_mat *m, int64_t i)
{
    return -(nb_float_get(m->scales, m->scale_type, i) *
             nb_float_get(m->float_zeros, m->scale_type, i));
}

bool nb_affine_float_put(const nb_mat *m, int64_t i, double scale, double offset)
{
    const float step = nb_fit_stored(m->scale_type, scale);
    const double wanted = -offset / (double)step;
    if (step == 0 || !(fabs(wanted) <= zero_max[m->scale_type]))
        return false;
    const float zero = nb_fit_stored(m->scale_type, wanted);
    /* Codes that mean infinity are known by their scale (grid.c): small ones must lead to none. */
    const float most = fabsf(step) > 0x1p100f ? FLT_MAX : 0x1p127f;
    if (!(fabsf(step * zero) <= most))
        return false;
    nb_float_put(m->scales, m->scale_type, i, step);
    nb_float_put(m->float_zeros, m->scale_type, i, zero);
    return true;
}

void nb_affine_float_choose(const nb_mat *m, int64_t i, const float *x, int64_t n)
{
    const double top = (double)((1 << m->fmt->bits) - 1);
    float min = x[0], max = x[0];
    for (int64_t c = 1; c < n; c++) {
        min = x[c] < min ? x[c] : min;
        max = x[c] > max ? x[c] : max;
    }
    const double low = (double)min, high = (double)max;
    const double far = (-low > high ? -low : high) / zero_exact[m->scale_type];
    const double wide = (high - low) / top, step = wide > far ? wide : far;
    const float wanted = step > 0 ? (float)step : nb_scale_of_zeros(m->scale_type);
    const float scale = nb_scale_stored(m->scale_type, wanted, 1);
    double offset = low;
    for (int attempt = 0; !nb_affine_float_put(m, i, (double)scale, offset); attempt++)
        offset *= attempt == 0 ? 0.99 : 0.5; /* as far as the type goes */
}

/* Columns are done in pieces of a constant length, because compilers turn such loops into vector
 * code at -O2. A product of 16 bits by a code is exact, and fusing it changes nothing. */
#define PIECE 32

static void values_piece(float *restrict y, const int8_t *restrict code, float scale, float offset,
                         int half)
{
    for (int i = 0; i < PIECE; i++)
        y[i] = scale * (float)(code[i] + half) + offset;
}

void nb_affine_float_values(const nb_mat *m, int64_t i, const int8_t *code, int64_t n, float *y)
{
    const float scale = nb_float_get(m->scales, m->scale_type, i);
    const float offset = nb_affine_float_offset(m, i);
    const int half = 1 << (m->fmt->bits - 1);
    int64_t c = 0;
    if (m->scale_type != NB_F32 && fabsf(scale) < 0x1p100f) {
        for (; c + PIECE <= n; c += PIECE)
            values_piece(y + c, code + c, scale, offset, half);
    }
    for (; c < n; c++)
        y[c] = __builtin_fmaf(scale, (float)(code[c] + half), offset);
}
