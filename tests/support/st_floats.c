/* See st_floats.h. */
#include "support/st_floats.h"

#include "base/json.h"
#include "support/golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The file at the first byte of the tensor, which has n values. */
static FILE *open_at(const char *folder, const char *tensor, size_t *n)
{
    char path[512];
    uint64_t n_header;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fread(&n_header, sizeof n_header, 1, f), 1);
    char *header = malloc(n_header);
    assert_non_null(header);
    assert_int_equal(fread(header, 1, n_header, f), n_header);
    json_t *j = json_loadb(header, n_header, 0, NULL);
    const json_t *one = golden_get(j, tensor);
    assert_string_equal(json_string_value(golden_get(one, "dtype")), "F32");
    const json_t *offsets = golden_get(one, "data_offsets");
    const long begin = (long)json_integer_value(json_array_get(offsets, 0));
    const long end = (long)json_integer_value(json_array_get(offsets, 1));
    assert_int_equal(fseek(f, (long)(8 + n_header) + begin, SEEK_SET), 0);
    *n = (size_t)(end - begin) / sizeof(float);
    json_decref(j);
    free(header);
    return f;
}

float *st_floats_read(const char *folder, const char *tensor, size_t *n)
{
    FILE *f = open_at(folder, tensor, n);
    float *x = malloc(*n * sizeof *x);
    assert_non_null(x);
    assert_int_equal(fread(x, sizeof *x, *n, f), *n);
    assert_int_equal(fclose(f), 0);
    return x;
}

void st_floats_write(const char *folder, const char *tensor, const float *x, size_t n)
{
    size_t there;
    FILE *f = open_at(folder, tensor, &there);
    assert_int_equal(there, n);
    assert_int_equal(fwrite(x, sizeof *x, n, f), n);
    assert_int_equal(fclose(f), 0);
}
