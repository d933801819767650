/* See openai.h: requests. The table of fields, with the rule of each, is in docs/serving.md. */
#include "serve/openai.h"

#include <string.h>

/* ---- what both routes have ---- */

static nb_status read_stream(nb_ask *ask, const nb_fields *f)
{
    NB_TRY(nb_field_bool(f, "stream", &ask->stream));
    json_t *options = NULL;
    NB_TRY(nb_field_object(f, "stream_options", &options));
    if (options == NULL)
        return NB_OK;
    if (!ask->stream)
        return nb_field_refuse(f, "stream_options", "is given without 'stream'");
    const nb_fields inner = {options, "stream_options.", f->why};
    return nb_field_bool(&inner, "include_usage", &ask->include_usage);
}

static nb_status read_format(nb_ask *ask, const nb_fields *f)
{
    json_t *format = NULL, *object = NULL, *schema = NULL;
    NB_TRY(nb_field_object(f, "response_format", &format));
    if (format == NULL)
        return NB_OK;
    const nb_fields inner = {format, "response_format.", f->why};
    const char *type = NULL;
    size_t len = 0;
    NB_TRY(nb_field_text(&inner, "type", &type, &len));
    if (type == NULL)
        return nb_field_refuse(&inner, "type", "is missing");
    if (strcmp(type, "text") == 0)
        return NB_OK;
    if (strcmp(type, "json_object") == 0) {
        ask->json_schema = "{\"type\":\"object\"}";
        return NB_OK;
    }
    if (strcmp(type, "json_schema") != 0)
        return nb_field_refuse(&inner, "type",
                               "is '%.40s': 'text', 'json_object' and 'json_schema' are possible",
                               type);
    NB_TRY(nb_field_object(&inner, "json_schema", &object));
    if (object == NULL)
        return nb_field_refuse(&inner, "json_schema", "is missing");
    const nb_fields deeper = {object, "response_format.json_schema.", f->why};
    schema = nb_field(&deeper, "schema");
    if (schema == NULL)
        return nb_field_refuse(&deeper, "schema", "is missing");
    if (!json_is_object(schema) && !json_is_boolean(schema))
        return nb_field_wrong(&deeper, "schema", schema, "an object");
    return nb_ask_schema(ask, &deeper, "schema", schema);
}

static nb_status read_common(nb_ask *ask, const nb_fields *f, const nb_served *m)
{
    NB_TRY(nb_ask_model(f, m));
    NB_TRY(nb_ask_sampling(ask, f, m));
    NB_TRY(nb_ask_seed(ask, f, "seed"));
    NB_TRY(read_stream(ask, f));
    NB_TRY(read_format(ask, f));
    NB_TRY(nb_ask_salt(ask, f));
    NB_TRY(nb_field_bool(f, "include_stop_str_in_output", &ask->include_stop));
    NB_TRY(
        nb_field_int(f, "priority", -NB_SCHED_MAX_PRIORITY, NB_SCHED_MAX_PRIORITY, &ask->priority));
    const char *user = NULL;
    size_t len = 0;
    return nb_field_text(f, "user", &user, &len);
}

static nb_status need_object(const nb_ask *ask, nb_problem *why)
{
    if (json_is_object(ask->json))
        return NB_OK;
    return nb_refuse(why, 400, NULL, "the body is %s, not an object", nb_json_type_name(ask->json));
}

/* ---- /v1/completions ---- */

static nb_status read_completion_only(nb_ask *ask, const nb_fields *f)
{
    NB_TRY(nb_field_bool(f, "echo", &ask->echo));
    const char *suffix = "";
    size_t len = 0;
    NB_TRY(nb_field_text(f, "suffix", &suffix, &len));
    if (len > 0)
        return nb_field_refuse(f, "suffix", "is given: filling in is not possible here");
    int64_t best_of = ask->n;
    NB_TRY(nb_field_int(f, "best_of", 1, NB_ASK_MAX_CHOICES, &best_of));
    if (best_of != ask->n)
        return nb_field_refuse(f, "best_of", "is %lld: only as many as 'n' are possible",
                               (long long)best_of);
    int64_t top = -1;
    NB_TRY(nb_field_int(f, "logprobs", 0, NB_MAX_LOGPROBS, &top));
    ask->options.logprobs = top >= 0;
    ask->options.n_top = top > 0 ? (int)top : 0;
    ask->prompt_logprobs = ask->options.logprobs && ask->echo;
    return NB_OK;
}

