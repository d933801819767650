/* Added tokens: texts that become one id before anything else looks at the text.
 *
 * All of them are searched for at once, in time linear in the text (Aho and Corasick, 1975): the
 * leftmost match wins, of those the longest. */
#ifndef NB_TEXT_ADDED_H
#define NB_TEXT_ADDED_H

#include "base/bytes.h"
#include "store/gguf.h"

typedef struct {
    int32_t id;
    nb_text content;     /* borrowed from the vocabulary */
    bool single_word;    /* not inside a word */
    bool lstrip, rstrip; /* swallow the white space before, behind */
    bool normalized;     /* searched for in normalized text */
    bool special;
} nb_added;

typedef struct nb_added_node nb_added_node;

/* The tokens of a list whose `normalized` is the same, ready to be searched for. */
typedef struct {
    const nb_added *list; /* borrowed */
    nb_added_node *nodes;
    int32_t n_nodes;
    int32_t root[256];
} nb_added_set;

/* Texts of normalized tokens go through `normalize` first, when it is not NULL. */
typedef nb_status nb_normalize_fn(nb_buf *out, const char *text, size_t len, nb_err *err);
nb_status nb_added_set_init(nb_added_set *set, const nb_added *list, int64_t n, bool normalized,
                            nb_normalize_fn *normalize, nb_err *err);
void nb_added_set_free(nb_added_set *set);

/* Calls `part` for every stretch of text[0, len) in order: id < 0 for text between tokens. With
 * parse_special false, special tokens stay text; as in the reference tokenizers they still hide
 * other added tokens inside them. */
typedef nb_status nb_added_fn(void *context, int32_t id, const char *text, size_t len, nb_err *err);
nb_status nb_added_split(const nb_added_set *set, const char *text, size_t len, bool parse_special,
                         nb_added_fn *part, void *context, nb_err *err);

#endif
