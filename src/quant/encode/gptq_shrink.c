/* See gptq_shrink.h.
 *
 * Rows of a matrix are encoded independently of each other, and all with the same H: a sample of
 * them tells which shrinkage is best as well as all of them do. Candidates are encoded into the
 * first rows of the matrix, whose codes are chosen anew in the end. */
#include "quant/encode/gptq_shrink.h"

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

/* A linear layer as far as it is encoded: all of it, or a sample of its rows. */
typedef struct {
    const char *name;
    nb_rows rows; /* [out->n_rows][n] */
    nb_mat *out;
} part;

typedef struct {
    const nb_group_job *job;
    nb_gptq_options o;
    part all[NB_GROUP_LINEARS], sample[NB_GROUP_LINEARS];
    const part *parts; /* of these two, what is being encoded */
    nb_mat sample_out[NB_GROUP_LINEARS];
    float *sample_weight[NB_GROUP_LINEARS]; /* NULL: all rows are the sample */
    bool rests; /* h and held_h: there is room for one matrix of their size at a time */
    bool last;  /* what is encoded now is what stays */
    nb_feedback feedback;
    int64_t strip;      /* rows that are taken at a time */
    float *w, *e;       /* [strip][n] */
    double *row_loss;   /* [largest n_rows] */
    float *d, *product; /* with a move: D [n][n], w D [strip][n] */
    uint8_t *scratch;   /* of that product */
} group;

