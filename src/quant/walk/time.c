/* How long a walk will take: floating-point operations by arithmetic, at the speed of a product
 * that is measured; codes by trying the method on a few rows of random weights. */
#include "quant/walk/walk.h"

#include "base/clock.h"
#include "base/rng.h"
#include "quant/encode/gptq_shrink.h"
#include "quant/inputs/stats.h"
#include "quant/pass/pace.h"
#include "quant/weight/room.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- codes ---- */

/* Wider points are tried at this width, and take as much more as the square of the ratio. */
#define TRIAL_COLS     2048
#define TRIAL_ROWS     64
#define MOST_ROWS      (NB_GPTQ_SAMPLE_ROWS + 2 * TRIAL_ROWS)
#define TRIAL_TOKENS   256
#define MAX_TRIALS     5
#define ENOUGH_SECONDS 0.2

typedef struct {
    const nb_walk_job *job;
    nb_algebra la;
    nb_input_stats stats;
    float *x, *weight;
    nb_loaded made;
} trial;

static void fill(float *x, int64_t n, uint64_t stream)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(nb_rng_uniform(7, stream, (uint64_t)i) - 0.5);
}

static nb_status open_trial(trial *t, const nb_weight *like, int64_t n_cols, unsigned needs,
                            nb_err *err)
{
    nb_weight to = *like;
    to.n_rows = MOST_ROWS;
    to.n_cols = n_cols;
    to.group_size = like->group_size >= like->n_cols ? n_cols : like->group_size;
    NB_TRY(nb_input_stats_init(&t->stats, n_cols, needs, 2 * TRIAL_TOKENS, err));
    NB_TRY(NB_ALLOC(&t->x, TRIAL_TOKENS * n_cols, err));
    NB_TRY(NB_ALLOC(&t->weight, MOST_ROWS * n_cols, err));
    fill(t->x, TRIAL_TOKENS * n_cols, 0);
    fill(t->weight, MOST_ROWS * n_cols, 1);
    for (int held = 0; held < 2; held++)
        NB_TRY(
            nb_input_stats_add(&t->stats, &t->la, t->x, t->x, NULL, TRIAL_TOKENS, held != 0, err));
    nb_input_stats_finish(&t->stats);
    return nb_room_for(&t->made, &to, err);
}

static void close_trial(trial *t)
{
    nb_input_stats_free(&t->stats);
    nb_free(t->x);
    nb_free(t->weight);
    nb_loaded_free(&t->made);
    nb_algebra_free(&t->la);
}

/* Seconds for the first n_rows rows, once. */
static nb_status encode_once(void *context, int64_t n_rows, double *seconds, nb_err *err)
{
    trial *t = context;
    const nb_quantizer *q = t->job->method->quantizer;
    nb_mat out = t->made.mat;
    out.n_rows = n_rows;
    nb_group_job group = {.method = t->job->method, .stats = &t->stats, .la = &t->la, .n = 1};
    group.linear[0].name = "trial";
    group.linear[0].weight = t->weight;
    group.linear[0].n_rows = n_rows;
    group.linear[0].out = &out;
    const nb_quant_job rows = {
        .method = t->job->method, .weight = t->weight, .n_rows = n_rows, .n_cols = out.n_cols};
    nb_group_result result = {0};
    const double start = nb_clock();
    NB_TRY(q->encode_group != NULL ? q->encode_group(&group, &result, err)
                                   : q->encode_rows(&rows, &out, err));
    *seconds = nb_clock() - start;
    return NB_OK;
}

typedef nb_status trial_fn(void *trial, int64_t n_rows, double *seconds, nb_err *err);

/* The best of a few, where they are short: other programs and a cold cache only add to it. */
static nb_status best_of(trial_fn *once, void *t, int64_t n_rows, double *seconds, nb_err *err)
{
    double spent = 0, took;
    *seconds = 1e9;
    for (int i = 0; i < MAX_TRIALS && (i == 0 || spent < ENOUGH_SECONDS); i++) {
        NB_TRY(once(t, n_rows, &took, err));
        *seconds = took < *seconds ? took : *seconds;
        spent += took;
    }
    return NB_OK;
}

/* A fixed part (factors); one for each of the first rows, which candidates are compared on as well;
 * one for each of the others. */
typedef struct {
    nb_weight like;
    double fixed, per_first, per_row;
} pace;

static double slope(double few, double many, int64_t n_rows)
{
    return (many > few ? many - few : 0) / (double)n_rows;
}

