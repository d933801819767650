/* f32, f16 and bf16: every code, every rounding boundary, against a slow reference that knows only
 * the definition of a binary floating-point format. */
#include "numeric/mat.h"

/* The value of a code by definition, in binary64; infinity where the exponent is all ones. */
static double slow_decode(unsigned code, int exp_bits, int man_bits)
{
    const int bias = (1 << (exp_bits - 1)) - 1;
    const int e = (int)(code >> man_bits) & ((1 << exp_bits) - 1);
    const unsigned m = code & ((1u << man_bits) - 1);
    const double magnitude = e == 0 ? ldexp((double)m, 1 - bias - man_bits)
                                    : ldexp((double)(m + (1u << man_bits)), e - bias - man_bits);
    return code >> (exp_bits + man_bits) ? -magnitude : magnitude;
}

/* The nearest code of x >= 0, ties to the even one. The code after the largest finite one stands
 * for the number that would follow it: rounding there is rounding to infinity. */
static unsigned slow_encode(double x, int exp_bits, int man_bits)
{
    unsigned low = 0, high = ((1u << exp_bits) - 1) << man_bits;
    if (x >= slow_decode(high, exp_bits, man_bits))
        return high;
    while (high - low > 1) {
        const unsigned middle = (low + high) / 2;
        if (slow_decode(middle, exp_bits, man_bits) <= x)
            low = middle;
        else
            high = middle;
    }
    const double below = x - slow_decode(low, exp_bits, man_bits);
    const double above = slow_decode(high, exp_bits, man_bits) - x;
    return above < below || (above == below && high % 2 == 0) ? high : low;
}

typedef struct {
    int exp_bits, man_bits;
    uint16_t (*encode)(float);
    float (*decode)(uint16_t);
} small_float;

static const small_float F16 = {5, 10, nb_f16_from_f32, nb_f16_to_f32};
static const small_float BF16 = {8, 7, nb_bf16_from_f32, nb_bf16_to_f32};

/* All 65,536 codes: the right value, and the same code again. A NaN keeps sign and payload and is
 * quiet after one trip. */
static void every_code(const small_float *t)
{
    const unsigned inf = ((1u << t->exp_bits) - 1) << t->man_bits;
    const unsigned quiet = 1u << (t->man_bits - 1);
    for (unsigned code = 0; code < 65536; code++) {
        const float v = t->decode((uint16_t)code);
        const unsigned magnitude = code & 0x7fffu;
        if (magnitude > inf) {
            assert_true(isnan(v));
            assert_int_equal(t->encode(v), code | quiet);
            assert_int_equal(nb_f32_bits(v) >> 31, code >> 15);
            continue;
        }
        if (magnitude == inf)
            assert_true(isinf(v) && (v < 0) == (code >> 15 == 1));
        else
            assert_true((double)v == slow_decode(code, t->exp_bits, t->man_bits));
        assert_int_equal(nb_f32_bits(v) >> 31, code >> 15); /* the sign of zero too */
        assert_int_equal(t->encode(v), code);
    }
}

/* Between any two neighbours: the middle goes to the even one, its binary32 neighbours to the
 * nearer one. This includes subnormals, and the step from the largest number to infinity. */
static void every_boundary(const small_float *t)
{
    const unsigned inf = ((1u << t->exp_bits) - 1) << t->man_bits;
    for (unsigned code = 0; code < inf; code++) {
        const double low = slow_decode(code, t->exp_bits, t->man_bits);
        const double high = slow_decode(code + 1, t->exp_bits, t->man_bits);
        const float middle = (float)(low + (high - low) / 2);
        const float x[] = {nextafterf(middle, 0.0f), middle, nextafterf(middle, INFINITY),
                           nextafterf((float)low, INFINITY)};
        for (int i = 0; i < 4; i++) {
            const unsigned expected = slow_encode((double)x[i], t->exp_bits, t->man_bits);
            assert_int_equal(t->encode(x[i]), expected);
            assert_int_equal(t->encode(-x[i]), expected | 0x8000u);
        }
    }
    assert_int_equal(t->encode(INFINITY), inf);
    assert_int_equal(t->encode(-INFINITY), inf | 0x8000u);
}

static void f16_every_code(void **state)
{
    (void)state;
    every_code(&F16);
    /* The conversion instructions make a NaN quiet on the way up; so does this one. */
    for (unsigned code = 0x7c01; code < 0x8000; code++)
        assert_int_equal(nb_f32_bits(nb_f16_to_f32((uint16_t)code)), 0x7fc00000u | (code & 0x3ffu)
                                                                                       << 13);
}

static void f16_every_boundary(void **state)
{
    (void)state;
    every_boundary(&F16);
}

static void bf16_every_code(void **state)
{
    (void)state;
    every_code(&BF16);
}

static void bf16_every_boundary(void **state)
{
    (void)state;
    every_boundary(&BF16);
}

