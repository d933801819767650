/* See walk/weights.h. */
#include "quant/walk/weights.h"

#include "quant/weight/room.h"
#include "quant/weight/widen.h"

#include <stdio.h>
#include <string.h>

void nb_walker_find(nb_walker *w)
{
    static const char *const gains[2] = {"input_layernorm", "post_attention_layernorm"};
    char name[128];
    const nb_plan *plan = w->job->plan;
    const long long layer = (long long)w->layer;
    for (int j = 0; j < NB_N_LINEARS; j++) {
        const nb_linear_id id = (nb_linear_id)j;
        w->index[j] = nb_plan_linear(plan, w->layer, id);
        snprintf(name, sizeof name, "model.layers.%lld.%s.bias", layer, nb_linear_name(id));
        w->bias_index[j] = nb_plan_find(plan, name);
    }
    for (int j = 0; j < 2; j++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", layer, gains[j]);
        w->gain_index[j] = nb_plan_find(plan, name);
    }
    memset(w->coverage, 0, sizeof w->coverage);
    for (int p = 0; p < NB_N_POINTS; p++) {
        int n;
        const int first = (int)nb_point_linears((nb_point)p, &n);
        w->point_needs[p] = 0;
        for (int j = first; j < first + n; j++) {
            if (nb_walker_quantizes(w, j))
                w->point_needs[p] |= nb_method_needs(nb_walker_method(w, j));
        }
        if (nb_walker_waits(w, (nb_point)p))
            w->point_needs[p] |= NB_STAT_RANGE;
    }
}

static const nb_weight *source_of(const nb_walker *w, int j)
{
    return w->job->plan->from[w->index[j]];
}

/* Weight j in full precision; the source's matrix stays in w->source. */
nb_status nb_walker_load_floats(nb_walker *w, int j, nb_err *err)
{
    const nb_weight *from = source_of(w, j);
    nb_floats *f = &w->weight[j];
    NB_TRY(nb_store_read(w->job->store, from, &w->source, err));
    if (f->n < from->n_rows * from->n_cols) {
        nb_free(f->values);
        *f = (nb_floats){0};
        NB_TRY(NB_ALLOC(&f->values, from->n_rows * from->n_cols, err));
        f->n = from->n_rows * from->n_cols;
    }
    NB_TRY(nb_widen_finite(w->job->store, from, 0, &w->source.mat, f->values, w->job->pool, err));
    nb_changes_apply(&w->changes[j], w->job->pool, f->values, from->n_cols, 0, from->n_rows);
    return NB_OK;
}

static nb_status read_rows(void *context, int64_t row, int64_t n, float *out, nb_err *err)
{
    const nb_walker_place *at = context;
    nb_walker *w = at->w;
    const nb_weight *from = source_of(w, at->j);
    NB_TRY(nb_store_read_rows(w->job->store, from, row, n, &w->source, err));
    NB_TRY(nb_widen_finite(w->job->store, from, row, &w->source.mat, out, w->job->pool, err));
    nb_changes_apply(&w->changes[at->j], w->job->pool, out, from->n_cols, row, n);
    return NB_OK;
}

nb_rows nb_walker_rows(nb_walker *w, int j)
{
    w->place[j] = (nb_walker_place){w, j};
    return (nb_rows){.all = w->weight[j].values, .read = read_rows, .context = &w->place[j]};
}

/* Weights up to this many values are held: they are read once then. */
#define HELD_VALUES ((int64_t)16 << 20)

bool nb_walker_reads_rows(const nb_walker *w, nb_point point, int j)
{
    const nb_weight *from = source_of(w, j);
    return w->weight[j].values == NULL && w->job->tune == NULL && nb_walker_quantizes(w, j) &&
           nb_walker_method(w, j)->quantizer->encode_group != NULL &&
           (w->in_pieces || w->rests[point] || from->n_rows * from->n_cols > HELD_VALUES) &&
           nb_store_reads_rows(w->job->store, from);
}

void nb_walker_drop_floats(nb_walker *w, int j)
{
    nb_free(w->weight[j].values);
    w->weight[j] = (nb_floats){0};
}

void nb_walker_forget(nb_walker *w, int j)
{
    nb_loaded_free(&w->made[j]);
    w->made[j] = (nb_loaded){0};
    nb_walker_drop_floats(w, j);
}

