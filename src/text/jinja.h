/* Chat templates: a small bounded interpreter for the part of Jinja that chat templates use
 * (formats.md 10.5). Templates are data: no host objects, a step budget, an output budget and a
 * depth limit, so that a hostile template ends in an error, not in a hang. */
#ifndef NB_TEXT_JINJA_H
#define NB_TEXT_JINJA_H

#include "base/bytes.h"
#include "base/json.h"

typedef struct nb_jinja nb_jinja;

/* Syntax errors name the line. Settings are those of transformers: trim_blocks, lstrip_blocks,
 * loop controls, {% generation %}. A template that nests too deep or is too large is
 * accepted here, so that its model loads, and every render of it fails (NB_LIMIT). */
nb_status nb_jinja_parse(nb_jinja **out, const char *text, size_t len, nb_err *err);
void nb_jinja_free(nb_jinja *t); /* NULL is fine */

typedef struct {
    int64_t max_steps; /* 0: 10,000,000 */
    size_t max_output; /* 0: 64 MiB */
    const char *now;   /* what strftime_now returns; NULL: the clock */
} nb_jinja_limits;

/* Appends the rendered text; nothing on failure. `context` is an object of variables.
 * raise_exception gives NB_DATA with its message alone; a spent budget (steps, output, depth, 24
 * MiB of memory beside what the context takes) gives NB_LIMIT. `limits` may be NULL. A template
 * may be rendered by several threads at once. */
nb_status nb_jinja_render(const nb_jinja *t, const json_t *context, const nb_jinja_limits *limits,
                          nb_buf *out, nb_err *err);

#endif
