/* The HTTP server: OpenAI's and SGLang's routes over an engine, on libmicrohttpd.
 *
 * Threads: one of libmicrohttpd's moves bytes; two at the desk read requests (JSON, templates,
 * tokens), so that a long prompt holds up nobody; one watches for clients that leave, dawdle, or
 * wait in silence; and the engine's own tells answers. None of them waits for a client.
 *
 * Everything that a client can make grow has a limit, here or in ask.h. */
#ifndef NB_SERVE_SERVER_H
#define NB_SERVE_SERVER_H

#include "serve/alerts.h"
#include "serve/keys.h"
#include "serve/listen.h"

typedef struct nb_server nb_server;

/* Zeros mean the values in brackets. All pointers are borrowed. */
typedef struct {
    nb_listener *listener;
    const nb_keys *keys;
    const char *const *origins; /* [n_origins] whose pages may ask; "*" for all */
    int n_origins;
    size_t max_body;         /* bytes of a request [8 MiB] */
    size_t max_bodies;       /* of all that are being received [256 MiB] */
    size_t max_unread;       /* of a stream whose reader stands still [256 KiB] */
    int64_t max_connections; /* [8192], less where descriptors are fewer */
    int64_t idle_s;          /* a connection on which nothing moves is closed [60] */
    int64_t send_s;          /* time for a request's head, and for its body beside what a slow
                                line takes, 8 KiB a second [15] */
    int64_t ping_s;          /* a stream that is silent for so long gets a comment [15] */
    nb_alert_rules alerts;
    nb_alert_log *log;
    void *log_context;
} nb_server_setup;

/* Starts to answer: until nb_server_serve only that the model is being loaded. The listener's
 * descriptor is the server's from then on. */
nb_status nb_server_open(nb_server **out, const nb_server_setup *setup, nb_err *err);
/* The model is there. `served` and `errors` (of its report) are borrowed until the server closes.
 * Call once, before the engine has requests. */
nb_status nb_server_serve(nb_server *s, const nb_served *served, const nb_layer_error *errors,
                          int64_t n_errors, int64_t n_blocks, int64_t block_len, nb_err *err);
/* Takes no more work (503), lets what is there end, and ends with an error what takes longer than
 * `grace` seconds. False when something had to be ended. */
bool nb_server_drain(nb_server *s, double grace);
/* Closes every connection and ends the threads. What the engine still tells is taken in and
 * forgotten: so then the engine is closed, and the server after it. NULL is fine. */
void nb_server_stop(nb_server *s);
/* Stops, and frees. NULL is fine. */
void nb_server_close(nb_server *s);

#endif
