/* The guide against differences of a loss in binary64 written here, label by label; against itself
 * in every way it may be made; and what sums over tokens do with it. */
#include "quant/pass/guide.h"

#include "base/rng.h"
#include "model/backward.h"
#include "quant/pass/streams.h"
#include "support/check.h"
#include "support/must.h"
#include "support/scratch.h"
#include "support/tiny_model.h"
#include "true_model.h"

#define LABELS 0x6775696465

/* ---- a guide and all that it needs ---- */

enum { MAX_SEQS = 1100 };

typedef struct {
    nb_store *store;
    nb_pool *pool;
    nb_kernels kernels;
    nb_workdir dir;
    nb_algebra la;
    nb_calib_seq seqs[MAX_SEQS];
    int32_t *ids;
    int64_t n_tokens;
    nb_guide_job job;
    nb_guide guide;
    int64_t n_done; /* that were kept, and their hash */
    uint64_t hash, moments_hash;
    int64_t n_calls, stop_at, n_kept;
} world;

static bool watch(void *context, double flops)
{
    world *w = context;
    assert_true(flops > 0);
    return ++w->n_calls != w->stop_at;
}

static nb_status keep(void *context, nb_err *err)
{
    (void)err;
    world *w = context;
    w->n_done = w->guide.n_done;
    w->hash = w->guide.hash;
    w->moments_hash = w->guide.moments_hash;
    w->n_kept++;
    return NB_OK;
}

/* A model of 16 to 24 channels, so that a loss in doubles takes a moment. */
static const tiny_model small = {.d_model = 16, .n_heads = 2, .n_kv_heads = 1, .d_ff = 24};

static void world_open(world *w, const tiny_model *model, const int64_t *lengths, int64_t n_seqs,
                       int n_threads, unsigned isa)
{
    nb_err err = {0};
    *w = (world){.guide = NB_GUIDE_NONE};
    static int n_models;
    char name[24];
    assert_true(n_seqs <= MAX_SEQS);
    snprintf(name, sizeof name, "model-%d", n_models++);
    must(nb_store_open(&w->store, tiny_model_write(name, model), &err), &err);
    must(nb_pool_open(&w->pool, n_threads, &err), &err);
    must(nb_workdir_open(&w->dir, scratch_path("work"), &err), &err);
    nb_kernels_init(&w->kernels, isa);
    w->la = (nb_algebra){.kernels = &w->kernels, .pool = w->pool};
    for (int64_t i = 0; i < n_seqs; i++)
        w->n_tokens += lengths[i];
    w->ids = malloc((size_t)w->n_tokens * sizeof *w->ids);
    assert_non_null(w->ids);
    for (int64_t i = 0; i < w->n_tokens; i++)
        w->ids[i] = (int32_t)check_pick(5, (uint64_t)i, TINY_VOCAB);
    int64_t at = 0;
    for (int64_t i = 0; i < n_seqs; i++) {
        w->seqs[i] = (nb_calib_seq){w->ids + at, lengths[i], nb_calib_is_held(i, n_seqs)};
        at += lengths[i];
    }
    w->job = (nb_guide_job){.store = w->store,
                            .pool = w->pool,
                            .kernels = &w->kernels,
                            .seqs = w->seqs,
                            .n_seqs = n_seqs,
                            .dir = &w->dir,
                            .seed = 9,
                            .progress = watch,
                            .keep = keep,
                            .context = w};
}

static void world_close(world *w)
{
    nb_guide_close(&w->guide);
    nb_algebra_free(&w->la);
    nb_workdir_close(&w->dir, true);
    nb_pool_close(w->pool);
    nb_store_close(w->store);
    free(w->ids);
}

static void world_guide(world *w)
{
    nb_err err = {0};
    must(nb_guide_make(&w->guide, &w->job, &err), &err);
}

/* All of the file, [n_layers][n_tokens][NB_N_POINTS]. */
static float *read_file(const world *w, int64_t *n)
{
    nb_err err = {0};
    *n = w->guide.n_layers * w->n_tokens * NB_N_POINTS;
    float *all = malloc((size_t)*n * sizeof *all);
    assert_non_null(all);
    must(nb_spill_read(&w->guide.file, 0, w->guide.n_layers * w->n_tokens, all, &err), &err);
    return all;
}

