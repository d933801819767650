/* What a layer costs is the true divergence, a planted important one is found, and the mixture that
 * follows has the bytes that were promised. */
#include "quant/mix/mixture.h"

#include "base/rng.h"
#include "quant/weight/room.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/st_floats.h"
#include "support/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_SEQS 3
#define LENGTH 20

#define CANDIDATES "W8A16; W3A16:g32,asym;W4A16:g32"

typedef struct {
    nb_store *store;
    nb_pool *pool;
    nb_kernels kernels;
    nb_workdir dir;
    int32_t ids[N_SEQS * LENGTH];
    nb_calib_seq seqs[N_SEQS];
    nb_swapped_job job;
} world;

/* Multiplies one weight of every 32 of a tensor in the model's file: it takes the group's range,
 * and the others are lost to few bits. */
static void plant(const char *folder, const char *tensor, float factor)
{
    size_t n;
    float *x = st_floats_read(folder, tensor, &n);
    for (size_t i = 0; i < n; i += 32)
        x[i] *= factor;
    st_floats_write(folder, tensor, x, n);
    free(x);
}

static void open_world(world *w, const char *name, const tiny_model *how, const char *planted,
                       int n_threads, unsigned isa)
{
    nb_err err;
    char folder[64];
    *w = (world){0};
    const char *path = tiny_model_write(name, how);
    if (planted != NULL)
        plant(path, planted, 30);
    assert_int_equal(nb_store_open(&w->store, path, &err), NB_OK);
    assert_int_equal(nb_pool_open(&w->pool, n_threads, &err), NB_OK);
    nb_kernels_init(&w->kernels, isa);
    snprintf(folder, sizeof folder, "%s-work", name);
    assert_int_equal(nb_workdir_open(&w->dir, scratch_path(folder), &err), NB_OK);
    for (int i = 0; i < N_SEQS * LENGTH; i++)
        w->ids[i] = TINY_BYTE('a' + (int)(nb_rng_uniform(3, 1, (uint64_t)i) * 26));
    for (int i = 0; i < N_SEQS; i++)
        w->seqs[i] = (nb_calib_seq){.ids = w->ids + i * LENGTH, .n = LENGTH - i};
    w->job = (nb_swapped_job){.store = w->store,
                              .pool = w->pool,
                              .kernels = &w->kernels,
                              .seqs = w->seqs,
                              .n_seqs = N_SEQS,
                              .dir = &w->dir};
}

static void close_world(world *w)
{
    nb_workdir_close(&w->dir, true);
    nb_pool_close(w->pool);
    nb_store_close(w->store);
}

static nb_status table_by(nb_sensitivity *t, world *w, const char *candidates, const char *method,
                          nb_err *err)
{
    const nb_plan_request request = {.to = NB_STORE_HF};
    nb_method its;
    if (nb_method_parse(&its, method, err) != NB_OK)
        fail_msg("%s", err->text);
    return nb_sensitivity_init(t, w->store, &request, candidates, &its, err);
}

static void table_of(nb_sensitivity *t, world *w, const char *candidates)
{
    nb_err err;
    if (table_by(t, w, candidates, "rtn:search", &err) != NB_OK)
        fail_msg("%s", err.text);
}

static void measure(nb_sensitivity *t, world *w)
{
    nb_err err;
    nb_swapped *s;
    if (nb_swapped_open(&s, &w->job, &err) != NB_OK ||
        nb_sensitivity_measure(t, s, NULL, NULL, &err) != NB_OK)
        fail_msg("%s", err.text);
    nb_swapped_close(s);
}

/* ---- the divergence, by another way ---- */

/* Logits of all sequences by whole forward passes. */
static void whole_logits(world *w, nb_model *m, float *out)
{
    nb_err err;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    const int64_t vocab = m->config.vocab_size;
    float *hidden = malloc((size_t)(LENGTH * m->config.d_model) * sizeof *hidden);
    assert_int_equal(nb_work_init(&work, m, &w->kernels, w->pool, LENGTH, &err), NB_OK);
    assert_int_equal(nb_kv_pool_init(&kv, &m->config, NB_KV_F32, 1, &err), NB_OK);
    assert_int_equal(nb_kv_seq_init(&seq, &kv, LENGTH, &err), NB_OK);
    for (int i = 0; i < N_SEQS; i++) {
        const int64_t n = w->seqs[i].n;
        const nb_step_input in = {&seq, w->seqs[i].ids, n, n};
        assert_int_equal(nb_forward(&work, &in, 1, hidden, &err), NB_OK);
        nb_logits(&work, hidden, n, out);
        out += n * vocab;
        nb_kv_seq_truncate(&seq, 0);
    }
    nb_kv_seq_free(&seq);
    nb_kv_pool_free(&kv);
    nb_work_free(&work);
    free(hidden);
}

