/* See wire.h. */
#include "serve/wire.h"

#include "text/unicode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void nb_wire_bytes(nb_wire *w, const void *json, size_t len)
{
    nb_err err;
    if (w->status == NB_OK)
        w->status = nb_buf_put(&w->buf, json, len, &err);
}

void nb_wire_raw(nb_wire *w, const char *json)
{
    nb_wire_bytes(w, json, strlen(json));
}

/* What stands in a string for the byte or character c; NULL: itself. */
static const char *escaped(int32_t c, char room[8])
{
    switch (c) {
    case '"':
        return "\\\"";
    case '\\':
        return "\\\\";
    case '\n':
        return "\\n";
    case '\r':
        return "\\r";
    case '\t':
        return "\\t";
    case -1:
        return "\xEF\xBF\xBD";
    default:
        if (c >= 0x20 && c != 0x7f)
            return NULL;
        snprintf(room, 8, "\\u%04x", (unsigned)c & 0xffff);
        return room;
    }
}

void nb_wire_string(nb_wire *w, const char *text, size_t len)
{
    const uint8_t *bytes = (const uint8_t *)text;
    nb_wire_bytes(w, "\"", 1);
    size_t plain = 0;
    for (size_t i = 0; i < len && w->status == NB_OK;) {
        int32_t c = bytes[i];
        const size_t n = c < 0x80 ? 1 : nb_utf8_next(bytes + i, len - i, &c);
        char room[8];
        const char *other = escaped(c, room);
        if (other != NULL) {
            nb_wire_bytes(w, bytes + plain, i - plain);
            nb_wire_raw(w, other);
            plain = i + n;
        }
        i += n;
    }
    if (w->status == NB_OK)
        nb_wire_bytes(w, bytes + plain, len - plain);
    nb_wire_bytes(w, "\"", 1);
}

void nb_wire_int(nb_wire *w, int64_t value)
{
    char text[24];
    const int n = snprintf(text, sizeof text, "%lld", (long long)value);
    nb_wire_bytes(w, text, (size_t)n);
}

void nb_wire_real(nb_wire *w, double value)
{
    if (isnan(value)) {
        nb_wire_raw(w, "null");
        return;
    }
    char text[40];
    snprintf(text, sizeof text, "%.9g", isinf(value) ? (value < 0 ? -9999.0 : 9999.0) : value);
    for (char *p = text; *p != 0; p++)
        if (*p == ',') /* a locale's idea of a point */
            *p = '.';
    nb_wire_raw(w, text);
}

void nb_wire_bool(nb_wire *w, bool value)
{
    nb_wire_raw(w, value ? "true" : "false");
}

void nb_wire_base64(nb_wire *w, const void *bytes, size_t n)
{
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *from = bytes;
    nb_wire_bytes(w, "\"", 1);
    for (size_t i = 0; i < n; i += 3) {
        const size_t left = n - i;
        const unsigned three = (unsigned)from[i] << 16 |
                               (left > 1 ? (unsigned)from[i + 1] << 8 : 0) |
                               (left > 2 ? from[i + 2] : 0u);
        const char four[4] = {DIGITS[three >> 18], DIGITS[three >> 12 & 63],
                              left > 1 ? DIGITS[three >> 6 & 63] : '=',
                              left > 2 ? DIGITS[three & 63] : '='};
        nb_wire_bytes(w, four, 4);
    }
    nb_wire_bytes(w, "\"", 1);
}

void nb_wire_clear(nb_wire *w)
{
    w->buf.len = 0;
    w->status = NB_OK;
}

void nb_wire_free(nb_wire *w)
{
    nb_buf_free(&w->buf);
    *w = (nb_wire){0};
}

int64_t nb_wire_count(const char *text, size_t len)
{
    int64_t n = 0;
    for (size_t i = 0; i < len; n++) {
        int32_t c;
        i += nb_utf8_next((const uint8_t *)text + i, len - i, &c);
    }
    return n;
}
