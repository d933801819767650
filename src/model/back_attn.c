/* See back_attn.h.
 *
 * Backward takes one sequence and KV head at a time, a task of the pool: for the query heads of the
 * group in order, for blocks of 48 queries, with scores and probabilities recomputed
 * (arXiv:2205.14135, section 3.1, without its tiles along the keys: a row of scores is short):
 *
 *   S = Q' K^T   P = softmax(S)   dP = dO V^T   dS = P * (dP - sum of P * dP)
 *   dV += P^T dO   dK += dS^T Q'   dQ = dS K / sqrt(d)      with Q' = Q / sqrt(d)
 *
 * What a block of queries sees is one range of keys, so half of the square is never computed. */
#include "model/back_attn.h"

#include "model/back_rows.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 48, ROWS = 8 };

static int64_t group_of(const nb_config *c)
{
    return c->n_heads / c->n_kv_heads;
}

/* Rows of keys, values and scores start a cache line further than they need to, or rows would fall
 * into the same sets of the cache. */
static int64_t padded(int64_t len)
{
    return (len + 15) / 16 * 16 + 16;
}

int64_t nb_back_attn_scratch(const nb_config *c, int64_t len)
{
    const int64_t forward = nb_attn_scratch_floats((int)c->head_dim, len);
    const int64_t backward = 2 * (c->head_dim + BLOCK) * padded(len) + BLOCK * padded(c->head_dim);
    return ((forward > backward ? forward : backward) + 15) / 16 * 16;
}

size_t nb_back_attn_page_bytes(const nb_config *c)
{
    return 2 * (size_t)c->n_kv_heads * nb_kv_head_bytes(NB_KV_F32, (int)c->head_dim);
}

int64_t nb_back_attn_n_pages(int64_t len)
{
    return (len + NB_KV_PAGE - 1) / NB_KV_PAGE;
}

typedef struct {
    nb_block_train *t;
    const nb_block_weights *w;
    int64_t n_seq, len, n_blocks;
    float scale;
} run;

static run run_of(nb_block_train *t, const nb_block_weights *w, int64_t n_seq, int64_t len)
{
    return (run){.t = t,
                 .w = w,
                 .n_seq = n_seq,
                 .len = len,
                 .scale = 1.0f / sqrtf((float)t->config->head_dim)};
}

/* ---- forward ---- */

static nb_kv_view view_of(const run *r, int64_t seq)
{
    const nb_config *c = r->t->config;
    const size_t head_bytes = nb_kv_head_bytes(NB_KV_F32, (int)c->head_dim);
    return (nb_kv_view){.arena = r->t->pages,
                        .page_bytes = nb_back_attn_page_bytes(c),
                        .v_offset = (size_t)c->n_kv_heads * head_bytes,
                        .head_bytes = head_bytes,
                        .table = r->t->table + seq * nb_back_attn_n_pages(r->len),
                        .format = NB_KV_F32,
                        .n_kv_heads = (int)c->n_kv_heads,
                        .head_dim = (int)c->head_dim};
}

static void norm_heads(const run *r, float *x, float *raw, const float *gain, int64_t n_heads)
{
    const nb_config *c = r->t->config;
    if (!c->qk_norm)
        return;
    memcpy(raw, x, (size_t)(n_heads * c->head_dim) * sizeof *x);
    for (int64_t h = 0; h < n_heads; h++)
        r->t->kernels->rmsnorm(x + h * c->head_dim, x + h * c->head_dim, gain, c->head_dim,
                               c->rms_eps);
}

