/* What quantize and convert print; see rewriting.h. */
#include "cli/rewriting.h"

#include "quant/plan/fallback.h"
#include "store/names.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- words ---- */

/* "q4_0", "int4 g64", "int8 channel, asym": a format with how its scales lie. */
static const char *format_words(const nb_weight *w, char *room, size_t size)
{
    if (!w->fmt->affine)
        return w->fmt->name;
    char group[32] = "channel";
    if (w->group_size < w->n_cols)
        snprintf(group, sizeof group, "g%lld", (long long)w->group_size);
    snprintf(room, size, "%s %s%s", w->fmt->name, group,
             w->symmetric     ? ""
             : w->float_zeros ? ", asym, float zeros"
                              : ", asym");
    return room;
}

static const char *container_words(nb_store_kind kind)
{
    return kind == NB_STORE_GGUF ? "a GGUF" : "a Hugging Face folder";
}

int64_t nb_rewriting_memory(const nb_rewriting *r)
{
    const int64_t text_bytes = r->wrapping.side_bytes + (int64_t)r->wrapping.kv.len;
    const int64_t writing =
        nb_rewrite_memory(&r->plan, text_bytes, nb_pool_n_threads(r->runtime.pool));
    const int64_t others[] = {r->calibrating.plan.memory, r->check_plan.memory,
                              r->tasks_plan.memory, r->mixing.plan.memory, r->kv_plan.memory};
    int64_t most = writing;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        most = others[i] > most ? others[i] : most;
    return most;
}

/* The scheme and the method of all rules, or "mixed". */
static const char *scheme_words(const nb_rewriting *r)
{
    const nb_recipe *recipe = r->plan.request.recipe;
    const char *name = r->plan.request.scheme->name;
    if (r->plan.request.preset != NULL)
        return r->plan.request.preset->name;
    for (int64_t i = 0; recipe != NULL && i < recipe->n; i++) {
        if (recipe->rule[i].scheme == NULL || strcmp(recipe->rule[i].scheme->name, name) != 0)
            return "mixed";
    }
    return name;
}

static const nb_method *main_method(const nb_rewriting *r)
{
    const nb_recipe *recipe = r->plan.request.recipe;
    return recipe != NULL ? nb_recipe_main(recipe)->method : r->method;
}

static const char *method_words(const nb_rewriting *r)
{
    const nb_recipe *recipe = r->plan.request.recipe;
    const nb_method *one = main_method(r);
    for (int64_t i = 0; recipe != NULL && i < recipe->n; i++) {
        if (recipe->rule[i].method != NULL && !nb_method_same(recipe->rule[i].method, one))
            return "mixed";
    }
    return one->quantizer->name;
}

void nb_rewriting_print_head(const nb_rewriting *r, nb_out *out)
{
    const nb_plan *plan = &r->plan;
    if (plan->warning != NULL)
        nb_out_note(out, "%s", plan->warning);
    if (out->quiet || out->json)
        return;
    const bool quantize = plan->request.scheme != NULL;
    nb_out_text(out, "%s %s (%s, %s) to %s%s%s", quantize ? "quantize" : "convert", r->source,
                nb_container_name(nb_store_kind_of(r->store)),
                nb_human_bytes(nb_store_file_bytes(r->store)).text,
                container_words(plan->request.to), r->output != NULL ? " " : "",
                r->output != NULL ? r->output : "");
    if (quantize)
        nb_out_text(out, ": %s, method %s", scheme_words(r), method_words(r));
    nb_out_text(out, "\n");
    for (int i = 0; i < plan->n_notes; i++)
        nb_out_text(out, "  %s\n", plan->notes[i]);
    nb_out_text(out,
                "  planned: %lld bytes (%s), %.3f bits per weight (%.3f in the linear layers); "
                "memory about %s\n",
                (long long)r->bytes, nb_human_bytes(r->bytes).text, nb_plan_bpw(plan),
                nb_plan_linear_bpw(plan), nb_human_bytes(nb_rewriting_memory(r)).text);
}

