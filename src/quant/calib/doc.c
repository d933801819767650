/* See calib/doc.h. */
#include "quant/calib/doc.h"

#include <stdio.h>
#include <string.h>

#define MAX_MESSAGES 65536

/* ---- conversations ---- */

/* Messages of one conversation. Contents that are lists of parts are joined in `joined`; since that
 * may move, such a content is an offset until all are known. */
typedef struct {
    nb_message *messages;
    size_t *joined_at; /* SIZE_MAX: the content is the JSON text's own */
    int64_t n;
    nb_buf joined;
} talk;

static void talk_free(talk *t)
{
    nb_free(t->messages);
    nb_free(t->joined_at);
    nb_buf_free(&t->joined);
}

static nb_status talk_init(talk *t, size_t n, nb_err *err)
{
    if (n == 0 || n > MAX_MESSAGES)
        return nb_fail(err, NB_DATA, "a conversation of %zu messages; 1 to %d are possible", n,
                       MAX_MESSAGES);
    NB_TRY(NB_ALLOC(&t->messages, n, err));
    return NB_ALLOC(&t->joined_at, n, err);
}

static void talk_add(talk *t, const char *role, const json_t *content)
{
    t->joined_at[t->n] = SIZE_MAX;
    t->messages[t->n++] = (nb_message){
        .role = role, .content = json_string_value(content), .len = json_string_length(content)};
}

/* {"type": "text", "text": t}, or t itself. */
static nb_status add_part(talk *t, const json_t *part, nb_err *err)
{
    const json_t *text = part;
    if (json_is_object(part)) {
        const char *type = json_string_value(json_object_get(part, "type"));
        if (type != NULL && strcmp(type, "text") != 0)
            return nb_fail(err, NB_UNSUPPORTED, "a part of a message of type '%.40s'; text only",
                           type);
        text = json_object_get(part, "text");
    }
    if (!json_is_string(text))
        return nb_fail(err, NB_DATA, "a part of a message is no text");
    return nb_buf_put(&t->joined, json_string_value(text), json_string_length(text), err);
}

static nb_status add_message(talk *t, const json_t *message, nb_err *err)
{
    static const char *const shapes[][2] = {{"role", "content"}, {"from", "value"}};
    const char *role = NULL;
    const json_t *content = NULL;
    for (int i = 0; i < 2 && role == NULL; i++) {
        role = json_string_value(json_object_get(message, shapes[i][0]));
        content = json_object_get(message, shapes[i][1]);
    }
    if (role == NULL)
        return nb_fail(err, NB_DATA, "message %lld has no role", (long long)t->n);
    if (strcmp(role, "human") == 0)
        role = "user";
    if (strcmp(role, "gpt") == 0)
        role = "assistant";
    if (json_is_string(content)) {
        talk_add(t, role, content);
        return NB_OK;
    }
    /* A call of a tool may be all that a message has. */
    if (content == NULL && json_object_get(message, "tool_calls") == NULL)
        return nb_fail(err, NB_DATA, "message %lld has no content", (long long)t->n);
    if (content != NULL && !json_is_null(content) && !json_is_array(content))
        return nb_fail(err, NB_DATA, "the content of message %lld is no text", (long long)t->n);
    const size_t at = t->joined.len;
    for (size_t i = 0; i < json_array_size(content); i++)
        NB_TRY(add_part(t, json_array_get(content, i), err));
    t->joined_at[t->n] = at;
    t->messages[t->n++] = (nb_message){.role = role, .len = t->joined.len - at};
    return NB_OK;
}

/* The conversation as ids, or as text where there is no template. */
static nb_status talk_finish(talk *t, const nb_calib_doc_options *options, nb_buf *text,
                             nb_tokens *ids, nb_err *err)
{
    for (int64_t i = 0; i < t->n; i++)
        if (t->joined_at[i] != SIZE_MAX)
            t->messages[i].content =
                t->joined.data == NULL ? "" : (const char *)t->joined.data + t->joined_at[i];
    if (options->template_ != NULL)
        return nb_chat_encode(options->tokenizer, options->template_, t->messages, t->n, false, ids,
                              err);
    for (int64_t i = 0; i < t->n; i++) {
        if (i > 0)
            NB_TRY(nb_buf_put(text, "\n\n", 2, err));
        NB_TRY(nb_buf_put(text, t->messages[i].content, t->messages[i].len, err));
    }
    return NB_OK;
}

static nb_status take_messages(const json_t *list, const nb_calib_doc_options *options,
                               nb_buf *text, nb_tokens *ids, nb_err *err)
{
    talk t = {0};
    nb_status s = talk_init(&t, json_array_size(list), err);
    for (size_t i = 0; s == NB_OK && i < json_array_size(list); i++)
        s = add_message(&t, json_array_get(list, i), err);
    if (s == NB_OK)
        s = talk_finish(&t, options, text, ids, err);
    talk_free(&t);
    return s;
}

/* ---- question and answer ---- */

static nb_status text_of(const json_t *object, const char *key, const json_t **out, nb_err *err)
{
    *out = json_object_get(object, key);
    return json_is_string(*out) ? NB_OK : nb_fail(err, NB_DATA, "'%s' is missing, or no text", key);
}

