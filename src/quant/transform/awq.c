/* AWQ, Lin et al., arXiv:2306.00978: channels whose inputs are large get larger weights, because a
 * group's rounding error does not grow with one of its weights; then each group's range is clipped
 * where that loses less than it gains.
 *
 * s_j = mean|x_j|^alpha, with `duo` over mean(|W_j| / largest of its group)^(1 - alpha), divided by
 * sqrt(max s * min s). The loss of s is the mean over the linears of a point of
 *
 *   tr(E H E^T) / tr(W H W^T),   E = W - Q(W s) / s,
 *
 * which is the squared error of their outputs on the calibration tokens, the paper's equation 4,
 * without going through the tokens again. Large matrices are tried on MAX_ROWS of their rows: but
 * most points of the grid on FEW_ROWS only, because rounding with searched scales is most of the
 * time, and the N_LOOKED best of these then on all. (Ranking them by the loss of plain rounding
 * would be cheaper still; it favours other points than searched scales do.) s = 1 comes first, and
 * the first of equals wins: the loss is never above that of plain rounding.
 * The paper's search for q, k, v looks behind the attention instead; ours does not run the block.
 */
#include "quant/transform/awq_clip.h"
#include "quant/transform/trial.h"

#include "kernel/math.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_ROWS 512
#define FEW_ROWS 64
#define N_LOOKED 6
#define MAX_GRID 100

typedef struct {
    bool clip;
    int grid;
    bool plain, duo; /* families of s that are tried */
} awq_options;

static nb_status parse(awq_options *out, const char *text, nb_err *err)
{
    *out = (awq_options){.clip = true, .grid = 20, .plain = true, .duo = true};
    for (nb_method_option o; nb_transform_option(&text, &o);) {
        const bool on = strcmp(o.value, "on") == 0, off = strcmp(o.value, "off") == 0;
        if (strcmp(o.name, "clip") == 0 && (on || off)) {
            out->clip = on;
        } else if (strcmp(o.name, "duo") == 0 && (on || off || strcmp(o.value, "both") == 0)) {
            out->duo = !off;
            out->plain = !on;
        } else if (strcmp(o.name, "grid") == 0) {
            const char *digit = o.value;
            out->grid = 0;
            for (; *digit >= '0' && *digit <= '9' && out->grid <= MAX_GRID; digit++)
                out->grid = out->grid * 10 + (*digit - '0');
            if (*digit != 0 || out->grid < 1 || out->grid > MAX_GRID)
                return nb_fail(err, NB_USAGE,
                               "option grid of transform awq is a number from 1 to %d, not '%s'",
                               MAX_GRID, o.value);
        } else {
            return nb_transform_no_option("awq", &o, "clip=on|off, duo=on|off|both, grid=N", err);
        }
    }
    return NB_OK;
}

static nb_status awq_check(const char *options, nb_err *err)
{
    awq_options o;
    return parse(&o, options, err);
}

/* ---- the search for s ---- */

typedef struct {
    const nb_transform_job *job;
    nb_point point;
    nb_trial all, few; /* `few` is empty where all rows are; their power is tr(W H W^T) */
    nb_transform_bounds bounds;
    const nb_sym *h;
    int64_t n;
    double *log_x, *log_w; /* [n], by source; -DBL_MAX: a channel without inputs */
    float *s, *best_s;     /* [n] */
    float *e;              /* [most_rows][n] */
    double *row_loss;      /* [most_rows] */
} search;

static double sum(const double *x, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += x[i];
    return s;
}

static nb_status loss_of_rows(search *x, const float *e, int64_t n_rows, double *out, nb_err *err)
{
    NB_TRY(nb_sym_loss_rows(x->job->la, x->h, e, n_rows, x->row_loss, err));
    *out = sum(x->row_loss, n_rows);
    return NB_OK;
}

typedef struct {
    const float *weight, *s;
    float *e;
    int64_t n;
} differing;

