/* From a plan to an output that is whole and measured, and then has a name; see rewriting.h. */
#include "cli/rewriting.h"

#include "quant/write/digest.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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

/* ---- before ---- */

/* What the output has lost, on text that is held out of the calibration. */
static nb_check_request check_request(const nb_rewriting *r)
{
    return (nb_check_request){.source = r->source,
                              .output = r->made_at,
                              .finite = &r->finite,
                              .set = &r->calibrating.set,
                              .n_sequences = r->flags->check,
                              .memory = r->flags->memory,
                              .whole_only = r->rival};
}

/* What that will take. Where it does not fit, it will be left out. */
static nb_status plan_check(nb_rewriting *r, nb_out *out, nb_err *err)
{
    if (!r->calibrating.wanted && !r->calibrating.checks)
        return NB_OK;
    const nb_check_request request = check_request(r);
    NB_TRY(nb_check_estimate(&r->check_plan, &request, r->store, r->bytes, &r->runtime, r->dry_run,
                             out, err));
    if (r->mixing.f != NULL && r->mixing.f->mix == NB_MIX_KL && r->check_plan.memory == 0)
        return nb_fail(err, NB_LIMIT,
                       "--max-kl is about the output, which cannot be measured here: that takes "
                       "held-out text, and memory for both models");
    return NB_OK;
}

/* The calibration set and what everything will take. */
static nb_status prepare(nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_buf folder = {0};
    if (r->flags == NULL)
        return NB_OK;
    nb_status s = NB_OK;
    if (r->output != NULL)
        s = nb_rewriting_beside(r, r->rival ? ".nibble-work-uniform" : ".nibble-work", &folder,
                                err);
    if (s == NB_OK)
        s = nb_calibrating_open(&r->calibrating, r->flags, &r->plan, r->store, r->method,
                                &r->runtime, (const char *)folder.data,
                                r->flags->fresh && (!r->again || r->rival), r->dry_run, out, err);
    nb_buf_free(&folder);
    NB_TRY(s);
    NB_TRY(plan_check(r, out, err));
    NB_TRY(nb_rewriting_plan_kv(r, &r->kv_seconds, err));
    NB_TRY(nb_task_check_estimate(&r->tasks_plan, &r->tasks, nb_store_file_bytes(r->store),
                                  r->bytes, r->flags->memory, &r->runtime, r->dry_run, err));
    const int64_t limit = r->flags->memory, needed = nb_rewriting_memory(r);
    if (limit > 0 && needed > limit)
        return nb_fail(err, NB_LIMIT,
                       "writing the output needs about %lld MB here, and --memory "
                       "is %lld MB",
                       (long long)((needed + (1 << 20) - 1) >> 20), (long long)(limit >> 20));
    return NB_OK;
}

static nb_status plan(nb_rewriting *r, nb_err *err)
{
    if (r->request->recipe != NULL)
        r->request->scheme = nb_recipe_main(r->request->recipe)->scheme;
    NB_TRY(nb_plan_make(&r->plan, r->store, r->request, err));
    return nb_wrapping_make(&r->wrapping, r->store, &r->plan, err);
}

/* Opened in earnest and given up again: what stands in the way shows now, not after hours. */
static nb_status try_outputs(nb_rewriting *r, nb_err *err)
{
    nb_sink *sink;
    nb_buf path = {0};
    nb_outfile report = NB_OUTFILE_CLOSED;
    NB_TRY(nb_wrapping_open_sink(&sink, &r->wrapping, &r->plan, r->output,
                                 nb_args_flag(r->args, "force"), err));
    r->bytes = nb_sink_planned_bytes(sink);
    nb_sink_abort(sink);
    if (r->recipes == NULL || r->request->to == NB_STORE_HF)
        return NB_OK;
    nb_status s = nb_rewriting_report_path(r, true, &path, err);
    if (s == NB_OK)
        s = nb_outfile_open(&report, (const char *)path.data, true, err);
    nb_outfile_abort(&report);
    nb_buf_free(&path);
    return s;
}

/* ---- one output ---- */

static nb_status calibrate(nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_calibrating *c = &r->calibrating;
    if (!r->again)
        nb_calibrating_print_set(c, out);
    if (!c->wanted)
        return NB_OK;
    NB_TRY(nb_calibrating_run(c, r->flags, &r->plan, r->store, r->method, &r->runtime, out, err));
    nb_calibrating_print_coverage(c, out);
    nb_calibrating_print_distilled(c, out);
    for (int64_t i = 0; i < r->plan.n; i++) {
        if (c->result.act_scale[i] != 0)
            r->plan.weights[i].act.scale = c->result.act_scale[i];
    }
    return NB_OK;
}

