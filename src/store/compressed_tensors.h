/* compressed-tensors (formats.md section 4): what quantization_config says, and which of a folder's
 * modules it says it about. Reading of integer weights of 2, 3, 4 and 8 bits and of FP8; everything
 * else is refused by its name. ct_pack.h knows the bits. */
#ifndef NB_STORE_COMPRESSED_TENSORS_H
#define NB_STORE_COMPRESSED_TENSORS_H

#include "store/ct_group.h"
#include "store/ct_targets.h"
#include "store/safetensors.h"

/* `{0}` is empty: no quantization. Groups live in an arena. */
typedef struct {
    nb_ct_group *groups;
    int64_t n_groups;
    nb_ct_targets targets, ignore;
    nb_kv_scheme kv;
} nb_ct;

/* Parses a quantization_config for a folder of at most n_modules modules (which bounds the work
 * that regular expressions may cause). NB_UNSUPPORTED names what nibble does not read. */
nb_status nb_ct_parse(nb_ct *ct, nb_arena *arena, const json_t *config, int64_t n_modules,
                      nb_err *err);
void nb_ct_free(nb_ct *ct);

/* The group that quantizes a module ("model.layers.0.mlp.up_proj"); *out = NULL when none does, or
 * when it is ignored. Exact names first, then regular expressions, then the class. */
nb_status nb_ct_match(const nb_ct *ct, const char *module, const nb_ct_group **out, nb_err *err);
/* Whether a group names exactly this module, and nothing ignores it. */
nb_status nb_ct_is_named(const nb_ct *ct, const char *module, bool *out, nb_err *err);

/* The tensors of one quantized module; NULL: not in the file. */
typedef struct {
    const nb_st_tensor *codes, *scale, *zero_point;
} nb_ct_parts;

/* F32, F16 or BF16; NB_UNSUPPORTED names the tensor. */
nb_status nb_ct_scale_type(const nb_st_tensor *t, nb_float_type *out, nb_err *err);

/* Checks dtypes and shapes of the parts of an [n_rows, n_cols] matrix against its group, and fills
 * in the affine fields of the weight (fmt, group_size, symmetric, scale_type, act). */
nb_status nb_ct_describe(nb_weight *weight, const nb_ct_group *group, const nb_ct_parts *parts,
                         nb_err *err);

#endif
