/* The tools of a request for a chat: which the model is told of, whether it may or must call one,
 * and the schema that holds it to that. Knows no sockets. */
#ifndef NB_SERVE_TOOLS_H
#define NB_SERVE_TOOLS_H

#include "serve/ask.h"

/* Reads "tools", "tool_choice" and "parallel_tool_calls" into ask->tools, tool_style, must_call,
 * max_calls and, when a call is a must, json_schema. */
nb_status nb_tools_read(nb_ask *ask, const nb_fields *f, const nb_served *m);
/* Checks "tools" alone; *out is NULL when none are given. */
nb_status nb_tools_list(const nb_fields *f, const nb_served *m, json_t **out);
/* When a call is a must, the prompt ends with its beginning, where the model writes one. */
nb_status nb_tools_open_call(const nb_ask *ask, const nb_fields *f, const nb_served *m,
                             nb_tokens *out);

#endif
