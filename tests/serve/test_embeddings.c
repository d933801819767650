/* /v1/embeddings: what is read, what is answered, and what becomes of a list that is longer than
 * the engine's queue, while clients leave, the engine fails and the server closes. */
#define _GNU_SOURCE
#include "scene.h"

#include "serve/embeddings.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- what is read ---- */

static nb_status read_ask(const nb_served *m, const char *text, nb_ask *ask, nb_problem *why)
{
    nb_err err = {0};
    json_t *json;
    if (nb_json_parse(&json, text, strlen(text), &err) != NB_OK)
        fail_msg("%s: %s", err.text, text);
    nb_ask_init(ask, NB_ASK_EMBEDDING, json);
    *why = (nb_problem){0};
    return nb_embeddings_read(ask, m, why);
}

/* A value of each field; those that are wrong are blamed by name. */
static void every_field_has_its_range(void **state)
{
    (void)state;
    static const struct {
        const char *field, *good, *bad;
    } FIELDS[] = {
        {"input", "\"a\"|[\"a\"]|[\"a\",\"b\"]|[1]|[1,2]|[[1],[2,3]]",
         "\"\"|[]|[[]]|1|true|{}|[\"\"]|[258]|[-1]|[1.0]|[null]|[\"a\",1]|[[1],\"a\"]|[[[1]]]|"
         "null"},
        {"encoding_format", "\"float\"|\"base64\"|null", "\"\"|\"int8\"|1|[]|true"},
        {"dimensions", "1|6|null", "0|7|-1|1.0|\"1\"|true"},
        {"add_special_tokens", "true|false|null", "1|\"true\""},
        {"cache_salt", "\"a\"|null", "\"\"|1|true"},
        {"priority", "0|-1000|1000|null", "1001|-1001|1.0|\"1\""},
        {"user", "\"me\"|null", "1|[]"},
        {"model", "\"owner/fake\"|\"\"|null", "1|[]|true"},
        {"frobnicate", "1|null|{}", ""},
    };
    scene s;
    scene_open_parts(&s, NULL);
    int n = 0;
    for (size_t f = 0; f < sizeof FIELDS / sizeof *FIELDS; f++)
        for (int good = 0; good < 2; good++) {
            const char *p = good ? FIELDS[f].good : FIELDS[f].bad;
            for (; *p != 0; n++) {
                char text[300];
                const size_t len = strcspn(p, "|");
                const bool is_input = f == 0;
                snprintf(text, sizeof text, "{%s\"%s\":%.*s}", is_input ? "" : "\"input\":\"ab\",",
                         FIELDS[f].field, (int)len, p);
                p += len + (p[len] == '|');
                nb_ask ask;
                nb_problem why;
                const nb_status status = read_ask(&s.served, text, &ask, &why);
                if ((status == NB_OK) != (good == 1))
                    fail_msg("%s: %s", text, why.err.text);
                if (good == 0) {
                    assert_int_equal(why.http, 400);
                    assert_string_equal(why.param, FIELDS[f].field);
                }
                nb_ask_free(&ask);
            }
        }
    assert_true(n > 60);
    nb_ask ask;
    nb_problem why;
    assert_int_not_equal(read_ask(&s.served, "{\"input\":\"a\",\"model\":\"b\"}", &ask, &why),
                         NB_OK);
    assert_int_equal(why.http, 404);
    nb_ask_free(&ask);
    assert_int_not_equal(read_ask(&s.served, "[]", &ask, &why), NB_OK);
    nb_ask_free(&ask);
    assert_int_not_equal(read_ask(&s.served, "{}", &ask, &why), NB_OK);
    assert_string_equal(why.param, "input");
    nb_ask_free(&ask);
    scene_close(&s);
}

/* n times `each` in a list. */
static char *many(const char *each, int n, const char *more)
{
    char *text = malloc((size_t)n * (strlen(each) + 1) + strlen(more) + 30);
    assert_non_null(text);
    size_t k = (size_t)sprintf(text, "{\"input\":[");
    for (int i = 0; i < n; i++)
        k += (size_t)sprintf(text + k, "%s%s", i > 0 ? "," : "", each);
    sprintf(text + k, "]%s}", more);
    return text;
}

