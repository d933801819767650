/* nibble advise: what a model takes on this machine, and which scheme to begin with. */
#include "base/file.h"
#include "base/memory.h"
#include "cli/runtime.h"
#include "cli/verbs.h"
#include "kernel/limits.h"
#include "quant/advise/advise.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define CONFIG_LIMIT ((size_t)16 << 20)

static const char *const purposes[] = {"inference", "training", NULL};
static const char *const accuracies[] = {"exact", "high", "balanced", "small", NULL};
static const int64_t lengths[] = {4096, 8192, 16384, 32768, 65536};
#define N_LENGTHS (sizeof lengths / sizeof *lengths)

static const nb_opt advise_options[] = {
    {.name = "memory",
     .kind = NB_OPT_SIZE,
     .value = "BYTES",
     .min = 1,
     .max = INT64_MAX,
     .help = "what the model may take (default: what this machine has available)"},
    {.name = "ctx",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 24,
     .preset = "4096",
     .help = "tokens of a sequence"},
    {.name = "batch",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 16,
     .preset = "1",
     .help = "sequences at once"},
    {.name = "for",
     .kind = NB_OPT_CHOICE,
     .value = "PURPOSE",
     .choices = purposes,
     .preset = "inference",
     .help = "inference or training"},
    {.name = "accuracy",
     .kind = NB_OPT_CHOICE,
     .value = "LEVEL",
     .choices = accuracies,
     .preset = "high",
     .help = "exact: nothing may be lost; high: 8 bits where they fit; balanced: 4 bits; small: "
             "3 bits"},
    {.name = "no-measure",
     .kind = NB_OPT_FLAG,
     .help = "do not measure this machine: then no speeds are predicted"},
    NB_OPT_ROW_THREADS,
    NB_OPT_ROW_ISA,
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

typedef struct {
    const char *path;
    nb_advise_shape shape;
    nb_advise_source source;
    nb_candidate candidates[NB_N_CANDIDATES];
    nb_advise_request request;
    nb_advise_machine machine; /* zeros: not measured */
    nb_advice advice;
    nb_kv_format kv;
} advising;

/* ---- what there is ---- */

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

static nb_status read_config(advising *a, const char *path, nb_err *err)
{
    json_t *config;
    NB_TRY(nb_json_load(&config, path, CONFIG_LIMIT, err));
    nb_status s = nb_advise_shape_read(&a->shape, config, err);
    if (s == NB_OK)
        s = nb_advise_source_read(&a->source, &a->shape, config, err);
    json_decref(config);
    return s == NB_OK ? s : nb_context(err, "%s", path);
}

/* Where the tensor files are there, they say what they take. */
static void weigh_files(advising *a)
{
    nb_store *store;
    nb_err ignored = {0};
    if (nb_store_open(&store, a->path, &ignored) != NB_OK)
        return;
    const double bytes = (double)nb_store_file_bytes(store);
    a->source.as.active_bytes *= bytes / (double)a->source.as.bytes;
    a->source.as.bytes = nb_store_file_bytes(store);
    a->source.as.bpw = 8 * bytes / (double)nb_advise_params(&a->shape);
    nb_store_close(store);
}

/* A folder needs no more than its config.json. */
static nb_status read_shape(advising *a, nb_err *err)
{
    if (ends_with(a->path, ".json"))
        return read_config(a, a->path, err);
    if (nb_path_is_dir(a->path)) {
        nb_buf path = {0};
        nb_status s = nb_buf_format(&path, err, "%s/config.json", a->path);
        if (s == NB_OK)
            s = nb_buf_u8(&path, 0, err);
        if (s == NB_OK)
            s = read_config(a, (const char *)path.data, err);
        nb_buf_free(&path);
        if (s == NB_OK && a->source.quantized)
            weigh_files(a);
        return s;
    }
    nb_store *store;
    nb_config config;
    NB_TRY(nb_store_open(&store, a->path, err));
    const nb_status s = nb_config_read(store, &config, err);
    if (s == NB_OK) {
        nb_advise_shape_of(&a->shape, &config);
        nb_advise_source_of(&a->source, &a->shape, store);
    }
    nb_store_close(store);
    return s;
}

static nb_status measure(advising *a, const nb_args *args, nb_err *err)
{
    if (nb_args_flag(args, "no-measure"))
        return NB_OK;
    nb_runtime rt;
    nb_limits limits;
    unsigned isa;
    NB_TRY(nb_isa_choose(nb_args_text(args, "isa"), &isa, err));
    NB_TRY(nb_runtime_open(&rt, args, err));
    const nb_status s = nb_limits_measure(&limits, isa, rt.pool, err);
    nb_runtime_close(&rt);
    if (s == NB_OK)
        a->machine = (nb_advise_machine){limits.read, limits.int8_ops, limits.fma_ops};
    return s;
}

/* ---- text ---- */

static int64_t memory_of(const advising *a, const nb_candidate *c)
{
    return nb_advise_memory(&a->shape, c, a->request.ctx, a->request.batch, a->kv);
}

static void print_head(const advising *a, nb_out *out)
{
    const nb_advise_shape *s = &a->shape;
    nb_out_text(out, "%s: %s, %s parameters (%lld)", a->path, s->type,
                nb_human_count(nb_advise_params(s)).text, (long long)nb_advise_params(s));
    if (s->n_experts > 0)
        nb_out_text(out, ", %s of them active a token: %lld of %lld experts",
                    nb_human_count(nb_advise_active_params(s)).text, (long long)s->n_active,
                    (long long)s->n_experts);
    nb_out_text(out, "%s\n", s->runs ? "" : "; nibble does not run it yet, its numbers stand");
    if (a->source.quantized)
        nb_out_text(out, "it is quantized already: %s\n", a->source.what);
    nb_out_text(out, "memory %s, %lld tokens of context, batch %lld, activations about %s\n\n",
                nb_human_bytes(a->request.memory).text, (long long)a->request.ctx,
                (long long)a->request.batch,
                nb_human_bytes(nb_advise_activation_bytes(s, a->request.batch)).text);
}

static nb_status speed_cell(nb_table *t, const advising *a, double v, nb_err *err)
{
    if (!(a->machine.read > 0))
        return nb_table_cell(t, err, "%s", "");
    return nb_table_cell(t, err, "%.*f", v < 10 ? 2 : v < 100 ? 1 : 0, v);
}

static nb_status print_candidate(const advising *a, const nb_candidate *c, nb_table *t, nb_err *err)
{
    const int64_t memory = memory_of(a, c);
    const bool gains = c == &a->source.as || nb_advise_gains(&a->source, c);
    NB_TRY(nb_table_cell(t, err, "%s", c->scheme));
    NB_TRY(nb_table_cell(t, err, "%s", nb_human_bytes(c->bytes).text));
    NB_TRY(nb_table_cell(t, err, "%.2f", c->bpw));
    NB_TRY(nb_table_cell(t, err, "%s", nb_human_bytes(memory).text));
    NB_TRY(nb_table_cell(t, err, "%s",
                         memory > a->request.memory ? "no"
                         : gains                    ? "yes"
                                                    : "no gain"));
    NB_TRY(nb_table_cell(t, err, "%s", nb_compute_name(c->compute)));
    NB_TRY(
        speed_cell(t, a, nb_advise_decode(&a->shape, c, &a->machine, a->request.ctx, a->kv), err));
    NB_TRY(speed_cell(t, a, nb_advise_prefill(&a->shape, c, &a->machine), err));
    NB_TRY(nb_table_cell(t, err, "%s%.4f", c->loss.measured ? "" : "~", c->loss.kl));
    return nb_table_cell(t, err, "%s", nb_loss_name(nb_loss_of(c->loss.kl)));
}

static nb_status print_candidates(const advising *a, nb_out *out, nb_err *err)
{
    static const char *const heads[] = {"scheme", ">file",   ">bpw",          ">memory",
                                        "fits",   "compute", ">decode tok/s", ">prefill tok/s",
                                        ">KL*",   "loss*"};
    nb_table t = {0};
    NB_TRY(nb_table_begin(&t, heads, 10, err));
    if (a->source.quantized)
        NB_TRY(print_candidate(a, &a->source.as, &t, err));
    for (int i = 0; i < NB_N_CANDIDATES; i++) {
        if (a->candidates[i].possible)
            NB_TRY(print_candidate(a, &a->candidates[i], &t, err));
    }
    NB_TRY(nb_table_print(&t, out, err));
    nb_out_text(out,
                "* measured on SmolLM2-135M, not promised for this model (%s); ~ predicted from "
                "schemes that were measured; larger models lose less, methods with calibration "
                "too\n\n",
                NB_ADVISE_KL_SOURCE);
    return NB_OK;
}

static nb_status print_cache(const advising *a, nb_out *out, nb_err *err)
{
    static const char *const heads[] = {"cache", ">a token", ">4K", ">8K", ">16K", ">32K", ">64K"};
    static const nb_kv_format formats[] = {NB_KV_F16, NB_KV_INT8, NB_KV_INT4, NB_KV_INT2};
    nb_table t = {0};
    NB_TRY(nb_table_begin(&t, heads, 7, err));
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        const int64_t cell = nb_advise_kv_bytes(&a->shape, formats[f]);
        NB_TRY(nb_table_cell(&t, err, "%s", nb_kv_format_name(formats[f])));
        NB_TRY(nb_table_cell(&t, err, "%.1f KiB", (double)cell / 1024));
        for (size_t i = 0; i < N_LENGTHS; i++)
            NB_TRY(nb_table_cell(&t, err, "%s", nb_human_bytes(cell * lengths[i]).text));
    }
    NB_TRY(nb_table_print(&t, out, err));
    nb_out_text(out, "\n");
    return NB_OK;
}

