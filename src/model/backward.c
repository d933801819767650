/* See backward.h. The linear layers: Y = X W^T, dX = dY W, dW += dY^T X. */
#include "model/backward.h"

#include "kernel/matmul.h"
#include "model/back_attn.h"
#include "model/back_rows.h"

#include <assert.h>
#include <string.h>

enum { ROWS = 8, PIECE = NB_CHUNK_K };

/* ---- memory ---- */

/* The parts of the buffers, in floats from their start. `at` grows by each; it becomes INT64_MAX
 * where a size is no number. */
typedef struct {
    int64_t at;
} layout;

static int64_t take(layout *l, int64_t count, int64_t each)
{
    const int64_t begin = l->at;
    int64_t floats, end;
    if (begin == INT64_MAX || __builtin_mul_overflow(count, each, &floats) ||
        __builtin_add_overflow(begin, floats, &end) || end > INT64_MAX / 8)
        l->at = INT64_MAX;
    else
        l->at = (end + 15) / 16 * 16; /* a cache line */
    return begin;
}

static int64_t pairs_of(int64_t n)
{
    return (n + 1) / 2;
}

static int64_t product_bytes(const nb_config *c, int64_t n_tokens, int n_threads)
{
    int64_t most = 0;
    for (int i = 0; i < NB_N_LINEARS; i++) {
        const int64_t rows = nb_linear_n_rows(c, (nb_linear_id)i);
        const int64_t cols = nb_linear_n_cols(c, (nb_linear_id)i);
        const int64_t bytes[] = {nb_matmul_scratch_bytes(n_tokens, rows, cols, n_threads),
                                 nb_matmul_scratch_bytes(n_tokens, cols, rows, n_threads),
                                 nb_matmul_scratch_bytes(rows, cols, n_tokens, n_threads)};
        for (int j = 0; j < 3; j++)
            most = bytes[j] > most ? bytes[j] : most;
    }
    return most;
}

/* The larger side of all linears. */
static int64_t widest(const nb_config *c, int64_t (*side)(const nb_config *, nb_linear_id))
{
    int64_t most = 0;
    for (int i = 0; i < NB_N_LINEARS; i++)
        most = side(c, (nb_linear_id)i) > most ? side(c, (nb_linear_id)i) : most;
    return most;
}

/* Floats in all; with t->memory, also where each part starts. */
static int64_t lay_out(nb_block_train *t, const nb_config *c, int64_t n_seq, int64_t len,
                       int n_threads)
{
    layout l = {0};
    float *base = t->memory, *pages, *table, *products;
    const int64_t d = c->d_model, d_q = c->n_heads * c->head_dim, d_k = c->n_kv_heads * c->head_dim;
    const int64_t n = n_seq * len, n_pages = n_seq * nb_back_attn_n_pages(len);
    const int64_t rows = widest(c, nb_linear_n_rows), cols = widest(c, nb_linear_n_cols);
    const int64_t token_pairs = t->bf16 ? n_seq * pairs_of(len) : 0;
    const int64_t row_pairs = t->bf16 ? pairs_of(rows) : 0;
    const struct {
        float **part;
        int64_t count, each;
    } parts[] = {
        {&t->y, n, d},
        {&t->x1, n, d},
        {&t->normed1, n, d},
        {&t->normed2, n, d},
        {&t->d_normed, n, d},
        {&t->q, n, d_q},
        {&t->att, n, d_q},
        {&t->d_att, n, d_q},
        {&t->k, n, d_k},
        {&t->v, n, d_k},
        {&t->d_k, n, d_k},
        {&t->d_v, n, d_k},
        {&t->raw_q, c->qk_norm ? n : 0, d_q},
        {&t->raw_k, c->qk_norm ? n : 0, d_k},
        {&t->gate, n, c->d_ff},
        {&t->up, n, c->d_ff},
        {&t->h, n, c->d_ff},
        {&t->rms, n, c->n_heads},
        {&t->minus_sin, len, c->rot_dim / 2},
        {&pages, n_pages, (int64_t)(nb_back_attn_page_bytes(c) / sizeof(float))},
        {&table, n_pages, 1},
        {&t->scratch, n_threads, nb_back_attn_scratch(c, len)},
        {&products, product_bytes(c, n, n_threads) / 4 + 16, 1},
        {&t->pairs_a, 2 * token_pairs, pairs_of(rows > cols ? rows : cols)},
        {&t->pairs_b, 2 * (token_pairs > row_pairs ? token_pairs : row_pairs), pairs_of(cols)},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const int64_t at = take(&l, parts[i].count, parts[i].each);
        *parts[i].part = base == NULL ? NULL : base + at;
    }
    t->pages = (void *)pages;
    t->table = (void *)table;
    t->products = products;
    t->scratch_floats = nb_back_attn_scratch(c, len);
    return l.at;
}

