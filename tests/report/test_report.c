/* Results in, tables and a page out: merging, refusing, escaping, and plots that stay inside. */
#include "support/golden.h"
#include "support/torture.h"

#include "report/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nb_report *open_report(const char *lines)
{
    nb_report *r;
    nb_err err = {0};
    assert_int_equal(nb_report_new(&r, &err), NB_OK);
    if (nb_report_add(r, lines, strlen(lines), "results", &err) != NB_OK)
        fail_msg("%s", err.text);
    return r;
}

typedef nb_status write_fn(const nb_report *report, nb_buf *out, nb_err *err);

static nb_status write_html(const nb_report *report, nb_buf *out, nb_err *err)
{
    return nb_report_html(report, "a title", out, err);
}

/* The output as text; free() it. */
static char *written(const nb_report *r, write_fn *write)
{
    nb_buf out = {0};
    nb_err err = {0};
    assert_int_equal(write(r, &out, &err), NB_OK);
    char *text = malloc(out.len + 1);
    assert_non_null(text);
    memcpy(text, out.data, out.len);
    text[out.len] = 0;
    nb_buf_free(&out);
    return text;
}

static const char TWO_ROWS[] =
    "{\"name\": \"original\", \"file_bytes\": 269060552, \"bpw\": 16, \"perplexity\": 20.7323,"
    " \"perplexity_se\": 0.31, \"kl_mean\": 0, \"top1\": 1, \"compute\": \"f\"}\n"
    "\n"
    "{\"name\": \"w4\", \"bytes\": 91000000, \"kl_mean\": 0.104}\r\n"
    "  \n"
    "{\"name\": \"w4\", \"kl_mean\": 0.105, \"decode_tok_s\": 151.26, \"other\": [1, 2]}";

/* Lines of one name are one row, later values win, and both spellings of the size are known. */
static void lines_of_one_name_are_one_row(void **state)
{
    (void)state;
    nb_report *r = open_report(TWO_ROWS);
    assert_int_equal(nb_report_n_rows(r), 2);
    char *text = written(r, nb_report_text);
    assert_string_equal(
        text, "name      size (MB)  bits/weight      perplexity  KL mean (nat)  top-1 (%)  "
              "decode (tok/s)  compute\n"
              "original      269.1        16.00  20.732 \xc2\xb1 0.310              0     100.00   "
              "               f\n"
              "w4             91.0                                       0.105                     "
              " 151.3\n");
    free(text);
    text = written(r, nb_report_markdown);
    assert_string_equal(
        text, "| name | size (MB) | bits/weight | perplexity | KL mean (nat) | top-1 (%) | "
              "decode (tok/s) | compute |\n"
              "|:---|---:|---:|---:|---:|---:|---:|:---|\n"
              "| original | 269.1 | 16.00 | 20.732 \xc2\xb1 0.310 | 0 | 100.00 |  | f |\n"
              "| w4 | 91.0 |  |  | 0.105 |  | 151.3 |  |\n");
    free(text);
    nb_report_free(r);
}

static void a_task_adds_columns(void **state)
{
    (void)state;
    nb_report *r = open_report("{\"name\":\"a\",\"task\":\"arc\",\"n\":500,\"acc\":0.44,\"acc_"
                               "norm\":0.4,\"acc_se\":0.022}\n"
                               "{\"name\":\"a\",\"task\":\"wino\",\"acc\":0.5}\n"
                               "{\"name\":\"b\",\"task\":\"arc\",\"acc\":0.25}\n");
    char *text = written(r, nb_report_markdown);
    assert_string_equal(text, "| name | arc acc (%) | arc acc\\_norm (%) | wino acc (%) |\n"
                              "|:---|---:|---:|---:|\n"
                              "| a | 44.0 \xc2\xb1 2.2 | 40.0 | 50.0 |\n"
                              "| b | 25.0 |  |  |\n");
    free(text);
    nb_report_free(r);
}

