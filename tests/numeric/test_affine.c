/* int8, int4, int3 and int2: the bytes of compressed-tensors, the rules for scale and zero point,
 * and the promises of an affine format on ordinary and on extreme data. */
#include "numeric/mat.h"

#include <float.h>

static const nb_format *const FORMATS[] = {&nb_format_int8, &nb_format_int4, &nb_format_int3,
                                           &nb_format_int2};
enum { N_FORMATS = 4 };

static int code_at(const nb_mat *m, int64_t r, int64_t c)
{
    const uint8_t *row = nb_mat_row(m, r);
    if (m->fmt == &nb_format_int8)
        return (int8_t)row[c];
    int u = 0; /* bit by bit, as the layout is defined */
    for (int b = 0; b < m->fmt->bits; b++) {
        const int64_t at = c * m->fmt->bits + b;
        u |= (row[at / 8] >> at % 8 & 1) << b;
    }
    return u - (1 << (m->fmt->bits - 1));
}

/* ---- recorded vectors ---- */

static void golden_entry(const json_t *golden, const char *name, const nb_format *fmt)
{
    const json_t *e = golden_get(golden, name), *q = golden_get(e, "q"), *w = golden_get(e, "W");
    const int64_t n_rows = json_integer_value(golden_get(e, "N"));
    const int64_t n_cols = json_integer_value(golden_get(e, "K"));
    const int64_t group_size = json_integer_value(golden_get(e, "group_size"));
    const json_t *zeros = json_object_get(e, "zero_point");
    nb_mat m = test_mat(fmt, n_rows, n_cols, group_size, NB_F16, zeros != NULL);
    size_t n;
    uint8_t *packed = golden_hex(e, "weight_packed", &n);
    assert_int_equal(n, n_rows * m.row_bytes);
    for (size_t i = 0; i < n; i++) /* 8 bits are in offset binary there, and signed here */
        ((uint8_t *)m.codes)[i] = fmt->bits == 8 ? packed[i] ^ 0x80 : packed[i];
    free(packed);
    uint8_t *scales = golden_hex(e, "weight_scale_f16", &n);
    assert_int_equal(n, test_mat_n_params(&m) * 2);
    memcpy(m.scales, scales, n);
    free(scales);
    const int64_t n_groups = nb_mat_n_groups(&m);
    for (size_t i = 0; m.zeros != NULL && i < test_mat_n_params(&m); i++)
        m.zeros[i] = (int8_t)json_integer_value(
            json_array_get(json_array_get(zeros, i / (size_t)n_groups), i % (size_t)n_groups));

    float *y = guarded_alloc((size_t)n_cols * 4, 0);
    int8_t *code = guarded_alloc((size_t)n_cols, 0);
    float *scale = guarded_alloc((size_t)n_groups * 4, 0);
    int16_t *zero = guarded_alloc((size_t)n_groups * 2, 0);
    const nb_int_row row = {.code = code, .scale = scale, .zero = zero};
    for (int64_t r = 0; r < n_rows; r++) {
        fmt->decode_row(&m, r, y);
        fmt->int_row(&m, r, &row);
        for (int64_t c = 0; c < n_cols; c++) {
            const size_t i = (size_t)r, j = (size_t)c;
            assert_true((double)y[c] == golden_number(json_array_get(json_array_get(w, i), j)));
            assert_int_equal(code[c], json_integer_value(json_array_get(json_array_get(q, i), j)));
        }
    }
    guarded_free(y, (size_t)n_cols * 4);
    guarded_free(code, (size_t)n_cols);
    guarded_free(scale, (size_t)n_groups * 4);
    guarded_free(zero, (size_t)n_groups * 2);
    test_mat_free(&m);
}

