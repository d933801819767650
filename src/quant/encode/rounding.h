/* The rounding of one matrix as something that can be learned (SignRound, arXiv:2309.05516):
 *
 *   value = scale * clip(round(w / scale + V))        V in [-1/2, 1/2], 0 at first
 *
 * with the scale multiplied by a factor in [1/2, 6/5], 1 at first; or, with zero points or
 * minimums, both ends of the range by factors of their own. Both descend by the sign of the
 * gradient of what a loss does with the values. Where levels are not evenly spaced, V counts
 * distances between the two levels around w.
 *
 * Formats whose scales depend on each other (super-blocks) keep those that they begin with. Codes
 * are always taken with the scale as it is stored, so `value` is what the file will mean, bit for
 * bit. */
#ifndef NB_QUANT_ENCODE_ROUNDING_H
#define NB_QUANT_ENCODE_ROUNDING_H

#include "base/pool.h"
#include "numeric/grid.h"

/* `{0}` is empty. */
typedef struct {
    nb_mat *out;
    const float *w; /* [n_rows][n_cols], borrowed */
    nb_grid grid;
    int64_t n_groups; /* of a row */
    float *moved;     /* NULL, or weights of its own: see nb_rounding_resume */
    float *value;     /* what the matrix stands for at the moment */
    float *grad;      /* the gradient of the loss by it, to be filled by the caller */
    float *v;
    uint8_t *code, *kept_code;
    nb_grid_group *group, *first_group, *kept_group; /* [n_rows][n_groups] */
    float *top, *bottom;                             /* factors; bottom where both ends move */
    void *memory;
} nb_rounding;

/* Bytes that nb_rounding_init takes for a matrix of this shape and at most so many groups a row. */
int64_t nb_rounding_bytes(int64_t n_rows, int64_t n_cols, int64_t n_groups);

/* Starts with searched scales and the nearest codes. w is finite; importance [n_cols] of the
 * columns, NULL: all equal. `out` is planned; its scales are written, here and by every step. */
nb_status nb_rounding_init(nb_rounding *r, nb_mat *out, const float *w, const float *importance,
                           nb_pool *pool, nb_err *err);
/* Starts with the codes and scales that `out` holds, from another method: each weight is moved as
 * little as its code asks for, and V counts from there. Takes n_rows * n_cols floats more. */
nb_status nb_rounding_resume(nb_rounding *r, nb_mat *out, const float *w, nb_pool *pool,
                             nb_err *err);
void nb_rounding_free(nb_rounding *r);

/* One step against the sign of r->grad, then the codes and values it leads to. range_rate is for up
 * to 4 levels; with n levels factors move by (4 / n)^2 of it. */
void nb_rounding_step(nb_rounding *r, nb_pool *pool, float rate, float range_rate);
/* Remembers the codes and scales of the moment. */
void nb_rounding_keep(nb_rounding *r);
/* Exchanges those kept with those of the moment. No step follows. */
void nb_rounding_swap(nb_rounding *r, nb_pool *pool);
/* Back to the codes and scales of the start. */
void nb_rounding_restart(nb_rounding *r, nb_pool *pool);
/* Stores the codes and scales of the moment in `out`. */
void nb_rounding_write(nb_rounding *r, nb_pool *pool);

#endif
