/* The template interpreter against Jinja2's own output, and its budgets against templates that
 * mean harm. */
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_templates_render_as_jinja_does),
    };
    (void)render_text;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
