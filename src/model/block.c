/* See block.h. */
#include "model/block.h"

#include "model/linears.h"

#include <assert.h>
#include <math.h>

#define ROWS_PER_CHUNK 8

int64_t nb_tokens_per_attn_task(const nb_config *c)
{
    return NB_ATTN_ROWS / (c->n_heads / c->n_kv_heads);
}

int64_t nb_attn_parts_floats(const nb_config *c, int64_t n_ctx, int n_threads)
{
    const nb_attn_args one = {.n_q = 1,
                              .n_group = (int)(c->n_heads / c->n_kv_heads),
                              .pos0 = n_ctx - 1,
                              .kv.head_dim = (int)c->head_dim};
    return nb_attn_part_floats(&one) * nb_attn_n_splits(&one) * NB_SPLIT_TASKS * n_threads;
}

/* What the kernels need to know of a task, but for the thread's scratch. */
static nb_attn_args args_of(const nb_work *w, const nb_attn_task *t)
{
    const nb_config *c = &w->model->config;
    const int64_t ld = c->n_heads * c->head_dim, row = t->first_row + t->begin;
    return (nb_attn_args){.q = w->q + row * ld,
                          .out = w->att + row * ld,
                          .ld = ld,
                          .n_q = t->n_q,
                          .n_group = (int)(c->n_heads / c->n_kv_heads),
                          .kv_head = t->kv_head,
                          .pos0 = w->row_pos[row],
                          .window = c->sliding_window,
                          .scale = 1.0f / sqrtf((float)c->head_dim),
                          .kv.head_dim = (int)c->head_dim};
}

/* Long sequences and few tasks: places every task's splits and parts, if there is room. */
static void plan_splits(nb_step *step)
{
    nb_work *w = step->work;
    int64_t n_splits = 0, n_floats = 0;
    if (step->n_tasks > NB_SPLIT_TASKS * nb_pool_n_threads(w->pool))
        return;
    for (int64_t i = 0; i < step->n_tasks; i++) {
        const nb_attn_args a = args_of(w, &w->tasks[i]);
        w->tasks[i].first_split = n_splits;
        w->tasks[i].parts = w->parts + n_floats;
        n_splits += nb_attn_n_splits(&a);
        n_floats += nb_attn_n_splits(&a) * nb_attn_part_floats(&a);
        if (n_floats > w->parts_floats)
            return;
    }
    if (n_splits > 2 * step->n_tasks)
        step->n_splits = n_splits;
}

/* Tokens of a task that begins with token `begin` of an input: as many as fit and see the same
 * pages of the cache sealed. */
static int64_t together(const nb_step_input *in, int64_t begin, int64_t per_task)
{
    const nb_kv_format cell = in->seq->pool->cell;
    const int64_t pos = in->seq->n + begin, left = in->n_tokens - begin;
    int64_t n = left < per_task ? left : per_task;
    while (nb_kv_n_sealed(cell, pos + n - 1) > nb_kv_n_sealed(cell, pos))
        n--;
    return n;
}

void nb_step_plan_attention(nb_step *step)
{
    nb_work *w = step->work;
    const nb_config *c = &w->model->config;
    const int64_t per_task = nb_tokens_per_attn_task(c);
    int64_t row = 0;
    step->n_tasks = step->n_splits = 0;
    step->tasks_store = true;
    for (int64_t i = 0; i < step->n_inputs; i++) {
        const nb_step_input *in = &step->inputs[i];
        int64_t n;
        for (int64_t begin = 0; begin < in->n_tokens; begin += n) {
            n = together(in, begin, per_task);
            step->tasks_store = step->tasks_store && n == in->n_tokens;
            for (int h = 0; h < (int)c->n_kv_heads; h++) {
                assert(step->n_tasks < w->n_tasks_max);
                w->tasks[step->n_tasks++] = (nb_attn_task){
                    .input = in, .first_row = row, .begin = begin, .n_q = (int)n, .kv_head = h};
            }
        }
        row += in->n_tokens;
    }
    plan_splits(step);
    step->tasks_store = step->tasks_store && step->n_splits == 0;
}

/* ---- RoPE, the cache, attention ---- */

typedef struct {
    const nb_step *step;
    const nb_layer *layer;
    int64_t index;
    int q_bits;
} attn_run;

static void observe_head(const attn_run *run, nb_op op, int64_t row, int64_t head, const float *x)
{
    const nb_work *w = run->step->work;
    const int64_t d = w->model->config.head_dim;
    if (w->watcher.see != NULL)
        w->watcher.see(w->watcher.context, run->index, op, w->row_input[row], w->row_pos[row],
                       head * d, x, d);
}

