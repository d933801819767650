/* See ask.h. */
#define _GNU_SOURCE
#include "serve/ask.h"

#include "base/clock.h"

#include <assert.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

bool nb_served_is(const nb_served *m, const char *name)
{
    if (strcmp(m->name, name) == 0)
        return true;
    for (int i = 0; i < m->n_aliases; i++)
        if (strcmp(m->aliases[i], name) == 0)
            return true;
    return false;
}

void nb_ask_init(nb_ask *ask, nb_ask_shape shape, json_t *json)
{
    *ask = (nb_ask){.shape = shape, .json = json, .n = 1, .logprob_start = -1};
    ask->arrived = nb_clock();
    nb_ask_name(ask);
}

void nb_ask_free(nb_ask *ask)
{
    for (int64_t i = 0; i < ask->n_prompts; i++)
        nb_tokens_free(&ask->prompts[i].tokens);
    nb_free(ask->prompts);
    nb_free(ask->bias);
    nb_free(ask->schema);
    json_decref(ask->json);
    *ask = (nb_ask){0};
}

void nb_ask_submitted(nb_ask *ask)
{
    if (ask->echo)
        return; /* the prompt is a part of the answer */
    for (int64_t i = 0; i < ask->n_prompts; i++) {
        nb_tokens *t = &ask->prompts[i].tokens;
        nb_free(t->ids); /* how many there were is still told */
        t->ids = NULL;
        t->cap = 0;
        ask->prompts[i].text = NULL;
    }
    ask->options.n_stops = 0;
    ask->salt = NULL;
    ask->tools = NULL;
    ask->json_schema = NULL;
    nb_free(ask->schema);
    ask->schema = NULL;
    json_decref(ask->json);
    ask->json = NULL;
}

void nb_ask_name(nb_ask *ask)
{
    uint8_t bytes[12] = {0};
    (void)!getrandom(bytes, sizeof bytes, 0); /* a name need not be secret */
    const char *kind = ask->shape == NB_ASK_CHAT         ? "chatcmpl-"
                       : ask->shape == NB_ASK_COMPLETION ? "cmpl-"
                       : ask->shape == NB_ASK_EMBEDDING  ? "embd-"
                                                         : "";
    size_t n = (size_t)snprintf(ask->id, sizeof ask->id, "%s", kind);
    for (size_t i = 0; i < sizeof bytes; i++, n += 2)
        snprintf(ask->id + n, sizeof ask->id - n, "%02x", bytes[i]);
    ask->created = (int64_t)time(NULL);
}

nb_status nb_ask_model(const nb_fields *f, const nb_served *m)
{
    const char *name = "";
    size_t len = 0;
    NB_TRY(nb_field_text(f, "model", &name, &len));
    if (len == 0 || nb_served_is(m, name))
        return NB_OK;
    f->why->code = "model_not_found";
    return nb_refuse(f->why, 404, "model", "the model '%.200s' does not exist: '%.200s' is served",
                     name, m->name);
}

/* ---- sampling ---- */

static nb_status read_stops(nb_ask *ask, const nb_fields *f)
{
    const json_t *v = nb_field(f, "stop");
    if (v == NULL)
        return NB_OK;
    const bool one = json_is_string(v);
    if (!one && !json_is_array(v))
        return nb_field_wrong(f, "stop", v, "a string or an array of strings");
    const size_t n = one ? 1 : json_array_size(v);
    if (n > NB_ASK_MAX_STOPS)
        return nb_field_refuse(f, "stop", "has %zu strings: there may be %d", n, NB_ASK_MAX_STOPS);
    for (size_t i = 0; i < n; i++) {
        const json_t *s = one ? v : json_array_get(v, i);
        if (!json_is_string(s))
            return nb_field_refuse(f, "stop", "holds %s at %zu, not a string", nb_json_type_name(s),
                                   i);
        const size_t len = json_string_length(s);
        /* An empty one by itself is what some clients send for none. */
        if (len == 0 && one)
            return NB_OK;
        if (len == 0 || len > NB_ASK_MAX_STOP_BYTES)
            return nb_field_refuse(f, "stop", "has a string of %zu bytes: 1 to %d are possible",
                                   len, NB_ASK_MAX_STOP_BYTES);
        ask->stops[ask->options.n_stops++] = json_string_value(s);
    }
    ask->options.stops = ask->stops;
    return NB_OK;
}

