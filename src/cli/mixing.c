/* See mixing.h. */
#include "cli/mixing.h"

#include "quant/pass/pace.h"
#include "quant/plan/bytes.h"
#include "quant/plan/target.h"
#include "quant/write/rewrite.h"
#include "quant/write/wrapping.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define FOLDER_CANDIDATES "W3A16:g64,asym;W4A16:g64,asym;W4A16:g32;W8A16"
#define GGUF_CANDIDATES   "Q4_0;IQ4_NL;Q5_0;Q8_0"
/* Each layer is measured on pieces of so many tokens, the choice on more and longer ones. */
#define PIECE_TOKENS 512
#define FINAL_TOKENS 4096
/* Outputs that --max-kl may take, the last one of the best candidates. */
#define MAX_OUTPUTS 4

/* ---- pieces of the calibration set ---- */

/* Takes pieces of `piece` tokens in turn from the sequences that are held out, then from the
 * others, until there are n_tokens. */
static nb_status take_pieces(nb_mixing *m, int64_t n_tokens, int64_t piece, bool only_held,
                             nb_err *err)
{
    const nb_calib_set *set = &m->set;
    int64_t cap = n_tokens / 2 + set->n + 1;
    cap = cap < n_tokens + 1 ? cap : n_tokens + 1;
    nb_free(m->pieces);
    m->pieces = NULL;
    m->n_pieces = m->n_tokens = 0;
    NB_TRY(NB_ALLOC(&m->pieces, cap, err));
    for (int held = 1; held >= (only_held ? 1 : 0); held--) {
        bool any = true;
        for (int64_t from = 0; any && m->n_tokens < n_tokens; from += piece) {
            any = false;
            for (int64_t i = 0; i < set->n && m->n_tokens < n_tokens && m->n_pieces < cap; i++) {
                const nb_calib_seq *seq = &set->seq[i];
                int64_t n = seq->n - from;
                if (seq->held != (held == 1) || n < 2)
                    continue;
                n = n < piece ? n : piece;
                n = n < n_tokens - m->n_tokens ? n : n_tokens - m->n_tokens;
                m->pieces[m->n_pieces++] = (nb_calib_seq){seq->ids + from, n, seq->held};
                m->n_tokens += n;
                any = true;
            }
        }
    }
    return NB_OK;
}

static nb_status take_layer_pieces(nb_mixing *m, nb_err *err)
{
    return take_pieces(m, m->f->n_tokens, PIECE_TOKENS, false, err);
}

static nb_status take_final_pieces(nb_mixing *m, nb_err *err)
{
    return take_pieces(m, FINAL_TOKENS, m->set.length, m->set.n_held > 0, err);
}

/* ---- measuring ---- */

static bool show(void *context, double flops)
{
    nb_mixing *m = context;
    m->done += flops;
    nb_progress_update(m->out, &m->bar, (int64_t)(m->done / 1e6));
    return !nb_interrupted();
}

static nb_swapped_job job_of(nb_mixing *m)
{
    return (nb_swapped_job){.store = m->store,
                            .pool = m->rt->pool,
                            .kernels = &m->rt->kernels,
                            .seqs = m->pieces,
                            .n_seqs = m->n_pieces,
                            .dir = &m->dir,
                            .memory = m->flags->memory,
                            .progress = show,
                            .context = m};
}

static int64_t n_missing(const nb_sensitivity *t)
{
    int64_t n = 0;
    for (int64_t at = 0; at < t->n_linears * t->n_candidates; at++)
        n += t->to[at] != NULL && isnan(t->kl[at]);
    return n;
}

