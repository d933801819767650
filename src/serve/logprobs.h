/* Logprobs in the two shapes of OpenAI's API. */
#ifndef NB_SERVE_LOGPROBS_H
#define NB_SERVE_LOGPROBS_H

#include "serve/reply.h"

/* A token's text as a JSON string; of bytes that are no UTF-8 "bytes:\xe2\x80", as OpenAI writes
 * them. */
void nb_write_token(const nb_tokenizer *t, int32_t id, nb_wire *out);

/* {tokens, token_logprobs, top_logprobs, text_offset}: four arrays of one length, of prompt rows
 * (NULL: none) and the rows of a choice that are not yet taken. Moves c->n_chars: text_offset says
 * at which character of the text a token begins. */
void nb_write_logprobs(const nb_reply *r, const nb_tokenizer *t, const nb_rows *prompt,
                       nb_choice *c, nb_wire *out);

/* {"content":[{token, logprob, bytes, top_logprobs}]} of a choice's rows that are not yet taken. */
void nb_write_chat_logprobs(const nb_reply *r, const nb_tokenizer *t, const nb_choice *c,
                            nb_wire *out);

#endif
