/* A network ready to run: config and packed weights, bound by name and shape-checked once. */
#ifndef NB_MODEL_MODEL_H
#define NB_MODEL_MODEL_H

#include "base/arena.h"
#include "kernel/gemm.h"
#include "model/config.h"
#include "model/rope.h"

/* y = x W^T + bias, and how it is computed. */
typedef struct {
    nb_panels w;
    float *bias; /* NULL: none */
    nb_compute mode;
    bool per_token;        /* activations: one scale a token (i8) */
    const nb_weight *info; /* borrowed from the store, which must stay open */
} nb_linear;

typedef struct {
    float *attn_norm, *ffn_norm; /* [d_model] */
    float *q_norm, *k_norm;      /* [head_dim]; NULL without QK-norm */
    nb_linear q, k, v, o, gate, up, down;
} nb_layer;

typedef struct {
    nb_config config;
    nb_layer *layers;
    nb_linear embed;
    nb_linear head; /* unused when tied: nb_model_head() gives the embedding */
    float *norm;    /* [d_model] */
    nb_rope_table rope;
    int64_t n_ctx;                  /* positions the model was opened for */
    int64_t weight_bytes, n_params; /* in the file */
    int64_t packed_bytes;           /* in memory */
    nb_arena arena;
    nb_slab slab; /* packed weights */
} nb_model;

/* What the scheme says (A7), or one mode for every weight that has an integer form. */
typedef enum {
    NB_COMPUTE_AUTO = -1,
    NB_COMPUTE_ALL_F,
    NB_COMPUTE_ALL_I8,
    NB_COMPUTE_ALL_I16
} nb_compute_choice;

typedef struct {
    nb_compute_choice compute;
    int64_t n_ctx; /* 0: the model's own, at most NB_DEFAULT_CTX */
} nb_model_options;

#define NB_DEFAULT_CTX 8192

/* Reads every weight once and packs it. Errors name the file and the tensor. */
nb_status nb_model_open(nb_model *m, nb_store *store, const nb_model_options *options,
                        nb_pool *pool, nb_err *err);
void nb_model_close(nb_model *m);
/* The checks of names and shapes that opening makes, without reading a tensor. */
nb_status nb_model_check(nb_store *store, const nb_config *config, nb_err *err);

static inline const nb_linear *nb_model_head(const nb_model *m)
{
    return m->config.tied_head ? &m->embed : &m->head;
}

/* The mode a weight runs in under a choice: used for plans before anything is loaded. */
nb_compute nb_weight_compute(const nb_weight *w, nb_compute_choice choice);
/* "f", "i8", "i16", or "i8+f" when quantized weights disagree; of the block linears. */
const char *nb_model_compute_name(const nb_model *m);

#endif
