/* Perplexity and divergence against a slow plain computation in binary64, the positions that each
 * protocol counts, and numbers that must not depend on who else is scored, on threads, on the
 * instruction set or on the host's floating-point environment. */
#include "support/golden.h"
#include "support/scratch.h"
#include "support/tiny_model.h"
#include "support/must.h"

#include "base/fpenv.h"
#include "base/rng.h"
#include "eval/score.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKENS 4200

static int32_t tokens[MAX_TOKENS];

/* ---- models ---- */

typedef struct {
    nb_store *store;
    nb_model model;
    nb_pool *pool;
    nb_kernels kernels;
    nb_scorer scorer;
} scored;

static void open_scored(scored *f, uint64_t seed, const nb_protocol *p, unsigned isa, int threads,
                        nb_kv_format cell)
{
    nb_err err;
    char name[32];
    snprintf(name, sizeof name, "model%d", (int)seed);
    const char *path = scratch_path(name);
    if (!scratch_exists(name))
        path = tiny_model_write(name, &(tiny_model){.seed = seed});
    *f = (scored){0};
    must(nb_store_open(&f->store, path, &err), &err);
    must(nb_pool_open(&f->pool, threads, &err), &err);
    nb_kernels_init(&f->kernels, isa);
    const nb_model_options options = {NB_COMPUTE_AUTO, p->n_ctx};
    must(nb_model_open(&f->model, f->store, &options, f->pool, &err), &err);
    must(nb_scorer_init(&f->scorer, &f->model, &f->kernels, f->pool, p, cell, &err), &err);
}

static void close_scored(scored *f)
{
    nb_scorer_free(&f->scorer);
    nb_model_close(&f->model);
    nb_pool_close(f->pool);
    nb_store_close(f->store);
}

/* ---- the slow plain computation ---- */

/* Logits of a window, token by token. */
static void plain_logits(scored *f, const int32_t *window, int64_t n, float *logits)
{
    nb_err err;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    must(nb_work_init(&work, &f->model, &f->kernels, f->pool, 1, &err), &err);
    must(nb_kv_pool_init(&kv, &f->model.config, NB_KV_F32, nb_kv_pages_for(n), &err), &err);
    must(nb_kv_seq_init(&seq, &kv, n, &err), &err);
    float *hidden = calloc((size_t)f->model.config.d_model, sizeof *hidden);
    for (int64_t i = 0; i < n; i++) {
        const nb_step_input in = {&seq, window + i, 1, 1};
        must(nb_forward(&work, &in, 1, hidden, &err), &err);
        nb_logits(&work, hidden, 1, logits + i * f->model.config.vocab_size);
    }
    free(hidden);
    nb_kv_seq_free(&seq);
    nb_kv_pool_free(&kv);
    nb_work_free(&work);
}

static double log_sum(const float *x, int64_t n)
{
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        max = fmax(max, (double)x[i]);
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return max + log(sum);
}

static int64_t top_of(const float *x, int64_t n)
{
    int64_t top = 0;
    for (int64_t i = 1; i < n; i++)
        top = x[i] > x[top] ? i : top;
    return top;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void mean_and_se(const double *x, int64_t n, double *mean, double *se)
{
    double squares = 0;
    *mean = 0;
    for (int64_t i = 0; i < n; i++)
        *mean += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++)
        squares += (x[i] - *mean) * (x[i] - *mean);
    *se = n > 1 ? sqrt(squares / (double)(n - 1)) / sqrt((double)n) : 0;
}

