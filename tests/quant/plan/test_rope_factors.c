/* Llama 3's RoPE scaling, as parameters and as a tensor. */
#include "quant/plan/rope_factors.h"

#include "support/golden.h"

#include <math.h>

static nb_config llama(double base, double factor, int64_t original, int64_t rot_dim)
{
    return (nb_config){.rot_dim = rot_dim,
                       .head_dim = rot_dim,
                       .n_ctx = 131072,
                       .rope = {.type = NB_ROPE_LLAMA3,
                                .base = base,
                                .factor = factor,
                                .original_n_ctx = original,
                                .low_freq_factor = 1,
                                .high_freq_factor = 4}};
}

/* formats.md 11.3: the divisors of Llama 3.1 are 1 at 28, 1.2074838... at 29, 8 from 35 on. */
static void factors_of_llama_3_1(void **state)
{
    (void)state;
    float f[64];
    double scratch[128];
    const nb_config c = llama(500000, 8, 8192, 128);
    nb_rope_factors_of(&c, f, scratch);
    for (int i = 0; i <= 28; i++)
        assert_true(f[i] == 1);
    assert_true(fabs((double)f[29] - 1.207483871283662) < 1e-6);
    for (int i = 29; i < 35; i++)
        assert_true(f[i] > 1 && f[i] < 8 && f[i] < f[i + 1]);
    for (int i = 35; i < 64; i++)
        assert_true(fabsf(f[i] - 8) < 1e-5f);
}

static void the_name_of_factors(void **state)
{
    (void)state;
    static const struct {
        double base, factor;
        int64_t original, rot_dim;
    } cases[] = {{500000, 8, 8192, 128},
                 {500000, 32, 8192, 64},
                 {500000, 16, 4096, 128},
                 {500000, 2.5, 16384, 96}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float f[64];
        double scratch[128];
        const nb_config c =
            llama(cases[i].base, cases[i].factor, cases[i].original, cases[i].rot_dim);
        nb_rope_factors_of(&c, f, scratch);
        nb_config found = c;
        found.rope = (nb_rope){.type = NB_ROPE_FACTORS, .base = cases[i].base};
        assert_true(nb_rope_factors_name(&found, f, scratch));
        assert_int_equal(found.rope.type, NB_ROPE_LLAMA3);
        assert_true(found.rope.factor == cases[i].factor);
        assert_int_equal(found.rope.original_n_ctx, cases[i].original);
        assert_true(found.rope.low_freq_factor == 1 && found.rope.high_freq_factor == 4);
        /* Off by one part in a thousand in one place: not these. */
        const int half = (int)cases[i].rot_dim / 2;
        for (int k = 0; k < half; k += half / 4) {
            const float was = f[k];
            f[k] *= 1.001f;
            found.rope.type = NB_ROPE_FACTORS;
            assert_false(nb_rope_factors_name(&found, f, scratch));
            assert_int_equal(found.rope.type, NB_ROPE_FACTORS);
            f[k] = was;
        }
    }
}

static void no_factors_at_all(void **state)
{
    (void)state;
    static const float lasts[] = {0, -8, 0.5f, INFINITY, NAN, 8};
    for (size_t i = 0; i < sizeof lasts / sizeof *lasts; i++) {
        float f[64];
        double scratch[128];
        for (int k = 0; k < 64; k++)
            f[k] = lasts[i];
        nb_config c = llama(500000, 8, 8192, 128);
        c.rope.type = NB_ROPE_FACTORS;
        assert_false(nb_rope_factors_name(&c, f, scratch));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(factors_of_llama_3_1),
        cmocka_unit_test(the_name_of_factors),
        cmocka_unit_test(no_factors_at_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
