/* Bytes to tokens and back: byte-level BPE from a GGUF's keys or a Hugging Face tokenizer.json.
 *
 * Encoding agrees id for id with the Hugging Face `tokenizers` library and takes time linear in
 * the text. Special tokens in a text are text unless the caller asks for them to be parsed. */
#ifndef NB_TEXT_TOKENIZER_H
#define NB_TEXT_TOKENIZER_H

#include "base/bytes.h"
#include "store/store.h"

typedef struct nb_tokenizer nb_tokenizer;

/* A growable list of token ids. `{0}` is empty. */
typedef struct {
    int32_t *ids;
    int64_t n, cap;
    int64_t n_left_out; /* bytes of the encoded texts that gave no id; see nb_tokenizer_encode */
} nb_tokens;
nb_status nb_tokens_push(nb_tokens *t, int32_t id, nb_err *err);
void nb_tokens_free(nb_tokens *t);

/* From the folder's tokenizer.json (+ tokenizer_config.json, generation_config.json), or from the
 * GGUF's keys. Unknown kinds, pre-tokenizers, normalizers are refused by name (NB_UNSUPPORTED). */
nb_status nb_tokenizer_open(nb_tokenizer **out, nb_store *store, nb_err *err);
void nb_tokenizer_close(nb_tokenizer *t); /* NULL is fine */

int64_t nb_tokenizer_n_tokens(const nb_tokenizer *t); /* one more than the highest id */
int32_t nb_tokenizer_bos(const nb_tokenizer *t);      /* -1: none */
int32_t nb_tokenizer_eos(const nb_tokenizer *t);      /* -1: none */
int32_t nb_tokenizer_pad(const nb_tokenizer *t);      /* -1: none */
/* True for eos and every other id that ends generation (generation_config, eot, eom). */
bool nb_tokenizer_is_stop(const nb_tokenizer *t, int32_t id);
bool nb_tokenizer_is_special(const nb_tokenizer *t, int32_t id);
bool nb_tokenizer_adds_bos(const nb_tokenizer *t);
/* The id of a token with exactly this content; -1: none. */
int32_t nb_tokenizer_find(const nb_tokenizer *t, const char *content, size_t len);

typedef struct {
    bool parse_special; /* special tokens in the text become their ids */
    bool add_bos;       /* put BOS first if this tokenizer adds one by itself */
    bool add_end;       /* put last what this tokenizer puts there: for texts that are whole */
} nb_encode_options;

/* Appends the ids of text[0, len) to `out`. The text may be any bytes: invalid UTF-8 is encoded
 * byte by byte (as U+FFFD would lose it).
 *
 * Some vocabularies lack some bytes. Such a byte becomes the model's unknown token where a
 * tokenizer.json names one; anywhere else it gives no id and its neighbours become adjacent, as in
 * the reference library. Unlike there it does not go unseen: out->n_left_out grows by the number
 * of such bytes. After a failure `out` is as it was. */
nb_status nb_tokenizer_encode(const nb_tokenizer *t, const char *text, size_t len,
                              nb_encode_options options, nb_tokens *out, nb_err *err);

/* The bytes of one token (special tokens: their content). Borrowed; NB_DATA for an unknown id. */
nb_status nb_tokenizer_token(const nb_tokenizer *t, int32_t id, const char **bytes, size_t *len,
                             nb_err *err);

/* Incremental decoding: whole UTF-8 sequences only; `{0}` starts. A sequence left incomplete
 * comes out as U+FFFD at the end (final = true). Special tokens are left out unless asked for. */
typedef struct {
    uint8_t pending[4];
    int n_pending;
} nb_decoder;
nb_status nb_tokenizer_decode(const nb_tokenizer *t, nb_decoder *state, const int32_t *ids,
                              int64_t n, bool with_special, bool final, nb_buf *out, nb_err *err);

/* ---- export ---- */
/* tokenizer.json and tokenizer_config.json for a folder made from this tokenizer. `chat_template`
 * may be NULL. Free with json_decref. */
nb_status nb_tokenizer_to_json(const nb_tokenizer *t, json_t **tokenizer, nb_err *err);
nb_status nb_tokenizer_to_config(const nb_tokenizer *t, const char *chat_template, json_t **config,
                                 nb_err *err);
/* Appends the tokenizer.ggml.* pairs; adds their number to *n_kv. `n_rows` is the number of rows
 * of the embedding: ids above the vocabulary become "[PAD{id}]". */
nb_status nb_tokenizer_to_gguf(const nb_tokenizer *t, int64_t n_rows, nb_buf *kv, int64_t *n_kv,
                               nb_err *err);

#endif
