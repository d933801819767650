/* The server over real sockets, with an engine that answers what a test can foretell. */
#define _GNU_SOURCE
#include "scene.h"

#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *text_of(const json_t *v, const char *key)
{
    const char *text = json_string_value(json_object_get(v, key));
    assert_non_null(text);
    return text;
}

static json_t *post(const scene *s, const char *path, const char *body, int status)
{
    char *answer = scene_ask(s, "POST", path, "", body);
    if (scene_status(answer) != status)
        fail_msg("%s %s: %s", path, body, answer);
    json_t *v = scene_json(answer);
    free(answer);
    return v;
}

/* The error object is whole, and blames what it should. */
static void refused(const scene *s, const char *path, const char *body, int status,
                    const char *param)
{
    json_t *v = post(s, path, body, status);
    const json_t *e = json_object_get(v, "error");
    assert_non_null(json_string_value(json_object_get(e, "message")));
    assert_non_null(json_string_value(json_object_get(e, "type")));
    assert_non_null(json_object_get(e, "code"));
    const char *blamed = json_string_value(json_object_get(e, "param"));
    if (param != NULL && (blamed == NULL || strcmp(blamed, param) != 0))
        fail_msg("%s blames %s: %s", body, blamed, text_of(e, "message"));
    json_decref(v);
}

/* ---- answers ---- */

static void a_completion_is_answered(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, NULL);
    json_t *v = post(&s, "/v1/completions", "{\"prompt\":\"abc\",\"max_tokens\":5}", 200);
    const json_t *c = json_array_get(json_object_get(v, "choices"), 0);
    assert_string_equal(text_of(c, "text"), "abcab");
    assert_string_equal(text_of(c, "finish_reason"), "length");
    assert_true(json_is_null(json_object_get(c, "stop_reason")));
    assert_true(json_is_null(json_object_get(c, "logprobs")));
    assert_string_equal(text_of(v, "object"), "text_completion");
    assert_string_equal(text_of(v, "model"), "fa\"ke\n\\");
    assert_int_equal(strncmp(text_of(v, "id"), "cmpl-", 5), 0);
    const json_t *u = json_object_get(v, "usage");
    assert_int_equal(json_integer_value(json_object_get(u, "prompt_tokens")), 3);
    assert_int_equal(json_integer_value(json_object_get(u, "completion_tokens")), 5);
    assert_int_equal(json_integer_value(json_object_get(u, "total_tokens")), 8);
    json_decref(v);
    scene_close(&s);
}

static void prompts_and_choices_are_in_order(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, NULL);
    json_t *v =
        post(&s, "/v1/completions", "{\"prompt\":[\"ab\",\"xyz\"],\"n\":2,\"max_tokens\":3}", 200);
    static const char *const WANT[] = {"aba", "bab", "xyz", "yzx"};
    const json_t *choices = json_object_get(v, "choices");
    assert_int_equal(json_array_size(choices), 4);
    for (size_t i = 0; i < 4; i++) {
        const json_t *c = json_array_get(choices, i);
        assert_int_equal(json_integer_value(json_object_get(c, "index")), i);
        assert_string_equal(text_of(c, "text"), WANT[i]);
    }
    const json_t *u = json_object_get(v, "usage");
    assert_int_equal(json_integer_value(json_object_get(u, "prompt_tokens")), 5);
    assert_int_equal(json_integer_value(json_object_get(u, "completion_tokens")), 12);
    json_decref(v);
    scene_close(&s);
}

