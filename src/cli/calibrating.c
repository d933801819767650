/* See calibrating.h. */
#include "cli/calibrating.h"

#include "base/clock.h"
#include "quant/pass/distill.h"
#include "quant/write/digest.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_OBSERVER "mse"

/* ---- flags ---- */

/* A method on top of another one. */
static nb_status read_tune(nb_calibrating_flags *f, const nb_args *args, nb_err *err)
{
    const char *text = nb_args_text(args, "tune");
    if (text == NULL)
        return NB_OK;
    NB_TRY(nb_method_parse(&f->tune, text, err));
    f->tunes = true;
    if (f->tune.quantizer->tune_block == NULL)
        return nb_fail(err, NB_USAGE, "--tune takes a method that tunes whole blocks, not %s",
                       f->tune.quantizer->name);
    return NB_OK;
}

/* E4M3 has as many digits far below its largest number as there, so a range that clips nothing
 * costs nothing: the observer is minmax, unless another one is asked for. */
static nb_status read_kv(nb_calibrating_flags *f, const nb_args *args, nb_err *err)
{
    f->kv = nb_args_text(args, "kv");
    f->kv_observing = f->observing;
    if (f->observer == NULL)
        NB_TRY(nb_observing_parse(&f->kv_observing, "minmax", err));
    if (f->kv == NULL || f->set.options.n_paths > 0)
        return NB_OK;
    return nb_fail(err, NB_USAGE,
                   "--kv %s: scales of the KV cache are chosen from a text: --calib FILE names one "
                   "(or more)",
                   f->kv);
}

/* "64" or "64,lr=0.002": steps, and other options. */
static nb_status read_distill(nb_calibrating_flags *f, const nb_args *args, nb_err *err)
{
    char options[256];
    const char *text = nb_args_text(args, "distill");
    if (text == NULL)
        return NB_OK;
    if (snprintf(options, sizeof options, "steps=%s", text) >= (int)sizeof options)
        return nb_fail(err, NB_USAGE, "--distill takes a number of steps, not '%.60s'", text);
    f->distills = true;
    if (nb_method_of(&f->distill, &nb_quantizer_distill, options, err) != NB_OK)
        return nb_context(err, "--distill %.60s", text);
    return NB_OK;
}

nb_status nb_calibrating_flags_read(nb_calibrating_flags *f, const nb_args *args, nb_err *err)
{
    static const char *const flows[] = {"auto", "original", "quantized", NULL};
    *f = (nb_calibrating_flags){.memory = nb_args_int(args, "memory"),
                                .check = nb_args_int(args, "check"),
                                .fresh = nb_args_flag(args, "fresh"),
                                .guide = nb_args_flag(args, "guide") ||
                                         nb_args_flag(args, "guide-outputs"),
                                .guide_outputs = nb_args_flag(args, "guide-outputs"),
                                .given_flow = nb_args_given(args, "calib-flow"),
                                .given_check = nb_args_given(args, "check")};
    NB_TRY(nb_calib_request_init(&f->set, args, err));
    const char *flow = nb_args_text(args, "calib-flow");
    for (int i = 0; flows[i] != NULL; i++) {
        if (strcmp(flow, flows[i]) == 0)
            f->flow = (nb_flow)i;
    }
    f->observer = nb_args_text(args, "observer");
    NB_TRY(nb_observing_parse(&f->observing, f->observer != NULL ? f->observer : DEFAULT_OBSERVER,
                              err));
    NB_TRY(read_kv(f, args, err));
    NB_TRY(read_tune(f, args, err));
    NB_TRY(read_distill(f, args, err));
    const char *transform = nb_args_text(args, "transform");
    if (transform == NULL)
        return NB_OK;
    const nb_status s = nb_transform_by_name(&f->transform, &f->transform_options, transform, err);
    if (s == NB_OK && f->transform->check != NULL)
        return f->transform->check(f->transform_options, err);
    return s;
}

void nb_calibrating_flags_free(nb_calibrating_flags *f)
{
    nb_calib_request_free(&f->set);
    *f = (nb_calibrating_flags){0};
}

/* ---- the set ---- */

