/* The next token: every filter against a slow definition, the draw against exact probabilities,
 * and the independence from everything but (logits, options, position). */
#include "support/golden.h"

#include "engine/sample.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include "base/fpenv.h"
#include "base/rng.h"
#include "kernel/math.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static nb_kernels kernels;

static void open_sampler(nb_sampler *s, int64_t n)
{
    nb_err err = {0};
    nb_kernels_init(&kernels, NB_ISA_ALL);
    assert_int_equal(nb_sampler_init(s, &kernels, n, &err), NB_OK);
    nb_sampler_begin(s, NULL, 0);
}

static int32_t must_sample(nb_sampler *s, const nb_sampling *how, const float *logits,
                           int64_t position)
{
    nb_err err = {0};
    int32_t id = -1;
    assert_int_equal(nb_sampling_check(how, s->n, &err), NB_OK);
    assert_int_equal(nb_sample(s, how, logits, position, &id, &err), NB_OK);
    assert_in_range(id, 0, s->n - 1);
    return id;
}

/* Rows of logits of different kinds: spread, with many ties, nearly equal, with huge distances. */
static void fill_logits(float *l, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++) {
        const double u = nb_rng_uniform(seed, 1, (uint64_t)i);
        const double v = seed % 4 == 0   ? 12 * u - 6
                         : seed % 4 == 1 ? floor(8 * u) - 4
                         : seed % 4 == 2 ? 1e-6 * u
                                         : 400 * u - 200;
        l[i] = (float)v;
    }
    if (seed % 3 == 0)
        l[n / 2] = -INFINITY;
}

/* ---- the slow definition ---- */

typedef struct {
    int32_t id;
    float logit, weight;
} candidate;

static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1)
                                : (x->id > y->id) - (x->id < y->id);
}

