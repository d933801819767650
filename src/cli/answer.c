/* See answer.h. */
#define _GNU_SOURCE
#include "cli/answer.h"

#include "base/file.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

const char *const nb_ctx_policy_choices[] = {"stop", "drop-oldest-turn", NULL};

/* ---- options ---- */

/* A seed that is easy to type again. */
static nb_status draw_seed(uint64_t *seed, nb_err *err)
{
    uint32_t word;
    if (getrandom(&word, sizeof word, 0) != sizeof word)
        return nb_fail(err, NB_IO, "no random seed from the system: give --seed N");
    *seed = word;
    return NB_OK;
}

/* A whole number, and a number, as JSON writes them. */
static nb_status read_id(const char *option, const char *text, size_t len, int32_t *id, nb_err *err)
{
    json_t *v;
    if (nb_json_parse(&v, text, len, err) == NB_OK && json_is_integer(v) &&
        json_integer_value(v) >= 0 && json_integer_value(v) <= INT32_MAX) {
        *id = (int32_t)json_integer_value(v);
        json_decref(v);
        return NB_OK;
    }
    json_decref(v);
    return nb_fail(err, NB_USAGE, "--%s: '%.*s' is not a token id", option, (int)len, text);
}

static nb_status read_bias(const char *text, nb_logit_bias *out, nb_err *err)
{
    const char *equals = strchr(text, '=');
    if (equals == NULL)
        return nb_fail(err, NB_USAGE, "--logit-bias: '%s' is not ID=B", text);
    NB_TRY(read_id("logit-bias", text, (size_t)(equals - text), &out->id, err));
    json_t *v;
    const nb_status s = nb_json_parse(&v, equals + 1, strlen(equals + 1), err);
    const bool good = s == NB_OK && json_is_number(v);
    if (good)
        out->value = json_number_value(v);
    json_decref(v);
    return good ? NB_OK : nb_fail(err, NB_USAGE, "--logit-bias: '%s' is not a number", equals + 1);
}

static nb_status read_biases(nb_answering *a, nb_sampling *how, nb_err *err)
{
    const int n = nb_args_n_values(a->args, "logit-bias");
    NB_TRY(NB_ALLOC(&a->bias, n, err));
    for (int i = 0; i < n; i++)
        NB_TRY(read_bias(nb_args_value(a->args, "logit-bias", i), &a->bias[i], err));
    how->bias = a->bias;
    how->n_bias = n;
    return NB_OK;
}

static nb_status read_sampling(nb_answering *a, nb_sampling *how, nb_err *err)
{
    const nb_args *args = a->args;
    NB_TRY(nb_sampling_read(a->o.store, how, err));
    const bool filters = nb_args_given(args, "top-k") || nb_args_given(args, "top-p") ||
                         nb_args_given(args, "min-p");
    if (nb_args_given(args, "temperature"))
        how->temperature = nb_args_float(args, "temperature");
    else if (filters && how->temperature == 0)
        how->temperature = 1;
    if (nb_args_given(args, "top-k"))
        how->top_k = nb_args_int(args, "top-k");
    if (nb_args_given(args, "top-p"))
        how->top_p = nb_args_float(args, "top-p");
    if (nb_args_given(args, "min-p"))
        how->min_p = nb_args_float(args, "min-p");
    if (nb_args_given(args, "repeat-penalty"))
        how->repetition_penalty = nb_args_float(args, "repeat-penalty");
    how->frequency_penalty = nb_args_float(args, "frequency-penalty");
    how->presence_penalty = nb_args_float(args, "presence-penalty");
    if (nb_args_flag(args, "greedy")) {
        if (nb_args_given(args, "temperature") || filters)
            return nb_fail(err, NB_USAGE,
                           "--greedy leaves nothing to draw: give it without --temperature, "
                           "--top-k, --top-p and --min-p");
        how->temperature = 0;
    }
    NB_TRY(read_biases(a, how, err));
    NB_TRY(nb_sampling_check(how, nb_tokenizer_n_tokens(a->o.tokenizer), err));
    how->seed = (uint64_t)nb_args_int(args, "seed");
    if (how->temperature > 0 && !nb_args_given(args, "seed"))
        NB_TRY(draw_seed(&how->seed, err));
    return NB_OK;
}

/* ---- text ---- */

