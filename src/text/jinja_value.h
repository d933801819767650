/* Values of the template language, with Python's semantics: truth, equality, order, length.
 *
 * Lists and dictionaries live in the render's arena and may be shared; texts are borrowed from
 * the arena, the template or the context. Nothing here reaches anything of the host. */
#ifndef NB_TEXT_JINJA_VALUE_H
#define NB_TEXT_JINJA_VALUE_H

#include "base/json.h"
#include "text/jinja_text.h"

typedef struct nb_jrun nb_jrun;
typedef struct nb_jlist nb_jlist;
typedef struct nb_jdict nb_jdict;

typedef enum {
    NB_JV_ABSENT, /* an argument that was not given; never a value of an expression */
    NB_JV_UNDEFINED,
    NB_JV_NONE,
    NB_JV_BOOL,
    NB_JV_INT,
    NB_JV_FLOAT,
    NB_JV_TEXT,
    NB_JV_LIST,
    NB_JV_TUPLE,
    NB_JV_DICT,
    NB_JV_NAMESPACE,
    NB_JV_LOOP,
    NB_JV_MACRO,
    NB_JV_FUNCTION, /* a global one */
    NB_JV_METHOD,   /* of a value */
} nb_jkind;

typedef struct {
    nb_jkind kind;
    nb_jkind owner; /* UNDEFINED: of what it is missing (ABSENT: a variable, TUPLE: a parameter) */
    bool markup;    /* TEXT: marked as safe; + then escapes what is added */
    union {
        bool b;
        int64_t i;
        double f;
        nb_jspan text; /* TEXT; UNDEFINED: its name */
        nb_jlist *list;
        nb_jdict *dict; /* NAMESPACE too */
        const struct nb_jloop *loop;
        const struct nb_jmacro *macro;
        const struct nb_jbuiltin *function;
        const struct nb_jmethod *method;
    };
} nb_jv;

struct nb_jlist {
    nb_jv *items;
    int64_t n, cap;
    bool lazy; /* Python has a generator here, which is true even if it yields nothing */
};

/* In order of insertion. */
struct nb_jdict {
    struct nb_jentry {
        nb_jv key, value;
        uint64_t hash;
    } * entries;
    int64_t n, cap;
    int32_t *slots; /* open addressing: 1 + index of the entry, 0 is free; NULL while it is small */
    int64_t n_slots;
};

static inline nb_jv nb_jv_none(void)
{
    return (nb_jv){.kind = NB_JV_NONE};
}
static inline nb_jv nb_jv_bool(bool b)
{
    return (nb_jv){.kind = NB_JV_BOOL, .b = b};
}
static inline nb_jv nb_jv_int(int64_t i)
{
    return (nb_jv){.kind = NB_JV_INT, .i = i};
}
static inline nb_jv nb_jv_float(double f)
{
    return (nb_jv){.kind = NB_JV_FLOAT, .f = f};
}
static inline nb_jv nb_jv_text(nb_jspan text)
{
    return (nb_jv){.kind = NB_JV_TEXT, .text = text};
}
static inline nb_jv nb_jv_undefined(nb_jkind owner, nb_jspan name)
{
    return (nb_jv){.kind = NB_JV_UNDEFINED, .owner = owner, .text = name};
}

/* True for BOOL and INT, which count as each other; *i is the value. */
bool nb_jv_is_int(nb_jv v, int64_t *i);
/* True for BOOL, INT and FLOAT; *f is the value. */
bool nb_jv_is_number(nb_jv v, double *f);
/* Python's name of the type: "str", "list". */
const char *nb_jv_type(nb_jv v);
/* A literal of the template, underscores allowed; false if it does not fit. */
bool nb_jv_parse_number(nb_jspan text, bool is_float, nb_jv *out);

bool nb_jv_truth(nb_jv v);
nb_status nb_jv_equal(nb_jrun *r, nb_jv a, nb_jv b, bool *out);
/* *out < 0, 0, > 0; NB_DATA for types that have no order. NaN is equal to everything here. */
nb_status nb_jv_order(nb_jrun *r, nb_jv a, nb_jv b, const char *op, int *out);
/* Python's len(): NB_DATA for what has none. */
nb_status nb_jv_length(nb_jrun *r, nb_jv v, int64_t *out);
/* What a loop over v meets: items, keys, code points. Borrowed, not to be written. NB_DATA if v
 * has none. */
nb_status nb_jv_iterate(nb_jrun *r, nb_jv v, nb_jlist *out);
/* `needle in v`. */
nb_status nb_jv_contains(nb_jrun *r, nb_jv v, nb_jv needle, bool *out);

/* A new LIST or TUPLE with room for `cap`. */
nb_status nb_jlist_new(nb_jrun *r, nb_jkind kind, int64_t cap, nb_jv *out);
nb_status nb_jlist_push(nb_jrun *r, nb_jlist *list, nb_jv item);

/* A new DICT or NAMESPACE. */
nb_status nb_jdict_new(nb_jrun *r, nb_jkind kind, nb_jv *out);
/* NULL if the key is absent, or cannot be one. Borrowed until the dictionary changes. */
nb_jv *nb_jdict_find(nb_jrun *r, const nb_jdict *d, nb_jv key);
nb_status nb_jdict_put(nb_jrun *r, nb_jdict *d, nb_jv key, nb_jv value);
/* Removes a key that nb_jdict_find found. */
nb_status nb_jdict_remove(nb_jrun *r, nb_jdict *d, nb_jv key);

/* A value from JSON; texts are borrowed from it. */
nb_status nb_jv_from_json(nb_jrun *r, const json_t *json, nb_jv *out);

#endif
