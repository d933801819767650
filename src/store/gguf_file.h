/* The header of one GGUF file, parsed and checked: pairs, tensor infos, where the data start.
 * For the files gguf*.c only; everybody else sees gguf.h and store.h. */
#ifndef NB_STORE_GGUF_FILE_H
#define NB_STORE_GGUF_FILE_H

#include "numeric/format.h"
#include "store/gguf.h"

#define NB_GGUF_ALIGNMENT 32
#define NB_GGUF_MAX_DIMS  4

/* ne[0] runs fastest, as in the file. */
typedef struct {
    nb_text name;
    int n_dims;
    int64_t ne[NB_GGUF_MAX_DIMS];
    const nb_format *fmt;
    int64_t bytes;
    int64_t offset; /* from the start of the data */
} nb_gguf_info;

struct nb_gguf {
    nb_buf bytes; /* the header, which everything below points into */
    nb_gguf_kv *kv;
    const nb_gguf_kv **sorted; /* by key */
    int64_t n_kv;
    nb_gguf_info *infos;
    int64_t n_infos;
    int64_t alignment;
    int64_t data_start;
};

/* Reads the header of an open file and checks all that can be known without the tensor data:
 * afterwards every tensor lies inside the file. The message does not name the file unless a read
 * failed (see nb_gguf_open). */
nb_status nb_gguf_open(nb_gguf **out, const nb_file *file, nb_err *err);
void nb_gguf_close(nb_gguf *g); /* NULL is fine */

/* Only the pairs, from bytes that outlive g: what a file to be written will start with. NB_DATA
 * unless exactly n_kv valid pairs fill the span. */
nb_status nb_gguf_open_pairs(nb_gguf **out, const uint8_t *bytes, size_t len, int64_t n_kv,
                             nb_err *err);

/* For "%.*s": hostile keys may be long, and the reason comes after them. */
static inline int nb_text_precision(nb_text t)
{
    return t.len < 100 ? (int)t.len : 100;
}

static inline uint64_t nb_gguf_pad(uint64_t n, int64_t alignment)
{
    const uint64_t a = (uint64_t)alignment;
    return (n + a - 1) & ~(a - 1);
}

/* Bytes of one element; 0 for strings and arrays. */
size_t nb_gguf_type_bytes(nb_gguf_type type);

#endif