/* What runs. A failure before the first text stays the only line that is printed. */
void nb_answering_plan(nb_answering *a)
{
    if (a->planned)
        return;
    a->planned = true;
    char label[256];
    const nb_model *m = &a->o.model;
    const nb_sampling *how = &a->options.sampling;
    const int64_t n_ctx = m->n_ctx;
    const nb_kv_format format = nb_kv_option(a->args, &m->config);
    const int64_t kv =
        nb_kv_pages_for(n_ctx) * NB_KV_PAGE * nb_config_kv_bytes(&m->config, format) +
        nb_config_kv_recent_bytes(&m->config, format);
    nb_out_note(
        a->out, "%s: %s, %s parameters; mode %s, %s, threads: %d; KV %s, %s at %lld tokens; %s",
        nb_path_label(nb_args_operand(a->args, 0), label, sizeof label),
        nb_human_bytes(nb_store_file_bytes(a->o.store)).text, nb_human_count(m->n_params).text,
        nb_model_compute_name(m), nb_isa_name(a->rt.kernels.isa), nb_pool_n_threads(a->rt.pool),
        nb_kv_label(a->args, &m->config), nb_human_bytes(kv).text, (long long)n_ctx,
        how->temperature > 0 ? "sampling" : "greedy");
    if (a->guessing.has_draft) {
        const nb_model *d = &a->guessing.draft.model;
        nb_out_note(
            a->out, "draft %s: %s, mode %s; up to %d tokens a step; %s in all",
            nb_path_label(nb_args_text(a->args, "draft-model"), label, sizeof label),
            nb_human_bytes(nb_store_file_bytes(a->guessing.draft.store)).text,
            nb_model_compute_name(d), a->guessing.n,
            nb_human_bytes(d->packed_bytes + nb_draft_bytes(&a->generator.draft.setup)).text);
    }
    if (n_ctx > m->config.n_ctx)
        nb_out_warn(a->out, "the model was trained for %lld tokens of context, not %lld",
                    (long long)m->config.n_ctx, (long long)n_ctx);
}

/* The model's text on a terminal: an escape sequence must not do there what it says. */
static void put_visible(nb_answering *a, const char *text, size_t len)
{
    size_t plain = 0; /* where the bytes begin that are not yet printed */
    for (size_t i = 0; i < len; i++) {
        const uint8_t c = (uint8_t)text[i];
        /* C1 controls are two bytes in UTF-8. */
        const bool c1 = c == 0xc2 && i + 1 < len && (uint8_t)text[i + 1] < 0xa0;
        if (!c1 && c != 0x7f && (c >= 0x20 || c == '\n' || c == '\t'))
            continue;
        nb_out_bytes(a->out, text + plain, i - plain);
        nb_out_text(a->out, "\\x%02x", c1 ? (uint8_t)text[++i] : c);
        plain = i + 1;
    }
    nb_out_bytes(a->out, text + plain, len - plain);
}

static bool on_text(void *context, const char *text, size_t len)
{
    nb_answering *a = context;
    if (len > 0 && a->streams) {
        nb_answering_plan(a);
        if (a->to_terminal)
            put_visible(a, text, len);
        else
            nb_out_bytes(a->out, text, len);
        nb_out_flush(a->out);
        a->line_open = text[len - 1] != '\n';
    }
    return !nb_interrupted() && a->out->write_errno == 0;
}

/* ---- opening ---- */

static nb_status read_schema(nb_answering *a, nb_generate_options *o, nb_err *err)
{
    const char *path = nb_args_text(a->args, "json-schema");
    const bool object = nb_args_flag(a->args, "json-object");
    if (object && path != NULL)
        return nb_fail(err, NB_USAGE, "--json-object and --json-schema: give one of them");
    if (object)
        NB_TRY(nb_buf_text(&a->schema, "{\"type\":\"object\"}", err));
    else if (path != NULL)
        NB_TRY(nb_file_slurp(&a->schema, path, NB_JSON_MAX_TEXT, err));
    else
        return NB_OK;
    if (memchr(a->schema.data, 0, a->schema.len) != NULL)
        return nb_fail(err, NB_DATA, "%s: a zero byte in a JSON schema", path);
    NB_TRY(nb_buf_u8(&a->schema, 0, err));
    o->json_schema = (const char *)a->schema.data;
    if (o->ignore_eos || o->min_tokens > 0)
        return nb_fail(err, NB_USAGE,
                       "--%s: the answer ends where its value does, so --ignore-eos and "
                       "--min-tokens do not go with it",
                       object ? "json-object" : "json-schema");
    return NB_OK;
}

