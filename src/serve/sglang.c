/* See sglang.h. */
#include "serve/sglang.h"

#include "base/clock.h"
#include "serve/logprobs.h"

#include <stdio.h>
#include <string.h>

/* ---- requests ---- */

static nb_status read_params(nb_ask *ask, const nb_fields *f, const nb_served *m,
                             int64_t *max_tokens, int64_t *min_tokens)
{
    NB_TRY(nb_ask_sampling(ask, f, m));
    NB_TRY(nb_ask_seed(ask, f, "sampling_seed"));
    NB_TRY(nb_field_int(f, "max_new_tokens", 1, INT32_MAX, max_tokens));
    NB_TRY(nb_field_int(f, "min_new_tokens", 0, INT32_MAX, min_tokens));
    NB_TRY(nb_field_bool(f, "no_stop_trim", &ask->include_stop));
    static const char *const GRAMMARS[] = {"regex", "ebnf", "structural_tag"};
    for (size_t i = 0; i < sizeof GRAMMARS / sizeof *GRAMMARS; i++)
        if (nb_field(f, GRAMMARS[i]) != NULL)
            return nb_field_refuse(f, GRAMMARS[i],
                                   "is given: of grammars only 'json_schema' is "
                                   "possible");
    const json_t *schema = nb_field(f, "json_schema");
    if (schema == NULL)
        return NB_OK;
    if (!json_is_string(schema))
        return nb_field_wrong(f, "json_schema", schema, "a string that holds JSON");
    if (json_string_length(schema) > NB_ASK_MAX_SCHEMA)
        return nb_field_refuse(f, "json_schema", "has more than %zu bytes", NB_ASK_MAX_SCHEMA);
    ask->json_schema = json_string_value(schema);
    ask->schema_field = "sampling_params.json_schema";
    return NB_OK;
}

static nb_status read_logprobs(nb_ask *ask, const nb_fields *f)
{
    int64_t top = 0;
    NB_TRY(nb_field_bool(f, "return_logprob", &ask->options.logprobs));
    NB_TRY(nb_field_int(f, "top_logprobs_num", 0, NB_MAX_LOGPROBS, &top));
    NB_TRY(nb_field_int(f, "logprob_start_len", -1, INT32_MAX, &ask->logprob_start));
    ask->options.n_top = ask->options.logprobs ? (int)top : 0;
    ask->prompt_logprobs = ask->options.logprobs && ask->logprob_start >= 0;
    return NB_OK;
}

nb_status nb_sglang_read(nb_ask *ask, const nb_served *m, nb_problem *why)
{
    if (!json_is_object(ask->json))
        return nb_refuse(why, 400, NULL, "the body is %s, not an object",
                         nb_json_type_name(ask->json));
    const nb_fields f = {ask->json, "", why};
    json_t *params = NULL;
    NB_TRY(nb_field_object(&f, "sampling_params", &params));
    json_t *none = json_object();
    if (none == NULL)
        return nb_problem_settle(why, nb_fail(&why->err, NB_MEMORY, "out of memory"));
    const nb_fields inner = {params != NULL ? params : none, "sampling_params.", why};
    int64_t max_tokens = 128, min_tokens = 0;
    const nb_status s = read_params(ask, &inner, m, &max_tokens, &min_tokens);
    json_decref(none);
    NB_TRY(s);
    NB_TRY(nb_field_bool(&f, "stream", &ask->stream));
    NB_TRY(read_logprobs(ask, &f));
    const char *rid = NULL;
    size_t len = 0;
    NB_TRY(nb_field_text(&f, "rid", &rid, &len));
    if (len >= sizeof ask->id)
        return nb_field_refuse(&f, "rid", "has %zu bytes: up to %zu are possible", len,
                               sizeof ask->id - 1);
    if (len > 0)
        memcpy(ask->id, rid, len + 1);
    const json_t *text = nb_field(&f, "text"), *ids = nb_field(&f, "input_ids");
    if ((text == NULL) == (ids == NULL))
        return nb_field_refuse(&f, "text", "or 'input_ids' has to be given, and only one of them");
    const json_t *first = text != NULL && json_is_array(text) ? json_array_get(text, 0) : text;
    if (text != NULL && first != NULL && !json_is_string(first))
        return nb_field_refuse(&f, "text", "is no string and no array of strings");
    if (ids != NULL && !json_is_array(ids))
        return nb_field_wrong(&f, "input_ids", ids, "an array of token ids");
    if (ids != NULL && json_is_string(json_array_get(ids, 0)))
        return nb_field_refuse(&f, "input_ids", "holds a string, not a token id");
    NB_TRY(nb_ask_prompts(ask, &f, text != NULL ? "text" : "input_ids", m,
                          text != NULL ? text : ids, (nb_encode_options){.add_bos = true}));
    return nb_ask_fit(ask, &f, "sampling_params.max_new_tokens", m, max_tokens, min_tokens);
}

