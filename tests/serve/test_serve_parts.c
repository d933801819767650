/* The small parts of the server: JSON text, keys, the socket it listens on, and the routes, of
 * which openapi.json tells exactly those that there are. */
#define _GNU_SOURCE
#include "scene.h"

#include "serve/openapi.h"
#include "serve/reply.h"
#include "serve/serving.h"
#include "support/scratch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- JSON text ---- */

/* Every byte, every pair of bytes: what is written can be read, and is what it was where that was
 * UTF-8. */
static void any_bytes_become_json(void **state)
{
    (void)state;
    nb_wire w = {0};
    for (int a = 0; a < 256; a++)
        for (int b = -1; b < 256; b++) {
            const char text[3] = {(char)a, (char)b, 0};
            nb_err err = {0};
            json_t *v;
            nb_wire_clear(&w);
            nb_wire_string(&w, text, b < 0 ? 1 : 2);
            const bool zero = a == 0 || b == 0; /* which the parser refuses by design */
            const nb_status s = nb_json_parse(&v, (const char *)w.buf.data, w.buf.len, &err);
            assert_int_equal(s, zero ? NB_DATA : NB_OK);
            if (s != NB_OK)
                continue;
            const char first[2] = {(char)a, 0};
            if (a < 0x80 && b < 0x80)
                assert_string_equal(json_string_value(v), b < 0 ? first : text);
            else if (b < 0)
                assert_string_equal(json_string_value(v), "\xEF\xBF\xBD");
            json_decref(v);
        }
    nb_wire_clear(&w);
    nb_wire_string(&w, "\xF0\x9F\x98\x80\xED\xA0\x80", 7); /* a surrogate is no character */
    nb_wire_bytes(&w, "", 1);
    assert_string_equal((const char *)w.buf.data, "\"\xF0\x9F\x98\x80\xEF\xBF\xBD\xEF\xBF\xBD\xEF"
                                                  "\xBF\xBD\"");
    nb_wire_free(&w);
}

static void numbers_are_json(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } CASES[] = {{0.5, "0.5"},  {-INFINITY, "-9999"},       {INFINITY, "9999"},
                 {NAN, "null"}, {-1.0 / 3, "-0.333333333"}, {1e300, "1e+300"},
                 {0, "0"}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        nb_wire w = {0};
        nb_wire_real(&w, CASES[i].value);
        nb_wire_bytes(&w, "", 1);
        assert_string_equal((const char *)w.buf.data, CASES[i].text);
        nb_wire_free(&w);
    }
}

/* The first failure stays, and what was there before stays too. */
static void a_full_buffer_stays_full(void **state)
{
    (void)state;
    nb_wire w = {.buf.limit = 6};
    nb_wire_raw(&w, "12345");
    nb_wire_raw(&w, "67");
    nb_wire_raw(&w, "8");
    assert_int_equal(w.status, NB_LIMIT);
    assert_int_equal(w.buf.len, 5);
    nb_wire_free(&w);
}

/* ---- keys ---- */

static void only_the_right_key_is_let_in(void **state)
{
    (void)state;
    nb_keys keys = {0};
    nb_err err = {0};
    assert_true(nb_keys_allow(&keys, NULL));
    assert_int_equal(nb_keys_add(&keys, "", &err), NB_USAGE);
    assert_int_equal(nb_keys_add(&keys, "a b", &err), NB_USAGE);
    assert_int_equal(nb_keys_add(&keys, "a\n", &err), NB_USAGE);
    assert_int_equal(keys.n, 0);
    char name[20];
    for (int i = 0; i < NB_MAX_KEYS; i++) {
        snprintf(name, sizeof name, "key%d", i);
        assert_int_equal(nb_keys_add(&keys, name, &err), NB_OK);
    }
    assert_int_equal(nb_keys_add(&keys, "more", &err), NB_USAGE);
    for (int i = 0; i < NB_MAX_KEYS; i++) {
        char value[40];
        snprintf(value, sizeof value, "Bearer key%d", i);
        assert_true(nb_keys_allow(&keys, value));
        value[strlen(value) - 1] ^= 1 << 6;
        assert_false(nb_keys_allow(&keys, value));
    }
    static const char *const WRONG[] = {"",           "Bearer",      "Bearer ",
                                        "key1",       "Bearer Key1", "Bearer key1 ",
                                        "Bearer key", "Basic key1",  "Bearerkey1"};
    for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++)
        assert_false(nb_keys_allow(&keys, WRONG[i]));
    assert_false(nb_keys_allow(&keys, NULL));
}

