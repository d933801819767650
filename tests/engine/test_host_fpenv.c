/* A host program that has set flush-to-zero, or another rounding: the library's results are those
 * of any other host, and the host finds its environment as it was. Through nibble.h alone, on a
 * model whose embeddings are subnormal, so that a lapse shows. */
#include "support/golden.h"

#include <nibble.h>

#include "base/fpenv.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
static uint64_t get_env(void)
{
    return _mm_getcsr() & ~0x3fu;
}
static void set_env(uint64_t env)
{
    _mm_setcsr((unsigned)env);
}
static const uint64_t hosts[] = {
    0x1f80, /* as a program starts */
    0x9fc0, /* flush-to-zero, denormals-are-zero */
    0x1fc0, 0x9f80, 0x7f80 /* towards zero */, 0x5f80 /* up */,
};
#elif defined(__aarch64__)
static uint64_t get_env(void)
{
    uint64_t env;
    __asm__ volatile("mrs %0, fpcr" : "=r"(env));
    return env;
}
static void set_env(uint64_t env)
{
    __asm__ volatile("msr fpcr, %0" ::"r"(env));
}
static const uint64_t hosts[] = {0, 1u << 24 /* FZ */, 3u << 22 /* towards zero */};
#else
static uint64_t get_env(void)
{
    return 0;
}
static void set_env(uint64_t env)
{
    (void)env;
}
static const uint64_t hosts[] = {0};
#endif
enum { N_HOSTS = sizeof hosts / sizeof *hosts };

static const tiny_model subnormal = {.subnormal = true, .never_ends = true};

/* What one host gets: hashes of logits after each of some calls, and generated tokens. */
typedef struct {
    uint64_t hash[4];
    int32_t generated[12];
    int64_t n_generated;
    int32_t sampled;
    nb_lm_info info;
} outcome;

#define CALL(call)                                                                                 \
    do {                                                                                           \
        const nb_status status = (call);                                                           \
        if (get_env() != env)                                                                      \
            fail_msg("%s changed the environment from %llx", #call, (unsigned long long)env);      \
        if (status != NB_OK)                                                                       \
            fail_msg("%s: %s", #call, err.text);                                                   \
    } while (0)

static void run_host(uint64_t env, int threads, const char *isa, outcome *out)
{
    nb_err err = {0};
    nb_lm *lm = NULL;
    nb_session *session = NULL;
    const char *path = scratch_exists("m") ? scratch_path("m") : tiny_model_write("m", &subnormal);
    const uint64_t before = get_env();
    memset(out, 0, sizeof *out);
    set_env(env);
    CALL(nb_lm_open(&lm, path, &(nb_lm_options){.threads = threads, .isa = isa, .n_ctx = 128},
                    &err));
    int32_t *ids;
    int64_t n;
    CALL(nb_lm_encode(lm, "the cat and the hat in the sand", 31, false, false, &ids, &n, &err));
    CALL(nb_session_open(&session, lm, &err));
    CALL(nb_session_feed(session, ids, 1, &err));
    (void)nb_session_logits(session, &out->hash[0]);
    CALL(nb_session_feed(session, ids + 1, n - 1, &err));
    const float *logits = nb_session_logits(session, &out->hash[1]);
    nb_lm_describe(lm, &out->info);
    float largest = 0;
    for (int64_t i = 0; i < out->info.vocab_size; i++)
        largest = logits[i] > largest ? logits[i] : largest;
    assert_true(largest > 0.5f);
    CALL(nb_session_sample(session, &(nb_sampling){.temperature = 0.9f, .seed = 5}, &out->sampled,
                           &err));
    nb_session_truncate(session, 2);
    CALL(nb_session_feed(session, ids + 2, 3, &err));
    (void)nb_session_logits(session, &out->hash[2]);
    nb_generation g = {0};
    CALL(nb_session_generate(
        session, ids, n, &(nb_generate_options){.max_tokens = 12, .hash_logits = true}, &g, &err));
    out->hash[3] = g.logits_hash;
    out->n_generated = g.n_tokens;
    memcpy(out->generated, g.tokens, (size_t)g.n_tokens * sizeof *g.tokens);
    nb_generation_free(&g);
    nb_free(ids);
    nb_session_close(session);
    nb_lm_close(lm);
    assert_true(get_env() == env);
    set_env(before);
}

static void every_host_gets_the_same_bits(void **state)
{
    (void)state;
    outcome want;
    run_host(hosts[0], 1, "scalar", &want);
    assert_int_equal(want.n_generated, 12);
    assert_true(want.hash[0] != want.hash[1] && want.hash[1] != want.hash[2]);
    int64_t n = 0;
    for (int h = 0; h < N_HOSTS; h++) {
        for (int threads = 1; threads <= 3; threads++) {
            for (int isa = 0; isa < 2; isa++) {
                outcome got;
                run_host(hosts[h], threads, isa == 0 ? "scalar" : NULL, &got);
                if (memcmp(got.hash, want.hash, sizeof want.hash) != 0)
                    fail_msg("environment %llx, %d threads, %s: other logits",
                             (unsigned long long)hosts[h], threads, got.info.isa);
                assert_int_equal(got.n_generated, want.n_generated);
                assert_memory_equal(got.generated, want.generated, sizeof want.generated);
                assert_int_equal(got.sampled, want.sampled);
                n++;
            }
        }
    }
    assert_int_equal(n, 6 * N_HOSTS);
}

#if defined(__x86_64__)
/* The library starts threads, and a thread inherits the environment of the one that made it: a
 * pool opened under one host works for another. */
static void a_host_may_change_its_mind(void **state)
{
    (void)state;
    outcome want;
    nb_err err = {0};
    run_host(hosts[0], 1, NULL, &want);
    nb_lm *lm = NULL;
    nb_session *session = NULL;
    uint64_t env = hosts[1], hash;
    int32_t *ids;
    int64_t n;
    const uint64_t before = get_env();
    set_env(env);
    CALL(nb_lm_open(&lm, scratch_path("m"), &(nb_lm_options){.threads = 3, .n_ctx = 128}, &err));
    CALL(nb_lm_encode(lm, "the cat and the hat in the sand", 31, false, false, &ids, &n, &err));
    CALL(nb_session_open(&session, lm, &err));
    for (int64_t i = 0; i < n; i++) {
        env = hosts[i % N_HOSTS];
        set_env(env);
        CALL(nb_session_feed(session, ids + i, 1, &err));
    }
    set_env(before);
    (void)nb_session_logits(session, &hash);
    assert_int_equal(hash, want.hash[1]);
    nb_free(ids);
    nb_session_close(session);
    nb_lm_close(lm);
}
#else
static void a_host_may_change_its_mind(void **state)
{
    (void)state;
    skip();
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_host_gets_the_same_bits),
        cmocka_unit_test(a_host_may_change_its_mind),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
