/* The bit matrix: it holds for a sound model, covers what it says, and finds where two runs part.
 */
#include "support/golden.h"

#include "base/fpenv.h"
#include "base/rng.h"
#include "eval/verify.h"
#include "support/scratch.h"
#include "support/tiny_model.h"
#include "support/must.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    nb_pool *pool;
    nb_store *store;
    nb_model model;
} opened;

static void open_model(opened *o, const char *name, const tiny_model *how, int64_t n_ctx)
{
    nb_err err;
    const char *path = scratch_exists(name) ? scratch_path(name) : tiny_model_write(name, how);
    must(nb_pool_open(&o->pool, 1, &err), &err);
    must(nb_store_open(&o->store, path, &err), &err);
    must(nb_model_open(&o->model, o->store, &(nb_model_options){NB_COMPUTE_AUTO, n_ctx}, o->pool,
                       &err),
         &err);
}

static void close_model(opened *o)
{
    nb_model_close(&o->model);
    nb_store_close(o->store);
    nb_pool_close(o->pool);
}

enum { N_TOKENS = 40 };

static const tiny_model sound = {.n_ctx = 512};

static bool same_place(nb_place a, nb_place b)
{
    return a.layer == b.layer && a.token == b.token && a.op == b.op;
}

static const int32_t *some_tokens(void)
{
    static int32_t tokens[512];
    for (int i = 0; i < 512; i++) {
        uint32_t w[4];
        nb_philox(9, 0, (uint64_t)i, w);
        tokens[i] = (int32_t)(w[0] % TINY_VOCAB);
    }
    return tokens;
}

static nb_way_job job_of(const opened *o, nb_kv_format kv, int64_t n)
{
    return (nb_way_job){.model = &o->model, .kv = kv, .tokens = some_tokens(), .n_tokens = n};
}

/* All that this machine has, the best first. */
static int isas_here(nb_verify_isa *out, int64_t n_tokens)
{
    static const char *const names[] = {"amx", "avx512", "avx2", "neon", "scalar"};
    int n = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        nb_err err;
        nb_verify_isa isa = {.name = names[i], .n_tokens = n_tokens};
        must(nb_isa_parse(names[i], &isa.mask, &err), &err);
        isa.slow = isa.mask == NB_ISA_SCALAR;
        if ((nb_cpu_isa() & isa.mask) == isa.mask)
            out[n++] = isa;
    }
    return n;
}

static const int four_threads[] = {1, 2, 3, 8};

/* ---- which ways ---- */

static const nb_verify_isa two_isas[] = {{"avx2", NB_ISA_AVX2, 64, false},
                                         {"scalar", NB_ISA_SCALAR, 16, true}};

/* Number of a way's cut and batch in the order of the matrix. */
static int cut_of(const nb_way *w)
{
    return w->decode ? 4 : w->cut == 0 ? 0 : w->cut == 64 ? 1 : w->cut == 7 ? 2 : 3;
}
static int batch_of(const nb_way *w)
{
    return w->batch == 1 ? 0 : w->batch == 2 ? 1 : w->batch == 7 ? 2 : 3;
}
static int threads_of(const nb_way *w)
{
    return w->threads == 8 ? 3 : w->threads - 1;
}