/* Adds what it takes to run the original and to measure `flops_a_token` in n divergences. */
static nb_status add_plan(nb_mixing *m, double flops_a_token, int64_t n, double *n_logits,
                          nb_err *err)
{
    nb_config config;
    nb_swapped_plan plan;
    const nb_swapped_job job = job_of(m);
    NB_TRY(nb_config_read(m->store, &config, err));
    NB_TRY(nb_swapped_estimate(&plan, &job, err));
    const double whole = plan.block_flops * (double)config.n_layers + plan.head_flops;
    if (flops_a_token == 0)
        flops_a_token = whole * (double)n;
    m->plan.flops += (double)m->n_tokens * (whole + flops_a_token);
    m->plan.memory = plan.memory > m->plan.memory ? plan.memory : m->plan.memory;
    m->plan.disk = plan.disk > m->plan.disk ? plan.disk : m->plan.disk;
    *n_logits += (double)(n + 1) * (double)m->n_tokens * (double)config.vocab_size;
    return NB_OK;
}

/* The layers that are not measured yet, then the choice and its rival. */
static nb_status predict(nb_mixing *m, nb_err *err)
{
    double n_logits = 0, rate, encoding = 0;
    nb_swapped_plan plan;
    NB_TRY(take_final_pieces(m, err));
    NB_TRY(add_plan(m, 0, m->f->mix == NB_MIX_KL ? 4 : 2, &n_logits, err));
    NB_TRY(take_layer_pieces(m, err));
    const nb_swapped_job job = job_of(m);
    NB_TRY(nb_swapped_estimate(&plan, &job, err));
    const int64_t missing = n_missing(&m->table);
    if (missing > 0)
        NB_TRY(add_plan(m, nb_sensitivity_flops(&m->table, &plan, 1), missing, &n_logits, err));
    const int n_threads = nb_pool_n_threads(m->rt->pool);
    for (int c = 0; c < m->table.n_candidates && missing > 0; c++) {
        double seconds;
        NB_TRY(nb_rewrite_estimate(&m->table.plan[c], &m->table.method, n_threads, &seconds, err));
        encoding += seconds;
    }
    NB_TRY(nb_pace_measure(&m->rt->kernels, m->rt->pool, &rate, err));
    m->plan.seconds = m->plan.flops / (rate * NB_PACE_OF_FORWARD) +
                      n_logits * NB_PACE_LOGIT_SECONDS / n_threads + encoding;
    return NB_OK;
}

static nb_status measure_layers(nb_mixing *m, nb_err *err)
{
    nb_swapped *s = NULL;
    nb_swapped_plan plan;
    const nb_swapped_job job = job_of(m);
    NB_TRY(nb_swapped_estimate(&plan, &job, err));
    const double flops = nb_sensitivity_flops(&m->table, &plan, m->n_tokens);
    if (flops == 0)
        return NB_OK;
    m->done = 0;
    nb_progress_begin(m->out, &m->bar, "measuring", "Mflop", (int64_t)(flops / 1e6));
    nb_status status = nb_swapped_open(&s, &job, err);
    if (status == NB_OK)
        status = nb_sensitivity_measure(&m->table, s, nb_mixing_keep, m, err);
    nb_swapped_close(s);
    nb_progress_end(m->out, &m->bar);
    if (status == NB_INTERRUPTED)
        return nb_fail(err, NB_INTERRUPTED,
                       "interrupted; the same command goes on from what is in %s", m->dir.path);
    return status;
}

/* ---- choosing ---- */

/* Bytes of the tensor files that a recipe gives. */
static nb_status file_bytes(const nb_mixing *m, const nb_recipe *recipe, int64_t *bytes,
                            nb_err *err)
{
    nb_plan plan = {0};
    nb_wrapping wrapping = {0};
    nb_sink *sink;
    nb_plan_request request = *m->request;
    request.recipe = recipe;
    request.scheme = nb_recipe_main(recipe)->scheme;
    nb_status s = nb_plan_make(&plan, m->store, &request, err);
    if (s == NB_OK)
        s = nb_wrapping_make(&wrapping, m->store, &plan, err);
    if (s == NB_OK)
        s = nb_wrapping_open_sink(&sink, &wrapping, &plan, NULL, false, err);
    if (s == NB_OK) {
        *bytes = nb_sink_planned_bytes(sink);
        nb_sink_abort(sink);
    }
    nb_wrapping_free(&wrapping);
    nb_plan_free(&plan);
    return s;
}

