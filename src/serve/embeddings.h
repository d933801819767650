/* OpenAI's /v1/embeddings: texts or ids to vectors of length 1, which are the model's final hidden
 * states, pooled as the server was told. Knows no sockets. */
#ifndef NB_SERVE_EMBEDDINGS_H
#define NB_SERVE_EMBEDDINGS_H

#include "serve/reply.h"

/* As in openai.h. */
nb_status nb_embeddings_read(nb_ask *ask, const nb_served *m, nb_problem *why);
void nb_embeddings_write(const nb_ask *ask, const nb_served *m, const nb_reply *reply,
                         nb_wire *out);

#endif
