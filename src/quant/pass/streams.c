/* See streams.h. */
#include "quant/pass/streams.h"

#include "quant/weight/embedding.h"

#include <string.h>

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t d_q_of(const nb_config *c)
{
    return c->n_heads * c->head_dim;
}

/* ---- opening ---- */

int64_t nb_streams_memory(const nb_config *c, int64_t max_len, int64_t max_rows, int n_streams,
                          int n_threads)
{
    nb_config two = *c;
    two.n_layers = n_streams;
    const nb_model like = {.config = two, .n_ctx = max_len};
    const int64_t page =
        2 * n_streams * c->n_kv_heads * (int64_t)nb_kv_head_bytes(NB_KV_F32, (int)c->head_dim);
    return nb_work_bytes(&like, n_threads, max_rows) + nb_kv_pages_for(max_len) * page +
           (n_streams - 1) * max_rows * larger(larger(c->d_model, c->d_ff), d_q_of(c)) * 4;
}

int64_t nb_streams_disk(const nb_config *c, int64_t n_tokens, int n_streams, bool in_parts)
{
    const int64_t inside = in_parts ? d_q_of(c) + c->d_ff : 0;
    return n_tokens * n_streams * 4 * (2 * c->d_model + inside);
}

static nb_status open_stream(nb_streams *s, int i, bool in_parts, const nb_workdir *dir,
                             nb_err *err)
{
    static const char *const names[2][4] = {{"x0-even", "x0-odd", "x0-attention", "x0-ffn"},
                                            {"x1-even", "x1-odd", "x1-attention", "x1-ffn"}};
    const nb_config *c = &s->frame.config;
    nb_stream *t = &s->stream[i];
    const struct {
        nb_spill *out;
        int64_t n_cols;
    } files[] = {
        {&t->x[0], c->d_model}, {&t->x[1], c->d_model}, {&t->att, d_q_of(c)}, {&t->act, c->d_ff}};
    for (int j = 0; j < (in_parts ? 4 : 2); j++)
        NB_TRY(nb_workdir_spill(dir, names[i][j], (size_t)files[j].n_cols * sizeof(float),
                                s->n_tokens, files[j].out, err));
    return NB_OK;
}

nb_status nb_streams_open(nb_streams *s, nb_store *store, const nb_calib_seq *seqs, int64_t n_seqs,
                          int n_streams, bool in_parts, int64_t max_rows, const nb_workdir *dir,
                          nb_algebra *la, nb_err *err)
{
    *s = (nb_streams){.path = nb_store_path(store),
                      .la = la,
                      .seqs = seqs,
                      .n_seqs = n_seqs,
                      .n_streams = n_streams,
                      .max_rows = max_rows};
    for (int i = 0; i < 2; i++)
        s->stream[i] =
            (nb_stream){{NB_SPILL_CLOSED, NB_SPILL_CLOSED}, NB_SPILL_CLOSED, NB_SPILL_CLOSED, 0};
    int64_t longest = 1;
    nb_status status;
    NB_TRY_GOTO(status, NB_ALLOC(&s->first_row, n_seqs + 1, err));
    for (int64_t i = 0; i < n_seqs; i++) {
        s->first_row[i + 1] = s->first_row[i] + seqs[i].n;
        longest = larger(longest, seqs[i].n);
    }
    s->n_tokens = s->first_row[n_seqs];
    NB_TRY_GOTO(status, nb_model_open_frame(&s->frame, store, n_streams, longest, err));
    const nb_config *c = &s->frame.config;
    NB_TRY_GOTO(status, nb_work_init(&s->work, &s->frame, la->kernels, la->pool, max_rows, err));
    NB_TRY_GOTO(status, nb_kv_pool_init(&s->kv, c, NB_KV_F32, nb_kv_pages_for(longest), err));
    NB_TRY_GOTO(status, nb_kv_seq_init(&s->seq, &s->kv, longest, err));
    if (n_streams > 1)
        NB_TRY_GOTO(
            status,
            NB_ALLOC(&s->other, max_rows * larger(larger(c->d_model, c->d_ff), d_q_of(c)), err));
    NB_TRY_GOTO(status, NB_ALLOC(&s->weights, max_rows, err));
    for (int i = 0; i < n_streams; i++)
        NB_TRY_GOTO(status, open_stream(s, i, in_parts, dir, err));
done:
    if (status != NB_OK)
        nb_streams_close(s);
    return status;
}