/* ---- against differences ---- */

/* The labels that the rule draws for a sequence whose first token is `first` of the set. */
static void true_labels(const true_model *m, const int32_t *ids, int64_t n, int64_t first,
                        int64_t *labels)
{
    const int64_t v = m->config.vocab_size;
    double *p = malloc((size_t)(n * v) * sizeof *p);
    true_logits(m, ids, n, NULL, p);
    for (int64_t t = 0; t < n; t++) {
        const double u = nb_rng_uniform(9, LABELS, (uint64_t)(first + t));
        double sum = 0;
        true_softmax(p + t * v, v);
        for (labels[t] = 0; labels[t] < v - 1; labels[t]++) {
            sum += p[t * v + labels[t]];
            assert_true(fabs(sum - u) > 1e-6); /* too near to tell: choose another seed */
            if (sum > u)
                break;
        }
    }
    free(p);
}

static double true_loss(const true_model *m, const int32_t *ids, int64_t n, const int64_t *labels,
                        const true_nudge *nudge, double *room)
{
    const int64_t v = m->config.vocab_size;
    double loss = 0;
    true_logits(m, ids, n, nudge, room);
    for (int64_t t = 0; t < n; t++) {
        const double logit = room[t * v + labels[t]];
        loss += true_softmax(room + t * v, v) - logit;
    }
    return loss;
}

static int64_t rows_of(const nb_config *c, nb_linear_id id)
{
    return nb_linear_n_rows(c, (nb_linear_id)id);
}

/* By central differences. */
static double true_gradient(const true_model *m, const int32_t *ids, int64_t n,
                            const int64_t *labels, true_nudge at, double *room)
{
    const double h = 1e-4;
    at.by = h;
    const double high = true_loss(m, ids, n, labels, &at, room);
    at.by = -h;
    return (high - true_loss(m, ids, n, labels, &at, room)) / (2 * h);
}

/* The mean squared gradient at a point. */
static double true_squares(const true_model *m, const int32_t *ids, int64_t n,
                           const int64_t *labels, int64_t layer, nb_point point, int64_t token,
                           double *room)
{
    int n_linears;
    const nb_linear_id first = nb_point_linears(point, &n_linears);
    double sum = 0;
    int64_t n_outputs = 0;
    for (int j = 0; j < n_linears; j++) {
        true_nudge at = {.layer = layer, .token = token, .linear = (nb_linear_id)((int)first + j)};
        for (at.output = 0; at.output < rows_of(&m->config, at.linear); at.output++) {
            const double g = true_gradient(m, ids, n, labels, at, room);
            sum += g * g;
            n_outputs++;
        }
    }
    return sum / (double)n_outputs;
}

/* Every point of every block, for the first, some middle and the last token of two sequences, with
 * one head and with two. Differences are good to 1e-7 of a gradient, and gradients in binary32 to
 * the sums of a few hundred terms that they end. */
static void squares_are_those_of_differences(void **state)
{
    (void)state;
    static const int64_t lengths[] = {4, 7, 1};
    for (int tied = 0; tied < 2; tied++) {
        check_run run = {.name = "squares"};
        tiny_model model = small;
        world w;
        true_model m;
        model.tied = tied == 1;
        world_open(&w, &model, lengths, 3, 2, NB_ISA_ALL);
        world_guide(&w);
        int64_t n, token = 0;
        float *got = read_file(&w, &n);
        true_model_open(&m, w.store);
        double *room = malloc(sizeof *room * TRUE_MAX_TOKENS * (size_t)m.config.vocab_size);
        for (int s = 0; s < 3; token += lengths[s], s++) {
            int64_t labels[TRUE_MAX_TOKENS];
            true_labels(&m, w.seqs[s].ids, lengths[s], token, labels);
            for (int64_t i = 0; i < m.config.n_layers * NB_N_POINTS * 3; i++) {
                const int64_t layer = i / 3 / NB_N_POINTS, point = i / 3 % NB_N_POINTS;
                const int64_t t = i % 3 * (lengths[s] - 1) / 2;
                const double want = true_squares(&m, w.seqs[s].ids, lengths[s], labels, layer,
                                                 (nb_point)point, t, room);
                char what[80];
                snprintf(what, sizeof what, "sequence %d, token %d, layer %d, %s", s, (int)t,
                         (int)layer, nb_point_name((nb_point)point));
                check_near(&run, what,
                           (double)got[(layer * w.n_tokens + token + t) * NB_N_POINTS + point],
                           want, want * 2e-5 + 1e-9);
            }
        }
        check_finish(&run);
        assert_int_equal(run.n_compared, 3 * 3 * 2 * NB_N_POINTS);
        free(room);
        free(got);
        true_model_close(&m);
        world_close(&w);
    }
}