/* ---- answers ---- */

/* [[logprob, id, text or null], ...] of rows, from number `first`. */
static void write_triples(const nb_served *m, const nb_rows *rows, int64_t first, int64_t width,
                          nb_wire *out)
{
    nb_wire_raw(out, "[");
    for (int64_t i = first; i < rows->n; i++) {
        const nb_logprob *lp = rows->logprobs + i * width;
        nb_wire_raw(out, i > first ? ",[" : "[");
        if (lp[0].id < 0)
            nb_wire_raw(out, "null");
        else
            nb_wire_real(out, (double)lp[0].logprob);
        nb_wire_raw(out, ",");
        nb_wire_int(out, rows->ids[i]);
        nb_wire_raw(out, ",");
        nb_write_token(m->tokenizer, rows->ids[i], out);
        nb_wire_raw(out, "]");
    }
    nb_wire_raw(out, "]");
}

/* The same of the likeliest: a list for each row. */
static void write_tops(const nb_served *m, const nb_rows *rows, int64_t first, int64_t width,
                       nb_wire *out)
{
    nb_wire_raw(out, "[");
    for (int64_t i = first; i < rows->n; i++) {
        const nb_logprob *lp = rows->logprobs + i * width;
        nb_wire_raw(out, i > first ? "," : "");
        if (lp[0].id < 0) {
            nb_wire_raw(out, "null");
            continue;
        }
        nb_wire_raw(out, "[");
        for (int64_t k = 1; k < width && lp[k].id >= 0; k++) {
            nb_wire_raw(out, k > 1 ? ",[" : "[");
            nb_wire_real(out, (double)lp[k].logprob);
            nb_wire_raw(out, ",");
            nb_wire_int(out, lp[k].id);
            nb_wire_raw(out, ",");
            nb_write_token(m->tokenizer, lp[k].id, out);
            nb_wire_raw(out, "]");
        }
        nb_wire_raw(out, "]");
    }
    nb_wire_raw(out, "]");
}

static void write_logprobs(const nb_ask *ask, const nb_served *m, const nb_reply *r,
                           const nb_choice *c, int64_t p, nb_wire *out)
{
    const int64_t width = 1 + r->n_top;
    nb_wire_raw(out, ",\"output_token_logprobs\":");
    write_triples(m, &c->rows, 0, width, out);
    if (r->n_top > 0) {
        nb_wire_raw(out, ",\"output_top_logprobs\":");
        write_tops(m, &c->rows, 0, width, out);
    }
    if (!ask->prompt_logprobs)
        return;
    nb_wire_raw(out, ",\"input_token_logprobs\":");
    write_triples(m, &r->prompt_rows[p], ask->logprob_start, width, out);
    if (r->n_top > 0) {
        nb_wire_raw(out, ",\"input_top_logprobs\":");
        write_tops(m, &r->prompt_rows[p], ask->logprob_start, width, out);
    }
}

