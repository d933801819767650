/* See tokens.h. */
#include "serve/tokens.h"

#include "serve/logprobs.h"
#include "serve/openai.h"
#include "serve/tools.h"

/* Of a text that is only counted, not run: it may be longer than the context. */
#define MAX_TEXT ((size_t)4 << 20)
#define MAX_IDS  ((size_t)1 << 20)

static nb_status encode(const nb_fields *f, const nb_served *m, nb_tokens *ids)
{
    bool add_special = true;
    NB_TRY(nb_field_bool(f, "add_special_tokens", &add_special));
    const char *text = NULL, *name = "prompt";
    size_t len = 0;
    NB_TRY(nb_field_text(f, name, &text, &len));
    if (text == NULL) {
        name = "content";
        add_special = false; /* as llama-server's default for it */
        NB_TRY(nb_field_bool(f, "add_special", &add_special));
        NB_TRY(nb_field_text(f, name, &text, &len));
    }
    if (text == NULL)
        return nb_field_refuse(f, "prompt", "is missing (or 'messages', or 'content')");
    if (len > MAX_TEXT)
        return nb_field_refuse(f, name, "has %zu bytes: up to %zu are possible", len, MAX_TEXT);
    const nb_encode_options how = {.add_bos = add_special, .add_end = add_special};
    return nb_problem_settle(f->why,
                             nb_tokenizer_encode(m->tokenizer, text, len, how, ids, &f->why->err));
}

static void write_ids(const nb_served *m, const nb_tokens *ids, bool with_strings, nb_wire *out)
{
    nb_wire_raw(out, "{\"count\":");
    nb_wire_int(out, ids->n);
    nb_wire_raw(out, ",\"max_model_len\":");
    nb_wire_int(out, m->n_room);
    nb_wire_raw(out, ",\"tokens\":[");
    for (int64_t i = 0; i < ids->n; i++) {
        nb_wire_raw(out, i > 0 ? "," : "");
        nb_wire_int(out, ids->ids[i]);
    }
    nb_wire_raw(out, "]");
    if (with_strings) {
        nb_wire_raw(out, ",\"token_strs\":[");
        for (int64_t i = 0; i < ids->n; i++) {
            nb_wire_raw(out, i > 0 ? "," : "");
            nb_write_token(m->tokenizer, ids->ids[i], out);
        }
        nb_wire_raw(out, "]");
    }
    nb_wire_raw(out, "}");
}

nb_status nb_tokenize(const json_t *request, const nb_served *m, nb_wire *out, nb_problem *why)
{
    if (!json_is_object(request))
        return nb_refuse(why, 400, NULL, "the body is %s, not an object",
                         nb_json_type_name(request));
    const nb_fields f = {request, "", why};
    NB_TRY(nb_ask_model(&f, m));
    bool with_strings = false, open_answer = true;
    NB_TRY(nb_field_bool(&f, "return_token_strs", &with_strings));
    NB_TRY(nb_field_bool(&f, "add_generation_prompt", &open_answer));
    json_t *tools;
    NB_TRY(nb_tools_list(&f, m, &tools));
    nb_tokens ids = {0};
    const nb_status s = nb_field(&f, "messages") != NULL
                            ? nb_openai_messages(&f, m, tools, open_answer, &ids)
                            : encode(&f, m, &ids);
    if (s == NB_OK)
        write_ids(m, &ids, with_strings, out);
    nb_tokens_free(&ids);
    return s;
}

nb_status nb_detokenize(const json_t *request, const nb_served *m, nb_wire *out, nb_problem *why)
{
    if (!json_is_object(request))
        return nb_refuse(why, 400, NULL, "the body is %s, not an object",
                         nb_json_type_name(request));
    const nb_fields f = {request, "", why};
    NB_TRY(nb_ask_model(&f, m));
    json_t *list = NULL;
    NB_TRY(nb_field_array(&f, "tokens", &list));
    if (list == NULL)
        return nb_field_refuse(&f, "tokens", "is missing");
    if (json_array_size(list) > MAX_IDS)
        return nb_field_refuse(&f, "tokens", "has %zu ids: up to %zu are possible",
                               json_array_size(list), MAX_IDS);
    nb_buf text = {0};
    nb_decoder decoder = {0};
    nb_status s = NB_OK;
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        const int64_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id >= m->vocab_size || id >= nb_tokenizer_n_tokens(m->tokenizer)) {
            s = nb_field_refuse(&f, "tokens", "holds something at %zu that is no id from 0 to %lld",
                                i, (long long)m->vocab_size - 1);
            break;
        }
        const int32_t one = (int32_t)id;
        s = nb_problem_settle(why, nb_tokenizer_decode(m->tokenizer, &decoder, &one, 1, true, false,
                                                       &text, &why->err));
        if (s != NB_OK)
            break;
    }
    if (s == NB_OK)
        s = nb_problem_settle(why, nb_tokenizer_decode(m->tokenizer, &decoder, NULL, 0, true, true,
                                                       &text, &why->err));
    if (s == NB_OK) {
        /* Both names: llama-server calls it content. */
        nb_wire_raw(out, "{\"prompt\":");
        nb_wire_string(out, text.data != NULL ? (const char *)text.data : "", text.len);
        nb_wire_raw(out, ",\"content\":");
        nb_wire_string(out, text.data != NULL ? (const char *)text.data : "", text.len);
        nb_wire_raw(out, "}");
    }
    nb_buf_free(&text);
    return s;
}
