/* What a bench says: speeds, and what part of this machine's limits they are; see bench.h. */
#include "cli/bench.h"

#include <string.h>

/* ---- shares ---- */

/* Operations of a product with one token, and the bytes of its weights, by what limits them. */
typedef struct {
    double int8_ops, fma_ops, bytes;
} cost;

/* A product of 16-bit codes is two of 8 bits. */
static void add_linear(cost *c, const nb_linear *l)
{
    const double ops = 2 * (double)l->w.n_rows * (double)l->w.n_cols;
    if (l->mode == NB_COMPUTE_F)
        c->fma_ops += ops;
    else
        c->int8_ops += l->mode == NB_COMPUTE_I16 ? 2 * ops : ops;
    c->bytes += (double)nb_panels_bytes(&l->w);
}

static cost cost_of_blocks(const nb_model *m)
{
    cost c = {0};
    for (int64_t i = 0; i < m->config.n_layers; i++) {
        const nb_layer *y = &m->layers[i];
        const nb_linear *const all[] = {&y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++)
            add_linear(&c, all[j]);
    }
    return c;
}

static cost cost_of_head(const nb_model *m)
{
    cost c = {0};
    add_linear(&c, nb_model_head(m));
    return c;
}

/* Seconds that the operations take when nothing else costs any. */
static double least_seconds(const cost *c, const nb_limits *l)
{
    return c->int8_ops / l->int8_ops + c->fma_ops / l->fma_ops;
}

/* Of the multiply units' peak, over the linear layers: attention is not counted. */
static double prefill_share(const nb_bench *b, nb_speed speed)
{
    const cost blocks = cost_of_blocks(&b->o.model), head = cost_of_head(&b->o.model);
    const double n = (double)b->wants.prompt;
    const double least = n * least_seconds(&blocks, &b->limits) + least_seconds(&head, &b->limits);
    return least * speed.median / n;
}

static double batch_share(const nb_bench *b, nb_speed speed)
{
    const cost blocks = cost_of_blocks(&b->o.model), head = cost_of_head(&b->o.model);
    return (least_seconds(&blocks, &b->limits) + least_seconds(&head, &b->limits)) * speed.median;
}

/* Bytes that one step reads: all weights once, and the cache of every sequence, which has n_gen
 * tokens more in the end than at the start. */
static double step_bytes(const nb_bench *b, int64_t n_seqs, int64_t context, int64_t n_gen)
{
    const double weights = cost_of_blocks(&b->o.model).bytes + cost_of_head(&b->o.model).bytes;
    const double cell = (double)nb_config_kv_bytes(&b->o.model.config, b->kv.cell);
    return weights + (double)n_seqs * cell * ((double)context + 0.5 * (double)n_gen);
}

static double decode_bytes_per_s(const nb_bench *b, const nb_bench_row *row)
{
    return step_bytes(b, 1, row->depth, b->wants.gen) * row->decode.median;
}

static double batch_bytes_per_s(const nb_bench *b, const nb_bench_row *row, int i)
{
    const int64_t n = b->wants.batches.of[i];
    return step_bytes(b, n, row->depth + b->wants.batch_prompt, b->wants.batch_gen) *
           row->batch[i].median / (double)n;
}

/* ---- JSON ---- */

/* An object that lacks a key, because memory ran out, is none. */
static json_t *whole(json_t *j, int bad)
{
    if (bad == 0)
        return j;
    json_decref(j);
    return NULL;
}

static json_t *limits_json(const nb_limits *l)
{
    json_t *j = json_pack("{s:i, s:f, s:f, s:f, s:s, s:f, s:s}", "threads", l->n_threads,
                          "read_gb_s", 1e-9 * l->read, "read_1_thread_gb_s", 1e-9 * l->read_one,
                          "int8_gop_s", 1e-9 * l->int8_ops, "int8_unit", l->int8_unit,
                          "fma_gflop_s", 1e-9 * l->fma_ops, "fma_unit", l->fma_unit);
    int bad =
        json_object_set_new(j, "l2_read_gb_s", l->l2 > 0 ? json_real(1e-9 * l->l2) : json_null());
    bad |=
        json_object_set_new(j, "l3_read_gb_s", l->l3 > 0 ? json_real(1e-9 * l->l3) : json_null());
    return whole(j, bad);
}

