/* See walk.h. */
#include "quant/walk.h"

#include "base/clock.h"
#include "base/fpenv.h"
#include "quant/autoround.h"
#include "quant/roles.h"
#include "quant/walk_weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

bool nb_walk_wanted(const nb_plan *plan, const nb_method *method, const nb_transform *transform,
                    bool *can_do_without)
{
    bool wanted = transform != NULL;
    *can_do_without = transform == NULL;
    for (int64_t i = 0; i < plan->n; i++) {
        if (plan->how[i] != NB_HOW_QUANTIZE || nb_role_of(&plan->weights[i]) != NB_ROLE_LINEAR)
            continue;
        const nb_method *its = nb_plan_method(plan, i, method);
        wanted = wanted || nb_method_needs(its) != NB_STAT_NONE;
        *can_do_without = *can_do_without && its->quantizer->encode_rows != NULL;
    }
    return wanted;
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
static int64_t point_memory(const nb_walker *w, nb_point point)
{
    int64_t n_rows;
    const int64_t n_cols = point_shape(&w->config, point, &n_rows);
    const int64_t stats = nb_input_stats_bytes(n_cols, w->needs);
    const int64_t factor = (w->needs & NB_STAT_HESSIAN) != 0 ? nb_sym_bytes(n_cols) * 3 / 2 : 0;
    const int64_t weighted = w->job->guided ? nb_input_stats_weighted_bytes(n_cols, w->needs) : 0;
    return stats + weighted + factor + n_rows * n_cols * (4 + 4 + 2);
}

static int64_t block_memory(const nb_walker *w)
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

/* Forward and backward are three times forward. */
static nb_status estimate_tuning(nb_walker *w, int64_t longest, double block_flops, nb_err *err)
{
    nb_autoround_options o;
    const nb_method *method = w->job->tune != NULL ? w->job->tune : w->method;
    NB_TRY(nb_autoround_options_parse(&o, method, w->job->tune != NULL, err));
    const double len = (double)(o.len < longest ? o.len : longest);
    w->plan.tuning_flops =
        3 * block_flops * (double)(o.iters * o.batch) * len * (double)w->config.n_layers;
    w->plan.flops += w->plan.tuning_flops;
    int64_t least, most;
    nb_autoround_bytes(&w->config, &o, nb_pool_n_threads(w->job->pool), &least, &most);
    const int64_t limit = w->job->memory;
    w->plan.tuning_memory = limit == 0 || most <= limit / 2 ? most : least;
    return NB_OK;
}

static nb_status estimate_flops(nb_walker *w, int64_t longest, nb_err *err)
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
    const int n_sweeps = w->has_other ? 2 : 1;
    double per_token = w->quantized_flow ? block * n_sweeps + sums : block + sums;
    if (job->transform != NULL)
        per_token += (w->quantized_flow ? block : 0) + first_sums;
    w->plan.flops = tokens * per_token * (double)w->config.n_layers;
    return w->by_block || w->job->tune != NULL ? estimate_tuning(w, longest, block, err) : NB_OK;
}

/* What all methods of the plan need together; w->method is the one that needs most, for messages
 * and for transforms. A method that tunes whole blocks wants to have all of their weights. */
static nb_status find_methods(nb_walker *w, nb_err *err)
{
    const nb_plan *plan = w->job->plan;
    for (int64_t i = 0; i < plan->n; i++) {
        if (plan->how[i] != NB_HOW_QUANTIZE || nb_role_of(&plan->weights[i]) != NB_ROLE_LINEAR)
            continue;
        const nb_method *its = nb_plan_method(plan, i, w->job->method);
        const unsigned needs = nb_method_needs(its);
        if (w->method != NULL && ((w->needs | needs) & NB_STAT_BLOCK) != 0 &&
            !nb_method_same(its, w->method))
            return nb_fail(err, NB_UNSUPPORTED,
                           "methods %s and %s in one recipe: one of them tunes all weights of a "
                           "block together",
                           w->method->quantizer->name, its->quantizer->name);
        if (w->method == NULL || needs > nb_method_needs(w->method))
            w->method = its;
        w->needs |= needs;
    }
    if (w->method == NULL)
        w->method = w->job->method;
    return NB_OK;
}

