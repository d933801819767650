/* See passes.h. */
#include "quant/pass/passes.h"

#include "kernel/matmul.h"
#include "quant/pass/streams.h"
#include "quant/weight/embedding.h"
#include "quant/weight/widen.h"

#include <string.h>

#define HEAD_ROWS 256 /* tokens whose logits are held at once */

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- what it takes ---- */

static int64_t n_block_floats(const nb_config *c)
{
    int64_t n = 0;
    for (int i = 0; i < NB_N_LINEARS; i++)
        n += nb_linear_n_rows(c, (nb_linear_id)i) * nb_linear_n_cols(c, (nb_linear_id)i);
    return n;
}

static int64_t head_scratch(const nb_config *c, int n_threads)
{
    const int64_t v = c->vocab_size, d = c->d_model;
    return larger(nb_matmul_scratch_bytes(HEAD_ROWS, v, d, n_threads),
                  nb_matmul_scratch_bytes(HEAD_ROWS, d, v, n_threads)) +
           64;
}

double nb_passes_block_flops(const nb_config *c, int64_t n)
{
    double flops = 0;
    for (int p = 0; p < NB_N_PARTS; p++)
        flops += nb_part_flops(c, (nb_block_part)p, (double)n / 2);
    return flops * (double)c->n_layers;
}

double nb_passes_head_flops(const nb_config *c)
{
    return 2 * (double)c->vocab_size * (double)c->d_model;
}

int64_t nb_passes_memory(const nb_config *c, int64_t longest, int n_threads, bool two_heads)
{
    const int64_t d = c->d_model, v = c->vocab_size;
    const int64_t train = nb_block_train_bytes(c, 1, longest, false, n_threads);
    if (train == INT64_MAX)
        return train;
    /* 4 bytes a weight, and what the source holds of one matrix */
    const int64_t block = n_block_floats(c) * 4 + c->d_ff * d * 4 + train + longest * 2 * d * 4;
    const int64_t head = v * (8 * d + 4 * (HEAD_ROWS * (two_heads ? 2 : 1) + n_threads)) +
                         3 * HEAD_ROWS * d * 4 + head_scratch(c, n_threads);
    return larger(block, head);
}

int64_t nb_passes_disk(const nb_config *c, int64_t room)
{
    return (c->n_layers + 1) * room * c->d_model * 4;
}

/* ---- opening ---- */

nb_status nb_passes_open(nb_passes *p, const nb_passes_job *job, nb_err *err)
{
    *p = NB_PASSES_NONE;
    p->job = *job;
    nb_config c;
    NB_TRY(nb_config_read(job->store, &c, err));
    NB_TRY(nb_model_open_frame(&p->frame, job->store, c.n_layers, job->longest, err));
    for (int64_t i = 0; i < c.n_layers; i++)
        NB_TRY(nb_model_load_vectors(&p->frame, job->store, i, i, err));
    NB_TRY(NB_ALLOC(&p->rows, job->longest * c.d_model, err));
    NB_TRY(NB_ALLOC(&p->grads, job->longest * c.d_model, err));
    return nb_workdir_spill(job->dir, job->file, (size_t)c.d_model * sizeof(float),
                            (c.n_layers + 1) * job->room, &p->x, err);
}

void nb_passes_close(nb_passes *p)
{
    nb_spill_close(&p->x);
    nb_free(p->rows);
    nb_free(p->grads);
    nb_model_close(&p->frame);
    *p = NB_PASSES_NONE;
}

static nb_status tell(const nb_passes *p, double flops, nb_err *err)
{
    if (p->job.progress == NULL || p->job.progress(p->job.context, flops))
        return NB_OK;
    return nb_fail(err, NB_INTERRUPTED, "interrupted");
}

static nb_status read_weight(nb_passes *p, const nb_weight *w, const char *name, int64_t n_rows,
                             int64_t n_cols, nb_err *err)
{
    nb_store *store = p->job.store;
    if (w == NULL)
        return nb_fail(err, NB_DATA, "%s: tensor '%s' is missing", nb_store_path(store), name);
    if (w->n_rows != n_rows || w->n_cols != n_cols)
        return nb_fail(err, NB_DATA, "%s: tensor '%.200s' is [%lld, %lld], not [%lld, %lld]",
                       nb_store_path(store), w->name, (long long)w->n_rows, (long long)w->n_cols,
                       (long long)n_rows, (long long)n_cols);
    return nb_store_read(store, w, &p->source, err);
}

