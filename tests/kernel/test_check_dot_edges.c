/* Matrix products where kernels go wrong first: sums at the edge of 16 bits, planes that no
 * quantizer has to write, segments that cut groups of columns, scales that are not numbers. Every
 * variant against the scalar reference, bit for bit. */
#include "support/check.h"
#include "support/golden.h"

#include "base/rng.h"
#include "kernel/gemm.h"
#include "kernel/isas.h"
#include "numeric/minifloat.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t counter;

static uint32_t random_u32(void)
{
    uint32_t w[4];
    nb_philox(11, 3, counter++, w);
    return w[0];
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* ---- matrices ---- */

typedef enum { RANDOM, HIGHEST, LOWEST } fill;

static uint8_t code(fill f)
{
    return f == RANDOM ? (uint8_t)random_u32() : f == HIGHEST ? 0xff : 0;
}

/* What a file may hold where a scale, a minimum or a weight should be. */
static float special(void)
{
    static const uint32_t bits[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x80000000u,
                                    0x00000001u, 0x7f7fffffu, 0xff7fffffu, 0x00800000u,
                                    0x33800000u, 0x477fe000u};
    const uint32_t u = random_u32();
    if (u % 3 != 0)
        return (float)((double)random_u32() * 0x1p-31 - 1.0);
    return nb_f32_from_bits(bits[u / 3 % (sizeof bits / sizeof *bits)]);
}

static nb_panels make_panels(nb_panel_kind kind, int64_t n_rows, int64_t n_cols, int64_t seg_len,
                             fill f, bool specials)
{
    nb_panels p = {.kind = kind,
                   .n_rows = n_rows,
                   .n_cols = n_cols,
                   .k_pad = ceil_div(n_cols, 8) * 8,
                   .n_panels = ceil_div(n_rows, NB_PANEL_ROWS),
                   .seg_len = seg_len,
                   .n_segs = ceil_div(n_cols, seg_len),
                   .scale_type = (nb_float_type)(random_u32() % 3),
                   .zero_const = kind == NB_PANEL_U4 ? 8 : 128};
    p.panel_bytes = p.k_pad * NB_PANEL_ROWS / (kind == NB_PANEL_U8 ? 1 : 2);
    const int64_t n = p.n_panels * p.n_segs * NB_PANEL_ROWS;
    p.codes = check_alloc((size_t)(p.n_panels * p.panel_bytes));
    for (int64_t i = 0; i < p.n_panels * p.panel_bytes; i++)
        p.codes[i] = code(f);
    for (int i = 0; i < 16; i++)
        p.table[i] = code(f);
    const int16_t zeros[] = {INT16_MIN, INT16_MAX, 8, (int16_t)(random_u32() % 256)};
    const size_t scale_bytes = nb_float_bytes(p.scale_type);
    p.scales = check_alloc((size_t)n * scale_bytes);
    p.zeros = specials && random_u32() % 2 ? check_alloc((size_t)n * 2) : NULL;
    p.mins = specials && random_u32() % 2 ? check_alloc((size_t)n * scale_bytes) : NULL;
    for (int64_t i = 0; i < n; i++) {
        nb_float_put(p.scales, p.scale_type, i, specials ? special() : 0.01f);
        if (p.mins != NULL)
            nb_float_put(p.mins, p.scale_type, i, special());
        if (p.zeros != NULL)
            p.zeros[i] = zeros[random_u32() % 4];
    }
    return p;
}

static void free_panels(nb_panels *p)
{
    check_free(p->codes);
    check_free(p->scales);
    check_free(p->zeros);
    check_free(p->mins);
}

static void compare(check_run *run, const char *what, const float *got, const float *want,
                    int64_t ldy, int n_tok, int64_t n_rows)
{
    for (int t = 0; t < n_tok; t++)
        check_same_f32(run, what, got + t * ldy, want + t * ldy, n_rows);
}

/* ---- integers ---- */

/* Planes are filled directly: every byte of them may be any that the contract allows. */
static void planes_at_their_limits(void **state)
{
    (void)state;
    static const struct {
        int8_t hi, lo;
    } limits[] = {{127, 127}, {-127, -128}, {127, -128}, {-127, 127}, {0, -128}};
    static const nb_panel_kind kinds[] = {NB_PANEL_U4, NB_PANEL_T4, NB_PANEL_U8};
    static const int64_t segs[] = {8, 16, 32, 40, 64, 96, 128};
    nb_kernels ref, variant[N_ISA_MASKS];
    nb_kernels_init(&ref, 0);
    const int n_variants = isa_tables(variant);
    check_run run = {.name = "planes at their limits"};
    for (int round = 0; round < 3 * 7 * NB_TILE_MAX * 4; round++) {
        const int n_tok = 1 + round % NB_TILE_MAX;
        const int64_t seg = segs[round / NB_TILE_MAX % 7];
        const nb_panel_kind kind = kinds[round / NB_TILE_MAX / 7 % 3];
        const bool two = round % 2 == 1;
        const fill codes = (fill)(random_u32() % 3);
        const int64_t n_cols = seg * (1 + (int64_t)(random_u32() % 4)), n_rows = 37, ldy = 40;
        nb_panels w = make_panels(kind, n_rows, n_cols, seg, codes, false);
        const int64_t n_segs = n_cols / seg;
        nb_xtile x = {.n_tok = n_tok,
                      .n_cols = n_cols,
                      .k_pad = w.k_pad,
                      .x_seg_len = seg,
                      .seg_len = seg,
                      .zero_const = w.zero_const};
        x.hi = check_alloc((size_t)(w.k_pad * n_tok));
        x.lo = two ? check_alloc((size_t)(w.k_pad * n_tok)) : NULL;
        x.scale = check_floats(n_segs * n_tok);
        x.xsum = check_alloc((size_t)(4 * n_segs * n_tok));
        x.start = check_alloc((size_t)(4 * n_segs * n_tok));
        memset(x.xsum, 0, (size_t)(4 * n_segs * n_tok));
        const size_t limit = random_u32() % (sizeof limits / sizeof *limits);
        const bool mixed = random_u32() % 2;
        for (int64_t i = 0; i < n_segs * n_tok; i++)
            x.scale[i] = 0.5f;
        for (int64_t k = 0; k < n_cols; k++) {
            for (int t = 0; t < n_tok; t++) {
                const size_t l = mixed ? random_u32() % (sizeof limits / sizeof *limits) : limit;
                const int64_t at = (k / 4 * n_tok + t) * 4 + k % 4;
                x.hi[at] = limits[l].hi;
                if (two)
                    x.lo[at] = limits[l].lo;
                x.xsum[k / seg * n_tok + t] +=
                    two ? 256 * limits[l].hi + limits[l].lo : limits[l].hi;
            }
        }
        for (int64_t i = 0; i < n_segs * n_tok; i++)
            x.start[i] = -x.zero_const * x.xsum[i];
        const int64_t n_y = (n_tok - 1) * ldy + n_rows; /* ends with the last row */
        float *want = check_floats(n_y), *got = check_floats(n_y);
        ref.gemm_i(want, ldy, &w, 0, w.n_panels, &x);
        for (int v = 0; v < n_variants; v++) {
            memset(got, 0xff, (size_t)n_y * 4);
            variant[v].gemm_i(got, ldy, &w, 0, w.n_panels, &x);
            compare(&run, nb_isa_name(variant[v].isa), got, want, ldy, n_tok, n_rows);
        }
        check_free(want);
        check_free(got);
        check_free(x.hi);
        check_free(x.lo);
        check_free(x.scale);
        check_free(x.xsum);
        check_free(x.start);
        free_panels(&w);
    }
    check_finish(&run);
}

/* ---- floats ---- */

static nb_xtile float_tile(int n_tok, int64_t n_cols, int64_t k_pad, bool specials)
{
    nb_xtile x = {.n_tok = n_tok, .n_cols = n_cols, .k_pad = k_pad};
    x.f = check_floats(n_cols * n_tok);
    for (int64_t i = 0; i < n_cols * n_tok; i++)
        x.f[i] = specials ? special() : (float)((double)random_u32() * 0x1p-31 - 1.0);
    return x;
}

static void run_f(check_run *run, const nb_panels *w, const nb_xtile *x)
{
    nb_kernels ref, variant[N_ISA_MASKS];
    nb_kernels_init(&ref, 0);
    const int n_variants = isa_tables(variant);
    const int64_t ldy = w->n_rows + 3, first = 0;
    _Alignas(64) static float scratch[NB_GEMM_SCRATCH];
    const int64_t n_y = (x->n_tok - 1) * ldy + w->n_rows; /* ends with the last row */
    float *want = check_floats(n_y), *got = check_floats(n_y);
    ref.gemm_f(want, ldy, w, 0, w->n_panels, x, &first, 1, scratch);
    for (int v = 0; v < n_variants; v++) {
        memset(got, 0xff, (size_t)n_y * 4);
        memset(scratch, 0xff, sizeof scratch); /* what an earlier call left must not matter */
        variant[v].gemm_f(got, ldy, w, 0, w->n_panels, x, &first, 1, scratch);
        compare(run, nb_isa_name(variant[v].isa), got, want, ldy, x->n_tok, w->n_rows);
    }
    check_free(want);
    check_free(got);
}

/* Segments of any length: their ends fall inside the groups of 8 columns that codes are stored in,
 * and on both sides of the cut every 128. */
static void codes_in_floats_with_any_segments(void **state)
{
    (void)state;
    static const int64_t segs[] = {1, 2, 3, 5, 7, 8, 9, 12, 20, 31, 32, 33, 100, 127, 129};
    static const nb_panel_kind kinds[] = {NB_PANEL_U4, NB_PANEL_T4, NB_PANEL_U8};
    check_run run = {.name = "any segments"};
    for (int round = 0; round < 3 * 15 * 8; round++) {
        const int64_t seg = segs[round / 3 % 15];
        const int64_t n_cols = 1 + (int64_t)(random_u32() % 300);
        nb_panels w = make_panels(kinds[round % 3], 1 + (int64_t)(random_u32() % 70), n_cols, seg,
                                  RANDOM, round % 2 == 1);
        nb_xtile x = float_tile(1 + (int)(random_u32() % NB_TILE_MAX), n_cols, w.k_pad, false);
        run_f(&run, &w, &x);
        check_free(x.f);
        free_panels(&w);
    }
    check_finish(&run);
}

/* Weights and activations that are infinite, subnormal or no numbers, in all plain kinds. */
static void plain_weights_with_special_values(void **state)
{
    (void)state;
    static const nb_panel_kind kinds[] = {NB_PANEL_F32, NB_PANEL_BF16, NB_PANEL_F16};
    static const nb_float_type types[] = {NB_F32, NB_BF16, NB_F16};
    check_run run = {.name = "special values"};
    for (int round = 0; round < 3 * NB_TILE_MAX * 6; round++) {
        const int kind = round % 3;
        const int64_t n_cols = 1 + (int64_t)(random_u32() % 300);
        const int64_t n_rows = 1 + (int64_t)(random_u32() % 70);
        nb_panels w = {.kind = kinds[kind],
                       .n_rows = n_rows,
                       .n_cols = n_cols,
                       .k_pad = ceil_div(n_cols, 8) * 8,
                       .n_panels = ceil_div(n_rows, NB_PANEL_ROWS)};
        w.panel_bytes = n_cols * NB_PANEL_ROWS * (int64_t)nb_float_bytes(types[kind]);
        w.codes = check_alloc((size_t)(w.n_panels * w.panel_bytes));
        /* A few special weights: one is enough to decide a sum. */
        for (int64_t i = 0; i < w.n_panels * n_cols * NB_PANEL_ROWS; i++)
            nb_float_put(w.codes, types[kind], i,
                         random_u32() % 64 == 0 ? special()
                                                : (float)((double)random_u32() * 0x1p-31 - 1.0));
        nb_xtile x = float_tile(1 + round / 3 % NB_TILE_MAX, n_cols, w.k_pad, round % 2 == 1);
        run_f(&run, &w, &x);
        check_free(x.f);
        check_free(w.codes);
    }
    check_finish(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(planes_at_their_limits),
        cmocka_unit_test(codes_in_floats_with_any_segments),
        cmocka_unit_test(plain_weights_with_special_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
