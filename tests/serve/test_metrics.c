/* What /metrics says: every line is one that Prometheus can read, numbers add up, and names from
 * outside cannot break it. The alert rules on top of it. */
#define _GNU_SOURCE
#include "scene.h"

#include "base/clock.h"
#include "serve/alerts.h"
#include "serve/layer_errors.h"
#include "text/unicode.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <math.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char *page_of(const nb_metrics *m, const nb_engine *e)
{
    nb_wire w = {0};
    nb_metrics_write(m, e, &w);
    nb_wire_bytes(&w, "", 1);
    assert_int_equal(w.status, NB_OK);
    char *text = strdup((const char *)w.buf.data);
    nb_wire_free(&w);
    return text;
}

/* name{label="value",...} number: gives where the number begins. */
static const char *check_sample(const char *line)
{
    const char *p = line;
    while (isalnum((unsigned char)*p) || *p == '_' || *p == ':')
        p++;
    assert_true(p > line && !isdigit((unsigned char)*line));
    if (*p == '{') {
        do {
            p++;
            const char *name = p;
            while (isalnum((unsigned char)*p) || *p == '_')
                p++;
            assert_true(p > name && p[0] == '=' && p[1] == '"');
            for (p += 2; *p != '"'; p++) {
                assert_true(*p != 0 && *p != '\n');
                if (*p == '\\') {
                    p++;
                    assert_true(*p == '\\' || *p == '"' || *p == 'n');
                }
            }
            p++;
        } while (*p == ',');
        assert_int_equal(*p, '}');
        p++;
    }
    assert_int_equal(*p, ' ');
    char *end;
    assert_true(isfinite(strtod(p + 1, &end)));
    assert_int_equal(*end, 0);
    return p + 1;
}

/* Every line, in the order that the format asks for: HELP, TYPE, samples of that family. */
static int check_page(const char *text)
{
    char family[100] = "", kind[20] = "";
    int n = 0;
    char *copy = strdup(text), *rest = copy;
    assert_non_null(copy);
    for (size_t i = 0, len = strlen(text); i < len;) {
        int32_t c;
        i += nb_utf8_next((const uint8_t *)text + i, len - i, &c);
        assert_true(c >= 0);
    }
    assert_int_equal(text[strlen(text) - 1], '\n');
    for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
        if (*line == 0)
            continue;
        if (strncmp(line, "# HELP ", 7) == 0) {
            sscanf(line + 7, "%99s", family);
            continue;
        }
        if (strncmp(line, "# TYPE ", 7) == 0) {
            char name[100];
            assert_int_equal(sscanf(line + 7, "%99s %19s", name, kind), 2);
            assert_string_equal(name, family);
            const size_t len = strlen(name);
            const bool total = len > 6 && strcmp(name + len - 6, "_total") == 0;
            if (strcmp(kind, "counter") == 0 && !total)
                fail_msg("the counter %s does not end in _total", name);
            continue;
        }
        assert_int_equal(strncmp(line, family, strlen(family)), 0);
        const double value = strtod(check_sample(line), NULL);
        if (strcmp(kind, "gauge") != 0)
            assert_true(value >= 0);
        n++;
    }
    free(copy);
    return n;
}

static double value_of(const char *page, const char *start)
{
    const char *at = page;
    while ((at = strstr(at, start)) != NULL && at != page && at[-1] != '\n')
        at++;
    if (at == NULL)
        fail_msg("there is no %s", start);
    const char *end = strchr(at, '\n');
    const char *number = end;
    while (number[-1] != ' ')
        number--;
    return strtod(number, NULL);
}

