/* See distill.h. */
#include "quant/pass/distill.h"

#include "base/fpenv.h"
#include "base/rng.h"
#include "kernel/math.h"
#include "quant/encode/scales.h"
#include "quant/weight/room.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define SHUFFLE     0x64697374696c6cull /* the stream of random numbers: "distill" */
#define HELD_TOKENS 16384               /* of held-out sequences, at most */

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- options ---- */

nb_status nb_distill_options_parse(nb_distill_options *out, const nb_method *method, nb_err *err)
{
    static const char *const known[] = {"steps", "batch", "len", "lr", NULL};
    double steps, batch, len, rate;
    NB_TRY(nb_method_only(method, known, err));
    NB_TRY(nb_method_number(method, "steps", 64, 1, 100000, &steps, err));
    NB_TRY(nb_method_number(method, "batch", 1, 1, 1024, &batch, err));
    NB_TRY(nb_method_number(method, "len", 2048, 1, 1 << 20, &len, err));
    NB_TRY(nb_method_number(method, "lr", 0.003, 0, 0.1, &rate, err));
    *out = (nb_distill_options){
        .steps = (int64_t)steps, .batch = (int64_t)batch, .len = (int64_t)len, .rate = rate};
    return NB_OK;
}

static nb_status check(const nb_method *method, unsigned *needs, nb_err *err)
{
    (void)needs;
    nb_distill_options o;
    return nb_distill_options_parse(&o, method, err);
}

/* ---- state ---- */

typedef struct {
    const nb_distill_job *job;
    const nb_distill_options *o;
    nb_distill_state *state;
    nb_passes passes;
    nb_spill teacher;    /* what the head reads in the original model, of the tokens at hand */
    nb_spill learned[2]; /* a row a block; of even and odd steps */
    float *row;          /* of one of those */
    int64_t row_floats;
    int64_t index[NB_N_LINEARS]; /* of the plan, for the block at hand */
    nb_loaded made[NB_N_LINEARS];
    nb_scales scales[NB_N_LINEARS];    /* empty where the layer stays as it is */
    nb_calib_seq *train, *held, *hand; /* cut to the length asked for */
    int64_t n_train, n_held, n_hand;
    int64_t *order; /* [n_train], of an epoch */
    int64_t epoch;
    double *kl; /* [room]: of the tokens at hand */
    uint64_t hash;
    bool from_start; /* what was learned is left out */
} distilling;

static int64_t n_tokens(const nb_calib_seq *seqs, int64_t n)
{
    int64_t all = 0;
    for (int64_t i = 0; i < n; i++)
        all += seqs[i].n;
    return all;
}

/* ---- blocks ---- */

/* Floats of what is learned of a weight of the plan. */
static int64_t n_learned(const nb_plan *plan, int64_t index)
{
    return plan->how[index] == NB_HOW_QUANTIZE ? nb_scales_floats(&plan->weights[index]) : 0;
}

bool nb_distill_learns(const nb_plan *plan)
{
    bool any = false;
    for (int64_t layer = 0; layer < plan->config.n_layers && !any; layer++) {
        for (int j = 0; j < NB_N_LINEARS && !any; j++)
            any = n_learned(plan, nb_plan_linear(plan, layer, (nb_linear_id)j)) > 0;
    }
    return any;
}

static bool learns(const distilling *d, int64_t index)
{
    return n_learned(d->job->plan, index) > 0;
}

static void drop_block(distilling *d)
{
    for (int j = 0; j < NB_N_LINEARS; j++)
        nb_scales_free(&d->scales[j]);
}

/* What was learned of a block until the step at hand, into d->row. */
static nb_status read_learned(distilling *d, int64_t layer, nb_err *err)
{
    if (d->state->n_steps > 0 && !d->from_start)
        return nb_spill_read(&d->learned[d->state->n_steps % 2], layer, 1, d->row, err);
    memset(d->row, 0, (size_t)d->row_floats * sizeof *d->row);
    return NB_OK;
}

