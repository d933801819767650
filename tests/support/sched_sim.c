/* See sched_sim.h. */
#include "support/sched_sim.h"

#include "base/mix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SAMPLES 6
#define WORLD_STEPS 1500
#define MUST(condition, ...)                                                                       \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return nb_fail(err, NB_DATA, __VA_ARGS__);                                             \
    } while (0)

typedef long long wide;

/* ---- chance ---- */

typedef struct {
    uint64_t key, at;
} dice;

static uint64_t roll(dice *d)
{
    return nb_mix64(d->key + 0x9e3779b97f4a7c15u * ++d->at);
}

/* Uniform in [a, b]. */
static int64_t between(dice *d, int64_t a, int64_t b)
{
    return b <= a ? a : a + (int64_t)(roll(d) % (uint64_t)(b - a + 1));
}

static bool one_in(dice *d, int64_t n)
{
    return roll(d) % (uint64_t)n == 0;
}

/* Small mostly, sometimes anything up to `most`. */
static int64_t skewed(dice *d, int64_t least, int64_t most)
{
    const int64_t small = most < least + 8 ? most : least + 8;
    return one_in(d, 2) ? between(d, least, most) : between(d, least, small);
}

/* ---- the model: hashes instead of keys and values ---- */

static uint64_t next_cell(uint64_t before, int32_t token, int64_t position)
{
    return nb_mix64(before * 31 + (uint64_t)(uint32_t)token * 0x9e3779b97f4a7c15u +
                    (uint64_t)position + 1);
}

/* ---- clients ---- */

/* One sequence as its client sees it: what it must be, whatever the scheduler does. */
typedef struct {
    bool live;
    uint64_t id, seed;
    int32_t sample, n_vocab;
    int64_t n_prompt, max_new, n_tokens, n_outputs;
    bool all_outputs, stops;
    int32_t *tokens; /* [max_positions] */
    uint64_t *cells; /* [max_positions]: what each position must hold */
} client;

struct sim_world {
    dice dice;
    sim_fault fault;
    nb_sched sched;
    nb_step_plan plan;
    client *clients;   /* [n_slots], found by id and sample */
    uint64_t *cells;   /* [n_blocks][block_len] */
    int32_t *stale;    /* tables of the step before, by slot */
    int32_t *families; /* [N_FAMILIES][max_positions] */
    nb_sched_result *results;
    int32_t (*answers)[NB_SCHED_MAX_DRAFT + 1];
    int64_t *order;
    int64_t n_clients, now_ms, busy, quiet_steps;
    uint64_t next_id;
    int32_t n_vocab;
    bool talkative; /* short prompts and long answers: blocks run out while all decode */
    int64_t n_generated;
    sim_counts counts;
};

#define N_FAMILIES 4

static void *grab(int64_t n, size_t size)
{
    void *p = calloc((size_t)n, size);
    if (p == NULL)
        abort();
    return p;
}

static nb_sched_setup draw_setup(dice *d)
{
    nb_sched_setup s = {
        .blocks = {.block_len = (int64_t)1 << between(d, 0, 5),
                   .max_seqs = one_in(d, 4) ? between(d, 1, 3) : between(d, 2, 24),
                   .max_positions = one_in(d, 4) ? between(d, 1, 16) : between(d, 16, 300),
                   .share_prefixes = !one_in(d, 5),
                   .what = {roll(d), 1}},
        .step_tokens = one_in(d, 3) ? between(d, 1, 6) : between(d, 1, 200),
        .max_waiting = between(d, 1, 40),
        .ageing_ms = one_in(d, 4) ? 0 : between(d, 1, 3000),
        .policy = (nb_sched_policy)between(d, NB_SCHED_FCFS, NB_SCHED_LPM)};
    memcpy(s.blocks.key, &s.blocks.what[0], 8);
    /* From a pool that holds not even one context to one that holds all of them. */
    const int64_t one = (s.blocks.max_positions + s.blocks.block_len - 1) / s.blocks.block_len;
    s.blocks.n_blocks = one_in(d, 6) ? between(d, 1, one) : between(d, one, one * 3 + 1);
    if (one_in(d, 4))
        s.blocks.n_blocks = one * s.blocks.max_seqs + 1;
    if (s.blocks.n_blocks > 400)
        s.blocks.n_blocks = 400;
    return s;
}

