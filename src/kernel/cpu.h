/* What the CPU has and the operating system enables; names and masks of instruction sets. */
#ifndef NB_KERNEL_CPU_H
#define NB_KERNEL_CPU_H

#include "base/status.h"

/* Bits. The scalar reference is always there. */
typedef enum {
    NB_ISA_SCALAR = 0,
    NB_ISA_AVX2 = 1,   /* AVX2, FMA and F16C */
    NB_ISA_AVX512 = 2, /* AVX-512 F, BW, VL, DQ and VNNI, with the ZMM state enabled */
    NB_ISA_AMX = 4,    /* AMX tiles and 8-bit products, granted by the kernel; AVX512 besides */
    NB_ISA_BF16 = 16,  /* AVX-512's dot products of bfloat16 pairs; AVX512 besides */
    NB_ISA_NEON = 8,   /* 64-bit ARM with the 8-bit dot products of ARMv8.2 */
} nb_isa;

#define NB_ISA_ALL (~0u)

/* What this machine can run (CPUID and XGETBV, or HWCAP). Where there is AMX, asks the operating
 * system for it: from then on signal frames of this process have room for the tiles. */
unsigned nb_cpu_isa(void);
/* "scalar", "avx2", "avx512", "amx", "neon", "auto" -> a mask that allows it and everything below;
 * only "auto" allows BF16. NB_USAGE. */
nb_status nb_isa_parse(const char *name, unsigned *mask, nb_err *err);
/* The same, and refuses what this machine lacks: NB_USAGE. */
nb_status nb_isa_choose(const char *name, unsigned *mask, nb_err *err);
const char *nb_isa_name(unsigned isa); /* of the best in the mask */

#endif
