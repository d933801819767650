/* The forward pass: against `transformers`, and against itself in every way it can be cut. */
#include "support/amx_emulator.h"
#include "support/check.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/must.h"

#include "model/forward.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"llama",        "llama_bias", "llama3_rope",
                                    "llama_linear", "smollm",     "mistral",
                                    "qwen2",        "qwen2_yarn", "qwen3"};
#define N_NAMES (sizeof names / sizeof *names)

typedef struct {
    nb_store *store;
    nb_model model;
    nb_pool *pool;
    nb_kernels kernels;
    nb_work work;
    nb_kv_pool kv;
} fixture;

enum { AMX_WAY = NB_ISA_AVX2 | NB_ISA_AVX512 | NB_ISA_AMX };

static void open_model(fixture *f, const char *path, nb_compute_choice compute, unsigned isa,
                       int threads, nb_kv_format cell)
{
    nb_err err;
    *f = (fixture){0};
    must(nb_store_open(&f->store, path, &err), &err);
    must(nb_pool_open(&f->pool, threads, &err), &err);
    nb_kernels_init(&f->kernels, isa);
#if defined(__x86_64__)
    if (isa == AMX_WAY) /* also where it is emulated */
        nb_kernels_amx_dot(&f->kernels);
#endif
    must(nb_model_open(&f->model, f->store, &(nb_model_options){compute, 64}, f->pool, &err), &err);
    must(nb_work_init(&f->work, &f->model, &f->kernels, f->pool, 128, &err), &err);
    must(nb_kv_pool_init(&f->kv, &f->model.config, cell, 64, &err), &err);
}

static void close_model(fixture *f)
{
    nb_kv_pool_free(&f->kv);
    nb_work_free(&f->work);
    nb_model_close(&f->model);
    nb_pool_close(f->pool);
    nb_store_close(f->store);
}

/* Logits of all n tokens, fed in steps of `step`. */
static void run_tokens(fixture *f, const int32_t *tokens, int64_t n, int64_t step, float *logits)
{
    nb_err err;
    const int64_t d = f->model.config.d_model, vocab = f->model.config.vocab_size;
    nb_kv_seq seq;
    must(nb_kv_seq_init(&seq, &f->kv, 64, &err), &err);
    float *hidden = malloc((size_t)(n * d) * sizeof *hidden);
    for (int64_t i = 0; i < n; i += step) {
        const int64_t count = n - i < step ? n - i : step;
        const nb_step_input in = {&seq, tokens + i, count, count};
        must(nb_forward(&f->work, &in, 1, hidden, &err), &err);
        nb_logits(&f->work, hidden, count, logits + i * vocab);
    }
    free(hidden);
    nb_kv_seq_free(&seq);
    assert_int_equal(f->kv.n_free, f->kv.n_pages);
}

static void model_path(char *out, size_t size, const char *name)
{
    snprintf(out, size, "%s/models/%s", NIBBLE_GOLDEN, name);
}

static int32_t *load_tokens(const char *name, int64_t *n, double **logits)
{
    char file[64];
    snprintf(file, sizeof file, "models/%s/logits.json", name);
    json_t *j = golden_load(file);
    const json_t *t = golden_get(j, "tokens"), *l = golden_get(j, "logits");
    *n = (int64_t)json_array_size(t);
    int32_t *tokens = malloc((size_t)*n * sizeof *tokens);
    for (int64_t i = 0; i < *n; i++)
        tokens[i] = (int32_t)json_integer_value(json_array_get(t, (size_t)i));
    if (logits != NULL) {
        *logits = malloc(json_array_size(l) * sizeof **logits);
        for (size_t i = 0; i < json_array_size(l); i++)
            (*logits)[i] = json_number_value(json_array_get(l, i));
    }
    json_decref(j);
    return tokens;
}

/* Every architecture gives what the field's reference gives. */
static void logits_agree_with_transformers(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_NAMES; i++) {
        char path[1024];
        model_path(path, sizeof path, names[i]);
        fixture f;
        open_model(&f, path, NB_COMPUTE_AUTO, NB_ISA_ALL, 2, NB_KV_F32);
        int64_t n;
        double *want;
        int32_t *tokens = load_tokens(names[i], &n, &want);
        const int64_t vocab = f.model.config.vocab_size;
        float *got = malloc((size_t)(n * vocab) * sizeof *got);
        run_tokens(&f, tokens, n, n, got);
        double worst = 0, largest = 0;
        for (int64_t k = 0; k < n * vocab; k++) {
            worst = fmax(worst, fabs((double)got[k] - want[k]));
            largest = fmax(largest, fabs(want[k]));
        }
        if (!(worst <= 1e-4 * largest) || largest < 1)
            fail_msg("%s: off by %g, logits up to %g", names[i], worst, largest);
        printf("%-14s off by %.1e of %.2f\n", names[i], worst, largest);
        free(got);
        free(want);
        free(tokens);
        close_model(&f);
    }
}

