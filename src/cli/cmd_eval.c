/* nibble eval: what quantization cost. Perplexity, divergence from the original, accuracy. */
#include "cli/runtime.h"
#include "cli/verbs.h"
#include "eval/score.h"
#include "eval/tasks.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define TEXT_LIMIT ((size_t)4 << 30)
#define MAX_MODELS 64

static const char *const protocol_choices[] = {"llama", "paper", NULL};

static const nb_opt eval_options[] = {
    {.name = "base",
     .kind = NB_OPT_PATH,
     .value = "MODEL",
     .help = "the original to compare with (always in mode f with an F32 cache): adds KL "
             "divergence and top-1 agreement"},
    {.name = "text", .kind = NB_OPT_PATH, .value = "FILE", .help = "text to score"},
    {.name = "protocol",
     .kind = NB_OPT_CHOICE,
     .value = "NAME",
     .choices = protocol_choices,
     .preset = "llama",
     .help = "llama: windows of 512, second half scored; paper: windows of 2048, all scored"},
    {.name = "windows",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 30,
     .help = "score the first N windows only (default: all)"},
    {.name = "tasks",
     .repeats = true,
     .kind = NB_OPT_PATH,
     .value = "FILE",
     .help = "multiple-choice items (JSON lines); may be given more than once"},
    {.name = "limit",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 30,
     .help = "the first N items of each task only (default: all)"},
    {.name = "name",
     .repeats = true,
     .kind = NB_OPT_TEXT,
     .value = "LABEL",
     .help = "what to call a model in the results, in the order of the models"},
    NB_OPT_ROW_COMPUTE,
    NB_OPT_ROW_KV,
    NB_OPT_ROW_THREADS,
    NB_OPT_ROW_ISA,
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

/* Everything the verb holds; freed in one place. */
typedef struct {
    const nb_args *args;
    nb_out *out;
    nb_runtime rt;
    int n_models;
    nb_opened models[MAX_MODELS], base;
    char labels[MAX_MODELS][256];
    nb_buf text;    /* of --text */
    nb_task *tasks; /* one per --tasks */
    int n_tasks;
    nb_progress progress;
} eval_run;

static bool on_progress(void *context, int64_t done, int64_t total)
{
    eval_run *run = context;
    (void)total;
    nb_progress_update(run->out, &run->progress, done);
    return !nb_interrupted();
}

/* Data first: a missing file is then found before any model is loaded. */
static nb_status read_data(eval_run *run, nb_err *err)
{
    const nb_args *args = run->args;
    const char *text = nb_args_text(args, "text");
    const int n_tasks = nb_args_n_values(args, "tasks");
    if (text != NULL)
        NB_TRY(nb_file_slurp(&run->text, text, TEXT_LIMIT, err));
    NB_TRY(NB_ALLOC(&run->tasks, n_tasks, err));
    for (; run->n_tasks < n_tasks; run->n_tasks++)
        NB_TRY(nb_task_load(&run->tasks[run->n_tasks], nb_args_value(args, "tasks", run->n_tasks),
                            nb_args_int(args, "limit"), err));
    return NB_OK;
}

static nb_status open_models(eval_run *run, const nb_protocol *p, nb_err *err)
{
    const nb_args *args = run->args;
    for (int i = 0; i < run->n_models; i++) {
        const char *path = nb_args_operand(args, i);
        nb_opened *o = &run->models[i];
        NB_TRY(nb_opened_open(o, &run->rt, path, nb_compute_option(args), p->n_ctx, true, err));
        nb_opened_warn(o, run->out);
        if (strcmp(nb_args_text(args, "kv"), "auto") == 0 &&
            nb_config_kv_format(&o->model.config) != NB_KV_F16)
            nb_out_note(run->out, "%s: KV %s, as its config says (--kv f16 would not)", path,
                        nb_kv_label(args, &o->model.config));
        if (i < nb_args_n_values(args, "name"))
            snprintf(run->labels[i], sizeof run->labels[i], "%s", nb_args_value(args, "name", i));
        else
            nb_path_label(path, run->labels[i], sizeof run->labels[i]);
        if (nb_args_text(args, "text") != NULL && o->model.config.n_ctx < p->n_ctx)
            nb_out_warn(run->out,
                        "%s: protocol '%s' has windows of %lld tokens, and the model was "
                        "trained for %lld",
                        path, p->name, (long long)p->n_ctx, (long long)o->model.config.n_ctx);
    }
    const char *base = nb_args_text(args, "base");
    if (base == NULL)
        return NB_OK;
    NB_TRY(nb_opened_open(&run->base, &run->rt, base, NB_COMPUTE_ALL_F, p->n_ctx, true, err));
    nb_opened_warn(&run->base, run->out);
    return NB_OK;
}

/* Two models can be compared when an id means the same to both. Ids that only one of them has a
 * token for are padding. */
static nb_status check_same_tokens(const nb_opened *a, const nb_opened *b, nb_err *err)
{
    const int64_t n_a = nb_tokenizer_n_tokens(a->tokenizer);
    const int64_t n_b = nb_tokenizer_n_tokens(b->tokenizer);
    for (int64_t id = 0; id < n_a && id < n_b; id++) {
        const char *x, *y;
        size_t n_x, n_y;
        nb_err ignored;
        if (nb_tokenizer_token(a->tokenizer, (int32_t)id, &x, &n_x, &ignored) != NB_OK ||
            nb_tokenizer_token(b->tokenizer, (int32_t)id, &y, &n_y, &ignored) != NB_OK)
            continue;
        if (n_x != n_y || memcmp(x, y, n_x) != 0)
            return nb_fail(
                err, NB_DATA,
                "%s: token %lld is '%.*s' here and '%.*s' in %s: the vocabularies differ",
                nb_store_path(a->store), (long long)id, (int)(n_x < 40 ? n_x : 40), x,
                (int)(n_y < 40 ? n_y : 40), y, nb_store_path(b->store));
    }
    return NB_OK;
}

/* All models get the ids of the first one's tokenizer. */
static nb_status check_vocabularies(const eval_run *run, nb_err *err)
{
    for (int i = 1; i < run->n_models; i++)
        NB_TRY(check_same_tokens(&run->models[i], &run->models[0], err));
    return run->base.store == NULL ? NB_OK : check_same_tokens(&run->models[0], &run->base, err);
}

/* ---- perplexity and divergence ---- */

/* Keys are always the same ones: null is what was not measured, or has no number (the perplexity of
 * a model that is sure and wrong may overflow). */
static nb_status print_score_json(eval_run *run, int i, const nb_protocol *p, const nb_score *r,
                                  nb_err *err)
{
    const nb_opened *o = &run->models[i];
    char hash[24];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)r->logits_hash);
    const struct {
        const char *key;
        bool needs_base;
        double value;
    } numbers[] = {
        {"perplexity", false, r->perplexity},
        {"perplexity_se", false, r->perplexity_se},
        {"base_perplexity", true, r->base_perplexity},
        {"kl_mean", true, r->kl_mean},
        {"kl_mean_se", true, r->kl_mean_se},
        {"kl_median", true, r->kl_median},
        {"kl_p99", true, r->kl_p99},
        {"kl_max", true, r->kl_max},
        {"top1", true, r->top1},
        {"top1_se", true, r->top1_se},
        {"bpw", false, nb_opened_bpw(o)},
        {"seconds", false, r->seconds},
    };
    json_t *j = json_pack(
        "{s:o, s:s, s:I, s:I, s:I, s:s, s:s, s:s}", "name",
        nb_json_any_text(run->labels[i], strlen(run->labels[i])), "protocol", p->name, "n_windows",
        (json_int_t)r->n_windows, "n_tokens", (json_int_t)r->n_tokens, "bytes",
        (json_int_t)nb_store_file_bytes(o->store), "compute", nb_model_compute_name(&o->model),
        "kv", nb_kv_name(run->args, &o->model.config), "logits_hash", hash);
    bool fine = j != NULL;
    for (size_t k = 0; fine && k < sizeof numbers / sizeof *numbers; k++) {
        const bool known = (r->has_base || !numbers[k].needs_base) && isfinite(numbers[k].value);
        fine = json_object_set_new(j, numbers[k].key,
                                   known ? json_real(numbers[k].value) : json_null()) == 0;
    }
    if (!fine) {
        json_decref(j);
        j = NULL;
    }
    return nb_out_json(run->out, j, err);
}

