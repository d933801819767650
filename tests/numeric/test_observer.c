/* Observers: what is gathered does not depend on order or on calls, and each range is the one that
 * its definition gives, worked out here the slow way. */
#include "numeric/observer.h"

#include "base/rng.h"
#include "support/golden.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static nb_observer *fresh(void)
{
    nb_observer *o = calloc(1, sizeof *o);
    assert_non_null(o);
    return o;
}

static void add(nb_observer *o, const float *x, int64_t n)
{
    nb_err err = {0};
    assert_int_equal(nb_observer_add(o, x, n, &err), NB_OK);
}

static void expect_same(const nb_observer *a, const nb_observer *b)
{
    assert_int_equal(a->n, b->n);
    assert_true(a->least == b->least && a->greatest == b->greatest);
    assert_int_equal(a->has_exponent, b->has_exponent);
    assert_int_equal(a->exponent, b->exponent);
    assert_memory_equal(a->positive, b->positive, sizeof a->positive);
    assert_memory_equal(a->negative, b->negative, sizeof a->negative);
}

typedef enum { NORMAL, HEAVY, POSITIVE, WIDE, TINY, N_KINDS } kind;

/* Sums of uniforms; their quotients, which have no mean; one-sided; 60 binades; subnormals. */
static float *make(kind k, int64_t n, uint64_t seed)
{
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) {
        const uint64_t at = (uint64_t)i;
        double sum = 0;
        for (uint64_t j = 0; j < 6; j++)
            sum += nb_rng_uniform(seed, j, at) - 0.5;
        const double u = nb_rng_uniform(seed, 10, at);
        switch (k) {
        case HEAVY:
            x[i] = (float)(sum / (u + 1e-3));
            break;
        case POSITIVE:
            x[i] = (float)(sum * sum);
            break;
        case WIDE:
            x[i] = ldexpf((float)sum, (int)(60 * u) - 30);
            break;
        case TINY:
            x[i] = ldexpf((float)sum, -140);
            break;
        default:
            x[i] = (float)sum;
        }
    }
    return x;
}

/* ---- gathering ---- */

/* One call, calls of random length, another order, two observers merged: one and the same. */
static void cuts_and_order_do_not_matter(void **state)
{
    (void)state;
    const int64_t n = 20000;
    for (kind k = 0; k < N_KINDS; k++) {
        float *x = make(k, n, 1 + (uint64_t)k);
        nb_observer *whole = fresh(), *cut = fresh(), *back = fresh(), *half = fresh();
        add(whole, x, n);
        for (int64_t at = 0, i = 0; at < n; i++) {
            int64_t len = (int64_t)(nb_rng_uniform(5, 5, (uint64_t)i) * 300);
            len = len < n - at ? len : n - at;
            add(at < n / 3 ? half : cut, x + at, len);
            at += len;
        }
        for (int64_t i = n - 1; i >= 0; i--)
            add(back, x + i, 1);
        expect_same(whole, back);
        assert_true(half->n > 0 && cut->n > 0);
        nb_observer *other = fresh();
        *other = *half;
        nb_observer_merge(other, cut);
        nb_observer_merge(cut, half);
        expect_same(whole, cut);
        expect_same(whole, other);
        int64_t sum = 0;
        for (int i = 0; i < NB_OBSERVER_BINS; i++)
            sum += whole->positive[i] + whole->negative[i];
        assert_int_equal(sum, n);
        free(x);
        free(whole);
        free(cut);
        free(back);
        free(half);
        free(other);
    }
}

/* Every value lies in the bin that its definition says, and the top half of the bins is in use. */
static void bins_are_where_they_should_be(void **state)
{
    (void)state;
    for (kind k = 0; k < N_KINDS; k++) {
        const int64_t n = 3000;
        float *x = make(k, n, 11);
        nb_observer *o = fresh();
        int64_t positive[NB_OBSERVER_BINS] = {0}, negative[NB_OBSERVER_BINS] = {0};
        add(o, x, n);
        double most = 0;
        for (int64_t i = 0; i < n; i++)
            most = fabs((double)x[i]) > most ? fabs((double)x[i]) : most;
        double top = 0x1p-160;
        while (top <= most)
            top *= 2;
        for (int64_t i = 0; i < n; i++)
            (x[i] < 0 ? negative : positive)[(int)floor(fabs((double)x[i]) / top * 2048)]++;
        assert_memory_equal(o->positive, positive, sizeof positive);
        assert_memory_equal(o->negative, negative, sizeof negative);
        assert_true(o->exponent == (int)lrint(log2(top)));
        free(x);
        free(o);
    }
}

