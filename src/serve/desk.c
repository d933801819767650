/* The desk: where bodies become requests. Its threads may take their time, as the socket's thread
 * may not. */
#include "serve/serving.h"

#include <string.h>

bool nb_desk_put(nb_server *s, nb_call *c)
{
    pthread_mutex_lock(&s->lock);
    const bool room = s->n_queued < NB_DESK_QUEUE && !s->stopping;
    if (room) {
        nb_call_ref(c);
        c->next_queued = NULL;
        *s->queue_end = c;
        s->queue_end = &c->next_queued;
        s->n_queued++;
        pthread_cond_signal(&s->work);
    }
    pthread_mutex_unlock(&s->lock);
    return room;
}

static void forget_body(nb_call *c)
{
    atomic_fetch_sub(&c->server->body_bytes, (long long)c->body.cap);
    nb_buf_free(&c->body);
}

static nb_status work_on(nb_call *c)
{
    if (c->body.len == 0)
        return nb_refuse(&c->head->why, 400, NULL, "the body is empty: JSON is expected");
    json_t *body = NULL;
    const nb_status s =
        nb_json_parse(&body, (const char *)c->body.data, c->body.len, &c->head->why.err);
    NB_TRY(nb_problem_settle(&c->head->why, s));
    forget_body(c);
    return c->route->post(c, body);
}

static void serve(nb_call *c)
{
    pthread_mutex_lock(&c->lock);
    const bool wanted = !c->gone;
    pthread_mutex_unlock(&c->lock);
    const nb_status s = wanted ? work_on(c) : NB_OK;
    pthread_mutex_lock(&c->lock);
    if (s != NB_OK) {
        nb_problem_settle(&c->head->why, s);
        nb_call_refuse(c);
    }
    /* Until here the engine's thread woke nobody, so that what this one works on is its own. */
    c->submitted = s == NB_OK && c->has_reply;
    if (c->submitted && c->cancelled) /* the server stopped meanwhile */
        nb_reply_end(&c->reply, NB_FINISH_ABORT, NULL);
    if (!c->submitted)
        c->state = NB_CALL_READY;
    else if (c->ask.stream)
        c->state = NB_CALL_STREAM;
    if (c->state != NB_CALL_WORKING || c->reply.n_unfinished == 0)
        nb_call_wake(c);
    pthread_mutex_unlock(&c->lock);
    nb_call_unref(c);
}

void *nb_desk_run(void *server)
{
    nb_server *s = server;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        nb_call *c = s->queue;
        if (c == NULL && s->stopping)
            break;
        if (c == NULL) {
            pthread_cond_wait(&s->work, &s->lock);
            continue;
        }
        s->queue = c->next_queued;
        if (s->queue == NULL)
            s->queue_end = &s->queue;
        s->n_queued--;
        pthread_mutex_unlock(&s->lock);
        serve(c);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}