static void error_row(void *context, int64_t r, int thread)
{
    (void)thread;
    const differing *d = context;
    const float *w = d->weight + r * d->n;
    float *e = d->e + r * d->n;
    for (int64_t j = 0; j < d->n; j++)
        e[j] = w[j] - e[j] / d->s[j];
}

/* Of x->s, settled. Linears without any output do not count. */
static nb_status loss_of(search *x, nb_trial *on, double *out, nb_err *err)
{
    double total = 0;
    int count = 0;
    for (int i = 0; i < on->n; i++) {
        const nb_trial_linear *l = &on->linear[i];
        double loss;
        if (!(on->power[i] > 0))
            continue;
        nb_trial_round(on, i, x->s, x->e);
        nb_pool_run(x->job->la->pool, l->n_rows, error_row,
                    &(differing){l->weight, x->s, x->e, x->n});
        NB_TRY(loss_of_rows(x, x->e, l->n_rows, &loss, err));
        total += loss / on->power[i];
        count++;
    }
    *out = count > 0 ? total / count : 0;
    return NB_OK;
}

/* Means over the channels that one source feeds. */
static void share(const search *x, double *v)
{
    const nb_config *c = x->job->config;
    if (x->point != NB_AT_O)
        return;
    const int64_t per = c->n_heads / c->n_kv_heads;
    for (int64_t j = 0; j < x->n; j++) {
        if (j / c->head_dim % per != 0)
            continue;
        double mean = 0;
        for (int64_t i = 0; i < per; i++)
            mean += v[j + i * c->head_dim] / (double)per;
        for (int64_t i = 0; i < per; i++)
            v[j + i * c->head_dim] = mean;
    }
}

static void add_shares(const float *w, int64_t n, double *sum)
{
    float most = 0;
    for (int64_t j = 0; j < n; j++)
        most = fabsf(w[j]) > most ? fabsf(w[j]) : most;
    for (int64_t j = 0; j < n && most > 0; j++)
        sum[j] += (double)(fabsf(w[j]) / most);
}

/* Sums over rows of |w| / largest |w| of its group, over all linears of the point. */
static void weight_shares(const search *x, double *mean)
{
    for (int64_t j = 0; j < x->n; j++)
        mean[j] = 0;
    for (int i = 0; i < x->all.n; i++) {
        const nb_trial_linear *l = &x->all.linear[i];
        const int64_t len = l->has_grid ? l->grid.group_len : x->n;
        for (int64_t r = 0; r < l->n_rows; r++) {
            for (int64_t j = 0; j < x->n; j += len)
                add_shares(l->weight + r * x->n + j, x->n - j < len ? x->n - j : len, mean + j);
        }
    }
}

static void take_logs(double *v, int64_t n)
{
    double most = 0;
    for (int64_t j = 0; j < n; j++)
        most = v[j] > most ? v[j] : most;
    /* Far below the largest is as good as nothing, and must not take all of the range of s. */
    for (int64_t j = 0; j < n; j++)
        v[j] = v[j] > 0 ? nb_log64(v[j] > 1e-6 * most ? v[j] : 1e-6 * most) : -DBL_MAX;
}

/* A point of the grid, and what it costs. */
typedef struct {
    double alpha, loss;
    bool duo;
} candidate;

typedef struct {
    candidate at;
    double before;
    bool moved; /* or s stays 1 */
} choice;

static int list_candidates(const awq_options *o, candidate *out)
{
    int n = 0;
    for (int family = 0; family < 2; family++) {
        if (!(family == 0 ? o->plain : o->duo))
            continue;
        for (int i = family == 0; i < o->grid; i++)
            out[n++] = (candidate){.alpha = (double)i / o->grid, .duo = family == 1};
    }
    return n;
}

static nb_status loss_at(search *x, nb_trial *on, candidate *c, nb_err *err)
{
    nb_trial_scales(x->log_x, c->duo ? x->log_w : NULL, c->alpha, x->n, x->s);
    nb_transform_settle(x->job, &x->bounds, x->s);
    return loss_of(x, on, &c->loss, err);
}

