/* See added.h. The texts are kept reversed and the text is read from its end: then the automaton
 * knows at each place the longest token that starts there, and one walk forwards picks the
 * leftmost-longest matches. A forward automaton would have to go back after each match. */
#include "text/added.h"

#include "text/unicode.h"

#include <string.h>

struct nb_added_node {
    int32_t child, sibling; /* 0: none (node 0 is the root, nobody's child) */
    int32_t fail;           /* the node of the longest proper suffix */
    int32_t token;          /* index of the longest token that ends here; -1: none */
    uint32_t token_len;     /* its bytes as searched for */
    uint8_t byte;
};

static int32_t find_child(const nb_added_set *set, int32_t node, uint8_t byte)
{
    if (node == 0)
        return set->root[byte];
    int32_t c = set->nodes[node].child;
    while (c != 0 && set->nodes[c].byte != byte)
        c = set->nodes[c].sibling;
    return c;
}

static void insert(nb_added_set *set, int32_t token, const uint8_t *text, size_t len)
{
    int32_t node = 0;
    for (size_t i = len; i-- > 0;) {
        int32_t c = find_child(set, node, text[i]);
        if (c == 0) {
            c = set->n_nodes++;
            set->nodes[c] =
                (nb_added_node){.byte = text[i], .sibling = set->nodes[node].child, .token = -1};
            set->nodes[node].child = c;
            if (node == 0)
                set->root[text[i]] = c;
        }
        node = c;
    }
    set->nodes[node].token = token;
    set->nodes[node].token_len = (uint32_t)len;
}

/* The state after reading a byte in a state. */
static int32_t step(const nb_added_set *set, int32_t node, uint8_t byte)
{
    for (;;) {
        const int32_t c = find_child(set, node, byte);
        if (c != 0 || node == 0)
            return c;
        node = set->nodes[node].fail;
    }
}

/* Breadth first, so that shorter suffixes are linked before longer ones. */
static nb_status link_suffixes(nb_added_set *set, nb_err *err)
{
    int32_t *queue;
    NB_TRY(NB_ALLOC(&queue, set->n_nodes, err));
    int32_t n = 1; /* the root is queue[0] == 0 */
    for (int32_t i = 0; i < n; i++) {
        for (int32_t c = set->nodes[queue[i]].child; c != 0; c = set->nodes[c].sibling) {
            nb_added_node *node = &set->nodes[c];
            node->fail = queue[i] == 0 ? 0 : step(set, set->nodes[queue[i]].fail, node->byte);
            if (node->token < 0) {
                node->token = set->nodes[node->fail].token;
                node->token_len = set->nodes[node->fail].token_len;
            }
            queue[n++] = c;
        }
    }
    nb_free(queue);
    return NB_OK;
}

nb_status nb_added_set_init(nb_added_set *set, const nb_added *list, int64_t n, bool normalized,
                            nb_normalize_fn *normalize, nb_err *err)
{
    *set = (nb_added_set){.list = list, .n_nodes = 1};
    nb_buf texts = {0}, lens = {0};
    nb_status s = NB_OK;
    for (int64_t i = 0; i < n; i++) {
        const size_t before = texts.len;
        if (list[i].normalized == normalized) {
            const nb_text t = list[i].content;
            NB_TRY_GOTO(s, normalized && normalize != NULL
                               ? normalize(&texts, t.text, t.len, err)
                               : nb_buf_put(&texts, t.text, t.len, err));
        }
        const size_t len = texts.len - before;
        NB_TRY_GOTO(s, nb_buf_put(&lens, &len, sizeof len, err));
    }
    if (texts.len > INT32_MAX - 1) {
        s = nb_fail(err, NB_LIMIT, "added tokens of %zu bytes", texts.len);
        goto done;
    }
    if (texts.len == 0)
        goto done;
    NB_TRY_GOTO(s, NB_ALLOC(&set->nodes, texts.len + 1, err));
    set->nodes[0].token = -1;
    const uint8_t *text = texts.data;
    for (int64_t i = 0; i < n; i++) {
        size_t len;
        memcpy(&len, lens.data + (size_t)i * sizeof len, sizeof len);
        if (len > 0)
            insert(set, (int32_t)i, text, len);
        text += len;
    }
    s = link_suffixes(set, err);
done:
    nb_buf_free(&texts);
    nb_buf_free(&lens);
    if (s != NB_OK)
        nb_added_set_free(set);
    return s;
}