nb_status nb_openai_read_completion(nb_ask *ask, const nb_served *m, nb_problem *why)
{
    NB_TRY(need_object(ask, why));
    const nb_fields f = {ask->json, "", why};
    NB_TRY(read_common(ask, &f, m));
    NB_TRY(read_completion_only(ask, &f));
    int64_t max_tokens = 16, min_tokens = 0;
    NB_TRY(nb_field_int(&f, "max_tokens", 0, INT32_MAX, &max_tokens));
    NB_TRY(nb_field_int(&f, "min_tokens", 0, INT32_MAX, &min_tokens));
    if (max_tokens == 0 && !ask->echo)
        return nb_field_refuse(&f, "max_tokens", "is 0, which 'echo' alone allows");
    const json_t *prompt = nb_field(&f, "prompt");
    if (prompt == NULL)
        return nb_field_refuse(&f, "prompt", "is missing");
    bool add_bos = true;
    NB_TRY(nb_field_bool(&f, "add_special_tokens", &add_bos));
    NB_TRY(nb_ask_prompts(ask, &f, "prompt", m, prompt, add_bos));
    /* An engine generates: the one token that nobody asked for is left out of the answer. */
    ask->no_answer = max_tokens == 0;
    return nb_ask_fit(ask, &f, "max_tokens", m, max_tokens == 0 ? 1 : max_tokens, min_tokens);
}

/* ---- messages ---- */

typedef struct {
    nb_message *messages;
    char **joined; /* contents that were lists of parts; NULL where a string was borrowed */
    int64_t n;
    size_t total;
} conversation;

static void conversation_free(conversation *c)
{
    for (int64_t i = 0; c->joined != NULL && i < c->n; i++)
        nb_free(c->joined[i]);
    nb_free(c->joined);
    nb_free(c->messages);
}

/* OpenAI calls those "developer" whom templates call "system". */
static const char *known_role(const char *role)
{
    static const char *const KNOWN[] = {"system", "user", "assistant", "tool", "function"};
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (strcmp(role, KNOWN[i]) == 0)
            return KNOWN[i];
    return strcmp(role, "developer") == 0 ? "system" : NULL;
}

/* Parts of text, a line each, as vLLM joins them for templates that expect strings. */
static nb_status join_parts(conversation *c, int64_t i, const json_t *parts, const nb_fields *f)
{
    nb_buf text = {0};
    nb_status s = NB_OK;
    size_t at;
    json_t *part;
    json_array_foreach(parts, at, part)
    {
        const json_t *type = json_object_get(part, "type"), *v = json_object_get(part, "text");
        if (!json_is_object(part) || !json_is_string(type))
            s = nb_field_refuse(f, "messages", "[%lld].content[%zu] is no part with a 'type'",
                                (long long)i, at);
        else if (strcmp(json_string_value(type), "text") != 0)
            s = nb_field_refuse(f, "messages",
                                "[%lld].content[%zu] is of type '%.40s': this model reads 'text'",
                                (long long)i, at, json_string_value(type));
        else if (!json_is_string(v))
            s = nb_field_refuse(f, "messages", "[%lld].content[%zu] has no 'text'", (long long)i,
                                at);
        else if (at > 0)
            s = nb_problem_settle(f->why, nb_buf_u8(&text, '\n', &f->why->err));
        if (s == NB_OK)
            s = nb_problem_settle(f->why, nb_buf_put(&text, json_string_value(v),
                                                     json_string_length(v), &f->why->err));
        if (s != NB_OK) {
            nb_buf_free(&text);
            return s;
        }
    }
    c->joined[i] = (char *)text.data;
    c->messages[i].content = text.data != NULL ? (const char *)text.data : "";
    c->messages[i].len = text.len;
    return NB_OK;
}

static nb_status read_message(conversation *c, int64_t i, const json_t *v, const nb_fields *f)
{
    if (!json_is_object(v))
        return nb_field_refuse(f, "messages", "[%lld] is %s, not an object", (long long)i,
                               nb_json_type_name(v));
    nb_message *m = &c->messages[i];
    const json_t *role = json_object_get(v, "role"), *content = json_object_get(v, "content");
    if (!json_is_string(role))
        return nb_field_refuse(f, "messages", "[%lld] has no 'role' that is a string",
                               (long long)i);
    m->role = known_role(json_string_value(role));
    if (m->role == NULL)
        return nb_field_refuse(f, "messages",
                               "[%lld].role is '%.40s': system, developer, user, "
                               "assistant and tool are possible",
                               (long long)i, json_string_value(role));
    if (json_is_string(content)) {
        m->content = json_string_value(content);
        m->len = json_string_length(content);
    } else if (json_is_array(content)) {
        NB_TRY(join_parts(c, i, content, f));
    } else if ((content == NULL || json_is_null(content)) && strcmp(m->role, "assistant") == 0) {
        m->content = ""; /* it called a tool */
    } else {
        return nb_field_refuse(f, "messages",
                               "[%lld].content is %s, not a string or a list of "
                               "parts",
                               (long long)i,
                               content == NULL ? "missing" : nb_json_type_name(content));
    }
    c->total += m->len;
    return NB_OK;
}

