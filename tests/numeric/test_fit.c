/* The searches themselves: against brute force where the groups are tiny, against sums in the
 * obvious order, and where the answer is known. */
#include "numeric/mat.h"

#include "numeric/fit.h"
#include "numeric/fit_scan.h"
#include "numeric/fit_super.h"

#include <float.h>

static nb_fit_data data_of(const float *w, const float *p, int64_t n)
{
    nb_fit_data d;
    nb_fit_data_init(&d, w, p, n, nb_fit_floor(p, n));
    return d;
}

static double importance_at(const nb_fit_data *d, int64_t i)
{
    return d->importance == NULL ? 1 : (double)d->importance[i] + d->floor;
}

/* The loss of a scale and an offset with the best codes. */
static double loss_of(const nb_fit_data *d, int top, double scale, double shift, double offset)
{
    double loss = 0;
    for (int64_t i = 0; i < d->n; i++) {
        const double x = (double)d->w[i];
        double u = scale != 0 ? rint((x - offset) / scale - shift) : 0;
        u = u < 0 ? 0 : u > top ? top : u;
        const double e = x - scale * (u + shift) - offset;
        loss += importance_at(d, i) * e * e;
    }
    return loss;
}

static double largest(const nb_fit_data *d)
{
    return fmax(fabs((double)d->min), fabs((double)d->max));
}

/* ---- data and scans ---- */

static void sums_of_the_data(void **state)
{
    (void)state;
    const float w[] = {1, -2, 0.5f, 4}, p[] = {1, 0, 2, 1};
    const nb_fit_data d = data_of(w, p, 4);
    assert_true(d.min == -2 && d.max == 4 && d.floor == 1e-6);
    assert_true(fabs(d.p - 4 - 4e-6) < 1e-12);
    assert_true(fabs(d.px - 6 - 3.5e-6) < 1e-12);
    assert_true(fabs(d.pxx - 17.5 - 21.25e-6) < 1e-12);
    const nb_fit_data plain = data_of(w, NULL, 4);
    assert_true(plain.p == 4 && plain.px == 3.5 && plain.pxx == 21.25);
}