/* The command to run; empty when there is none. */
static void command_of(const advising *a, char *text, size_t size)
{
    const nb_advice *v = &a->advice;
    const bool trains = a->request.purpose == NB_FOR_TRAINING, rtn = strcmp(v->method, "rtn") == 0;
    text[0] = 0;
    if (v->scheme[0] == 0 || trains || !a->shape.runs)
        return;
    snprintf(text, size, "nibble quantize %s -o %s --scheme %s --method %s%s",
             ends_with(a->path, ".json") ? "MODEL" : a->path,
             strncmp(v->scheme, "IQ", 2) == 0 ? "OUT.gguf" : "OUT", v->scheme, v->method,
             rtn ? "" : " --calib TEXT");
}

static void print_advice(const advising *a, nb_out *out)
{
    const nb_advice *v = &a->advice;
    char command[1200];
    command_of(a, command, sizeof command);
    nb_out_text(out, "advice: %s%s%s\n  %s\n", nb_leaf_name(v->leaf), v->scheme[0] != 0 ? ", " : "",
                v->scheme, v->because);
    if (v->scheme[0] != 0 && isfinite(v->loss.kl))
        nb_out_text(out, "  by %s a KL of %s%.4f on SmolLM2-135M, %s\n",
                    v->method[0] != 0 ? v->method : "rtn", v->loss.measured ? "" : "about ",
                    v->loss.kl, v->loss.measured ? "measured" : "predicted, not measured");
    nb_out_text(out, "  cache %s: %s\n", v->kv, v->kv_because);
    if (!v->fits_16 && !a->source.quantized && v->nodes_16 < 1000000000)
        nb_out_text(out, "  in 16 bits it takes %lld machines of this memory, in 4 bits %lld\n",
                    (long long)v->nodes_16, (long long)v->nodes_4);
    if (command[0] != 0)
        nb_out_text(out, "  %s\n", command);
    else if (v->scheme[0] != 0)
        nb_out_text(out, "  no command yet: nibble does not %s\n",
                    a->request.purpose == NB_FOR_TRAINING ? "train" : "run this architecture");
}

