/* The template interpreter against Jinja2's own output, and its budgets against templates that
 * mean harm. */
#define _GNU_SOURCE
#include "support/golden.h"

#include "text/jinja.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nb_status render(const char *text, size_t len, const json_t *context,
                        const nb_jinja_limits *limits, nb_buf *out, nb_err *err)
{
    nb_jinja *t;
    nb_status s = nb_jinja_parse(&t, text, len, err);
    if (s != NB_OK)
        return s;
    s = nb_jinja_render(t, context, limits, out, err);
    nb_jinja_free(t);
    return s;
}

static const nb_jinja_limits JULY = {.now = "26 Jul 2024"};

/* Renders a text without variables under limits. */
static nb_status render_text(const char *text, const nb_jinja_limits *limits, nb_buf *out,
                             nb_err *err)
{
    json_t *none = json_object();
    const nb_status s = render(text, strlen(text), none, limits, out, err);
    json_decref(none);
    return s;
}

static void check_case(const json_t *c)
{
    const char *name = json_string_value(golden_get(c, "name"));
    const json_t *text = golden_get(c, "template");
    nb_buf out = {0};
    nb_err err = {0};
    const nb_status s = render(json_string_value(text), json_string_length(text),
                               golden_get(c, "context"), &JULY, &out, &err);
    if (s != NB_OK)
        fail_msg("%s: %s\n%s", name, err.text, json_string_value(text));
    const json_t *want = golden_get(c, "output");
    if (out.len != json_string_length(want) ||
        (out.len > 0 && memcmp(out.data, json_string_value(want), out.len) != 0))
        fail_msg("%s: %s\nrendered\n%.*s\ninstead of\n%s", name, json_string_value(text),
                 (int)out.len, (const char *)out.data, json_string_value(want));
    nb_buf_free(&out);
}

/* The error of ours has to say what Jinja's says, where a golden file gives its text. */
static void check_error(const json_t *c)
{
    const char *name = json_string_value(golden_get(c, "name"));
    const json_t *text = golden_get(c, "template");
    nb_buf out = {0};
    nb_err err = {0};
    const nb_status s = render(json_string_value(text), json_string_length(text),
                               golden_get(c, "context"), &JULY, &out, &err);
    if (s == NB_OK)
        fail_msg("%s: rendered without an error: %.*s", name, (int)out.len, (const char *)out.data);
    const json_t *want = json_object_get(c, "error");
    if (want != NULL) {
        const char *message = strstr(json_string_value(want), ": ");
        assert_non_null(message);
        if (strstr(err.text, message + 2) == NULL)
            fail_msg("%s: '%s' does not say '%s'", name, err.text, message + 2);
    }
    assert_int_equal(out.len, 0);
    nb_buf_free(&out);
}

static void check_file(const char *file)
{
    json_t *golden = golden_load(file);
    size_t i;
    const json_t *c;
    assert_true(json_array_size(golden_get(golden, "render")) > 30);
    assert_true(json_array_size(golden_get(golden, "errors")) > 4);
    json_array_foreach(golden_get(golden, "render"), i, c) check_case(c);
    json_array_foreach(golden_get(golden, "errors"), i, c) check_error(c);
    json_decref(golden);
}

static void golden_templates_render_as_jinja_does(void **state)
{
    (void)state;
    check_file("jinja.json");
    check_file("jinja_more.json");
}

/* Output is appended, and a failure takes back what it wrote. */
static void output_is_appended_or_left_alone(void **state)
{
    (void)state;
    nb_buf out = {0};
    nb_err err = {0};
    assert_int_equal(nb_buf_text(&out, "before ", &err), NB_OK);
    assert_int_equal(render_text("a{{ 'b' ~ 1 }}", NULL, &out, &err), NB_OK);
    assert_int_equal(out.len, 10);
    assert_memory_equal(out.data, "before ab1", 10);
    assert_int_equal(render_text("some text {{ 'b' + 1 }}", NULL, &out, &err), NB_DATA);
    assert_int_equal(out.len, 10);
    nb_buf_free(&out);
}

