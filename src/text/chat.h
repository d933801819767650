/* From messages to token ids: renders the model's chat template and encodes the result, with
 * special tokens of the template parsed and special-token text inside messages kept as text. */
#ifndef NB_TEXT_CHAT_H
#define NB_TEXT_CHAT_H

#include "text/jinja.h"
#include "text/tokenizer.h"

typedef struct {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
    size_t len;
} nb_message;

/* Appends the ids of the conversation (with the assistant's opening if add_generation_prompt).
 * NB_UNSUPPORTED when the model has no template. No BOS is added beyond the template's own. */
nb_status nb_chat_encode(const nb_tokenizer *t, const nb_jinja *template_, const nb_message *messages,
                         int64_t n, bool add_generation_prompt, nb_tokens *out, nb_err *err);

#endif
