/* The pool: every chunk once, on every thread count; no lost wake-up in many thousand runs; the
 * floating-point environment of the contract inside, the caller's outside. */
#define _GNU_SOURCE
#include "support/golden.h"

#include "base/fpenv.h"
#include "base/pool.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Runs under the thread sanitizer are some twenty times slower. */
#if defined(__SANITIZE_THREAD__)
#define RUNS 5000
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RUNS 5000
#endif
#endif
#ifndef RUNS
#define RUNS 100000
#endif

typedef struct {
    int64_t n_chunks;
    int n_threads;
    atomic_int *times;   /* each chunk was run */
    int64_t *value;      /* plain memory, so that the thread sanitizer judges the hand-over */
    int64_t *per_thread; /* scratch, indexed by thread without a lock */
    int64_t input;       /* read by tasks, changed by the caller between runs */
    atomic_int out_of_range;
} job;

static void job_open(job *j, int64_t n_chunks, int n_threads)
{
    *j = (job){.n_chunks = n_chunks, .n_threads = n_threads};
    j->times = calloc((size_t)n_chunks + 1, sizeof *j->times);
    j->value = calloc((size_t)n_chunks + 1, sizeof *j->value);
    j->per_thread = calloc((size_t)n_threads, sizeof *j->per_thread);
    assert_true(j->times != NULL && j->value != NULL && j->per_thread != NULL);
}

static void job_close(job *j)
{
    free(j->times);
    free(j->value);
    free(j->per_thread);
}

static void mark(void *context, int64_t chunk, int thread)
{
    job *j = context;
    if (chunk < 0 || chunk >= j->n_chunks || thread < 0 || thread >= j->n_threads) {
        atomic_fetch_add(&j->out_of_range, 1);
        return;
    }
    atomic_fetch_add_explicit(&j->times[chunk], 1, memory_order_relaxed);
    j->value[chunk] = j->input + chunk;
    j->per_thread[thread]++;
}

static nb_pool *pool_of(int n_threads)
{
    nb_pool *pool;
    nb_err err = {0};
    if (nb_pool_open(&pool, n_threads, &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_int_equal(nb_pool_n_threads(pool), n_threads);
    return pool;
}

/* After a run, each chunk was run once, and the caller sees what the tasks wrote. */
static void check_job(const job *j, int runs)
{
    assert_int_equal(atomic_load(&j->out_of_range), 0);
    int64_t sum = 0;
    for (int t = 0; t < j->n_threads; t++)
        sum += j->per_thread[t];
    assert_int_equal(sum, j->n_chunks * runs);
    for (int64_t c = 0; c < j->n_chunks; c++) {
        if (atomic_load(&j->times[c]) != runs || j->value[c] != j->input + c)
            fail_msg("chunk %lld of %lld: run %d times, not %d", (long long)c,
                     (long long)j->n_chunks, atomic_load(&j->times[c]), runs);
    }
}

static void every_chunk_runs_once(void **state)
{
    (void)state;
    const int threads[] = {1, 2, 3, 8, 64};
    const int64_t sizes[] = {0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 1000, 20011};
    for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++) {
        nb_pool *pool = pool_of(threads[t]);
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            job j;
            job_open(&j, sizes[s], threads[t]);
            for (int run = 1; run <= 3; run++) {
                j.input = run * 1000000;
                nb_pool_run(pool, j.n_chunks, mark, &j);
                check_job(&j, run);
            }
            job_close(&j);
        }
        nb_pool_close(pool);
    }
    assert_int_equal(nb_alloc_live(), 0);
}

/* Back to back, with sizes and inputs that change from run to run: a worker that is late for one
 * run must neither take a chunk of the next by the old count nor see the old job. A lost wake-up
 * would hang here. */
static void back_to_back_runs_do_not_mix(void **state)
{
    (void)state;
    const int threads[] = {2, 3, 8};
    for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++) {
        nb_pool *pool = pool_of(threads[t]);
        const int runs = RUNS / threads[t];
        for (int run = 0; run < runs; run++) {
            job j;
            job_open(&j, run % 5 == 0 ? 2 : 2 + run * 7 % 41, threads[t]);
            j.input = (int64_t)run << 20;
            nb_pool_run(pool, j.n_chunks, mark, &j);
            check_job(&j, 1);
            /* The memory of the job goes away: a straggler that still used it would be caught. */
            job_close(&j);
        }
        nb_pool_close(pool);
    }
}

