/* The bits of compressed-tensors' packed weights (formats.md 4.4): codes of b = 2, 3, 4 or 8 bits
 * as unsigned offset binary, u = q + 2^(b-1), one behind the other in little-endian words.
 *
 *   codes        along the row:    code of column k at bit k * b of the row's words
 *   zero points  along the rows:   that of row r and group g at bit r * b of words (0, g), (1, g)
 * ...
 *
 * Codes of 3 bits may lie in two words. (Files of older programs start each word anew there, ten
 * codes to a word: they need more words, and are refused by their shape.) Unused bits of a last
 * word are 0. The functions are inverse to each other. */
#ifndef NB_STORE_CT_PACK_H
#define NB_STORE_CT_PACK_H

#include "base/status.h"

/* Words for n codes. */
int64_t nb_ct_n_words(int64_t n, int bits);

/* 8 bits, in place: n_rows rows of whole words become n_rows * n_cols signed codes. */
void nb_ct_unpack8(uint8_t *codes, int64_t n_rows, int64_t n_cols);
/* One row of 8-bit codes as nb_ct_n_words(n_cols, 8) words. */
void nb_ct_pack8_row(uint8_t *words, const int8_t *codes, int64_t n_cols);

/* Fewer bits: the words are nb_mat's own bytes (format.h), except that a file may have set the
 * unused bits, which this clears. */
void nb_ct_clear_padding(uint8_t *codes, int64_t n_rows, int64_t n_cols, int bits);
/* Codes of fewer bits that lie in a byte each, one row, as nb_mat has them. NB_DATA and the column
 * ("code 9 at column 3, not in [-8, 7]") if one needs more bits. */
nb_status nb_ct_pack_row(uint8_t *out, const int8_t *codes, int64_t n_cols, int bits, nb_err *err);

/* zeros[n_rows][n_groups] and words[nb_ct_n_words(n_rows, bits)][n_groups]. */
void nb_ct_unpack_zeros(int8_t *zeros, const uint32_t *words, int64_t n_rows, int64_t n_groups,
                        int bits);
void nb_ct_pack_zeros(uint32_t *words, const int8_t *zeros, int64_t n_rows, int64_t n_groups,
                      int bits);

#endif
