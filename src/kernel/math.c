/* The binary64 functions of math.h. Logarithms and the reduction of angles are carried in
 * double-double: an unevaluated sum hi + lo of two doubles, good for about 104 bits. They run
 * once per table entry or per token, so clarity comes before speed. */
#include "kernel/math.h"

#include <float.h>
#include <stdbool.h>

typedef struct {
    double hi, lo;
} dd;

/* a + b exactly (Knuth). */
static dd two_sum(double a, double b)
{
    const double s = a + b, v = s - a;
    return (dd){s, (a - (s - v)) + (b - v)};
}

/* a + b exactly where |a| >= |b| or a is 0 (Dekker). */
static dd fast_two_sum(double a, double b)
{
    const double s = a + b;
    return (dd){s, b - (s - a)};
}

/* a * b exactly, short of underflow. */
static dd two_prod(double a, double b)
{
    const double p = a * b;
    return (dd){p, fma(a, b, -p)};
}

static dd dd_add(dd a, dd b)
{
    const dd s = two_sum(a.hi, b.hi), t = two_sum(a.lo, b.lo);
    const dd u = fast_two_sum(s.hi, s.lo + t.hi);
    return fast_two_sum(u.hi, u.lo + t.lo);
}

static dd dd_mul(dd a, dd b)
{
    const dd p = two_prod(a.hi, b.hi);
    return fast_two_sum(p.hi, fma(a.hi, b.lo, fma(a.lo, b.hi, p.lo)));
}

static dd dd_div(dd a, dd b)
{
    const double q = a.hi / b.hi;
    const dd p = dd_mul(b, (dd){q, 0});
    const double rest = (a.hi - p.hi) - p.lo + a.lo;
    return fast_two_sum(q, rest / b.hi);
}

/* ln 2 = LN2_HI + LN2_MID + LN2_LO; 11 trailing zeros in LN2_HI make n * LN2_HI exact. */
#define LN2_HI  0x1.62e42fefa3800p-1
#define LN2_MID 0x1.ef35793c76730p-45
#define LN2_LO  0x1.f97b57a079a19p-103
#define LOG2E   0x1.71547652b82fep+0
#define SQRT2   0x1.6a09e667f3bcdp+0

/* exp(hi + lo) for a finite hi in [-746, 710] and |lo| <= ulp(hi), as 2^n * exp(r) with exp(r) its
 * Taylor polynomial: at |r| < 0.3467 the first term left out, r^15 / 15!, is 1e-19. */
static double exp_dd(double hi, double lo)
{
    const double n = rint(hi * LOG2E);
    const dd r = two_sum(fma(n, -LN2_HI, hi), fma(n, -LN2_MID, lo));
    double q = 1.0 / 87178291200.0; /* 1 / 14! */
    double factorial = 87178291200.0;
    for (int k = 13; k >= 2; k--) {
        factorial /= k + 1; /* exact: k! < 2^53 */
        q = fma(q, r.hi, 1.0 / factorial);
    }
    const dd p = fast_two_sum(1.0, r.hi);
    const double sum = p.hi + (p.lo + fma(q, r.hi * r.hi, fma(r.hi, r.lo, r.lo)));
    const int e = (int)n;
    return ldexp(ldexp(sum, e / 2), e - e / 2); /* the inner one is exact, so one rounding */
}

double nb_exp64(double x)
{
    if (isnan(x))
        return x;
    if (x > 710)
        return (double)INFINITY;
    return x < -746 ? 0.0 : exp_dd(x, 0);
}

/* log(x) in double-double, for positive finite x: x = 2^k * m with m in [sqrt(1/2), sqrt(2)), and
 * log(m) = 2 atanh(s) = 2 (s + s^3/3 + s^5/5 + ...), s = (m - 1) / (m + 1), |s| < 0.1716.
 * The first term left out, s^43 / 43, is 2^-112. */
