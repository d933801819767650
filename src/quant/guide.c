/* See guide.h. */
#include "quant/guide.h"

#include "base/fpenv.h"
#include "base/rng.h"
#include "kernel/matmul.h"
#include "model/backward.h"
#include "quant/streams.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static_assert((int)NB_N_POINTS == NB_BLOCK_POINTS, "the backward pass has other points");

#define LABELS 0x6775696465 /* the stream of random numbers: "guide" */

/* Sequences go together until they have this many tokens, because every group of them reads all
 * weights twice: a hundredth of the time then. */
#define BATCH_TOKENS 4096
#define HEAD_ROWS    256  /* tokens whose logits are held at once */
#define FILE_ROWS    4096 /* of the guide's file, read at once */

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- what it takes ---- */

/* Sequences [first, returned), and their tokens. */
static int64_t batch_end(const nb_calib_seq *seqs, int64_t n_seqs, int64_t first, int64_t *n_tokens)
{
    int64_t end = first;
    *n_tokens = 0;
    while (end < n_seqs && *n_tokens < BATCH_TOKENS)
        *n_tokens += seqs[end++].n;
    return end;
}

/* Tokens of the largest batch, wherever batches start. */
static int64_t batch_room(const nb_calib_seq *seqs, int64_t n_seqs, int64_t *longest)
{
    int64_t all = 0;
    *longest = 1;
    for (int64_t i = 0; i < n_seqs; i++) {
        *longest = larger(*longest, seqs[i].n);
        all += seqs[i].n;
    }
    const int64_t most = BATCH_TOKENS - 1 + *longest;
    return all < most ? all : most;
}

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

static double block_flops(const nb_config *c, double mean_context)
{
    double flops = 0;
    for (int p = 0; p < NB_N_PARTS; p++)
        flops += nb_part_flops(c, (nb_block_part)p, mean_context);
    return flops;
}

static double head_flops(const nb_config *c)
{
    return 4 * (double)c->vocab_size * (double)c->d_model;
}

void nb_guide_estimate(nb_guide_plan *out, const nb_config *c, const nb_calib_seq *seqs,
                       int64_t n_seqs, int n_threads)
{
    int64_t longest, n_tokens = 0;
    const int64_t room = batch_room(seqs, n_seqs, &longest), d = c->d_model;
    const int64_t train = nb_block_train_bytes(c, 1, longest, n_threads);
    *out = (nb_guide_plan){0};
    for (int64_t i = 0; i < n_seqs; i++) {
        n_tokens += seqs[i].n;
        out->flops +=
            (double)seqs[i].n *
            (3 * (double)c->n_layers * block_flops(c, (double)seqs[i].n / 2) + head_flops(c));
    }
    /* 4 bytes a weight, and what the source holds of one matrix */
    const int64_t block =
        n_block_floats(c) * 4 + c->d_ff * d * 4 + train + longest * (2 * d + NB_N_POINTS) * 4;
    const int64_t head = c->vocab_size * (8 * d + 4 * (HEAD_ROWS + n_threads)) +
                         3 * HEAD_ROWS * d * 4 + head_scratch(c, n_threads);
    out->memory = train == INT64_MAX ? INT64_MAX : larger(block, head);
    out->disk = (c->n_layers + 1) * room * d * 4 + n_tokens * c->n_layers * NB_N_POINTS * 4;
}

/* ---- the file ---- */

static int64_t row_of(const nb_guide *g, int64_t layer, int64_t token)
{
    return layer * g->n_tokens + token;
}

nb_status nb_guide_weights(const nb_guide *g, int64_t layer, nb_point point, int64_t token,
                           int64_t n, float *out, nb_err *err)
{
    enum { STEP = 256 };
    float rows[STEP][NB_N_POINTS];
    const double mean = nb_guide_mean(g, layer, point);
    for (int64_t begin = 0; begin < n; begin += STEP) {
        const int64_t m = n - begin < STEP ? n - begin : STEP;
        NB_TRY(nb_spill_read(&g->file, row_of(g, layer, token + begin), m, rows, err));
        for (int64_t t = 0; t < m; t++)
            out[begin + t] = mean > 0 ? (float)((double)rows[t][point] / mean) : 1.0f;
    }
    return NB_OK;
}

