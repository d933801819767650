/* What the tests of both kinds of configuration share. */
#ifndef NB_TESTS_CONFIG_CHECK_H
#define NB_TESTS_CONFIG_CHECK_H

#include "support/golden.h"

#include "model/config.h"

#include <stdio.h>
#include <string.h>

/* Opens `path` and reads its config; nothing leaks. */
static inline nb_status read_config(const char *path, nb_config *c, nb_err *err)
{
    nb_store *store = NULL;
    const int64_t live = nb_alloc_live();
    nb_status s = nb_store_open(&store, path, err);
    if (s == NB_OK)
        s = nb_config_read(store, c, err);
    nb_store_close(store);
    assert_int_equal(nb_alloc_live(), live);
    return s;
}

/* The status and the whole message: "FILE: REASON". */
static inline void check_refusal(const char *what, nb_status got, nb_status want, const nb_err *err,
                                 const char *file, const char *reason)
{
    char message[1200];
    snprintf(message, sizeof message, "%s: %s", file, reason);
    if (got != want || strcmp(err->text, message) != 0)
        fail_msg("%s: %s, '%s'\nexpected %s, '%s'", what, nb_status_name(got), err->text,
                 nb_status_name(want), message);
}

#endif
