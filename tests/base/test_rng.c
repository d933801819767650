/* Philox4x32-10 against the published vectors, and a uniform number in its range. */
#include "support/golden.h"

#include "base/rng.h"

/* The known-answer vectors of the generator's authors (Random123, kat_vectors). */
static void philox_gives_the_published_numbers(void **state)
{
    (void)state;
    const struct {
        uint32_t counter[4], key[2], want[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const uint64_t index = (uint64_t)rows[i].counter[1] << 32 | rows[i].counter[0];
        const uint64_t stream = (uint64_t)rows[i].counter[3] << 32 | rows[i].counter[2];
        const uint64_t seed = (uint64_t)rows[i].key[1] << 32 | rows[i].key[0];
        uint32_t out[4];
        nb_philox(seed, stream, index, out);
        for (int k = 0; k < 4; k++)
            assert_int_equal(out[k], rows[i].want[k]);
    }
}

/* In [0, 1), never 1; the mean and the spread of 200,000 are within five standard errors. */
static void uniform_numbers_are_uniform(void **state)
{
    (void)state;
    enum { N = 200000 };
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < N; i++) {
        const double u = nb_rng_uniform(42, 7, i);
        assert_true(u >= 0.0 && u < 1.0);
        sum += u;
        squares += u * u;
    }
    const double mean = sum / N, variance = squares / N - mean * mean;
    assert_true(mean > 0.5 - 0.0033 && mean < 0.5 + 0.0033);
    assert_true(variance > 1.0 / 12 - 0.0009 && variance < 1.0 / 12 + 0.0009);
}

/* Seed, stream and index all matter, in both of their halves. */
static void every_argument_matters(void **state)
{
    (void)state;
    uint32_t first[4], other[4];
    nb_philox(1, 2, 3, first);
    const uint64_t rows[][3] = {{2, 2, 3},
                                {1, 3, 3},
                                {1, 2, 4},
                                {1 | 1ull << 32, 2, 3},
                                {1, 2 | 1ull << 32, 3},
                                {1, 2, 3 | 1ull << 32}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        nb_philox(rows[i][0], rows[i][1], rows[i][2], other);
        assert_memory_not_equal(first, other, sizeof first);
    }
    nb_philox(1, 2, 3, other);
    assert_memory_equal(first, other, sizeof first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_numbers),
        cmocka_unit_test(uniform_numbers_are_uniform),
        cmocka_unit_test(every_argument_matters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
