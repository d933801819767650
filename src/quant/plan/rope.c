/* See plan/rope.h. */
#include "quant/plan/rope.h"

#include "quant/plan/rope_factors.h"

nb_status nb_plan_add_rope(nb_plan *plan, nb_err *err)
{
    const nb_config *c = &plan->config;
    if (plan->request.to != NB_STORE_GGUF || c->rope.type != NB_ROPE_LLAMA3)
        return NB_OK;
    double *scratch;
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &plan->rope_factors, c->rot_dim / 2, err));
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &scratch, c->rot_dim, err));
    nb_rope_factors_of(c, plan->rope_factors, scratch);
    const int64_t n = c->rot_dim / 2, bytes = n * (int64_t)sizeof(float);
    plan->weights[plan->n] = (nb_weight){.name = "rope_freqs.weight",
                                         .n_dims = 1,
                                         .dims = {n},
                                         .n_rows = 1,
                                         .n_cols = n,
                                         .fmt = &nb_format_f32,
                                         .bytes = bytes};
    plan->how[plan->n++] = NB_HOW_MAKE;
    plan->bytes += bytes;
    plan->n_params += n;
    return NB_OK;
}

nb_status nb_plan_resolve_rope(nb_plan *plan, nb_store *store, nb_loaded *loaded, nb_err *err)
{
    const nb_weight *w = nb_store_find(store, "rope_freqs.weight");
    if (plan->request.to != NB_STORE_HF || plan->config.rope.type != NB_ROPE_FACTORS || w == NULL)
        return NB_OK;
    double *scratch;
    float *factors;
    const char *path = nb_store_path(store);
    if (w->n_dims != 1 || w->n_cols != plan->config.rot_dim / 2)
        return nb_fail(err, NB_DATA, "%s: tensor 'rope_freqs.weight' has %lld values, wanted %lld",
                       path, (long long)(w->n_rows * w->n_cols),
                       (long long)plan->config.rot_dim / 2);
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &scratch, plan->config.rot_dim, err));
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &factors, w->n_cols, err));
    NB_TRY(nb_store_read(store, w, loaded, err));
    w->fmt->decode_row(&loaded->mat, 0, factors);
    if (!nb_rope_factors_name(&plan->config, factors, scratch))
        return nb_fail(err, NB_UNSUPPORTED,
                       "%s: tensor 'rope_freqs.weight' holds factors that no known llama3 "
                       "rope_scaling gives, and config.json has no other place for them",
                       path);
    return NB_OK;
}
