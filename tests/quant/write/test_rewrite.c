/* From a model to another: what is written is what was planned, whatever fails on the way. */
#include "quant/write/rewrite.h"

#include "quant/write/wrapping.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/tiny_model.h"
#include "text/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- one run of everything ---- */

typedef struct {
    const char *scheme; /* NULL: convert */
    nb_dtype dtype;
    bool requantize;
    nb_nonfinite nonfinite;
    int n_threads; /* 0: 1 */
    bool force;
    bool interrupt; /* after the first weight */
} how;

typedef struct {
    int64_t planned_bytes, weight_bytes, memory;
    nb_rewrite_result result;
} outcome;

static bool stop_at_once(void *context, int64_t done, int64_t total)
{
    (void)context;
    assert_true(done > 0 && done <= total);
    return false;
}

static nb_status write_all(nb_store *store, const nb_plan *plan, nb_pool *pool, const how *h,
                           const char *output, outcome *o, nb_err *err)
{
    nb_wrapping wrapping = {0};
    nb_sink *sink = NULL;
    nb_rewrite_options options = {.nonfinite = h->nonfinite,
                                  .progress = h->interrupt ? stop_at_once : NULL};
    nb_method method;
    nb_status s = nb_method_parse(&method, "rtn", err);
    options.method = &method;
    if (s == NB_OK)
        s = nb_wrapping_make(&wrapping, store, plan, err);
    if (s == NB_OK)
        s = nb_wrapping_open_sink(&sink, &wrapping, plan, output, h->force, err);
    if (s == NB_OK) {
        o->planned_bytes = nb_sink_planned_bytes(sink);
        o->weight_bytes = plan->bytes;
        o->memory = nb_rewrite_memory(plan, 0, 1);
        s = nb_rewrite(store, plan, sink, pool, &options, &o->result, err);
        if (s == NB_OK)
            s = nb_sink_commit(sink, err);
        else
            nb_sink_abort(sink);
    }
    nb_wrapping_free(&wrapping);
    return s;
}

/* Output names that end in .gguf are GGUF. Leaves nothing allocated. */
static nb_status run(const char *source, const char *output, how h, outcome *o, nb_err *err)
{
    const int64_t live = nb_alloc_live();
    const size_t n = strlen(output);
    nb_scheme scheme;
    nb_store *store = NULL;
    nb_pool *pool = NULL;
    nb_plan plan = {0};
    *o = (outcome){0};
    *err = (nb_err){0};
    if (h.scheme != NULL)
        assert_int_equal(nb_scheme_parse(&scheme, h.scheme, err), NB_OK);
    const nb_plan_request request = {
        .to = strcmp(output + n - 5, ".gguf") == 0 ? NB_STORE_GGUF : NB_STORE_HF,
        .scheme = h.scheme != NULL ? &scheme : NULL,
        .dtype = h.dtype,
        .requantize = h.requantize,
    };
    nb_status s = nb_store_open(&store, source, err);
    if (s == NB_OK)
        s = nb_pool_open(&pool, h.n_threads > 0 ? h.n_threads : 1, err);
    if (s == NB_OK)
        s = nb_plan_make(&plan, store, &request, err);
    if (s == NB_OK)
        s = write_all(store, &plan, pool, &h, output, o, err);
    nb_plan_free(&plan);
    nb_pool_close(pool);
    nb_store_close(store);
    assert_int_equal(nb_alloc_live(), live);
    return s;
}

static void run_ok(const char *source, const char *output, how h, outcome *o)
{
    nb_err err;
    if (run(source, output, h, o, &err) != NB_OK)
        fail_msg("%s -> %s: %s", source, output, err.text);
}

/* ---- looking at what was written ---- */

typedef struct {
    nb_store *store;
    nb_loaded loaded;
} opened;