sim_world *sim_world_new(uint64_t seed, int64_t index, sim_fault fault)
{
    nb_err err;
    sim_world *w = grab(1, sizeof *w);
    w->dice = (dice){.key = nb_mix64(seed + 1) ^ nb_mix64((uint64_t)index + 77)};
    w->fault = fault;
    const nb_sched_setup setup = draw_setup(&w->dice);
    if (nb_sched_init(&w->sched, &setup, &err) != NB_OK ||
        nb_step_plan_init(&w->plan, &w->sched, &err) != NB_OK)
        abort();
    const int64_t n_slots = w->sched.n_slots, n_positions = setup.blocks.max_positions;
    w->clients = grab(n_slots, sizeof *w->clients);
    for (int64_t i = 0; i < n_slots; i++) {
        w->clients[i].tokens = grab(n_positions, sizeof(int32_t));
        w->clients[i].cells = grab(n_positions, sizeof(uint64_t));
    }
    w->cells = grab(setup.blocks.n_blocks * setup.blocks.block_len, sizeof(uint64_t));
    w->stale = grab(n_slots * w->sched.blocks.max_table, sizeof(int32_t));
    w->families = grab(N_FAMILIES * n_positions, sizeof(int32_t));
    w->results = grab(setup.blocks.max_seqs, sizeof *w->results);
    w->answers = grab(setup.blocks.max_seqs, sizeof *w->answers);
    w->order = grab(setup.blocks.max_seqs, sizeof(int64_t));
    w->n_vocab = (int32_t)skewed(&w->dice, 1, 1000);
    for (int64_t i = 0; i < N_FAMILIES * n_positions; i++)
        w->families[i] = (int32_t)(roll(&w->dice) % (uint64_t)w->n_vocab);
    w->busy = between(&w->dice, 1, 12);
    w->talkative = one_in(&w->dice, 3);
    w->counts.n_worlds = 1;
    return w;
}

void sim_world_free(sim_world *w)
{
    for (int64_t i = 0; i < w->sched.n_slots; i++) {
        free(w->clients[i].tokens);
        free(w->clients[i].cells);
    }
    nb_step_plan_free(&w->plan);
    nb_sched_free(&w->sched);
    free(w->clients);
    free(w->cells);
    free(w->stale);
    free(w->families);
    free(w->results);
    free(w->answers);
    free(w->order);
    free(w);
}

nb_sched *sim_world_sched(sim_world *w)
{
    return &w->sched;
}

nb_step_plan *sim_world_plan(sim_world *w)
{
    return &w->plan;
}

static client *find_client(const sim_world *w, uint64_t id, int32_t sample)
{
    for (int64_t i = 0; i < w->sched.n_slots; i++) {
        client *c = &w->clients[i];
        if (c->live && c->id == id && c->sample == sample)
            return c;
    }
    return NULL;
}

static void append(client *c, int32_t token)
{
    const int64_t p = c->n_tokens++;
    c->tokens[p] = token;
    c->cells[p] = next_cell(p == 0 ? 0 : c->cells[p - 1], token, p);
}

/* The token after a position that holds `cell`: by the request's seed, or greedy without one. */
static int32_t choose(const client *c, uint64_t cell)
{
    const uint64_t luck = c->seed == 0 ? 0 : c->seed + (uint64_t)c->sample;
    return (int32_t)(nb_mix64(cell ^ nb_mix64(luck)) % (uint64_t)c->n_vocab);
}

static void drop_client(sim_world *w, client *c)
{
    c->live = false;
    w->n_clients--;
}

