/* See sched_check.h: queues and plans. */
#include "engine/sched_check.h"

#define MUST(condition, ...)                                                                       \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return nb_fail(err, NB_DATA, __VA_ARGS__);                                             \
    } while (0)

typedef long long wide;

/* Order of arrival and priority alone, whoever was preempted. */
static bool sooner(const nb_seq *a, const nb_seq *b)
{
    if (a->key_ms != b->key_ms)
        return a->key_ms < b->key_ms;
    return a->arrival != b->arrival ? a->arrival < b->arrival : a->sample < b->sample;
}

static nb_status check_list(const nb_sched *s, const int32_t *list, int64_t n, nb_seq_state state,
                            nb_err *err)
{
    for (int64_t i = 0; i < n; i++) {
        const int32_t slot = list[i];
        MUST(slot >= 0 && slot < s->n_slots && s->seqs[slot].state == state,
             "K1: slot %d is on a list of another state", (int)slot);
        if (i == 0)
            continue;
        const nb_seq *q = &s->seqs[slot], *before = &s->seqs[list[i - 1]];
        const bool patience = q->n_preempted >= NB_SCHED_PATIENCE;
        const bool patience_before = before->n_preempted >= NB_SCHED_PATIENCE;
        MUST(patience_before != patience ? patience_before : sooner(before, q),
             "K14: slots %d and %d are on their list in the wrong order", (int)list[i - 1],
             (int)slot);
    }
    return NB_OK;
}

/* K22: how many tokens a sequence has, by how far it is. K5: what its table holds. */
static nb_status check_seq(const nb_sched *s, int32_t slot, nb_err *err)
{
    const nb_seq *q = &s->seqs[slot];
    MUST(q->n_tokens >= q->n_prompt && q->n_tokens <= q->n_prompt + q->max_new &&
             q->n_tokens <= s->setup.blocks.max_positions,
         "K22: slot %d has %lld tokens, %lld of prompt and at most %lld more", (int)slot,
         (wide)q->n_tokens, (wide)q->n_prompt, (wide)q->max_new);
    MUST(q->n_preempted <= NB_SCHED_PATIENCE, "K15: slot %d was preempted %d times", (int)slot,
         (int)q->n_preempted);
    MUST(!q->aborted || (s->planned && q->state == NB_SEQ_RUNNING),
         "K10: slot %d was aborted and is still there", (int)slot);
    if (q->state == NB_SEQ_WAITING) {
        MUST(q->seq == -1 && q->n_kv == 0, "K10: slot %d waits and holds blocks", (int)slot);
        return NB_OK;
    }
    MUST(q->seq >= 0 && q->seq < s->setup.blocks.max_seqs, "K1: slot %d runs without a table",
         (int)slot);
    MUST(q->n_kv == s->blocks.n_filled[q->seq] && q->n_kv < q->n_tokens,
         "K22: slot %d has %lld tokens, %lld computed, %lld in its blocks", (int)slot,
         (wide)q->n_tokens, (wide)q->n_kv, (wide)s->blocks.n_filled[q->seq]);
    MUST(s->planned || s->blocks.n_table[q->seq] == nb_blocks_for(&s->blocks, q->n_kv),
         "K5: slot %d has %d blocks for %lld positions", (int)slot, (int)s->blocks.n_table[q->seq],
         (wide)q->n_kv);
    return NB_OK;
}

/* K7: an indexed block of a sequence holds that sequence's tokens, under their hash. */
static nb_status check_contents(const nb_sched *s, int32_t slot, nb_err *err)
{
    const nb_seq *q = &s->seqs[slot];
    const int64_t len = s->setup.blocks.block_len;
    nb_sip128 hash = q->root;
    for (int64_t i = 0; (i + 1) * len <= q->n_kv; i++) {
        const int32_t block = nb_blocks_table(&s->blocks, q->seq)[i];
        const int32_t *tokens = nb_sched_tokens(s, slot) + i * len;
        hash = nb_blocks_hash(&s->blocks, hash, tokens);
        MUST(nb_sip128_equal(s->blocks.blocks[block].hash, hash),
             "K7: block %d is indexed under another hash than that of slot %d", (int)block,
             (int)slot);
        for (int64_t j = 0; j < len; j++)
            MUST(s->blocks.tokens[block * len + j] == tokens[j],
                 "K7: block %d differs from the tokens of slot %d", (int)block, (int)slot);
    }
    return NB_OK;
}

/* While somebody runs who has been preempted often enough, everything that runs fits at its
 * longest, so that nobody has to be preempted. */
static nb_status check_patience(const nb_sched *s, nb_err *err)
{
    int64_t longest = 0;
    bool patience = false;
    for (int64_t i = 0; i < s->n_running; i++) {
        const nb_seq *q = &s->seqs[s->running[i]];
        longest += nb_blocks_for(&s->blocks, nb_seq_longest(q));
        patience |= q->n_preempted >= NB_SCHED_PATIENCE;
    }
    MUST(!patience || longest <= s->setup.blocks.n_blocks,
         "K15: %lld blocks may be needed beside a sequence that must not be preempted again, of "
         "%lld",
         (wide)longest, (wide)s->setup.blocks.n_blocks);
    return NB_OK;
}