/* What score.h promises, in the order in which one would write it on paper. */
static nb_score plain_score(scored *f, scored *base, const nb_protocol *p, int64_t n_windows)
{
    const int64_t vocab = f->model.config.vocab_size;
    nb_score r = {.n_windows = n_windows, .has_base = base != NULL};
    float *x = calloc((size_t)(p->n_ctx * vocab), sizeof *x);
    float *b = calloc((size_t)(p->n_ctx * vocab), sizeof *b);
    double *loss = calloc((size_t)(n_windows * p->n_ctx), sizeof *loss);
    double *base_loss = calloc((size_t)(n_windows * p->n_ctx), sizeof *base_loss);
    double *kl = calloc((size_t)(n_windows * p->n_ctx), sizeof *kl);
    int64_t n = 0, same = 0;
    for (int64_t w = 0; w < n_windows; w++) {
        const int32_t *t = tokens + w * p->n_ctx;
        plain_logits(f, t, p->n_ctx, x);
        if (base != NULL)
            plain_logits(base, t, p->n_ctx, b);
        for (int64_t pos = p->first_scored; pos + 1 < p->n_ctx; pos++, n++) {
            const float *q = x + pos * vocab, *y = b + pos * vocab;
            const double lq = log_sum(q, vocab), lp = log_sum(y, vocab);
            loss[n] = lq - (double)q[t[pos + 1]];
            base_loss[n] = lp - (double)y[t[pos + 1]];
            for (int64_t i = 0; base != NULL && i < vocab; i++) {
                const double a = (double)y[i] - lp, c = (double)q[i] - lq;
                kl[n] += exp(a) * (a - c);
            }
            same += base != NULL && top_of(q, vocab) == top_of(y, vocab);
            r.logits_hash ^= nb_logits_hash(q, vocab, (uint64_t)(w * p->n_ctx + pos));
        }
    }
    double mean, se;
    r.n_tokens = n;
    mean_and_se(loss, n, &mean, &se);
    r.perplexity = exp(mean);
    r.perplexity_se = exp(mean) * se;
    if (base != NULL) {
        mean_and_se(base_loss, n, &mean, &se);
        r.base_perplexity = exp(mean);
        mean_and_se(kl, n, &r.kl_mean, &r.kl_mean_se);
        qsort(kl, (size_t)n, sizeof *kl, ascending);
        r.kl_median = kl[(n + 1) / 2 - 1];
        r.kl_p99 = kl[(n * 99 + 99) / 100 - 1];
        r.kl_max = kl[n - 1];
        r.top1 = (double)same / (double)n;
        r.top1_se = sqrt(r.top1 * (1 - r.top1) / (double)n);
    }
    free(x);
    free(b);
    free(loss);
    free(base_loss);
    free(kl);
    return r;
}

static void near(const char *what, double got, double want)
{
    if (!(fabs(got - want) <= 2e-6 * fabs(want) + 2e-7))
        fail_msg("%s is %.17g, not %.17g", what, got, want);
}

static void check_score(const nb_score *got, const nb_score *want)
{
    assert_int_equal(got->n_windows, want->n_windows);
    assert_int_equal(got->n_tokens, want->n_tokens);
    assert_int_equal(got->has_base, want->has_base);
    near("perplexity", got->perplexity, want->perplexity);
    near("perplexity_se", got->perplexity_se, want->perplexity_se);
    near("base_perplexity", got->base_perplexity, want->base_perplexity);
    near("kl_mean", got->kl_mean, want->kl_mean);
    near("kl_mean_se", got->kl_mean_se, want->kl_mean_se);
    near("kl_median", got->kl_median, want->kl_median);
    near("kl_p99", got->kl_p99, want->kl_p99);
    near("kl_max", got->kl_max, want->kl_max);
    assert_true(got->top1 == want->top1 && got->top1_se == want->top1_se);
    assert_true(got->logits_hash == want->logits_hash);
}

/* Every number but the time is the same one. */
static void check_same(const nb_score *a, const nb_score *b)
{
    assert_int_equal(a->n_windows, b->n_windows);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_int_equal(a->has_base, b->has_base);
    assert_true(a->logits_hash == b->logits_hash);
    const double x[] = {a->perplexity, a->perplexity_se, a->base_perplexity, a->kl_mean,
                        a->kl_mean_se, a->kl_median,     a->kl_p99,          a->kl_max,
                        a->top1,       a->top1_se};
    const double y[] = {b->perplexity, b->perplexity_se, b->base_perplexity, b->kl_mean,
                        b->kl_mean_se, b->kl_median,     b->kl_p99,          b->kl_max,
                        b->top1,       b->top1_se};
    assert_memory_equal(x, y, sizeof x);
}