static void logprobs_have_openai_s_shapes(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, NULL);
    json_t *v = post(&s, "/v1/completions",
                     "{\"prompt\":\"ab\",\"max_tokens\":2,\"logprobs\":2,\"echo\":true}", 200);
    const json_t *c = json_array_get(json_object_get(v, "choices"), 0);
    assert_string_equal(text_of(c, "text"), "abab");
    const json_t *lp = json_object_get(c, "logprobs");
    static const char *const KEYS[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    for (int k = 0; k < 4; k++)
        assert_int_equal(json_array_size(json_object_get(lp, KEYS[k])), 4);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(json_integer_value(json_array_get(json_object_get(lp, KEYS[3]), i)), i);
    assert_true(json_is_null(json_array_get(json_object_get(lp, KEYS[1]), 0)));
    assert_true(json_is_null(json_array_get(json_object_get(lp, KEYS[2]), 0)));
    assert_true(json_real_value(json_array_get(json_object_get(lp, KEYS[1]), 1)) == -0.25);
    assert_true(json_real_value(json_array_get(json_object_get(lp, KEYS[1]), 3)) == -0.25);
    /* two of the likeliest, and the one that was taken */
    assert_int_equal(json_object_size(json_array_get(json_object_get(lp, KEYS[2]), 3)), 3);
    json_decref(v);
    v = post(&s, "/v1/chat/completions",
             "{\"messages\":[{\"role\":\"user\",\"content\":\"\xC3\xA9\"}],\"logprobs\":true,"
             "\"top_logprobs\":1}",
             200);
    c = json_array_get(json_object_get(v, "choices"), 0);
    assert_string_equal(text_of(json_object_get(c, "message"), "content"), "user\n\xC3\xA9");
    const json_t *content = json_object_get(json_object_get(c, "logprobs"), "content");
    assert_int_equal(json_array_size(content), 9); /* start, u s e r \n, two bytes, end */
    const json_t *half = json_array_get(content, 6);
    assert_string_equal(text_of(half, "token"), "\xEF\xBF\xBD");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(half, "bytes"), 0)), 0xC3);
    assert_int_equal(json_array_size(json_object_get(half, "top_logprobs")), 1);
    json_decref(v);
    scene_close(&s);
}

/* Where in the text each token begins: those of one character where it does, and special tokens
 * take room where the text has them. */
static void tokens_begin_where_their_characters_do(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        int64_t at[12];
        size_t n;
    } CASES[] = {
        {"{\"prompt\":\"\xC3\xA9z\",\"max_tokens\":3,\"logprobs\":0,\"echo\":true}",
         {0, 0, 1, 2, 2, 3},
         6},
        /* half a character ends the prompt, and the other half does not complete it */
        {"{\"prompt\":[122,195],\"max_tokens\":2,\"logprobs\":0,\"echo\":true}", {0, 1, 2, 3}, 4},
        {"{\"prompt\":[195,169,122],\"max_tokens\":3,\"logprobs\":0}", {0, 0, 1}, 3},
        {"{\"prompt\":[257,97],\"max_tokens\":2,\"logprobs\":0,\"echo\":true}", {0, 12, 13, 13}, 4},
        {"{\"prompt\":[257,97],\"max_tokens\":2,\"logprobs\":0,\"skip_special_tokens\":false}",
         {0, 12},
         2},
    };
    scene s;
    scene_open(&s, NULL, NULL);
    for (size_t k = 0; k < sizeof CASES / sizeof *CASES; k++) {
        json_t *v = post(&s, "/v1/completions", CASES[k].body, 200);
        const json_t *c = json_array_get(json_object_get(v, "choices"), 0);
        const json_t *at = json_object_get(json_object_get(c, "logprobs"), "text_offset");
        if (json_array_size(at) != CASES[k].n)
            fail_msg("case %zu: %zu tokens", k, json_array_size(at));
        for (size_t i = 0; i < CASES[k].n; i++)
            if (json_integer_value(json_array_get(at, i)) != CASES[k].at[i])
                fail_msg("case %zu, token %zu: begins at %lld", k, i,
                         (long long)json_integer_value(json_array_get(at, i)));
        json_decref(v);
    }
    scene_close(&s);
}

