/* Ways to a new weight: each takes `to`, a copy of the source's weight, and makes it what will be
 * written; *how says how it gets there, and stays as it was where nothing changes. */
#ifndef NB_QUANT_PLAN_WEIGHT_H
#define NB_QUANT_PLAN_WEIGHT_H

#include "quant/plan/plan.h"

/* Floats. */
void nb_planned_plain(nb_weight *to, nb_how *how, const nb_format *fmt);

/* Codes of a scheme, group_size columns to a scale or NB_GROUP_CHANNEL: integers, or floats of few
 * bits and NF4. */
void nb_planned_affine(nb_weight *to, nb_how *how, const nb_scheme *scheme, int64_t group_size,
                       nb_float_type scale_type);
void nb_planned_float_coded(nb_weight *to, nb_how *how, const nb_scheme *scheme, int64_t group_size,
                            nb_float_type main_type);

/* The affine form of symmetric blocks: codes and scales are the same numbers. False where there is
 * none. */
bool nb_planned_affine_of_block(nb_weight *to, nb_how *how);
/* And back: a group of several blocks repeats its scale. What has no such form is refused, or with
 * `requantize` gets new codes. */
nb_status nb_planned_block_of_affine(nb_weight *to, nb_how *how, bool requantize, nb_err *err);

#endif
