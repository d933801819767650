/* Private to the kernels that store cells: numbers that share a scale and a minimum, in few bits
 * (A8). Scalar code, the same for every instruction set: a page is packed once, and read for every
 * token that follows. */
#ifndef NB_KERNEL_PACKED_H
#define NB_KERNEL_PACKED_H

#include "kernel/cells.h"
#include "numeric/minifloat.h"

#include <math.h>

/* How many ranges are tried: the whole one, and each time 1/32 of it less at both ends. What lies
 * outside is clamped: with four levels that costs less than levels far apart. */
static inline int nb_pack_tries(int bits)
{
    return bits == 2 ? 8 : 3;
}

#define NB_PACK_FITS 2
#define NB_PACK_MOST 64 /* numbers */

typedef struct {
    uint16_t scale, least; /* F16 */
    uint8_t code[NB_PACK_MOST];
} nb_packed;

/* The sum of 16 lanes, by A1. */
static inline float nb_pack_tree(float lane[16])
{
    for (int half = 8; half >= 1; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

static inline uint16_t nb_pack_f16(float x)
{
    return nb_f16_from_f32(x < -65504.0f ? -65504.0f : x > 65504.0f ? 65504.0f : x);
}

/* Codes of n <= 64 finite numbers under the scale and the minimum that are there, and zeros;
 * returns the sum of the squares of what they are off, by A1. */
static inline float nb_pack_codes(nb_packed *out, const float *x, int64_t n, int bits)
{
    const float top = (float)((1 << bits) - 1);
    const float s = nb_f16_to_f32(out->scale), m = nb_f16_to_f32(out->least);
    const float inv = s > 0 ? 1.0f / s : 0;
    float lane[16] = {0};
    for (int64_t i = 0; i < (n + 15) / 16 * 16; i++) {
        const float y = i < n ? x[i] : m, q = (y - m) * inv;
        const float code = rintf(q < 0 ? 0 : q > top ? top : q);
        const float off = fmaf(s, code, m) - y;
        out->code[i] = i < n ? (uint8_t)code : 0;
        lane[i % 16] = fmaf(off, off, lane[i % 16]);
    }
    return nb_pack_tree(lane);
}

/* The same for the range [low, high]. */
static inline float nb_pack_range(nb_packed *out, const float *x, int64_t n, int bits, float low,
                                  float high)
{
    *out = (nb_packed){.scale = nb_pack_f16((high - low) / (float)((1 << bits) - 1)),
                       .least = nb_pack_f16(low + 0.0f)};
    return nb_pack_codes(out, x, n, bits);
}

/* The scale and the minimum that fit n numbers best under the codes that are there: a line through
 * the points (code, x - minimum), by least squares. False when there is none that rises. */
static inline bool nb_pack_fit(nb_packed *out, const float *x, int64_t n)
{
    const float m = nb_f16_to_f32(out->least);
    float ones[16] = {0}, codes[16] = {0};
    int64_t sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        const float y = x[i] - m, c = (float)out->code[i];
        ones[i % 16] += y;
        codes[i % 16] = fmaf(c, y, codes[i % 16]);
        sum += out->code[i];
        squares += out->code[i] * out->code[i];
    }
    const float y = nb_pack_tree(ones), cy = nb_pack_tree(codes);
    const int64_t spread = n * squares - sum * sum; /* exact, and less than 2^24 */
    const float rise = (float)n * cy - (float)sum * y;
    if (spread == 0 || !(rise > 0))
        return false;
    const float s = rise / (float)spread;
    out->scale = nb_pack_f16(s);
    out->least = nb_pack_f16(m + (y - s * (float)sum) / (float)n);
    return true;
}

/* Packs n numbers, 1 <= n <= 64: the range with the least squares, the widest of equal ones; then
 * NB_PACK_FITS times, as long as squares become less, the line through its codes. Returns the sum
 * of squares that is left, 0 where a number is not finite. */
static inline float nb_pack(nb_packed *out, const float *x, int64_t n, int bits)
{
    float low = x[0], high = x[0];
    bool finite = true;
    for (int64_t i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        finite = finite && isfinite(x[i]);
    }
    if (!finite) {
        *out = (nb_packed){.scale = 0x7e00};
        return 0;
    }
    float least_off = nb_pack_range(out, x, n, bits, low, high);
    const float step = (high - low) / 32;
    for (int i = 1; i < nb_pack_tries(bits); i++) {
        nb_packed other;
        const float cut = (float)i * step;
        const float off = nb_pack_range(&other, x, n, bits, low + cut, high - cut);
        if (off < least_off) {
            *out = other;
            least_off = off;
        }
    }
    for (int i = 0; i < NB_PACK_FITS; i++) {
        nb_packed other = *out;
        if (!nb_pack_fit(&other, x, n))
            break;
        const float off = nb_pack_codes(&other, x, n, bits);
        if (!(off < least_off))
            break;
        *out = other;
        least_off = off;
    }
    return least_off;
}

/* Which dimensions of a page of keys get 4 bits instead of 2: of n, those n_wide of which nb_pack
 * left most, lower ones first of equal ones, and none that is exact. Outliers of keys have
 * dimensions of their own (arXiv:2402.02750), and few of those make most of the error. */
static inline void nb_pack_wide(bool *wide, const float *left, int64_t n, int64_t n_wide)
{
    for (int64_t d = 0; d < n; d++) {
        int64_t before = 0;
        for (int64_t i = 0; i < n; i++)
            before += left[i] > left[d] || (left[i] == left[d] && i < d);
        wide[d] = before < n_wide && left[d] > 0;
    }
}

#endif
