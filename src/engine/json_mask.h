/* Which tokens may come next, so that the text becomes JSON as a schema admits it.
 *
 * The trie of the vocabulary is walked with the automaton, and subtrees are skipped where it turns
 * away. Only inside a string does nearly every token fit; what these are does not depend on the
 * schema and is found once a vocabulary, with the tokens that end a string: after them the walk
 * goes on with what surrounds it. */
#ifndef NB_ENGINE_JSON_MASK_H
#define NB_ENGINE_JSON_MASK_H

#include "engine/json_walk.h"
#include "engine/token_trie.h"

/* A place in the trie where a string ends. */
typedef struct {
    int32_t node;
    int32_t chars; /* of the string, before its end */
} nb_json_closer;

/* What masks need to know of a vocabulary. `{0}` is empty; read only once it is made. */
typedef struct {
    const nb_trie *trie; /* borrowed */
    uint64_t *inside;    /* [words] tokens that fit into a string and leave it open */
    uint8_t *chars;      /* [n_ids] characters that such a token begins */
    nb_json_closer *closer;
    int64_t n_closers;
} nb_json_vocab;

nb_status nb_json_vocab_init(nb_json_vocab *v, const nb_trie *trie, nb_err *err);
void nb_json_vocab_free(nb_json_vocab *v);

/* Can every text that the schema admits be spelled, byte by byte if need be? NB_UNSUPPORTED names a
 * byte that is no token. Where it can, there is always a token that may come, or the end. */
nb_status nb_json_vocab_spells(const nb_json_vocab *v, const nb_json_schema *schema, nb_err *err);

/* mask [(n_ids + 63) / 64]: the tokens that may come. Tokens that end an answer are not among them:
 * nb_json_may_end tells. The walk stays where it is. */
void nb_json_mask(const nb_json_vocab *v, nb_json_walk *w, uint64_t *mask);

#endif