/* Token ids can do without one: *t is NULL then. */
static nb_status open_tokenizer(nb_tokenizer **t, const nb_calibrating_flags *flags,
                                nb_store *store, nb_out *out, nb_err *err)
{
    bool only_ids = true;
    for (int i = 0; i < flags->set.options.n_paths; i++)
        only_ids = only_ids && nb_calib_names_ids(flags->set.options.paths[i]);
    const nb_status s = nb_tokenizer_open(t, store, err);
    if (s == NB_OK || s == NB_MEMORY || !only_ids)
        return s;
    *t = NULL;
    nb_out_note(out, "the calibration ids are taken as they are, without a tokenizer: %s",
                err->text);
    return NB_OK;
}

nb_status nb_calibrating_read_set(nb_calib_set *set, nb_calib_score *score,
                                  const nb_calibrating_flags *flags, nb_store *store, nb_out *out,
                                  nb_err *err)
{
    if (flags->set.options.n_paths == 0)
        return nb_fail(err, NB_USAGE,
                       "this method learns from a text: --calib FILE names one (or more)");
    nb_tokenizer *tokenizer = NULL;
    const char *template_ = NULL;
    size_t n_template = 0;
    nb_config config;
    NB_TRY(nb_config_read(store, &config, err));
    NB_TRY(nb_store_chat_template(store, &template_, &n_template, err));
    NB_TRY(open_tokenizer(&tokenizer, flags, store, out, err));
    nb_calib_options options = flags->set.options;
    options.vocab_size = config.vocab_size;
    nb_status s = nb_calib_set_open(set, tokenizer, template_, n_template, &options, err);
    if (s == NB_OK && score != NULL)
        s = nb_calib_score_set(score, set, NULL, tokenizer, err);
    nb_tokenizer_close(tokenizer);
    for (int i = 0; s == NB_OK && i < set->n_notes; i++)
        nb_out_note(out, "%s", set->notes[i]);
    return s;
}

/* Whether static scales of activations have to be found. */
static bool waits(const nb_plan *plan)
{
    bool any = false;
    for (int64_t i = 0; i < plan->n; i++)
        any = any || nb_plan_waits(plan, i);
    return any;
}

static nb_status check_observer(const nb_calibrating_flags *flags, const nb_plan *plan, nb_err *err)
{
    if (waits(plan) && flags->set.options.n_paths == 0)
        return nb_fail(
            err, NB_USAGE,
            "static scales of activations are chosen from a text: --calib FILE names one "
            "(or more)");
    if (!waits(plan) && flags->kv == NULL && flags->observer != NULL)
        return nb_fail(
            err, NB_USAGE,
            "--observer chooses static scales of activations, and no layer here gets any "
            "(as in W8A8:static, FP8:static), nor does the KV cache (--kv fp8)");
    return NB_OK;
}

/* ---- identity ---- */

static nb_status key_of(const nb_calibrating *c, const nb_calibrating_flags *flags,
                        const nb_plan *plan, const nb_method *method, char hex[NB_SHA256_HEX],
                        nb_err *err)
{
    nb_buf text = {0};
    nb_status s = nb_buf_format(&text, err, "%s %s %s %d ", nb_version(), c->model_sha256,
                                c->set.sha256, (int)flags->flow);
    if (s == NB_OK)
        s = nb_method_spell(method, &text, err);
    if (s == NB_OK && flags->tunes)
        s = nb_buf_format(&text, err, " then ");
    if (s == NB_OK && flags->tunes)
        s = nb_method_spell(&flags->tune, &text, err);
    if (s == NB_OK && flags->distills)
        s = nb_buf_format(&text, err, " and ");
    if (s == NB_OK && flags->distills)
        s = nb_method_spell(&flags->distill, &text, err);
    if (s == NB_OK && flags->transform != NULL)
        s = nb_buf_format(&text, err, " %s:%s", flags->transform->name, flags->transform_options);
    if (s == NB_OK && flags->guide_outputs)
        s = nb_buf_format(&text, err, " by outputs");
    if (s == NB_OK && flags->guide)
        s = nb_buf_format(&text, err, " guide %llu", (unsigned long long)flags->set.options.seed);
    if (s == NB_OK && waits(plan))
        s = nb_buf_format(&text, err, " observer %d %a", (int)flags->observing.kind,
                          flags->observing.percentile);
    for (int64_t i = 0; i < plan->n && s == NB_OK; i++) {
        const nb_weight *w = &plan->weights[i];
        const nb_act_spec *a = &w->act;
        s = nb_buf_format(&text, err, "\n%s %d %s %lld %d %d %lld %d; %d %d %d %lld %d %a", w->name,
                          (int)plan->how[i], w->fmt->name, (long long)w->group_size,
                          (int)w->symmetric + (w->float_zeros ? 2 : 0), (int)w->scale_type,
                          (long long)w->scale_rows, (int)w->nested, a->bits, (int)a->per_token,
                          (int)a->is_float, (long long)a->group_size, (int)a->is_static,
                          (double)a->scale);
        if (s == NB_OK && plan->how[i] == NB_HOW_QUANTIZE)
            s = nb_method_spell(nb_plan_method(plan, i, method), &text, err);
    }
    if (s == NB_OK)
        nb_sha256_hex(text.data, text.len, hex);
    nb_buf_free(&text);
    return s;
}