/* Reads tokens [0, n) of all layers: their hash, and, if asked for, the means. */
static nb_status survey(const nb_guide *g, int64_t n, uint64_t *hash, double *mean, nb_err *err)
{
    float(*rows)[NB_N_POINTS];
    nb_status s = NB_OK;
    *hash = 0;
    NB_TRY(NB_ALLOC(&rows, FILE_ROWS, err));
    for (int64_t layer = 0; layer < g->n_layers && s == NB_OK; layer++) {
        double sum[NB_N_POINTS] = {0};
        for (int64_t begin = 0; begin < n && s == NB_OK; begin += FILE_ROWS) {
            const int64_t m = n - begin < FILE_ROWS ? n - begin : FILE_ROWS;
            const int64_t row = row_of(g, layer, begin);
            s = nb_spill_read(&g->file, row, m, rows, err);
            for (int64_t t = 0; t < m && s == NB_OK; t++)
                for (int p = 0; p < NB_N_POINTS; p++)
                    sum[p] += (double)rows[t][p];
            if (s == NB_OK)
                *hash ^= nb_spill_hash(&g->file, row, m, rows);
        }
        for (int p = 0; mean != NULL && p < NB_N_POINTS; p++)
            mean[layer * NB_N_POINTS + p] = n > 0 ? sum[p] / (double)n : 0;
    }
    nb_free(rows);
    return s;
}

void nb_guide_close(nb_guide *g)
{
    nb_spill_close(&g->file);
    nb_free(g->mean);
    *g = NB_GUIDE_NONE;
}

/* ---- a batch ---- */

typedef struct {
    const nb_guide_job *job;
    nb_guide *guide;
    nb_model frame; /* norms and biases of all blocks, and no linears */
    nb_spill x; /* [n_layers + 1][room] tokens: what each block reads, then what the head does; on
                   the way back, each is replaced by the gradient there */
    int64_t room, longest;
    int64_t first, end; /* sequences at hand */
    int64_t token;      /* of the set: the first of them */
    nb_loaded source;   /* a weight as it was read */
    float *weight[NB_N_LINEARS];
    float *rows, *grads; /* [longest][d_model] */
    float *squares;      /* [longest][NB_N_POINTS] */
    nb_block_train train;
} pass;

static nb_status tell(const pass *p, double flops, nb_err *err)
{
    if (p->job->progress == NULL || p->job->progress(p->job->context, flops))
        return NB_OK;
    return nb_fail(err, NB_INTERRUPTED, "interrupted");
}

typedef struct {
    const nb_mat *from;
    float *to;
} widening;

#define ROWS_PER_CHUNK 16

static void widen_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const widening *job = context;
    const int64_t end = (chunk + 1) * ROWS_PER_CHUNK, n = job->from->n_cols;
    for (int64_t r = chunk * ROWS_PER_CHUNK; r < end && r < job->from->n_rows; r++)
        job->from->fmt->decode_row(job->from, r, job->to + r * n);
}

static nb_status read_weight(pass *p, const nb_weight *w, const char *name, int64_t n_rows,
                             int64_t n_cols, nb_err *err)
{
    nb_store *store = p->job->store;
    if (w == NULL)
        return nb_fail(err, NB_DATA, "%s: tensor '%s' is missing", nb_store_path(store), name);
    if (w->n_rows != n_rows || w->n_cols != n_cols)
        return nb_fail(err, NB_DATA, "%s: tensor '%.200s' is [%lld, %lld], not [%lld, %lld]",
                       nb_store_path(store), w->name, (long long)w->n_rows, (long long)w->n_cols,
                       (long long)n_rows, (long long)n_cols);
    return nb_store_read(store, w, &p->source, err);
}

