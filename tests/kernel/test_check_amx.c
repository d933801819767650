/* Matrix products on AMX against the scalar reference, bit for bit. The machine code of amx_dot.c
 * runs on the processor's tiles where it has them and on emulated ones elsewhere, and every array
 * that it reads or writes ends at a page that cannot be touched. */
#include "support/amx_emulator.h"
#include "support/check.h"
#include "support/golden.h"

#include "kernel/gemm.h"
#include "numeric/minifloat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)

typedef struct {
    nb_panel_kind kind;
    int64_t n_rows, n_cols, seg_len;
    nb_float_type scale_type;
    int zeros; /* 0: none; else they lie in [-zeros / 2, zeros / 2) around the kind's own */
    bool mins, per_token;
} shape;

static const shape shapes[] = {
    /* short segments: every length that a format or a group size may bring */
    {NB_PANEL_U4, 32, 128, 8, NB_BF16, 0, false, false},
    {NB_PANEL_U4, 17, 192, 16, NB_F16, 0, true, false},
    {NB_PANEL_U4, 48, 576, 32, NB_F16, 0, false, false},
    {NB_PANEL_U4, 40, 288, 32, NB_F16, 0, true, false},
    {NB_PANEL_U4, 33, 240, 40, NB_F32, 0, false, false},
    {NB_PANEL_U4, 16, 288, 48, NB_F32, 16, false, false},
    {NB_PANEL_U4, 50, 576, 64, NB_BF16, 0, false, false},
    {NB_PANEL_U4, 50, 320, 64, NB_BF16, 16, false, false},
    {NB_PANEL_U4, 16, 288, 96, NB_F32, 0, true, false},
    {NB_PANEL_U4, 23, 384, 128, NB_F32, 16, false, false},
    {NB_PANEL_U4, 31, 256, 64, NB_F16, 700, true, false}, /* zero points that no byte can take */
    {NB_PANEL_U8, 48, 576, 32, NB_F16, 0, false, false},
    {NB_PANEL_U8, 18, 256, 16, NB_F32, 0, true, false},
    {NB_PANEL_U8, 33, 384, 128, NB_F16, 256, true, false},
    {NB_PANEL_U8, 30, 96, 96, NB_F32, 256, false, false},
    {NB_PANEL_T4, 48, 320, 32, NB_F16, 0, false, false},
    {NB_PANEL_T4, 20, 256, 64, NB_BF16, 0, false, false},
    {NB_PANEL_T4, 20, 256, 64, NB_F32, 100, true, false},
    /* several blocks of columns */
    {NB_PANEL_U4, 32, 1344, 32, NB_F16, 0, false, false},
    {NB_PANEL_U8, 33, 1536, 128, NB_BF16, 0, true, false},
    {NB_PANEL_U4, 16, 1360, 16, NB_BF16, 0, true, false}, /* they cut groups of activations */
    /* rows and segments that end anywhere */
    {NB_PANEL_U4, 9, 100, 100, NB_F32, 0, false, false},
    {NB_PANEL_U4, 1, 7, 7, NB_F16, 16, false, false},
    {NB_PANEL_U4, 47, 300, 64, NB_F16, 0, true, false},
    {NB_PANEL_U4, 16, 84, 16, NB_F16, 0, false, false},
    {NB_PANEL_U8, 16, 3, 3, NB_F32, 0, false, false},
    {NB_PANEL_U8, 65, 127, 127, NB_F32, 0, true, false},
    {NB_PANEL_T4, 15, 333, 32, NB_F16, 0, false, false},
    /* long segments: one scale a token */
    {NB_PANEL_U8, 48, 576, 576, NB_BF16, 0, false, true},
    {NB_PANEL_U8, 30, 575, 575, NB_F32, 256, false, true},
    {NB_PANEL_U8, 33, 1300, 1300, NB_F32, 0, true, true},
    {NB_PANEL_U4, 17, 1984, 1984, NB_F16, 0, false, true},
    {NB_PANEL_U4, 32, 1030, 1030, NB_F16, 16, true, true},
    {NB_PANEL_T4, 40, 700, 700, NB_F32, 0, false, true},
    {NB_PANEL_U4, 16, 768, 256, NB_F16, 0, false, true},
    {NB_PANEL_U8, 34, 1350, 192, NB_F16, 256, true, true},
    {NB_PANEL_U8, 19, 1000, 136, NB_F32, 0, false, true},
    {NB_PANEL_U4, 16, 1290, 640, NB_F32, 700, true, true},
    {NB_PANEL_U4, 33, 320, 32, NB_F16, 0, true, true},
    {NB_PANEL_U4, 33, 1408, 128, NB_F16, 0, false, true},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* What the weights and activations look like. */
typedef enum { ORDINARY, WILD, LARGEST, NOT_FINITE, N_DATA } data_kind;

static uint64_t counter;

static uint32_t random_u32(void)
{
    return (uint32_t)check_pick(12, counter++, (int64_t)1 << 32);
}

static float random_f32(void)
{
    return (float)((double)random_u32() * 0x1p-31 - 1.0);
}

static void fill_bytes(uint8_t *p, int64_t n, data_kind data)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = data == LARGEST ? 0xff : (uint8_t)random_u32();
}

