/* Static scales of activations, from the inputs that the quantized model so far gives each linear
 * layer: observed at a point after its block's transform and before its own codes are chosen, and
 * met by everything that comes after. */
#include "quant/walk/weights.h"

#include <stdio.h>
#include <string.h>

bool nb_walker_waits(const nb_walker *w, nb_point point)
{
    int n;
    const int first = (int)nb_point_linears(point, &n);
    bool waits = false;
    for (int j = first; j < first + n; j++)
        waits = waits || nb_plan_waits(w->job->plan, w->index[j]);
    return waits;
}

nb_act_spec nb_walker_act(const nb_walker *w, int j)
{
    nb_act_spec act = w->job->plan->weights[w->index[j]].act;
    if (nb_plan_waits(w->job->plan, w->index[j]))
        act.scale = w->result->act_scale[w->index[j]];
    return act;
}

void nb_walker_settle_ranges(nb_walker *w, nb_point point)
{
    int n;
    const int first = (int)nb_point_linears(point, &n);
    for (int j = first; j < first + n; j++) {
        const int64_t i = w->index[j];
        const bool is_float = w->job->plan->weights[i].act.is_float;
        if (nb_plan_waits(w->job->plan, i))
            w->result->act_scale[i] =
                nb_input_range_scale(w->stats[point].range, &w->job->observing,
                                     is_float ? NB_RANGE_E4M3 : NB_RANGE_INT8);
    }
}

/* ---- in the state ---- */

nb_status nb_walker_put_ranges(const nb_walker *w, json_t *state, nb_err *err)
{
    json_t *scales = json_object();
    bool bad = scales == NULL;
    for (int64_t i = 0; i < w->job->plan->n && !bad; i++) {
        char text[32];
        if (w->result->act_scale[i] == 0)
            continue;
        snprintf(text, sizeof text, "%lld", (long long)i);
        bad = json_object_set_new(scales, text, json_real((double)w->result->act_scale[i])) != 0;
    }
    if (!bad)
        bad = json_object_set(state, "input_scales", scales) != 0;
    json_decref(scales);
    return bad ? nb_fail(err, NB_MEMORY, "no memory for the state") : NB_OK;
}

/* Real numbers are written with the digits that give the same binary64, so a scale comes back as it
 * was. */
bool nb_walker_take_ranges(nb_walker *w, const json_t *state, int64_t n_layers)
{
    const json_t *scales = json_object_get(state, "input_scales");
    bool all = json_is_object(scales);
    const int64_t layer = w->layer;
    for (w->layer = 0; w->layer < n_layers; w->layer++) {
        nb_walker_find(w);
        for (int j = 0; j < NB_N_LINEARS; j++) {
            char text[32];
            snprintf(text, sizeof text, "%lld", (long long)w->index[j]);
            if (!nb_plan_waits(w->job->plan, w->index[j]))
                continue;
            const double scale = json_real_value(json_object_get(scales, text));
            w->result->act_scale[w->index[j]] = (float)scale;
            all = all && scale >= 0x1p-100 && scale <= 0x1p100;
        }
    }
    w->layer = layer;
    return all;
}
