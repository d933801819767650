/* See tools.h. */
#include "serve/tools.h"

#include "serve/tool_calls.h"

#include <string.h>

#define CALL_TAG "<tool_call>"

/* ---- what is given ---- */

static const char *name_of(const json_t *tool)
{
    return json_string_value(json_object_get(json_object_get(tool, "function"), "name"));
}

static nb_status check_tool(const nb_fields *f, const json_t *tool, size_t at)
{
    const json_t *type = json_object_get(tool, "type");
    const json_t *function = json_object_get(tool, "function");
    if (!json_is_string(type) || strcmp(json_string_value(type), "function") != 0)
        return nb_field_refuse(f, "tools", "[%zu] is not of type 'function'", at);
    if (!json_is_object(function))
        return nb_field_refuse(f, "tools", "[%zu].function is no object", at);
    const char *name = name_of(tool);
    if (name == NULL || *name == 0 || strlen(name) > NB_ASK_MAX_TOOL_NAME)
        return nb_field_refuse(f, "tools", "[%zu].function.name is no string of 1 to %d bytes", at,
                               NB_ASK_MAX_TOOL_NAME);
    const json_t *text = json_object_get(function, "description");
    if (text != NULL && !json_is_null(text) && !json_is_string(text))
        return nb_field_refuse(f, "tools", "[%zu].function.description is %s, not a string", at,
                               nb_json_type_name(text));
    const json_t *parameters = json_object_get(function, "parameters");
    if (parameters != NULL && !json_is_null(parameters) && !json_is_object(parameters))
        return nb_field_refuse(f, "tools", "[%zu].function.parameters is %s, not an object", at,
                               nb_json_type_name(parameters));
    return NB_OK;
}

nb_status nb_tools_list(const nb_fields *f, const nb_served *m, json_t **out)
{
    *out = NULL;
    NB_TRY(nb_field_array(f, "tools", out));
    if (*out == NULL)
        return NB_OK;
    const size_t n = json_array_size(*out);
    if (n == 0 || n > NB_ASK_MAX_TOOLS)
        return nb_field_refuse(f, "tools", "has %zu tools: 1 to %d are possible", n,
                               NB_ASK_MAX_TOOLS);
    for (size_t i = 0; i < n; i++)
        NB_TRY(check_tool(f, json_array_get(*out, i), i));
    const size_t bytes = json_dumpb(*out, NULL, 0, JSON_COMPACT);
    if (bytes / NB_ASK_MAX_BYTES_PER_TOKEN > (size_t)m->n_room)
        return nb_ask_no_room(f, "tools", m, "'tools' have %zu bytes", bytes);
    return NB_OK;
}

/* ---- which is to be called ---- */

typedef enum { CHOICE_NONE, CHOICE_AUTO, CHOICE_REQUIRED, CHOICE_NAMED } choice_kind;

typedef struct {
    choice_kind kind;
    size_t named; /* among the tools */
} tool_choice;

static nb_status find_named(const nb_fields *f, const json_t *choice, const json_t *tools,
                            tool_choice *out)
{
    const char *name = name_of(choice);
    if (name == NULL)
        return nb_field_refuse(f, "tool_choice", "names no function");
    const size_t n = json_array_size(tools);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(name_of(json_array_get(tools, i)), name) == 0) {
            *out = (tool_choice){CHOICE_NAMED, i};
            return NB_OK;
        }
    }
    return nb_field_refuse(f, "tool_choice", "names '%.60s', which is not among the tools", name);
}