static nb_status print_scores(eval_run *run, const nb_protocol *p, const nb_score *scores,
                              nb_err *err)
{
    if (run->out->json) {
        for (int i = 0; i < run->n_models; i++)
            NB_TRY(print_score_json(run, i, p, &scores[i], err));
        return NB_OK;
    }
    const bool base = scores[0].has_base;
    static const char *const heads[] = {"model", ">size",    ">bpw",  "compute", ">perplexity",
                                        ">+-",   ">KL mean", ">+-",   ">median", ">p99",
                                        ">max",  ">top-1 %", "logits"};
    nb_out_text(run->out, "protocol %s, %lld windows, %lld tokens scored", p->name,
                (long long)scores[0].n_windows, (long long)scores[0].n_tokens);
    if (base)
        nb_out_text(run->out, "; base perplexity %.4f", scores[0].base_perplexity);
    nb_out_text(run->out, "\n");
    nb_table t = {0};
    NB_TRY(nb_table_begin(&t, heads, base ? 12 : 6, err));
    for (int i = 0; i < run->n_models; i++) {
        const nb_score *r = &scores[i];
        const nb_opened *o = &run->models[i];
        NB_TRY(nb_table_cell(&t, err, "%s", run->labels[i]));
        NB_TRY(nb_table_cell(&t, err, "%s", nb_human_bytes(nb_store_file_bytes(o->store)).text));
        NB_TRY(nb_table_cell(&t, err, "%.2f", nb_opened_bpw(o)));
        NB_TRY(nb_table_cell(&t, err, "%s", nb_model_compute_name(&o->model)));
        NB_TRY(nb_table_cell(&t, err, "%.4f", r->perplexity));
        NB_TRY(nb_table_cell(&t, err, "%.4f", r->perplexity_se));
        if (!base)
            continue;
        const double cells[] = {r->kl_mean, r->kl_mean_se, r->kl_median, r->kl_p99, r->kl_max};
        for (size_t c = 0; c < sizeof cells / sizeof *cells; c++)
            NB_TRY(nb_table_cell(&t, err, "%.5f", cells[c]));
        NB_TRY(nb_table_cell(&t, err, "%.2f", 100 * r->top1));
    }
    NB_TRY(nb_table_print(&t, run->out, err));
    for (int i = 0; i < run->n_models; i++)
        nb_out_note(run->out, "%s: logits hash %016llx, %.1f s", run->labels[i],
                    (unsigned long long)scores[i].logits_hash, scores[i].seconds);
    return NB_OK;
}