static void small_numbers_keep_their_digits(void **state)
{
    (void)state;
    const struct {
        const char *number, *shown;
    } cases[] = {{"0", "| 0 |"},           {"0.00312", "| 0.00312 |"}, {"0.1", "| 0.100 |"},
                 {"1", "| 1.00 |"},        {"12.345", "| 12.3 |"},     {"1234.5", "| 1234 |"},
                 {"1e-9", "| 1.00e-09 |"}, {"1e300", "| 1.00e+300 |"}, {"-0.5", "| -0.500 |"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[100];
        snprintf(line, sizeof line, "{\"name\":\"a\",\"kl_mean\":%s}", cases[i].number);
        nb_report *r = open_report(line);
        char *text = written(r, nb_report_markdown);
        if (strstr(text, cases[i].shown) == NULL)
            fail_msg("%s: %s not in %s", cases[i].number, cases[i].shown, text);
        free(text);
        nb_report_free(r);
    }
}

static void bad_lines_are_refused_by_number(void **state)
{
    (void)state;
    const struct {
        const char *line, *message;
        nb_status status;
    } cases[] = {
        {"[1]", "results:2: an object was expected", NB_DATA},
        {"{}", "results:2: ", NB_DATA},
        {"{\"name\": 1}", "results:2: ", NB_DATA},
        {"{\"name\": \"\"}", "results:2: 'name' is empty", NB_DATA},
        {"{\"name\": \"a\", \"bpw\": \"4\"}", "results:2: ", NB_DATA},
        {"{\"name\": \"a\", \"compute\": 8}", "results:2: ", NB_DATA},
        {"{\"name\": \"a\", \"bpw\": NaN}", "results:2: ", NB_DATA},
        {"{\"name\": \"a\", \"bpw\": 1e999}", "results:2: ", NB_DATA},
        {"{\"name\": \"a\"} x", "results:2: ", NB_DATA},
        {"{\"name\": \"\xff\"}", "results:2: ", NB_DATA},
        {"{\"name\": \"a\\u0000b\"}", "results:2: ", NB_DATA},
        {"{\"name\": \"a\", \"task\": 1}", "results:2: ", NB_DATA},
        {"{\"name\": \"a\", \"task\": \"t\", \"acc\": []}", "results:2: ", NB_DATA},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_report *r;
        nb_err err = {0};
        assert_int_equal(nb_report_new(&r, &err), NB_OK);
        char text[200];
        snprintf(text, sizeof text, "{\"name\":\"fine\"}\n%s\n", cases[i].line);
        assert_int_equal(nb_report_add(r, text, strlen(text), "results", &err), cases[i].status);
        if (strncmp(err.text, cases[i].message, strlen(cases[i].message)) != 0)
            fail_msg("%s: %s", cases[i].line, err.text);
        nb_report_free(r);
    }
}

/* A file that is one endless list of new names or tasks ends at a stated limit. */
static void rows_and_tasks_are_limited(void **state)
{
    (void)state;
    nb_err err = {0};
    for (int what = 0; what < 2; what++) {
        nb_report *r;
        assert_int_equal(nb_report_new(&r, &err), NB_OK);
        nb_status s = NB_OK;
        int n = 0;
        while (s == NB_OK && n < 2000) {
            char line[100];
            snprintf(line, sizeof line,
                     "{\"name\":\"%d\",\"task\":\"%d\",\"acc\":1,\"acc_norm\":1}",
                     what == 0 ? n : 0, what == 0 ? 0 : n);
            n++;
            s = nb_report_add(r, line, strlen(line), "r", &err);
        }
        assert_int_equal(s, NB_LIMIT);
        assert_int_equal(n, what == 0 ? 1001 : 21);
        /* What is in it can still be shown. */
        free(written(r, write_html));
        nb_report_free(r);
    }
}

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)) != NULL; p += strlen(what))
        n++;
    return n;
}

/* Nothing that a name or a title holds can end an attribute, open a tag, or reach a script. */
static void html_escapes_everything(void **state)
{
    (void)state;
    nb_report *r = open_report(
        "{\"name\":\"</title><script>x()</script>\\\"'&amp;\\u0001<svg onload=x>\","
        "\"file_bytes\":1000000,\"kl_mean\":0.1,\"prefill_tok_s\":10,\"decode_tok_s\":1,"
        "\"compute\":\"<b>\",\"protocol\":\"<i>\",\"logits_hash\":\"&lt;\",\"task\":\"<u>\","
        "\"acc\":1}");
    nb_buf out = {0};
    nb_err err = {0};
    assert_int_equal(nb_report_html(r, "<script>\"&", &out, &err), NB_OK);
    assert_int_equal(nb_buf_u8(&out, 0, &err), NB_OK);
    const char *page = (const char *)out.data;
    assert_int_equal(count(page, "<script"), 0);
    assert_int_equal(count(page, "<svg "), 3);
    assert_int_equal(count(page, "<b>") + count(page, "<i>") + count(page, "<u>"), 0);
    assert_int_equal(count(page, "\x01"), 0);
    assert_non_null(strstr(page, "<title>&lt;script&gt;&quot;&amp;</title>"));
    assert_non_null(strstr(page, "&quot;&#39;&amp;amp; &lt;svg onload=x&gt;"));
    assert_non_null(strstr(page, "&amp;lt;"));
    nb_buf_free(&out);
    nb_report_free(r);
}

