/* See tool_calls.h. */
#include "serve/tool_calls.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

static const char OPEN[] = "<tool_call>", CLOSE[] = "</tool_call>";

void nb_tool_calls_init(nb_tool_calls *c, nb_tool_style style, bool inside, int64_t max_calls)
{
    *c = (nb_tool_calls){.bare = style != NB_TOOLS_HERMES, .max_calls = max_calls};
    c->at = c->bare ? NB_TOOLS_AT_BEGIN : inside ? NB_TOOLS_AT_OBJECT : NB_TOOLS_AT_TEXT;
}

void nb_tool_calls_free(nb_tool_calls *c)
{
    nb_buf *const all[] = {&c->space, &c->raw,   &c->key,    &c->value,
                           &c->name,  &c->early, &c->content};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        nb_buf_free(all[i]);
    for (int64_t i = 0; i < c->n_calls; i++) {
        nb_buf_free(&c->calls[i].name);
        nb_buf_free(&c->calls[i].arguments);
    }
    nb_free(c->calls);
    *c = (nb_tool_calls){0};
}

static bool is_space(char b)
{
    return b == ' ' || b == '\n' || b == '\r' || b == '\t';
}

static nb_status put(nb_buf *to, char b, nb_err *err)
{
    return nb_buf_u8(to, (uint8_t)b, err);
}

static nb_status move(nb_buf *to, nb_buf *from, nb_err *err)
{
    NB_TRY(nb_buf_put(to, from->data, from->len, err));
    from->len = 0;
    return NB_OK;
}

/* ---- a call ---- */

static nb_status new_call(nb_tool_calls *c, nb_tool_call **out, nb_err *err)
{
    if (c->n_calls == c->cap) {
        nb_tool_call *more;
        const int64_t cap = c->cap == 0 ? 2 : 2 * c->cap;
        NB_TRY(NB_ALLOC(&more, cap, err));
        if (c->n_calls > 0)
            memcpy(more, c->calls, (size_t)c->n_calls * sizeof *more);
        nb_free(c->calls);
        c->calls = more;
        c->cap = cap;
    }
    nb_tool_call *call = &c->calls[c->n_calls];
    uint8_t bytes[12] = {0};
    (void)!getrandom(bytes, sizeof bytes, 0); /* to tell calls apart: it need not be secret */
    size_t n = (size_t)snprintf(call->id, sizeof call->id, "call_");
    for (size_t i = 0; i < sizeof bytes; i++, n += 2)
        snprintf(call->id + n, sizeof call->id - n, "%02x", bytes[i]);
    NB_TRY(nb_buf_put(&call->name, c->name.data, c->name.len, err));
    const nb_status s = nb_buf_u8(&call->name, 0, err);
    if (s != NB_OK) {
        nb_buf_free(&call->name);
        return s;
    }
    c->n_calls++;
    *out = call;
    return NB_OK;
}

static nb_buf *arguments_of(nb_tool_calls *c)
{
    return c->hidden ? NULL : &c->calls[c->n_calls - 1].arguments;
}

/* From here on it is a call, whatever follows. */
static nb_status begin_call(nb_tool_calls *c, nb_err *err)
{
    nb_tool_call *call;
    c->hidden = c->n_seen >= c->max_calls || c->n_seen >= NB_MAX_TOOL_CALLS;
    if (!c->hidden) {
        NB_TRY(new_call(c, &call, err));
        NB_TRY(move(&call->arguments, &c->early, err));
    }
    c->n_seen++;
    c->begun = true;
    c->raw.len = c->space.len = c->early.len = 0;
    return NB_OK;
}

static void start_object(nb_tool_calls *c)
{
    c->at = NB_TOOLS_AT_OBJECT;
    c->in = NB_OBJECT_OPEN;
    c->has_name = c->has_arguments = c->begun = c->streams = false;
    c->name.len = c->early.len = 0;
}

/* The object is none of a call. What was read is content, if nothing was told of it. */
static nb_status give_up(nb_tool_calls *c, nb_err *err)
{
    c->at = c->bare ? NB_TOOLS_AT_PLAIN : c->begun ? NB_TOOLS_AT_SKIP : NB_TOOLS_AT_TEXT;
    c->n_tag = 0;
    NB_TRY(move(&c->content, &c->space, err));
    return move(&c->content, &c->raw, err);
}

static nb_status end_object(nb_tool_calls *c, nb_err *err)
{
    if (!c->begun && c->has_name && (c->has_arguments || !c->bare))
        NB_TRY(begin_call(c, err));
    if (!c->begun)
        return give_up(c, err);
    nb_buf *arguments = arguments_of(c);
    if (arguments != NULL && arguments->len == 0)
        NB_TRY(nb_buf_text(arguments, "{}", err));
    c->at = c->bare ? NB_TOOLS_AT_BEGIN : NB_TOOLS_AT_SKIP;
    return NB_OK;
}

