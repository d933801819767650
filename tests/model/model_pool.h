/* A thread pool for tests that open models. */
#ifndef NB_TESTS_MODEL_POOL_H
#define NB_TESTS_MODEL_POOL_H

#include "model/forward.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/must.h"

static nb_pool *pool;

static inline int set_up(void **state)
{
    nb_err err;
    if (scratch_setup(state) != 0 || nb_pool_open(&pool, 2, &err) != NB_OK)
        return -1;
    scratch_mkdir("m");
    return 0;
}

static inline int tear_down(void **state)
{
    nb_pool_close(pool);
    return scratch_teardown(state);
}

#endif