static nb_status set_up(nb_walker *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    NB_TRY(find_methods(w, err));
    const nb_quantizer *q = w->method->quantizer;
    w->transform_needs = job->transform != NULL ? job->transform->needs : 0;
    w->quantized_flow = job->flow == NB_FLOW_QUANTIZED ||
                        (job->flow == NB_FLOW_AUTO && (w->needs & NB_STAT_HESSIAN) != 0);
    w->by_block = (w->needs & NB_STAT_BLOCK) != 0;
    w->has_other = (w->needs & NB_STAT_CROSS) != 0 || w->by_block || job->tune != NULL;
    w->quantized_flow =
        w->quantized_flow || ((w->by_block || job->tune != NULL) && job->flow == NB_FLOW_AUTO);
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
    NB_TRY(estimate_flops(w, longest, err)); /* counts the memory of tuning */
    NB_TRY(nb_walker_plan_guide(w, err));
    const int64_t rest =
        BASE_BYTES + larger(w->plan.memory + block_memory(w), w->guide_plan.memory);
    w->plan.max_rows = NB_STREAMS_ROWS;
    for (;; w->plan.max_rows /= 2) {
        w->plan.memory = rest + nb_streams_memory(&w->config, longest, w->plan.max_rows, n_streams,
                                                  nb_pool_n_threads(job->pool));
        if (job->memory == 0 || w->plan.memory <= job->memory || w->plan.max_rows == 128)
            break;
    }
    w->plan.disk =
        nb_streams_disk(&w->config, n_tokens, n_streams, w->quantized_flow && !w->by_block) +
        job->plan->bytes + w->guide_plan.disk;
    if (job->memory != 0 && w->plan.memory > job->memory)
        return nb_fail(err, NB_LIMIT,
                       "method %s needs about %lld MB here, and --memory is %lld MB: fewer threads "
                       "or shorter sequences take less",
                       q->name, (long long)((w->plan.memory + (1 << 20) - 1) >> 20),
                       (long long)(job->memory >> 20));
    return NB_OK;
}

nb_status nb_walk_estimate(nb_walk_plan *out, const nb_walk_job *job, nb_err *err)
{
    nb_walker w = {.job = job};
    NB_TRY(set_up(&w, err));
    *out = w.plan;
    return NB_OK;
}

/* ---- encoding ---- */

static nb_status encode_data_free(nb_walker *w, int j, nb_err *err)
{
    const nb_weight *to = &w->job->plan->weights[w->index[j]];
    const nb_method *method = nb_walker_method(w, j);
    const nb_quant_job rows = {.method = method,
                               .weight = w->weight[j].values,
                               .n_rows = to->n_rows,
                               .n_cols = to->n_cols};
    const uint64_t env = nb_fpenv_enter();
    const nb_status s = method->quantizer->encode_rows(&rows, &w->made[j].mat, err);
    nb_fpenv_leave(env);
    return s;
}

/* Chooses codes for those linears of a point that share a method. */
static nb_status encode_group(nb_walker *w, nb_point point, nb_group_job *job, const int *of_job,
                              nb_err *err)
{
    const double start = nb_clock();
    nb_group_result r = {0};
    const uint64_t env = nb_fpenv_enter();
    const nb_status s = job->method->quantizer->encode_group(job, &r, err);
    nb_fpenv_leave(env);
    if (s != NB_OK)
        return nb_context(err, "layer %lld, %s", (long long)w->layer, nb_point_name(point));
    for (int k = 0; k < job->n; k++) {
        double kl;
        NB_TRY(nb_walker_predict(w, point, of_job[k], job->stats, &kl, err));
        NB_TRY(nb_walker_note(w, of_job[k], r.loss[k], r.held_loss[k], kl, r.note,
                              (nb_clock() - start) / job->n, err));
    }
    return NB_OK;
}

