/* See awq_clip.h. */
#include "quant/transform/awq_clip.h"

#include "quant/weight/room.h"

#include <math.h>
#include <string.h>

#define CHUNK_ROWS 32
#define RATIOS     11
#define RATIO_STEP 0.05f

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
    float *weight;  /* [n_rows][n_cols] */
    int64_t n_rows, n_cols, chunks_a_span;
    bench *bench;       /* [n_threads] */
    int64_t *n_clipped; /* [n_chunks] */
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

static bool clip_span(const clipping *c, bench *b, float *w, int64_t col, int64_t n)
{
    float lo = 0, hi = 0;
    for (int64_t j = 0; j < n; j++) {
        lo = w[j] < lo ? w[j] : lo;
        hi = w[j] > hi ? w[j] : hi;
    }
    if (!c->two_sided) {
        hi = hi > -lo ? hi : -lo;
        lo = -hi;
    }
    double least = 0;
    bool clipped = false;
    for (int i = 0; i < RATIOS; i++) {
        const float ratio = 1 - RATIO_STEP * (float)i, from = lo * ratio, to = hi * ratio;
        for (int64_t j = 0; j < n; j++)
            b->w[j] = w[j] < from ? from : w[j] > to ? to : w[j];
        round_span(c, b, col, w, n);
        const double loss = loss_of(c, b, n);
        if (i > 0 && !(loss < least))
            continue;
        least = loss;
        clipped = i > 0;
        memcpy(b->best, b->w, (size_t)n * sizeof *w);
    }
    memcpy(w, b->best, (size_t)n * sizeof *w);
    return clipped;
}

static void clip_chunk(void *context, int64_t chunk, int thread)
{
    clipping *c = context;
    bench *b = &c->bench[thread];
    const int64_t col = chunk / c->chunks_a_span * c->grid.span_len;
    const int64_t n = smaller(c->grid.span_len, c->n_cols - col);
    const int64_t begin = chunk % c->chunks_a_span * CHUNK_ROWS;
    load_h(c, b, col, n);
    for (int64_t r = begin; r < smaller(begin + CHUNK_ROWS, c->n_rows); r++)
        c->n_clipped[chunk] += clip_span(c, b, c->weight + r * c->n_cols + col, col, n);
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

static nb_status run(clipping *c, nb_pool *pool, const nb_weight *to, double *clipped, nb_err *err)
{
    const int n_threads = nb_pool_n_threads(pool);
    const int64_t n_spans = (c->n_cols + c->grid.span_len - 1) / c->grid.span_len;
    const int64_t n_chunks = n_spans * c->chunks_a_span;
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, NB_ALLOC(&c->bench, n_threads, err));
    NB_TRY_GOTO(s, NB_ALLOC(&c->n_clipped, n_chunks, err));
    for (int i = 0; i < n_threads; i++)
        NB_TRY_GOTO(s, bench_init(&c->bench[i], c, to, err));
    nb_pool_run(pool, n_chunks, clip_chunk, c);
    int64_t n = 0;
    for (int64_t i = 0; i < n_chunks; i++)
        n += c->n_clipped[i];
    *clipped = (double)n / (double)(n_spans * c->n_rows);
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
        .chunks_a_span = (to->n_rows + CHUNK_ROWS - 1) / CHUNK_ROWS,
    };
    NB_TRY(nb_grid_of(&c.grid, &shape, err));
    c.block = c.grid.span_len <= NB_CLIP_BLOCK;
    return run(&c, job->la->pool, to, clipped, err);
}
