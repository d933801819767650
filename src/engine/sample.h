/* The next token from a row of logits (A9).
 *
 * Everything here is scalar code in one fixed order, besides the exponentials, which are the same
 * on every instruction set: the same logits and the same nb_sampling give the same token anywhere.
 * Time is linear in the vocabulary: selection is by radix, never by sorting. */
#ifndef NB_ENGINE_SAMPLE_H
#define NB_ENGINE_SAMPLE_H

#include "kernel/kernel.h"
#include "store/store.h"

/* NB_USAGE names the value that is out of range (see nibble.h for the ranges). Ids must lie in
 * [0, n_ids). */
nb_status nb_sampling_check(const nb_sampling *how, int64_t n_ids, nb_err *err);

/* What generation_config.json recommends: with do_sample its temperature, top_k, top_p, min_p (1,
 * 50, 1, 0 where it is silent, as in transformers); without, greedy; repetition_penalty in both
 * cases. A GGUF has none: greedy. NB_DATA when a value there has the wrong type or is out of
 * range. */
nb_status nb_sampling_read(const nb_store *store, nb_sampling *out, nb_err *err);

/* Scratch for rows of n logits, and how often each token occurred. `{0}` is empty. One thread at a
 * time. */
typedef struct {
    const nb_kernels *kernels;
    int64_t n;
    float *logit, *weight; /* of the candidates: after penalties; exp((logit - max) / T) */
    int32_t *id;           /* of the candidates, ascending */
    int64_t n_kept;
    int32_t *n_made; /* [n] times generated */
    uint8_t *seen;   /* [n] in the prompt */
} nb_sampler;

nb_status nb_sampler_init(nb_sampler *s, const nb_kernels *kernels, int64_t n, nb_err *err);
void nb_sampler_free(nb_sampler *s);

/* Forgets all tokens, then takes note of a prompt. Ids outside [0, n) are ignored. */
void nb_sampler_begin(nb_sampler *s, const int32_t *prompt, int64_t n_prompt);
/* A token was generated. */
void nb_sampler_made(nb_sampler *s, int32_t id);

/* Which tokens may come next. `{0}`: all. What may not counts as -Inf before anything else. */
typedef struct {
    const uint64_t *mask;  /* [(n + 63) / 64], id at bit id % 64 of word id / 64; NULL: all */
    const int32_t *banned; /* of those, not these; ids outside [0, n) are ignored */
    int64_t n_banned;
} nb_allowed;

/* Chooses from logits [s->n] the token at `position`, among all or those of `allowed`. NB_DATA for
 * NaN or +Inf, named by id, also where a token may not come; and when no logit is finite. `how` has
 * passed nb_sampling_check. */
nb_status nb_sample(nb_sampler *s, const nb_sampling *how, const float *logits, int64_t position,
                    int32_t *id, nb_err *err);
nb_status nb_sample_among(nb_sampler *s, const nb_sampling *how, const nb_allowed *allowed,
                          const float *logits, int64_t position, int32_t *id, nb_err *err);

/* Logarithms of the softmax of logits [s->n] as the model computed them, without bias, penalties,
 * temperature or filters: out[0] of `chosen`, then out[1 .. n_top] of the most likely, falling,
 * ties by the lowest id. 0 <= n_top <= NB_MAX_LOGPROBS; past s->n the entries have id -1. The
 * logits have been sampled from without failure. */
void nb_logprobs(nb_sampler *s, const float *logits, int32_t chosen, int n_top, nb_logprob *out);

#endif