/* The packed words that compressed-tensors wrote mean the recorded codes and weights. */
static void golden_words_decode(void **state)
{
    (void)state;
    json_t *golden = golden_load("compressed_tensors.json");
    golden_entry(golden, "w4_sym", &nb_format_int4);
    golden_entry(golden, "w4_asym", &nb_format_int4);
    golden_entry(golden, "w4_oddcols", &nb_format_int4);
    golden_entry(golden, "w8_sym", &nb_format_int8);
    golden_entry(golden, "w3_sym_dense", &nb_format_int3);
    json_decref(golden);
    golden = golden_load("compressed_tensors_low.json");
    golden_entry(golden, "w3_sym", &nb_format_int3);
    golden_entry(golden, "w3_asym", &nb_format_int3);
    golden_entry(golden, "w2_sym", &nb_format_int2);
    golden_entry(golden, "w2_asym", &nb_format_int2);
    json_decref(golden);
}

/* Weights that are exactly scale * code pack into those words again: order, offset, and the zero
 * bits behind the last column. A group of 4 or 16 that holds -8 and 7 has amax = 8 s, which is
 * not the scale the file used, so the scales are fixed here by one more column: 7.5 s. */
static void encoding_packs_the_same_words(void **state)
{
    (void)state;
    enum { COLS = 21 };
    nb_mat m = test_mat(&nb_format_int4, 1, COLS, COLS, NB_F32, false);
    float x[COLS];
    const int code[COLS] = {-8, -7, -6, -5, -4, -3, -2, -1, 0,  1, 2,
                            3,  4,  5,  6,  7,  -8, 7,  0,  -1, 7};
    for (int c = 0; c < COLS; c++)
        x[c] = 0.5f * (float)code[c];
    for (int c = 0; c < COLS;
         c++) /* the ends lie at 7.5 steps and round to even: -8 and 8, cut to 7 */
        if (code[c] == -8 || code[c] == 7)
            x[c] = code[c] < 0 ? -3.75f : 3.75f;
    nb_format_int4.encode_row(&m, 0, x);
    static const uint8_t expected[] = {0x10, 0x32, 0x54, 0x76, 0x98, 0xba,
                                       0xdc, 0xfe, 0xf0, 0x78, 0x0f, 0x00};
    assert_int_equal(m.row_bytes, sizeof expected);
    assert_memory_equal(m.codes, expected, sizeof expected);
    assert_true(*(float *)m.scales == 0.5f);
    test_mat_free(&m);
}

/* All 256 bytes, so all pairs of nibbles, in every byte of a word, come apart and together. */
static void every_nibble_pair_round_trips(void **state)
{
    (void)state;
    for (int64_t at = 0; at < 20; at++)
        for (int byte = 0; byte < 256; byte++) {
            nb_mat m = test_mat(&nb_format_int4, 1, 40, 40, NB_F32, true);
            float y[40], *scale = m.scales;
            *scale = 1;
            m.zeros[0] = 0;
            memset(m.codes, 0x88, 20); /* zeros */
            uint8_t *codes = m.codes;
            codes[at] = (uint8_t)byte;
            nb_format_int4.decode_row(&m, 0, y);
            for (int64_t c = 0; c < 40; c++) {
                const int u = c / 2 != at ? 8 : c % 2 == 0 ? byte & 15 : byte >> 4;
                assert_true(y[c] == (float)(u - 8));
            }
            /* Put the range -8..7 into the padding's place, and the scale is 1 again. */
            nb_mat wide = test_mat(&nb_format_int4, 1, 42, 42, NB_F32, true);
            float x[42];
            memcpy(x, y, sizeof y);
            x[40] = -8;
            x[41] = 7;
            nb_format_int4.encode_row(&wide, 0, x);
            assert_true(*(float *)wide.scales == 1 && wide.zeros[0] == 0);
            assert_memory_equal(wide.codes, m.codes, 20);
            assert_int_equal(((uint8_t *)wide.codes)[20], 0xf0);
            test_mat_free(&wide);
            test_mat_free(&m);
        }
}

/* Every code of int8, under every zero point, means scale * (code - zero); and encodes to itself
 * when the range is the whole one. */