static void an_echo_alone_generates_nothing(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, NULL);
    json_t *v = post(&s, "/v1/completions",
                     "{\"prompt\":[97,98],\"max_tokens\":0,\"echo\":true,\"logprobs\":1}", 200);
    const json_t *c = json_array_get(json_object_get(v, "choices"), 0);
    assert_string_equal(text_of(c, "text"), "ab");
    assert_int_equal(json_array_size(json_object_get(json_object_get(c, "logprobs"), "tokens")), 2);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(v, "usage"), "completion_tokens")), 0);
    json_decref(v);
    v = post(&s, "/v1/completions", "{\"prompt\":\"ab\",\"max_tokens\":0,\"echo\":true}", 200);
    c = json_array_get(json_object_get(v, "choices"), 0);
    assert_string_equal(text_of(c, "text"), "ab");
    assert_string_equal(text_of(c, "finish_reason"), "length");
    json_decref(v);
    scene_close(&s);
}

static void stops_say_what_stopped(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, NULL);
    json_t *v = post(&s, "/v1/completions",
                     "{\"prompt\":\"abc\",\"max_tokens\":9,\"stop\":[\"x\",\"c\"]}", 200);
    const json_t *c = json_array_get(json_object_get(v, "choices"), 0);
    assert_string_equal(text_of(c, "text"), "ab");
    assert_string_equal(text_of(c, "finish_reason"), "stop");
    assert_string_equal(text_of(c, "stop_reason"), "c");
    json_decref(v);
    v = post(&s, "/v1/completions",
             "{\"prompt\":\"abc\",\"max_tokens\":9,\"stop\":\"c\","
             "\"include_stop_str_in_output\":true}",
             200);
    assert_string_equal(text_of(json_array_get(json_object_get(v, "choices"), 0), "text"), "abc");
    json_decref(v);
    v = post(&s, "/v1/completions", "{\"prompt\":\"abc\",\"max_tokens\":9,\"stop_token_ids\":[98]}",
             200);
    c = json_array_get(json_object_get(v, "choices"), 0);
    assert_int_equal(json_integer_value(json_object_get(c, "stop_reason")), 98);
    json_decref(v);
    v = post(&s, "/v1/completions", "{\"prompt\":[97,256],\"max_tokens\":9}", 200);
    c = json_array_get(json_object_get(v, "choices"), 0);
    assert_string_equal(text_of(c, "text"), "a");
    assert_true(json_is_null(json_object_get(c, "stop_reason"))); /* the model's own end */
    json_decref(v);
    scene_close(&s);
}

static void generate_answers_as_sglang(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, NULL);
    json_t *v =
        post(&s, "/generate",
             "{\"text\":\"abc\",\"sampling_params\":{\"max_new_tokens\":4},\"rid\":\"me\"}", 200);
    assert_string_equal(text_of(v, "text"), "abca");
    assert_int_equal(json_array_size(json_object_get(v, "output_ids")), 4);
    const json_t *m = json_object_get(v, "meta_info");
    assert_string_equal(text_of(m, "id"), "me");
    assert_string_equal(text_of(json_object_get(m, "finish_reason"), "type"), "length");
    assert_int_equal(json_integer_value(json_object_get(m, "completion_tokens")), 4);
    json_decref(v);
    v = post(&s, "/generate", "{\"input_ids\":[[97],[98]],\"sampling_params\":null}", 200);
    assert_int_equal(json_array_size(v), 2);
    json_decref(v);
    refused(&s, "/generate", "{}", 400, "text");
    refused(&s, "/generate", "{\"text\":\"a\",\"sampling_params\":{\"top_p\":2}}", 400,
            "sampling_params.top_p");
    refused(&s, "/generate", "{\"text\":\"a\",\"sampling_params\":{\"regex\":\"a\"}}", 400,
            "sampling_params.regex");
    scene_close(&s);
}

/* ---- streams ---- */