/* ---- the table: one row for all layers' weights that are treated alike ---- */

/* A row's key and text at once: name with the layer as *, shape, and what happens. */
static nb_status row_text(nb_arena *arena, char **out, const nb_plan *plan, int64_t i, nb_err *err)
{
    static const char layers[] = "model.layers.";
    const nb_weight *to = &plan->weights[i], *from = plan->from[i];
    char from_room[64], to_room[64];
    const char *rest = to->name, *before = "";
    if (strncmp(to->name, layers, sizeof layers - 1) == 0) {
        const size_t digits = strspn(to->name + sizeof layers - 1, "0123456789");
        before = digits > 0 ? "model.layers.*" : "";
        rest = digits > 0 ? to->name + sizeof layers - 1 + digits : to->name;
    }
    return nb_arena_format(arena, out, err, "%s%s\n%lld x %lld\n%s\n%s\n%s", before, rest,
                           (long long)to->n_rows, (long long)to->n_cols,
                           from == NULL ? "-" : format_words(from, from_room, sizeof from_room),
                           format_words(to, to_room, sizeof to_room), nb_how_name(plan->how[i]));
}

/* Rows that are one: how many weights, their bytes, and the first of them. */
typedef struct {
    const char *text;
    int64_t first, n, bytes;
} merged;

