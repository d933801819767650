/* A bounds-checked reader over a span of little-endian bytes, and a growable buffer with a stated
 * maximum. Neither interprets what it holds. */
#ifndef NB_BASE_BYTES_H
#define NB_BASE_BYTES_H

#include "base/alloc.h"

/* Reads move `pos`; a read past the end returns NB_DATA ("ends at byte N of M") and moves nothing.
 */
typedef struct {
    const uint8_t *data;
    size_t size, pos;
} nb_reader;

nb_status nb_read_u8(nb_reader *r, uint8_t *out, nb_err *err);
nb_status nb_read_u16(nb_reader *r, uint16_t *out, nb_err *err);
nb_status nb_read_u32(nb_reader *r, uint32_t *out, nb_err *err);
nb_status nb_read_u64(nb_reader *r, uint64_t *out, nb_err *err);
/* Borrows `n` bytes of the span. */
nb_status nb_read_span(nb_reader *r, const uint8_t **out, uint64_t n, nb_err *err);

static inline size_t nb_reader_left(const nb_reader *r)
{
    return r->size - r->pos;
}

/* `{0}` is an empty buffer without a limit; set `limit` to bound it. Bytes past `len` are junk. */
typedef struct {
    uint8_t *data;
    size_t len, cap, limit;
} nb_buf;

nb_status nb_buf_reserve(nb_buf *b, size_t extra, nb_err *err);
nb_status nb_buf_put(nb_buf *b, const void *bytes, size_t n, nb_err *err);
nb_status nb_buf_text(nb_buf *b, const char *text, nb_err *err);
/* A formatted text; the limit has to leave room for a terminating zero, which is not counted. */
nb_status nb_buf_format(nb_buf *b, nb_err *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
nb_status nb_buf_u8(nb_buf *b, uint8_t v, nb_err *err);
nb_status nb_buf_u32(nb_buf *b, uint32_t v, nb_err *err);
nb_status nb_buf_u64(nb_buf *b, uint64_t v, nb_err *err);
void nb_buf_free(nb_buf *b);

#endif
