/* nibble inspect: what is inside a model, tensor by tensor, and the memory it takes. */
#include "cli/runtime.h"
#include "cli/verbs.h"
#include "model/kv_scales.h"
#include "model/model.h"
#include "numeric/minifloat.h"
#include "store/store.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <string.h>

static const char *const nonfinite_choices[] = {"check", "skip", NULL};

static const nb_opt inspect_options[] = {
    NB_OPT_ROW_CTX,
    NB_OPT_ROW_KV,
    {.name = "nonfinite",
     .kind = NB_OPT_CHOICE,
     .value = "HOW",
     .choices = nonfinite_choices,
     .preset = "check",
     .help = "look for NaN and Inf in every tensor (reads the whole file), or do not"},
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

/* What is added up over the tensors. */
typedef struct {
    int64_t n_params, bytes, n_nonfinite;
} totals;

/* The first NaN or Inf of a tensor; row < 0: there is none. */
typedef struct {
    int64_t row, col;
} bad_place;

static int64_t weight_params(const nb_weight *w)
{
    return nb_weight_is_kv_scale(w) ? 0 : w->n_rows * w->n_cols;
}

static double bits_per_weight(int64_t bytes, int64_t n_params)
{
    return n_params > 0 ? 8.0 * (double)bytes / (double)n_params : 0.0;
}

static nb_status scan(nb_store *store, const nb_weight *w, nb_loaded *loaded, nb_buf *scratch,
                      bad_place *bad, nb_err *err)
{
    NB_TRY(nb_store_read(store, w, loaded, err));
    scratch->len = 0;
    NB_TRY(nb_buf_reserve(scratch, (size_t)w->n_cols * sizeof(float), err));
    if (!nb_mat_find_nonfinite(&loaded->mat, (float *)(void *)scratch->data, &bad->row, &bad->col))
        bad->row = -1;
    return NB_OK;
}

/* "[576, 1536]", in the caller's room. */
static const char *shape_text(const nb_weight *w, char *room, size_t size)
{
    size_t n = (size_t)snprintf(room, size, "[");
    for (int d = 0; d < w->n_dims; d++)
        n += (size_t)snprintf(room + n, size - n, "%s%lld", d == 0 ? "" : ", ",
                              (long long)w->dims[d]);
    snprintf(room + n, size - n, "]");
    return room;
}

/* "q4_0", "int4 group 64", "int8 channel asym". */
static const char *format_text(const nb_weight *w, char *room, size_t size)
{
    if (!w->fmt->affine)
        return w->fmt->name;
    char group[40] = "channel";
    if (w->group_size < w->n_cols)
        snprintf(group, sizeof group, "group %lld", (long long)w->group_size);
    int n = snprintf(room, size, "%s %s%s", w->fmt->name, group,
                     w->symmetric     ? ""
                     : w->float_zeros ? " asym, float zeros"
                                      : " asym");
    if (w->act.is_static)
        snprintf(room + n, size - (size_t)n, ", inputs of scale %.4g", (double)w->act.scale);
    return room;
}

static nb_status print_tensor_json(nb_out *out, const nb_weight *w, bad_place bad, nb_err *err)
{
    json_t *shape = json_array();
    for (int d = 0; d < w->n_dims; d++)
        json_array_append_new(shape, json_integer(w->dims[d]));
    json_t *line = json_pack(
        "{s:o, s:o, s:o, s:s, s:I, s:I, s:f}", "name", nb_json_any_text(w->name, strlen(w->name)),
        "file_name", nb_json_any_text(w->file_name, strlen(w->file_name)), "shape", shape, "format",
        w->fmt->name, "parameters", (json_int_t)weight_params(w), "bytes", (json_int_t)w->bytes,
        "bpw", bits_per_weight(w->bytes, weight_params(w)));
    if (line != NULL && w->fmt->affine) {
        json_object_set_new(line, "group_size", json_integer(w->group_size));
        json_object_set_new(line, "symmetric", json_boolean(w->symmetric));
        if (w->float_zeros)
            json_object_set_new(line, "zero_type", json_string(nb_float_name(w->scale_type)));
        json_object_set_new(line, "scale_type", json_string(nb_float_name(w->scale_type)));
    }
    if (line != NULL && w->act.bits > 0)
        json_object_set_new(line, "activation_bits", json_integer(w->act.bits));
    if (line != NULL && w->act.is_static)
        json_object_set_new(line, "activation_scale", json_real((double)w->act.scale));
    if (line != NULL && bad.row >= 0)
        json_object_set_new(line, "nonfinite",
                            json_pack("[I, I]", (json_int_t)bad.row, (json_int_t)bad.col));
    return nb_out_json(out, line, err);
}

static nb_status add_table_row(nb_table *t, const nb_weight *w, bad_place bad, nb_err *err)
{
    char shape[120], format[80];
    NB_TRY(nb_table_cell(t, err, "%s", w->name));
    NB_TRY(nb_table_cell(t, err, "%s", shape_text(w, shape, sizeof shape)));
    NB_TRY(nb_table_cell(t, err, "%s", format_text(w, format, sizeof format)));
    NB_TRY(nb_table_cell(t, err, "%lld", (long long)w->bytes));
    NB_TRY(nb_table_cell(t, err, "%.3f", bits_per_weight(w->bytes, weight_params(w))));
    if (bad.row < 0)
        return nb_table_cell(t, err, "%s", "");
    return nb_table_cell(t, err, "NaN or Inf at [%lld, %lld]", (long long)bad.row,
                         (long long)bad.col);
}

static nb_status list_tensors(nb_store *store, bool check, nb_table *table, nb_out *out,
                              totals *sum, nb_err *err)
{
    nb_loaded loaded = {0};
    nb_buf scratch = {0};
    nb_progress progress;
    nb_status s = NB_OK;
    if (check)
        nb_progress_begin(out, &progress, "reading", "bytes", nb_store_file_bytes(store));
    for (int64_t i = 0; s == NB_OK && i < nb_store_n_weights(store); i++) {
        const nb_weight *w = nb_store_weight(store, i);
        bad_place bad = {.row = -1};
        if (check)
            s = scan(store, w, &loaded, &scratch, &bad, err);
        sum->n_params += weight_params(w);
        sum->bytes += w->bytes;
        sum->n_nonfinite += bad.row >= 0;
        if (check)
            nb_progress_update(out, &progress, sum->bytes);
        if (s == NB_OK)
            s = out->json ? print_tensor_json(out, w, bad, err) : add_table_row(table, w, bad, err);
        if (s == NB_OK && nb_interrupted())
            s = nb_fail_interrupted(err);
    }
    if (check)
        nb_progress_end(out, &progress);
    nb_buf_free(&scratch);
    nb_loaded_free(&loaded);
    return s;
}

/* What the model says of the key-value cache. */
typedef struct {
    bool is_static;
    float keys[2], values[2]; /* least and greatest scale */
} cache_scales;

static void find_range(const uint16_t *scales, int64_t n, float range[2])
{
    range[0] = range[1] = nb_f16_to_f32(scales[0]);
    for (int64_t i = 1; i < n; i++) {
        const float s = nb_f16_to_f32(scales[i]);
        range[0] = s < range[0] ? s : range[0];
        range[1] = s > range[1] ? s : range[1];
    }
}

static nb_status find_scales(nb_store *store, const nb_config *c, cache_scales *out, nb_err *err)
{
    nb_arena arena = {0};
    nb_kv_scales scales;
    *out = (cache_scales){0};
    const nb_status s = nb_kv_scales_read(&scales, store, c, &arena, err);
    if (s == NB_OK && scales.k != NULL) {
        out->is_static = true;
        find_range(scales.k, c->n_layers * c->n_kv_heads, out->keys);
        find_range(scales.v, c->n_layers * c->n_kv_heads, out->values);
    }
    nb_arena_free(&arena);
    return s;
}

static const char *container_name(const nb_store *store)
{
    return nb_store_kind_of(store) == NB_STORE_GGUF ? "gguf" : "hf";
}

static nb_status print_summary_json(nb_out *out, const nb_store *store, const nb_config *c,
                                    const totals *sum, const cache_scales *cache, int64_t ctx,
                                    const char *kv, int64_t kv_bytes, nb_err *err)
{
    const char *path = nb_store_path(store);
    json_t *line = json_pack(
        "{s:b, s:o, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:b}", "summary", 1,
        "path", nb_json_any_text(path, strlen(path)), "container", container_name(store),
        "architecture", c->arch->name, "n_layers", (json_int_t)c->n_layers, "n_heads",
        (json_int_t)c->n_heads, "n_kv_heads", (json_int_t)c->n_kv_heads, "head_dim",
        (json_int_t)c->head_dim, "d_model", (json_int_t)c->d_model, "d_ff", (json_int_t)c->d_ff,
        "vocab_size", (json_int_t)c->vocab_size, "n_ctx", (json_int_t)c->n_ctx, "rope_theta",
        c->rope.base, "rms_eps", (double)c->rms_eps, "tied_head", (int)c->tied_head);
    json_t *more = json_pack(
        "{s:I, s:I, s:I, s:I, s:f, s:I, s:s, s:I, s:I, s:I}", "n_tensors",
        (json_int_t)nb_store_n_weights(store), "parameters", (json_int_t)sum->n_params, "bytes",
        (json_int_t)sum->bytes, "file_bytes", (json_int_t)nb_store_file_bytes(store), "bpw",
        bits_per_weight(sum->bytes, sum->n_params), "ctx", (json_int_t)ctx, "kv", kv, "kv_bytes",
        (json_int_t)kv_bytes, "memory_bytes", (json_int_t)(sum->bytes + kv_bytes),
        "nonfinite_tensors", (json_int_t)sum->n_nonfinite);
    if (line == NULL || more == NULL || json_object_update(line, more) != 0) {
        json_decref(line);
        line = NULL;
    }
    json_decref(more);
    if (line != NULL && cache->is_static) {
        json_object_set_new(line, "k_scales",
                            json_pack("[f, f]", (double)cache->keys[0], (double)cache->keys[1]));
        json_object_set_new(
            line, "v_scales",
            json_pack("[f, f]", (double)cache->values[0], (double)cache->values[1]));
    }
    return nb_out_json(out, line, err);
}

static void print_config(nb_out *out, const nb_store *store, const nb_config *c,
                         const cache_scales *cache)
{
    nb_out_text(out, "architecture   %s (%s)\n", c->arch->name, container_name(store));
    nb_out_text(out, "layers         %lld\n", (long long)c->n_layers);
    nb_out_text(out, "heads          %lld, kv %lld, of %lld dimensions\n", (long long)c->n_heads,
                (long long)c->n_kv_heads, (long long)c->head_dim);
    nb_out_text(out, "d_model, d_ff  %lld, %lld\n", (long long)c->d_model, (long long)c->d_ff);
    nb_out_text(out, "vocabulary     %lld%s\n", (long long)c->vocab_size,
                c->tied_head ? ", one matrix for embedding and output" : "");
    nb_out_text(out, "context        %lld, rope theta %g, eps %g\n", (long long)c->n_ctx,
                c->rope.base, (double)c->rms_eps);
    if (cache->is_static)
        nb_out_text(out,
                    "kv cache       fp8, static scales: keys %.4g to %.4g, values %.4g to %.4g\n",
                    (double)cache->keys[0], (double)cache->keys[1], (double)cache->values[0],
                    (double)cache->values[1]);
    else if (c->kv_scheme != NB_KV_SCHEME_NONE)
        nb_out_text(out, "kv cache       fp8, dynamic scales\n");
    nb_out_text(out, "\n");
}

static void print_totals(nb_out *out, const nb_store *store, const totals *sum, int64_t ctx,
                         const char *kv, int64_t kv_bytes)
{
    nb_out_text(out,
                "\n%lld tensors, %lld parameters (%s), %lld bytes (%s), %.3f bits per weight\n",
                (long long)nb_store_n_weights(store), (long long)sum->n_params,
                nb_human_count(sum->n_params).text, (long long)sum->bytes,
                nb_human_bytes(sum->bytes).text, bits_per_weight(sum->bytes, sum->n_params));
    nb_out_text(out, "memory at %lld tokens: weights %s + kv cache (%s) %s = %s\n", (long long)ctx,
                nb_human_bytes(sum->bytes).text, kv, nb_human_bytes(kv_bytes).text,
                nb_human_bytes(sum->bytes + kv_bytes).text);
    if (sum->n_nonfinite > 0)
        nb_out_text(out, "tensors with NaN or Inf: %lld\n", (long long)sum->n_nonfinite);
}

static nb_status inspect(nb_store *store, const nb_args *args, nb_out *out, nb_err *err)
{
    static const char *const heads[] = {"tensor", "shape", "format", ">bytes", ">bpw", ""};
    nb_config c;
    NB_TRY(nb_config_read(store, &c, err));
    NB_TRY(nb_model_check(store, &c, err));
    NB_TRY(nb_tokenizer_check(store, out, err));
    const nb_kv_format format = nb_kv_option(args, &c);
    const char *kv = nb_kv_name(args, &c);
    const int64_t ctx = nb_args_given(args, "ctx") ? nb_args_int(args, "ctx") : c.n_ctx;
    const int64_t cell = nb_config_kv_bytes(&c, format);
    int64_t kv_bytes;
    if (__builtin_mul_overflow(ctx, cell, &kv_bytes) ||
        __builtin_add_overflow(kv_bytes, nb_config_kv_recent_bytes(&c, format), &kv_bytes))
        return nb_fail(err, NB_LIMIT, "%s: a cache of %lld tokens is past all memory",
                       nb_store_path(store), (long long)ctx);
    totals sum = {0};
    cache_scales cache;
    NB_TRY(find_scales(store, &c, &cache, err));
    nb_table table = {0};
    if (!out->json)
        NB_TRY(nb_table_begin(&table, heads, 6, err));
    nb_status s = list_tensors(store, strcmp(nb_args_text(args, "nonfinite"), "check") == 0, &table,
                               out, &sum, err);
    if (s == NB_OK && out->json) {
        s = print_summary_json(out, store, &c, &sum, &cache, ctx, kv, kv_bytes, err);
    } else if (s == NB_OK) {
        print_config(out, store, &c, &cache);
        s = nb_table_print(&table, out, err);
        print_totals(out, store, &sum, ctx, kv, kv_bytes);
    }
    nb_table_free(&table);
    return s;
}

static nb_status run_inspect(const nb_args *args, nb_out *out, nb_err *err)
{
    nb_store *store;
    NB_TRY(nb_store_open(&store, nb_args_operand(args, 0), err));
    const nb_status s = inspect(store, args, out, err);
    nb_store_close(store);
    return s;
}

const nb_verb nb_verb_inspect = {
    .name = "inspect",
    .summary = "what is inside a model, tensor by tensor; memory at a context length",
    .example = "nibble inspect model.gguf --ctx 4096\n"
               "nibble inspect model-folder --json",
    .about = "--json prints one object a tensor (name, file_name, shape, format, parameters,\n"
             "bytes, bpw; nonfinite: [row, column] of the first NaN or Inf, where there is\n"
             "one), then one with \"summary\": true.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, 1, 1}, {0}},
    .options = inspect_options,
    .run = run_inspect,
};
