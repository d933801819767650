/* The row order of q and k. Architectures whose rotary embedding turns neighbours (2i, 2i + 1) in
 * ggml store those rows interleaved; Hugging Face keeps the two halves of a head apart:
 *
 *   file row      0   1   2   3  ...      d-2      d-1      of each head of d rows
 *   Hugging Face  0  d/2  1 d/2+1 ... d/2-1      d-1
 */
#ifndef NB_STORE_GGUF_ROWS_H
#define NB_STORE_GGUF_ROWS_H

#include "store/gguf.h"
#include "store/store.h"

typedef enum { NB_GGUF_ROWS_PLAIN, NB_GGUF_ROWS_Q, NB_GGUF_ROWS_K } nb_gguf_rows;

/* Whether files of this architecture hold q and k interleaved. */
bool nb_gguf_arch_interleaves(const char *arch);

/* Whose heads the rows of this tensor (GGUF name) belong to. */
nb_gguf_rows nb_gguf_rows_of(const char *gguf_name);

/* The heads that key `ARCH.attention.head_count[_kv]` gives for the layer of a q or k tensor; one
 * number, or one a layer. 0 when there is no such key. NB_DATA when it is no count. */
nb_status nb_gguf_head_count(const nb_gguf *g, const char *arch, nb_gguf_rows rows, int64_t layer,
                             int64_t *n_heads, nb_err *err);

/* What is moved: the rows of a matrix, or the elements of a bias. NB_DATA / NB_UNSUPPORTED when
 * they do not make `n_heads` heads of an even number of rows. */
typedef struct {
    int64_t head_rows; /* d */
    size_t row_bytes;
} nb_gguf_head;
nb_status nb_gguf_head_shape(const nb_weight *w, int64_t n_heads, nb_gguf_head *out, nb_err *err);

/* Copies one head; `out` and `in` hold head_rows * row_bytes bytes and do not overlap. */
void nb_gguf_head_to_hf(uint8_t *out, const uint8_t *in, const nb_gguf_head *head);
void nb_gguf_head_from_hf(uint8_t *out, const uint8_t *in, const nb_gguf_head *head);

#endif
