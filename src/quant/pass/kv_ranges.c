/* See kv_ranges.h. */
#include "quant/pass/kv_ranges.h"

#include "numeric/minifloat.h"

#include <stdio.h>
#include <string.h>

/* The program and its tables. */
#define BASE_BYTES ((int64_t)48 << 20)

float nb_kv_scale_round(float scale)
{
    const float least = 0x1p-14f, most = 65280.0f; /* normal in F16; its largest in BF16 */
    const float s = scale < least ? least : scale > most ? most : scale;
    return nb_f32_from_bits((nb_f32_bits(s) + 0xffffu) & 0xffff0000u);
}

/* ---- what it takes ---- */

static int64_t longest_of(const nb_kv_ranges_job *job)
{
    int64_t longest = 1;
    for (int64_t i = 0; i < job->n_seqs; i++)
        longest = job->seqs[i].n > longest ? job->seqs[i].n : longest;
    return longest;
}

static int64_t n_scales(const nb_kv_ranges_job *job, const nb_config *c)
{
    return job->by_head ? c->n_kv_heads : 1;
}

nb_status nb_kv_ranges_estimate(nb_kv_ranges_plan *out, const nb_kv_ranges_job *job,
                                const nb_config *c, int64_t block_bytes, nb_err *err)
{
    const int n_threads = nb_pool_n_threads(job->pool);
    const int64_t longest = longest_of(job);
    const int64_t observers = 2 * n_scales(job, c) * (n_threads + 1) * (int64_t)sizeof(nb_observer);
    *out = (nb_kv_ranges_plan){.max_rows = 2 * NB_STREAMS_ROWS};
    do { /* half as many rows, until it fits */
        out->max_rows /= 2;
        out->memory = BASE_BYTES + 2 * block_bytes + observers +
                      (job->by_head ? out->max_rows * c->head_dim * 4 : 0) +
                      nb_streams_memory(c, longest, out->max_rows, 1, n_threads);
    } while (job->memory > 0 && out->memory > job->memory && out->max_rows > 128);
    if (job->memory > 0 && out->memory > job->memory)
        return nb_fail(err, NB_LIMIT,
                       "finding scales of the KV cache needs about %lld MB here, and --memory is "
                       "%lld MB",
                       (long long)((out->memory + (1 << 20) - 1) >> 20),
                       (long long)(job->memory >> 20));
    for (int64_t i = 0; i < job->n_seqs; i++) {
        const int64_t n = job->seqs[i].n;
        for (int p = 0; p < NB_N_PARTS; p++)
            out->flops +=
                (double)(n * c->n_layers) * nb_part_flops(c, (nb_block_part)p, (double)n / 2);
        out->disk += nb_streams_disk(c, n, 1, false);
    }
    return NB_OK;
}

/* ---- the pass ---- */

typedef struct {
    const nb_kv_ranges_job *job;
    const nb_config *config;
    nb_algebra la;
    nb_streams streams;
    nb_input_range **ranges; /* [2][n_scales] of the layer at hand */
    float *head;             /* [max_rows][head_dim] */
    nb_loaded source;
    int64_t layer;
} watch;

/* Rows of keys or values into the observers of their heads. */
static nb_status add_rows(watch *w, nb_input_range **ranges, const float *x, int64_t n, bool last,
                          nb_err *err)
{
    const int64_t n_heads = w->config->n_kv_heads, d = w->config->head_dim;
    const int64_t n_ranges = n_scales(w->job, w->config);
    for (int64_t h = 0; h < n_ranges; h++) {
        const float *from = x;
        for (int64_t i = 0; w->head != NULL && i < n; i++)
            memcpy(w->head + i * d, x + (i * n_heads + h) * d, (size_t)d * sizeof *x);
        if (w->head != NULL)
            from = w->head;
        const int64_t width = w->head != NULL ? d : n_heads * d;
        NB_TRY(nb_input_range_add(ranges[h], w->job->pool, from, n * width, err));
        if (last) /* averages are over sequences */
            nb_observer_end_batch(&ranges[h]->all);
    }
    return NB_OK;
}

