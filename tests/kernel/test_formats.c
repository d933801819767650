/* Formats on their way through packing and products: whatever a file may hold, every instruction
 * set gives the reference's bits, and the reference gives what the decoded weights say. */
#include "kernel/isas.h"
#include "numeric/mat.h"

#include "kernel/gemm.h"
#include "kernel/pooled.h"

#include <stdio.h>

enum { ROWS = 35, COLS = 512, MAX_TOK = 17 };

/* Any codes, with f16 parameters between 2^-9 and 2^-7. K-quants multiply theirs by up to 127. */
static nb_mat random_blocks(const nb_format *f, uint64_t stream)
{
    nb_mat m = test_mat_block(f, ROWS, COLS);
    test_random_bytes(m.codes, (size_t)(m.n_rows * m.row_bytes), stream);
    const bool two = f == &nb_format_q2_k || f == &nb_format_q4_k || f == &nb_format_q5_k ||
                     f == &nb_format_q4_1 || f == &nb_format_q5_1;
    const bool last = f == &nb_format_q2_k || f == &nb_format_q3_k || f == &nb_format_q6_k;
    const int n = two ? 2 : 1, at = last ? f->block_bytes - 2 * n : 0;
    for (int64_t b = 0; b < ROWS * COLS / f->block_len; b++) {
        for (int k = 0; k < n; k++) {
            uint8_t *high = (uint8_t *)m.codes + b * f->block_bytes + at + 2 * k + 1;
            *high = (uint8_t)((*high & 0x83u) | 0x18u);
        }
    }
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

/* y[n_tok][w->n_rows] in the mode; false where the weight has no such mode. */
static bool product(const nb_kernels *k, const nb_panels *w, nb_compute mode, const float *x,
                    int64_t n_tok, float *y)
{
    nb_err err = {0};
    nb_xlayout layout;
    nb_xlayout_for(&layout, w, mode, false);
    if (layout.mode != mode)
        return false;
    void *buffer;
    nb_xpacked packed;
    assert_int_equal(nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(w->n_cols, n_tok), &err), NB_OK);
    assert_true(nb_xpack(&packed, &layout, k, pool, x, w->n_cols, n_tok, buffer));
    nb_gemm(k, pool, &packed, &(nb_gemm_job){w, y, w->n_rows}, 1);
    nb_free(buffer);
    return true;
}

/* The weights as decode_row gives them, the activations as their codes say, in binary64. */
static void assert_near_truth(const nb_mat *m, nb_compute mode, const float *x, int64_t n_tok,
                              const float *y)
{
    float row[COLS];
    for (int64_t r = 0; r < m->n_rows; r++) {
        m->fmt->decode_row(m, r, row);
        for (int64_t t = 0; t < n_tok; t++) {
            double truth = 0, size = 0, wsum = 0;
            for (int64_t c = 0; c < m->n_cols; c++) {
                truth += (double)row[c] * (double)x[t * m->n_cols + c];
                size += fabs((double)row[c] * (double)x[t * m->n_cols + c]);
                wsum += fabs((double)row[c]);
            }
            /* Activations are below 1: they move by half a step of at most 1 / qmax. Segments with
             * a minimum sum two terms that may be larger than what is left of them: hence the 4. */
            const double step = mode == NB_COMPUTE_F    ? 0
                                : mode == NB_COMPUTE_I8 ? 1 / 254.0
                                                        : 1 / 65278.0;
            const double bound =
                4 * (double)(m->n_cols + 8) * 0x1p-23 * (size + wsum) + step * wsum * 1.001;
            const double got = (double)y[t * m->n_rows + r];
            if (!(fabs(got - truth) <= bound))
                fail_msg("%s, mode %s, row %lld: %g is not %g within %g", m->fmt->name,
                         nb_compute_name(mode), (long long)r, got, truth, bound);
        }
    }
}

static float x[MAX_TOK * COLS];
static nb_kernels ref, variants[N_ISA_MASKS];
static int n_variants;

