/* nibble serve: a model behind OpenAI's and SGLang's HTTP routes. */
#define _GNU_SOURCE
#include "cli/guessing.h"
#include "cli/verbs.h"

#ifdef NIBBLE_WITH_SERVER
#include "cli/serve_pooling.h"
#include "serve/layer_errors.h"
#include "serve/server.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#endif

static const char *const policy_choices[] = {"fcfs", "priority", "prefix", NULL};

static const char *const tool_choices[] = {"auto", "hermes", "llama3_json", NULL};
static const char *const pooling_choices[] = {"auto", "mean", "last", NULL};

static const nb_opt serve_options[] = {
    {.name = "host",
     .kind = NB_OPT_TEXT,
     .value = "ADDRESS",
     .preset = "127.0.0.1",
     .help = "address to listen at; 0.0.0.0 or :: for every one, which needs --api-key to be safe"},
    {.name = "port",
     .letter = 'p',
     .kind = NB_OPT_INT,
     .value = "N",
     .max = 65535,
     .preset = "8000",
     .help = "port to listen at; 0: one that is free"},
    {.name = "unix",
     .kind = NB_OPT_PATH,
     .value = "PATH",
     .help = "listen at this Unix socket instead, which only this user can reach"},
    {.name = "api-key",
     .kind = NB_OPT_TEXT,
     .value = "KEY",
     .repeats = true,
     .help = "a key that clients must send (also NIBBLE_API_KEY, which other users cannot see)"},
    {.name = "api-key-file", .kind = NB_OPT_PATH, .value = "FILE", .help = "keys, one a line"},
    {.name = "cors",
     .kind = NB_OPT_TEXT,
     .value = "ORIGIN",
     .repeats = true,
     .help = "pages of this origin may ask, such as https://example.org; '*': all may"},
    {.name = "served-name",
     .kind = NB_OPT_TEXT,
     .value = "NAME",
     .repeats = true,
     .help = "what clients call the model (default: the last part of its path); further ones are "
             "aliases"},
    NB_OPT_ROW_CTX,
    NB_OPT_ROW_KV,
    {.name = "kv-memory",
     .kind = NB_OPT_SIZE,
     .value = "SIZE",
     .min = 1 << 16,
     .max = INT64_C(1) << 44,
     .help = "memory of the KV cache (default: what --max-seqs can use, at most 1G)"},
    {.name = "max-seqs",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1024,
     .preset = "64",
     .help = "answers that are generated at the same time"},
    {.name = "max-queue",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 100000,
     .preset = "256",
     .help = "requests that wait; more are told to come again (429)"},
    {.name = "step-tokens",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 65536,
     .preset = "512",
     .help = "tokens of a step: fewer for steadier streams, more for faster prompts"},
    {.name = "policy",
     .kind = NB_OPT_CHOICE,
     .value = "ORDER",
     .choices = policy_choices,
     .preset = "fcfs",
     .help = "who runs first: by arrival, by the requests' priority, or by cached prefix"},
    {.name = "pooling",
     .kind = NB_OPT_CHOICE,
     .value = "HOW",
     .choices = pooling_choices,
     .preset = "auto",
     .help =
         "embeddings are the mean of all tokens' states, or the last one's (auto: as the model's "
         "files say, else the last)"},
    {.name = "tool-parser",
     .kind = NB_OPT_CHOICE,
     .value = "FORM",
     .choices = tool_choices,
     .preset = "auto",
     .help = "how the model writes that it calls a tool (auto: as its chat template shows)"},
    NB_GUESS_OPTIONS,
    {.name = "no-prefix-cache", .kind = NB_OPT_FLAG, .help = "compute every prompt anew"},
    {.name = "grace",
     .kind = NB_OPT_INT,
     .value = "SECONDS",
     .max = 86400,
     .preset = "30",
     .help = "time for answers under way when the server is told to stop"},
    {.name = "max-body",
     .kind = NB_OPT_SIZE,
     .value = "SIZE",
     .min = 1024,
     .max = INT64_C(1) << 30,
     .preset = "8M",
     .help = "longest request"},
    {.name = "max-connections",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1000000,
     .preset = "8192",
     .help = "connections at a time; further ones wait to be accepted"},
    {.name = "idle-timeout",
     .kind = NB_OPT_INT,
     .value = "SECONDS",
     .min = 1,
     .max = 86400,
     .preset = "60",
     .help = "a connection on which nothing moves for so long is closed"},
    {.name = "send-timeout",
     .kind = NB_OPT_INT,
     .value = "SECONDS",
     .min = 1,
     .max = 3600,
     .preset = "15",
     .help = "time that a client has to send a request"},
    {.name = "alert-memory",
     .kind = NB_OPT_FLOAT,
     .value = "SHARE",
     .low = 0,
     .high = 1,
     .preset = "0.95",
     .help = "alert when the memory in use is above this share; 0: never"},
    {.name = "alert-error",
     .kind = NB_OPT_FLOAT,
     .value = "X",
     .low = 0,
     .high = 1e6,
     .preset = "0.05",
     .help = "alert when a layer's quantization error is above this; 0: never"},
    {.name = "sla",
     .kind = NB_OPT_FLOAT,
     .value = "SECONDS",
     .low = 0,
     .high = 1e6,
     .preset = "0",
     .help = "alert when one request in twenty takes longer; 0: never"},
    {.name = "webhook",
     .kind = NB_OPT_TEXT,
     .value = "URL",
     .help = "alerts are sent there, as POST of JSON"},
    {.name = "dry-run", .kind = NB_OPT_FLAG, .help = "print what it takes, and end"},
    NB_OPT_ROW_THREADS,
    NB_OPT_ROW_ISA,
    NB_OPT_ROW_COMPUTE,
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

#ifndef NIBBLE_WITH_SERVER

static nb_status run_serve(const nb_args *args, nb_out *out, nb_err *err)
{
    (void)args, (void)out;
    return nb_fail(err, NB_UNSUPPORTED, "this nibble was built without libmicrohttpd");
}

#else

enum { MAX_NAMES = 16 };

typedef struct {
    const nb_args *args;
    nb_out *out;
    nb_runtime rt;
    nb_opened o;
    nb_guessing guessing;
    nb_jinja *template_;
    nb_engine *engine;
    nb_engine_memory memory;
    nb_keys keys;
    const char *names[MAX_NAMES], *origins[MAX_NAMES];
    char label[256];
    nb_served served;
    nb_layer_error *errors;
    int64_t n_errors;
    nb_buf report;
    nb_listener listener;
    nb_server *server;
} serving;

/* ---- options ---- */

static nb_status read_keys(serving *v, nb_err *err)
{
    const char *env = getenv("NIBBLE_API_KEY"), *file = nb_args_text(v->args, "api-key-file");
    for (int i = 0; i < nb_args_n_values(v->args, "api-key"); i++)
        NB_TRY(nb_keys_add(&v->keys, nb_args_value(v->args, "api-key", i), err));
    if (env != NULL && *env != 0 && nb_keys_add(&v->keys, env, err) != NB_OK)
        return nb_context(err, "NIBBLE_API_KEY");
    return file != NULL ? nb_keys_load(&v->keys, file, err) : NB_OK;
}

static nb_status read_names(serving *v, nb_err *err)
{
    const int n = nb_args_n_values(v->args, "served-name");
    const char *path = nb_args_operand(v->args, 0);
    if (n > MAX_NAMES - 1 || nb_args_n_values(v->args, "cors") > MAX_NAMES)
        return nb_fail(err, NB_USAGE, "--served-name and --cors may be given %d times",
                       MAX_NAMES - 1);
    for (int i = 0; i < n; i++)
        v->names[i] = nb_args_value(v->args, "served-name", i);
    v->served.name = n > 0 ? v->names[0] : nb_path_label(path, v->label, sizeof v->label);
    v->served.aliases = v->names + 1;
    v->served.n_aliases = v->served.n_listed = n > 0 ? n - 1 : 0;
    if (n == 0) {
        v->names[1] = path; /* as it was typed will do, too */
        v->served.n_aliases = 1;
    }
    for (int i = 0; i < nb_args_n_values(v->args, "cors"); i++)
        v->origins[i] = nb_args_value(v->args, "cors", i);
    return NB_OK;
}

static nb_engine_setup engine_setup(const serving *v)
{
    const nb_args *args = v->args;
    const char *order = nb_args_text(args, "policy");
    const nb_sched_policy policy = strcmp(order, "fcfs") == 0       ? NB_SCHED_FCFS
                                   : strcmp(order, "priority") == 0 ? NB_SCHED_PRIORITY
                                                                    : NB_SCHED_LPM;
    return (nb_engine_setup){.model = &v->o.model,
                             .kernels = &v->rt.kernels,
                             .pool = v->rt.pool,
                             .tokenizer = v->o.tokenizer,
                             .draft = v->guessing.has_draft ? &v->guessing.draft.model : NULL,
                             .n_guess = v->guessing.n,
                             .kv = nb_kv_option(args, &v->o.model.config),
                             .kv_bytes = nb_args_int(args, "kv-memory"),
                             .step_tokens = nb_args_int(args, "step-tokens"),
                             .max_seqs = nb_args_int(args, "max-seqs"),
                             .max_queue = nb_args_int(args, "max-queue"),
                             .policy = policy,
                             .share_prefixes = !nb_args_flag(args, "no-prefix-cache")};
}

static void on_alert(void *context, const char *line)
{
    serving *v = context;
    nb_out_warn(v->out, "%s", line);
}

/* ---- opening ---- */

static nb_status read_template(serving *v, nb_err *err)
{
    const char *text;
    size_t len;
    NB_TRY(nb_store_chat_template(v->o.store, &text, &len, err));
    if (text == NULL) {
        nb_out_note(v->out, "the model has no chat template: /v1/chat/completions will refuse");
        return NB_OK;
    }
    if (nb_jinja_parse(&v->template_, text, len, err) != NB_OK)
        return nb_context(err, "%s: chat template", nb_store_path(v->o.store));
    const char *form = nb_args_text(v->args, "tool-parser");
    NB_TRY(nb_tool_style_of(v->o.tokenizer, v->template_, &v->served.tool_style, err));
    if (strcmp(form, "auto") == 0)
        return NB_OK;
    if (v->served.tool_style == NB_TOOLS_NONE)
        nb_out_warn(v->out, "--tool-parser: the model's chat template knows no tools");
    else
        v->served.tool_style = strcmp(form, "hermes") == 0 ? NB_TOOLS_HERMES : NB_TOOLS_LLAMA3;
    return NB_OK;
}

static nb_status open_model(serving *v, nb_err *err)
{
    const nb_args *args = v->args;
    NB_TRY(nb_runtime_open(&v->rt, args, err));
    NB_TRY(nb_opened_open(&v->o, &v->rt, nb_args_operand(args, 0), nb_compute_option(args),
                          nb_args_int(args, "ctx"), true, err));
    nb_opened_warn(&v->o, v->out);
    NB_TRY(nb_guessing_open(&v->guessing, args, &v->rt, &v->o, v->out, err));
    NB_TRY(read_template(v, err));
    NB_TRY(
        nb_layer_errors_load(nb_args_operand(args, 0), &v->report, &v->errors, &v->n_errors, err));
    v->served.report = (const char *)v->report.data;
    v->served.report_len = v->report.len;
    const nb_engine_setup setup = engine_setup(v);
    NB_TRY(nb_engine_plan(&setup, &v->memory, err));
    const nb_engine_memory *m = &v->memory;
    char draft[60] = "";
    if (m->draft > 0)
        snprintf(draft, sizeof draft, ", draft model %s", nb_human_bytes(m->draft).text);
    char recent[64] = "";
    if (m->recent > 0)
        snprintf(recent, sizeof recent, ", and %s for recent ones in f16",
                 nb_human_bytes(m->recent).text);
    nb_out_note(v->out,
                "%s: mode %s, %s, threads: %d; %s in all: weights %s, KV cache %s (%s, %lld blocks "
                "of %d tokens%s), work %s, sequences %s%s",
                v->served.name, nb_model_compute_name(&v->o.model), nb_isa_name(v->rt.kernels.isa),
                nb_pool_n_threads(v->rt.pool), nb_human_bytes(m->total).text,
                nb_human_bytes(m->weights).text, nb_human_bytes(m->cache).text,
                nb_kv_label(args, &v->o.model.config), (long long)m->n_blocks, NB_KV_PAGE, recent,
                nb_human_bytes(m->work).text, nb_human_bytes(m->sequences).text, draft);
    return NB_OK;
}

/* A model that was made for an embedding of another kind still answers, so it is served. */
static void choose_pooling(serving *v)
{
    const char *how = nb_args_text(v->args, "pooling");
    nb_err err = {0};
    v->served.pooling = strcmp(how, "mean") == 0 ? NB_POOL_MEAN : NB_POOL_LAST;
    v->served.d_model = v->o.model.config.d_model;
    if (strcmp(how, "auto") != 0)
        return;
    nb_pooling declared;
    if (nb_serve_pooling(v->o.store, &declared, &err) != NB_OK)
        nb_out_warn(v->out, "embeddings are the last token's state: %s", err.text);
    else if (declared != NB_POOL_NONE)
        v->served.pooling = declared;
}

static nb_status open_engine(serving *v, nb_err *err)
{
    nb_engine_setup setup = engine_setup(v);
    /* The index of prefixes must not be foretold by who sends them. */
    if (getrandom(setup.key, sizeof setup.key, 0) != (ssize_t)sizeof setup.key)
        return nb_fail(err, NB_IO, "no random key from the system");
    NB_TRY(nb_engine_open(&v->engine, &setup, err));
    v->served.tokenizer = v->o.tokenizer;
    v->served.template_ = v->template_;
    v->served.engine = v->engine;
    v->served.n_ctx = v->served.n_room = v->o.model.n_ctx;
    if (v->memory.n_blocks * NB_KV_PAGE < v->served.n_ctx) {
        v->served.n_room = v->memory.n_blocks * NB_KV_PAGE;
        nb_out_note(v->out,
                    "a sequence can have %lld tokens, of the context's %lld: the KV cache holds no "
                    "more (--kv-memory)",
                    (long long)v->served.n_room, (long long)v->served.n_ctx);
    }
    v->served.vocab_size = v->o.model.config.vocab_size;
    const int64_t n_ids = nb_tokenizer_n_tokens(v->o.tokenizer);
    if (n_ids < v->served.vocab_size) /* rows past the tokenizer's ids are padding */
        v->served.vocab_size = n_ids;
    v->served.created = (int64_t)time(NULL);
    choose_pooling(v);
    return NB_OK;
}

/* Before the model is read: an address that is taken need not cost that time. */
static nb_status open_server(serving *v, nb_err *err)
{
    const nb_args *args = v->args;
    const char *path = nb_args_text(args, "unix");
    if (path != NULL)
        NB_TRY(nb_listen_unix(&v->listener, path, err));
    else
        NB_TRY(nb_listen_tcp(&v->listener, nb_args_text(args, "host"),
                             (int)nb_args_int(args, "port"), err));
    if (!v->listener.loopback && v->keys.n == 0)
        nb_out_warn(v->out, "%s can be reached from outside, and no API key is asked for",
                    v->listener.address);
    const nb_server_setup setup = {
        .listener = &v->listener,
        .keys = &v->keys,
        .origins = v->origins,
        .n_origins = nb_args_n_values(args, "cors"),
        .max_body = (size_t)nb_args_int(args, "max-body"),
        .max_connections = nb_args_int(args, "max-connections"),
        .idle_s = nb_args_int(args, "idle-timeout"),
        .send_s = nb_args_int(args, "send-timeout"),
        .alerts = {.memory = nb_args_float(args, "alert-memory"),
                   .error = nb_args_float(args, "alert-error"),
                   .latency_s = nb_args_float(args, "sla"),
                   .webhook = nb_args_text(args, "webhook")},
        .log = on_alert,
        .log_context = v,
    };
    return nb_server_open(&v->server, &setup, err);
}

static nb_status announce(serving *v, nb_err *err)
{
    if (v->out->json)
        NB_TRY(nb_out_json(
            v->out,
            json_pack("{s:o, s:o, s:I}", "address",
                      nb_json_any_text(v->listener.address, strlen(v->listener.address)), "model",
                      nb_json_any_text(v->served.name, strlen(v->served.name)), "n_ctx",
                      (json_int_t)v->served.n_ctx),
            err));
    else
        nb_out_text(v->out, "%s\n", v->listener.address);
    nb_out_flush(v->out);
    return NB_OK;
}

/* ---- the verb ---- */

static nb_status serve(serving *v, nb_err *err)
{
    NB_TRY(read_keys(v, err));
    NB_TRY(read_names(v, err));
    NB_TRY(nb_guessing_read(&v->guessing, v->args, err));
    const bool dry = nb_args_flag(v->args, "dry-run");
    if (!dry)
        NB_TRY(open_server(v, err));
    NB_TRY(open_model(v, err));
    if (dry)
        return NB_OK;
    NB_TRY(open_engine(v, err));
    NB_TRY(nb_server_serve(v->server, &v->served, v->errors, v->n_errors, v->memory.n_blocks,
                           NB_KV_PAGE, err));
    NB_TRY(announce(v, err));
    while (!nb_interrupted() && v->out->write_errno == 0) {
        const struct timespec nap = {.tv_nsec = 50 * 1000 * 1000};
        (void)nanosleep(&nap, NULL);
    }
    nb_out_note(v->out, "stopping: answers under way have %lld s",
                (long long)nb_args_int(v->args, "grace"));
    if (!nb_server_drain(v->server, (double)nb_args_int(v->args, "grace")))
        nb_out_note(v->out, "some answers were ended");
    return NB_OK;
}

/* Requests come and go on some threads and are freed on others. With a heap for each thread, and
 * with large blocks in heaps once one was freed, ten thousand of them left 14 MiB of holes behind;
 * so they leave 3. */
static void keep_heaps_small(void)
{
#ifdef __GLIBC__
    (void)mallopt(M_ARENA_MAX, 2);
    (void)mallopt(M_MMAP_THRESHOLD, 128 << 10);
#endif
}

static nb_status run_serve(const nb_args *args, nb_out *out, nb_err *err)
{
    keep_heaps_small();
    serving v = {.args = args, .out = out, .listener = NB_LISTENER_CLOSED};
    const nb_status s = serve(&v, err);
    nb_server_stop(v.server);
    nb_listener_close(&v.listener);
    nb_engine_close(v.engine);
    nb_server_close(v.server);
    nb_free(v.errors);
    nb_buf_free(&v.report);
    nb_jinja_free(v.template_);
    nb_guessing_close(&v.guessing);
    nb_opened_close(&v.o);
    nb_runtime_close(&v.rt);
    return s;
}

#endif

const nb_verb nb_verb_serve = {
    .name = "serve",
    .summary = "answer over HTTP, as OpenAI's and SGLang's servers do",
    .example = "nibble serve model.gguf\n"
               "nibble serve model-folder --kv int8 --max-seqs 16 --port 8080\n"
               "NIBBLE_API_KEY=secret nibble serve model.gguf --host 0.0.0.0",
    .about = "Prints its address once the model is there, and answers until it is told to stop\n"
             "(Ctrl-C, SIGTERM): then answers under way are completed within --grace seconds.\n"
             "Routes, limits and metrics are in docs/serving.md, and at /openapi.json.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, .min = 1, .max = 1}, {0}},
    .options = serve_options,
    .run = run_serve,
};
