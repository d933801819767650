/* The keywords of a schema: what each is good for, and what they make of a node. */
#include "engine/json_build.h"

#include <math.h>
#include <string.h>

/* ---- keywords ---- */

typedef enum {
    GROUP_NOTE = 1 << 0, /* describes only */
    GROUP_TYPE = 1 << 1,
    GROUP_ENUM = 1 << 2,
    GROUP_WHOLE = 1 << 3, /* $ref, anyOf, ...: decides everything, stands alone */
    GROUP_OBJECT = 1 << 4,
    GROUP_ARRAY = 1 << 5,
    GROUP_STRING = 1 << 6,
    GROUP_NUMBER = 1 << 7,
} group;

#define GROUP_VALUES (GROUP_OBJECT | GROUP_ARRAY | GROUP_STRING | GROUP_NUMBER)

static const struct {
    const char *word;
    group group;
} keywords[] = {
    {"$schema", GROUP_NOTE},
    {"$comment", GROUP_NOTE},
    {"$defs", GROUP_NOTE},
    {"definitions", GROUP_NOTE},
    {"title", GROUP_NOTE},
    {"description", GROUP_NOTE},
    {"default", GROUP_NOTE},
    {"examples", GROUP_NOTE},
    {"deprecated", GROUP_NOTE},
    {"readOnly", GROUP_NOTE},
    {"writeOnly", GROUP_NOTE},
    {"type", GROUP_TYPE},
    {"enum", GROUP_ENUM},
    {"const", GROUP_ENUM},
    {"$ref", GROUP_WHOLE},
    {"anyOf", GROUP_WHOLE},
    {"oneOf", GROUP_WHOLE},
    {"allOf", GROUP_WHOLE},
    {"properties", GROUP_OBJECT},
    {"required", GROUP_OBJECT},
    {"additionalProperties", GROUP_OBJECT},
    {"items", GROUP_ARRAY},
    {"prefixItems", GROUP_ARRAY},
    {"minItems", GROUP_ARRAY},
    {"maxItems", GROUP_ARRAY},
    {"minLength", GROUP_STRING},
    {"maxLength", GROUP_STRING},
    {"minimum", GROUP_NUMBER},
    {"maximum", GROUP_NUMBER},
    {"exclusiveMinimum", GROUP_NUMBER},
    {"exclusiveMaximum", GROUP_NUMBER},
};

/* The groups of all keywords of a schema; *whole is the keyword of GROUP_WHOLE. */
static nb_status find_groups(const json_t *schema, unsigned *groups, const char **whole,
                             nb_err *err)
{
    *groups = 0;
    *whole = NULL;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)schema, key, value)
    {
        size_t k = 0;
        while (k < sizeof keywords / sizeof *keywords && strcmp(keywords[k].word, key) != 0)
            k++;
        if (k == sizeof keywords / sizeof *keywords)
            return nb_fail(err, NB_UNSUPPORTED, "the keyword '%.80s' is not supported", key);
        if (keywords[k].group == GROUP_WHOLE && *whole != NULL)
            return nb_fail(err, NB_UNSUPPORTED, "'%s' beside '%s' is not supported", key, *whole);
        if (keywords[k].group == GROUP_WHOLE)
            *whole = keywords[k].word;
        *groups |= (unsigned)keywords[k].group;
    }
    return NB_OK;
}

/* ---- $ref, anyOf, oneOf, allOf ---- */

/* One segment of a pointer, unescaped into `out`, which has room: ~1 is '/', ~0 is '~', %41 is
 * 'A'. */
static bool unescape(const char *from, size_t len, char *out)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t c = (uint8_t)from[i];
        if (c == '~') {
            if (i + 1 == len || (from[i + 1] != '0' && from[i + 1] != '1'))
                return false;
            c = from[++i] == '0' ? '~' : '/';
        } else if (c == '%') {
            static const char hex[] = "0123456789abcdef";
            unsigned v = 0;
            for (int k = 0; k < 2; k++) {
                const char h = ++i < len ? from[i] : 0;
                const char *at = h == 0 ? NULL : strchr(hex, h >= 'A' && h <= 'F' ? h + 32 : h);
                if (at == NULL)
                    return false;
                v = v * 16 + (unsigned)(at - hex);
            }
            c = (uint8_t)v;
        }
        *out++ = (char)c;
    }
    *out = 0;
    return true;
}