/* What of the block is quantized, as it is at the moment. */
static nb_status load_made(distilling *d, int64_t layer, nb_err *err)
{
    const float *at = d->row;
    drop_block(d);
    NB_TRY(read_learned(d, layer, err));
    for (int j = 0; j < NB_N_LINEARS; j++) {
        const int64_t i = d->index[j] = nb_plan_linear(d->job->plan, layer, (nb_linear_id)j);
        if (d->job->plan->how[i] != NB_HOW_QUANTIZE)
            continue;
        NB_TRY(nb_room_for(&d->made[j], &d->job->plan->weights[i], err));
        NB_TRY(nb_workdir_get_mat(d->job->dir, i, &d->made[j], err));
        NB_TRY(nb_scales_init(&d->scales[j], &d->made[j].mat, d->job->pool, err));
        if (learns(d, i))
            nb_scales_set(&d->scales[j], at, d->job->pool);
        at += n_learned(d->job->plan, i);
    }
    return NB_OK;
}

static nb_status load_block(void *context, int64_t layer, nb_block_weights *out, nb_err *err)
{
    distilling *d = context;
    NB_TRY(nb_passes_load_source(&d->passes, layer, out, err));
    NB_TRY(load_made(d, layer, err));
    for (int j = 0; j < NB_N_LINEARS; j++) {
        if (d->scales[j].out != NULL)
            out->linear[j] = d->scales[j].value;
    }
    return NB_OK;
}

static void want_gradients(void *context, int64_t layer, int64_t n, nb_block_grads *grads)
{
    (void)layer;
    (void)n;
    const distilling *d = context;
    for (int j = 0; j < NB_N_LINEARS; j++)
        grads->linear[j] = learns(d, d->index[j]) ? d->scales[j].grad : NULL;
}

static nb_status load_clear(void *context, int64_t layer, nb_block_weights *out, nb_err *err)
{
    distilling *d = context;
    NB_TRY(load_block(context, layer, out, err));
    for (int j = 0; j < NB_N_LINEARS; j++) {
        const nb_mat *m = d->scales[j].out;
        if (m != NULL)
            memset(d->scales[j].grad, 0, (size_t)(m->n_rows * m->n_cols) * sizeof(float));
    }
    return NB_OK;
}

/* The rate rises over this many steps, while Adam's moments are those of a few gradients. */
#define WARM_UP 4

static double rate_of(const nb_distill_options *o, int64_t step)
{
    const double left = 1 - (double)step / (double)o->steps;
    const double up = (double)(step + 1) / WARM_UP;
    return o->rate * left * (up < 1 ? up : 1);
}

/* A step of the block, kept for the next one. */
static nb_status step_block(void *context, int64_t layer, nb_err *err)
{
    distilling *d = context;
    const int64_t step = d->state->n_steps;
    const nb_spill *to = &d->learned[(step + 1) % 2];
    float *at = d->row;
    for (int j = 0; j < NB_N_LINEARS; j++) {
        if (d->scales[j].out == NULL)
            continue;
        if (learns(d, d->index[j]))
            nb_scales_step(&d->scales[j], at, step + 1, rate_of(d->o, step), d->job->pool);
        at += n_learned(d->job->plan, d->index[j]);
    }
    d->hash ^= nb_spill_hash(to, layer, 1, d->row);
    return nb_spill_write(to, layer, 1, d->row, err);
}

/* ---- the loss ---- */

/* The KL of a token, and its gradient in place of the logits: p - q, p of the quantized model. */
static void kl_row(void *context, int64_t token, float *logits, float *other, float *zeros)
{
    distilling *d = context;
    const nb_kernels *k = d->job->kernels;
    const int64_t n = d->passes.frame.config.vocab_size;
    float max[2];
    double sum[2];
    k->softmax_stats(logits, n, &max[0], &sum[0]);
    k->softmax_stats(other, n, &max[1], &sum[1]);
    d->kl[token] =
        k->kl(other, max[1], (float)nb_log64(sum[1]), logits, max[0], (float)nb_log64(sum[0]), n);
    k->softmax_back(logits, zeros, n);
    k->softmax_back(other, zeros, n);
    for (int64_t i = 0; i < n; i++)
        logits[i] -= other[i];
}

