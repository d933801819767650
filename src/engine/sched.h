/* Which sequence runs how many tokens in the next step: continuous batching as a pure function of
 * the calls made so far. No clock, no I/O, no randomness, no model: the same calls give the same
 * plans. Yu et al., OSDI 2022 (a schedule for every step); Agrawal et al., arXiv:2403.02310
 * (decodes and pieces of prompts share a step under a budget of tokens); Kwon et al.,
 * arXiv:2309.06180 (preemption by recomputing); Zheng et al., arXiv:2312.07104 (longest cached
 * prefix first).
 *
 *     nb_sched_submit, nb_sched_abort      at any time, also between plan and commit
 *     nb_sched_plan                        what to run
 *     copy blocks, run the entries, sample
 *     nb_sched_commit                      what came of it
 *
 * A request is n_samples sequences, which compute their prompt once: the first runs it, the others
 * fork from it. A sequence waits, runs, waits again if it is preempted, and is over after max_new
 * tokens or when the caller says so; then its blocks are given back at once.
 *
 * The rules of a step:
 *   - Whoever runs gets at least one token; decodes come first, prompts get what is left.
 *   - When blocks are short, the one last in order gives its own back and will compute them anew.
 *     Order is arrival, or arrival moved by priority. In a step that preempts nobody is admitted.
 *   - Who has been preempted NB_SCHED_PATIENCE times is next, and while it runs only those are
 *     admitted whose longest possible answers fit beside it: it is not preempted again.
 *   - Who is admitted finds room for all tokens it has, and 1 % of the blocks stays available.
 *   - Drafts for speculative decoding get what then is left of the budget.
 *   - Prefixes found in the index are not computed again, but for the last token, whose output is
 *     wanted.
 *
 * All memory is allocated by init. One thread at a time. */
#ifndef NB_ENGINE_SCHED_H
#define NB_ENGINE_SCHED_H

#include "engine/blocks.h"

#define NB_SCHED_PATIENCE     3    /* preemptions */
#define NB_SCHED_MAX_SAMPLES  128  /* of a request */
#define NB_SCHED_MAX_PRIORITY 1000 /* and the negative of it */
#define NB_SCHED_MAX_DRAFT    64   /* tokens */
#define NB_SCHED_WINDOW       64   /* waiting sequences that NB_SCHED_LPM looks at */
#define NB_SCHED_SHORT        256  /* tokens of a sequence that lie beside those of others */

/* How those who wait are ordered. None of them lets anybody wait for ever: a request is overtaken
 * by those only that arrive within a bounded time after it. */
typedef enum {
    NB_SCHED_FCFS,     /* by arrival */
    NB_SCHED_PRIORITY, /* as if arrived priority * ageing_ms later; within the same, by arrival */
    NB_SCHED_LPM,      /* as if arrived ageing_ms earlier for each block of its found prefix */
} nb_sched_policy;

typedef struct {
    nb_blocks_setup blocks; /* its max_seqs is how many sequences run at once */
    int64_t step_tokens;    /* budget of a step; no more sequences than that run at once either */
    int64_t max_waiting;    /* sequences; a request that would make it more is refused */
    int64_t ageing_ms;      /* see nb_sched_policy; at most a day */
    bool own_prompts;       /* every sample computes the prompt itself: none forks */
    nb_sched_policy policy;
} nb_sched_setup;

typedef struct {
    uint64_t id;           /* the caller's, of no other request that is still there */
    const int32_t *prompt; /* [n_prompt], copied; any values */
    int64_t n_prompt;      /* at least 1 */
    int64_t max_new;       /* tokens to generate; 0: only the prompt is run */
    int64_t n_samples;     /* 0 counts as 1 */
    int64_t arrival_ms;    /* on a monotonic clock; an earlier time than the last counts as that */
    int64_t max_draft;     /* tokens a step may guess ahead */
    int32_t priority;      /* lower goes first */
    const void *salt;      /* [salt_bytes]: prefixes are shared only under the same salt */
    size_t salt_bytes;
    bool all_outputs; /* of the first sample's prompt, not only its last token's: for their
                         probabilities, or embeddings. They are computed, not found. */
} nb_sched_request;

