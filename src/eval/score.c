/* See score.h. */
#include "eval/score.h"

#include "base/clock.h"
#include "base/fpenv.h"
#include "kernel/math.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const nb_protocol nb_protocols[] = {
    {"llama", 512, 256},
    {"paper", 2048, 0},
    {NULL, 0, 0},
};

const nb_protocol *nb_protocol_by_name(const char *name)
{
    for (const nb_protocol *p = nb_protocols; p->name != NULL; p++) {
        if (strcmp(p->name, name) == 0)
            return p;
    }
    return NULL;
}

nb_status nb_scorer_init(nb_scorer *s, nb_model *model, const nb_kernels *kernels, nb_pool *pool,
                         const nb_protocol *protocol, nb_kv_format kv_cell, nb_err *err)
{
    *s = (nb_scorer){.model = model};
    const nb_config *c = &model->config;
    nb_status status;
    if (protocol->n_ctx > model->n_ctx)
        return nb_fail(err, NB_USAGE,
                       "protocol '%s' needs a context of %lld, and the model has %lld",
                       protocol->name, (long long)protocol->n_ctx, (long long)model->n_ctx);
    NB_TRY_GOTO(status, nb_work_init(&s->work, model, kernels, pool, NB_SCORE_TOKENS, err));
    NB_TRY_GOTO(status, nb_kv_pool_init(&s->kv, c, kv_cell, nb_kv_pages_for(protocol->n_ctx), err));
    NB_TRY_GOTO(status, nb_kv_seq_init(&s->seq, &s->kv, protocol->n_ctx, err));
    NB_TRY_GOTO(status, nb_alloc((void **)&s->hidden, (size_t)protocol->n_ctx,
                                 (size_t)c->d_model * sizeof(float), err));
    NB_TRY_GOTO(status, nb_alloc((void **)&s->logits, NB_SCORE_ROWS,
                                 (size_t)c->vocab_size * sizeof(float), err));
done:
    if (status != NB_OK)
        nb_scorer_free(s);
    return status;
}

void nb_scorer_free(nb_scorer *s)
{
    nb_kv_seq_free(&s->seq);
    nb_kv_pool_free(&s->kv);
    nb_work_free(&s->work);
    nb_free(s->hidden);
    nb_free(s->logits);
    *s = (nb_scorer){0};
}

/* Fills s->hidden with the states of positions [first, n_ctx - 1). */
static nb_status run_window(nb_scorer *s, const nb_protocol *p, const int32_t *tokens, nb_err *err)
{
    nb_kv_seq_truncate(&s->seq, 0);
    const int64_t n = p->n_ctx - 1; /* the last token predicts nothing */
    float *out = s->hidden;
    for (int64_t begin = 0; begin < n; begin += NB_SCORE_TOKENS) {
        const int64_t count = n - begin < NB_SCORE_TOKENS ? n - begin : NB_SCORE_TOKENS;
        const int64_t end = begin + count;
        int64_t wanted = end - (begin > p->first_scored ? begin : p->first_scored);
        if (wanted < 0)
            wanted = 0;
        const nb_step_input in = {&s->seq, tokens + begin, count, wanted};
        NB_TRY(nb_forward(&s->work, &in, 1, out, err));
        out += wanted * s->model->config.d_model;
    }
    return NB_OK;
}

/* One distribution: log of the normaliser and where the maximum is. */
typedef struct {
    float max, logsum;
    int64_t top;
} row_stats;

static row_stats stats_of(const nb_kernels *k, const float *logits, int64_t n)
{
    row_stats s;
    double sum;
    k->softmax_stats(logits, n, &s.max, &sum);
    s.logsum = (float)nb_log64(sum);
    s.top = k->argmax(logits, n);
    return s;
}

static double loss_of(const row_stats *s, const float *logits, int32_t target)
{
    return (double)s->max + (double)s->logsum - (double)logits[target];
}

/* What is collected of one model. */
typedef struct {
    double *loss; /* of each position */
    double *kl;
    int64_t n, n_same_top;
    uint64_t hash;
    double seconds;
} tally;

typedef struct {
    const nb_kernels *k;
    int64_t vocab;
    const float *logits, *base_logits;
    const int32_t *targets;
    const row_stats *base_stats;
    row_stats *stats;
    tally *t;
    uint64_t first_index;
    uint64_t hash[NB_SCORE_ROWS];
} slice_job;