static void every_int8_code_and_zero(void **state)
{
    (void)state;
    float y[256], x[256];
    nb_mat m = test_mat(&nb_format_int8, 1, 256, 256, NB_BF16, true);
    for (int zero = -128; zero < 128; zero++) {
        nb_float_put(m.scales, NB_BF16, 0, 0.25f);
        m.zeros[0] = (int8_t)zero;
        for (int c = 0; c < 256; c++) {
            ((int8_t *)m.codes)[c] = (int8_t)(c - 128);
            x[c] = 0.25f * (float)(c - 128 - zero);
        }
        nb_format_int8.decode_row(&m, 0, y);
        assert_memory_equal(y, x, sizeof x);
        memset(m.codes, 0x33, 256);
        m.zeros[0] = 99;
        nb_format_int8.encode_row(&m, 0, x);
        assert_int_equal(m.zeros[0], zero);
        assert_true(nb_float_get(m.scales, NB_BF16, 0) == 0.25f);
        for (int c = 0; c < 256; c++)
            assert_int_equal(code_at(&m, 0, c), c - 128);
    }
    test_mat_free(&m);
}

/* ---- rules ---- */

/* w = [-1, 0.5, 0.25, 2]: asymmetric scale 0.2, zero 5 - 8, codes [0 7 6 15] - 8 (0.5 / 0.2 is a
 * tie that goes down to 2); symmetric scale 2 / 7.5. */
static void worked_example(void **state)
{
    (void)state;
    const float w[] = {-1, 0.5f, 0.25f, 2};
    nb_mat m = test_mat(&nb_format_int4, 1, 4, 4, NB_F32, true);
    nb_format_int4.encode_row(&m, 0, w);
    assert_true(*(float *)m.scales == 3.0f / 15.0f);
    assert_int_equal(m.zeros[0], -3);
    assert_memory_equal(m.codes, ((uint8_t[]){0x70, 0xf6, 0, 0}), 4);
    test_mat_free(&m);

    m = test_mat(&nb_format_int4, 1, 4, 4, NB_F32, false);
    nb_format_int4.encode_row(&m, 0, w);
    assert_true(*(float *)m.scales == 2.0f / 7.5f);
    assert_memory_equal(m.codes, ((uint8_t[]){0xa4, 0xf9, 0, 0}), 4); /* -4 2 1 7 */
    test_mat_free(&m);
}

/* What the rule says for one group, written down slowly. */
static void expect_group(const nb_mat *m, const float *x, int64_t g)
{
    const int qmin = -(1 << (m->fmt->bits - 1)), qmax = -qmin - 1;
    const int64_t begin = g * m->group_size;
    const int64_t end = begin + m->group_size < m->n_cols ? begin + m->group_size : m->n_cols;
    float min = 0, max = 0;
    for (int64_t c = begin; c < end; c++) {
        min = fminf(min, x[c]);
        max = fmaxf(max, x[c]);
    }
    float wanted = m->zeros == NULL ? fmaxf(-min, max) / ((float)(qmax - qmin) / 2)
                                    : (max - min) / (float)(qmax - qmin);
    nb_float_put(&wanted, m->scale_type, 0, wanted);
    const float s = nb_float_get(&wanted, m->scale_type, 0);
    assert_true(nb_float_get(m->scales, m->scale_type, g) == s);
    float z = 0;
    if (m->zeros != NULL) {
        z = fminf(fmaxf(rintf((float)qmin - min / s), (float)qmin), (float)qmax);
        assert_int_equal(m->zeros[g], (int)z);
    }
    for (int64_t c = begin; c < end; c++) {
        const float q = fminf(fmaxf(rintf(x[c] / s) + z, (float)qmin), (float)qmax);
        assert_int_equal(code_at(m, 0, c), (int)q);
    }
}

/* Scale, zero point and every code follow the rule, with the scale as it is stored: all types,
 * shapes with rests in every place, groups that end inside a byte. */
