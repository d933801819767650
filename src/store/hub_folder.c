/* The folder of a pull: its name, its lock, and the marker that says what is in it. */
#define _GNU_SOURCE
#include "store/hub_job.h"

#include "base/file.h"
#include "base/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARKER     ".nibble-pull.json"
#define MARKER_MAX ((size_t)32 << 20)

nb_status nb_hub_name_folder(nb_hub_job *p, nb_err *err)
{
    const nb_hub_request *r = p->r;
    if (r->folder != NULL)
        return nb_arena_text(&p->arena, &p->folder, r->folder, strlen(r->folder), err);
    if (r->cache == NULL)
        return nb_fail(err, NB_USAGE,
                       "no folder to keep it in: set NIBBLE_CACHE, or give one with -o");
    if (p->known != NULL)
        return nb_arena_text(&p->arena, &p->folder, r->cache, strlen(r->cache), err);
    nb_buf name = {0};
    nb_status s = NB_OK;
    const bool is_main = strcmp(r->revision, "main") == 0;
    const char *parts[] = {p->repo, is_main ? "" : "@", is_main ? "" : r->revision};
    for (int i = 0; i < 3; i++) {
        for (const char *c = parts[i]; s == NB_OK && *c != 0; c++)
            s = *c == '/' ? nb_buf_text(&name, "--", err) : nb_buf_u8(&name, (uint8_t)*c, err);
    }
    if (s == NB_OK)
        s = nb_arena_format(&p->arena, &p->folder, err, "%s/%.*s", r->cache, (int)name.len,
                            (const char *)name.data);
    nb_buf_free(&name);
    return s;
}

/* mkdir -p of everything before the last '/' (or of all of it). */
nb_status nb_hub_make_folders(const char *path, bool all, nb_err *err)
{
    char text[4096];
    const size_t n = strlen(path);
    if (n >= sizeof text)
        return nb_fail(err, NB_USAGE, "the path is too long (%zu bytes)", n);
    memcpy(text, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (text[i] != '/' && !(all && i == n))
            continue;
        const char kept = text[i];
        text[i] = 0;
        if (mkdir(text, 0777) != 0 && errno != EEXIST)
            return nb_fail_errno(err, errno, "%s", text);
        text[i] = kept;
    }
    return NB_OK;
}

