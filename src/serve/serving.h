/* Inside the server: what its parts share. One lock of the server guards lists; one lock of each
 * call guards its state, and is held for short moments only, because the engine's thread takes it.
 * Order: server, then call; nothing of the engine is called while a call is locked. */
#ifndef NB_SERVE_SERVING_H
#define NB_SERVE_SERVING_H

#include "serve/page.h"
#include "serve/reply.h"
#include "serve/server.h"

#include <microhttpd.h>
#include <pthread.h>

typedef struct nb_call nb_call;
typedef struct nb_route nb_route;

enum { NB_N_DESKS = 2, NB_DESK_QUEUE = 1024 };

/* ---- a connection ---- */

typedef enum {
    NB_LINK_QUIET,  /* between requests, or in the head of one */
    NB_LINK_BODY,   /* a head was read, its body is not complete */
    NB_LINK_ANSWER, /* the client waits for us */
} nb_link_state;

typedef struct nb_link {
    struct nb_link *prev, *next;
    nb_call *call; /* the active one */
    bool dead;     /* closed; the watch frees it */
    int fd;
    double half_closed; /* when the client said that it sends no more; 0: it did not */
    nb_link_state state;
    double since;        /* of the state */
    double began;        /* QUIET: when bytes of a request were first seen; 0: not yet */
    uint64_t n_received; /* bytes of the connection, when the state began */
    uint64_t n_body;
} nb_link;

/* ---- a request ---- */

typedef enum {
    NB_CALL_READING, /* its body */
    NB_CALL_WORKING, /* at the desk, or in the engine, to be answered as a whole */
    NB_CALL_STREAM,  /* in the engine; events are to be written */
    NB_CALL_READY,   /* `http` and `out` are the answer */
    NB_CALL_WRITING, /* an answer was handed over */
} nb_call_state;

typedef struct {
    nb_call *call;
    int64_t prompt;
    uint64_t id; /* the engine's */
} nb_call_part;

/* What only the way to an answer needs; a stream that has begun, and may last, is without. */
typedef struct {
    nb_problem why;
    char path[512];
} nb_call_head;

struct nb_call {
    nb_server *server;
    nb_call *prev, *next; /* among the active */
    nb_call *next_queued; /* at the desk */
    bool active;          /* in the list; server's lock */
    atomic_int n_refs;

    pthread_mutex_t lock;              /* of what follows */
    struct MHD_Connection *connection; /* NULL: the client is gone */
    int fd;
    nb_call_state state;
    bool suspended, gone, cancelled;
    bool submitted;       /* all of it is with the engine, and the desk is done with it */
    bool has_reply, over; /* the last event was written */
    bool ping;
    double moved; /* when something was last written */
    nb_call_part *parts;
    int64_t n_parts;  /* that were handed to the engine */
    int64_t n_flying; /* of these, what it still holds */
    bool refills;     /* the desk is done: when a part ends, the engine's thread submits the next */

    /* One thread at a time: the socket's, then the desk's, then the socket's again. */
    const nb_route *route;
    nb_call_head *head;
    const char *tail; /* of the path, behind a route that ends with a slash */
    bool close_after, is_options;
    nb_buf body;
    size_t n_body;
    int http;
    const char *type;
    const nb_page *page; /* whose headers go with the answer; NULL: none */
    bool is_static;      /* the answer is `text` */
    const char *text;
    size_t text_len;
    nb_wire out;
    size_t n_sent; /* of out, of a stream */
    nb_ask ask;
    nb_reply reply;
};

nb_call *nb_call_new(nb_server *s, struct MHD_Connection *connection, int fd);
void nb_call_ref(nb_call *c);
void nb_call_unref(nb_call *c);
/* With the call's lock: the socket's thread is to look at it again. */
void nb_call_wake(nb_call *c);
/* The problem becomes the answer. */
void nb_call_refuse(nb_call *c);
/* Its client is gone, or the server cannot wait: the engine forgets it. */
void nb_call_cancel(nb_call *c);
/* Hands c->ask to the engine. */
nb_status nb_call_submit(nb_call *c);
/* The answer as a whole, once the engine has told all of it. */
void nb_call_write(nb_call *c);
/* libmicrohttpd's reader of a stream. */
ssize_t nb_call_read(void *call, uint64_t at, char *to, size_t size);

/* ---- routes ---- */

struct nb_route {
    const char *method; /* GET or POST */
    const char *path;   /* ends with a slash: what follows is the call's tail */
    bool open;          /* needs no key */
    bool always;        /* answers while the model is being loaded, too */
    /* On the socket's thread, which waits for it: sets the answer. */
    nb_status (*get)(nb_call *c);
    /* At the desk, with the body's JSON, whose reference it takes: sets the answer, or submits. */
    nb_status (*post)(nb_call *c, json_t *body);
};

/* The route, or NULL with *why: 404, or 405 (then *allow is what the path knows). */
const nb_route *nb_route_find(const char *method, const char *path, const char **tail,
                              const char **allow, nb_problem *why);
/* All of them, for what lists them; ends with a path that is NULL. */
extern const nb_route nb_routes[];

/* ---- the server ---- */

typedef enum { NB_SERVER_LOADING, NB_SERVER_SERVING, NB_SERVER_DRAINING } nb_server_state;

struct nb_server {
    nb_server_setup setup;
    struct MHD_Daemon *daemon;
    atomic_int state;
    const nb_served *served; /* set before the state is SERVING */
    nb_metrics metrics;
    nb_alerts alerts;
    atomic_llong body_bytes;

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t work;  /* there is something at the desk */
    pthread_cond_t fewer; /* a call is over */
    nb_link links;        /* heads of rings */
    nb_link *dead;        /* by next */
    nb_call calls;
    int64_t n_calls;
    nb_call *queue, **queue_end;
    int64_t n_queued;
    bool stopping, stopped;
    pthread_t desks[NB_N_DESKS];
    int n_desks;

    int watch_fd, wake_fd; /* epoll; an eventfd that ends the watch */
    pthread_t watch;
    bool has_watch, has_alerts;
};

/* Puts a call, which is suspended, on the desk. False: too much lies there. */
bool nb_desk_put(nb_server *s, nb_call *c);
void *nb_desk_run(void *server);

void *nb_watch_run(void *server);
/* With the server's lock: the connection is watched for its client leaving, or no more. */
void nb_watch_add(nb_server *s, nb_link *l);
void nb_watch_remove(nb_server *s, nb_link *l);
/* Its client is gone: the call is to be closed, and the engine told. */
void nb_watch_hang_up(nb_server *s, nb_call *c);
uint64_t nb_received_bytes(int fd);

/* libmicrohttpd's callbacks. */
enum MHD_Result nb_on_request(void *server, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *n_data, void **call);
void nb_on_completed(void *server, struct MHD_Connection *connection, void **call,
                     enum MHD_RequestTerminationCode how);
void nb_on_connection(void *server, struct MHD_Connection *connection, void **link,
                      enum MHD_ConnectionNotificationCode what);

#endif
