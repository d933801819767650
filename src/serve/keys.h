/* API keys. What is kept and compared are digests, in a time that depends on nothing secret: not on
 * how many characters are right, not on which key it is, not on whether there is one. */
#ifndef NB_SERVE_KEYS_H
#define NB_SERVE_KEYS_H

#include "base/sha256.h"
#include "base/status.h"

#define NB_MAX_KEYS      64
#define NB_MAX_KEY_BYTES 1024

/* `{0}` has none: everybody is let in. */
typedef struct {
    int n;
    uint8_t digests[NB_MAX_KEYS][NB_SHA256_BYTES];
} nb_keys;

/* NB_USAGE: empty, too long, one too many, or a character that no header can carry. */
nb_status nb_keys_add(nb_keys *keys, const char *key, nb_err *err);
/* One a line of the file; blank lines and those that begin with # are left out. NB_DATA when it
 * holds none. */
nb_status nb_keys_load(nb_keys *keys, const char *path, nb_err *err);
/* The value of an Authorization header, NULL when there was none: "Bearer KEY" with a key of
 * these. Always true without keys. */
bool nb_keys_allow(const nb_keys *keys, const char *authorization);

#endif
