/* One decoder block in five runs of the pool: q, k, v; attention; o; gate and up; down. Private to
 * the forward pass. */
#ifndef NB_MODEL_BLOCK_H
#define NB_MODEL_BLOCK_H

#include "model/forward.h"

/* Attention of some query tokens of one sequence for the query heads of one KV head. */
typedef struct nb_attn_task {
    const nb_step_input *input;
    int64_t first_row; /* of the step's rows: the input's first token */
    int64_t begin;     /* first token of the task within the input */
    int n_q, kv_head;
    /* when splits are shared out: */
    int64_t first_split; /* of all tasks' splits, in the order of tasks */
    float *parts;
} nb_attn_task;

typedef struct {
    nb_work *work;
    const nb_step_input *inputs;
    int64_t n_inputs, n_rows, n_tasks;
    /* Every input fits into one task per KV head, as in decode: then the task rotates and stores
     * the keys and values that it is about to read, and nobody waits for anybody else's. */
    bool tasks_store;
    /* So few tasks that threads would idle behind the longest: then they share out the splits of
     * the tasks, n_splits in all; else 0. */
    int64_t n_splits;
} nb_step;

int64_t nb_tokens_per_attn_task(const nb_config *c);
/* Floats of work->parts: the parts of this many decoding tasks for each thread. */
#define NB_SPLIT_TASKS 8
int64_t nb_attn_parts_floats(const nb_config *c, int64_t n_ctx, int n_threads);
/* Fills step->work->tasks; inputs and n_inputs are set. */
void nb_step_plan_attention(nb_step *step);

/* x += attention(norm(x)), x += mlp(norm(x)) for all rows of work->x. Returns false if Inf or NaN
 * met an integer product. */
bool nb_block_run(nb_step *step, int64_t layer);
/* One part of it. */
bool nb_block_run_part(nb_step *step, int64_t layer, nb_block_part part);

#endif