typedef enum { NB_SEQ_NONE, NB_SEQ_WAITING, NB_SEQ_RUNNING } nb_seq_state;

/* A sequence, in a slot that it keeps from submit until it is over. */
typedef struct {
    nb_seq_state state;
    bool aborted;    /* while its step is under way: it ends there */
    uint64_t id;     /* of its request */
    int64_t arrival; /* requests number from 0 */
    int64_t key_ms;  /* order of arrival, with its priority: earlier is sooner */
    int64_t n_prompt, max_new, max_draft;
    int64_t n_tokens;  /* prompt and generated */
    int64_t n_kv;      /* of these, computed and in its blocks; n_tokens - 1 while it decodes */
    int64_t n_hashes;  /* of its full blocks */
    int64_t n_outputs; /* all_outputs: prompt tokens whose outputs were given out */
    int64_t n_found;   /* prompt tokens found when it first ran; -1 before */
    int32_t sample;    /* 0 to n_samples - 1 of its request */
    int32_t n_samples;
    int32_t priority;
    int32_t n_preempted;
    int32_t seq; /* number of its table while it runs, else -1 */
    bool all_outputs;
    bool is_long; /* more than NB_SCHED_SHORT tokens: they and the hashes are in the long rows */
    nb_sip128 root;
} nb_seq;

/* Since init; what /metrics counts. */
typedef struct {
    int64_t n_steps, n_preemptions;
    int64_t n_submitted, n_finished, n_aborted, n_broken; /* sequences */
    int64_t n_prompt_tokens, n_generated_tokens; /* a prompt counts once, when it first runs */
    int64_t n_prefix_queries, n_prefix_hits;     /* tokens, at each admission */
} nb_sched_counts;

/* Fields are for reading. */
typedef struct {
    nb_sched_setup setup;
    nb_blocks blocks;
    nb_seq *seqs; /* [n_slots] */
    int64_t n_slots;
    /* By slot. The long rows have room for a whole context and lie pages apart: they are touched
     * once a sequence needs them, so that a thousand short ones take a thousand short rows. */
    int32_t *tokens, *short_tokens;   /* [max_positions], [NB_SCHED_SHORT] */
    nb_sip128 *hashes, *short_hashes; /* [max_table], [NB_SCHED_SHORT / block_len] */
    int32_t *free_slots;
    int32_t *running;   /* slots in order, the first to be preempted last */
    int32_t *waiting;   /* slots in order of arrival or priority, the preempted too */
    int32_t *free_seqs; /* numbers of tables: as many as max_seqs - n_running */
    int64_t n_running, n_waiting, n_free_slots;
    int64_t n_arrivals, last_ms;
    bool planned; /* a plan is under way */
    nb_sched_counts counts;
} nb_sched;

/* NB_USAGE for sizes that make no sense, NB_LIMIT, NB_MEMORY. */
nb_status nb_sched_init(nb_sched *s, const nb_sched_setup *setup, nb_err *err);
void nb_sched_free(nb_sched *s);
/* Bytes that init allocates; its errors but for NB_MEMORY. Rows of tokens become resident as they
 * are used. */
nb_status nb_sched_bytes(const nb_sched_setup *setup, size_t *bytes, nb_err *err);

/* NB_DATA: the request can never run, and why (too long for the context or for all blocks, no
 * prompt, too many samples). NB_LIMIT: the queue is full now. NB_USAGE: the id is taken. Nothing
 * has changed then. */
nb_status nb_sched_submit(nb_sched *s, const nb_sched_request *request, nb_err *err);
/* Ends all sequences of a request: at once, or at commit for those that a plan under way runs.
 * False when there is no such request. */
bool nb_sched_abort(nb_sched *s, uint64_t id);

