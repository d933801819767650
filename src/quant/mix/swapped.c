/* See swapped.h. */
#include "quant/mix/swapped.h"

#include "base/fpenv.h"
#include "kernel/math.h"
#include "quant/inputs/stats.h"
#include "quant/pass/streams.h"
#include "quant/weight/embedding.h"
#include "quant/weight/room.h"
#include "quant/weight/widen.h"

#include <math.h>
#include <string.h>

#define SLICE_ROWS 64 /* positions whose logits are held at a time */

struct nb_swapped {
    nb_swapped_job job;
    nb_model model;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    nb_algebra la;
    int64_t n_layers, n_tokens, longest;
    nb_spill x, base;            /* [n_layers * n_tokens][d_model]; [n_tokens][vocab] */
    nb_input_stats *stats;       /* [n_layers][NB_N_POINTS], of the original */
    nb_linear *original;         /* [n_layers][NB_N_LINEARS], where swapped */
    bool *swapped;               /* [n_layers][NB_N_LINEARS] */
    float *logits, *base_logits; /* [SLICE_ROWS][vocab] */
    float *values;               /* a weight in full precision */
    int64_t n_values;
    double *kl; /* [n_tokens] */
    nb_loaded source, made;
};

static int64_t longest_of(const nb_swapped_job *job, int64_t *n_tokens)
{
    int64_t longest = 1;
    *n_tokens = 0;
    for (int64_t q = 0; q < job->n_seqs; q++) {
        longest = job->seqs[q].n > longest ? job->seqs[q].n : longest;
        *n_tokens += job->seqs[q].n;
    }
    return longest;
}

nb_status nb_swapped_estimate(nb_swapped_plan *out, const nb_swapped_job *job, nb_err *err)
{
    int64_t n_tokens, weights = 0, largest = 0;
    const int64_t longest = longest_of(job, &n_tokens);
    nb_model like = {.n_ctx = longest};
    NB_TRY(nb_config_read(job->store, &like.config, err));
    const nb_config *c = &like.config;
    for (int64_t i = 0; i < nb_store_n_weights(job->store); i++) {
        const nb_weight *w = nb_store_weight(job->store, i);
        weights += w->bytes;
        largest = w->n_rows * w->n_cols > largest && w->n_rows != c->vocab_size
                      ? w->n_rows * w->n_cols
                      : largest;
    }
    const int64_t page =
        2 * c->n_layers * c->n_kv_heads * (int64_t)nb_kv_head_bytes(NB_KV_F32, (int)c->head_dim);
    *out = (nb_swapped_plan){
        .memory = ((int64_t)48 << 20) + weights + 12 * largest +
                  nb_work_bytes(&like, nb_pool_n_threads(job->pool), longest) +
                  nb_kv_pages_for(longest) * page + 2 * SLICE_ROWS * c->vocab_size * 4,
        .disk = 4 * n_tokens * (c->n_layers * c->d_model + c->vocab_size),
        .head_flops = 2.0 * (double)c->d_model * (double)c->vocab_size,
    };
    for (int p = 0; p < NB_N_PARTS; p++)
        out->block_flops += nb_part_flops(c, (nb_block_part)p, (double)longest / 2);
    if (job->memory != 0 && out->memory > job->memory)
        return nb_fail(err, NB_LIMIT,
                       "measuring what each layer costs needs the whole model in memory, about "
                       "%lld MB, and --memory is %lld MB",
                       (long long)(out->memory >> 20), (long long)(job->memory >> 20));
    return NB_OK;
}

/* ---- running ---- */

static nb_status tell(nb_swapped *s, double flops, nb_err *err)
{
    if (s->job.progress == NULL || s->job.progress(s->job.context, flops))
        return NB_OK;
    return nb_fail(err, NB_INTERRUPTED, "interrupted");
}

static nb_status run_part(nb_swapped *s, int64_t layer, nb_block_part part, int64_t n, nb_err *err)
{
    const nb_step_input in = {.seq = &s->seq, .n_tokens = n};
    NB_TRY(nb_forward_part(&s->work, &in, 1, layer, part, err));
    return tell(s, (double)n * nb_part_flops(&s->model.config, part, (double)n / 2), err);
}

static void norm(nb_swapped *s, const float *gain, int64_t n)
{
    const nb_config *c = &s->model.config;
    const uint64_t env = nb_fpenv_enter();
    for (int64_t t = 0; t < n; t++)
        s->work.kernels->rmsnorm(s->work.h + t * c->d_model, s->work.x + t * c->d_model, gain,
                                 c->d_model, c->rms_eps);
    nb_fpenv_leave(env);
}

