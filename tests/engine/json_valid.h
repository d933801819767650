/* What it means for a value to satisfy a schema: the definition, written without a look at
 * src/engine/json_*.c, for small schemas that are trusted. Recursion is fine here. */
#ifndef NB_TESTS_ENGINE_JSON_VALID_H
#define NB_TESTS_ENGINE_JSON_VALID_H

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

static inline bool is_valid(const json_t *root, const json_t *schema, const json_t *v);

static inline bool equal_values(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b))
        return json_number_value(a) == json_number_value(b);
    return json_equal(a, b);
}

static inline bool type_is(const char *type, const json_t *v)
{
    const double d = json_number_value(v);
    return (strcmp(type, "object") == 0 && json_is_object(v)) ||
           (strcmp(type, "array") == 0 && json_is_array(v)) ||
           (strcmp(type, "string") == 0 && json_is_string(v)) ||
           (strcmp(type, "number") == 0 && json_is_number(v)) ||
           (strcmp(type, "integer") == 0 && json_is_number(v) && floor(d) == d) ||
           (strcmp(type, "boolean") == 0 && json_is_boolean(v)) ||
           (strcmp(type, "null") == 0 && json_is_null(v));
}

static inline bool types_hold(const json_t *type, const json_t *v)
{
    if (type == NULL || json_is_string(type))
        return type == NULL || type_is(json_string_value(type), v);
    bool one = false;
    for (size_t i = 0; i < json_array_size(type); i++)
        one |= type_is(json_string_value(json_array_get(type, i)), v);
    return one;
}

static inline size_t n_characters(const json_t *v)
{
    size_t n = 0;
    for (size_t i = 0; i < json_string_length(v); i++)
        n += (json_string_value(v)[i] & 0xc0) != 0x80;
    return n;
}

static inline bool bounds_hold(const json_t *schema, const json_t *v)
{
    const json_t *b;
    const size_t n = json_is_array(v) ? json_array_size(v) : n_characters(v);
    const char *low = json_is_array(v) ? "minItems" : "minLength";
    const char *high = json_is_array(v) ? "maxItems" : "maxLength";
    if (json_is_array(v) || json_is_string(v)) {
        b = json_object_get(schema, low);
        if (b != NULL && n < (size_t)json_integer_value(b))
            return false;
        b = json_object_get(schema, high);
        if (b != NULL && n > (size_t)json_integer_value(b))
            return false;
    }
    if (!json_is_number(v))
        return true;
    const double d = json_number_value(v);
    b = json_object_get(schema, "minimum");
    if (b != NULL && d < json_number_value(b))
        return false;
    b = json_object_get(schema, "maximum");
    return b == NULL || d <= json_number_value(b);
}

static inline bool members_hold(const json_t *root, const json_t *schema, const json_t *v)
{
    const json_t *properties = json_object_get(schema, "properties");
    const json_t *required = json_object_get(schema, "required");
    const json_t *other = json_object_get(schema, "additionalProperties");
    const char *key;
    json_t *value;
    for (size_t i = 0; i < json_array_size(required); i++) {
        if (json_object_get(v, json_string_value(json_array_get(required, i))) == NULL)
            return false;
    }
    json_object_foreach((json_t *)(uintptr_t)v, key, value)
    {
        const json_t *of = json_object_get(properties, key);
        of = of != NULL ? of : other;
        if (of != NULL && !is_valid(root, of, value))
            return false;
    }
    return true;
}

static inline bool items_hold(const json_t *root, const json_t *schema, const json_t *v)
{
    const json_t *first = json_object_get(schema, "prefixItems");
    const json_t *items = json_object_get(schema, "items");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *of = i < json_array_size(first) ? json_array_get(first, i) : items;
        if (of != NULL && !is_valid(root, of, json_array_get(v, i)))
            return false;
    }
    return true;
}

static inline bool is_valid(const json_t *root, const json_t *schema, const json_t *v)
{
    const json_t *k;
    if (json_is_boolean(schema))
        return json_is_true(schema);
    k = json_object_get(schema, "$ref");
    if (k != NULL) { /* "#" or "#/$defs/NAME" */
        const char *name = json_string_value(k);
        return is_valid(
            root, name[1] == 0 ? root : json_object_get(json_object_get(root, "$defs"), name + 8),
            v);
    }
    if (!types_hold(json_object_get(schema, "type"), v) || !bounds_hold(schema, v))
        return false;
    k = json_object_get(schema, "const");
    if (k != NULL && !equal_values(k, v))
        return false;
    k = json_object_get(schema, "enum");
    bool one = k == NULL;
    for (size_t i = 0; i < json_array_size(k); i++)
        one |= equal_values(json_array_get(k, i), v);
    if (!one)
        return false;
    k = json_object_get(schema, "anyOf");
    int n = k == NULL;
    for (size_t i = 0; i < json_array_size(k); i++)
        n += is_valid(root, json_array_get(k, i), v);
    if (n == 0)
        return false;
    if (json_is_object(v))
        return members_hold(root, schema, v);
    return !json_is_array(v) || items_hold(root, schema, v);
}

#endif
