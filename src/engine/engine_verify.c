/* See engine_verify.h. */
#include "engine/engine_verify.h"

#include <pthread.h>

#define MORE_TOKENS 40 /* of an answer: more than a block, so that sequences grow */

const char *nb_engine_way_name(nb_engine_way way)
{
    static const char *const names[NB_N_ENGINE_WAYS] = {"wide", "narrow", "shared", "pressed"};
    return names[way];
}

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int64_t n_open;
    bool stopped;
    bool (*go_on)(void *context);
    void *context;
    uint64_t hash;
    int64_t n_failed;
} verifying;

static bool hear(void *context, const nb_engine_event *e)
{
    verifying *v = context;
    pthread_mutex_lock(&v->mutex);
    if ((e->n_made == 1 && e->id >= 0) || (e->n_made == 0 && e->finish == NB_FINISH_LENGTH))
        v->hash ^= e->logits_hash;
    v->n_failed += e->finish == NB_FINISH_ERROR;
    if (!v->stopped && v->go_on != NULL)
        v->stopped = !v->go_on(v->context);
    const bool more = !v->stopped;
    pthread_mutex_unlock(&v->mutex);
    return more;
}

static void let_go(void *context)
{
    verifying *v = context;
    pthread_mutex_lock(&v->mutex);
    v->n_open--;
    pthread_cond_signal(&v->changed);
    pthread_mutex_unlock(&v->mutex);
}

static nb_engine_setup setup_of(const nb_engine_setup *base, nb_engine_way way, int64_t n)
{
    nb_engine_setup s = *base;
    s.n_ctx = n + MORE_TOKENS < base->model->n_ctx ? n + MORE_TOKENS : base->model->n_ctx;
    s.max_queue = n;
    s.step_tokens = 512;
    s.max_seqs = 32;
    s.share_prefixes = way == NB_ENGINE_WAY_SHARED;
    if (way == NB_ENGINE_WAY_NARROW) {
        s.step_tokens = 7;
        s.max_seqs = 3;
    }
    const int64_t one = nb_kv_pages_for(s.n_ctx);
    s.n_blocks = way == NB_ENGINE_WAY_PRESSED ? one + (one + 1) / 2 : one * s.max_seqs;
    return s;
}

static nb_status ask(nb_engine *e, const nb_engine_setup *s, verifying *v, const int32_t *tokens,
                     int64_t n, nb_err *err)
{
    uint64_t id;
    bool busy;
    const int64_t room = s->n_ctx - n;
    const nb_engine_request r = {.prompt = tokens,
                                 .n_prompt = n,
                                 .n = 1,
                                 .no_answer = room == 0,
                                 .options = {.max_tokens = room < MORE_TOKENS ? room : MORE_TOKENS,
                                             .ignore_eos = true,
                                             .hash_logits = true},
                                 .on_event = hear,
                                 .release = let_go,
                                 .context = v};
    pthread_mutex_lock(&v->mutex);
    v->n_open++;
    pthread_mutex_unlock(&v->mutex);
    const nb_status status = nb_engine_submit(e, &r, &id, &busy, err);
    if (status != NB_OK)
        let_go(v);
    return status;
}

static nb_status run(nb_engine *e, const nb_engine_setup *s, verifying *v, const int32_t *tokens,
                     int64_t n, nb_err *err)
{
    nb_status status = NB_OK;
    for (int64_t i = 1; i <= n && status == NB_OK; i++)
        status = ask(e, s, v, tokens, i, err);
    pthread_mutex_lock(&v->mutex);
    v->stopped = v->stopped || status != NB_OK;
    while (v->n_open > 0)
        pthread_cond_wait(&v->changed, &v->mutex);
    pthread_mutex_unlock(&v->mutex);
    if (status == NB_OK && v->stopped)
        return nb_fail(err, NB_INTERRUPTED, "interrupted");
    if (status == NB_OK && v->n_failed > 0)
        return nb_fail(err, NB_DATA, "the engine could not answer %lld of %lld requests",
                       (long long)v->n_failed, (long long)n);
    return status;
}

nb_status nb_engine_verify(const nb_engine_setup *base, nb_engine_way way, const int32_t *tokens,
                           int64_t n, bool (*go_on)(void *context), void *context, uint64_t *hash,
                           int64_t *n_preempted, int64_t *n_found, nb_err *err)
{
    const nb_engine_setup s = setup_of(base, way, n);
    verifying v = {.go_on = go_on, .context = context};
    nb_engine *e;
    nb_engine_stats stats;
    NB_TRY(nb_engine_open(&e, &s, err));
    pthread_mutex_init(&v.mutex, NULL);
    pthread_cond_init(&v.changed, NULL);
    const nb_status status = run(e, &s, &v, tokens, n, err);
    nb_engine_read_stats(e, &stats);
    nb_engine_close(e);
    pthread_cond_destroy(&v.changed);
    pthread_mutex_destroy(&v.mutex);
    *hash = v.hash;
    *n_preempted = stats.n_preemptions;
    *n_found = stats.cached_tokens;
    return status;
}
