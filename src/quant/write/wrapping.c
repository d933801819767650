/* See wrapping.h. */
#include "quant/write/wrapping.h"

nb_status nb_wrapping_make(nb_wrapping *w, nb_store *store, const nb_plan *plan, nb_err *err)
{
    *w = (nb_wrapping){0};
    const nb_status s = plan->request.to == NB_STORE_HF ? nb_wrap_hf(w, store, plan, err)
                                                        : nb_wrap_gguf(w, store, plan, err);
    if (s != NB_OK)
        nb_wrapping_free(w);
    return s;
}

void nb_wrapping_free(nb_wrapping *w)
{
    for (int64_t i = 0; i < w->n_side; i++)
        nb_buf_free(&w->bytes[i]);
    nb_buf_free(&w->kv);
    *w = (nb_wrapping){0};
}

nb_status nb_wrapping_open_sink(nb_sink **out, const nb_wrapping *w, const nb_plan *plan,
                                const char *path, bool force, nb_err *err)
{
    if (plan->request.to == NB_STORE_HF)
        return nb_sink_open_hf(out, path, force, plan->weights, plan->n, w->side, w->n_side, 0,
                               err);
    return nb_sink_open_gguf(out, path, force, plan->weights, plan->n, &w->kv, w->n_kv, w->n_heads,
                             w->n_kv_heads, err);
}
