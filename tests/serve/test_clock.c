/* The calendar jumps while requests run: latencies stay what they were, and nothing times out, for
 * all that is measured is measured by the monotonic clock. Only dates follow the calendar. */
#define _GNU_SOURCE
#include "scene.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static atomic_long ahead; /* of the calendar, in seconds */

/* In place of the C library's, for this program and the libraries that it uses. */
__attribute__((visibility("default"))) int clock_gettime(clockid_t id, struct timespec *to)
{
    const int result = (int)syscall(SYS_clock_gettime, id, to);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        to->tv_sec += atomic_load(&ahead);
    return result;
}

__attribute__((visibility("default"))) time_t time(time_t *to)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (to != NULL)
        *to = now.tv_sec;
    return now.tv_sec;
}

static void send_stream(int fd)
{
    static const char REQUEST[] =
        "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 61\r\n\r\n"
        "{\"prompt\":\"abc!slow\",\"max_tokens\":10,\"stream\":true,\"seed\": 1}";
    scene_send(fd, REQUEST, sizeof REQUEST - 1);
}

static double metric(const char *page, const char *name)
{
    char line[80];
    snprintf(line, sizeof line, "\n%s{", name);
    const char *at = strstr(page, line);
    assert_non_null(at);
    return strtod(strstr(at, "} ") + 2, NULL);
}

static void a_calendar_that_jumps_changes_no_latency(void **state)
{
    (void)state;
    static const long JUMPS[] = {400L * 86400, -400L * 86400, 7200, -86400, 0};
    static const char *const SUMS[] = {
        "vllm:e2e_request_latency_seconds_sum", "vllm:time_to_first_token_seconds_sum",
        "vllm:request_queue_time_seconds_sum", "vllm:request_decode_time_seconds_sum",
        "vllm:inter_token_latency_seconds_sum"};
    scene s;
    scene_open(&s, &(fake_engine){.step_us = 500},
               &(nb_server_setup){.idle_s = 60, .send_s = 15, .ping_s = 3600});
    const int idle = scene_connect(&s);
    const int64_t before = (int64_t)time(NULL);
    for (size_t i = 0; i < sizeof JUMPS / sizeof *JUMPS; i++) {
        const int fd = scene_connect(&s);
        bool closed;
        send_stream(fd);
        usleep(10000); /* somewhere in the middle, at best */
        atomic_store(&ahead, JUMPS[i]);
        char *answer = scene_receive(fd, 20, &closed);
        assert_int_equal(scene_status(answer), 200);
        assert_non_null(strstr(answer, "data: [DONE]"));
        assert_null(strstr(answer, ": ping"));
        free(answer);
        close(fd);
    }
    atomic_store(&ahead, 400L * 86400);
    char *answer = scene_ask(&s, "POST", "/v1/completions", "", "{\"prompt\":\"a\"}");
    json_t *v = scene_json(answer);
    assert_true(json_integer_value(json_object_get(v, "created")) >= before + 400L * 86400);
    json_decref(v);
    free(answer);
    char *page = scene_ask(&s, "GET", "/metrics", "", "");
    for (size_t i = 0; i < sizeof SUMS / sizeof *SUMS; i++) {
        const double sum = metric(page, SUMS[i]);
        assert_true(sum >= 0 && sum < 600);
    }
    assert_int_equal((int)metric(page, "nibble:client_disconnects_total"), 0);
    free(page);
    /* Who was silent all the while is still welcome. */
    static const char HEALTH[] = "GET /health HTTP/1.1\r\nHost: t\r\n\r\n";
    bool closed;
    scene_send(idle, HEALTH, sizeof HEALTH - 1);
    answer = scene_receive(idle, 20, &closed);
    assert_int_equal(scene_status(answer), 200);
    free(answer);
    close(idle);
    atomic_store(&ahead, 0);
    scene_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_calendar_that_jumps_changes_no_latency),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
