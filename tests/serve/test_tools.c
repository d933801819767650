/* Tools of a chat: how a template shows that its model calls them, what a request may say of them,
 * what reaches the template, and how calls are answered, as a whole and in a stream. */
#define _GNU_SOURCE
#include "scene.h"

#include "engine/json_schema.h"
#include "serve/openai.h"
#include "serve/tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TURNS(calls)                                                                               \
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"                      \
    "{% for c in m.tool_calls %}" calls "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"             \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
#define TOOLS(how)                                                                                 \
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"   \
    "{{ '" how "<|im_end|>\n' }}{% endif %}"

static const char HERMES[] =
    TOOLS("Call as <tool_call>.") TURNS("{{ '<tool_call>\n{\"name\": \"' + c.function.name + "
                                        "'\", \"arguments\": ' }}{{ c.function.arguments | tojson "
                                        "}}{{ '}\n</tool_call>' }}");
static const char LLAMA3[] =
    TOOLS("Call as JSON.") TURNS("{{ '{\"name\": \"' + c.function.name + '\", ' }}"
                                 "{{ '\"parameters\": ' }}{{ c.function.arguments | tojson }}}");
static const char OTHER[] = TOOLS("Call.") TURNS("{{ '[CALL]' + c.function.name }}");
static const char PLAIN[] = TURNS("");
static const char RAISES[] =
    "{% if tools is defined %}{{ raise_exception('no tools') }}{% endif %}" TURNS("");

static void use_template(scene *s, const char *text)
{
    nb_err err = {0};
    nb_jinja_free(s->template_);
    assert_int_equal(nb_jinja_parse(&s->template_, text, strlen(text), &err), NB_OK);
    s->served.template_ = s->template_;
    assert_int_equal(nb_tool_style_of(s->tokenizer, s->template_, &s->served.tool_style, &err),
                     NB_OK);
}

static void templates_show_how_tools_are_called(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        nb_tool_style want;
    } CASES[] = {{HERMES, NB_TOOLS_HERMES}, {LLAMA3, NB_TOOLS_LLAMA3},
                 {OTHER, NB_TOOLS_OTHER},   {PLAIN, NB_TOOLS_NONE},
                 {RAISES, NB_TOOLS_NONE},   {"{{ 1 / 0 }}", NB_TOOLS_NONE}};
    scene s;
    scene_open_parts(&s, NULL);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        use_template(&s, CASES[i].text);
        assert_int_equal(s.served.tool_style, CASES[i].want);
    }
    nb_tool_style style = NB_TOOLS_HERMES;
    nb_err err = {0};
    assert_int_equal(nb_tool_style_of(s.tokenizer, NULL, &style, &err), NB_OK);
    assert_int_equal(style, NB_TOOLS_NONE);
    use_template(&s, LLAMA3);
    const int64_t live = nb_alloc_live();
    nb_status status = NB_MEMORY;
    for (int at = 1; status != NB_OK; at++) {
        nb_alloc_fail_at(at);
        status = nb_tool_style_of(s.tokenizer, s.template_, &style, &err);
        nb_alloc_fail_at(0);
        assert_true(status == NB_OK || status == NB_MEMORY);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_int_equal(style, NB_TOOLS_LLAMA3);
    scene_close(&s);
}

/* ---- what is read ---- */

#define F     "{\"type\":\"function\",\"function\":{\"name\":\"f\"}}"
#define USER  "\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]"
#define CALLS "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":"

static nb_status read_chat(const scene *s, const char *text, nb_ask *ask, nb_problem *why)
{
    nb_err err = {0};
    json_t *json;
    if (nb_json_parse(&json, text, strlen(text), &err) != NB_OK)
        fail_msg("%s: %s", err.text, text);
    nb_ask_init(ask, NB_ASK_CHAT, json);
    *why = (nb_problem){0};
    return nb_openai_read_chat(ask, &s->served, why);
}

