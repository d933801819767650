/* Coordinate descent after the recursion: each code in turn becomes the best one given all others,
 * those before it included, which the recursion could not know yet. With g = e H', changing a value
 * by d changes the loss by d^2 H'[k][k] - 2 d g_k: the value nearest to q_k + g_k / H'[k][k] wins,
 * and g moves by -d times row k of H'. The loss never rises. */
#include "quant/gptq.h"

#include <float.h>

#define CHUNK_ROWS 8

typedef struct {
    nb_recursion *c;
    const float *full; /* H', [n][n] */
    float *e;          /* [n_rows][n] */
} polishing;

static void value_at(const nb_recursion *c, int64_t r, int64_t col, nb_grid_group *group,
                     int64_t *at)
{
    if (col / c->grid.group_len != *at) {
        nb_grid_group_at(&c->grid, c->job->out, r, col, group);
        *at = col / c->grid.group_len;
    }
}

static void error_row(void *context, int64_t r, int thread)
{
    (void)thread;
    const polishing *p = context;
    const nb_recursion *c = p->c;
    nb_grid_group group;
    int64_t at = -1;
    for (int64_t k = 0; k < c->n; k++) {
        const int64_t col = c->job->feedback->order[k];
        value_at(c, r, col, &group, &at);
        const float e =
            c->base[r * c->n + k] - nb_grid_value(&c->grid, &group, c->code[r * c->n + col]);
        p->e[r * c->n + k] = e;
    }
}

/* Whether any code changed. */
static bool sweep_row(const polishing *p, int64_t r)
{
    const nb_recursion *c = p->c;
    nb_axpy_fn *const axpy = c->job->la->kernels->axpy;
    float *g = c->t + r * c->n;
    uint8_t *code = c->code + r * c->n;
    nb_grid_group group;
    int64_t at = -1;
    bool changed = false;
    for (int64_t k = 0; k < c->n; k++) {
        const int64_t col = c->job->feedback->order[k];
        const float *h = p->full + k * c->n;
        value_at(c, r, col, &group, &at);
        const float is = nb_grid_value(&c->grid, &group, code[col]);
        const float want = is + g[k] / h[k];
        if (!(want >= -FLT_MAX && want <= FLT_MAX))
            continue;
        const int q = nb_grid_nearest(&c->grid, &group, want);
        const float d = nb_grid_value(&c->grid, &group, q) - is;
        if (q == code[col] ||
            !((double)d * (double)d * (double)h[k] < 2 * (double)d * (double)g[k]))
            continue;
        code[col] = (uint8_t)q;
        axpy(g, -d, h, c->n);
        changed = true;
    }
    return changed;
}

static void sweep_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const polishing *p = context;
    for (int64_t r = chunk * CHUNK_ROWS; r < p->c->n_rows && r < (chunk + 1) * CHUNK_ROWS; r++) {
        int n_left = p->c->job->options->polish;
        while (n_left > 0 && sweep_row(p, r))
            n_left--;
    }
}

nb_status nb_gptq_polish(nb_recursion *c, nb_err *err)
{
    const nb_gptq_job *job = c->job;
    nb_algebra *la = job->la;
    polishing p = {.c = c};
    float *full = NULL;
    uint8_t *scratch = NULL;
    nb_status s = NB_OK;
    p.full = job->full;
    if (p.full == NULL) {
        NB_TRY_GOTO(s, NB_ALLOC(&full, c->n * c->n, err));
        NB_TRY_GOTO(s, nb_feedback_full(job->feedback, la, job->moments, job->shrink, full, err));
        p.full = full;
    }
    NB_TRY_GOTO(s, NB_ALLOC(&p.e, c->n_rows * c->n, err));
    NB_TRY_GOTO(
        s,
        NB_ALLOC(&scratch,
                 nb_matmul_scratch_bytes(c->n_rows, c->n, c->n, nb_pool_n_threads(la->pool)), err));
    nb_pool_run(la->pool, c->n_rows, error_row, &p);
    const nb_matmul_job gradient = {
        .c = c->t, /* its work is done */
        .ldc = c->n,
        .m = c->n_rows,
        .n = c->n,
        .depth = c->n,
        .a = {p.e, c->n, 1},
        .b = {p.full, c->n, 1},
    };
    nb_matmul(la->kernels, la->pool, &gradient, scratch);
    nb_pool_run(la->pool, (c->n_rows + CHUNK_ROWS - 1) / CHUNK_ROWS, sweep_chunk, &p);
done:
    nb_free(full);
    nb_free(p.e);
    nb_free(scratch);
    return s;
}
