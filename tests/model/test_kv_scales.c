/* Static scales of an FP8 cache: found under every name that writers use, checked, and met by the
 * cache as the kernels store it; and folders that are wrong about them, by name. */
#include "model/forward.h"
#include "model/kv_scales.h"
#include "model/model_pool.h"
#include "numeric/minifloat.h"
#include "support/golden.h"
#include "support/must.h"
#include "support/scratch.h"
#include "support/tiny_model.h"
#include "support/torture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define LAYER    "model.layers."
#define STATIC   "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"tensor\",\"dynamic\":false}"
#define MAX_KV   16
#define N_LAYERS 2
#define N_KV     2

/* A tensor beside those of the model. */
typedef struct {
    const char *name;
    float values[3];
    int n_dims;
    int64_t dims[3];
} extra;

#define ONE(x)                                                                                     \
    {x}, 1,                                                                                        \
    {                                                                                              \
        1                                                                                          \
    }
#define TWO(x, y)                                                                                  \
    {x, y}, 3,                                                                                     \
    {                                                                                              \
        2, 1, 1                                                                                    \
    }

static const nb_format *extra_format = &nb_format_f32;

static void put_extra(nb_sink *sink, int64_t i, const nb_weight *w, const extra *e)
{
    nb_err err;
    uint8_t raw[16] = {0};
    nb_mat m = {.fmt = w->fmt, .n_rows = w->n_rows, .n_cols = w->n_cols, .codes = raw};
    must(nb_format_row_bytes(w->fmt, w->n_cols, &m.row_bytes, &err), &err);
    for (int64_t r = 0; r < w->n_rows; r++)
        w->fmt->encode_row(&m, r, e->values + r * w->n_cols);
    must(nb_sink_put(sink, i, &m, &err), &err);
}

static char *config_text(const char *quantization)
{
    nb_err err;
    json_t *c;
    must(nb_json_load(&c, scratch_path("tiny/config.json"), 1 << 20, &err), &err);
    if (quantization != NULL) {
        json_t *q = json_loads(quantization, 0, NULL);
        assert_non_null(q);
        json_object_set_new(c, "quantization_config", q);
    }
    char *text = json_dumps(c, 0);
    json_decref(c);
    return text;
}

/* The tiny model once more in folder `m`, with other tensors and this quantization_config (NULL:
 * none). */
static void write_m(const char *quantization, const extra *extras, int64_t n_extras)
{
    nb_err err;
    nb_store *store;
    nb_sink *sink;
    nb_loaded loaded = {0};
    must(nb_store_open(&store, scratch_path("tiny"), &err), &err);
    const int64_t n = nb_store_n_weights(store);
    nb_weight *plan = calloc((size_t)(n + n_extras), sizeof *plan);
    for (int64_t i = 0; i < n; i++)
        plan[i] = *nb_store_weight(store, i);
    for (int64_t i = 0; i < n_extras; i++) {
        const extra *e = &extras[i];
        nb_weight *w = &plan[n + i];
        *w = (nb_weight){.name = e->name, .n_dims = e->n_dims, .fmt = extra_format};
        memcpy(w->dims, e->dims, sizeof e->dims);
        w->n_cols = e->n_dims == 0 ? 1 : e->dims[e->n_dims - 1];
        w->n_rows = 1;
        for (int d = 0; d + 1 < e->n_dims; d++)
            w->n_rows *= e->dims[d];
    }
    char *config = config_text(quantization);
    const nb_side_file side = {.name = "config.json", .bytes = config, .len = strlen(config)};
    must(nb_sink_open_hf(&sink, scratch_path("m"), true, plan, n + n_extras, &side, 1, 0, &err),
         &err);
    for (int64_t i = 0; i < n; i++) {
        must(nb_store_read(store, nb_store_weight(store, i), &loaded, &err), &err);
        must(nb_sink_put(sink, i, &loaded.mat, &err), &err);
    }
    for (int64_t i = 0; i < n_extras; i++)
        put_extra(sink, n + i, &plan[n + i], &extras[i]);
    must(nb_sink_commit(sink, &err), &err);
    nb_loaded_free(&loaded);
    nb_store_close(store);
    free(config);
    free(plan);
}

static const char *with_scheme(const char *scheme)
{
    static char text[600];
    snprintf(text, sizeof text,
             "{\"quant_method\":\"compressed-tensors\",\"format\":\"dense\",\"config_groups\":{},"
             "\"quantization_status\":\"compressed\",\"ignore\":[],\"kv_cache_scheme\":%s}",
             scheme);
    return text;
}

