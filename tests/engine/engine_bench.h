/* An engine over a tiny model, clients that take note of all they are told, and what the loop of
 * generate.h answers alone: what tests of engines share. */
#ifndef NB_TESTS_ENGINE_BENCH_H
#define NB_TESTS_ENGINE_BENCH_H

#include "opened.h"

#include "engine/engine.h"

#include <pthread.h>

static const tiny_model wordy = {.never_ends = true};
static const tiny_model ending = {0};

/* ---- what is told ---- */

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int n_open; /* requests that were not released */
    bool hold;  /* the engine's thread waits in the next event */
} desk;

/* One request, and all that was told of it. */
typedef struct {
    desk *desk;
    int64_t n;
    nb_tokens ids[8];
    nb_buf text[8], logprobs[8], prompt_logprobs;
    nb_finish finish[8];
    char stop[64];
    char error[200];
    int64_t n_prompt, n_cached, n_made[8];
    uint64_t logits_hash[8];
    int64_t priority;
    int n_events, abort_after; /* says no after so many events; 0: never */
    bool released, told_after_end;
} client;

static inline bool hear(void *context, const nb_engine_event *e)
{
    client *c = context;
    nb_err err = {0};
    const int64_t i = e->choice;
    pthread_mutex_lock(&c->desk->mutex);
    while (c->desk->hold)
        pthread_cond_wait(&c->desk->changed, &c->desk->mutex);
    c->told_after_end =
        c->told_after_end || c->released || i < 0 || i >= c->n || c->finish[i] != NB_NOT_FINISHED;
    c->n_events++;
    if (e->prompt_at >= 0) {
        if (e->logprobs != NULL)
            (void)nb_buf_put(&c->prompt_logprobs, e->logprobs, sizeof *e->logprobs, &err);
    } else if (e->id >= 0) {
        (void)nb_tokens_push(&c->ids[i], e->id, &err);
        if (e->logprobs != NULL)
            (void)nb_buf_put(&c->logprobs[i], e->logprobs, 3 * sizeof *e->logprobs, &err);
    }
    (void)nb_buf_put(&c->text[i], e->text, e->len, &err);
    c->finish[i] = e->finish;
    c->logits_hash[i] ^= e->logits_hash;
    c->n_prompt = e->n_prompt;
    c->n_cached = e->n_cached;
    c->n_made[i] = e->n_made;
    if (e->stop != NULL)
        snprintf(c->stop, sizeof c->stop, "%s", e->stop);
    if (e->error != NULL)
        snprintf(c->error, sizeof c->error, "%s", e->error);
    const bool more = c->abort_after == 0 || c->n_events < c->abort_after;
    pthread_mutex_unlock(&c->desk->mutex);
    return more;
}

static inline void let_go(void *context)
{
    client *c = context;
    pthread_mutex_lock(&c->desk->mutex);
    c->released = true;
    c->desk->n_open--;
    pthread_cond_broadcast(&c->desk->changed);
    pthread_mutex_unlock(&c->desk->mutex);
}

static inline void hold(desk *d, bool on)
{
    pthread_mutex_lock(&d->mutex);
    d->hold = on;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->mutex);
}

static inline void client_free(client *c)
{
    for (int64_t i = 0; i < c->n; i++) {
        nb_tokens_free(&c->ids[i]);
        nb_buf_free(&c->text[i]);
        nb_buf_free(&c->logprobs[i]);
    }
    nb_buf_free(&c->prompt_logprobs);
}

/* ---- an engine ---- */

typedef struct {
    opened o, draft;
    nb_engine *e;
    desk desk;
} bench;

