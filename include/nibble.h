/* nibble: fit a language model into a few bits per weight, measure what that cost, run it.
 *
 * This is the public interface of libnibble. Handles are opaque; every fallible call returns an
 * nb_status and writes one line of explanation into the caller's nb_err. Nothing here prints,
 * exits or aborts because of data. */
#ifndef NIBBLE_H
#define NIBBLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(NIBBLE_SHARED_BUILD)
#define NB_API __attribute__((visibility("default")))
#else
#define NB_API
#endif

#define NIBBLE_VERSION "0.1.0"

/* X(enumerator, short name, exit code of the command-line program) */
#define NB_STATUS_LIST(X)                                                                          \
    X(NB_OK, "ok", 0)                                                                              \
    X(NB_DATA, "bad data", 1)           /* a file or request says something impossible */          \
    X(NB_UNSUPPORTED, "unsupported", 1) /* well formed, but not something nibble does */           \
    X(NB_USAGE, "wrong usage", 2)       /* flags or arguments */                                   \
    X(NB_IO, "i/o failure", 3)          /* open, read, write, rename, network */                   \
    X(NB_MEMORY, "out of memory", 4)                                                               \
    X(NB_LIMIT, "over a limit", 4) /* a stated maximum: context, memory budget */                  \
    X(NB_INTERRUPTED, "interrupted", 5)

typedef enum {
#define X(id, text, exit_code) id,
    NB_STATUS_LIST(X)
#undef X
} nb_status;

/* The message that travels with a status: one line, printable ASCII, already escaped. */
typedef struct {
    nb_status status;
    char text[1000];
} nb_err;

NB_API const char *nb_version(void);
NB_API const char *nb_status_name(nb_status status);

/* Frees what this library allocated and handed over; NULL is fine. */
NB_API void nb_free(void *p);

/* ---- a language model, opened ----
 *
 * Rules that hold everywhere below:
 *   - `{0}` is a valid options struct: the defaults.
 *   - err is never NULL. On failure outputs are as they were and nothing leaks.
 *   - Strings that a call returns inside a struct are borrowed from the handle; arrays returned
 *     through a pointer to a pointer are the caller's, who frees them with nb_free.
 *   - Threads: handles may move between threads. Calls that take a const nb_lm may run at the same
 *     time. Calls that compute (all that take an nb_session) use the threads of the nb_lm, so at
 *     most one of them may run at a time for all sessions of one nb_lm. Different nb_lm are
 *     independent of each other.
 *   - Results depend on the model, the tokens and the options only, bit for bit: not on threads,
 *     the instruction set, or how a prompt was cut into calls. */
typedef struct nb_lm nb_lm;

typedef struct {
    int threads;         /* 0: all processors this process may run on; at most 256 */
    const char *isa;     /* "scalar", "avx2", "avx512", "amx", "neon"; NULL or "auto": the best */
    const char *compute; /* "f", "i8", "i16"; NULL or "auto": what the model's formats say */
    const char *kv; /* "f16", "f32", "bf16", "int8", "fp8", "int4", "int2"; NULL or "auto": what
                       the model says, else f16. fp8 takes the model's scales if it has some;
                       "fp8:dynamic" finds its own */
    int64_t n_ctx;  /* tokens a session can hold; 0: the model's own, at most 8192 */
} nb_lm_options;

/* Opens a .gguf file or a Hugging Face folder and loads its weights. NB_DATA and NB_UNSUPPORTED
 * name the file and what is wrong with it; NB_USAGE: options, an instruction set that this machine
 * lacks among them. */
NB_API nb_status nb_lm_open(nb_lm **out, const char *path, const nb_lm_options *options,
                            nb_err *err);
/* Close the sessions first. NULL is fine. */
NB_API void nb_lm_close(nb_lm *lm);

typedef struct {
    const char *path;         /* as it was opened */
    const char *architecture; /* "llama", "qwen3", ... */
    const char *compute;      /* the mode in force: "f", "i8", "i16"; "i8+f" when weights differ */
    const char *isa;          /* the instruction set in force */
    const char *kv;           /* number type of the key-value cache */
    int threads;
    int64_t n_ctx;        /* of a session */
    int64_t n_ctx_model;  /* that the model was trained for */
    int64_t vocab_size;   /* length of a row of logits */
    int64_t n_params;     /* weights, embeddings included */
    int64_t file_bytes;   /* of the tensor files */
    int64_t weight_bytes; /* resident, as packed for this processor */
    int64_t kv_bytes;     /* of a session whose n_ctx tokens are all in use */
    int32_t bos, eos;     /* -1: none */
    bool has_chat;        /* there is a chat template */
} nb_lm_info;
NB_API void nb_lm_describe(const nb_lm *lm, nb_lm_info *out);

