/* The parameters of a K-quant's super-block. With minima (nb_super): groups of codes 0 .. top,
 * whose scales and minima are small integers under two F16 numbers. Without (nb_signed): groups of
 * codes on both sides of 0, whose scales are small integers of either sign under one.
 *
 *   nb_super    value = (d * scale[k]) * u - dmin * min[k]
 *   nb_signed   value = (d * scale[k]) * (u + least) */
#ifndef NB_NUMERIC_FIT_SUPER_H
#define NB_NUMERIC_FIT_SUPER_H

#include "numeric/fit.h"

#define NB_SUPER_MAX_GROUPS 16

/* What a format has room for. */
typedef struct {
    int n_groups, group_len;
    int top;           /* of a code */
    int parameter_top; /* of scale and min */
} nb_super_form;

typedef struct {
    float d, dmin; /* >= 0, as F16 has them */
    uint8_t scale[NB_SUPER_MAX_GROUPS], min[NB_SUPER_MAX_GROUPS];
} nb_super;

/* For w [n_groups * group_len]: from the extremes of each group, or by a search for the least sum
 * of importance * error^2 (importance NULL: all 1). */
void nb_super_extremes(nb_super *out, const nb_super_form *form, const float *w);
void nb_super_search(nb_super *out, const nb_super_form *form, const float *w,
                     const float *importance);

typedef struct {
    int n_groups, group_len;
    int least, top; /* u + least is a code, u in 0 .. top; least < 0 < least + top */
    int scale_least, scale_most;
} nb_signed_form;

typedef struct {
    float d; /* of either sign, as F16 has it */
    int8_t scale[NB_SUPER_MAX_GROUPS];
} nb_signed;

/* As above; and a search that is three times faster, and nearly as good. */
void nb_signed_extremes(nb_signed *out, const nb_signed_form *form, const float *w);
void nb_signed_quick(nb_signed *out, const nb_signed_form *form, const float *w);
void nb_signed_search(nb_signed *out, const nb_signed_form *form, const float *w,
                      const float *importance);

#endif