/* NaNs are equal: which of them comes out of a sum is the processor's affair. */
static bool same_bits(double a, double b)
{
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

/* Any length, any number of maps: what the obvious loop gives, exactly where sums are exact. */
static void scans_are_sums(void **state)
{
    (void)state;
    float w[300], p[300];
    for (int n = 1; n <= 300; n += n < 40 ? 1 : 37) {
        for (int i = 0; i < n; i++) {
            w[i] = (float)((int)(test_random_u32((uint64_t)n, (uint64_t)i) % 201) - 100);
            p[i] = (float)(test_random_u32((uint64_t)n + 500, (uint64_t)i) % 8);
        }
        nb_fit_data d;
        nb_fit_data_init(&d, w, n % 3 == 0 ? NULL : p, n, 0);
        nb_fit_map map[5];
        nb_fit_sums sum[5];
        for (int m = 0; m < 5; m++)
            map[m] = (nb_fit_map){.inverse = m == 0 ? 0 : 0.3 * m - 1, .base = 3.25 * m};
        nb_fit_scan(&d, map, 5, 15, sum);
        for (int m = 0; m < 5; m++) {
            nb_fit_sums want = {0};
            for (int i = 0; i < n; i++) {
                const double v = (double)w[i] * map[m].inverse + map[m].base;
                const double u = rint(v < 0 ? 0 : v > 15 ? 15 : v), q = importance_at(&d, i);
                want.u += q * u;
                want.uu += q * u * u;
                want.xu += q * u * (double)w[i];
            }
            assert_true(sum[m].u == want.u && sum[m].uu == want.uu && sum[m].xu == want.xu);
        }
    }
}

/* Every variant that this machine can run gives the bits of the one in C, on what is ordinary and
 * on what is not: maps that overflow, that make no numbers, values that do. */
static void scans_are_the_same_with_all_vectors(void **state)
{
    (void)state;
    static const double odd[] = {0,         -0.0, 1e300,     -1e300, INFINITY,
                                 -INFINITY, NAN,  0x1p-1074, 7.5,    0.5};
    enum { N_ODD = sizeof odd / sizeof *odd, N_MAPS = N_ODD * N_ODD + 20 };
    nb_fit_map map[N_MAPS];
    for (int m = 0; m < N_MAPS; m++) {
        const uint32_t r = test_random_u32(77, (uint64_t)m);
        map[m] = m < N_ODD * N_ODD
                     ? (nb_fit_map){.inverse = odd[m / N_ODD], .base = odd[m % N_ODD]}
                     : (nb_fit_map){.inverse = (double)(r % 1000) * 0.01 - 5, .base = r % 17};
    }
    int n_variants = 0;
    for (; nb_fit_chunk_at(n_variants) != NULL; n_variants++) {
    }
    assert_true(n_variants > 0 && nb_fit_chunk_at(n_variants - 1) == nb_fit_chunk_c);
    for (int n = 0; n <= NB_FIT_CHUNK; n += NB_FIT_LANES) {
        nb_fit_chunk k = {.n = n};
        for (int i = 0; i < n; i++) {
            const uint32_t r = test_random_u32((uint64_t)n, (uint64_t)i);
            k.x[i] = r % 7 == 0 ? odd[r / 7 % N_ODD] : (double)(int32_t)r * 0x1p-28;
            k.p[i] = (double)(r >> 3 & 0xffff) * 0x1p-9;
            k.px[i] = k.p[i] * k.x[i];
        }
        nb_fit_sums want[N_MAPS], got[N_MAPS];
        memset(want, 0, sizeof want);
        nb_fit_chunk_c(&k, map, N_MAPS, 15, want);
        for (int v = 0; v < n_variants; v++) {
            memset(got, 0, sizeof got);
            nb_fit_chunk_at(v)(&k, map, N_MAPS, 15, got);
            for (int m = 0; m < N_MAPS; m++) {
                assert_true(same_bits(got[m].u, want[m].u));
                assert_true(same_bits(got[m].uu, want[m].uu));
                assert_true(same_bits(got[m].xu, want[m].xu));
            }
        }
    }
}

static void scales_as_they_are_stored(void **state)
{
    (void)state;
    assert_true(nb_fit_stored(NB_F16, 1e6) == 65504.0f);
    assert_true(nb_fit_stored(NB_F16, -1e300) == -65504.0f);
    assert_true(nb_fit_stored(NB_F16, 65519.9) == 65504.0f);
    assert_true(nb_fit_stored(NB_F16, 1e-9) == 0);
    assert_true(nb_fit_stored(NB_BF16, 1e300) == 0x1.fep127f);
    assert_true(nb_fit_stored(NB_BF16, -3.4e38) == -0x1.fep127f);
    assert_true(nb_fit_stored(NB_F32, -1e300) == -FLT_MAX);
    assert_true(nb_fit_stored(NB_F32, 0.1) == 0.1f);
    assert_true(nb_fit_stored(NB_BF16, 0.1) == 0x1.9ap-4f);
}

/* ---- against brute force ---- */

/* Groups of four: the scale found costs at most 1 % more than the best of 20,000 scales of either
 * sign (of what the group holds, where that is nearly nothing). */
static void tiny_groups_have_the_best_scale(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 150; seed++) {
        float w[4], p[4];
        test_random_weights(w, 4, 1, seed % 3 == 0 ? 0.3 : 0, seed);
        for (int i = 0; i < 4; i++)
            p[i] = (float)nb_rng_uniform(3, seed, (uint64_t)i);
        const nb_fit_data d = data_of(w, seed % 2 == 0 ? NULL : p, 4);
        const double full = 1.1 * largest(&d);
        double least = d.pxx;
        for (int k = -10000; k <= 10000; k++)
            least = fmin(least, loss_of(&d, 3, full * k / 10000, -2, 0));
        const double scale = (double)nb_fit_scale(&d, -2, 3, NB_F32);
        const double loss = loss_of(&d, 3, scale, -2, 0);
        if (!(loss <= 1.01 * least + 1e-4 * d.pxx))
            fail_msg("seed %d: scale %g costs %g of %g, the best one %g", (int)seed, scale, loss,
                     d.pxx, least);
    }
}

/* The same with a zero point: all zero points with 4,000 scales each. */
static void tiny_groups_have_the_best_zero(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        float w[4];
        test_random_weights(w, 4, 1, 0, seed + 1000);
        if (seed % 3 == 0)
            for (int i = 0; i < 4; i++)
                w[i] = fabsf(w[i]);
        const nb_fit_data d = data_of(w, NULL, 4);
        double least = d.pxx;
        for (int zero = 0; zero <= 3; zero++)
            for (int k = 1; k <= 4000; k++)
                least = fmin(least, loss_of(&d, 3, 1.1 * largest(&d) * k / 4000, -zero, 0));
        int zero;
        const double scale = (double)nb_fit_scale_zero(&d, 3, NB_F32, &zero);
        assert_in_range(zero, 0, 3);
        const double loss = loss_of(&d, 3, scale, -zero, 0);
        if (!(loss <= 1.01 * least + 2e-4 * d.pxx))
            fail_msg("seed %d: scale %g and zero %d cost %g of %g, the best ones %g", (int)seed,
                     scale, zero, loss, d.pxx, least);
    }
}

