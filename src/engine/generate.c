/* See generate.h. */
#define _POSIX_C_SOURCE 200809L
#include "engine/generate.h"

#include "base/clock.h"
#include "engine/ngram.h"

#include <assert.h>
#include <string.h>

/* ---- the sequence ---- */

static nb_draft_setup draft_setup(const nb_generator_setup *u, nb_sampler *sampler)
{
    return (nb_draft_setup){.model = u->draft,
                            .target = u->model,
                            .kernels = u->kernels,
                            .pool = u->pool,
                            .samplers = sampler,
                            .kv = nb_draft_kv(u->kv),
                            .n_lanes = 1,
                            .n_pages = nb_kv_pages_for(u->n_ctx),
                            .n_ctx = u->n_ctx,
                            .step_tokens = u->step_tokens};
}

nb_status nb_generator_init(nb_generator *g, const nb_generator_setup *setup, nb_err *err)
{
    *g = (nb_generator){.setup = *setup};
    nb_generator_setup *u = &g->setup;
    if (u->n_ctx == 0)
        u->n_ctx = u->model->n_ctx;
    if (u->step_tokens == 0)
        u->step_tokens = NB_PREFILL_STEP;
    if (u->step_tokens > u->n_ctx)
        u->step_tokens = u->n_ctx;
    assert(u->n_ctx <= u->model->n_ctx);
    const nb_config *c = &u->model->config;
    /* Rows of the head past the tokenizer's ids are padding: they have no text. */
    int64_t n_ids = nb_tokenizer_n_tokens(u->tokenizer);
    n_ids = n_ids < c->vocab_size ? n_ids : c->vocab_size;
    nb_status s;
    NB_TRY_GOTO(s, nb_work_init(&g->work, u->model, u->kernels, u->pool, u->step_tokens, err));
    NB_TRY_GOTO(s, nb_kv_pool_init(&g->kv, c, u->kv, nb_kv_pages_for(u->n_ctx), err));
    NB_TRY_GOTO(s, nb_kv_seq_init(&g->seq, &g->kv, u->n_ctx, err));
    NB_TRY_GOTO(s, nb_sampler_init(&g->sampler, u->kernels, n_ids, err));
    NB_TRY_GOTO(s, nb_ends_init(&g->ends, u->tokenizer, n_ids, err));
    NB_TRY_GOTO(s, NB_ALLOC(&g->held.ids, u->n_ctx, err)); /* never grows while decoding */
    g->held.cap = u->n_ctx;
    NB_TRY_GOTO(s, nb_generator_room(g, 0, err));
    if (u->draft != NULL) {
        const nb_draft_setup draft = draft_setup(u, &g->sampler);
        NB_TRY_GOTO(s, nb_draft_init(&g->draft, &draft, err));
    }
done:
    if (s != NB_OK)
        nb_generator_free(g);
    return s;
}

void nb_generator_free(nb_generator *g)
{
    nb_draft_free(&g->draft);
    nb_kv_seq_free(&g->seq);
    nb_kv_pool_free(&g->kv);
    nb_work_free(&g->work);
    nb_sampler_free(&g->sampler);
    nb_tokens_free(&g->held);
    nb_json_tokens_free(&g->json);
    nb_ends_free(&g->ends);
    nb_free(g->hidden);
    nb_free(g->rows);
    *g = (nb_generator){0};
}

nb_status nb_generator_room(nb_generator *g, int64_t n_guess, nb_err *err)
{
    const nb_config *c = &g->setup.model->config;
    const int64_t n = 1 + n_guess;
    float *hidden = NULL, *rows = NULL;
    if (n <= g->max_rows)
        return NB_OK;
    nb_status s = NB_ALLOC(&hidden, n * c->d_model, err);
    if (s == NB_OK)
        s = NB_ALLOC(&rows, n * c->vocab_size, err);
    if (s != NB_OK) {
        nb_free(hidden);
        return s;
    }
    nb_free(g->hidden);
    nb_free(g->rows);
    g->hidden = hidden;
    g->rows = rows;
    g->max_rows = n;
    g->n_rows = 0;
    g->has_logits = false;
    return NB_OK;
}

/* Puts the logits after token `at` in force; false when they were not computed, or are gone. */
static bool select_row(nb_generator *g, int64_t at)
{
    const int64_t row = at - g->first_row;
    g->has_logits = row >= 0 && row < g->n_rows;
    if (g->has_logits) {
        g->logits = g->rows + row * g->setup.model->config.vocab_size;
        g->at = at;
    }
    return g->has_logits;
}

