/* See fake_engine.h. */
#define _GNU_SOURCE
#include "fake_engine.h"

#include "base/clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_CHOICES = 128, MAX_TOP = NB_MAX_LOGPROBS };

typedef struct {
    nb_decoder decoder;
    int64_t n_made, n_min;
    char tail[1024]; /* of the text, to find stops in */
    size_t n_tail;
    bool over;
} answer;

typedef struct job {
    struct job *next;
    uint64_t id;
    nb_engine_request r;
    int32_t *prompt;
    const int32_t *says; /* [n_says] of the prompt; NULL: nothing of its own */
    int64_t n_says;
    char *stops[NB_MAX_STOPS];
    int32_t stop_ids[NB_MAX_STOPS];
    answer answers[MAX_CHOICES];
    atomic_bool aborted, unwanted; /* a step looks at them without the lock */
    bool fails, silent, told_prompt;
    int64_t every, turn; /* steps */
    double submitted, began;
} job;

struct nb_engine {
    fake_engine how;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    job *jobs;
    uint64_t n_ids;
    atomic_bool closing; /* as above */
    bool draining;
    atomic_llong n_active, most_active, n_aborted, n_steps, prompt_tokens, generated;
    atomic_llong finished[NB_N_FINISHES];
    nb_engine_observer observer;
};

static void free_job(nb_engine *e, job *j)
{
    if (j->r.release != NULL)
        j->r.release(j->r.context);
    for (int i = 0; i < j->r.options.n_stops; i++)
        free(j->stops[i]);
    free(j->prompt);
    free(j);
    atomic_fetch_sub(&e->n_active, 1);
}

/* ---- a step ---- */

static bool tell(nb_engine *e, job *j, nb_engine_event *event)
{
    if (j->unwanted)
        return false;
    event->n_prompt = j->r.n_prompt;
    if (event->finish != NB_NOT_FINISHED) {
        atomic_fetch_add(&e->finished[event->finish], 1);
        j->answers[event->choice].over = true;
    }
    if (j->r.on_event(j->r.context, event))
        return true;
    j->unwanted = true;
    if (!j->aborted)
        atomic_fetch_add(&e->n_aborted, 1);
    return false;
}

static void fill_logprobs(nb_logprob *lp, int32_t id, int64_t at, int n_top)
{
    lp[0] = (nb_logprob){id, -(float)(at + 1) / 8};
    for (int k = 0; k < n_top; k++)
        lp[1 + k] = (nb_logprob){'A' + k, -(float)(k + 1) / 4};
}

static void tell_prompt(nb_engine *e, job *j)
{
    nb_logprob lp[1 + MAX_TOP];
    j->told_prompt = true;
    if (!j->r.prompt_logprobs)
        return;
    for (int64_t i = 0; i < j->r.n_prompt; i++) {
        fill_logprobs(lp, j->prompt[i], i, j->r.options.n_top);
        nb_engine_event event = {.prompt_at = i,
                                 .id = j->prompt[i],
                                 .logprobs = i > 0 ? lp : NULL,
                                 .finish = NB_NOT_FINISHED,
                                 .stop_id = -1};
        if (!tell(e, j, &event))
            return;
    }
}

/* Cuts the text where a stop string begins; only whole within one token's text and its tail. */
static const char *find_stop(const job *j, answer *a, nb_buf *text)
{
    if (j->r.options.n_stops == 0 || text->len + a->n_tail >= sizeof a->tail)
        return NULL;
    const size_t before = a->n_tail;
    memcpy(a->tail + a->n_tail, text->data, text->len);
    a->n_tail += text->len;
    a->tail[a->n_tail] = 0;
    for (int i = 0; i < j->r.options.n_stops; i++) {
        const char *at = strstr(a->tail, j->stops[i]);
        if (at == NULL)
            continue;
        const size_t keep = (size_t)(at - a->tail);
        text->len = keep > before ? keep - before : 0;
        return j->stops[i];
    }
    return NULL;
}

