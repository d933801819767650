/* What a walk holds in memory, by arithmetic: a block passes through several states, and the
 * largest of them counts. */
#include "quant/encode/gptq.h"
#include "quant/walk/weights.h"
#include "quant/weight/roles.h"

#include <stdio.h>
#include <string.h>

/* The program and its tables. */
#define BASE_BYTES ((int64_t)48 << 20)

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static bool wants(unsigned needs, unsigned stat)
{
    return (needs & stat) != 0;
}

/* The linears of a point, in bytes. */
typedef struct {
    int64_t n_cols, n_rows, most_rows; /* of all together, of the largest */
    int64_t floats;                    /* of those that are held while codes are chosen */
    int64_t made;              /* as they will be, and in the frame's panels about the same */
    int64_t original, largest; /* in the source: of all, of one */
} point_shape;

static point_shape shape_of(nb_walker *w, nb_point point)
{
    point_shape s = {0};
    int n;
    const int first = (int)nb_point_linears(point, &n);
    s.n_cols = nb_walker_point_shape(&w->config, point, &s.n_rows);
    for (int j = first; j < first + n; j++) {
        const int64_t rows = nb_linear_n_rows(&w->config, (nb_linear_id)j), size = rows * s.n_cols;
        s.most_rows = larger(s.most_rows, rows);
        if (w->index[j] < 0) { /* what is not there will be refused */
            s.floats += 4 * size;
            continue;
        }
        const nb_weight *from = w->job->plan->from[w->index[j]];
        s.made += w->job->plan->weights[w->index[j]].bytes;
        s.original += from->bytes;
        s.largest = larger(s.largest, from->bytes);
        if (!nb_walker_reads_rows(w, point, j))
            s.floats += 4 * size;
    }
    return s;
}

/* What encoders make of second moments, beside these. */
static int64_t encoder_bytes(const nb_walker *w, const point_shape *s, bool rests)
{
    const int64_t n = s->n_cols, square = 4 * n * n, triangle = nb_sym_bytes(n);
    const int64_t strip = nb_strip_rows(s->most_rows, n) * n;
    nb_gptq_options o;
    nb_err ignored = {0};
    if (!wants(w->needs, NB_STAT_HESSIAN))
        return 2 * 4 * strip; /* rows that are read, and what is told of them */
    const bool polishes = nb_gptq_options_parse(&o, w->method, &ignored) != NB_OK || o.polish > 0;
    const int64_t full = polishes ? square : 0;
    /* rows as they are read and moved, t, and errors twice; the rows of M, and scratch of solves */
    const int64_t work = (5 * 4 + 1) * strip + NB_SYM_BLOCK * n * (4 + 8) + s->most_rows * 520;
    /* G, its factor, weights, targets and errors */
    const int64_t outputs =
        w->job->by_outputs ? 5 * nb_sym_bytes(s->most_rows) + 3 * 4 * s->most_rows * n : 0;
    const int64_t move = wants(w->needs, NB_STAT_CROSS) ? 2 * square + 3 * 4 * strip : 0;
    if (!rests)
        return triangle + full + work + move + outputs;
    const int64_t bands = 2 * (n < NB_SYM_BLOCK ? n : NB_SYM_BLOCK) * n * 8;
    return larger(triangle, full) + work + (polishes ? s->most_rows * n : 0) + bands;
}

/* Rows of the sample, of outputs and of weights that reports look at (walk/measure.c). */
static int64_t looking_bytes(int64_t n_cols)
{
    return 3 * 256 * 4 * n_cols;
}