static nb_status score_text(eval_run *run, const nb_protocol *p, nb_err *err)
{
    const char *path = nb_args_text(run->args, "text");
    nb_tokens tokens = {0};
    nb_scorer scorers[MAX_MODELS] = {{0}}, base = {0};
    nb_score scores[MAX_MODELS];
    nb_status s;
    NB_TRY_GOTO(s, check_vocabularies(run, err));
    NB_TRY_GOTO(s, nb_tokenizer_encode(run->models[0].tokenizer, (const char *)run->text.data,
                                       run->text.len, (nb_encode_options){0}, &tokens, err));
    if (tokens.n_left_out > 0)
        nb_out_warn(run->out, "%lld bytes of '%s' have no token and were left out",
                    (long long)tokens.n_left_out, path);
    for (int i = 0; i < run->n_models; i++) {
        NB_TRY_GOTO(s, nb_scorer_init(&scorers[i], &run->models[i].model, &run->rt.kernels,
                                      run->rt.pool, p,
                                      nb_kv_option(run->args, &run->models[i].model.config), err));
        scorers[i].name = nb_args_operand(run->args, i);
    }
    const bool with_base = run->base.store != NULL;
    if (with_base) {
        NB_TRY_GOTO(s, nb_scorer_init(&base, &run->base.model, &run->rt.kernels, run->rt.pool, p,
                                      NB_KV_F32, err));
        base.name = nb_args_text(run->args, "base");
    }
    int64_t windows = tokens.n / p->n_ctx, asked = nb_args_int(run->args, "windows");
    if (asked > 0 && asked < windows)
        windows = asked;
    nb_progress_begin(run->out, &run->progress, "scoring", "windows", windows);
    s = nb_score_run(scorers, run->n_models, with_base ? &base : NULL, p, tokens.ids, tokens.n,
                     asked, on_progress, run, scores, err);
    nb_progress_end(run->out, &run->progress);
    if (s != NB_OK) {
        if (s == NB_DATA && windows == 0)
            nb_context(err, "%s", path);
        goto done;
    }
    s = print_scores(run, p, scores, err);
done:
    for (int i = 0; i < run->n_models; i++)
        nb_scorer_free(&scorers[i]);
    nb_scorer_free(&base);
    nb_tokens_free(&tokens);
    return s;
}

/* ---- tasks ---- */

