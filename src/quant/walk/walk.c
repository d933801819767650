/* See walk.h. */
#include "quant/walk/walk.h"

#include "base/clock.h"
#include "base/fpenv.h"
#include "quant/walk/weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

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
    nb_sym outputs[NB_GROUP_LINEARS] = {{0}};
    nb_status s = NB_OK;
    for (int k = 0; k < job->n && w->job->by_outputs && s == NB_OK; k++) {
        s = nb_guide_outputs(&w->guide, w->layer, (nb_linear_id)of_job[k], job->linear[k].n_rows,
                             &outputs[k], err);
        job->linear[k].outputs = &outputs[k];
    }
    const uint64_t env = nb_fpenv_enter();
    if (s == NB_OK)
        s = job->method->quantizer->encode_group(job, &r, err);
    nb_fpenv_leave(env);
    for (int k = 0; k < job->n; k++)
        nb_sym_free(&outputs[k]);
    if (s != NB_OK)
        return nb_context(err, "layer %lld, %s", (long long)w->layer, nb_point_name(point));
    const double seconds = nb_clock() - start;
    for (int k = 0; k < job->n; k++) {
        double kl;
        NB_TRY(nb_walker_predict(w, point, of_job[k], job->stats, &kl, err));
        const nb_walker_said said = {r.loss[k], r.held_loss[k],   kl,
                                     r.note,    seconds / job->n, r.fell_back};
        NB_TRY(nb_walker_tell(w, point, of_job[k], &said, err));
    }
    return NB_OK;
}

/* One linear that is alone with what happens to it. */
static nb_status encode_alone(nb_walker *w, nb_point point, int j, const nb_input_stats *stats,
                              nb_err *err)
{
    double kl;
    const double start = nb_clock();
    if (!nb_walker_quantizes(w, j))
        return nb_walker_encode_plain(w, j, err);
    NB_TRY(encode_data_free(w, j, err));
    const double seconds = nb_clock() - start;
    NB_TRY(nb_walker_predict(w, point, j, stats, &kl, err));
    return nb_walker_tell(w, point, j, &(nb_walker_said){NAN, NAN, kl, NULL, seconds, false}, err);
}

static bool is_made(const nb_walker *w, int j)
{
    return nb_walker_quantizes(w, j) || w->job->transform != NULL;
}