/* Events of a stream, joined by what a test looks at; the last is [DONE] or an error. */
static char *stream_text(char *body, const char *path, int *n_events, bool *done)
{
    char *out = calloc(1, strlen(body) + 1);
    assert_non_null(out);
    *n_events = 0;
    *done = false;
    for (char *p = body; *p != 0;) {
        char *end = strstr(p, "\n\n");
        assert_non_null(end);
        *end = 0;
        if (strcmp(p, "data: [DONE]") == 0) {
            *done = true;
            assert_int_equal(end[2], 0);
        } else if (p[0] != ':') {
            assert_int_equal(strncmp(p, "data: {", 7), 0);
            nb_err err = {0};
            json_t *v;
            if (nb_json_parse(&v, p + 6, strlen(p + 6), &err) != NB_OK)
                fail_msg("%s: %s", err.text, p);
            const json_t *c = json_array_get(json_object_get(v, "choices"), 0);
            const json_t *t = strcmp(path, "text") == 0
                                  ? json_object_get(c, "text")
                                  : json_object_get(json_object_get(c, "delta"), "content");
            if (t != NULL)
                strcat(out, json_string_value(t));
            (*n_events)++;
            json_decref(v);
        }
        p = end + 2;
    }
    return out;
}

static void streams_are_whole(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, NULL);
    static const char *const BODIES[] = {
        "{\"prompt\":\"ab\xC3\xA9\xE2\x82\xAC\",\"max_tokens\":70,\"stream\":true}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"\xE2\x82\xAC\"}],\"stream\":true,"
        "\"stream_options\":{\"include_usage\":true}}",
    };
    static const char *const PATHS[] = {"/v1/completions", "/v1/chat/completions"};
    for (int i = 0; i < 2; i++) {
        char *answer = scene_ask(&s, "POST", PATHS[i], "", BODIES[i]);
        assert_int_equal(scene_status(answer), 200);
        assert_non_null(strcasestr(answer, "Content-Type: text/event-stream"));
        int n;
        bool done;
        char *body = scene_body(answer);
        if (i == 1)
            assert_non_null(strstr(body, "\"usage\":{\"prompt_tokens\":"));
        char *text = stream_text(body, i == 0 ? "text" : "delta", &n, &done);
        assert_true(done);
        assert_string_equal(text, i == 0 ? "ab\xC3\xA9\xE2\x82\xAC"
                                           "ab\xC3\xA9\xE2\x82\xAC"
                                           "ab\xC3\xA9\xE2\x82\xAC"
                                           "ab\xC3\xA9\xE2\x82\xAC"
                                           "ab\xC3\xA9\xE2\x82\xAC"
                                           "ab\xC3\xA9\xE2\x82\xAC"
                                           "ab\xC3\xA9\xE2\x82\xAC"
                                           "ab\xC3\xA9\xE2\x82\xAC"
                                           "ab\xC3\xA9\xE2\x82\xAC"
                                           "ab\xC3\xA9\xE2\x82\xAC"
                                         : "user\n\xE2\x82\xAC");
        free(text);
        free(answer);
    }
    scene_close(&s);
}

static void generate_streams_the_whole_text_so_far(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, &(fake_engine){.step_us = 2000}, NULL);
    char *answer = scene_ask(&s, "POST", "/generate", "",
                             "{\"text\":\"abc\",\"sampling_params\":{\"max_new_tokens\":5},"
                             "\"stream\":true}");
    const char *body = scene_body(answer);
    const char *last = strstr(body, "data: {\"text\":\"abcab\"");
    assert_non_null(last);
    assert_non_null(strstr(last, "data: [DONE]\n\n"));
    assert_non_null(strstr(body, "\"finish_reason\":null"));
    free(answer);
    scene_close(&s);
}

static void an_error_after_the_head_is_an_event(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, &(fake_engine){.step_us = 1000}, NULL);
    char *answer = scene_ask(&s, "POST", "/v1/completions", "",
                             "{\"prompt\":\"!error\",\"max_tokens\":9,\"stream\":true}");
    const char *body = scene_body(answer);
    assert_int_equal(scene_status(answer), 200);
    assert_non_null(strstr(body, "data: {\"error\":{\"message\":\"the fake engine was asked"));
    assert_null(strstr(body, "[DONE]"));
    free(answer);
    refused(&s, "/v1/completions", "{\"prompt\":\"!error\"}", 500, NULL);
    scene_close(&s);
}

