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
    const json_t *more; /* an object with further keys, such as tool_calls; NULL: none */
} nb_message;

typedef struct {
    const nb_message *messages;
    int64_t n;
    const json_t *tools; /* an array, as transformers gives them to templates; NULL: none */
    bool add_generation_prompt;
} nb_conversation;

/* What the template is given: messages, tools, add_generation_prompt, and the texts of bos_token
 * and eos_token where the model has them. Bytes that are no UTF-8 become U+FFFD. Free with
 * json_decref. */
nb_status nb_chat_context(const nb_tokenizer *t, const nb_message *messages, int64_t n,
                          bool add_generation_prompt, json_t **out, nb_err *err);

/* Appends the text of the conversation, as people may read it. Its special tokens and those that a
 * message merely quotes look the same: to get ids, use nb_chat_encode. NB_UNSUPPORTED when the
 * model has no template (template_ is NULL). */
nb_status nb_chat_render(const nb_tokenizer *t, const nb_jinja *template_,
                         const nb_message *messages, int64_t n, bool add_generation_prompt,
                         nb_buf *out, nb_err *err);

/* Appends the ids of the conversation (with the assistant's opening if add_generation_prompt).
 * NB_UNSUPPORTED when the model has no template. No BOS is added beyond the template's own.
 *
 * Roles, contents, tools and all strings in them are foreign: a special token written in one of
 * them is encoded as the text that it is. What lies between two special tokens is encoded as one
 * piece. */
nb_status nb_chat_encode(const nb_tokenizer *t, const nb_jinja *template_,
                         const nb_message *messages, int64_t n, bool add_generation_prompt,
                         nb_tokens *out, nb_err *err);

/* The same of a conversation with tools. */
nb_status nb_conversation_render(const nb_tokenizer *t, const nb_jinja *template_,
                                 const nb_conversation *talk, nb_buf *out, nb_err *err);
nb_status nb_conversation_encode(const nb_tokenizer *t, const nb_jinja *template_,
                                 const nb_conversation *talk, nb_tokens *out, nb_err *err);

#endif