/* Chooses codes for the linears of a point from its statistics, and keeps them. */
static nb_status encode_point(nb_walker *w, nb_point point, const nb_input_stats *stats,
                              nb_err *err)
{
    int n;
    const int first = (int)nb_point_linears(point, &n), end = first + n;
    bool in_group[NB_N_LINEARS] = {0};
    for (int j = first; j < end; j++) {
        if (!is_made(w, j))
            continue;
        if (w->weight[j].values == NULL && nb_walker_quantizes(w, j) &&
            !nb_walker_reads_rows(w, point, j))
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
            job.linear[job.n].rows = nb_walker_rows(w, j);
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
        const bool made = is_made(w, j);
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

nb_status nb_walker_start_stats(nb_walker *w, nb_point point, unsigned needs, nb_err *err)
{
    int64_t n_rows;
    const int64_t n_cols = nb_walker_point_shape(&w->config, point, &n_rows);
    return nb_input_stats_init(&w->stats[point], n_cols, needs | NB_WALKER_LOOKS,
                               w->streams.n_tokens, err);
}

nb_status nb_walker_end_stats(nb_walker *w, nb_point point, nb_err *err)
{
    nb_input_stats_finish(&w->stats[point]);
    return nb_walker_look(w, point, err);
}

static void free_stats(nb_walker *w)
{
    for (int p = 0; p < NB_N_POINTS; p++)
        nb_input_stats_free(&w->stats[p]);
}

/* ---- a block ---- */

nb_status nb_walker_sweep(nb_walker *w, int i, const unsigned *needs, bool keep, nb_err *err)
{
    nb_input_stats *stats[NB_N_POINTS] = {0};
    for (int p = 0; p < NB_N_POINTS; p++) {
        const bool wanted = needs != NULL && needs[p] != 0;
        if (wanted)
            NB_TRY(nb_walker_start_stats(w, (nb_point)p, needs[p], err));
        stats[p] = wanted ? &w->stats[p] : NULL;
    }
    NB_TRY(nb_streams_sweep(&w->streams, i, stats, keep, err));
    for (int p = 0; p < NB_N_POINTS; p++) {
        NB_TRY(nb_walker_end_stats(w, (nb_point)p, err));
        nb_walker_drop_linears(w, (nb_point)p);
    }
    return NB_OK;
}

/* The statistics of the full-precision model at all points, then all codes. */
static nb_status walk_original(nb_walker *w, nb_err *err)
{
    NB_TRY(nb_walker_transform(w, true, err));
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
        NB_TRY(nb_walker_transform(w, false, err));
    for (int p = 0; p < NB_N_POINTS; p++) {
        const nb_point point = (nb_point)p;
        const bool rests = w->rests[p] && (w->point_needs[p] & NB_STAT_HESSIAN) != 0;
        const bool wanted = w->point_needs[p] != 0 && !rests;
        if (wanted)
            NB_TRY(nb_walker_start_stats(w, point, w->point_needs[p], err));
        NB_TRY(nb_streams_to_point(&w->streams, point, wanted ? &w->stats[p] : NULL, err));
        if (p > 0)
            nb_walker_drop_linears(w, (nb_point)(p - 1));
        if (rests)
            NB_TRY(nb_walker_gather(w, point, err));
        NB_TRY(nb_walker_end_stats(w, point, err));
        nb_walker_settle_ranges(w, point);
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
    NB_TRY(nb_walker_set_up(w, err));
    NB_TRY(NB_ALLOC(&w->result->made, job->plan->n, err));
    NB_TRY(NB_ALLOC(&w->result->act_scale, job->plan->n, err));
    w->result->layers = json_array();
    if (w->result->layers == NULL)
        return nb_fail(err, NB_MEMORY, "no memory for the report");
    NB_TRY(nb_streams_open(&w->streams, job->store, job->seqs, job->n_seqs, w->has_other ? 2 : 1,
                           nb_walker_takes_parts(w), w->plan.max_rows, job->dir, &w->la, err));
    w->streams.progress = show;
    w->streams.context = w;
    NB_TRY(nb_walker_resume(w, err));
    NB_TRY(nb_walker_make_guide(w, err));
    w->done = w->guide_plan.flops + (w->plan.flops - w->guide_plan.flops - w->distill_flops) *
                                        (double)w->layer / (double)w->config.n_layers;
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
    nb_walker_mark_made(w, w->config.n_layers);
    return nb_walker_distill(w, err);
}

nb_status nb_walk(const nb_walk_job *job, nb_walk_result *out, nb_err *err)
{
    *out = (nb_walk_result){0};
    nb_walker w = {.job = job,
                   .result = out,
                   .guide = NB_GUIDE_NONE,
                   .resting = {NB_SPILL_CLOSED, NB_SPILL_CLOSED},
                   .la = {.kernels = job->kernels, .pool = job->pool}};
    for (int i = 0; i < 2; i++)
        w.streams.stream[i] =
            (nb_stream){{NB_SPILL_CLOSED, NB_SPILL_CLOSED}, NB_SPILL_CLOSED, NB_SPILL_CLOSED, 0};
    const nb_status s = run(&w, err);
    free_stats(&w);
    for (int i = 0; i < 2; i++)
        nb_spill_close(&w.resting[i]);
    for (int j = 0; j < NB_N_LINEARS; j++) {
        nb_walker_drop_floats(&w, j);
        nb_loaded_free(&w.made[j]);
        nb_changes_free(&w.changes[j]);
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
    nb_free(r->act_scale);
    json_decref(r->layers);
    json_decref(r->distilled);
    *r = (nb_walk_result){0};
}
