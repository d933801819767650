/* An answer's text taken apart into content and calls: whole, and cut at every place, which must
 * make no difference; broken in every way that models break it; and with memory that runs out. */
#include "support/golden.h"

#include "base/rng.h"
#include "serve/tool_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* content|name(arguments)|name(arguments)... of what was taken apart. */
static void tell(const nb_tool_calls *c, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "%.*s", (int)c->content.len,
                                c->content.len > 0 ? (const char *)c->content.data : "");
    for (int64_t i = 0; i < c->n_calls; i++) {
        const nb_tool_call *call = &c->calls[i];
        assert_int_equal(strlen((const char *)call->name.data), call->name.len - 1);
        n += (size_t)snprintf(out + n, size - n, "|%s(%.*s)", (const char *)call->name.data,
                              (int)call->arguments.len,
                              call->arguments.len > 0 ? (const char *)call->arguments.data : "");
    }
    assert_true(n < size);
}

static const struct {
    nb_tool_style style;
    bool inside;
    const char *text, *want;
} CASES[] = {
    /* Hermes */
    {NB_TOOLS_HERMES, false, "Hello <b>you</b>.\n", "Hello <b>you</b>.\n"},
    {NB_TOOLS_HERMES, false, "", ""},
    {NB_TOOLS_HERMES, false, " \n ", " \n "},
    {NB_TOOLS_HERMES, false,
     "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, {\"b\": "
     "\"}\\\"]\"}]}}\n</tool_call>",
     "|f({\"a\": [1, {\"b\": \"}\\\"]\"}]})"},
    {NB_TOOLS_HERMES, false,
     "Let me see.\n\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n<tool_call>\n"
     "{\"name\":\"g\",\"arguments\":{\"x\":1}}\n</tool_call>\n",
     "Let me see.|f({})|g({\"x\":1})"},
    {NB_TOOLS_HERMES, false, "a<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call> and more",
     "a and more|f({})"},
    {NB_TOOLS_HERMES, false, "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>",
     "|f({\"a\": 1})"},
    {NB_TOOLS_HERMES, false, "<tool_call>{\"name\": \"f\"}</tool_call>", "|f({})"},
    {NB_TOOLS_HERMES, false, "<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>",
     "|f({})"},
    {NB_TOOLS_HERMES, false,
     "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"\\u00e9\\\"}\"}</tool_call>",
     "|f({\"a\": \"\xC3\xA9\"})"},
    {NB_TOOLS_HERMES, false,
     "<tool_call>{\"name\": \"\\u0066\\\"\", \"arguments\": {}}</tool_call>", "|f\"({})"},
    {NB_TOOLS_HERMES, false,
     "<tool_call>{\"id\": 7, \"type\": \"function\", \"x\": [\"}\"], \"name\": \"f\", "
     "\"parameters\": "
     "{\"a\": 1}}</tool_call>",
     "|f({\"a\": 1})"},
    {NB_TOOLS_HERMES, false,
     "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}}</tool_call>!", "!|f({\"a\": 1})"},
    {NB_TOOLS_HERMES, false,
     "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}<tool_call>"
     "{\"name\": \"g\", \"arguments\": {}}",
     "|f({\"a\": 1})|g({})"},
    {NB_TOOLS_HERMES, false, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"un",
     "|f({\"a\": \"un)"},
    {NB_TOOLS_HERMES, false,
     "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}, \"arguments\": {\"a\": "
     "2}}</tool_call>",
     "|f({\"a\": 1})"},
    /* what only looks like it */
    {NB_TOOLS_HERMES, false, "if a <tool_cal> b", "if a <tool_cal> b"},
    {NB_TOOLS_HERMES, false, "x </tool_call> <", "x </tool_call> <"},
    {NB_TOOLS_HERMES, false, "<<<tool_call", "<<<tool_call"},
    {NB_TOOLS_HERMES, false, "</<tool_call>{\"name\":\"f\",\"arguments\":{}}", "</|f({})"},
    {NB_TOOLS_HERMES, false, "say <tool_call> no", "say <tool_call> no"},
    {NB_TOOLS_HERMES, false, "<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>"},
    {NB_TOOLS_HERMES, false, "<tool_call>{\"a\": 1}</tool_call>",
     "<tool_call>{\"a\": 1}</tool_call>"},
    {NB_TOOLS_HERMES, false, "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>",
     "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>"},
    {NB_TOOLS_HERMES, false, " <tool_call>{\"name\": \"f", " <tool_call>{\"name\": \"f"},
    {NB_TOOLS_HERMES, false, "<tool_call>{name: \"f\"}</tool_call>",
     "<tool_call>{name: \"f\"}</tool_call>"},
    /* the prompt has the tag */
    {NB_TOOLS_HERMES, true, "{\"name\": \"f\", \"arguments\": {\"a\": 1}}", "|f({\"a\": 1})"},
    {NB_TOOLS_HERMES, true, "{\"name\": \"f\", \"argum", "{\"name\": \"f\", \"argum"},
    /* Llama */
    {NB_TOOLS_LLAMA3, false, "Hello {\"name\": \"f\", \"parameters\": {}}",
     "Hello {\"name\": \"f\", \"parameters\": {}}"},
    {NB_TOOLS_LLAMA3, false, " \n{\"name\": \"f\", \"parameters\": {\"q\": \"}; {\"}}\n",
     "|f({\"q\": \"}; {\"})"},
    {NB_TOOLS_LLAMA3, false,
     "{\"name\": \"f\", \"parameters\": {\"a\": 1}}; {\"name\": \"g\", \"arguments\": {}}",
     "|f({\"a\": 1})|g({})"},
    {NB_TOOLS_LLAMA3, false, "{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}",
     "|f({})"},
    {NB_TOOLS_LLAMA3, false, "{\"name\": \"Bob\", \"age\": 7}", "{\"name\": \"Bob\", \"age\": 7}"},
    {NB_TOOLS_LLAMA3, false, "{\"name\": \"f\", \"parameters\": {}} is it", " is it|f({})"},
    {NB_TOOLS_LLAMA3, false, "{ never mind", "{ never mind"},
    {NB_TOOLS_LLAMA3, false, "  ", "  "},
    {NB_TOOLS_OTHER, true, "{\"name\": \"f\", \"arguments\": {}}", "|f({})"},
};