/* {"1": value, "4": value}; null where a batch was not run. */
typedef json_t *batch_value_fn(const nb_bench *b, const nb_bench_row *row, int i);

static json_t *speed_value(const nb_bench *b, const nb_bench_row *row, int i)
{
    (void)b;
    return json_real(row->batch[i].median);
}

static json_t *range_value(const nb_bench *b, const nb_bench_row *row, int i)
{
    (void)b;
    return json_pack("[ff]", row->batch[i].low, row->batch[i].high);
}

static json_t *peak_value(const nb_bench *b, const nb_bench_row *row, int i)
{
    return json_real(batch_share(b, row->batch[i]));
}

static json_t *read_value(const nb_bench *b, const nb_bench_row *row, int i)
{
    return json_real(batch_bytes_per_s(b, row, i) / b->limits.read);
}

static json_t *of_batches(const nb_bench *b, const nb_bench_row *row, batch_value_fn *value)
{
    json_t *object = json_object();
    int bad = 0;
    for (int i = 0; i < b->wants.batches.n; i++) {
        char key[24];
        snprintf(key, sizeof key, "%lld", (long long)b->wants.batches.of[i]);
        bad |= json_object_set_new(object, key,
                                   row->batch[i].median > 0 ? value(b, row, i) : json_null());
    }
    return whole(object, bad);
}

static nb_status print_json(const nb_bench *b, const nb_bench_row *row, const char *kv, nb_out *out,
                            nb_err *err)
{
    const nb_bench_wants *w = &b->wants;
    json_t *j = json_pack(
        "{s:o, s:f, s:f, s:f, s:I, s:I, s:f, s:s, s:s, s:i, s:s, s:I, s:I, s:I, s:[ff], s:[ff]}",
        "name", nb_json_any_text(b->label, strlen(b->label)), "prefill_tok_s", row->prefill.median,
        "decode_tok_s", row->decode.median, "load_s", b->o.load_seconds, "peak_rss_bytes",
        (json_int_t)b->peak_rss, "bytes", (json_int_t)nb_store_file_bytes(b->o.store), "bpw",
        nb_opened_bpw(&b->o), "compute", nb_model_compute_name(&b->o.model), "kv", kv, "threads",
        nb_pool_n_threads(b->rt.pool), "isa", nb_isa_name(b->rt.kernels.isa), "prompt_tokens",
        (json_int_t)w->prompt, "gen_tokens", (json_int_t)w->gen, "depth", (json_int_t)row->depth,
        "prefill_range", row->prefill.low, row->prefill.high, "decode_range", row->decode.low,
        row->decode.high);
    const struct {
        const char *key;
        json_t *value;
    } more[] = {
        {"batch_decode_tok_s", of_batches(b, row, speed_value)},
        {"batch_decode_range", of_batches(b, row, range_value)},
        {"batch_prompt_tokens", json_integer(w->batch_prompt)},
        {"batch_gen_tokens", json_integer(w->batch_gen)},
        {"scheme", b->scheme != NULL ? json_string(b->scheme) : json_null()},
        {"decode_read_gb_s", json_real(1e-9 * decode_bytes_per_s(b, row))},
        {"prefill_peak_share", json_real(prefill_share(b, row->prefill))},
        {"decode_read_share", json_real(decode_bytes_per_s(b, row) / b->limits.read)},
        {"batch_peak_share", of_batches(b, row, peak_value)},
        {"batch_read_share", of_batches(b, row, read_value)},
        {"limits", limits_json(&b->limits)},
    };
    int bad = 0;
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        bad |= json_object_set_new(j, more[i].key, more[i].value);
    return nb_out_json(out, whole(j, bad), err);
}

/* ---- for people ---- */

static void print_limits(const nb_limits *l, nb_out *out)
{
    nb_out_text(out, "limits: %.0f Gop/s int8 (%s), %.0f Gflop/s (%s); read %.1f GB/s",
                1e-9 * l->int8_ops, l->int8_unit, 1e-9 * l->fma_ops, l->fma_unit, 1e-9 * l->read);
    if (l->n_threads > 1)
        nb_out_text(out, ", one thread %.1f", 1e-9 * l->read_one);
    if (l->l3 > 0)
        nb_out_text(out, ", L3 %.0f", 1e-9 * l->l3);
    if (l->l2 > 0)
        nb_out_text(out, ", L2 %.0f", 1e-9 * l->l2);
    nb_out_text(out, "\n");
}

