/* What templates may call: filters, tests, methods, global functions. Each is a description in a
 * table; the parameters are bound by name or by position before the function runs. */
#ifndef NB_TEXT_JINJA_BUILTIN_H
#define NB_TEXT_JINJA_BUILTIN_H

#include "text/jinja_run.h"

typedef struct {
    nb_jspan name; /* p NULL: positional; those come first */
    nb_jv value;
} nb_jarg;

typedef struct {
    const nb_jarg *items;
    int n;
} nb_jargs;

#define NB_JMAX_PARAMS 4

typedef struct nb_jbuiltin nb_jbuiltin;
struct nb_jbuiltin {
    const char *name;
    /* `self` is the filtered, tested or owning value; arg[i] belongs to params[i], ABSENT if it
     * was not given; `all` is the list as written, for those with `open` parameters. */
    nb_status (*call)(nb_jrun *r, nb_jv self, const nb_jv *arg, const nb_jargs *all, nb_jv *out);
    const char *params[NB_JMAX_PARAMS];
    int n_required;
    bool open; /* takes any arguments */
};

/* A method bound to its value. */
typedef struct nb_jmethod {
    const nb_jbuiltin *builtin;
    nb_jv self;
} nb_jmethod;

/* A macro, and the scope that it was defined in. */
typedef struct nb_jmacro {
    const struct nb_jnode *node;
    nb_jframe *frame;
} nb_jmacro;

/* What {{ loop }} is inside a loop. */
typedef struct nb_jloop {
    nb_jlist items;
    int64_t index;  /* from 0 */
    nb_jv *changed; /* a tuple: the arguments of the last loop.changed(...) */
} nb_jloop;

nb_status nb_jloop_attribute(nb_jrun *r, const nb_jloop *loop, nb_jspan name, nb_jv *out);
nb_status nb_jmacro_call(nb_jrun *r, const nb_jmacro *m, const nb_jargs *args, nb_jv *out);

/* Looks a name up; NULL if there is none. */
const nb_jbuiltin *nb_jinja_filter(nb_jspan name);
const nb_jbuiltin *nb_jinja_test(nb_jspan name);
const nb_jbuiltin *nb_jinja_global(nb_jspan name);
const nb_jbuiltin *nb_jinja_method(nb_jkind kind, nb_jspan name);
const nb_jbuiltin *nb_jbuiltin_in(const nb_jbuiltin *table, size_t n, nb_jspan name);

nb_status nb_jbuiltin_call(nb_jrun *r, const nb_jbuiltin *b, nb_jv self, const nb_jargs *args,
                           nb_jv *out);
/* Calls any value that can be called. */
nb_status nb_jinja_call(nb_jrun *r, nb_jv callee, const nb_jargs *args, nb_jv *out);

/* str.upper, lower, title, capitalize, and the filter "title", which begins words elsewhere. */
typedef enum {
    NB_JCASE_UPPER,
    NB_JCASE_LOWER,
    NB_JCASE_TITLE,
    NB_JCASE_CAPITAL,
    NB_JCASE_WORDS
} nb_jcase;
nb_status nb_jstr_case(nb_jrun *r, nb_jspan s, nb_jcase to, nb_jv *out);
/* str.replace; count < 0: all. */
nb_status nb_jstr_replace(nb_jrun *r, nb_jspan s, nb_jspan old, nb_jspan new, int64_t count,
                          nb_jv *out);
/* The lines without their ends. */
nb_status nb_jstr_lines(nb_jrun *r, nb_jspan s, nb_jv *out);

/* The methods of texts; those of other kinds stand in jinja_method.c. */
const nb_jbuiltin *nb_jstr_method(nb_jspan name);
/* The filters that take sequences apart. */
const nb_jbuiltin *nb_jseq_filter(nb_jspan name);

/* Arguments of a type, with a default for ABSENT. `what` names it in the message. */
nb_status nb_jarg_int(nb_jrun *r, nb_jv arg, const char *what, int64_t absent, int64_t *out);
nb_status nb_jarg_text(nb_jrun *r, nb_jv arg, const char *what, nb_jspan absent, nb_jspan *out);

#endif