/* The sequences at hand through the original and through the quantized model, up to the logits. */
static nb_status forward(distilling *d, bool back, nb_err *err)
{
    const nb_passes_blocks source = {0};
    const nb_passes_blocks quantized = {.load = load_block, .context = d};
    const nb_passes_head head = {.other = &d->teacher, .back = back, .row = kl_row, .context = d};
    NB_TRY(nb_passes_embed(&d->passes, d->hand, d->n_hand, err));
    NB_TRY(nb_passes_forward(&d->passes, &source, err));
    NB_TRY(nb_passes_keep_last(&d->passes, &d->teacher, err));
    NB_TRY(nb_passes_embed(&d->passes, d->hand, d->n_hand, err));
    NB_TRY(nb_passes_forward(&d->passes, &quantized, err));
    return nb_passes_run_head(&d->passes, &head, err);
}

static double sum_kl(const distilling *d)
{
    double sum = 0;
    for (int64_t i = 0; i < n_tokens(d->hand, d->n_hand); i++)
        sum += d->kl[i];
    return sum;
}

/* Mean KL on held-out sequences; NaN where there are none. */
static nb_status measure(distilling *d, bool from_start, double *kl, nb_err *err)
{
    double sum = 0;
    d->from_start = from_start;
    for (int64_t i = 0; i < d->n_held; i += d->n_hand) {
        d->n_hand = smaller(d->o->batch, d->n_held - i);
        memcpy(d->hand, d->held + i, (size_t)d->n_hand * sizeof *d->hand);
        NB_TRY(forward(d, false, err));
        sum += sum_kl(d);
    }
    d->from_start = false;
    *kl = d->n_held > 0 ? sum / (double)n_tokens(d->held, d->n_held) : NAN;
    return NB_OK;
}

/* ---- steps ---- */

/* The sequence at a place of an endless row of shuffled sets. */
static int64_t drawn(distilling *d, int64_t place)
{
    const int64_t epoch = place / d->n_train;
    if (epoch != d->epoch) {
        for (int64_t i = 0; i < d->n_train; i++)
            d->order[i] = i;
        for (int64_t i = 0; i < d->n_train; i++) {
            const double u = nb_rng_uniform(d->job->seed ^ SHUFFLE, (uint64_t)epoch, (uint64_t)i);
            const int64_t j = i + (int64_t)(u * (double)(d->n_train - i)), kept = d->order[i];
            d->order[i] = d->order[j];
            d->order[j] = kept;
        }
        d->epoch = epoch;
    }
    return d->order[place % d->n_train];
}

static void tell(const distilling *d, double kl)
{
    if (d->job->what != NULL)
        snprintf(d->job->what, 64, "step %lld of %lld, KL %.4f", (long long)d->state->n_steps,
                 (long long)d->o->steps, kl);
}

/* *finite is false, and the step is not made, where its loss is no number. */
static nb_status step(distilling *d, bool *finite, nb_err *err)
{
    const nb_distill_options *o = d->o;
    const nb_passes_blocks blocks = {
        .load = load_clear, .wanted = want_gradients, .done = step_block, .context = d};
    const int64_t at = d->state->n_steps;
    d->n_hand = smaller(o->batch, d->n_train);
    for (int64_t i = 0; i < d->n_hand; i++)
        d->hand[i] = d->train[drawn(d, at * d->n_hand + i)];
    d->hash = 0;
    NB_TRY(forward(d, true, err));
    const double kl = sum_kl(d) / (double)n_tokens(d->hand, d->n_hand);
    *finite = isfinite(kl);
    if (!*finite)
        return NB_OK;
    NB_TRY(nb_passes_backward(&d->passes, &blocks, err));
    d->state->n_steps++;
    d->state->hash = d->hash;
    tell(d, kl);
    return d->job->keep == NULL ? NB_OK : d->job->keep(d->job->context, err);
}

/* ---- the end ---- */

