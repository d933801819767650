/* See sched.h: requests come and go, and take in what a step has computed. */
#include "engine/sched_queue.h"

#include <assert.h>
#include <string.h>

#define DAY_MS ((int64_t)24 * 3600 * 1000)

static int64_t slots_of(const nb_sched_setup *s)
{
    return s->max_waiting + s->blocks.max_seqs;
}

/* All that a scheduler allocates beside its blocks. */
#define N_ARRAYS 9
static void list_arrays(nb_sched *s, nb_array list[N_ARRAYS])
{
    const nb_blocks_setup *b = &s->setup.blocks;
    const int64_t len = b->block_len > 0 ? b->block_len : 1;
    const int64_t max_table = (b->max_positions + len - 1) / len;
    const nb_array all[N_ARRAYS] = {
        NB_ARRAY(s->seqs, s->n_slots),
        NB_ARRAY_SPARSE(s->tokens, s->n_slots * b->max_positions),
        NB_ARRAY(s->short_tokens, s->n_slots * NB_SCHED_SHORT),
        NB_ARRAY_SPARSE(s->hashes, s->n_slots * max_table),
        NB_ARRAY(s->short_hashes, s->n_slots * (NB_SCHED_SHORT / len)),
        NB_ARRAY(s->free_slots, s->n_slots),
        NB_ARRAY(s->running, b->max_seqs),
        NB_ARRAY(s->waiting, s->n_slots),
        NB_ARRAY(s->free_seqs, b->max_seqs),
    };
    memcpy(list, all, sizeof all);
}

static nb_status check_setup(const nb_sched_setup *s, nb_err *err)
{
    if (s->step_tokens < 1 || s->max_waiting < 1)
        return nb_fail(err, NB_USAGE,
                       "steps of %lld tokens and a queue of %lld: both must be at least 1",
                       (long long)s->step_tokens, (long long)s->max_waiting);
    if (s->policy < NB_SCHED_FCFS || s->policy > NB_SCHED_LPM)
        return nb_fail(err, NB_USAGE, "there is no scheduling policy %d", (int)s->policy);
    if (s->ageing_ms < 0 || s->ageing_ms > DAY_MS)
        return nb_fail(err, NB_USAGE, "an ageing of %lld ms: it must be 0 to %lld",
                       (long long)s->ageing_ms, (long long)DAY_MS);
    if (s->max_waiting > INT32_MAX / 2 || s->blocks.max_seqs > INT32_MAX / 2)
        return nb_fail(err, NB_LIMIT, "%lld sequences, and %lld that wait",
                       (long long)s->blocks.max_seqs, (long long)s->max_waiting);
    return NB_OK;
}

nb_status nb_sched_bytes(const nb_sched_setup *setup, size_t *bytes, nb_err *err)
{
    nb_array list[N_ARRAYS];
    nb_sched s = {.setup = *setup};
    size_t of_blocks;
    NB_TRY(nb_blocks_bytes(&setup->blocks, &of_blocks, err));
    NB_TRY(check_setup(setup, err));
    s.n_slots = slots_of(setup);
    list_arrays(&s, list);
    if (!nb_add_size(of_blocks, nb_arrays_bytes(list, N_ARRAYS), bytes))
        *bytes = SIZE_MAX;
    return NB_OK;
}

nb_status nb_sched_init(nb_sched *s, const nb_sched_setup *setup, nb_err *err)
{
    nb_array list[N_ARRAYS];
    *s = (nb_sched){0};
    NB_TRY(check_setup(setup, err));
    NB_TRY(nb_blocks_init(&s->blocks, &setup->blocks, err));
    s->setup = *setup;
    s->n_slots = slots_of(setup);
    list_arrays(s, list);
    if (nb_arrays_alloc(list, N_ARRAYS, err) != NB_OK) {
        nb_blocks_free(&s->blocks);
        *s = (nb_sched){0};
        return nb_context(err, "the queue of requests");
    }
    s->n_free_slots = s->n_slots;
    for (int64_t i = 0; i < s->n_slots; i++)
        s->free_slots[i] = (int32_t)(s->n_slots - 1 - i);
    for (int64_t i = 0; i < setup->blocks.max_seqs; i++)
        s->free_seqs[i] = (int32_t)(setup->blocks.max_seqs - 1 - i);
    return NB_OK;
}