static nb_score run_score(scored *f, scored *base, const nb_protocol *p, int64_t n_tokens,
                          int64_t max_windows)
{
    nb_err err;
    nb_score r;
    must(nb_score_run(&f->scorer, 1, base != NULL ? &base->scorer : NULL, p, tokens, n_tokens,
                      max_windows, NULL, NULL, &r, &err),
         &err);
    assert_true(r.seconds > 0);
    return r;
}

/* ---- tests ---- */

static void protocols_have_their_names_and_positions(void **state)
{
    (void)state;
    const nb_protocol *llama = nb_protocol_by_name("llama"), *paper = nb_protocol_by_name("paper");
    assert_int_equal(llama->n_ctx, 512);
    assert_int_equal(llama->first_scored, 256);
    assert_int_equal(paper->n_ctx, 2048);
    assert_int_equal(paper->first_scored, 0);
    assert_null(nb_protocol_by_name("Llama"));
    assert_null(nb_protocol_by_name(""));
}

/* 255 of a window of 512 and 2,047 of one of 2,048; the real protocols end to end. */
static void real_protocols_score_what_they_say(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t n_windows, per_window;
    } cases[] = {{"llama", 3, 255}, {"paper", 2, 2047}};
    for (size_t i = 0; i < 2; i++) {
        const nb_protocol *p = nb_protocol_by_name(cases[i].name);
        const int64_t n = cases[i].n_windows * p->n_ctx + 17; /* what is left over does not count */
        scored f, base;
        open_scored(&f, 1, p, NB_ISA_ALL, 2, NB_KV_F32);
        open_scored(&base, 1, p, NB_ISA_ALL, 2, NB_KV_F32);
        for (int64_t d = 0; d < f.model.config.d_model; d++) /* a relative: like, not equal */
            f.model.layers[1].ffn_norm[d] *= 1.2f;
        const nb_score got = run_score(&f, &base, p, n, 0);
        assert_int_equal(got.n_tokens, cases[i].n_windows * cases[i].per_window);
        const nb_score want = plain_score(&f, &base, p, cases[i].n_windows);
        check_score(&got, &want);
        assert_true(got.kl_mean > 0.01 && got.top1 < 0.99 && got.top1 > 0.01);
        close_scored(&f);
        close_scored(&base);
    }
}

/* Windows and positions of every kind: shorter and longer than the slices in which logits are
 * computed, one position, all of them. */
static void scores_are_those_of_the_plain_computation(void **state)
{
    (void)state;
    static const nb_protocol protocols[] = {
        {"two", 2, 0},     {"one position", 40, 38}, {"a slice", 65, 0},  {"and one", 66, 0},
        {"half", 130, 65}, {"odd", 33, 7},           {"steps", 600, 520}, {"over", 700, 500},
    };
    for (size_t i = 0; i < sizeof protocols / sizeof *protocols; i++) {
        const nb_protocol *p = &protocols[i];
        const int64_t n_windows = p->n_ctx < 200 ? 4 : 2;
        scored f, base;
        open_scored(&f, 1, p, NB_ISA_ALL, 3, NB_KV_F32);
        open_scored(&base, 2, p, NB_ISA_ALL, 3, NB_KV_F32);
        nb_score got = run_score(&f, &base, p, n_windows * p->n_ctx, 0);
        nb_score want = plain_score(&f, &base, p, n_windows);
        check_score(&got, &want);
        got = run_score(&f, NULL, p, n_windows * p->n_ctx, 1);
        want = plain_score(&f, NULL, p, 1);
        check_score(&got, &want);
        close_scored(&f);
        close_scored(&base);
    }
}

static const nb_protocol short_one = {"short", 48, 16};

/* Not small: exactly nothing. */
static void a_model_does_not_diverge_from_itself(void **state)
{
    (void)state;
    scored f, base;
    open_scored(&f, 1, &short_one, NB_ISA_ALL, 2, NB_KV_F32);
    open_scored(&base, 1, &short_one, NB_ISA_ALL, 1, NB_KV_F32);
    const nb_score r = run_score(&f, &base, &short_one, 480, 0);
    assert_true(r.kl_mean == 0 && r.kl_mean_se == 0 && r.kl_median == 0 && r.kl_p99 == 0);
    assert_true(r.kl_max == 0 && r.top1 == 1 && r.top1_se == 0);
    assert_true(r.perplexity == r.base_perplexity && r.perplexity > 1);
    close_scored(&f);
    close_scored(&base);
}