/* And with an offset: all pairs of 300 scales and 300 offsets. */
static void small_groups_have_a_good_offset(void **state)
{
    (void)state;
    double total = 0, best = 0;
    for (uint64_t seed = 0; seed < 12; seed++) {
        float w[16];
        const int n = 16, top = 7;
        test_random_weights(w, n, 1, 0, seed + 2000);
        const bool below = seed % 2 == 1;
        const nb_fit_data d = data_of(w, NULL, n);
        const double range = (double)d.max - (double)d.min;
        double least = d.pxx;
        for (int k = 1; k <= 300; k++)
            for (int j = 0; j < 300; j++) {
                const double offset = (double)d.min + range * (j - 50) / 300;
                if (!below || offset <= 0)
                    least = fmin(least, loss_of(&d, top, 1.3 * range / top * k / 300, 0, offset));
            }
        float offset;
        const double scale = (double)nb_fit_scale_offset(&d, top, NB_F32, below, &offset);
        assert_true(scale > 0 && (!below || offset <= 0));
        const double loss = loss_of(&d, top, scale, 0, (double)offset);
        total += loss;
        best += least;
        if (!(loss <= 1.3 * least))
            fail_msg("seed %d: %g u + %g costs %g of %g, the best ones %g", (int)seed, scale,
                     (double)offset, loss, d.pxx, least);
    }
    if (!(total <= 1.03 * best))
        fail_msg("%g, and %g at best", total, best);
}

/* Larger groups, more bits: near the best of 4,000 scales, as stored in 16 bits. */
static void groups_have_a_good_scale(void **state)
{
    (void)state;
    float w[64], p[64];
    for (uint64_t seed = 0; seed < 24; seed++) {
        const int bits = 2 + (int)(seed % 4), top = (1 << bits) - 1, lo = -(1 << (bits - 1));
        test_random_weights(w, 64, 0.03, seed % 2 == 0 ? 0.03 : 0, seed + 3000);
        for (int i = 0; i < 64; i++)
            p[i] = (float)exp(4 * nb_rng_uniform(4, seed, (uint64_t)i));
        const nb_fit_data d = data_of(w, seed % 3 == 0 ? p : NULL, 64);
        double least = d.pxx;
        for (int k = -2000; k <= 2000; k++)
            least = fmin(least, loss_of(&d, top, 1.2 * largest(&d) / -lo * 2 * k / 2000, lo, 0));
        const double scale = (double)nb_fit_scale(&d, lo, top, NB_F16);
        assert_true(scale == (double)nb_fit_stored(NB_F16, scale));
        assert_true(loss_of(&d, top, scale, lo, 0) <= 1.005 * least);
    }
}

/* ---- where the answer is known ---- */

/* Values that a grid holds exactly are found exactly, whatever its sign and its zero. */
static void what_is_on_a_grid_is_found(void **state)
{
    (void)state;
    float w[48];
    for (int sign = -1; sign <= 1; sign += 2) {
        const double s = sign * 0.0375;
        for (int i = 0; i < 48; i++)
            w[i] = (float)(s * (i % 16 - 8));
        const nb_fit_data d = data_of(w, NULL, 48);
        const double found = (double)nb_fit_scale(&d, -8, 15, NB_F32);
        assert_true(fabs(found - s) < 1e-7);
    }
    for (int z = 0; z <= 15; z++) {
        for (int i = 0; i < 48; i++)
            w[i] = 0.5f * (float)(i % 16 - z);
        const nb_fit_data d = data_of(w, NULL, 48);
        int zero;
        assert_true(nb_fit_scale_zero(&d, 15, NB_BF16, &zero) == 0.5f);
        assert_int_equal(zero, z);
    }
    for (int i = 0; i < 48; i++)
        w[i] = 3.25f + 0.125f * (float)(i % 16);
    const nb_fit_data d = data_of(w, NULL, 48);
    float offset;
    assert_true(nb_fit_scale_offset(&d, 15, NB_F16, false, &offset) == 0.125f);
    assert_true(offset == 3.25f);
}

