/* The functions of kernel/math.h: their largest error, their behaviour at the edges, and their
 * bits. The truth is the C library's, in a wider type. */
#include "support/golden.h"
#include "base/rng.h"
#include "kernel/math.h"

#include <float.h>
#include <inttypes.h>
#include <stdio.h>

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* ---- binary32 ---- */

/* The error of y in units of the last place of exp(x), or of the smallest subnormal. */
static double expf_error(float x, float y)
{
    const double truth = exp((double)x);
    if (truth >= 0x1.ffffffp+127) /* halfway between the largest float and 2^128 */
        return isinf(y) && y > 0 ? 0 : (double)INFINITY;
    int e;
    frexp(truth, &e);
    return fabs((double)y - truth) / ldexp(1, (e < -125 ? -125 : e) - FLT_MANT_DIG);
}

/* The largest error over every step-th float in (-110, 95), and *n of them. */
static double worst_expf(float f(float), uint32_t step, int64_t *n)
{
    double worst = 0;
    *n = 0;
    for (uint64_t u = 0; u < UINT64_C(1) << 32; u += step) {
        const float x = from_bits((uint32_t)u);
        if (!(x > -110 && x < 95))
            continue;
        const double error = expf_error(x, f(x));
        worst = error > worst ? error : worst;
        ++*n;
    }
    return worst;
}

/* Over all floats the largest error is 0.9013 (at -0x1.da1e0cp+5); here over a dense subset. */
static void expf_is_within_its_bound(void **state)
{
    (void)state;
    int64_t n;
    const double worst = worst_expf(nb_expf, 1021, &n);
    if (n < 1000000 || worst > NB_EXPF_MAX_ULP)
        fail_msg("error %.4f ulp over %" PRId64 " values, not %.2f", worst, n, NB_EXPF_MAX_ULP);
}

/* Around every edge each float counts: overflow, where results become subnormal, where they become
 * 0, and around 0 itself. */
static void expf_is_within_its_bound_at_the_edges(void **state)
{
    (void)state;
    static const float edges[] = {88.72284f, -87.33654f,  -103.27893f,  -103.97208f, -104.0f,
                                  89.0f,     0.34657359f, -0.34657359f, 1.0f,        -1.0f,
                                  1e-38f,    -1e-38f,     0x1p-149f};
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) {
        uint32_t bits;
        memcpy(&bits, &edges[i], sizeof bits);
        for (uint32_t u = bits > 3000 ? bits - 3000 : 0; u < bits + 3000; u++) {
            const float x = from_bits(u), y = nb_expf(x);
            if (expf_error(x, y) > NB_EXPF_MAX_ULP)
                fail_msg("exp(%a) is %a, not %a", (double)x, (double)y, exp((double)x));
        }
    }
}

static float expf_off_by_two_ulp(float x)
{
    return nb_expf(x) * (1 + 0x1p-22f);
}

static float expf_flushed(float x)
{
    const float y = nb_expf(x);
    return y < FLT_MIN ? 0 : y;
}

static void expf_checker_catches_planted_faults(void **state)
{
    (void)state;
    int64_t n;
    assert_true(worst_expf(expf_off_by_two_ulp, 65537, &n) > NB_EXPF_MAX_ULP);
    assert_true(worst_expf(expf_flushed, 65537, &n) > NB_EXPF_MAX_ULP);
}

static void expf_special_values(void **state)
{
    (void)state;
    assert_true(isnan(nb_expf(NAN)));
    assert_true(isnan(nb_expf(-NAN)));
    assert_true(nb_expf(INFINITY) == INFINITY);
    assert_true(nb_expf(FLT_MAX) == INFINITY);
    assert_true(nb_expf(-INFINITY) == 0 && !signbit(nb_expf(-INFINITY)));
    assert_true(nb_expf(-FLT_MAX) == 0);
    assert_true(nb_expf(0.0f) == 1 && nb_expf(-0.0f) == 1);
    assert_true(nb_expf(0x1.62e42ep+6f) < INFINITY && nb_expf(0x1.62e430p+6f) == INFINITY);
    assert_true(nb_expf(-103.972f) == 0x1p-149f && nb_expf(-103.973f) == 0);
}

