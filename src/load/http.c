/* See http.h. */
#define _GNU_SOURCE
#include "load/http.h"

#ifndef NIBBLE_WITH_PULL

nb_status nb_http_client_open(nb_http_client **out, const nb_http_options *options, nb_err *err)
{
    (void)out, (void)options;
    return nb_fail(err, NB_UNSUPPORTED, "this nibble was built without libcurl");
}

void nb_http_client_close(nb_http_client *client)
{
    (void)client;
}

nb_status nb_http_client_send(nb_http_client *client, const char *url, const char *body, size_t len,
                              void *context, nb_err *err)
{
    (void)client, (void)body, (void)len, (void)context;
    return nb_fail(err, NB_UNSUPPORTED, "%s: built without libcurl", url);
}

nb_status nb_http_client_wait(nb_http_client *client, double until, nb_err *err)
{
    (void)client, (void)until;
    return nb_fail(err, NB_UNSUPPORTED, "built without libcurl");
}

double nb_http_client_idle(const nb_http_client *client)
{
    (void)client;
    return 0;
}

nb_status nb_http_ask(const nb_http_options *options, const char *url, const char *body, size_t len,
                      nb_buf *out, int *status, nb_err *err)
{
    (void)options, (void)body, (void)len, (void)out, (void)status;
    return nb_fail(err, NB_UNSUPPORTED, "%s: built without libcurl", url);
}

#else

#include "base/clock.h"

#include <curl/curl.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define CONNECT_SECONDS 30.0
/* Headers of one answer; libcurl keeps them, and bounds only each line. */
#define HEADERS_MAX     ((size_t)256 << 10)
#define EVENTS          64 /* that one call of epoll tells of */
#define NEVER           1e300

struct nb_http_slot {
    nb_http_client *client;
    nb_http_slot *next; /* in the list of those that are free */
    nb_http_slot *all;  /* in the list of all */
    CURL *curl;
    void *context;
    size_t header_bytes;
    bool in_flight, stopped;
    char problem[CURL_ERROR_SIZE];
};

struct nb_http_client {
    nb_http_options options;
    bool global;
    CURLM *multi;
    struct curl_slist *headers;
    int epoll, timer;
    double curl_due; /* when libcurl wants to be called; NEVER: not at all */
    nb_http_slot *free, *all;
    double idle;
    int epoll_errno; /* of a socket that could not be watched */
};

/* ---- what libcurl calls ---- */

static nb_http_answer answer_of(nb_http_slot *slot)
{
    nb_http_answer a = {.retry_after = -1, .type = "", .problem = slot->problem};
    long status = 0;
    char *type = NULL;
    curl_off_t wait = 0;
    curl_easy_getinfo(slot->curl, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(slot->curl, CURLINFO_CONTENT_TYPE, &type);
    if (curl_easy_getinfo(slot->curl, CURLINFO_RETRY_AFTER, &wait) == CURLE_OK && wait > 0)
        a.retry_after = (double)wait;
    a.status = (int)status;
    if (type != NULL)
        a.type = type;
    return a;
}

static size_t on_bytes(char *bytes, size_t size, size_t n, void *context)
{
    nb_http_slot *slot = context;
    const nb_http_answer a = answer_of(slot);
    if (slot->client->options.user.on_body(slot->context, &a, bytes, size * n))
        return size * n;
    slot->stopped = true;
    return 0;
}

static size_t on_header(char *bytes, size_t size, size_t n, void *context)
{
    nb_http_slot *slot = context;
    (void)bytes;
    slot->header_bytes += size * n;
    return slot->header_bytes <= HEADERS_MAX ? size * n : 0;
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *context, void *known)
{
    nb_http_client *client = context;
    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        epoll_ctl(client->epoll, EPOLL_CTL_DEL, fd, NULL);
        return 0;
    }
    struct epoll_event e = {.data.fd = fd};
    if (what != CURL_POLL_OUT)
        e.events |= EPOLLIN;
    if (what != CURL_POLL_IN)
        e.events |= EPOLLOUT;
    /* A descriptor that was closed and given out again is not in the set any more. */
    if (known != NULL && epoll_ctl(client->epoll, EPOLL_CTL_MOD, fd, &e) == 0)
        return 0;
    if (epoll_ctl(client->epoll, EPOLL_CTL_ADD, fd, &e) != 0 &&
        (errno != EEXIST || epoll_ctl(client->epoll, EPOLL_CTL_MOD, fd, &e) != 0))
        client->epoll_errno = errno;
    curl_multi_assign(client->multi, fd, client);
    return 0;
}

