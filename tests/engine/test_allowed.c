/* What is decided about a token beside the usual filters: which may come, what is added to its
 * logit, and what the model thought of it. */
#include "support/golden.h"

#include "engine/sample.h"

#include "base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 1000 };

static nb_kernels kernels;
static float l[N];

static void open_sampler(nb_sampler *s, int64_t n, unsigned isa)
{
    nb_err err = {0};
    nb_kernels_init(&kernels, isa);
    assert_int_equal(nb_sampler_init(s, &kernels, n, &err), NB_OK);
    nb_sampler_begin(s, NULL, 0);
}

static void fill_logits(int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++) {
        const double u = nb_rng_uniform(seed, 1, (uint64_t)i);
        l[i] = seed % 2 == 0 ? (float)(16 * u - 8) : (float)floor(6 * u);
    }
}

/* A mask and a list of bans are what replacing the logits by -Inf is: the same token, and the same
 * candidates with the same weights, whatever the filters. */
static void what_may_not_come_is_minus_infinity(void **state)
{
    (void)state;
    static const nb_sampling hows[] = {{0},
                                       {.temperature = 1, .seed = 4},
                                       {.temperature = 2, .top_k = 20, .seed = 4},
                                       {.temperature = 1, .top_p = 0.8, .min_p = 0.01, .seed = 4}};
    nb_sampler a, b;
    open_sampler(&a, N, NB_ISA_ALL);
    open_sampler(&b, N, NB_ISA_ALL);
    uint64_t mask[(N + 63) / 64];
    int n_moved = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        fill_logits(N, seed);
        int32_t banned[40];
        for (int i = 0; i < 40; i++) /* some of them twice, some that do not exist */
            banned[i] = (int32_t)(nb_rng_uniform(seed, 2, (uint64_t)i) * 1.2 * N) - N / 10;
        const double share = nb_rng_uniform(seed, 3, 0);
        memset(mask, 0, sizeof mask);
        for (int64_t i = 0; i < N; i++) {
            if (i == 70 || nb_rng_uniform(seed, 4, (uint64_t)i) < share * share)
                mask[i / 64] |= 1ull << (i % 64);
        }
        static float cut[N];
        memcpy(cut, l, sizeof cut);
        for (int64_t i = 0; i < N; i++) {
            if ((mask[i / 64] >> (i % 64) & 1) == 0)
                cut[i] = -INFINITY;
        }
        int n_banned = 0;
        for (; n_banned < 40; n_banned++) {
            const int32_t id = banned[n_banned];
            if (id == 70) /* something has to be left */
                banned[n_banned] = -1;
            else if (id >= 0 && id < N)
                cut[id] = -INFINITY;
        }
        const nb_allowed allowed = {mask, banned, n_banned};
        for (size_t h = 0; h < sizeof hows / sizeof *hows; h++) {
            nb_err err = {0};
            int32_t got, want, free_;
            assert_int_equal(nb_sample_among(&a, &hows[h], &allowed, l, 9, &got, &err), NB_OK);
            assert_int_equal(nb_sample(&b, &hows[h], cut, 9, &want, &err), NB_OK);
            assert_int_equal(got, want);
            assert_true(mask[got / 64] >> (got % 64) & 1);
            if (hows[h].temperature > 0) {
                assert_int_equal(a.n_kept, b.n_kept);
                assert_memory_equal(a.weight, b.weight, (size_t)a.n_kept * sizeof(float));
            }
            assert_int_equal(nb_sample(&b, &hows[h], l, 9, &free_, &err), NB_OK);
            n_moved += free_ != got;
        }
    }
    assert_true(n_moved > 100);
    nb_sampler_free(&a);
    nb_sampler_free(&b);
}

/* A NaN is the model's fault even where no token may come; and nothing left is said so. */
static void exclusion_hides_no_fault(void **state)
{
    (void)state;
    nb_sampler s;
    open_sampler(&s, 4, NB_ISA_ALL);
    nb_err err = {0};
    int32_t id = 99;
    const uint64_t one = 1, none = 0;
    const int32_t zero = 0;
    const float nan[4] = {0, 1, NAN, 2}, inf[4] = {0, INFINITY, 1, 2}, good[4] = {0, 1, 2, 3};
    const nb_sampling greedy = {0};
    assert_int_equal(nb_sample_among(&s, &greedy, &(nb_allowed){&one, NULL, 0}, nan, 0, &id, &err),
                     NB_DATA);
    assert_string_equal(err.text, "the logit of token 2 is NaN");
    assert_int_equal(nb_sample_among(&s, &greedy, &(nb_allowed){&one, NULL, 0}, inf, 0, &id, &err),
                     NB_DATA);
    assert_string_equal(err.text, "the logit of token 1 is infinite");
    const nb_allowed nothing[] = {{&none, NULL, 0}, {&one, &zero, 1}};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(nb_sample_among(&s, &greedy, &nothing[i], good, 0, &id, &err), NB_DATA);
        assert_string_equal(err.text, "no token that may come next has a finite logit");
    }
    assert_int_equal(id, 99);
    assert_int_equal(nb_sample_among(&s, &greedy, &(nb_allowed){&one, NULL, 0}, good, 0, &id, &err),
                     NB_OK);
    assert_int_equal(id, 0);
    nb_sampler_free(&s);
}