/* to [n_rows][n_cols]. */
static nb_status read_floats(pass *p, const nb_weight *w, const char *name, int64_t n_rows,
                             int64_t n_cols, float *to, nb_err *err)
{
    NB_TRY(read_weight(p, w, name, n_rows, n_cols, err));
    widening job = {&p->source.mat, to};
    nb_pool_run(p->job->pool, (n_rows + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK, widen_chunk, &job);
    return NB_OK;
}

static void drop_source(pass *p)
{
    nb_loaded_free(&p->source);
    p->source = (nb_loaded){0};
}

/* Calls `each` for every sequence at hand: `row` in p->x, from the start of a level. */
typedef nb_status sequence_fn(pass *p, int64_t seq, int64_t row, void *context, nb_err *err);

static nb_status for_sequences(pass *p, sequence_fn *each, void *context, nb_err *err)
{
    int64_t row = 0;
    for (int64_t i = p->first; i < p->end; i++) {
        NB_TRY(each(p, i, row, context, err));
        row += p->job->seqs[i].n;
    }
    return NB_OK;
}

static nb_status embed_sequence(pass *p, int64_t seq, int64_t row, void *context, nb_err *err)
{
    (void)context;
    const nb_calib_seq *s = &p->job->seqs[seq];
    const nb_mat *table = &p->source.mat;
    for (int64_t t = 0; t < s->n; t++) {
        if (s->ids[t] < 0 || s->ids[t] >= table->n_rows)
            return nb_fail(err, NB_DATA, "token id %d is outside the vocabulary of %lld", s->ids[t],
                           (long long)table->n_rows);
        table->fmt->decode_row(table, s->ids[t], p->rows + t * table->n_cols);
    }
    return nb_spill_write(&p->x, row, s->n, p->rows, err);
}

static nb_status embed(pass *p, nb_err *err)
{
    static const char name[] = "model.embed_tokens.weight";
    const nb_config *c = &p->frame.config;
    nb_status s =
        read_weight(p, nb_store_find(p->job->store, name), name, c->vocab_size, c->d_model, err);
    if (s == NB_OK)
        s = for_sequences(p, embed_sequence, NULL, err);
    drop_source(p);
    return s;
}

/* ---- blocks ---- */

static nb_status load_block(pass *p, int64_t layer, nb_block_weights *out, nb_err *err)
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
    int64_t layer;
    nb_block_weights weights;
} block;

static nb_status forward_sequence(pass *p, int64_t seq, int64_t row, void *context, nb_err *err)
{
    const block *b = context;
    const int64_t n = p->job->seqs[seq].n, at = b->layer * p->room + row;
    NB_TRY(nb_spill_read(&p->x, at, n, p->rows, err));
    nb_block_forward(&p->train, &b->weights, p->rows, 1, n);
    NB_TRY(nb_spill_write(&p->x, at + p->room, n, p->train.y, err));
    return tell(p, (double)n * block_flops(&p->frame.config, (double)n / 2), err);
}

/* Values of a guide go into sums that everything else stands on. */
static nb_status check_squares(const pass *p, int64_t seq, int64_t layer, nb_err *err)
{
    for (int64_t i = 0; i < p->job->seqs[seq].n * NB_N_POINTS; i++) {
        if (!isfinite(p->squares[i]))
            return nb_fail(err, NB_DATA,
                           "%s: the gradient of token %lld of calibration sequence %lld is not "
                           "finite in layer %lld, at %s",
                           nb_store_path(p->job->store), (long long)(i / NB_N_POINTS),
                           (long long)seq, (long long)layer,
                           nb_point_name((nb_point)(i % NB_N_POINTS)));
    }
    return NB_OK;
}