static void write_finish(const nb_ask *ask, const nb_choice *c, nb_wire *out)
{
    nb_wire_raw(out, "\"finish_reason\":");
    if (c->finish == NB_NOT_FINISHED) {
        nb_wire_raw(out, "null");
    } else if (c->finish == NB_FINISH_LENGTH) {
        nb_wire_raw(out, "{\"type\":\"length\",\"length\":");
        nb_wire_int(out, ask->options.max_tokens);
        nb_wire_raw(out, "}");
    } else {
        nb_wire_raw(out, "{\"type\":\"stop\",\"matched\":");
        if (c->stop != NULL)
            nb_wire_string(out, c->stop, strlen(c->stop));
        else if (c->stop_id >= 0)
            nb_wire_int(out, c->stop_id);
        else
            nb_wire_raw(out, "null");
        nb_wire_raw(out, "}");
    }
}

static void write_choice(const nb_ask *ask, const nb_served *m, const nb_reply *r, int64_t i,
                         nb_wire *out)
{
    const nb_choice *c = &r->choices[i];
    nb_wire_raw(out, "{\"text\":");
    nb_wire_string(out, c->text.len > 0 ? (const char *)c->text.data : "", c->text.len);
    nb_wire_raw(out, ",\"output_ids\":[");
    for (int64_t k = 0; k < c->rows.n; k++) {
        nb_wire_raw(out, k > 0 ? "," : "");
        nb_wire_int(out, c->rows.ids[k]);
    }
    nb_wire_raw(out, "],\"meta_info\":{\"id\":");
    nb_wire_string(out, ask->id, strlen(ask->id));
    nb_wire_raw(out, ",");
    write_finish(ask, c, out);
    nb_wire_raw(out, ",\"prompt_tokens\":");
    nb_wire_int(out, c->n_prompt);
    nb_wire_raw(out, ",\"completion_tokens\":");
    nb_wire_int(out, c->n_made);
    nb_wire_raw(out, ",\"cached_tokens\":");
    nb_wire_int(out, c->n_cached);
    if (ask->options.logprobs)
        write_logprobs(ask, m, r, c, i / ask->n, out);
    if (c->finish != NB_NOT_FINISHED) {
        nb_wire_raw(out, ",\"e2e_latency\":");
        nb_wire_real(out, nb_clock() - ask->arrived);
    }
    nb_wire_raw(out, ",\"seed\":");
    nb_wire_int(out, (int64_t)ask->options.sampling.seed);
    nb_wire_raw(out, "}");
}

static bool is_list(const nb_ask *ask)
{
    return ask->is_batch || ask->n > 1;
}

void nb_sglang_write(const nb_ask *ask, const nb_served *m, nb_reply *r, nb_wire *out)
{
    nb_wire_raw(out, is_list(ask) ? "[" : "");
    for (int64_t i = 0; i < r->n_choices; i++) {
        nb_wire_raw(out, i > 0 ? "," : "");
        write_choice(ask, m, r, i, out);
        nb_wire_raw(out, "}");
    }
    nb_wire_raw(out, is_list(ask) ? "]" : "");
}

bool nb_sglang_write_events(const nb_ask *ask, const nb_served *m, nb_reply *r, nb_wire *out)
{
    nb_problem why = {0};
    if (nb_reply_failed(r, &why) != NB_OK) {
        nb_wire_raw(out, "data: ");
        nb_problem_write(&why, out);
        nb_wire_raw(out, "\n\n");
        return true;
    }
    for (int64_t i = 0; i < r->n_choices; i++) {
        nb_choice *c = &r->choices[i];
        const bool over = c->finish != NB_NOT_FINISHED;
        if (c->ended || !(over || c->text.len > c->text_taken))
            continue;
        nb_wire_raw(out, "data: ");
        write_choice(ask, m, r, i, out);
        if (is_list(ask)) {
            nb_wire_raw(out, ",\"index\":");
            nb_wire_int(out, i);
        }
        nb_wire_raw(out, "}\n\n");
        c->ended = over;
        nb_choice_taken(r, c);
    }
    if (r->n_unfinished > 0)
        return false;
    nb_wire_raw(out, "data: [DONE]\n\n");
    return true;
}
