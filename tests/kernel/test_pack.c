/* Packing: panels hold exactly what the matrix held, in every format and at every edge, and packed
 * activations hold exactly their rows, in exactly the room that nb_xpack_bytes claims. */
#include "numeric/mat.h"

#include "kernel/gemm.h"
#include "kernel/pooled.h"
#include "support/must.h"

#include <stdio.h>

static nb_panels pack(const nb_mat *m)
{
    nb_err err;
    nb_panels p;
    nb_panels_plan(&p, m);
    must(nb_panels_alloc(&p, NULL, &err), &err);
    must(nb_panels_pack(&p, m, pool, &err), &err);
    return p;
}

/* ---- weights ---- */

static int64_t n_values, n_nonzero;

/* Every value of the panels is the format's own decoding, bit for bit. */
static void check_values(const nb_mat *m)
{
    const nb_panels p = pack(m);
    float *want = guarded_alloc((size_t)m->n_cols * 4, 0);
    float *got = guarded_alloc((size_t)m->n_cols * 4, 0xff);
    assert_int_equal(p.n_panels, (m->n_rows + 15) / 16);
    assert_int_equal(p.k_pad, (m->n_cols + 7) / 8 * 8);
    for (int64_t r = 0; r < m->n_rows; r++) {
        m->fmt->decode_row(m, r, want);
        nb_panels_row(&p, r, got);
        for (int64_t c = 0; c < m->n_cols; c++) {
            if (!same_float(want[c], got[c]))
                fail_msg("%s %lld x %lld, group %lld, %s scales, %s: [%lld][%lld] is %a, not %a",
                         m->fmt->name, (long long)m->n_rows, (long long)m->n_cols,
                         (long long)m->group_size, nb_float_name(m->scale_type),
                         m->zeros != NULL ? "asymmetric" : "symmetric", (long long)r, (long long)c,
                         (double)got[c], (double)want[c]);
            n_nonzero += want[c] != 0;
        }
        n_values += m->n_cols;
    }
    guarded_free(want, (size_t)m->n_cols * 4);
    guarded_free(got, (size_t)m->n_cols * 4);
    nb_panels_free((nb_panels *)&p);
}

/* What kernels may count on besides the values: padding codes are 0, rows that do not exist have
 * codes, scales, minima and zero points of 0. */
static void check_padding(const nb_mat *m)
{
    nb_panels p = pack(m);
    for (int64_t r = 0; r < p.n_panels * NB_PANEL_ROWS; r++) {
        const uint8_t *panel = p.codes + r / 16 * p.panel_bytes;
        const int64_t i = r % 16, first = r < m->n_rows ? m->n_cols : 0;
        for (int64_t k = first; p.kind == NB_PANEL_U8 && k < p.k_pad; k++)
            assert_int_equal(panel[k / 4 * 64 + 4 * i + k % 4], 0);
        for (int64_t k = first; (p.kind == NB_PANEL_U4 || p.kind == NB_PANEL_T4) && k < p.k_pad;
             k++) {
            const uint8_t byte = panel[k / 8 * 64 + 4 * i + k % 4];
            assert_int_equal(k % 8 < 4 ? byte & 15 : byte >> 4, 0);
        }
        for (int64_t s = 0; r >= m->n_rows && s < p.n_segs; s++) {
            const int64_t at = (r / 16 * p.n_segs + s) * 16 + i;
            assert_true(nb_float_get(p.scales, p.scale_type, at) == 0);
            assert_true(p.mins == NULL || nb_float_get(p.mins, p.scale_type, at) == 0);
            assert_true(p.zeros == NULL || p.zeros[at] == 0);
        }
        for (int64_t k = 0; r >= m->n_rows && p.n_segs == 0 && k < m->n_cols; k++) {
            const nb_float_type t = p.kind == NB_PANEL_F32   ? NB_F32
                                    : p.kind == NB_PANEL_F16 ? NB_F16
                                                             : NB_BF16;
            assert_true(nb_float_get(panel, t, k * 16 + i) == 0);
        }
    }
    nb_panels_free(&p);
}

