/* Fields of a request's JSON object. null means "not given"; a wrong type is refused, never
 * converted ("4" is not 4, true is not 1, 4.0 is no whole number); whoever is refused learns the
 * field's name, its type or value, and what would have been right. */
#ifndef NB_SERVE_FIELDS_H
#define NB_SERVE_FIELDS_H

#include "base/json.h"
#include "serve/problem.h"

typedef struct {
    const json_t *object;
    const char *prefix; /* of names in messages: "" or "sampling_params." */
    nb_problem *why;
} nb_fields;

/* The value, or NULL when it is absent or null. */
json_t *nb_field(const nb_fields *f, const char *name);

/* Each leaves *out alone when the field is not given. */
nb_status nb_field_int(const nb_fields *f, const char *name, int64_t min, int64_t max,
                       int64_t *out);
/* Whole numbers are fine where a number is asked for. */
nb_status nb_field_number(const nb_fields *f, const char *name, double min, double max,
                          double *out);
nb_status nb_field_bool(const nb_fields *f, const char *name, bool *out);
/* Borrowed; zero-terminated, without zeros inside: the parser refuses \u0000. */
nb_status nb_field_text(const nb_fields *f, const char *name, const char **out, size_t *len);
nb_status nb_field_object(const nb_fields *f, const char *name, json_t **out);
nb_status nb_field_array(const nb_fields *f, const char *name, json_t **out);

/* "'NAME' is WHAT, not WANT" with the name under its prefix. */
nb_status nb_field_wrong(const nb_fields *f, const char *name, const json_t *value,
                         const char *want);
nb_status nb_field_refuse(const nb_fields *f, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
#endif