static void the_page_is_well_formed(void **state)
{
    (void)state;
    scene s;
    scene_open_parts(&s, NULL);
    static nb_metrics m;
    memset(&m, 0, sizeof m);
    const nb_layer_error errors[] = {{"0", "self_attn.q\"\\\n", 0.25}, {"", "he\xff\xd0", 1e-9}};
    nb_metrics_init(&m, &s.served);
    m.errors = errors;
    m.n_errors = 2;
    const nb_engine_observer o = nb_metrics_observer(&m);
    static const double HOSTILE[] = {0, -1, INFINITY, -INFINITY, NAN, 1e300, 1e-300, 0.02};
    const nb_engine_request request = {.n = 2, .options.max_tokens = 16};
    for (size_t i = 0; i < sizeof HOSTILE / sizeof *HOSTILE; i++) {
        o.step(o.context, HOSTILE[i], (int64_t)i);
        o.first_token(o.context, HOSTILE[i]);
        o.next_token(o.context, HOSTILE[i]);
        o.finished(o.context, NB_FINISH_STOP, HOSTILE[i], HOSTILE[i], HOSTILE[i], 5, 7, &request);
    }
    o.finished(o.context, NB_FINISH_ABORT, 1, 1, 1, 5, 7, &request);
    for (int i = 0; i < NB_N_REJECTS; i++)
        nb_metrics_reject(&m, (nb_reject)i);
    char *page = page_of(&m, s.engine);
    assert_true(check_page(page) > 300);
    assert_null(strstr(page, " nan"));
    assert_null(strstr(page, " inf"));
    assert_non_null(strstr(page, "model_name=\"fa\\\"ke\\n\\\\\""));
    assert_non_null(strstr(page, "kind=\"self_attn.q\\\"\\\\\\n\""));
    assert_true(value_of(page, "vllm:e2e_request_latency_seconds_count") == 8);
    assert_true(value_of(page, "vllm:request_prompt_tokens_sum") == 40);
    assert_true(value_of(page, "vllm:request_params_n_sum") == 16);
    assert_true(value_of(page, "vllm:kv_cache_usage_perc") == 0.25);
    assert_true(value_of(page, "nibble:http_rejects_total{model_name=\"fa\\\"ke\\n\\\\\",engine="
                               "\"0\",reason=\"overload\"}") == 1);
    free(page);
    /* A name as a path may be, which is cut: at no place inside a character. */
    char name[802] = "\xfe";
    for (int i = 1; i < 801; i += 2)
        memcpy(name + i, i % 100 == 1 ? "\\\"" : "\xd0\xb4", 3);
    s.served.name = name;
    nb_metrics_init(&m, &s.served);
    page = page_of(&m, s.engine);
    (void)check_page(page);
    assert_non_null(strstr(page, "model_name=\"\xEF\xBF\xBD"));
    free(page);
    scene_close(&s);
}

/* Buckets are cumulative, bounds belong to the bucket below, and +Inf is the count. */
static void histograms_count(void **state)
{
    (void)state;
    static const double BOUNDS[] = {1, 2, 5};
    nb_histogram h;
    nb_histogram_init(&h, BOUNDS, 3);
    static const double VALUES[] = {0.5, 1, 1.5, 2, 5, 5.5, 1e9};
    for (size_t i = 0; i < 7; i++)
        nb_histogram_add(&h, VALUES[i]);
    nb_wire w = {0};
    nb_histogram_write(&h, "x", "", &w);
    nb_wire_bytes(&w, "", 1);
    assert_string_equal((const char *)w.buf.data, "x_bucket{le=\"1\"} 2\nx_bucket{le=\"2\"} 4\n"
                                                  "x_bucket{le=\"5\"} 5\nx_bucket{le=\"+Inf\"} 7\n"
                                                  "x_sum{} 1000000015.5\nx_count{} 7\n");
    nb_wire_free(&w);
}

static void p95_is_of_the_last_minute(void **state)
{
    (void)state;
    scene s;
    scene_open_parts(&s, NULL);
    static nb_metrics m;
    memset(&m, 0, sizeof m);
    nb_metrics_init(&m, &s.served);
    const nb_engine_observer o = nb_metrics_observer(&m);
    const nb_engine_request request = {.n = 1};
    for (int i = 1; i <= 19; i++)
        o.finished(o.context, NB_FINISH_STOP, 0, 0, i, 1, 1, &request);
    const double now = nb_clock();
    assert_true(nb_metrics_p95(&m, now, 60) < 0); /* too few to tell */
    for (int i = 20; i <= 100; i++)
        o.finished(o.context, NB_FINISH_STOP, 0, 0, i, 1, 1, &request);
    assert_true(nb_metrics_p95(&m, now, 60) == 95);
    assert_true(nb_metrics_p95(&m, now + 1000, 60) < 0);
    for (int i = 0; i < 3 * NB_LATENCY_WINDOW; i++)
        o.finished(o.context, NB_FINISH_LENGTH, 0, 0, 7, 1, 1, &request);
    assert_true(nb_metrics_p95(&m, now, 60) == 7);
    scene_close(&s);
}