/* The gradients themselves, one by one: of all outputs of all linears of a block, for three tokens.
 * What comes in at the block's end is taken from differences, too. */
static void gradients_are_differences_one_by_one(void **state)
{
    (void)state;
    enum { N = 7 };
    static const int64_t lengths[] = {N}, labels[N] = {5, 77, 5, 200, 31, 264, 8};
    check_run run = {.name = "gradients"};
    nb_err err = {0};
    tiny_model model = small;
    world w;
    true_model m;
    nb_model frame;
    nb_block_train t;
    model.n_layers = 1;
    world_open(&w, &model, lengths, 1, 2, NB_ISA_ALL);
    true_model_open(&m, w.store);
    must(nb_model_open_frame(&frame, w.store, 1, N, &err), &err);
    must(nb_model_load_vectors(&frame, w.store, 0, 0, &err), &err);
    const nb_config *c = &frame.config;
    must(nb_block_train_init(&t, c, &frame.rope, &w.kernels, w.pool, 1, N, false, &err), &err);
    nb_block_weights weights = {.attn_norm = frame.layers[0].attn_norm,
                                .ffn_norm = frame.layers[0].ffn_norm};
    float *floats[NB_N_LINEARS], *x = check_floats(N * c->d_model), squares[N][NB_BLOCK_POINTS];
    for (int j = 0; j < NB_N_LINEARS; j++) {
        const int64_t n = rows_of(c, (nb_linear_id)j) * nb_linear_n_cols(c, (nb_linear_id)j);
        weights.linear[j] = floats[j] = check_floats(n);
        for (int64_t i = 0; i < n; i++)
            floats[j][i] = (float)m.layer[0].linear[j][i];
    }
    for (int64_t i = 0; i < N * c->d_model; i++)
        x[i] = (float)m.embed[w.ids[i / c->d_model] * c->d_model + i % c->d_model];
    double *room = malloc(sizeof *room * N * (size_t)c->vocab_size);
    nb_block_forward(&t, &weights, x, 1, N);
    for (int64_t i = 0; i < N * c->d_model; i++) {
        const true_nudge at = {
            .token = i / c->d_model, .output = i % c->d_model, .linear = NB_LINEAR_DOWN};
        t.y[i] = (float)true_gradient(&m, w.ids, N, labels, at, room);
    }
    const nb_block_grads grads = {.squares = &squares[0][0]};
    nb_block_backward(&t, &weights, x, 1, N, &grads);
    const float *got[NB_LINEAR_DOWN] = {t.att, t.d_k, t.d_v, t.y, t.gate, t.up};
    for (int j = 0; j < NB_LINEAR_DOWN; j++) {
        const int64_t n = rows_of(c, (nb_linear_id)j);
        for (int64_t i = 0; i < 3 * n; i++) {
            const true_nudge at = {.token = i / n * 3, .output = i % n, .linear = (nb_linear_id)j};
            check_near(&run, nb_linear_name((nb_linear_id)j),
                       (double)got[j][at.token * n + at.output],
                       true_gradient(&m, w.ids, N, labels, at, room), 3e-6);
        }
    }
    for (int64_t token = 0; token < N; token += 3)
        for (int p = 0; p < NB_BLOCK_POINTS; p++) {
            const double want = true_squares(&m, w.ids, N, labels, 0, (nb_point)p, token, room);
            check_near(&run, "squares", (double)squares[token][p], want, want * 2e-5 + 1e-9);
        }
    check_finish(&run);
    free(room);
    for (int j = 0; j < NB_N_LINEARS; j++)
        check_free(floats[j]);
    check_free(x);
    nb_block_train_free(&t);
    nb_model_close(&frame);
    true_model_close(&m);
    world_close(&w);
}

