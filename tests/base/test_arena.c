/* Arenas: alignment, limits, big blocks beside small ones, and no leak when an allocation fails. */
#include "support/golden.h"

#include "base/arena.h"

#include <string.h>

/* Every block is aligned, zero, and overlaps no other: each is filled and all are read back. */
static void blocks_are_aligned_zero_and_apart(void **state)
{
    (void)state;
    enum { N = 400 };
    nb_arena arena = {0};
    nb_err err = {0};
    uint8_t *block[N];
    size_t size[N];
    for (size_t i = 0; i < N; i++) {
        /* Sizes around the rounding, around the chunk, and far above it. */
        size[i] = i % 7 == 6 ? (64 << 10) - 20 + i % 40 : i % 50 == 49 ? 300000 : i * 37 % 130;
        assert_int_equal(NB_ARENA_ALLOC(&arena, &block[i], size[i], &err), NB_OK);
        assert_int_equal((uintptr_t)block[i] % 16, 0);
        for (size_t k = 0; k < size[i]; k++)
            assert_int_equal(block[i][k], 0);
        memset(block[i], (int)(i % 255 + 1), size[i]);
    }
    for (size_t i = 0; i < N; i++) {
        for (size_t k = 0; k < size[i]; k++) {
            if (block[i][k] != i % 255 + 1)
                fail_msg("block %zu was overwritten at %zu", i, k);
        }
    }
    nb_arena_free(&arena);
    assert_int_equal(nb_alloc_live(), 0);
}

/* Memory follows what was asked for: a big block does not strand the half-empty chunk before it. */
static void a_big_block_leaves_the_small_chunk_in_use(void **state)
{
    (void)state;
    nb_arena arena = {0};
    nb_err err = {0};
    uint8_t *small, *big;
    assert_int_equal(NB_ARENA_ALLOC(&arena, &small, 16, &err), NB_OK);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(NB_ARENA_ALLOC(&arena, &big, 70000, &err), NB_OK);
        assert_int_equal(NB_ARENA_ALLOC(&arena, &small, 16, &err), NB_OK);
    }
    assert_int_equal(nb_alloc_live(), 101);
    nb_arena_free(&arena);
}

/* The limit counts what is handed out, rounded to 16 bytes, and may be reached exactly. */
static void the_limit_holds_to_the_byte(void **state)
{
    (void)state;
    nb_arena arena = {.limit = 4096};
    nb_err err = {0};
    uint8_t *p;
    assert_int_equal(NB_ARENA_ALLOC(&arena, &p, 4097, &err), NB_LIMIT);
    assert_null(p);
    assert_int_equal(nb_alloc_live(), 0);
    assert_int_equal(NB_ARENA_ALLOC(&arena, &p, 4081, &err), NB_OK);
    assert_int_equal(arena.used, 4096);
    assert_int_equal(NB_ARENA_ALLOC(&arena, &p, 0, &err), NB_OK);
    assert_int_equal(NB_ARENA_ALLOC(&arena, &p, 1, &err), NB_LIMIT);
    assert_string_equal(err.text, "more than 4096 bytes of tables");
    nb_arena_free(&arena);
    assert_int_equal(arena.limit, 4096);
    assert_int_equal(NB_ARENA_ALLOC(&arena, &p, 4096, &err), NB_OK);
    nb_arena_free(&arena);
}

static void impossible_sizes_are_refused(void **state)
{
    (void)state;
    nb_arena arena = {0};
    nb_err err = {0};
    void *p;
    assert_int_equal(nb_arena_alloc(&arena, &p, 1, 16, &err), NB_OK);
    const size_t rows[][2] = {{SIZE_MAX, 1},        {SIZE_MAX - 15, 1}, {SIZE_MAX - 16, 1},
                              {SIZE_MAX / 2, 3},    {SIZE_MAX - 31, 1}, {SIZE_MAX - 47, 1},
                              {(size_t)1 << 60, 16}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(nb_arena_alloc(&arena, &p, rows[i][0], rows[i][1], &err), NB_MEMORY);
        assert_null(p);
    }
    char *text;
    assert_int_equal(nb_arena_text(&arena, &text, "x", SIZE_MAX, &err), NB_MEMORY);
    assert_int_equal(arena.used, 16);
    nb_arena_free(&arena);
}

static void texts_are_copied_and_terminated(void **state)
{
    (void)state;
    nb_arena arena = {0};
    nb_err err = {0};
    char *a, *b, *c;
    char source[] = "abcdef";
    assert_int_equal(nb_arena_text(&arena, &a, source, 3, &err), NB_OK);
    assert_int_equal(nb_arena_text(&arena, &b, NULL, 0, &err), NB_OK);
    memset(source, 'z', 6);
    assert_string_equal(a, "abc");
    assert_string_equal(b, "");
    assert_int_equal(nb_arena_format(&arena, &c, &err, "%s.%d.%0*d", "blk", 12, 70000, 7), NB_OK);
    assert_int_equal(strlen(c), 4 + 3 + 70000 - 0);
    assert_memory_equal(c, "blk.12.000", 10);
    assert_int_equal(c[strlen(c) - 1], '7');
    nb_arena_free(&arena);
    assert_int_equal(nb_alloc_live(), 0);
}

/* Whichever allocation fails, the arena stays usable and nothing leaks. */
static void every_allocation_may_fail(void **state)
{
    (void)state;
    for (int64_t n = 1; n < 20; n++) {
        nb_arena arena = {0};
        nb_err err = {0};
        int failures = 0;
        nb_alloc_fail_at(n);
        for (int i = 0; i < 12; i++) {
            uint8_t *p;
            const size_t size = i % 3 == 0 ? 100000 : 30000;
            const size_t before = arena.used;
            if (NB_ARENA_ALLOC(&arena, &p, size, &err) != NB_OK) {
                assert_int_equal(err.status, NB_MEMORY);
                assert_null(p);
                assert_int_equal(arena.used, before);
                failures++;
            } else {
                memset(p, 1, size);
            }
        }
        nb_alloc_fail_at(0);
        assert_int_equal(failures, n <= 8 ? 1 : 0);
        nb_arena_free(&arena);
        assert_int_equal(nb_alloc_live(), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_aligned_zero_and_apart),
        cmocka_unit_test(a_big_block_leaves_the_small_chunk_in_use),
        cmocka_unit_test(the_limit_holds_to_the_byte),
        cmocka_unit_test(impossible_sizes_are_refused),
        cmocka_unit_test(texts_are_copied_and_terminated),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