static void slice_task(void *context, int64_t row, int thread)
{
    (void)thread;
    slice_job *j = context;
    const float *x = j->logits + row * j->vocab;
    const row_stats s = stats_of(j->k, x, j->vocab);
    j->stats[row] = s;
    const int64_t at = j->t->n + row;
    j->t->loss[at] = loss_of(&s, x, j->targets[row]);
    j->hash[row] = nb_logits_hash(x, j->vocab, j->first_index + (uint64_t)row);
    if (j->base_logits != NULL) {
        const row_stats *b = &j->base_stats[row];
        j->t->kl[at] = j->k->kl(j->base_logits + row * j->vocab, b->max, b->logsum, x, s.max,
                                s.logsum, j->vocab);
    }
}

/* Adds rows of logits to a tally; without a base, their divergence stays 0. False when a loss or a
 * divergence is not finite. */
static bool add_rows(nb_scorer *s, const nb_scorer *base, const row_stats *base_stats,
                     row_stats *stats, int64_t n_rows, const int32_t *targets, uint64_t first_index,
                     tally *t)
{
    slice_job job = {.k = s->work.kernels,
                     .vocab = s->model->config.vocab_size,
                     .logits = s->logits,
                     .base_logits = base != NULL ? base->logits : NULL,
                     .targets = targets,
                     .base_stats = base_stats,
                     .stats = stats,
                     .t = t,
                     .first_index = first_index};
    nb_pool_run(s->work.pool, n_rows, slice_task, &job);
    bool finite = true;
    for (int64_t r = 0; r < n_rows; r++) {
        t->hash ^= job.hash[r];
        finite = finite && isfinite(t->loss[t->n + r]);
        if (base != NULL) {
            t->n_same_top += stats[r].top == base_stats[r].top;
            finite = finite && isfinite(t->kl[t->n + r]);
        }
    }
    t->n += n_rows;
    return finite;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void mean_and_error(const double *x, int64_t n, double *mean, double *error)
{
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i];
    *mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++)
        squares += (x[i] - *mean) * (x[i] - *mean);
    *error = n > 1 ? sqrt(squares / (double)(n - 1) / (double)n) : 0;
}

/* Nearest rank: the smallest value that at least a share q of the sorted values do not exceed. */
static double quantile(const double *sorted, int64_t n, double q)
{
    int64_t rank = (int64_t)ceil(q * (double)n);
    rank = rank < 1 ? 1 : rank > n ? n : rank;
    return sorted[rank - 1];
}

static void conclude(tally *t, const tally *base, int64_t n_windows, nb_score *out)
{
    double mean, error;
    mean_and_error(t->loss, t->n, &mean, &error);
    *out = (nb_score){.n_windows = n_windows,
                      .n_tokens = t->n,
                      .perplexity = nb_exp64(mean),
                      .perplexity_se = nb_exp64(mean) * error,
                      .logits_hash = t->hash,
                      .seconds = t->seconds};
    if (base == NULL)
        return;
    out->has_base = true;
    mean_and_error(base->loss, base->n, &mean, &error);
    out->base_perplexity = nb_exp64(mean);
    mean_and_error(t->kl, t->n, &out->kl_mean, &out->kl_mean_se);
    qsort(t->kl, (size_t)t->n, sizeof *t->kl, compare_doubles);
    out->kl_median = quantile(t->kl, t->n, 0.5);
    out->kl_p99 = quantile(t->kl, t->n, 0.99);
    out->kl_max = t->kl[t->n - 1];
    const double p = (double)t->n_same_top / (double)t->n;
    out->top1 = p;
    out->top1_se = sqrt(p * (1 - p) / (double)t->n);
}

/* Puts the model's name before the message. */
static nb_status name_model(const nb_scorer *s, nb_err *err)
{
    return s->name != NULL ? nb_context(err, "%s", s->name) : err->status;
}

static nb_status run_named(nb_scorer *s, const nb_protocol *p, const int32_t *tokens, nb_err *err)
{
    return run_window(s, p, tokens, err) == NB_OK ? NB_OK : name_model(s, err);
}

