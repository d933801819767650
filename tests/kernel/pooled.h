/* A thread pool for tests that need one and do not ask how large. */
#ifndef NB_TESTS_POOLED_H
#define NB_TESTS_POOLED_H

#include "base/pool.h"

static nb_pool *pool;

/* cmocka's group set-up and tear-down. */
static inline int open_pool(void **state)
{
    (void)state;
    nb_err err;
    return nb_pool_open(&pool, 3, &err) == NB_OK ? 0 : -1;
}

static inline int close_pool(void **state)
{
    (void)state;
    nb_pool_close(pool);
    return 0;
}

#endif
