/* OpenAI's /v1/completions and /v1/chat/completions: JSON to what is asked, and answers to JSON, as
 * a whole or as events of a stream. Names and ranges are vLLM's, shapes OpenAI's. Knows no sockets.
 */
#ifndef NB_SERVE_OPENAI_H
#define NB_SERVE_OPENAI_H

#include "serve/reply.h"

/* Reads the body's JSON, ask->json. After a failure *why says what to answer. */
nb_status nb_openai_read_completion(nb_ask *ask, const nb_served *m, nb_problem *why);
nb_status nb_openai_read_chat(nb_ask *ask, const nb_served *m, nb_problem *why);

/* The messages of a request as the template's ids: also what /tokenize does. */
nb_status nb_openai_messages(const nb_fields *f, const nb_served *m, const json_t *tools,
                             bool open_answer, nb_tokens *out);

/* The whole answer. Every choice is finished, and none with an error. */
void nb_openai_write(const nb_ask *ask, const nb_served *m, nb_reply *reply, nb_wire *out);
/* Appends what is new since the last call, as events; with the last of it usage (if asked for) and
 * [DONE], or the error that ends the stream. True when that was the last. */
bool nb_openai_write_events(const nb_ask *ask, const nb_served *m, nb_reply *reply, nb_wire *out);

#endif
