/* What a transform has done to a weight that is not held in memory: kept as vectors, and done again
 * to its rows whenever they are read. The same operations in the same order as on a weight that is
 * held, so the same bits: columns are multiplied, then spans clipped, then rows divided. */
#ifndef NB_QUANT_TRANSFORM_CHANGES_H
#define NB_QUANT_TRANSFORM_CHANGES_H

#include "base/pool.h"

/* Clipping to a share of a span's own range: 1 less so many of these steps. */
#define NB_CLIP_STEP 0.05f

/* `{0}`: nothing was done. */
typedef struct {
    float *columns; /* [n_cols]: times these; NULL: no */
    uint8_t *clip;  /* [n_rows][spans of a row]: steps; NULL: no */
    int64_t span_len;
    bool two_sided;  /* both ends of a range count on their own */
    float *divisors; /* [n_rows]; NULL: no */
} nb_changes;

void nb_changes_free(nb_changes *c);
/* Does all of it to rows [row, row + n) of a weight, w [n][n_cols]. */
void nb_changes_apply(const nb_changes *c, nb_pool *pool, float *w, int64_t n_cols, int64_t row,
                      int64_t n);

/* The ends of the range of a span w [n], which 0 belongs to. */
void nb_clip_range(const float *w, int64_t n, bool two_sided, float *lo, float *hi);
/* to [n] = w, no further out than so many steps from the ends; `to` may be w. */
void nb_clip_span(float *to, const float *w, int64_t n, float lo, float hi, int steps);

#endif