static void errors_name_the_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } CASES[] = {
        {"a\nb\n{{ 'x' + 1 }}",
         "chat template: line 3: can only concatenate str (not \"int\") to str"},
        {"a\n\n{% if %}", "chat template: line 3: Expected an expression, got 'end of statement "
                          "block'"},
        {"\n{{ 'a", "chat template: line 2: unexpected char ''': the string does not end"},
        {"x\n{% for i in y %}\n", "chat template: line 2: unexpected end of template, 'endfor' is "
                                  "missing"},
        {"{{ raise_exception('no \xC3\xA9 system') }}", "no \\xc3\\xa9 system"},
        {"\n{{ messages[0].content }}", "chat template: line 2: 'messages' is undefined"},
        {"{{ {}.a.b }}", "chat template: line 1: 'dict object' has no attribute 'a'"},
        {"{{ ''.__class__ }}",
         "chat template: line 1: access to attribute '__class__' of 'str' object is unsafe."},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        nb_buf out = {0};
        nb_err err = {0};
        assert_int_equal(render_text(CASES[i].text, NULL, &out, &err), NB_DATA);
        assert_string_equal(err.text, CASES[i].message);
        nb_buf_free(&out);
    }
}

/* ---- templates that mean harm ---- */

static void expect_limit(const char *text, const nb_jinja_limits *limits, const char *says)
{
    nb_buf out = {0};
    nb_err err = {0};
    const nb_status s = render_text(text, limits, &out, &err);
    if (s != NB_LIMIT || strstr(err.text, says) == NULL)
        fail_msg("%.60s: status %d, '%s' instead of '%s'", text, (int)s, err.text, says);
    assert_int_equal(out.len, 0);
    nb_buf_free(&out);
}

static void endless_templates_end(void **state)
{
    (void)state;
    const nb_jinja_limits few = {.max_steps = 200000};
#define FOR(x) "{% for " x " in range(100000) %}"
#define END    "{% endfor %}"
    expect_limit(
        "{% set r = range(100000) %}{% for a in r %}{% for b in r %}{% for c in r %}" END END END,
        NULL, "more than 10000000 steps");
    expect_limit(FOR("a") FOR("b") "{% set x = a * b %}" END END, &few, "more than 200000 steps");
    expect_limit("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", NULL, "nests deeper");
    expect_limit("{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}",
                 NULL, "nests deeper");
    expect_limit(FOR("a") "{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 1000 }}" END, NULL,
                 "renders more than");
    expect_limit("{{ 'x' * 9223372036854775807 }}", NULL, "more than");
    expect_limit("{{ [0] * 9223372036854775807 }}", NULL, "MiB of memory");
    expect_limit("{% set ns = namespace(s='x') %}" FOR("a") "{% set ns.s = ns.s ~ ns.s %}" END,
                 NULL, "more than");
    expect_limit("{% set ns = namespace(s=[1]) %}" FOR("a") "{% set ns.s = ns.s + ns.s %}" END,
                 NULL, "MiB of memory");
    /* Sixty lists that print 2^60 numbers, and compare as slowly. */
    expect_limit("{% set ns = namespace(s=[1]) %}{% for a in range(60) %}"
                 "{% set ns.s = [ns.s, ns.s] %}" END "{{ ns.s }}",
                 NULL, "more than");
    expect_limit("{% set ns = namespace(s=[1], t=[1]) %}{% for a in range(60) %}"
                 "{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}" END
                 "{{ ns.s == ns.t }}",
                 &few, "more than 200000 steps");
    /* A list inside itself. */
    expect_limit("{% set l = [1] %}{% set _ = l.append(l) %}{{ l }}", NULL, "nests deeper");
    expect_limit("{% set l = [1] %}{% set _ = l.append(l) %}{{ l|tojson }}", NULL, "nests deeper");
    expect_limit("{% set l = [] %}{% set m = [] %}{% set _ = l.append(m) %}{% set _ = "
                 "m.append(l) %}{{ l == m }}",
                 NULL, "nests deeper");
    expect_limit("{% set d = {} %}{% set _ = d.update(d=d) %}{{ d }}", NULL, "nests deeper");
    expect_limit("{{ ('a' * 1000000).strip('b' * 1000000 ~ 'a') }}", NULL, "steps");
}

