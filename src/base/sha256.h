/* SHA-256 (FIPS 180-4), fed in pieces of any size. For checking downloads and for hashes of
 * results in tests; nothing here is secret, so nothing is done about timing. */
#ifndef NB_BASE_SHA256_H
#define NB_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define NB_SHA256_BYTES 32
#define NB_SHA256_HEX   65 /* 64 lower-case digits and a zero */

typedef struct {
    uint32_t h[8];
    uint64_t n_bytes;
    uint8_t block[64]; /* the first n_bytes % 64 bytes wait here */
} nb_sha256;

void nb_sha256_init(nb_sha256 *s);
void nb_sha256_update(nb_sha256 *s, const void *bytes, size_t n);
/* The digest of everything fed so far; `s` must be initialised again before it is reused. */
void nb_sha256_final(nb_sha256 *s, uint8_t digest[NB_SHA256_BYTES]);

/* A digest as zero-terminated hex. */
void nb_sha256_hex_of(const uint8_t digest[NB_SHA256_BYTES], char hex[NB_SHA256_HEX]);
/* One shot: the hex digest of bytes[0, n). */
void nb_sha256_hex(const void *bytes, size_t n, char hex[NB_SHA256_HEX]);

#endif
