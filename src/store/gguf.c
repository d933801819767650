/* The GGUF container (formats.md section 8): one file, or the shards of a split one, as weights
 * with Hugging Face names and Hugging Face row order.
 *
 * The names of shards come from the path that the user gave, by counting, never out of a file. */
#include "store/container.h"
#include "store/gguf_file.h"
#include "store/gguf_names.h"
#include "store/gguf_rows.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static_assert(NB_GGUF_MAX_DIMS == NB_MAX_DIMS, "a tensor of a file fits in an nb_weight");

/* Where a weight lies. */
typedef struct {
    int64_t at; /* byte of the file */
    int32_t shard;
    bool interleaved; /* a q or k whose rows are put back */
    nb_gguf_head head;
    int64_t n_heads; /* 0: the file does not say */
} place;

typedef struct {
    char *arch; /* in the store's arena */
    place *places;
    int64_t n_shards; /* those opened so far, while opening */
    nb_file *files;
} gguf_state;

/* Headers of all shards; the first one stays as store->gguf. */
typedef struct {
    nb_gguf **of; /* [n] */
    int64_t n;
} headers;

/* ---- shards ---- */

/* The number in "-00001-of-" of PREFIX-00001-of-00003.gguf; n_prefix is the length of PREFIX.
 * Returns 0 when the path does not end like that, for a file of `count` shards. */
static int64_t shard_number(const char *path, int64_t count, size_t *n_prefix)
{
    char tail[48];
    snprintf(tail, sizeof tail, "-of-%05lld.gguf", (long long)count);
    const size_t n_path = strlen(path), n_tail = strlen(tail);
    if (n_path < n_tail + 6 || strcmp(path + n_path - n_tail, tail) != 0)
        return 0;
    const char *dash = path + n_path - n_tail - 6;
    if (*dash != '-')
        return 0;
    int64_t number = 0;
    for (int i = 1; i <= 5; i++) {
        if (dash[i] < '0' || dash[i] > '9')
            return 0;
        number = number * 10 + (dash[i] - '0');
    }
    *n_prefix = (size_t)(dash - path);
    return number;
}

/* What the first file says about splitting: *count is 1 for a file that is whole. */
static nb_status check_first_shard(const nb_gguf *g, const char *path, int64_t *count, nb_err *err)
{
    int64_t no = 0;
    *count = 1;
    NB_TRY(nb_gguf_int(g, "split.count", false, 0, 65535, count, err));
    if (*count <= 1) {
        *count = 1;
        return NB_OK;
    }
    NB_TRY(nb_gguf_int(g, "split.no", true, 0, *count - 1, &no, err));
    size_t n_prefix = 0;
    const int64_t number = shard_number(path, *count, &n_prefix);
    if (no != 0 && number != 0)
        return nb_fail(err, NB_DATA, "this is shard %lld of %lld: open %.*s-00001-of-%05lld.gguf",
                       (long long)no + 1, (long long)*count, (int)n_prefix, path,
                       (long long)*count);
    if (no != 0)
        return nb_fail(err, NB_DATA, "this is shard %lld of %lld: open the first one",
                       (long long)no + 1, (long long)*count);
    if (number != 1)
        return nb_fail(err, NB_DATA,
                       "the first shard of %lld is named so, expected NAME-00001-of-%05lld.gguf",
                       (long long)*count, (long long)*count);
    return NB_OK;
}

static nb_status check_shard(const nb_gguf *g, int64_t i, int64_t count, nb_err *err)
{
    int64_t no, found;
    NB_TRY(nb_gguf_int(g, "split.no", true, i, i, &no, err));
    return nb_gguf_int(g, "split.count", true, count, count, &found, err);
}

static nb_status open_shard(gguf_state *state, headers *all, const char *path, nb_err *err)
{
    nb_file *file = &state->files[state->n_shards];
    NB_TRY(nb_file_open(file, path, err));
    state->n_shards++;
    NB_TRY(nb_gguf_open(&all->of[all->n], file, err));
    all->n++;
    return NB_OK;
}

