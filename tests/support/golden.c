/* See golden.h. */
#include "support/golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *golden_load(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", NIBBLE_GOLDEN, name);
    json_error_t e;
    json_t *v = json_load_file(path, 0, &e);
    if (v == NULL)
        fail_msg("%s: %s (line %d)", path, e.text, e.line);
    return v;
}

json_t *golden_get(const json_t *object, const char *key)
{
    json_t *v = json_object_get(object, key);
    if (v == NULL)
        fail_msg("golden vector without '%s'", key);
    return v;
}

uint8_t *hex_bytes(const char *hex, size_t *n)
{
    *n = strlen(hex) / 2;
    uint8_t *bytes = malloc(*n + 1);
    assert_non_null(bytes);
    for (size_t i = 0; i < *n; i++) {
        unsigned v;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &v), 1);
        bytes[i] = (uint8_t)v;
    }
    return bytes;
}

uint8_t *golden_hex(const json_t *object, const char *key, size_t *n)
{
    return hex_bytes(json_string_value(golden_get(object, key)), n);
}

double golden_number(const json_t *v)
{
    if (json_is_number(v))
        return json_number_value(v);
    const char *s = json_string_value(v);
    assert_non_null(s);
    if (strcmp(s, "nan") == 0)
        return (double)NAN;
    return strcmp(s, "-inf") == 0 ? -(double)INFINITY : (double)INFINITY;
}