/* ---- clients that leave ---- */

/* Sends a request and leaves, in one of three ways. */
static void leave(const scene *s, const char *body, int how)
{
    char request[600];
    const int n = snprintf(request, sizeof request,
                           "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %zu\r\n\r\n"
                           "%s",
                           strlen(body), body);
    const int fd = scene_connect(s);
    scene_send(fd, request, (size_t)n);
    for (int i = 0; i < 5000 && fake_engine_n_active(s->engine) == 0; i++)
        usleep(1000);
    assert_int_equal(fake_engine_n_active(s->engine), 1);
    if (how == 1)
        shutdown(fd, SHUT_WR);
    if (how == 2) {
        const struct linger reset = {.l_onoff = 1};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
    if (how != 1)
        close(fd);
    assert_true(fake_engine_idle(s->engine));
    if (how == 1)
        close(fd);
}

static void whoever_leaves_is_forgotten(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, &(fake_engine){.step_us = 1000}, NULL);
    static const char *const BODIES[] = {
        "{\"prompt\":\"!silent\",\"max_tokens\":4000}",
        "{\"prompt\":\"!silent\",\"max_tokens\":4000,\"stream\":true}",
        "{\"prompt\":\"abc\",\"max_tokens\":4000,\"stream\":true}",
    };
    for (int b = 0; b < 3; b++)
        for (int how = 0; how < 3; how++)
            leave(&s, BODIES[b], how);
    assert_int_equal(fake_engine_n_aborted(s.engine), 9);
    char *answer = scene_ask(&s, "GET", "/metrics", "", "");
    assert_non_null(strstr(answer, "nibble:client_disconnects_total"));
    const char *line = strstr(answer, "\nnibble:client_disconnects_total{");
    assert_non_null(line);
    assert_int_equal(atoi(strstr(line, "} ") + 2), 9);
    free(answer);
    scene_close(&s);
}

/* A reader that never reads: the engine is told to stop when the bound is reached. */
static void what_nobody_reads_is_not_collected(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, &(nb_server_setup){.max_unread = 20000});
    char body[400];
    const int n = snprintf(body, sizeof body,
                           "{\"prompt\":\"abc\",\"max_tokens\":4000,\"n\":100,\"logprobs\":20,"
                           "\"stream\":true}");
    char request[600];
    const int k = snprintf(
        request, sizeof request,
        "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n%s", n, body);
    const int fd = scene_connect(&s);
    const int small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    scene_send(fd, request, (size_t)k);
    for (int i = 0; i < 5000 && fake_engine_n_aborted(s.engine) == 0; i++)
        usleep(1000);
    assert_int_equal(fake_engine_n_aborted(s.engine), 1);
    assert_true(fake_engine_idle(s.engine));
    close(fd);
    scene_close(&s);
}

/* ---- limits ---- */

