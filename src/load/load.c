/* See load.h. */
#define _GNU_SOURCE
#include "load/load.h"

#include "base/clock.h"
#include "load/arrival.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define POLL_SECONDS  0.1                 /* how often the step function is told */
#define PAGE_MAX      ((size_t)4 << 10)   /* kept of an error's page */
#define PAGE_PATIENCE ((int64_t)64 << 10) /* read of it */

/* A request from when its body is made to when its record is. */
typedef struct flight flight;
struct flight {
    struct run *run;
    flight *next; /* in the list of those that are free */
    flight *all;  /* in the list of all */
    int64_t index, input_asked, output_asked;
    double planned, start;
    nb_buf body, page;
    int64_t page_bytes;
    bool in_flight;
    nb_streamed stream;
};

typedef struct run {
    const nb_target *target;
    const nb_load_options *options;
    nb_load_result *result;
    nb_http_client *client;
    double begin;        /* of the clock */
    double *arrival;     /* [requests] where their number is known and there is a rate, else NULL */
    double last_arrival; /* where it is not known */
    int64_t n_started, n_in_flight;
    flight *free, *all, *ready; /* ready: the next one, made ahead of its time */
    nb_status status;           /* of what went wrong inside a callback */
    nb_err *err;
} run;

static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- when ---- */

/* All arrivals, stretched so that the last one of n is at n / rate: then runs of the same rate take
 * the same time, whatever the seed. So does vLLM's bench. */
static nb_status plan_arrivals(run *r, nb_err *err)
{
    const nb_load_options *o = r->options;
    if (o->rate <= 0 || o->requests == 0 || o->duration > 0)
        return NB_OK;
    NB_TRY(NB_ALLOC(&r->arrival, o->requests, err));
    double sum = 0;
    for (int64_t i = 0; i < o->requests; i++)
        r->arrival[i] = sum += nb_arrival_gap(o->plan.seed, i, o->burstiness);
    const double stretch = (double)o->requests / o->rate / sum;
    for (int64_t i = 0; i < o->requests; i++)
        r->arrival[i] *= stretch;
    return NB_OK;
}

/* Seconds from the run's begin; 0 where nothing is planned. Asked once for each, in order. */
static double arrival_of(run *r, int64_t i)
{
    const nb_load_options *o = r->options;
    if (r->arrival != NULL)
        return r->arrival[i];
    if (o->rate <= 0)
        return 0;
    return r->last_arrival += nb_arrival_gap(o->plan.seed, i, o->burstiness) / o->rate;
}

/* ---- what became of a request ---- */

static bool is_event_stream(const char *type)
{
    static const char want[] = "text/event-stream";
    return strncasecmp(type, want, sizeof want - 1) == 0;
}

static nb_status grow_records(nb_load_result *result, nb_err *err)
{
    if (result->n < result->room)
        return NB_OK;
    const int64_t room = result->room < 64 ? 64 : 2 * result->room;
    nb_load_record *records;
    NB_TRY(NB_ALLOC(&records, room, err));
    if (result->n > 0)
        memcpy(records, result->records, (size_t)result->n * sizeof *records);
    nb_free(result->records);
    result->records = records;
    result->room = room;
    return NB_OK;
}

/* The numbers of a stream, and copies of what its buffers hold. */
static nb_status fill_record(nb_load_record *rec, const flight *f, nb_err *err)
{
    const nb_streamed *s = &f->stream;
    const int64_t n_gaps = (int64_t)(s->gaps.len / sizeof(double));
    if (n_gaps > 0) {
        NB_TRY(NB_ALLOC(&rec->gaps, n_gaps, err));
        memcpy(rec->gaps, s->gaps.data, s->gaps.len);
        rec->n_gaps = n_gaps;
    }
    if (s->message[0] != 0) {
        NB_TRY(NB_ALLOC(&rec->message, sizeof s->message, err));
        memcpy(rec->message, s->message, sizeof s->message);
    }
    if (s->first >= 0) {
        rec->ttft = s->first - f->start;
        rec->e2el = s->last - f->start;
        if (rec->output_tokens > 1)
            rec->tpot = (s->last - s->first) / (double)(rec->output_tokens - 1);
    }
    return NB_OK;
}

