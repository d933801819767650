/* Writing a GGUF (formats.md section 8): the header is made in memory from the plan, then weights
 * go to the file one after the other, so the output is never held. */
#include "store/container.h"
#include "store/gguf_file.h"
#include "store/gguf_names.h"
#include "store/gguf_rows.h"
#include "store/names.h"

#include <assert.h>
#include <string.h>

/* Rows of q and k pass through a buffer of one head. */
typedef struct {
    bool interleaved;
    nb_gguf_head head;
    int64_t n_heads;
} layout;

typedef struct {
    nb_outfile file;
    layout *layouts; /* [n_weights], in the sink's arena */
    int64_t alignment;
    nb_buf one_head;
} gguf_sink;

/* What the file looks like before its tensors, while it is made. */
typedef struct {
    const char *arch;
    int64_t n_heads, n_kv_heads;
    nb_buf bytes;
    uint64_t data_bytes;
} plan_header;

static nb_status check_weight(const nb_weight *w, nb_err *err)
{
    if (w->fmt->ggml_type < 0)
        return nb_fail(err, NB_UNSUPPORTED, "tensor '%.100s' is %s, which GGUF does not hold",
                       w->name, w->fmt->name);
    assert(w->n_dims >= 1 && w->n_dims <= NB_MAX_DIMS && w->n_cols == w->dims[w->n_dims - 1]);
    int64_t row_bytes;
    if (nb_format_row_bytes(w->fmt, w->n_cols, &row_bytes, err) != NB_OK)
        return nb_context(err, "tensor '%.100s'", w->name);
    if (w->n_rows < 1 || w->n_cols < 1)
        return nb_fail(err, NB_UNSUPPORTED, "tensor '%.100s' is empty, which GGUF does not hold",
                       w->name);
    return NB_OK;
}

static int64_t weight_bytes(const nb_weight *w)
{
    return w->n_rows * (w->n_cols / w->fmt->block_len) * w->fmt->block_bytes;
}

static nb_status plan_rows(const plan_header *header, const nb_weight *w, const char *gguf_name,
                           layout *l, nb_err *err)
{
    const nb_gguf_rows rows = nb_gguf_rows_of(gguf_name);
    if (rows == NB_GGUF_ROWS_PLAIN || header->n_heads == 0)
        return NB_OK;
    l->interleaved = true;
    l->n_heads = rows == NB_GGUF_ROWS_Q ? header->n_heads : header->n_kv_heads;
    return nb_gguf_head_shape(w, l->n_heads, &l->head, err);
}

static nb_status put_info(plan_header *header, const nb_weight *w, const char *name,
                          int64_t alignment, nb_err *err)
{
    nb_buf *b = &header->bytes;
    NB_TRY(nb_buf_u64(b, strlen(name), err));
    NB_TRY(nb_buf_text(b, name, err));
    NB_TRY(nb_buf_u32(b, (uint32_t)w->n_dims, err));
    for (int d = w->n_dims - 1; d >= 0; d--)
        NB_TRY(nb_buf_u64(b, (uint64_t)w->dims[d], err));
    NB_TRY(nb_buf_u32(b, (uint32_t)w->fmt->ggml_type, err));
    NB_TRY(nb_buf_u64(b, header->data_bytes, err));
    header->data_bytes += nb_gguf_pad((uint64_t)weight_bytes(w), alignment);
    return NB_OK;
}

/* Translation may give two weights one name; no reader would take such a file. */
static nb_status check_names_differ(nb_name *names, int64_t n, nb_err *err)
{
    nb_names_sort(names, n);
    const nb_name *twice = nb_names_twice(names, n);
    if (twice != NULL)
        return nb_fail(err, NB_DATA, "two tensors would be named '%s'", twice->name);
    return NB_OK;
}

static nb_status plan_weights(nb_sink *sink, plan_header *header, nb_name *names, nb_err *err)
{
    gguf_sink *state = sink->state;
    for (int64_t i = 0; i < sink->n_weights; i++) {
        const nb_weight *w = &sink->plan[i];
        char name[NB_GGUF_NAME_MAX], *kept;
        NB_TRY(check_weight(w, err));
        NB_TRY(nb_gguf_name_from_hf(header->arch, w->name, name, err));
        NB_TRY(nb_gguf_check_name(name, strlen(name), err));
        NB_TRY(plan_rows(header, w, name, &state->layouts[i], err));
        NB_TRY(put_info(header, w, name, state->alignment, err));
        NB_TRY(nb_arena_text(&sink->arena, &kept, name, strlen(name), err));
        names[i] = (nb_name){.name = kept, .value = i};
    }
    return check_names_differ(names, sink->n_weights, err);
}

static nb_status put_zeros(nb_buf *b, size_t n, nb_err *err)
{
    NB_TRY(nb_buf_reserve(b, n, err));
    memset(b->data + b->len, 0, n);
    b->len += n;
    return NB_OK;
}

/* The header's bytes up to the first tensor; sink->planned_bytes. */
static nb_status plan_file(nb_sink *sink, plan_header *header, const nb_buf *kv, int64_t n_kv,
                           nb_err *err)
{
    gguf_sink *state = sink->state;
    nb_buf *b = &header->bytes;
    NB_TRY(nb_buf_text(b, "GGUF", err));
    NB_TRY(nb_buf_u32(b, 3, err));
    NB_TRY(nb_buf_u64(b, (uint64_t)sink->n_weights, err));
    NB_TRY(nb_buf_u64(b, (uint64_t)n_kv, err));
    NB_TRY(nb_buf_put(b, kv->data, kv->len, err));
    nb_name *names;
    NB_TRY(NB_ALLOC(&names, sink->n_weights, err));
    const nb_status s = plan_weights(sink, header, names, err);
    nb_free(names);
    if (s != NB_OK)
        return s;
    NB_TRY(put_zeros(b, (size_t)nb_gguf_pad(b->len, state->alignment) - b->len, err));
    sink->planned_bytes = (int64_t)(b->len + header->data_bytes);
    return NB_OK;
}