/* ---- binary64 ---- */

/* Where long double is no wider than double, the truth is itself off by one. */
#define BOUND_64 (LDBL_MANT_DIG > DBL_MANT_DIG ? 1.0 : 2.0)

static double error_64(double y, long double truth)
{
    if (isnan(y) || isinf(y) || truth == 0)
        return (long double)y == truth ? 0 : (double)INFINITY;
    int e;
    frexpl(truth, &e);
    return (double)(fabsl((long double)y - truth) /
                    ldexpl(1, (e < DBL_MIN_EXP ? DBL_MIN_EXP : e) - DBL_MANT_DIG));
}

static void near_64(const char *name, double x, double y, double got, long double truth)
{
    if (!(error_64(got, truth) <= BOUND_64))
        fail_msg("%s(%a, %a) is %a, off by %.3f ulp", name, x, y, got, error_64(got, truth));
}

enum { N_64 = 300000 };

static double uniform(uint64_t stream, int64_t i)
{
    return nb_rng_uniform(7, stream, (uint64_t)i);
}

static void exp64_is_within_an_ulp(void **state)
{
    (void)state;
    for (int64_t i = 0; i < N_64; i++) {
        const double u = uniform(1, i), v = uniform(2, i);
        const double x = i % 2 ? -745.2 + u * (709.78 + 745.2) : ldexp(u - 0.5, -(int)(v * 60));
        near_64("exp", x, 0, nb_exp64(x), expl((long double)x));
    }
    assert_true(nb_exp64(0) == 1 && nb_exp64(-0.0) == 1);
    assert_true(nb_exp64(709.79) == (double)INFINITY && nb_exp64((double)INFINITY) > DBL_MAX);
    assert_true(nb_exp64(-745.14) == 0 && nb_exp64(-(double)INFINITY) == 0);
    assert_true(isnan(nb_exp64((double)NAN)));
}

static void log64_is_within_an_ulp(void **state)
{
    (void)state;
    for (int64_t i = 0; i < N_64; i++) {
        const double u = uniform(3, i), v = uniform(4, i);
        const double x = i % 2 ? ldexp(u + 0.5, (int)((v - 0.5) * 2140)) /* subnormals too */
                               : 1 + ldexp(u - 0.5, -(int)(v * 50));
        near_64("log", x, 0, nb_log64(x), logl((long double)x));
    }
    assert_true(nb_log64(1) == 0 && !signbit(nb_log64(1)));
    near_64("log", 0x1p-1074, 0, nb_log64(0x1p-1074), logl(0x1p-1074L));
    near_64("log", DBL_MAX, 0, nb_log64(DBL_MAX), logl((long double)DBL_MAX));
    assert_true(nb_log64(0) == -(double)INFINITY && nb_log64((double)INFINITY) > DBL_MAX);
    assert_true(isnan(nb_log64(-1)) && isnan(nb_log64((double)NAN)));
}

static void pow64_is_within_an_ulp(void **state)
{
    (void)state;
    int64_t n = 0;
    for (int64_t i = 0; i < N_64; i++) {
        const double u = uniform(5, i), v = uniform(6, i);
        const double x = i % 2 ? ldexp(u + 0.5, (int)((v - 0.5) * 200)) : 1 + ldexp(u - 0.5, -8);
        const double y = (uniform(8, i) - 0.5) * 1400 / fmax(fabs(log(x)), 1e-3);
        const long double truth = powl((long double)x, (long double)y);
        if (truth < (long double)DBL_MIN || truth > (long double)DBL_MAX)
            continue;
        near_64("pow", x, y, nb_pow64(x, y), truth);
        n++;
    }
    assert_true(n > N_64 / 2);
    /* what it is there for */
    static const double thetas[] = {10000, 100000, 500000, 1000000, 130000, 8000000};
    for (int i = 0; i < 128; i++)
        for (size_t j = 0; j < sizeof thetas / sizeof *thetas; j++)
            near_64("pow", thetas[j], i, nb_pow64(thetas[j], -i / 128.0),
                    powl((long double)thetas[j], -i / 128.0L));
    assert_true(nb_pow64(2, 10) == 1024 && nb_pow64(10, 3) == 1000 && nb_pow64(0.5, 1074) > 0);
    assert_true(nb_pow64(0, 0) == 1 && nb_pow64((double)NAN, 0) == 1 && nb_pow64(1, 1e300) == 1);
    assert_true(nb_pow64(0, 2) == 0 && nb_pow64(0, -2) == (double)INFINITY);
    assert_true(nb_pow64(2, 1025) == (double)INFINITY && nb_pow64(2, -1080) == 0);
    assert_true(nb_pow64(2, 1e308) == (double)INFINITY && nb_pow64(0.5, 1e308) == 0);
    assert_true(isnan(nb_pow64(-2, 2)) && isnan(nb_pow64(2, (double)NAN)));
}

