/* JSON text as answers are written: appended piece by piece, tens of thousands of times a second,
 * without a tree in between. The caller writes the punctuation; what comes from a model or a client
 * goes through nb_wire_string, so that the result is JSON and UTF-8 whatever it is.
 *
 * The first failure (memory, or the buffer's limit) sticks: what follows is not appended, and the
 * caller looks once, at the end. */
#ifndef NB_SERVE_WIRE_H
#define NB_SERVE_WIRE_H

#include "base/bytes.h"

/* `{0}` is empty. */
typedef struct {
    nb_buf buf;
    nb_status status;
} nb_wire;

void nb_wire_raw(nb_wire *w, const char *json);
void nb_wire_bytes(nb_wire *w, const void *json, size_t len);
/* In quotes; bytes that are no UTF-8 become U+FFFD. */
void nb_wire_string(nb_wire *w, const char *text, size_t len);
void nb_wire_int(nb_wire *w, int64_t value);
/* At most nine digits. JSON knows no Inf and no NaN: those become -9999 and 9999, as vLLM writes a
 * probability of 0, and null. */
void nb_wire_real(nb_wire *w, double value);
void nb_wire_bool(nb_wire *w, bool value);
/* In quotes, as RFC 4648 writes bytes in base 64, padded. */
void nb_wire_base64(nb_wire *w, const void *bytes, size_t n);
/* Forgets what was appended, keeps the memory. */
void nb_wire_clear(nb_wire *w);
void nb_wire_free(nb_wire *w);

/* Code points of UTF-8 text; a byte that belongs to none counts as one. */
int64_t nb_wire_count(const char *text, size_t len);

#endif
