/* Everything a result must not depend on: all kernel tables of this machine, the scalar one first,
 * and pools of one to three threads. */
#ifndef NB_TESTS_MACHINES_H
#define NB_TESTS_MACHINES_H

#include "base/pool.h"
#include "kernel/isas.h"

enum { MAX_THREADS = 3, MAX_TABLES = 1 + N_ISA_MASKS };

static nb_kernels tables[MAX_TABLES];
static int n_tables;
static nb_pool *pools[MAX_THREADS];

/* cmocka's group set-up and tear-down. */
static inline int setup(void **state)
{
    (void)state;
    nb_err err;
    nb_kernels_init(&tables[0], 0);
    n_tables = 1 + isa_tables(tables + 1);
    for (int t = 0; t < MAX_THREADS; t++) {
        if (nb_pool_open(&pools[t], t + 1, &err) != NB_OK)
            return -1;
    }
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    for (int t = 0; t < MAX_THREADS; t++)
        nb_pool_close(pools[t]);
    return 0;
}

#endif
