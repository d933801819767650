/* What is told of each linear of a walk: how far its weights and its outputs are from what they
 * were, and whether the held-out text moves its inputs as the rest does. Nothing here has a part in
 * choosing codes. */
#include "base/fpenv.h"
#include "kernel/matmul.h"
#include "quant/walk/weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- coverage ---- */

static double total_of(const nb_input_stats *s, int64_t c)
{
    if (s->square != NULL)
        return s->square[c];
    return s->mean_square != NULL ? s->mean_square[c] * (double)s->n_tokens : nb_sym_diag(&s->h, c);
}

/* Where there is one sum for all tokens: what is held out, and what is left without it. */
static nb_status compare_squares(nb_coverage *out, const nb_input_stats *s, nb_err *err)
{
    double *rest;
    NB_TRY(NB_ALLOC(&rest, s->n_cols, err));
    for (int64_t c = 0; c < s->n_cols; c++) {
        const double total = total_of(s, c), left = total - s->held_square[c];
        rest[c] = left > 1e-12 * total ? left : 0; /* else rounding */
    }
    *out = (nb_coverage){.known = true,
                         .of = nb_calib_coverage_of_squares(rest, s->n_tokens - s->n_seen_held,
                                                            s->held_square, s->n_seen_held,
                                                            s->n_cols)};
    nb_free(rest);
    return NB_OK;
}

nb_status nb_walker_look(nb_walker *w, nb_point point, nb_err *err)
{
    const nb_input_stats *s = &w->stats[point];
    nb_coverage *out = &w->coverage[point];
    *out = (nb_coverage){0};
    if (nb_sym_rests(&s->held_h) && s->n_tokens > 0) /* their diagonals are there */
        *out = (nb_coverage){.known = true,
                             .of = nb_calib_coverage_of_squares(
                                 s->h.diag, s->n_tokens, s->held_h.diag, s->n_held, s->n_cols)};
    else if (s->held_h.a != NULL && s->n_tokens > 0)
        *out = (nb_coverage){
            .known = true,
            .of = nb_calib_coverage_of_moments(&s->h, s->n_tokens, &s->held_h, s->n_held)};
    else if (s->held_square != NULL && s->n_seen_held > 0 && s->n_seen_held < s->n_tokens)
        return compare_squares(out, s, err);
    return NB_OK;
}

static json_t *coverage_json(const nb_coverage *c)
{
    json_t *o = json_pack("{s:I}", "one_sided", (json_int_t)c->of.n_one_sided);
    int bad = o == NULL;
    if (bad == 0 && isfinite(c->of.log_ratio))
        bad = json_object_set_new(o, "log_ratio", json_real(c->of.log_ratio));
    if (bad == 0 && isfinite(c->of.moments))
        bad = json_object_set_new(o, "moments", json_real(c->of.moments));
    if (bad == 0)
        return o;
    json_decref(o);
    return NULL;
}

/* ---- weights ---- */

#define ROWS_PER_CHUNK 16

typedef struct {
    const nb_mat *made;
    int64_t begin, end; /* rows at hand */
    const float *was;   /* of them */
    float *room;        /* [n_threads][n_cols] */
    nb_error_sum *sums;
} differences;

static void sum_row(const differences *d, int64_t row, float *is)
{
    const int64_t n = d->made->n_cols;
    const float *was = d->was + (row - d->begin) * n;
    nb_error_sum *sum = &d->sums[row];
    d->made->fmt->decode_row(d->made, row, is);
    for (int64_t c = 0; c < n; c++) {
        const double error = fabs((double)is[c] - (double)was[c]);
        sum->max = error > sum->max ? error : sum->max;
        sum->square += error * error;
        sum->power += (double)was[c] * (double)was[c];
    }
}

static void sum_rows(void *context, int64_t chunk, int thread)
{
    const differences *d = context;
    const int64_t begin = d->begin + chunk * ROWS_PER_CHUNK;
    for (int64_t r = begin; r < begin + ROWS_PER_CHUNK && r < d->end; r++)
        sum_row(d, r, d->room + thread * d->made->n_cols);
}

