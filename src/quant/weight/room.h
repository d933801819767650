/* Room in memory for a weight that is being made. */
#ifndef NB_QUANT_WEIGHT_ROOM_H
#define NB_QUANT_WEIGHT_ROOM_H

#include "store/store.h"

/* A buffer of at least n bytes; what it held is lost, so that two large ones never meet. */
nb_status nb_room_reserve(nb_buf *b, size_t n, nb_err *err);
/* made->mat: a matrix as planned, its arrays in the buffers of `made`, which are reused. */
nb_status nb_room_for(nb_loaded *made, const nb_weight *to, nb_err *err);

#endif
