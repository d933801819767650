/* Folders of FP8 and NF4 weights, made by hand for tests. */
#ifndef NB_TESTS_FLOAT_FOLDER_H
#define NB_TESTS_FLOAT_FOLDER_H

#include "numeric/minifloat.h"
#include "store/store.h"
#include "support/golden.h"
#include "support/scratch.h"

/* Opens the folder and reads its weights; the first failure, with the folder's name before it. */
static inline nb_status read_all(nb_err *err)
{
    nb_store *store;
    nb_loaded loaded = {0};
    nb_status s = nb_store_open(&store, scratch_path("m"), err);
    for (int64_t i = 0; s == NB_OK && i < nb_store_n_weights(store); i++)
        s = nb_store_read(store, nb_store_weight(store, i), &loaded, err);
    nb_loaded_free(&loaded);
    if (store != NULL)
        nb_store_close(store);
    return s;
}

static inline nb_store *open_good(void)
{
    nb_err err;
    nb_store *store;
    if (nb_store_open(&store, scratch_path("m"), &err) != NB_OK)
        fail_msg("%s", err.text);
    return store;
}

typedef struct {
    const nb_format *fmt;
    int64_t group_size, scale_rows;
    nb_float_type scale_type;
    bool nested;
    nb_act_spec act;
} kind;

#endif