/* QK-norm and RoPE, in place, of n heads of a row starting at head `first`; x is that head. */
static void rotate(const attn_run *run, nb_op op, int64_t row, int64_t first, int64_t n, float *x)
{
    const nb_work *w = run->step->work;
    const nb_config *c = &w->model->config;
    const int64_t half = w->model->rope.half, pos = w->row_pos[row];
    if (c->qk_norm) {
        const float *gain = op == NB_OP_ROPE_Q ? run->layer->q_norm : run->layer->k_norm;
        for (int64_t h = 0; h < n; h++)
            w->kernels->rmsnorm(x + h * c->head_dim, x + h * c->head_dim, gain, c->head_dim,
                                c->rms_eps);
    }
    w->kernels->rope(x, w->model->rope.cos + pos * half, w->model->rope.sin + pos * half, n,
                     c->head_dim, c->rot_dim);
    for (int64_t h = 0; h < n; h++)
        observe_head(run, op, row, first + h, x + h * c->head_dim);
}

/* Rotates the query heads of KV heads [first, first + n) of a row; rotates their keys, and stores
 * them with their values. */
static void enter_row(const attn_run *run, const nb_kv_seq *seq, int64_t row, int64_t first,
                      int64_t n)
{
    const nb_work *w = run->step->work;
    const nb_config *c = &w->model->config;
    const int64_t d = c->head_dim, group = c->n_heads / c->n_kv_heads;
    float *q = w->q + (row * c->n_heads + first * group) * d;
    float *k = w->k + (row * c->n_kv_heads + first) * d;
    rotate(run, NB_OP_ROPE_Q, row, first * group, n * group, q);
    rotate(run, NB_OP_ROPE_K, row, first, n, k);
    const nb_kv_view view = nb_kv_seq_view(seq, run->index);
    w->kernels->kv_store(&view, w->row_pos[row], (int)first, (int)n, k,
                         w->v + (row * c->n_kv_heads + first) * d);
}

static void enter_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const attn_run *run = context;
    const nb_step *step = run->step;
    const int64_t end = chunk * ROWS_PER_CHUNK + ROWS_PER_CHUNK;
    for (int64_t row = chunk * ROWS_PER_CHUNK; row < end && row < step->n_rows; row++)
        enter_row(run, step->inputs[step->work->row_input[row]].seq, row, 0,
                  step->work->model->config.n_kv_heads);
}

/* Whether a row is the first of its page in this step. */
static bool opens_page(const nb_work *w, int64_t row)
{
    return row == 0 || w->row_input[row] != w->row_input[row - 1] ||
           w->row_pos[row] % NB_KV_PAGE == 0;
}

/* The same by whole pages, whose last row quantizes them: those that open in the chunk's rows. */
static void enter_pages(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const attn_run *run = context;
    const nb_step *step = run->step;
    const nb_work *w = step->work;
    const int64_t end = chunk * ROWS_PER_CHUNK + ROWS_PER_CHUNK;
    bool own = false;
    for (int64_t row = chunk * ROWS_PER_CHUNK; row < step->n_rows; row++) {
        if (opens_page(w, row)) {
            if (row >= end)
                return;
            own = true;
        } else if (!own && row >= end) {
            return;
        }
        if (own)
            enter_row(run, step->inputs[w->row_input[row]].seq, row, 0,
                      w->model->config.n_kv_heads);
    }
}

static nb_attn_args ready_args(const attn_run *run, const nb_attn_task *t, int thread)
{
    const nb_work *w = run->step->work;
    nb_attn_args args = args_of(w, t);
    args.q_bits = run->q_bits;
    args.kv = nb_kv_seq_view(t->input->seq, run->index);
    args.scratch = w->scratch + thread * w->scratch_floats;
    return args;
}

static void observe_task(const attn_run *run, const nb_attn_task *t, const nb_attn_args *args)
{
    const nb_work *w = run->step->work;
    const int64_t row = t->first_row + t->begin, d = args->kv.head_dim;
    for (int64_t i = 0; w->watcher.see != NULL && i < t->n_q; i++) {
        for (int64_t h = t->kv_head * args->n_group; h < (t->kv_head + 1) * args->n_group; h++)
            observe_head(run, NB_OP_ATTENTION, row + i, h, args->out + i * args->ld + h * d);
    }
}

static void attend_chunk(void *context, int64_t chunk, int thread)
{
    const attn_run *run = context;
    const nb_work *w = run->step->work;
    /* Later tokens see more: the longest tasks go first. */
    const nb_attn_task *t = &w->tasks[run->step->n_tasks - 1 - chunk];
    if (run->step->tasks_store) {
        for (int64_t i = 0; i < t->n_q; i++)
            enter_row(run, t->input->seq, t->first_row + t->begin + i, t->kv_head, 1);
    }
    const nb_attn_args args = ready_args(run, t, thread);
    w->kernels->attention(&args);
    observe_task(run, t, &args);
}