static void nap(long us)
{
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

/* Workers asleep on the futex wake up for work, and for the end. */
static void sleepers_wake_for_work_and_for_the_end(void **state)
{
    (void)state;
    for (int n = 2; n <= 8; n += 3) {
        nb_pool *pool = pool_of(n);
        for (int run = 0; run < 20; run++) {
            nap(run % 4 * 1500); /* from still spinning to fast asleep */
            job j;
            job_open(&j, 17, n);
            nb_pool_run(pool, j.n_chunks, mark, &j);
            check_job(&j, 1);
            job_close(&j);
        }
        nap(5000);
        nb_pool_close(pool);
    }
    /* Closed at once, while threads are starting, spinning or asleep; without any run. */
    for (int round = 0; round < 60; round++) {
        nb_pool *pool = pool_of(1 + round % 9);
        nap(round % 3 * 400);
        nb_pool_close(pool);
    }
    nb_pool_close(NULL);
    assert_int_equal(nb_alloc_live(), 0);
}

static void slow_on_others(void *context, int64_t chunk, int thread)
{
    if (thread != 0)
        nap(3000);
    mark(context, chunk, thread);
}

static void slow_on_caller(void *context, int64_t chunk, int thread)
{
    if (thread == 0)
        nap(3000);
    mark(context, chunk, thread);
}

/* The caller falls asleep while a worker finishes the last chunk, and is woken; and the other way
 * round, workers fall asleep within the run. */
static void a_sleeping_caller_is_woken(void **state)
{
    (void)state;
    for (int run = 0; run < 40; run++) {
        nb_pool *pool = pool_of(2 + run % 2);
        job j;
        job_open(&j, 2 + run % 5, 3);
        nb_pool_run(pool, j.n_chunks, run % 4 < 2 ? slow_on_others : slow_on_caller, &j);
        check_job(&j, 1);
        nb_pool_run(pool, j.n_chunks, mark, &j);
        check_job(&j, 2);
        job_close(&j);
        nb_pool_close(pool);
    }
}

typedef struct {
    atomic_int met, waiting;
} meeting;

/* Each of two chunks waits until the other has started, which needs two threads. */
static void wait_for_the_other(void *context, int64_t chunk, int thread)
{
    (void)chunk;
    (void)thread;
    meeting *m = context;
    atomic_fetch_add(&m->waiting, 1);
    while (atomic_load(&m->waiting) < 2)
        sched_yield();
    atomic_fetch_add(&m->met, 1);
}

/* The work is really shared: two chunks are in progress at the same time. */
static void chunks_run_side_by_side(void **state)
{
    (void)state;
    nb_pool *pool = pool_of(2);
    for (int run = 0; run < 50; run++) {
        meeting m = {0};
        nb_pool_run(pool, 2, wait_for_the_other, &m);
        assert_int_equal(atomic_load(&m.met), 2);
    }
    nb_pool_close(pool);
}

/* ---- stages ---- */

#define N_STAGES    3
#define STAGE_SIZES 41

/* Plain memory: a chunk that started before the stage ahead had ended would read a torn row, and
 * the thread sanitizer would see it. */
typedef struct {
    int64_t sizes[N_STAGES];
    int64_t value[N_STAGES][STAGE_SIZES];
    int64_t seed;
    int slow; /* the stage whose chunk 0 takes its time */
    atomic_int wrong, fetched;
} staged;

static void stage_chunk(staged *j, int stage, int64_t chunk)
{
    if (stage == j->slow && chunk == 0)
        nap(300);
    int64_t want = 0, sum = 0;
    for (int s = 0; s < stage; s++) {
        for (int64_t c = 0; c < j->sizes[s]; c++) {
            want += j->seed + s + c;
            sum += j->value[s][c];
        }
    }
    if (sum != want)
        atomic_fetch_add(&j->wrong, 1);
    j->value[stage][chunk] = j->seed + stage + chunk;
}

/* Called at most before its own chunk; what it writes only it and its chunk's thread see. */
static void fetch_2(void *context, int64_t chunk, int thread)
{
    (void)thread;
    staged *j = context;
    if (chunk < 0 || chunk >= j->sizes[2] || j->value[2][chunk] == j->seed + 2 + chunk)
        atomic_fetch_add(&j->wrong, 1);
    atomic_fetch_add(&j->fetched, 1);
}

static void stage_0(void *context, int64_t chunk, int thread)
{
    (void)thread;
    stage_chunk(context, 0, chunk);
}

static void stage_1(void *context, int64_t chunk, int thread)
{
    (void)thread;
    stage_chunk(context, 1, chunk);
}

static void stage_2(void *context, int64_t chunk, int thread)
{
    (void)thread;
    stage_chunk(context, 2, chunk);
}

/* Also empty stages, first, between and last; and waits long enough to fall asleep. */
static void stages_run_one_after_the_other(void **state)
{
    (void)state;
    const int threads[] = {1, 2, 3, 8};
    for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++) {
        nb_pool *pool = pool_of(threads[t]);
        int fetched = 0;
        for (int run = 0; run < RUNS / 100; run++) {
            staged j = {.seed = (int64_t)run << 24, .slow = run % 16 == 0 ? run / 16 % 3 : -1};
            for (int s = 0; s < N_STAGES; s++)
                j.sizes[s] = (run * (7 + 4 * s) + s) % STAGE_SIZES;
            nb_stage stages[N_STAGES] = {
                {.n_chunks = j.sizes[0], .task = stage_0},
                {.n_chunks = j.sizes[1], .task = stage_1},
                {.n_chunks = j.sizes[2], .task = stage_2, .fetch = fetch_2}};
            if (run % 4 > 0) /* one of them in streams, or none */
                stages[run % 4 - 1].in_streams = true;
            nb_pool_run_stages(pool, stages, N_STAGES, &j);
            assert_int_equal(atomic_load(&j.wrong), 0);
            for (int s = 0; s < N_STAGES; s++) {
                for (int64_t c = 0; c < j.sizes[s]; c++)
                    assert_int_equal(j.value[s][c], j.seed + s + c);
            }
            fetched += atomic_load(&j.fetched);
        }
        assert_true(threads[t] == 1 ? fetched == 0 : fetched > 0); /* some chunk had to wait */
        nb_pool_run_stages(pool, NULL, 0, NULL);
        nb_pool_close(pool);
    }
}