/* At a point that is reached with the weights before it, which `before` describes. */
static int64_t point_bytes(const nb_walker *w, const point_shape *s, const point_shape *before,
                           bool rests)
{
    const unsigned needs = w->needs | NB_WALKER_LOOKS;
    const int64_t n = s->n_cols, triangle = nb_sym_bytes(n);
    int64_t stats = nb_input_stats_bytes(n, needs), gathered = stats;
    if (rests) {
        const unsigned others = needs & ~(unsigned)(NB_STAT_HESSIAN | NB_STAT_HELD_OUT);
        stats = nb_input_stats_bytes(n, others) + 2 * n * 16;
        gathered = stats + triangle;
    }
    if (w->job->guided)
        gathered += nb_input_stats_weighted_bytes(n, needs);
    if (wants(needs, NB_STAT_HESSIAN))
        gathered += 4096 * n;
    const int64_t panels = before->made + (w->has_other ? before->original : 0);
    const int64_t reached = rests ? larger(panels, gathered) : panels + gathered;
    const int64_t encoded =
        stats + encoder_bytes(w, s, rests) + s->floats + s->made + looking_bytes(n);
    const int64_t kept = s->floats + 2 * s->made + (w->has_other ? s->original + s->largest : 0);
    return larger(reached, larger(encoded, kept));
}

/* Of a transform that takes the block in pieces: what is there at all points, with one byte for the
 * clipping of 32 weights; */
static int64_t kept_bytes(const nb_walker *w, const point_shape *s)
{
    const unsigned stats =
        w->needs | ((w->transform_needs | NB_WALKER_LOOKS) & ~(unsigned)NB_STAT_HESSIAN);
    int64_t all = 0;
    for (int p = 0; p < NB_N_POINTS; p++) {
        all += s[p].n_rows * s[p].n_cols / 32 + 4 * (s[p].n_rows + 3 * s[p].n_cols);
        if (!w->quantized_flow)
            all += nb_input_stats_bytes(s[p].n_cols, stats);
    }
    return all;
}

/* and what is there at one of them: weights on the way to it, then sums, then trials, then weights
 * to go on with. */
static int64_t piece_bytes(const nb_walker *w, const point_shape *s, int p)
{
    const int64_t n = s[p].n_cols, threads = nb_pool_n_threads(w->job->pool);
    const unsigned needs = w->transform_needs | NB_WALKER_LOOKS;
    const int64_t stats = nb_input_stats_bytes(n, needs);
    const int64_t gathered = stats + ((needs & NB_STAT_HESSIAN) != 0 ? 4096 * n : 0) +
                             (w->job->guided ? nb_input_stats_weighted_bytes(n, needs) : 0);
    const int64_t tried =
        stats + w->job->transform->bytes_at(&w->config, (nb_point)p, (int)threads);
    return larger(larger(gathered, tried), s[p].original + s[p].largest);
}

/* What is there at all points: of transforms, blocks that are tuned, and walks in which statistics
 * of all points come from one sweep. */
static int64_t block_bytes(const nb_walker *w, const point_shape *s)
{
    int64_t all = 0, source = 0;
    if (w->in_pieces)
        return kept_bytes(w, s);
    const bool floats = w->job->transform != NULL || w->job->tune != NULL || w->by_block;
    for (int p = 0; p < NB_N_POINTS; p++) {
        if (floats)
            all += 4 * s[p].n_rows * s[p].n_cols;
        if (w->job->transform != NULL)
            all += nb_input_stats_bytes(s[p].n_cols, w->transform_needs);
        if (w->by_block || w->job->tune != NULL)
            all += s[p].original + s[p].made;
        else if (!w->quantized_flow)
            all += nb_input_stats_bytes(s[p].n_cols, w->needs | NB_WALKER_LOOKS) + s[p].original;
        source = larger(source, s[p].largest);
    }
    return all + (w->quantized_flow && !floats ? 0 : source);
}

static void shapes_of(nb_walker *w, point_shape *s)
{
    for (int p = 0; p < NB_N_POINTS; p++)
        s[p] = shape_of(w, (nb_point)p);
}

/* The first point is reached with what the last one has left. */
static int64_t bytes_at(const nb_walker *w, const point_shape *s, int p, bool rests)
{
    return point_bytes(w, &s[p], &s[p > 0 ? p - 1 : NB_N_POINTS - 1], rests);
}

