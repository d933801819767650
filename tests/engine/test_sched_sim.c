/* The scheduler under traffic of all kinds, with every invariant looked at after every step. With
 * arguments, a program that runs longer, or repeats a failure:
 *
 *   test_sched_sim [--seed N] [--from N] [--steps N] */
#include "support/golden.h"
#include "support/sched_sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void all_invariants_hold_under_traffic(void **state)
{
    (void)state;
    nb_err err = {0};
    sim_counts n = {0};
    if (sim_run(1, 0, 200000, SIM_NO_FAULT, &n, &err) != NB_OK)
        fail_msg("%s", err.text);
    /* A run in which nothing happened has checked nothing. */
    const int64_t happened[] = {n.n_tokens,    n.n_cells_compared, n.n_refused,  n.n_queue_full,
                                n.n_aborted,   n.n_aborted_midway, n.n_broken,   n.n_over,
                                n.n_preempted, n.n_patience,       n.n_copies,   n.n_hits,
                                n.n_evicted,   n.n_accepted,       n.n_rejected, n.n_submitted};
    for (size_t i = 0; i < sizeof happened / sizeof *happened; i++)
        assert_in_range(happened[i], 30, INT64_MAX);
}

/* The same calls give the same plans, and other calls others. */
static void a_seed_replays(void **state)
{
    (void)state;
    nb_err err = {0};
    sim_counts a = {0}, b = {0}, c = {0};
    assert_int_equal(sim_run(7, 3, 5000, SIM_NO_FAULT, &a, &err), NB_OK);
    assert_int_equal(sim_run(7, 3, 5000, SIM_NO_FAULT, &b, &err), NB_OK);
    assert_int_equal(sim_run(7, 4, 5000, SIM_NO_FAULT, &c, &err), NB_OK);
    assert_true(a.hash == b.hash);
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(a.hash != c.hash);
}

/* What an engine may do wrong with a plan does not go unnoticed, and the message leads back. */
static void mistakes_of_an_engine_are_caught(void **state)
{
    (void)state;
    for (int fault = SIM_NO_COPIES; fault <= SIM_SAMPLE_BY_ROW; fault++) {
        nb_err err = {0};
        sim_counts n = {0};
        if (sim_run(2, 0, 100000, (sim_fault)fault, &n, &err) != NB_DATA)
            fail_msg("fault %d was not found", fault);
        unsigned long long seed;
        long long from, step;
        assert_int_equal(
            sscanf(err.text, "--seed %llu --from %lld, step %lld: K", &seed, &from, &step), 3);
        nb_err again = {0};
        sim_counts m = {0};
        assert_int_equal(sim_run(seed, from, step + 1, (sim_fault)fault, &m, &again), NB_DATA);
        assert_string_equal(again.text, err.text);
    }
}

static int run_as_told(int argc, char **argv)
{
    unsigned long long seed = 1;
    long long from = 0, steps = 10000000;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--seed") == 0)
            seed = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--from") == 0)
            from = strtoll(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--steps") == 0)
            steps = strtoll(argv[i + 1], NULL, 10);
        else
            return fprintf(stderr, "unknown: %s\n", argv[i]), 2;
    }
    nb_err err = {0};
    sim_counts n = {0};
    const nb_status s = sim_run(seed, from, steps, SIM_NO_FAULT, &n, &err);
    printf("%lld steps in %lld worlds: %lld tokens, %lld cells compared\n", (long long)n.n_steps,
           (long long)n.n_worlds, (long long)n.n_tokens, (long long)n.n_cells_compared);
    printf("requests: %lld taken, %lld refused, %lld times the queue was full, %lld aborted (%lld "
           "of them midway)\n",
           (long long)n.n_submitted, (long long)n.n_refused, (long long)n.n_queue_full,
           (long long)n.n_aborted, (long long)n.n_aborted_midway);
    printf("sequences: %lld over, %lld broken, %lld preemptions (%lld the third of one sequence)\n",
           (long long)n.n_over, (long long)n.n_broken, (long long)n.n_preempted,
           (long long)n.n_patience);
    printf(
        "blocks: %lld copied, %lld evicted; tokens: %lld found, %lld guessed right, %lld wrong\n",
        (long long)n.n_copies, (long long)n.n_evicted, (long long)n.n_hits, (long long)n.n_accepted,
        (long long)n.n_rejected);
    if (s != NB_OK)
        printf("FAILED: %s\n", err.text);
    else
        printf("all invariants held; hash of the plans %016llx\n", (unsigned long long)n.hash);
    return s == NB_OK ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return run_as_told(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_invariants_hold_under_traffic),
        cmocka_unit_test(a_seed_replays),
        cmocka_unit_test(mistakes_of_an_engine_are_caught),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
