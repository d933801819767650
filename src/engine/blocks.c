/* See blocks.h. */
#include "engine/blocks.h"

#include <assert.h>
#include <string.h>

#define MAX_BLOCK_LEN 65536

static nb_status check_setup(const nb_blocks_setup *s, nb_err *err)
{
    const int64_t len = s->block_len;
    if (s->n_blocks < 1 || s->max_seqs < 1 || s->max_positions < 1)
        return nb_fail(err, NB_USAGE,
                       "a cache of %lld blocks for %lld sequences of %lld positions: there must be "
                       "at least one of each",
                       (long long)s->n_blocks, (long long)s->max_seqs, (long long)s->max_positions);
    if (len < 1 || len > MAX_BLOCK_LEN || (len & (len - 1)) != 0)
        return nb_fail(err, NB_USAGE,
                       "a block of %lld positions: it must be a power of two, at most %d",
                       (long long)len, MAX_BLOCK_LEN);
    if (s->n_blocks > INT32_MAX / 2 || s->max_seqs > INT32_MAX || s->max_positions > INT32_MAX)
        return nb_fail(err, NB_LIMIT, "a cache of %lld blocks for %lld sequences of %lld positions",
                       (long long)s->n_blocks, (long long)s->max_seqs, (long long)s->max_positions);
    return NB_OK;
}

/* All that a manager allocates. */
#define N_ARRAYS 8
static void list_arrays(nb_blocks *b, nb_array list[N_ARRAYS])
{
    const nb_blocks_setup *s = &b->setup;
    const nb_array all[N_ARRAYS] = {
        NB_ARRAY(b->blocks, s->n_blocks),
        NB_ARRAY(b->tokens, s->n_blocks * s->block_len),
        NB_ARRAY(b->free, s->n_blocks),
        NB_ARRAY(b->buckets, b->n_buckets),
        NB_ARRAY(b->tables, s->max_seqs * b->max_table),
        NB_ARRAY(b->n_table, s->max_seqs),
        NB_ARRAY(b->n_filled, s->max_seqs),
        NB_ARRAY(b->scratch, 3 * s->n_blocks),
    };
    memcpy(list, all, sizeof all);
}

/* Sizes, and nothing allocated yet. */
static nb_status plan_sizes(nb_blocks *b, const nb_blocks_setup *setup, nb_err *err)
{
    NB_TRY(check_setup(setup, err));
    *b = (nb_blocks){.setup = *setup, .n_buckets = 1};
    b->max_table = nb_blocks_for(b, setup->max_positions);
    b->oldest = b->newest = NB_BLOCK_NONE;
    b->n_free = setup->n_blocks;
    while (b->n_buckets < setup->n_blocks)
        b->n_buckets *= 2;
    return NB_OK;
}

nb_status nb_blocks_bytes(const nb_blocks_setup *setup, size_t *bytes, nb_err *err)
{
    nb_blocks b;
    nb_array list[N_ARRAYS];
    NB_TRY(plan_sizes(&b, setup, err));
    list_arrays(&b, list);
    *bytes = nb_arrays_bytes(list, N_ARRAYS);
    return NB_OK;
}

nb_status nb_blocks_init(nb_blocks *b, const nb_blocks_setup *setup, nb_err *err)
{
    nb_array list[N_ARRAYS];
    nb_blocks made;
    *b = (nb_blocks){0};
    NB_TRY(plan_sizes(&made, setup, err));
    *b = made;
    list_arrays(b, list);
    if (nb_arrays_alloc(list, N_ARRAYS, err) != NB_OK) {
        *b = (nb_blocks){0};
        return nb_context(err, "tables of the KV cache");
    }
    const int64_t n = setup->n_blocks;
    for (int64_t i = 0; i < n; i++) {
        b->free[i] = (int32_t)(n - 1 - i);
        b->blocks[i] = (nb_block){.parent = NB_BLOCK_NONE,
                                  .next = NB_BLOCK_NONE,
                                  .older = NB_BLOCK_NONE,
                                  .newer = NB_BLOCK_NONE};
    }
    for (int64_t i = 0; i < b->n_buckets; i++)
        b->buckets[i] = NB_BLOCK_NONE;
    return NB_OK;
}