/* Keeps the first n tokens, and what rows there are after them. */
static void cut(nb_generator *g, int64_t n)
{
    if (n >= g->held.n)
        return;
    nb_kv_seq_truncate(&g->seq, n);
    g->held.n = n;
    const int64_t rows = n - g->first_row;
    g->n_rows = rows < 0 ? 0 : rows < g->n_rows ? rows : g->n_rows;
}

void nb_generator_truncate(nb_generator *g, int64_t n)
{
    if (n >= g->held.n)
        return;
    cut(g, n);
    g->n_rows = 0;
    g->has_logits = false;
}

uint64_t nb_generator_hash(const nb_generator *g)
{
    assert(g->has_logits);
    return nb_logits_hash(g->logits, g->setup.model->config.vocab_size, (uint64_t)g->at);
}

/* What could go wrong with the ids is found before anything has changed. */
static nb_status check_ids(const nb_generator *g, const int32_t *ids, int64_t n, nb_err *err)
{
    const int64_t vocab = g->setup.model->config.vocab_size;
    if (n > g->setup.n_ctx - g->held.n)
        return nb_fail(err, NB_LIMIT, "%lld tokens do not fit in the context of %lld",
                       (long long)(g->held.n + n), (long long)g->setup.n_ctx);
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= vocab)
            return nb_fail(err, NB_DATA, "token id %d is outside the vocabulary of %lld", ids[i],
                           (long long)vocab);
    }
    return NB_OK;
}

/* One step of at most step_tokens; the logits after the last n_out of them, at most max_rows. */
static nb_status step(nb_generator *g, const int32_t *ids, int64_t n, int64_t n_out, nb_err *err)
{
    g->has_logits = false;
    g->n_rows = 0;
    const nb_step_input in = {&g->seq, ids, n, n_out};
    NB_TRY(nb_forward(&g->work, &in, 1, g->hidden, err));
    for (int64_t i = 0; i < n; i++)
        NB_TRY(nb_tokens_push(&g->held, ids[i], err));
    if (n_out > 0)
        nb_logits(&g->work, g->hidden, n_out, g->rows);
    g->n_rows = n_out;
    g->first_row = g->held.n - n_out;
    select_row(g, g->first_row);
    return NB_OK;
}

/* After a failure the cache may hold more than `held`, or NaN. */
static nb_status give_up(nb_generator *g, const nb_err *err)
{
    nb_kv_seq_truncate(&g->seq, 0);
    g->held.n = 0;
    g->has_logits = false;
    return err->status;
}

/* Computes again what the cache had to forget when it was truncated (nb_kv_seq_truncate). */
static nb_status restore(nb_generator *g, nb_err *err)
{
    while (g->seq.n < g->held.n) {
        const int64_t left = g->held.n - g->seq.n;
        const int64_t n = left < g->setup.step_tokens ? left : g->setup.step_tokens;
        const nb_step_input in = {&g->seq, g->held.ids + g->seq.n, n, 0};
        if (nb_forward(&g->work, &in, 1, g->hidden, err) != NB_OK)
            return give_up(g, err);
    }
    return NB_OK;
}

/* Feeds in steps; after each, `on_text` may end it (*stopped). */
static nb_status feed(nb_generator *g, const int32_t *ids, int64_t n, nb_text_fn *on_text,
                      void *context, bool *stopped, nb_err *err)
{
    *stopped = false;
    NB_TRY(check_ids(g, ids, n, err));
    NB_TRY(restore(g, err));
    for (int64_t i = 0; i < n; i += g->setup.step_tokens) {
        const int64_t left = n - i;
        const int64_t count = left < g->setup.step_tokens ? left : g->setup.step_tokens;
        if (step(g, ids + i, count, count == left ? 1 : 0, err) != NB_OK)
            return give_up(g, err);
        if (on_text != NULL && count < left && !on_text(context, "", 0)) {
            *stopped = true;
            return NB_OK;
        }
    }
    return NB_OK;
}

nb_status nb_generator_feed(nb_generator *g, const int32_t *ids, int64_t n, nb_err *err)
{
    bool stopped;
    return feed(g, ids, n, NULL, NULL, &stopped, err);
}

/* ---- the loop ---- */

