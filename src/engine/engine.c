/* See engine.h. The parts: requests as they are submitted (engine_request.c), a step (here), the
 * thread that runs steps, and what others may see of it. */
#define _POSIX_C_SOURCE 200809L
#include "engine/engine.h"

#include "base/clock.h"
#include "engine/engine_parts.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

/* ---- telling ---- */

static void tell(nb_engine_request_state *r, const nb_engine_event *event)
{
    if (!r->deaf && !r->asked.on_event(r->asked.context, event))
        r->deaf = r->aborted = true;
}

static nb_engine_event event_of(const nb_engine_choice *c)
{
    return (nb_engine_event){.choice = c->number,
                             .prompt_at = -1,
                             .id = -1,
                             .text = "",
                             .finish = NB_NOT_FINISHED,
                             .stop_id = -1,
                             .n_prompt = c->of->asked.n_prompt,
                             .n_cached = c->n_cached > 0 ? c->n_cached : 0,
                             .n_made = c->choice.n_made};
}

static void count_finish(nb_engine *e, const nb_engine_choice *c, nb_finish finish)
{
    const nb_engine_request_state *r = c->of;
    const nb_engine_observer *o = &e->observer;
    atomic_fetch_add_explicit(&e->stats.finished[finish], 1, memory_order_relaxed);
    if (o->finished == NULL)
        return;
    const double now = nb_clock(), ran = c->first_run > 0 ? c->first_run : now;
    const double first = c->first_token > 0 ? c->first_token : now;
    o->finished(o->context, finish, ran - r->submitted, first - ran, now - first, r->asked.n_prompt,
                c->choice.n_made, &r->asked);
}

/* The last word on a choice, with the text that is still there. */
static void finish_choice(nb_engine *e, nb_engine_choice *c, nb_finish finish, const char *error)
{
    nb_engine_event event = event_of(c);
    event.finish = finish;
    event.error = error;
    event.logits_hash = c->prompt_hash;
    if (finish == NB_FINISH_STOP && c->of->asked.pooling != NB_POOL_NONE) {
        event.pooled = c->of->pooled;
        event.n_pooled = e->setup.model->config.d_model;
    }
    if (finish == NB_FINISH_STOP) {
        event.stop_id = c->choice.end_id;
        if (c->choice.over == NB_CHOICE_STOP_TEXT)
            event.stop = c->of->asked.options.stops[c->choice.stops.found];
    }
    c->over = true;
    c->of->n_open--;
    count_finish(e, c, finish);
    tell(c->of, &event);
}

/* ---- requests come and go ---- */

/* The list is changed under the mutex, for nb_engine_abort looks through it. */
static void end_request(nb_engine *e, nb_engine_request_state *r)
{
    pthread_mutex_lock(&e->mutex);
    nb_engine_request_state **at = &e->requests;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    if (e->requests_end == &r->next)
        e->requests_end = at;
    pthread_mutex_unlock(&e->mutex);
    int64_t i = 0;
    while (e->live[i] != r)
        i++;
    e->n_live--;
    memmove(e->live + i, e->live + i + 1, (size_t)(e->n_live - i) * sizeof *e->live);
    atomic_fetch_sub(&e->n_claimed, r->asked.n);
    if (r->asked.release != NULL)
        r->asked.release(r->asked.context);
    nb_engine_request_free(r);
}

static void drop_request(nb_engine *e, nb_engine_request_state *r, nb_finish finish,
                         const char *error)
{
    (void)nb_sched_abort(&e->sched, r->id);
    for (int64_t i = 0; i < r->asked.n; i++) {
        if (!r->choices[i].over)
            finish_choice(e, &r->choices[i], finish, error);
    }
    end_request(e, r);
}