static void check_mat(nb_mat *m)
{
    check_values(m);
    check_padding(m);
    test_mat_free(m);
}

static const int64_t row_counts[] = {1, 2, 15, 16, 17, 33};
#define N_ROW_COUNTS (sizeof row_counts / sizeof *row_counts)

/* Any bytes at all: every code, and scales of NaN, infinity, zero and subnormal. */
static void plain_and_block_formats_are_packed_as_they_decode(void **state)
{
    (void)state;
    int n_formats = 0;
    uint64_t stream = 0;
    for (const nb_format *const *f = nb_formats; *f != NULL; f++) {
        if ((*f)->affine)
            continue;
        n_formats++;
        static const int64_t plain[] = {1, 3, 7, 8, 9, 15, 31, 33, 64, 129};
        static const int64_t blocks[] = {1, 2, 3, 5, 9, 18};
        const bool block = (*f)->block_len > 1;
        const size_t n = block ? sizeof blocks / sizeof *blocks : sizeof plain / sizeof *plain;
        for (size_t c = 0; c < n; c++) {
            for (size_t r = 0; r < N_ROW_COUNTS; r++) {
                const int64_t cols = block ? blocks[c] * (*f)->block_len : plain[c];
                nb_mat m = test_mat_block(*f, row_counts[r], cols);
                test_random_bytes(m.codes, (size_t)(m.n_rows * m.row_bytes), stream++);
                check_mat(&m);
            }
        }
    }
    assert_int_equal(n_formats, 14);
}

static void affine_formats_are_packed_as_they_decode(void **state)
{
    (void)state;
    static const int64_t cols[] = {1, 2, 7, 8, 9, 31, 32, 64, 72, 96, 130};
    static const int64_t groups[] = {0, 1, 8, 16, 24, 32, 64};
    int64_t n_shapes = 0;
    uint64_t stream = 1000;
    static const nb_format *const formats[] = {&nb_format_int4, &nb_format_int8, &nb_format_int3,
                                               &nb_format_int2};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        const nb_format *fmt = formats[f];
        for (size_t c = 0; c < sizeof cols / sizeof *cols; c++) {
            for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
                const int64_t group = groups[g] == 0 ? cols[c] : groups[g];
                if (cols[c] % group != 0 || (groups[g] != 0 && group == cols[c]))
                    continue;
                for (int kind = 0; kind < 6; kind++) {
                    nb_mat m = test_mat(fmt, row_counts[n_shapes++ % (int64_t)N_ROW_COUNTS],
                                        cols[c], group, (nb_float_type)(kind % 3), kind >= 3);
                    float *row = guarded_alloc((size_t)cols[c] * 4, 0);
                    for (int64_t r = 0; r < m.n_rows; r++) {
                        test_random_weights(row, cols[c], 0.02, 0.01, stream++);
                        fmt->encode_row(&m, r, row);
                    }
                    guarded_free(row, (size_t)cols[c] * 4);
                    check_mat(&m);
                }
            }
        }
    }
    assert_true(n_shapes > 400);
    assert_true(n_values > 100000 && n_nonzero > n_values / 2);
}

/* Codes that no encoder gives, and zero points at the ends of their range. */
static void every_affine_code_and_zero_point_is_kept(void **state)
{
    (void)state;
    nb_mat m = test_mat(&nb_format_int8, 17, 256, 256, NB_F32, true);
    for (int64_t r = 0; r < m.n_rows; r++) {
        for (int64_t c = 0; c < 256; c++)
            ((uint8_t *)nb_mat_row(&m, r))[c] = (uint8_t)(c + r);
        ((float *)m.scales)[r] = 0.25f;
        m.zeros[r] = r % 2 == 0 ? -128 : 127;
    }
    check_mat(&m);
    m = test_mat(&nb_format_int4, 17, 16, 16, NB_F32, true);
    for (int64_t r = 0; r < m.n_rows; r++) {
        for (int64_t c = 0; c < m.row_bytes; c++)
            ((uint8_t *)nb_mat_row(&m, r))[c] = (uint8_t)(0x10 * (2 * c + 1) + 2 * c);
        ((float *)m.scales)[r] = 0.25f;
        m.zeros[r] = r % 2 == 0 ? -8 : 7;
    }
    check_mat(&m);
}