/* One generation under way. */
typedef struct {
    nb_generator *g;
    const nb_generate_options *options;
    nb_tokens *prompt;
    nb_full_fn *on_full;
    void *full_context;
    nb_tokens made;
    nb_buf text; /* the answer */
    nb_choosing choosing;
    nb_choice choice;
    nb_reach reach;            /* of the draft's guesses; of the last step's, n_tried were made */
    int64_t n_tried, n_before; /* when n_accepted was n_before */
    nb_ngram ngram;            /* of prompt and answer, if guesses are of these */
    int64_t n_ngram_prompt;    /* of those tokens, the prompt's */
    nb_buf logprobs;           /* rows of 1 + n_top, one a token of the answer */
    bool begun;                /* the prompt has its final length, which is in `result` */
    bool ended;                /* the caller wants no more */
    nb_generation result;
} generation;

/* Prompt and answer have no room for another token: *full, unless on_full made some. */
static nb_status make_room(generation *r, bool *full, nb_err *err)
{
    const int64_t n_ctx = r->g->setup.n_ctx;
    for (;;) {
        const int64_t n = r->prompt->n + r->made.n;
        *full = n >= n_ctx;
        if (!*full)
            return NB_OK;
        bool shorter = false;
        const int64_t before = r->prompt->n;
        if (r->on_full != NULL)
            NB_TRY(r->on_full(r->full_context, r->prompt, &shorter, err));
        if (!shorter) {
            if (r->prompt->n > n_ctx)
                return nb_fail(err, NB_LIMIT,
                               "the prompt has %lld tokens and the context holds %lld",
                               (long long)r->prompt->n, (long long)n_ctx);
            return NB_OK;
        }
        assert(r->prompt->n < before);
        r->result.n_dropped += before - r->prompt->n;
    }
}

/* The length of what the sequence holds already of prompt and answer. */
static int64_t common_beginning(const generation *r)
{
    const nb_tokens *held = &r->g->held, *prompt = r->prompt, *made = &r->made;
    int64_t n = 0;
    while (n < held->n && n < prompt->n && held->ids[n] == prompt->ids[n])
        n++;
    if (n < prompt->n)
        return n;
    while (n < held->n && n - prompt->n < made->n && held->ids[n] == made->ids[n - prompt->n])
        n++;
    return n;
}

static void begin(generation *r, int64_t n_cached)
{
    nb_choice_prompt(&r->choice, r->prompt->ids, r->prompt->n);
    r->result.n_prompt = r->prompt->n;
    r->result.n_cached = n_cached;
    r->begun = true;
}

/* Brings the tables of the guesses up to the end of the answer. */
static void note_text(generation *r)
{
    nb_ngram *g = &r->ngram;
    if (g->n == 0 || r->n_ngram_prompt != r->prompt->n) {
        nb_ngram_clear(g);
        for (int64_t i = 0; i < r->prompt->n; i++)
            nb_ngram_push(g, r->prompt->ids[i]);
        r->n_ngram_prompt = r->prompt->n;
    }
    for (int64_t i = g->n - r->prompt->n; i < r->made.n; i++)
        nb_ngram_push(g, r->made.ids[i]);
}

/* The sequence holds all but the last token of the answer. */
static int64_t ask_draft(generation *r, int64_t k, int32_t *out)
{
    nb_generator *g = r->g;
    if (r->n_tried > 0)
        nb_draft_learn(&g->draft, &r->reach, r->n_tried, r->result.n_accepted - r->n_before);
    nb_draft_ask ask = {.tokens = g->held.ids,
                        .n = g->held.n,
                        .next = r->made.ids[r->made.n - 1],
                        .choice = &r->choice,
                        .most = nb_draft_reach(&g->draft, &r->reach, k, 0),
                        .out = out};
    if (ask.most > 0)
        nb_draft_guess(&g->draft, &ask, 1);
    if (ask.failed && ask.n_out == 0)
        nb_draft_learn(&g->draft, &r->reach, 0, 0);
    r->n_tried = ask.n_out;
    r->n_before = r->result.n_accepted;
    return ask.n_out;
}

/* Guesses what follows the answer, as far as there is room for it. */
static int64_t guess(generation *r, int32_t *out)
{
    const nb_generate_options *o = r->options;
    const nb_generator_setup *u = &r->g->setup;
    int64_t k = o->n_guess;
    if (k == 0)
        return 0;
    const int64_t in_ctx =
        u->n_ctx - r->prompt->n - r->made.n - 1; /* the last one is chosen anyway */
    const int64_t asked = o->max_tokens > 0 ? o->max_tokens - r->made.n - 1 : k;
    k = k < in_ctx ? k : in_ctx;
    k = k < asked ? k : asked;
    k = k < u->step_tokens - 1 ? k : u->step_tokens - 1;
    if (k <= 0)
        return 0;
    if (u->draft != NULL)
        return ask_draft(r, k, out);
    note_text(r);
    return nb_ngram_guess(&r->ngram, k, out);
}

