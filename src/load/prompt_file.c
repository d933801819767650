/* See prompt_file.h. */
#include "load/prompt_file.h"

#include "base/file.h"

#include <string.h>

#define OUTPUT_MAX ((int64_t)1 << 20)

/* ---- one object ---- */

/* {"from": "human", "value": ...} turns become messages, up to the first answer. */
static nb_status turns_of(json_t *conversation, json_t **out, nb_err *err)
{
    json_t *messages = json_array();
    nb_status s = messages == NULL ? nb_fail(err, NB_MEMORY, "out of memory for messages") : NB_OK;
    for (size_t i = 0; i < json_array_size(conversation) && s == NB_OK; i++) {
        const json_t *turn = json_array_get(conversation, i);
        const char *from = json_string_value(json_object_get(turn, "from"));
        json_t *value = json_object_get(turn, "value");
        if (from == NULL || !json_is_string(value)) {
            s = nb_fail(err, NB_DATA, "turn %zu of 'conversations' lacks 'from' or 'value'", i + 1);
            break;
        }
        const bool system = strcmp(from, "system") == 0;
        if (!system && strcmp(from, "human") != 0 && strcmp(from, "user") != 0)
            break;
        json_t *message =
            json_pack("{s:s, s:O}", "role", system ? "system" : "user", "content", value);
        if (json_array_append_new(messages, message) != 0)
            s = nb_fail(err, NB_MEMORY, "out of memory for messages");
    }
    if (s == NB_OK && json_array_size(messages) == 0)
        s = nb_fail(err, NB_DATA, "'conversations' does not begin with a question");
    if (s != NB_OK)
        json_decref(messages);
    else
        *out = messages;
    return s;
}

/* Completions take the last question alone. */
static json_t *last_content(const json_t *messages)
{
    return json_object_get(json_array_get(messages, json_array_size(messages) - 1), "content");
}

static nb_status read_item(nb_prompt_item *item, json_t *object, bool chat, nb_err *err)
{
    if (!json_is_object(object))
        return nb_fail(err, NB_DATA, "not a JSON object");
    json_t *messages = NULL, *conversation = NULL;
    int64_t output = 0;
    NB_TRY(nb_json_int(object, "max_tokens", false, 1, OUTPUT_MAX, &output, err));
    NB_TRY(nb_json_int(object, "output_tokens", false, 1, OUTPUT_MAX, &output, err));
    NB_TRY(nb_json_array(object, "messages", false, &messages, err));
    NB_TRY(nb_json_array(object, "conversations", false, &conversation, err));
    json_t *prompt = json_object_get(object, "prompt");
    item->output_tokens = output;
    if (json_is_string(prompt)) {
        item->prompt = prompt;
        return NB_OK;
    }
    if (prompt != NULL && !json_is_null(prompt))
        return nb_fail(err, NB_DATA, "key 'prompt' is not a string");
    if (messages != NULL) {
        if (!chat)
            return nb_fail(err, NB_DATA, "messages need --endpoint chat");
        if (json_array_size(messages) == 0)
            return nb_fail(err, NB_DATA, "key 'messages' is empty");
        item->messages = messages;
        return NB_OK;
    }
    if (conversation == NULL)
        return nb_fail(err, NB_DATA, "none of 'prompt', 'messages' and 'conversations' is there");
    json_t *turns = NULL;
    NB_TRY(turns_of(conversation, &turns, err));
    /* The object keeps them, as it keeps what else items point to. */
    if (json_object_set_new(object, "messages", turns) != 0)
        return nb_fail(err, NB_MEMORY, "out of memory for messages");
    if (chat)
        item->messages = turns;
    else
        item->prompt = last_content(turns);
    return NB_OK;
}

/* ---- the file ---- */

static nb_status read_lines(json_t *all, const char *text, size_t len, nb_err *err)
{
    int64_t number = 0;
    for (size_t at = 0; at < len;) {
        const char *lf = memchr(text + at, '\n', len - at);
        const size_t n = lf == NULL ? len - at : (size_t)(lf - text) - at;
        const char *line = text + at;
        at += n + 1;
        number++;
        if (strspn(line, " \t\r\n") >= n)
            continue;
        json_t *object;
        if (nb_json_parse(&object, line, n, err) != NB_OK)
            return nb_context(err, "line %lld", (long long)number);
        if (!json_is_object(object)) {
            json_decref(object);
            return nb_fail(err, NB_DATA, "line %lld: not a JSON object", (long long)number);
        }
        if (json_array_append_new(all, object) != 0)
            return nb_fail(err, NB_MEMORY, "out of memory for prompts");
    }
    return NB_OK;
}

static nb_status read_text(json_t **all, const char *text, size_t len, nb_err *err)
{
    if (text[strspn(text, " \t\r\n")] == '[') {
        json_t *array;
        NB_TRY(nb_json_parse(&array, text, len, err));
        *all = array;
        return NB_OK;
    }
    json_t *lines = json_array();
    if (lines == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory for prompts");
    const nb_status s = read_lines(lines, text, len, err);
    if (s != NB_OK)
        json_decref(lines);
    else
        *all = lines;
    return s;
}

static nb_status read_items(nb_prompt_file *file, bool chat, nb_err *err)
{
    file->n = (int64_t)json_array_size(file->all);
    if (file->n == 0)
        return nb_fail(err, NB_DATA, "no prompts");
    NB_TRY(NB_ALLOC(&file->items, file->n, err));
    for (int64_t i = 0; i < file->n; i++) {
        if (read_item(&file->items[i], json_array_get(file->all, (size_t)i), chat, err) != NB_OK)
            return nb_context(err, "prompt %lld", (long long)(i + 1));
    }
    return NB_OK;
}

nb_status nb_prompt_file_read(nb_prompt_file *out, const char *path, bool chat, nb_err *err)
{
    nb_prompt_file file = {0};
    nb_buf text = {0};
    nb_status s = nb_file_slurp(&text, path, NB_PROMPT_FILE_MAX, err);
    if (s == NB_OK)
        s = read_text(&file.all, (const char *)text.data, text.len, err);
    nb_buf_free(&text);
    if (s == NB_OK)
        s = read_items(&file, chat, err);
    if (s != NB_OK) {
        nb_prompt_file_free(&file);
        return nb_context(err, "%s", path);
    }
    *out = file;
    return NB_OK;
}

void nb_prompt_file_free(nb_prompt_file *file)
{
    nb_free(file->items);
    json_decref(file->all);
    *file = (nb_prompt_file){0};
}