static double log_sum(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)x[i]);
    return log(sum);
}

static double divergence(const float *p, const float *q, int64_t n_tokens, int64_t vocab)
{
    double all = 0;
    for (int64_t t = 0; t < n_tokens; t++, p += vocab, q += vocab) {
        const double lp = log_sum(p, vocab), lq = log_sum(q, vocab);
        for (int64_t i = 0; i < vocab; i++)
            all += exp((double)p[i] - lp) * ((double)p[i] - lp - (double)q[i] + lq);
    }
    return all / (double)n_tokens;
}

/* Swapping one layer is what a model with that layer's rounded weights says. */
static void the_divergence_is_the_true_one(void **state)
{
    (void)state;
    world w;
    nb_err err;
    nb_model model;
    nb_swapped *s;
    nb_sensitivity t;
    nb_method rtn;
    double kl, again;
    open_world(&w, "true", &(tiny_model){.n_layers = 3}, NULL, 2, NB_ISA_ALL);
    table_of(&t, &w, "W3A16:g32");
    assert_int_equal(nb_method_parse(&rtn, "rtn", &err), NB_OK);
    const nb_model_options options = {.compute = NB_COMPUTE_ALL_F, .n_ctx = LENGTH};
    assert_int_equal(nb_model_open(&model, w.store, &options, w.pool, &err), NB_OK);
    const int64_t n_tokens = N_SEQS * LENGTH - 3, vocab = model.config.vocab_size;
    float *base = malloc((size_t)(n_tokens * vocab) * sizeof *base);
    float *other = malloc((size_t)(n_tokens * vocab) * sizeof *other);
    whole_logits(&w, &model, base);
    assert_int_equal(nb_swapped_open(&s, &w.job, &err), NB_OK);
    assert_int_equal(nb_swapped_kl(s, 0, &kl, &err), NB_OK);
    assert_true(kl == 0);
    for (int64_t i = 0; i < t.n_linears; i++) {
        const int64_t layer = i / NB_N_LINEARS;
        const nb_linear_id id = (nb_linear_id)(i % NB_N_LINEARS);
        assert_int_equal(nb_swapped_set(s, layer, id, t.to[i], &rtn, &err), NB_OK);
        assert_int_equal(nb_swapped_kl(s, layer, &kl, &err), NB_OK);
        assert_int_equal(nb_swapped_kl(s, 0, &again, &err), NB_OK);
        assert_true(kl == again); /* what lies before the swap is what was kept */
        nb_swapped_restore(s, layer, id);
        assert_int_equal(nb_swapped_kl(s, 0, &again, &err), NB_OK);
        assert_true(again == 0);
        /* The same by hand: round the weights, and put them into a model as floats. */
        nb_loaded source = {0}, made = {0};
        assert_int_equal(nb_store_read(w.store, t.from[i], &source, &err), NB_OK);
        const nb_weight *to = t.to[i];
        float *x = malloc((size_t)(to->n_rows * to->n_cols) * sizeof *x);
        assert_int_equal(nb_room_for(&made, to, &err), NB_OK);
        for (int64_t r = 0; r < to->n_rows; r++) {
            source.mat.fmt->decode_row(&source.mat, r, x + r * to->n_cols);
            to->fmt->encode_row(&made.mat, r, x + r * to->n_cols);
            to->fmt->decode_row(&made.mat, r, x + r * to->n_cols);
        }
        const nb_mat rounded = {.fmt = &nb_format_f32,
                                .n_rows = to->n_rows,
                                .n_cols = to->n_cols,
                                .codes = x,
                                .row_bytes = to->n_cols * 4};
        nb_linear *linear = nb_layer_linear(&model.layers[layer], id);
        const nb_linear kept = *linear;
        linear->w = (nb_panels){0};
        assert_int_equal(nb_model_set_linear(&model, layer, id, &rounded, &(nb_act_spec){0},
                                             NB_COMPUTE_ALL_F, w.pool, &err),
                         NB_OK);
        whole_logits(&w, &model, other);
        nb_model_drop_linear(&model, layer, id);
        *linear = kept;
        const double wanted = divergence(base, other, n_tokens, vocab);
        assert_true(wanted > 1e-6);
        assert_true(fabs(kl - wanted) < 1e-3 * wanted + 1e-8);
        nb_loaded_free(&source);
        nb_loaded_free(&made);
        free(x);
    }
    nb_swapped_close(s);
    nb_model_close(&model);
    nb_sensitivity_free(&t);
    free(base);
    free(other);
    close_world(&w);
}