/* ---- its object ---- */

static bool key_is(const nb_tool_calls *c, const char *name)
{
    return c->key.len == strlen(name) && memcmp(c->key.data, name, c->key.len) == 0;
}

static bool is_arguments(const nb_tool_calls *c)
{
    return key_is(c, "arguments") || key_is(c, "parameters");
}

/* The text that c->value writes as a JSON string; the value itself when it is none. */
static nb_status unquote(const nb_tool_calls *c, nb_buf *to, nb_err *err)
{
    json_t *v = NULL;
    nb_err ignored = {0};
    const nb_status s = nb_json_parse(&v, (const char *)c->value.data, c->value.len, &ignored);
    if (s == NB_MEMORY)
        return nb_fail(err, s, "%s", ignored.text);
    const nb_status done = s == NB_OK && json_is_string(v)
                               ? nb_buf_put(to, json_string_value(v), json_string_length(v), err)
                               : nb_buf_put(to, c->value.data, c->value.len, err);
    json_decref(v);
    return done;
}

static nb_status end_value(nb_tool_calls *c, nb_err *err)
{
    const bool in_string = c->in == NB_OBJECT_IN_STRING;
    c->in = NB_OBJECT_COMMA;
    if (key_is(c, "name") && in_string && !c->has_name) {
        NB_TRY(unquote(c, &c->name, err));
        c->has_name = true;
        return c->has_arguments ? begin_call(c, err) : NB_OK;
    }
    if (!is_arguments(c) || c->streams) {
        c->streams = false;
        return NB_OK;
    }
    nb_buf *to = c->begun ? arguments_of(c) : &c->early;
    if (to == NULL || to->len > 0)
        return NB_OK; /* one too many, or given twice */
    /* Some models write the arguments as a string that holds JSON, and null for none. */
    if (in_string)
        return unquote(c, to, err);
    if (c->value.len == 4 && memcmp(c->value.data, "null", 4) == 0)
        return nb_buf_text(to, "{}", err);
    return nb_buf_put(to, c->value.data, c->value.len, err);
}

static nb_status begin_value(nb_tool_calls *c, char b, nb_err *err)
{
    const bool nested = b == '{' || b == '[';
    c->in = b == '"' ? NB_OBJECT_IN_STRING : nested ? NB_OBJECT_IN_NESTED : NB_OBJECT_IN_WORD;
    c->value.len = 0;
    c->depth = nested;
    c->quoted = c->escaped = false;
    if (is_arguments(c) && !c->has_arguments) {
        c->has_arguments = true;
        if (c->has_name)
            NB_TRY(begin_call(c, err));
        c->streams = nested && c->begun;
    }
    if (!c->streams)
        return put(&c->value, b, err);
    return c->hidden ? NB_OK : put(arguments_of(c), b, err);
}

/* Within a value. */
static nb_status take_value(nb_tool_calls *c, char b, nb_err *err)
{
    nb_buf *to = c->streams ? arguments_of(c) : &c->value;
    if (to != NULL)
        NB_TRY(put(to, b, err));
    if (c->escaped) {
        c->escaped = false;
    } else if (b == '\\') {
        c->escaped = c->quoted || c->in == NB_OBJECT_IN_STRING;
    } else if (c->in == NB_OBJECT_IN_STRING) {
        return b == '"' ? end_value(c, err) : NB_OK;
    } else if (b == '"') {
        c->quoted = !c->quoted;
    } else if (!c->quoted) {
        c->depth += (b == '{' || b == '[') - (b == '}' || b == ']');
        if (c->depth == 0)
            return end_value(c, err);
    }
    return NB_OK;
}

static nb_status take_key(nb_tool_calls *c, char b, nb_err *err)
{
    if (c->escaped || b == '\\') {
        c->escaped = !c->escaped;
    } else if (b == '"') {
        c->in = NB_OBJECT_COLON;
        return NB_OK;
    }
    return put(&c->key, b, err);
}

/* Between the parts of the object. */
static nb_status take_mark(nb_tool_calls *c, char b, nb_err *err)
{
    if (c->in == NB_OBJECT_OPEN && b == '{') {
        c->in = NB_OBJECT_KEY;
    } else if (c->in == NB_OBJECT_KEY && b == '"') {
        c->in = NB_OBJECT_IN_KEY;
        c->key.len = 0;
        c->escaped = false;
    } else if (c->in == NB_OBJECT_COLON && b == ':') {
        c->in = NB_OBJECT_VALUE;
    } else if (c->in == NB_OBJECT_COMMA && b == ',') {
        c->in = NB_OBJECT_KEY;
    } else if ((c->in == NB_OBJECT_KEY || c->in == NB_OBJECT_COMMA) && b == '}') {
        return end_object(c, err);
    } else {
        return give_up(c, err);
    }
    return NB_OK;
}

