/* See walk.h. */
#include "quant/walk.h"

#include "base/clock.h"
#include "base/fpenv.h"
#include "quant/room.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Weights as floats, of one linear. */
typedef struct {
    float *values; /* [n_rows][n_cols] */
    int64_t n;
} floats;

typedef struct {
    const nb_walk_job *job;
    nb_walk_result *result;
    nb_walk_plan plan;
    nb_streams streams;
    nb_algebra la;
    nb_config config;               /* of the whole model */
    bool quantized_flow, has_other; /* stream 0 is the quantized model; stream 1 the original */
    unsigned needs, transform_needs;
    int64_t layer;
    int64_t index[NB_N_LINEARS]; /* of the plan */
    int64_t gain_index[2], bias_index[NB_N_LINEARS];
    floats weight[NB_N_LINEARS]; /* where they are held: of the group at hand, or, with a
                                    transform, of the block */
    nb_loaded source, made[NB_N_LINEARS];
    nb_input_stats stats[NB_N_POINTS];
    double done, started;
    char what[64];
} walk;

bool nb_walk_wanted(const nb_method *method, const nb_transform *transform)
{
    unsigned needs = method->quantizer->needs;
    nb_err ignored = {0};
    if (method->quantizer->check != NULL)
        (void)method->quantizer->check(method, &needs, &ignored);
    return transform != NULL || needs != NB_STAT_NONE;
}

/* ---- what it takes ---- */

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Columns at a point, and rows of all linears that read there. */
static int64_t point_shape(const nb_config *c, nb_point point, int64_t *n_rows)
{
    const int64_t d_q = c->n_heads * c->head_dim, d_kv = c->n_kv_heads * c->head_dim;
    const int64_t rows[NB_N_POINTS] = {d_q + 2 * d_kv, c->d_model, 2 * c->d_ff, c->d_model};
    const int64_t cols[NB_N_POINTS] = {c->d_model, d_q, c->d_model, c->d_ff};
    *n_rows = rows[point];
    return cols[point];
}

/* The program, its tables, and what the encoder keeps beside the statistics. */
#define BASE_BYTES ((int64_t)48 << 20)

/* At the point where most is held: statistics, weights as floats and as codes, and what an encoder
 * makes of them: a factor, its feedback in binary32, and errors of the weights. */
static int64_t point_memory(const walk *w, nb_point point)
{
    int64_t n_rows;
    const int64_t n_cols = point_shape(&w->config, point, &n_rows);
    const int64_t stats = nb_input_stats_bytes(n_cols, w->needs);
    const int64_t factor = (w->needs & NB_STAT_HESSIAN) != 0 ? nb_sym_bytes(n_cols) * 3 / 2 : 0;
    return stats + factor + n_rows * n_cols * (4 + 4 + 2);
}

static int64_t block_memory(const walk *w)
{
    int64_t all = 0, most = 0;
    for (int p = 0; p < NB_N_POINTS; p++) {
        int64_t n_rows;
        const int64_t n_cols = point_shape(&w->config, (nb_point)p, &n_rows);
        most = larger(most, point_memory(w, (nb_point)p));
        if (w->job->transform != NULL)
            all += n_rows * n_cols * 4 + nb_input_stats_bytes(n_cols, w->transform_needs);
        else if (!w->quantized_flow)
            all += nb_input_stats_bytes(n_cols, w->needs) + n_rows * n_cols * 2;
    }
    return all + most;
}

