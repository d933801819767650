/* Between libmicrohttpd and calls: heads are checked, bodies gathered, answers handed over. All of
 * this runs on the one thread that moves bytes, so nothing here may take long. */
#define _GNU_SOURCE
#include "serve/serving.h"

#include "base/clock.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* A body that is refused is read to its end where that is near: a client that is still sending
 * would lose the answer to the reset that closing causes. */
#define DRAIN_BYTES ((uint64_t)1 << 20)

static const char *header(struct MHD_Connection *connection, const char *name)
{
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
}

/* ---- the head ---- */

typedef struct {
    int n_fields, n_lengths, n_encodings, n_hosts;
    const char *length, *encoding;
} framing;

static enum MHD_Result look_at(void *context, enum MHD_ValueKind kind, const char *name,
                               const char *value)
{
    framing *f = context;
    (void)kind;
    f->n_fields++;
    if (strcasecmp(name, "Content-Length") == 0) {
        f->n_lengths++;
        f->length = value;
    } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
        f->n_encodings++;
        f->encoding = value;
    } else if (strcasecmp(name, "Host") == 0) {
        f->n_hosts++;
    }
    return MHD_YES;
}

/* The value of Content-Length: digits only, at most 18 of them. */
static bool read_length(const char *text, uint64_t *length)
{
    const size_t n = text != NULL ? strlen(text) : 0;
    *length = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        *length = *length * 10 + (uint64_t)(text[i] - '0');
    }
    return n > 0 && n <= 18;
}

/* Where a message ends must be beyond doubt: two parties that read it differently are how a second
 * request is hidden in the first (RFC 9112, 6.3 and 11.2). After a doubt the connection closes. */
static nb_status check_framing(nb_call *c, struct MHD_Connection *connection, const char *version,
                               uint64_t *length)
{
    framing f = {0};
    (void)MHD_get_connection_values(connection, MHD_HEADER_KIND, look_at, &f);
    *length = 0;
    c->close_after = true;
    if (f.n_fields > 100)
        return nb_refuse(&c->head->why, 431, NULL, "%d header fields: there may be 100",
                         f.n_fields);
    if (f.n_hosts > 1)
        return nb_refuse(&c->head->why, 400, NULL, "more than one Host");
    if (f.n_lengths > 1 || f.n_encodings > 1 || (f.n_lengths > 0 && f.n_encodings > 0))
        return nb_refuse(&c->head->why, 400, NULL,
                         "Content-Length and Transfer-Encoding may come once, and not both");
    if (f.n_encodings > 0 && (f.encoding == NULL || strcasecmp(f.encoding, "chunked") != 0 ||
                              strcmp(version, MHD_HTTP_VERSION_1_1) != 0))
        return nb_refuse(&c->head->why, 400, NULL,
                         "Transfer-Encoding other than chunked, in HTTP/1.1");
    if (f.n_lengths > 0 && !read_length(f.length, length))
        return nb_refuse(&c->head->why, 400, NULL,
                         "Content-Length is no number that a body can have");
    c->close_after = false;
    return NB_OK;
}

/* ---- who may ask ---- */

static bool origin_is_listed(const nb_server *s, const char *origin)
{
    for (int i = 0; i < s->setup.n_origins; i++)
        if (strcmp(s->setup.origins[i], "*") == 0 || strcasecmp(s->setup.origins[i], origin) == 0)
            return true;
    return false;
}

/* A browser says whose page asks. A page of this very server may, and those that --cors lists; any
 * other could make a server on somebody's own machine work for it, unseen. */
static bool origin_may_ask(const nb_server *s, struct MHD_Connection *connection)
{
    const char *origin = header(connection, "Origin"), *host = header(connection, "Host");
    if (origin == NULL || origin_is_listed(s, origin))
        return true;
    const char *rest = strstr(origin, "://");
    return rest != NULL && host != NULL && strcasecmp(rest + 3, host) == 0;
}

