/* See choice.h. */
#include "engine/choice.h"

#include <assert.h>
#include <string.h>

/* ---- what all share ---- */

/* What is JSON ends where its value does, and every token that is text may be a part of it. */
static nb_status check_json(const nb_generate_options *o, const nb_tokenizer *t, nb_err *err)
{
    if (o->json_schema == NULL)
        return NB_OK;
    if (t == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "a JSON schema needs a tokenizer");
    if (o->ignore_eos || o->min_tokens > 0)
        return nb_fail(err, NB_USAGE,
                       "an answer as a JSON schema allows ends where its value does: ignore_eos "
                       "and min_tokens do not go with it");
    for (int i = 0; i < o->n_stop_ids; i++) {
        if (!nb_tokenizer_is_special(t, o->stop_ids[i]) && !nb_tokenizer_is_stop(t, o->stop_ids[i]))
            return nb_fail(err, NB_USAGE,
                           "stop_ids: token %d is text, which JSON may need: with a JSON schema "
                           "only special tokens end the answer",
                           o->stop_ids[i]);
    }
    return NB_OK;
}

static nb_status check(const nb_generate_options *o, int64_t n_ids, nb_err *err)
{
    NB_TRY(nb_sampling_check(&o->sampling, n_ids, err));
    if (o->min_tokens < 0 || (o->max_tokens > 0 && o->min_tokens > o->max_tokens))
        return nb_fail(err, NB_USAGE, "min_tokens is %lld: it must lie in [0, max_tokens]",
                       (long long)o->min_tokens);
    if (o->n_top < 0 || o->n_top > NB_MAX_LOGPROBS)
        return nb_fail(err, NB_USAGE, "n_top is %d: it must lie in [0, %d]", o->n_top,
                       NB_MAX_LOGPROBS);
    if (o->n_guess < 0 || o->n_guess > NB_MAX_GUESS)
        return nb_fail(err, NB_USAGE, "n_guess is %d: it must lie in [0, %d]", o->n_guess,
                       NB_MAX_GUESS);
    if (o->n_stop_ids < 0 || o->n_stop_ids > NB_MAX_STOPS)
        return nb_fail(err, NB_USAGE, "%d stop_ids: there may be %d", o->n_stop_ids, NB_MAX_STOPS);
    for (int i = 0; i < o->n_stop_ids; i++) {
        if (o->stop_ids[i] < 0 || o->stop_ids[i] >= n_ids)
            return nb_fail(err, NB_USAGE, "stop_ids: token id %d is outside the vocabulary of %lld",
                           o->stop_ids[i], (long long)n_ids);
    }
    return NB_OK;
}

nb_status nb_ends_init(nb_ends *e, const nb_tokenizer *t, int64_t n_ids, nb_err *err)
{
    *e = (nb_ends){0};
    int64_t n = 0;
    for (int64_t id = 0; id < n_ids && t != NULL; id++)
        n += nb_tokenizer_is_stop(t, (int32_t)id);
    NB_TRY(NB_ALLOC(&e->ids, n, err));
    for (int64_t id = 0; e->n < n; id++) {
        if (nb_tokenizer_is_stop(t, (int32_t)id))
            e->ids[e->n++] = (int32_t)id;
    }
    return NB_OK;
}

void nb_ends_free(nb_ends *e)
{
    nb_free(e->ids);
    *e = (nb_ends){0};
}

nb_status nb_choosing_init(nb_choosing *c, const nb_generate_options *o, const nb_tokenizer *t,
                           const nb_json_tokens *json, const nb_ends *of_model, int64_t n_ids,
                           nb_err *err)
{
    *c = (nb_choosing){.options = o, .tokenizer = t, .json = json, .n_ids = n_ids};
    NB_TRY(check(o, n_ids, err));
    NB_TRY(check_json(o, t, err));
    const double r = o->sampling.repetition_penalty;
    c->penalizes = (r != 0 && r != 1) || o->sampling.frequency_penalty != 0 ||
                   o->sampling.presence_penalty != 0;
    const int n_model = o->ignore_eos ? 0 : of_model->n;
    NB_TRY(NB_ALLOC(&c->ends, o->n_stop_ids + n_model, err));
    for (int i = 0; i < o->n_stop_ids; i++)
        c->ends[c->n_ends++] = o->stop_ids[i];
    for (int i = 0; i < n_model; i++)
        c->ends[c->n_ends++] = of_model->ids[i];
    return NB_OK;
}

void nb_choosing_free(nb_choosing *c)
{
    nb_free(c->ends);
    *c = (nb_choosing){0};
}

/* ---- one ---- */

nb_status nb_choice_init(nb_choice *c, const nb_choosing *of, int64_t number, const int32_t *prompt,
                         int64_t n_prompt, int64_t max_made, nb_err *err)
{
    *c = (nb_choice){
        .of = of, .sampling = of->options->sampling, .max_made = max_made, .end_id = -1};
    c->sampling.choice += (uint64_t)number;
    nb_status s = nb_stoptext_init(&c->stops, of->options->stops, of->options->n_stops, err);
    const char *schema = of->options->json_schema;
    if (s == NB_OK && schema != NULL)
        s = nb_json_answer_init(&c->json, of->json, schema, strlen(schema), err);
    if (s == NB_OK)
        nb_choice_prompt(c, prompt, n_prompt);
    else
        nb_choice_free(c);
    return s;
}

void nb_choice_prompt(nb_choice *c, const int32_t *prompt, int64_t n_prompt)
{
    assert(c->n_made == 0);
    c->position = n_prompt;
    c->prompt = prompt;
    c->n_prompt = n_prompt;
}

