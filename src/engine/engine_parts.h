/* Private to the engine: what its files share. */
#ifndef NB_ENGINE_ENGINE_PARTS_H
#define NB_ENGINE_ENGINE_PARTS_H

#include "engine/draft.h"
#include "engine/engine.h"
#include "engine/ngram.h"

#include <pthread.h>
#include <stdatomic.h>

#define NB_ENGINE_LOGIT_ROWS 32 /* rows whose logits are held at once */

typedef struct {
    struct nb_engine_request_state *of;
    int64_t number;
    nb_choice choice;
    nb_ngram ngram; /* of prompt and answer, if guesses are of these */
    nb_reach reach; /* of the draft's guesses */
    bool over;
    uint64_t prompt_hash;                      /* with options.hash_logits and no_answer */
    int64_t n_cached;                          /* tokens of the prompt that were found */
    double first_run, first_token, last_token; /* by nb_clock; 0: not yet */
} nb_engine_choice;

/* A request with copies of all that it points to. */
typedef struct nb_engine_request_state {
    struct nb_engine_request_state *next;
    nb_engine_request asked;
    uint64_t id;
    int64_t max_new;
    nb_choosing choosing;
    nb_engine_choice *choices; /* [asked.n] */
    int64_t n_open;            /* choices that are not over */
    double *sum;               /* [d_model] with asked.pooling: of the first n_pooled rows */
    float *pooled;             /* [d_model] */
    int64_t n_pooled;
    double submitted;
    bool abort_asked, taken; /* under the mutex */
    bool admitted;           /* the schedule knows it */
    bool aborted, deaf; /* the engine's thread: to be dropped; its owner wants to hear no more */
    void *owned[8];     /* copies */
    int n_owned;
} nb_engine_request_state;

/* A row of the batch of logits at hand. */
typedef struct {
    int64_t entry;
    int64_t guess;     /* how many guesses stand before it in its entry; the first is no guess */
    int64_t prompt_at; /* the row predicts this token of a prompt whose probabilities are wanted */
    bool chooses, ends_prompt; /* a token is chosen from it; it is the last, and none is */
    int32_t id;
    nb_status status;
    uint64_t hash;
    nb_logprob top[1 + NB_MAX_LOGPROBS];
} nb_engine_row;

/* What others may read at any time. */
typedef struct {
    _Atomic int64_t n_running, n_waiting, n_preemptions, n_steps;
    _Atomic int64_t prompt_tokens, generated_tokens, cached_tokens, queried_tokens;
    _Atomic int64_t guesses, guessed_tokens, accepted_tokens, accepted_at[NB_MAX_GUESS];
    _Atomic int64_t finished[NB_N_FINISHES];
    _Atomic int64_t blocks_free, blocks_cached, blocks_used, slots, slots_filled;
    _Atomic int64_t step_nanoseconds;
} nb_engine_shown;

struct nb_engine {
    nb_engine_setup setup; /* with defaults resolved */
    nb_engine_observer observer;
    int64_t n_ids, max_claimed;
    nb_ends ends;
    nb_json_tokens json; /* made for the first request with a schema, under the mutex */
    /* shared with those who submit */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    nb_engine_request_state *requests, **requests_end; /* in order of arrival */
    bool any_news, stop, draining;
    uint64_t next_id;
    _Atomic int64_t n_claimed; /* sequences of all requests that are there */
    nb_engine_shown stats;
    /* the thread's own */
    pthread_t thread;
    nb_engine_request_state **live; /* [n_live] those of the list that it has taken note of */
    int64_t n_live;
    nb_sched sched;
    nb_step_plan plan;
    nb_work work;
    nb_kv_pool kv;   /* its free list is not used: blocks are the schedule's */
    nb_kv_seq *seqs; /* [max_seqs] by the schedule's number of their table */
    nb_step_input *inputs;
    int64_t *first_row; /* [entries + 1] of each entry among the rows of `hidden` */
    bool *broken;
    nb_sched_result *results;
    int32_t (*fed)[1 + NB_MAX_GUESS];  /* of entries with guesses: the last token, and those */
    int32_t (*made)[1 + NB_MAX_GUESS]; /* what was chosen */
    int64_t *n_guessed;                /* of an entry */
    nb_draft draft;                    /* with setup.draft */
    nb_draft_ask *asks;                /* of it, and the entries that they are for */
    int64_t *ask_entry;
    nb_engine_choice **entry_choice, **by_slot; /* of the request and sample in slot_* */
    uint64_t *slot_id;
    int32_t *slot_sample;
    float *hidden, *logits; /* [step_tokens][d_model], [NB_ENGINE_LOGIT_ROWS][vocab_size] */
    nb_engine_row *rows;    /* [NB_ENGINE_LOGIT_ROWS] */
    nb_sampler *samplers;   /* [n_threads] */
    int n_threads;
    int64_t n_generated, n_guesses, n_all_guessed, n_accepted, accepted_at[NB_MAX_GUESS];
    double step_seconds;
};

nb_status nb_engine_start(nb_engine *e, nb_err *err);
/* Of a setup with defaults resolved. */
nb_draft_setup nb_engine_draft_setup(const nb_engine_setup *s, nb_sampler *samplers);
/* Before a plan: how many guesses each sequence is worth. */
void nb_engine_reach(nb_engine *e);
/* After it: the guesses, into `fed` and n_guessed. */
void nb_engine_ask_draft(nb_engine *e);
/* When tokens are chosen: how many of them were right. */
void nb_engine_learn(nb_engine *e);
void nb_engine_request_free(nb_engine_request_state *r);

/* With asked.pooling: room for the row, of a model whose rows are d_model long. */
nb_status nb_pooling_init(nb_engine_request_state *r, int64_t d_model, nb_err *err);
/* Takes the hidden states of the prompt's tokens [from, from + n). */
void nb_pooling_take(nb_engine_request_state *r, const float *hidden, int64_t d_model, int64_t from,
                     int64_t n);

#endif