static void enter_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const nb_config *c = t->config;
    const int64_t q_len = c->n_heads * c->head_dim, k_len = c->n_kv_heads * c->head_dim;
    const int64_t half = t->rope->half, n_rows = r->n_seq * r->len;
    for (int64_t row = chunk * ROWS; row < n_rows && row < (chunk + 1) * ROWS; row++) {
        const int64_t pos = row % r->len;
        const float *cos = t->rope->cos + pos * half, *sin = t->rope->sin + pos * half;
        float *q = t->q + row * q_len, *k = t->k + row * k_len;
        norm_heads(r, q, t->raw_q + row * q_len, r->w->q_norm, c->n_heads);
        norm_heads(r, k, t->raw_k + row * k_len, r->w->k_norm, c->n_kv_heads);
        t->kernels->rope(q, cos, sin, c->n_heads, c->head_dim, c->rot_dim);
        t->kernels->rope(k, cos, sin, c->n_kv_heads, c->head_dim, c->rot_dim);
        const nb_kv_view view = view_of(r, row / r->len);
        t->kernels->kv_store(&view, pos, 0, (int)c->n_kv_heads, k, t->v + row * k_len);
    }
}

static void attend_chunk(void *context, int64_t chunk, int thread)
{
    const run *r = context;
    const nb_block_train *t = r->t;
    const nb_config *c = t->config;
    const int64_t per_task = NB_ATTN_ROWS / group_of(c), ld = c->n_heads * c->head_dim;
    /* Later tokens see more: the longest tasks go first. */
    const int64_t block = r->n_blocks - 1 - chunk / (r->n_seq * c->n_kv_heads);
    const int64_t seq = chunk / c->n_kv_heads % r->n_seq, begin = block * per_task;
    const int64_t row = seq * r->len + begin, left = r->len - begin;
    const nb_attn_args args = {.q = t->q + row * ld,
                               .out = t->att + row * ld,
                               .ld = ld,
                               .n_q = (int)(left < per_task ? left : per_task),
                               .n_group = (int)group_of(c),
                               .kv_head = (int)(chunk % c->n_kv_heads),
                               .pos0 = begin,
                               .window = c->sliding_window,
                               .scale = r->scale,
                               .kv = view_of(r, seq),
                               .scratch = t->scratch + thread * t->scratch_floats};
    t->kernels->attention(&args);
}

void nb_back_attn_forward(nb_block_train *t, const nb_block_weights *w, int64_t n_seq, int64_t len)
{
    const nb_config *c = t->config;
    run r = run_of(t, w, n_seq, len);
    const int64_t per_task = NB_ATTN_ROWS / group_of(c);
    r.n_blocks = (len + per_task - 1) / per_task;
    const nb_stage stages[] = {
        {.n_chunks = (n_seq * len + ROWS - 1) / ROWS, .task = enter_chunk},
        {.n_chunks = r.n_blocks * n_seq * c->n_kv_heads, .task = attend_chunk},
    };
    nb_pool_run_stages(t->pool, stages, 2, &r);
}

/* ---- backward ---- */

/* What one thread works with; rows of keys, values and scores are `ld` apart. */
typedef struct {
    const run *r;
    int64_t seq, kv_head, ld;
    float *keys, *values;    /* transposed: [head_dim][ld] */
    float *q;                /* Q' of the block [BLOCK][head_dim] */
    float *scores, *d_probs; /* [BLOCK][ld] */
} head_task;

static head_task head_task_of(const run *r, int64_t chunk, int thread)
{
    const nb_block_train *t = r->t;
    const nb_config *c = t->config;
    head_task h = {.r = r,
                   .seq = chunk / c->n_kv_heads,
                   .kv_head = chunk % c->n_kv_heads,
                   .ld = padded(r->len)};
    h.keys = t->scratch + thread * t->scratch_floats;
    h.values = h.keys + c->head_dim * h.ld;
    h.scores = h.values + c->head_dim * h.ld;
    h.d_probs = h.scores + BLOCK * h.ld;
    h.q = h.d_probs + BLOCK * h.ld;
    return h;
}

static void transpose(float *to, int64_t ld, const float *from, int64_t from_ld, int64_t n,
                      int64_t dim)
{
    for (int64_t first = 0; first < n; first += 16) /* a cache line of what is written */
        for (int64_t j = 0; j < dim; j++)
            for (int64_t i = first; i < n && i < first + 16; i++)
                to[j * ld + i] = from[i * from_ld + j];
}

/* The gradient of the scores of queries [begin, begin + n), which see keys [first, first + n_keys)
 * at most: h->scores becomes the probabilities, h->d_probs the gradient. */
