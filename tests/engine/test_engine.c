/* The engine answers what the one-sequence loop answers, bit for bit: with others beside, with a
 * cache so small that sequences are preempted, with prefixes found, steps cut anyhow, and choices
 * that share a prompt. What is aborted holds nothing; what cannot run is refused. */
#define _GNU_SOURCE
#include "engine_bench.h"

#include <stdlib.h>

/* All at once, in caches of different sizes and steps of different lengths. */
static void answers_do_not_depend_on_company(void **state)
{
    (void)state;
    const nb_engine_setup setups[] = {
        {.n_ctx = 256},
        {.n_ctx = 256, .n_blocks = 9, .share_prefixes = true},
        {.n_ctx = 256, .n_blocks = 9, .step_tokens = 5, .max_seqs = 4},
        {.n_ctx = 256, .step_tokens = 1, .n_blocks = 12, .share_prefixes = true},
        {.n_ctx = 256,
         .step_tokens = 33,
         .max_seqs = 3,
         .policy = NB_SCHED_LPM,
         .share_prefixes = true},
    };
    const tiny_model *const models[] = {&wordy, &ending};
    for (int m = 0; m < 2; m++) {
        const char *path = model_path(m == 0 ? "wordy" : "ending", models[m]);
        nb_generation want[N_TEXTS];
        for (int i = 0; i < N_TEXTS; i++) {
            const nb_generate_options o = options_of(i);
            want[i] = alone(path, texts[i], &o, 0);
        }
        int64_t n_preempted = 0, n_cached = 0;
        for (size_t s = 0; s < sizeof setups / sizeof *setups; s++) {
            bench b;
            client c[N_TEXTS] = {0};
            bench_open(&b, path, setups[s]);
            for (int round = 0; round < 2; round++) {
                hold(&b.desk, true);
                for (int i = 0; i < N_TEXTS; i++) {
                    const nb_generate_options o = options_of(i);
                    must_ask(&b, &c[i], texts[i], &o, 1);
                }
                hold(&b.desk, false);
                wait_for_all(&b);
                for (int i = 0; i < N_TEXTS; i++) {
                    same(&c[i], 0, &want[i]);
                    assert_int_equal(c[i].n_prompt, want[i].n_prompt);
                    n_cached += c[i].n_cached;
                    client_free(&c[i]);
                    c[i] = (client){0};
                }
            }
            nb_engine_stats stats;
            nb_engine_read_stats(b.e, &stats);
            assert_int_equal(stats.finished[NB_FINISH_STOP] + stats.finished[NB_FINISH_LENGTH],
                             2 * N_TEXTS);
            assert_int_equal(stats.blocks_used, 0);
            n_preempted += stats.n_preemptions;
            bench_close(&b);
        }
        assert_true(m == 1 || (n_preempted > 0 && n_cached > 0)); /* else nothing was tried */
        for (int i = 0; i < N_TEXTS; i++)
            nb_generation_free(&want[i]);
    }
}

/* Choices to one prompt are those of as many requests. */
static void choices_share_a_prompt(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const nb_generate_options o = {.max_tokens = 20, .sampling = {.temperature = 1.3, .seed = 7}};
    const nb_engine_setup setup = {.n_ctx = 256, .n_blocks = 24, .step_tokens = 16};
    bench b;
    client c = {0};
    bench_open(&b, path, setup);
    must_ask(&b, &c, texts[2], &o, 5);
    wait_for_all(&b);
    bool differ = false;
    for (int i = 0; i < 5; i++) {
        nb_generation want = alone(path, texts[2], &o, i);
        same(&c, i, &want);
        differ = differ || memcmp(c.ids[i].ids, c.ids[0].ids, 20 * sizeof(int32_t)) != 0;
        nb_generation_free(&want);
    }
    assert_true(differ);
    client_free(&c);
    bench_close(&b);
}