static nb_status keep_record(run *r, flight *f, const nb_http_answer *answer, nb_err *err)
{
    nb_load_result *result = r->result;
    NB_TRY(grow_records(result, err));
    nb_streamed *s = &f->stream;
    if (s->fate == NB_FATE_OK && r->options->ignore_eos && s->output_tokens >= 0 &&
        s->output_tokens != f->output_asked)
        s->flaws |= 1u << NB_FLAW_LENGTH;
    nb_load_record *rec = &result->records[result->n++];
    *rec = (nb_load_record){
        .index = f->index,
        .planned = f->planned,
        .start = f->start - r->begin,
        .ttft = -1,
        .tpot = -1,
        .e2el = -1,
        .input_asked = f->input_asked,
        .output_asked = f->output_asked,
        .input_tokens = s->prompt_tokens,
        .cached_tokens = s->cached_tokens,
        .output_tokens = nb_streamed_n_tokens(s),
        .fate = s->fate,
        .status = answer == NULL ? 0 : answer->status,
        .retry_after = answer == NULL ? -1 : answer->retry_after,
        .flaws = s->flaws,
    };
    return fill_record(rec, f, err);
}

/* An error's page: OpenAI's form of it, or its first bytes. */
static void fail_by_page(flight *f, int status)
{
    json_error_t e;
    json_t *page =
        f->page.len == 0 ? NULL : json_loadb((const char *)f->page.data, f->page.len, 0, &e);
    const json_t *error = json_object_get(page, "error");
    const char *text = json_string_value(json_object_get(error, "message"));
    if (text == NULL)
        text = json_string_value(json_object_get(page, "message"));
    if (text != NULL)
        nb_streamed_fail(&f->stream, NB_FATE_STATUS, "%s", text);
    else
        nb_streamed_fail(&f->stream, NB_FATE_STATUS, "HTTP %d%s%.*s", status,
                         f->page.len > 0 ? ": " : "", (int)f->page.len,
                         f->page.len > 0 ? (const char *)f->page.data : "");
    json_decref(page);
}

static bool on_body(void *context, const nb_http_answer *answer, const char *bytes, size_t n)
{
    flight *f = context;
    run *r = f->run;
    nb_err err = {0};
    nb_status s = NB_OK;
    bool more = true;
    if (answer->status != 200) {
        const size_t room = PAGE_MAX - f->page.len;
        s = nb_buf_put(&f->page, bytes, n < room ? n : room, &err);
        f->page_bytes += (int64_t)n;
        more = f->page_bytes <= PAGE_PATIENCE;
    } else if (!is_event_stream(answer->type)) {
        nb_streamed_fail(&f->stream, NB_FATE_NOT_STREAM, "Content-Type is '%.100s'", answer->type);
        more = false;
    } else {
        s = nb_streamed_feed(&f->stream, bytes, n, nb_clock(), &err);
        more = s == NB_OK;
    }
    if (s == NB_MEMORY && r->status == NB_OK) {
        *r->err = err;
        r->status = s;
        more = false;
    }
    return more;
}

static void on_end(void *context, const nb_http_answer *answer, nb_http_end end)
{
    flight *f = context;
    run *r = f->run;
    nb_streamed *s = &f->stream;
    if (end == NB_HTTP_TIMEOUT)
        nb_streamed_fail(s, NB_FATE_TIMEOUT, "%.200s", answer->problem);
    else if (end == NB_HTTP_NONE)
        nb_streamed_fail(s, NB_FATE_CONNECT, "%.200s", answer->problem);
    else if (answer->status != 200)
        fail_by_page(f, answer->status);
    else if (end == NB_HTTP_CUT && !is_event_stream(answer->type)) /* inside the headers, say */
        nb_streamed_fail(s, NB_FATE_CUT, "%.200s", answer->problem);
    else if (!is_event_stream(answer->type))
        nb_streamed_fail(s, NB_FATE_NOT_STREAM, "Content-Type is '%.100s'", answer->type);
    else
        nb_streamed_end(s, end == NB_HTTP_WHOLE);
    if (r->status == NB_OK)
        r->status = keep_record(r, f, answer, r->err);
    f->in_flight = false;
    f->next = r->free;
    r->free = f;
    r->n_in_flight--;
}

/* ---- the run ---- */

static nb_status make_flight(run *r, flight **out, nb_err *err)
{
    flight *f = r->free;
    if (f != NULL) {
        r->free = f->next;
    } else {
        NB_TRY(NB_ALLOC(&f, 1, err));
        f->run = r;
        f->all = r->all;
        r->all = f;
    }
    f->body.len = f->page.len = 0;
    f->page_bytes = 0;
    *out = f;
    return NB_OK;
}

