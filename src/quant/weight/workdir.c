/* See workdir.h. */
#define _GNU_SOURCE
#include "quant/weight/workdir.h"

#include "base/sha256.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_STATE_BYTES ((size_t)64 << 20)
#define LOCK_NAME       "lock"
#define STATE_NAME      "state.json"

static nb_status path_of(const nb_workdir *w, const char *name, nb_buf *out, nb_err *err)
{
    return nb_buf_format(out, err, "%s/%s", w->path, name);
}

/* Between our open and our lock, the process that held the lock may have removed it with the
 * folder: then it keeps nobody out, and we try again. */
static nb_status take_lock(int *out, const char *lock, const char *folder, nb_err *err)
{
    for (int attempt = 0; attempt < 100; attempt++) {
        if (mkdir(folder, 0700) != 0 && errno != EEXIST)
            return nb_fail_errno(err, errno, "%s: cannot make the folder", folder);
        const int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        if (fd < 0 && errno == ENOENT)
            continue;
        if (fd < 0)
            return nb_fail_errno(err, errno, "%s: cannot work in this folder", folder);
        struct stat mine, named;
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            const int why = errno;
            close(fd);
            if (why == EWOULDBLOCK)
                break;
            return nb_fail_errno(err, why, "%s: cannot lock this folder", folder);
        }
        if (fstat(fd, &mine) == 0 && lstat(lock, &named) == 0 && mine.st_dev == named.st_dev &&
            mine.st_ino == named.st_ino) {
            *out = fd;
            return NB_OK;
        }
        close(fd);
    }
    return nb_fail(err, NB_IO, "%s: another process works in this folder", folder);
}

nb_status nb_workdir_open(nb_workdir *w, const char *path, nb_err *err)
{
    *w = NB_WORKDIR_CLOSED;
    nb_buf lock = {0};
    NB_TRY(nb_buf_format(&lock, err, "%s/" LOCK_NAME, path));
    int fd = -1;
    const nb_status s = take_lock(&fd, (const char *)lock.data, path, err);
    nb_buf_free(&lock);
    NB_TRY(s);
    const size_t n = strlen(path) + 1;
    if (NB_ALLOC(&w->path, n, err) != NB_OK) {
        close(fd);
        return err->status;
    }
    memcpy(w->path, path, n);
    w->lock = fd;
    return NB_OK;
}

nb_status nb_workdir_look(nb_workdir *w, const char *path, nb_err *err)
{
    const size_t n = strlen(path) + 1;
    *w = NB_WORKDIR_CLOSED;
    NB_TRY(NB_ALLOC(&w->path, n, err));
    memcpy(w->path, path, n);
    return NB_OK;
}

/* Whether a file is one of ours: scratch, state, weight, or the temporary of one. */
static bool is_ours(const char *name)
{
    const size_t n = strlen(name);
    return strcmp(name, STATE_NAME) == 0 || (n > 4 && strcmp(name + n - 4, ".bin") == 0) ||
           strstr(name, ".nibble-tmp") != NULL;
}

void nb_workdir_clear(const nb_workdir *w)
{
    DIR *dir = opendir(w->path);
    if (dir == NULL)
        return;
    for (struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
        if (is_ours(e->d_name))
            (void)unlinkat(dirfd(dir), e->d_name, 0);
    }
    closedir(dir);
}

void nb_workdir_close(nb_workdir *w, bool remove)
{
    if (w->path == NULL)
        return;
    if (remove && w->lock >= 0) {
        nb_workdir_clear(w);
        nb_buf lock = {0};
        nb_err ignored = {0};
        if (path_of(w, LOCK_NAME, &lock, &ignored) == NB_OK)
            (void)unlink((const char *)lock.data);
        nb_buf_free(&lock);
        (void)rmdir(w->path);
    }
    if (w->lock >= 0)
        close(w->lock);
    nb_free(w->path);
    *w = NB_WORKDIR_CLOSED;
}

nb_status nb_workdir_spill(const nb_workdir *w, const char *name, size_t row_bytes, int64_t n_rows,
                           nb_spill *out, nb_err *err)
{
    nb_buf path = {0};
    nb_status s = nb_buf_format(&path, err, "%s/%s.bin", w->path, name);
    if (s == NB_OK)
        s = nb_spill_open(out, (const char *)path.data, row_bytes, n_rows, err);
    nb_buf_free(&path);
    return s;
}

/* ---- whole files ---- */

/* What a file consists of, one part after the other. */
typedef struct {
    const void *bytes;
    size_t n;
} part;

static nb_status put_file(const nb_workdir *w, const char *name, const part *parts, int n_parts,
                          nb_err *err)
{
    nb_buf path = {0};
    nb_outfile out = NB_OUTFILE_CLOSED;
    nb_status s = path_of(w, name, &path, err);
    if (s == NB_OK)
        s = nb_outfile_open(&out, (const char *)path.data, true, err);
    for (int i = 0; i < n_parts && s == NB_OK; i++)
        s = nb_outfile_write(&out, parts[i].bytes, parts[i].n, err);
    if (s == NB_OK)
        s = nb_outfile_commit(&out, err);
    else
        nb_outfile_abort(&out);
    nb_buf_free(&path);
    return s;
}

/* The SHA-256 of a state as text. What was read back gives the same text: members keep their order
 * here, and reals are written with all their digits. */
static nb_status digest_of_state(const json_t *state, char hex[NB_SHA256_HEX], nb_err *err)
{
    nb_buf text = {0};
    const nb_status s = nb_json_write(&text, state, false, err);
    if (s == NB_OK)
        nb_sha256_hex(text.data, text.len, hex);
    nb_buf_free(&text);
    return s;
}