/* Those of the prompt are those of an answer that goes the same way. */
static void logprobs_are_those_of_the_loop(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const nb_generate_options o = {.max_tokens = 9, .logprobs = true, .n_top = 2};
    const nb_engine_setup setup = {.n_ctx = 256, .step_tokens = 4, .share_prefixes = true};
    nb_generation want = alone(path, texts[6], &o, 0);
    bench b;
    client c[2] = {0};
    bench_open(&b, path, setup);
    for (int i = 0; i < 2; i++) {
        must_ask(&b, &c[i], texts[6], &o, 1);
        wait_for_all(&b);
        same(&c[i], 0, &want);
        assert_int_equal(c[i].logprobs[0].len, 9 * 3 * sizeof(nb_logprob));
        assert_memory_equal(c[i].logprobs[0].data, want.logprobs, c[i].logprobs[0].len);
        assert_int_equal(c[i].prompt_logprobs.len,
                         (size_t)(c[i].n_prompt - 1) * sizeof(nb_logprob));
    }
    assert_memory_equal(c[0].prompt_logprobs.data, c[1].prompt_logprobs.data,
                        c[0].prompt_logprobs.len);
    client_free(&c[0]);
    client_free(&c[1]);
    nb_generation_free(&want);
    bench_close(&b);
}

/* A stop string cuts where the loop cuts, and is named. */
static void stop_strings_end_answers(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    nb_generate_options o = {.max_tokens = 60};
    nb_generation whole = alone(path, texts[0], &o, 0);
    assert_true(whole.text_len > 12);
    char stop[4] = {0};
    memcpy(stop, whole.text + whole.text_len / 2, 3);
    const char *const stops[] = {"never said", stop};
    o.stops = stops;
    o.n_stops = 2;
    nb_generation want = alone(path, texts[0], &o, 0);
    bench b;
    client c = {0};
    bench_open(&b, path, (nb_engine_setup){.n_ctx = 256});
    must_ask(&b, &c, texts[0], &o, 1);
    wait_for_all(&b);
    if (want.reason == NB_STOP_TEXT) {
        same(&c, 0, &want);
        assert_string_equal(c.stop, stop);
    }
    client_free(&c);
    bench_close(&b);
    nb_generation_free(&want);
    nb_generation_free(&whole);
}

/* Answers held to a schema, beside others that are not. */
static void schemas_hold_in_company(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const char *const schemas[] = {"{\"type\": \"object\"}", NULL,
                                   "{\"type\": \"array\", \"items\": {\"type\": \"integer\"}}"};
    const nb_engine_setup setup = {.n_ctx = 256, .n_blocks = 6, .step_tokens = 9};
    bench b;
    client c[6] = {0};
    bench_open(&b, path, setup);
    for (int i = 0; i < 6; i++) {
        const nb_generate_options o = {.max_tokens = 50,
                                       .json_schema = schemas[i % 3],
                                       .hash_logits = true,
                                       .sampling = {.temperature = 1, .seed = (uint64_t)i}};
        must_ask(&b, &c[i], texts[i], &o, 1);
    }
    wait_for_all(&b);
    for (int i = 0; i < 6; i++) {
        const nb_generate_options o = {.max_tokens = 50,
                                       .json_schema = schemas[i % 3],
                                       .hash_logits = true,
                                       .sampling = {.temperature = 1, .seed = (uint64_t)i}};
        nb_generation want = alone(path, texts[i], &o, 0);
        assert_int_equal(c[i].ids[0].n, want.n_tokens + (want.stop_id >= 0));
        assert_memory_equal(c[i].ids[0].ids, want.tokens, (size_t)want.n_tokens * sizeof(int32_t));
        assert_true(c[i].logits_hash[0] == want.logits_hash);
        const char *at = (const char *)c[i].text[0].data;
        at += strspn(at, " \t\r\n");
        assert_true(i % 3 == 1 || *at == (i % 3 == 0 ? '{' : '['));
        nb_generation_free(&want);
        client_free(&c[i]);
    }
    bench_close(&b);
}

