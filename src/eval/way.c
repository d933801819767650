/* See way.h. The others of a batch are random texts at positions of their own: each takes a token a
 * step, some take two in their first, and one that is full starts again. */
#include "eval/way.h"

#include "base/rng.h"

#include <stdio.h>
#include <string.h>

#define HEAD_ROWS    64 /* rows of logits that are held at a time */
#define OTHER_TOKENS 2  /* most tokens that another sequence takes in a step */
#define OTHER_SEED   2

/* ---- the caller's floating-point environment ---- */

#if defined(__x86_64__)
#include <immintrin.h>
static uint64_t host_env(void)
{
    return _mm_getcsr() & ~0x3fu; /* without the sticky flags */
}
static void host_set(uint64_t env)
{
    _mm_setcsr((unsigned)env);
}
static const uint64_t flushing = 0x8040; /* flush-to-zero, denormals-are-zero */
#elif defined(__aarch64__)
static uint64_t host_env(void)
{
    uint64_t env;
    __asm__ volatile("mrs %0, fpcr" : "=r"(env));
    return env;
}
static void host_set(uint64_t env)
{
    __asm__ volatile("msr fpcr, %0" ::"r"(env));
}
static const uint64_t flushing = 1u << 24; /* FZ */
#else
static uint64_t host_env(void)
{
    return 0;
}
static void host_set(uint64_t env)
{
    (void)env;
}
static const uint64_t flushing = 0;
#endif

/* ---- one run ---- */

typedef struct {
    const nb_way *way;
    const nb_way_job *job;
    nb_kernels kernels;
    nb_pool *pool;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seqs[NB_WAY_BATCH_MAX];
    int32_t other[NB_WAY_BATCH_MAX][OTHER_TOKENS];
    uint64_t n_drawn[NB_WAY_BATCH_MAX]; /* tokens of each other so far */
    float *hidden;                      /* of a step's wanted rows */
    float *states;                      /* [n_tokens][d_model], unless the way decodes */
    float *logits;                      /* [HEAD_ROWS][vocab] */
    int64_t n_done;
    uint64_t *hash;
} run;

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int text_at(const nb_way *way)
{
    return way->batch / 2;
}

/* Tokens of the next step. */
static int64_t next_count(const run *r)
{
    const int64_t left = r->job->n_tokens - r->n_done;
    if (r->n_done == 0 && r->way->lead > 0)
        return min64(r->way->lead, left);
    return r->way->cut == 0 ? left : min64(r->way->cut, left);
}

static int64_t longest_step(const nb_way *way, int64_t n_tokens)
{
    return way->cut == 0 ? n_tokens : min64(way->lead > way->cut ? way->lead : way->cut, n_tokens);
}

static nb_status open_run(run *r, nb_err *err)
{
    const nb_way *way = r->way;
    const nb_model *m = r->job->model;
    const int64_t n = r->job->n_tokens, d = m->config.d_model;
    const int64_t others = way->batch - 1, pages = nb_kv_pages_for(m->n_ctx);
    int64_t rows = longest_step(way, n) + OTHER_TOKENS * others;
    rows = rows < HEAD_ROWS ? HEAD_ROWS : rows;
    nb_kernels_init(&r->kernels, way->mask);
    NB_TRY(nb_pool_open(&r->pool, way->threads, err));
    NB_TRY(nb_work_init(&r->work, m, &r->kernels, r->pool, rows, err));
    NB_TRY(nb_kv_pool_init(&r->kv, &m->config, r->job->kv, way->batch * pages, err));
    for (int s = 0; s < way->batch; s++)
        NB_TRY(nb_kv_seq_init(&r->seqs[s], &r->kv, m->n_ctx, err));
    NB_TRY(nb_alloc((void **)&r->hidden, (size_t)rows, (size_t)d * sizeof(float), err));
    NB_TRY(nb_alloc((void **)&r->states, (size_t)n, (size_t)d * sizeof(float), err));
    return nb_alloc((void **)&r->logits, HEAD_ROWS, (size_t)m->config.vocab_size * sizeof(float),
                    err);
}

static void close_run(run *r)
{
    for (int s = 0; s < NB_WAY_BATCH_MAX; s++)
        nb_kv_seq_free(&r->seqs[s]);
    nb_kv_pool_free(&r->kv);
    nb_work_free(&r->work);
    nb_pool_close(r->pool);
    nb_free(r->hidden);
    nb_free(r->states);
    nb_free(r->logits);
}

static nb_step_input other_input(run *r, int s)
{
    nb_kv_seq *seq = &r->seqs[s];
    int64_t n = r->n_drawn[s] == 0 ? 1 + s % OTHER_TOKENS : 1;
    if (seq->n + n > r->job->model->n_ctx) {
        nb_kv_seq_truncate(seq, 0);
        n = 1;
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t w[4];
        nb_philox(OTHER_SEED, (uint64_t)s, r->n_drawn[s]++, w);
        r->other[s][i] = (int32_t)(w[0] % (uint64_t)r->job->model->config.vocab_size);
    }
    /* A sequence whose states nobody wants is rarer than one that decodes, and has to work. */
    return (nb_step_input){seq, r->other[s], n, r->way->decode ? 1 : s % 2};
}

