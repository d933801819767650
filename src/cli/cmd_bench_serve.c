/* nibble bench serve: load on any OpenAI-compatible server, and what its clients then see. */
#include "base/file.h"
#include "cli/bench_serve.h"
#include "cli/verbs.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define DEFAULT_REQUESTS 100
#define LENGTH_MAX       ((int64_t)1 << 20)

static const char *const endpoint_choices[] = {"completions", "chat", NULL};
static const char *const backend_choices[] = {"auto",         "nibble", "vllm",  "sglang",
                                              "llama-server", "openai", "other", NULL};
static const char *const eos_choices[] = {"auto", "yes", "no", NULL};

static const nb_opt bench_serve_options[] = {
    {.name = "url",
     .kind = NB_OPT_TEXT,
     .value = "URL",
     .preset = "http://127.0.0.1:8000",
     .help = "the server, with or without /v1"},
    {.name = "model",
     .kind = NB_OPT_TEXT,
     .value = "NAME",
     .help = "the model to ask for (default: the first that the server lists)"},
    {.name = "api-key",
     .kind = NB_OPT_TEXT,
     .value = "KEY",
     .help = "sent as a bearer token; others may see it in the list of processes, unlike "
             "OPENAI_API_KEY in the environment, which is the default"},
    {.name = "endpoint",
     .kind = NB_OPT_CHOICE,
     .value = "KIND",
     .choices = endpoint_choices,
     .preset = "completions",
     .help = "what to ask for"},
    {.name = "backend",
     .kind = NB_OPT_CHOICE,
     .value = "KIND",
     .choices = backend_choices,
     .preset = "auto",
     .help = "the server's kind: openai gets no ignore_eos; auto: as it says itself"},
    {.name = "rate",
     .letter = 'r',
     .kind = NB_OPT_TEXT,
     .value = "R",
     .preset = "inf",
     .help = "requests that arrive a second, whatever the server does; inf: all at once"},
    {.name = "burstiness",
     .kind = NB_OPT_FLOAT,
     .value = "B",
     .low = 0.01,
     .high = 10000,
     .preset = "1",
     .help = "shape of the arrivals' gaps: 1 is Poisson, less comes in bursts, more evenly"},
    {.name = "concurrency",
     .letter = 'c',
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 100000,
     .help = "requests in flight, at most; the next one begins when one ends"},
    {.name = "requests",
     .letter = 'n',
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 100000000,
     .help = "how many in all (default: 100, or what begins within --duration)"},
    {.name = "duration",
     .kind = NB_OPT_FLOAT,
     .value = "SECONDS",
     .low = 0.001,
     .high = 1e7,
     .help = "requests begin for so long; those in flight are waited for"},
    {.name = "input-len",
     .kind = NB_OPT_TEXT,
     .value = "N[-M]",
     .preset = "1024",
     .help = "tokens of a random prompt, or a range"},
    {.name = "output-len",
     .kind = NB_OPT_TEXT,
     .value = "N[-M]",
     .preset = "128",
     .help = "tokens of an answer, or a range"},
    {.name = "prefix-len",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 0,
     .max = LENGTH_MAX,
     .preset = "0",
     .help = "tokens that prompts have in common, in front of the random ones"},
    {.name = "n-prefixes",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1000000,
     .preset = "1",
     .help = "different prefixes, taken in turn"},
    {.name = "prompts",
     .kind = NB_OPT_PATH,
     .value = "FILE",
     .help = "JSON lines (or an array) with prompt, messages or ShareGPT's conversations, in "
             "place of random prompts; output_tokens in them goes before --output-len"},
    {.name = "ignore-eos",
     .kind = NB_OPT_CHOICE,
     .value = "WHEN",
     .choices = eos_choices,
     .preset = "auto",
     .help = "answers go on to their full length; auto: for random prompts"},
    {.name = "temperature",
     .kind = NB_OPT_FLOAT,
     .value = "T",
     .low = 0,
     .high = 2,
     .preset = "0",
     .help = "of sampling"},
    {.name = "body",
     .kind = NB_OPT_TEXT,
     .value = "JSON",
     .help = "an object whose fields go into every request, over those made here"},
    {.name = "no-tokenize",
     .kind = NB_OPT_FLAG,
     .help = "do not ask the server's /tokenize for words of one token"},
    {.name = "warmup",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 0,
     .max = 100000,
     .preset = "1",
     .help = "requests before, one by one, that do not count; if the first fails, all ends"},
    {.name = "timeout",
     .kind = NB_OPT_FLOAT,
     .value = "SECONDS",
     .low = 0.01,
     .high = 1e6,
     .preset = "600",
     .help = "a request that takes longer has failed"},
    {.name = "insecure", .kind = NB_OPT_FLAG, .help = "do not verify the server's certificate"},
    {.name = "goodput",
     .kind = NB_OPT_TEXT,
     .value = "LIST",
     .help = "count requests within these milliseconds: ttft:200,tpot:50,e2el:2000"},
    {.name = "save-requests",
     .kind = NB_OPT_PATH,
     .value = "FILE",
     .help = "one JSON object a request: times, tokens, result"},
    NB_OPT_ROW_FORCE,
    NB_OPT_ROW_SEED,
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

/* ---- what is wanted ---- */

/* "128" or "64-256". */
static nb_status read_lengths(nb_lengths *out, const char *option, const char *text, nb_err *err)
{
    int64_t value[2] = {0, 0};
    const char *at = text;
    bool good = true;
    int n = 0;
    for (; n < 2 && good; n++) {
        const size_t digits = strspn(at, "0123456789");
        for (size_t i = 0; i < digits && value[n] <= LENGTH_MAX; i++)
            value[n] = 10 * value[n] + (at[i] - '0');
        at += digits;
        good = digits > 0 && value[n] >= 1 && value[n] <= LENGTH_MAX;
        if (*at != '-')
            break;
        at += n == 0;
    }
    const int64_t high = n == 0 ? value[0] : value[1];
    if (!good || *at != 0 || high < value[0])
        return nb_fail(err, NB_USAGE,
                       "bench serve: --%s '%.80s': must be a number from 1 to %lld, or a range of "
                       "them like 64-256",
                       option, text, (long long)LENGTH_MAX);
    *out = (nb_lengths){.low = value[0], .high = high};
    return NB_OK;
}

/* "inf" is 0: there is no rate. */
static nb_status read_rate(double *out, const char *text, nb_err *err)
{
    *out = 0;
    if (strcmp(text, "inf") == 0)
        return NB_OK;
    const size_t n = strlen(text);
    char *end = NULL;
    if (n > 0 && strspn(text, "0123456789.") == n)
        *out = strtod(text, &end);
    if (end == NULL || *end != 0 || !(*out >= 1e-6 && *out <= 1e6))
        return nb_fail(err, NB_USAGE,
                       "bench serve: --rate '%.80s': must be a number from 0.000001 to 1000000, or "
                       "inf",
                       text);
    return NB_OK;
}

static nb_status read_body(json_t **out, const char *text, nb_err *err)
{
    if (text == NULL)
        return NB_OK;
    nb_err why = {0};
    if (nb_json_parse(out, text, strlen(text), &why) == NB_MEMORY)
        return nb_fail(err, NB_MEMORY, "%s", why.text);
    if (json_is_object(*out))
        return NB_OK;
    return nb_fail(err, NB_USAGE, "bench serve: --body: %s",
                   *out == NULL ? why.text : "not a JSON object");
}

/* Characters that would end the header line, or the key. */
static nb_status check_key(const char *key, nb_err *err)
{
    for (const char *c = key; c != NULL && *c != 0; c++) {
        if (*c <= ' ' || *c >= 127)
            return nb_fail(err, NB_USAGE,
                           "bench serve: the API key has a character that no key has");
    }
    return NB_OK;
}

static nb_status read_load(nb_load_options *o, const nb_args *args, nb_err *err)
{
    *o = (nb_load_options){
        .burstiness = nb_args_float(args, "burstiness"),
        .concurrency = nb_args_int(args, "concurrency"),
        .requests = nb_args_int(args, "requests"),
        .duration = nb_args_float(args, "duration"),
        .temperature = nb_args_float(args, "temperature"),
        .plan = {.seed = (uint64_t)nb_args_int(args, "seed"),
                 .prefix_len = nb_args_int(args, "prefix-len"),
                 .n_prefixes = nb_args_int(args, "n-prefixes")},
    };
    if (o->requests == 0 && o->duration <= 0)
        o->requests = DEFAULT_REQUESTS;
    NB_TRY(read_rate(&o->rate, nb_args_text(args, "rate"), err));
    NB_TRY(read_lengths(&o->plan.input, "input-len", nb_args_text(args, "input-len"), err));
    NB_TRY(read_lengths(&o->plan.output, "output-len", nb_args_text(args, "output-len"), err));
    if (o->requests == 0 && o->rate <= 0 && o->concurrency == 0)
        return nb_fail(err, NB_USAGE,
                       "bench serve: --duration needs --rate or --concurrency: all at once has no "
                       "end");
    if (nb_args_given(args, "burstiness") && o->rate <= 0)
        return nb_fail(err, NB_USAGE, "bench serve: --burstiness belongs to --rate");
    if (nb_args_given(args, "prompts") &&
        (nb_args_given(args, "input-len") || nb_args_given(args, "prefix-len")))
        return nb_fail(err, NB_USAGE,
                       "bench serve: --input-len and --prefix-len are for random prompts, not for "
                       "--prompts");
    return NB_OK;
}

static nb_status read_wants(nb_bench_serve *b, const nb_args *args, nb_err *err)
{
    NB_TRY(read_load(&b->load, args, err));
    NB_TRY(read_body(&b->extra, nb_args_text(args, "body"), err));
    b->load.extra = b->extra;
    b->has_bounds = nb_args_given(args, "goodput");
    if (b->has_bounds && nb_goodput_parse(&b->bounds, nb_args_text(args, "goodput"), err) != NB_OK)
        return nb_context(err, "bench serve: --goodput");
    const bool chat = strcmp(nb_args_text(args, "endpoint"), "chat") == 0;
    if (nb_target_init(&b->target, nb_args_text(args, "url"), chat, nb_args_text(args, "model"),
                       err) != NB_OK)
        return nb_context(err, "bench serve: --url");
    const char *backend = nb_args_text(args, "backend");
    while (strcmp(nb_backend_name(b->target.backend), backend) != 0)
        b->target.backend++;
    const char *key = nb_args_text(args, "api-key");
    if (key == NULL)
        key = getenv("OPENAI_API_KEY");
    NB_TRY(check_key(key, err));
    b->target.http = (nb_http_options){.api_key = key == NULL || *key == 0 ? NULL : key,
                                       .timeout_s = nb_args_float(args, "timeout"),
                                       .insecure = nb_args_flag(args, "insecure")};
    if (!nb_args_given(args, "prompts"))
        return NB_OK;
    NB_TRY(nb_prompt_file_read(&b->file, nb_args_text(args, "prompts"), chat, err));
    b->load.file = &b->file;
    return NB_OK;
}

/* ---- before the load ---- */

/* Every stream is a descriptor, and shells allow 1,024 where the system allows more. */
static void raise_descriptors(int64_t wanted)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    const rlim_t more = (rlim_t)wanted + 64;
    if (limit.rlim_cur >= more)
        return;
    limit.rlim_cur = limit.rlim_max < more ? limit.rlim_max : more;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* Words of one token each, where the server tells tokens. */
static nb_status fit_words(nb_bench_serve *b, const nb_args *args, nb_out *out, nb_err *err)
{
    nb_words_init(&b->words);
    b->load.words = &b->words;
    if (b->load.file != NULL || nb_args_flag(args, "no-tokenize"))
        return NB_OK;
    nb_err why = {0};
    const nb_status s = nb_target_fit_words(&b->target, &b->words, &why);
    if (s == NB_MEMORY) {
        *err = why;
        return s;
    }
    if (s != NB_OK)
        nb_out_note(out, "prompts have about the lengths asked for: %s", why.text);
    else if (!b->words.exact)
        nb_out_note(out, "prompts have about the lengths asked for: few words are one token here");
    return NB_OK;
}

typedef struct {
    nb_out *out;
    nb_progress progress;
    bool shown;
} display;

static bool on_step(void *context, int64_t ended, int64_t total)
{
    display *d = context;
    if (d->shown && !d->progress.begun)
        nb_progress_begin(d->out, &d->progress, "load", "requests", total);
    if (d->shown)
        nb_progress_update(d->out, &d->progress, ended);
    return !nb_interrupted();
}

/* Requests one by one, of other words than those of the load, so that no cache knows those. */
static nb_status warm_up(const nb_bench_serve *b, int64_t n, nb_err *err)
{
    if (n == 0)
        return NB_OK;
    display d = {0};
    nb_load_options o = b->load;
    o.rate = o.duration = 0;
    o.concurrency = 1;
    o.requests = n;
    o.plan.seed = ~o.plan.seed;
    o.step = on_step;
    o.context = &d;
    nb_load_result r;
    nb_status s = nb_load_run(&r, &b->target, &o, err);
    if (s == NB_OK && r.interrupted)
        s = nb_fail_interrupted(err);
    else if (s == NB_OK && r.records[0].fate != NB_FATE_OK)
        s = nb_fail(err, NB_IO, "%s: the first request failed: %s: %.300s", b->target.url,
                    nb_fate_name(r.records[0].fate),
                    r.records[0].message != NULL ? r.records[0].message : "no reason");
    nb_load_result_free(&r);
    return s;
}

/* ---- the verb ---- */

static nb_status save(nb_outfile *file, const nb_load_result *result, nb_err *err)
{
    nb_buf lines = {0};
    nb_status s = nb_bench_serve_lines(&lines, result, err);
    if (s == NB_OK)
        s = nb_outfile_write(file, lines.data, lines.len, err);
    if (s == NB_OK)
        s = nb_outfile_commit(file, err);
    nb_buf_free(&lines);
    return s;
}

static void warn(const nb_bench_serve *b, nb_out *out)
{
    const nb_summary *s = &b->summary;
    if (s->busy > 0.5 && s->duration >= 1) /* in a short run, making connections is most of it */
        nb_out_warn(out, "this client was busy for %.0f %% of the time: it may be the limit",
                    100 * s->busy);
    for (int64_t i = 0; i < b->result.n; i++) {
        const nb_load_record *r = &b->result.records[i];
        if (r->fate == NB_FATE_OK || r->fate == NB_FATE_ABORTED)
            continue;
        nb_out_warn(out, "%lld of %lld requests failed; the first: %s: %.300s",
                    (long long)s->failed, (long long)s->n, nb_fate_name(r->fate),
                    r->message != NULL ? r->message : "no reason");
        break;
    }
    if (b->load.file != NULL && b->result.n > b->file.n)
        nb_out_warn(out, "%lld prompts were asked more than once: a cache may know them",
                    (long long)b->file.n);
}

static nb_status measure(nb_bench_serve *b, const nb_args *args, nb_out *out, nb_err *err)
{
    NB_TRY(nb_target_ask_models(&b->target, err));
    const char *eos = nb_args_text(args, "ignore-eos");
    b->load.ignore_eos =
        b->target.backend != NB_BACKEND_OPENAI &&
        (strcmp(eos, "yes") == 0 || (strcmp(eos, "auto") == 0 && b->load.file == NULL));
    NB_TRY(fit_words(b, args, out, err));
    const int64_t streams = b->load.concurrency > 0 ? b->load.concurrency : b->load.requests;
    raise_descriptors(streams > 0 && streams < 100000 ? streams : 100000);
    NB_TRY(warm_up(b, nb_args_int(args, "warmup"), err));
    display d = {.out = out, .shown = true};
    b->load.step = on_step;
    b->load.context = &d;
    const nb_status s = nb_load_run(&b->result, &b->target, &b->load, err);
    nb_progress_end(out, &d.progress);
    NB_TRY(s);
    return nb_summary_of(&b->summary, &b->result, b->has_bounds ? &b->bounds : NULL, err);
}

static nb_status run_with(nb_bench_serve *b, const nb_args *args, nb_outfile *file, nb_out *out,
                          nb_err *err)
{
    NB_TRY(read_wants(b, args, err));
    if (nb_args_given(args, "save-requests"))
        NB_TRY(nb_outfile_open(file, nb_args_text(args, "save-requests"),
                               nb_args_flag(args, "force"), err));
    NB_TRY(measure(b, args, out, err));
    NB_TRY(nb_bench_serve_print(b, out, err));
    warn(b, out);
    if (file->fd >= 0)
        NB_TRY(save(file, &b->result, err));
    if (b->result.interrupted)
        return nb_fail_interrupted(err);
    if (b->summary.completed == 0)
        return nb_fail(err, NB_IO, "%s: no request succeeded", b->target.url);
    return NB_OK;
}

static nb_status run_bench_serve(const nb_args *args, nb_out *out, nb_err *err)
{
    nb_bench_serve b = {0};
    nb_outfile file = NB_OUTFILE_CLOSED;
    const nb_status s = run_with(&b, args, &file, out, err);
    nb_outfile_abort(&file);
    nb_load_result_free(&b.result);
    nb_prompt_file_free(&b.file);
    nb_target_free(&b.target);
    json_decref(b.extra);
    return s;
}

const nb_verb nb_verb_bench_serve = {
    .name = "bench serve",
    .summary = "measure an OpenAI-compatible server under load",
    .example = "nibble bench serve --url http://127.0.0.1:8080 --rate 4 --requests 200\n"
               "nibble bench serve --concurrency 16 --duration 60 --input-len 256-768 --json\n"
               "nibble bench serve --endpoint chat --prompts sharegpt.jsonl --rate 2\n"
               "nibble bench serve --rate 8 --goodput ttft:500,tpot:50 --save-requests r.jsonl",
    .about =
        "Latencies and rates are those of `vllm bench serve`, under its names, so that results\n"
        "compare. With --rate, requests arrive in an open loop, whatever the server does; with\n"
        "--concurrency, in a closed one; with both, arrivals wait for a place. The same seed\n"
        "makes the same prompts and arrivals, which the caches of a server may remember: change\n"
        "--seed from run to run. Ctrl-C prints what there is.",
    .options = bench_serve_options,
    .run = run_bench_serve,
};