static void what_one_request_asks_for_is_bounded(void **state)
{
    (void)state;
    static const struct {
        int n;
        int64_t d_model;
        const char *more;
        bool fits;
    } CASES[] = {
        {NB_ASK_MAX_INPUTS, 6, "", true},
        {NB_ASK_MAX_INPUTS + 1, 6, "", false},
        {20000, 6, "", false},
        {NB_ASK_MAX_INPUTS, 2048, "", true},
        {NB_ASK_MAX_INPUTS, 2049, "", false},
        {NB_ASK_MAX_INPUTS, 8192, ",\"dimensions\":2048", true},
    };
    scene s;
    scene_open_parts(&s, NULL);
    nb_ask ask;
    nb_problem why;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char *text = many("\"a\"", CASES[i].n, CASES[i].more);
        s.served.d_model = CASES[i].d_model;
        assert_int_equal(read_ask(&s.served, text, &ask, &why) == NB_OK, CASES[i].fits);
        if (!CASES[i].fits)
            assert_string_equal(why.param, "input");
        nb_ask_free(&ask);
        free(text);
    }
    /* A text may fill the room to its end: nothing follows. */
    s.served.n_room = 64;
    for (int n = 64; n <= 65; n++) {
        char text[120];
        snprintf(text, sizeof text, "{\"input\":[\"a\",\"%0*d\"]}", n, 0);
        assert_int_equal(read_ask(&s.served, text, &ask, &why) == NB_OK, n == 64);
        if (n > 64) {
            assert_string_equal(why.code, "context_length_exceeded");
            assert_string_equal(why.param, "input");
        }
        nb_ask_free(&ask);
    }
    scene_close(&s);
}

/* ---- what is answered ---- */

static json_t *post(const scene *s, const char *body, int status)
{
    char *answer = scene_ask(s, "POST", "/v1/embeddings", "", body);
    if (scene_status(answer) != status)
        fail_msg("%s: %s", body, answer);
    json_t *v = scene_json(answer);
    free(answer);
    return v;
}

/* What the fake engine pools, scaled: of a prompt of one byte or more. */
static void expect(const char *prompt, size_t n_prompt, int n, bool last, float *out)
{
    double sum = 0, x[FAKE_DIMS];
    for (int k = 0; k < n; k++) {
        x[k] = (unsigned char)prompt[(size_t)k % n_prompt] + k + (last ? 1000 : 0);
        sum += x[k] * x[k];
    }
    for (int k = 0; k < n; k++)
        out[k] = (float)(x[k] / sqrt(sum));
}

static void check_vector(const json_t *v, int64_t at, const char *prompt, size_t n_prompt, int n,
                         bool last)
{
    float want[FAKE_DIMS];
    const json_t *one = json_array_get(json_object_get(v, "data"), (size_t)at);
    const json_t *e = json_object_get(one, "embedding");
    expect(prompt, n_prompt, n, last, want);
    assert_string_equal(json_string_value(json_object_get(one, "object")), "embedding");
    assert_int_equal(json_integer_value(json_object_get(one, "index")), at);
    assert_int_equal(json_array_size(e), n);
    for (int k = 0; k < n; k++)
        assert_true((float)json_number_value(json_array_get(e, (size_t)k)) == want[k]);
}

static void vectors_are_those_of_the_engine(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, NULL);
    json_t *v = post(&s, "{\"input\":[\"abc\",\"x\"]}", 200);
    assert_string_equal(json_string_value(json_object_get(v, "object")), "list");
    assert_string_equal(json_string_value(json_object_get(v, "model")), "fa\"ke\n\\");
    assert_int_equal(json_array_size(json_object_get(v, "data")), 2);
    check_vector(v, 0, "abc", 3, FAKE_DIMS, false);
    check_vector(v, 1, "x", 1, FAKE_DIMS, false);
    const json_t *u = json_object_get(v, "usage");
    assert_int_equal(json_integer_value(json_object_get(u, "prompt_tokens")), 4);
    assert_int_equal(json_integer_value(json_object_get(u, "total_tokens")), 4);
    json_decref(v);
    v = post(&s, "{\"input\":[[97,98],[99]],\"dimensions\":2,\"encoding_format\":null}", 200);
    check_vector(v, 0, "ab", 2, 2, false);
    check_vector(v, 1, "c", 1, 2, false);
    json_decref(v);
    v = post(&s, "{\"input\":[97,98]}", 200);
    assert_int_equal(json_array_size(json_object_get(v, "data")), 1);
    check_vector(v, 0, "ab", 2, FAKE_DIMS, false);
    json_decref(v);
    s.served.pooling = NB_POOL_LAST;
    v = post(&s, "{\"input\":\"ab\"}", 200);
    check_vector(v, 0, "ab", 2, FAKE_DIMS, true);
    json_decref(v);
    json_decref(post(&s, "{\"input\":\"!error\"}", 500));
    char *answer = scene_ask(&s, "GET", "/metrics", "", "");
    assert_non_null(strstr(answer, "finished_reason=\"stop\"} 6"));
    free(answer);
    scene_close(&s);
}

