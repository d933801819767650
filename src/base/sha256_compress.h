/* Private to SHA-256: the compression of whole blocks, in C and with instructions made for it. */
#ifndef NB_BASE_SHA256_COMPRESS_H
#define NB_BASE_SHA256_COMPRESS_H

#include "base/sha256.h"

#include <stdbool.h>

/* FIPS 180-4, 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64
 * primes. */
extern const uint32_t nb_sha256_constant[64];

/* h becomes what it is after blocks [n][64]. */
void nb_sha256_compress_c(uint32_t h[8], const uint8_t *blocks, size_t n);
/* The same with the SHA extensions of x86, where nb_sha256_has_x86. */
bool nb_sha256_has_x86(void);
void nb_sha256_compress_x86(uint32_t h[8], const uint8_t *blocks, size_t n);

#endif
