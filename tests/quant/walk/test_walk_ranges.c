/* Static scales of activations: each is what the observer says of the inputs that the finished
 * model itself gives the layer, and the finished model is the one that the walk saw. */
#include "walking.h"

#include "model/forward.h"

#include <math.h>

#define N_SEQS   3
#define MAX_DIM  64
#define N_LAYERS 2

static const walk_world_how small = {
    .n_seqs = N_SEQS,
    .length = 20,
    .model = {.n_layers = N_LAYERS, .d_model = 32, .n_heads = 2, .n_kv_heads = 1, .d_ff = 64}};

/* ---- the finished model's own inputs ---- */

/* What every linear reads, token by token in the order of the sequences. */
typedef struct {
    float *rows[N_LAYERS][NB_N_POINTS]; /* [n_tokens][MAX_DIM] */
    int64_t n_cols[NB_N_POINTS];
    int64_t first; /* row of the sequence at hand */
} inputs;

static void see(void *context, int64_t layer, nb_op op, int64_t input, int64_t position,
                int64_t column, const float *values, int64_t n)
{
    (void)input;
    inputs *in = context;
    const int point = op == NB_OP_ATTN_NORM   ? NB_AT_ATTN
                      : op == NB_OP_ATTENTION ? NB_AT_O
                      : op == NB_OP_FFN_NORM  ? NB_AT_FFN
                      : op == NB_OP_SWIGLU    ? NB_AT_DOWN
                                              : -1;
    if (point >= 0)
        memcpy(in->rows[layer][point] + (in->first + position) * MAX_DIM + column, values,
               (size_t)n * sizeof *values);
}

static void gather(inputs *in, const walk_world *w, nb_store *store, nb_pool *pool)
{
    nb_err err = {0};
    nb_model m;
    nb_work work;
    nb_kv_pool kv;
    nb_kernels kernels;
    nb_kernels_init(&kernels, NB_ISA_ALL);
    assert_int_equal(
        nb_model_open(&m, store, &(nb_model_options){.compute = NB_COMPUTE_AUTO}, pool, &err),
        NB_OK);
    in->n_cols[NB_AT_ATTN] = in->n_cols[NB_AT_FFN] = m.config.d_model;
    in->n_cols[NB_AT_O] = m.config.n_heads * m.config.head_dim;
    in->n_cols[NB_AT_DOWN] = m.config.d_ff;
    const int64_t len = w->seqs[0].n;
    assert_int_equal(nb_work_init(&work, &m, &kernels, pool, len, &err), NB_OK);
    assert_int_equal(nb_kv_pool_init(&kv, &m.config, NB_KV_F32, nb_kv_pages_for(len), &err), NB_OK);
    float *out = malloc((size_t)(len * m.config.d_model) * sizeof *out);
    assert_non_null(out);
    for (int l = 0; l < N_LAYERS; l++)
        for (int p = 0; p < NB_N_POINTS; p++) {
            in->rows[l][p] = calloc((size_t)(N_SEQS * len * MAX_DIM), sizeof(float));
            assert_non_null(in->rows[l][p]);
        }
    work.watcher = (nb_watcher){see, in};
    for (int64_t q = 0; q < w->n_seqs; q++) {
        const nb_calib_seq *s = &w->seqs[q];
        nb_kv_seq seq;
        assert_int_equal(nb_kv_seq_init(&seq, &kv, len, &err), NB_OK);
        const nb_step_input step = {.seq = &seq, .tokens = s->ids, .n_tokens = s->n, .n_out = s->n};
        assert_int_equal(nb_forward(&work, &step, 1, out, &err), NB_OK);
        nb_kv_seq_free(&seq);
        in->first += s->n;
    }
    free(out);
    nb_kv_pool_free(&kv);
    nb_work_free(&work);
    nb_model_close(&m);
}

/* ---- what the scales should be ---- */

