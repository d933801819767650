/* See reach.h. */
#include "engine/reach.h"

#define PRIOR     3.0  /* guesses that the usual rate counts for */
#define FORGETS   0.85 /* what a step leaves of what was before: a text changes its nature */
#define NAP_FIRST 4
#define NAP_LAST  64

double nb_reach_rate(const nb_reach *r, double usual)
{
    return (r->right + PRIOR * usual) / (r->tried + PRIOR);
}

int64_t nb_reach_next(nb_reach *r, int64_t most, double price, double usual)
{
    const double rate = nb_reach_rate(r, usual);
    double all_right = rate;
    int64_t k = 0;
    if (most < 1)
        return 0;
    for (; k < most && all_right >= price; k++)
        all_right *= rate;
    if (k > 0) {
        r->rest = r->nap = 0;
        r->tries = false;
        return k;
    }
    if (r->rest > 0) {
        r->rest--;
        return 0;
    }
    if (r->tries) {
        r->tries = false;
        return 1;
    }
    r->nap = r->nap == 0 ? NAP_FIRST : r->nap < NAP_LAST ? 2 * r->nap : NAP_LAST;
    r->rest = r->nap - 1;
    r->tries = true;
    return 0;
}

void nb_reach_learn(nb_reach *r, int64_t guessed, int64_t right)
{
    /* What follows the first wrong one was never looked at. */
    r->tried = FORGETS * r->tried + (double)(right < guessed ? right + 1 : right);
    r->right = FORGETS * r->right + (double)right;
    if (right == guessed) /* a try that came true: the next one soon */
        r->nap = 0;
}