static nb_status check_head(nb_call *c, struct MHD_Connection *connection, const char *url,
                            const char *method, const char *version, const char **allow,
                            uint64_t *length)
{
    nb_server *s = c->server;
    NB_TRY(check_framing(c, connection, version, length));
    const size_t n = strlen(url);
    if (n >= sizeof c->head->path)
        return nb_refuse(&c->head->why, 404, NULL, "there is no such path");
    memcpy(c->head->path, url, n + 1);
    const bool preflight = strcmp(method, "OPTIONS") == 0;
    c->is_options = preflight;
    c->route = nb_route_find(method, c->head->path, &c->tail, allow, &c->head->why);
    if (preflight && *allow != NULL) {
        c->head->why = (nb_problem){0};
        return NB_OK;
    }
    if (c->route == NULL)
        return NB_DATA;
    if (!c->route->open && !nb_keys_allow(s->setup.keys, header(connection, "Authorization")))
        return nb_refuse(&c->head->why, 401, NULL,
                         "an API key is needed: 'Authorization: Bearer KEY'");
    if (c->route->post != NULL && !origin_may_ask(s, connection))
        return nb_refuse(&c->head->why, 403, NULL, "pages of other sites may not ask");
    const int state = atomic_load(&s->state);
    if (!c->route->always &&
        (state == NB_SERVER_LOADING || (state == NB_SERVER_DRAINING && c->route->post != NULL))) {
        c->head->why.retry_after_s = 1;
        c->close_after = state == NB_SERVER_DRAINING;
        return nb_refuse(&c->head->why, 503, NULL, "%s",
                         state == NB_SERVER_LOADING ? "the model is being loaded"
                                                    : "the server is stopping");
    }
    if (*length > s->setup.max_body)
        return nb_refuse(&c->head->why, 413, NULL, "a body of %llu bytes: up to %zu are possible",
                         (unsigned long long)*length, s->setup.max_body);
    return NB_OK;
}

/* ---- answers ---- */

static void add(struct MHD_Response *r, const char *name, const char *value)
{
    (void)MHD_add_response_header(r, name, value);
}

static void add_origin(const nb_server *s, struct MHD_Connection *connection,
                       struct MHD_Response *r)
{
    if (s->setup.n_origins == 0)
        return;
    const char *origin = header(connection, "Origin");
    add(r, "Vary", "Origin");
    if (origin == NULL || strlen(origin) > 300 || !origin_is_listed(s, origin))
        return;
    add(r, "Access-Control-Allow-Origin", origin);
    add(r, "Access-Control-Expose-Headers", "Retry-After");
    add(r, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    add(r, "Access-Control-Allow-Headers", "Authorization, Content-Type");
    add(r, "Access-Control-Max-Age", "600");
}

static enum MHD_Result queue(nb_call *c, struct MHD_Connection *connection, struct MHD_Response *r,
                             unsigned http)
{
    if (r == NULL)
        return MHD_NO;
    add_origin(c->server, connection, r);
    if (c->page == NULL)
        add(r, "X-Content-Type-Options", "nosniff");
    if (c->close_after)
        add(r, "Connection", "close");
    const enum MHD_Result result = MHD_queue_response(connection, http, r);
    MHD_destroy_response(r);
    return result;
}

static enum MHD_Result answer(nb_call *c, struct MHD_Connection *connection, const char *allow)
{
    struct MHD_Response *r;
    if (c->out.status != NB_OK)
        return MHD_NO; /* no memory, not even to say so */
    if (c->is_static) {
        r = MHD_create_response_from_buffer(c->text_len, (void *)(uintptr_t)c->text,
                                            MHD_RESPMEM_PERSISTENT);
    } else {
        r = MHD_create_response_from_buffer_with_free_callback(c->out.buf.len, c->out.buf.data,
                                                               nb_free);
        if (r != NULL)
            c->out = (nb_wire){0}; /* the response's now */
    }
    if (r == NULL)
        return MHD_NO;
    char seconds[16];
    for (int i = 0; c->page != NULL && i < c->page->n_headers; i++)
        add(r, c->page->headers[i].name, c->page->headers[i].value);
    if (c->page == NULL)
        add(r, "Content-Type", c->type);
    if (c->head->why.retry_after_s > 0) {
        snprintf(seconds, sizeof seconds, "%d", c->head->why.retry_after_s);
        add(r, "Retry-After", seconds);
    }
    if (c->http == 401)
        add(r, "WWW-Authenticate", "Bearer");
    if (allow != NULL && (c->http == 405 || c->http == 204))
        add(r, "Allow", allow);
    return queue(c, connection, r, (unsigned)c->http);
}

static enum MHD_Result refuse(nb_call *c, struct MHD_Connection *connection, const char *allow)
{
    nb_call_refuse(c);
    return answer(c, connection, allow);
}

static enum MHD_Result start_stream(nb_call *c, struct MHD_Connection *connection)
{
    /* The block size is what libmicrohttpd keeps for each stream, besides its buffer. */
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 512, nb_call_read, c, NULL);
    if (r == NULL)
        return MHD_NO;
    nb_free(c->head);
    c->head = NULL;
    c->tail = NULL;
    add(r, "Content-Type", "text/event-stream");
    add(r, "Cache-Control", "no-cache");
    add(r, "X-Accel-Buffering", "no"); /* a proxy that gathers would undo what streaming is for */
    return queue(c, connection, r, 200);
}