static void ways_cover_what_they_say(void **state)
{
    (void)state;
    nb_verify_plan plan = {
        .isas = two_isas, .n_isas = 2, .threads = four_threads, .n_threads = 4, .full = true};
    nb_way ways[NB_VERIFY_MAX_WAYS];
    /* All of it: 5 cuts, 4 batches, 4 threads, each combination once; the first and the last way of
     * the first set are the one to compare with and the caller with flush-to-zero. */
    for (int isa = 0; isa < 2; isa++) {
        bool seen[5][4][4] = {{{false}}};
        const int extra = isa == 0, n = nb_verify_ways(&plan, isa, 3, true, ways);
        assert_int_equal(n, 80 + 2 * extra);
        assert_int_equal(n, nb_verify_ways(&plan, isa, 3, false, NULL));
        for (int i = extra; i < n - extra; i++) {
            bool *s = &seen[cut_of(&ways[i])][batch_of(&ways[i])][threads_of(&ways[i])];
            assert_false(*s || ways[i].flush || ways[i].lead != 0);
            assert_string_equal(ways[i].isa, two_isas[isa].name);
            assert_int_equal(ways[i].mask, two_isas[isa].mask);
            *s = true;
        }
        if (extra)
            assert_true(ways[n - 1].flush && !ways[0].flush && ways[0].cut == 0 &&
                        ways[0].batch == 1);
    }
    /* In depth: every pair of values of two axes. Elsewhere: every value. */
    plan.full = false;
    for (int64_t cell = 0; cell < 12; cell++) {
        bool pairs[3][5][4] = {{{false}}}, values[3][5] = {{false}};
        int n = nb_verify_ways(&plan, 0, cell, true, ways);
        assert_int_equal(n, 22);
        for (int i = 1; i < n - 1; i++) {
            const int c = cut_of(&ways[i]), b = batch_of(&ways[i]), t = threads_of(&ways[i]);
            pairs[0][c][b] = pairs[1][c][t] = pairs[2][b][t] = true;
            assert_int_equal(ways[i].lead, ways[i].cut == 1 ? 64 - NB_VERIFY_STEPS : 0);
        }
        n = nb_verify_ways(&plan, 0, cell, false, ways);
        for (int i = 1; i < n - 1; i++)
            values[0][cut_of(&ways[i])] = values[1][batch_of(&ways[i])] =
                values[2][threads_of(&ways[i])] = true;
        for (int x = 0; x < 5; x++) {
            assert_true(values[0][x]);
            for (int y = 0; y < 4; y++) {
                assert_true(pairs[0][x][y] && pairs[1][x][y] && (x == 4 || pairs[2][x][y]));
                assert_true(values[1][y] && values[2][y]);
            }
        }
    }
    /* A slow set: one way a cell, and every cut and number of threads in the end. */
    bool cut[5] = {false}, threads[4] = {false};
    for (int64_t cell = 0; cell < 12; cell++) {
        assert_int_equal(nb_verify_ways(&plan, 1, cell, cell % 4 == 0, ways), 1);
        assert_true(ways[0].batch <= 2);
        cut[cut_of(&ways[0])] = threads[threads_of(&ways[0])] = true;
    }
    for (int i = 0; i < 5; i++)
        assert_true(cut[i] && (i == 4 || threads[i]));
    /* Alone it takes more than itself to compare with; one number of threads is enough. */
    plan = (nb_verify_plan){
        .isas = two_isas + 1, .n_isas = 1, .threads = four_threads, .n_threads = 1};
    assert_int_equal(nb_verify_ways(&plan, 0, 0, true, ways), 7);
    for (int i = 0; i < 7; i++)
        assert_true(ways[i].threads == 1 && ways[i].batch <= 2);
}

