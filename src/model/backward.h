/* One decoder block forward and backward in binary32: what block-wise tuning and training run.
 * No autograd: forward keeps what the mirror of each operation needs.
 *
 * The forward pass gives the bits of the model's own (block.h) in mode f with an F32 cache, for
 * weights of equal values: the products are A2, and norms, RoPE, attention and SwiGLU are the same
 * kernels. Gradients depend neither on the number of threads, nor on the instruction set, nor on
 * how sequences were grouped into calls: those of weights are sums over one sequence after the
 * other, in pieces of 128 tokens (A10's pieces, added in binary32).
 *
 * With `bf16` all products with weights take operands rounded to bfloat16, and add in binary32
 * (nb_matmul_job's pairs; pieces are of 256 tokens): twice as fast where the processor has the dot
 * product, for gradients of which little more than the sign is used. What is compared then has to
 * come from passes that are alike. */
#ifndef NB_MODEL_BACKWARD_H
#define NB_MODEL_BACKWARD_H

#include "base/pool.h"
#include "model/model.h"

/* Linears [n_rows][n_cols]; biases NULL where there are none; q_norm and k_norm with QK-norm. */
typedef struct {
    const float *linear[NB_N_LINEARS], *bias[NB_N_LINEARS];
    const float *attn_norm, *ffn_norm, *q_norm, *k_norm;
} nb_block_weights;

/* Where linears read: q, k, v; o; gate, up; down. */
#define NB_BLOCK_POINTS 4

/* Where gradients go; NULL: not wanted. Those of weights are added to what is there. */
typedef struct {
    float *linear[NB_N_LINEARS], *bias[NB_N_LINEARS];
    float *attn_norm, *ffn_norm, *q_norm, *k_norm;
    float *x;       /* [n_seq * len][d_model], written */
    float *squares; /* [n_seq * len][NB_BLOCK_POINTS], written: the mean, over all outputs of the
                       linears that read at a point, of the squared gradient of the output, in
                       binary64 and rounded once */
    /* Called with the gradient of every linear's outputs [n_seq * len][n_rows of the linear], while
     * it stands in its buffer. */
    void (*outputs)(void *context, nb_linear_id which, const float *gradient);
    void *context;
} nb_block_grads;

/* The buffers of one call; made once, then nothing is allocated. `{0}` is empty. */
typedef struct {
    const nb_config *config;
    const nb_rope_table *rope;
    const nb_kernels *kernels;
    nb_pool *pool;
    int64_t max_seq, max_len;
    bool bf16;
    void *memory;
    /* Of the last forward pass, [tokens][...]. After it `y` is the block's output; backward takes
     * the gradient of the output from there and changes it. */
    float *y;
    float *x1, *normed1, *normed2, *q, *k, *v, *raw_q, *raw_k, *att, *gate, *up, *h;
    float *d_normed, *d_att, *d_k, *d_v;
    float *rms; /* [tokens][n_heads], for gradients of gains */
    float *minus_sin;
    uint8_t *pages;
    int32_t *table;
    float *scratch; /* per thread */
    int64_t scratch_floats;
    void *products;
    float *pairs_a, *pairs_b; /* operands in bfloat16, with `bf16` */
} nb_block_train;

/* What nb_block_train_init would take for n_seq sequences of len tokens; INT64_MAX where that is
 * no number. */
int64_t nb_block_train_bytes(const nb_config *c, int64_t n_seq, int64_t len, bool bf16,
                             int n_threads);
/* NB_USAGE where the table of positions is shorter than len. */
nb_status nb_block_train_init(nb_block_train *t, const nb_config *c, const nb_rope_table *rope,
                              const nb_kernels *k, nb_pool *pool, int64_t n_seq, int64_t len,
                              bool bf16, nb_err *err);
void nb_block_train_free(nb_block_train *t);

/* t->y = the block of x [n_seq * len][d_model]; positions of each sequence count from 0. */
void nb_block_forward(nb_block_train *t, const nb_block_weights *w, const float *x, int64_t n_seq,
                      int64_t len);
/* After a forward pass with the same arguments; t->y holds the gradient of the output. */
void nb_block_backward(nb_block_train *t, const nb_block_weights *w, const float *x, int64_t n_seq,
                       int64_t len, const nb_block_grads *grads);

#endif
