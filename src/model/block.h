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
} nb_attn_task;

typedef struct {
    nb_work *work;
    const nb_step_input *inputs;
    int64_t n_inputs, n_rows, n_tasks;
    /* Every input fits into one task per KV head, as in decode: then the task rotates and stores
     * the keys and values that it is about to read, and nobody waits for anybody else's. */
    bool tasks_store;
} nb_step;

int64_t nb_tokens_per_attn_task(const nb_config *c);
/* Fills step->work->tasks; inputs and n_inputs are set. */
void nb_step_plan_attention(nb_step *step);

/* x += attention(norm(x)), x += mlp(norm(x)) for all rows of work->x. Returns false if Inf or NaN
 * met an integer product. */
bool nb_block_run(nb_step *step, int64_t layer);

#endif
