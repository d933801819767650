/* How far ahead it is worth guessing in one sequence, from how many guesses were right so far.
 *
 * One more guess is worth its price while all guesses up to it are likely enough to be right: with
 * a rate a of right ones, k guesses are made as long as a^k is at least the price of one, as a
 * share of what a step costs the sequence (Leviathan et al., arXiv:2211.17192, section 3.5, decided
 * guess by guess). Where not even the first is worth it there are none, but for a try after ever
 * longer rests. Only the speed depends on it. */
#ifndef NB_ENGINE_REACH_H
#define NB_ENGINE_REACH_H

#include <stdbool.h>
#include <stdint.h>

/* `{0}` has seen nothing. */
typedef struct {
    double tried, right; /* older ones count less */
    int64_t rest, nap;   /* steps without a guess that are left, and that there were last time */
    bool tries;          /* after the rest there is one guess, worth it or not */
} nb_reach;

/* Guesses for the next step, at most `most`; `usual` is the rate to expect of a sequence of which
 * nothing is known. Called once a step. */
int64_t nb_reach_next(nb_reach *r, int64_t most, double price, double usual);
/* Of `guessed` tokens, at least one, the first `right` were. */
void nb_reach_learn(nb_reach *r, int64_t guessed, int64_t right);
/* The rate of right ones, as far as it is known. */
double nb_reach_rate(const nb_reach *r, double usual);

#endif
