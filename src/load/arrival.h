/* When requests arrive in an open loop: gaps of a gamma distribution, whose mean is 1 / rate. A
 * burstiness of 1 is a Poisson process; less comes in bursts, more comes evenly. */
#ifndef NB_LOAD_ARRIVAL_H
#define NB_LOAD_ARRIVAL_H

#include "base/status.h"

/* Gap i in units of the mean gap: a pure function of (seed, i), burstiness > 0. */
double nb_arrival_gap(uint64_t seed, int64_t i, double burstiness);

#endif
