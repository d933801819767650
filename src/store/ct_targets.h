/* The targets of compressed-tensors' config_groups: which modules of a folder one entry is about,
 * by their names, by regular expressions, or by the class "Linear" (formats.md section 4). */
#ifndef NB_STORE_CT_TARGETS_H
#define NB_STORE_CT_TARGETS_H

#include "base/arena.h"
#include "base/json.h"
#include "store/names.h"

typedef struct nb_ct_regex nb_ct_regex;

/* A list of targets, or the list of what to ignore. Values are indexes of groups. `{0}` is empty;
 * all but the expressions lives in an arena. */
typedef struct {
    nb_name *names; /* sorted */
    int64_t n_names;
    nb_ct_regex *regexes; /* in file order */
    int64_t n_regexes;
    int64_t linear; /* who named the class "Linear"; -1: nobody */
} nb_ct_targets;

/* How many strings of a list (NULL: none) are regular expressions, how many are not: added to what
 * is there. */
nb_status nb_ct_targets_count(const json_t *list, int64_t *n_names, int64_t *n_regexes,
                              nb_err *err);
/* The steps one match may take, when every module may meet every expression. */
nb_status nb_ct_targets_steps(int64_t n_regexes, int64_t n_modules, uint32_t *steps, nb_err *err);

/* Room for so many; then the strings of lists, which stand for `value`; then, once, the end. */
nb_status nb_ct_targets_alloc(nb_ct_targets *t, nb_arena *arena, int64_t n_names, int64_t n_regexes,
                              nb_err *err);
nb_status nb_ct_targets_add(nb_ct_targets *t, nb_arena *arena, const json_t *list, int64_t value,
                            nb_err *err);
nb_status nb_ct_targets_finish(nb_ct_targets *t, uint32_t max_steps, nb_err *err);
void nb_ct_targets_free(nb_ct_targets *t);

/* The first value whose target matches: an exact name, an expression, the class. -1: none. */
nb_status nb_ct_targets_find(const nb_ct_targets *t, const char *module, int64_t *out, nb_err *err);

/* Embeddings are matrices, but not of the class Linear. By the last part of module[0, len). */
bool nb_ct_is_embedding(const char *module, size_t len);

#endif