static nb_status read_messages(conversation *c, const json_t *list, const nb_fields *f,
                               const nb_served *m)
{
    const size_t n = json_array_size(list);
    if (n == 0 || n > NB_ASK_MAX_MESSAGES)
        return nb_field_refuse(f, "messages", "has %zu messages: 1 to %d are possible", n,
                               NB_ASK_MAX_MESSAGES);
    nb_err *err = &f->why->err;
    NB_TRY(nb_problem_settle(f->why, NB_ALLOC(&c->messages, n, err)));
    NB_TRY(nb_problem_settle(f->why, NB_ALLOC(&c->joined, n, err)));
    c->n = (int64_t)n;
    for (int64_t i = 0; i < c->n; i++)
        NB_TRY(read_message(c, i, json_array_get(list, (size_t)i), f));
    if (c->total / NB_ASK_MAX_BYTES_PER_TOKEN > (size_t)m->n_room)
        return nb_ask_no_room(f, "messages", m, "'messages' have %zu bytes", c->total);
    return NB_OK;
}

nb_status nb_openai_messages(const nb_fields *f, const nb_served *m, bool open_answer,
                             nb_tokens *out)
{
    json_t *list = NULL;
    NB_TRY(nb_field_array(f, "messages", &list));
    if (list == NULL)
        return nb_field_refuse(f, "messages", "is missing");
    /* A template is a program. The model's own is run, within a budget; a stranger's is not. */
    if (nb_field(f, "chat_template") != NULL)
        return nb_field_refuse(f, "chat_template", "is given: only the model's own is used");
    conversation c = {0};
    nb_status s = read_messages(&c, list, f, m);
    if (s == NB_OK) {
        s = nb_chat_encode(m->tokenizer, m->template_, c.messages, c.n, open_answer, out,
                           &f->why->err);
        if (s != NB_OK && s != NB_MEMORY)
            s = nb_refuse(f->why, 400, "messages", "%s", f->why->err.text);
        nb_problem_settle(f->why, s);
    }
    conversation_free(&c);
    if (s == NB_OK && out->n == 0)
        s = nb_field_refuse(f, "messages", "are nothing at all to this model's chat template");
    return s;
}

/* ---- /v1/chat/completions ---- */

/* Tools are looked at, and refused when the model would have to call one: to answer as if there
 * were none would be worse. */
static nb_status read_tools(const nb_fields *f)
{
    json_t *tools = NULL;
    NB_TRY(nb_field_array(f, "tools", &tools));
    const json_t *choice = nb_field(f, "tool_choice");
    if (tools != NULL && json_array_size(tools) == 0)
        return nb_field_refuse(f, "tools", "is empty: leave it out");
    if (choice != NULL && !json_is_string(choice) && !json_is_object(choice))
        return nb_field_wrong(f, "tool_choice", choice, "a string or an object");
    const char *word = json_string_value(choice);
    if (word != NULL && strcmp(word, "none") != 0 && strcmp(word, "auto") != 0 &&
        strcmp(word, "required") != 0)
        return nb_field_refuse(f, "tool_choice",
                               "is '%.40s': 'none', 'auto', 'required' and a function are possible",
                               word);
    if (choice != NULL && tools == NULL && (word == NULL || strcmp(word, "required") == 0))
        return nb_field_refuse(f, "tool_choice", "is given without 'tools'");
    if (tools != NULL && (word == NULL || strcmp(word, "none") != 0))
        return nb_field_refuse(f, "tools", "is given: calling tools is not possible here");
    return NB_OK;
}

static nb_status read_chat_logprobs(nb_ask *ask, const nb_fields *f)
{
    int64_t top = 0;
    NB_TRY(nb_field_bool(f, "logprobs", &ask->options.logprobs));
    NB_TRY(nb_field_int(f, "top_logprobs", 0, NB_MAX_LOGPROBS, &top));
    if (top > 0 && !ask->options.logprobs)
        return nb_field_refuse(f, "top_logprobs", "is given without 'logprobs'");
    ask->options.n_top = (int)top;
    return NB_OK;
}

nb_status nb_openai_read_chat(nb_ask *ask, const nb_served *m, nb_problem *why)
{
    NB_TRY(need_object(ask, why));
    const nb_fields f = {ask->json, "", why};
    NB_TRY(read_common(ask, &f, m));
    NB_TRY(read_chat_logprobs(ask, &f));
    NB_TRY(read_tools(&f));
    int64_t max_tokens = -1, min_tokens = 0;
    const char *name = "max_tokens";
    NB_TRY(nb_field_int(&f, name, 1, INT32_MAX, &max_tokens));
    if (nb_field(&f, "max_completion_tokens") != NULL)
        name = "max_completion_tokens"; /* the younger name wins */
    NB_TRY(nb_field_int(&f, name, 1, INT32_MAX, &max_tokens));
    NB_TRY(nb_field_int(&f, "min_tokens", 0, INT32_MAX, &min_tokens));
    bool open_answer = true;
    NB_TRY(nb_field_bool(&f, "add_generation_prompt", &open_answer));
    NB_TRY(nb_ask_reserve(ask, &f, "messages", 1));
    ask->n_prompts = 1;
    NB_TRY(nb_openai_messages(&f, m, open_answer, &ask->prompts[0].tokens));
    return nb_ask_fit(ask, &f, name, m, max_tokens, min_tokens);
}
