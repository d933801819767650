/* See checking.h. */
#include "cli/checking.h"

#include "base/memory.h"
#include "eval/score.h"
#include "quant/pass/pace.h"
#include "quant/pass/streams.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Blocks that are tried beside each other: the original runs once for all of them. */
#define MAX_HYBRIDS 2

static const char floor_definition[] =
    "KL of the original computed with its keys and values kept in F16, as the output is, to the "
    "original computed with them in F32";

typedef struct {
    const nb_check_request *request;
    const nb_runtime *rt;
    nb_out *out;
    nb_opened base, made;
    nb_protocol protocol;
    int32_t *tokens;
    int64_t n_tokens, n_sequences;
    nb_score score, floor;
    double *layer_kl; /* [n_layers] */
    nb_progress bar;
    int64_t done; /* windows and rounds of hybrids */
} check;

/* ---- the text ---- */

static nb_status gather(check *c, int64_t n_ctx, nb_err *err)
{
    const nb_calib_set *set = c->request->set;
    int64_t longest = 0, total = 0;
    NB_TRY(NB_ALLOC(&c->tokens, set->n_held_tokens > 0 ? set->n_held_tokens : 1, err));
    for (int64_t i = 0; i < set->n && c->n_sequences < c->request->n_sequences; i++) {
        const nb_calib_seq *seq = &set->seq[i];
        if (!seq->held)
            continue;
        memcpy(c->tokens + total, seq->ids, (size_t)seq->n * sizeof *seq->ids);
        total += seq->n;
        longest = seq->n > longest ? seq->n : longest;
        c->n_sequences++;
    }
    int64_t window = longest < NB_CHECK_WINDOW ? longest : NB_CHECK_WINDOW;
    window = window < n_ctx ? window : n_ctx;
    if (window < 2)
        return nb_fail(err, NB_DATA, "no calibration text is held out");
    c->n_tokens = total;
    c->protocol = (nb_protocol){"held-out", window, 0};
    return NB_OK;
}

/* ---- memory ---- */

/* About what scoring takes: both models packed, and the buffers of up to MAX_HYBRIDS + 1 scorers.
 */
static int64_t memory_needed(int64_t base_bytes, int64_t made_bytes, const nb_config *c,
                             int64_t window, int n_threads)
{
    const nb_model like = {.config = *c, .n_ctx = window};
    const int64_t step = window < NB_SCORE_TOKENS ? window : NB_SCORE_TOKENS;
    const double cache = (double)nb_config_kv_bytes(c, NB_KV_F32) * (double)(window + NB_KV_PAGE);
    const double scorer = (double)nb_work_bytes(&like, n_threads, step) + cache +
                          4.0 * NB_SCORE_ROWS * (double)c->vocab_size +
                          4.0 * (double)c->d_model * (double)window;
    const double bytes = NB_CHECK_BASE_BYTES +
                         NB_CHECK_PACKED * ((double)base_bytes + (double)made_bytes) +
                         (MAX_HYBRIDS + 1) * scorer;
    return bytes < 9e18 ? (int64_t)bytes : INT64_MAX;
}

nb_status nb_check_memory(int64_t needed, int64_t memory, nb_err *err)
{
    const int64_t free_bytes = memory > 0 ? memory : nb_memory_available();
    if (needed > free_bytes)
        return nb_fail(err, NB_LIMIT, "it takes about %s of memory, and %s %s",
                       nb_human_bytes(needed).text, nb_human_bytes(free_bytes).text,
                       memory > 0 ? "is the limit (--memory)" : "are free");
    return NB_OK;
}

/* ---- what it will take ---- */

double nb_check_blocks_flops(const nb_config *c, double n_seen)
{
    double block = 0;
    for (int p = 0; p < NB_N_PARTS; p++)
        block += nb_part_flops(c, (nb_block_part)p, n_seen);
    return (double)c->n_layers * block;
}