static void estimate_flops(walk *w)
{
    const nb_walk_job *job = w->job;
    double tokens = 0, context = 0;
    for (int64_t i = 0; i < job->n_seqs; i++) {
        tokens += (double)job->seqs[i].n;
        context += (double)job->seqs[i].n * (double)job->seqs[i].n / 2;
    }
    const double mean_context = tokens > 0 ? context / tokens : 0;
    double block = 0, sums = 0, first_sums = 0;
    for (int p = 0; p < NB_N_PARTS; p++)
        block += nb_part_flops(&w->config, (nb_block_part)p, mean_context);
    for (int p = 0; p < NB_N_POINTS; p++) {
        int64_t n_rows;
        const double n = (double)point_shape(&w->config, (nb_point)p, &n_rows);
        const double h = (w->needs & NB_STAT_HESSIAN) != 0 ? n * n : 0;
        sums += h + ((w->needs & NB_STAT_CROSS) != 0 ? 2 * n * n : 0);
        first_sums += (w->transform_needs & NB_STAT_HESSIAN) != 0 ? n * n : 0;
    }
    double per_token = w->quantized_flow ? block * (w->has_other ? 2 : 1) + sums : block + sums;
    if (job->transform != NULL)
        per_token += (w->quantized_flow ? block : 0) + first_sums;
    w->plan.flops = tokens * per_token * (double)w->config.n_layers;
}

static nb_status set_up(walk *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    const nb_quantizer *q = job->method->quantizer;
    w->needs = q->needs;
    if (q->check != NULL)
        NB_TRY(q->check(job->method, &w->needs, err));
    w->transform_needs = job->transform != NULL ? job->transform->needs : 0;
    w->quantized_flow = job->flow == NB_FLOW_QUANTIZED ||
                        (job->flow == NB_FLOW_AUTO && (w->needs & NB_STAT_HESSIAN) != 0);
    w->has_other = (w->needs & NB_STAT_CROSS) != 0;
    if (w->has_other && !w->quantized_flow)
        return nb_fail(err, NB_USAGE,
                       "method %s compares the quantized model with the original one: it needs the "
                       "quantized flow",
                       q->name);
    NB_TRY(nb_config_read(job->store, &w->config, err));
    int64_t longest = 1, n_tokens = 0;
    for (int64_t i = 0; i < job->n_seqs; i++) {
        longest = larger(longest, job->seqs[i].n);
        n_tokens += job->seqs[i].n;
    }
    const int n_streams = w->has_other ? 2 : 1;
    const int64_t rest = BASE_BYTES + block_memory(w);
    w->plan.max_rows = NB_STREAMS_ROWS;
    for (;; w->plan.max_rows /= 2) {
        w->plan.memory = rest + nb_streams_memory(&w->config, longest, w->plan.max_rows, n_streams,
                                                  nb_pool_n_threads(job->pool));
        if (job->memory == 0 || w->plan.memory <= job->memory || w->plan.max_rows == 128)
            break;
    }
    w->plan.disk =
        nb_streams_disk(&w->config, n_tokens, n_streams, w->quantized_flow) + job->plan->bytes;
    if (job->memory != 0 && w->plan.memory > job->memory)
        return nb_fail(err, NB_LIMIT,
                       "method %s needs about %lld MB here, and --memory is %lld MB: fewer threads "
                       "or shorter sequences take less",
                       q->name, (long long)(w->plan.memory >> 20), (long long)(job->memory >> 20));
    estimate_flops(w);
    return NB_OK;
}

nb_status nb_walk_estimate(nb_walk_plan *out, const nb_walk_job *job, nb_err *err)
{
    walk w = {.job = job};
    NB_TRY(set_up(&w, err));
    *out = w.plan;
    return NB_OK;
}

/* ---- weights of the block at hand ---- */

static int64_t plan_index(const nb_plan *plan, const char *name)
{
    for (int64_t i = 0; i < plan->n; i++) {
        if (strcmp(plan->weights[i].name, name) == 0)
            return i;
    }
    return -1;
}

static void find_weights(walk *w)
{
    static const char *const gains[2] = {"input_layernorm", "post_attention_layernorm"};
    char name[128];
    const long long layer = (long long)w->layer;
    for (int j = 0; j < NB_N_LINEARS; j++) {
        const char *linear = nb_linear_name((nb_linear_id)j);
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", layer, linear);
        w->index[j] = plan_index(w->job->plan, name);
        snprintf(name, sizeof name, "model.layers.%lld.%s.bias", layer, linear);
        w->bias_index[j] = plan_index(w->job->plan, name);
    }
    for (int j = 0; j < 2; j++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", layer, gains[j]);
        w->gain_index[j] = plan_index(w->job->plan, name);
    }
}

