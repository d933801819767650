/* What pre-tokenizers ask about characters: UTF-8, character classes, canonical composition.
 *
 * Classes are those of Unicode 16, whatever version utf8proc was built for: it was behind the
 * regular expression engine of the reference tokenizers by one version, and ids depend on it. */
#ifndef NB_TEXT_UNICODE_H
#define NB_TEXT_UNICODE_H

#include "base/bytes.h"

typedef enum {
    NB_CHAR_OTHER,  /* everything else, and bytes that are no UTF-8 */
    NB_CHAR_LETTER, /* \p{L} */
    NB_CHAR_NUMBER, /* \p{N} */
    NB_CHAR_SPACE   /* \s: White_Space */
} nb_char_class;

/* Decodes the character at text[0], 0 < len: returns its bytes. Where no well-formed sequence
 * starts (overlong forms, surrogates and values above U+10FFFF are none), *c is -1 and the
 * result 1. */
size_t nb_utf8_next(const uint8_t *text, size_t len, int32_t *c);
/* The same for the character that ends at text[len - 1]. */
size_t nb_utf8_last(const uint8_t *text, size_t len, int32_t *c);
/* Writes c, a Unicode scalar value, and returns its bytes, 1 to 4. */
size_t nb_utf8_put(int32_t c, uint8_t out[4]);

/* -1 is NB_CHAR_OTHER. */
nb_char_class nb_char_class_of(int32_t c);
/* What the Digits pre-tokenizer calls a digit: general category N of Unicode 17. */
bool nb_char_is_numeric(int32_t c);
/* \w: letters, marks, decimal and letter numbers, connectors, join controls. */
bool nb_char_is_word(int32_t c);

/* Appends text[0, len) in normalization form C; bytes that are no UTF-8 pass unchanged and
 * compose with nothing. Linear in len, however many marks follow each other. */
nb_status nb_nfc(nb_buf *out, const char *text, size_t len, nb_err *err);

#endif
