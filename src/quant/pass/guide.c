/* See guide.h. */
#include "quant/pass/guide.h"

#include "base/fpenv.h"
#include "base/rng.h"
#include "quant/pass/passes.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static_assert((int)NB_N_POINTS == NB_BLOCK_POINTS, "the backward pass has other points");

#define LABELS 0x6775696465 /* the stream of random numbers: "guide" */

/* Sequences go together until they have this many tokens, because every group of them reads all
 * weights twice: a hundredth of the time then. */
#define BATCH_TOKENS 4096
#define FILE_ROWS    4096 /* of the guide's file, read at once */

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- moments of outputs ---- */

/* Where the triangle of a linear begins in a row of the file; of NB_N_LINEARS: where it ends. */
static int64_t moments_at(const nb_config *c, int which)
{
    int64_t at = 0;
    for (int j = 0; j < which; j++)
        at += nb_sym_rest_rows(nb_linear_n_rows(c, (nb_linear_id)j));
    return at;
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

void nb_guide_estimate(nb_guide_plan *out, const nb_config *c, const nb_calib_seq *seqs,
                       int64_t n_seqs, bool outputs, int n_threads)
{
    int64_t longest, n_tokens = 0;
    const int64_t room = batch_room(seqs, n_seqs, &longest);
    *out = (nb_guide_plan){0};
    for (int64_t i = 0; i < n_seqs; i++) {
        n_tokens += seqs[i].n;
        out->flops += (double)seqs[i].n *
                      (4 * nb_passes_block_flops(c, seqs[i].n) + 2 * nb_passes_head_flops(c));
    }
    const int64_t passes = nb_passes_memory(c, longest, n_threads, false);
    out->memory = passes == INT64_MAX ? passes : passes + longest * NB_N_POINTS * 4;
    out->disk = nb_passes_disk(c, room) + n_tokens * c->n_layers * NB_N_POINTS * 4;
    if (!outputs || passes == INT64_MAX)
        return;
    const int64_t bytes = moments_at(c, NB_N_LINEARS) * (int64_t)sizeof(double);
    out->memory += bytes;
    out->disk += 2 * c->n_layers * bytes;
    for (int j = 0; j < NB_N_LINEARS; j++) {
        const double n = (double)nb_linear_n_rows(c, (nb_linear_id)j);
        out->flops += (double)n_tokens * (double)c->n_layers * n * n;
    }
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
    nb_spill_close(&g->moments[0]);
    nb_spill_close(&g->moments[1]);
    nb_free(g->mean);
    *g = NB_GUIDE_NONE;
}

/* ---- a batch ---- */

typedef struct {
    const nb_guide_job *job;
    nb_guide *guide;
    nb_passes passes;
    int64_t first, end;           /* sequences at hand */
    int64_t token;                /* of the set: the first of them */
    float *squares;               /* [longest][NB_N_POINTS] */
    nb_sym moments[NB_N_LINEARS]; /* with outputs, of the block at hand */
    nb_algebra la;
    nb_status status; /* of sums of them */
    nb_err *err;
    uint64_t moments_hash;
    int64_t n_at_hand; /* tokens of the sequence */
    bool back;         /* which way the blocks are gone through */
} batch;

/* Values of a guide go into sums that everything else stands on. */
static nb_status check_squares(const batch *b, int64_t layer, int64_t row, int64_t n, nb_err *err)
{
    for (int64_t i = 0; i < n * NB_N_POINTS; i++) {
        if (!isfinite(b->squares[i]))
            return nb_fail(err, NB_DATA,
                           "%s: the gradient of calibration token %lld is not finite in layer "
                           "%lld, at %s",
                           nb_store_path(b->job->store),
                           (long long)(b->token + row + i / NB_N_POINTS), (long long)layer,
                           nb_point_name((nb_point)(i % NB_N_POINTS)));
    }
    return NB_OK;
}

static void add_outputs(void *context, nb_linear_id which, const float *gradient)
{
    batch *b = context;
    if (b->status == NB_OK)
        b->status = nb_sym_add_rows(&b->la, &b->moments[which], gradient, b->moments[which].n,
                                    b->n_at_hand, b->err);
}

static void want_squares(void *context, int64_t layer, int64_t n, nb_block_grads *grads)
{
    (void)layer;
    batch *b = context;
    grads->squares = b->squares;
    b->n_at_hand = n;
    if (b->job->outputs) {
        grads->outputs = add_outputs;
        grads->context = b;
    }
}

/* Sums go from one file to the other, so that a batch that is cut off has changed nothing. */
static nb_status move_moments(batch *b, int64_t layer, bool write, nb_err *err)
{
    nb_guide *g = b->guide;
    const nb_config *c = &b->passes.frame.config;
    const nb_spill *file = &g->moments[write ? 1 - g->current : g->current];
    const int64_t row = layer * moments_at(c, NB_N_LINEARS);
    for (int j = 0; j < NB_N_LINEARS; j++) {
        nb_sym *s = &b->moments[j];
        const int64_t at = row + moments_at(c, j), n = nb_sym_rest_rows(s->n);
        if (write) {
            b->moments_hash ^= nb_spill_hash_on(b->job->pool, file, at, n, s->a);
            NB_TRY(nb_spill_write_on(b->job->pool, file, at, n, s->a, err));
        } else if (g->n_done == 0) {
            memset(s->a, 0, (size_t)n * sizeof *s->a);
        } else {
            NB_TRY(nb_spill_read_on(b->job->pool, file, at, n, s->a, err));
        }
    }
    return NB_OK;
}

static nb_status load_block(void *context, int64_t layer, nb_block_weights *out, nb_err *err)
{
    batch *b = context;
    NB_TRY(nb_passes_load_source(&b->passes, layer, out, err));
    b->err = err;
    return b->back && b->job->outputs ? move_moments(b, layer, false, err) : NB_OK;
}

static nb_status end_block(void *context, int64_t layer, nb_err *err)
{
    batch *b = context;
    return b->job->outputs ? move_moments(b, layer, true, err) : NB_OK;
}

static nb_status take_squares(void *context, int64_t layer, int64_t row, int64_t n, nb_err *err)
{
    batch *b = context;
    nb_guide *g = b->guide;
    NB_TRY(b->status);
    NB_TRY(check_squares(b, layer, row, n, err));
    const int64_t to = row_of(g, layer, b->token + row);
    NB_TRY(nb_spill_write(&g->file, to, n, b->squares, err));
    g->hash ^= nb_spill_hash(&g->file, to, n, b->squares);
    return NB_OK;
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
static void label_row(void *context, int64_t token, float *logits, float *other, float *zeros)
{
    (void)other;
    const batch *b = context;
    const int64_t v = b->passes.frame.config.vocab_size;
    b->job->kernels->softmax_back(logits, zeros, v);
    const double u = nb_rng_uniform(b->job->seed, LABELS, (uint64_t)(b->token + token));
    logits[draw(logits, v, u)] -= 1.0f;
}

static nb_status run_batch(batch *b, nb_err *err)
{
    const nb_passes_blocks blocks = {.load = load_block,
                                     .wanted = want_squares,
                                     .taken = take_squares,
                                     .done = end_block,
                                     .context = b};
    const nb_passes_head head = {.back = true, .row = label_row, .context = b};
    b->back = false;
    b->moments_hash = 0;
    NB_TRY(nb_passes_embed(&b->passes, b->job->seqs + b->first, b->end - b->first, err));
    NB_TRY(nb_passes_forward(&b->passes, &blocks, err));
    NB_TRY(nb_passes_run_head(&b->passes, &head, err));
    b->back = true;
    return nb_passes_backward(&b->passes, &blocks, err);
}

/* ---- all of it ---- */

static nb_status open_batch(batch *b, nb_err *err)
{
    const nb_guide_job *job = b->job;
    nb_passes_job passes = {.store = job->store,
                            .pool = job->pool,
                            .kernels = job->kernels,
                            .dir = job->dir,
                            .file = "guide-x",
                            .progress = job->progress,
                            .context = job->context};
    passes.room = batch_room(job->seqs, job->n_seqs, &passes.longest);
    for (int64_t i = 0; i < b->guide->n_done; i++)
        b->token += job->seqs[i].n;
    NB_TRY(NB_ALLOC(&b->squares, passes.longest * NB_N_POINTS, err));
    NB_TRY(nb_passes_open(&b->passes, &passes, err));
    for (int j = 0; job->outputs && j < NB_N_LINEARS; j++)
        NB_TRY(nb_sym_init(&b->moments[j],
                           nb_linear_n_rows(&b->passes.frame.config, (nb_linear_id)j), err));
    return NB_OK;
}

/* The sequences that are missing. */
static nb_status run_batches(nb_guide *g, const nb_guide_job *job, nb_err *err)
{
    batch b = {.job = job,
               .guide = g,
               .passes = NB_PASSES_NONE,
               .la = {.kernels = job->kernels, .pool = job->pool}};
    nb_status s = open_batch(&b, err);
    while (s == NB_OK && g->n_done < job->n_seqs) {
        int64_t n_tokens;
        const uint64_t before = g->hash;
        b.first = g->n_done;
        b.end = batch_end(job->seqs, job->n_seqs, b.first, &n_tokens);
        s = run_batch(&b, err);
        if (s != NB_OK) {
            g->hash = before;
            break;
        }
        b.token += n_tokens;
        g->n_done = b.end;
        g->current = 1 - g->current;
        g->moments_hash = b.moments_hash;
        if (job->keep != NULL)
            s = job->keep(job->context, err);
    }
    nb_passes_close(&b.passes);
    nb_free(b.squares);
    for (int j = 0; j < NB_N_LINEARS; j++)
        nb_sym_free(&b.moments[j]);
    nb_algebra_free(&b.la);
    return s;
}

/* The hash of what the file of moments holds. */
static nb_status survey_moments(const nb_guide *g, uint64_t *hash, nb_err *err)
{
    double *rows;
    const nb_spill *file = &g->moments[g->current];
    nb_status s = NB_OK;
    *hash = 0;
    NB_TRY(NB_ALLOC(&rows, FILE_ROWS, err));
    for (int64_t at = 0; at < file->n_rows && s == NB_OK; at += FILE_ROWS) {
        const int64_t left = file->n_rows - at, n = left < FILE_ROWS ? left : FILE_ROWS;
        s = nb_spill_read(file, at, n, rows, err);
        *hash ^= s == NB_OK ? nb_spill_hash(file, at, n, rows) : 0;
    }
    nb_free(rows);
    return s;
}

nb_status nb_guide_outputs(const nb_guide *g, int64_t layer, nb_linear_id which, int64_t n_rows,
                           nb_sym *g_g, nb_err *err)
{
    NB_TRY(nb_sym_init(g_g, n_rows, err));
    const int64_t at =
        layer * moments_at(&g->config, NB_N_LINEARS) + moments_at(&g->config, (int)which);
    const nb_status s =
        nb_spill_read(&g->moments[g->current], at, nb_sym_rest_rows(n_rows), g_g->a, err);
    if (s != NB_OK)
        nb_sym_free(g_g);
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
    uint64_t moments = g->moments_hash;
    if (s == NB_OK && g->n_done > 0 && job->outputs)
        s = survey_moments(g, &moments, err);
    if (s == NB_MEMORY)
        return s;
    if (s != NB_OK || moments != g->moments_hash || g->n_done > job->n_seqs || hash != g->hash)
        g->n_done = 0;
    g->hash = g->n_done == 0 ? 0 : hash;
    g->moments_hash = g->n_done == 0 ? 0 : moments;
    return NB_OK;
}

static nb_status make(nb_guide *g, const nb_guide_job *job, nb_err *err)
{
    nb_config c;
    uint64_t hash;
    NB_TRY(nb_config_read(job->store, &c, err));
    g->config = c;
    g->n_layers = c.n_layers;
    g->n_tokens = 0;
    for (int64_t i = 0; i < job->n_seqs; i++)
        g->n_tokens += job->seqs[i].n;
    NB_TRY(NB_ALLOC(&g->mean, c.n_layers * NB_N_POINTS, err));
    NB_TRY(nb_workdir_spill(job->dir, "guide", NB_N_POINTS * sizeof(float),
                            c.n_layers * g->n_tokens, &g->file, err));
    for (int i = 0; job->outputs && i < 2; i++)
        NB_TRY(nb_workdir_spill(job->dir, i == 0 ? "guide-even" : "guide-odd", sizeof(double),
                                c.n_layers * moments_at(&c, NB_N_LINEARS), &g->moments[i], err));
    for (int64_t i = 0, n; i < g->n_done && i < job->n_seqs; g->current = 1 - g->current)
        i = batch_end(job->seqs, job->n_seqs, i, &n);
    NB_TRY(check_done(g, job, err));
    if (g->n_done < job->n_seqs)
        NB_TRY(run_batches(g, job, err));
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
