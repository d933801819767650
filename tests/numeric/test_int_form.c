/* The integer form against decode_row, for every format that has one: two descriptions of the same
 * bits, and kernels use one where evaluation may use the other. */
#include "numeric/mat.h"

enum { ROWS = 3 };

/* Where the f16 parameters of a block begin, and how many there are. */
static int parameters_at(const nb_format *f, int *n)
{
    *n = f == &nb_format_q2_k || f == &nb_format_q4_k || f == &nb_format_q5_k ||
                 f == &nb_format_q4_1 || f == &nb_format_q5_1
             ? 2
             : 1;
    const bool last = f == &nb_format_q2_k || f == &nb_format_q3_k || f == &nb_format_q6_k;
    return last ? f->block_bytes - 2 * *n : 0;
}

/* Fills the codes (and parameters) with random bits. Scales of any bit pattern include infinities,
 * NaN and subnormals; `tame` ones are ordinary numbers, so that the comparison is of values. */
static void fill(nb_mat *m, bool tame, uint64_t stream)
{
    test_random_bytes(m->codes, (size_t)(m->n_rows * m->row_bytes), stream);
    if (m->fmt->affine) {
        const size_t n = test_mat_n_params(m);
        test_random_bytes(m->scales, n * nb_float_bytes(m->scale_type), stream + 1);
        if (m->zeros != NULL)
            for (size_t i = 0; i < n; i++) { /* any zero point that a code's width can hold */
                const int half = 1 << (m->fmt->bits - 1);
                m->zeros[i] =
                    (int8_t)((int)(test_random_u32(stream + 2, i) % (2u * (unsigned)half)) - half);
            }
        if (m->float_zeros != NULL)
            test_random_bytes(m->float_zeros, n * nb_float_bytes(m->scale_type), stream + 4);
        for (size_t i = 0; tame && m->float_zeros != NULL && i < n; i++)
            nb_float_put(m->float_zeros, m->scale_type, (int64_t)i,
                         ldexpf((float)(test_random_u32(stream + 5, i) % 4096) - 1024, -7));
        for (size_t i = 0; tame && i < n; i++)
            nb_float_put(m->scales, m->scale_type, (int64_t)i,
                         ldexpf((float)(test_random_u32(stream + 3, i) % 2048 + 1), -18));
        return;
    }
    const int64_t n_blocks = m->n_rows * m->n_cols / m->fmt->block_len;
    for (int64_t b = 0; tame && b < n_blocks; b++) {
        uint8_t *block = (uint8_t *)m->codes + b * m->fmt->block_bytes;
        int n;
        const int at = parameters_at(m->fmt, &n);
        for (int k = 0; k < n; k++) {
            uint8_t *high = block + at + 2 * k + 1;
            *high = (uint8_t)((*high & 0x83u) | 0x28u); /* magnitudes of 2^-5 .. 2^-4 */
        }
    }
}

static void compare(nb_mat *m, bool tame)
{
    nb_int_form form;
    m->fmt->int_form(m, &form);
    assert_true(form.segment_len > 0 && form.code_lo < form.code_hi);
    assert_true(form.code_lo >= INT8_MIN && form.code_hi <= INT8_MAX);
    if (form.table != NULL)
        assert_true(form.code_lo == 0 && form.code_hi == 15);
    const int64_t n_segments = (m->n_cols + form.segment_len - 1) / form.segment_len;
    const size_t n = (size_t)n_segments;

    int8_t *code = guarded_alloc((size_t)m->n_cols, 0);
    float *scale = guarded_alloc(n * 4, 0), *min = guarded_alloc(n * 4, 0x11);
    int16_t *zero = guarded_alloc(n * 2, 0x22);
    float *y = guarded_alloc((size_t)m->n_cols * 4, 0);
    const nb_int_row out = {.code = code,
                            .scale = scale,
                            .zero = form.has_zero ? zero : NULL,
                            .min = form.has_min ? min : NULL};
    int64_t n_nonzero = 0;
    for (int64_t r = 0; r < m->n_rows; r++) {
        m->fmt->decode_row(m, r, y);
        m->fmt->int_row(m, r, &out);
        for (int64_t c = 0; c < m->n_cols; c++) {
            const int64_t s = c / form.segment_len;
            assert_in_range(code[c] - form.code_lo, 0, form.code_hi - form.code_lo);
            const int u = form.table != NULL ? form.table[code[c]] : code[c];
            const float q = (float)(u - (form.has_zero ? zero[s] : 0));
            const float v = form.has_min ? fmaf(scale[s], q, min[s]) : scale[s] * q;
            if (!same_float(v, y[c]))
                fail_msg("%s: column %lld is %.9g by integers, %.9g decoded", m->fmt->name,
                         (long long)c, (double)v, (double)y[c]);
            n_nonzero += y[c] != 0;
            if (tame)
                assert_true(isfinite(y[c]));
        }
        for (int64_t s = 0; s < n_segments; s++) { /* the scale type holds them exactly */
            float kept;
            nb_float_put(&kept, form.scale_type, 0, scale[s]);
            assert_true(same_float(nb_float_get(&kept, form.scale_type, 0), scale[s]));
            if (form.has_min) {
                nb_float_put(&kept, form.scale_type, 0, min[s]);
                assert_true(same_float(nb_float_get(&kept, form.scale_type, 0), min[s]));
            }
        }
    }
    assert_true(n_nonzero > m->n_rows * m->n_cols / 2); /* zeros would agree with anything */
    guarded_free(code, (size_t)m->n_cols);
    guarded_free(scale, n * 4);
    guarded_free(min, n * 4);
    guarded_free(zero, n * 2);
    guarded_free(y, (size_t)m->n_cols * 4);
}

