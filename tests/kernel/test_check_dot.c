/* Matrix products: every variant against the scalar reference, bit for bit, and the reference
 * against exact arithmetic. */
#include "kernel/isas.h"
#include "support/check.h"
#include "support/golden.h"

#include "base/rng.h"
#include "kernel/gemm.h"
#include "numeric/minifloat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t counter;

static uint32_t random_u32(void)
{
    uint32_t w[4];
    nb_philox(42, 7, counter++, w);
    return w[0];
}

static float random_f32(void)
{
    return (float)((double)random_u32() * 0x1p-31 - 1.0);
}

/* Floats of every size, signed zeros and subnormals among them; finite. */
static float random_wild(void)
{
    const uint32_t u = random_u32();
    if (u % 11 == 0)
        return 0.0f;
    if (u % 13 == 0)
        return -0.0f;
    const uint32_t bits = random_u32();
    return (bits & 0x7f800000u) == 0x7f800000u ? 1.0f : nb_f32_from_bits(bits);
}

typedef struct {
    nb_panel_kind kind;
    int64_t n_rows, n_cols, seg_len;
    nb_float_type scale_type;
    bool zeros, mins;
} shape;

/* Panels with random contents; missing rows and padding columns stay 0 as packing leaves them. */
static nb_panels random_panels(const shape *s)
{
    nb_err err;
    nb_panels p = {.kind = s->kind,
                   .n_rows = s->n_rows,
                   .n_cols = s->n_cols,
                   .k_pad = (s->n_cols + 7) / 8 * 8,
                   .n_panels = (s->n_rows + 15) / 16,
                   .scale_type = s->scale_type};
    const bool codes = s->kind == NB_PANEL_U4 || s->kind == NB_PANEL_U8;
    if (codes) {
        p.seg_len = s->seg_len;
        p.n_segs = (s->n_cols + s->seg_len - 1) / s->seg_len;
        p.panel_bytes = p.k_pad * 16 / (s->kind == NB_PANEL_U4 ? 2 : 1);
        p.zero_const = s->kind == NB_PANEL_U4 ? 8 : 128;
        p.zeros = s->zeros ? (int16_t *)1 : NULL;
        p.mins = s->mins ? (void *)1 : NULL;
    } else {
        p.panel_bytes = p.n_cols * 16 * (s->kind == NB_PANEL_F32 ? 4 : 2);
    }
    assert_int_equal(nb_panels_alloc(&p, NULL, &err), NB_OK);
    for (int64_t i = 0; i < p.n_panels * p.panel_bytes; i++)
        p.codes[i] = (uint8_t)random_u32();
    if (!codes) {
        for (int64_t i = 0; i < p.n_panels * p.n_cols * 16; i++) {
            const nb_float_type t = s->kind == NB_PANEL_F32   ? NB_F32
                                    : s->kind == NB_PANEL_F16 ? NB_F16
                                                              : NB_BF16;
            nb_float_put(p.codes, t, i,
                         random_u32() % 97 == 0 ? 3.0e-6f * random_f32() : random_f32());
        }
    }
    for (int64_t i = 0; i < p.n_panels * p.n_segs * 16; i++) {
        nb_float_put(p.scales, p.scale_type, i, random_f32() * 0.01f);
        if (p.zeros != NULL)
            p.zeros[i] = (int16_t)(random_u32() % (s->kind == NB_PANEL_U4 ? 16 : 256));
        if (p.mins != NULL)
            nb_float_put(p.mins, p.scale_type, i, random_f32());
    }
    return p;
}

/* Everything that is checked of one shape: all modes, all token counts given. Returns the number
 * of results that differ from the reference. */
