/* See rewriting.h. */
#include "cli/rewriting.h"

#include "quant/digest.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

nb_status nb_rewriting_target(const nb_args *args, nb_plan_request *request, nb_err *err)
{
    static const char end[] = ".gguf";
    const char *to = nb_args_text(args, "to"), *path = nb_args_text(args, "output");
    if (path == NULL && !nb_args_flag(args, "dry-run"))
        return nb_fail(err, NB_USAGE, "no output given: -o OUT (or --dry-run to see the plan)");
    if (path != NULL && (strcmp(path, "-") == 0 || *path == 0))
        return nb_fail(err, NB_USAGE, "-o '%s': a model cannot be written there", path);
    const size_t n = path == NULL ? 0 : strlen(path), n_end = sizeof end - 1;
    const bool named = n > n_end && strcasecmp(path + n - n_end, end) == 0;
    (void)nb_target_by_name(request, to != NULL ? to
                                     : named    ? "gguf"
                                                : "hf"); /* one of the choices */
    return NB_OK;
}

/* ---- the input must survive ---- */

/* "a/b" of "a/b/c", "." of "c", in the buffer. */
static nb_status parent_of(const char *path, nb_buf *out, nb_err *err)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    while (n > 0 && path[n - 1] != '/')
        n--;
    out->len = 0;
    if (n == 0)
        NB_TRY(nb_buf_text(out, ".", err));
    else
        NB_TRY(nb_buf_put(out, path, n, err));
    return nb_buf_u8(out, 0, err);
}

/* Whether `output` exists and replacing it would remove some file of the model: the model itself,
 * a file of its folder, the folder of its file, or another shard of a split one. */
static nb_status hits_input(const char *input, const char *output, bool *hits, nb_err *err)
{
    nb_buf in = {0}, out = {0};
    *hits = nb_path_same(input, output);
    nb_status s = parent_of(input, &in, err);
    if (s == NB_OK)
        s = parent_of(output, &out, err);
    if (s == NB_OK && nb_path_exists(output)) {
        const bool input_is_dir = nb_path_is_dir(input);
        *hits = *hits || (input_is_dir && nb_path_same(input, (const char *)out.data)) ||
                (!input_is_dir && nb_path_same((const char *)in.data, output));
    }
    nb_buf_free(&in);
    nb_buf_free(&out);
    return s;
}

/* PREFIX-00001-of-00003.gguf: the other shards are input as well. */
static nb_status hits_shard(const nb_store *store, const char *output, bool *hits, nb_err *err)
{
    int64_t count = 1;
    const char *path = nb_store_path(store);
    const size_t n = strlen(path), n_tail = strlen("00001-of-00001.gguf");
    if (nb_store_gguf(store) == NULL || n <= n_tail || !nb_path_exists(output))
        return NB_OK;
    NB_TRY(nb_gguf_int(nb_store_gguf(store), "split.count", false, 0, 65535, &count, err));
    nb_buf name = {0};
    nb_status s = NB_OK;
    for (int64_t i = 1; i < count && s == NB_OK && !*hits; i++) {
        name.len = 0;
        s = nb_buf_format(&name, err, "%.*s%05lld-of-%05lld.gguf", (int)(n - n_tail), path,
                          (long long)i + 1, (long long)count);
        *hits = s == NB_OK && nb_path_same((const char *)name.data, output);
    }
    nb_buf_free(&name);
    return s;
}

static nb_status check_output(const nb_rewriting *r, nb_err *err)
{
    bool hits = false;
    if (r->output == NULL)
        return NB_OK;
    NB_TRY(hits_input(r->source, r->output, &hits, err));
    if (!hits)
        NB_TRY(hits_shard(r->store, r->output, &hits, err));
    if (hits)
        return nb_fail(err, NB_USAGE, "%s: the output would replace the input", r->output);
    if (r->dry_run && nb_path_exists(r->output) && !nb_args_flag(r->args, "force"))
        return nb_fail(err, NB_USAGE, "%s: exists already (--force replaces it)", r->output);
    return NB_OK;
}

/* ---- doing ---- */

typedef struct {
    nb_out *out;
    nb_progress bar;
} progress;

static bool show_progress(void *context, int64_t done, int64_t total)
{
    progress *p = context;
    (void)total;
    nb_progress_update(p->out, &p->bar, done);
    return !nb_interrupted();
}

/* What the output has lost, on text that is held out of the calibration. */
static nb_check_request check_request(const nb_rewriting *r)
{
    return (nb_check_request){.source = r->source,
                              .output = r->output,
                              .set = &r->calibrating.set,
                              .n_sequences = r->flags->check,
                              .memory = r->flags->memory};
}

