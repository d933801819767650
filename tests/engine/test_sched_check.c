/* The checks of blocks, queues and plans catch what they are for: in worlds full of traffic one
 * thing at a time is broken, and the message must name its invariant. */
#include "support/golden.h"
#include "support/sched_sim.h"

#include <string.h>

/* When a fault is planted, and whose check then runs. */
typedef enum { IDLE, PLANNED, DRAINED } phase;

/* Breaks something; false when this world has nothing to break just now. */
typedef bool breaks(nb_sched *s, nb_step_plan *plan);

typedef struct {
    const char *message; /* what the check says begins with this */
    phase when;
    breaks *plant;
} fault;

static int32_t some_used(const nb_sched *s)
{
    for (int32_t i = 0; i < s->setup.blocks.n_blocks; i++) {
        if (s->blocks.blocks[i].n_refs > 0)
            return i;
    }
    return NB_BLOCK_NONE;
}

static int32_t some_child(const nb_sched *s)
{
    for (int32_t i = 0; i < s->setup.blocks.n_blocks; i++) {
        if (s->blocks.blocks[i].indexed && s->blocks.blocks[i].parent != NB_BLOCK_NONE)
            return i;
    }
    return NB_BLOCK_NONE;
}

static nb_seq *first_running(const nb_sched *s)
{
    return s->n_running > 0 ? &s->seqs[s->running[0]] : NULL;
}

static nb_seq *first_waiting(const nb_sched *s)
{
    return s->n_waiting > 0 ? &s->seqs[s->waiting[0]] : NULL;
}

static bool used_block_is_free(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    const int32_t block = some_used(s);
    if (block == NB_BLOCK_NONE || s->blocks.n_cached == 0)
        return false;
    s->blocks.free[s->blocks.n_free++] = block;
    return true;
}

static bool block_is_lost(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    return s->blocks.n_free > 0 && s->blocks.n_free-- > 0;
}

static bool cached_block_is_lost(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_blocks *b = &s->blocks;
    if (b->n_cached < 2)
        return false;
    b->oldest = b->blocks[b->oldest].newer;
    return true;
}

static bool cached_block_is_used(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_blocks *b = &s->blocks;
    const nb_seq *q = first_running(s);
    if (q == NULL || b->n_table[q->seq] == 0 || b->n_cached == 0)
        return false;
    b->tables[q->seq * b->max_table] = b->oldest;
    b->n_table[q->seq] = 1;
    b->n_filled[q->seq] = 0;
    return true;
}

static bool one_reference_too_many(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    const int32_t block = some_used(s);
    if (block != NB_BLOCK_NONE)
        s->blocks.blocks[block].n_refs++;
    return block != NB_BLOCK_NONE;
}

static bool free_block_has_a_reference(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    if (s->blocks.n_free > 0)
        s->blocks.blocks[s->blocks.free[0]].n_refs = 1;
    return s->blocks.n_free > 0;
}

static bool miscounted_cached(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    if (s->blocks.n_free + s->blocks.n_cached == s->setup.blocks.n_blocks)
        return false;
    s->blocks.n_cached++;
    return true;
}

static bool too_many_free(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    s->blocks.n_free = s->setup.blocks.n_blocks + 1;
    return true;
}

static bool free_twice(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    if (s->blocks.n_free > 1)
        s->blocks.free[0] = s->blocks.free[1];
    return s->blocks.n_free > 1;
}

static bool twice_in_a_table(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    for (int64_t i = 0; i < s->setup.blocks.max_seqs; i++) {
        int32_t *table = s->blocks.tables + i * s->blocks.max_table;
        if (s->blocks.n_table[i] > 1) {
            table[1] = table[0];
            return true;
        }
    }
    return false;
}

static bool table_too_long(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_blocks *b = &s->blocks;
    const nb_seq *q = first_running(s);
    if (q == NULL || b->n_free == 0 || b->n_table[q->seq] == b->max_table)
        return false;
    const int32_t block = b->free[--b->n_free];
    b->blocks[block].n_refs = 1;
    b->tables[q->seq * b->max_table + b->n_table[q->seq]++] = block;
    return true;
}

static bool table_too_short(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    const nb_seq *q = first_running(s);
    if (q == NULL)
        return false;
    s->blocks.n_table[q->seq] = 0;
    return true;
}