/* Labels are drawn, each as often as the model predicts it: over many tokens the mean of s at the
 * last outputs is the one over all labels. Those of the text, or the likeliest, give another. */
static void labels_follow_the_prediction(void **state)
{
    (void)state;
    enum { N = 1000 };
    static int64_t lengths[N];
    tiny_model model = small;
    world w;
    true_model m;
    model.n_layers = 1;
    for (int i = 0; i < N; i++)
        lengths[i] = 1;
    world_open(&w, &model, lengths, N, 1, NB_ISA_ALL);
    for (int i = 0; i < N; i++)
        w.ids[i] = 77;
    world_guide(&w);
    true_model_open(&m, w.store);
    const int64_t v = m.config.vocab_size, d = m.config.d_model;
    double *p = malloc(sizeof *p * (size_t)v), *high = malloc(sizeof *p * (size_t)v);
    double *low = malloc(sizeof *p * (size_t)v), *j = malloc(sizeof *p * (size_t)(v * d));
    true_logits(&m, w.ids, 1, NULL, p);
    true_softmax(p, v);
    for (int64_t o = 0; o < d; o++) {
        true_nudge at = {.output = o, .linear = NB_LINEAR_DOWN, .by = 1e-4};
        true_logits(&m, w.ids, 1, &at, high);
        at.by = -1e-4;
        true_logits(&m, w.ids, 1, &at, low);
        for (int64_t i = 0; i < v; i++)
            j[o * v + i] = (high[i] - low[i]) / 2e-4;
    }
    double mean = 0, square = 0;
    for (int64_t label = 0; label < v; label++) {
        double s = 0;
        for (int64_t o = 0; o < d; o++) {
            double g = -j[o * v + label];
            for (int64_t i = 0; i < v; i++)
                g += p[i] * j[o * v + i];
            s += g * g / (double)d;
        }
        mean += p[label] * s;
        square += p[label] * s * s;
    }
    const double spread = sqrt((square - mean * mean) / N);
    assert_true(spread < mean / 20);
    const double got = nb_guide_mean(&w.guide, 0, NB_AT_DOWN);
    if (!(fabs(got - mean) < 4 * spread))
        fail_msg("a mean of %g, where predictions give %g +- %g", got, mean, spread);
    free(p);
    free(high);
    free(low);
    free(j);
    true_model_close(&m);
    world_close(&w);
}

/* ---- in every way it may be made ---- */

static void bits_depend_on_neither_threads_nor_isa(void **state)
{
    (void)state;
    static const int64_t lengths[] = {130, 1, 300, 17};
    static const struct {
        int n_threads;
        unsigned isa;
    } ways[] = {{1, NB_ISA_SCALAR}, {2, NB_ISA_AVX2}, {3, NB_ISA_ALL}, {1, NB_ISA_ALL}};
    check_run run = {.name = "ways"};
    const tiny_model model = {.n_ctx = 512, .d_model = 48, .d_ff = 80};
    float *want = NULL;
    for (int i = 0; i < 4; i++) {
        world w;
        int64_t n;
        world_open(&w, &model, lengths, 4, ways[i].n_threads, ways[i].isa);
        world_guide(&w);
        float *got = read_file(&w, &n);
        if (i == 0)
            want = got;
        else {
            check_same_f32(&run, "file", got, want, n);
            free(got);
        }
        world_close(&w);
    }
    free(want);
    check_finish(&run);
}

/* Sequences that make two groups: 16 of 256 tokens, and one more. */
static void fill_lengths(int64_t lengths[17])
{
    for (int i = 0; i < 17; i++)
        lengths[i] = 256;
}