/* Feeds the last token of the answer, and guesses after it. The contract makes a step of many
 * tokens compute the bits of as many steps of one, and the choice at a position depends on its
 * logits and the options alone: a guess is right if it is what is chosen there, and the answer is
 * the same. */
static nb_status decode(generation *r, nb_err *err)
{
    nb_generator *g = r->g;
    int32_t ids[1 + NB_MAX_GUESS];
    const int64_t before = g->held.n, n = guess(r, ids + 1);
    bool stopped;
    ids[0] = r->made.ids[r->made.n - 1];
    if (n > 0) {
        r->result.n_guessed += n;
        if (step(g, ids, 1 + n, 1 + n, err) == NB_OK)
            return NB_OK;
        const bool again = err->status == NB_DATA;
        /* A wrong guess may lead to Inf where the answer does not. */
        nb_kv_seq_truncate(&g->seq, again ? before : 0);
        g->held.n = again ? before : 0;
        if (!again)
            return err->status;
    }
    return feed(g, ids, 1, NULL, NULL, &stopped, err);
}

/* Makes the sequence hold prompt and answer, so that there are logits to choose from. *n_fed tokens
 * had to be computed: one for a decode step. */
static nb_status catch_up(generation *r, int64_t *n_fed, bool *stopped, nb_err *err)
{
    nb_generator *g = r->g;
    nb_text_fn *on_text = r->options->on_text;
    const int64_t n_prompt = r->prompt->n, n = n_prompt + r->made.n;
    int64_t same = common_beginning(r);
    *stopped = false;
    *n_fed = 0;
    if (same == n && select_row(g, n - 1)) { /* guessed, and rightly so */
        if (!r->begun)
            begin(r, same);
        return NB_OK;
    }
    cut(g, same);
    if (same == n)
        cut(g, --same); /* the last token again, for its logits */
    if (!r->begun)
        begin(r, same < g->seq.n ? same : g->seq.n);
    *n_fed = n - same;
    if (same == n - 1 && same >= n_prompt)
        return decode(r, err);
    if (same < n_prompt) {
        NB_TRY(feed(g, r->prompt->ids + same, n_prompt - same, on_text, r->options->context,
                    stopped, err));
        same = n_prompt;
    }
    if (same < n && !*stopped)
        NB_TRY(feed(g, r->made.ids + (same - n_prompt), n - same, on_text, r->options->context,
                    stopped, err));
    return NB_OK;
}

/* Hands over the text that has become certain. */
static nb_status hand_over(generation *r, nb_err *err)
{
    nb_buf *piece = &r->choice.piece;
    NB_TRY(nb_buf_put(&r->text, piece->data, piece->len, err));
    const char *text = piece->len > 0 ? (const char *)piece->data : "";
    if (r->options->on_text != NULL && !r->ended)
        r->ended = !r->options->on_text(r->options->context, text, piece->len);
    piece->len = 0;
    return NB_OK;
}

/* Computes the logits and chooses from them. */
static nb_status choose(generation *r, bool *stopped, int32_t *id, nb_logprob *top, nb_err *err)
{
    nb_generator *g = r->g;
    const double start = nb_clock();
    int64_t n_fed;
    NB_TRY(catch_up(r, &n_fed, stopped, err));
    if (!*stopped) {
        NB_TRY(nb_choice_pick(&r->choice, &g->sampler, g->logits, id, top, err));
        if (r->options->hash_logits)
            r->result.logits_hash ^= nb_generator_hash(g);
    }
    const double seconds = nb_clock() - start;
    if (n_fed <= 1 && r->made.n > 0) {
        r->result.decode_s += seconds;
        r->result.n_steps += n_fed;
        r->result.n_accepted += 1 - n_fed;
    } else {
        r->result.prefill_s += seconds;
        r->result.n_prefilled += n_fed;
    }
    return NB_OK;
}