/* Panels in guarded memory: free with free_panels. */
static nb_panels make_panels(const shape *s, data_kind data)
{
    nb_panels p = {.kind = s->kind,
                   .n_rows = s->n_rows,
                   .n_cols = s->n_cols,
                   .k_pad = (s->n_cols + 7) / 8 * 8,
                   .n_panels = (s->n_rows + 15) / 16,
                   .seg_len = s->seg_len,
                   .n_segs = (s->n_cols + s->seg_len - 1) / s->seg_len,
                   .scale_type = s->scale_type,
                   .zero_const = s->kind == NB_PANEL_U4 ? (s->mins ? 0 : 8) : 128};
    p.panel_bytes = p.k_pad * 16 / (s->kind == NB_PANEL_U8 ? 1 : 2);
    p.codes = check_alloc((size_t)(p.n_panels * p.panel_bytes));
    fill_bytes(p.codes, p.n_panels * p.panel_bytes, data);
    for (int i = 0; i < 16; i++)
        p.table[i] = (uint8_t)random_u32();
    const int64_t n = p.n_panels * p.n_segs * 16;
    const size_t float_bytes = nb_float_bytes(s->scale_type);
    p.scales = check_alloc((size_t)n * float_bytes);
    p.mins = s->mins ? check_alloc((size_t)n * float_bytes) : NULL;
    p.zeros = s->zeros > 0 ? check_alloc((size_t)n * 2) : NULL;
    for (int64_t i = 0; i < n; i++) {
        nb_float_put(p.scales, p.scale_type, i, random_f32() * 0.01f);
        const bool last = i / 16 % p.n_segs == p.n_segs - 1; /* a tame one after wild ones */
        const int range = last && s->zeros > 256 ? 16 : s->zeros;
        if (p.zeros != NULL)
            p.zeros[i] = (int16_t)(p.zero_const - range / 2 +
                                   (data == LARGEST ? 0 : check_pick(13, counter++, range)));
        if (p.mins != NULL)
            nb_float_put(p.mins, p.scale_type, i, random_f32());
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

static void *guarded_copy(const void *from, int64_t bytes)
{
    return from != NULL ? memcpy(check_alloc((size_t)bytes), from, (size_t)bytes) : NULL;
}

/* The tiles of a packing with every array where its end bites. */
static nb_xtile *guarded_tiles(const nb_xpacked *p)
{
    nb_xtile *tiles = malloc((size_t)p->n_tiles * sizeof *tiles);
    for (int64_t i = 0; i < p->n_tiles; i++) {
        nb_xtile *t = &tiles[i];
        *t = p->tiles[i];
        const int64_t plane = t->row_stride * t->n_tok;
        const int64_t sums = (t->n_cols + t->seg_len - 1) / t->seg_len * t->n_tok * 4;
        const int64_t scales = (t->n_cols + t->x_seg_len - 1) / t->x_seg_len * t->n_tok * 4;
        t->hi = guarded_copy(t->hi, plane);
        t->lo = guarded_copy(t->lo, plane);
        t->scale = guarded_copy(t->scale, scales);
        t->xsum = guarded_copy(t->xsum, sums);
        t->start = guarded_copy(t->start, sums);
    }
    return tiles;
}

static void free_tiles(nb_xtile *tiles, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        check_free(tiles[i].hi);
        check_free(tiles[i].lo);
        check_free(tiles[i].scale);
        check_free(tiles[i].xsum);
        check_free(tiles[i].start);
    }
    free(tiles);
}

static float *make_activations(const shape *s, int n_tok, data_kind data)
{
    float *x = malloc((size_t)(s->n_cols * n_tok) * sizeof *x);
    if (data == WILD)
        check_fill(x, s->n_cols * n_tok, CHECK_EXTREME, counter++);
    else
        for (int64_t i = 0; i < s->n_cols * n_tok; i++)
            x[i] = data == LARGEST ? 1.0f : random_f32();
    if (data == NOT_FINITE) { /* the first, the last, and one between */
        x[0] = INFINITY;
        x[s->n_cols * (n_tok / 2) + s->n_cols / 2] = NAN;
        x[s->n_cols * n_tok - 1] = -INFINITY;
    }
    return x;
}

static nb_gemm_rows_fn *amx_rows(void)
{
    nb_kernels k;
    nb_kernels_init(&k, NB_ISA_ALL);
    nb_kernels_amx_dot(&k);
    return k.gemm_rows;
}

/* One product by `rows` in guarded memory, its panels in two calls, against the reference; nothing
 * where the shape has no such mode, because segments do not nest. */
static void check_product(check_run *run, nb_gemm_rows_fn *rows, nb_pool *pool, const shape *s,
                          int n_tok, nb_compute mode, data_kind data)
{
    nb_kernels ref, with_rows;
    nb_kernels_init(&ref, 0);
    with_rows = ref;
    with_rows.gemm_rows = rows;
    nb_panels w = make_panels(s, data);
    nb_xlayout layout;
    nb_xlayout_for(&layout, &w, mode, s->per_token);
    if (layout.mode != mode) {
        free_panels(&w);
        return;
    }
    float *x = make_activations(s, n_tok, data);
    nb_err err;
    void *buffer;
    assert_int_equal(nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(s->n_cols, n_tok), &err), NB_OK);

    const int64_t ldy = s->n_rows + 5, n_y = ldy * (n_tok - 1) + s->n_rows;
    float *want = check_floats(n_y), *got = check_floats(n_y);
    for (int64_t i = 0; i < n_y; i++)
        want[i] = got[i] = 12345.0f;
    nb_xpacked packed;
    nb_xpack(&packed, &layout, &ref, pool, x, s->n_cols, n_tok, buffer);
    nb_gemm(&ref, pool, &packed, &(nb_gemm_job){&w, want, ldy}, 1);

    nb_xpack(&packed, &layout, &with_rows, pool, x, s->n_cols, n_tok, buffer);
    assert_true(packed.tiles[0].rows);
    nb_xtile *tiles = guarded_tiles(&packed);
    float *scratch = check_floats(NB_GEMM_SCRATCH);
    const int64_t cut = check_pick(14, counter++, w.n_panels + 1);
    rows(got, ldy, &w, 0, cut, tiles, packed.tile_first, packed.n_tiles, scratch);
    rows(got, ldy, &w, cut, w.n_panels, tiles, packed.tile_first, packed.n_tiles, scratch);

    assert_false(amx_configured()); /* the thread gave its tiles back */
    char what[200];
    snprintf(what, sizeof what, "shape %td, %d tokens, %s, data %d", s - shapes, n_tok,
             nb_compute_name(mode), (int)data);
    check_same_f32(run, what, got, want, n_y);
    check_guard(run, what, got);
    check_guard(run, what, scratch);
    check_free(scratch);
    free_tiles(tiles, packed.n_tiles);
    check_free(want);
    check_free(got);
    nb_free(buffer);
    free(x);
    free_panels(&w);
}