/* What ends the answer, and what is told of it. */
static nb_status read_ends(nb_answering *a, nb_generate_options *o, nb_err *err)
{
    const nb_args *args = a->args;
    o->n_stops = nb_args_n_values(args, "stop");
    o->n_stop_ids = nb_args_n_values(args, "stop-id");
    if (o->n_stops > NB_MAX_STOPS || o->n_stop_ids > NB_MAX_STOPS)
        return nb_fail(err, NB_USAGE, "--stop%s may be given %d times",
                       o->n_stops > NB_MAX_STOPS ? "" : "-id", NB_MAX_STOPS);
    for (int i = 0; i < o->n_stops; i++)
        a->stops[i] = nb_args_value(args, "stop", i);
    for (int i = 0; i < o->n_stop_ids; i++) {
        const char *text = nb_args_value(args, "stop-id", i);
        NB_TRY(read_id("stop-id", text, strlen(text), &a->stop_ids[i], err));
    }
    o->stops = a->stops;
    o->stop_ids = a->stop_ids;
    o->max_tokens = nb_args_int(args, "max-tokens");
    o->min_tokens = nb_args_int(args, "min-tokens");
    if (o->max_tokens > 0 && o->min_tokens > o->max_tokens)
        return nb_fail(err, NB_USAGE, "--min-tokens %lld is more than --max-tokens %lld",
                       (long long)o->min_tokens, (long long)o->max_tokens);
    o->ignore_eos = nb_args_flag(args, "ignore-eos");
    o->logprobs = nb_args_given(args, "logprobs");
    o->n_top = (int)nb_args_int(args, "logprobs");
    if (o->logprobs && !a->out->json)
        return nb_fail(err, NB_USAGE, "--logprobs is printed with --json only");
    return NB_OK;
}

nb_status nb_answering_open(nb_answering *a, const nb_args *args, nb_out *out, nb_err *err)
{
    a->args = args;
    a->out = out;
    a->to_terminal = isatty(STDOUT_FILENO);
    a->streams = !out->json;
    a->policy = strcmp(nb_args_text(args, "ctx-policy"), "stop") == 0 ? NB_CTX_STOP
                                                                      : NB_CTX_DROP_OLDEST_TURN;
    nb_generate_options *o = &a->options;
    NB_TRY(read_ends(a, o, err));
    NB_TRY(read_schema(a, o, err));
    NB_TRY(nb_guessing_read(&a->guessing, args, err));
    o->n_guess = a->guessing.n;
    o->hash_logits = out->json;
    o->on_text = on_text;
    o->context = a;
    NB_TRY(nb_runtime_open(&a->rt, args, err));
    NB_TRY(nb_opened_open(&a->o, &a->rt, nb_args_operand(args, 0), nb_compute_option(args),
                          nb_args_int(args, "ctx"), true, err));
    NB_TRY(read_sampling(a, &o->sampling, err));
    NB_TRY(nb_guessing_open(&a->guessing, args, &a->rt, &a->o, out, err));
    const nb_generator_setup setup = {.model = &a->o.model,
                                      .kernels = &a->rt.kernels,
                                      .pool = a->rt.pool,
                                      .tokenizer = a->o.tokenizer,
                                      .draft =
                                          a->guessing.has_draft ? &a->guessing.draft.model : NULL,
                                      .kv = nb_kv_option(args, &a->o.model.config)};
    return nb_generator_init(&a->generator, &setup, err);
}

nb_status nb_answering_dialog(nb_answering *a, nb_dialog *d, nb_err *err)
{
    const nb_status s = nb_dialog_init(d, a->o.store, a->o.tokenizer, err);
    if (s == NB_UNSUPPORTED) {
        const nb_err why = *err;
        return nb_fail(err, s, "%s; 'nibble run' completes plain text", why.text);
    }
    NB_TRY(s);
    return nb_dialog_system(d, nb_args_text(a->args, "system"), err);
}

nb_status nb_answering_blame(const nb_answering *a, nb_status s, nb_err *err)
{
    if (s == NB_DATA || s == NB_LIMIT)
        return nb_context(err, "%s", nb_store_path(a->o.store));
    return s;
}

void nb_answering_close(nb_answering *a)
{
    nb_generator_free(&a->generator);
    nb_guessing_close(&a->guessing);
    nb_opened_close(&a->o);
    nb_runtime_close(&a->rt);
    nb_free(a->bias);
    nb_buf_free(&a->schema);
}

/* ---- the account ---- */

static double rate(int64_t n, double seconds)
{
    return n > 0 && seconds > 0 ? (double)n / seconds : 0;
}

static const char *const reasons[] = {
    [NB_STOP_EOS] = "the model ended its answer",
    [NB_STOP_TEXT] = "a stop string appeared",
    [NB_STOP_MAX_TOKENS] = "that is --max-tokens",
    [NB_STOP_CONTEXT] = "the context is full",
    [NB_STOP_CALLER] = "interrupted",
};