void nb_added_set_free(nb_added_set *set)
{
    nb_free(set->nodes);
    *set = (nb_added_set){0};
}

/* A token that could start at a place. */
typedef struct {
    size_t at;
    int32_t token;
    uint32_t len;
} hit;

/* Appends the longest token at each place where one starts, from the last place to the first. */
static nb_status find_hits(const nb_added_set *set, const uint8_t *text, size_t len, nb_buf *hits,
                           nb_err *err)
{
    int32_t node = 0;
    for (size_t i = len; i-- > 0;) {
        node = node == 0 ? set->root[text[i]] : step(set, node, text[i]);
        const nb_added_node *at = &set->nodes[node];
        if (at->token < 0)
            continue;
        const hit h = {.at = i, .token = at->token, .len = at->token_len};
        NB_TRY(nb_buf_put(hits, &h, sizeof h, err));
    }
    return NB_OK;
}

static bool inside_word(const uint8_t *text, size_t len, size_t begin, size_t end)
{
    int32_t before = -1, behind = -1;
    if (begin > 0)
        (void)nb_utf8_last(text, begin, &before);
    if (end < len)
        (void)nb_utf8_next(text + end, len - end, &behind);
    return nb_char_is_word(before) || nb_char_is_word(behind);
}

/* Where the white space that ends at `end` begins, not before `from`. */
static size_t space_before(const uint8_t *text, size_t from, size_t end)
{
    while (end > from) {
        int32_t c;
        const size_t n = nb_utf8_last(text + from, end - from, &c);
        if (nb_char_class_of(c) != NB_CHAR_SPACE)
            break;
        end -= n;
    }
    return end;
}

static size_t space_behind(const uint8_t *text, size_t len, size_t i)
{
    while (i < len) {
        int32_t c;
        const size_t n = nb_utf8_next(text + i, len - i, &c);
        if (nb_char_class_of(c) != NB_CHAR_SPACE)
            break;
        i += n;
    }
    return i;
}

nb_status nb_added_split(const nb_added_set *set, const char *chars, size_t len, bool parse_special,
                         nb_added_fn *part, void *context, nb_err *err)
{
    if (len == 0)
        return NB_OK;
    if (set->nodes == NULL)
        return part(context, -1, chars, len, err);
    const uint8_t *text = (const uint8_t *)chars;
    nb_buf hits = {0};
    nb_status s;
    NB_TRY_GOTO(s, find_hits(set, text, len, &hits, err));
    size_t searched = 0, written = 0; /* how far the text was searched, and passed on */
    for (size_t i = hits.len / sizeof(hit); i-- > 0;) {
        const hit *h = (const hit *)(const void *)hits.data + i;
        if (h->at < searched)
            continue;
        const nb_added *token = &set->list[h->token];
        size_t begin = h->at, end = begin + h->len;
        searched = end;
        if ((token->special && !parse_special) ||
            (token->single_word && inside_word(text, len, begin, end)))
            continue;
        /* What a token before swallowed stays with it. */
        if (token->lstrip)
            begin = space_before(text, written < begin ? written : begin, begin);
        if (token->rstrip)
            end = space_behind(text, len, end);
        if (begin > written)
            NB_TRY_GOTO(s, part(context, -1, chars + written, begin - written, err));
        NB_TRY_GOTO(s, part(context, token->id, chars + begin, end - begin, err));
        written = end;
    }
    s = written < len ? part(context, -1, chars + written, len - written, err) : NB_OK;
done:
    nb_buf_free(&hits);
    return s;
}