void nb_streams_close(nb_streams *s)
{
    for (int i = 0; i < 2; i++) {
        nb_stream *t = &s->stream[i];
        nb_spill_close(&t->x[0]);
        nb_spill_close(&t->x[1]);
        nb_spill_close(&t->att);
        nb_spill_close(&t->act);
    }
    nb_kv_seq_free(&s->seq);
    nb_kv_pool_free(&s->kv);
    nb_work_free(&s->work);
    for (int i = 0; s->frame.layers != NULL && i < s->n_streams; i++) {
        for (int j = 0; j < NB_N_LINEARS; j++)
            nb_model_drop_linear(&s->frame, i, (nb_linear_id)j);
    }
    nb_model_close(&s->frame);
    nb_free(s->first_row);
    nb_free(s->other);
    nb_free(s->weights);
    s->first_row = NULL;
    s->other = s->weights = NULL;
}

/* ---- embedding ---- */

static nb_status embed_rows(nb_streams *s, nb_embedding *e, nb_err *err)
{
    float *x = s->work.x;
    for (int64_t q = 0; q < s->n_seqs; q++) {
        const nb_calib_seq *seq = &s->seqs[q];
        for (int64_t begin = 0; begin < seq->n; begin += s->max_rows) {
            const int64_t left = seq->n - begin, n = left < s->max_rows ? left : s->max_rows;
            NB_TRY(nb_embedding_rows(e, seq->ids + begin, n, x, err));
            for (int i = 0; i < s->n_streams; i++) {
                const nb_spill *to = &s->stream[i].x[0];
                NB_TRY(nb_spill_write(to, s->first_row[q] + begin, n, x, err));
                s->stream[i].hash ^= nb_spill_hash(to, s->first_row[q] + begin, n, x);
            }
        }
    }
    return NB_OK;
}

nb_status nb_streams_embed(nb_streams *s, nb_store *store, nb_err *err)
{
    nb_embedding e;
    NB_TRY(nb_embedding_open(&e, store, &s->frame.config, err));
    for (int i = 0; i < s->n_streams; i++)
        s->stream[i].hash = 0;
    const nb_status status = embed_rows(s, &e, err);
    nb_embedding_close(&e);
    s->layer = 0;
    return status;
}

nb_status nb_streams_check(nb_streams *s, int i, uint64_t *hash, nb_err *err)
{
    const nb_spill *x = &s->stream[i].x[s->layer % 2];
    *hash = 0;
    for (int64_t row = 0; row < s->n_tokens; row += s->max_rows) {
        const int64_t left = s->n_tokens - row, n = left < s->max_rows ? left : s->max_rows;
        NB_TRY(nb_spill_read_on(s->la->pool, x, row, n, s->work.x, err));
        *hash ^= nb_spill_hash_on(s->la->pool, x, row, n, s->work.x);
    }
    return NB_OK;
}

/* ---- pieces ---- */

double nb_part_flops(const nb_config *c, nb_block_part part, double mean_context)
{
    const double d = (double)c->d_model, d_q = (double)d_q_of(c), ff = (double)c->d_ff;
    const double d_kv = (double)(c->n_kv_heads * c->head_dim);
    switch (part) {
    case NB_PART_ATTEND:
        return 2 * d * (d_q + 2 * d_kv) + 4 * d_q * mean_context;
    case NB_PART_O:
        return 2 * d * d_q;
    case NB_PART_GATE_UP:
        return 4 * d * ff;
    case NB_PART_DOWN:
        return 2 * d * ff;
    case NB_N_PARTS:
        break;
    }
    return 0;
}

/* Rows that one thread norms at a time. */
#define NORMED_ROWS 16

/* A piece of a sequence. */
typedef struct {
    const nb_calib_seq *seq;
    int64_t row, n, begin; /* row: in the files */
} piece;

