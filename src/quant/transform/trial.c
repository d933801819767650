/* See trial.h. */
#include "quant/transform/trial.h"

#include "kernel/math.h"
#include "quant/weight/room.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

#define CHUNK_ROWS 8

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

bool nb_trial_searches(const nb_method *method)
{
    return strcmp(method->quantizer->name, "rtn") != 0 ||
           nb_method_option_of(method, "search") != NULL;
}

static bool all_zero(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (x[i] != 0)
            return false;
    }
    return true;
}

/* ---- which rows ---- */

static nb_status is_zero(const nb_transform_job *job, nb_linear_id id, bool *zero, nb_err *err)
{
    const int64_t n_rows = nb_linear_n_rows(job->config, id), strip = nb_transform_strip(job, id);
    const int64_t n = nb_linear_n_cols(job->config, id);
    float *room = NULL;
    nb_status s = NB_OK;
    *zero = true;
    if (job->weight[id] == NULL)
        NB_TRY(NB_ALLOC(&room, strip * n, err));
    for (int64_t row = 0; row < n_rows && *zero && s == NB_OK; row += strip) {
        const float *w;
        const int64_t m = smaller(strip, n_rows - row);
        s = nb_transform_rows(job, id, row, m, room, &w, err);
        *zero = s == NB_OK && all_zero(w, m * n);
    }
    nb_free(room);
    return s;
}

static nb_status take_rows(nb_trial *t, nb_trial_linear *l, int64_t n_rows, int64_t max_rows,
                           nb_err *err)
{
    l->n_rows = smaller(n_rows, max_rows);
    l->weight = t->job->weight[l->id];
    if (l->n_rows == n_rows && l->weight != NULL)
        return NB_OK;
    NB_TRY(NB_ALLOC(&l->copy, l->n_rows * t->n_cols, err));
    for (int64_t r = 0; r < l->n_rows; r++) {
        float *to = l->copy + r * t->n_cols;
        const float *from;
        NB_TRY(nb_transform_rows(t->job, l->id, r * n_rows / l->n_rows, 1, to, &from, err));
        if (from != to)
            memcpy(to, from, (size_t)t->n_cols * sizeof *to);
    }
    l->weight = l->copy;
    return NB_OK;
}

static nb_status add_linear(nb_trial *t, nb_linear_id id, int64_t max_rows, nb_err *err)
{
    const nb_transform_job *job = t->job;
    nb_weight to = *job->to[id];
    bool zero;
    NB_TRY(is_zero(job, id, &zero, err));
    if (zero)
        return NB_OK;
    nb_trial_linear *l = &t->linear[t->n++];
    l->id = id;
    NB_TRY(take_rows(t, l, to.n_rows, max_rows, err));
    to.n_rows = l->n_rows;
    to.scale_rows = 0; /* what rows share is close to what each would choose */
    to.nested = false;
    NB_TRY(nb_room_for(&l->made, &to, err));
    if (l->made.mat.fmt->grid != NULL) {
        NB_TRY(nb_grid_of(&l->grid, &l->made.mat, err));
        l->has_grid = true;
    }
    t->most_rows = t->most_rows > l->n_rows ? t->most_rows : l->n_rows;
    return NB_OK;
}

int64_t nb_trial_most_rows(const nb_config *c, nb_point point, int64_t max_rows)
{
    int n;
    const int first = (int)nb_point_linears(point, &n);
    int64_t most = 0;
    for (int id = first; id < first + n; id++) {
        const int64_t rows = smaller(nb_linear_n_rows(c, (nb_linear_id)id), max_rows);
        most = rows > most ? rows : most;
    }
    return most;
}

int64_t nb_trial_bytes(const nb_config *c, nb_point point, int64_t max_rows)
{
    int n;
    const int first = (int)nb_point_linears(point, &n);
    int64_t rows = 0;
    for (int id = first; id < first + n; id++)
        rows += smaller(nb_linear_n_rows(c, (nb_linear_id)id), max_rows);
    return rows * nb_point_n_cols(c, point) * (4 + 2);
}

int64_t nb_trial_strip_bytes(const nb_config *c)
{
    int64_t most = 0;
    for (int id = 0; id < NB_N_LINEARS; id++) {
        const int64_t n = nb_linear_n_cols(c, (nb_linear_id)id);
        const int64_t strip = nb_strip_rows(nb_linear_n_rows(c, (nb_linear_id)id), n) * n;
        most = strip > most ? strip : most;
    }
    return most * (4 + 4);
}

