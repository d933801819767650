/* The bits of GPTQ's tensors (formats.md 2.2, 2.3), and the words of its quantization_config.
 *
 * The codes of one output are one string of bits along the inputs (codebits.h), unsigned, and word
 * w of the string of output n lies at [w, n]: qweight is nb_mat's array of words, transposed. The
 * zero points of one group are such a string along the outputs. Version 1 of the layout stores them
 * less 1, so that it has no place for 0; version 2 stores them as they are. */
#ifndef NB_STORE_GPTQ_H
#define NB_STORE_GPTQ_H

#include "store/qweight.h"

nb_status nb_gptq_parse(nb_qweight_spec *spec, const json_t *config, nb_err *err);
/* `loose`: names of modules that are not quantized though they are linear, lm_head apart. */
json_t *nb_gptq_config(const nb_qweight_spec *spec, bool lm_head, const json_t *loose);

void nb_gptq_read_codes(uint8_t *codes, const uint32_t *words, int64_t n_rows, int64_t n_cols,
                        int bits);
void nb_gptq_write_codes(uint32_t *words, const uint8_t *codes, int64_t n_rows, int64_t n_cols,
                         int bits);
/* zeros [n_rows][n_groups], signed; words [n_groups][n_rows * bits / 32]. `less`: what is stored is
 * the zero point less this, 1 or 0. NB_DATA / NB_UNSUPPORTED where version 1 does not say which
 * zero point is meant, or has no place for it. */
nb_status nb_gptq_read_zeros(int8_t *zeros, const uint32_t *words, int64_t n_rows, int64_t n_groups,
                             int bits, int less, nb_err *err);
nb_status nb_gptq_write_zeros(uint32_t *words, const nb_mat *m, int less, nb_err *err);

#endif
