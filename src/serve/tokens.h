/* /tokenize and /detokenize: vLLM's names, and llama-server's. */
#ifndef NB_SERVE_TOKENS_H
#define NB_SERVE_TOKENS_H

#include "serve/fields.h"
#include "serve/served.h"

nb_status nb_tokenize(const json_t *request, const nb_served *m, nb_wire *out, nb_problem *why);
nb_status nb_detokenize(const json_t *request, const nb_served *m, nb_wire *out, nb_problem *why);

#endif