/* One linear that is alone with what happens to it. */
static nb_status encode_alone(nb_walker *w, nb_point point, int j, const nb_input_stats *stats,
                              nb_err *err)
{
    double kl;
    const double start = nb_clock();
    if (!nb_walker_quantizes(w, j)) {
        nb_walker_encode_plain(w, j);
        return NB_OK;
    }
    NB_TRY(encode_data_free(w, j, err));
    NB_TRY(nb_walker_predict(w, point, j, stats, &kl, err));
    return nb_walker_note(w, j, NAN, NAN, kl, NULL, nb_clock() - start, err);
}

/* Chooses codes for the linears of a point from its statistics, and keeps them. */
static nb_status encode_point(nb_walker *w, nb_point point, const nb_input_stats *stats,
                              nb_err *err)
{
    int n;
    const int first = (int)nb_point_linears(point, &n), end = first + n;
    bool in_group[NB_N_LINEARS] = {0};
    for (int j = first; j < end; j++) {
        if (!nb_walker_quantizes(w, j) && w->weight[j].values == NULL)
            continue;
        if (w->weight[j].values == NULL)
            NB_TRY(nb_walker_load_floats(w, j, err));
        NB_TRY(nb_walker_room(w, j, err));
        in_group[j] =
            nb_walker_quantizes(w, j) && nb_walker_method(w, j)->quantizer->encode_group != NULL;
        if (!in_group[j])
            NB_TRY(encode_alone(w, point, j, stats, err));
    }
    for (int i = first; i < end; i++) {
        nb_group_job job = {.method = nb_walker_method(w, i), .stats = stats, .la = &w->la};
        int of_job[NB_GROUP_LINEARS];
        for (int j = i; j < end; j++) {
            if (!in_group[j] || !nb_method_same(nb_walker_method(w, j), job.method))
                continue;
            in_group[j] = false;
            of_job[job.n] = j;
            job.linear[job.n].name = w->job->plan->weights[w->index[j]].name;
            job.linear[job.n].weight = w->weight[j].values;
            job.linear[job.n].n_rows = w->job->plan->weights[w->index[j]].n_rows;
            job.linear[job.n++].out = &w->made[j].mat;
        }
        if (job.n > 0)
            NB_TRY(encode_group(w, point, &job, of_job, err));
    }
    return NB_OK;
}

/* Keeps what was made at a point, and puts it (or the original) into slot 0 and the original into
 * slot 1, ready to go on. */
static nb_status keep_point(nb_walker *w, nb_point point, bool go_on, nb_err *err)
{
    int n;
    const int first = (int)nb_point_linears(point, &n);
    for (int j = first; j < first + n; j++) {
        const bool made = nb_walker_quantizes(w, j) || w->weight[j].values != NULL;
        if (made)
            NB_TRY(nb_walker_keep(w, j, err));
        if (go_on && made)
            NB_TRY(nb_walker_set_made(w, j, err));
        else if (go_on)
            NB_TRY(nb_walker_set_original(w, 0, j, err));
        if (go_on && w->has_other)
            NB_TRY(nb_walker_set_other(w, j, err));
        if (w->job->tune == NULL)
            nb_walker_forget(w, j);
    }
    return NB_OK;
}

static int64_t n_tokens(const nb_walker *w)
{
    return w->streams.n_tokens;
}

static nb_status start_stats(nb_walker *w, nb_point point, unsigned needs, nb_err *err)
{
    int64_t n_rows;
    const int64_t n_cols = point_shape(&w->config, point, &n_rows);
    return nb_input_stats_init(&w->stats[point], n_cols, needs, n_tokens(w), err);
}

static void end_stats(nb_walker *w)
{
    for (int p = 0; p < NB_N_POINTS; p++)
        nb_input_stats_free(&w->stats[p]);
}

/* ---- transforms ---- */

