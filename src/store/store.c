/* The front of the store: which container a path is, the name table, and the checks that are the
 * same for all containers. See store.h. */
#define _POSIX_C_SOURCE 200809L
#include "store/store.h"

#include "store/container.h"
#include "store/json_scan.h"
#include "store/names.h"
#include "store/sniff.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_TEMPLATE_BYTES ((size_t)4 << 20)

/* ---- opening ---- */

/* A file that is not GGUF. */
static nb_status not_a_model(const nb_file *file, const uint8_t *start, size_t n, nb_err *err)
{
    if (n < 8)
        return nb_fail(err, NB_DATA, "%s: %lld bytes are too short for a model", file->path,
                       (long long)file->size);
    uint64_t header;
    memcpy(&header, start, 8);
    if (n > 8 && start[8] == '{' && header <= (uint64_t)file->size - 8)
        return nb_fail(
            err, NB_UNSUPPORTED,
            "%s: a single safetensors file; give the folder that also has its config.json",
            file->path);
    const char *what = nb_sniff(start, n);
    if (what != NULL)
        return nb_fail(err, NB_UNSUPPORTED, "%s: not a GGUF file; it seems to be %s", file->path,
                       what);
    return nb_fail(err, NB_DATA, "%s: not a GGUF file, and nothing else that is known", file->path);
}

static nb_status choose_container(const nb_container **out, const char *path, nb_err *err)
{
    if (nb_path_is_dir(path)) {
        *out = &nb_container_hf;
        return NB_OK;
    }
    nb_file file;
    uint8_t start[NB_SNIFF_BYTES];
    NB_TRY(nb_file_open(&file, path, err));
    const size_t n = file.size < NB_SNIFF_BYTES ? (size_t)file.size : NB_SNIFF_BYTES;
    nb_status s = nb_file_read(&file, start, n, 0, err);
    if (s == NB_OK) {
        *out = &nb_container_gguf;
        if (n < 4 || memcmp(start, "GGUF", 4) != 0)
            s = not_a_model(&file, start, n, err);
    }
    nb_file_close(&file);
    return s;
}

static nb_status index_names(nb_store *store, nb_err *err)
{
    nb_name *names;
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &names, store->n_weights, err));
    for (int64_t i = 0; i < store->n_weights; i++)
        names[i] = (nb_name){.name = store->weights[i].name, .value = i};
    nb_names_sort(names, store->n_weights);
    const nb_name *twice = nb_names_twice(names, store->n_weights);
    if (twice != NULL)
        return nb_fail(err, NB_DATA, "%s: weight '%.200s' is there twice", store->path,
                       twice->name);
    store->index = names;
    return NB_OK;
}

nb_status nb_store_open_as(nb_store **out, const nb_container *kind, const char *path, void *state,
                           nb_err *err)
{
    *out = NULL;
    nb_store *store;
    NB_TRY(NB_ALLOC(&store, 1, err));
    store->kind = kind;
    store->state = state;
    nb_status s = nb_arena_text(&store->arena, &store->path, path, strlen(path), err);
    if (s == NB_OK)
        s = kind->open(store, store->path, err);
    if (s == NB_OK)
        s = index_names(store, err);
    if (s != NB_OK) {
        nb_store_close(store);
        return s;
    }
    *out = store;
    return NB_OK;
}

nb_status nb_store_open(nb_store **out, const char *path, nb_err *err)
{
    *out = NULL;
    const nb_container *kind = NULL;
    NB_TRY(choose_container(&kind, path, err));
    return nb_store_open_as(out, kind, path, NULL, err);
}

void nb_store_close(nb_store *store)
{
    if (store == NULL)
        return;
    store->kind->close(store);
    json_decref(store->config);
    json_decref(store->generation_config);
    json_decref(store->tokenizer_config);
    nb_buf_free(&store->template_text);
    nb_arena_free(&store->arena);
    nb_free(store);
}

nb_store_kind nb_store_kind_of(const nb_store *store)
{
    return store->kind->kind;
}

const char *nb_store_path(const nb_store *store)
{
    return store->path;
}

