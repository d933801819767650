/* Strings that end an answer, found while the text streams by: whatever may still become one is
 * held back, so that nothing of a stop string is ever shown.
 *
 * One Knuth-Morris-Pratt automaton a string: time is linear in the text, however the strings
 * repeat themselves. The string that is complete first ends the text; the longest, when several
 * end at the same byte. */
#ifndef NB_ENGINE_STOPTEXT_H
#define NB_ENGINE_STOPTEXT_H

#include "base/bytes.h"

#define NB_STOP_MAX_BYTES 65536 /* of one string */

typedef struct {
    const char *text; /* borrowed */
    size_t len, state;
    uint32_t *fail; /* fail[i]: length of the longest border of text[0, i] */
} nb_stop;

/* `{0}` finds nothing and holds nothing back. */
typedef struct {
    int n;
    nb_stop *stops; /* [n]: most answers have none */
    nb_buf held;
    int found; /* which string ended the text, once one did */
} nb_stoptext;

/* NB_USAGE for too many strings, and one that is empty, too long or not UTF-8 (generated text
 * always is, so that it would never be found). */
nb_status nb_stoptext_init(nb_stoptext *st, const char *const *stops, int n, nb_err *err);
void nb_stoptext_free(nb_stoptext *st);

/* Takes in text[0, len) and appends to `out` what is certain. *found: a stop string is complete;
 * everything before it was appended, and nothing may be pushed any more. Whole characters stay
 * whole. */
nb_status nb_stoptext_push(nb_stoptext *st, const char *text, size_t len, nb_buf *out, bool *found,
                           nb_err *err);
/* The text has ended: appends what was held back. */
nb_status nb_stoptext_flush(nb_stoptext *st, nb_buf *out, nb_err *err);

#endif
