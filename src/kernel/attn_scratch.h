/* Private to the attention kernels: how they divide nb_attn_args.scratch. */
#ifndef NB_KERNEL_ATTN_SCRATCH_H
#define NB_KERNEL_ATTN_SCRATCH_H

#include "kernel/kernel.h"

/* A row of scores has room for a split, and one cache line more, so that the rows of a tile do
 * not all fall into the same few sets of the cache. */
#define NB_ATTN_SCORE_STRIDE (NB_KV_SPLIT + 16)

/* Offsets, in floats. Rows are query heads, NB_ATTN_ROWS of them. */
typedef struct {
    int64_t scores; /* [rows][NB_ATTN_SCORE_STRIDE], of one split */
    int64_t q;      /* [head_dim][rows]: the scaled queries, transposed */
    int64_t chain;  /* [rows][head_dim]: a chain of A2 over values */
    int64_t m, l;   /* [splits][rows] */
    int64_t o;      /* [splits][rows][head_dim] */
    int64_t total;
} nb_attn_room;

static inline nb_attn_room nb_attn_scratch(int head_dim, int64_t n_positions)
{
    const int64_t rows = NB_ATTN_ROWS, dim = head_dim;
    const int64_t n_splits = (n_positions + NB_KV_SPLIT - 1) / NB_KV_SPLIT;
    nb_attn_room room = {.scores = 0};
    room.q = room.scores + rows * NB_ATTN_SCORE_STRIDE;
    room.chain = room.q + dim * rows;
    room.m = room.chain + rows * dim;
    room.l = room.m + n_splits * rows;
    room.o = room.l + n_splits * rows;
    room.total = room.o + n_splits * rows * dim;
    return room;
}

#endif