/* Calls the forward pass as a host that may have set flush-to-zero; it must find that again. */
static nb_status host_forward(run *r, const nb_step_input *inputs, nb_err *err)
{
    const uint64_t before = host_env(), host = r->way->flush ? before | flushing : before;
    if (host != before)
        host_set(host);
    nb_status s = nb_forward(&r->work, inputs, r->way->batch, r->hidden, err);
    if (s == NB_OK && host_env() != host)
        s = nb_fail(err, NB_DATA, "the caller's floating-point environment was changed");
    if (host != before)
        host_set(before);
    return s;
}

static nb_status host_logits(run *r, const float *states, int64_t n_rows, nb_err *err)
{
    const uint64_t before = host_env(), host = r->way->flush ? before | flushing : before;
    if (host != before)
        host_set(host);
    nb_logits(&r->work, states, n_rows, r->logits);
    const bool kept = host_env() == host;
    if (host != before)
        host_set(before);
    return kept ? NB_OK
                : nb_fail(err, NB_DATA, "the caller's floating-point environment was changed");
}

/* The head on n_rows states, of which [first, first + count) are the text's tokens from `token`. */
static nb_status run_head(run *r, const float *states, int64_t n_rows, int64_t first, int64_t count,
                          int64_t token, nb_err *err)
{
    const nb_config *c = &r->job->model->config;
    for (int64_t i = 0; i < n_rows; i += HEAD_ROWS) {
        const int64_t n = min64(HEAD_ROWS, n_rows - i);
        NB_TRY(host_logits(r, states + i * c->d_model, n, err));
        for (int64_t row = i; row < i + n; row++) {
            if (row < first || row >= first + count)
                continue;
            const int64_t t = token + row - first;
            r->hash[t] =
                nb_logits_hash(r->logits + (row - i) * c->vocab_size, c->vocab_size, (uint64_t)t);
        }
    }
    return NB_OK;
}

static nb_status run_step(run *r, nb_err *err)
{
    const int64_t d = r->job->model->config.d_model, count = next_count(r);
    const int text = text_at(r->way);
    nb_step_input inputs[NB_WAY_BATCH_MAX];
    int64_t n_rows = 0, first = 0;
    for (int s = 0; s < r->way->batch; s++) {
        if (s == text) {
            first = n_rows;
            inputs[s] = (nb_step_input){&r->seqs[s], r->job->tokens + r->n_done, count, count};
        } else {
            inputs[s] = other_input(r, s);
        }
        n_rows += inputs[s].n_out;
    }
    NB_TRY(host_forward(r, inputs, err));
    if (r->way->decode)
        NB_TRY(run_head(r, r->hidden, n_rows, first, count, r->n_done, err));
    else
        memcpy(r->states + r->n_done * d, r->hidden + first * d,
               (size_t)(count * d) * sizeof *r->states);
    r->n_done += count;
    if (r->job->go_on != NULL && !r->job->go_on(r->job->context))
        return nb_fail(err, NB_INTERRUPTED, "interrupted");
    return NB_OK;
}

static nb_status run_all(run *r, nb_probe *probe, nb_err *err)
{
    const int64_t n = r->job->n_tokens;
    NB_TRY(open_run(r, err));
    if (probe != NULL) {
        NB_TRY(nb_probe_init(probe, r->job->model->config.n_layers, n, text_at(r->way), err));
        r->work.watcher = nb_probe_watcher(probe);
    }
    while (r->n_done < n)
        NB_TRY(run_step(r, err));
    return r->way->decode ? NB_OK : run_head(r, r->states, n, 0, n, 0, err);
}

nb_status nb_way_run(const nb_way *way, const nb_way_job *job, nb_probe *probe, uint64_t *hash,
                     nb_err *err)
{
    run *r;
    NB_TRY(NB_ALLOC(&r, 1, err));
    r->way = way;
    r->job = job;
    r->hash = hash;
    const nb_status s = run_all(r, probe, err);
    close_run(r);
    nb_free(r);
    return s;
}

nb_way_text nb_way_describe(const nb_way *way)
{
    char cut[64], others[32] = "alone";
    if (way->cut == 0)
        snprintf(cut, sizeof cut, "in one piece");
    else if (way->decode)
        snprintf(cut, sizeof cut, "decoded");
    else
        snprintf(cut, sizeof cut, "cuts of %lld", (long long)way->cut);
    if (way->lead > 0 && way->cut != 0) {
        const size_t n = strlen(cut);
        snprintf(cut + n, sizeof cut - n, " after %lld", (long long)way->lead);
    }
    if (way->batch > 1)
        snprintf(others, sizeof others, "beside %d other%s", way->batch - 1,
                 way->batch > 2 ? "s" : "");
    nb_way_text out;
    snprintf(out.text, sizeof out.text, "%s, %d thread%s, %s, %s%s",
             way->isa != NULL ? way->isa : nb_isa_name(nb_cpu_isa() & way->mask), way->threads,
             way->threads == 1 ? "" : "s", cut, others,
             way->flush ? ", flush-to-zero in the caller" : "");
    return out;
}