typedef struct {
    const walk_world *world;
    nb_observing observing;
    nb_range_codes codes;
    bool by_hand; /* minmax and average of int8 codes, without the observer */
    int64_t n_checked;
} checking;

static double largest(const inputs *in, int layer, int point, int64_t first, int64_t n)
{
    double most = 0;
    for (int64_t t = first; t < first + n; t++)
        for (int64_t c = 0; c < in->n_cols[point]; c++)
            most = fmax(most, fabs((double)in->rows[layer][point][t * MAX_DIM + c]));
    return most;
}

static float scale_by_hand(const checking *c, const inputs *in, int layer, int point)
{
    if (c->observing.kind == NB_OBSERVE_MINMAX)
        return (float)largest(in, layer, point, 0, in->first) / 127.0f;
    /* Averages of least and greatest value, each sequence a hundredth. */
    double least = 0, greatest = 0;
    int64_t first = 0;
    for (int64_t q = 0; q < c->world->n_seqs; q++) {
        double lo = INFINITY, hi = -INFINITY;
        for (int64_t t = first; t < first + c->world->seqs[q].n; t++)
            for (int64_t k = 0; k < in->n_cols[point]; k++) {
                const double v = (double)in->rows[layer][point][t * MAX_DIM + k];
                lo = fmin(lo, v);
                hi = fmax(hi, v);
            }
        first += c->world->seqs[q].n;
        least += (q == 0 ? 1 : 0.01) * (lo - least);
        greatest += (q == 0 ? 1 : 0.01) * (hi - greatest);
    }
    return fmaxf(-(float)least, (float)greatest) / 127.0f;
}

static float scale_by_observer(const checking *c, const inputs *in, int layer, int point)
{
    static nb_observer o;
    nb_err err;
    float scale;
    int zero;
    memset(&o, 0, sizeof o);
    for (int64_t t = 0; t < in->first; t++)
        assert_int_equal(
            nb_observer_add(&o, in->rows[layer][point] + t * MAX_DIM, in->n_cols[point], &err),
            NB_OK);
    nb_range_scale(nb_observer_range(&o, c->observing.kind, c->codes, c->observing.percentile),
                   c->codes, &scale, &zero);
    return scale;
}

static void check(void *context, nb_store *store, const nb_plan *plan, const nb_workdir *dir,
                  const nb_walk_result *result)
{
    checking *c = context;
    nb_err err = {0};
    nb_pool *pool;
    nb_store *written;
    inputs in = {0};
    assert_int_equal(nb_pool_open(&pool, 2, &err), NB_OK);
    write_model(store, plan, dir, result, pool, scratch_path("written"));
    assert_int_equal(nb_store_open(&written, scratch_path("written"), &err), NB_OK);
    gather(&in, c->world, written, pool);
    for (int l = 0; l < N_LAYERS; l++) {
        for (int p = 0; p < NB_N_POINTS; p++) {
            const float want =
                c->by_hand ? scale_by_hand(c, &in, l, p) : scale_by_observer(c, &in, l, p);
            int n;
            const int first = (int)nb_point_linears((nb_point)p, &n);
            assert_true(want > 0);
            for (int j = first; j < first + n; j++) {
                char name[96];
                snprintf(name, sizeof name, "model.layers.%d.%s.weight", l,
                         nb_linear_name((nb_linear_id)j));
                const nb_weight *weight = nb_store_find(written, name);
                assert_true(weight->act.is_static);
                if (weight->act.scale != want)
                    fail_msg("%s: %a is not %a", name, (double)weight->act.scale, (double)want);
                c->n_checked++;
            }
            free(in.rows[l][p]);
        }
    }
    nb_store_close(written);
    nb_pool_close(pool);
}

/* In the model as it was written, at every point of every block: so what the walk observed is what
 * the layer will be given, with everything before it quantized, transforms and all. */