/* Leaves those of least loss on few rows, in the order in which they were. Returns how many. */
static nb_status keep_best(search *x, candidate *c, int *n, nb_err *err)
{
    bool kept[2 * MAX_GRID] = {0};
    for (int i = 0; i < *n; i++)
        NB_TRY(loss_at(x, &x->few, &c[i], err));
    for (int k = 0; k < N_LOOKED; k++) {
        int best = -1;
        for (int i = 0; i < *n; i++) {
            if (!kept[i] && (best < 0 || c[i].loss < c[best].loss))
                best = i;
        }
        kept[best] = true;
    }
    int count = 0;
    for (int i = 0; i < *n; i++) {
        if (kept[i])
            c[count++] = c[i];
    }
    *n = count;
    return NB_OK;
}

static nb_status search_s(search *x, const awq_options *o, choice *best, nb_err *err)
{
    candidate c[2 * MAX_GRID];
    int n = list_candidates(o, c);
    for (int64_t j = 0; j < x->n; j++)
        x->s[j] = 1;
    *best = (choice){0};
    NB_TRY(loss_of(x, &x->all, &best->before, err));
    best->at.loss = best->before;
    if (x->few.n > 0 && n > N_LOOKED)
        NB_TRY(keep_best(x, c, &n, err));
    for (int i = 0; i < n; i++) {
        NB_TRY(loss_at(x, &x->all, &c[i], err));
        if (!(c[i].loss < best->at.loss))
            continue;
        best->at = c[i];
        best->moved = true;
        memcpy(x->best_s, x->s, (size_t)x->n * sizeof *x->s);
    }
    return NB_OK;
}

static nb_status trial_init(search *x, nb_trial *on, int64_t max_rows, nb_err *err)
{
    NB_TRY(nb_trial_init(on, x->job, x->point, max_rows, err));
    for (int i = 0; i < on->n; i++) {
        const nb_trial_linear *l = &on->linear[i];
        NB_TRY(loss_of_rows(x, l->weight, l->n_rows, &on->power[i], err));
    }
    return NB_OK;
}

static nb_status search_init(search *x, const nb_transform_job *job, nb_point point, nb_err *err)
{
    const nb_input_stats *stats = job->stats[point];
    *x = (search){
        .job = job, .point = point, .h = &stats->h, .n = nb_point_n_cols(job->config, point)};
    const int64_t rows = nb_trial_most_rows(job->config, point, MAX_ROWS);
    NB_TRY(nb_transform_bounds_find(&x->bounds, job, point, err));
    NB_TRY(NB_ALLOC(&x->log_x, x->n, err));
    NB_TRY(NB_ALLOC(&x->log_w, x->n, err));
    NB_TRY(NB_ALLOC(&x->s, x->n, err));
    NB_TRY(NB_ALLOC(&x->best_s, x->n, err));
    NB_TRY(NB_ALLOC(&x->e, rows * x->n, err));
    NB_TRY(NB_ALLOC(&x->row_loss, rows, err));
    NB_TRY(trial_init(x, &x->all, MAX_ROWS, err));
    if (x->all.most_rows > FEW_ROWS)
        NB_TRY(trial_init(x, &x->few, FEW_ROWS, err));
    memcpy(x->log_x, stats->mean_abs, (size_t)x->n * sizeof *x->log_x);
    weight_shares(x, x->log_w);
    share(x, x->log_x);
    share(x, x->log_w);
    take_logs(x->log_x, x->n);
    take_logs(x->log_w, x->n);
    return NB_OK;
}

static void search_free(search *x)
{
    nb_trial_free(&x->all);
    nb_trial_free(&x->few);
    nb_transform_bounds_free(&x->bounds);
    nb_free(x->log_x);
    nb_free(x->log_w);
    nb_free(x->s);
    nb_free(x->best_s);
    nb_free(x->e);
    nb_free(x->row_loss);
}

