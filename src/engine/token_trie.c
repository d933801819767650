/* See token_trie.h. */
#include "engine/token_trie.h"

#include <stdlib.h>
#include <string.h>

static int by_bytes(const void *a, const void *b)
{
    const nb_trie_text *x = a, *y = b;
    const int order = memcmp(x->bytes, y->bytes, x->len < y->len ? x->len : y->len);
    if (order != 0 || x->len != y->len)
        return order != 0 ? order : x->len < y->len ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static size_t common(const nb_trie_text *a, const nb_trie_text *b)
{
    size_t n = 0;
    while (n < a->len && n < b->len && a->bytes[n] == b->bytes[n])
        n++;
    return n;
}

/* Nodes of sorted texts: each begins where it parts from the one before. */
static int64_t count_nodes(const nb_trie_text *texts, int64_t n)
{
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++)
        total += (int64_t)(texts[i].len - (i > 0 ? common(&texts[i - 1], &texts[i]) : 0));
    return total;
}

static void fill(nb_trie *t, const nb_trie_text *texts, int64_t n)
{
    int32_t open[NB_TRIE_MAX_BYTES]; /* the nodes of the last text, by depth */
    size_t n_open = 0;
    for (int64_t i = 0; i < n; i++) {
        const nb_trie_text *x = &texts[i];
        const size_t shared = i > 0 ? common(&texts[i - 1], x) : 0;
        if (shared == x->len) { /* the same text as before */
            t->same[x->id] = t->same[texts[i - 1].id];
            t->same[texts[i - 1].id] = x->id;
            continue;
        }
        while (n_open > shared)
            t->node[open[--n_open]].skip = t->n_nodes;
        for (size_t k = shared; k < x->len; k++) {
            open[n_open++] = t->n_nodes;
            t->node[t->n_nodes++] =
                (nb_trie_node){.token = -1, .byte = (uint8_t)x->bytes[k], .depth = (uint8_t)k};
        }
        t->node[t->n_nodes - 1].token = x->id;
        if (x->len == 1)
            t->has_byte[(uint8_t)x->bytes[0]] = true;
    }
    while (n_open > 0)
        t->node[open[--n_open]].skip = t->n_nodes;
}

nb_status nb_trie_of_texts(nb_trie *t, nb_trie_text *texts, int64_t n, int64_t n_ids, nb_err *err)
{
    *t = (nb_trie){.n_ids = n_ids};
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        if (texts[i].len > 0 && texts[i].len <= NB_TRIE_MAX_BYTES)
            texts[kept++] = texts[i];
    }
    if (kept > 0)
        qsort(texts, (size_t)kept, sizeof *texts, by_bytes);
    nb_status s = NB_ALLOC(&t->node, count_nodes(texts, kept), err);
    if (s == NB_OK)
        s = NB_ALLOC(&t->same, n_ids, err);
    if (s != NB_OK) {
        nb_trie_free(t);
        return s;
    }
    for (int64_t i = 0; i < n_ids; i++)
        t->same[i] = -1;
    fill(t, texts, kept);
    return NB_OK;
}

nb_status nb_trie_init(nb_trie *t, const nb_tokenizer *tokenizer, int64_t n_ids, nb_err *err)
{
    nb_trie_text *texts;
    int64_t n = 0;
    NB_TRY(NB_ALLOC(&texts, n_ids, err));
    for (int64_t id = 0; id < n_ids; id++) {
        nb_trie_text x = {.id = (int32_t)id};
        nb_err unknown = {0}; /* ids may have gaps */
        if (nb_tokenizer_is_special(tokenizer, x.id) || nb_tokenizer_is_stop(tokenizer, x.id) ||
            nb_tokenizer_token(tokenizer, x.id, &x.bytes, &x.len, &unknown) != NB_OK)
            continue;
        texts[n++] = x;
    }
    const nb_status s = nb_trie_of_texts(t, texts, n, n_ids, err);
    nb_free(texts);
    return s;
}

void nb_trie_free(nb_trie *t)
{
    nb_free(t->node);
    nb_free(t->same);
    *t = (nb_trie){0};
}
