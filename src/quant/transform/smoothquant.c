/* SmoothQuant, Xiao et al., arXiv:2211.10438: channels with large inputs are made smaller, and the
 * columns of their weights larger, so that one scale a token does for all of them.
 *
 * The paper's s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (equation 4) is tried for alpha 0, 0.1
 * ... 1, and the balance of balance.h besides. What counts is the error of the quantized product
 * on the sample of inputs, activations rounded by A3 (static ones under the scale of the largest)
 * and weights to the planned format: the mean
 * over the linears of a point of
 *
 *   || Q_a(X / s) Q_w(W s)^T - X W^T ||^2 / || X W^T ||^2.
 *
 * s = 1 comes first, and the first of equals wins: the error is never above that of no smoothing.
 * Large matrices are tried on MAX_ROWS of their rows. */
#include "quant/transform/balance.h"
#include "quant/transform/trial.h"

#include "kernel/gemm.h"
#include "kernel/math.h"
#include "numeric/minifloat.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROWS    1024
#define ALPHA_STEPS 10

typedef struct {
    bool search, balance;
    double alpha; /* without a search */
} smooth_options;

static nb_status parse(smooth_options *out, const char *text, nb_err *err)
{
    *out = (smooth_options){.search = true, .balance = true};
    for (nb_method_option o; nb_transform_option(&text, &o);) {
        const bool on = strcmp(o.value, "on") == 0, off = strcmp(o.value, "off") == 0;
        if (strcmp(o.name, "balance") == 0 && (on || off)) {
            out->balance = on;
        } else if (strcmp(o.name, "alpha") == 0) {
            char *end;
            out->alpha = strtod(o.value, &end);
            out->search = out->balance = false;
            if (o.value[0] == 0 || *end != 0 || !(out->alpha >= 0 && out->alpha <= 1))
                return nb_fail(err, NB_USAGE,
                               "option alpha of transform smoothquant is a number from 0 to 1, "
                               "not '%s'",
                               o.value);
        } else {
            return nb_transform_no_option("smoothquant", &o, "alpha=A, balance=on|off", err);
        }
    }
    return NB_OK;
}

static nb_status smooth_check(const char *options, nb_err *err)
{
    smooth_options o;
    return parse(&o, options, err);
}

/* ---- the error of s ---- */

typedef struct {
    const nb_transform_job *job;
    nb_point point;
    nb_trial trial;
    nb_transform_bounds bounds;
    const float *sample;
    int64_t n_sample, n;
    double *log_x, *log_w;         /* [n], by source; -DBL_MAX: nothing there */
    float *s, *best_s;             /* [n] */
    float *x;                      /* [n_sample][n]: rounded inputs */
    float *w;                      /* [most_rows][n]: rounded weights */
    float *y;                      /* [n_sample][most_rows] */
    float *want[NB_GROUP_LINEARS]; /* [n_sample][n_rows] */
    double *row_sum;               /* [n_sample] */
    int8_t *codes;                 /* [n_threads][n] */
    float *scales;                 /* [n_threads][n] */
    uint8_t *product;
} smoothing;

static void product(const smoothing *x, const float *a, const float *w, int64_t n_rows, float *y)
{
    const nb_matmul_job job = {
        .c = y,
        .ldc = n_rows,
        .m = x->n_sample,
        .n = n_rows,
        .depth = x->n,
        .a = {a, x->n, 1},
        .b = {w, 1, x->n},
    };
    nb_matmul(x->job->la->kernels, x->job->la->pool, &job, x->product);
}

/* Columns of a linear's inputs that share a scale, as A3 says. 0: inputs are not rounded. */
static int64_t act_group(const smoothing *x, nb_linear_id id)
{
    const nb_weight *to = x->job->to[id];
    if (to->act.bits != 8)
        return 0;
    if (to->act.is_float)
        return to->act.group_size > 0 ? to->act.group_size : x->n;
    if (to->act.per_token)
        return x->n;
    const int64_t group = to->fmt->affine ? to->group_size : to->fmt->block_len;
    const int64_t most = group > 0 && group < 128 ? group : 128;
    return most > 32 ? most : 32;
}

typedef struct {
    const smoothing *x;
    int64_t group;
    bool is_float;
    float given; /* static scale; 0: each group has its own */
} rounding;

/* Static scales are found when the block is as it will be; until then, that of the largest input.
 */
