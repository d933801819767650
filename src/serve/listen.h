/* The socket a server listens on. */
#ifndef NB_SERVE_LISTEN_H
#define NB_SERVE_LISTEN_H

#include "base/status.h"

typedef struct {
    int fd;            /* -1: closed */
    bool loopback;     /* nobody outside this machine can reach it */
    char address[200]; /* "http://127.0.0.1:8000", or "unix:PATH" */
    char path[108];    /* of a Unix socket, removed when it is closed; "": none */
} nb_listener;

#define NB_LISTENER_CLOSED ((nb_listener){.fd = -1})

/* Port 0 takes one that is free. NB_IO names the address that is in use or cannot be had; NB_USAGE:
 * there is no such address. */
nb_status nb_listen_tcp(nb_listener *l, const char *host, int port, nb_err *err);
/* A socket that nobody serves any more is replaced; anything else at `path` is left alone (NB_IO).
 * Only this user can connect. */
nb_status nb_listen_unix(nb_listener *l, const char *path, nb_err *err);
void nb_listener_close(nb_listener *l);

#endif