static nb_status open_rest(nb_store *store, gguf_state *state, headers *all, int64_t count,
                           nb_err *err)
{
    const char *first = state->files[0].path;
    size_t n_prefix = 0;
    shard_number(first, count, &n_prefix);
    for (int64_t i = 1; i < count; i++) {
        char *path;
        NB_TRY(nb_arena_format(&store->arena, &path, err, "%.*s-%05lld-of-%05lld.gguf",
                               (int)n_prefix, first, (long long)i + 1, (long long)count));
        NB_TRY(open_shard(state, all, path, err));
        if (check_shard(all->of[i], i, count, err) != NB_OK)
            return nb_context(err, "%s", path);
    }
    int64_t total = 0, said;
    for (int64_t i = 0; i < count; i++)
        total += all->of[i]->n_infos;
    for (int64_t i = 0; i < count; i++) {
        if (nb_gguf_int(all->of[i], "split.tensors.count", true, total, total, &said, err) != NB_OK)
            return nb_context(err, "%s", state->files[i].path);
    }
    return NB_OK;
}

/* Room for `count` shards; the first one, already open, moves along. */
static nb_status grow(gguf_state *state, headers *all, int64_t count, nb_err *err)
{
    nb_file *files;
    NB_TRY(NB_ALLOC(&files, count, err));
    for (int64_t i = 0; i < count; i++)
        files[i] = i < state->n_shards ? state->files[i] : NB_FILE_CLOSED;
    nb_free(state->files);
    state->files = files;
    nb_gguf **of;
    NB_TRY(NB_ALLOC(&of, count, err));
    for (int64_t i = 0; i < all->n; i++)
        of[i] = all->of[i];
    nb_free(all->of);
    all->of = of;
    return NB_OK;
}

/* ---- weights ---- */

static nb_status describe(nb_store *store, const nb_gguf_info *info, nb_weight *w, nb_err *err)
{
    gguf_state *state = store->state;
    char *file_name, *name, hf[NB_HF_NAME_MAX];
    NB_TRY(nb_arena_text(&store->arena, &file_name, info->name.text, info->name.len, err));
    nb_gguf_name_to_hf(state->arch, file_name, hf);
    NB_TRY(nb_arena_text(&store->arena, &name, hf, strlen(hf), err));
    *w = (nb_weight){
        .name = name,
        .file_name = file_name,
        .n_dims = info->n_dims,
        .n_rows = 1,
        .n_cols = info->ne[0],
        .fmt = info->fmt,
        .bytes = info->bytes,
    };
    for (int d = 0; d < info->n_dims; d++) {
        w->dims[d] = info->ne[info->n_dims - 1 - d];
        if (d < info->n_dims - 1)
            w->n_rows *= w->dims[d]; /* the product of all dimensions fits: the parser looked */
    }
    return NB_OK;
}

/* A missing head count is an error only for who reads q and k: a listing needs none. */
static nb_status find_order(const nb_store *store, const nb_weight *w, place *p, nb_err *err)
{
    const gguf_state *state = store->state;
    const nb_gguf_rows rows = nb_gguf_rows_of(w->file_name);
    if (rows == NB_GGUF_ROWS_PLAIN || !nb_gguf_arch_interleaves(state->arch))
        return NB_OK;
    p->interleaved = true;
    const char *rest;
    NB_TRY(nb_gguf_head_count(store->gguf, state->arch, rows,
                              nb_gguf_name_layer(w->file_name, &rest), &p->n_heads, err));
    return p->n_heads == 0 ? NB_OK : nb_gguf_head_shape(w, p->n_heads, &p->head, err);
}

/* Names given twice are found by store.c, which sees them translated: a file may also hold one
 * weight under GGUF's and Hugging Face's name. */
static nb_status list_weights(nb_store *store, const headers *all, nb_err *err)
{
    gguf_state *state = store->state;
    int64_t n = 0;
    for (int64_t s = 0; s < all->n; s++)
        n += all->of[s]->n_infos;
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &store->weights, n, err));
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &state->places, n, err));
    for (int64_t s = 0; s < all->n; s++) {
        const nb_gguf *g = all->of[s];
        store->file_bytes += state->files[s].size;
        for (int64_t i = 0; i < g->n_infos; i++) {
            nb_weight *w = &store->weights[store->n_weights];
            place *p = &state->places[store->n_weights];
            *p = (place){.at = g->data_start + g->infos[i].offset, .shard = (int32_t)s};
            NB_TRY(describe(store, &g->infos[i], w, err));
            if (find_order(store, w, p, err) != NB_OK)
                return nb_context(err, "%s", state->files[s].path);
            store->n_weights++;
        }
    }
    return NB_OK;
}

