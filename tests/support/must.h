/* For calls of a test that have to go well. */
#ifndef NB_TESTS_MUST_H
#define NB_TESTS_MUST_H

#include "base/status.h"
#include "support/golden.h"

/* Fails the test with the message that came with the status. */
static inline void must(nb_status s, const nb_err *err)
{
    if (s != NB_OK)
        fail_msg("%s: %s", nb_status_name(s), err->text);
}

#endif
