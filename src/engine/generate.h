/* Token after token: a sequence with its cache, and the loop that continues it.
 *
 * A generator keeps the ids that its cache holds. A new prompt is compared with them and only what
 * follows the longest common beginning is computed; by the contract the bits are those of a fresh
 * start. Prompts run in steps of at most NB_PREFILL_STEP tokens, which bounds the memory. */
#ifndef NB_ENGINE_GENERATE_H
#define NB_ENGINE_GENERATE_H

#include "engine/choice.h"
#include "engine/draft.h"
#include "engine/sample.h"
#include "model/forward.h"
#include "text/tokenizer.h"

#define NB_PREFILL_STEP 512

typedef struct {
    const nb_model *model; /* borrowed, like all here */
    const nb_kernels *kernels;
    nb_pool *pool;
    const nb_tokenizer *tokenizer;
    const nb_model *draft; /* guesses are its own (nb_draft_check); NULL: of what a text repeats */
    nb_kv_format kv;
    int64_t n_ctx;       /* 0: the model's; not more than that */
    int64_t step_tokens; /* 0: NB_PREFILL_STEP; results do not depend on it */
} nb_generator_setup;

/* `{0}` is empty. One thread at a time. */
typedef struct {
    nb_generator_setup setup;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    nb_sampler sampler;
    nb_tokens held; /* the ids in the cache */
    float *hidden;  /* [max_rows][d_model] */
    float *rows;    /* [max_rows][vocab_size] logits that follow the tokens at first_row and on */
    int64_t max_rows, n_rows, first_row;
    const float *logits; /* the row in force, which follows the token at `at` */
    int64_t at;
    bool has_logits;
    nb_draft draft;      /* with setup.draft */
    nb_json_tokens json; /* made for the first answer that is held to a schema */
    nb_ends ends;
} nb_generator;

nb_status nb_generator_init(nb_generator *g, const nb_generator_setup *setup, nb_err *err);
void nb_generator_free(nb_generator *g);

/* Room for the logits of n_guess guesses in a step; made by the first generation that guesses. */
nb_status nb_generator_room(nb_generator *g, int64_t n_guess, nb_err *err);

/* Appends tokens to the sequence; afterwards logits are those after the last. NB_LIMIT when they
 * do not fit, NB_DATA for unknown ids: nothing has changed. After any other failure the sequence
 * is empty. */
nb_status nb_generator_feed(nb_generator *g, const int32_t *ids, int64_t n, nb_err *err);
void nb_generator_truncate(nb_generator *g, int64_t n);
/* The hash of the logits, which must be there. */
uint64_t nb_generator_hash(const nb_generator *g);

/* Called when the context is full: before the first token when the prompt leaves no room for one,
 * and later when prompt and answer fill it. It may replace the prompt by a shorter one, and say so
 * in *shorter; the answer so far stays. */
typedef nb_status nb_full_fn(void *context, nb_tokens *prompt, bool *shorter, nb_err *err);

/* What nb_session_generate of nibble.h says, besides on_full, which may be NULL. The prompt may be
 * changed by on_full only. */
nb_status nb_generate(nb_generator *g, nb_tokens *prompt, const nb_generate_options *options,
                      nb_full_fn *on_full, void *context, nb_generation *out, nb_err *err);

#endif