static bool is_quantized(const walk *w, int j)
{
    return w->job->plan->how[w->index[j]] == NB_HOW_QUANTIZE;
}

static const nb_weight *source_of(const walk *w, int j)
{
    return w->job->plan->from[w->index[j]];
}

typedef struct {
    const nb_mat *from;
    float *to;
    int64_t bad_row; /* -1: none; first in the order of rows when the pool has ended */
    nb_kernels const *kernels;
} widening;

#define ROWS_PER_CHUNK 16

static void widen_rows(void *context, int64_t chunk, int thread)
{
    (void)thread;
    widening *job = context;
    const int64_t begin = chunk * ROWS_PER_CHUNK, n = job->from->n_cols;
    for (int64_t r = begin; r < begin + ROWS_PER_CHUNK && r < job->from->n_rows; r++)
        job->from->fmt->decode_row(job->from, r, job->to + r * n);
}

static nb_status refuse_nonfinite(const walk *w, const nb_weight *from, const float *x, nb_err *err)
{
    for (int64_t i = 0; i < from->n_rows * from->n_cols; i++) {
        if (!isfinite(x[i]))
            return nb_fail(err, NB_DATA, "%s: tensor '%.200s' holds %g at [%lld, %lld]",
                           nb_store_path(w->job->store), from->name, (double)x[i],
                           (long long)(i / from->n_cols), (long long)(i % from->n_cols));
    }
    return NB_OK;
}