/* ---- a request, step by step ---- */

static nb_link *link_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info != NULL ? info->socket_context : NULL;
}

static void set_link(nb_server *s, struct MHD_Connection *connection, nb_link_state state)
{
    nb_link *l = link_of(connection);
    if (l == NULL)
        return;
    pthread_mutex_lock(&s->lock);
    l->state = state;
    l->since = nb_clock();
    l->began = 0;
    l->n_body = 0;
    l->n_received = state == NB_LINK_QUIET ? nb_received_bytes(l->fd) : 0;
    pthread_mutex_unlock(&s->lock);
}

static enum MHD_Result begin(nb_server *s, struct MHD_Connection *connection, const char *url,
                             const char *method, const char *version, void **call)
{
    const nb_link *l = link_of(connection);
    nb_call *c = nb_call_new(s, connection, l != NULL ? l->fd : -1);
    if (c == NULL)
        return MHD_NO;
    *call = c;
    atomic_fetch_add(&s->metrics.requests, 1);
    set_link(s, connection, NB_LINK_BODY);
    const char *allow = NULL;
    uint64_t length;
    (void)check_head(c, connection, url, method, version, &allow, &length);
    const bool refused = c->head->why.http != 0;
    if (refused && (c->close_after || length > s->setup.max_body + DRAIN_BYTES ||
                    header(connection, "Expect") != NULL)) {
        c->close_after = true;
        return refuse(c, connection, allow);
    }
    return MHD_YES;
}

static enum MHD_Result gather(nb_call *c, const char *data, size_t n)
{
    nb_server *s = c->server;
    c->n_body += n;
    nb_link *l = link_of(c->connection);
    if (l != NULL) {
        pthread_mutex_lock(&s->lock);
        l->n_body = c->n_body;
        pthread_mutex_unlock(&s->lock);
    }
    if (c->n_body > s->setup.max_body + DRAIN_BYTES)
        return MHD_NO; /* too much even to refuse politely */
    if (c->head->why.http != 0 || c->is_options || c->route->get != NULL)
        return MHD_YES; /* not wanted */
    if (c->n_body > s->setup.max_body) {
        nb_refuse(&c->head->why, 413, NULL, "a body of more than %zu bytes", s->setup.max_body);
        return MHD_YES;
    }
    const size_t before = c->body.cap;
    if (nb_buf_put(&c->body, data, n, &c->head->why.err) != NB_OK) {
        nb_problem_settle(&c->head->why, NB_MEMORY);
        return MHD_YES;
    }
    const long long all = atomic_fetch_add(&s->body_bytes, (long long)(c->body.cap - before)) +
                          (long long)(c->body.cap - before);
    if (all > (long long)s->setup.max_bodies) {
        c->head->why.retry_after_s = 1;
        nb_refuse(&c->head->why, 503, NULL, "too many bodies are being received");
        atomic_fetch_sub(&s->body_bytes, (long long)c->body.cap);
        nb_buf_free(&c->body);
    }
    return MHD_YES;
}

/* The active calls are those that something else than this thread works on. */
static void activate(nb_server *s, nb_call *c)
{
    nb_link *l = link_of(c->connection);
    pthread_mutex_lock(&s->lock);
    c->active = true;
    c->prev = s->calls.prev;
    c->next = &s->calls;
    c->prev->next = c->next->prev = c;
    s->n_calls++;
    if (l != NULL)
        l->call = c;
    const bool left = l != NULL && l->half_closed > 0;
    pthread_mutex_unlock(&s->lock);
    if (left)
        nb_watch_hang_up(s, c);
}

static void deactivate(nb_server *s, nb_call *c, nb_link *l)
{
    pthread_mutex_lock(&s->lock);
    if (l != NULL)
        l->call = NULL;
    if (c->active) {
        c->active = false;
        c->prev->next = c->next;
        c->next->prev = c->prev;
        s->n_calls--;
        pthread_cond_broadcast(&s->fewer);
    }
    pthread_mutex_unlock(&s->lock);
}

