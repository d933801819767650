/* Observers: from the values that a tensor takes over many tokens to the one range that static
 * quantization gives it, and from the range to scale and zero point.
 *
 * Gathered are least and greatest value, a moving average of the two, and a histogram. Each way to
 * choose a range [lo, hi] is then a function of these, so one pass serves all of them.
 *
 * minmax: lo is the least value, hi the greatest.
 *
 * average (B. Jacob et al., arXiv:1712.05877, 3.1): lo and hi are moving averages of the least and
 *    the greatest value of a batch. The first batch sets them, each later one moves them by
 *    `momentum` of the difference. What a batch is, and their order, is the caller's
 *    (nb_observer_end_batch); nothing else here depends on order.
 *
 * percentile (H. Wu et al., arXiv:2004.09602): of n values, k = ceil(p n) are to be inside.
 *    Symmetric: hi = -lo is the upper edge of the bin that holds the k-th smallest |x|. Asymmetric:
 *    hi is the upper edge of the bin that holds the k-th smallest x, lo the lower edge of the bin
 *    that holds the k-th greatest. Neither goes beyond the least or the greatest value.
 *
 * entropy, also called KL (S. Migacz, 8-bit inference with TensorRT, GTC 2017): hi = -lo is the
 *    upper edge of the first i bins of |x|, for the i of least KL(P || Q). Tried are all i from 128
 *    to the number of bins in use; the smallest wins ties. P is the counts of these i bins, with
 *    those of all bins above added to the last. Q is the counts of these i bins without the rest,
 *    merged to 128 levels: level l has the bins from floor(l i / 128) up to, but not including,
 *    floor((l + 1) i / 128), and each level's count is spread evenly over those of its bins that
 *    are not empty. Both are normalised. Where P has something and Q nothing, the divergence is
 *    infinite. The edge is at most the greatest |x|.
 *
 * mse (M. Nagel et al., arXiv:2106.08295, 3.1): of the ranges (j / 100) [least, greatest], with j
 *    from 100 down to 1, the one of least squared error: the sum over bins of
 *    count (centre - quantized centre)^2, with the codes that are asked for. The first wins ties.
 *    For symmetric codes both ends are the greatest |x|.
 *
 * The histogram has 2,048 bins for each sign of width 2^k / 2048, where 2^k is the least power of
 * two above every |x|: when a greater value comes, the range doubles and pairs of bins become one.
 * Bin borders stay where they were, so the histogram depends neither on order nor on how the values
 * were cut into calls, and merging two observers is exact. */
#ifndef NB_NUMERIC_OBSERVER_H
#define NB_NUMERIC_OBSERVER_H

#include "base/status.h"

#define NB_OBSERVER_BINS   2048
#define NB_OBSERVER_LEVELS 128 /* of the entropy observer */

/* `{0}` is an observer that saw nothing. 32 KiB. */
typedef struct {
    bool no_histogram; /* set it before the first value: minmax and average need none */
    double momentum;   /* of the average, in (0, 1]; 0: 0.01 */
    int64_t n;         /* values seen */
    float least, greatest;
    int64_t n_batches;
    bool batch_open;
    float batch_least, batch_greatest;
    double average_least, average_greatest;
    int exponent;                       /* k above */
    bool has_exponent;                  /* false: no value but 0 so far */
    int64_t positive[NB_OBSERVER_BINS]; /* x >= 0 */
    int64_t negative[NB_OBSERVER_BINS]; /* by |x| */
} nb_observer;

/* Takes values x[0, n). NB_DATA for NaN and infinities ("value 17 is not finite"); then the
 * observer is as it was. */
nb_status nb_observer_add(nb_observer *o, const float *x, int64_t n, nb_err *err);
/* What was added since the last call is a batch; nothing if there was nothing. */
void nb_observer_end_batch(nb_observer *o);
/* As if `to` had seen the values of `from`, too. Averages are not merged: `from` has none of its
 * own (n_batches is 0), and its values belong to the batch that is open. */
void nb_observer_merge(nb_observer *to, const nb_observer *from);

/* What the values will be coded as. */
typedef enum {
    NB_RANGE_INT8,      /* symmetric, -127 to 127 */
    NB_RANGE_INT8_ASYM, /* -128 to 127 with a zero point */
    NB_RANGE_INT4,      /* symmetric, -7 to 7 */
    NB_RANGE_E4M3,      /* up to 448 */
    NB_RANGE_E5M2,      /* up to 57,344 */
} nb_range_codes;

typedef enum {
    NB_OBSERVE_MINMAX,
    NB_OBSERVE_AVERAGE,
    NB_OBSERVE_PERCENTILE,
    NB_OBSERVE_ENTROPY,
    NB_OBSERVE_MSE,
} nb_observer_kind;
/* "minmax", "average", "percentile", "entropy", "mse", ending with NULL: places are those above. */
extern const char *const nb_observer_names[];

typedef struct {
    float lo, hi; /* lo <= hi */
} nb_value_range;

/* The range of what was seen; {0, 0} when that is nothing. `percentile` is p in percent, in
 * (0, 100]; 0: 99.99. Entropy, and every kind for symmetric codes, gives lo = -hi. */
nb_value_range nb_observer_range(const nb_observer *o, nb_observer_kind kind, nb_range_codes codes,
                                 double percentile);

/* value = scale * (code - zero). With a = the greatest |lo|, |hi|:
 *
 *   int8, int4   scale = a / 127, a / 7
 *   int8 asym    the range is made to hold 0; scale = (hi - lo) / 255,
 *                zero = -128 - lo / scale, rounded to the nearest even and clamped to [-128, 127]
 *   e4m3, e5m2   scale = a / 448, a / 57344
 *
 * Where a < 2^-100, as for dynamic scales: there all codes are 0 anyway, but a file's readers may
 * divide by its scales, so the scale is 1. */
void nb_range_scale(nb_value_range range, nb_range_codes codes, float *scale, int *zero);

/* The value that x is coded as (saturating, ties to even); for tests and for the search. */
double nb_range_quantize(double x, nb_range_codes codes, float scale, int zero);

#endif