/* PREFIX repeated, then `middle`, then SUFFIX repeated. */
static char *repeated(const char *prefix, const char *middle, const char *suffix, size_t n)
{
    char *text = malloc(n * (strlen(prefix) + strlen(suffix)) + strlen(middle) + 1), *p = text;
    assert_non_null(text);
    for (size_t i = 0; i < n; i++)
        p = stpcpy(p, prefix);
    p = stpcpy(p, middle);
    for (size_t i = 0; i < n; i++)
        p = stpcpy(p, suffix);
    return text;
}

/* The text between two others; frees it. */
static char *between(const char *before, char *text, const char *behind)
{
    char *whole = malloc(strlen(before) + strlen(text) + strlen(behind) + 1);
    assert_non_null(whole);
    stpcpy(stpcpy(stpcpy(whole, before), text), behind);
    free(text);
    return whole;
}

/* A template of 50,000 levels is accepted, so that its model loads, and refused when it is to be
 * rendered; the same nesting at a depth that people write works. */
static void deep_nesting_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *prefix, *middle, *suffix, *says;
        bool block;
    } CASES[] = {
        {"(", "1", ")", "nested deeper", false},
        {"[", "1", "]", "nested deeper", false},
        {"{1:", "1", "}", "nested deeper", false},
        {"not ", "1", "", "nested deeper", false},
        {"- ", "1", "", "nested deeper", false},
        {"1 if 1 else ", "1", "", "nested deeper", false},
        {"'a'.join(", "'x'", ")", "nested deeper", false},
        {"[0][", "0", "]", "nested deeper", false},
        {"1|default(", "1", ")", "nested deeper", false},
        {"1 is sameas [", "1", "]", "nested deeper", false},
        {"1 + ", "1", "", "evaluation nests deeper", false},
        {"", "'a'", "|upper", "evaluation nests deeper", false},
        {"", "[1]", "[:]", "evaluation nests deeper", false},
        {"0 or ", "1", "", "evaluation nests deeper", false},
        {"{% if 1 %}", "x", "{% endif %}", "nested deeper", true},
        {"{% for i in [1] %}", "x", "{% endfor %}", "nested deeper", true},
        {"{% filter upper %}", "x", "{% endfilter %}", "nested deeper", true},
        {"{% macro m() %}", "x", "{% endmacro %}", "nested deeper", true},
        {"{% with %}", "x", "{% endwith %}", "nested deeper", true},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++)
        for (size_t n = 50; n <= 50000; n *= 1000) {
            char *text = repeated(CASES[i].prefix, CASES[i].middle, CASES[i].suffix, n);
            if (!CASES[i].block)
                text = between("{{ ", text, " }}");
            nb_buf out = {0};
            nb_err err = {0};
            nb_jinja *t;
            json_t *none = json_object();
            assert_int_equal(nb_jinja_parse(&t, text, strlen(text), &err), NB_OK);
            for (int again = 0; again < 2; again++) {
                const nb_status s = nb_jinja_render(t, none, NULL, &out, &err);
                if (s != (n == 50 ? NB_OK : NB_LIMIT))
                    fail_msg("%s x %zu: %d, %s", CASES[i].prefix, n, (int)s, err.text);
                if (n > 50 && strstr(err.text, CASES[i].says) == NULL)
                    fail_msg("%s x %zu: '%s'", CASES[i].prefix, n, err.text);
            }
            json_decref(none);
            nb_jinja_free(t);
            nb_buf_free(&out);
            free(text);
        }
}