static int64_t all_kept(nb_walker *w)
{
    point_shape s[NB_N_POINTS];
    shapes_of(w, s);
    return kept_bytes(w, s);
}

static int64_t most_bytes(nb_walker *w)
{
    point_shape s[NB_N_POINTS];
    int64_t most = w->plan.tuning_memory;
    shapes_of(w, s);
    for (int p = 0; p < NB_N_POINTS; p++)
        most = larger(most, bytes_at(w, s, p, w->rests[p]));
    for (int p = 0; p < NB_N_POINTS && w->in_pieces; p++)
        most = larger(most, piece_bytes(w, s, p));
    return BASE_BYTES +
           larger(block_bytes(w, s) + most, larger(w->guide_plan.memory, w->distill_memory));
}

int64_t nb_walker_resting_bytes(const nb_walker *w)
{
    int64_t most = 0, n_rows;
    for (int p = 0; p < NB_N_POINTS; p++) {
        const int64_t n = nb_walker_point_shape(&w->config, (nb_point)p, &n_rows);
        if (w->rests[p])
            most = larger(most, 8 * nb_sym_rest_rows(n));
    }
    return 2 * most;
}

/* A transform can take blocks in pieces where nothing else wants them whole, and nobody wants its
 * second moments once scales are moved. Rows of all weights must be there to be read. */
static bool take_pieces(nb_walker *w)
{
    const nb_plan *plan = w->job->plan;
    const bool later = !w->quantized_flow && (wants(w->needs, NB_STAT_HESSIAN) || w->job->guided);
    if (w->job->transform == NULL || w->by_block || w->has_other || later)
        return false;
    for (int64_t i = 0; i < plan->n; i++) {
        if (nb_role_of(&plan->weights[i]) == NB_ROLE_LINEAR &&
            (plan->from[i] == NULL || !nb_store_reads_rows(w->job->store, plan->from[i])))
            return false;
    }
    w->in_pieces = true;
    return true;
}

/* Second moments can rest where they are of one point at a time, and nothing else is of their size.
 * Those points do that which are too large otherwise, and are smaller for it. */
static bool let_rest(nb_walker *w, int64_t room)
{
    point_shape s[NB_N_POINTS];
    bool any = false;
    if (w->job->by_outputs || !w->quantized_flow || w->by_block || w->has_other ||
        (w->job->transform != NULL && !w->in_pieces) || !wants(w->needs, NB_STAT_HESSIAN))
        return false;
    shapes_of(w, s);
    for (int p = 0; p < NB_N_POINTS; p++) {
        const int64_t all = bytes_at(w, s, p, false);
        w->rests[p] = all > room && bytes_at(w, s, p, true) < all;
        any = any || w->rests[p];
    }
    return any;
}

/* Steps as large as the limit allows; false where none is small enough. */
static bool fit_rows(nb_walker *w, int64_t longest, int n_streams)
{
    const int64_t limit = w->job->memory, rest = most_bytes(w);
    const int n_threads = nb_pool_n_threads(w->job->pool);
    for (w->plan.max_rows = NB_STREAMS_ROWS;; w->plan.max_rows /= 2) {
        w->plan.memory =
            rest + nb_streams_memory(&w->config, longest, w->plan.max_rows, n_streams, n_threads);
        if (limit == 0 || w->plan.memory <= limit)
            return true;
        if (w->plan.max_rows == 128)
            return false;
    }
}

void nb_walker_plan_memory(nb_walker *w, int64_t longest, int n_streams)
{
    const int64_t least = BASE_BYTES + nb_streams_memory(&w->config, longest, 128, n_streams,
                                                         nb_pool_n_threads(w->job->pool));
    nb_walker_find(w); /* of the first block: others are like it */
    if (fit_rows(w, longest, n_streams) || (take_pieces(w) && fit_rows(w, longest, n_streams)))
        return;
    const int64_t room = w->job->memory - least - (w->in_pieces ? all_kept(w) : 0);
    if (let_rest(w, room))
        (void)fit_rows(w, longest, n_streams);
}
