/* The transform of the block at hand, by the statistics of the model in full precision.
 *
 * Where there is room, these come from one sweep, and all weights of the block are held as floats
 * from then on. Where there is not, the block is taken in pieces: stream 0 goes from point to point
 * with the source's own weights; at each, when those before it are gone, the point's statistics are
 * gathered from disk, its scales chosen, and second moments freed. Weights are read by rows, and
 * what was done to them is done again as often as they are read. Until the last point is through,
 * gains and biases are changed beside those that the stream still needs as they were. */
#include "base/fpenv.h"
#include "quant/walk/weights.h"

#include <math.h>
#include <string.h>

/* Gains and biases that change. */
typedef struct {
    float *gain[2], *bias[NB_N_LINEARS]; /* NULL: there is none */
} vectors;

static vectors vectors_of(nb_walker *w)
{
    nb_layer *layer = &w->streams.frame.layers[0];
    vectors v = {.gain = {layer->attn_norm, layer->ffn_norm}};
    for (int j = 0; j < NB_N_LINEARS; j++)
        v.bias[j] = nb_layer_linear(layer, (nb_linear_id)j)->bias;
    return v;
}

static nb_transform_job job_of(nb_walker *w, const vectors *v)
{
    const nb_walk_job *job = w->job;
    const nb_format *gain = job->plan->weights[w->gain_index[0]].fmt;
    nb_transform_job t = {.config = &w->config,
                          .la = &w->la,
                          .method = w->method,
                          .gain = {v->gain[0], v->gain[1]},
                          .gain_type = gain == &nb_format_f32   ? NB_F32
                                       : gain == &nb_format_f16 ? NB_F16
                                                                : NB_BF16,
                          .options = job->transform_options};
    for (int j = 0; j < NB_N_LINEARS; j++) {
        t.weight[j] = w->weight[j].values;
        t.rows[j] = nb_walker_rows(w, j);
        t.changes[j] = &w->changes[j];
        t.bias[j] = v->bias[j];
        t.to[j] = nb_walker_quantizes(w, j) ? &job->plan->weights[w->index[j]] : NULL;
    }
    for (int p = 0; p < NB_N_POINTS; p++)
        t.stats[p] = &w->stats[p];
    return t;
}

static nb_status apply_at(nb_walker *w, const nb_transform_job *t, nb_point point,
                          nb_transform_result *r, nb_err *err)
{
    const uint64_t env = nb_fpenv_enter();
    const nb_status s = w->job->transform->apply_at(t, point, r, err);
    nb_fpenv_leave(env);
    return s == NB_OK ? s : nb_context(err, "layer %lld", (long long)w->layer);
}

/* ---- what is told and kept ---- */

static nb_status tell(nb_walker *w, const nb_transform_result *r, nb_err *err)
{
    for (int p = 0; p < NB_N_POINTS; p++) {
        json_t *o = json_pack("{s:s, s:I, s:s, s:s}", "transform", w->job->transform->name, "layer",
                              (json_int_t)w->layer, "point", nb_point_name((nb_point)p), "note",
                              r->note[p]);
        bool bad = o == NULL;
        if (!bad && isfinite(r->before[p]) && isfinite(r->after[p]))
            bad = json_object_set_new(o, "loss_before", json_real(r->before[p])) != 0 ||
                  json_object_set_new(o, "loss_after", json_real(r->after[p])) != 0;
        if (bad || json_array_append_new(w->result->layers, o) != 0)
            return nb_fail(err, NB_MEMORY, "no memory for the report");
    }
    return NB_OK;
}

/* The changed vectors into the working folder; stream 1 meets them, too. */
static nb_status keep_vectors(nb_walker *w, nb_err *err)
{
    const vectors v = vectors_of(w);
    if (w->has_other) {
        nb_layer *other = &w->streams.frame.layers[1];
        other->attn_norm = v.gain[0];
        other->ffn_norm = v.gain[1];
        for (int j = 0; j < NB_N_LINEARS; j++)
            nb_layer_linear(other, (nb_linear_id)j)->bias = v.bias[j];
    }
    for (int j = 0; j < 2; j++)
        NB_TRY(nb_walker_keep_vector(w, w->gain_index[j], v.gain[j], err));
    for (int j = 0; j < NB_N_LINEARS; j++) {
        if (v.bias[j] != NULL && w->bias_index[j] >= 0)
            NB_TRY(nb_walker_keep_vector(w, w->bias_index[j], v.bias[j], err));
    }
    return NB_OK;
}

/* ---- from one sweep ---- */

/* With what the transform needs at all points, and with what the methods do. */
static nb_status sweep(nb_walker *w, bool original, nb_err *err)
{
    unsigned needs[NB_N_POINTS];
    for (int p = 0; p < NB_N_POINTS; p++)
        needs[p] = w->transform_needs | (original ? w->point_needs[p] : 0);
    for (int j = 0; j < NB_N_LINEARS; j++)
        NB_TRY(nb_walker_set_original(w, 0, j, err));
    return nb_walker_sweep(w, 0, needs, original, err);
}