static bool guess_without_room(nb_sched *s, nb_step_plan *plan)
{
    for (int64_t i = 0; i < plan->n_entries; i++) {
        nb_step_entry *e = &plan->entries[i];
        const int64_t end = e->start + e->n + e->n_draft;
        if (e->samples && e->n_draft < s->seqs[e->slot].max_draft && e->n_draft + 1 < e->n_left &&
            end % s->setup.blocks.block_len == 0 && plan->n_tokens + 1 <= s->setup.step_tokens) {
            e->n_draft++;
            return true;
        }
    }
    return false;
}

static bool guess_past_the_end(nb_sched *s, nb_step_plan *plan)
{
    (void)s;
    for (int64_t i = 0; i < plan->n_entries; i++) {
        if (plan->entries[i].n_draft > 0) {
            plan->entries[i].n_draft = plan->entries[i].n_left;
            return true;
        }
    }
    return false;
}

static int32_t *written_block(const nb_sched *s, const nb_step_plan *plan)
{
    const nb_step_entry *e = &plan->entries[0];
    return plan->n_entries == 0 ? NULL
                                : s->blocks.tables + s->seqs[e->slot].seq * s->blocks.max_table +
                                      e->start / s->setup.blocks.block_len;
}

static bool writes_a_shared_block(nb_sched *s, nb_step_plan *plan)
{
    const int32_t *block = written_block(s, plan);
    if (block != NULL)
        s->blocks.blocks[*block].n_refs = 2;
    return block != NULL;
}

static bool writes_an_indexed_block(nb_sched *s, nb_step_plan *plan)
{
    const int32_t *block = written_block(s, plan);
    if (block != NULL)
        s->blocks.blocks[*block].indexed = true;
    return block != NULL;
}

static bool copies_elsewhere(nb_sched *s, nb_step_plan *plan)
{
    (void)s;
    if (plan->n_copies > 0)
        plan->copies[0].to = plan->copies[0].from;
    return plan->n_copies > 0;
}

static bool indexed_block_has_changed(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    const int32_t block = some_child(s);
    if (block != NB_BLOCK_NONE)
        s->blocks.tokens[(block + 1) * s->setup.blocks.block_len - 1] ^= 1;
    return block != NB_BLOCK_NONE;
}

static bool first_block_has_changed(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    const nb_seq *q = first_running(s);
    if (q == NULL || !s->setup.blocks.share_prefixes || q->n_kv < s->setup.blocks.block_len)
        return false;
    const int32_t block = nb_blocks_table(&s->blocks, q->seq)[0];
    for (int32_t i = 0; i < s->setup.blocks.n_blocks; i++) { /* no child tells on it */
        if (s->blocks.blocks[i].indexed && s->blocks.blocks[i].parent == block)
            return false;
    }
    s->blocks.tokens[block * s->setup.blocks.block_len] ^= 1;
    return true;
}

static bool tokens_of_a_sequence_have_changed(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    const nb_seq *q = first_running(s);
    if (q == NULL || !s->setup.blocks.share_prefixes || q->n_kv < s->setup.blocks.block_len)
        return false;
    nb_sched_tokens(s, s->running[0])[0] ^= 1;
    return true;
}

static bool full_block_is_not_indexed(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    const nb_seq *q = first_running(s);
    if (q == NULL || !s->setup.blocks.share_prefixes || q->n_kv < s->setup.blocks.block_len)
        return false;
    s->blocks.blocks[nb_blocks_table(&s->blocks, q->seq)[0]].indexed = false;
    return true;
}

static bool free_block_can_be_found(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    if (s->blocks.n_free > 0)
        s->blocks.blocks[s->blocks.free[0]].indexed = true;
    return s->blocks.n_free > 0;
}

static bool indexed_block_cannot_be_found(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    for (int64_t i = 0; i < s->blocks.n_buckets; i++) {
        if (s->blocks.buckets[i] != NB_BLOCK_NONE) {
            s->blocks.buckets[i] = s->blocks.blocks[s->blocks.buckets[i]].next;
            return true;
        }
    }
    return false;
}

static bool bucket_goes_round(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    for (int64_t i = 0; i < s->blocks.n_buckets; i++) {
        const int32_t block = s->blocks.buckets[i];
        if (block != NB_BLOCK_NONE) {
            s->blocks.blocks[block].next = block;
            return true;
        }
    }
    return false;
}