/* The value one segment below `at`; NULL: there is none. */
static const json_t *below(const json_t *at, const char *segment)
{
    if (json_is_object(at))
        return json_object_get(at, segment);
    if (!json_is_array(at) || segment[0] < '0' || segment[0] > '9' || strlen(segment) > 6)
        return NULL;
    size_t index = 0;
    for (const char *c = segment; *c != 0; c++) {
        if (*c < '0' || *c > '9')
            return NULL;
        index = index * 10 + (size_t)(*c - '0');
    }
    return json_array_get(at, index);
}

static nb_status find_ref(const nb_json_build *b, const char *ref, const json_t **out, nb_err *err)
{
    if (ref[0] != '#' || (ref[1] != 0 && ref[1] != '/'))
        return nb_fail(err, NB_UNSUPPORTED,
                       "$ref '%.80s': only places in the same schema are looked up ('#/$defs/...')",
                       ref);
    const json_t *at = b->doc;
    char *segment;
    NB_TRY(NB_ALLOC(&segment, strlen(ref) + 1, err));
    const char *from = ref + 1;
    while (at != NULL && *from == '/') {
        const char *end = strchr(from + 1, '/');
        const size_t len = end != NULL ? (size_t)(end - from - 1) : strlen(from + 1);
        at = unescape(from + 1, len, segment) ? below(at, segment) : NULL;
        from += 1 + len;
    }
    nb_free(segment);
    if (at == NULL)
        return nb_fail(err, NB_DATA, "$ref '%.80s' leads nowhere", ref);
    *out = at;
    return NB_OK;
}

static nb_status read_ref(nb_json_build *b, int32_t id, const json_t *schema, nb_err *err)
{
    const char *ref;
    const json_t *to = NULL;
    int32_t target;
    NB_TRY(nb_json_text(schema, "$ref", true, &ref, err));
    NB_TRY(find_ref(b, ref, &to, err));
    NB_TRY(nb_json_add(b, (nb_json_place){.json = to, .parent = id, .key = "$ref", .index = -1},
                       &target, err));
    return nb_json_set_alts(b, id, &target, 1, err);
}

static nb_status read_alternatives(nb_json_build *b, int32_t id, const json_t *schema,
                                   const char *word, nb_err *err)
{
    json_t *list;
    NB_TRY(nb_json_array(schema, word, true, &list, err));
    const size_t n = json_array_size(list);
    if (n == 0)
        return nb_fail(err, NB_DATA, "%s is empty", word);
    if (n > 1 && strcmp(word, "allOf") == 0)
        return nb_fail(err, NB_UNSUPPORTED, "allOf of more than one schema is not supported");
    if (n > 64)
        return nb_fail(err, NB_LIMIT, "%s has %zu schemas: there may be 64", word, n);
    int32_t alt[64];
    for (size_t i = 0; i < n; i++) {
        const nb_json_place place = {
            .json = json_array_get(list, i), .parent = id, .key = word, .index = (int32_t)i};
        NB_TRY(nb_json_add(b, place, &alt[i], err));
    }
    b->place[id].one_of = strcmp(word, "oneOf") == 0;
    return nb_json_set_alts(b, id, alt, (int32_t)n, err);
}

/* ---- types ---- */

static const struct {
    const char *word;
    group group;
} types[] = {
    {"object", GROUP_OBJECT},
    {"array", GROUP_ARRAY},
    {"string", GROUP_STRING},
    {"number", GROUP_NUMBER},
    {"integer", 0},
    {"boolean", 0},
    {"null", 0},
};

enum { OBJECT, ARRAY, STRING, NUMBER, INTEGER, BOOLEAN, NIL, N_TYPES };

