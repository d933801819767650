/* Checking and timing; see bench.h. */
#include "cli/bench.h"

#include "base/memory.h"
#include "base/rng.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory ---- */

int64_t nb_bench_kv_bytes(const nb_bench *b, int64_t n, int64_t n_positions)
{
    const int64_t page = nb_config_kv_bytes(&b->o.model.config, b->kv.cell) * NB_KV_PAGE;
    return n * (nb_kv_pages_for(n_positions) * page +
                nb_config_kv_recent_bytes(&b->o.model.config, b->kv.cell));
}

static int64_t batch_positions(const nb_bench *b, int64_t depth)
{
    return depth + b->wants.batch_prompt + b->wants.batch_gen;
}

bool nb_bench_fits(const nb_bench *b, int64_t n_seqs, int64_t depth)
{
    return nb_bench_kv_bytes(b, n_seqs, batch_positions(b, depth)) <= b->kv_room;
}

/* Sequences of the check: enough to fill a batch, few enough for one step, of two pages at most. */
#define CHECK_SEQS   3
#define CHECK_TOKENS 9
#define CHECK_MOST   (NB_BENCH_STEP / CHECK_TOKENS)
static_assert(CHECK_TOKENS + NB_KV_PAGE + 1 <= NB_BENCH_CHECK_CTX, "the longest of them");
static_assert(CHECK_MOST + (CHECK_MOST + 3) / 4 * NB_KV_PAGE <= NB_BENCH_STEP,
              "they fit in a step");

/* Pages for the largest thing that will be run. */
static int64_t pages_wanted(const nb_bench *b)
{
    const nb_bench_wants *w = &b->wants;
    int64_t n = nb_kv_pages_for(w->n_ctx);
    const int64_t checked = b->n_seqs < CHECK_MOST ? b->n_seqs : CHECK_MOST;
    n = n < 2 * checked ? 2 * checked : n;
    for (int d = 0; d < w->depths.n; d++) {
        for (int i = 0; i < w->batches.n; i++) {
            const int64_t batch = w->batches.of[i], depth = w->depths.of[d];
            const int64_t pages = batch * nb_kv_pages_for(batch_positions(b, depth));
            if (pages > n && nb_bench_fits(b, batch, depth))
                n = pages;
        }
    }
    return n;
}

nb_status nb_bench_prepare(nb_bench *b, nb_kv_format kv, nb_err *err)
{
    const nb_bench_wants *w = &b->wants;
    const nb_config *c = &b->o.model.config;
    int64_t n_seqs = CHECK_SEQS;
    for (int i = 0; i < w->batches.n; i++)
        n_seqs = w->batches.of[i] > n_seqs ? w->batches.of[i] : n_seqs;
    b->kv.cell = kv;
    b->n_seqs = (int)n_seqs;
    b->kv_room = nb_memory_available() -
                 nb_work_bytes(&b->o.model, nb_pool_n_threads(b->rt.pool), NB_BENCH_STEP) -
                 n_seqs * (c->d_model + c->vocab_size) * (int64_t)sizeof(float);
    NB_TRY(nb_work_init(&b->work, &b->o.model, &b->rt.kernels, b->rt.pool, NB_BENCH_STEP, err));
    NB_TRY(nb_kv_pool_init(&b->kv, c, kv, pages_wanted(b), err));
    NB_TRY(NB_ALLOC(&b->seqs, n_seqs, err));
    for (int64_t i = 0; i < n_seqs; i++)
        NB_TRY(nb_kv_seq_init(&b->seqs[i], &b->kv, w->n_ctx, err));
    NB_TRY(NB_ALLOC(&b->inputs, n_seqs, err));
    NB_TRY(NB_ALLOC(&b->next, n_seqs, err));
    NB_TRY(NB_ALLOC(&b->hidden, n_seqs * c->d_model, err));
    NB_TRY(NB_ALLOC(&b->logits, n_seqs * c->vocab_size, err));
    NB_TRY(NB_ALLOC(&b->times, w->repeat, err));
    NB_TRY(NB_ALLOC(&b->rows, w->depths.n, err));
    const int64_t n_tokens = w->n_ctx + NB_BENCH_STEP;
    NB_TRY(NB_ALLOC(&b->tokens, n_tokens, err));
    for (int64_t i = 0; i < n_tokens; i++) {
        uint32_t words[4];
        nb_philox(1, 0, (uint64_t)i, words);
        b->tokens[i] = (int32_t)(words[0] % (uint64_t)c->vocab_size);
    }
    return NB_OK;
}

