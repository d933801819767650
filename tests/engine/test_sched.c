/* The rules of a step, one by one; who goes before whom is test_sched_order.c, and traffic that
 * mixes everything test_sched_sim.c. */
#include "sched_bench.h"

static void sizes_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    const nb_sched_setup good = setup_of(8, 16);
    nb_sched_setup bad[8];
    for (int i = 0; i < 8; i++)
        bad[i] = good;
    bad[0].step_tokens = 0;
    bad[1].max_waiting = 0;
    bad[2].policy = (nb_sched_policy)3;
    bad[3].ageing_ms = -1;
    bad[4].ageing_ms = INT64_MAX;
    bad[5].blocks.block_len = 3;
    bad[6].blocks.max_seqs = INT64_MIN;
    bad[7].max_waiting = INT64_MAX;
    for (int i = 0; i < 8; i++) {
        nb_err err = {0};
        nb_sched s;
        size_t bytes;
        const nb_status want = i == 7 ? NB_LIMIT : NB_USAGE;
        assert_int_equal(nb_sched_init(&s, &bad[i], &err), want);
        assert_int_equal(nb_sched_bytes(&bad[i], &bytes, &err), want);
        assert_null(s.seqs);
        nb_sched_free(&s);
    }
    nb_sched_setup huge = good;
    huge.max_waiting = INT32_MAX / 2;
    huge.blocks.max_positions = INT32_MAX;
    huge.blocks.max_seqs = 1;
    nb_err err = {0};
    nb_sched s;
    size_t bytes = 0;
    assert_int_equal(nb_sched_init(&s, &huge, &err), NB_MEMORY);
    assert_memory_equal(err.text, "the queue of requests: ", 23);
    assert_int_equal(nb_sched_bytes(&huge, &bytes, &err), NB_OK);
    assert_true(bytes > (size_t)1 << 60);
    assert_int_equal(nb_alloc_live(), 0);
}

static void making_one_survives_every_allocation_failure(void **state)
{
    (void)state;
    const nb_sched_setup setup = setup_of(8, 16);
    nb_status status = NB_MEMORY;
    int64_t n = 0;
    while (status != NB_OK) {
        nb_err err = {0};
        nb_sched s;
        nb_step_plan p = {0};
        nb_alloc_fail_at(++n);
        status = nb_sched_init(&s, &setup, &err);
        if (status == NB_OK)
            status = nb_step_plan_init(&p, &s, &err);
        nb_alloc_fail_at(0);
        assert_true(status == NB_OK || status == NB_MEMORY);
        nb_step_plan_free(&p);
        nb_sched_free(&s);
        assert_int_equal(nb_alloc_live(), 0);
    }
    assert_int_equal(n, 8 + 9 + 3 + 1);
}

