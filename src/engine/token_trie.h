/* The tokens of a vocabulary by their bytes: a trie in one array, depth first, so that a walk that
 * turns away at a byte skips all tokens that begin with what it has read. */
#ifndef NB_ENGINE_TOKEN_TRIE_H
#define NB_ENGINE_TOKEN_TRIE_H

#include "text/tokenizer.h"

#define NB_TRIE_MAX_BYTES 64 /* of a token; longer ones are left out */

typedef struct {
    int32_t skip;  /* the first node that is not below this one */
    int32_t token; /* whose bytes end here; -1: none */
    uint8_t byte;
    uint8_t depth; /* bytes before this one */
} nb_trie_node;

/* `{0}` is empty. Read only once it is made. */
typedef struct {
    nb_trie_node *node;
    int32_t n_nodes;
    int32_t *same; /* [n_ids] another token of the same bytes; -1: none */
    int64_t n_ids;
    bool has_byte[256]; /* as a token of its own */
} nb_trie;

/* Of the tokens below n_ids that are text: special tokens, those that end an answer, empty ones and
 * longer ones than NB_TRIE_MAX_BYTES are left out. */
nb_status nb_trie_init(nb_trie *t, const nb_tokenizer *tokenizer, int64_t n_ids, nb_err *err);
void nb_trie_free(nb_trie *t);

/* The same for any list: tokens of length 0 are left out. */
typedef struct {
    const char *bytes;
    size_t len;
    int32_t id;
} nb_trie_text;
nb_status nb_trie_of_texts(nb_trie *t, nb_trie_text *texts, int64_t n, int64_t n_ids, nb_err *err);

#endif
