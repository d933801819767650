/* See draft.h. */
#include "engine/draft.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* What a further token costs a step that runs anyway, as a share of a step of one: weights are read
 * once, so that it is arithmetic only. An estimate, not yet measured; only the speed depends on it.
 */
#define VERIFY_COST 0.15

#define USUAL_RATE 0.7 /* of a draft of which nothing is known */

/* ---- is it one for this model? ---- */

static bool is_padding(const nb_tokenizer *t, int32_t id)
{
    char padding[24];
    const char *bytes;
    size_t len;
    nb_err err = {0};
    const int n = snprintf(padding, sizeof padding, "[PAD%d]", id);
    return nb_tokenizer_token(t, id, &bytes, &len, &err) != NB_OK ||
           (len == (size_t)n && memcmp(bytes, padding, len) == 0);
}

nb_status nb_draft_check(const nb_tokenizer *target, const nb_tokenizer *draft, nb_err *err)
{
    const int64_t n_target = nb_tokenizer_n_tokens(target), n_draft = nb_tokenizer_n_tokens(draft);
    const int64_t n = n_target > n_draft ? n_target : n_draft;
    for (int32_t id = 0; id < n; id++) {
        const char *a, *b;
        size_t a_len, b_len;
        nb_err none = {0};
        const bool in_a = nb_tokenizer_token(target, id, &a, &a_len, &none) == NB_OK;
        const bool in_b = nb_tokenizer_token(draft, id, &b, &b_len, &none) == NB_OK;
        if (in_a && in_b && a_len == b_len && memcmp(a, b, a_len) == 0)
            continue;
        if ((!in_a || is_padding(target, id)) && (!in_b || is_padding(draft, id)))
            continue;
        return nb_fail(err, NB_DATA,
                       "token %d of %lld is not that of the model, which has %lld: a draft model "
                       "needs the model's tokenizer",
                       id, (long long)n_draft, (long long)n_target);
    }
    return NB_OK;
}

/* ---- memory ---- */

static int64_t positions(const nb_draft_setup *s)
{
    return s->n_ctx < s->model->n_ctx ? s->n_ctx : s->model->n_ctx;
}

static int64_t logits_of(const nb_draft_setup *s)
{
    const int64_t rows = s->model->config.vocab_size, n_ids = s->samplers->n;
    return rows > n_ids ? rows : n_ids;
}

static int n_walks_of(const nb_draft_setup *s)
{
    return s->n_lanes == 1 ? 1 : nb_pool_n_threads(s->pool);
}

int64_t nb_draft_bytes(const nb_draft_setup *s)
{
    const nb_config *c = &s->model->config;
    const int64_t walk = NB_JSON_MAX_FRAMES * (int64_t)(sizeof(nb_json_frame) + sizeof(int16_t));
    const int64_t lane =
        4 * (positions(s) + c->d_model + nb_kv_pages_for(positions(s))) +
        (int64_t)(sizeof(nb_draft_lane) + sizeof(nb_step_input) + sizeof(nb_draft_ask *));
    return nb_work_bytes(s->model, nb_pool_n_threads(s->pool), s->step_tokens) +
           s->n_pages * (int64_t)nb_kv_page_bytes(c, s->kv) + s->n_lanes * lane +
           4 * NB_DRAFT_ROWS * logits_of(s) + n_walks_of(s) * walk;
}

static nb_status take_memory(nb_draft *d, nb_err *err)
{
    const nb_draft_setup *s = &d->setup;
    const nb_config *c = &s->model->config;
    NB_TRY(nb_work_init(&d->work, s->model, s->kernels, s->pool, s->step_tokens, err));
    NB_TRY(nb_kv_pool_init(&d->kv, c, s->kv, s->n_pages, err));
    NB_TRY(NB_ALLOC(&d->lanes, s->n_lanes, err));
    NB_TRY(NB_ALLOC(&d->held, s->n_lanes * positions(s), err));
    for (int64_t i = 0; i < s->n_lanes; i++) {
        d->lanes[i].held = d->held + i * positions(s);
        NB_TRY(nb_kv_seq_init(&d->lanes[i].seq, &d->kv, positions(s), err));
    }
    NB_TRY(NB_ALLOC(&d->inputs, s->n_lanes, err));
    NB_TRY(NB_ALLOC(&d->ready, s->n_lanes, err));
    NB_TRY(NB_ALLOC(&d->hidden, s->n_lanes * c->d_model, err));
    NB_TRY(NB_ALLOC(&d->logits, NB_DRAFT_ROWS * d->n_logits, err));
    NB_TRY(NB_ALLOC(&d->walks, n_walks_of(s), err));
    for (; d->n_walks < n_walks_of(s); d->n_walks++)
        NB_TRY(nb_json_walk_init(&d->walks[d->n_walks], NULL, err));
    return NB_OK;
}