static bool parent_is_evicted_first(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_blocks *b = &s->blocks;
    /* The newest among the cached is a parent: it becomes the oldest. */
    const int32_t last = b->newest;
    bool is_parent = false;
    for (int32_t i = 0; i < s->setup.blocks.n_blocks; i++)
        is_parent |= b->blocks[i].indexed && b->blocks[i].parent == last;
    if (last == NB_BLOCK_NONE || !is_parent || b->n_cached < 2)
        return false;
    b->newest = b->blocks[last].older;
    b->blocks[b->newest].newer = NB_BLOCK_NONE;
    b->blocks[last].older = NB_BLOCK_NONE;
    b->blocks[last].newer = b->oldest;
    b->blocks[b->oldest].older = last;
    b->oldest = last;
    return true;
}

static bool table_outlives_its_sequence(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_blocks *b = &s->blocks;
    if (b->n_free == 0)
        return false;
    const int32_t block = b->free[--b->n_free];
    b->blocks[block].n_refs = 1;
    b->tables[0] = block;
    b->n_table[0] = 1;
    return true;
}

static bool aborted_sequence_stays(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_seq *q = s->n_running > 0 ? first_running(s) : first_waiting(s);
    if (q != NULL)
        q->aborted = true;
    return q != NULL;
}

static bool waiting_sequence_holds_blocks(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_seq *q = first_waiting(s);
    if (q != NULL)
        q->n_kv = 1;
    return q != NULL;
}

static bool entry_is_left_out(nb_sched *s, nb_step_plan *plan)
{
    (void)s;
    return plan->n_entries > 0 && plan->n_entries-- > 0;
}

static bool entry_runs_nothing(nb_sched *s, nb_step_plan *plan)
{
    (void)s;
    if (plan->n_entries > 0)
        plan->entries[0].n = 0;
    return plan->n_entries > 0;
}

static bool entry_is_there_twice(nb_sched *s, nb_step_plan *plan)
{
    (void)s;
    if (plan->n_entries > 1)
        plan->entries[1] = plan->entries[0];
    return plan->n_entries > 1;
}

static bool step_over_budget(nb_sched *s, nb_step_plan *plan)
{
    if (plan->n_tokens < 1)
        return false;
    s->setup.step_tokens = plan->n_tokens - 1;
    return true;
}

static bool more_run_than_may(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    if (s->n_running < 2)
        return false;
    s->setup.step_tokens = s->n_running - 1;
    return true;
}

static bool entry_points_elsewhere(nb_sched *s, nb_step_plan *plan)
{
    (void)s;
    if (plan->n_entries > 0)
        plan->entries[0].tokens++;
    return plan->n_entries > 0;
}

static bool earlier_one_is_preempted(nb_sched *s, nb_step_plan *plan)
{
    if (plan->n_preempted == 0)
        return false;
    s->seqs[plan->preempted[0].slot].key_ms = INT64_MIN;
    return true;
}

static bool preempted_one_runs(nb_sched *s, nb_step_plan *plan)
{
    (void)s;
    if (plan->n_preempted == 0 || plan->n_entries == 0)
        return false;
    plan->preempted[0].slot = plan->entries[0].slot;
    return true;
}

static bool admits_while_preempting(nb_sched *s, nb_step_plan *plan)
{
    (void)s;
    if (plan->n_preempted == 0 || plan->n_entries == 0)
        return false;
    plan->n_admitted = 1;
    return true;
}

static bool running_out_of_order(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    if (s->n_running < 2)
        return false;
    const int32_t first = s->running[0];
    s->running[0] = s->running[1];
    s->running[1] = first;
    return true;
}

static bool nobody_runs(nb_sched *s, nb_step_plan *plan)
{
    if (s->n_waiting == 0)
        return false;
    plan->n_entries = s->n_running = 0;
    return true;
}

static bool preempted_too_often(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_seq *q = first_waiting(s);
    if (q != NULL)
        q->n_preempted = NB_SCHED_PATIENCE + 1;
    return q != NULL;
}

static bool no_room_for_the_patient(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_seq *q = first_running(s);
    int64_t longest = 0;
    for (int64_t i = 0; i < s->n_running; i++)
        longest += nb_blocks_for(&s->blocks, nb_seq_longest(&s->seqs[s->running[i]]));
    if (q == NULL || longest <= s->setup.blocks.n_blocks)
        return false;
    q->n_preempted = NB_SCHED_PATIENCE;
    return true;
}

static bool somebody_is_overtaken(nb_sched *s, nb_step_plan *plan)
{
    nb_seq *q = first_waiting(s);
    if (q == NULL || plan->n_admitted == 0 || q->n_samples > 1)
        return false;
    const nb_seq *e = &s->seqs[plan->entries[plan->n_entries - 1].slot];
    if (e->n_preempted >= NB_SCHED_PATIENCE)
        return false;
    q->key_ms = e->key_ms - ((int64_t)1 << 40);
    return true;
}