static void admit(nb_engine *e, nb_engine_request_state *r)
{
    nb_err err = {0};
    const nb_sched_request asked = {
        .id = r->id,
        .prompt = r->asked.prompt,
        .n_prompt = r->asked.n_prompt,
        .max_new = r->max_new,
        .n_samples = r->asked.n,
        .arrival_ms = (int64_t)(r->submitted * 1000),
        .max_draft = e->setup.draft == NULL ? r->asked.options.n_guess : 0,
        .priority = (int32_t)r->asked.priority,
        .salt = r->asked.salt,
        .salt_bytes = r->asked.salt_len,
        .all_outputs = r->asked.prompt_logprobs || r->asked.pooling == NB_POOL_MEAN};
    r->admitted = true;
    if (nb_sched_submit(&e->sched, &asked, &err) != NB_OK)
        drop_request(e, r, NB_FINISH_ERROR, err.text);
}

/* What others have asked for since the last step. False: the engine closes, and nobody is left. */
static bool take_requests(nb_engine *e, bool wait)
{
    pthread_mutex_lock(&e->mutex);
    while (wait && !e->any_news)
        pthread_cond_wait(&e->wake, &e->mutex);
    const bool stop = e->stop;
    for (nb_engine_request_state *r = e->requests; r != NULL && e->any_news; r = r->next) {
        r->aborted = r->aborted || r->abort_asked || stop;
        if (!r->taken)
            e->live[e->n_live++] = r;
        r->taken = true;
    }
    e->any_news = false;
    pthread_mutex_unlock(&e->mutex);
    for (int64_t i = 0; i < e->n_live;) {
        nb_engine_request_state *r = e->live[i];
        const int64_t before = e->n_live;
        if (r->aborted)
            drop_request(e, r, NB_FINISH_ABORT, NULL);
        else if (!r->admitted)
            admit(e, r);
        i += e->n_live == before;
    }
    return !stop;
}

/* ---- a step ---- */

static nb_engine_choice *choice_of(nb_engine *e, const nb_step_entry *entry)
{
    if (e->slot_id[entry->slot] == entry->id && e->slot_sample[entry->slot] == entry->sample)
        return e->by_slot[entry->slot];
    e->slot_id[entry->slot] = entry->id; /* of a request that is there: ids never come again */
    e->slot_sample[entry->slot] = entry->sample;
    for (int64_t i = 0; i < e->n_live; i++) {
        if (e->live[i]->id == entry->id)
            return e->by_slot[entry->slot] = &e->live[i]->choices[entry->sample];
    }
    return e->by_slot[entry->slot] = NULL;
}

static void copy_blocks(nb_engine *e)
{
    for (int64_t i = 0; i < e->plan.n_copies; i++) {
        const nb_block_copy *c = &e->plan.copies[i];
        memcpy(e->kv.arena + (size_t)c->to * e->kv.page_bytes,
               e->kv.arena + (size_t)c->from * e->kv.page_bytes, e->kv.page_bytes);
    }
}

/* Guesses what follows the last token of each entry that may guess. */
static void guess(nb_engine *e)
{
    if (e->setup.draft != NULL) {
        nb_engine_ask_draft(e);
        return;
    }
    for (int64_t i = 0; i < e->plan.n_entries; i++) {
        const nb_step_entry *entry = &e->plan.entries[i];
        nb_engine_choice *c = e->entry_choice[i];
        e->n_guessed[i] = 0;
        if (entry->n_draft > 0 && entry->n == 1 && c != NULL && c->ngram.max > 0)
            e->n_guessed[i] = nb_ngram_guess(
                &c->ngram, entry->n_draft < NB_MAX_GUESS ? entry->n_draft : NB_MAX_GUESS,
                e->fed[i] + 1);
    }
}

/* Tokens that an entry runs: those of the schedule, or the last one and guesses after it. */
static int64_t fed_tokens(nb_engine *e, int64_t i, const int32_t **tokens)
{
    const nb_step_entry *entry = &e->plan.entries[i];
    *tokens = entry->tokens;
    if (e->n_guessed[i] == 0)
        return entry->n;
    e->n_guesses++;
    e->n_all_guessed += e->n_guessed[i];
    e->fed[i][0] = entry->tokens[0];
    *tokens = e->fed[i];
    return 1 + e->n_guessed[i];
}

/* The sequences of the step as the schedule left them. Who does not run holds nothing, above all
 * none of the pages that packed formats keep for each sequence, so that there are enough of them.
 */
