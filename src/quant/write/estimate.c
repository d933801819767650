/* What carrying out a plan will take: memory by arithmetic, time by trying a little of it. */
#define _POSIX_C_SOURCE 200809L
#include "quant/write/rewrite.h"

#include "base/clock.h"
#include "base/rng.h"

/* ---- memory ---- */

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Small weights stand in memory before and after; of a large one, what is done is given back. */
static int64_t weight_memory(const nb_weight *from, const nb_weight *to, nb_how how)
{
    const int64_t large = (int64_t)64 << 20;
    if (how == NB_HOW_COPY)
        return from->bytes;
    if (from->bytes <= large)
        return from->bytes + to->bytes;
    return larger(from->bytes, to->bytes) + large;
}

/* The program itself, and what it makes of names and of a tokenizer: measured, and rounded up. */
#define BASE_BYTES  ((int64_t)16 << 20)
#define TEXT_FACTOR 8

int64_t nb_rewrite_memory(const nb_plan *plan, int64_t text_bytes, int n_threads)
{
    int64_t most = 0, widest = 0;
    for (int64_t i = 0; i < plan->n; i++) {
        if (plan->how[i] == NB_HOW_MAKE)
            continue;
        most = larger(most, weight_memory(plan->from[i], &plan->weights[i], plan->how[i]));
        widest = larger(widest, plan->weights[i].n_cols);
    }
    const nb_slicing rows = {.slice_rows = 65536 / widest + 1, .slice_cols = widest};
    return BASE_BYTES + TEXT_FACTOR * text_bytes + most +
           n_threads * (int64_t)nb_slice_scratch_bytes(&rows);
}

/* ---- time ---- */

#define TRIAL_ROWS 32
#define TRIAL_COLS 1024

typedef struct {
    float values[TRIAL_ROWS * TRIAL_COLS];
    uint8_t from[TRIAL_ROWS * TRIAL_COLS * 4], to[TRIAL_ROWS * TRIAL_COLS * 4];
    float from_scales[TRIAL_ROWS * TRIAL_COLS], to_scales[TRIAL_ROWS * TRIAL_COLS];
    float from_zeros[TRIAL_ROWS * TRIAL_COLS], to_zeros[TRIAL_ROWS * TRIAL_COLS];
} trial;

static nb_status trial_mat(nb_mat *m, const nb_weight *w, void *codes, void *scales, void *zeros,
                           nb_err *err)
{
    *m = (nb_mat){.fmt = w->fmt, .n_rows = TRIAL_ROWS, .n_cols = TRIAL_COLS, .codes = codes};
    if (w->fmt->affine) {
        const bool divides = w->group_size > 0 && TRIAL_COLS % w->group_size == 0;
        m->group_size = divides ? w->group_size : TRIAL_COLS;
        m->scale_type = w->scale_type;
        m->scales = scales;
        m->zeros = w->symmetric || w->float_zeros ? NULL : zeros;
        m->float_zeros = w->float_zeros ? zeros : NULL;
    }
    return nb_format_row_bytes(w->fmt, TRIAL_COLS, &m->row_bytes, err);
}

/* Seconds a weight; the better of two, because the first one also fetches the code. */
static nb_status try_one(trial *t, const nb_weight *from, const nb_weight *to, nb_how how,
                         const nb_method *method, double *seconds, nb_err *err)
{
    nb_mat source, made;
    NB_TRY(trial_mat(&source, from, t->from, t->from_scales, t->from_zeros, err));
    NB_TRY(trial_mat(&made, to, t->to, t->to_scales, t->to_zeros, err));
    for (int64_t r = 0; r < TRIAL_ROWS && from->fmt->encode_row != NULL; r++)
        from->fmt->encode_row(&source, r, t->values + r * TRIAL_COLS);
    const nb_slice_job job = {
        .from = &source, .to = &made, .how = how, .method = method, .requantize = true};
    nb_slicing slicing;
    nb_slicing_of(&slicing, &source, &made);
    nb_buf scratch = {0};
    NB_TRY(nb_buf_reserve(&scratch, nb_slice_scratch_bytes(&slicing), err));
    *seconds = 1e9;
    for (int k = 0; k < 2; k++) {
        nb_slice_result result;
        const double start = nb_clock();
        for (int64_t i = 0; i < slicing.n_slices; i++)
            nb_slice_run(&job, &slicing, i, scratch.data, &result, err);
        const double took = (nb_clock() - start) / (TRIAL_ROWS * TRIAL_COLS);
        *seconds = took < *seconds ? took : *seconds;
    }
    nb_buf_free(&scratch);
    return NB_OK;
}

/* Whether the same is done to both. */
static bool alike(const nb_plan *p, int64_t i, int64_t j)
{
    return p->how[i] == p->how[j] && p->weights[i].fmt == p->weights[j].fmt &&
           p->from[i]->fmt == p->from[j]->fmt;
}

#define MAX_KINDS 32

nb_status nb_rewrite_estimate(const nb_plan *plan, const nb_method *method, int n_threads,
                              double *seconds, nb_err *err)
{
    trial *t;
    NB_TRY(NB_ALLOC(&t, 1, err));
    for (int64_t i = 0; i < TRIAL_ROWS * TRIAL_COLS; i++)
        t->values[i] = (float)(nb_rng_uniform(0, 0, (uint64_t)i) - 0.5);
    int64_t kinds[MAX_KINDS];
    double cost[MAX_KINDS];
    int n_kinds = 0;
    nb_status s = NB_OK;
    *seconds = 0;
    for (int64_t i = 0; i < plan->n && s == NB_OK; i++) {
        /* What a method makes of data waits in a working folder, and is only copied here. */
        const bool made = plan->how[i] == NB_HOW_QUANTIZE && method->quantizer->encode_rows == NULL;
        if (plan->how[i] == NB_HOW_MAKE || made)
            continue;
        int k = 0;
        while (k < n_kinds && !alike(plan, kinds[k], i))
            k++;
        if (k == n_kinds && n_kinds < MAX_KINDS) {
            kinds[n_kinds++] = i;
            s = try_one(t, plan->from[i], &plan->weights[i], plan->how[i], method, &cost[k], err);
        }
        if (s == NB_OK && k < n_kinds)
            *seconds += cost[k] * (double)(plan->weights[i].n_rows * plan->weights[i].n_cols);
    }
    *seconds /= n_threads;
    nb_free(t);
    return s;
}