static void take_apart(size_t i, size_t step, uint64_t seed, char *out, size_t size)
{
    nb_tool_calls c;
    nb_err err = {0};
    const char *text = CASES[i].text;
    const size_t len = strlen(text);
    nb_tool_calls_init(&c, CASES[i].style, CASES[i].inside, NB_MAX_TOOL_CALLS);
    for (size_t at = 0, k = 0; at < len; k++) {
        size_t n = step > 0 ? step : 1 + (size_t)(nb_rng_uniform(seed, i, k) * 7);
        n = n < len - at ? n : len - at;
        assert_int_equal(nb_tool_calls_put(&c, text + at, n, &err), NB_OK);
        at += n;
    }
    assert_int_equal(nb_tool_calls_end(&c, &err), NB_OK);
    tell(&c, out, size);
    nb_tool_calls_free(&c);
}

static void texts_are_taken_apart_however_they_are_cut(void **state)
{
    (void)state;
    char got[2000];
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
        for (uint64_t how = 0; how < 20; how++) {
            take_apart(i, how == 0 ? 100000 : how == 1 ? 1 : 0, how, got, sizeof got);
            if (strcmp(got, CASES[i].want) != 0)
                fail_msg("%s\n gives  %s\n not    %s", CASES[i].text, got, CASES[i].want);
        }
}

/* What was told stays: content and arguments only grow, names and ids are fixed. */
static void what_was_told_is_not_taken_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        nb_tool_calls c;
        nb_err err = {0};
        char before[2000] = "", now[2000], id[40] = "";
        size_t content = 0;
        int64_t n_calls = 0;
        nb_tool_calls_init(&c, CASES[i].style, CASES[i].inside, NB_MAX_TOOL_CALLS);
        for (const char *p = CASES[i].text; *p != 0; p++) {
            assert_int_equal(nb_tool_calls_put(&c, p, 1, &err), NB_OK);
            assert_true(c.content.len >= content && c.n_calls >= n_calls);
            if (n_calls > 0)
                assert_string_equal(c.calls[0].id, id);
            if (c.n_calls > 0)
                memcpy(id, c.calls[0].id, sizeof id);
            tell(&c, now, sizeof now);
            if (c.n_calls == n_calls && n_calls > 0 && c.content.len == content)
                assert_int_equal(strncmp(now, before, strlen(before) - 1), 0);
            content = c.content.len;
            n_calls = c.n_calls;
            memcpy(before, now, sizeof now);
        }
        nb_tool_calls_free(&c);
    }
}

