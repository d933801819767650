/* A draft model: a small one that guesses what a larger one will say next (Leviathan et al.,
 * arXiv:2211.17192; Chen et al., arXiv:2302.01318).
 *
 * It chooses as the answer itself does, with its options and its random number for each position,
 * but from the draft's logits. The larger model runs all guesses in one step, and one of them is
 * right if it is what would be chosen there anyway: the answer depends on the draft in nothing, not
 * even in which of two likely tokens is drawn.
 *
 * Each sequence has a lane: a cache of the draft's own. A lane is compared with the text it is to
 * go on, and only what follows their common beginning is computed, so that nothing has to be told
 * of guesses that were wrong, of preemption or of sequences that end. Lanes share pages; where
 * these run out, those that nobody asks for are emptied, and then there are no guesses. All memory
 * is allocated by init. One thread at a time. */
#ifndef NB_ENGINE_DRAFT_H
#define NB_ENGINE_DRAFT_H

#include "engine/choice.h"
#include "engine/reach.h"
#include "model/forward.h"

#define NB_DRAFT_ROWS   32 /* rows whose logits are held at once */
#define NB_DRAFT_TOKENS 6  /* guesses in a step, where nobody says how many */

typedef struct {
    const nb_model *model;  /* borrowed, like all here */
    const nb_model *target; /* the larger one */
    const nb_kernels *kernels;
    nb_pool *pool;
    nb_sampler
        *samplers; /* of the target's ids: one for each thread, or one if there is one lane */
    nb_kv_format kv;
    int64_t n_lanes, n_pages; /* pages of NB_KV_PAGE positions, of all lanes */
    int64_t n_ctx;            /* positions of a text; the draft's own may be fewer */
    int64_t step_tokens;      /* at least n_lanes: how much a call may catch up with */
} nb_draft_setup;

/* The format of the draft's cache beside a model's: rejected guesses are taken back in every step,
 * which packed ones answer by forgetting all where a page has been sealed. */
static inline nb_kv_format nb_draft_kv(nb_kv_format kv)
{
    return nb_kv_bits(kv) > 0 ? NB_KV_F16 : kv;
}

typedef struct {
    nb_kv_seq seq;
    int32_t *held; /* [n_ctx] the tokens of its positions: the first seq.n are in the cache */
    uint64_t owner;
    int64_t last_asked; /* by nb_draft.turn */
} nb_draft_lane;

/* `{0}` is empty. Fields are for reading. */
typedef struct {
    nb_draft_setup setup;
    nb_work work;
    nb_kv_pool kv;
    nb_draft_lane *lanes;
    int32_t *held;
    nb_step_input *inputs; /* [n_lanes] */
    struct nb_draft_ask **ready;
    nb_json_walk *walks; /* [n_walks] scratch, per thread */
    int n_walks;
    float *hidden, *logits; /* [n_lanes][d_model], [NB_DRAFT_ROWS][n_logits] */
    int64_t n_logits, turn;
    double cost;    /* of a token, as a share of what one costs the target */
    nb_reach usual; /* of all sequences so far */
} nb_draft;

/* NB_DATA unless both tokenizers have the same tokens, id by id; what pads a vocabulary is none. */
nb_status nb_draft_check(const nb_tokenizer *target, const nb_tokenizer *draft, nb_err *err);

nb_status nb_draft_init(nb_draft *d, const nb_draft_setup *setup, nb_err *err);
void nb_draft_free(nb_draft *d);
/* Bytes that init allocates. */
int64_t nb_draft_bytes(const nb_draft_setup *setup);

/* How many guesses the next step is worth, at most `most`, of a sequence that decodes beside
 * n_beside others. */
int64_t nb_draft_reach(const nb_draft *d, nb_reach *r, int64_t most, int64_t n_beside);
/* Of n_out guesses the first `right` were. Also after a call that failed: then none of one. */
void nb_draft_learn(nb_draft *d, nb_reach *r, int64_t n_out, int64_t right);

/* A text to go on with. */
typedef struct nb_draft_ask {
    int64_t lane;          /* of no other ask of the call */
    uint64_t owner;        /* what a lane holds is not used under another */
    const int32_t *tokens; /* [n] what the target has computed, */
    int64_t n;
    int32_t next;      /* and the token that it computes next, after which guesses begin */
    nb_choice *choice; /* has taken all of these */
    int64_t most;      /* guesses, at most NB_MAX_GUESS */
    int32_t *out;      /* [most] */
    int64_t n_out;     /* 0: the draft has not caught up with the text, cannot, or sees its end */
    bool failed;       /* its numbers are none */
    bool over;         /* private: nothing is to follow */
} nb_draft_ask;

/* Fills in out, n_out and failed of each. Computes step_tokens tokens of texts at most, those that
 * lack few first, and then the guesses; who has not caught up goes on in the next call. */
void nb_draft_guess(nb_draft *d, nb_draft_ask *asks, int64_t n);

#endif
