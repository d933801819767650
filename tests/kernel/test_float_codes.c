/* Float-coded weights through packing and products: every instruction set gives the reference's
 * bits, and panels hold what decode_row gives. */
#include "kernel/isas.h"
#include "numeric/mat.h"

#include "kernel/gemm.h"
#include "kernel/pooled.h"

#include <stdio.h>

enum { MAX_ROWS = 40, MAX_COLS = 576, MAX_TOK = 17 };

/* Every byte is a code, NaN and infinity left out unless wanted: of FP8 they are the largest. */
static nb_mat random_mat(const nb_format *fmt, int64_t n_rows, int64_t n_cols, int64_t group_size,
                         nb_float_type scale_type, bool specials)
{
    nb_mat m = test_mat(fmt, n_rows, n_cols, group_size, scale_type, false);
    const size_t n = (size_t)(n_rows * m.row_bytes);
    uint8_t *codes = m.codes;
    test_random_bytes(codes, n, 77 + (uint64_t)n_cols);
    const int most = fmt == &nb_format_fp8_e4m3 ? 0x7e : 0x7b;
    for (size_t i = 0; i < n && fmt->bits == 8 && !specials; i++)
        codes[i] = (codes[i] & 0x7f) > most ? (uint8_t)most : codes[i];
    for (int64_t i = 0; i < n_rows * nb_mat_n_groups(&m); i++)
        nb_float_put(m.scales, scale_type, i,
                     (float)(0x1p-12 * (0.5 + nb_rng_uniform(3, 4, (uint64_t)i))));
    return m;
}

static nb_panels pack(const nb_mat *m)
{
    nb_err err = {0};
    nb_panels p;
    nb_panels_plan(&p, m);
    assert_int_equal(nb_panels_alloc(&p, NULL, &err), NB_OK);
    assert_int_equal(nb_panels_pack(&p, m, pool, &err), NB_OK);
    return p;
}

static void product(const nb_kernels *k, const nb_panels *w, const float *x, int64_t n_tok,
                    float *y)
{
    nb_err err = {0};
    nb_xlayout layout;
    void *buffer;
    nb_xpacked packed;
    nb_xlayout_for(&layout, w, NB_COMPUTE_I8, true);
    assert_int_equal(layout.mode, NB_COMPUTE_F); /* there are no integers to multiply */
    assert_int_equal(nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(w->n_cols, n_tok), &err), NB_OK);
    assert_true(nb_xpack(&packed, &layout, k, pool, x, w->n_cols, n_tok, buffer));
    nb_gemm(k, pool, &packed, &(nb_gemm_job){w, y, w->n_rows}, 1);
    nb_free(buffer);
}

static const struct {
    const nb_format *fmt;
    int64_t n_rows, n_cols, group_size;
    nb_float_type scale_type;
} shapes[] = {
    {&nb_format_fp8_e4m3, 16, 128, 128, NB_F32},  {&nb_format_fp8_e4m3, 33, 576, 576, NB_BF16},
    {&nb_format_fp8_e4m3, 40, 576, 128, NB_F32}, /* a last block of 64 columns */
    {&nb_format_fp8_e4m3, 7, 131, 131, NB_F16},   {&nb_format_fp8_e4m3, 17, 203, 40, NB_BF16},
    {&nb_format_fp8_e4m3, 1, 1, 1, NB_F32},       {&nb_format_fp8_e5m2, 16, 128, 128, NB_F32},
    {&nb_format_fp8_e5m2, 33, 573, 573, NB_BF16}, {&nb_format_fp8_e5m2, 18, 67, 32, NB_F32},
    {&nb_format_nf4, 16, 64, 64, NB_F32},         {&nb_format_nf4, 35, 576, 64, NB_F32},
    {&nb_format_nf4, 20, 512, 512, NB_F32},       {&nb_format_nf4, 3, 6, 2, NB_F32},
    {&nb_format_nf4, 17, 60, 20, NB_F32},         {&nb_format_nf4, 5, 4, 4, NB_F32},
};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

static void panels_hold_what_rows_decode_to(void **state)
{
    (void)state;
    float want[MAX_COLS], got[MAX_COLS];
    for (size_t s = 0; s < N_SHAPES; s++) {
        nb_mat m = random_mat(shapes[s].fmt, shapes[s].n_rows, shapes[s].n_cols,
                              shapes[s].group_size, shapes[s].scale_type, true);
        nb_panels w = pack(&m);
        assert_false(nb_panels_has_ints(&w));
        for (int64_t r = 0; r < m.n_rows; r++) {
            m.fmt->decode_row(&m, r, want);
            nb_panels_row(&w, r, got);
            for (int64_t c = 0; c < m.n_cols; c++)
                if (!same_float(want[c], got[c]))
                    fail_msg("shape %zu, [%lld, %lld]: %g is not %g", s, (long long)r, (long long)c,
                             (double)got[c], (double)want[c]);
        }
        nb_panels_free(&w);
        test_mat_free(&m);
    }
}

/* The definition, once more and by itself: A2 over what decode_row gives. */
static float a2(const float *w, const float *x, int64_t n)
{
    float total = 0;
    for (int64_t k0 = 0; k0 < n; k0 += 128) {
        float sum = 0;
        for (int64_t k = k0; k < n && k < k0 + 128; k++)
            sum = fmaf(w[k], x[k], sum);
        total += sum;
    }
    return total;
}

static void every_instruction_set_has_one_result(void **state)
{
    (void)state;
    static const int64_t tokens[] = {1, 2, 5, MAX_TOK};
    static float x[MAX_TOK * MAX_COLS], got[MAX_TOK * MAX_ROWS], row[MAX_COLS];
    nb_kernels variants[N_ISA_MASKS + 1];
    const int n_variants = 1 + isa_tables(variants + 1);
    nb_kernels_init(&variants[0], 0);
    test_random_weights(x, MAX_TOK * MAX_COLS, 1, 0, 12);
    for (size_t s = 0; s < N_SHAPES; s++) {
        for (int specials = 0; specials < 2; specials++) {
            nb_mat m = random_mat(shapes[s].fmt, shapes[s].n_rows, shapes[s].n_cols,
                                  shapes[s].group_size, shapes[s].scale_type, specials);
            nb_panels w = pack(&m);
            for (int i = 0; i < n_variants * 4; i++) {
                const int64_t n_tok = tokens[i % 4];
                product(&variants[i / 4], &w, x, n_tok, got);
                for (int64_t r = 0; r < m.n_rows; r++) {
                    m.fmt->decode_row(&m, r, row);
                    for (int64_t t = 0; t < n_tok; t++) {
                        const float want = a2(row, x + t * m.n_cols, m.n_cols);
                        if (!same_float(want, got[t * m.n_rows + r]))
                            fail_msg("shape %zu, %s, row %lld of token %lld of %lld: %a is not %a",
                                     s, nb_isa_name(variants[i / 4].isa), (long long)r,
                                     (long long)t, (long long)n_tok, (double)got[t * m.n_rows + r],
                                     (double)want);
                    }
                }
            }
            nb_panels_free(&w);
            test_mat_free(&m);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(panels_hold_what_rows_decode_to),
        cmocka_unit_test(every_instruction_set_has_one_result),
    };
    return cmocka_run_group_tests(tests, open_pool, close_pool);
}
