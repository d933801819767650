/* Codes of 1 to 8 bits, one behind the other: code k of b bits is the bits k * b .. k * b + b - 1
 * of a little-endian string of bits. What affine formats, compressed-tensors and GPTQ all pack
 * their codes as, each in words of its own; with 2 and 4 bits no code lies in two bytes, with 3 two
 * of every eight do:
 *
 *   byte           2                 1                 0
 *   bit     7     5 4   2 1 0 | 7  6   4 3   1 0 | 7 6  5   3 2   0
 *          [  c7  |  c6 |   c5     |  c4 | c3 |  c2     |  c1 |  c0  ]       3 bits
 */
#ifndef NB_NUMERIC_CODEBITS_H
#define NB_NUMERIC_CODEBITS_H

#include <stdint.h>

/* 32-bit words of n >= 0 codes. */
static inline int64_t nb_codebits_words(int64_t n, int bits)
{
    return n / 32 * bits + (n % 32 * bits + 31) / 32;
}
/* The same in bytes; negative where that number is too large. */
int64_t nb_codebits_bytes(int64_t n, int bits);

/* Codes [at, at + n) of the string, as unsigned numbers less `offset`, to and from a byte each.
 * Putting leaves all other bits as they are. */
void nb_codebits_get(int8_t *code, const uint8_t *string, int bits, int64_t at, int64_t n,
                     int offset);
void nb_codebits_put(uint8_t *string, int bits, int64_t at, const int8_t *code, int64_t n,
                     int offset);

/* Clears what follows n codes in nb_codebits_bytes(n, bits) bytes. */
void nb_codebits_clear_rest(uint8_t *string, int bits, int64_t n);

#endif