/* A cache of another type is another model: small, and not nothing. */
static void an_f16_cache_shows(void **state)
{
    (void)state;
    scored f, base;
    open_scored(&f, 1, &short_one, NB_ISA_ALL, 2, NB_KV_F16);
    open_scored(&base, 1, &short_one, NB_ISA_ALL, 1, NB_KV_F32);
    const nb_score r = run_score(&f, &base, &short_one, 480, 0);
    assert_true(r.kl_mean != 0 && fabs(r.kl_mean) < 1e-4);
    close_scored(&f);
    close_scored(&base);
}

/* Three models that share a base give what each gives alone. */
static void sharing_a_base_changes_nothing(void **state)
{
    (void)state;
    nb_err err;
    scored f[3], base;
    nb_scorer scorers[3];
    nb_score together[3];
    for (int i = 0; i < 3; i++) {
        open_scored(&f[i], (uint64_t)(3 - i), &short_one, NB_ISA_ALL, 2, NB_KV_F16);
        scorers[i] = f[i].scorer;
    }
    open_scored(&base, 2, &short_one, NB_ISA_ALL, 2, NB_KV_F32);
    must(nb_score_run(scorers, 3, &base.scorer, &short_one, tokens, 500, 0, NULL, NULL, together,
                      &err),
         &err);
    for (int i = 0; i < 3; i++) {
        f[i].scorer = scorers[i]; /* with the pages that it holds by now */
        const nb_score alone = run_score(&f[i], &base, &short_one, 500, 0);
        check_same(&alone, &together[i]);
        close_scored(&f[i]);
    }
    assert_true(together[0].logits_hash != together[1].logits_hash);
    close_scored(&base);
}

static void scores_do_not_depend_on_threads_or_instructions(void **state)
{
    (void)state;
    static const unsigned isas[] = {0, NB_ISA_AVX2, NB_ISA_AVX2 | NB_ISA_AVX512, NB_ISA_NEON};
    nb_score want = {0};
    int n = 0;
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if ((nb_cpu_isa() & isas[i]) != isas[i])
            continue;
        for (int threads = 1; threads <= 3; threads++, n++) {
            scored f, base;
            open_scored(&f, 1, &short_one, isas[i], threads, NB_KV_F16);
            open_scored(&base, 2, &short_one, isas[i], threads, NB_KV_F32);
            const nb_score r = run_score(&f, &base, &short_one, 200, 0);
            if (n == 0)
                want = r;
            check_same(&r, &want);
            close_scored(&f);
            close_scored(&base);
        }
    }
    assert_true(n >= 3);
}

/* A program that has set flush-to-zero gets the same numbers, and keeps its setting. */
static void the_hosts_floating_point_environment_does_not_matter(void **state)
{
    (void)state;
#if defined(__x86_64__)
    scored f, base;
    open_scored(&f, 1, &short_one, NB_ISA_ALL, 2, NB_KV_F32);
    open_scored(&base, 2, &short_one, NB_ISA_ALL, 2, NB_KV_F32);
    const nb_score want = run_score(&f, &base, &short_one, 200, 0);
    const unsigned before = _mm_getcsr();
    _mm_setcsr((before | 0x8040u | 0x6000u) & ~0x3fu); /* flush, denormals are zero, toward zero */
    nb_score r;
    nb_err err;
    const nb_status s =
        nb_score_run(&f.scorer, 1, &base.scorer, &short_one, tokens, 200, 0, NULL, NULL, &r, &err);
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    assert_int_equal(s, NB_OK);
    assert_int_equal(after & 0xffc0u, (before | 0x8040u | 0x6000u) & 0xffc0u);
    check_same(&r, &want);
    close_scored(&f);
    close_scored(&base);
#endif
}

