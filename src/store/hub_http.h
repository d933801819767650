/* Inside pull: HTTP through libcurl. GET of a text, and of a file with resume and checksum.
 *
 * Without NIBBLE_WITH_PULL every call is NB_UNSUPPORTED and says so. */
#ifndef NB_STORE_HUB_HTTP_H
#define NB_STORE_HUB_HTTP_H

#include "base/bytes.h"
#include "store/hub.h"

typedef struct nb_http nb_http;

/* Borrows the request. */
nb_status nb_http_open(nb_http **out, const nb_hub_request *request, nb_err *err);
void nb_http_close(nb_http *http); /* NULL is fine */

/* Appends the body; NB_LIMIT past body->limit. */
nb_status nb_http_get(nb_http *http, const char *url, nb_buf *body, nb_err *err);

/* Downloads into `path` by way of "path.partial", which stays behind after a failure that a later
 * run can continue from. Without a sha256 there is no telling whether a partial file belongs to
 * this content, so it starts afresh. `size` < 0: not known. `label` is for step(). */
nb_status nb_http_fetch(nb_http *http, const char *url, const char *path, int64_t size,
                        const char *sha256, const char *label, nb_err *err);

#endif
