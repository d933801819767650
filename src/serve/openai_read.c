/* See openai.h: requests. The table of fields, with the rule of each, is in docs/serving.md. */
#include "serve/openai.h"
#include "serve/tools.h"

#include <stdio.h>
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
    ask->schema_field = "response_format";
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

/* vLLM's older and newer names. What cannot be held to is refused: an answer that looks as if it
 * had been would be worse. */
static nb_status read_guided(nb_ask *ask, const nb_fields *f)
{
    static const char *const OTHERS[] = {"regex", "choice", "grammar", "structural_tag"};
    json_t *outputs = NULL;
    NB_TRY(nb_field_object(f, "structured_outputs", &outputs));
    const nb_fields inner = {outputs, "structured_outputs.", f->why};
    for (size_t i = 0; i < sizeof OTHERS / sizeof *OTHERS; i++) {
        char old[40];
        snprintf(old, sizeof old, "guided_%s", OTHERS[i]);
        if (nb_field(f, old) != NULL)
            return nb_field_refuse(f, old, "is given: an answer can be held to JSON alone");
        if (outputs != NULL && nb_field(&inner, OTHERS[i]) != NULL)
            return nb_field_refuse(&inner, OTHERS[i],
                                   "is given: an answer can be held to JSON alone");
    }
    const bool is_new = outputs != NULL && nb_field(&inner, "json") != NULL;
    const json_t *schema = is_new ? nb_field(&inner, "json") : nb_field(f, "guided_json");
    bool any = false;
    if (outputs != NULL)
        NB_TRY(nb_field_bool(&inner, "json_object", &any));
    if (schema == NULL && !any)
        return NB_OK;
    const char *name = is_new || any ? "structured_outputs" : "guided_json";
    if (ask->json_schema != NULL || (is_new && nb_field(f, "guided_json") != NULL) ||
        (schema != NULL && any))
        return nb_field_refuse(f, name, "is given beside another schema");
    ask->schema_field = name;
    if (any) {
        ask->json_schema = "{\"type\":\"object\"}";
        return NB_OK;
    }
    if (json_is_object(schema))
        return nb_ask_schema(ask, f, name, schema);
    if (!json_is_string(schema))
        return nb_field_wrong(f, name, schema, "a schema, or one as a string");
    if (json_string_length(schema) > NB_ASK_MAX_SCHEMA)
        return nb_field_refuse(f, name, "has more than %zu bytes", NB_ASK_MAX_SCHEMA);
    ask->json_schema = json_string_value(schema);
    return NB_OK;
}

static nb_status read_common(nb_ask *ask, const nb_fields *f, const nb_served *m)
{
    NB_TRY(nb_ask_model(f, m));
    NB_TRY(nb_ask_sampling(ask, f, m));
    NB_TRY(nb_ask_seed(ask, f, "seed"));
    NB_TRY(read_stream(ask, f));
    NB_TRY(read_format(ask, f));
    NB_TRY(read_guided(ask, f));
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
    NB_TRY(nb_ask_prompts(ask, &f, "prompt", m, prompt, (nb_encode_options){.add_bos = add_bos}));
    /* An engine generates: the one token that nobody asked for is left out of the answer. */
    ask->no_answer = max_tokens == 0;
    return nb_ask_fit(ask, &f, "max_tokens", m, max_tokens == 0 ? 1 : max_tokens, min_tokens);
}

/* ---- /v1/chat/completions ---- */

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
    NB_TRY(nb_tools_read(ask, &f, m));
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
    NB_TRY(nb_openai_messages(&f, m, ask->tools, open_answer, &ask->prompts[0].tokens));
    NB_TRY(nb_tools_open_call(ask, &f, m, &ask->prompts[0].tokens));
    return nb_ask_fit(ask, &f, name, m, max_tokens, min_tokens);
}
