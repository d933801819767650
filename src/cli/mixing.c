/* See mixing.h. */
#include "cli/mixing.h"

#include "quant/digest.h"
#include "quant/mixture.h"
#include "quant/target.h"
#include "quant/wrapping.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define FOLDER_CANDIDATES "W3A16:g64,asym;W4A16:g64,asym;W4A16:g32;W8A16"
#define GGUF_CANDIDATES   "Q4_0;IQ4_NL;Q5_0;Q8_0"
/* Each layer is measured on pieces of so many tokens, the choice on more and longer ones. */
#define PIECE_TOKENS 512
#define FINAL_TOKENS 4096

typedef struct {
    nb_recipe_flags *f;
    const nb_calibrating_flags *flags;
    const nb_plan_request *request;
    nb_store *store;
    const nb_runtime *rt;
    nb_out *out;
    nb_calib_set set;
    nb_calib_seq *pieces; /* of the set */
    int64_t n_pieces, n_tokens;
    nb_workdir dir;
    char key[NB_SHA256_HEX];
    nb_sensitivity table;
    nb_mixture mixture;
    nb_progress bar;
    double done;
    const char *target; /* "bpw" */
    double kl;          /* measured */
    int uniform;        /* that it was compared with; -1: none */
    double uniform_kl;
    int64_t uniform_bytes;
    int64_t budget; /* bytes that were allowed; 0: not said in bytes */
    bool uniform_won;
    double predicted_kl;
    int64_t bytes;
} mixing;

/* ---- pieces of the calibration set ---- */

/* Takes pieces of `piece` tokens in turn from the sequences that are held out, then from the
 * others, until there are n_tokens. */