/* Far above any model, so that the sums below cannot wrap. */
static bool too_large(const nb_config *c, int64_t n_seq, int64_t len)
{
    int64_t n;
    return __builtin_mul_overflow(n_seq, len, &n) || n > (1 << 30) || c->d_ff > (1 << 28) ||
           c->d_model > (1 << 28);
}

int64_t nb_block_train_bytes(const nb_config *c, int64_t n_seq, int64_t len, bool bf16,
                             int n_threads)
{
    nb_block_train t = {.bf16 = bf16};
    if (too_large(c, n_seq, len))
        return INT64_MAX;
    const int64_t floats = lay_out(&t, c, n_seq, len, n_threads);
    return floats == INT64_MAX ? INT64_MAX : floats * (int64_t)sizeof(float);
}

nb_status nb_block_train_init(nb_block_train *t, const nb_config *c, const nb_rope_table *rope,
                              const nb_kernels *k, nb_pool *pool, int64_t n_seq, int64_t len,
                              bool bf16, nb_err *err)
{
    assert(n_seq >= 1 && len >= 1);
    if (len > rope->n_positions)
        return nb_fail(err, NB_USAGE, "sequences of %lld tokens, for a table of %lld positions",
                       (long long)len, (long long)rope->n_positions);
    const int n_threads = nb_pool_n_threads(pool);
    const int64_t bytes = nb_block_train_bytes(c, n_seq, len, bf16, n_threads);
    if (bytes == INT64_MAX)
        return nb_fail(err, NB_MEMORY, "%lld sequences of %lld tokens are too many for one batch",
                       (long long)n_seq, (long long)len);
    nb_block_train made = {.config = c,
                           .rope = rope,
                           .kernels = k,
                           .pool = pool,
                           .max_seq = n_seq,
                           .max_len = len,
                           .bf16 = bf16};
    NB_TRY(nb_alloc(&made.memory, (size_t)bytes, 1, err));
    lay_out(&made, c, n_seq, len, n_threads);
    for (int64_t i = 0; i < len * rope->half; i++)
        made.minus_sin[i] = -rope->sin[i];
    for (int64_t i = 0; i < n_seq * nb_back_attn_n_pages(len); i++)
        made.table[i] = (int32_t)i;
    *t = made;
    return NB_OK;
}

void nb_block_train_free(nb_block_train *t)
{
    nb_free(t->memory);
    *t = (nb_block_train){0};
}

/* ---- products ---- */

typedef struct {
    nb_block_train *t;
    const nb_block_weights *w;
    const nb_block_grads *grads;
    const float *x;
    int64_t n_seq, len, n;
} run;

static void multiply(const run *r, const nb_matmul_job *job)
{
    nb_matmul(r->t->kernels, r->t->pool, job, r->t->products);
}

/* A matrix [n_rows][n_cols] of which every row, or every two rows side by side, become pairs. */
typedef struct {
    const nb_kernels *kernels;
    float *to;
    const float *from;
    int64_t n_rows, n_cols;
} pairing;

static void row_pairs_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const pairing *p = context;
    for (int64_t row = chunk * ROWS; row < (chunk + 1) * ROWS && row < p->n_rows; row++)
        p->kernels->bf16_row(p->to + row * pairs_of(p->n_cols), p->from + row * p->n_cols,
                             p->n_cols);
}

static void column_pairs_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const pairing *p = context;
    for (int64_t row = chunk * ROWS; row < (chunk + 1) * ROWS && row < p->n_rows; row += 2) {
        float *to = p->to + row / 2 * p->n_cols;
        const float *low = p->from + row * p->n_cols;
        if (row + 1 < p->n_rows)
            p->kernels->bf16_pairs(to, low, low + p->n_cols, p->n_cols);
        else
            for (int64_t i = 0; i < p->n_cols; i++)
                nb_bf16_put(to + i, low[i], 0);
    }
}