void nb_bench_free(nb_bench *b)
{
    for (int i = 0; b->seqs != NULL && i < b->n_seqs; i++)
        nb_kv_seq_free(&b->seqs[i]);
    nb_free(b->seqs);
    nb_kv_pool_free(&b->kv);
    nb_work_free(&b->work);
    nb_free(b->inputs);
    nb_free(b->next);
    nb_free(b->hidden);
    nb_free(b->logits);
    nb_free(b->times);
    nb_free(b->rows);
    nb_free(b->tokens);
    nb_opened_close(&b->o);
    nb_runtime_close(&b->rt);
    *b = (nb_bench){0};
}

/* ---- steps ---- */

static nb_status step(nb_bench *b, int64_t n_inputs, nb_err *err)
{
    NB_TRY(nb_forward(&b->work, b->inputs, n_inputs, b->hidden, err));
    return nb_interrupted() ? nb_fail_interrupted(err) : NB_OK;
}

/* Feeds sequence 0 with tokens [from, from + n) in steps of `at_once`; the last one's logits are
 * computed. */
static nb_status feed(nb_bench *b, int64_t from, int64_t n, int64_t at_once, nb_err *err)
{
    for (int64_t i = 0; i < n; i += at_once) {
        const int64_t count = n - i < at_once ? n - i : at_once;
        b->inputs[0] =
            (nb_step_input){&b->seqs[0], b->tokens + from + i, count, i + count == n ? 1 : 0};
        NB_TRY(step(b, 1, err));
    }
    nb_logits(&b->work, b->hidden, 1, b->logits);
    return NB_OK;
}

/* n tokens of each of the first n_seqs sequences, one a step, each the likeliest after the last. */
static nb_status generate(nb_bench *b, int64_t n_seqs, int64_t n, nb_err *err)
{
    const int64_t vocab = b->o.model.config.vocab_size;
    for (int64_t i = 0; i < n_seqs; i++)
        b->next[i] = b->tokens[b->seqs[i].n + i];
    for (int64_t i = 0; i < n; i++) {
        for (int64_t s = 0; s < n_seqs; s++)
            b->inputs[s] = (nb_step_input){&b->seqs[s], &b->next[s], 1, 1};
        NB_TRY(step(b, n_seqs, err));
        nb_logits(&b->work, b->hidden, n_seqs, b->logits);
        for (int64_t s = 0; s < n_seqs; s++)
            b->next[s] = (int32_t)b->rt.kernels.argmax(b->logits + s * vocab, vocab);
    }
    return NB_OK;
}

static void forget(nb_bench *b, int64_t n_seqs, int64_t n)
{
    for (int64_t i = 0; i < n_seqs; i++) {
        nb_kv_seq_truncate(&b->seqs[i], n);
        b->seqs[i].pinned = n; /* runs begin there again and again */
    }
}

/* ---- checking ---- */

static nb_status check_finite(const nb_bench *b, nb_err *err)
{
    for (int64_t i = 0; i < b->o.model.config.vocab_size; i++) {
        if (!isfinite(b->logits[i]))
            return nb_fail(err, NB_DATA, "%s: the model's logits are not finite",
                           nb_store_path(b->o.store));
    }
    return NB_OK;
}

static nb_status disagree(const char *what, nb_err *err)
{
    return nb_fail(err, NB_DATA, "%s disagree: this is a fault of nibble", what);
}

/* Tokens that sequence s of the check takes in each of its steps: prompts of 1 to 9 tokens, then a
 * page more for some of them, so that pages of a sequence do not lie in a row, then one more each.
 */
