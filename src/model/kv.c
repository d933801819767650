/* See kv.h. */
#include "model/kv.h"

#include <string.h>

bool nb_kv_format_named(const char *name, nb_kv_format *out)
{
    if (strcmp(name, "fp8_e4m3") == 0) /* what other engines call it where they have two */
        name = nb_kv_format_name(NB_KV_FP8);
    for (int f = 0; f < NB_KV_N_FORMATS; f++) {
        if (strcmp(name, nb_kv_format_name((nb_kv_format)f)) == 0) {
            *out = (nb_kv_format)f;
            return true;
        }
    }
    return false;
}

/* Bytes of the keys (or the values) of one layer in a page. */
static size_t half_layer_bytes(const nb_config *c, nb_kv_format cell)
{
    return (size_t)c->n_kv_heads * nb_kv_head_bytes(cell, (int)c->head_dim);
}

size_t nb_kv_page_bytes(const nb_config *c, nb_kv_format cell)
{
    return 2 * (size_t)c->n_layers * half_layer_bytes(c, cell);
}

nb_status nb_kv_pool_init(nb_kv_pool *pool, const nb_config *c, nb_kv_format cell, int64_t n_pages,
                          nb_err *err)
{
    *pool = (nb_kv_pool){.config = c, .cell = cell, .n_pages = n_pages, .n_free = n_pages};
    if (n_pages > INT32_MAX)
        return nb_fail(err, NB_LIMIT, "a KV cache of %lld pages", (long long)n_pages);
    pool->page_bytes = nb_kv_page_bytes(c, cell);
    nb_status s = nb_alloc((void **)&pool->arena, (size_t)n_pages, pool->page_bytes, err);
    if (s == NB_OK)
        s = NB_ALLOC(&pool->free_pages, n_pages, err);
    if (s != NB_OK) {
        nb_kv_pool_free(pool);
        return nb_context(err, "the KV cache");
    }
    for (int64_t i = 0; i < n_pages; i++)
        pool->free_pages[i] = (int32_t)(n_pages - 1 - i);
    return NB_OK;
}

void nb_kv_pool_free(nb_kv_pool *pool)
{
    nb_free(pool->arena);
    nb_free(pool->free_pages);
    *pool = (nb_kv_pool){0};
}

nb_status nb_kv_seq_init(nb_kv_seq *seq, nb_kv_pool *pool, int64_t max_positions, nb_err *err)
{
    *seq = (nb_kv_seq){.pool = pool, .cap = nb_kv_pages_for(max_positions)};
    return NB_ALLOC(&seq->table, seq->cap, err);
}

nb_status nb_kv_seq_reserve(nb_kv_seq *seq, int64_t n, nb_err *err)
{
    const int64_t want = nb_kv_pages_for(n), more = want - seq->n_table;
    if (want > seq->cap)
        return nb_fail(err, NB_LIMIT, "%lld positions do not fit in a context of %lld",
                       (long long)n, (long long)(seq->cap * NB_KV_PAGE));
    if (more > seq->pool->n_free)
        return nb_fail(err, NB_LIMIT, "the KV cache is full: %lld pages are needed, %lld are free",
                       (long long)more, (long long)seq->pool->n_free);
    while (seq->n_table < want)
        seq->table[seq->n_table++] = seq->pool->free_pages[--seq->pool->n_free];
    return NB_OK;
}

void nb_kv_seq_truncate(nb_kv_seq *seq, int64_t n)
{
    const int64_t keep = nb_kv_pages_for(n);
    while (seq->n_table > keep)
        seq->pool->free_pages[seq->pool->n_free++] = seq->table[--seq->n_table];
    if (seq->n > n)
        seq->n = n;
}

void nb_kv_seq_free(nb_kv_seq *seq)
{
    if (seq->pool != NULL)
        nb_kv_seq_truncate(seq, 0);
    nb_free(seq->table);
    *seq = (nb_kv_seq){0};
}

nb_kv_view nb_kv_seq_view(const nb_kv_seq *seq, int64_t layer)
{
    const nb_config *c = seq->pool->config;
    const size_t half = half_layer_bytes(c, seq->pool->cell);
    return (nb_kv_view){.arena = seq->pool->arena,
                        .page_bytes = seq->pool->page_bytes,
                        .k_offset = 2 * half * (size_t)layer,
                        .v_offset = 2 * half * (size_t)layer + half,
                        .table = seq->table,
                        .format = seq->pool->cell,
                        .head_bytes = nb_kv_head_bytes(seq->pool->cell, (int)c->head_dim),
                        .n_kv_heads = (int)c->n_kv_heads,
                        .head_dim = (int)c->head_dim};
}