/* A format of tomorrow that can only be decoded: bytes are sixths. */
static void sixths_decode(const nb_mat *m, int64_t r, float *y)
{
    for (int64_t c = 0; c < m->n_cols; c++)
        y[c] = (float)((const uint8_t *)nb_mat_row(m, r))[c] / 6.0f;
}

static void a_format_that_only_decodes_runs_too(void **state)
{
    (void)state;
    const nb_format sixths = {.name = "sixths",
                              .ggml_type = -1,
                              .block_len = 4,
                              .block_bytes = 4,
                              .bits = 8,
                              .decode_row = sixths_decode};
    for (size_t r = 0; r < N_ROW_COUNTS; r++) {
        nb_mat m = test_mat_block(&sixths, row_counts[r], 36);
        test_random_bytes(m.codes, (size_t)(m.n_rows * m.row_bytes), r);
        check_mat(&m);
    }
}

/* The comparison above sees a single wrong bit. */
static void a_planted_fault_shows(void **state)
{
    (void)state;
    nb_mat m = test_mat_block(&nb_format_q4_0, 3, 64);
    float x[64], want[64], got[64];
    for (int64_t r = 0; r < 3; r++) {
        test_random_weights(x, 64, 1, 0, (uint64_t)r);
        nb_format_q4_0.encode_row(&m, r, x);
    }
    nb_panels p = pack(&m);
    for (int64_t at = 0; at < p.panel_bytes; at += 64) {
        p.codes[at + 4] ^= 1; /* row 1 */
        m.fmt->decode_row(&m, 1, want);
        nb_panels_row(&p, 1, got);
        assert_memory_not_equal(want, got, sizeof want);
        p.codes[at + 4] ^= 1;
    }
    nb_panels_free(&p);
    test_mat_free(&m);
}

/* One thread or three, first or second time: the same bytes. */
static void packing_is_the_same_for_any_number_of_threads(void **state)
{
    (void)state;
    nb_err err;
    nb_pool *one;
    must(nb_pool_open(&one, 1, &err), &err);
    for (const nb_format *const *f = nb_formats; *f != NULL; f++) {
        nb_mat m = test_mat(*f, 100, 256, 32, NB_F16, true);
        test_random_bytes(m.codes, (size_t)(m.n_rows * m.row_bytes), 77);
        if ((*f)->affine) {
            test_random_bytes(m.scales, test_mat_n_params(&m) * 2, 78);
            test_random_bytes(m.zeros, test_mat_n_params(&m), 79);
            for (size_t i = 0; (*f)->bits == 4 && i < test_mat_n_params(&m); i++)
                m.zeros[i] = (int8_t)(m.zeros[i] % 8);
        }
        nb_panels a = pack(&m), b;
        nb_panels_plan(&b, &m);
        must(nb_panels_alloc(&b, NULL, &err), &err);
        for (int again = 0; again < 2; again++) {
            must(nb_panels_pack(&b, &m, one, &err), &err);
            assert_memory_equal(a.codes, b.codes, (size_t)(a.n_panels * a.panel_bytes));
            const size_t n = (size_t)(a.n_panels * a.n_segs * 16);
            if (n > 0)
                assert_memory_equal(a.scales, b.scales, n * nb_float_bytes(a.scale_type));
            if (a.zeros != NULL)
                assert_memory_equal(a.zeros, b.zeros, n * sizeof *a.zeros);
            if (a.mins != NULL)
                assert_memory_equal(a.mins, b.mins, n * nb_float_bytes(a.scale_type));
        }
        nb_panels_free(&a);
        nb_panels_free(&b);
        test_mat_free(&m);
    }
    nb_pool_close(one);
}