static nb_status backward_sequence(pass *p, int64_t seq, int64_t row, void *context, nb_err *err)
{
    const block *b = context;
    const int64_t n = p->job->seqs[seq].n, at = b->layer * p->room + row;
    nb_guide *g = p->guide;
    NB_TRY(nb_spill_read(&p->x, at, n, p->rows, err));
    nb_block_forward(&p->train, &b->weights, p->rows, 1, n);
    NB_TRY(nb_spill_read(&p->x, at + p->room, n, p->train.y, err));
    const nb_block_grads grads = {.x = b->layer > 0 ? p->grads : NULL, .squares = p->squares};
    nb_block_backward(&p->train, &b->weights, p->rows, 1, n, &grads);
    if (b->layer > 0)
        NB_TRY(nb_spill_write(&p->x, at, n, p->grads, err));
    NB_TRY(check_squares(p, seq, b->layer, err));
    const int64_t to = row_of(g, b->layer, p->token + row);
    NB_TRY(nb_spill_write(&g->file, to, n, p->squares, err));
    g->hash ^= nb_spill_hash(&g->file, to, n, p->squares);
    return tell(p, 2 * (double)n * block_flops(&p->frame.config, (double)n / 2), err);
}

/* Through all blocks, up or down, one after the other. */
static nb_status run_blocks(pass *p, bool back, nb_err *err)
{
    const nb_config *c = &p->frame.config;
    nb_status s = NB_OK;
    for (int j = 0; j < NB_N_LINEARS; j++)
        NB_TRY_GOTO(
            s, NB_ALLOC(&p->weight[j],
                        nb_linear_n_rows(c, (nb_linear_id)j) * nb_linear_n_cols(c, (nb_linear_id)j),
                        err));
    NB_TRY_GOTO(s, nb_block_train_init(&p->train, c, &p->frame.rope, p->job->kernels, p->job->pool,
                                       1, p->longest, err));
    for (int64_t i = 0; i < c->n_layers; i++) {
        block b = {.layer = back ? c->n_layers - 1 - i : i};
        NB_TRY_GOTO(s, load_block(p, b.layer, &b.weights, err));
        NB_TRY_GOTO(s, for_sequences(p, back ? backward_sequence : forward_sequence, &b, err));
    }
done:
    for (int j = 0; j < NB_N_LINEARS; j++) {
        nb_free(p->weight[j]);
        p->weight[j] = NULL;
    }
    nb_block_train_free(&p->train);
    drop_source(p);
    return s;
}

/* ---- the head ---- */

typedef struct {
    const pass *p;
    float *weight;             /* [vocab_size][d_model] */
    float *logits;             /* [HEAD_ROWS][vocab_size], then their gradients */
    float *zeros;              /* [n_threads][vocab_size]: what softmax_back asks for besides */
    float *x, *normed, *grads; /* [HEAD_ROWS][d_model] */
    void *scratch;
    int64_t n, token; /* rows at hand; the first one's number in the set */
} head;

static void norm_row(void *context, int64_t t, int thread)
{
    (void)thread;
    const head *h = context;
    const nb_model *m = &h->p->frame;
    const int64_t d = m->config.d_model;
    h->p->job->kernels->rmsnorm(h->normed + t * d, h->x + t * d, m->norm, d, m->config.rms_eps);
}

/* The first id at which the probabilities before it and its own exceed a share `u` of their sum. */
static int64_t draw(const float *probs, int64_t n, double u)
{
    double all = 0, sum = 0;
    int64_t last = 0;
    for (int64_t i = 0; i < n; i++)
        all += (double)probs[i];
    for (int64_t i = 0; i < n; i++) {
        sum += (double)probs[i];
        if (sum > u * all)
            return i;
        last = probs[i] > 0 ? i : last; /* rounding may leave the share unreached */
    }
    return last;
}

/* Logits become the gradient of the cross-entropy against a label of their own: p - [label]. */
static void label_row(void *context, int64_t t, int thread)
{
    const head *h = context;
    const int64_t v = h->p->frame.config.vocab_size;
    float *row = h->logits + t * v, *zeros = h->zeros + thread * v;
    memset(zeros, 0, (size_t)v * sizeof *zeros);
    h->p->job->kernels->softmax_back(row, zeros, v);
    const double u = nb_rng_uniform(h->p->job->seed, LABELS, (uint64_t)(h->token + t));
    row[draw(row, v, u)] -= 1.0f;
}