/* The table does not depend on threads and instruction sets. */
static void the_same_everywhere(void **state)
{
    (void)state;
    static const struct {
        int n_threads;
        unsigned isa;
    } ways[] = {{1, NB_ISA_ALL}, {3, NB_ISA_ALL}, {2, 0}};
    double first[2 * NB_N_LINEARS * 3];
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
        world w;
        nb_sensitivity t;
        char name[16];
        snprintf(name, sizeof name, "same%zu", k);
        open_world(&w, name, &(tiny_model){0}, NULL, ways[k].n_threads, ways[k].isa);
        table_of(&t, &w, CANDIDATES);
        measure(&t, &w);
        assert_int_equal(t.n_linears * t.n_candidates, sizeof first / sizeof *first);
        if (k == 0)
            memcpy(first, t.kl, sizeof first);
        assert_memory_equal(first, t.kl, sizeof first);
        nb_sensitivity_free(&t);
        close_world(&w);
    }
}

/* ---- the table ---- */

static nb_status count(void *context, const nb_sensitivity *t, nb_err *err)
{
    (void)t;
    (void)err;
    ++*(int *)context;
    return NB_OK;
}

/* A table that was kept is not measured again; what does not fit is. */
static void measurements_are_kept(void **state)
{
    (void)state;
    world w;
    nb_err err;
    nb_sensitivity t, again;
    nb_swapped *s;
    json_t *rows;
    int n_kept = 0;
    open_world(&w, "kept", &(tiny_model){0}, NULL, 1, NB_ISA_ALL);
    table_of(&t, &w, CANDIDATES);
    const nb_swapped_plan unit = {.head_flops = 1};
    assert_true(nb_sensitivity_flops(&t, &unit, 1) == (double)(t.n_linears * 3));
    assert_int_equal(nb_swapped_open(&s, &w.job, &err), NB_OK);
    assert_int_equal(nb_sensitivity_measure(&t, s, count, &n_kept, &err), NB_OK);
    assert_int_equal(n_kept, 2); /* after each block */
    assert_true(nb_sensitivity_flops(&t, &unit, 1) == 0);
    assert_int_equal(nb_sensitivity_json(&t, &rows, &err), NB_OK);

    /* Other candidates in another order: two of the three are known. */
    table_of(&again, &w, "W4A16:g32;W2A16:g32;W8A16");
    nb_sensitivity_take(&again, rows);
    assert_true(nb_sensitivity_flops(&again, &unit, 1) == (double)again.n_linears);
    for (int64_t i = 0; i < t.n_linears; i++) {
        assert_true(again.kl[3 * i] == t.kl[3 * i + 2]);
        assert_true(isnan(again.kl[3 * i + 1]));
        assert_true(again.kl[3 * i + 2] == t.kl[3 * i]);
    }
    nb_sensitivity_free(&again);

    /* Damage of every kind is no measurement. */
    json_t *list = json_object_get(json_array_get(rows, 0), "candidates");
    json_object_set_new(json_array_get(rows, 1), "name", json_string("model.layers.9.x"));
    json_object_set_new(json_array_get(list, 0), "kl", json_real(-1));
    json_object_set_new(json_array_get(list, 1), "kl", json_string("0.1"));
    json_object_set_new(json_array_get(list, 2), "scheme", json_integer(4));
    table_of(&again, &w, CANDIDATES);
    nb_sensitivity_take(&again, rows);
    nb_sensitivity_take(&again, NULL);
    assert_true(nb_sensitivity_flops(&again, &unit, 1) == 6);
    assert_int_equal(nb_sensitivity_measure(&again, s, NULL, NULL, &err), NB_OK);
    assert_memory_equal(again.kl, t.kl, (size_t)(t.n_linears * 3) * sizeof *t.kl);
    nb_sensitivity_free(&again);
    json_decref(rows);
    nb_swapped_close(s);
    nb_sensitivity_free(&t);
    close_world(&w);
}