static nb_status check(nb_rewriting *r, nb_out *out, nb_err *err)
{
    if (!r->calibrating.wanted && !r->calibrating.checks)
        return NB_OK;
    const nb_check_request request = check_request(r);
    return nb_check_run(&r->evaluation, &request, &r->runtime, out, err);
}

/* What that will take. Where it does not fit, it will be left out. */
static nb_status plan_check(nb_rewriting *r, nb_out *out, nb_err *err)
{
    if (!r->calibrating.wanted && !r->calibrating.checks)
        return NB_OK;
    const nb_check_request request = check_request(r);
    return nb_check_estimate(&r->check_plan, &request, r->store, r->bytes, &r->runtime, r->dry_run,
                             out, err);
}

/* The calibration set and what everything will take. */
static nb_status prepare(nb_rewriting *r, nb_out *out, nb_err *err)
{
    if (r->flags == NULL)
        return NB_OK;
    NB_TRY(nb_calibrating_open(&r->calibrating, r->flags, &r->plan, r->store, r->method,
                               &r->runtime, r->output, r->dry_run, out, err));
    NB_TRY(plan_check(r, out, err));
    const int64_t limit = r->flags->memory, needed = nb_rewriting_memory(r);
    if (limit > 0 && needed > limit)
        return nb_fail(err, NB_LIMIT,
                       "writing the output needs about %lld MB here, and --memory "
                       "is %lld MB",
                       (long long)((needed + (1 << 20) - 1) >> 20), (long long)(limit >> 20));
    return NB_OK;
}

static nb_status calibrate(nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_calibrating *c = &r->calibrating;
    nb_calibrating_print_set(c, out);
    if (!c->wanted)
        return NB_OK;
    NB_TRY(nb_calibrating_run(c, r->flags, &r->plan, r->store, r->method, &r->runtime, out, err));
    nb_calibrating_print_coverage(c, out);
    for (int64_t i = 0; i < r->plan.n; i++) {
        if (c->result.act_scale[i] != 0)
            r->plan.weights[i].act.scale = c->result.act_scale[i];
    }
    return NB_OK;
}

static nb_status dry_run(nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_sink *sink;
    NB_TRY(nb_wrapping_open_sink(&sink, &r->wrapping, &r->plan, NULL, false, err));
    r->bytes = nb_sink_planned_bytes(sink);
    nb_sink_abort(sink);
    NB_TRY(prepare(r, out, err));
    NB_TRY(nb_rewrite_estimate(&r->plan, r->method, nb_pool_n_threads(r->runtime.pool), &r->seconds,
                               err));
    r->seconds += r->calibrating.seconds + r->check_plan.seconds;
    if (out->json)
        return nb_rewriting_print_json(r, out, err);
    nb_rewriting_print_head(r, out);
    nb_calibrating_print_set(&r->calibrating, out);
    NB_TRY(nb_rewriting_print_table(r, out, err));
    nb_rewriting_print_end(r, out);
    return NB_OK;
}

static nb_status really_run(nb_rewriting *r, nb_nonfinite nonfinite, nb_out *out, nb_err *err)
{
    const double start = nb_clock();
    nb_sink *sink;
    if (nb_path_exists(r->output) && !nb_args_flag(r->args, "force"))
        return nb_fail(err, NB_USAGE, "%s: exists already (--force replaces it)", r->output);
    /* Opened in earnest and given up again: what stands in the way shows now, not after hours. */
    NB_TRY(nb_wrapping_open_sink(&sink, &r->wrapping, &r->plan, r->output,
                                 nb_args_flag(r->args, "force"), err));
    r->bytes = nb_sink_planned_bytes(sink);
    nb_sink_abort(sink);
    NB_TRY(prepare(r, out, err));
    if (!out->json)
        nb_rewriting_print_head(r, out);
    NB_TRY(calibrate(r, out, err));
    NB_TRY(nb_wrapping_open_sink(&sink, &r->wrapping, &r->plan, r->output,
                                 nb_args_flag(r->args, "force"), err));
    r->bytes = nb_sink_planned_bytes(sink);
    int64_t source_bytes = 0;
    for (int64_t i = 0; i < r->plan.n; i++)
        source_bytes += r->plan.from[i] != NULL ? r->plan.from[i]->bytes : 0;
    progress p = {.out = out};
    const nb_rewrite_options options = {.method = r->method,
                                        .nonfinite = nonfinite,
                                        .made = r->calibrating.result.made,
                                        .dir = &r->calibrating.dir,
                                        .progress = show_progress,
                                        .context = &p};
    nb_progress_begin(out, &p.bar, r->plan.request.scheme != NULL ? "quantizing" : "converting",
                      "bytes", source_bytes);
    nb_status s = nb_rewrite(r->store, &r->plan, sink, r->runtime.pool, &options, &r->result, err);
    nb_progress_end(out, &p.bar);
    nb_calibrating_add_errors(&r->calibrating, &r->result.quantized);
    if (s == NB_OK && nb_interrupted())
        s = nb_fail_interrupted(err);
    if (s != NB_OK) {
        nb_sink_abort(sink);
        return s;
    }
    NB_TRY(nb_sink_commit(sink, err));
    r->seconds = nb_clock() - start;
    if (r->plan.request.scheme != NULL) {
        NB_TRY(nb_model_digest(r->output, r->sha256, err));
        NB_TRY(check(r, out, err));
        NB_TRY(nb_rewriting_write_report(r, err));
    }
    if (r->calibrating.wanted)
        nb_workdir_close(&r->calibrating.dir, true);
    if (r->mixing.report != NULL)
        nb_mixing_done(r->output);
    if (out->json)
        return nb_rewriting_print_json(r, out, err);
    nb_rewriting_print_end(r, out);
    return NB_OK;
}