/* One id out of a list at `name`. */
static nb_status read_id(const nb_fields *f, const char *name, const json_t *v, int64_t vocab,
                         int32_t *id)
{
    if (!json_is_integer(v))
        return nb_field_refuse(f, name, "holds %s, not a token id", nb_json_type_name(v));
    const int64_t i = json_integer_value(v);
    if (i < 0 || i >= vocab)
        return nb_field_refuse(f, name, "holds the token id %lld: they go from 0 to %lld",
                               (long long)i, (long long)vocab - 1);
    *id = (int32_t)i;
    return NB_OK;
}

static nb_status read_stop_ids(nb_ask *ask, const nb_fields *f, const nb_served *m)
{
    json_t *v = NULL;
    NB_TRY(nb_field_array(f, "stop_token_ids", &v));
    if (v == NULL)
        return NB_OK;
    const size_t n = json_array_size(v);
    if (n > NB_ASK_MAX_STOP_IDS)
        return nb_field_refuse(f, "stop_token_ids", "has %zu ids: there may be %d", n,
                               NB_ASK_MAX_STOP_IDS);
    for (size_t i = 0; i < n; i++)
        NB_TRY(
            read_id(f, "stop_token_ids", json_array_get(v, i), m->vocab_size, &ask->stop_ids[i]));
    ask->options.stop_ids = ask->stop_ids;
    ask->options.n_stop_ids = (int)n;
    return NB_OK;
}

/* The id that a key of logit_bias writes in decimal digits; -1: none. */
static int64_t key_id(const char *key)
{
    int64_t id = 0;
    const size_t len = strlen(key);
    if (len == 0 || len > 9 || (key[0] == '0' && len > 1))
        return -1;
    for (size_t i = 0; i < len; i++) {
        if (key[i] < '0' || key[i] > '9')
            return -1;
        id = 10 * id + (key[i] - '0');
    }
    return id;
}

static nb_status read_bias(nb_ask *ask, const nb_fields *f, const nb_served *m)
{
    json_t *v = NULL;
    NB_TRY(nb_field_object(f, "logit_bias", &v));
    if (v == NULL || json_object_size(v) == 0)
        return NB_OK;
    if (json_object_size(v) > NB_ASK_MAX_BIAS)
        return nb_field_refuse(f, "logit_bias", "has %zu tokens: there may be %d",
                               json_object_size(v), NB_ASK_MAX_BIAS);
    nb_err *err = &f->why->err;
    NB_TRY(nb_problem_settle(f->why, NB_ALLOC(&ask->bias, json_object_size(v), err)));
    const char *key;
    json_t *value;
    int64_t n = 0;
    json_object_foreach(v, key, value)
    {
        const int64_t id = key_id(key);
        if (id < 0 || id >= m->vocab_size)
            return nb_field_refuse(f, "logit_bias",
                                   "has the key '%.40s': they are token ids, 0 to %lld", key,
                                   (long long)m->vocab_size - 1);
        if (!json_is_number(value))
            return nb_field_refuse(f, "logit_bias", "holds %s for '%s', not a number",
                                   nb_json_type_name(value), key);
        ask->bias[n++] = (nb_logit_bias){(int32_t)id, json_number_value(value)};
    }
    ask->options.sampling.bias = ask->bias;
    ask->options.sampling.n_bias = n;
    return NB_OK;
}

nb_status nb_ask_sampling(nb_ask *ask, const nb_fields *f, const nb_served *m)
{
    nb_sampling *how = &ask->options.sampling;
    how->temperature = 1;
    NB_TRY(nb_field_number(f, "temperature", 0, 2, &how->temperature));
    /* Next to nothing counts as greedy, and what is less than a hundredth as that: as in vLLM. */
    if (how->temperature < 1e-5)
        how->temperature = 0;
    else if (how->temperature < 0.01)
        how->temperature = 0.01;
    NB_TRY(nb_field_number(f, "top_p", 0, 1, &how->top_p));
    if (nb_field(f, "top_p") != NULL && how->top_p == 0)
        return nb_field_refuse(f, "top_p", "is 0: it has to be above");
    int64_t top_k = 0;
    NB_TRY(nb_field_int(f, "top_k", -1, INT32_MAX, &top_k));
    how->top_k = top_k < 0 ? 0 : top_k;
    NB_TRY(nb_field_number(f, "min_p", 0, 1, &how->min_p));
    NB_TRY(nb_field_number(f, "presence_penalty", -2, 2, &how->presence_penalty));
    NB_TRY(nb_field_number(f, "frequency_penalty", -2, 2, &how->frequency_penalty));
    NB_TRY(nb_field_number(f, "repetition_penalty", 1e-3, 1e3, &how->repetition_penalty));
    NB_TRY(nb_field_int(f, "n", 1, NB_ASK_MAX_CHOICES, &ask->n));
    NB_TRY(read_stops(ask, f));
    NB_TRY(read_stop_ids(ask, f, m));
    NB_TRY(nb_field_bool(f, "ignore_eos", &ask->options.ignore_eos));
    bool skip_special = true;
    NB_TRY(nb_field_bool(f, "skip_special_tokens", &skip_special));
    ask->options.with_special = !skip_special;
    return read_bias(ask, f, m);
}

