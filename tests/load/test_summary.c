/* What records come to, on records made by hand; the command-line test does so on real ones. */
#include "support/golden.h"

#include "load/summary.h"

#include <math.h>
#include <string.h>

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-9 * (1 + fabs(b));
}

static void goodput_reads_what_it_says(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double ttft, tpot, e2el; /* all 0: refused */
    } rows[] = {
        {"ttft:200", 0.2, 0, 0},
        {"e2el:2000,tpot:50.5,ttft:1", 1e-3, 50.5e-3, 2},
        {"tpot:0.25", 0, 0.25e-3, 0},
        {"tpot:.5", 0, 0.5e-3, 0},
        {"", 0, 0, 0},
        {"ttft:", 0, 0, 0},
        {"ttft:0", 0, 0, 0},
        {"ttft:.", 0, 0, 0},
        {"ttft:1,", 0, 0, 0},
        {"ttft:1,ttft:1", 0, 0, 0},
        {"ttft:1 ", 0, 0, 0},
        {"ttft:1e3", 0, 0, 0},
        {"itl:1", 0, 0, 0},
        {"ttft=1", 0, 0, 0},
        {"ttft:-1", 0, 0, 0},
        {"ttft:99999999999999999999", 0, 0, 0},
        {",ttft:1", 0, 0, 0},
        {"ttft:1;tpot:1", 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nb_err err = {0};
        nb_goodput g = {0};
        const bool refused = rows[i].ttft + rows[i].tpot + rows[i].e2el == 0;
        assert_int_equal(nb_goodput_parse(&g, rows[i].text, &err), refused ? NB_USAGE : NB_OK);
        assert_true(near(g.ttft, rows[i].ttft) && near(g.tpot, rows[i].tpot) &&
                    near(g.e2el, rows[i].e2el));
    }
}

/* Three that succeed, one of a single token; one that failed after tokens, one that was aborted. */
static double gaps_a[] = {0.1, 0.3}, gaps_b[] = {0.2}, gaps_bad[] = {9, 9, 9, 9};
static nb_load_record records[] = {
    {.planned = 0,
     .start = 0.001,
     .ttft = 0.5,
     .tpot = 0.2,
     .e2el = 0.9,
     .gaps = gaps_a,
     .n_gaps = 2,
     .input_asked = 10,
     .input_tokens = 12,
     .cached_tokens = 4,
     .output_tokens = 3,
     .status = 200},
    {.planned = 1,
     .start = 1.003,
     .ttft = 0.1,
     .tpot = 0.2,
     .e2el = 0.3,
     .gaps = gaps_b,
     .n_gaps = 1,
     .input_asked = 10,
     .input_tokens = -1,
     .cached_tokens = -1,
     .output_tokens = 2,
     .status = 200,
     .flaws = 1u << NB_FLAW_NO_USAGE | 1u << NB_FLAW_NO_DONE},
    {.planned = 2,
     .start = 2,
     .ttft = 0.4,
     .tpot = -1,
     .e2el = 0.4,
     .input_asked = -1,
     .input_tokens = -1,
     .cached_tokens = -1,
     .output_tokens = 1,
     .status = 200},
    {.planned = 2,
     .start = 2,
     .ttft = 7,
     .tpot = 7,
     .e2el = 50,
     .gaps = gaps_bad,
     .n_gaps = 4,
     .input_tokens = 99,
     .cached_tokens = 99,
     .output_tokens = 99,
     .fate = NB_FATE_CUT,
     .status = 200,
     .flaws = 1},
    {.planned = 2,
     .start = 2,
     .ttft = -1,
     .tpot = -1,
     .e2el = -1,
     .input_tokens = -1,
     .cached_tokens = -1,
     .fate = NB_FATE_STATUS,
     .status = 503},
    {.planned = 3,
     .start = 3,
     .ttft = -1,
     .tpot = -1,
     .e2el = -1,
     .input_tokens = -1,
     .cached_tokens = -1,
     .fate = NB_FATE_ABORTED},
};
static const nb_load_result result = {.records = records,
                                      .n = sizeof records / sizeof *records,
                                      .duration = 4,
                                      .idle = 3,
                                      .cpu = 0.6,
                                      .peak_concurrency = 3};

