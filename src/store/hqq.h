/* Weights as HQQ lays them out (formats.md 7), in the folders that transformers and vLLM read: a
 * module P has
 *
 *   P.W_q     codes, in a layout of their own, below
 *   P.scale   F16, BF16 or F32 [n, 1], n the groups of all rows, one row behind the other
 *   P.zero    the same type and shape: value = scale * (u - zero), u >= 0 the code
 *   P.shape   [2], P.nbits, P.group_size, P.axis   integers, each a tensor
 *
 * and a dozen more that repeat or choose nothing, but without which its readers load no module:
 * flags, and names of types as text.
 *
 * Codes are [n, group_size], a group to a row. Those rows are cut into as many runs of equal length
 * as a word has places; words hold the codes of one place in each run, the first one's in the
 * highest bits:
 *
 *   nbits 8  U8  [n, g]      4  U8 [n / 2, g]   bit    7        4 3        0
 *         2  U8  [n / 4, g]                          [ row r    | row r+n/2 ]
 *         3  I32 [ceil(n / 10), g], ten runs of ceil(n / 10), the last one filled up with zeros
 *
 * 5 and 6 bits are stored as 8. Groups along the outputs (axis 0), scales in codes and codes viewed
 * as floats are not read. */
#ifndef NB_STORE_HQQ_H
#define NB_STORE_HQQ_H

#include "base/json.h"
#include "store/safetensors.h"

/* Parts that are looked for by name beside P.W_q. */
bool nb_hqq_is_part(const char *suffix);
/* Suffixes of all of them, ending with NULL. */
extern const char *const nb_hqq_parts[];

/* What the file says of a module. */
typedef struct {
    const nb_st_tensor *codes, *scale, *zero; /* NULL: not there */
    int64_t shape[2], nbits, group_size, axis;
} nb_hqq_module;

/* Checks dtypes and shapes of the parts against what the others say, and fills in the weight. */
nb_status nb_hqq_describe(nb_weight *weight, const nb_hqq_module *module, nb_err *err);

/* ---- from the bytes of W_q to nb_mat and back ---- */

/* Fills m->codes, whose room is that of m. */
void nb_hqq_read_codes(nb_mat *m, const void *words);
/* `words` has the bytes of the planned W_q. */
void nb_hqq_write_codes(void *words, const nb_mat *m);

/* ---- planning to write ---- */

typedef enum { NB_HQQ_CODES, NB_HQQ_SCALE, NB_HQQ_ZERO, NB_HQQ_SHAPE, NB_HQQ_WORD } nb_hqq_kind;
typedef struct {
    nb_hqq_kind kind;
    const char *suffix; /* ".W_q" */
    nb_st_dtype dtype;
    int n_dims;
    int64_t dims[2];
    int64_t number;   /* of a NB_HQQ_WORD, or: */
    const char *text; /* NULL: a number */
} nb_hqq_part;

#define NB_HQQ_N_PARTS 19
/* NB_UNSUPPORTED says why the layout cannot hold this weight. */
nb_status nb_hqq_plan(nb_hqq_part parts[NB_HQQ_N_PARTS], const nb_weight *w, nb_err *err);
/* Bytes of all parts of a weight with float zero points. */
int64_t nb_hqq_bytes(const nb_weight *w);
/* Of these, those that say how the others are to be read. */
int64_t nb_hqq_words_bytes(const nb_weight *w);

/* The quantization_config of a plan whose quantized weights all have float zero points;
 * NB_UNSUPPORTED names the first that is another. *out: free with json_decref. */
nb_status nb_hqq_config(json_t **out, const nb_weight *plan, int64_t n_weights, nb_err *err);

#endif
