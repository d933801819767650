/* FP8 scales of the key-value cache in Hugging Face folders (formats.md 4.3 and 5.2): what
 * quantization_config says of the cache, and the tensors that hold static scales. A key is stored
 * as E4M3(x / k_scale), a value as E4M3(x / v_scale).
 *
 * Writers have given these tensors several names. Each is listed as one of
 *
 *   model.layers.N.self_attn.k_scale    also k_proj.k_scale, k_proj.output_scale
 *   model.layers.N.self_attn.v_scale    also v_proj.v_scale, v_proj.output_scale
 *   model.layers.N.self_attn.kv_scale   of keys and values alike
 *
 * and has one number, [] or [1], or one for each KV head, [n_kv_heads, 1, 1]. */
#ifndef NB_STORE_KV_SCHEME_H
#define NB_STORE_KV_SCHEME_H

#include "store/store.h"

/* The kv_cache_scheme of a quantization_config. Where `words` is set, "static" and "dynamic" will
 * do as well as an object, as older files of quant_method "fp8" have it. */
nb_status nb_kv_scheme_parse(nb_kv_scheme *out, const json_t *config, bool words, nb_err *err);

/* What comes after "model.layers.N.self_attn." in the name that a tensor is listed under:
 * "k_scale", "v_scale" or "kv_scale"; NULL: it is no scale of a cache. *prefix is the length of the
 * rest. */
const char *nb_kv_scale_part(const char *name, size_t *prefix);
/* Other names of the same, ending with NULL. */
const char *const *nb_kv_scale_spellings(const char *part);

/* kv_cache_scheme for a folder with these weights: null where none is a scale of the cache. NULL on
 * no memory. */
json_t *nb_kv_scheme_json(const nb_weight *plan, int64_t n_weights);

#endif