/* An outlier that does not count is given up; one that counts is not. */
static void outliers_are_given_up_if_they_do_not_count(void **state)
{
    (void)state;
    float w[64], p[64];
    test_random_weights(w, 64, 0.02, 0, 4);
    w[11] = 3;
    for (int i = 0; i < 64; i++)
        p[i] = i == 11 ? 0 : 1;
    const nb_fit_data ignored = data_of(w, p, 64), counted = data_of(w, NULL, 64);
    assert_true(fabsf(nb_fit_scale(&ignored, -8, 15, NB_F16)) < 0.012f);
    assert_true(fabsf(nb_fit_scale(&counted, -8, 15, NB_F16)) > 0.3f);
    int zero;
    assert_true(nb_fit_scale_zero(&ignored, 15, NB_F16, &zero) < 0.02f);
    assert_true(nb_fit_scale_zero(&counted, 15, NB_F16, &zero) > 0.15f);
}

/* The one column that counts is met by a code as exactly as the type of the scale allows. */
static void one_column_is_met(void **state)
{
    (void)state;
    float w[32], p[32] = {0};
    for (uint64_t seed = 0; seed < 20; seed++) {
        test_random_weights(w, 32, 1, 0, seed + 60);
        memset(p, 0, sizeof p);
        p[seed] = 1;
        const nb_fit_data d = data_of(w, p, 32);
        const double s = (double)nb_fit_scale(&d, -8, 15, NB_F16);
        double u = rint((double)w[seed] / s);
        u = u < -8 ? -8 : u > 7 ? 7 : u;
        assert_true(fabs(s * u - (double)w[seed]) <= 2e-3 * fabs((double)w[seed]));
    }
}

static void nothing_to_find(void **state)
{
    (void)state;
    const float zero[32] = {0}, tiny[4] = {1e-40f, -1e-40f, 1e-41f, 0}, same[4] = {-2, -2, -2, -2};
    const float level[] = {-1, 0, 0.5f, 1};
    int z;
    float offset;
    const nb_fit_data none = data_of(zero, NULL, 32), small = data_of(tiny, NULL, 4);
    const nb_fit_data equal = data_of(same, NULL, 4);
    assert_true(nb_fit_scale(&none, -8, 15, NB_F32) == 0);
    assert_true(nb_fit_scale_zero(&none, 15, NB_F32, &z) == 0);
    assert_true(nb_fit_scale_offset(&none, 15, NB_F32, false, &offset) == 0);
    assert_true(nb_fit_scale_table(&none, level, 4, NB_F32) == 0);
    assert_true(nb_fit_scale(&small, -8, 15, NB_F16) == 0); /* no F16 but 0 is as small */
    assert_true(nb_fit_scale(&small, -8, 15, NB_F32) != 0);
    assert_true(nb_fit_scale_offset(&equal, 15, NB_F32, false, &offset) == 0);
    assert_true(fabsf(nb_fit_scale(&equal, -8, 15, NB_F32)) <= 2.0f);
}

/* ---- tables ---- */

static double table_loss(const nb_fit_data *d, const float *level, int n, double scale)
{
    double loss = 0;
    for (int64_t i = 0; i < d->n; i++) {
        double least = INFINITY;
        for (int l = 0; l < n; l++)
            least = fmin(least, fabs((double)d->w[i] - scale * (double)level[l]));
        loss += importance_at(d, i) * least * least;
    }
    return loss;
}

/* Few and many levels, lopsided and not: near the best of 2,000 scales of either sign. */
static void tables_have_a_good_scale(void **state)
{
    (void)state;
    static const float few[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                1,    13,   25,  38,  53,  69,  89,  113};
    float many[41], w[32];
    for (int i = 0; i < 41; i++)
        many[i] = (float)((i - 20) * abs(i - 20));
    double total = 0, best = 0;
    for (uint64_t seed = 0; seed < 12; seed++) {
        const float *level = seed % 2 == 0 ? few : many;
        const int n = seed % 2 == 0 ? 16 : 41;
        test_random_weights(w, 32, 0.5, 0.02, seed + 70);
        const nb_fit_data d = data_of(w, NULL, 32);
        double least = d.pxx;
        for (int k = -2000; k <= 2000; k++)
            least = fmin(least, table_loss(&d, level, n, 1.3 * largest(&d) / 113 * k / 2000));
        const float scale = nb_fit_scale_table(&d, level, n, NB_F16);
        const double loss = table_loss(&d, level, n, (double)scale);
        total += seed % 2 == 0 ? loss : 0;
        best += seed % 2 == 0 ? least : 0;
        if (!(loss <= 1.25 * least))
            fail_msg("seed %d: %g, and %g at best", (int)seed, loss, least);
    }
    assert_true(total <= 1.01 * best);
}