static nb_status add_type(const json_t *word, unsigned *set, nb_err *err)
{
    if (!json_is_string(word))
        return nb_fail(err, NB_DATA, "type must be a string or an array of strings");
    for (int t = 0; t < N_TYPES; t++) {
        if (strcmp(types[t].word, json_string_value(word)) == 0) {
            *set |= 1u << t;
            return NB_OK;
        }
    }
    return nb_fail(err, NB_DATA, "there is no type '%.80s'", json_string_value(word));
}

/* The types that a schema names. Without `type`, its keywords tell: {"items": ...} would admit
 * whatever is no array, too, but arrays are what it speaks of. 0: it says nothing. */
static nb_status find_types(const json_t *schema, unsigned groups, unsigned *set, nb_err *err)
{
    *set = 0;
    const json_t *type = json_object_get(schema, "type");
    if (json_is_array(type)) {
        for (size_t i = 0; i < json_array_size(type); i++)
            NB_TRY(add_type(json_array_get(type, i), set, err));
        if (*set == 0)
            return nb_fail(err, NB_DATA, "type is an empty array");
    } else if (type != NULL) {
        NB_TRY(add_type(type, set, err));
    } else {
        for (int t = 0; t < N_TYPES; t++)
            *set |= (groups & (unsigned)types[t].group) != 0 ? 1u << t : 0;
    }
    if ((*set & 1u << NUMBER) != 0)
        *set &= ~(1u << INTEGER); /* they are numbers */
    return NB_OK;
}

static bool is_whole(const json_t *v)
{
    return json_is_integer(v) ||
           (json_is_real(v) && floor(json_real_value(v)) == json_real_value(v));
}

static bool has_type(const void *context, const json_t *v)
{
    const unsigned set = *(const unsigned *)context;
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return (set & 1u << OBJECT) != 0;
    case JSON_ARRAY:
        return (set & 1u << ARRAY) != 0;
    case JSON_STRING:
        return (set & 1u << STRING) != 0;
    case JSON_INTEGER:
    case JSON_REAL:
        return (set & 1u << NUMBER) != 0 || ((set & 1u << INTEGER) != 0 && is_whole(v));
    case JSON_TRUE:
    case JSON_FALSE:
        return (set & 1u << BOOLEAN) != 0;
    case JSON_NULL:
        return (set & 1u << NIL) != 0;
    }
    return false;
}