static nb_status rows_of(const group *g, const part *p, int64_t row, int64_t n, const float **out,
                         nb_err *err)
{
    return nb_rows_get(&p->rows, g->job->stats->n_cols, row, n, g->w, out, err);
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- losses ---- */

typedef struct {
    const group *g;
    const nb_mat *out;
    const nb_moments *on;
    double scale;
    const float *w; /* of the rows from `row` on */
    int64_t row;
} losing;

static void error_row(void *context, int64_t r, int thread)
{
    (void)thread;
    const losing *x = context;
    const int64_t n = x->g->job->stats->n_cols;
    const float *w = x->w + r * n;
    float *e = x->g->e + r * n;
    x->out->fmt->decode_row(x->out, x->row + r, e);
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

/* *total += w D e^T over the rows at hand. */
static void add_mismatch(const losing *x, int64_t n_rows, double *total)
{
    const group *g = x->g;
    const int64_t n = g->job->stats->n_cols;
    const nb_matmul_job product = {
        .c = g->product,
        .ldc = n,
        .m = n_rows,
        .n = n,
        .depth = n,
        .a = {x->w, n, 1},
        .b = {g->d, n, 1},
    };
    nb_matmul(g->job->la->kernels, g->job->la->pool, &product, g->scratch);
    for (int64_t r = 0; r < n_rows; r++) {
        double row = 0;
        for (int64_t j = 0; j < n; j++)
            row += (double)g->product[r * n + j] * (double)g->e[r * n + j];
        *total += row;
    }
}

/* e H e^T over all rows of a linear as it is encoded; `full` has with it what a move works on,
 * 2 w D e^T: what the loss has besides where x is not x0. */
static nb_status loss_of(group *g, const part *p, const nb_moments *on, const nb_sym *h,
                         double *plain, double *full, nb_err *err)
{
    losing x = {.g = g, .out = p->out, .on = on, .scale = g->feedback.scale};
    const int64_t n_rows = p->out->n_rows;
    nb_pool *pool = g->job->la->pool;
    double mismatch = 0;
    if (g->o.move != NB_MOVE_NONE)
        nb_pool_run(pool, g->job->stats->n_cols, mismatch_row, &x);
    for (x.row = 0; x.row < n_rows; x.row += g->strip) {
        const int64_t m = smaller(g->strip, n_rows - x.row);
        NB_TRY(rows_of(g, p, x.row, m, &x.w, err));
        nb_pool_run(pool, m, error_row, &x);
        NB_TRY(nb_sym_loss_rows(g->job->la, h, g->e, m, g->row_loss + x.row, err));
        if (g->o.move != NB_MOVE_NONE)
            add_mismatch(&x, m, &mismatch);
    }
    *plain = *full = sum(g->row_loss, n_rows);
    if (g->o.move != NB_MOVE_NONE)
        *full += 2 * mismatch / x.scale;
    return NB_OK;
}

static nb_status power_of(group *g, const part *p, const nb_sym *h, double *power, nb_err *err)
{
    const int64_t n_rows = p->out->n_rows;
    for (int64_t row = 0; row < n_rows; row += g->strip) {
        const int64_t m = smaller(g->strip, n_rows - row);
        const float *w;
        NB_TRY(rows_of(g, p, row, m, &w, err));
        NB_TRY(nb_sym_loss_rows(g->job->la, h, w, m, g->row_loss + row, err));
    }
    *power = sum(g->row_loss, n_rows);
    return NB_OK;
}

/* *use is h, in memory: woken into *woken where it rests, for which the factor has to go. */
static nb_status wake(group *g, const nb_sym *h, nb_sym *woken, const nb_sym **use, nb_err *err)
{
    *woken = (nb_sym){0};
    *use = h;
    if (!nb_sym_rests(h))
        return NB_OK;
    nb_feedback_drop_factor(&g->feedback);
    NB_TRY(nb_sym_wake(woken, h, err));
    *use = woken;
    return NB_OK;
}

static double relative(double loss, double power)
{
    return power > 0 ? loss / power : 0;
}

static nb_status powers_of(group *g, const nb_sym *of, double *power, nb_err *err)
{
    nb_sym woken;
    const nb_sym *h;
    NB_TRY(wake(g, of, &woken, &h, err));
    nb_status s = NB_OK;
    for (int l = 0; l < g->job->n && s == NB_OK; l++)
        s = power_of(g, &g->parts[l], h, &power[l], err);
    nb_sym_free(&woken);
    return s;
}

/* Of each linear, relative to its power; *total: the full ones added. */
static nb_status losses_of(group *g, const nb_moments *on, const double *power, double *out,
                           double *total, nb_err *err)
{
    nb_sym woken;
    const nb_sym *h;
    NB_TRY(wake(g, on->h, &woken, &h, err));
    nb_status s = NB_OK;
    *total = 0;
    for (int l = 0; l < g->job->n && s == NB_OK; l++) {
        double plain = 0, full = 0;
        s = loss_of(g, &g->parts[l], on, h, &plain, &full, err);
        out[l] = relative(plain, power[l]);
        *total += relative(full, power[l]);
    }
    nb_sym_free(&woken);
    return s;
}

/* ---- encoding ---- */

/* A matrix strip by strip, in one phase. */
static nb_status encode_strips(group *g, const part *p, nb_gptq_job job, nb_err *err)
{
    const int64_t n = p->out->n_cols, n_rows = p->out->n_rows;
    bool whole;
    NB_TRY(nb_gptq_is_whole(p->out, &whole, err));
    float *all = NULL;
    if (whole && p->rows.all == NULL && n_rows > g->strip)
        NB_TRY(NB_ALLOC(&all, n_rows * n, err));
    const int64_t strip = whole ? n_rows : g->strip;
    uint8_t *const code = job.code;
    nb_status s = NB_OK;
    for (int64_t row = 0; row < n_rows && s == NB_OK; row += strip) {
        const int64_t m = smaller(strip, n_rows - row);
        nb_mat out = whole ? *p->out : nb_mat_rows(p->out, row, m);
        job.out = &out;
        job.code = code != NULL ? code + row * n : NULL;
        s = nb_rows_get(&p->rows, n, row, m, all != NULL ? all : g->w, &job.weight, err);
        if (s == NB_OK)
            s = nb_gptq_encode(&job, err);
        if (whole)
            *p->out = out; /* what is one for all rows */
    }
    nb_free(all);
    return s;
}

/* A matrix whose rows know of each other. */
static nb_status encode_whole(group *g, const part *p, const nb_sym *outputs, nb_gptq_job job,
                              nb_err *err)
{
    const int64_t n = p->out->n_cols, n_rows = p->out->n_rows;
    bool whole;
    float *all = NULL;
    NB_TRY(nb_gptq_is_whole(p->out, &whole, err));
    if (whole)
        return encode_strips(g, p, job, err);
    if (p->rows.all == NULL)
        NB_TRY(NB_ALLOC(&all, n_rows * n, err));
    nb_status s = nb_rows_get(&p->rows, n, 0, n_rows, all, &job.weight, err);
    job.out = p->out;
    if (s == NB_OK)
        s = nb_gptq_encode_by_outputs(&job, outputs, err);
    nb_free(all);
    return s;
}

/* With H' for polishing, made once for all strips. Where moments rest, the factor and H' are not
 * in memory together: all rows take the recursion, then all are polished. */
static nb_status encode_part(group *g, const part *p, const nb_sym *outputs, nb_gptq_job job,
                             nb_err *err)
{
    const int64_t n = p->out->n_cols;
    float *full = NULL;
    uint8_t *code = NULL;
    nb_status s = NB_OK;
    const bool polishes = g->o.polish > 0 && !g->feedback.blind, twice = polishes && g->rests;
    if (twice) {
        NB_TRY_GOTO(s, NB_ALLOC(&code, p->out->n_rows * n, err));
        job.code = code;
        job.phase = NB_GPTQ_RECURSE;
        NB_TRY_GOTO(s, encode_strips(g, p, job, err));
        nb_feedback_drop_factor(&g->feedback);
        job.phase = NB_GPTQ_POLISH;
    }
    if (polishes) {
        NB_TRY_GOTO(s, NB_ALLOC(&full, n * n, err));
        NB_TRY_GOTO(s,
                    nb_feedback_full(&g->feedback, g->job->la, job.moments, job.shrink, full, err));
        job.full = full;
    }
    s = outputs != NULL ? encode_whole(g, p, outputs, job, err) : encode_strips(g, p, job, err);
done:
    nb_free(full);
    nb_free(code);
    return s == NB_OK ? s : nb_context(err, "%s", p->name);
}

static nb_status encode(group *g, const nb_moments *by, double shrink, double strength,
                        bool keep_scales, nb_err *err)
{
    int64_t made_for = -1;
    for (int l = 0; l < g->job->n; l++) {
        const part *p = &g->parts[l];
        nb_grid grid;
        NB_TRY(nb_grid_of(&grid, p->out, err));
        if (made_for < 0 || (g->o.order == NB_ORDER_GROUP && made_for != grid.span_len) ||
            g->feedback.r.a == NULL)
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
            .keep_scales = keep_scales,
            .refit = g->last,
        };
        NB_TRY(encode_part(g, p, g->last ? g->job->linear[l].outputs : NULL, job, err));
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
    if (n_rows <= NB_GPTQ_SAMPLE_ROWS)
        return NB_OK;
    NB_TRY(NB_ALLOC(&g->sample_weight[l], NB_GPTQ_SAMPLE_ROWS * n, err));
    for (int64_t i = 0; i < NB_GPTQ_SAMPLE_ROWS; i++) {
        float *to = g->sample_weight[l] + i * n;
        const float *from;
        NB_TRY(nb_rows_get(&all->rows, n, i * n_rows / NB_GPTQ_SAMPLE_ROWS, 1, to, &from, err));
        if (from != to)
            memcpy(to, from, (size_t)n * sizeof(float));
    }
    g->sample_out[l] = *all->out;
    g->sample_out[l].n_rows = NB_GPTQ_SAMPLE_ROWS;
    g->sample[l].rows = (nb_rows){.all = g->sample_weight[l]};
    g->sample[l].out = &g->sample_out[l];
    return NB_OK;
}

static nb_status open_group(group *g, bool sampled, nb_err *err)
{
    const int64_t n = g->job->stats->n_cols;
    int64_t n_rows = 0;
    for (int l = 0; l < g->job->n; l++) {
        const float *weight = g->job->linear[l].weight;
        g->all[l] =
            (part){.name = g->job->linear[l].name,
                   .rows = weight != NULL ? (nb_rows){.all = weight} : g->job->linear[l].rows,
                   .out = g->job->linear[l].out};
        n_rows = g->all[l].out->n_rows > n_rows ? g->all[l].out->n_rows : n_rows;
        if (sampled)
            NB_TRY(take_sample(g, l, err));
    }
    g->strip = nb_strip_rows(n_rows, n);
    NB_TRY(nb_feedback_init(&g->feedback, n, err));
    for (int l = 0; l < g->job->n && g->w == NULL; l++) {
        if (g->all[l].rows.all == NULL)
            NB_TRY(NB_ALLOC(&g->w, g->strip * n, err));
    }
    NB_TRY(NB_ALLOC(&g->e, g->strip * n, err));
    NB_TRY(NB_ALLOC(&g->row_loss, n_rows, err));
    if (g->o.move == NB_MOVE_NONE)
        return NB_OK;
    NB_TRY(NB_ALLOC(&g->d, n * n, err));
    NB_TRY(NB_ALLOC(&g->product, g->strip * n, err));
    return NB_ALLOC(&g->scratch,
                    nb_matmul_scratch_bytes(g->strip, n, n, nb_pool_n_threads(g->job->la->pool)),
                    err);
}

static void close_group(group *g)
{
    nb_feedback_free(&g->feedback);
    for (int l = 0; l < NB_GROUP_LINEARS; l++)
        nb_free(g->sample_weight[l]);
    nb_free(g->w);
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
    group g = {.job = job, .rests = nb_sym_rests(&stats->h)};
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
    g.last = true;
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
