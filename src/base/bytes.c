/* See bytes.h. The host is little-endian, as is every file nibble reads. */
#include "base/bytes.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files and hosts are little-endian");

nb_status nb_read_span(nb_reader *r, const uint8_t **out, uint64_t n, nb_err *err)
{
    if (n > nb_reader_left(r))
        return nb_fail(err, NB_DATA, "%llu bytes are announced at byte %zu, and %zu are left",
                       (unsigned long long)n, r->pos, nb_reader_left(r));
    *out = r->data + r->pos;
    r->pos += (size_t)n;
    return NB_OK;
}

static nb_status read_fixed(nb_reader *r, void *out, size_t n, nb_err *err)
{
    const uint8_t *p = NULL;
    NB_TRY(nb_read_span(r, &p, n, err));
    memcpy(out, p, n);
    return NB_OK;
}

nb_status nb_read_u8(nb_reader *r, uint8_t *out, nb_err *err)
{
    return read_fixed(r, out, sizeof *out, err);
}

nb_status nb_read_u16(nb_reader *r, uint16_t *out, nb_err *err)
{
    return read_fixed(r, out, sizeof *out, err);
}

nb_status nb_read_u32(nb_reader *r, uint32_t *out, nb_err *err)
{
    return read_fixed(r, out, sizeof *out, err);
}

nb_status nb_read_u64(nb_reader *r, uint64_t *out, nb_err *err)
{
    return read_fixed(r, out, sizeof *out, err);
}

nb_status nb_buf_reserve(nb_buf *b, size_t extra, nb_err *err)
{
    size_t need;
    if (!nb_add_size(b->len, extra, &need))
        return nb_fail(err, NB_MEMORY, "a buffer of more than 2^64 bytes");
    if (b->limit != 0 && need > b->limit)
        return nb_fail(err, NB_LIMIT, "more than %zu bytes", b->limit);
    if (need <= b->cap)
        return NB_OK;
    size_t cap = b->cap < 256 ? 256 : b->cap + b->cap / 2;
    if (cap < need)
        cap = need;
    if (b->limit != 0 && cap > b->limit)
        cap = b->limit;
    void *p;
    NB_TRY(nb_alloc(&p, cap, 1, err));
    if (b->len > 0)
        memcpy(p, b->data, b->len);
    nb_free(b->data);
    b->data = p;
    b->cap = cap;
    return NB_OK;
}

nb_status nb_buf_put(nb_buf *b, const void *bytes, size_t n, nb_err *err)
{
    NB_TRY(nb_buf_reserve(b, n, err));
    if (n > 0)
        memcpy(b->data + b->len, bytes, n);
    b->len += n;
    return NB_OK;
}

nb_status nb_buf_text(nb_buf *b, const char *text, nb_err *err)
{
    return nb_buf_put(b, text, strlen(text), err);
}

nb_status nb_buf_format(nb_buf *b, nb_err *err, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    const size_t n = len < 0 ? 0 : (size_t)len;
    const nb_status s = nb_buf_reserve(b, n + 1, err);
    if (s == NB_OK) {
        vsnprintf((char *)b->data + b->len, n + 1, format, again);
        b->len += n;
    }
    va_end(again);
    return s;
}

nb_status nb_buf_u8(nb_buf *b, uint8_t v, nb_err *err)
{
    return nb_buf_put(b, &v, sizeof v, err);
}

nb_status nb_buf_u32(nb_buf *b, uint32_t v, nb_err *err)
{
    return nb_buf_put(b, &v, sizeof v, err);
}

nb_status nb_buf_u64(nb_buf *b, uint64_t v, nb_err *err)
{
    return nb_buf_put(b, &v, sizeof v, err);
}

void nb_buf_free(nb_buf *b)
{
    nb_free(b->data);
    *b = (nb_buf){.limit = b->limit};
}
