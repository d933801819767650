/* Byte pair encoding of one piece of text: start from bytes; merge the adjacent pair of lowest
 * rank, the leftmost of equals, until none is left (Sennrich et al., arXiv:1508.07909).
 *
 * Short pieces are scanned, long ones use a heap: O(n log n) for any text and any merges. */
#ifndef NB_TEXT_BPE_H
#define NB_TEXT_BPE_H

#include "text/tokenizer.h"
#include "text/vocab.h"

typedef struct {
    int32_t left, right, merged; /* ids */
    uint32_t rank;               /* in a free slot of the table: NB_NO_RANK */
} nb_merge;

#define NB_NO_RANK UINT32_MAX

typedef struct {
    int32_t byte_id[256]; /* -1: the byte has no token of its own */
    int32_t unknown;      /* stands for bytes without a token; -1: they are left out */
    bool fuse_unknown;    /* neighbouring unknown bytes give one unknown token */
    nb_merge *merges;     /* [n_merges], by rank */
    int64_t n_merges, max_merges;
    nb_merge *slots; /* hash table of the same */
    size_t mask;
    uint64_t key[3];
} nb_bpe;

/* Looks up the byte tokens; makes room for max_merges merges. */
nb_status nb_bpe_init(nb_bpe *b, const nb_vocab *vocab, int64_t max_merges, nb_err *err);
void nb_bpe_free(nb_bpe *b);
/* The merge of the next rank. Of a pair that comes twice the last one counts, as in the reference
 * tokenizers. NB_DATA when left, right or both together are no token. */
nb_status nb_bpe_add(nb_bpe *b, const nb_vocab *vocab, nb_text left, nb_text right, nb_err *err);

/* What one thread needs while it encodes: work space and the pieces met lately. `{0}` is empty. */
typedef struct {
    void *cache;
    size_t cache_mask;
    nb_buf work;
} nb_bpe_scratch;
/* Prepares for about text_len bytes of text. */
nb_status nb_bpe_scratch_init(nb_bpe_scratch *s, size_t text_len, nb_err *err);
void nb_bpe_scratch_free(nb_bpe_scratch *s);

/* Appends the ids of bytes[0, len). A byte that has no token becomes the unknown token; without
 * one it is left out before merging, so that its neighbours may merge, and is counted in
 * out->n_left_out. NB_LIMIT above 2^30 bytes. */
nb_status nb_bpe_encode(const nb_bpe *b, nb_bpe_scratch *scratch, const uint8_t *bytes, size_t len,
                        nb_tokens *out, nb_err *err);

#endif
