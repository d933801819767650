/* The real model, SmolLM2-135M-Instruct as published: the same bits of every logit on every
 * instruction set, for any number of threads and any cut of the prompt, in all three modes; and the
 * scores of two windows of WikiText-2, which are the same numbers on every machine.
 *
 * The file is NIBBLE_MODEL, or where `nibble pull` leaves it; without it the test is skipped. */
#include "support/golden.h"
#include "support/real_model.h"
#include "support/must.h"

#include "base/rng.h"
#include "eval/score.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nb_pool *pools[4]; /* by their number of threads */
static nb_store *store;
static nb_model models[3]; /* by mode: f, i8, i16 */

/* ---- logits ---- */

enum { N_TOKENS = 56 };

typedef struct {
    unsigned isa;
    int threads;
    int64_t n, step; /* the first n tokens, `step` at a time */
} way;

/* hash[i]: of the logits after token i. */
static void run_way(nb_model *m, const way *w, uint64_t *hash)
{
    nb_err err;
    nb_kernels k;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    nb_kernels_init(&k, w->isa);
    must(nb_work_init(&work, m, &k, pools[w->threads], N_TOKENS, &err), &err);
    must(nb_kv_pool_init(&kv, &m->config, NB_KV_F16, nb_kv_pages_for(N_TOKENS), &err), &err);
    must(nb_kv_seq_init(&seq, &kv, N_TOKENS, &err), &err);
    const int64_t vocab = m->config.vocab_size, d = m->config.d_model;
    float *hidden = calloc((size_t)(w->step * d), sizeof *hidden);
    float *logits = calloc((size_t)(w->step * vocab), sizeof *logits);
    int32_t tokens[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++) {
        uint32_t r[4];
        nb_philox(135, 0, (uint64_t)i, r);
        tokens[i] = (int32_t)(r[0] % (uint32_t)vocab);
    }
    for (int64_t i = 0; i < w->n; i += w->step) {
        const int64_t count = w->n - i < w->step ? w->n - i : w->step;
        const nb_step_input in = {&seq, tokens + i, count, count};
        must(nb_forward(&work, &in, 1, hidden, &err), &err);
        nb_logits(&work, hidden, count, logits);
        for (int64_t r = 0; r < count; r++)
            hash[i + r] = nb_logits_hash(logits + r * vocab, vocab, (uint64_t)(i + r));
    }
    free(hidden);
    free(logits);
    nb_kv_seq_free(&seq);
    nb_kv_pool_free(&kv);
    nb_work_free(&work);
}

/* The XOR of the hashes of all 56 positions, by mode. Recorded from nibble itself, which agrees
 * with independent programs as the README says; by contract no machine may give others. */
static const uint64_t known[3] = {0x13509e53971c01fb, 0x43fe1e3c39b43004, 0x234c0df685a2106c};

static void logits_are_the_same_bits_however_they_are_computed(void **state)
{
    (void)state;
    static const way ways[] = {
        {NB_ISA_AVX2 | NB_ISA_AVX512, 2, 56, 56},
        {NB_ISA_AVX2 | NB_ISA_AVX512, 1, 56, 7},
        {NB_ISA_AVX2 | NB_ISA_AVX512, 3, 24, 1},
        {NB_ISA_AVX2, 2, 56, 56},
        {NB_ISA_AVX2, 3, 56, 25},
        {NB_ISA_AVX2, 1, 8, 1},
        {0, 2, 3, 3},
    };
    for (int mode = 0; mode < 3; mode++) {
        uint64_t want[N_TOKENS], got[N_TOKENS];
        int n_ways = 0;
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            if ((nb_cpu_isa() & ways[i].isa) != ways[i].isa)
                continue;
            run_way(&models[mode], &ways[i], got);
            if (n_ways++ == 0 && ways[i].n == N_TOKENS)
                memcpy(want, got, sizeof want);
            for (int64_t t = 0; n_ways > 1 && t < ways[i].n; t++) {
                if (got[t] != want[t])
                    fail_msg("mode %s: %s, %d threads, steps of %lld differ at token %lld",
                             nb_compute_name((nb_compute)mode), nb_isa_name(ways[i].isa),
                             ways[i].threads, (long long)ways[i].step, (long long)t);
            }
        }
        if (n_ways < 2) {
            printf("only one way to compute on this machine\n");
            run_way(&models[mode], &(way){0, 2, N_TOKENS, N_TOKENS}, want);
        }
        uint64_t all = 0;
        for (int t = 0; t < N_TOKENS; t++)
            all ^= want[t];
        if (all != known[mode])
            fail_msg("mode %s: the hash is %016llx, not %016llx", nb_compute_name((nb_compute)mode),
                     (unsigned long long)all, (unsigned long long)known[mode]);
    }
}