nb_status nb_sched_check(const nb_sched *s, int64_t turn, nb_err *err)
{
    const nb_blocks_setup *b = &s->setup.blocks;
    int64_t n_fresh = 0, n_live = 0, n_aborted = 0, n_tables = 0;
    NB_TRY(nb_blocks_check(&s->blocks, turn, err));
    MUST(s->n_running >= 0 && s->n_running <= b->max_seqs && s->n_running <= s->setup.step_tokens,
         "K11: %lld sequences run", (wide)s->n_running);
    MUST(s->n_waiting >= 0 && s->n_running + s->n_waiting + s->n_free_slots == s->n_slots,
         "K24: %lld sequences run, %lld wait, %lld slots are free, of %lld", (wide)s->n_running,
         (wide)s->n_waiting, (wide)s->n_free_slots, (wide)s->n_slots);
    NB_TRY(check_list(s, s->running, s->n_running, NB_SEQ_RUNNING, err));
    NB_TRY(check_list(s, s->waiting, s->n_waiting, NB_SEQ_WAITING, err));
    for (int32_t slot = 0; slot < s->n_slots; slot++) {
        const nb_seq *q = &s->seqs[slot];
        if (q->state == NB_SEQ_NONE)
            continue;
        NB_TRY(check_seq(s, slot, err));
        n_live++;
        n_aborted += q->aborted;
        n_fresh += q->state == NB_SEQ_WAITING && q->n_preempted == 0;
        if (q->state == NB_SEQ_RUNNING && b->share_prefixes &&
            (turn < 0 || (turn + slot) % 16 == 0))
            NB_TRY(check_contents(s, slot, err));
    }
    MUST(n_live == s->n_running + s->n_waiting, "K1: %lld sequences are on no list or on two",
         (wide)(n_live - s->n_running - s->n_waiting));
    MUST(n_fresh <= s->setup.max_waiting, "K24: %lld sequences wait for the first time, of %lld",
         (wide)n_fresh, (wide)s->setup.max_waiting);
    for (int64_t i = 0; i < b->max_seqs; i++)
        n_tables += s->blocks.n_table[i] > 0;
    MUST(n_tables <= s->n_running, "K9: %lld tables have blocks while %lld sequences run",
         (wide)n_tables, (wide)s->n_running);
    const nb_sched_counts *c = &s->counts;
    MUST(c->n_submitted - c->n_finished - c->n_broken - c->n_aborted == n_live - n_aborted,
         "K22: %lld sequences were submitted, %lld are over and %lld are there",
         (wide)c->n_submitted, (wide)(c->n_finished + c->n_broken + c->n_aborted), (wide)n_live);
    return check_patience(s, err);
}

/* ---- plans ---- */

static nb_status check_entry(const nb_sched *s, const nb_step_entry *e, nb_err *err)
{
    const nb_blocks *b = &s->blocks;
    MUST(e->slot >= 0 && e->slot < s->n_slots && s->seqs[e->slot].state == NB_SEQ_RUNNING,
         "K11: slot %d is planned and does not run", (int)e->slot);
    const nb_seq *q = &s->seqs[e->slot];
    const int64_t end = e->start + e->n, len = s->setup.blocks.block_len;
    MUST(e->id == q->id && e->sample == q->sample && e->start == q->n_kv && e->n >= 1 &&
             end <= q->n_tokens && e->samples == (end == q->n_tokens),
         "K11: slot %d runs %lld tokens from %lld, it has %lld and needs %lld", (int)e->slot,
         (wide)e->n, (wide)e->start, (wide)q->n_kv, (wide)q->n_tokens);
    MUST(e->n_outputs >= e->samples && e->n_outputs <= e->n,
         "K22: %lld outputs of %lld tokens of slot %d", (wide)e->n_outputs, (wide)e->n,
         (int)e->slot);
    MUST(e->n_left == q->n_prompt + q->max_new - q->n_tokens && e->n_draft >= 0 &&
             e->n_draft <= q->max_draft &&
             (e->n_draft == 0 || (e->samples && e->n_draft < e->n_left)),
         "K5: slot %d guesses %lld tokens ahead and may generate %lld", (int)e->slot,
         (wide)e->n_draft, (wide)e->n_left);
    MUST(b->n_table[q->seq] == nb_blocks_for(b, end + e->n_draft),
         "K5: slot %d has %d blocks for %lld positions", (int)e->slot, (int)b->n_table[q->seq],
         (wide)(end + e->n_draft));
    MUST(e->tokens == nb_sched_tokens(s, e->slot) + e->start &&
             e->table == nb_blocks_table(b, q->seq),
         "K11: the entry of slot %d points elsewhere", (int)e->slot);
    for (int64_t at = e->start / len; at < b->n_table[q->seq]; at++) {
        const nb_block *k = &b->blocks[e->table[at]];
        MUST(k->n_refs == 1 && !k->indexed, "K6: slot %d writes block %d, which has %d readers",
             (int)e->slot, (int)e->table[at], (int)k->n_refs);
    }
    return NB_OK;
}

