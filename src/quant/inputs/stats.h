/* Gathering what quantizer.h calls the statistics of inputs, a piece of a sequence at a time. */
#ifndef NB_QUANT_INPUTS_STATS_H
#define NB_QUANT_INPUTS_STATS_H

#include "quant/encode/quantizer.h"

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