static void split_chunk(void *context, int64_t chunk, int thread)
{
    const attn_run *run = context;
    const nb_work *w = run->step->work;
    int64_t i = run->step->n_tasks - 1;
    while (w->tasks[i].first_split > chunk)
        i--;
    const nb_attn_task *t = &w->tasks[i];
    const nb_attn_args args = ready_args(run, t, thread);
    w->kernels->attn_splits(&args, chunk - t->first_split, chunk - t->first_split + 1, t->parts);
}

static void merge_chunk(void *context, int64_t chunk, int thread)
{
    const attn_run *run = context;
    const nb_work *w = run->step->work;
    const nb_attn_task *t = &w->tasks[chunk];
    const nb_attn_args args = ready_args(run, t, thread);
    w->kernels->attn_merge(&args, t->parts);
    observe_task(run, t, &args);
}

static void attend(const nb_step *step, int64_t index)
{
    const nb_work *w = step->work;
    const nb_layer *layer = &w->model->layers[index];
    attn_run run = {.step = step, .layer = layer, .index = index};
    const nb_kv_format cell =
        step->n_inputs > 0 ? step->inputs[0].seq->pool->cell : NB_KV_F32; /* of all sequences */
    if (cell == NB_KV_INT8)
        run.q_bits = layer->q.mode == NB_COMPUTE_I8 ? 8 : layer->q.mode == NB_COMPUTE_I16 ? 16 : 0;
    const int64_t n_enter = (step->n_rows + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK;
    const bool splits = step->n_splits > 0;
    const nb_stage stages[] = {
        {.n_chunks = step->tasks_store ? 0 : n_enter,
         .task = nb_kv_bits(cell) > 0 ? enter_pages : enter_chunk},
        {.n_chunks = splits ? step->n_splits : step->n_tasks,
         .task = splits ? split_chunk : attend_chunk},
        {.n_chunks = splits ? step->n_tasks : 0, .task = merge_chunk},
    };
    nb_pool_run_stages(w->pool, stages, 3, &run);
}

/* ---- the block ---- */

static bool run_q_k_v(const nb_step *step, const nb_layer *y, int64_t index)
{
    nb_work *w = step->work;
    const nb_linears q_k_v = {.n = 3,
                              .w = {&y->q, &y->k, &y->v},
                              .y = {w->q, w->k, w->v},
                              .x = w->x,
                              .gain = y->attn_norm,
                              .layer = index,
                              .norm_op = NB_OP_ATTN_NORM,
                              .op = {NB_OP_Q, NB_OP_K, NB_OP_V}};
    return nb_linears_run(w, &q_k_v, step->n_rows);
}

static bool run_gate_up(const nb_step *step, const nb_layer *y, int64_t index)
{
    nb_work *w = step->work;
    const nb_linears gate_up = {.n = 2,
                                .w = {&y->gate, &y->up},
                                .y = {w->gate, w->up},
                                .x = w->x,
                                .gain = y->ffn_norm,
                                .then = NB_THEN_SWIGLU,
                                .layer = index,
                                .norm_op = NB_OP_FFN_NORM,
                                .op = {NB_OP_GATE, NB_OP_UP},
                                .then_op = NB_OP_SWIGLU};
    return nb_linears_run(w, &gate_up, step->n_rows);
}

/* x += W in. */
static bool run_added(const nb_step *step, const nb_linear *linear, const float *in, int64_t index,
                      nb_op op, nb_op then_op)
{
    nb_work *w = step->work;
    const nb_linears added = {.n = 1,
                              .w = {linear},
                              .y = {w->h},
                              .x = in,
                              .then = NB_THEN_ADD,
                              .residual = w->x,
                              .layer = index,
                              .op = {op},
                              .then_op = then_op};
    return nb_linears_run(w, &added, step->n_rows);
}

bool nb_block_run_part(nb_step *step, int64_t index, nb_block_part part)
{
    const nb_work *w = step->work;
    const nb_layer *y = &w->model->layers[index];
    switch (part) {
    case NB_PART_ATTEND: {
        const bool finite = run_q_k_v(step, y, index);
        attend(step, index);
        return finite;
    }
    case NB_PART_O:
        return run_added(step, &y->o, w->att, index, NB_OP_O, NB_OP_ATTN_RESIDUAL);
    case NB_PART_GATE_UP:
        return run_gate_up(step, y, index);
    case NB_PART_DOWN:
        return run_added(step, &y->down, w->gate, index, NB_OP_DOWN, NB_OP_FFN_RESIDUAL);
    case NB_N_PARTS:
        break;
    }
    assert(false);
    return false;
}

bool nb_block_run(nb_step *step, int64_t index)
{
    bool finite = true;
    for (int part = 0; part < NB_N_PARTS; part++)
        finite &= nb_block_run_part(step, index, (nb_block_part)part);
    return finite;
}