static void set_scene(void)
{
    nb_kernels_init(&ref, 0);
    n_variants = isa_tables(variants);
    test_random_weights(x, MAX_TOK * COLS, 0.08, 0, 11);
    for (int i = 0; i < MAX_TOK * COLS; i++)
        x[i] = fminf(fmaxf(x[i], -1), 1);
}

/* Tokens 1 and 5 take tiles of panels; 17 take the rows of a unit that has them. */
static void has_one_result(const nb_mat *m)
{
    static const int64_t tokens[] = {1, 5, MAX_TOK};
    static float want[MAX_TOK * ROWS], got[MAX_TOK * ROWS];
    nb_panels w = pack(m);
    for (int mode = NB_COMPUTE_F; mode <= NB_COMPUTE_I16; mode++) {
        for (size_t n = 0; n < sizeof tokens / sizeof *tokens; n++) {
            const size_t bytes = (size_t)(tokens[n] * ROWS) * sizeof *want;
            assert_true(product(&ref, &w, (nb_compute)mode, x, tokens[n], want));
            assert_near_truth(m, (nb_compute)mode, x, tokens[n], want);
            for (int v = 0; v < n_variants; v++) {
                memset(got, 0xff, bytes);
                assert_true(product(&variants[v], &w, (nb_compute)mode, x, tokens[n], got));
                if (memcmp(want, got, bytes) != 0)
                    fail_msg("%s, mode %s, %lld tokens: %s differs from scalar", m->fmt->name,
                             nb_compute_name((nb_compute)mode), (long long)tokens[n],
                             nb_isa_name(variants[v].isa));
            }
        }
    }
    nb_panels_free(&w);
}

static void every_format_has_one_result(void **state)
{
    (void)state;
    set_scene();
    int n_formats = 0;
    for (const nb_format *const *f = nb_formats; *f != NULL; f++) {
        if ((*f)->int_form == NULL || (*f)->affine)
            continue;
        n_formats++;
        nb_mat m = random_blocks(*f, 300 + (uint64_t)n_formats);
        has_one_result(&m);
        test_mat_free(&m);
    }
    assert_int_equal(n_formats, 11);
}

/* Float zero points become minima in binary32. A group of the file may have any zero point, also
 * one that no code reaches; rows may end inside the last eight columns. */
static void float_zeros_have_one_result(void **state)
{
    (void)state;
    static const nb_format *const formats[] = {&nb_format_int8, &nb_format_int4, &nb_format_int3,
                                               &nb_format_int2};
    static const struct {
        int64_t n_cols, group_size;
    } shapes[] = {{COLS, 64}, {COLS, COLS}, {100, 100}, {320, 40}};
    set_scene();
    for (uint64_t i = 0; i < 16; i++) {
        nb_mat m = test_mat_float_zeros(formats[i % 4], ROWS, shapes[i / 4].n_cols,
                                        shapes[i / 4].group_size, i % 2 == 0 ? NB_BF16 : NB_F16);
        const float top = (float)((1 << m.fmt->bits) - 1);
        test_random_bytes(m.codes, (size_t)(ROWS * m.row_bytes), 500 + i);
        for (size_t g = 0; g < test_mat_n_params(&m); g++) {
            const float u = (float)nb_rng_uniform(8, i, g), v = (float)nb_rng_uniform(9, i, g);
            nb_float_put(m.scales, m.scale_type, (int64_t)g, (u - 0.3f) * 0.2f / top);
            nb_float_put(m.float_zeros, m.scale_type, (int64_t)g, (1.5f * v - 0.25f) * top);
        }
        has_one_result(&m);
        test_mat_free(&m);
    }
}

/* A format by table whose rows may have any length: 4 places in 2 bytes. */
static const int8_t places[16] = {-128, -90, -60, -41, -27, -15, -6, -1,
                                  0,    3,   9,   20,  37,  59,  88, 127};

static void placed_int_form(const nb_mat *m, nb_int_form *form)
{
    *form = (nb_int_form){
        .segment_len = m->n_cols, .code_hi = 15, .scale_type = NB_F32, .table = places};
}

