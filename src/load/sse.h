/* Server-sent events, as a client reads them (WHATWG HTML, section 9.2): bytes come in pieces of
 * any size, events go out whole.
 *
 * Lines end with LF, CR or CRLF. Only `data` is kept: several such lines of an event are joined by
 * LF; comments, names, ids and unknown fields are passed over. What is held is bounded. */
#ifndef NB_LOAD_SSE_H
#define NB_LOAD_SSE_H

#include "base/bytes.h"

/* The most bytes of one line, and of the data of one event. */
#define NB_SSE_EVENT_MAX ((size_t)1 << 20)

/* The data of one event, which may be empty. What it returns other than NB_OK ends the parse. */
typedef nb_status nb_sse_event_fn(void *context, const char *data, size_t len, nb_err *err);

/* `{.event = ..., .context = ...}` is a parser at the start of a stream. */
typedef struct {
    nb_sse_event_fn *event;
    void *context;
    nb_buf line, data;
    bool has_data;  /* the event in the making has a data line */
    bool after_cr;  /* a LF that comes now belongs to the line before */
    bool past_mark; /* the place of a byte order mark lies behind */
} nb_sse;

/* NB_LIMIT for a line or an event that is too long, NB_MEMORY, or what the event function said:
 * after that, the parser is only good for nb_sse_free. */
nb_status nb_sse_feed(nb_sse *sse, const char *bytes, size_t n, nb_err *err);
/* The stream ended: did it end inside an event? By the specification, that one is lost. */
bool nb_sse_is_open(const nb_sse *sse);
void nb_sse_free(nb_sse *sse);

#endif
