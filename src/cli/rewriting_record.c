/* What a quantized output records of its making, and what that is good for afterwards; see
 * rewriting.h. */
#include "cli/rewriting.h"

#include "quant/write/digest.h"

#include <stdio.h>
#include <string.h>

#define MAX_REPORT_BYTES ((size_t)256 << 20)

static const char *const endings[] = {".nibble-work", ".nibble-work-uniform", ".nibble-mix",
                                      ".nibble-kv"};
#define N_ENDINGS (sizeof endings / sizeof *endings)

nb_status nb_rewriting_beside(const nb_rewriting *r, const char *ending, nb_buf *path, nb_err *err)
{
    size_t n = strlen(r->output);
    while (n > 1 && r->output[n - 1] == '/')
        n--;
    return nb_buf_format(path, err, "%.*s%s", (int)n, r->output, ending);
}

/* ---- choices ---- */

static json_t *any_text(const char *text)
{
    return text == NULL ? json_null() : nb_json_any_text(text, strlen(text));
}

/* NULL: none, or no memory. */
static json_t *method_json(const nb_method *m)
{
    nb_buf text = {0};
    nb_err ignored = {0};
    json_t *j = NULL;
    if (nb_method_spell(m, &text, &ignored) == NB_OK)
        j = json_stringn((const char *)text.data, text.len);
    nb_buf_free(&text);
    return j;
}

static json_t *transform_json(const nb_calibrating_flags *f)
{
    nb_buf text = {0};
    nb_err ignored = {0};
    json_t *j = NULL;
    if (f->transform == NULL)
        return json_null();
    const char *options = f->transform_options != NULL ? f->transform_options : "";
    if (nb_buf_format(&text, &ignored, "%s%s%s", f->transform->name, *options != 0 ? ":" : "",
                      options) == NB_OK)
        j = nb_json_any_text((const char *)text.data, text.len);
    nb_buf_free(&text);
    return j;
}

/* Members whose values are all there: false when one is NULL, or on no memory. */
typedef struct {
    const char *key;
    json_t *value; /* taken */
} member;

static bool add_members(json_t *o, const member *m, size_t n)
{
    bool fine = true;
    for (size_t i = 0; i < n; i++)
        fine = json_object_set_new(o, m[i].key, m[i].value) == 0 && fine;
    return fine;
}

static json_t *rules_json(const nb_recipe *recipe)
{
    nb_buf text = {0};
    nb_err ignored = {0};
    json_t *j = NULL;
    if (nb_recipe_print(recipe, &text, &ignored) == NB_OK)
        j = nb_json_any_text((const char *)text.data, text.len);
    nb_buf_free(&text);
    return j;
}

/* What becomes of the weights: rules, or what a mixture was found by. */
static bool add_rules(json_t *o, const nb_rewriting *r)
{
    const nb_recipe_flags *f = r->recipes;
    switch (f->mix) {
    case NB_MIX_NONE:
        return json_object_set_new(o, "rules", rules_json(&f->recipe)) == 0;
    case NB_MIX_BPW:
        if (json_object_set_new(o, "bpw", json_real(f->bpw)) != 0)
            return false;
        break;
    case NB_MIX_SIZE:
        if (json_object_set_new(o, "size", json_integer(f->size)) != 0)
            return false;
        break;
    case NB_MIX_KL:
        if (json_object_set_new(o, "max_kl", json_real(f->max_kl)) != 0)
            return false;
        break;
    }
    const member more[] = {
        {"candidates", any_text(f->candidates)},
        {"mix_tokens", json_integer(f->n_tokens)},
        {"check", json_integer(r->flags->check)},
    };
    return add_members(o, more, sizeof more / sizeof *more);
}

static json_t *calib_json(const nb_calib_options *c)
{
    static const char *const packs[] = {"auto", "all", "none"};
    if (c->n_paths == 0)
        return json_null();
    json_t *o = json_object();
    const member all[] = {
        {"samples", json_integer(c->n_samples)},
        {"length", json_integer(c->length)},
        {"pack", json_string(packs[c->pack])},
        {"sample", json_string(c->random ? "random" : "first")},
        {"chat", json_string(c->plain_chat ? "text" : "template")},
        {"field", any_text(c->field)},
        {"split", any_text(c->split)},
    };
    if (add_members(o, all, sizeof all / sizeof *all))
        return o;
    json_decref(o);
    return NULL;
}

