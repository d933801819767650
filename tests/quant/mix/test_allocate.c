/* The allocation against all there is to choose from. */
#include "quant/mix/allocate.h"

#include "base/alloc.h"
#include "base/rng.h"
#include "support/golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ITEMS   7
#define MAX_CHOICES 4

typedef struct {
    nb_item items[MAX_ITEMS];
    nb_choice choices[MAX_ITEMS][MAX_CHOICES];
    int64_t n, least, most;
    double best;
} instance;

static int64_t draw(uint64_t seed, uint64_t *at, int64_t n)
{
    return (int64_t)(nb_rng_uniform(seed, 1, (*at)++) * (double)n);
}

/* Sizes with or without a common divisor; losses that mostly, but not always, fall with bytes, some
 * of them equal. They are small whole numbers, so that sums are exact in any order. */
static void make(instance *x, uint64_t seed)
{
    uint64_t at = 0;
    const int64_t unit = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 16 : 4096;
    x->n = draw(seed, &at, MAX_ITEMS + 1);
    x->least = x->most = 0;
    x->best = 0;
    for (int64_t i = 0; i < x->n; i++) {
        const int n = 1 + (int)draw(seed, &at, MAX_CHOICES);
        int64_t least = INT64_MAX, most = 0;
        double best = INFINITY;
        for (int k = 0; k < n; k++) {
            nb_choice *c = &x->choices[i][k];
            c->bytes = unit * draw(seed, &at, 30);
            c->loss = (double)(draw(seed, &at, 12) + (c->bytes == 0 ? 12 : 200 / c->bytes));
            least = c->bytes < least ? c->bytes : least;
            most = c->bytes > most ? c->bytes : most;
            best = c->loss < best ? c->loss : best;
        }
        x->items[i] = (nb_item){x->choices[i], n};
        x->least += least;
        x->most += most;
        x->best += best;
    }
}

/* Calls for every combination; *loss is the least within the bytes, *bytes the least within the
 * loss. */
static void try_all(const instance *x, int64_t budget, double bound, double *loss, int64_t *bytes)
{
    int pick[MAX_ITEMS] = {0};
    *loss = INFINITY;
    *bytes = INT64_MAX;
    for (;;) {
        const int64_t b = nb_allocated_bytes(x->items, x->n, pick);
        const double l = nb_allocated_loss(x->items, x->n, pick);
        if (b <= budget && l < *loss)
            *loss = l;
        if (l <= bound && b < *bytes)
            *bytes = b;
        int64_t i = 0;
        while (i < x->n && ++pick[i] == x->items[i].n)
            pick[i++] = 0;
        if (i == x->n)
            return;
    }
}

static void as_good_as_trying_all(void **state)
{
    (void)state;
    int64_t n_fit = 0, n_refused = 0;
    for (uint64_t seed = 0; seed < 600; seed++) {
        instance x;
        make(&x, seed);
        const int64_t live = nb_alloc_live();
        for (int step = -1; step <= 4; step++) {
            const int64_t budget = x.least + (x.most - x.least) * step / 4 - (step < 0);
            const double bound = x.best + 9 * step;
            int pick[MAX_ITEMS] = {0};
            double loss;
            int64_t bytes;
            nb_err err = {0};
            try_all(&x, budget, bound, &loss, &bytes);
            nb_status s = nb_allocate_bytes(x.items, x.n, budget, pick, &err);
            assert_int_equal(s, isinf(loss) ? NB_LIMIT : NB_OK);
            if (s == NB_OK) {
                assert_true(nb_allocated_bytes(x.items, x.n, pick) <= budget);
                assert_true(nb_allocated_loss(x.items, x.n, pick) == loss);
            }
            n_fit += s == NB_OK;
            n_refused += s != NB_OK;
            s = nb_allocate_loss(x.items, x.n, bound, pick, &err);
            assert_int_equal(s, bytes == INT64_MAX ? NB_LIMIT : NB_OK);
            if (s == NB_OK) {
                assert_true(nb_allocated_loss(x.items, x.n, pick) <= bound);
                assert_int_equal(nb_allocated_bytes(x.items, x.n, pick), bytes);
            }
        }
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n_fit > 2000);
    assert_true(n_refused > 400);
}