static void keys_come_from_files(void **state)
{
    (void)state;
    nb_keys keys = {0};
    nb_err err = {0};
    scratch_text("keys", "# ours\none\r\n\ntwo");
    assert_int_equal(nb_keys_load(&keys, scratch_path("keys"), &err), NB_OK);
    assert_int_equal(keys.n, 2);
    assert_true(nb_keys_allow(&keys, "Bearer one") && nb_keys_allow(&keys, "Bearer two"));
    assert_false(nb_keys_allow(&keys, "Bearer # ours"));
    scratch_text("none", "# nothing\n\n");
    assert_int_equal(nb_keys_load(&keys, scratch_path("none"), &err), NB_DATA);
    scratch_text("bad", "three\nfo ur\n");
    assert_int_equal(nb_keys_load(&keys, scratch_path("bad"), &err), NB_USAGE);
    assert_int_equal(keys.n, 2);
    assert_int_equal(nb_keys_load(&keys, scratch_path("absent"), &err), NB_DATA);
}

/* ---- listening ---- */

static void addresses_are_taken_or_named(void **state)
{
    (void)state;
    nb_listener a, b;
    nb_err err = {0};
    assert_int_equal(nb_listen_tcp(&a, "127.0.0.1", 0, &err), NB_OK);
    assert_true(a.loopback);
    const int port = atoi(strrchr(a.address, ':') + 1);
    assert_int_equal(nb_listen_tcp(&b, "127.0.0.1", port, &err), NB_IO);
    assert_non_null(strstr(err.text, "127.0.0.1 port "));
    nb_listener_close(&a);
    assert_int_equal(nb_listen_tcp(&b, "no.such.host.invalid.", 0, &err), NB_USAGE);
    assert_int_equal(nb_listen_tcp(&b, "0.0.0.0", 0, &err), NB_OK);
    assert_false(b.loopback);
    nb_listener_close(&b);
    if (nb_listen_tcp(&a, "[::1]", 0, &err) == NB_OK) { /* where there is IPv6 */
        assert_true(a.loopback);
        assert_int_equal(strncmp(a.address, "http://[::1]:", 13), 0);
        nb_listener_close(&a);
    }
    nb_listener_close(&a);
}

static void a_stale_socket_is_replaced(void **state)
{
    (void)state;
    nb_listener a, b;
    nb_err err = {0};
    const char *path = scratch_path("socket");
    assert_int_equal(nb_listen_unix(&a, path, &err), NB_OK);
    assert_int_equal(nb_listen_unix(&b, path, &err), NB_IO); /* it is served */
    close(a.fd);                                             /* as after a crash: the name stays */
    assert_int_equal(nb_listen_unix(&b, path, &err), NB_OK);
    nb_listener_close(&b);
    assert_false(scratch_exists("socket"));
    scratch_text("socket", "precious");
    assert_int_equal(nb_listen_unix(&b, path, &err), NB_IO);
    assert_true(scratch_holds("socket", "precious"));
    char longest[300];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(nb_listen_unix(&b, longest, &err), NB_USAGE);
}

/* ---- routes ---- */

static void openapi_tells_the_routes(void **state)
{
    (void)state;
    nb_err err = {0};
    json_t *v;
    if (nb_json_parse(&v, (const char *)nb_openapi_json, nb_openapi_json_len, &err) != NB_OK)
        fail_msg("%s", err.text);
    json_t *paths = json_object_get(v, "paths");
    size_t n = 0;
    for (const nb_route *r = nb_routes; r->path != NULL; r++, n++) {
        char path[200], method[8];
        const size_t len = strlen(r->path);
        const bool has_tail = len > 1 && r->path[len - 1] == '/';
        snprintf(path, sizeof path, "%s%s", r->path, has_tail ? "{model}" : "");
        snprintf(method, sizeof method, "%s", r->get != NULL ? "get" : "post");
        assert_string_equal(r->method, r->get != NULL ? "GET" : "POST");
        const json_t *one = json_object_get(json_object_get(paths, path), method);
        if (one == NULL)
            fail_msg("openapi.json lacks %s %s", r->method, path);
        assert_int_equal(json_object_size(json_object_get(paths, path)), 1);
        /* open ones say so */
        assert_int_equal(json_object_get(one, "security") != NULL, r->open);
    }
    assert_int_equal(json_object_size(paths), n);
    json_decref(v);
}