/* A long list of branches is not deep. */
static void long_elif_chain_renders(void **state)
{
    (void)state;
    char *text =
        between("{% if 0 %}", repeated("{% elif 0 %}a", "", "", 50000), "{% else %}b{% endif %}");
    nb_buf out = {0};
    nb_err err = {0};
    assert_int_equal(render_text(text, NULL, &out, &err), NB_OK);
    assert_int_equal(out.len, 1);
    nb_buf_free(&out);
    free(text);
}

static void limits_are_exact(void **state)
{
    (void)state;
    nb_buf out = {0};
    nb_err err = {0};
    const nb_jinja_limits ten = {.max_output = 10};
    assert_int_equal(render_text("12345{{ 67890 }}", &ten, &out, &err), NB_OK);
    assert_int_equal(out.len, 10);
    out.len = 0;
    assert_int_equal(render_text("12345{{ 67890 }}x", &ten, &out, &err), NB_LIMIT);
    assert_string_equal(err.text, "chat template: line 1: the template renders more than 10 bytes");
    int64_t steps = 1;
    for (;; steps++) {
        const nb_jinja_limits few = {.max_steps = steps};
        out.len = 0;
        const nb_status s =
            render_text("{% for i in [1, 2] %}{{ i }}{% endfor %}", &few, &out, &err);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_LIMIT);
    }
    assert_in_range(steps, 8, 64);
    char *big = repeated("x", "", "", ((size_t)4 << 20) + 1);
    out.len = 0;
    assert_int_equal(render_text(big, NULL, &out, &err), NB_LIMIT);
    assert_string_equal(err.text, "chat template: 4194305 bytes; at most 4194304 are read");
    free(big);
    big = repeated("{{1}}", "", "", 800000);
    assert_int_equal(render_text(big, NULL, &out, &err), NB_LIMIT);
    free(big);
    nb_buf_free(&out);
}

