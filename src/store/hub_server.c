/* Asking a Hugging Face server: the list of files, which of them are wanted, and fetching those. */
#include "store/hub_job.h"

#include "base/file.h"
#include "store/hub_http.h"

#include <ctype.h>
#include <stdio.h>

#define LISTING_MAX ((size_t)32 << 20)
#define MAX_FILES   10000

/* What a Hugging Face model folder is loaded from. Weights as pickles and code never are. */
static bool is_needed(const char *name)
{
    static const char *const ends[] = {".safetensors", ".json", ".jinja", NULL};
    static const char *const whole[] = {"tokenizer.model", "merges.txt", "vocab.txt", NULL};
    if (strchr(name, '/') != NULL || name[0] == '.')
        return false;
    for (int i = 0; ends[i] != NULL; i++) {
        if (nb_hub_ends_with(name, ends[i]))
            return true;
    }
    for (int i = 0; whole[i] != NULL; i++) {
        if (strcmp(name, whole[i]) == 0)
            return true;
    }
    return false;
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

static nb_status list_url(const nb_hub_job *p, nb_buf *url, nb_err *err)
{
    NB_TRY(nb_buf_format(url, err, "%s/api/models/", p->r->endpoint));
    NB_TRY(put_encoded(url, p->repo, true, err));
    NB_TRY(nb_buf_text(url, "/revision/", err));
    NB_TRY(put_encoded(url, p->r->revision, false, err));
    NB_TRY(nb_buf_text(url, "?blobs=true", err));
    return nb_buf_u8(url, 0, err);
}

static nb_status file_url(const nb_hub_job *p, const char *name, nb_buf *url, nb_err *err)
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

static bool is_wanted(const nb_hub_job *p, const char *name, bool only_gguf)
{
    for (int i = 0; i < p->r->n_files; i++) {
        if (strcmp(p->r->files[i], name) == 0)
            return true;
    }
    if (p->known != NULL)
        return strcmp(p->known->file, name) == 0;
    return p->r->n_files == 0 && (only_gguf ? nb_hub_ends_with(name, ".gguf") : is_needed(name));
}

/* Takes the wanted files from the listing. Any name that would leave the folder refuses it all. */
static nb_status select_files(nb_hub_job *p, const json_t *siblings, bool only_gguf, nb_err *err)
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
        nb_hub_file *f = &p->files[p->n_files++];
        NB_TRY(nb_arena_text(&p->arena, (char **)&copy, name, strlen(name), err));
        *f = (nb_hub_file){.name = copy, .size = size};
        if (sha256 != NULL)
            NB_TRY(nb_arena_text(&p->arena, (char **)&f->sha256, sha256, 64, err));
    }
    return NB_OK;
}

/* The names of the GGUF files, for the message that asks to choose one. */
static nb_status ask_to_choose(const nb_hub_job *p, nb_err *err)
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
static nb_status choose_files(nb_hub_job *p, const json_t *siblings, nb_err *err)
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
        weights = weights || nb_hub_ends_with(p->files[f].name, ".safetensors");
    if (weights)
        return NB_OK;
    NB_TRY(select_files(p, siblings, true, err));
    p->chosen = true;
    if (p->n_files == 0)
        return nb_fail(err, NB_UNSUPPORTED, "the repository has no safetensors and no GGUF files");
    return p->n_files == 1 ? NB_OK : ask_to_choose(p, err);
}

static nb_status list_files(nb_hub_job *p, nb_http *http, nb_err *err)
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
static nb_status fetch_file(nb_hub_job *p, nb_http *http, const nb_hub_file *f, bool same_commit,
                            nb_err *err)
{
    char *path;
    NB_TRY(nb_hub_path_of(p, f->name, &path, err));
    if (nb_path_exists(path)) {
        bool same = same_commit && f->sha256 == NULL && f->size == nb_hub_size_of(path);
        if (f->sha256 != NULL && f->size == nb_hub_size_of(path))
            NB_TRY(nb_hub_has_sha256(p, path, f->sha256, &same, err));
        if (same)
            return NB_OK;
        if (!p->ours && !p->r->force)
            return nb_fail(err, NB_USAGE,
                           "%s: already exists and differs (use --force to replace it)", path);
    }
    NB_TRY(nb_hub_make_folders(path, false, err));
    nb_buf url = {0};
    nb_status s = file_url(p, f->name, &url, err);
    if (s == NB_OK)
        s = nb_http_fetch(http, (char *)url.data, path, f->size, f->sha256, f->name, err);
    nb_buf_free(&url);
    return s;
}

static nb_status fetch_all(nb_hub_job *p, nb_http *http, nb_err *err)
{
    json_t *old = nb_hub_read_marker(p);
    p->ours = old != NULL;
    const char *commit = json_string_value(json_object_get(old, "commit"));
    const bool same_commit = commit != NULL && strcmp(commit, p->commit) == 0;
    const bool old_complete = json_is_true(json_object_get(old, "complete"));
    const int64_t n_wanted = p->n_files;
    nb_status s = NB_OK;
    if (old != NULL && !same_commit)
        nb_hub_remove_stale(p, old);
    if (same_commit && old_complete)
        s = nb_hub_keep_earlier(p, old, err);
    /* Until all is there the folder says so, and only a folder that says so is ours to resume.
     * config.json comes last: without it nothing takes the folder for a model. */
    if (s == NB_OK && p->known == NULL)
        s = nb_hub_write_marker(p, false, err);
    for (int last = 0; last < 2; last++) {
        for (int64_t i = 0; s == NB_OK && i < n_wanted; i++) {
            if ((strcmp(p->files[i].name, "config.json") == 0) == (last == 1))
                s = fetch_file(p, http, &p->files[i], same_commit, err);
        }
    }
    if (s == NB_OK && p->known == NULL)
        s = nb_hub_write_marker(p, true, err);
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

nb_status nb_hub_from_server(nb_hub_job *p, nb_err *err)
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
        s = nb_hub_lock_folder(p, err);
    if (s == NB_OK)
        s = fetch_all(p, http, err);
    nb_http_close(http);
    return s;
}
