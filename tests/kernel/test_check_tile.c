/* One tile: packing of activations and products on it, called directly, every variant against the
 * scalar reference byte for byte. Arrays are exactly as long as the contract says and fenced, so
 * that a byte too much is seen. */
#include "support/check.h"
#include "support/golden.h"

#include "base/rng.h"
#include "kernel/isas.h"
#include "numeric/minifloat.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t counter;

static uint32_t random_u32(void)
{
    uint32_t w[4];
    nb_philox(7, 42, counter++, w);
    return w[0];
}

static int64_t random_below(int64_t n)
{
    return (int64_t)(random_u32() % (uint64_t)n);
}

static float random_f32(void)
{
    return (float)((double)random_u32() * 0x1p-31 - 1.0);
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* The arrays of a tile and their sizes. */
enum { F, HI, LO, SCALE, XSUM, START, N_ARRAYS };
typedef struct {
    nb_xtile t;
    void *array[N_ARRAYS];
    int64_t bytes[N_ARRAYS];
} tile;

static tile make_tile(const nb_xtile *shape, bool floats, bool wide)
{
    tile a = {.t = *shape};
    const int64_t T = shape->n_tok, plane = (shape->rows ? shape->row_stride : shape->k_pad) * T;
    const int64_t sums = floats ? 0 : 4 * ceil_div(shape->n_cols, shape->seg_len) * T;
    a.bytes[F] = floats ? 4 * shape->n_cols * T : 0;
    a.bytes[HI] = floats ? 0 : plane;
    a.bytes[LO] = wide ? plane : 0;
    a.bytes[SCALE] = floats ? 0 : 4 * ceil_div(shape->n_cols, shape->x_seg_len) * T;
    a.bytes[XSUM] = sums;
    a.bytes[START] = shape->zero_const != 0 ? sums : 0;
    for (int i = 0; i < N_ARRAYS; i++)
        a.array[i] = a.bytes[i] > 0 ? check_alloc((size_t)a.bytes[i]) : NULL;
    a.t.f = a.array[F];
    a.t.hi = a.array[HI];
    a.t.lo = a.array[LO];
    a.t.scale = a.array[SCALE];
    a.t.xsum = a.array[XSUM];
    a.t.start = a.array[START];
    return a;
}

static void free_tile(tile *a)
{
    for (int i = 0; i < N_ARRAYS; i++)
        check_free(a->array[i]);
}

/* Packs, and returns what pack_tile said. */
static bool pack(const nb_kernels *k, tile *a, const float *x, int64_t ld)
{
    const int64_t n = nb_pack_tile_staging(a->t.n_cols);
    void *raw = malloc((size_t)n + 64);
    assert_non_null(raw);
    uint8_t *staging = raw;
    staging += -(uintptr_t)staging & 63;
    const bool finite = k->pack_tile(&a->t, x, ld, staging);
    free(raw);
    for (int i = 0; i < N_ARRAYS; i++)
        if (a->array[i] != NULL)
            assert_true(check_guard_ok(a->array[i]));
    return finite;
}

/* The first array that differs, or -1. */
static int difference(const tile *a, const tile *b)
{
    for (int i = 0; i < N_ARRAYS; i++)
        if (a->array[i] != NULL && memcmp(a->array[i], b->array[i], (size_t)a->bytes[i]) != 0)
            return i;
    return -1;
}

/* Activations that end where their allocation ends: token t at x + t * ld. */
static float *random_x(int64_t n, int64_t T, int64_t ld, int kind)
{
    float *x = check_floats((T - 1) * ld + n);
    for (int64_t i = 0; i < (T - 1) * ld + n; i++) {
        const float v = random_f32();
        switch (kind) {
        case 0: /* halves of a step abound: 127 divides the values */
            x[i] = (float)(random_below(509) - 254) * 0.5f;
            break;
        case 1: /* every size, signed zeros and subnormals among them */
            x[i] = ldexpf(v, (int)random_below(250) - 140);
            break;
        case 2: /* around the smallest scale */
            x[i] = v * 0x1p-99f;
            break;
        default:
            x[i] = v;
        }
    }
    return x;
}

/* Segment lengths that meet: what nb_xlayout_for may give. */
static nb_xtile random_shape(int64_t n, bool rows)
{
    static const int64_t segs[] = {8, 16, 24, 32, 40, 48, 64, 96, 128, 256};
    const int64_t wseg = random_u32() % 4 == 0 ? n : segs[random_below(10)];
    int64_t xseg = wseg < 32 ? 32 : wseg > 128 ? 128 : wseg;
    if (random_u32() % 3 == 0 || (wseg < n && xseg % wseg != 0 && wseg % xseg != 0))
        xseg = n;
    nb_xtile t = {.n_tok = 1 + (int)random_below(rows ? NB_ROWS_MAX : NB_TILE_MAX),
                  .rows = rows,
                  .n_cols = n,
                  .k_pad = ceil_div(n, 8) * 8,
                  .x_seg_len = xseg,
                  .seg_len = wseg < xseg ? wseg : xseg,
                  .zero_const = random_u32() % 3 == 0 ? 0
                                : random_u32() % 2    ? 8
                                                      : 128};
    t.row_stride = ceil_div(t.k_pad, 64) * 64;
    return t;
}

static void packed_tiles_are_the_references(void **state)
{
    (void)state;
    nb_kernels ref, variant[N_ISA_MASKS];
    nb_kernels_init(&ref, 0);
    const int n_variants = isa_tables(variant);
    int n_bad = 0;
    for (int round = 0; round < 6000; round++) {
        const int64_t n = round % 16 == 0 ? 1 + random_below(1500) : 1 + random_below(300);
        const bool floats = round % 4 == 0, wide = !floats && round % 2 == 1;
        const nb_xtile shape = random_shape(n, !floats && round % 5 == 0);
        const int64_t ld = n + random_below(5);
        float *x = random_x(n, shape.n_tok, ld, (int)random_below(4));
        if (round % 7 == 0) {
            static const uint32_t bad[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc12345u};
            x[random_below(shape.n_tok) * ld + random_below(n)] =
                nb_f32_from_bits(bad[random_below(4)]);
            n_bad++;
        }
        tile want = make_tile(&shape, floats, wide);
        const bool finite = pack(&ref, &want, x, ld);
        for (int v = 0; v < n_variants; v++) {
            tile got = make_tile(&shape, floats, wide);
            assert_int_equal(pack(&variant[v], &got, x, ld), finite);
            const int differ = difference(&want, &got);
            if (differ >= 0)
                fail_msg("%s: array %d differs: %d tokens of %lld columns, scales %lld, segments "
                         "%lld, rows %d, wide %d",
                         nb_isa_name(variant[v].isa), differ, shape.n_tok, (long long)n,
                         (long long)shape.x_seg_len, (long long)shape.seg_len, shape.rows, wide);
            free_tile(&got);
        }
        free_tile(&want);
        check_free(x);
    }
    assert_true(n_bad > 500);
}

/* What the packing promises by itself: sums are of the codes, start is -z times them. */
static void sums_are_of_the_codes(void **state)
{
    (void)state;
    nb_kernels k;
    nb_kernels_init(&k, NB_ISA_ALL);
    for (int round = 0; round < 300; round++) {
        const int64_t n = 1 + random_below(200);
        const nb_xtile shape = random_shape(n, false);
        const int64_t T = shape.n_tok;
        float *x = random_x(n, T, n, 3);
        tile a = make_tile(&shape, false, round % 2 == 1);
        assert_true(pack(&k, &a, x, n));
        for (int64_t s = 0; s * shape.seg_len < n; s++)
            for (int64_t t = 0; t < T; t++) {
                int32_t sum = 0;
                for (int64_t c = s * shape.seg_len; c < (s + 1) * shape.seg_len && c < n; c++) {
                    const int64_t at = (c / 4 * T + t) * 4 + c % 4;
                    sum += a.t.lo != NULL ? 256 * a.t.hi[at] + a.t.lo[at] : a.t.hi[at];
                }
                assert_int_equal(a.t.xsum[s * T + t], sum);
                if (a.t.start != NULL)
                    assert_int_equal(a.t.start[s * T + t], -shape.zero_const * sum);
            }
        for (int64_t c = n; c < shape.k_pad; c++)
            for (int64_t t = 0; t < T; t++)
                assert_int_equal(a.t.hi[(c / 4 * T + t) * 4 + c % 4], 0);
        free_tile(&a);
        check_free(x);
    }
}

/* ---- products ---- */

/* Random panels of codes; every array fenced. */
static nb_panels random_panels(nb_panel_kind kind, int64_t n_rows, const nb_xtile *x, int64_t wseg,
                               bool zeros, bool mins, int extreme)
{
    nb_panels p = {.kind = kind,
                   .n_rows = n_rows,
                   .n_cols = x->n_cols,
                   .k_pad = x->k_pad,
                   .n_panels = ceil_div(n_rows, NB_PANEL_ROWS),
                   .panel_bytes = x->k_pad * NB_PANEL_ROWS / (kind == NB_PANEL_U8 ? 1 : 2),
                   .seg_len = wseg,
                   .n_segs = ceil_div(x->n_cols, wseg),
                   .scale_type = (nb_float_type)random_below(3),
                   .zero_const = x->zero_const};
    const int64_t n = p.n_panels * p.n_segs * NB_PANEL_ROWS;
    const int64_t type = (int64_t)nb_float_bytes(p.scale_type);
    p.codes = check_alloc((size_t)(p.n_panels * p.panel_bytes));
    for (int64_t i = 0; i < p.n_panels * p.panel_bytes; i++)
        p.codes[i] = extreme == 0 ? (uint8_t)random_u32() : extreme == 1 ? 0xff : 0;
    for (int i = 0; i < 16; i++)
        p.table[i] = (uint8_t)random_u32();
    p.scales = check_alloc((size_t)(n * type));
    p.mins = mins ? check_alloc((size_t)(n * type)) : NULL;
    p.zeros = zeros ? check_alloc((size_t)(2 * n)) : NULL;
    for (int64_t i = 0; i < n; i++) {
        nb_float_put(p.scales, p.scale_type, i, random_f32() * 0.01f);
        if (mins)
            nb_float_put(p.mins, p.scale_type, i, random_f32());
        if (zeros)
            p.zeros[i] = (int16_t)(random_below(384) - 64);
    }
    return p;
}

static void free_panels(nb_panels *p)
{
    check_free(p->codes);
    check_free(p->scales);
    check_free(p->mins);
    check_free(p->zeros);
}

/* Results that differ between the table and the reference, over both products. */
static int64_t differing(const nb_kernels *ref, const nb_kernels *k, const nb_panels *w,
                         const tile *floats, const tile *codes)
{
    const int64_t T = codes->t.n_tok, ldy = w->n_rows + 3, bytes = 4 * ldy * T, none = 0;
    float *want = check_alloc((size_t)bytes), *got = check_alloc((size_t)bytes);
    _Alignas(64) static float scratch[NB_GEMM_SCRATCH];
    int64_t n = 0;
    for (int mode = 0; mode < 2; mode++) {
        memset(want, 0x5a, (size_t)bytes);
        memset(got, 0x5a, (size_t)bytes);
        for (int64_t begin = 0; begin < w->n_panels;) { /* in pieces, as threads would */
            const int64_t end = begin + 1 + random_below(w->n_panels - begin);
            if (mode == 0) {
                ref->gemm_f(want, ldy, w, begin, end, &floats->t, &none, 1, scratch);
                k->gemm_f(got, ldy, w, begin, end, &floats->t, &none, 1, scratch);
            } else {
                ref->gemm_i(want, ldy, w, begin, end, &codes->t);
                k->gemm_i(got, ldy, w, begin, end, &codes->t);
            }
            begin = end;
        }
        assert_true(check_guard_ok(got));
        for (int64_t i = 0; i < ldy * T; i++) /* what is not written must stay too */
            n += memcmp(want + i, got + i, 4) != 0 && !(isnan(want[i]) && isnan(got[i]));
    }
    check_free(want);
    check_free(got);
    return n;
}

static void products_of_a_tile_are_the_references(void **state)
{
    (void)state;
    nb_kernels ref, variant[N_ISA_MASKS];
    nb_kernels_init(&ref, 0);
    const int n_variants = isa_tables(variant);
    static const nb_panel_kind kinds[] = {NB_PANEL_U4, NB_PANEL_T4, NB_PANEL_U8};
    for (int round = 0; round < 2500; round++) {
        const int64_t n = 1 + random_below(round % 10 == 0 ? 700 : 200);
        nb_xtile shape = random_shape(n, false);
        const int64_t wseg = shape.seg_len == shape.x_seg_len && random_u32() % 2
                                 ? ceil_div(n, shape.seg_len) * shape.seg_len
                                 : shape.seg_len;
        const bool zeros = round % 3 == 0, mins = round % 4 == 0;
        /* A longer segment of 16-bit codes would not fit in int32: the layout never asks for it. */
        const bool wide = random_u32() % 2 && (shape.seg_len <= 128 || n <= 128);
        if (zeros)
            shape.zero_const = 0;
        nb_panels w =
            random_panels(kinds[round % 7 % 3], 1 + random_below(120), &shape, wseg, zeros, mins,
                          round % 20 == 1   ? 1
                          : round % 20 == 2 ? 2
                                            : 0);
        float *x = random_x(n, shape.n_tok, n, round % 20 == 1 ? 0 : 3);
        tile codes = make_tile(&shape, false, wide), floats = make_tile(&shape, true, false);
        pack(&ref, &codes, x, n);
        pack(&ref, &floats, x, n);
        for (int v = 0; v < n_variants; v++) {
            const int64_t differ = differing(&ref, &variant[v], &w, &floats, &codes);
            if (differ != 0)
                fail_msg("%s: %lld results differ: kind %d, %lld x %lld, %d tokens, segments of "
                         "%lld and %lld, zeros %d, mins %d, wide %d",
                         nb_isa_name(variant[v].isa), (long long)differ, w.kind,
                         (long long)w.n_rows, (long long)n, shape.n_tok, (long long)wseg,
                         (long long)shape.x_seg_len, zeros, mins, wide);
        }
        free_tile(&codes);
        free_tile(&floats);
        free_panels(&w);
        check_free(x);
    }
}

/* The longest segment with the largest codes: the sum of magnitudes comes near 2^31, and what the
 * kernel starts from and adds may wrap on the way there. */
static void the_longest_segment_is_exact(void **state)
{
    (void)state;
    nb_kernels ref, variant[N_ISA_MASKS];
    nb_kernels_init(&ref, 0);
    const int n_variants = isa_tables(variant);
    const int64_t n = NB_SEG_MAX;
    for (int sign = -1; sign <= 1; sign += 2)
        for (int extreme = 1; extreme <= 2; extreme++) {
            const nb_xtile shape = {.n_tok = 2,
                                    .n_cols = n,
                                    .k_pad = n,
                                    .row_stride = n,
                                    .x_seg_len = n,
                                    .seg_len = n,
                                    .zero_const = 128};
            float *x = check_floats(2 * n);
            for (int64_t i = 0; i < 2 * n; i++)
                x[i] = (float)sign;
            nb_panels w =
                random_panels(NB_PANEL_U8, NB_PANEL_ROWS, &shape, n, false, false, extreme);
            tile codes = make_tile(&shape, false, false), floats = make_tile(&shape, true, false);
            pack(&ref, &codes, x, n);
            pack(&ref, &floats, x, n);
            assert_int_equal(codes.t.xsum[0], 127 * sign * n);
            for (int v = 0; v < n_variants; v++)
                assert_int_equal(differing(&ref, &variant[v], &w, &floats, &codes), 0);
            free_tile(&codes);
            free_tile(&floats);
            free_panels(&w);
            check_free(x);
        }
}

/* ---- the tests themselves are tested ---- */

static const nb_kernels *honest;

static bool broken_pack(const nb_xtile *t, const float *x, int64_t ld, void *staging)
{
    const bool finite = honest->pack_tile(t, x, ld, staging);
    t->xsum[t->n_tok - 1]++;
    return finite;
}

static void broken_gemm_i(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                          const nb_xtile *t)
{
    honest->gemm_i(y, ldy, w, begin, end, t);
    y[w->n_rows] = 0; /* a column past the last row */
}

static void planted_faults_are_caught(void **state)
{
    (void)state;
    nb_kernels ref, broken;
    nb_kernels_init(&ref, 0);
    honest = &ref;
    broken = ref;
    broken.pack_tile = broken_pack;
    broken.gemm_i = broken_gemm_i;
    const nb_xtile shape = {
        .n_tok = 3, .n_cols = 64, .k_pad = 64, .x_seg_len = 32, .seg_len = 32, .zero_const = 8};
    float *x = random_x(64, 3, 64, 3);
    tile want = make_tile(&shape, false, false), got = make_tile(&shape, false, false);
    tile floats = make_tile(&shape, true, false);
    pack(&ref, &want, x, 64);
    pack(&ref, &floats, x, 64);
    pack(&broken, &got, x, 64);
    assert_int_equal(difference(&want, &got), XSUM);
    nb_panels w = random_panels(NB_PANEL_U4, 20, &shape, 32, false, false, 0);
    assert_true(differing(&ref, &broken, &w, &floats, &want) > 0);
    free_panels(&w);
    free_tile(&want);
    free_tile(&got);
    free_tile(&floats);
    check_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_tiles_are_the_references),
        cmocka_unit_test(sums_are_of_the_codes),
        cmocka_unit_test(products_of_a_tile_are_the_references),
        cmocka_unit_test(the_longest_segment_is_exact),
        cmocka_unit_test(planted_faults_are_caught),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
