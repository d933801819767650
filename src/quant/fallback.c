/* See fallback.h. */
#include "quant/fallback.h"

const nb_format *nb_fallback_of(const nb_format *fmt)
{
    static const struct {
        const nb_format *wanted, *instead;
    } pairs[] = {
        {&nb_format_q2_k, &nb_format_iq4_nl}, {&nb_format_q3_k, &nb_format_iq4_nl},
        {&nb_format_q4_k, &nb_format_q5_0},   {&nb_format_q5_k, &nb_format_q5_1},
        {&nb_format_q6_k, &nb_format_q8_0},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (pairs[i].wanted == fmt)
            return pairs[i].instead;
    }
    return NULL;
}

static bool alike(const nb_plan *plan, int64_t i, int64_t j)
{
    return plan->wanted[i] == plan->wanted[j] && plan->weights[i].fmt == plan->weights[j].fmt;
}

static bool is_first(const nb_plan *plan, int64_t i)
{
    for (int64_t j = 0; j < i; j++) {
        if (alike(plan, i, j))
            return false;
    }
    return true;
}

bool nb_fallback_next(const nb_plan *plan, int64_t *at, nb_fallback *out)
{
    for (; *at < plan->n; ++*at) {
        const int64_t i = *at;
        if (plan->wanted[i] == NULL || !is_first(plan, i))
            continue;
        *out = (nb_fallback){.wanted = plan->wanted[i], .became = plan->weights[i].fmt, .first = i};
        for (int64_t j = i; j < plan->n; j++)
            out->n += alike(plan, i, j);
        ++*at;
        return true;
    }
    return false;
}
