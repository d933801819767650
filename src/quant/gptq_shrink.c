/* See gptq_shrink.h.
 *
 * Rows of a matrix are encoded independently of each other, and all with the same H: a sample of
 * them tells which shrinkage is best as well as all of them do. Candidates are encoded into the
 * first rows of the matrix, whose codes are chosen anew in the end. */
#include "quant/gptq_shrink.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* What is taken where nothing is held out. */
#define SHRINK_PRESET   0.3
#define STRENGTH_PRESET 1.0

static const double shrinks[] = {0, 0.1, 0.2, 0.35, 0.5, 0.7};
#define N_SHRINKS (sizeof shrinks / sizeof *shrinks)
static const double strengths[] = {0, 0.25, 0.5, 0.75, 1};

/* Rows of each linear that candidates are compared on. */
#define SAMPLE_ROWS 192

/* A linear layer as far as it is encoded: all of it, or a sample of its rows. */
typedef struct {
    const char *name;
    const float *weight; /* [out->n_rows][n] */
    nb_mat *out;
} part;

typedef struct {
    const nb_group_job *job;
    nb_gptq_options o;
    part all[NB_GROUP_LINEARS], sample[NB_GROUP_LINEARS];
    const part *parts; /* of these two, what is being encoded */
    nb_mat sample_out[NB_GROUP_LINEARS];
    float *sample_weight[NB_GROUP_LINEARS]; /* NULL: all rows are the sample */
    nb_feedback feedback;
    float *e;           /* [largest n_rows][n] */
    double *row_loss;   /* [largest n_rows] */
    float *d, *product; /* with a move: D [n][n], w D [largest n_rows][n] */
    uint8_t *scratch;   /* of that product */
} group;

/* ---- losses ---- */

typedef struct {
    group *g;
    int l;
    const nb_moments *on;
    double scale;
} losing;

static void error_row(void *context, int64_t r, int thread)
{
    (void)thread;
    const losing *x = context;
    const int64_t n = x->g->job->stats->n_cols;
    const nb_mat *out = x->g->parts[x->l].out;
    const float *w = x->g->parts[x->l].weight + r * n;
    float *e = x->g->e + r * n;
    out->fmt->decode_row(out, r, e);
    for (int64_t j = 0; j < n; j++)
        e[j] = w[j] - e[j];
}

static void mismatch_row(void *context, int64_t i, int thread)
{
    (void)thread;
    const losing *x = context;
    const int64_t n = x->g->job->stats->n_cols;
    for (int64_t j = 0; j < n; j++)
        x->g->d[i * n + j] = (float)(x->scale * nb_moments_mismatch(x->on, i, j));
}

static double sum(const double *x, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += x[i];
    return s;
}

/* 2 w D e^T over all rows: what the loss has besides e H e^T where x is not x0. */
static double mismatch_loss(const losing *x)
{
    group *g = x->g;
    const int64_t n = g->job->stats->n_cols, n_rows = g->parts[x->l].out->n_rows;
    nb_algebra *la = g->job->la;
    nb_pool_run(la->pool, n, mismatch_row, (void *)x);
    const nb_matmul_job product = {
        .c = g->product,
        .ldc = n,
        .m = n_rows,
        .n = n,
        .depth = n,
        .a = {g->parts[x->l].weight, n, 1},
        .b = {g->d, n, 1},
    };
    nb_matmul(la->kernels, la->pool, &product, g->scratch);
    double total = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        double row = 0;
        for (int64_t j = 0; j < n; j++)
            row += (double)g->product[r * n + j] * (double)g->e[r * n + j];
        total += row;
    }
    return 2 * total / x->scale;
}

/* e H e^T over all rows of linear l as it is encoded; `full` has with it what a move works on. */
static nb_status loss_of(group *g, int l, const nb_moments *on, double *plain, double *full,
                         nb_err *err)
{
    losing x = {.g = g, .l = l, .on = on, .scale = g->feedback.scale};
    const int64_t n_rows = g->parts[l].out->n_rows;
    nb_pool_run(g->job->la->pool, n_rows, error_row, &x);
    NB_TRY(nb_sym_loss_rows(g->job->la, on->h, g->e, n_rows, g->row_loss, err));
    *plain = *full = sum(g->row_loss, n_rows);
    if (g->o.move != NB_MOVE_NONE)
        *full += mismatch_loss(&x);
    return NB_OK;
}

static nb_status powers_of(group *g, const nb_sym *h, double *power, nb_err *err)
{
    for (int l = 0; l < g->job->n; l++) {
        const int64_t n_rows = g->parts[l].out->n_rows;
        NB_TRY(nb_sym_loss_rows(g->job->la, h, g->parts[l].weight, n_rows, g->row_loss, err));
        power[l] = sum(g->row_loss, n_rows);
    }
    return NB_OK;
}

