/* See tool_style.h. */
#include "serve/tool_style.h"

#include <string.h>

#define NAME "zq_probe"

static const char TOOLS[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"" NAME "\",\"description\":\"Probe.\","
    "\"parameters\":{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\","
    "\"description\":\"Any.\"}},\"required\":[\"a\"]}}}]";
static const char CALL[] = "{\"tool_calls\":[{\"id\":\"call00000\",\"type\":\"function\","
                           "\"function\":{\"name\":\"" NAME "\",\"arguments\":{\"a\":1}}}]}";

/* The text of a conversation, zero-terminated; of none when the template refuses it. */
static nb_status render(const nb_tokenizer *t, const nb_jinja *template_, const json_t *tools,
                        const json_t *call, nb_buf *out, nb_err *err)
{
    const nb_message messages[] = {{.role = "user", .content = "a", .len = 1},
                                   {.role = "assistant", .content = "", .more = call}};
    const nb_conversation talk = {.messages = messages, .n = call != NULL ? 2 : 1, .tools = tools};
    out->len = 0;
    const nb_status s = nb_conversation_render(t, template_, &talk, out, err);
    if (s != NB_OK && s != NB_MEMORY)
        out->len = 0;
    return s == NB_MEMORY ? s : nb_buf_u8(out, 0, err);
}

static bool has(const nb_buf *text, const char *what)
{
    return strstr((const char *)text->data, what) != NULL;
}

static nb_status look(const nb_tokenizer *t, const nb_jinja *template_, const json_t *tools,
                      const json_t *call, nb_buf *text, nb_tool_style *out, nb_err *err)
{
    NB_TRY(render(t, template_, tools, NULL, text, err));
    if (!has(text, NAME))
        return NB_OK;
    *out = has(text, "<tool_call>") ? NB_TOOLS_HERMES : NB_TOOLS_OTHER;
    if (*out == NB_TOOLS_HERMES)
        return NB_OK;
    NB_TRY(render(t, template_, tools, call, text, err));
    if (has(text, "<tool_call>"))
        *out = NB_TOOLS_HERMES;
    else if (has(text, "{\"name\": \"" NAME "\", \"parameters\": "))
        *out = NB_TOOLS_LLAMA3;
    return NB_OK;
}

nb_status nb_tool_style_of(const nb_tokenizer *t, const nb_jinja *template_, nb_tool_style *out,
                           nb_err *err)
{
    *out = NB_TOOLS_NONE;
    if (template_ == NULL)
        return NB_OK;
    json_t *tools = NULL, *call = NULL;
    nb_buf text = {0};
    nb_status s = nb_json_parse(&tools, TOOLS, sizeof TOOLS - 1, err);
    if (s == NB_OK)
        s = nb_json_parse(&call, CALL, sizeof CALL - 1, err);
    if (s == NB_OK)
        s = look(t, template_, tools, call, &text, out, err);
    json_decref(tools);
    json_decref(call);
    nb_buf_free(&text);
    return s;
}