static void a_way_is_described(void **state)
{
    (void)state;
    static const struct {
        nb_way way;
        const char *text;
    } cases[] = {
        {{"avx2", 1, 1, 0, 0, false, 1, false}, "avx2, 1 thread, in one piece, alone"},
        {{"amx", 1, 8, 0, 7, false, 7, false}, "amx, 8 threads, cuts of 7, beside 6 others"},
        {{"scalar", 0, 2, 56, 1, true, 2, true},
         "scalar, 2 threads, decoded after 56, beside 1 other, flush-to-zero in the caller"},
        {{NULL, NB_ISA_SCALAR, 3, 56, 1, false, 32, false},
         "scalar, 3 threads, cuts of 1 after 56, beside 31 others"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(nb_way_describe(&cases[i].way).text, cases[i].text);
}

/* ---- sound models ---- */

/* The hash, computed by the plainest way there is. */
static uint64_t plain_hash(const opened *o, nb_kv_format kv, int64_t n)
{
    nb_err err;
    const nb_config *c = &o->model.config;
    nb_kernels k;
    nb_work work;
    nb_kv_pool pages;
    nb_kv_seq seq;
    nb_kernels_init(&k, NB_ISA_SCALAR);
    must(nb_work_init(&work, &o->model, &k, o->pool, 1, &err), &err);
    must(nb_kv_pool_init(&pages, c, kv, nb_kv_pages_for(n), &err), &err);
    must(nb_kv_seq_init(&seq, &pages, n, &err), &err);
    float *hidden = malloc((size_t)c->d_model * sizeof *hidden);
    float *logits = malloc((size_t)c->vocab_size * sizeof *logits);
    uint64_t hash = 0;
    for (int64_t i = 0; i < n; i++) {
        const nb_step_input in = {&seq, some_tokens() + i, 1, 1};
        must(nb_forward(&work, &in, 1, hidden, &err), &err);
        nb_logits(&work, hidden, 1, logits);
        hash ^= nb_logits_hash(logits, c->vocab_size, (uint64_t)i);
    }
    free(hidden);
    free(logits);
    nb_kv_seq_free(&seq);
    nb_kv_pool_free(&pages);
    nb_work_free(&work);
    return hash;
}

static bool count_way(void *context)
{
    ++*(int64_t *)context;
    return true;
}

static uint64_t sound_hash(const opened *o, nb_kv_format kv, int64_t n, bool in_depth, bool full)
{
    nb_err err;
    nb_verify_isa isas[NB_VERIFY_MAX_ISAS];
    const nb_verify_plan plan = {.isas = isas,
                                 .n_isas = isas_here(isas, n),
                                 .threads = four_threads,
                                 .n_threads = full ? 2 : 4,
                                 .full = full};
    const nb_way_job job = job_of(o, kv, n);
    nb_verify_result r;
    int64_t n_called = 0, n_ways = 0, n_expected = 0;
    must(nb_verify_cell(&plan, &job, 1, in_depth, count_way, &n_called, &r, &err), &err);
    if (r.difference.differ)
        fail_msg("%s: %s and %s", nb_difference_place(&r.difference).text,
                 nb_way_describe(&r.difference.ways[0]).text,
                 nb_way_describe(&r.difference.ways[1]).text);
    for (int i = 0; i < plan.n_isas; i++) {
        n_ways += r.n_ways[i];
        n_expected += nb_verify_ways(&plan, i, 1, in_depth, NULL);
    }
    assert_int_equal(n_ways, n_expected);
    assert_int_equal(n_called, n_expected);
    return r.hash;
}

/* Past a page of the cache, and to the last position of the context, where the others of a batch
 * have to start again. */
static void a_sound_model_gives_one_hash(void **state)
{
    (void)state;
    opened o;
    open_model(&o, "sound", &sound, N_TOKENS);
    const uint64_t f16 = sound_hash(&o, NB_KV_F16, N_TOKENS, true, false);
    assert_int_equal(f16, plain_hash(&o, NB_KV_F16, N_TOKENS));
    assert_int_equal(f16, sound_hash(&o, NB_KV_F16, N_TOKENS, false, false));
    const uint64_t f32 = sound_hash(&o, NB_KV_F32, N_TOKENS, false, false);
    assert_int_equal(f32, plain_hash(&o, NB_KV_F32, N_TOKENS));
    assert_true(f16 != f32);
    assert_int_equal(sound_hash(&o, NB_KV_F16, 9, true, true), plain_hash(&o, NB_KV_F16, 9));
    assert_int_equal(sound_hash(&o, NB_KV_F16, 1, true, false), plain_hash(&o, NB_KV_F16, 1));
    close_model(&o);
    open_model(&o, "sound", &sound, 300); /* two splits of attention */
    assert_int_equal(sound_hash(&o, NB_KV_F16, 300, false, false), plain_hash(&o, NB_KV_F16, 300));
    static const nb_kv_format few_bits[] = {NB_KV_FP8, NB_KV_INT4, NB_KV_INT2};
    for (int i = 0; i < 3; i++) { /* past what int2 keeps unsealed */
        const uint64_t hash = sound_hash(&o, few_bits[i], 240, false, false);
        assert_int_equal(hash, plain_hash(&o, few_bits[i], 240));
        assert_true(hash != plain_hash(&o, NB_KV_F16, 240));
    }
    close_model(&o);
}

/* A model that gives NaN gives it in every way. */
static void a_model_of_nan_gives_one_hash(void **state)
{
    (void)state;
    opened o;
    open_model(&o, "nan", &(tiny_model){.nan_head = true}, N_TOKENS);
    assert_int_equal(sound_hash(&o, NB_KV_F16, 20, false, false), plain_hash(&o, NB_KV_F16, 20));
    close_model(&o);
}

/* ---- flush-to-zero ---- */

#if defined(__x86_64__)
#include <immintrin.h>
enum { FLUSHING = 0x8040 };

static const tiny_model subnormal = {.subnormal = true};

/* Here flush-to-zero would show: every embedding is subnormal. */
static void a_host_may_flush_to_zero(void **state)
{
    (void)state;
    opened o;
    open_model(&o, "subnormal", &subnormal, N_TOKENS);
    const uint64_t hash = plain_hash(&o, NB_KV_F16, N_TOKENS);
    nb_kernels k;
    float x[64], y[64], flushed[64];
    nb_kernels_init(&k, NB_ISA_ALL);
    nb_panels_row(&o.model.embed.w, 5, x);
    k.rmsnorm(y, x, o.model.layers[0].attn_norm, 64, 1e-5f);
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSHING);
    k.rmsnorm(flushed, x, o.model.layers[0].attn_norm, 64, 1e-5f);
    const uint64_t matrix = sound_hash(&o, NB_KV_F16, N_TOKENS, true, false);
    const uint64_t plain = plain_hash(&o, NB_KV_F16, N_TOKENS);
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    assert_int_equal(after & ~0x3fu, (before | FLUSHING) & ~0x3fu);
    assert_true(memcmp(y, flushed, sizeof y) != 0 && y[3] != 0 && flushed[3] == 0);
    assert_int_equal(matrix, hash);
    assert_int_equal(plain, hash);
    close_model(&o);
    /* And as a model is loaded. */
    _mm_setcsr(before | FLUSHING);
    open_model(&o, "subnormal", &subnormal, N_TOKENS);
    _mm_setcsr(before);
    assert_int_equal(plain_hash(&o, NB_KV_F16, N_TOKENS), hash);
    close_model(&o);
}
#else
static void a_host_may_flush_to_zero(void **state)
{
    (void)state;
    skip();
}
#endif

/* ---- two models ---- */

static nb_way best_way(void)
{
    return (nb_way){.mask = NB_ISA_ALL, .threads = 2, .batch = 1};
}

/* The element (row, column) of a matrix packed as binary32. */
static float *element(const nb_panels *w, int64_t row, int64_t column)
{
    assert_int_equal(w->kind, NB_PANEL_F32);
    return (float *)(void *)w->codes + (row / NB_PANEL_ROWS * w->n_cols + column) * NB_PANEL_ROWS +
           row % NB_PANEL_ROWS;
}

/* One number of a copy of the model is changed: the first operation that reads it is named. */
static void the_first_operation_is_named(void **state)
{
    (void)state;
    nb_err err;
    opened a, b;
    open_model(&a, "sound", &sound, N_TOKENS);
    open_model(&b, "sound", &sound, N_TOKENS);
    nb_model *m = &b.model;
    nb_layer *y = &m->layers[1];
    const struct {
        float *number;
        nb_place place;
        const char *text;
    } cases[] = {
        {&m->layers[0].attn_norm[63], {0, 0, NB_OP_ATTN_NORM}, "layer 0, attention norm, token 0"},
        {element(&y->q.w, 3, 7), {1, 0, NB_OP_Q}, "layer 1, query, token 0"},
        {element(&y->k.w, 31, 63), {1, 0, NB_OP_K}, "layer 1, key, token 0"},
        {element(&y->v.w, 0, 0), {1, 0, NB_OP_V}, "layer 1, value, token 0"},
        {&m->rope.cos[17 * m->rope.half + 2],
         {0, 17, NB_OP_ROPE_Q},
         "layer 0, query rotation, token 17"},
        {element(&y->o.w, 40, 20), {1, 0, NB_OP_O}, "layer 1, output, token 0"},
        {&y->ffn_norm[0], {1, 0, NB_OP_FFN_NORM}, "layer 1, ffn norm, token 0"},
        {element(&y->gate.w, 127, 5), {1, 0, NB_OP_GATE}, "layer 1, gate, token 0"},
        {element(&y->up.w, 64, 6), {1, 0, NB_OP_UP}, "layer 1, up, token 0"},
        {element(&m->layers[0].down.w, 9, 127), {0, 0, NB_OP_DOWN}, "layer 0, down, token 0"},
        {&m->norm[1], {2, 0, NB_OP_NORM}, "layer 2, final norm, token 0"},
        {element(&m->head.w, 200, 1), {0, 0, NB_N_OPS}, "logits, token 0"},
    };
    for (size_t i = 0; i <= sizeof cases / sizeof *cases; i++) {
        const bool all = i == sizeof cases / sizeof *cases;
        float kept = 0;
        if (!all) {
            kept = *cases[i].number;
            *cases[i].number *= 1.01f;
        }
        const nb_way_job jobs[] = {job_of(&a, NB_KV_F16, N_TOKENS),
                                   job_of(&b, NB_KV_F16, N_TOKENS)};
        nb_difference d;
        uint64_t hash[2];
        must(nb_verify_pair(&(nb_way){.mask = NB_ISA_ALL, .threads = 2, .batch = 1}, jobs, hash, &d,
                            &err),
             &err);
        assert_int_equal(hash[0], plain_hash(&a, NB_KV_F16, N_TOKENS));
        assert_int_equal(d.differ, !all);
        assert_int_equal(hash[0] == hash[1], all);
        if (all)
            continue;
        *cases[i].number = kept;
        assert_string_equal(nb_difference_place(&d).text, cases[i].text);
        assert_true(d.found);
        assert_int_equal(d.in_logits, cases[i].place.op == NB_N_OPS);
        if (!d.in_logits)
            assert_true(same_place(d.place, cases[i].place));
    }
    close_model(&a);
    close_model(&b);
}

static void models_of_other_shapes_are_refused(void **state)
{
    (void)state;
    nb_err err;
    opened a, b;
    open_model(&a, "sound", &sound, N_TOKENS);
    open_model(&b, "deep", &(tiny_model){.n_layers = 3}, N_TOKENS);
    const nb_way_job jobs[] = {job_of(&a, NB_KV_F16, 4), job_of(&b, NB_KV_F16, 4)};
    const nb_way way = best_way();
    nb_difference d;
    uint64_t hash[2];
    assert_int_equal(nb_verify_pair(&way, jobs, hash, &d, &err), NB_DATA);
    assert_string_equal(err.text, "2 layers, 64 wide, of 265 tokens, and the other has 3, 64, 265");
    close_model(&a);
    close_model(&b);
}

/* ---- a difference between ways ---- */

typedef struct {
    opened o;
    int64_t n_ways, change_at;
} changing;

static bool change_later(void *context)
{
    changing *c = context;
    if (++c->n_ways == c->change_at)
        *element(&c->o.model.layers[0].up.w, 0, 0) += 1;
    return true;
}

/* Weights that change under way: a difference, and none that comes again. The ways are narrowed
 * down to one and the same, and nothing else is run. */
static void what_does_not_come_again_is_said_to(void **state)
{
    (void)state;
    nb_err err;
    changing c = {.change_at = 9};
    open_model(&c.o, "sound", &sound, N_TOKENS);
    const nb_verify_plan plan = {
        .isas = two_isas + 1, .n_isas = 1, .threads = four_threads, .n_threads = 4, .full = true};
    const nb_way_job job = job_of(&c.o, NB_KV_F32, 16);
    nb_verify_result r;
    must(nb_verify_cell(&plan, &job, 0, true, change_later, &c, &r, &err), &err);
    assert_true(r.difference.differ && !r.difference.found && !r.difference.in_logits);
    assert_int_equal(r.n_ways[0], 10);
    assert_int_equal(r.difference.token, 0);
    assert_string_equal(nb_difference_place(&r.difference).text,
                        "token 0 (but not again when the operations were observed)");
    assert_string_equal(nb_way_describe(&r.difference.ways[1]).text,
                        nb_way_describe(&r.difference.ways[0]).text);
    close_model(&c.o);
}

static bool stop(void *context)
{
    return --*(int *)context > 0;
}

static void it_stops_when_told(void **state)
{
    (void)state;
    nb_err err;
    opened o;
    open_model(&o, "sound", &sound, N_TOKENS);
    const nb_verify_plan plan = {
        .isas = two_isas + 1, .n_isas = 1, .threads = four_threads, .n_threads = 4};
    nb_way_job job = job_of(&o, NB_KV_F16, 16);
    nb_verify_result r = {.hash = 77};
    int left = 3;
    assert_int_equal(nb_verify_cell(&plan, &job, 0, true, stop, &left, &r, &err), NB_INTERRUPTED);
    assert_int_equal(left, 0);
    left = 5;
    job.go_on = stop;
    job.context = &left;
    assert_int_equal(nb_verify_cell(&plan, &job, 0, true, NULL, NULL, &r, &err), NB_INTERRUPTED);
    assert_int_equal(left, 0);
    assert_int_equal(r.hash, 77);
    close_model(&o);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    nb_err err;
    opened a, b;
    open_model(&a, "sound", &sound, N_TOKENS);
    open_model(&b, "sound", &sound, N_TOKENS);
    *element(&b.model.layers[1].o.w, 0, 0) += 1;
    const nb_verify_isa isas[] = {two_isas[1]};
    const int threads[] = {2};
    const nb_verify_plan plan = {.isas = isas, .n_isas = 1, .threads = threads, .n_threads = 1};
    const nb_way_job jobs[] = {job_of(&a, NB_KV_F16, 3), job_of(&b, NB_KV_F16, 3)};
    const int64_t before = nb_alloc_live();
    for (int which = 0; which < 2; which++) {
        int64_t n_failed = 0;
        for (int64_t n = 1;; n++) {
            nb_verify_result r = {.hash = 77};
            nb_difference d = {.token = 77};
            uint64_t hash[2];
            nb_verify_isa three = isas[0];
            three.n_tokens = 3;
            nb_verify_plan p = plan;
            p.isas = &three;
            const nb_way way = best_way();
            nb_alloc_fail_at(n);
            const nb_status s = which == 0
                                    ? nb_verify_cell(&p, jobs, 0, false, NULL, NULL, &r, &err)
                                    : nb_verify_pair(&way, jobs, hash, &d, &err);
            nb_alloc_fail_at(0);
            assert_int_equal(nb_alloc_live(), before);
            if (s == NB_OK) {
                assert_int_equal(d.differ, which == 1);
                break;
            }
            assert_int_equal(s, NB_MEMORY);
            assert_true(r.hash == 77 && d.token == 77);
            n_failed++;
        }
        assert_true(n_failed > 20);
    }
    close_model(&a);
    close_model(&b);
}

/* ---- the probe ---- */

static void a_probe_does_not_mind_the_order_of_slices(void **state)
{
    (void)state;
    nb_err err;
    nb_probe a, b;
    must(nb_probe_init(&a, 2, 3, 1, &err), &err);
    must(nb_probe_init(&b, 2, 3, 1, &err), &err);
    const nb_watcher see_a = nb_probe_watcher(&a), see_b = nb_probe_watcher(&b);
    float x[10];
    for (int i = 0; i < 10; i++)
        x[i] = 1.0f / (float)(i + 3);
    nb_place place;
    see_a.see(see_a.context, 1, NB_OP_UP, 1, 2, 0, x, 10);
    assert_true(nb_probe_part(&a, &b, 3, &place));
    see_b.see(see_b.context, 1, NB_OP_UP, 1, 2, 7, x + 7, 3);
    see_b.see(see_b.context, 1, NB_OP_UP, 1, 2, 0, x, 1);
    see_b.see(see_b.context, 1, NB_OP_UP, 1, 2, 1, x + 1, 6);
    assert_false(nb_probe_part(&a, &b, 3, &place));
    /* Other sequences, and positions past the text, are none of its business. */
    see_b.see(see_b.context, 0, NB_OP_UP, 0, 2, 0, x, 10);
    see_b.see(see_b.context, 0, NB_OP_UP, 1, 3, 0, x, 10);
    assert_false(nb_probe_part(&a, &b, 3, &place));
    /* Layers go before operations, operations before tokens. */
    see_b.see(see_b.context, 2, NB_OP_ATTN_NORM, 1, 0, 0, x, 1);
    see_b.see(see_b.context, 1, NB_OP_DOWN, 1, 0, 0, x, 1);
    see_b.see(see_b.context, 1, NB_OP_O, 1, 2, 0, x, 1);
    see_a.see(see_a.context, 1, NB_OP_O, 1, 1, 0, x, 1);
    assert_true(nb_probe_part(&a, &b, 3, &place));
    assert_true(same_place(place, (nb_place){1, 1, NB_OP_O}));
    assert_false(nb_probe_part(&a, &b, 0, &place));
    assert_true(nb_probe_part(&a, &b, 1, &place));
    assert_true(same_place(place, (nb_place){1, 0, NB_OP_DOWN}));
    nb_probe_free(&a);
    nb_probe_free(&b);
}

/* Two values at each other's place, the sign of a zero, a bit: all show. The encoding of a NaN is
 * the processor's. */
static void a_probe_sees_every_bit(void **state)
{
    (void)state;
    nb_err err;
    static const uint32_t cases[][2][2] = {
        {{0x3f800000, 0x40000000}, {0x40000000, 0x3f800000}},
        {{0x00000000, 0x40000000}, {0x80000000, 0x40000000}},
        {{0x3f800000, 0x3f800000}, {0x00000000, 0x00000000}},
        {{0x3f800000, 0x00000001}, {0x3f800000, 0x00000002}},
        {{0x7f800000, 0x00000001}, {0x7fc00000, 0x00000001}},
        {{0x7fc00000, 0x00000001}, {0xffc00123, 0x00000001}}, /* equal */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_probe p[2];
        nb_place place;
        for (int k = 0; k < 2; k++) {
            float x[2];
            memcpy(x, cases[i][k], sizeof x);
            must(nb_probe_init(&p[k], 1, 1, 0, &err), &err);
            const nb_watcher o = nb_probe_watcher(&p[k]);
            o.see(o.context, 0, NB_OP_Q, 0, 0, 0, x, 2);
        }
        assert_int_equal(nb_probe_part(&p[0], &p[1], 1, &place),
                         i + 1 < sizeof cases / sizeof *cases);
        nb_probe_free(&p[0]);
        nb_probe_free(&p[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ways_cover_what_they_say),
        cmocka_unit_test(a_way_is_described),
        cmocka_unit_test(a_sound_model_gives_one_hash),
        cmocka_unit_test(a_model_of_nan_gives_one_hash),
        cmocka_unit_test(a_host_may_flush_to_zero),
        cmocka_unit_test(the_first_operation_is_named),
        cmocka_unit_test(models_of_other_shapes_are_refused),
        cmocka_unit_test(what_does_not_come_again_is_said_to),
        cmocka_unit_test(it_stops_when_told),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(a_probe_does_not_mind_the_order_of_slices),
        cmocka_unit_test(a_probe_sees_every_bit),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