/* ---- alerts ---- */

typedef struct {
    int n;
    char last[300];
} heard;

static void hear(void *context, const char *line)
{
    heard *h = context;
    h->n++;
    snprintf(h->last, sizeof h->last, "%s", line);
}

/* Each rule is told when it begins and when it ends, and not in between. */
static void alerts_are_told_once(void **state)
{
    (void)state;
    scene s;
    scene_open_parts(&s, NULL);
    static nb_metrics m;
    memset(&m, 0, sizeof m);
    nb_metrics_init(&m, &s.served);
    nb_layer_error errors[] = {{"0", "q", 0.06}, {"1", "q", 0.01}};
    m.errors = errors;
    m.n_errors = 2;
    heard h = {0};
    nb_alerts a;
    nb_err err = {0};
    const nb_alert_rules rules = {.memory = 1e-9, .error = 0.05, .latency_s = 2};
    assert_int_equal(nb_alerts_open(&a, &rules, &m, "m", hear, &h, &err), NB_OK);
    nb_alerts_check(&a, nb_clock());
    assert_int_equal(h.n, 2); /* memory, and the error; of latency nothing is known */
    assert_int_equal(atomic_load(&m.alerts[NB_ALERT_MEMORY]), 1);
    assert_int_equal(atomic_load(&m.alerts[NB_ALERT_QUANTIZATION_ERROR]), 1);
    assert_int_equal(atomic_load(&m.alerts[NB_ALERT_LATENCY]), 0);
    nb_alerts_check(&a, nb_clock());
    assert_int_equal(h.n, 2);
    errors[0].value = 0.05; /* at the limit is not above it */
    a.rules.memory = 0.999999;
    nb_alerts_check(&a, nb_clock());
    assert_int_equal(h.n, 4);
    assert_int_equal(atomic_load(&m.alerts[NB_ALERT_QUANTIZATION_ERROR]), 0);
    const nb_engine_observer o = nb_metrics_observer(&m);
    const nb_engine_request request = {.n = 1};
    for (int i = 0; i < 20; i++)
        o.finished(o.context, NB_FINISH_STOP, 0, 1, 1.5, 1, 1, &request);
    nb_alerts_check(&a, nb_clock());
    assert_int_equal(h.n, 5);
    assert_string_equal(h.last, "alert latency: begins: 2.5, the limit is 2");
    nb_alerts_check(&a, nb_clock() + 3600); /* silence is no proof that it is over */
    assert_int_equal(h.n, 5);
    char *page = page_of(&m, s.engine);
    assert_true(value_of(page, "nibble:alert{model_name=\"fa\\\"ke\\n\\\\\",engine=\"0\",name="
                               "\"latency\"}") == 1);
    free(page);
    nb_alerts_close(&a);
    assert_true(nb_alerts_memory(95, 5) == 0.95);
    assert_true(nb_alerts_memory(95, INT64_MAX) == 0);
    assert_true(nb_alerts_memory(0, 0) == 0);
    assert_true(nb_alerts_memory(10, -5) == 1);
    scene_close(&s);
}

static void a_webhook_gets_a_message(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_webhook *w;
#ifdef NIBBLE_WITH_PULL
    nb_listener l;
    assert_int_equal(nb_listen_tcp(&l, "127.0.0.1", 0, &err), NB_OK);
    setenv("no_proxy", "127.0.0.1", 1);
    char url[300];
    snprintf(url, sizeof url, "%s/hook", l.address);
    assert_int_equal(nb_webhook_open(&w, url, &err), NB_OK);
    assert_true(nb_webhook_post(w, "{\"alert\":\"memory\"}", 18));
    int fd = -1;
    for (int i = 0; i < 5000 && fd < 0; i++) {
        fd = accept(l.fd, NULL, NULL);
        usleep(1000);
    }
    assert_true(fd >= 0);
    char got[2000] = "";
    size_t n = 0;
    while (strstr(got, "{\"alert\":\"memory\"}") == NULL) {
        const ssize_t k = recv(fd, got + n, sizeof got - 1 - n, 0);
        assert_true(k > 0);
        n += (size_t)k;
        got[n] = 0;
    }
    assert_int_equal(strncmp(got, "POST /hook HTTP/1.1\r\n", 21), 0);
    scene_send(fd, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 38);
    for (int i = 0; i < 5000 && nb_webhook_n_sent(w) == 0; i++)
        usleep(1000);
    assert_int_equal(nb_webhook_n_sent(w), 1);
    /* Who does not answer holds nobody up: what is too much is dropped, and closing ends it. */
    int n_taken = 0;
    for (int i = 0; i < 100; i++)
        n_taken += nb_webhook_post(w, "{}", 2);
    assert_true(n_taken >= 16 && n_taken <= 18);
    char *long_one = calloc(1, 5000);
    assert_non_null(long_one);
    assert_false(nb_webhook_post(w, long_one, 5000));
    free(long_one);
    nb_webhook_close(w);
    close(fd);
    nb_listener_close(&l);
    assert_int_equal(nb_webhook_open(&w, "file:///etc/passwd", &err), NB_USAGE);
#else
    assert_int_equal(nb_webhook_open(&w, "http://127.0.0.1:1/", &err), NB_UNSUPPORTED);
#endif
    nb_webhook_close(NULL);
}