/* ---- a point ---- */

/* The rotations after q and k make their errors hard to foretell: the paper leaves them alone. */
static nb_status clip(const search *x, char *note, size_t room, nb_err *err)
{
    double share = 0;
    int count = 0;
    for (int i = 0; i < x->all.n; i++) {
        const nb_linear_id id = x->all.linear[i].id;
        double clipped;
        if (id == NB_LINEAR_Q || id == NB_LINEAR_K)
            continue;
        NB_TRY(nb_awq_clip(x->job, id, x->h, &clipped, err));
        share += clipped;
        count++;
    }
    const size_t len = strlen(note);
    if (count > 0)
        snprintf(note + len, room - len, ", %.0f %% of groups clipped", 100 * share / count);
    return NB_OK;
}

static nb_status awq_point(const nb_transform_job *job, nb_point point, const awq_options *o,
                           nb_transform_result *result, nb_err *err)
{
    char *note = result->note[point];
    const size_t room = sizeof result->note[point];
    search x;
    choice best = {0};
    nb_status s = search_init(&x, job, point, err);
    if (s == NB_OK && nb_trial_is_void(&x.all, note, room))
        goto done;
    if (s == NB_OK)
        s = search_s(&x, o, &best, err);
    if (s != NB_OK)
        goto done;
    result->before[point] = best.before;
    result->after[point] = best.at.loss;
    snprintf(note, room, "alpha %.3g%s", best.at.alpha, best.at.duo ? ", duo" : "");
    if (best.moved)
        NB_TRY_GOTO(s, nb_transform_move(job, point, x.best_s, err));
    if (o->clip && !nb_trial_searches(job->method))
        s = clip(&x, note, room, err);
done:
    search_free(&x);
    return s;
}

static nb_status awq_apply_at(const nb_transform_job *job, nb_point point,
                              nb_transform_result *result, nb_err *err)
{
    awq_options o;
    NB_TRY(parse(&o, job->options, err));
    return awq_point(job, point, &o, result, err);
}

/* Rows of all and of few, what rounding leaves of them, rows as they are read, and what the losses
 * are made with; a handful of vectors. Clipping takes less, and comes after. */
static int64_t awq_bytes_at(const nb_config *c, nb_point point, int n_threads)
{
    const int64_t n = nb_point_n_cols(c, point);
    return nb_trial_bytes(c, point, MAX_ROWS) + nb_trial_bytes(c, point, FEW_ROWS) +
           4 * nb_trial_most_rows(c, point, MAX_ROWS) * n + nb_trial_strip_bytes(c) +
           (n / NB_SYM_BLOCK + 2 + n_threads) * (128 << 10) + 64 * n;
}

/* s = 1, then all candidates: on few rows, and the best of them on all. */
static double awq_rows_tried(const char *options, int64_t most_rows, int64_t n_rows)
{
    awq_options o;
    candidate c[2 * MAX_GRID];
    nb_err ignored = {0};
    if (parse(&o, options, &ignored) != NB_OK)
        return 0;
    const int64_t n = list_candidates(&o, c), all = n_rows < MAX_ROWS ? n_rows : MAX_ROWS;
    const int64_t few = n_rows < FEW_ROWS ? n_rows : FEW_ROWS;
    const bool picks = most_rows > FEW_ROWS && n > N_LOOKED;
    return (double)((1 + (picks ? N_LOOKED : n)) * all + (picks ? n * few : 0));
}

const nb_transform nb_transform_awq = {
    .name = "awq",
    .source = "Lin et al., arXiv:2306.00978",
    .summary = "larger weights where inputs are large, by the least error of the outputs",
    .needs = NB_STAT_HESSIAN | NB_STAT_MAGNITUDE,
    .check = awq_check,
    .apply_at = awq_apply_at,
    .bytes_at = awq_bytes_at,
    .rows_tried = awq_rows_tried,
    .without_last = "clip=off",
};
