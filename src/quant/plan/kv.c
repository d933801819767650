/* See kv.h. */
#include "quant/plan/kv.h"

#include "quant/plan/target.h"

bool nb_plan_drops_kv(const nb_plan_request *r, const nb_weight *w)
{
    const bool no_place = r->to == NB_STORE_GGUF || nb_target_turns(r->layout);
    /* Other codes, and other weights under a transform: keys and values are not what they were. */
    return nb_weight_is_kv_scale(w) && (no_place || r->scheme != NULL);
}

nb_status nb_plan_check_kv(const nb_plan_request *r, nb_err *err)
{
    if (r->kv == NB_KV_SCALES_NONE || (r->to == NB_STORE_HF && !nb_target_turns(r->layout)))
        return NB_OK;
    return nb_fail(err, NB_USAGE,
                   "--kv: %s has no place for scales of the KV cache; a folder of "
                   "compressed-tensors has (--to hf)",
                   r->to == NB_STORE_GGUF       ? "a GGUF"
                   : r->layout == NB_LAYOUT_AWQ ? "AWQ"
                                                : "GPTQ");
}

static int64_t n_each(const nb_plan *plan)
{
    return plan->request.kv == NB_KV_SCALES_HEAD ? plan->config.n_kv_heads : 1;
}

int64_t nb_plan_n_kv(const nb_plan *plan)
{
    return plan->request.kv == NB_KV_SCALES_NONE ? 0 : 2 * plan->config.n_layers;
}

nb_status nb_plan_add_kv(nb_plan *plan, nb_err *err)
{
    static const char *const parts[] = {"k_scale", "v_scale"};
    const int64_t n = nb_plan_n_kv(plan), each = n_each(plan);
    const bool by_head = plan->request.kv == NB_KV_SCALES_HEAD;
    plan->first_kv = plan->n;
    if (n == 0)
        return NB_OK;
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &plan->kv_scales, n * each, err));
    for (int64_t i = 0; i < n * each; i++)
        plan->kv_scales[i] = 1;
    for (int64_t i = 0; i < n; i++) {
        nb_weight *w = &plan->weights[plan->n];
        char *name;
        NB_TRY(nb_arena_format(&plan->arena, &name, err, "model.layers.%lld.self_attn.%s",
                               (long long)i / 2, parts[i % 2]));
        *w = (nb_weight){.name = name,
                         .n_dims = by_head ? 3 : 1,
                         .dims = {each, 1, 1},
                         .n_rows = each,
                         .n_cols = 1,
                         .fmt = &nb_format_f32,
                         .bytes = each * (int64_t)sizeof(float)};
        plan->how[plan->n++] = NB_HOW_MAKE;
        plan->bytes += w->bytes;
    }
    return NB_OK;
}

const float *nb_plan_kv_scales(const nb_plan *plan, int64_t i)
{
    const bool is =
        plan->kv_scales != NULL && i >= plan->first_kv && i < plan->first_kv + nb_plan_n_kv(plan);
    return is ? plan->kv_scales + (i - plan->first_kv) * n_each(plan) : NULL;
}

nb_mat nb_plan_kv_mat(const nb_plan *plan, int64_t i)
{
    const nb_weight *w = &plan->weights[i];
    return (nb_mat){.fmt = w->fmt,
                    .n_rows = w->n_rows,
                    .n_cols = 1,
                    .codes = (void *)(uintptr_t)nb_plan_kv_scales(plan, i), /* read only */
                    .row_bytes = sizeof(float)};
}