/* What was learned, beside the start. */
static nb_status write_learned(distilling *d, nb_err *err)
{
    const nb_plan *plan = d->job->plan;
    for (int64_t layer = 0; layer < d->passes.frame.config.n_layers; layer++) {
        NB_TRY(load_made(d, layer, err));
        for (int j = 0; j < NB_N_LINEARS; j++) {
            if (d->scales[j].out == NULL)
                continue;
            NB_TRY(nb_workdir_put_mat(d->job->dir, d->index[j] + plan->n, &d->made[j].mat, err));
        }
    }
    return NB_OK;
}

/* ---- the whole ---- */

static nb_status take_sequences(distilling *d, nb_err *err)
{
    const nb_distill_job *job = d->job;
    NB_TRY(NB_ALLOC(&d->train, job->n_seqs, err));
    NB_TRY(NB_ALLOC(&d->held, job->n_seqs, err));
    int64_t held = 0;
    for (int64_t i = 0; i < job->n_seqs; i++) {
        nb_calib_seq s = job->seqs[i];
        s.n = smaller(s.n, d->o->len);
        if (!s.held)
            d->train[d->n_train++] = s;
        else if (held + s.n <= HELD_TOKENS || d->n_held == 0) {
            d->held[d->n_held++] = s;
            held += s.n;
        }
    }
    if (d->n_train == 0)
        return nb_fail(err, NB_USAGE, "tuning needs a calibration sequence at least");
    NB_TRY(NB_ALLOC(&d->order, d->n_train, err));
    return NB_ALLOC(&d->hand, d->o->batch, err);
}

/* Floats of what is learned of a block: of the largest. */
static int64_t row_floats(const nb_plan *plan, int64_t n_layers)
{
    int64_t most = 0;
    for (int64_t layer = 0; layer < n_layers; layer++) {
        int64_t n = 0;
        for (int j = 0; j < NB_N_LINEARS; j++)
            n += n_learned(plan, nb_plan_linear(plan, layer, (nb_linear_id)j));
        most = larger(most, n);
    }
    return most;
}

static nb_status open_distilling(distilling *d, nb_err *err)
{
    const nb_distill_job *job = d->job;
    NB_TRY(take_sequences(d, err));
    nb_passes_job passes = {.store = job->store,
                            .pool = job->pool,
                            .kernels = job->kernels,
                            .dir = job->dir,
                            .file = "distill-x",
                            .progress = job->progress,
                            .context = job->context};
    for (int64_t i = 0; i < d->n_train; i++)
        passes.longest = larger(passes.longest, d->train[i].n);
    for (int64_t i = 0; i < d->n_held; i++)
        passes.longest = larger(passes.longest, d->held[i].n);
    passes.room = passes.longest * d->o->batch;
    NB_TRY(nb_passes_open(&d->passes, &passes, err));
    const nb_config *c = &d->passes.frame.config;
    NB_TRY(NB_ALLOC(&d->kl, passes.room, err));
    d->row_floats = row_floats(job->plan, c->n_layers);
    NB_TRY(NB_ALLOC(&d->row, d->row_floats, err));
    NB_TRY(nb_workdir_spill(job->dir, "distill-teacher", (size_t)c->d_model * sizeof(float),
                            passes.room, &d->teacher, err));
    for (int i = 0; i < 2; i++)
        NB_TRY(nb_workdir_spill(job->dir, i == 0 ? "distill-even" : "distill-odd",
                                (size_t)d->row_floats * sizeof(float), c->n_layers, &d->learned[i],
                                err));
    return NB_OK;
}

static void close_distilling(distilling *d)
{
    drop_block(d);
    for (int j = 0; j < NB_N_LINEARS; j++)
        nb_loaded_free(&d->made[j]);
    nb_passes_close(&d->passes);
    nb_spill_close(&d->teacher);
    nb_spill_close(&d->learned[0]);
    nb_spill_close(&d->learned[1]);
    void *all[] = {d->row, d->train, d->held, d->hand, d->order, d->kl};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        nb_free(all[i]);
}

