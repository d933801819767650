/* Rotary embeddings: the frequencies of every scaling rule against recorded ones, the tables
 * against libm, and the numbers that make no rotation. */
#include "support/golden.h"

#include "base/rng.h"
#include "model/rope.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_HALF 64

static nb_config config_of(int64_t dim, double base, nb_rope_type type)
{
    return (nb_config){.rot_dim = dim,
                       .head_dim = dim,
                       .n_ctx = 2048,
                       .rope = {.type = type,
                                .base = base,
                                .factor = 1,
                                .original_n_ctx = 2048,
                                .low_freq_factor = 1,
                                .high_freq_factor = 4,
                                .beta_fast = 32,
                                .beta_slow = 1,
                                .truncate = true}};
}

/* All golden frequencies lie within 1e-6 of ours, and so does the factor on cos and sin. */
static void check_golden(const nb_config *c, const float *factors, const json_t *want,
                         double want_factor)
{
    double theta[MAX_HALF], factor;
    nb_rope_frequencies(c, c->n_ctx, factors, theta, &factor);
    assert_int_equal(json_array_size(want), c->rot_dim / 2);
    for (int64_t i = 0; i < c->rot_dim / 2; i++) {
        const double w = golden_number(json_array_get(want, (size_t)i));
        if (!(fabs(theta[i] - w) <= 1e-6 * w))
            fail_msg("theta[%lld] is %.17g, not %.17g", (long long)i, theta[i], w);
    }
    if (!(fabs(factor - want_factor) <= 1e-6 * want_factor))
        fail_msg("the factor is %.17g, not %.17g", factor, want_factor);
}

static void frequencies_are_the_recorded_ones(void **state)
{
    (void)state;
    json_t *g = golden_load("rope.json");
    nb_config c = config_of(8, 10000, NB_ROPE_DEFAULT);
    check_golden(&c, NULL, golden_get(g, "default_dim8_theta10000"), 1);

    nb_config llama = config_of(128, 500000, NB_ROPE_LLAMA3);
    llama.rope.factor = 8;
    llama.rope.original_n_ctx = 8192;
    check_golden(&llama, NULL, golden_get(g, "llama31_inv_freq"), 1);

    nb_config qwen = config_of(128, 1e6, NB_ROPE_YARN);
    qwen.rope.factor = 4;
    qwen.rope.original_n_ctx = 32768;
    const json_t *y = golden_get(g, "yarn_qwen25_dim128_theta1e6_factor4_orig32768");
    check_golden(&qwen, NULL, golden_get(y, "inv_freq"),
                 golden_number(golden_get(y, "attention_factor")));

    nb_config oss = config_of(64, 150000, NB_ROPE_YARN);
    oss.rope.factor = 32;
    oss.rope.original_n_ctx = 4096;
    oss.rope.truncate = false;
    y = golden_get(g, "yarn_gptoss_dim64_theta150000_factor32_orig4096_truncate_false");
    check_golden(&oss, NULL, golden_get(y, "inv_freq"),
                 golden_number(golden_get(y, "attention_factor")));
    oss.rope.truncate = true; /* the switch does something */
    double cut[32], whole[32], factor;
    nb_rope_frequencies(&oss, 64, NULL, cut, &factor);
    oss.rope.truncate = false;
    nb_rope_frequencies(&oss, 64, NULL, whole, &factor);
    assert_memory_not_equal(cut, whole, sizeof cut);
    json_decref(g);
}

/* The divisors that GGUF files carry give llama3's frequencies. */
static void factors_of_a_gguf_file_are_llama3(void **state)
{
    (void)state;
    json_t *g = golden_load("rope.json");
    const json_t *f = golden_get(g, "llama31_gguf_rope_freqs_factors");
    float factors[MAX_HALF];
    for (size_t i = 0; i < MAX_HALF; i++)
        factors[i] = (float)golden_number(json_array_get(f, i));
    nb_config c = config_of(128, 500000, NB_ROPE_FACTORS);
    check_golden(&c, factors, golden_get(g, "llama31_inv_freq"), 1);
    json_decref(g);
}

static void linear_divides_every_frequency(void **state)
{
    (void)state;
    nb_config plain = config_of(64, 10000, NB_ROPE_DEFAULT);
    nb_config c = config_of(64, 10000, NB_ROPE_LINEAR);
    c.rope.factor = 2.5;
    double want[32], got[32], factor;
    nb_rope_frequencies(&plain, 2048, NULL, want, &factor);
    nb_rope_frequencies(&c, 2048, NULL, got, &factor);
    assert_true(factor == 1);
    for (int i = 0; i < 32; i++)
        assert_true(fabs(got[i] - want[i] / 2.5) <= 1e-15 * want[i]);
}