nb_status nb_workdir_put_state(const nb_workdir *w, const json_t *state, nb_err *err)
{
    char hex[NB_SHA256_HEX];
    nb_buf text = {0};
    NB_TRY(digest_of_state(state, hex, err));
    json_t *both = json_pack("{s:s, s:O}", "sha256", hex, "state", state);
    nb_status s = both != NULL ? nb_json_write(&text, both, false, err)
                               : nb_fail(err, NB_MEMORY, "no memory for the state");
    if (s == NB_OK)
        s = put_file(w, STATE_NAME, &(part){text.data, text.len}, 1, err);
    json_decref(both);
    nb_buf_free(&text);
    return s;
}

/* The state in what was read, if it is what was written. */
static nb_status take_state(const json_t *both, json_t **state, nb_err *err)
{
    char hex[NB_SHA256_HEX];
    json_t *inner = json_object_get(both, "state");
    const char *wanted = json_string_value(json_object_get(both, "sha256"));
    if (!json_is_object(inner) || wanted == NULL)
        return NB_OK;
    NB_TRY(digest_of_state(inner, hex, err));
    if (strcmp(hex, wanted) == 0)
        *state = json_incref(inner);
    return NB_OK;
}

nb_status nb_workdir_get_state(const nb_workdir *w, json_t **state, bool *damaged, nb_err *err)
{
    *state = NULL;
    *damaged = false;
    json_t *both = NULL;
    nb_buf path = {0};
    nb_status s = path_of(w, STATE_NAME, &path, err);
    if (s == NB_OK && nb_path_exists((const char *)path.data)) {
        s = nb_json_load(&both, (const char *)path.data, MAX_STATE_BYTES, err);
        if (s == NB_OK)
            s = take_state(both, state, err);
        else if (s != NB_MEMORY)
            s = NB_OK; /* as good as none */
        *damaged = *state == NULL;
    }
    json_decref(both);
    nb_buf_free(&path);
    return s;
}

/* ---- matrices ---- */

static void mat_name(char *name, size_t size, int64_t index)
{
    snprintf(name, size, "weight-%06lld.bin", (long long)index);
}

static void digest_of(const nb_mat_arrays *a, uint8_t digest[NB_SHA256_BYTES])
{
    nb_sha256 sha;
    nb_sha256_init(&sha);
    for (int i = 0; i < a->n; i++)
        nb_sha256_update(&sha, a->array[i].data, a->array[i].bytes);
    nb_sha256_final(&sha, digest);
}

nb_status nb_workdir_put_mat(const nb_workdir *w, int64_t index, const nb_mat *mat, nb_err *err)
{
    char name[40];
    mat_name(name, sizeof name, index);
    nb_mat listed = *mat;
    nb_mat_arrays arrays;
    nb_mat_list_arrays(&listed, &arrays);
    uint8_t digest[NB_SHA256_BYTES];
    digest_of(&arrays, digest);
    part parts[NB_MAT_MAX_ARRAYS + 1] = {{digest, sizeof digest}};
    for (int i = 0; i < arrays.n; i++)
        parts[i + 1] = (part){arrays.array[i].data, arrays.array[i].bytes};
    return put_file(w, name, parts, arrays.n + 1, err);
}

static nb_status read_mat(const nb_file *file, nb_mat *mat, nb_err *err)
{
    nb_mat_arrays arrays;
    nb_mat_list_arrays(mat, &arrays);
    uint8_t wanted[NB_SHA256_BYTES], found[NB_SHA256_BYTES];
    NB_TRY(nb_file_read(file, wanted, sizeof wanted, 0, err));
    int64_t at = sizeof wanted;
    for (int i = 0; i < arrays.n; i++) {
        NB_TRY(nb_file_read(file, arrays.array[i].data, arrays.array[i].bytes, at, err));
        at += (int64_t)arrays.array[i].bytes;
    }
    digest_of(&arrays, found);
    if (at != file->size || memcmp(wanted, found, sizeof wanted) != 0)
        return nb_fail(err, NB_DATA, "%s: is not what was written; the same command starts anew",
                       file->path);
    return NB_OK;
}

static nb_status open_mat(const nb_workdir *w, int64_t index, nb_file *file, nb_err *err)
{
    char name[40];
    mat_name(name, sizeof name, index);
    nb_buf path = {0};
    nb_status s = path_of(w, name, &path, err);
    if (s == NB_OK)
        s = nb_file_open(file, (const char *)path.data, err);
    nb_buf_free(&path);
    return s;
}

nb_status nb_workdir_get_mat(const nb_workdir *w, int64_t index, nb_loaded *made, nb_err *err)
{
    nb_file file = NB_FILE_CLOSED;
    nb_status s = open_mat(w, index, &file, err);
    if (s == NB_OK)
        s = read_mat(&file, &made->mat, err);
    nb_file_close(&file);
    return s;
}

/* A matrix file: its digest, then bytes that have it. */
static nb_status check_file(const nb_file *file, bool *good, nb_err *err)
{
    uint8_t wanted[NB_SHA256_BYTES], found[NB_SHA256_BYTES];
    if (file->size < (int64_t)sizeof wanted)
        return NB_OK;
    NB_TRY(nb_file_read(file, wanted, sizeof wanted, 0, err));
    NB_TRY(nb_file_sha256(file, sizeof wanted, found, err));
    *good = memcmp(wanted, found, sizeof wanted) == 0;
    return NB_OK;
}

nb_status nb_workdir_check_mat(const nb_workdir *w, int64_t index, bool *good, nb_err *err)
{
    *good = false;
    nb_file file = NB_FILE_CLOSED;
    nb_status s = open_mat(w, index, &file, err);
    if (s == NB_OK)
        s = check_file(&file, good, err);
    nb_file_close(&file);
    return s == NB_MEMORY ? s : NB_OK;
}
