/* Prompts made of random words, for load whose lengths are chosen. Prompt i is a pure function of
 * the plan, so that two runs ask the same, in whatever order. */
#ifndef NB_LOAD_PROMPT_H
#define NB_LOAD_PROMPT_H

#include "base/bytes.h"

#define NB_WORDS_MAX 256

/* The words prompts are made of, and what they are worth in tokens. */
typedef struct {
    const char *of[NB_WORDS_MAX];
    int n;
    double tokens_per_word;
    int64_t n_special; /* tokens that the server adds to every prompt */
    bool exact;        /* each word is one token of this server's */
} nb_words;

/* All of them, taken to be a token each. They are so frequent that most vocabularies have them. */
void nb_words_init(nb_words *words);

/* Counts the tokens of a text, those that the server adds included. */
typedef nb_status nb_count_fn(void *context, const char *text, int64_t *n, nb_err *err);
/* Keeps the words that are one token each, by asking for the tokens of parts of the list: few
 * questions when nearly all are. Where fewer than 16 are, all stay, with their average. */
nb_status nb_words_fit(nb_words *words, nb_count_fn *count, void *context, nb_err *err);

/* Whole numbers in [low, high], drawn evenly. */
typedef struct {
    int64_t low, high;
} nb_lengths;

typedef struct {
    uint64_t seed;
    nb_lengths input, output; /* tokens; input: after the shared prefix */
    int64_t prefix_len;       /* tokens of a shared prefix; 0: none */
    int64_t n_prefixes;       /* different ones, taken in turn */
} nb_prompt_plan;

/* Tokens that prompt i should have (prefix included), and that its answer should. */
int64_t nb_prompt_input_len(const nb_prompt_plan *plan, int64_t i);
int64_t nb_prompt_output_len(const nb_prompt_plan *plan, int64_t i);
/* Appends the text of prompt i. */
nb_status nb_prompt_text(nb_buf *out, const nb_prompt_plan *plan, const nb_words *words, int64_t i,
                         nb_err *err);

#endif