static void step_answer(nb_engine *e, job *j, int64_t c)
{
    answer *a = &j->answers[c];
    const nb_generate_options *o = &j->r.options;
    const int32_t id = j->says != NULL && a->n_made < j->n_says
                           ? j->says[a->n_made]
                           : j->prompt[(a->n_made + c) % j->r.n_prompt];
    nb_logprob lp[1 + MAX_TOP];
    nb_buf text = {0};
    nb_err err = {0};
    fill_logprobs(lp, id, a->n_made, o->n_top);
    a->n_made++;
    atomic_fetch_add(&e->generated, 1);
    nb_engine_event event = {.choice = c,
                             .prompt_at = -1,
                             .id = id,
                             .logprobs = o->logprobs ? lp : NULL,
                             .finish = NB_NOT_FINISHED,
                             .stop_id = -1,
                             .n_made = a->n_made};
    if (!o->ignore_eos && a->n_made > o->min_tokens && nb_tokenizer_is_stop(e->how.tokenizer, id)) {
        event.finish = NB_FINISH_STOP;
        event.stop_id = id;
    }
    for (int i = 0; i < o->n_stop_ids; i++)
        if (j->stop_ids[i] == id) {
            event.finish = NB_FINISH_STOP;
            event.stop_id = id;
        }
    if (j->says != NULL && a->n_made == j->n_says)
        event.finish = NB_FINISH_STOP;
    if (event.finish == NB_NOT_FINISHED && a->n_made == o->max_tokens)
        event.finish = NB_FINISH_LENGTH;
    (void)nb_tokenizer_decode(e->how.tokenizer, &a->decoder, &id, 1, o->with_special,
                              event.finish != NB_NOT_FINISHED, &text, &err);
    event.stop = find_stop(j, a, &text);
    if (event.stop != NULL)
        event.finish = NB_FINISH_STOP;
    event.text = (const char *)text.data;
    event.len = text.len;
    if (j->fails && a->n_made == 2) {
        event.finish = NB_FINISH_ERROR;
        event.error = "the fake engine was asked to fail";
    }
    if (a->n_made == 1 && e->observer.first_token != NULL)
        e->observer.first_token(e->observer.context, nb_clock() - j->submitted);
    else if (e->observer.next_token != NULL)
        e->observer.next_token(e->observer.context, 1e-3);
    (void)tell(e, j, &event);
    nb_buf_free(&text);
}

static void step_pooling(nb_engine *e, job *j)
{
    float pooled[FAKE_DIMS];
    for (int k = 0; k < FAKE_DIMS; k++)
        pooled[k] =
            (float)(j->prompt[k % j->r.n_prompt] + k + (j->r.pooling == NB_POOL_LAST ? 1000 : 0));
    nb_engine_event event = {.prompt_at = -1,
                             .id = -1,
                             .finish = j->fails ? NB_FINISH_ERROR : NB_FINISH_STOP,
                             .error = "the fake engine was asked to fail",
                             .stop_id = -1,
                             .pooled = j->fails ? NULL : pooled,
                             .n_pooled = FAKE_DIMS};
    (void)tell(e, j, &event);
}

static bool step_job(nb_engine *e, job *j)
{
    if (!j->told_prompt) {
        j->began = nb_clock();
        atomic_fetch_add(&e->prompt_tokens, j->r.n_prompt);
        tell_prompt(e, j);
    }
    bool over = true;
    int64_t made = 0;
    for (int64_t c = 0; c < j->r.n && !j->unwanted; c++) {
        if (!j->answers[c].over && (j->aborted || e->closing)) {
            nb_engine_event event = {
                .choice = c, .prompt_at = -1, .id = -1, .finish = NB_FINISH_ABORT, .stop_id = -1};
            (void)tell(e, j, &event);
        } else if (!j->answers[c].over && j->r.pooling != NB_POOL_NONE && !j->silent) {
            step_pooling(e, j);
        } else if (!j->answers[c].over && !j->silent) {
            step_answer(e, j, c);
        }
        over &= j->answers[c].over;
        made += j->answers[c].n_made;
    }
    over |= j->unwanted;
    if (over && e->observer.finished != NULL)
        e->observer.finished(
            e->observer.context, j->aborted || j->unwanted ? NB_FINISH_ABORT : NB_FINISH_STOP,
            j->began - j->submitted, 0, nb_clock() - j->began, j->r.n_prompt, made, &j->r);
    return over;
}

