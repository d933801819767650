/* How a model writes that it calls a tool, found out by asking its chat template. */
#ifndef NB_SERVE_TOOL_STYLE_H
#define NB_SERVE_TOOL_STYLE_H

#include "text/chat.h"

typedef enum {
    NB_TOOLS_NONE,   /* the template says nothing of tools */
    NB_TOOLS_OTHER,  /* it does, and calls are written in a form that is not known here */
    NB_TOOLS_HERMES, /* <tool_call>{"name": ..., "arguments": {...}}</tool_call>, among text */
    NB_TOOLS_LLAMA3, /* the answer is {"name": ..., "parameters": {...}}, or several with ; */
} nb_tool_style;

/* Renders a conversation with and without a tool and a call, and looks for what it knows. NB_MEMORY
 * is the only failure: a template that raises an error at tools knows none. */
nb_status nb_tool_style_of(const nb_tokenizer *t, const nb_jinja *template_, nb_tool_style *out,
                           nb_err *err);

#endif
