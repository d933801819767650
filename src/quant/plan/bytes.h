/* How many bytes a weight will take, before it is made. */
#ifndef NB_QUANT_PLAN_BYTES_H
#define NB_QUANT_PLAN_BYTES_H

#include "store/store.h"

/* As the reader of the file will count them (nb_weight): everything that belongs to the weight,
 * whose format, groups and layout are set. */
int64_t nb_planned_bytes(const nb_weight *w);
/* Of these, codes, scales and zero points: what bits per weight count. */
int64_t nb_weight_payload(const nb_weight *w);

#endif
