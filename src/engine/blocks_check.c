/* See sched_check.h: blocks. */
#include "engine/sched_check.h"

#include <string.h>

#define MUST(condition, ...)                                                                       \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return nb_fail(err, NB_DATA, __VA_ARGS__);                                             \
    } while (0)

typedef long long wide;

/* What the walk over tables and lists finds of each block, in the scratch. */
typedef struct {
    int32_t *n_refs; /* table entries; FREE or CACHED when it is on that list */
    int32_t *place;  /* in tables, from 1; then among the cached, oldest 1 */
    int32_t *filled; /* the most that some sequence has in it */
} found;

enum { FREE = -1, CACHED = -2 };

static nb_status walk_tables(const nb_blocks *b, const found *f, nb_err *err)
{
    const int64_t len = b->setup.block_len;
    for (int64_t seq = 0; seq < b->setup.max_seqs; seq++) {
        const int32_t *table = nb_blocks_table(b, seq);
        const int64_t n = b->n_table[seq], n_filled = b->n_filled[seq];
        MUST(n >= 0 && n <= b->max_table && n_filled >= 0 && nb_blocks_for(b, n_filled) <= n,
             "K5: sequence %lld has %lld blocks for %lld positions", (wide)seq, (wide)n,
             (wide)n_filled);
        for (int64_t i = 0; i < n; i++) {
            const int32_t block = table[i];
            MUST(block >= 0 && block < b->setup.n_blocks, "K1: sequence %lld names block %d",
                 (wide)seq, (int)block);
            MUST(f->place[block] == 0 || f->place[block] == i + 1,
                 "K4: block %d is at two places of tables, %d and %lld", (int)block,
                 (int)f->place[block] - 1, (wide)i);
            f->place[block] = (int32_t)i + 1;
            f->n_refs[block]++;
            int64_t here = n_filled - i * len;
            here = here < 0 ? 0 : here > len ? len : here;
            f->filled[block] = f->filled[block] < here ? (int32_t)here : f->filled[block];
            if (here < len || !b->setup.share_prefixes)
                continue;
            const nb_block *k = &b->blocks[block];
            MUST(k->indexed && k->parent == (i == 0 ? NB_BLOCK_NONE : table[i - 1]),
                 "K7: block %d is full and not indexed behind the one before it", (int)block);
        }
    }
    return NB_OK;
}

static nb_status walk_lists(const nb_blocks *b, const found *f, nb_err *err)
{
    MUST(b->n_free >= 0 && b->n_cached >= 0 && b->n_free + b->n_cached <= b->setup.n_blocks,
         "K3: %lld blocks are free and %lld cached, of %lld", (wide)b->n_free, (wide)b->n_cached,
         (wide)b->setup.n_blocks);
    for (int64_t i = 0; i < b->n_free; i++) {
        const int32_t block = b->free[i];
        MUST(block >= 0 && block < b->setup.n_blocks, "K1: the free list names block %d",
             (int)block);
        MUST(f->n_refs[block] == 0, "%s: block %d is free and %s",
             f->n_refs[block] == FREE ? "K4" : "K1", (int)block,
             f->n_refs[block] == FREE ? "free once more" : "used");
        MUST(!b->blocks[block].indexed, "K8: block %d is free and can be found", (int)block);
        f->n_refs[block] = FREE;
    }
    int32_t before = NB_BLOCK_NONE, block = b->oldest;
    int64_t n = 0;
    for (; block != NB_BLOCK_NONE; before = block, block = b->blocks[block].newer) {
        MUST(block >= 0 && block < b->setup.n_blocks && n++ < b->n_cached,
             "K3: more than %lld blocks are cached", (wide)b->n_cached);
        MUST(f->n_refs[block] == 0, "K1: block %d is cached and %s", (int)block,
             f->n_refs[block] > 0 ? "used" : "on a list");
        const nb_block *k = &b->blocks[block];
        MUST(k->older == before && k->indexed && k->n_filled == b->setup.block_len,
             "K1: block %d is cached and not indexed, not full or badly linked", (int)block);
        f->n_refs[block] = CACHED;
        f->place[block] = (int32_t)n;
    }
    MUST(n == b->n_cached && b->newest == before, "K3: %lld blocks are cached, not %lld", (wide)n,
         (wide)b->n_cached);
    return NB_OK;
}