/* The token becomes part of the answer, unless it only ends it. */
static nb_status take(generation *r, int32_t id, const nb_logprob *top, nb_err *err)
{
    const nb_generate_options *o = r->options;
    NB_TRY(nb_choice_take(&r->choice, id, err));
    if (r->choice.end_id >= 0) {
        r->result.stop_id = id;
        return hand_over(r, err);
    }
    if (o->logprobs)
        NB_TRY(nb_buf_put(&r->logprobs, top, (1 + (size_t)o->n_top) * sizeof *top, err));
    NB_TRY(nb_tokens_push(&r->made, id, err));
    return hand_over(r, err);
}

/* One turn of the loop: room, a token, its text. *done with the reason in `result`. */
static nb_status next(generation *r, bool *done, nb_err *err)
{
    nb_stop_reason *reason = &r->result.reason;
    nb_logprob top[1 + NB_MAX_LOGPROBS];
    bool full, stopped;
    int32_t id;
    *done = true;
    *reason = NB_STOP_CONTEXT;
    NB_TRY(make_room(r, &full, err));
    if (full) {
        if (!r->begun)
            begin(r, common_beginning(r));
        return NB_OK;
    }
    *reason = NB_STOP_CALLER;
    NB_TRY(choose(r, &stopped, &id, top, err));
    r->ended = stopped;
    if (stopped)
        return NB_OK;
    NB_TRY(take(r, id, top, err));
    const nb_over over = r->choice.over;
    if (over == NB_CHOICE_STOP_TEXT)
        r->result.stop_index = r->choice.stops.found;
    *reason = over == NB_CHOICE_STOP_TEXT                            ? NB_STOP_TEXT
              : over == NB_CHOICE_END_TOKEN && r->choice.end_id >= 0 ? NB_STOP_EOS
              : r->ended                                             ? NB_STOP_CALLER
              : over == NB_CHOICE_END_TOKEN                          ? NB_STOP_EOS
                                                                     : NB_STOP_MAX_TOKENS;
    *done = over != NB_CHOICE_OPEN || r->ended;
    return NB_OK;
}

/* What guesses and a schema need. */
static nb_status prepare(generation *r, nb_err *err)
{
    nb_generator *g = r->g;
    const nb_generate_options *o = r->options;
    if (o->json_schema != NULL && g->json.tokenizer == NULL)
        NB_TRY(nb_json_tokens_init(&g->json, g->setup.tokenizer, g->sampler.n, err));
    NB_TRY(nb_choosing_init(&r->choosing, o, g->setup.tokenizer, &g->json, &g->ends, g->sampler.n,
                            err));
    if (o->n_guess > 0) {
        NB_TRY(nb_generator_room(g, o->n_guess, err));
        if (g->setup.draft == NULL)
            NB_TRY(nb_ngram_init(&r->ngram, g->setup.n_ctx, err));
    }
    return nb_choice_init(&r->choice, &r->choosing, 0, NULL, 0,
                          o->max_tokens > 0 ? o->max_tokens : INT64_MAX, err);
}

static nb_status run(generation *r, nb_err *err)
{
    if (r->prompt->n == 0)
        return nb_fail(err, NB_DATA, "the prompt has no tokens: there is nothing to continue");
    NB_TRY(prepare(r, err));
    bool done = false;
    while (!done)
        NB_TRY(next(r, &done, err));
    if (r->choice.over == NB_CHOICE_OPEN) {
        NB_TRY(nb_choice_end(&r->choice, err));
        NB_TRY(hand_over(r, err));
    }
    return nb_buf_u8(&r->text, 0, err);
}

nb_status nb_generate(nb_generator *g, nb_tokens *prompt, const nb_generate_options *options,
                      nb_full_fn *on_full, void *context, nb_generation *out, nb_err *err)
{
    generation r = {
        .g = g, .options = options, .prompt = prompt, .on_full = on_full, .full_context = context};
    r.result.stop_id = r.result.stop_index = -1;
    const nb_status s = run(&r, err);
    if (r.begun) { /* wrong guesses are forgotten */
        cut(g, common_beginning(&r));
        select_row(g, g->held.n - 1);
    }
    nb_choice_free(&r.choice);
    nb_choosing_free(&r.choosing);
    nb_ngram_free(&r.ngram);
    if (s != NB_OK) {
        nb_tokens_free(&r.made);
        nb_buf_free(&r.text);
        nb_buf_free(&r.logprobs);
        return s;
    }
    *out = r.result;
    out->logprobs = (nb_logprob *)(void *)r.logprobs.data;
    out->tokens = r.made.ids;
    out->n_tokens = r.made.n;
    out->text = (char *)r.text.data;
    out->text_len = r.text.len - 1;
    return NB_OK;
}
