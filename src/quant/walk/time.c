/* How long a walk will take: floating-point operations by arithmetic, at the speed of a product
 * that is measured; codes by trying the method on a few rows of random weights. */
#include "quant/walk/walk.h"

#include "base/clock.h"
#include "base/rng.h"
#include "quant/inputs/stats.h"
#include "quant/pass/pace.h"
#include "quant/weight/room.h"

#include <math.h>
#include <string.h>

/* ---- codes ---- */

/* Wider points are tried at this width, and take as much more as the square of the ratio. */
#define TRIAL_COLS     2048
#define TRIAL_ROWS     64
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
    to.n_rows = 2 * TRIAL_ROWS;
    to.n_cols = n_cols;
    to.group_size = like->group_size >= like->n_cols ? n_cols : like->group_size;
    NB_TRY(nb_input_stats_init(&t->stats, n_cols, needs, 2 * TRIAL_TOKENS, err));
    NB_TRY(NB_ALLOC(&t->x, TRIAL_TOKENS * n_cols, err));
    NB_TRY(NB_ALLOC(&t->weight, 2 * TRIAL_ROWS * n_cols, err));
    fill(t->x, TRIAL_TOKENS * n_cols, 0);
    fill(t->weight, 2 * TRIAL_ROWS * n_cols, 1);
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
static nb_status encode_once(trial *t, int64_t n_rows, double *seconds, nb_err *err)
{
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

/* The best of a few, where they are short: other programs and a cold cache only add to it. */
static nb_status encode_rows(trial *t, int64_t n_rows, double *seconds, nb_err *err)
{
    double spent = 0, took;
    *seconds = 1e9;
    for (int i = 0; i < MAX_TRIALS && (i == 0 || spent < ENOUGH_SECONDS); i++) {
        NB_TRY(encode_once(t, n_rows, &took, err));
        *seconds = took < *seconds ? took : *seconds;
        spent += took;
    }
    return NB_OK;
}

/* A fixed part (factors) and one for each row. */
static nb_status try_linear(const nb_walk_job *job, const nb_weight *like, unsigned needs,
                            double *fixed, double *per_row, nb_err *err)
{
    trial t = {.job = job, .la = {.kernels = job->kernels, .pool = job->pool}};
    int64_t n_cols = like->n_cols;
    while (n_cols > TRIAL_COLS && n_cols % 2 == 0)
        n_cols /= 2;
    double few = 0, many = 0;
    nb_status s = open_trial(&t, like, n_cols, needs, err);
    if (s == NB_OK)
        s = encode_rows(&t, TRIAL_ROWS, &few, err);
    if (s == NB_OK)
        s = encode_rows(&t, 2 * TRIAL_ROWS, &many, err);
    close_trial(&t);
    const double wider = (double)like->n_cols / (double)n_cols;
    *per_row = (many > few ? many - few : many / 2) / TRIAL_ROWS * wider * wider;
    *fixed = (2 * few > many ? 2 * few - many : 0) * wider * wider * wider;
    return s;
}

/* Linears of one layer stand for all; those that read at one point share the fixed part. */
nb_status nb_walk_seconds(const nb_walk_job *job, const nb_walk_plan *plan, double *seconds,
                          nb_err *err)
{
    static const int first_of_point[NB_N_LINEARS] = {1, 0, 0, 1, 1, 0, 1};
    unsigned needs = job->method->quantizer->needs;
    double rate;
    NB_TRY(nb_pace_measure(job->kernels, job->pool, &rate, err));
    *seconds = plan->flops / (rate * NB_PACE_OF_FORWARD);
    if (job->method->quantizer->check != NULL)
        NB_TRY(job->method->quantizer->check(job->method, &needs, err));
    if ((needs & NB_STAT_BLOCK) != 0)
        return NB_OK;
    double layer = 0;
    for (int64_t i = 0; i < job->plan->n; i++) {
        const nb_weight *to = &job->plan->weights[i];
        static const char prefix[] = "model.layers.0.";
        if (job->plan->how[i] != NB_HOW_QUANTIZE ||
            strncmp(to->name, prefix, sizeof prefix - 1) != 0)
            continue;
        for (int j = 0; j < NB_N_LINEARS; j++) {
            const char *name = nb_linear_name((nb_linear_id)j);
            if (strncmp(to->name + sizeof prefix - 1, name, strlen(name)) != 0)
                continue;
            double fixed, per_row;
            NB_TRY(try_linear(job, to, needs, &fixed, &per_row, err));
            layer += per_row * (double)to->n_rows + (first_of_point[j] ? fixed : 0);
        }
    }
    *seconds += layer * (double)job->plan->config.n_layers;
    return NB_OK;
}