/* Any NaN of binary32 stays one: rounding its payload must not carry into infinity or zero. */
static void nan_stays_nan(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 1u << 16; i++) {
        const uint32_t payload = i < 1u << 15 ? i : test_random_u32(1, i) & 0x7fffffu;
        if (payload == 0)
            continue;
        for (uint32_t sign = 0; sign < 2; sign++) {
            const float v = nb_f32_from_bits(sign << 31 | 0x7f800000u | payload);
            const uint16_t h = nb_f16_from_f32(v), b = nb_bf16_from_f32(v);
            assert_true((h & 0x7fffu) > 0x7c00u && (h & 0x200u) != 0 && h >> 15 == sign);
            assert_true((b & 0x7fffu) > 0x7f80u && (b & 0x40u) != 0 && b >> 15 == sign);
        }
    }
}

static void random_floats_agree(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 200000; i++) {
        const uint32_t u = test_random_u32(2, i) & 0x7fffffffu;
        if (u >= 0x7f800000u)
            continue;
        const float x = nb_f32_from_bits(u);
        assert_int_equal(nb_f16_from_f32(x), slow_encode((double)x, 5, 10));
        assert_int_equal(nb_bf16_from_f32(x), slow_encode((double)x, 8, 7));
    }
}

static void golden_decode(const json_t *pairs, const small_float *t)
{
    assert_true(json_array_size(pairs) >= 9);
    for (size_t i = 0; i < json_array_size(pairs); i++) {
        const json_t *pair = json_array_get(pairs, i);
        const float v = t->decode((uint16_t)json_integer_value(json_array_get(pair, 0)));
        assert_true(same_float(v, (float)golden_number(json_array_get(pair, 1))));
    }
}

static void golden_encode(const json_t *pairs, const small_float *t)
{
    assert_true(json_array_size(pairs) >= 8);
    for (size_t i = 0; i < json_array_size(pairs); i++) {
        const json_t *pair = json_array_get(pairs, i);
        size_t n;
        uint8_t *bytes = hex_bytes(json_string_value(json_array_get(pair, 0)), &n);
        float x;
        assert_int_equal(n, sizeof x);
        memcpy(&x, bytes, sizeof x);
        free(bytes);
        assert_int_equal(t->encode(x), json_integer_value(json_array_get(pair, 1)));
    }
}

static void golden_vectors(void **state)
{
    (void)state;
    json_t *golden = golden_load("fp16_bf16.json");
    golden_decode(golden_get(golden, "fp16_decode"), &F16);
    golden_encode(golden_get(golden, "fp16_encode"), &F16);
    golden_decode(golden_get(golden, "bf16_decode"), &BF16);
    golden_encode(golden_get(golden, "bf16_encode"), &BF16);
    json_decref(golden);
}

/* Rows of every length, with any bits inside, are the conversions one by one: vector pieces and
 * their rest agree, neighbouring rows and the bytes behind are left alone. */
static void rows_are_values_one_by_one(void **state)
{
    (void)state;
    static const nb_format *const formats[] = {&nb_format_f32, &nb_format_f16, &nb_format_bf16};
    for (int f = 0; f < 3; f++)
        for (int64_t n = 0; n <= 100; n++) {
            const nb_float_type type = (nb_float_type)f;
            nb_mat m = test_mat_block(formats[f], 2, n);
            float *x = guarded_alloc((size_t)n * 4, 0), *y = guarded_alloc((size_t)n * 4, 0);
            test_random_bytes(x, (size_t)n * 4, (uint64_t)(1000 + n));
            formats[f]->encode_row(&m, 0, x);
            formats[f]->encode_row(&m, 1, x);
            for (int64_t i = 0; i < 2 * n; i++) {
                float one;
                nb_float_put(&one, type, 0, x[i % n]);
                assert_memory_equal((uint8_t *)m.codes + (size_t)i * nb_float_bytes(type), &one,
                                    nb_float_bytes(type));
            }
            test_random_bytes(m.codes, (size_t)(2 * m.row_bytes), (uint64_t)(2000 + n));
            for (int64_t r = 0; r < 2; r++) {
                formats[f]->decode_row(&m, r, y);
                for (int64_t c = 0; c < n; c++)
                    assert_int_equal(nb_f32_bits(y[c]),
                                     nb_f32_bits(nb_float_get(m.codes, type, r * n + c)));
            }
            guarded_free(x, (size_t)n * 4);
            guarded_free(y, (size_t)n * 4);
            test_mat_free(&m);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_every_code),  cmocka_unit_test(f16_every_boundary),
        cmocka_unit_test(bf16_every_code), cmocka_unit_test(bf16_every_boundary),
        cmocka_unit_test(nan_stays_nan),   cmocka_unit_test(random_floats_agree),
        cmocka_unit_test(golden_vectors),  cmocka_unit_test(rows_are_values_one_by_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