int64_t nb_store_n_weights(const nb_store *store)
{
    return store->n_weights;
}

const nb_weight *nb_store_weight(const nb_store *store, int64_t i)
{
    assert(i >= 0 && i < store->n_weights);
    return &store->weights[i];
}

const nb_weight *nb_store_find(const nb_store *store, const char *name)
{
    const nb_name *found = nb_names_find(store->index, store->n_weights, name);
    return found == NULL ? NULL : &store->weights[found->value];
}

nb_kv_scheme nb_store_kv_scheme(const nb_store *store)
{
    return store->kv_scheme;
}

int64_t nb_store_file_bytes(const nb_store *store)
{
    return store->file_bytes;
}

const json_t *nb_store_config(const nb_store *store)
{
    return store->config;
}

const json_t *nb_store_generation_config(const nb_store *store)
{
    return store->generation_config;
}

const json_t *nb_store_tokenizer_config(const nb_store *store)
{
    return store->tokenizer_config;
}

const nb_gguf *nb_store_gguf(const nb_store *store)
{
    return store->gguf;
}

/* ---- the chat template ---- */

/* tokenizer_config.json: a text, or a list of {"name", "template"} with one named "default". */
static nb_status template_of_config(const json_t *config, const char **text, size_t *len,
                                    nb_err *err)
{
    const json_t *v = json_object_get(config, "chat_template");
    if (json_is_array(v)) {
        const json_t *list = v;
        v = NULL;
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *entry = json_array_get(list, i);
            const char *name = NULL;
            if (!json_is_object(entry))
                return nb_fail(err, NB_DATA, "chat_template: entry %zu is not an object", i);
            NB_TRY(nb_json_text(entry, "name", true, &name, err));
            if (strcmp(name, "default") == 0)
                v = json_object_get(entry, "template");
        }
    }
    if (v == NULL || json_is_null(v))
        return NB_OK;
    if (!json_is_string(v))
        return nb_fail(err, NB_DATA, "key 'chat_template' is neither a text nor a list of texts");
    *text = json_string_value(v);
    *len = json_string_length(v);
    return NB_OK;
}

/* chat_template.jinja, read once; stays empty when the folder has none. */
static nb_status template_of_file(nb_store *store, nb_err *err)
{
    nb_buf path = {0};
    struct stat st;
    nb_status s = nb_buf_format(&path, err, "%s/chat_template.jinja", store->path);
    if (s == NB_OK && lstat((const char *)path.data, &st) == 0) {
        nb_buf text = {0};
        s = nb_file_slurp(&text, (const char *)path.data, MAX_TEMPLATE_BYTES, err);
        if (s == NB_OK && !nb_utf8_valid((const char *)text.data, text.len))
            s = nb_fail(err, NB_DATA, "%s: not UTF-8", (const char *)path.data);
        if (s == NB_OK)
            store->template_text = text;
        else
            nb_buf_free(&text);
    }
    nb_buf_free(&path);
    return s;
}

static nb_status template_of_gguf(const nb_store *store, const char **text, size_t *len,
                                  nb_err *err)
{
    nb_text found = {0};
    nb_status s = nb_gguf_text(store->gguf, "tokenizer.chat_template", false, &found, err);
    if (s == NB_OK && !nb_utf8_valid(found.text, found.len))
        s = nb_fail(err, NB_DATA, "key 'tokenizer.chat_template' is not UTF-8");
    if (s != NB_OK)
        return nb_context(err, "%s", store->path);
    *text = found.text;
    *len = found.len;
    return NB_OK;
}

nb_status nb_store_chat_template(nb_store *store, const char **text, size_t *len, nb_err *err)
{
    *text = NULL;
    *len = 0;
    if (store->gguf != NULL)
        return template_of_gguf(store, text, len, err);
    if (store->template_text.data == NULL)
        NB_TRY(template_of_file(store, err));
    if (store->template_text.data != NULL) {
        *text = (const char *)store->template_text.data;
        *len = store->template_text.len;
        return NB_OK;
    }
    if (template_of_config(store->tokenizer_config, text, len, err) != NB_OK)
        return nb_context(err, "%s/tokenizer_config.json", store->path);
    return NB_OK;
}

