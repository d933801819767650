/* What a file that is no model nibble reads seems to be, from its first bytes. */
#ifndef NB_STORE_SNIFF_H
#define NB_STORE_SNIFF_H

#include <stddef.h>
#include <stdint.h>

#define NB_SNIFF_BYTES 64

/* "a ZIP archive (...)"; NULL when nothing is recognised. (safetensors have no magic number.) */
const char *nb_sniff(const uint8_t *bytes, size_t n);

#endif
