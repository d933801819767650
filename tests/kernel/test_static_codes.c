/* Activations of 8 bits under a scale that was chosen before (A3): codes are what one number at a
 * time gives, and products are the sums that the contract writes down, on every instruction set. */
#include "numeric/mat.h"

#include "kernel/gemm.h"
#include "kernel/pooled.h"
#include "kernel/isas.h"

#include <float.h>

static float slow_code(float x, float scale)
{
    const float inverse = 1.0f / scale, q = rintf(x * inverse);
    return q > 127 ? 127.0f : q < -127 ? -127.0f : q + 0.0f;
}

static void check_codes(const float *x, int64_t n, float scale)
{
    const nb_xround how = {.on = true, .scale = scale, .integer = true};
    float *got = guarded_alloc((size_t)n * 4, 0xff);
    assert_true(nb_round_row(got, x, n, &how));
    for (int64_t i = 0; i < n; i++)
        if (got[i] != slow_code(x[i], scale))
            fail_msg("%a under %a is code %g, not %g", (double)x[i], (double)scale, (double)got[i],
                     (double)slow_code(x[i], scale));
    guarded_free(got, (size_t)n * 4);
}

/* Every half step and its neighbours, on both sides of what is clamped. */
static void codes_are_the_nearest_even_and_clamped(void **state)
{
    (void)state;
    static const float scales[] = {1, 0.5f, 0x1p-100f, 0x1p100f, 0.3f, 1.7e-5f, 12345.678f};
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++) {
        for (int half = -300; half <= 300; half++) {
            const float middle = (float)half * 0.5f * scales[s];
            const float x[3] = {nextafterf(middle, -FLT_MAX), middle, nextafterf(middle, FLT_MAX)};
            check_codes(x, 3, scales[s]);
        }
        const float extreme[] = {FLT_MAX,   -FLT_MAX, FLT_MIN, -FLT_MIN, 0.0f,  -0.0f,
                                 0x1p-149f, 1e9f,     -1e9f,   3e10f,    -3e10f};
        check_codes(extreme, 11, scales[s]);
    }
    for (int64_t n = 1; n <= 100; n++) {
        float x[100];
        test_random_weights(x, n, 1, 0.05, (uint64_t)n);
        check_codes(x, n, 0.05f);
    }
}

/* A whole token, wherever it stands. */
static void what_is_not_finite_spoils_its_token(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    const nb_xround how = {.on = true, .scale = 0.5f, .integer = true};
    float x[70], y[70];
    for (int i = 0; i < 3; i++) {
        for (int at = 0; at < 70; at++) {
            for (int c = 0; c < 70; c++)
                x[c] = c == at ? bad[i] : 1;
            assert_false(nb_round_row(y, x, 70, &how));
            for (int c = 0; c < 70; c++)
                assert_true(isnan(y[c]));
        }
    }
}

/* ---- products ---- */

/* One sum as A3 has it. */
static float slow_sum(const nb_mat *m, int64_t r, const float *x, float scale, int64_t seg_len)
{
    float acc = 0;
    const int64_t n = m->n_cols;
    int8_t *code = guarded_alloc((size_t)n, 0);
    float w_scale[64];
    int16_t zero[64] = {0};
    const nb_int_row row = {.code = code, .scale = w_scale, .zero = zero};
    m->fmt->int_row(m, r, &row);
    for (int64_t begin = 0; begin < n; begin += seg_len) {
        int32_t sum = 0;
        const int64_t end = begin + seg_len < n ? begin + seg_len : n, g = begin / m->group_size;
        for (int64_t c = begin; c < end; c++)
            sum += (code[c] - (m->zeros != NULL ? zero[g] : 0)) * (int32_t)slow_code(x[c], scale);
        acc = fmaf((float)sum, w_scale[g] * scale, acc);
    }
    guarded_free(code, (size_t)n);
    return acc;
}

