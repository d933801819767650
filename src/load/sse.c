/* See sse.h. */
#include "load/sse.h"

#include <string.h>

/* The empty line that ends an event. One without data is none. */
static nb_status end_event(nb_sse *sse, nb_err *err)
{
    if (!sse->has_data)
        return NB_OK;
    const nb_status s = sse->event(sse->context, (const char *)sse->data.data, sse->data.len, err);
    sse->has_data = false;
    sse->data.len = 0;
    return s;
}

static nb_status end_line(nb_sse *sse, const char *line, size_t n, nb_err *err)
{
    static const char mark[] = "\xef\xbb\xbf";
    if (!sse->past_mark && n >= 3 && memcmp(line, mark, 3) == 0) {
        line += 3;
        n -= 3;
    }
    sse->past_mark = true;
    if (n == 0)
        return end_event(sse, err);
    static const char field[] = "data";
    if (n < 4 || memcmp(line, field, 4) != 0 || (n > 4 && line[4] != ':'))
        return NB_OK;
    size_t start = n > 4 ? 5 : 4;
    start += start < n && line[start] == ' ';
    sse->data.limit = NB_SSE_EVENT_MAX;
    /* A byte at least, so that the event function never gets NULL. */
    NB_TRY(nb_buf_reserve(&sse->data, 1, err));
    if (sse->has_data)
        NB_TRY(nb_buf_put(&sse->data, "\n", 1, err));
    sse->has_data = true;
    return nb_buf_put(&sse->data, line + start, n - start, err);
}

/* Bytes before the next end of a line; n when there is none. */
static size_t line_length(const char *bytes, size_t n)
{
    const char *lf = memchr(bytes, '\n', n);
    const size_t most = lf == NULL ? n : (size_t)(lf - bytes);
    const char *cr = memchr(bytes, '\r', most);
    return cr == NULL ? most : (size_t)(cr - bytes);
}

nb_status nb_sse_feed(nb_sse *sse, const char *bytes, size_t n, nb_err *err)
{
    sse->line.limit = NB_SSE_EVENT_MAX;
    while (n > 0) {
        if (sse->after_cr && *bytes == '\n') {
            sse->after_cr = false;
            bytes++;
            n--;
            continue;
        }
        sse->after_cr = false;
        const size_t len = line_length(bytes, n);
        const bool ends = len < n;
        if (!ends || sse->line.len > 0 || len > NB_SSE_EVENT_MAX) {
            if (nb_buf_put(&sse->line, bytes, len, err) != NB_OK)
                return nb_context(err, "a line of an event stream");
        }
        if (!ends)
            return NB_OK;
        /* A line that came in one piece is read where it is. */
        const bool kept = sse->line.len > 0;
        const nb_status s = end_line(sse, kept ? (const char *)sse->line.data : bytes,
                                     kept ? sse->line.len : len, err);
        sse->line.len = 0;
        NB_TRY(s);
        sse->after_cr = bytes[len] == '\r';
        bytes += len + 1;
        n -= len + 1;
    }
    return NB_OK;
}

bool nb_sse_is_open(const nb_sse *sse)
{
    return sse->has_data || sse->line.len > 0;
}

void nb_sse_free(nb_sse *sse)
{
    nb_buf_free(&sse->line);
    nb_buf_free(&sse->data);
}