static nb_status run_block(nb_swapped *s, int64_t layer, int64_t n, nb_err *err)
{
    for (int part = 0; part < NB_N_PARTS; part++)
        NB_TRY(run_part(s, layer, (nb_block_part)part, n, err));
    return NB_OK;
}

/* A block of the original, with sums over the inputs of its linears. */
static nb_status run_original(nb_swapped *s, int64_t layer, int64_t n, nb_err *err)
{
    const nb_layer *l = &s->model.layers[layer];
    nb_input_stats *stats = s->stats + layer * NB_N_POINTS;
    nb_work *w = &s->work;
    norm(s, l->attn_norm, n);
    NB_TRY(nb_input_stats_add(&stats[NB_AT_ATTN], &s->la, w->h, NULL, NULL, n, false, err));
    NB_TRY(run_part(s, layer, NB_PART_ATTEND, n, err));
    NB_TRY(nb_input_stats_add(&stats[NB_AT_O], &s->la, w->att, NULL, NULL, n, false, err));
    NB_TRY(run_part(s, layer, NB_PART_O, n, err));
    norm(s, l->ffn_norm, n);
    NB_TRY(nb_input_stats_add(&stats[NB_AT_FFN], &s->la, w->h, NULL, NULL, n, false, err));
    NB_TRY(run_part(s, layer, NB_PART_GATE_UP, n, err));
    NB_TRY(nb_input_stats_add(&stats[NB_AT_DOWN], &s->la, w->gate, NULL, NULL, n, false, err));
    return run_part(s, layer, NB_PART_DOWN, n, err);
}

/* ---- from hidden states to divergence ---- */

typedef struct {
    const nb_kernels *k;
    int64_t vocab;
    const float *logits, *base;
    double *kl;
} slice;

static void slice_row(void *context, int64_t row, int thread)
{
    (void)thread;
    const slice *j = context;
    const float *p = j->base + row * j->vocab, *q = j->logits + row * j->vocab;
    float p_max, q_max;
    double p_sum, q_sum;
    const uint64_t env = nb_fpenv_enter();
    j->k->softmax_stats(p, j->vocab, &p_max, &p_sum);
    j->k->softmax_stats(q, j->vocab, &q_max, &q_sum);
    j->kl[row] =
        j->k->kl(p, p_max, (float)nb_log64(p_sum), q, q_max, (float)nb_log64(q_sum), j->vocab);
    nb_fpenv_leave(env);
}

/* What the original itself cannot say is no loss of any swap. */
static nb_status check_finite(const nb_swapped *s, const float *logits, int64_t n, nb_err *err)
{
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(logits[i]))
            return nb_fail(err, NB_DATA,
                           "%s: the logits of the model as it is hold Inf or NaN, and nothing can "
                           "be compared with them",
                           nb_store_path(s->job.store));
    }
    return NB_OK;
}

/* The logits of the n states in work.x: kept as the original's, or compared with those. */
static nb_status run_head(nb_swapped *s, int64_t row, int64_t n, bool keep, nb_err *err)
{
    const nb_config *c = &s->model.config;
    norm(s, s->model.norm, n);
    for (int64_t first = 0; first < n; first += SLICE_ROWS) {
        const int64_t left = n - first, count = left < SLICE_ROWS ? left : SLICE_ROWS;
        const uint64_t env = nb_fpenv_enter();
        nb_logits(&s->work, s->work.h + first * c->d_model, count, s->logits);
        nb_fpenv_leave(env);
        if (keep) {
            NB_TRY(check_finite(s, s->logits, count * c->vocab_size, err));
            NB_TRY(nb_spill_write(&s->base, row + first, count, s->logits, err));
        } else {
            NB_TRY(nb_spill_read(&s->base, row + first, count, s->base_logits, err));
            slice j = {.k = s->job.kernels,
                       .vocab = c->vocab_size,
                       .logits = s->logits,
                       .base = s->base_logits,
                       .kl = s->kl + row + first};
            nb_pool_run(s->job.pool, count, slice_row, &j);
        }
        NB_TRY(tell(s, (double)count * 2 * (double)c->d_model * (double)c->vocab_size, err));
    }
    return NB_OK;
}

/* One sequence through the blocks from `layer` on. */
static nb_status run_seq(nb_swapped *s, int64_t layer, int64_t row, int64_t n, bool original,
                         nb_err *err)
{
    s->seq.n = 0;
    if (!original)
        NB_TRY(nb_spill_read(&s->x, layer * s->n_tokens + row, n, s->work.x, err));
    for (; layer < s->n_layers; layer++) {
        if (original)
            NB_TRY(nb_spill_write(&s->x, layer * s->n_tokens + row, n, s->work.x, err));
        NB_TRY(original ? run_original(s, layer, n, err) : run_block(s, layer, n, err));
    }
    nb_kv_seq_truncate(&s->seq, 0);
    return run_head(s, row, n, original, err);
}

