/* See fields.h. */
#include "serve/fields.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

json_t *nb_field(const nb_fields *f, const char *name)
{
    json_t *v = json_object_get(f->object, name);
    return v == NULL || json_is_null(v) ? NULL : v;
}

nb_status nb_field_refuse(const nb_fields *f, const char *name, const char *format, ...)
{
    char text[600], param[sizeof f->why->param];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(param, sizeof param, "%s%.*s", f->prefix, 40, name);
    return nb_refuse(f->why, 400, param, "'%s' %s", param, text);
}

nb_status nb_field_wrong(const nb_fields *f, const char *name, const json_t *value,
                         const char *want)
{
    return nb_field_refuse(f, name, "is %s, not %s", nb_json_type_name(value), want);
}

nb_status nb_field_int(const nb_fields *f, const char *name, int64_t min, int64_t max, int64_t *out)
{
    const json_t *v = nb_field(f, name);
    if (v == NULL)
        return NB_OK;
    if (!json_is_integer(v))
        return nb_field_wrong(f, name, v, "an integer");
    const int64_t i = json_integer_value(v);
    if (i < min || i > max)
        return nb_field_refuse(f, name, "is %lld, outside %lld to %lld", (long long)i,
                               (long long)min, (long long)max);
    *out = i;
    return NB_OK;
}

nb_status nb_field_number(const nb_fields *f, const char *name, double min, double max, double *out)
{
    const json_t *v = nb_field(f, name);
    if (v == NULL)
        return NB_OK;
    if (!json_is_number(v))
        return nb_field_wrong(f, name, v, "a number");
    const double x = json_number_value(v);
    if (!(x >= min && x <= max))
        return nb_field_refuse(f, name, "is %.9g, outside %.9g to %.9g", x, min, max);
    *out = x;
    return NB_OK;
}

nb_status nb_field_bool(const nb_fields *f, const char *name, bool *out)
{
    const json_t *v = nb_field(f, name);
    if (v == NULL)
        return NB_OK;
    if (!json_is_boolean(v))
        return nb_field_wrong(f, name, v, "a boolean");
    *out = json_is_true(v);
    return NB_OK;
}

nb_status nb_field_text(const nb_fields *f, const char *name, const char **out, size_t *len)
{
    const json_t *v = nb_field(f, name);
    if (v == NULL)
        return NB_OK;
    if (!json_is_string(v))
        return nb_field_wrong(f, name, v, "a string");
    *out = json_string_value(v);
    *len = json_string_length(v);
    return NB_OK;
}

nb_status nb_field_object(const nb_fields *f, const char *name, json_t **out)
{
    json_t *v = nb_field(f, name);
    if (v == NULL)
        return NB_OK;
    if (!json_is_object(v))
        return nb_field_wrong(f, name, v, "an object");
    *out = v;
    return NB_OK;
}

nb_status nb_field_array(const nb_fields *f, const char *name, json_t **out)
{
    json_t *v = nb_field(f, name);
    if (v == NULL)
        return NB_OK;
    if (!json_is_array(v))
        return nb_field_wrong(f, name, v, "an array");
    *out = v;
    return NB_OK;
}