static nb_status mixed_file_bytes(nb_mixing *m, int64_t *bytes, nb_err *err)
{
    nb_recipe recipe = {0};
    nb_status s = nb_mixture_recipe(&m->mixture, &m->table.method, &recipe, err);
    if (s == NB_OK)
        s = file_bytes(m, &recipe, bytes, err);
    nb_recipe_free(&recipe);
    return s;
}

/* What a file holds besides codes and scales (embeddings, names) depends a little on the choice:
 * the budget is corrected until the file fits. */
static nb_status choose_by_size(nb_mixing *m, nb_err *err)
{
    int64_t file;
    nb_err ignored = {0};
    NB_TRY(nb_mixture_by_kl(&m->mixture, INFINITY, err)); /* the least there is, which fits */
    NB_TRY(mixed_file_bytes(m, &file, err));
    int64_t budget = m->f->size - (file - nb_mixture_bytes(&m->mixture));
    for (int k = 0; k < 8; k++) {
        if (nb_mixture_by_bytes(&m->mixture, budget, &ignored) != NB_OK)
            break;
        NB_TRY(mixed_file_bytes(m, &file, err));
        if (file <= m->f->size)
            return NB_OK;
        budget -= file - m->f->size;
    }
    return nb_mixture_by_kl(&m->mixture, INFINITY, err);
}

static nb_status choose_by_bpw(nb_mixing *m, nb_err *err)
{
    m->budget = (int64_t)(m->f->bpw / 8 * (double)m->table.n_params);
    return nb_mixture_by_bytes(&m->mixture, m->budget, err);
}

/* The least bytes whose measured divergence stays below the bound: what is predicted is corrected
 * by what is measured. */
static nb_status choose_by_kl(nb_mixing *m, nb_swapped *s, nb_err *err)
{
    double predicted = m->bound;
    for (int k = 0; k < 6 && m->n_outputs < MAX_OUTPUTS - 1; k++) {
        nb_err why = {0};
        if (nb_mixture_by_kl(&m->mixture, predicted, &why) != NB_OK)
            break;
        NB_TRY(nb_mixture_measure(&m->mixture, s, &m->kl, err));
        if (m->kl <= m->bound)
            return NB_OK;
        predicted *= 0.95 * m->bound / m->kl;
    }
    m->best = true;
    NB_TRY(nb_mixture_by_bytes(&m->mixture, INT64_MAX, err));
    NB_TRY(nb_mixture_measure(&m->mixture, s, &m->kl, err));
    if (m->kl <= m->f->max_kl)
        return NB_OK;
    return nb_fail(err, NB_LIMIT,
                   "--max-kl %g: the best of these candidates give %.4g, at %.4g bits per weight",
                   m->f->max_kl, m->kl, nb_mixture_bpw(&m->mixture));
}

/* Never worse than the same format everywhere, within the same bytes. */
static nb_status compare_uniform(nb_mixing *m, nb_swapped *s, nb_err *err)
{
    m->bytes = nb_mixture_bytes(&m->mixture);
    m->predicted_kl = nb_mixture_kl(&m->mixture);
    m->uniform_won = false;
    m->uniform = nb_mixture_uniform(&m->mixture, m->bytes > m->budget ? m->bytes : m->budget);
    if (m->uniform < 0)
        return NB_OK;
    int *kept;
    const size_t size = (size_t)m->table.n_linears * sizeof *kept;
    NB_TRY(NB_ALLOC(&kept, m->table.n_linears, err));
    memcpy(kept, m->mixture.picked, size);
    nb_mixture_all(&m->mixture, m->uniform);
    m->uniform_bytes = nb_mixture_bytes(&m->mixture);
    const nb_status status = nb_mixture_measure(&m->mixture, s, &m->uniform_kl, err);
    m->uniform_won = status == NB_OK && m->uniform_kl <= m->kl;
    if (!m->uniform_won)
        memcpy(m->mixture.picked, kept, size);
    nb_free(kept);
    return status;
}

