/* Reads JSON piece by piece, for the headers of tensor files.
 *
 * Such a header may have 100 MB and one fixed structure. A tree of it would take ten times its
 * size; this needs none, does not recurse, and refuses whatever the caller did not ask for. */
#ifndef NB_STORE_JSON_SCAN_H
#define NB_STORE_JSON_SCAN_H

#include "base/bytes.h"

typedef struct {
    const char *text;
    size_t len, pos;
} nb_scan;

/* Skips white space, then takes `c` if it is what comes next. */
bool nb_scan_take(nb_scan *s, char c);
/* As above; NB_DATA ("byte 9: found 'x', expected ':'") if it is not. */
nb_status nb_scan_expect(nb_scan *s, char c, nb_err *err);
/* Nothing but white space is left. */
nb_status nb_scan_end(nb_scan *s, nb_err *err);
/* A string, unescaped into *out (emptied first) with a terminating zero that is not counted.
 * Bad UTF-8, lone surrogates, control characters and a zero inside are NB_DATA. */
nb_status nb_scan_text(nb_scan *s, nb_buf *out, nb_err *err);
/* A whole number in [0, 2^63 - 1]: no sign, fraction or exponent. */
nb_status nb_scan_count(nb_scan *s, int64_t *out, nb_err *err);

/* Whether text[0, len) is UTF-8 (RFC 3629: shortest forms only, no surrogates). */
bool nb_utf8_valid(const char *text, size_t len);

#endif