static void routes_are_found(void **state)
{
    (void)state;
    static const struct {
        const char *method, *path;
        int http; /* 0: found */
        const char *tail;
    } CASES[] = {
        {"GET", "/health", 0, NULL},
        {"HEAD", "/health", 0, NULL},
        {"POST", "/health", 405, NULL},
        {"GET", "/v1/completions", 405, NULL},
        {"HEAD", "/v1/completions", 405, NULL},
        {"GET", "/v1/models", 0, NULL},
        {"GET", "/v1/models/", 404, NULL},
        {"GET", "/v1/models/a/b", 0, "a/b"},
        {"GET", "/v1/modelsx", 404, NULL},
        {"GET", "/", 0, NULL},
        {"POST", "/", 405, NULL},
        {"GET", "/index.html", 404, NULL},
        {"GET", "", 404, NULL},
        {"GET", "health", 404, NULL},
        {"get", "/health", 405, NULL},
        {"GET", "//health", 404, NULL},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const char *tail = NULL, *allow = NULL;
        nb_problem why = {0};
        const nb_route *r = nb_route_find(CASES[i].method, CASES[i].path, &tail, &allow, &why);
        assert_int_equal(why.http, CASES[i].http);
        assert_int_equal(r != NULL, CASES[i].http == 0);
        assert_int_equal(allow != NULL, CASES[i].http != 404);
        if (CASES[i].tail != NULL)
            assert_string_equal(tail, CASES[i].tail);
    }
}

/* ---- replies ---- */

static nb_engine_event token(int64_t choice, int32_t id, const char *text)
{
    return (nb_engine_event){.choice = choice,
                             .prompt_at = -1,
                             .id = id,
                             .text = text,
                             .len = strlen(text),
                             .finish = NB_NOT_FINISHED,
                             .stop_id = -1};
}

/* Whatever allocation fails while an answer is gathered, it ends with an error, and once. */
static void a_reply_survives_without_memory(void **state)
{
    (void)state;
    for (int64_t at = 1; at < 40; at++) {
        const int64_t live = nb_alloc_live();
        nb_prompt prompts[2] = {{.tokens.n = 3}, {.tokens.n = 4}};
        nb_ask ask = {.shape = NB_ASK_GENERATE, .prompts = prompts, .n_prompts = 2, .n = 2};
        nb_reply r;
        nb_err err = {0};
        nb_alloc_fail_at(at);
        if (nb_reply_init(&r, &ask, 1000, &err) == NB_OK) {
            bool wanted = true;
            for (int i = 0; i < 200 && wanted; i++) {
                nb_engine_event e = token(i % 2, i, "some text");
                if (i >= 198) {
                    e.finish = NB_FINISH_STOP;
                    e.stop = "stop";
                }
                wanted = nb_reply_put(&r, i / 2 % 2, &e);
            }
            nb_problem why = {0};
            if (r.out_of_memory) {
                assert_false(wanted);
                assert_int_equal(r.n_unfinished, 0);
                assert_int_not_equal(nb_reply_failed(&r, &why), NB_OK);
                assert_int_equal(why.http, 500);
            }
        }
        nb_alloc_fail_at(0);
        nb_reply_free(&r);
        assert_int_equal(nb_alloc_live(), live);
    }
}

static void a_stream_that_nobody_takes_ends(void **state)
{
    (void)state;
    nb_prompt prompt = {.tokens.n = 3};
    nb_ask ask = {.shape = NB_ASK_CHAT, .prompts = &prompt, .n_prompts = 1, .n = 1, .stream = true};
    nb_reply r;
    nb_err err = {0};
    assert_int_equal(nb_reply_init(&r, &ask, 100, &err), NB_OK);
    const nb_engine_event e = token(0, 1, "0123456789");
    for (int i = 0; i < 10; i++)
        assert_true(nb_reply_put(&r, 0, &e));
    nb_choice_taken(&r, &r.choices[0]);
    for (int i = 0; i < 10; i++)
        assert_true(nb_reply_put(&r, 0, &e));
    assert_false(nb_reply_put(&r, 0, &e));
    assert_true(r.overflowed && r.n_unfinished == 0);
    nb_reply_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_bytes_become_json),
        cmocka_unit_test(numbers_are_json),
        cmocka_unit_test(a_full_buffer_stays_full),
        cmocka_unit_test(only_the_right_key_is_let_in),
        cmocka_unit_test(keys_come_from_files),
        cmocka_unit_test(addresses_are_taken_or_named),
        cmocka_unit_test(a_stale_socket_is_replaced),
        cmocka_unit_test(openapi_tells_the_routes),
        cmocka_unit_test(routes_are_found),
        cmocka_unit_test(a_reply_survives_without_memory),
        cmocka_unit_test(a_stream_that_nobody_takes_ends),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
