/* Tokens by id and by text: the text as the file spells it, and the bytes that it stands for.
 *
 * Byte-level vocabularies spell bytes as printable characters (formats.md 10.2): a space is
 * U+0120. Hashing is keyed with a number drawn at start, so that no file can be made to collide. */
#ifndef NB_TEXT_VOCAB_H
#define NB_TEXT_VOCAB_H

#include "base/bytes.h"
#include "store/gguf.h"

typedef struct {
    nb_text *text;  /* [n_ids], zero-terminated; .text == NULL: no token has this id */
    nb_text *bytes; /* [n_ids] */
    int64_t n_ids;  /* one more than the highest id there may be */
    int64_t n_tokens;
    char *blob; /* what the texts point into */
    size_t blob_used, blob_size;
    uint32_t *slots; /* id + 1; 0: free */
    size_t mask;
    uint64_t key[2];
} nb_vocab;

/* Room for ids below n_ids whose texts have text_bytes bytes together. `{0}` is empty. */
nb_status nb_vocab_init(nb_vocab *v, int64_t n_ids, size_t text_bytes, nb_err *err);
void nb_vocab_free(nb_vocab *v);
/* Copies the text. NB_DATA: bad UTF-8, an id twice or out of range, a text twice. An empty text is
 * a token that is never found. `literal`: the text stands for itself, not for byte characters. */
nb_status nb_vocab_put(nb_vocab *v, int64_t id, nb_text text, bool literal, nb_err *err);
/* Makes a token stand for its own text: added tokens are not spelled in byte characters. */
void nb_vocab_set_literal(nb_vocab *v, int32_t id);
int32_t nb_vocab_find(const nb_vocab *v, const char *text, size_t len); /* -1: none */

/* The character of a byte in byte-level vocabularies, and back (-1: c stands for no byte). */
int32_t nb_byte_char(uint8_t byte);
int nb_byte_of_char(int32_t c);

/* A random number nobody outside can know, for keyed hashing. */
uint64_t nb_hash_key(void);

/* How much of a text to quote in a message. */
static inline int nb_quoted(size_t len)
{
    return len > 60 ? 60 : (int)len;
}

#endif
