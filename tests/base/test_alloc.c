/* The allocator: sizes that wrap, alignment, zeroing, and the failures that tests plant. */
#define _GNU_SOURCE
#include "support/golden.h"

#include "base/alloc.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void checked_arithmetic_refuses_to_wrap(void **state)
{
    (void)state;
    size_t out = 7;
    assert_false(nb_mul_size(SIZE_MAX, 2, &out));
    assert_false(nb_mul_size((size_t)1 << 32, (size_t)1 << 32, &out));
    assert_false(nb_add_size(SIZE_MAX, 1, &out));
    assert_int_equal(out, 7);
    assert_true(nb_mul_size(SIZE_MAX, 1, &out) && out == SIZE_MAX);
    assert_true(nb_mul_size(SIZE_MAX, 0, &out) && out == 0);
    assert_true(nb_add_size(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
}

/* Counts from a file may be anything; none of these may come back as a small block. */
static void impossible_sizes_are_refused(void **state)
{
    (void)state;
    const size_t rows[][2] = {
        {SIZE_MAX, 1},        {SIZE_MAX - 63, 1},        {SIZE_MAX - 64, 1},
        {SIZE_MAX - 127, 1},  {SIZE_MAX / 2, 3},         {(size_t)1 << 61, 8},
        {SIZE_MAX, SIZE_MAX}, {SIZE_MAX - (2 << 20), 1}, {(SIZE_MAX >> 1) + 1, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        nb_err err = {0};
        void *p = &err;
        assert_int_equal(nb_alloc(&p, rows[i][0], rows[i][1], &err), NB_MEMORY);
        assert_null(p);
        assert_string_not_equal(err.text, "");
    }
    assert_int_equal(nb_alloc_live(), 0);
}

/* Blocks are zero also when the system hands back memory that was used before. */
static void blocks_are_aligned_and_zero(void **state)
{
    (void)state;
    const size_t sizes[] = {
        0, 1, 63, 64, 65, 4095, 4096, 1 << 20, 4 << 20, (4 << 20) + 1, (9 << 20) + 77};
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            nb_err err = {0};
            uint8_t *p;
            assert_int_equal(NB_ALLOC(&p, sizes[i], &err), NB_OK);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % NB_CACHE_LINE, 0);
            for (size_t k = 0; k < sizes[i]; k++) {
                if (p[k] != 0)
                    fail_msg("byte %zu of %zu is %d", k, sizes[i], p[k]);
            }
            memset(p, 0xa5, sizes[i]);
            assert_int_equal(nb_alloc_live(), 1);
            nb_free(p);
        }
    }
    nb_free(NULL);
    assert_int_equal(nb_alloc_live(), 0);
}

static void empty_blocks_have_addresses_of_their_own(void **state)
{
    (void)state;
    nb_err err = {0};
    void *a, *b;
    assert_int_equal(nb_alloc(&a, 0, 8, &err), NB_OK);
    assert_int_equal(nb_alloc(&b, 8, 0, &err), NB_OK);
    assert_ptr_not_equal(a, b);
    nb_free(a);
    nb_free(b);
}

/* The n-th allocation fails, once, and the count of live ones stays right. */
static void a_planted_failure_comes_once_and_on_time(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 5; n++) {
        nb_alloc_fail_at(n);
        void *p[6];
        for (int64_t i = 1; i <= 6; i++) {
            nb_err err = {0};
            const nb_status s = nb_alloc(&p[i - 1], 3, 5, &err);
            assert_int_equal(s, i == n ? NB_MEMORY : NB_OK);
            if (i == n)
                assert_string_equal(err.text, "out of memory: 15 bytes were needed");
        }
        assert_int_equal(nb_alloc_live(), 5);
        for (int i = 0; i < 6; i++)
            nb_free(p[i]);
        assert_int_equal(nb_alloc_live(), 0);
    }
    nb_alloc_fail_at(0);
}

/* Of a large block that is sparse, what is touched becomes resident, and not 2 MiB around it. */
static void sparse_blocks_are_resident_by_pages(void **state)
{
    (void)state;
    enum { STEP = 1 << 20, N = 32 };
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    static unsigned char in[(size_t)N * STEP / 4096 + 1];
    nb_err err = {0};
    uint8_t *p;
    assert_int_equal(nb_alloc_sparse((void **)&p, N, STEP, &err), NB_OK);
    for (size_t i = 0; i < N; i++)
        assert_int_equal(p[i * STEP]++, 0);
    uint8_t *from = (uint8_t *)((uintptr_t)p / page * page);
    assert_int_equal(mincore(from, (size_t)N * STEP, in), 0);
    size_t n = 0;
    for (size_t i = 0; i < (size_t)N * STEP / page; i++)
        n += in[i] & 1;
    assert_in_range(n, N, 2 * N);
    nb_free(p);
    assert_int_equal(nb_alloc_sparse((void **)&p, SIZE_MAX, 2, &err), NB_MEMORY);
    assert_int_equal(nb_alloc_live(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checked_arithmetic_refuses_to_wrap),
        cmocka_unit_test(impossible_sizes_are_refused),
        cmocka_unit_test(blocks_are_aligned_and_zero),
        cmocka_unit_test(empty_blocks_have_addresses_of_their_own),
        cmocka_unit_test(a_planted_failure_comes_once_and_on_time),
        cmocka_unit_test(sparse_blocks_are_resident_by_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
