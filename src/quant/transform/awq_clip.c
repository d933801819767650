/* See awq_clip.h. */
#include "quant/transform/awq_clip.h"

#include "quant/weight/room.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define CHUNK_ROWS 32
#define RATIOS     11

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* One thread's. */
typedef struct {
    nb_loaded row;            /* one row, as planned */
    float *h;                 /* [block][block], or [span_len]: the diagonal */
    float *w, *best, *e, *he; /* [span_len] */
    uint8_t *code;            /* [span_len] */
} bench;

typedef struct {
    const nb_sym *h;
    nb_grid grid;
    bool two_sided; /* both ends of a range count on their own, as with zero points */
    bool block;     /* h is used whole inside a span */
    float *weight;  /* [n_rows][n_cols]: rows at hand */
    uint8_t *steps; /* [n_rows][n_spans]: what each span gets; NULL: nobody asks */
    int64_t n_rows, n_cols, n_spans, chunks_a_span;
    bench *bench;       /* [n_threads] */
    int64_t *n_clipped; /* [n_chunks] of the strip with most rows */
} clipping;

static void load_h(const clipping *c, const bench *b, int64_t col, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (!c->block) {
            b->h[i] = (float)nb_sym_row(c->h, col + i)[col + i];
            continue;
        }
        for (int64_t j = i; j < n; j++)
            b->h[i * n + j] = b->h[j * n + i] = (float)nb_sym_row(c->h, col + i)[col + j];
    }
}

static double loss_of(const clipping *c, const bench *b, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        b->he[j] = c->block ? 0 : b->h[j] * b->e[j];
    for (int64_t i = 0; c->block && i < n; i++) {
        const float e = b->e[i], *h = b->h + i * n;
        for (int64_t j = 0; j < n; j++)
            b->he[j] += e * h[j];
    }
    double loss = 0;
    for (int64_t j = 0; j < n; j++)
        loss += (double)b->e[j] * (double)b->he[j];
    return loss;
}

/* b->w rounded; b->e = what that leaves of w. */
static void round_span(const clipping *c, bench *b, int64_t col, const float *w, int64_t n)
{
    nb_grid_fit(&c->grid, &b->row.mat, 0, col, b->w, NULL, NB_FIT_ABSMAX);
    for (int64_t j = 0; j < n; j += c->grid.group_len) {
        const int64_t len = smaller(c->grid.group_len, n - j);
        nb_grid_group g;
        nb_grid_group_at(&c->grid, &b->row.mat, 0, col + j, &g);
        nb_grid_nearest_n(&c->grid, &g, b->w + j, len, b->code);
        for (int64_t i = 0; i < len; i++)
            b->e[j + i] = w[j + i] - nb_grid_value(&c->grid, &g, b->code[i]);
    }
}

/* The steps that it is clipped by. */
static int clip_span(const clipping *c, bench *b, float *w, int64_t col, int64_t n)
{
    float lo, hi;
    nb_clip_range(w, n, c->two_sided, &lo, &hi);
    double least = 0;
    int best = 0;
    for (int i = 0; i < RATIOS; i++) {
        nb_clip_span(b->w, w, n, lo, hi, i);
        round_span(c, b, col, w, n);
        const double loss = loss_of(c, b, n);
        if (i > 0 && !(loss < least))
            continue;
        least = loss;
        best = i;
        memcpy(b->best, b->w, (size_t)n * sizeof *w);
    }
    memcpy(w, b->best, (size_t)n * sizeof *w);
    return best;
}

static void clip_chunk(void *context, int64_t chunk, int thread)
{
    clipping *c = context;
    bench *b = &c->bench[thread];
    const int64_t span = chunk / c->chunks_a_span, col = span * c->grid.span_len;
    const int64_t n = smaller(c->grid.span_len, c->n_cols - col);
    const int64_t begin = chunk % c->chunks_a_span * CHUNK_ROWS;
    load_h(c, b, col, n);
    for (int64_t r = begin; r < smaller(begin + CHUNK_ROWS, c->n_rows); r++) {
        const int steps = clip_span(c, b, c->weight + r * c->n_cols + col, col, n);
        c->n_clipped[chunk] += steps > 0;
        if (c->steps != NULL)
            c->steps[r * c->n_spans + span] = (uint8_t)steps;
    }
}

