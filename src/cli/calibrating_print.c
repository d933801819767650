/* What quantizing with data prints and records; see calibrating.h. */
#include "cli/calibrating.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Of the warnings about a set, as many are shown; the report has them all. */
#define SHOWN_WORDS 2

/* ---- the set ---- */

static double vocabulary_share(const nb_calib_score *s)
{
    return s->vocab_size > 0 ? (double)s->n_distinct / (double)s->vocab_size : NAN;
}

void nb_calibrating_print_set(const nb_calibrating *c, nb_out *out)
{
    const nb_calib_score *s = &c->score;
    if (c->set.n == 0)
        return;
    if (!out->quiet && !out->json) {
        nb_out_text(out, "  calibration text: %lld tokens in %lld sequence%s, %lld held out",
                    (long long)c->set.n_tokens, (long long)c->set.n, c->set.n == 1 ? "" : "s",
                    (long long)c->set.n_held);
        if (isfinite(s->repeated))
            nb_out_text(out, "; %.1f %% of runs repeat", 100 * s->repeated);
        if (isfinite(vocabulary_share(s)))
            nb_out_text(out, "\n  it has %.1f %% of the vocabulary", 100 * vocabulary_share(s));
        if (isfinite(vocabulary_share(s)) && isfinite(s->unseen))
            nb_out_text(out, ", which covers %.1f %% of the tokens held out",
                        100 * (1 - s->unseen));
        nb_out_text(out, "\n");
    }
    for (int i = 0; i < s->n_words && i < SHOWN_WORDS; i++)
        nb_out_note(out, "calibration text: %s", s->words[i]);
}

static int set_number(json_t *o, const char *key, double v)
{
    return isfinite(v) ? json_object_set_new(o, key, json_real(v)) : 0;
}

static json_t *score_json(const nb_calib_score *s)
{
    json_t *words = json_array();
    for (int i = 0; i < s->n_words; i++)
        json_array_append_new(words, nb_json_any_text(s->words[i], strlen(s->words[i])));
    json_t *o = json_pack("{s:I, s:I, s:o}", "distinct", (json_int_t)s->n_distinct, "vocabulary",
                          (json_int_t)s->vocab_size, "warnings", words);
    const int bad = o == NULL || set_number(o, "vocabulary_share", vocabulary_share(s)) != 0 ||
                    set_number(o, "covered", 1 - s->unseen) != 0 ||
                    set_number(o, "unigram_kl", s->unigram_kl) != 0 ||
                    set_number(o, "repeated", s->repeated) != 0 ||
                    set_number(o, "most_common", s->most_common) != 0 ||
                    set_number(o, "other_script", s->other_script) != 0;
    if (!bad)
        return o;
    json_decref(o);
    return NULL;
}

/* ---- activations ---- */

/* Over all points of all blocks, each once: the linears of a point tell the same. */
typedef struct {
    double sum, most;
    int64_t n;
    const char *where;
} coverage;

static coverage coverage_of(const nb_calibrating *c)
{
    coverage all = {.most = -1};
    size_t i;
    json_t *o;
    json_array_foreach(c->result.layers, i, o)
    {
        const json_t *ratio = json_object_get(json_object_get(o, "coverage"), "log_ratio");
        const char *name = json_string_value(json_object_get(o, "name"));
        if (!json_is_number(ratio) || name == NULL)
            continue;
        const double v = json_number_value(ratio);
        all.sum += v;
        all.n++;
        if (v > all.most) {
            all.most = v;
            all.where = name;
        }
    }
    return all;
}

void nb_calibrating_print_coverage(const nb_calibrating *c, nb_out *out)
{
    const coverage all = coverage_of(c);
    if (out->quiet || out->json || all.n == 0)
        return;
    nb_out_text(
        out,
        "  inputs of layers, held-out text against the rest: columns' mean squares are %.0f "
        "%% apart, at most %.0f %%, at %s\n",
        100 * all.sum / (double)all.n, 100 * all.most, all.where);
}

void nb_calibrating_print_distilled(const nb_calibrating *c, nb_out *out)
{
    const json_t *o = c->result.distilled;
    const long long steps = json_integer_value(json_object_get(o, "steps"));
    const json_t *before = json_object_get(o, "kl_before"), *after = json_object_get(o, "kl_after");
    if (out->quiet || out->json || o == NULL)
        return;
    nb_out_text(out, "  distilled: %lld step%s", steps, steps == 1 ? "" : "s");
    if (json_is_number(before) && json_is_number(after))
        nb_out_text(out, ", held-out KL %.4g -> %.4g", json_number_value(before),
                    json_number_value(after));
    if (steps < json_integer_value(json_object_get(o, "wanted")))
        nb_out_text(out, "; the next one's loss is no finite number");
    nb_out_text(out, "%s\n",
                json_is_true(json_object_get(o, "kept")) ? "" : "; scales stay as they were");
}

