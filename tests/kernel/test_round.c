/* FP8 activations: each group of a token becomes the numbers that its codes mean. */
#include "numeric/mat.h"

#include "kernel/gemm.h"

#include <float.h>

enum { COLS = 203 };

/* The rule of gemm.h, once more, one number at a time. */
static void slow_round(float *y, const float *x, int64_t n, int64_t group, float given)
{
    for (int64_t c = 0; c < n; c++) {
        float absmax = 0;
        bool bad = false;
        for (int64_t i = c / group * group; i < n && i < (c / group + 1) * group; i++) {
            bad = bad || !isfinite(x[i]);
            absmax = fabsf(x[i]) > absmax ? fabsf(x[i]) : absmax;
        }
        const float scale = given != 0 ? given : absmax / 448.0f;
        const float inverse = given != 0 ? 1.0f / given : 448.0f / absmax;
        y[c] = bad ? NAN
               : given == 0 && absmax < 0x1p-100f
                   ? 0
                   : nb_e4m3_to_f32(nb_e4m3_from_f32(x[c] * inverse)) * scale;
    }
}

static void every_group_by_its_own_scale(void **state)
{
    (void)state;
    static const int64_t lengths[] = {1, 31, 32, 33, 128, COLS};
    static const nb_xround how[] = {{.on = true},
                                    {.on = true, .group = 128},
                                    {.on = true, .group = 32},
                                    {.on = true, .group = 1},
                                    {.on = true, .scale = 0.01f},
                                    {.on = true, .group = 64, .scale = 0x1p-20f}};
    float x[COLS], want[COLS], got[COLS + 1];
    for (int kind = 0; kind < 4; kind++) {
        test_random_weights(x, COLS, kind == 1 ? 1e30 : kind == 2 ? 1e-38 : 2, 0.05, 31);
        for (int c = 0; kind == 3 && c < COLS; c++)
            x[c] = c % 2 == 0 ? 0.0f : -0.0f;
        for (size_t i = 0; i < 6 * 6; i++) {
            const int64_t n = lengths[i % 6];
            const nb_xround *h = &how[i / 6];
            got[n] = 12345;
            assert_true(nb_round_row(got, x, n, h));
            slow_round(want, x, n, h->group > 0 ? h->group : n, h->scale);
            for (int64_t c = 0; c < n; c++)
                if (nb_f32_bits(got[c]) != nb_f32_bits(want[c]))
                    fail_msg("kind %d, case %zu, column %lld: %a is not %a", kind, i, (long long)c,
                             (double)got[c], (double)want[c]);
            assert_true(got[n] == 12345);
            /* in place */
            memcpy(want, x, (size_t)n * sizeof *x);
            assert_true(nb_round_row(want, want, n, h));
            assert_memory_equal(want, got, (size_t)n * sizeof *x);
        }
    }
}

/* What is rounded is at most half a step away: 2^-4 of the number, or of the least normal one. */
static void rounding_is_near(void **state)
{
    (void)state;
    float x[COLS], y[COLS], most = 0;
    test_random_weights(x, COLS, 2, 0.05, 32);
    for (int c = 0; c < COLS; c++)
        most = fmaxf(most, fabsf(x[c]));
    assert_true(nb_round_row(y, x, COLS, &(nb_xround){.on = true}));
    for (int c = 0; c < COLS; c++) {
        const double step = fmax(fabs((double)x[c]), (double)most / 448 * 0x1p-6);
        assert_true(fabs((double)y[c] - (double)x[c]) <= step * 0x1p-4 * 1.0001);
    }
}

static void what_is_not_finite_spoils_its_group(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    float x[COLS], y[COLS];
    for (int i = 0; i < 3; i++) {
        for (int at = 0; at < COLS; at++) {
            const nb_xround how = {.on = true, .group = 64, .scale = at % 2 == 0 ? 0 : 0.5f};
            for (int c = 0; c < COLS; c++)
                x[c] = c == at ? bad[i] : 1;
            assert_false(nb_round_row(y, x, COLS, &how));
            for (int c = 0; c < COLS; c++)
                assert_int_equal(isnan(y[c]) != 0, c / 64 == at / 64);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_group_by_its_own_scale),
        cmocka_unit_test(rounding_is_near),
        cmocka_unit_test(what_is_not_finite_spoils_its_group),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
