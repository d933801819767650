/* See reply.h. */
#include "serve/reply.h"

#include <string.h>

nb_status nb_reply_init(nb_reply *r, const nb_ask *ask, size_t limit, nb_err *err)
{
    *r = (nb_reply){.ask = ask, .limit = limit};
    r->n_choices = r->n_unfinished = nb_ask_n_choices(ask);
    r->n_top = ask->options.n_top;
    r->keeps_all = !ask->stream || ask->shape == NB_ASK_GENERATE;
    r->keeps_ids = ask->options.logprobs || ask->shape == NB_ASK_GENERATE;
    nb_status s = NB_ALLOC(&r->choices, r->n_choices, err);
    if (s == NB_OK)
        s = NB_ALLOC(&r->prompt_rows, ask->n_prompts, err);
    for (int64_t i = 0; i < r->n_choices && s == NB_OK && ask->tool_style != NB_TOOLS_NONE; i++) {
        s = NB_ALLOC(&r->choices[i].calls, 1, err);
        if (s == NB_OK)
            nb_tool_calls_init(r->choices[i].calls, ask->tool_style, ask->must_call,
                               ask->max_calls);
    }
    if (s != NB_OK) {
        nb_reply_free(r);
        return s;
    }
    for (int64_t i = 0; i < r->n_choices; i++) {
        r->choices[i].finish = NB_NOT_FINISHED;
        r->choices[i].stop_id = -1;
        r->choices[i].n_prompt = ask->prompts[i / ask->n].tokens.n;
    }
    return NB_OK;
}

static void rows_free(nb_rows *rows)
{
    nb_free(rows->ids);
    nb_free(rows->logprobs);
}

void nb_reply_free(nb_reply *r)
{
    if (r->ask == NULL)
        return;
    for (int64_t i = 0; r->choices != NULL && i < r->n_choices; i++) {
        nb_buf_free(&r->choices[i].text);
        rows_free(&r->choices[i].rows);
        nb_free(r->choices[i].stop);
        nb_free(r->choices[i].error);
        nb_free(r->choices[i].pooled);
        if (r->choices[i].calls != NULL)
            nb_tool_calls_free(r->choices[i].calls);
        nb_free(r->choices[i].calls);
    }
    for (int64_t i = 0; r->prompt_rows != NULL && i < r->ask->n_prompts; i++)
        rows_free(&r->prompt_rows[i]);
    nb_free(r->choices);
    nb_free(r->prompt_rows);
    *r = (nb_reply){0};
}

static nb_status grow(nb_rows *rows, int64_t width, nb_err *err)
{
    const int64_t cap = rows->cap == 0 ? 32 : 2 * rows->cap;
    int32_t *ids = NULL;
    nb_logprob *logprobs = NULL;
    nb_status s = NB_ALLOC(&ids, cap, err);
    if (s == NB_OK)
        s = NB_ALLOC(&logprobs, cap * width, err);
    if (s != NB_OK) {
        nb_free(ids);
        return s;
    }
    if (rows->n > 0) {
        memcpy(ids, rows->ids, (size_t)rows->n * sizeof *ids);
        memcpy(logprobs, rows->logprobs, (size_t)(rows->n * width) * sizeof *logprobs);
    }
    rows_free(rows);
    rows->ids = ids;
    rows->logprobs = logprobs;
    rows->cap = cap;
    return NB_OK;
}

static nb_status put_row(nb_rows *rows, const nb_engine_event *e, int64_t n_top, bool wanted,
                         nb_err *err)
{
    const int64_t width = wanted ? 1 + n_top : 0;
    if (rows->n == rows->cap)
        NB_TRY(grow(rows, width, err));
    rows->ids[rows->n] = e->id;
    nb_logprob *to = rows->logprobs + rows->n * width;
    for (int64_t k = 0; k < width; k++)
        to[k] = e->logprobs != NULL ? e->logprobs[k] : (nb_logprob){.id = -1};
    rows->n++;
    return NB_OK;
}

static nb_status copy_text(char **to, const char *text, nb_err *err)
{
    const size_t n = strlen(text) + 1;
    NB_TRY(NB_ALLOC(to, n, err));
    memcpy(*to, text, n);
    return NB_OK;
}