json_t *nb_rewriting_choices(const nb_rewriting *r)
{
    static const char *const flows[] = {"auto", "original", "quantized"};
    const nb_calibrating_flags *f = r->flags;
    json_t *o = json_object();
    const member all[] = {
        {"to", json_string(nb_target_name(r->request))},
        {"method", method_json(r->method)},
        {"tune", f->tunes ? method_json(&f->tune) : json_null()},
        {"distill", f->distills ? method_json(&f->distill) : json_null()},
        {"transform", transform_json(f)},
        {"guide", json_boolean(f->guide)},
        {"guide_outputs", json_boolean(f->guide_outputs)},
        {"flow", json_string(flows[f->flow])},
        {"observer", any_text(f->observer)},
        {"kv", any_text(f->kv)},
        {"seed", json_integer((json_int_t)f->set.options.seed)},
        {"nonfinite", json_string(r->nonfinite == NB_NONFINITE_ZERO ? "zero" : "refuse")},
        {"calib", calib_json(&f->set.options)},
    };
    if (add_members(o, all, sizeof all / sizeof *all) && add_rules(o, r))
        return o;
    json_decref(o);
    return NULL;
}

/* ---- an output that stands ---- */

/* Whether a record's SHA-256 is that of a file or folder. */
static bool same_model(const json_t *report, const char *key, const char *path)
{
    char hex[NB_SHA256_HEX];
    nb_err ignored = {0};
    const char *wanted = json_string_value(json_object_get(report, key));
    return wanted != NULL && nb_model_digest(path, hex, &ignored) == NB_OK &&
           strcmp(hex, wanted) == 0;
}

/* The calibration text of the record is that of the command, file by file. */
static bool same_text(const json_t *report, const nb_calib_options *c)
{
    const json_t *files = json_object_get(json_object_get(report, "calibration"), "files");
    if (json_array_size(files) != (size_t)c->n_paths)
        return files == NULL; /* none was read: it made no bytes */
    for (int i = 0; i < c->n_paths; i++) {
        nb_file file;
        nb_err ignored = {0};
        uint8_t digest[NB_SHA256_BYTES];
        char hex[NB_SHA256_HEX];
        const char *wanted =
            json_string_value(json_object_get(json_array_get(files, (size_t)i), "sha256"));
        if (wanted == NULL || nb_file_open(&file, c->paths[i], &ignored) != NB_OK)
            return false;
        const nb_status s = nb_file_sha256(&file, 0, digest, &ignored);
        nb_file_close(&file);
        if (s != NB_OK)
            return false;
        nb_sha256_hex_of(digest, hex);
        if (strcmp(hex, wanted) != 0)
            return false;
    }
    return true;
}

static bool made_by_this(const nb_rewriting *r, const json_t *report)
{
    json_t *choices = nb_rewriting_choices(r);
    const char *version = json_string_value(json_object_get(report, "nibble"));
    const bool same = choices != NULL && version != NULL && strcmp(version, nb_version()) == 0 &&
                      json_equal(choices, json_object_get(report, "choices")) == 1 &&
                      same_text(report, &r->flags->set.options) &&
                      same_model(report, "model_sha256", r->source) &&
                      same_model(report, "sha256", r->output);
    json_decref(choices);
    return same;
}

static bool anything_left(const nb_rewriting *r)
{
    bool any = false;
    for (size_t i = 0; i < N_ENDINGS && !any; i++) {
        nb_buf path = {0};
        nb_err ignored = {0};
        any = nb_rewriting_beside(r, endings[i], &path, &ignored) == NB_OK &&
              nb_path_is_dir((const char *)path.data);
        nb_buf_free(&path);
    }
    return any;
}

void nb_rewriting_clear(const nb_rewriting *r)
{
    for (size_t i = 0; i < N_ENDINGS; i++) {
        nb_buf path = {0};
        nb_err ignored = {0};
        nb_workdir dir = NB_WORKDIR_CLOSED;
        if (nb_rewriting_beside(r, endings[i], &path, &ignored) == NB_OK &&
            nb_path_is_dir((const char *)path.data) &&
            nb_workdir_open(&dir, (const char *)path.data, &ignored) == NB_OK)
            nb_workdir_close(&dir, true);
        nb_buf_free(&path);
    }
}

nb_status nb_rewriting_done_before(nb_rewriting *r, bool *done, nb_out *out, nb_err *err)
{
    nb_buf path = {0};
    nb_err ignored = {0};
    json_t *report = NULL;
    *done = false;
    if (!nb_path_exists(r->output) || nb_args_flag(r->args, "force"))
        return NB_OK;
    if (r->recipes != NULL && anything_left(r) &&
        nb_rewriting_report_path(r, true, &path, &ignored) == NB_OK &&
        nb_json_load(&report, (const char *)path.data, MAX_REPORT_BYTES, &ignored) == NB_OK)
        *done = made_by_this(r, report);
    nb_buf_free(&path);
    if (!*done) {
        json_decref(report);
        return nb_fail(err, NB_USAGE, "%s: exists already (--force replaces it)", r->output);
    }
    nb_rewriting_clear(r);
    nb_out_note(out,
                "%s: this command has made it already; what was left beside it is cleared away",
                r->output);
    if (out->json)
        return nb_out_json(out, report, err);
    json_decref(report);
    return NB_OK;
}