void nb_choice_free(nb_choice *c)
{
    nb_stoptext_free(&c->stops);
    nb_json_answer_free(&c->json);
    nb_buf_free(&c->piece);
    nb_tokens_free(&c->made);
    *c = (nb_choice){0};
}

static nb_status pick(nb_choice *c, nb_sampler *s, const float *logits, int32_t *id, nb_err *err)
{
    nb_allowed allowed = {0};
    if (c->of->penalizes) {
        nb_sampler_begin(s, c->prompt, c->n_prompt);
        for (int64_t i = 0; i < c->made.n; i++)
            nb_sampler_made(s, c->made.ids[i]);
    }
    if (c->n_made < c->of->options->min_tokens)
        allowed = (nb_allowed){.banned = c->of->ends, .n_banned = c->of->n_ends};
    if (c->json.schema != NULL)
        allowed.mask = nb_json_answer_mask(&c->json, c->of->ends, c->of->n_ends);
    return nb_sample_among(s, &c->sampling, &allowed, logits, c->position, id, err);
}

nb_status nb_choice_pick(nb_choice *c, nb_sampler *scratch, const float *logits, int32_t *id,
                         nb_logprob *top, nb_err *err)
{
    const nb_generate_options *o = c->of->options;
    nb_sampler s = *scratch;
    NB_TRY(pick(c, &s, logits, id, err));
    if (o->logprobs)
        nb_logprobs(&s, logits, *id, o->n_top, top);
    return NB_OK;
}

static bool ends(const nb_choosing *of, int32_t id)
{
    for (int i = 0; i < of->n_ends; i++) {
        if (of->ends[i] == id)
            return true;
    }
    return false;
}

/* As if the tokens had been taken. */
static nb_status look_ahead(nb_choice *c, const int32_t *ids, int64_t n, nb_err *err)
{
    c->position += n;
    c->n_made += n;
    for (int64_t i = 0; i < n && c->of->penalizes; i++)
        NB_TRY(nb_tokens_push(&c->made, ids[i], err));
    return NB_OK;
}

nb_status nb_choice_foresee(nb_choice *c, nb_sampler *scratch, nb_json_walk *walk,
                            const float *logits, const int32_t *ids, int64_t n, int32_t *id,
                            bool *over, nb_err *err)
{
    nb_sampler s = *scratch;
    const nb_json_walk here = c->json.walk;
    const int64_t position = c->position, n_made = c->n_made, n_listed = c->made.n;
    const bool is_json = c->json.schema != NULL;
    if (is_json) {
        nb_json_walk_copy(walk, &here);
        c->json.walk = *walk;
    }
    for (int64_t i = 0; i < n && is_json; i++)
        nb_json_answer_made(&c->json, ids[i]);
    nb_status status = look_ahead(c, ids, n, err);
    if (status == NB_OK)
        status = pick(c, &s, logits, id, err);
    *over = status != NB_OK || ends(c->of, *id) || c->n_made + 1 >= c->max_made;
    if (is_json && !*over) {
        nb_json_answer_made(&c->json, *id);
        *over = nb_json_answer_done(&c->json);
    }
    c->position = position;
    c->n_made = n_made;
    c->made.n = n_listed;
    c->json.walk = here;
    return status;
}

/* Text through the decoder (none for -1: the answer is over) and past the stop strings, which look
 * at nothing before min_tokens. */
static nb_status take_text(nb_choice *c, int32_t id, nb_err *err)
{
    const nb_generate_options *o = c->of->options;
    const bool final = id < 0;
    bool found = false;
    nb_buf decoded = {0};
    if (c->of->tokenizer == NULL)
        return NB_OK;
    nb_status s = nb_tokenizer_decode(c->of->tokenizer, &c->decoder, &id, final ? 0 : 1,
                                      o->with_special, final, &decoded, err);
    if (s == NB_OK && !final && c->n_made <= o->min_tokens)
        s = nb_buf_put(&c->piece, decoded.data, decoded.len, err);
    else if (s == NB_OK)
        s = nb_stoptext_push(&c->stops, (const char *)decoded.data, decoded.len, &c->piece, &found,
                             err);
    if (s == NB_OK && final && !found)
        s = nb_stoptext_flush(&c->stops, &c->piece, err);
    nb_buf_free(&decoded);
    if (found)
        c->over = NB_CHOICE_STOP_TEXT;
    return s;
}

nb_status nb_choice_end(nb_choice *c, nb_err *err)
{
    return take_text(c, -1, err);
}

nb_status nb_choice_take(nb_choice *c, int32_t id, nb_err *err)
{
    assert(c->over == NB_CHOICE_OPEN && id >= 0);
    c->position++;
    c->n_made++;
    if (ends(c->of, id)) {
        c->over = NB_CHOICE_END_TOKEN;
        c->end_id = id;
    } else {
        if (c->of->penalizes)
            NB_TRY(nb_tokens_push(&c->made, id, err));
        if (c->json.schema != NULL)
            nb_json_answer_made(&c->json, id);
        NB_TRY(take_text(c, id, err));
        /* Where nothing but an end could follow, it need not be computed. */
        if (c->over == NB_CHOICE_OPEN && c->json.schema != NULL && nb_json_answer_done(&c->json))
            c->over = NB_CHOICE_END_TOKEN;
    }
    if (c->over == NB_CHOICE_OPEN && c->n_made >= c->max_made)
        c->over = NB_CHOICE_FULL;
    if (c->over == NB_CHOICE_END_TOKEN || c->over == NB_CHOICE_FULL) {
        const nb_over over = c->over;
        NB_TRY(take_text(c, -1, err));
        c->over = c->over == NB_CHOICE_STOP_TEXT ? NB_CHOICE_STOP_TEXT : over;
    }
    return NB_OK;
}
