/* The slab: arrays that neither overlap nor lie askew, from none to more than a block; sizes that
 * would wrap; every allocation failing once. */
#include "support/golden.h"

#include "base/slab.h"

#include <stdint.h>
#include <string.h>

static void arrays_are_apart_aligned_and_zero(void **state)
{
    (void)state;
    nb_slab slab = {0};
    nb_err err = {0};
    static const size_t sizes[] = {
        1, 0, 63, 64, 65, 4096, 1 << 20, (40 << 20) + 1, 30 << 20, 3, (size_t)70 << 20, 5};
    enum { N = sizeof sizes / sizeof *sizes };
    uint8_t *at[N];
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(nb_slab_alloc(&slab, (void **)&at[i], sizes[i], 1, &err), NB_OK);
        assert_int_equal((uintptr_t)at[i] % NB_CACHE_LINE, 0);
        for (size_t j = 0; j < sizes[i]; j += j + 4096 < sizes[i] ? 4096 : 1)
            assert_int_equal(at[i][j], 0);
        if (sizes[i] > 0) {
            at[i][0] = (uint8_t)(i + 1);
            at[i][sizes[i] - 1] = (uint8_t)(i + 1);
        }
    }
    for (size_t i = 0; i < N; i++) {
        if (sizes[i] == 0)
            continue;
        assert_int_equal(at[i][0], i + 1);
        assert_int_equal(at[i][sizes[i] - 1], i + 1);
        for (size_t j = 0; j < N; j++)
            assert_true(i == j || at[j] + sizes[j] <= at[i] || at[i] + sizes[i] <= at[j]);
    }
    nb_slab_free(&slab);
    nb_slab_free(&slab); /* twice is fine */
    assert_int_equal(nb_alloc_live(), 0);
}

static void sizes_that_wrap_and_failures_are_refused(void **state)
{
    (void)state;
    nb_slab slab = {0};
    nb_err err = {0};
    void *p = &slab;
    assert_int_equal(nb_slab_alloc(&slab, &p, SIZE_MAX / 2, 3, &err), NB_MEMORY);
    assert_null(p);
    assert_int_equal(nb_slab_alloc(&slab, &p, SIZE_MAX - 100, 1, &err), NB_MEMORY);
    nb_alloc_fail_at(1);
    assert_int_equal(nb_slab_alloc(&slab, &p, 10, 1, &err), NB_MEMORY);
    assert_null(p);
    assert_int_equal(nb_slab_alloc(&slab, &p, 10, 1, &err), NB_OK);
    nb_alloc_fail_at(1); /* there is room in the block: nothing is allocated */
    assert_int_equal(nb_slab_alloc(&slab, &p, 1000, 1, &err), NB_OK);
    assert_int_equal(nb_slab_alloc(&slab, &p, (size_t)65 << 20, 1, &err), NB_MEMORY);
    nb_alloc_fail_at(0);
    nb_slab_free(&slab);
    assert_int_equal(nb_alloc_live(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrays_are_apart_aligned_and_zero),
        cmocka_unit_test(sizes_that_wrap_and_failures_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