void nb_sched_free(nb_sched *s)
{
    nb_array list[N_ARRAYS];
    list_arrays(s, list);
    nb_arrays_free(list, N_ARRAYS);
    nb_blocks_free(&s->blocks);
    *s = (nb_sched){0};
}

/* ---- lists ---- */

bool nb_seq_before(const nb_seq *a, const nb_seq *b)
{
    const bool a_next = a->n_preempted >= NB_SCHED_PATIENCE;
    const bool b_next = b->n_preempted >= NB_SCHED_PATIENCE;
    if (a_next != b_next)
        return a_next;
    if (a->key_ms != b->key_ms)
        return a->key_ms < b->key_ms;
    return a->arrival != b->arrival ? a->arrival < b->arrival : a->sample < b->sample;
}

void nb_sched_list_add(const nb_sched *s, int32_t *list, int64_t *n, int32_t slot)
{
    int64_t at = (*n)++;
    for (; at > 0 && nb_seq_before(&s->seqs[slot], &s->seqs[list[at - 1]]); at--)
        list[at] = list[at - 1];
    list[at] = slot;
}

void nb_sched_list_remove(int32_t *list, int64_t *n, int32_t slot)
{
    int64_t at = 0;
    while (at < *n && list[at] != slot)
        at++;
    assert(at < *n);
    memmove(list + at, list + at + 1, (size_t)(*n - at - 1) * sizeof *list);
    (*n)--;
}

void nb_sched_stop(nb_sched *s, int32_t slot)
{
    nb_seq *q = &s->seqs[slot];
    nb_blocks_truncate(&s->blocks, q->seq, 0);
    nb_sched_list_remove(s->running, &s->n_running, slot);
    s->free_seqs[s->setup.blocks.max_seqs - s->n_running - 1] = q->seq;
    q->seq = -1;
    q->n_kv = 0;
}

/* A sequence is over: nothing of it remains but what the index keeps. */
static void end_seq(nb_sched *s, int32_t slot)
{
    nb_seq *q = &s->seqs[slot];
    if (q->state == NB_SEQ_RUNNING)
        nb_sched_stop(s, slot);
    else
        nb_sched_list_remove(s->waiting, &s->n_waiting, slot);
    *q = (nb_seq){.state = NB_SEQ_NONE, .seq = -1};
    s->free_slots[s->n_free_slots++] = slot;
}

/* ---- requests ---- */

/* Makes room for n tokens: past NB_SCHED_SHORT a sequence moves to its long rows. */
static void make_room(nb_sched *s, int32_t slot, int64_t n)
{
    nb_seq *q = &s->seqs[slot];
    if (q->is_long || n <= NB_SCHED_SHORT)
        return;
    const int32_t *tokens = nb_sched_tokens(s, slot);
    const nb_sip128 *hashes = nb_sched_hashes(s, slot);
    q->is_long = true;
    memcpy(nb_sched_tokens(s, slot), tokens, (size_t)q->n_tokens * sizeof *tokens);
    memcpy(nb_sched_hashes(s, slot), hashes, (size_t)q->n_hashes * sizeof *hashes);
}

/* Hashes of the blocks that are full with n tokens. */
static void hash_blocks(nb_sched *s, int32_t slot, int64_t n)
{
    nb_seq *q = &s->seqs[slot];
    const int64_t len = s->setup.blocks.block_len;
    nb_sip128 *hashes = nb_sched_hashes(s, slot);
    if (!s->setup.blocks.share_prefixes)
        return;
    for (; (q->n_hashes + 1) * len <= n; q->n_hashes++)
        hashes[q->n_hashes] =
            nb_blocks_hash(&s->blocks, q->n_hashes == 0 ? q->root : hashes[q->n_hashes - 1],
                           nb_sched_tokens(s, slot) + q->n_hashes * len);
}