/* ---- the bit matrix on quantized copies ---- */

static bool is_linear(const nb_weight *w)
{
    return w->n_dims == 2 && strstr(w->name, "_proj.weight") != NULL;
}

/* Writes a copy of the model at `from` with its linears in `fmt`. */
static void write_quantized(const char *from, const char *to, const nb_format *fmt, int64_t group,
                            bool symmetric, int act_bits)
{
    nb_err err;
    nb_store *store;
    must(nb_store_open(&store, from, &err), &err);
    const int64_t n = nb_store_n_weights(store);
    nb_weight *plan = calloc((size_t)n, sizeof *plan);
    for (int64_t i = 0; i < n; i++) {
        plan[i] = *nb_store_weight(store, i);
        if (!is_linear(&plan[i]))
            continue;
        plan[i].fmt = fmt;
        plan[i].group_size = group > 0 ? group : plan[i].n_cols;
        plan[i].symmetric = symmetric;
        plan[i].scale_type = NB_BF16;
        plan[i].act = (nb_act_spec){.bits = act_bits, .per_token = act_bits > 0};
    }
    json_t *config = json_deep_copy(nb_store_config(store)), *q;
    must(nb_ct_config(&q, plan, n, &err), &err);
    json_object_set_new(config, "quantization_config", q);
    nb_buf text = {0};
    must(nb_json_write(&text, config, true, &err), &err);
    json_decref(config);
    const nb_side_file side = {"config.json", text.data, text.len};
    nb_sink *sink;
    must(nb_sink_open_hf(&sink, to, true, plan, n, &side, 1, 0, &err), &err);
    nb_loaded loaded = {0};
    for (int64_t i = 0; i < n; i++) {
        must(nb_store_read(store, nb_store_weight(store, i), &loaded, &err), &err);
        nb_mat m = loaded.mat;
        if (!is_linear(&plan[i])) {
            must(nb_sink_put(sink, i, &m, &err), &err);
            continue;
        }
        nb_mat out = {.fmt = fmt,
                      .n_rows = m.n_rows,
                      .n_cols = m.n_cols,
                      .group_size = plan[i].group_size,
                      .scale_type = NB_BF16};
        must(nb_format_row_bytes(fmt, m.n_cols, &out.row_bytes, &err), &err);
        const size_t groups = (size_t)(m.n_rows * nb_mat_n_groups(&out));
        out.codes = calloc((size_t)m.n_rows, (size_t)out.row_bytes);
        out.scales = calloc(groups, 2);
        out.zeros = symmetric ? NULL : calloc(groups, 1);
        float *row = calloc((size_t)m.n_cols, sizeof *row);
        for (int64_t r = 0; r < m.n_rows; r++) {
            m.fmt->decode_row(&m, r, row);
            fmt->encode_row(&out, r, row);
        }
        must(nb_sink_put(sink, i, &out, &err), &err);
        free(row);
        free(out.codes);
        free(out.scales);
        free(out.zeros);
    }
    must(nb_sink_commit(sink, &err), &err);
    nb_loaded_free(&loaded);
    nb_buf_free(&text);
    free(plan);
    nb_store_close(store);
}

static const unsigned isas[] = {0, NB_ISA_AVX2, NB_ISA_AVX2 | NB_ISA_AVX512, AMX_WAY, NB_ISA_NEON};

static int64_t n_products; /* of emulated tiles */

/* The machine has it, or can do as if; amx_end ends it. */
static bool way_begins(unsigned isa)
{
    return isa == AMX_WAY ? amx_begin(nb_cpu_isa()) != AMX_ABSENT : (nb_cpu_isa() & isa) == isa;
}

/* All ways to compute the same logits; `what` names the model in a failure. */
static int64_t check_matrix(const char *path, const char *what, nb_compute_choice compute,
                            nb_kv_format cell, const int32_t *tokens, int64_t n)
{
    static const int64_t steps[] = {64, 1, 7, 16};
    static const int threads[] = {1, 2, 3};
    float *want = NULL;
    int64_t n_ways = 0;
    for (size_t isa = 0; isa < sizeof isas / sizeof *isas; isa++) {
        if (!way_begins(isas[isa]))
            continue;
        for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
            fixture f;
            open_model(&f, path, compute, isas[isa], threads[t], cell);
            const size_t bytes = (size_t)(n * f.model.config.vocab_size) * sizeof(float);
            float *got = malloc(bytes);
            for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
                run_tokens(&f, tokens, n, steps[s], got);
                if (want == NULL) {
                    want = malloc(bytes);
                    memcpy(want, got, bytes);
                }
                if (memcmp(want, got, bytes) != 0)
                    fail_msg("%s, compute %d, cells %s: %s, %d threads, steps of %lld differ", what,
                             (int)compute, nb_kv_format_name(cell), nb_isa_name(isas[isa]),
                             threads[t], (long long)steps[s]);
                n_ways++;
            }
            free(got);
            close_model(&f);
        }
        if (isas[isa] == AMX_WAY) {
            n_products += amx_n_products();
            amx_end();
        }
    }
    free(want);
    return n_ways;
}

