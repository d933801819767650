/* The recursion of gptq.h, in lazy blocks: inside a band of 128 columns each row goes its own way,
 * one axpy with a row of M after each code; then one product hands the errors of the whole band to
 * all later columns. M is made of the factor band by band, so it is never in memory whole. */
#include "quant/encode/gptq.h"

#include <assert.h>
#include <float.h>
#include <string.h>

#define BAND       NB_SYM_BLOCK
#define CHUNK_ROWS 8

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* One band under way. */
typedef struct {
    const nb_recursion *c;
    const nb_feedback *f;
    int64_t begin, end;    /* columns, in order */
    const double *inverse; /* [n]: 1 / R[k][k] */
    float *m;              /* [end - begin][n - begin]: M from the diagonal on */
    float *error;          /* [n_rows][BAND] */
    float *span;           /* [n_threads][2 * span_len] */
    int64_t n_left;
} band;

/* ---- M ---- */

static void m_row(void *context, int64_t i, int thread)
{
    (void)thread;
    const band *b = context;
    const double *r = nb_sym_row(&b->f->r, b->begin + i);
    float *m = b->m + i * b->n_left;
    for (int64_t k = i + 1; k < b->n_left; k++)
        m[k] = (float)(r[b->begin + k] * b->inverse[b->begin + k]);
}

/* ---- scales ---- */

/* The column that spans are counted by, and whether position k is the first of one. A span's
 * columns follow each other in every order that scales are fitted under on the way. */
static int64_t span_of(const nb_recursion *c, const nb_feedback *f, int64_t k)
{
    return f->order[k] / c->grid.span_len;
}

static int64_t span_end(const nb_recursion *c, const nb_feedback *f, int64_t k)
{
    const int64_t span = span_of(c, f, k);
    while (k < c->n && span_of(c, f, k) == span)
        k++;
    return k;
}

/* Bands end with a span, or lie inside one: at its beginning all errors have arrived then. */
static int64_t band_end(const nb_recursion *c, const nb_feedback *f, int64_t begin)
{
    if (!c->dynamic)
        return smaller(begin + BAND, c->n);
    int64_t end = span_end(c, f, begin);
    if (end - begin > BAND)
        return begin + BAND;
    while (end < c->n && span_end(c, f, end) - begin <= BAND)
        end = span_end(c, f, end);
    return end;
}

/* A value beyond all numbers would have no nearest code: the weight itself then. */
static float sound(float t, float otherwise)
{
    return t >= -FLT_MAX && t <= FLT_MAX ? t : otherwise;
}

static void fit_span(const band *b, int64_t r, int64_t k, float *scratch)
{
    const nb_recursion *c = b->c;
    const int64_t col = span_of(c, b->f, k) * c->grid.span_len;
    const int64_t n = smaller(c->grid.span_len, c->n - col);
    const float *t = c->t + r * c->n, *base = c->base + r * c->n;
    for (int64_t i = k; i < k + n; i++)
        scratch[b->f->order[i] - col] = sound(t[i], sound(base[i], 0));
    const float *importance = b->f->weighed ? b->f->importance + col : NULL;
    nb_grid_fit(&c->grid, c->job->out, r, col, scratch, importance, c->job->options->fit);
}

/* ---- codes ---- */

static void band_row(const band *b, int64_t r, float *scratch)
{
    const nb_recursion *c = b->c;
    const nb_grid *grid = &c->grid;
    nb_axpy_fn *const axpy = c->job->la->kernels->axpy;
    float *t = c->t + r * c->n, *error = b->error + r * BAND;
    const float *base = c->base + r * c->n;
    uint8_t *code = c->code + r * c->n;
    nb_grid_group group;
    int64_t at = -1, span = b->begin > 0 ? span_of(c, b->f, b->begin - 1) : -1;
    for (int64_t k = b->begin; k < b->end; k++) {
        const int64_t col = b->f->order[k];
        if (c->dynamic && span_of(c, b->f, k) != span) {
            fit_span(b, r, k, scratch);
            span = span_of(c, b->f, k);
        }
        if (col / grid->group_len != at) {
            nb_grid_group_at(grid, c->job->out, r, col, &group);
            at = col / grid->group_len;
        }
        const float want = sound(base[k], 0);
        const int q = nb_grid_nearest(grid, &group, sound(t[k], want));
        const float e = sound(want - nb_grid_value(grid, &group, q), 0);
        code[col] = (uint8_t)q;
        error[k - b->begin] = e;
        const float *m = b->m + (k - b->begin) * (b->n_left + 1) + 1;
        axpy(t + k + 1, e, m, b->end - k - 1);
    }
}

