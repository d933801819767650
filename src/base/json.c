/* See json.h. */
#include "base/json.h"

#include "base/file.h"

#include <string.h>

/* Digits that always fit into 64 bits. */
#define MAX_DIGITS 18

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* End of the number that starts at text[i]; *is_big if it is a whole one of too many digits. */
static size_t number_end(const char *text, size_t len, size_t i, bool *is_big)
{
    const size_t start = i;
    while (i < len && is_digit(text[i]))
        i++;
    *is_big = i - start > MAX_DIGITS && text[start] != '0' &&
              !(i < len && (text[i] == '.' || text[i] == 'e' || text[i] == 'E'));
    while (i < len && (is_digit(text[i]) || text[i] == '.' || text[i] == 'e' || text[i] == 'E' ||
                       text[i] == '+' || text[i] == '-'))
        i++;
    return i;
}

/* The text with "e0" after every whole number that is too big for 64 bits: Hugging Face writes
 * 10^30 as the length of models that know none, and to jansson that is an error, not a real. */
static nb_status make_big_numbers_real(const char *text, size_t len, nb_buf *out, nb_err *err)
{
    size_t done = 0, i = 0;
    while (i < len) {
        bool is_big = false;
        if (text[i] == '"') {
            for (i++; i < len && text[i] != '"'; i++)
                i += text[i] == '\\';
            i++;
        } else if (is_digit(text[i])) {
            i = number_end(text, len, i, &is_big);
        } else {
            i++;
        }
        if (is_big) {
            NB_TRY(nb_buf_put(out, text + done, i - done, err));
            NB_TRY(nb_buf_text(out, "e0", err));
            done = i;
        }
    }
    return done == 0 ? NB_OK : nb_buf_put(out, text + done, len - done, err);
}

nb_status nb_json_parse(json_t **out, const char *text, size_t len, nb_err *err)
{
    *out = NULL;
    json_error_t e;
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;
    json_t *v = json_loadb(text, len, flags, &e);
    if (v == NULL && json_error_code(&e) == json_error_numeric_overflow) {
        nb_buf real = {0};
        const nb_status s = make_big_numbers_real(text, len, &real, err);
        if (s == NB_OK && real.len > 0)
            v = json_loadb((const char *)real.data, real.len, flags, &e);
        nb_buf_free(&real);
        NB_TRY(s);
    }
    if (v == NULL) {
        if (json_error_code(&e) == json_error_out_of_memory)
            return nb_fail(err, NB_MEMORY, "out of memory while parsing JSON of %zu bytes", len);
        return nb_fail(err, NB_DATA, "not valid JSON, line %d column %d: %.200s", e.line, e.column,
                       e.text);
    }
    *out = v;
    return NB_OK;
}

nb_status nb_json_load(json_t **out, const char *path, size_t limit, nb_err *err)
{
    *out = NULL;
    nb_buf text = {0};
    nb_status s = nb_file_slurp(&text, path, limit, err);
    if (s == NB_OK) {
        s = nb_json_parse(out, (const char *)text.data, text.len, err);
        if (s != NB_OK)
            nb_context(err, "%s", path);
    }
    nb_buf_free(&text);
    return s;
}

const char *nb_json_type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

#define TYPE(t) (1u << (t))

/* *v is NULL when the key is absent or null, which is an error only if it is required. Otherwise
 * its type is one of the set `types`, which a message calls `want`. */
static nb_status find(const json_t *object, const char *key, bool required, unsigned types,
                      const char *want, json_t **v, nb_err *err)
{
    *v = json_object_get(object, key);
    if (*v != NULL && json_is_null(*v))
        *v = NULL;
    if (*v == NULL)
        return required ? nb_fail(err, NB_DATA, "key '%s' is missing", key) : NB_OK;
    if ((TYPE(json_typeof(*v)) & types) == 0)
        return nb_fail(err, NB_DATA, "key '%s' is %s, not %s", key, nb_json_type_name(*v), want);
    return NB_OK;
}

bool nb_json_given(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return v != NULL && !json_is_null(v);
}

nb_status nb_json_int(const json_t *object, const char *key, bool required, int64_t min,
                      int64_t max, int64_t *out, nb_err *err)
{
    json_t *v;
    NB_TRY(find(object, key, required, TYPE(JSON_INTEGER), "an integer", &v, err));
    if (v == NULL)
        return NB_OK;
    const int64_t i = json_integer_value(v);
    if (i < min || i > max)
        return nb_fail(err, NB_DATA, "key '%s' is %lld, outside %lld to %lld", key, (long long)i,
                       (long long)min, (long long)max);
    *out = i;
    return NB_OK;
}

nb_status nb_json_number(const json_t *object, const char *key, bool required, double *out,
                         nb_err *err)
{
    json_t *v;
    NB_TRY(find(object, key, required, TYPE(JSON_INTEGER) | TYPE(JSON_REAL), "a number", &v, err));
    if (v != NULL)
        *out = json_number_value(v);
    return NB_OK;
}

nb_status nb_json_bool(const json_t *object, const char *key, bool required, bool *out, nb_err *err)
{
    json_t *v;
    NB_TRY(find(object, key, required, TYPE(JSON_TRUE) | TYPE(JSON_FALSE), "a boolean", &v, err));
    if (v != NULL)
        *out = json_is_true(v);
    return NB_OK;
}

nb_status nb_json_text(const json_t *object, const char *key, bool required, const char **out,
                       nb_err *err)
{
    json_t *v;
    NB_TRY(find(object, key, required, TYPE(JSON_STRING), "a string", &v, err));
    if (v == NULL)
        return NB_OK;
    if (strlen(json_string_value(v)) != json_string_length(v))
        return nb_fail(err, NB_DATA, "key '%s' holds a zero byte", key);
    *out = json_string_value(v);
    return NB_OK;
}

nb_status nb_json_object(const json_t *object, const char *key, bool required, json_t **out,
                         nb_err *err)
{
    json_t *v;
    NB_TRY(find(object, key, required, TYPE(JSON_OBJECT), "an object", &v, err));
    if (v != NULL)
        *out = v;
    return NB_OK;
}

nb_status nb_json_array(const json_t *object, const char *key, bool required, json_t **out,
                        nb_err *err)
{
    json_t *v;
    NB_TRY(find(object, key, required, TYPE(JSON_ARRAY), "an array", &v, err));
    if (v != NULL)
        *out = v;
    return NB_OK;
}

typedef struct {
    nb_buf *out;
    nb_status status;
    nb_err *err;
} sink;

/* jansson does not look at every answer (not at those for keys), so the first failure is kept and
 * nothing is appended after it. */
static int append(const char *bytes, size_t n, void *data)
{
    sink *to = data;
    if (to->status == NB_OK)
        to->status = nb_buf_put(to->out, bytes, n, to->err);
    return to->status == NB_OK ? 0 : -1;
}

nb_status nb_json_write(nb_buf *out, const json_t *value, bool pretty, nb_err *err)
{
    const size_t flags = JSON_ENCODE_ANY | (pretty ? JSON_INDENT(2) : 0);
    const size_t before = out->len;
    sink to = {.out = out, .err = err};
    if (json_dump_callback(value, append, &to, flags) == 0 && to.status == NB_OK)
        return NB_OK;
    out->len = before;
    return to.status != NB_OK ? to.status
                              : nb_fail(err, NB_MEMORY, "out of memory while writing JSON");
}
