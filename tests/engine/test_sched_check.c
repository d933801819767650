/* The checks of queues and plans catch what they are for. */
#include "sched_fault.h"

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

static const fault faults[] = {
    {"K1: slot ", IDLE, listed_in_the_wrong_state},
    {"K1: slot ", IDLE, runs_without_a_table},
    {"K5: slot ", IDLE, table_too_long},
    {"K5: ", IDLE, table_too_short},
    {"K5: slot ", PLANNED, guess_without_room},
    {"K5: slot ", PLANNED, guess_past_the_end},
    {"K6: slot ", PLANNED, writes_a_shared_block},
    {"K6: slot ", PLANNED, writes_an_indexed_block},
    {"K6: block ", PLANNED, copies_elsewhere},
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
};

static void planted_faults_are_caught(void **state)
{
    (void)state;
    plant_all(faults, (int)(sizeof faults / sizeof *faults));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(planted_faults_are_caught),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