static void a_full_queue_is_told_at_once(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, &(fake_engine){.max_active = 1, .most = 3, .step_us = 1000}, NULL);
    static const char FIRST[] =
        "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 40\r\n\r\n"
        "{\"prompt\":\"!silent\",\"max_tokens\":4000}  ";
    const int fd = scene_connect(&s);
    scene_send(fd, FIRST, strlen(FIRST));
    for (int i = 0; i < 5000 && fake_engine_n_active(s.engine) == 0; i++)
        usleep(1000);
    char *answer = scene_ask(&s, "POST", "/v1/completions", "", "{\"prompt\":\"a\"}");
    assert_int_equal(scene_status(answer), 429);
    assert_non_null(strcasestr(answer, "\r\nRetry-After: 1\r\n"));
    assert_non_null(strstr(answer, "rate_limit_error"));
    free(answer);
    /* Two prompts of which only the first fits: neither stays. */
    close(fd);
    assert_true(fake_engine_idle(s.engine));
    refused(&s, "/v1/completions", "{\"prompt\":[\"!silent\",\"b\"]}", 429, NULL);
    assert_true(fake_engine_idle(s.engine));
    /* What no empty queue could take is not to be tried again. */
    refused(&s, "/v1/completions", "{\"prompt\":[\"a\",\"b\",\"c\",\"d\"]}", 400, "prompt");
    refused(&s, "/v1/completions", "{\"prompt\":[\"a\",\"b\"],\"n\":2}", 400, "n");
    refused(&s, "/v1/chat/completions",
            "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
            "\"n\":4}",
            400, "n");
    scene_close(&s);
}

static void keys_are_asked_for(void **state)
{
    (void)state;
    nb_keys keys = {0};
    nb_err err = {0};
    assert_int_equal(nb_keys_add(&keys, "one", &err), NB_OK);
    assert_int_equal(nb_keys_add(&keys, "two", &err), NB_OK);
    scene s;
    scene_open(&s, NULL, &(nb_server_setup){.keys = &keys});
    static const struct {
        const char *head;
        int status;
    } CASES[] = {
        {"", 401},
        {"Authorization: Bearer\r\n", 401},
        {"Authorization: Bearer three\r\n", 401},
        {"Authorization: Bearer on\r\n", 401},
        {"Authorization: Bearer onee\r\n", 401},
        {"Authorization: Basic one\r\n", 401},
        {"Authorization: Bearer one\r\n", 200},
        {"Authorization: bearer two\r\n", 200},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char *answer = scene_ask(&s, "GET", "/v1/models", CASES[i].head, "");
        assert_int_equal(scene_status(answer), CASES[i].status);
        free(answer);
        answer = scene_ask(&s, "POST", "/tokenize", CASES[i].head, "{\"prompt\":\"a\"}");
        assert_int_equal(scene_status(answer), CASES[i].status);
        free(answer);
    }
    char *answer = scene_ask(&s, "GET", "/health", "", "");
    assert_int_equal(scene_status(answer), 200);
    free(answer);
    scene_close(&s);
}

static void pages_of_others_may_not_ask(void **state)
{
    (void)state;
    static const char *const ORIGINS[] = {"https://good.example"};
    scene s;
    scene_open(&s, NULL, &(nb_server_setup){.origins = ORIGINS, .n_origins = 1});
    static const struct {
        const char *head;
        int status;
        bool allowed;
    } CASES[] = {
        {"Origin: https://evil.example\r\n", 403, false}, {"Origin: null\r\n", 403, false},
        {"Origin: http://test\r\n", 200, false}, /* this very server */
        {"Origin: https://good.example\r\n", 200, true},  {"", 200, false},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char *answer = scene_ask(&s, "POST", "/tokenize", CASES[i].head, "{\"prompt\":\"a\"}");
        assert_int_equal(scene_status(answer), CASES[i].status);
        assert_int_equal(strcasestr(answer, "Access-Control-Allow-Origin") != NULL,
                         CASES[i].allowed);
        free(answer);
    }
    char *answer = scene_ask(&s, "OPTIONS", "/v1/chat/completions",
                             "Origin: https://good.example\r\nAccess-Control-Request-Method: POST"
                             "\r\n",
                             "");
    assert_int_equal(scene_status(answer), 204);
    assert_non_null(strstr(answer, "Access-Control-Allow-Origin: https://good.example"));
    assert_non_null(strstr(answer, "Allow: POST, OPTIONS"));
    free(answer);
    scene_close(&s);
}

