/* What affine formats share between their encoder (affine.c) and their grid (affine_grid.c). */
#ifndef NB_NUMERIC_AFFINE_H
#define NB_NUMERIC_AFFINE_H

#include "numeric/grid.h"

/* Stores scale i, and zero point i where the matrix has them, from the extremes of x[0, n). */
void nb_affine_choose(const nb_mat *m, int64_t i, const float *x, int64_t n);

/* ---- float zero points (affine_float.c) ---- */

/* Stores scale and zero point i from the extremes of x[0, n). */
void nb_affine_float_choose(const nb_mat *m, int64_t i, const float *x, int64_t n);
/* Stores a scale and the zero point that comes nearest to an offset (grid.h) under it. False, with
 * nothing stored, where the type holds no such numbers. */
bool nb_affine_float_put(const nb_mat *m, int64_t i, double scale, double offset);
/* What zero point i, as stored, adds to scale * u: fl(-scale * zero). */
float nb_affine_float_offset(const nb_mat *m, int64_t i);
/* y[0, n) = values of codes of group i, which count from -2^(bits - 1). */
void nb_affine_float_values(const nb_mat *m, int64_t i, const int8_t *code, int64_t n, float *y);

extern const nb_grid_form nb_affine_grid;

#endif
