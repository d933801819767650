/* What this machine can do at most, measured by loops that do one thing and nothing else: the
 * figures that speeds are shares of. Each is the best of several short runs, because a limit that
 * a neighbour lowered is none. */
#ifndef NB_KERNEL_LIMITS_H
#define NB_KERNEL_LIMITS_H

#include "base/pool.h"
#include "kernel/cpu.h"

/* Bytes a second where a loop only loads; operations a second where it only computes, a multiply
 * and its add being two. All threads of the pool, except read_one. */
typedef struct {
    int n_threads;
    const char *int8_unit, *fma_unit; /* what the loops are made of: "vpdpbusd" */
    double int8_ops;                  /* 8-bit multiply-adds into wider sums */
    double fma_ops;                   /* binary32 */
    double read, read_one;            /* from main memory: all threads, one thread */
    double l2, l3;                    /* 0 where the system does not say how large the cache is */
    int64_t l2_bytes, l3_bytes;       /* of one processor's caches; 0: unknown */
} nb_limits;

/* Measures with the units that a kernel table of this mask uses. About a second, and a buffer of
 * up to NB_LIMITS_BUFFER bytes, which is gone afterwards. */
#define NB_LIMITS_BUFFER ((int64_t)1 << 30)
nb_status nb_limits_measure(nb_limits *out, unsigned isa, nb_pool *pool, nb_err *err);

/* ---- the loops, one set for each instruction set ---- */

/* A loop over registers: n steps of `ops` operations each, spread over `lanes` sums a register.
 * Every product is 1, so that the result is the number of multiply-adds that one lane has seen
 * (modulo 2^16): proof that nothing was left out. */
typedef struct {
    const char *unit;
    int lanes;
    int64_t ops;
    uint16_t (*run)(int64_t n_steps);
} nb_peak_loop;

/* Loads p[0, n), n a multiple of 1024, p aligned to 64 bytes, and returns the OR of its words. */
typedef uint32_t nb_read_loop(const uint8_t *p, int64_t n);

typedef struct {
    nb_peak_loop int8, fma;
    nb_read_loop *read;
} nb_limit_loops;

/* As nb_kernels_init: the reference, then whatever the mask allows and the CPU has. */
void nb_limit_loops_init(nb_limit_loops *loops, unsigned allow);

/* Called by nb_limit_loops_init only. */
void nb_limits_ref(nb_limit_loops *loops);
#if defined(__x86_64__)
void nb_limits_avx2(nb_limit_loops *loops);
void nb_limits_avx512(nb_limit_loops *loops);
void nb_limits_amx(nb_limit_loops *loops); /* int8 only */
#elif defined(__aarch64__)
void nb_limits_neon(nb_limit_loops *loops);
#endif

#endif