static nb_status tell(nb_streams *s, double flops, nb_err *err)
{
    if (s->progress == NULL || s->progress(s->context, flops))
        return NB_OK;
    return nb_fail(err, NB_INTERRUPTED, "interrupted");
}

static nb_status run_part(nb_streams *s, int i, const piece *p, nb_block_part part, nb_err *err)
{
    const nb_step_input in = {.seq = &s->seq, .n_tokens = p->n};
    if (nb_forward_part(&s->work, &in, 1, i, part, err) != NB_OK)
        return nb_context(err, "%s: layer %lld", s->path, (long long)s->layer);
    const double context = (double)p->begin + (double)p->n / 2;
    return tell(s, (double)p->n * nb_part_flops(&s->frame.config, part, context), err);
}

typedef struct {
    nb_streams *s;
    const float *gain;
    int64_t n;
} norming;

static void norm_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const norming *job = context;
    const nb_work *w = &job->s->work;
    const nb_config *c = &job->s->frame.config;
    const int64_t end = chunk * NORMED_ROWS + NORMED_ROWS;
    for (int64_t t = chunk * NORMED_ROWS; t < end && t < job->n; t++)
        w->kernels->rmsnorm(w->h + t * c->d_model, w->x + t * c->d_model, job->gain, c->d_model,
                            c->rms_eps);
}

/* The normed rows of x, in work.h. */
static void norm(nb_streams *s, const float *gain, int64_t n)
{
    norming job = {s, gain, n};
    nb_pool_run(s->la->pool, (n + NORMED_ROWS - 1) / NORMED_ROWS, norm_chunk, &job);
}

static nb_status write_x(nb_streams *s, int i, const piece *p, bool hashed, nb_err *err)
{
    nb_stream *t = &s->stream[i];
    const nb_spill *to = &t->x[(s->layer + 1) % 2];
    NB_TRY(nb_spill_write_on(s->la->pool, to, p->row, p->n, s->work.x, err));
    if (hashed)
        t->hash ^= nb_spill_hash_on(s->la->pool, to, p->row, p->n, s->work.x);
    return NB_OK;
}

/* Takes stream i to a point; *rows are its rows there. */
static nb_status reach(nb_streams *s, int i, const piece *p, nb_point point, const float **rows,
                       nb_err *err)
{
    nb_stream *t = &s->stream[i];
    nb_work *w = &s->work;
    const nb_layer *layer = &s->frame.layers[i];
    const nb_spill *before = &t->x[s->layer % 2], *after = &t->x[(s->layer + 1) % 2];
    switch (point) {
    case NB_AT_ATTN:
        NB_TRY(nb_spill_read_on(s->la->pool, before, p->row, p->n, w->x, err));
        norm(s, layer->attn_norm, p->n);
        *rows = w->h;
        return NB_OK;
    case NB_AT_O:
        NB_TRY(nb_spill_read_on(s->la->pool, before, p->row, p->n, w->x, err));
        NB_TRY(run_part(s, i, p, NB_PART_ATTEND, err));
        *rows = w->att;
        return nb_spill_write_on(s->la->pool, &t->att, p->row, p->n, w->att, err);
    case NB_AT_FFN:
        NB_TRY(nb_spill_read_on(s->la->pool, before, p->row, p->n, w->x, err));
        NB_TRY(nb_spill_read_on(s->la->pool, &t->att, p->row, p->n, w->att, err));
        NB_TRY(run_part(s, i, p, NB_PART_O, err));
        NB_TRY(write_x(s, i, p, false, err));
        norm(s, layer->ffn_norm, p->n);
        *rows = w->h;
        return NB_OK;
    case NB_AT_DOWN:
        NB_TRY(nb_spill_read_on(s->la->pool, after, p->row, p->n, w->x, err));
        NB_TRY(run_part(s, i, p, NB_PART_GATE_UP, err));
        *rows = w->gate;
        return nb_spill_write_on(s->la->pool, &t->act, p->row, p->n, w->gate, err);
    case NB_N_POINTS:
        break;
    }
    NB_TRY(nb_spill_read_on(s->la->pool, after, p->row, p->n, w->x, err));
    NB_TRY(nb_spill_read_on(s->la->pool, &t->act, p->row, p->n, w->gate, err));
    NB_TRY(run_part(s, i, p, NB_PART_DOWN, err));
    *rows = w->x;
    return write_x(s, i, p, true, err);
}

