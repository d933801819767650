/* Inside the store: what a container implements, and the store it fills in.
 *
 * store.c is the interface of store.h over these; safetensors.c, hf.c and gguf.c implement them. */
#ifndef NB_STORE_CONTAINER_H
#define NB_STORE_CONTAINER_H

#include "base/arena.h"
#include "store/store.h"

typedef struct nb_container {
    const char *name;
    nb_store_kind kind;
    /* Opens the files, validates their headers and fills store->weights (in file order), the JSON
     * documents or the GGUF. Everything it allocates hangs off the store; on failure close() is
     * called by the caller. */
    nb_status (*open)(nb_store *store, const char *path, nb_err *err);
    /* Reads weight i into *out (buffers are reused). Called through nb_store_read only. */
    nb_status (*read)(nb_store *store, int64_t i, nb_loaded *out, nb_err *err);
    /* Where the rows of weight i lie one after the other as nb_mat has them: the file, and at which
     * byte of it; NULL: they do not. NULL itself: none do. */
    const nb_file *(*rows_at)(const nb_store *store, int64_t i, int64_t *at);
    void (*close)(nb_store *store); /* frees `state`; fine on a half-open store */
} nb_container;

extern const nb_container nb_container_hf;
extern const nb_container nb_container_gguf;

/* store.c: what nb_store_open does once the container is known. `state` is what the container's
 * open() finds in store->state. */
nb_status nb_store_open_as(nb_store **out, const nb_container *kind, const char *path, void *state,
                           nb_err *err);

struct nb_store {
    const nb_container *kind;
    char *path;
    nb_arena arena; /* names and tables */
    nb_weight *weights;
    int64_t n_weights;
    int64_t file_bytes;
    nb_kv_scheme kv_scheme;                                /* hf */
    json_t *config, *generation_config, *tokenizer_config; /* hf */
    nb_gguf *gguf;
    nb_buf template_text; /* of chat_template.jinja, once asked for */
    void *state;          /* the container's own */
    void *index;          /* store.c: name -> weight */
    bool *zeroed;         /* [n_weights]: reads give 0 for what is not finite; NULL: none does */
};

/* What a sink implements; sink_open_* allocate one of these with their state.
 *
 * store.c calls put() with indexes in order and matrices that are as planned, finish() after the
 * last, and then commit(). It calls abort() exactly once, at the end, whatever happened before:
 * after a commit that succeeded there is nothing left to remove, and it only frees the state. */
typedef struct {
    nb_status (*put)(nb_sink *sink, int64_t index, const nb_mat *mat, nb_err *err);
    /* Writes what is still missing; *path is where all of it lies now. */
    nb_status (*finish)(nb_sink *sink, const char **path, nb_err *err);
    /* NULL: outputs of this kind stay as they were written. */
    nb_status (*amend)(nb_sink *sink, int64_t index, const nb_mat *mat, nb_err *err);
    nb_status (*commit)(nb_sink *sink, nb_err *err);
    void (*abort)(nb_sink *sink); /* removes what was written, if not committed; frees the state */
} nb_sink_kind;

struct nb_sink {
    const nb_sink_kind *kind;
    nb_arena arena;
    const nb_weight *plan; /* a copy, in the arena */
    int64_t n_weights, n_put;
    int64_t planned_bytes;
    bool failed;          /* a put went wrong: the output can only be aborted */
    const char *finished; /* where the whole output lies; NULL: it is not whole */
    void *state;
};

/* store.c: checks the plan (shapes, groups, names given twice) and allocates a sink with a deep
 * copy of it (names too). Until the state is set, free it with nb_sink_abort, which calls
 * kind->abort only when there is a state. */
nb_status nb_sink_new(nb_sink **out, const nb_sink_kind *kind, const nb_weight *plan,
                      int64_t n_weights, nb_err *err);

#endif