static nb_status table_row(nb_table *t, const char *what, int64_t depth, nb_speed speed,
                           double of_peak, double of_read, nb_err *err)
{
    NB_TRY(nb_table_cell(t, err, "%s", what));
    NB_TRY(nb_table_cell(t, err, "%lld", (long long)depth));
    if (speed.median <= 0) {
        for (int i = 0; i < 4; i++)
            NB_TRY(nb_table_cell(t, err, "-"));
        return NB_OK;
    }
    NB_TRY(nb_table_cell(t, err, "%.1f", speed.median));
    NB_TRY(nb_table_cell(t, err, "%.1f to %.1f", speed.low, speed.high));
    NB_TRY(nb_table_cell(t, err, "%.0f %%", 100 * of_peak));
    return of_read > 0 ? nb_table_cell(t, err, "%.0f %%", 100 * of_read)
                       : nb_table_cell(t, err, "-");
}

static nb_status fill_table(nb_table *t, const nb_bench *b, nb_err *err)
{
    const nb_bench_wants *w = &b->wants;
    char what[64];
    for (int d = 0; d < w->depths.n; d++) {
        const nb_bench_row *row = &b->rows[d];
        snprintf(what, sizeof what, "prefill of %lld", (long long)w->prompt);
        NB_TRY(
            table_row(t, what, row->depth, row->prefill, prefill_share(b, row->prefill), 0, err));
        snprintf(what, sizeof what, "decode of %lld", (long long)w->gen);
        NB_TRY(table_row(t, what, row->depth, row->decode, batch_share(b, row->decode),
                         decode_bytes_per_s(b, row) / b->limits.read, err));
        for (int i = 0; i < w->batches.n; i++) {
            snprintf(what, sizeof what, "decode of %lld in %lld sequence%s",
                     (long long)w->batch_gen, (long long)w->batches.of[i],
                     w->batches.of[i] == 1 ? "" : "s");
            NB_TRY(table_row(t, what, row->depth + w->batch_prompt, row->batch[i],
                             batch_share(b, row->batch[i]),
                             batch_bytes_per_s(b, row, i) / b->limits.read, err));
        }
    }
    return NB_OK;
}

static nb_status print_text(const nb_bench *b, const char *kv, nb_out *out, nb_err *err)
{
    const bool made = b->scheme != NULL;
    nb_out_text(out, "%s: %s%s%s %s, %.2f bits per weight; mode %s, %s, %d threads, KV %s\n",
                b->label, made ? "random " : "", made ? b->scheme : "", made ? "," : "",
                nb_human_bytes(nb_store_file_bytes(b->o.store)).text, nb_opened_bpw(&b->o),
                nb_model_compute_name(&b->o.model), nb_isa_name(b->rt.kernels.isa),
                nb_pool_n_threads(b->rt.pool), kv);
    static const char *const heads[] = {"", ">depth", ">tok/s", ">range", ">of peak", ">of read"};
    nb_table t;
    NB_TRY(nb_table_begin(&t, heads, 6, err));
    const nb_status s = fill_table(&t, b, err);
    if (s != NB_OK) {
        nb_table_free(&t);
        return s;
    }
    NB_TRY(nb_table_print(&t, out, err));
    nb_out_text(out, "%s in %.3f s; %s of memory at the peak\n", made ? "made" : "loaded",
                b->o.load_seconds, nb_human_bytes(b->peak_rss).text);
    print_limits(&b->limits, out);
    return NB_OK;
}

nb_status nb_bench_print(const nb_bench *b, const char *kv, nb_out *out, nb_err *err)
{
    if (!out->json)
        return print_text(b, kv, out, err);
    for (int d = 0; d < b->wants.depths.n; d++)
        NB_TRY(print_json(b, &b->rows[d], kv, out, err));
    return NB_OK;
}

nb_status nb_bench_print_limits(const nb_limits *l, const nb_runtime *rt, nb_out *out, nb_err *err)
{
    if (out->json)
        return nb_out_json(out,
                           json_pack("{s:s, s:i, s:o}", "isa", nb_isa_name(rt->kernels.isa),
                                     "threads", nb_pool_n_threads(rt->pool), "limits",
                                     limits_json(l)),
                           err);
    print_limits(l, out);
    return NB_OK;
}