/* ---- the walk ---- */

/* Which formats a mixture ends with cannot be foreseen, nor those of its rival: where none has
 * scales to tune, there is nothing to do. */
static bool distills(const nb_calibrating_flags *flags, const nb_plan *plan)
{
    return flags->distills && (!flags->mixes || nb_distill_learns(plan));
}

static nb_walk_job job_of(const nb_calibrating *c, const nb_calibrating_flags *flags,
                          const nb_plan *plan, nb_store *store, const nb_method *method,
                          const nb_runtime *rt)
{
    return (nb_walk_job){.store = store,
                         .plan = plan,
                         .pool = rt->pool,
                         .kernels = &rt->kernels,
                         .seqs = c->set.seq,
                         .n_seqs = c->set.n,
                         .method = method,
                         .tune = flags->tunes ? &flags->tune : NULL,
                         .distill = distills(flags, plan) ? &flags->distill : NULL,
                         .transform = flags->transform,
                         .transform_options = flags->transform_options,
                         .flow = flags->flow,
                         .observing = flags->observing,
                         .memory = flags->memory,
                         .guided = flags->guide,
                         .by_outputs = flags->guide_outputs,
                         .seed = flags->set.options.seed,
                         .dir = &c->dir};
}

/* Nothing learns from a text. One that is there all the same serves to check the output. */
static nb_status open_idle(nb_calibrating *c, const nb_calibrating_flags *flags,
                           const nb_plan *plan, nb_store *store, const nb_method *method, bool dry,
                           nb_out *out, nb_err *err)
{
    const bool text = flags->set.options.n_paths > 0;
    const bool checks = text && flags->check > 0 && plan->n_quantized > 0;
    if (flags->given_flow)
        nb_out_note(out, "--calib-flow has no effect: nothing here learns from a text");
    if (!text && flags->given_check)
        nb_out_note(out, "--check has no effect: it takes its text from --calib");
    if (text && flags->kv == NULL && plan->n_quantized > 0 && !flags->mixes)
        nb_out_note(
            out, "--calib: method %s chooses codes without a text%s; %s", method->quantizer->name,
            strcmp(method->quantizer->name, "rtn") == 0 ? " (rtn:search learns from one)" : "",
            checks ? "this one only serves to check the output" : "it has no effect");
    if (!checks && flags->kv == NULL)
        return NB_OK;
    NB_TRY(nb_calibrating_read_set(&c->set, &c->score, flags, store, out, err));
    c->checks = checks;
    c->serves = flags->kv != NULL;
    return dry ? NB_OK : nb_model_digest(nb_store_path(store), c->model_sha256, err);
}