static nb_status check_states(const nb_blocks *b, const found *f, nb_err *err)
{
    int64_t n_used = 0, n_filled = 0;
    for (int32_t i = 0; i < b->setup.n_blocks; i++) {
        const nb_block *k = &b->blocks[i];
        const int32_t refs = f->n_refs[i] > 0 ? f->n_refs[i] : 0;
        MUST(k->n_refs == refs, "K2: block %d counts %d references and has %d", (int)i,
             (int)k->n_refs, (int)refs);
        MUST(f->n_refs[i] != 0, "K1: block %d is neither free nor cached nor used", (int)i);
        if (refs == 0)
            continue;
        const int32_t filled = k->indexed ? (int32_t)b->setup.block_len : f->filled[i];
        MUST(k->n_filled == filled, "K22: block %d has %d slots filled and counts %d", (int)i,
             (int)filled, (int)k->n_filled);
        n_used++;
        n_filled += filled;
    }
    MUST(b->n_free + b->n_cached + n_used == b->setup.n_blocks,
         "K3: %lld blocks are free, %lld cached, %lld used, of %lld", (wide)b->n_free,
         (wide)b->n_cached, (wide)n_used, (wide)b->setup.n_blocks);
    MUST(b->n_slots_filled == n_filled, "K25: %lld slots are filled, %lld are counted",
         (wide)n_filled, (wide)b->n_slots_filled);
    return NB_OK;
}

/* K8: what can be found is what is indexed, each once and in its bucket. And the tree: parents are
 * indexed, used by no fewer, and evicted later. */
static nb_status check_index(const nb_blocks *b, const found *f, int64_t turn, nb_err *err)
{
    int64_t n_found = 0, n_indexed = 0;
    for (int64_t at = 0; at < b->n_buckets; at++) {
        for (int32_t i = b->buckets[at]; i != NB_BLOCK_NONE; i = b->blocks[i].next) {
            MUST(i >= 0 && i < b->setup.n_blocks && n_found++ < b->setup.n_blocks,
                 "K8: bucket %lld does not end", (wide)at);
            MUST(b->blocks[i].indexed &&
                     (int64_t)(b->blocks[i].hash.lo & (uint64_t)(b->n_buckets - 1)) == at,
                 "K8: block %d can be found where it should not", (int)i);
        }
    }
    for (int32_t i = 0; i < b->setup.n_blocks; i++) {
        const nb_block *k = &b->blocks[i];
        n_indexed += k->indexed;
        if (!k->indexed || k->parent == NB_BLOCK_NONE)
            continue;
        MUST(k->parent >= 0 && k->parent < b->setup.n_blocks, "K8: block %d has the parent %d",
             (int)i, (int)k->parent);
        const nb_block *parent = &b->blocks[k->parent];
        MUST(parent->indexed && parent->n_refs >= k->n_refs &&
                 (parent->n_refs > 0 || f->place[k->parent] > f->place[i]),
             "K8: block %d would lose its parent %d", (int)i, (int)k->parent);
        if (turn >= 0 && (turn + i) % 16 != 0)
            continue;
        const int32_t *tokens = b->tokens + i * b->setup.block_len;
        MUST(nb_sip128_equal(k->hash, nb_blocks_hash(b, parent->hash, tokens)),
             "K7: block %d does not hold what it was indexed for", (int)i);
    }
    MUST(n_found == n_indexed, "K8: %lld blocks can be found, %lld are indexed", (wide)n_found,
         (wide)n_indexed);
    return NB_OK;
}

nb_status nb_blocks_check(const nb_blocks *b, int64_t turn, nb_err *err)
{
    const int64_t n = b->setup.n_blocks;
    const found f = {b->scratch, b->scratch + n, b->scratch + 2 * n};
    memset(b->scratch, 0, (size_t)(3 * n) * sizeof *b->scratch);
    NB_TRY(walk_tables(b, &f, err));
    NB_TRY(walk_lists(b, &f, err));
    NB_TRY(check_states(b, &f, err));
    return check_index(b, &f, turn, err);
}