static void set_sequences(nb_engine *e)
{
    const nb_sched *s = &e->sched;
    for (int64_t i = 0; i < s->setup.blocks.max_seqs - s->n_running; i++)
        nb_kv_seq_truncate(&e->seqs[s->free_seqs[i]], 0);
    for (int64_t i = 0; i < e->plan.n_entries; i++) {
        const nb_step_entry *entry = &e->plan.entries[i];
        nb_kv_seq *seq = &e->seqs[s->seqs[entry->slot].seq];
        nb_kv_seq_truncate(seq, entry->start);
        seq->n = entry->start; /* more than it was where a prefix was found */
    }
}

/* Rows of which the logits are wanted; every entry has one at least, so that what is not finite
 * shows. Returns their number. */
static int64_t lay_out(nb_engine *e)
{
    int64_t n_rows = 0;
    set_sequences(e);
    for (int64_t i = 0; i < e->plan.n_entries; i++) {
        const nb_step_entry *entry = &e->plan.entries[i];
        nb_kv_seq *seq = &e->seqs[e->sched.seqs[entry->slot].seq];
        const int32_t *tokens;
        const int64_t n = fed_tokens(e, i, &tokens);
        const int64_t wanted = entry->n_outputs > 0 ? entry->n_outputs : 1;
        const int64_t n_out = wanted + e->n_guessed[i];
        e->inputs[i] = (nb_step_input){seq, tokens, n, n_out};
        e->first_row[i] = n_rows;
        n_rows += n_out;
    }
    e->first_row[e->plan.n_entries] = n_rows;
    return n_rows;
}

static bool all_finite(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i]))
            return false;
    }
    return true;
}

/* After a step in which Inf or NaN turned up: whose sequences are broken. */
static void find_broken(nb_engine *e)
{
    const int64_t d = e->setup.model->config.d_model;
    bool any = false;
    for (int64_t i = 0; i < e->plan.n_entries; i++) {
        /* A wrong guess may lead to Inf where the answer does not. */
        const int64_t first = e->first_row[i];
        const int64_t n = e->first_row[i + 1] - first - e->n_guessed[i];
        e->broken[i] = !all_finite(e->hidden + first * d, n * d);
        any = any || e->broken[i];
    }
    for (int64_t i = 0; i < e->plan.n_entries && !any; i++)
        e->broken[i] = true; /* somewhere in a prompt: nobody can be trusted */
}

/* One row of the batch at hand. */
static void pick_row(void *context, int64_t i, int thread)
{
    nb_engine *e = context;
    nb_engine_row *row = &e->rows[i];
    const float *logits = e->logits + i * e->setup.model->config.vocab_size;
    nb_engine_choice *c = e->entry_choice[row->entry];
    nb_err err = {0};
    row->status = NB_OK;
    row->id = -1;
    if (e->broken[row->entry] || c == NULL || c->over)
        return;
    if (row->prompt_at >= 0) {
        const nb_generate_options *o = &c->of->asked.options;
        nb_logprobs(&e->samplers[thread], logits, c->of->asked.prompt[row->prompt_at], o->n_top,
                    row->top);
    }
    if ((row->chooses || row->ends_prompt) && c->of->asked.options.hash_logits)
        row->hash = nb_logits_hash(logits, e->setup.model->config.vocab_size,
                                   (uint64_t)c->choice.position - 1);
    if (row->chooses)
        row->status =
            nb_choice_pick(&c->choice, &e->samplers[thread], logits, &row->id, row->top, &err);
}

static void tell_prompt(nb_engine_choice *c, int64_t at, const nb_logprob *top)
{
    nb_engine_event event = event_of(c);
    event.prompt_at = at;
    event.id = c->of->asked.prompt[at];
    event.logprobs = top;
    tell(c->of, &event);
}