static nb_status read_enum(nb_json_build *b, int32_t id, const json_t *schema, unsigned groups,
                           nb_err *err)
{
    unsigned set;
    if ((groups & GROUP_VALUES) != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "enum and const go with type alone, not with other keywords");
    NB_TRY(find_types(schema, groups, &set, err));
    if (set == 0)
        set = ~0u;
    json_t *list = json_object_get(schema, "enum"), *one = json_object_get(schema, "const");
    if (list != NULL && one != NULL)
        return nb_fail(err, NB_UNSUPPORTED, "enum beside const is not supported");
    if (list != NULL && (!json_is_array(list) || json_array_size(list) == 0))
        return nb_fail(err, NB_DATA, "enum must be an array of at least one value");
    if (list != NULL)
        return nb_json_literals(b, id, list, has_type, &set, err);
    json_t *values = json_pack("[O]", one);
    if (values == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory");
    const nb_status s = nb_json_literals(b, id, values, has_type, &set, err);
    json_decref(values);
    return s;
}

/* ---- objects ---- */

static bool is_required(const json_t *required, const char *name)
{
    for (size_t i = 0; i < json_array_size(required); i++) {
        if (strcmp(json_string_value(json_array_get(required, i)), name) == 0)
            return true;
    }
    return false;
}

/* Property number n: its name, its schema (NULL: as further ones), whether it has to be there. */
static nb_status add_property(nb_json_build *b, int32_t id, const char *name, const json_t *schema,
                              nb_err *err)
{
    nb_json_node *node = &b->schema->node[id];
    const int32_t n = node->n_texts;
    json_t *spelled = json_string(name);
    if (spelled == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory");
    const nb_status s = nb_json_spell(b, spelled, &node->text[n], err);
    json_decref(spelled);
    NB_TRY(s);
    node->text[n].index = n;
    if (schema != NULL) {
        const nb_json_place place = {
            .json = schema, .parent = id, .key = "properties", .name = name, .index = -1};
        NB_TRY(nb_json_add(b, place, &node->child[n], err));
    } else if (node->other >= 0) {
        node->child[n] = node->other;
    } else {
        NB_TRY(nb_json_make(b, NB_JSON_ANY_OF, id, &node->child[n], err)); /* of nothing */
    }
    node->n_texts = n + 1;
    return NB_OK;
}

static nb_status read_further(nb_json_build *b, int32_t id, const json_t *schema, const char *word,
                              bool preset, nb_err *err)
{
    nb_json_node *node = &b->schema->node[id];
    const json_t *other = json_object_get(schema, word);
    node->other = -1;
    if (json_is_false(other) || (other == NULL && !preset))
        return NB_OK;
    if (json_is_true(other) || other == NULL)
        return nb_json_any(b, &node->other, err);
    const nb_json_place place = {.json = other, .parent = id, .key = word, .index = -1};
    return nb_json_add(b, place, &node->other, err);
}

static nb_status check_required(const json_t *required, nb_err *err)
{
    for (size_t i = 0; i < json_array_size(required); i++) {
        if (!json_is_string(json_array_get(required, i)))
            return nb_fail(err, NB_DATA, "required must be an array of strings");
    }
    return NB_OK;
}

static nb_status read_object(nb_json_build *b, int32_t id, const json_t *schema, nb_err *err)
{
    json_t *properties = NULL, *required = NULL, *value;
    const char *name;
    nb_json_node *node = &b->schema->node[id];
    NB_TRY(nb_json_object(schema, "properties", false, &properties, err));
    NB_TRY(nb_json_array(schema, "required", false, &required, err));
    NB_TRY(check_required(required, err));
    NB_TRY(read_further(b, id, schema, "additionalProperties", properties == NULL, err));
    const size_t n = json_object_size(properties) + json_array_size(required);
    if (n > NB_JSON_MAX_NAMES)
        return nb_fail(err, NB_LIMIT, "properties and required have %zu names: there may be %d", n,
                       NB_JSON_MAX_NAMES);
    NB_TRY(NB_ARENA_ALLOC(&b->schema->arena, &node->text, n + 1, err));
    NB_TRY(NB_ARENA_ALLOC(&b->schema->arena, &node->child, n + 1, err));
    json_object_foreach(properties, name, value) NB_TRY(add_property(b, id, name, value, err));
    for (size_t i = 0; i < json_array_size(required); i++) {
        name = json_string_value(json_array_get(required, i));
        bool known = json_object_get(properties, name) != NULL;
        for (size_t k = 0; k < i && !known; k++)
            known = strcmp(json_string_value(json_array_get(required, k)), name) == 0;
        if (!known)
            NB_TRY(add_property(b, id, name, NULL, err));
    }
    node->n_children = node->n_texts;
    NB_TRY(NB_ARENA_ALLOC(&b->schema->arena, &node->needed, node->n_texts + 1, err));
    node->needed[node->n_texts] = node->n_texts;
    size_t at = 0;
    json_object_foreach(properties, name, value) node->needed[at++] =
        is_required(required, name) ? 1 : 0;
    for (; at < (size_t)node->n_texts; at++)
        node->needed[at] = 1;
    for (int32_t i = node->n_texts - 1; i >= 0; i--)
        node->needed[i] = node->needed[i] != 0 ? i : node->needed[i + 1];
    nb_json_sort(node->text, node->n_texts);
    return NB_OK;
}

/* ---- arrays, strings, numbers ---- */

static nb_status read_counts(const json_t *schema, const char *low, const char *high,
                             nb_json_node *node, nb_err *err)
{
    node->min = 0;
    node->max = INT64_MAX;
    NB_TRY(nb_json_int(schema, low, false, 0, INT64_MAX, &node->min, err));
    NB_TRY(nb_json_int(schema, high, false, 0, INT64_MAX, &node->max, err));
    if (node->min > NB_JSON_MAX_COUNT)
        return nb_fail(err, NB_LIMIT, "%s is %lld: it may be %d", low, (long long)node->min,
                       NB_JSON_MAX_COUNT);
    if (node->max > NB_JSON_NO_MAX)
        node->max = NB_JSON_NO_MAX;
    return NB_OK;
}

static nb_status read_array(nb_json_build *b, int32_t id, const json_t *schema, nb_err *err)
{
    nb_json_node *node = &b->schema->node[id];
    json_t *first = NULL;
    NB_TRY(nb_json_array(schema, "prefixItems", false, &first, err));
    NB_TRY(read_counts(schema, "minItems", "maxItems", node, err));
    const size_t n = json_array_size(first);
    if (n > NB_JSON_MAX_NAMES)
        return nb_fail(err, NB_LIMIT, "prefixItems has %zu schemas: there may be %d", n,
                       NB_JSON_MAX_NAMES);
    NB_TRY(read_further(b, id, schema, "items", first == NULL, err));
    NB_TRY(NB_ARENA_ALLOC(&b->schema->arena, &node->child, n + 1, err));
    for (size_t i = 0; i < n; i++) {
        const nb_json_place place = {.json = json_array_get(first, i),
                                     .parent = id,
                                     .key = "prefixItems",
                                     .index = (int32_t)i};
        NB_TRY(nb_json_add(b, place, &node->child[i], err));
    }
    node->n_children = (int32_t)n;
    if (node->other < 0 && node->max > (int64_t)n)
        node->max = (int64_t)n;
    return NB_OK;
}

/* A bound of integers as the nearest integer inside it, within what nibble writes. */
static nb_status read_bound(const json_t *schema, const char *word, bool lower, bool exclusive,
                            nb_json_node *node, nb_err *err)
{
    const double limit = 999999999999999999.0;
    const json_t *v = json_object_get(schema, word);
    if (v == NULL)
        return NB_OK;
    if (!json_is_number(v))
        return nb_fail(err, NB_DATA, "%s must be a number", word);
    int64_t bound;
    if (json_is_integer(v)) {
        bound = json_integer_value(v);
    } else {
        double d = json_real_value(v);
        d = lower ? ceil(d) : floor(d);
        exclusive = exclusive && d == json_real_value(v);
        bound = d > limit ? INT64_MAX : d < -limit ? INT64_MIN : (int64_t)d;
    }
    if (exclusive && lower && bound < INT64_MAX)
        bound++;
    if (exclusive && !lower && bound > INT64_MIN)
        bound--;
    if (lower && bound > node->min)
        node->min = bound;
    if (!lower && bound < node->max)
        node->max = bound;
    return NB_OK;
}

static nb_status read_integer(const json_t *schema, nb_json_node *node, nb_err *err)
{
    node->max = 999999999999999999;
    node->min = -node->max;
    NB_TRY(read_bound(schema, "minimum", true, false, node, err));
    NB_TRY(read_bound(schema, "exclusiveMinimum", true, true, node, err));
    NB_TRY(read_bound(schema, "maximum", false, false, node, err));
    return read_bound(schema, "exclusiveMaximum", false, true, node, err);
}

/* Of numbers with fractions only the sign can be bounded. */
static nb_status read_number(const json_t *schema, nb_json_node *node, nb_err *err)
{
    static const char *const words[] = {"maximum", "exclusiveMinimum", "exclusiveMaximum"};
    const json_t *v = json_object_get(schema, "minimum");
    if (v != NULL && !json_is_number(v))
        return nb_fail(err, NB_DATA, "minimum must be a number");
    if (v != NULL && json_number_value(v) != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "minimum of a number is supported for integers, and 0 for others");
    node->nonnegative = v != NULL;
    for (int i = 0; i < 3; i++) {
        if (json_object_get(schema, words[i]) != NULL)
            return nb_fail(err, NB_UNSUPPORTED, "%s is supported for integers only", words[i]);
    }
    return NB_OK;
}

static nb_status read_words(nb_json_build *b, int32_t id, unsigned set, nb_err *err)
{
    json_t *values = json_array();
    if (values == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory");
    if ((set & 1u << BOOLEAN) != 0) {
        json_array_append_new(values, json_false());
        json_array_append_new(values, json_true());
    }
    if ((set & 1u << NIL) != 0)
        json_array_append_new(values, json_null());
    const nb_status s = nb_json_literals(b, id, values, NULL, NULL, err);
    json_decref(values);
    return s;
}

static nb_status fill(nb_json_build *b, int32_t id, int type, const json_t *schema, nb_err *err)
{
    static const nb_json_kind kinds[] = {
        [OBJECT] = NB_JSON_OBJECT, [ARRAY] = NB_JSON_ARRAY,     [STRING] = NB_JSON_STRING,
        [NUMBER] = NB_JSON_NUMBER, [INTEGER] = NB_JSON_INTEGER, [BOOLEAN] = NB_JSON_LITERAL,
        [NIL] = NB_JSON_LITERAL,
    };
    nb_json_node *node = &b->schema->node[id];
    node->kind = kinds[type];
    switch (type) {
    case OBJECT:
        return read_object(b, id, schema, err);
    case ARRAY:
        return read_array(b, id, schema, err);
    case STRING:
        return read_counts(schema, "minLength", "maxLength", node, err);
    case NUMBER:
        return read_number(schema, node, err);
    case INTEGER:
        return read_integer(schema, node, err);
    default:
        return read_words(b, id, 1u << type, err);
    }
}

static nb_status read_types(nb_json_build *b, int32_t id, const json_t *schema, unsigned groups,
                            nb_err *err)
{
    unsigned set;
    int32_t alt[N_TYPES], n = 0;
    NB_TRY(find_types(schema, groups, &set, err));
    if (set == 0) {
        NB_TRY(nb_json_any(b, &alt[0], err));
        return nb_json_set_alts(b, id, alt, 1, err);
    }
    if ((set & (set - 1)) == 0) {
        int type = 0;
        while (set != 1u << type)
            type++;
        return fill(b, id, type, schema, err);
    }
    for (int t = 0; t < N_TYPES; t++) {
        if ((set & 1u << t) == 0)
            continue;
        NB_TRY(nb_json_make(b, NB_JSON_ANY_OF, b->place[id].parent, &alt[n], err));
        b->place[alt[n]] = b->place[id]; /* messages name the same place */
        NB_TRY(fill(b, alt[n], t, schema, err));
        n++;
    }
    return nb_json_set_alts(b, id, alt, n, err);
}

/* ---- one schema ---- */

nb_status nb_json_read(nb_json_build *b, int32_t id, nb_err *err)
{
    const json_t *schema = b->place[id].json;
    unsigned groups;
    const char *whole;
    if (json_is_true(schema))
        return read_types(b, id, schema, 0, err);
    if (json_is_false(schema))
        return NB_OK; /* an NB_JSON_ANY_OF of nothing */
    if (!json_is_object(schema))
        return nb_fail(err, NB_DATA, "a schema must be an object, true or false");
    NB_TRY(find_groups(schema, &groups, &whole, err));
    if (whole != NULL && (groups & ~(unsigned)(GROUP_WHOLE | GROUP_NOTE)) != 0)
        return nb_fail(err, NB_UNSUPPORTED, "%s beside keywords that restrict is not supported",
                       whole);
    if (whole != NULL)
        return strcmp(whole, "$ref") == 0 ? read_ref(b, id, schema, err)
                                          : read_alternatives(b, id, schema, whole, err);
    if ((groups & GROUP_ENUM) != 0)
        return read_enum(b, id, schema, groups, err);
    return read_types(b, id, schema, groups, err);
}
