/* The forward pass: one decoder block for every architecture, for prefill and decode alike.
 *
 * A step takes any number of sequences with any number of new tokens each. What a token's logits
 * are depends on its own sequence only, bit for bit: not on the batch, on how a prompt was cut into
 * steps, on threads or on the instruction set. */
#ifndef NB_MODEL_FORWARD_H
#define NB_MODEL_FORWARD_H

#include "model/kv.h"
#include "model/model.h"

/* The operations of a block in the order they run, then those after the last block. */
typedef enum {
    NB_OP_ATTN_NORM,
    NB_OP_Q,
    NB_OP_K,
    NB_OP_V,
    NB_OP_ROPE_Q, /* with QK-norm where the model has it */
    NB_OP_ROPE_K,
    NB_OP_ATTENTION,
    NB_OP_O,
    NB_OP_ATTN_RESIDUAL,
    NB_OP_FFN_NORM,
    NB_OP_GATE,
    NB_OP_UP,
    NB_OP_SWIGLU,
    NB_OP_DOWN,
    NB_OP_FFN_RESIDUAL,
    NB_OP_NORM, /* layer: n_layers */
    NB_N_OPS
} nb_op;
const char *nb_op_name(nb_op op);

/* Told of every result: values [column, column + n) of operation `op` of the token at `position` of
 * the step's sequence `input`. Slices come in any order, cut anyhow, and from several threads at
 * once; each element comes once. Only to find out where two runs part: it slows everything. */
typedef struct {
    void (*see)(void *context, int64_t layer, nb_op op, int64_t input, int64_t position,
                int64_t column, const float *values, int64_t n);
    void *context;
} nb_watcher;

/* Buffers for steps of at most max_tokens tokens; made once, then nothing is allocated. */
typedef struct {
    const nb_model *model;
    const nb_kernels *kernels;
    nb_pool *pool;
    int64_t max_tokens, max_positions;
    float *x, *h, *q, *k, *v, *att, *gate, *up; /* [max_tokens][...] */
    void *packed;                               /* activations of one run of linears */
    float *normed;                              /* a tile of rows of any width, per thread */
    int64_t normed_floats;                      /* of one thread */
    int64_t *row_input, *row_pos;               /* of each row of the step */
    float *scratch;                             /* attention, per thread */
    int64_t scratch_floats;                     /* of one thread */
    float *parts;                               /* of attention, when threads share its splits */
    int64_t parts_floats;
    struct nb_attn_task *tasks;
    int64_t n_tasks_max;
    nb_watcher watcher; /* see is NULL unless the owner sets it */
} nb_work;

nb_status nb_work_init(nb_work *work, const nb_model *model, const nb_kernels *kernels,
                       nb_pool *pool, int64_t max_tokens, nb_err *err);
void nb_work_free(nb_work *work);
/* Bytes that nb_work_init allocates. */
int64_t nb_work_bytes(const nb_model *model, int n_threads, int64_t max_tokens);

/* New tokens of one sequence; they take the positions seq->n, seq->n + 1, ... The final hidden
 * states of the last n_out of them are wanted. */
typedef struct {
    nb_kv_seq *seq;
    const int32_t *tokens;
    int64_t n_tokens;
    int64_t n_out; /* 0 to n_tokens */
} nb_step_input;

/* Runs the step. hidden [sum of n_out][d_model]: normed states, in input order. The sequences grow
 * by their tokens, also their seq->n. The sum of n_tokens is at most max_tokens (an assert: the
 * caller cuts). NB_LIMIT when a sequence outgrows its pages or the model's n_ctx, NB_DATA for a
 * token id outside the vocabulary; then nothing has changed. NB_DATA, after the step has run, when
 * Inf or NaN reached an integer product: those tokens' states are NaN. */
nb_status nb_forward(nb_work *work, const nb_step_input *inputs, int64_t n_inputs, float *hidden,
                     nb_err *err);

/* ---- block by block: calibration and tuning ---- */

/* A block in four parts. Each reads and writes rows of work's buffers. */
typedef enum {
    NB_PART_ATTEND,  /* x -> att: norm, q, k, v, attention */
    NB_PART_O,       /* att -> x += o */
    NB_PART_GATE_UP, /* x -> gate: norm, SwiGLU of gate and up */
    NB_PART_DOWN,    /* gate -> x += down */
    NB_N_PARTS
} nb_block_part;

/* Runs one part of block `layer` on rows that the caller has put into the buffers; tokens, n_out
 * and outputs of the inputs are not looked at. The sequences keep their n: after NB_PART_ATTEND
 * the caller moves it on, or takes it back. */
nb_status nb_forward_part(nb_work *work, const nb_step_input *inputs, int64_t n_inputs,
                          int64_t layer, nb_block_part part, nb_err *err);

/* logits[r * vocab_size ..] = head of hidden row r, for r < n_rows <= max_tokens. */
void nb_logits(nb_work *work, const float *hidden, int64_t n_rows, float *logits);

/* The hash of docs/numerics.md for the logits row at absolute token index `index`. */
uint64_t nb_logits_hash(const float *logits, int64_t n, uint64_t index);

#endif
