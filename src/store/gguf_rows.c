/* See gguf_rows.h. */
#include "store/gguf_rows.h"
#include "store/gguf_names.h"

#include <stdio.h>
#include <string.h>

#define MAX_HEADS ((int64_t)1 << 20)

bool nb_gguf_arch_interleaves(const char *arch)
{
    return strcmp(arch, "llama") == 0 || strcmp(arch, "smollm3") == 0;
}

nb_gguf_rows nb_gguf_rows_of(const char *gguf_name)
{
    const char *rest;
    if (nb_gguf_name_layer(gguf_name, &rest) < 0)
        return NB_GGUF_ROWS_PLAIN;
    if (strcmp(rest, "attn_q.weight") == 0 || strcmp(rest, "attn_q.bias") == 0)
        return NB_GGUF_ROWS_Q;
    if (strcmp(rest, "attn_k.weight") == 0 || strcmp(rest, "attn_k.bias") == 0)
        return NB_GGUF_ROWS_K;
    return NB_GGUF_ROWS_PLAIN;
}

nb_status nb_gguf_head_count(const nb_gguf *g, const char *arch, nb_gguf_rows rows, int64_t layer,
                             int64_t *n_heads, nb_err *err)
{
    *n_heads = 0;
    char key[256];
    snprintf(key, sizeof key, "%.128s.attention.head_count%s", arch,
             rows == NB_GGUF_ROWS_K ? "_kv" : "");
    const nb_gguf_kv *kv = nb_gguf_find(g, key);
    if (kv == NULL && rows == NB_GGUF_ROWS_K) /* without grouping there is one kv head a head */
        return nb_gguf_head_count(g, arch, NB_GGUF_ROWS_Q, layer, n_heads, err);
    if (kv == NULL)
        return NB_OK;
    if (kv->type != NB_GGUF_ARRAY)
        return nb_gguf_int(g, key, true, 1, MAX_HEADS, n_heads, err);
    if (kv->elem != NB_GGUF_I32 && kv->elem != NB_GGUF_U32)
        return nb_fail(err, NB_DATA, "key '%s' is an array of something else than 32-bit integers",
                       key);
    if ((uint64_t)layer >= kv->count)
        return nb_fail(err, NB_DATA, "key '%s' has %llu values, and there is a layer %lld", key,
                       (unsigned long long)kv->count, (long long)layer);
    uint32_t v;
    memcpy(&v, kv->data + (size_t)layer * sizeof v, sizeof v);
    if (v < 1 || v > MAX_HEADS)
        return nb_fail(err, NB_DATA, "key '%s' says %u for layer %lld, expected 1 to %lld", key, v,
                       (long long)layer, (long long)MAX_HEADS);
    *n_heads = v;
    return NB_OK;
}

nb_status nb_gguf_head_shape(const nb_weight *w, int64_t n_heads, nb_gguf_head *out, nb_err *err)
{
    const bool bias = w->n_dims == 1;
    if (bias && w->fmt->block_len != 1)
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%s' is %s, and a vector of q or k must be plain numbers",
                       w->file_name, w->fmt->name);
    const int64_t n_rows = bias ? w->n_cols : w->n_rows;
    if (w->n_dims > 2 || n_rows % n_heads != 0 || n_rows / n_heads % 2 != 0)
        return nb_fail(err, NB_DATA,
                       "tensor '%s' has %lld rows in %d dimensions, expected %lld heads of an even "
                       "number of rows",
                       w->file_name, (long long)n_rows, w->n_dims, (long long)n_heads);
    const int64_t row_blocks = bias ? 1 : w->n_cols / w->fmt->block_len;
    *out = (nb_gguf_head){.head_rows = n_rows / n_heads,
                          .row_bytes = (size_t)row_blocks * (size_t)w->fmt->block_bytes};
    return NB_OK;
}

void nb_gguf_head_to_hf(uint8_t *out, const uint8_t *in, const nb_gguf_head *head)
{
    const size_t n = head->row_bytes, half = (size_t)head->head_rows / 2;
    for (size_t i = 0; i < half; i++) {
        memcpy(out + i * n, in + 2 * i * n, n);
        memcpy(out + (i + half) * n, in + (2 * i + 1) * n, n);
    }
}

void nb_gguf_head_from_hf(uint8_t *out, const uint8_t *in, const nb_gguf_head *head)
{
    const size_t n = head->row_bytes, half = (size_t)head->head_rows / 2;
    for (size_t i = 0; i < half; i++) {
        memcpy(out + 2 * i * n, in + i * n, n);
        memcpy(out + (2 * i + 1) * n, in + (i + half) * n, n);
    }
}