static nb_status transform_at_once(nb_walker *w, nb_err *err)
{
    for (int j = 0; j < NB_N_LINEARS; j++)
        NB_TRY(nb_walker_load_floats(w, j, err));
    const vectors v = vectors_of(w);
    const nb_transform_job t = job_of(w, &v);
    nb_transform_result r = nb_transform_result_none();
    for (int p = 0; p < NB_N_POINTS; p++)
        NB_TRY(apply_at(w, &t, (nb_point)p, &r, err));
    NB_TRY(tell(w, &r, err));
    return keep_vectors(w, err);
}

/* ---- in pieces ---- */

static int64_t n_of_bias(const nb_walker *w, int j)
{
    return nb_linear_n_rows(&w->config, (nb_linear_id)j);
}

static void vectors_free(vectors *v)
{
    for (int i = 0; i < 2; i++)
        nb_free(v->gain[i]);
    for (int j = 0; j < NB_N_LINEARS; j++)
        nb_free(v->bias[j]);
}

static nb_status copy(float **out, const float *x, int64_t n, nb_err *err)
{
    if (x == NULL)
        return NB_OK;
    NB_TRY(NB_ALLOC(out, n, err));
    memcpy(*out, x, (size_t)n * sizeof *x);
    return NB_OK;
}

static nb_status vectors_copy(vectors *out, nb_walker *w, nb_err *err)
{
    const vectors v = vectors_of(w);
    for (int i = 0; i < 2; i++)
        NB_TRY(copy(&out->gain[i], v.gain[i], w->config.d_model, err));
    for (int j = 0; j < NB_N_LINEARS; j++)
        NB_TRY(copy(&out->bias[j], v.bias[j], n_of_bias(w, j), err));
    return NB_OK;
}

static void vectors_put(nb_walker *w, const vectors *from)
{
    const vectors v = vectors_of(w);
    for (int i = 0; i < 2; i++)
        memcpy(v.gain[i], from->gain[i], (size_t)w->config.d_model * sizeof(float));
    for (int j = 0; j < NB_N_LINEARS; j++) {
        if (v.bias[j] != NULL)
            memcpy(v.bias[j], from->bias[j], (size_t)n_of_bias(w, j) * sizeof(float));
    }
}

/* The statistics of a point, with no weights in memory beside them. */
static nb_status gather(nb_walker *w, nb_point point, bool original, nb_err *err)
{
    NB_TRY(nb_streams_to_point(&w->streams, point, NULL, err));
    if (point > 0)
        nb_walker_drop_linears(w, (nb_point)(point - 1));
    NB_TRY(nb_walker_start_stats(w, point,
                                 w->transform_needs | (original ? w->point_needs[point] : 0), err));
    NB_TRY(nb_streams_gather(&w->streams, point, &w->stats[point], false, err));
    nb_algebra_free(&w->la); /* sums have the largest scratch */
    w->la.scratch = (nb_buf){0};
    return nb_walker_end_stats(w, point, err);
}

/* What stream 0 goes on with. */
static nb_status set_originals(nb_walker *w, nb_point point, nb_err *err)
{
    int n;
    const int first = (int)nb_point_linears(point, &n);
    for (int j = first; j < first + n; j++)
        NB_TRY(nb_walker_set_original(w, 0, j, err));
    nb_loaded_free(&w->source);
    w->source = (nb_loaded){0};
    return NB_OK;
}

static nb_status point_in_pieces(nb_walker *w, const vectors *v, nb_point point, bool original,
                                 nb_transform_result *r, nb_err *err)
{
    NB_TRY(gather(w, point, original, err));
    const nb_transform_job t = job_of(w, v);
    NB_TRY(apply_at(w, &t, point, r, err));
    if (original)
        nb_sym_free(&w->stats[point].h);
    else
        nb_input_stats_free(&w->stats[point]);
    return point == NB_AT_DOWN && !original ? NB_OK : set_originals(w, point, err);
}

static nb_status transform_in_pieces(nb_walker *w, bool original, nb_err *err)
{
    vectors v = {0};
    nb_transform_result r = nb_transform_result_none();
    for (int j = 0; j < NB_N_LINEARS; j++)
        nb_changes_free(&w->changes[j]);
    nb_status s = vectors_copy(&v, w, err);
    for (int p = 0; p < NB_N_POINTS && s == NB_OK; p++)
        s = point_in_pieces(w, &v, (nb_point)p, original, &r, err);
    if (s == NB_OK && original)
        s = nb_streams_to_end(&w->streams, err);
    nb_walker_drop_linears(w, NB_AT_DOWN);
    if (s == NB_OK) {
        vectors_put(w, &v);
        s = tell(w, &r, err);
    }
    vectors_free(&v);
    return s == NB_OK ? keep_vectors(w, err) : s;
}

/* ---- either ---- */

nb_status nb_walker_transform(nb_walker *w, bool original, nb_err *err)
{
    if (w->in_pieces)
        return transform_in_pieces(w, original, err);
    NB_TRY(sweep(w, original, err));
    const nb_status s = w->job->transform != NULL ? transform_at_once(w, err) : NB_OK;
    for (int p = 0; p < NB_N_POINTS && !original; p++)
        nb_input_stats_free(&w->stats[p]);
    return s;
}
