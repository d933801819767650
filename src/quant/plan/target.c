/* See target.h. */
#include "quant/plan/target.h"

#include <string.h>

/* Name and place i belong together. */
const char *const nb_target_names[] = {"hf", "gguf", "gptq", "gptq_v2", "awq", NULL};
static const struct {
    nb_store_kind to;
    nb_layout layout;
} places[] = {
    {NB_STORE_HF, NB_LAYOUT_CT},      {NB_STORE_GGUF, NB_LAYOUT_CT}, {NB_STORE_HF, NB_LAYOUT_GPTQ},
    {NB_STORE_HF, NB_LAYOUT_GPTQ_V2}, {NB_STORE_HF, NB_LAYOUT_AWQ},
};

const char *nb_target_name(const nb_plan_request *request)
{
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (places[i].to == request->to && places[i].layout == request->layout)
            return nb_target_names[i];
    }
    return "hf";
}

bool nb_target_by_name(nb_plan_request *request, const char *name)
{
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (strcmp(nb_target_names[i], name) == 0) {
            request->to = places[i].to;
            request->layout = places[i].layout;
            return true;
        }
    }
    return false;
}

bool nb_target_turns(nb_layout layout)
{
    return layout == NB_LAYOUT_GPTQ || layout == NB_LAYOUT_GPTQ_V2 || layout == NB_LAYOUT_AWQ;
}

nb_status nb_target_check(const nb_plan_request *r, nb_err *err)
{
    const nb_scheme *s = r->scheme;
    if (s == NULL || !nb_target_turns(r->layout))
        return NB_OK;
    const char *name = r->layout == NB_LAYOUT_AWQ ? "AWQ" : "GPTQ";
    if (s->fmt->int_form == NULL || !s->fmt->affine)
        return nb_fail(err, NB_USAGE, "scheme %s: %s has integer codes only", s->name, name);
    if (s->act.bits != 0)
        return nb_fail(err, NB_USAGE, "scheme %s: %s has no words for quantized activations",
                       s->name, name);
    if (s->float_zeros)
        return nb_fail(err, NB_USAGE, "scheme %s: %s has integer zero points only; --to hf fits",
                       s->name, name);
    if (r->layout == NB_LAYOUT_AWQ && s->fmt != &nb_format_int4)
        return nb_fail(err, NB_USAGE, "scheme %s: AWQ has codes of 4 bits only; W4A16 fits",
                       s->name);
    if (r->layout == NB_LAYOUT_GPTQ && !s->symmetric)
        return nb_fail(
            err, NB_USAGE,
            "scheme %s: asymmetric codes need zero points of 0 here and there, for which "
            "version 1 of GPTQ has no place; --to gptq_v2 has, and sym needs none",
            s->name);
    return NB_OK;
}
