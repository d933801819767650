/* The walk: its result is one for all threads, instruction sets and memory limits; what layers see
 * on it is what the finished model gives them; and what is degenerate ends well. */
#include "walking.h"

#include "support/check.h"

#include "model/forward.h"

#include <math.h>

/* Where it does not matter how well codes are chosen. */
#define CHEAP "gptq:fit=absmax,polish=0,shrink=0.1"

/* ---- one result for all ---- */

static const walk_world_how small = {
    .n_seqs = 4,
    .length = 20,
    .model = {.n_layers = 1, .d_model = 32, .n_heads = 2, .n_kv_heads = 1, .d_ff = 64}};

static void threads_and_instruction_sets_give_the_same_bytes(void **state)
{
    (void)state;
    static const walk_how ways[] = {
        {.method = "gptq"},
        {.method = "gptq:act-order"},
        {.method = "gptaq"},
        {.method = "qronos"},
        {.method = "gptq", .guided = true},
        {.method = "autoround:iters=2,batch=2,len=20"},
        {.method = "rtn", .transform = "awq"},
        {.method = "gptq", .transform = "smoothquant", .scheme = "W8A8"},
        {.method = "rtn:search", .scheme = "W4A8:g32", .flow = NB_FLOW_QUANTIZED},
        {.method = "rtn", .scheme = "W8A8:static"},
        {.method = "rtn", .scheme = "W8A8:static", .observing = {NB_OBSERVE_ENTROPY, 0}},
        {.method = "rtn", .scheme = "FP8:static", .transform = "smoothquant"},
    };
    static const struct {
        int n_threads;
        unsigned isa;
    } runs[] = {
        {1, NB_ISA_SCALAR}, {3, NB_ISA_AVX2}, {3, NB_ISA_AVX2 | NB_ISA_AVX512}, {2, NB_ISA_ALL}};
    walk_world w;
    walk_world_open(&w, "same", &small);
    char first[sizeof ways / sizeof *ways][NB_SHA256_HEX];
    const size_t n_ways = (size_t)check_cases(sizeof ways / sizeof *ways);
    for (size_t i = 0; i < n_ways; i++) {
        for (size_t r = 0; r < sizeof runs / sizeof *runs; r++) {
            walk_how how = ways[i];
            how.n_threads = runs[r].n_threads;
            how.isa = runs[r].isa == NB_ISA_ALL ? 0 : runs[r].isa + 1;
            const walk_outcome o = walk_well(&w, &how);
            if (r == 0)
                memcpy(first[i], o.digest, sizeof first[i]);
            assert_string_equal(o.digest, first[i]);
        }
        for (size_t k = 0; k < i; k++) /* each way is one of its own */
            assert_string_not_equal(first[i], first[k]);
    }
    walk_world_close(&w);
}

/* Less memory means smaller steps: the bytes stay, down to steps of 128 tokens. Still less, and
 * second moments rest in files while other things are in memory, at more and more points: the bytes
 * stay, of all that was computed from them. And what is too little is refused at once, with both
 * numbers. */
static void memory_gives_the_same_bytes_or_is_refused(void **state)
{
    (void)state;
    static const char *const methods[] = {"gptq:fit=absmax,polish=1", "qronos:fit=absmax,polish=0"};
    walk_world w;
    walk_world_how long_ones = small;
    long_ones.n_seqs = 2;
    long_ones.length = 300;
    long_ones.model.n_ctx = 512;
    long_ones.model.d_model = 192; /* enough for second moments to weigh more than strips of them */
    long_ones.model.d_ff = 288;
    walk_world_open(&w, "memory", &long_ones);
    for (int i = 0; i < 2; i++) {
        walk_how how = {.method = methods[i]};
        const walk_outcome all = walk_well(&w, &how);
        assert_int_equal(all.plan.max_rows, NB_STREAMS_ROWS);
        how.memory = all.plan.memory;
        walk_outcome o = walk_well(&w, &how);
        assert_int_equal(o.plan.max_rows, NB_STREAMS_ROWS);
        int64_t least = 0;
        for (int64_t rows = NB_STREAMS_ROWS / 2; rows >= 128; rows /= 2) {
            how.memory = o.plan.memory - 1;
            o = walk_well(&w, &how);
            assert_int_equal(o.plan.max_rows, rows);
            assert_true(o.plan.memory <= how.memory);
            assert_string_equal(o.digest, all.digest);
            least = o.plan.memory;
        }
        int n_rested = 0;
        for (how.memory = least - 1; walk(&o, &w, &how), o.status == NB_OK; n_rested++) {
            assert_true(o.plan.memory <= how.memory);
            assert_string_equal(o.digest, all.digest);
            least = o.plan.memory;
            how.memory = least - 1;
        }
        assert_true(i == 1 ? n_rested == 0 : n_rested >= 1);
        assert_int_equal(o.status, NB_LIMIT);
        assert_int_equal(o.n_calls, 0);
        char number[40];
        snprintf(number, sizeof number, "about %lld MB",
                 (long long)((least + (1 << 20) - 1) >> 20));
        assert_non_null(strstr(o.err.text, number));
    }
    walk_world_close(&w);
}

