/* See openai.h: answers. */
#include "serve/logprobs.h"
#include "serve/openai.h"

#include <string.h>

/* ---- what all answers have ---- */

static void write_head(const nb_ask *ask, const nb_served *m, const char *object, nb_wire *out)
{
    nb_wire_raw(out, "{\"id\":\"");
    nb_wire_raw(out, ask->id);
    nb_wire_raw(out, "\",\"object\":\"");
    nb_wire_raw(out, object);
    nb_wire_raw(out, "\",\"created\":");
    nb_wire_int(out, ask->created);
    nb_wire_raw(out, ",\"model\":");
    nb_wire_string(out, m->name, strlen(m->name));
    nb_wire_raw(out, ",\"choices\":[");
}

static void write_usage(const nb_ask *ask, const nb_reply *r, nb_wire *out)
{
    int64_t prompt = 0, cached = 0, made = 0;
    for (int64_t p = 0; p < ask->n_prompts; p++) {
        prompt += ask->prompts[p].tokens.n;
        cached += r->choices[p * ask->n].n_cached;
    }
    for (int64_t i = 0; i < r->n_choices && !ask->no_answer; i++)
        made += r->choices[i].n_made;
    nb_wire_raw(out, "\"usage\":{\"prompt_tokens\":");
    nb_wire_int(out, prompt);
    nb_wire_raw(out, ",\"completion_tokens\":");
    nb_wire_int(out, made);
    nb_wire_raw(out, ",\"total_tokens\":");
    nb_wire_int(out, prompt + made);
    nb_wire_raw(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    nb_wire_int(out, cached);
    nb_wire_raw(out, "}}");
}

/* The seed is part of every answer: with it the client can ask for the same one again. */
static void write_seed(const nb_ask *ask, nb_wire *out)
{
    nb_wire_raw(out, "\"seed\":");
    nb_wire_int(out, (int64_t)ask->options.sampling.seed);
}

static const char *finish_name(nb_finish finish)
{
    static const char *const NAMES[] = {
#define X(id, name, openai) [id] = openai,
        NB_FINISH_LIST(X)
#undef X
    };
    return NAMES[finish];
}

static bool asked_to_stop_at(const nb_ask *ask, int32_t id)
{
    for (int i = 0; i < ask->options.n_stop_ids; i++)
        if (ask->stop_ids[i] == id)
            return true;
    return false;
}

static bool calls_tools(const nb_choice *c)
{
    return c->calls != NULL && c->calls->n_calls > 0;
}

/* finish_reason, and what vLLM adds: the stop string or the id that was found, null for the model's
 * own end. */
static void write_finish(const nb_ask *ask, const nb_choice *c, nb_wire *out)
{
    if (c->finish == NB_NOT_FINISHED) {
        nb_wire_raw(out, "\"finish_reason\":null");
        return;
    }
    nb_wire_raw(out, "\"finish_reason\":\"");
    nb_wire_raw(out, ask->no_answer                                  ? "length"
                     : c->finish == NB_FINISH_STOP && calls_tools(c) ? "tool_calls"
                                                                     : finish_name(c->finish));
    nb_wire_raw(out, "\",\"stop_reason\":");
    if (c->finish == NB_FINISH_STOP && c->stop != NULL)
        nb_wire_string(out, c->stop, strlen(c->stop));
    else if (c->finish == NB_FINISH_STOP && asked_to_stop_at(ask, c->stop_id))
        nb_wire_int(out, c->stop_id);
    else
        nb_wire_raw(out, "null");
}

/* Text that is not yet taken; behind the prompt's, when that is to be echoed and was not. */
static void write_text(const nb_ask *ask, const nb_served *m, const nb_choice *c, int64_t p,
                       nb_wire *out)
{
    const char *text = (const char *)c->text.data + c->text_taken;
    const size_t len = c->text.len - c->text_taken;
    if (!ask->echo || c->begun) {
        nb_wire_string(out, len > 0 ? text : "", len);
        return;
    }
    const nb_prompt *prompt = &ask->prompts[p];
    nb_buf both = {0};
    nb_decoder decoder = {0};
    nb_err err;
    if (out->status != NB_OK)
        return;
    if (prompt->text != NULL)
        out->status = nb_buf_put(&both, prompt->text, prompt->len, &err);
    else
        out->status = nb_tokenizer_decode(m->tokenizer, &decoder, prompt->tokens.ids,
                                          prompt->tokens.n, true, true, &both, &err);
    if (out->status == NB_OK && len > 0)
        out->status = nb_buf_put(&both, text, len, &err);
    nb_wire_string(out, (const char *)both.data, both.len);
    nb_buf_free(&both);
}

static void write_completion_logprobs(const nb_ask *ask, const nb_served *m, const nb_reply *r,
                                      nb_choice *c, int64_t p, nb_wire *out)
{
    nb_wire_raw(out, ",\"logprobs\":");
    if (!ask->options.logprobs) {
        nb_wire_raw(out, "null");
        return;
    }
    const nb_rows *prompt = ask->echo && !c->begun ? &r->prompt_rows[p] : NULL;
    nb_write_logprobs(r, m->tokenizer, prompt, c, out);
}

/* ---- choices ---- */

static void write_completion_choice(const nb_ask *ask, const nb_served *m, const nb_reply *r,
                                    int64_t i, nb_wire *out)
{
    nb_choice *c = &r->choices[i];
    nb_wire_raw(out, "{\"index\":");
    nb_wire_int(out, i);
    nb_wire_raw(out, ",\"text\":");
    write_text(ask, m, c, i / ask->n, out);
    write_completion_logprobs(ask, m, r, c, i / ask->n, out);
    nb_wire_raw(out, ",");
    write_finish(ask, c, out);
    nb_wire_raw(out, "}");
}

/* What of the text is content, and not written yet. */
static const char *content_of(const nb_choice *c, size_t *len)
{
    const nb_buf *b = c->calls != NULL ? &c->calls->content : &c->text;
    const size_t taken = c->calls != NULL ? c->calls->content_taken : c->text_taken;
    *len = b->len - taken;
    return *len > 0 ? (const char *)b->data + taken : "";
}

static bool has_new_calls(const nb_choice *c)
{
    for (int64_t i = 0; c->calls != NULL && i < c->calls->n_calls; i++)
        if (!c->calls->calls[i].told || c->calls->calls[i].arguments.len > c->calls->calls[i].taken)
            return true;
    return false;
}

/* The calls, or what is new of them: in a chunk they have an index, and name and id come once. */
static void write_calls(const nb_choice *c, bool in_chunk, nb_wire *out)
{
    bool first = true;
    nb_wire_raw(out, "\"tool_calls\":[");
    for (int64_t i = 0; i < c->calls->n_calls; i++) {
        const nb_tool_call *call = &c->calls->calls[i];
        if (call->told && call->arguments.len == call->taken)
            continue;
        nb_wire_raw(out, first ? "{" : ",{");
        first = false;
        if (in_chunk) {
            nb_wire_raw(out, "\"index\":");
            nb_wire_int(out, i);
            nb_wire_raw(out, ",");
        }
        if (!call->told) {
            nb_wire_raw(out, "\"id\":\"");
            nb_wire_raw(out, call->id);
            nb_wire_raw(out, "\",\"type\":\"function\",");
        }
        nb_wire_raw(out, "\"function\":{");
        if (!call->told) {
            nb_wire_raw(out, "\"name\":");
            nb_wire_string(out, (const char *)call->name.data, call->name.len - 1);
            nb_wire_raw(out, ",");
        }
        const size_t len = call->arguments.len - call->taken;
        nb_wire_raw(out, "\"arguments\":");
        nb_wire_string(out, len > 0 ? (const char *)call->arguments.data + call->taken : "", len);
        nb_wire_raw(out, "}}");
    }
    nb_wire_raw(out, "]");
}

/* A delta has what is new; a message has content, which is null where all is calls. */
static void write_message(const nb_choice *c, bool in_chunk, nb_wire *out)
{
    size_t len;
    const char *text = content_of(c, &len);
    const bool calls = in_chunk ? has_new_calls(c) : calls_tools(c);
    const bool content = !in_chunk || len > 0 || (!calls && c->finish == NB_NOT_FINISHED);
    if (!in_chunk)
        nb_wire_raw(out, "\"role\":\"assistant\",");
    if (content)
        nb_wire_raw(out, "\"content\":");
    if (content && len == 0 && calls)
        nb_wire_raw(out, "null");
    else if (content)
        nb_wire_string(out, text, len);
    if (calls) {
        nb_wire_raw(out, content ? "," : "");
        write_calls(c, in_chunk, out);
    }
}

static void write_chat_choice(const nb_ask *ask, const nb_served *m, const nb_reply *r, int64_t i,
                              const char *part, nb_wire *out)
{
    const nb_choice *c = &r->choices[i];
    const bool in_chunk = part[0] == 'd';
    nb_wire_raw(out, "{\"index\":");
    nb_wire_int(out, i);
    nb_wire_raw(out, ",\"");
    nb_wire_raw(out, part);
    nb_wire_raw(out, "\":{");
    write_message(c, in_chunk, out);
    nb_wire_raw(out, "},\"logprobs\":");
    if (ask->options.logprobs && (!in_chunk || c->rows.n > c->rows_taken))
        nb_write_chat_logprobs(r, m->tokenizer, c, out);
    else
        nb_wire_raw(out, "null");
    nb_wire_raw(out, ",");
    write_finish(ask, c, out);
    nb_wire_raw(out, "}");
}

void nb_openai_write(const nb_ask *ask, const nb_served *m, nb_reply *r, nb_wire *out)
{
    const bool chat = ask->shape == NB_ASK_CHAT;
    nb_err err;
    write_head(ask, m, chat ? "chat.completion" : "text_completion", out);
    for (int64_t i = 0; i < r->n_choices; i++) {
        nb_wire_raw(out, i > 0 ? "," : "");
        if (out->status == NB_OK)
            out->status = nb_choice_part(&r->choices[i], &err);
        if (chat)
            write_chat_choice(ask, m, r, i, "message", out);
        else
            write_completion_choice(ask, m, r, i, out);
    }
    nb_wire_raw(out, "],");
    write_usage(ask, r, out);
    nb_wire_raw(out, ",");
    write_seed(ask, out);
    nb_wire_raw(out, "}");
}

/* ---- streams ---- */

static void begin_event(const nb_ask *ask, const nb_served *m, nb_wire *out)
{
    nb_wire_raw(out, "data: ");
    write_head(ask, m, ask->shape == NB_ASK_CHAT ? "chat.completion.chunk" : "text_completion",
               out);
}

static void end_event(const nb_ask *ask, nb_wire *out)
{
    nb_wire_raw(out, ask->include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
}

static void write_role(const nb_ask *ask, const nb_served *m, int64_t i, nb_wire *out)
{
    begin_event(ask, m, out);
    nb_wire_raw(out, "{\"index\":");
    nb_wire_int(out, i);
    nb_wire_raw(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                     "\"finish_reason\":null}");
    end_event(ask, out);
}

static void write_news(const nb_ask *ask, const nb_served *m, nb_reply *r, int64_t i, nb_wire *out)
{
    nb_choice *c = &r->choices[i];
    const bool chat = ask->shape == NB_ASK_CHAT, over = c->finish != NB_NOT_FINISHED;
    size_t n_content;
    nb_err err;
    if (c->ended)
        return;
    if (out->status == NB_OK)
        out->status = nb_choice_part(c, &err);
    (void)content_of(c, &n_content);
    const bool news =
        n_content > 0 || has_new_calls(c) || (ask->options.logprobs && c->rows.n > c->rows_taken);
    if (!(news || over)) {
        if (c->calls != NULL) /* it is kept there, until it is known what it is */
            nb_choice_taken(r, c);
        return;
    }
    if (chat && !c->begun)
        write_role(ask, m, i, out);
    begin_event(ask, m, out);
    if (chat)
        write_chat_choice(ask, m, r, i, "delta", out);
    else
        write_completion_choice(ask, m, r, i, out);
    end_event(ask, out);
    c->begun = true;
    c->ended = over;
    nb_choice_taken(r, c);
}

static bool write_failure(const nb_reply *r, nb_wire *out)
{
    nb_problem why = {0};
    if (nb_reply_failed(r, &why) == NB_OK)
        return false;
    nb_wire_raw(out, "data: ");
    nb_problem_write(&why, out);
    nb_wire_raw(out, "\n\n");
    return true;
}

bool nb_openai_write_events(const nb_ask *ask, const nb_served *m, nb_reply *r, nb_wire *out)
{
    if (write_failure(r, out))
        return true;
    for (int64_t i = 0; i < r->n_choices; i++)
        write_news(ask, m, r, i, out);
    if (r->n_unfinished > 0)
        return false;
    if (ask->include_usage) {
        begin_event(ask, m, out);
        nb_wire_raw(out, "],");
        write_usage(ask, r, out);
        nb_wire_raw(out, ",");
        write_seed(ask, out);
        nb_wire_raw(out, "}\n\n");
    }
    nb_wire_raw(out, "data: [DONE]\n\n");
    return true;
}