/* Guesses change how many steps there are, and nothing else. */
static void guesses_leave_answers_alone(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const nb_engine_setup setups[] = {{.n_ctx = 256},
                                      {.n_ctx = 256, .n_blocks = 9, .step_tokens = 11}};
    for (int s = 0; s < 2; s++) {
        bench b;
        client c[N_TEXTS] = {0};
        bench_open(&b, path, setups[s]);
        for (int i = 0; i < N_TEXTS; i++) {
            nb_generate_options o = options_of(i);
            o.n_guess = 1 + i;
            o.sampling.temperature /= 4;
            must_ask(&b, &c[i], texts[i], &o, 1);
        }
        wait_for_all(&b);
        for (int i = 0; i < N_TEXTS; i++) {
            nb_generate_options o = options_of(i);
            o.sampling.temperature /= 4;
            nb_generation want = alone(path, texts[i], &o, 0);
            same(&c[i], 0, &want);
            nb_generation_free(&want);
            client_free(&c[i]);
        }
        nb_engine_stats stats;
        nb_engine_read_stats(b.e, &stats);
        assert_true(stats.guessed_tokens > stats.accepted_tokens && stats.accepted_tokens > 0);
        bench_close(&b);
    }
}

/* By id, by the owner who wants no more, and because the engine closes. */
static void what_is_aborted_holds_nothing(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const nb_generate_options o = {.max_tokens = 200};
    bench b;
    client c[6] = {0};
    uint64_t id[6];
    bench_open(&b, path, (nb_engine_setup){.n_ctx = 256, .n_blocks = 20, .max_seqs = 3});
    hold(&b.desk, true);
    for (int i = 0; i < 6; i++) {
        c[i].abort_after = i == 2 || i == 4 ? 5 : 0;
        id[i] = must_ask(&b, &c[i], texts[i], &o, i == 3 ? 2 : 1);
    }
    nb_engine_abort(b.e, id[0]);
    nb_engine_abort(b.e, id[5]);
    nb_engine_abort(b.e, 123456);
    hold(&b.desk, false);
    wait_for_all(&b);
    assert_int_equal(c[0].finish[0], NB_FINISH_ABORT);
    assert_int_equal(c[5].finish[0], NB_FINISH_ABORT);
    assert_int_equal(c[1].finish[0], NB_FINISH_LENGTH);
    assert_int_equal(c[3].finish[1], NB_FINISH_LENGTH);
    assert_int_equal(c[2].n_events, 5);
    assert_int_equal(c[4].n_events, 5);
    nb_engine_stats stats;
    nb_engine_read_stats(b.e, &stats);
    assert_int_equal(stats.blocks_used, 0);
    assert_int_equal(stats.finished[NB_FINISH_ABORT], 4);
    client last = {0};
    must_ask(&b, &last, texts[1], &o, 1);
    bench_close(&b);
    assert_true(last.released);
    for (int i = 0; i < 6; i++) {
        assert_false(c[i].told_after_end);
        client_free(&c[i]);
    }
    client_free(&last);
}

