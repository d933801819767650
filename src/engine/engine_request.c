/* Requests on their way into the engine: checked and copied on the caller's thread. */
#include "engine/engine_parts.h"

#include "base/clock.h"

#include <assert.h>
#include <string.h>

/* ---- copies ---- */

static nb_status keep(nb_engine_request_state *r, const void **at, size_t bytes, nb_err *err)
{
    void *copy;
    assert(r->n_owned < (int)(sizeof r->owned / sizeof *r->owned));
    if (*at == NULL)
        return NB_OK;
    NB_TRY(nb_alloc(&copy, bytes, 1, err));
    memcpy(copy, *at, bytes);
    r->owned[r->n_owned++] = copy;
    *at = copy;
    return NB_OK;
}

/* Stop strings and pointers to them, in one piece. */
static nb_status keep_stops(nb_engine_request_state *r, nb_err *err)
{
    nb_generate_options *o = &r->asked.options;
    size_t bytes = (size_t)o->n_stops * sizeof *o->stops;
    void *copy;
    for (int i = 0; i < o->n_stops; i++)
        bytes += strlen(o->stops[i]) + 1;
    NB_TRY(nb_alloc(&copy, bytes, 1, err));
    r->owned[r->n_owned++] = copy;
    const char **list = copy;
    char *text = (char *)(list + o->n_stops);
    for (int i = 0; i < o->n_stops; i++) {
        list[i] = strcpy(text, o->stops[i]);
        text += strlen(text) + 1;
    }
    o->stops = list;
    return NB_OK;
}

static nb_status copy_all(nb_engine_request_state *r, nb_err *err)
{
    nb_engine_request *q = &r->asked;
    nb_generate_options *o = &q->options;
    NB_TRY(keep(r, (const void **)&q->prompt, (size_t)q->n_prompt * sizeof *q->prompt, err));
    NB_TRY(keep(r, (const void **)&o->stop_ids, (size_t)o->n_stop_ids * sizeof *o->stop_ids, err));
    NB_TRY(keep(r, (const void **)&o->sampling.bias,
                (size_t)o->sampling.n_bias * sizeof *o->sampling.bias, err));
    NB_TRY(keep(r, &q->salt, q->salt_len, err));
    if (o->json_schema != NULL)
        NB_TRY(keep(r, (const void **)&o->json_schema, strlen(o->json_schema) + 1, err));
    return keep_stops(r, err);
}

void nb_engine_request_free(nb_engine_request_state *r)
{
    for (int64_t i = 0; r->choices != NULL && i < r->asked.n; i++) {
        nb_choice_free(&r->choices[i].choice);
        nb_ngram_free(&r->choices[i].ngram);
    }
    nb_choosing_free(&r->choosing);
    nb_free(r->choices);
    nb_free(r->sum);
    nb_free(r->pooled);
    for (int i = 0; i < r->n_owned; i++)
        nb_free(r->owned[i]);
    nb_free(r);
}

/* ---- checks ---- */

static nb_status check_counts(const nb_engine *e, const nb_engine_request *q, nb_err *err)
{
    const int64_t vocab = e->setup.model->config.vocab_size;
    if (q->n < 1 || q->n > NB_SCHED_MAX_SAMPLES)
        return nb_fail(err, NB_USAGE, "n is %lld: it must lie in [1, %d]", (long long)q->n,
                       NB_SCHED_MAX_SAMPLES);
    if (q->options.n_stops < 0 || q->options.n_stops > NB_MAX_STOPS || q->options.n_stop_ids < 0 ||
        q->options.n_stop_ids > NB_MAX_STOPS)
        return nb_fail(err, NB_USAGE, "stop: there may be %d", NB_MAX_STOPS);
    if (q->options.sampling.n_bias < 0 || q->options.sampling.n_bias > vocab)
        return nb_fail(err, NB_USAGE, "logit_bias: there may be one for each of %lld ids",
                       (long long)vocab);
    if (q->options.max_tokens < 0)
        return nb_fail(err, NB_USAGE, "max_tokens is %lld: it must not be negative",
                       (long long)q->options.max_tokens);
    if (q->priority < -NB_SCHED_MAX_PRIORITY || q->priority > NB_SCHED_MAX_PRIORITY)
        return nb_fail(err, NB_USAGE, "priority is %lld: it must lie in [-%d, %d]",
                       (long long)q->priority, NB_SCHED_MAX_PRIORITY, NB_SCHED_MAX_PRIORITY);
    if (q->n_prompt < 1)
        return nb_fail(err, NB_DATA, "the prompt has no tokens: there is nothing to continue");
    for (int64_t i = 0; i < q->n_prompt; i++) {
        if (q->prompt[i] < 0 || q->prompt[i] >= vocab)
            return nb_fail(err, NB_DATA, "token id %d is outside the vocabulary of %lld",
                           q->prompt[i], (long long)vocab);
    }
    return NB_OK;
}