/* A token that was chosen: its text, and the end it may be. */
static void take_token(nb_engine *e, nb_engine_choice *c, const nb_engine_row *row, nb_err *err)
{
    const double now = nb_clock();
    const nb_engine_observer *o = &e->observer;
    if (c->first_token == 0 && o->first_token != NULL)
        o->first_token(o->context, now - c->of->submitted);
    else if (c->first_token != 0 && o->next_token != NULL)
        o->next_token(o->context, now - c->last_token);
    c->first_token = c->first_token == 0 ? now : c->first_token;
    c->last_token = now;
    e->n_generated++;
    if (c->ngram.max > 0)
        nb_ngram_push(&c->ngram, row->id);
    if (nb_choice_take(&c->choice, row->id, err) != NB_OK)
        return;
    nb_engine_event event = event_of(c);
    event.id = row->id;
    event.text = c->choice.piece.len > 0 ? (const char *)c->choice.piece.data : "";
    event.len = c->choice.piece.len;
    event.logprobs = c->of->asked.options.logprobs ? row->top : NULL;
    event.logits_hash = c->of->asked.options.hash_logits ? row->hash : 0;
    tell(c->of, &event);
    c->choice.piece.len = 0;
}

/* What row i of the batch gives, in order of rows. The one after a guess counts if the guess was
 * what has been chosen. */
static void take_row(nb_engine *e, int64_t i)
{
    nb_engine_row *row = &e->rows[i];
    nb_engine_choice *c = e->entry_choice[row->entry];
    nb_sched_result *result = &e->results[row->entry];
    nb_err err = {0};
    if (c == NULL || c->over || e->broken[row->entry])
        return;
    if (row->guess > 0) {
        row->chooses = result->n_tokens == row->guess &&
                       e->made[row->entry][row->guess - 1] == e->fed[row->entry][row->guess];
        if (row->chooses)
            pick_row(e, i, 0);
        e->n_accepted += row->chooses;
        e->accepted_at[row->guess - 1] += row->chooses;
    }
    if (row->prompt_at >= 0 && row->prompt_at == 1)
        tell_prompt(c, 0, NULL); /* nothing stands before the first token */
    if (row->prompt_at >= 0)
        tell_prompt(c, row->prompt_at, row->top);
    if (row->ends_prompt)
        c->prompt_hash = row->hash;
    if (!row->chooses)
        return;
    if (row->status != NB_OK) {
        result->end = NB_SEQ_BROKEN;
        finish_choice(e, c, NB_FINISH_ERROR, "the model's logits are not finite");
        return;
    }
    take_token(e, c, row, &err);
    e->made[row->entry][result->n_tokens++] = row->id;
    result->tokens = e->made[row->entry];
    if (err.status != NB_OK) {
        result->end = NB_SEQ_DONE;
        finish_choice(e, c, NB_FINISH_ERROR, err.text);
    } else if (c->choice.over != NB_CHOICE_OPEN) {
        result->end = NB_SEQ_DONE;
        finish_choice(e, c, c->choice.over == NB_CHOICE_FULL ? NB_FINISH_LENGTH : NB_FINISH_STOP,
                      NULL);
    }
}

/* Logits of all rows that are wanted, a batch at a time. */
static void choose(nb_engine *e, int64_t n_rows)
{
    const int64_t d = e->setup.model->config.d_model;
    int64_t entry = 0;
    for (int64_t begin = 0; begin < n_rows; begin += NB_ENGINE_LOGIT_ROWS) {
        const int64_t left = n_rows - begin;
        const int64_t n = left < NB_ENGINE_LOGIT_ROWS ? left : NB_ENGINE_LOGIT_ROWS;
        int64_t n_wanted = 0;
        for (int64_t i = 0; i < n; i++) {
            while (begin + i >= e->first_row[entry + 1])
                entry++;
            const nb_step_entry *at = &e->plan.entries[entry];
            const nb_engine_choice *c = e->entry_choice[entry];
            const int64_t from_last =
                e->first_row[entry + 1] - 1 - e->n_guessed[entry] - (begin + i);
            const int64_t next = at->start + at->n - from_last; /* the position that it predicts */
            nb_engine_row *row = &e->rows[i];
            row->entry = entry;
            row->guess = from_last < 0 ? -from_last : 0;
            row->chooses = at->samples && from_last == 0 && at->n_left > 0;
            row->ends_prompt = at->samples && from_last == 0 && at->n_left == 0 &&
                               (c == NULL || c->of->asked.pooling == NB_POOL_NONE);
            row->prompt_at = c != NULL && c->of->asked.prompt_logprobs && c->number == 0 &&
                                     at->n_outputs > 0 && row->guess == 0 &&
                                     next < c->of->asked.n_prompt
                                 ? next
                                 : -1;
            n_wanted += row->chooses || row->guess > 0 || row->ends_prompt || row->prompt_at >= 0;
        }
        if (n_wanted == 0)
            continue;
        nb_logits(&e->work, e->hidden + begin * d, n, e->logits);
        nb_pool_run(e->setup.pool, n, pick_row, e);
        for (int64_t i = 0; i < n; i++)
            take_row(e, i);
    }
}