/* Weight j in full precision; the source's matrix stays in w->source. */
static nb_status load_floats(walk *w, int j, nb_err *err)
{
    const nb_weight *from = source_of(w, j);
    floats *f = &w->weight[j];
    NB_TRY(nb_store_read(w->job->store, from, &w->source, err));
    if (f->n < from->n_rows * from->n_cols) {
        nb_free(f->values);
        *f = (floats){0};
        NB_TRY(NB_ALLOC(&f->values, from->n_rows * from->n_cols, err));
        f->n = from->n_rows * from->n_cols;
    }
    widening job = {.from = &w->source.mat, .to = f->values};
    nb_pool_run(w->job->pool, (from->n_rows + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK, widen_rows,
                &job);
    return refuse_nonfinite(w, from, f->values, err);
}

static void drop_floats(walk *w, int j)
{
    nb_free(w->weight[j].values);
    w->weight[j] = (floats){0};
}

/* The source's own weight into a slot. */
static nb_status set_original(walk *w, int slot, int j, nb_err *err)
{
    NB_TRY(nb_store_read(w->job->store, source_of(w, j), &w->source, err));
    return nb_model_set_linear(&w->streams.frame, slot, (nb_linear_id)j, &w->source.mat,
                               &(nb_act_spec){0}, NB_COMPUTE_ALL_F, w->job->pool, err);
}

/* The full-precision weight into slot 1: as transformed, because what the other stream feeds the
 * linears is compared with what stream 0 does. */
static nb_status set_other(walk *w, int j, nb_err *err)
{
    if (w->job->transform == NULL)
        return set_original(w, 1, j, err);
    const nb_weight *from = source_of(w, j);
    const nb_mat mat = {.fmt = &nb_format_f32,
                        .n_rows = from->n_rows,
                        .n_cols = from->n_cols,
                        .codes = w->weight[j].values,
                        .row_bytes = from->n_cols * (int64_t)sizeof(float)};
    return nb_model_set_linear(&w->streams.frame, 1, (nb_linear_id)j, &mat, &(nb_act_spec){0},
                               NB_COMPUTE_ALL_F, w->job->pool, err);
}

/* What was made of a weight into slot 0: in mode f, unless the scheme quantizes activations (A7).
 */
static nb_status set_made(walk *w, int j, nb_err *err)
{
    const nb_act_spec *act = &w->job->plan->weights[w->index[j]].act;
    return nb_model_set_linear(&w->streams.frame, 0, (nb_linear_id)j, &w->made[j].mat, act,
                               act->bits != 0 ? NB_COMPUTE_AUTO : NB_COMPUTE_ALL_F, w->job->pool,
                               err);
}

static void drop_linears(walk *w, nb_point point)
{
    int n;
    const nb_linear_id first = nb_point_linears(point, &n);
    for (int j = (int)first; j < (int)first + n; j++) {
        for (int slot = 0; slot < w->streams.n_streams; slot++)
            nb_model_drop_linear(&w->streams.frame, slot, (nb_linear_id)j);
    }
}

static nb_status load_norms(walk *w, nb_err *err)
{
    for (int slot = 0; slot < w->streams.n_streams; slot++)
        NB_TRY(nb_model_load_vectors(&w->streams.frame, w->job->store, slot, w->layer, err));
    return NB_OK;
}

/* ---- encoding ---- */

/* JSON of what is known of a linear that was quantized. */
static nb_status note_linear(walk *w, int j, double loss, double held_loss, const char *note,
                             double seconds, nb_err *err)
{
    const nb_weight *to = &w->job->plan->weights[w->index[j]];
    json_t *o = json_pack("{s:s, s:s, s:I, s:f}", "name", to->name, "format", to->fmt->name,
                          "bytes", (json_int_t)to->bytes, "seconds", seconds);
    bool bad = o == NULL;
    if (!bad && isfinite(loss))
        bad = json_object_set_new(o, "loss", json_real(loss)) != 0;
    if (!bad && isfinite(held_loss))
        bad = json_object_set_new(o, "held_out_loss", json_real(held_loss)) != 0;
    if (!bad && note != NULL && note[0] != 0)
        bad = json_object_set_new(o, "note", json_string(note)) != 0;
    if (bad || json_array_append_new(w->result->layers, o) != 0)
        return nb_fail(err, NB_MEMORY, "no memory for the report");
    return NB_OK;
}

static nb_status keep_made(walk *w, int j, nb_err *err)
{
    return nb_workdir_put_mat(w->job->dir, w->index[j], &w->made[j].mat, err);
}

/* Makes room for weight j in its new format, padding and all zero. */
static nb_status room_for(walk *w, int j, nb_err *err)
{
    const nb_weight *to = &w->job->plan->weights[w->index[j]];
    NB_TRY(nb_room_for(&w->made[j], to, err));
    nb_mat_arrays arrays;
    nb_mat_list_arrays(&w->made[j].mat, &arrays);
    for (int i = 0; i < arrays.n; i++)
        memset(arrays.array[i].data, 0, arrays.array[i].bytes);
    return NB_OK;
}

static nb_status encode_data_free(walk *w, int j, nb_err *err)
{
    const nb_weight *to = &w->job->plan->weights[w->index[j]];
    const nb_quant_job rows = {.method = w->job->method,
                               .weight = w->weight[j].values,
                               .n_rows = to->n_rows,
                               .n_cols = to->n_cols};
    const uint64_t env = nb_fpenv_enter();
    const nb_status s = w->job->method->quantizer->encode_rows(&rows, &w->made[j].mat, err);
    nb_fpenv_leave(env);
    return s;
}

/* A weight that the plan does not quantize, but a transform has changed. */
static void encode_plain(walk *w, int j)
{
    const nb_mat *to = &w->made[j].mat;
    for (int64_t r = 0; r < to->n_rows; r++)
        to->fmt->encode_row(&w->made[j].mat, r, w->weight[j].values + r * to->n_cols);
}

/* Chooses codes for the linears of a point from its statistics, and keeps them. */
static nb_status encode_point(walk *w, nb_point point, const nb_input_stats *stats, nb_err *err)
{
    const nb_quantizer *q = w->job->method->quantizer;
    const double start = nb_clock();
    int n;
    const int first = (int)nb_point_linears(point, &n);
    nb_group_job job = {.method = w->job->method, .stats = stats, .la = &w->la};
    int of_job[NB_GROUP_LINEARS];
    for (int j = first; j < first + n; j++) {
        const nb_weight *to = &w->job->plan->weights[w->index[j]];
        if (!is_quantized(w, j) && w->weight[j].values == NULL)
            continue;
        if (w->weight[j].values == NULL)
            NB_TRY(load_floats(w, j, err));
        NB_TRY(room_for(w, j, err));
        if (!is_quantized(w, j)) {
            encode_plain(w, j);
        } else if (q->encode_group != NULL) {
            of_job[job.n] = j;
            job.linear[job.n].name = to->name;
            job.linear[job.n].weight = w->weight[j].values;
            job.linear[job.n].n_rows = to->n_rows;
            job.linear[job.n++].out = &w->made[j].mat;
        } else {
            NB_TRY(encode_data_free(w, j, err));
            NB_TRY(note_linear(w, j, NAN, NAN, NULL, nb_clock() - start, err));
        }
    }
    if (job.n > 0) {
        nb_group_result r = {0};
        const uint64_t env = nb_fpenv_enter();
        const nb_status s = q->encode_group(&job, &r, err);
        nb_fpenv_leave(env);
        if (s != NB_OK)
            return nb_context(err, "layer %lld, %s", (long long)w->layer, nb_point_name(point));
        for (int k = 0; k < job.n; k++)
            NB_TRY(note_linear(w, of_job[k], r.loss[k], r.held_loss[k], r.note,
                               (nb_clock() - start) / job.n, err));
    }
    return NB_OK;
}

/* Keeps what was made at a point, and puts it (or the original) into slot 0 and the original into
 * slot 1, ready to go on. */
static nb_status keep_point(walk *w, nb_point point, bool go_on, nb_err *err)
{
    int n;
    const int first = (int)nb_point_linears(point, &n);
    for (int j = first; j < first + n; j++) {
        const bool made = is_quantized(w, j) || w->weight[j].values != NULL;
        if (made)
            NB_TRY(keep_made(w, j, err));
        if (go_on && made)
            NB_TRY(set_made(w, j, err));
        else if (go_on)
            NB_TRY(set_original(w, 0, j, err));
        if (go_on && w->has_other)
            NB_TRY(set_other(w, j, err));
        nb_loaded_free(&w->made[j]);
        w->made[j] = (nb_loaded){0};
        drop_floats(w, j);
    }
    return NB_OK;
}

static int64_t n_tokens(const walk *w)
{
    return w->streams.n_tokens;
}

static nb_status start_stats(walk *w, nb_point point, unsigned needs, nb_err *err)
{
    int64_t n_rows;
    const int64_t n_cols = point_shape(&w->config, point, &n_rows);
    return nb_input_stats_init(&w->stats[point], n_cols, needs, n_tokens(w), err);
}

static void end_stats(walk *w)
{
    for (int p = 0; p < NB_N_POINTS; p++)
        nb_input_stats_free(&w->stats[p]);
}

static bool any_quantized(const walk *w, nb_point point)
{
    int n;
    const int first = (int)nb_point_linears(point, &n);
    bool any = false;
    for (int j = first; j < first + n; j++)
        any = any || is_quantized(w, j);
    return any;
}

/* ---- transforms ---- */

static nb_status keep_vector(walk *w, int64_t index, const float *x, nb_err *err)
{
    const nb_weight *to = &w->job->plan->weights[index];
    nb_loaded made = {0};
    nb_status s = nb_room_for(&made, to, err);
    if (s == NB_OK) {
        to->fmt->encode_row(&made.mat, 0, x);
        s = nb_workdir_put_mat(w->job->dir, index, &made.mat, err);
    }
    nb_loaded_free(&made);
    return s;
}

/* Applies the transform to the block; its statistics at all points are there. */
static nb_status transform_block(walk *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    nb_layer *layer = &w->streams.frame.layers[0];
    nb_transform_job t = {.config = &w->config,
                          .la = &w->la,
                          .method = job->method,
                          .gain = {layer->attn_norm, layer->ffn_norm},
                          .options = job->transform_options};
    const nb_format *gain = job->plan->weights[w->gain_index[0]].fmt;
    t.gain_type = gain == &nb_format_f32 ? NB_F32 : gain == &nb_format_f16 ? NB_F16 : NB_BF16;
    for (int j = 0; j < NB_N_LINEARS; j++) {
        t.weight[j] = w->weight[j].values;
        t.bias[j] = nb_layer_linear(layer, (nb_linear_id)j)->bias;
        t.to[j] = is_quantized(w, j) ? &job->plan->weights[w->index[j]] : NULL;
    }
    for (int p = 0; p < NB_N_POINTS; p++)
        t.stats[p] = &w->stats[p];
    nb_transform_result r = {0};
    const uint64_t env = nb_fpenv_enter();
    const nb_status s = job->transform->apply(&t, &r, err);
    nb_fpenv_leave(env);
    if (s != NB_OK)
        return nb_context(err, "layer %lld", (long long)w->layer);
    for (int p = 0; p < NB_N_POINTS; p++) {
        json_t *o =
            json_pack("{s:s, s:I, s:s, s:s}", "transform", job->transform->name, "layer",
                      (json_int_t)w->layer, "point", nb_point_name((nb_point)p), "note", r.note[p]);
        bool bad = o == NULL;
        if (!bad && isfinite(r.before[p]) && isfinite(r.after[p]))
            bad = json_object_set_new(o, "loss_before", json_real(r.before[p])) != 0 ||
                  json_object_set_new(o, "loss_after", json_real(r.after[p])) != 0;
        if (bad || json_array_append_new(w->result->layers, o) != 0)
            return nb_fail(err, NB_MEMORY, "no memory for the report");
    }
    if (w->has_other) {
        nb_layer *other = &w->streams.frame.layers[1];
        other->attn_norm = layer->attn_norm;
        other->ffn_norm = layer->ffn_norm;
        for (int j = 0; j < NB_N_LINEARS; j++)
            nb_layer_linear(other, (nb_linear_id)j)->bias = t.bias[j];
    }
    for (int j = 0; j < 2; j++)
        NB_TRY(keep_vector(w, w->gain_index[j], t.gain[j], err));
    for (int j = 0; j < NB_N_LINEARS; j++) {
        if (t.bias[j] != NULL && w->bias_index[j] >= 0)
            NB_TRY(keep_vector(w, w->bias_index[j], t.bias[j], err));
    }
    return NB_OK;
}

/* ---- a block ---- */

static nb_status sweep(walk *w, unsigned needs, bool keep, nb_err *err)
{
    nb_input_stats *stats[NB_N_POINTS] = {0};
    for (int p = 0; p < NB_N_POINTS; p++) {
        if (needs != 0)
            NB_TRY(start_stats(w, (nb_point)p, needs, err));
        stats[p] = needs != 0 ? &w->stats[p] : NULL;
    }
    for (int j = 0; j < NB_N_LINEARS; j++)
        NB_TRY(set_original(w, 0, j, err));
    NB_TRY(nb_streams_sweep(&w->streams, 0, stats, keep, err));
    for (int p = 0; p < NB_N_POINTS; p++) {
        nb_input_stats_finish(&w->stats[p]);
        drop_linears(w, (nb_point)p);
    }
    return NB_OK;
}

/* The statistics of the full-precision model at all points, then all codes. */
static nb_status walk_original(walk *w, nb_err *err)
{
    NB_TRY(sweep(w, w->needs | w->transform_needs, true, err));
    if (w->job->transform != NULL) {
        for (int j = 0; j < NB_N_LINEARS; j++)
            NB_TRY(load_floats(w, j, err));
        NB_TRY(transform_block(w, err));
    }
    for (int p = 0; p < NB_N_POINTS; p++) {
        NB_TRY(encode_point(w, (nb_point)p, &w->stats[p], err));
        NB_TRY(keep_point(w, (nb_point)p, false, err));
        nb_input_stats_free(&w->stats[p]);
    }
    nb_streams_next(&w->streams);
    return NB_OK;
}

/* Point by point, each with what the quantized weights before it give. */
static nb_status walk_quantized(walk *w, nb_err *err)
{
    if (w->job->transform != NULL) {
        NB_TRY(sweep(w, w->transform_needs, false, err));
        for (int j = 0; j < NB_N_LINEARS; j++)
            NB_TRY(load_floats(w, j, err));
        NB_TRY(transform_block(w, err));
        end_stats(w);
    }
    for (int p = 0; p < NB_N_POINTS; p++) {
        const nb_point point = (nb_point)p;
        const bool wanted = w->needs != 0 && any_quantized(w, point);
        if (wanted)
            NB_TRY(start_stats(w, point, w->needs, err));
        NB_TRY(nb_streams_to_point(&w->streams, point, wanted ? &w->stats[p] : NULL, err));
        if (p > 0)
            drop_linears(w, (nb_point)(p - 1));
        nb_input_stats_finish(&w->stats[p]);
        NB_TRY(encode_point(w, point, &w->stats[p], err));
        nb_input_stats_free(&w->stats[p]);
        NB_TRY(keep_point(w, point, true, err));
    }
    NB_TRY(nb_streams_to_end(&w->streams, err));
    drop_linears(w, NB_AT_DOWN);
    return NB_OK;
}

/* ---- the state ---- */

static nb_status save(walk *w, nb_err *err)
{
    char hash[2][20];
    json_t *state = json_pack("{s:s, s:I, s:O}", "key", w->job->key, "next_layer",
                              (json_int_t)w->layer, "layers", w->result->layers);
    json_t *hashes = json_array();
    bool bad = state == NULL || hashes == NULL;
    for (int i = 0; i < w->streams.n_streams && !bad; i++) {
        snprintf(hash[i], sizeof hash[i], "%016" PRIx64, w->streams.stream[i].hash);
        bad = json_array_append_new(hashes, json_string(hash[i])) != 0;
    }
    if (!bad)
        bad = json_object_set(state, "hashes", hashes) != 0;
    const nb_status s = bad ? nb_fail(err, NB_MEMORY, "no memory for the state")
                            : nb_workdir_put_state(w->job->dir, state, err);
    json_decref(hashes);
    json_decref(state);
    return s;
}

/* Whether the streams hold what the state says. */
static nb_status same_hashes(walk *w, const json_t *state, bool *same, nb_err *err)
{
    const json_t *hashes = json_object_get(state, "hashes");
    *same = json_is_array(hashes) && (int)json_array_size(hashes) == w->streams.n_streams;
    for (int i = 0; i < w->streams.n_streams && *same; i++) {
        char text[20];
        uint64_t hash;
        const nb_status s = nb_streams_check(&w->streams, i, &hash, err);
        if (s == NB_MEMORY)
            return s;
        snprintf(text, sizeof text, "%016" PRIx64, hash);
        const char *kept = json_string_value(json_array_get(hashes, (size_t)i));
        *same = s == NB_OK && kept != NULL && strcmp(kept, text) == 0;
    }
    return NB_OK;
}

/* Goes on from a state that fits, or starts anew. */
static nb_status resume(walk *w, nb_err *err)
{
    json_t *state;
    NB_TRY(nb_workdir_get_state(w->job->dir, &state, err));
    const char *key = json_string_value(json_object_get(state, "key"));
    const json_int_t next = json_integer_value(json_object_get(state, "next_layer"));
    json_t *layers = json_object_get(state, "layers");
    bool fits = key != NULL && strcmp(key, w->job->key) == 0 && json_is_array(layers) && next > 0 &&
                next <= w->config.n_layers;
    nb_status s = NB_OK;
    if (fits) {
        w->streams.layer = next;
        s = same_hashes(w, state, &fits, err);
    }
    if (fits && s == NB_OK) {
        w->layer = w->result->resumed = next;
        json_decref(w->result->layers);
        w->result->layers = json_incref(layers);
    } else if (s == NB_OK) {
        s = nb_streams_embed(&w->streams, w->job->store, err);
    }
    json_decref(state);
    return s;
}

static bool show(void *context, double flops)
{
    walk *w = context;
    w->done += flops;
    const nb_walk_progress_info info = {w->what, w->done, w->plan.flops};
    return w->job->progress == NULL || w->job->progress(w->job->context, &info);
}

static void mark_made(walk *w)
{
    const bool transformed = w->job->transform != NULL;
    for (int j = 0; j < NB_N_LINEARS; j++) {
        w->result->made[w->index[j]] = transformed || is_quantized(w, j);
        if (transformed && w->bias_index[j] >= 0)
            w->result->made[w->bias_index[j]] = true;
    }
    for (int j = 0; j < 2; j++)
        w->result->made[w->gain_index[j]] = transformed;
}

static nb_status run(walk *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    NB_TRY(set_up(w, err));
    NB_TRY(NB_ALLOC(&w->result->made, job->plan->n, err));
    w->result->layers = json_array();
    if (w->result->layers == NULL)
        return nb_fail(err, NB_MEMORY, "no memory for the report");
    NB_TRY(nb_streams_open(&w->streams, job->store, job->seqs, job->n_seqs, w->has_other ? 2 : 1,
                           w->quantized_flow, w->plan.max_rows, job->dir, &w->la, err));
    w->streams.progress = show;
    w->streams.context = w;
    NB_TRY(resume(w, err));
    w->done = w->plan.flops * (double)w->layer / (double)w->config.n_layers;
    while (w->layer < w->config.n_layers) {
        snprintf(w->what, sizeof w->what, "layer %lld of %lld", (long long)w->layer + 1,
                 (long long)w->config.n_layers);
        find_weights(w);
        NB_TRY(load_norms(w, err));
        NB_TRY(w->quantized_flow ? walk_quantized(w, err) : walk_original(w, err));
        w->layer++;
        NB_TRY(save(w, err));
    }
    for (w->layer = 0; w->layer < w->config.n_layers; w->layer++) {
        find_weights(w);
        mark_made(w);
    }
    return NB_OK;
}

nb_status nb_walk(const nb_walk_job *job, nb_walk_result *out, nb_err *err)
{
    *out = (nb_walk_result){0};
    walk w = {.job = job, .result = out, .la = {.kernels = job->kernels, .pool = job->pool}};
    for (int i = 0; i < 2; i++)
        w.streams.stream[i] =
            (nb_stream){{NB_SPILL_CLOSED, NB_SPILL_CLOSED}, NB_SPILL_CLOSED, NB_SPILL_CLOSED, 0};
    const nb_status s = run(&w, err);
    end_stats(&w);
    for (int j = 0; j < NB_N_LINEARS; j++) {
        drop_floats(&w, j);
        nb_loaded_free(&w.made[j]);
    }
    nb_loaded_free(&w.source);
    nb_streams_close(&w.streams);
    nb_algebra_free(&w.la);
    if (s != NB_OK)
        nb_walk_result_free(out);
    return s;
}

void nb_walk_result_free(nb_walk_result *r)
{
    nb_free(r->made);
    json_decref(r->layers);
    *r = (nb_walk_result){0};
}