static void placed_int_row(const nb_mat *m, int64_t r, const nb_int_row *out)
{
    const uint8_t *row = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c++)
        out->code[c] = (int8_t)(row[c / 2] >> c % 2 * 4 & 15);
    out->scale[0] = 0.125f * (float)(r + 1);
}

static void placed_decode_row(const nb_mat *m, int64_t r, float *y)
{
    const uint8_t *row = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c++)
        y[c] = 0.125f * (float)(r + 1) * (float)places[row[c / 2] >> c % 2 * 4 & 15];
}

/* Padding columns of a table's panels are place 0, which is some number and not zero: whatever
 * stands there, activations are 0, and no result moves. */
static void padding_of_a_table_changes_nothing(void **state)
{
    (void)state;
    const nb_format placed = {.name = "placed",
                              .ggml_type = -1,
                              .block_len = 4,
                              .block_bytes = 2,
                              .bits = 4,
                              .decode_row = placed_decode_row,
                              .int_form = placed_int_form,
                              .int_row = placed_int_row};
    enum { N_TOK = 17, N_COLS = 44, N_ROWS = 19 };
    float x[N_TOK * N_COLS], want[N_TOK * N_ROWS], got[N_TOK * N_ROWS], row[N_COLS], back[N_COLS];
    test_random_weights(x, N_TOK * N_COLS, 0.1, 0, 3);
    nb_kernels tables[N_ISA_MASKS + 1];
    nb_kernels_init(&tables[0], 0);
    const int n_tables = 1 + isa_tables(tables + 1);
    nb_mat m = test_mat_block(&placed, N_ROWS, N_COLS);
    test_random_bytes(m.codes, (size_t)(N_ROWS * m.row_bytes), 1);
    nb_panels w = pack(&m);
    assert_int_equal(w.kind, NB_PANEL_T4);
    assert_int_equal(w.k_pad, 48);
    for (int i = 0; i < 16; i++)
        assert_int_equal(w.table[i], places[i] + 128);
    for (int64_t r = 0; r < N_ROWS; r++) {
        placed_decode_row(&m, r, row);
        nb_panels_row(&w, r, back);
        for (int c = 0; c < N_COLS; c++)
            assert_true(row[c] == back[c]);
    }
    /* Columns 44..47 are the high nibbles of a panel's last 64 bytes. */
    for (int mode = NB_COMPUTE_F; mode <= NB_COMPUTE_I16; mode++) {
        assert_true(product(&tables[0], &w, (nb_compute)mode, x, N_TOK, want));
        for (int fill = 0; fill < 16; fill++) {
            for (int64_t p = 0; p < w.n_panels; p++) {
                uint8_t *last = w.codes + (p + 1) * w.panel_bytes - 64;
                for (int i = 0; i < 64; i++) {
                    if (fill == 0 && mode == NB_COMPUTE_F)
                        assert_int_equal(last[i] >> 4, 0);
                    last[i] = (uint8_t)((last[i] & 15) | fill << 4);
                }
            }
            for (int k = 0; k < n_tables; k++) {
                assert_true(product(&tables[k], &w, (nb_compute)mode, x, N_TOK, got));
                assert_memory_equal(want, got, sizeof want);
            }
        }
    }
    /* The next nibble to it is no padding, and would show. */
    assert_true(product(&tables[0], &w, NB_COMPUTE_I8, x, N_TOK, want));
    w.codes[w.panel_bytes - 64] ^= 1;
    assert_true(product(&tables[0], &w, NB_COMPUTE_I8, x, N_TOK, got));
    assert_memory_not_equal(want, got, sizeof want);
    nb_panels_free(&w);
    test_mat_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format_has_one_result),
        cmocka_unit_test(float_zeros_have_one_result),
        cmocka_unit_test(padding_of_a_table_changes_nothing),
    };
    return cmocka_run_group_tests(tests, open_pool, close_pool);
}