static void what_was_kept_is_not_made_again(void **state)
{
    (void)state;
    int64_t lengths[17], n;
    nb_err err = {0};
    world w;
    fill_lengths(lengths);
    world_open(&w, &small, lengths, 17, 2, NB_ISA_ALL);
    w.job.outputs = true;
    memcpy(w.ids + 16 * 256, w.ids, 256 * sizeof *w.ids);
    world_guide(&w);
    assert_int_equal(w.n_kept, 2);
    const int64_t n_calls = w.n_calls;
    const uint64_t hash = w.hash, moments_hash = w.moments_hash;
    float *want = read_file(&w, &n);
    /* The first and the last one are the same text, each with labels of its own. */
    assert_memory_not_equal(want, want + 16 * 256 * NB_N_POINTS, 256 * sizeof *want);
    /* Stopped in the first group, in the second one, and at the very end. */
    const int64_t stops[] = {2, n_calls / 2, n_calls - 3, n_calls};
    for (int i = 0; i < 4; i++) {
        nb_guide_close(&w.guide);
        nb_workdir_clear(&w.dir);
        w.n_done = w.n_calls = w.n_kept = 0;
        w.hash = w.moments_hash = 0;
        w.stop_at = stops[i];
        assert_int_equal(nb_guide_make(&w.guide, &w.job, &err), NB_INTERRUPTED);
        assert_int_equal(w.n_kept, i < 2 ? 0 : 1);
        assert_int_equal(w.n_done, i < 2 ? 0 : 16);
        assert_int_equal(w.guide.n_done, w.n_done);
        assert_true(w.guide.hash == w.hash);
        nb_guide_close(&w.guide);
        w.guide.n_done = w.n_done;
        w.guide.hash = w.hash;
        w.guide.moments_hash = w.moments_hash;
        w.n_calls = w.stop_at = 0;
        world_guide(&w);
        assert_true(w.hash == hash && w.moments_hash == moments_hash);
        assert_true(i < 2 ? w.n_calls == n_calls : w.n_calls < n_calls / 8);
        float *got = read_file(&w, &n);
        assert_memory_equal(got, want, (size_t)n * sizeof *got);
        free(got);
    }
    /* Once more, with all of it there. */
    nb_guide_close(&w.guide);
    w.guide.n_done = w.n_done;
    w.guide.hash = w.hash;
    w.guide.moments_hash = w.moments_hash;
    w.n_calls = 0;
    world_guide(&w);
    assert_int_equal(w.n_calls, 0);
    /* Moments that are not those that were kept. */
    nb_guide_close(&w.guide);
    w.guide.n_done = w.n_done;
    w.guide.hash = w.hash;
    w.guide.moments_hash = ~w.moments_hash;
    world_guide(&w);
    assert_int_equal(w.n_calls, n_calls);
    assert_true(w.moments_hash == moments_hash);
    free(want);
    world_close(&w);
}

/* The trace of G is the sum over tokens of all squares, which the guide has as means over outputs;
 * G is positive semidefinite, and the sums of one token are of rank 1. */
static void moments_of_outputs_add_up(void **state)
{
    (void)state;
    static const int64_t lengths[] = {150, 7, 1};
    static const struct {
        nb_linear_id first;
        int n;
    } points[NB_N_POINTS] = {
        {NB_LINEAR_Q, 3}, {NB_LINEAR_O, 1}, {NB_LINEAR_GATE, 2}, {NB_LINEAR_DOWN, 1}};
    nb_err err = {0};
    nb_config c;
    int64_t n;
    world w;
    for (int64_t n_seqs = 1; n_seqs <= 3; n_seqs += 2) {
        world_open(&w, &small, lengths + (n_seqs == 1 ? 2 : 0), n_seqs, 2, NB_ISA_ALL);
        w.job.outputs = true;
        must(nb_config_read(w.store, &c, &err), &err);
        world_guide(&w);
        float *s = read_file(&w, &n);
        for (int64_t layer = 0; layer < c.n_layers; layer++) {
            for (int p = 0; p < NB_N_POINTS; p++) {
                double want = 0, got = 0, n_rows = 0;
                for (int64_t t = 0; t < w.n_tokens; t++)
                    want += (double)s[(layer * w.n_tokens + t) * NB_N_POINTS + p];
                for (int j = 0; j < points[p].n; j++) {
                    const nb_linear_id id = (nb_linear_id)((int)points[p].first + j);
                    const int64_t rows = nb_linear_n_rows(&c, id);
                    nb_sym g;
                    must(nb_guide_outputs(&w.guide, layer, id, rows, &g, &err), &err);
                    n_rows += (double)rows;
                    for (int64_t i = 0; i < rows; i++) {
                        got += nb_sym_row(&g, i)[i];
                        for (int64_t k = i + 1; k < rows; k++) {
                            const double cross = nb_sym_row(&g, i)[k];
                            const double most = nb_sym_row(&g, i)[i] * nb_sym_row(&g, k)[k];
                            assert_true(cross * cross <= most * (1 + 1e-5));
                            if (n_seqs == 1)
                                assert_true(cross * cross >= most * (1 - 1e-5));
                        }
                    }
                    nb_sym_free(&g);
                }
                assert_true(fabs(got - want * n_rows) <= 1e-5 * got);
            }
        }
        free(s);
        world_close(&w);
    }
}