static nb_status write_weights(nb_rewriting *r, nb_out *out, nb_err *err)
{
    NB_TRY(nb_wrapping_open_sink(&r->sink, &r->wrapping, &r->plan, r->output,
                                 nb_args_flag(r->args, "force"), err));
    r->bytes = nb_sink_planned_bytes(r->sink);
    int64_t source_bytes = 0;
    for (int64_t i = 0; i < r->plan.n; i++)
        source_bytes += r->plan.from[i] != NULL ? r->plan.from[i]->bytes : 0;
    progress p = {.out = out};
    const nb_rewrite_options options = {.method = r->method,
                                        .nonfinite = r->nonfinite,
                                        .made = r->calibrating.result.made,
                                        .made_from = r->calibrating.result.made_from,
                                        .dir = &r->calibrating.dir,
                                        .progress = show_progress,
                                        .context = &p};
    nb_progress_begin(out, &p.bar, r->plan.request.scheme != NULL ? "quantizing" : "converting",
                      "bytes", source_bytes);
    const nb_status s =
        nb_rewrite(r->store, &r->plan, r->sink, r->runtime.pool, &options, &r->result, err);
    nb_progress_end(out, &p.bar);
    nb_calibrating_add_errors(&r->calibrating, &r->result.quantized);
    for (int64_t i = 0; r->calibrating.wanted && i < r->plan.n; i++) {
        if (r->calibrating.result.made[i])
            r->result.n_zeroed += nb_finite_n_zeroed(&r->finite, r->plan.from[i]);
    }
    NB_TRY(s);
    if (nb_interrupted())
        return nb_fail_interrupted(err);
    return nb_sink_finish(r->sink, &r->made_at, err);
}

static nb_status digest_model(nb_rewriting *r, nb_err *err)
{
    const char *known = r->calibrating.model_sha256;
    if (r->model_sha256[0] != 0)
        return NB_OK;
    if (known[0] == 0)
        return nb_model_digest(r->source, r->model_sha256, err);
    memcpy(r->model_sha256, known, sizeof r->model_sha256);
    return NB_OK;
}

static nb_status make(nb_rewriting *r, nb_out *out, nb_err *err)
{
    const double start = nb_clock();
    NB_TRY(plan(r, err));
    NB_TRY(try_outputs(r, err));
    NB_TRY(prepare(r, out, err));
    if (r->calibrating.wanted || r->calibrating.checks || r->tasks.n > 0)
        NB_TRY(nb_rewriting_settle_nonfinite(r, err));
    nb_rewriting_print_head(r, out);
    NB_TRY(calibrate(r, out, err));
    nb_finite_lift(&r->finite);
    NB_TRY(write_weights(r, out, err));
    NB_TRY(nb_rewriting_find_kv(r, out, err));
    r->seconds += nb_clock() - start;
    if (r->plan.request.scheme == NULL)
        return NB_OK;
    NB_TRY(digest_model(r, err));
    NB_TRY(nb_model_digest(r->made_at, r->sha256, err));
    if (r->evaluation != NULL || (!r->calibrating.wanted && !r->calibrating.checks))
        return NB_OK;
    const nb_check_request request = check_request(r);
    return nb_check_run(&r->evaluation, &request, &r->runtime, out, err);
}

nb_status nb_rewriting_make(nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_out hushed = *out;
    hushed.quiet = out->quiet || r->again;
    const nb_status s = make(r, &hushed, err);
    out->write_errno = hushed.write_errno;
    return s;
}

nb_status nb_rewriting_answer(nb_rewriting *r, nb_out *out, nb_err *err)
{
    if (r->tasks.n == 0) /* always so where there are no flags: a conversion */
        return NB_OK;
    const nb_check_request request = check_request(r);
    return nb_task_check_run(&r->tasks, &r->evaluation, &request, &r->runtime, out, err);
}

void nb_rewriting_drop(nb_rewriting *r, bool clear)
{
    nb_sink_abort(r->sink);
    r->sink = NULL;
    r->made_at = NULL;
    json_decref(r->evaluation);
    r->evaluation = NULL;
    nb_calibrating_close(&r->calibrating, clear);
    nb_wrapping_free(&r->wrapping);
    nb_plan_free(&r->plan);
    r->result = (nb_rewrite_result){0};
    r->check_plan = r->tasks_plan = (nb_check_plan){0};
    r->kv_plan = (nb_kv_ranges_plan){0};
}

/* ---- a mixture ---- */

/* NaN: it was not measured. */
static double output_kl(const nb_rewriting *r)
{
    const json_t *kl = json_object_get(r->evaluation, "kl_mean");
    return json_is_number(kl) ? json_number_value(kl) : NAN;
}

static nb_status make_one(nb_rewriting *r, double *kl, nb_out *out, nb_err *err)
{
    NB_TRY(nb_rewriting_make(r, out, err));
    *kl = output_kl(r);
    return nb_interrupted() ? nb_fail_interrupted(err) : NB_OK;
}

