/* Codes and scales from one format into another, without a float being computed: between the
 * blocks of a GGUF and the three arrays of compressed-tensors. Any format with an integer form is
 * read through it; only what is written has code of its own. */
#ifndef NB_QUANT_WEIGHT_REPACK_H
#define NB_QUANT_WEIGHT_REPACK_H

#include "numeric/format.h"

/* Bytes of scratch that a row of n_cols columns needs. */
size_t nb_repack_scratch_bytes(int64_t n_cols);

/* Writes row r of `to` (q4_0, q8_0, or integers under scales) from row r of `from`, which has the
 * same shape. False, and the row is unspecified, where the two cannot mean the same numbers: a
 * code outside the range, a minimum, a zero point where `to` has none, a scale that `to` would
 * round, or groups of `to` that lie across two of `from`. scratch: aligned for float. */
bool nb_repack_row(nb_mat *to, const nb_mat *from, int64_t r, void *scratch);

#endif
