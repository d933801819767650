/* See rewriting.h. */
#include "cli/rewriting.h"

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

/* What is only copied is checked as well: no output that nibble itself would refuse. */
static nb_status check_input(nb_store *store, nb_store_kind to, nb_out *out, nb_err *err)
{
    nb_config c;
    NB_TRY(nb_config_read(store, &c, err));
    NB_TRY(nb_model_check(store, &c, err));
    /* Into another container the tokenizer is translated, and that reads all of it. */
    return nb_store_kind_of(store) == to ? nb_tokenizer_check(store, out, err) : NB_OK;
}

/* Before anything runs the model. What is only copied or rounded is looked at on its way. */
nb_status nb_rewriting_settle_nonfinite(nb_rewriting *r, nb_err *err)
{
    if (r->finite.store != NULL)
        return nb_finite_repeat(&r->finite, r->store, err);
    return nb_finite_settle(&r->finite, r->store, r->nonfinite, r->runtime.pool, err);
}

/* The rules, as far as they can be known without measuring. */
static nb_status find_recipe(nb_rewriting *r, nb_err *err)
{
    nb_config config;
    if (r->recipes == NULL)
        return NB_OK;
    NB_TRY(nb_config_read(r->store, &config, err));
    NB_TRY(nb_recipe_flags_resolve(r->recipes, &config, err));
    r->request->preset = r->recipes->preset;
    r->request->recipe = &r->recipes->recipe;
    return NB_OK;
}

/* The rules that only measurement can find. */
static nb_status find_mixture(nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_plan_request bare = *r->request;
    bare.recipe = NULL;
    if (!r->dry_run)
        NB_TRY(nb_rewriting_settle_nonfinite(r, err));
    r->mixing_request = bare;
    return nb_mixing_run(&r->mixing, r->recipes, r->flags, &r->mixing_request, r->store,
                         &r->runtime, r->output, r->dry_run, out, err);
}

static nb_status print_recipe(const nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_buf text = {0};
    if (r->mixing.stand_in != NULL)
        return nb_fail(err, NB_USAGE,
                       "nothing is measured yet, and --dry-run does not: --print-recipe alone "
                       "measures, prints the rules, and writes no model");
    const nb_status s = nb_recipe_print(&r->recipes->recipe, &text, err);
    if (s == NB_OK)
        nb_out_bytes(out, text.data, text.len);
    nb_buf_free(&text);
    return s;
}

/* Before anything takes long: tasks that can be read and asked, and memory for them as far as it is
 * known before there is a plan. */
static nb_status open_tasks(nb_rewriting *r, nb_err *err)
{
    if (r->flags == NULL)
        return NB_OK;
    const int64_t bytes = nb_store_file_bytes(r->store);
    NB_TRY(nb_task_check_open(&r->tasks, r->args, r->store, err));
    return nb_task_check_estimate(&r->tasks_plan, &r->tasks, bytes, 0, r->flags->memory,
                                  &r->runtime, false, err);
}

static nb_status really_run(nb_rewriting *r, nb_out *out, nb_err *err)
{
    NB_TRY(r->mixing.f != NULL ? nb_rewriting_make_mixture(r, out, err)
                               : nb_rewriting_make(r, out, err));
    NB_TRY(nb_rewriting_answer(r, out, err));
    NB_TRY(nb_rewriting_publish(r, err));
    if (out->json)
        return nb_rewriting_print_json(r, out, err);
    nb_rewriting_print_end(r, out);
    return NB_OK;
}

static nb_status run(nb_rewriting *r, nb_out *out, nb_err *err)
{
    bool done = false;
    NB_TRY(nb_store_open(&r->store, r->source, err));
    NB_TRY(check_output(r, err));
    NB_TRY(check_input(r->store, r->request->to, out, err));
    NB_TRY(nb_runtime_open(&r->runtime, r->args, err));
    NB_TRY(find_recipe(r, err));
    const bool mixes = r->recipes != NULL && r->recipes->mix != NB_MIX_NONE;
    const bool prints = r->recipes != NULL && r->recipes->print && !out->json;
    if (!r->dry_run && !prints)
        NB_TRY(nb_rewriting_done_before(r, &done, out, err));
    if (done)
        return NB_OK;
    NB_TRY(open_tasks(r, err));
    if (mixes)
        NB_TRY(find_mixture(r, out, err));
    if (prints)
        return print_recipe(r, out, err);
    return r->dry_run ? nb_rewriting_dry_run(r, out, err) : really_run(r, out, err);
}

/* What a failure leaves behind to go on from: no space, a disk that is gone. */
static void say_what_stays(const nb_rewriting *r, nb_err *err)
{
    const char *folder =
        r->calibrating.dir.path != NULL ? r->calibrating.dir.path : r->mixing.dir.path;
    const size_t n = strlen(err->text);
    if (folder != NULL && nb_path_is_dir(folder))
        snprintf(err->text + n, sizeof err->text - n,
                 "; what is done so far stays in %s, and the same command goes on from there",
                 folder);
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
                      .request = &request,
                      .nonfinite = nonfinite,
                      .method = method,
                      .recipes = recipes,
                      .flags = flags,
                      .calibrating = NB_CALIBRATING_NONE,
                      .mixing = NB_MIXING_NONE,
                      .dry_run = nb_args_flag(args, "dry-run")};
    const nb_status s = run(&r, out, err);
    if (s == NB_IO && !r.dry_run)
        say_what_stays(&r, err);
    nb_rewriting_drop(&r, false);
    nb_mixing_close(&r.mixing, false);
    nb_runtime_close(&r.runtime);
    nb_finite_free(&r.finite);
    nb_task_check_free(&r.tasks);
    nb_store_close(r.store);
    return s;
}
