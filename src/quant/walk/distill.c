/* Distillation in the walk: planned with it, kept in the same state, done once all is made. */
#include "quant/walk/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static nb_status check(const nb_walk_job *job, nb_err *err)
{
    const nb_plan *plan = job->plan;
    if (job->transform != NULL)
        return nb_fail(err, NB_UNSUPPORTED,
                       "--distill runs the model with its own norms, and transform %s changes them",
                       job->transform->name);
    for (int64_t i = 0; i < plan->n; i++) {
        if (plan->how[i] == NB_HOW_QUANTIZE && plan->weights[i].act.bits != 0)
            return nb_fail(err, NB_UNSUPPORTED,
                           "--distill runs the model with activations in full precision, and this "
                           "scheme quantizes them");
    }
    return nb_distill_learns(plan)
               ? NB_OK
               : nb_fail(err, NB_UNSUPPORTED,
                         "--distill tunes scales one by one, and no layer here gets such scales");
}

nb_status nb_walker_plan_distill(nb_walker *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    nb_distill_options *o = &w->distill;
    if (job->distill == NULL)
        return NB_OK;
    NB_TRY(nb_distill_options_parse(o, job->distill, err));
    NB_TRY(check(job, err));
    int64_t longest = 1;
    for (int64_t i = 0; i < job->n_seqs; i++)
        longest = job->seqs[i].n > longest ? job->seqs[i].n : longest;
    o->len = longest < o->len ? longest : o->len;
    o->batch = o->batch < job->n_seqs ? o->batch : job->n_seqs;
    w->distill_flops = nb_distill_flops(&w->config, o, job->seqs, job->n_seqs);
    w->plan.flops += w->distill_flops;
    w->distill_disk = nb_distill_disk(&w->config, job->plan, o);
    w->distill_memory = nb_distill_memory(&w->config, job->plan, o, nb_pool_n_threads(job->pool));
    if (w->distill_memory == INT64_MAX)
        return nb_fail(err, NB_LIMIT, "sequences are too long to distill with");
    return NB_OK;
}

/* ---- the state ---- */

nb_status nb_walker_put_distill(const nb_walker *w, json_t *state, nb_err *err)
{
    char hash[20];
    const nb_distill_state *d = &w->distill_state;
    if (w->job->distill == NULL)
        return NB_OK;
    snprintf(hash, sizeof hash, "%016" PRIx64, d->hash);
    json_t *o = json_pack("{s:I, s:s, s:b, s:b}", "steps", (json_int_t)d->n_steps, "hash", hash,
                          "done", (int)w->distilled, "better", (int)d->better);
    bool bad = o == NULL;
    if (!bad && isfinite(d->before))
        bad = json_object_set_new(o, "before", json_real(d->before)) != 0;
    if (!bad && isfinite(d->after))
        bad = json_object_set_new(o, "after", json_real(d->after)) != 0;
    return json_object_set_new(state, "distill", o) == 0 && !bad
               ? NB_OK
               : nb_fail(err, NB_MEMORY, "no memory for the state");
}

static double number(const json_t *o, const char *name)
{
    const json_t *x = json_object_get(o, name);
    return json_is_number(x) ? json_number_value(x) : NAN;
}

void nb_walker_take_distill(nb_walker *w, const json_t *state)
{
    const json_t *o = json_object_get(state, "distill");
    const char *text = json_string_value(json_object_get(o, "hash"));
    const json_int_t n = json_integer_value(json_object_get(o, "steps"));
    if (w->job->distill == NULL || text == NULL || n < 0 || n > w->distill.steps ||
        sscanf(text, "%16" SCNx64, &w->distill_state.hash) != 1)
        return;
    w->distill_state.n_steps = n;
    w->distill_state.before = number(o, "before");
    w->distill_state.after = number(o, "after");
    w->distill_state.better = json_is_true(json_object_get(o, "better"));
    w->distilled = json_is_true(json_object_get(o, "done"));
}

/* ---- doing it ---- */

static nb_status keep(void *context, nb_err *err)
{
    return nb_walker_save(context, err);
}

/* Whether all that was learned lies in the working folder, whole. */
static nb_status check_learned(const nb_walker *w, bool *whole, nb_err *err)
{
    const int64_t n = w->job->plan->n;
    *whole = true;
    for (int64_t i = 0; i < n && *whole; i++) {
        if (w->result->made[i])
            NB_TRY(nb_workdir_check_mat(w->job->dir, n + i, whole, err));
    }
    return NB_OK;
}

static nb_status report(nb_walker *w, nb_err *err)
{
    const nb_distill_state *s = &w->distill_state;
    json_t *o = json_pack("{s:I, s:I, s:b}", "steps", (json_int_t)s->n_steps, "wanted",
                          (json_int_t)w->distill.steps, "kept", (int)s->better);
    bool bad = o == NULL;
    if (!bad && isfinite(s->before))
        bad = json_object_set_new(o, "kl_before", json_real(s->before)) != 0;
    if (!bad && isfinite(s->after))
        bad = json_object_set_new(o, "kl_after", json_real(s->after)) != 0;
    w->result->distilled = o;
    return bad ? nb_fail(err, NB_MEMORY, "no memory for the report") : NB_OK;
}

static nb_status distill(nb_walker *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    const nb_distill_job d = {.store = job->store,
                              .plan = job->plan,
                              .pool = job->pool,
                              .kernels = job->kernels,
                              .seqs = job->seqs,
                              .n_seqs = job->n_seqs,
                              .dir = job->dir,
                              .options = &w->distill,
                              .seed = job->seed,
                              .progress = w->streams.progress,
                              .keep = keep,
                              .context = w,
                              .what = w->what};
    const double left = 1 - (double)w->distill_state.n_steps / (double)w->distill.steps;
    const double done = w->plan.flops - w->distill_flops * left;
    w->done = done > w->done ? done : w->done;
    NB_TRY(nb_distill(&d, &w->distill_state, err));
    w->distilled = true;
    return nb_walker_save(w, err);
}

nb_status nb_walker_distill(nb_walker *w, nb_err *err)
{
    if (w->job->distill == NULL)
        return NB_OK;
    if (w->distilled && w->distill_state.better)
        NB_TRY(check_learned(w, &w->distilled, err));
    if (!w->distilled)
        NB_TRY(distill(w, err));
    w->result->made_from = w->distill_state.better ? w->job->plan->n : 0;
    return report(w, err);
}