static void pool_rows(nb_engine *e)
{
    const int64_t d = e->setup.model->config.d_model;
    for (int64_t i = 0; i < e->plan.n_entries; i++) {
        const nb_step_entry *at = &e->plan.entries[i];
        const nb_engine_choice *c = e->entry_choice[i];
        const int64_t n = e->first_row[i + 1] - e->first_row[i];
        if (c != NULL && !c->over && !e->broken[i] && c->of->asked.pooling != NB_POOL_NONE)
            nb_pooling_take(c->of, e->hidden + e->first_row[i] * d, d, at->start + at->n - n, n);
    }
}

/* A sequence that only runs its prompt is over with it. */
static void end_prompts(nb_engine *e)
{
    for (int64_t i = 0; i < e->plan.n_entries; i++) {
        nb_engine_choice *c = e->entry_choice[i];
        if (c != NULL && !c->over && !e->broken[i] && e->plan.entries[i].samples &&
            c->of->max_new == 0) {
            e->results[i].end = NB_SEQ_DONE;
            finish_choice(e, c,
                          c->of->asked.pooling == NB_POOL_NONE ? NB_FINISH_LENGTH : NB_FINISH_STOP,
                          NULL);
        }
    }
}

static void break_entries(nb_engine *e, const char *why)
{
    for (int64_t i = 0; i < e->plan.n_entries; i++) {
        nb_engine_choice *c = e->entry_choice[i];
        if (!e->broken[i])
            continue;
        e->results[i] = (nb_sched_result){.end = NB_SEQ_BROKEN};
        if (c != NULL && !c->over)
            finish_choice(e, c, NB_FINISH_ERROR, why);
    }
}

static void end_requests(nb_engine *e)
{
    for (int64_t i = e->n_live - 1; i >= 0; i--) {
        if (e->live[i]->n_open == 0)
            end_request(e, e->live[i]);
    }
}

static void set_stat(_Atomic int64_t *to, int64_t value)
{
    atomic_store_explicit(to, value, memory_order_relaxed);
}

static void show_stats(nb_engine *e, double seconds)
{
    const nb_sched *s = &e->sched;
    const nb_blocks_usage u = nb_blocks_measure(&s->blocks);
    nb_engine_shown *to = &e->stats;
    e->step_seconds += seconds;
    set_stat(&to->n_running, s->n_running);
    set_stat(&to->n_waiting, s->n_waiting);
    set_stat(&to->n_preemptions, s->counts.n_preemptions);
    set_stat(&to->n_steps, s->counts.n_steps);
    set_stat(&to->prompt_tokens, s->counts.n_prompt_tokens);
    set_stat(&to->generated_tokens, e->n_generated);
    set_stat(&to->guesses, e->n_guesses);
    set_stat(&to->guessed_tokens, e->n_all_guessed);
    set_stat(&to->accepted_tokens, e->n_accepted);
    for (int i = 0; i < NB_MAX_GUESS; i++)
        set_stat(&to->accepted_at[i], e->accepted_at[i]);
    set_stat(&to->cached_tokens, s->counts.n_prefix_hits);
    set_stat(&to->queried_tokens, s->counts.n_prefix_queries);
    set_stat(&to->blocks_free, u.n_free);
    set_stat(&to->blocks_cached, u.n_cached);
    set_stat(&to->blocks_used, u.n_used);
    set_stat(&to->slots, u.n_slots);
    set_stat(&to->slots_filled, u.n_slots_filled);
    set_stat(&to->step_nanoseconds, (int64_t)(e->step_seconds * 1e9));
}

