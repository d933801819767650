/* The guide in the walk: made before the first block, kept in the same state, asked what quantizing
 * a weight does to the model's predictions. */
#include "base/fpenv.h"
#include "quant/walk/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define PREDICT_ROWS 256

nb_status nb_walker_plan_guide(nb_walker *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    const unsigned sums = NB_STAT_HESSIAN | NB_STAT_CROSS | NB_STAT_MAGNITUDE;
    w->guide_plan = (nb_guide_plan){0};
    if (!job->guided)
        return NB_OK;
    if (job->by_outputs && !w->method->quantizer->by_outputs)
        return nb_fail(err, NB_USAGE,
                       "rows of method %s do not make up for each other's errors; those of gptq "
                       "and qronos can",
                       w->method->quantizer->name);
    if (((w->needs | w->transform_needs) & sums) == 0)
        return nb_fail(err, NB_USAGE,
                       "method %s makes no sums over tokens, in which a guide could weigh them",
                       job->method->quantizer->name);
    nb_guide_estimate(&w->guide_plan, &w->config, job->seqs, job->n_seqs, job->by_outputs,
                      nb_pool_n_threads(job->pool));
    if (w->guide_plan.memory == INT64_MAX)
        return nb_fail(err, NB_LIMIT, "calibration sequences are too long for a guide");
    w->plan.flops += w->guide_plan.flops;
    return NB_OK;
}

/* ---- the state ---- */

nb_status nb_walker_put_guide(const nb_walker *w, json_t *state, nb_err *err)
{
    char hash[20], moments[20];
    if (!w->job->guided)
        return NB_OK;
    snprintf(hash, sizeof hash, "%016" PRIx64, w->guide.hash);
    snprintf(moments, sizeof moments, "%016" PRIx64, w->guide.moments_hash);
    json_t *o = json_pack("{s:I, s:s, s:s}", "sequences", (json_int_t)w->guide.n_done, "hash", hash,
                          "outputs", moments);
    return json_object_set_new(state, "guide", o) == 0
               ? NB_OK
               : nb_fail(err, NB_MEMORY, "no memory for the state");
}

static bool read_hash(const json_t *from, uint64_t *hash)
{
    const char *text = json_string_value(from);
    if (text == NULL || strlen(text) != 16)
        return false;
    *hash = 0;
    for (int i = 0; i < 16; i++) {
        const char *digits = "0123456789abcdef", *at = strchr(digits, text[i]);
        if (at == NULL)
            return false;
        *hash = *hash << 4 | (uint64_t)(at - digits);
    }
    return true;
}

void nb_walker_take_guide(nb_walker *w, const json_t *state)
{
    const json_t *o = json_object_get(state, "guide");
    const json_int_t n = json_integer_value(json_object_get(o, "sequences"));
    uint64_t hash, moments;
    if (!w->job->guided || n < 0 || !read_hash(json_object_get(o, "hash"), &hash) ||
        !read_hash(json_object_get(o, "outputs"), &moments))
        return;
    w->guide.n_done = n;
    w->guide.hash = hash;
    w->guide.moments_hash = moments;
}

/* ---- making it ---- */

static nb_status keep(void *context, nb_err *err)
{
    return nb_walker_save(context, err);
}

nb_status nb_walker_make_guide(nb_walker *w, nb_err *err)
{
    const nb_walk_job *job = w->job;
    if (!job->guided)
        return NB_OK;
    snprintf(w->what, sizeof w->what, "guide");
    const nb_guide_job guide = {.store = job->store,
                                .pool = job->pool,
                                .kernels = job->kernels,
                                .seqs = job->seqs,
                                .n_seqs = job->n_seqs,
                                .dir = job->dir,
                                .seed = job->seed,
                                .outputs = job->by_outputs,
                                .progress = w->streams.progress,
                                .keep = keep,
                                .context = w};
    NB_TRY(nb_guide_make(&w->guide, &guide, err));
    w->streams.guide = &w->guide;
    return NB_OK;
}

/* ---- what it says ---- */

/* |E x|^2 summed over tokens, for rows of E: by second moments, or by their diagonal where there is
 * no more. */
static nb_status errors_of_rows(nb_walker *w, const nb_input_stats *stats, const nb_sym *h,
                                const float *e, int64_t n_rows, double *loss, nb_err *err)
{
    if (h->a != NULL)
        return nb_sym_loss_rows(&w->la, h, e, n_rows, loss, err);
    for (int64_t r = 0; r < n_rows; r++) {
        loss[r] = 0;
        for (int64_t c = 0; c < stats->n_cols; c++) {
            const double error = (double)e[r * stats->n_cols + c];
            loss[r] += error * error * stats->mean_square[c];
        }
        loss[r] *= (double)(stats->n_tokens + stats->n_held);
    }
    return NB_OK;
}

static nb_status sum_errors(nb_walker *w, int j, const nb_input_stats *stats, const nb_sym *h,
                            float *e, double *sum, nb_err *err)
{
    double loss[PREDICT_ROWS];
    const nb_mat *made = &w->made[j].mat;
    const int64_t n = made->n_cols;
    const nb_rows rows = nb_walker_rows(w, j);
    *sum = 0;
    for (int64_t row = 0; row < made->n_rows; row += PREDICT_ROWS) {
        const int64_t left = made->n_rows - row, m = left < PREDICT_ROWS ? left : PREDICT_ROWS;
        const float *weight;
        NB_TRY(nb_rows_get(&rows, n, row, m, e + PREDICT_ROWS * n, &weight, err));
        for (int64_t r = 0; r < m; r++)
            made->fmt->decode_row(made, row + r, e + r * n);
        for (int64_t i = 0; i < m * n; i++)
            e[i] = weight[i] - e[i];
        NB_TRY(errors_of_rows(w, stats, h, e, m, loss, err));
        for (int64_t r = 0; r < m; r++)
            *sum += loss[r];
    }
    return NB_OK;
}

nb_status nb_walker_predict(nb_walker *w, nb_point point, int j, const nb_input_stats *stats,
                            double *kl, nb_err *err)
{
    float *e;
    double sum;
    *kl = NAN;
    /* What chose the codes would flatter them. */
    const bool held = !nb_sym_is_empty(&stats->held_h);
    const nb_sym *h = held ? &stats->held_h : &stats->h;
    const int64_t n = held                          ? stats->n_held
                      : !nb_sym_is_empty(&stats->h) ? stats->n_tokens
                                                    : stats->n_tokens + stats->n_held;
    if (!w->job->guided || n == 0 || (nb_sym_is_empty(h) && stats->mean_square == NULL))
        return NB_OK;
    nb_sym woken = {0};
    NB_TRY(NB_ALLOC(&e, 2 * PREDICT_ROWS * stats->n_cols, err));
    nb_status s = nb_sym_rests(h) ? nb_sym_wake(&woken, h, err) : NB_OK;
    const uint64_t env = nb_fpenv_enter();
    if (s == NB_OK)
        s = sum_errors(w, j, stats, woken.a != NULL ? &woken : h, e, &sum, err);
    nb_fpenv_leave(env);
    nb_sym_free(&woken);
    nb_free(e);
    if (s == NB_OK)
        *kl = nb_guide_mean(&w->guide, w->layer, point) * sum / (2 * (double)n);
    return s;
}
