/* A vocabulary for tests of JSON masks: all bytes, and pieces that real ones have, which cut JSON
 * at every place. */
#ifndef NB_TESTS_ENGINE_JSON_TOKENS_H
#define NB_TESTS_ENGINE_JSON_TOKENS_H

#include "support/golden.h"

#include "engine/json_mask.h"

#include <stdio.h>
#include <string.h>

static const char *const json_pieces[] = {
    "{\"",
    "\":",
    "\": ",
    "\", \"",
    "\",\"",
    "\"}",
    "\"]",
    "]}",
    "}}",
    "},{",
    "}, {\"",
    "[{\"",
    "[[",
    "]]",
    "],[",
    "[]",
    "{}",
    ", ",
    ",\n",
    "{\n  \"",
    "\n",
    "  ",
    "    ",
    "\n\n",
    "true",
    "false",
    "null",
    "tr",
    "ue",
    "nu",
    "ll,",
    "fal",
    "se}",
    "true]",
    "null}",
    "the",
    " the",
    "and",
    "name",
    "na",
    "me",
    "nam\"",
    "age",
    "\"name\"",
    "\"name\": \"",
    "a\"",
    "\"a",
    "\"a\":",
    "\"b\":",
    "b\": [",
    "12",
    "123",
    "0.",
    "0.5",
    "1e",
    "1e5",
    "e+",
    "-1",
    "-",
    "10",
    "00",
    "99",
    "9,",
    "5]",
    "7}",
    ".5",
    "1,2",
    "\\n",
    "\\\"",
    "\\u",
    "\\u00",
    "u00e4",
    "\\ud83d",
    "\\ude00",
    "\\",
    "\\\\",
    "\xc3",
    "\xa4",
    "\xc3\xa4",
    "\xe2\x82",
    "\xe2\x82\xac",
    "\xf0\x9f",
    "\x98\x80",
    "\xf0\x9f\x98\x80",
    "x\xe2",
    "\x82\xac\"",
    "red",
    "green",
    "blue",
    "\"red\"",
    "re",
    "d\",",
    "next",
    "\"next\":",
    "value",
    "kind",
    "\"kind\":\"",
    "items",
    " \"",
    ": ",
    ":",
    "\"\"",
    "\":\"",
    "\":[",
    "\":{\"",
    "abc",
    "abcabcabcabcabcabcabcabc",
    "the", /* the second "the" */
};

typedef struct {
    nb_trie trie;
    nb_json_vocab vocab;
    nb_trie_text text[256 + sizeof json_pieces / sizeof *json_pieces]; /* by id */
    int n;
    char byte[256];
} json_tokens;

static inline void open_tokens(json_tokens *t)
{
    nb_err err = {0};
    memset(t, 0, sizeof *t);
    for (int i = 0; i < 256; i++) {
        t->byte[i] = (char)i;
        t->text[t->n] = (nb_trie_text){&t->byte[i], 1, t->n};
        t->n++;
    }
    for (size_t i = 0; i < sizeof json_pieces / sizeof *json_pieces; i++) {
        t->text[t->n] = (nb_trie_text){json_pieces[i], strlen(json_pieces[i]), t->n};
        t->n++;
    }
    nb_trie_text sorted[sizeof t->text / sizeof *t->text];
    memcpy(sorted, t->text, sizeof sorted);
    assert_int_equal(nb_trie_of_texts(&t->trie, sorted, t->n, t->n, &err), NB_OK);
    assert_int_equal(nb_json_vocab_init(&t->vocab, &t->trie, &err), NB_OK);
}

static inline void close_tokens(json_tokens *t)
{
    nb_json_vocab_free(&t->vocab);
    nb_trie_free(&t->trie);
}

static inline nb_json_schema *must_compile(const char *text)
{
    nb_err err = {0};
    nb_json_schema *s = NULL;
    if (nb_json_schema_compile(&s, text, strlen(text), &err) != NB_OK)
        fail_msg("%s: %s", text, err.text);
    return s;
}

/* Is text[0, len) a whole value that the schema admits? Byte by byte. */
static inline bool admits(const nb_json_schema *schema, const char *text, size_t len)
{
    nb_err err = {0};
    nb_json_walk w;
    assert_int_equal(nb_json_walk_init(&w, schema, &err), NB_OK);
    bool good = true;
    for (size_t i = 0; i < len && good; i++)
        good = nb_json_take(&w, text + i, 1);
    good = good && nb_json_may_end(&w);
    nb_json_walk_free(&w);
    return good;
}

#endif