static nb_status bench_init(bench *b, const clipping *c, const nb_weight *to, nb_err *err)
{
    nb_weight one = *to;
    one.n_rows = 1;
    const int64_t n = smaller(c->grid.span_len, c->n_cols);
    NB_TRY(nb_room_for(&b->row, &one, err));
    NB_TRY(NB_ALLOC(&b->h, c->block ? n * n : n, err));
    NB_TRY(NB_ALLOC(&b->w, n, err));
    NB_TRY(NB_ALLOC(&b->best, n, err));
    NB_TRY(NB_ALLOC(&b->e, n, err));
    NB_TRY(NB_ALLOC(&b->he, n, err));
    return NB_ALLOC(&b->code, n, err);
}

static void bench_free(bench *b)
{
    nb_loaded_free(&b->row);
    nb_free(b->h);
    nb_free(b->w);
    nb_free(b->best);
    nb_free(b->e);
    nb_free(b->he);
    nb_free(b->code);
}

static void clip_rows(clipping *c, nb_pool *pool)
{
    c->chunks_a_span = (c->n_rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    nb_pool_run(pool, c->n_spans * c->chunks_a_span, clip_chunk, c);
}

/* Where the weight is not held: strip by strip, and all that remains are the steps. */
static nb_status clip_strips(clipping *c, const nb_transform_job *job, nb_linear_id id,
                             int64_t strip, nb_err *err)
{
    const int64_t n_rows = job->to[id]->n_rows;
    uint8_t *steps = NULL;
    float *room = NULL;
    nb_status s;
    NB_TRY_GOTO(s, NB_ALLOC(&steps, n_rows * c->n_spans, err));
    NB_TRY_GOTO(s, NB_ALLOC(&room, strip * c->n_cols, err));
    c->weight = room;
    for (int64_t row = 0; row < n_rows; row += strip) {
        const float *w;
        c->n_rows = smaller(strip, n_rows - row);
        c->steps = steps + row * c->n_spans;
        NB_TRY_GOTO(s, nb_transform_rows(job, id, row, c->n_rows, room, &w, err));
        clip_rows(c, job->la->pool);
    }
    nb_changes *changes = job->changes[id];
    assert(changes->clip == NULL && changes->divisors == NULL);
    changes->clip = steps;
    changes->span_len = c->grid.span_len;
    changes->two_sided = c->two_sided;
    steps = NULL;
done:
    nb_free(steps);
    nb_free(room);
    return s;
}

static nb_status run(clipping *c, const nb_transform_job *job, nb_linear_id id, double *clipped,
                     nb_err *err)
{
    nb_pool *pool = job->la->pool;
    const nb_weight *to = job->to[id];
    const int n_threads = nb_pool_n_threads(pool);
    const int64_t strip = nb_transform_strip(job, id);
    const int64_t n_chunks = c->n_spans * ((strip + CHUNK_ROWS - 1) / CHUNK_ROWS);
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, NB_ALLOC(&c->bench, n_threads, err));
    NB_TRY_GOTO(s, NB_ALLOC(&c->n_clipped, n_chunks, err));
    for (int i = 0; i < n_threads; i++)
        NB_TRY_GOTO(s, bench_init(&c->bench[i], c, to, err));
    if (c->weight != NULL)
        clip_rows(c, pool);
    else
        NB_TRY_GOTO(s, clip_strips(c, job, id, strip, err));
    int64_t n = 0;
    for (int64_t i = 0; i < n_chunks; i++)
        n += c->n_clipped[i];
    *clipped = (double)n / (double)(c->n_spans * to->n_rows);
done:
    for (int i = 0; c->bench != NULL && i < n_threads; i++)
        bench_free(&c->bench[i]);
    nb_free(c->bench);
    nb_free(c->n_clipped);
    return s;
}

nb_status nb_awq_clip(const nb_transform_job *job, nb_linear_id id, const nb_sym *h,
                      double *clipped, nb_err *err)
{
    const nb_weight *to = job->to[id];
    static uint8_t any; /* which arrays there are is all that a grid asks for */
    const nb_mat shape = {.fmt = to->fmt,
                          .n_rows = to->n_rows,
                          .n_cols = to->n_cols,
                          .group_size = to->group_size,
                          .float_zeros = to->float_zeros ? &any : NULL};
    *clipped = 0;
    if (to->fmt->grid == NULL || to->scale_rows > 1 || to->nested)
        return NB_OK; /* no grid, or rows share what clipping would change */
    clipping c = {
        .h = h,
        .two_sided = to->fmt->affine && !to->symmetric,
        .weight = job->weight[id],
        .n_rows = to->n_rows,
        .n_cols = to->n_cols,
    };
    NB_TRY(nb_grid_of(&c.grid, &shape, err));
    c.block = c.grid.span_len <= NB_CLIP_BLOCK;
    c.n_spans = (c.n_cols + c.grid.span_len - 1) / c.grid.span_len;
    return run(&c, job, id, clipped, err);
}
