/* Is this calibration set good? Told before it is used: what its tokens are like, compared with
 * tokens that it does not choose with (its held-out part, or another set); and, layer by layer,
 * whether activations of the two parts are alike. */
#ifndef NB_QUANT_CALIB_SCORE_H
#define NB_QUANT_CALIB_SCORE_H

#include "quant/calib/set.h"
#include "quant/inputs/hessian.h"

#define NB_CALIB_MAX_WORDS 8

/* The choosing part is what is not held out. Shares lie in [0, 1]; NaN where there is nothing to
 * compare with. */
typedef struct {
    int64_t n_tokens, n_held; /* of the choosing part; of the tokens compared with */
    int64_t n_distinct;       /* token ids in the choosing part */
    int64_t vocab_size;
    /* Of the tokens compared with: the share whose id is nowhere in the choosing part. */
    double unseen;
    /* KL(Q || P) in nats of the unigram distributions, P of the choosing part, Q of what it is
     * compared with: (c + 1/2) / (n + V/2) with counts c of n tokens and V ids. */
    double unigram_kl;
    /* Of all runs of 8 tokens inside a sequence of the choosing part: the share of those that occur
     * earlier, too. From about a million runs, chosen by their hash, where there are more. */
    double repeated;
    double most_common; /* share of the most common id */
    int32_t most_common_id;
    double other_script; /* of the bytes of all tokens of the set: share not ASCII */
    int64_t longest_document;
    /* What a user should know, one line each, the gravest first; none: nothing is wrong. */
    char words[NB_CALIB_MAX_WORDS][160];
    int n_words;
} nb_calib_score;

/* `other`: compare with all sequences of this set; NULL: with the held-out ones. The sets were made
 * with this tokenizer. */
nb_status nb_calib_score_set(nb_calib_score *out, const nb_calib_set *set,
                             const nb_calib_set *other, const nb_tokenizer *tokenizer, nb_err *err);

/* How alike the inputs of a layer are in two samples of tokens. */
typedef struct {
    /* Mean over columns of |ln(a / b)|, a and b the mean squares of a column. Columns that are 0 in
     * both count as equal; a column that is 0 in only one is left out and counted below. */
    double log_ratio;
    /* |A / tr A - B / tr B| / |B / tr B|, Frobenius norms of the second moments. NaN: not given. */
    double moments;
    int64_t n_one_sided; /* columns that only one sample saw move */
} nb_calib_coverage;

/* From mean squares a, b [n] (or sums of squares with numbers of tokens n_a, n_b > 0). */
nb_calib_coverage nb_calib_coverage_of_squares(const double *a, int64_t n_a, const double *b,
                                               int64_t n_b, int64_t n);
/* From second moments, sums over n_a and n_b tokens: the diagonals give log_ratio. */
nb_calib_coverage nb_calib_coverage_of_moments(const nb_sym *a, int64_t n_a, const nb_sym *b,
                                               int64_t n_b);

#endif