bool nb_calibrating_fallen(const nb_calibrating *c, char *text, size_t size)
{
    json_t *o, *first = NULL, *last = NULL;
    size_t i;
    int64_t n = 0, all = 0;
    json_array_foreach(c->result.layers, i, o)
    {
        all += json_is_string(json_object_get(o, "name"));
        if (!json_is_true(json_object_get(o, "fell_back")))
            continue;
        n++;
        first = first == NULL ? o : first;
        last = o;
    }
    if (n == 0)
        return false;
    const char *from = json_string_value(json_object_get(first, "name"));
    const char *to = json_string_value(json_object_get(last, "name"));
    const char *why = json_string_value(json_object_get(first, "note"));
    const bool one = n == 1;
    snprintf(text, size,
             "%lld of %lld layers learned nothing from the text, %.160s%s%.160s: %.120s",
             (long long)n, (long long)all, from != NULL ? from : "", one ? "" : " to ",
             one || to == NULL ? "" : to, why != NULL ? why : "");
    return true;
}

static int add_coverage(json_t *to, const nb_calibrating *c)
{
    const coverage all = coverage_of(c);
    if (all.n == 0)
        return 0;
    return json_object_set_new(to, "coverage",
                               json_pack("{s:f, s:f, s:s}", "log_ratio_mean",
                                         all.sum / (double)all.n, "log_ratio_max", all.most,
                                         "where", all.where));
}

/* ---- errors ---- */

void nb_calibrating_add_errors(const nb_calibrating *c, nb_error_sum *sum)
{
    size_t i;
    json_t *o;
    json_array_foreach(c->result.layers, i, o)
    {
        const double n = json_number_value(json_object_get(o, "params"));
        const double rms = json_number_value(json_object_get(o, "weight_rms"));
        const double relative = json_number_value(json_object_get(o, "rms_error"));
        const double power = n * rms * rms;
        const nb_error_sum its = {.max = json_number_value(json_object_get(o, "max_error")),
                                  .square = relative * relative * power,
                                  .power = power};
        nb_error_sum_add(sum, &its);
    }
}

/* ---- what is recorded ---- */

json_t *nb_calibrating_line(const nb_calibrating *c)
{
    json_t *o = json_pack("{s:s,s:I,s:I,s:I,s:b,s:b,s:I,s:o}", "sha256", c->set.sha256, "sequences",
                          (json_int_t)c->set.n, "tokens", (json_int_t)c->set.n_tokens,
                          "held_out_tokens", (json_int_t)c->set.n_held_tokens, "learned_from",
                          (int)c->wanted, "guided", (int)c->guided, "disk_bytes",
                          (json_int_t)c->plan.disk, "score", score_json(&c->score));
    if (o != NULL && add_coverage(o, c) == 0)
        return o;
    json_decref(o);
    return NULL;
}

static json_t *files_json(const nb_calib_set *set)
{
    json_t *files = json_array();
    for (int i = 0; i < set->n_files; i++) {
        const nb_calib_file *f = &set->files[i];
        json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:s}", "path", f->path, "kind",
                              nb_calib_kind_name(f->kind), "bytes", (json_int_t)f->bytes,
                              "documents", (json_int_t)f->n_documents, "sha256", f->sha256);
        if (json_array_append_new(files, o) != 0) {
            json_decref(files);
            return NULL;
        }
    }
    return files;
}

nb_status nb_calibrating_json(const nb_calibrating *c, json_t **out, nb_err *err)
{
    json_t *files = files_json(&c->set);
    *out = json_pack("{s:o, s:s, s:I, s:I, s:I, s:b, s:b, s:I, s:o, s:s}", "files", files, "sha256",
                     c->set.sha256, "sequences", (json_int_t)c->set.n, "tokens",
                     (json_int_t)c->set.n_tokens, "held_out_tokens",
                     (json_int_t)c->set.n_held_tokens, "learned_from", (int)c->wanted, "guided",
                     (int)c->guided, "resumed_blocks", (json_int_t)c->result.resumed, "score",
                     score_json(&c->score), "model_sha256", c->model_sha256);
    int bad = *out == NULL;
    if (bad == 0 && c->result.layers != NULL)
        bad = json_object_set(*out, "layers", c->result.layers);
    if (bad == 0 && c->result.distilled != NULL)
        bad = json_object_set(*out, "distilled", c->result.distilled);
    if (bad == 0 && c->observer != NULL)
        bad = json_object_set_new(*out, "observer", json_string(c->observer));
    if (bad == 0)
        bad = add_coverage(*out, c);
    if (bad == 0)
        return NB_OK;
    json_decref(*out);
    *out = NULL;
    return nb_fail(err, NB_MEMORY, "no memory for the report");
}