static void expect_read(const scene *s, const char *fields, const char *param)
{
    char text[2000];
    nb_ask ask;
    nb_problem why;
    snprintf(text, sizeof text, "{%s}", fields);
    const nb_status status = read_chat(s, text, &ask, &why);
    if ((status == NB_OK) != (param == NULL))
        fail_msg("%s: %s", text, why.err.text);
    if (param != NULL && (why.http != 400 || strcmp(why.param, param) != 0))
        fail_msg("%s: %d, %s: %s", text, why.http, why.param, why.err.text);
    nb_ask_free(&ask);
}

static void requests_say_what_may_be_called(void **state)
{
    (void)state;
    static const struct {
        const char *fields, *param; /* NULL: fine */
    } CASES[] = {
        {"\"tools\":[" F "]", NULL},
        {"\"tools\":null,\"tool_choice\":null,\"parallel_tool_calls\":null", NULL},
        {"\"tools\":[" F "],\"tool_choice\":\"auto\",\"parallel_tool_calls\":false", NULL},
        {"\"tools\":[" F "],\"tool_choice\":\"required\"", NULL},
        {"\"tools\":[" F "],\"tool_choice\":" F, NULL},
        {"\"tool_choice\":\"none\"", NULL},
        {"\"tool_choice\":\"auto\"", NULL},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":null,"
         "\"parameters\":null,\"strict\":true}}]",
         NULL},
        {"\"tools\":[]", "tools"},
        {"\"tools\":{}", "tools"},
        {"\"tools\":\"f\"", "tools"},
        {"\"tools\":[1]", "tools"},
        {"\"tools\":[{}]", "tools"},
        {"\"tools\":[{\"type\":\"function\"}]", "tools"},
        {"\"tools\":[{\"type\":\"search\",\"function\":{\"name\":\"f\"}}]", "tools"},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"\"}}]", "tools"},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":7}}]", "tools"},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":1}}]",
         "tools"},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":[]}}]",
         "tools"},
        {"\"tools\":[" F "],\"tool_choice\":\"some\"", "tool_choice"},
        {"\"tools\":[" F "],\"tool_choice\":1", "tool_choice"},
        {"\"tools\":[" F "],\"tool_choice\":{}", "tool_choice"},
        {"\"tools\":[" F "],\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"g\"}}",
         "tool_choice"},
        {"\"tool_choice\":\"required\"", "tool_choice"},
        {"\"tool_choice\":" F, "tool_choice"},
        {"\"tools\":[" F "],\"parallel_tool_calls\":1", "parallel_tool_calls"},
        {"\"tools\":[" F "],\"tool_choice\":\"required\",\"response_format\":"
         "{\"type\":\"json_object\"}",
         "response_format"},
        {"\"tools\":[" F "],\"response_format\":{\"type\":\"json_object\"}", NULL},
    };
    scene s;
    scene_open_parts(&s, NULL);
    use_template(&s, HERMES);
    char fields[1000];
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        snprintf(fields, sizeof fields, USER ",%s", CASES[i].fields);
        expect_read(&s, fields, CASES[i].param);
    }
    use_template(&s, OTHER);
    expect_read(&s, USER ",\"tools\":[" F "]", "tools");
    expect_read(&s, USER ",\"tools\":[" F "],\"tool_choice\":\"required\"", NULL);
    use_template(&s, PLAIN);
    expect_read(&s, USER ",\"tools\":[" F "]", "tools");
    expect_read(&s, USER ",\"tools\":[" F "],\"tool_choice\":\"required\"", "tools");
    expect_read(&s, USER ",\"tools\":[" F "],\"tool_choice\":\"none\"", NULL);
    /* Too many, and too long. */
    use_template(&s, HERMES);
    char *text = malloc(1 << 20);
    assert_non_null(text);
    nb_ask ask;
    nb_problem why;
    for (int over = 0; over < 2; over++) {
        size_t n = (size_t)sprintf(text, "{" USER ",\"tools\":[");
        for (int i = 0; i < NB_ASK_MAX_TOOLS + over; i++)
            n += (size_t)sprintf(text + n, "%s" F, i > 0 ? "," : "");
        sprintf(text + n, "],\"tool_choice\":\"none\"}");
        assert_int_equal(read_chat(&s, text, &ask, &why) == NB_OK, over == 0);
        nb_ask_free(&ask);
    }
    sprintf(text,
            "{" USER ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\","
            "\"description\":\"%0*d\"}}]}",
            SCENE_CTX * NB_ASK_MAX_BYTES_PER_TOKEN, 0);
    assert_int_not_equal(read_chat(&s, text, &ask, &why), NB_OK);
    assert_string_equal(why.code, "context_length_exceeded");
    nb_ask_free(&ask);
    free(text);
    scene_close(&s);
}

