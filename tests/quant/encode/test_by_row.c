/* Rows of a matrix, each by itself, on the pool. */
#include "quant/encode/by_row.h"
#include "support/golden.h"

#include <stdatomic.h>

enum { MOST_ROWS = 300 };
static atomic_int calls[MOST_ROWS + 1]; /* the last: of rows that are not there */

static void count(const void *context, int64_t row)
{
    const nb_mat *m = context;
    const bool inside = row >= 0 && row < m->n_rows;
    atomic_fetch_add(&calls[inside ? row : MOST_ROWS], 1);
}

/* A row that is left out keeps what it was by chance, and one that is done twice takes two steps:
 * each is done once, whether a chunk holds all rows, some of them, or not even one. */
static void each_row_is_done_once(void **state)
{
    (void)state;
    static const int64_t rows[] = {1, 2, 63, MOST_ROWS};
    static const int64_t cols[] = {1, 576, 5461, 8192, 16384, 16385, 1 << 20};
    nb_err err = {0};
    for (int threads = 1; threads <= 3; threads += 2) {
        nb_pool *pool;
        assert_int_equal(nb_pool_open(&pool, threads, &err), NB_OK);
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            for (size_t c = 0; c < sizeof cols / sizeof *cols; c++) {
                const nb_mat m = {.n_rows = rows[r], .n_cols = cols[c]};
                for (int i = 0; i <= MOST_ROWS; i++)
                    calls[i] = 0;
                nb_by_row(&m, pool, count, &m);
                for (int i = 0; i <= MOST_ROWS; i++)
                    assert_int_equal(calls[i], i < rows[r]);
            }
        }
        nb_pool_close(pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_row_is_done_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