static void check_products(const nb_mat *m, int64_t n_tok, float scale, int bad_token,
                           const nb_kernels *k)
{
    nb_err err;
    nb_panels w;
    nb_xlayout layout;
    const int64_t n = m->n_cols, n_rows = m->n_rows;
    float *x = guarded_alloc((size_t)(n_tok * n) * 4, 0);
    float *codes = guarded_alloc((size_t)(n_tok * n) * 4, 0);
    float *y = guarded_alloc((size_t)(n_tok * n_rows) * 4, 0xff);
    const size_t room_bytes = (size_t)(nb_xpack_bytes(n, n_tok) + 63) / 64 * 64;
    void *room = aligned_alloc(64, room_bytes);
    assert_non_null(room);
    test_random_weights(x, n_tok * n, 1, 0.02, (uint64_t)(n + n_tok));
    if (bad_token >= 0)
        x[bad_token * n + n - 1] = NAN;
    nb_panels_plan(&w, m);
    assert_int_equal(nb_panels_alloc(&w, NULL, &err), NB_OK);
    assert_int_equal(nb_panels_pack(&w, m, pool, &err), NB_OK);
    nb_xlayout_for(&layout, &w, NB_COMPUTE_I8, true);
    assert_int_equal(layout.mode, NB_COMPUTE_I8);
    layout.round = (nb_xround){.on = true, .scale = scale, .integer = true};
    for (int64_t t = 0; t < n_tok; t++)
        assert_int_equal(nb_round_row(codes + t * n, x + t * n, n, &layout.round), t != bad_token);
    nb_xpacked packed;
    assert_int_equal(nb_xpack(&packed, &layout, k, pool, codes, n, n_tok, room), bad_token < 0);
    nb_gemm(k, pool, &packed, &(nb_gemm_job){&w, y, n_rows}, 1);
    for (int64_t t = 0; t < n_tok; t++) {
        for (int64_t r = 0; r < n_rows; r++) {
            const float want =
                t == bad_token ? NAN : slow_sum(m, r, x + t * n, scale, layout.seg_len);
            if (!same_float(y[t * n_rows + r], want))
                fail_msg("%s, group %lld of %lld, %lld tokens, bad %d: [%lld][%lld] is %a, not %a",
                         m->fmt->name, (long long)m->group_size, (long long)n, (long long)n_tok,
                         bad_token, (long long)t, (long long)r, (double)y[t * n_rows + r],
                         (double)want);
        }
    }
    free(room);
    guarded_free(x, (size_t)(n_tok * n) * 4);
    guarded_free(codes, (size_t)(n_tok * n) * 4);
    guarded_free(y, (size_t)(n_tok * n_rows) * 4);
    nb_panels_free(&w);
}

static void products_are_exact_sums_on_every_isa(void **state)
{
    (void)state;
    static const struct {
        const nb_format *fmt;
        int64_t n_cols, group;
        bool asymmetric;
    } mats[] = {
        {&nb_format_int8, 200, 200, false}, {&nb_format_int8, 200, 200, true},
        {&nb_format_int8, 256, 64, false},  {&nb_format_int4, 200, 200, false},
        {&nb_format_int4, 256, 32, true},   {&nb_format_int2, 96, 32, false},
        {&nb_format_int8, 40, 8, true},
    };
    static const int64_t counts[] = {1, 2, 7, 12, 13, 16, 33};
    nb_kernels table[1 + N_ISA_MASKS];
    nb_kernels_init(&table[0], 0);
    const int n_tables = 1 + isa_tables(table + 1);
    for (size_t i = 0; i < sizeof mats / sizeof *mats; i++) {
        nb_mat m =
            test_mat(mats[i].fmt, 21, mats[i].n_cols, mats[i].group, NB_BF16, mats[i].asymmetric);
        float row[256];
        for (int64_t r = 0; r < m.n_rows; r++) {
            test_random_weights(row, m.n_cols, 0.02, 0.02, (uint64_t)(100 + r));
            m.fmt->encode_row(&m, r, row);
        }
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            for (int v = 0; v < n_tables; v++) {
                check_products(&m, counts[c], 0.037f, -1, &table[v]);
                check_products(&m, counts[c], 0.037f, (int)(counts[c] - 1), &table[v]);
            }
        }
        /* Everything clamped, and everything 0. */
        for (int v = 0; v < n_tables; v++) {
            check_products(&m, 16, 0x1p-100f, -1, &table[v]);
            check_products(&m, 16, 0x1p100f, -1, &table[v]);
        }
        test_mat_free(&m);
    }
}

/* A packing is shared by weights whose activations mean the same, and by no others. */
static void layouts_differ_by_their_scale(void **state)
{
    (void)state;
    nb_xlayout a = {.mode = NB_COMPUTE_I8, .n_cols = 64, .k_pad = 64};
    a.round = (nb_xround){.on = true, .scale = 0.5f, .integer = true};
    nb_xlayout b = a;
    assert_true(nb_xlayout_equal(&a, &b));
    b.round.scale = 0.25f;
    assert_false(nb_xlayout_equal(&a, &b));
    b.round = a.round;
    b.round.integer = false;
    assert_false(nb_xlayout_equal(&a, &b));
    b.round = (nb_xround){0};
    assert_false(nb_xlayout_equal(&a, &b));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_the_nearest_even_and_clamped),
        cmocka_unit_test(what_is_not_finite_spoils_its_token),
        cmocka_unit_test(products_are_exact_sums_on_every_isa),
        cmocka_unit_test(layouts_differ_by_their_scale),
    };
    return cmocka_run_group_tests(tests, open_pool, close_pool);
}
