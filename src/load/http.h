/* Many HTTP answers at a time on one thread: libcurl's multi interface over epoll.
 *
 * HTTP/1.1 with connections that are kept; no redirect is followed, no proxy is asked, since either
 * would be measured in the server's stead. Built without libcurl, opening is NB_UNSUPPORTED. */
#ifndef NB_LOAD_HTTP_H
#define NB_LOAD_HTTP_H

#include "base/bytes.h"

typedef struct nb_http_client nb_http_client;
typedef struct nb_http_slot nb_http_slot; /* a request in flight */

/* How the transfer itself ended. */
typedef enum {
    NB_HTTP_WHOLE,   /* an answer, to its end */
    NB_HTTP_CUT,     /* the connection ended inside the answer */
    NB_HTTP_NONE,    /* no answer at all */
    NB_HTTP_STOPPED, /* on_body said so */
    NB_HTTP_TIMEOUT,
} nb_http_end;

typedef struct {
    int status;          /* 0: none came */
    const char *type;    /* Content-Type; "" when there is none */
    double retry_after;  /* seconds; < 0: not told */
    const char *problem; /* libcurl's words for what went wrong; "" */
} nb_http_answer;

/* What a user of the client is told; `context` is that of the request. on_body returns false to
 * stop the transfer; after on_end, nothing more comes. */
typedef struct {
    bool (*on_body)(void *context, const nb_http_answer *answer, const char *bytes, size_t n);
    void (*on_end)(void *context, const nb_http_answer *answer, nb_http_end end);
} nb_http_user;

typedef struct {
    const char *api_key; /* NULL: none; sent as a bearer token */
    double timeout_s;    /* of a request, from its start to its end */
    bool insecure;       /* do not verify certificates */
    nb_http_user user;
} nb_http_options;

/* Options are copied, texts included. */
nb_status nb_http_client_open(nb_http_client **out, const nb_http_options *options, nb_err *err);
/* Ends what is in flight without a word; NULL is fine. */
void nb_http_client_close(nb_http_client *client);

/* Starts a request: POST of body[0, len) as JSON, or GET when body is NULL. The body stays the
 * caller's and must live until on_end. */
nb_status nb_http_client_send(nb_http_client *client, const char *url, const char *body, size_t len,
                              void *context, nb_err *err);
/* Waits until something came, the clock (nb_clock) reaches `until`, or a signal does; then tells
 * the user what there is. NB_IO and NB_MEMORY are the client's own troubles. */
nb_status nb_http_client_wait(nb_http_client *client, double until, nb_err *err);

/* Seconds spent asleep in nb_http_client_wait so far. */
double nb_http_client_idle(const nb_http_client *client);

/* One request to its end, for questions before the load: the body goes to `out`, which is bounded
 * by its limit. *status is that of HTTP. NB_IO when there is no answer. */
nb_status nb_http_ask(const nb_http_options *options, const char *url, const char *body, size_t len,
                      nb_buf *out, int *status, nb_err *err);

#endif