static nb_status try_linear(const nb_walk_job *job, const nb_weight *like, unsigned needs,
                            pace *out, nb_err *err)
{
    static const int64_t rows[4] = {TRIAL_ROWS, 2 * TRIAL_ROWS, NB_GPTQ_SAMPLE_ROWS, MOST_ROWS};
    trial t = {.job = job, .la = {.kernels = job->kernels, .pool = job->pool}};
    int64_t n_cols = like->n_cols;
    while (n_cols > TRIAL_COLS && n_cols % 2 == 0)
        n_cols /= 2;
    double took[4] = {0};
    nb_status s = open_trial(&t, like, n_cols, needs, err);
    for (int i = 0; i < 4 && s == NB_OK; i++)
        s = best_of(encode_once, &t, rows[i], &took[i], err);
    close_trial(&t);
    const double wider = (double)like->n_cols / (double)n_cols, square = wider * wider;
    *out = (pace){
        .like = *like,
        .fixed = (2 * took[0] > took[1] ? 2 * took[0] - took[1] : 0) * wider * square,
        .per_first = slope(took[0], took[1], rows[1] - rows[0]) * square,
        .per_row = slope(took[2], took[3], rows[3] - rows[2]) * square,
    };
    return s;
}

/* What is encoded alike takes as long. */
static bool is_like(const nb_weight *a, const nb_weight *b)
{
    return a->n_cols == b->n_cols && a->fmt == b->fmt && a->group_size == b->group_size &&
           a->symmetric == b->symmetric && a->nested == b->nested && a->scale_rows == b->scale_rows;
}

static double seconds_of(const pace *p, int64_t n_rows, bool first_of_point)
{
    const int64_t first = n_rows < NB_GPTQ_SAMPLE_ROWS ? n_rows : NB_GPTQ_SAMPLE_ROWS;
    return p->per_first * (double)first + p->per_row * (double)(n_rows - first) +
           (first_of_point ? p->fixed : 0);
}

/* ---- transforms ---- */

/* A block of which only down and what feeds it are there. */
typedef struct {
    const nb_walk_job *job;
    nb_algebra la;
    nb_config config;
    nb_input_stats stats;
    nb_weight to;
    const char *options;
    float *x, *down, *up;
} smoothed;

static nb_status open_smoothed(smoothed *t, int64_t n_cols, nb_err *err)
{
    const nb_walk_job *job = t->job;
    NB_TRY(nb_input_stats_init(&t->stats, n_cols, job->transform->needs | NB_STAT_MAGNITUDE,
                               2 * TRIAL_TOKENS, err));
    NB_TRY(NB_ALLOC(&t->x, 2 * TRIAL_TOKENS * n_cols, err));
    NB_TRY(NB_ALLOC(&t->down, TRIAL_ROWS * n_cols, err));
    NB_TRY(NB_ALLOC(&t->up, TRIAL_ROWS * n_cols, err));
    fill(t->x, 2 * TRIAL_TOKENS * n_cols, 0);
    NB_TRY(nb_input_stats_add(&t->stats, &t->la, t->x, t->x, NULL, 2 * TRIAL_TOKENS, false, err));
    nb_input_stats_finish(&t->stats);
    return NB_OK;
}

static void close_smoothed(smoothed *t)
{
    nb_input_stats_free(&t->stats);
    nb_free(t->x);
    nb_free(t->down);
    nb_free(t->up);
    nb_algebra_free(&t->la);
}

static nb_status smooth_once(void *context, int64_t n_rows, double *seconds, nb_err *err)
{
    smoothed *t = context;
    t->config = (nb_config){
        .n_heads = 1, .n_kv_heads = 1, .head_dim = n_rows, .d_model = n_rows, .d_ff = t->to.n_cols};
    t->to.n_rows = n_rows;
    fill(t->down, n_rows * t->to.n_cols, 1);
    fill(t->up, n_rows * t->to.n_cols, 2);
    nb_transform_job job = {
        .config = &t->config, .la = &t->la, .method = t->job->method, .options = t->options};
    job.weight[NB_LINEAR_DOWN] = t->down;
    job.weight[NB_LINEAR_UP] = t->up;
    job.to[NB_LINEAR_DOWN] = job.to[NB_LINEAR_UP] = &t->to;
    job.stats[NB_AT_DOWN] = &t->stats;
    nb_transform_result r = nb_transform_result_none();
    const double start = nb_clock();
    NB_TRY(t->job->transform->apply_at(&job, NB_AT_DOWN, &r, err));
    *seconds = nb_clock() - start;
    return NB_OK;
}

