/* Rows on disk come back as they were written, in whatever order; a disk that is full, a file that
 * ends early or was changed is noticed. */
#define _GNU_SOURCE
#include "base/spill.h"

#include "base/rng.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static nb_err err;

static void fill(uint8_t *row, size_t n, int64_t index)
{
    for (size_t i = 0; i < n; i++)
        row[i] = (uint8_t)(256 * nb_rng_uniform(1, (uint64_t)index, i));
}

static nb_spill opened(const char *name, size_t row_bytes, int64_t n_rows)
{
    nb_spill s;
    assert_int_equal(nb_spill_open(&s, scratch_path(name), row_bytes, n_rows, &err), NB_OK);
    return s;
}

/* Every row is written once, in pieces of 1 to 7 rows that come in no order, and read in others. */
static void rows_come_back_in_any_order(void **state)
{
    (void)state;
    static const size_t widths[] = {1, 31, 32, 33, 4096};
    for (size_t k = 0; k < sizeof widths / sizeof *widths; k++) {
        const size_t n = widths[k];
        enum { ROWS = 97 };
        nb_spill s = opened("rows", n, ROWS);
        uint8_t *rows = malloc(8 * n), *got = malloc(ROWS * n);
        assert_true(rows != NULL && got != NULL);
        uint64_t written = 0;
        for (int64_t i = 0; i < 14; i++) {
            const int64_t first = i * 5 % 14 * 7, left = ROWS - first, m = left < 7 ? left : 7;
            for (int64_t r = 0; r < m; r++)
                fill(rows + (size_t)r * n, n, first + r);
            assert_int_equal(nb_spill_write(&s, first, m, rows, &err), NB_OK);
            written ^= nb_spill_hash(&s, first, m, rows);
        }
        assert_int_equal(nb_spill_read(&s, 0, ROWS, got, &err), NB_OK);
        for (int64_t r = 0; r < ROWS; r++) {
            fill(rows, n, r);
            assert_memory_equal(got + (size_t)r * n, rows, n);
        }
        assert_true(nb_spill_hash(&s, 0, ROWS, got) == written);
        assert_int_equal(nb_spill_read(&s, ROWS - 1, 1, got, &err), NB_OK);
        assert_memory_equal(got, rows, n);
        nb_spill_close(&s);
        assert_int_equal(remove(scratch_path("rows")), 0);
        free(rows);
        free(got);
    }
}

/* What was there stays: a file is gone on with, not made anew. */
static void a_file_keeps_what_it_holds(void **state)
{
    (void)state;
    nb_spill s = opened("kept", 4, 3);
    assert_int_equal(nb_spill_write(&s, 1, 1, "abcd", &err), NB_OK);
    nb_spill_close(&s);
    s = opened("kept", 4, 3);
    char got[4];
    assert_int_equal(nb_spill_read(&s, 1, 1, got, &err), NB_OK);
    assert_memory_equal(got, "abcd", 4);
    nb_spill_close(&s);
    struct stat st;
    assert_int_equal(stat(scratch_path("kept"), &st), 0);
    assert_int_equal(st.st_size, 12);
    assert_int_equal(st.st_mode & 0077, 0); /* activations tell of the text */
}

static void a_file_that_ends_early_is_an_error(void **state)
{
    (void)state;
    nb_spill s = opened("short", 8, 10);
    char rows[80] = {0};
    assert_int_equal(nb_spill_write(&s, 0, 10, rows, &err), NB_OK);
    assert_int_equal(truncate(scratch_path("short"), 79), 0);
    assert_int_equal(nb_spill_read(&s, 0, 9, rows, &err), NB_OK);
    assert_int_equal(nb_spill_read(&s, 9, 1, rows, &err), NB_IO);
    assert_non_null(strstr(err.text, "short: ends at byte 79"));
    assert_int_equal(nb_spill_read(&s, 0, 10, rows, &err), NB_IO);
    nb_spill_close(&s);
}

static void sizes_that_wrap_are_refused(void **state)
{
    (void)state;
    nb_spill s;
    assert_int_equal(nb_spill_open(&s, scratch_path("w"), SIZE_MAX / 2, 3, &err), NB_LIMIT);
    assert_int_equal(nb_spill_open(&s, scratch_path("w"), (size_t)INT64_MAX, 2, &err), NB_LIMIT);
    assert_int_equal(nb_spill_open(&s, scratch_path("w"), 4, -1, &err), NB_LIMIT);
    assert_false(scratch_exists("w"));
    assert_int_equal(s.fd, -1);
    nb_spill_close(&s);
}

static void places_that_cannot_be_written(void **state)
{
    (void)state;
    nb_spill s;
    scratch_mkdir("folder");
    scratch_text("target", "mine");
    assert_int_equal(symlink("target", scratch_path("link")), 0);
    static const char *const names[] = {"folder", "link", "no/such", "target/in"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(nb_spill_open(&s, scratch_path(names[i]), 4, 4, &err), NB_IO);
        assert_non_null(strstr(err.text, names[i]));
        nb_spill_close(&s);
    }
    assert_true(scratch_holds("target", "mine"));
}

/* A disk that is full, as far as a limit on file sizes can play one: with room asked for at once,
 * or found out when writing. */
