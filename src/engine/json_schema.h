/* A JSON schema compiled into the nodes that json_walk.h steps through.
 *
 * A named subset of JSON Schema 2020-12 (docs/json.md lists it): every keyword outside it is
 * refused by name and place, never ignored, besides those that only describe. What a node admits
 * is part of what the schema admits, sometimes less: properties come in the order in which they are
 * declared, numbers have bounded digits, values nest at most NB_JSON_MAX_DEPTH levels. */
#ifndef NB_ENGINE_JSON_SCHEMA_H
#define NB_ENGINE_JSON_SCHEMA_H

#include "base/arena.h"

#define NB_JSON_MAX_DEPTH  64        /* objects and arrays inside each other */
#define NB_JSON_MAX_NODES  4096      /* of a schema */
#define NB_JSON_MAX_TEXT   (1 << 18) /* bytes of a schema */
#define NB_JSON_MAX_NAMES  512       /* properties of one object */
#define NB_JSON_MAX_COUNT  65536     /* minItems and minLength; higher maxima count as none */
#define NB_JSON_MAX_ALTS   16        /* alternatives that begin with the same character */
#define NB_JSON_MAX_DIGITS 18        /* before the point, and behind it */
#define NB_JSON_NEVER      32767     /* the height of what no value satisfies */
#define NB_JSON_NO_MAX     INT32_MAX

typedef enum {
    NB_JSON_ANY_OF, /* of `alt`; none: nothing satisfies it */
    NB_JSON_OBJECT,
    NB_JSON_ARRAY,
    NB_JSON_STRING,
    NB_JSON_NUMBER,
    NB_JSON_INTEGER,
    NB_JSON_LITERAL, /* one of `text` */
} nb_json_kind;

/* A text as JSON writes it, quotes included. */
typedef struct {
    const char *bytes;
    int32_t len;
    int32_t index; /* names: of the property, in declared order */
} nb_json_spelling;

typedef struct {
    nb_json_kind kind;
    int32_t height; /* levels of objects and arrays in its flattest value, or NB_JSON_NEVER */
    int32_t *alt;   /* [n_alts] what it may be, none of them NB_JSON_ANY_OF; else: itself */
    int32_t n_alts;
    nb_json_spelling *text; /* [n_texts] literals, or names of properties; ascending by bytes */
    int32_t n_texts;
    int32_t *child; /* object: [n_texts] of properties, declared order; array: first items */
    int32_t n_children;
    int32_t *needed;  /* object: [n_texts + 1] the first required property from here, or n_texts */
    int32_t other;    /* of further properties or items; -1: there are none */
    int64_t min, max; /* items of an array, characters of a string, values of an integer */
    bool nonnegative; /* of a number */
} nb_json_node;

typedef struct {
    nb_arena arena;
    nb_json_node *node;
    int32_t n_nodes, root;
    int32_t any_string; /* the node of a name that is not declared */
} nb_json_schema;

/* Compiles text[0, len). NB_DATA: not JSON, or not a schema, or one that no value within the bounds
 * satisfies; NB_UNSUPPORTED: a keyword, or a use of it, that is not in the subset; NB_LIMIT: a
 * bound above, or of the memory. Time and memory are bounded by these limits. */
nb_status nb_json_schema_compile(nb_json_schema **out, const char *text, size_t len, nb_err *err);
void nb_json_schema_free(nb_json_schema *schema); /* NULL is fine */

#endif