static void packing_survives_every_allocation_failure(void **state)
{
    (void)state;
    nb_mat m = test_mat(&nb_format_int4, 40, 64, 32, NB_F16, true);
    memset(m.scales, 0, test_mat_n_params(&m) * 2);
    const int64_t before = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_err err;
        nb_panels p;
        nb_panels_plan(&p, &m);
        nb_alloc_fail_at(n);
        nb_status s = nb_panels_alloc(&p, NULL, &err);
        if (s == NB_OK)
            s = nb_panels_pack(&p, &m, pool, &err);
        nb_alloc_fail_at(0);
        nb_panels_free(&p);
        assert_int_equal(nb_alloc_live(), before);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
    }
    assert_int_equal(n, 5); /* codes, scales, zeros, scratch */
    test_mat_free(&m);
}

/* ---- activations ---- */

static nb_kernels kernels;

static void check_tile(const nb_xpacked *p, int64_t i, const float *x, int64_t ld)
{
    const nb_xtile *t = &p->tiles[i];
    const nb_xlayout *l = &p->layout;
    const int64_t n = l->n_cols, first = p->tile_first[i];
    int8_t *hi = calloc(1, (size_t)l->k_pad), *lo = calloc(1, (size_t)l->k_pad);
    float *scale = calloc((size_t)n, sizeof *scale);
    for (int64_t tok = 0; tok < t->n_tok; tok++) {
        const float *row = x + (first + tok) * ld;
        if (l->mode == NB_COMPUTE_F) {
            for (int64_t k = 0; k < n; k++)
                assert_true(same_float(t->f[k * t->n_tok + tok], row[k]));
            continue;
        }
        const bool wide = l->mode == NB_COMPUTE_I16;
        kernels.quantize_row(row, n, l->x_seg_len, hi, wide ? lo : NULL, scale);
        assert_int_equal(t->lo != NULL, wide);
        for (int64_t k = 0; k < l->k_pad; k++) {
            const int64_t at = (k / 4 * t->n_tok + tok) * 4 + k % 4;
            assert_int_equal(t->hi[at], k < n ? hi[k] : 0);
            if (wide)
                assert_int_equal(t->lo[at], k < n ? lo[k] : 0);
        }
        for (int64_t s = 0; s * l->x_seg_len < n; s++)
            assert_true(same_float(t->scale[s * t->n_tok + tok], scale[s]));
        for (int64_t s = 0; s * l->seg_len < n; s++) {
            int64_t sum = 0;
            for (int64_t k = s * l->seg_len; k < (s + 1) * l->seg_len && k < n; k++)
                sum += wide ? 256 * hi[k] + lo[k] : hi[k];
            assert_int_equal(t->xsum[s * t->n_tok + tok], sum);
        }
    }
    free(hi);
    free(lo);
    free(scale);
}

/* The buffer is as long as nb_xpack_bytes says and ends at guard bytes; tiles cover all tokens in
 * order, none wider than a tile may be. */
static void check_xpack(const nb_xlayout *l, int64_t n_tok)
{
    const int64_t ld = l->n_cols + 5;
    const size_t bytes = (size_t)nb_xpack_bytes(l->n_cols, n_tok);
    uint8_t *whole = malloc(bytes + 64 + GUARD);
    uint8_t *buffer = whole + (64 - (uintptr_t)whole % 64) % 64;
    memset(buffer, 0x5a, bytes);
    memset(buffer + bytes, GUARD_BYTE, GUARD);
    float *x = malloc((size_t)(n_tok * ld) * sizeof *x);
    for (int64_t i = 0; i < n_tok * ld; i++)
        x[i] = (float)nb_rng_uniform(3, (uint64_t)l->n_cols, (uint64_t)i) - 0.5f;
    nb_xpacked p;
    assert_true(nb_xpack(&p, l, &kernels, pool, x, ld, n_tok, buffer));
    guarded_check(buffer, bytes);
    int64_t next = 0;
    for (int64_t i = 0; i < p.n_tiles; i++) {
        assert_int_equal(p.tile_first[i], next);
        assert_in_range(p.tiles[i].n_tok, 1, NB_TILE_MAX);
        check_tile(&p, i, x, ld);
        next += p.tiles[i].n_tok;
    }
    assert_int_equal(next, n_tok);
    free(x);
    free(whole);
}

