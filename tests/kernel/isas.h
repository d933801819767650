/* The kernel tables that this machine can run, for the checks of tests/kernel. */
#ifndef NB_TESTS_ISAS_H
#define NB_TESTS_ISAS_H

#include "kernel/kernel.h"

#include <stdio.h>

/* Fills variants[0, n) with the tables above the scalar one and returns n; says what is missing. */
static inline int isa_tables(nb_kernels variants[2])
{
    static const unsigned masks[] = {NB_ISA_AVX2, NB_ISA_AVX2 | NB_ISA_AVX512};
    int n = 0;
    for (int i = 0; i < 2; i++) {
        if ((nb_cpu_isa() & masks[i]) == masks[i])
            nb_kernels_init(&variants[n++], masks[i]);
        else
            printf("SKIP %s: this machine has none\n", nb_isa_name(masks[i]));
    }
    return n;
}

#endif