/* Multiply-adds of statistics count as two operations each. */
static double stats_flops(const nb_input_stats *stats, int64_t n)
{
    const double square = (double)stats->n_cols * (double)stats->n_cols * (double)n;
    return (stats->h.a != NULL ? square : 0) + (stats->cross != NULL ? 2 * square : 0);
}

static nb_status add_stats(nb_streams *s, nb_point point, nb_input_stats *stats, const piece *p,
                           const float *x, const float *x0, nb_err *err)
{
    if (stats == NULL)
        return NB_OK;
    if (s->guide != NULL)
        NB_TRY(nb_guide_weights(s->guide, s->layer, point, p->row, p->n, s->weights, err));
    NB_TRY(nb_input_stats_add(stats, s->la, x, x0, s->guide != NULL ? s->weights : NULL, p->n,
                              p->seq->held, err));
    if (stats->range != NULL && p->begin + p->n == p->seq->n) /* averages are over sequences */
        nb_observer_end_batch(&stats->range->all);
    return tell(s, stats_flops(stats, p->n), err);
}

static nb_status all_to_point(nb_streams *s, const piece *p, nb_point point, nb_input_stats *stats,
                              nb_err *err)
{
    const float *rows = NULL;
    for (int i = s->n_streams - 1; i >= 0; i--) {
        NB_TRY(reach(s, i, p, point, &rows, err));
        if (i > 0 && stats != NULL)
            memcpy(s->other, rows,
                   (size_t)(p->n * nb_point_n_cols(&s->frame.config, point)) * sizeof(float));
    }
    return add_stats(s, point, stats, p, rows, s->n_streams > 1 ? s->other : NULL, err);
}

/* Calls `each` for all pieces of all sequences; the cache holds what came before in a sequence. */
typedef nb_status piece_fn(nb_streams *s, const piece *p, void *context, nb_err *err);

static nb_status for_pieces(nb_streams *s, piece_fn *each, void *context, nb_err *err)
{
    nb_status status = NB_OK;
    for (int64_t q = 0; q < s->n_seqs && status == NB_OK; q++) {
        const nb_calib_seq *seq = &s->seqs[q];
        nb_kv_seq_truncate(&s->seq, 0);
        for (int64_t begin = 0; begin < seq->n && status == NB_OK; begin += s->max_rows) {
            const int64_t left = seq->n - begin;
            const piece p = {.seq = seq,
                             .row = s->first_row[q] + begin,
                             .n = left < s->max_rows ? left : s->max_rows,
                             .begin = begin};
            s->seq.n = begin;
            status = each(s, &p, context, err);
        }
    }
    nb_kv_seq_truncate(&s->seq, 0);
    return status;
}

typedef struct {
    nb_point point;
    nb_input_stats *stats;
} point_job;

static nb_status piece_to_point(nb_streams *s, const piece *p, void *context, nb_err *err)
{
    const point_job *job = context;
    return all_to_point(s, p, job->point, job->stats, err);
}

nb_status nb_streams_to_point(nb_streams *s, nb_point point, nb_input_stats *stats, nb_err *err)
{
    point_job job = {point, stats};
    return for_pieces(s, piece_to_point, &job, err);
}

nb_status nb_streams_to_end(nb_streams *s, nb_err *err)
{
    point_job job = {NB_N_POINTS, NULL};
    for (int i = 0; i < s->n_streams; i++)
        s->stream[i].hash = 0;
    return for_pieces(s, piece_to_point, &job, err);
}

void nb_streams_next(nb_streams *s)
{
    s->layer++;
}

/* ---- sweeps ---- */

typedef struct {
    int i;
    nb_input_stats *const *stats;
    bool keep;
} sweep_job;