static void opened_init(opened *x, const char *path)
{
    nb_err err = {0};
    *x = (opened){0};
    if (nb_store_open(&x->store, path, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static void opened_free(opened *x)
{
    nb_loaded_free(&x->loaded);
    nb_store_close(x->store);
}

static const nb_mat *mat_of(opened *x, const char *name)
{
    nb_err err = {0};
    const nb_weight *w = nb_store_find(x->store, name);
    if (w == NULL || nb_store_read(x->store, w, &x->loaded, &err) != NB_OK)
        fail_msg("%s: %s", name, err.text);
    return &x->loaded.mat;
}

/* All values of a matrix; free() them. */
static float *values_of(const nb_mat *m)
{
    float *x = malloc((size_t)(m->n_rows * m->n_cols) * sizeof *x);
    for (int64_t r = 0; r < m->n_rows; r++)
        m->fmt->decode_row(m, r, x + r * m->n_cols);
    return x;
}

static void assert_same_mat(const nb_mat *a, const nb_mat *b)
{
    assert_ptr_equal(a->fmt, b->fmt);
    assert_int_equal(a->n_rows, b->n_rows);
    assert_int_equal(a->n_cols, b->n_cols);
    assert_memory_equal(a->codes, b->codes, (size_t)(a->n_rows * a->row_bytes));
    if (!a->fmt->affine)
        return;
    assert_int_equal(a->group_size, b->group_size);
    assert_int_equal(a->scale_type, b->scale_type);
    const size_t n = (size_t)(a->n_rows * nb_mat_n_groups(a));
    assert_memory_equal(a->scales, b->scales, n * nb_float_bytes(a->scale_type));
    assert_int_equal(a->zeros == NULL, b->zeros == NULL);
    if (a->zeros != NULL)
        assert_memory_equal(a->zeros, b->zeros, n);
}

/* Two models hold the same matrices under the same names. */
static void assert_same_model(const char *path_a, const char *path_b)
{
    opened a, b;
    opened_init(&a, path_a);
    opened_init(&b, path_b);
    assert_int_equal(nb_store_n_weights(a.store), nb_store_n_weights(b.store));
    assert_true(nb_store_n_weights(a.store) > 10);
    for (int64_t i = 0; i < nb_store_n_weights(a.store); i++) {
        const char *name = nb_store_weight(a.store, i)->name;
        assert_same_mat(mat_of(&a, name), mat_of(&b, name));
    }
    opened_free(&a);
    opened_free(&b);
}

static bool is_linear(const char *name)
{
    return strstr(name, "_proj.weight") != NULL;
}

/* The weight that encoding the source's values row by row gives. */
static void assert_encoded(const nb_mat *m, const float *x)
{
    nb_mat want = *m;
    const size_t n = (size_t)(m->n_rows * m->n_cols);
    want.codes = calloc(n, 4);
    want.scales = calloc(n, 4);
    want.zeros = m->zeros != NULL ? calloc(n, 1) : NULL;
    for (int64_t r = 0; r < m->n_rows; r++)
        m->fmt->encode_row(&want, r, x + r * m->n_cols);
    assert_same_mat(m, &want);
    free(want.codes);
    free(want.scales);
    free(want.zeros);
}

/* Every weight of a quantized model against its original; the sizes against the plan. */
static void check_model(const char *original, const char *made, const nb_scheme *scheme,
                        const outcome *o)
{
    opened a, b;
    opened_init(&a, original);
    opened_init(&b, made);
    int64_t bytes = 0, n_linear = 0;
    assert_int_equal(nb_store_file_bytes(b.store), o->planned_bytes);
    for (int64_t i = 0; i < nb_store_n_weights(b.store); i++) {
        const nb_weight *w = nb_store_weight(b.store, i);
        bytes += w->bytes;
        float *x = values_of(mat_of(&a, w->name));
        const nb_mat *m = mat_of(&b, w->name);
        if (is_linear(w->name)) {
            n_linear++;
            assert_ptr_equal(m->fmt, scheme->fmt);
            assert_int_equal(w->act.bits, scheme->act.bits);
        }
        assert_encoded(m, x);
        free(x);
    }
    assert_int_equal(n_linear, 14);
    assert_int_equal(bytes, o->weight_bytes);
    nb_config config;
    nb_tokenizer *t;
    nb_err err = {0};
    assert_int_equal(nb_config_read(b.store, &config, &err), NB_OK);
    if (nb_tokenizer_open(&t, b.store, &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_int_equal(nb_tokenizer_eos(t), TINY_EOS);
    nb_tokenizer_close(t);
    opened_free(&a);
    opened_free(&b);
}

/* ---- tests ---- */

static const char *const schemes[] = {
    "W8A16",          "W8A16:g32",     "W8A16:asym", "W8A8",      "W8A8:asym", "W8A8:g64", "W4A16",
    "W4A16:g32,asym", "W4A16:channel", "W4A8:g32",   "W4A8:asym", "Q4_0",      "Q8_0",
};
#define N_SCHEMES (sizeof schemes / sizeof *schemes)

static bool is_gguf_scheme(const char *name)
{
    return name[0] == 'Q';
}

/* All schemes from a folder and from a GGUF: every code is the one that its encoder gives. */
static void every_scheme_loads_back(void **state)
{
    (void)state;
    outcome o;
    tiny_model_write("m", &(tiny_model){.tied = true});
    run_ok(scratch_path("m"), scratch_path("m.gguf"), (how){0}, &o);
    for (size_t i = 0; i < N_SCHEMES; i++) {
        for (int from_gguf = 0; from_gguf < 2; from_gguf++) {
            const char *source = scratch_path(from_gguf ? "m.gguf" : "m");
            const char *made = scratch_path(is_gguf_scheme(schemes[i]) ? "made.gguf" : "made");
            nb_scheme scheme;
            nb_err err = {0};
            assert_int_equal(nb_scheme_parse(&scheme, schemes[i], &err), NB_OK);
            run_ok(source, made, (how){.scheme = schemes[i], .force = true}, &o);
            check_model(source, made, &scheme, &o);
            assert_true(o.result.quantized.square > 0);
        }
    }
}

/* The output depends on neither the number of threads nor on what was there before. */
static void threads_do_not_matter(void **state)
{
    (void)state;
    tiny_model_write("m", &(tiny_model){.tied = true, .d_model = 128, .d_ff = 384, .n_vocab = 900});
    for (size_t i = 0; i < N_SCHEMES; i += 3) {
        const bool gguf = is_gguf_scheme(schemes[i]);
        outcome first, o;
        run_ok(scratch_path("m"), scratch_path(gguf ? "one.gguf" : "one"),
               (how){.scheme = schemes[i], .force = true}, &first);
        for (int n = 2; n <= 4; n++) {
            run_ok(scratch_path("m"), scratch_path(gguf ? "many.gguf" : "many"),
                   (how){.scheme = schemes[i], .n_threads = n, .force = true}, &o);
            assert_memory_equal(&first.result, &o.result, sizeof o.result);
            nb_buf a = {0}, b = {0};
            nb_err err = {0};
            const char *end = gguf ? "" : "/model.safetensors";
            char path[2][4096];
            snprintf(path[0], 4096, "%s%s", scratch_path(gguf ? "one.gguf" : "one"), end);
            snprintf(path[1], 4096, "%s%s", scratch_path(gguf ? "many.gguf" : "many"), end);
            assert_int_equal(nb_file_slurp(&a, path[0], 1 << 28, &err), NB_OK);
            assert_int_equal(nb_file_slurp(&b, path[1], 1 << 28, &err), NB_OK);
            assert_int_equal(a.len, b.len);
            assert_memory_equal(a.data, b.data, a.len);
            nb_buf_free(&a);
            nb_buf_free(&b);
        }
    }
}

/* There and back without loss, in each direction that has one. */
static void round_trips(void **state)
{
    (void)state;
    outcome o;
    tiny_model_write("m", &(tiny_model){0});
    /* floats */
    static const nb_dtype dtypes[] = {NB_DTYPE_F32, NB_DTYPE_F16, NB_DTYPE_BF16};
    for (size_t i = 0; i < 3; i++) {
        run_ok(scratch_path("m"), scratch_path("f"), (how){.dtype = dtypes[i], .force = true}, &o);
        run_ok(scratch_path("f"), scratch_path("f.gguf"), (how){.force = true}, &o);
        assert_true(o.result.rounded.square == 0);
        run_ok(scratch_path("f.gguf"), scratch_path("f2"), (how){.force = true}, &o);
        assert_true(o.result.rounded.square == 0);
        if (dtypes[i] == NB_DTYPE_F32)
            assert_same_model(scratch_path("f"), scratch_path("f2"));
        run_ok(scratch_path("f2"), scratch_path("f2.gguf"), (how){.force = true}, &o);
        assert_same_model(scratch_path("f.gguf"), scratch_path("f2.gguf"));
    }
    /* codes: blocks to arrays and back, with an untied head of its own */
    static const char *const blocks[] = {"Q4_0", "Q8_0"};
    for (size_t i = 0; i < 2; i++) {
        run_ok(scratch_path("m"), scratch_path("q.gguf"), (how){.scheme = blocks[i], .force = true},
               &o);
        run_ok(scratch_path("q.gguf"), scratch_path("q"),
               (how){.dtype = NB_DTYPE_KEEP, .force = true}, &o);
        assert_true(o.result.quantized.power == 0 && o.result.rounded.square == 0);
        run_ok(scratch_path("q"), scratch_path("q2.gguf"), (how){.force = true}, &o);
        assert_true(o.result.n_requantized == 0 && o.result.rounded.square == 0);
        opened a, b;
        opened_init(&a, scratch_path("q.gguf"));
        opened_init(&b, scratch_path("q2.gguf"));
        for (int64_t k = 0; k < nb_store_n_weights(a.store); k++) {
            const char *name = nb_store_weight(a.store, k)->name;
            float *x = values_of(mat_of(&a, name)), *y = values_of(mat_of(&b, name));
            const nb_mat *m = &b.loaded.mat;
            assert_memory_equal(x, y, (size_t)(m->n_rows * m->n_cols) * sizeof *x);
            if (is_linear(name)) /* and not only the same values */
                assert_same_mat(mat_of(&a, name), mat_of(&b, name));
            free(x);
            free(y);
        }
        opened_free(&a);
        opened_free(&b);
        run_ok(scratch_path("q"), scratch_path("q3"), (how){.force = true}, &o);
        assert_same_model(scratch_path("q"), scratch_path("q3"));
        run_ok(scratch_path("q.gguf"), scratch_path("q3.gguf"), (how){.force = true}, &o);
        assert_same_model(scratch_path("q.gguf"), scratch_path("q3.gguf"));
    }
}

/* What GGUF cannot hold exactly is refused by name, or chosen anew when that was asked for. */
static void codes_without_a_gguf_form(void **state)
{
    (void)state;
    static const char *const lossy[] = {"W4A16:g32,asym", "W8A16:g16", "W8A8:asym"};
    outcome o;
    nb_err err;
    tiny_model_write("m", &(tiny_model){.tied = true});
    for (size_t i = 0; i < 3; i++) {
        run_ok(scratch_path("m"), scratch_path("q"), (how){.scheme = lossy[i], .force = true}, &o);
        assert_int_equal(run(scratch_path("q"), scratch_path("r.gguf"), (how){0}, &o, &err),
                         NB_UNSUPPORTED);
        assert_non_null(strstr(err.text, "--requantize"));
        assert_non_null(strstr(err.text, "q_proj"));
        assert_false(scratch_exists("r.gguf"));
        run_ok(scratch_path("q"), scratch_path("r.gguf"), (how){.requantize = true, .force = true},
               &o);
        assert_true(o.result.quantized.square > 0);
        remove(scratch_path("r.gguf"));
    }
    /* but wide groups and whole rows have one */
    static const char *const exact[] = {"W4A16:g64", "W4A16:channel", "W8A16", "W8A8"};
    for (size_t i = 0; i < 4; i++) {
        run_ok(scratch_path("m"), scratch_path("q"), (how){.scheme = exact[i], .force = true}, &o);
        run_ok(scratch_path("q"), scratch_path("r.gguf"), (how){.force = true}, &o);
        assert_true(o.result.quantized.power == 0);
    }
}

/* A NaN is refused with its place; or becomes 0; or stays, in floats. */
static void not_a_number(void **state)
{
    (void)state;
    outcome o;
    nb_err err;
    tiny_model_write("bad", &(tiny_model){.nan_head = true});
    static const how hows[] = {
        {.scheme = "W4A16"}, {.scheme = "W8A8"}, {0}, {.dtype = NB_DTYPE_F16}};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(run(scratch_path("bad"), scratch_path("out"), hows[i], &o, &err), NB_DATA);
        assert_non_null(strstr(err.text, "'lm_head.weight' holds nan at [7, "));
        assert_false(scratch_exists("out"));
    }
    assert_int_equal(
        run(scratch_path("bad"), scratch_path("o.gguf"), (how){.scheme = "Q8_0"}, &o, &err),
        NB_DATA);
    for (size_t i = 0; i < 4; i++) {
        how h = hows[i];
        h.nonfinite = NB_NONFINITE_ZERO;
        h.force = true;
        run_ok(scratch_path("bad"), scratch_path("out"), h, &o);
        assert_int_equal(o.result.n_zeroed, 1);
        run_ok(scratch_path("out"), scratch_path("again"), (how){.force = true}, &o);
    }
    run_ok(scratch_path("bad"), scratch_path("kept"), (how){.nonfinite = NB_NONFINITE_KEEP}, &o);
    assert_same_model(scratch_path("bad"), scratch_path("kept"));
    run_ok(scratch_path("bad"), scratch_path("kept16"),
           (how){.dtype = NB_DTYPE_BF16, .nonfinite = NB_NONFINITE_KEEP}, &o);
    assert_int_equal(run(scratch_path("kept16"), scratch_path("k.gguf"), (how){0}, &o, &err),
                     NB_DATA);
}

static void existing_outputs_are_safe(void **state)
{
    (void)state;
    outcome o;
    nb_err err;
    tiny_model_write("m", &(tiny_model){0});
    scratch_text("precious.gguf", "mine");
    const how q8 = {.scheme = "Q8_0"};
    assert_int_equal(run(scratch_path("m"), scratch_path("precious.gguf"), q8, &o, &err), NB_USAGE);
    assert_true(scratch_holds("precious.gguf", "mine"));
    assert_int_equal(run(scratch_path("m"), scratch_path("precious.gguf"),
                         (how){.scheme = "Q8_0", .force = true, .interrupt = true}, &o, &err),
                     NB_INTERRUPTED);
    assert_true(scratch_holds("precious.gguf", "mine"));
    const int before = scratch_count(".");
    assert_int_equal(run(scratch_path("m"), scratch_path("new"),
                         (how){.scheme = "W8A8", .interrupt = true}, &o, &err),
                     NB_INTERRUPTED);
    assert_int_equal(scratch_count("."), before);
}

/* The n-th allocation fails, for every n: an error, nothing leaked, nothing written. */
static void out_of_memory(void **state)
{
    (void)state;
    static const struct {
        const char *source, *output;
        how h;
    } cases[] = {
        {"m", "o", {.scheme = "W4A16:asym"}},
        {"m", "o.gguf", {.scheme = "Q4_0"}},
        {"m.gguf", "o", {.scheme = "W8A8"}},
        {"m.gguf", "o.gguf", {0}},
    };
    outcome o;
    tiny_model_write("m", &(tiny_model){.n_layers = 1, .tied = true});
    run_ok(scratch_path("m"), scratch_path("m.gguf"), (how){0}, &o);
    for (size_t i = 0; i < 4; i++) {
        int n_failed = 0;
        for (int64_t n = 1;; n++) {
            nb_err err;
            const char *source = scratch_path(cases[i].source);
            const int before = scratch_count(".");
            nb_alloc_fail_at(n);
            const nb_status s = run(source, scratch_path(cases[i].output), cases[i].h, &o, &err);
            nb_alloc_fail_at(0);
            if (s == NB_OK)
                break;
            if (s != NB_MEMORY)
                fail_msg("allocation %lld of case %zu: %s", (long long)n, i, err.text);
            assert_int_equal(scratch_count("."), before);
            n_failed++;
        }
        assert_true(n_failed > 30);
        run_ok(scratch_path(cases[i].output), scratch_path("check"), (how){.force = true}, &o);
        scratch_teardown(state);
        assert_int_equal(scratch_setup(state), 0);
        tiny_model_write("m", &(tiny_model){.n_layers = 1, .tied = true});
        run_ok(scratch_path("m"), scratch_path("m.gguf"), (how){0}, &o);
    }
}

/* The n-th read, write, sync or rename fails, for every n. Only the very last one, the sync of
 * the folder, comes too late to take the output back. */
static void a_failing_disk(void **state)
{
    (void)state;
    static const struct {
        const char *source, *output;
        how h;
    } cases[] = {
        {"m", "o", {.scheme = "W4A16"}}, {"m", "o.gguf", {.scheme = "Q8_0"}}, {"m.gguf", "p", {0}}};
    static const int errnums[] = {ENOSPC, EIO};
    outcome o;
    tiny_model_write("m", &(tiny_model){.n_layers = 1, .tied = true});
    run_ok(scratch_path("m"), scratch_path("m.gguf"), (how){0}, &o);
    for (size_t i = 0; i < 3; i++) {
        int n_failed = 0, n_late = 0;
        for (int64_t n = 1;; n++) {
            nb_err err;
            const char *source = scratch_path(cases[i].source);
            const int before = scratch_count(".");
            nb_file_fail_at(n, errnums[n % 2]);
            const nb_status s = run(source, scratch_path(cases[i].output), cases[i].h, &o, &err);
            nb_file_fail_at(0, 0);
            if (s == NB_OK)
                break;
            assert_int_equal(s, NB_IO);
            n_failed++;
            if (scratch_exists(cases[i].output)) {
                n_late++;
                opened whole;
                opened_init(&whole, scratch_path(cases[i].output));
                opened_free(&whole);
                break;
            }
            assert_int_equal(scratch_count("."), before);
        }
        assert_true(n_failed > 10);
        assert_true(n_late <= 1);
    }
}

/* The estimate of memory covers the largest weight, before and after. */
static void memory_is_planned(void **state)
{
    (void)state;
    outcome o;
    tiny_model_write("m", &(tiny_model){.n_vocab = 2000, .d_model = 128});
    run_ok(scratch_path("m"), scratch_path("o"), (how){.scheme = "W4A16"}, &o);
    assert_true(o.memory > 2000 * 128 * 4);
    assert_true(o.memory < 64 << 20);
}

int main(void)
{
#define SCRATCH_TEST(name) cmocka_unit_test_setup_teardown(name, scratch_setup, scratch_teardown)
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(every_scheme_loads_back),
        SCRATCH_TEST(threads_do_not_matter),
        SCRATCH_TEST(round_trips),
        SCRATCH_TEST(codes_without_a_gguf_form),
        SCRATCH_TEST(not_a_number),
        SCRATCH_TEST(existing_outputs_are_safe),
        SCRATCH_TEST(out_of_memory),
        SCRATCH_TEST(a_failing_disk),
        SCRATCH_TEST(memory_is_planned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