/* Makes the next request while there is time. */
static nb_status prepare(run *r, nb_err *err)
{
    const nb_load_options *o = r->options;
    if (r->ready != NULL || (o->requests > 0 && r->n_started >= o->requests))
        return NB_OK;
    flight *f;
    NB_TRY(make_flight(r, &f, err));
    r->ready = f;
    f->index = r->n_started;
    f->planned = arrival_of(r, f->index);
    NB_TRY(nb_load_body(&f->body, r->target, o, f->index, &f->input_asked, &f->output_asked, err));
    /* Servers may send the bytes of one token in parts, but hardly in more than four. */
    nb_streamed_begin(&f->stream, 4 * f->output_asked + 64);
    return NB_OK;
}

static bool is_over(const run *r, double now)
{
    const nb_load_options *o = r->options;
    if (r->ready == NULL)
        return true;
    return o->duration > 0 && (now >= o->duration || r->ready->planned >= o->duration);
}

static bool has_place(const run *r)
{
    return r->options->concurrency == 0 || r->n_in_flight < r->options->concurrency;
}

static nb_status start_ready(run *r, nb_err *err)
{
    flight *f = r->ready;
    r->ready = NULL;
    r->n_started++;
    r->n_in_flight++;
    f->in_flight = true;
    if (r->n_in_flight > r->result->peak_concurrency)
        r->result->peak_concurrency = r->n_in_flight;
    f->start = nb_clock();
    if (r->options->rate <= 0)
        f->planned = f->start - r->begin;
    NB_TRY(nb_http_client_send(r->client, r->target->url, (const char *)f->body.data, f->body.len,
                               f, err));
    return prepare(r, err);
}

/* Requests that stand in the way of the end, when the user wants it now. */
static nb_status abort_all(run *r, nb_err *err)
{
    for (flight *f = r->all; f != NULL; f = f->all) {
        if (!f->in_flight)
            continue;
        nb_streamed_fail(&f->stream, NB_FATE_ABORTED, "the run was interrupted");
        f->in_flight = false;
        NB_TRY(keep_record(r, f, NULL, err));
    }
    return NB_OK;
}

static bool tell(const run *r)
{
    const nb_load_options *o = r->options;
    return o->step == NULL || o->step(o->context, r->result->n, o->requests);
}

static nb_status loop(run *r, nb_err *err)
{
    double told = -1;
    for (;;) {
        double now = nb_clock() - r->begin;
        if (now - told >= POLL_SECONDS) {
            told = now;
            if (!tell(r)) {
                r->result->interrupted = true;
                return abort_all(r, err);
            }
        }
        /* A few at a time, so that a burst of starts does not keep answers waiting. */
        for (int i = 0; i < 8 && !is_over(r, now) && has_place(r) && r->ready->planned <= now;
             i++) {
            NB_TRY(start_ready(r, err));
            now = nb_clock() - r->begin;
        }
        if (is_over(r, now) && r->n_in_flight == 0)
            return NB_OK;
        double until = told + POLL_SECONDS;
        if (!is_over(r, now) && has_place(r) && r->ready->planned < until)
            until = r->ready->planned;
        NB_TRY(nb_http_client_wait(r->client, r->begin + until, err));
        if (r->status != NB_OK)
            return r->status;
    }
}

nb_status nb_load_run(nb_load_result *out, const nb_target *target, const nb_load_options *options,
                      nb_err *err)
{
    assert(options->requests > 0 || options->duration > 0);
    *out = (nb_load_result){0};
    run r = {.target = target, .options = options, .result = out, .err = err};
    nb_http_options http = target->http;
    http.user = (nb_http_user){.on_body = on_body, .on_end = on_end};
    nb_status s = nb_http_client_open(&r.client, &http, err);
    if (s == NB_OK)
        s = plan_arrivals(&r, err);
    if (s == NB_OK)
        s = prepare(&r, err);
    if (s == NB_OK) {
        const double cpu = thread_seconds();
        r.begin = nb_clock();
        s = loop(&r, err);
        out->duration = nb_clock() - r.begin;
        out->cpu = thread_seconds() - cpu;
        out->idle = nb_http_client_idle(r.client);
    }
    nb_http_client_close(r.client);
    for (flight *f = r.all; f != NULL;) {
        flight *next = f->all;
        nb_buf_free(&f->body);
        nb_buf_free(&f->page);
        nb_streamed_free(&f->stream);
        nb_free(f);
        f = next;
    }
    nb_free(r.arrival);
    return s;
}

void nb_load_result_free(nb_load_result *result)
{
    for (int64_t i = 0; i < result->n; i++) {
        nb_free(result->records[i].gaps);
        nb_free(result->records[i].message);
    }
    nb_free(result->records);
    *result = (nb_load_result){0};
}