static int by_id(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* What is left of the row, sorted by id. *near: the boundary of top_p lies within rounding of two
 * different answers. */
static int64_t slow_filters(const nb_sampling *how, const float *l, int64_t n, candidate *c,
                            bool *near)
{
    for (int64_t i = 0; i < n; i++)
        c[i] = (candidate){(int32_t)i, l[i], 0};
    qsort(c, (size_t)n, sizeof *c, by_logit);
    int64_t m = how->top_k > 0 && how->top_k < n ? how->top_k : n;
    long double total = 0, sum = 0;
    for (int64_t i = 0; i < m; i++) {
        c[i].weight = nb_expf((float)((double)(c[i].logit - c[0].logit) * (1 / how->temperature)));
        total += (long double)c[i].weight;
    }
    *near = false;
    if (how->top_p > 0 && how->top_p < 1) {
        int64_t kept = 0;
        while (kept < m && sum < (long double)how->top_p * total)
            sum += (long double)c[kept++].weight;
        const long double over = sum - (long double)how->top_p * total;
        const long double last = (long double)c[kept - 1].weight;
        *near = fabsl(over) < 1e-12L * total || fabsl(over - last) < 1e-12L * total;
        m = kept;
    }
    if (how->min_p > 0) {
        int64_t kept = 0;
        while (kept < m && (double)c[kept].weight >= how->min_p)
            kept++;
        m = kept;
    }
    qsort(c, (size_t)m, sizeof *c, by_id);
    return m;
}

/* Each filter, alone and together, leaves what its definition leaves, in order of id. */
static void filters_are_their_definitions(void **state)
{
    (void)state;
    enum { N = 3000 };
    static const nb_sampling hows[] = {
        {.temperature = 1},
        {.temperature = 1, .top_k = 1},
        {.temperature = 1, .top_k = 2},
        {.temperature = 0.7, .top_k = 40},
        {.temperature = 2, .top_k = N - 1},
        {.temperature = 1, .top_k = N + 5},
        {.temperature = 1, .top_p = 0.9},
        {.temperature = 1, .top_p = 1e-9},
        {.temperature = 0.3, .top_p = 0.5},
        {.temperature = 1, .top_p = 0.999999},
        {.temperature = 1, .top_p = 1},
        {.temperature = 1, .min_p = 0.05},
        {.temperature = 1, .min_p = 1},
        {.temperature = 5, .min_p = 0.2},
        {.temperature = 0.8, .top_k = 100, .top_p = 0.95, .min_p = 0.01},
        {.temperature = 0.001, .top_k = 100, .top_p = 0.95},
        {.temperature = 1000, .top_k = 7, .top_p = 0.4},
    };
    static float l[N];
    static candidate c[N];
    nb_sampler s;
    open_sampler(&s, N);
    int n_compared = 0, n_near = 0;
    for (uint64_t seed = 0; seed < 12; seed++) {
        fill_logits(l, N, seed);
        for (size_t h = 0; h < sizeof hows / sizeof *hows; h++) {
            bool near;
            const int64_t want = slow_filters(&hows[h], l, N, c, &near);
            const int32_t id = must_sample(&s, &hows[h], l, 5);
            if (near) {
                n_near++;
                continue;
            }
            assert_int_equal(s.n_kept, want);
            bool found = false;
            for (int64_t i = 0; i < want; i++) {
                assert_int_equal(s.id[i], c[i].id);
                assert_memory_equal(&s.weight[i], &c[i].weight, sizeof(float));
                found |= c[i].id == id && c[i].weight > 0;
            }
            assert_true(found);
            n_compared++;
        }
    }
    assert_true(n_near < n_compared / 10);
    nb_sampler_free(&s);
}

/* Greedy, top_k and top_p give equals to the lowest id; the two zeros are equal. */
static void ties_go_to_the_lowest_id(void **state)
{
    (void)state;
    nb_sampler s;
    open_sampler(&s, 8);
    const float l[8] = {-1, -0.0f, 0, -0.0f, 0, 0, -3, 0};
    assert_int_equal(must_sample(&s, &(nb_sampling){0}, l, 0), 1);
    const nb_sampling top3 = {.temperature = 1, .top_k = 3};
    (void)must_sample(&s, &top3, l, 0);
    assert_int_equal(s.n_kept, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(s.id[i], i + 1);
    /* Six equals, and two of less weight: half of the mass is less than four of the equals. */
    const nb_sampling half = {.temperature = 1, .top_p = 0.5};
    (void)must_sample(&s, &half, l, 0);
    assert_int_equal(s.n_kept, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(s.id[i], i + 1);
    const float same[8] = {0};
    assert_int_equal(must_sample(&s, &(nb_sampling){0}, same, 0), 0);
    nb_sampler_free(&s);
}

/* ---- the draw ---- */

/* Pearson's statistic of n draws against probabilities p. */
static double chi_square(const int64_t *count, const double *p, int k, int64_t n)
{
    double sum = 0;
    for (int i = 0; i < k; i++) {
        const double want = p[i] * (double)n, d = (double)count[i] - want;
        sum += d * d / want;
    }
    return sum;
}

/* The draws have the softmax's probabilities. Laurent and Massart (2000, lemma 1): a chi-square of
 * d degrees exceeds d + 2 sqrt(d x) + 2 x with a probability of at most exp(-x). For x = 20 that
 * is 2e-9, and the same bound has to be broken by a temperature that is 5 % off. */
static void draws_follow_the_probabilities(void **state)
{
    (void)state;
    enum { K = 10, N = 60000 };
    const float l[K] = {0.5f, -1, 2, 0, 1.25f, -2.5f, 0.5f, 1.75f, -0.5f, 0.25f};
    const double x = 20, bound = (K - 1) + 2 * sqrt((K - 1) * x) + 2 * x;
    nb_sampler s;
    open_sampler(&s, K);
    for (uint64_t choice = 0; choice < 2; choice++) {
        const nb_sampling how = {.temperature = 0.8, .seed = 11, .choice = choice};
        int64_t count[K] = {0};
        for (int64_t i = 0; i < N; i++)
            count[must_sample(&s, &how, l, i)]++;
        double p[K], wrong[K], sum = 0, wrong_sum = 0;
        for (int i = 0; i < K; i++) {
            sum += p[i] = exp((double)l[i] / 0.8);
            wrong_sum += wrong[i] = exp((double)l[i] / 0.84);
        }
        for (int i = 0; i < K; i++) {
            p[i] /= sum;
            wrong[i] /= wrong_sum;
        }
        assert_true(chi_square(count, p, K, N) < bound);
        assert_true(chi_square(count, wrong, K, N) > bound);
    }
    nb_sampler_free(&s);
}

/* A token is a function of (logits, options, position): what was drawn before, in which order, or
 * not at all, does not matter; seed, choice and position do. */
static void draws_are_keyed_by_position(void **state)
{
    (void)state;
    enum { N = 500, DRAWS = 64 };
    static float l[N];
    fill_logits(l, N, 4);
    nb_sampler s;
    open_sampler(&s, N);
    nb_sampling how = {.temperature = 1.5, .seed = 7};
    int32_t forward[DRAWS];
    for (int i = 0; i < DRAWS; i++)
        forward[i] = must_sample(&s, &how, l, i);
    for (int i = DRAWS - 1; i >= 0; i -= 3)
        assert_int_equal(must_sample(&s, &how, l, i), forward[i]);
    const nb_sampling others[] = {{.temperature = 1.5, .seed = 8},
                                  {.temperature = 1.5, .seed = 7, .choice = 1},
                                  {.temperature = 1.5, .seed = 7 | 1ull << 40}};
    for (size_t k = 0; k < sizeof others / sizeof *others; k++) {
        int n_same = 0;
        for (int i = 0; i < DRAWS; i++)
            n_same += must_sample(&s, &others[k], l, i) == forward[i];
        assert_true(n_same < DRAWS / 4);
    }
    nb_sampler_free(&s);
}

/* Every instruction set, and a caller whose processor flushes subnormals, get the same tokens. */
static void tokens_are_the_same_everywhere(void **state)
{
    (void)state;
    enum { N = 5000, DRAWS = 50 };
    static float l[N];
    nb_sampler s, scalar;
    open_sampler(&s, N);
    nb_kernels plain;
    nb_err err = {0};
    nb_kernels_init(&plain, NB_ISA_SCALAR);
    assert_int_equal(nb_sampler_init(&scalar, &plain, N, &err), NB_OK);
    /* The second keeps every weight, subnormal ones too. */
    const nb_sampling hows[] = {{.temperature = 0.9, .top_p = 0.97, .seed = 3},
                                {.temperature = 2, .seed = 3}};
    int n_subnormal = 0;
    for (uint64_t round = 0; round < 16; round++) {
        const nb_sampling *how = &hows[round % 2];
        fill_logits(l, N, round / 2);
        for (int i = 0; i < DRAWS; i++) {
            const int32_t want = must_sample(&scalar, how, l, i);
#if defined(__x86_64__)
            _mm_setcsr(0x1f80u | 0x8040u);
#endif
            const int32_t got = must_sample(&s, how, l, i);
#if defined(__x86_64__)
            assert_int_equal(_mm_getcsr() & 0x8040u, 0x8040u); /* it was restored */
            _mm_setcsr(0x1f80u);
#endif
            assert_int_equal(got, want);
            assert_int_equal(s.n_kept, scalar.n_kept);
            assert_memory_equal(s.weight, scalar.weight, (size_t)s.n_kept * sizeof(float));
        }
        for (int64_t i = 0; i < s.n_kept; i++)
            n_subnormal += fpclassify(s.weight[i]) == FP_SUBNORMAL;
    }
    assert_true(n_subnormal > 0);
    nb_sampler_free(&s);
    nb_sampler_free(&scalar);
}

/* ---- penalties ---- */

/* Repetition counts prompt and answer, the other two the answer alone, as in vLLM. */
static void penalties_are_their_definitions(void **state)
{
    (void)state;
    const float l[6] = {2, -1, 0.5f, 3, 1, 1.5f};
    const int32_t prompt[] = {0, 1, 0, 77, -3}; /* ids that do not exist are ignored */
    nb_sampler s;
    open_sampler(&s, 6);
    nb_sampler_begin(&s, prompt, 5);
    nb_sampler_made(&s, 3);
    nb_sampler_made(&s, 3);
    nb_sampler_made(&s, 1);
    nb_sampler_made(&s, 600);
    const nb_sampling how = {.temperature = 1,
                             .repetition_penalty = 1.25,
                             .frequency_penalty = 0.5,
                             .presence_penalty = 0.125};
    (void)must_sample(&s, &how, l, 0);
    const double want[6] = {2 / 1.25, -1 * 1.25 - 0.5 - 0.125, 0.5, 3 / 1.25 - 2 * 0.5 - 0.125, 1,
                            1.5};
    for (int i = 0; i < 6; i++)
        assert_true(s.logit[i] == (float)want[i]);
    /* Greedy heeds them, too: without, token 3 would win. */
    const nb_sampling greedy = {.frequency_penalty = 2};
    assert_int_equal(must_sample(&s, &greedy, l, 0), 0);
    assert_int_equal(must_sample(&s, &(nb_sampling){0}, l, 0), 3);
    nb_sampler_begin(&s, NULL, 0);
    assert_int_equal(must_sample(&s, &greedy, l, 0), 3);
    nb_sampler_free(&s);
}

/* ---- what is refused ---- */

static void hopeless_logits_are_named(void **state)
{
    (void)state;
    const struct {
        float l[4];
        const char *message;
    } rows[] = {{{0, 1, NAN, 2}, "the logit of token 2 is NaN"},
                {{0, INFINITY, 1, 2}, "the logit of token 1 is infinite"},
                {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}, "no token has a finite logit"}};
    nb_sampler s;
    open_sampler(&s, 4);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int sampled = 0; sampled < 2; sampled++) {
            const nb_sampling how = {.temperature = sampled, .top_k = 2};
            int32_t id = 99;
            nb_err err = {0};
            assert_int_equal(nb_sample(&s, &how, rows[i].l, 0, &id, &err), NB_DATA);
            assert_string_equal(err.text, rows[i].message);
            assert_int_equal(id, 99);
        }
    }
    /* One finite logit is enough, whatever the others are. */
    const float one[4] = {-INFINITY, -INFINITY, -3e38f, -INFINITY};
    for (int64_t i = 0; i < 20; i++)
        assert_int_equal(must_sample(&s, &(nb_sampling){.temperature = 1000}, one, i), 2);
    nb_sampler_free(&s);
}