static nb_status read_choice(const nb_fields *f, const json_t *tools, tool_choice *out)
{
    static const char *const WORDS[] = {"none", "auto", "required"};
    const json_t *choice = nb_field(f, "tool_choice");
    const char *word = json_string_value(choice);
    *out = (tool_choice){tools != NULL ? CHOICE_AUTO : CHOICE_NONE, 0};
    if (choice == NULL)
        return NB_OK;
    if (word == NULL && !json_is_object(choice))
        return nb_field_wrong(f, "tool_choice", choice, "a string or an object");
    int known = -1;
    for (int i = 0; i < 3 && word != NULL; i++)
        known = strcmp(word, WORDS[i]) == 0 ? i : known;
    if (word != NULL && known < 0)
        return nb_field_refuse(f, "tool_choice",
                               "is '%.40s': 'none', 'auto', 'required' and a function are possible",
                               word);
    if (tools == NULL && known != CHOICE_NONE && known != CHOICE_AUTO)
        return nb_field_refuse(f, "tool_choice", "is given without 'tools'");
    if (word == NULL)
        return find_named(f, choice, tools, out);
    out->kind = tools != NULL ? (choice_kind)known : CHOICE_NONE;
    return NB_OK;
}

/* ---- the schema of a call ---- */

/* References go from the root of a schema, and the tool's own is put deeper into another. Values
 * that are data are left alone. */
static nb_status move_refs(json_t *schema, const char *place, nb_err *err)
{
    size_t i;
    const char *key;
    json_t *v;
    void *next;
    const char *ref = json_string_value(json_object_get(schema, "$ref"));
    if (ref != NULL && ref[0] == '#') {
        nb_buf moved = {0};
        nb_status s = nb_buf_format(&moved, err, "#%s%s", place, ref + 1);
        if (s == NB_OK &&
            json_object_set_new(schema, "$ref", json_stringn((const char *)moved.data, moved.len)))
            s = nb_fail(err, NB_MEMORY, "out of memory for a schema");
        nb_buf_free(&moved);
        NB_TRY(s);
    }
    json_array_foreach(schema, i, v) NB_TRY(move_refs(v, place, err));
    json_object_foreach_safe(schema, next, key, v)
    {
        if (strcmp(key, "enum") != 0 && strcmp(key, "const") != 0 && strcmp(key, "default") != 0 &&
            strcmp(key, "examples") != 0)
            NB_TRY(move_refs(v, place, err));
    }
    return NB_OK;
}

/* {"name": NAME, "arguments": what its parameters allow}; `place` is where it will stand. */
static nb_status call_schema(const json_t *tool, const char *key, const char *place, json_t **out,
                             nb_err *err)
{
    const json_t *parameters = json_object_get(json_object_get(tool, "function"), "parameters");
    json_t *own = json_is_object(parameters) ? json_deep_copy(parameters) : json_object();
    char deep[100];
    snprintf(deep, sizeof deep, "%s/properties/%s", place, key);
    nb_status s = own != NULL ? move_refs(own, deep, err) : NB_MEMORY;
    /* Without parameters there are none; of a schema that says nothing any object will do. */
    if (s == NB_OK && json_object_size(own) == 0 &&
        json_object_set_new(own, "properties", json_object()) != 0)
        s = NB_MEMORY;
    if (s == NB_OK && json_object_get(own, "type") == NULL &&
        json_object_get(own, "$ref") == NULL && json_object_get(own, "properties") != NULL &&
        json_object_set_new(own, "type", json_string("object")) != 0)
        s = NB_MEMORY;
    if (s != NB_OK) {
        json_decref(own);
        return s == NB_MEMORY ? nb_fail(err, s, "out of memory for a schema") : s;
    }
    *out = json_pack("{s:s, s:{s:{s:s}, s:o}, s:[s, s], s:b}", "type", "object", "properties",
                     "name", "const", name_of(tool), key, own, "required", "name", key,
                     "additionalProperties", 0);
    return *out != NULL ? NB_OK : nb_fail(err, NB_MEMORY, "out of memory for a schema");
}