static nb_pool *open_pool(int n_threads)
{
    nb_err err;
    nb_pool *pool;
    assert_int_equal(nb_pool_open(&pool, n_threads, &err), NB_OK);
    return pool;
}

/* ---- tests ---- */

/* All shapes in both modes; token counts that fill tiles, leave them uneven, and come in pairs. */
static void products_equal_the_reference_bit_for_bit(void **state)
{
    (void)state;
    if (amx_begin(nb_cpu_isa()) == AMX_ABSENT)
        skip();
    static const int n_toks[] = {16, 17, 31, 32, 33, 48, 51, 70};
    enum { N_TOKS = sizeof n_toks / sizeof *n_toks };
    nb_pool *pool = open_pool(1);
    nb_gemm_rows_fn *rows = amx_rows();
    check_run run = {.name = "gemm_rows"};
    for (int i = 0; i < N_SHAPES; i++) {
        const shape *s = &shapes[i];
        for (int t = 0; t < N_TOKS; t++) {
            /* Large products only with few of the counts, another few for each shape. */
            if (s->n_rows * s->n_cols > 20000 && (t + i) % 3 != 0)
                continue;
            const data_kind data = (data_kind)((t + i) % 5 < N_DATA ? (t + i) % 5 : ORDINARY);
            check_product(&run, rows, pool, s, n_toks[t], NB_COMPUTE_I8, data);
            check_product(&run, rows, pool, s, n_toks[t], NB_COMPUTE_I16, data);
        }
    }
    nb_pool_close(pool);
    amx_end();
    check_finish(&run);
}