/* Rows are added in their order, whatever the threads. */
static nb_status weight_error(nb_walker *w, int j, nb_error_sum *out, nb_err *err)
{
    const nb_mat *made = &w->made[j].mat;
    const int64_t n = made->n_cols, strip = nb_strip_rows(made->n_rows, n);
    const nb_rows rows = nb_walker_rows(w, j);
    differences d = {.made = made};
    float *was = NULL;
    nb_status s;
    *out = (nb_error_sum){0};
    NB_TRY_GOTO(s, NB_ALLOC(&d.room, nb_pool_n_threads(w->job->pool) * made->n_cols, err));
    NB_TRY_GOTO(s, NB_ALLOC(&d.sums, made->n_rows, err));
    if (rows.all == NULL)
        NB_TRY_GOTO(s, NB_ALLOC(&was, strip * n, err));
    for (d.begin = 0; d.begin < made->n_rows; d.begin = d.end) {
        d.end = d.begin + strip < made->n_rows ? d.begin + strip : made->n_rows;
        const int64_t m = d.end - d.begin;
        NB_TRY_GOTO(s, nb_rows_get(&rows, n, d.begin, m, was, &d.was, err));
        nb_pool_run(w->job->pool, (m + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK, sum_rows, &d);
    }
    for (int64_t r = 0; r < made->n_rows; r++)
        nb_error_sum_add(out, &d.sums[r]);
done:
    nb_free(was);
    nb_free(d.room);
    nb_free(d.sums);
    return s;
}

/* ---- outputs ---- */

/* Rows of inputs are taken from the sample: about one of 128 tokens, so that looking costs a
 * hundredth of a forward pass, and no more than say what there is to say. */
#define TOKENS_A_ROW 128
#define MOST_ROWS    128
#define LEAST_ROWS   16
#define OUTPUTS      256 /* that are made at a time */

static int64_t rows_wanted(const nb_input_stats *s)
{
    const int64_t n = s->n_expected / TOKENS_A_ROW;
    return n < LEAST_ROWS ? LEAST_ROWS : n > MOST_ROWS ? MOST_ROWS : n;
}

/* Every sixteenth row of a long sample is the first token of a sequence (inputs/stats.c), and those
 * are like no others: rows are taken from between. */
static int64_t take_rows(float *to, const nb_input_stats *s)
{
    int64_t step = 1, n = 0;
    while (s->n_sample / (2 * step) >= rows_wanted(s))
        step *= 2;
    for (int64_t r = step > 1; r < s->n_sample && n < MOST_ROWS; r += step)
        memcpy(to + n++ * s->n_cols, s->sample + r * s->n_cols, (size_t)s->n_cols * sizeof *to);
    return n;
}

static double square_of(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

typedef struct {
    float *x, *errors, *y, *was;
    uint8_t *scratch;
} room;

/* Sums of squares of what outputs are, and of what they are off by. */
static nb_status sum_outputs(nb_walker *w, int j, const room *to, int64_t m, double *power,
                             double *square, nb_err *err)
{
    const nb_rows rows = nb_walker_rows(w, j);
    const nb_mat *made = &w->made[j].mat;
    const int64_t n = made->n_cols;
    for (int64_t row = 0; row < made->n_rows; row += OUTPUTS) {
        const int64_t left = made->n_rows - row, n_out = left < OUTPUTS ? left : OUTPUTS;
        const float *was;
        NB_TRY(nb_rows_get(&rows, n, row, n_out, to->was, &was, err));
        nb_matmul_job product = {.c = to->y,
                                 .ldc = n_out,
                                 .m = m,
                                 .n = n_out,
                                 .depth = n,
                                 .a = {to->x, n, 1},
                                 .b = {was, 1, n}};
        nb_matmul(w->job->kernels, w->job->pool, &product, to->scratch);
        *power += square_of(to->y, m * n_out);
        for (int64_t r = 0; r < n_out; r++)
            made->fmt->decode_row(made, row + r, to->errors + r * n);
        for (int64_t i = 0; i < n_out * n; i++)
            to->errors[i] = was[i] - to->errors[i];
        product.b.p = to->errors;
        nb_matmul(w->job->kernels, w->job->pool, &product, to->scratch);
        *square += square_of(to->y, m * n_out);
    }
    return NB_OK;
}

/* |X (W - W')^T|^2 / |X W^T|^2 over rows X of the sample; NaN where that is no number. */
static nb_status output_error(nb_walker *w, int j, const nb_input_stats *stats, double *out,
                              nb_err *err)
{
    const int64_t n = stats->n_cols;
    const size_t n_scratch =
        (size_t)nb_matmul_scratch_bytes(MOST_ROWS, OUTPUTS, n, nb_pool_n_threads(w->job->pool));
    room to = {0};
    nb_status s;
    *out = NAN;
    if (stats->sample == NULL || stats->n_sample == 0)
        return NB_OK;
    NB_TRY_GOTO(s, NB_ALLOC(&to.x, MOST_ROWS * n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&to.errors, OUTPUTS * n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&to.y, MOST_ROWS * OUTPUTS, err));
    NB_TRY_GOTO(s, NB_ALLOC(&to.scratch, n_scratch, err));
    if (w->weight[j].values == NULL)
        NB_TRY_GOTO(s, NB_ALLOC(&to.was, OUTPUTS * n, err));
    double power = 0, square = 0;
    NB_TRY_GOTO(s, sum_outputs(w, j, &to, take_rows(to.x, stats), &power, &square, err));
    *out = power > 0 && isfinite(power) ? square / power : NAN;
done:
    nb_free(to.x);
    nb_free(to.errors);
    nb_free(to.y);
    nb_free(to.was);
    nb_free(to.scratch);
    return s;
}

/* ---- what is told ---- */

/* An object that was told of the same weight of this block: before it was tuned. */
static json_t *told_before(const nb_walker *w, const char *name)
{
    const size_t n = json_array_size(w->result->layers);
    for (size_t i = n; i > 0 && n - i < NB_N_LINEARS + NB_N_POINTS; i--) {
        json_t *o = json_array_get(w->result->layers, i - 1);
        const char *its = json_string_value(json_object_get(o, "name"));
        if (its != NULL && strcmp(its, name) == 0)
            return o;
    }
    return NULL;
}

/* One object a weight: errors are of what it has become, the time is of all. */
static int retell(json_t *before, json_t *now)
{
    static const char *const gone[] = {"loss", "held_out_loss", "predicted_kl"};
    const char *first = json_string_value(json_object_get(before, "note"));
    const char *second = json_string_value(json_object_get(now, "note"));
    const double seconds = json_number_value(json_object_get(before, "seconds")) +
                           json_number_value(json_object_get(now, "seconds"));
    char note[280];
    int bad = json_object_set_new(now, "seconds", json_real(seconds));
    if (first != NULL && second != NULL) {
        snprintf(note, sizeof note, "%s; %s", first, second);
        bad |= json_object_set_new(now, "note", json_string(note));
    }
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++)
        (void)json_object_del(before, gone[i]);
    return bad | json_object_update(before, now);
}

static json_t *object_of(const nb_walker *w, nb_point point, int j, const nb_walker_said *said,
                         double loss, const nb_error_sum *error)
{
    const nb_weight *to = &w->job->plan->weights[w->index[j]];
    const int64_t n = to->n_rows * to->n_cols;
    json_t *o =
        json_pack("{s:s, s:s, s:I, s:I, s:f}", "name", to->name, "format", to->fmt->name, "params",
                  (json_int_t)n, "bytes", (json_int_t)to->bytes, "seconds", said->seconds);
    const struct {
        const char *key;
        double value;
    } numbers[] = {
        {"loss", loss},
        {"held_out_loss", said->held_loss},
        {"predicted_kl", said->predicted_kl},
        {"rms_error", nb_error_sum_rms(error)},
        {"max_error", error->max},
        {"weight_rms", n > 0 ? sqrt(error->power / (double)n) : NAN},
    };
    int bad = o == NULL;
    for (size_t i = 0; bad == 0 && i < sizeof numbers / sizeof *numbers; i++) {
        if (isfinite(numbers[i].value))
            bad = json_object_set_new(o, numbers[i].key, json_real(numbers[i].value));
    }
    if (bad == 0 && said->note != NULL && said->note[0] != 0)
        bad = json_object_set_new(o, "note", json_string(said->note));
    if (bad == 0 && said->fell_back)
        bad = json_object_set_new(o, "fell_back", json_true());
    if (bad == 0 && w->coverage[point].known)
        bad = json_object_set_new(o, "coverage", coverage_json(&w->coverage[point]));
    if (bad == 0)
        return o;
    json_decref(o);
    return NULL;
}

nb_status nb_walker_tell(nb_walker *w, nb_point point, int j, const nb_walker_said *said,
                         nb_err *err)
{
    nb_error_sum error;
    double loss = said->loss;
    nb_status s = NB_OK;
    const uint64_t env = nb_fpenv_enter();
    if (!isfinite(loss))
        s = output_error(w, j, &w->stats[point], &loss, err);
    if (s == NB_OK)
        s = weight_error(w, j, &error, err);
    nb_fpenv_leave(env);
    if (s != NB_OK)
        return s;
    json_t *now = object_of(w, point, j, said, loss, &error);
    json_t *before = told_before(w, w->job->plan->weights[w->index[j]].name);
    const bool bad =
        now == NULL || (before != NULL ? retell(before, now) != 0
                                       : json_array_append(w->result->layers, now) != 0);
    json_decref(now);
    return bad ? nb_fail(err, NB_MEMORY, "no memory for the report") : NB_OK;
}
