/* Inside pull: one pull in progress, and the folder that it fills.
 *
 * hub.c tries the ways, hub_folder.c keeps the folder, hub_server.c asks the server. */
#ifndef NB_STORE_HUB_JOB_H
#define NB_STORE_HUB_JOB_H

#include "base/arena.h"
#include "base/json.h"
#include "store/hub.h"

#include <string.h>
#include <strings.h>

/* One file of a repository. */
typedef struct {
    const char *name;
    int64_t size;       /* -1: not listed */
    const char *sha256; /* NULL: not listed */
} nb_hub_file;

/* A pull in progress. */
typedef struct {
    const nb_hub_request *r;
    const nb_hub_known *known; /* NULL: an ordinary repository */
    const char *repo;
    char *folder; /* where the files go */
    int lock;     /* the folder, locked; -1: not yet */
    bool ours;    /* an earlier pull of the same repository made the folder */
    const char *commit;
    nb_hub_file *files;
    int64_t n_files;
    bool chosen; /* --file, or the only GGUF: not the set of a model folder */
    nb_arena arena;
} nb_hub_job;

static inline bool nb_hub_ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcasecmp(text + n - m, end) == 0;
}

/* ---- hub_folder.c ---- */

/* Sets job->folder: what the user asked for, or a folder of the cache. */
nb_status nb_hub_name_folder(nb_hub_job *p, nb_err *err);
/* mkdir -p of everything before the last '/' (or of all of it). */
nb_status nb_hub_make_folders(const char *path, bool all, nb_err *err);
/* Makes the folder and keeps other pulls out of it for as long as this one runs. */
nb_status nb_hub_lock_folder(nb_hub_job *p, nb_err *err);
nb_status nb_hub_path_of(nb_hub_job *p, const char *name, char **out, nb_err *err);
int64_t nb_hub_size_of(const char *path); /* -1: no regular file */
/* Is this the file with that checksum? Unreadable counts as no. */
nb_status nb_hub_has_sha256(const nb_hub_job *p, const char *path, const char *sha256, bool *yes,
                            nb_err *err);

/* The marker says what a folder was pulled from, and whether it is whole. NULL: there is none, or
 * it is of another repository. json_decref it. */
json_t *nb_hub_read_marker(nb_hub_job *p);
nb_status nb_hub_write_marker(nb_hub_job *p, bool complete, nb_err *err);
/* Does the folder hold everything that the request wants, as far as names and sizes tell? */
bool nb_hub_marker_satisfies(nb_hub_job *p, const json_t *marker);
/* Removes what the old version had and the new one lacks: it would be loaded by mistake. */
void nb_hub_remove_stale(nb_hub_job *p, const json_t *marker);
/* Puts the files of the same commit that an earlier pull brought behind the job's own. */
nb_status nb_hub_keep_earlier(nb_hub_job *p, const json_t *marker, nb_err *err);

/* ---- hub_server.c ---- */

/* Lists the repository and brings what the job wants into its folder. */
nb_status nb_hub_from_server(nb_hub_job *p, nb_err *err);

#endif