nb_status nb_ask_seed(nb_ask *ask, const nb_fields *f, const char *name)
{
    int64_t seed = -1;
    NB_TRY(nb_field_int(f, name, INT64_MIN, INT64_MAX, &seed));
    uint32_t drawn = (uint32_t)(ask->arrived * 1e9);
    if (seed == -1) {
        /* Small enough to be typed again, as the seeds that `nibble run` draws. */
        (void)!getrandom(&drawn, sizeof drawn, 0);
        seed = drawn;
    }
    ask->options.sampling.seed = (uint64_t)seed;
    return NB_OK;
}

nb_status nb_ask_schema(nb_ask *ask, const nb_fields *f, const char *name, const json_t *schema)
{
    nb_buf text = {.limit = NB_ASK_MAX_SCHEMA};
    nb_err *err = &f->why->err;
    nb_status s = nb_json_write(&text, schema, false, err);
    if (s == NB_OK)
        s = nb_buf_u8(&text, 0, err);
    if (s != NB_OK) {
        nb_buf_free(&text);
        if (s == NB_LIMIT)
            return nb_field_refuse(f, name, "has more than %zu bytes", NB_ASK_MAX_SCHEMA);
        return nb_problem_settle(f->why, s);
    }
    nb_free(ask->schema);
    ask->schema = (char *)text.data;
    ask->json_schema = ask->schema;
    return NB_OK;
}

nb_status nb_ask_salt(nb_ask *ask, const nb_fields *f)
{
    NB_TRY(nb_field_text(f, "cache_salt", &ask->salt, &ask->salt_len));
    if (ask->salt != NULL && (ask->salt_len == 0 || ask->salt_len > NB_ASK_MAX_SALT))
        return nb_field_refuse(f, "cache_salt", "has %zu bytes: 1 to %d are possible",
                               ask->salt_len, NB_ASK_MAX_SALT);
    return NB_OK;
}

/* ---- prompts ---- */

nb_status nb_ask_reserve(nb_ask *ask, const nb_fields *f, const char *name, int64_t n)
{
    if (n == 0)
        return nb_field_refuse(f, name, "is empty");
    const bool embeds = ask->shape == NB_ASK_EMBEDDING;
    const int most = embeds ? NB_ASK_MAX_INPUTS : NB_ASK_MAX_PROMPTS;
    if (n > most)
        return nb_field_refuse(f, name, "has %lld %s: there may be %d", (long long)n,
                               embeds ? "inputs" : "prompts", most);
    if (!embeds && n * ask->n > NB_ASK_MAX_CHOICES)
        return nb_field_refuse(f, "n", "asks for %lld answers to %lld prompts: there may be %d",
                               (long long)ask->n, (long long)n, NB_ASK_MAX_CHOICES);
    return nb_problem_settle(f->why, NB_ALLOC(&ask->prompts, n, &f->why->err));
}

nb_status nb_ask_no_room(const nb_fields *f, const char *param, const nb_served *m,
                         const char *format, ...)
{
    char what[300];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    f->why->code = "context_length_exceeded";
    return nb_refuse(f->why, 400, param, "%s: %s %lld tokens", what,
                     m->n_room < m->n_ctx ? "the KV cache has room for"
                                          : "this model's context has",
                     (long long)m->n_room);
}

static nb_status too_long(const nb_fields *f, const char *name, const nb_served *m,
                          const char *what, int64_t n)
{
    return nb_ask_no_room(f, name, m, "'%.40s' has %lld %s", name, (long long)n, what);
}