static nb_status choose(nb_mixing *m, nb_err *err)
{
    nb_swapped *s = NULL;
    if (m->f->mix == NB_MIX_BPW)
        NB_TRY(choose_by_bpw(m, err));
    if (m->f->mix == NB_MIX_SIZE)
        NB_TRY(choose_by_size(m, err));
    NB_TRY(take_final_pieces(m, err));
    const nb_swapped_job job = job_of(m);
    m->done = 0;
    nb_progress_begin(m->out, &m->bar, "measuring the mixture", "Mflop", 0);
    nb_status status = nb_swapped_open(&s, &job, err);
    if (status == NB_OK)
        status = m->f->mix == NB_MIX_KL ? choose_by_kl(m, s, err)
                                        : nb_mixture_measure(&m->mixture, s, &m->kl, err);
    if (status == NB_OK)
        status = compare_uniform(m, s, err);
    nb_swapped_close(s);
    nb_progress_end(m->out, &m->bar);
    return status;
}

/* ---- the recipe ---- */

static nb_status uniform_rule(const nb_mixing *m, nb_recipe *out, const char *reason, nb_err *err)
{
    nb_recipe_free(out);
    return nb_recipe_add(out, "*", &m->table.scheme[m->uniform], m->f->method, reason, err);
}

static nb_status write_recipe(nb_mixing *m, nb_err *err)
{
    char reason[NB_RECIPE_MAX_REASON];
    if (!m->uniform_won) {
        nb_recipe_free(&m->f->recipe);
        return nb_mixture_recipe(&m->mixture, m->f->method, &m->f->recipe, err);
    }
    snprintf(reason, sizeof reason, "no mixture of these bytes was better: KL %.4g against %.4g",
             m->uniform_kl, m->kl);
    return uniform_rule(m, &m->f->recipe, reason, err);
}

/* ---- without measuring ---- */

/* The first candidate from `c` on that has a plan for this layer. */
static int fitting(const nb_sensitivity *t, int64_t linear, int c)
{
    for (int k = 0; k < t->n_candidates; k++) {
        const int at = (c + k) % t->n_candidates;
        if (t->to[nb_sensitivity_at(t, linear, at)] != NULL)
            return at;
    }
    return c;
}

static int smallest(const nb_sensitivity *t, int64_t linear)
{
    int best = fitting(t, linear, 0);
    for (int c = best + 1; c < t->n_candidates; c++) {
        const nb_weight *to = t->to[nb_sensitivity_at(t, linear, c)];
        if (to != NULL &&
            nb_weight_payload(to) < nb_weight_payload(t->to[nb_sensitivity_at(t, linear, best)]))
            best = c;
    }
    return best;
}

/* The candidate, or SMALLEST of each layer. */
#define SMALLEST (-1)

static nb_status stand_in_recipe(const nb_mixing *m, int candidate, nb_recipe *out, nb_err *err)
{
    const nb_sensitivity *t = &m->table;
    nb_recipe_free(out);
    for (int64_t i = 0; i < t->n_linears; i++) {
        char name[128];
        snprintf(name, sizeof name, "%.*s", (int)(strlen(t->from[i]->name) - strlen(".weight")),
                 t->from[i]->name);
        const int c = candidate == SMALLEST ? smallest(t, i) : fitting(t, i, candidate);
        NB_TRY(nb_recipe_add(out, name, &t->scheme[c], m->f->method, NULL, err));
    }
    return NB_OK;
}

/* What no mixture can meet is refused before anything is measured, which may take hours. */
static nb_status check_reach(const nb_mixing *m, nb_err *err)
{
    const nb_sensitivity *t = &m->table;
    int64_t payload = 0, file = 0;
    for (int64_t i = 0; i < t->n_linears; i++)
        payload += nb_weight_payload(t->to[nb_sensitivity_at(t, i, smallest(t, i))]);
    const double bpw = 8.0 * (double)payload / (double)t->n_params;
    if (m->f->mix == NB_MIX_BPW && bpw > m->f->bpw)
        return nb_fail(err, NB_LIMIT,
                       "--bpw %g: the smallest of these candidates give %.4g bits per weight",
                       m->f->bpw, bpw);
    if (m->f->mix != NB_MIX_SIZE)
        return NB_OK;
    nb_recipe recipe = {0};
    nb_status s = stand_in_recipe(m, SMALLEST, &recipe, err);
    if (s == NB_OK)
        s = file_bytes(m, &recipe, &file, err);
    nb_recipe_free(&recipe);
    if (s == NB_OK && file > m->f->size)
        return nb_fail(
            err, NB_LIMIT,
            "--size %lld: the smallest of these candidates give %lld bytes, %lld of them "
            "for what is not quantized",
            (long long)m->f->size, (long long)file, (long long)(file - payload));
    return s;
}

