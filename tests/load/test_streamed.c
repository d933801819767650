/* What is made of a stream's events: times, tokens, rules. Times here are what the test says. */
#include "support/golden.h"

#include "load/streamed.h"

#include <math.h>
#include <string.h>

#define EVENT(json) "data: " json "\n\n"
#define TEXT(text)                                                                                 \
    EVENT("{\"choices\":[{\"index\":0,\"text\":\"" text "\",\"finish_reason\":null}]}")
#define DELTA(delta)                                                                               \
    EVENT("{\"choices\":[{\"index\":0,\"delta\":" delta ",\"finish_reason\":null}]}")
#define END  EVENT("{\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}")
#define DONE EVENT("[DONE]")
#define USAGE(n)                                                                                   \
    EVENT("{\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":" #n "}}")

/* Feeds pieces at 1, 2, 4, 8, ... seconds: every gap is another. */
static nb_status feed_all(nb_streamed *s, const char *const *pieces, nb_err *err)
{
    double now = 1;
    for (int i = 0; pieces[i] != NULL; i++) {
        NB_TRY(nb_streamed_feed(s, pieces[i], strlen(pieces[i]), now, err));
        now *= 2;
    }
    return NB_OK;
}

/* First token, gaps and end are those of the events that carry tokens, whatever is between. */
static void times_are_those_of_tokens(void **state)
{
    (void)state;
    const char *const pieces[] = {
        DELTA("{\"role\":\"assistant\",\"content\":\"\"}"),
        ": ping\n\n",
        DELTA("{\"content\":\"a\"}"), /* at 4 */
        DELTA("{}"),
        DELTA("{\"content\":\"\"}"),                               /* 16: bytes held back */
        DELTA("{\"content\":null,\"reasoning_content\":\"b\"}"),   /* 32 */
        DELTA("{\"tool_calls\":[{}]}"),                            /* 64 */
        DELTA("{\"content\":\"c\"}") DELTA("{\"content\":\"d\"}"), /* 128 */
        EVENT("{\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}"),
        USAGE(6),
        DONE,
        NULL};
    static const double gaps[] = {12, 16, 32, 64, 0};
    nb_err err = {0};
    nb_streamed s = {0};
    for (int again = 0; again < 2; again++) { /* buffers are kept, nothing else is */
        nb_streamed_begin(&s, 100);
        assert_int_equal(feed_all(&s, pieces, &err), NB_OK);
        nb_streamed_end(&s, true);
        assert_int_equal(s.fate, NB_FATE_OK);
        assert_int_equal(s.flaws, 0);
        assert_true(s.first == 4 && s.token == 128 && s.last == 256);
        assert_int_equal(s.n_token_events, 6);
        assert_int_equal(s.gaps.len, sizeof gaps);
        assert_memory_equal(s.gaps.data, gaps, sizeof gaps);
        assert_int_equal(nb_streamed_n_tokens(&s), 6);
        assert_int_equal(s.prompt_tokens, 5);
        assert_int_equal(s.cached_tokens, -1);
    }
    nb_streamed_free(&s);
}

/* Usage may claim anything; only whole numbers that can be are believed. */
static void odd_usage_is_not_believed(void **state)
{
    (void)state;
    static const struct {
        const char *event;
        int64_t prompt, output, cached;
    } rows[] = {
        {EVENT("{\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,"
               "\"prompt_tokens_details\":{\"cached_tokens\":1}}}"),
         3, 2, 1},
        {EVENT("{\"usage\":{\"prompt_tokens\":-3,\"completion_tokens\":2.5}}"), -1, -1, -1},
        {EVENT("{\"usage\":{\"prompt_tokens\":\"3\",\"completion_tokens\":null,"
               "\"prompt_tokens_details\":[]}}"),
         -1, -1, -1},
        {EVENT("{\"usage\":{\"completion_tokens\":9223372036854775807}}"), -1, -1, -1},
        {EVENT("{\"choices\":[],\"usage\":null}"), -1, -1, -1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nb_err err = {0};
        nb_streamed s = {0};
        nb_streamed_begin(&s, 100);
        const char *const pieces[] = {TEXT("a"), rows[i].event, END, DONE, NULL};
        assert_int_equal(feed_all(&s, pieces, &err), NB_OK);
        nb_streamed_end(&s, true);
        assert_int_equal(s.fate, NB_FATE_OK);
        assert_int_equal(s.prompt_tokens, rows[i].prompt);
        assert_int_equal(s.output_tokens, rows[i].output);
        assert_int_equal(s.cached_tokens, rows[i].cached);
        assert_int_equal(nb_streamed_n_tokens(&s), rows[i].output < 0 ? 1 : rows[i].output);
        assert_int_equal(s.flaws, rows[i].output < 0 ? 1u << NB_FLAW_NO_USAGE : 0);
        nb_streamed_free(&s);
    }
}

/* Events of odd types neither crash nor count. */
static void odd_events_do_no_harm(void **state)
{
    (void)state;
    static const char *const odd[] = {
        EVENT("{}"),
        EVENT("[]"),
        EVENT("{\"choices\":{}}"),
        EVENT("{\"choices\":[]}"),
        EVENT("{\"choices\":[null]}"),
        EVENT("{\"choices\":[3]}"),
        EVENT("{\"choices\":[{\"delta\":[],\"text\":7}]}"),
        EVENT("{\"choices\":[{\"delta\":{\"content\":{},\"tool_calls\":{}}}]}"),
        EVENT("{\"error\":null,\"choices\":\"\"}"),
    };
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        nb_err err = {0};
        nb_streamed s = {0};
        nb_streamed_begin(&s, 100);
        const char *const pieces[] = {TEXT("a"), odd[i], TEXT("b"), END, USAGE(2), DONE, NULL};
        assert_int_equal(feed_all(&s, pieces, &err), NB_OK);
        nb_streamed_end(&s, true);
        assert_int_equal(s.fate, NB_FATE_OK);
        assert_int_equal(s.n_token_events, 2);
        assert_int_equal(s.flaws & ~(1u << NB_FLAW_UNKNOWN_EVENT), 0);
        nb_streamed_free(&s);
    }
}