/* to [n_rows][n_cols]. */
static nb_status read_floats(nb_passes *p, const nb_weight *w, const char *name, int64_t n_rows,
                             int64_t n_cols, float *to, nb_err *err)
{
    NB_TRY(read_weight(p, w, name, n_rows, n_cols, err));
    nb_widen(&p->source.mat, to, p->job.pool);
    return NB_OK;
}

static void drop_source(nb_passes *p)
{
    nb_loaded_free(&p->source);
    p->source = (nb_loaded){0};
}

/* Calls `each` for every sequence at hand: `row` in p->x, from the start of a level. */
typedef nb_status sequence_fn(nb_passes *p, const nb_calib_seq *seq, int64_t row, void *context,
                              nb_err *err);

static nb_status for_sequences(nb_passes *p, sequence_fn *each, void *context, nb_err *err)
{
    int64_t row = 0;
    for (int64_t i = 0; i < p->n_seqs; i++) {
        NB_TRY(each(p, &p->seqs[i], row, context, err));
        row += p->seqs[i].n;
    }
    return NB_OK;
}

static nb_status embed_sequence(nb_passes *p, const nb_calib_seq *s, int64_t row, void *context,
                                nb_err *err)
{
    NB_TRY(nb_embedding_rows(context, s->ids, s->n, p->rows, err));
    return nb_spill_write(&p->x, row, s->n, p->rows, err);
}

nb_status nb_passes_embed(nb_passes *p, const nb_calib_seq *seqs, int64_t n_seqs, nb_err *err)
{
    nb_embedding e;
    p->seqs = seqs;
    p->n_seqs = n_seqs;
    NB_TRY(nb_embedding_open(&e, p->job.store, &p->frame.config, err));
    const nb_status s = for_sequences(p, embed_sequence, &e, err);
    nb_embedding_close(&e);
    return s;
}

nb_status nb_passes_keep_last(nb_passes *p, const nb_spill *to, nb_err *err)
{
    int64_t n = 0;
    for (int64_t i = 0; i < p->n_seqs; i++)
        n += p->seqs[i].n;
    const int64_t level = p->frame.config.n_layers * p->job.room;
    for (int64_t row = 0; row < n; row += p->job.longest) {
        const int64_t left = n - row, m = left < p->job.longest ? left : p->job.longest;
        NB_TRY(nb_spill_read_on(p->job.pool, &p->x, level + row, m, p->rows, err));
        NB_TRY(nb_spill_write_on(p->job.pool, to, row, m, p->rows, err));
    }
    return NB_OK;
}

/* ---- blocks ---- */

nb_status nb_passes_load_source(nb_passes *p, int64_t layer, nb_block_weights *out, nb_err *err)
{
    const nb_config *c = &p->frame.config;
    nb_layer *l = &p->frame.layers[layer];
    *out = (nb_block_weights){.attn_norm = l->attn_norm,
                              .ffn_norm = l->ffn_norm,
                              .q_norm = l->q_norm,
                              .k_norm = l->k_norm};
    for (int j = 0; j < NB_N_LINEARS; j++) {
        const nb_linear *linear = nb_layer_linear(l, (nb_linear_id)j);
        NB_TRY(read_floats(p, linear->info, nb_linear_name((nb_linear_id)j),
                           nb_linear_n_rows(c, (nb_linear_id)j),
                           nb_linear_n_cols(c, (nb_linear_id)j), p->weight[j], err));
        out->linear[j] = p->weight[j];
        out->bias[j] = linear->bias;
    }
    return NB_OK;
}

typedef struct {
    const nb_passes_blocks *caller;
    int64_t layer;
    nb_block_weights weights;
} block;

static nb_status forward_sequence(nb_passes *p, const nb_calib_seq *seq, int64_t row, void *context,
                                  nb_err *err)
{
    const block *b = context;
    const int64_t n = seq->n, at = b->layer * p->job.room + row;
    NB_TRY(nb_spill_read_on(p->job.pool, &p->x, at, n, p->rows, err));
    nb_block_forward(&p->train, &b->weights, p->rows, 1, n);
    NB_TRY(nb_spill_write_on(p->job.pool, &p->x, at + p->job.room, n, p->train.y, err));
    const nb_config *c = &p->frame.config;
    return tell(p, (double)n * nb_passes_block_flops(c, n) / (double)c->n_layers, err);
}

