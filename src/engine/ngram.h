/* Guessing the next tokens from the text itself: what followed the last time its end occurred
 * ("prompt lookup decoding"; Saxena 2023, and Leviathan et al., arXiv:2211.17192, for why a guess
 * costs nothing but time). The longest known end counts: three tokens, else two.
 *
 * Constant time a token: tables from a hash of the end to the position after it. */
#ifndef NB_ENGINE_NGRAM_H
#define NB_ENGINE_NGRAM_H

#include "text/tokenizer.h"

#define NB_NGRAM_ORDERS 2

/* `{0}` is empty. */
typedef struct {
    int32_t *id; /* [n] the text */
    int64_t n, max;
    int64_t *after[NB_NGRAM_ORDERS]; /* [mask + 1] position that followed such an end; 0: none */
    uint64_t mask;
} nb_ngram;

/* For texts of at most `max` tokens. */
nb_status nb_ngram_init(nb_ngram *g, int64_t max, nb_err *err);
void nb_ngram_free(nb_ngram *g);
void nb_ngram_clear(nb_ngram *g);
/* The text goes on; past `max` tokens nothing is taken note of. */
void nb_ngram_push(nb_ngram *g, int32_t id);
/* Writes at most k guesses of what follows; returns how many. */
int64_t nb_ngram_guess(const nb_ngram *g, int64_t k, int32_t *out);

#endif
