/* See autoround.h. */
#include "quant/encode/autoround.h"

#include "base/rng.h"
#include "quant/encode/rounding.h"

#include <float.h>
#include <math.h>
#include <string.h>

extern const nb_quantizer nb_quantizer_autoround;

/* ---- options ---- */

nb_status nb_autoround_options_parse(nb_autoround_options *out, const nb_method *method,
                                     bool resumes, nb_err *err)
{
    static const char *const known[] = {"iters", "batch", "len", "lr", "range-lr", "amp", NULL};
    double iters, batch, len, rate, range_rate, amp;
    NB_TRY(nb_method_only(method, known, err));
    NB_TRY(nb_method_number(method, "iters", 200, 1, 100000, &iters, err));
    NB_TRY(nb_method_number(method, "batch", 8, 1, 1024, &batch, err));
    NB_TRY(nb_method_number(method, "len", 512, 1, 1 << 20, &len, err));
    iters = floor(iters);
    NB_TRY(nb_method_number(method, "lr", (resumes ? 0.2 : 1) / iters, 0, 1, &rate, err));
    NB_TRY(nb_method_number(method, "range-lr", resumes ? 0 : 1 / iters, 0, 1, &range_rate, err));
    NB_TRY(nb_method_number(method, "amp", 1, 0, 1, &amp, err));
    *out = (nb_autoround_options){.iters = (int64_t)iters,
                                  .batch = (int64_t)batch,
                                  .len = (int64_t)len,
                                  .rate = rate,
                                  .range_rate = range_rate,
                                  .binary32 = amp == 0};
    return NB_OK;
}

static nb_status check(const nb_method *method, unsigned *needs, nb_err *err)
{
    (void)needs;
    nb_autoround_options o;
    return nb_autoround_options_parse(&o, method, false, err);
}

/* ---- state ---- */

/* Sequences that go through the block at once: equally long ones of a batch. */
typedef struct {
    const nb_block_job *job;
    const nb_autoround_options *o;
    nb_block_train train;
    nb_rounding rounding[NB_N_LINEARS];
    nb_block_weights weights; /* those of the moment */
    nb_block_grads grads;
    int64_t slice, len; /* sequences at once; tokens of the longest */
    float *x, *y;       /* [slice * len][d_model] */
    double *row_loss;   /* [slice * len] */
    double *seq_loss;   /* [n_seq]: of rounding to nearest */
    int64_t *order;     /* [n_seq] */
    float *moments;     /* of the inputs of the linears, [sum of 4 widths] */
} tuning;

static int64_t tokens_of(const tuning *t, int64_t seq)
{
    const int64_t n = t->job->n_tokens[seq];
    return n < t->o->len ? n : t->o->len;
}

/* Bytes of the buffers for slices of n sequences, without those of the matrices. */
static int64_t slice_bytes(const nb_config *c, const nb_autoround_options *o, int64_t n,
                           int64_t len, int n_threads)
{
    const int64_t train = nb_block_train_bytes(c, n, len, !o->binary32, n_threads);
    return train == INT64_MAX ? train : train + n * len * (2 * c->d_model * 4 + 8);
}

static int64_t matrix_bytes(const nb_config *c, const nb_block_job *job)
{
    int64_t bytes = 0;
    for (int i = 0; i < NB_N_LINEARS; i++) {
        const int64_t cols = nb_linear_n_cols(c, (nb_linear_id)i);
        int64_t n_groups = cols / 16; /* no format has smaller groups */
        if (job != NULL && job->out[i] == NULL)
            continue;
        if (job != NULL && job->out[i]->group_size > 0)
            n_groups = nb_mat_n_groups(job->out[i]);
        const int64_t rows = nb_linear_n_rows(c, (nb_linear_id)i);
        bytes += nb_rounding_bytes(rows, cols, n_groups + 1);
        bytes += job != NULL && job->resume ? rows * cols * 4 : 0;
    }
    return bytes;
}

