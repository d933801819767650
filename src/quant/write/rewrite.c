/* See rewrite.h. */
#define _DEFAULT_SOURCE
#include "quant/write/rewrite.h"

#include "quant/plan/kv.h"

#include "quant/weight/room.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

extern const nb_quantizer nb_quantizer_rtn;

/* Weights above this are not allowed to stand in memory twice. */
#define LARGE_BYTES ((int64_t)64 << 20)
/* Slices between two moments at which memory is given back. */
#define BAND_SLICES 256

typedef struct {
    nb_store *store;
    const nb_plan *plan;
    nb_sink *sink;
    nb_pool *pool;
    const nb_rewrite_options *options;
    nb_rewrite_result *sums;
    nb_loaded source;
    nb_loaded made;           /* the weight that is being made */
    nb_buf scratch;           /* [n_threads] */
    nb_slice_result *results; /* [n_results] */
    nb_err *errs;             /* [n_threads] */
    int64_t n_results;
} rewriter;

/* ---- one weight, all slices ---- */

typedef struct {
    nb_slice_job job;
    nb_slicing slicing;
    int64_t first; /* slice of chunk 0 */
    size_t scratch_bytes;
    uint8_t *scratch;
    nb_slice_result *results;
    nb_err *errs;
} band;

static void run_slice(void *context, int64_t chunk, int thread)
{
    const band *b = context;
    const int64_t i = b->first + chunk;
    nb_slice_run(&b->job, &b->slicing, i, b->scratch + (size_t)thread * b->scratch_bytes,
                 &b->results[i], &b->errs[thread]);
    if (b->results[i].end == NB_SLICE_FAILED)
        b->results[i].col = thread; /* whose message it is */
}

static nb_status prepare(rewriter *w, band *b, nb_err *err)
{
    const size_t n_threads = (size_t)nb_pool_n_threads(w->pool);
    const nb_slice_job *job = &b->job;
    nb_slicing_of(&b->slicing, job->from, job->how == NB_HOW_COPY ? NULL : job->to);
    b->scratch_bytes =
        (nb_slice_scratch_bytes(&b->slicing) + NB_CACHE_LINE - 1) / NB_CACHE_LINE * NB_CACHE_LINE;
    size_t all;
    if (!nb_mul_size(b->scratch_bytes, n_threads, &all))
        return nb_fail(err, NB_MEMORY, "rows of %lld columns do not fit in memory",
                       (long long)b->slicing.n_cols);
    NB_TRY(nb_room_reserve(&w->scratch, all, err));
    if (w->n_results < b->slicing.n_slices) {
        nb_free(w->results);
        w->n_results = 0;
        NB_TRY(NB_ALLOC(&w->results, b->slicing.n_slices, err));
        w->n_results = b->slicing.n_slices;
    }
    b->scratch = w->scratch.data;
    b->results = w->results;
    b->errs = w->errs;
    return NB_OK;
}