static double relative(double loss, double power)
{
    return power > 0 ? loss / power : 0;
}

/* Of each linear, relative to its power; *total: the full ones added. */
static nb_status losses_of(group *g, const nb_moments *on, const double *power, double *out,
                           double *total, nb_err *err)
{
    *total = 0;
    for (int l = 0; l < g->job->n; l++) {
        double plain, full;
        NB_TRY(loss_of(g, l, on, &plain, &full, err));
        out[l] = relative(plain, power[l]);
        *total += relative(full, power[l]);
    }
    return NB_OK;
}

/* ---- encoding ---- */

static nb_status encode(group *g, const nb_moments *by, double shrink, double strength,
                        bool keep_scales, nb_err *err)
{
    int64_t made_for = -1;
    for (int l = 0; l < g->job->n; l++) {
        const part *p = &g->parts[l];
        nb_grid grid;
        NB_TRY(nb_grid_of(&grid, p->out, err));
        if (made_for < 0 || (g->o.order == NB_ORDER_GROUP && made_for != grid.span_len))
            NB_TRY(
                nb_feedback_make(&g->feedback, g->job->la, by, &g->o, shrink, grid.span_len, err));
        made_for = grid.span_len;
        const nb_gptq_job job = {
            .la = g->job->la,
            .options = &g->o,
            .feedback = &g->feedback,
            .moments = by,
            .shrink = shrink,
            .strength = strength,
            .weight = p->weight,
            .out = p->out,
            .keep_scales = keep_scales,
        };
        if (nb_gptq_encode(&job, err) != NB_OK)
            return nb_context(err, "%s", p->name);
    }
    return NB_OK;
}

/* A candidate on its way: the least held-out loss so far, and what it was. */
typedef struct {
    double shrink, strength, sum;
    double power[NB_GROUP_LINEARS], loss[NB_GROUP_LINEARS];
    int n_tried;
} best;

static nb_status try_one(group *g, const nb_moments *by, const nb_moments *on, double shrink,
                         double strength, best *b, nb_err *err)
{
    /* Scales that are fixed first depend on the diagonal of H, which no candidate changes. */
    const bool keep = b->n_tried > 0 && !g->o.dynamic && g->o.weigh != NB_WEIGH_PIVOT;
    double loss[NB_GROUP_LINEARS], total;
    NB_TRY(encode(g, by, shrink, strength, keep, err));
    NB_TRY(losses_of(g, on, b->power, loss, &total, err));
    if (b->n_tried++ == 0 || total < b->sum) {
        b->shrink = shrink;
        b->strength = strength;
        b->sum = total;
        memcpy(b->loss, loss, sizeof loss);
    }
    return NB_OK;
}

/* The largest shrinkage whose held-out loss is nearly the least. Other texts differ from the
 * calibration set by more than its own held-out part does, and the sums are dominated by few
 * tokens: the least loss itself, where it is reached with hardly any shrinkage, doubled the
 * divergence of the whole model on another text, which is flat from here on. */
#define NEARLY 1.1

static nb_status choose_shrink(group *g, const nb_moments *by, const nb_moments *on,
                               double strength, best *b, nb_err *err)
{
    best tried[N_SHRINKS];
    double least = INFINITY;
    for (size_t i = 0; i < N_SHRINKS; i++) {
        tried[i] = *b;
        tried[i].n_tried = 0;
        NB_TRY(try_one(g, by, on, shrinks[i], strength, &tried[i], err));
        least = tried[i].sum < least ? tried[i].sum : least;
    }
    for (size_t i = 0; i < N_SHRINKS; i++) {
        if (tried[i].sum <= NEARLY * least)
            *b = tried[i];
    }
    b->n_tried = N_SHRINKS;
    return NB_OK;
}

static nb_status choose(group *g, const nb_moments *by, const nb_moments *on, best *b, nb_err *err)
{
    const double strength = g->o.strength < 0 ? STRENGTH_PRESET : g->o.strength;
    NB_TRY(powers_of(g, on->h, b->power, err));
    if (g->o.shrink >= 0)
        NB_TRY(try_one(g, by, on, g->o.shrink, strength, b, err));
    if (g->o.shrink < 0)
        NB_TRY(choose_shrink(g, by, on, strength, b, err));
    const double shrink = b->shrink;
    for (size_t i = 0; i < sizeof strengths / sizeof *strengths && g->o.strength < 0; i++) {
        if (strengths[i] != strength)
            NB_TRY(try_one(g, by, on, shrink, strengths[i], b, err));
    }
    return NB_OK;
}

/* ---- the whole ---- */

