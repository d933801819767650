/* The states of a walk's frames, and numbers, which json_walk.c steps through by json_number.c. */
#ifndef NB_ENGINE_JSON_STATE_H
#define NB_ENGINE_JSON_STATE_H

#include "engine/json_walk.h"

/* States beyond those inside a string. */
enum {
    NB_JSON_AT_VALUE = NB_JSON_S_LAST, /* of `node`, after white space */
    NB_JSON_AT_OBJECT_FIRST,           /* after '{'; a: the first property that may come */
    NB_JSON_AT_OBJECT_KEY,             /* after ',' */
    NB_JSON_AT_OBJECT_COLON,           /* after a name; b: the node of its value */
    NB_JSON_AT_OBJECT_NEXT,            /* after a value */
    NB_JSON_AT_KEY,         /* in the name of a property: text[a, b) agree in `len` bytes */
    NB_JSON_AT_KEY_FURTHER, /* in a name that is not declared, and agrees so far; space: its state
                             */
    NB_JSON_AT_ARRAY_FIRST,
    NB_JSON_AT_ARRAY_NEXT, /* a: items begun */
    NB_JSON_AT_LITERAL,    /* text[a, b) agree in `len` bytes */
    NB_JSON_AT_MINUS,      /* numbers; len: digits of this part */
    NB_JSON_AT_ZERO,
    NB_JSON_AT_INTEGRAL,
    NB_JSON_AT_POINT,
    NB_JSON_AT_FRACTION,
    NB_JSON_AT_EXPONENT_SIGN, /* after 'e' */
    NB_JSON_AT_EXPONENT_FIRST,
    NB_JSON_AT_EXPONENT,
    NB_JSON_AT_WHOLE_MINUS, /* integers; value: what the digits say */
    NB_JSON_AT_WHOLE_ZERO,
    NB_JSON_AT_WHOLE,
};

/* The next byte of a number or an integer: f becomes what follows; false when it is none of it. */
bool nb_json_next_number(nb_json_frame *f, uint8_t c);
bool nb_json_next_whole(const nb_json_node *node, nb_json_frame *f, uint8_t c);
/* May an integer of the node be negative? */
bool nb_json_may_be_negative(const nb_json_node *node);
/* Is what was read a whole number? */
bool nb_json_number_is_final(const nb_json_node *node, const nb_json_frame *f);

#endif
