/* See json_answer.h. */
#include "engine/json_answer.h"

#include <assert.h>

nb_status nb_json_tokens_init(nb_json_tokens *t, const nb_tokenizer *tokenizer, int64_t n_ids,
                              nb_err *err)
{
    *t = (nb_json_tokens){.tokenizer = tokenizer};
    NB_TRY(nb_trie_init(&t->trie, tokenizer, n_ids, err));
    const nb_status s = nb_json_vocab_init(&t->vocab, &t->trie, err);
    if (s != NB_OK)
        nb_json_tokens_free(t);
    return s;
}

void nb_json_tokens_free(nb_json_tokens *t)
{
    nb_json_vocab_free(&t->vocab);
    nb_trie_free(&t->trie);
    *t = (nb_json_tokens){0};
}

nb_status nb_json_answer_init(nb_json_answer *a, const nb_json_tokens *tokens, const char *schema,
                              size_t len, nb_err *err)
{
    *a = (nb_json_answer){.tokens = tokens};
    nb_status s = nb_json_schema_compile(&a->schema, schema, len, err);
    if (s == NB_OK)
        s = nb_json_vocab_spells(&tokens->vocab, a->schema, err);
    if (s == NB_OK)
        s = nb_json_walk_init(&a->walk, a->schema, err);
    if (s == NB_OK)
        s = NB_ALLOC(&a->mask, (tokens->trie.n_ids + 63) / 64, err);
    if (s != NB_OK)
        nb_json_answer_free(a);
    return s;
}

void nb_json_answer_free(nb_json_answer *a)
{
    nb_json_walk_free(&a->walk);
    nb_json_schema_free(a->schema);
    nb_free(a->mask);
    *a = (nb_json_answer){0};
}

const uint64_t *nb_json_answer_mask(nb_json_answer *a, const int32_t *ends, int n_ends)
{
    nb_json_mask(&a->tokens->vocab, &a->walk, a->mask);
    const bool may_end = nb_json_may_end(&a->walk);
    for (int i = 0; i < n_ends; i++) {
        const uint64_t bit = 1ull << (ends[i] % 64);
        if (may_end)
            a->mask[ends[i] / 64] |= bit;
        else
            a->mask[ends[i] / 64] &= ~bit;
    }
    return a->mask;
}

void nb_json_answer_made(nb_json_answer *a, int32_t id)
{
    const char *bytes;
    size_t len;
    nb_err err = {0};
    const bool taken = nb_tokenizer_token(a->tokens->tokenizer, id, &bytes, &len, &err) == NB_OK &&
                       nb_json_take(&a->walk, bytes, len);
    assert(taken); /* it was in the mask */
    (void)taken;
}

bool nb_json_answer_done(const nb_json_answer *a)
{
    return nb_json_must_end(&a->walk);
}