/* ---- scores ---- */

/* Two windows of the llama protocol, against mode f with a cache of binary32. Equal, not near: each
 * is one expression. */
static void scores_of_wikitext_are_the_known_ones(void **state)
{
    (void)state;
    const char *path = real_data_path("wikitext2-test.raw.txt");
    if (path == NULL)
        return;
    static const struct {
        double perplexity, kl_mean, kl_max, top1;
        uint64_t hash;
    } known_scores[3] = {
        {21.375007226301403, 4.6067903605384204e-07, 2.351922285015462e-05, 0.99803921568627452,
         0xb19f5203eb4987f7},
        {21.345310245260215, 0.0029311252132033718, 0.041522562489262782, 0.96862745098039216,
         0x5775bd3c37f3cd09},
        {21.37600388038781, 4.3363841479557567e-07, 1.3032522474532016e-05, 0.99803921568627452,
         0x8a38d8f2f97faa0d},
    };
    nb_err err;
    nb_buf text = {0};
    nb_tokenizer *tokenizer;
    nb_tokens tokens = {0};
    must(nb_file_slurp(&text, path, (size_t)64 << 20, &err), &err);
    must(nb_tokenizer_open(&tokenizer, store, &err), &err);
    /* The beginning is enough, and its tokens do not depend on what follows a line's end. */
    size_t len = text.len < 8192 ? text.len : 8192;
    while (len > 0 && text.data[len - 1] != '\n')
        len--;
    must(nb_tokenizer_encode(tokenizer, (const char *)text.data, len, (nb_encode_options){0},
                             &tokens, &err),
         &err);
    const nb_protocol *p = nb_protocol_by_name("llama");
    nb_kernels k;
    nb_kernels_init(&k, NB_ISA_ALL);
    nb_scorer scorers[3], base;
    for (int mode = 0; mode < 3; mode++)
        must(nb_scorer_init(&scorers[mode], &models[mode], &k, pools[2], p, NB_KV_F16, &err), &err);
    must(nb_scorer_init(&base, &models[NB_COMPUTE_F], &k, pools[2], p, NB_KV_F32, &err), &err);
    nb_score r[3];
    must(nb_score_run(scorers, 3, &base, p, tokens.ids, tokens.n, 2, NULL, NULL, r, &err), &err);
    for (int mode = 0; mode < 3; mode++) {
        assert_int_equal(r[mode].n_tokens, 510);
        printf("%-3s perplexity %.17g, KL %.17g up to %.17g, top-1 %.17g, %016llx\n",
               nb_compute_name((nb_compute)mode), r[mode].perplexity, r[mode].kl_mean,
               r[mode].kl_max, r[mode].top1, (unsigned long long)r[mode].logits_hash);
    }
    for (int mode = 0; mode < 3; mode++) {
        assert_true(r[mode].perplexity == known_scores[mode].perplexity);
        assert_true(r[mode].kl_mean == known_scores[mode].kl_mean);
        assert_true(r[mode].kl_max == known_scores[mode].kl_max);
        assert_true(r[mode].top1 == known_scores[mode].top1);
        assert_true(r[mode].logits_hash == known_scores[mode].hash);
        nb_scorer_free(&scorers[mode]);
    }
    nb_scorer_free(&base);
    nb_tokens_free(&tokens);
    nb_tokenizer_close(tokenizer);
    nb_buf_free(&text);
}

static int set_up(void **state)
{
    (void)state;
    nb_err err;
    for (int n = 1; n <= 3; n++)
        must(nb_pool_open(&pools[n], n, &err), &err);
    must(nb_store_open(&store, real_model_path(), &err), &err);
    for (int mode = 0; mode < 3; mode++) {
        const nb_model_options options = {(nb_compute_choice)mode, 512};
        must(nb_model_open(&models[mode], store, &options, pools[2], &err), &err);
        /* all of the blocks' matrices have an integer form */
        assert_string_equal(nb_model_compute_name(&models[mode]),
                            nb_compute_name((nb_compute)mode));
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (int mode = 0; mode < 3; mode++)
        nb_model_close(&models[mode]);
    nb_store_close(store);
    for (int n = 1; n <= 3; n++)
        nb_pool_close(pools[n]);
    assert_int_equal(nb_alloc_live(), 0);
    return 0;
}

int main(void)
{
    (void)real_model_path(); /* or skip */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_the_same_bits_however_they_are_computed),
        cmocka_unit_test(scores_of_wikitext_are_the_known_ones),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