/* Windows that are not scored may hold anything, and tokens past the last whole one too. */
static void only_scored_windows_count(void **state)
{
    (void)state;
    scored f;
    open_scored(&f, 1, &short_one, NB_ISA_ALL, 1, NB_KV_F32);
    const nb_score want = run_score(&f, NULL, &short_one, 96, 0);
    const int32_t saved = tokens[96];
    tokens[96] = 99999;
    nb_score r = run_score(&f, NULL, &short_one, 97, 0);
    check_same(&r, &want);
    r = run_score(&f, NULL, &short_one, 480, 2);
    check_same(&r, &want);
    tokens[96] = saved;
    r = run_score(&f, NULL, &short_one, 96, 1000000000); /* more windows than there are */
    check_same(&r, &want);
    /* The first token of a window is a target of nothing; the first scored target does count. */
    tokens[48 + 17] ^= 1;
    r = run_score(&f, NULL, &short_one, 96, 0);
    assert_true(r.perplexity != want.perplexity);
    tokens[48 + 17] ^= 1;
    /* The last token is a target only: another one moves the loss, and no logit. */
    tokens[95] ^= 1;
    r = run_score(&f, NULL, &short_one, 96, 0);
    assert_true(r.perplexity != want.perplexity && r.logits_hash == want.logits_hash);
    tokens[95] ^= 1;
    close_scored(&f);
}

static void refused(scored *f, scored *base, int64_t n, const char *reason)
{
    nb_err err = {0};
    nb_score r = {.n_tokens = -7};
    const int64_t live = nb_alloc_live();
    assert_int_equal(nb_score_run(&f->scorer, 1, base != NULL ? &base->scorer : NULL, &short_one,
                                  tokens, n, 0, NULL, NULL, &r, &err),
                     NB_DATA);
    assert_string_equal(err.text, reason);
    assert_int_equal(r.n_tokens, -7);
    assert_int_equal(nb_alloc_live(), live);
}

static void what_cannot_be_scored_is_refused(void **state)
{
    (void)state;
    scored f, base;
    open_scored(&f, 1, &short_one, NB_ISA_ALL, 1, NB_KV_F32);
    f.scorer.name = "small.gguf";
    refused(&f, NULL, 0, "0 tokens; protocol 'short' needs at least 48");
    refused(&f, NULL, 47, "47 tokens; protocol 'short' needs at least 48");
    /* The last token of a window has no logits of its own: it is only looked up in some. */
    static const int32_t bad[] = {TINY_VOCAB, -1, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < 4; i++) {
        for (int64_t at = 0; at < 48; at += 47) {
            char reason[100];
            const int32_t saved = tokens[at];
            tokens[at] = bad[i];
            snprintf(reason, sizeof reason,
                     "small.gguf: token id %d is outside the vocabulary of %d", bad[i], TINY_VOCAB);
            refused(&f, NULL, 48, reason);
            tokens[at] = saved;
        }
    }
    tiny_model_write("model9", &(tiny_model){.seed = 9, .n_vocab = 300});
    open_scored(&base, 9, &short_one, NB_ISA_ALL, 1, NB_KV_F32);
    refused(&f, &base, 48, "small.gguf: a vocabulary of 265 tokens, and the base has 300");
    close_scored(&base);
    close_scored(&f);
}

/* A model whose logits hold a NaN has no perplexity; it is named, be it model or base. */
static void logits_that_are_not_finite_are_refused(void **state)
{
    (void)state;
    tiny_model_write("model8", &(tiny_model){.seed = 8, .nan_head = true});
    scored f, bad;
    open_scored(&f, 1, &short_one, NB_ISA_ALL, 2, NB_KV_F32);
    open_scored(&bad, 8, &short_one, NB_ISA_ALL, 2, NB_KV_F32);
    bad.scorer.name = "broken";
    refused(&bad, NULL, 48, "broken: the logits of tokens 16 to 46 hold Inf or NaN");
    refused(&bad, &f, 48, "broken: the logits of tokens 16 to 46 hold Inf or NaN");
    refused(&f, &bad, 48, "broken: the logits of tokens 16 to 46 hold Inf or NaN");
    close_scored(&bad);
    close_scored(&f);
}