/* A call is told of when it begins, not when it ends. */
static void arguments_come_as_they_are_written(void **state)
{
    (void)state;
    static const char BEGINNING[] = "Hm. <tool_call>{\"name\": \"f\", \"arguments\": {\"te";
    nb_tool_calls c;
    nb_err err = {0};
    nb_tool_calls_init(&c, NB_TOOLS_HERMES, false, 9);
    assert_int_equal(nb_tool_calls_put(&c, BEGINNING, sizeof BEGINNING - 1, &err), NB_OK);
    assert_int_equal(c.n_calls, 1);
    assert_memory_equal(c.calls[0].arguments.data, "{\"te", 4);
    assert_int_equal(c.calls[0].arguments.len, 4);
    assert_int_equal(strncmp(c.calls[0].id, "call_", 5), 0);
    assert_int_equal(c.content.len, 3);
    nb_tool_calls_free(&c);
}

static void calls_have_a_limit(void **state)
{
    (void)state;
    static const char ONE[] =
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1]}}</tool_call>";
    for (int64_t most = 1; most < 300; most += 149) {
        nb_tool_calls c;
        nb_err err = {0};
        nb_tool_calls_init(&c, NB_TOOLS_HERMES, false, most);
        for (int i = 0; i < 400; i++)
            assert_int_equal(nb_tool_calls_put(&c, ONE, sizeof ONE - 1, &err), NB_OK);
        assert_int_equal(nb_tool_calls_put(&c, "end", 3, &err), NB_OK);
        assert_int_equal(c.n_calls, most < NB_MAX_TOOL_CALLS ? most : NB_MAX_TOOL_CALLS);
        assert_int_equal(c.content.len, 3);
        for (int64_t i = 0; i < c.n_calls; i++)
            assert_int_equal(c.calls[i].arguments.len, 10);
        nb_tool_calls_free(&c);
    }
}

/* Bytes of all kinds, and pieces of calls in any order: never a crash; and whatever is cut, the
 * same. */
static void any_text_is_taken_apart(void **state)
{
    (void)state;
    static const char *const PIECES[] = {"<tool_call>", "</tool_call>",
                                         "{",           "}",
                                         "[",           "]",
                                         "\"",          "\\",
                                         "\"name\":",   "\"f\"",
                                         ",",           "\"arguments\":",
                                         ":",           " ",
                                         "\n",          "<",
                                         "/",           "null",
                                         "7",           ";",
                                         "\xC3\xA9",    "text"};
    for (uint64_t round = 0; round < 3000; round++) {
        char text[600];
        size_t n = 0;
        for (uint64_t k = 0; k < 40; k++)
            n +=
                (size_t)sprintf(text + n, "%s", PIECES[(size_t)(nb_rng_uniform(round, 1, k) * 22)]);
        char told[2][2000];
        for (int way = 0; way < 2; way++) {
            nb_tool_calls c;
            nb_err err = {0};
            nb_tool_calls_init(&c, round % 2 == 0 ? NB_TOOLS_HERMES : NB_TOOLS_LLAMA3,
                               round % 3 == 0, 5);
            for (size_t at = 0; at < n; at += way == 0 ? n : 1)
                assert_int_equal(nb_tool_calls_put(&c, text + at, way == 0 ? n : 1, &err), NB_OK);
            assert_int_equal(nb_tool_calls_end(&c, &err), NB_OK);
            tell(&c, told[way], sizeof told[way]);
            nb_tool_calls_free(&c);
        }
        assert_string_equal(told[0], told[1]);
    }
}

static void memory_may_fail(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const int64_t live = nb_alloc_live();
        nb_status s = NB_MEMORY;
        for (int at = 1; s != NB_OK; at++) {
            nb_tool_calls c;
            nb_err err = {0};
            nb_tool_calls_init(&c, CASES[i].style, CASES[i].inside, 9);
            nb_alloc_fail_at(at);
            s = nb_tool_calls_put(&c, CASES[i].text, strlen(CASES[i].text), &err);
            if (s == NB_OK)
                s = nb_tool_calls_end(&c, &err);
            nb_alloc_fail_at(0);
            assert_true(s == NB_OK || s == NB_MEMORY);
            nb_tool_calls_free(&c);
            assert_int_equal(nb_alloc_live(), live);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_are_taken_apart_however_they_are_cut),
        cmocka_unit_test(what_was_told_is_not_taken_back),
        cmocka_unit_test(arguments_come_as_they_are_written),
        cmocka_unit_test(calls_have_a_limit),
        cmocka_unit_test(any_text_is_taken_apart),
        cmocka_unit_test(memory_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