/* For a row that is tried, and for one that is gone through once more. */
static nb_status time_rows(smoothed *t, double *tried, double *last, nb_err *err)
{
    char without[256];
    const nb_transform *transform = t->job->transform;
    double few, many, whole = 0;
    t->options = t->job->transform_options;
    if (transform->without_last != NULL) {
        NB_TRY(best_of(smooth_once, t, TRIAL_ROWS, &whole, err));
        snprintf(without, sizeof without, "%.200s%s%s", t->options, t->options[0] != 0 ? "," : "",
                 transform->without_last);
        t->options = without;
    }
    NB_TRY(best_of(smooth_once, t, TRIAL_ROWS / 2, &few, err));
    NB_TRY(best_of(smooth_once, t, TRIAL_ROWS, &many, err));
    const double rows = transform->rows_tried(t->options, TRIAL_ROWS, TRIAL_ROWS) -
                        transform->rows_tried(t->options, TRIAL_ROWS / 2, TRIAL_ROWS / 2);
    *tried = many > few && rows > 0 ? (many - few) / rows : 0;
    *last = whole > many ? (whole - many) / TRIAL_ROWS : 0;
    return NB_OK;
}

static nb_status try_transform(const nb_walk_job *job, const nb_weight *like, double *tried,
                               double *last, nb_err *err)
{
    smoothed t = {.job = job, .la = {.kernels = job->kernels, .pool = job->pool}, .to = *like};
    while (t.to.n_cols > TRIAL_COLS && t.to.n_cols % 2 == 0)
        t.to.n_cols /= 2;
    t.to.group_size = like->group_size >= like->n_cols ? t.to.n_cols : like->group_size;
    nb_status s = open_smoothed(&t, t.to.n_cols, err);
    if (s == NB_OK)
        s = time_rows(&t, tried, last, err);
    close_smoothed(&t);
    const double wider = (double)like->n_cols / (double)t.to.n_cols;
    *tried *= wider * wider;
    *last *= wider;
    return s;
}

/* One linear of a point stands for all that read there. */
static nb_status transform_seconds(const nb_walk_job *job, double *seconds, nb_err *err)
{
    const nb_config *c = &job->plan->config;
    for (int p = 0; p < NB_N_POINTS; p++) {
        int n;
        const int first = (int)nb_point_linears((nb_point)p, &n);
        int64_t most = 0;
        double tried = 0, last = 0;
        bool known = false;
        for (int j = first; j < first + n; j++)
            most = nb_linear_n_rows(c, (nb_linear_id)j) > most
                       ? nb_linear_n_rows(c, (nb_linear_id)j)
                       : most;
        for (int j = first; j < first + n; j++) {
            const int64_t i = nb_plan_linear(job->plan, 0, (nb_linear_id)j);
            if (i < 0 || job->plan->how[i] != NB_HOW_QUANTIZE)
                continue;
            const nb_weight *to = &job->plan->weights[i];
            if (!known)
                NB_TRY(try_transform(job, to, &tried, &last, err));
            known = true;
            const double rows =
                job->transform->rows_tried(job->transform_options, most, to->n_rows);
            const bool is_last = j != NB_LINEAR_Q && j != NB_LINEAR_K;
            *seconds +=
                (double)c->n_layers * (rows * tried + (is_last ? last : 0) * (double)to->n_rows);
        }
    }
    return NB_OK;
}

/* ---- all ---- */

/* Linears of one layer stand for all; those that read at one point share the fixed part. */
nb_status nb_walk_seconds(const nb_walk_job *job, const nb_walk_plan *plan, double *seconds,
                          nb_err *err)
{
    static const bool first_of_point[NB_N_LINEARS] = {true, false, false, true, true, false, true};
    unsigned needs = job->method->quantizer->needs;
    double rate;
    NB_TRY(nb_pace_measure(job->kernels, job->pool, &rate, err));
    *seconds = plan->flops / (rate * NB_PACE_OF_FORWARD);
    if (job->transform != NULL)
        NB_TRY(transform_seconds(job, seconds, err));
    if (job->method->quantizer->check != NULL)
        NB_TRY(job->method->quantizer->check(job->method, &needs, err));
    if ((needs & NB_STAT_BLOCK) != 0)
        return NB_OK;
    double layer = 0;
    pace known[NB_N_LINEARS];
    int n_known = 0;
    for (int j = 0; j < NB_N_LINEARS; j++) {
        const int64_t i = nb_plan_linear(job->plan, 0, (nb_linear_id)j);
        if (i < 0 || job->plan->how[i] != NB_HOW_QUANTIZE)
            continue;
        const nb_weight *to = &job->plan->weights[i];
        int k = 0;
        while (k < n_known && !is_like(&known[k].like, to))
            k++;
        if (k == n_known)
            NB_TRY(try_linear(job, to, needs, &known[n_known++], err));
        layer += seconds_of(&known[k], to->n_rows, first_of_point[j]);
    }
    *seconds += layer * (double)job->plan->config.n_layers;
    return NB_OK;
}
