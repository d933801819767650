/* The web page that the server gives at "/": src/serve/ui/, put together at build
 * (cmake/page.cmake) and carried in the program. Nothing is read from disk, nothing is allocated,
 * nothing changes. */
#ifndef NB_SERVE_PAGE_H
#define NB_SERVE_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *name, *value;
} nb_page_header;

typedef struct {
    const char *path;
    const uint8_t *bytes; /* [len] */
    size_t len;
    const char *etag;              /* strong, in its quotes */
    const nb_page_header *headers; /* [n_headers], to send with the bytes and with a 304: the type,
                                      the ETag, the policy that keeps out everything else */
    int n_headers;
} nb_page;

/* The page at exactly this path, or NULL. No key is needed for it: it asks for one. */
const nb_page *nb_page_find(const char *path);

/* Whether a client that sends this If-None-Match (RFC 9110, 13.1.2; NULL: none) has these bytes
 * already, and 304 without them is the answer. */
bool nb_page_same(const nb_page *page, const char *if_none_match);

#endif