/* A long conversation needs several copies of itself: budgets grow with it. */
static void long_conversations_render(void **state)
{
    (void)state;
    const size_t n = (size_t)24 << 20;
    char *content = malloc(n);
    assert_non_null(content);
    memset(content, 'y', n);
    json_t *context = json_pack("{s:o}", "c", json_stringn(content, n));
    nb_buf out = {0};
    nb_err err = {0};
    static const char text[] = "{{ '<' + c|trim + '>' }}{{ c ~ c }}";
    if (render(text, sizeof text - 1, context, NULL, &out, &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_int_equal(out.len, 3 * n + 2);
    nb_buf_free(&out);
    json_decref(context);
    free(content);
}

static void expect_output(const char *text, const char *want)
{
    nb_buf out = {0};
    nb_err err = {0};
    if (render_text(text, NULL, &out, &err) != NB_OK)
        fail_msg("%s", err.text);
    if (out.len != strlen(want) || (out.len > 0 && memcmp(out.data, want, out.len) != 0))
        fail_msg("%.*s instead of %s", (int)out.len, (const char *)out.data, want);
    nb_buf_free(&out);
}

/* Beyond the immutable sandbox of transformers. */
static void lists_can_be_changed(void **state)
{
    (void)state;
    expect_output(
        "{% set l = [1, 2] %}{% set _ = l.append(3) %}{{ l }}{{ l.pop() }}{{ l.pop(0) }}{{ l }}"
        "{% set d = {'a': 1, 'b': 2, 'c': 3} %}{{ d.pop('b') }}{{ d.pop('z', 9) }}{{ d }}"
        "{% for x in l %}{% set _ = l.append(x) %}{% endfor %}{{ l }}"
        "{% set _ = d.update({'e': 5}, f=6) %}{{ d }}",
        "[1, 2, 3]31[2]29{'a': 1, 'c': 3}[2, 2]{'a': 1, 'c': 3, 'e': 5, 'f': 6}");
}

/* Dictionaries of all sizes around their growth, with keys removed on the way. */
static void dictionaries_keep_order_and_keys(void **state)
{
    (void)state;
    expect_output(
        "{% for n in [0, 1, 7, 8, 9, 15, 16, 17, 33, 200] %}{% set d = {} %}"
        "{% for i in range(n) %}{% set _ = d.update({'k' ~ i: i}) %}{% endfor %}"
        "{% for i in range(0, n, 3) %}{% set _ = d.pop('k' ~ i) %}{% endfor %}"
        "{% for i in range(n) %}{% if ('k' ~ i in d) == (i % 3 == 0) or d.get('k' ~ i, i) != i %}"
        "WRONG {{ n }} {{ i }}{% endif %}{% endfor %}"
        "{% if d.values()|list != d.values()|sort or d|length != n - (n + 2) // 3 %}ORDER{% endif "
        "%}{{ d|length }} {% endfor %}",
        "0 0 4 5 6 10 10 11 22 133 ");
}

static void dates_are_written_as_strftime_does(void **state)
{
    (void)state;
    expect_output("{% set s = strftime_now('%Y-%m-%d|%B|%b|%A|%a|%H:%M:%S|%j|%y|%I|%p|%-d|%%') %}"
                  "{% set p = s.split('|') %}{{ p|length }} {{ p[0]|length }} "
                  "{{ p[1].startswith(p[2]) }} {{ p[3].startswith(p[4]) }} {{ p[5]|length }} "
                  "{{ p[6]|length }} {{ p[0][2:4] == p[7] }} {{ p[9] in ('AM', 'PM') }} "
                  "{{ p[0][-2:]|int == p[10]|int }} {{ p[11] }}",
                  "12 10 True True 8 3 True True True %");
    nb_buf out = {0};
    nb_err err = {0};
    assert_int_equal(render_text("{{ strftime_now('%Q') }}", NULL, &out, &err), NB_DATA);
    nb_buf_free(&out);
}

/* Every allocation of a parse and of a render fails once. */
static void allocation_failures(void **state)
{
    (void)state;
    static const char text[] =
        "{% macro m(a, b=[1]) %}{{ a }}{{ b }}{% endmacro %}{% set ns = namespace(x=1) %}"
        "{% for k, v in d|dictsort %}{{ m(k, b=v) }}{% set ns.x = ns.x ~ 'y' * 70000 %}{% endfor "
        "%}{{ 'a,b'.split(',')|map('upper')|join('-') }}{{ d|tojson(indent=2) }}"
        "{% set t %}{{ ns.x[::-1]|length }}{% endset %}{{ t }}";
    json_t *context = json_pack("{s:{s:i, s:[i, s], s:n}}", "d", "b", 1, "a", 2, "x", "n");
    bool done = false;
    int64_t failures = 0;
    for (; !done; failures++) {
        const int64_t live = nb_alloc_live();
        nb_buf out = {0};
        nb_err err = {0};
        nb_alloc_fail_at(failures + 1);
        const nb_status s = render(text, sizeof text - 1, context, NULL, &out, &err);
        nb_alloc_fail_at(0);
        done = s == NB_OK;
        if (!done) {
            assert_int_equal(s, NB_MEMORY);
            assert_int_equal(out.len, 0);
        }
        nb_buf_free(&out);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(failures > 8);
    json_decref(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_templates_render_as_jinja_does),
        cmocka_unit_test(output_is_appended_or_left_alone),
        cmocka_unit_test(errors_name_the_line),
        cmocka_unit_test(endless_templates_end),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(long_elif_chain_renders),
        cmocka_unit_test(limits_are_exact),
        cmocka_unit_test(long_conversations_render),
        cmocka_unit_test(lists_can_be_changed),
        cmocka_unit_test(dictionaries_keep_order_and_keys),
        cmocka_unit_test(dates_are_written_as_strftime_does),
        cmocka_unit_test(allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
