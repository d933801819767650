/* What nibble bench serve says; see bench_serve.h. Names and labels are those of vLLM's bench where
 * it has them. */
#include "cli/bench_serve.h"

#include <stdio.h>
#include <string.h>

/* ---- JSON ---- */

static json_t *real_or_null(double value)
{
    return value < 0 ? json_null() : json_real(value);
}

static json_t *integer_or_null(int64_t value)
{
    return value < 0 ? json_null() : json_integer(value);
}

static int put_stat(json_t *j, const char *of, const char *name, double value)
{
    char key[64];
    snprintf(key, sizeof key, "%s_%s_ms", of, name);
    return json_object_set_new(j, key, json_real(value));
}

static int put_stats(json_t *j, const char *name, const nb_stats *s)
{
    int bad = put_stat(j, "mean", name, s->mean);
    bad |= put_stat(j, "median", name, s->median);
    bad |= put_stat(j, "std", name, s->std);
    bad |= put_stat(j, "min", name, s->min);
    bad |= put_stat(j, "p90", name, s->p90);
    bad |= put_stat(j, "p95", name, s->p95);
    bad |= put_stat(j, "p99", name, s->p99);
    return bad | put_stat(j, "max", name, s->max);
}

/* Every kind of failure is a key, so that a reader need not ask whether it is there. */
static json_t *fates_json(const nb_summary *s)
{
    json_t *j = json_object();
    int bad = 0;
    for (int i = NB_FATE_OK + 1; i < NB_N_FATES; i++)
        bad |= json_object_set_new(j, nb_fate_name((nb_fate)i), json_integer(s->fates[i]));
    if (bad == 0)
        return j;
    json_decref(j);
    return NULL;
}

static json_t *flaws_json(const nb_summary *s)
{
    json_t *j = json_object();
    int bad = 0;
    for (int i = 0; i < NB_N_FLAWS; i++)
        bad |= json_object_set_new(j, nb_flaw_name((nb_flaw)i), json_integer(s->flaws[i]));
    if (bad == 0)
        return j;
    json_decref(j);
    return NULL;
}

static json_t *statuses_json(const nb_summary *s)
{
    json_t *j = json_object();
    int bad = 0;
    for (int i = 0; i < NB_STATUS_MAX; i++) {
        char key[16];
        snprintf(key, sizeof key, "%d", i);
        if (s->statuses[i] > 0)
            bad |= json_object_set_new(j, key, json_integer(s->statuses[i]));
    }
    if (bad == 0)
        return j;
    json_decref(j);
    return NULL;
}

static nb_status print_json(const nb_bench_serve *b, nb_out *out, nb_err *err)
{
    const nb_load_options *o = &b->load;
    const nb_summary *s = &b->summary;
    const bool random = o->file == NULL;
    const struct {
        const char *key;
        json_t *value;
    } rows[] = {
        {"backend", json_string(nb_backend_name(b->target.backend))},
        {"endpoint", json_string(b->target.chat ? "chat" : "completions")},
        {"url", json_string(b->target.url)},
        {"model_id", nb_json_any_text(b->target.model, strlen(b->target.model))},
        {"num_prompts", json_integer(s->n)},
        {"request_rate", o->rate > 0 ? json_real(o->rate) : json_string("inf")},
        {"burstiness", json_real(o->burstiness)},
        {"max_concurrency", o->concurrency > 0 ? json_integer(o->concurrency) : json_null()},
        {"seed", json_integer((json_int_t)o->plan.seed)},
        {"exact_lengths", json_boolean(random && b->words.exact)},
        {"duration", json_real(s->duration)},
        {"completed", json_integer(s->completed)},
        {"failed", json_integer(s->failed)},
        {"aborted", json_integer(s->aborted)},
        {"interrupted", json_boolean(b->result.interrupted)},
        {"total_input_tokens", json_integer(s->input_tokens)},
        {"total_output_tokens", json_integer(s->output_tokens)},
        {"total_cached_tokens", integer_or_null(s->cached_tokens)},
        {"request_throughput", json_real(s->request_rate)},
        {"request_goodput", real_or_null(s->good_rate)},
        {"output_throughput", json_real(s->output_rate)},
        {"total_token_throughput", json_real(s->total_rate)},
        {"max_output_tokens_per_s", json_real(s->peak_output_rate)},
        {"max_concurrent_requests", json_integer(s->peak_concurrency)},
        {"client_busy", json_real(s->busy)},
        {"client_cpu_us_per_token", json_real(s->cpu_us)},
        {"errors", fates_json(s)},
        {"status_codes", statuses_json(s)},
        {"flawed_streams", json_integer(s->flawed)},
        {"stream_flaws", flaws_json(s)},
    };
    json_t *j = json_object();
    int bad = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        bad |= json_object_set_new(j, rows[i].key, rows[i].value);
    bad |= put_stats(j, "ttft", &s->ttft);
    bad |= put_stats(j, "tpot", &s->tpot);
    bad |= put_stats(j, "itl", &s->itl);
    bad |= put_stats(j, "e2el", &s->e2el);
    bad |= put_stats(j, "start_delay", &s->late);
    if (bad != 0) {
        json_decref(j);
        j = NULL;
    }
    return nb_out_json(out, j, err);
}