static dd log_dd(double x)
{
    int k = 0;
    if (x < DBL_MIN) {
        x *= 0x1p54;
        k = -54;
    }
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    k += (int)(bits >> 52) - 1023;
    bits = (bits & UINT64_C(0x000fffffffffffff)) | UINT64_C(0x3ff0000000000000);
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m >= SQRT2) {
        m *= 0.5;
        k++;
    }
    const dd s = dd_div((dd){m - 1, 0}, two_sum(m, 1)), z = dd_mul(s, s);
    dd sum = {0, 0};
    for (int i = 41; i >= 1; i -= 2)
        sum = dd_add(dd_mul(sum, z), dd_div((dd){2, 0}, (dd){i, 0}));
    sum = dd_mul(sum, s);
    const dd ln2 = dd_add((dd){k * LN2_HI, 0}, two_prod(k, LN2_MID));
    return dd_add(dd_add(ln2, (dd){k * LN2_LO, 0}), sum);
}

/* The answers of log where log_dd has none. */
static bool log_special(double x, double *y)
{
    if (x > 0 && x < (double)INFINITY)
        return false;
    *y = x == 0 ? -(double)INFINITY : x > 0 || isnan(x) ? x : (double)NAN;
    return true;
}

double nb_log64(double x)
{
    double y;
    if (log_special(x, &y))
        return y;
    const dd l = log_dd(x);
    return l.hi + l.lo;
}

double nb_pow64(double x, double y)
{
    if (x == 1 || y == 0)
        return 1;
    double special;
    if (log_special(x, &special))
        return nb_exp64(special * y);
    const dd l = log_dd(x);
    const double rough = l.hi * y;
    if (!(rough > -746 && rough < 710))
        return nb_exp64(rough);
    const dd p = dd_mul(l, (dd){y, 0});
    return exp_dd(p.hi, p.lo);
}

/* pi / 2 = PIO2_HI + PIO2_MID + PIO2_LO, off by 2^-164. */
#define PIO2_HI     0x1.921fb54442d18p+0
#define PIO2_MID    0x1.1a62633145c07p-54
#define PIO2_LO     (-0x1.f1976b7ed8fbcp-110)
#define TWO_OVER_PI 0x1.45f306dc9c883p-1

/* sin(r) and cos(r), |r| < 0.7855, by their Taylor polynomials: the first terms left out,
 * r^21 / 21! and r^20 / 20!, are below 2^-68. */
static double sin_taylor(dd r)
{
    const double z = r.hi * r.hi;
    double q = 0, factorial = 121645100408832000.0; /* 19! */
    for (int k = 19; k >= 3; k -= 2) {
        q = fma(q, -z, 1.0 / factorial);
        factorial /= (double)k * (k - 1);
    }
    /* sin(hi + lo) = sin(hi) + lo * cos(hi) */
    return r.hi + fma(-q, z * r.hi, r.lo * (1 - 0.5 * z));
}

static double cos_taylor(dd r)
{
    const double z = r.hi * r.hi;
    double q = 0, factorial = 6402373705728000.0; /* 18! */
    for (int k = 18; k >= 4; k -= 2) {
        q = fma(q, -z, 1.0 / factorial);
        factorial /= (double)k * (k - 1);
    }
    /* 1 - z/2 with what its two roundings lost, and -lo * sin(hi) */
    const dd half = two_prod(0.5 * r.hi, r.hi), head = fast_two_sum(1, -half.hi);
    return head.hi + (head.lo - half.lo + fma(q, z * z, -r.lo * r.hi));
}

void nb_sincos64(double x, double *sine, double *cosine)
{
    if (!(fabs(x) <= 0x1p31)) {
        *sine = *cosine = (double)NAN;
        return;
    }
    /* r = x - n * pi/2. The first difference is exact: x and n * PIO2_HI are neighbours. What is
     * left of it may be as small as 2^-60, hence the exact sums and the third part. */
    const double n = rint(x * TWO_OVER_PI);
    const dd hi = two_prod(n, -PIO2_HI), mid = two_prod(n, -PIO2_MID);
    dd r = dd_add(two_sum(x, hi.hi), (dd){hi.lo, 0});
    r = dd_add(dd_add(r, mid), (dd){n * -PIO2_LO, 0});
    const double s = sin_taylor(r), c = cos_taylor(r);
    switch ((int64_t)n & 3) {
    case 0:
        *sine = s, *cosine = c;
        break;
    case 1:
        *sine = c, *cosine = -s;
        break;
    case 2:
        *sine = -s, *cosine = -c;
        break;
    default:
        *sine = -c, *cosine = s;
    }
}