static nb_status check_request(const nb_sched *s, const nb_sched_request *r, int64_t n_samples,
                               nb_err *err)
{
    const nb_blocks_setup *b = &s->setup.blocks;
    if (r->n_prompt < 1)
        return nb_fail(err, NB_DATA, "the prompt has no tokens");
    if (r->max_new < 0 || r->max_draft < 0 || r->max_draft > NB_SCHED_MAX_DRAFT)
        return nb_fail(err, NB_DATA,
                       "%lld new tokens, %lld guessed ahead: there may be 0 or more, and 0 to %d",
                       (long long)r->max_new, (long long)r->max_draft, NB_SCHED_MAX_DRAFT);
    if (n_samples < 1 || n_samples > NB_SCHED_MAX_SAMPLES || n_samples > s->setup.max_waiting) {
        const int64_t most = s->setup.max_waiting < NB_SCHED_MAX_SAMPLES ? s->setup.max_waiting
                                                                         : NB_SCHED_MAX_SAMPLES;
        return nb_fail(err, NB_DATA, "%lld samples of one prompt: there may be 1 to %lld",
                       (long long)n_samples, (long long)most);
    }
    if (r->priority < -NB_SCHED_MAX_PRIORITY || r->priority > NB_SCHED_MAX_PRIORITY)
        return nb_fail(err, NB_DATA, "a priority of %d: it must be %d to %d", (int)r->priority,
                       -NB_SCHED_MAX_PRIORITY, NB_SCHED_MAX_PRIORITY);
    if (r->n_prompt > b->max_positions || r->max_new > b->max_positions - r->n_prompt)
        return nb_fail(err, NB_DATA,
                       "%lld tokens of prompt and %lld to generate do not fit in a context of %lld",
                       (long long)r->n_prompt, (long long)r->max_new, (long long)b->max_positions);
    const nb_seq longest = {.n_prompt = r->n_prompt, .max_new = r->max_new};
    const int64_t need = nb_blocks_for(&s->blocks, nb_seq_longest(&longest));
    if (need > b->n_blocks)
        return nb_fail(err, NB_DATA,
                       "%lld tokens of prompt and %lld to generate need %lld blocks of %lld: the "
                       "whole KV cache has %lld",
                       (long long)r->n_prompt, (long long)r->max_new, (long long)need,
                       (long long)b->block_len, (long long)b->n_blocks);
    return NB_OK;
}

nb_status nb_sched_submit(nb_sched *s, const nb_sched_request *r, nb_err *err)
{
    const int64_t n_samples = r->n_samples == 0 ? 1 : r->n_samples;
    NB_TRY(check_request(s, r, n_samples, err));
    for (int64_t i = 0; i < s->n_slots; i++) {
        if (s->seqs[i].state != NB_SEQ_NONE && s->seqs[i].id == r->id)
            return nb_fail(err, NB_USAGE, "there is a request %llu already",
                           (unsigned long long)r->id);
    }
    if (s->n_waiting + n_samples > s->setup.max_waiting)
        return nb_fail(err, NB_LIMIT, "the queue is full: %lld of %lld sequences wait",
                       (long long)s->n_waiting, (long long)s->setup.max_waiting);
    /* Times are far from the ends of 64 bits, so that keys do not wrap. */
    const int64_t now = r->arrival_ms < INT64_MAX / 4 ? r->arrival_ms : INT64_MAX / 4;
    s->last_ms = now > s->last_ms ? now : s->last_ms;
    const int64_t later =
        s->setup.policy == NB_SCHED_PRIORITY ? r->priority * s->setup.ageing_ms : 0;
    int32_t first = -1;
    for (int32_t i = 0; i < n_samples; i++) {
        const int32_t slot = s->free_slots[--s->n_free_slots];
        nb_seq *q = &s->seqs[slot];
        *q = (nb_seq){.state = NB_SEQ_WAITING,
                      .id = r->id,
                      .arrival = s->n_arrivals,
                      .key_ms = s->last_ms + later,
                      .n_prompt = r->n_prompt,
                      .max_new = r->max_new,
                      .max_draft = r->max_draft,
                      .n_tokens = r->n_prompt,
                      .n_found = -1,
                      .sample = i,
                      .n_samples = (int32_t)n_samples,
                      .priority = r->priority,
                      .seq = -1,
                      .all_outputs = r->all_outputs && i == 0,
                      .is_long = r->n_prompt > NB_SCHED_SHORT,
                      .root = nb_blocks_root(&s->blocks, r->salt, r->salt_bytes)};
        memcpy(nb_sched_tokens(s, slot), r->prompt, (size_t)r->n_prompt * sizeof *r->prompt);
        if (i == 0) {
            first = slot;
            hash_blocks(s, slot, r->n_prompt);
        } else {
            q->n_hashes = s->seqs[first].n_hashes;
            memcpy(nb_sched_hashes(s, slot), nb_sched_hashes(s, first),
                   (size_t)q->n_hashes * sizeof(nb_sip128));
        }
        nb_sched_list_add(s, s->waiting, &s->n_waiting, slot);
        s->counts.n_submitted++;
    }
    s->n_arrivals++;
    return NB_OK;
}