/* ---- what layers see ---- */

typedef struct {
    const walk_world *world;
    const char *spill; /* of the last hidden states */
    bool original;     /* they are those of the model itself; else of what is written */
    bool integers;     /* the scheme quantizes activations */
    int64_t n_compared;
} seen;

/* Runs each sequence through the model as a whole. */
static void compare(seen *c, nb_store *store, const nb_spill *spill, nb_pool *pool)
{
    nb_err err = {0};
    nb_model m;
    nb_work work;
    nb_kv_pool kv;
    nb_kernels kernels;
    nb_kernels_init(&kernels, NB_ISA_ALL);
    const nb_model_options options = {.compute = c->integers ? NB_COMPUTE_AUTO : NB_COMPUTE_ALL_F};
    assert_int_equal(nb_model_open(&m, store, &options, pool, &err), NB_OK);
    const int64_t d = m.config.d_model, len = c->world->seqs[0].n;
    assert_int_equal(nb_work_init(&work, &m, &kernels, pool, len, &err), NB_OK);
    assert_int_equal(nb_kv_pool_init(&kv, &m.config, NB_KV_F32, nb_kv_pages_for(len), &err), NB_OK);
    float *got = malloc((size_t)(len * d) * sizeof *got), *x = malloc((size_t)d * sizeof *x);
    float *want = malloc((size_t)d * sizeof *want);
    assert_true(got != NULL && x != NULL && want != NULL);
    int64_t row = 0;
    for (int64_t q = 0; q < c->world->n_seqs; q++) {
        const nb_calib_seq *s = &c->world->seqs[q];
        nb_kv_seq seq;
        assert_int_equal(nb_kv_seq_init(&seq, &kv, len, &err), NB_OK);
        const nb_step_input in = {.seq = &seq, .tokens = s->ids, .n_tokens = s->n, .n_out = s->n};
        assert_int_equal(nb_forward(&work, &in, 1, got, &err), NB_OK);
        nb_kv_seq_free(&seq);
        for (int64_t t = 0; t < s->n; t++) {
            assert_int_equal(nb_spill_read(spill, row++, 1, x, &err), NB_OK);
            kernels.rmsnorm(want, x, m.norm, d, m.config.rms_eps);
            assert_memory_equal(got + t * d, want, (size_t)d * sizeof *want);
            c->n_compared++;
        }
    }
    free(want);
    free(got);
    free(x);
    nb_kv_pool_free(&kv);
    nb_work_free(&work);
    nb_model_close(&m);
}

static void look(void *context, nb_store *store, const nb_plan *plan, const nb_workdir *dir,
                 const nb_walk_result *result)
{
    seen *c = context;
    nb_err err = {0};
    nb_spill spill;
    nb_pool *pool;
    nb_store *written = NULL;
    int64_t n_tokens = 0;
    for (int64_t i = 0; i < c->world->n_seqs; i++)
        n_tokens += c->world->seqs[i].n;
    assert_int_equal(nb_pool_open(&pool, 2, &err), NB_OK);
    assert_int_equal(nb_workdir_spill(dir, c->spill, (size_t)plan->config.d_model * sizeof(float),
                                      n_tokens, &spill, &err),
                     NB_OK);
    if (!c->original) {
        write_model(store, plan, dir, result, pool, scratch_path("written"));
        assert_int_equal(nb_store_open(&written, scratch_path("written"), &err), NB_OK);
    }
    compare(c, written != NULL ? written : store, &spill, pool);
    nb_store_close(written);
    nb_spill_close(&spill);
    nb_pool_close(pool);
}

/* The hidden states at the end of the walk are those of nb_forward, bit for bit: of the model that
 * is written where stream 0 is the quantized one, of the original where it is stream 1 or the only
 * one. In one sweep and point by point, in steps of 2048 tokens and of 128. */