/* `more`, which may be NULL, follows the question after an empty line. */
static nb_status take_pair(const json_t *question, const json_t *more, const json_t *answer,
                           const nb_calib_doc_options *options, nb_buf *text, nb_tokens *ids,
                           nb_err *err)
{
    talk t = {0};
    nb_status s;
    NB_TRY_GOTO(s, talk_init(&t, 2, err));
    talk_add(&t, "user", question);
    if (json_string_length(more) > 0) {
        NB_TRY_GOTO(s, add_part(&t, question, err));
        NB_TRY_GOTO(s, nb_buf_put(&t.joined, "\n\n", 2, err));
        NB_TRY_GOTO(s, add_part(&t, more, err));
        t.joined_at[0] = 0;
        t.messages[0].len = t.joined.len;
    }
    talk_add(&t, "assistant", answer);
    s = talk_finish(&t, options, text, ids, err);
done:
    talk_free(&t);
    return s;
}

static nb_status take_completion(const json_t *j, const nb_calib_doc_options *options, nb_buf *text,
                                 nb_tokens *ids, nb_err *err)
{
    const json_t *prompt, *completion;
    NB_TRY(text_of(j, "prompt", &prompt, err));
    NB_TRY(text_of(j, "completion", &completion, err));
    return take_pair(prompt, NULL, completion, options, text, ids, err);
}

static nb_status take_instruction(const json_t *j, const nb_calib_doc_options *options,
                                  nb_buf *text, nb_tokens *ids, nb_err *err)
{
    const json_t *instruction, *output, *input = json_object_get(j, "input");
    NB_TRY(text_of(j, "instruction", &instruction, err));
    NB_TRY(text_of(j, json_object_get(j, "output") != NULL ? "output" : "response", &output, err));
    if (input != NULL && !json_is_null(input))
        NB_TRY(text_of(j, "input", &input, err));
    return take_pair(instruction, input, output, options, text, ids, err);
}

/* ---- lists and texts ---- */

static nb_status take_ids(const json_t *list, nb_tokens *ids, nb_err *err)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        const json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id > INT32_MAX)
            return nb_fail(err, NB_DATA, "entry %zu of the list is no token id", i);
        NB_TRY(nb_tokens_push(ids, (int32_t)id, err));
    }
    return NB_OK;
}

/* A value by what it is: text, a list of messages, or a list of ids. */
static nb_status take_value(const json_t *v, const char *name, const nb_calib_doc_options *options,
                            nb_calib_doc_kind *kind, nb_buf *text, nb_tokens *ids, nb_err *err)
{
    if (json_is_string(v)) {
        *kind = NB_CALIB_DOC_TEXT;
        return nb_buf_put(text, json_string_value(v), json_string_length(v), err);
    }
    if (!json_is_array(v))
        return nb_fail(err, NB_DATA, "%s is no text, no list of messages and no list of token ids",
                       name);
    *kind = json_is_object(json_array_get(v, 0)) ? NB_CALIB_DOC_CHAT : NB_CALIB_DOC_IDS;
    return *kind == NB_CALIB_DOC_CHAT ? take_messages(v, options, text, ids, err)
                                      : take_ids(v, ids, err);
}

static nb_status take_object(const json_t *j, const nb_calib_doc_options *options,
                             nb_calib_doc_kind *kind, nb_buf *text, nb_tokens *ids, nb_err *err)
{
    static const char *const keys[] = {"messages",    "conversations", "text",  "prompt",
                                       "instruction", "input_ids",     "tokens"};
    const char *key = options->field;
    for (size_t i = 0; key == NULL && i < sizeof keys / sizeof *keys; i++)
        if (json_object_get(j, keys[i]) != NULL)
            key = keys[i];
    if (key == NULL)
        return nb_fail(err, NB_DATA,
                       "none of messages, conversations, text, prompt, instruction, input_ids, "
                       "tokens; --calib-field names another member");
    if (options->field == NULL) {
        *kind = NB_CALIB_DOC_CHAT;
        if (strcmp(key, "prompt") == 0)
            return take_completion(j, options, text, ids, err);
        if (strcmp(key, "instruction") == 0)
            return take_instruction(j, options, text, ids, err);
    }
    char name[64];
    snprintf(name, sizeof name, "'%.40s'", key);
    const json_t *v = json_object_get(j, key);
    if (v == NULL)
        return nb_fail(err, NB_DATA, "no member %s", name);
    return take_value(v, name, options, kind, text, ids, err);
}

nb_status nb_calib_doc(const char *line, size_t len, const nb_calib_doc_options *options,
                       nb_calib_doc_kind *kind, nb_buf *text, nb_tokens *ids, nb_err *err)
{
    const int64_t n_before = ids->n;
    text->len = 0;
    json_t *j;
    NB_TRY(nb_json_parse(&j, line, len, err));
    nb_status s;
    if (json_is_object(j))
        s = take_object(j, options, kind, text, ids, err);
    else if (json_is_array(j))
        s = take_value(j, "the line", options, kind, text, ids, err);
    else
        s = nb_fail(err, NB_DATA, "no JSON object and no list of token ids");
    json_decref(j);
    if (s != NB_OK)
        ids->n = n_before;
    return s;
}
