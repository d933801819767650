/* See openai.h: messages, which become the ids of the model's chat template. */
#include "serve/openai.h"

#include <string.h>

typedef struct {
    nb_message *messages;
    char **joined; /* contents that were lists of parts; NULL where a string was borrowed */
    json_t **more; /* what messages have besides; NULL: nothing */
    int64_t n;
    size_t total;
} conversation;

static void conversation_free(conversation *c)
{
    for (int64_t i = 0; c->joined != NULL && i < c->n; i++)
        nb_free(c->joined[i]);
    for (int64_t i = 0; c->more != NULL && i < c->n; i++)
        json_decref(c->more[i]);
    nb_free(c->joined);
    nb_free(c->more);
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

static nb_status no_memory(const nb_fields *f)
{
    return nb_problem_settle(f->why, nb_fail(&f->why->err, NB_MEMORY, "out of memory"));
}

/* Clients write the arguments of a call as text that is JSON; templates expect what it says. */
static nb_status read_arguments(const json_t *call, int64_t i, size_t at, const nb_fields *f,
                                json_t **out)
{
    const json_t *function = json_object_get(call, "function");
    const json_t *text = json_object_get(function, "arguments");
    nb_err err = {0};
    *out = NULL;
    if (json_is_string(text) &&
        strspn(json_string_value(text), " \n\r\t") < json_string_length(text)) {
        const nb_status s =
            nb_json_parse(out, json_string_value(text), json_string_length(text), &err);
        if (s == NB_MEMORY)
            return no_memory(f);
        if (s != NB_OK)
            return nb_field_refuse(f, "messages", "[%lld].tool_calls[%zu].function.arguments: %s",
                                   (long long)i, at, err.text);
    } else if (text == NULL || json_is_null(text) || json_is_string(text)) {
        *out = json_object();
    } else {
        *out = json_deep_copy(text);
    }
    if (*out == NULL)
        return no_memory(f);
    if (json_is_object(*out))
        return NB_OK;
    json_decref(*out);
    *out = NULL;
    return nb_field_refuse(f, "messages", "[%lld].tool_calls[%zu].function.arguments is no object",
                           (long long)i, at);
}

static nb_status read_call(const json_t *call, int64_t i, size_t at, const nb_fields *f,
                           json_t *list)
{
    const json_t *function = json_object_get(call, "function");
    json_t *arguments;
    if (!json_is_string(json_object_get(function, "name")))
        return nb_field_refuse(f, "messages", "[%lld].tool_calls[%zu].function has no 'name'",
                               (long long)i, at);
    NB_TRY(read_arguments(call, i, at, f, &arguments));
    json_t *copy = json_deep_copy(call);
    if (json_object_set_new(json_object_get(copy, "function"), "arguments", arguments) != 0) {
        json_decref(copy);
        return no_memory(f);
    }
    return json_array_append_new(list, copy) == 0 ? NB_OK : no_memory(f);
}

static nb_status read_calls(conversation *c, int64_t i, const json_t *calls, const nb_fields *f)
{
    size_t at;
    json_t *call, *list = json_array();
    if (!json_is_array(calls)) {
        json_decref(list);
        return nb_field_refuse(f, "messages", "[%lld].tool_calls is %s, not an array", (long long)i,
                               nb_json_type_name(calls));
    }
    nb_status s = list != NULL ? NB_OK : no_memory(f);
    json_array_foreach(calls, at, call)
    {
        if (s == NB_OK)
            s = read_call(call, i, at, f, list);
    }
    /* To a template an empty list would be a message with calls. */
    if (s == NB_OK && json_array_size(list) > 0) {
        c->total += json_dumpb(list, NULL, 0, JSON_COMPACT);
        if (json_object_set(c->more[i], "tool_calls", list) != 0)
            s = no_memory(f);
    }
    json_decref(list);
    return s;
}

/* What templates may look at besides role and content. */
static nb_status read_more(conversation *c, int64_t i, const json_t *v, const nb_fields *f)
{
    static const char *const TEXTS[] = {"name", "tool_call_id"};
    json_t *calls = json_object_get(v, "tool_calls");
    c->more[i] = json_object();
    if (c->more[i] == NULL)
        return no_memory(f);
    for (size_t k = 0; k < sizeof TEXTS / sizeof *TEXTS; k++) {
        json_t *text = json_object_get(v, TEXTS[k]);
        if (text == NULL || json_is_null(text))
            continue;
        if (!json_is_string(text))
            return nb_field_refuse(f, "messages", "[%lld].%s is %s, not a string", (long long)i,
                                   TEXTS[k], nb_json_type_name(text));
        c->total += json_string_length(text);
        if (json_object_set(c->more[i], TEXTS[k], text) != 0)
            return no_memory(f);
    }
    return calls != NULL && !json_is_null(calls) ? read_calls(c, i, calls, f) : NB_OK;
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
    NB_TRY(read_more(c, i, v, f));
    m->more = c->more[i];
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
    NB_TRY(nb_problem_settle(f->why, NB_ALLOC(&c->more, n, err)));
    c->n = (int64_t)n;
    for (int64_t i = 0; i < c->n; i++)
        NB_TRY(read_message(c, i, json_array_get(list, (size_t)i), f));
    if (c->total / NB_ASK_MAX_BYTES_PER_TOKEN > (size_t)m->n_room)
        return nb_ask_no_room(f, "messages", m, "'messages' have %zu bytes", c->total);
    return NB_OK;
}

nb_status nb_openai_messages(const nb_fields *f, const nb_served *m, const json_t *tools,
                             bool open_answer, nb_tokens *out)
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
        const nb_conversation talk = {
            .messages = c.messages, .n = c.n, .tools = tools, .add_generation_prompt = open_answer};
        s = nb_conversation_encode(m->tokenizer, m->template_, &talk, out, &f->why->err);
        if (s != NB_OK && s != NB_MEMORY)
            s = nb_refuse(f->why, 400, "messages", "%s", f->why->err.text);
        nb_problem_settle(f->why, s);
    }
    conversation_free(&c);
    if (s == NB_OK && out->n == 0)
        s = nb_field_refuse(f, "messages", "are nothing at all to this model's chat template");
    return s;
}