static int64_t compare_shape(const nb_kernels *ref, const nb_kernels *k, nb_pool *pool,
                             const shape *s, int n_tok, bool wild, int64_t *n_checked)
{
    nb_err err;
    nb_panels w = random_panels(s);
    const int64_t ldx = s->n_cols + 3, ldy = s->n_rows + 5;
    float *x, *want, *got;
    void *buffer;
    assert_int_equal(NB_ALLOC(&x, ldx * n_tok, &err), NB_OK);
    assert_int_equal(NB_ALLOC(&want, ldy * n_tok, &err), NB_OK);
    assert_int_equal(NB_ALLOC(&got, ldy * n_tok, &err), NB_OK);
    assert_int_equal(nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(s->n_cols, n_tok), &err), NB_OK);
    for (int64_t i = 0; i < ldx * n_tok; i++)
        x[i] = wild ? random_wild() : random_f32();
    int64_t differ = 0;
    for (int mode = NB_COMPUTE_F; mode <= NB_COMPUTE_I16; mode++) {
        for (int per_token = 0; per_token < 2; per_token++) {
            nb_xlayout layout;
            nb_xlayout_for(&layout, &w, (nb_compute)mode, per_token != 0);
            if ((int)layout.mode != mode || (per_token && mode != NB_COMPUTE_I8))
                continue;
            const nb_gemm_job job = {.w = &w, .y = want, .ld = ldy};
            const nb_gemm_job job2 = {.w = &w, .y = got, .ld = ldy};
            for (int64_t i = 0; i < ldy * n_tok; i++)
                want[i] = got[i] = 12345.0f;
            nb_xpacked packed;
            const bool f1 = nb_xpack(&packed, &layout, ref, pool, x, ldx, n_tok, buffer);
            nb_gemm(ref, pool, &packed, &job, 1);
            const bool f2 = nb_xpack(&packed, &layout, k, pool, x, ldx, n_tok, buffer);
            nb_gemm(k, pool, &packed, &job2, 1);
            assert_int_equal(f1, f2);
            for (int64_t i = 0; i < ldy * n_tok; i++) {
                const bool nan = isnan(want[i]) && isnan(got[i]);
                differ += !nan && memcmp(&want[i], &got[i], 4) != 0;
                *n_checked += want[i] != 12345.0f;
            }
        }
    }
    nb_free(x);
    nb_free(want);
    nb_free(got);
    nb_free(buffer);
    nb_panels_free(&w);
    return differ;
}

static const shape shapes[] = {
    {NB_PANEL_F32, 1, 1, 0, NB_F32, false, false},
    {NB_PANEL_F32, 33, 129, 0, NB_F32, false, false},
    {NB_PANEL_F32, 100, 577, 0, NB_F32, false, false},
    {NB_PANEL_BF16, 80, 256, 0, NB_F32, false, false},
    {NB_PANEL_BF16, 17, 300, 0, NB_F32, false, false},
    {NB_PANEL_F16, 64, 128, 0, NB_F32, false, false},
    {NB_PANEL_F16, 31, 65, 0, NB_F32, false, false},
    {NB_PANEL_U4, 16, 32, 32, NB_F16, false, false},
    {NB_PANEL_U4, 48, 576, 32, NB_F16, false, false},
    {NB_PANEL_U4, 50, 576, 64, NB_BF16, false, false},
    {NB_PANEL_U4, 50, 576, 64, NB_BF16, true, false},
    {NB_PANEL_U4, 23, 384, 128, NB_F32, true, false},
    {NB_PANEL_U4, 40, 288, 32, NB_F16, false, true},
    {NB_PANEL_U4, 9, 100, 100, NB_F32, false, false},
    {NB_PANEL_U4, 1, 7, 7, NB_F16, true, false},
    {NB_PANEL_U8, 48, 576, 576, NB_BF16, false, false},
    {NB_PANEL_U8, 30, 575, 575, NB_F32, true, false},
    {NB_PANEL_U8, 64, 320, 32, NB_F16, false, false},
    {NB_PANEL_U8, 33, 256, 16, NB_F32, false, false},
    {NB_PANEL_U8, 20, 64, 32, NB_F16, false, true},
    {NB_PANEL_U8, 18, 256, 128, NB_F16, true, true},
    {NB_PANEL_U8, 16, 3, 3, NB_F32, false, false},
};

/* The contract's first promise: an output is one expression, whatever computes it. */
static void variants_equal_the_reference_bit_for_bit(void **state)
{
    (void)state;
    nb_err err;
    nb_pool *pool;
    assert_int_equal(nb_pool_open(&pool, 2, &err), NB_OK);
    nb_kernels ref, k;
    nb_kernels_init(&ref, 0);
    for (size_t m = 0; m < N_ISA_MASKS; m++) {
        nb_kernels_init(&k, isa_masks[m]);
        if (k.isa != isa_masks[m]) {
            printf("SKIP %s: not on this machine\n", nb_isa_name(isa_masks[m]));
            continue;
        }
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            int64_t n_checked = 0;
            for (int n_tok = 1; n_tok <= 26; n_tok++) {
                const bool wild = n_tok % 5 == 2;
                const int64_t differ =
                    compare_shape(&ref, &k, pool, &shapes[i], n_tok, wild, &n_checked);
                if (differ != 0)
                    fail_msg("%s, shape %zu, %d tokens: %lld results differ", nb_isa_name(k.isa), i,
                             n_tok, (long long)differ);
            }
            assert_true(n_checked > 0);
        }
    }
    nb_pool_close(pool);
}