/* ---- reading ---- */

nb_status nb_store_zero_nonfinite(nb_store *store, const nb_weight *weight, bool on, nb_err *err)
{
    const int64_t i = weight - store->weights;
    assert(i >= 0 && i < store->n_weights);
    if (store->zeroed == NULL && on)
        NB_TRY(NB_ARENA_ALLOC(&store->arena, &store->zeroed, store->n_weights, err));
    if (store->zeroed != NULL)
        store->zeroed[i] = on;
    return NB_OK;
}

/* Whatever the format, and wherever its bytes hold a NaN (a scale may): values say it all. */
static nb_status zero_nonfinite(nb_loaded *out, nb_err *err)
{
    const nb_mat from = out->mat;
    const size_t row_bytes = (size_t)from.n_cols * sizeof(float);
    size_t bytes;
    if (!nb_mul_size(row_bytes, (size_t)from.n_rows, &bytes))
        return nb_fail(err, NB_MEMORY, "%lld rows do not fit in memory", (long long)from.n_rows);
    out->values.len = 0;
    NB_TRY(nb_buf_reserve(&out->values, bytes, err));
    for (int64_t r = 0; r < from.n_rows; r++) {
        float *row = (float *)(void *)out->values.data + r * from.n_cols;
        from.fmt->decode_row(&from, r, row);
        for (int64_t c = 0; c < from.n_cols; c++)
            row[c] = isfinite(row[c]) ? row[c] : 0.0f;
    }
    out->mat = (nb_mat){.fmt = &nb_format_f32,
                        .n_rows = from.n_rows,
                        .n_cols = from.n_cols,
                        .codes = out->values.data,
                        .row_bytes = (int64_t)row_bytes};
    return NB_OK;
}

nb_status nb_store_read(nb_store *store, const nb_weight *weight, nb_loaded *out, nb_err *err)
{
    const int64_t i = weight - store->weights;
    assert(i >= 0 && i < store->n_weights);
    nb_status s = store->kind->read(store, i, out, err);
    if (s == NB_OK && store->zeroed != NULL && store->zeroed[i])
        s = zero_nonfinite(out, err);
    if (s != NB_OK)
        out->mat = (nb_mat){0};
    return s;
}

static const nb_file *rows_at(const nb_store *store, const nb_weight *weight, int64_t *at)
{
    const int64_t i = weight - store->weights;
    assert(i >= 0 && i < store->n_weights);
    return store->kind->rows_at != NULL ? store->kind->rows_at(store, i, at) : NULL;
}

bool nb_store_reads_rows(const nb_store *store, const nb_weight *weight)
{
    int64_t at;
    return rows_at(store, weight, &at) != NULL;
}

nb_status nb_store_read_rows(nb_store *store, const nb_weight *weight, int64_t row, int64_t n,
                             nb_loaded *out, nb_err *err)
{
    int64_t at;
    const nb_file *file = rows_at(store, weight, &at);
    assert(file != NULL && row >= 0 && n >= 0 && row <= weight->n_rows - n);
    const int64_t row_bytes = weight->bytes / weight->n_rows;
    out->mat = (nb_mat){0};
    out->codes.len = 0;
    NB_TRY(nb_buf_reserve(&out->codes, (size_t)(n * row_bytes), err));
    NB_TRY(nb_file_read(file, out->codes.data, (size_t)(n * row_bytes), at + row * row_bytes, err));
    NB_TRY(nb_file_check_unchanged(file, err));
    out->mat = (nb_mat){.fmt = weight->fmt,
                        .n_rows = n,
                        .n_cols = weight->n_cols,
                        .codes = out->codes.data,
                        .row_bytes = row_bytes};
    if (store->zeroed == NULL || !store->zeroed[weight - store->weights])
        return NB_OK;
    const nb_status s = zero_nonfinite(out, err);
    if (s != NB_OK)
        out->mat = (nb_mat){0};
    return s;
}