/* The blocks and the head, for one token. */
static double token_flops(const nb_config *c, int64_t window)
{
    return nb_check_blocks_flops(c, (double)window / 2) +
           2.0 * (double)c->d_model * (double)c->vocab_size;
}

nb_status nb_check_seconds(double *out, double flops, double n_logits, const nb_runtime *rt,
                           nb_err *err)
{
    double rate;
    NB_TRY(nb_pace_measure(&rt->kernels, rt->pool, &rate, err));
    *out = flops / (rate * NB_PACE_OF_FORWARD) +
           n_logits * NB_PACE_LOGIT_SECONDS / nb_pool_n_threads(rt->pool);
    return NB_OK;
}

nb_status nb_check_estimate(nb_check_plan *out, const nb_check_request *request, nb_store *source,
                            int64_t output_bytes, const nb_runtime *rt, bool timed, nb_out *to,
                            nb_err *err)
{
    check c = {.request = request};
    nb_config config;
    nb_err why = {0};
    *out = (nb_check_plan){0};
    if (request->n_sequences == 0)
        return NB_OK;
    NB_TRY(nb_config_read(source, &config, err));
    nb_status s = gather(&c, config.n_ctx, &why);
    nb_free(c.tokens);
    const int64_t window = c.protocol.n_ctx;
    const int64_t memory = s == NB_OK ? memory_needed(nb_store_file_bytes(source), output_bytes,
                                                      &config, window, nb_pool_n_threads(rt->pool))
                                      : 0;
    if (s == NB_OK)
        s = nb_check_memory(memory, request->memory, &why);
    if (s == NB_MEMORY) {
        *err = why;
        return s;
    }
    if (s != NB_OK) {
        if (timed)
            nb_out_note(to, "there will be no check against the original: %s", why.text);
        return NB_OK;
    }
    /* All windows by three models; then one window by the original and one hybrid a block, and
     * the original once for MAX_HYBRIDS of these. */
    const int64_t n_rounds = (config.n_layers + MAX_HYBRIDS - 1) / MAX_HYBRIDS;
    const int64_t n_passes = 3 * (c.n_tokens / window) + config.n_layers + n_rounds;
    const double n_tokens = (double)n_passes * (double)window;
    out->memory = memory;
    out->flops = n_tokens * token_flops(&config, window);
    if (timed)
        NB_TRY(nb_check_seconds(&out->seconds, out->flops, n_tokens * (double)config.vocab_size, rt,
                                err));
    return NB_OK;
}

/* ---- opening ---- */

static nb_status open_models(check *c, nb_err *err)
{
    nb_store *base = NULL, *made = NULL;
    nb_config config;
    nb_status s;
    NB_TRY_GOTO(s, nb_store_open(&base, c->request->source, err));
    NB_TRY_GOTO(s, nb_store_open(&made, c->request->output, err));
    NB_TRY_GOTO(s, nb_finite_repeat(c->request->finite, base, err));
    NB_TRY_GOTO(s, nb_config_read(base, &config, err));
    NB_TRY_GOTO(s, gather(c, config.n_ctx, err));
    const int64_t needed =
        memory_needed(nb_store_file_bytes(base), nb_store_file_bytes(made), &config,
                      c->protocol.n_ctx, nb_pool_n_threads(c->rt->pool));
    NB_TRY_GOTO(s, nb_check_memory(needed, c->request->memory, err));
    nb_store *const opening = base;
    base = NULL; /* the model's from here on, whatever comes of it */
    NB_TRY_GOTO(s, nb_opened_load(&c->base, c->rt, opening, NB_COMPUTE_ALL_F, c->protocol.n_ctx,
                                  false, err));
    nb_store *const output = made;
    made = NULL;
    s = nb_opened_load(&c->made, c->rt, output, NB_COMPUTE_AUTO, c->protocol.n_ctx, false, err);
done:
    nb_store_close(base);
    nb_store_close(made);
    return s;
}

/* ---- scoring ---- */