static const float *make_pairs(const run *r, nb_task_fn *chunks, float *to, const float *from,
                               int64_t n_rows, int64_t n_cols)
{
    pairing p = {r->t->kernels, to, from, n_rows, n_cols};
    nb_pool_run(r->t->pool, (n_rows + ROWS - 1) / ROWS, chunks, &p);
    return to;
}

/* y = x W^T, without the bias. */
static void product_forward(const run *r, nb_linear_id which, float *y, const float *x)
{
    const int64_t rows = nb_linear_n_rows(r->t->config, which);
    const int64_t cols = nb_linear_n_cols(r->t->config, which);
    nb_matmul_job job = {.c = y,
                         .ldc = rows,
                         .m = r->n,
                         .n = rows,
                         .depth = cols,
                         .a = {x, cols, 1},
                         .b = {r->w->linear[which], 1, cols},
                         .pairs = r->t->bf16};
    if (job.pairs) {
        job.depth = job.a.row_step = job.b.col_step = pairs_of(cols);
        job.a.p = make_pairs(r, row_pairs_chunk, r->t->pairs_a, x, r->n, cols);
        job.b.p = make_pairs(r, row_pairs_chunk, r->t->pairs_b, job.b.p, rows, cols);
    }
    multiply(r, &job);
}

/* dx = dy W, or dx += dy W. */
static void product_back(const run *r, nb_linear_id which, float *dx, const float *dy, bool add)
{
    const int64_t rows = nb_linear_n_rows(r->t->config, which);
    const int64_t cols = nb_linear_n_cols(r->t->config, which);
    nb_matmul_job job = {.c = dx,
                         .ldc = cols,
                         .m = r->n,
                         .n = cols,
                         .depth = rows,
                         .a = {dy, rows, 1},
                         .b = {r->w->linear[which], cols, 1},
                         .add = add,
                         .pairs = r->t->bf16};
    if (job.pairs) {
        job.depth = job.a.row_step = pairs_of(rows);
        job.a.p = make_pairs(r, row_pairs_chunk, r->t->pairs_a, dy, r->n, rows);
        job.b.p = make_pairs(r, column_pairs_chunk, r->t->pairs_b, job.b.p, rows, cols);
    }
    multiply(r, &job);
}

/* dW += dy^T x and db += sums of dy. Sequences that are no whole pieces go one by one, so that the
 * sums are cut alike however sequences are grouped. */
static void product_grad(const run *r, nb_linear_id which, const float *dy, const float *x)
{
    const int64_t rows = nb_linear_n_rows(r->t->config, which);
    const int64_t cols = nb_linear_n_cols(r->t->config, which);
    const int64_t step = r->len % (r->t->bf16 ? 2 * PIECE : PIECE) == 0 ? r->n : r->len;
    if (r->grads->outputs != NULL)
        r->grads->outputs(r->grads->context, which, dy);
    for (int64_t row = 0; r->grads->linear[which] != NULL && row < r->n; row += step) {
        nb_matmul_job job = {.c = r->grads->linear[which],
                             .ldc = cols,
                             .m = rows,
                             .n = cols,
                             .depth = step,
                             .a = {dy + row * rows, 1, rows},
                             .b = {x + row * cols, cols, 1},
                             .add = true,
                             .pairs = r->t->bf16};
        if (job.pairs) {
            job.depth = pairs_of(step);
            job.a.p = make_pairs(r, column_pairs_chunk, r->t->pairs_a, job.a.p, step, rows);
            job.b.p = make_pairs(r, column_pairs_chunk, r->t->pairs_b, job.b.p, step, cols);
        }
        multiply(r, &job);
    }
    for (int64_t row = 0; r->grads->bias[which] != NULL && row < r->n; row += r->len)
        nb_back_column_sums(r->t->pool, r->grads->bias[which], dy + row * rows, r->len, rows);
}

/* ---- rows ---- */

/* Tokens [begin, end) of a chunk. */
static int64_t rows_of(const run *r, int64_t chunk, int64_t *end)
{
    *end = (chunk + 1) * ROWS < r->n ? (chunk + 1) * ROWS : r->n;
    return chunk * ROWS;
}

static void by_rows(run *r, nb_task_fn *task)
{
    nb_pool_run(r->t->pool, (r->n + ROWS - 1) / ROWS, task, r);
}

