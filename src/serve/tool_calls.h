/* An answer's text, piece by piece, taken apart into content and calls of tools. What is certain
 * comes out at once, so that a stream can tell of a call while it is written: content up to where a
 * call may begin, then the call's name, then its arguments as they come. What only looked like a
 * call is content. The same text gives the same content and calls however it is cut. */
#ifndef NB_SERVE_TOOL_CALLS_H
#define NB_SERVE_TOOL_CALLS_H

#include "serve/tool_style.h"

#define NB_MAX_TOOL_CALLS 128 /* of an answer; what is called beyond is left out */

typedef struct {
    char id[40]; /* random */
    nb_buf name; /* zero-terminated */
    nb_buf
        arguments; /* JSON as the model wrote it, so far; only a whole call's is sure to be some */
    bool told;     /* its id and name were written */
    size_t taken;  /* of arguments */
} nb_tool_call;

/* Where the next byte stands. */
typedef enum {
    NB_TOOLS_AT_TEXT,   /* content, in which a tag may begin (Hermes) */
    NB_TOOLS_AT_BEGIN,  /* before a call, or content (Llama) */
    NB_TOOLS_AT_OBJECT, /* in a call, before or within its object */
    NB_TOOLS_AT_SKIP,   /* between a call's object and the tag that ends it */
    NB_TOOLS_AT_PLAIN,  /* content to the end */
} nb_tools_at;

/* Where in the object: outside of strings and nested values white space is skipped. */
typedef enum {
    NB_OBJECT_OPEN,
    NB_OBJECT_KEY,
    NB_OBJECT_IN_KEY,
    NB_OBJECT_COLON,
    NB_OBJECT_VALUE,
    NB_OBJECT_IN_STRING,
    NB_OBJECT_IN_NESTED,
    NB_OBJECT_IN_WORD,
    NB_OBJECT_COMMA,
} nb_object_at;

/* `{0}` is empty, and freeing it fine. */
typedef struct {
    bool bare; /* calls stand alone, as JSON; else in tags */
    int64_t max_calls;
    nb_tools_at at;
    nb_buf space; /* white space in front of what may be a call */
    nb_buf raw;   /* what was read of a call that is not yet one */
    int n_tag;    /* bytes of a tag that were seen */
    bool closing; /* it is the tag that ends a call */
    /* the object */
    nb_object_at in;
    nb_buf key, value, name, early; /* early: arguments that came before the name */
    int depth;
    bool quoted, escaped; /* within a nested value */
    bool has_name, has_arguments, begun, streams, hidden;
    int64_t n_seen; /* calls, those beyond max_calls too */

    nb_buf content;
    size_t content_taken;
    nb_tool_call *calls; /* [n_calls] */
    int64_t n_calls, cap;
} nb_tool_calls;

/* `inside`: the prompt ended with the beginning of a call. */
void nb_tool_calls_init(nb_tool_calls *c, nb_tool_style style, bool inside, int64_t max_calls);
void nb_tool_calls_free(nb_tool_calls *c);
nb_status nb_tool_calls_put(nb_tool_calls *c, const char *text, size_t len, nb_err *err);
/* The answer is over: what is held back is content. */
nb_status nb_tool_calls_end(nb_tool_calls *c, nb_err *err);

#endif