/* Every tag that opens closes, in order: the page is well formed as XML would ask. */
static void html_is_balanced(void **state)
{
    (void)state;
    nb_report *r = open_report(TWO_ROWS);
    char *page = written(r, write_html);
    char stack[64][16];
    int depth = 0;
    for (const char *p = strstr(page, "<html"); p != NULL; p = strchr(p + 1, '<')) {
        char name[16];
        const bool closes = p[1] == '/';
        const char *start = p + 1 + closes;
        const size_t n = strcspn(start, " />");
        assert_true(n > 0 && n < sizeof name);
        memcpy(name, start, n);
        name[n] = 0;
        const char *end = strchr(p, '>');
        assert_non_null(end);
        if (strcmp(name, "meta") == 0 || end[-1] == '/')
            continue;
        if (closes) {
            assert_true(depth > 0);
            assert_string_equal(stack[--depth], name);
        } else {
            assert_true(depth < 64);
            strcpy(stack[depth++], name);
        }
    }
    assert_int_equal(depth, 0);
    free(page);
    nb_report_free(r);
}

/* The page needs nothing from outside. */
static void html_is_self_contained(void **state)
{
    (void)state;
    nb_report *r = open_report(TWO_ROWS);
    char *page = written(r, write_html);
    assert_int_equal(count(page, "http") + count(page, "url(") + count(page, "src=") +
                         count(page, "@import") + count(page, "<link"),
                     0);
    assert_int_equal(count(page, "prefers-color-scheme:dark"), 1);
    free(page);
    nb_report_free(r);
}

/* Numbers at the ends of what a double holds leave every coordinate finite and on the page. */
static void plots_survive_any_numbers(void **state)
{
    (void)state;
    const char *const numbers[] = {"0",    "1",      "-1",    "1e-300", "1e300", "1e17", "1e-13",
                                   "1e18", "-1e300", "5e-13", "0.5",    "123",   "1e12"};
    const size_t n = sizeof numbers / sizeof *numbers;
    nb_err err = {0};
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++) {
            char line[400];
            snprintf(line, sizeof line,
                     "{\"name\":\"a\",\"file_bytes\":%s,\"kl_mean\":%s,\"decode_tok_s\":%s}\n"
                     "{\"name\":\"b\",\"file_bytes\":%s,\"kl_mean\":%s,\"prefill_tok_s\":%s}",
                     numbers[i], numbers[j], numbers[i], numbers[j], numbers[i], numbers[j]);
            nb_report *r = open_report(line);
            nb_buf out = {0};
            assert_int_equal(nb_report_html(r, "t", &out, &err), NB_OK);
            assert_int_equal(nb_buf_u8(&out, 0, &err), NB_OK);
            const char *page = (const char *)out.data;
            assert_true(out.len < 200000);
            assert_int_equal(count(page, "=\"nan") + count(page, "=\"inf") + count(page, "=\"-"),
                             0);
            static const char *const names[] = {" x=\"", " cx=\"", " x1=\"",   " x2=\"",
                                                " y=\"", " cy=\"", " width=\""};
            for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
                for (const char *p = page; (p = strstr(p, names[k])) != NULL; p++) {
                    const double v = strtod(p + strlen(names[k]), NULL);
                    if (!(v >= 0 && v <= 760))
                        fail_msg("%s%.1f for %s and %s", names[k], v, numbers[i], numbers[j]);
                }
            }
            nb_buf_free(&out);
            nb_report_free(r);
        }
    }
}