static void what_was_damaged_is_made_again(void **state)
{
    (void)state;
    static const int64_t lengths[] = {9, 3};
    int64_t n;
    nb_err err = {0};
    world w;
    world_open(&w, &small, lengths, 2, 1, NB_ISA_ALL);
    world_guide(&w);
    const int64_t n_calls = w.n_calls;
    float *want = read_file(&w, &n);
    for (int how = 0; how < 4; how++) {
        float row[NB_N_POINTS];
        if (how == 0) { /* one bit */
            must(nb_spill_read(&w.guide.file, 13, 1, row, &err), &err);
            row[2] = -row[2];
            must(nb_spill_write(&w.guide.file, 13, 1, row, &err), &err);
        }
        nb_guide_close(&w.guide);
        w.guide.n_done = how == 1 ? 3 : 2; /* more than there are */
        w.guide.hash = how == 1 ? 0 : how == 2 ? ~w.hash : w.hash;
        if (how == 3)
            nb_workdir_clear(&w.dir);
        w.n_calls = 0;
        world_guide(&w);
        assert_int_equal(w.n_calls, n_calls);
        float *got = read_file(&w, &n);
        assert_memory_equal(got, want, (size_t)n * sizeof *got);
        free(got);
    }
    free(want);
    world_close(&w);
}