static void options_out_of_range_are_refused(void **state)
{
    (void)state;
    const nb_sampling bad[] = {
        {.temperature = -1},
        {.temperature = 1e-4},
        {.temperature = 1e4},
        {.temperature = NAN},
        {.top_k = -1},
        {.top_p = -0.1},
        {.top_p = 1.1},
        {.top_p = NAN},
        {.min_p = 2},
        {.repetition_penalty = -1},
        {.repetition_penalty = 2000},
        {.frequency_penalty = INFINITY},
        {.presence_penalty = -2000},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        nb_err err = {0};
        assert_int_equal(nb_sampling_check(&bad[i], 8, &err), NB_USAGE);
        assert_true(err.text[0] != 0);
    }
}

/* ---- generation_config.json ---- */

static nb_status read_recommended(const char *json, nb_sampling *out, nb_err *err)
{
    static int n;
    char name[32];
    snprintf(name, sizeof name, "config-%d", n++);
    const char *path = tiny_model_write(name, &(tiny_model){.generation_config = json});
    nb_store *store;
    assert_int_equal(nb_store_open(&store, path, err), NB_OK);
    const nb_status s = nb_sampling_read(store, out, err);
    nb_store_close(store);
    return s;
}

static void recommendations_are_read(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_sampling how;
    assert_int_equal(read_recommended("{}", &how, &err), NB_OK);
    assert_true(how.temperature == 0 && how.top_k == 0 && how.repetition_penalty == 0);
    /* Without do_sample the rest has no effect in transformers, either. */
    assert_int_equal(
        read_recommended("{\"temperature\": 0.5, \"repetition_penalty\": 1.1}", &how, &err), NB_OK);
    assert_true(how.temperature == 0 && how.repetition_penalty == 1.1);
    assert_int_equal(read_recommended("{\"do_sample\": true}", &how, &err), NB_OK);
    assert_true(how.temperature == 1 && how.top_k == 50 && how.top_p == 0 && how.min_p == 0);
    assert_int_equal(read_recommended("{\"do_sample\": true, \"temperature\": 0.2, \"top_k\": 0, "
                                      "\"top_p\": 0.9, \"min_p\": 0.25}",
                                      &how, &err),
                     NB_OK);
    assert_true(how.temperature == 0.2 && how.top_k == 0 && how.top_p == 0.9 && how.min_p == 0.25);
    const nb_sampling before = how;
    assert_int_equal(read_recommended("{\"do_sample\": true, \"top_p\": 3}", &how, &err), NB_DATA);
    assert_non_null(strstr(err.text, "generation_config.json: top_p is 3"));
    assert_int_equal(read_recommended("{\"do_sample\": \"yes\"}", &how, &err), NB_DATA);
    assert_non_null(strstr(err.text, "do_sample"));
    assert_memory_equal(&how, &before, sizeof how);
}

static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    nb_kernels_init(&kernels, NB_ISA_ALL);
    const int64_t live = nb_alloc_live();
    bool done = false;
    for (int64_t n = 1; !done; n++) {
        nb_err err = {0};
        nb_sampler s;
        nb_alloc_fail_at(n);
        const nb_status status = nb_sampler_init(&s, &kernels, 1000, &err);
        nb_alloc_fail_at(0);
        done = status == NB_OK;
        assert_true(done || status == NB_MEMORY);
        assert_true(!done || n == 6); /* five allocations, each of which failed once */
        nb_sampler_free(&s);
        assert_int_equal(nb_alloc_live(), live);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(filters_are_their_definitions),
        cmocka_unit_test(ties_go_to_the_lowest_id),
        cmocka_unit_test(draws_follow_the_probabilities),
        cmocka_unit_test(draws_are_keyed_by_position),
        cmocka_unit_test(tokens_are_the_same_everywhere),
        cmocka_unit_test(penalties_are_their_definitions),
        cmocka_unit_test(hopeless_logits_are_named),
        cmocka_unit_test(options_out_of_range_are_refused),
        cmocka_unit_test(recommendations_are_read),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
