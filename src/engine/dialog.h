/* A conversation: its messages, the model's chat template, and what is forgotten when the context
 * is full. A turn is a message of the user with all that follows until the next one. */
#ifndef NB_ENGINE_DIALOG_H
#define NB_ENGINE_DIALOG_H

#include "engine/generate.h"
#include "text/chat.h"

/* `{0}` is empty. */
typedef struct {
    const nb_tokenizer *tokenizer; /* borrowed */
    nb_jinja *template_;
    nb_message *messages; /* roles are static, contents are owned */
    int64_t n, cap;
} nb_dialog;

/* Reads the store's chat template. NB_UNSUPPORTED when it has none. */
nb_status nb_dialog_init(nb_dialog *d, nb_store *store, const nb_tokenizer *tokenizer, nb_err *err);
void nb_dialog_free(nb_dialog *d);

/* The system message, put first; NULL removes it. */
nb_status nb_dialog_system(nb_dialog *d, const char *text, nb_err *err);
/* Forgets every turn, not the system message. */
void nb_dialog_clear(nb_dialog *d);
/* Forgets the oldest turn; false (and nothing happens) when there are not two. */
bool nb_dialog_drop_oldest(nb_dialog *d);
/* Appends the ids, up to where the assistant's answer begins. */
nb_status nb_dialog_encode(const nb_dialog *d, nb_tokens *out, nb_err *err);

typedef enum {
    NB_CTX_STOP,             /* a full context ends the answer */
    NB_CTX_DROP_OLDEST_TURN, /* forgets turns as long as there are two */
} nb_ctx_policy;

/* Says what the user said and lets the model answer; both are added to the conversation. After a
 * failure the message is not there. *n_dropped turns were forgotten. */
nb_status nb_dialog_answer(nb_dialog *d, nb_generator *g, const char *text, size_t len,
                           nb_ctx_policy policy, const nb_generate_options *options,
                           nb_generation *out, int64_t *n_dropped, nb_err *err);

#endif