nb_status nb_swapped_kl(nb_swapped *s, int64_t layer, double *kl, nb_err *err)
{
    double sum = 0;
    int64_t row = 0;
    for (int64_t q = 0; q < s->job.n_seqs; q++) {
        NB_TRY(run_seq(s, layer, row, s->job.seqs[q].n, false, err));
        row += s->job.seqs[q].n;
    }
    for (int64_t t = 0; t < s->n_tokens; t++)
        sum += s->kl[t];
    *kl = sum / (double)s->n_tokens;
    if (!isfinite(*kl))
        return nb_fail(err, NB_DATA, "the logits hold Inf or NaN");
    return NB_OK;
}

/* ---- swapping ---- */

static nb_status load_values(nb_swapped *s, const nb_weight *from, nb_err *err)
{
    const int64_t n = from->n_rows * from->n_cols;
    NB_TRY(nb_store_read(s->job.store, from, &s->source, err));
    if (s->n_values < n) {
        nb_free(s->values);
        s->values = NULL;
        s->n_values = 0;
        NB_TRY(NB_ALLOC(&s->values, n, err));
        s->n_values = n;
    }
    return nb_widen_finite(s->job.store, from, 0, &s->source.mat, s->values, s->job.pool, err);
}

static nb_status encode(nb_swapped *s, const nb_input_stats *stats, const nb_weight *to,
                        const nb_method *method, nb_err *err)
{
    nb_mat_arrays arrays;
    NB_TRY(nb_room_for(&s->made, to, err));
    nb_mat_list_arrays(&s->made.mat, &arrays);
    for (int i = 0; i < arrays.n; i++)
        memset(arrays.array[i].data, 0, arrays.array[i].bytes);
    nb_group_job job = {.method = method, .stats = stats, .la = &s->la, .n = 1};
    job.linear[0].name = to->name;
    job.linear[0].weight = s->values;
    job.linear[0].n_rows = to->n_rows;
    job.linear[0].out = &s->made.mat;
    nb_group_result result;
    const uint64_t env = nb_fpenv_enter();
    const nb_status status = method->quantizer->encode_group(&job, &result, err);
    nb_fpenv_leave(env);
    return status;
}

static nb_point point_of(nb_linear_id id)
{
    return id <= NB_LINEAR_V      ? NB_AT_ATTN
           : id == NB_LINEAR_O    ? NB_AT_O
           : id == NB_LINEAR_DOWN ? NB_AT_DOWN
                                  : NB_AT_FFN;
}

nb_status nb_swapped_set(nb_swapped *s, int64_t layer, nb_linear_id id, const nb_weight *to,
                         const nb_method *method, nb_err *err)
{
    const nb_weight *from = nb_store_find(s->job.store, to->name);
    if (from == NULL)
        return nb_fail(err, NB_DATA, "%s: tensor '%.200s' is missing", nb_store_path(s->job.store),
                       to->name);
    NB_TRY(load_values(s, from, err));
    NB_TRY(encode(s, &s->stats[layer * NB_N_POINTS + point_of(id)], to, method, err));
    const int64_t at = layer * NB_N_LINEARS + id;
    nb_linear *linear = nb_layer_linear(&s->model.layers[layer], id);
    nb_swapped_restore(s, layer, id);
    s->original[at] = *linear;
    linear->w = (nb_panels){0};
    const nb_status status = nb_model_set_linear(
        &s->model, layer, id, &s->made.mat, &to->act,
        to->act.bits != 0 ? NB_COMPUTE_AUTO : NB_COMPUTE_ALL_F, s->job.pool, err);
    s->swapped[at] = true;
    if (status != NB_OK)
        nb_swapped_restore(s, layer, id);
    return status;
}

void nb_swapped_restore(nb_swapped *s, int64_t layer, nb_linear_id id)
{
    const int64_t at = layer * NB_N_LINEARS + id;
    if (!s->swapped[at])
        return;
    nb_model_drop_linear(&s->model, layer, id);
    *nb_layer_linear(&s->model.layers[layer], id) = s->original[at];
    s->swapped[at] = false;
}

void nb_swapped_restore_all(nb_swapped *s)
{
    for (int64_t layer = 0; s->swapped != NULL && layer < s->n_layers; layer++) {
        for (int id = 0; id < NB_N_LINEARS; id++)
            nb_swapped_restore(s, layer, (nb_linear_id)id);
    }
}

/* ---- opening ---- */