/* The largest candidate that the budget allows, or the smallest one. */
static nb_status stand_in(nb_mixing *m, nb_err *err)
{
    int least_at = 0, best = -1;
    int64_t least = INT64_MAX, most = -1;
    for (int c = 0; c < m->table.n_candidates; c++) {
        int64_t bytes;
        NB_TRY(stand_in_recipe(m, c, &m->f->recipe, err));
        NB_TRY(file_bytes(m, &m->f->recipe, &bytes, err));
        const bool fits = m->f->mix == NB_MIX_SIZE ? bytes <= m->f->size
                          : m->f->mix == NB_MIX_BPW
                              ? (double)nb_mixture_uniform_bytes(&m->mixture, c) <=
                                    m->f->bpw / 8 * (double)m->table.n_params
                              : true;
        if (bytes < least) {
            least = bytes;
            least_at = c;
        }
        if (fits && bytes > most) {
            most = bytes;
            best = c;
        }
    }
    best = best >= 0 ? best : least_at;
    m->stand_in = m->table.scheme[best].name;
    return stand_in_recipe(m, best, &m->f->recipe, err);
}

/* From what an earlier run has measured, as a real one would choose, but for the last look. */
static nb_status choose_dry(nb_mixing *m, nb_err *err)
{
    if (m->f->mix == NB_MIX_BPW)
        NB_TRY(choose_by_bpw(m, err));
    else if (!nb_sensitivity_complete(&m->table))
        return stand_in(m, err);
    if (!nb_sensitivity_complete(&m->table))
        return stand_in(m, err);
    if (m->f->mix == NB_MIX_SIZE)
        NB_TRY(choose_by_size(m, err));
    if (m->f->mix == NB_MIX_KL)
        NB_TRY(nb_mixture_by_kl(&m->mixture, m->f->max_kl, err));
    m->bytes = nb_mixture_bytes(&m->mixture);
    m->predicted_kl = nb_mixture_kl(&m->mixture);
    return write_recipe(m, err);
}

/* ---- all of it ---- */

static nb_status check_flags(const nb_mixing *m, const char *output, bool dry, nb_err *err)
{
    if (nb_target_turns(m->request->layout))
        return nb_fail(err, NB_USAGE, "--%s mixes formats, and %s has one for all layers",
                       m->target, nb_target_name(m->request));
    if (m->flags->set.options.n_paths == 0)
        return nb_fail(err, NB_USAGE, "--%s measures on a text: --calib FILE names one", m->target);
    if (output == NULL && !dry)
        return nb_fail(err, NB_USAGE, "--%s keeps what it measures beside the output: -o OUT",
                       m->target);
    if (m->f->mix == NB_MIX_KL && m->flags->check == 0)
        return nb_fail(err, NB_USAGE,
                       "--max-kl is about the output, which --check measures: --check 0 cannot be "
                       "combined with it");
    return NB_OK;
}

/* What is measured with: the method itself where it works on rows alone. */
static nb_status init_table(nb_mixing *m, nb_err *err)
{
    nb_method method = *m->f->method;
    nb_buf text = {0};
    const char *candidates = m->f->candidates != NULL          ? m->f->candidates
                             : m->request->to == NB_STORE_GGUF ? GGUF_CANDIDATES
                                                               : FOLDER_CANDIDATES;
    if (method.quantizer->encode_rows == NULL)
        NB_TRY(nb_method_parse(&method, "rtn:search", err));
    const nb_status s = nb_method_spell(&method, &text, err);
    if (s == NB_OK)
        snprintf(m->measured_with, sizeof m->measured_with, "%.*s", (int)text.len,
                 (const char *)text.data);
    nb_buf_free(&text);
    NB_TRY(s);
    return nb_sensitivity_init(&m->table, m->store, m->request, candidates, &method, err);
}

