/* Pre-tokenizers: cutting text into the pieces inside which pairs are merged.
 *
 * The patterns of known families are scanned by hand, others go through a regular expression.
 * All of them cut valid UTF-8 exactly as the reference tokenizers do; a byte that is no UTF-8
 * counts as one character without any property. */
#ifndef NB_TEXT_PRETOKENIZER_H
#define NB_TEXT_PRETOKENIZER_H

#include "base/json.h"
#include "text/splitregex.h"

typedef enum {
    NB_SPLIT_GPT2,        /* a regular expression scanned by hand, as the next two */
    NB_SPLIT_LLAMA3,      /* digits by threes */
    NB_SPLIT_QWEN2,       /* single digits */
    NB_SPLIT_REGEX,       /* any other */
    NB_SPLIT_EACH_DIGIT,  /* every digit alone */
    NB_SPLIT_DIGIT_RUNS,  /* runs of digits */
    NB_SPLIT_PREFIX_SPACE /* cuts nothing: a piece that starts with no space gets one */
} nb_split_kind;

typedef struct {
    nb_split_kind kind;
    char *pattern;        /* regex only, as written */
    nb_splitregex *regex; /* regex only */
} nb_split;

#define NB_MAX_SPLITS 16

/* Each step cuts the pieces of the step before. */
typedef struct {
    nb_split steps[NB_MAX_SPLITS];
    int n_steps;
} nb_pretokenizer;

/* Adds a step; `pattern` for NB_SPLIT_REGEX only, which becomes one of the known kinds when it is
 * theirs. */
nb_status nb_pretokenizer_add(nb_pretokenizer *p, nb_split_kind kind, const char *pattern,
                              nb_err *err);
/* From the pre_tokenizer of a tokenizer.json: NB_UNSUPPORTED by name for what is not one of
 * Sequence, Split (Regex, Isolated), Digits, ByteLevel, with ByteLevel at the end. */
nb_status nb_pretokenizer_from_json(nb_pretokenizer *p, const json_t *v, nb_err *err);
/* The same back. Free with json_decref. */
nb_status nb_pretokenizer_to_json(const nb_pretokenizer *p, json_t **out, nb_err *err);
/* What GGUF files name by tokenizer.ggml.pre (formats.md 8.10): the steps, and the settings around
 * them that the family's own tokenizer.json files have. */
typedef struct {
    const char *name;
    int n_steps;
    nb_split_kind steps[2];
    bool nfc, ignore_merges, adds_bos;
} nb_split_family;

/* NULL: a name we do not know. */
const nb_split_family *nb_split_family_by_name(const char *name, size_t len);
/* The family that cuts, normalizes and merges like this; NULL: GGUF has no name for it. */
const nb_split_family *nb_split_family_of(const nb_pretokenizer *p, bool nfc, bool ignore_merges);
void nb_pretokenizer_free(nb_pretokenizer *p);

/* The length of the first piece of text[0, len), 0 < len, for all kinds but the last and regex. */
size_t nb_split_next(nb_split_kind kind, const uint8_t *text, size_t len);

/* Calls `piece` with each piece in order; stops at the first status that is not NB_OK. */
typedef nb_status nb_piece_fn(void *context, const uint8_t *bytes, size_t len, nb_err *err);
nb_status nb_pretokenize(const nb_pretokenizer *p, const char *text, size_t len, nb_piece_fn *piece,
                         void *context, nb_err *err);

#endif