static void a_full_disk_is_an_error(void **state)
{
    (void)state;
    struct rlimit before, small;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = (struct rlimit){4096, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    nb_spill s;
    const nb_status large = nb_spill_open(&s, scratch_path("full"), 4096, 2, &err);
    nb_spill_close(&s);
    nb_status small_one = nb_spill_open(&s, scratch_path("full2"), 4096, 1, &err);
    static char rows[8192];
    nb_status write = NB_OK;
    nb_err full = {0};
    if (small_one == NB_OK)
        write = nb_spill_write(&s, 0, 2, rows, &full);
    nb_spill_close(&s);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    (void)signal(SIGXFSZ, handler);
    assert_int_equal(large, NB_IO);
    assert_int_equal(small_one, NB_OK);
    assert_int_equal(write, NB_IO);
    assert_non_null(strstr(full.text, "full2: cannot write"));
}

/* Each bit of a row counts, and so does the place of a row; the order of writing does not. */
static void the_hash_tells_content_and_place(void **state)
{
    (void)state;
    static const size_t widths[] = {1, 5, 32, 40, 64};
    for (size_t k = 0; k < sizeof widths / sizeof *widths; k++) {
        const nb_spill s = {.fd = -1, .row_bytes = widths[k], .n_rows = 4};
        uint8_t rows[4 * 64], other[4 * 64];
        for (int64_t r = 0; r < 4; r++)
            fill(rows + (size_t)r * widths[k], widths[k], 100 + r);
        const uint64_t whole = nb_spill_hash(&s, 0, 4, rows);
        uint64_t parts = 0;
        for (int64_t r = 3; r >= 0; r--)
            parts ^= nb_spill_hash(&s, r, 1, rows + (size_t)r * widths[k]);
        assert_true(parts == whole);
        assert_true(nb_spill_hash(&s, 1, 4, rows) != whole);
        for (size_t bit = 0; bit < 8 * 4 * widths[k]; bit++) {
            memcpy(other, rows, sizeof other);
            other[bit / 8] ^= (uint8_t)(1u << bit % 8);
            assert_true(nb_spill_hash(&s, 0, 4, other) != whole);
        }
        /* two rows that change places */
        memcpy(other, rows, sizeof other);
        memcpy(other, rows + widths[k], widths[k]);
        memcpy(other + widths[k], rows, widths[k]);
        assert_true(nb_spill_hash(&s, 0, 4, other) != whole);
        /* equal rows must not cancel each other out, nor zeros count as nothing */
        memset(other, 0, sizeof other);
        assert_true(nb_spill_hash(&s, 0, 2, other) != 0);
        assert_true(nb_spill_hash(&s, 0, 1, other) != nb_spill_hash(&s, 0, 3, other));
    }
}

static void memory_that_fails_leaves_nothing(void **state)
{
    (void)state;
    nb_spill s;
    const int64_t live = nb_alloc_live();
    nb_alloc_fail_at(1);
    assert_int_equal(nb_spill_open(&s, scratch_path("alloc"), 4, 4, &err), NB_MEMORY);
    nb_alloc_fail_at(0);
    assert_int_equal(nb_alloc_live(), live);
    assert_false(scratch_exists("alloc"));
    nb_spill_close(&s);
    nb_spill_close(&(nb_spill){0});
}

/* On all threads: the same file, hash and rows; one thread's failure is told, once. */
static void a_pool_moves_the_same_rows(void **state)
{
    (void)state;
    static const size_t widths[] = {1, 4096, 100000};
    for (size_t k = 0; k < sizeof widths / sizeof *widths; k++) {
        enum { ROWS = 131 };
        const size_t n = widths[k];
        nb_pool *pool;
        assert_int_equal(nb_pool_open(&pool, 3, &err), NB_OK);
        nb_spill s = opened("pool", n, ROWS + 1);
        uint8_t *rows = malloc(ROWS * n), *got = malloc(ROWS * n);
        assert_true(rows != NULL && got != NULL);
        for (int64_t r = 0; r < ROWS; r++)
            fill(rows + (size_t)r * n, n < 64 ? n : 64, r);
        assert_int_equal(nb_spill_write_on(pool, &s, 1, ROWS, rows, &err), NB_OK);
        assert_int_equal(nb_spill_read(&s, 1, ROWS, got, &err), NB_OK);
        assert_memory_equal(got, rows, ROWS * n);
        memset(got, 0, ROWS * n);
        assert_int_equal(nb_spill_read_on(pool, &s, 1, ROWS, got, &err), NB_OK);
        assert_memory_equal(got, rows, ROWS * n);
        assert_true(nb_spill_hash_on(pool, &s, 1, ROWS, rows) == nb_spill_hash(&s, 1, ROWS, rows));
        assert_int_equal(truncate(s.path, (off_t)(ROWS * n)), 0);
        assert_int_equal(nb_spill_read_on(pool, &s, 1, ROWS, got, &err), NB_IO);
        assert_non_null(strstr(err.text, s.path));
        free(rows);
        free(got);
        nb_spill_close(&s);
        nb_pool_close(pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_come_back_in_any_order),
        cmocka_unit_test(a_pool_moves_the_same_rows),
        cmocka_unit_test(a_file_keeps_what_it_holds),
        cmocka_unit_test(a_file_that_ends_early_is_an_error),
        cmocka_unit_test(sizes_that_wrap_are_refused),
        cmocka_unit_test(places_that_cannot_be_written),
        cmocka_unit_test(a_full_disk_is_an_error),
        cmocka_unit_test(the_hash_tells_content_and_place),
        cmocka_unit_test(memory_that_fails_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
