/* See file.h. */
#define _GNU_SOURCE
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_llong fail_countdown;
static int fail_errnum;

void nb_file_fail_at(int64_t n, int errnum)
{
    fail_errnum = errnum;
    atomic_store(&fail_countdown, n);
}

/* True, with errno set, when a test planted a failure here. */
static bool planted_failure(void)
{
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) == 0 ||
        atomic_fetch_sub(&fail_countdown, 1) != 1)
        return false;
    errno = fail_errnum;
    return true;
}

static nb_status copy_text(char **out, const char *text, nb_err *err)
{
    const size_t n = strlen(text) + 1;
    NB_TRY(NB_ALLOC(out, n, err));
    memcpy(*out, text, n);
    return NB_OK;
}

static int64_t mtime_ns(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

/* ---- reading ---- */

nb_status nb_file_open(nb_file *file, const char *path, nb_err *err)
{
    *file = NB_FILE_CLOSED;
    nb_file opened = NB_FILE_CLOSED;
    /* O_NONBLOCK: opening a FIFO must not wait for a writer. */
    opened.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (opened.fd < 0) {
        const int e = errno;
        if (e == ENOENT || e == ENOTDIR || e == ELOOP || e == ENXIO || e == ENAMETOOLONG)
            return nb_fail(err, NB_DATA, "%s: %s", path, strerror(e));
        return nb_fail_errno(err, e, "%s", path);
    }
    nb_status s;
    struct stat st;
    if (fstat(opened.fd, &st) != 0) {
        s = nb_fail_errno(err, errno, "%s", path);
    } else if (!S_ISREG(st.st_mode)) {
        s = nb_fail(err, NB_DATA, "%s: not a regular file", path);
    } else {
        opened.size = (int64_t)st.st_size;
        opened.mtime_ns = mtime_ns(&st);
        s = copy_text(&opened.path, path, err);
    }
    if (s != NB_OK) {
        nb_file_close(&opened);
        return s;
    }
    *file = opened;
    return NB_OK;
}

void nb_file_close(nb_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    nb_free(file->path);
    *file = NB_FILE_CLOSED;
}

nb_status nb_file_read(const nb_file *file, void *out, size_t n, int64_t offset, nb_err *err)
{
    if (offset < 0 || offset > file->size || n > (uint64_t)(file->size - offset))
        return nb_fail(err, NB_DATA, "%s: %zu bytes at %lld are past the end of the file (%lld bytes)",
                       file->path, n, (long long)offset, (long long)file->size);
    uint8_t *p = out;
    while (n > 0) {
        const size_t piece = n < ((size_t)1 << 30) ? n : (size_t)1 << 30;
        const ssize_t got = planted_failure() ? -1 : pread(file->fd, p, piece, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return nb_fail_errno(err, errno, "%s: reading at byte %lld", file->path,
                                 (long long)offset);
        if (got == 0)
            return nb_fail(err, NB_IO, "%s: the file shrank while it was read", file->path);
        p += got;
        n -= (size_t)got;
        offset += got;
    }
    return NB_OK;
}

nb_status nb_file_check_unchanged(const nb_file *file, nb_err *err)
{
    struct stat st;
    if (fstat(file->fd, &st) != 0)
        return nb_fail_errno(err, errno, "%s", file->path);
    if ((int64_t)st.st_size < file->size)
        return nb_fail(err, NB_IO, "%s: the file shrank while it was read", file->path);
    if ((int64_t)st.st_size != file->size || mtime_ns(&st) != file->mtime_ns)
        return nb_fail(err, NB_DATA, "%s: changed while reading", file->path);
    return NB_OK;
}

nb_status nb_file_slurp(nb_buf *out, const char *path, size_t limit, nb_err *err)
{
    const bool is_stdin = strcmp(path, "-") == 0;
    nb_file file = NB_FILE_CLOSED;
    if (!is_stdin)
        NB_TRY(nb_file_open(&file, path, err));
    nb_status s = NB_OK;
    if (!is_stdin && (uint64_t)file.size > limit) {
        s = nb_fail(err, NB_DATA, "%s: %lld bytes, more than the %zu that such a file may have", path,
                    (long long)file.size, limit);
    } else if (!is_stdin) {
        s = nb_buf_reserve(out, (size_t)file.size + 1, err);
        if (s == NB_OK)
            s = nb_file_read(&file, out->data, (size_t)file.size, 0, err);
        if (s == NB_OK)
            out->len = (size_t)file.size;
    } else {
        for (;;) {
            s = nb_buf_reserve(out, 65536, err);
            if (s != NB_OK)
                break;
            const ssize_t got = read(STDIN_FILENO, out->data + out->len, 65536);
            if (got < 0 && errno == EINTR)
                continue;
            if (got < 0)
                s = nb_fail_errno(err, errno, "standard input");
            else
                out->len += (size_t)got;
            if (s == NB_OK && out->len > limit)
                s = nb_fail(err, NB_DATA, "standard input: more than %zu bytes", limit);
            if (s != NB_OK || got == 0)
                break;
        }
        if (s == NB_OK)
            s = nb_buf_reserve(out, 1, err);
    }
    if (s == NB_OK)
        out->data[out->len] = 0;
    nb_file_close(&file);
    return s;
}

bool nb_path_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

bool nb_path_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool nb_path_same(const char *a, const char *b)
{
    struct stat sa, sb;
    return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
           sa.st_ino == sb.st_ino;
}

/* ---- writing ---- */

/* "a/b/NAME" -> "a/b/.NAME.nibble-tmp"; trailing slashes are dropped from *path first. */
static nb_status name_temporary(char *path, char **temporary, nb_err *err)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        path[--n] = 0;
    const char *slash = strrchr(path, '/');
    const char *name = slash == NULL ? path : slash + 1;
    if (*name == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return nb_fail(err, NB_USAGE, "%s: not a name for an output", path);
    const size_t size = n + sizeof "..nibble-tmp";
    NB_TRY(NB_ALLOC(temporary, size, err));
    snprintf(*temporary, size, "%.*s.%s.nibble-tmp", (int)(name - path), path, name);
    return NB_OK;
}

static nb_status sync_parent(const char *path, nb_err *err)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        snprintf(folder, sizeof folder, ".");
    else
        snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return nb_fail_errno(err, errno, "%s", folder);
    /* Some file systems cannot sync a folder and say EINVAL; the rename stands all the same. */
    const bool bad = (planted_failure() || fsync(fd) != 0) && errno != EINVAL;
    const int e = errno;
    close(fd);
    return bad ? nb_fail_errno(err, e, "syncing %s", folder) : NB_OK;
}

static nb_status lock(int fd, const char *path, nb_err *err)
{
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return NB_OK;
    if (errno == EWOULDBLOCK)
        return nb_fail(err, NB_IO, "%s: locked: another process is writing it", path);
    return nb_fail_errno(err, errno, "%s: locking", path);
}

nb_status nb_outfile_open(nb_outfile *out, const char *path, bool force, nb_err *err)
{
    *out = NB_OUTFILE_CLOSED;
    nb_outfile o = NB_OUTFILE_CLOSED;
    nb_status s = copy_text(&o.path, path, err);
    if (s == NB_OK)
        s = name_temporary(o.path, &o.temporary, err);
    if (s == NB_OK && nb_path_is_dir(o.path))
        s = nb_fail(err, NB_USAGE, "%s: is a folder", path);
    if (s == NB_OK && !force && nb_path_exists(o.path))
        s = nb_fail(err, NB_USAGE, "%s: already exists (use --force to replace it)", path);
    if (s == NB_OK) {
        o.fd = open(o.temporary, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (o.fd < 0)
            s = nb_fail_errno(err, errno, "%s", path);
    }
    if (s == NB_OK) {
        s = lock(o.fd, path, err);
        if (s != NB_OK) { /* the temporary is the other process's: leave it */
            close(o.fd);
            o.fd = -1;
        }
    }
    if (s == NB_OK && ftruncate(o.fd, 0) != 0)
        s = nb_fail_errno(err, errno, "%s", path);
    if (s != NB_OK) {
        nb_outfile_abort(&o);
        return s;
    }
    *out = o;
    return NB_OK;
}

nb_status nb_outfile_write(nb_outfile *out, const void *bytes, size_t n, nb_err *err)
{
    const uint8_t *p = bytes;
    while (n > 0) {
        const size_t piece = n < ((size_t)1 << 30) ? n : (size_t)1 << 30;
        const ssize_t put = planted_failure() ? -1 : write(out->fd, p, piece);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return nb_fail_errno(err, errno, "%s: writing", out->path);
        p += put;
        n -= (size_t)put;
    }
    return NB_OK;
}

nb_status nb_outfile_commit(nb_outfile *out, nb_err *err)
{
    nb_status s = NB_OK;
    if (planted_failure() || fsync(out->fd) != 0)
        s = nb_fail_errno(err, errno, "%s: syncing", out->path);
    if (s == NB_OK && (planted_failure() || rename(out->temporary, out->path) != 0))
        s = nb_fail_errno(err, errno, "%s: renaming", out->path);
    if (s != NB_OK) {
        nb_outfile_abort(out);
        return s;
    }
    s = sync_parent(out->path, err);
    close(out->fd);
    nb_free(out->path);
    nb_free(out->temporary);
    *out = NB_OUTFILE_CLOSED;
    return s;
}

void nb_outfile_abort(nb_outfile *out)
{
    if (out->fd >= 0) {
        unlink(out->temporary);
        close(out->fd);
    }
    nb_free(out->path);
    nb_free(out->temporary);
    *out = NB_OUTFILE_CLOSED;
}

/* Removes the plain files and links inside a folder (nibble's folders hold nothing else). */
static void empty_folder(int folder_fd)
{
    const int fd = openat(folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (d == NULL) {
        if (fd >= 0)
            close(fd);
        return;
    }
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            unlinkat(folder_fd, e->d_name, 0);
    }
    closedir(d);
}

/* Holds a config.json, or nothing. */
static bool is_replaceable(const char *path)
{
    DIR *d = opendir(path);
    if (d == NULL)
        return false;
    bool any = false, config = false;
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        any = true;
        if (strcmp(e->d_name, "config.json") == 0)
            config = true;
    }
    closedir(d);
    return config || !any;
}

nb_status nb_outdir_open(nb_outdir *out, const char *path, bool force, nb_err *err)
{
    *out = NB_OUTDIR_CLOSED;
    nb_outdir o = NB_OUTDIR_CLOSED;
    nb_status s = copy_text(&o.path, path, err);
    if (s == NB_OK)
        s = name_temporary(o.path, &o.temporary, err);
    if (s == NB_OK && nb_path_exists(o.path)) {
        if (!nb_path_is_dir(o.path))
            s = nb_fail(err, NB_USAGE, "%s: is a file, and the output is a folder", path);
        else if (!force)
            s = nb_fail(err, NB_USAGE, "%s: already exists (use --force to replace it)", path);
        else if (!is_replaceable(o.path))
            s = nb_fail(err, NB_USAGE, "%s: is not a model folder, so it is not replaced", path);
        o.replaces = true;
    }
    if (s == NB_OK && mkdir(o.temporary, 0777) != 0 && errno != EEXIST)
        s = nb_fail_errno(err, errno, "%s", path);
    if (s == NB_OK) {
        o.fd = open(o.temporary, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        if (o.fd < 0)
            s = nb_fail_errno(err, errno, "%s", path);
    }
    if (s == NB_OK) {
        s = lock(o.fd, path, err);
        if (s != NB_OK) {
            close(o.fd);
            o.fd = -1;
        }
    }
    if (s != NB_OK) {
        nb_outdir_abort(&o);
        return s;
    }
    empty_folder(o.fd);
    *out = o;
    return NB_OK;
}

nb_status nb_outdir_commit(nb_outdir *out, nb_err *err)
{
    nb_status s = NB_OK;
    if (planted_failure() || (fsync(out->fd) != 0 && errno != EINVAL))
        s = nb_fail_errno(err, errno, "%s: syncing", out->path);
    if (s == NB_OK) {
        /* The exchange is atomic: at every instant one whole folder has the final name. */
        const unsigned flags = out->replaces ? RENAME_EXCHANGE : RENAME_NOREPLACE;
        if (planted_failure() ||
            renameat2(AT_FDCWD, out->temporary, AT_FDCWD, out->path, flags) != 0)
            s = nb_fail_errno(err, errno, "%s: renaming", out->path);
    }
    if (s != NB_OK) {
        nb_outdir_abort(out);
        return s;
    }
    if (out->replaces) {
        const int old = open(out->temporary, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        if (old >= 0) {
            empty_folder(old);
            close(old);
        }
        rmdir(out->temporary);
    }
    s = sync_parent(out->path, err);
    close(out->fd);
    nb_free(out->path);
    nb_free(out->temporary);
    *out = NB_OUTDIR_CLOSED;
    return s;
}

void nb_outdir_abort(nb_outdir *out)
{
    if (out->fd >= 0) {
        empty_folder(out->fd);
        rmdir(out->temporary);
        close(out->fd);
    }
    nb_free(out->path);
    nb_free(out->temporary);
    *out = NB_OUTDIR_CLOSED;
}
