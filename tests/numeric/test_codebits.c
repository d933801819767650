/* Codes of a few bits: every width, place and length against the definition, bit by bit. */
#include "numeric/codebits.h"
#include "numeric/mat.h"

enum { N = 70 };

static int bit(const uint8_t *string, int64_t at)
{
    return string[at / 8] >> at % 8 & 1;
}

/* Any run of codes goes in and comes out, and no other bit changes. */
static void runs_are_the_definition(void **state)
{
    (void)state;
    for (int bits = 1; bits <= 8; bits++) {
        const size_t n_bytes = (size_t)nb_codebits_bytes(N, bits);
        for (int64_t at = 0; at < 20; at++) {
            for (int64_t n = 0; n <= 36; n++) {
                const int offset = n % 2 ? 1 << (bits - 1) : 0;
                uint8_t *string = guarded_alloc(n_bytes, 0);
                uint8_t *before = guarded_alloc(n_bytes, 0);
                int8_t code[36], back[37];
                for (size_t i = 0; i < n_bytes; i++)
                    before[i] = string[i] = (uint8_t)test_random_u32((uint64_t)bits, i);
                for (int64_t i = 0; i < n; i++)
                    code[i] = (int8_t)((int)(test_random_u32(9, (uint64_t)(at * 64 + i)) &
                                             ((1u << bits) - 1)) -
                                       offset);
                nb_codebits_put(string, bits, at, code, n, offset);
                for (int64_t b = 0; b < 8 * (int64_t)n_bytes; b++) {
                    const int64_t k = b / bits - at;
                    const int want =
                        k < 0 || k >= n ? bit(before, b) : (code[k] + offset) >> b % bits & 1;
                    if (bit(string, b) != want)
                        fail_msg("%d bits, %d codes at %d: bit %d", bits, (int)n, (int)at, (int)b);
                }
                memset(back, 0x33, sizeof back);
                nb_codebits_get(back, string, bits, at, n, offset);
                assert_memory_equal(back, code, (size_t)n);
                assert_int_equal(back[n], 0x33);
                guarded_free(string, n_bytes);
                guarded_free(before, n_bytes);
            }
        }
    }
}

/* The last code may end with the last byte: nothing behind it is read or written. */
static void the_last_byte_is_the_last(void **state)
{
    (void)state;
    for (int bits = 1; bits <= 8; bits++) {
        for (int64_t n = 1; n <= 40; n++) {
            const size_t n_bytes = (size_t)((n * bits + 7) / 8);
            uint8_t *string = malloc(n_bytes); /* the address sanitizer watches both ends */
            int8_t code[40], back[40];
            assert_non_null(string);
            memset(string, 0, n_bytes);
            for (int64_t i = 0; i < n; i++)
                code[i] = (int8_t)((i * 5 + 1) & ((1 << bits) - 1));
            nb_codebits_put(string, bits, 0, code, n, 0);
            nb_codebits_get(back, string, bits, 0, n, 0);
            assert_memory_equal(back, code, (size_t)n);
            free(string);
        }
    }
}

static void rests_are_cleared(void **state)
{
    (void)state;
    for (int bits = 1; bits <= 8; bits++) {
        for (int64_t n = 0; n <= 66; n++) {
            const size_t n_bytes = (size_t)nb_codebits_bytes(n, bits);
            uint8_t *string = guarded_alloc(n_bytes, 0xff);
            nb_codebits_clear_rest(string, bits, n);
            for (int64_t b = 0; b < 8 * (int64_t)n_bytes; b++)
                assert_int_equal(bit(string, b), b < n * bits);
            guarded_free(string, n_bytes);
        }
    }
}

static void sizes(void **state)
{
    (void)state;
    for (int bits = 1; bits <= 8; bits++)
        for (int64_t n = 0; n < 200; n++)
            assert_int_equal(nb_codebits_bytes(n, bits), (n * bits + 31) / 32 * 4);
    assert_int_equal(nb_codebits_words(INT64_MAX, 4), INT64_MAX / 8 + 1);
    assert_int_equal(nb_codebits_bytes(INT64_MAX, 4), (INT64_MAX / 8 + 1) * 4);
    assert_true(nb_codebits_bytes(INT64_MAX, 8) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_are_the_definition),
        cmocka_unit_test(the_last_byte_is_the_last),
        cmocka_unit_test(rests_are_cleared),
        cmocka_unit_test(sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
