/* Memory for large arrays that are read as streams and die together: the packed weights of a model.
 * Arrays lie one behind the other in blocks that the system may back with huge pages. Matrices of a
 * small model in pages of 4 KiB cost a sixth of its decode speed in address translations. */
#ifndef NB_BASE_SLAB_H
#define NB_BASE_SLAB_H

#include "base/alloc.h"

typedef struct nb_slab_block nb_slab_block;

/* `{0}` is a valid empty slab. Blocks are resident only where they were touched. */
typedef struct {
    nb_slab_block *head;
} nb_slab;

/* `count` zeroed elements, aligned to a cache line. NB_MEMORY. */
nb_status nb_slab_alloc(nb_slab *slab, void **out, size_t count, size_t size, nb_err *err);
void nb_slab_free(nb_slab *slab);

#endif
