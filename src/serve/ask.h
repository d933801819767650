/* What a client asks for, out of a request's JSON: prompts as token ids, and how to answer them.
 * Knows no sockets. openai.h and sglang.h read their routes' fields into it; here is what they have
 * in common. Every limit on what a client may cause stands in this header. */
#ifndef NB_SERVE_ASK_H
#define NB_SERVE_ASK_H

#include "serve/fields.h"
#include "serve/served.h"

#define NB_ASK_MAX_PROMPTS 128
#define NB_ASK_MAX_CHOICES 128                /* of all prompts together */
#define NB_ASK_MAX_INPUTS  2048               /* of embeddings */
#define NB_ASK_MAX_NUMBERS ((int64_t)1 << 22) /* of all embeddings together */
/* Inputs of one request that are in the engine at a time: a list of two thousand does not shut
 * others out. */
#define NB_ASK_INPUT_WINDOW   32
#define NB_ASK_MAX_MESSAGES   2048
#define NB_ASK_MAX_TOOLS      128
#define NB_ASK_MAX_TOOL_NAME  128 /* bytes */
#define NB_ASK_MAX_STOPS      16
#define NB_ASK_MAX_STOP_BYTES 256
#define NB_ASK_MAX_STOP_IDS   NB_MAX_STOPS
#define NB_ASK_MAX_BIAS       1024
#define NB_ASK_MAX_SCHEMA     ((size_t)64 << 10)
#define NB_ASK_MAX_SALT       1024
/* A token has at least one byte almost everywhere, and none has more than this many on average: a
 * longer text cannot fit into the context, and is refused before it is encoded. */
#define NB_ASK_MAX_BYTES_PER_TOKEN 64

typedef enum { NB_ASK_COMPLETION, NB_ASK_CHAT, NB_ASK_GENERATE, NB_ASK_EMBEDDING } nb_ask_shape;

typedef struct {
    nb_tokens tokens;
    const char *text; /* as the client wrote it, borrowed; NULL: it gave ids, or a conversation */
    size_t len;
} nb_prompt;

typedef struct {
    nb_ask_shape shape;
    json_t *json; /* the request; strings below are borrowed from it */
    char id[48];
    int64_t created; /* seconds of the calendar */
    double arrived;  /* nb_clock */

    nb_prompt *prompts;
    int64_t n_prompts;
    bool is_batch; /* the prompt was a list: SGLang answers with one */
    int64_t n;     /* choices of each prompt */
    nb_generate_options options;
    bool prompt_logprobs;
    bool no_answer; /* nothing is to be generated: only the prompt's logprobs are wanted, if they */
    nb_pooling pooling; /* or the prompt's hidden states */
    int64_t dimensions; /* of an embedding */
    bool as_base64;
    int64_t priority;
    const char *salt;
    size_t salt_len;

    bool stream, include_usage, echo, include_stop;
    int64_t logprob_start; /* SGLang: prompt logprobs from here; -1: none */

    const char *stops[NB_ASK_MAX_STOPS];
    int32_t stop_ids[NB_ASK_MAX_STOP_IDS];
    nb_logit_bias *bias;
    const char *json_schema;  /* the answer is JSON as it allows; NULL: any text */
    char *schema;             /* what that points to when it is no borrowed text */
    const char *schema_field; /* of the request, that it comes from */

    const json_t *tools;      /* that the template is told of, borrowed; NULL: none */
    nb_tool_style tool_style; /* how the answer may call them; NB_TOOLS_NONE: it is text */
    bool must_call;
    int64_t max_calls;
} nb_ask;

/* Takes the reference to `json`. `{0}` is empty, and freeing it fine. */
void nb_ask_init(nb_ask *ask, nb_ask_shape shape, json_t *json);
void nb_ask_free(nb_ask *ask);
/* The engine has its own copy of everything: frees what no answer needs, which is most of it. */
void nb_ask_submitted(nb_ask *ask);
/* A random name behind "cmpl-", "chatcmpl-"; and the time. */
void nb_ask_name(nb_ask *ask);

static inline int64_t nb_ask_n_choices(const nb_ask *ask)
{
    return ask->n_prompts * ask->n;
}

/* ---- what the routes' readers share ---- */

/* "model": 404 when it is another one. */
nb_status nb_ask_model(const nb_fields *f, const nb_served *m);
/* The names that both protocols share: temperature, top_p, top_k, min_p, the penalties, stop,
 * stop_token_ids, ignore_eos, skip_special_tokens, logit_bias, n. */
nb_status nb_ask_sampling(nb_ask *ask, const nb_fields *f, const nb_served *m);
/* A whole number under `name`; without one a seed is drawn. -1 counts as none. */
nb_status nb_ask_seed(nb_ask *ask, const nb_fields *f, const char *name);
/* A schema as a JSON value, kept as text. */
nb_status nb_ask_schema(nb_ask *ask, const nb_fields *f, const char *name, const json_t *schema);
/* "cache_salt". */
nb_status nb_ask_salt(nb_ask *ask, const nb_fields *f);
/* Makes room for `n` prompts. */
nb_status nb_ask_reserve(nb_ask *ask, const nb_fields *f, const char *name, int64_t n);
/* A prompt out of a text or a list of ids (at `name` of the request). */
nb_status nb_ask_text(nb_ask *ask, const nb_fields *f, const char *name, const nb_served *m,
                      const char *text, size_t len, nb_encode_options how);
nb_status nb_ask_ids(nb_ask *ask, const nb_fields *f, const char *name, const nb_served *m,
                     const json_t *ids);
/* A string, a list of strings, a list of ids, a list of lists of ids. */
nb_status nb_ask_prompts(nb_ask *ask, const nb_fields *f, const char *name, const nb_served *m,
                         const json_t *prompt, nb_encode_options how);
/* Refuses what has no room: "WHAT this model's context has N tokens", or the KV cache has. */
nb_status nb_ask_no_room(const nb_fields *f, const char *param, const nb_served *m,
                         const char *format, ...) __attribute__((format(printf, 4, 5)));
/* Checks each prompt and the answer's length against the room there is. max_tokens < 0: as many as
 * fit; `name` is the field it came from. Sets options.max_tokens. */
nb_status nb_ask_fit(nb_ask *ask, const nb_fields *f, const char *name, const nb_served *m,
                     int64_t max_tokens, int64_t min_tokens);

#endif