/* What is only copied is checked as well: no output that nibble itself would refuse. */
static nb_status check_input(nb_store *store, nb_store_kind to, nb_out *out, nb_err *err)
{
    nb_config c;
    NB_TRY(nb_config_read(store, &c, err));
    NB_TRY(nb_model_check(store, &c, err));
    /* Into another container the tokenizer is translated, and that reads all of it. */
    return nb_store_kind_of(store) == to ? nb_tokenizer_check(store, out, err) : NB_OK;
}

/* What becomes of the weights: the rules, found by measurement where that is asked for. */
static nb_status find_recipe(nb_rewriting *r, nb_plan_request *request, nb_out *out, nb_err *err)
{
    nb_config config;
    if (r->recipes == NULL)
        return NB_OK;
    NB_TRY(nb_config_read(r->store, &config, err));
    NB_TRY(nb_recipe_flags_resolve(r->recipes, &config, err));
    request->preset = r->recipes->preset;
    if (r->recipes->mix != NB_MIX_NONE)
        NB_TRY(nb_mixing_run(&r->mixing, r->recipes, r->flags, request, r->store, &r->runtime,
                             r->output, out, err));
    request->recipe = &r->recipes->recipe;
    request->scheme = nb_recipe_main(request->recipe)->scheme;
    return NB_OK;
}

static nb_status print_recipe(const nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_buf text = {0};
    const nb_status s = nb_recipe_print(&r->recipes->recipe, &text, err);
    if (s == NB_OK)
        nb_out_bytes(out, text.data, text.len);
    nb_buf_free(&text);
    return s;
}

static nb_status run(nb_rewriting *r, nb_plan_request *request, nb_nonfinite nonfinite, nb_out *out,
                     nb_err *err)
{
    NB_TRY(nb_store_open(&r->store, r->source, err));
    NB_TRY(check_output(r, err));
    NB_TRY(check_input(r->store, request->to, out, err));
    NB_TRY(nb_runtime_open(&r->runtime, r->args, err));
    NB_TRY(find_recipe(r, request, out, err));
    NB_TRY(nb_plan_make(&r->plan, r->store, request, err));
    NB_TRY(nb_wrapping_make(&r->wrapping, r->store, &r->plan, err));
    if (r->dry_run && r->recipes != NULL && r->recipes->print && !out->json)
        return print_recipe(r, out, err);
    return r->dry_run ? dry_run(r, out, err) : really_run(r, nonfinite, out, err);
}

nb_status nb_rewriting_run(const nb_args *args, nb_plan_request request, nb_recipe_flags *recipes,
                           const nb_method *method, const nb_calibrating_flags *flags,
                           nb_nonfinite nonfinite, nb_out *out, nb_err *err)
{
    NB_TRY(nb_rewriting_target(args, &request, err));
    if (recipes != NULL)
        NB_TRY(nb_recipe_flags_check(recipes, request.to, err));
    nb_rewriting r = {.args = args,
                      .source = nb_args_operand(args, 0),
                      .output = nb_args_text(args, "output"),
                      .method = method,
                      .recipes = recipes,
                      .flags = flags,
                      .calibrating = NB_CALIBRATING_NONE,
                      .dry_run = nb_args_flag(args, "dry-run")};
    const nb_status s = run(&r, &request, nonfinite, out, err);
    json_decref(r.evaluation);
    nb_calibrating_close(&r.calibrating, false);
    nb_runtime_close(&r.runtime);
    nb_wrapping_free(&r.wrapping);
    nb_plan_free(&r.plan);
    nb_mixing_free(&r.mixing);
    nb_store_close(r.store);
    return s;
}