/* Applies the transform to the block; its statistics at all points are there. */
static nb_status transform_block(nb_walker *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    nb_layer *layer = &w->streams.frame.layers[0];
    nb_transform_job t = {.config = &w->config,
                          .la = &w->la,
                          .method = w->method,
                          .gain = {layer->attn_norm, layer->ffn_norm},
                          .options = job->transform_options};
    const nb_format *gain = job->plan->weights[w->gain_index[0]].fmt;
    t.gain_type = gain == &nb_format_f32 ? NB_F32 : gain == &nb_format_f16 ? NB_F16 : NB_BF16;
    for (int j = 0; j < NB_N_LINEARS; j++) {
        t.weight[j] = w->weight[j].values;
        t.bias[j] = nb_layer_linear(layer, (nb_linear_id)j)->bias;
        t.to[j] = nb_walker_quantizes(w, j) ? &job->plan->weights[w->index[j]] : NULL;
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
        NB_TRY(nb_walker_keep_vector(w, w->gain_index[j], t.gain[j], err));
    for (int j = 0; j < NB_N_LINEARS; j++) {
        if (t.bias[j] != NULL && w->bias_index[j] >= 0)
            NB_TRY(nb_walker_keep_vector(w, w->bias_index[j], t.bias[j], err));
    }
    return NB_OK;
}

/* ---- a block ---- */

nb_status nb_walker_sweep(nb_walker *w, int i, const unsigned *needs, bool keep, nb_err *err)
{
    nb_input_stats *stats[NB_N_POINTS] = {0};
    for (int p = 0; p < NB_N_POINTS; p++) {
        const bool wanted = needs != NULL && needs[p] != 0;
        if (wanted)
            NB_TRY(start_stats(w, (nb_point)p, needs[p], err));
        stats[p] = wanted ? &w->stats[p] : NULL;
    }
    NB_TRY(nb_streams_sweep(&w->streams, i, stats, keep, err));
    for (int p = 0; p < NB_N_POINTS; p++) {
        nb_input_stats_finish(&w->stats[p]);
        nb_walker_drop_linears(w, (nb_point)p);
    }
    return NB_OK;
}

/* With what the transform needs at all points, and with what the methods do. */
static nb_status original_sweep(nb_walker *w, bool methods, bool keep, nb_err *err)
{
    unsigned needs[NB_N_POINTS];
    for (int p = 0; p < NB_N_POINTS; p++)
        needs[p] = w->transform_needs | (methods ? w->point_needs[p] : 0);
    for (int j = 0; j < NB_N_LINEARS; j++)
        NB_TRY(nb_walker_set_original(w, 0, j, err));
    return nb_walker_sweep(w, 0, needs, keep, err);
}

static nb_status load_and_transform(nb_walker *w, nb_err *err)
{
    for (int j = 0; j < NB_N_LINEARS; j++)
        NB_TRY(nb_walker_load_floats(w, j, err));
    return transform_block(w, err);
}

nb_status nb_walker_transform(nb_walker *w, nb_err *err)
{
    NB_TRY(original_sweep(w, false, false, err));
    const nb_status s = load_and_transform(w, err);
    end_stats(w);
    return s;
}

/* The statistics of the full-precision model at all points, then all codes. */
static nb_status walk_original(nb_walker *w, nb_err *err)
{
    NB_TRY(original_sweep(w, true, true, err));
    if (w->job->transform != NULL)
        NB_TRY(load_and_transform(w, err));
    for (int p = 0; p < NB_N_POINTS; p++) {
        NB_TRY(encode_point(w, (nb_point)p, &w->stats[p], err));
        NB_TRY(keep_point(w, (nb_point)p, false, err));
        nb_input_stats_free(&w->stats[p]);
    }
    nb_streams_next(&w->streams);
    return NB_OK;
}

/* Point by point, each with what the quantized weights before it give. */
static nb_status walk_quantized(nb_walker *w, nb_err *err)
{
    if (w->job->transform != NULL)
        NB_TRY(nb_walker_transform(w, err));
    for (int p = 0; p < NB_N_POINTS; p++) {
        const nb_point point = (nb_point)p;
        const bool wanted = w->point_needs[p] != 0;
        if (wanted)
            NB_TRY(start_stats(w, point, w->point_needs[p], err));
        NB_TRY(nb_streams_to_point(&w->streams, point, wanted ? &w->stats[p] : NULL, err));
        if (p > 0)
            nb_walker_drop_linears(w, (nb_point)(p - 1));
        nb_input_stats_finish(&w->stats[p]);
        NB_TRY(encode_point(w, point, &w->stats[p], err));
        nb_input_stats_free(&w->stats[p]);
        NB_TRY(keep_point(w, point, true, err));
    }
    NB_TRY(nb_streams_to_end(&w->streams, err));
    nb_walker_drop_linears(w, NB_AT_DOWN);
    if (w->job->tune != NULL)
        NB_TRY(nb_walker_tune_made(w, err));
    nb_streams_next(&w->streams);
    return NB_OK;
}

/* ---- the state ---- */

nb_status nb_walker_save(nb_walker *w, nb_err *err)
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
    nb_status s = bad ? nb_fail(err, NB_MEMORY, "no memory for the state")
                      : nb_walker_put_guide(w, state, err);
    if (s == NB_OK)
        s = nb_workdir_put_state(w->job->dir, state, err);
    json_decref(hashes);
    json_decref(state);
    return s;
}