static void sincos64_is_within_an_ulp(void **state)
{
    (void)state;
    for (int64_t i = 0; i < N_64; i++) {
        const double u = uniform(9, i), v = uniform(10, i);
        double x = (u - 0.5) * exp2(v * 32);
        if (i % 4 == 1) /* a position times a frequency */
            x = floor(u * 0x1p31) * pow(10000, -v);
        else if (i % 4 == 2) /* as near to a multiple of pi/2 as doubles come */
            x = floor(u * 0x1p30) * 1.5707963267948966;
        double s, c;
        nb_sincos64(x, &s, &c);
        near_64("sin", x, 0, s, sinl((long double)x));
        near_64("cos", x, 0, c, cosl((long double)x));
    }
    double s, c;
    nb_sincos64(0, &s, &c);
    assert_true(s == 0 && c == 1);
    nb_sincos64(0x1p31, &s, &c);
    near_64("sin", 0x1p31, 0, s, sinl(0x1p31L));
    static const double beyond[] = {0x1.0000000000001p+31, -1e300, (double)INFINITY, (double)NAN};
    for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++) {
        nb_sincos64(beyond[i], &s, &c);
        assert_true(isnan(s) && isnan(c));
    }
}

/* ---- bits ---- */

static uint64_t hash_step(uint64_t h, const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)p)[i]) * UINT64_C(0x100000001b3); /* FNV-1a */
    return h;
}

/* One sequence of operations for every compiler and machine: the bits are known beforehand. */
static void bits_are_the_same_everywhere(void **state)
{
    (void)state;
    uint64_t h32 = UINT64_C(0xcbf29ce484222325), h64 = h32;
    for (uint32_t u = 0; u < 0xff000000u; u += 65521) {
        const float x = from_bits(u), y = nb_expf(x);
        if (!isnan(x))
            h32 = hash_step(h32, &y, sizeof y);
    }
    for (int64_t i = 0; i < 20000; i++) {
        const double u = uniform(11, i), v = uniform(12, i);
        double out[5] = {nb_exp64(u * 1400 - 700), nb_log64(u), nb_pow64(u * 1000, v * 100 - 50)};
        nb_sincos64((u - 0.5) * 0x1p32 * v, &out[3], &out[4]);
        h64 = hash_step(h64, out, sizeof out);
    }
    if (h32 != UINT64_C(0x2b0c599c08359c30) || h64 != UINT64_C(0xeddb714ca715b823))
        fail_msg("hashes are %016" PRIx64 " and %016" PRIx64, h32, h64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expf_is_within_its_bound),
        cmocka_unit_test(expf_is_within_its_bound_at_the_edges),
        cmocka_unit_test(expf_checker_catches_planted_faults),
        cmocka_unit_test(expf_special_values),
        cmocka_unit_test(exp64_is_within_an_ulp),
        cmocka_unit_test(log64_is_within_an_ulp),
        cmocka_unit_test(pow64_is_within_an_ulp),
        cmocka_unit_test(sincos64_is_within_an_ulp),
        cmocka_unit_test(bits_are_the_same_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
