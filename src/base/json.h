/* Thin typed getters over jansson. A wrong type or a missing key becomes a message that names the
 * key. Parsing refuses duplicate keys, NaN, reals out of range, bad UTF-8 and depth above 2,048; a
 * whole number of more than 64 bits is a real.
 */
#ifndef NB_BASE_JSON_H
#define NB_BASE_JSON_H

#include "base/bytes.h"

#include <jansson.h>

/* Parses all of text[0, len): NB_DATA with line and column otherwise. Free with json_decref. */
nb_status nb_json_parse(json_t **out, const char *text, size_t len, nb_err *err);
/* Reads and parses a file of at most `limit` bytes. */
nb_status nb_json_load(json_t **out, const char *path, size_t limit, nb_err *err);

/* "a string", "an array", ..., for messages. */
const char *nb_json_type_name(const json_t *value);

/* Each getter: a missing or null key gives NB_DATA when `required`, else leaves *out alone.
 * Integers must lie in [min, max]; a real with an integer value is not an integer. */
nb_status nb_json_int(const json_t *object, const char *key, bool required, int64_t min,
                      int64_t max, int64_t *out, nb_err *err);
nb_status nb_json_number(const json_t *object, const char *key, bool required, double *out,
                         nb_err *err);
nb_status nb_json_bool(const json_t *object, const char *key, bool required, bool *out,
                       nb_err *err);
/* Borrowed from the object; zero-terminated, and refused if it holds a zero inside. */
nb_status nb_json_text(const json_t *object, const char *key, bool required, const char **out,
                       nb_err *err);
nb_status nb_json_object(const json_t *object, const char *key, bool required, json_t **out,
                         nb_err *err);
nb_status nb_json_array(const json_t *object, const char *key, bool required, json_t **out,
                        nb_err *err);

/* Whether a key is there, and not null. */
bool nb_json_given(const json_t *object, const char *key);

/* Appends the JSON text of `value` (2-space indent if `pretty`), or nothing on failure. */
nb_status nb_json_write(nb_buf *out, const json_t *value, bool pretty, nb_err *err);

#endif
