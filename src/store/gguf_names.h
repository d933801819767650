/* The names GGUF uses: of tensors, against Hugging Face's (formats.md 8.5), and of ggml's types.
 * Pure functions of text. */
#ifndef NB_STORE_GGUF_NAMES_H
#define NB_STORE_GGUF_NAMES_H

#include "base/status.h"

/* ggml's limit, with the terminating zero. */
#define NB_GGUF_NAME_MAX 64
/* Holds every translation of a name that GGUF allows. */
#define NB_HF_NAME_MAX 128

/* Writes the Hugging Face name of a tensor of architecture `arch` ("llama", "qwen2", ...). A name
 * that the table does not know is copied, and the result is false. Two names never become the
 * same one unless one of them was copied. `name` is shorter than NB_GGUF_NAME_MAX. */
bool nb_gguf_name_to_hf(const char *arch, const char *name, char out[NB_HF_NAME_MAX]);

/* The inverse. NB_UNSUPPORTED when the result would be too long for GGUF. */
nb_status nb_gguf_name_from_hf(const char *arch, const char *name, char out[NB_GGUF_NAME_MAX],
                               nb_err *err);

/* The layer of "blk.LAYER.rest", and `rest` in *rest; -1 (and NULL) for any other name. */
int64_t nb_gguf_name_layer(const char *name, const char **rest);

/* NB_DATA unless name[0, len) is 1 to 63 bytes of printable ASCII without spaces. */
nb_status nb_gguf_check_name(const char *name, size_t len, nb_err *err);

/* "Q4_0" for 2; NULL for ids that ggml does not have, or has no more. */
const char *nb_gguf_type_name(int64_t ggml_type);

#endif