/* ---- for people ---- */

static void print_count(nb_out *out, const char *label, int64_t value)
{
    nb_out_text(out, "%-41s%lld\n", label, (long long)value);
}

static void print_real(nb_out *out, const char *label, double value)
{
    nb_out_text(out, "%-41s%.2f\n", label, value);
}

static nb_status stats_row(nb_table *t, const char *label, const nb_stats *s, nb_err *err)
{
    const double cells[] = {s->mean, s->median, s->p90, s->p95, s->p99, s->max, s->std};
    NB_TRY(nb_table_cell(t, err, "%s", label));
    for (size_t i = 0; i < sizeof cells / sizeof *cells; i++)
        NB_TRY(s->n > 0 ? nb_table_cell(t, err, "%.2f", cells[i]) : nb_table_cell(t, err, "-"));
    return NB_OK;
}

static nb_status fill_latencies(nb_table *t, const nb_summary *s, nb_err *err)
{
    NB_TRY(stats_row(t, "Time to first token (TTFT)", &s->ttft, err));
    NB_TRY(stats_row(t, "Time per output token after it (TPOT)", &s->tpot, err));
    NB_TRY(stats_row(t, "Inter-token latency (ITL)", &s->itl, err));
    return stats_row(t, "End-to-end latency (E2EL)", &s->e2el, err);
}

/* Failures by kind, statuses by code, and flaws: only what there is. */
static void print_troubles(const nb_summary *s, nb_out *out)
{
    for (int i = NB_FATE_OK + 1; i < NB_N_FATES; i++) {
        if (s->fates[i] > 0)
            nb_out_text(out, "  %-39s%lld\n", nb_fate_name((nb_fate)i), (long long)s->fates[i]);
    }
    for (int i = 0; i < NB_STATUS_MAX; i++) {
        if (s->statuses[i] > 0)
            nb_out_text(out, "  HTTP %-34d%lld\n", i, (long long)s->statuses[i]);
    }
    if (s->flawed > 0)
        print_count(out, "Streams that broke a rule:", s->flawed);
    for (int i = 0; i < NB_N_FLAWS; i++) {
        if (s->flaws[i] > 0)
            nb_out_text(out, "  %-39s%lld\n", nb_flaw_name((nb_flaw)i), (long long)s->flaws[i]);
    }
}

static void print_counts(const nb_bench_serve *b, nb_out *out)
{
    const nb_summary *s = &b->summary;
    print_count(out, "Successful requests:", s->completed);
    print_count(out, "Failed requests:", s->failed);
    print_troubles(s, out);
    if (b->load.concurrency > 0)
        print_count(out, "Maximum request concurrency:", b->load.concurrency);
    if (b->load.rate > 0)
        print_real(out, "Request rate configured (RPS):", b->load.rate);
    print_real(out, "Benchmark duration (s):", s->duration);
    print_count(out, "Total input tokens:", s->input_tokens);
    if (s->cached_tokens >= 0)
        print_count(out, "  of these from a cache:", s->cached_tokens);
    print_count(out, "Total generated tokens:", s->output_tokens);
    print_real(out, "Request throughput (req/s):", s->request_rate);
    if (s->good_rate >= 0)
        print_real(out, "Request goodput (req/s):", s->good_rate);
    print_real(out, "Output token throughput (tok/s):", s->output_rate);
    print_real(out, "Peak output token throughput (tok/s):", s->peak_output_rate);
    print_count(out, "Peak concurrent requests:", s->peak_concurrency);
    print_real(out, "Total token throughput (tok/s):", s->total_rate);
}

