/* The engine: many requests over one model, one paged cache and one schedule (sched.h). A step
 * takes whatever the schedule gives it, runs the model once, chooses a token for every sequence
 * whose prompt is complete, and tells its owner. What a request is answered depends on its prompt
 * and its options only, bit for bit: not on what else runs, on how prompts were cut into steps, on
 * preemption, or on what was found in the cache.
 *
 * One thread of the engine's own runs the steps. Others submit and abort at any time; what they are
 * told comes from the engine's thread. All memory of a step is allocated at start. */
#ifndef NB_ENGINE_ENGINE_H
#define NB_ENGINE_ENGINE_H

#include "engine/sample.h"
#include "engine/sched.h"
#include "model/forward.h"
#include "text/tokenizer.h"

typedef struct nb_engine nb_engine;

typedef struct {
    const nb_model *model; /* borrowed, like all here */
    const nb_kernels *kernels;
    nb_pool *pool;                 /* the engine's alone while it runs */
    const nb_tokenizer *tokenizer; /* NULL: answers are ids without text, and end by number */
    const nb_model *draft; /* guesses are its own (nb_draft_check); NULL: of what a text repeats */
    int n_guess;           /* options.n_guess of requests that have none */
    bool guess_always;     /* the draft guesses as much as it may, also where it is mostly wrong */
    nb_kv_format kv;
    int64_t n_blocks; /* of the cache, NB_KV_PAGE positions each; 0: as kv_bytes has room for */
    int64_t kv_bytes; /* with what packed formats keep of recent positions; 0: one sequence of n_ctx
                         for each of max_seqs, at most 1 GiB */
    int64_t n_ctx;    /* positions of a sequence; 0: the model's */
    int64_t step_tokens; /* of all sequences in a step; 0: 512 */
    int64_t max_seqs;    /* that run at once; 0: 64 */
    int64_t max_queue;   /* requests that wait; 0: 256 */
    nb_sched_policy policy;
    bool share_prefixes; /* no matter with packed formats, where sequences share nothing */
    uint8_t key[16];     /* of the index of prefixes: drawn by the caller */
} nb_engine_setup;

/* What it takes, before it is made. Bytes. */
typedef struct {
    int64_t weights, cache, work, sequences, draft, total; /* draft: its weights, cache and work */
    int64_t recent; /* of the cache: what packed formats keep in F16 of all sequences, at most */
    int64_t n_blocks;
} nb_engine_memory;
nb_status nb_engine_plan(const nb_engine_setup *setup, nb_engine_memory *out, nb_err *err);

/* Starts its thread. */
nb_status nb_engine_open(nb_engine **out, const nb_engine_setup *setup, nb_err *err);
/* Ends every request (NB_FINISH_ABORT) and the thread. NULL is fine. */
void nb_engine_close(nb_engine *e);

/* ---- requests ---- */

/* X(enumerator, name in metrics, OpenAI's finish_reason) */
#define NB_FINISH_LIST(X)                                                                          \
    X(NB_FINISH_STOP, "stop", "stop")       /* end of answer, a stop string or id */               \
    X(NB_FINISH_LENGTH, "length", "length") /* max_tokens, or the context is full */               \
    X(NB_FINISH_ABORT, "abort", "abort")    /* by its owner, or because the engine closes */       \
    X(NB_FINISH_ERROR, "error", "error")    /* see `error` */
typedef enum {
#define X(id, name, openai) id,
    NB_FINISH_LIST(X)
#undef X
        NB_N_FINISHES,
    NB_NOT_FINISHED = -1
} nb_finish;

/* What becomes of a prompt's final hidden states (after the last norm), one row of d_model for each
 * token: their mean, summed in binary64 in the order of the tokens, or the last token's. */
typedef enum { NB_POOL_NONE, NB_POOL_MEAN, NB_POOL_LAST } nb_pooling;