static void unnorm_row(void *context, int64_t t, int thread)
{
    (void)thread;
    const head *h = context;
    const nb_model *m = &h->p->frame;
    const int64_t d = m->config.d_model;
    float *dx = h->grads + t * d;
    memset(dx, 0, (size_t)d * sizeof *dx);
    h->p->job->kernels->rmsnorm_back(dx, h->normed + t * d, h->x + t * d, m->norm, d,
                                     m->config.rms_eps);
}

static void head_rows(head *h)
{
    const nb_guide_job *job = h->p->job;
    const int64_t v = h->p->frame.config.vocab_size, d = h->p->frame.config.d_model;
    const nb_matmul_job forward = {.c = h->logits,
                                   .ldc = v,
                                   .m = h->n,
                                   .n = v,
                                   .depth = d,
                                   .a = {h->normed, d, 1},
                                   .b = {h->weight, 1, d}};
    const nb_matmul_job back = {.c = h->normed,
                                .ldc = d,
                                .m = h->n,
                                .n = d,
                                .depth = v,
                                .a = {h->logits, v, 1},
                                .b = {h->weight, d, 1}};
    nb_pool_run(job->pool, h->n, norm_row, h);
    nb_matmul(job->kernels, job->pool, &forward, h->scratch);
    nb_pool_run(job->pool, h->n, label_row, h);
    nb_matmul(job->kernels, job->pool, &back, h->scratch);
    nb_pool_run(job->pool, h->n, unnorm_row, h);
}

static nb_status head_sequence(pass *p, int64_t seq, int64_t row, void *context, nb_err *err)
{
    head *h = context;
    const int64_t n = p->job->seqs[seq].n, level = p->frame.config.n_layers * p->room;
    for (int64_t begin = 0; begin < n; begin += HEAD_ROWS) {
        h->n = n - begin < HEAD_ROWS ? n - begin : HEAD_ROWS;
        h->token = p->token + row + begin;
        NB_TRY(nb_spill_read(&p->x, level + row + begin, h->n, h->x, err));
        head_rows(h);
        NB_TRY(nb_spill_write(&p->x, level + row + begin, h->n, h->grads, err));
        NB_TRY(tell(p, (double)h->n * head_flops(&p->frame.config), err));
    }
    return NB_OK;
}

static nb_status run_head(pass *p, nb_err *err)
{
    const nb_config *c = &p->frame.config;
    const char *name = c->tied_head ? "model.embed_tokens.weight" : "lm_head.weight";
    const int n_threads = nb_pool_n_threads(p->job->pool);
    const int64_t v = c->vocab_size, d = c->d_model;
    head h = {.p = p};
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, NB_ALLOC(&h.weight, v * d, err));
    NB_TRY_GOTO(s, read_floats(p, nb_store_find(p->job->store, name), name, v, d, h.weight, err));
    drop_source(p);
    NB_TRY_GOTO(s, NB_ALLOC(&h.logits, HEAD_ROWS * v, err));
    NB_TRY_GOTO(s, NB_ALLOC(&h.zeros, n_threads * v, err));
    NB_TRY_GOTO(s, NB_ALLOC(&h.x, HEAD_ROWS * d, err));
    NB_TRY_GOTO(s, NB_ALLOC(&h.normed, HEAD_ROWS * d, err));
    NB_TRY_GOTO(s, NB_ALLOC(&h.grads, HEAD_ROWS * d, err));
    NB_TRY_GOTO(s, nb_alloc(&h.scratch, (size_t)head_scratch(c, n_threads), 1, err));
    s = for_sequences(p, head_sequence, &h, err);
done:
    drop_source(p);
    void *all[] = {h.weight, h.logits, h.zeros, h.x, h.normed, h.grads, h.scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        nb_free(all[i]);
    return s;
}

/* ---- all of it ---- */