static nb_status any_schema(const json_t *tools, const char *key, json_t **out, nb_err *err)
{
    const size_t n = json_array_size(tools);
    if (n == 1)
        return call_schema(json_array_get(tools, 0), key, "", out, err);
    json_t *any = json_array(), *one;
    nb_status s = any != NULL ? NB_OK : NB_MEMORY;
    for (size_t i = 0; i < n && s == NB_OK; i++) {
        char place[40];
        snprintf(place, sizeof place, "/anyOf/%zu", i);
        s = call_schema(json_array_get(tools, i), key, place, &one, err);
        if (s == NB_OK && json_array_append_new(any, one) != 0)
            s = NB_MEMORY;
    }
    if (s != NB_OK) {
        json_decref(any);
        return s == NB_MEMORY ? nb_fail(err, s, "out of memory for a schema") : s;
    }
    *out = json_pack("{s:o}", "anyOf", any);
    return *out != NULL ? NB_OK : nb_fail(err, NB_MEMORY, "out of memory for a schema");
}

static nb_status require_call(nb_ask *ask, const nb_fields *f, const json_t *tools,
                              tool_choice choice)
{
    const char *key = ask->tool_style == NB_TOOLS_LLAMA3 ? "parameters" : "arguments";
    json_t *schema = NULL;
    if (ask->json_schema != NULL)
        return nb_field_refuse(f, ask->schema_field, "is given, and a call of a tool, too");
    nb_status s = choice.kind == CHOICE_NAMED ? call_schema(json_array_get(tools, choice.named),
                                                            key, "", &schema, &f->why->err)
                                              : any_schema(tools, key, &schema, &f->why->err);
    nb_problem_settle(f->why, s);
    if (s == NB_OK)
        s = nb_ask_schema(ask, f, "tools", schema);
    ask->schema_field = "tools";
    json_decref(schema);
    return s;
}

/* ---- all of it ---- */

nb_status nb_tools_read(nb_ask *ask, const nb_fields *f, const nb_served *m)
{
    json_t *tools;
    tool_choice choice;
    bool parallel = true;
    NB_TRY(nb_tools_list(f, m, &tools));
    NB_TRY(read_choice(f, tools, &choice));
    NB_TRY(nb_field_bool(f, "parallel_tool_calls", &parallel));
    if (choice.kind == CHOICE_NONE)
        return NB_OK; /* not told of them, the model calls none */
    if (m->tool_style == NB_TOOLS_NONE)
        return nb_field_refuse(f, "tools", "is given: this model's chat template knows no tools");
    const bool must = choice.kind != CHOICE_AUTO;
    if (!must && m->tool_style == NB_TOOLS_OTHER)
        return nb_field_refuse(
            f, "tools",
            "is given: how this model writes that it calls one is not known "
            "here; with 'tool_choice' 'required', or a function, it can be told");
    ask->tools = tools;
    ask->max_calls = parallel ? NB_MAX_TOOL_CALLS : 1;
    if (!must && ask->json_schema != NULL)
        return NB_OK; /* what is asked for is no call, though it may know of tools */
    ask->tool_style = m->tool_style;
    ask->must_call = must;
    const int32_t tag = nb_tokenizer_find(m->tokenizer, CALL_TAG, strlen(CALL_TAG));
    if (m->tool_style == NB_TOOLS_HERMES && tag >= 0 && nb_tokenizer_is_special(m->tokenizer, tag))
        ask->options.with_special = true; /* else the tags would not be seen */
    return must ? require_call(ask, f, tools, choice) : NB_OK;
}

nb_status nb_tools_open_call(const nb_ask *ask, const nb_fields *f, const nb_served *m,
                             nb_tokens *out)
{
    static const char BEGINNING[] = CALL_TAG "\n";
    if (!ask->must_call || ask->tool_style != NB_TOOLS_HERMES)
        return NB_OK;
    return nb_problem_settle(
        f->why, nb_tokenizer_encode(m->tokenizer, BEGINNING, sizeof BEGINNING - 1,
                                    (nb_encode_options){.parse_special = true}, out, &f->why->err));
}