void nb_autoround_bytes(const nb_config *c, const nb_autoround_options *o, int n_threads,
                        int64_t *least, int64_t *most)
{
    const int64_t matrices = matrix_bytes(c, NULL);
    *least = slice_bytes(c, o, 1, o->len, n_threads);
    *most = slice_bytes(c, o, o->batch, o->len, n_threads);
    *least = *least == INT64_MAX ? *least : *least + matrices;
    *most = *most == INT64_MAX ? *most : *most + matrices;
}

/* As many sequences at once as the memory allows: gradients do not depend on it. */
static nb_status choose_slice(tuning *t, nb_err *err)
{
    const nb_block_job *job = t->job;
    const int n_threads = nb_pool_n_threads(job->pool);
    const int64_t matrices = matrix_bytes(job->config, job);
    int64_t bytes = 0;
    for (t->slice = t->o->batch; t->slice >= 1; t->slice--) {
        bytes = slice_bytes(job->config, t->o, t->slice, t->len, n_threads);
        if (bytes != INT64_MAX && (job->memory == 0 || bytes <= job->memory - matrices))
            return NB_OK;
    }
    return nb_fail(err, NB_LIMIT,
                   "tuning a block with sequences of %lld tokens takes %lld MB, and %lld MB may be "
                   "taken",
                   (long long)t->len, (long long)((bytes >> 20) + (matrices >> 20)),
                   (long long)(job->memory >> 20));
}

static void close_tuning(tuning *t)
{
    for (int i = 0; i < NB_N_LINEARS; i++)
        nb_rounding_free(&t->rounding[i]);
    nb_block_train_free(&t->train);
    nb_free(t->x);
    nb_free(t->y);
    nb_free(t->row_loss);
    nb_free(t->seq_loss);
    nb_free(t->order);
    nb_free(t->moments);
}

static nb_status open_tuning(tuning *t, nb_err *err)
{
    const nb_block_job *job = t->job;
    const nb_config *c = job->config;
    if (job->n_seq < 1)
        return nb_fail(err, NB_USAGE, "tuning a block needs a sequence at least");
    for (int64_t i = 0; i < job->n_seq; i++)
        t->len = tokens_of(t, i) > t->len ? tokens_of(t, i) : t->len;
    NB_TRY(choose_slice(t, err));
    const int64_t n_rows = t->slice * t->len;
    NB_TRY(nb_block_train_init(&t->train, c, job->rope, job->kernels, job->pool, t->slice, t->len,
                               !t->o->binary32, err));
    NB_TRY(NB_ALLOC(&t->x, n_rows * c->d_model, err));
    NB_TRY(NB_ALLOC(&t->y, n_rows * c->d_model, err));
    NB_TRY(NB_ALLOC(&t->row_loss, n_rows, err));
    NB_TRY(NB_ALLOC(&t->seq_loss, job->n_seq, err));
    NB_TRY(NB_ALLOC(&t->order, job->n_seq, err));
    NB_TRY(NB_ALLOC(&t->moments, 2 * c->d_model + c->n_heads * c->head_dim + c->d_ff, err));
    t->weights = job->weights;
    return NB_OK;
}

/* ---- the block over some sequences ---- */

/* Fetches sequences seqs[0, n) of equal length, and runs them. */
static nb_status forward(tuning *t, const int64_t *seqs, int64_t n, nb_err *err)
{
    const nb_block_job *job = t->job;
    const int64_t len = tokens_of(t, seqs[0]), floats = len * job->config->d_model;
    for (int64_t i = 0; i < n; i++)
        NB_TRY(job->fetch(job->context, seqs[i], len, t->x + i * floats, t->y + i * floats, err));
    nb_block_forward(&t->train, &t->weights, t->x, n, len);
    return NB_OK;
}

/* How many of seqs[0, n) go together. */
static int64_t equal_run(const tuning *t, const int64_t *seqs, int64_t n)
{
    int64_t i = 1;
    while (i < n && i < t->slice && tokens_of(t, seqs[i]) == tokens_of(t, seqs[0]))
        i++;
    return i;
}

