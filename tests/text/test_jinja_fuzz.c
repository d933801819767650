/* Mutations of the golden templates: whatever comes out of them, parsing and rendering end with a
 * status and within their budgets. Deterministic; meant to run under the sanitizers too. */
#include "support/golden.h"

#include "base/rng.h"
#include "text/jinja.h"

#include <string.h>

#define N_MUTATIONS 6000
#define MAX_TEXT    16384

typedef struct {
    char text[MAX_TEXT];
    size_t len;
} mutant;

static uint32_t draw(uint64_t round, uint64_t index, uint32_t below)
{
    uint32_t w[4];
    nb_philox(2024, round, index, w);
    return w[0] % below;
}

static void splice(mutant *m, size_t at, size_t drop, const char *text, size_t len)
{
    if (at > m->len)
        at = m->len;
    if (drop > m->len - at)
        drop = m->len - at;
    if (m->len - drop + len > MAX_TEXT)
        return;
    memmove(m->text + at + len, m->text + at + drop, m->len - at - drop);
    memcpy(m->text + at, text, len);
    m->len = m->len - drop + len;
}

/* One change: bytes lost, a stretch doubled or moved, a byte or a fragment put in, a piece of
 * another template. */
static void mutate(mutant *m, const json_t *other, uint64_t round, uint64_t k)
{
    static const char *const FRAGMENTS[] = {
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-%}",
        "{%-",
        "(",
        ")",
        "[",
        "]",
        "'",
        "\"",
        "\\",
        " if ",
        " else ",
        " in ",
        " is ",
        "|",
        "~",
        "**",
        "//",
        "%",
        ".",
        ",",
        ":",
        "=",
        "\n",
        "{% endfor %}",
        "{% endif %}",
        "{% break %}",
        "{% set x = ",
        "none",
        "true",
        "-1",
        "0",
        "9223372036854775807",
        "1e308",
        "loop.",
        "messages",
        "[::-1]",
        "|tojson",
        "|list",
        ".split(",
        ".append(",
        "range(",
        "caller()",
        "varargs",
        "\xC3",
        "\xF0\x9F\x98\x80",
        "\xFF",
        "x",
        "{% raw %}",
        "{% macro m(a) %}",
        "namespace(",
        "|sort",
        "|map('",
        "\\x",
        "\\u12",
    };
    char copy[MAX_TEXT];
    const size_t at = draw(round, k * 8, (uint32_t)m->len + 1);
    const size_t n = 1 + draw(round, k * 8 + 1, 24);
    const char *fragment =
        FRAGMENTS[draw(round, k * 8 + 2, sizeof FRAGMENTS / sizeof FRAGMENTS[0])];
    const size_t from = draw(round, k * 8 + 3, (uint32_t)json_string_length(other) + 1);
    const size_t left = json_string_length(other) - from;
    switch (draw(round, k * 8 + 4, 5)) {
    case 0:
        splice(m, at, n, "", 0);
        break;
    case 1:
        memcpy(copy, m->text, m->len);
        splice(m, draw(round, k * 8 + 5, (uint32_t)m->len + 1), 0, copy + at,
               n < m->len - at ? n : m->len - at);
        break;
    case 2:
        splice(m, at, 0, fragment, strlen(fragment));
        break;
    case 3:
        splice(m, at, n, fragment, strlen(fragment));
        break;
    default:
        splice(m, at, n, json_string_value(other) + from, 2 * n < left ? 2 * n : left);
    }
}

static json_t *all_cases(void)
{
    static const char *const FILES[] = {"jinja.json", "jinja_more.json"};
    json_t *cases = json_array();
    for (size_t i = 0; i < sizeof FILES / sizeof FILES[0]; i++) {
        json_t *golden = golden_load(FILES[i]);
        json_array_extend(cases, golden_get(golden, "render"));
        json_array_extend(cases, golden_get(golden, "errors"));
        json_decref(golden);
    }
    return cases;
}

static void mutated_templates_end(void **state)
{
    (void)state;
    static mutant m;
    json_t *cases = all_cases();
    const uint32_t n_cases = (uint32_t)json_array_size(cases);
    int parsed = 0, rendered = 0, limited = 0;
    for (uint64_t round = 0; round < N_MUTATIONS; round++) {
        const json_t *c = json_array_get(cases, draw(round, 1000, n_cases));
        const json_t *text = golden_get(c, "template");
        assert_true(json_string_length(text) < MAX_TEXT);
        m.len = json_string_length(text);
        memcpy(m.text, json_string_value(text), m.len);
        for (uint64_t k = 0; k <= draw(round, 1001, 2); k++)
            mutate(&m,
                   golden_get(json_array_get(cases, draw(round, 1002 + k, n_cases)), "template"),
                   round, k);
        const int64_t live = nb_alloc_live();
        const nb_jinja_limits limits = {
            .max_steps = 30000, .max_output = 100000, .now = "26 Jul 2024"};
        nb_jinja *t = NULL;
        nb_buf out = {0};
        nb_err err = {0};
        nb_status s = nb_jinja_parse(&t, m.text, m.len, &err);
        parsed += s == NB_OK;
        if (s == NB_OK)
            s = nb_jinja_render(t, golden_get(c, "context"), &limits, &out, &err);
        rendered += s == NB_OK;
        limited += s == NB_LIMIT;
        if (s != NB_OK && s != NB_DATA && s != NB_LIMIT)
            fail_msg("round %d: status %d, %s", (int)round, (int)s, err.text);
        assert_true(s == NB_OK ? err.text[0] == 0 : err.text[0] != 0);
        assert_true(out.len <= 100000 && (s == NB_OK || out.len == 0));
        nb_jinja_free(t);
        nb_buf_free(&out);
        assert_int_equal(nb_alloc_live(), live);
    }
    json_decref(cases);
    print_message("%d of %d parsed, %d rendered, %d met a limit\n", parsed, N_MUTATIONS, rendered,
                  limited);
    /* Mutants that all die in the lexer, or that all render, would test little. */
    assert_in_range(parsed, N_MUTATIONS / 10, N_MUTATIONS - 1);
    assert_in_range(rendered, N_MUTATIONS / 20, parsed - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mutated_templates_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