static void only_success_counts(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_summary s;
    assert_int_equal(nb_summary_of(&s, &result, NULL, &err), NB_OK);
    assert_int_equal(s.n, 6);
    assert_int_equal(s.completed, 3);
    assert_int_equal(s.failed, 2);
    assert_int_equal(s.aborted, 1);
    assert_int_equal(s.fates[NB_FATE_CUT], 1);
    assert_int_equal(s.statuses[503], 1);
    assert_int_equal(s.statuses[200], 0);
    assert_int_equal(s.flawed, 1);
    assert_int_equal(s.flaws[NB_FLAW_NO_USAGE], 1);
    assert_int_equal(s.flaws[NB_FLAW_NO_FINISH], 0); /* of the one that failed */
    assert_int_equal(s.input_tokens, 12 + 10 + 0);
    assert_int_equal(s.output_tokens, 6);
    assert_int_equal(s.cached_tokens, 4);
    assert_true(near(s.request_rate, 0.75) && near(s.output_rate, 1.5) && near(s.total_rate, 7));
    assert_true(s.good_rate == -1);
    assert_true(near(s.busy, 0.25) && near(s.cpu_us, 1e5));
    assert_true(s.ttft.n == 3 && near(s.ttft.median, 400) && near(s.ttft.mean, 1000.0 / 3));
    assert_true(s.tpot.n == 2 && near(s.tpot.mean, 200));
    assert_true(s.itl.n == 3 && near(s.itl.max, 300) && near(s.itl.median, 200));
    assert_true(s.e2el.n == 3 && near(s.e2el.max, 900));
    assert_true(s.late.n == 6 && near(s.late.max, 3) && near(s.late.p90, 2));
    /* Tokens came at 0.501, 0.601, 0.901; 1.103, 1.303; 2.4. */
    assert_true(s.peak_output_rate == 3);
}

/* Bounds are kept when they are met exactly, and all of them have to be. */
static void goodput_asks_for_every_bound(void **state)
{
    (void)state;
    static const struct {
        nb_goodput bounds;
        int good;
    } rows[] = {
        {{0.5, 0, 0}, 3},   {{0.49, 0, 0}, 2},    {{0, 0.2, 0}, 3},
        {{0, 0.1, 0}, 1}, /* the single token */
        {{0.4, 0.2, 1}, 2}, {{0.4, 0.2, 0.3}, 1}, {{1e-9, 0, 0}, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nb_err err = {0};
        nb_summary s;
        assert_int_equal(nb_summary_of(&s, &result, &rows[i].bounds, &err), NB_OK);
        assert_true(near(s.good_rate, rows[i].good / 4.0));
    }
}

/* No request at all, and no time at all, are numbers and no division by zero. */
static void nothing_gives_zeros(void **state)
{
    (void)state;
    static const nb_load_result none = {0};
    const nb_goodput bounds = {.ttft = 1};
    nb_err err = {0};
    nb_summary s;
    assert_int_equal(nb_summary_of(&s, &none, &bounds, &err), NB_OK);
    assert_true(s.request_rate == 0 && s.busy == 0 && s.cpu_us == 0 && s.ttft.n == 0);
    assert_int_equal(s.cached_tokens, -1);
}

static void memory_may_run_out(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 2; n++) {
        const int64_t before = nb_alloc_live();
        nb_err err = {0};
        nb_summary s;
        nb_alloc_fail_at(n);
        assert_int_equal(nb_summary_of(&s, &result, NULL, &err), NB_MEMORY);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goodput_reads_what_it_says),   cmocka_unit_test(only_success_counts),
        cmocka_unit_test(goodput_asks_for_every_bound), cmocka_unit_test(nothing_gives_zeros),
        cmocka_unit_test(memory_may_run_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
