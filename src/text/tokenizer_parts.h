/* Inside the tokenizer: what its loaders fill in and its exporters read. tokenizer.h is the
 * interface; tokenizer_gguf.c and tokenizer_json.c load, tokenizer_export.c writes. */
#ifndef NB_TEXT_TOKENIZER_PARTS_H
#define NB_TEXT_TOKENIZER_PARTS_H

#include "text/added.h"
#include "text/bpe.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"

/* What GGUF's tokenizer.ggml.token_type says. */
typedef enum {
    NB_TOKEN_UNDEFINED,
    NB_TOKEN_NORMAL,
    NB_TOKEN_UNKNOWN,
    NB_TOKEN_CONTROL,
    NB_TOKEN_USER_DEFINED,
    NB_TOKEN_UNUSED,
    NB_TOKEN_BYTE
} nb_token_type;

enum { NB_KIND_PLAIN, NB_KIND_ADDED, NB_KIND_SPECIAL };

#define NB_MAX_STOPS 64

struct nb_tokenizer {
    nb_vocab vocab;
    nb_bpe bpe;
    nb_pretokenizer split;
    bool nfc;           /* text is normalized first */
    bool ignore_merges; /* a piece that is a token stays whole */
    nb_added *added;
    int64_t n_added;
    nb_added_set raw, normalized; /* of `added` */
    uint8_t *kind;                /* by id: one of NB_KIND_ */
    int32_t bos, eos, pad;        /* -1: none */
    int32_t unknown;              /* -1: none. A name only: bpe.unknown is what encoding uses */
    bool adds_bos;
    int32_t end; /* put after a whole text, as models of embeddings want it; -1: none */
    int32_t stops[NB_MAX_STOPS];
    int n_stops;
};

/* Allocates an empty one: vocabulary with room for n_ids, no special ids. */
nb_status nb_tokenizer_new(nb_tokenizer **out, int64_t n_ids, size_t text_bytes, int64_t max_added,
                           nb_err *err);
/* `a->content` is looked up in the vocabulary. */
void nb_tokenizer_add(nb_tokenizer *t, nb_added a);
/* Everything was filled in: builds the searches for added tokens. */
nb_status nb_tokenizer_finish(nb_tokenizer *t, nb_err *err);
/* Ids that do not exist, that are known already, and those past NB_MAX_STOPS are left out. */
void nb_tokenizer_add_stop(nb_tokenizer *t, int64_t id);

/* n_rows of the embedding must equal the number of tokens; -1: not known. */
nb_status nb_tokenizer_from_gguf(nb_tokenizer **out, const nb_gguf *g, int64_t n_rows, nb_err *err);
/* `config` is tokenizer_config.json, `generation` generation_config.json, `model` config.json;
 * each may be NULL. Ids must lie below n_rows; -1: not known. */
nb_status nb_tokenizer_from_json(nb_tokenizer **out, const json_t *tokenizer, const json_t *config,
                                 const json_t *generation, const json_t *model, int64_t n_rows,
                                 nb_err *err);

#endif