/* Another max_draft, 0 to NB_SCHED_MAX_DRAFT, for a sequence that runs. Not between plan and
 * commit. */
void nb_sched_set_draft(nb_sched *s, int32_t slot, int64_t max_draft);

/* Tokens of a sequence: its prompt and what was generated. [n_tokens] */
static inline int32_t *nb_sched_tokens(const nb_sched *s, int64_t slot)
{
    return s->seqs[slot].is_long ? s->tokens + slot * s->setup.blocks.max_positions
                                 : s->short_tokens + slot * NB_SCHED_SHORT;
}
/* Of its full blocks. */
static inline nb_sip128 *nb_sched_hashes(const nb_sched *s, int64_t slot)
{
    return s->seqs[slot].is_long
               ? s->hashes + slot * s->blocks.max_table
               : s->short_hashes + slot * (NB_SCHED_SHORT / s->setup.blocks.block_len);
}

/* One sequence of a step. Positions [start, start + n) run; their tokens are `tokens`, and the
 * table has room for n_draft more behind them. */
typedef struct {
    int32_t slot;
    int32_t sample;
    uint64_t id;
    int64_t start, n;
    int64_t n_outputs;     /* of how many of the n, the last ones, the output is wanted */
    bool samples;          /* the last of them gives the next token: all tokens are in */
    int64_t n_left;        /* tokens it may still generate */
    int64_t n_draft;       /* tokens that may be guessed, run, and be accepted; less than n_left */
    int64_t n_found;       /* prompt tokens that were found and not computed, for its usage */
    const int32_t *tokens; /* [n], borrowed until commit */
    const int32_t *table;  /* [ceil((start + n + n_draft) / block_len)], borrowed until commit */
} nb_step_entry;

typedef struct {
    uint64_t id;
    int32_t slot, sample;
} nb_step_preempted;

/* What to run. First copies, in their order; then the entries. */
typedef struct {
    nb_step_entry *entries;       /* [max_seqs] */
    nb_block_copy *copies;        /* [max_seqs] */
    nb_step_preempted *preempted; /* [max_seqs] */
    int64_t n_entries, n_copies, n_preempted;
    int64_t n_tokens;   /* the sum of n */
    int64_t n_admitted; /* the last so many entries did not run in the step before */
} nb_step_plan;

nb_status nb_step_plan_init(nb_step_plan *plan, const nb_sched *s, nb_err *err);
void nb_step_plan_free(nb_step_plan *plan);

/* Positions of a sequence that take room when it generates all it may: the last token never does.
 */
static inline int64_t nb_seq_longest(const nb_seq *q)
{
    return q->n_prompt + (q->max_new > 1 ? q->max_new - 1 : 0);
}

/* Blocks that stay available when somebody is admitted beside others. */
static inline int64_t nb_sched_watermark(const nb_sched *s)
{
    return (s->setup.blocks.n_blocks + 99) / 100;
}

/* The next step. Without entries there is nothing to do: nobody waits. */
void nb_sched_plan(nb_sched *s, nb_step_plan *plan);

typedef enum {
    NB_SEQ_GOES_ON,
    NB_SEQ_DONE,   /* a stop token or string, say; its blocks stay to be found */
    NB_SEQ_BROKEN, /* what this step computed is not to be used; nothing of it is kept */
} nb_seq_end;

/* What came of an entry. Where the entry samples: 1 to n_draft + 1 tokens, all but the last of them
 * being the draft tokens that were run and accepted. (0 when the sequence is over by `end` or has
 * nothing left to generate.) Else none. */
typedef struct {
    const int32_t *tokens;
    int64_t n_tokens;
    nb_seq_end end;
} nb_sched_result;

/* results [plan->n_entries]. A sequence that has generated max_new is over, whatever `end` says.
 * Wrong numbers are an assert. */
void nb_sched_commit(nb_sched *s, const nb_step_plan *plan, const nb_sched_result *results);

#endif