#define CHECK_STEPS 3
static int64_t check_count(int64_t s, int step)
{
    return step == 0 ? 1 + s % CHECK_TOKENS : step == 1 && s % 4 == 0 ? NB_KV_PAGE : 1;
}

static nb_status check_batch(nb_bench *b, nb_err *err)
{
    const int64_t vocab = b->o.model.config.vocab_size;
    const int64_t n = b->n_seqs < CHECK_MOST ? b->n_seqs : CHECK_MOST;
    forget(b, n, 0);
    for (int i = 0; i < CHECK_STEPS; i++) {
        for (int64_t s = 0; s < n; s++)
            b->inputs[s] = (nb_step_input){&b->seqs[s], b->tokens + s + b->seqs[s].n,
                                           check_count(s, i), i == CHECK_STEPS - 1};
        NB_TRY(step(b, n, err));
    }
    nb_logits(&b->work, b->hidden, n, b->logits);
    const int64_t looked_at[] = {0, n / 2, n - 1};
    uint64_t hash[3];
    for (int i = 0; i < 3; i++)
        hash[i] = nb_logits_hash(b->logits + looked_at[i] * vocab, vocab, 0);
    forget(b, n, 0);
    for (int i = 0; i < 3; i++) {
        const int64_t s = looked_at[i];
        int64_t length = 0;
        for (int at = 0; at < CHECK_STEPS; at++)
            length += check_count(s, at);
        forget(b, 1, 0);
        NB_TRY(feed(b, s, length, NB_BENCH_STEP, err));
        if (nb_logits_hash(b->logits, vocab, 0) != hash[i])
            return disagree("a batch and its sequences alone", err);
    }
    return NB_OK;
}

nb_status nb_bench_check(nb_bench *b, nb_err *err)
{
    const int64_t vocab = b->o.model.config.vocab_size;
    uint64_t hash[2];
    for (int i = 0; i < 2; i++) {
        forget(b, 1, 0);
        NB_TRY(feed(b, 0, CHECK_TOKENS, i == 0 ? CHECK_TOKENS : 1, err));
        hash[i] = nb_logits_hash(b->logits, vocab, 0);
        NB_TRY(check_finite(b, err));
    }
    if (hash[0] != hash[1])
        return disagree("prefill and decode", err);
    NB_TRY(check_batch(b, err));
    forget(b, 1, 0);
    return NB_OK;
}

/* ---- timing ---- */

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static nb_speed speed_of(double *seconds, int64_t n, int64_t n_tokens)
{
    qsort(seconds, (size_t)n, sizeof *seconds, compare_doubles);
    const double middle = n % 2 != 0 ? seconds[n / 2] : 0.5 * (seconds[n / 2 - 1] + seconds[n / 2]);
    return (nb_speed){(double)n_tokens / middle, (double)n_tokens / seconds[n - 1],
                      (double)n_tokens / seconds[0]};
}

/* A prompt of n tokens (no sequences), or n tokens of each of n_seqs sequences, after `context`
 * tokens that the caches hold already. */
typedef struct {
    int64_t n_seqs, context, n;
} timed;

static nb_status run(nb_bench *b, const timed *t, int64_t n, double *seconds, nb_err *err)
{
    forget(b, t->n_seqs > 0 ? t->n_seqs : 1, t->context);
    const double start = nb_clock();
    NB_TRY(t->n_seqs > 0 ? generate(b, t->n_seqs, n, err)
                         : feed(b, t->context, n, NB_BENCH_STEP, err));
    *seconds = nb_clock() - start;
    return NB_OK;
}

/* The first run warms up and is not counted; it may be short, since the check ran before. */
static nb_status time_runs(nb_bench *b, const timed *t, nb_speed *out, nb_err *err)
{
    const int64_t enough = t->n_seqs > 0 ? 4 : 128;
    NB_TRY(run(b, t, t->n < enough ? t->n : enough, &b->times[0], err));
    const double start = nb_clock();
    int64_t n = 0;
    while (n < b->wants.repeat && (n < 2 || nb_clock() - start < b->wants.patience))
        NB_TRY(run(b, t, t->n, &b->times[n++], err));
    *out = speed_of(b->times, n, t->n * (t->n_seqs > 0 ? t->n_seqs : 1));
    return NB_OK;
}