/* ---- what reaches the template ---- */

/* The prompt of a chat, its special tokens in angle brackets. */
static char *prompt_of(const nb_ask *ask)
{
    const nb_tokens *t = &ask->prompts[0].tokens;
    char *text = calloc((size_t)t->n + 1, 4);
    assert_non_null(text);
    char *p = text;
    for (int64_t i = 0; i < t->n; i++) {
        if (t->ids[i] < 256)
            *p++ = (char)t->ids[i];
        else
            p += sprintf(p, t->ids[i] == SCENE_START ? "<S>" : "<E>");
    }
    return text;
}

static void expect_prompt(const scene *s, const char *fields, const char *want)
{
    char text[2000];
    nb_ask ask;
    nb_problem why;
    snprintf(text, sizeof text, "{%s}", fields);
    if (read_chat(s, text, &ask, &why) != NB_OK)
        fail_msg("%s: %s", text, why.err.text);
    char *got = prompt_of(&ask);
    assert_string_equal(got, want);
    free(got);
    nb_ask_free(&ask);
}

static void tools_and_calls_reach_the_template(void **state)
{
    (void)state;
    static const char SYSTEM[] = "<S>system\n{\"type\": \"function\", \"function\": {\"name\": "
                                 "\"f\"}}Call as <tool_call>.<E>\n<S>user\na<E>\n<S>assistant\n";
    scene s;
    char want[1000];
    scene_open_parts(&s, NULL);
    use_template(&s, HERMES);
    expect_prompt(&s, USER ",\"tools\":[" F "]", SYSTEM);
    expect_prompt(&s, USER ",\"tools\":[" F "],\"tool_choice\":\"none\"",
                  "<S>user\na<E>\n<S>assistant\n");
    /* Where a call is a must, its beginning is given. */
    snprintf(want, sizeof want, "%s<tool_call>\n", SYSTEM);
    expect_prompt(&s, USER ",\"tools\":[" F "],\"tool_choice\":\"required\"", want);
    expect_prompt(&s,
                  "\"messages\":[{\"role\":\"user\",\"content\":\"a\"}," CALLS
                  "[{\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":\"f\","
                  "\"arguments\":\"{\\\"x\\\": [1, \\\"<|im_end|>\\\"]}\"}},"
                  "{\"function\":{\"name\":\"g\",\"arguments\":\"\"}}]},"
                  "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"7\"}]",
                  "<S>user\na<E>\n<S>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": "
                  "{\"x\": [1, \"<|im_end|>\"]}}\n</tool_call><tool_call>\n{\"name\": \"g\", "
                  "\"arguments\": {}}\n</tool_call><E>\n<S>tool\n7<E>\n<S>assistant\n");
    use_template(&s, LLAMA3);
    expect_prompt(&s, USER ",\"tools\":[" F "],\"tool_choice\":" F,
                  "<S>system\n{\"type\": \"function\", \"function\": {\"name\": \"f\"}}Call as "
                  "JSON.<E>\n<S>user\na<E>\n<S>assistant\n");
    static const char *const BAD[] = {"1",
                                      "{}",
                                      "\"f\"",
                                      "[1]",
                                      "[{}]",
                                      "[{\"function\":1}]",
                                      "[{\"function\":{\"name\":1}}]",
                                      "[{\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]",
                                      "[{\"function\":{\"name\":\"f\",\"arguments\":\"[]\"}}]",
                                      "[{\"function\":{\"name\":\"f\",\"arguments\":7}}]"};
    char fields[400];
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        snprintf(fields, sizeof fields, "\"messages\":[" CALLS "%s}]", BAD[i]);
        expect_read(&s, fields, "messages");
    }
    expect_read(&s, "\"messages\":[" CALLS "[]}]", NULL);
    expect_read(&s, "\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"name\":1}]", "messages");
    expect_read(&s, "\"messages\":[{\"role\":\"tool\",\"content\":\"a\",\"tool_call_id\":[]}]",
                "messages");
    /* /tokenize counts the same. */
    static const char ASKED[] = "{" USER ",\"tools\":[" F "]}";
    nb_err err = {0};
    nb_problem why = {0};
    nb_wire w = {0};
    json_t *json;
    use_template(&s, HERMES);
    assert_int_equal(nb_json_parse(&json, ASKED, sizeof ASKED - 1, &err), NB_OK);
    assert_int_equal(nb_tokenize(json, &s.served, &w, &why), NB_OK);
    const int count = (int)strlen(SYSTEM) - 4 * 2 - 2; /* five special tokens of three bytes */
    snprintf(want, sizeof want, "{\"count\":%d,", count);
    assert_memory_equal(w.buf.data, want, strlen(want));
    nb_wire_free(&w);
    json_decref(json);
    scene_close(&s);
}

