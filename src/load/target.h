/* The server that is put under load: its address, the model it is asked for, and what has to be
 * known of it before the load begins. */
#ifndef NB_LOAD_TARGET_H
#define NB_LOAD_TARGET_H

#include "load/http.h"
#include "load/prompt.h"

/* Servers differ in what they take beside OpenAI's fields. */
typedef enum {
    NB_BACKEND_AUTO, /* until the server was asked */
    NB_BACKEND_NIBBLE,
    NB_BACKEND_VLLM,
    NB_BACKEND_SGLANG,
    NB_BACKEND_LLAMA_SERVER,
    NB_BACKEND_OPENAI, /* strict: fields that OpenAI's API lacks are not sent */
    NB_BACKEND_OTHER,
} nb_backend;
/* "auto", "nibble", ..., NULL after the last. */
const char *nb_backend_name(nb_backend backend);

typedef struct {
    nb_http_options http; /* api_key is the caller's */
    bool chat;
    nb_backend backend;
    char *base;  /* the address without /v1 */
    char *url;   /* where requests go */
    char *model; /* NULL until it is known */
} nb_target;

/* Reads an address like http://127.0.0.1:8000, with or without /v1. NB_USAGE: it is none. model may
 * be NULL. Free with nb_target_free, also after a failure. */
nb_status nb_target_init(nb_target *target, const char *url, bool chat, const char *model,
                         nb_err *err);
void nb_target_free(nb_target *target);

/* Asks /v1/models for what is not known: the first model, and which server this is. A server that
 * does not list its models is fine if a model was named. */
nb_status nb_target_ask_models(nb_target *target, nb_err *err);
/* Fits words to the server's tokenizer by its /tokenize. NB_UNSUPPORTED: it has none. */
nb_status nb_target_fit_words(const nb_target *target, nb_words *words, nb_err *err);

#endif