/* ---- JSON ---- */

static json_t *speed_json(const advising *a, double v)
{
    return a->machine.read > 0 && isfinite(v) ? json_real(v) : json_null();
}

static json_t *candidate_json(const advising *a, const nb_candidate *c)
{
    if (!c->possible)
        return json_pack("{s:s, s:b, s:s}", "scheme", c->scheme, "possible", 0, "why",
                         "its groups do not divide every row");
    const int64_t memory = memory_of(a, c);
    return json_pack(
        "{s:s, s:b, s:I, s:f, s:I, s:b, s:s, s:o, s:o, s:f, s:b, s:s}", "scheme", c->scheme,
        "possible", 1, "bytes", (json_int_t)c->bytes, "bpw", c->bpw, "memory_bytes",
        (json_int_t)memory, "fits", memory <= a->request.memory, "compute",
        nb_compute_name(c->compute), "decode_tok_s",
        speed_json(a, nb_advise_decode(&a->shape, c, &a->machine, a->request.ctx, a->kv)),
        "prefill_tok_s", speed_json(a, nb_advise_prefill(&a->shape, c, &a->machine)),
        "kl_smollm2_135m", c->loss.kl, "kl_measured", (int)c->loss.measured, "loss_smollm2_135m",
        nb_loss_name(nb_loss_of(c->loss.kl)));
}

/* null: 16 bits or more. */
static json_t *source_json(const advising *a)
{
    json_t *o = a->source.quantized ? candidate_json(a, &a->source.as) : json_null();
    if (a->source.quantized)
        json_object_set_new(o, "what", nb_json_any_text(a->source.what, strlen(a->source.what)));
    return o;
}

static json_t *cache_json(const advising *a)
{
    static const nb_kv_format formats[] = {NB_KV_F16, NB_KV_INT8, NB_KV_INT4, NB_KV_INT2};
    json_t *o = json_object();
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        const int64_t cell = nb_advise_kv_bytes(&a->shape, formats[f]);
        json_t *one = json_pack("{s:I}", "bytes_per_token", (json_int_t)cell);
        for (size_t i = 0; i < N_LENGTHS; i++) {
            char key[24];
            snprintf(key, sizeof key, "%lld", (long long)lengths[i]);
            json_object_set_new(one, key, json_integer(cell * lengths[i]));
        }
        json_object_set_new(o, nb_kv_format_name(formats[f]), one);
    }
    return o;
}