typedef struct {
    int64_t n, stop_at, total;
} watcher;

static bool watch(void *context, int64_t done, int64_t total)
{
    watcher *w = context;
    assert_int_equal(done, ++w->n);
    w->total = total;
    return done != w->stop_at;
}

static void progress_is_told_and_can_stop(void **state)
{
    (void)state;
    nb_err err;
    scored f;
    nb_score r = {.n_tokens = -7};
    open_scored(&f, 1, &short_one, NB_ISA_ALL, 1, NB_KV_F32);
    watcher w = {0};
    must(nb_score_run(&f.scorer, 1, NULL, &short_one, tokens, 300, 0, watch, &w, &r, &err), &err);
    assert_int_equal(w.n, 6);
    assert_int_equal(w.total, 6);
    r.n_tokens = -7;
    w = (watcher){.stop_at = 4};
    assert_int_equal(
        nb_score_run(&f.scorer, 1, NULL, &short_one, tokens, 300, 0, watch, &w, &r, &err),
        NB_INTERRUPTED);
    assert_string_equal(err.text, "interrupted after 4 of 6 windows");
    assert_int_equal(r.n_tokens, -7);
    close_scored(&f);
}

static void a_context_shorter_than_the_window_is_refused(void **state)
{
    (void)state;
    nb_err err;
    scored f;
    open_scored(&f, 1, &short_one, NB_ISA_ALL, 1, NB_KV_F32);
    nb_scorer s;
    assert_int_equal(nb_scorer_init(&s, &f.model, &f.kernels, f.pool, nb_protocol_by_name("llama"),
                                    NB_KV_F32, &err),
                     NB_USAGE);
    assert_string_equal(err.text, "protocol 'llama' needs a context of 512, and the model has 48");
    nb_scorer_free(&s);
    close_scored(&f);
}

static void scoring_survives_every_allocation_failure(void **state)
{
    (void)state;
    scored f;
    open_scored(&f, 1, &short_one, NB_ISA_ALL, 1, NB_KV_F32);
    const int64_t before = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_err err;
        nb_scorer s;
        nb_score r;
        nb_alloc_fail_at(n);
        nb_status status =
            nb_scorer_init(&s, &f.model, &f.kernels, f.pool, &short_one, NB_KV_F32, &err);
        if (status == NB_OK)
            status =
                nb_score_run(&s, 1, &f.scorer, &short_one, tokens, 100, 0, NULL, NULL, &r, &err);
        nb_alloc_fail_at(0);
        nb_scorer_free(&s);
        assert_int_equal(nb_alloc_live(), before);
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_MEMORY);
    }
    assert_true(n > 15);
    close_scored(&f);
}

static int set_up(void **state)
{
    for (int i = 0; i < MAX_TOKENS; i++) {
        uint32_t w[4];
        nb_philox(4, 4, (uint64_t)i, w);
        tokens[i] = (int32_t)(w[0] % (TINY_VOCAB - 2)) + 1; /* so that ^1 stays a token */
    }
    return scratch_setup(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(protocols_have_their_names_and_positions),
        cmocka_unit_test(real_protocols_score_what_they_say),
        cmocka_unit_test(scores_are_those_of_the_plain_computation),
        cmocka_unit_test(a_model_does_not_diverge_from_itself),
        cmocka_unit_test(an_f16_cache_shows),
        cmocka_unit_test(sharing_a_base_changes_nothing),
        cmocka_unit_test(scores_do_not_depend_on_threads_or_instructions),
        cmocka_unit_test(the_hosts_floating_point_environment_does_not_matter),
        cmocka_unit_test(only_scored_windows_count),
        cmocka_unit_test(what_cannot_be_scored_is_refused),
        cmocka_unit_test(logits_that_are_not_finite_are_refused),
        cmocka_unit_test(progress_is_told_and_can_stop),
        cmocka_unit_test(a_context_shorter_than_the_window_is_refused),
        cmocka_unit_test(scoring_survives_every_allocation_failure),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_teardown);
}