/* Rows evenly apart, so that each head has its share. */
static nb_status take_sample(group *g, int l, nb_err *err)
{
    const part *all = &g->all[l];
    const int64_t n = all->out->n_cols, n_rows = all->out->n_rows;
    g->sample[l] = *all;
    if (n_rows <= SAMPLE_ROWS)
        return NB_OK;
    NB_TRY(NB_ALLOC(&g->sample_weight[l], SAMPLE_ROWS * n, err));
    for (int64_t i = 0; i < SAMPLE_ROWS; i++)
        memcpy(g->sample_weight[l] + i * n, all->weight + i * n_rows / SAMPLE_ROWS * n,
               (size_t)n * sizeof(float));
    g->sample_out[l] = *all->out;
    g->sample_out[l].n_rows = SAMPLE_ROWS;
    g->sample[l].weight = g->sample_weight[l];
    g->sample[l].out = &g->sample_out[l];
    return NB_OK;
}

static nb_status open_group(group *g, bool sampled, nb_err *err)
{
    const int64_t n = g->job->stats->n_cols;
    int64_t n_rows = 0;
    for (int l = 0; l < g->job->n; l++) {
        g->all[l] = (part){.name = g->job->linear[l].name,
                           .weight = g->job->linear[l].weight,
                           .out = g->job->linear[l].out};
        n_rows = g->all[l].out->n_rows > n_rows ? g->all[l].out->n_rows : n_rows;
        if (sampled)
            NB_TRY(take_sample(g, l, err));
    }
    NB_TRY(nb_feedback_init(&g->feedback, n, err));
    NB_TRY(NB_ALLOC(&g->e, n_rows * n, err));
    NB_TRY(NB_ALLOC(&g->row_loss, n_rows, err));
    if (g->o.move == NB_MOVE_NONE)
        return NB_OK;
    NB_TRY(NB_ALLOC(&g->d, n * n, err));
    NB_TRY(NB_ALLOC(&g->product, n_rows * n, err));
    return NB_ALLOC(&g->scratch,
                    nb_matmul_scratch_bytes(n_rows, n, n, nb_pool_n_threads(g->job->la->pool)),
                    err);
}

static void close_group(group *g)
{
    nb_feedback_free(&g->feedback);
    for (int l = 0; l < NB_GROUP_LINEARS; l++)
        nb_free(g->sample_weight[l]);
    nb_free(g->e);
    nb_free(g->row_loss);
    nb_free(g->d);
    nb_free(g->product);
    nb_free(g->scratch);
}

static void tell(const group *g, const best *b, nb_group_result *result)
{
    int at = snprintf(result->note, sizeof result->note, "shrink %g", b->shrink);
    if (g->o.move != NB_MOVE_NONE)
        at += snprintf(result->note + at, sizeof result->note - (size_t)at, ", %s %g",
                       g->o.move == NB_MOVE_FIRST ? "beta" : "alpha", b->strength);
    result->fell_back = g->feedback.blind;
    if (g->feedback.blind)
        snprintf(result->note, sizeof result->note,
                 "the inputs' second moments %s: rounded to nearest",
                 g->feedback.damp > g->o.damp ? "have no factor" : "are no finite numbers");
    else if (g->feedback.damp != g->o.damp)
        snprintf(result->note + at, sizeof result->note - (size_t)at, ", damp %.3g",
                 g->feedback.damp);
}

nb_status nb_gptq_encode_group(const nb_group_job *job, nb_group_result *result, nb_err *err)
{
    const nb_input_stats *stats = job->stats;
    group g = {.job = job};
    NB_TRY(nb_gptq_options_parse(&g.o, job->method, err));
    const bool held = stats->held_h.n > 0 && stats->n_held > 0;
    const nb_moments choosing = {.h = &stats->h, .cross = stats->cross};
    const nb_moments new = {.h = &stats->held_h, .cross = stats->held_cross};
    nb_moments all = choosing;
    best b = {.shrink = g.o.shrink < 0 ? SHRINK_PRESET : g.o.shrink,
              .strength = g.o.strength < 0 ? STRENGTH_PRESET : g.o.strength};
    double power[NB_GROUP_LINEARS], total;
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, open_group(&g, held, err));
    for (int l = 0; l < NB_GROUP_LINEARS; l++)
        b.loss[l] = NAN;
    if (held) {
        g.parts = g.sample;
        NB_TRY_GOTO(s, choose(&g, &choosing, &new, &b, err));
        all.more = &stats->held_h;
        all.more_cross = stats->held_cross;
    }
    g.parts = g.all;
    NB_TRY_GOTO(s, encode(&g, &all, b.shrink, b.strength, false, err));
    NB_TRY_GOTO(s, powers_of(&g, &stats->h, power, err));
    NB_TRY_GOTO(s, losses_of(&g, &choosing, power, result->loss, &total, err));
    memcpy(result->held_loss, b.loss, sizeof b.loss);
    /* By such moments there is no loss to be had: not even one of 0. */
    for (int l = 0; l < job->n && g.feedback.blind; l++)
        result->loss[l] = result->held_loss[l] = NAN;
    tell(&g, &b, result);
done:
    close_group(&g);
    return s;
}
