/* The scales of one matrix as something that can be learned, its codes staying as they are: what
 * the last stage of EfficientQAT trains (E2E-QP, arXiv:2407.11062, section 3.3). A group's values
 * are
 *
 *   scale * (level - zero) + offset,   scale = s0 * (1 + a),   offset = o0 + s0 * b
 *
 * with s0 and o0 those of the start, and offsets only where the format has them. a and b descend by
 * Adam (arXiv:1412.6980, algorithm 1) on the gradient of a loss by the values. They are kept in
 * binary32; the matrix holds what its format makes of them, and values are always those, bit for
 * bit: rounding counts as the identity. */
#ifndef NB_QUANT_ENCODE_SCALES_H
#define NB_QUANT_ENCODE_SCALES_H

#include "base/pool.h"
#include "numeric/grid.h"
#include "store/store.h"

/* `{0}` is empty. */
typedef struct {
    nb_mat *out; /* borrowed: codes, and the scales of the moment */
    nb_grid grid;
    int64_t n_groups;     /* of a row */
    nb_grid_group *first; /* [n_rows][n_groups] */
    float *value;         /* [n_rows][n_cols]: what the matrix stands for */
    float *grad;          /* the same shape: the gradient of the loss by it, filled by the caller */
    void *memory;
} nb_scales;

/* Floats of what is learned of a matrix as planned: of each group, row by row, a, Adam's first
 * moment and the root of the second one, then the same of b where there are offsets. 0: nothing can
 * be learned, because there is no grid, or scales are shared by rows or depend on each other; such
 * a matrix has values, and stays as it is. */
int64_t nb_scales_floats(const nb_weight *to);
/* Bytes that nb_scales_init takes. */
int64_t nb_scales_bytes(int64_t n_rows, int64_t n_cols, int64_t n_groups);

/* Starts from what `out` holds. Frees what `s` held. */
nb_status nb_scales_init(nb_scales *s, nb_mat *out, nb_pool *pool, nb_err *err);
void nb_scales_free(nb_scales *s);

/* Puts what was learned, all 0 at the start, into `out` and the values. A group of scale 0, which
 * no format stores another scale for, stays; what a format cannot store is as at the start. */
void nb_scales_set(nb_scales *s, const float *learned, nb_pool *pool);
/* Step number `step`, from 1, at this rate: changes `learned`, neither `out` nor the values. Where
 * a slope is no finite number of binary32, what is learned stays for this step, its moments, too.
 */
void nb_scales_step(const nb_scales *s, float *learned, int64_t step, double rate, nb_pool *pool);

#endif