/* ---- giving way ---- */

static long many_lost(void)
{
    static long lost;
    return lost += 5;
}

static long none_lost(void)
{
    return 7;
}

static void slower_on_others(void *context, int64_t chunk, int thread)
{
    nap(thread == 0 ? 300 : 3000);
    mark(context, chunk, thread);
}

/* Runs in which chunks of other threads take longer; the fewest threads that were active. */
static int fewest_active(nb_pool *pool, int runs)
{
    int fewest = nb_pool_n_active(pool);
    for (int run = 0; run < runs; run++) {
        job j;
        job_open(&j, 4, nb_pool_n_threads(pool));
        nb_pool_run(pool, j.n_chunks, slower_on_others, &j);
        check_job(&j, 1);
        job_close(&j);
        const int active = nb_pool_n_active(pool);
        assert_in_range(active, 1, nb_pool_n_threads(pool));
        fewest = active < fewest ? active : fewest;
    }
    return fewest;
}

/* The caller waits and CPUs are lost meanwhile: one thread less, then another, down to the caller
 * alone. Waits alone, as uneven chunks make them, are no reason; nor is anything when it is off. */
static void a_pool_gives_way_to_strangers(void **state)
{
    (void)state;
    nb_pool *pool = pool_of(3);
    assert_int_equal(fewest_active(pool, 20), 3);
    nb_pool_back_off_by(pool, none_lost);
    assert_int_equal(fewest_active(pool, 20), 3);
    nb_pool_back_off_by(pool, many_lost);
    int fewest = 3;
    for (int round = 0; round < 100 && fewest > 1; round++)
        fewest = fewest_active(pool, 20);
    assert_int_equal(fewest, 1);
    /* After a while all are tried again. */
    for (int round = 0; round < 1000 && nb_pool_n_active(pool) < 3; round++) {
        nap(4000);
        job j;
        job_open(&j, 5, 3);
        for (int run = 1; run <= 100; run++) {
            nb_pool_run(pool, j.n_chunks, mark, &j);
            check_job(&j, run);
        }
        job_close(&j);
    }
    assert_int_equal(nb_pool_n_active(pool), 3);
    nb_pool_back_off(pool, true); /* by the system's own count: whatever it says, all chunks run */
    fewest_active(pool, 20);
    nb_pool_back_off(pool, false);
    assert_int_equal(nb_pool_n_active(pool), 3);
    nb_pool_close(pool);
}