/* Every count from the least that makes tiles of rows. */
static void every_count_of_tokens_is_right(void **state)
{
    (void)state;
    if (amx_begin(nb_cpu_isa()) == AMX_ABSENT)
        skip();
    static const shape some[] = {{NB_PANEL_U4, 18, 64, 32, NB_F16, 0, true, false},
                                 {NB_PANEL_U8, 34, 192, 192, NB_F32, 0, false, true}};
    nb_pool *pool = open_pool(1);
    nb_gemm_rows_fn *rows = amx_rows();
    check_run run = {.name = "gemm_rows"};
    for (int n_tok = 16; n_tok <= 70; n_tok++) {
        check_product(&run, rows, pool, &some[0], n_tok, NB_COMPUTE_I8, ORDINARY);
        check_product(&run, rows, pool, &some[0], n_tok, NB_COMPUTE_I16, ORDINARY);
        check_product(&run, rows, pool, &some[1], n_tok, NB_COMPUTE_I8, ORDINARY);
    }
    nb_pool_close(pool);
    amx_end();
    check_finish(&run);
}

/* Through the front door: packing by the machine's own kernels, chunks on three threads, each with
 * its tiles. And no more multiplies than the plan has. */
static void threads_have_tiles_of_their_own(void **state)
{
    (void)state;
    const amx_kind kind = amx_begin(nb_cpu_isa());
    if (kind == AMX_ABSENT)
        skip();
    static const shape s = {NB_PANEL_U4, 250, 576, 32, NB_F16, 0, false, false};
    enum { N_TOK = 45 };
    nb_pool *pool = open_pool(3);
    nb_kernels ref, k;
    nb_kernels_init(&ref, 0);
    nb_kernels_init(&k, NB_ISA_ALL);
    nb_kernels_amx_dot(&k);
    nb_panels w = make_panels(&s, ORDINARY);
    float *x = make_activations(&s, N_TOK, ORDINARY);
    float *want = check_floats(s.n_rows * N_TOK), *got = check_floats(s.n_rows * N_TOK);
    nb_err err;
    void *buffer;
    assert_int_equal(nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(s.n_cols, N_TOK), &err), NB_OK);
    check_run run = {.name = "nb_gemm"};
    for (int mode = NB_COMPUTE_I8; mode <= NB_COMPUTE_I16; mode++) {
        nb_xlayout layout;
        nb_xlayout_for(&layout, &w, (nb_compute)mode, false);
        nb_xpacked packed;
        nb_xpack(&packed, &layout, &ref, pool, x, s.n_cols, N_TOK, buffer);
        nb_gemm(&ref, pool, &packed, &(nb_gemm_job){&w, want, s.n_rows}, 1);
        nb_xpack(&packed, &layout, &k, pool, x, s.n_cols, N_TOK, buffer);
        assert_true(packed.tiles[0].rows);
        const int64_t before = amx_n_products();
        nb_gemm(&k, pool, &packed, &(nb_gemm_job){&w, got, s.n_rows}, 1);
        /* panels * tiles of tokens * segments * planes */
        if (kind == AMX_EMULATED)
            assert_int_equal(amx_n_products() - before, 16 * 3 * 18 * mode);
        check_same_f32(&run, nb_compute_name((nb_compute)mode), got, want, s.n_rows * N_TOK);
    }
    nb_free(buffer);
    check_free(want);
    check_free(got);
    free(x);
    free_panels(&w);
    nb_pool_close(pool);
    amx_end();
    check_finish(&run);
}