nb_status nb_draft_init(nb_draft *d, const nb_draft_setup *setup, nb_err *err)
{
    assert(setup->n_lanes >= 1 && setup->step_tokens >= setup->n_lanes);
    *d = (nb_draft){.setup = *setup, .n_logits = logits_of(setup)};
    d->cost = (double)setup->model->packed_bytes / (double)setup->target->packed_bytes;
    if (take_memory(d, err) == NB_OK)
        return NB_OK;
    nb_draft_free(d);
    return nb_context(err, "the draft model");
}

void nb_draft_free(nb_draft *d)
{
    for (int64_t i = 0; i < d->setup.n_lanes && d->lanes != NULL; i++)
        nb_kv_seq_free(&d->lanes[i].seq);
    for (int i = 0; i < d->n_walks; i++)
        nb_json_walk_free(&d->walks[i]);
    nb_work_free(&d->work);
    nb_kv_pool_free(&d->kv);
    nb_free(d->lanes);
    nb_free(d->held);
    nb_free(d->inputs);
    nb_free(d->ready);
    nb_free(d->hidden);
    nb_free(d->logits);
    nb_free(d->walks);
    *d = (nb_draft){0};
}

/* ---- how far ---- */

/* A step of n sequences costs 1 + VERIFY_COST (n - 1) steps of one, and each of them its part. A
 * draft of more than half the target's size is hardly meant for speed. */
static double price(const nb_draft *d, int64_t n_beside)
{
    const double n = (double)(1 + n_beside);
    const double part = (1 + VERIFY_COST * (n - 1)) / n;
    const double sum = (d->cost < 0.5 ? d->cost : 0.5) + VERIFY_COST / part;
    return sum < 0.9 ? sum : 0.9;
}

int64_t nb_draft_reach(const nb_draft *d, nb_reach *r, int64_t most, int64_t n_beside)
{
    return nb_reach_next(r, most, price(d, n_beside), nb_reach_rate(&d->usual, USUAL_RATE));
}

void nb_draft_learn(nb_draft *d, nb_reach *r, int64_t n_out, int64_t right)
{
    nb_reach_learn(r, n_out > 0 ? n_out : 1, right);
    nb_reach_learn(&d->usual, n_out > 0 ? n_out : 1, right);
}

/* ---- lanes ---- */

static nb_draft_lane *lane_of(nb_draft *d, const nb_draft_ask *a)
{
    assert(a->lane >= 0 && a->lane < d->setup.n_lanes);
    return &d->lanes[a->lane];
}

/* Room for n positions, from lanes that nobody asks for if need be, the one asked longest ago
 * first. */
static bool make_room(nb_draft *d, nb_draft_lane *lane, int64_t n)
{
    nb_err err = {0};
    while (nb_kv_pages_for(n) - lane->seq.n_table > d->kv.n_free) {
        nb_draft_lane *idle = NULL;
        for (int64_t i = 0; i < d->setup.n_lanes; i++) {
            nb_draft_lane *l = &d->lanes[i];
            if (l->last_asked < d->turn && l->seq.n_table > 0 &&
                (idle == NULL || l->last_asked < idle->last_asked))
                idle = l;
        }
        if (idle == NULL)
            return false;
        nb_kv_seq_truncate(&idle->seq, 0);
    }
    return nb_kv_seq_reserve(&lane->seq, n, &err) == NB_OK;
}

/* Tokens past the draft's own vocabulary (its padding may be shorter) have no row in it. */
static bool knows(const nb_draft *d, const int32_t *tokens, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= d->setup.model->config.vocab_size)
            return false;
    }
    return true;
}

static int64_t common_beginning(const nb_draft_lane *lane, const nb_draft_ask *a)
{
    const int64_t n = lane->seq.n < a->n ? lane->seq.n : a->n;
    int64_t i = 0;
    if (memcmp(lane->held, a->tokens, (size_t)n * sizeof *a->tokens) == 0)
        return n;
    while (lane->held[i] == a->tokens[i])
        i++;
    return i;
}

/* Puts the text into the lane; false when there can be no guesses. */
static bool begin(nb_draft *d, nb_draft_ask *a)
{
    nb_draft_lane *lane = lane_of(d, a);
    const int64_t n = a->n + 1, most = positions(&d->setup);
    if (lane->owner != a->owner)
        nb_kv_seq_truncate(&lane->seq, 0);
    lane->owner = a->owner;
    if (n > most || a->most < 1)
        return false;
    a->most = a->most < most - n + 1 ? a->most : most - n + 1;
    nb_kv_seq_truncate(&lane->seq, common_beginning(lane, a));
    const int64_t same = lane->seq.n;
    memcpy(lane->held + same, a->tokens + same, (size_t)(a->n - same) * sizeof *a->tokens);
    lane->held[a->n] = a->next;
    return knows(d, lane->held + same, n - same) && make_room(d, lane, n + a->most - 1);
}

/* ---- steps ---- */