nb_status nb_ask_text(nb_ask *ask, const nb_fields *f, const char *name, const nb_served *m,
                      const char *text, size_t len, nb_encode_options how)
{
    if (len / NB_ASK_MAX_BYTES_PER_TOKEN > (size_t)m->n_room)
        return too_long(f, name, m, "bytes", (int64_t)len);
    nb_prompt *p = &ask->prompts[ask->n_prompts++];
    p->text = text;
    p->len = len;
    NB_TRY(nb_problem_settle(
        f->why, nb_tokenizer_encode(m->tokenizer, text, len, how, &p->tokens, &f->why->err)));
    if (p->tokens.n == 0)
        return nb_field_refuse(f, name, "is empty");
    return NB_OK;
}

nb_status nb_ask_ids(nb_ask *ask, const nb_fields *f, const char *name, const nb_served *m,
                     const json_t *ids)
{
    const size_t n = json_array_size(ids);
    if (n == 0)
        return nb_field_refuse(f, name, "is empty");
    if (n > (size_t)m->n_room)
        return too_long(f, name, m, "tokens", (int64_t)n);
    nb_prompt *p = &ask->prompts[ask->n_prompts++];
    for (size_t i = 0; i < n; i++) {
        int32_t id;
        NB_TRY(read_id(f, name, json_array_get(ids, i), m->vocab_size, &id));
        NB_TRY(nb_problem_settle(f->why, nb_tokens_push(&p->tokens, id, &f->why->err)));
    }
    return NB_OK;
}

nb_status nb_ask_prompts(nb_ask *ask, const nb_fields *f, const char *name, const nb_served *m,
                         const json_t *prompt, nb_encode_options how)
{
    static const char WANT[] = "a string, an array of strings, or token ids in one or more arrays";
    if (json_is_string(prompt)) {
        NB_TRY(nb_ask_reserve(ask, f, name, 1));
        return nb_ask_text(ask, f, name, m, json_string_value(prompt), json_string_length(prompt),
                           how);
    }
    if (!json_is_array(prompt))
        return nb_field_wrong(f, name, prompt, WANT);
    const json_t *first = json_array_get(prompt, 0);
    if (first != NULL && json_is_integer(first)) {
        NB_TRY(nb_ask_reserve(ask, f, name, 1));
        return nb_ask_ids(ask, f, name, m, prompt);
    }
    const size_t n = json_array_size(prompt);
    ask->is_batch = true;
    NB_TRY(nb_ask_reserve(ask, f, name, n > INT32_MAX ? INT32_MAX : (int64_t)n));
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(prompt, i);
        if (json_typeof(v) != json_typeof(first) || !(json_is_string(v) || json_is_array(v)))
            return nb_field_refuse(f, name, "holds %s at %zu: it is %s", nb_json_type_name(v), i,
                                   WANT);
        if (json_is_string(v))
            NB_TRY(nb_ask_text(ask, f, name, m, json_string_value(v), json_string_length(v), how));
        else
            NB_TRY(nb_ask_ids(ask, f, name, m, v));
    }
    return NB_OK;
}

nb_status nb_ask_fit(nb_ask *ask, const nb_fields *f, const char *name, const nb_served *m,
                     int64_t max_tokens, int64_t min_tokens)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < ask->n_prompts; i++)
        longest = ask->prompts[i].tokens.n > longest ? ask->prompts[i].tokens.n : longest;
    assert(longest > 0);
    /* What is sampled last needs no place in the cache, but one token has to fit. */
    const int64_t room = m->n_room - longest;
    if (room < 1 || max_tokens > room) {
        const char *blame = room < 1 && ask->shape == NB_ASK_CHAT         ? "messages"
                            : room < 1 && ask->shape == NB_ASK_COMPLETION ? "prompt"
                            : room < 1                                    ? "text"
                                                                          : name;
        return nb_ask_no_room(f, blame, m,
                              "the prompt has %lld tokens, and %lld more were asked for",
                              (long long)longest, (long long)(max_tokens < 0 ? 1 : max_tokens));
    }
    ask->options.max_tokens = max_tokens < 0 ? room : max_tokens;
    const char *least =
        ask->shape == NB_ASK_GENERATE ? "sampling_params.min_new_tokens" : "min_tokens";
    if (min_tokens > ask->options.max_tokens)
        return nb_field_refuse(f, least, "is %lld, more than the %lld tokens of the answer",
                               (long long)min_tokens, (long long)ask->options.max_tokens);
    ask->options.min_tokens = min_tokens;
    return NB_OK;
}
