/* The options of gptq, gptaq and qronos, and their places in the list of methods. */
#include "quant/encode/gptq.h"
#include "quant/encode/gptq_shrink.h"

#include <string.h>

extern const nb_quantizer nb_quantizer_gptq, nb_quantizer_gptaq, nb_quantizer_qronos;

/* The place of an option's value in `words`, which ends with NULL; `preset` where the option was
 * not given. */
static nb_status choice(const nb_method *method, const char *name, const char *const *words,
                        int preset, int *out, nb_err *err)
{
    const char *value = nb_method_option_of(method, name);
    *out = preset;
    if (value == NULL)
        return NB_OK;
    for (*out = 0; words[*out] != NULL; ++*out) {
        if (strcmp(words[*out], value) == 0)
            return NB_OK;
    }
    char list[80] = "";
    for (int i = 0; words[i] != NULL; i++) {
        strncat(list, i == 0 ? "" : ", ", sizeof list - strlen(list) - 1);
        strncat(list, words[i], sizeof list - strlen(list) - 1);
    }
    return nb_fail(err, NB_USAGE, "option %s of method %s is one of %s, not '%s'", name,
                   method->quantizer->name, list, value);
}

/* A bare word means yes. */
static nb_status yes_or_no(const nb_method *method, const char *name, bool preset, bool *out,
                           nb_err *err)
{
    static const char *const words[] = {"off", "on", "", NULL};
    int i;
    NB_TRY(choice(method, name, words, preset, &i, err));
    *out = i != 0;
    return NB_OK;
}

/* A number from 0 to 1, or "auto", which is -1. */
static nb_status share(const nb_method *method, const char *name, double preset, double *out,
                       nb_err *err)
{
    const char *value = nb_method_option_of(method, name);
    if (value != NULL && strcmp(value, "auto") == 0) {
        *out = -1;
        return NB_OK;
    }
    return nb_method_number(method, name, preset, 0, 1, out, err);
}

static nb_gptq_move move_of(const nb_quantizer *q)
{
    return q == &nb_quantizer_gptaq    ? NB_MOVE_STEPWISE
           : q == &nb_quantizer_qronos ? NB_MOVE_FIRST
                                       : NB_MOVE_NONE;
}

nb_status nb_gptq_options_parse(nb_gptq_options *out, const nb_method *method, nb_err *err)
{
    static const char *const orders[] = {"none", "desc", "group", NULL};
    static const char *const fits[] = {"absmax", "search", NULL};
    static const char *const weighs[] = {"diag", "pivot", "none", NULL};
    nb_gptq_options o = {.move = move_of(method->quantizer)};
    int order, fit, weigh;
    bool act_order, fixed;
    double polish;
    NB_TRY(choice(method, "order", orders, NB_ORDER_GROUP, &order, err));
    NB_TRY(yes_or_no(method, "act-order", false, &act_order, err));
    if (act_order && nb_method_option_of(method, "order") != NULL && order != NB_ORDER_DESC)
        return nb_fail(err, NB_USAGE, "act-order is order=desc, and another order is given");
    if (act_order)
        order = NB_ORDER_DESC;
    NB_TRY(yes_or_no(method, "static-groups", order == NB_ORDER_DESC, &fixed, err));
    if (order == NB_ORDER_DESC && !fixed)
        return nb_fail(err, NB_USAGE,
                       "order=desc goes back and forth between groups, so their "
                       "scales are fixed first: static-groups cannot be off");
    NB_TRY(choice(method, "fit", fits, NB_FIT_SEARCH, &fit, err));
    NB_TRY(choice(method, "importance", weighs, NB_WEIGH_PIVOT, &weigh, err));
    NB_TRY(nb_method_number(method, "damp", 0.01, 0, 1e6, &o.damp, err));
    NB_TRY(nb_method_number(method, "polish", o.move == NB_MOVE_STEPWISE ? 0 : 4, 0, 100, &polish,
                            err));
    NB_TRY(share(method, "shrink", -1, &o.shrink, err));
    if (o.move != NB_MOVE_NONE)
        NB_TRY(share(method, o.move == NB_MOVE_STEPWISE ? "alpha" : "beta", 1, &o.strength, err));
    if (polish > 0 && o.move == NB_MOVE_STEPWISE)
        return nb_fail(err, NB_USAGE, "gptaq has no target to polish towards; qronos has");
    o.order = (nb_gptq_order)order;
    o.fit = (nb_fit)fit;
    o.weigh = (nb_gptq_weigh)weigh;
    o.dynamic = !fixed;
    o.polish = (int)polish;
    *out = o;
    return NB_OK;
}

#define COMMON                                                                                     \
    "act-order", "damp", "fit", "importance", "order", "polish", "shrink", "static-groups"

static nb_status check(const nb_method *method, unsigned *needs, nb_err *err)
{
    static const char *const plain[] = {COMMON, NULL};
    static const char *const stepwise[] = {COMMON, "alpha", NULL};
    static const char *const first[] = {COMMON, "beta", NULL};
    static const char *const *const known[] = {plain, stepwise, first};
    nb_gptq_options o;
    NB_TRY(nb_method_only(method, known[move_of(method->quantizer)], err));
    NB_TRY(nb_gptq_options_parse(&o, method, err));
    *needs = NB_STAT_HESSIAN;
    if (o.move != NB_MOVE_NONE)
        *needs |= NB_STAT_CROSS;
    if (o.shrink < 0 || o.strength < 0)
        *needs |= NB_STAT_HELD_OUT;
    return NB_OK;
}

const nb_quantizer nb_quantizer_gptq = {
    .name = "gptq",
    .source = "Frantar et al., arXiv:2210.17323",
    .summary = "columns in turn, later ones make up for the error of earlier ones",
    .by_outputs = true,
    .needs = NB_STAT_HESSIAN | NB_STAT_HELD_OUT,
    .check = check,
    .encode_group = nb_gptq_encode_group,
};

const nb_quantizer nb_quantizer_gptaq = {
    .name = "gptaq",
    .source = "Li et al., arXiv:2504.02692",
    .summary = "gptq that also makes up for inputs changed by the layers before, column by column",
    .needs = NB_STAT_HESSIAN | NB_STAT_HELD_OUT | NB_STAT_CROSS,
    .check = check,
    .encode_group = nb_gptq_encode_group,
};

const nb_quantizer nb_quantizer_qronos = {
    .name = "qronos",
    .source = "Zhang et al., arXiv:2505.11695",
    .summary = "gptq on weights moved to the least-squares fit for the inputs as they are",
    .by_outputs = true,
    .needs = NB_STAT_HESSIAN | NB_STAT_HELD_OUT | NB_STAT_CROSS,
    .check = check,
    .encode_group = nb_gptq_encode_group,
};
