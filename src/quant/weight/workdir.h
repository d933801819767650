/* The folder beside an output where a long quantization keeps what it has done: finished weights,
 * activations between two blocks, and a state that says how far it came. Killed at any moment, the
 * same command goes on from the last finished block and ends in the same bytes. */
#ifndef NB_QUANT_WEIGHT_WORKDIR_H
#define NB_QUANT_WEIGHT_WORKDIR_H

#include "base/json.h"
#include "base/spill.h"
#include "store/store.h"

typedef struct {
    char *path;
    int lock; /* held while open; < 0: not open, as in NB_WORKDIR_CLOSED */
} nb_workdir;

#define NB_WORKDIR_CLOSED ((nb_workdir){.lock = -1})

/* Makes the folder, or takes the one that is there. NB_IO when another process works in it. */
nb_status nb_workdir_open(nb_workdir *w, const char *path, nb_err *err);
/* To read the state of a folder that may be there, and no more: nothing is made, nothing locked. */
nb_status nb_workdir_look(nb_workdir *w, const char *path, nb_err *err);
/* With `remove`, the files that this module makes go, and the folder if nothing else is in it. */
void nb_workdir_close(nb_workdir *w, bool remove);
/* Removes those files, so that work starts anew. */
void nb_workdir_clear(const nb_workdir *w);

/* A scratch file in it. */
nb_status nb_workdir_spill(const nb_workdir *w, const char *name, size_t row_bytes, int64_t n_rows,
                           nb_spill *out, nb_err *err);

/* The state, an object: replaced as a whole, and kept with its SHA-256. *state is NULL when there
 * is none, or when it is *damaged: not what was written. */
nb_status nb_workdir_put_state(const nb_workdir *w, const json_t *state, nb_err *err);
nb_status nb_workdir_get_state(const nb_workdir *w, json_t **state, bool *damaged, nb_err *err);

/* A finished matrix, under a number. Reading fills the arrays of `made->mat`, which has been
 * planned (quant/weight/room.h), and refuses what is not what was written. */
nb_status nb_workdir_put_mat(const nb_workdir *w, int64_t index, const nb_mat *mat, nb_err *err);
nb_status nb_workdir_get_mat(const nb_workdir *w, int64_t index, nb_loaded *made, nb_err *err);
/* Whether a matrix is there, as it was written: so that damage shows before hours of work, not
 * after. */
nb_status nb_workdir_check_mat(const nb_workdir *w, int64_t index, bool *good, nb_err *err);

#endif
