/* A model in FP8 and NF4, from its quantization to its logits: the same bytes for any number of
 * threads, though rows share scales, and the same bits however it is computed. */
#include "quant/write/rewrite.h"

#include "model/forward.h"
#include "quant/write/wrapping.h"
#include "support/golden.h"
#include "support/must.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void quantize(const char *source, const char *name, const char *spec, int n_threads)
{
    nb_scheme scheme;
    nb_method method;
    nb_store *store;
    nb_pool *pool;
    nb_plan plan;
    nb_wrapping wrapping = {0};
    nb_sink *sink;
    nb_rewrite_result result;
    nb_err err;
    must(nb_scheme_parse(&scheme, spec, &err), &err);
    assert_string_equal(scheme.name, spec);
    must(nb_method_parse(&method, "rtn", &err), &err);
    must(nb_store_open(&store, scratch_path(source), &err), &err);
    must(nb_pool_open(&pool, n_threads, &err), &err);
    must(nb_plan_make(&plan, store, &(nb_plan_request){.to = NB_STORE_HF, .scheme = &scheme}, &err),
         &err);
    must(nb_wrapping_make(&wrapping, store, &plan, &err), &err);
    must(nb_wrapping_open_sink(&sink, &wrapping, &plan, scratch_path(name), true, &err), &err);
    must(nb_rewrite(store, &plan, sink, pool, &(nb_rewrite_options){.method = &method}, &result,
                    &err),
         &err);
    must(nb_sink_commit(sink, &err), &err);
    const double rms = nb_error_sum_rms(&result.quantized);
    assert_true(rms > 0.01 && rms < (scheme.fmt == &nb_format_nf4 ? 0.12 : 0.04));
    nb_store *made;
    must(nb_store_open(&made, scratch_path(name), &err), &err);
    for (int64_t i = 0; i < plan.n; i++) /* what was planned is what a reader counts */
        assert_int_equal(nb_store_find(made, plan.weights[i].name)->bytes, plan.weights[i].bytes);
    nb_store_close(made);
    nb_wrapping_free(&wrapping);
    nb_plan_free(&plan);
    nb_pool_close(pool);
    nb_store_close(store);
}

static void assert_same_file(const char *a, const char *b)
{
    nb_buf x = {0}, y = {0};
    nb_err err;
    must(nb_file_slurp(&x, scratch_path(a), (size_t)1 << 24, &err), &err);
    must(nb_file_slurp(&y, scratch_path(b), (size_t)1 << 24, &err), &err);
    assert_int_equal(x.len, y.len);
    assert_memory_equal(x.data, y.data, x.len);
    nb_buf_free(&x);
    nb_buf_free(&y);
}

enum { TOKENS = 19 };