static nb_status print_text(const nb_bench_serve *b, nb_out *out, nb_err *err)
{
    const nb_summary *s = &b->summary;
    print_counts(b, out);
    nb_out_text(out, "\n");
    static const char *const heads[] = {"milliseconds", ">mean", ">median", ">p90",
                                        ">p95",         ">p99",  ">max",    ">std"};
    nb_table t;
    NB_TRY(nb_table_begin(&t, heads, 8, err));
    const nb_status status = fill_latencies(&t, s, err);
    if (status != NB_OK) {
        nb_table_free(&t);
        return status;
    }
    NB_TRY(nb_table_print(&t, out, err));
    nb_out_text(out, "\nThis client: busy %.1f %% of the time, %.1f us of processor a token",
                100 * s->busy, s->cpu_us);
    if (b->load.rate > 0)
        nb_out_text(out, ", requests began %.2f ms late (p99)", s->late.p99);
    nb_out_text(out, "\n");
    return NB_OK;
}

nb_status nb_bench_serve_print(const nb_bench_serve *b, nb_out *out, nb_err *err)
{
    return out->json ? print_json(b, out, err) : print_text(b, out, err);
}

/* ---- requests, one by one ---- */

static json_t *ms_or_null(double seconds)
{
    return seconds < 0 ? json_null() : json_real(1e3 * seconds);
}

static json_t *gaps_json(const nb_load_record *r)
{
    json_t *array = json_array();
    for (int64_t k = 0; k < r->n_gaps; k++) {
        if (json_array_append_new(array, json_real(1e3 * r->gaps[k])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *flaw_names(unsigned flaws)
{
    json_t *array = json_array();
    for (int i = 0; i < NB_N_FLAWS; i++) {
        if ((flaws >> i & 1) != 0 &&
            json_array_append_new(array, json_string(nb_flaw_name((nb_flaw)i))) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *record_json(const nb_load_record *r)
{
    const struct {
        const char *key;
        json_t *value;
    } rows[] = {
        {"index", json_integer(r->index)},
        {"planned_s", json_real(r->planned)},
        {"start_s", json_real(r->start)},
        {"input_asked", integer_or_null(r->input_asked)},
        {"output_asked", json_integer(r->output_asked)},
        {"prompt_tokens", integer_or_null(r->input_tokens)},
        {"cached_tokens", integer_or_null(r->cached_tokens)},
        {"output_tokens", json_integer(r->output_tokens)},
        {"ttft_ms", ms_or_null(r->ttft)},
        {"tpot_ms", ms_or_null(r->tpot)},
        {"e2el_ms", ms_or_null(r->e2el)},
        {"itl_ms", gaps_json(r)},
        {"result", json_string(nb_fate_name(r->fate))},
        {"status", r->status > 0 ? json_integer(r->status) : json_null()},
        {"retry_after_s", real_or_null(r->retry_after)},
        {"message",
         r->message != NULL ? nb_json_any_text(r->message, strlen(r->message)) : json_null()},
        {"flaws", flaw_names(r->flaws)},
    };
    json_t *j = json_object();
    int bad = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        bad |= json_object_set_new(j, rows[i].key, rows[i].value);
    if (bad == 0)
        return j;
    json_decref(j);
    return NULL;
}

nb_status nb_bench_serve_lines(nb_buf *to, const nb_load_result *result, nb_err *err)
{
    for (int64_t i = 0; i < result->n; i++) {
        json_t *j = record_json(&result->records[i]);
        if (j == NULL)
            return nb_fail(err, NB_MEMORY, "out of memory for a request's line");
        const nb_status s = nb_json_write(to, j, false, err);
        json_decref(j);
        NB_TRY(s);
        NB_TRY(nb_buf_text(to, "\n", err));
    }
    return NB_OK;
}
