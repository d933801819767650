/* SGLang's /generate. Its stream repeats the whole text so far in each event, and clients slice off
 * what they had. Knows no sockets. */
#ifndef NB_SERVE_SGLANG_H
#define NB_SERVE_SGLANG_H

#include "serve/reply.h"

/* As in openai.h. */
nb_status nb_sglang_read(nb_ask *ask, const nb_served *m, nb_problem *why);
void nb_sglang_write(const nb_ask *ask, const nb_served *m, nb_reply *reply, nb_wire *out);
bool nb_sglang_write_events(const nb_ask *ask, const nb_served *m, nb_reply *reply, nb_wire *out);

#endif