/* Every layout that a weight can ask for, at every small width and many token counts. */
static void packed_activations_fit_and_hold_their_rows(void **state)
{
    (void)state;
    nb_kernels_init(&kernels, NB_ISA_ALL);
    static const int64_t tokens[] = {1, 2, 3, 11, 12, 13, 25};
    static const int64_t segs[] = {8, 16, 24, 32, 48, 64, 128, 256};
    int64_t n_layouts[3] = {0};
    for (int64_t cols = 1; cols <= 300; cols += cols < 40 ? 1 : 13) {
        for (size_t s = 0; s <= sizeof segs / sizeof *segs; s++) {
            const int64_t seg = s == 0 ? cols : segs[s - 1];
            const nb_panels w = {.n_cols = cols,
                                 .k_pad = (cols + 7) / 8 * 8,
                                 .seg_len = seg,
                                 .n_segs = (cols + seg - 1) / seg};
            for (int way = 0; way < 4; way++) {
                const nb_compute mode = way == 3 ? NB_COMPUTE_I8 : (nb_compute)way;
                nb_xlayout l;
                nb_xlayout_for(&l, &w, mode, way == 3);
                if (l.mode != mode)
                    continue;
                n_layouts[mode]++;
                check_xpack(&l, tokens[(size_t)(cols + way) % (sizeof tokens / sizeof *tokens)]);
            }
        }
    }
    /* Wide ones, where what a column takes outweighs all rounding up. */
    for (int64_t cols = 4000; cols <= 4009; cols++) {
        for (int way = 0; way < 4; way++) {
            const int64_t seg = way < 2 ? 8 : cols;
            const nb_panels w = {.n_cols = cols,
                                 .k_pad = (cols + 7) / 8 * 8,
                                 .seg_len = seg,
                                 .n_segs = (cols + seg - 1) / seg};
            for (int mode = NB_COMPUTE_F; mode <= NB_COMPUTE_I16; mode++) {
                nb_xlayout l;
                nb_xlayout_for(&l, &w, (nb_compute)mode, way % 2 != 0);
                if ((int)l.mode == mode)
                    check_xpack(&l, cols % 2 == 0 ? 12 : 1);
            }
        }
    }
    assert_true(n_layouts[0] > 400 && n_layouts[1] > 400 && n_layouts[2] > 200);
}

/* The claim holds for narrower and fewer too: one buffer serves all linears of a model. */
static void a_bigger_problem_never_needs_less(void **state)
{
    (void)state;
    for (int64_t cols = 1; cols < 700; cols++) {
        for (int64_t n = 1; n < 40; n++) {
            assert_true(nb_xpack_bytes(cols + 1, n) >= nb_xpack_bytes(cols, n));
            assert_true(nb_xpack_bytes(cols, n + 1) >= nb_xpack_bytes(cols, n));
        }
    }
}

/* A weight's layout falls back to floats where its segments and the activations' do not nest, and
 * says so. */