static bool the_patient_is_overtaken(nb_sched *s, nb_step_plan *plan)
{
    nb_seq *q = first_waiting(s);
    if (q == NULL || plan->n_admitted == 0 || q->n_samples > 1 ||
        s->seqs[plan->entries[plan->n_entries - 1].slot].n_preempted >= NB_SCHED_PATIENCE)
        return false;
    q->n_preempted = NB_SCHED_PATIENCE;
    return true;
}

static bool token_too_few(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_seq *q = first_running(s);
    if (q == NULL || q->n_tokens == q->n_prompt || q->n_kv != q->n_tokens - 1)
        return false;
    q->n_tokens--;
    return true;
}

static bool token_too_many(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_seq *q = first_waiting(s);
    if (q != NULL)
        q->n_tokens = q->n_prompt + q->max_new + 1;
    return q != NULL;
}

static bool slot_filled_too_many(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    const int32_t block = some_used(s);
    if (block != NB_BLOCK_NONE)
        s->blocks.blocks[block].n_filled++;
    return block != NB_BLOCK_NONE;
}

static bool submitted_miscounted(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    s->counts.n_submitted++;
    return true;
}

static bool output_left_out(nb_sched *s, nb_step_plan *plan)
{
    (void)s;
    for (int64_t i = 0; i < plan->n_entries; i++) {
        if (plan->entries[i].samples) {
            plan->entries[i].n_outputs = 0;
            return true;
        }
    }
    return false;
}

static bool slot_is_lost(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    return s->n_free_slots > 0 && s->n_free_slots-- > 0;
}

static bool queue_too_long(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    const nb_seq *q = first_waiting(s);
    if (q == NULL || q->n_preempted > 0)
        return false;
    s->setup.max_waiting = 0;
    return true;
}

static bool memory_miscounted(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    s->blocks.n_slots_filled++;
    return true;
}

static bool listed_in_the_wrong_state(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_seq *q = first_waiting(s);
    if (q != NULL)
        q->state = NB_SEQ_RUNNING;
    return q != NULL;
}

static bool runs_without_a_table(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    nb_seq *q = first_running(s);
    if (q != NULL)
        q->seq = -1;
    return q != NULL;
}

static bool table_names_no_block(nb_sched *s, nb_step_plan *plan)
{
    (void)plan;
    const nb_seq *q = first_running(s);
    if (q == NULL || s->blocks.n_table[q->seq] == 0)
        return false;
    s->blocks.tables[q->seq * s->blocks.max_table] = (int32_t)s->setup.blocks.n_blocks;
    return true;
}

static const fault faults[] = {
    {"K1: block ", IDLE, used_block_is_free},
    {"K1: block ", IDLE, block_is_lost},
    {"K1: block ", IDLE, cached_block_is_lost},
    {"K1: block ", IDLE, cached_block_is_used},
    {"K1: slot ", IDLE, listed_in_the_wrong_state},
    {"K1: slot ", IDLE, runs_without_a_table},
    {"K1: sequence ", IDLE, table_names_no_block},
    {"K2: block ", IDLE, one_reference_too_many},
    {"K2: block ", IDLE, free_block_has_a_reference},
    {"K3: ", IDLE, miscounted_cached},
    {"K3: ", IDLE, too_many_free},
    {"K4: block ", IDLE, free_twice},
    {"K4: block ", IDLE, twice_in_a_table},
    {"K5: slot ", IDLE, table_too_long},
    {"K5: ", IDLE, table_too_short},
    {"K5: slot ", PLANNED, guess_without_room},
    {"K5: slot ", PLANNED, guess_past_the_end},
    {"K6: slot ", PLANNED, writes_a_shared_block},
    {"K6: slot ", PLANNED, writes_an_indexed_block},
    {"K6: block ", PLANNED, copies_elsewhere},
    {"K7: block ", IDLE, indexed_block_has_changed},
    {"K7: block ", IDLE, first_block_has_changed},
    {"K7: block ", IDLE, tokens_of_a_sequence_have_changed},
    {"K7: block ", IDLE, full_block_is_not_indexed},
    {"K8: block ", IDLE, free_block_can_be_found},
    {"K8: ", IDLE, indexed_block_cannot_be_found},
    {"K8: bucket ", IDLE, bucket_goes_round},
    {"K8: block ", IDLE, parent_is_evicted_first},
    {"K9: 1 tables have blocks while 0 sequences run", DRAINED, table_outlives_its_sequence},
    {"K10: slot ", IDLE, aborted_sequence_stays},
    {"K10: slot ", IDLE, waiting_sequence_holds_blocks},
    {"K11: ", PLANNED, entry_is_left_out},
    {"K11: slot ", PLANNED, entry_runs_nothing},
    {"K11: slot ", PLANNED, entry_is_there_twice},
    {"K11: the entry of slot ", PLANNED, entry_points_elsewhere},
    {"K11: a step of ", PLANNED, step_over_budget},
    {"K11: ", IDLE, more_run_than_may},
    {"K14: slot ", PLANNED, earlier_one_is_preempted},
    {"K14: slot ", PLANNED, preempted_one_runs},
    {"K14: 1 sequences are admitted", PLANNED, admits_while_preempting},
    {"K14: slots ", IDLE, running_out_of_order},
    {"K15: ", PLANNED, nobody_runs},
    {"K15: slot ", IDLE, preempted_too_often},
    {"K15: ", IDLE, no_room_for_the_patient},
    {"K16: slot ", PLANNED, somebody_is_overtaken},
    {"K16: slot ", PLANNED, the_patient_is_overtaken},
    {"K22: slot ", IDLE, token_too_few},
    {"K22: slot ", IDLE, token_too_many},
    {"K22: block ", IDLE, slot_filled_too_many},
    {"K22: ", IDLE, submitted_miscounted},
    {"K22: 0 outputs of ", PLANNED, output_left_out},
    {"K24: ", IDLE, slot_is_lost},
    {"K24: ", IDLE, queue_too_long},
    {"K25: ", IDLE, memory_miscounted},
};