static nb_status open_stats(nb_swapped *s, nb_err *err)
{
    NB_TRY(NB_ALLOC(&s->stats, s->n_layers * NB_N_POINTS, err));
    for (int64_t i = 0; i < s->n_layers * NB_N_POINTS; i++)
        NB_TRY(nb_input_stats_init(&s->stats[i],
                                   nb_point_n_cols(&s->model.config, (nb_point)(i % NB_N_POINTS)),
                                   NB_STAT_MAGNITUDE, s->n_tokens, err));
    return NB_OK;
}

/* The original on all sequences: what the blocks get, and the logits. */
static nb_status run_originals(nb_swapped *s, nb_err *err)
{
    nb_embedding e;
    int64_t row = 0;
    nb_status status = nb_embedding_open(&e, s->job.store, &s->model.config, err);
    for (int64_t q = 0; q < s->job.n_seqs && status == NB_OK; q++) {
        const nb_calib_seq *seq = &s->job.seqs[q];
        status = nb_embedding_rows(&e, seq->ids, seq->n, s->work.x, err);
        if (status == NB_OK)
            status = run_seq(s, 0, row, seq->n, true, err);
        row += seq->n;
    }
    nb_embedding_close(&e);
    for (int64_t i = 0; i < s->n_layers * NB_N_POINTS; i++)
        nb_input_stats_finish(&s->stats[i]);
    return status;
}

static nb_status open(nb_swapped *s, nb_err *err)
{
    nb_swapped_plan plan;
    const nb_swapped_job *job = &s->job;
    if (s->n_tokens == 0)
        return nb_fail(err, NB_DATA, "no tokens to measure with");
    NB_TRY(nb_swapped_estimate(&plan, job, err));
    NB_TRY(nb_model_open(&s->model, job->store,
                         &(nb_model_options){.compute = NB_COMPUTE_ALL_F, .n_ctx = s->longest},
                         job->pool, err));
    const nb_config *c = &s->model.config;
    s->n_layers = c->n_layers;
    NB_TRY(nb_work_init(&s->work, &s->model, job->kernels, job->pool,
                        s->longest > SLICE_ROWS ? s->longest : SLICE_ROWS, err));
    NB_TRY(nb_kv_pool_init(&s->kv, c, NB_KV_F32, nb_kv_pages_for(s->longest), err));
    NB_TRY(nb_kv_seq_init(&s->seq, &s->kv, s->longest, err));
    NB_TRY(nb_workdir_spill(job->dir, "hidden", (size_t)c->d_model * sizeof(float),
                            s->n_layers * s->n_tokens, &s->x, err));
    NB_TRY(nb_workdir_spill(job->dir, "logits", (size_t)c->vocab_size * sizeof(float), s->n_tokens,
                            &s->base, err));
    NB_TRY(NB_ALLOC(&s->original, s->n_layers * NB_N_LINEARS, err));
    NB_TRY(NB_ALLOC(&s->swapped, s->n_layers * NB_N_LINEARS, err));
    NB_TRY(NB_ALLOC(&s->logits, SLICE_ROWS * c->vocab_size, err));
    NB_TRY(NB_ALLOC(&s->base_logits, SLICE_ROWS * c->vocab_size, err));
    NB_TRY(NB_ALLOC(&s->kl, s->n_tokens, err));
    NB_TRY(open_stats(s, err));
    return run_originals(s, err);
}

nb_status nb_swapped_open(nb_swapped **out, const nb_swapped_job *job, nb_err *err)
{
    nb_swapped *s;
    *out = NULL;
    NB_TRY(NB_ALLOC(&s, 1, err));
    s->job = *job;
    s->x = s->base = NB_SPILL_CLOSED;
    s->la = (nb_algebra){.kernels = job->kernels, .pool = job->pool};
    s->longest = longest_of(job, &s->n_tokens);
    const nb_status status = open(s, err);
    if (status == NB_OK)
        *out = s;
    else
        nb_swapped_close(s);
    return status;
}

void nb_swapped_close(nb_swapped *s)
{
    if (s == NULL)
        return;
    nb_swapped_restore_all(s);
    for (int64_t i = 0; s->stats != NULL && i < s->n_layers * NB_N_POINTS; i++)
        nb_input_stats_free(&s->stats[i]);
    nb_free(s->stats);
    nb_free(s->original);
    nb_free(s->swapped);
    nb_free(s->logits);
    nb_free(s->base_logits);
    nb_free(s->values);
    nb_free(s->kl);
    nb_loaded_free(&s->source);
    nb_loaded_free(&s->made);
    nb_spill_close(&s->x);
    nb_spill_close(&s->base);
    nb_kv_seq_free(&s->seq);
    nb_kv_pool_free(&s->kv);
    nb_work_free(&s->work);
    nb_model_close(&s->model);
    nb_algebra_free(&s->la);
    nb_free(s);
}