void nb_loaded_free(nb_loaded *loaded)
{
    nb_buf_free(&loaded->codes);
    nb_buf_free(&loaded->scales);
    nb_buf_free(&loaded->zeros);
    nb_buf_free(&loaded->scratch);
    nb_buf_free(&loaded->nested_codes);
    nb_buf_free(&loaded->nested_steps);
    nb_buf_free(&loaded->values);
    loaded->mat = (nb_mat){0};
}

/* ---- writing ---- */

static nb_status check_planned(const nb_weight *w, nb_err *err)
{
    int64_t n = 1, size;
    bool fits = w->n_dims >= 0 && w->n_dims <= NB_MAX_DIMS;
    for (int i = 0; fits && i < w->n_dims; i++)
        fits = w->dims[i] > 0 && !__builtin_mul_overflow(n, w->dims[i], &n);
    fits = fits && w->n_rows > 0 && w->n_cols > 0 &&
           !__builtin_mul_overflow(w->n_rows, w->n_cols, &size) && size == n &&
           w->n_cols == (w->n_dims == 0 ? 1 : w->dims[w->n_dims - 1]);
    if (!fits)
        return nb_fail(err, NB_USAGE, "a shape that makes no matrix of %lld x %lld",
                       (long long)w->n_rows, (long long)w->n_cols);
    const bool cut = w->scale_rows > 1 && w->group_size > 0; /* the last block may be smaller */
    if (w->fmt->affine && !cut && (w->group_size <= 0 || w->n_cols % w->group_size != 0))
        return nb_fail(err, NB_UNSUPPORTED, "%lld columns are not divisible by the group_size %lld",
                       (long long)w->n_cols, (long long)w->group_size);
    return NB_OK;
}

static nb_status copy_plan(nb_sink *sink, const nb_weight *plan, nb_err *err)
{
    nb_weight *copy;
    nb_name *names;
    NB_TRY(NB_ARENA_ALLOC(&sink->arena, &copy, sink->n_weights, err));
    NB_TRY(NB_ARENA_ALLOC(&sink->arena, &names, sink->n_weights, err));
    sink->plan = copy;
    for (int64_t i = 0; i < sink->n_weights; i++) {
        char *name = NULL, *file_name = NULL;
        const char *from = plan[i].file_name;
        if (check_planned(&plan[i], err) != NB_OK)
            return nb_context(err, "weight '%.200s'", plan[i].name);
        NB_TRY(nb_arena_text(&sink->arena, &name, plan[i].name, strlen(plan[i].name), err));
        if (from != NULL)
            NB_TRY(nb_arena_text(&sink->arena, &file_name, from, strlen(from), err));
        copy[i] = plan[i];
        copy[i].name = name;
        copy[i].file_name = file_name;
        names[i] = (nb_name){.name = name, .value = i};
    }
    nb_names_sort(names, sink->n_weights);
    const nb_name *twice = nb_names_twice(names, sink->n_weights);
    if (twice != NULL)
        return nb_fail(err, NB_DATA, "weight '%.200s' is planned twice", twice->name);
    return NB_OK;
}

nb_status nb_sink_new(nb_sink **out, const nb_sink_kind *kind, const nb_weight *plan,
                      int64_t n_weights, nb_err *err)
{
    *out = NULL;
    nb_sink *sink;
    NB_TRY(NB_ALLOC(&sink, 1, err));
    sink->kind = kind;
    sink->n_weights = n_weights;
    const nb_status s = copy_plan(sink, plan, err);
    if (s != NB_OK) {
        nb_sink_abort(sink);
        return s;
    }
    *out = sink;
    return NB_OK;
}

