/* See server.h. */
#define _GNU_SOURCE
#include "serve/serving.h"

#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Of descriptors that are no connections: the model, the library's own, what the program has. */
#define SPARE_DESCRIPTORS 32
/* Of the head of a request, its fields' descriptions included, and of what is written at a time.
 * After its first request a connection has touched all of it, and holds it while it is idle. */
#define CONNECTION_BYTES ((size_t)8 << 10)

/* Paths and queries stay as they were sent: no route has anything escaped in it. */
static size_t leave_escaped(void *context, struct MHD_Connection *connection, char *text)
{
    (void)context, (void)connection;
    return strlen(text);
}

static void no_log(void *context, const char *format, va_list args)
{
    (void)context, (void)format, (void)args;
}

static int64_t limit_connections(int64_t wanted)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return wanted;
    if (r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &r);
        (void)getrlimit(RLIMIT_NOFILE, &r);
    }
    int64_t most = r.rlim_cur > INT32_MAX ? INT32_MAX : (int64_t)r.rlim_cur - SPARE_DESCRIPTORS;
    most = most < 1 ? 1 : most;
    return wanted < most ? wanted : most;
}

static void set_defaults(nb_server_setup *u)
{
    static const nb_keys NO_KEYS;
    u->keys = u->keys != NULL ? u->keys : &NO_KEYS;
    u->max_body = u->max_body > 0 ? u->max_body : (size_t)8 << 20;
    u->max_bodies = u->max_bodies > 0 ? u->max_bodies : (size_t)256 << 20;
    u->max_unread = u->max_unread > 0 ? u->max_unread : (size_t)256 << 10;
    u->max_connections = u->max_connections > 0 ? u->max_connections : 8192;
    u->idle_s = u->idle_s > 0 ? u->idle_s : 60;
    u->send_s = u->send_s > 0 ? u->send_s : 15;
    u->ping_s = u->ping_s > 0 ? u->ping_s : 15;
}

static nb_status start_threads(nb_server *s, nb_err *err)
{
    s->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    if (s->watch_fd < 0 || s->wake_fd < 0 ||
        epoll_ctl(s->watch_fd, EPOLL_CTL_ADD, s->wake_fd, &e) != 0)
        return nb_fail_errno(err, errno, "watching connections");
    int r = pthread_create(&s->watch, NULL, nb_watch_run, s);
    s->has_watch = r == 0;
    for (int i = 0; i < NB_N_DESKS && r == 0; i++) {
        r = pthread_create(&s->desks[i], NULL, nb_desk_run, s);
        s->n_desks += r == 0;
    }
    return r == 0 ? NB_OK : nb_fail_errno(err, r, "a thread of the server");
}

static nb_status start_daemon(nb_server *s, nb_err *err)
{
    const int64_t most = limit_connections(s->setup.max_connections);
    s->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL,
        nb_on_request, s, MHD_OPTION_EXTERNAL_LOGGER, no_log, NULL, MHD_OPTION_LISTEN_SOCKET,
        (MHD_socket)s->setup.listener->fd, MHD_OPTION_NOTIFY_COMPLETED, nb_on_completed, s,
        MHD_OPTION_NOTIFY_CONNECTION, nb_on_connection, s, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)most, MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_BYTES,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)s->setup.idle_s, MHD_OPTION_UNESCAPE_CALLBACK,
        leave_escaped, NULL, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1,
        MHD_OPTION_END);
    if (s->daemon == NULL)
        return nb_fail(err, NB_IO, "%s: the HTTP server does not start",
                       s->setup.listener->address);
    s->setup.listener->fd = -1; /* the daemon closes it */
    return NB_OK;
}

nb_status nb_server_open(nb_server **out, const nb_server_setup *setup, nb_err *err)
{
    nb_server *s;
    NB_TRY(NB_ALLOC(&s, 1, err));
    s->setup = *setup;
    set_defaults(&s->setup);
    s->watch_fd = s->wake_fd = -1;
    s->links.prev = s->links.next = &s->links;
    s->calls.prev = s->calls.next = &s->calls;
    s->queue_end = &s->queue;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->fewer, &monotonic);
    pthread_condattr_destroy(&monotonic);
    nb_status status = start_threads(s, err);
    if (status == NB_OK)
        status = start_daemon(s, err);
    if (status != NB_OK) {
        nb_server_close(s);
        return status;
    }
    *out = s;
    return NB_OK;
}