/* ---- super-blocks ---- */

static double super_loss(const nb_super *s, const nb_super_form *f, const float *w, const float *p)
{
    double loss = 0;
    for (int k = 0; k < f->n_groups; k++) {
        const int64_t len = f->group_len;
        nb_fit_data d;
        nb_fit_data_init(&d, w + k * len, p == NULL ? NULL : p + k * len, len, 0);
        assert_true(s->scale[k] <= f->parameter_top && s->min[k] <= f->parameter_top);
        loss += loss_of(&d, f->top, (double)s->d * s->scale[k], 0, -(double)s->dmin * s->min[k]);
    }
    return loss;
}

/* Close to what the groups could have each on its own, with parameters of any value. */
static void super_blocks_lose_little(void **state)
{
    (void)state;
    static const nb_super_form form = {8, 32, 15, 63}, small = {16, 16, 3, 15};
    float w[256], p[256];
    for (uint64_t seed = 0; seed < 24; seed++) {
        const nb_super_form *f = seed % 2 == 0 ? &form : &small;
        test_random_weights(w, 256, 0.02, f == &form ? 0.01 : 0, seed + 80);
        for (int i = 0; i < 256; i++) {
            p[i] = (float)exp(3 * nb_rng_uniform(8, seed, (uint64_t)i));
            w[i] *= f == &form && i < 64 ? 6.0f : 1;
        }
        const float *importance = seed % 4 < 2 ? NULL : p;
        double alone = 0;
        for (int k = 0; k < f->n_groups; k++) {
            nb_fit_data d;
            float offset;
            nb_fit_data_init(&d, w + k * f->group_len,
                             importance == NULL ? NULL : p + k * f->group_len, f->group_len, 0);
            const double scale = (double)nb_fit_scale_offset(&d, f->top, NB_F32, true, &offset);
            alone += loss_of(&d, f->top, scale, 0, (double)offset);
        }
        nb_super found, plain;
        nb_super_search(&found, f, w, importance);
        nb_super_extremes(&plain, f, w);
        const double loss = super_loss(&found, f, w, importance);
        const double most = seed % 2 == 0 ? 1.06 : 1.35; /* 4-bit integers are coarse */
        if (!(loss <= most * alone))
            fail_msg("seed %d: %g of what the groups need alone", (int)seed, loss / alone);
        assert_true(loss <= 0.95 * super_loss(&plain, f, w, importance));
    }
}

/* Values that multiples of d and dmin hold exactly: nothing is lost. */
static void super_blocks_on_a_grid(void **state)
{
    (void)state;
    static const nb_super_form form = {8, 32, 15, 63};
    float w[256];
    for (int i = 0; i < 256; i++)
        w[i] = 0.03125f * (float)((63 - 5 * (i / 32)) * (i % 16)) - 0.5f * (float)(63 - i / 32);
    nb_super s;
    nb_super_search(&s, &form, w, NULL);
    double power = 0;
    for (int i = 0; i < 256; i++)
        power += (double)w[i] * (double)w[i];
    assert_true(super_loss(&s, &form, w, NULL) < 1e-6 * power);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_of_the_data),
        cmocka_unit_test(scans_are_sums),
        cmocka_unit_test(scans_are_the_same_with_all_vectors),
        cmocka_unit_test(scales_as_they_are_stored),
        cmocka_unit_test(tiny_groups_have_the_best_scale),
        cmocka_unit_test(tiny_groups_have_the_best_zero),
        cmocka_unit_test(small_groups_have_a_good_offset),
        cmocka_unit_test(groups_have_a_good_scale),
        cmocka_unit_test(what_is_on_a_grid_is_found),
        cmocka_unit_test(outliers_are_given_up_if_they_do_not_count),
        cmocka_unit_test(one_column_is_met),
        cmocka_unit_test(nothing_to_find),
        cmocka_unit_test(tables_have_a_good_scale),
        cmocka_unit_test(super_blocks_lose_little),
        cmocka_unit_test(super_blocks_on_a_grid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
