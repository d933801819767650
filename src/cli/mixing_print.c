/* What is told of a mixture; see mixing.h. */
#include "cli/mixing.h"

#include <math.h>
#include <stdio.h>

static double bits(const nb_mixing *m, int64_t bytes)
{
    return 8 * (double)bytes / (double)m->table.n_params;
}

void nb_mixing_tell_plan(const nb_mixing *m, nb_out *out)
{
    nb_out_note(out,
                "%s %lld layers in %d formats on %lld tokens: about %s, %s of memory, %s on disk",
                nb_sensitivity_complete(&m->table) ? "measured already:" : "measuring",
                (long long)m->table.n_linears, m->table.n_candidates, (long long)m->f->n_tokens,
                nb_human_seconds(m->plan.seconds).text, nb_human_bytes(m->plan.memory).text,
                nb_human_bytes(m->plan.disk).text);
    if (m->stand_in != NULL)
        nb_out_note(out,
                    "what follows is the plan of %s in every layer that it fits: what each one "
                    "takes is not known before it is measured",
                    m->stand_in);
}

void nb_mixing_tell_choice(const nb_mixing *m, nb_out *out)
{
    nb_out_note(out,
                "mixture: %.3f bits per weight of the linear layers; measured with %s: KL %.4g on "
                "%lld held-out tokens (%.4g by the sum over layers)",
                bits(m, m->bytes), m->measured_with, m->kl, (long long)m->n_tokens,
                m->predicted_kl);
    if (m->uniform >= 0)
        nb_out_note(out, "%s everywhere: %.3f bits per weight, KL %.4g%s",
                    m->table.scheme[m->uniform].name, bits(m, m->uniform_bytes), m->uniform_kl,
                    m->uniform_won ? ": no worse, so that is written" : "");
    if (m->flags->transform != NULL)
        nb_out_note(out, "layers were measured without the transform");
}

void nb_mixing_tell_output(const nb_mixing *m, nb_out *out)
{
    if (isnan(m->output_kl)) {
        nb_out_note(out, "what the output has lost was not measured");
        return;
    }
    if (m->f->mix == NB_MIX_KL)
        nb_out_note(out, "the output: KL %.4g of %g that were allowed",
                    m->uniform_won && !isnan(m->output_uniform_kl) ? m->output_uniform_kl
                                                                   : m->output_kl,
                    m->f->max_kl);
    if (!isnan(m->output_uniform_kl))
        nb_out_note(out, "outputs: KL %.4g of the mixture, %.4g of %s everywhere%s", m->output_kl,
                    m->output_uniform_kl, m->table.scheme[m->uniform].name,
                    m->uniform_won ? ": no worse, so that is written" : "");
}

static double target_value(const nb_mixing *m)
{
    return m->f->mix == NB_MIX_BPW    ? m->f->bpw
           : m->f->mix == NB_MIX_SIZE ? (double)m->f->size
                                      : m->f->max_kl;
}

json_t *nb_mixing_plan_json(const nb_mixing *m)
{
    json_t *o = json_pack("{s:s, s:f, s:b, s:f, s:I, s:I}", "target", m->target, "value",
                          target_value(m), "measured", (int)nb_sensitivity_complete(&m->table),
                          "seconds", m->plan.seconds, "memory_bytes", (json_int_t)m->plan.memory,
                          "disk_bytes", (json_int_t)m->plan.disk);
    if (o == NULL || m->stand_in == NULL ||
        json_object_set_new(o, "stand_in", json_string(m->stand_in)) == 0)
        return o;
    json_decref(o);
    return NULL;
}

static json_t *number_json(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static int add_uniform(json_t *o, const nb_mixing *m)
{
    if (m->uniform < 0)
        return 0;
    return json_object_set_new(o, "uniform",
                               json_pack("{s:s, s:f, s:f, s:o}", "scheme",
                                         m->table.scheme[m->uniform].name, "bpw",
                                         bits(m, m->uniform_bytes), "kl", m->uniform_kl,
                                         "output_kl", number_json(m->output_uniform_kl)));
}

nb_status nb_mixing_json(const nb_mixing *m, json_t **out, nb_err *err)
{
    json_t *rows;
    NB_TRY(nb_sensitivity_json(&m->table, &rows, err));
    *out = json_pack("{s:s, s:f, s:s, s:f, s:f, s:f, s:I, s:o, s:I, s:s, s:o}", "target", m->target,
                     "value", target_value(m), "measured_with", m->measured_with, "bpw",
                     bits(m, m->bytes), "kl", m->kl, "predicted_kl", m->predicted_kl,
                     "held_out_tokens", (json_int_t)m->n_tokens, "output_kl",
                     number_json(m->output_kl), "outputs", (json_int_t)m->n_outputs, "chosen",
                     m->uniform_won ? "uniform" : "mixture", "layers", rows);
    if (*out != NULL && add_uniform(*out, m) != 0) {
        json_decref(*out);
        *out = NULL;
    }
    return *out != NULL ? NB_OK : nb_fail(err, NB_MEMORY, "no memory for the report");
}