static json_t *advice_json(const advising *a)
{
    const nb_advice *v = &a->advice;
    char command[1200];
    command_of(a, command, sizeof command);
    return json_pack("{s:s, s:s, s:s, s:o, s:b, s:s, s:s, s:s, s:b, s:I, s:I, s:o}", "leaf",
                     nb_leaf_name(v->leaf), "scheme", v->scheme, "method", v->method,
                     "kl_smollm2_135m", isfinite(v->loss.kl) ? json_real(v->loss.kl) : json_null(),
                     "kl_measured", (int)v->loss.measured, "because", v->because, "kv", v->kv,
                     "kv_because", v->kv_because, "fits_16", v->fits_16, "nodes_16",
                     (json_int_t)v->nodes_16, "nodes_4", (json_int_t)v->nodes_4, "command",
                     command[0] != 0 ? nb_json_any_text(command, strlen(command)) : json_null());
}

static nb_status print_json(const advising *a, nb_out *out, nb_err *err)
{
    const nb_advise_shape *s = &a->shape;
    json_t *candidates = json_array();
    for (int i = 0; i < NB_N_CANDIDATES; i++)
        json_array_append_new(candidates, candidate_json(a, &a->candidates[i]));
    json_t *limits = json_null();
    if (a->machine.read > 0)
        limits = json_pack("{s:f, s:f, s:f}", "read_gb_s", a->machine.read / 1e9, "int8_gop_s",
                           a->machine.int8_ops / 1e9, "fma_gflop_s", a->machine.fma_ops / 1e9);
    json_t *line = json_pack(
        "{s:o, s:s, s:b, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:s, s:o}", "path",
        nb_json_any_text(a->path, strlen(a->path)), "model_type", s->type, "runs", (int)s->runs,
        "source", source_json(a), "parameters", (json_int_t)nb_advise_params(s),
        "active_parameters", (json_int_t)nb_advise_active_params(s), "memory_limit_bytes",
        (json_int_t)a->request.memory, "ctx", (json_int_t)a->request.ctx, "batch",
        (json_int_t)a->request.batch, "activation_bytes",
        (json_int_t)nb_advise_activation_bytes(s, a->request.batch), "kv", cache_json(a), "limits",
        limits, "candidates", candidates, "kl_source", NB_ADVISE_KL_SOURCE, "advice",
        advice_json(a));
    return nb_out_json(out, line, err);
}

/* ---- the verb ---- */

static int choice_of(const char *const *choices, const char *value)
{
    int i = 0;
    while (strcmp(choices[i], value) != 0)
        i++; /* the parser took nothing else */
    return i;
}

static nb_status run_advise(const nb_args *args, nb_out *out, nb_err *err)
{
    advising a = {.path = nb_args_operand(args, 0)};
    a.request = (nb_advise_request){
        .purpose = (nb_purpose)choice_of(purposes, nb_args_text(args, "for")),
        .accuracy = (nb_accuracy)choice_of(accuracies, nb_args_text(args, "accuracy")),
        .memory = nb_args_int(args, "memory"),
        .ctx = nb_args_int(args, "ctx"),
        .batch = nb_args_int(args, "batch")};
    if (a.request.memory == 0)
        a.request.memory = nb_memory_available();
    NB_TRY(read_shape(&a, err));
    NB_TRY(nb_advise_candidates(a.candidates, &a.shape, err));
    NB_TRY(measure(&a, args, err));
    nb_advise_decide(&a.advice, &a.shape, a.candidates, &a.source, &a.request);
    (void)nb_kv_format_named(a.advice.kv, &a.kv);
    if (out->json)
        return print_json(&a, out, err);
    print_head(&a, out);
    NB_TRY(print_candidates(&a, out, err));
    NB_TRY(print_cache(&a, out, err));
    print_advice(&a, out);
    return NB_OK;
}

const nb_verb nb_verb_advise = {
    .name = "advise",
    .summary = "which scheme to use here, with predicted size, memory, speed and loss",
    .example = "nibble advise model-folder --memory 4G --ctx 8192\n"
               "nibble advise config.json --memory 64G --no-measure",
    .about = "From a folder, a .gguf or a config.json alone: parameters, the size of the files\n"
             "under each scheme, the cache at 4K to 64K tokens, what fits into the memory, and\n"
             "what to begin with: 8 bits before 4, quantizing before training. Speeds are\n"
             "shares of what this machine reads and computes, measured in about a second.\n"
             "Mixtures of experts (mixtral, qwen2_moe, qwen3_moe) get the same arithmetic.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP ", or a config.json", 1, 1}, {0}},
    .options = advise_options,
    .run = run_advise,
};