static nb_status open_m(nb_model *m, nb_store **store, nb_err *err)
{
    const nb_model_options options = {NB_COMPUTE_AUTO, 64};
    *store = NULL;
    NB_TRY(nb_store_open(store, scratch_path("m"), err));
    return nb_model_open(m, *store, &options, pool, err);
}

static void refused(nb_status want, const char *reason)
{
    nb_err err = {0};
    nb_model m = {0};
    nb_store *store;
    const int64_t live = nb_alloc_live();
    const nb_status s = open_m(&m, &store, &err);
    nb_model_close(&m);
    nb_store_close(store);
    assert_int_equal(nb_alloc_live(), live);
    if (s != want || strstr(err.text, reason) == NULL || strstr(err.text, "/m") == NULL)
        fail_msg("%s, '%s'\nexpected %s, '%s'", nb_status_name(s), err.text, nb_status_name(want),
                 reason);
}

/* The folder has these scales, [layer][head]. */
static void expect_scales(const float *k, const float *v)
{
    nb_err err;
    nb_model m;
    nb_store *store;
    must(open_m(&m, &store, &err), &err);
    assert_non_null(m.config.k_scales);
    for (int i = 0; i < N_LAYERS * N_KV; i++) {
        assert_int_equal(m.config.k_scales[i], nb_f16_from_f32(k[i]));
        assert_int_equal(m.config.v_scales[i], nb_f16_from_f32(v[i]));
    }
    nb_model_close(&m);
    nb_store_close(store);
}

/* ---- what is read ---- */

static void each_spelling_is_the_same(void **state)
{
    (void)state;
    static const char *const names[][2] = {{"k_scale", "v_scale"},
                                           {"k_proj.k_scale", "v_proj.v_scale"},
                                           {"k_proj.output_scale", "v_proj.output_scale"}};
    const float k[] = {0.5f, 0.5f, 0.75f, 0.75f}, v[] = {0.25f, 0.25f, 2, 2};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char text[4][80];
        for (int j = 0; j < 4; j++)
            snprintf(text[j], sizeof text[j], LAYER "%d.self_attn.%s", j / 2, names[i][j % 2]);
        const extra all[] = {{text[0], ONE(0.5f)},
                             {text[1], ONE(0.25f)},
                             {text[2], {0.75f}, 0, {0}}, /* a scalar */
                             {text[3], ONE(2)}};
        write_m(with_scheme(STATIC), all, 4);
        expect_scales(k, v);
    }
    /* The deprecated one is of keys and values alike. */
    const extra both[] = {{LAYER "0.self_attn.kv_scale", ONE(0.5f)},
                          {LAYER "1.self_attn.kv_scale", ONE(0.75f)}};
    write_m(with_scheme(STATIC), both, 2);
    expect_scales(k, k);
}

static const extra by_head[] = {{LAYER "0.self_attn.k_scale", TWO(0.05f, 0.06f)},
                                {LAYER "0.self_attn.v_scale", TWO(0.03f, 0.02f)},
                                {LAYER "1.self_attn.k_scale", TWO(0.04f, 0.07f)},
                                {LAYER "1.self_attn.v_scale", TWO(0.01f, 0.015f)}};
static const float keys_by_head[] = {0.05f, 0.06f, 0.04f, 0.07f};
static const float values_by_head[] = {0.03f, 0.02f, 0.01f, 0.015f};

static void scales_of_heads_are_rounded_to_f16(void **state)
{
    (void)state;
    write_m(with_scheme(STATIC), by_head, 4);
    expect_scales(keys_by_head, values_by_head);
    float k[4], v[4]; /* BF16 in the file: rounded twice */
    for (int i = 0; i < 4; i++) {
        k[i] = nb_bf16_to_f32(nb_bf16_from_f32(keys_by_head[i]));
        v[i] = nb_bf16_to_f32(nb_bf16_from_f32(values_by_head[i]));
    }
    extra_format = &nb_format_bf16;
    write_m(with_scheme(STATIC), by_head, 4);
    extra_format = &nb_format_f32;
    expect_scales(k, v);
    /* The ends of what F16 holds. */
    const extra ends[] = {{LAYER "0.self_attn.kv_scale", TWO(0x1p-24f, 65504)},
                          {LAYER "1.self_attn.kv_scale", ONE(1)}};
    write_m(with_scheme(STATIC), ends, 2);
    const float want[] = {0x1p-24f, 65504, 1, 1};
    expect_scales(want, want);
}

