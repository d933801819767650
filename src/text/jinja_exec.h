/* The two halves of the interpreter: expressions (jinja_eval.c) and statements (jinja_exec.c). */
#ifndef NB_TEXT_JINJA_EXEC_H
#define NB_TEXT_JINJA_EXEC_H

#include "text/jinja_ast.h"
#include "text/jinja_builtin.h"

nb_status nb_jinja_eval(nb_jrun *r, const nb_jnode *n, nb_jv *out);
/* A call node, with the body of a call block as `caller` if it is not NULL. */
nb_status nb_jinja_eval_call(nb_jrun *r, const nb_jnode *n, const nb_jv *caller, nb_jv *out);

/* Sets a variable of the innermost scope. */
nb_status nb_jframe_set(nb_jrun *r, nb_jspan name, nb_jv value);

#endif
