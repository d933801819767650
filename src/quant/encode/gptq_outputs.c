/* Rows that make up for each other: see nb_gptq_encode_by_outputs. */
#include "quant/encode/gptq.h"

#include <string.h>

/* Rows that are encoded at a time, without knowing of each other: part of the result. */
#define TOGETHER 16
/* Of G: tokens, as gradients of drawn labels, are not as many as they look. Of a 135M model in
 * IQ4_NL (qronos, 32 k tokens), on other text: KL 0.0518 with 0.1, 0.0466 with 0.5 (and scales
 * fitted to codes, which is a small part of it), 0.0508 without G. */
#define SHRINK 0.5
#define DAMP   0.01

typedef struct {
    const nb_gptq_job *job;
    int64_t n_rows, n;
    nb_sym s;    /* the factor of G' */
    float *base; /* [n_rows][n]: what q is to be like */
    float *e;    /* [n_rows][n]: base - q, of the rows that are done */
    float *t;    /* [TOGETHER][n] */
    float *feed; /* [n_rows][TOGETHER]: S[i][k] / S[k][k] */
    int64_t row, m;
    nb_mat strip;
    uint8_t *scratch;
} rows;

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static nb_status factor(rows *x, const nb_sym *g_g, bool *positive, nb_err *err)
{
    NB_TRY(nb_sym_init(&x->s, x->n_rows, err));
    nb_sym_copy(&x->s, g_g);
    nb_sym_damp(&x->s, SHRINK, DAMP);
    return nb_sym_factor(x->job->la, &x->s, positive, err);
}

/* The weights, or where a move takes them. */
static nb_status take_base(rows *x, nb_err *err)
{
    const nb_gptq_job *job = x->job;
    const int64_t n = x->n_rows * x->n;
    const int64_t *order = job->feedback->order;
    memcpy(x->base, job->weight, (size_t)n * sizeof *x->base);
    if (job->options->move != NB_MOVE_FIRST || !(job->strength > 0) || job->feedback->blind)
        return NB_OK;
    nb_recursion c = {.job = job, .n_rows = x->n_rows, .n = x->n, .moved = x->e};
    for (int64_t r = 0; r < x->n_rows; r++) {
        for (int64_t k = 0; k < x->n; k++)
            x->e[r * x->n + k] = job->weight[r * x->n + order[k]];
    }
    c.base = c.moved;
    NB_TRY(nb_gptq_move_first(&c, err));
    for (int64_t r = 0; r < x->n_rows; r++) {
        for (int64_t k = 0; k < x->n; k++)
            x->base[r * x->n + order[k]] = x->e[r * x->n + k];
    }
    return NB_OK;
}

/* t of the rows at hand. */
static void hand_on(rows *x)
{
    memcpy(x->t, x->base + x->row * x->n, (size_t)(x->m * x->n) * sizeof *x->t);
    for (int64_t i = 0; i < x->row; i++) {
        const double *s = nb_sym_row(&x->s, i);
        for (int64_t k = 0; k < x->m; k++)
            x->feed[i * TOGETHER + k] =
                (float)(s[x->row + k] / nb_sym_row(&x->s, x->row + k)[x->row + k]);
    }
    const nb_matmul_job product = {
        .c = x->t,
        .ldc = x->n,
        .m = x->m,
        .n = x->n,
        .depth = x->row,
        .a = {x->feed, 1, TOGETHER},
        .b = {x->e, x->n, 1},
        .add = true,
    };
    if (x->row > 0)
        nb_matmul(x->job->la->kernels, x->job->la->pool, &product, x->scratch);
}

static void error_row(void *context, int64_t r, int thread)
{
    (void)thread;
    const rows *x = context;
    float *e = x->e + (x->row + r) * x->n;
    const float *base = x->base + (x->row + r) * x->n;
    x->strip.fmt->decode_row(&x->strip, r, e);
    for (int64_t k = 0; k < x->n; k++)
        e[k] = base[k] - e[k];
}

static nb_status run(rows *x, nb_err *err)
{
    nb_gptq_options options = *x->job->options;
    nb_gptq_job job = *x->job;
    options.move = NB_MOVE_NONE;
    job.options = &options;
    job.strength = 0;
    job.weight = x->t;
    job.out = &x->strip;
    for (x->row = 0; x->row < x->n_rows; x->row += TOGETHER) {
        x->m = smaller(TOGETHER, x->n_rows - x->row);
        x->strip = nb_mat_rows(x->job->out, x->row, x->m);
        hand_on(x);
        NB_TRY(nb_gptq_encode(&job, err));
        nb_pool_run(x->job->la->pool, x->m, error_row, x);
    }
    return NB_OK;
}

nb_status nb_gptq_encode_by_outputs(const nb_gptq_job *job, const nb_sym *g_g, nb_err *err)
{
    rows x = {.job = job, .n_rows = job->out->n_rows, .n = job->out->n_cols};
    bool positive = false;
    nb_status s = NB_OK;
    NB_TRY_GOTO(s, factor(&x, g_g, &positive, err));
    if (!positive || job->feedback->blind) {
        s = nb_gptq_encode(job, err);
        goto done;
    }
    NB_TRY_GOTO(s, NB_ALLOC(&x.base, x.n_rows * x.n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&x.e, x.n_rows * x.n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&x.t, TOGETHER * x.n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&x.feed, x.n_rows * TOGETHER, err));
    const int n_threads = nb_pool_n_threads(job->la->pool);
    NB_TRY_GOTO(
        s, NB_ALLOC(&x.scratch, nb_matmul_scratch_bytes(TOGETHER, x.n, x.n_rows, n_threads), err));
    NB_TRY_GOTO(s, take_base(&x, err));
    s = run(&x, err);
done:
    nb_sym_free(&x.s);
    nb_free(x.base);
    nb_free(x.e);
    nb_free(x.t);
    nb_free(x.feed);
    nb_free(x.scratch);
    return s;
}