static int on_timer(CURLM *multi, long ms, void *context)
{
    nb_http_client *client = context;
    (void)multi;
    client->curl_due = ms < 0 ? NEVER : nb_clock() + 1e-3 * (double)ms;
    return 0;
}

/* ---- requests ---- */

static nb_status multi_failed(CURLMcode code, nb_err *err)
{
    return nb_fail(err, code == CURLM_OUT_OF_MEMORY ? NB_MEMORY : NB_IO, "libcurl: %s",
                   curl_multi_strerror(code));
}

/* Options that do not change from one request of a client to the next. */
static bool configure(nb_http_slot *slot, const nb_http_options *o, struct curl_slist *headers)
{
    CURL *c = slot->curl;
    int bad = 0;
    bad |= curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L) != CURLE_OK;
    bad |= curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) != CURLE_OK;
    bad |= curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L) != CURLE_OK;
    bad |= curl_easy_setopt(c, CURLOPT_PROXY, "") != CURLE_OK;
    bad |= curl_easy_setopt(c, CURLOPT_USERAGENT, "nibble/" NIBBLE_VERSION) != CURLE_OK;
    bad |= curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)(1e3 * o->timeout_s)) != CURLE_OK;
    const double connect = o->timeout_s < CONNECT_SECONDS ? o->timeout_s : CONNECT_SECONDS;
    bad |= curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)(1e3 * connect)) != CURLE_OK;
    bad |= curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers) != CURLE_OK;
    bad |= curl_easy_setopt(c, CURLOPT_ERRORBUFFER, slot->problem) != CURLE_OK;
#if LIBCURL_VERSION_NUM >= 0x075500
    bad |= curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https") != CURLE_OK;
#else
    const long both = CURLPROTO_HTTP | CURLPROTO_HTTPS;
    bad |= curl_easy_setopt(c, CURLOPT_PROTOCOLS, both) != CURLE_OK;
#endif
    if (o->insecure) {
        bad |= curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 0L) != CURLE_OK;
        bad |= curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 0L) != CURLE_OK;
    }
    if (o->api_key != NULL) {
        bad |= curl_easy_setopt(c, CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER) != CURLE_OK;
        bad |= curl_easy_setopt(c, CURLOPT_XOAUTH2_BEARER, o->api_key) != CURLE_OK;
    }
    return bad == 0;
}

static bool configure_request(CURL *c, const char *url, const char *body, size_t len)
{
    int bad = curl_easy_setopt(c, CURLOPT_URL, url) != CURLE_OK;
    if (body == NULL) {
        bad |= curl_easy_setopt(c, CURLOPT_HTTPGET, 1L) != CURLE_OK;
    } else {
        bad |= curl_easy_setopt(c, CURLOPT_POST, 1L) != CURLE_OK;
        bad |= curl_easy_setopt(c, CURLOPT_POSTFIELDS, body) != CURLE_OK;
        bad |= curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)len) != CURLE_OK;
    }
    return bad == 0;
}

/* An easy handle for one request at a time. */
static nb_status make_slot(nb_http_client *client, nb_http_slot **out, nb_err *err)
{
    nb_http_slot *slot;
    NB_TRY(NB_ALLOC(&slot, 1, err));
    slot->client = client;
    slot->curl = curl_easy_init();
    CURL *c = slot->curl;
    if (c == NULL || !configure(slot, &client->options, client->headers) ||
        curl_easy_setopt(c, CURLOPT_PRIVATE, slot) != CURLE_OK ||
        curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_bytes) != CURLE_OK ||
        curl_easy_setopt(c, CURLOPT_WRITEDATA, slot) != CURLE_OK ||
        curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header) != CURLE_OK ||
        curl_easy_setopt(c, CURLOPT_HEADERDATA, slot) != CURLE_OK) {
        if (c != NULL)
            curl_easy_cleanup(c);
        nb_free(slot);
        return nb_fail(err, NB_MEMORY, "out of memory for a request");
    }
    slot->all = client->all;
    client->all = slot;
    *out = slot;
    return NB_OK;
}

static nb_http_end end_of(const nb_http_slot *slot, CURLcode result, int status)
{
    if (slot->stopped)
        return NB_HTTP_STOPPED;
    if (result == CURLE_OK)
        return NB_HTTP_WHOLE;
    if (result == CURLE_OPERATION_TIMEDOUT)
        return NB_HTTP_TIMEOUT;
    return status == 0 ? NB_HTTP_NONE : NB_HTTP_CUT;
}