static void must_be_found(const fault *f, nb_status status, const nb_err *err)
{
    if (status != NB_DATA || strncmp(err->text, f->message, strlen(f->message)) != 0)
        fail_msg("fault %d, '%s', gave '%s'", (int)(f - faults), f->message,
                 status == NB_OK ? "nothing" : err->text);
}

/* One world until the fault can be planted in it; false when it never could. */
static bool planted_in(sim_world *w, const fault *f)
{
    nb_err err = {0};
    nb_sched *s = sim_world_sched(w);
    nb_step_plan *plan = sim_world_plan(w);
    for (int step = 0; step < 150; step++) {
        assert_int_equal(sim_world_begin(w, &err), NB_OK);
        if (f->when == PLANNED && step >= 10 && f->plant(s, plan)) {
            must_be_found(f, nb_step_plan_check(s, plan, &err), &err);
            return true;
        }
        assert_int_equal(sim_world_finish(w, &err), NB_OK);
        if (f->when == IDLE && step >= 10 && f->plant(s, plan)) {
            must_be_found(f, nb_sched_check(s, -1, &err), &err);
            return true;
        }
    }
    if (f->when != DRAINED)
        return false;
    assert_int_equal(sim_world_drain(w, &err), NB_OK);
    if (!f->plant(s, plan))
        return false;
    must_be_found(f, nb_sched_check(s, -1, &err), &err);
    return true;
}

/* Each fault is planted in several worlds. */
static void planted_faults_are_caught(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        int n_planted = 0;
        for (int64_t index = 0; n_planted < 3 && index < 200; index++) {
            sim_world *w = sim_world_new(11, index, SIM_NO_FAULT);
            n_planted += planted_in(w, &faults[i]);
            sim_world_free(w);
        }
        if (n_planted < 3)
            fail_msg("fault %zu (%s) found no place", i, faults[i].message);
    }
}

/* A change anywhere in what is compared only one time in 16 is found within 16 turns. */
static void sixteen_turns_look_at_everything(void **state)
{
    (void)state;
    int n_planted = 0;
    for (int64_t index = 0; n_planted < 10 && index < 100; index++) {
        nb_err err = {0};
        sim_world *w = sim_world_new(12, index, SIM_NO_FAULT);
        nb_sched *s = sim_world_sched(w);
        for (int step = 0; step < 60; step++) {
            assert_int_equal(sim_world_begin(w, &err), NB_OK);
            assert_int_equal(sim_world_finish(w, &err), NB_OK);
        }
        if (indexed_block_has_changed(s, sim_world_plan(w))) {
            int n_caught = 0;
            for (int turn = 0; turn < 16; turn++)
                n_caught += nb_sched_check(s, turn, &err) != NB_OK;
            assert_in_range(n_caught, 1, 16);
            n_planted++;
        }
        sim_world_free(w);
    }
    assert_int_equal(n_planted, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(planted_faults_are_caught),
        cmocka_unit_test(sixteen_turns_look_at_everything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