static void softmax_rows(const head_task *h, int64_t begin, int64_t n, int64_t first,
                         int64_t n_keys)
{
    const int64_t window = h->r->t->config->sliding_window;
    for (int64_t i = 0; i < n; i++) {
        const int64_t pos = begin + i, sees = window > 0 && window <= pos ? pos + 1 - window : 0;
        const int64_t from = sees - first, to = pos + 1 - first;
        float *s = h->scores + i * h->ld, *dp = h->d_probs + i * h->ld;
        h->r->t->kernels->softmax_back(s + from, dp + from, to - from);
        memset(s, 0, (size_t)from * sizeof *s);
        memset(dp, 0, (size_t)from * sizeof *dp);
        memset(s + to, 0, (size_t)(n_keys - to) * sizeof *s);
        memset(dp + to, 0, (size_t)(n_keys - to) * sizeof *dp);
    }
}

/* Queries [begin, begin + n) of one head. */
static void query_block(const head_task *h, int64_t head, int64_t begin, int64_t n)
{
    const nb_block_train *t = h->r->t;
    const nb_config *c = t->config;
    const int64_t dim = c->head_dim, q_ld = c->n_heads * dim, k_ld = c->n_kv_heads * dim;
    const int64_t window = c->sliding_window;
    const int64_t first = window > 0 && window <= begin ? begin + 1 - window : 0;
    const int64_t n_keys = begin + n - first;
    const int64_t q_at = (h->seq * h->r->len + begin) * q_ld + head * dim;
    const int64_t k_at = (h->seq * h->r->len + first) * k_ld + h->kv_head * dim;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < dim; j++)
            h->q[i * dim + j] = t->q[q_at + i * q_ld + j] * h->r->scale;
    const nb_product products[] = {
        {.c = h->scores,
         .a = h->q,
         .b = h->keys + first,
         .ldc = h->ld,
         .a_row = dim,
         .a_col = 1,
         .ldb = h->ld,
         .m = n,
         .n = n_keys,
         .depth = dim},
        {.c = h->d_probs,
         .a = t->d_att + q_at,
         .b = h->values + first,
         .ldc = h->ld,
         .a_row = q_ld,
         .a_col = 1,
         .ldb = h->ld,
         .m = n,
         .n = n_keys,
         .depth = dim},
        {.c = t->d_v + k_at,
         .a = h->scores,
         .b = t->d_att + q_at,
         .ldc = k_ld,
         .a_row = 1,
         .a_col = h->ld,
         .ldb = q_ld,
         .m = n_keys,
         .n = dim,
         .depth = n,
         .add = true},
        {.c = t->d_k + k_at,
         .a = h->d_probs,
         .b = h->q,
         .ldc = k_ld,
         .a_row = 1,
         .a_col = h->ld,
         .ldb = dim,
         .m = n_keys,
         .n = dim,
         .depth = n,
         .add = true},
        {.c = t->att + q_at,
         .a = h->d_probs,
         .b = t->k + k_at,
         .ldc = q_ld,
         .a_row = h->ld,
         .a_col = 1,
         .ldb = k_ld,
         .m = n,
         .n = dim,
         .depth = n_keys},
    };
    t->kernels->product(&products[0]);
    t->kernels->product(&products[1]);
    softmax_rows(h, begin, n, first, n_keys);
    for (int i = 2; i < 5; i++)
        t->kernels->product(&products[i]);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < dim; j++)
            t->att[q_at + i * q_ld + j] *= h->r->scale;
}

static void head_chunk(void *context, int64_t chunk, int thread)
{
    const run *r = context;
    const nb_block_train *t = r->t;
    const nb_config *c = t->config;
    const head_task h = head_task_of(r, chunk, thread);
    const int64_t ld = c->n_kv_heads * c->head_dim;
    const int64_t at = h.seq * r->len * ld + h.kv_head * c->head_dim;
    transpose(h.keys, h.ld, t->k + at, ld, r->len, c->head_dim);
    transpose(h.values, h.ld, t->v + at, ld, r->len, c->head_dim);
    for (int64_t i = 0; i < r->len; i++) {
        memset(t->d_k + at + i * ld, 0, (size_t)c->head_dim * sizeof(float));
        memset(t->d_v + at + i * ld, 0, (size_t)c->head_dim * sizeof(float));
    }
    for (int64_t head = h.kv_head * group_of(c); head < (h.kv_head + 1) * group_of(c); head++)
        for (int64_t begin = 0; begin < r->len; begin += BLOCK)
            query_block(&h, head, begin, r->len - begin < BLOCK ? r->len - begin : BLOCK);
}