static void scales_are_those_of_the_finished_model(void **state)
{
    (void)state;
    static const struct {
        walk_how how;
        nb_range_codes codes;
        bool by_hand;
    } cases[] = {
        {{.method = "rtn", .scheme = "W8A8:static"}, NB_RANGE_INT8, true},
        {{.method = "rtn", .scheme = "W8A8:static", .observing = {NB_OBSERVE_AVERAGE, 0}},
         NB_RANGE_INT8,
         true},
        {{.method = "gptq", .scheme = "W4A8:g32,static", .transform = "smoothquant"},
         NB_RANGE_INT8,
         true},
        {{.method = "rtn", .scheme = "W8A8:static", .observing = {NB_OBSERVE_PERCENTILE, 99}},
         NB_RANGE_INT8,
         false},
        {{.method = "rtn", .scheme = "W8A8:static", .observing = {NB_OBSERVE_ENTROPY, 0}},
         NB_RANGE_INT8,
         false},
        {{.method = "rtn", .scheme = "FP8:static", .observing = {NB_OBSERVE_MSE, 0}},
         NB_RANGE_E4M3,
         false},
        {{.method = "rtn", .scheme = "FP8:tensor,static", .transform = "smoothquant"},
         NB_RANGE_E4M3,
         false},
    };
    walk_world w;
    walk_world_open(&w, "model", &small);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        checking c = {&w, cases[i].how.observing, cases[i].codes, cases[i].by_hand, 0};
        walk_outcome o;
        walk_and_visit(&o, &w, &cases[i].how, check, &c);
        if (o.status != NB_OK)
            fail_msg("case %zu: %s", i, o.err.text);
        assert_int_equal(c.n_checked, N_LAYERS * NB_N_LINEARS);
        json_decref(o.layers);
    }
    walk_world_close(&w);
}

/* ---- the observer on the pool ---- */

static void threads_see_what_one_sees(void **state)
{
    (void)state;
    enum { N = 40000 };
    nb_err err;
    float *x = malloc(N * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < N; i++)
        x[i] = (float)((nb_rng_uniform(3, 1, (uint64_t)i) - 0.4) * (i % 1000 == 7 ? 50 : 1));
    static nb_observer alone;
    memset(&alone, 0, sizeof alone);
    assert_int_equal(nb_observer_add(&alone, x, N, &err), NB_OK);
    nb_observer_end_batch(&alone);
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        nb_pool *pool;
        nb_input_range *r;
        assert_int_equal(nb_pool_open(&pool, n_threads, &err), NB_OK);
        assert_int_equal(nb_input_range_new(&r, &err), NB_OK);
        const int64_t cut = 777 * n_threads;
        assert_int_equal(nb_input_range_add(r, pool, x, cut, &err), NB_OK);
        assert_int_equal(nb_input_range_add(r, pool, x + cut, N - cut, &err), NB_OK);
        nb_observer_end_batch(&r->all);
        assert_memory_equal(r->all.positive, alone.positive, sizeof alone.positive);
        assert_memory_equal(r->all.negative, alone.negative, sizeof alone.negative);
        for (int kind = NB_OBSERVE_MINMAX; kind <= NB_OBSERVE_MSE; kind++) {
            const nb_observing how = {(nb_observer_kind)kind, 99.5};
            float scale;
            int zero;
            nb_range_scale(nb_observer_range(&alone, how.kind, NB_RANGE_INT8, 99.5), NB_RANGE_INT8,
                           &scale, &zero);
            assert_true(nb_input_range_scale(r, &how, NB_RANGE_INT8) == scale);
        }
        const float last = x[N - 1];
        x[N - 1] = NAN;
        assert_int_equal(nb_input_range_add(r, pool, x, N, &err), NB_DATA);
        x[N - 1] = last;
        nb_input_range_free(r);
        nb_pool_close(pool);
    }
    free(x);
    nb_input_range_free(NULL);
}

