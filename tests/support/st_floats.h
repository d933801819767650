/* Values of a tensor in a folder's model.safetensors, taken out and put back changed: for models
 * that are damaged, or have outliers. F32 alone; failures fail the test. */
#ifndef NB_TESTS_ST_FLOATS_H
#define NB_TESTS_ST_FLOATS_H

#include <stddef.h>

/* All n values; freed with free(). */
float *st_floats_read(const char *folder, const char *tensor, size_t *n);
/* As many as were read. */
void st_floats_write(const char *folder, const char *tensor, const float *x, size_t n);

#endif
