/* What the engine has told of a request so far, choice by choice. The engine's thread puts events
 * in, and never waits long; whoever writes the answer takes out what is new. What nobody takes is
 * bounded: a stream whose reader stands still is ended, not collected for. The caller's lock guards
 * it. */
#ifndef NB_SERVE_REPLY_H
#define NB_SERVE_REPLY_H

#include "serve/ask.h"
#include "serve/tool_calls.h"

/* Rows of tokens: ids, and for each 1 + n_top logprobs when they were asked for. */
typedef struct {
    int32_t *ids;
    nb_logprob *logprobs; /* [n][1 + n_top]; id -1 in the first: none (a prompt's first token) */
    int64_t n, cap;
} nb_rows;

typedef struct {
    nb_buf text; /* not yet taken; for SGLang's streams and whole answers: all */
    nb_rows rows;
    size_t text_taken;  /* of text */
    int64_t rows_taken; /* of rows */
    int64_t n_chars;    /* of tokens that were written: text_offset */
    nb_decoder decoder; /* of these tokens: a character may be several */
    bool begun, ended;  /* its first event, its last one, were written */
    nb_finish finish;
    char *stop;      /* the string that ended it; NULL: none */
    int32_t stop_id; /* or the id; -1: none, or the model's own end */
    int64_t n_prompt, n_cached, n_made;
    char *error;          /* with NB_FINISH_ERROR */
    float *pooled;        /* of an embedding; NULL: not there */
    nb_tool_calls *calls; /* the text, taken apart; NULL: it is content as it is */
} nb_choice;

typedef struct {
    const nb_ask *ask;
    int64_t n_choices, n_unfinished;
    nb_choice *choices;   /* [n_choices]: prompt p's are [p * n, (p + 1) * n) */
    nb_rows *prompt_rows; /* [n_prompts] */
    int64_t n_top;
    bool
        keeps_all; /* nothing taken is dropped: the answer is written at the end, or whole so far */
    bool keeps_ids; /* rows are wanted, if only for their ids */
    size_t limit;   /* bytes that may wait to be taken */
    size_t n_waiting;
    bool overflowed, out_of_memory;
    bool crowded_out; /* prompts were left when the engine took no more */
} nb_reply;

/* `limit` is for streams. */
nb_status nb_reply_init(nb_reply *r, const nb_ask *ask, size_t limit, nb_err *err);
void nb_reply_free(nb_reply *r); /* `{0}` is fine */

/* Prompt number `p` was told `e`. False when nothing more is wanted: the
 * request is to be aborted. */
bool nb_reply_put(nb_reply *r, int64_t p, const nb_engine_event *e);
/* Every choice that is not over ends so. */
void nb_reply_end(nb_reply *r, nb_finish finish, const char *error);
/* NB_OK, or why there is no answer: some choice ended with an error, or because
 * the server stops. */
nb_status nb_reply_failed(const nb_reply *r, nb_problem *why);
/* Takes text apart that was not yet, where the answer may call tools. */
nb_status nb_choice_part(nb_choice *c, nb_err *err);
/* After text and rows were written: forgets them unless all is kept. */
void nb_choice_taken(nb_reply *r, nb_choice *c);

#endif