static nb_status backward_sequence(nb_passes *p, const nb_calib_seq *seq, int64_t row,
                                   void *context, nb_err *err)
{
    const block *b = context;
    const int64_t n = seq->n, at = b->layer * p->job.room + row;
    NB_TRY(nb_spill_read_on(p->job.pool, &p->x, at, n, p->rows, err));
    nb_block_forward(&p->train, &b->weights, p->rows, 1, n);
    NB_TRY(nb_spill_read_on(p->job.pool, &p->x, at + p->job.room, n, p->train.y, err));
    nb_block_grads grads = {0};
    b->caller->wanted(b->caller->context, b->layer, n, &grads);
    grads.x = b->layer > 0 ? p->grads : NULL;
    nb_block_backward(&p->train, &b->weights, p->rows, 1, n, &grads);
    if (b->layer > 0)
        NB_TRY(nb_spill_write_on(p->job.pool, &p->x, at, n, p->grads, err));
    if (b->caller->taken != NULL)
        NB_TRY(b->caller->taken(b->caller->context, b->layer, row, n, err));
    const nb_config *c = &p->frame.config;
    return tell(p, 3 * (double)n * nb_passes_block_flops(c, n) / (double)c->n_layers, err);
}

static nb_status make_room(nb_passes *p, nb_err *err)
{
    const nb_config *c = &p->frame.config;
    for (int j = 0; j < NB_N_LINEARS; j++)
        NB_TRY(NB_ALLOC(&p->weight[j],
                        nb_linear_n_rows(c, (nb_linear_id)j) * nb_linear_n_cols(c, (nb_linear_id)j),
                        err));
    return nb_block_train_init(&p->train, c, &p->frame.rope, p->job.kernels, p->job.pool, 1,
                               p->job.longest, false, err);
}

/* Through all blocks, up or down, one after the other. */
static nb_status run_blocks(nb_passes *p, const nb_passes_blocks *blocks, bool back, nb_err *err)
{
    const nb_config *c = &p->frame.config;
    nb_status s = make_room(p, err);
    for (int64_t i = 0; i < c->n_layers && s == NB_OK; i++) {
        block b = {.caller = blocks, .layer = back ? c->n_layers - 1 - i : i};
        s = blocks->load != NULL ? blocks->load(blocks->context, b.layer, &b.weights, err)
                                 : nb_passes_load_source(p, b.layer, &b.weights, err);
        if (s == NB_OK)
            s = for_sequences(p, back ? backward_sequence : forward_sequence, &b, err);
        if (s == NB_OK && back && blocks->done != NULL)
            s = blocks->done(blocks->context, b.layer, err);
    }
    for (int j = 0; j < NB_N_LINEARS; j++) {
        nb_free(p->weight[j]);
        p->weight[j] = NULL;
    }
    nb_block_train_free(&p->train);
    drop_source(p);
    return s;
}

nb_status nb_passes_forward(nb_passes *p, const nb_passes_blocks *blocks, nb_err *err)
{
    return run_blocks(p, blocks, false, err);
}

nb_status nb_passes_backward(nb_passes *p, const nb_passes_blocks *blocks, nb_err *err)
{
    return run_blocks(p, blocks, true, err);
}

/* ---- the head ---- */

typedef struct {
    nb_passes *p;
    const nb_passes_head *caller;
    float *weight;             /* [vocab_size][d_model] */
    float *logits;             /* [HEAD_ROWS][vocab_size], then their gradients */
    float *other;              /* the same of the other model; NULL: none */
    float *zeros;              /* [n_threads][vocab_size] */
    float *x, *normed, *grads; /* [HEAD_ROWS][d_model] */
    void *scratch;
    int64_t n, token; /* rows at hand; the first one's number */
} head;

static void norm_row(void *context, int64_t t, int thread)
{
    (void)thread;
    const head *h = context;
    const nb_model *m = &h->p->frame;
    const int64_t d = m->config.d_model;
    h->p->job.kernels->rmsnorm(h->normed + t * d, h->x + t * d, m->norm, d, m->config.rms_eps);
}

static void call_row(void *context, int64_t t, int thread)
{
    const head *h = context;
    const int64_t v = h->p->frame.config.vocab_size;
    float *zeros = h->zeros + thread * v;
    memset(zeros, 0, (size_t)v * sizeof *zeros);
    h->caller->row(h->caller->context, h->token + t, h->logits + t * v,
                   h->other != NULL ? h->other + t * v : NULL, zeros);
}