static void add_bias(const run *r, nb_linear_id which, float *y, int64_t row)
{
    const int64_t n = nb_linear_n_rows(r->t->config, which);
    if (r->w->bias[which] != NULL)
        r->t->kernels->add(y + row * n, r->w->bias[which], n);
}

static void enter_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const int64_t d = t->config->d_model;
    int64_t end;
    for (int64_t row = rows_of(r, chunk, &end); row < end; row++)
        t->kernels->rmsnorm(t->normed1 + row * d, r->x + row * d, r->w->attn_norm, d,
                            t->config->rms_eps);
}

static void bias_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    int64_t end;
    for (int64_t row = rows_of(r, chunk, &end); row < end; row++) {
        add_bias(r, NB_LINEAR_Q, r->t->q, row);
        add_bias(r, NB_LINEAR_K, r->t->k, row);
        add_bias(r, NB_LINEAR_V, r->t->v, row);
    }
}

/* x1 = x + o, and its norm. */
static void middle_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const int64_t d = t->config->d_model;
    int64_t end;
    for (int64_t row = rows_of(r, chunk, &end); row < end; row++) {
        float *x1 = t->x1 + row * d;
        add_bias(r, NB_LINEAR_O, t->x1, row);
        t->kernels->add(x1, r->x + row * d, d);
        t->kernels->rmsnorm(t->normed2 + row * d, x1, r->w->ffn_norm, d, t->config->rms_eps);
    }
}

static void swiglu_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const int64_t f = t->config->d_ff;
    int64_t end;
    for (int64_t row = rows_of(r, chunk, &end); row < end; row++) {
        add_bias(r, NB_LINEAR_GATE, t->gate, row);
        add_bias(r, NB_LINEAR_UP, t->up, row);
        t->kernels->swiglu(t->h + row * f, t->gate + row * f, t->up + row * f, f);
    }
}

static void leave_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const int64_t d = t->config->d_model;
    int64_t end;
    for (int64_t row = rows_of(r, chunk, &end); row < end; row++) {
        add_bias(r, NB_LINEAR_DOWN, t->y, row);
        t->kernels->add(t->y + row * d, t->x1 + row * d, d);
    }
}

static void swiglu_back_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const int64_t f = t->config->d_ff;
    int64_t end;
    for (int64_t row = rows_of(r, chunk, &end); row < end; row++)
        t->kernels->swiglu_back(t->gate + row * f, t->up + row * f, t->h + row * f, f);
}

/* dx1 = dy + the norm's gradient, in place of dy. */
static void middle_back_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const int64_t d = t->config->d_model;
    int64_t end;
    for (int64_t row = rows_of(r, chunk, &end); row < end; row++)
        t->kernels->rmsnorm_back(t->y + row * d, t->d_normed + row * d, t->x1 + row * d,
                                 r->w->ffn_norm, d, t->config->rms_eps);
}

static void enter_back_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const int64_t d = t->config->d_model;
    int64_t end;
    for (int64_t row = rows_of(r, chunk, &end); row < end; row++) {
        float *dx = r->grads->x + row * d;
        memcpy(dx, t->y + row * d, (size_t)d * sizeof *dx);
        t->kernels->rmsnorm_back(dx, t->d_normed + row * d, r->x + row * d, r->w->attn_norm, d,
                                 t->config->rms_eps);
    }
}

/* What comes in is the gradient of down's outputs. */
static void down_squares_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const int64_t d = r->t->config->d_model;
    int64_t end;
    for (int64_t row = rows_of(r, chunk, &end); row < end; row++)
        r->grads->squares[row * NB_BLOCK_POINTS + 3] =
            (float)(nb_back_square_sum(r->t->y + row * d, d) / (double)d);
}