/* Whether the streams hold what the state says. */
static nb_status same_hashes(nb_walker *w, const json_t *state, bool *same, nb_err *err)
{
    const json_t *hashes = json_object_get(state, "hashes");
    *same = json_is_array(hashes) && (int)json_array_size(hashes) == w->streams.n_streams;
    for (int i = 0; i < w->streams.n_streams && *same; i++) {
        char text[20];
        uint64_t hash;
        const nb_status s = nb_streams_check(&w->streams, i, &hash, err);
        if (s == NB_MEMORY)
            return s;
        w->streams.stream[i].hash = hash; /* for what is saved before the next block is done */
        snprintf(text, sizeof text, "%016" PRIx64, hash);
        const char *kept = json_string_value(json_array_get(hashes, (size_t)i));
        *same = s == NB_OK && kept != NULL && strcmp(kept, text) == 0;
    }
    return NB_OK;
}

/* Names what blocks [0, n) have in the working folder. */
static void mark_made(nb_walker *w, int64_t n)
{
    const bool transformed = w->job->transform != NULL;
    for (w->layer = 0; w->layer < n; w->layer++) {
        nb_walker_find(w);
        for (int j = 0; j < NB_N_LINEARS; j++) {
            w->result->made[w->index[j]] = transformed || nb_walker_quantizes(w, j);
            if (transformed && w->bias_index[j] >= 0)
                w->result->made[w->bias_index[j]] = true;
        }
        for (int j = 0; j < 2; j++)
            w->result->made[w->gain_index[j]] = transformed;
    }
}

/* Whether all that is marked lies in the working folder, whole. */
static nb_status same_weights(nb_walker *w, bool *same, nb_err *err)
{
    *same = true;
    for (int64_t i = 0; i < w->job->plan->n && *same; i++) {
        if (w->result->made[i])
            NB_TRY(nb_workdir_check_mat(w->job->dir, i, same, err));
    }
    return NB_OK;
}

/* A state that cannot be gone on from is overwritten before anything else is: weights of two runs
 * would meet under it. */
static nb_status start_anew(nb_walker *w, const char *why, nb_err *err)
{
    w->result->anew = why;
    memset(w->result->made, 0, (size_t)w->job->plan->n * sizeof *w->result->made);
    w->layer = w->streams.layer = 0;
    NB_TRY(nb_walker_save(w, err));
    return nb_streams_embed(&w->streams, w->job->store, err);
}

