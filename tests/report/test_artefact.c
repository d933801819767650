/* Reports of quantized models: numbers in, one section of a page out; hostile ones are refused by
 * the key that is wrong, and text stays text. */
#define _POSIX_C_SOURCE 200809L
#include "support/golden.h"
#include "support/torture.h"

#include "report/artefact.h"
#include "report/report.h"
#include "report/series.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char PLANTED[] =
    "{\"nibble\": \"0.1.0\", \"source\": \"/m/original\", \"output\": \"/m/w4\","
    " \"scheme\": \"W4A16:g32\", \"method\": \"gptq\", \"container\": \"hf\", \"bytes\": 91000000,"
    " \"bpw\": 4.5, \"seconds\": 12.25, \"sha256\": \"aabb\", \"peak_rss_bytes\": 588000000,"
    " \"notes\": [\"group size 32: <b>chosen</b>\"],"
    " \"reasons\": [{\"layers\": \"*.down_proj\", \"scheme\": \"W8A16\","
    "   \"because\": \"KL & more\"}],"
    " \"calibration\": {\"model_sha256\": \"ccdd\", \"sha256\": \"eeff\", \"tokens\": 4096,"
    "   \"files\": [{\"path\": \"c4.txt\", \"sha256\": \"0011\"}],"
    "   \"score\": {\"vocabulary_share\": 0.25, \"covered\": 0.955, \"repeated\": 0.04,"
    "     \"warnings\": [\"too <few> tokens\"]},"
    "   \"coverage\": {\"log_ratio_mean\": 0.06, \"log_ratio_max\": 0.15, \"where\": \"x\"},"
    "   \"layers\": ["
    "    {\"transform\": \"awq\", \"layer\": 0, \"point\": \"qkv\", \"note\": \"alpha 0.5\"},"
    "    {\"name\": \"model.layers.0.self_attn.q_proj.weight\", \"format\": \"int4\","
    "     \"params\": 1024, \"bytes\": 576, \"seconds\": 0.5, \"loss\": 0.001,"
    "     \"held_out_loss\": 0.002, \"note\": \"shrink 0.2\", \"rms_error\": 0.0912,"
    "     \"predicted_kl\": 0.00031, \"coverage\": {\"log_ratio\": 0.0625, \"one_sided\": 0}},"
    "    {\"name\": \"model.layers.1.mlp.down_proj.weight\", \"format\": \"int8\","
    "     \"params\": 1024, \"bytes\": 1088, \"seconds\": 0.5, \"loss\": 0.0005},"
    "    {\"name\": \"model.layers.1.mlp.up_proj.weight\", \"format\": \"int4\","
    "     \"params\": 1024, \"bytes\": 576, \"seconds\": 0.5},"
    "    {\"name\": \"elsewhere\", \"bytes\": 3}]},"
    " \"evaluation\": {\"n_tokens\": 2047, \"perplexity\": 21.5, \"base_perplexity\": 20.5,"
    "   \"kl_mean\": 0.05, \"kl_mean_se\": 0.001, \"kl_median\": 0.03, \"kl_p99\": 0.4,"
    "   \"top1\": 0.9, \"flips\": 0.1, \"tasks\": [{\"task\": \"arc\", \"n\": 100,"
    "     \"acc\": 0.4, \"acc_se\": 0.049, \"base_acc\": 0.43, \"acc_norm\": 0.41,"
    "     \"base_acc_norm\": 0.42, \"base_acc_norm_se\": 0.0496, \"flips\": 7, \"lost\": 5,"
    "     \"won\": 2}, {\"task\": \"<q>\", \"n\": 3, \"acc\": 1, \"base_acc\": 0,"
    "     \"acc_norm\": 0, \"base_acc_norm\": 1}], \"tasks_left_out\": \"a < b\","
    "   \"noise_floor\": {\"kl_mean\": 1e-6, \"definition\": \"cache in F16\"},"
    "   \"layers\": [{\"layer\": 0, \"kl_mean\": 0.01}, {\"layer\": 1, \"kl_mean\": 0.02}]}}";

static json_t *parsed(const char *text)
{
    json_t *j;
    nb_err err = {0};
    if (nb_json_parse(&j, text, strlen(text), &err) != NB_OK)
        fail_msg("%s", err.text);
    return j;
}

static bool has_line(const nb_artefact_line *lines, int64_t n, const char *what, const char *text)
{
    for (int64_t i = 0; i < n; i++) {
        if (strcmp(lines[i].what, what) == 0 && strcmp(lines[i].text, text) == 0)
            return true;
    }
    return false;
}

