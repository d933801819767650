/* See streamed.h. */
#include "load/streamed.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define TOKENS_MAX ((int64_t)1 << 40) /* what a usage may claim */

const char *nb_fate_name(nb_fate fate)
{
    static const char *const names[] = {
#define X(id, name) name,
        NB_FATE_LIST(X)
#undef X
    };
    return names[fate];
}

const char *nb_flaw_name(nb_flaw flaw)
{
    static const char *const names[] = {
#define X(id, name) name,
        NB_FLAW_LIST(X)
#undef X
    };
    return names[flaw];
}

static void note(nb_streamed *s, nb_flaw flaw)
{
    s->flaws |= 1u << flaw;
}

void nb_streamed_fail(nb_streamed *s, nb_fate fate, const char *format, ...)
{
    if (s->fate != NB_FATE_OK)
        return;
    s->fate = fate;
    va_list args;
    va_start(args, format);
    vsnprintf(s->message, sizeof s->message, format, args);
    va_end(args);
}

/* ---- what an event says ---- */

static bool has_text(const json_t *object, const char *key)
{
    return json_string_length(json_object_get(object, key)) > 0;
}

/* Does this choice carry a token? Text does, and so does empty text that has no other purpose: a
 * token whose bytes the server holds back. The opening with the role, and the end, carry none. */
static bool carries_token(const json_t *choice, bool finishes)
{
    const json_t *delta = json_object_get(choice, "delta");
    const json_t *calls = json_object_get(delta, "tool_calls");
    if (has_text(choice, "text") || has_text(delta, "content") ||
        has_text(delta, "reasoning_content") || has_text(delta, "reasoning") ||
        json_array_size(calls) > 0)
        return true;
    const bool opens = json_object_get(delta, "role") != NULL;
    const bool empty = json_is_string(json_object_get(choice, "text")) ||
                       json_is_string(json_object_get(delta, "content"));
    return empty && !opens && !finishes;
}

static nb_status take_token(nb_streamed *s, nb_err *err)
{
    if (s->n_token_events >= s->max_events) {
        nb_streamed_fail(s, NB_FATE_BROKEN, "more than %lld events with tokens",
                         (long long)s->max_events);
        return nb_fail(err, NB_LIMIT, "too many events");
    }
    if (s->n_token_events > 0) {
        const double gap = s->now - s->token;
        NB_TRY(nb_buf_put(&s->gaps, &gap, sizeof gap, err));
    } else {
        s->first = s->now;
    }
    s->token = s->now;
    s->n_token_events++;
    return NB_OK;
}

static nb_status take_choice(nb_streamed *s, const json_t *choice, nb_err *err)
{
    const json_t *reason = json_object_get(choice, "finish_reason");
    const bool finishes = reason != NULL && !json_is_null(reason);
    s->last = s->now;
    if (carries_token(choice, finishes)) {
        if (s->n_finish > 0)
            note(s, NB_FLAW_AFTER_FINISH);
        NB_TRY(take_token(s, err));
    }
    if (finishes && s->n_finish++ > 0)
        note(s, NB_FLAW_TWO_FINISH);
    return NB_OK;
}

static void take_count(const json_t *usage, const char *key, int64_t *out)
{
    const json_t *v = json_object_get(usage, key);
    if (json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) <= TOKENS_MAX)
        *out = json_integer_value(v);
}

static void take_usage(nb_streamed *s, const json_t *usage)
{
    take_count(usage, "prompt_tokens", &s->prompt_tokens);
    take_count(usage, "completion_tokens", &s->output_tokens);
    take_count(json_object_get(usage, "prompt_tokens_details"), "cached_tokens", &s->cached_tokens);
}

static nb_status take_error(nb_streamed *s, const json_t *error, nb_err *err)
{
    const char *text = json_string_value(error);
    if (text == NULL)
        text = json_string_value(json_object_get(error, "message"));
    nb_streamed_fail(s, NB_FATE_ERROR_EVENT, "%s",
                     text != NULL ? text : "an error without message");
    return nb_fail(err, NB_DATA, "an error event");
}