static void loss_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const tuning *t = context;
    const int64_t d = t->job->config->d_model;
    float *got = t->train.y + chunk * d;
    const float *want = t->y + chunk * d;
    double sum = 0;
    for (int64_t i = 0; i < d; i++) {
        got[i] -= want[i];
        sum += (double)got[i] * (double)got[i];
    }
    t->row_loss[chunk] = sum;
}

/* The squared error of each of n sequences, which leaves its gradient (halved) where the output
 * was. */
static void losses(tuning *t, int64_t n, int64_t len, double *out)
{
    nb_pool_run(t->job->pool, n * len, loss_chunk, t);
    for (int64_t i = 0; i < n; i++) {
        out[i] = 0;
        for (int64_t j = 0; j < len; j++)
            out[i] += t->row_loss[i * len + j];
    }
}

/* Sequences, at most, that decide between results: tens of thousands of tokens, and every result
 * is compared on the same ones. */
#define N_JUDGES 128

/* The i-th of n sequences, evenly apart. */
static int64_t judge(const tuning *t, int64_t i, int64_t n)
{
    return i * t->job->n_seq / n;
}

static int64_t n_judges(int64_t n_seq)
{
    return n_seq < N_JUDGES ? n_seq : N_JUDGES;
}

double nb_autoround_passes(const nb_autoround_options *o, int64_t n_seq, unsigned isa)
{
    const int64_t batch = o->batch < n_seq ? o->batch : n_seq;
    const double coarse = 3 * (double)o->iters * (double)batch + (double)n_seq;
    return coarse * (!o->binary32 && (isa & NB_ISA_BF16) ? 0.5 : 1) + 3 * (double)n_judges(n_seq);
}

/* The loss of n sequences, evenly apart: each one's in out[n]. */
static nb_status measure(tuning *t, int64_t n, double *out, double *total, nb_err *err)
{
    for (int64_t i = 0; i < n; i++)
        t->order[i] = judge(t, i, n);
    *total = 0;
    for (int64_t i = 0, m; i < n; i += m) {
        m = equal_run(t, t->order + i, n - i);
        NB_TRY(forward(t, t->order + i, m, err));
        losses(t, m, tokens_of(t, t->order[i]), out + i);
    }
    for (int64_t i = 0; i < n; i++)
        *total += out[i];
    return NB_OK;
}

/* The loss of the judges, in binary32: what is stored is chosen by it, and it is what is told. */
static nb_status measure_judges(tuning *t, double *total, nb_err *err)
{
    const int64_t n = n_judges(t->job->n_seq);
    double *each;
    NB_TRY(NB_ALLOC(&each, n, err));
    t->train.bf16 = false;
    const nb_status s = measure(t, n, each, total, err);
    t->train.bf16 = !t->o->binary32;
    nb_free(each);
    return s;
}

/* ---- the start ---- */

typedef struct {
    float *to;
    const float *x;
    int64_t n_rows, n;
} squares;

static void squares_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const squares *s = context;
    for (int64_t c = chunk * 16; c < s->n && c < chunk * 16 + 16; c++) {
        double sum = 0;
        for (int64_t row = 0; row < s->n_rows; row++)
            sum += (double)s->x[row * s->n + c] * (double)s->x[row * s->n + c];
        s->to[c] = (float)((double)s->to[c] + sum);
    }
}

static void add_squares(tuning *t, float *to, const float *x, int64_t n_rows, int64_t n)
{
    squares s = {.to = to, .x = x, .n_rows = n_rows, .n = n};
    nb_pool_run(t->job->pool, (n + 15) / 16, squares_chunk, &s);
}

/* Scales are searched with errors weighed by what the inputs of the first sequences do to them;
 * one sequence at a time, for the number at once depends on memory. */