static void what_cannot_run_is_refused(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const int32_t stop_id = 1 << 30;
    const nb_logit_bias bias = {.id = -1};
    const struct {
        nb_generate_options o;
        int64_t n;
        nb_status status;
        const char *says;
    } bad[] = {
        {{.max_tokens = 300}, 1, NB_LIMIT, "context"},
        {{.max_tokens = 200}, 1, NB_LIMIT, "KV cache"},
        {{.max_tokens = -1}, 1, NB_USAGE, "max_tokens"},
        {{.max_tokens = 4}, 0, NB_USAGE, "n is 0"},
        {{.max_tokens = 4}, 1000, NB_USAGE, "n is 1000"},
        {{.max_tokens = 4, .min_tokens = 5}, 1, NB_USAGE, "min_tokens"},
        {{.max_tokens = 4, .sampling = {.temperature = -1}}, 1, NB_USAGE, "temperature"},
        {{.max_tokens = 4, .n_top = 21}, 1, NB_USAGE, "n_top"},
        {{.max_tokens = 4, .stop_ids = &stop_id, .n_stop_ids = 1}, 1, NB_USAGE, "stop_ids"},
        {{.max_tokens = 4, .n_stops = 65}, 1, NB_USAGE, "stop"},
        {{.max_tokens = 4, .sampling = {.bias = &bias, .n_bias = 1}}, 1, NB_USAGE, "bias"},
    };
    bench b;
    bench_open(&b, path,
               (nb_engine_setup){.n_ctx = 256, .n_blocks = 4, .max_seqs = 1, .max_queue = 1});
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        client c = {0};
        nb_err err = {0};
        uint64_t id;
        bool busy;
        c.n = 1;
        c.desk = &b.desk;
        nb_tokens ids = {0};
        encode(&b.o, "the inn", &ids);
        const nb_engine_request r = {.prompt = ids.ids,
                                     .n_prompt = ids.n,
                                     .options = bad[i].o,
                                     .n = bad[i].n,
                                     .on_event = hear,
                                     .context = &c};
        assert_int_equal(nb_engine_submit(b.e, &r, &id, &busy, &err), bad[i].status);
        assert_non_null(strstr(err.text, bad[i].says));
        assert_false(busy);
        nb_tokens_free(&ids);
    }
    client c[4] = {0};
    int n_busy = 0;
    const nb_generate_options o = {.max_tokens = 60};
    hold(&b.desk, true); /* none ends before all have asked */
    for (int i = 0; i < 4; i++) {
        nb_err err = {0};
        uint64_t id;
        bool busy = false;
        const nb_status s = ask(&b, &c[i], "the inn", &o, 1, &id, &busy, &err);
        assert_true(s == NB_OK || (s == NB_LIMIT && busy));
        n_busy += busy;
    }
    assert_int_equal(n_busy, 2);
    nb_engine_drain(b.e);
    hold(&b.desk, false);
    nb_err err = {0};
    uint64_t id;
    bool busy = false;
    client late = {0};
    assert_int_equal(ask(&b, &late, "x", &o, 1, &id, &busy, &err), NB_LIMIT);
    assert_true(busy);
    wait_for_all(&b);
    for (int i = 0; i < 4; i++)
        client_free(&c[i]);
    bench_close(&b);
}

/* Memory that runs out while it is opened or asked leaves nothing behind. */
static void memory_may_fail(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    opened o;
    must_open(&o, path, &(opening){.threads = 1});
    const nb_engine_setup setup = {.model = o.generator.setup.model,
                                   .kernels = o.generator.setup.kernels,
                                   .pool = o.generator.setup.pool,
                                   .tokenizer = o.generator.setup.tokenizer,
                                   .kv = o.generator.setup.kv,
                                   .n_ctx = 64};
    const int64_t live = nb_alloc_live();
    nb_status s = NB_MEMORY;
    for (int n = 1; s != NB_OK; n++) {
        nb_engine *e;
        nb_err err = {0};
        nb_alloc_fail_at(n);
        s = nb_engine_open(&e, &setup, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        if (s == NB_OK)
            nb_engine_close(e);
        assert_int_equal(nb_alloc_live(), live);
    }
    close_opened(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_do_not_depend_on_company),
        cmocka_unit_test(choices_share_a_prompt),
        cmocka_unit_test(logprobs_are_those_of_the_loop),
        cmocka_unit_test(stop_strings_end_answers),
        cmocka_unit_test(schemas_hold_in_company),
        cmocka_unit_test(guesses_leave_answers_alone),
        cmocka_unit_test(what_is_aborted_holds_nothing),
        cmocka_unit_test(what_cannot_run_is_refused),
        cmocka_unit_test(memory_may_fail),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