/* What a folder says decides the cache where nobody does. */
static void the_config_names_the_format(void **state)
{
    (void)state;
    static const struct {
        const char *quantization;
        int64_t n_extras;
        nb_kv_format format;
        bool has;
    } cases[] = {
        {NULL, 0, NB_KV_F16, false},
        {"static", 4, NB_KV_FP8, true},
        {"dynamic", 0, NB_KV_FP8, false},
        {"{\"quant_method\":\"fp8\",\"kv_cache_scheme\":\"static\"}", 4, NB_KV_FP8, true},
        {"{\"quant_method\":\"fp8\"}", 4, NB_KV_F16, true}, /* older than the key */
        {"{\"quant_method\":\"fp8\"}", 0, NB_KV_F16, false},
        {"{\"quant_method\":\"fp8\",\"kv_cache_scheme\":\"dynamic\"}", 0, NB_KV_FP8, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_err err;
        nb_model m;
        nb_store *store;
        const char *q = cases[i].quantization;
        if (i == 1)
            q = with_scheme(STATIC);
        else if (i == 2)
            q = with_scheme("{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"token\","
                            "\"dynamic\":true}");
        write_m(q, by_head, cases[i].n_extras);
        must(open_m(&m, &store, &err), &err);
        assert_int_equal(nb_config_kv_format(&m.config), cases[i].format);
        assert_int_equal(m.config.k_scales != NULL, cases[i].has);
        nb_model_close(&m);
        nb_store_close(store);
    }
}

/* ---- what is refused ---- */

static void hostile_schemes_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *scheme;
        nb_status status;
        const char *reason;
    } cases[] = {
        {"7", NB_DATA, "kv_cache_scheme: is an integer, and has to be an object"},
        {"\"static\"", NB_DATA, "is a string, and has to be an object"},
        {"[]", NB_DATA, "is an array"},
        {"{}", NB_UNSUPPORTED, "type 'int' with 8 bits is not supported"},
        {"{\"type\":\"int\",\"num_bits\":8}", NB_UNSUPPORTED, "type 'int' with 8 bits"},
        {"{\"type\":\"float\",\"num_bits\":4}", NB_UNSUPPORTED, "type 'float' with 4 bits"},
        {"{\"type\":\"float\",\"num_bits\":-8}", NB_DATA, "num_bits"},
        {"{\"type\":\"float\",\"num_bits\":\"8\"}", NB_DATA, "num_bits"},
        {"{\"type\":8}", NB_DATA, "type"},
        {"{\"type\":\"float\",\"dynamic\":\"local\"}", NB_DATA, "dynamic"},
        {"{\"type\":\"float\",\"dynamic\":1}", NB_DATA, "dynamic"},
        {"{\"type\":\"float\",\"symmetric\":false}", NB_UNSUPPORTED, "asymmetric"},
        {"{\"type\":\"float\",\"strategy\":\"channel\"}", NB_UNSUPPORTED, "strategy 'channel'"},
        {"{\"type\":\"float\",\"strategy\":\"token\"}", NB_UNSUPPORTED, "strategy 'token'"},
        {"{\"type\":\"float\",\"strategy\":\"group\",\"dynamic\":true}", NB_UNSUPPORTED, "'group'"},
        /* scales that nobody will use */
        {"{\"type\":\"float\",\"dynamic\":true}", NB_UNSUPPORTED,
         "self_attn.k_scale' belongs to no"},
        {"null", NB_UNSUPPORTED, "format 'dense' is not supported"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_m(with_scheme(cases[i].scheme), by_head, 4);
        refused(cases[i].status, cases[i].reason);
    }
    write_m("{\"quant_method\":\"fp8\",\"kv_cache_scheme\":\"sometimes\"}", by_head, 4);
    refused(NB_UNSUPPORTED, "kv_cache_scheme: 'sometimes' is not supported");
    write_m(NULL, by_head, 4);
    refused(NB_UNSUPPORTED, "self_attn.k_scale' belongs to no quantized weight");
}

