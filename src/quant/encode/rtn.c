/* Round to nearest: every weight on its own, no data needed. The baseline that each cleverer
 * method has to beat. O(n_rows * n_cols).
 *
 * Plain "rtn" is what the format's own encoder does. "rtn:search" looks for the scales of least
 * squared error first (grid.h), each weight counting what its input does where that is known: its
 * mean square over the calibration set, as the diagonal of tr(E H E^T) has it. Formats that have no
 * grid have no scales to look for either, and are encoded plainly. */
#include "quant/encode/quantizer.h"

#include <math.h>

extern const nb_quantizer nb_quantizer_rtn;

static nb_status rtn_check(const nb_method *method, unsigned *needs, nb_err *err)
{
    static const char *const known[] = {"search", NULL};
    NB_TRY(nb_method_only(method, known, err));
    const char *value = nb_method_option_of(method, "search");
    if (value == NULL)
        return NB_OK;
    if (*value != 0)
        return nb_fail(err, NB_USAGE, "option search of method rtn takes no value, and is '%s'",
                       value);
    *needs |= NB_STAT_MAGNITUDE;
    return NB_OK;
}

static bool searches(const nb_method *method, const nb_mat *out)
{
    return nb_method_option_of(method, "search") != NULL && out->fmt->grid != NULL;
}

/* Rows [begin, end) of out, of weight [n_rows][n_cols]; `grid` is NULL where there is no search. */
static void encode(nb_mat *out, const nb_grid *grid, const float *weight, const float *importance,
                   int64_t begin, int64_t end)
{
    if (grid == NULL) {
        for (int64_t r = begin; r < end; r++)
            out->fmt->encode_row(out, r, weight + r * out->n_cols);
        return;
    }
    nb_grid_fit_rows(grid, out, begin, end, weight, importance, NB_FIT_SEARCH);
    for (int64_t r = begin; r < end; r++)
        nb_grid_round_row(grid, out, r, weight + r * out->n_cols);
}

static nb_status rtn_encode_rows(const nb_quant_job *job, nb_mat *out, nb_err *err)
{
    nb_grid grid;
    /* Scales that rows share are chosen before, from all of them. */
    const bool search = searches(job->method, out) && !nb_mat_shares(out);
    if (search)
        NB_TRY(nb_grid_of(&grid, out, err));
    encode(out, search ? &grid : NULL, job->weight, job->importance, 0, job->n_rows);
    return NB_OK;
}

/* ---- with statistics of the inputs ---- */

#define CHUNK_ROWS 8

typedef struct {
    nb_mat *out;
    const nb_grid *grid;
    const float *weight, *importance;
    int64_t rows_a_chunk;
} rtn_task;

static void encode_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const rtn_task *t = context;
    const int64_t begin = chunk * t->rows_a_chunk, end = begin + t->rows_a_chunk;
    encode(t->out, t->grid, t->weight, t->importance, begin,
           end < t->out->n_rows ? end : t->out->n_rows);
}

static void encode_strip(nb_algebra *la, rtn_task *task, bool settles)
{
    nb_mat *out = task->out;
    for (int64_t r = 0; r < out->n_rows && settles; r++)
        out->fmt->survey_row(out, r, task->weight + r * out->n_cols);
    if (settles)
        out->fmt->settle(out);
    nb_pool_run(la->pool, (out->n_rows + task->rows_a_chunk - 1) / task->rows_a_chunk, encode_chunk,
                task);
}

/* Strip by strip, unless scales depend on all rows. */
static nb_status encode_linear(const nb_group_job *job, int i, const float *importance, nb_err *err)
{
    nb_mat *out = job->linear[i].out;
    const int64_t n = out->n_cols;
    nb_grid grid;
    const bool search = searches(job->method, out);
    if (search && nb_grid_of(&grid, out, err) != NB_OK)
        return nb_context(err, "%s", job->linear[i].name);
    const bool whole = (search && grid.whole) || nb_mat_shares(out);
    const float *all = job->linear[i].weight;
    const nb_rows rows = all != NULL ? (nb_rows){.all = all} : job->linear[i].rows;
    const int64_t strip = whole || rows.all != NULL ? out->n_rows : nb_strip_rows(out->n_rows, n);
    float *room = NULL;
    if (rows.all == NULL)
        NB_TRY(NB_ALLOC(&room, strip * n, err));
    nb_mat view;
    rtn_task task = {
        .out = &view,
        .grid = search ? &grid : NULL,
        .importance = importance,
        .rows_a_chunk = search && grid.whole ? strip : CHUNK_ROWS,
    };
    nb_status s = NB_OK;
    for (int64_t row = 0; row < out->n_rows && s == NB_OK; row += strip) {
        view = nb_mat_rows(out, row, out->n_rows - row < strip ? out->n_rows - row : strip);
        s = nb_rows_get(&rows, n, row, view.n_rows, room, &task.weight, err);
        if (s == NB_OK)
            encode_strip(job->la, &task, !search && nb_mat_shares(out));
        if (whole)
            *out = view; /* what is one for all rows */
    }
    nb_free(room);
    return s;
}

static nb_status rtn_encode_group(const nb_group_job *job, nb_group_result *result, nb_err *err)
{
    *result = (nb_group_result){0};
    for (int i = 0; i < NB_GROUP_LINEARS; i++)
        result->loss[i] = result->held_loss[i] = NAN; /* H is not asked for */
    const nb_input_stats *stats = job->stats;
    float *importance = NULL;
    if (stats->mean_square != NULL) {
        NB_TRY(NB_ALLOC(&importance, stats->n_cols, err));
        for (int64_t c = 0; c < stats->n_cols; c++)
            importance[c] = (float)stats->mean_square[c];
    }
    nb_status s = NB_OK;
    for (int i = 0; i < job->n && s == NB_OK; i++)
        s = encode_linear(job, i, importance, err);
    nb_free(importance);
    return s;
}

const nb_quantizer nb_quantizer_rtn = {
    .name = "rtn",
    .source = "folklore",
    .summary = "round to nearest; with 'search', under scales of least squared error",
    .needs = NB_STAT_NONE,
    .check = rtn_check,
    .encode_rows = rtn_encode_rows,
    .encode_group = rtn_encode_group,
};