/* What the owner is told. Pointers are valid during the call. */
typedef struct {
    int64_t choice;    /* 0 .. n - 1 */
    int64_t prompt_at; /* >= 0: `id` is token number prompt_at of the prompt, with logprobs of the
                          prompt; -1: of the answer */
    int32_t id;        /* -1: no token, only text or the end */
    const char *text;  /* certain now: whole characters, nothing of a stop string */
    size_t len;
    const nb_logprob *logprobs; /* [1 + n_top]: the token, then the likeliest; NULL: not asked for,
                                   or there is none (the first token of a prompt) */
    uint64_t logits_hash; /* with options.hash_logits: of the row that `id` was chosen from; with
                       no_answer, in the last event, of the prompt's last row */
    nb_finish finish;     /* NB_NOT_FINISHED, or why the choice ended: its last event */
    const char *stop;     /* with NB_FINISH_STOP: the stop string that was found, or NULL */
    int32_t stop_id;      /* the id that ended it, or -1 */
    const char *error;    /* with NB_FINISH_ERROR: one line */
    const float *pooled;  /* [n_pooled] with request.pooling and NB_FINISH_STOP; else NULL */
    int64_t n_pooled;     /* the model's d_model */
    int64_t n_prompt, n_cached, n_made; /* tokens; of the prompt that were found in the cache */
} nb_engine_event;

/* On the engine's thread, between two steps: must not block. False aborts the request; nothing is
 * told any more. */
typedef bool nb_engine_fn(void *context, const nb_engine_event *event);

typedef struct {
    const int32_t *prompt; /* copied, like all else in here */
    int64_t n_prompt;
    nb_generate_options options; /* on_text and context are not looked at */
    int64_t n;                   /* choices; sampling.choice is that of the first */
    bool prompt_logprobs;        /* with options.logprobs: of the prompt, too */
    bool no_answer;              /* the prompt alone: for its log-probabilities, or `pooling` */
    nb_pooling pooling;          /* with no_answer and n == 1: what the request is for */
    int64_t priority;            /* the lower runs first, under NB_SCHED_PRIORITY */
    const void *salt;            /* prefixes are shared among equal salts */
    size_t salt_len;
    nb_engine_fn *on_event;
    void *context;
    void (*release)(void *context); /* once, after the last event: from the engine's thread; NULL */
} nb_engine_request;

/* Checks everything that can be checked, compiles what constrains the answer, and queues it. *id is
 * for nb_engine_abort. NB_USAGE: an option is out of range, named as in nibble.h; NB_UNSUPPORTED: a
 * keyword of the schema; NB_LIMIT: prompt and answer do not fit into the context or the cache, or,
 * with *busy, the queue is full or the engine drains: later it may do. After a failure nothing is
 * told, and `release` is not called. */
nb_status nb_engine_submit(nb_engine *e, const nb_engine_request *request, uint64_t *id, bool *busy,
                           nb_err *err);
/* The request holds nothing at the start of the next step. Its choices end with NB_FINISH_ABORT.
 * An id that is over is fine. */
void nb_engine_abort(nb_engine *e, uint64_t id);
/* No more requests are taken; those that are there end by themselves. */
void nb_engine_drain(nb_engine *e);

/* ---- what it does ---- */

/* Counted since start, and of the moment. Reading takes no lock that a step holds. */
typedef struct {
    int64_t n_running, n_waiting, n_preemptions, n_steps;
    int64_t prompt_tokens, generated_tokens, cached_tokens, queried_tokens; /* of prefixes */
    int64_t guesses; /* times that one sequence was guessed for, with options.n_guess: */
    int64_t guessed_tokens, accepted_tokens; /* what that were, and those that were right, */
    int64_t accepted_at[NB_MAX_GUESS];       /* by how many of the same time stood before them */
    int64_t finished[NB_N_FINISHES];
    int64_t blocks_free, blocks_cached, blocks_used;
    double usage, fragmentation; /* blocks.h */
    double step_seconds;         /* all steps together */
} nb_engine_stats;
void nb_engine_read_stats(const nb_engine *e, nb_engine_stats *out);
/* Sequences that may wait and run at once, so that more in one request can never be taken. */
int64_t nb_engine_most_sequences(const nb_engine *e);

/* Told of times, for histograms: seconds by the monotonic clock, on the engine's thread. */
typedef struct {
    void (*step)(void *context, double seconds, int64_t n_tokens);
    void (*first_token)(void *context, double since_submit);
    void (*next_token)(void *context, double since_last);
    void (*finished)(void *context, nb_finish finish, double queued, double prefill, double decode,
                     int64_t n_prompt, int64_t n_made, const nb_engine_request *request);
    void *context;
} nb_engine_observer;
void nb_engine_observe(nb_engine *e, const nb_engine_observer *observer); /* before requests */

#endif