static void band_chunk(void *context, int64_t chunk, int thread)
{
    const band *b = context;
    const int64_t end = smaller((chunk + 1) * CHUNK_ROWS, b->c->n_rows);
    for (int64_t r = chunk * CHUNK_ROWS; r < end; r++)
        band_row(b, r, b->span + thread * b->c->grid.span_len);
}

static int64_t n_chunks(int64_t n_rows)
{
    return (n_rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
}

/* t += the errors of the band times M, for all columns after it. */
static void band_hand_on(const band *b, void *scratch)
{
    const nb_recursion *c = b->c;
    const int64_t width = b->end - b->begin;
    const nb_matmul_job job = {
        .c = c->t + b->end,
        .ldc = c->n,
        .m = c->n_rows,
        .n = c->n - b->end,
        .depth = width,
        .a = {b->error, BAND, 1},
        .b = {b->m + width, b->n_left, 1},
        .add = true,
    };
    nb_matmul(c->job->la->kernels, c->job->la->pool, &job, scratch);
}

static nb_status run(nb_recursion *c, nb_err *err)
{
    nb_algebra *la = c->job->la;
    const nb_feedback *f = c->job->feedback;
    const int n_threads = nb_pool_n_threads(la->pool);
    double *inverse = NULL;
    uint8_t *product = NULL;
    nb_status s = NB_OK;
    band b = {.c = c, .f = f};
    NB_TRY_GOTO(s, NB_ALLOC(&inverse, c->n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&b.m, smaller(BAND, c->n) * c->n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&b.error, c->n_rows * BAND, err));
    NB_TRY_GOTO(s, NB_ALLOC(&b.span, c->dynamic ? n_threads * c->grid.span_len : 1, err));
    NB_TRY_GOTO(s,
                NB_ALLOC(&product, nb_matmul_scratch_bytes(c->n_rows, c->n, BAND, n_threads), err));
    for (int64_t k = 0; k < c->n; k++)
        inverse[k] = 1 / nb_sym_row(&f->r, k)[k];
    b.inverse = inverse;
    for (b.begin = 0; b.begin < c->n; b.begin = b.end) {
        b.end = band_end(c, f, b.begin);
        b.n_left = c->n - b.begin;
        nb_pool_run(la->pool, b.end - b.begin, m_row, &b);
        nb_pool_run(la->pool, n_chunks(c->n_rows), band_chunk, &b);
        if (b.end < c->n)
            band_hand_on(&b, product);
    }
done:
    nb_free(inverse);
    nb_free(b.m);
    nb_free(b.error);
    nb_free(b.span);
    nb_free(product);
    return s;
}

/* ---- around it ---- */

static void fit_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const nb_recursion *c = context;
    const nb_feedback *f = c->job->feedback;
    const float *importance = f->weighed ? f->importance : NULL;
    nb_grid_fit_rows(&c->grid, c->job->out, chunk * CHUNK_ROWS,
                     smaller((chunk + 1) * CHUNK_ROWS, c->n_rows), c->job->weight, importance,
                     c->job->options->fit);
}

static void fit_first(nb_recursion *c)
{
    const nb_feedback *f = c->job->feedback;
    if (c->grid.whole)
        nb_grid_fit_rows(&c->grid, c->job->out, 0, c->n_rows, c->job->weight,
                         f->weighed ? f->importance : NULL, c->job->options->fit);
    else
        nb_pool_run(c->job->la->pool, n_chunks(c->n_rows), fit_chunk, c);
}

