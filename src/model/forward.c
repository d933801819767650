/* See forward.h. */
#include "model/forward.h"

#include "base/fpenv.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <math.h>

/* Attention of some query tokens of one sequence for the query heads of one KV head. */
typedef struct nb_attn_task {
    const nb_step_input *input;
    int64_t first_row; /* of the step's rows: the input's first token */
    int64_t pos0;      /* position of the input's first token */
    int64_t begin;     /* first token of the task within the input */
    int n_q, kv_head;
} attn_task;

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t tokens_per_attn_task(const nb_config *c)
{
    return NB_ATTN_ROWS / (c->n_heads / c->n_kv_heads);
}

/* Widest input of any linear. */
static int64_t widest(const nb_config *c)
{
    return max64(max64(c->d_model, c->d_ff), c->n_heads * c->head_dim);
}

int64_t nb_work_bytes(const nb_model *model, int n_threads, int64_t max_tokens)
{
    const nb_config *c = &model->config;
    const int64_t floats = 2 * c->d_model + 2 * c->n_heads * c->head_dim +
                           2 * c->n_kv_heads * c->head_dim + 2 * c->d_ff;
    return 4 * floats * max_tokens + nb_xpack_bytes(widest(c), max_tokens) +
           4 * n_threads * nb_attn_scratch_floats((int)c->head_dim, model->n_ctx);
}

nb_status nb_work_init(nb_work *work, const nb_model *model, const nb_kernels *kernels,
                       nb_pool *pool, int64_t max_tokens, nb_err *err)
{
    const nb_config *c = &model->config;
    *work = (nb_work){.model = model, .kernels = kernels, .pool = pool, .max_tokens = max_tokens};
    const int64_t d_q = c->n_heads * c->head_dim, d_kv = c->n_kv_heads * c->head_dim;
    const struct {
        float **out;
        int64_t width;
    } buffers[] = {{&work->x, c->d_model}, {&work->h, c->d_model}, {&work->q, d_q},
                   {&work->k, d_kv},       {&work->v, d_kv},       {&work->att, d_q},
                   {&work->gate, c->d_ff}, {&work->up, c->d_ff}};
    nb_status s = NB_OK;
    for (size_t i = 0; s == NB_OK && i < sizeof buffers / sizeof *buffers; i++)
        s = nb_alloc((void **)buffers[i].out, (size_t)max_tokens,
                     (size_t)buffers[i].width * sizeof(float), err);
    if (s == NB_OK)
        s = nb_alloc(&work->packed, 1, (size_t)nb_xpack_bytes(widest(c), max_tokens), err);
    work->scratch_floats = nb_attn_scratch_floats((int)c->head_dim, model->n_ctx);
    work->scratch_floats = (work->scratch_floats + 15) / 16 * 16;
    if (s == NB_OK)
        s = nb_alloc((void **)&work->scratch, (size_t)nb_pool_n_threads(pool),
                     (size_t)work->scratch_floats * sizeof(float), err);
    /* One task per started tile of every input: at most one tile of one token each. */
    work->n_tasks_max = max_tokens * c->n_kv_heads;
    if (s == NB_OK)
        s = nb_alloc((void **)&work->tasks, (size_t)work->n_tasks_max, sizeof *work->tasks, err);
    if (s != NB_OK) {
        nb_work_free(work);
        return nb_context(err, "buffers for steps of %lld tokens", (long long)max_tokens);
    }
    return NB_OK;
}

void nb_work_free(nb_work *work)
{
    float *buffers[] = {work->x,   work->h,    work->q,  work->k,      work->v,
                        work->att, work->gate, work->up, work->scratch};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        nb_free(buffers[i]);
    nb_free(work->packed);
    nb_free(work->tasks);
    *work = (nb_work){0};
}

/* ---- rows: small steps, in parallel over tokens ---- */

#define ROWS_PER_CHUNK 8