/* Bias comes before penalties, is clamped, adds up, and cannot bring back what may not come. */
static void bias_is_added_first(void **state)
{
    (void)state;
    nb_sampler s;
    open_sampler(&s, 6, NB_ISA_ALL);
    const int32_t prompt[] = {2, 3};
    nb_sampler_begin(&s, prompt, 2);
    const float row[6] = {0, 1, -1, 1, 0.5f, 3};
    const nb_logit_bias bias[] = {{0, 1e9}, {1, -1e9}, {2, 3}, {4, 0.25}, {4, 0.5}, {5, 100}};
    const nb_sampling how = {.temperature = 1, .repetition_penalty = 2, .bias = bias, .n_bias = 6};
    const int32_t banned = 5;
    nb_err err = {0};
    int32_t id;
    assert_int_equal(nb_sampling_check(&how, 6, &err), NB_OK);
    assert_int_equal(nb_sample_among(&s, &how, &(nb_allowed){NULL, &banned, 1}, row, 0, &id, &err),
                     NB_OK);
    const float want[6] = {100, -99, 1, 0.5f, 1.25f, -INFINITY};
    assert_memory_equal(s.logit, want, sizeof want);

    const nb_logit_bias bad[] = {{6, 0}, {-1, 0}, {0, NAN}, {0, INFINITY}};
    for (int i = 0; i < 4; i++) {
        const nb_sampling one = {.bias = &bad[i], .n_bias = 1};
        assert_int_equal(nb_sampling_check(&one, 6, &err), NB_USAGE);
        assert_memory_equal(err.text, "logit_bias: ", 12);
    }
    const nb_sampling many = {.bias = bias, .n_bias = 6};
    assert_int_equal(nb_sampling_check(&many, 5, &err), NB_USAGE);
    assert_string_equal(err.text, "logit_bias has 6 entries for a vocabulary of 5");
    nb_sampler_free(&s);
}

/* ---- logprobs ---- */

static int by_logit(const void *a, const void *b)
{
    const nb_logprob *x = a, *y = b;
    return x->logprob != y->logprob ? (x->logprob < y->logprob ? 1 : -1)
                                    : (x->id > y->id) - (x->id < y->id);
}

/* Against a sort and a sum in long double. Every weight is off by at most NB_EXPF_MAX_ULP of
 * 2^-23 of itself and by half an ulp of the difference that it is the exponential of (at most 64
 * in size here, so 2^-19); the result is rounded once. */
static void logprobs_are_the_log_softmax(void **state)
{
    (void)state;
    nb_sampler s, scalar;
    static nb_logprob sorted[N];
    open_sampler(&scalar, N, NB_ISA_SCALAR);
    const nb_kernels plain = kernels;
    scalar.kernels = &plain;
    open_sampler(&s, N, NB_ISA_ALL);
    double worst = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        fill_logits(N, seed);
        if (seed % 5 == 0)
            l[N / 3] = -INFINITY;
        long double total = 0;
        for (int i = 0; i < N; i++) {
            sorted[i] = (nb_logprob){i, l[i]};
            total += expl((long double)l[i]);
        }
        qsort(sorted, N, sizeof *sorted, by_logit);
        for (int k = 0; k <= NB_MAX_LOGPROBS; k += 5) {
            nb_logprob got[1 + NB_MAX_LOGPROBS], same[1 + NB_MAX_LOGPROBS];
            const int32_t chosen = (int32_t)(nb_rng_uniform(seed, 9, (uint64_t)k) * N);
            nb_logprobs(&s, l, chosen, k, got);
            nb_logprobs(&scalar, l, chosen, k, same);
            assert_memory_equal(got, same, (size_t)(1 + k) * sizeof *got);
            assert_int_equal(got[0].id, chosen);
            for (int i = 0; i <= k; i++) {
                if (i > 0)
                    assert_int_equal(got[i].id, sorted[i - 1].id);
                const double want = (double)((long double)l[got[i].id] - logl(total));
                if (isinf(want))
                    assert_true((double)got[i].logprob == want);
                else
                    worst = fmax(worst, fabs((double)got[i].logprob - want));
            }
        }
    }
    assert_true(worst > 0 && worst < 0x1p-19 + 0x1p-22 + 0x1p-20);
    nb_sampler_free(&s);
    nb_sampler_free(&scalar);
}

/* A vocabulary smaller than what is asked for, and rows where all are equal. */
static void logprobs_of_small_rows(void **state)
{
    (void)state;
    nb_sampler s;
    open_sampler(&s, 3, NB_ISA_ALL);
    nb_logprob got[1 + NB_MAX_LOGPROBS];
    const float same[3] = {-7, -7, -7};
    nb_logprobs(&s, same, 2, 5, got);
    for (int i = 0; i < 6; i++)
        assert_int_equal(got[i].id, i == 0 ? 2 : i < 4 ? i - 1 : -1);
    assert_true(got[0].logprob == (float)-log(3) && isinf(got[5].logprob));
    /* Ties at the border of the top go to the lowest id, and the zeros are equal. */
    const float ties[3] = {-0.0f, 0, 0};
    nb_logprobs(&s, ties, 0, 2, got);
    assert_true(got[1].id == 0 && got[2].id == 1);
    nb_sampler_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_may_not_come_is_minus_infinity),
        cmocka_unit_test(exclusion_hides_no_fault),
        cmocka_unit_test(bias_is_added_first),
        cmocka_unit_test(logprobs_are_the_log_softmax),
        cmocka_unit_test(logprobs_of_small_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
