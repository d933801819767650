/* See listen.h. */
#define _GNU_SOURCE
#include "serve/listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 1024

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)a;
        return ntohl(in->sin_addr.s_addr) >> 24 == 127;
    }
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)a;
    return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

static void describe(nb_listener *l)
{
    struct sockaddr_storage a = {0};
    socklen_t len = sizeof a;
    char host[64] = "?", port[16] = "?";
    if (getsockname(l->fd, (struct sockaddr *)&a, &len) == 0)
        (void)getnameinfo((struct sockaddr *)&a, len, host, sizeof host, port, sizeof port,
                          NI_NUMERICHOST | NI_NUMERICSERV);
    l->loopback = is_loopback((struct sockaddr *)&a);
    snprintf(l->address, sizeof l->address,
             a.ss_family == AF_INET6 ? "http://[%s]:%s" : "http://%s:%s", host, port);
}

/* Binds to one address; errno says why not. */
static int bind_to(const struct addrinfo *a)
{
    const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    const int on = 1, off = 0;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6) /* "::" is everything, the older addresses too */
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    const int why = errno;
    close(fd);
    errno = why;
    return -1;
}

nb_status nb_listen_tcp(nb_listener *l, const char *host, int port, nb_err *err)
{
    *l = NB_LISTENER_CLOSED;
    char name[256], service[16];
    const size_t n = strlen(host);
    const bool brackets = n > 2 && host[0] == '[' && host[n - 1] == ']';
    snprintf(name, sizeof name, "%.*s", (int)(brackets ? n - 2 : n), host + brackets);
    snprintf(service, sizeof service, "%d", port);
    const struct addrinfo hints = {.ai_family = AF_UNSPEC,
                                   .ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    const int r = getaddrinfo(name, service, &hints, &list);
    if (r != 0)
        return nb_fail(err, NB_USAGE, "--host %.200s: %s", name, gai_strerror(r));
    int why = EADDRNOTAVAIL;
    for (const struct addrinfo *a = list; a != NULL && l->fd < 0; a = a->ai_next) {
        l->fd = bind_to(a);
        if (l->fd < 0)
            why = errno;
    }
    freeaddrinfo(list);
    if (l->fd < 0)
        return nb_fail_errno(err, why, "%.200s port %d", name, port);
    describe(l);
    return NB_OK;
}

/* True when the socket at `a` is one that nobody listens to. */
static bool is_stale(const struct sockaddr_un *a)
{
    struct stat st;
    if (lstat(a->sun_path, &st) != 0 || !S_ISSOCK(st.st_mode))
        return false;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    const bool refused =
        connect(fd, (const struct sockaddr *)a, sizeof *a) != 0 && errno == ECONNREFUSED;
    close(fd);
    return refused;
}

nb_status nb_listen_unix(nb_listener *l, const char *path, nb_err *err)
{
    *l = NB_LISTENER_CLOSED;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const size_t n = strlen(path);
    if (n == 0 || n >= sizeof a.sun_path)
        return nb_fail(err, NB_USAGE, "--unix: a path of %zu bytes: 1 to %zu are possible", n,
                       sizeof a.sun_path - 1);
    memcpy(a.sun_path, path, n + 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return nb_fail_errno(err, errno, "%s", path);
    if (is_stale(&a))
        (void)unlink(path);
    const mode_t before = umask(0177);
    const int bound = bind(fd, (const struct sockaddr *)&a, sizeof a);
    const int why = errno;
    (void)umask(before);
    if (bound != 0 || listen(fd, BACKLOG) != 0) {
        nb_fail_errno(err, bound != 0 ? why : errno, "%s", path);
        close(fd);
        return err->status;
    }
    l->fd = fd;
    l->loopback = true;
    memcpy(l->path, path, n + 1);
    snprintf(l->address, sizeof l->address, "unix:%s", path);
    return NB_OK;
}

void nb_listener_close(nb_listener *l)
{
    if (l->fd >= 0)
        close(l->fd);
    if (l->path[0] != 0)
        (void)unlink(l->path);
    *l = NB_LISTENER_CLOSED;
}