void nb_blocks_free(nb_blocks *b)
{
    nb_array list[N_ARRAYS];
    list_arrays(b, list);
    nb_arrays_free(list, N_ARRAYS);
    *b = (nb_blocks){0};
}

static int32_t *table_of(nb_blocks *b, int64_t seq)
{
    assert(seq >= 0 && seq < b->setup.max_seqs);
    return b->tables + seq * b->max_table;
}

static int32_t *tokens_of(const nb_blocks *b, int32_t block)
{
    return b->tokens + block * b->setup.block_len;
}

/* ---- the index ---- */

nb_sip128 nb_blocks_root(const nb_blocks *b, const void *salt, size_t n_bytes)
{
    nb_siphash h;
    nb_siphash_begin(&h, b->setup.key);
    nb_siphash_put(&h, b->setup.what, sizeof b->setup.what);
    if (n_bytes > 0)
        nb_siphash_put(&h, salt, n_bytes);
    return nb_siphash_end(&h);
}

nb_sip128 nb_blocks_hash(const nb_blocks *b, nb_sip128 before, const int32_t *tokens)
{
    nb_siphash h;
    nb_siphash_begin(&h, b->setup.key);
    nb_siphash_put(&h, &before, sizeof before);
    nb_siphash_put(&h, tokens, (size_t)b->setup.block_len * sizeof *tokens);
    return nb_siphash_end(&h);
}

static int32_t *bucket_of(const nb_blocks *b, nb_sip128 hash)
{
    return &b->buckets[hash.lo & (uint64_t)(b->n_buckets - 1)];
}

/* The indexed block with this hash, these tokens and this parent. The hash alone would do unless
 * somebody knows the key; the comparison is exact, by induction over the parents. */
static int32_t find_block(const nb_blocks *b, nb_sip128 hash, const int32_t *tokens, int32_t parent)
{
    const size_t bytes = (size_t)b->setup.block_len * sizeof *tokens;
    for (int32_t i = *bucket_of(b, hash); i != NB_BLOCK_NONE; i = b->blocks[i].next) {
        const nb_block *k = &b->blocks[i];
        if (nb_sip128_equal(k->hash, hash) && k->parent == parent &&
            memcmp(tokens_of(b, i), tokens, bytes) == 0)
            return i;
    }
    return NB_BLOCK_NONE;
}

static void index_add(nb_blocks *b, int32_t block, nb_sip128 hash, const int32_t *tokens,
                      int32_t parent)
{
    nb_block *k = &b->blocks[block];
    int32_t *bucket = bucket_of(b, hash);
    memcpy(tokens_of(b, block), tokens, (size_t)b->setup.block_len * sizeof *tokens);
    k->hash = hash;
    k->parent = parent;
    k->indexed = true;
    k->next = *bucket;
    *bucket = block;
}

static void index_remove(nb_blocks *b, int32_t block)
{
    nb_block *k = &b->blocks[block];
    int32_t *link = bucket_of(b, k->hash);
    while (*link != block)
        link = &b->blocks[*link].next;
    *link = k->next;
    k->next = NB_BLOCK_NONE;
    k->parent = NB_BLOCK_NONE;
    k->indexed = false;
}

/* ---- states ---- */

static void cached_remove(nb_blocks *b, int32_t block)
{
    nb_block *k = &b->blocks[block];
    *(k->older == NB_BLOCK_NONE ? &b->oldest : &b->blocks[k->older].newer) = k->newer;
    *(k->newer == NB_BLOCK_NONE ? &b->newest : &b->blocks[k->newer].older) = k->older;
    k->older = k->newer = NB_BLOCK_NONE;
    b->n_cached--;
}

static void cached_add(nb_blocks *b, int32_t block)
{
    nb_block *k = &b->blocks[block];
    k->older = b->newest;
    *(b->newest == NB_BLOCK_NONE ? &b->oldest : &b->blocks[b->newest].newer) = block;
    b->newest = block;
    b->n_cached++;
}

