/* See observer.h. */
#include "numeric/observer.h"

#include "numeric/minifloat.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define BINS   NB_OBSERVER_BINS
#define LEVELS NB_OBSERVER_LEVELS
#define CHUNK  2048
#define LANES  16

const char *const nb_observer_names[] = {"minmax", "average", "percentile", "entropy", "mse", NULL};

/* ---- gathering ---- */

/* x = m 2^e with m in [1, 2), for a normal x > 0. */
static double split(double x, int *e)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    *e = (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | (uint64_t)1023 << 52;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

/* The least k with 2^k > x, x > 0. */
static int exponent_above(float x)
{
    int e;
    (void)split((double)x, &e); /* a subnormal float is a normal double */
    return e + 1;
}

/* 2^e as binary64, for normal results. */
static double power_of_two(int e)
{
    const uint64_t bits = (uint64_t)(e + 1023) << 52;
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

static void fold(int64_t *bins, int times)
{
    for (; times > 0; times--) {
        for (int i = 0; i < BINS / 2; i++)
            bins[i] = bins[2 * i] + bins[2 * i + 1];
        memset(bins + BINS / 2, 0, BINS / 2 * sizeof *bins);
    }
}

/* Makes the histogram reach 2^exponent, if it does not yet. */
static void grow(nb_observer *o, int exponent)
{
    if (!o->has_exponent) {
        /* Only zeros so far, which stay in their bin. */
        o->has_exponent = true;
        o->exponent = exponent;
    }
    if (exponent <= o->exponent)
        return;
    const int times = exponent - o->exponent < 12 ? exponent - o->exponent : 12; /* all in bin 0 */
    fold(o->positive, times);
    fold(o->negative, times);
    o->exponent = exponent;
}

/* |x| / width, rounded down, for n <= CHUNK values. Powers of two multiply exactly, save that what
 * lies far below the first bin's end may be rounded, and stays there. */
static void find_bins(const nb_observer *o, const float *x, int64_t n, int32_t *bin)
{
    if (o->exponent > -116) {
        const float per_width = (float)power_of_two(11 - o->exponent);
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES)
            for (int l = 0; l < LANES; l++)
                bin[i + l] = (int32_t)(fabsf(x[i + l]) * per_width);
        for (; i < n; i++)
            bin[i] = (int32_t)(fabsf(x[i]) * per_width);
        return;
    }
    const double per_width = power_of_two(11 - o->exponent);
    for (int64_t i = 0; i < n; i++)
        bin[i] = (int32_t)(fabs((double)x[i]) * per_width);
}

static void count_values(nb_observer *o, const float *x, int64_t n)
{
    int32_t bin[CHUNK] = {0};
    if (o->has_exponent)
        find_bins(o, x, n, bin);
    for (int64_t i = 0; i < n; i++) {
        int64_t *bins = x[i] < 0 ? o->negative : o->positive;
        bins[bin[i]]++;
    }
}

/* Least and greatest of x[0, n), n > 0. Lanes let the compiler use vectors. */
static void extremes(const float *x, int64_t n, float *least, float *greatest)
{
    float lo[LANES], hi[LANES];
    for (int l = 0; l < LANES; l++)
        lo[l] = hi[l] = x[0];
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            lo[l] = x[i + l] < lo[l] ? x[i + l] : lo[l];
            hi[l] = x[i + l] > hi[l] ? x[i + l] : hi[l];
        }
    for (; i < n; i++) {
        lo[0] = x[i] < lo[0] ? x[i] : lo[0];
        hi[0] = x[i] > hi[0] ? x[i] : hi[0];
    }
    for (int l = 1; l < LANES; l++) {
        lo[0] = lo[l] < lo[0] ? lo[l] : lo[0];
        hi[0] = hi[l] > hi[0] ? hi[l] : hi[0];
    }
    /* +0 and -0 are one value: which of them came first must not show. */
    *least = lo[0] + 0.0f;
    *greatest = hi[0] + 0.0f;
}