/* Gives the memory of rows that are done back to the system. */
static void forget_rows(const band *b, int64_t n_done)
{
    const nb_mat *m = b->job.from;
    const int64_t across = (b->slicing.n_cols + b->slicing.slice_cols - 1) / b->slicing.slice_cols;
    const int64_t rows = n_done / across * b->slicing.slice_rows;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)m->codes;
    const uintptr_t from = (begin + page - 1) / page * page;
    const uintptr_t to = (begin + (uintptr_t)(rows * m->row_bytes)) / page * page;
    if (rows < m->n_rows && to > from)
        (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

static void run_band(rewriter *w, band *b, bool forget)
{
    const int64_t n = b->slicing.n_slices, step = forget ? BAND_SLICES : n;
    for (b->first = 0; b->first < n; b->first += step) {
        const int64_t left = n - b->first;
        nb_pool_run(w->pool, left < step ? left : step, run_slice, b);
        if (forget && left > step)
            forget_rows(b, b->first + step);
    }
}

/* The first slice in the matrix's order that did not go well, whichever thread was first. */
static nb_status first_failure(const rewriter *w, const band *b, const nb_weight *from, nb_err *err)
{
    for (int64_t i = 0; i < b->slicing.n_slices; i++) {
        const nb_slice_result *r = &b->results[i];
        const long long row = (long long)r->row, col = (long long)r->col;
        switch (r->end) {
        case NB_SLICE_FINE:
            break;
        case NB_SLICE_NONFINITE:
            return nb_fail(err, NB_DATA,
                           "tensor '%.200s' holds %g at [%lld, %lld]; --nonfinite=zero takes it "
                           "for 0",
                           from->name, (double)r->value, row, col);
        case NB_SLICE_OVERFLOW:
            return nb_fail(err, NB_DATA, "tensor '%.200s': %g at [%lld, %lld] does not fit into %s",
                           from->name, (double)r->value, row, col, b->job.to->fmt->name);
        case NB_SLICE_INEXACT:
            return nb_fail(err, NB_UNSUPPORTED,
                           "tensor '%.200s': row %lld has a scale that %s cannot hold exactly; "
                           "--requantize chooses new codes",
                           from->name, row, b->job.to->fmt->name);
        case NB_SLICE_FAILED:
            *err = w->errs[r->col];
            return nb_context(err, "tensor '%.200s'", from->name);
        }
    }
    return NB_OK;
}

/* Sums are added in the order of slices. */
static void add_up(const band *b, nb_rewrite_result *out, nb_error_sum *error)
{
    for (int64_t i = 0; i < b->slicing.n_slices; i++) {
        out->n_zeroed += b->results[i].n_zeroed;
        out->n_requantized += b->results[i].n_requantized;
        nb_error_sum_add(error, &b->results[i].error);
    }
}

/* ---- weights ---- */

static bool is_float(nb_how how)
{
    return how == NB_HOW_WIDEN || how == NB_HOW_ROUND;
}

static nb_status make(rewriter *w, band *b, const nb_weight *from, nb_err *err)
{
    nb_error_sum error = {0};
    NB_TRY(prepare(w, b, err));
    const int64_t bytes = b->job.from->row_bytes * b->job.from->n_rows;
    if (b->job.how != NB_HOW_COPY && nb_mat_shares(b->job.to)) {
        b->job.survey = true;
        run_band(w, b, false);
        b->job.survey = false;
        NB_TRY(first_failure(w, b, from, err));
        b->job.to->fmt->settle(b->job.to);
    }
    run_band(w, b, b->job.how != NB_HOW_COPY && bytes > LARGE_BYTES);
    NB_TRY(first_failure(w, b, from, err));
    const int64_t zeroed_before = w->sums->n_zeroed, new_before = w->sums->n_requantized;
    add_up(b, w->sums, &error);
    if (b->job.how == NB_HOW_QUANTIZE || w->sums->n_requantized > new_before)
        nb_error_sum_add(&w->sums->quantized, &error);
    else if (is_float(b->job.how))
        nb_error_sum_add(&w->sums->rounded, &error);
    if (b->job.how != NB_HOW_COPY || w->sums->n_zeroed == zeroed_before)
        return NB_OK;
    /* A copy with other values is none: those rows are encoded again, in the same format. */
    if (from->fmt->encode_row == NULL)
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s' holds NaN or Inf, and nibble has no encoder for %s",
                       from->name, from->fmt->name);
    w->sums->n_zeroed = zeroed_before;
    b->job.how = NB_HOW_ROUND;
    return make(w, b, from, err);
}

/* Methods that need data are for the linear layers of blocks; what else a plan quantizes is rounded
 * to nearest. */
static const nb_method *method_of(const rewriter *w, int64_t i)
{
    static const nb_method nearest = {.quantizer = &nb_quantizer_rtn};
    const nb_method *m = nb_plan_method(w->plan, i, w->options->method);
    return m->quantizer->encode_rows != NULL ? m : &nearest;
}

