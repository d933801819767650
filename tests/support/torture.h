/* Memory that runs out: what a test runs is run with its first allocation failing, then with its
 * second, until all goes well. */
#ifndef NB_TESTS_TORTURE_H
#define NB_TESTS_TORTURE_H

#include "base/alloc.h"
#include "support/golden.h"

/* Whichever allocation fails, the answer is NB_MEMORY and nothing leaks. How many failed. */
static inline int64_t torture_memory(nb_status (*run)(nb_err *err))
{
    const int64_t before = nb_alloc_live();
    nb_status s = NB_MEMORY;
    int64_t n = 0;
    while (s != NB_OK) {
        nb_err err = {0};
        nb_alloc_fail_at(++n);
        s = run(&err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        assert_int_equal(nb_alloc_live(), before);
    }
    return n - 1;
}

#endif
