/* See forward.h. */
#include "model/forward.h"

#include "base/fpenv.h"
#include "base/mix.h"
#include "model/block.h"
#include "model/linears.h"
#include "numeric/minifloat.h"

#include <assert.h>

const char *nb_op_name(nb_op op)
{
    static const char *const names[NB_N_OPS] = {
        "attention norm", "query",          "key",
        "value",          "query rotation", "key rotation",
        "attention",      "output",         "attention residual",
        "ffn norm",       "gate",           "up",
        "SwiGLU",         "down",           "ffn residual",
        "final norm"};
    return names[op];
}

/* Of one thread, in whole cache lines. */
static int64_t scratch_floats(const nb_model *m)
{
    return (nb_attn_scratch_floats((int)m->config.head_dim, m->n_ctx) + 15) / 16 * 16;
}

static int64_t normed_floats(const nb_config *c)
{
    int64_t widest = c->n_heads * c->head_dim; /* rows that are rounded before they are packed */
    widest = widest > c->d_model ? widest : c->d_model;
    widest = widest > c->d_ff ? widest : c->d_ff;
    return (NB_ROWS_MAX * widest + 15) / 16 * 16;
}

int64_t nb_work_bytes(const nb_model *model, int n_threads, int64_t max_tokens)
{
    const nb_config *c = &model->config;
    const int64_t floats = 2 * c->d_model + 2 * c->n_heads * c->head_dim +
                           2 * c->n_kv_heads * c->head_dim + 2 * c->d_ff;
    const int64_t per_row = 4 * floats + 16 + c->n_kv_heads * (int64_t)sizeof(struct nb_attn_task);
    return per_row * max_tokens + nb_linears_packed_bytes(c, max_tokens) +
           4 * n_threads * (scratch_floats(model) + normed_floats(c)) +
           4 * nb_attn_parts_floats(c, model->n_ctx, n_threads);
}

nb_status nb_work_init(nb_work *work, const nb_model *model, const nb_kernels *kernels,
                       nb_pool *pool, int64_t max_tokens, nb_err *err)
{
    const nb_config *c = &model->config;
    const int64_t n_threads = nb_pool_n_threads(pool);
    nb_work *w = work;
    *w = (nb_work){.model = model,
                   .kernels = kernels,
                   .pool = pool,
                   .max_tokens = max_tokens,
                   .scratch_floats = scratch_floats(model),
                   .normed_floats = normed_floats(c),
                   .parts_floats = nb_attn_parts_floats(c, model->n_ctx, (int)n_threads),
                   /* Every started tile of an input is a task: at most one for each token. */
                   .n_tasks_max = max_tokens * c->n_kv_heads};
    const int64_t d_q = c->n_heads * c->head_dim, d_kv = c->n_kv_heads * c->head_dim;
    const struct {
        void *out;
        int64_t count, size;
    } buffers[] = {
        {&w->x, max_tokens, 4 * c->d_model},
        {&w->h, max_tokens, 4 * c->d_model},
        {&w->q, max_tokens, 4 * d_q},
        {&w->k, max_tokens, 4 * d_kv},
        {&w->v, max_tokens, 4 * d_kv},
        {&w->att, max_tokens, 4 * d_q},
        {&w->gate, max_tokens, 4 * c->d_ff},
        {&w->up, max_tokens, 4 * c->d_ff},
        {&w->packed, 1, nb_linears_packed_bytes(c, max_tokens)},
        {&w->normed, n_threads, 4 * w->normed_floats},
        {&w->scratch, n_threads, 4 * w->scratch_floats},
        {&w->parts, w->parts_floats, 4},
        {&w->row_input, max_tokens, sizeof *w->row_input},
        {&w->row_pos, max_tokens, sizeof *w->row_pos},
        {&w->tasks, w->n_tasks_max, sizeof *w->tasks},
    };
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        const nb_status s =
            nb_alloc(buffers[i].out, (size_t)buffers[i].count, (size_t)buffers[i].size, err);
        if (s != NB_OK) {
            nb_work_free(w);
            return nb_context(err, "buffers for steps of %lld tokens", (long long)max_tokens);
        }
    }
    return NB_OK;
}

void nb_work_free(nb_work *work)
{
    void *buffers[] = {work->x,       work->h,     work->q,         work->k,       work->v,
                       work->att,     work->gate,  work->up,        work->packed,  work->normed,
                       work->scratch, work->parts, work->row_input, work->row_pos, work->tasks};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        nb_free(buffers[i]);
    *work = (nb_work){0};
}

/* ---- the pass ---- */

