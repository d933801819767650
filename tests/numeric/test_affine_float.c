/* Float zero points: values are scale * (u - zero), rounded once; what the encoder chooses is
 * finite and near for whatever it is given; and what was stored can be stored again. */
#include "numeric/mat.h"

#include "numeric/affine.h"

#include <float.h>

static const nb_format *const FORMATS[] = {&nb_format_int8, &nb_format_int4, &nb_format_int3,
                                           &nb_format_int2};
enum { N_FORMATS = 4, COLS = 192, GROUP_SIZE = 32 };

static int code_at(const nb_mat *m, int64_t r, int64_t c)
{
    const uint8_t *row = nb_mat_row(m, r);
    if (m->fmt == &nb_format_int8)
        return row[c] ^ 0x80;
    int u = 0; /* bit by bit, as the layout is defined */
    for (int b = 0; b < m->fmt->bits; b++) {
        const int64_t at = c * m->fmt->bits + b;
        u |= (row[at / 8] >> at % 8 & 1) << b;
    }
    return u;
}

/* Whatever 16 bits a file has there, as long as they are numbers: the product of scale and zero
 * point is exact, so one rounding is all that there is. In binary64 nothing is lost when the
 * difference of u and zero is exact, which here it is. */
static void values_are_rounded_once(void **state)
{
    (void)state;
    float y[COLS];
    int64_t n_normal = 0;
    for (int f = 0; f < N_FORMATS; f++) {
        for (int type = NB_F16; type <= NB_BF16; type++) {
            nb_mat m = test_mat_float_zeros(FORMATS[f], 1, COLS, GROUP_SIZE, (nb_float_type)type);
            for (uint64_t seed = 0; seed < 200; seed++) {
                test_random_bytes(m.codes, (size_t)m.row_bytes, 3 * seed);
                test_random_bytes(m.scales, 2 * test_mat_n_params(&m), 3 * seed + 1);
                for (size_t g = 0; g < test_mat_n_params(&m); g++)
                    nb_float_put(m.float_zeros, m.scale_type, (int64_t)g,
                                 ldexpf((float)(test_random_u32(3 * seed + 2, g) % 4096) - 2048,
                                        -(int)(seed % 8)));
                m.fmt->decode_row(&m, 0, y);
                for (int64_t c = 0; c < COLS; c++) {
                    const int64_t g = c / GROUP_SIZE;
                    const double s = (double)nb_float_get(m.scales, m.scale_type, g);
                    const double z = (double)nb_float_get(m.float_zeros, m.scale_type, g);
                    if (!(fabs(s * z) <= (double)FLT_MAX) || fabs(s) < 0x1p-110)
                        continue; /* NaN, or a product that is no binary32 */
                    const float want = (float)(s * ((double)code_at(&m, 0, c) - z));
                    if (want != y[c])
                        fail_msg("%s: %a * (%d - %a) is %a, decoded %a", m.fmt->name, s,
                                 code_at(&m, 0, c), z, (double)want, (double)y[c]);
                    n_normal++;
                }
            }
            test_mat_free(&m);
        }
    }
    assert_true(n_normal > 4 * 2 * 200 * COLS / 2);
}

/* Half a step of the scale, and what rounding the zero point moves: at most half a step, because
 * its own are never more than 1 apart; and for groups as wide as they are far from 0, much less. */
static void codes_are_near(void **state)
{
    (void)state;
    float x[COLS], y[COLS];
    for (int f = 0; f < N_FORMATS; f++) {
        for (int type = NB_F32; type <= NB_BF16; type++) {
            nb_mat m = test_mat_float_zeros(FORMATS[f], 1, COLS, GROUP_SIZE, (nb_float_type)type);
            for (uint64_t seed = 0; seed < 60; seed++) {
                test_random_weights(x, COLS, 0.03, 0.02, seed);
                for (int64_t c = 0; c < COLS; c++)
                    x[c] += (float)(c / GROUP_SIZE) * (seed % 3 == 0 ? 3.0f : 0.02f);
                m.fmt->encode_row(&m, 0, x);
                m.fmt->decode_row(&m, 0, y);
                for (int64_t c = 0; c < COLS; c++) {
                    const double s = (double)nb_float_get(m.scales, m.scale_type, c / GROUP_SIZE);
                    const double e = fabs((double)x[c] - (double)y[c]);
                    const double top = (double)(1 << m.fmt->bits);
                    /* rounding the scale moves the last code by top / 2^8 of a step */
                    assert_true(e <= s * (1.01 + top * 0x1p-8));
                }
            }
            test_mat_free(&m);
        }
    }
}