static nb_status start(tuning *t, nb_err *err)
{
    const nb_block_job *job = t->job;
    const nb_config *c = job->config;
    const int64_t d_q = c->n_heads * c->head_dim;
    float *in = t->moments, *att = in + c->d_model, *mid = att + d_q, *h = mid + c->d_model;
    for (int64_t i = 0; !job->resume && i < job->n_seq && i < t->o->batch; i++) {
        const int64_t n_rows = tokens_of(t, i);
        NB_TRY(forward(t, &i, 1, err));
        add_squares(t, in, t->train.normed1, n_rows, c->d_model);
        add_squares(t, att, t->train.att, n_rows, d_q);
        add_squares(t, mid, t->train.normed2, n_rows, c->d_model);
        add_squares(t, h, t->train.h, n_rows, c->d_ff);
    }
    const float *const importance[NB_N_LINEARS] = {in, in, in, att, mid, mid, h};
    for (int i = 0; i < NB_N_LINEARS; i++) {
        if (job->out[i] == NULL)
            continue;
        const float *w = job->weights.linear[i];
        NB_TRY(job->resume ? nb_rounding_resume(&t->rounding[i], job->out[i], w, job->pool, err)
                           : nb_rounding_init(&t->rounding[i], job->out[i], w, importance[i],
                                              job->pool, err));
        t->weights.linear[i] = t->rounding[i].value;
        t->grads.linear[i] = t->rounding[i].grad;
    }
    return NB_OK;
}

/* ---- steps ---- */

/* A batch of different sequences, drawn by (seed, step): the first of a shuffle, in ascending order
 * of length, then of number, so that equal lengths lie together. */
static int64_t draw(tuning *t, int64_t step)
{
    const int64_t n_seq = t->job->n_seq, n = t->o->batch < n_seq ? t->o->batch : n_seq;
    for (int64_t i = 0; i < n_seq; i++)
        t->order[i] = i;
    for (int64_t i = 0; i < n; i++) {
        const double u = nb_rng_uniform(t->job->seed, (uint64_t)step, (uint64_t)i);
        const int64_t j = i + (int64_t)(u * (double)(n_seq - i)), kept = t->order[i];
        t->order[i] = t->order[j];
        t->order[j] = kept;
    }
    for (int64_t i = 1; i < n; i++) {
        const int64_t seq = t->order[i], len = tokens_of(t, seq);
        int64_t j = i;
        for (; j > 0 && (tokens_of(t, t->order[j - 1]) > len ||
                         (tokens_of(t, t->order[j - 1]) == len && t->order[j - 1] > seq));
             j--)
            t->order[j] = t->order[j - 1];
        t->order[j] = seq;
    }
    return n;
}

/* Gradients of a batch (after the last step only a loss is wanted), and its loss as a share of that
 * of rounding to nearest. */
static nb_status descend(tuning *t, int64_t step, bool last, double *share, nb_err *err)
{
    const nb_config *c = t->job->config;
    const int64_t n_batch = draw(t, step);
    double loss = 0, first = 0;
    for (int i = 0; i < NB_N_LINEARS; i++)
        if (t->grads.linear[i] != NULL)
            memset(t->grads.linear[i], 0,
                   (size_t)(nb_linear_n_rows(c, (nb_linear_id)i) *
                            nb_linear_n_cols(c, (nb_linear_id)i)) *
                       sizeof(float));
    for (int64_t i = 0, n; i < n_batch; i += n) {
        const int64_t *seqs = t->order + i;
        n = equal_run(t, seqs, n_batch - i);
        const int64_t len = tokens_of(t, seqs[0]);
        double each[1024];
        NB_TRY(forward(t, seqs, n, err));
        losses(t, n, len, each);
        for (int64_t j = 0; j < n; j++) {
            loss += each[j];
            first += t->seq_loss[seqs[j]];
        }
        if (!last)
            nb_block_backward(&t->train, &t->weights, t->x, n, len, &t->grads);
    }
    *share = first > 0 ? loss / first : loss > 0 ? DBL_MAX : 1;
    return NB_OK;
}