static void nonfinite_values_are_refused_whole(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        const float x[] = {5, -7, bad[i], 100};
        nb_observer *o = fresh(), *before = fresh();
        nb_err err = {0};
        add(o, x, 2);
        *before = *o;
        assert_int_equal(nb_observer_add(o, x, 4, &err), NB_DATA);
        assert_string_equal(err.text, "value 2 is not finite");
        assert_memory_equal(o, before, sizeof *o);
        free(o);
        free(before);
    }
}

/* ---- ranges ---- */

static void minmax_is_exact(void **state)
{
    (void)state;
    const float x[] = {0.5f, -3.25f, 2, 1e-30f};
    nb_observer *o = fresh();
    o->no_histogram = true;
    add(o, x, 4);
    nb_value_range r = nb_observer_range(o, NB_OBSERVE_MINMAX, NB_RANGE_INT8_ASYM, 0);
    assert_true(r.lo == -3.25f && r.hi == 2);
    r = nb_observer_range(o, NB_OBSERVE_MINMAX, NB_RANGE_INT8, 0);
    assert_true(r.lo == -3.25f && r.hi == 3.25f);
    free(o);
}

static void averages_move_by_the_momentum(void **state)
{
    (void)state;
    nb_observer *o = fresh();
    o->no_histogram = true;
    o->momentum = 0.25;
    const float x[] = {-1, 8, -5, 4, 2};
    add(o, x, 1);
    add(o, x + 1, 1);
    nb_observer_end_batch(o); /* [-1, 8] */
    nb_observer_end_batch(o); /* nothing came since */
    add(o, x + 2, 3);
    nb_observer_end_batch(o); /* [-5, 4] */
    assert_int_equal(o->n_batches, 2);
    const nb_value_range r = nb_observer_range(o, NB_OBSERVE_AVERAGE, NB_RANGE_INT8_ASYM, 0);
    assert_true(r.lo == -2 && r.hi == 7);
    /* What is merged belongs to the batch that is open. */
    nb_observer *part = fresh();
    part->no_histogram = true;
    const float y[] = {-6, 3};
    add(part, y, 2);
    add(o, &y[1], 1);
    nb_observer_merge(o, part);
    nb_observer_end_batch(o); /* [-6, 3] */
    const nb_value_range merged = nb_observer_range(o, NB_OBSERVE_AVERAGE, NB_RANGE_INT8_ASYM, 0);
    assert_true(merged.lo == -3 && merged.hi == 6);
    free(part);
    free(o);
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Within one bin of the exact quantile, and never inside of it. */
static void percentiles_are_within_a_bin(void **state)
{
    (void)state;
    static const double percents[] = {50, 90, 99, 99.9, 99.99, 100, 0.01};
    const int64_t n = 9973;
    for (kind k = 0; k < N_KINDS; k++) {
        float *x = make(k, n, 21);
        nb_observer *o = fresh();
        add(o, x, n);
        const double bin = ldexp(1, o->exponent - 11);
        float *a = malloc((size_t)n * sizeof *a);
        assert_non_null(a);
        for (int64_t i = 0; i < n; i++)
            a[i] = fabsf(x[i]);
        qsort(x, (size_t)n, sizeof *x, by_value);
        qsort(a, (size_t)n, sizeof *a, by_value);
        for (size_t i = 0; i < sizeof percents / sizeof *percents; i++) {
            const int64_t rank = (int64_t)ceil(percents[i] / 100 * (double)n);
            nb_value_range r =
                nb_observer_range(o, NB_OBSERVE_PERCENTILE, NB_RANGE_INT8, percents[i]);
            assert_true(r.lo == -r.hi && r.hi >= a[rank - 1]);
            assert_true((double)r.hi <= (double)a[rank - 1] + bin && r.hi <= a[n - 1]);
            if (percents[i] < 50)
                continue; /* the two ends have passed each other */
            r = nb_observer_range(o, NB_OBSERVE_PERCENTILE, NB_RANGE_INT8_ASYM, percents[i]);
            assert_true(r.hi >= x[rank - 1] && (double)r.hi <= (double)x[rank - 1] + bin);
            assert_true(r.lo <= x[n - rank] && (double)r.lo >= (double)x[n - rank] - bin);
            assert_true(r.lo >= x[0] && r.hi <= x[n - 1]);
        }
        free(a);
        free(x);
        free(o);
    }
}

/* KL(P || Q) of the definition, in so many words. */
static double slow_divergence(const int64_t *bins, int i)
{
    double p[NB_OBSERVER_BINS] = {0}, q[NB_OBSERVER_BINS] = {0}, n_p = 0, n_q = 0, kl = 0;
    for (int b = 0; b < NB_OBSERVER_BINS; b++)
        p[b < i ? b : i - 1] += (double)bins[b];
    for (int level = 0; level < 128; level++) {
        const int begin = level * i / 128, end = (level + 1) * i / 128;
        double count = 0, filled = 0;
        for (int b = begin; b < end; b++) {
            count += (double)bins[b];
            filled += bins[b] > 0;
        }
        for (int b = begin; b < end; b++)
            q[b] = bins[b] > 0 ? count / filled : 0;
    }
    for (int b = 0; b < i; b++) {
        n_p += p[b];
        n_q += q[b];
    }
    for (int b = 0; b < i; b++) {
        if (p[b] > 0 && !(q[b] > 0))
            return INFINITY;
        if (p[b] > 0)
            kl += p[b] / n_p * log(p[b] / n_p / (q[b] / n_q));
    }
    return kl;
}

static void entropy_is_the_least_of_all(void **state)
{
    (void)state;
    for (kind k = 0; k < N_KINDS; k++) {
        const int64_t n = k == HEAVY ? 50000 : 4000;
        float *x = make(k, n, 31);
        nb_observer *o = fresh();
        int64_t bins[NB_OBSERVER_BINS];
        add(o, x, n);
        int n_used = 0, found = 0;
        for (int b = 0; b < NB_OBSERVER_BINS; b++) {
            bins[b] = o->positive[b] + o->negative[b];
            n_used = bins[b] > 0 ? b + 1 : n_used;
        }
        const nb_value_range r = nb_observer_range(o, NB_OBSERVE_ENTROPY, NB_RANGE_INT8, 0);
        const double edge = (double)r.hi / ldexp(1, o->exponent - 11);
        int got = (int)lrint(edge);
        const float most = -o->least > o->greatest ? -o->least : o->greatest;
        if (r.hi == most)
            got = n_used;
        else
            assert_true(edge == (double)got);
        double least = INFINITY;
        for (int i = 128; i <= n_used; i++) {
            const double d = slow_divergence(bins, i);
            least = d < least ? d : least;
            found += d < INFINITY;
        }
        assert_true(found > (k == WIDE ? 0 : 100)); /* few bins hold anything there */
        assert_true(r.lo == -r.hi && got >= 128 && got <= n_used);
        /* The sums of the two have n terms of up to log n each. */
        assert_true(slow_divergence(bins, got) <= least + 2048 * 20 * DBL_EPSILON);
        if (k == HEAVY)
            assert_true(got < n_used); /* else folding the tail was not tried at all */
        free(x);
        free(o);
    }
}

static double true_error(const float *x, int64_t n, nb_value_range r, nb_range_codes codes)
{
    float scale;
    int zero;
    double sum = 0;
    nb_range_scale(r, codes, &scale, &zero);
    for (int64_t i = 0; i < n; i++) {
        const double e = nb_range_quantize((double)x[i], codes, scale, zero) - (double)x[i];
        sum += e * e;
    }
    return sum;
}

static double bin_error(const nb_observer *o, nb_value_range r, nb_range_codes codes)
{
    float scale;
    int zero;
    double sum = 0;
    nb_range_scale(r, codes, &scale, &zero);
    for (int s = -1; s <= 1; s += 2)
        for (int b = 0; b < NB_OBSERVER_BINS; b++) {
            const double centre = s * (b + 0.5) * ldexp(1, o->exponent - 11);
            const double e = nb_range_quantize(centre, codes, scale, zero) - centre;
            sum += (double)(s < 0 ? o->negative : o->positive)[b] * e * e;
        }
    return sum;
}

/* Outliers on both sides: less error than with the whole range, counted on the values. */
static void mse_beats_minmax_on_outliers(void **state)
{
    (void)state;
    static const nb_range_codes all[] = {NB_RANGE_INT8, NB_RANGE_INT8_ASYM, NB_RANGE_INT4,
                                         NB_RANGE_E4M3, NB_RANGE_E5M2};
    const int64_t n = 120000;
    float *x = make(NORMAL, n, 41);
    nb_observer *o = fresh();
    x[n / 2] = 8.4f; /* twelve times the standard deviation */
    x[n / 3] = -8.4f;
    add(o, x, n);
    for (size_t c = 0; c < sizeof all / sizeof *all; c++) {
        const nb_value_range whole = nb_observer_range(o, NB_OBSERVE_MINMAX, all[c], 0);
        const nb_value_range r = nb_observer_range(o, NB_OBSERVE_MSE, all[c], 0);
        if (c <= 2) /* floats reach far by themselves */
            assert_true(true_error(x, n, r, all[c]) < 0.9 * true_error(x, n, whole, all[c]));
    }
    free(x);
    free(o);
}

/* Of the hundred ratios, the one with the least error over the bins. */
static void mse_is_the_least_of_all(void **state)
{
    (void)state;
    int n_shrunk = 0;
    for (kind k = 0; k < N_KINDS; k++)
        for (nb_range_codes c = 0; c <= NB_RANGE_E5M2; c++) {
            float *x = make(k, 500, 50 + (uint64_t)c);
            nb_observer *o = fresh();
            add(o, x, 500);
            const nb_value_range whole = nb_observer_range(o, NB_OBSERVE_MINMAX, c, 0);
            const nb_value_range r = nb_observer_range(o, NB_OBSERVE_MSE, c, 0);
            double least = INFINITY, got = INFINITY;
            for (int j = 100; j >= 1; j--) {
                const double ratio = j / 100.0;
                const nb_value_range tried = {.lo = (float)((double)whole.lo * ratio),
                                              .hi = (float)((double)whole.hi * ratio)};
                const double sum = bin_error(o, tried, c);
                if (tried.lo == r.lo && tried.hi == r.hi && sum < got)
                    got = sum;
                least = sum < least ? sum : least;
            }
            assert_true(got <= least * (1 + 1e-12));
            n_shrunk += r.hi < whole.hi;
            free(x);
            free(o);
        }
    assert_true(n_shrunk > 5);
}

/* ---- codes ---- */

/* Every value of the small floats, from its bits: the nearest one is found, ties go to the even. */
static void small_floats_round_to_the_nearest(void **state)
{
    (void)state;
    static const struct {
        nb_range_codes codes;
        int mantissa, bias, last;
    } types[] = {{NB_RANGE_E4M3, 3, 7, 0x7e}, {NB_RANGE_E5M2, 2, 15, 0x7b}};
    for (int t = 0; t < 2; t++) {
        double value[128];
        for (int code = 0; code <= types[t].last; code++) {
            const int m = code & ((1 << types[t].mantissa) - 1), e = code >> types[t].mantissa;
            value[code] =
                e == 0 ? ldexp(m, 1 - types[t].bias - types[t].mantissa)
                       : ldexp(m + (1 << types[t].mantissa), e - types[t].bias - types[t].mantissa);
        }
        for (int code = 0; code < types[t].last; code++) {
            const double a = value[code], b = value[code + 1], middle = (a + b) / 2;
            const nb_range_codes c = types[t].codes;
            assert_true(nb_range_quantize(a, c, 1, 0) == a);
            assert_true(nb_range_quantize(-b, c, 1, 0) == -b);
            assert_true(nb_range_quantize(middle, c, 1, 0) == (code % 2 == 0 ? a : b));
            assert_true(nb_range_quantize(middle * (1 - 1e-9), c, 1, 0) == a);
            assert_true(nb_range_quantize(-middle * (1 + 1e-9), c, 1, 0) == -b);
        }
        assert_true(nb_range_quantize(1e9, types[t].codes, 2, 0) == 2 * value[types[t].last]);
    }
}

static void scales_follow_their_definitions(void **state)
{
    (void)state;
    static const struct {
        nb_value_range range;
        nb_range_codes codes;
        float scale;
        int zero;
    } cases[] = {
        {{-2, 1}, NB_RANGE_INT8, 2.0f / 127, 0},
        {{-2, 1}, NB_RANGE_INT4, 2.0f / 7, 0},
        {{-2, 1}, NB_RANGE_E4M3, 2.0f / 448, 0},
        {{-2, 1}, NB_RANGE_E5M2, 2.0f / 57344, 0},
        {{-1, 1.55f}, NB_RANGE_INT8_ASYM, 0.01f, -28},
        {{0, 255}, NB_RANGE_INT8_ASYM, 1, -128},
        {{-255, 0}, NB_RANGE_INT8_ASYM, 1, 127},
        {{3, 255}, NB_RANGE_INT8_ASYM, 1, -128},
        {{-255, -3}, NB_RANGE_INT8_ASYM, 1, 127},
        {{0, 0}, NB_RANGE_INT8, 1, 0},
        {{0, 0}, NB_RANGE_INT8_ASYM, 1, 0},
        {{-1e-40f, 1e-41f}, NB_RANGE_E4M3, 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float scale;
        int zero;
        nb_range_scale(cases[i].range, cases[i].codes, &scale, &zero);
        assert_true(fabsf(scale - cases[i].scale) <= 1e-7f * cases[i].scale);
        assert_int_equal(zero, cases[i].zero);
        /* 0 is always a code, and no value inside the range is off by more than half a step. */
        assert_true(nb_range_quantize(0, cases[i].codes, scale, zero) == 0);
        if (cases[i].codes > NB_RANGE_INT4)
            continue;
        for (int k = 0; k <= 100; k++) {
            const double lo = (double)cases[i].range.lo, hi = (double)cases[i].range.hi;
            const double x = lo + (hi - lo) * k / 100;
            const double q = nb_range_quantize(x, cases[i].codes, scale, zero);
            /* rounding the zero point moves both ends by up to half a step more */
            assert_true(fabs(q - x) <= (double)scale * 1.0001);
        }
    }
}

/* All zero, all one value, one huge value among small ones, subnormals, nothing at all: every kind
 * of range is finite, holds lo <= hi, lies within what was seen, and gives a usable scale. */
static void odd_values_give_usable_ranges(void **state)
{
    (void)state;
    enum { N = 1000 };
    float x[N];
    for (int odd = 0; odd < 8; odd++) {
        nb_observer *o = fresh();
        for (int i = 0; i < N; i++) {
            const float small = (float)(nb_rng_uniform(1, 1, (uint64_t)i) - 0.5);
            const float values[] = {
                0,    -2.5f, i == 500 ? 3e38f : small,   1e-42f * (float)(i % 5),
                -0.f, 7,     i % 2 ? FLT_MAX : -FLT_MAX, 0};
            x[i] = values[odd];
        }
        if (odd < 7)
            add(o, x, N);
        nb_observer_end_batch(o);
        for (int k = 0; nb_observer_names[k] != NULL; k++)
            for (int c = 0; c <= NB_RANGE_E5M2; c++) {
                const nb_value_range r =
                    nb_observer_range(o, (nb_observer_kind)k, (nb_range_codes)c, 0);
                float scale;
                int zero;
                assert_true(isfinite(r.lo) && isfinite(r.hi) && r.lo <= r.hi);
                const float most = fmaxf(-o->least, o->greatest);
                assert_true(r.hi <= most && r.lo >= -most);
                assert_true(!signbit(r.hi) || r.hi < 0);
                nb_range_scale(r, (nb_range_codes)c, &scale, &zero);
                assert_true(isfinite(scale) && scale > 0);
                assert_true(zero >= -128 && zero <= 127);
            }
        free(o);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuts_and_order_do_not_matter),
        cmocka_unit_test(bins_are_where_they_should_be),
        cmocka_unit_test(nonfinite_values_are_refused_whole),
        cmocka_unit_test(minmax_is_exact),
        cmocka_unit_test(averages_move_by_the_momentum),
        cmocka_unit_test(percentiles_are_within_a_bin),
        cmocka_unit_test(entropy_is_the_least_of_all),
        cmocka_unit_test(mse_beats_minmax_on_outliers),
        cmocka_unit_test(mse_is_the_least_of_all),
        cmocka_unit_test(small_floats_round_to_the_nearest),
        cmocka_unit_test(scales_follow_their_definitions),
        cmocka_unit_test(odd_values_give_usable_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