static int by_first(const void *a, const void *b)
{
    const merged *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

static nb_status merge_rows(nb_arena *arena, const nb_plan *plan, merged **out, int64_t *n_out,
                            nb_err *err)
{
    nb_name *names;
    NB_TRY(NB_ARENA_ALLOC(arena, &names, plan->n, err));
    NB_TRY(NB_ARENA_ALLOC(arena, out, plan->n, err));
    for (int64_t i = 0; i < plan->n; i++) {
        char *text;
        NB_TRY(row_text(arena, &text, plan, i, err));
        names[i] = (nb_name){.name = text, .value = i};
    }
    nb_names_sort(names, plan->n);
    int64_t n = 0;
    for (int64_t i = 0; i < plan->n; i++) {
        if (i == 0 || strcmp(names[i - 1].name, names[i].name) != 0)
            (*out)[n++] = (merged){.text = names[i].name, .first = names[i].value};
        (*out)[n - 1].n++;
        (*out)[n - 1].bytes += plan->weights[names[i].value].bytes;
    }
    qsort(*out, (size_t)n, sizeof **out, by_first);
    *n_out = n;
    return NB_OK;
}

static nb_status add_row(nb_table *table, const merged *row, nb_err *err)
{
    const char *at = row->text;
    for (int column = 0; column < 5; column++) {
        const size_t n = strcspn(at, "\n");
        NB_TRY(nb_table_cell(table, err, "%.*s", (int)n, at));
        at += n + (at[n] != 0);
        if (column == 0)
            NB_TRY(nb_table_cell(table, err, "%lld", (long long)row->n));
    }
    return nb_table_cell(table, err, "%lld", (long long)row->bytes);
}

nb_status nb_rewriting_print_table(const nb_rewriting *r, nb_out *out, nb_err *err)
{
    static const char *const heads[] = {"tensor", ">count", "shape", "from", "to", "how", ">bytes"};
    nb_arena arena = {0};
    nb_table table = {0};
    merged *rows = NULL;
    int64_t n = 0;
    nb_status s = merge_rows(&arena, &r->plan, &rows, &n, err);
    if (s == NB_OK)
        s = nb_table_begin(&table, heads, 7, err);
    for (int64_t i = 0; s == NB_OK && i < n; i++)
        s = add_row(&table, &rows[i], err);
    if (s == NB_OK) {
        nb_out_text(out, "\n");
        s = nb_table_print(&table, out, err);
    }
    nb_table_free(&table);
    nb_arena_free(&arena);
    return s;
}

/* ---- the end ---- */

static void print_error(nb_out *out, const char *what, const nb_error_sum *e)
{
    if (e->power > 0)
        nb_out_text(out, "  %s: rms error %.3g %% of the weights' rms, largest %.3g\n", what,
                    100 * nb_error_sum_rms(e), e->max);
}

static int64_t count_how(const nb_plan *plan, nb_how how)
{
    int64_t n = 0;
    for (int64_t i = 0; i < plan->n; i++)
        n += plan->how[i] == how;
    return n;
}

/* One line; nothing when nothing was measured. */
static void print_evaluation(const nb_rewriting *r, nb_out *out)
{
    const json_t *e = r->evaluation;
    const double mean = json_number_value(json_object_get(e, "kl_mean"));
    const double kl = fabs(mean) < 0.00005 ? 0 : mean; /* no "-0.0000" of its last place */
    if (out->quiet || !json_is_number(json_object_get(e, "kl_mean")))
        return;
    nb_out_text(out,
                "  against the original, on %lld held-out tokens: KL %.4f, perplexity %.3f (%.3f), "
                "top-1 %.1f %%\n",
                (long long)json_integer_value(json_object_get(e, "n_tokens")), kl,
                json_number_value(json_object_get(e, "perplexity")),
                json_number_value(json_object_get(e, "base_perplexity")),
                100 * json_number_value(json_object_get(e, "top1")));
}

void nb_rewriting_print_end(const nb_rewriting *r, nb_out *out)
{
    const nb_plan *plan = &r->plan;
    if (r->dry_run) {
        nb_out_text(out,
                    "\n%lld tensors, %s parameters; about %s of computing on %d threads, and "
                    "what reading and writing take; nothing was written\n",
                    (long long)plan->n, nb_human_count(plan->n_params).text,
                    nb_human_seconds(r->seconds).text, nb_pool_n_threads(r->runtime.pool));
        return;
    }
    if (!out->quiet) {
        const int64_t n_repacked = count_how(plan, NB_HOW_REPACK);
        if (n_repacked > 0 && r->result.n_requantized == 0)
            nb_out_text(out, "  codes and scales carried over exactly: %lld tensors\n",
                        (long long)n_repacked);
        print_error(out, "quantized", &r->result.quantized);
        if (plan->n_rounded > 0)
            print_error(out, "rounded to other floats", &r->result.rounded);
        if (r->result.n_zeroed > 0)
            nb_out_text(out, "  %lld values that were NaN or infinite are 0 now\n",
                        (long long)r->result.n_zeroed);
        if (r->result.n_requantized > 0)
            nb_out_text(out, "  %lld rows got new codes, because their scales do not fit\n",
                        (long long)r->result.n_requantized);
    }
    nb_rewriting_print_kv(r, out);
    nb_out_text(out,
                "%s: %lld bytes (%s), %.3f bits per weight (%.3f in the linear layers), in %s\n",
                r->output, (long long)r->bytes, nb_human_bytes(r->bytes).text, nb_plan_bpw(plan),
                nb_plan_linear_bpw(plan), nb_human_seconds(r->seconds).text);
    if (r->sha256[0] != 0 && !out->quiet)
        nb_out_text(out, "  sha256 %s\n", r->sha256);
    print_evaluation(r, out);
    if (!out->quiet)
        nb_task_check_print(r->evaluation, out);
}

/* ---- JSON ---- */

static json_t *text_json(const char *text)
{
    return text == NULL ? json_null() : nb_json_any_text(text, strlen(text));
}

static json_t *tensor_json(const nb_plan *plan, int64_t i)
{
    const nb_weight *to = &plan->weights[i], *from = plan->from[i];
    json_t *shape = json_array();
    for (int d = 0; d < to->n_dims; d++)
        json_array_append_new(shape, json_integer(to->dims[d]));
    json_t *j = json_pack("{s:o,s:o,s:s,s:s,s:s,s:I}", "name", text_json(to->name), "shape", shape,
                          "from", from == NULL ? "" : from->fmt->name, "format", to->fmt->name,
                          "how", nb_how_name(plan->how[i]), "bytes", (json_int_t)to->bytes);
    if (j != NULL && to->fmt->affine) {
        json_object_set_new(j, "group_size", json_integer(to->group_size));
        json_object_set_new(j, "symmetric", json_boolean(to->symmetric));
        if (to->float_zeros)
            json_object_set_new(j, "zero_type", json_string(nb_float_name(to->scale_type)));
        json_object_set_new(j, "scale_type", json_string(nb_float_name(to->scale_type)));
    }
    return j;
}

static json_t *plan_json(const nb_rewriting *r)
{
    const nb_plan *plan = &r->plan;
    const nb_scheme *scheme = plan->request.scheme;
    const int64_t memory = nb_rewriting_memory(r);
    json_t *notes = json_array();
    for (int i = 0; i < plan->n_notes; i++)
        json_array_append_new(notes, text_json(plan->notes[i]));
    if (plan->warning != NULL)
        json_array_append_new(notes, text_json(plan->warning));
    char fallen[512];
    if (nb_calibrating_fallen(&r->calibrating, fallen, sizeof fallen))
        json_array_append_new(notes, text_json(fallen));
    json_t *group = json_null();
    if (scheme != NULL && scheme->fmt->affine && strcmp(scheme_words(r), scheme->name) == 0)
        group = plan->group_size == NB_GROUP_CHANNEL ? json_string("channel")
                                                     : json_integer(plan->group_size);
    json_t *a = json_pack(
        "{s:o,s:s,s:o,s:s,s:o,s:o,s:o,s:I,s:I,s:I,s:I}", "source", text_json(r->source),
        "source_container", nb_container_name(nb_store_kind_of(r->store)), "output",
        text_json(r->output), "container", nb_target_name(&plan->request), "scheme",
        text_json(scheme == NULL ? NULL : scheme_words(r)), "method",
        text_json(scheme == NULL ? NULL : method_words(r)), "group_size", group, "n_tensors",
        (json_int_t)plan->n, "n_quantized", (json_int_t)plan->n_quantized, "n_requantized",
        (json_int_t)plan->n_requantized, "n_rounded", (json_int_t)plan->n_rounded);
    json_t *b =
        json_pack("{s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:I,s:o}", "n_params", (json_int_t)plan->n_params,
                  "source_bytes", (json_int_t)nb_store_file_bytes(r->store), "bytes",
                  (json_int_t)r->bytes, "side_bytes", (json_int_t)r->wrapping.side_bytes,
                  "weight_bytes", (json_int_t)plan->bytes, "bpw", nb_plan_bpw(plan), "linear_bpw",
                  nb_plan_linear_bpw(plan), "memory_bytes", (json_int_t)memory, "notes", notes);
    if (a == NULL || b == NULL || json_object_update(a, b) != 0) {
        json_decref(a);
        a = NULL;
    }
    json_decref(b);
    return a;
}

static int add_dry(json_t *line, const nb_rewriting *r)
{
    json_t *tensors = json_array();
    int bad = tensors == NULL;
    for (int64_t i = 0; i < r->plan.n && !bad; i++)
        bad = json_array_append_new(tensors, tensor_json(&r->plan, i));
    bad |= json_object_set_new(line, "dry_run", json_true());
    if (r->mixing.f != NULL)
        bad |= json_object_set_new(line, "mixture", nb_mixing_plan_json(&r->mixing));
    bad |= json_object_set_new(line, "seconds", json_real(r->seconds));
    return bad | json_object_set_new(line, "tensors", tensors);
}

static int add_results(json_t *line, const nb_rewriting *r)
{
    const nb_rewrite_result *x = &r->result;
    json_t *more = json_pack(
        "{s:f,s:f,s:f,s:f,s:I,s:f,s:I}", "rms_error", nb_error_sum_rms(&x->quantized), "max_error",
        x->quantized.max, "rounding_rms_error", nb_error_sum_rms(&x->rounded), "rounding_max_error",
        x->rounded.max, "zeroed", (json_int_t)x->n_zeroed, "seconds", r->seconds, "peak_rss_bytes",
        (json_int_t)nb_peak_rss());
    const int bad = more == NULL ? -1 : json_object_update(line, more);
    json_decref(more);
    return bad;
}

/* What a calibrated run will take, or has taken. */
static int add_calibration(json_t *line, const nb_rewriting *r)
{
    const nb_calibrating *c = &r->calibrating;
    if (!c->wanted && !c->checks && !c->serves)
        return 0;
    return json_object_set_new(line, "calibration", nb_calibrating_line(c));
}

static json_t *whole_json(const nb_rewriting *r)
{
    json_t *line = plan_json(r);
    if (line == NULL)
        return NULL;
    int bad = r->dry_run ? add_dry(line, r) : add_results(line, r);
    bad |= add_calibration(line, r);
    if (!r->dry_run && r->plan.request.kv != NB_KV_SCALES_NONE)
        bad |= json_object_set_new(line, "kv_cache", nb_rewriting_kv_json(r));
    if (r->evaluation != NULL)
        bad |= json_object_set(line, "evaluation", r->evaluation);
    if (!r->dry_run && r->sha256[0] != 0)
        bad |= json_object_set_new(line, "sha256", json_string(r->sha256));
    if (bad == 0)
        return line;
    json_decref(line);
    return NULL;
}

nb_status nb_rewriting_print_json(const nb_rewriting *r, nb_out *out, nb_err *err)
{
    return nb_out_json(out, whole_json(r), err);
}

/* ---- the report beside the weights ---- */

nb_status nb_rewriting_report_path(const nb_rewriting *r, bool published, nb_buf *out, nb_err *err)
{
    if (r->request->to != NB_STORE_HF)
        return nb_rewriting_beside(r, ".nibble-report.json", out, err);
    return published ? nb_rewriting_beside(r, "/nibble-report.json", out, err)
                     : nb_buf_format(out, err, "%s/nibble-report.json", r->made_at);
}

static nb_status write_text(const char *path, const nb_buf *text, nb_err *err)
{
    nb_outfile file = NB_OUTFILE_CLOSED;
    NB_TRY(nb_outfile_open(&file, path, true, err));
    const nb_status s = nb_outfile_write(&file, text->data, text->len, err);
    if (s == NB_OK)
        return nb_outfile_commit(&file, err);
    nb_outfile_abort(&file);
    return s;
}

/* Rules that give a reason: the layers that were treated otherwise, and why. */
static json_t *reasons_json(const nb_recipe *recipe)
{
    json_t *list = json_array();
    bool bad = list == NULL;
    for (int64_t i = 0; i < recipe->n && !bad; i++) {
        const nb_rule *rule = &recipe->rule[i];
        if (rule->because == NULL)
            continue;
        json_t *o = json_pack("{s:s, s:s, s:o}", "layers", rule->pattern, "scheme",
                              rule->scheme != NULL ? rule->scheme->name : "keep", "because",
                              text_json(rule->because));
        bad = json_array_append_new(list, o) != 0;
    }
    if (!bad)
        return list;
    json_decref(list);
    return NULL;
}

/* "model.layers.0.mlp.up_proj" of the weights that fell back alike. */
static json_t *names_json(const nb_plan *plan, const nb_fallback *f)
{
    json_t *list = json_array();
    bool bad = list == NULL;
    for (int64_t i = f->first; i < plan->n && !bad; i++) {
        if (plan->wanted[i] != f->wanted || plan->weights[i].fmt != f->became)
            continue;
        const char *name = plan->weights[i].name;
        const size_t n = strlen(name), n_end = strlen(".weight");
        bad = json_array_append_new(list, nb_json_any_text(name, n > n_end ? n - n_end : n)) != 0;
    }
    if (!bad)
        return list;
    json_decref(list);
    return NULL;
}

/* Which layers became another format than their rule says, and why. */
static json_t *fallbacks_json(const nb_plan *plan)
{
    nb_fallback f;
    json_t *list = json_array();
    bool bad = list == NULL;
    for (int64_t at = 0; !bad && nb_fallback_next(plan, &at, &f);) {
        char because[80];
        snprintf(because, sizeof because, "rows are no whole blocks of %d", f.wanted->block_len);
        json_t *o = json_pack("{s:s, s:s, s:o, s:s}", "wanted", f.wanted->name, "became",
                              f.became->name, "layers", names_json(plan, &f), "because", because);
        bad = json_array_append_new(list, o) != 0;
    }
    if (!bad)
        return list;
    json_decref(list);
    return NULL;
}

/* The rules as --recipe takes them, their reasons, what did not follow them, and how a mixture was
 * found. */
static nb_status add_recipe(json_t *report, const nb_rewriting *r, nb_err *err)
{
    const nb_recipe *recipe = r->plan.request.recipe;
    nb_buf text = {0};
    if (recipe == NULL)
        return NB_OK;
    nb_status s = nb_recipe_print(recipe, &text, err);
    if (s == NB_OK &&
        (json_object_set_new(report, "recipe",
                             nb_json_any_text((const char *)text.data, text.len)) != 0 ||
         json_object_set_new(report, "reasons", reasons_json(recipe)) != 0 ||
         json_object_set_new(report, "fallbacks", fallbacks_json(&r->plan)) != 0 ||
         json_object_set_new(report, "choices", nb_rewriting_choices(r)) != 0 ||
         json_object_set_new(report, "model_sha256", json_string(r->model_sha256)) != 0))
        s = nb_fail(err, NB_MEMORY, "no memory for the report");
    nb_buf_free(&text);
    json_t *mixture = NULL;
    if (s == NB_OK && r->mixing.f != NULL)
        s = nb_mixing_json(&r->mixing, &mixture, err);
    if (mixture != NULL && json_object_set_new(report, "mixture", mixture) != 0)
        s = nb_fail(err, NB_MEMORY, "no memory for the report");
    return s;
}

nb_status nb_rewriting_write_report(const nb_rewriting *r, nb_err *err)
{
    nb_buf path = {0}, text = {0};
    json_t *calibration = NULL, *report = whole_json(r), *method = NULL;
    nb_status s = report != NULL ? NB_OK : nb_fail(err, NB_MEMORY, "no memory for the report");
    if (s == NB_OK && (r->calibrating.wanted || r->calibrating.checks || r->calibrating.serves))
        s = nb_calibrating_json(&r->calibrating, &calibration, err);
    if (s == NB_OK)
        s = add_recipe(report, r, err);
    const bool mixed = strcmp(method_words(r), "mixed") == 0;
    if (s == NB_OK)
        s = mixed ? nb_buf_text(&text, "mixed", err) : nb_method_spell(main_method(r), &text, err);
    if (s == NB_OK) {
        method = json_stringn((const char *)text.data, text.len);
        text.len = 0;
        if (json_object_set(report, "method", method) != 0 ||
            json_object_set_new(report, "nibble", json_string(nb_version())) != 0 ||
            (calibration != NULL && json_object_set(report, "calibration", calibration) != 0))
            s = nb_fail(err, NB_MEMORY, "no memory for the report");
    }
    if (s == NB_OK)
        s = nb_json_write(&text, report, true, err);
    if (s == NB_OK)
        s = nb_rewriting_report_path(r, false, &path, err);
    if (s == NB_OK)
        s = write_text((const char *)path.data, &text, err);
    json_decref(method);
    json_decref(calibration);
    json_decref(report);
    nb_buf_free(&path);
    nb_buf_free(&text);
    return s;
}
