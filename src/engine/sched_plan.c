/* See sched.h: what the next step runs. Everything here is decided from the lists and the blocks;
 * the order of decisions is that of the rules in sched.h. */
#include "engine/sched_queue.h"

#include <assert.h>

nb_status nb_step_plan_init(nb_step_plan *plan, const nb_sched *s, nb_err *err)
{
    *plan = (nb_step_plan){0};
    const int64_t n = s->setup.blocks.max_seqs;
    const nb_array list[] = {NB_ARRAY(plan->entries, n), NB_ARRAY(plan->copies, n),
                             NB_ARRAY(plan->preempted, n)};
    return nb_arrays_alloc(list, 3, err);
}

void nb_step_plan_free(nb_step_plan *plan)
{
    nb_free(plan->entries);
    nb_free(plan->copies);
    nb_free(plan->preempted);
    *plan = (nb_step_plan){0};
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- who runs already ---- */

/* Reserves what the entry writes, which must be there, and adds it to the plan. */
static void add_entry(nb_sched *s, nb_step_plan *plan, int32_t slot, int64_t n)
{
    const nb_seq *q = &s->seqs[slot];
    nb_block_copy copy;
    const bool reserved = nb_blocks_reserve(&s->blocks, q->seq, q->n_kv + n, &copy);
    assert(reserved);
    if (copy.to != NB_BLOCK_NONE)
        plan->copies[plan->n_copies++] = copy;
    const int64_t end = q->n_kv + n;
    const bool samples = end == q->n_tokens;
    const int64_t from = q->all_outputs && q->n_outputs < q->n_prompt
                             ? (q->n_outputs > q->n_kv ? q->n_outputs : q->n_kv)
                             : q->n_tokens - 1;
    plan->entries[plan->n_entries++] =
        (nb_step_entry){.slot = slot,
                        .sample = q->sample,
                        .id = q->id,
                        .start = q->n_kv,
                        .n = n,
                        .n_outputs = end > from ? end - from : 0,
                        .samples = samples,
                        .n_left = q->max_new - (q->n_tokens - q->n_prompt),
                        .n_found = q->n_found,
                        .tokens = nb_sched_tokens(s, slot) + q->n_kv,
                        .table = nb_blocks_table(&s->blocks, q->seq)};
    plan->n_tokens += n;
}

static void preempt(nb_sched *s, nb_step_plan *plan, int32_t slot)
{
    nb_seq *q = &s->seqs[slot];
    plan->preempted[plan->n_preempted++] =
        (nb_step_preempted){.id = q->id, .slot = slot, .sample = q->sample};
    s->counts.n_preemptions++;
    nb_sched_stop(s, slot);
    q->state = NB_SEQ_WAITING;
    q->n_preempted++;
    nb_sched_list_add(s, s->waiting, &s->n_waiting, slot);
}

/* Every sequence that runs gets one token at least, in order, so that whom a preemption hits has
 * not been planned yet. A prompt gets what the budget leaves when all behind it have theirs. */
static void plan_running(nb_sched *s, nb_step_plan *plan)
{
    const int64_t len = s->setup.blocks.block_len;
    int64_t budget = s->setup.step_tokens;
    for (int64_t i = 0; i < s->n_running; i++) {
        const int32_t slot = s->running[i];
        const nb_seq *q = &s->seqs[slot];
        int64_t n = min64(q->n_tokens - q->n_kv, budget - (s->n_running - 1 - i));
        while (nb_blocks_needed(&s->blocks, q->seq, q->n_kv + n) >
                   nb_blocks_available(&s->blocks) &&
               i < s->n_running - 1)
            preempt(s, plan, s->running[s->n_running - 1]);
        /* The last one takes what there is. */
        if (i == s->n_running - 1) {
            const int64_t room = s->blocks.n_table[q->seq] + nb_blocks_available(&s->blocks);
            n = min64(n, room * len - q->n_kv);
        }
        if (n < 1) {
            preempt(s, plan, slot);
            return;
        }
        add_entry(s, plan, slot, n);
        budget -= n;
    }
}

/* ---- who is admitted ---- */

/* What those who run may still need: for the tokens they have, and at most. */
typedef struct {
    int64_t promised; /* blocks of tokens not computed yet */
    int64_t longest;  /* blocks of all that run, when they are as long as they may be */
    bool patience;    /* somebody who must not be preempted again is among them */
} claims;

static void add_claim(const nb_sched *s, const nb_seq *q, claims *c)
{
    c->promised += nb_blocks_for(&s->blocks, q->n_tokens) - s->blocks.n_table[q->seq];
    c->longest += nb_blocks_for(&s->blocks, nb_seq_longest(q));
    c->patience |= q->n_preempted >= NB_SCHED_PATIENCE;
}

/* What a sequence would not have to compute. */
typedef struct {
    int64_t n;        /* positions */
    int64_t n_blocks; /* found in the index */
    int64_t n_cached; /* of these, cached */
    int32_t sibling;  /* slot to fork from, or -1 */
    bool asked;       /* the index was */
} head_start;

static bool may_fork(const nb_sched *s, const nb_seq *q)
{
    return q->n_samples > 1 && !s->setup.own_prompts;
}

static head_start find_start(const nb_sched *s, int32_t slot)
{
    const nb_seq *q = &s->seqs[slot];
    const int64_t len = s->setup.blocks.block_len;
    int64_t most = q->n_tokens - 1;
    if (q->all_outputs)
        most = min64(most, q->n_outputs);
    head_start h = {.sibling = -1, .asked = s->setup.blocks.share_prefixes && !q->all_outputs};
    h.n_blocks = nb_blocks_find(&s->blocks, nb_sched_hashes(s, slot), nb_sched_tokens(s, slot),
                                min64(most / len, q->n_hashes), &h.n_cached);
    h.n = h.n_blocks * len;
    for (int64_t i = 0; i < s->n_running && may_fork(s, q); i++) {
        const nb_seq *other = &s->seqs[s->running[i]];
        const int64_t n = min64(min64(other->n_kv, q->n_prompt), most);
        if (other->arrival == q->arrival && n > h.n)
            h = (head_start){.n = n, .sibling = s->running[i]};
    }
    return h;
}

/* Another sample of the request is running the prompt: it is not run twice. */
static bool is_held(const nb_sched *s, const nb_seq *q)
{
    bool held = false;
    for (int64_t i = 0; i < s->n_running && may_fork(s, q); i++) {
        const nb_seq *other = &s->seqs[s->running[i]];
        if (other->arrival != q->arrival)
            continue;
        if (other->n_kv >= q->n_prompt - 1)
            return false;
        held = true;
    }
    return held;
}

/* Who may be admitted, in order: a window of those that wait. */
typedef struct {
    int64_t n;
    int32_t slot[NB_SCHED_WINDOW];
} window;

/* Under NB_SCHED_LPM. Who has been preempted counts as found from end to end: it was computed. */
static nb_seq moved_by_prefix(const nb_sched *s, int32_t slot)
{
    nb_seq q = s->seqs[slot];
    const int64_t n = q.n_preempted > 0 ? q.n_tokens : find_start(s, slot).n;
    q.key_ms -= n / s->setup.blocks.block_len * s->setup.ageing_ms;
    return q;
}

static void fill_window(const nb_sched *s, window *w)
{
    nb_seq moved[NB_SCHED_WINDOW];
    w->n = 0;
    for (int64_t i = 0; i < s->n_waiting && w->n < NB_SCHED_WINDOW; i++) {
        const int32_t slot = s->waiting[i];
        if (is_held(s, &s->seqs[slot]))
            continue;
        int64_t at = w->n++;
        if (s->setup.policy == NB_SCHED_LPM) {
            const nb_seq q = moved_by_prefix(s, slot);
            for (; at > 0 && nb_seq_before(&q, &moved[at - 1]); at--) {
                moved[at] = moved[at - 1];
                w->slot[at] = w->slot[at - 1];
            }
            moved[at] = q;
        }
        w->slot[at] = slot;
    }
}

/* Who runs alone always may: that it fits alone, submit has seen to. */
static bool fits(const nb_sched *s, const nb_seq *q, const head_start *h, const claims *c)
{
    if (s->n_running == 0)
        return true;
    const int64_t need = nb_blocks_for(&s->blocks, q->n_tokens) - h->n / s->setup.blocks.block_len;
    if (need + nb_sched_watermark(s) > nb_blocks_available(&s->blocks) - h->n_cached - c->promised)
        return false;
    return !(c->patience || q->n_preempted >= NB_SCHED_PATIENCE) ||
           c->longest + nb_blocks_for(&s->blocks, nb_seq_longest(q)) <= s->setup.blocks.n_blocks;
}

static void admit(nb_sched *s, nb_step_plan *plan, int32_t slot, const head_start *h)
{
    nb_seq *q = &s->seqs[slot];
    nb_sched_list_remove(s->waiting, &s->n_waiting, slot);
    q->seq = s->free_seqs[s->setup.blocks.max_seqs - s->n_running - 1];
    q->state = NB_SEQ_RUNNING;
    nb_sched_list_add(s, s->running, &s->n_running, slot);
    if (h->sibling >= 0)
        nb_blocks_fork(&s->blocks, q->seq, s->seqs[h->sibling].seq, h->n);
    else
        nb_blocks_take(&s->blocks, q->seq, nb_sched_hashes(s, slot), nb_sched_tokens(s, slot),
                       h->n_blocks);
    q->n_kv = h->n;
    if (h->asked) {
        s->counts.n_prefix_queries += q->n_tokens;
        s->counts.n_prefix_hits += h->n;
    }
    if (q->n_found < 0) {
        q->n_found = min64(h->n, q->n_prompt);
        s->counts.n_prompt_tokens += q->sample == 0 ? q->n_prompt : 0;
    }
    add_entry(s, plan, slot, min64(q->n_tokens - q->n_kv, s->setup.step_tokens - plan->n_tokens));
    plan->n_admitted++;
}

static void plan_waiting(nb_sched *s, nb_step_plan *plan, claims *c)
{
    window w;
    const int64_t most = min64(s->setup.blocks.max_seqs, s->setup.step_tokens);
    if (s->n_running >= most || plan->n_tokens >= s->setup.step_tokens)
        return;
    fill_window(s, &w);
    for (int64_t i = 0; i < w.n; i++) {
        const nb_seq *q = &s->seqs[w.slot[i]];
        if (s->n_running >= most || plan->n_tokens >= s->setup.step_tokens)
            return;
        if (is_held(s, q)) /* since somebody was admitted just now */
            continue;
        const head_start h = find_start(s, w.slot[i]);
        /* Nobody goes past one that does not fit, or it might wait for ever. */
        if (!fits(s, q, &h, c))
            return;
        admit(s, plan, w.slot[i], &h);
        add_claim(s, q, c);
    }
}

/* ---- drafts ---- */

static void plan_drafts(nb_sched *s, nb_step_plan *plan, const claims *c)
{
    const int64_t len = s->setup.blocks.block_len;
    int64_t budget = s->setup.step_tokens - plan->n_tokens;
    for (int64_t i = 0; i < plan->n_entries && budget > 0; i++) {
        nb_step_entry *e = &plan->entries[i];
        const nb_seq *q = &s->seqs[e->slot];
        const int64_t spare = nb_blocks_available(&s->blocks) - c->promised - nb_sched_watermark(s);
        const int64_t end = e->start + e->n, table = s->blocks.n_table[q->seq];
        int64_t n = min64(min64(q->max_draft, e->n_left - 1), budget);
        n = min64(n, (table + (spare > 0 ? spare : 0)) * len - end);
        if (!e->samples || n < 1)
            continue;
        nb_block_copy copy;
        const bool reserved = nb_blocks_reserve(&s->blocks, q->seq, end + n, &copy);
        assert(reserved && copy.to == NB_BLOCK_NONE);
        e->n_draft = n;
        budget -= n;
    }
}

void nb_sched_plan(nb_sched *s, nb_step_plan *plan)
{
    claims c = {0};
    assert(!s->planned);
    s->planned = true;
    plan->n_entries = plan->n_copies = plan->n_preempted = 0;
    plan->n_tokens = plan->n_admitted = 0;
    plan_running(s, plan);
    for (int64_t i = 0; i < s->n_running; i++)
        add_claim(s, &s->seqs[s->running[i]], &c);
    if (plan->n_preempted == 0)
        plan_waiting(s, plan, &c);
    plan_drafts(s, plan, &c);
}
