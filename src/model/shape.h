/* Networks by their measures alone, with random weights: for timing, where what a model says does
 * not matter. */
#ifndef NB_MODEL_SHAPE_H
#define NB_MODEL_SHAPE_H

#include "store/store.h"

typedef struct {
    const char *name; /* NULL: made from numbers */
    int64_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size;
    bool tied_head;
    int64_t n_ctx;
    double rope_base;
} nb_shape;

/* Well-known ones, ending with a NULL name. */
extern const nb_shape nb_shapes[];

/* A name of the list, or numbers: LAYERSxWIDTH,HEADS/KV_HEADSxHEAD_DIM,FFN,VOCAB[,tied], as in
 * "16x2048,32/8x64,8192,128256,tied". NB_USAGE says what there is. */
nb_status nb_shape_parse(nb_shape *out, const char *text, nb_err *err);

/* A store with a llama of this shape, called `name`. Of `linear`, which is the pattern of every
 * matrix of the blocks, only the format counts (fmt, symmetric, scale_type, act and group_size;
 * group_size 0 is one scale a row). Embedding and output are q8_0, as quantized files of others
 * have them, or bf16 where rows are no whole blocks of 32. */
nb_status nb_shape_open(nb_store **out, const nb_shape *shape, const char *name,
                        const nb_weight *linear, uint64_t seed, nb_err *err);

#endif
