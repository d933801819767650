/* SipHash-2-4 with 128 bits of output: a keyed hash of short inputs, for tables whose keys come
 * from outside. Who does not know the key cannot make two inputs collide. Aumasson and Bernstein,
 * "SipHash: a fast short-input PRF", INDOCRYPT 2012; the longer output as in its authors' code. */
#ifndef NB_BASE_SIPHASH_H
#define NB_BASE_SIPHASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t lo, hi; /* the first and the last eight bytes of the output, little-endian */
} nb_sip128;

static inline bool nb_sip128_equal(nb_sip128 a, nb_sip128 b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

/* A hash in the making: begin, put any number of times, end. How the input was cut into puts does
 * not matter. */
typedef struct {
    uint64_t v[4];
    uint8_t tail[8]; /* the last n_bytes % 8 bytes */
    uint64_t n_bytes;
} nb_siphash;

void nb_siphash_begin(nb_siphash *h, const uint8_t key[16]);
void nb_siphash_put(nb_siphash *h, const void *data, size_t n);
nb_sip128 nb_siphash_end(nb_siphash *h);

#endif
