/* safetensors files for tests, made by hand so that they can be wrong in every way. */
#ifndef NB_TESTS_ST_BYTES_H
#define NB_TESTS_ST_BYTES_H

#include <stddef.h>
#include <stdint.h>

/* Writes scratch file `name`: the length of `header`, the header as it is, and n bytes of data
 * (zeros when data is NULL). */
void st_write(const char *name, const char *header, const void *data, size_t n);
/* The same with a header that may hold zeros, and any length announced. */
void st_write_raw(const char *name, uint64_t announced, const char *header, size_t header_len,
                  const void *data, size_t n);

#endif
