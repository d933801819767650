/* A request from its first byte to its last: see serving.h. */
#define _GNU_SOURCE
#include "serve/serving.h"

#include "base/clock.h"
#include "serve/embeddings.h"
#include "serve/openai.h"
#include "serve/sglang.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

nb_call *nb_call_new(nb_server *s, struct MHD_Connection *connection, int fd)
{
    nb_call *c;
    nb_err err;
    if (NB_ALLOC(&c, 1, &err) != NB_OK)
        return NULL;
    if (NB_ALLOC(&c->head, 1, &err) != NB_OK) {
        nb_free(c);
        return NULL;
    }
    c->server = s;
    c->connection = connection;
    c->fd = fd;
    c->body.limit = s->setup.max_body;
    c->type = "application/json";
    c->moved = nb_clock();
    atomic_init(&c->n_refs, 1);
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

void nb_call_ref(nb_call *c)
{
    atomic_fetch_add(&c->n_refs, 1);
}

void nb_call_unref(nb_call *c)
{
    if (atomic_fetch_sub(&c->n_refs, 1) != 1)
        return;
    if (c->has_reply)
        nb_reply_free(&c->reply);
    nb_ask_free(&c->ask);
    atomic_fetch_sub(&c->server->body_bytes, (long long)c->body.cap);
    nb_buf_free(&c->body);
    nb_wire_free(&c->out);
    nb_free(c->parts);
    nb_free(c->head);
    pthread_mutex_destroy(&c->lock);
    nb_free(c);
}

void nb_call_wake(nb_call *c)
{
    if (!c->suspended)
        return;
    c->suspended = false;
    MHD_resume_connection(c->connection);
}

static nb_reject reason_of(const nb_problem *why)
{
    switch (why->http) {
    case 401:
    case 403:
        return NB_REJECT_AUTH;
    case 404:
    case 405:
        return NB_REJECT_NOT_FOUND;
    case 413:
        return NB_REJECT_TOO_LARGE;
    case 429:
        return NB_REJECT_OVERLOAD;
    default:
        return why->http >= 500 ? NB_REJECT_UNAVAILABLE : NB_REJECT_MALFORMED;
    }
}

void nb_call_refuse(nb_call *c)
{
    assert(c->head->why.http >= 400);
    nb_metrics_reject(&c->server->metrics, reason_of(&c->head->why));
    c->http = c->head->why.http;
    c->type = "application/json";
    c->is_static = false;
    nb_wire_clear(&c->out);
    nb_problem_write(&c->head->why, &c->out);
}

void nb_call_cancel(nb_call *c)
{
    /* Parts do not change once there: the engine is called without the lock. */
    pthread_mutex_lock(&c->lock);
    c->cancelled = true;
    const int64_t n = c->n_parts;
    pthread_mutex_unlock(&c->lock);
    for (int64_t i = 0; i < n; i++)
        nb_engine_abort(c->server->served->engine, c->parts[i].id);
}

/* ---- the engine's side ---- */

static bool on_event(void *context, const nb_engine_event *e)
{
    const nb_call_part *part = context;
    nb_call *c = part->call;
    pthread_mutex_lock(&c->lock);
    bool wanted = !c->gone && !c->cancelled;
    if (wanted) {
        wanted = nb_reply_put(&c->reply, part->prompt, e);
        if (c->reply.overflowed && c->connection != NULL)
            (void)shutdown(c->fd, SHUT_RDWR); /* nobody reads: do not wait for the write to fail */
        if (c->submitted && (c->ask.stream || c->reply.n_unfinished == 0))
            nb_call_wake(c);
    }
    pthread_mutex_unlock(&c->lock);
    return wanted;
}

static void on_release(void *context);

static nb_status submit_part(nb_call *c, int64_t p, nb_problem *why)
{
    const nb_ask *ask = &c->ask;
    nb_call_part *part = &c->parts[p];
    *part = (nb_call_part){.call = c, .prompt = p};
    nb_engine_request request = {.prompt = ask->prompts[p].tokens.ids,
                                 .n_prompt = ask->prompts[p].tokens.n,
                                 .options = ask->options,
                                 .n = ask->n,
                                 .prompt_logprobs = ask->prompt_logprobs,
                                 .no_answer = ask->no_answer,
                                 .pooling = ask->pooling,
                                 .priority = ask->priority,
                                 .salt = ask->salt,
                                 .salt_len = ask->salt_len,
                                 .on_event = on_event,
                                 .context = part,
                                 .release = on_release};
    bool busy = false;
    request.options.json_schema = ask->json_schema;
    nb_call_ref(c);
    const nb_status s =
        nb_engine_submit(c->server->served->engine, &request, &part->id, &busy, &why->err);
    if (s == NB_OK)
        return NB_OK;
    nb_call_unref(c); /* never the last: the desk has one */
    if (busy) {
        why->http = atomic_load(&c->server->state) == NB_SERVER_DRAINING ? 503 : 429;
        why->retry_after_s = 1;
    } else if (ask->json_schema != NULL && s != NB_MEMORY) {
        /* All else was looked at before. */
        snprintf(why->param, sizeof why->param, "%s", ask->schema_field);
    } else if (s == NB_LIMIT) {
        why->code = "context_length_exceeded";
    }
    return nb_problem_settle(why, s);
}

/* Hands over the next part. False: none is left, none is wanted, as many are there as may be, or
 * (then *s says so) the engine refuses. */
static bool submit_next(nb_call *c, nb_problem *why, nb_status *s)
{
    const int64_t window = c->ask.shape == NB_ASK_EMBEDDING ? NB_ASK_INPUT_WINDOW : INT64_MAX;
    *s = NB_OK;
    pthread_mutex_lock(&c->lock);
    const int64_t p = c->n_parts;
    bool more = p < c->ask.n_prompts && !c->gone && !c->cancelled && c->reply.n_unfinished > 0;
    if (more && c->n_flying >= window) {
        c->refills = true; /* one of those will end */
        more = false;
    }
    c->n_flying += more;
    pthread_mutex_unlock(&c->lock);
    if (!more)
        return false;
    *s = submit_part(c, p, why);
    const bool taken = *s == NB_OK;
    pthread_mutex_lock(&c->lock);
    if (taken) {
        c->n_parts = p + 1;
    } else if (--c->n_flying > 0 && why->http == 429 && window < INT64_MAX) {
        c->refills = true; /* the queue is full, with some of its own: it waits for those */
        *s = NB_OK;
        *why = (nb_problem){0};
    }
    const bool gone = c->gone || c->cancelled;
    pthread_mutex_unlock(&c->lock);
    if (taken && gone) /* meanwhile: whoever saw it knew of fewer parts */
        nb_call_cancel(c);
    return taken && !gone;
}

/* On the engine's thread, when a part has ended. */
static void refill(nb_call *c)
{
    nb_problem why = {0};
    nb_status s;
    while (submit_next(c, &why, &s))
        ;
    if (s == NB_OK)
        return;
    pthread_mutex_lock(&c->lock);
    c->reply.crowded_out = why.http == 429;
    nb_reply_end(&c->reply, why.http == 429 || why.http == 503 ? NB_FINISH_ABORT : NB_FINISH_ERROR,
                 why.err.text);
    if (c->submitted)
        nb_call_wake(c);
    pthread_mutex_unlock(&c->lock);
    nb_call_cancel(c);
}

static void on_release(void *context)
{
    nb_call *c = ((const nb_call_part *)context)->call;
    pthread_mutex_lock(&c->lock);
    c->n_flying--;
    const bool refills = c->refills;
    pthread_mutex_unlock(&c->lock);
    if (refills)
        refill(c);
    nb_call_unref(c);
}

/* Inputs of embeddings are handed over as there is room; what else is asked for at once has to fit
 * an empty queue, or asking again would never help. */
static nb_status check_size(const nb_call *c, nb_problem *why)
{
    const nb_ask *ask = &c->ask;
    const int64_t most = nb_engine_most_sequences(c->server->served->engine);
    if (ask->shape == NB_ASK_EMBEDDING || ask->n <= most / ask->n_prompts)
        return NB_OK;
    return nb_refuse(why, 400, ask->n_prompts > most ? "prompt" : "n",
                     "%lld prompts with n %lld: this server takes %lld sequences at a time",
                     (long long)ask->n_prompts, (long long)ask->n, (long long)most);
}

nb_status nb_call_submit(nb_call *c)
{
    nb_ask *ask = &c->ask;
    nb_err *err = &c->head->why.err;
    NB_TRY(check_size(c, &c->head->why));
    NB_TRY(nb_problem_settle(&c->head->why,
                             nb_reply_init(&c->reply, ask, c->server->setup.max_unread, err)));
    c->has_reply = true;
    NB_TRY(nb_problem_settle(&c->head->why, NB_ALLOC(&c->parts, ask->n_prompts, err)));
    if (ask->no_answer && !ask->prompt_logprobs && ask->pooling == NB_POOL_NONE) {
        pthread_mutex_lock(&c->lock);
        nb_reply_end(&c->reply, NB_FINISH_LENGTH, NULL); /* an echo, no more */
        pthread_mutex_unlock(&c->lock);
    }
    nb_status s;
    while (submit_next(c, &c->head->why, &s))
        ;
    if (s != NB_OK) {
        nb_call_cancel(c);
        return s;
    }
    pthread_mutex_lock(&c->lock);
    const bool all = !c->refills;
    pthread_mutex_unlock(&c->lock);
    if (all)
        nb_ask_submitted(ask);
    return NB_OK;
}

/* ---- the socket's side ---- */

void nb_call_write(nb_call *c)
{
    const nb_served *m = c->server->served;
    nb_wire_clear(&c->out);
    if (nb_reply_failed(&c->reply, &c->head->why) != NB_OK) {
        nb_call_refuse(c);
        return;
    }
    c->http = 200;
    if (c->ask.shape == NB_ASK_EMBEDDING)
        nb_embeddings_write(&c->ask, m, &c->reply, &c->out);
    else if (c->ask.shape == NB_ASK_GENERATE)
        nb_sglang_write(&c->ask, m, &c->reply, &c->out);
    else
        nb_openai_write(&c->ask, m, &c->reply, &c->out);
}

/* What is new, or a sign of life. */
static void write_events(nb_call *c)
{
    const nb_served *m = c->server->served;
    nb_wire_clear(&c->out);
    c->n_sent = 0;
    c->over = c->ask.shape == NB_ASK_GENERATE
                  ? nb_sglang_write_events(&c->ask, m, &c->reply, &c->out)
                  : nb_openai_write_events(&c->ask, m, &c->reply, &c->out);
    if (c->ping && c->out.buf.len == 0)
        nb_wire_raw(&c->out, ": ping\n\n");
    c->ping = false;
}

ssize_t nb_call_read(void *context, uint64_t at, char *to, size_t size)
{
    nb_call *c = context;
    (void)at;
    ssize_t n = 0;
    pthread_mutex_lock(&c->lock);
    if (c->n_sent == c->out.buf.len && !c->over && !c->gone)
        write_events(c);
    const size_t left = c->out.buf.len - c->n_sent;
    if (c->gone || c->out.status != NB_OK) {
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (left > 0) {
        const size_t take = left < size ? left : size;
        memcpy(to, c->out.buf.data + c->n_sent, take);
        c->n_sent += take;
        c->moved = nb_clock();
        n = (ssize_t)take;
    } else if (c->over) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        c->suspended = true;
        MHD_suspend_connection(c->connection);
    }
    pthread_mutex_unlock(&c->lock);
    return n;
}