/* A result may depend on its own token only: one at a time gives what all together give. */
static void tokens_do_not_depend_on_their_batch(void **state)
{
    (void)state;
    nb_err err;
    nb_pool *pool;
    assert_int_equal(nb_pool_open(&pool, 3, &err), NB_OK);
    nb_kernels k;
    nb_kernels_init(&k, NB_ISA_ALL);
    enum { N = 19 };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        nb_panels w = random_panels(s);
        float *x = malloc((size_t)s->n_cols * N * 4), *all = malloc((size_t)s->n_rows * N * 4);
        float *one = malloc((size_t)s->n_rows * 4);
        void *buffer;
        assert_int_equal(nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(s->n_cols, N), &err), NB_OK);
        for (int64_t j = 0; j < s->n_cols * N; j++)
            x[j] = random_f32();
        for (int mode = NB_COMPUTE_F; mode <= NB_COMPUTE_I16; mode++) {
            nb_xlayout layout;
            nb_xlayout_for(&layout, &w, (nb_compute)mode, false);
            nb_xpacked packed;
            nb_xpack(&packed, &layout, &k, pool, x, s->n_cols, N, buffer);
            nb_gemm(&k, pool, &packed, &(nb_gemm_job){&w, all, s->n_rows}, 1);
            for (int t = 0; t < N; t++) {
                nb_xpack(&packed, &layout, &k, pool, x + t * s->n_cols, s->n_cols, 1, buffer);
                nb_gemm(&k, pool, &packed, &(nb_gemm_job){&w, one, s->n_rows}, 1);
                assert_memory_equal(one, all + t * s->n_rows, (size_t)s->n_rows * 4);
            }
        }
        nb_free(buffer);
        free(x);
        free(all);
        free(one);
        nb_panels_free(&w);
    }
    nb_pool_close(pool);
}

/* The reference against the truth in binary64, with the bound that n roundings allow. */
static void reference_is_within_its_rounding_bound(void **state)
{
    (void)state;
    nb_err err;
    nb_pool *pool;
    assert_int_equal(nb_pool_open(&pool, 1, &err), NB_OK);
    nb_kernels k;
    nb_kernels_init(&k, 0);
    int64_t n_checked = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        nb_panels w = random_panels(s);
        float *x = malloc((size_t)s->n_cols * 4), *y = malloc((size_t)s->n_rows * 4);
        float *row = malloc((size_t)s->n_cols * 4);
        void *buffer;
        assert_int_equal(nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(s->n_cols, 1), &err), NB_OK);
        for (int64_t j = 0; j < s->n_cols; j++)
            x[j] = random_f32();
        for (int mode = NB_COMPUTE_F; mode <= NB_COMPUTE_I16; mode++) {
            nb_xlayout layout;
            nb_xlayout_for(&layout, &w, (nb_compute)mode, false);
            if ((int)layout.mode != mode)
                continue;
            nb_xpacked packed;
            assert_true(nb_xpack(&packed, &layout, &k, pool, x, s->n_cols, 1, buffer));
            nb_gemm(&k, pool, &packed, &(nb_gemm_job){&w, y, s->n_rows}, 1);
            for (int64_t r = 0; r < s->n_rows; r++) {
                nb_panels_row(&w, r, row);
                double truth = 0, size = 0, wsum = 0;
                for (int64_t j = 0; j < s->n_cols; j++) {
                    truth += (double)row[j] * (double)x[j];
                    size += fabs((double)row[j] * (double)x[j]);
                    wsum += fabs((double)row[j]);
                }
                /* Activations move by half a step of at most 1 / qmax. */
                const double step = mode == NB_COMPUTE_F    ? 0
                                    : mode == NB_COMPUTE_I8 ? 1 / 254.0
                                                            : 1 / 65278.0;
                const double bound =
                    (double)(s->n_cols + 8) * 0x1p-23 * (size + wsum) + step * wsum * 1.001;
                if (!(fabs((double)y[r] - truth) <= bound))
                    fail_msg("shape %zu mode %d row %lld: %g instead of %g, bound %g", i, mode,
                             (long long)r, (double)y[r], truth, bound);
                n_checked++;
            }
        }
        nb_free(buffer);
        free(x);
        free(y);
        free(row);
        nb_panels_free(&w);
    }
    assert_true(n_checked > 1000);
    nb_pool_close(pool);
}

static nb_gemm_i_fn *honest_gemm_i;

static void broken_gemm_i(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                          const nb_xtile *tile)
{
    honest_gemm_i(y, ldy, w, begin, end, tile);
    if (w->n_rows > 20 && end == w->n_panels)
        y[20] = nb_f32_from_bits(nb_f32_bits(y[20]) ^ 1u); /* one last bit of one result */
}

