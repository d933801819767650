/* See target.h. */
#include "load/target.h"

#include "base/json.h"

#include <stdio.h>
#include <string.h>

/* Of a question before the load: bytes of its answer, and seconds that it has at least, since
 * --timeout is about the load. */
#define ANSWER_MAX     ((size_t)16 << 20)
#define ANSWER_SECONDS 60.0

const char *nb_backend_name(nb_backend backend)
{
    static const char *const names[] = {"auto",         "nibble", "vllm", "sglang",
                                        "llama-server", "openai", "other"};
    return (size_t)backend < sizeof names / sizeof *names ? names[backend] : NULL;
}

static nb_status copy_text(char **out, const char *text, nb_err *err)
{
    const size_t room = strlen(text) + 1;
    NB_TRY(NB_ALLOC(out, room, err));
    memcpy(*out, text, room);
    return NB_OK;
}

static nb_status join(char **out, const char *base, const char *path, nb_err *err)
{
    const size_t room = strlen(base) + strlen(path) + 1;
    NB_TRY(NB_ALLOC(out, room, err));
    snprintf(*out, room, "%s%s", base, path);
    return NB_OK;
}

nb_status nb_target_init(nb_target *target, const char *url, bool chat, const char *model,
                         nb_err *err)
{
    *target = (nb_target){.chat = chat};
    const bool http = strncmp(url, "http://", 7) == 0, https = strncmp(url, "https://", 8) == 0;
    bool plain = url[http ? 7 : 8] != 0;
    for (const char *c = url; *c != 0; c++)
        plain = plain && *c > ' ' && *c < 127 && *c != '?' && *c != '#';
    if ((!http && !https) || !plain)
        return nb_fail(err, NB_USAGE, "'%.200s' is not an address like http://127.0.0.1:8000", url);
    NB_TRY(copy_text(&target->base, url, err));
    size_t n = strlen(url);
    while (target->base[n - 1] == '/')
        target->base[--n] = 0;
    if (n > 3 && strcmp(target->base + n - 3, "/v1") == 0)
        target->base[n - 3] = 0;
    NB_TRY(
        join(&target->url, target->base, chat ? "/v1/chat/completions" : "/v1/completions", err));
    return model == NULL ? NB_OK : copy_text(&target->model, model, err);
}

void nb_target_free(nb_target *target)
{
    nb_free(target->base);
    nb_free(target->url);
    nb_free(target->model);
    *target = (nb_target){0};
}

/* ---- questions ---- */

/* *answer is NULL for another status than 200, and for what is not JSON. */
static nb_status ask(const nb_target *target, const char *path, const nb_buf *body, json_t **answer,
                     int *status, nb_err *err)
{
    *answer = NULL;
    char *url;
    NB_TRY(join(&url, target->base, path, err));
    nb_http_options http = target->http;
    if (http.timeout_s < ANSWER_SECONDS)
        http.timeout_s = ANSWER_SECONDS;
    nb_buf text = {.limit = ANSWER_MAX};
    nb_status s = nb_http_ask(&http, url, body == NULL ? NULL : (const char *)body->data,
                              body == NULL ? 0 : body->len, &text, status, err);
    if (s == NB_OK && *status == 200) {
        nb_err unread = {0};
        if (nb_json_parse(answer, text.len == 0 ? "" : (const char *)text.data, text.len,
                          &unread) == NB_MEMORY)
            s = nb_fail(err, NB_MEMORY, "%s", unread.text);
    }
    nb_buf_free(&text);
    nb_free(url);
    return s;
}

static nb_backend backend_of(const char *owner)
{
    static const struct {
        const char *owner;
        nb_backend backend;
    } known[] = {
        {"nibble", NB_BACKEND_NIBBLE}, {"vllm", NB_BACKEND_VLLM},
        {"sglang", NB_BACKEND_SGLANG}, {"llamacpp", NB_BACKEND_LLAMA_SERVER},
        {"openai", NB_BACKEND_OPENAI}, {"openai-internal", NB_BACKEND_OPENAI},
        {"system", NB_BACKEND_OPENAI},
    };
    for (size_t i = 0; owner != NULL && i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].owner, owner) == 0)
            return known[i].backend;
    }
    return NB_BACKEND_OTHER;
}

nb_status nb_target_ask_models(nb_target *target, nb_err *err)
{
    json_t *answer;
    int status = 0;
    NB_TRY(ask(target, "/v1/models", NULL, &answer, &status, err));
    const json_t *first = json_array_get(json_object_get(answer, "data"), 0);
    const char *id = json_string_value(json_object_get(first, "id"));
    nb_status s = NB_OK;
    if (target->backend == NB_BACKEND_AUTO)
        target->backend = backend_of(json_string_value(json_object_get(first, "owned_by")));
    if (target->model == NULL && id != NULL)
        s = copy_text(&target->model, id, err);
    else if (target->model == NULL && status == 401)
        s = nb_fail(err, NB_IO, "%s wants an API key (status 401)", target->base);
    else if (target->model == NULL)
        s = nb_fail(err, NB_IO, "%s/v1/models names no model (status %d): name one with --model",
                    target->base, status);
    json_decref(answer);
    return s;
}

/* The tokens of a text. Both names of the text are sent, vLLM's and llama-server's. Special tokens
 * are counted for completions; of a chat, they belong to the template. */
static nb_status count_tokens(void *context, const char *text, int64_t *n, nb_err *err)
{
    const nb_target *target = context;
    const int special = !target->chat;
    json_t *question =
        json_pack("{s:s, s:s, s:s, s:b, s:b}", "model", target->model, "prompt", text, "content",
                  text, "add_special_tokens", special, "add_special", special);
    if (question == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory for a question");
    nb_buf body = {0};
    nb_status s = nb_json_write(&body, question, false, err);
    json_decref(question);
    json_t *answer = NULL;
    int status = 0;
    if (s == NB_OK)
        s = ask(target, "/tokenize", &body, &answer, &status, err);
    nb_buf_free(&body);
    NB_TRY(s);
    const json_t *tokens = json_object_get(answer, "tokens");
    if (json_is_array(tokens))
        *n = (int64_t)json_array_size(tokens);
    else
        s = nb_fail(err, NB_UNSUPPORTED, "the server has no /tokenize (status %d)", status);
    json_decref(answer);
    return s;
}

nb_status nb_target_fit_words(const nb_target *target, nb_words *words, nb_err *err)
{
    nb_target asked = *target; /* the counting function asks, and does not change it */
    return nb_words_fit(words, count_tokens, &asked, err);
}