/* The page needs no key, and is not sent twice to who has it. */
static void the_page_is_served(void **state)
{
    (void)state;
    nb_keys keys = {0};
    nb_err err = {0};
    assert_int_equal(nb_keys_add(&keys, "one", &err), NB_OK);
    scene s;
    scene_open(&s, NULL, &(nb_server_setup){.keys = &keys});
    char *answer = scene_ask(&s, "GET", "/", "", "");
    assert_int_equal(scene_status(answer), 200);
    assert_non_null(strcasestr(answer, "Content-Type: text/html"));
    assert_non_null(strcasestr(answer, "Content-Security-Policy:"));
    char tag[200], head[300];
    assert_int_equal(sscanf(strcasestr(answer, "\r\nETag: ") + 8, "%150[^\r]", tag), 1);
    free(answer);
    snprintf(head, sizeof head, "If-None-Match: %s\r\n", tag);
    const int fd = scene_connect(&s);
    char request[500];
    const int n = snprintf(request, sizeof request,
                           "GET / HTTP/1.1\r\nHost: t\r\n%sConnection: close\r\n\r\n", head);
    bool closed;
    scene_send(fd, request, (size_t)n);
    answer = scene_receive(fd, 5, &closed);
    assert_int_equal(scene_status(answer), 304);
    free(answer);
    close(fd);
    answer = scene_ask(&s, "GET", "/nibble/report", "", "");
    assert_int_equal(scene_status(answer), 401);
    free(answer);
    answer = scene_ask(&s, "GET", "/nibble/report", "Authorization: Bearer one\r\n", "");
    assert_int_equal(scene_status(answer), 404);
    free(answer);
    scene_close(&s);
}

/* A schema that the engine refuses is the client's mistake, and said so. */
static void answers_may_be_json(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, NULL);
    json_t *v = post(&s, "/v1/completions",
                     "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_object\"}}", 200);
    json_decref(v);
    refused(&s, "/v1/completions",
            "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":"
            "{\"schema\":{\"pattern\":\"(a+)+\"}}}}",
            400, "response_format");
    scene_close(&s);
}

/* ---- the end ---- */

static void a_server_that_stops_ends_its_streams(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, &(fake_engine){.step_us = 1000}, NULL);
    enum { N = 20 };
    int fds[N];
    for (int i = 0; i < N; i++) {
        const char *body = i % 2 == 0
                               ? "{\"prompt\":\"!silent\",\"max_tokens\":4000,\"stream\":true}"
                               : "{\"prompt\":\"!silent\",\"max_tokens\":4000              }";
        char request[400];
        const int n = snprintf(request, sizeof request,
                               "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %zu"
                               "\r\n\r\n%s",
                               strlen(body), body);
        fds[i] = scene_connect(&s);
        scene_send(fds[i], request, (size_t)n);
    }
    for (int i = 0; i < 5000 && fake_engine_n_active(s.engine) < N; i++)
        usleep(1000);
    assert_int_equal(fake_engine_n_active(s.engine), N);
    assert_false(nb_server_drain(s.server, 0.2));
    for (int i = 0; i < N; i++) {
        bool closed;
        char *answer = scene_receive(fds[i], 5, &closed);
        assert_int_equal(scene_status(answer), i % 2 == 0 ? 200 : 503);
        assert_non_null(strstr(answer, "the server is stopping"));
        free(answer);
        close(fds[i]);
    }
    char *answer = scene_ask(&s, "GET", "/ready", "", "");
    assert_int_equal(scene_status(answer), 503);
    free(answer);
    refused(&s, "/v1/completions", "{\"prompt\":\"a\"}", 503, NULL);
    scene_close(&s);
}

static void a_server_that_stops_lets_work_end(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, &(fake_engine){.step_us = 2000}, NULL);
    static const char REQUEST[] =
        "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 34\r\n\r\n"
        "{\"prompt\":\"abc\",\"max_tokens\":100 }";
    const int fd = scene_connect(&s);
    scene_send(fd, REQUEST, strlen(REQUEST));
    for (int i = 0; i < 5000 && fake_engine_n_active(s.engine) == 0; i++)
        usleep(1000);
    assert_true(nb_server_drain(s.server, 20));
    bool closed;
    char *answer = scene_receive(fd, 5, &closed);
    assert_int_equal(scene_status(answer), 200);
    free(answer);
    close(fd);
    scene_close(&s);
}

