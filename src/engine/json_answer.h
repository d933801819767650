/* Holds an answer to a JSON schema: which tokens may come next, token after token. */
#ifndef NB_ENGINE_JSON_ANSWER_H
#define NB_ENGINE_JSON_ANSWER_H

#include "engine/json_mask.h"

/* A vocabulary prepared for it, for any number of answers. `{0}` is empty. */
typedef struct {
    const nb_tokenizer *tokenizer; /* borrowed */
    nb_trie trie;
    nb_json_vocab vocab;
} nb_json_tokens;
nb_status nb_json_tokens_init(nb_json_tokens *t, const nb_tokenizer *tokenizer, int64_t n_ids,
                              nb_err *err);
void nb_json_tokens_free(nb_json_tokens *t);

/* One answer. `{0}` is empty and holds nothing back. */
typedef struct {
    const nb_json_tokens *tokens; /* borrowed */
    nb_json_schema *schema;
    nb_json_walk walk;
    uint64_t *mask; /* [(n_ids + 63) / 64] */
} nb_json_answer;

/* Compiles schema[0, len): as nb_json_schema_compile and nb_json_vocab_spells say. */
nb_status nb_json_answer_init(nb_json_answer *a, const nb_json_tokens *tokens, const char *schema,
                              size_t len, nb_err *err);
void nb_json_answer_free(nb_json_answer *a);

/* The tokens that may come; of ends[0, n_ends), which end the answer, all where the value is
 * complete, else none. Valid until the next call. Not empty, unless the value is complete, nothing
 * may follow it, and n_ends is 0. */
const uint64_t *nb_json_answer_mask(nb_json_answer *a, const int32_t *ends, int n_ends);
/* A token of the mask, other than an end, was chosen. */
void nb_json_answer_made(nb_json_answer *a, int32_t id);
/* The value is complete, and nothing may follow. */
bool nb_json_answer_done(const nb_json_answer *a);

#endif