static nb_status check_as_planned(const nb_weight *w, const nb_mat *mat, nb_err *err)
{
    int64_t row_bytes;
    if (mat->fmt != w->fmt || mat->n_rows != w->n_rows || mat->n_cols != w->n_cols)
        return nb_fail(err, NB_USAGE,
                       "weight '%.200s': planned %s [%lld, %lld], and put is %s [%lld, %lld]",
                       w->name, w->fmt->name, (long long)w->n_rows, (long long)w->n_cols,
                       mat->fmt->name, (long long)mat->n_rows, (long long)mat->n_cols);
    NB_TRY(nb_format_row_bytes(w->fmt, w->n_cols, &row_bytes, err));
    if (mat->row_bytes != row_bytes)
        return nb_fail(err, NB_USAGE, "weight '%.200s': rows of %lld bytes, not of %lld", w->name,
                       (long long)mat->row_bytes, (long long)row_bytes);
    if (w->fmt->affine && (mat->group_size != w->group_size || mat->scale_type != w->scale_type ||
                           (mat->zeros == NULL && mat->float_zeros == NULL) != w->symmetric ||
                           (mat->float_zeros != NULL) != w->float_zeros))
        return nb_fail(err, NB_USAGE,
                       "weight '%.200s': planned group_size %lld, scales %s, %s; put is group_size "
                       "%lld, scales %s, %s",
                       w->name, (long long)w->group_size, nb_float_name(w->scale_type),
                       w->symmetric ? "symmetric" : "asymmetric", (long long)mat->group_size,
                       nb_float_name(mat->scale_type),
                       mat->zeros == NULL ? "symmetric" : "asymmetric");
    if (w->fmt->affine &&
        (mat->scale_rows != w->scale_rows || (mat->nested.code != NULL) != w->nested))
        return nb_fail(err, NB_USAGE,
                       "weight '%.200s': planned scales for %lld rows each%s; put are scales for "
                       "%lld%s",
                       w->name, (long long)w->scale_rows, w->nested ? ", nested" : "",
                       (long long)mat->scale_rows, mat->nested.code != NULL ? ", nested" : "");
    return NB_OK;
}

nb_status nb_sink_put(nb_sink *sink, int64_t index, const nb_mat *mat, nb_err *err)
{
    nb_status s;
    if (sink->failed || index != sink->n_put || index >= sink->n_weights)
        s = nb_fail(err, NB_USAGE, "weight %lld of %lld is put after %lld others%s",
                    (long long)index, (long long)sink->n_weights, (long long)sink->n_put,
                    sink->failed ? ", one of which failed" : "");
    else
        s = check_as_planned(&sink->plan[index], mat, err);
    if (s == NB_OK)
        s = sink->kind->put(sink, index, mat, err);
    if (s == NB_OK)
        sink->n_put++;
    else
        sink->failed = true;
    return s;
}

nb_status nb_sink_finish(nb_sink *sink, const char **path, nb_err *err)
{
    if (sink->failed || sink->n_put != sink->n_weights)
        return nb_fail(err, NB_USAGE, "%lld of %lld weights were put%s", (long long)sink->n_put,
                       (long long)sink->n_weights, sink->failed ? ", and one failed" : "");
    if (sink->finished == NULL && sink->kind->finish(sink, &sink->finished, err) != NB_OK) {
        sink->failed = true;
        return err->status;
    }
    *path = sink->finished;
    return NB_OK;
}

nb_status nb_sink_amend(nb_sink *sink, int64_t index, const nb_mat *mat, nb_err *err)
{
    if (sink->finished == NULL || index < 0 || index >= sink->n_weights ||
        sink->plan[index].fmt->affine || sink->kind->amend == NULL)
        return nb_fail(err, NB_USAGE, "weight %lld of %lld cannot be amended", (long long)index,
                       (long long)sink->n_weights);
    nb_status s = check_as_planned(&sink->plan[index], mat, err);
    if (s == NB_OK)
        s = sink->kind->amend(sink, index, mat, err);
    sink->failed = sink->failed || s != NB_OK;
    return s;
}

nb_status nb_sink_commit(nb_sink *sink, nb_err *err)
{
    const char *path;
    nb_status s = nb_sink_finish(sink, &path, err);
    if (s == NB_OK)
        s = sink->kind->commit(sink, err);
    nb_sink_abort(sink);
    return s;
}

void nb_sink_abort(nb_sink *sink)
{
    if (sink == NULL)
        return;
    if (sink->state != NULL)
        sink->kind->abort(sink);
    nb_arena_free(&sink->arena);
    nb_free(sink);
}

int64_t nb_sink_planned_bytes(const nb_sink *sink)
{
    return sink->planned_bytes;
}