/* Logits of a fixed text, fed in steps. */
static float *logits_of(const char *name, nb_compute_choice compute, unsigned isa, int n_threads,
                        int64_t step, size_t *bytes)
{
    nb_store *store;
    nb_pool *pool;
    nb_model model;
    nb_kernels kernels;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    nb_err err;
    int32_t tokens[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = TINY_BYTE(32 + i * 7 % 90);
    must(nb_store_open(&store, scratch_path(name), &err), &err);
    must(nb_pool_open(&pool, n_threads, &err), &err);
    nb_kernels_init(&kernels, isa);
    must(nb_model_open(&model, store, &(nb_model_options){.compute = compute, .n_ctx = 64}, pool,
                       &err),
         &err);
    must(nb_work_init(&work, &model, &kernels, pool, 64, &err), &err);
    must(nb_kv_pool_init(&kv, &model.config, NB_KV_F16, 4, &err), &err);
    must(nb_kv_seq_init(&seq, &kv, 64, &err), &err);
    const int64_t vocab = model.config.vocab_size, d = model.config.d_model;
    *bytes = (size_t)(TOKENS * vocab) * sizeof(float);
    float *logits = malloc(*bytes), *hidden = malloc((size_t)(TOKENS * d) * sizeof(float));
    for (int64_t i = 0; i < TOKENS; i += step) {
        const int64_t n = TOKENS - i < step ? TOKENS - i : step;
        const nb_step_input in = {&seq, tokens + i, n, n};
        must(nb_forward(&work, &in, 1, hidden, &err), &err);
        nb_logits(&work, hidden, n, logits + i * vocab);
    }
    free(hidden);
    nb_kv_seq_free(&seq);
    nb_kv_pool_free(&kv);
    nb_work_free(&work);
    nb_model_close(&model);
    nb_pool_close(pool);
    nb_store_close(store);
    return logits;
}

static const char *const schemes[] = {"FP8", "FP8:tensor", "FP8_BLOCK", "NF4", "NF4:g32,single"};

static void every_scheme_from_end_to_end(void **state)
{
    (void)state;
    static const unsigned isas[] = {NB_ISA_AVX2, NB_ISA_AVX2 | NB_ISA_AVX512, NB_ISA_NEON};
    /* Two blocks down and across, the last ones smaller. */
    const tiny_model how = {.d_model = 192, .d_ff = 320, .n_layers = 1};
    (void)tiny_model_write("source", &how);
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        size_t bytes;
        quantize("source", "one", schemes[i], 1);
        quantize("source", "three", schemes[i], 3);
        assert_same_file("one/model.safetensors", "three/model.safetensors");
        assert_same_file("one/config.json", "three/config.json");

        float *want = logits_of("one", NB_COMPUTE_AUTO, 0, 1, TOKENS, &bytes);
        for (int way = 0; way < 6; way++) {
            const unsigned isa = isas[way % 3];
            if ((nb_cpu_isa() & isa) != isa)
                continue;
            float *got =
                logits_of("one", NB_COMPUTE_AUTO, isa, 1 + way / 3, way < 3 ? TOKENS : 5, &bytes);
            if (memcmp(want, got, bytes) != 0)
                fail_msg("%s: way %d differs", schemes[i], way);
            free(got);
        }
        /* Mode f, asked for by name, leaves activations alone: only FP8 ones were rounded. */
        float *plain = logits_of("one", NB_COMPUTE_ALL_F, 0, 1, TOKENS, &bytes);
        assert_int_equal(memcmp(want, plain, bytes) == 0, schemes[i][0] == 'N');
        free(plain);
        free(want);
    }
}

static void what_needs_calibration_is_refused(void **state)
{
    (void)state;
    const tiny_model how = {.d_model = 64};
    nb_scheme scheme;
    nb_store *store;
    nb_plan plan;
    nb_err err;
    must(nb_store_open(&store, tiny_model_write("small", &how), &err), &err);
    must(nb_scheme_parse(&scheme, "fp8:static", &err), &err);
    assert_true(scheme.act.is_static);
    const nb_plan_request request = {.to = NB_STORE_HF, .scheme = &scheme};
    must(nb_plan_make(&plan, store, &request, &err), &err);
    nb_rewrite_result result;
    const nb_rewrite_options options = {0};
    assert_int_equal(nb_rewrite(store, &plan, NULL, NULL, &options, &result, &err), NB_UNSUPPORTED);
    assert_non_null(strstr(err.text, "_proj.weight: static activations"));
    nb_plan_free(&plan);
    nb_store_close(store);
}

/* Modifiers of integers mean nothing to float codes. */
static void modifiers_of_float_codes(void **state)
{
    (void)state;
    static const struct {
        const char *text, *reason;
    } bad[] = {
        {"FP8:asym", "there are tensor and static"},
        {"FP8:g128", "there are tensor and static"},
        {"FP8_BLOCK:tensor", "there is static"},
        {"NF4:asym", "gN (g64, g128) and single"},
        {"NF4:tensor", "gN (g64, g128) and single"},
        {"FP8:tensor,tensor", "given twice"},
        {"NF4:g64,g64", "given twice"},
    };
    nb_scheme scheme;
    nb_err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(nb_scheme_parse(&scheme, bad[i].text, &err), NB_USAGE);
        if (strstr(err.text, bad[i].reason) == NULL)
            fail_msg("%s: %s", bad[i].text, err.text);
    }
    must(nb_scheme_parse(&scheme, "FP8_DYNAMIC", &err), &err);
    assert_ptr_equal(scheme.fmt, &nb_format_fp8_e4m3);
    assert_int_equal(scheme.group_size, NB_GROUP_CHANNEL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_scheme_from_end_to_end),
        cmocka_unit_test(what_needs_calibration_is_refused),
        cmocka_unit_test(modifiers_of_float_codes),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