/* Closing without a drain, with work of every kind under way, neither hangs nor leaks. */
static void a_server_can_be_closed_at_any_time(void **state)
{
    (void)state;
    for (int round = 0; round < 8; round++) {
        scene s;
        scene_open(&s, &(fake_engine){.step_us = 500}, NULL);
        int fds[6];
        for (int i = 0; i < 6; i++) {
            const char *body = i % 3 == 0   ? "{\"prompt\":\"abc\",\"max_tokens\":4000}"
                               : i % 3 == 1 ? "{\"prompt\":\"!silent\",\"stream\":true}"
                                            : "{\"prompt\":\"half of a bo";
            char request[400];
            const int n = snprintf(request, sizeof request,
                                   "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: "
                                   "%zu\r\n\r\n%s",
                                   strlen(body) + (i % 3 == 2 ? 10 : 0), body);
            fds[i] = scene_connect(&s);
            scene_send(fds[i], request, (size_t)n);
        }
        usleep((useconds_t)(round * 1500));
        scene_close(&s);
        for (int i = 0; i < 6; i++)
            close(fds[i]);
    }
}

static void a_model_that_is_loaded_is_waited_for(void **state)
{
    (void)state;
    nb_err err = {0};
    scene s;
    scene_open_parts(&s, NULL);
    assert_int_equal(nb_listen_tcp(&s.listener, "127.0.0.1", 0, &err), NB_OK);
    s.port = atoi(strrchr(s.listener.address, ':') + 1);
    const nb_server_setup how = {.listener = &s.listener};
    assert_int_equal(nb_server_open(&s.server, &how, &err), NB_OK);
    static const struct {
        const char *path;
        int loading, serving;
    } CASES[] = {{"/health", 200, 200},  {"/ready", 503, 200},   {"/v1/models", 503, 200},
                 {"/metrics", 503, 200}, {"/version", 200, 200}, {"/openapi.json", 200, 200},
                 {"/nothing", 404, 404}};
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
            char *answer = scene_ask(&s, "GET", CASES[i].path, "", "");
            assert_int_equal(scene_status(answer),
                             round == 0 ? CASES[i].loading : CASES[i].serving);
            free(answer);
        }
        if (round == 0)
            assert_int_equal(nb_server_serve(s.server, &s.served, NULL, 0, 1, 16, &err), NB_OK);
    }
    scene_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_completion_is_answered),
        cmocka_unit_test(prompts_and_choices_are_in_order),
        cmocka_unit_test(logprobs_have_openai_s_shapes),
        cmocka_unit_test(tokens_begin_where_their_characters_do),
        cmocka_unit_test(an_echo_alone_generates_nothing),
        cmocka_unit_test(stops_say_what_stopped),
        cmocka_unit_test(generate_answers_as_sglang),
        cmocka_unit_test(streams_are_whole),
        cmocka_unit_test(generate_streams_the_whole_text_so_far),
        cmocka_unit_test(an_error_after_the_head_is_an_event),
        cmocka_unit_test(whoever_leaves_is_forgotten),
        cmocka_unit_test(what_nobody_reads_is_not_collected),
        cmocka_unit_test(a_full_queue_is_told_at_once),
        cmocka_unit_test(keys_are_asked_for),
        cmocka_unit_test(pages_of_others_may_not_ask),
        cmocka_unit_test(the_page_is_served),
        cmocka_unit_test(answers_may_be_json),
        cmocka_unit_test(a_server_that_stops_ends_its_streams),
        cmocka_unit_test(a_server_that_stops_lets_work_end),
        cmocka_unit_test(a_server_can_be_closed_at_any_time),
        cmocka_unit_test(a_model_that_is_loaded_is_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
