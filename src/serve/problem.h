/* Why a request was refused, as its client is told: a status of HTTP, and OpenAI's error object,
 * which says what was found, what was expected and which field is to blame. */
#ifndef NB_SERVE_PROBLEM_H
#define NB_SERVE_PROBLEM_H

#include "serve/wire.h"

/* `{0}` is none. */
typedef struct {
    nb_err err;        /* the message */
    int http;          /* 400 to 599; 0: nb_problem_settle chooses by err.status */
    const char *code;  /* "context_length_exceeded"; NULL: none */
    char param[64];    /* the field; "": none */
    int retry_after_s; /* 0: no such header */
} nb_problem;

/* Each returns a status that is not NB_OK, for NB_TRY. */
nb_status nb_refuse(nb_problem *why, int http, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* What went wrong below the server, with why->err filled in already. */
nb_status nb_problem_settle(nb_problem *why, nb_status status);

/* The error's type, as OpenAI names it. */
const char *nb_problem_type(int http);
/* {"error":{"message","type","param","code"}} */
void nb_problem_write(const nb_problem *why, nb_wire *out);

#endif