static nb_status run(nb_mixing *m, const char *output, bool dry, nb_err *err)
{
    static const char *const targets[] = {"", "bpw", "size", "max-kl"};
    m->target = targets[m->f->mix];
    m->bound = m->f->max_kl;
    NB_TRY(check_flags(m, output, dry, err));
    NB_TRY(init_table(m, err));
    NB_TRY(check_reach(m, err));
    NB_TRY(nb_calibrating_read_set(&m->set, NULL, m->flags, m->store, m->out, err));
    NB_TRY(take_layer_pieces(m, err));
    NB_TRY(nb_mixing_open_kept(m, output, dry, err));
    NB_TRY(predict(m, err));
    if (dry) {
        NB_TRY(nb_mixture_init(&m->mixture, &m->table, err));
        return choose_dry(m, err);
    }
    nb_mixing_tell_plan(m, m->out);
    NB_TRY(measure_layers(m, err));
    NB_TRY(nb_mixture_init(&m->mixture, &m->table, err));
    NB_TRY(choose(m, err));
    nb_mixing_tell_choice(m, m->out);
    return write_recipe(m, err);
}

nb_status nb_mixing_run(nb_mixing *m, nb_recipe_flags *f, const nb_calibrating_flags *flags,
                        const nb_plan_request *request, nb_store *store, const nb_runtime *rt,
                        const char *output, bool dry, nb_out *out, nb_err *err)
{
    *m = NB_MIXING_NONE;
    m->f = f;
    m->flags = flags;
    m->request = request;
    m->store = store;
    m->rt = rt;
    m->out = out;
    m->output_kl = m->output_uniform_kl = NAN;
    return run(m, output, dry, err);
}

/* ---- what outputs say ---- */

nb_status nb_mixing_judge(nb_mixing *m, double kl, bool *again, nb_err *err)
{
    m->n_outputs++;
    m->output_kl = kl;
    *again = m->f->mix == NB_MIX_KL && !(kl <= m->f->max_kl);
    if (!*again)
        return NB_OK;
    const double had = m->uniform_won ? m->uniform_kl : m->kl;
    if (m->best || m->n_outputs == MAX_OUTPUTS)
        return nb_fail(err, NB_LIMIT,
                       "--max-kl %g: the output of the best of these candidates has %.4g, at %.4g "
                       "bits per weight; nothing was written",
                       m->f->max_kl, kl, nb_mixture_bpw(&m->mixture));
    nb_out_note(m->out, "the output has KL %.4g, %.2f times what was measured before: once more",
                kl, kl / had);
    m->bound = 0.95 * had * m->f->max_kl / kl;
    return NB_OK;
}

nb_status nb_mixing_choose_again(nb_mixing *m, nb_err *err)
{
    NB_TRY(choose(m, err));
    nb_mixing_tell_choice(m, m->out);
    return write_recipe(m, err);
}

nb_status nb_mixing_rival(nb_mixing *m, bool *any, nb_err *err)
{
    *any = m->uniform >= 0 && !m->uniform_won;
    return *any ? uniform_rule(m, &m->uniform_recipe, "no mixture of these bytes was better", err)
                : NB_OK;
}

bool nb_mixing_compare(nb_mixing *m, double kl)
{
    m->output_uniform_kl = kl;
    m->uniform_won = kl <= m->output_kl;
    return m->uniform_won;
}

void nb_mixing_close(nb_mixing *m, bool done)
{
    nb_mixture_free(&m->mixture);
    nb_sensitivity_free(&m->table);
    nb_workdir_close(&m->dir, done);
    nb_calib_set_free(&m->set);
    nb_recipe_free(&m->uniform_recipe);
    nb_free(m->pieces);
    *m = NB_MIXING_NONE;
}