/* ---- the schema of a call ---- */

static void a_call_that_is_a_must_has_a_schema(void **state)
{
    (void)state;
    static const char POINT[] =
        "{\"type\":\"function\",\"function\":{\"name\":\"at\",\"parameters\":{\"type\":\"object\","
        "\"properties\":{\"p\":{\"$ref\":\"#/$defs/point\"},\"all\":{\"$ref\":\"#\"}},"
        "\"required\":[\"p\"],"
        "\"$defs\":{\"point\":{\"type\":\"integer\"}}}}}";
    static const struct {
        const char *tools, *choice, *want;
    } CASES[] = {
        {F, "\"required\"",
         "{\"type\":\"object\",\"properties\":{\"name\":{\"const\":\"f\"},\"arguments\":"
         "{\"properties\":{},\"type\":\"object\"}},\"required\":[\"name\",\"arguments\"],"
         "\"additionalProperties\":false}"},
        {POINT, "{\"type\":\"function\",\"function\":{\"name\":\"at\"}}",
         "{\"type\":\"object\",\"properties\":{\"name\":{\"const\":\"at\"},\"arguments\":"
         "{\"type\":\"object\",\"properties\":{\"p\":{\"$ref\":"
         "\"#/properties/arguments/$defs/point\"},\"all\":{\"$ref\":\"#/properties/arguments\"}},"
         "\"required\":[\"p\"],\"$defs\":{\"point\":"
         "{\"type\":\"integer\"}}}},\"required\":[\"name\",\"arguments\"],"
         "\"additionalProperties\":false}"},
        {NULL, "\"required\"", "#/anyOf/1/properties/arguments/$defs/point"},
    };
    scene s;
    scene_open_parts(&s, NULL);
    use_template(&s, HERMES);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char text[3000];
        nb_ask ask;
        nb_problem why;
        if (CASES[i].tools != NULL)
            snprintf(text, sizeof text, "{" USER ",\"tools\":[%s],\"tool_choice\":%s}",
                     CASES[i].tools, CASES[i].choice);
        else
            snprintf(text, sizeof text, "{" USER ",\"tools\":[" F ",%s],\"tool_choice\":%s}", POINT,
                     CASES[i].choice);
        if (read_chat(&s, text, &ask, &why) != NB_OK)
            fail_msg("%s: %s", text, why.err.text);
        if (CASES[i].tools != NULL) {
            json_t *got = json_loads(ask.json_schema, 0, NULL);
            json_t *want = json_loads(CASES[i].want, 0, NULL);
            assert_true(got != NULL && json_equal(got, want));
            json_decref(got);
            json_decref(want);
        } else {
            assert_non_null(strstr(ask.json_schema, CASES[i].want));
        }
        /* It is one that the engine knows. */
        nb_json_schema *compiled;
        nb_err err = {0};
        if (nb_json_schema_compile(&compiled, ask.json_schema, strlen(ask.json_schema), &err) !=
            NB_OK)
            fail_msg("%s: %s", ask.json_schema, err.text);
        nb_json_schema_free(compiled);
        nb_ask_free(&ask);
    }
    scene_close(&s);
}

