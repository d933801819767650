/* What affine formats share between their encoder (affine.c) and their grid (affine_grid.c). */
#ifndef NB_NUMERIC_AFFINE_H
#define NB_NUMERIC_AFFINE_H

#include "numeric/grid.h"

/* Stores scale i, and zero point i where the matrix has them, from the extremes of x[0, n). */
void nb_affine_choose(const nb_mat *m, int64_t i, const float *x, int64_t n);

extern const nb_grid_form nb_affine_grid;

#endif