/* In base 64 stand the bytes of the same numbers; the vectors of RFC 4648 say that it is that. */
static void bytes_are_written_in_base_64(void **state)
{
    (void)state;
    static const char *const WANT[] = {"\"\"",         "\"Zg==\"",     "\"Zm8=\"",    "\"Zm9v\"",
                                       "\"Zm9vYg==\"", "\"Zm9vYmE=\"", "\"Zm9vYmFy\""};
    for (size_t n = 0; n < sizeof WANT / sizeof *WANT; n++) {
        nb_wire w = {0};
        nb_wire_base64(&w, "foobar", n);
        nb_wire_bytes(&w, "", 1);
        assert_string_equal((const char *)w.buf.data, WANT[n]);
        nb_wire_free(&w);
    }
    float x[FAKE_DIMS];
    nb_wire w = {0};
    expect("ab", 2, FAKE_DIMS, false, x);
    nb_wire_base64(&w, x, sizeof x);
    nb_wire_bytes(&w, "", 1);
    scene s;
    scene_open(&s, NULL, NULL);
    char *answer = scene_ask(&s, "POST", "/v1/embeddings", "",
                             "{\"input\":\"ab\",\"encoding_format\":\"base64\"}");
    assert_int_equal(scene_status(answer), 200);
    assert_non_null(strstr(answer, (const char *)w.buf.data));
    free(answer);
    nb_wire_free(&w);
    scene_close(&s);
}

/* ---- long lists ---- */

/* A list longer than the window goes through it, in order, also where the queue is shorter. */
static void long_lists_pass_through_a_window(void **state)
{
    (void)state;
    static const int64_t QUEUES[] = {1000, 5, 1};
    for (size_t q = 0; q < sizeof QUEUES / sizeof *QUEUES; q++) {
        scene s;
        scene_open(&s, &(fake_engine){.max_active = QUEUES[q] + (QUEUES[q] == 1)}, NULL);
        char body[8000], text[16];
        size_t k = (size_t)sprintf(body, "{\"input\":[");
        for (int i = 0; i < 500; i++)
            k += (size_t)sprintf(body + k, "%s\"n%d\"", i > 0 ? "," : "", i);
        sprintf(body + k, "]}");
        json_t *v = post(&s, body, 200);
        for (int i = 0; i < 500; i++) {
            const int n = sprintf(text, "n%d", i);
            check_vector(v, i, text, (size_t)n, FAKE_DIMS, false);
        }
        json_decref(v);
        assert_true(fake_engine_idle(s.engine));
        /* One more for a moment: the fake engine still counts the one whose end it tells. */
        assert_true(fake_engine_most_active(s.engine) <= NB_ASK_INPUT_WINDOW + 1);
        assert_true(q > 0 || fake_engine_most_active(s.engine) > 8);
        scene_close(&s);
    }
}

static int send_request(const scene *s, const char *body)
{
    char *request;
    const int n = asprintf(&request,
                           "POST /v1/embeddings HTTP/1.1\r\nHost: t\r\nContent-Length: %zu"
                           "\r\n\r\n%s",
                           strlen(body), body);
    assert_true(n > 0);
    const int fd = scene_connect(s);
    scene_send(fd, request, (size_t)n);
    free(request);
    return fd;
}

static void wait_until_active(const scene *s, int64_t n)
{
    for (int i = 0; i < 5000 && fake_engine_n_active(s->engine) < n; i++)
        usleep(1000);
    assert_true(fake_engine_n_active(s->engine) >= n);
}

