/* Blocks that are tuned as a whole: what goes in is what the quantized model so far gives, what has
 * to come out is what the original gives. */
#include "base/clock.h"
#include "base/fpenv.h"
#include "quant/encode/autoround.h"
#include "quant/walk/weights.h"

#include <math.h>
#include <stdio.h>

/* The block's inputs lie in stream 0, its outputs in stream 1, which is one block ahead. */
static nb_status fetch(void *context, int64_t seq, int64_t n, float *x, float *y, nb_err *err)
{
    nb_walker *w = context;
    const nb_streams *s = &w->streams;
    const int64_t row = s->first_row[seq];
    NB_TRY(nb_spill_read(&s->stream[0].x[s->layer % 2], row, n, x, err));
    return nb_spill_read(&s->stream[1].x[(s->layer + 1) % 2], row, n, y, err);
}

static bool show(void *context, int64_t step, int64_t n_steps, double loss)
{
    nb_walker *w = context;
    snprintf(w->what, sizeof w->what, "layer %lld of %lld, step %lld of %lld, loss %.3f",
             (long long)w->layer + 1, (long long)w->config.n_layers, (long long)step,
             (long long)n_steps, loss);
    return w->streams.progress(w->streams.context,
                               w->plan.tuning_flops / (double)(n_steps * w->config.n_layers));
}

/* Everything that the method gets of the block. */
static nb_block_weights weights_of(nb_walker *w)
{
    nb_layer *layer = &w->streams.frame.layers[0];
    nb_block_weights b = {.attn_norm = layer->attn_norm,
                          .ffn_norm = layer->ffn_norm,
                          .q_norm = layer->q_norm,
                          .k_norm = layer->k_norm};
    for (int j = 0; j < NB_N_LINEARS; j++) {
        b.linear[j] = w->weight[j].values;
        b.bias[j] = nb_layer_linear(layer, (nb_linear_id)j)->bias;
    }
    return b;
}

static nb_status tune(nb_walker *w, const nb_method *method, bool resume, nb_err *err)
{
    int64_t *n_tokens;
    const nb_walk_job *job = w->job;
    nb_block_job b = {.method = method,
                      .resume = resume,
                      .memory = job->memory == 0 ? 0 : w->plan.tuning_memory,
                      .config = &w->config,
                      .rope = &w->streams.frame.rope,
                      .kernels = job->kernels,
                      .pool = job->pool,
                      .weights = weights_of(w),
                      .n_seq = job->n_seqs,
                      .fetch = fetch,
                      .progress = show,
                      .context = w,
                      .seed = (uint64_t)w->layer};
    for (int j = 0; j < NB_N_LINEARS; j++)
        b.out[j] = nb_walker_quantizes(w, j) ? &w->made[j].mat : NULL;
    NB_TRY(NB_ALLOC(&n_tokens, job->n_seqs, err));
    for (int64_t i = 0; i < job->n_seqs; i++)
        n_tokens[i] = job->seqs[i].n;
    b.n_tokens = n_tokens;
    nb_block_result r = {0};
    const double start = nb_clock();
    const uint64_t env = nb_fpenv_enter();
    const nb_status s = method->quantizer->tune_block(&b, &r, err);
    nb_fpenv_leave(env);
    nb_free(n_tokens);
    if (s != NB_OK)
        return nb_context(err, "layer %lld", (long long)w->layer);
    w->tuned_seconds = (nb_clock() - start) / NB_N_LINEARS;
    snprintf(w->tuned, sizeof w->tuned, "block error %.4g, %.3f of %s, step %lld of %lld",
             r.loss_after, r.loss_before > 0 ? r.loss_after / r.loss_before : 1.0,
             resume ? "what it began with" : "rounding to nearest", (long long)r.best_step,
             (long long)r.n_steps);
    return NB_OK;
}

