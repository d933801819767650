/* The draft model of an engine: who is asked for guesses, and what became of them. */
#include "engine/engine_parts.h"

#include <string.h>

nb_draft_setup nb_engine_draft_setup(const nb_engine_setup *s, nb_sampler *samplers)
{
    return (nb_draft_setup){.model = s->draft,
                            .target = s->model,
                            .kernels = s->kernels,
                            .pool = s->pool,
                            .samplers = samplers,
                            .kv = nb_draft_kv(s->kv),
                            .n_lanes = s->max_seqs,
                            .n_pages = s->n_blocks,
                            .n_ctx = s->n_ctx,
                            .step_tokens = s->step_tokens};
}

/* A table has a number while its sequence runs: so has its lane. What a lane holds is of use to the
 * next sequence, too, if prefixes may be shared with it. */
static nb_draft_ask ask_for(nb_engine *e, int64_t i, int64_t most)
{
    const nb_step_entry *entry = &e->plan.entries[i];
    const nb_seq *q = &e->sched.seqs[entry->slot];
    uint64_t owner = entry->id;
    if (e->setup.share_prefixes)
        memcpy(&owner, &q->root, sizeof owner);
    return (nb_draft_ask){.lane = q->seq,
                          .owner = owner,
                          .tokens = nb_sched_tokens(&e->sched, entry->slot),
                          .n = entry->start,
                          .next = entry->tokens[0],
                          .choice = &e->entry_choice[i]->choice,
                          .most = most,
                          .out = e->fed[i] + 1};
}

/* A sequence that decodes has run before, so that its choice is known. */
void nb_engine_reach(nb_engine *e)
{
    const nb_sched *s = &e->sched;
    for (int64_t i = 0; i < s->n_running; i++) {
        const int32_t slot = s->running[i];
        const nb_seq *q = &s->seqs[slot];
        if (q->n_tokens - q->n_kv != 1 || e->slot_id[slot] != q->id ||
            e->slot_sample[slot] != q->sample || e->by_slot[slot] == NULL)
            continue;
        nb_engine_choice *c = e->by_slot[slot];
        const int64_t most = c->of->asked.options.n_guess;
        nb_sched_set_draft(&e->sched, slot,
                           e->setup.guess_always
                               ? most
                               : nb_draft_reach(&e->draft, &c->reach, most, s->n_running - 1));
    }
}

void nb_engine_ask_draft(nb_engine *e)
{
    int64_t n = 0;
    for (int64_t i = 0; i < e->plan.n_entries; i++) {
        const nb_step_entry *entry = &e->plan.entries[i];
        e->n_guessed[i] = 0;
        if (entry->n_draft == 0 || entry->n != 1 || e->entry_choice[i] == NULL)
            continue;
        e->asks[n] = ask_for(e, i, entry->n_draft < NB_MAX_GUESS ? entry->n_draft : NB_MAX_GUESS);
        e->ask_entry[n++] = i;
    }
    if (n == 0)
        return;
    nb_draft_guess(&e->draft, e->asks, n);
    for (int64_t a = 0; a < n; a++) {
        const int64_t i = e->ask_entry[a];
        e->n_guessed[i] = e->asks[a].n_out;
        if (e->asks[a].failed && e->asks[a].n_out == 0)
            nb_draft_learn(&e->draft, &e->entry_choice[i]->reach, 0, 0);
    }
}

void nb_engine_learn(nb_engine *e)
{
    for (int64_t i = 0; i < e->plan.n_entries; i++) {
        const int64_t made = e->results[i].n_tokens;
        if (e->n_guessed[i] > 0 && made > 0)
            nb_draft_learn(&e->draft, &e->entry_choice[i]->reach, e->n_guessed[i], made - 1);
    }
}