/* With a draft model, unless its path is NULL. */
static inline void bench_open_draft(bench *b, const char *path, const char *draft,
                                    nb_engine_setup setup)
{
    nb_err err = {0};
    must_open(&b->o, path, &(opening){.threads = 2, .kv = setup.kv});
    memset(&b->draft, 0, sizeof b->draft);
    if (draft != NULL) {
        must_open(&b->draft, draft, &(opening){0});
        setup.draft = &b->draft.model;
    }
    setup.model = b->o.generator.setup.model;
    setup.kernels = b->o.generator.setup.kernels;
    setup.pool = b->o.generator.setup.pool;
    setup.tokenizer = b->o.generator.setup.tokenizer;
    setup.kv = b->o.generator.setup.kv;
    pthread_mutex_init(&b->desk.mutex, NULL);
    pthread_cond_init(&b->desk.changed, NULL);
    b->desk.n_open = 0;
    b->desk.hold = false;
    if (nb_engine_open(&b->e, &setup, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static inline void bench_open(bench *b, const char *path, nb_engine_setup setup)
{
    bench_open_draft(b, path, NULL, setup);
}

static inline void bench_close(bench *b)
{
    nb_engine_close(b->e);
    assert_int_equal(b->desk.n_open, 0);
    close_opened(&b->o);
    close_opened(&b->draft);
}

static inline nb_status ask(bench *b, client *c, const char *text,
                            const nb_generate_options *options, int64_t n, uint64_t *id, bool *busy,
                            nb_err *err)
{
    nb_tokens ids = {0};
    encode(&b->o, text, &ids);
    c->desk = &b->desk;
    c->n = n;
    for (int64_t i = 0; i < n; i++)
        c->finish[i] = NB_NOT_FINISHED;
    const nb_engine_request r = {.prompt = ids.ids,
                                 .n_prompt = ids.n,
                                 .options = *options,
                                 .n = n,
                                 .priority = c->priority,
                                 .prompt_logprobs = options->logprobs,
                                 .on_event = hear,
                                 .context = c,
                                 .release = let_go};
    pthread_mutex_lock(&b->desk.mutex);
    b->desk.n_open++;
    pthread_mutex_unlock(&b->desk.mutex);
    const nb_status s = nb_engine_submit(b->e, &r, id, busy, err);
    if (s != NB_OK) {
        pthread_mutex_lock(&b->desk.mutex);
        b->desk.n_open--;
        pthread_mutex_unlock(&b->desk.mutex);
    }
    nb_tokens_free(&ids);
    return s;
}

static inline uint64_t must_ask(bench *b, client *c, const char *text,
                                const nb_generate_options *options, int64_t n)
{
    uint64_t id = 0;
    bool busy;
    nb_err err = {0};
    if (ask(b, c, text, options, n, &id, &busy, &err) != NB_OK)
        fail_msg("%s", err.text);
    return id;
}

static inline void wait_for_all(bench *b)
{
    pthread_mutex_lock(&b->desk.mutex);
    while (b->desk.n_open > 0)
        pthread_cond_wait(&b->desk.changed, &b->desk.mutex);
    pthread_mutex_unlock(&b->desk.mutex);
}

/* What the loop of generate.h answers, alone and from a fresh start. */
static inline nb_generation alone_in(const char *path, nb_kv_format kv, const char *text,
                                     const nb_generate_options *options, int64_t choice)
{
    opened o;
    nb_err err = {0};
    nb_tokens ids = {0};
    nb_generation r;
    nb_generate_options mine = *options;
    mine.sampling.choice += (uint64_t)choice;
    must_open(&o, path, &(opening){.kv = kv});
    encode(&o, text, &ids);
    if (nb_generate(&o.generator, &ids, &mine, NULL, NULL, &r, &err) != NB_OK)
        fail_msg("%s", err.text);
    nb_tokens_free(&ids);
    close_opened(&o);
    return r;
}

static inline nb_generation alone(const char *path, const char *text,
                                  const nb_generate_options *options, int64_t choice)
{
    return alone_in(path, NB_KV_F16, text, options, choice);
}

/* The token that ended an answer is told of, but is no part of a generation. */
static inline void same(const client *c, int64_t i, const nb_generation *r)
{
    const int64_t more = r->reason == NB_STOP_EOS;
    assert_int_equal(c->ids[i].n, r->n_tokens + more);
    assert_int_equal(c->n_made[i], r->n_tokens + more);
    assert_memory_equal(c->ids[i].ids, r->tokens, (size_t)r->n_tokens * sizeof *r->tokens);
    assert_int_equal(c->text[i].len, r->text_len);
    if (r->text_len > 0)
        assert_memory_equal(c->text[i].data, r->text, r->text_len);
    assert_int_equal(c->finish[i], r->reason == NB_STOP_MAX_TOKENS || r->reason == NB_STOP_CONTEXT
                                       ? NB_FINISH_LENGTH
                                       : NB_FINISH_STOP);
    assert_false(c->told_after_end);
    assert_true(c->logits_hash[i] == r->logits_hash);
}

/* ---- what is asked ---- */

enum { N_TEXTS = 12 };
static const char *const texts[N_TEXTS] = {
    "the land and the inn",
    "the land and the inn: then and there, 1234",
    "the land and the inn: then and there, 1234, the land and the inn, the land and the inn again",
    "a hat that sings",
    "x",
    "the land and the inn: then and there, 1235",
    "there is no land and no inn in the north, and the hat that sings is none of mine",
    "nothing",
    "the land and the inn",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30",
    "in in in in in in in in in in in in in in in in in in in in in in in in in in in",
    "the hat",
};

static inline nb_generate_options options_of(int i)
{
    nb_generate_options o = {.max_tokens = 5 + 7 * i, .hash_logits = true};
    if (i % 3 == 1)
        o.sampling = (nb_sampling){.temperature = 1.1, .seed = (uint64_t)i, .top_k = 40};
    if (i % 3 == 2)
        o.sampling = (nb_sampling){
            .temperature = 0.8, .seed = 99, .repetition_penalty = 1.2, .frequency_penalty = 0.3};
    return o;
}

#endif