/* What the pairs say about the file that holds them. */
static nb_status read_pairs(const nb_buf *kv, int64_t n_kv, gguf_sink *state, char *arch,
                            size_t arch_size, nb_err *err)
{
    nb_gguf *pairs;
    NB_TRY(nb_gguf_open_pairs(&pairs, kv->data, kv->len, n_kv, err));
    nb_text text = {0};
    const nb_status s = nb_gguf_text(pairs, "general.architecture", true, &text, err);
    state->alignment = pairs->alignment;
    const size_t n = text.len < arch_size - 1 ? text.len : arch_size - 1;
    if (n > 0)
        memcpy(arch, text.text, n);
    arch[n] = 0;
    nb_gguf_close(pairs);
    return s;
}

static nb_status start(nb_sink *sink, const char *path, bool force, const nb_buf *kv, int64_t n_kv,
                       int64_t n_heads, int64_t n_kv_heads, nb_err *err)
{
    gguf_sink *state = sink->state;
    char arch[65];
    plan_header header = {.arch = arch, .n_heads = n_heads, .n_kv_heads = n_kv_heads};
    nb_status s = read_pairs(kv, n_kv, state, arch, sizeof arch, err);
    if (s == NB_OK)
        s = NB_ARENA_ALLOC(&sink->arena, &state->layouts, sink->n_weights, err);
    if (s == NB_OK)
        s = plan_file(sink, &header, kv, n_kv, err);
    if (s != NB_OK && path != NULL)
        s = nb_context(err, "%s", path);
    if (s == NB_OK && path != NULL)
        s = nb_outfile_open(&state->file, path, force, err);
    if (s == NB_OK && path != NULL)
        s = nb_outfile_write(&state->file, header.bytes.data, header.bytes.len, err);
    nb_buf_free(&header.bytes);
    return s;
}

static nb_status put_heads(gguf_sink *state, const layout *l, const uint8_t *codes, nb_err *err)
{
    const size_t head_bytes = (size_t)l->head.head_rows * l->head.row_bytes;
    state->one_head.len = 0;
    NB_TRY(nb_buf_reserve(&state->one_head, head_bytes, err));
    for (int64_t h = 0; h < l->n_heads; h++) {
        nb_gguf_head_from_hf(state->one_head.data, codes + (size_t)h * head_bytes, &l->head);
        NB_TRY(nb_outfile_write(&state->file, state->one_head.data, head_bytes, err));
    }
    return NB_OK;
}

static nb_status gguf_put(nb_sink *sink, int64_t index, const nb_mat *mat, nb_err *err)
{
    gguf_sink *state = sink->state;
    const nb_weight *w = &sink->plan[index];
    const size_t bytes = (size_t)weight_bytes(w);
    assert(mat->fmt == w->fmt && mat->n_rows == w->n_rows && mat->n_cols == w->n_cols);
    assert(mat->row_bytes == (int64_t)bytes / w->n_rows);
    if (state->layouts[index].interleaved)
        NB_TRY(put_heads(state, &state->layouts[index], mat->codes, err));
    else
        NB_TRY(nb_outfile_write(&state->file, mat->codes, bytes, err));
    static const uint8_t zeros[4096];
    size_t padding = (size_t)nb_gguf_pad(bytes, state->alignment) - bytes;
    while (padding > 0) {
        const size_t n = padding < sizeof zeros ? padding : sizeof zeros;
        NB_TRY(nb_outfile_write(&state->file, zeros, n, err));
        padding -= n;
    }
    return NB_OK;
}

static nb_status gguf_finish(nb_sink *sink, const char **path, nb_err *err)
{
    (void)err;
    const gguf_sink *state = sink->state;
    *path = state->file.temporary;
    return NB_OK;
}

static nb_status gguf_commit(nb_sink *sink, nb_err *err)
{
    gguf_sink *state = sink->state;
    return nb_outfile_commit(&state->file, err);
}

static void gguf_abort(nb_sink *sink)
{
    gguf_sink *state = sink->state;
    nb_outfile_abort(&state->file);
    nb_buf_free(&state->one_head);
    nb_free(state);
    sink->state = NULL;
}

static const nb_sink_kind gguf_kind = {
    .put = gguf_put,
    .finish = gguf_finish,
    .commit = gguf_commit,
    .abort = gguf_abort,
};

nb_status nb_sink_open_gguf(nb_sink **out, const char *path, bool force, const nb_weight *plan,
                            int64_t n_weights, const nb_buf *kv, int64_t n_kv, int64_t n_heads,
                            int64_t n_kv_heads, nb_err *err)
{
    nb_sink *sink;
    NB_TRY(nb_sink_new(&sink, &gguf_kind, plan, n_weights, err));
    gguf_sink *state;
    nb_status s = NB_ALLOC(&state, 1, err);
    if (s == NB_OK) {
        state->file = NB_OUTFILE_CLOSED;
        sink->state = state;
        s = start(sink, path, force, kv, n_kv, n_heads, n_kv_heads, err);
    }
    if (s != NB_OK) {
        nb_sink_abort(sink);
        return s;
    }
    *out = sink;
    return NB_OK;
}