static void unnorm_row(void *context, int64_t t, int thread)
{
    (void)thread;
    const head *h = context;
    const nb_model *m = &h->p->frame;
    const int64_t d = m->config.d_model;
    float *dx = h->grads + t * d;
    memset(dx, 0, (size_t)d * sizeof *dx);
    h->p->job.kernels->rmsnorm_back(dx, h->normed + t * d, h->x + t * d, m->norm, d,
                                    m->config.rms_eps);
}

static void multiply(const head *h, float *to, int64_t n, nb_view a, int64_t depth, nb_view b)
{
    const nb_matmul_job job = {
        .c = to, .ldc = n, .m = h->n, .n = n, .depth = depth, .a = a, .b = b};
    nb_matmul(h->p->job.kernels, h->p->job.pool, &job, h->scratch);
}

/* Logits of the rows in h->x. */
static void logits_of(head *h, float *to)
{
    const nb_config *c = &h->p->frame.config;
    const int64_t v = c->vocab_size, d = c->d_model;
    nb_pool_run(h->p->job.pool, h->n, norm_row, h);
    multiply(h, to, v, (nb_view){h->normed, d, 1}, d, (nb_view){h->weight, 1, d});
}

static nb_status head_rows(head *h, int64_t at, int64_t row, nb_err *err)
{
    nb_passes *p = h->p;
    const nb_config *c = &p->frame.config;
    const int64_t v = c->vocab_size, d = c->d_model;
    h->token = row;
    if (h->caller->other != NULL) {
        NB_TRY(nb_spill_read(h->caller->other, row, h->n, h->x, err));
        logits_of(h, h->other);
    }
    NB_TRY(nb_spill_read(&p->x, at, h->n, h->x, err));
    logits_of(h, h->logits);
    nb_pool_run(p->job.pool, h->n, call_row, h);
    const double runs = 1 + (h->caller->other != NULL) + h->caller->back;
    if (h->caller->back) {
        multiply(h, h->normed, d, (nb_view){h->logits, v, 1}, v, (nb_view){h->weight, d, 1});
        nb_pool_run(p->job.pool, h->n, unnorm_row, h);
        NB_TRY(nb_spill_write(&p->x, at, h->n, h->grads, err));
    }
    return tell(p, runs * (double)h->n * nb_passes_head_flops(c), err);
}

static nb_status head_sequence(nb_passes *p, const nb_calib_seq *seq, int64_t row, void *context,
                               nb_err *err)
{
    head *h = context;
    const int64_t level = p->frame.config.n_layers * p->job.room;
    for (int64_t begin = 0; begin < seq->n; begin += HEAD_ROWS) {
        h->n = seq->n - begin < HEAD_ROWS ? seq->n - begin : HEAD_ROWS;
        NB_TRY(head_rows(h, level + row + begin, row + begin, err));
    }
    return NB_OK;
}

nb_status nb_passes_run_head(nb_passes *p, const nb_passes_head *caller, nb_err *err)
{
    const nb_config *c = &p->frame.config;
    const char *name = c->tied_head ? "model.embed_tokens.weight" : "lm_head.weight";
    const int n_threads = nb_pool_n_threads(p->job.pool);
    const int64_t v = c->vocab_size, d = c->d_model;
    head h = {.p = p, .caller = caller};
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, NB_ALLOC(&h.weight, v * d, err));
    NB_TRY_GOTO(s, read_floats(p, nb_store_find(p->job.store, name), name, v, d, h.weight, err));
    drop_source(p);
    NB_TRY_GOTO(s, NB_ALLOC(&h.logits, HEAD_ROWS * v, err));
    if (caller->other != NULL)
        NB_TRY_GOTO(s, NB_ALLOC(&h.other, HEAD_ROWS * v, err));
    NB_TRY_GOTO(s, NB_ALLOC(&h.zeros, n_threads * v, err));
    NB_TRY_GOTO(s, NB_ALLOC(&h.x, HEAD_ROWS * d, err));
    NB_TRY_GOTO(s, NB_ALLOC(&h.normed, HEAD_ROWS * d, err));
    NB_TRY_GOTO(s, NB_ALLOC(&h.grads, HEAD_ROWS * d, err));
    NB_TRY_GOTO(s, nb_alloc(&h.scratch, (size_t)head_scratch(c, n_threads), 1, err));
    s = for_sequences(p, head_sequence, &h, err);
done:
    drop_source(p);
    void *all[] = {h.weight, h.logits, h.other, h.zeros, h.x, h.normed, h.grads, h.scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        nb_free(all[i]);
    return s;
}
