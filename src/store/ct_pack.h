/* The bits of compressed-tensors' packed weights (formats.md 4.4): codes of b = 4 or 8 bits as
 * unsigned offset binary, u = q + 2^(b-1), 32 / b of them in a little-endian word.
 *
 *   codes        along the row:    word w of a row holds columns   w * 32/b ... first one lowest
 *   zero points  along the rows:   word (w, g) holds rows          w * 32/b ... of group g
 *
 * Unused bits of a last word are 0. The functions are inverse to each other. */
#ifndef NB_STORE_CT_PACK_H
#define NB_STORE_CT_PACK_H

#include "base/status.h"

/* Words for n codes. */
int64_t nb_ct_n_words(int64_t n, int bits);

/* 8 bits, in place: n_rows rows of whole words become n_rows * n_cols signed codes. */
void nb_ct_unpack8(uint8_t *codes, int64_t n_rows, int64_t n_cols);
/* One row of 8-bit codes as nb_ct_n_words(n_cols, 8) words. */
void nb_ct_pack8_row(uint8_t *words, const int8_t *codes, int64_t n_cols);

/* 4 bits: the words are nb_mat's own bytes (format.h), except that a file may have set the unused
 * bits, which this clears. */
void nb_ct_clear_padding4(uint8_t *codes, int64_t n_rows, int64_t n_cols);
/* Codes of 4 bits that lie in a byte each, one row, as nb_mat has them. NB_DATA and the column
 * ("code 9 at column 3, not in [-8, 7]") if one needs more bits. */
nb_status nb_ct_pack4_row(uint8_t *out, const int8_t *codes, int64_t n_cols, nb_err *err);

/* zeros[n_rows][n_groups] and words[nb_ct_n_words(n_rows, bits)][n_groups]. */
void nb_ct_unpack_zeros(int8_t *zeros, const uint32_t *words, int64_t n_rows, int64_t n_groups,
                        int bits);
void nb_ct_pack_zeros(uint32_t *words, const int8_t *zeros, int64_t n_rows, int64_t n_groups,
                      int bits);

#endif