/* ---- requests ---- */

/* What submit has to answer, from the request and the queue alone. */
static nb_status expected_answer(const sim_world *w, const nb_sched_request *r, bool taken)
{
    const nb_sched *s = &w->sched;
    const nb_blocks_setup *b = &s->setup.blocks;
    const int64_t n = r->n_samples, grown = r->n_prompt + (r->max_new > 1 ? r->max_new - 1 : 0);
    if (r->n_prompt == 0 || n > s->setup.max_waiting ||
        r->n_prompt + r->max_new > b->max_positions ||
        (grown + b->block_len - 1) / b->block_len > b->n_blocks)
        return NB_DATA;
    if (taken)
        return NB_USAGE;
    return s->n_waiting + n > s->setup.max_waiting ? NB_LIMIT : NB_OK;
}

static nb_status submit(sim_world *w, nb_err *err)
{
    dice *d = &w->dice;
    nb_sched *s = &w->sched;
    const int64_t context = s->setup.blocks.max_positions;
    static const char *const salts[] = {"", "a", "b"};
    int32_t prompt[1024];
    nb_sched_request r = {.id = w->next_id++,
                          .prompt = prompt,
                          .n_prompt = skewed(d, 1, context),
                          .max_new = skewed(d, 0, context),
                          .n_samples = one_in(d, 5) ? between(d, 2, MAX_SAMPLES) : 1,
                          .arrival_ms = w->now_ms,
                          .max_draft = one_in(d, 3) ? between(d, 1, 9) : 0,
                          .priority = one_in(d, 3) ? (int32_t)between(d, -5, 5) : 0,
                          .salt = one_in(d, 4) ? salts[between(d, 0, 2)] : "",
                          .all_outputs = one_in(d, 12)};
    r.salt_bytes = strlen(r.salt);
    if (w->talkative) {
        r.n_prompt = between(d, 1, 6 < context ? 6 : context);
        r.max_new = between(d, context / 2, context);
    }
    if (!one_in(d, 20) && r.n_prompt + r.max_new > context)
        r.max_new = context - r.n_prompt;
    if (one_in(d, 200))
        r.n_prompt = 0;
    const bool taken = w->n_clients > 0 && one_in(d, 100);
    if (taken) {
        const client *c = &w->clients[0];
        while (!c->live)
            c++;
        r.id = c->id;
    }
    const int64_t shared = one_in(d, 3) ? 0 : between(d, 0, context);
    const int32_t *family = w->families + between(d, 0, N_FAMILIES - 1) * context;
    for (int64_t i = 0; i < r.n_prompt; i++)
        prompt[i] = i < shared ? family[i] : (int32_t)(roll(d) % (uint64_t)w->n_vocab);
    const nb_status want = expected_answer(w, &r, taken), got = nb_sched_submit(s, &r, err);
    MUST(got == want, "K24: submit gave %d and not %d: %s", (int)got, (int)want, err->text);
    w->counts.n_refused += got == NB_DATA;
    w->counts.n_queue_full += got == NB_LIMIT;
    if (got != NB_OK)
        return NB_OK;
    w->counts.n_submitted++;
    const uint64_t seed = one_in(d, 3) ? 0 : roll(d);
    for (int32_t k = 0; k < r.n_samples; k++) {
        client *c = w->clients;
        while (c->live)
            c++;
        int32_t *tokens = c->tokens;
        uint64_t *cells = c->cells;
        *c = (client){.live = true,
                      .id = r.id,
                      .seed = seed,
                      .sample = k,
                      .n_vocab = w->n_vocab,
                      .n_prompt = r.n_prompt,
                      .max_new = r.max_new,
                      .all_outputs = r.all_outputs && k == 0,
                      .stops = one_in(d, 2),
                      .tokens = tokens,
                      .cells = cells};
        for (int64_t i = 0; i < r.n_prompt; i++)
            append(c, prompt[i]);
        w->n_clients++;
    }
    return NB_OK;
}