static nb_status prepare(nb_work *w, const nb_step_input *inputs, int64_t n_inputs, int64_t *n_rows,
                         nb_err *err)
{
    const nb_model *m = w->model;
    *n_rows = 0;
    for (int64_t i = 0; i < n_inputs; i++) {
        const nb_step_input *in = &inputs[i];
        if (in->seq->n + in->n_tokens > m->n_ctx)
            return nb_fail(err, NB_LIMIT, "%lld tokens do not fit in the context of %lld",
                           (long long)(in->seq->n + in->n_tokens), (long long)m->n_ctx);
        for (int64_t t = 0; in->tokens != NULL && t < in->n_tokens; t++) {
            if (in->tokens[t] < 0 || in->tokens[t] >= m->config.vocab_size)
                return nb_fail(err, NB_DATA, "token id %d is outside the vocabulary of %lld",
                               in->tokens[t], (long long)m->config.vocab_size);
        }
        *n_rows += in->n_tokens;
    }
    assert(*n_rows <= w->max_tokens);
    for (int64_t i = 0; i < n_inputs; i++) {
        const nb_status s =
            nb_kv_seq_reserve(inputs[i].seq, inputs[i].seq->n + inputs[i].n_tokens, err);
        if (s != NB_OK) { /* give back what this step had reserved */
            for (int64_t j = 0; j < i; j++)
                nb_kv_seq_truncate(inputs[j].seq, inputs[j].seq->n);
            return s;
        }
    }
    return NB_OK;
}

/* Says where each row belongs. */
static void place_rows(nb_work *w, const nb_step_input *inputs, int64_t n_inputs)
{
    int64_t row = 0;
    for (int64_t i = 0; i < n_inputs; i++) {
        for (int64_t t = 0; t < inputs[i].n_tokens; t++, row++) {
            w->row_input[row] = i;
            w->row_pos[row] = inputs[i].seq->n + t;
        }
    }
}

static void embed(nb_work *w, const nb_step_input *inputs, int64_t n_inputs)
{
    const nb_model *m = w->model;
    float *x = w->x;
    for (int64_t i = 0; i < n_inputs; i++) {
        for (int64_t t = 0; t < inputs[i].n_tokens; t++, x += m->config.d_model)
            nb_panels_row(&m->embed.w, inputs[i].tokens[t], x);
    }
}

/* The normed states that are wanted; the sequences have grown. */
static void leave(nb_work *w, const nb_step_input *inputs, int64_t n_inputs, float *hidden)
{
    const nb_model *m = w->model;
    const int64_t d = m->config.d_model;
    int64_t end = 0;
    for (int64_t i = 0; i < n_inputs; i++) {
        end += inputs[i].n_tokens;
        for (int64_t row = end - inputs[i].n_out; row < end; row++, hidden += d) {
            w->kernels->rmsnorm(hidden, w->x + row * d, m->norm, d, m->config.rms_eps);
            if (w->watcher.see != NULL)
                w->watcher.see(w->watcher.context, m->config.n_layers, NB_OP_NORM, i,
                               w->row_pos[row], 0, hidden, d);
        }
        inputs[i].seq->n += inputs[i].n_tokens;
    }
}

nb_status nb_forward(nb_work *w, const nb_step_input *inputs, int64_t n_inputs, float *hidden,
                     nb_err *err)
{
    nb_step step = {.work = w, .inputs = inputs, .n_inputs = n_inputs};
    NB_TRY(prepare(w, inputs, n_inputs, &step.n_rows, err));
    const uint64_t env = nb_fpenv_enter();
    place_rows(w, inputs, n_inputs);
    embed(w, inputs, n_inputs);
    nb_step_plan_attention(&step);
    int64_t bad_layer = -1;
    for (int64_t i = 0; i < w->model->config.n_layers; i++) {
        if (!nb_block_run(&step, i) && bad_layer < 0)
            bad_layer = i;
    }
    leave(w, inputs, n_inputs, hidden);
    nb_fpenv_leave(env);
    if (bad_layer >= 0)
        return nb_fail(err, NB_DATA, "the activations of layer %lld hold Inf or NaN",
                       (long long)bad_layer);
    return NB_OK;
}

nb_status nb_forward_part(nb_work *w, const nb_step_input *inputs, int64_t n_inputs, int64_t layer,
                          nb_block_part part, nb_err *err)
{
    nb_step step = {.work = w, .inputs = inputs, .n_inputs = n_inputs};
    NB_TRY(prepare(w, inputs, n_inputs, &step.n_rows, err));
    const uint64_t env = nb_fpenv_enter();
    place_rows(w, inputs, n_inputs);
    nb_step_plan_attention(&step);
    const bool finite = nb_block_run_part(&step, layer, part);
    nb_fpenv_leave(env);
    return finite ? NB_OK : nb_fail(err, NB_DATA, "the activations hold Inf or NaN");
}

void nb_logits(nb_work *w, const float *hidden, int64_t n_rows, float *logits)
{
    assert(n_rows <= w->max_tokens);
    const nb_linears head = {.n = 1,
                             .w = {nb_model_head(w->model)},
                             .y = {logits},
                             .x = hidden,
                             .layer = w->model->config.n_layers + 1};
    const nb_watcher watcher = w->watcher; /* its rows would be those of the last step */
    w->watcher.see = NULL;
    (void)nb_linears_run(w, &head, n_rows);
    w->watcher = watcher;
}

/* ---- hash ---- */

uint64_t nb_logits_hash(const float *logits, int64_t n, uint64_t index)
{
    uint64_t state = nb_mix64(index + 0x9e3779b97f4a7c15ull);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = nb_f32_bits(logits[i]);
        if ((bits & 0x7fffffffu) > 0x7f800000u)
            bits = 0x7fc00000u;
        if (bits == 0x80000000u)
            bits = 0;
        state = (state ^ bits) * 0xff51afd7ed558ccdull;
        state ^= state >> 32;
    }
    return nb_mix64(state);
}