/* Turns gradients of what RoPE gave back into those of what it took: a rotation is undone by the
 * opposite one. */
static void unturn_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const nb_config *c = t->config;
    const int64_t half = t->rope->half, n_rows = r->n_seq * r->len;
    for (int64_t row = chunk * ROWS; row < n_rows && row < (chunk + 1) * ROWS; row++) {
        const int64_t pos = row % r->len;
        const float *cos = t->rope->cos + pos * half, *sin = t->minus_sin + pos * half;
        t->kernels->rope(t->att + row * c->n_heads * c->head_dim, cos, sin, c->n_heads, c->head_dim,
                         c->rot_dim);
        t->kernels->rope(t->d_k + row * c->n_kv_heads * c->head_dim, cos, sin, c->n_kv_heads,
                         c->head_dim, c->rot_dim);
    }
}

static void unnorm_heads(const run *r, float *d, const float *raw, const float *gain, int64_t n)
{
    const nb_config *c = r->t->config;
    float dy[NB_ATTN_MAX_DIM];
    for (int64_t h = 0; h < n; h++, d += c->head_dim, raw += c->head_dim) {
        memcpy(dy, d, (size_t)c->head_dim * sizeof *dy);
        memset(d, 0, (size_t)c->head_dim * sizeof *d);
        r->t->kernels->rmsnorm_back(d, dy, raw, gain, c->head_dim, c->rms_eps);
    }
}

static void unnorm_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_block_train *t = r->t;
    const nb_config *c = t->config;
    const int64_t q_len = c->n_heads * c->head_dim, k_len = c->n_kv_heads * c->head_dim;
    const int64_t n_rows = r->n_seq * r->len;
    for (int64_t row = chunk * ROWS; row < n_rows && row < (chunk + 1) * ROWS; row++) {
        unnorm_heads(r, t->att + row * q_len, t->raw_q + row * q_len, r->w->q_norm, c->n_heads);
        unnorm_heads(r, t->d_k + row * k_len, t->raw_k + row * k_len, r->w->k_norm, c->n_kv_heads);
    }
}

/* The gradient of the gain of all heads, one sequence after the other. */
static void gain_grad(const run *r, float *out, const float *dy, const float *raw, int64_t n_heads)
{
    const nb_config *c = r->t->config;
    const int64_t step = r->len * n_heads * c->head_dim;
    for (int64_t seq = 0; out != NULL && seq < r->n_seq; seq++)
        nb_back_gain_sums(r->t->pool, out, dy + seq * step, raw + seq * step, r->len * n_heads,
                          c->head_dim, c->rms_eps, r->t->rms);
}

void nb_back_attn_backward(nb_block_train *t, const nb_block_weights *w, int64_t n_seq, int64_t len,
                           const nb_block_grads *grads)
{
    const nb_config *c = t->config;
    run r = run_of(t, w, n_seq, len);
    const int64_t n_chunks = (n_seq * len + ROWS - 1) / ROWS;
    const nb_stage stages[] = {
        {.n_chunks = n_seq * c->n_kv_heads, .task = head_chunk},
        {.n_chunks = n_chunks, .task = unturn_chunk},
    };
    nb_pool_run_stages(t->pool, stages, 2, &r);
    if (!c->qk_norm)
        return;
    gain_grad(&r, grads->q_norm, t->att, t->raw_q, c->n_heads);
    gain_grad(&r, grads->k_norm, t->d_k, t->raw_k, c->n_kv_heads);
    nb_pool_run(t->pool, n_chunks, unnorm_chunk, &r);
}
