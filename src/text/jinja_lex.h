/* A template's text as tokens. White-space control (trim_blocks, lstrip_blocks, "-" and "+" at
 * tag edges), comments and raw blocks are resolved here, so that the parser sees only what is
 * printed and what is executed. */
#ifndef NB_TEXT_JINJA_LEX_H
#define NB_TEXT_JINJA_LEX_H

#include "base/arena.h"
#include "base/bytes.h"
#include "text/jinja_text.h"

typedef enum {
    NB_JTOK_END, /* of the template */
    NB_JTOK_DATA,
    NB_JTOK_PRINT_BEGIN,
    NB_JTOK_PRINT_END,
    NB_JTOK_BLOCK_BEGIN,
    NB_JTOK_BLOCK_END,
    NB_JTOK_NAME,
    NB_JTOK_TEXT, /* a string literal, quotes removed and escapes resolved */
    NB_JTOK_INT,
    NB_JTOK_FLOAT,
    NB_JTOK_OP,
} nb_jtoken_kind;

/* An operator's characters in one number, the first in the high byte of two. */
#define NB_JOP1(a)    ((uint16_t)(a))
#define NB_JOP2(a, b) ((uint16_t)((a) << 8 | (b)))

typedef struct {
    nb_jspan text; /* in the arena */
    int32_t line;
    uint16_t op;
    uint8_t kind; /* an nb_jtoken_kind */
} nb_jtoken;

/* Appends the nb_jtokens of text[0, len) to `tokens`, NB_JTOK_END last. Texts live in `arena`.
 * NB_DATA names the line. Linear in len. */
nb_status nb_jinja_lex(const char *text, size_t len, nb_arena *arena, nb_buf *tokens, nb_err *err);

#endif