static nb_status take_pieces(mixing *m, int64_t n_tokens, int64_t piece, bool only_held,
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

/* ---- what is kept ---- */

static nb_status make_key(mixing *m, nb_err *err)
{
    char digest[NB_SHA256_HEX];
    nb_buf text = {0};
    NB_TRY(nb_model_digest(nb_store_path(m->store), digest, err));
    nb_status s = nb_buf_format(&text, err, "%s %s %s %d %d", nb_version(), digest, m->set.sha256,
                                (int)m->request->to, (int)m->request->layout);
    for (int64_t i = 0; i < m->n_pieces && s == NB_OK; i++)
        s = nb_buf_format(&text, err, " %lld+%lld",
                          (long long)(m->pieces[i].ids - m->set.seq[0].ids),
                          (long long)m->pieces[i].n);
    if (s == NB_OK)
        nb_sha256_hex(text.data, text.len, m->key);
    nb_buf_free(&text);
    return s;
}

static nb_status keep(void *context, const nb_sensitivity *t, nb_err *err)
{
    mixing *m = context;
    json_t *rows;
    NB_TRY(nb_sensitivity_json(t, &rows, err));
    json_t *state = json_pack("{s:s, s:o}", "key", m->key, "layers", rows);
    const nb_status s = state == NULL ? nb_fail(err, NB_MEMORY, "no memory for the state")
                                      : nb_workdir_put_state(&m->dir, state, err);
    json_decref(state);
    return s;
}

static nb_status take_kept(mixing *m, nb_err *err)
{
    json_t *state;
    bool damaged;
    NB_TRY(nb_workdir_get_state(&m->dir, &state, &damaged, err));
    const char *key = json_string_value(json_object_get(state, "key"));
    if (key != NULL && strcmp(key, m->key) == 0)
        nb_sensitivity_take(&m->table, json_object_get(state, "layers"));
    json_decref(state);
    return NB_OK;
}

static nb_status folder_of(const char *output, nb_buf *path, nb_err *err)
{
    size_t n = strlen(output);
    while (n > 1 && output[n - 1] == '/')
        n--;
    return nb_buf_format(path, err, "%.*s.nibble-mix", (int)n, output);
}

static nb_status open_dir(mixing *m, const char *output, nb_err *err)
{
    nb_buf path = {0};
    nb_status s = folder_of(output, &path, err);
    if (s == NB_OK)
        s = nb_workdir_open(&m->dir, (const char *)path.data, err);
    nb_buf_free(&path);
    if (s == NB_OK && m->flags->fresh)
        nb_workdir_clear(&m->dir);
    return s;
}

void nb_mixing_done(const char *output)
{
    nb_buf path = {0};
    nb_workdir dir = NB_WORKDIR_CLOSED;
    nb_err ignored = {0};
    if (folder_of(output, &path, &ignored) == NB_OK &&
        nb_workdir_open(&dir, (const char *)path.data, &ignored) == NB_OK)
        nb_workdir_close(&dir, true);
    nb_buf_free(&path);
}

/* ---- measuring ---- */

static bool show(void *context, double flops)
{
    mixing *m = context;
    m->done += flops;
    nb_progress_update(m->out, &m->bar, (int64_t)(m->done / 1e6));
    return !nb_interrupted();
}

static nb_swapped_job job_of(mixing *m)
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

static nb_status measure_layers(mixing *m, nb_err *err)
{
    nb_swapped *s = NULL;
    nb_swapped_plan plan;
    const nb_swapped_job job = job_of(m);
    NB_TRY(nb_swapped_estimate(&plan, &job, err));
    const double flops = nb_sensitivity_flops(&m->table, &plan, m->n_tokens);
    if (flops == 0)
        return NB_OK;
    nb_out_note(m->out, "measuring %lld layers in %d formats on %lld tokens: about %.0f Tflop",
                (long long)m->table.n_linears, m->table.n_candidates, (long long)m->n_tokens,
                flops / 1e12);
    m->done = 0;
    nb_progress_begin(m->out, &m->bar, "measuring", "Mflop", (int64_t)(flops / 1e6));
    nb_status status = nb_swapped_open(&s, &job, err);
    if (status == NB_OK)
        status = nb_sensitivity_measure(&m->table, s, keep, m, err);
    nb_swapped_close(s);
    nb_progress_end(m->out, &m->bar);
    if (status == NB_INTERRUPTED)
        return nb_fail(err, NB_INTERRUPTED,
                       "interrupted; the same command goes on from what is in %s", m->dir.path);
    return status;
}

/* ---- choosing ---- */

/* Bytes of the tensor files that a recipe gives. */
static nb_status file_bytes(mixing *m, const nb_recipe *recipe, int64_t *bytes, nb_err *err)
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

static nb_status mixed_file_bytes(mixing *m, int64_t *bytes, nb_err *err)
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
static nb_status choose_by_size(mixing *m, nb_err *err)
{
    int64_t file;
    nb_err ignored = {0};
    NB_TRY(nb_mixture_by_kl(&m->mixture, INFINITY, err)); /* the least there is */
    NB_TRY(mixed_file_bytes(m, &file, err));
    if (file > m->f->size)
        return nb_fail(
            err, NB_LIMIT,
            "--size %lld: the smallest of these candidates give %lld bytes, %lld of them "
            "for what is not quantized",
            (long long)m->f->size, (long long)file,
            (long long)(file - nb_mixture_bytes(&m->mixture)));
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

static nb_status choose_by_bpw(mixing *m, nb_err *err)
{
    const double bytes = m->f->bpw / 8 * (double)m->table.n_params;
    if (nb_mixture_least_bpw(&m->mixture) > m->f->bpw)
        return nb_fail(err, NB_LIMIT,
                       "--bpw %g: the smallest of these candidates give %.4g bits per weight",
                       m->f->bpw, nb_mixture_least_bpw(&m->mixture));
    m->budget = (int64_t)bytes;
    return nb_mixture_by_bytes(&m->mixture, m->budget, err);
}

/* The least bytes whose measured divergence stays below: what is predicted is corrected by what is
 * measured. */
static nb_status choose_by_kl(mixing *m, nb_swapped *s, nb_err *err)
{
    double bound = m->f->max_kl;
    for (int k = 0; k < 6; k++) {
        nb_err why = {0};
        if (nb_mixture_by_kl(&m->mixture, bound, &why) != NB_OK)
            break;
        NB_TRY(nb_mixture_measure(&m->mixture, s, &m->kl, err));
        if (m->kl <= m->f->max_kl)
            return NB_OK;
        bound *= 0.95 * m->f->max_kl / m->kl;
    }
    NB_TRY(nb_mixture_by_bytes(&m->mixture, INT64_MAX, err));
    NB_TRY(nb_mixture_measure(&m->mixture, s, &m->kl, err));
    if (m->kl <= m->f->max_kl)
        return NB_OK;
    return nb_fail(err, NB_LIMIT,
                   "--max-kl %g: the best of these candidates give %.4g, at %.4g bits per weight",
                   m->f->max_kl, m->kl, nb_mixture_bpw(&m->mixture));
}

/* Never worse than the same format everywhere, within the same bytes. */
static nb_status compare_uniform(mixing *m, nb_swapped *s, nb_err *err)
{
    m->bytes = nb_mixture_bytes(&m->mixture);
    m->predicted_kl = nb_mixture_kl(&m->mixture);
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

static nb_status choose(mixing *m, nb_err *err)
{
    nb_swapped *s = NULL;
    if (m->f->mix == NB_MIX_BPW)
        NB_TRY(choose_by_bpw(m, err));
    if (m->f->mix == NB_MIX_SIZE)
        NB_TRY(choose_by_size(m, err));
    NB_TRY(take_pieces(m, FINAL_TOKENS, m->set.length, m->set.n_held > 0, err));
    nb_swapped_job job = job_of(m);
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

/* ---- the recipe, and what is told of it ---- */

static nb_status write_recipe(mixing *m, nb_err *err)
{
    char reason[NB_RECIPE_MAX_REASON];
    if (!m->uniform_won)
        return nb_mixture_recipe(&m->mixture, m->f->method, &m->f->recipe, err);
    snprintf(reason, sizeof reason, "no mixture of these bytes was better: KL %.4g against %.4g",
             m->uniform_kl, m->kl);
    return nb_recipe_add(&m->f->recipe, "*", &m->table.scheme[m->uniform], m->f->method, reason,
                         err);
}

static void tell(const mixing *m)
{
    const double n = (double)m->table.n_params / 8;
    nb_out_note(m->out,
                "mixture: %.3f bits per weight, KL %.4g on %lld held-out tokens (%.4g by "
                "the sum over layers)",
                (double)m->bytes / n, m->kl, (long long)m->n_tokens, m->predicted_kl);
    if (m->uniform >= 0)
        nb_out_note(m->out, "%s everywhere: %.3f bits per weight, KL %.4g%s",
                    m->table.scheme[m->uniform].name, (double)m->uniform_bytes / n, m->uniform_kl,
                    m->uniform_won ? ": no worse, so that is written" : "");
    if (m->flags->transform != NULL)
        nb_out_note(m->out, "layers were measured without the transform");
}

static nb_status make_report(const mixing *m, json_t **out, nb_err *err)
{
    json_t *rows;
    const double n = (double)m->table.n_params / 8;
    NB_TRY(nb_sensitivity_json(&m->table, &rows, err));
    *out = json_pack("{s:s, s:f, s:s, s:f, s:f, s:f, s:I, s:s, s:o}", "target", m->target, "value",
                     m->f->mix == NB_MIX_BPW    ? m->f->bpw
                     : m->f->mix == NB_MIX_SIZE ? (double)m->f->size
                                                : m->f->max_kl,
                     "measured_with", "rtn:search", "bpw", (double)m->bytes / n, "kl", m->kl,
                     "predicted_kl", m->predicted_kl, "held_out_tokens", (json_int_t)m->n_tokens,
                     "chosen", m->uniform_won ? "uniform" : "mixture", "layers", rows);
    if (*out != NULL && m->uniform >= 0 &&
        json_object_set_new(*out, "uniform",
                            json_pack("{s:s, s:f, s:f}", "scheme", m->table.scheme[m->uniform].name,
                                      "bpw", (double)m->uniform_bytes / n, "kl", m->uniform_kl)) !=
            0) {
        json_decref(*out);
        *out = NULL;
    }
    return *out != NULL ? NB_OK : nb_fail(err, NB_MEMORY, "no memory for the report");
}

static nb_status run(mixing *m, const char *output, nb_mixing *result, nb_err *err)
{
    static const char *const targets[] = {"", "bpw", "size", "max-kl"};
    m->target = targets[m->f->mix];
    const char *candidates = m->f->candidates != NULL          ? m->f->candidates
                             : m->request->to == NB_STORE_GGUF ? GGUF_CANDIDATES
                                                               : FOLDER_CANDIDATES;
    if (nb_target_turns(m->request->layout))
        return nb_fail(err, NB_USAGE, "--%s mixes formats, and %s has one for all layers",
                       m->target, nb_target_name(m->request));
    if (m->flags->set.options.n_paths == 0)
        return nb_fail(err, NB_USAGE, "--%s measures on a text: --calib FILE names one", m->target);
    if (output == NULL)
        return nb_fail(err, NB_USAGE, "--%s keeps what it measures beside the output: -o OUT",
                       m->target);
    NB_TRY(nb_sensitivity_init(&m->table, m->store, m->request, candidates, err));
    NB_TRY(nb_calibrating_read_set(&m->set, NULL, m->flags, m->store, m->out, err));
    NB_TRY(take_pieces(m, m->f->n_tokens, PIECE_TOKENS, false, err));
    NB_TRY(make_key(m, err));
    NB_TRY(open_dir(m, output, err));
    NB_TRY(take_kept(m, err));
    NB_TRY(measure_layers(m, err));
    NB_TRY(nb_mixture_init(&m->mixture, &m->table, err));
    NB_TRY(choose(m, err));
    tell(m);
    NB_TRY(write_recipe(m, err));
    return make_report(m, &result->report, err);
}

nb_status nb_mixing_run(nb_mixing *result, nb_recipe_flags *f, const nb_calibrating_flags *flags,
                        const nb_plan_request *request, nb_store *store, const nb_runtime *rt,
                        const char *output, nb_out *out, nb_err *err)
{
    mixing m = {.f = f,
                .flags = flags,
                .request = request,
                .store = store,
                .rt = rt,
                .out = out,
                .dir = NB_WORKDIR_CLOSED,
                .uniform = -1};
    const nb_status s = run(&m, output, result, err);
    nb_mixture_free(&m.mixture);
    nb_sensitivity_free(&m.table);
    nb_workdir_close(&m.dir, false);
    nb_calib_set_free(&m.set);
    nb_free(m.pieces);
    return s;
}

void nb_mixing_free(nb_mixing *m)
{
    json_decref(m->report);
    *m = (nb_mixing){0};
}