static nb_status take_object(nb_streamed *s, const json_t *event, nb_err *err)
{
    const json_t *error = json_object_get(event, "error");
    if (error != NULL && !json_is_null(error))
        return take_error(s, error, err);
    const json_t *choices = json_object_get(event, "choices");
    const json_t *usage = json_object_get(event, "usage");
    if (json_is_object(usage))
        take_usage(s, usage);
    else if (!json_is_array(choices))
        note(s, NB_FLAW_UNKNOWN_EVENT);
    if (json_array_size(choices) > 0)
        return take_choice(s, json_array_get(choices, 0), err);
    return NB_OK;
}

static nb_status on_event(void *context, const char *data, size_t len, nb_err *err)
{
    nb_streamed *s = context;
    static const char done[] = "[DONE]";
    if (s->done) {
        note(s, NB_FLAW_AFTER_DONE);
        return NB_OK;
    }
    if (len == sizeof done - 1 && memcmp(data, done, len) == 0) {
        s->done = true;
        return NB_OK;
    }
    json_error_t e;
    json_t *event = json_loadb(data, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (event == NULL && json_error_code(&e) == json_error_out_of_memory)
        return nb_fail(err, NB_MEMORY, "out of memory for an event of %zu bytes", len);
    if (event == NULL) {
        nb_streamed_fail(s, NB_FATE_BROKEN, "an event is not valid JSON: %s", e.text);
        return nb_fail(err, NB_DATA, "not JSON");
    }
    const nb_status status = take_object(s, event, err);
    json_decref(event);
    return status;
}

/* ---- the stream ---- */

void nb_streamed_begin(nb_streamed *s, int64_t max_events)
{
    nb_sse sse = {.event = on_event, .context = s, .line = s->sse.line, .data = s->sse.data};
    sse.line.len = sse.data.len = 0;
    nb_buf gaps = s->gaps;
    gaps.len = 0;
    *s = (nb_streamed){.sse = sse,
                       .gaps = gaps,
                       .first = -1,
                       .max_events = max_events,
                       .prompt_tokens = -1,
                       .cached_tokens = -1,
                       .output_tokens = -1};
}

nb_status nb_streamed_feed(nb_streamed *s, const char *bytes, size_t n, double now, nb_err *err)
{
    s->now = now;
    s->n_bytes += (int64_t)n;
    const nb_status status = nb_sse_feed(&s->sse, bytes, n, err);
    if (status != NB_OK && status != NB_MEMORY)
        nb_streamed_fail(s, NB_FATE_BROKEN, "%.200s", err->text);
    return status;
}

void nb_streamed_end(nb_streamed *s, bool whole)
{
    if (s->fate != NB_FATE_OK)
        return;
    if (!whole && !s->done) {
        nb_streamed_fail(s, NB_FATE_CUT, "the connection ended inside the stream");
        return;
    }
    if (!s->done && s->n_finish == 0) {
        nb_streamed_fail(s, NB_FATE_CUT, "the stream ended without finish_reason and [DONE]");
        return;
    }
    if (s->first < 0) {
        nb_streamed_fail(s, NB_FATE_EMPTY, "the stream has no token");
        return;
    }
    if (!whole)
        note(s, NB_FLAW_CUT_AFTER_DONE);
    if (nb_sse_is_open(&s->sse))
        note(s, NB_FLAW_OPEN_END);
    if (!s->done)
        note(s, NB_FLAW_NO_DONE);
    if (s->n_finish == 0)
        note(s, NB_FLAW_NO_FINISH);
    if (s->output_tokens < 0)
        note(s, NB_FLAW_NO_USAGE);
}

void nb_streamed_free(nb_streamed *s)
{
    nb_sse_free(&s->sse);
    nb_buf_free(&s->gaps);
}