static nb_status abort_one(sim_world *w, nb_err *err)
{
    nb_sched *s = &w->sched;
    if (one_in(&w->dice, 20))
        MUST(!nb_sched_abort(s, w->next_id + 5), "K10: a request that never was is aborted");
    if (w->n_clients == 0)
        return NB_OK;
    const client *c = &w->clients[between(&w->dice, 0, s->n_slots - 1)];
    if (!c->live)
        return NB_OK;
    const uint64_t id = c->id;
    const int64_t n_waiting = s->n_waiting, n_running = s->n_running;
    MUST(nb_sched_abort(s, id), "K10: a request that is there is not");
    MUST(!nb_sched_abort(s, id), "K10: a request is aborted twice");
    MUST(s->planned ? s->n_running == n_running
                    : s->n_running + s->n_waiting < n_waiting + n_running,
         "K10: nothing has changed by an abort");
    for (int64_t i = 0; i < s->n_slots; i++) {
        const nb_seq *q = &s->seqs[i];
        MUST(q->state == NB_SEQ_NONE || q->id != id || q->aborted,
             "K10: slot %lld was aborted and is still there", (wide)i);
        if (w->clients[i].live && w->clients[i].id == id)
            drop_client(w, &w->clients[i]);
    }
    w->counts.n_aborted++;
    w->counts.n_aborted_midway += s->planned;
    return NB_OK;
}

/* Bursts: some steps bring nothing, some bring many. */
static nb_status traffic(sim_world *w, bool midway, nb_err *err)
{
    dice *d = &w->dice;
    if (w->quiet_steps > 0) {
        w->quiet_steps -= !midway;
    } else if (one_in(d, midway ? 8 * w->busy : w->busy)) {
        const int64_t n = one_in(d, 12) ? between(d, 2, 30) : 1;
        for (int64_t i = 0; i < n; i++)
            NB_TRY(submit(w, err));
        if (one_in(d, 60))
            w->quiet_steps = between(d, 20, 150);
    }
    if (one_in(d, midway ? 90 : 40))
        NB_TRY(abort_one(w, err));
    if (one_in(d, 5000)) {
        for (int i = 0; i < 200; i++)
            NB_TRY(abort_one(w, err));
    }
    w->now_ms += midway ? 0 : between(d, 0, 50) - (one_in(d, 50) ? 30 : 0);
    return NB_OK;
}

/* ---- a step ---- */

static void note_plan(sim_world *w)
{
    const nb_step_plan *p = &w->plan;
    uint64_t h = w->counts.hash;
    for (int64_t i = 0; i < p->n_entries; i++) {
        const nb_step_entry *e = &p->entries[i];
        h = nb_mix64(h ^ e->id) + (uint64_t)(e->start * 7 + e->n * 5 + e->n_draft * 3 + e->slot);
        h = nb_mix64(h +
                     (uint64_t)e->table[(e->start + e->n - 1) / w->sched.setup.blocks.block_len]);
    }
    for (int64_t i = 0; i < p->n_copies; i++)
        h = nb_mix64(h + (uint64_t)p->copies[i].from * 1000 + (uint64_t)p->copies[i].to);
    w->counts.hash = h;
    w->counts.n_preempted += p->n_preempted;
    w->counts.n_copies += p->n_copies;
    for (int64_t i = 0; i < p->n_preempted; i++)
        w->counts.n_patience +=
            w->sched.seqs[p->preempted[i].slot].n_preempted == NB_SCHED_PATIENCE;
}

nb_status sim_world_begin(sim_world *w, nb_err *err)
{
    NB_TRY(traffic(w, false, err));
    nb_sched_plan(&w->sched, &w->plan);
    note_plan(w);
    NB_TRY(nb_step_plan_check(&w->sched, &w->plan, err));
    return nb_sched_check(&w->sched, w->counts.n_steps % 16, err);
}