/* An empty used block with one reference. */
static int32_t take_block(nb_blocks *b)
{
    int32_t block;
    if (b->n_free > 0) {
        block = b->free[--b->n_free];
    } else {
        block = b->oldest;
        assert(block != NB_BLOCK_NONE);
        cached_remove(b, block);
        index_remove(b, block);
        b->n_evicted++;
    }
    b->blocks[block].n_refs = 1;
    b->blocks[block].n_filled = 0;
    return block;
}

/* One reference more to a block that is used or cached. */
static void hold_block(nb_blocks *b, int32_t block)
{
    nb_block *k = &b->blocks[block];
    if (k->n_refs++ == 0) {
        cached_remove(b, block);
        b->n_slots_filled += k->n_filled;
    }
}

static void set_filled(nb_blocks *b, int32_t block, int64_t n)
{
    b->n_slots_filled += n - b->blocks[block].n_filled;
    b->blocks[block].n_filled = (int32_t)n;
}

/* A sequence that had written further than those who share its block is gone: what it alone could
 * read is no longer filled. All of them have the block at the same place. */
static void recount_filled(nb_blocks *b, int32_t block, int64_t at)
{
    int64_t n = 0;
    for (int64_t seq = 0; seq < b->setup.max_seqs; seq++) {
        if (b->n_table[seq] <= at || table_of(b, seq)[at] != block)
            continue;
        const int64_t here = b->n_filled[seq] - at * b->setup.block_len;
        n = here > n ? here : n;
    }
    set_filled(b, block, n < b->setup.block_len ? n : b->setup.block_len);
}

/* One reference less to what was block `at` of a table, which no longer names it. */
static void drop_block(nb_blocks *b, int32_t block, int64_t at)
{
    nb_block *k = &b->blocks[block];
    assert(k->n_refs > 0);
    if (--k->n_refs > 0) {
        if (!k->indexed)
            recount_filled(b, block, at);
        return;
    }
    if (k->indexed) {
        b->n_slots_filled -= k->n_filled;
        cached_add(b, block);
    } else {
        set_filled(b, block, 0);
        b->free[b->n_free++] = block;
    }
}

/* ---- sequences ---- */

int64_t nb_blocks_find(const nb_blocks *b, const nb_sip128 *hashes, const int32_t *tokens,
                       int64_t n, int64_t *n_cached)
{
    int32_t parent = NB_BLOCK_NONE;
    *n_cached = 0;
    if (!b->setup.share_prefixes)
        return 0;
    for (int64_t i = 0; i < n; i++) {
        parent = find_block(b, hashes[i], tokens + i * b->setup.block_len, parent);
        if (parent == NB_BLOCK_NONE)
            return i;
        *n_cached += b->blocks[parent].n_refs == 0;
    }
    return n;
}

void nb_blocks_take(nb_blocks *b, int64_t seq, const nb_sip128 *hashes, const int32_t *tokens,
                    int64_t n)
{
    int32_t *table = table_of(b, seq), parent = NB_BLOCK_NONE;
    assert(b->n_table[seq] == 0 && n <= b->max_table);
    for (int64_t i = 0; i < n; i++) {
        parent = find_block(b, hashes[i], tokens + i * b->setup.block_len, parent);
        assert(parent != NB_BLOCK_NONE);
        hold_block(b, parent);
        table[i] = parent;
    }
    b->n_table[seq] = (int32_t)n;
    b->n_filled[seq] = n * b->setup.block_len;
}

void nb_blocks_fork(nb_blocks *b, int64_t seq, int64_t from, int64_t n)
{
    int32_t *table = table_of(b, seq);
    const int32_t *source = table_of(b, from);
    assert(b->n_table[seq] == 0 && seq != from && n <= b->n_filled[from]);
    b->n_table[seq] = (int32_t)nb_blocks_for(b, n);
    b->n_filled[seq] = n;
    for (int64_t i = 0; i < b->n_table[seq]; i++) {
        table[i] = source[i];
        hold_block(b, source[i]);
    }
}

/* The block that holds the next position of a sequence and that it may not write, or none. */
static int32_t shared_tail(const nb_blocks *b, int64_t seq)
{
    const int64_t at = b->n_filled[seq] / b->setup.block_len;
    if (at >= b->n_table[seq])
        return NB_BLOCK_NONE;
    const int32_t block = nb_blocks_table(b, seq)[at];
    return b->blocks[block].n_refs > 1 || b->blocks[block].indexed ? block : NB_BLOCK_NONE;
}