/* formats.md 11.3: another base beyond the trained length, and the same one up to it. */
static void dynamic_follows_the_length_fixed_at_load(void **state)
{
    (void)state;
    nb_config plain = config_of(64, 10000, NB_ROPE_DEFAULT);
    nb_config c = config_of(64, 10000, NB_ROPE_DYNAMIC);
    c.rope.factor = 2;
    double want[32], got[32], factor;
    nb_rope_frequencies(&plain, 2048, NULL, want, &factor);
    for (int64_t n = 1; n <= 2048; n += 2047) {
        nb_rope_frequencies(&c, n, NULL, got, &factor);
        assert_memory_equal(got, want, sizeof got);
    }
    nb_rope_frequencies(&c, 8192, NULL, got, &factor);
    const double base = 10000 * pow(2.0 * 8192 / 2048 - 1, 64.0 / 62);
    for (int i = 0; i < 32; i++)
        assert_true(fabs(got[i] - pow(base, -2.0 * i / 64)) <= 1e-12 * got[i]);
    assert_true(factor == 1);
}

static void yarn_takes_its_factor_from_where_it_is_given(void **state)
{
    (void)state;
    nb_config c = config_of(64, 10000, NB_ROPE_YARN);
    double theta[32], factor;
    c.rope.factor = 4;
    nb_rope_frequencies(&c, 2048, NULL, theta, &factor);
    assert_true(fabs(factor - (0.1 * log(4) + 1)) < 1e-12);
    c.rope.mscale = 0.707; /* alone it does nothing */
    nb_rope_frequencies(&c, 2048, NULL, theta, &factor);
    assert_true(fabs(factor - (0.1 * log(4) + 1)) < 1e-12);
    c.rope.mscale_all_dim = 2;
    nb_rope_frequencies(&c, 2048, NULL, theta, &factor);
    assert_true(fabs(factor - (0.0707 * log(4) + 1) / (0.2 * log(4) + 1)) < 1e-12);
    c.rope.attention_factor = 1.5;
    nb_rope_frequencies(&c, 2048, NULL, theta, &factor);
    assert_true(factor == 1.5);
    c.rope = config_of(64, 10000, NB_ROPE_YARN).rope; /* a factor of 1 changes nothing at all */
    nb_rope_frequencies(&c, 2048, NULL, theta, &factor);
    assert_true(factor == 1 && theta[0] == 1 && fabs(theta[16] - 0.01) < 1e-15);
}

static double between(double low, double high, uint64_t i)
{
    return low + (high - low) * nb_rng_uniform(8, 8, i);
}

/* formats.md 11.3 once more, in libm and from the text alone, on ranges that real models do not
 * reach: cut at both ends, empty, upside down. */
static void yarn_is_the_formula_wherever_it_is_defined(void **state)
{
    (void)state;
    int n_cut_low = 0, n_cut_high = 0, n_empty = 0;
    for (uint64_t k = 0; k < 2000; k++) {
        const int64_t d = 2 * (1 + (int64_t)between(0, 64, 16 * k));
        const double b = k % 3 == 0 ? between(1.5, 20, 16 * k + 1) : between(100, 1e6, 16 * k + 1);
        nb_config c = config_of(d, b, NB_ROPE_YARN);
        c.rope.factor = between(1, 40, 16 * k + 2);
        c.rope.original_n_ctx = (int64_t)between(1, 5000, 16 * k + 3);
        c.rope.beta_fast = between(0.1, 64, 16 * k + 4);
        c.rope.beta_slow = k % 5 == 0 ? c.rope.beta_fast : between(0.1, 4, 16 * k + 5);
        c.rope.truncate = k % 2 == 0;
        double theta[MAX_HALF], factor;
        nb_rope_frequencies(&c, 64, NULL, theta, &factor);

        const double n = (double)d, turns = (double)c.rope.original_n_ctx / (2 * acos(-1));
        double low = n * log(turns / c.rope.beta_fast) / (2 * log(b));
        double high = n * log(turns / c.rope.beta_slow) / (2 * log(b));
        if (c.rope.truncate) {
            low = floor(low);
            high = ceil(high);
        }
        n_cut_low += low < 0;
        n_cut_high += high > n - 1;
        low = fmax(low, 0);
        high = fmin(high, n - 1);
        n_empty += low == high;
        if (low == high)
            high += 0.001;
        for (int64_t i = 0; i < d / 2; i++) {
            const double r = fmin(fmax(((double)i - low) / (high - low), 0), 1);
            const double plain = pow(b, -2 * (double)i / n);
            const double want = plain / c.rope.factor * r + plain * (1 - r);
            if (!(fabs(theta[i] - want) <= 1e-9 * plain))
                fail_msg("case %d: theta[%lld] is %.17g, not %.17g", (int)k, (long long)i, theta[i],
                         want);
        }
    }
    assert_true(n_cut_low > 50 && n_cut_high > 100 && n_empty > 50);
}