/* Of the weights that were tuned, by what the quantized stream has shown of their inputs. */
static nb_status tell_all(nb_walker *w, nb_err *err)
{
    const nb_walker_said said = {NAN, NAN, NAN, w->tuned, w->tuned_seconds, false};
    for (int p = 0; p < NB_N_POINTS; p++) {
        int n;
        const int first = (int)nb_point_linears((nb_point)p, &n);
        for (int j = first; j < first + n; j++) {
            if (nb_walker_quantizes(w, j))
                NB_TRY(nb_walker_tell(w, (nb_point)p, j, &said, err));
        }
    }
    return NB_OK;
}

static bool is_made(const nb_walker *w, int j)
{
    return nb_walker_quantizes(w, j) || w->job->transform != NULL;
}

static nb_status set_all(nb_walker *w, nb_err *err)
{
    for (int j = 0; j < NB_N_LINEARS; j++)
        NB_TRY(is_made(w, j) ? nb_walker_set_made(w, j, err)
                             : nb_walker_set_original(w, 0, j, err));
    return NB_OK;
}

/* Static scales, once all weights of the block are what they will be: from a sweep in which those
 * of the points before are not settled either, and each token has its own scale. */
static nb_status find_ranges(nb_walker *w, nb_err *err)
{
    unsigned needs[NB_N_POINTS];
    bool any = false;
    for (int p = 0; p < NB_N_POINTS; p++) {
        needs[p] = nb_walker_waits(w, (nb_point)p) ? NB_STAT_RANGE : NB_STAT_NONE;
        any = any || needs[p] != NB_STAT_NONE;
    }
    if (!any)
        return NB_OK;
    NB_TRY(set_all(w, err));
    NB_TRY(nb_walker_sweep(w, 0, needs, false, err));
    for (int p = 0; p < NB_N_POINTS; p++) {
        nb_walker_settle_ranges(w, (nb_point)p);
        nb_input_stats_free(&w->stats[p]);
    }
    return NB_OK;
}

/* Keeps what was made of the block, and takes the quantized stream through it. */
static nb_status end_block(nb_walker *w, nb_err *err)
{
    for (int j = 0; j < NB_N_LINEARS; j++) {
        if (is_made(w, j) && !nb_walker_quantizes(w, j))
            NB_TRY(nb_walker_encode_plain(w, j, err));
        if (is_made(w, j))
            NB_TRY(nb_walker_keep(w, j, err));
    }
    NB_TRY(find_ranges(w, err));
    NB_TRY(set_all(w, err));
    static const unsigned looks[NB_N_POINTS] = {NB_WALKER_LOOKS, NB_WALKER_LOOKS, NB_WALKER_LOOKS,
                                                NB_WALKER_LOOKS};
    NB_TRY(nb_walker_sweep(w, 0, looks, true, err));
    NB_TRY(tell_all(w, err));
    for (int j = 0; j < NB_N_LINEARS; j++)
        nb_walker_forget(w, j);
    for (int p = 0; p < NB_N_POINTS; p++)
        nb_input_stats_free(&w->stats[p]);
    return NB_OK;
}

/* What has no floats yet, because no codes were chosen for it. */
static nb_status load_rest(nb_walker *w, bool with_room, nb_err *err)
{
    for (int j = 0; j < NB_N_LINEARS; j++) {
        if (w->weight[j].values == NULL)
            NB_TRY(nb_walker_load_floats(w, j, err));
        if (with_room)
            NB_TRY(nb_walker_room(w, j, err));
    }
    return NB_OK;
}

nb_status nb_walker_tune_block(nb_walker *w, nb_err *err)
{
    for (int j = 0; j < NB_N_LINEARS; j++)
        NB_TRY(nb_walker_set_original(w, 1, j, err));
    NB_TRY(nb_walker_sweep(w, 1, NULL, true, err));
    if (w->job->transform != NULL)
        NB_TRY(nb_walker_transform(w, false, err));
    NB_TRY(load_rest(w, true, err));
    NB_TRY(tune(w, w->method, false, err));
    NB_TRY(end_block(w, err));
    nb_streams_next(&w->streams);
    return NB_OK;
}

nb_status nb_walker_tune_made(nb_walker *w, nb_err *err)
{
    NB_TRY(load_rest(w, false, err));
    NB_TRY(tune(w, w->job->tune, true, err));
    return end_block(w, err);
}
