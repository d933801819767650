/* Packed caches in the engine: each sequence keeps the F16 form of its recent positions, and what
 * it answers is still what the one-sequence loop answers, bit for bit. The texts are longer than
 * the window, so that there are pages that are read packed. */
#define _GNU_SOURCE
#include "engine_bench.h"

#include "engine/engine_verify.h"

static const tiny_model roomy = {.never_ends = true, .n_ctx = 512};
static const nb_kv_format formats[] = {NB_KV_INT4, NB_KV_INT2};

enum { N_SAYINGS = 4, LONG = 290 }; /* bytes of a text, about */
static const char *const sayings[N_SAYINGS] = {
    "the land and the inn: then and there, 1234, ",
    "a hat that sings in the north, and nothing else. ",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 ",
    "x",
};

/* A saying over and over, but for the last, which is short. */
static const char *text_of(int i)
{
    static char text[LONG + 80];
    text[0] = 0;
    do
        strcat(text, sayings[i]);
    while (strlen(text) < LONG && i < N_SAYINGS - 1);
    return text;
}

static nb_generate_options asked_of(int i)
{
    nb_generate_options o = {.max_tokens = 20 + 13 * i, .hash_logits = true};
    if (i % 2 == 1)
        o.sampling = (nb_sampling){.temperature = 1.1, .seed = (uint64_t)i, .top_k = 40};
    return o;
}

/* Wide and narrow steps, and blocks for hardly more than one sequence; prefixes that are asked for
 * are not shared. With guesses what was stored is taken back. */
static void answers_do_not_depend_on_company(void **state)
{
    (void)state;
    const nb_engine_setup setups[] = {
        {.n_ctx = 384, .share_prefixes = true},
        {.n_ctx = 384, .n_blocks = 15, .step_tokens = 37, .max_seqs = 3},
        {.n_ctx = 384, .n_blocks = 12, .step_tokens = 5, .max_seqs = 4, .share_prefixes = true},
    };
    const char *path = model_path("roomy", &roomy);
    int64_t n_preempted = 0, n_accepted = 0, n_long = 0;
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        nb_generation want[N_SAYINGS];
        for (int i = 0; i < N_SAYINGS; i++) {
            const nb_generate_options o = asked_of(i);
            want[i] = alone_in(path, formats[f], text_of(i), &o, 0);
            n_long += want[i].n_prompt > NB_KV_RECENT + (NB_KV_FIRST + 1) * NB_KV_PAGE;
        }
        for (size_t s = 0; s < sizeof setups / sizeof *setups; s++) {
            bench b;
            client c[2 * N_SAYINGS] = {0};
            nb_engine_setup setup = setups[s];
            setup.kv = formats[f];
            bench_open(&b, path, setup);
            hold(&b.desk, true);
            for (int i = 0; i < 2 * N_SAYINGS; i++) {
                nb_generate_options o = asked_of(i % N_SAYINGS);
                o.n_guess = i < N_SAYINGS ? 0 : 5;
                must_ask(&b, &c[i], text_of(i % N_SAYINGS), &o, 1);
            }
            hold(&b.desk, false);
            wait_for_all(&b);
            for (int i = 0; i < 2 * N_SAYINGS; i++) {
                same(&c[i], 0, &want[i % N_SAYINGS]);
                assert_int_equal(c[i].n_cached, 0);
                client_free(&c[i]);
            }
            nb_engine_stats stats;
            nb_engine_read_stats(b.e, &stats);
            assert_int_equal(stats.blocks_used, 0);
            n_preempted += stats.n_preemptions;
            n_accepted += stats.accepted_tokens;
            bench_close(&b);
        }
        for (int i = 0; i < N_SAYINGS; i++)
            nb_generation_free(&want[i]);
    }
    assert_true(n_preempted > 0 && n_accepted > 0 && n_long > 0); /* else little was tried */
}

/* Choices to one prompt are sequences of their own, and those of as many requests. */
static void choices_are_sequences_of_their_own(void **state)
{
    (void)state;
    const char *path = model_path("roomy", &roomy);
    const nb_generate_options o = {.max_tokens = 40, .sampling = {.temperature = 1.3, .seed = 7}};
    const nb_engine_setup setup = {
        .n_ctx = 384, .n_blocks = 24, .step_tokens = 16, .kv = NB_KV_INT2};
    bench b;
    client c = {0};
    bench_open(&b, path, setup);
    must_ask(&b, &c, text_of(1), &o, 4);
    wait_for_all(&b);
    for (int i = 0; i < 4; i++) {
        nb_generation want = alone_in(path, NB_KV_INT2, text_of(1), &o, i);
        same(&c, i, &want);
        nb_generation_free(&want);
    }
    client_free(&c);
    bench_close(&b);
}