/* The source's own weight into a slot. */
nb_status nb_walker_set_original(nb_walker *w, int slot, int j, nb_err *err)
{
    NB_TRY(nb_store_read(w->job->store, source_of(w, j), &w->source, err));
    return nb_model_set_linear(&w->streams.frame, slot, (nb_linear_id)j, &w->source.mat,
                               &(nb_act_spec){0}, NB_COMPUTE_ALL_F, w->job->pool, err);
}

/* The full-precision weight into slot 1: as transformed, because what the other stream feeds the
 * linears is compared with what stream 0 does. */
nb_status nb_walker_set_other(nb_walker *w, int j, nb_err *err)
{
    if (w->job->transform == NULL)
        return nb_walker_set_original(w, 1, j, err);
    const nb_weight *from = source_of(w, j);
    const nb_mat mat = {.fmt = &nb_format_f32,
                        .n_rows = from->n_rows,
                        .n_cols = from->n_cols,
                        .codes = w->weight[j].values,
                        .row_bytes = from->n_cols * (int64_t)sizeof(float)};
    return nb_model_set_linear(&w->streams.frame, 1, (nb_linear_id)j, &mat, &(nb_act_spec){0},
                               NB_COMPUTE_ALL_F, w->job->pool, err);
}

/* What was made of a weight into slot 0: in mode f, unless the scheme quantizes activations (A7).
 */
nb_status nb_walker_set_made(nb_walker *w, int j, nb_err *err)
{
    const nb_act_spec act = nb_walker_act(w, j);
    return nb_model_set_linear(&w->streams.frame, 0, (nb_linear_id)j, &w->made[j].mat, &act,
                               act.bits != 0 ? NB_COMPUTE_AUTO : NB_COMPUTE_ALL_F, w->job->pool,
                               err);
}

void nb_walker_drop_linears(nb_walker *w, nb_point point)
{
    int n;
    const nb_linear_id first = nb_point_linears(point, &n);
    for (int j = (int)first; j < (int)first + n; j++) {
        for (int slot = 0; slot < w->streams.n_streams; slot++)
            nb_model_drop_linear(&w->streams.frame, slot, (nb_linear_id)j);
    }
}

nb_status nb_walker_load_norms(nb_walker *w, nb_err *err)
{
    for (int slot = 0; slot < w->streams.n_streams; slot++)
        NB_TRY(nb_model_load_vectors(&w->streams.frame, w->job->store, slot, w->layer, err));
    return NB_OK;
}

nb_status nb_walker_keep_vector(nb_walker *w, int64_t index, const float *x, nb_err *err)
{
    const nb_weight *to = &w->job->plan->weights[index];
    nb_loaded made = {0};
    nb_status s = nb_room_for(&made, to, err);
    if (s == NB_OK) {
        to->fmt->encode_row(&made.mat, 0, x);
        s = nb_workdir_put_mat(w->job->dir, index, &made.mat, err);
    }
    nb_loaded_free(&made);
    return s;
}

nb_status nb_walker_keep(nb_walker *w, int j, nb_err *err)
{
    return nb_workdir_put_mat(w->job->dir, w->index[j], &w->made[j].mat, err);
}

/* Makes room for weight j in its new format, padding and all zero. */
nb_status nb_walker_room(nb_walker *w, int j, nb_err *err)
{
    const nb_weight *to = &w->job->plan->weights[w->index[j]];
    NB_TRY(nb_room_for(&w->made[j], to, err));
    nb_mat_arrays arrays;
    nb_mat_list_arrays(&w->made[j].mat, &arrays);
    for (int i = 0; i < arrays.n; i++)
        memset(arrays.array[i].data, 0, arrays.array[i].bytes);
    return NB_OK;
}

nb_status nb_walker_encode_plain(nb_walker *w, int j, nb_err *err)
{
    nb_mat *to = &w->made[j].mat;
    const int64_t n = to->n_cols, strip = nb_strip_rows(to->n_rows, n);
    const nb_rows rows = nb_walker_rows(w, j);
    float *room = NULL;
    nb_status s = NB_OK;
    if (rows.all == NULL)
        NB_TRY(NB_ALLOC(&room, strip * n, err));
    for (int64_t row = 0; row < to->n_rows && s == NB_OK; row += strip) {
        const int64_t left = to->n_rows - row, m = left < strip ? left : strip;
        const float *x;
        s = nb_rows_get(&rows, n, row, m, room, &x, err);
        for (int64_t r = 0; r < m && s == NB_OK; r++)
            to->fmt->encode_row(to, row + r, x + r * n);
    }
    nb_free(room);
    return s;
}
