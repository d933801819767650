/* NF4 weights at rest, as bitsandbytes stores them (formats.md 6.1): the tensors of a module P are
 *
 *   P.weight                   U8  [n_rows * n_cols / 2, 1], the codes of all rows, one behind the
 *                                  other; the first of a pair in the high nibble
 *   P.weight.absmax            F32 [n_groups of the matrix], or U8, the codes of nested scales
 *   P.weight.quant_map         F32 [16], the numbers that codes stand for
 *   P.weight.nested_absmax     F32 [n_groups / 256, rounded up], steps of nested scales
 *   P.weight.nested_quant_map  F32 [256], what codes of nested scales stand for
 *   P.weight.quant_state.bitsandbytes__nf4   U8, JSON: the shape, the group size, the offset
 *
 * Groups are runs of the whole matrix. Only those that end where rows end are read. */
#ifndef NB_STORE_BNB_H
#define NB_STORE_BNB_H

#include "store/safetensors.h"

#define NB_BNB_STATE     "weight.quant_state.bitsandbytes__nf4"
#define NB_BNB_MAX_STATE 4096 /* bytes of the JSON */

/* Checks a quantization_config with quant_method "bitsandbytes". */
nb_status nb_bnb_parse(bool *is_bnb, const json_t *config, nb_err *err);

/* NULL: not in the file. */
typedef struct {
    const nb_st_tensor *codes, *absmax, *steps, *map, *nested_map;
} nb_bnb_parts;

/* Fills in the weight from the text of its state, and checks the parts against it. */
nb_status nb_bnb_describe(nb_weight *weight, float *offset, const char *state, size_t len,
                          const nb_bnb_parts *parts, nb_err *err);

/* ---- writing ---- */

/* The state of a weight, filled up with spaces to nb_bnb_state_bytes, which is known before the
 * offset is. */
int64_t nb_bnb_state_bytes(const nb_weight *w);
nb_status nb_bnb_state(nb_buf *out, const nb_weight *w, float offset, nb_err *err);

/* The quantization_config of a plan whose quantized weights are all NF4; NB_UNSUPPORTED names the
 * first that is not. *out: free with json_decref. */
nb_status nb_bnb_config(json_t **out, const nb_weight *plan, int64_t n_weights, nb_err *err);

#endif