/* Starts anew unless the disk holds what the state says. */
static nb_status check_state(distilling *d, nb_err *err)
{
    nb_distill_state *s = d->state;
    const nb_spill *from = &d->learned[s->n_steps % 2];
    uint64_t hash = 0;
    nb_status status = NB_OK;
    for (int64_t i = 0; s->n_steps > 0 && i < from->n_rows && status == NB_OK; i++) {
        status = nb_spill_read(from, i, 1, d->row, err);
        hash ^= status == NB_OK ? nb_spill_hash(from, i, 1, d->row) : 0;
    }
    if (status == NB_MEMORY)
        return status;
    if (status != NB_OK || hash != s->hash)
        s->n_steps = 0;
    return NB_OK;
}

static nb_status run(distilling *d, nb_err *err)
{
    nb_distill_state *s = d->state;
    bool finite = true;
    s->after = NAN;
    s->better = false;
    NB_TRY(open_distilling(d, err));
    NB_TRY(check_state(d, err));
    if (s->n_steps == 0) {
        NB_TRY(measure(d, true, &s->before, err));
        tell(d, s->before);
    }
    while (s->n_steps < d->o->steps && finite)
        NB_TRY(step(d, &finite, err));
    if (finite)
        NB_TRY(measure(d, false, &s->after, err));
    s->better = finite && (d->n_held == 0 || s->after < s->before);
    return s->better ? write_learned(d, err) : NB_OK;
}

nb_status nb_distill(const nb_distill_job *job, nb_distill_state *state, nb_err *err)
{
    distilling d = {.job = job,
                    .o = job->options,
                    .state = state,
                    .passes = NB_PASSES_NONE,
                    .teacher = NB_SPILL_CLOSED,
                    .learned = {NB_SPILL_CLOSED, NB_SPILL_CLOSED},
                    .epoch = -1};
    const uint64_t env = nb_fpenv_enter();
    const nb_status s = run(&d, err);
    nb_fpenv_leave(env);
    close_distilling(&d);
    return s;
}

int64_t nb_distill_disk(const nb_config *c, const nb_plan *plan, const nb_distill_options *o)
{
    const int64_t room = o->len * o->batch;
    return nb_passes_disk(c, room) + room * c->d_model * 4 +
           2 * 4 * row_floats(plan, c->n_layers) * c->n_layers + plan->bytes;
}

int64_t nb_distill_memory(const nb_config *c, const nb_plan *plan, const nb_distill_options *o,
                          int n_threads)
{
    const int64_t passes = nb_passes_memory(c, o->len, n_threads, true);
    if (passes == INT64_MAX)
        return passes;
    int64_t most = 0;
    for (int64_t layer = 0; layer < c->n_layers; layer++) {
        int64_t block = 0;
        for (int j = 0; j < NB_N_LINEARS; j++) {
            const int64_t i = nb_plan_linear(plan, layer, (nb_linear_id)j);
            const nb_weight *w = &plan->weights[i];
            if (plan->how[i] == NB_HOW_QUANTIZE) /* three floats a group at least are learned */
                block += w->bytes +
                         nb_scales_bytes(w->n_rows, w->n_cols, n_learned(plan, i) / 3 / w->n_rows);
        }
        most = larger(most, block);
    }
    return passes + row_floats(plan, c->n_layers) * 4 + most;
}

double nb_distill_flops(const nb_config *c, const nb_distill_options *o, const nb_calib_seq *seqs,
                        int64_t n_seqs)
{
    double tokens = 0, held = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < n_seqs; i++) {
        const double len = (double)smaller(seqs[i].n, o->len);
        if (seqs[i].held) {
            held += len;
        } else {
            tokens += len;
            n++;
        }
    }
    const double blocks = nb_passes_block_flops(c, o->len), head = nb_passes_head_flops(c);
    const double each = n > 0 ? tokens / (double)n * (double)smaller(o->batch, n) : 0;
    return each * (double)o->steps * (5 * blocks + 3 * head) +
           2 * (held < HELD_TOKENS ? held : HELD_TOKENS) * (2 * blocks + 2 * head);
}

const nb_quantizer nb_quantizer_distill = {
    .name = "distill",
    .source = "EfficientQAT, arXiv:2407.11062; Adam, arXiv:1412.6980",
    .summary = "scales with which the whole model predicts what the original does",
    .check = check,
};