nb_status nb_calibrating_open(nb_calibrating *c, const nb_calibrating_flags *flags,
                              const nb_plan *plan, nb_store *store, const nb_method *method,
                              const nb_runtime *rt, const char *folder, bool fresh, bool dry,
                              nb_out *out, nb_err *err)
{
    *c = NB_CALIBRATING_NONE;
    bool can_do_without;
    const bool learns = nb_walk_wanted(plan, method, flags->transform, &can_do_without);
    /* What would use statistics but can do without (rtn:search) gets them if a text is named. */
    const bool tunes = flags->tunes || distills(flags, plan);
    can_do_without = can_do_without && !tunes && flags->set.options.n_paths == 0;
    NB_TRY(check_observer(flags, plan, err));
    c->wanted = ((learns || tunes) && plan->n_quantized > 0 && !can_do_without) || waits(plan);
    if (flags->tunes && (nb_method_needs(method) & NB_STAT_BLOCK) != 0)
        return nb_fail(err, NB_USAGE,
                       "--tune goes on from the codes of another method, and method %s tunes whole "
                       "blocks itself",
                       method->quantizer->name);
    if (flags->distills && plan->n_quantized == 0)
        return nb_fail(err, NB_USAGE, "--distill tunes scales, and nothing here is quantized");
    if (!c->wanted && flags->guide)
        return nb_fail(err, NB_USAGE,
                       "--guide weighs the tokens of a calibration text, and method %s uses none%s",
                       method->quantizer->name, can_do_without ? " here: --calib names one" : "");
    if (!c->wanted)
        return open_idle(c, flags, plan, store, method, dry, out, err);
    NB_TRY(nb_calibrating_read_set(&c->set, &c->score, flags, store, out, err));
    c->guided = flags->guide;
    if (waits(plan))
        c->observer = flags->observer != NULL ? flags->observer : DEFAULT_OBSERVER;
    const nb_walk_job job = job_of(c, flags, plan, store, method, rt);
    NB_TRY(nb_walk_estimate(&c->plan, &job, err));
    if (dry)
        NB_TRY(nb_walk_seconds(&job, &c->plan, &c->seconds, err));
    if (dry)
        return NB_OK;
    NB_TRY(nb_model_digest(nb_store_path(store), c->model_sha256, err));
    NB_TRY(nb_workdir_open(&c->dir, folder, err));
    if (fresh)
        nb_workdir_clear(&c->dir);
    return NB_OK;
}

typedef struct {
    nb_out *out;
    nb_progress bar;
} progress;

static bool show(void *context, const nb_walk_progress_info *info)
{
    progress *p = context;
    nb_progress_update(p->out, &p->bar, (int64_t)(info->done / 1e6));
    return !nb_interrupted();
}

nb_status nb_calibrating_run(nb_calibrating *c, const nb_calibrating_flags *flags,
                             const nb_plan *plan, nb_store *store, const nb_method *method,
                             const nb_runtime *rt, nb_out *out, nb_err *err)
{
    char key[NB_SHA256_HEX];
    NB_TRY(key_of(c, flags, plan, method, key, err));
    nb_walk_job job = job_of(c, flags, plan, store, method, rt);
    progress p = {.out = out};
    job.key = key;
    job.progress = show;
    job.context = &p;
    nb_progress_begin(out, &p.bar, "calibrating", "Mflop", (int64_t)(c->plan.flops / 1e6));
    const nb_status s = nb_walk(&job, &c->result, err);
    nb_progress_end(out, &p.bar);
    char fallen[512];
    if (s == NB_OK && nb_calibrating_fallen(c, fallen, sizeof fallen))
        nb_out_warn(out, "%s", fallen);
    if (s == NB_OK && c->result.resumed > 0)
        nb_out_note(out, "%lld of %lld blocks were there, from an earlier run",
                    (long long)c->result.resumed, (long long)plan->config.n_layers);
    if (s == NB_OK && c->result.anew != NULL)
        nb_out_note(out, "what an earlier run had left in %s %s: it was not used", c->dir.path,
                    c->result.anew);
    if (s == NB_INTERRUPTED)
        return nb_fail(err, NB_INTERRUPTED,
                       "interrupted; the same command goes on from what is in %s", c->dir.path);
    return s;
}

void nb_calibrating_close(nb_calibrating *c, bool done)
{
    nb_walk_result_free(&c->result);
    nb_workdir_close(&c->dir, done);
    nb_calib_set_free(&c->set);
    *c = NB_CALIBRATING_NONE;
}