/* Makes the folder and keeps other pulls out of it for as long as this one runs. */
nb_status nb_hub_lock_folder(nb_hub_job *p, nb_err *err)
{
    if (p->lock >= 0)
        return NB_OK;
    NB_TRY(nb_hub_make_folders(p->folder, true, err));
    p->lock = open(p->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (p->lock < 0)
        return nb_fail_errno(err, errno, "%s", p->folder);
    if (flock(p->lock, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK
                   ? nb_fail(err, NB_IO, "%s: locked: another process is writing it", p->folder)
                   : nb_fail_errno(err, errno, "%s: locking", p->folder);
    return NB_OK;
}

int64_t nb_hub_size_of(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
}

nb_status nb_hub_path_of(nb_hub_job *p, const char *name, char **out, nb_err *err)
{
    return nb_arena_format(&p->arena, out, err, "%s/%s", p->folder, name);
}

/* Is this the file with that checksum? Unreadable counts as no. */
nb_status nb_hub_has_sha256(const nb_hub_job *p, const char *path, const char *sha256, bool *yes,
                            nb_err *err)
{
    *yes = false;
    nb_file file;
    nb_err unreadable = {0};
    if (nb_file_open(&file, path, &unreadable) != NB_OK) {
        if (unreadable.status == NB_MEMORY)
            *err = unreadable;
        return unreadable.status == NB_MEMORY ? NB_MEMORY : NB_OK;
    }
    nb_sha256 hash;
    nb_sha256_init(&hash);
    uint8_t piece[65536];
    nb_status s = NB_OK;
    for (int64_t at = 0; s == NB_OK && at < file.size;) {
        const int64_t left = file.size - at;
        const size_t n = left < (int64_t)sizeof piece ? (size_t)left : sizeof piece;
        s = nb_file_read(&file, piece, n, at, err);
        nb_sha256_update(&hash, piece, n);
        at += (int64_t)n;
        if (s == NB_OK && p->r->step != NULL &&
            !p->r->step(p->r->context, "verifying", at, file.size))
            s = nb_fail(err, NB_INTERRUPTED, "interrupted");
    }
    uint8_t digest[NB_SHA256_BYTES];
    char hex[NB_SHA256_HEX];
    nb_sha256_final(&hash, digest);
    nb_sha256_hex_of(digest, hex);
    *yes = strcasecmp(hex, sha256) == 0;
    nb_file_close(&file);
    return s;
}

/* ---- the marker: what a folder was pulled from, and whether it is whole ---- */

json_t *nb_hub_read_marker(nb_hub_job *p)
{
    char *path;
    json_t *marker = NULL;
    nb_err none = {0};
    if (nb_hub_path_of(p, MARKER, &path, &none) != NB_OK ||
        nb_json_load(&marker, path, MARKER_MAX, &none) != NB_OK)
        return NULL;
    const char *repo = json_string_value(json_object_get(marker, "repo"));
    if (repo == NULL || strcmp(repo, p->repo) != 0) {
        json_decref(marker);
        return NULL;
    }
    return marker;
}

nb_status nb_hub_write_marker(nb_hub_job *p, bool complete, nb_err *err)
{
    json_t *files = json_array();
    for (int64_t i = 0; i < p->n_files; i++)
        json_array_append_new(files, json_pack("{s:s, s:I}", "name", p->files[i].name, "size",
                                               (json_int_t)p->files[i].size));
    json_t *marker =
        json_pack("{s:s, s:s, s:s, s:b, s:b, s:o}", "repo", p->repo, "revision", p->r->revision,
                  "commit", p->commit, "complete", complete, "chosen", p->chosen, "files", files);
    if (marker == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory");
    nb_buf text = {0};
    nb_outfile out = NB_OUTFILE_CLOSED;
    char *path;
    nb_status s = nb_json_write(&text, marker, true, err);
    if (s == NB_OK)
        s = nb_hub_path_of(p, MARKER, &path, err);
    if (s == NB_OK)
        s = nb_outfile_open(&out, path, true, err);
    if (s == NB_OK)
        s = nb_outfile_write(&out, text.data, text.len, err);
    if (s == NB_OK)
        s = nb_outfile_commit(&out, err);
    nb_outfile_abort(&out);
    nb_buf_free(&text);
    json_decref(marker);
    return s;
}

static const json_t *marker_file(const json_t *marker, const char *name)
{
    const json_t *files = json_object_get(marker, "files");
    for (size_t i = 0; i < json_array_size(files); i++) {
        const json_t *f = json_array_get(files, i);
        const char *n = json_string_value(json_object_get(f, "name"));
        if (n != NULL && strcmp(n, name) == 0)
            return f;
    }
    return NULL;
}

/* Does the folder hold everything that this request wants, as far as names and sizes tell? */
bool nb_hub_marker_satisfies(nb_hub_job *p, const json_t *marker)
{
    const char *revision = json_string_value(json_object_get(marker, "revision"));
    const bool chosen = json_is_true(json_object_get(marker, "chosen"));
    const json_t *files = json_object_get(marker, "files");
    if (!json_is_true(json_object_get(marker, "complete")) || revision == NULL ||
        strcmp(revision, p->r->revision) != 0 || json_array_size(files) == 0 ||
        (p->r->n_files == 0 && chosen))
        return false;
    for (int i = 0; i < p->r->n_files; i++) {
        if (marker_file(marker, p->r->files[i]) == NULL)
            return false;
    }
    for (size_t i = 0; i < json_array_size(files); i++) {
        const json_t *f = json_array_get(files, i);
        const char *name = json_string_value(json_object_get(f, "name"));
        const json_int_t size = json_integer_value(json_object_get(f, "size"));
        nb_err none = {0};
        char *path;
        if (name == NULL || !nb_hub_is_safe_name(name) ||
            nb_hub_path_of(p, name, &path, &none) != NB_OK)
            return false;
        const int64_t found = nb_hub_size_of(path);
        if (found < 0 || (size >= 0 && found != size))
            return false;
    }
    return true;
}

/* A shard that the old version had and the new one lacks would be loaded by mistake. */
void nb_hub_remove_stale(nb_hub_job *p, const json_t *marker)
{
    const json_t *files = json_object_get(marker, "files");
    for (size_t i = 0; i < json_array_size(files); i++) {
        const char *name = json_string_value(json_object_get(json_array_get(files, i), "name"));
        bool stays = name == NULL || !nb_hub_is_safe_name(name);
        for (int64_t f = 0; f < p->n_files && !stays; f++)
            stays = strcmp(p->files[f].name, name) == 0;
        char *path;
        nb_err none = {0};
        if (!stays && nb_hub_path_of(p, name, &path, &none) == NB_OK)
            unlink(path);
    }
}

/* Files of the same commit that an earlier --file brought stay on the list. */
nb_status nb_hub_keep_earlier(nb_hub_job *p, const json_t *marker, nb_err *err)
{
    const json_t *old = json_object_get(marker, "files");
    nb_hub_file *all;
    NB_TRY(NB_ARENA_ALLOC(&p->arena, &all, (size_t)p->n_files + json_array_size(old), err));
    int64_t n = p->n_files;
    if (n > 0)
        memcpy(all, p->files, (size_t)n * sizeof *all);
    for (size_t i = 0; i < json_array_size(old); i++) {
        const json_t *f = json_array_get(old, i);
        const char *name = json_string_value(json_object_get(f, "name")), *copy;
        bool known = name == NULL || !nb_hub_is_safe_name(name);
        for (int64_t k = 0; k < p->n_files && !known; k++)
            known = strcmp(p->files[k].name, name) == 0;
        if (known)
            continue;
        NB_TRY(nb_arena_text(&p->arena, (char **)&copy, name, strlen(name), err));
        all[n++] = (nb_hub_file){copy, json_integer_value(json_object_get(f, "size")), NULL};
    }
    p->files = all;
    p->n_files = n;
    p->chosen = p->chosen && json_is_true(json_object_get(marker, "chosen"));
    return NB_OK;
}