/* Zeros stay zeros, and equal values are kept as well as the type of the scale keeps a number. */
static void groups_of_one_value(void **state)
{
    (void)state;
    static const float values[] = {0.0f, -0.0f, 1.0f, -0.37f, 3e-5f, 1e4f, -2.5e-3f};
    float x[COLS], y[COLS];
    for (int f = 0; f < N_FORMATS; f++) {
        for (int type = NB_F32; type <= NB_BF16; type++) {
            nb_mat m = test_mat_float_zeros(FORMATS[f], 1, COLS, GROUP_SIZE, (nb_float_type)type);
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                for (int64_t c = 0; c < COLS; c++)
                    x[c] = values[v];
                m.fmt->encode_row(&m, 0, x);
                m.fmt->decode_row(&m, 0, y);
                /* A scale of F16 that is a subnormal has a step of 2^-24 only. */
                const double slack = type == NB_F16 ? 0x1p-13 : 0;
                for (int64_t c = 0; c < COLS; c++)
                    assert_true(fabs((double)y[c] - (double)x[c]) <=
                                fabs((double)x[c]) * 0x1p-7 + slack);
                if (values[v] == 0)
                    for (int64_t c = 0; c < COLS; c++)
                        assert_true(y[c] == 0);
            }
            test_mat_free(&m);
        }
    }
}

/* Finite weights become finite values, up to the last number of binary32 and down to the first. */
static void extremes_stay_finite(void **state)
{
    (void)state;
    static const float ends[] = {FLT_MAX,    -FLT_MAX, 0x1.fep127f, -3e38f, 1e30f, 0x1p-149f,
                                 -0x1p-126f, 65504.0f, 70000.0f,    0.0f,   -1.0f, 3.39e38f};
    enum { N = sizeof ends / sizeof *ends };
    float x[COLS], y[COLS];
    for (int f = 0; f < N_FORMATS; f++) {
        for (int type = NB_F32; type <= NB_BF16; type++) {
            nb_mat m = test_mat_float_zeros(FORMATS[f], 1, COLS, GROUP_SIZE, (nb_float_type)type);
            for (int a = 0; a < N; a++) {
                for (int b = 0; b < N; b++) {
                    for (int64_t c = 0; c < COLS; c++)
                        x[c] = c % 3 == 0 ? ends[a] : c % 3 == 1 ? ends[b] : 0.5f * ends[a];
                    m.fmt->encode_row(&m, 0, x);
                    m.fmt->decode_row(&m, 0, y);
                    for (int64_t c = 0; c < COLS; c++)
                        if (!(fabsf(y[c]) <= FLT_MAX))
                            fail_msg("%s, %s: %g among %g and %g is decoded as %g", m.fmt->name,
                                     nb_float_name((nb_float_type)type), (double)x[c],
                                     (double)ends[a], (double)ends[b], (double)y[c]);
                }
            }
            test_mat_free(&m);
        }
    }
}

/* Learners store a scale and an offset, read them, and store them again: that must not drift. */
static void what_was_stored_is_stored_again(void **state)
{
    (void)state;
    for (int type = NB_F16; type <= NB_BF16; type++) {
        nb_mat m = test_mat_float_zeros(&nb_format_int4, 1, COLS, GROUP_SIZE, (nb_float_type)type);
        for (uint64_t i = 0; i < 4000; i++) {
            const double scale = ldexp(nb_rng_uniform(1, 1, i) + 0.5, (int)(i % 20) - 15);
            const double offset = (nb_rng_uniform(1, 2, i) - 0.7) * 20 * scale;
            assert_true(nb_affine_float_put(&m, 0, i % 3 == 0 ? -scale : scale, offset));
            const float s = nb_float_get(m.scales, m.scale_type, 0);
            const float z = nb_float_get(m.float_zeros, m.scale_type, 0);
            const float stored = nb_affine_float_offset(&m, 0);
            assert_true(fabs((double)stored - offset) <= fabs(offset) * 0x1p-8 + scale * 0x1p-20);
            assert_true(nb_affine_float_put(&m, 0, (double)s, (double)stored));
            assert_true(nb_float_get(m.scales, m.scale_type, 0) == s);
            assert_true(nb_float_get(m.float_zeros, m.scale_type, 0) == z);
        }
        /* What cannot be stored leaves what is there. */
        const float s = nb_float_get(m.scales, m.scale_type, 0);
        static const struct {
            double scale, offset;
        } none[] = {{0, 1},        {1e-60, 1},   {NAN, 1},  {1, NAN},
                    {1, INFINITY}, {1e-7, 1e38}, {1, 3e38}, {0x1p127, -0x1p127 * 4}};
        for (size_t k = 0; k < sizeof none / sizeof *none; k++) {
            assert_false(nb_affine_float_put(&m, 0, none[k].scale, none[k].offset));
            assert_true(nb_float_get(m.scales, m.scale_type, 0) == s);
        }
        test_mat_free(&m);
    }
}

/* Codes at the stored width, and two numbers of 16 bits a group: 4.5 bits at 64 columns. */
static void sizes(void **state)
{
    (void)state;
    nb_mat m = test_mat_float_zeros(&nb_format_int4, 3, 128, 64, NB_BF16);
    assert_int_equal(8 * nb_mat_bytes(&m), 3 * 128 * 9 / 2);
    nb_mat_arrays arrays;
    nb_mat_list_arrays(&m, &arrays);
    assert_int_equal(arrays.n, 3);
    assert_ptr_equal(arrays.array[2].data, m.float_zeros);
    assert_int_equal(arrays.array[2].bytes, 12);
    test_mat_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_rounded_once),
        cmocka_unit_test(codes_are_near),
        cmocka_unit_test(groups_of_one_value),
        cmocka_unit_test(extremes_stay_finite),
        cmocka_unit_test(what_was_stored_is_stored_again),
        cmocka_unit_test(sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