/* Goes on from a state of the same key, if all that it speaks of is as it was left. */
static nb_status go_on(nb_walker *w, const json_t *state, nb_err *err)
{
    const json_int_t next = json_integer_value(json_object_get(state, "next_layer"));
    json_t *layers = json_object_get(state, "layers");
    bool same = json_is_array(layers) && next > 0 && next <= w->config.n_layers;
    if (next == 0)
        return start_anew(w, NULL, err); /* stopped in the first block */
    w->streams.layer = next;
    if (same)
        NB_TRY(same_hashes(w, state, &same, err));
    if (same) {
        mark_made(w, next);
        NB_TRY(same_weights(w, &same, err));
    }
    if (!same)
        return start_anew(w, "is damaged", err);
    w->layer = w->result->resumed = next;
    json_decref(w->result->layers);
    w->result->layers = json_incref(layers);
    return NB_OK;
}

static nb_status resume(nb_walker *w, nb_err *err)
{
    json_t *state;
    bool damaged;
    NB_TRY(nb_workdir_get_state(w->job->dir, &state, &damaged, err));
    const char *key = json_string_value(json_object_get(state, "key"));
    nb_status s;
    if (key != NULL && strcmp(key, w->job->key) == 0) {
        nb_walker_take_guide(w, state);
        s = go_on(w, state, err);
    } else
        s = start_anew(w,
                       damaged         ? "is damaged"
                       : state != NULL ? "is of another model, text or recipe"
                                       : NULL,
                       err);
    json_decref(state);
    return s;
}

static bool show(void *context, double flops)
{
    nb_walker *w = context;
    w->done += flops;
    const nb_walk_progress_info info = {w->what, w->done, w->plan.flops};
    return w->job->progress == NULL || w->job->progress(w->job->context, &info);
}

static nb_status run(nb_walker *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    NB_TRY(set_up(w, err));
    NB_TRY(NB_ALLOC(&w->result->made, job->plan->n, err));
    w->result->layers = json_array();
    if (w->result->layers == NULL)
        return nb_fail(err, NB_MEMORY, "no memory for the report");
    NB_TRY(nb_streams_open(&w->streams, job->store, job->seqs, job->n_seqs, w->has_other ? 2 : 1,
                           w->quantized_flow && !w->by_block, w->plan.max_rows, job->dir, &w->la,
                           err));
    w->streams.progress = show;
    w->streams.context = w;
    NB_TRY(resume(w, err));
    NB_TRY(nb_walker_make_guide(w, err));
    w->done = w->guide_plan.flops +
              (w->plan.flops - w->guide_plan.flops) * (double)w->layer / (double)w->config.n_layers;
    while (w->layer < w->config.n_layers) {
        snprintf(w->what, sizeof w->what, "layer %lld of %lld", (long long)w->layer + 1,
                 (long long)w->config.n_layers);
        nb_walker_find(w);
        NB_TRY(nb_walker_load_norms(w, err));
        NB_TRY(w->by_block         ? nb_walker_tune_block(w, err)
               : w->quantized_flow ? walk_quantized(w, err)
                                   : walk_original(w, err));
        w->layer++;
        NB_TRY(nb_walker_save(w, err));
    }
    mark_made(w, w->config.n_layers);
    return NB_OK;
}

nb_status nb_walk(const nb_walk_job *job, nb_walk_result *out, nb_err *err)
{
    *out = (nb_walk_result){0};
    nb_walker w = {.job = job,
                   .result = out,
                   .guide = NB_GUIDE_NONE,
                   .la = {.kernels = job->kernels, .pool = job->pool}};
    for (int i = 0; i < 2; i++)
        w.streams.stream[i] =
            (nb_stream){{NB_SPILL_CLOSED, NB_SPILL_CLOSED}, NB_SPILL_CLOSED, NB_SPILL_CLOSED, 0};
    const nb_status s = run(&w, err);
    end_stats(&w);
    for (int j = 0; j < NB_N_LINEARS; j++) {
        nb_walker_drop_floats(&w, j);
        nb_loaded_free(&w.made[j]);
    }
    nb_loaded_free(&w.source);
    nb_streams_close(&w.streams);
    nb_guide_close(&w.guide);
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