static void permute_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const nb_recursion *c = context;
    const int64_t *order = c->job->feedback->order;
    const int64_t end = smaller((chunk + 1) * CHUNK_ROWS, c->n_rows);
    for (int64_t r = chunk * CHUNK_ROWS; r < end; r++) {
        const float *from = c->job->weight + r * c->n;
        for (int64_t k = 0; k < c->n; k++)
            c->moved[r * c->n + k] = from[order[k]];
    }
}

static void put_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const nb_recursion *c = context;
    const int64_t end = smaller((chunk + 1) * CHUNK_ROWS, c->n_rows);
    for (int64_t r = chunk * CHUNK_ROWS; r < end; r++)
        nb_grid_put(&c->grid, c->job->out, r, 0, c->code + r * c->n, c->n);
}

/* base in the order of the recursion, moved where the method does that; t from it. */
static nb_status start(nb_recursion *c, nb_err *err)
{
    const nb_gptq_move move = c->job->options->move;
    const int64_t n = c->n_rows * c->n;
    const bool moves = c->job->strength > 0 && !c->job->feedback->blind;
    c->base = c->job->weight;
    if (c->job->feedback->permuted || (moves && move == NB_MOVE_FIRST)) {
        NB_TRY(NB_ALLOC(&c->moved, n, err));
        nb_pool_run(c->job->la->pool, n_chunks(c->n_rows), permute_chunk, c);
        c->base = c->moved;
    }
    if (moves && move == NB_MOVE_FIRST)
        NB_TRY(nb_gptq_move_first(c, err));
    memcpy(c->t, c->base, (size_t)n * sizeof *c->t);
    return moves && move == NB_MOVE_STEPWISE ? nb_gptq_move_stepwise(c, err) : NB_OK;
}

nb_status nb_gptq_is_whole(const nb_mat *out, bool *whole, nb_err *err)
{
    nb_grid grid;
    NB_TRY(nb_grid_of(&grid, out, err));
    *whole = grid.whole || nb_mat_shares(out);
    return NB_OK;
}

static nb_status recurse(nb_recursion *c, nb_err *err)
{
    const nb_gptq_job *job = c->job;
    NB_TRY(start(c, err));
    if (job->phase == NB_GPTQ_POLISH)
        return NB_OK;
    if (!c->dynamic && !job->keep_scales)
        fit_first(c);
    return run(c, err);
}

nb_status nb_gptq_encode(const nb_gptq_job *job, nb_err *err)
{
    nb_recursion c = {
        .job = job, .n_rows = job->out->n_rows, .n = job->out->n_cols, .code = job->code};
    assert(job->feedback->n == c.n);
    NB_TRY(nb_grid_of(&c.grid, job->out, err));
    /* One span is known whole from the start; and some formats want to see the matrix. */
    c.dynamic =
        job->options->dynamic && !c.grid.whole && c.grid.span_len < c.n && !job->keep_scales;
    assert(!c.dynamic || job->options->order != NB_ORDER_DESC);
    const bool polishes =
        job->options->polish > 0 && !job->feedback->blind && job->phase != NB_GPTQ_RECURSE;
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, NB_ALLOC(&c.t, c.n_rows * c.n, err));
    if (job->code == NULL)
        NB_TRY_GOTO(s, NB_ALLOC(&c.code, c.n_rows * c.n, err));
    NB_TRY_GOTO(s, recurse(&c, err));
    if (polishes)
        NB_TRY_GOTO(s, nb_gptq_polish(&c, err));
    if (job->phase != NB_GPTQ_RECURSE)
        nb_pool_run(job->la->pool, n_chunks(c.n_rows), put_chunk, &c);
done:
    nb_free(c.moved);
    nb_free(c.t);
    if (job->code == NULL)
        nb_free(c.code);
    return s;
}