int64_t nb_blocks_needed(const nb_blocks *b, int64_t seq, int64_t n)
{
    const int64_t more = nb_blocks_for(b, n) - b->n_table[seq];
    return (more > 0 ? more : 0) + (shared_tail(b, seq) != NB_BLOCK_NONE);
}

bool nb_blocks_reserve(nb_blocks *b, int64_t seq, int64_t n, nb_block_copy *copy)
{
    int32_t *table = table_of(b, seq);
    const int32_t tail = shared_tail(b, seq);
    const int64_t want = nb_blocks_for(b, n), at = b->n_filled[seq] / b->setup.block_len;
    assert(n > b->n_filled[seq] && want <= b->max_table);
    *copy = (nb_block_copy){NB_BLOCK_NONE, NB_BLOCK_NONE};
    if (nb_blocks_needed(b, seq, n) > nb_blocks_available(b))
        return false;
    if (tail != NB_BLOCK_NONE) {
        table[at] = take_block(b);
        set_filled(b, table[at], b->n_filled[seq] - at * b->setup.block_len);
        *copy = (nb_block_copy){.from = tail, .to = table[at]};
        drop_block(b, tail, at);
    }
    while (b->n_table[seq] < want)
        table[b->n_table[seq]++] = take_block(b);
    return true;
}

/* Block `at` of the sequence is full: it is indexed, or gives way to its equal. */
static void index_block(nb_blocks *b, int32_t *table, int64_t at, const int32_t *tokens,
                        nb_sip128 hash)
{
    const int32_t own = table[at], parent = at == 0 ? NB_BLOCK_NONE : table[at - 1];
    assert(!b->blocks[own].indexed);
    const int32_t equal = find_block(b, hash, tokens, parent);
    if (equal == NB_BLOCK_NONE) {
        index_add(b, own, hash, tokens, parent);
        return;
    }
    hold_block(b, equal);
    table[at] = equal;
    drop_block(b, own, at);
}

void nb_blocks_fill(nb_blocks *b, int64_t seq, int64_t n, const int32_t *tokens,
                    const nb_sip128 *hashes)
{
    int32_t *table = table_of(b, seq);
    const int64_t len = b->setup.block_len, first = b->n_filled[seq] / len;
    assert(n >= b->n_filled[seq] && nb_blocks_for(b, n) <= b->n_table[seq]);
    b->n_filled[seq] = n;
    for (int64_t at = first; at * len < n; at++) {
        const int64_t here = n - at * len < len ? n - at * len : len;
        if (b->blocks[table[at]].n_filled < here)
            set_filled(b, table[at], here);
        if (here == len && b->setup.share_prefixes)
            index_block(b, table, at, tokens + at * len, hashes[at]);
    }
}

void nb_blocks_truncate(nb_blocks *b, int64_t seq, int64_t n)
{
    int32_t *table = table_of(b, seq);
    const int64_t keep = nb_blocks_for(b, n);
    assert(n >= 0 && n <= b->n_filled[seq]);
    b->n_filled[seq] = n;
    while (b->n_table[seq] > keep) {
        const int64_t at = --b->n_table[seq];
        drop_block(b, table[at], at);
    }
    if (keep == 0 || b->blocks[table[keep - 1]].indexed)
        return;
    if (b->blocks[table[keep - 1]].n_refs > 1)
        recount_filled(b, table[keep - 1], keep - 1);
    else
        set_filled(b, table[keep - 1], n - (keep - 1) * b->setup.block_len);
}

nb_blocks_usage nb_blocks_measure(const nb_blocks *b)
{
    nb_blocks_usage u = {.n_free = b->n_free,
                         .n_cached = b->n_cached,
                         .n_used = b->setup.n_blocks - b->n_free - b->n_cached,
                         .n_slots_filled = b->n_slots_filled};
    u.n_slots = u.n_used * b->setup.block_len;
    u.usage = b->setup.n_blocks > 0 ? (double)u.n_used / (double)b->setup.n_blocks : 0;
    u.fragmentation = u.n_slots > 0 ? 1 - (double)u.n_slots_filled / (double)u.n_slots : 0;
    return u;
}