static void *run(void *context)
{
    nb_engine *e = context;
    pthread_mutex_lock(&e->lock);
    for (;;) {
        if (e->jobs == NULL && e->closing)
            break;
        if (e->jobs == NULL) {
            pthread_cond_wait(&e->changed, &e->lock);
            continue;
        }
        atomic_fetch_add(&e->n_steps, 1);
        /* As in an engine, owners are told with its lock held by nobody: they may call back. */
        for (job **at = &e->jobs; *at != NULL;) {
            job *j = *at;
            bool over = false;
            if (e->closing || j->aborted || ++j->turn % j->every == 0) {
                pthread_mutex_unlock(&e->lock);
                over = step_job(e, j);
                pthread_mutex_lock(&e->lock);
            }
            if (over) {
                /* New ones go to the front: look for its place again. */
                job **place = &e->jobs;
                while (*place != j)
                    place = &(*place)->next;
                *place = j->next;
                at = place == at ? at : place;
                pthread_mutex_unlock(&e->lock);
                free_job(e, j);
                pthread_mutex_lock(&e->lock);
            } else {
                at = &j->next;
            }
        }
        pthread_mutex_unlock(&e->lock);
        if (e->observer.step != NULL)
            e->observer.step(e->observer.context, 1e-3, 1);
        if (e->how.step_us > 0)
            usleep((useconds_t)e->how.step_us);
        pthread_mutex_lock(&e->lock);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

/* ---- the interface ---- */

nb_engine *fake_engine_open(const fake_engine *how)
{
    nb_engine *e = calloc(1, sizeof *e);
    if (e == NULL)
        abort();
    e->how = *how;
    if (e->how.max_active == 0)
        e->how.max_active = 1000;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    if (pthread_create(&e->thread, NULL, run, e) != 0)
        abort();
    return e;
}

void nb_engine_close(nb_engine *e)
{
    if (e == NULL)
        return;
    pthread_mutex_lock(&e->lock);
    e->closing = true;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->changed);
    free(e);
}

/* Where the ids of a word stand, -1: nowhere. Anywhere: a template stands before what a client
 * wrote. */
static int64_t find(const nb_engine *e, const nb_engine_request *r, const char *word)
{
    nb_tokens ids = {0};
    nb_err err = {0};
    if (nb_tokenizer_encode(e->how.tokenizer, word, strlen(word), (nb_encode_options){0}, &ids,
                            &err) != NB_OK)
        abort();
    int64_t found = -1;
    for (int64_t i = 0; i + ids.n <= r->n_prompt && found < 0; i++)
        if (memcmp(r->prompt + i, ids.ids, (size_t)ids.n * sizeof *ids.ids) == 0)
            found = i;
    nb_tokens_free(&ids);
    return found;
}

static bool begins(const nb_engine *e, const nb_engine_request *r, const char *word)
{
    return find(e, r, word) >= 0;
}

static job *copy_request(nb_engine *e, const nb_engine_request *r)
{
    job *j = calloc(1, sizeof *j);
    if (j == NULL || (j->prompt = malloc((size_t)r->n_prompt * sizeof *j->prompt)) == NULL)
        abort();
    j->r = *r;
    memcpy(j->prompt, r->prompt, (size_t)r->n_prompt * sizeof *j->prompt);
    j->r.prompt = j->prompt;
    for (int i = 0; i < r->options.n_stops; i++)
        j->stops[i] = strdup(r->options.stops[i]);
    if (r->options.n_stop_ids > 0)
        memcpy(j->stop_ids, r->options.stop_ids,
               (size_t)r->options.n_stop_ids * sizeof *j->stop_ids);
    j->fails = begins(e, r, "!error");
    j->silent = begins(e, r, "!silent");
    const int64_t say = find(e, r, "!say "), end = find(e, r, "!end");
    if (say >= 0 && end > say + 5) {
        j->says = j->prompt + say + 5;
        j->n_says = end - say - 5;
    }
    j->every = begins(e, r, "!slow") ? 20 : 1;
    j->submitted = nb_clock();
    return j;
}

nb_status nb_engine_submit(nb_engine *e, const nb_engine_request *r, uint64_t *id, bool *busy,
                           nb_err *err)
{
    *busy = false;
    if (e->how.refuses != NB_OK)
        return nb_fail(err, e->how.refuses, "the fake engine refuses");
    if (r->options.json_schema != NULL && strstr(r->options.json_schema, "\"pattern\"") != NULL)
        return nb_fail(err, NB_UNSUPPORTED, "the keyword 'pattern' of a schema is unknown");
    if (e->how.n_ctx > 0 && r->n_prompt + r->options.max_tokens > e->how.n_ctx)
        return nb_fail(err, NB_LIMIT, "too long for the fake engine");
    pthread_mutex_lock(&e->lock);
    *busy = e->draining || atomic_load(&e->n_active) >= e->how.max_active;
    if (!*busy) {
        job *j = copy_request(e, r);
        *id = j->id = ++e->n_ids;
        j->next = e->jobs;
        e->jobs = j;
        const long long active = atomic_fetch_add(&e->n_active, 1) + 1;
        if (active > atomic_load(&e->most_active))
            atomic_store(&e->most_active, active);
        pthread_cond_signal(&e->changed);
    }
    pthread_mutex_unlock(&e->lock);
    return *busy ? nb_fail(err, NB_LIMIT, "the queue is full") : NB_OK;
}

void nb_engine_abort(nb_engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->lock);
    for (job *j = e->jobs; j != NULL; j = j->next)
        if (j->id == id && !j->aborted && !j->unwanted) {
            j->aborted = true;
            atomic_fetch_add(&e->n_aborted, 1);
        }
    pthread_mutex_unlock(&e->lock);
}