/* Test the test: a kernel that is wrong in one bit is caught. */
static void a_planted_fault_is_caught(void **state)
{
    (void)state;
    nb_err err;
    nb_pool *pool;
    assert_int_equal(nb_pool_open(&pool, 1, &err), NB_OK);
    nb_kernels ref, broken;
    nb_kernels_init(&ref, 0);
    broken = ref;
    honest_gemm_i = ref.gemm_i;
    broken.gemm_i = broken_gemm_i;
    int64_t n_checked = 0;
    const shape s = {NB_PANEL_U4, 48, 576, 32, NB_F16, false, false};
    assert_true(compare_shape(&ref, &broken, pool, &s, 3, false, &n_checked) > 0);
    nb_pool_close(pool);
}

/* Inf or NaN in one group makes that token NaN everywhere, and the call says so (A3). */
static void nonfinite_activations_are_reported_and_contained(void **state)
{
    (void)state;
    nb_err err;
    nb_pool *pool;
    assert_int_equal(nb_pool_open(&pool, 1, &err), NB_OK);
    const shape s = {NB_PANEL_U4, 32, 128, 32, NB_F16, false, false};
    nb_panels w = random_panels(&s);
    float x[3 * 128], y[3 * 32];
    void *buffer;
    assert_int_equal(nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(128, 3), &err), NB_OK);
    for (unsigned m = 0; m <= N_ISA_MASKS; m++) {
        nb_kernels k;
        nb_kernels_init(&k, m == 0 ? 0 : isa_masks[m - 1]);
        for (int i = 0; i < 3 * 128; i++)
            x[i] = random_f32();
        x[128 + 77] = m == 1 ? INFINITY : NAN;
        nb_xlayout layout;
        nb_xlayout_for(&layout, &w, NB_COMPUTE_I8, false);
        nb_xpacked packed;
        assert_false(nb_xpack(&packed, &layout, &k, pool, x, 128, 3, buffer));
        nb_gemm(&k, pool, &packed, &(nb_gemm_job){&w, y, 32}, 1);
        for (int i = 0; i < 3 * 32; i++)
            assert_int_equal(isnan(y[i]) != 0, i / 32 == 1);
    }
    nb_free(buffer);
    nb_panels_free(&w);
    nb_pool_close(pool);
}

/* Every code a quantized activation may take, and the edges of the scale rule. */
static void quantize_row_keeps_its_promises(void **state)
{
    (void)state;
    nb_kernels ref;
    nb_kernels_init(&ref, 0);
    for (unsigned m = 0; m < N_ISA_MASKS; m++) {
        nb_kernels k;
        nb_kernels_init(&k, isa_masks[m]);
        for (int round = 0; round < 4000; round++) {
            float x[200], s1[200], s2[200];
            int8_t h1[200], h2[200], l1[200], l2[200];
            const int64_t n = 1 + (int64_t)(random_u32() % 200),
                          group = 1 + (int64_t)(random_u32() % 200);
            const bool wide = round & 1;
            for (int64_t i = 0; i < n; i++)
                x[i] = round % 3 == 0   ? random_wild()
                       : round % 3 == 1 ? random_f32()
                                        : random_f32() * 0x1p-99f;
            if (round % 50 == 0)
                x[n / 2] = INFINITY;
            const bool f1 = ref.quantize_row(x, n, group, h1, wide ? l1 : NULL, s1);
            const bool f2 = k.quantize_row(x, n, group, h2, wide ? l2 : NULL, s2);
            assert_int_equal(f1, f2);
            assert_memory_equal(h1, h2, (size_t)n);
            assert_memory_equal(s1, s2, (size_t)((n + group - 1) / group) * 4);
            if (wide)
                assert_memory_equal(l1, l2, (size_t)n);
            for (int64_t i = 0; i < n; i++) {
                assert_true(h1[i] >= -127);
                const double s = (double)s1[i / group], code = wide ? 256.0 * h1[i] + l1[i] : h1[i];
                if (isfinite(s) && s > 0x1p-120)
                    assert_true(fabs((double)x[i] - s * code) <=
                                0.51 * s); /* half a step, and the roundings of inv */
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(variants_equal_the_reference_bit_for_bit),
        cmocka_unit_test(tokens_do_not_depend_on_their_batch),
        cmocka_unit_test(reference_is_within_its_rounding_bound),
        cmocka_unit_test(a_planted_fault_is_caught),
        cmocka_unit_test(nonfinite_activations_are_reported_and_contained),
        cmocka_unit_test(quantize_row_keeps_its_promises),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