static float static_scale(const smoothing *x, nb_linear_id id)
{
    const nb_act_spec *act = &x->job->to[id]->act;
    const float *max_abs = x->job->stats[x->point]->max_abs;
    float most = 0, scale;
    int zero;
    for (int64_t j = 0; act->is_static && j < x->n; j++)
        most = max_abs[j] / x->s[j] > most ? max_abs[j] / x->s[j] : most;
    nb_range_scale((nb_value_range){-most, most}, act->is_float ? NB_RANGE_E4M3 : NB_RANGE_INT8,
                   &scale, &zero);
    return act->is_static ? scale : 0;
}

static void round_static(const rounding *r, float *x)
{
    const nb_xround how = {.on = true, .scale = r->given, .integer = !r->is_float};
    (void)nb_round_row(x, x, r->x->n, &how);
    for (int64_t j = 0; !r->is_float && j < r->x->n; j++)
        x[j] *= r->given;
}

/* As E4M3 under the scale that takes the largest to 448. */
static void round_floats(float *x, int64_t n)
{
    float most = 0;
    for (int64_t j = 0; j < n; j++)
        most = fabsf(x[j]) > most ? fabsf(x[j]) : most;
    const float scale = most / 448, inverse = most < 0x1p-100f ? 0 : 448 / most;
    for (int64_t j = 0; j < n; j++)
        x[j] = nb_e4m3_to_f32(nb_e4m3_from_f32(x[j] * inverse)) * scale;
}

static void round_row(void *context, int64_t t, int thread)
{
    const rounding *r = context;
    const smoothing *x = r->x;
    const float *from = x->sample + t * x->n;
    float *to = x->x + t * x->n, *scale = x->scales + thread * x->n;
    int8_t *code = x->codes + thread * x->n;
    for (int64_t j = 0; j < x->n; j++)
        to[j] = from[j] / x->s[j];
    if (r->given != 0) {
        round_static(r, to);
        return;
    }
    for (int64_t j = 0; r->is_float && j < x->n && r->group > 0; j += r->group)
        round_floats(to + j, x->n - j < r->group ? x->n - j : r->group);
    if (r->is_float || r->group == 0)
        return;
    /* Inf or NaN inside give a scale that is none: such a row is as wrong after any smoothing. */
    x->job->la->kernels->quantize_row(to, x->n, r->group, code, NULL, scale);
    for (int64_t j = 0; j < x->n; j++)
        to[j] = (float)code[j] * scale[j / r->group];
}

typedef struct {
    const float *got, *want; /* want NULL: zero */
    int64_t n;
    double *row_sum;
} summing;

static void square_row(void *context, int64_t t, int thread)
{
    (void)thread;
    const summing *c = context;
    double sum = 0;
    for (int64_t j = 0; j < c->n; j++) {
        const double e =
            (double)c->got[t * c->n + j] - (c->want == NULL ? 0 : (double)c->want[t * c->n + j]);
        sum += e * e;
    }
    c->row_sum[t] = sum;
}

static double squares(const smoothing *x, const float *got, const float *want, int64_t n_rows)
{
    nb_pool_run(x->job->la->pool, x->n_sample, square_row,
                &(summing){got, want, n_rows, x->row_sum});
    double sum = 0;
    for (int64_t t = 0; t < x->n_sample; t++)
        sum += x->row_sum[t];
    return sum;
}

/* Of x->s, settled. Linears without any output do not count. */
static double loss_of(smoothing *x)
{
    double total = 0;
    int count = 0;
    int64_t rounded = -1;
    float under = -1;
    for (int i = 0; i < x->trial.n; i++) {
        const nb_trial_linear *l = &x->trial.linear[i];
        const int64_t group = act_group(x, l->id);
        if (!(x->trial.power[i] > 0))
            continue;
        const float given = static_scale(x, l->id);
        if (group != rounded || given != under)
            nb_pool_run(x->job->la->pool, x->n_sample, round_row,
                        &(rounding){x, group, x->job->to[l->id]->act.is_float, given});
        rounded = group;
        under = given;
        nb_trial_round(&x->trial, i, x->s, x->w);
        product(x, x->x, x->w, l->n_rows, x->y);
        total += squares(x, x->y, x->want[i], l->n_rows) / x->trial.power[i];
        count++;
    }
    return count > 0 ? total / count : 0;
}

/* ---- candidates ---- */

/* Maxima over the channels that one source feeds, then logarithms. */
static void take_logs(const smoothing *x, double *v)
{
    const nb_config *c = x->job->config;
    const int64_t per = x->point == NB_AT_O ? c->n_heads / c->n_kv_heads : 1;
    for (int64_t j = 0; per > 1 && j < x->n; j++) {
        if (j / c->head_dim % per != 0)
            continue;
        double most = 0;
        for (int64_t i = 0; i < per; i++)
            most = v[j + i * c->head_dim] > most ? v[j + i * c->head_dim] : most;
        for (int64_t i = 0; i < per; i++)
            v[j + i * c->head_dim] = most;
    }
    for (int64_t j = 0; j < x->n; j++)
        v[j] = v[j] > 0 ? nb_log64(v[j]) : -DBL_MAX;
}