static nb_status put_end(nb_reply *r, nb_choice *c, const nb_engine_event *e, nb_err *err)
{
    c->stop_id = e->finish == NB_FINISH_STOP ? e->stop_id : -1;
    if (e->finish == NB_FINISH_STOP && e->stop != NULL) {
        NB_TRY(copy_text(&c->stop, e->stop, err));
        if (r->ask->include_stop)
            NB_TRY(nb_buf_put(&c->text, e->stop, strlen(e->stop), err));
    }
    if (e->finish == NB_FINISH_ERROR && e->error != NULL)
        NB_TRY(copy_text(&c->error, e->error, err));
    if (e->pooled != NULL) {
        NB_TRY(NB_ALLOC(&c->pooled, e->n_pooled, err));
        memcpy(c->pooled, e->pooled, (size_t)e->n_pooled * sizeof *c->pooled);
    }
    c->finish = e->finish; /* at last: without memory for all of it, it ends with an error */
    r->n_unfinished--;
    return NB_OK;
}

static nb_status put(nb_reply *r, int64_t p, nb_choice *c, const nb_engine_event *e, nb_err *err)
{
    const bool lp = r->ask->options.logprobs;
    if (e->prompt_at >= 0)
        return put_row(&r->prompt_rows[p], e, r->n_top, lp, err);
    if (e->n_made > 0)
        c->n_made = e->n_made;
    if (e->n_prompt > 0) {
        c->n_prompt = e->n_prompt;
        c->n_cached = e->n_cached;
    }
    if (!r->ask->no_answer) {
        if (e->id >= 0 && r->keeps_ids)
            NB_TRY(put_row(&c->rows, e, r->n_top, lp, err));
        if (e->len > 0)
            NB_TRY(nb_buf_put(&c->text, e->text, e->len, err));
    }
    return e->finish != NB_NOT_FINISHED ? put_end(r, c, e, err) : NB_OK;
}

bool nb_reply_put(nb_reply *r, int64_t p, const nb_engine_event *e)
{
    nb_choice *c = &r->choices[p * r->ask->n + e->choice];
    if (c->finish != NB_NOT_FINISHED)
        return !r->overflowed && !r->out_of_memory;
    nb_err err = {0};
    const size_t before = c->text.len;
    const int64_t rows_before = c->rows.n;
    if (put(r, p, c, e, &err) != NB_OK) {
        r->out_of_memory = true;
        nb_reply_end(r, NB_FINISH_ERROR, "out of memory for the answer");
        return false;
    }
    r->n_waiting += c->text.len - before +
                    (size_t)(c->rows.n - rows_before) * (size_t)(1 + r->n_top) * sizeof(nb_logprob);
    if (r->ask->stream && r->n_waiting > r->limit) {
        r->overflowed = true;
        nb_reply_end(r, NB_FINISH_ABORT, NULL);
        return false;
    }
    return true;
}

void nb_reply_end(nb_reply *r, nb_finish finish, const char *error)
{
    nb_err err = {0};
    for (int64_t i = 0; i < r->n_choices; i++) {
        nb_choice *c = &r->choices[i];
        if (c->finish != NB_NOT_FINISHED)
            continue;
        c->finish = finish;
        r->n_unfinished--;
        if (error != NULL)
            (void)copy_text(&c->error, error, &err); /* without memory: an error without words */
    }
}

nb_status nb_reply_failed(const nb_reply *r, nb_problem *why)
{
    for (int64_t i = 0; i < r->n_choices; i++) {
        const nb_choice *c = &r->choices[i];
        if (c->finish == NB_FINISH_ERROR)
            return nb_refuse(why, 500, NULL, "%s",
                             c->error != NULL ? c->error : "the answer could not be computed");
        if (c->finish == NB_FINISH_ABORT) {
            why->retry_after_s = 1;
            if (r->crowded_out)
                return nb_refuse(why, 429, NULL, "the queue is full");
            return nb_refuse(why, 503, NULL, "%s",
                             r->overflowed ? "the stream was not read" : "the server is stopping");
        }
    }
    return NB_OK;
}

nb_status nb_choice_part(nb_choice *c, nb_err *err)
{
    if (c->calls == NULL)
        return NB_OK;
    const char *text = (const char *)c->text.data + c->text_taken;
    const size_t len = c->text.len - c->text_taken;
    c->text_taken = c->text.len;
    if (len > 0)
        NB_TRY(nb_tool_calls_put(c->calls, text, len, err));
    return c->finish != NB_NOT_FINISHED ? nb_tool_calls_end(c->calls, err) : NB_OK;
}

void nb_choice_taken(nb_reply *r, nb_choice *c)
{
    r->n_waiting = 0;
    if (c->calls != NULL) {
        c->calls->content_taken = c->calls->content.len;
        for (int64_t i = 0; i < c->calls->n_calls; i++) {
            c->calls->calls[i].told = true;
            c->calls->calls[i].taken = c->calls->calls[i].arguments.len;
        }
    }
    c->text_taken = c->text.len;
    c->rows_taken = c->rows.n;
    if (r->keeps_all)
        return;
    c->text.len = c->text_taken = 0;
    c->rows.n = c->rows_taken = 0;
}