static nb_status score_task(eval_run *run, const nb_task *task, nb_err *err)
{
    char name[256];
    nb_path_stem(task->path, name, sizeof name);
    nb_status s = NB_OK;
    for (int i = 0; s == NB_OK && i < run->n_models; i++) {
        const nb_opened *o = &run->models[i];
        nb_task_result r;
        const double start = nb_clock();
        nb_progress_begin(run->out, &run->progress, name, "items", task->n_items);
        s = nb_task_run(task, &run->models[i].model, o->tokenizer, &run->rt.kernels, run->rt.pool,
                        nb_kv_option(run->args, &o->model.config), on_progress, run, NULL, &r, err);
        nb_progress_end(run->out, &run->progress);
        if (s != NB_OK)
            return s == NB_DATA ? nb_context(err, "%s", nb_args_operand(run->args, i)) : s;
        r.seconds = nb_clock() - start;
        if (run->out->json)
            s = nb_out_json(run->out,
                            json_pack("{s:o, s:o, s:I, s:f, s:f, s:f, s:f, s:s, s:f}", "name",
                                      nb_json_any_text(run->labels[i], strlen(run->labels[i])),
                                      "task", nb_json_any_text(name, strlen(name)), "n",
                                      (json_int_t)r.n, "acc", r.acc, "acc_se", r.acc_se, "acc_norm",
                                      r.acc_norm, "acc_norm_se", r.acc_norm_se, "compute",
                                      nb_model_compute_name(&o->model), "seconds", r.seconds),
                            err);
        else
            nb_out_text(run->out,
                        "%s: %s: acc %.4f +- %.4f, acc_norm %.4f +- %.4f (%lld items, %.1f s)\n",
                        run->labels[i], name, r.acc, r.acc_se, r.acc_norm, r.acc_norm_se,
                        (long long)r.n, r.seconds);
    }
    return s;
}

/* An option that would do nothing is a misunderstanding. */
static nb_status check_usage(const nb_args *args, nb_err *err)
{
    const bool text = nb_args_text(args, "text") != NULL;
    const int n_tasks = nb_args_n_values(args, "tasks");
    if (!text && n_tasks == 0)
        return nb_fail(err, NB_USAGE, "eval: nothing to score: give --text FILE or --tasks FILE");
    if (nb_args_n_operands(args) > MAX_MODELS)
        return nb_fail(err, NB_USAGE, "eval: at most %d models", MAX_MODELS);
    if (nb_args_n_values(args, "name") > nb_args_n_operands(args))
        return nb_fail(err, NB_USAGE, "eval: %d times --name for %d models",
                       nb_args_n_values(args, "name"), nb_args_n_operands(args));
    static const char *const of_text[] = {"base", "windows", "protocol"};
    for (size_t i = 0; !text && i < sizeof of_text / sizeof *of_text; i++) {
        if (nb_args_given(args, of_text[i]))
            return nb_fail(err, NB_USAGE, "eval: --%s needs --text FILE", of_text[i]);
    }
    if (n_tasks == 0 && nb_args_given(args, "limit"))
        return nb_fail(err, NB_USAGE, "eval: --limit needs --tasks FILE");
    return NB_OK;
}

static nb_status run_all(eval_run *run, nb_err *err)
{
    const nb_args *args = run->args;
    NB_TRY(check_usage(args, err));
    const nb_protocol *p = nb_protocol_by_name(nb_args_text(args, "protocol"));
    NB_TRY(read_data(run, err));
    NB_TRY(nb_runtime_open(&run->rt, args, err));
    NB_TRY(open_models(run, p, err));
    if (nb_args_text(args, "text") != NULL)
        NB_TRY(score_text(run, p, err));
    for (int i = 0; i < run->n_tasks; i++)
        NB_TRY(score_task(run, &run->tasks[i], err));
    return NB_OK;
}

static nb_status run_eval(const nb_args *args, nb_out *out, nb_err *err)
{
    eval_run *run;
    NB_TRY(NB_ALLOC(&run, 1, err));
    run->args = args;
    run->out = out;
    run->n_models = nb_args_n_operands(args) < MAX_MODELS ? nb_args_n_operands(args) : MAX_MODELS;
    const nb_status s = run_all(run, err);
    for (int i = 0; i < run->n_models; i++)
        nb_opened_close(&run->models[i]);
    nb_opened_close(&run->base);
    nb_runtime_close(&run->rt);
    nb_buf_free(&run->text);
    for (int i = 0; i < run->n_tasks; i++)
        nb_task_free(&run->tasks[i]);
    nb_free(run->tasks);
    nb_free(run);
    return s;
}

const nb_verb nb_verb_eval = {
    .name = "eval",
    .summary = "measure perplexity, divergence from the original, and accuracy",
    .example = "nibble eval small.gguf --base original/ --text wiki.txt\n"
               "nibble eval a/ b/ c.gguf --base original/ --text wiki.txt --windows 32 --json\n"
               "nibble eval small.gguf --tasks arc_easy.jsonl --tasks winogrande.jsonl",
    .about = "The text is scored as it is, without a begin-of-sequence token. Several models are\n"
             "scored side by side, so that the base runs only once.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, .min = 1, .max = NB_MANY}, {0}},
    .options = eval_options,
    .run = run_eval,
};