/* One number: instruction sets, threads and chunks do not change a bit of any logit. */
static void logits_are_the_same_bits_however_they_are_computed(void **state)
{
    (void)state;
    int64_t n_ways = 0;
    for (size_t i = 0; i < N_NAMES; i++) {
        char path[1024];
        model_path(path, sizeof path, names[i]);
        int64_t n;
        int32_t *tokens = load_tokens(names[i], &n, NULL);
        n_ways += check_matrix(path, names[i], NB_COMPUTE_AUTO, NB_KV_F16, tokens, n);
        free(tokens);
    }
    static const struct {
        const char *name;
        const nb_format *fmt;
        int64_t group;
        bool symmetric;
        int act_bits;
    } schemes[] = {
        {"W4A16:g16", &nb_format_int4, 16, true, 0},
        {"W4A16:g8,asym", &nb_format_int4, 8, false, 0},
        {"W8A16", &nb_format_int8, 0, true, 0},
        {"W8A8", &nb_format_int8, 0, true, 8},
        {"W4A8:g16", &nb_format_int4, 16, true, 8},
        {"W8A16:g16,asym", &nb_format_int8, 16, false, 0},
    };
    const int n_computes = (int)check_cases(NB_COMPUTE_ALL_I16 - NB_COMPUTE_AUTO + 1);
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        const char *source = i % 2 == 0 ? "qwen3" : "llama_bias";
        char from[1024], to[1024];
        model_path(from, sizeof from, source);
        snprintf(to, sizeof to, "%s/q%zu", scratch_folder(), i);
        write_quantized(from, to, schemes[i].fmt, schemes[i].group, schemes[i].symmetric,
                        schemes[i].act_bits);
        int64_t n;
        int32_t *tokens = load_tokens(source, &n, NULL);
        for (int compute = NB_COMPUTE_AUTO; compute < NB_COMPUTE_AUTO + n_computes; compute++)
            n_ways += check_matrix(to, schemes[i].name, (nb_compute_choice)compute,
                                   compute == NB_COMPUTE_ALL_I8 ? NB_KV_F32 : NB_KV_F16, tokens, n);
        free(tokens);
    }
    assert_true(n_ways >=
                12 * (int64_t)(N_NAMES + (size_t)n_computes * sizeof schemes / sizeof *schemes));
    const bool emulated = (nb_cpu_isa() & AMX_WAY) == (NB_ISA_AVX2 | NB_ISA_AVX512);
    assert_int_equal(n_products > 0, emulated);
}

/* What else is in the batch does not matter, nor where a sequence's pages lie. */
static void a_sequence_does_not_feel_its_neighbours(void **state)
{
    (void)state;
    nb_err err;
    char path[1024];
    model_path(path, sizeof path, "smollm");
    fixture f;
    open_model(&f, path, NB_COMPUTE_AUTO, NB_ISA_ALL, 2, NB_KV_F16);
    int64_t n;
    int32_t *tokens = load_tokens("smollm", &n, NULL);
    const int64_t vocab = f.model.config.vocab_size, d = f.model.config.d_model;
    float *alone = malloc((size_t)(n * vocab) * 4), *row = malloc((size_t)(4 * vocab) * 4);
    float *hidden = malloc((size_t)(64 * d) * 4);
    run_tokens(&f, tokens, n, n, alone);
    nb_kv_seq seqs[4];
    for (int s = 0; s < 4; s++)
        must(nb_kv_seq_init(&seqs[s], &f.kv, 64, &err), &err);
    /* Four copies at different speeds: sequence s takes s + 1 tokens a step. */
    for (int64_t step = 0; step < n / 4; step++) {
        nb_step_input in[4];
        for (int64_t s = 0; s < 4; s++)
            in[s] = (nb_step_input){&seqs[s], tokens + step * (s + 1), s + 1, 1};
        must(nb_forward(&f.work, in, 4, hidden, &err), &err);
        nb_logits(&f.work, hidden, 4, row);
        for (int64_t s = 0; s < 4; s++)
            assert_memory_equal(row + s * vocab, alone + (step * (s + 1) + s) * vocab,
                                (size_t)vocab * 4);
    }
    for (int s = 0; s < 4; s++)
        nb_kv_seq_free(&seqs[s]);
    free(alone);
    free(row);
    free(hidden);
    free(tokens);
    close_model(&f);
}

