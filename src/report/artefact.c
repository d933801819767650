/* See artefact.h. */
#include "report/artefact.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LINES   1000
#define MAX_LINEARS 100000

const char *const nb_artefact_kinds[NB_ARTEFACT_KINDS] = {"q", "k", "v", "o", "gate", "up", "down"};

bool nb_artefact_is(const json_t *object)
{
    return json_is_string(json_object_get(object, "nibble")) &&
           json_object_get(object, "source") != NULL && json_object_get(object, "scheme") != NULL;
}

/* ---- facts ---- */

static nb_status add_text(nb_artefact *a, const char *what, const json_t *object, const char *key,
                          bool required, nb_err *err)
{
    const char *text = NULL;
    NB_TRY(nb_json_text(object, key, required, &text, err));
    if (text != NULL && a->n_head < MAX_LINES)
        a->head[a->n_head++] = (nb_artefact_line){what, text};
    return NB_OK;
}

static nb_status add_number(nb_artefact *a, nb_arena *arena, const char *what, const json_t *object,
                            const char *key, const char *format, double scale, nb_err *err)
{
    double v = NAN;
    char *text;
    NB_TRY(nb_json_number(object, key, false, &v, err));
    if (!isfinite(v) || a->n_head == MAX_LINES)
        return NB_OK;
    char shown[64];
    snprintf(shown, sizeof shown, fabs(v) < 1e15 ? format : "%.3e", v * scale);
    NB_TRY(nb_arena_text(arena, &text, shown, strlen(shown), err));
    a->head[a->n_head++] = (nb_artefact_line){what, text};
    return NB_OK;
}

static nb_status add_files(nb_artefact *a, nb_arena *arena, const json_t *calibration, nb_err *err)
{
    json_t *files = NULL;
    NB_TRY(nb_json_array(calibration, "files", false, &files, err));
    for (size_t i = 0; i < json_array_size(files); i++) {
        const json_t *f = json_array_get(files, i);
        const char *path = NULL, *hash = "";
        char *text;
        if (!json_is_object(f))
            return nb_fail(err, NB_DATA, "files[%zu] is no object", i);
        NB_TRY(nb_json_text(f, "path", true, &path, err));
        NB_TRY(nb_json_text(f, "sha256", false, &hash, err));
        NB_TRY(nb_arena_format(arena, &text, err, "%s (sha256 %s)", path, hash));
        if (a->n_head < MAX_LINES)
            a->head[a->n_head++] = (nb_artefact_line){"calibration file", text};
    }
    return NB_OK;
}

/* What the calibration set is like. */
static nb_status read_score(nb_artefact *a, nb_arena *arena, const json_t *calibration, nb_err *err)
{
    static const struct {
        const char *what, *key, *format;
    } numbers[] = {
        {"share of the vocabulary in it, %", "vocabulary_share", "%.1f"},
        {"held-out tokens that the rest covers, %", "covered", "%.1f"},
        {"runs of 8 tokens that repeat, %", "repeated", "%.1f"},
        {"bytes that are not ASCII, %", "other_script", "%.1f"},
    };
    json_t *score = NULL, *coverage = NULL, *words = NULL;
    NB_TRY(nb_json_object(calibration, "score", false, &score, err));
    NB_TRY(nb_json_object(calibration, "coverage", false, &coverage, err));
    for (size_t i = 0; score != NULL && i < sizeof numbers / sizeof *numbers; i++)
        NB_TRY(add_number(a, arena, numbers[i].what, score, numbers[i].key, numbers[i].format, 100,
                          err));
    if (coverage != NULL) {
        NB_TRY(add_number(a, arena, "inputs of layers, held out against the rest, % apart",
                          coverage, "log_ratio_mean", "%.1f", 100, err));
        NB_TRY(add_number(a, arena, "the same at most, %", coverage, "log_ratio_max", "%.1f", 100,
                          err));
        NB_TRY(add_text(a, "which is at", coverage, "where", false, err));
    }
    if (score != NULL)
        NB_TRY(nb_json_array(score, "warnings", false, &words, err));
    for (size_t i = 0; i < json_array_size(words) && a->n_notes < MAX_LINES; i++) {
        const char *text = json_string_value(json_array_get(words, i));
        if (text == NULL)
            return nb_fail(err, NB_DATA, "warnings[%zu] is no text", i);
        a->notes[a->n_notes++] = (nb_artefact_line){"calibration text", text};
    }
    return NB_OK;
}