/* ---- text and tokens ---- */

/* The ids of text[0, len), which may be any bytes. With parse_special, special tokens written in
 * the text become their ids; else they are text. With add_bos, the begin-of-sequence token goes
 * first if this model's tokenizer adds one. */
NB_API nb_status nb_lm_encode(const nb_lm *lm, const char *text, size_t len, bool parse_special,
                              bool add_bos, int32_t **ids, int64_t *n, nb_err *err);

/* The text of ids, zero-terminated (the zero is not counted in *len). What is not UTF-8 becomes
 * U+FFFD. Special tokens are left out unless asked for. NB_DATA: an id that does not exist. */
NB_API nb_status nb_lm_decode(const nb_lm *lm, const int32_t *ids, int64_t n, bool with_special,
                              char **text, size_t *len, nb_err *err);

typedef struct {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
    size_t len;
} nb_chat_message;

/* The ids of a conversation as the model's chat template writes it; with open_answer up to where
 * the assistant's answer begins. Special tokens written inside a message stay text.
 * NB_UNSUPPORTED when the model has no template; NB_DATA when the template refuses the messages. */
NB_API nb_status nb_lm_chat(const nb_lm *lm, const nb_chat_message *messages, int64_t n_messages,
                            bool open_answer, int32_t **ids, int64_t *n, nb_err *err);

/* ---- sessions: tokens in, logits out ---- */

/* A sequence of tokens with its key-value cache. */
typedef struct nb_session nb_session;

NB_API nb_status nb_session_open(nb_session **out, nb_lm *lm, nb_err *err);
NB_API void nb_session_close(nb_session *session); /* NULL is fine */

/* Tokens the session holds. */
NB_API int64_t nb_session_n_tokens(const nb_session *session);
/* Appends tokens. NB_LIMIT when they do not fit into n_ctx, NB_DATA for an id outside the
 * vocabulary: then the session is as it was. NB_DATA because the model computed Inf or NaN: the
 * session is empty. */
NB_API nb_status nb_session_feed(nb_session *session, const int32_t *ids, int64_t n, nb_err *err);
/* Keeps the first n tokens only; nothing happens if there are no more. Afterwards there are no
 * logits until tokens were fed. */
NB_API void nb_session_truncate(nb_session *session, int64_t n);
/* The logits of the token after the last one: vocab_size floats, borrowed until the next call
 * that computes; NULL when there are none. *hash, if not NULL, becomes their 64-bit hash, as
 * docs/numerics.md defines it. */
NB_API const float *nb_session_logits(const nb_session *session, uint64_t *hash);

/* A number that is added to the logit of one token; outside [-100, 100] it counts as the nearer of
 * the two. */
typedef struct {
    int32_t id;
    double value;
} nb_logit_bias;

/* How the next token is chosen. In this order: bias, penalties, temperature, top_k, top_p, min_p,
 * then a draw in proportion to what is left. Ties go to the lowest id. The random number is a
 * function of (seed, choice, position) alone, position being the number of tokens before the one
 * drawn. */
typedef struct {
    double temperature;        /* 0: the most likely token, always; else 1e-3 to 1e3 */
    int64_t top_k;             /* keep the k most likely; 0: all */
    double top_p;              /* keep the fewest that have this share; 0 or 1: all */
    double min_p;              /* drop those less likely than this share of the top one; 0: none */
    double repetition_penalty; /* divides the logits above 0 of tokens already there, prompt
                                  included, and multiplies those below; 0 or 1: off */
    double frequency_penalty;  /* subtracted once for each time a token was generated; 0: off */
    double presence_penalty;   /* subtracted when a token was generated at all; 0: off */
    uint64_t seed;
    uint64_t choice;           /* number of an answer among several to the same prompt */
    const nb_logit_bias *bias; /* [n_bias]; an id that comes twice gets the sum */
    int64_t n_bias;            /* at most the vocabulary's size */
} nb_sampling;

/* The choice that the model's authors recommend (generation_config.json), else greedy. */
NB_API void nb_lm_sampling(const nb_lm *lm, nb_sampling *out);

/* Chooses the next token from the logits, and does not feed it. Only tokens fed by
 * nb_session_generate count as generated. NB_DATA: the logits hold NaN; NB_USAGE: there are none,
 * or the sampling is out of range. */
NB_API nb_status nb_session_sample(nb_session *session, const nb_sampling *sampling, int32_t *id,
                                   nb_err *err);

/* ---- generation ---- */