static void column_maxima(const smoothing *x, double *most)
{
    for (int i = 0; i < x->trial.n; i++) {
        const nb_trial_linear *l = &x->trial.linear[i];
        for (int64_t r = 0; r < l->n_rows; r++) {
            const float *w = l->weight + r * x->n;
            for (int64_t j = 0; j < x->n; j++)
                most[j] = (double)fabsf(w[j]) > most[j] ? (double)fabsf(w[j]) : most[j];
        }
    }
}

static nb_status balance_s(smoothing *x, nb_err *err)
{
    const nb_config *c = x->job->config;
    nb_balance_job job = {
        .pool = x->job->la->pool,
        .n = x->n,
        .x = {.a = x->sample, .n_rows = x->n_sample, .group = x->n},
    };
    int64_t *source;
    NB_TRY(NB_ALLOC(&source, x->n, err));
    for (int64_t j = 0; j < x->n; j++)
        source[j] = nb_point_source(c, x->point, j);
    job.source = source;
    for (int i = 0; i < x->trial.n; i++) {
        const nb_trial_linear *l = &x->trial.linear[i];
        const nb_format *fmt = l->made.mat.fmt;
        const int64_t group = act_group(x, l->id);
        if (!(x->trial.power[i] > 0))
            continue;
        if (group > 0) {
            job.x.group = group;
            job.x.largest = 127;
        }
        job.power[job.n_linears] = x->trial.power[i];
        job.w[job.n_linears++] = (nb_balance_side){
            .a = l->weight,
            .n_rows = l->n_rows,
            .group = l->has_grid   ? l->grid.group_len
                     : fmt->affine ? l->made.mat.group_size
                                   : fmt->block_len,
            .largest = (double)(((int64_t)1 << (fmt->bits - 1)) - 1) + (fmt->bits == 1),
        };
    }
    const nb_status s = nb_balance(&job, x->s, err);
    nb_free(source);
    return s;
}

/* ---- a point ---- */

typedef struct {
    double before, loss;
    bool moved;
    char name[24];
} choice;

static void try_s(smoothing *x, choice *best, const char *name, double alpha)
{
    nb_transform_settle(x->job, &x->bounds, x->s);
    const double loss = loss_of(x);
    if (!(loss < best->loss))
        return;
    best->loss = loss;
    best->moved = true;
    snprintf(best->name, sizeof best->name, name, alpha);
    memcpy(x->best_s, x->s, (size_t)x->n * sizeof *x->s);
}

static nb_status search_s(smoothing *x, const smooth_options *o, choice *best, nb_err *err)
{
    for (int64_t j = 0; j < x->n; j++)
        x->s[j] = 1;
    best->before = best->loss = loss_of(x);
    for (int i = 0; i <= ALPHA_STEPS; i++) {
        const double alpha = o->search ? (double)i / ALPHA_STEPS : o->alpha;
        nb_trial_scales(x->log_x, x->log_w, alpha, x->n, x->s);
        try_s(x, best, "alpha %.3g", alpha);
        if (!o->search)
            break;
    }
    if (!o->balance)
        return NB_OK;
    NB_TRY(balance_s(x, err));
    try_s(x, best, "balance", 0);
    return NB_OK;
}