static nb_status steps(tuning *t, nb_block_result *result, nb_err *err)
{
    const nb_autoround_options *o = t->o;
    double best = 1;
    for (int64_t step = 0; step <= o->iters; step++) {
        double share;
        NB_TRY(descend(t, step, step == o->iters, &share, err));
        if (share < best) {
            best = share;
            result->best_step = step;
            for (int i = 0; i < NB_N_LINEARS; i++)
                if (t->job->out[i] != NULL)
                    nb_rounding_keep(&t->rounding[i]);
        }
        if (t->job->progress != NULL && !t->job->progress(t->job->context, step, o->iters, share))
            return nb_fail(err, NB_INTERRUPTED, "stopped at step %lld of %lld", (long long)step,
                           (long long)o->iters);
        const double left = 1 - (double)step / (double)o->iters;
        for (int i = 0; i < NB_N_LINEARS && step < o->iters; i++)
            if (t->job->out[i] != NULL)
                nb_rounding_step(&t->rounding[i], t->job->pool, (float)(o->rate * left),
                                 (float)(o->range_rate * left));
        result->n_steps = step;
    }
    return NB_OK;
}

/* ---- the whole ---- */

typedef void change_fn(nb_rounding *r, nb_pool *pool);

static void for_all(tuning *t, change_fn *change)
{
    for (int i = 0; i < NB_N_LINEARS; i++)
        if (t->job->out[i] != NULL)
            change(&t->rounding[i], t->job->pool);
}

/* Of the last step, the one that was best on its batch, and the start, what is best on the judges,
 * where the start had `before`. */
static nb_status choose(tuning *t, double before, double *after, nb_block_result *result,
                        nb_err *err)
{
    double kept = 0;
    NB_TRY(measure_judges(t, after, err));
    if (result->best_step < result->n_steps) {
        for_all(t, nb_rounding_swap);
        NB_TRY(measure_judges(t, &kept, err));
        if (kept < *after)
            *after = kept;
        else
            for_all(t, nb_rounding_swap);
    }
    if (*after != kept)
        result->best_step = result->n_steps;
    if (!(*after < before)) {
        for_all(t, nb_rounding_restart);
        *after = before;
        result->best_step = 0;
    }
    return NB_OK;
}

static nb_status tune(tuning *t, nb_block_result *result, nb_err *err)
{
    const nb_block_job *job = t->job;
    double all, before, after;
    int64_t n = 0;
    NB_TRY(open_tuning(t, err));
    NB_TRY(start(t, err));
    NB_TRY(measure(t, job->n_seq, t->seq_loss, &all, err)); /* as steps see them */
    NB_TRY(measure_judges(t, &before, err));
    const int64_t n_judging = n_judges(job->n_seq);
    for (int64_t i = 0; i < n_judging; i++)
        n += tokens_of(t, judge(t, i, n_judging)) * job->config->d_model;
    after = before;
    /* Nothing to win, or nothing that could be compared. */
    if (before > 0 && before <= DBL_MAX && all <= DBL_MAX) {
        NB_TRY(steps(t, result, err));
        NB_TRY(choose(t, before, &after, result, err));
    }
    for_all(t, nb_rounding_write);
    result->loss_before = before / (double)n;
    result->loss_after = after / (double)n;
    return NB_OK;
}

nb_status nb_autoround(const nb_block_job *job, const nb_autoround_options *o,
                       nb_block_result *result, nb_err *err)
{
    tuning t = {.job = job, .o = o};
    *result = (nb_block_result){0};
    const nb_status s = tune(&t, result, err);
    close_tuning(&t);
    return s;
}

static nb_status tune_block(const nb_block_job *job, nb_block_result *result, nb_err *err)
{
    nb_autoround_options o;
    NB_TRY(nb_autoround_options_parse(&o, job->method, job->resume, err));
    return nb_autoround(job, &o, result, err);
}

const nb_quantizer nb_quantizer_autoround = {
    .name = "autoround",
    .source = "arXiv:2309.05516",
    .summary = "the rounding of a whole block, learned by signed gradients",
    .needs = NB_STAT_BLOCK,
    .check = check,
    .tune_block = tune_block,
};
