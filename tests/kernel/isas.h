/* The kernel tables that this machine can run, for the checks of tests/kernel. */
#ifndef NB_TESTS_ISAS_H
#define NB_TESTS_ISAS_H

#include "kernel/kernel.h"

#include <stdio.h>

/* The tables above the scalar one. */
static const unsigned isa_masks[] = {
#if defined(__aarch64__)
    NB_ISA_NEON,
#else
    NB_ISA_AVX2,
    NB_ISA_AVX2 | NB_ISA_AVX512,
    NB_ISA_AVX2 | NB_ISA_AVX512 | NB_ISA_BF16,
    NB_ISA_AVX2 | NB_ISA_AVX512 | NB_ISA_AMX,
#endif
};
enum { N_ISA_MASKS = sizeof isa_masks / sizeof *isa_masks };

/* Fills variants[0, n) with those that the machine has and returns n; says what is missing. */
static inline int isa_tables(nb_kernels variants[N_ISA_MASKS])
{
    int n = 0;
    for (int i = 0; i < N_ISA_MASKS; i++) {
        if ((nb_cpu_isa() & isa_masks[i]) == isa_masks[i])
            nb_kernels_init(&variants[n++], isa_masks[i]);
        else
            printf("SKIP %s: this machine has none\n", nb_isa_name(isa_masks[i]));
    }
    return n;
}

#endif
