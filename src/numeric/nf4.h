/* What nf4 and its readers and writers share: the tables of bitsandbytes (formats.md 1.4, 6.1). */
#ifndef NB_NUMERIC_NF4_H
#define NB_NUMERIC_NF4_H

#include "numeric/format.h"

#define NB_NF4_GROUP 64 /* columns under a scale, unless said otherwise */

/* Quantiles of the normal distribution, scaled to [-1, 1] (arXiv:2305.14314, appendix E). */
extern const float nb_nf4_levels[16];
/* What the codes of nested scales stand for: bitsandbytes' signed dynamic map, ascending. */
extern const float nb_nf4_map[256];

/* Scales [0, n) as the nested codes mean them. */
void nb_nf4_unnest(const nb_nested *nested, float *scales, int64_t n);

#endif
