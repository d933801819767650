/* Inside Hugging Face folders: what opening one (hf.c) leaves for reading its weights (hf_read.c).
 */
#ifndef NB_STORE_HF_H
#define NB_STORE_HF_H

#include "store/compressed_tensors.h"
#include "store/container.h"
#include "store/qweight.h"

/* A tensor and the file it is in; {NULL, NULL}: not there. */
typedef struct {
    const nb_safetensors *file;
    const nb_st_tensor *tensor;
} nb_located;

/* How weight i is read. */
typedef struct {
    const nb_ct_group *group; /* compressed-tensors; NULL: not */
    const nb_weight
        *turned; /* GPTQ and AWQ: what the codes are; NULL: not. Neither: plain numbers */
    nb_located codes, scale, zero_point, order;
    bool floats;         /* FP8 and NF4 (hf_floats.c) */
    bool hqq;            /* hf_hqq.c */
    nb_located steps;    /* nested scales of NF4: their steps, */
    float nested_offset; /* and what is added */
} nb_hf_recipe;

typedef struct {
    nb_safetensors *files;
    int64_t n_files;
    nb_located *tensors; /* of all files, in file order */
    nb_name *names;      /* sorted; values are indexes into tensors */
    bool *used;          /* which tensors belong to a weight */
    int64_t n_tensors;
    nb_ct ct;
    nb_qweight_spec qweight;
    nb_ct_group fp8;       /* quant_method "fp8": all modules; without a name: not */
    bool is_bitsandbytes;  /* quant_method "bitsandbytes" */
    bool is_hqq;           /* quant_method "hqq" */
    nb_hf_recipe *recipes; /* one a weight */
} nb_hf_state;

/* Finds a part of a module, and marks it as used; out->tensor is NULL when there is none. */
nb_status nb_hf_find_part(nb_store *store, nb_located *out, const char *module, const char *part,
                          nb_err *err);

/* Whether a tensor holds float codes: FP8, or the U8 of bitsandbytes. */
bool nb_hf_is_floats(const nb_hf_state *hf, const nb_st_tensor *t);
/* The weight of float codes whose P.weight is at `at`, the next one of the store. */
nb_status nb_hf_add_floats(nb_store *store, nb_located at, const char *module, nb_err *err);
/* Where activations are static, their scale, which a weight's module P has as P.input_scale. It is
 * data, but it decides how the weight is computed. */
nb_status nb_hf_read_input_scale(nb_store *store, nb_weight *w, const char *module, nb_err *err);
nb_status nb_hf_read_floats(const nb_hf_recipe *r, const nb_weight *w, nb_loaded *out, nb_err *err);

/* The weight of HQQ whose P.W_q is at `at`, the next one of the store. */
nb_status nb_hf_add_hqq(nb_store *store, nb_located at, const char *module, nb_err *err);
nb_status nb_hf_read_hqq(const nb_hf_recipe *r, const nb_weight *w, nb_loaded *out, nb_err *err);

/* hf_kv.c: whether the folder may have static scales of the key-value cache; and the one at `at`,
 * whose name nb_kv_scale_part knows, as the next weight of the store. */
bool nb_hf_has_kv_scales(const nb_store *store);
nb_status nb_hf_add_kv_scale(nb_store *store, nb_located at, nb_err *err);

/* Reads weight i (nb_container). */
nb_status nb_hf_read(nb_store *store, int64_t i, nb_loaded *out, nb_err *err);
/* Where its rows are (nb_container). */
const nb_file *nb_hf_rows_at(const nb_store *store, int64_t i, int64_t *at);

#endif
