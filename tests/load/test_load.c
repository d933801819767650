/* A whole load on a server of this test's own, when memory fails at every place where it can. The
 * command-line test has the rest. */
#include "support/golden.h"

#include "load/load.h"

#include <string.h>

#ifndef NIBBLE_WITH_PULL

int main(void)
{
    print_message("SKIP: built without libcurl\n");
    return 77;
}

#else

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static const char answer[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    "data: {\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":null}]}\n\n"
    "data: {\"choices\":[{\"index\":0,\"text\":\"b\",\"finish_reason\":\"length\"}]}\n\n"
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n"
    "data: [DONE]\n\n";

static int listener;
static char url[64];

/* The whole request is there: its head, and as many bytes more as that says. */
static bool is_whole(const char *text, size_t n)
{
    const char *body = strstr(text, "\r\n\r\n");
    const char *length = strstr(text, "Content-Length: ");
    return body != NULL && length != NULL &&
           (size_t)(body + 4 - text) + (size_t)strtol(length + 16, NULL, 10) <= n;
}

static void *serve(void *unused)
{
    (void)unused;
    for (;;) {
        const int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            return NULL;
        char text[4096] = "";
        size_t n = 0;
        ssize_t got = 1;
        while (got > 0 && n < sizeof text - 1 && !is_whole(text, n)) {
            got = recv(fd, text + n, sizeof text - 1 - n, 0);
            n += got > 0 ? (size_t)got : 0;
            text[n] = 0;
        }
        if (got > 0)
            (void)!send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
        close(fd);
    }
}

static int start_server(void **state)
{
    static pthread_t thread;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) != 0 ||
        listen(listener, 100) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        return -1;
    snprintf(url, sizeof url, "http://127.0.0.1:%d", ntohs(address.sin_port));
    *state = &thread;
    return pthread_create(&thread, NULL, serve, NULL);
}

static int stop_server(void **state)
{
    shutdown(listener, SHUT_RDWR);
    pthread_join(*(pthread_t *)*state, NULL);
    close(listener);
    return 0;
}

/* Five requests, two in flight. */
static nb_status load_once(nb_load_result *result, int64_t fail_at, nb_err *err)
{
    nb_words words;
    nb_words_init(&words);
    const nb_load_options options = {.concurrency = 2,
                                     .requests = 5,
                                     .burstiness = 1,
                                     .plan = {.input = {3, 3}, .output = {2, 2}},
                                     .words = &words,
                                     .ignore_eos = true};
    *result = (nb_load_result){0};
    nb_target target;
    nb_alloc_fail_at(fail_at);
    nb_status s = nb_target_init(&target, url, false, "m", err);
    target.http = (nb_http_options){.timeout_s = 60, .api_key = "key"};
    if (s == NB_OK)
        s = nb_load_run(result, &target, &options, err);
    nb_alloc_fail_at(0);
    nb_target_free(&target);
    return s;
}

/* Either all five are there, or the status says that memory was out; nothing leaks in between. */
static void memory_may_run_out(void **state)
{
    (void)state;
    int failed = 0;
    for (int64_t n = 1;; n++) {
        const int64_t before = nb_alloc_live();
        nb_err err = {0};
        nb_load_result result;
        const nb_status s = load_once(&result, n, &err);
        if (s == NB_OK) {
            assert_int_equal(result.n, 5);
            assert_int_equal(result.peak_concurrency, 2);
            for (int64_t i = 0; i < result.n; i++) {
                const nb_load_record *r = &result.records[i];
                assert_int_equal(r->fate, NB_FATE_OK);
                assert_int_equal(r->flaws, 0);
                assert_int_equal(r->output_tokens, 2);
                assert_int_equal(r->n_gaps, 1);
                assert_true(r->ttft >= 0 && r->e2el >= r->ttft && r->tpot == r->e2el - r->ttft);
            }
        }
        nb_load_result_free(&result);
        assert_int_equal(nb_alloc_live(), before);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
        failed++;
    }
    assert_true(failed > 20);
}

static bool stop_at_once(void *context, int64_t ended, int64_t total)
{
    (void)ended;
    assert_int_equal(total, 5);
    ++*(int *)context;
    return false;
}

/* A run that is stopped before it began has no requests, and says that it was stopped. */
static void a_run_may_be_stopped(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_words words;
    nb_words_init(&words);
    int calls = 0;
    const nb_load_options options = {.requests = 5,
                                     .burstiness = 1,
                                     .plan = {.input = {3, 3}, .output = {2, 2}},
                                     .words = &words,
                                     .step = stop_at_once,
                                     .context = &calls};
    nb_target target;
    assert_int_equal(nb_target_init(&target, url, true, "m", &err), NB_OK);
    target.http = (nb_http_options){.timeout_s = 60};
    nb_load_result result;
    assert_int_equal(nb_load_run(&result, &target, &options, &err), NB_OK);
    assert_true(result.interrupted && result.n == 0 && calls == 1);
    nb_load_result_free(&result);
    nb_target_free(&target);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_may_run_out),
        cmocka_unit_test(a_run_may_be_stopped),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}

#endif
