/* A stand-in for the engine: no model, a thread of its own, answers that a test can foretell. The
 * answer to a prompt is its own ids over and over: token i of choice c is prompt[(i + c) %
 * n_prompt], and the token's logprob is -(i + 1) / 8; of the likeliest, number k has id 'A' + k and
 * -(k + 1) / 4.
 *
 * What stands between "!say " and "!end" in a prompt is the answer, which then stops.
 *
 * Pooled, it is FAKE_DIMS numbers: prompt[k % n_prompt] + k, and 1000 more for the last token's.
 *
 * The prompt may ask for more: "!error" as its beginning fails after two tokens, "!silent" never
 * says a word, "!slow" takes 20 ms a step. */
#ifndef NB_TESTS_FAKE_ENGINE_H
#define NB_TESTS_FAKE_ENGINE_H

#include "engine/engine.h"

enum { FAKE_DIMS = 6 };

/* `{0}` is a fast and willing one. */
typedef struct {
    const nb_tokenizer *tokenizer;
    int64_t n_ctx;      /* prompt and answer; 0: no limit */
    int64_t max_active; /* more are refused as busy; 0: 1000 */
    int64_t most;       /* nb_engine_most_sequences; 0: no limit */
    int64_t step_us;    /* between steps */
    nb_status refuses;  /* every request, so */
} fake_engine;

nb_engine *fake_engine_open(const fake_engine *how);

/* Requests that are there; ended by nb_engine_abort or a false from on_event. */
int64_t fake_engine_n_active(const nb_engine *e);
int64_t fake_engine_n_aborted(const nb_engine *e);
int64_t fake_engine_most_active(const nb_engine *e); /* at once, so far */
/* Waits up to 5 seconds until nothing is active. */
bool fake_engine_idle(const nb_engine *e);

#endif
