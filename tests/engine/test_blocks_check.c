/* The checks of blocks catch what they are for. */
#include "sched_fault.h"

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
    {"K1: sequence ", IDLE, table_names_no_block},
    {"K2: block ", IDLE, one_reference_too_many},
    {"K2: block ", IDLE, free_block_has_a_reference},
    {"K3: ", IDLE, miscounted_cached},
    {"K3: ", IDLE, too_many_free},
    {"K4: block ", IDLE, free_twice},
    {"K4: block ", IDLE, twice_in_a_table},
    {"K7: block ", IDLE, indexed_block_has_changed},
    {"K7: block ", IDLE, first_block_has_changed},
    {"K7: block ", IDLE, tokens_of_a_sequence_have_changed},
    {"K7: block ", IDLE, full_block_is_not_indexed},
    {"K8: block ", IDLE, free_block_can_be_found},
    {"K8: ", IDLE, indexed_block_cannot_be_found},
    {"K8: bucket ", IDLE, bucket_goes_round},
    {"K8: block ", IDLE, parent_is_evicted_first},
    {"K9: 1 tables have blocks while 0 sequences run", DRAINED, table_outlives_its_sequence},
    {"K22: slot ", IDLE, token_too_few},
    {"K22: slot ", IDLE, token_too_many},
    {"K22: block ", IDLE, slot_filled_too_many},
    {"K22: ", IDLE, submitted_miscounted},
    {"K22: 0 outputs of ", PLANNED, output_left_out},
    {"K24: ", IDLE, slot_is_lost},
    {"K24: ", IDLE, queue_too_long},
    {"K25: ", IDLE, memory_miscounted},
};

static void planted_faults_are_caught(void **state)
{
    (void)state;
    plant_all(faults, (int)(sizeof faults / sizeof *faults));
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