/* Which products go to tiles of rows: enough tokens, and segments that fit. */
static void the_plan_takes_rows_where_they_fit(void **state)
{
    (void)state;
    static const struct {
        int64_t n_cols, seg_len;
        int n_tok;
        nb_compute mode;
        bool per_token, rows;
    } cases[] = {
        {256, 32, 16, NB_COMPUTE_I8, false, true},
        {256, 32, 15, NB_COMPUTE_I8, false, false},
        {256, 32, 16, NB_COMPUTE_I16, false, true},
        {256, 32, 64, NB_COMPUTE_F, false, false},
        {4096, 4096, 16, NB_COMPUTE_I8, true, true},
        {4096, 4096, 16, NB_COMPUTE_I16, false, true},
        {4096, 640, 16, NB_COMPUTE_I8, true, true},
        {4096, 1024, 16, NB_COMPUTE_I8, true, false},
        {4096, 1024, 16, NB_COMPUTE_I8, false, true},     /* segments of the activations: 128 */
        {131072, 131072, 16, NB_COMPUTE_I8, true, false}, /* two segments: a row is too long */
    };
    nb_kernels k;
    nb_kernels_init(&k, 0);
    nb_kernels_amx_dot(&k);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const nb_panels w = {.kind = NB_PANEL_U8,
                             .n_rows = 16,
                             .n_cols = cases[i].n_cols,
                             .k_pad = cases[i].n_cols,
                             .seg_len = cases[i].seg_len,
                             .n_segs = cases[i].n_cols / cases[i].seg_len,
                             .zero_const = 128};
        nb_xlayout layout;
        nb_xlayout_for(&layout, &w, cases[i].mode, cases[i].per_token);
        assert_int_equal(layout.mode, cases[i].mode);
        nb_err err;
        void *buffer;
        assert_int_equal(
            nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(cases[i].n_cols, cases[i].n_tok), &err),
            NB_OK);
        nb_xpacked packed;
        nb_xpack_plan(&packed, &layout, &k, cases[i].n_tok, buffer);
        if (packed.tiles[0].rows != cases[i].rows)
            fail_msg("case %zu: rows %d", i, packed.tiles[0].rows);
        nb_free(buffer);
    }
}

/* ---- tests of the test ---- */

/* Emulated wrongly, the same kernel gives other bits: each fault is one that a kernel could have.
 */
static void faults_of_the_unit_are_caught(void **state)
{
    (void)state;
    static const shape short_ = {NB_PANEL_U4, 32, 128, 32, NB_F16, 0, false, false},
                       long_ = {NB_PANEL_U8, 64, 256, 256, NB_F16, 0, false, true};
    for (int fault = AMX_RIGHT + 1; fault < AMX_N_PLANTED; fault++) {
        if (amx_begin(nb_cpu_isa()) != AMX_EMULATED) {
            printf("SKIP: no faults can be planted in a processor\n");
            skip();
        }
        nb_pool *pool = open_pool(1);
        amx_plant((amx_planted)fault);
        check_run run = {.name = "a wrong unit"};
        check_product(&run, amx_rows(), pool, &short_, 32, NB_COMPUTE_I8, ORDINARY);
        check_caught(&run);
        run = (check_run){.name = "a wrong unit, i16"};
        check_product(&run, amx_rows(), pool, &short_, 32, NB_COMPUTE_I16, ORDINARY);
        check_caught(&run);
        run = (check_run){.name = "a wrong unit, long segments"};
        check_product(&run, amx_rows(), pool, &long_, 32, NB_COMPUTE_I8, ORDINARY);
        check_caught(&run);
        nb_pool_close(pool);
        amx_end();
    }
}

static void broken_rows(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                        const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                        float *scratch)
{
    amx_rows()(y, ldy, w, begin, end, tiles, tile_first, n_tiles, scratch);
    if (begin < end && end == w->n_panels) { /* one last bit of one result */
        float *last = &y[(tile_first[n_tiles - 1] + tiles[n_tiles - 1].n_tok - 1) * ldy];
        *last = nb_f32_from_bits(nb_f32_bits(*last) ^ 1u);
    }
}

static void writes_too_much(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                            const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                            float *scratch)
{
    amx_rows()(y, ldy, w, begin, end, tiles, tile_first, n_tiles, scratch);
    y[w->n_rows] = 0; /* between the rows of two tokens */
}

static void faults_of_a_kernel_are_caught(void **state)
{
    (void)state;
    if (amx_begin(nb_cpu_isa()) == AMX_ABSENT)
        skip();
    static const shape s = {NB_PANEL_U4, 40, 128, 32, NB_F16, 0, false, false};
    nb_pool *pool = open_pool(1);
    check_run run = {.name = "one bit"};
    check_product(&run, broken_rows, pool, &s, 20, NB_COMPUTE_I8, ORDINARY);
    check_caught(&run);
    run = (check_run){.name = "one float too much"};
    check_product(&run, writes_too_much, pool, &s, 20, NB_COMPUTE_I8, ORDINARY);
    check_caught(&run);
    nb_pool_close(pool);
    amx_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_equal_the_reference_bit_for_bit),
        cmocka_unit_test(every_count_of_tokens_is_right),
        cmocka_unit_test(threads_have_tiles_of_their_own),
        cmocka_unit_test(the_plan_takes_rows_where_they_fit),
        cmocka_unit_test(faults_of_the_unit_are_caught),
        cmocka_unit_test(faults_of_a_kernel_are_caught),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
int main(void)
{
    printf("SKIP amx: not an x86-64 machine\n");
    return 77;
}
#endif
