/* Who goes before whom in the scheduler: policies, preemption, and where patience ends. */
#include "sched_bench.h"

/* The latest arrival gives its blocks back, computes them again from what is still there, and goes
 * before those that came after it. */
static void the_latest_is_preempted(void **state)
{
    (void)state;
    bench b;
    const nb_sched_setup setup = setup_of(6, 64);
    make(&b, &setup);
    submit_plain(&b, 1, 11, 10);
    submit_plain(&b, 2, 7, 12);
    planned(&b, "1:0+11* 2:0+7*");
    planned(&b, "1:11+1* 2:7+1*");
    submit_plain(&b, 3, 1, 1);
    plan(&b); /* one block is left, and two are wanted */
    assert_string_equal(told(&b), "1:12+1*");
    assert_int_equal(b.plan.n_preempted, 1);
    assert_int_equal(b.plan.preempted[0].id, 2);
    answer(&b);
    commit(&b);
    /* 3 would fit; but 2 came before it. */
    planned(&b, "1:13+1*");
    assert_int_equal(b.s.n_waiting, 2);
    assert_true(nb_sched_abort(&b.s, 1));
    plan(&b);
    /* Its two full blocks were found, or what is left of them. */
    assert_int_equal(b.plan.entries[0].id, 2);
    assert_int_equal(b.plan.entries[0].start, 8);
    assert_int_equal(b.plan.entries[0].n, 1);
    assert_int_equal(b.plan.entries[0].n_found, 0);
    assert_int_equal(b.plan.entries[1].id, 3);
    answer(&b);
    commit(&b);
    drop(&b);
}

/* Nobody is preempted a fourth time: it is next, and what runs beside it fits to the end. */
static void patience_has_an_end(void **state)
{
    (void)state;
    bench b;
    const nb_sched_setup setup = setup_of(12, 64);
    make(&b, &setup);
    uint64_t id = 1;
    submit_plain(&b, id++, 1, 40);
    submit_plain(&b, id++, 1, 40);
    int32_t most = 0;
    bool ran_patient = false, over = false;
    for (int i = 0; i < 400 && !over; i++) {
        /* Short ones that come, run before it and take its room. */
        step(&b);
        for (int64_t k = 0; k < b.s.n_slots; k++) {
            const nb_seq *q = &b.s.seqs[k];
            if (q->state == NB_SEQ_NONE)
                continue;
            most = q->n_preempted > most ? q->n_preempted : most;
            ran_patient |= q->n_preempted == NB_SCHED_PATIENCE && q->state == NB_SEQ_RUNNING;
        }
        if (b.s.n_waiting < 2) {
            nb_sched_request r = request(id, (int32_t)id, 1, 30);
            r.arrival_ms = i;
            submit(&b, &r);
            id++;
        }
    }
    assert_int_equal(most, NB_SCHED_PATIENCE);
    assert_true(ran_patient);
    drop(&b);
}

/* Priority moves an arrival by a fixed time and no more: who waits long enough is next. */
static void priorities_age(void **state)
{
    (void)state;
    bench b;
    nb_sched_setup setup = setup_of(64, 64);
    setup.policy = NB_SCHED_PRIORITY;
    setup.blocks.max_seqs = 1;
    make(&b, &setup);
    const struct {
        int64_t ms;
        int32_t priority;
    } in[] = {{0, 0}, {10, 5}, {20, 0}, {250, -2}, {499, 0}, {511, 0}, {400, 1}};
    for (uint64_t i = 0; i < 7; i++) {
        nb_sched_request r = request(i, (int32_t)i, 1, 1);
        r.arrival_ms = in[i].ms;
        r.priority = in[i].priority;
        submit(&b, &r);
    }
    /* The last came at 511 at the earliest: the clock does not go back. */
    static const char *const want[] = {"0:0+1*", "2:0+1*", "3:0+1*", "4:0+1*",
                                       "1:0+1*", "5:0+1*", "6:0+1*"};
    for (int i = 0; i < 7; i++)
        planned(&b, want[i]);
    nb_sched_request r = request(9, 9, 1, 1);
    r.arrival_ms = INT64_MAX;
    r.priority = NB_SCHED_MAX_PRIORITY;
    submit(&b, &r);
    planned(&b, "9:0+1*");
    drop(&b);
}

/* Under priority the lower one goes, even if it came first. */
static void low_priority_is_preempted(void **state)
{
    (void)state;
    bench b;
    nb_sched_setup setup = setup_of(6, 64);
    setup.policy = NB_SCHED_PRIORITY;
    make(&b, &setup);
    nb_sched_request low = request(1, 1, 7, 12);
    low.priority = 9;
    submit(&b, &low);
    submit_plain(&b, 2, 11, 10);
    planned(&b, "2:0+11* 1:0+7*");
    planned(&b, "2:11+1* 1:7+1*");
    plan(&b);
    assert_int_equal(b.plan.n_preempted, 1);
    assert_int_equal(b.plan.preempted[0].id, 1);
    answer(&b);
    commit(&b);
    drop(&b);
}

/* The longest prefix goes first, but not past one that came long before. */
static void longest_prefix_goes_first(void **state)
{
    (void)state;
    bench b;
    nb_sched_setup setup = setup_of(64, 64);
    setup.policy = NB_SCHED_LPM;
    setup.blocks.max_seqs = 1;
    make(&b, &setup);
    nb_sched_request r = request(1, 50, 17, 1);
    submit(&b, &r);
    planned(&b, "1:0+17*");
    submit_plain(&b, 2, 9, 1);
    r = request(3, 50, 9, 1); /* two blocks found: 200 ms */
    r.arrival_ms = 150;
    submit(&b, &r);
    r = request(4, 50, 17, 1); /* four: 400 ms */
    r.arrival_ms = 160;
    submit(&b, &r);
    r = request(5, 50, 17, 1); /* four, and too late to pass 2 */
    r.arrival_ms = 401;
    submit(&b, &r);
    planned(&b, "4:16+1*");
    planned(&b, "3:8+1*");
    planned(&b, "2:0+9*");
    planned(&b, "5:16+1*");
    assert_int_equal(b.s.counts.n_prefix_hits, 16 + 8 + 16);
    assert_int_equal(b.s.counts.n_prefix_queries, 17 + 17 + 9 + 9 + 17);
    drop(&b);
}

/* Of the waiting ones the window of longest-prefix-match looks at, those that wait for a sample of
 * theirs do not count: others are found behind them. */
static void many_samples_do_not_fill_the_window(void **state)
{
    (void)state;
    bench b;
    nb_sched_setup setup = setup_of(64, 8);
    setup.max_waiting = 128;
    make(&b, &setup);
    nb_sched_request r = request(1, 1, 20, 2);
    r.n_samples = 127;
    submit(&b, &r);
    submit_plain(&b, 2, 1, 1);
    planned(&b, "1:0+8");
    planned(&b, "1:8+8");
    planned(&b, "1:16+4* 2:0+1*");
    int n_steps = 0;
    for (; b.s.n_running + b.s.n_waiting > 0 && n_steps < 400; n_steps++)
        step(&b);
    assert_in_range(n_steps, 2 * 126 / 8, 399);
    assert_int_equal(b.s.counts.n_generated_tokens, 2 * 127 + 1);
    drop(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_latest_is_preempted),
        cmocka_unit_test(patience_has_an_end),
        cmocka_unit_test(priorities_age),
        cmocka_unit_test(low_priority_is_preempted),
        cmocka_unit_test(longest_prefix_goes_first),
        cmocka_unit_test(many_samples_do_not_fill_the_window),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
