/* Text as the template language sees it: UTF-8 bytes, counted, cut and compared by code points
 * as Python does. Nothing here allocates or fails; an invalid byte counts as one code point. */
#ifndef NB_TEXT_JINJA_TEXT_H
#define NB_TEXT_JINJA_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A borrowed piece of text. */
typedef struct {
    const char *p;
    size_t n;
} nb_jspan;

#define NB_JSPAN(literal) ((nb_jspan){(literal), sizeof(literal) - 1})

bool nb_jspan_equal(nb_jspan a, nb_jspan b);

/* Bytes of the code point at s[0, n), n > 0; *cp is U+FFFD for an invalid byte. */
size_t nb_jtext_decode(const char *s, size_t n, uint32_t *cp);
/* Writes the UTF-8 form (1 to 4 bytes); surrogates and values past U+10FFFF become U+FFFD. */
size_t nb_jtext_encode(uint32_t cp, char out[4]);
/* Bytes of the last code point of s[0, n), n > 0. */
size_t nb_jtext_last(const char *s, size_t n);

int64_t nb_jtext_count(nb_jspan s);
/* Byte offset of code point `index`, at most s.n. */
size_t nb_jtext_offset(nb_jspan s, int64_t index);

/* Python's str.isspace for one code point. */
bool nb_jtext_is_space(uint32_t cp);
/* Python's str.isprintable for one code point. */
bool nb_jtext_is_printable(uint32_t cp);

/* str.strip on the sides asked for: of white space, or of the code points in `chars` (chars.p
 * not NULL). */
nb_jspan nb_jtext_strip(nb_jspan s, nb_jspan chars, bool left, bool right);

/* Offset of the first `needle` in s, or -1. Linear in s.n + needle.n. */
int64_t nb_jtext_find(nb_jspan s, nb_jspan needle);
bool nb_jtext_starts(nb_jspan s, nb_jspan prefix);
bool nb_jtext_ends(nb_jspan s, nb_jspan suffix);

#endif
