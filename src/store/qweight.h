/* Weights as GPTQ and AWQ lay them out (formats.md sections 2 and 3): a module P of a folder has
 *
 *   P.qweight  I32    codes, packed along the inputs (GPTQ) or the outputs (AWQ)
 *   P.qzeros   I32    [n_groups, ...], zero points packed along the outputs
 *   P.scales   F16    [n_groups, n_rows]
 *   P.g_idx    I32    [n_cols], GPTQ only: the group of each column
 *
 * so everything lies transposed to nb_mat. All modules of a folder share one description, which is
 * the quantization_config. gptq.h and awq.h know the bits and the words of the config; here is what
 * the two have in common. */
#ifndef NB_STORE_QWEIGHT_H
#define NB_STORE_QWEIGHT_H

#include "base/json.h"
#include "store/safetensors.h"

/* What a quantization_config says of all its modules. */
typedef struct {
    nb_layout layout; /* NB_LAYOUT_CT: none of these */
    int bits;
    int64_t group_size; /* -1: one scale a row */
    bool symmetric;     /* every zero point is that of the code 0 */
    bool reorders;      /* "desc_act": columns may belong to groups in any order */
} nb_qweight_spec;

static inline bool nb_qweight_is(nb_layout layout)
{
    return layout == NB_LAYOUT_GPTQ || layout == NB_LAYOUT_GPTQ_V2 || layout == NB_LAYOUT_AWQ;
}

/* The tensors of one module; NULL: not in the file. */
typedef struct {
    const nb_st_tensor *qweight, *qzeros, *scales, *g_idx;
} nb_qweight_parts;

/* Parses a quantization_config with quant_method "gptq" or "awq". */
nb_status nb_qweight_parse(nb_qweight_spec *spec, const json_t *config, nb_err *err);

/* Checks dtypes and shapes of the parts against the description and each other, and fills in the
 * weight: shape, bytes, and the affine fields. */
nb_status nb_qweight_describe(nb_weight *weight, const nb_qweight_spec *spec,
                              const nb_qweight_parts *parts, nb_err *err);

/* Checks the values of g_idx. *in_order: column k belongs to group k / group_size, for all k. */
nb_status nb_qweight_check_order(const nb_weight *w, const int32_t *g_idx, bool *in_order,
                                 nb_err *err);

/* ---- from the bytes of the parts to nb_mat and back ---- */

/* zeros [n_rows][n_groups]; `name` is that of the tensor. */
nb_status nb_qweight_read_zeros(int8_t *zeros, const nb_weight *w, const char *name,
                                const uint32_t *words, nb_err *err);
nb_status nb_qweight_write_zeros(uint32_t *words, const nb_weight *w, const nb_mat *m, nb_err *err);
/* Codes as nb_mat has them: rows of nb_format_row_bytes. */
void nb_qweight_read_codes(uint8_t *codes, const nb_weight *w, const uint32_t *words);
void nb_qweight_write_codes(uint32_t *words, const nb_weight *w, const nb_mat *m);
/* out[c][r] = in[r][c], elements of `size` 2 or 4 bytes. */
void nb_qweight_turn(void *out, const void *in, int64_t n_rows, int64_t n_cols, size_t size);

/* ---- planning to write ---- */

/* The tensor of a part and its shape; n_parts of them, largest elements first. */
#define NB_QWEIGHT_MAX_PARTS 4
typedef enum {
    NB_QWEIGHT_CODES,
    NB_QWEIGHT_ZEROS,
    NB_QWEIGHT_ORDER,
    NB_QWEIGHT_SCALES
} nb_qweight_kind;
typedef struct {
    nb_qweight_kind kind;
    const char *suffix; /* ".qweight" */
    nb_st_dtype dtype;
    int n_dims;
    int64_t dims[2];
} nb_qweight_part;

/* NB_UNSUPPORTED says why the layout cannot hold this weight. */
nb_status nb_qweight_plan(nb_qweight_part parts[NB_QWEIGHT_MAX_PARTS], int *n_parts,
                          const nb_weight *w, nb_err *err);

/* The description that all quantized weights of a plan share. NB_UNSUPPORTED names the first that
 * is another. *out: free with json_decref. */
nb_status nb_qweight_config(json_t **out, const nb_weight *plan, int64_t n_weights, nb_err *err);

#endif