static void numbers_are_read(void **state)
{
    (void)state;
    nb_arena arena = {0};
    nb_err err = {0};
    nb_artefact a;
    json_t *j = parsed(PLANTED);
    assert_true(nb_artefact_is(j));
    if (nb_artefact_read(&a, &arena, j, &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_true(has_line(a.head, a.n_head, "source", "/m/original"));
    assert_true(has_line(a.head, a.n_head, "source sha256", "ccdd"));
    assert_true(has_line(a.head, a.n_head, "output sha256", "aabb"));
    assert_true(has_line(a.head, a.n_head, "bits per weight, all tensors", "4.500"));
    assert_true(has_line(a.head, a.n_head, "peak memory, MB", "588.0"));
    assert_true(has_line(a.head, a.n_head, "calibration file", "c4.txt (sha256 0011)"));
    assert_true(has_line(a.head, a.n_head, "KL mean, nat", "0.050000"));
    assert_true(has_line(a.head, a.n_head, "noise floor is", "cache in F16"));
    assert_true(has_line(a.notes, a.n_notes, "note", "group size 32: <b>chosen</b>"));
    assert_true(has_line(a.notes, a.n_notes, "*.down_proj: W8A16", "KL & more"));
    assert_true(has_line(a.notes, a.n_notes, "awq, layer 0, qkv", "alpha 0.5"));
    assert_true(has_line(a.head, a.n_head, "share of the vocabulary in it, %", "25.0"));
    assert_true(has_line(a.head, a.n_head, "held-out tokens that the rest covers, %", "95.5"));
    assert_true(has_line(a.head, a.n_head, "which is at", "x"));
    assert_true(has_line(a.head, a.n_head, "top-1 flips, share", "0.1000"));
    assert_int_equal(a.n_tasks, 2);
    const nb_artefact_task *t = a.tasks;
    assert_string_equal(t->name, "arc");
    assert_true(t->n == 100 && t->acc == 0.4 && t->acc_se == 0.049 && t->base_acc == 0.43);
    assert_true(isnan(t->base_acc_se) && t->acc_norm == 0.41 && isnan(t->acc_norm_se));
    assert_true(t->base_acc_norm == 0.42 && t->base_acc_norm_se == 0.0496);
    assert_true(t->flips == 7 && t->lost == 5 && t->won == 2);
    assert_true(isnan(t[1].flips) && isnan(t[1].lost) && isnan(t[1].won));
    assert_string_equal(a.tasks_left_out, "a < b");
    assert_true(has_line(a.notes, a.n_notes, "calibration text", "too <few> tokens"));
    assert_true(a.linears[0].coverage == 0.0625 && isnan(a.linears[1].coverage));
    assert_true(a.linears[0].rms_error == 0.0912 && a.linears[0].predicted_kl == 0.00031);
    assert_int_equal(a.n_linears, 4);
    assert_int_equal(a.n_layers, 2);
    assert_int_equal(a.linears[0].kind, 0);
    assert_int_equal(a.linears[1].kind, 6);
    assert_int_equal(a.linears[1].layer, 1);
    assert_int_equal(a.linears[2].kind, 5);
    assert_int_equal(a.linears[3].layer, -1);
    assert_true(a.linears[0].held_out_loss == 0.002);
    assert_true(isnan(a.linears[2].loss));
    assert_true(a.layer_kl[1] == 0.02);
    assert_null(a.left_out);
    json_decref(j);
    nb_arena_free(&arena);
}

/* The page of a report that was planted; free() it. */
static char *page_of(const char *text)
{
    nb_report *r;
    nb_err err = {0};
    nb_buf out = {0};
    assert_int_equal(nb_report_new(&r, &err), NB_OK);
    assert_true(nb_report_is_artefact(text, strlen(text)));
    if (nb_report_add_artefact(r, text, strlen(text), "f.json", "w4", &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_int_equal(nb_report_n_rows(r), 1);
    assert_int_equal(nb_report_html(r, "title", &out, &err), NB_OK);
    assert_int_equal(nb_buf_u8(&out, 0, &err), NB_OK);
    char *page = strdup((const char *)out.data);
    nb_buf_free(&out);
    nb_report_free(r);
    return page;
}

static int count(const char *text, const char *word)
{
    int n = 0;
    for (const char *at = text; (at = strstr(at, word)) != NULL; at++)
        n++;
    return n;
}

static void a_page_has_all_of_it(void **state)
{
    (void)state;
    char *page = page_of(PLANTED);
    assert_int_equal(count(page, "<section class=\"artefact\">"), 1);
    assert_int_equal(count(page, "</section>"), count(page, "<section"));
    assert_int_equal(count(page, "</table>"), count(page, "<table"));
    assert_int_equal(count(page, "</svg>"), count(page, "<svg"));
    assert_non_null(strstr(page, "Error by layer"));
    assert_non_null(strstr(page, "KL by layer"));
    assert_non_null(strstr(page, "Bits by layer"));
    /* errors: q of layer 0, as held out, and down of layer 1 */
    assert_non_null(strstr(page, "<title>q, layer 0: 0.002</title>"));
    assert_non_null(strstr(page, "<title>down, layer 1: 0.0005</title>"));
    assert_null(strstr(page, "<title>up, layer"));
    assert_non_null(strstr(page, "<title>block, layer 1: 0.02</title>"));
    assert_non_null(strstr(page, "Coverage by layer"));
    assert_non_null(strstr(page, "<title>q, k, v, layer 0: 0.0625</title>"));
    assert_non_null(strstr(page, "<title>q, layer 0: 0.00031</title>"));
    assert_non_null(strstr(page, "Time by layer"));
    assert_non_null(strstr(page, "<title>block, layer 1: 1</title>")); /* 0.5 + 0.5 seconds */
    assert_non_null(strstr(page, "<title>block, layer 0: 4.5</title>"));
    assert_non_null(strstr(page, "<title>block, layer 1: 6.5</title>")); /* (8.5 + 4.5) / 2 */
    assert_non_null(strstr(page, "group size 32: &lt;b&gt;chosen&lt;/b&gt;"));
    assert_non_null(strstr(page, "KL &amp; more"));
    assert_null(strstr(page, "<b>"));
    assert_non_null(strstr(page, "0.0500")); /* the row of the table */
    assert_non_null(strstr(page, "<tr><th scope=\"row\">arc</th><td>100</td>"
                                 "<td>0.4000 \xc2\xb1 0.0490</td><td>0.4300</td><td>0.4100</td>"
                                 "<td>0.4200 \xc2\xb1 0.0496</td><td>7</td><td>5</td><td>2</td>"));
    assert_non_null(strstr(page, "<th scope=\"row\">&lt;q&gt;</th><td>3</td>"));
    assert_non_null(strstr(page, "No answers to the tasks: a &lt; b"));
    assert_non_null(strstr(page, "arc acc_norm")); /* of the table of models */
    assert_null(strstr(page, "nan"));
    free(page);
}

/* A run without calibration has a section without plots; one without a check says why. */
static void what_is_missing_is_not_drawn(void **state)
{
    (void)state;
    char *page = page_of("{\"nibble\": \"1\", \"source\": \"a\", \"scheme\": \"Q4_0\","
                         " \"method\": \"rtn\"}");
    assert_int_equal(count(page, "<svg"), 0);
    assert_int_equal(count(page, "<details>"), 0);
    free(page);
    page =
        page_of("{\"nibble\": \"1\", \"source\": \"a\", \"scheme\": \"Q4_0\","
                " \"method\": \"rtn\", \"evaluation\": {\"left_out\": \"too <little> memory\"}}");
    assert_non_null(strstr(page, "Not measured against the original: too &lt;little&gt; memory"));
    free(page);
}

static void wrong_types_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *text, *word;
    } bad[] = {
        {"\"source\": 1", "source"},
        {"\"source\": \"a\", \"method\": []", "method"},
        {"\"source\": \"a\", \"notes\": {}", "notes"},
        {"\"source\": \"a\", \"notes\": [1]", "notes[0]"},
        {"\"source\": \"a\", \"reasons\": [1]", "reasons[0]"},
        {"\"source\": \"a\", \"bpw\": \"x\"", "bpw"},
        {"\"source\": \"a\", \"calibration\": 3", "calibration"},
        {"\"source\": \"a\", \"calibration\": {\"layers\": [7]}", "layers[0]"},
        {"\"source\": \"a\", \"calibration\": {\"layers\": [{\"name\": 7}]}", "name"},
        {"\"source\": \"a\", \"calibration\": {\"layers\": [{\"name\": \"a\", \"loss\": \"b\"}]}",
         "loss"},
        {"\"source\": \"a\", \"calibration\": {\"files\": [\"b\"]}", "files[0]"},
        {"\"source\": \"a\", \"evaluation\": {\"layers\": [{\"layer\": 4096}]}", "layer"},
        {"\"source\": \"a\", \"evaluation\": {\"layers\": [{\"layer\": -1}]}", "layer"},
        {"\"source\": \"a\", \"evaluation\": {\"kl_mean\": \"b\"}", "kl_mean"},
        {"\"source\": \"a\", \"evaluation\": {\"noise_floor\": 2}", "noise_floor"},
        {"\"source\": \"a\", \"evaluation\": {\"tasks\": [5]}", "tasks[0]"},
        {"\"source\": \"a\", \"evaluation\": {\"tasks\": [{\"task\": \"b\"}]}",
         "tasks[0]: key 'n'"},
        {"\"source\": \"a\", \"calibration\": {\"score\": 1}", "score"},
        {"\"source\": \"a\", \"calibration\": {\"score\": {\"covered\": \"b\"}}", "covered"},
        {"\"source\": \"a\", \"calibration\": {\"score\": {\"warnings\": [1]}}", "warnings[0]"},
        {"\"source\": \"a\", \"calibration\": {\"coverage\": {\"where\": 1}}", "where"},
        {"\"source\": \"a\", \"calibration\": {\"layers\": [{\"name\": \"a\","
         " \"coverage\": {\"log_ratio\": []}}]}",
         "log_ratio"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[400];
        nb_report *r;
        nb_err err = {0};
        const bool method = strstr(bad[i].text, "method") != NULL;
        snprintf(text, sizeof text, "{\"nibble\": \"1\", \"scheme\": \"s\", %s%s}",
                 method ? "" : "\"method\": \"m\", ", bad[i].text);
        assert_int_equal(nb_report_new(&r, &err), NB_OK);
        assert_int_equal(nb_report_add_artefact(r, text, strlen(text), "f.json", "x", &err),
                         NB_DATA);
        if (strstr(err.text, bad[i].word) == NULL || strncmp(err.text, "f.json: ", 8) != 0)
            fail_msg("'%s' does not name %s", err.text, bad[i].word);
        nb_report_free(r);
    }
    assert_false(nb_report_is_artefact("{\"name\": \"a\"}", 13));
    assert_false(nb_report_is_artefact("[", 1));
}

/* Numbers past all reason: the plot leaves them out, and holds no value that is no number. */
static void a_plot_survives_any_number(void **state)
{
    (void)state;
    static const char *const names[] = {"<a>", "b"};
    static const double values[][6] = {
        {1, 2, 3, 4, 5, 6},
        {NAN, NAN, NAN, NAN, NAN, NAN},
        {1e300, 1e-300, -1, 0, 5e-324, 1.7e308},
        {INFINITY, -INFINITY, NAN, 1, 1, 1},
        {0, 0, 0, 0, 0, 0},
        {-5, -4, -3, 1e-9, 2, 1e17},
    };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        for (int is_log = 0; is_log < 2; is_log++) {
            nb_buf out = {0};
            nb_err err = {0};
            const nb_series s = {.label = "\"label\"",
                                 .names = names,
                                 .values = values[i],
                                 .n_series = 2,
                                 .n = 3,
                                 .is_log = is_log};
            assert_int_equal(nb_svg_series(&s, &out, &err), NB_OK);
            assert_int_equal(nb_buf_u8(&out, 0, &err), NB_OK);
            const char *svg = (const char *)out.data;
            assert_null(strstr(svg, "nan"));
            assert_null(strstr(svg, "inf"));
            assert_null(strstr(svg, "<a>"));
            assert_true(out.len < 20000);
            if (i == 0)
                assert_int_equal(count(svg, "<title>"), 6);
            if (i == 1 || (i == 4 && is_log))
                assert_string_equal(svg, "");
            nb_buf_free(&out);
        }
    }
}

static nb_status whole_run(nb_err *err)
{
    nb_report *r = NULL;
    nb_buf out = {0};
    nb_status s = nb_report_new(&r, err);
    if (s == NB_OK)
        s = nb_report_add_artefact(r, PLANTED, strlen(PLANTED), "f", "x", err);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_are_read),
        cmocka_unit_test(a_page_has_all_of_it),
        cmocka_unit_test(what_is_missing_is_not_drawn),
        cmocka_unit_test(wrong_types_are_refused_by_name),
        cmocka_unit_test(a_plot_survives_any_number),
        cmocka_unit_test(memory_may_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