static void layouts_nest_or_fall_back(void **state)
{
    (void)state;
    static const struct {
        int64_t cols, seg;
        nb_compute wanted;
        bool per_token;
        nb_compute mode;
        int64_t x_seg, joint;
    } cases[] = {
        {576, 32, NB_COMPUTE_I8, false, NB_COMPUTE_I8, 32, 32},
        {576, 16, NB_COMPUTE_I8, false, NB_COMPUTE_I8, 32, 16},
        {576, 64, NB_COMPUTE_I8, true, NB_COMPUTE_I8, 576, 64},
        {576, 64, NB_COMPUTE_I16, true, NB_COMPUTE_I16, 64, 64},
        {576, 576, NB_COMPUTE_I8, true, NB_COMPUTE_I8, 576, 576},
        {576, 576, NB_COMPUTE_I8, false, NB_COMPUTE_I8, 128, 128},
        {576, 576, NB_COMPUTE_I16, false, NB_COMPUTE_I16, 128, 128},
        {100000, 100000, NB_COMPUTE_I8, true, NB_COMPUTE_I8, 100000, 65536},
        {480, 160, NB_COMPUTE_I8, false, NB_COMPUTE_F, 0, 0}, /* 160 and 128 do not nest */
        {480, 48, NB_COMPUTE_I16, false, NB_COMPUTE_I16, 48, 48},
        {480, 12, NB_COMPUTE_I16, false, NB_COMPUTE_F, 0, 0}, /* 12 and 32 do not nest */
        {480, 4, NB_COMPUTE_I8, false, NB_COMPUTE_F, 0, 0},   /* no whole groups of 8 */
        {20, 20, NB_COMPUTE_I8, true, NB_COMPUTE_I8, 20, 20},
        {576, 32, NB_COMPUTE_F, true, NB_COMPUTE_F, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const nb_panels w = {.n_cols = cases[i].cols,
                             .k_pad = (cases[i].cols + 7) / 8 * 8,
                             .seg_len = cases[i].seg,
                             .n_segs = (cases[i].cols + cases[i].seg - 1) / cases[i].seg};
        nb_xlayout l;
        nb_xlayout_for(&l, &w, cases[i].wanted, cases[i].per_token);
        if (l.mode != cases[i].mode || l.x_seg_len != cases[i].x_seg || l.seg_len != cases[i].joint)
            fail_msg("case %zu: mode %s, %lld, %lld", i, nb_compute_name(l.mode),
                     (long long)l.x_seg_len, (long long)l.seg_len);
    }
    const nb_panels plain = {.n_cols = 64, .k_pad = 64};
    nb_xlayout l;
    nb_xlayout_for(&l, &plain, NB_COMPUTE_I8, false);
    assert_int_equal(l.mode, NB_COMPUTE_F);
}

/* NaN or infinity reports itself in the integer modes, in whichever tile it is. */
static void what_is_not_finite_is_reported(void **state)
{
    (void)state;
    nb_kernels_init(&kernels, NB_ISA_ALL);
    nb_err err;
    const nb_panels w = {.n_cols = 40, .k_pad = 40, .seg_len = 40, .n_segs = 1};
    void *buffer;
    must(nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(40, 30), &err), &err);
    float x[30 * 40] = {0};
    for (int mode = NB_COMPUTE_F; mode <= NB_COMPUTE_I16; mode++) {
        nb_xlayout l;
        nb_xpacked p;
        nb_xlayout_for(&l, &w, (nb_compute)mode, false);
        for (int64_t at = 0; at < 30 * 40; at += 39) {
            x[at] = at % 2 == 0 ? NAN : -INFINITY;
            assert_int_equal(nb_xpack(&p, &l, &kernels, pool, x, 40, 30, buffer),
                             mode == NB_COMPUTE_F);
            x[at] = 0;
            assert_true(nb_xpack(&p, &l, &kernels, pool, x, 40, 30, buffer));
        }
    }
    nb_free(buffer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_and_block_formats_are_packed_as_they_decode),
        cmocka_unit_test(affine_formats_are_packed_as_they_decode),
        cmocka_unit_test(every_affine_code_and_zero_point_is_kept),
        cmocka_unit_test(a_format_that_only_decodes_runs_too),
        cmocka_unit_test(a_planted_fault_shows),
        cmocka_unit_test(packing_is_the_same_for_any_number_of_threads),
        cmocka_unit_test(packing_survives_every_allocation_failure),
        cmocka_unit_test(packed_activations_fit_and_hold_their_rows),
        cmocka_unit_test(a_bigger_problem_never_needs_less),
        cmocka_unit_test(layouts_nest_or_fall_back),
        cmocka_unit_test(what_is_not_finite_is_reported),
    };
    return cmocka_run_group_tests(tests, open_pool, close_pool);
}