/* Positions of prompt and answer, the last token of which takes none. */
static nb_status find_room(const nb_engine *e, nb_engine_request_state *r, nb_err *err)
{
    const nb_engine_request *q = &r->asked;
    const int64_t n_ctx = e->setup.n_ctx, cells = e->setup.n_blocks * NB_KV_PAGE;
    const int64_t most = n_ctx < cells ? n_ctx : cells;
    const int64_t asked = q->no_answer ? 0 : q->options.max_tokens;
    if (q->n_prompt + asked > n_ctx)
        return nb_fail(err, NB_LIMIT,
                       "the prompt has %lld tokens, %lld are to follow, and the context holds %lld",
                       (long long)q->n_prompt, (long long)asked, (long long)n_ctx);
    if (q->n_prompt + asked > most)
        return nb_fail(err, NB_LIMIT,
                       "%lld tokens need more than the %lld positions of the KV cache",
                       (long long)(q->n_prompt + asked), (long long)cells);
    r->max_new = q->no_answer ? 0 : asked > 0 ? asked : most - q->n_prompt;
    if (r->max_new == 0 && !q->no_answer)
        return nb_fail(err, NB_LIMIT,
                       "the prompt has %lld tokens and the context holds %lld: no room for an "
                       "answer",
                       (long long)q->n_prompt, (long long)most);
    return NB_OK;
}

static nb_status make_json_tokens(nb_engine *e, nb_err *err)
{
    nb_status s = NB_OK;
    pthread_mutex_lock(&e->mutex);
    if (e->json.tokenizer == NULL && e->setup.tokenizer != NULL)
        s = nb_json_tokens_init(&e->json, e->setup.tokenizer, e->n_ids, err);
    pthread_mutex_unlock(&e->mutex);
    return s;
}

/* Guesses begin with what the prompt repeats. */
static nb_status start_guessing(const nb_engine *e, nb_engine_choice *c, nb_err *err)
{
    const nb_engine_request_state *r = c->of;
    if (r->asked.options.n_guess == 0 || e->setup.draft != NULL)
        return NB_OK;
    NB_TRY(nb_ngram_init(&c->ngram, r->asked.n_prompt + r->max_new, err));
    for (int64_t i = 0; i < r->asked.n_prompt; i++)
        nb_ngram_push(&c->ngram, r->asked.prompt[i]);
    return NB_OK;
}

static nb_status make(nb_engine *e, const nb_engine_request *request, nb_engine_request_state **out,
                      nb_err *err)
{
    nb_engine_request_state *r;
    NB_TRY(check_counts(e, request, err));
    NB_TRY(NB_ALLOC(&r, 1, err));
    r->asked = *request;
    if (r->asked.options.n_guess == 0)
        r->asked.options.n_guess = e->setup.n_guess;
    r->submitted = nb_clock();
    *out = r;
    NB_TRY(copy_all(r, err));
    NB_TRY(find_room(e, r, err));
    NB_TRY(nb_pooling_init(r, e->setup.model->config.d_model, err));
    if (r->asked.options.json_schema != NULL)
        NB_TRY(make_json_tokens(e, err));
    NB_TRY(nb_choosing_init(&r->choosing, &r->asked.options, e->setup.tokenizer, &e->json, &e->ends,
                            e->n_ids, err));
    NB_TRY(NB_ALLOC(&r->choices, r->asked.n, err));
    for (int64_t i = 0; i < r->asked.n; i++) {
        nb_engine_choice *c = &r->choices[i];
        c->of = r;
        c->number = i;
        NB_TRY(nb_choice_init(&c->choice, &r->choosing, i, r->asked.prompt, r->asked.n_prompt,
                              r->max_new, err));
        NB_TRY(start_guessing(e, c, err));
    }
    r->n_open = r->asked.n;
    return NB_OK;
}

/* ---- in, and out again ---- */

nb_status nb_engine_submit(nb_engine *e, const nb_engine_request *request, uint64_t *id, bool *busy,
                           nb_err *err)
{
    nb_engine_request_state *r = NULL;
    *busy = false;
    const nb_status s = make(e, request, &r, err);
    if (s != NB_OK) {
        if (r != NULL)
            nb_engine_request_free(r);
        return s;
    }
    pthread_mutex_lock(&e->mutex);
    const bool full = atomic_load(&e->n_claimed) + r->asked.n > e->max_claimed;
    *busy = full || e->draining;
    if (!*busy) {
        atomic_fetch_add(&e->n_claimed, r->asked.n);
        *id = r->id = ++e->next_id;
        *e->requests_end = r;
        e->requests_end = &r->next;
        e->any_news = true;
        pthread_cond_signal(&e->wake);
    }
    pthread_mutex_unlock(&e->mutex);
    if (!*busy)
        return NB_OK;
    nb_engine_request_free(r);
    return full ? nb_fail(err, NB_LIMIT, "%lld sequences wait and run already",
                          (long long)e->max_claimed)
                : nb_fail(err, NB_LIMIT, "no more requests are taken");
}

void nb_engine_abort(nb_engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->mutex);
    for (nb_engine_request_state *r = e->requests; r != NULL; r = r->next) {
        if (r->id == id)
            r->abort_asked = e->any_news = true;
    }
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->mutex);
}

void nb_engine_drain(nb_engine *e)
{
    pthread_mutex_lock(&e->mutex);
    e->draining = true;
    pthread_mutex_unlock(&e->mutex);
}