static nb_status put_weight(rewriter *w, int64_t i, nb_err *err)
{
    const nb_plan *plan = w->plan;
    const nb_weight *from = plan->from[i], *to = &plan->weights[i];
    NB_TRY(nb_store_read(w->store, from, &w->source, err));
    band b = {.job = {.from = &w->source.mat,
                      .to = &w->made.mat,
                      .how = plan->how[i],
                      .method = method_of(w, i),
                      .nonfinite = w->options->nonfinite,
                      .requantize = plan->request.requantize}};
    const bool keeps = b.job.nonfinite == NB_NONFINITE_KEEP;
    if (keeps && b.job.how == NB_HOW_COPY)
        return nb_sink_put(w->sink, i, &w->source.mat, err);
    if (keeps && !is_float(b.job.how))
        b.job.nonfinite = NB_NONFINITE_REFUSE; /* codes cannot say it */
    const bool copies = b.job.how == NB_HOW_COPY;
    if (!copies || b.job.nonfinite == NB_NONFINITE_ZERO)
        NB_TRY(nb_room_for(&w->made, to, err));
    if (make(w, &b, from, err) != NB_OK)
        return nb_context(err, "%s", nb_store_path(w->store));
    return nb_sink_put(w->sink, i, b.job.how == NB_HOW_COPY ? &w->source.mat : &w->made.mat, err);
}

/* A weight that waits in the working folder. */
static nb_status put_made(rewriter *w, int64_t i, nb_err *err)
{
    NB_TRY(nb_room_for(&w->made, &w->plan->weights[i], err));
    NB_TRY(nb_workdir_get_mat(w->options->dir, w->options->made_from + i, &w->made, err));
    return nb_sink_put(w->sink, i, &w->made.mat, err);
}

static nb_status put_rope_factors(rewriter *w, int64_t i, nb_err *err)
{
    const nb_weight *to = &w->plan->weights[i];
    const nb_mat m = {.fmt = to->fmt,
                      .n_rows = 1,
                      .n_cols = to->n_cols,
                      .codes = w->plan->rope_factors,
                      .row_bytes = to->n_cols * (int64_t)sizeof(float)};
    return nb_sink_put(w->sink, i, &m, err);
}

static nb_status put_kv_scales(rewriter *w, int64_t i, nb_err *err)
{
    const nb_mat m = nb_plan_kv_mat(w->plan, i);
    return nb_sink_put(w->sink, i, &m, err);
}

/* Large buffers are not kept for the smaller weights that follow. */
static void trim(rewriter *w)
{
    if (w->source.codes.cap > (size_t)LARGE_BYTES || w->source.scratch.cap > (size_t)LARGE_BYTES)
        nb_loaded_free(&w->source);
    if (w->made.codes.cap > (size_t)LARGE_BYTES)
        nb_buf_free(&w->made.codes);
}

static nb_status put_all(rewriter *w, nb_err *err)
{
    int64_t total = 0, done = 0;
    for (int64_t i = 0; i < w->plan->n; i++)
        total += w->plan->from[i] != NULL ? w->plan->from[i]->bytes : 0;
    NB_TRY(NB_ALLOC(&w->errs, nb_pool_n_threads(w->pool), err));
    for (int64_t i = 0; i < w->plan->n; i++) {
        if (w->plan->how[i] == NB_HOW_MAKE) {
            NB_TRY(nb_plan_kv_scales(w->plan, i) != NULL ? put_kv_scales(w, i, err)
                                                         : put_rope_factors(w, i, err));
            continue;
        }
        const bool made = w->options->made != NULL && w->options->made[i];
        NB_TRY(made ? put_made(w, i, err) : put_weight(w, i, err));
        trim(w);
        done += w->plan->from[i]->bytes;
        if (w->options->progress != NULL && !w->options->progress(w->options->context, done, total))
            return nb_fail(err, NB_INTERRUPTED, "interrupted; nothing was written");
    }
    return NB_OK;
}

nb_status nb_rewrite(nb_store *store, const nb_plan *plan, nb_sink *sink, nb_pool *pool,
                     const nb_rewrite_options *options, nb_rewrite_result *out, nb_err *err)
{
    *out = (nb_rewrite_result){0};
    for (int64_t i = 0; i < plan->n; i++) {
        if (nb_plan_waits(plan, i))
            return nb_fail(err, NB_UNSUPPORTED,
                           "%s: static activations have scales from a calibration text, and there "
                           "was none",
                           plan->weights[i].name);
    }
    rewriter w = {
        .store = store, .plan = plan, .sink = sink, .pool = pool, .options = options, .sums = out};
    const nb_status s = put_all(&w, err);
    nb_loaded_free(&w.source);
    nb_loaded_free(&w.made);
    nb_buf_free(&w.scratch);
    nb_free(w.results);
    nb_free(w.errs);
    return s;
}
