/* The loops that measure this machine do all the work that they are said to do, and read every
 * byte. Nothing here depends on how fast the machine is. */
#include "support/amx_emulator.h"
#include "support/golden.h"
#include "base/alloc.h"
#include "kernel/limits.h"

#include <string.h>

static const unsigned masks[] = {NB_ISA_SCALAR, NB_ISA_AVX2, NB_ISA_ALL};
#define N_MASKS (sizeof masks / sizeof *masks)

/* A step that did less than `ops` would make the machine look faster than it is. */
static void check_claim(const nb_peak_loop *l)
{
    assert_true(l->ops > 0 && l->lanes > 0 && l->unit[0] != 0);
    static const int64_t steps[] = {0, 1, 2, 3, 100};
    for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
        const int64_t done = l->run(steps[s]);
        assert_int_equal(done * 2 * l->lanes, steps[s] * l->ops);
    }
}

static void a_peak_loop_does_what_it_claims(void **state)
{
    (void)state;
    for (size_t m = 0; m < N_MASKS; m++) {
        nb_limit_loops l;
        nb_limit_loops_init(&l, masks[m]);
        check_claim(&l.int8);
        check_claim(&l.fma);
    }
}

#if defined(__x86_64__)
/* Run in software where the processor has no tiles. */
static void so_does_that_of_tiles(void **state)
{
    (void)state;
    if (amx_begin(nb_cpu_isa()) == AMX_ABSENT)
        skip();
    nb_limit_loops l = {0};
    nb_limits_amx(&l);
    check_claim(&l.int8);
    amx_end();
}
#endif

/* A loop that skipped bytes would read faster than the machine does. */
static void a_read_loop_reads_every_byte(void **state)
{
    (void)state;
    nb_err err = {0};
    uint8_t *p;
    assert_int_equal(nb_alloc((void **)&p, 3072, 1, &err), NB_OK);
    for (size_t m = 0; m < N_MASKS; m++) {
        nb_limit_loops l;
        nb_limit_loops_init(&l, masks[m]);
        for (int64_t n = 1024; n <= 3072; n += 1024) {
            memset(p, 0, 3072);
            assert_int_equal(l.read(p, n), 0);
            for (int64_t at = 0; at < 3072; at++) {
                p[at] = (uint8_t)(1 + at % 255);
                const uint32_t want = (uint32_t)p[at] << 8 * (at % 4);
                assert_int_equal(l.read(p, n), at < n ? want : 0);
                p[at] = 0;
            }
        }
    }
    nb_free(p);
}

static void measuring_fills_every_figure_and_keeps_nothing(void **state)
{
    (void)state;
    const int64_t live = nb_alloc_live();
    nb_err err = {0};
    nb_pool *pool;
    assert_int_equal(nb_pool_open(&pool, 2, &err), NB_OK);
    const int64_t with_pool = nb_alloc_live();
    nb_limits l = {0};
    assert_int_equal(nb_limits_measure(&l, NB_ISA_ALL, pool, &err), NB_OK);
    assert_int_equal(l.n_threads, 2);
    assert_non_null(l.int8_unit);
    assert_non_null(l.fma_unit);
    assert_true(l.int8_ops > 0 && l.fma_ops > 0 && l.read > 0 && l.read_one > 0);
    assert_true(l.l2 >= 0 && l.l3 >= 0);
    assert_int_equal(nb_alloc_live(), with_pool);
    nb_pool_close(pool);
    assert_int_equal(nb_alloc_live(), live);
}

/* The buffer that cannot be had is asked for again, smaller; only then is it an error. */
static void a_smaller_buffer_will_do(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_pool *pool;
    assert_int_equal(nb_pool_open(&pool, 1, &err), NB_OK);
    const int64_t live = nb_alloc_live();
    nb_limits l = {0};
    nb_alloc_fail_at(1);
    assert_int_equal(nb_limits_measure(&l, NB_ISA_ALL, pool, &err), NB_OK);
    nb_alloc_fail_at(0);
    assert_true(l.read > 0);
    assert_int_equal(nb_alloc_live(), live);
    nb_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_peak_loop_does_what_it_claims),
#if defined(__x86_64__)
        cmocka_unit_test(so_does_that_of_tiles),
#endif
        cmocka_unit_test(a_read_loop_reads_every_byte),
        cmocka_unit_test(measuring_fills_every_figure_and_keeps_nothing),
        cmocka_unit_test(a_smaller_buffer_will_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