/* The first thing that goes wrong is what is told, not what follows from it. */
static void the_first_fate_stays(void **state)
{
    (void)state;
    static const struct {
        const char *event, *message;
        nb_fate fate;
    } rows[] = {
        {EVENT("{\"error\":{\"message\":\"no %s%n\"}}"), "no %s%n", NB_FATE_ERROR_EVENT},
        {EVENT("{\"error\":\"text\"}"), "text", NB_FATE_ERROR_EVENT},
        {EVENT("{\"error\":{}}"), "an error without message", NB_FATE_ERROR_EVENT},
        {TEXT("b") TEXT("c"), "more than 2 events with tokens", NB_FATE_BROKEN},
        {EVENT("{"), NULL, NB_FATE_BROKEN},
        {EVENT(""), NULL, NB_FATE_BROKEN},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nb_err err = {0};
        nb_streamed s = {0};
        nb_streamed_begin(&s, 2);
        const char *const pieces[] = {TEXT("a"), rows[i].event, NULL};
        const nb_status status = feed_all(&s, pieces, &err);
        assert_true(status != NB_OK && status != NB_MEMORY);
        nb_streamed_end(&s, false);
        nb_streamed_fail(&s, NB_FATE_TIMEOUT, "late");
        assert_int_equal(s.fate, rows[i].fate);
        if (rows[i].message != NULL)
            assert_string_equal(s.message, rows[i].message);
        nb_streamed_free(&s);
    }
}

/* Wherever the connection ends, the answer is cut; after [DONE] it only is untidy. */
static void every_cut_is_seen(void **state)
{
    (void)state;
    static const char whole[] = TEXT("a") TEXT("b") END USAGE(2) DONE;
    const size_t n = sizeof whole - 1, done = n - strlen(DONE);
    for (size_t cut = 0; cut <= n; cut++) {
        nb_err err = {0};
        nb_streamed s = {0};
        nb_streamed_begin(&s, 100);
        for (size_t i = 0; i < cut; i++)
            assert_int_equal(nb_streamed_feed(&s, whole + i, 1, 1, &err), NB_OK);
        nb_streamed_end(&s, false);
        assert_int_equal(s.fate, cut < n ? NB_FATE_CUT : NB_FATE_OK);
        assert_int_equal(s.flaws, cut < n ? 0 : 1u << NB_FLAW_CUT_AFTER_DONE);
        /* An end by HTTP's own rules between the finish and [DONE] loses nothing. */
        nb_streamed_begin(&s, 100);
        assert_int_equal(nb_streamed_feed(&s, whole, cut, 1, &err), NB_OK);
        nb_streamed_end(&s, true);
        const size_t finish = strlen(TEXT("a") TEXT("b") END);
        assert_int_equal(s.fate, cut < finish ? NB_FATE_CUT : NB_FATE_OK);
        if (cut > done && cut < n - 1)
            assert_true((s.flaws & 1u << NB_FLAW_OPEN_END) != 0);
        nb_streamed_free(&s);
    }
}

/* Memory that runs out is ours, and never a fate of the server's. */
static void memory_may_run_out(void **state)
{
    (void)state;
    const char *const pieces[] = {
        TEXT("a"), "data: {\"choi", "ces\":[]}\n\n", TEXT("b"), TEXT("c"), END, DONE, NULL};
    int failed = 0;
    for (int64_t n = 1;; n++) {
        const int64_t before = nb_alloc_live();
        nb_err err = {0};
        nb_streamed s = {0};
        nb_streamed_begin(&s, 100);
        nb_alloc_fail_at(n);
        const nb_status status = feed_all(&s, pieces, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(s.fate, NB_FATE_OK);
        nb_streamed_free(&s);
        assert_int_equal(nb_alloc_live(), before);
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_MEMORY);
        failed++;
    }
    assert_true(failed >= 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times_are_those_of_tokens), cmocka_unit_test(odd_usage_is_not_believed),
        cmocka_unit_test(odd_events_do_no_harm),     cmocka_unit_test(the_first_fate_stays),
        cmocka_unit_test(every_cut_is_seen),         cmocka_unit_test(memory_may_run_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