static nb_status find_arch(nb_store *store, gguf_state *state, nb_err *err)
{
    nb_text arch = {0};
    NB_TRY(nb_gguf_text(store->gguf, "general.architecture", true, &arch, err));
    if (arch.len == 0 || arch.len > 64 || memchr(arch.text, 0, arch.len) != NULL)
        return nb_fail(err, NB_DATA, "key 'general.architecture' is '%.*s', which is no name",
                       nb_text_precision(arch), arch.text);
    return nb_arena_text(&store->arena, &state->arch, arch.text, arch.len, err);
}

/* ---- the container ---- */

static nb_status open_all(nb_store *store, gguf_state *state, headers *all, const char *path,
                          nb_err *err)
{
    NB_TRY(grow(state, all, 1, err));
    NB_TRY(open_shard(state, all, path, err));
    store->gguf = all->of[0];
    int64_t count;
    if (check_first_shard(store->gguf, path, &count, err) != NB_OK ||
        find_arch(store, state, err) != NB_OK)
        return nb_context(err, "%s", path);
    if (count > 1) {
        NB_TRY(grow(state, all, count, err));
        NB_TRY(open_rest(store, state, all, count, err));
    }
    return list_weights(store, all, err);
}

static nb_status gguf_open(nb_store *store, const char *path, nb_err *err)
{
    gguf_state *state;
    NB_TRY(NB_ALLOC(&state, 1, err));
    store->state = state;
    headers all = {0};
    const nb_status s = open_all(store, state, &all, path, err);
    for (int64_t i = store->gguf == NULL ? 0 : 1; i < all.n; i++)
        nb_gguf_close(all.of[i]);
    nb_free(all.of);
    return s;
}

static void gguf_close(nb_store *store)
{
    gguf_state *state = store->state;
    nb_gguf_close(store->gguf);
    store->gguf = NULL;
    if (state == NULL)
        return;
    for (int64_t i = 0; i < state->n_shards; i++)
        nb_file_close(&state->files[i]);
    nb_free(state->files);
    nb_free(state);
    store->state = NULL;
}

/* An empty buffer with room for n bytes. What it held is dropped first, so that two large tensors
 * are never in memory together. */
static nb_status make_room(nb_buf *buf, size_t n, nb_err *err)
{
    if (buf->cap < n)
        nb_buf_free(buf);
    buf->len = 0;
    NB_TRY(nb_buf_reserve(buf, n, err));
    buf->len = n;
    return NB_OK;
}

static nb_status read_heads(const nb_file *file, const place *p, nb_loaded *out, nb_err *err)
{
    const size_t head_bytes = (size_t)p->head.head_rows * p->head.row_bytes;
    NB_TRY(make_room(&out->scratch, head_bytes, err));
    for (int64_t h = 0; h < p->n_heads; h++) {
        const size_t at = (size_t)h * head_bytes;
        NB_TRY(nb_file_read(file, out->scratch.data, head_bytes, p->at + (int64_t)at, err));
        nb_gguf_head_to_hf(out->codes.data + at, out->scratch.data, &p->head);
    }
    return NB_OK;
}

static nb_status gguf_read(nb_store *store, int64_t i, nb_loaded *out, nb_err *err)
{
    const gguf_state *state = store->state;
    const nb_weight *w = &store->weights[i];
    const place *p = &state->places[i];
    const nb_file *file = &state->files[p->shard];
    if (p->interleaved && p->n_heads == 0)
        return nb_fail(
            err, NB_DATA,
            "%s: key '%s.attention.head_count' is missing, and the rows of '%s' are in an "
            "order that depends on it",
            file->path, state->arch, w->file_name);
    NB_TRY(make_room(&out->codes, (size_t)w->bytes, err));
    if (p->interleaved)
        NB_TRY(read_heads(file, p, out, err));
    else
        NB_TRY(nb_file_read(file, out->codes.data, (size_t)w->bytes, p->at, err));
    NB_TRY(nb_file_check_unchanged(file, err));
    out->mat = (nb_mat){
        .fmt = w->fmt,
        .n_rows = w->n_rows,
        .n_cols = w->n_cols,
        .codes = out->codes.data,
        .row_bytes = w->bytes / w->n_rows,
    };
    return NB_OK;
}

static const nb_file *gguf_rows_at(const nb_store *store, int64_t i, int64_t *at)
{
    const gguf_state *state = store->state;
    const place *p = &state->places[i];
    *at = p->at;
    return p->interleaved ? NULL : &state->files[p->shard];
}

const nb_container nb_container_gguf = {
    .name = "gguf",
    .kind = NB_STORE_GGUF,
    .open = gguf_open,
    .read = gguf_read,
    .rows_at = gguf_rows_at,
    .close = gguf_close,
};