static void copy_blocks(sim_world *w)
{
    const int64_t len = w->sched.setup.blocks.block_len;
    for (int64_t i = 0; i < w->plan.n_copies; i++)
        memcpy(w->cells + w->plan.copies[i].to * len, w->cells + w->plan.copies[i].from * len,
               (size_t)len * sizeof *w->cells);
}

static uint64_t *cell_at(const sim_world *w, const int32_t *table, int64_t p)
{
    const int64_t len = w->sched.setup.blocks.block_len;
    return &w->cells[table[p / len] * len + p % len];
}

/* K12, K7, K6: what a position holds is what its tokens alone say. */
static nb_status compare_cell(sim_world *w, const client *c, const int32_t *table, int64_t p,
                              nb_err *err)
{
    w->counts.n_cells_compared++;
    MUST(*cell_at(w, table, p) == c->cells[p],
         "K12: position %lld of request %llu.%d holds what its tokens do not say", (wide)p,
         (unsigned long long)c->id, (int)c->sample);
    return NB_OK;
}

/* Guesses, runs them and keeps those that the model confirms. */
static int64_t speculate(sim_world *w, const client *c, const nb_step_entry *e,
                         const int32_t *table, int32_t *answer)
{
    int64_t p = e->start + e->n, n = 0;
    bool right = true;
    uint64_t cell = *cell_at(w, table, p - 1);
    answer[n++] = choose(c, cell);
    for (int64_t i = 0; i < e->n_draft && !one_in(&w->dice, 8); i++, p++) {
        const int32_t good = choose(c, cell);
        const int32_t guess =
            one_in(&w->dice, 3) ? (int32_t)(roll(&w->dice) % (uint64_t)c->n_vocab) : good;
        cell = next_cell(*cell_at(w, table, p - 1), guess, p);
        *cell_at(w, table, p) = cell;
        right = right && (guess == good || w->fault == SIM_ACCEPT_WRONG);
        w->counts.n_accepted += right;
        w->counts.n_rejected += !right;
        if (right) {
            answer[n - 1] = guess;
            answer[n++] = choose(c, cell);
        }
    }
    return n;
}

static nb_status run_entry(sim_world *w, int64_t at, nb_err *err)
{
    const nb_step_entry *e = &w->plan.entries[at];
    nb_sched_result *r = &w->results[at];
    const nb_sched *s = &w->sched;
    client *c = find_client(w, e->id, e->sample);
    *r = (nb_sched_result){.tokens = w->answers[at]};
    if (c == NULL) {
        MUST(s->seqs[e->slot].aborted, "K10: request %llu is planned and was aborted",
             (unsigned long long)e->id);
        if (e->samples && e->n_left > 0)
            r->n_tokens = 1; /* whatever it says is not looked at */
        return NB_OK;
    }
    const int64_t end = e->start + e->n, n_table = s->blocks.n_table[s->seqs[e->slot].seq];
    int32_t *stale = w->stale + e->slot * s->blocks.max_table;
    const int32_t *table = w->fault == SIM_STALE_TABLE && e->start > 0 ? stale : e->table;
    MUST(end <= c->n_tokens && e->samples == (end == c->n_tokens) &&
             memcmp(e->tokens, c->tokens + e->start, (size_t)e->n * sizeof *e->tokens) == 0,
         "K12: request %llu.%d is planned with other tokens", (unsigned long long)c->id,
         (int)c->sample);
    if (c->all_outputs && c->n_outputs < c->n_prompt)
        MUST(end - e->n_outputs <= c->n_outputs || e->n_outputs == 0,
             "K22: an output of request %llu is left out", (unsigned long long)c->id);
    if (e->n_outputs > 0 && end > c->n_outputs)
        c->n_outputs = end;
    const bool look_at_all = one_in(&w->dice, 32);
    for (int64_t i = 0; i < (look_at_all ? e->start : e->start < 3 ? e->start : 3); i++)
        NB_TRY(
            compare_cell(w, c, table, look_at_all ? i : between(&w->dice, 0, e->start - 1), err));
    if (e->start > 0)
        NB_TRY(compare_cell(w, c, table, e->start - 1, err));
    for (int64_t p = e->start; p < end; p++)
        *cell_at(w, table, p) = next_cell(p == 0 ? 0 : *cell_at(w, table, p - 1), c->tokens[p], p);
    NB_TRY(compare_cell(w, c, table, end - 1, err));
    memcpy(stale, e->table, (size_t)n_table * sizeof *stale);
    w->counts.n_tokens += e->n;
    if (one_in(&w->dice, 400)) {
        for (int64_t p = e->start; p < end; p++)
            *cell_at(w, table, p) ^= 1;
        r->end = w->fault == SIM_KEEP_BROKEN ? NB_SEQ_GOES_ON : NB_SEQ_BROKEN;
        w->counts.n_broken++;
    }
    if (e->samples && e->n_left > 0 && r->end == NB_SEQ_GOES_ON) {
        r->n_tokens = speculate(w, c, e, table, w->answers[at]);
        if (w->fault == SIM_SAMPLE_BY_ROW && at % 2 == 1)
            w->answers[at][0] = (w->answers[at][0] + 1) % c->n_vocab;
        for (int64_t i = 0; i < r->n_tokens && r->end == NB_SEQ_GOES_ON; i++) {
            if (c->stops && w->answers[at][i] % 37 == 5) {
                r->n_tokens = i + 1;
                r->end = NB_SEQ_DONE;
            }
        }
    }
    return NB_OK;
}

