/* The name of a model's content: a SHA-256 that anybody can compute with common tools. */
#ifndef NB_QUANT_WRITE_DIGEST_H
#define NB_QUANT_WRITE_DIGEST_H

#include "base/sha256.h"
#include "base/status.h"

/* Of a file: its SHA-256. Of a folder: that of the lines "HEX  NAME\n", in the order of names, of
 * its files that end in .safetensors, .json or .jinja, but for nibble-report.json and hidden ones;
 * in the folder,
 *
 *   ls | grep -E '.\.(safetensors|json|jinja)$' | grep -v '^nibble-report' | LC_ALL=C sort |
 *       xargs -d '\n' sha256sum | sha256sum
 *
 * Of the first file of a split GGUF, PREFIX-00001-of-00003.gguf: the same of all its files. */
nb_status nb_model_digest(const char *path, char hex[NB_SHA256_HEX], nb_err *err);

#endif