static void impossible_thread_counts_are_refused(void **state)
{
    (void)state;
    const int counts[] = {0, -1, INT32_MIN, NB_POOL_MAX_THREADS + 1, 1000000000};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        nb_err err = {0};
        nb_pool *pool = (nb_pool *)&err;
        assert_int_equal(nb_pool_open(&pool, counts[i], &err), NB_USAGE);
        assert_null(pool);
        assert_non_null(strstr(err.text, "1 to 256"));
    }
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    int failures = 0;
    for (int64_t n = 1; n < 6; n++) {
        nb_err err = {0};
        nb_pool *pool;
        nb_alloc_fail_at(n);
        const nb_status s = nb_pool_open(&pool, 3, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        failures += s == NB_MEMORY;
        nb_pool_close(pool);
        assert_int_equal(nb_alloc_live(), 0);
    }
    assert_in_range(failures, 1, 4);
}

#if defined(__x86_64__)
#define FTZ_DAZ     0x8040u
#define ROUND_UP    0x4000u
#define DIVIDE_TRAP 0x0200u
#define FLAGS       0x3fu

static void look_at_environment(void *context, int64_t chunk, int thread)
{
    (void)chunk;
    (void)thread;
    atomic_int *bad = context;
    volatile float tiny = 0x1p-126f, half = 0.5f, one = 1.0f, three = 3.0f, zero = 0.0f;
    const float subnormal = tiny * half, third = one / three;
    volatile float infinite = one / zero; /* a trap here would end the test */
    (void)infinite;
    if ((_mm_getcsr() & ~FLAGS) != 0x1f80u || subnormal != 0x1p-127f || third != 0x1.555556p-2f)
        atomic_fetch_add(bad, 1);
}

static void leave_flush_to_zero_on(void *context, int64_t chunk, int thread)
{
    (void)context;
    (void)chunk;
    (void)thread;
    _mm_setcsr(0x1f80u | FTZ_DAZ);
}

/* A host program may have set flush-to-zero, another rounding or traps: inside a task none of them
 * holds, afterwards all of them do again. */
static void tasks_run_in_the_contracts_environment(void **state)
{
    (void)state;
    const unsigned callers[] = {0x1f80u, 0x1f80u | FTZ_DAZ, 0x1f80u | ROUND_UP,
                                0x1f80u & ~DIVIDE_TRAP, 0x9fc0u | ROUND_UP};
    const int threads[] = {1, 2, 5};
    const int64_t sizes[] = {1, 2, 100};
    for (size_t c = 0; c < sizeof callers / sizeof callers[0]; c++) {
        for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++) {
            /* Workers inherit the environment of the thread that starts them. */
            _mm_setcsr(callers[c]);
            nb_pool *pool = pool_of(threads[t]);
            for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
                atomic_int bad = 0;
                _mm_setcsr(callers[c]);
                nb_pool_run(pool, sizes[s], look_at_environment, &bad);
                const unsigned after = _mm_getcsr() & ~FLAGS;
                _mm_setcsr(0x1f80u);
                assert_int_equal(atomic_load(&bad), 0);
                assert_int_equal(after, callers[c] & ~FLAGS);
                /* And what a task of ours does to it stays inside the run. */
                nb_pool_run(pool, sizes[s], leave_flush_to_zero_on, NULL);
                assert_int_equal(_mm_getcsr() & ~FLAGS, 0x1f80u);
                atomic_store(&bad, 0);
                nb_pool_run(pool, sizes[s], look_at_environment, &bad);
                assert_int_equal(atomic_load(&bad), 0);
            }
            nb_pool_close(pool);
        }
    }
    _mm_setcsr(0x1f80u);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_chunk_runs_once),
        cmocka_unit_test(back_to_back_runs_do_not_mix),
        cmocka_unit_test(sleepers_wake_for_work_and_for_the_end),
        cmocka_unit_test(a_sleeping_caller_is_woken),
        cmocka_unit_test(chunks_run_side_by_side),
        cmocka_unit_test(stages_run_one_after_the_other),
        cmocka_unit_test(a_pool_gives_way_to_strangers),
        cmocka_unit_test(impossible_thread_counts_are_refused),
        cmocka_unit_test(every_allocation_may_fail),
#if defined(__x86_64__)
        cmocka_unit_test(tasks_run_in_the_contracts_environment),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
