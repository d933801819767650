/* GGUF files made byte by byte, right or wrong on purpose, for tests. Encoded here and not by the
 * library, so that a mistake in one shows against the other. */
#ifndef NB_TESTS_GGUF_BYTES_H
#define NB_TESTS_GGUF_BYTES_H

#include "base/bytes.h"

/* `{0}` is a file of version 3 without pairs and tensors. Free with gb_free. */
typedef struct {
    nb_buf kv, infos, data;
    uint64_t n_kv, n_tensors;
    uint32_t version;   /* 0: 3 */
    uint32_t alignment; /* 0: 32 */
} gguf_bytes;

void gb_free(gguf_bytes *g);

/* Pieces. A length is the true one unless it is given. */
void gb_raw_u8(nb_buf *b, uint8_t v);
void gb_raw_u32(nb_buf *b, uint32_t v);
void gb_raw_u64(nb_buf *b, uint64_t v);
void gb_raw(nb_buf *b, const void *bytes, size_t n);
void gb_raw_string(nb_buf *b, const char *text);

/* A key and its value type, counted; the caller appends the value to g->kv. */
void gb_key(gguf_bytes *g, const char *key, uint32_t type);
void gb_u32(gguf_bytes *g, const char *key, uint32_t v);
void gb_u16(gguf_bytes *g, const char *key, uint16_t v);
void gb_f32(gguf_bytes *g, const char *key, float v);
void gb_text(gguf_bytes *g, const char *key, const char *text);
/* An array key; the caller appends `count` elements. */
void gb_array(gguf_bytes *g, const char *key, uint32_t elem, uint64_t count);

/* An info that may lie, counted. */
void gb_info(gguf_bytes *g, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type,
             uint64_t offset);
/* An honest tensor: its data are appended, padded. Dimensions of 0 are left out. */
void gb_tensor(gguf_bytes *g, const char *name, uint64_t ne0, uint64_t ne1, uint32_t type,
               const void *data, size_t n);

/* The whole file. *out is an empty buffer. */
void gb_finish(const gguf_bytes *g, nb_buf *out);

#endif