static void layers_see_what_the_model_gives_them(void **state)
{
    (void)state;
    static const struct {
        walk_how how;
        const char *spill;
        bool original, integers;
        tiny_model model;
    } cases[] = {
        {{.method = CHEAP}, "x0", false, false, {0}},
        {{.method = CHEAP, .flow = NB_FLOW_ORIGINAL}, "x0", true, false, {0}},
        {{.method = "qronos"}, "x0", false, false, {.tied = true}},
        {{.method = "qronos"}, "x1", true, false, {.biases = true}},
        {{.method = CHEAP, .scheme = "W8A8"}, "x0", false, true, {.biases = true}},
        {{.method = "rtn", .transform = "awq"}, "x0", true, false, {.qk_norm = true}},
        {{.method = CHEAP, .transform = "awq", .keeps = "o_proj"}, "x0", false, false, {0}},
        {{.method = CHEAP, .transform = "smoothquant", .scheme = "W8A8"},
         "x0",
         false,
         true,
         {.qk_norm = true}},
        {{.method = "autoround:iters=2,batch=1,len=20"}, "x0", false, false, {0}},
        {{.method = "rtn", .scheme = "W8A8:static"}, "x0", false, true, {0}},
        {{.method = "rtn", .scheme = "FP8:static"}, "x0", false, true, {.qk_norm = true}},
        {{.method = "autoround:iters=2,batch=1,len=20", .scheme = "W4A8:g32,static"},
         "x0",
         false,
         true,
         {0}},
        {{.method = "autoround:iters=2,batch=1,len=20", .transform = "awq"},
         "x0",
         false,
         false,
         {.biases = true}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        walk_world_how h = {.n_seqs = 2, .length = 140, .model = cases[i].model};
        h.model.n_layers = i % 2 == 0 ? 2 : 1;
        h.model.d_model = 32;
        h.model.n_heads = 4;
        h.model.d_ff = 64;
        char name[40], spill[40];
        snprintf(name, sizeof name, "seen%zu", i);
        snprintf(spill, sizeof spill, "%s-%s", cases[i].spill, i % 2 == 0 ? "even" : "odd");
        walk_world w;
        walk_world_open(&w, name, &h);
        for (int small_steps = 0; small_steps < 2; small_steps++) {
            walk_how how = cases[i].how;
            walk_outcome o;
            for (int k = 0; small_steps && k < 4; k++) {
                how.stop_at = 1;
                walk(&o, &w, &how);
                how.memory = o.plan.memory - 1;
            }
            how.stop_at = 0;
            seen c = {&w, spill, cases[i].original, cases[i].integers, 0};
            walk_and_visit(&o, &w, &how, look, &c);
            assert_int_equal(o.status, NB_OK);
            assert_int_equal(o.plan.max_rows, small_steps ? 128 : NB_STREAMS_ROWS);
            assert_int_equal(c.n_compared, 140 + 138);
            json_decref(o.layers);
        }
        walk_world_close(&w);
    }
}

/* ---- degenerate calibration ---- */

static void check_finite(void *context, nb_store *store, const nb_plan *plan, const nb_workdir *dir,
                         const nb_walk_result *result)
{
    (void)store;
    int64_t *n = context;
    nb_err err = {0};
    nb_loaded loaded = {0};
    for (int64_t i = 0; i < plan->n; i++) {
        if (!result->made[i])
            continue;
        assert_int_equal(nb_room_for(&loaded, &plan->weights[i], &err), NB_OK);
        assert_int_equal(nb_workdir_get_mat(dir, i, &loaded, &err), NB_OK);
        float *row = malloc((size_t)loaded.mat.n_cols * sizeof *row);
        assert_non_null(row);
        for (int64_t r = 0; r < loaded.mat.n_rows; r++) {
            loaded.mat.fmt->decode_row(&loaded.mat, r, row);
            for (int64_t c = 0; c < loaded.mat.n_cols; c++)
                assert_true(isfinite(row[c]));
            ++*n;
        }
        free(row);
    }
    nb_loaded_free(&loaded);
}

/* One token; one token repeated; fewer tokens than columns; each model shape: every method ends,
 * with finite weights, and says of each linear what it did. */
static void little_or_dull_data_ends_well(void **state)
{
    (void)state;
    static const walk_how ways[] = {
        {.method = "gptq"},
        {.method = "gptq:act-order"},
        {.method = "gptaq"},
        {.method = "qronos"},
        {.method = "rtn:search"},
        {.method = "autoround:iters=2,batch=2,len=8"},
        {.method = "gptq", .transform = "awq"},
        {.method = "gptq", .transform = "smoothquant", .scheme = "W8A8"},
    };
    static const walk_world_how data[] = {
        {.n_seqs = 1, .length = 1},
        {.n_seqs = 2, .length = 1, .constant = true, .model = {.biases = true}},
        {.n_seqs = 2, .length = 40, .constant = true, .model = {.qk_norm = true, .tied = true}},
        {.n_seqs = 9, .length = 3, .model = {.subnormal = true}},
    };
    for (size_t k = 0; k < sizeof data / sizeof *data; k++) {
        walk_world_how h = data[k];
        h.model.n_layers = 1;
        h.model.d_model = 32;
        h.model.n_heads = 4;
        h.model.d_ff = 64;
        char name[20];
        snprintf(name, sizeof name, "dull%zu", k);
        walk_world w;
        walk_world_open(&w, name, &h);
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            walk_outcome o;
            int64_t n = 0;
            walk_and_visit(&o, &w, &ways[i], check_finite, &n);
            if (o.status != NB_OK)
                print_error("%s: %s\n", ways[i].method, o.err.text);
            assert_int_equal(o.status, NB_OK);
            assert_true(n >= 3 * 32 + 2 * 16 + 2 * 64);
            int n_linears = 0;
            for (size_t j = 0; j < json_array_size(o.layers); j++)
                n_linears += json_object_get(json_array_get(o.layers, j), "name") != NULL;
            assert_int_equal(n_linears, NB_N_LINEARS);
            json_decref(o.layers);
        }
        walk_world_close(&w);
    }
}