static nb_status no_measure(const nb_rewriting *r, nb_err *err)
{
    const char *why = json_string_value(json_object_get(r->evaluation, "left_out"));
    return nb_fail(err, NB_LIMIT,
                   "--max-kl is about the output, which could not be measured: %s; nothing was "
                   "written",
                   why != NULL ? why : "there is no check");
}

/* Another output for the same rules, when one for others was made in between. */
static nb_status make_again(nb_rewriting *r, json_t *evaluation, nb_out *out, nb_err *err)
{
    nb_rewriting_drop(r, true);
    r->rival = false;
    r->request->recipe = &r->recipes->recipe;
    r->evaluation = evaluation;
    return nb_rewriting_make(r, out, err);
}

static nb_status make_mixture(nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_mixing *m = &r->mixing;
    bool again = true, rival = false;
    double kl = NAN;
    while (again) {
        NB_TRY(make_one(r, &kl, out, err));
        if (isnan(kl))
            return m->f->mix == NB_MIX_KL ? no_measure(r, err) : NB_OK;
        NB_TRY(nb_mixing_judge(m, kl, &again, err));
        if (again) {
            nb_rewriting_drop(r, true); /* its plan points to rules that change now */
            r->again = true;
            NB_TRY(nb_rewriting_settle_nonfinite(r, err));
            NB_TRY(nb_mixing_choose_again(m, err));
        }
    }
    NB_TRY(nb_mixing_rival(m, &rival, err));
    if (!rival)
        return NB_OK;
    json_t *evaluation = json_incref(r->evaluation);
    nb_rewriting_drop(r, false);
    r->rival = r->again = true;
    r->request->recipe = &m->uniform_recipe;
    const nb_status s = make_one(r, &kl, out, err);
    if (s == NB_OK && (isnan(kl) || !nb_mixing_compare(m, kl)))
        return make_again(r, evaluation, out, err);
    json_decref(evaluation);
    return s;
}

nb_status nb_rewriting_make_mixture(nb_rewriting *r, nb_out *out, nb_err *err)
{
    NB_TRY(make_mixture(r, out, err));
    nb_mixing_tell_output(&r->mixing, out);
    return NB_OK;
}

/* ---- a name ---- */

/* A report whose output did not come is none. */
static void take_back_report(const nb_rewriting *r)
{
    char found[NB_SHA256_HEX];
    nb_buf path = {0};
    nb_err ignored = {0};
    if (r->request->to != NB_STORE_HF &&
        (nb_model_digest(r->output, found, &ignored) != NB_OK || strcmp(found, r->sha256) != 0) &&
        nb_rewriting_report_path(r, true, &path, &ignored) == NB_OK)
        (void)unlink((const char *)path.data);
    nb_buf_free(&path);
}

nb_status nb_rewriting_publish(nb_rewriting *r, nb_err *err)
{
    const bool reports = r->plan.request.scheme != NULL;
    if (reports)
        NB_TRY(nb_rewriting_write_report(r, err));
    nb_sink *sink = r->sink;
    r->sink = NULL;
    r->made_at = NULL;
    const nb_status s = nb_sink_commit(sink, err);
    if (s != NB_OK && reports)
        take_back_report(r);
    NB_TRY(s);
    nb_workdir_close(&r->calibrating.dir, true);
    nb_workdir_close(&r->mixing.dir, true);
    if (r->mixing.f != NULL) /* of the output that lost */
        nb_rewriting_clear(r);
    return NB_OK;
}

/* ---- without writing ---- */

nb_status nb_rewriting_dry_run(nb_rewriting *r, nb_out *out, nb_err *err)
{
    nb_sink *sink;
    double writing;
    NB_TRY(plan(r, err));
    NB_TRY(nb_wrapping_open_sink(&sink, &r->wrapping, &r->plan, NULL, false, err));
    r->bytes = nb_sink_planned_bytes(sink);
    nb_sink_abort(sink);
    NB_TRY(prepare(r, out, err));
    NB_TRY(nb_rewrite_estimate(&r->plan, r->method, nb_pool_n_threads(r->runtime.pool), &writing,
                               err));
    r->seconds = r->calibrating.seconds + r->check_plan.seconds + r->kv_seconds + writing;
    if (r->mixing.f != NULL) /* the mixture, its rival, and the better of them once more */
        r->seconds = r->mixing.plan.seconds + 2 * r->seconds + writing;
    r->seconds += r->tasks_plan.seconds;
    nb_rewriting_print_head(r, out);
    if (out->json)
        return nb_rewriting_print_json(r, out, err);
    nb_calibrating_print_set(&r->calibrating, out);
    if (r->mixing.f != NULL)
        nb_mixing_tell_plan(&r->mixing, out);
    NB_TRY(nb_rewriting_print_table(r, out, err));
    nb_rewriting_print_end(r, out);
    return NB_OK;
}
