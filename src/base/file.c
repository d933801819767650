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
        const bool misnamed =
            e == ENOENT || e == ENOTDIR || e == ELOOP || e == ENXIO || e == ENAMETOOLONG;
        const nb_status failed = nb_fail_errno(err, e, "%s", path);
        return misnamed ? (err->status = NB_DATA) : failed;
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
        return nb_fail(err, NB_DATA,
                       "%s: %zu bytes at %lld are past the end of the file (%lld bytes)",
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

#define PIECE_BYTES ((int64_t)1 << 20)

nb_status nb_file_sha256(const nb_file *file, int64_t offset, uint8_t digest[NB_SHA256_BYTES],
                         nb_err *err)
{
    uint8_t *piece;
    nb_sha256 sha;
    nb_sha256_init(&sha);
    NB_TRY(NB_ALLOC(&piece, PIECE_BYTES, err));
    nb_status s = NB_OK;
    for (int64_t at = offset; at < file->size && s == NB_OK; at += PIECE_BYTES) {
        const int64_t left = file->size - at, n = left < PIECE_BYTES ? left : PIECE_BYTES;
        s = nb_file_read(file, piece, (size_t)n, at, err);
        if (s == NB_OK)
            nb_sha256_update(&sha, piece, (size_t)n);
    }
    nb_sha256_final(&sha, digest);
    nb_free(piece);
    return s;
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
        s = nb_fail(err, NB_DATA, "%s: %lld bytes, more than the %zu that such a file may have",
                    path, (long long)file.size, limit);
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

static bool name_taken(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

/* A rename over a device, a FIFO or a socket would take it away from all who use it. A link is a
 * name only: what it leads to stays. */
static bool is_special(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode) &&
           !S_ISLNK(st.st_mode);
}

static nb_status fail_exists(const char *path, nb_err *err)
{
    nb_fail(err, NB_USAGE, "already exists (use --force to replace it)");
    return nb_context(err, "%s", path);
}

/* Opens and locks the temporary file or folder, making it if need be. Between our open and our
 * lock, the process that held it may have renamed or removed it; then the descriptor is that of a
 * finished output, which must not be touched, and we try again. */
static nb_status open_temporary(int *fd, const char *temporary, bool folder, const char *path,
                                nb_err *err)
{
    const int flags = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK |
                      (folder ? O_RDONLY | O_DIRECTORY : O_WRONLY | O_CREAT);
    for (int attempt = 0; attempt < 100; attempt++) {
        if (folder && mkdir(temporary, 0777) != 0 && errno != EEXIST)
            return nb_fail_errno(err, errno, "%s", path);
        const int f = open(temporary, flags, 0666);
        if (f < 0 && folder && errno == ENOENT)
            continue;
        if (f < 0)
            return nb_fail_errno(err, errno, "%s: opening its temporary", path);
        struct stat mine, named;
        if (flock(f, LOCK_EX | LOCK_NB) != 0) {
            const int e = errno;
            close(f);
            if (e == EWOULDBLOCK)
                break;
            return nb_fail_errno(err, e, "%s: locking", path);
        }
        if (fstat(f, &mine) == 0 && lstat(temporary, &named) == 0 && mine.st_dev == named.st_dev &&
            mine.st_ino == named.st_ino) {
            /* A second name would be somebody's file, which writing here would destroy. */
            if (!folder && (!S_ISREG(mine.st_mode) || mine.st_nlink != 1)) {
                close(f);
                return nb_fail(err, NB_IO, "%s: %s is in the way", path, temporary);
            }
            *fd = f;
            return NB_OK;
        }
        close(f);
    }
    return nb_fail(err, NB_IO, "%s: locked: another process is writing it", path);
}

/* renameat2, or what comes nearest on a file system that does not know the flag. */
static int rename_new(const char *from, const char *to)
{
    if (!planted_failure() && renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -1;
    if (name_taken(to)) {
        errno = EEXIST;
        return -1;
    }
    return rename(from, to);
}

static int rename_over(const char *from, const char *to)
{
    return planted_failure() ? -1 : rename(from, to);
}

/* Afterwards `to` is the new folder and `from` the old one. The exchange is atomic: at every
 * instant one whole folder has the final name. Without it, the old one steps aside for a moment. */
static int rename_exchange(const char *from, const char *to)
{
    if (!planted_failure() && renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -1;
    char aside[PATH_MAX];
    if (snprintf(aside, sizeof aside, "%s-old", from) >= (int)sizeof aside) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (rename(to, aside) != 0)
        return -1;
    if (planted_failure() || rename(from, to) != 0) {
        const int e = errno;
        rename(aside, to);
        errno = e;
        return -1;
    }
    /* The new folder stands; where the old one lies no longer decides anything. */
    (void)rename(aside, from);
    return 0;
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
    if (s == NB_OK && is_special(o.path))
        s = nb_fail(err, NB_USAGE, "%s: not a regular file, so it is not replaced", path);
    if (s == NB_OK && !force && name_taken(o.path))
        s = fail_exists(path, err);
    o.replaces = force;
    if (s == NB_OK)
        s = open_temporary(&o.fd, o.temporary, false, path, err);
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
    if (s == NB_OK && (out->replaces ? rename_over(out->temporary, out->path)
                                     : rename_new(out->temporary, out->path)) != 0)
        s = errno == EEXIST ? fail_exists(out->path, err)
                            : nb_fail_errno(err, errno, "%s: renaming", out->path);
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

static nb_status amend(int fd, const char *path, int64_t offset, const uint8_t *p, size_t n,
                       nb_err *err)
{
    while (n > 0) {
        const ssize_t put = planted_failure() ? -1 : pwrite(fd, p, n, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return nb_fail_errno(err, errno, "%s: writing", path);
        p += put;
        offset += put;
        n -= (size_t)put;
    }
    if (planted_failure() || fsync(fd) != 0)
        return nb_fail_errno(err, errno, "%s: syncing", path);
    return NB_OK;
}

nb_status nb_file_amend(const char *path, int64_t offset, const void *bytes, size_t n, nb_err *err)
{
    const int fd = open(path, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return nb_fail_errno(err, errno, "%s: opening", path);
    const nb_status s = amend(fd, path, offset, bytes, n, err);
    close(fd);
    return s;
}

/* A stream over an open folder, from its start; the descriptor stays the caller's. */
static DIR *list_folder(int folder_fd)
{
    const int fd = openat(folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (d == NULL && fd >= 0)
        close(fd);
    return d;
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Removes the plain files and links inside a folder; false when something else is left. nibble's
 * folders hold nothing else. A pass that removed something is followed by another, because a
 * listing need not be complete while its folder changes. */
static bool empty_folder(int folder_fd)
{
    bool removed, left;
    do {
        removed = false;
        left = false;
        DIR *d = list_folder(folder_fd);
        if (d == NULL)
            return false;
        for (const struct dirent *e; (e = readdir(d)) != NULL;) {
            if (is_dots(e->d_name))
                continue;
            if (unlinkat(folder_fd, e->d_name, 0) == 0)
                removed = true;
            else
                left = true;
        }
        closedir(d);
    } while (removed);
    return !left;
}

/* NB_OK when nibble may delete this folder: it holds a config.json or nothing, and no folders. */
static nb_status check_replaceable(int folder_fd, const char *path, nb_err *err)
{
    DIR *d = list_folder(folder_fd);
    if (d == NULL)
        return nb_fail_errno(err, errno, "%s", path);
    bool any = false, config = false, folders = false;
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        if (is_dots(e->d_name))
            continue;
        any = true;
        struct stat st;
        if (fstatat(folder_fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || S_ISDIR(st.st_mode))
            folders = true;
        else if (strcmp(e->d_name, "config.json") == 0)
            config = true;
    }
    closedir(d);
    if (folders)
        return nb_fail(err, NB_USAGE, "%s: holds folders of its own, so it is not replaced", path);
    if (any && !config)
        return nb_fail(err, NB_USAGE, "%s: is not a model folder, so it is not replaced", path);
    return NB_OK;
}

/* Opens and locks the folder that is about to be replaced. The lock keeps another process, which
 * would find it under the temporary's name for a moment, from writing into it. */
static nb_status open_replaced(int *fd, const char *path, nb_err *err)
{
    const int f = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (f < 0 && (errno == ELOOP || errno == ENOTDIR))
        return nb_fail(err, NB_USAGE, "%s: is not a folder, and the output is one", path);
    if (f < 0)
        return nb_fail_errno(err, errno, "%s", path);
    nb_status s = NB_OK;
    if (flock(f, LOCK_EX | LOCK_NB) != 0)
        s = nb_fail_errno(err, errno, "%s: locking the folder to replace", path);
    if (s == NB_OK)
        s = check_replaceable(f, path, err);
    if (s != NB_OK) {
        close(f);
        return s;
    }
    *fd = f;
    return NB_OK;
}

nb_status nb_outdir_open(nb_outdir *out, const char *path, bool force, nb_err *err)
{
    *out = NB_OUTDIR_CLOSED;
    nb_outdir o = NB_OUTDIR_CLOSED;
    nb_status s = copy_text(&o.path, path, err);
    if (s == NB_OK)
        s = name_temporary(o.path, &o.temporary, err);
    if (s == NB_OK && name_taken(o.path)) {
        if (!force && nb_path_is_dir(o.path)) {
            s = fail_exists(path, err);
        } else {
            /* Refused now rather than after an hour of work; looked at again before it goes. */
            int old = -1;
            s = open_replaced(&old, o.path, err);
            if (old >= 0)
                close(old);
        }
        o.replaces = true;
    }
    if (s == NB_OK)
        s = open_temporary(&o.fd, o.temporary, true, path, err);
    if (s == NB_OK && !empty_folder(o.fd))
        s = nb_fail(err, NB_IO, "%s: %s holds more than files; please remove it", path,
                    o.temporary);
    if (s != NB_OK) {
        nb_outdir_abort(&o);
        return s;
    }
    *out = o;
    return NB_OK;
}

nb_status nb_outdir_commit(nb_outdir *out, nb_err *err)
{
    nb_status s = NB_OK;
    int old = -1;
    if (planted_failure() || (fsync(out->fd) != 0 && errno != EINVAL))
        s = nb_fail_errno(err, errno, "%s: syncing", out->path);
    out->replaces = out->replaces && name_taken(out->path);
    if (s == NB_OK && out->replaces)
        s = open_replaced(&old, out->path, err);
    if (s == NB_OK && (out->replaces ? rename_exchange(out->temporary, out->path)
                                     : rename_new(out->temporary, out->path)) != 0)
        s = errno == EEXIST ? fail_exists(out->path, err)
                            : nb_fail_errno(err, errno, "%s: renaming", out->path);
    if (s != NB_OK) {
        if (old >= 0)
            close(old);
        nb_outdir_abort(out);
        return s;
    }
    if (old >= 0) {
        empty_folder(old);
        rmdir(out->temporary);
        close(old);
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