/* K12: each token is the one that the sequence's own tokens call for. */
static nb_status take_tokens(sim_world *w, int64_t at, nb_err *err)
{
    const nb_step_entry *e = &w->plan.entries[at];
    const nb_sched_result *r = &w->results[at];
    client *c = find_client(w, e->id, e->sample);
    if (c == NULL)
        return NB_OK;
    if (r->end != NB_SEQ_BROKEN) {
        w->n_generated += r->n_tokens;
        for (int64_t i = 0; i < r->n_tokens; i++) {
            const int32_t want = choose(c, c->cells[c->n_tokens - 1]);
            MUST(r->tokens[i] == want, "K13: request %llu.%d goes on with %d, alone with %d",
                 (unsigned long long)c->id, (int)c->sample, (int)r->tokens[i], (int)want);
            append(c, want);
        }
    }
    const nb_seq *q = &w->sched.seqs[e->slot];
    const bool there = q->state != NB_SEQ_NONE && q->id == c->id && q->sample == c->sample;
    const bool over =
        r->end != NB_SEQ_GOES_ON || (e->samples && c->n_tokens == c->n_prompt + c->max_new);
    MUST(there != over, "K22: request %llu.%d is %s", (unsigned long long)c->id, (int)c->sample,
         over ? "over and still there" : "gone too early");
    if (over) {
        MUST(!c->all_outputs || r->end == NB_SEQ_BROKEN || c->n_outputs >= c->n_prompt,
             "K22: outputs of request %llu are missing", (unsigned long long)c->id);
        w->counts.n_over++;
        drop_client(w, c);
    }
    return NB_OK;
}

nb_status sim_world_finish(sim_world *w, nb_err *err)
{
    const int64_t n = w->plan.n_entries;
    NB_TRY(traffic(w, true, err));
    if (w->fault != SIM_NO_COPIES && w->fault != SIM_LATE_COPIES)
        copy_blocks(w);
    /* In any order: entries of a step do not depend on each other. */
    for (int64_t i = 0; i < n; i++) {
        const int64_t j = between(&w->dice, 0, i);
        w->order[i] = w->order[j];
        w->order[j] = i;
    }
    for (int64_t i = 0; i < n; i++)
        NB_TRY(run_entry(w, w->order[i], err));
    if (w->fault == SIM_LATE_COPIES)
        copy_blocks(w);
    nb_sched_commit(&w->sched, &w->plan, w->results);
    for (int64_t i = 0; i < n; i++)
        NB_TRY(take_tokens(w, i, err));
    w->counts.n_steps++;
    MUST(w->sched.counts.n_generated_tokens == w->n_generated,
         "K22: %lld tokens are counted, %lld "
         "were generated",
         (wide)w->sched.counts.n_generated_tokens, (wide)w->n_generated);
    return nb_sched_check(&w->sched, w->counts.n_steps % 64 == 0 ? -1 : w->counts.n_steps % 16,
                          err);
}

