/* See slab.h. */
#include "base/slab.h"

#define BLOCK_BYTES ((size_t)64 << 20)

struct nb_slab_block {
    nb_slab_block *next;
    size_t used, size; /* of bytes */
    _Alignas(NB_CACHE_LINE) uint8_t bytes[];
};

nb_status nb_slab_alloc(nb_slab *slab, void **out, size_t count, size_t size, nb_err *err)
{
    *out = NULL;
    size_t bytes, whole;
    if (!nb_mul_size(count, size, &bytes) ||
        !nb_add_size(bytes, sizeof(nb_slab_block) + BLOCK_BYTES, &whole))
        return nb_fail(err, NB_MEMORY, "%zu elements of %zu bytes do not fit in memory", count,
                       size);
    bytes = (bytes + NB_CACHE_LINE - 1) / NB_CACHE_LINE * NB_CACHE_LINE;
    nb_slab_block *block = slab->head;
    if (block == NULL || block->size - block->used < bytes) {
        const size_t room = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        NB_TRY(nb_alloc((void **)&block, 1, sizeof *block + room, err));
        block->size = room;
        block->next = slab->head;
        slab->head = block;
    }
    *out = block->bytes + block->used;
    block->used += bytes;
    return NB_OK;
}

void nb_slab_free(nb_slab *slab)
{
    while (slab->head != NULL) {
        nb_slab_block *next = slab->head->next;
        nb_free(slab->head);
        slab->head = next;
    }
}