static void allocations_may_fail(void **state)
{
    (void)state;
    static const int64_t lengths[] = {5, 3};
    world w;
    nb_err err = {0};
    world_open(&w, &small, lengths, 2, 1, NB_ISA_ALL);
    const int64_t live = nb_alloc_live();
    int64_t n = 0;
    w.job.outputs = true;
    for (nb_status s = NB_MEMORY; s != NB_OK;) {
        w.guide.n_done = 0;
        w.guide.hash = 0;
        nb_alloc_fail_at(++n);
        s = nb_guide_make(&w.guide, &w.job, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        nb_guide_close(&w.guide);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n > 30);
    world_close(&w);
}

static void what_has_no_gradient_is_refused(void **state)
{
    (void)state;
    static const int64_t lengths[] = {6};
    nb_err err = {0};
    world w;
    tiny_model model = small;
    model.nan_head = true;
    world_open(&w, &model, lengths, 1, 1, NB_ISA_ALL);
    assert_int_equal(nb_guide_make(&w.guide, &w.job, &err), NB_DATA);
    assert_non_null(strstr(err.text, "not finite in layer 1, at q, k, v"));
    assert_int_equal(w.guide.n_done, 0);
    world_close(&w);
    for (int how = 0; how < 2; how++) {
        world_open(&w, &small, lengths, 1, 1, NB_ISA_ALL);
        w.ids[3] = how == 0 ? TINY_VOCAB : -1;
        assert_int_equal(nb_guide_make(&w.guide, &w.job, &err), NB_DATA);
        assert_non_null(strstr(err.text, "outside the vocabulary"));
        world_close(&w);
    }
}

/* ---- what sums make of it ---- */

/* Two tokens of one block are planted in a guide: sums at each point are those of the two alone,
 * with their weights over the mean of all. */
static void streams_weigh_their_tokens(void **state)
{
    (void)state;
    enum { LAYER = 0, ONE = 4, OTHER = 11, N = 14 };
    static const int64_t lengths[] = {6, 8};
    const unsigned needs = NB_STAT_HESSIAN | NB_STAT_SAMPLE;
    check_run run = {.name = "planted tokens"};
    nb_err err = {0};
    world w;
    world_open(&w, &small, lengths, 2, 2, NB_ISA_ALL);
    world_guide(&w);
    for (int p = 0; p < NB_N_POINTS; p++)
        assert_true(nb_guide_mean(&w.guide, LAYER, (nb_point)p) > 0);
    float rows[N][NB_N_POINTS] = {0};
    for (int p = 0; p < NB_N_POINTS; p++) {
        rows[ONE][p] = 1.0f + (float)p;
        rows[OTHER][p] = 3.0f;
        w.guide.mean[p] = (4 + p) / (double)N;
    }
    must(nb_spill_write(&w.guide.file, LAYER * N, N, rows, &err), &err);
    nb_streams s;
    must(nb_streams_open(&s, w.store, w.seqs, 2, 1, false, 128, &w.dir, &w.la, &err), &err);
    must(nb_model_load_vectors(&s.frame, w.store, 0, 0, &err), &err);
    for (int j = 0; j < NB_N_LINEARS; j++) {
        nb_loaded loaded = {0};
        char name[80];
        snprintf(name, sizeof name, "model.layers.0.%s.weight", nb_linear_name((nb_linear_id)j));
        must(nb_store_read(w.store, nb_store_find(w.store, name), &loaded, &err), &err);
        must(nb_model_set_linear(&s.frame, 0, (nb_linear_id)j, &loaded.mat, &(nb_act_spec){0},
                                 NB_COMPUTE_ALL_F, w.pool, &err),
             &err);
        nb_loaded_free(&loaded);
    }
    s.guide = &w.guide;
    nb_input_stats stats[NB_N_POINTS], *at[NB_N_POINTS];
    for (int p = 0; p < NB_N_POINTS; p++) {
        at[p] = &stats[p];
        must(nb_input_stats_init(&stats[p], nb_point_n_cols(&s.frame.config, (nb_point)p), needs, N,
                                 &err),
             &err);
    }
    must(nb_streams_embed(&s, w.store, &err), &err);
    must(nb_streams_sweep(&s, 0, at, false, &err), &err);
    for (int p = 0; p < NB_N_POINTS; p++) {
        const int64_t n = stats[p].n_cols;
        assert_int_equal(stats[p].n_sample, N);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = i; j < n; j++) {
                const float *one = stats[p].sample + ONE * n, *other = stats[p].sample + OTHER * n;
                const double a = (1 + p) / w.guide.mean[p] * (double)one[i] * (double)one[j];
                const double b = 3 / w.guide.mean[p] * (double)other[i] * (double)other[j];
                check_near(&run, nb_point_name((nb_point)p), nb_sym_row(&stats[p].h, i)[j], a + b,
                           (fabs(a) + fabs(b)) * 8 * 0x1p-24);
            }
        nb_input_stats_free(&stats[p]);
    }
    check_finish(&run);
    nb_streams_close(&s);
    world_close(&w);
}

static void a_point_without_gradients_weighs_all_alike(void **state)
{
    (void)state;
    static const int64_t lengths[] = {5};
    nb_err err = {0};
    float got[5];
    world w;
    world_open(&w, &small, lengths, 1, 1, NB_ISA_ALL);
    world_guide(&w);
    w.guide.mean[NB_AT_FFN] = 0;
    must(nb_guide_weights(&w.guide, 0, NB_AT_FFN, 0, 5, got, &err), &err);
    for (int i = 0; i < 5; i++)
        assert_true(got[i] == 1);
    double sum = 0;
    must(nb_guide_weights(&w.guide, 0, NB_AT_O, 0, 5, got, &err), &err);
    for (int i = 0; i < 5; i++)
        sum += (double)got[i];
    assert_true(fabs(sum - 5) < 1e-5);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(squares_are_those_of_differences),
        cmocka_unit_test(labels_follow_the_prediction),
        cmocka_unit_test(bits_depend_on_neither_threads_nor_isa),
        cmocka_unit_test(what_was_kept_is_not_made_again),
        cmocka_unit_test(moments_of_outputs_add_up),
        cmocka_unit_test(what_was_damaged_is_made_again),
        cmocka_unit_test(allocations_may_fail),
        cmocka_unit_test(what_has_no_gradient_is_refused),
        cmocka_unit_test(gradients_are_differences_one_by_one),
        cmocka_unit_test(streams_weigh_their_tokens),
        cmocka_unit_test(a_point_without_gradients_weighs_all_alike),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
