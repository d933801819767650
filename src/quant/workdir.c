/* See workdir.h. */
#define _GNU_SOURCE
#include "quant/workdir.h"

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

nb_status nb_workdir_open(nb_workdir *w, const char *path, nb_err *err)
{
    *w = NB_WORKDIR_CLOSED;
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return nb_fail_errno(err, errno, "%s: cannot make the folder", path);
    nb_buf lock = {0};
    NB_TRY(nb_buf_format(&lock, err, "%s/" LOCK_NAME, path));
    const int fd = open((const char *)lock.data, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    const int why = errno;
    nb_buf_free(&lock);
    if (fd < 0)
        return nb_fail_errno(err, why, "%s: cannot work in this folder", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        close(fd);
        return nb_fail(err, NB_IO, "%s: another process works in this folder", path);
    }
    const size_t n = strlen(path) + 1;
    if (NB_ALLOC(&w->path, n, err) != NB_OK) {
        close(fd);
        return err->status;
    }
    memcpy(w->path, path, n);
    w->lock = fd;
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
    if (w->path == NULL || w->lock < 0)
        return;
    if (remove) {
        nb_workdir_clear(w);
        nb_buf lock = {0};
        nb_err ignored = {0};
        if (path_of(w, LOCK_NAME, &lock, &ignored) == NB_OK)
            (void)unlink((const char *)lock.data);
        nb_buf_free(&lock);
        (void)rmdir(w->path);
    }
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

nb_status nb_workdir_put_state(const nb_workdir *w, const json_t *state, nb_err *err)
{
    nb_buf text = {0};
    nb_status s = nb_json_write(&text, state, false, err);
    if (s == NB_OK)
        s = put_file(w, STATE_NAME, &(part){text.data, text.len}, 1, err);
    nb_buf_free(&text);
    return s;
}

nb_status nb_workdir_get_state(const nb_workdir *w, json_t **state, nb_err *err)
{
    *state = NULL;
    nb_buf path = {0};
    nb_status s = path_of(w, STATE_NAME, &path, err);
    if (s == NB_OK && nb_path_exists((const char *)path.data)) {
        s = nb_json_load(state, (const char *)path.data, MAX_STATE_BYTES, err);
        if (s != NB_OK && s != NB_MEMORY)
            s = NB_OK; /* as good as none */
    }
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
    nb_mat_arrays arrays;
    nb_mat_list_arrays(mat, &arrays);
    uint8_t digest[NB_SHA256_BYTES];
    digest_of(&arrays, digest);
    part parts[NB_MAT_MAX_ARRAYS + 1] = {{digest, sizeof digest}};
    for (int i = 0; i < arrays.n; i++)
        parts[i + 1] = (part){arrays.array[i].data, arrays.array[i].bytes};
    return put_file(w, name, parts, arrays.n + 1, err);
}

static nb_status read_mat(const nb_file *file, const nb_mat *mat, nb_err *err)
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
        return nb_fail(err, NB_DATA, "%s: is not what was written", file->path);
    return NB_OK;
}

nb_status nb_workdir_get_mat(const nb_workdir *w, int64_t index, nb_loaded *made, nb_err *err)
{
    char name[40];
    mat_name(name, sizeof name, index);
    nb_buf path = {0};
    nb_file file = NB_FILE_CLOSED;
    nb_status s = path_of(w, name, &path, err);
    if (s == NB_OK)
        s = nb_file_open(&file, (const char *)path.data, err);
    if (s == NB_OK)
        s = read_mat(&file, &made->mat, err);
    nb_file_close(&file);
    nb_buf_free(&path);
    return s;
}