/* A linear that is kept in 16 bits is not made, unless a transform has changed it. */
static void what_is_kept_is_left_alone(void **state)
{
    (void)state;
    walk_world w;
    walk_world_open(&w, "keeps", &small);
    static const char *const keeps[] = {"q_proj", "o_proj", "up_proj", "down_proj", "_proj"};
    for (size_t i = 0; i < sizeof keeps / sizeof *keeps; i++) {
        const walk_outcome o = walk_well(&w, &(walk_how){.method = "qronos", .keeps = "q_proj"});
        assert_int_equal(o.n_made, NB_N_LINEARS - 1);
        const walk_outcome moved = walk_well(
            &w, &(walk_how){.method = "gptq", .transform = "awq:clip=off", .keeps = keeps[i]});
        assert_int_equal(moved.n_made, NB_N_LINEARS + 2);
    }
    walk_world_close(&w);
}

/* ---- what is refused ---- */

static void tokens_outside_the_vocabulary_are_refused(void **state)
{
    (void)state;
    walk_world w;
    walk_world_open(&w, "outside", &small);
    const int32_t bad[] = {TINY_VOCAB, -1, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        w.ids[25] = bad[i];
        walk_outcome o;
        walk(&o, &w, &(walk_how){.method = "gptq"});
        assert_int_equal(o.status, NB_DATA);
        assert_non_null(strstr(o.err.text, "outside the vocabulary"));
    }
    walk_world_close(&w);
}

static void comparing_methods_need_the_quantized_flow(void **state)
{
    (void)state;
    walk_world w;
    walk_world_open(&w, "flow", &small);
    static const char *const methods[] = {"gptaq", "qronos", "autoround"};
    for (int i = 0; i < 3; i++) {
        walk_outcome o;
        walk(&o, &w, &(walk_how){.method = methods[i], .flow = NB_FLOW_ORIGINAL});
        assert_int_equal(o.status, NB_USAGE);
        assert_non_null(strstr(o.err.text, methods[i]));
    }
    walk_world_close(&w);
}

/* With a transform, too, memory that fails leaves an error and nothing else. */
static void memory_that_fails_leaves_nothing(void **state)
{
    (void)state;
    walk_world w;
    walk_world_open(&w, "torture", &small);
    const walk_how how = {.method = CHEAP, .transform = "awq:clip=off", .dir = "torture-work"};
    walk_without_memory(&w, &how);
    walk_world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_and_instruction_sets_give_the_same_bytes),
        cmocka_unit_test(memory_gives_the_same_bytes_or_is_refused),
        cmocka_unit_test(layers_see_what_the_model_gives_them),
        cmocka_unit_test(little_or_dull_data_ends_well),
        cmocka_unit_test(what_is_kept_is_left_alone),
        cmocka_unit_test(tokens_outside_the_vocabulary_are_refused),
        cmocka_unit_test(comparing_methods_need_the_quantized_flow),
        cmocka_unit_test(memory_that_fails_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
