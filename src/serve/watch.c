/* The watch: whoever left while waiting for an answer, sends too slowly, or waits in silence.
 *
 * A client that closes only its sending side counts as gone, as it does for uvicorn and nginx.
 *
 * libmicrohttpd does not look at the socket of a connection that is suspended, and its timeout asks
 * only whether anything moved: a byte every ten seconds would hold a connection for ever. */
#define _GNU_SOURCE
#include "serve/serving.h"

#include "base/clock.h"

#include <errno.h>
#include <netinet/in.h>
#include <linux/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* The line that nobody sends slower on, but to hold a connection. */
#define BODY_BYTES_PER_S 8192.0
#define TICK_MS          250

uint64_t nb_received_bytes(int fd)
{
    struct tcp_info info;
    memset(&info, 0, sizeof info);
    socklen_t len = sizeof info;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 ? info.tcpi_bytes_received : 0;
}

void nb_watch_add(nb_server *s, nb_link *l)
{
    struct epoll_event e = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.ptr = l};
    (void)epoll_ctl(s->watch_fd, EPOLL_CTL_ADD, l->fd, &e);
}

/* The watch may be about to look at the link: it is freed when no event can name it any more. */
void nb_watch_remove(nb_server *s, nb_link *l)
{
    (void)epoll_ctl(s->watch_fd, EPOLL_CTL_DEL, l->fd, NULL);
    l->prev->next = l->next;
    l->next->prev = l->prev;
    l->dead = true;
    l->next = s->dead;
    s->dead = l;
}

static void bury(nb_server *s)
{
    pthread_mutex_lock(&s->lock);
    nb_link *l = s->dead;
    s->dead = NULL;
    pthread_mutex_unlock(&s->lock);
    while (l != NULL) {
        nb_link *next = l->next;
        nb_free(l);
        l = next;
    }
}

void nb_watch_hang_up(nb_server *s, nb_call *c)
{
    pthread_mutex_lock(&c->lock);
    /* An answer that was handed over whole may have been read before anybody here knows. */
    const bool over = c->submitted ? c->reply.n_unfinished == 0 : c->state == NB_CALL_WRITING;
    const bool first = !over && !c->gone && !c->cancelled;
    if (!over) {
        c->gone = true;
        nb_call_wake(c);
    }
    pthread_mutex_unlock(&c->lock);
    if (first) {
        atomic_fetch_add(&s->metrics.disconnects, 1);
        nb_call_cancel(c);
    }
}

static void note_end(nb_server *s, nb_link *l, double now)
{
    nb_call *c = NULL;
    pthread_mutex_lock(&s->lock);
    if (!l->dead) {
        l->half_closed = now;
        c = l->call;
        if (c != NULL)
            nb_call_ref(c);
    }
    pthread_mutex_unlock(&s->lock);
    if (c == NULL)
        return;
    nb_watch_hang_up(s, c);
    nb_call_unref(c);
}

static bool is_too_slow(const nb_server *s, nb_link *l, double now)
{
    const double limit = (double)s->setup.send_s;
    if (l->half_closed > 0 && l->state != NB_LINK_ANSWER)
        return now - l->half_closed > TICK_MS / 1000.0; /* what was sent has been read by now */
    switch (l->state) {
    case NB_LINK_ANSWER:
        return false;
    case NB_LINK_BODY:
        return now - l->since > limit + (double)l->n_body / BODY_BYTES_PER_S;
    case NB_LINK_QUIET:
        if (l->began == 0 && nb_received_bytes(l->fd) > l->n_received)
            l->began = now;
        return l->began > 0 && now - l->began > limit;
    }
    return false;
}

static void look_at_links(nb_server *s, double now)
{
    pthread_mutex_lock(&s->lock);
    for (nb_link *l = s->links.next; l != &s->links; l = l->next) {
        if (!is_too_slow(s, l, now))
            continue;
        if (l->half_closed == 0)
            nb_metrics_reject(&s->metrics, NB_REJECT_TIMEOUT);
        (void)shutdown(l->fd, SHUT_RDWR);
        l->state = NB_LINK_ANSWER; /* once is enough */
    }
    pthread_mutex_unlock(&s->lock);
}

static void ping_streams(nb_server *s, double now)
{
    pthread_mutex_lock(&s->lock);
    for (nb_call *c = s->calls.next; c != &s->calls; c = c->next) {
        pthread_mutex_lock(&c->lock);
        if (c->state == NB_CALL_WRITING && c->suspended && !c->gone &&
            now - c->moved > (double)s->setup.ping_s) {
            c->ping = true;
            nb_call_wake(c);
        }
        pthread_mutex_unlock(&c->lock);
    }
    pthread_mutex_unlock(&s->lock);
}

void *nb_watch_run(void *server)
{
    nb_server *s = server;
    struct epoll_event events[64];
    double ticked = nb_clock();
    for (;;) {
        const int n = epoll_wait(s->watch_fd, events, 64, TICK_MS);
        if (n < 0 && errno != EINTR)
            return NULL;
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == NULL) {
                bury(s);
                return NULL; /* the server closes */
            }
            note_end(s, events[i].data.ptr, nb_clock());
        }
        bury(s);
        const double now = nb_clock();
        if (now - ticked < TICK_MS / 1000.0)
            continue;
        ticked = now;
        look_at_links(s, now);
        ping_streams(s, now);
        if (atomic_load(&s->state) != NB_SERVER_LOADING)
            nb_alerts_check(&s->alerts, now);
    }
}