/* Runs the inputs. What fails is forgotten: the texts are computed anew, if they are asked for. */
static bool forward(nb_draft *d, int64_t n_inputs)
{
    nb_err err = {0};
    if (nb_forward(&d->work, d->inputs, n_inputs, d->hidden, &err) == NB_OK)
        return true;
    for (int64_t i = 0; i < n_inputs; i++)
        nb_kv_seq_truncate(d->inputs[i].seq, 0);
    return false;
}

/* Ids that the draft's head has no row for are not guessed. */
static void pad_logits(nb_draft *d, int64_t n)
{
    const int64_t vocab = d->setup.model->config.vocab_size;
    for (int64_t i = n - 1; i >= 0 && vocab < d->n_logits; i--) {
        float *row = d->logits + i * d->n_logits;
        memmove(row, d->logits + i * vocab, (size_t)vocab * sizeof *row);
        for (int64_t id = vocab; id < d->n_logits; id++)
            row[id] = -INFINITY;
    }
}

typedef struct {
    nb_draft *d;
    nb_draft_ask **asks;
} picking;

static void pick(void *context, int64_t i, int thread)
{
    const picking *p = context;
    nb_draft *d = p->d;
    nb_draft_ask *a = p->asks[i];
    const float *logits = d->logits + i * d->n_logits;
    nb_err err = {0};
    int32_t id;
    a->failed = nb_choice_foresee(a->choice, &d->setup.samplers[thread], &d->walks[thread], logits,
                                  a->out, a->n_out, &id, &a->over, &err) != NB_OK;
    /* A token that ends the answer need not be guessed: nothing is chosen after it. */
    if (!a->over)
        a->out[a->n_out++] = id;
    a->over = a->over || a->n_out == a->most;
}

/* A guess for each of the n that are ready, whose states are in `hidden`. */
static void pick_all(nb_draft *d, int64_t n)
{
    const int64_t d_model = d->setup.model->config.d_model;
    for (int64_t begin = 0; begin < n; begin += NB_DRAFT_ROWS) {
        const int64_t rows = n - begin < NB_DRAFT_ROWS ? n - begin : NB_DRAFT_ROWS;
        picking p = {d, d->ready + begin};
        nb_logits(&d->work, d->hidden + begin * d_model, rows, d->logits);
        pad_logits(d, rows);
        if (rows == 1)
            pick(&p, 0, 0);
        else
            nb_pool_run(d->setup.pool, rows, pick, &p);
    }
}

/* A text longer than this has to be caught up with: it was not there in the step before. */
#define FEW (NB_MAX_GUESS + 1)

/* Feeds texts up to their ends, as far as a step goes; returns how many are ready then. */
static int64_t catch_up(nb_draft *d, nb_draft_ask *asks, int64_t n)
{
    int64_t budget = d->setup.step_tokens, n_inputs = 0, n_ready = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < n && budget > 0; i++) {
            nb_draft_ask *a = &asks[i];
            nb_draft_lane *lane = lane_of(d, a);
            const int64_t lacks = a->n + 1 - lane->seq.n;
            if (a->over || (lacks > FEW) != (pass == 1))
                continue;
            const int64_t fed = lacks < budget ? lacks : budget;
            d->inputs[n_inputs++] =
                (nb_step_input){&lane->seq, lane->held + lane->seq.n, fed, fed == lacks};
            budget -= fed;
            if (fed == lacks)
                d->ready[n_ready++] = a;
        }
    }
    if (n_inputs == 0 || forward(d, n_inputs))
        return n_ready;
    for (int64_t i = 0; i < n; i++)
        asks[i].failed = !asks[i].over;
    return 0;
}

/* Feeds each its last guess, and leaves in `ready` those that go on. */
static int64_t go_on(nb_draft *d, int64_t n_ready)
{
    int64_t n = 0;
    for (int64_t i = 0; i < n_ready; i++) {
        nb_draft_ask *a = d->ready[i];
        nb_draft_lane *lane = lane_of(d, a);
        if (a->over || !knows(d, a->out + a->n_out - 1, 1))
            continue;
        lane->held[lane->seq.n] = a->out[a->n_out - 1];
        d->inputs[n] = (nb_step_input){&lane->seq, lane->held + lane->seq.n, 1, 1};
        d->ready[n++] = a;
    }
    return n == 0 || !forward(d, n) ? 0 : n;
}

void nb_draft_guess(nb_draft *d, nb_draft_ask *asks, int64_t n)
{
    d->turn++;
    for (int64_t i = 0; i < n; i++) {
        asks[i].n_out = 0;
        asks[i].failed = false;
        lane_of(d, &asks[i])->last_asked = d->turn;
    }
    for (int64_t i = 0; i < n; i++)
        asks[i].over = !begin(d, &asks[i]);
    int64_t n_ready = catch_up(d, asks, n);
    while (n_ready > 0) {
        pick_all(d, n_ready);
        n_ready = go_on(d, n_ready);
    }
}
