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
    nb_hf_recipe *recipes; /* one a weight */
} nb_hf_state;

/* Reads weight i (nb_container). */
nb_status nb_hf_read(nb_store *store, int64_t i, nb_loaded *out, nb_err *err);

#endif