static nb_status take_object(nb_tool_calls *c, char b, nb_err *err)
{
    if (!c->begun)
        NB_TRY(put(&c->raw, b, err));
    switch (c->in) {
    case NB_OBJECT_IN_KEY:
        return take_key(c, b, err);
    case NB_OBJECT_IN_STRING:
    case NB_OBJECT_IN_NESTED:
        return take_value(c, b, err);
    case NB_OBJECT_IN_WORD:
        if (b != ',' && b != '}' && !is_space(b))
            return put(&c->value, b, err);
        NB_TRY(end_value(c, err));
        return is_space(b) ? NB_OK : take_mark(c, b, err);
    case NB_OBJECT_VALUE:
        return is_space(b) ? NB_OK : begin_value(c, b, err);
    case NB_OBJECT_OPEN:
    case NB_OBJECT_KEY:
    case NB_OBJECT_COLON:
    case NB_OBJECT_COMMA:
        break;
    }
    return is_space(b) ? NB_OK : take_mark(c, b, err);
}

/* ---- between calls ---- */

static nb_status put_content(nb_tool_calls *c, char b, nb_err *err)
{
    if (is_space(b))
        return put(&c->space, b, err);
    NB_TRY(move(&c->content, &c->space, err));
    return put(&c->content, b, err);
}

/* Whether b goes on with a tag. */
static bool goes_on(nb_tool_calls *c, char b)
{
    if (c->n_tag == 1)
        c->closing = b == '/';
    const char *tag = c->n_tag > 1 && c->closing ? CLOSE : OPEN;
    return b == (c->n_tag == 1 && c->closing ? '/' : tag[c->n_tag]);
}

/* What looked like a tag is text. */
static nb_status drop_tag(nb_tool_calls *c, nb_err *err)
{
    const int n = c->n_tag;
    c->n_tag = 0;
    for (int i = 0; i < n && c->at == NB_TOOLS_AT_TEXT; i++)
        NB_TRY(put_content(c, (c->closing && n > 1 ? CLOSE : OPEN)[i], err));
    return NB_OK;
}

static nb_status end_tag(nb_tool_calls *c, nb_err *err)
{
    if (c->closing && c->at == NB_TOOLS_AT_TEXT)
        return drop_tag(c, err);
    c->n_tag = 0;
    if (c->closing) {
        c->at = NB_TOOLS_AT_TEXT;
        return NB_OK;
    }
    start_object(c);
    return nb_buf_text(&c->raw, OPEN, err);
}

static nb_status take_text(nb_tool_calls *c, char b, nb_err *err)
{
    if (!goes_on(c, b)) {
        NB_TRY(drop_tag(c, err));
        if (b != OPEN[0])
            return c->at == NB_TOOLS_AT_TEXT ? put_content(c, b, err) : NB_OK;
    }
    c->n_tag++;
    const size_t whole = c->n_tag > 1 && c->closing ? sizeof CLOSE - 1 : sizeof OPEN - 1;
    return (size_t)c->n_tag == whole ? end_tag(c, err) : NB_OK;
}

static nb_status take_begin(nb_tool_calls *c, char b, nb_err *err)
{
    if (is_space(b) || (c->n_seen > 0 && (b == ';' || b == ',')))
        return put(&c->space, b, err);
    if (b == '{') {
        start_object(c);
        return take_object(c, b, err);
    }
    c->at = NB_TOOLS_AT_PLAIN;
    NB_TRY(move(&c->content, &c->space, err));
    return put(&c->content, b, err);
}

nb_status nb_tool_calls_put(nb_tool_calls *c, const char *text, size_t len, nb_err *err)
{
    for (size_t i = 0; i < len; i++) {
        switch (c->at) {
        case NB_TOOLS_AT_TEXT:
        case NB_TOOLS_AT_SKIP:
            NB_TRY(take_text(c, text[i], err));
            break;
        case NB_TOOLS_AT_BEGIN:
            NB_TRY(take_begin(c, text[i], err));
            break;
        case NB_TOOLS_AT_OBJECT:
            NB_TRY(take_object(c, text[i], err));
            break;
        case NB_TOOLS_AT_PLAIN:
            return nb_buf_put(&c->content, text + i, len - i, err);
        }
    }
    return NB_OK;
}

nb_status nb_tool_calls_end(nb_tool_calls *c, nb_err *err)
{
    if (c->at == NB_TOOLS_AT_OBJECT && !c->begun)
        NB_TRY(give_up(c, err));
    NB_TRY(drop_tag(c, err));
    if (c->n_seen == 0)
        NB_TRY(move(&c->content, &c->space, err));
    return NB_OK;
}