static void run_step(nb_engine *e)
{
    const double start = nb_clock();
    nb_step_plan *plan = &e->plan;
    nb_err err = {0};
    if (plan->n_entries == 0) {
        nb_sched_commit(&e->sched, plan, e->results);
        show_stats(e, 0);
        return;
    }
    copy_blocks(e);
    memset(e->broken, 0, (size_t)plan->n_entries * sizeof *e->broken);
    for (int64_t i = 0; i < plan->n_entries; i++) {
        nb_engine_choice *c = e->entry_choice[i] = choice_of(e, &plan->entries[i]);
        e->results[i] = (nb_sched_result){.end = NB_SEQ_GOES_ON};
        if (c != NULL && c->first_run == 0) {
            c->first_run = start;
            c->n_cached = plan->entries[i].n_found;
        }
    }
    guess(e);
    const int64_t n_rows = lay_out(e);
    const nb_status s = nb_forward(&e->work, e->inputs, plan->n_entries, e->hidden, &err);
    if (s == NB_DATA)
        find_broken(e);
    for (int64_t i = 0; s != NB_OK && s != NB_DATA && i < plan->n_entries; i++)
        e->broken[i] = true;
    if (s != NB_OK)
        break_entries(e, err.text);
    if (s == NB_OK || s == NB_DATA) {
        pool_rows(e);
        choose(e, n_rows);
    }
    if (e->setup.draft != NULL)
        nb_engine_learn(e);
    end_prompts(e);
    nb_sched_commit(&e->sched, plan, e->results);
    const double seconds = nb_clock() - start;
    show_stats(e, seconds);
    end_requests(e);
    if (e->observer.step != NULL)
        e->observer.step(e->observer.context, seconds, plan->n_tokens);
}

/* ---- the thread ---- */

static void *run(void *context)
{
    nb_engine *e = context;
    bool idle = true;
    while (take_requests(e, idle)) {
        if (e->setup.draft != NULL)
            nb_engine_reach(e);
        nb_sched_plan(&e->sched, &e->plan);
        idle = e->plan.n_entries == 0;
        run_step(e);
    }
    return NULL;
}

nb_status nb_engine_start(nb_engine *e, nb_err *err)
{
    if (pthread_create(&e->thread, NULL, run, e) != 0)
        return nb_fail(err, NB_MEMORY, "no thread for the engine");
    return NB_OK;
}

void nb_engine_observe(nb_engine *e, const nb_engine_observer *observer)
{
    e->observer = *observer;
}

int64_t nb_engine_most_sequences(const nb_engine *e)
{
    return e->max_claimed;
}

void nb_engine_read_stats(const nb_engine *e, nb_engine_stats *out)
{
    const nb_engine_shown *s = &e->stats;
#define GET(name) atomic_load_explicit(&s->name, memory_order_relaxed)
    const int64_t slots = GET(slots), used = GET(blocks_used);
    const int64_t all = used + GET(blocks_free) + GET(blocks_cached);
    *out = (nb_engine_stats){
        .n_running = GET(n_running),
        .n_waiting = GET(n_waiting),
        .n_preemptions = GET(n_preemptions),
        .n_steps = GET(n_steps),
        .prompt_tokens = GET(prompt_tokens),
        .generated_tokens = GET(generated_tokens),
        .guesses = GET(guesses),
        .guessed_tokens = GET(guessed_tokens),
        .accepted_tokens = GET(accepted_tokens),
        .cached_tokens = GET(cached_tokens),
        .queried_tokens = GET(queried_tokens),
        .blocks_free = GET(blocks_free),
        .blocks_cached = GET(blocks_cached),
        .blocks_used = used,
        .usage = all > 0 ? (double)used / (double)all : 0,
        .fragmentation = slots > 0 ? 1 - (double)GET(slots_filled) / (double)slots : 0,
        .step_seconds = (double)GET(step_nanoseconds) * 1e-9,
    };
    for (int i = 0; i < NB_N_FINISHES; i++)
        out->finished[i] = GET(finished[i]);
    for (int i = 0; i < NB_MAX_GUESS; i++)
        out->accepted_at[i] = GET(accepted_at[i]);
#undef GET
}
