/* Who owns which block of the KV cache: a pool of equal blocks of block_len positions, a table of
 * blocks for each sequence, and an index that finds the blocks of a prompt seen before. Numbers
 * only: no keys, no values, no model. Kwon et al., arXiv:2309.06180 (paged blocks, reference
 * counts, copy on write); Zheng et al., arXiv:2312.07104 (a tree of prefixes, leaves evicted
 * first).
 *
 * A block is in one of three states:
 *
 *   free     nobody's, nothing in it
 *   cached   nobody's, but full and indexed: found again until it is evicted, oldest first
 *   used     in the tables of n_refs sequences, at the same place in each; indexed when it is full
 *
 * Position p of a sequence lies in block table[p / block_len]. Only positions past those that are
 * filled are ever written, and only in a block that one sequence holds and the index does not.
 *
 * The index is a tree: a full block's parent is the block before it, and of equal blocks under one
 * parent only one stays. (By the arithmetic contract their bits are equal, so a sequence that has
 * computed what is there already changes to the one that is there, and its own becomes free.) A
 * sequence gives its blocks back from the end, so that a parent is never evicted before its
 * children. A block is found by a keyed hash of its tokens and of all before them, and what is
 * found is compared token by token: who would guess a collision (CVE-2025-25183 was one) still
 * gets nothing.
 *
 * All memory is allocated by init. One thread at a time. */
#ifndef NB_ENGINE_BLOCKS_H
#define NB_ENGINE_BLOCKS_H

#include "base/alloc.h"
#include "base/siphash.h"

#define NB_BLOCK_NONE (-1)

typedef struct {
    int64_t n_blocks;      /* of the pool */
    int64_t block_len;     /* positions; a power of two */
    int64_t max_seqs;      /* tables */
    int64_t max_positions; /* of a sequence */
    bool share_prefixes;   /* full blocks are indexed */
    uint8_t key[16];       /* of the hash; drawn at start by whoever has randomness */
    uint64_t what[2];      /* tells model, KV format and RoPE settings apart */
} nb_blocks_setup;

typedef struct {
    int32_t n_refs;
    int32_t n_filled;     /* slots with keys and values in them, counted while used or cached */
    int32_t parent;       /* of an indexed block; NB_BLOCK_NONE for the first of a sequence */
    int32_t next;         /* in its bucket of the index */
    int32_t older, newer; /* neighbours among the cached */
    bool indexed;
    nb_sip128 hash;
} nb_block;

/* `{0}` is empty. Fields are for reading. */
typedef struct {
    nb_blocks_setup setup;
    int64_t max_table; /* blocks in a table */
    nb_block *blocks;
    int32_t *tokens; /* [n_blocks][block_len], of indexed blocks */
    int32_t *free;   /* a stack of n_free */
    int32_t *buckets;
    int32_t *tables;   /* [max_seqs][max_table] */
    int32_t *n_table;  /* [max_seqs] */
    int64_t *n_filled; /* [max_seqs]: positions with keys and values */
    int32_t *scratch;  /* [3][n_blocks], for nb_blocks_check */
    int32_t oldest, newest;
    int64_t n_buckets, n_free, n_cached;
    int64_t n_slots_filled; /* in used blocks */
    int64_t n_evicted;      /* since init */
} nb_blocks;

/* NB_USAGE for sizes that make no sense, NB_LIMIT for more blocks than 32 bits number, NB_MEMORY.
 */
nb_status nb_blocks_init(nb_blocks *b, const nb_blocks_setup *setup, nb_err *err);
void nb_blocks_free(nb_blocks *b);
/* Bytes that init allocates; its errors but for NB_MEMORY. */
nb_status nb_blocks_bytes(const nb_blocks_setup *setup, size_t *bytes, nb_err *err);

static inline int64_t nb_blocks_for(const nb_blocks *b, int64_t n_positions)
{
    return (n_positions + b->setup.block_len - 1) / b->setup.block_len;
}

static inline const int32_t *nb_blocks_table(const nb_blocks *b, int64_t seq)
{
    return b->tables + seq * b->max_table;
}

/* Blocks that a reserve can have: free ones, and cached ones by eviction. */
static inline int64_t nb_blocks_available(const nb_blocks *b)
{
    return b->n_free + b->n_cached;
}

/* What the hash of a sequence's first block continues: the key, `what`, and a salt that keeps its
 * prompts to those who know it. */
nb_sip128 nb_blocks_root(const nb_blocks *b, const void *salt, size_t n_bytes);
/* The hash of a block of tokens [block_len] after what `before` is the hash of. */
nb_sip128 nb_blocks_hash(const nb_blocks *b, nb_sip128 before, const int32_t *tokens);

/* How many blocks of a prompt the index holds from its start on. tokens [n * block_len] and
 * hashes [n], one for each of its first n blocks. *n_cached: how many of those found are cached,
 * which taking them makes used. */
int64_t nb_blocks_find(const nb_blocks *b, const nb_sip128 *hashes, const int32_t *tokens,
                       int64_t n, int64_t *n_cached);
/* Gives the first n blocks, which must be found, to a sequence that has none. */
void nb_blocks_take(nb_blocks *b, int64_t seq, const nb_sip128 *hashes, const int32_t *tokens,
                    int64_t n);
/* `seq`, which has no blocks, shares the first n positions of `from`; n may be inside a block. */
void nb_blocks_fork(nb_blocks *b, int64_t seq, int64_t from, int64_t n);

/* Copy block `from` to block `to`, all layers. */
typedef struct {
    int32_t from, to;
} nb_block_copy;

/* Makes room to write positions [n_filled, n) of a sequence, n > n_filled. When the first of them
 * lies in a block that others may read, the sequence gets a copy of its own: *copy is the copy to
 * do before anything is written (its `to` is NB_BLOCK_NONE when there is none). Copies of several
 * calls are done in the order of the calls. False when too few blocks are available: nothing has
 * changed. */
bool nb_blocks_reserve(nb_blocks *b, int64_t seq, int64_t n, nb_block_copy *copy);
/* How many blocks that reserve would take. */
int64_t nb_blocks_needed(const nb_blocks *b, int64_t seq, int64_t n);

/* Positions [n_filled, n), which are reserved, have been written: they are those of tokens[0, n).
 * hashes[i] is that of block i, for each that is full now; not read unless prefixes are shared. */
void nb_blocks_fill(nb_blocks *b, int64_t seq, int64_t n, const int32_t *tokens,
                    const nb_sip128 *hashes);
/* Keeps positions [0, n) of those that are filled, and gives back what else was reserved, the last
 * block first. With n = 0 the sequence is as new. */
void nb_blocks_truncate(nb_blocks *b, int64_t seq, int64_t n);

typedef struct {
    int64_t n_free, n_cached, n_used;
    int64_t n_slots, n_slots_filled; /* of used blocks */
    double usage;                    /* used / all; cached blocks count as free */
    double fragmentation;            /* 1 - filled / slots; 0 when there are none */
} nb_blocks_usage;
nb_blocks_usage nb_blocks_measure(const nb_blocks *b);

#endif