/* The plan has what sequences keep, takes it from the cache's bytes, and is kept: no step finds the
 * F16 pages gone, whatever it is made of. */
static void the_plan_has_the_window(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("roomy", &roomy), &(opening){0});
    const nb_config *c = &o.model.config;
    const int64_t half = (int64_t)nb_kv_recent_page_bytes(c);
    for (int f = 0; f < NB_KV_N_FORMATS; f++) {
        const nb_kv_format kv = (nb_kv_format)f;
        const int64_t block = (int64_t)nb_kv_page_bytes(c, kv);
        for (int64_t pages = 1; pages < 200; pages += 7) {
            nb_engine_setup s = {.model = &o.model,
                                 .kernels = &o.kernels,
                                 .pool = o.pool,
                                 .kv = kv,
                                 .kv_bytes = pages * (block + half),
                                 .max_seqs = 8,
                                 .step_tokens = 64};
            nb_engine_memory m;
            nb_err err = {0};
            assert_int_equal(nb_engine_plan(&s, &m, &err), NB_OK);
            const int64_t most = nb_kv_recent_pages(kv, 8, 64);
            assert_int_equal(most > 0, nb_kv_bits(kv) > 0);
            assert_int_equal(m.recent, half * (m.n_blocks < most ? m.n_blocks : most));
            assert_int_equal(m.cache, m.n_blocks * block + m.recent);
            assert_true(m.cache <= s.kv_bytes && m.cache + block + half > s.kv_bytes);
        }
    }
    close_opened(&o);
}

/* The bound on pages against all that a step can be, three sequences wide. */
static void pages_are_no_more_than_the_bound(void **state)
{
    (void)state;
    enum { STEP = 40 };
    int64_t most[STEP + 1] = {0}; /* pages of one sequence that gets so many tokens */
    for (int64_t n = 0; n < 400; n++) {
        for (int64_t k = 1; k <= STEP; k++) {
            int64_t pages = 0;
            for (int64_t i = 0; i < nb_kv_pages_for(n + k); i++)
                pages += !nb_kv_sees_sealed(nb_kv_n_sealed(NB_KV_INT2, n), i);
            most[k] = pages > most[k] ? pages : most[k];
        }
    }
    for (int64_t step = 3; step <= STEP; step++) {
        int64_t all = 0;
        for (int64_t a = 1; a < step - 1; a++) {
            for (int64_t b = 1; a + b < step; b++) {
                const int64_t n = most[a] + most[b] + most[step - a - b];
                all = n > all ? n : all;
            }
        }
        assert_true(all <= nb_kv_recent_pages(NB_KV_INT2, 3, step));
        assert_true(all + 3 >= nb_kv_recent_pages(NB_KV_INT2, 3, step));
    }
}

/* As test_engine_verify.c has it, past the window. */
static void hashes_are_those_of_the_forward_pass(void **state)
{
    (void)state;
    enum { N = NB_KV_RECENT + (NB_KV_FIRST + 1) * NB_KV_PAGE + 8 };
    opened o;
    nb_tokens ids = {0};
    must_open(&o, model_path("roomy", &roomy), &(opening){.threads = 2, .kv = NB_KV_INT2});
    encode(&o, text_of(2), &ids);
    assert_true(ids.n >= N);
    uint64_t want = 0;
    for (int64_t i = 0; i < N; i++) {
        nb_err err = {0};
        if (nb_generator_feed(&o.generator, &ids.ids[i], 1, &err) != NB_OK)
            fail_msg("%s", err.text);
        want ^= nb_generator_hash(&o.generator);
    }
    const nb_generator_setup *g = &o.generator.setup;
    const nb_engine_setup setup = {
        .model = g->model, .kernels = g->kernels, .pool = g->pool, .kv = g->kv};
    for (int way = NB_ENGINE_WAY_SHARED; way <= NB_ENGINE_WAY_PRESSED; way++) {
        uint64_t hash = 0;
        int64_t n_preempted = 0, n_found = 0;
        nb_err err = {0};
        if (nb_engine_verify(&setup, (nb_engine_way)way, ids.ids, N, NULL, NULL, &hash,
                             &n_preempted, &n_found, &err) != NB_OK)
            fail_msg("%s", err.text);
        assert_true(hash == want);
        assert_int_equal(n_found, 0);
        assert_int_equal(n_preempted > 0, way == NB_ENGINE_WAY_PRESSED);
    }
    nb_tokens_free(&ids);
    close_opened(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_do_not_depend_on_company),
        cmocka_unit_test(choices_are_sequences_of_their_own),
        cmocka_unit_test(the_plan_has_the_window),
        cmocka_unit_test(pages_are_no_more_than_the_bound),
        cmocka_unit_test(hashes_are_those_of_the_forward_pass),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