static void encoding_follows_the_rule(void **state)
{
    (void)state;
    static const struct {
        int64_t n_cols, group_size;
    } shapes[] = {{512, 32}, {512, 64},  {512, 128}, {512, 512}, {576, 64}, {100, 100},
                  {12, 4},   {105, 105}, {105, 35},  {105, 3},   {9, 1},    {33, 33}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int f = 0; f < N_FORMATS; f++)
            for (int type = 0; type < 3; type++)
                for (int asymmetric = 0; asymmetric < 2; asymmetric++) {
                    nb_mat m = test_mat(FORMATS[f], 1, shapes[s].n_cols, shapes[s].group_size,
                                        (nb_float_type)type, asymmetric);
                    float x[576];
                    test_random_weights(x, m.n_cols, 0.05, 0.01, 40 + s);
                    for (int64_t c = 0; s % 2 && c < m.n_cols; c++) /* ties, and one-sided groups */
                        x[c] = rintf(fabsf(x[c]) * 64) / 64 + 0x1p-10f;
                    FORMATS[f]->encode_row(&m, 0, x);
                    for (int64_t g = 0; g < nb_mat_n_groups(&m); g++)
                        expect_group(&m, x, g);
                    const uint8_t *row = m.codes; /* padding bits are 0 */
                    for (int64_t b = m.n_cols * m.fmt->bits; b < 8 * m.row_bytes; b++)
                        assert_int_equal(row[b / 8] >> b % 8 & 1, 0);
                    test_mat_free(&m);
                }
}

/* Zero is exactly zero in every group, wherever the range lies; all of a group's values within the
 * range of the codes are at most half a step off. */
static void zero_is_exact_and_errors_bounded(void **state)
{
    (void)state;
    double worst_of_all = 0;
    static const float offsets[] = {0, 0.3f, -0.3f, 5, -5, 1000, -1000};
    for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++)
        for (int f = 0; f < N_FORMATS; f++)
            for (int asymmetric = 0; asymmetric < 2; asymmetric++) {
                nb_mat m = test_mat(FORMATS[f], 1, 512, 64, NB_BF16, asymmetric);
                const int qmin = -(1 << (FORMATS[f]->bits - 1)), qmax = -qmin - 1;
                float x[512], y[512];
                double worst = 0;
                test_random_weights(x, 512, 0.05, 0.01, 60 + o);
                for (int c = 0; c < 512; c++)
                    x[c] = c % 64 == 17 ? 0.0f : x[c] + offsets[o];
                FORMATS[f]->encode_row(&m, 0, x);
                FORMATS[f]->decode_row(&m, 0, y);
                for (int c = 0; c < 512; c++) {
                    const double s = (double)nb_float_get(m.scales, NB_BF16, c / 64);
                    const int z = asymmetric ? m.zeros[c / 64] : 0;
                    if (c % 64 == 17)
                        assert_true(y[c] == 0);
                    if ((double)x[c] < s * (qmin - z - 0.5) || (double)x[c] > s * (qmax - z + 0.5))
                        continue; /* clipped: the stored scale was rounded down */
                    const double error = fabs((double)x[c] - (double)y[c]) / s;
                    worst = error > worst ? error : worst;
                }
                /* fl(x / s) and fl(s * q) may move a tie by as much as the codes are long */
                assert_true(worst <= 0.5 + 256 * 0x1p-23);
                worst_of_all = worst > worst_of_all ? worst : worst_of_all;
                test_mat_free(&m);
            }
    assert_true(worst_of_all > 0.49);
}

static double mean_square_error(const float *x, int64_t n_rows, int64_t n_cols, int64_t group_size,
                                const nb_format *fmt, bool asymmetric)
{
    nb_mat m = test_mat(fmt, n_rows, n_cols, group_size, NB_BF16, asymmetric);
    float *y = guarded_alloc((size_t)n_cols * 4, 0);
    double sum = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        fmt->encode_row(&m, r, x + r * n_cols);
        fmt->decode_row(&m, r, y);
        for (int64_t c = 0; c < n_cols; c++)
            sum += ((double)x[r * n_cols + c] - (double)y[c]) *
                   ((double)x[r * n_cols + c] - (double)y[c]);
    }
    guarded_free(y, (size_t)n_cols * 4);
    test_mat_free(&m);
    return sum / (double)(n_rows * n_cols);
}

/* Smaller groups lose less, eight bits lose less than four, and on one-sided data a zero point
 * helps: what the schemes are for. */
