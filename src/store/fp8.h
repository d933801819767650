/* FP8 weights at rest (formats.md 4.3 and 5.1): the tensors of a module P are
 *
 *   P.weight            F8_E4M3 or F8_E5M2 [n_rows, n_cols]
 *   P.weight_scale      one for the matrix, [] or [1]; for each row, [n_rows, 1] or [n_rows]; for
 *                       each group of a row; or for each block of rows and columns
 *   P.weight_scale_inv  the same by blocks where quant_method is "fp8": it multiplies, too
 *   P.input_scale       one number, where activations are static
 */
#ifndef NB_STORE_FP8_H
#define NB_STORE_FP8_H

#include "store/compressed_tensors.h"

/* Parses a quantization_config with quant_method "fp8" into a group that stands for all modules,
 * and what it says of the key-value cache. */
nb_status nb_fp8_parse(nb_ct_group *group, nb_kv_scheme *kv, const json_t *config, nb_err *err);

/* Checks dtypes and shapes, and fills in the float-coded fields of the weight, whose n_rows and
 * n_cols are set. */
nb_status nb_fp8_describe(nb_weight *weight, const nb_ct_group *group, const nb_st_tensor *codes,
                          const nb_st_tensor *scale, nb_err *err);

#endif
