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

/* Copies `text` to `out`, every byte outside printable ASCII as \xNN, cut to fit. */
static void escape_into(char *out, size_t size, const char *text)
{
    size_t n = 0;
    for (const unsigned char *p = (const unsigned char *)text; *p != 0; p++) {
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
}

static void write_message(nb_err *err, const char *format, va_list args)
{
    char raw[sizeof err->text];
    vsnprintf(raw, sizeof raw, format, args);
    escape_into(err->text, sizeof err->text, raw);
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
    const nb_status status = errnum == ENOMEM ? NB_MEMORY : NB_IO;
    return nb_fail(err, status, "%s: %s", what, strerror(errnum));
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
    return nb_fail(err, err->status, "%s: %s", where, before);
}