/* Requests that have ended since the last call; false: none. */
static bool tell_ends(nb_http_client *client)
{
    int left;
    bool any = false;
    CURLMsg *message;
    while ((message = curl_multi_info_read(client->multi, &left)) != NULL) {
        if (message->msg != CURLMSG_DONE)
            continue;
        const CURLcode result = message->data.result;
        char *private = NULL;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &private);
        nb_http_slot *slot = (nb_http_slot *)(void *)private;
        nb_http_answer a = answer_of(slot);
        if (result != CURLE_OK && slot->problem[0] == 0)
            a.problem = curl_easy_strerror(result);
        const nb_http_end end = end_of(slot, result, a.status);
        client->options.user.on_end(slot->context, &a, end);
        curl_multi_remove_handle(client->multi, slot->curl);
        slot->in_flight = false;
        slot->next = client->free;
        client->free = slot;
        any = true;
    }
    return any;
}

static nb_status drive(nb_http_client *client, curl_socket_t fd, int what, nb_err *err)
{
    int running;
    const CURLMcode code = curl_multi_socket_action(client->multi, fd, what, &running);
    if (code != CURLM_OK)
        return multi_failed(code, err);
    if (client->epoll_errno != 0)
        return nb_fail_errno(err, client->epoll_errno, "watching a connection");
    return NB_OK;
}

static nb_status drive_timers(nb_http_client *client, nb_err *err)
{
    /* Now and then it wants to be called again at once, but not for ever. */
    for (int i = 0; i < 16 && client->curl_due <= nb_clock(); i++) {
        client->curl_due = NEVER; /* libcurl sets it again */
        NB_TRY(drive(client, CURL_SOCKET_TIMEOUT, 0, err));
    }
    return NB_OK;
}

nb_status nb_http_client_send(nb_http_client *client, const char *url, const char *body, size_t len,
                              void *context, nb_err *err)
{
    nb_http_slot *slot = client->free;
    if (slot != NULL)
        client->free = slot->next;
    else
        NB_TRY(make_slot(client, &slot, err));
    slot->context = context;
    slot->header_bytes = 0;
    slot->stopped = false;
    slot->problem[0] = 0;
    const CURLMcode code = configure_request(slot->curl, url, body, len)
                               ? curl_multi_add_handle(client->multi, slot->curl)
                               : CURLM_OUT_OF_MEMORY;
    if (code != CURLM_OK) {
        slot->next = client->free;
        client->free = slot;
        return multi_failed(code, err);
    }
    slot->in_flight = true;
    /* Out it goes now, not after whatever else is due. */
    return drive_timers(client, err);
}

/* ---- waiting ---- */

static void arm(int timer, double when)
{
    /* 1 ns is the least that does not switch the timer off. */
    const double whole = floor(when);
    struct itimerspec t = {.it_value = {.tv_nsec = 1}};
    if (when > 0 && when < 1e15) {
        t.it_value.tv_sec = (time_t)whole;
        t.it_value.tv_nsec = (long)(1e9 * (when - whole));
    }
    if (when >= 1e15)
        t.it_value.tv_nsec = 0;
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &t, NULL);
}

nb_status nb_http_client_wait(nb_http_client *client, double until, nb_err *err)
{
    /* Those that ended as they were sent, for which nothing more will happen. */
    bool told = tell_ends(client);
    NB_TRY(drive_timers(client, err));
    told |= tell_ends(client);
    const double due = client->curl_due < until ? client->curl_due : until;
    arm(client->timer, due);
    struct epoll_event events[EVENTS];
    const double before = nb_clock();
    const int n = epoll_wait(client->epoll, events, EVENTS, told || due <= before ? 0 : -1);
    client->idle += nb_clock() - before;
    if (n < 0 && errno != EINTR)
        return nb_fail_errno(err, errno, "waiting for connections");
    for (int i = 0; i < n; i++) {
        if (events[i].data.fd == client->timer)
            continue;
        const uint32_t e = events[i].events;
        int what = 0;
        what |= (e & EPOLLIN) != 0 ? CURL_CSELECT_IN : 0;
        what |= (e & EPOLLOUT) != 0 ? CURL_CSELECT_OUT : 0;
        what |= (e & (EPOLLERR | EPOLLHUP)) != 0 ? CURL_CSELECT_ERR : 0;
        NB_TRY(drive(client, events[i].data.fd, what, err));
    }
    NB_TRY(drive_timers(client, err));
    tell_ends(client);
    return NB_OK;
}

double nb_http_client_idle(const nb_http_client *client)
{
    return client->idle;
}

/* ---- open and close ---- */