static nb_status open_pass(pass *p, nb_err *err)
{
    const nb_guide_job *job = p->job;
    const nb_config *c = &p->frame.config;
    NB_TRY(nb_model_open_frame(&p->frame, job->store, p->guide->n_layers, p->longest, err));
    for (int64_t i = 0; i < c->n_layers; i++)
        NB_TRY(nb_model_load_vectors(&p->frame, job->store, i, i, err));
    NB_TRY(NB_ALLOC(&p->rows, p->longest * c->d_model, err));
    NB_TRY(NB_ALLOC(&p->grads, p->longest * c->d_model, err));
    NB_TRY(NB_ALLOC(&p->squares, p->longest * NB_N_POINTS, err));
    return nb_workdir_spill(job->dir, "guide-x", (size_t)c->d_model * sizeof(float),
                            (c->n_layers + 1) * p->room, &p->x, err);
}

static void close_pass(pass *p)
{
    nb_spill_close(&p->x);
    nb_free(p->rows);
    nb_free(p->grads);
    nb_free(p->squares);
    nb_model_close(&p->frame);
}

/* The sequences that are missing. */
static nb_status run_passes(nb_guide *g, const nb_guide_job *job, nb_err *err)
{
    pass p = {.job = job, .guide = g, .x = NB_SPILL_CLOSED};
    p.room = batch_room(job->seqs, job->n_seqs, &p.longest);
    nb_status s = open_pass(&p, err);
    for (int64_t i = 0; i < g->n_done; i++)
        p.token += job->seqs[i].n;
    while (s == NB_OK && g->n_done < job->n_seqs) {
        int64_t n_tokens;
        const uint64_t before = g->hash;
        p.first = g->n_done;
        p.end = batch_end(job->seqs, job->n_seqs, p.first, &n_tokens);
        NB_TRY_GOTO(s, embed(&p, err));
        NB_TRY_GOTO(s, run_blocks(&p, false, err));
        NB_TRY_GOTO(s, run_head(&p, err));
        s = run_blocks(&p, true, err);
        if (s != NB_OK) {
            g->hash = before;
            break;
        }
        p.token += n_tokens;
        g->n_done = p.end;
        if (job->keep != NULL)
            s = job->keep(job->context, err);
    }
done:
    close_pass(&p);
    return s;
}

/* Forgets what an earlier call has done, unless it is there. */
static nb_status check_done(nb_guide *g, const nb_guide_job *job, nb_err *err)
{
    int64_t n_tokens = 0;
    uint64_t hash = 0;
    for (int64_t i = 0; i < g->n_done && i < job->n_seqs; i++)
        n_tokens += job->seqs[i].n;
    nb_status s = NB_OK;
    if (g->n_done > 0 && g->n_done <= job->n_seqs)
        s = survey(g, n_tokens, &hash, NULL, err);
    if (s == NB_MEMORY)
        return s;
    if (s != NB_OK || g->n_done > job->n_seqs || hash != g->hash)
        g->n_done = 0;
    g->hash = g->n_done == 0 ? 0 : hash;
    return NB_OK;
}

static nb_status make(nb_guide *g, const nb_guide_job *job, nb_err *err)
{
    nb_config c;
    uint64_t hash;
    NB_TRY(nb_config_read(job->store, &c, err));
    g->n_layers = c.n_layers;
    g->n_tokens = 0;
    for (int64_t i = 0; i < job->n_seqs; i++)
        g->n_tokens += job->seqs[i].n;
    NB_TRY(NB_ALLOC(&g->mean, c.n_layers * NB_N_POINTS, err));
    NB_TRY(nb_workdir_spill(job->dir, "guide", NB_N_POINTS * sizeof(float),
                            c.n_layers * g->n_tokens, &g->file, err));
    NB_TRY(check_done(g, job, err));
    if (g->n_done < job->n_seqs)
        NB_TRY(run_passes(g, job, err));
    NB_TRY(survey(g, g->n_tokens, &hash, g->mean, err));
    if (hash != g->hash)
        return nb_fail(err, NB_IO, "%s: is not what was written", g->file.path);
    return NB_OK;
}

nb_status nb_guide_make(nb_guide *g, const nb_guide_job *job, nb_err *err)
{
    const uint64_t env = nb_fpenv_enter();
    const nb_status s = make(g, job, err);
    nb_fpenv_leave(env);
    return s;
}
