/* A parsed template: nodes in one arena, lists linked by `next`. Which member means what is said
 * beside each kind; members that are not named are empty. */
#ifndef NB_TEXT_JINJA_AST_H
#define NB_TEXT_JINJA_AST_H

#include "text/jinja.h"
#include "text/jinja_lex.h"
#include "text/jinja_value.h"

typedef enum {
    /* expressions */
    NB_JN_CONST,   /* value */
    NB_JN_NAME,    /* text */
    NB_JN_LIST,    /* list: items */
    NB_JN_TUPLE,   /* list: items; also as a target of for and set */
    NB_JN_DICT,    /* list: key, value, key, value ... */
    NB_JN_NOT,     /* a */
    NB_JN_AND,     /* a and b */
    NB_JN_OR,      /* a or b */
    NB_JN_UNARY,   /* op a */
    NB_JN_BINARY,  /* a op b */
    NB_JN_CONCAT,  /* list: items joined by ~ */
    NB_JN_COMPARE, /* a, then list: operands with their op */
    NB_JN_COND,    /* a if b else c (c may be NULL) */
    NB_JN_ATTR,    /* a.text */
    NB_JN_ITEM,    /* a[b] */
    NB_JN_SLICE,   /* a[b:c:other] (b, c, other may be NULL) */
    NB_JN_CALL,    /* a(list) */
    NB_JN_FILTER,  /* a|text(list); builtin; a is NULL for the block's own text */
    NB_JN_TEST,    /* a is text(list); builtin; negated */
    NB_JN_KEYWORD, /* in the list of a call: text = a */
    NB_JN_OPERAND, /* in the list of a comparison: op a */
    /* statements */
    NB_JN_DATA,         /* text */
    NB_JN_PRINT,        /* a */
    NB_JN_IF,           /* if a: body; b: the next elif; other: else */
    NB_JN_FOR,          /* for a in b if c: body; other: else */
    NB_JN_SET,          /* a = b */
    NB_JN_SET_BLOCK,    /* a = body, through the filters b (may be NULL) */
    NB_JN_MACRO,        /* text; list: parameters (names, a: default); body */
    NB_JN_CALL_BLOCK,   /* a: the call; b: the caller, a macro */
    NB_JN_FILTER_BLOCK, /* b: filters; body */
    NB_JN_WITH,         /* list: SET nodes; body */
    NB_JN_SCOPE,        /* body, with variables of its own: {% generation %} */
    NB_JN_BREAK,
    NB_JN_CONTINUE,
} nb_jnode_kind;

typedef struct nb_jnode nb_jnode;
struct nb_jnode {
    nb_jnode_kind kind;
    int32_t line;
    uint16_t op;
    bool negated;   /* TEST */
    bool in_use[3]; /* MACRO: its body names varargs, kwargs, caller */
    int32_t n_list;
    nb_jspan text;
    nb_jv value;
    nb_jnode *a, *b, *c;
    nb_jnode *list, *body, *other;
    nb_jnode *next;
    const struct nb_jbuiltin *builtin; /* FILTER, TEST: NULL if there is none of that name */
};

#define NB_JIN    NB_JOP2('i', 'n')
#define NB_JNOTIN NB_JOP2('n', 'i')

struct nb_jinja {
    nb_arena arena;
    nb_jnode *body;
    nb_err refusal; /* status != NB_OK: nested too deep to render, and says so when asked to */
};

/* How deep tags and expressions may nest. Each level costs the parser and the interpreter some
 * hundred bytes of stack. */
#define NB_JINJA_MAX_NESTING 200

typedef struct {
    const nb_jtoken *tokens; /* NB_JTOK_END last */
    int64_t i;
    int depth;
    nb_jnode *macro; /* the innermost one around */
    nb_arena *arena;
    nb_err *err;
} nb_jparser;

/* What the two halves of the parser share. */
nb_status nb_jparse_node(nb_jparser *p, nb_jnode_kind kind, nb_jnode **out);
nb_status nb_jparse_fail(nb_jparser *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
nb_status nb_jparse_unexpected(nb_jparser *p, const char *expected);
nb_status nb_jparse_enter(nb_jparser *p);
bool nb_jparse_is_op(const nb_jparser *p, uint16_t op);
bool nb_jparse_take_op(nb_jparser *p, uint16_t op);
nb_status nb_jparse_expect_op(nb_jparser *p, uint16_t op);
bool nb_jparse_is_name(const nb_jparser *p, const char *name);
bool nb_jparse_take_name(nb_jparser *p, const char *name);
/* Any name but a keyword, as text. */
nb_status nb_jparse_identifier(nb_jparser *p, nb_jspan *out);

/* An expression; without_if leaves an "if" that follows to the caller. */
nb_status nb_jparse_expression(nb_jparser *p, bool without_if, nb_jnode **out);
/* Expressions with commas make a tuple. */
nb_status nb_jparse_tuple(nb_jparser *p, bool without_if, nb_jnode **out);
/* "|name(args)|name ..." for the text of a block, NULL if there is none; the first one comes
 * without its "|" if first_bare. */
nb_status nb_jparse_filters(nb_jparser *p, bool first_bare, nb_jnode **out);
/* NAME, NAME.attribute (if with_attribute) or a tuple of these. */
nb_status nb_jparse_target(nb_jparser *p, bool with_attribute, nb_jnode **out);
/* "(name, name = default, ...)" */
nb_status nb_jparse_parameters(nb_jparser *p, nb_jnode *macro);

#endif