/* Whoever leaves in the middle of a list is forgotten with the rest of it. */
static void whoever_leaves_is_forgotten(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, NULL, NULL);
    char *body = many("\"!silent\"", 200, "");
    const int fd = send_request(&s, body);
    wait_until_active(&s, 32);
    close(fd);
    assert_true(fake_engine_idle(s.engine));
    assert_int_equal(fake_engine_n_aborted(s.engine), 32);
    free(body);
    body = many("\"!slow\"", 2000, "");
    const int other = send_request(&s, body);
    wait_until_active(&s, 1);
    usleep(30000);
    close(other);
    assert_true(fake_engine_idle(s.engine));
    free(body);
    scene_close(&s);
}

/* The queue is full of others: at once when nothing of it fits; and an input that fails ends it. */
static void lists_are_refused_as_one(void **state)
{
    (void)state;
    scene s;
    scene_open(&s, &(fake_engine){.max_active = 1}, NULL);
    const int fd = send_request(&s, "{\"input\":\"!silent\"}");
    wait_until_active(&s, 1);
    json_decref(post(&s, "{\"input\":[\"a\",\"b\"]}", 429));
    close(fd);
    assert_true(fake_engine_idle(s.engine));
    scene_close(&s);
    scene_open(&s, NULL, NULL);
    char *body = many("\"a\"", 90, ",\"user\":\"me\"");
    memcpy(strstr(body, "\"a\""), "[1]", 3); /* of another type than the rest */
    json_decref(post(&s, body, 400));
    free(body);
    body = many("\"!error\"", 90, "");
    json_decref(post(&s, body, 500));
    free(body);
    assert_true(fake_engine_idle(s.engine));
    scene_close(&s);
}

static void a_server_can_be_closed_in_between(void **state)
{
    (void)state;
    for (int round = 0; round < 6; round++) {
        scene s;
        scene_open(&s, &(fake_engine){.step_us = 300}, NULL);
        int fds[3];
        for (int i = 0; i < 3; i++) {
            char *body = many(i == 0 ? "\"!silent\"" : "\"a\"", 600, "");
            fds[i] = send_request(&s, body);
            free(body);
        }
        usleep((useconds_t)(round * 1500));
        scene_close(&s);
        for (int i = 0; i < 3; i++)
            close(fds[i]);
    }
}

/* Whatever allocation fails, the answer says so or is not there, and nothing leaks. */
static void memory_may_fail_anywhere(void **state)
{
    (void)state;
    scene s;
    scene_open_parts(&s, NULL);
    static const float POOLED[FAKE_DIMS] = {1, 2, 3};
    const int64_t live = nb_alloc_live();
    nb_status status = NB_MEMORY;
    int at = 1;
    for (; status != NB_OK; at++) {
        nb_ask ask;
        nb_problem why;
        nb_reply reply = {0};
        nb_wire out = {0};
        nb_err err = {0};
        nb_alloc_fail_at(at);
        status = read_ask(&s.served, "{\"input\":[\"ab\",\"c\"]}", &ask, &why);
        if (status == NB_OK)
            status = nb_reply_init(&reply, &ask, 1000, &err);
        if (status == NB_OK) {
            for (int64_t p = 0; p < 2; p++) {
                const nb_engine_event e = {.prompt_at = -1,
                                           .id = -1,
                                           .finish = NB_FINISH_STOP,
                                           .stop_id = -1,
                                           .pooled = POOLED,
                                           .n_pooled = FAKE_DIMS};
                (void)nb_reply_put(&reply, p, &e);
            }
            assert_int_equal(reply.n_unfinished, 0);
            status = nb_reply_failed(&reply, &why);
        }
        if (status == NB_OK) {
            nb_embeddings_write(&ask, &s.served, &reply, &out);
            status = out.status;
        }
        nb_alloc_fail_at(0);
        if (reply.ask != NULL)
            nb_reply_free(&reply);
        nb_wire_free(&out);
        nb_ask_free(&ask);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(at > 8);
    scene_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field_has_its_range),
        cmocka_unit_test(what_one_request_asks_for_is_bounded),
        cmocka_unit_test(vectors_are_those_of_the_engine),
        cmocka_unit_test(bytes_are_written_in_base_64),
        cmocka_unit_test(long_lists_pass_through_a_window),
        cmocka_unit_test(whoever_leaves_is_forgotten),
        cmocka_unit_test(lists_are_refused_as_one),
        cmocka_unit_test(a_server_can_be_closed_in_between),
        cmocka_unit_test(memory_may_fail_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
