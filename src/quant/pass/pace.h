/* How fast this machine is right now: the ground of predicted times. */
#ifndef NB_QUANT_PASS_PACE_H
#define NB_QUANT_PASS_PACE_H

#include "base/pool.h"
#include "kernel/kernel.h"

/* Floating-point operations a second of a product of matrices, the best of a few trials of some
 * milliseconds; what computes, loads and waits beside products is not in it. */
nb_status nb_pace_measure(const nb_kernels *kernels, nb_pool *pool, double *flops_per_second,
                          nb_err *err);

/* Of that speed, what a forward pass reaches with its attention, norms and waiting: measured. */
#define NB_PACE_OF_FORWARD 0.72

/* What is done with a logit once it is there, on one thread: exponentials, divergence, hash. */
#define NB_PACE_LOGIT_SECONDS 1.2e-9

#endif
