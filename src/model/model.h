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
    nb_xround round;       /* FP8 activations (f), or static scales (i8) */
    const nb_weight *info; /* borrowed from the store, which must stay open */
} nb_linear;

typedef struct {
    float *attn_norm, *ffn_norm; /* [d_model] */
    float *q_norm, *k_norm;      /* [head_dim]; NULL without QK-norm */
    nb_linear q, k, v, o, gate, up, down;
} nb_layer;

/* The linear layers of a block, in the order they run. */
typedef enum {
    NB_LINEAR_Q,
    NB_LINEAR_K,
    NB_LINEAR_V,
    NB_LINEAR_O,
    NB_LINEAR_GATE,
    NB_LINEAR_UP,
    NB_LINEAR_DOWN,
    NB_N_LINEARS
} nb_linear_id;
nb_linear *nb_layer_linear(nb_layer *layer, nb_linear_id id);
/* "self_attn.q_proj" */
const char *nb_linear_name(nb_linear_id id);
/* Outputs and inputs of each, and whether it has a bias. */
int64_t nb_linear_n_rows(const nb_config *c, nb_linear_id id);
int64_t nb_linear_n_cols(const nb_config *c, nb_linear_id id);
bool nb_linear_has_bias(const nb_config *c, nb_linear_id id);

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
/* Static scales of the key-value cache are not used: FP8 caches find their own. Call it before any
 * cache is made. */
static inline void nb_model_forget_kv_scales(nb_model *m)
{
    m->config.k_scales = m->config.v_scales = NULL;
}
/* The checks of names and shapes that opening makes, without reading a tensor. */
nb_status nb_model_check(nb_store *store, const nb_config *config, nb_err *err);

static inline const nb_linear *nb_model_head(const nb_model *m)
{
    return m->config.tied_head ? &m->embed : &m->head;
}

/* ---- one block at a time: calibration and block-wise tuning ---- */

/* All but embedding, head and layers: config, RoPE and the last norm, and room for n_slots blocks,
 * which are the model's layers 0 to n_slots - 1 (also for forward passes and caches). */
nb_status nb_model_open_frame(nb_model *m, nb_store *store, int64_t n_slots, int64_t n_ctx,
                              nb_err *err);
/* Norms and biases of a block of the store, in place of what the slot held. They last until the
 * model is closed. */
nb_status nb_model_load_vectors(nb_model *m, nb_store *store, int64_t slot, int64_t layer,
                                nb_err *err);
/* Packs a matrix, of any format, for a slot's linear, which keeps its bias; what it held is freed.
 * `act` and `choice` decide how it is computed, as for a weight of a file. */
nb_status nb_model_set_linear(nb_model *m, int64_t slot, nb_linear_id id, const nb_mat *mat,
                              const nb_act_spec *act, nb_compute_choice choice, nb_pool *pool,
                              nb_err *err);
/* Frees the weights of a slot's linear. */
void nb_model_drop_linear(nb_model *m, int64_t slot, nb_linear_id id);

/* The mode a weight runs in under a choice: used for plans before anything is loaded. */
nb_compute nb_weight_compute(const nb_weight *w, nb_compute_choice choice);
/* "f", "i8", "i16", or "i8+f" when quantized weights disagree; of the block linears. */
const char *nb_model_compute_name(const nb_model *m);

#endif