bool nb_sched_abort(nb_sched *s, uint64_t id)
{
    bool found = false;
    for (int32_t slot = 0; slot < s->n_slots; slot++) {
        nb_seq *q = &s->seqs[slot];
        if (q->state == NB_SEQ_NONE || q->id != id || q->aborted)
            continue;
        found = true;
        s->counts.n_aborted++;
        if (s->planned && q->state == NB_SEQ_RUNNING)
            q->aborted = true;
        else
            end_seq(s, slot);
    }
    return found;
}

void nb_sched_set_draft(nb_sched *s, int32_t slot, int64_t max_draft)
{
    assert(!s->planned && s->seqs[slot].state == NB_SEQ_RUNNING);
    assert(max_draft >= 0 && max_draft <= NB_SCHED_MAX_DRAFT);
    s->seqs[slot].max_draft = max_draft;
}

/* ---- what a step has computed ---- */

static void take_result(nb_sched *s, const nb_step_entry *e, const nb_sched_result *r)
{
    nb_seq *q = &s->seqs[e->slot];
    const int64_t guessed = r->n_tokens > 0 ? r->n_tokens - 1 : 0;
    assert(r->n_tokens >= 0 && (e->samples || r->n_tokens == 0));
    assert(guessed <= e->n_draft && r->n_tokens <= e->n_left);
    assert(!e->samples || r->n_tokens > 0 || e->n_left == 0 || r->end != NB_SEQ_GOES_ON);
    make_room(s, e->slot, q->n_tokens + r->n_tokens);
    if (r->n_tokens > 0)
        memcpy(nb_sched_tokens(s, e->slot) + q->n_tokens, r->tokens,
               (size_t)r->n_tokens * sizeof *r->tokens);
    q->n_tokens += r->n_tokens;
    q->n_kv = e->start + e->n + guessed;
    s->counts.n_generated_tokens += r->n_tokens;
    hash_blocks(s, e->slot, q->n_kv);
    nb_blocks_fill(&s->blocks, q->seq, q->n_kv, nb_sched_tokens(s, e->slot),
                   nb_sched_hashes(s, e->slot));
    nb_blocks_truncate(&s->blocks, q->seq, q->n_kv);
    if (q->all_outputs) {
        const int64_t out = q->n_kv < q->n_prompt ? q->n_kv : q->n_prompt;
        q->n_outputs = out > q->n_outputs ? out : q->n_outputs;
    }
}

void nb_sched_commit(nb_sched *s, const nb_step_plan *plan, const nb_sched_result *results)
{
    assert(s->planned && plan->n_entries == s->n_running);
    s->planned = false;
    s->counts.n_steps++;
    for (int64_t i = 0; i < plan->n_entries; i++) {
        const nb_step_entry *e = &plan->entries[i];
        nb_seq *q = &s->seqs[e->slot];
        assert(q->state == NB_SEQ_RUNNING && q->id == e->id && q->n_kv == e->start);
        if (q->aborted) {
            end_seq(s, e->slot);
            continue;
        }
        if (results[i].end == NB_SEQ_BROKEN) {
            s->counts.n_broken++;
            end_seq(s, e->slot);
            continue;
        }
        take_result(s, e, &results[i]);
        const bool all = e->samples && q->n_tokens - q->n_prompt == q->max_new;
        if (all || results[i].end == NB_SEQ_DONE) {
            s->counts.n_finished++;
            end_seq(s, e->slot);
        }
    }
}