static void hostile_scales_are_refused(void **state)
{
    (void)state;
    const struct {
        extra bad; /* in place of layer 1's v_scale; no name: nothing is */
        nb_status status;
        const char *reason;
    } cases[] = {
        {{NULL, {0}, 0, {0}}, NB_DATA, "tensor 'model.layers.1.self_attn.v_scale' is missing"},
        {{LAYER "1.self_attn.v_scale", ONE(NAN)}, NB_DATA, "v_scale': nan is no scale"},
        {{LAYER "1.self_attn.v_scale", ONE(INFINITY)}, NB_DATA, "v_scale': inf is no scale"},
        {{LAYER "1.self_attn.v_scale", ONE(0)}, NB_DATA, "v_scale': 0 is no scale"},
        {{LAYER "1.self_attn.v_scale", ONE(-0.5f)}, NB_DATA, "v_scale': -0.5 is no scale"},
        {{LAYER "1.self_attn.v_scale", ONE(1e30f)}, NB_DATA, "1e+30 is out of the range of F16"},
        {{LAYER "1.self_attn.v_scale", ONE(65520)}, NB_DATA, "65520 is out of the range of F16"},
        {{LAYER "1.self_attn.v_scale", ONE(0x1p-25f)}, NB_DATA, "out of the range of F16"},
        {{LAYER "1.self_attn.v_scale", TWO(1, NAN)}, NB_DATA, "nan is no scale"},
        {{LAYER "1.self_attn.v_scale", {1, 1}, 1, {2}}, NB_DATA, "wanted one scale, or"},
        {{LAYER "1.self_attn.v_scale", {1, 1}, 2, {2, 1}}, NB_DATA, "found [2, 1]"},
        {{LAYER "1.self_attn.v_scale", {1, 1}, 3, {1, 2, 1}}, NB_DATA, "found [1, 2, 1]"},
        {{LAYER "1.self_attn.v_scale", {1, 1, 1}, 3, {3, 1, 1}},
         NB_DATA,
         "has 3 scales, and the config has 2 KV heads"},
        {{LAYER "2.self_attn.v_scale", ONE(1)}, NB_DATA, "the config has 2 layers"},
        {{LAYER "01.self_attn.v_scale", ONE(1)}, NB_DATA, "1.self_attn.v_scale' is missing"},
        {{LAYER "1.self_attn.kv_scale", ONE(1)}, NB_DATA, "are one scale, twice"},
        {{LAYER "1.self_attn.k_proj.k_scale", ONE(1)}, NB_DATA, "are one scale, twice"},
        {{LAYER "1.self_attn.q_scale", ONE(1)}, NB_UNSUPPORTED, "q_scale' belongs to no"},
        {{LAYER "1.mlp.v_scale", ONE(1)}, NB_UNSUPPORTED, "v_scale' belongs to no"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        extra all[4];
        memcpy(all, by_head, sizeof all);
        all[3] = cases[i].bad;
        write_m(with_scheme(STATIC), all, cases[i].bad.name != NULL ? 4 : 3);
        refused(cases[i].status, cases[i].reason);
    }
    write_m(with_scheme(STATIC), NULL, 0);
    refused(NB_DATA, "tensor 'model.layers.0.self_attn.k_scale' is missing");
}

/* ---- what the cache does with them ---- */

typedef struct {
    nb_store *store;
    nb_model model;
    nb_kernels kernels;
    nb_work work;
    nb_kv_pool kv;
} fixture;

static void open_cache(fixture *f, unsigned isa)
{
    nb_err err;
    must(open_m(&f->model, &f->store, &err), &err);
    nb_kernels_init(&f->kernels, isa);
    must(nb_work_init(&f->work, &f->model, &f->kernels, pool, 64, &err), &err);
    must(nb_kv_pool_init(&f->kv, &f->model.config, NB_KV_FP8, 4, &err), &err);
}

static void close_cache(fixture *f)
{
    nb_kv_pool_free(&f->kv);
    nb_work_free(&f->work);
    nb_model_close(&f->model);
    nb_store_close(f->store);
}

enum { N_TOKENS = 40 };

/* The hash of all logits. The pages are those of `seq` then. */
static uint64_t run_cache(fixture *f, nb_kv_seq *seq, int64_t step)
{
    nb_err err;
    const int64_t d = f->model.config.d_model, vocab = f->model.config.vocab_size;
    float *hidden = calloc((size_t)(N_TOKENS * d), sizeof *hidden);
    float *logits = calloc((size_t)(N_TOKENS * vocab), sizeof *logits);
    int32_t tokens[N_TOKENS];
    uint64_t hash = 0;
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = 3 + i * 37 % 200;
    must(nb_kv_seq_init(seq, &f->kv, 64, &err), &err);
    for (int64_t i = 0; i < N_TOKENS; i += step) {
        const int64_t n = N_TOKENS - i < step ? N_TOKENS - i : step;
        const nb_step_input in = {seq, tokens + i, n, n};
        must(nb_forward(&f->work, &in, 1, hidden, &err), &err);
        nb_logits(&f->work, hidden, n, logits);
        for (int64_t t = 0; t < n; t++)
            hash ^= nb_logits_hash(logits + t * vocab, vocab, (uint64_t)(i + t));
    }
    free(hidden);
    free(logits);
    return hash;
}

/* Every cell of every layer and head has the scale that the folder has for it. */
static void the_cache_has_the_folders_scales(void **state)
{
    (void)state;
    static const unsigned isas[] = {0, NB_ISA_AVX2, NB_ISA_ALL};
    uint64_t first = 0;
    write_m(with_scheme(STATIC), by_head, 4);
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        fixture f;
        nb_kv_seq seq;
        open_cache(&f, isas[i]);
        const uint64_t hash = run_cache(&f, &seq, i == 1 ? 7 : N_TOKENS);
        first = i == 0 ? hash : first;
        assert_true(hash == first);
        for (int64_t layer = 0; layer < N_LAYERS; layer++) {
            const nb_kv_view view = nb_kv_seq_view(&seq, layer);
            const size_t at = nb_kv_scales_at(NB_KV_FP8, view.head_dim);
            for (int p = 0; p < N_TOKENS * N_KV; p++) {
                const int h = p % N_KV, pos = p / N_KV;
                const uint8_t *page =
                    view.arena + (size_t)view.table[pos / NB_KV_PAGE] * view.page_bytes;
                uint16_t k, v;
                memcpy(&k,
                       page + view.k_offset + (size_t)h * view.head_bytes + at +
                           2 * (size_t)(pos % NB_KV_PAGE),
                       2);
                memcpy(&v,
                       page + view.v_offset + (size_t)h * view.head_bytes + at +
                           2 * (size_t)(pos % NB_KV_PAGE),
                       2);
                assert_int_equal(k, nb_f16_from_f32(keys_by_head[layer * N_KV + h]));
                assert_int_equal(v, nb_f16_from_f32(values_by_head[layer * N_KV + h]));
            }
        }
        nb_kv_seq_free(&seq);
        close_cache(&f);
    }
}