/* Once attention has gone back, the gradients of all other outputs stand in the buffers. */
static void squares_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const nb_config *c = t->config;
    const int64_t d = c->d_model, f = c->d_ff, d_q = c->n_heads * c->head_dim;
    const int64_t d_k = c->n_kv_heads * c->head_dim;
    int64_t end;
    for (int64_t row = rows_of(r, chunk, &end); row < end; row++) {
        float *out = r->grads->squares + row * NB_BLOCK_POINTS;
        const double qkv = nb_back_square_sum(t->att + row * d_q, d_q) +
                           nb_back_square_sum(t->d_k + row * d_k, d_k) +
                           nb_back_square_sum(t->d_v + row * d_k, d_k);
        const double gate_up =
            nb_back_square_sum(t->gate + row * f, f) + nb_back_square_sum(t->up + row * f, f);
        out[0] = (float)(qkv / (double)(d_q + 2 * d_k));
        out[1] = (float)(nb_back_square_sum(t->y + row * d, d) / (double)d);
        out[2] = (float)(gate_up / (double)(2 * f));
    }
}

/* The gradient of a norm's gain, one sequence after the other. */
static void gain_grad(const run *r, float *out, const float *x)
{
    const int64_t d = r->t->config->d_model;
    for (int64_t row = 0; out != NULL && row < r->n; row += r->len)
        nb_back_gain_sums(r->t->pool, out, r->t->d_normed + row * d, x + row * d, r->len, d,
                          r->t->config->rms_eps, r->t->rms);
}

/* ---- the block ---- */

void nb_block_forward(nb_block_train *t, const nb_block_weights *w, const float *x, int64_t n_seq,
                      int64_t len)
{
    assert(n_seq >= 1 && n_seq <= t->max_seq && len >= 1 && len <= t->max_len);
    run r = {.t = t, .w = w, .x = x, .n_seq = n_seq, .len = len, .n = n_seq * len};
    by_rows(&r, enter_chunk);
    product_forward(&r, NB_LINEAR_Q, t->q, t->normed1);
    product_forward(&r, NB_LINEAR_K, t->k, t->normed1);
    product_forward(&r, NB_LINEAR_V, t->v, t->normed1);
    by_rows(&r, bias_chunk);
    nb_back_attn_forward(t, w, n_seq, len);
    product_forward(&r, NB_LINEAR_O, t->x1, t->att);
    by_rows(&r, middle_chunk);
    product_forward(&r, NB_LINEAR_GATE, t->gate, t->normed2);
    product_forward(&r, NB_LINEAR_UP, t->up, t->normed2);
    by_rows(&r, swiglu_chunk);
    product_forward(&r, NB_LINEAR_DOWN, t->y, t->h);
    by_rows(&r, leave_chunk);
}

void nb_block_backward(nb_block_train *t, const nb_block_weights *w, const float *x, int64_t n_seq,
                       int64_t len, const nb_block_grads *grads)
{
    run r = {.t = t, .w = w, .grads = grads, .x = x, .n_seq = n_seq, .len = len, .n = n_seq * len};
    if (grads->squares != NULL)
        by_rows(&r, down_squares_chunk);
    product_grad(&r, NB_LINEAR_DOWN, t->y, t->h);
    product_back(&r, NB_LINEAR_DOWN, t->h, t->y, false);
    by_rows(&r, swiglu_back_chunk);
    product_grad(&r, NB_LINEAR_GATE, t->gate, t->normed2);
    product_grad(&r, NB_LINEAR_UP, t->up, t->normed2);
    product_back(&r, NB_LINEAR_GATE, t->d_normed, t->gate, false);
    product_back(&r, NB_LINEAR_UP, t->d_normed, t->up, true);
    gain_grad(&r, grads->ffn_norm, t->x1);
    by_rows(&r, middle_back_chunk);
    product_grad(&r, NB_LINEAR_O, t->y, t->att);
    product_back(&r, NB_LINEAR_O, t->d_att, t->y, false);
    nb_back_attn_backward(t, w, n_seq, len, grads);
    if (grads->squares != NULL)
        by_rows(&r, squares_chunk);
    product_grad(&r, NB_LINEAR_Q, t->att, t->normed1);
    product_grad(&r, NB_LINEAR_K, t->d_k, t->normed1);
    product_grad(&r, NB_LINEAR_V, t->d_v, t->normed1);
    if (grads->x == NULL && grads->attn_norm == NULL)
        return;
    product_back(&r, NB_LINEAR_Q, t->d_normed, t->att, false);
    product_back(&r, NB_LINEAR_K, t->d_normed, t->d_k, true);
    product_back(&r, NB_LINEAR_V, t->d_normed, t->d_v, true);
    gain_grad(&r, grads->attn_norm, x);
    if (grads->x != NULL)
        by_rows(&r, enter_back_chunk);
}