typedef struct {
    nb_work *work;
    int64_t n;
    /* what this run is about */
    const nb_step_input *inputs;
    int64_t n_inputs;
    const nb_layer *layer;
    int64_t layer_index;
    const float *gain;
    float *y;
    const float *bias;
    int64_t width;
} rows_run;

typedef void row_fn(const rows_run *run, int64_t row);

typedef struct {
    const rows_run *run;
    row_fn *fn;
} rows_job;

static void rows_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const rows_job *job = context;
    const int64_t end = chunk * ROWS_PER_CHUNK + ROWS_PER_CHUNK;
    for (int64_t row = chunk * ROWS_PER_CHUNK; row < end && row < job->run->n; row++)
        job->fn(job->run, row);
}

static void for_rows(const rows_run *run, row_fn *fn)
{
    rows_job job = {run, fn};
    nb_pool_run(run->work->pool, (run->n + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK, rows_task, &job);
}

static void norm_row(const rows_run *run, int64_t row)
{
    const nb_work *w = run->work;
    const nb_config *c = &w->model->config;
    w->kernels->rmsnorm(w->h + row * c->d_model, w->x + row * c->d_model, run->gain, c->d_model,
                        c->rms_eps);
}

static void bias_row(const rows_run *run, int64_t row)
{
    run->work->kernels->add(run->y + row * run->width, run->bias, run->width);
}

static void residual_row(const rows_run *run, int64_t row)
{
    const nb_work *w = run->work;
    const int64_t d = w->model->config.d_model;
    w->kernels->add(w->x + row * d, w->h + row * d, d);
}

static void swiglu_row(const rows_run *run, int64_t row)
{
    const nb_work *w = run->work;
    const int64_t d = w->model->config.d_ff;
    w->kernels->swiglu(w->gate + row * d, w->gate + row * d, w->up + row * d, d);
}

/* Which input a row of the step belongs to, and its place there. */
static const nb_step_input *input_of_row(const rows_run *run, int64_t row, int64_t *token)
{
    const nb_step_input *in = run->inputs;
    while (row >= in->n_tokens) {
        row -= in->n_tokens;
        in++;
    }
    *token = row;
    return in;
}

/* QK-norm, RoPE, and the store into the cache. */
static void rope_row(const rows_run *run, int64_t row)
{
    const nb_work *w = run->work;
    const nb_config *c = &w->model->config;
    const nb_kernels *k = w->kernels;
    int64_t token;
    const nb_step_input *in = input_of_row(run, row, &token);
    const int64_t pos = in->seq->n + token, half = w->model->rope.half;
    float *q = w->q + row * c->n_heads * c->head_dim;
    float *key = w->k + row * c->n_kv_heads * c->head_dim;
    if (c->qk_norm) {
        for (int64_t h = 0; h < c->n_heads; h++)
            k->rmsnorm(q + h * c->head_dim, q + h * c->head_dim, run->layer->q_norm, c->head_dim,
                       c->rms_eps);
        for (int64_t h = 0; h < c->n_kv_heads; h++)
            k->rmsnorm(key + h * c->head_dim, key + h * c->head_dim, run->layer->k_norm,
                       c->head_dim, c->rms_eps);
    }
    const float *cosine = w->model->rope.cos + pos * half, *sine = w->model->rope.sin + pos * half;
    k->rope(q, cosine, sine, c->n_heads, c->head_dim, c->rot_dim);
    k->rope(key, cosine, sine, c->n_kv_heads, c->head_dim, c->rot_dim);
    const nb_kv_view view = nb_kv_seq_view(in->seq, run->layer_index);
    k->kv_store(&view, pos, 0, (int)c->n_kv_heads, key, w->v + row * c->n_kv_heads * c->head_dim);
}

/* ---- linears ---- */

/* y_j = x W_j^T + b_j for linears that read the same rows; equal layouts share a packing. Returns
 * false if Inf or NaN met an integer product. */
static bool linears(nb_work *w, const float *x, int64_t n_rows, const nb_linear *const *list,
                    float *const *ys, int n)
{
    bool done[NB_GEMM_MAX_JOBS] = {false}, finite = true;
    for (int i = 0; i < n; i++) {
        if (done[i])
            continue;
        nb_xlayout layout;
        nb_xlayout_for(&layout, &list[i]->w, list[i]->mode, list[i]->per_token);
        nb_gemm_job jobs[NB_GEMM_MAX_JOBS];
        int n_jobs = 0;
        for (int j = i; j < n; j++) {
            nb_xlayout other;
            nb_xlayout_for(&other, &list[j]->w, list[j]->mode, list[j]->per_token);
            if (done[j] || !nb_xlayout_equal(&layout, &other))
                continue;
            jobs[n_jobs++] = (nb_gemm_job){&list[j]->w, ys[j], list[j]->w.n_rows};
            done[j] = true;
        }
        nb_xpacked packed;
        finite =
            nb_xpack(&packed, &layout, w->kernels, w->pool, x, layout.n_cols, n_rows, w->packed) &&
            finite;
        nb_gemm(w->kernels, w->pool, &packed, jobs, n_jobs);
    }
    for (int i = 0; i < n; i++) {
        if (list[i]->bias == NULL)
            continue;
        const rows_run run = {
            .work = w, .n = n_rows, .y = ys[i], .bias = list[i]->bias, .width = list[i]->w.n_rows};
        for_rows(&run, bias_row);
    }
    return finite;
}

/* ---- attention ---- */

typedef struct {
    const nb_work *work;
    int64_t n_tasks, layer;
    float scale;
} attn_run;

static void attn_chunk(void *context, int64_t chunk, int thread)
{
    const attn_run *run = context;
    const nb_work *w = run->work;
    const nb_config *c = &w->model->config;
    /* Later tokens see more: the longest tasks go first. */
    const attn_task *t = &w->tasks[run->n_tasks - 1 - chunk];
    const int64_t ld = c->n_heads * c->head_dim, row = t->first_row + t->begin;
    const nb_attn_args args = {.q = w->q + row * ld,
                               .out = w->att + row * ld,
                               .ld = ld,
                               .n_q = t->n_q,
                               .n_group = (int)(c->n_heads / c->n_kv_heads),
                               .kv_head = t->kv_head,
                               .pos0 = t->pos0 + t->begin,
                               .window = c->sliding_window,
                               .scale = run->scale,
                               .kv = nb_kv_seq_view(t->input->seq, run->layer),
                               .scratch = w->scratch + thread * w->scratch_floats};
    w->kernels->attention(&args);
}

static int64_t plan_attention(nb_work *w, const nb_step_input *inputs, int64_t n_inputs)
{
    const nb_config *c = &w->model->config;
    const int64_t per_task = tokens_per_attn_task(c);
    int64_t n = 0, row = 0;
    for (int64_t i = 0; i < n_inputs; i++) {
        for (int64_t begin = 0; begin < inputs[i].n_tokens; begin += per_task) {
            const int64_t left = inputs[i].n_tokens - begin;
            for (int h = 0; h < (int)c->n_kv_heads; h++) {
                assert(n < w->n_tasks_max);
                w->tasks[n++] = (attn_task){.input = &inputs[i],
                                            .first_row = row,
                                            .pos0 = inputs[i].seq->n,
                                            .begin = begin,
                                            .n_q = (int)(left < per_task ? left : per_task),
                                            .kv_head = h};
            }
        }
        row += inputs[i].n_tokens;
    }
    return n;
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
        for (int64_t t = 0; t < in->n_tokens; t++) {
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

/* One block: x += attention(norm(x)), x += mlp(norm(x)). */
static bool run_layer(nb_work *w, rows_run *rows, int64_t index, int64_t n_tasks)
{
    const nb_model *m = w->model;
    const nb_layer *y = &m->layers[index];
    bool finite = true;
    rows->layer = y;
    rows->layer_index = index;

    rows->gain = y->attn_norm;
    for_rows(rows, norm_row);
    finite &= linears(w, w->h, rows->n, (const nb_linear *[]){&y->q, &y->k, &y->v},
                      (float *[]){w->q, w->k, w->v}, 3);
    for_rows(rows, rope_row);
    attn_run run = {.work = w,
                    .n_tasks = n_tasks,
                    .layer = index,
                    .scale = 1.0f / sqrtf((float)m->config.head_dim)};
    nb_pool_run(w->pool, n_tasks, attn_chunk, &run);
    finite &= linears(w, w->att, rows->n, (const nb_linear *[]){&y->o}, (float *[]){w->h}, 1);
    for_rows(rows, residual_row);

    rows->gain = y->ffn_norm;
    for_rows(rows, norm_row);
    finite &= linears(w, w->h, rows->n, (const nb_linear *[]){&y->gate, &y->up},
                      (float *[]){w->gate, w->up}, 2);
    for_rows(rows, swiglu_row);
    finite &= linears(w, w->gate, rows->n, (const nb_linear *[]){&y->down}, (float *[]){w->h}, 1);
    for_rows(rows, residual_row);
    return finite;
}

nb_status nb_forward(nb_work *w, const nb_step_input *inputs, int64_t n_inputs, float *hidden,
                     nb_err *err)
{
    const nb_model *m = w->model;
    const int64_t d = m->config.d_model;
    int64_t n_rows;
    NB_TRY(prepare(w, inputs, n_inputs, &n_rows, err));
    const uint64_t env = nb_fpenv_enter();
    for (int64_t i = 0, row = 0; i < n_inputs; i++) {
        for (int64_t t = 0; t < inputs[i].n_tokens; t++, row++)
            nb_panels_row(&m->embed.w, inputs[i].tokens[t], w->x + row * d);
    }
    rows_run rows = {.work = w, .n = n_rows, .inputs = inputs, .n_inputs = n_inputs};
    const int64_t n_tasks = plan_attention(w, inputs, n_inputs);
    int64_t bad_layer = -1;
    for (int64_t i = 0; i < m->config.n_layers; i++) {
        if (!run_layer(w, &rows, i, n_tasks) && bad_layer < 0)
            bad_layer = i;
    }
    int64_t out = 0, row = 0;
    for (int64_t i = 0; i < n_inputs; i++) {
        row += inputs[i].n_tokens;
        for (int64_t t = inputs[i].n_out; t > 0; t--, out++)
            w->kernels->rmsnorm(hidden + out * d, w->x + (row - t) * d, m->norm, d,
                                m->config.rms_eps);
        inputs[i].seq->n += inputs[i].n_tokens;
    }
    nb_fpenv_leave(env);
    if (bad_layer >= 0)
        return nb_fail(err, NB_DATA, "the activations of layer %lld hold Inf or NaN",
                       (long long)bad_layer);
    return NB_OK;
}

void nb_logits(nb_work *w, const float *hidden, int64_t n_rows, float *logits)
{
    const nb_linear *head = nb_model_head(w->model);
    assert(n_rows <= w->max_tokens);
    (void)linears(w, hidden, n_rows, &head, &logits, 1);
}

/* ---- hash ---- */

static uint64_t finish(uint64_t h)
{
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdull;
    h ^= h >> 33;
    h *= 0xc4ceb9fe1a85ec53ull;
    return h ^ h >> 33;
}

uint64_t nb_logits_hash(const float *logits, int64_t n, uint64_t index)
{
    uint64_t state = finish(index + 0x9e3779b97f4a7c15ull);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = nb_f32_bits(logits[i]);
        if ((bits & 0x7fffffffu) > 0x7f800000u)
            bits = 0x7fc00000u;
        if (bits == 0x80000000u)
            bits = 0;
        state = (state ^ bits) * 0xff51afd7ed558ccdull;
        state ^= state >> 32;
    }
    return finish(state);
}
