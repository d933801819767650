/* The statistics of inputs that methods ask for, gathered a piece of a sequence at a time. */
#ifndef NB_QUANT_INPUTS_STATS_H
#define NB_QUANT_INPUTS_STATS_H

#include "quant/inputs/hessian.h"
#include "quant/inputs/range.h"

/* What calibration has to gather before a method can choose: a mask. */
typedef enum {
    NB_STAT_NONE = 0,
    NB_STAT_HESSIAN = 1,   /* sum of x x^T */
    NB_STAT_HELD_OUT = 2,  /* of all that is asked for, a second copy from held-out sequences */
    NB_STAT_CROSS = 4,     /* sum of x0 x^T, x0 what the full-precision model has in place of x */
    NB_STAT_MAGNITUDE = 8, /* mean and largest |x|, mean x^2 */
    NB_STAT_SAMPLE = 16,   /* some rows x themselves */
    NB_STAT_BLOCK = 32,    /* inputs and full-precision outputs of the whole block (tune_block) */
    NB_STAT_COVERAGE = 64, /* for the report: sums of x^2 of held-out tokens, and of the others */
    NB_STAT_RANGE = 128,   /* the values themselves, for static scales of activations */
} nb_stat;

/* The statistics of one group's inputs. What was not asked for is empty; h and held_h may rest
 * where there are no cross sums (nb_sym_rest). Sums run over the tokens of the calibration set in
 * order, pieces as nb_sym_add_rows has them, sequence by sequence. */
typedef struct {
    int64_t n_cols;
    nb_sym h;        /* of the tokens that choose codes */
    double *cross;   /* [n_cols][n_cols]: row of x0, column of x; NULL: none */
    nb_sym held_h;   /* of held-out tokens; empty when there are none */
    bool held_later; /* held_h is summed in a pass of its own, because both have no room */
    double *held_cross;
    int64_t n_tokens, n_held;
    double *mean_abs, *mean_square; /* [n_cols], over n_tokens + n_held */
    float *max_abs;
    float *sample; /* [n_sample][n_cols] */
    int64_t n_sample, n_expected;
    /* With NB_STAT_COVERAGE, [n_cols], where the above does not say it: sums of x^2 of all tokens,
     * and of those held out, which are n_seen_held. */
    double *square, *held_square;
    int64_t n_seen_held;
    nb_input_range *range; /* of all tokens; NULL: none */
    float *weighted;       /* scratch of sums in which tokens have weights */
} nb_input_stats;

#define NB_SAMPLE_ROWS 512

/* Bytes that statistics of such inputs take. */
int64_t nb_input_stats_bytes(int64_t n_cols, unsigned needs);
/* Bytes that weights take besides, with or without cross sums. */
int64_t nb_input_stats_weighted_bytes(int64_t n_cols, unsigned needs);
/* Empty sums for `needs`, a mask of nb_stat. n_expected tokens will come, those held out included:
 * the sample is spread over them evenly. */
nb_status nb_input_stats_init(nb_input_stats *s, int64_t n_cols, unsigned needs, int64_t n_expected,
                              nb_err *err);
void nb_input_stats_free(nb_input_stats *s);

/* Rows of inputs x [n_rows][n_cols], and x0 of the full-precision model (NULL unless asked for).
 * Rows start at a multiple of 128 of their sequence; sequences come in order.
 *
 * `weights` [n_rows], at least 0 and of mean 1 over all rows that will come, say how much each
 * token counts; NULL: all alike. H and cross are then sums of w x x^T, made of rows times sqrt(w)
 * rounded to binary32, and mean_abs and mean_square means of w |x| and w x^2; maxima, ranges and
 * the sample are as without. */
nb_status nb_input_stats_add(nb_input_stats *s, nb_algebra *la, const float *x, const float *x0,
                             const float *weights, int64_t n_rows, bool held_out, nb_err *err);
/* With held_later, once the others are through and held_h has been made: sums of second moments of
 * held-out rows, the same rows in the same pieces. */
nb_status nb_input_stats_add_held(nb_input_stats *s, nb_algebra *la, const float *x,
                                  const float *weights, int64_t n_rows, nb_err *err);
/* Without held-out sequences there is nothing to choose by: their sums are dropped. Sums of
 * magnitudes become means. Call once, after the last rows. */
void nb_input_stats_finish(nb_input_stats *s);

#endif
