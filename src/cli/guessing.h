/* Where guesses of the next tokens come from, for `run`, `chat` and `serve`: from what a text
 * repeats, or from a draft model. */
#ifndef NB_CLI_GUESSING_H
#define NB_CLI_GUESSING_H

#include "cli/runtime.h"
#include "engine/draft.h"

extern const char *const nb_draft_model_names[], *const nb_draft_tokens_names[];

#define NB_GUESS_OPTIONS                                                                           \
    {.name = "speculate",                                                                          \
     .kind = NB_OPT_TEXT,                                                                          \
     .value = "ngram:K",                                                                           \
     .help = "guess up to K tokens a step (1 to 16) from what the text repeats; the answer "       \
             "stays the same"},                                                                    \
        {.name = "draft-model",                                                                    \
         .also = nb_draft_model_names,                                                             \
         .kind = NB_OPT_PATH,                                                                      \
         .value = "MODEL",                                                                         \
         .help = "guess by this smaller model, which has the same tokenizer; the answer stays "    \
                 "the same"},                                                                      \
    {                                                                                              \
        .name = "draft-tokens", .also = nb_draft_tokens_names, .kind = NB_OPT_INT, .value = "N",   \
        .min = 1, .max = NB_MAX_GUESS,                                                             \
        .help = "with --draft-model: guess up to N tokens a step (default: 6), fewer where "       \
                "they are often wrong"                                                             \
    }

/* `{0}` is empty: no guesses. */
typedef struct {
    int n;           /* tokens to guess ahead in a step */
    nb_opened draft; /* of --draft-model */
    bool has_draft;
} nb_guessing;

/* What the options say, before anything is opened. */
nb_status nb_guessing_read(nb_guessing *g, const nb_args *args, nb_err *err);
/* Opens the draft model, if one is asked for, in the modes of the target. NB_DATA unless it has the
 * target's tokenizer. */
nb_status nb_guessing_open(nb_guessing *g, const nb_args *args, const nb_runtime *rt,
                           const nb_opened *target, nb_out *out, nb_err *err);
void nb_guessing_close(nb_guessing *g);

#endif