/* Labels of rows that lie apart do not cover one another. */
static void labels_do_not_overlap(void **state)
{
    (void)state;
    nb_report *r = open_report("{\"name\":\"AAAA\",\"file_bytes\":91e6,\"kl_mean\":0.15}\n"
                               "{\"name\":\"BBBB\",\"file_bytes\":93e6,\"kl_mean\":0.131}\n"
                               "{\"name\":\"CCCC\",\"file_bytes\":93e6,\"kl_mean\":0.13}\n"
                               "{\"name\":\"DDDD\",\"file_bytes\":95e6,\"kl_mean\":0.11}\n"
                               "{\"name\":\"EEEE\",\"file_bytes\":269e6,\"kl_mean\":0}\n");
    char *page = written(r, write_html);
    double x[5], y[5];
    for (int i = 0; i < 5; i++) {
        char what[16], anchor[16];
        snprintf(what, sizeof what, ">%c%c%c%c</text>", 'A' + i, 'A' + i, 'A' + i, 'A' + i);
        const char *p = strstr(page, what);
        assert_non_null(p);
        while (strncmp(p, "<text", 5) != 0)
            p--;
        assert_int_equal(
            sscanf(p, "<text x=\"%lf\" y=\"%lf\" text-anchor=\"%15[a-z]", &x[i], &y[i], anchor), 3);
        x[i] -= strcmp(anchor, "end") == 0 ? 30 : strcmp(anchor, "middle") == 0 ? 15 : 0;
        for (int j = 0; j < i; j++)
            assert_true(fabs(x[i] - x[j]) >= 28 || fabs(y[i] - y[j]) >= 12);
    }
    free(page);
    nb_report_free(r);
}

/* Long names and values are cut between characters: the page stays UTF-8. */
static void cut_texts_stay_utf8(void **state)
{
    (void)state;
    for (int n = 1; n < 120; n++) {
        char line[2000], name[600] = "";
        for (int i = 0; i < n; i++)
            strcat(name, i % 3 == 0 ? "\xf0\x9f\x98\x80" : i % 3 == 1 ? "\xe6\x9d\xb1" : "x");
        snprintf(line, sizeof line,
                 "{\"name\":\"%s\",\"file_bytes\":1,\"kl_mean\":1,\"decode_tok_s\":1,"
                 "\"compute\":\"%s\"}",
                 name, name);
        nb_report *r = open_report(line);
        char *page = written(r, write_html);
        json_t *valid = json_string(page); /* NULL for what is not UTF-8 */
        assert_non_null(valid);
        json_decref(valid);
        free(page);
        nb_report_free(r);
    }
}

static nb_status whole_run(nb_err *err)
{
    nb_report *r = NULL;
    nb_buf out = {0};
    nb_status s = nb_report_new(&r, err);
    if (s == NB_OK)
        s = nb_report_add(r, TWO_ROWS, strlen(TWO_ROWS), "results", err);
    if (s == NB_OK)
        s = nb_report_text(r, &out, err);
    if (s == NB_OK)
        s = nb_report_markdown(r, &out, err);
    if (s == NB_OK)
        s = nb_report_html(r, "t", &out, err);
    nb_buf_free(&out);
    nb_report_free(r);
    return s;
}

static void memory_may_run_out_anywhere(void **state)
{
    (void)state;
    assert_true(torture_memory(whole_run) > 10);
}

static void an_empty_report_is_fine(void **state)
{
    (void)state;
    nb_report *r = open_report("\n\n  \n");
    assert_int_equal(nb_report_n_rows(r), 0);
    char *page = written(r, write_html);
    assert_int_equal(count(page, "<svg "), 0);
    free(page);
    char *text = written(r, nb_report_text);
    assert_string_equal(text, "name\n");
    free(text);
    nb_report_free(r);
    nb_report_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_of_one_name_are_one_row),
        cmocka_unit_test(a_task_adds_columns),
        cmocka_unit_test(small_numbers_keep_their_digits),
        cmocka_unit_test(bad_lines_are_refused_by_number),
        cmocka_unit_test(rows_and_tasks_are_limited),
        cmocka_unit_test(html_escapes_everything),
        cmocka_unit_test(html_is_balanced),
        cmocka_unit_test(html_is_self_contained),
        cmocka_unit_test(plots_survive_any_numbers),
        cmocka_unit_test(labels_do_not_overlap),
        cmocka_unit_test(cut_texts_stay_utf8),
        cmocka_unit_test(memory_may_run_out_anywhere),
        cmocka_unit_test(an_empty_report_is_fine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