/* What can never run is refused with the numbers, and before the queue is asked. */
static void what_never_fits_is_refused(void **state)
{
    (void)state;
    bench b;
    nb_sched_setup setup = setup_of(8, 16);
    setup.max_waiting = 3;
    make(&b, &setup);
    const struct {
        int64_t n_prompt, max_new, n_samples, max_draft;
        int32_t priority;
        const char *text;
    } bad[] = {
        {0, 1, 1, 0, 0, "the prompt has no tokens"},
        {-5, 1, 1, 0, 0, "the prompt has no tokens"},
        {1, -1, 1, 0, 0, "-1 new tokens, 0 guessed ahead: there may be 0 or more, and 0 to 64"},
        {1, 1, 1, 65, 0, "1 new tokens, 65 guessed ahead: there may be 0 or more, and 0 to 64"},
        {1, 1, 4, 0, 0, "4 samples of one prompt: there may be 1 to 3"},
        {1, 1, 1000000000, 0, 0, "1000000000 samples of one prompt: there may be 1 to 3"},
        {1, 1, -1, 0, 0, "-1 samples of one prompt: there may be 1 to 3"},
        {1, 1, 1, 0, 1001, "a priority of 1001: it must be -1000 to 1000"},
        {1, 1, 1, 0, INT32_MIN, "a priority of -2147483648: it must be -1000 to 1000"},
        {128, 1, 1, 0, 0, "128 tokens of prompt and 1 to generate do not fit in a context of 128"},
        {1, INT64_MAX, 1, 0, 0,
         "1 tokens of prompt and 9223372036854775807 to generate do not fit in a context of 128"},
        {INT64_MAX, 0, 1, 0, 0,
         "9223372036854775807 tokens of prompt and 0 to generate do not fit in a context of 128"},
        {30, 4, 1, 0, 0,
         "30 tokens of prompt and 4 to generate need 9 blocks of 4: the whole KV cache has 8"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        nb_err err = {0};
        nb_sched_request r = request(1, 1, bad[i].n_prompt, bad[i].max_new);
        r.n_samples = bad[i].n_samples;
        r.max_draft = bad[i].max_draft;
        r.priority = bad[i].priority;
        assert_int_equal(nb_sched_submit(&b.s, &r, &err), NB_DATA);
        assert_string_equal(err.text, bad[i].text);
        assert_int_equal(b.s.n_waiting, 0);
    }
    submit_plain(&b, 1, 30, 3); /* just fits: the last token takes no room */
    nb_err err = {0};
    nb_sched_request r = request(1, 1, 1, 1);
    assert_int_equal(nb_sched_submit(&b.s, &r, &err), NB_USAGE);
    assert_string_equal(err.text, "there is a request 1 already");
    r.id = 2;
    r.n_samples = 3;
    assert_int_equal(nb_sched_submit(&b.s, &r, &err), NB_LIMIT);
    assert_string_equal(err.text, "the queue is full: 1 of 3 sequences wait");
    r.n_samples = 2;
    submit(&b, &r);
    step(&b); /* one runs, so one more may wait; then none */
    submit_plain(&b, 3, 1, 1);
    r.id = 4;
    r.n_samples = 1;
    assert_int_equal(nb_sched_submit(&b.s, &r, &err), NB_LIMIT);
    assert_int_equal(b.s.counts.n_submitted, 4);
    drop(&b);
}

/* Prompts come in pieces of what the decodes leave of the budget. */
static void decodes_come_first(void **state)
{
    (void)state;
    bench b;
    const nb_sched_setup setup = setup_of(64, 8);
    make(&b, &setup);
    submit_plain(&b, 1, 3, 20);
    submit_plain(&b, 2, 20, 20);
    submit_plain(&b, 3, 9, 20);
    planned(&b, "1:0+3* 2:0+5");
    planned(&b, "1:3+1* 2:5+7");
    planned(&b, "1:4+1* 2:12+7");
    planned(&b, "1:5+1* 2:19+1* 3:0+6");
    planned(&b, "1:6+1* 2:20+1* 3:6+3*");
    submit_plain(&b, 4, 30, 1);
    submit_plain(&b, 5, 30, 1);
    planned(&b, "1:7+1* 2:21+1* 3:9+1* 4:0+5");
    assert_int_equal(b.s.n_waiting, 1);
    drop(&b);
}

/* With a budget below the number of sequences fewer run, and each of them gets its token. */
static void budgets_may_be_tiny(void **state)
{
    (void)state;
    bench b;
    const nb_sched_setup setup = setup_of(64, 2);
    make(&b, &setup);
    for (uint64_t id = 1; id <= 3; id++)
        submit_plain(&b, id, 2, 2);
    planned(&b, "1:0+2*");
    planned(&b, "1:2+1* 2:0+1");
    planned(&b, "2:1+1* 3:0+1");
    planned(&b, "2:2+1* 3:1+1*");
    planned(&b, "3:2+1*");
    planned(&b, "");
    assert_int_equal(b.s.counts.n_finished, 3);
    assert_int_equal(b.s.counts.n_generated_tokens, 6);
    assert_int_equal(b.s.counts.n_prompt_tokens, 6);
    drop(&b);
}

/* The last token is computed however much was found, whether the prompt ends with a block or not;
 * another salt finds nothing. */
static void the_last_token_is_computed(void **state)
{
    (void)state;
    bench b;
    const nb_sched_setup setup = setup_of(64, 64);
    make(&b, &setup);
    const struct {
        int64_t n_prompt;
        const char *salt, *want;
    } in[] = {{16, "", "0:0+16*"}, {16, "", "1:12+4*"}, {17, "", "2:16+1*"},  {15, "", "3:12+3*"},
              {18, "", "4:16+2*"}, {1, "", "5:0+1*"},   {16, "x", "6:0+16*"}, {16, "x", "7:12+4*"}};
    for (uint64_t i = 0; i < 8; i++) {
        nb_sched_request r = request(i, 1, in[i].n_prompt, 1);
        r.salt = in[i].salt;
        r.salt_bytes = strlen(in[i].salt);
        submit(&b, &r);
        planned(&b, in[i].want);
    }
    drop(&b);
}

/* Samples wait for the first to run their prompt, then share it; each copies the block it writes.
 */
static void samples_fork_from_the_first(void **state)
{
    (void)state;
    bench b;
    const nb_sched_setup setup = setup_of(64, 8);
    make(&b, &setup);
    nb_sched_request r = request(1, 1, 11, 5);
    r.n_samples = 3;
    submit(&b, &r);
    submit_plain(&b, 2, 1, 9); /* goes past those that wait for their own */
    planned(&b, "1:0+8");
    planned(&b, "1:8+3* 2:0+1*");
    plan(&b);
    assert_string_equal(told(&b), "1:11+1* 2:1+1* 1:10+1* 1:10+1*");
    assert_int_equal(b.plan.n_copies, 2);
    const nb_step_entry *first = &b.plan.entries[0], *second = &b.plan.entries[2];
    const nb_step_entry *third = &b.plan.entries[3];
    assert_int_equal(second->sample, 1);
    assert_int_equal(third->sample, 2);
    assert_int_equal(second->table[1], first->table[1]);
    assert_int_equal(third->table[1], first->table[1]);
    assert_int_equal(first->n_found, 0);
    assert_int_equal(second->n_found, 10);
    assert_int_equal(b.plan.copies[0].from, first->table[2]);
    assert_int_equal(b.plan.copies[0].to, second->table[2]);
    assert_int_equal(b.plan.copies[1].to, third->table[2]);
    answer(&b);
    commit(&b);
    assert_int_equal(b.s.counts.n_prompt_tokens, 12);
    assert_true(nb_sched_abort(&b.s, 1)); /* all of them */
    assert_int_equal(b.s.n_running, 1);
    assert_int_equal(b.s.counts.n_aborted, 3);
    drop(&b);
}

/* All outputs of a prompt: each is given out once, in whatever pieces, and no prefix is skipped. */
static void all_outputs_are_computed(void **state)
{
    (void)state;
    bench b;
    const nb_sched_setup setup = setup_of(64, 6);
    make(&b, &setup);
    for (uint64_t id = 1; id <= 2; id++) {
        nb_sched_request r = request(id, 1, 10, 2);
        r.all_outputs = true;
        submit(&b, &r);
        static const int64_t n_outputs[] = {6, 4, 1};
        for (int i = 0; i < 3; i++) {
            plan(&b);
            assert_int_equal(b.plan.n_entries, 1);
            assert_int_equal(b.plan.entries[0].n_outputs, n_outputs[i]);
            assert_int_equal(b.plan.entries[0].n_found, 0);
            answer(&b);
            commit(&b);
        }
    }
    /* Without anything to generate: for embeddings, and echo. */
    nb_sched_request r = request(3, 1, 10, 0);
    submit(&b, &r);
    plan(&b);
    assert_string_equal(told(&b), "3:8+2*");
    assert_int_equal(b.plan.entries[0].n_outputs, 1);
    assert_int_equal(b.plan.entries[0].n_left, 0);
    answer(&b);
    commit(&b);
    assert_int_equal(b.s.n_running, 0);
    assert_int_equal(b.s.counts.n_finished, 3);
    drop(&b);
}

/* Guesses get what nobody else wants; those accepted stay, the others' blocks go back. */
static void guesses_get_what_is_left(void **state)
{
    (void)state;
    bench b;
    nb_sched_setup setup = setup_of(64, 12);
    make(&b, &setup);
    nb_sched_request r = request(1, 1, 3, 20);
    r.max_draft = 6;
    submit(&b, &r);
    plan(&b);
    assert_int_equal(b.plan.entries[0].n_draft, 6);
    answer(&b);
    b.results[0].n_tokens = 4; /* three accepted */
    for (int i = 0; i < 4; i++)
        b.answers[0][i] = 40 + i;
    commit(&b);
    const nb_seq *q = &b.s.seqs[b.s.running[0]];
    assert_int_equal(q->n_tokens, 7);
    assert_int_equal(q->n_kv, 6);
    assert_int_equal(b.s.blocks.n_table[q->seq], 2);
    assert_int_equal(nb_sched_tokens(&b.s, b.s.running[0])[6], 43);
    submit_plain(&b, 2, 9, 2); /* a prompt goes before guesses */
    plan(&b);
    assert_string_equal(told(&b), "1:6+1* 2:0+9*");
    assert_int_equal(b.plan.entries[0].n_draft, 2);
    answer(&b);
    b.results[0].n_tokens = 3;
    commit(&b);
    for (int i = 0; i < 3; i++) {
        plan(&b);
        answer(&b);
        b.results[0].n_tokens = 1 + b.plan.entries[0].n_draft;
        commit(&b);
        if (b.s.n_running == 0)
            break;
    }
    assert_int_equal(b.s.n_running, 0); /* never past max_new */
    assert_int_equal(b.s.counts.n_generated_tokens, 20 + 2);
    drop(&b);

    setup = setup_of(3, 64); /* and never where it takes the block that stays available */
    make(&b, &setup);
    r.max_new = 9;
    submit(&b, &r);
    plan(&b);
    assert_int_equal(b.plan.entries[0].n_draft, 5);
    drop(&b);
}

/* A sequence whose step went wrong leaves nothing of it behind; what was there before stays. */
static void what_is_broken_is_not_kept(void **state)
{
    (void)state;
    bench b;
    const nb_sched_setup setup = setup_of(64, 8);
    make(&b, &setup);
    submit_plain(&b, 1, 16, 4);
    step(&b);
    plan(&b);
    answer(&b);
    b.results[0] = (nb_sched_result){.end = NB_SEQ_BROKEN};
    commit(&b);
    assert_int_equal(b.s.n_running, 0);
    assert_int_equal(b.s.blocks.n_cached, 2);
    assert_int_equal(b.s.counts.n_broken, 1);
    submit_plain(&b, 1, 16, 4);
    planned(&b, "1:8+8*");
    drop(&b);
}

/* A stop token ends a sequence; so may the caller without one. */
static void the_caller_ends_a_sequence(void **state)
{
    (void)state;
    bench b;
    const nb_sched_setup setup = setup_of(64, 8);
    make(&b, &setup);
    submit_plain(&b, 1, 4, 9);
    submit_plain(&b, 2, 4, 9);
    plan(&b);
    answer(&b);
    b.results[0].end = NB_SEQ_DONE;
    b.results[1] = (nb_sched_result){.end = NB_SEQ_DONE};
    commit(&b);
    assert_int_equal(b.s.n_running, 0);
    assert_int_equal(b.s.blocks.n_cached, 2);
    assert_int_equal(b.s.counts.n_generated_tokens, 1);
    drop(&b);
}

/* While a step is under way a request may go, and its id may not come again before commit. */
static void abort_works_at_any_moment(void **state)
{
    (void)state;
    bench b;
    nb_err err = {0};
    nb_sched_setup setup = setup_of(64, 8);
    setup.blocks.max_seqs = 1;
    make(&b, &setup);
    submit_plain(&b, 1, 4, 9);
    submit_plain(&b, 2, 4, 9);
    assert_false(nb_sched_abort(&b.s, 3));
    plan(&b);
    answer(&b);
    assert_true(nb_sched_abort(&b.s, 1));
    assert_false(nb_sched_abort(&b.s, 1));
    assert_true(nb_sched_abort(&b.s, 2)); /* waits: gone at once */
    nb_sched_request r = request(1, 1, 4, 9);
    assert_int_equal(nb_sched_submit(&b.s, &r, &err), NB_USAGE);
    commit(&b);
    assert_int_equal(b.s.n_running + b.s.n_waiting, 0);
    assert_int_equal(b.s.blocks.n_free, 64); /* nothing of it was kept */
    submit(&b, &r);
    planned(&b, "1:0+4*");
    drop(&b);
}

/* A sequence that outgrows its short row keeps its tokens and its hashes: another prompt of the
 * same tokens finds all its full blocks. Its neighbours' rows stay as they were. */
static void what_gets_long_keeps_its_tokens(void **state)
{
    (void)state;
    enum { START = NB_SCHED_SHORT - 5, MADE = 12, ALL = START + MADE };
    bench b;
    nb_sched_setup setup = setup_of(256, 600);
    setup.blocks.max_positions = 1000;
    make(&b, &setup);
    int32_t text[ALL];
    for (int32_t i = 0; i < ALL; i++)
        text[i] = i < START ? 100 + i : 7; /* what the engine of the bench will say */
    submit_plain(&b, 1, 8, 40);
    const nb_sched_request r = {.id = 2, .prompt = text, .n_prompt = START, .max_new = MADE};
    submit(&b, &r);
    submit_plain(&b, 3, 8, 40);
    plan(&b);
    const int32_t slot = b.s.running[1];
    assert_false(b.s.seqs[slot].is_long);
    for (int i = 0; i < 3; i += 2) /* waiting or running, short ones lie side by side */
        assert_int_equal(nb_sched_tokens(&b.s, b.s.running[i]) - b.s.short_tokens,
                         b.s.running[i] * NB_SCHED_SHORT);
    answer(&b);
    commit(&b);
    while (b.s.counts.n_finished == 0) {
        assert_memory_equal(nb_sched_tokens(&b.s, slot), text,
                            (size_t)b.s.seqs[slot].n_tokens * sizeof *text);
        assert_int_equal(b.s.seqs[slot].is_long, b.s.seqs[slot].n_tokens > NB_SCHED_SHORT);
        assert_int_equal(nb_sched_tokens(&b.s, b.s.running[0])[0], prompt_tokens[0] - 2000);
        assert_int_equal(nb_sched_tokens(&b.s, b.s.running[2])[7], prompt_tokens[7]);
        step(&b);
    }
    const nb_sched_request again = {.id = 4, .prompt = text, .n_prompt = ALL, .max_new = 1};
    submit(&b, &again);
    assert_true(b.s.seqs[b.s.waiting[0]].is_long);
    step(&b);
    assert_int_equal(b.s.counts.n_prefix_hits, (ALL - 1) / LEN * LEN);
    drop(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_that_make_no_sense_are_refused),
        cmocka_unit_test(making_one_survives_every_allocation_failure),
        cmocka_unit_test(what_never_fits_is_refused),
        cmocka_unit_test(decodes_come_first),
        cmocka_unit_test(budgets_may_be_tiny),
        cmocka_unit_test(the_last_token_is_computed),
        cmocka_unit_test(samples_fork_from_the_first),
        cmocka_unit_test(what_gets_long_keeps_its_tokens),
        cmocka_unit_test(all_outputs_are_computed),
        cmocka_unit_test(guesses_get_what_is_left),
        cmocka_unit_test(what_is_broken_is_not_kept),
        cmocka_unit_test(the_caller_ends_a_sequence),
        cmocka_unit_test(abort_works_at_any_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