void nb_answering_summary(nb_answering *a, const nb_generation *r, int64_t n_dropped)
{
    nb_answering_plan(a);
    if (a->line_open) {
        nb_out_text(a->out, "\n");
        a->line_open = false;
    }
    nb_out_flush(a->out);
    if (n_dropped > 0)
        nb_out_warn(a->out,
                    "the context of %lld tokens was full: forgot the oldest %lld turn%s of the "
                    "conversation",
                    (long long)a->generator.setup.n_ctx, (long long)n_dropped,
                    n_dropped == 1 ? "" : "s");
    if (r->reason == NB_STOP_CONTEXT)
        nb_out_warn(a->out,
                    "the context of %lld tokens is full%s: stopped after %lld generated tokens "
                    "(--ctx N sets its length)",
                    (long long)a->generator.setup.n_ctx,
                    a->policy == NB_CTX_STOP ? "" : " and there is no older turn to forget",
                    (long long)r->n_tokens);
    char seed[40] = "";
    if (a->options.sampling.temperature > 0)
        snprintf(seed, sizeof seed, "; seed %llu", (unsigned long long)a->options.sampling.seed);
    char guesses[80] = "";
    if (a->options.n_guess > 0)
        snprintf(guesses, sizeof guesses, "; guessed: %lld, %lld of them rightly",
                 (long long)r->n_guessed, (long long)r->n_accepted);
    nb_out_note(a->out,
                "prompt: %lld tokens (%lld of them cached), %.1f tok/s; generated: %lld tokens, "
                "%.1f tok/s; stopped: %s%s%s",
                (long long)r->n_prompt, (long long)r->n_cached, rate(r->n_prefilled, r->prefill_s),
                (long long)r->n_tokens, rate(r->n_steps + r->n_accepted, r->decode_s),
                reasons[r->reason], guesses, seed);
}

/* A rate of nothing is null. */
static json_t *json_rate(int64_t n, double seconds)
{
    return n > 0 && seconds > 0 ? json_real(rate(n, seconds)) : json_null();
}

/* Of each token: its logprob and the likeliest in its place. JSON knows no infinity: -9999 stands
 * for it, as in vLLM. */
static json_t *json_logprobs(const nb_generation *r, int n_top)
{
    json_t *rows = json_array();
    for (int64_t i = 0; i < r->n_tokens; i++) {
        const nb_logprob *row = r->logprobs + i * (1 + n_top);
        json_t *top = json_array(), *of_it = NULL;
        for (int k = 0; k <= n_top; k++) {
            if (row[k].id < 0)
                break;
            const double v = row[k].logprob < -9999 ? -9999 : (double)row[k].logprob;
            json_t *t = json_pack("{s:i, s:f}", "id", row[k].id, "logprob", v);
            if (k == 0)
                of_it = t;
            else
                json_array_append_new(top, t);
        }
        json_object_set_new(of_it, "top", top);
        json_array_append_new(rows, of_it);
    }
    return rows;
}

json_t *nb_answering_json(const nb_answering *a, const nb_generation *r, int64_t n_dropped)
{
    const nb_sampling *how = &a->options.sampling;
    char hash[24];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)r->logits_hash);
    json_t *ids = json_array();
    for (int64_t i = 0; i < r->n_tokens; i++)
        json_array_append_new(ids, json_integer(r->tokens[i]));
    json_t *j = json_pack(
        "{s:o, s:o, s:I, s:I, s:I, s:s, s:I, s:f, s:s, s:o, s:o, s:s, s:s, s:s, s:i, s:I, s:I}",
        "text", nb_json_any_text(r->text, r->text_len), "tokens", ids, "prompt_tokens",
        (json_int_t)r->n_prompt, "cached_tokens", (json_int_t)r->n_cached, "generated_tokens",
        (json_int_t)r->n_tokens, "stop_reason", nb_stop_reason_name(r->reason), "seed",
        (json_int_t)how->seed, "temperature", how->temperature, "logits_hash", hash,
        "prefill_tok_s", json_rate(r->n_prefilled, r->prefill_s), "decode_tok_s",
        json_rate(r->n_steps + r->n_accepted, r->decode_s), "compute",
        nb_model_compute_name(&a->o.model), "kv", nb_kv_name(a->args, &a->o.model.config), "isa",
        nb_isa_name(a->rt.kernels.isa), "threads", nb_pool_n_threads(a->rt.pool), "ctx",
        (json_int_t)a->generator.setup.n_ctx, "dropped_turns", (json_int_t)n_dropped);
    if (a->options.n_guess > 0) {
        json_object_set_new(j, "guessed_tokens", json_integer(r->n_guessed));
        json_object_set_new(j, "accepted_tokens", json_integer(r->n_accepted));
    }
    if (a->options.logprobs)
        json_object_set_new(j, "logprobs", json_logprobs(r, a->options.n_top));
    return j;
}
