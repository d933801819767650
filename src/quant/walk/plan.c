/* What a walk will take: memory, disk and floating-point operations. */
#include "quant/encode/autoround.h"
#include "quant/walk/weights.h"
#include "quant/weight/roles.h"

#include <string.h>

bool nb_walk_wanted(const nb_plan *plan, const nb_method *method, const nb_transform *transform,
                    bool *can_do_without)
{
    bool wanted = transform != NULL;
    *can_do_without = transform == NULL;
    for (int64_t i = 0; i < plan->n; i++) {
        const bool waits = nb_plan_waits(plan, i);
        wanted = wanted || waits;
        *can_do_without = *can_do_without && !waits;
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
int64_t nb_walker_point_shape(const nb_config *c, nb_point point, int64_t *n_rows)
{
    const int64_t d_q = c->n_heads * c->head_dim, d_kv = c->n_kv_heads * c->head_dim;
    const int64_t rows[NB_N_POINTS] = {d_q + 2 * d_kv, c->d_model, 2 * c->d_ff, c->d_model};
    const int64_t cols[NB_N_POINTS] = {c->d_model, d_q, c->d_model, c->d_ff};
    *n_rows = rows[point];
    return cols[point];
}

static nb_status estimate_tuning(nb_walker *w, int64_t longest, double block_flops, nb_err *err)
{
    nb_autoround_options o;
    const nb_method *method = w->job->tune != NULL ? w->job->tune : w->method;
    NB_TRY(nb_autoround_options_parse(&o, method, w->job->tune != NULL, err));
    const double len = (double)(o.len < longest ? o.len : longest);
    w->plan.tuning_flops = nb_autoround_passes(&o, w->job->n_seqs, w->job->kernels->isa) * len *
                           block_flops * (double)w->config.n_layers;
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
        const double n = (double)nb_walker_point_shape(&w->config, (nb_point)p, &n_rows);
        const double h = (w->needs & NB_STAT_HESSIAN) != 0 ? n * n : 0;
        sums += h + ((w->needs & NB_STAT_CROSS) != 0 ? 2 * n * n : 0);
        first_sums += (w->transform_needs & NB_STAT_HESSIAN) != 0 ? n * n : 0;
    }
    const int n_sweeps = w->has_other ? 2 : 1;
    double per_token = w->quantized_flow ? block * n_sweeps + sums : block + sums;
    if (job->transform != NULL)
        per_token += (w->quantized_flow ? block : 0) + first_sums;
    if ((w->needs & NB_STAT_RANGE) != 0 && (w->by_block || job->tune != NULL))
        per_token += block; /* ranges once the block is tuned */
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

/* Static scales are those of what the quantized model will see. */
static nb_status find_ranges(nb_walker *w, nb_err *err)
{
    bool waits = false;
    for (int64_t i = 0; i < w->job->plan->n; i++)
        waits = waits || nb_plan_waits(w->job->plan, i);
    if (!waits)
        return NB_OK;
    if (w->job->flow == NB_FLOW_ORIGINAL)
        return nb_fail(err, NB_USAGE,
                       "static scales of activations are chosen from what the quantized model will "
                       "see: they need the quantized flow");
    w->needs |= NB_STAT_RANGE;
    w->quantized_flow = true;
    return NB_OK;
}

nb_status nb_walker_set_up(nb_walker *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    NB_TRY(find_methods(w, err));
    const nb_quantizer *q = w->method->quantizer;
    w->transform_needs = job->transform != NULL ? job->transform->needs : 0;
    w->quantized_flow = job->flow == NB_FLOW_QUANTIZED ||
                        (job->flow == NB_FLOW_AUTO && (w->needs & NB_STAT_HESSIAN) != 0);
    w->by_block = (w->needs & NB_STAT_BLOCK) != 0;
    NB_TRY(find_ranges(w, err));
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
    NB_TRY(nb_walker_plan_distill(w, err));
    nb_walker_plan_memory(w, longest, n_streams);
    w->plan.disk = nb_streams_disk(&w->config, n_tokens, n_streams, nb_walker_takes_parts(w)) +
                   job->plan->bytes + w->guide_plan.disk + w->distill_disk +
                   nb_walker_resting_bytes(w);
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
    NB_TRY(nb_walker_set_up(&w, err));
    *out = w.plan;
    return NB_OK;
}