/* "64 steps, KL of held-out text 0.9912 -> 0.7204" */
static nb_status read_distilled(nb_artefact *a, nb_arena *arena, const json_t *calibration,
                                nb_err *err)
{
    json_t *o = NULL;
    int64_t steps = 0;
    double before = NAN, after = NAN;
    char kl[80] = "", *text;
    NB_TRY(nb_json_object(calibration, "distilled", false, &o, err));
    if (o == NULL)
        return NB_OK;
    NB_TRY(nb_json_int(o, "steps", true, 0, INT32_MAX, &steps, err));
    NB_TRY(nb_json_number(o, "kl_before", false, &before, err));
    NB_TRY(nb_json_number(o, "kl_after", false, &after, err));
    if (isfinite(before) && isfinite(after))
        snprintf(kl, sizeof kl, ", KL of held-out text %.4g -> %.4g", before, after);
    NB_TRY(nb_arena_format(arena, &text, err, "%lld steps%s%s", (long long)steps, kl,
                           json_is_false(json_object_get(o, "kept")) ? "; scales stay as they were"
                                                                     : ""));
    a->head[a->n_head++] = (nb_artefact_line){"distilled", text};
    return NB_OK;
}

static nb_status read_head(nb_artefact *a, nb_arena *arena, const json_t *o,
                           const json_t *calibration, nb_err *err)
{
    NB_TRY(add_text(a, "source", o, "source", true, err));
    NB_TRY(add_text(a, "source sha256", calibration, "model_sha256", false, err));
    NB_TRY(add_text(a, "output", o, "output", false, err));
    NB_TRY(add_text(a, "output sha256", o, "sha256", false, err));
    NB_TRY(add_text(a, "container", o, "container", false, err));
    NB_TRY(add_text(a, "scheme", o, "scheme", true, err));
    NB_TRY(add_text(a, "method", o, "method", true, err));
    NB_TRY(read_distilled(a, arena, calibration, err));
    NB_TRY(add_number(a, arena, "bits per weight, all tensors", o, "bpw", "%.3f", 1, err));
    NB_TRY(add_number(a, arena, "bytes", o, "bytes", "%.0f", 1, err));
    NB_TRY(add_number(a, arena, "time, s", o, "seconds", "%.1f", 1, err));
    NB_TRY(add_number(a, arena, "peak memory, MB", o, "peak_rss_bytes", "%.1f", 1e-6, err));
    NB_TRY(add_text(a, "calibration set sha256", calibration, "sha256", false, err));
    NB_TRY(add_number(a, arena, "calibration tokens", calibration, "tokens", "%.0f", 1, err));
    NB_TRY(add_files(a, arena, calibration, err));
    NB_TRY(read_score(a, arena, calibration, err));
    return add_text(a, "nibble version", o, "nibble", true, err);
}

static nb_status read_task(nb_artefact_task *t, const json_t *o, nb_err *err)
{
    const struct {
        const char *key;
        bool required;
        double *value;
    } numbers[] = {
        {"n", true, &t->n},
        {"acc", true, &t->acc},
        {"acc_se", false, &t->acc_se},
        {"acc_norm", true, &t->acc_norm},
        {"acc_norm_se", false, &t->acc_norm_se},
        {"base_acc", true, &t->base_acc},
        {"base_acc_se", false, &t->base_acc_se},
        {"base_acc_norm", true, &t->base_acc_norm},
        {"base_acc_norm_se", false, &t->base_acc_norm_se},
        {"flips", false, &t->flips},
        {"lost", false, &t->lost},
        {"won", false, &t->won},
    };
    if (!json_is_object(o))
        return nb_fail(err, NB_DATA, "it is no object");
    NB_TRY(nb_json_text(o, "task", true, &t->name, err));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        *numbers[i].value = NAN;
        NB_TRY(nb_json_number(o, numbers[i].key, numbers[i].required, numbers[i].value, err));
    }
    return NB_OK;
}

static nb_status read_tasks(nb_artefact *a, nb_arena *arena, const json_t *e, nb_err *err)
{
    json_t *tasks = NULL;
    NB_TRY(nb_json_text(e, "tasks_left_out", false, &a->tasks_left_out, err));
    NB_TRY(nb_json_array(e, "tasks", false, &tasks, err));
    const size_t n = json_array_size(tasks);
    if (n > MAX_LINES)
        return nb_fail(err, NB_LIMIT, "tasks: more than %d", MAX_LINES);
    NB_TRY(NB_ARENA_ALLOC(arena, &a->tasks, (int64_t)n + 1, err));
    for (size_t i = 0; i < n; i++) {
        if (read_task(&a->tasks[a->n_tasks++], json_array_get(tasks, i), err) != NB_OK)
            return nb_context(err, "tasks[%zu]", i);
    }
    return NB_OK;
}

