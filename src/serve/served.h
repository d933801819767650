/* The model as routes see it: names, tokenizer, template, engine. Filled in once, by the program,
 * and only read while the server runs. */
#ifndef NB_SERVE_SERVED_H
#define NB_SERVE_SERVED_H

#include "engine/engine.h"
#include "serve/tool_style.h"

typedef struct {
    const char *name;           /* what /v1/models calls it, and answers */
    const char *const *aliases; /* [n_aliases] other names that requests may use */
    int n_aliases, n_listed;    /* the first n_listed of them are in /v1/models */
    const nb_tokenizer *tokenizer;
    const nb_jinja *template_; /* NULL: the model has no chat template */
    nb_tool_style tool_style;  /* as nb_tool_style_of finds, or --tool-parser says */
    nb_engine *engine;
    int64_t n_ctx;  /* of a sequence, as the engine was set up */
    int64_t n_room; /* tokens that a sequence can have: n_ctx, or fewer if the cache is smaller */
    int64_t vocab_size; /* ids are below this, in prompts and biases */
    int64_t d_model;    /* numbers of an embedding */
    nb_pooling pooling; /* what an embedding is */
    int64_t created;    /* seconds of the calendar */
    const char *report; /* [report_len] its nibble-report.json; NULL: none */
    size_t report_len;
} nb_served;

/* Whether requests may call the model so. */
bool nb_served_is(const nb_served *m, const char *name);

#endif
