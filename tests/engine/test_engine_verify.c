/* The text's hash from requests is the one from feeding it token by token; another text has another
 * one; and what presses the engine really does. */
#define _GNU_SOURCE
#include "opened.h"

#include "engine/engine_verify.h"

#include <stdlib.h>

static const tiny_model wordy = {.never_ends = true};

static nb_engine_setup setup_of(const opened *o, bool text)
{
    const nb_generator_setup *g = &o->generator.setup;
    return (nb_engine_setup){.model = g->model,
                             .kernels = g->kernels,
                             .pool = g->pool,
                             .tokenizer = text ? g->tokenizer : NULL,
                             .kv = g->kv};
}

static bool never(void *context)
{
    (void)context;
    return false;
}

static void hashes_are_those_of_the_forward_pass(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    opened o;
    nb_tokens ids = {0};
    must_open(&o, path, &(opening){.threads = 2});
    encode(&o, "the land and the inn: then and there, 1234, and nothing in the north", &ids);
    uint64_t want = 0;
    for (int64_t i = 0; i < ids.n; i++) {
        nb_err err = {0};
        if (nb_generator_feed(&o.generator, &ids.ids[i], 1, &err) != NB_OK)
            fail_msg("%s", err.text);
        want ^= nb_generator_hash(&o.generator);
    }
    int64_t all_preempted = 0, all_found = 0;
    for (int way = 0; way < 2 * NB_N_ENGINE_WAYS; way++) {
        const nb_engine_setup setup = setup_of(&o, way % 2 == 0);
        uint64_t hash = 0;
        int64_t n_preempted = 0, n_found = 0;
        nb_err err = {0};
        if (nb_engine_verify(&setup, (nb_engine_way)(way / 2), ids.ids, ids.n, NULL, NULL, &hash,
                             &n_preempted, &n_found, &err) != NB_OK)
            fail_msg("%s", err.text);
        assert_true(hash == want);
        assert_true(n_found == 0 || way / 2 == NB_ENGINE_WAY_SHARED);
        all_preempted += n_preempted;
        all_found += n_found;
    }
    assert_true(all_preempted > 0 && all_found > 0);
    const nb_engine_setup setup = setup_of(&o, true);
    nb_err err = {0};
    uint64_t hash;
    int64_t n[2];
    ids.ids[ids.n / 2] ^= 1;
    assert_int_equal(nb_engine_verify(&setup, NB_ENGINE_WAY_WIDE, ids.ids, ids.n, NULL, NULL, &hash,
                                      &n[0], &n[1], &err),
                     NB_OK);
    assert_true(hash != want);
    assert_int_equal(nb_engine_verify(&setup, NB_ENGINE_WAY_WIDE, ids.ids, ids.n, never, NULL,
                                      &hash, &n[0], &n[1], &err),
                     NB_INTERRUPTED);
    nb_tokens_free(&ids);
    close_opened(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hashes_are_those_of_the_forward_pass),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
