/* Private to the attention kernels: how they divide nb_attn_args.scratch, and the part of a split
 * (nb_attn_splits_fn). Both are cut at multiples of 16 floats. */
#ifndef NB_KERNEL_ATTN_SCRATCH_H
#define NB_KERNEL_ATTN_SCRATCH_H

#include "kernel/kernel.h"

/* Rows of scores and of queries lie a constant apart, which the tiles' addresses can hold, and one
 * cache line more than they need, so that the rows of a tile do not all fall into the same few sets
 * of the cache. */
#define NB_ATTN_SCORE_STRIDE (NB_KV_SPLIT + 16)
#define NB_ATTN_Q_STRIDE     (NB_ATTN_MAX_DIM + 16)

/* Offsets, in floats. Rows are query heads, NB_ATTN_ROWS of them. */
enum {
    NB_ATTN_AT_SCORES = 0, /* [rows][NB_ATTN_SCORE_STRIDE], of one split */
    /* [rows][NB_ATTN_Q_STRIDE]: q', or its codes in the same room */
    NB_ATTN_AT_Q = NB_ATTN_AT_SCORES + NB_ATTN_ROWS * NB_ATTN_SCORE_STRIDE,
    /* cells of a page's keys or of a cut's values, widened to binary32 */
    NB_ATTN_AT_WIDE = NB_ATTN_AT_Q + NB_ATTN_ROWS * NB_ATTN_Q_STRIDE,
    NB_ATTN_AT_PARTS = NB_ATTN_AT_WIDE + NB_CHUNK_K * NB_KV_PAGE, /* of every split */
};

/* The part of one split. */
typedef struct {
    float *m, *l;       /* [rows] */
    float *o;           /* [rows][row_floats] */
    int64_t row_floats; /* head_dim rounded up to 16; what is past head_dim means nothing */
} nb_attn_part;

static inline nb_attn_part nb_attn_part_of(const nb_attn_args *a, float *parts, int64_t split)
{
    const int64_t n_rows = a->n_q * a->n_group, padded = (n_rows + 15) / 16 * 16;
    float *at = parts + split * nb_attn_part_floats(a);
    return (nb_attn_part){.m = at,
                          .l = at + padded,
                          .o = at + 2 * padded,
                          .row_floats = (a->kv.head_dim + 15) / 16 * 16};
}

#endif