static void memory_may_fail_anywhere(void **state)
{
    (void)state;
    static const char TEXT[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"name\":\"me\"}," CALLS
        "[{\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":"
        "\"{\\\"x\\\":1}\"}}]}],\"tools\":[" F "," F "],\"tool_choice\":\"required\"}";
    scene s;
    scene_open_parts(&s, NULL);
    use_template(&s, HERMES);
    const int64_t live = nb_alloc_live();
    nb_status status = NB_MEMORY;
    int at = 1;
    for (; status != NB_OK; at++) {
        nb_ask ask;
        nb_problem why;
        nb_reply reply = {0};
        nb_err err = {0};
        nb_alloc_fail_at(at);
        status = read_chat(&s, TEXT, &ask, &why);
        assert_true(status == NB_OK || why.http == 503);
        if (status == NB_OK)
            status = nb_reply_init(&reply, &ask, 1000, &err);
        nb_alloc_fail_at(0);
        nb_reply_free(&reply);
        nb_ask_free(&ask);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(at > 10);
    scene_close(&s);
}

/* ---- answers ---- */

static json_t *post(const scene *s, const char *body, int status)
{
    char *answer = scene_ask(s, "POST", "/v1/chat/completions", "", body);
    if (scene_status(answer) != status)
        fail_msg("%s: %s", body, answer);
    json_t *v = scene_json(answer);
    free(answer);
    return v;
}

/* content|name(arguments)... of a message, or of a stream's deltas put together, and why it ended.
 */
typedef struct {
    char content[500], calls[4][500], finish[20], ids[4][40];
    bool null_content;
    int n_calls;
} told;

static void add_delta(told *t, const json_t *message, bool stream)
{
    size_t i;
    json_t *call;
    const json_t *content = json_object_get(message, "content");
    t->null_content = json_is_null(content);
    if (json_is_string(content))
        strcat(t->content, json_string_value(content));
    json_array_foreach(json_object_get(message, "tool_calls"), i, call)
    {
        const json_t *f = json_object_get(call, "function");
        const int at = stream ? (int)json_integer_value(json_object_get(call, "index")) : (int)i;
        assert_true(at <= t->n_calls && at < 4);
        if (at == t->n_calls) {
            t->n_calls++;
            assert_string_equal(json_string_value(json_object_get(call, "type")), "function");
            strcpy(t->ids[at], json_string_value(json_object_get(call, "id")));
            sprintf(t->calls[at], "%s(", json_string_value(json_object_get(f, "name")));
        } else {
            assert_null(json_object_get(call, "id"));
            assert_null(json_object_get(f, "name"));
        }
        strcat(t->calls[at], json_string_value(json_object_get(f, "arguments")));
    }
}

static void ask_whole(const scene *s, const char *body, told *t)
{
    memset(t, 0, sizeof *t);
    json_t *v = post(s, body, 200);
    const json_t *c = json_array_get(json_object_get(v, "choices"), 0);
    const json_t *message = json_object_get(c, "message");
    assert_string_equal(json_string_value(json_object_get(message, "role")), "assistant");
    add_delta(t, message, false);
    strcpy(t->finish, json_string_value(json_object_get(c, "finish_reason")));
    json_decref(v);
}

static void ask_stream(const scene *s, const char *body, told *t)
{
    memset(t, 0, sizeof *t);
    char *answer = scene_ask(s, "POST", "/v1/chat/completions", "", body);
    assert_int_equal(scene_status(answer), 200);
    char *p = scene_body(answer), *end;
    for (; strncmp(p, "data: [DONE]", 12) != 0; p = end + 2) {
        end = strstr(p, "\n\n");
        assert_true(end != NULL && strncmp(p, "data: ", 6) == 0);
        nb_err err = {0};
        json_t *v;
        assert_int_equal(nb_json_parse(&v, p + 6, (size_t)(end - p - 6), &err), NB_OK);
        const json_t *c = json_array_get(json_object_get(v, "choices"), 0);
        add_delta(t, json_object_get(c, "delta"), true);
        if (json_is_string(json_object_get(c, "finish_reason")))
            strcpy(t->finish, json_string_value(json_object_get(c, "finish_reason")));
        json_decref(v);
    }
    free(answer);
}

static void calls_are_answered(void **state)
{
    (void)state;
    static const struct {
        const char *says, *more, *content, *finish, *calls[3];
    } CASES[] = {
        {"<tool_call>\\n{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": {\\\"a\\\": \\\"b "
         "\\u00e9\\\"}}"
         "\\n</tool_call>",
         "",
         "",
         "tool_calls",
         {"f({\"a\": \"b \xC3\xA9\"}"}},
        {"Look: <tool_call>{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": {}}</tool_call>\\n"
         "<tool_call>{\\\"name\\\": \\\"g\\\", \\\"arguments\\\": {\\\"x\\\": 1}}</tool_call>",
         "",
         "Look:",
         "tool_calls",
         {"f({}", "g({\"x\": 1}"}},
        {"<tool_call>{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": {}}</tool_call>"
         "<tool_call>{\\\"name\\\": \\\"g\\\", \\\"arguments\\\": {}}</tool_call>",
         ",\"parallel_tool_calls\":false",
         "",
         "tool_calls",
         {"f({}"}},
        {"No <tool> is <needed.", "", "No <tool> is <needed.", "stop", {NULL}},
        {"<tool_call>{broken}</tool_call>", "", "<tool_call>{broken}</tool_call>", "stop", {NULL}},
        {"<tool_call>{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": {\\\"a\\\": 12345}}</tool_call>",
         ",\"max_tokens\":45",
         "",
         "length",
         {"f({\"a\": 1"}},
        {"{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": {\\\"a\\\": 1}}",
         ",\"tool_choice\":\"required\"",
         "",
         "tool_calls",
         {"f({\"a\": 1}"}},
        {"<tool_call>{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": {}}</tool_call>",
         ",\"tool_choice\":\"none\"",
         "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
         "stop",
         {NULL}},
    };
    scene s;
    scene_open(&s, NULL, NULL);
    use_template(&s, HERMES);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
        for (int stream = 0; stream < 2; stream++) {
            char body[1500];
            told t;
            snprintf(body, sizeof body,
                     "{\"messages\":[{\"role\":\"user\",\"content\":\"!say %s!end\"}],\"tools\":[" F
                     "]%s%s}",
                     CASES[i].says, CASES[i].more, stream ? ",\"stream\":true" : "");
            if (stream)
                ask_stream(&s, body, &t);
            else
                ask_whole(&s, body, &t);
            assert_string_equal(t.content, CASES[i].content);
            assert_string_equal(t.finish, CASES[i].finish);
            int n = 0;
            for (; n < 3 && CASES[i].calls[n] != NULL; n++) {
                assert_string_equal(t.calls[n], CASES[i].calls[n]);
                assert_int_equal(strncmp(t.ids[n], "call_", 5), 0);
            }
            assert_int_equal(t.n_calls, n);
            if (!stream)
                assert_int_equal(t.null_content, n > 0 && t.content[0] == 0);
        }
    scene_close(&s);
}

/* A stream tells of a call while it is written: of content at once, of a call when its arguments
 * begin, of these as they come, and of nothing while it is open what a text will be. */
static void a_stream_tells_what_is_certain(void **state)
{
    (void)state;
    static const struct {
        const char *text, *holds; /* "" is no event at all */
    } STEPS[] = {
        {"Well", "\"content\":\"Well\""},
        {"\n<tool", ""},
        {"_call>\n{\"na", ""},
        {"me\": \"f\",", ""},
        {" \"arguments\": {", "\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]}"},
        {"\"a\": ",
         "{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"\\\"a\\\": \"}}]}"},
        {"1}", "{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"1}\"}}]}"},
        {"}\n", ""},
        {"</tool_call>", ""},
        {NULL, "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"tool_calls\""},
    };
    scene s;
    nb_ask ask;
    nb_problem why;
    nb_reply reply;
    nb_err err = {0};
    scene_open_parts(&s, NULL);
    use_template(&s, HERMES);
    assert_int_equal(read_chat(&s, "{" USER ",\"tools\":[" F "],\"stream\":true}", &ask, &why),
                     NB_OK);
    assert_int_equal(nb_reply_init(&reply, &ask, 1000, &err), NB_OK);
    for (size_t i = 0; i < sizeof STEPS / sizeof *STEPS; i++) {
        nb_wire out = {0};
        const bool over = STEPS[i].text == NULL;
        const nb_engine_event e = {.prompt_at = -1,
                                   .id = 'a',
                                   .text = over ? "" : STEPS[i].text,
                                   .len = over ? 0 : strlen(STEPS[i].text),
                                   .finish = over ? NB_FINISH_STOP : NB_NOT_FINISHED,
                                   .stop_id = -1,
                                   .n_made = (int64_t)i + 1};
        assert_true(nb_reply_put(&reply, 0, &e));
        assert_int_equal(nb_openai_write_events(&ask, &s.served, &reply, &out), over);
        nb_wire_bytes(&out, "", 1);
        const char *got = (const char *)out.buf.data;
        if (STEPS[i].holds[0] == 0 ? got[0] != 0 : strstr(got, STEPS[i].holds) == NULL)
            fail_msg("after '%s': %s", over ? "the end" : STEPS[i].text, got);
        nb_wire_free(&out);
    }
    nb_reply_free(&reply);
    nb_ask_free(&ask);
    scene_close(&s);
}

/* With logprobs every token is told of, though its text is held back. */
static void logprobs_go_on_within_a_call(void **state)
{
    (void)state;
    static const char BODY[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"!say <tool_call>{\\\"name\\\": \\\"f\\\", "
        "\\\"arguments\\\": {}}</tool_call>!end\"}],\"tools\":[" F "],\"logprobs\":true}";
    scene s;
    scene_open(&s, NULL, NULL);
    use_template(&s, HERMES);
    json_t *v = post(&s, BODY, 200);
    const json_t *c = json_array_get(json_object_get(v, "choices"), 0);
    assert_int_equal(json_array_size(json_object_get(json_object_get(c, "logprobs"), "content")),
                     (size_t)json_integer_value(
                         json_object_get(json_object_get(v, "usage"), "completion_tokens")));
    json_decref(v);
    scene_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates_show_how_tools_are_called),
        cmocka_unit_test(requests_say_what_may_be_called),
        cmocka_unit_test(tools_and_calls_reach_the_template),
        cmocka_unit_test(a_call_that_is_a_must_has_a_schema),
        cmocka_unit_test(memory_may_fail_anywhere),
        cmocka_unit_test(calls_are_answered),
        cmocka_unit_test(a_stream_tells_what_is_certain),
        cmocka_unit_test(logprobs_go_on_within_a_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
