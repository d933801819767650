/* How far a walk has come, in the working folder, and going on from there. */
#include "quant/walk/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

nb_status nb_walker_save(nb_walker *w, nb_err *err)
{
    char hash[2][20];
    json_t *state = json_pack("{s:s, s:I, s:O}", "key", w->job->key, "next_layer",
                              (json_int_t)w->layer, "layers", w->result->layers);
    json_t *hashes = json_array();
    bool bad = state == NULL || hashes == NULL;
    for (int i = 0; i < w->streams.n_streams && !bad; i++) {
        snprintf(hash[i], sizeof hash[i], "%016" PRIx64, w->streams.stream[i].hash);
        bad = json_array_append_new(hashes, json_string(hash[i])) != 0;
    }
    if (!bad)
        bad = json_object_set(state, "hashes", hashes) != 0;
    nb_status s = bad ? nb_fail(err, NB_MEMORY, "no memory for the state")
                      : nb_walker_put_guide(w, state, err);
    if (s == NB_OK)
        s = nb_walker_put_ranges(w, state, err);
    if (s == NB_OK)
        s = nb_walker_put_distill(w, state, err);
    if (s == NB_OK)
        s = nb_workdir_put_state(w->job->dir, state, err);
    json_decref(hashes);
    json_decref(state);
    return s;
}

/* Whether the streams hold what the state says. */
static nb_status same_hashes(nb_walker *w, const json_t *state, bool *same, nb_err *err)
{
    const json_t *hashes = json_object_get(state, "hashes");
    *same = json_is_array(hashes) && (int)json_array_size(hashes) == w->streams.n_streams;
    for (int i = 0; i < w->streams.n_streams && *same; i++) {
        char text[20];
        uint64_t hash;
        const nb_status s = nb_streams_check(&w->streams, i, &hash, err);
        if (s == NB_MEMORY)
            return s;
        w->streams.stream[i].hash = hash; /* for what is saved before the next block is done */
        snprintf(text, sizeof text, "%016" PRIx64, hash);
        const char *kept = json_string_value(json_array_get(hashes, (size_t)i));
        *same = s == NB_OK && kept != NULL && strcmp(kept, text) == 0;
    }
    return NB_OK;
}

/* Names what blocks [0, n) have in the working folder. */
void nb_walker_mark_made(nb_walker *w, int64_t n)
{
    const bool transformed = w->job->transform != NULL;
    for (w->layer = 0; w->layer < n; w->layer++) {
        nb_walker_find(w);
        for (int j = 0; j < NB_N_LINEARS; j++) {
            w->result->made[w->index[j]] = transformed || nb_walker_quantizes(w, j);
            if (transformed && w->bias_index[j] >= 0)
                w->result->made[w->bias_index[j]] = true;
        }
        for (int j = 0; j < 2; j++)
            w->result->made[w->gain_index[j]] = transformed;
    }
}

/* Whether all that is marked lies in the working folder, whole. */
static nb_status same_weights(nb_walker *w, bool *same, nb_err *err)
{
    *same = true;
    for (int64_t i = 0; i < w->job->plan->n && *same; i++) {
        if (w->result->made[i])
            NB_TRY(nb_workdir_check_mat(w->job->dir, i, same, err));
    }
    return NB_OK;
}

/* A state that cannot be gone on from is overwritten before anything else is: weights of two runs
 * would meet under it. */
static nb_status start_anew(nb_walker *w, const char *why, nb_err *err)
{
    w->result->anew = why;
    memset(w->result->made, 0, (size_t)w->job->plan->n * sizeof *w->result->made);
    memset(w->result->act_scale, 0, (size_t)w->job->plan->n * sizeof *w->result->act_scale);
    w->layer = w->streams.layer = 0;
    w->distill_state = (nb_distill_state){.before = NAN, .after = NAN};
    w->distilled = false;
    NB_TRY(nb_walker_save(w, err));
    return nb_streams_embed(&w->streams, w->job->store, err);
}

/* Goes on from a state of the same key, if all that it speaks of is as it was left. */
static nb_status go_on(nb_walker *w, const json_t *state, nb_err *err)
{
    const json_int_t next = json_integer_value(json_object_get(state, "next_layer"));
    json_t *layers = json_object_get(state, "layers");
    bool same = json_is_array(layers) && next > 0 && next <= w->config.n_layers;
    if (next == 0)
        return start_anew(w, NULL, err); /* stopped in the first block */
    w->streams.layer = next;
    if (same)
        NB_TRY(same_hashes(w, state, &same, err));
    if (same) {
        nb_walker_mark_made(w, next);
        NB_TRY(same_weights(w, &same, err));
        same = same && nb_walker_take_ranges(w, state, next);
    }
    if (!same)
        return start_anew(w, "is damaged", err);
    w->layer = w->result->resumed = next;
    json_decref(w->result->layers);
    w->result->layers = json_incref(layers);
    return NB_OK;
}

nb_status nb_walker_resume(nb_walker *w, nb_err *err)
{
    json_t *state;
    bool damaged;
    NB_TRY(nb_workdir_get_state(w->job->dir, &state, &damaged, err));
    const char *key = json_string_value(json_object_get(state, "key"));
    nb_status s;
    if (key != NULL && strcmp(key, w->job->key) == 0) {
        nb_walker_take_guide(w, state);
        nb_walker_take_distill(w, state);
        s = go_on(w, state, err);
    } else
        s = start_anew(w,
                       damaged         ? "is damaged"
                       : state != NULL ? "is of another model, text or recipe"
                                       : NULL,
                       err);
    json_decref(state);
    return s;
}