static void candidates_are_checked(void **state)
{
    (void)state;
    world w;
    open_world(&w, "checked", &(tiny_model){.d_model = 96, .n_heads = 4, .d_ff = 128}, NULL, 1,
               NB_ISA_ALL);
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "names no candidate"},
        {" ; ;", "names no candidate"},
        {"W4A16:g32;W5A16", "unknown scheme 'W5A16'"},
        {"W4A16:g32;w4a16:G32", "W4A16:g32 is given twice"},
        {"W4A16:g32;W4A16", "W4A16:g32 is given twice"}, /* the group that fits all is 32 */
        {"W4A16;Q4_0", "Q4_0"},
        {"W4A16:g64", "which no candidate divides"},
        {"W4A16:g4096", "fits no layer"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_sensitivity t;
        nb_err err = {0};
        assert_int_equal(table_by(&t, &w, cases[i].text, "rtn", &err), NB_USAGE);
        if (strstr(err.text, cases[i].message) == NULL)
            fail_msg("'%s': %s", cases[i].text, err.text);
    }
    /* Rows that a candidate does not divide have the others. */
    nb_sensitivity t;
    table_of(&t, &w, "W4A16:g64;W8A16");
    for (int64_t i = 0; i < t.n_linears; i++)
        assert_int_equal(t.to[2 * i] != NULL, t.from[i]->n_cols % 64 == 0);
    nb_sensitivity_free(&t);
    close_world(&w);
}

/* ---- mixtures ---- */

#define PLANTED "model.layers.1.self_attn.o_proj.weight"

/* The layer whose rounding costs most gets most bits, and what was promised is what is planned. */
static void a_planted_layer_is_found(void **state)
{
    (void)state;
    world w;
    nb_err err;
    nb_sensitivity t;
    nb_mixture m;
    open_world(&w, "planted", &(tiny_model){0}, PLANTED, 2, NB_ISA_ALL);
    table_of(&t, &w, CANDIDATES);
    measure(&t, &w);
    int64_t planted = -1;
    for (int64_t i = 0; i < t.n_linears; i++)
        planted = strcmp(t.from[i]->name, PLANTED) == 0 ? i : planted;
    assert_true(planted >= 0);
    for (int64_t i = 0; i < t.n_linears; i++) {
        for (int c = 0; c < 3; c++)
            assert_true(i == planted || t.kl[3 * i + c] < t.kl[3 * planted + c]);
        assert_true(t.kl[3 * i] < t.kl[3 * i + 2]);     /* 8 bits against 4 */
        assert_true(t.kl[3 * i + 2] < t.kl[3 * i + 1]); /* 4 bits against 3 */
    }
    assert_int_equal(nb_mixture_init(&m, &t, &err), NB_OK);
    nb_mixture_all(&m, 2);
    const int64_t bytes = nb_mixture_bytes(&m);
    const double uniform = nb_mixture_kl(&m);
    assert_true(nb_mixture_bpw(&m) == 4.5);
    assert_int_equal(nb_mixture_uniform(&m, bytes), 2);
    assert_int_equal(nb_mixture_uniform(&m, bytes - 1), 1);
    assert_int_equal(nb_mixture_uniform(&m, 1), -1);
    assert_int_equal(nb_mixture_by_bytes(&m, bytes, &err), NB_OK);
    assert_int_equal(nb_mixture_of(&m, planted), 0);
    assert_true(nb_mixture_bytes(&m) <= bytes);
    assert_true(nb_mixture_kl(&m) < 0.7 * uniform);

    /* Measured together, about the sum; restored afterwards. */
    nb_swapped *s;
    double kl, nothing;
    assert_int_equal(nb_swapped_open(&s, &w.job, &err), NB_OK);
    assert_int_equal(nb_mixture_measure(&m, s, &kl, &err), NB_OK);
    assert_true(kl > 0.5 * nb_mixture_kl(&m) && kl < 2 * nb_mixture_kl(&m));
    assert_int_equal(nb_swapped_kl(s, 0, &nothing, &err), NB_OK);
    assert_true(nothing == 0);
    nb_swapped_close(s);

    /* The recipe plans exactly these formats and bytes, also after it was printed and read. */
    nb_recipe r = {0}, again;
    nb_buf text = {0};
    nb_plan plan;
    assert_int_equal(nb_mixture_recipe(&m, &t.method, &r, &err), NB_OK);
    assert_int_equal(nb_recipe_print(&r, &text, &err), NB_OK);
    assert_int_equal(
        nb_recipe_parse(&again, (const char *)text.data, text.len, "r", &t.method, &err), NB_OK);
    const nb_plan_request request = {
        .to = NB_STORE_HF, .recipe = &again, .scheme = nb_recipe_main(&again)->scheme};
    assert_int_equal(nb_plan_make(&plan, w.store, &request, &err), NB_OK);
    int64_t planned = 0, n_found = 0;
    for (int64_t i = 0; i < plan.n; i++) {
        for (int64_t k = 0; k < t.n_linears; k++) {
            if (plan.from[i] != t.from[k])
                continue;
            const nb_weight *wanted = t.to[nb_sensitivity_at(&t, k, nb_mixture_of(&m, k))];
            assert_ptr_equal(plan.weights[i].fmt, wanted->fmt);
            assert_int_equal(plan.weights[i].group_size, wanted->group_size);
            assert_int_equal(plan.weights[i].bytes, wanted->bytes);
            planned += plan.weights[i].bytes - 16; /* a shape */
            n_found++;
        }
    }
    assert_int_equal(n_found, t.n_linears);
    assert_int_equal(planned, nb_mixture_bytes(&m));
    assert_non_null(strstr((const char *)text.data, "o_proj = W8A16 method rtn:search because"));
    nb_plan_free(&plan);
    nb_recipe_free(&r);
    nb_recipe_free(&again);
    nb_buf_free(&text);
    nb_mixture_free(&m);
    nb_sensitivity_free(&t);
    close_world(&w);
}

