/* safetensors, the file layout (formats.md section 9): a JSON header that names tensors, and their
 * bytes behind it without gap, overlap or rest. store.h is the interface for weights. */
#ifndef NB_STORE_SAFETENSORS_H
#define NB_STORE_SAFETENSORS_H

#include "base/arena.h"
#include "base/file.h"
#include "store/store.h"

/* X(enumerator, name in the header, bits of one element) */
#define NB_ST_DTYPES(X)                                                                            \
    X(NB_ST_BOOL, "BOOL", 8)                                                                       \
    X(NB_ST_F4, "F4", 4)                                                                           \
    X(NB_ST_F6_E2M3, "F6_E2M3", 6)                                                                 \
    X(NB_ST_F6_E3M2, "F6_E3M2", 6)                                                                 \
    X(NB_ST_U8, "U8", 8)                                                                           \
    X(NB_ST_I8, "I8", 8)                                                                           \
    X(NB_ST_F8_E5M2, "F8_E5M2", 8)                                                                 \
    X(NB_ST_F8_E4M3, "F8_E4M3", 8)                                                                 \
    X(NB_ST_F8_E8M0, "F8_E8M0", 8)                                                                 \
    X(NB_ST_F8_E4M3FNUZ, "F8_E4M3FNUZ", 8)                                                         \
    X(NB_ST_F8_E5M2FNUZ, "F8_E5M2FNUZ", 8)                                                         \
    X(NB_ST_I16, "I16", 16)                                                                        \
    X(NB_ST_U16, "U16", 16)                                                                        \
    X(NB_ST_F16, "F16", 16)                                                                        \
    X(NB_ST_BF16, "BF16", 16)                                                                      \
    X(NB_ST_I32, "I32", 32)                                                                        \
    X(NB_ST_U32, "U32", 32)                                                                        \
    X(NB_ST_F32, "F32", 32)                                                                        \
    X(NB_ST_C64, "C64", 64)                                                                        \
    X(NB_ST_F64, "F64", 64)                                                                        \
    X(NB_ST_I64, "I64", 64)                                                                        \
    X(NB_ST_U64, "U64", 64)

typedef enum {
#define X(id, text, bits) id,
    NB_ST_DTYPES(X)
#undef X
} nb_st_dtype;

const char *nb_st_dtype_name(nb_st_dtype dtype);
int nb_st_dtype_bits(nb_st_dtype dtype);

typedef struct {
    const char *name;
    nb_st_dtype dtype;
    int n_dims;
    int64_t dims[NB_MAX_DIMS];
    int64_t begin, bytes; /* begin counts from the end of the header */
} nb_st_tensor;

/* "[576, 1536]" into the caller's buffer. */
#define NB_ST_SHAPE_TEXT 96
const char *nb_st_shape_text(char out[NB_ST_SHAPE_TEXT], int n_dims, const int64_t *dims);

/* NB_DATA says what was wanted and what was found, where the tensor has another dtype or shape. */
nb_status nb_st_expect(const nb_st_tensor *t, nb_st_dtype dtype, int n_dims, const int64_t *dims,
                       nb_err *err);

typedef struct {
    nb_file file;
    int64_t data_start; /* byte of the file where `begin` counts from */
    nb_buf table;
    nb_st_tensor *tensors; /* in the order of their bytes; in `table` */
    int64_t n_tensors;
} nb_safetensors;

#define NB_SAFETENSORS_CLOSED ((nb_safetensors){.file = {.fd = -1}})

/* Opens a file and validates its header; names live in the arena. The length of the header is
 * checked against the file before anything of that length is allocated or read. */
nb_status nb_st_open(nb_safetensors *st, nb_arena *arena, const char *path, nb_err *err);
void nb_st_close(nb_safetensors *st);

/* The header alone: fills st->tensors from text[0, len), in front of `data_bytes` of data. Frees
 * what it filled on failure. */
nb_status nb_st_parse(nb_safetensors *st, nb_arena *arena, const char *text, size_t len,
                      int64_t data_bytes, nb_err *err);

/* Reads all bytes of a tensor. */
nb_status nb_st_read(const nb_safetensors *st, const nb_st_tensor *t, void *out, nb_err *err);

/* Appends the start of a file for these tensors, whose bytes follow in the same order: length,
 * JSON with {"format":"pt"}, spaces up to a multiple of 8. Fills in begin and bytes from dtype and
 * shape. *data_bytes: how much follows. */
nb_status nb_st_write_header(nb_buf *out, nb_st_tensor *tensors, int64_t n, int64_t *data_bytes,
                             nb_err *err);

#endif
