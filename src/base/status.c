/* See status.h. */
#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *nb_version(void)
{
    return NIBBLE_VERSION;
}

const char *nb_status_name(nb_status status)
{
    switch (status) {
#define X(id, text, exit_code)                                                                     \
    case id:                                                                                       \
        return text;
        NB_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

int nb_status_exit_code(nb_status status)
{
    switch (status) {
#define X(id, text, exit_code)                                                                     \
    case id:                                                                                       \
        return exit_code;
        NB_STATUS_LIST(X)
#undef X
    }
    return 1;
}

/* Copies `text` to `out`, every byte outside printable ASCII as \xNN; false when it was cut. */
static bool escape_into(char *out, size_t size, const char *text)
{
    size_t n = 0;
    const unsigned char *p = (const unsigned char *)text;
    for (; *p != 0; p++) {
        const bool plain = *p >= 0x20 && *p < 0x7f;
        const size_t need = plain ? 1 : 4;
        if (n + need + 1 > size)
            break;
        if (plain)
            out[n++] = (char)*p;
        else
            n += (size_t)snprintf(out + n, size - n, "\\x%02x", *p);
    }
    out[n] = 0;
    return *p == 0;
}

static void write_message(nb_err *err, const char *format, va_list args)
{
    char raw[sizeof err->text];
    vsnprintf(raw, sizeof raw, format, args);
    escape_into(err->text, sizeof err->text, raw);
}

/* "where: reason". A path may be longer than the message: it is cut, with "..." at its end, before
 * the reason is. */
static nb_status write_both(nb_err *err, nb_status status, const char *where, const char *reason)
{
    enum { LEAST_WHERE = 200 };
    char tail[sizeof err->text - LEAST_WHERE];
    escape_into(tail, sizeof tail, reason);
    const size_t room = sizeof err->text - strlen(tail) - strlen(": ");
    char head[sizeof err->text];
    if (!escape_into(head, room, where))
        memcpy(head + strlen(head) - 3, "...", 3);
    const size_t n = strlen(head);
    memcpy(err->text, head, n);
    memcpy(err->text + n, ": ", 2);
    memcpy(err->text + n + 2, tail, strlen(tail) + 1); /* it fits: `room` was cut for it */
    err->status = status;
    return status;
}

nb_status nb_fail(nb_err *err, nb_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    write_message(err, format, args);
    va_end(args);
    err->status = status;
    return status;
}

nb_status nb_fail_errno(nb_err *err, int errnum, const char *format, ...)
{
    char what[sizeof err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return write_both(err, errnum == ENOMEM ? NB_MEMORY : NB_IO, what, strerror(errnum));
}

nb_status nb_context(nb_err *err, const char *format, ...)
{
    char where[sizeof err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(where, sizeof where, format, args);
    va_end(args);
    char before[sizeof err->text];
    memcpy(before, err->text, sizeof before);
    return write_both(err, err->status, where, before);
}