static nb_status see(void *context, const float *k, const float *v, int64_t n, bool last,
                     nb_err *err)
{
    watch *w = context;
    nb_status s = add_rows(w, w->ranges, k, n, last, err);
    if (s == NB_OK)
        s = add_rows(w, w->ranges + n_scales(w->job, w->config), v, n, last, err);
    return s == NB_OK ? s : nb_context(err, "layer %lld, keys and values", (long long)w->layer);
}

/* A7: in mode f, unless the scheme quantizes activations. */
static nb_status load_block(watch *w, nb_err *err)
{
    nb_store *store = w->job->store;
    NB_TRY(nb_model_load_vectors(&w->streams.frame, store, 0, w->layer, err));
    for (int j = 0; j < NB_N_LINEARS; j++) {
        const nb_weight *from = nb_layer_linear(&w->streams.frame.layers[0], (nb_linear_id)j)->info;
        NB_TRY(nb_store_read(store, from, &w->source, err));
        NB_TRY(nb_model_set_linear(
            &w->streams.frame, 0, (nb_linear_id)j, &w->source.mat, &from->act,
            from->act.bits != 0 ? NB_COMPUTE_AUTO : NB_COMPUTE_ALL_F, w->job->pool, err));
    }
    return NB_OK;
}

static nb_status renew_ranges(watch *w, nb_err *err)
{
    for (int64_t i = 0; i < 2 * n_scales(w->job, w->config); i++) {
        nb_input_range_free(w->ranges[i]);
        w->ranges[i] = NULL;
        NB_TRY(nb_input_range_new(&w->ranges[i], err));
    }
    return NB_OK;
}

static nb_status watch_layers(watch *w, float *scales, nb_err *err)
{
    static nb_input_stats *const nothing[NB_N_POINTS] = {0};
    const int64_t n = 2 * n_scales(w->job, w->config);
    NB_TRY(nb_streams_embed(&w->streams, w->job->store, err));
    for (w->layer = 0; w->layer < w->config->n_layers; w->layer++) {
        NB_TRY(renew_ranges(w, err));
        NB_TRY(load_block(w, err));
        NB_TRY(nb_streams_sweep(&w->streams, 0, nothing, w->layer + 1 < w->config->n_layers, err));
        for (int64_t i = 0; i < n; i++)
            scales[w->layer * n + i] = nb_kv_scale_round(
                nb_input_range_scale(w->ranges[i], &w->job->observing, NB_RANGE_E4M3));
        nb_streams_next(&w->streams);
    }
    return NB_OK;
}

nb_status nb_kv_ranges_find(const nb_kv_ranges_job *job, const nb_kv_ranges_plan *plan,
                            float *scales, nb_err *err)
{
    nb_config config;
    NB_TRY(nb_config_read(job->store, &config, err));
    const int64_t n = 2 * n_scales(job, &config);
    watch w = {.job = job, .config = &config, .la = {.kernels = job->kernels, .pool = job->pool}};
    nb_status s = nb_streams_open(&w.streams, job->store, job->seqs, job->n_seqs, 1, false,
                                  plan->max_rows, job->dir, &w.la, err);
    if (s != NB_OK)
        return s;
    w.streams.progress = job->progress;
    w.streams.context = job->context;
    w.streams.see_heads = see;
    w.streams.heads_context = &w;
    NB_TRY_GOTO(s, NB_ALLOC(&w.ranges, n, err));
    if (job->by_head)
        NB_TRY_GOTO(s, NB_ALLOC(&w.head, plan->max_rows * config.head_dim, err));
    s = watch_layers(&w, scales, err);
done:
    for (int64_t i = 0; w.ranges != NULL && i < n; i++)
        nb_input_range_free(w.ranges[i]);
    nb_free(w.ranges);
    nb_free(w.head);
    nb_loaded_free(&w.source);
    nb_streams_close(&w.streams);
    nb_algebra_free(&w.la);
    return s;
}
