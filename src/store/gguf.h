/* GGUF v3, the file layout (formats.md section 8): key-value pairs, tensor infos, writing.
 * store.h is the interface for tensors; this one is for what reads or writes keys. */
#ifndef NB_STORE_GGUF_H
#define NB_STORE_GGUF_H

#include "base/arena.h"
#include "base/bytes.h"
#include "base/file.h"

typedef enum {
    NB_GGUF_U8,
    NB_GGUF_I8,
    NB_GGUF_U16,
    NB_GGUF_I16,
    NB_GGUF_U32,
    NB_GGUF_I32,
    NB_GGUF_F32,
    NB_GGUF_BOOL,
    NB_GGUF_STRING,
    NB_GGUF_ARRAY,
    NB_GGUF_U64,
    NB_GGUF_I64,
    NB_GGUF_F64
} nb_gguf_type;

typedef struct {
    const char *text; /* not zero-terminated */
    size_t len;
} nb_text;

typedef struct {
    nb_text key;
    nb_gguf_type type; /* NB_GGUF_ARRAY: see elem and count */
    nb_gguf_type elem;
    uint64_t count;      /* 1 for a scalar */
    const uint8_t *data; /* raw little-endian elements (strings: length-prefixed) */
    size_t data_bytes;
} nb_gguf_kv;

typedef struct nb_gguf nb_gguf;

int64_t nb_gguf_n_kv(const nb_gguf *g);
const nb_gguf_kv *nb_gguf_kv_at(const nb_gguf *g, int64_t i);
/* NULL: no such key. */
const nb_gguf_kv *nb_gguf_find(const nb_gguf *g, const char *key);

/* Typed getters: a missing key is NB_DATA when `required`, else *out stays. Any integer type is
 * accepted for an integer within [min, max]; a wrong type is NB_DATA and names the key. */
nb_status nb_gguf_int(const nb_gguf *g, const char *key, bool required, int64_t min, int64_t max,
                      int64_t *out, nb_err *err);
nb_status nb_gguf_number(const nb_gguf *g, const char *key, bool required, double *out,
                         nb_err *err);
nb_status nb_gguf_bool(const nb_gguf *g, const char *key, bool required, bool *out, nb_err *err);
nb_status nb_gguf_text(const nb_gguf *g, const char *key, bool required, nb_text *out, nb_err *err);
/* An array of strings, as `count` texts in the arena. */
nb_status nb_gguf_texts(const nb_gguf *g, const char *key, bool required, nb_arena *arena,
                        nb_text **out, int64_t *count, nb_err *err);
/* An array of i32 / u32 / f32 as the given type; the element type must match exactly. */
nb_status nb_gguf_i32s(const nb_gguf *g, const char *key, bool required, const int32_t **out,
                       int64_t *count, nb_err *err);
nb_status nb_gguf_f32s(const nb_gguf *g, const char *key, bool required, const float **out,
                       int64_t *count, nb_err *err);

/* ---- encoding pairs for a file to be written; each call appends one pair ---- */
nb_status nb_gguf_put_u32(nb_buf *kv, const char *key, uint32_t v, nb_err *err);
nb_status nb_gguf_put_f32(nb_buf *kv, const char *key, float v, nb_err *err);
nb_status nb_gguf_put_bool(nb_buf *kv, const char *key, bool v, nb_err *err);
nb_status nb_gguf_put_text(nb_buf *kv, const char *key, const char *text, size_t len, nb_err *err);
nb_status nb_gguf_put_texts(nb_buf *kv, const char *key, const nb_text *texts, int64_t n,
                            nb_err *err);
nb_status nb_gguf_put_i32s(nb_buf *kv, const char *key, const int32_t *v, int64_t n, nb_err *err);
nb_status nb_gguf_put_f32s(nb_buf *kv, const char *key, const float *v, int64_t n, nb_err *err);

#endif