static nb_status sweep_piece(nb_streams *s, const piece *p, void *context, nb_err *err)
{
    const sweep_job *job = context;
    const nb_layer *layer = &s->frame.layers[job->i];
    nb_work *w = &s->work;
    NB_TRY(
        nb_spill_read_on(s->la->pool, &s->stream[job->i].x[s->layer % 2], p->row, p->n, w->x, err));
    if (job->stats[NB_AT_ATTN] != NULL)
        norm(s, layer->attn_norm, p->n);
    NB_TRY(add_stats(s, NB_AT_ATTN, job->stats[NB_AT_ATTN], p, w->h, NULL, err));
    NB_TRY(run_part(s, job->i, p, NB_PART_ATTEND, err));
    if (s->see_heads != NULL)
        NB_TRY(s->see_heads(s->heads_context, w->k, w->v, p->n, p->begin + p->n == p->seq->n, err));
    NB_TRY(add_stats(s, NB_AT_O, job->stats[NB_AT_O], p, w->att, NULL, err));
    NB_TRY(run_part(s, job->i, p, NB_PART_O, err));
    if (job->stats[NB_AT_FFN] != NULL)
        norm(s, layer->ffn_norm, p->n);
    NB_TRY(add_stats(s, NB_AT_FFN, job->stats[NB_AT_FFN], p, w->h, NULL, err));
    NB_TRY(run_part(s, job->i, p, NB_PART_GATE_UP, err));
    NB_TRY(add_stats(s, NB_AT_DOWN, job->stats[NB_AT_DOWN], p, w->gate, NULL, err));
    if (!job->keep)
        return NB_OK;
    NB_TRY(run_part(s, job->i, p, NB_PART_DOWN, err));
    return write_x(s, job->i, p, true, err);
}

nb_status nb_streams_sweep(nb_streams *s, int i, nb_input_stats *const stats[NB_N_POINTS],
                           bool keep, nb_err *err)
{
    sweep_job job = {i, stats, keep};
    if (keep)
        s->stream[i].hash = 0;
    return for_pieces(s, sweep_piece, &job, err);
}

/* ---- statistics alone ---- */

typedef struct {
    nb_point point;
    nb_input_stats *stats;
    bool held;
} gathering;

static nb_status rows_at_point(nb_streams *s, const piece *p, nb_point point, const float **rows,
                               nb_err *err)
{
    const nb_stream *t = &s->stream[0];
    const nb_layer *layer = &s->frame.layers[0];
    nb_work *w = &s->work;
    const bool before = point == NB_AT_ATTN;
    if (point == NB_AT_O || point == NB_AT_DOWN) {
        float *to = point == NB_AT_O ? w->att : w->gate;
        *rows = to;
        return nb_spill_read_on(s->la->pool, point == NB_AT_O ? &t->att : &t->act, p->row, p->n, to,
                                err);
    }
    NB_TRY(nb_spill_read_on(s->la->pool, &t->x[before ? s->layer % 2 : (s->layer + 1) % 2], p->row,
                            p->n, w->x, err));
    norm(s, before ? layer->attn_norm : layer->ffn_norm, p->n);
    *rows = w->h;
    return NB_OK;
}

static nb_status gather_piece(nb_streams *s, const piece *p, void *context, nb_err *err)
{
    const gathering *job = context;
    const float *rows;
    if (job->held && !p->seq->held)
        return NB_OK;
    NB_TRY(rows_at_point(s, p, job->point, &rows, err));
    if (!job->held)
        return add_stats(s, job->point, job->stats, p, rows, NULL, err);
    if (s->guide != NULL)
        NB_TRY(nb_guide_weights(s->guide, s->layer, job->point, p->row, p->n, s->weights, err));
    NB_TRY(nb_input_stats_add_held(job->stats, s->la, rows, s->guide != NULL ? s->weights : NULL,
                                   p->n, err));
    return tell(s, 0, err);
}

nb_status nb_streams_gather(nb_streams *s, nb_point point, nb_input_stats *stats, bool held,
                            nb_err *err)
{
    gathering job = {point, stats, held};
    return for_pieces(s, gather_piece, &job, err);
}