static void add_chunk(nb_observer *o, const float *x, int64_t n)
{
    float least, greatest;
    extremes(x, n, &least, &greatest);
    o->least = o->n == 0 || least < o->least ? least : o->least;
    o->greatest = o->n == 0 || greatest > o->greatest ? greatest : o->greatest;
    o->batch_least = !o->batch_open || least < o->batch_least ? least : o->batch_least;
    o->batch_greatest =
        !o->batch_open || greatest > o->batch_greatest ? greatest : o->batch_greatest;
    o->batch_open = true;
    o->n += n;
    if (o->no_histogram)
        return;
    const float most = -least > greatest ? -least : greatest;
    if (most > 0)
        grow(o, exponent_above(most));
    count_values(o, x, n);
}

static bool has_nonfinite(const float *x, int64_t n)
{
    uint32_t bad[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            bad[l] |= (uint32_t)((nb_f32_bits(x[i + l]) & 0x7f800000u) == 0x7f800000u);
    for (; i < n; i++)
        bad[0] |= (nb_f32_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
    for (int l = 1; l < LANES; l++)
        bad[0] |= bad[l];
    return bad[0] != 0;
}

nb_status nb_observer_add(nb_observer *o, const float *x, int64_t n, nb_err *err)
{
    if (has_nonfinite(x, n)) {
        int64_t i = 0;
        while ((nb_f32_bits(x[i]) & 0x7f800000u) != 0x7f800000u)
            i++;
        return nb_fail(err, NB_DATA, "value %lld is not finite", (long long)i);
    }
    for (int64_t at = 0; at < n; at += CHUNK)
        add_chunk(o, x + at, n - at < CHUNK ? n - at : CHUNK);
    return NB_OK;
}

void nb_observer_end_batch(nb_observer *o)
{
    if (!o->batch_open)
        return;
    const double momentum = o->momentum > 0 ? o->momentum : 0.01;
    const double share = o->n_batches == 0 ? 1 : momentum;
    o->average_least += share * ((double)o->batch_least - o->average_least);
    o->average_greatest += share * ((double)o->batch_greatest - o->average_greatest);
    o->n_batches++;
    o->batch_open = false;
}

void nb_observer_merge(nb_observer *to, const nb_observer *from)
{
    assert(from->n_batches == 0 && to->no_histogram == from->no_histogram);
    if (from->n == 0)
        return;
    to->least = to->n == 0 || from->least < to->least ? from->least : to->least;
    to->greatest = to->n == 0 || from->greatest > to->greatest ? from->greatest : to->greatest;
    to->batch_least =
        !to->batch_open || from->least < to->batch_least ? from->least : to->batch_least;
    to->batch_greatest = !to->batch_open || from->greatest > to->batch_greatest
                             ? from->greatest
                             : to->batch_greatest;
    to->batch_open = true;
    to->n += from->n;
    if (from->has_exponent)
        grow(to, from->exponent);
    const int shift = !from->has_exponent || to->exponent - from->exponent > 11
                          ? 11
                          : to->exponent - from->exponent;
    for (int i = 0; i < BINS; i++) {
        to->positive[i >> shift] += from->positive[i];
        to->negative[i >> shift] += from->negative[i];
    }
}

/* ---- codes ---- */

static double max_code(nb_range_codes codes)
{
    static const double most[] = {127, 127, 7, 448, 57344};
    return most[codes];
}

void nb_range_scale(nb_value_range range, nb_range_codes codes, float *scale, int *zero)
{
    double lo = (double)range.lo, hi = (double)range.hi;
    const double a = fabs(lo) > fabs(hi) ? fabs(lo) : fabs(hi);
    *scale = 1;
    *zero = 0;
    if (a < 0x1p-100)
        return;
    if (codes != NB_RANGE_INT8_ASYM) {
        *scale = (float)(a / max_code(codes));
        return;
    }
    lo = lo < 0 ? lo : 0;
    hi = hi > 0 ? hi : 0;
    *scale = (float)((hi - lo) / 255);
    const double z = rint(-128 - lo / (double)*scale);
    *zero = (int)(z < -128 ? -128 : z > 127 ? 127 : z);
}

/* Round to nearest even with `bits` of mantissa and exponents from `least` on, saturating. */
static double round_float(double x, int bits, int least, double most)
{
    if (fabs(x) >= most)
        return x < 0 ? -most : most;
    int e;
    (void)split(fabs(x), &e); /* of 0: below every exponent */
    e = e < least ? least : e;
    const double unit = power_of_two(e - bits);
    return rint(x / unit) * unit;
}

double nb_range_quantize(double x, nb_range_codes codes, float scale, int zero)
{
    const double s = (double)scale, y = x / s;
    if (codes == NB_RANGE_E4M3)
        return s * round_float(y, 3, -6, 448);
    if (codes == NB_RANGE_E5M2)
        return s * round_float(y, 2, -14, 57344);
    const double most = max_code(codes), least = codes == NB_RANGE_INT8_ASYM ? -128 : -most;
    double code = rint(y) + zero;
    code = code < least ? least : code > most ? most : code;
    return s * (code - zero);
}

/* ---- ranges ---- */

static double width(const nb_observer *o)
{
    return o->has_exponent ? power_of_two(o->exponent - 11) : 0;
}

static nb_value_range within(const nb_observer *o, double lo, double hi)
{
    return (nb_value_range){.lo = lo > (double)o->least ? (float)lo : o->least,
                            .hi = hi < (double)o->greatest ? (float)hi : o->greatest};
}

static float greatest_magnitude(const nb_observer *o)
{
    return -o->least > o->greatest ? -o->least : o->greatest;
}

/* [-t, t], at most the greatest |x|. */
static nb_value_range around_zero(const nb_observer *o, double t)
{
    const float most = greatest_magnitude(o), a = t < (double)most ? (float)t : most;
    return (nb_value_range){.lo = 0 - a, .hi = a};
}

/* The bin of |x| that holds the k-th smallest, k from 1. */
static int magnitude_bin(const nb_observer *o, int64_t k)
{
    int64_t below = 0;
    for (int i = 0; i < BINS; i++) {
        below += o->positive[i] + o->negative[i];
        if (below >= k)
            return i;
    }
    return BINS - 1;
}

/* The upper edge, in bins, of the bin that holds the k-th smallest of the values whose bins above
 * and below zero are given. */
static int signed_edge(const int64_t *above, const int64_t *below, int64_t k)
{
    int64_t n = 0;
    for (int i = BINS - 1; i >= 0; i--) {
        n += below[i];
        if (n >= k)
            return -i;
    }
    for (int i = 0; i < BINS; i++) {
        n += above[i];
        if (n >= k)
            return i + 1;
    }
    return BINS;
}

static nb_value_range by_percentile(const nb_observer *o, bool symmetric, double percentile)
{
    const double p = percentile > 0 ? percentile : 99.99;
    double rank = -floor(-p / 100 * (double)o->n);
    rank = rank < 1 ? 1 : rank > (double)o->n ? (double)o->n : rank;
    const int64_t k = (int64_t)rank;
    if (symmetric)
        return around_zero(o, (magnitude_bin(o, k) + 1) * width(o));
    const int hi = signed_edge(o->positive, o->negative, k);
    const int lo = -signed_edge(o->negative, o->positive, k); /* the same, seen in the mirror */
    nb_value_range r = within(o, lo * width(o), hi * width(o));
    if (r.lo > r.hi) /* p so small that the two have passed each other */
        r = (nb_value_range){.lo = r.hi, .hi = r.lo};
    return r;
}

/* The natural logarithm of a normal x > 0, to 1e-15 or so. (That of kernel/math.h is a layer above;
 * here divergences are compared with each other, and all that matters is that every machine gets
 * the same bits.) ln x = e ln 2 + 2 artanh((m - 1) / (m + 1)), m in [sqrt 1/2, sqrt 2). */
static double natural_log(double x)
{
    int e;
    double m = split(x, &e);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        e++;
    }
    const double s = (m - 1) / (m + 1), z = s * s;
    double sum = 0;
    for (int k = 21; k >= 1; k -= 2)
        sum = sum * z + 1.0 / k;
    return e * 0.69314718055994531 + 2 * s * sum;
}

/* KL(P || Q) of observer.h for the first i bins, up to what all i have in common:
 * N KL = sum p ln p - sum p ln q + N (ln S - ln N), p counts, q a level's count over the number of
 * its bins that are not empty, N = sum of all counts, S = sum of the first i. `plogp` [i] sums
 * c ln c over the bins before i, and `n_filled` counts those that are not empty. */
static double divergence(const int64_t *bins, const double *plogp, const int64_t *sums,
                         const int *n_filled, int i)
{
    const int64_t total = sums[BINS], inside = sums[i], above = total - inside;
    const int64_t last = bins[i - 1] + above;
    if (last > 0 && bins[i - 1] == 0)
        return INFINITY;
    double d = plogp[i - 1] + (last > 0 ? (double)last * natural_log((double)last) : 0);
    for (int level = 0; level < LEVELS; level++) {
        const int begin = level * i / LEVELS, end = (level + 1) * i / LEVELS;
        const int64_t count = sums[end] - sums[begin];
        if (count == 0)
            continue;
        const int64_t p = count + (end == i ? above : 0);
        d -= (double)p * natural_log((double)count / (n_filled[end] - n_filled[begin]));
    }
    return d + (double)total * natural_log((double)inside / (double)total);
}

static nb_value_range by_entropy(const nb_observer *o)
{
    int64_t bins[BINS], sums[BINS + 1] = {0};
    double plogp[BINS + 1] = {0};
    int n_used = 0, n_filled[BINS + 1] = {0};
    for (int i = 0; i < BINS; i++) {
        bins[i] = o->positive[i] + o->negative[i];
        sums[i + 1] = sums[i] + bins[i];
        plogp[i + 1] =
            plogp[i] + (bins[i] > 0 ? (double)bins[i] * natural_log((double)bins[i]) : 0);
        n_filled[i + 1] = n_filled[i] + (bins[i] > 0);
        if (bins[i] > 0)
            n_used = i + 1;
    }
    int best = n_used;
    double least = INFINITY;
    for (int i = LEVELS; i <= n_used; i++) {
        if (sums[i] == 0)
            continue;
        const double d = divergence(bins, plogp, sums, n_filled, i);
        if (d < least) {
            least = d;
            best = i;
        }
    }
    return around_zero(o, best == n_used ? INFINITY : best * width(o));
}

static double squared_error(const nb_observer *o, nb_value_range range, nb_range_codes codes)
{
    float scale;
    int zero;
    nb_range_scale(range, codes, &scale, &zero);
    const double w = width(o);
    double sum = 0;
    for (int i = 0; i < BINS; i++) {
        if (o->positive[i] + o->negative[i] == 0)
            continue;
        const double x = (i + 0.5) * w;
        const double up = nb_range_quantize(x, codes, scale, zero) - x;
        const double down = nb_range_quantize(-x, codes, scale, zero) + x;
        sum += (double)o->positive[i] * (up * up) + (double)o->negative[i] * (down * down);
    }
    return sum;
}

static nb_value_range by_mse(const nb_observer *o, nb_value_range whole, nb_range_codes codes)
{
    nb_value_range best = whole;
    double least = INFINITY;
    for (int j = 100; j >= 1; j--) {
        const double ratio = j / 100.0;
        const nb_value_range r = {.lo = (float)((double)whole.lo * ratio),
                                  .hi = (float)((double)whole.hi * ratio)};
        const double error = squared_error(o, r, codes);
        if (error < least) {
            least = error;
            best = r;
        }
    }
    return best;
}

nb_value_range nb_observer_range(const nb_observer *o, nb_observer_kind kind, nb_range_codes codes,
                                 double percentile)
{
    const bool symmetric = codes != NB_RANGE_INT8_ASYM;
    if (o->n == 0)
        return (nb_value_range){0};
    nb_value_range r = {.lo = o->least, .hi = o->greatest};
    if (kind == NB_OBSERVE_AVERAGE && o->n_batches > 0)
        r = (nb_value_range){.lo = (float)o->average_least, .hi = (float)o->average_greatest};
    if (symmetric) {
        const float a = -r.lo > r.hi ? -r.lo : r.hi;
        r = (nb_value_range){.lo = 0 - a, .hi = a};
    }
    if (kind == NB_OBSERVE_MINMAX || kind == NB_OBSERVE_AVERAGE || !o->has_exponent)
        return r;
    assert(!o->no_histogram);
    if (kind == NB_OBSERVE_PERCENTILE)
        return by_percentile(o, symmetric, percentile);
    return kind == NB_OBSERVE_ENTROPY ? by_entropy(o) : by_mse(o, r, codes);
}
