/* See st_bytes.h. */
#include "support/st_bytes.h"

#include "support/scratch.h"

#include <stdlib.h>
#include <string.h>

void st_write_raw(const char *name, uint64_t announced, const char *header, size_t header_len,
                  const void *data, size_t n)
{
    uint8_t *bytes = calloc(1, 8 + header_len + n);
    if (bytes == NULL)
        abort();
    memcpy(bytes, &announced, 8);
    memcpy(bytes + 8, header, header_len);
    if (data != NULL)
        memcpy(bytes + 8 + header_len, data, n);
    scratch_write(name, bytes, 8 + header_len + n);
    free(bytes);
}

void st_write(const char *name, const char *header, const void *data, size_t n)
{
    st_write_raw(name, strlen(header), header, strlen(header), data, n);
}
