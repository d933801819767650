/* See page.h. */
#include "serve/page.h"

#include "page_data.h" /* made at build */

#include <string.h>

/* no-cache: a browser asks each time whether the page is still this one, so that after an update
 * nobody talks to a new server through an old page. */
static const nb_page_header page_headers[] = {
    {"Content-Type", "text/html; charset=utf-8"},
    {"Content-Security-Policy", PAGE_POLICY},
    {"ETag", PAGE_ETAG},
    {"Cache-Control", "no-cache"},
    {"X-Content-Type-Options", "nosniff"},
    {"Referrer-Policy", "no-referrer"},
    {"Cross-Origin-Opener-Policy", "same-origin"},
    {"Cross-Origin-Resource-Policy", "same-origin"},
    {"Permissions-Policy", "camera=(), microphone=(), geolocation=()"},
};

static const nb_page pages[] = {
    {
        .path = "/",
        .bytes = page_html,
        .len = sizeof page_html,
        .etag = PAGE_ETAG,
        .headers = page_headers,
        .n_headers = sizeof page_headers / sizeof *page_headers,
    },
};

const nb_page *nb_page_find(const char *path)
{
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        if (strcmp(path, pages[i].path) == 0)
            return &pages[i];
    }
    return NULL;
}

static const char *skip_space(const char *p)
{
    while (*p == ' ' || *p == '\t')
        p++;
    return p;
}

bool nb_page_same(const nb_page *page, const char *if_none_match)
{
    if (if_none_match == NULL)
        return false;
    const char *p = skip_space(if_none_match);
    if (*p == '*')
        return *skip_space(p + 1) == 0;
    const size_t len = strlen(page->etag);
    /* A list of tags, each W/"..." or "...": compared weakly, as the RFC asks for here. What is no
     * list matches nothing from there on. */
    for (;;) {
        while (*p == ',')
            p = skip_space(p + 1);
        if (strncmp(p, "W/", 2) == 0)
            p += 2;
        if (*p != '"')
            return false;
        const char *end = strchr(p + 1, '"');
        if (end == NULL)
            return false;
        if ((size_t)(end + 1 - p) == len && memcmp(p, page->etag, len) == 0)
            return true;
        p = skip_space(end + 1);
        if (*p != ',')
            return false;
    }
}