void nb_engine_drain(nb_engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->draining = true;
    pthread_mutex_unlock(&e->lock);
}

void nb_engine_observe(nb_engine *e, const nb_engine_observer *observer)
{
    pthread_mutex_lock(&e->lock);
    e->observer = *observer;
    pthread_mutex_unlock(&e->lock);
}

int64_t nb_engine_most_sequences(const nb_engine *e)
{
    return e->how.most > 0 ? e->how.most : INT64_MAX;
}

void nb_engine_read_stats(const nb_engine *e, nb_engine_stats *out)
{
    *out = (nb_engine_stats){.n_running = atomic_load(&e->n_active),
                             .n_steps = atomic_load(&e->n_steps),
                             .prompt_tokens = atomic_load(&e->prompt_tokens),
                             .generated_tokens = atomic_load(&e->generated),
                             .blocks_free = 100,
                             .usage = 0.25};
    for (int i = 0; i < NB_N_FINISHES; i++)
        out->finished[i] = atomic_load(&e->finished[i]);
}

int64_t fake_engine_n_active(const nb_engine *e)
{
    return atomic_load(&e->n_active);
}

int64_t fake_engine_n_aborted(const nb_engine *e)
{
    return atomic_load(&e->n_aborted);
}

int64_t fake_engine_most_active(const nb_engine *e)
{
    return atomic_load(&e->most_active);
}

bool fake_engine_idle(const nb_engine *e)
{
    for (int i = 0; i < 5000; i++) {
        if (atomic_load(&e->n_active) == 0)
            return true;
        usleep(1000);
    }
    return false;
}