/* Whatever was seen, the scale is one that readers take. */
static void scales_stay_within_what_readers_take(void **state)
{
    (void)state;
    static const float values[] = {0, 0x1p-149f, 0x1p-100f, 0x1.8p-95f, 1, 0x1p120f, 3e38f};
    nb_err err;
    nb_pool *pool;
    assert_int_equal(nb_pool_open(&pool, 2, &err), NB_OK);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        nb_input_range *r;
        assert_int_equal(nb_input_range_new(&r, &err), NB_OK);
        assert_int_equal(nb_input_range_add(r, pool, &values[i], 1, &err), NB_OK);
        nb_observer_end_batch(&r->all);
        for (int kind = NB_OBSERVE_MINMAX; kind <= NB_OBSERVE_MSE; kind++) {
            for (int f = 0; f < 2; f++) {
                const nb_observing how = {.kind = (nb_observer_kind)kind};
                const float s = nb_input_range_scale(r, &how, f ? NB_RANGE_E4M3 : NB_RANGE_INT8);
                assert_true(s >= 0x1p-100f && s <= 0x1p100f);
            }
        }
        nb_input_range_free(r);
    }
    nb_pool_close(pool);
}

static void names_of_observers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        nb_observer_kind kind;
        double percentile;
    } good[] = {
        {"minmax", NB_OBSERVE_MINMAX, 0},
        {"average", NB_OBSERVE_AVERAGE, 0},
        {"percentile", NB_OBSERVE_PERCENTILE, 0},
        {"percentile=99.9", NB_OBSERVE_PERCENTILE, 99.9},
        {"percentile=100", NB_OBSERVE_PERCENTILE, 100},
        {"entropy", NB_OBSERVE_ENTROPY, 0},
        {"mse", NB_OBSERVE_MSE, 0},
    };
    static const char *const bad[] = {"",
                                      "MinMax",
                                      "kl",
                                      "minmax=1",
                                      "percentile=",
                                      "percentile=0",
                                      "percentile=100.1",
                                      "percentile=-5",
                                      "percentile=nan",
                                      "percentile=inf",
                                      "percentile=0x10",
                                      "percentile=1e1",
                                      "percentile=9 9",
                                      "percentile=9.9.9",
                                      "percentile=99.99999999999999999999999999"};
    nb_observing o;
    nb_err err = {0};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(nb_observing_parse(&o, good[i].text, &err), NB_OK);
        assert_int_equal(o.kind, good[i].kind);
        assert_true(o.percentile == good[i].percentile);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (nb_observing_parse(&o, bad[i], &err) != NB_USAGE)
            fail_msg("'%s' was taken", bad[i]);
        assert_non_null(strstr(err.text, "observer"));
    }
}

static void static_scales_need_the_quantized_flow(void **state)
{
    (void)state;
    walk_world w;
    walk_outcome o;
    walk_world_open(&w, "flow", &small);
    walk(&o, &w, &(walk_how){.scheme = "W8A8:static", .flow = NB_FLOW_ORIGINAL});
    assert_int_equal(o.status, NB_USAGE);
    assert_non_null(strstr(o.err.text, "they need the quantized flow"));
    walk_world_close(&w);
}

/* Ranges that have no memory leave nothing, and the next walk is as good as the first. */
static void ranges_survive_allocation_failures(void **state)
{
    (void)state;
    walk_world w;
    walk_world_open(&w, "tight", &small);
    const walk_how how = {.scheme = "W8A8:static",
                          .method = "rtn",
                          .dir = "tight.work",
                          .flow = NB_FLOW_QUANTIZED,
                          .observing = {NB_OBSERVE_MSE, 0}};
    walk_without_memory(&w, &how);
    walk_world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scales_are_those_of_the_finished_model),
        cmocka_unit_test(threads_see_what_one_sees),
        cmocka_unit_test(scales_stay_within_what_readers_take),
        cmocka_unit_test(names_of_observers),
        cmocka_unit_test(static_scales_need_the_quantized_flow),
        cmocka_unit_test(ranges_survive_allocation_failures),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