nb_status nb_server_serve(nb_server *s, const nb_served *served, const nb_layer_error *errors,
                          int64_t n_errors, int64_t n_blocks, int64_t block_len, nb_err *err)
{
    nb_metrics_init(&s->metrics, served);
    s->metrics.errors = errors;
    s->metrics.n_errors = n_errors;
    s->metrics.n_blocks = n_blocks;
    s->metrics.block_len = block_len;
    NB_TRY(nb_alerts_open(&s->alerts, &s->setup.alerts, &s->metrics, served->name, s->setup.log,
                          s->setup.log_context, err));
    s->has_alerts = true;
    const nb_engine_observer observer = nb_metrics_observer(&s->metrics);
    nb_engine_observe(served->engine, &observer);
    s->served = served;
    atomic_store(&s->state, NB_SERVER_SERVING);
    return NB_OK;
}

/* ---- the end ---- */

/* Waits until no call is active; false when `until`, by nb_clock, comes first. */
static bool wait_for_calls(nb_server *s, double until)
{
    pthread_mutex_lock(&s->lock);
    while (s->n_calls > 0) {
        const double left = until - nb_clock();
        if (left <= 0)
            break;
        struct timespec at;
        clock_gettime(CLOCK_MONOTONIC, &at);
        const double nap = left < 0.1 ? left : 0.1;
        at.tv_nsec += (long)(nap * 1e9);
        at.tv_sec += at.tv_nsec / 1000000000;
        at.tv_nsec %= 1000000000;
        (void)pthread_cond_timedwait(&s->fewer, &s->lock, &at);
    }
    const bool none = s->n_calls == 0;
    pthread_mutex_unlock(&s->lock);
    return none;
}

/* Every active call ends with an error, or, at last, with its connection. */
static void end_calls(nb_server *s, bool at_once)
{
    pthread_mutex_lock(&s->lock);
    for (nb_call *c = s->calls.next; c != &s->calls; c = c->next) {
        pthread_mutex_lock(&c->lock);
        c->cancelled = true;
        if (c->submitted)
            nb_reply_end(&c->reply, NB_FINISH_ABORT, NULL);
        if (at_once) {
            c->gone = true;
            (void)shutdown(c->fd, SHUT_RDWR);
        }
        if (c->submitted || at_once)
            nb_call_wake(c);
        pthread_mutex_unlock(&c->lock);
    }
    pthread_mutex_unlock(&s->lock);
}

bool nb_server_drain(nb_server *s, double grace)
{
    atomic_store(&s->state, NB_SERVER_DRAINING);
    if (s->served == NULL)
        return true;
    nb_engine_drain(s->served->engine);
    const double start = nb_clock();
    if (wait_for_calls(s, start + grace))
        return true;
    end_calls(s, false);
    (void)wait_for_calls(s, nb_clock() + 1);
    return false;
}

void nb_server_stop(nb_server *s)
{
    if (s == NULL || s->stopped)
        return;
    s->stopped = true;
    atomic_store(&s->state, NB_SERVER_DRAINING);
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_broadcast(&s->work);
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < s->n_desks; i++)
        pthread_join(s->desks[i], NULL);
    /* No connection may be suspended when the daemon stops. */
    double wait = 0;
    for (int i = 0; i < 50 && !wait_for_calls(s, nb_clock() + wait); i++) {
        end_calls(s, true);
        wait = 0.1;
    }
    if (s->daemon != NULL)
        MHD_stop_daemon(s->daemon);
    if (s->has_watch) {
        (void)!write(s->wake_fd, &(uint64_t){1}, sizeof(uint64_t));
        pthread_join(s->watch, NULL);
    }
    if (s->has_alerts)
        nb_alerts_close(&s->alerts);
}

void nb_server_close(nb_server *s)
{
    if (s == NULL)
        return;
    nb_server_stop(s);
    if (s->watch_fd >= 0)
        close(s->watch_fd);
    if (s->wake_fd >= 0)
        close(s->wake_fd);
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->fewer);
    pthread_mutex_destroy(&s->lock);
    nb_free(s);
}
