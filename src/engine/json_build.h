/* A schema under construction: nodes that wait to be read, each with its place in the text.
 *
 * Schemas that refer to themselves are read once a place: a table from JSON value to node finds
 * what is there already. Nothing recurses: a list of nodes is worked through from the front. */
#ifndef NB_ENGINE_JSON_BUILD_H
#define NB_ENGINE_JSON_BUILD_H

#include "base/json.h"
#include "engine/json_schema.h"

/* Where a node was found: below `parent`, as its member `key` and, if index >= 0, item of that. */
typedef struct {
    const json_t *json; /* NULL: made, not read */
    int32_t parent;
    const char *key, *name; /* "properties" and the property; name NULL: none */
    int32_t index;
    bool one_of; /* the alternatives have to be disjoint */
} nb_json_place;

typedef struct {
    nb_json_schema *schema;
    const json_t *doc;
    nb_json_place *place; /* [NB_JSON_MAX_NODES] beside schema->node */
    int32_t *slot;        /* [2 * NB_JSON_MAX_NODES] node + 1 by json; 0: free */
    int32_t any;          /* nodes made on demand; -1: not yet */
} nb_json_build;

/* A node for the schema `json` at a place; the same json has the same node. *id. */
nb_status nb_json_add(nb_json_build *b, nb_json_place place, int32_t *id, nb_err *err);
/* A node that is not read, of a kind that the caller then fills. */
nb_status nb_json_make(nb_json_build *b, nb_json_kind kind, int32_t parent, int32_t *id,
                       nb_err *err);
/* The node of any value, and what it is made of. */
nb_status nb_json_any(nb_json_build *b, int32_t *id, nb_err *err);
/* Fills node `id` with the values of a JSON array as literals: those that `keep` keeps. */
typedef bool nb_json_keep_fn(const void *context, const json_t *value);
nb_status nb_json_literals(nb_json_build *b, int32_t id, const json_t *values,
                           nb_json_keep_fn *keep, const void *context, nb_err *err);
/* The JSON text of a value, in the schema's arena. */
nb_status nb_json_spell(nb_json_build *b, const json_t *value, nb_json_spelling *out, nb_err *err);
void nb_json_sort(nb_json_spelling *text, int32_t n);
/* The alternatives of a node, [n] in the schema's arena. */
nb_status nb_json_set_alts(nb_json_build *b, int32_t id, const int32_t *alt, int32_t n,
                           nb_err *err);

/* Puts the place of node `id` before the message: "#/properties/a: ...". */
nb_status nb_json_blame(const nb_json_build *b, int32_t id, nb_err *err);

/* Fills node `id` from its json: json_read.c. */
nb_status nb_json_read(nb_json_build *b, int32_t id, nb_err *err);

#endif