/* Forgotten, they are as if the folder had none; and they matter, and only to an FP8 cache. */
static void forgotten_scales_are_none(void **state)
{
    (void)state;
    uint64_t hash[4];
    fixture f;
    nb_kv_seq seq;
    for (int i = 0; i < 4; i++) {
        if (i == 3)
            write_m(NULL, NULL, 0);
        else
            write_m(with_scheme(STATIC), by_head, 4);
        open_cache(&f, NB_ISA_ALL);
        if (i == 1)
            nb_model_forget_kv_scales(&f.model);
        if (i == 2) { /* which has scales of its own */
            nb_err err;
            nb_kv_pool_free(&f.kv);
            must(nb_kv_pool_init(&f.kv, &f.model.config, NB_KV_INT8, 4, &err), &err);
        }
        hash[i] = run_cache(&f, &seq, N_TOKENS);
        const nb_kv_view view = nb_kv_seq_view(&seq, 1);
        assert_int_equal(view.k_scales != NULL, i == 0);
        assert_int_equal(view.v_scales != NULL, i == 0);
        nb_kv_seq_free(&seq);
        close_cache(&f);
    }
    assert_true(hash[0] != hash[1]);
    assert_true(hash[1] == hash[3]);
    assert_true(hash[2] != hash[0]);
}

static nb_status open_and_close(nb_err *err)
{
    nb_model m = {0};
    nb_store *store;
    const nb_status s = open_m(&m, &store, err);
    nb_model_close(&m);
    nb_store_close(store);
    return s;
}

static void memory_runs_out(void **state)
{
    (void)state;
    write_m(with_scheme(STATIC), by_head, 4);
    assert_true(torture_memory(open_and_close) > 10);
}

static int setup(void **state)
{
    if (set_up(state) != 0)
        return -1;
    tiny_model_write("tiny", &(tiny_model){.seed = 3});
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_spelling_is_the_same),
        cmocka_unit_test(scales_of_heads_are_rounded_to_f16),
        cmocka_unit_test(the_config_names_the_format),
        cmocka_unit_test(hostile_schemes_are_refused),
        cmocka_unit_test(hostile_scales_are_refused),
        cmocka_unit_test(the_cache_has_the_folders_scales),
        cmocka_unit_test(forgotten_scales_are_none),
        cmocka_unit_test(memory_runs_out),
    };
    return cmocka_run_group_tests(tests, setup, tear_down);
}