/* One window through all models. */
static nb_status score_window(nb_scorer *models, int64_t n_models, nb_scorer *base,
                              const nb_protocol *p, const int32_t *tokens, int64_t window,
                              tally *tallies, tally *base_tally, nb_err *err)
{
    const int32_t *w = tokens + window * p->n_ctx;
    double t0 = nb_clock();
    if (base != NULL)
        NB_TRY(run_named(base, p, w, err));
    base_tally->seconds += nb_clock() - t0;
    for (int64_t i = 0; i < n_models; i++) {
        t0 = nb_clock();
        NB_TRY(run_named(&models[i], p, w, err));
        tallies[i].seconds += nb_clock() - t0;
    }
    row_stats stats[NB_SCORE_ROWS], base_stats[NB_SCORE_ROWS];
    for (int64_t first = p->first_scored; first < p->n_ctx - 1; first += NB_SCORE_ROWS) {
        const int64_t left = p->n_ctx - 1 - first, n = left < NB_SCORE_ROWS ? left : NB_SCORE_ROWS;
        const uint64_t index = (uint64_t)(window * p->n_ctx + first);
        for (int64_t i = base != NULL ? -1 : 0; i < n_models; i++) {
            nb_scorer *s = i < 0 ? base : &models[i];
            tally *t = i < 0 ? base_tally : &tallies[i];
            t0 = nb_clock();
            nb_logits(&s->work, s->hidden + (first - p->first_scored) * s->model->config.d_model, n,
                      s->logits);
            const bool finite = add_rows(s, i < 0 ? NULL : base, base_stats,
                                         i < 0 ? base_stats : stats, n, w + first + 1, index, t);
            t->seconds += nb_clock() - t0;
            if (!finite) {
                nb_fail(err, NB_DATA, "the logits of tokens %lld to %lld hold Inf or NaN",
                        (long long)index, (long long)index + (long long)n - 1);
                return name_model(s, err);
            }
        }
    }
    return NB_OK;
}

/* Every token has logits, and those of both models are of the same tokens. */
static nb_status check_vocabulary(const nb_scorer *s, const nb_scorer *base, const int32_t *tokens,
                                  int64_t n, nb_err *err)
{
    const int64_t vocab = s->model->config.vocab_size;
    if (base != NULL && base->model->config.vocab_size != vocab) {
        nb_fail(err, NB_DATA, "a vocabulary of %lld tokens, and the base has %lld",
                (long long)vocab, (long long)base->model->config.vocab_size);
        return name_model(s, err);
    }
    for (int64_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= vocab) {
            nb_fail(err, NB_DATA, "token id %d is outside the vocabulary of %lld", tokens[i],
                    (long long)vocab);
            return name_model(s, err);
        }
    }
    return NB_OK;
}

nb_status nb_score_run(nb_scorer *models, int64_t n_models, nb_scorer *base,
                       const nb_protocol *protocol, const int32_t *tokens, int64_t n_tokens,
                       int64_t max_windows, nb_score_progress *progress, void *context,
                       nb_score *results, nb_err *err)
{
    int64_t n_windows = n_tokens / protocol->n_ctx;
    if (n_windows == 0)
        return nb_fail(err, NB_DATA, "%lld tokens; protocol '%s' needs at least %lld",
                       (long long)n_tokens, protocol->name, (long long)protocol->n_ctx);
    if (max_windows > 0 && n_windows > max_windows)
        n_windows = max_windows;
    for (int64_t i = 0; i < n_models; i++)
        NB_TRY(check_vocabulary(&models[i], base, tokens, n_windows * protocol->n_ctx, err));
    const int64_t n_scored = n_windows * (protocol->n_ctx - 1 - protocol->first_scored);
    tally *tallies;
    NB_TRY(NB_ALLOC(&tallies, n_models + 1, err));
    const uint64_t env = nb_fpenv_enter();
    nb_status s = NB_OK;
    for (int64_t i = 0; s == NB_OK && i <= n_models; i++) {
        s = NB_ALLOC(&tallies[i].loss, n_scored, err);
        if (s == NB_OK)
            s = NB_ALLOC(&tallies[i].kl, n_scored, err);
    }
    for (int64_t w = 0; s == NB_OK && w < n_windows; w++) {
        s = score_window(models, n_models, base, protocol, tokens, w, tallies, &tallies[n_models],
                         err);
        if (s == NB_OK && progress != NULL && !progress(context, w + 1, n_windows))
            s = nb_fail(err, NB_INTERRUPTED, "interrupted after %lld of %lld windows",
                        (long long)(w + 1), (long long)n_windows);
    }
    for (int64_t i = 0; s == NB_OK && i < n_models; i++)
        conclude(&tallies[i], base != NULL ? &tallies[n_models] : NULL, n_windows, &results[i]);
    for (int64_t i = 0; i <= n_models; i++) {
        nb_free(tallies[i].loss);
        nb_free(tallies[i].kl);
    }
    nb_free(tallies);
    nb_fpenv_leave(env);
    return s;
}
