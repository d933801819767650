/* See fallback.h. */
#include "quant/plan/fallback.h"

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

static bool torn(const nb_weight *w)
{
    return w->scale_rows > 1 && w->group_size > 0 &&
           (w->n_rows % w->scale_rows != 0 || w->n_cols % w->group_size != 0);
}

nb_status nb_fallback_warn(nb_plan *plan, nb_err *err)
{
    const nb_weight *first = NULL;
    int64_t n = 0;
    for (int64_t i = 0; plan->request.to == NB_STORE_HF && i < plan->n; i++) {
        if (!torn(&plan->weights[i]))
            continue;
        first = n++ == 0 ? &plan->weights[i] : first;
    }
    if (n == 0)
        return NB_OK;
    return nb_arena_format(&plan->arena, &plan->warning, err,
                           "%lld matri%s such as '%.100s' of %lld x %lld: no whole blocks of %lld "
                           "x %lld; nibble runs the output, compressed-tensors and many versions "
                           "of vLLM do not",
                           (long long)n, n == 1 ? "x" : "ces", first->name,
                           (long long)first->n_rows, (long long)first->n_cols,
                           (long long)first->scale_rows, (long long)first->group_size);
}
