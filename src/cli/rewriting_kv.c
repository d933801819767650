/* Static scales of the KV cache in an output that is whole: found by running it, and put where
 * their places are; see rewriting.h. */
#include "cli/rewriting.h"

#include "quant/pass/pace.h"
#include "quant/plan/kv.h"

#include <string.h>

#define WORK_ENDING ".nibble-kv"

/* Bytes of the linear layers of the largest block. */
static int64_t block_bytes(const nb_plan *plan)
{
    int64_t most = 0;
    for (int64_t layer = 0; layer < plan->config.n_layers; layer++) {
        int64_t bytes = 0;
        for (int j = 0; j < NB_N_LINEARS; j++) {
            const int64_t i = nb_plan_linear(plan, layer, (nb_linear_id)j);
            bytes += i < 0 ? 0 : plan->weights[i].bytes;
        }
        most = bytes > most ? bytes : most;
    }
    return most;
}

static nb_kv_ranges_job job_of(const nb_rewriting *r)
{
    const nb_calibrating *c = &r->calibrating;
    return (nb_kv_ranges_job){.seqs = c->set.seq,
                              .n_seqs = c->set.n,
                              .by_head = r->plan.request.kv == NB_KV_SCALES_HEAD,
                              .observing = r->flags->kv_observing,
                              .memory = r->flags->memory,
                              .kernels = &r->runtime.kernels,
                              .pool = r->runtime.pool};
}

nb_status nb_rewriting_plan_kv(nb_rewriting *r, double *seconds, nb_err *err)
{
    double rate;
    *seconds = 0;
    if (r->plan.request.kv == NB_KV_SCALES_NONE)
        return NB_OK;
    const nb_kv_ranges_job job = job_of(r);
    NB_TRY(nb_kv_ranges_estimate(&r->kv_plan, &job, &r->plan.config, block_bytes(&r->plan), err));
    if (!r->dry_run)
        return NB_OK;
    NB_TRY(nb_pace_measure(&r->runtime.kernels, r->runtime.pool, &rate, err));
    *seconds = r->kv_plan.flops / (rate * NB_PACE_OF_FORWARD);
    return NB_OK;
}

typedef struct {
    nb_out *out;
    nb_progress bar;
    double done;
} progress;

static bool show(void *context, double flops)
{
    progress *p = context;
    p->done += flops;
    nb_progress_update(p->out, &p->bar, (int64_t)(p->done / 1e6));
    return !nb_interrupted();
}

static nb_status find(nb_rewriting *r, nb_kv_ranges_job *job, const nb_workdir *dir, nb_out *out,
                      nb_err *err)
{
    progress p = {.out = out};
    nb_store *store;
    NB_TRY(nb_store_open(&store, r->made_at, err));
    job->store = store;
    job->dir = dir;
    job->progress = show;
    job->context = &p;
    nb_progress_begin(out, &p.bar, "watching keys and values", "Mflop",
                      (int64_t)(r->kv_plan.flops / 1e6));
    const nb_status s = nb_kv_ranges_find(job, &r->kv_plan, r->plan.kv_scales, err);
    nb_progress_end(out, &p.bar);
    nb_store_close(store);
    return s;
}

static nb_status amend(nb_rewriting *r, nb_err *err)
{
    for (int64_t i = r->plan.first_kv; i < r->plan.first_kv + nb_plan_n_kv(&r->plan); i++) {
        const nb_mat m = nb_plan_kv_mat(&r->plan, i);
        NB_TRY(nb_sink_amend(r->sink, i, &m, err));
    }
    return NB_OK;
}

/* The hidden states go to a folder of their own: what the walk has left in its own is still good
 * to go on from, should this be interrupted. */
nb_status nb_rewriting_find_kv(nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_buf folder = {0};
    nb_workdir dir = NB_WORKDIR_CLOSED;
    if (r->plan.request.kv == NB_KV_SCALES_NONE)
        return NB_OK;
    nb_kv_ranges_job job = job_of(r);
    nb_status s = nb_rewriting_beside(r, WORK_ENDING, &folder, err);
    if (s == NB_OK)
        s = nb_workdir_open(&dir, (const char *)folder.data, err);
    if (s == NB_OK)
        s = find(r, &job, &dir, out, err);
    if (dir.lock >= 0)
        nb_workdir_close(&dir, true);
    nb_buf_free(&folder);
    return s == NB_OK ? amend(r, err) : s;
}

/* ---- what is told of it ---- */

typedef struct {
    float least, most;
} range;

static range range_of(const nb_rewriting *r, int64_t part)
{
    const nb_plan *plan = &r->plan;
    const int64_t first = plan->first_kv + part;
    range all = {*nb_plan_kv_scales(plan, first), *nb_plan_kv_scales(plan, first)};
    for (int64_t i = first; i < plan->first_kv + nb_plan_n_kv(plan); i += 2) {
        const float *s = nb_plan_kv_scales(plan, i);
        for (int64_t h = 0; h < plan->weights[i].n_rows; h++) {
            all.least = s[h] < all.least ? s[h] : all.least;
            all.most = s[h] > all.most ? s[h] : all.most;
        }
    }
    return all;
}

void nb_rewriting_print_kv(const nb_rewriting *r, nb_out *out)
{
    if (out->quiet || out->json || r->plan.request.kv == NB_KV_SCALES_NONE)
        return;
    const range keys = range_of(r, 0), values = range_of(r, 1);
    nb_out_text(out, "  KV cache: fp8, scales of keys %.4g to %.4g, of values %.4g to %.4g\n",
                (double)keys.least, (double)keys.most, (double)values.least, (double)values.most);
}

/* All scales of a part: of each layer a number, or a list with one for each head. */
static json_t *part_json(const nb_plan *plan, int64_t part)
{
    json_t *all = json_array();
    for (int64_t i = plan->first_kv + part; i < plan->first_kv + nb_plan_n_kv(plan); i += 2) {
        const float *s = nb_plan_kv_scales(plan, i);
        json_t *heads = json_array();
        for (int64_t h = 0; h < plan->weights[i].n_rows; h++)
            json_array_append_new(heads, json_real((double)s[h]));
        if (plan->request.kv == NB_KV_SCALES_HEAD) {
            json_array_append_new(all, heads);
        } else {
            json_array_append(all, json_array_get(heads, 0));
            json_decref(heads);
        }
    }
    return all;
}

json_t *nb_rewriting_kv_json(const nb_rewriting *r)
{
    const nb_plan *plan = &r->plan;
    if (plan->request.kv == NB_KV_SCALES_NONE)
        return json_null();
    const bool by_head = plan->request.kv == NB_KV_SCALES_HEAD;
    return json_pack("{s:s, s:s, s:s, s:o, s:o}", "format", "fp8", "strategy",
                     by_head ? "attn_head" : "tensor", "observer",
                     r->flags->observer != NULL ? r->flags->observer : "minmax", "k_scales",
                     part_json(plan, 0), "v_scales", part_json(plan, 1));
}