static nb_status smoothing_init(smoothing *x, const nb_transform_job *job, nb_point point,
                                nb_err *err)
{
    const nb_input_stats *stats = job->stats[point];
    *x = (smoothing){.job = job,
                     .point = point,
                     .sample = stats->sample,
                     .n_sample = stats->n_sample,
                     .n = nb_point_n_cols(job->config, point)};
    NB_TRY(nb_transform_bounds_find(&x->bounds, job, point, err));
    NB_TRY(nb_trial_init(&x->trial, job, point, MAX_ROWS, err));
    const int64_t rows = x->trial.most_rows, n = x->n, n_sample = x->n_sample;
    const int n_threads = nb_pool_n_threads(job->la->pool);
    NB_TRY(NB_ALLOC(&x->log_x, n, err));
    NB_TRY(NB_ALLOC(&x->log_w, n, err));
    NB_TRY(NB_ALLOC(&x->s, n, err));
    NB_TRY(NB_ALLOC(&x->best_s, n, err));
    NB_TRY(NB_ALLOC(&x->x, n_sample * n, err));
    NB_TRY(NB_ALLOC(&x->w, rows * n, err));
    NB_TRY(NB_ALLOC(&x->y, n_sample * rows, err));
    NB_TRY(NB_ALLOC(&x->row_sum, n_sample, err));
    NB_TRY(NB_ALLOC(&x->codes, n_threads * n, err));
    NB_TRY(NB_ALLOC(&x->scales, n_threads * n, err));
    NB_TRY(NB_ALLOC(&x->product, nb_matmul_scratch_bytes(n_sample, rows, n, n_threads), err));
    for (int i = 0; i < x->trial.n && n_sample > 0; i++) {
        const nb_trial_linear *l = &x->trial.linear[i];
        NB_TRY(NB_ALLOC(&x->want[i], n_sample * l->n_rows, err));
        product(x, x->sample, l->weight, l->n_rows, x->want[i]);
        x->trial.power[i] = squares(x, x->want[i], NULL, l->n_rows);
    }
    for (int64_t j = 0; j < n; j++)
        x->log_x[j] = (double)stats->max_abs[j];
    column_maxima(x, x->log_w);
    take_logs(x, x->log_x);
    take_logs(x, x->log_w);
    return NB_OK;
}

static void smoothing_free(smoothing *x)
{
    nb_trial_free(&x->trial);
    nb_transform_bounds_free(&x->bounds);
    for (int i = 0; i < NB_GROUP_LINEARS; i++)
        nb_free(x->want[i]);
    nb_free(x->log_x);
    nb_free(x->log_w);
    nb_free(x->s);
    nb_free(x->best_s);
    nb_free(x->x);
    nb_free(x->w);
    nb_free(x->y);
    nb_free(x->row_sum);
    nb_free(x->codes);
    nb_free(x->scales);
    nb_free(x->product);
}

static nb_status smooth_point(const nb_transform_job *job, nb_point point, const smooth_options *o,
                              nb_transform_result *result, nb_err *err)
{
    char *note = result->note[point];
    const size_t room = sizeof result->note[point];
    smoothing x;
    choice best = {0};
    nb_status s = smoothing_init(&x, job, point, err);
    if (s == NB_OK && nb_trial_is_void(&x.trial, note, room))
        goto done;
    if (s == NB_OK)
        s = search_s(&x, o, &best, err);
    if (s != NB_OK)
        goto done;
    result->before[point] = best.before;
    result->after[point] = best.loss;
    snprintf(note, room, "%s", best.moved ? best.name : "as it is");
    if (best.moved)
        s = nb_transform_move(job, point, x.best_s, err);
done:
    smoothing_free(&x);
    return s;
}

static nb_status smooth_apply_at(const nb_transform_job *job, nb_point point,
                                 nb_transform_result *result, nb_err *err)
{
    smooth_options o;
    NB_TRY(parse(&o, job->options, err));
    return smooth_point(job, point, &o, result, err);
}

/* Rows of weights, as they are and rounded; rounded inputs; outputs, wanted of each linear and got;
 * sums of pieces of rows; rows as they are read. */
static int64_t smooth_bytes_at(const nb_config *c, nb_point point, int n_threads)
{
    const int64_t n = nb_point_n_cols(c, point), t = NB_SAMPLE_ROWS;
    const int64_t rows = nb_trial_most_rows(c, point, MAX_ROWS);
    int n_linears;
    (void)nb_point_linears(point, &n_linears);
    return nb_trial_bytes(c, point, MAX_ROWS) + 4 * n * (rows + t) +
           4 * t * rows * (n_linears + 1) + nb_matmul_scratch_bytes(t, rows, n, n_threads) +
           nb_balance_bytes(n, rows > t ? rows : t) + nb_trial_strip_bytes(c);
}

static double smooth_rows_tried(const char *options, int64_t most_rows, int64_t n_rows)
{
    (void)options; /* each candidate is tried on the same rows */
    (void)most_rows;
    return (double)(n_rows < MAX_ROWS ? n_rows : MAX_ROWS);
}

const nb_transform nb_transform_smoothquant = {
    .name = "smoothquant",
    .source = "Xiao et al., arXiv:2211.10438",
    .summary = "smaller inputs and larger weights where one scale a token is too coarse",
    .needs = NB_STAT_MAGNITUDE | NB_STAT_SAMPLE,
    .check = smooth_check,
    .apply_at = smooth_apply_at,
    .bytes_at = smooth_bytes_at,
    .rows_tried = smooth_rows_tried,
};