/* ---- the model's report ---- */

static void errors_are_read_from_a_report(void **state)
{
    (void)state;
    static const char TEXT[] =
        "{\"calibration\":{\"layers\":["
        "{\"name\":\"model.layers.12.mlp.up_proj.weight\",\"loss\":0.5,\"held_out_loss\":0.25},"
        "{\"name\":\"blk.3.attn_q.weight\",\"loss\":0.125},"
        "{\"name\":\"lm_head.weight\",\"loss\":1},"
        "{\"name\":\"model.layers.0.mlp.experts.7.up.weight\",\"loss\":2},"
        "{\"name\":\"no.loss\"}]}}";
    static const nb_layer_error WANT[] = {{"12", "mlp.up_proj", 0.25},
                                          {"3", "attn_q", 0.125},
                                          {"", "lm_head", 1},
                                          {"0", "mlp.experts.7.up", 2}};
    nb_err err = {0};
    json_t *v;
    nb_layer_error *got;
    int64_t n;
    assert_int_equal(nb_json_parse(&v, TEXT, strlen(TEXT), &err), NB_OK);
    assert_int_equal(nb_layer_errors_read(v, &got, &n, &err), NB_OK);
    json_decref(v);
    assert_int_equal(n, 4);
    for (int i = 0; i < 4; i++) {
        assert_string_equal(got[i].layer, WANT[i].layer);
        assert_string_equal(got[i].kind, WANT[i].kind);
        assert_true(got[i].value == WANT[i].value);
    }
    nb_free(got);
    static const char *const NONE[] = {"{}", "{\"calibration\":{}}",
                                       "{\"calibration\":{\"layers\":[]}}"};
    static const char *const BAD[] = {
        "[]",
        "{\"calibration\":1}",
        "{\"calibration\":{\"layers\":{}}}",
        "{\"calibration\":{\"layers\":[1]}}",
        "{\"calibration\":{\"layers\":[{}]}}",
        "{\"calibration\":{\"layers\":[{\"name\":\"a\",\"loss\":\"1\"}]}}"};
    for (size_t i = 0; i < sizeof NONE / sizeof *NONE; i++) {
        assert_int_equal(nb_json_parse(&v, NONE[i], strlen(NONE[i]), &err), NB_OK);
        assert_int_equal(nb_layer_errors_read(v, &got, &n, &err), NB_OK);
        assert_int_equal(n, 0);
        json_decref(v);
    }
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        assert_int_equal(nb_json_parse(&v, BAD[i], strlen(BAD[i]), &err), NB_OK);
        assert_int_equal(nb_layer_errors_read(v, &got, &n, &err), NB_DATA);
        json_decref(v);
    }
    nb_buf text = {0};
    assert_int_equal(nb_layer_errors_load("/nonexistent", &text, &got, &n, &err), NB_OK);
    assert_int_equal(n, 0);
    assert_null(text.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_page_is_well_formed),
        cmocka_unit_test(histograms_count),
        cmocka_unit_test(p95_is_of_the_last_minute),
        cmocka_unit_test(alerts_are_told_once),
        cmocka_unit_test(a_webhook_gets_a_message),
        cmocka_unit_test(errors_are_read_from_a_report),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