/* A block calls the other threads five times, in prefill and in decode, for one sequence and for
 * several; and the output layer once. */
static void a_block_synchronises_five_times(void **state)
{
    (void)state;
    nb_err err;
    char path[1024];
    model_path(path, sizeof path, "smollm");
    fixture f;
    open_model(&f, path, NB_COMPUTE_AUTO, NB_ISA_ALL, 2, NB_KV_F16);
    int64_t n;
    int32_t *tokens = load_tokens("smollm", &n, NULL);
    float *hidden = malloc((size_t)(2 * f.model.config.d_model) * 4);
    float *logits = malloc((size_t)(2 * f.model.config.vocab_size) * 4);
    nb_kv_seq seqs[2];
    for (int s = 0; s < 2; s++)
        must(nb_kv_seq_init(&seqs[s], &f.kv, 64, &err), &err);
    for (int step = 0; step < 8; step++) {
        const int64_t n_tokens = step % 4 == 0 ? 16 : 1, n_inputs = 1 + step / 4;
        const nb_step_input in[2] = {{&seqs[0], tokens, n_tokens, 1},
                                     {&seqs[1], tokens, n_tokens, 1}};
        const int64_t before = nb_pool_n_runs(f.pool);
        must(nb_forward(&f.work, in, n_inputs, hidden, &err), &err);
        const int64_t blocks = nb_pool_n_runs(f.pool) - before;
        assert_in_range(blocks, 1, 5 * f.model.config.n_layers);
        nb_logits(&f.work, hidden, n_inputs, logits);
        assert_in_range(nb_pool_n_runs(f.pool) - before - blocks, 0, 1);
    }
    for (int s = 0; s < 2; s++)
        nb_kv_seq_free(&seqs[s]);
    free(hidden);
    free(logits);
    free(tokens);
    close_model(&f);
}

/* A step that cannot run changes nothing. */
static void a_refused_step_leaves_everything_as_it_was(void **state)
{
    (void)state;
    nb_err err;
    char path[1024];
    model_path(path, sizeof path, "llama");
    fixture f;
    open_model(&f, path, NB_COMPUTE_AUTO, NB_ISA_ALL, 1, NB_KV_F16);
    nb_kv_seq seq;
    must(nb_kv_seq_init(&seq, &f.kv, 64, &err), &err);
    float *hidden = malloc((size_t)(128 * f.model.config.d_model) * 4);
    int32_t tokens[70] = {0};
    nb_step_input in = {&seq, tokens, 65, 1};
    assert_int_equal(nb_forward(&f.work, &in, 1, hidden, &err), NB_LIMIT);
    assert_string_equal(err.text, "65 tokens do not fit in the context of 64");
    tokens[3] = 64;
    in.n_tokens = 5;
    assert_int_equal(nb_forward(&f.work, &in, 1, hidden, &err), NB_DATA);
    assert_string_equal(err.text, "token id 64 is outside the vocabulary of 64");
    tokens[3] = -1;
    assert_int_equal(nb_forward(&f.work, &in, 1, hidden, &err), NB_DATA);
    assert_int_equal(seq.n, 0);
    assert_int_equal(f.kv.n_free, f.kv.n_pages);
    nb_kv_seq_free(&seq);
    free(hidden);
    close_model(&f);
}

/* Opening fails cleanly at every allocation, and nothing leaks. */
static void opening_survives_every_allocation_failure(void **state)
{
    (void)state;
    nb_err err;
    char path[1024];
    model_path(path, sizeof path, "qwen3");
    nb_pool *pool;
    must(nb_pool_open(&pool, 1, &err), &err);
    const int64_t before = nb_alloc_live();
    int64_t failed = 0;
    for (int64_t n = 1;; n++) {
        nb_store *store = NULL;
        nb_model model;
        nb_alloc_fail_at(n);
        nb_status s = nb_store_open(&store, path, &err);
        if (s == NB_OK)
            s = nb_model_open(&model, store, &(nb_model_options){NB_COMPUTE_AUTO, 64}, pool, &err);
        nb_alloc_fail_at(0);
        if (s == NB_OK) {
            nb_model_close(&model);
            nb_store_close(store);
            break;
        }
        assert_int_equal(s, NB_MEMORY);
        nb_store_close(store);
        assert_int_equal(nb_alloc_live(), before);
        failed++;
    }
    assert_true(failed > 20);
    nb_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_agree_with_transformers),
        cmocka_unit_test(logits_are_the_same_bits_however_they_are_computed),
        cmocka_unit_test(a_sequence_does_not_feel_its_neighbours),
        cmocka_unit_test(a_block_synchronises_five_times),
        cmocka_unit_test(a_refused_step_leaves_everything_as_it_was),
        cmocka_unit_test(opening_survives_every_allocation_failure),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