static nb_status check_copies(const nb_sched *s, const nb_step_plan *plan, nb_err *err)
{
    const int64_t len = s->setup.blocks.block_len;
    for (int64_t i = 0; i < plan->n_copies; i++) {
        const nb_block_copy *c = &plan->copies[i];
        bool wanted = false;
        for (int64_t j = 0; j < plan->n_entries; j++) {
            const nb_step_entry *e = &plan->entries[j];
            wanted |= e->start % len != 0 && e->table[e->start / len] == c->to;
        }
        MUST(wanted && c->from >= 0 && c->from < s->setup.blocks.n_blocks && c->from != c->to,
             "K6: block %d is copied to %d, where nobody goes on", (int)c->from, (int)c->to);
    }
    return NB_OK;
}

/* K14: nobody goes on who is behind somebody that was preempted. */
static nb_status check_preempted(const nb_sched *s, const nb_step_plan *plan, nb_err *err)
{
    MUST(plan->n_preempted == 0 || plan->n_admitted == 0,
         "K14: %lld sequences are admitted in a step that preempts", (wide)plan->n_admitted);
    for (int64_t i = 0; i < plan->n_preempted; i++) {
        const nb_step_preempted *p = &plan->preempted[i];
        MUST(p->slot >= 0 && p->slot < s->n_slots && s->seqs[p->slot].state == NB_SEQ_WAITING &&
                 s->seqs[p->slot].id == p->id,
             "K14: slot %d is preempted and does not wait", (int)p->slot);
        for (int64_t j = 0; j < plan->n_entries; j++)
            MUST(sooner(&s->seqs[plan->entries[j].slot], &s->seqs[p->slot]),
                 "K14: slot %d was preempted for slot %d, which came later", (int)p->slot,
                 (int)plan->entries[j].slot);
    }
    return NB_OK;
}

/* K16: nobody is overtaken by more than the policy says. Samples that wait for another of theirs
 * do not count. */
static nb_status check_admitted(const nb_sched *s, const nb_step_plan *plan, nb_err *err)
{
    const int64_t max_blocks = nb_blocks_for(&s->blocks, s->setup.blocks.max_positions);
    const int64_t most = s->setup.policy == NB_SCHED_LPM ? max_blocks * s->setup.ageing_ms : 0;
    for (int64_t j = plan->n_entries - plan->n_admitted; j < plan->n_entries; j++) {
        const nb_seq *e = &s->seqs[plan->entries[j].slot];
        for (int64_t i = 0; i < s->n_waiting; i++) {
            const nb_seq *w = &s->seqs[s->waiting[i]];
            bool sibling = false;
            for (int64_t k = 0; k < s->n_running && w->n_samples > 1; k++)
                sibling |= s->seqs[s->running[k]].arrival == w->arrival;
            if (sibling || e->n_preempted >= NB_SCHED_PATIENCE)
                continue;
            MUST(w->n_preempted < NB_SCHED_PATIENCE,
                 "K16: slot %d was preempted often enough and is overtaken", (int)s->waiting[i]);
            /* Under LPM within the time that it may be moved by; else not at all. */
            MUST(s->setup.policy == NB_SCHED_LPM ? e->key_ms <= w->key_ms + most : sooner(e, w),
                 "K16: slot %d overtakes slot %d", (int)plan->entries[j].slot, (int)s->waiting[i]);
        }
    }
    return NB_OK;
}

nb_status nb_step_plan_check(const nb_sched *s, const nb_step_plan *plan, nb_err *err)
{
    int64_t n_tokens = 0, n_draft = 0;
    MUST(s->planned && plan->n_entries == s->n_running, "K11: %lld entries for %lld that run",
         (wide)plan->n_entries, (wide)s->n_running);
    MUST(plan->n_entries > 0 || s->n_waiting == 0, "K15: %lld wait and nobody runs",
         (wide)s->n_waiting);
    for (int64_t i = 0; i < plan->n_entries; i++) {
        NB_TRY(check_entry(s, &plan->entries[i], err));
        n_tokens += plan->entries[i].n;
        n_draft += plan->entries[i].n_draft;
        for (int64_t j = 0; j < i; j++)
            MUST(plan->entries[j].slot != plan->entries[i].slot, "K11: slot %d is planned twice",
                 (int)plan->entries[i].slot);
    }
    MUST(n_tokens == plan->n_tokens && n_tokens + n_draft <= s->setup.step_tokens,
         "K11: a step of %lld tokens and %lld guessed, of %lld", (wide)n_tokens, (wide)n_draft,
         (wide)s->setup.step_tokens);
    NB_TRY(check_copies(s, plan, err));
    NB_TRY(check_preempted(s, plan, err));
    return check_admitted(s, plan, err);
}