static void blocks(bool tame)
{
    int n_formats = 0;
    for (const nb_format *const *f = nb_formats; *f != NULL; f++) {
        if ((*f)->int_form == NULL || (*f)->affine)
            continue;
        for (uint64_t trial = 0; trial < 40; trial++) {
            /* Up to 40 blocks: parameters are converted in batches, with any remainder. */
            nb_mat m = test_mat_block(*f, ROWS, (1 + (int64_t)trial) * (*f)->block_len);
            fill(&m, tame, 10 * trial);
            compare(&m, tame);
            test_mat_free(&m);
        }
        n_formats++;
    }
    assert_int_equal(n_formats, 11);
}

/* Groups of the sizes in use, per channel, and of odd sizes; columns that end inside a word. */
static void affine(bool tame)
{
    static const struct {
        int64_t n_cols, group_size;
    } shapes[] = {{512, 32}, {512, 64},  {512, 128}, {512, 512}, {576, 64}, {100, 100},
                  {12, 4},   {105, 105}, {105, 35},  {105, 3},   {9, 1},    {33, 33}};
    static const nb_format *const formats[] = {&nb_format_int8, &nb_format_int4, &nb_format_int3,
                                               &nb_format_int2};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int f = 0; f < 4; f++)
            for (int type = 0; type < 3; type++)
                for (int zeros = 0; zeros < 3; zeros++) {
                    const int64_t n_cols = shapes[s].n_cols, group = shapes[s].group_size;
                    nb_mat m = zeros == 2 ? test_mat_float_zeros(formats[f], ROWS, n_cols, group,
                                                                 (nb_float_type)type)
                                          : test_mat(formats[f], ROWS, n_cols, group,
                                                     (nb_float_type)type, zeros == 1);
                    fill(&m, tame, 1000 + 10 * s);
                    compare(&m, tame);
                    test_mat_free(&m);
                }
}

static void blocks_agree(void **state)
{
    (void)state;
    blocks(true);
}

static void blocks_of_random_bits_agree(void **state)
{
    (void)state;
    blocks(false);
}

static void affine_agrees(void **state)
{
    (void)state;
    affine(true);
}

static void affine_of_random_bits_agrees(void **state)
{
    (void)state;
    affine(false);
}

/* K-quants: min is -(dmin * mn) with no rounding, and the scale d * sc. */
static void q4_k_parameters_are_exact(void **state)
{
    (void)state;
    for (uint64_t trial = 0; trial < 2000; trial++) {
        nb_mat m = test_mat_block(&nb_format_q4_k, 1, 256);
        fill(&m, true, 5000 + 10 * trial);
        const uint16_t *h = m.codes;
        const double d = (double)nb_f16_to_f32(h[0]), dmin = (double)nb_f16_to_f32(h[1]);
        int8_t code[256];
        float scale[8], min[8];
        const nb_int_row row = {.code = code, .scale = scale, .min = min};
        nb_format_q4_k.int_row(&m, 0, &row);
        for (int k = 0; k < 8; k++) {
            const double sc = (double)scale[k] / d, mn = -(double)min[k] / dmin;
            assert_true(sc == floor(sc) && sc >= 0 && sc < 64);
            assert_true(mn == floor(mn) && mn >= 0 && mn < 64);
        }
        test_mat_free(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_agree),
        cmocka_unit_test(blocks_of_random_bits_agree),
        cmocka_unit_test(affine_agrees),
        cmocka_unit_test(affine_of_random_bits_agrees),
        cmocka_unit_test(q4_k_parameters_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
