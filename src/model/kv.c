/* See kv.h. */
#include "model/kv.h"

#include <assert.h>
#include <string.h>

bool nb_kv_format_named(const char *name, nb_kv_format *out)
{
    /* the former is what other engines call it where they have two */
    if (strcmp(name, "fp8_e4m3") == 0 || strcmp(name, NB_KV_FP8_DYNAMIC) == 0)
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

size_t nb_kv_recent_page_bytes(const nb_config *c)
{
    return nb_kv_page_bytes(c, NB_KV_F16);
}

/* A sequence that is at n = 32 a + b and gets k tokens has pages from that of the first position a
 * query at n sees in F16 to that of its last token: with w = NB_KV_RECENT / 32 at most
 * w + ceil((b + k) / 32), and b = 31 one less, so w + 1 + (k + 29) / 32; and the first ones. */
int64_t nb_kv_recent_pages(nb_kv_format cell, int64_t n_seqs, int64_t step_tokens)
{
    static_assert(NB_KV_RECENT % NB_KV_PAGE == 0, "the window is whole pages");
    if (nb_kv_bits(cell) == 0)
        return 0;
    return (NB_KV_FIRST + NB_KV_RECENT / NB_KV_PAGE + 1) * n_seqs +
           (step_tokens + (NB_KV_PAGE - 3) * n_seqs) / NB_KV_PAGE;
}

nb_status nb_kv_pool_init(nb_kv_pool *pool, const nb_config *c, nb_kv_format cell, int64_t n_pages,
                          nb_err *err)
{
    return nb_kv_pool_init_recent(pool, c, cell, n_pages, n_pages, err);
}

nb_status nb_kv_pool_init_recent(nb_kv_pool *pool, const nb_config *c, nb_kv_format cell,
                                 int64_t n_pages, int64_t n_recent, nb_err *err)
{
    *pool = (nb_kv_pool){.config = c, .cell = cell, .n_pages = n_pages, .n_free = n_pages};
    if (n_pages > INT32_MAX)
        return nb_fail(err, NB_LIMIT, "a KV cache of %lld pages", (long long)n_pages);
    pool->page_bytes = nb_kv_page_bytes(c, cell);
    nb_status s = nb_alloc((void **)&pool->arena, (size_t)n_pages, pool->page_bytes, err);
    if (s == NB_OK)
        s = NB_ALLOC(&pool->free_pages, n_pages, err);
    if (s == NB_OK && nb_kv_bits(cell) > 0) {
        pool->recent_bytes = nb_kv_recent_page_bytes(c);
        pool->n_recent = pool->n_recent_free = n_recent;
        s = nb_alloc((void **)&pool->recent, (size_t)n_recent, pool->recent_bytes, err);
        if (s == NB_OK)
            s = NB_ALLOC(&pool->free_recent, n_recent, err);
    }
    if (s != NB_OK) {
        nb_kv_pool_free(pool);
        return nb_context(err, "the KV cache");
    }
    for (int64_t i = 0; i < n_pages; i++)
        pool->free_pages[i] = (int32_t)(n_pages - 1 - i);
    for (int64_t i = 0; i < pool->n_recent_free; i++)
        pool->free_recent[i] = (int32_t)(n_recent - 1 - i);
    return NB_OK;
}

void nb_kv_pool_free(nb_kv_pool *pool)
{
    nb_free(pool->arena);
    nb_free(pool->free_pages);
    nb_free(pool->recent);
    nb_free(pool->free_recent);
    *pool = (nb_kv_pool){0};
}

nb_status nb_kv_seq_init(nb_kv_seq *seq, nb_kv_pool *pool, int64_t max_positions, nb_err *err)
{
    *seq = (nb_kv_seq){.pool = pool, .cap = nb_kv_pages_for(max_positions)};
    NB_TRY(NB_ALLOC(&seq->table, seq->cap, err));
    return nb_kv_bits(pool->cell) > 0 ? NB_ALLOC(&seq->recent, seq->cap, err) : NB_OK;
}

nb_status nb_kv_seq_init_lent(nb_kv_seq *seq, nb_kv_pool *pool, const int32_t *table, int64_t cap,
                              nb_err *err)
{
    /* Only what gave the table writes to it. */
    *seq =
        (nb_kv_seq){.pool = pool, .cap = cap, .table = (int32_t *)(uintptr_t)table, .lent = true};
    return nb_kv_bits(pool->cell) > 0 ? NB_ALLOC(&seq->recent, cap, err) : NB_OK;
}

/* Gives back the pages of `recent` in [begin, end), those that the sequence has. */
static void drop_recent(nb_kv_seq *seq, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        if (!nb_kv_sees_sealed(seq->n_sealed, i))
            seq->pool->free_recent[seq->pool->n_recent_free++] = seq->recent[i];
}

nb_status nb_kv_seq_reserve(nb_kv_seq *seq, int64_t n, nb_err *err)
{
    const int64_t want = nb_kv_pages_for(n), more = want - seq->n_table;
    if (want > seq->cap)
        return nb_fail(err, NB_LIMIT, "%lld positions do not fit in a context of %lld",
                       (long long)n, (long long)(seq->cap * NB_KV_PAGE));
    if (more > seq->pool->n_free && !seq->lent)
        return nb_fail(err, NB_LIMIT, "the KV cache is full: %lld pages are needed, %lld are free",
                       (long long)more, (long long)seq->pool->n_free);
    if (seq->recent != NULL) { /* what no query from seq->n on sees */
        const int64_t from = seq->pinned > 0 && seq->pinned < seq->n ? seq->pinned : seq->n;
        const int64_t n_sealed = nb_kv_n_sealed(seq->pool->cell, from);
        const int64_t first = seq->n_sealed > NB_KV_FIRST ? seq->n_sealed : NB_KV_FIRST;
        const int64_t n_dropped = n_sealed > first ? n_sealed - first : 0;
        if (more > seq->pool->n_recent_free + n_dropped)
            return nb_fail(err, NB_LIMIT, "the KV cache has no room for %lld pages of F16",
                           (long long)more);
        drop_recent(seq, NB_KV_FIRST, n_sealed);
        seq->n_sealed = n_sealed > seq->n_sealed ? n_sealed : seq->n_sealed;
        for (int64_t i = seq->n_table; i < want; i++)
            seq->recent[i] = seq->pool->free_recent[--seq->pool->n_recent_free];
    }
    if (seq->lent && want > seq->n_table)
        seq->n_table = want;
    while (seq->n_table < want)
        seq->table[seq->n_table++] = seq->pool->free_pages[--seq->pool->n_free];
    return NB_OK;
}

void nb_kv_seq_truncate(nb_kv_seq *seq, int64_t n)
{
    if (seq->recent != NULL) {
        if (nb_kv_n_sealed(seq->pool->cell, n) < seq->n_sealed)
            n = 0;
        drop_recent(seq, nb_kv_pages_for(n), seq->n_table);
        seq->n_sealed = n == 0 ? 0 : seq->n_sealed;
    }
    const int64_t keep = nb_kv_pages_for(n);
    if (seq->lent && keep < seq->n_table)
        seq->n_table = keep;
    while (seq->n_table > keep)
        seq->pool->free_pages[seq->pool->n_free++] = seq->table[--seq->n_table];
    if (seq->n > n)
        seq->n = n;
}

void nb_kv_seq_free(nb_kv_seq *seq)
{
    if (seq->pool != NULL)
        nb_kv_seq_truncate(seq, 0);
    if (!seq->lent)
        nb_free(seq->table);
    nb_free(seq->recent);
    *seq = (nb_kv_seq){0};
}

nb_kv_view nb_kv_seq_view(const nb_kv_seq *seq, int64_t layer)
{
    const nb_config *c = seq->pool->config;
    const size_t half = half_layer_bytes(c, seq->pool->cell);
    const size_t recent_half = half_layer_bytes(c, NB_KV_F16);
    const bool given = seq->pool->cell == NB_KV_FP8 && c->k_scales != NULL;
    return (nb_kv_view){.recent = {.arena = seq->pool->recent,
                                   .page_bytes = seq->pool->recent_bytes,
                                   .k_offset = 2 * recent_half * (size_t)layer,
                                   .v_offset = 2 * recent_half * (size_t)layer + recent_half,
                                   .head_bytes = nb_kv_head_bytes(NB_KV_F16, (int)c->head_dim),
                                   .table = seq->recent},
                        .arena = seq->pool->arena,
                        .page_bytes = seq->pool->page_bytes,
                        .k_offset = 2 * half * (size_t)layer,
                        .v_offset = 2 * half * (size_t)layer + half,
                        .table = seq->table,
                        .format = seq->pool->cell,
                        .head_bytes = nb_kv_head_bytes(seq->pool->cell, (int)c->head_dim),
                        .n_kv_heads = (int)c->n_kv_heads,
                        .head_dim = (int)c->head_dim,
                        .k_scales = given ? c->k_scales + layer * c->n_kv_heads : NULL,
                        .v_scales = given ? c->v_scales + layer * c->n_kv_heads : NULL};
}
