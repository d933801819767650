/* One answer under way, fed with logits from outside: which token comes next, what its text is, and
 * whether the answer is over. What is chosen depends on the logits, the options and the position
 * only. */
#ifndef NB_ENGINE_CHOICE_H
#define NB_ENGINE_CHOICE_H

#include "engine/json_answer.h"
#include "engine/sample.h"
#include "engine/stoptext.h"
#include "text/tokenizer.h"

/* The tokens that end an answer for a model: found once, for there is a vocabulary to look through.
 */
typedef struct {
    int32_t *ids; /* [n] ascending */
    int n;
} nb_ends;

/* Of the first n_ids; none without a tokenizer. */
nb_status nb_ends_init(nb_ends *e, const nb_tokenizer *tokenizer, int64_t n_ids, nb_err *err);
void nb_ends_free(nb_ends *e);

/* What all answers to one request share. */
typedef struct {
    const nb_generate_options *options; /* borrowed; on_text and context are not looked at */
    const nb_tokenizer *tokenizer;      /* borrowed; NULL: there is no text */
    int64_t n_ids;                      /* of the vocabulary that can be chosen */
    const nb_json_tokens *json;         /* borrowed; with options->json_schema */
    int32_t *ends;                      /* [n_ends] tokens that end an answer; owned */
    int n_ends;
    bool penalizes; /* it matters which tokens were seen */
} nb_choosing;

/* Checks the options, whose stop strings and schema nb_choice_init checks. NB_USAGE names the value
 * that is out of range. */
nb_status nb_choosing_init(nb_choosing *c, const nb_generate_options *options,
                           const nb_tokenizer *tokenizer, const nb_json_tokens *json,
                           const nb_ends *of_model, int64_t n_ids, nb_err *err);
void nb_choosing_free(nb_choosing *c);

/* Why an answer is over. */
typedef enum { NB_CHOICE_OPEN, NB_CHOICE_END_TOKEN, NB_CHOICE_STOP_TEXT, NB_CHOICE_FULL } nb_over;

/* `{0}` is empty. One thread at a time. */
typedef struct {
    const nb_choosing *of;
    nb_sampling sampling; /* of->options' with a choice number of its own */
    nb_decoder decoder;
    nb_stoptext stops;
    nb_json_answer json; /* if the answer is held to a schema */
    nb_buf piece;        /* text that is certain since it was last emptied */
    int64_t position;    /* of the next token */
    int64_t n_made;      /* tokens chosen, one that ended it included */
    int64_t max_made;
    const int32_t *prompt; /* [n_prompt] borrowed, and the tokens made: for penalties. Lists, for */
    int64_t n_prompt;      /* counts of all ids would be a row of the vocabulary for each answer */
    nb_tokens made;        /* empty without penalties */
    nb_over over;
    int32_t end_id; /* the token that ended it; -1: the last one is part of the answer */
} nb_choice;

/* The answer number `number` to a prompt, which is borrowed; max_made >= 1 tokens at most. */
nb_status nb_choice_init(nb_choice *c, const nb_choosing *of, int64_t number, const int32_t *prompt,
                         int64_t n_prompt, int64_t max_made, nb_err *err);
void nb_choice_free(nb_choice *c);
/* Another prompt than it began with, borrowed as well, before anything is chosen. */
void nb_choice_prompt(nb_choice *c, const int32_t *prompt, int64_t n_prompt);

/* Chooses from logits [of->n_ids], with another's sampler for scratch; nothing is taken yet.
 * top [1 + n_top], where log-probabilities are wanted: see nb_logprobs. NB_DATA: the logits are
 * none. */
nb_status nb_choice_pick(nb_choice *c, nb_sampler *scratch, const float *logits, int32_t *id,
                         nb_logprob *top, nb_err *err);
/* What would be chosen from `logits` if ids[0, n), none of which ends the answer, had been taken:
 * to guess. *over: nothing could follow it, or there is no choice. `scratch` and `walk`, which has
 * room, are written; the choice is as before. */
nb_status nb_choice_foresee(nb_choice *c, nb_sampler *scratch, nb_json_walk *walk,
                            const float *logits, const int32_t *ids, int64_t n, int32_t *id,
                            bool *over, nb_err *err);
/* Takes the token: its text goes into `piece`, and all that is held back once the answer is over.
 */
nb_status nb_choice_take(nb_choice *c, int32_t id, nb_err *err);
/* Puts what is held back into `piece`, of an answer that somebody else has ended. */
nb_status nb_choice_end(nb_choice *c, nb_err *err);

#endif