static void finer_is_better(void **state)
{
    (void)state;
    enum { ROWS = 8, COLS = 512 };
    static float x[ROWS * COLS];
    test_random_weights(x, ROWS * COLS, 0.05, 0.01, 80);
    for (int one_sided = 0; one_sided < 2; one_sided++) {
        for (int i = 0; one_sided && i < ROWS * COLS; i++)
            x[i] = fabsf(x[i]);
        for (int asymmetric = 0; asymmetric < 2; asymmetric++)
            for (int f = 0; f < N_FORMATS; f++) {
                const nb_format *fmt = FORMATS[f];
                const double channel = mean_square_error(x, ROWS, COLS, COLS, fmt, asymmetric);
                const double g128 = mean_square_error(x, ROWS, COLS, 128, fmt, asymmetric);
                const double g64 = mean_square_error(x, ROWS, COLS, 64, fmt, asymmetric);
                const double g32 = mean_square_error(x, ROWS, COLS, 32, fmt, asymmetric);
                assert_true(0 < g32 && g32 <= g64 && g64 <= g128 && g128 <= channel);
            }
        for (int g = 32; g <= COLS; g *= 2) {
            const double sym = mean_square_error(x, ROWS, COLS, g, &nb_format_int4, false);
            const double asym = mean_square_error(x, ROWS, COLS, g, &nb_format_int4, true);
            const double three = mean_square_error(x, ROWS, COLS, g, &nb_format_int3, false);
            assert_true(sym < three); /* not by a factor: outliers make most codes 0 */
            assert_true(three < mean_square_error(x, ROWS, COLS, g, &nb_format_int2, false));
            assert_true(mean_square_error(x, ROWS, COLS, g, &nb_format_int8, false) < sym / 100);
            if (one_sided)
                assert_true(asym < sym / 2);
        }
    }
}

/* ---- extreme data ---- */

static void expect_sensible(const float *x, int64_t n, const nb_format *fmt, nb_float_type type,
                            bool asymmetric)
{
    nb_mat m = test_mat(fmt, 1, n, n, type, asymmetric);
    float y[64], scratch[64];
    int64_t r, c;
    fmt->encode_row(&m, 0, x);
    const float s = nb_float_get(m.scales, type, 0);
    assert_true(s > 0 && s <= FLT_MAX);
    /* No coarser than the rule says: its 16-bit rounding, or the least number of the type. */
    static const float least[] = {0x1p-149f, 0x1p-24f, 0x1p-133f};
    double min = 0, max = 0; /* not by fmin and fmax, on which gcc 12 fails for 64-bit ARM */
    for (int64_t i = 0; i < n; i++) {
        min = (double)x[i] < min ? (double)x[i] : min;
        max = (double)x[i] > max ? (double)x[i] : max;
    }
    const double span = (double)(1 << fmt->bits) - 1;
    const double rule = asymmetric ? (max - min) / span : fmax(-min, max) / (span / 2);
    assert_true((double)s <= rule * 1.01 + (double)least[type]);
    if (nb_mat_find_nonfinite(&m, scratch, &r, &c))
        fail_msg("%s: column %lld became %g", fmt->name, (long long)c, (double)scratch[c]);
    fmt->decode_row(&m, 0, y);
    const int z = asymmetric ? m.zeros[0] : 0, qmin = -(1 << (fmt->bits - 1)), qmax = -qmin - 1;
    for (int64_t i = 0; i < n; i++) {
        /* Within the codes' range half a step; outside, the end of the range, less the few codes
         * whose value would not be finite. */
        const double step = (double)s, v = (double)x[i], lo = step * (qmin - z),
                     hi = step * (qmax - z);
        const double nearest = v < lo ? lo : v > hi ? hi : v;
        const double slack = fabs(nearest) > (double)FLT_MAX / 2 ? 1.01 : 0.501;
        if (fabs((double)y[i] - nearest) > slack * step)
            fail_msg("%s, %s%s: %g became %g under a scale of %g", fmt->name, nb_float_name(type),
                     asymmetric ? ", asymmetric" : "", v, (double)y[i], step);
        assert_true(v != 0 || y[i] == 0);
    }
    test_mat_free(&m);
}

