/* A whole model forward and backward in mode f, block by block: memory holds one block or the head,
 * the disk the inputs of all blocks for the sequences at hand. Weights come from the caller, who
 * may change those of a block when its gradients are complete.
 *
 * Nothing depends on threads, instruction set, or on which sequences go together, but for sums over
 * sequences, which run in their order. */
#ifndef NB_QUANT_PASS_PASSES_H
#define NB_QUANT_PASS_PASSES_H

#include "model/backward.h"
#include "quant/calib/set.h"
#include "quant/weight/workdir.h"

/* Told of every piece of work, in floating-point operations. False stops with NB_INTERRUPTED. */
typedef bool nb_passes_progress(void *context, double flops);

typedef struct {
    nb_store *store;
    nb_pool *pool;
    const nb_kernels *kernels;
    const nb_workdir *dir;
    const char *file;             /* of the inputs, in `dir` */
    int64_t room, longest;        /* tokens of all sequences at hand, and of one, at most */
    nb_passes_progress *progress; /* NULL: none */
    void *context;
} nb_passes_job;

typedef struct {
    nb_passes_job job;
    nb_model frame; /* norms and biases of all blocks, and no linears */
    nb_spill x; /* [n_layers + 1][room] tokens: what each block reads, then what the head does; on
                   the way back, each is replaced by the gradient there */
    const nb_calib_seq *seqs; /* at hand, borrowed */
    int64_t n_seqs;
    nb_loaded source; /* a weight as it was read */
    float *weight[NB_N_LINEARS];
    float *rows, *grads; /* [longest][d_model] */
    nb_block_train train;
} nb_passes;

/* `{0}` with the file closed. */
#define NB_PASSES_NONE ((nb_passes){.x = NB_SPILL_CLOSED})

/* Bytes in memory (INT64_MAX where it is no number), without the caller's weights and gradients;
 * on disk; `two_heads`: with logits of another model. */
int64_t nb_passes_memory(const nb_config *c, int64_t longest, int n_threads, bool two_heads);
int64_t nb_passes_disk(const nb_config *c, int64_t room);
/* Operations of a token, forward, in a sequence of n. */
double nb_passes_block_flops(const nb_config *c, int64_t n);
double nb_passes_head_flops(const nb_config *c);

/* Close after failures, too. */
nb_status nb_passes_open(nb_passes *p, const nb_passes_job *job, nb_err *err);
void nb_passes_close(nb_passes *p);

/* The sequences of what follows; the embeddings of their tokens are what the first block reads. */
nb_status nb_passes_embed(nb_passes *p, const nb_calib_seq *seqs, int64_t n_seqs, nb_err *err);

/* What the caller knows of blocks; NULL where there is nothing to do. */
typedef struct {
    /* The weights of a block, until the next call. NULL: those of the source. */
    nb_status (*load)(void *context, int64_t layer, nb_block_weights *out, nb_err *err);
    /* Where the gradients of a sequence of n tokens go: all but x. */
    void (*wanted)(void *context, int64_t layer, int64_t n, nb_block_grads *grads);
    /* The gradients of a sequence are there, or added: n tokens from `row` of all at hand. */
    nb_status (*taken)(void *context, int64_t layer, int64_t row, int64_t n, nb_err *err);
    /* Those of all sequences are. */
    nb_status (*done)(void *context, int64_t layer, nb_err *err);
    void *context;
} nb_passes_blocks;

/* The source's own weights, as floats in p->weight: what `load` may begin with. */
nb_status nb_passes_load_source(nb_passes *p, int64_t layer, nb_block_weights *out, nb_err *err);

nb_status nb_passes_forward(nb_passes *p, const nb_passes_blocks *blocks, nb_err *err);
/* After the head, which leaves the gradient of what it reads. */
nb_status nb_passes_backward(nb_passes *p, const nb_passes_blocks *blocks, nb_err *err);

typedef struct {
    const nb_spill *other; /* the same tokens' inputs of the head in another model; NULL: none */
    bool back;             /* whether the gradient of the inputs is wanted */
    /* For each token, on the pool: logits [vocab_size] become their gradient; `other` are those of
     * the other model, or NULL; `zeros` [vocab_size] are scratch. */
    void (*row)(void *context, int64_t token, float *logits, float *other, float *zeros);
    void *context;
} nb_passes_head;

/* The final norm and the head, of the source. */
nb_status nb_passes_run_head(nb_passes *p, const nb_passes_head *head, nb_err *err);
/* Copies the inputs of the head, [tokens at hand][d_model], to rows of the same numbers. */
nb_status nb_passes_keep_last(nb_passes *p, const nb_spill *to, nb_err *err);

#endif