static bool on_window(void *context, int64_t done, int64_t total)
{
    check *c = context;
    (void)done;
    (void)total;
    nb_progress_update(c->out, &c->bar, ++c->done);
    return !nb_interrupted();
}

static nb_status init_scorer(nb_scorer *s, const check *c, nb_model *model, const nb_protocol *p,
                             nb_kv_format kv, nb_err *err)
{
    return nb_scorer_init(s, model, &c->rt->kernels, c->rt->pool, p, kv, err);
}

/* The output, and the original with the output's cache. */
static nb_status score_whole(check *c, nb_err *err)
{
    nb_scorer models[2] = {{0}}, base = {0};
    nb_score results[2];
    nb_status s;
    NB_TRY_GOTO(s, init_scorer(&base, c, &c->base.model, &c->protocol, NB_KV_F32, err));
    NB_TRY_GOTO(s, init_scorer(&models[0], c, &c->made.model, &c->protocol, NB_KV_F16, err));
    NB_TRY_GOTO(s, init_scorer(&models[1], c, &c->base.model, &c->protocol, NB_KV_F16, err));
    NB_TRY_GOTO(s, nb_score_run(models, 2, &base, &c->protocol, c->tokens, c->n_tokens, 0,
                                on_window, c, results, err));
    c->score = results[0];
    c->floor = results[1];
done:
    nb_scorer_free(&models[0]);
    nb_scorer_free(&models[1]);
    nb_scorer_free(&base);
    return s;
}

/* The original with one block of the output, for blocks [first, first + n). A block with its norms
 * computes the same function whatever a transform did to it, so it fits in. */
static nb_status score_hybrids(check *c, nb_layer *layers, int64_t first, int64_t n, nb_err *err)
{
    const int64_t n_layers = c->base.model.config.n_layers;
    nb_model hybrids[MAX_HYBRIDS];
    nb_scorer scorers[MAX_HYBRIDS] = {{0}}, base = {0};
    nb_score results[MAX_HYBRIDS];
    nb_status s;
    NB_TRY_GOTO(s, init_scorer(&base, c, &c->base.model, &c->protocol, NB_KV_F32, err));
    for (int64_t i = 0; i < n; i++) {
        hybrids[i] = c->base.model;
        hybrids[i].layers = layers + i * n_layers;
        memcpy(hybrids[i].layers, c->base.model.layers, (size_t)n_layers * sizeof *layers);
        hybrids[i].layers[first + i] = c->made.model.layers[first + i];
        NB_TRY_GOTO(s, init_scorer(&scorers[i], c, &hybrids[i], &c->protocol, NB_KV_F32, err));
    }
    NB_TRY_GOTO(s, nb_score_run(scorers, n, &base, &c->protocol, c->tokens, c->n_tokens, 1,
                                on_window, c, results, err));
    for (int64_t i = 0; i < n; i++)
        c->layer_kl[first + i] = results[i].kl_mean;
done:
    for (int64_t i = 0; i < n; i++)
        nb_scorer_free(&scorers[i]);
    nb_scorer_free(&base);
    return s;
}

static nb_status score_layers(check *c, nb_err *err)
{
    const int64_t n_layers = c->base.model.config.n_layers;
    nb_layer *layers;
    NB_TRY(NB_ALLOC(&c->layer_kl, n_layers, err));
    NB_TRY(NB_ALLOC(&layers, MAX_HYBRIDS * n_layers, err));
    nb_status s = NB_OK;
    for (int64_t first = 0; s == NB_OK && first < n_layers; first += MAX_HYBRIDS) {
        const int64_t left = n_layers - first;
        s = score_hybrids(c, layers, first, left < MAX_HYBRIDS ? left : MAX_HYBRIDS, err);
    }
    nb_free(layers);
    return s;
}