/* From the smallest subnormal to the largest number, alone, with an outlier, with both signs:
 * scales that vanish or overflow in their stored type, ranges whose width is infinite. */
static void extremes_stay_finite(void **state)
{
    (void)state;
    enum { N = 64 };
    int n_cases = 0;
    for (int exponent = -149; exponent <= 128; exponent++)
        for (int kind = 0; kind < 6; kind++)
            for (int f = 0; f < N_FORMATS; f++)
                for (int type = 0; type < 3; type++)
                    for (int asymmetric = 0; asymmetric < 2; asymmetric++) {
                        const float top = exponent == 128 ? FLT_MAX : ldexpf(1, exponent);
                        float x[N];
                        for (int i = 0; i < N; i++) {
                            const float wave = (float)(i * 5 % N) / (N / 2) - 1;
                            x[i] = kind == 0   ? top * wave
                                   : kind == 1 ? (i == 40 ? top : wave * 0.01f)
                                   : kind == 2 ? top
                                   : kind == 3 ? -top
                                   : kind == 4 ? (i % 2 ? top : -top)
                                               : (i == 3 ? -top : 0.0f);
                        }
                        expect_sensible(x, N, FORMATS[f], (nb_float_type)type, asymmetric);
                        n_cases++;
                    }
    assert_int_equal(n_cases, 278 * 36 * N_FORMATS);
}

/* A group of zeros: codes that mean zero, and a scale no reader stumbles over. */
static void zeros_stay_zero(void **state)
{
    (void)state;
    const float x[40] = {0, -0.0f};
    static const float epsilon[] = {0x1p-23f, 0x1p-10f, 0x1p-7f};
    for (int f = 0; f < N_FORMATS; f++)
        for (int type = 0; type < 3; type++)
            for (int asymmetric = 0; asymmetric < 2; asymmetric++) {
                nb_mat m = test_mat(FORMATS[f], 1, 40, 40, (nb_float_type)type, asymmetric);
                float y[40];
                FORMATS[f]->encode_row(&m, 0, x);
                FORMATS[f]->decode_row(&m, 0, y);
                assert_true(nb_float_get(m.scales, m.scale_type, 0) == epsilon[type]);
                for (int c = 0; c < 40; c++)
                    assert_true(y[c] == 0);
                test_mat_free(&m);
            }
}

/* One row's encoding writes that row, its scales and its zero points, and nothing else. */
static void rows_do_not_touch_each_other(void **state)
{
    (void)state;
    enum { ROWS = 3, COLS = 44, GROUP = 22, N_GROUPS = 2 };
    float x[COLS];
    test_random_weights(x, COLS, 1, 0, 90);
    for (int f = 0; f < N_FORMATS; f++) {
        nb_mat m = test_mat(FORMATS[f], ROWS, COLS, GROUP, NB_BF16, true);
        FORMATS[f]->encode_row(&m, 1, x);
        for (int64_t i = 0; i < ROWS * m.row_bytes; i++)
            if (i / m.row_bytes != 1)
                assert_int_equal(((uint8_t *)m.codes)[i], 0x5a);
        for (int64_t i = 0; i < ROWS * N_GROUPS; i++)
            if (i / N_GROUPS != 1) {
                assert_int_equal(((uint16_t *)m.scales)[i], 0x5a5a);
                assert_int_equal(m.zeros[i], 0x5a);
            }
        test_mat_free(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_words_decode),
        cmocka_unit_test(encoding_packs_the_same_words),
        cmocka_unit_test(every_nibble_pair_round_trips),
        cmocka_unit_test(every_int8_code_and_zero),
        cmocka_unit_test(worked_example),
        cmocka_unit_test(encoding_follows_the_rule),
        cmocka_unit_test(zero_is_exact_and_errors_bounded),
        cmocka_unit_test(finer_is_better),
        cmocka_unit_test(extremes_stay_finite),
        cmocka_unit_test(zeros_stay_zero),
        cmocka_unit_test(rows_do_not_touch_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