static nb_status read_evaluation(nb_artefact *a, nb_arena *arena, const json_t *e, nb_err *err)
{
    static const struct {
        const char *what, *key, *format;
    } numbers[] = {
        {"tokens measured on (held out)", "n_tokens", "%.0f"},
        {"perplexity", "perplexity", "%.4f"},
        {"perplexity of the original", "base_perplexity", "%.4f"},
        {"KL mean, nat", "kl_mean", "%.6f"},
        {"KL mean, standard error", "kl_mean_se", "%.6f"},
        {"KL median, nat", "kl_median", "%.6f"},
        {"KL p99, nat", "kl_p99", "%.5f"},
        {"top-1 agreement, share", "top1", "%.4f"},
    };
    NB_TRY(nb_json_text(e, "left_out", false, &a->left_out, err));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        NB_TRY(add_number(a, arena, numbers[i].what, e, numbers[i].key, numbers[i].format, 1, err));
    NB_TRY(add_number(a, arena, "top-1 flips, share", e, "flips", "%.4f", 1, err));
    NB_TRY(read_tasks(a, arena, e, err));
    json_t *floor_object = NULL, *layers = NULL;
    NB_TRY(nb_json_number(e, "kl_mean", false, &a->kl_mean, err));
    NB_TRY(nb_json_object(e, "noise_floor", false, &floor_object, err));
    if (floor_object != NULL) {
        NB_TRY(nb_json_number(floor_object, "kl_mean", false, &a->floor_kl, err));
        NB_TRY(add_number(a, arena, "noise floor, KL", floor_object, "kl_mean", "%.2e", 1, err));
        NB_TRY(add_text(a, "noise floor is", floor_object, "definition", false, err));
    }
    NB_TRY(nb_json_array(e, "layers", false, &layers, err));
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const json_t *o = json_array_get(layers, i);
        int64_t layer = 0;
        if (!json_is_object(o))
            return nb_fail(err, NB_DATA, "layers[%zu] is no object", i);
        NB_TRY(nb_json_int(o, "layer", true, 0, NB_ARTEFACT_MAX_LAYERS - 1, &layer, err));
        NB_TRY(nb_json_number(o, "kl_mean", false, &a->layer_kl[layer], err));
        a->n_layers = layer >= a->n_layers ? layer + 1 : a->n_layers;
    }
    return NB_OK;
}

/* ---- notes ---- */

static nb_status read_notes(nb_artefact *a, nb_arena *arena, const json_t *o, nb_err *err)
{
    json_t *notes = NULL, *reasons = NULL;
    NB_TRY(nb_json_array(o, "notes", false, &notes, err));
    NB_TRY(nb_json_array(o, "reasons", false, &reasons, err));
    for (size_t i = 0; i < json_array_size(notes) && a->n_notes < MAX_LINES; i++) {
        const char *text = json_string_value(json_array_get(notes, i));
        if (text == NULL)
            return nb_fail(err, NB_DATA, "notes[%zu] is no text", i);
        a->notes[a->n_notes++] = (nb_artefact_line){"note", text};
    }
    for (size_t i = 0; i < json_array_size(reasons) && a->n_notes < MAX_LINES; i++) {
        const json_t *r = json_array_get(reasons, i);
        const char *pattern, *scheme = "", *because = "";
        char *what;
        if (!json_is_object(r))
            return nb_fail(err, NB_DATA, "reasons[%zu] is no object", i);
        NB_TRY(nb_json_text(r, "layers", true, &pattern, err));
        NB_TRY(nb_json_text(r, "scheme", false, &scheme, err));
        NB_TRY(nb_json_text(r, "because", false, &because, err));
        NB_TRY(nb_arena_format(arena, &what, err, "%s: %s", pattern, scheme));
        a->notes[a->n_notes++] = (nb_artefact_line){what, because};
    }
    return NB_OK;
}

/* ---- linear layers ---- */

/* "model.layers.12.mlp.up_proj.weight" is kind 5 of layer 12. */
static void place_linear(nb_artefact_linear *l)
{
    static const char *const ends[NB_ARTEFACT_KINDS] = {
        ".q_proj", ".k_proj", ".v_proj", ".o_proj", ".gate_proj", ".up_proj", ".down_proj"};
    static const char start[] = "model.layers.";
    l->layer = l->kind = -1;
    if (strncmp(l->name, start, sizeof start - 1) != 0)
        return;
    char *end;
    const long layer = strtol(l->name + sizeof start - 1, &end, 10);
    if (*end != '.' || layer < 0 || layer >= NB_ARTEFACT_MAX_LAYERS)
        return;
    for (int k = 0; k < NB_ARTEFACT_KINDS; k++) {
        const char *at = strstr(end, ends[k]);
        if (at == NULL)
            continue;
        l->layer = layer;
        l->kind = k;
    }
}

