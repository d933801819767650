/* The last step of a 64-bit hash: every bit of the result depends on every bit of h, and no two h
 * give the same (the finalizer of MurmurHash3). */
#ifndef NB_BASE_MIX_H
#define NB_BASE_MIX_H

#include <stdint.h>

static inline uint64_t nb_mix64(uint64_t h)
{
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdull;
    h ^= h >> 33;
    h *= 0xc4ceb9fe1a85ec53ull;
    return h ^ h >> 33;
}

#endif