/* Sequence i gets pages of its own with what sequence 0 has in its: as if it had been fed the same
 * tokens, in no time. */
static nb_status copy_context(nb_bench *b, int64_t i, nb_err *err)
{
    const nb_kv_seq *from = &b->seqs[0];
    nb_kv_seq *to = &b->seqs[i];
    const size_t bytes = b->kv.page_bytes;
    nb_kv_seq_truncate(to, 0);
    NB_TRY(nb_kv_seq_reserve(to, from->n, err));
    for (int64_t p = 0; p < to->n_table; p++)
        memcpy(b->kv.arena + (size_t)to->table[p] * bytes,
               b->kv.arena + (size_t)from->table[p] * bytes, bytes);
    const int64_t n_sealed = to->n_sealed > from->n_sealed ? to->n_sealed : from->n_sealed;
    for (int64_t p = 0; to->recent != NULL && p < to->n_table; p++)
        if (!nb_kv_sees_sealed(n_sealed, p)) /* the others are not looked at */
            memcpy(b->kv.recent + (size_t)to->recent[p] * b->kv.recent_bytes,
                   b->kv.recent + (size_t)from->recent[p] * b->kv.recent_bytes, b->kv.recent_bytes);
    to->n = from->n;
    return NB_OK;
}

static nb_status measure_batches(nb_bench *b, nb_bench_row *row, nb_out *out, nb_progress *progress,
                                 int64_t *n_done, nb_err *err)
{
    const nb_bench_wants *w = &b->wants;
    const int64_t context = row->depth + w->batch_prompt;
    forget(b, 1, row->depth);
    NB_TRY(feed(b, row->depth, w->batch_prompt, NB_BENCH_STEP, err));
    int64_t n_ready = 1;
    for (int i = 0; i < w->batches.n; i++) {
        const int64_t n = w->batches.of[i];
        nb_progress_update(out, progress, (*n_done)++);
        if (!nb_bench_fits(b, n, row->depth)) {
            nb_out_warn(out, "no batch of %lld at depth %lld: its caches need %s, and %s are free",
                        (long long)n, (long long)row->depth,
                        nb_human_bytes(nb_bench_kv_bytes(b, n, context + w->batch_gen)).text,
                        nb_human_bytes(b->kv_room).text);
            continue;
        }
        forget(b, n_ready, context);
        for (; n_ready < n; n_ready++)
            NB_TRY(copy_context(b, n_ready, err));
        NB_TRY(time_runs(b, &(timed){n, context, w->batch_gen}, &row->batch[i], err));
    }
    for (int64_t i = 1; i < n_ready; i++)
        nb_kv_seq_truncate(&b->seqs[i], 0);
    return NB_OK;
}

nb_status nb_bench_measure(nb_bench *b, nb_out *out, nb_err *err)
{
    const nb_bench_wants *w = &b->wants;
    nb_progress progress;
    int64_t n_done = 0;
    nb_progress_begin(out, &progress, "timing", "figures", w->depths.n * (2 + w->batches.n));
    for (int d = 0; d < w->depths.n; d++) {
        nb_bench_row *row = &b->rows[d];
        row->depth = w->depths.of[d];
        forget(b, 1, 0);
        if (row->depth > 0)
            NB_TRY(feed(b, 0, row->depth, NB_BENCH_STEP, err));
        nb_progress_update(out, &progress, n_done++);
        NB_TRY(time_runs(b, &(timed){0, row->depth, w->prompt}, &row->prefill, err));
        nb_progress_update(out, &progress, n_done++);
        NB_TRY(time_runs(b, &(timed){1, row->depth, w->gen}, &row->decode, err));
        if (w->batches.n > 0)
            NB_TRY(measure_batches(b, row, out, &progress, &n_done, err));
    }
    nb_progress_end(out, &progress);
    return NB_OK;
}