static enum MHD_Result complete(nb_call *c, struct MHD_Connection *connection, const char *url,
                                const char *method)
{
    nb_server *s = c->server;
    const char *allow = NULL;
    set_link(s, connection, NB_LINK_ANSWER);
    if (c->head->why.http == 405 || c->is_options) {
        nb_problem again = {0};
        (void)nb_route_find(method, url, &c->tail, &allow, &again);
    }
    if (c->head->why.http != 0)
        return refuse(c, connection, allow);
    if (c->is_options) {
        c->http = 204;
        c->is_static = true;
        c->text = "";
        return answer(c, connection, allow);
    }
    if (c->route->get != NULL)
        return c->route->get(c) == NB_OK ? answer(c, connection, NULL)
                                         : refuse(c, connection, NULL);
    pthread_mutex_lock(&c->lock);
    c->state = NB_CALL_WORKING;
    c->suspended = true;
    MHD_suspend_connection(connection);
    pthread_mutex_unlock(&c->lock);
    activate(s, c);
    if (nb_desk_put(s, c))
        return MHD_YES;
    pthread_mutex_lock(&c->lock);
    c->head->why.retry_after_s = 1;
    nb_refuse(&c->head->why, 503, NULL, "too many requests wait to be read");
    nb_call_refuse(c);
    c->state = NB_CALL_READY;
    nb_call_wake(c);
    pthread_mutex_unlock(&c->lock);
    return MHD_YES;
}

/* Again, after somebody woke the connection. Answers are handed over without the call's lock:
 * libmicrohttpd holds one of its own while it calls nb_call_read. */
static enum MHD_Result proceed(nb_call *c, struct MHD_Connection *connection)
{
    pthread_mutex_lock(&c->lock);
    const bool gone = c->gone;
    const nb_call_state state = c->state;
    const bool told = state == NB_CALL_WORKING && c->submitted && c->reply.n_unfinished == 0;
    if (!gone && state == NB_CALL_WORKING && !told) {
        c->suspended = true; /* woken for nothing */
        MHD_suspend_connection(connection);
        pthread_mutex_unlock(&c->lock);
        return MHD_YES;
    }
    if (!gone)
        c->state = NB_CALL_WRITING;
    pthread_mutex_unlock(&c->lock);
    if (gone)
        return MHD_NO;
    if (state == NB_CALL_STREAM)
        return start_stream(c, connection);
    if (told)
        nb_call_write(c);
    return answer(c, connection, NULL);
}

enum MHD_Result nb_on_request(void *server, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *n_data, void **call)
{
    nb_call *c = *call;
    if (c == NULL)
        return begin(server, connection, url, method, version, call);
    if (*n_data > 0) {
        const size_t n = *n_data;
        *n_data = 0;
        return gather(c, data, n);
    }
    return c->state == NB_CALL_READING ? complete(c, connection, url, method)
                                       : proceed(c, connection);
}

void nb_on_completed(void *server, struct MHD_Connection *connection, void **call,
                     enum MHD_RequestTerminationCode how)
{
    nb_server *s = server;
    nb_call *c = *call;
    (void)how;
    *call = NULL;
    set_link(s, connection, NB_LINK_QUIET);
    if (c == NULL)
        return;
    deactivate(s, c, link_of(connection));
    pthread_mutex_lock(&c->lock);
    c->connection = NULL;
    const bool at_work = c->state == NB_CALL_WORKING || c->state == NB_CALL_STREAM || c->submitted;
    const bool left =
        at_work && !c->gone && !c->cancelled && !(c->submitted && c->reply.n_unfinished == 0);
    c->gone = true;
    pthread_mutex_unlock(&c->lock);
    if (left) {
        atomic_fetch_add(&s->metrics.disconnects, 1);
        nb_call_cancel(c);
    }
    nb_call_unref(c);
}

void nb_on_connection(void *server, struct MHD_Connection *connection, void **link,
                      enum MHD_ConnectionNotificationCode what)
{
    nb_server *s = server;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        nb_link *l;
        nb_err err;
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        *link = NULL;
        atomic_fetch_add(&s->metrics.connections, 1);
        if (info == NULL || NB_ALLOC(&l, 1, &err) != NB_OK)
            return; /* it is only not watched */
        l->fd = info->connect_fd;
        l->since = nb_clock();
        pthread_mutex_lock(&s->lock);
        l->prev = s->links.prev;
        l->next = &s->links;
        l->prev->next = l->next->prev = l;
        nb_watch_add(s, l);
        pthread_mutex_unlock(&s->lock);
        *link = l;
        return;
    }
    atomic_fetch_sub(&s->metrics.connections, 1);
    nb_link *l = *link;
    if (l == NULL)
        return;
    pthread_mutex_lock(&s->lock);
    nb_watch_remove(s, l);
    pthread_mutex_unlock(&s->lock);
    *link = NULL;
}