void nb_http_client_close(nb_http_client *client)
{
    if (client == NULL)
        return;
    for (nb_http_slot *slot = client->all; slot != NULL;) {
        nb_http_slot *next = slot->all;
        if (slot->in_flight)
            curl_multi_remove_handle(client->multi, slot->curl);
        curl_easy_cleanup(slot->curl);
        nb_free(slot);
        slot = next;
    }
    if (client->multi != NULL)
        curl_multi_cleanup(client->multi);
    curl_slist_free_all(client->headers);
    if (client->global)
        curl_global_cleanup();
    if (client->timer >= 0)
        close(client->timer);
    if (client->epoll >= 0)
        close(client->epoll);
    nb_free((void *)(uintptr_t)client->options.api_key);
    nb_free(client);
}

/* Expect: would cost large prompts a round trip more. NULL when memory is out. */
static struct curl_slist *make_headers(void)
{
    struct curl_slist *list = curl_slist_append(NULL, "Content-Type: application/json");
    struct curl_slist *more = list == NULL ? NULL : curl_slist_append(list, "Expect:");
    if (more == NULL)
        curl_slist_free_all(list);
    return more;
}

static nb_status open_parts(nb_http_client *client, nb_err *err)
{
    client->global = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
    client->multi = client->global ? curl_multi_init() : NULL;
    client->headers = client->multi != NULL ? make_headers() : NULL;
    if (client->headers == NULL ||
        curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, on_socket) != CURLM_OK ||
        curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client) != CURLM_OK ||
        curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, on_timer) != CURLM_OK ||
        curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client) != CURLM_OK)
        return nb_fail(err, NB_MEMORY, "libcurl does not start");
    client->epoll = epoll_create1(EPOLL_CLOEXEC);
    client->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = client->timer};
    if (client->epoll < 0 || client->timer < 0 ||
        epoll_ctl(client->epoll, EPOLL_CTL_ADD, client->timer, &e) != 0)
        return nb_fail_errno(err, errno, "epoll");
    return NB_OK;
}

nb_status nb_http_client_open(nb_http_client **out, const nb_http_options *options, nb_err *err)
{
    nb_http_client *client;
    NB_TRY(NB_ALLOC(&client, 1, err));
    *client = (nb_http_client){.options = *options, .epoll = -1, .timer = -1, .curl_due = NEVER};
    client->options.api_key = NULL;
    nb_status s = NB_OK;
    if (options->api_key != NULL) {
        char *copy = NULL;
        const size_t room = strlen(options->api_key) + 1;
        s = NB_ALLOC(&copy, room, err);
        if (s == NB_OK)
            client->options.api_key = memcpy(copy, options->api_key, room);
    }
    if (s == NB_OK)
        s = open_parts(client, err);
    if (s != NB_OK) {
        nb_http_client_close(client);
        return s;
    }
    *out = client;
    return NB_OK;
}

/* ---- one question ---- */

typedef struct {
    nb_buf *out;
    nb_http_end end;
    nb_status status; /* of keeping the body */
    int http;
    bool ended;
    nb_err *err;
    char problem[CURL_ERROR_SIZE];
} question;

static bool question_body(void *context, const nb_http_answer *answer, const char *bytes, size_t n)
{
    question *q = context;
    (void)answer;
    q->status = nb_buf_put(q->out, bytes, n, q->err);
    return q->status == NB_OK;
}

static void question_end(void *context, const nb_http_answer *answer, nb_http_end end)
{
    question *q = context;
    q->ended = true;
    q->end = end;
    q->http = answer->status;
    snprintf(q->problem, sizeof q->problem, "%s", answer->problem);
}

nb_status nb_http_ask(const nb_http_options *options, const char *url, const char *body, size_t len,
                      nb_buf *out, int *status, nb_err *err)
{
    nb_http_options with = *options;
    with.user = (nb_http_user){.on_body = question_body, .on_end = question_end};
    nb_http_client *client;
    NB_TRY(nb_http_client_open(&client, &with, err));
    question q = {.out = out, .err = err};
    nb_status s = nb_http_client_send(client, url, body, len, &q, err);
    const double limit = nb_clock() + options->timeout_s + 1;
    while (s == NB_OK && !q.ended && nb_clock() < limit)
        s = nb_http_client_wait(client, limit, err);
    nb_http_client_close(client);
    if (s == NB_OK)
        s = q.status;
    if (s == NB_OK && (!q.ended || q.end != NB_HTTP_WHOLE))
        s = nb_fail(err, NB_IO, "%s", q.problem[0] != 0 ? q.problem : "no answer");
    if (s != NB_OK)
        return nb_context(err, "%s", url);
    *status = q.http;
    return NB_OK;
}

#endif