nb_status nb_trial_init(nb_trial *t, const nb_transform_job *job, nb_point point, int64_t max_rows,
                        nb_err *err)
{
    *t = (nb_trial){.job = job, .point = point, .n_cols = nb_point_n_cols(job->config, point)};
    t->search = nb_trial_searches(job->method);
    int n;
    const int first = (int)nb_point_linears(point, &n);
    nb_status s = NB_ALLOC(&t->importance, t->n_cols, err);
    for (int id = first; id < first + n && s == NB_OK; id++) {
        if (job->to[id] != NULL)
            s = add_linear(t, (nb_linear_id)id, max_rows, err);
    }
    if (s != NB_OK)
        nb_trial_free(t);
    return s;
}

void nb_trial_free(nb_trial *t)
{
    for (int i = 0; i < t->n; i++) {
        nb_free(t->linear[i].copy);
        nb_loaded_free(&t->linear[i].made);
    }
    nb_free(t->importance);
    *t = (nb_trial){0};
}

/* ---- rounding ---- */

typedef struct {
    nb_trial_linear *l;
    const float *s, *importance;
    float *out;
    bool search;
    int64_t rows_a_chunk;
} rounding;

/* `out` holds the scaled rows until their values take their place. */
static void round_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const rounding *x = context;
    nb_mat *m = &x->l->made.mat;
    const int64_t n = m->n_cols, begin = chunk * x->rows_a_chunk;
    const int64_t end = smaller(begin + x->rows_a_chunk, m->n_rows);
    for (int64_t r = begin; r < end; r++) {
        for (int64_t j = 0; j < n; j++)
            x->out[r * n + j] = x->l->weight[r * n + j] * (x->s == NULL ? 1 : x->s[j]);
    }
    if (x->search)
        nb_grid_fit_rows(&x->l->grid, m, begin, end, x->out, x->importance, NB_FIT_SEARCH);
    for (int64_t r = begin; r < end; r++) {
        if (x->search)
            nb_grid_round_row(&x->l->grid, m, r, x->out + r * n);
        else
            m->fmt->encode_row(m, r, x->out + r * n);
        m->fmt->decode_row(m, r, x->out + r * n);
    }
}

/* The mean square of the inputs of columns that were multiplied by s. */
static const float *importance_of(nb_trial *t, const float *s)
{
    const nb_input_stats *stats = t->job->stats[t->point];
    if (stats == NULL || stats->mean_square == NULL)
        return NULL;
    for (int64_t j = 0; j < t->n_cols; j++) {
        const double by = s == NULL ? 1 : (double)s[j];
        t->importance[j] = (float)(stats->mean_square[j] / (by * by));
    }
    return t->importance;
}

void nb_trial_round(nb_trial *t, int i, const float *s, float *out)
{
    nb_trial_linear *l = &t->linear[i];
    rounding x = {
        .l = l,
        .s = s,
        .out = out,
        .search = t->search && l->has_grid,
        .rows_a_chunk = l->has_grid && l->grid.whole ? l->n_rows : CHUNK_ROWS,
    };
    if (x.search)
        x.importance = importance_of(t, s);
    nb_pool_run(t->job->la->pool, (l->n_rows + x.rows_a_chunk - 1) / x.rows_a_chunk, round_chunk,
                &x);
}

bool nb_trial_is_void(const nb_trial *t, char *note, size_t room)
{
    for (int i = 0; i < t->n; i++) {
        if (t->power[i] > 0)
            return false;
    }
    snprintf(note, room, t->n == 0 ? "nothing to quantize" : "no inputs");
    return true;
}

void nb_trial_scales(const double *log_x, const double *log_w, double alpha, int64_t n, float *s)
{
    double lo = DBL_MAX, hi = -DBL_MAX;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t j = 0; j < n; j++) {
            s[j] = 1;
            if (log_x[j] == -DBL_MAX || (log_w != NULL && log_w[j] == -DBL_MAX))
                continue;
            const double v = alpha * log_x[j] - (log_w != NULL ? (1 - alpha) * log_w[j] : 0);
            lo = v < lo ? v : lo;
            hi = v > hi ? v : hi;
            if (pass == 1)
                s[j] = (float)nb_exp64(v - (lo + hi) / 2);
        }
    }
}