/* ---- what goes wrong ---- */

static void too_little_memory(void **state)
{
    (void)state;
    world w;
    nb_swapped *s;
    nb_err err;
    nb_swapped_plan plan;
    open_world(&w, "small", &(tiny_model){0}, NULL, 1, NB_ISA_ALL);
    assert_int_equal(nb_swapped_estimate(&plan, &w.job, &err), NB_OK);
    w.job.memory = plan.memory;
    assert_int_equal(nb_swapped_open(&s, &w.job, &err), NB_OK);
    nb_swapped_close(s);
    w.job.memory = plan.memory - 1;
    assert_int_equal(nb_swapped_open(&s, &w.job, &err), NB_LIMIT);
    assert_null(s);
    assert_non_null(strstr(err.text, "needs the whole model in memory"));
    w.job.memory = 0;
    w.job.n_seqs = 0;
    assert_int_equal(nb_swapped_open(&s, &w.job, &err), NB_DATA);
    w.job.n_seqs = N_SEQS;
    w.ids[LENGTH] = TINY_VOCAB;
    assert_int_equal(nb_swapped_open(&s, &w.job, &err), NB_DATA);
    assert_non_null(strstr(err.text, "outside the vocabulary"));
    close_world(&w);
}

static bool stop(void *context, double flops)
{
    assert_true(flops > 0);
    return --*(int *)context > 0;
}

/* Stopped, or without memory, at any moment: told, and nothing leaks. */
static void any_moment(void **state)
{
    (void)state;
    world w;
    nb_err err;
    nb_sensitivity t;
    open_world(&w, "moment", &(tiny_model){0}, NULL, 1, NB_ISA_ALL);
    table_of(&t, &w, "W4A16:g32");
    const int64_t live = nb_alloc_live();
    int n_failed = 0, n_stopped = 0;
    for (int64_t at = 1;; at += at < 80 ? 1 : 5) {
        nb_swapped *s;
        double kl;
        nb_alloc_fail_at(at);
        nb_status status = nb_swapped_open(&s, &w.job, &err);
        if (status == NB_OK)
            status = nb_swapped_set(s, 0, NB_LINEAR_Q, t.to[0], &t.method, &err);
        if (status == NB_OK)
            status = nb_swapped_kl(s, 0, &kl, &err);
        nb_alloc_fail_at(0);
        nb_swapped_close(s);
        assert_int_equal(nb_alloc_live(), live);
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_MEMORY);
        n_failed++;
    }
    assert_true(n_failed > 30);
    for (int calls = 1; calls < 40; calls += 7) {
        nb_swapped *s;
        int left = calls;
        w.job.progress = stop;
        w.job.context = &left;
        nb_status status = nb_swapped_open(&s, &w.job, &err);
        if (status == NB_OK)
            status = nb_sensitivity_measure(&t, s, NULL, NULL, &err);
        nb_swapped_close(s);
        assert_int_equal(status, NB_INTERRUPTED);
        n_stopped++;
    }
    assert_int_equal(n_stopped, 6);
    assert_int_equal(nb_alloc_live(), live);
    nb_sensitivity_free(&t);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_divergence_is_the_true_one),
        cmocka_unit_test(the_same_everywhere),
        cmocka_unit_test(measurements_are_kept),
        cmocka_unit_test(candidates_are_checked),
        cmocka_unit_test(a_planted_layer_is_found),
        cmocka_unit_test(too_little_memory),
        cmocka_unit_test(any_moment),
    };
    return cmocka_run_group_tests_name("sensitivity", tests, scratch_setup, scratch_teardown);
}