/* Tables are correctly rounded but for the last bit of libm's doubles, far out too. */
static void tables_are_cos_and_sin_of_position_times_frequency(void **state)
{
    (void)state;
    nb_err err;
    nb_config c = config_of(64, 10000, NB_ROPE_YARN);
    c.rope.factor = 4;
    nb_rope_table t;
    assert_int_equal(nb_rope_table_init(&t, &c, 20000, NULL, &err), NB_OK);
    assert_int_equal(t.n_positions, 20000);
    assert_int_equal(t.half, 32);
    double theta[32], factor;
    nb_rope_frequencies(&c, 20000, NULL, theta, &factor);
    int64_t n = 0;
    for (int64_t p = 0; p < 20000; p += p < 100 ? 1 : 997) {
        for (int64_t i = 0; i < 32; i++, n++) {
            const double angle = (double)p * theta[i];
            const double co = cos(angle) * factor, si = sin(angle) * factor;
            assert_true(fabs((double)t.cos[p * 32 + i] - co) <= 0.5000001 * 0x1p-23 * fabs(co));
            assert_true(fabs((double)t.sin[p * 32 + i] - si) <= 0.5000001 * 0x1p-23 * fabs(si));
        }
    }
    assert_true(n > 3000);
    nb_rope_table_free(&t);
    assert_null(t.cos);
}

/* Each of these numbers is possible alone. */
static void numbers_that_make_no_rotation_are_refused(void **state)
{
    (void)state;
    nb_err err;
    const struct {
        nb_rope_type type;
        double base, factor, beta_fast;
        const char *message;
    } cases[] = {
        {NB_ROPE_DEFAULT, 1e-300, 1, 32,
         "RoPE turns dimension 1 by 2.37137e+09 a position, which over 64 positions is no angle"},
        {NB_ROPE_LINEAR, 10000, 1e-300, 32,
         "RoPE turns dimension 0 by 1e+300 a position, which over 64 positions is no angle"},
        {NB_ROPE_YARN, 1, 4, 32, "is no angle"},
        {NB_ROPE_YARN, 10000, 4, -1, "is no angle"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_config c = config_of(64, cases[i].base, cases[i].type);
        c.rope.factor = cases[i].factor;
        c.rope.beta_fast = cases[i].beta_fast;
        nb_rope_table t;
        assert_int_equal(nb_rope_table_init(&t, &c, 64, NULL, &err), NB_DATA);
        if (strstr(err.text, cases[i].message) == NULL)
            fail_msg("case %zu: %s", i, err.text);
        assert_null(t.cos);
        assert_int_equal(nb_alloc_live(), 0);
    }
    nb_config c = config_of(64, 10000, NB_ROPE_YARN);
    c.rope.attention_factor = 1e300;
    nb_rope_table t;
    assert_int_equal(nb_rope_table_init(&t, &c, 64, NULL, &err), NB_DATA);
    assert_string_equal(err.text, "the factor on RoPE's cos and sin is 1e+300");
    assert_int_equal(nb_alloc_live(), 0);
}

static void tables_survive_every_allocation_failure(void **state)
{
    (void)state;
    nb_err err;
    const nb_config c = config_of(64, 10000, NB_ROPE_DEFAULT);
    for (int64_t n = 1; n <= 4; n++) {
        nb_rope_table t;
        nb_alloc_fail_at(n);
        const nb_status s = nb_rope_table_init(&t, &c, 64, NULL, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(s, n == 4 ? NB_OK : NB_MEMORY);
        nb_rope_table_free(&t);
        assert_int_equal(nb_alloc_live(), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frequencies_are_the_recorded_ones),
        cmocka_unit_test(factors_of_a_gguf_file_are_llama3),
        cmocka_unit_test(linear_divides_every_frequency),
        cmocka_unit_test(dynamic_follows_the_length_fixed_at_load),
        cmocka_unit_test(yarn_takes_its_factor_from_where_it_is_given),
        cmocka_unit_test(yarn_is_the_formula_wherever_it_is_defined),
        cmocka_unit_test(tables_are_cos_and_sin_of_position_times_frequency),
        cmocka_unit_test(numbers_that_make_no_rotation_are_refused),
        cmocka_unit_test(tables_survive_every_allocation_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
