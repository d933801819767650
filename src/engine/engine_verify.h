/* The engine against the forward pass: the logits that requests are answered from, by their hash.
 */
#ifndef NB_ENGINE_ENGINE_VERIFY_H
#define NB_ENGINE_ENGINE_VERIFY_H

#include "engine/engine.h"

/* How the engine is set up; the model, kernels, pool, tokenizer and cache format come from the
 * caller. */
typedef enum {
    NB_ENGINE_WAY_WIDE,    /* everything at once */
    NB_ENGINE_WAY_NARROW,  /* steps of seven tokens, three sequences at a time */
    NB_ENGINE_WAY_SHARED,  /* prefixes are shared and found again */
    NB_ENGINE_WAY_PRESSED, /* blocks for a sequence and a half: others wait or are preempted */
    NB_N_ENGINE_WAYS
} nb_engine_way;
const char *nb_engine_way_name(nb_engine_way way);

/* One request for each beginning of tokens[0, n), all at once, each for some tokens: *hash is the
 * XOR of the hashes of the logits that their first tokens are chosen from, which is the text's hash
 * of docs/numerics.md; *n_preempted and *n_found say what happened meanwhile. `go_on`, which may be
 * NULL, is asked after each token; false ends with NB_INTERRUPTED. NB_DATA: the engine failed a
 * request. */
nb_status nb_engine_verify(const nb_engine_setup *base, nb_engine_way way, const int32_t *tokens,
                           int64_t n, bool (*go_on)(void *context), void *context, uint64_t *hash,
                           int64_t *n_preempted, int64_t *n_found, nb_err *err);

#endif
