/* A6: the elementary functions of the arithmetic contract. Each is one fixed sequence of adds,
 * multiplies and fused multiply-adds, so that every instruction set gives the same bits; nothing
 * here depends on the libm of the machine.
 *
 * nb_expf is binary32 and has vector twins (avx2_math.h, avx512_math.h) built from the constants
 * below. The binary64 functions serve tables and sampling; they are scalar. All expect round to
 * nearest even with subnormals kept (base/fpenv.h). */
#ifndef NB_KERNEL_MATH_H
#define NB_KERNEL_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* exp(x) = 2^n * exp(r), n = rint(x / ln 2), r = x - n * ln 2 in [-0.3469, 0.3469].
 *
 * Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits of the sum.
 * ln 2 is taken in two parts; the high one has 9 bits, so n times it is exact.
 * exp(r) = 1 + r * (1 + r * q(r)), q the polynomial of degree 4 that minimises the largest relative
 * error of exp(r), 3.1e-9 (Lawson's algorithm, coefficients rounded one after the other).
 * Past NB_EXP_HI and NB_EXP_LO the result is infinity and 0 as it is at them. */
#define NB_EXP_HI     89.0f
#define NB_EXP_LO     (-104.0f)
#define NB_EXP_MAGIC  12582912.0f /* 1.5 * 2^23 */
#define NB_EXP_LOG2E  0x1.715476p+0f
#define NB_EXP_LN2_HI 0x1.63p-1f
#define NB_EXP_LN2_LO (-0x1.bd0106p-13f)
#define NB_EXP_C2     0x1.fffffcp-2f
#define NB_EXP_C3     0x1.555492p-3f
#define NB_EXP_C4     0x1.5558b0p-5f
#define NB_EXP_C5     0x1.12399cp-7f
#define NB_EXP_C6     0x1.6a4ecep-10f

/* 2^e as binary32, for e in [-126, 127]. */
static inline float nb_exp2_int(int32_t e)
{
    const uint32_t bits = (uint32_t)(e + 127) << 23;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* exp(x): NaN for NaN, infinity above 88.72, subnormals and then 0 below -87.33. The largest error
 * over all floats, in units of the last place (below 2^-126: of the smallest subnormal). */
#define NB_EXPF_MAX_ULP 0.91
static inline float nb_expf(float x)
{
    x = NB_EXP_HI < x ? NB_EXP_HI : x; /* a NaN stays, in this order of operands */
    x = NB_EXP_LO > x ? NB_EXP_LO : x;
    const float t = fmaf(x, NB_EXP_LOG2E, NB_EXP_MAGIC);
    const float n = t - NB_EXP_MAGIC;
    float r = fmaf(n, -NB_EXP_LN2_HI, x);
    r = fmaf(n, -NB_EXP_LN2_LO, r);
    float q = fmaf(NB_EXP_C6, r, NB_EXP_C5);
    q = fmaf(q, r, NB_EXP_C4);
    q = fmaf(q, r, NB_EXP_C3);
    q = fmaf(q, r, NB_EXP_C2);
    q = fmaf(q, r, 1.0f);
    const float p = fmaf(q, r, 1.0f);
    if (n != n)
        return n;
    /* Two exact powers of two, so that overflow and underflow round once, in the last product. */
    const int32_t e = (int32_t)n, half = e >> 1;
    return p * nb_exp2_int(half) * nb_exp2_int(e - half);
}

/* Within 1 ulp, subnormal results included; IEEE 754's answers for NaN, infinities and zeros. */
double nb_exp64(double x);
/* Within 1 ulp; -infinity at 0, NaN below. */
double nb_log64(double x);
/* x^y for x >= 0, within 1 ulp; NaN for negative x. x^0 and 1^y are 1. */
double nb_pow64(double x, double y);
/* Within 1 ulp for |x| <= 2^31, the position of a token times the fastest frequency; NaN beyond. */
void nb_sincos64(double x, double *sine, double *cosine);

#endif