/* X(enumerator, name in JSON output) */
#define NB_STOP_LIST(X)                                                                            \
    X(NB_STOP_EOS, "eos")               /* the model ended its answer */                           \
    X(NB_STOP_TEXT, "stop")             /* a stop string appeared */                               \
    X(NB_STOP_MAX_TOKENS, "max_tokens") /* as many tokens as asked for */                          \
    X(NB_STOP_CONTEXT, "context")       /* the context is full */                                  \
    X(NB_STOP_CALLER, "interrupted")    /* the callback asked for it */

typedef enum {
#define X(id, text) id,
    NB_STOP_LIST(X)
#undef X
} nb_stop_reason;
NB_API const char *nb_stop_reason_name(nb_stop_reason reason);

/* Gets each piece of text as soon as it is certain: whole UTF-8 characters, nothing of a stop
 * string. Also called with len 0, between the steps of a long prompt and for tokens that complete
 * no text. False ends the generation, and it is not called again. It must not compute with the
 * same nb_lm. */
typedef bool nb_text_fn(void *context, const char *text, size_t len);

#define NB_MAX_STOPS    64
#define NB_MAX_LOGPROBS 20
#define NB_MAX_GUESS    16

/* A token and the logarithm of the probability that the model gave it. */
typedef struct {
    int32_t id; /* -1: there was none */
    float logprob;
} nb_logprob;

typedef struct {
    nb_sampling sampling;
    int64_t max_tokens;       /* 0: until something else ends it */
    int64_t min_tokens;       /* before, nothing that ends an answer is chosen, and what stop
                                 strings would be made of is text */
    const char *const *stops; /* strings that end the answer, and are left out of it */
    int n_stops;              /* at most NB_MAX_STOPS */
    const int32_t *stop_ids;  /* tokens that end the answer beside the model's own, as these do */
    int n_stop_ids;           /* at most NB_MAX_STOPS */
    bool ignore_eos;          /* the model's own end of an answer is a token like any other */
    bool logprobs;            /* for each token its logprob, and those of the n_top likeliest */
    int n_top;                /* at most NB_MAX_LOGPROBS */
    const char *json_schema; /* the answer is JSON as this schema, a JSON text, allows (docs/json.md
                                says which keywords there are); NULL: any text */
    int n_guess;             /* tokens to guess ahead in each step, where the text repeats itself;
                                changes the speed only. At most NB_MAX_GUESS */
    bool with_special;       /* special tokens appear in the text */
    bool hash_logits;        /* compute logits_hash: 0.1 ms a token for 50,000 logits */
    nb_text_fn *on_text;     /* NULL: none */
    void *context;
} nb_generate_options;

/* An answer. Free with nb_generation_free. */
typedef struct {
    int32_t *tokens; /* without the token that ended it */
    int64_t n_tokens;
    char *text; /* zero-terminated */
    size_t text_len;
    nb_stop_reason reason;
    int64_t n_prompt;     /* tokens of the prompt */
    int64_t n_cached;     /* of those, in the session already */
    int64_t n_prefilled;  /* tokens computed in steps of many */
    int64_t n_steps;      /* decode steps: one token fed, and the guesses that follow it */
    int64_t n_guessed;    /* tokens guessed in those steps */
    int64_t n_accepted;   /* guesses that were right: each one saved a step */
    double prefill_s;     /* for the n_prefilled, with the first choice */
    double decode_s;      /* for the n_steps, with the choices that followed */
    uint64_t logits_hash; /* XOR of the hashes of the rows that tokens were chosen from */
    int64_t n_dropped;    /* tokens dropped from the conversation to make room (0 here) */
    int32_t stop_id;      /* the token that ended it, with NB_STOP_EOS; else -1 */
    int stop_index;       /* the stop string that ended it, with NB_STOP_TEXT; else -1 */
    nb_logprob *logprobs; /* [n_tokens][1 + n_top]: the token itself, then the likeliest, falling;
                             of the softmax of the model's own logits. NULL: not asked for */
} nb_generation;
NB_API void nb_generation_free(nb_generation *g);

/* Makes the session hold exactly the prompt, computing only what follows the longest common
 * beginning, and generates from there; afterwards it holds prompt and answer (the last token of an
 * answer may be missing: nobody needed what follows it). NB_LIMIT: the prompt is longer than n_ctx.
 * Prompt and answer together have at most n_ctx tokens. *out is filled on success only. */
NB_API nb_status nb_session_generate(nb_session *session, const int32_t *prompt, int64_t n_prompt,
                                     const nb_generate_options *options, nb_generation *out,
                                     nb_err *err);

#ifdef __cplusplus
}
#endif
#endif