static nb_status read_linear(nb_artefact *a, const json_t *o, nb_err *err)
{
    nb_artefact_linear l = {.params = NAN,
                            .bytes = NAN,
                            .loss = NAN,
                            .held_out_loss = NAN,
                            .seconds = NAN,
                            .rms_error = NAN,
                            .predicted_kl = NAN,
                            .coverage = NAN};
    json_t *coverage = NULL;
    NB_TRY(nb_json_text(o, "name", true, &l.name, err));
    NB_TRY(nb_json_text(o, "format", false, &l.format, err));
    NB_TRY(nb_json_text(o, "note", false, &l.note, err));
    NB_TRY(nb_json_number(o, "params", false, &l.params, err));
    NB_TRY(nb_json_number(o, "bytes", false, &l.bytes, err));
    NB_TRY(nb_json_number(o, "loss", false, &l.loss, err));
    NB_TRY(nb_json_number(o, "held_out_loss", false, &l.held_out_loss, err));
    NB_TRY(nb_json_number(o, "seconds", false, &l.seconds, err));
    NB_TRY(nb_json_number(o, "rms_error", false, &l.rms_error, err));
    NB_TRY(nb_json_number(o, "predicted_kl", false, &l.predicted_kl, err));
    NB_TRY(nb_json_object(o, "coverage", false, &coverage, err));
    if (coverage != NULL && nb_json_number(coverage, "log_ratio", false, &l.coverage, err) != NB_OK)
        return nb_context(err, "coverage");
    place_linear(&l);
    a->n_layers = l.layer >= a->n_layers ? l.layer + 1 : a->n_layers;
    a->linears[a->n_linears++] = l;
    return NB_OK;
}

/* Objects of transforms stand among those of linears, and tell of a note only. */
static nb_status read_transform(nb_artefact *a, nb_arena *arena, const json_t *o, nb_err *err)
{
    const char *transform, *point = "", *note = NULL;
    int64_t layer = -1;
    char *what;
    NB_TRY(nb_json_text(o, "transform", true, &transform, err));
    NB_TRY(nb_json_text(o, "point", false, &point, err));
    NB_TRY(nb_json_text(o, "note", false, &note, err));
    NB_TRY(nb_json_int(o, "layer", false, 0, NB_ARTEFACT_MAX_LAYERS - 1, &layer, err));
    if (note == NULL || *note == 0 || a->n_notes == MAX_LINES)
        return NB_OK;
    NB_TRY(nb_arena_format(arena, &what, err, "%s, layer %lld, %s", transform, (long long)layer,
                           point));
    a->notes[a->n_notes++] = (nb_artefact_line){what, note};
    return NB_OK;
}

static nb_status read_linears(nb_artefact *a, nb_arena *arena, const json_t *calibration,
                              nb_err *err)
{
    json_t *layers = NULL;
    NB_TRY(nb_json_array(calibration, "layers", false, &layers, err));
    const size_t n = json_array_size(layers);
    if (n > MAX_LINEARS)
        return nb_fail(err, NB_LIMIT, "layers: more than %d", MAX_LINEARS);
    NB_TRY(NB_ARENA_ALLOC(arena, &a->linears, (int64_t)n + 1, err));
    for (size_t i = 0; i < n; i++) {
        const json_t *o = json_array_get(layers, i);
        if (!json_is_object(o))
            return nb_fail(err, NB_DATA, "layers[%zu] is no object", i);
        const bool transform = json_object_get(o, "transform") != NULL;
        if ((transform ? read_transform(a, arena, o, err) : read_linear(a, o, err)) != NB_OK)
            return nb_context(err, "layers[%zu]", i);
    }
    return NB_OK;
}

/* ---- all of it ---- */

nb_status nb_artefact_read(nb_artefact *out, nb_arena *arena, const json_t *object, nb_err *err)
{
    nb_artefact a = {.kl_mean = NAN, .floor_kl = NAN};
    json_t *calibration = NULL, *evaluation = NULL;
    NB_TRY(NB_ARENA_ALLOC(arena, &a.head, MAX_LINES, err));
    NB_TRY(NB_ARENA_ALLOC(arena, &a.notes, MAX_LINES, err));
    NB_TRY(NB_ARENA_ALLOC(arena, &a.layer_kl, NB_ARTEFACT_MAX_LAYERS, err));
    for (int i = 0; i < NB_ARTEFACT_MAX_LAYERS; i++)
        a.layer_kl[i] = NAN;
    NB_TRY(nb_json_object(object, "calibration", false, &calibration, err));
    NB_TRY(nb_json_object(object, "evaluation", false, &evaluation, err));
    NB_TRY(read_notes(&a, arena, object, err));
    if (calibration != NULL && read_linears(&a, arena, calibration, err) != NB_OK)
        return nb_context(err, "calibration");
    NB_TRY(read_head(&a, arena, object, calibration, err));
    if (evaluation != NULL && read_evaluation(&a, arena, evaluation, err) != NB_OK)
        return nb_context(err, "evaluation");
    *out = a;
    return NB_OK;
}