nb_status sim_world_drain(sim_world *w, nb_err *err)
{
    const nb_blocks *b = &w->sched.blocks;
    int64_t most = 100;
    for (int64_t i = 0; i < w->sched.n_slots; i++) {
        const client *c = &w->clients[i];
        if (c->live)
            most += (NB_SCHED_PATIENCE + 1) * (c->n_prompt + c->max_new + 2);
    }
    const int64_t busy = w->busy;
    w->busy = INT64_MAX / 16;
    for (; w->sched.n_running + w->sched.n_waiting > 0; most--) {
        w->quiet_steps = 2;
        MUST(most > 0, "K15: %lld sequences do not come to an end",
             (wide)(w->sched.n_running + w->sched.n_waiting));
        NB_TRY(sim_world_begin(w, err));
        NB_TRY(sim_world_finish(w, err));
    }
    w->busy = busy;
    MUST(w->n_clients == 0, "K9: %lld clients still wait", (wide)w->n_clients);
    MUST(nb_blocks_available(b) == b->setup.n_blocks, "K9: %lld of %lld blocks are available",
         (wide)nb_blocks_available(b), (wide)b->setup.n_blocks);
    return nb_sched_check(&w->sched, -1, err);
}

static nb_status run_world(sim_world *w, int64_t n_steps, nb_err *err)
{
    while (w->counts.n_steps < n_steps) {
        NB_TRY(sim_world_begin(w, err));
        NB_TRY(sim_world_finish(w, err));
    }
    return sim_world_drain(w, err);
}

static void add_counts(sim_counts *sum, const sim_world *w)
{
    const sim_counts *c = &w->counts;
    const nb_sched *s = &w->sched;
    sum->hash = nb_mix64(sum->hash ^ c->hash);
    sum->n_worlds += c->n_worlds;
    sum->n_steps += c->n_steps;
    sum->n_tokens += c->n_tokens;
    sum->n_cells_compared += c->n_cells_compared;
    sum->n_submitted += c->n_submitted;
    sum->n_refused += c->n_refused;
    sum->n_queue_full += c->n_queue_full;
    sum->n_aborted += c->n_aborted;
    sum->n_aborted_midway += c->n_aborted_midway;
    sum->n_broken += c->n_broken;
    sum->n_over += c->n_over;
    sum->n_preempted += c->n_preempted;
    sum->n_patience += c->n_patience;
    sum->n_copies += c->n_copies;
    sum->n_accepted += c->n_accepted;
    sum->n_rejected += c->n_rejected;
    sum->n_hits += s->counts.n_prefix_hits;
    sum->n_evicted += s->blocks.n_evicted;
}

nb_status sim_run(uint64_t seed, int64_t from, int64_t n_steps, sim_fault fault, sim_counts *counts,
                  nb_err *err)
{
    nb_status status = NB_OK;
    for (int64_t index = from; counts->n_steps < n_steps && status == NB_OK; index++) {
        sim_world *w = sim_world_new(seed, index, fault);
        const int64_t left = n_steps - counts->n_steps;
        status = run_world(w, left < WORLD_STEPS ? left : WORLD_STEPS, err);
        if (status != NB_OK)
            nb_context(err, "--seed %llu --from %lld, step %lld", (unsigned long long)seed,
                       (wide)index, (wide)w->counts.n_steps);
        add_counts(counts, w);
        sim_world_free(w);
    }
    return status;
}
