/* The bits of AWQ's tensors (version "gemm", formats.md 3.1, 3.2), and the words of its
 * quantization_config.
 *
 * Codes of 4 bits, unsigned; a word holds those of eight outputs for one input, or one group:
 *
 *   bit    31   28 27   24 23   20 19   16 15   12 11    8 7     4 3     0
 *        [  n7   |  n5   |  n3   |  n1   |  n6   |  n4   |  n2   |  n0   ]
 *
 * Zero points are stored as they are. */
#ifndef NB_STORE_AWQ_H
#define NB_STORE_AWQ_H

#include "store/qweight.h"

nb_status nb_awq_parse(nb_qweight_spec *spec, const json_t *config, nb_err *err);
/* `loose`: names of modules that are not quantized though they are linear. */
json_t *nb_awq_config(const nb_qweight_spec *spec, const json_t *loose);

/* words [n_cols][n_rows / 8]; codes as nb_mat has them. n_rows and n_cols are multiples of 8. */
void nb_awq_read_codes(uint8_t *codes, const uint32_t *words, int64_t n_rows, int64_t n_cols);
void nb_awq_write_codes(uint32_t *words, const uint8_t *codes, int64_t n_rows, int64_t n_cols);
/* zeros [n_rows][n_groups], signed; words [n_groups][n_rows / 8]. */
void nb_awq_read_zeros(int8_t *zeros, const uint32_t *words, int64_t n_rows, int64_t n_groups);
/* zeros NULL: all are 0. */
void nb_awq_write_zeros(uint32_t *words, const int8_t *zeros, int64_t n_rows, int64_t n_groups);

#endif