static nb_status measure(check *c, nb_err *err)
{
    NB_TRY(open_models(c, err));
    const int64_t n_windows = c->n_tokens / c->protocol.n_ctx;
    const int64_t n_rounds = (c->base.model.config.n_layers + MAX_HYBRIDS - 1) / MAX_HYBRIDS;
    nb_progress_begin(c->out, &c->bar, "checking", "steps", n_windows + n_rounds);
    nb_status s = score_whole(c, err);
    if (s == NB_OK && !c->request->whole_only)
        s = score_layers(c, err);
    nb_progress_end(c->out, &c->bar);
    return s;
}

/* ---- what is recorded ---- */

static json_t *number_json(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *layers_json(const check *c)
{
    json_t *list = json_array();
    for (int64_t i = 0; list != NULL && c->layer_kl != NULL && i < c->base.model.config.n_layers;
         i++) {
        json_t *o =
            json_pack("{s:I, s:o}", "layer", (json_int_t)i, "kl_mean", number_json(c->layer_kl[i]));
        if (json_array_append_new(list, o) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

static json_t *result_json(const check *c, double seconds)
{
    const nb_score *r = &c->score;
    const struct {
        const char *key;
        double value;
    } numbers[] = {
        {"perplexity", r->perplexity},
        {"perplexity_se", r->perplexity_se},
        {"base_perplexity", r->base_perplexity},
        {"kl_mean", r->kl_mean},
        {"kl_mean_se", r->kl_mean_se},
        {"kl_median", r->kl_median},
        {"kl_p99", r->kl_p99},
        {"kl_max", r->kl_max},
        {"top1", r->top1},
        {"top1_se", r->top1_se},
        {"flips", 1 - r->top1},
    };
    json_t *o = json_pack(
        "{s:I, s:I, s:I, s:I, s:s, s:s}", "n_sequences", (json_int_t)c->n_sequences, "n_windows",
        (json_int_t)r->n_windows, "window", (json_int_t)c->protocol.n_ctx, "n_tokens",
        (json_int_t)r->n_tokens, "compute", nb_model_compute_name(&c->made.model), "kv", "f16");
    int bad = o == NULL;
    for (size_t i = 0; bad == 0 && i < sizeof numbers / sizeof *numbers; i++)
        bad = json_object_set_new(o, numbers[i].key, number_json(numbers[i].value));
    if (bad == 0)
        bad = json_object_set_new(o, "noise_floor",
                                  json_pack("{s:o, s:s}", "kl_mean", number_json(c->floor.kl_mean),
                                            "definition", floor_definition)) |
              json_object_set_new(o, "layer_tokens", json_integer(c->protocol.n_ctx - 1)) |
              json_object_set_new(o, "layers", layers_json(c)) |
              json_object_set_new(o, "seconds", json_real(seconds));
    if (bad == 0)
        return o;
    json_decref(o);
    return NULL;
}

static json_t *left_out_json(nb_status s, const nb_err *why)
{
    const char *text = s == NB_INTERRUPTED ? "interrupted" : why->text;
    return json_pack("{s:o}", "left_out", nb_json_any_text(text, strlen(text)));
}

nb_status nb_check_run(json_t **out, const nb_check_request *request, const nb_runtime *rt,
                       nb_out *to, nb_err *err)
{
    *out = NULL;
    if (request->n_sequences == 0)
        return NB_OK;
    const double start = nb_clock();
    check c = {.request = request, .rt = rt, .out = to};
    nb_err why = {0};
    const nb_status s = measure(&c, &why);
    *out = s == NB_OK ? result_json(&c, nb_clock() - start) : left_out_json(s, &why);
    if (s != NB_OK)
        nb_out_note(to, "no check against the original: %s",
                    s == NB_INTERRUPTED ? "interrupted" : why.text);
    nb_free(c.tokens);
    nb_free(c.layer_kl);
    nb_opened_close(&c.base);
    nb_opened_close(&c.made);
    return *out != NULL ? NB_OK : nb_fail(err, NB_MEMORY, "no memory for the report");
}