/* What is refused is told with the least there is. */
static void the_least_is_named(void **state)
{
    (void)state;
    const nb_choice choices[] = {{100, 1}, {70, 2.5}};
    const nb_item items[] = {{choices, 2}, {choices, 2}};
    int pick[2];
    nb_err err = {0};
    assert_int_equal(nb_allocate_bytes(items, 2, 139, pick, &err), NB_LIMIT);
    assert_string_equal(err.text, "139 bytes are too few: the least is 140");
    assert_int_equal(nb_allocate_bytes(items, 2, 140, pick, &err), NB_OK);
    assert_int_equal(nb_allocate_loss(items, 2, 1.5, pick, &err), NB_LIMIT);
    assert_string_equal(err.text, "a loss of 1.5 cannot be reached: the least is 2");
    assert_int_equal(nb_allocate_loss(items, 2, 2, pick, &err), NB_OK);
    assert_int_equal(nb_allocate_loss(items, 2, NAN, pick, &err), NB_LIMIT);
    assert_int_equal(nb_allocate_loss(items, 2, INFINITY, pick, &err), NB_OK);
    assert_int_equal(nb_allocated_bytes(items, 2, pick), 140);
    assert_int_equal(nb_allocate_bytes(items, 2, INT64_MAX, pick, &err), NB_OK);
    assert_true(nb_allocated_loss(items, 2, pick) == 2);
}

/* As many layers as a large model has, of odd sizes, which are rounded up: within the budget, and
 * near a bound that no choice can beat. */
static void large_and_odd(void **state)
{
    (void)state;
    enum { N = 560, C = 5 };
    static nb_choice choices[N][C];
    static nb_item items[N];
    static int pick[N], again[N];
    int64_t least = 0, most = 0;
    double largest_step = 0;
    for (int i = 0; i < N; i++) {
        const int64_t size = 1000003 + (int64_t)(nb_rng_uniform(5, 2, (uint64_t)i) * 9e7);
        const double care = exp2(8 * nb_rng_uniform(5, 3, (uint64_t)i)) * 1e-5;
        for (int k = 0; k < C; k++)
            choices[i][k] = (nb_choice){size * (k + 2) / 8 + 16 * k, care * exp2(-2.0 * k)};
        items[i] = (nb_item){choices[i], C};
        least += choices[i][0].bytes;
        most += choices[i][C - 1].bytes;
        largest_step = fmax(largest_step, choices[i][0].loss - choices[i][1].loss);
    }
    const int64_t budget = least + (most - least) / 3;
    nb_err err = {0};
    assert_int_equal(nb_allocate_bytes(items, N, budget, pick, &err), NB_OK);
    assert_true(nb_allocated_bytes(items, N, pick) <= budget);
    assert_true(nb_allocated_bytes(items, N, pick) > budget - (int64_t)2e7);
    /* A bound from below, for any weight of a byte: sum of min(loss + weight * bytes). */
    double bound = 0;
    for (int e = -220; e < -80; e++) {
        const double weight = exp2(e / 4.0);
        double sum = -weight * (double)budget;
        for (int i = 0; i < N; i++) {
            double one = INFINITY;
            for (int k = 0; k < C; k++)
                one = fmin(one, choices[i][k].loss + weight * (double)choices[i][k].bytes);
            sum += one;
        }
        bound = fmax(bound, sum);
    }
    const double loss = nb_allocated_loss(items, N, pick);
    assert_true(bound > 0);
    assert_true(loss >= bound && loss <= 1.02 * bound);
    assert_true(largest_step > 0);
    assert_int_equal(nb_allocate_bytes(items, N, budget, again, &err), NB_OK);
    assert_memory_equal(pick, again, sizeof pick);
}

static void no_memory(void **state)
{
    (void)state;
    const nb_choice choices[] = {{100, 1}, {70, 2.5}};
    const nb_item items[] = {{choices, 2}, {choices, 2}};
    const int64_t live = nb_alloc_live();
    int n_failed = 0;
    for (int64_t at = 1;; at++) {
        int pick[2];
        nb_err err = {0};
        nb_alloc_fail_at(at);
        const nb_status s = nb_allocate_bytes(items, 2, 170, pick, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
        n_failed++;
    }
    assert_true(n_failed >= 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_good_as_trying_all),
        cmocka_unit_test(the_least_is_named),
        cmocka_unit_test(large_and_odd),
        cmocka_unit_test(no_memory),
    };
    return cmocka_run_group_tests_name("allocate", tests, NULL, NULL);
}
