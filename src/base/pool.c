/* See pool.h. */
#define _GNU_SOURCE
#include "base/pool.h"

#include "base/fpenv.h"

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

/* About 50 us of spinning on a 3.6 GHz core before a waiter sleeps: longer than the serial code
 * between two parallel steps of a forward pass, short enough not to burn a shared machine. */
#define SPINS 4000

typedef struct {
    nb_pool *pool;
    int index;
} worker;

struct nb_pool {
    int n_threads;
    int n_started;
    pthread_t *threads;
    worker *workers;
    /* The job; written by the caller only while no chunk is claimable. */
    nb_task_fn *task;
    void *context;
    int64_t n_chunks;
    /* Chunks not yet claimed. A worker that was descheduled between looking and claiming may find
     * the count of a later job; then its claim is one on that job, which it reads only afterwards.
     * So nobody has to wait for workers that never showed up: a run ends when its chunks are done.
     */
    _Alignas(NB_CACHE_LINE) _Atomic uint32_t n_unclaimed;
    _Alignas(NB_CACHE_LINE) _Atomic uint32_t n_left;     /* chunks not yet finished; a futex */
    _Alignas(NB_CACHE_LINE) _Atomic uint32_t generation; /* a new value announces work; a futex */
    atomic_int n_asleep;
    atomic_bool caller_asleep;
    atomic_bool stop;
};

static void cpu_relax(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(void *word, unsigned expected)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake_all(void *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Claims and runs chunks until none of the current job is left. */
static void work(nb_pool *pool, int thread)
{
    const uint64_t env = nb_fpenv_enter();
    uint32_t seen = atomic_load_explicit(&pool->n_unclaimed, memory_order_acquire);
    while (seen != 0) {
        if (!atomic_compare_exchange_weak_explicit(&pool->n_unclaimed, &seen, seen - 1,
                                                   memory_order_acquire, memory_order_acquire)) {
            continue;
        }
        /* The claim holds the job open: task, context and n_chunks cannot change before it ends. */
        pool->task(pool->context, pool->n_chunks - (int64_t)seen, thread);
        const uint32_t left = atomic_fetch_sub(&pool->n_left, 1);
        if (left == 1 && atomic_load(&pool->caller_asleep))
            futex_wake_all(&pool->n_left);
        seen = atomic_load_explicit(&pool->n_unclaimed, memory_order_acquire);
    }
    nb_fpenv_leave(env);
}

static void *worker_main(void *argument)
{
    const worker *me = argument;
    nb_pool *pool = me->pool;
    uint32_t seen = 0;
    for (;;) {
        uint32_t now;
        int spins = 0;
        while ((now = atomic_load_explicit(&pool->generation, memory_order_acquire)) == seen) {
            if (++spins < SPINS) {
                cpu_relax();
                continue;
            }
            /* The sleeper count is raised before the futex looks at the word, and the announcer
             * changes the word before it looks at the count: one of the two sees the other. */
            atomic_fetch_add(&pool->n_asleep, 1);
            futex_wait(&pool->generation, seen);
            atomic_fetch_sub(&pool->n_asleep, 1);
        }
        seen = now;
        if (atomic_load(&pool->stop))
            return NULL;
        work(pool, me->index);
    }
}

nb_status nb_pool_open(nb_pool **out, int n_threads, nb_err *err)
{
    *out = NULL;
    if (n_threads < 1 || n_threads > NB_POOL_MAX_THREADS)
        return nb_fail(err, NB_USAGE, "%d threads: 1 to %d are possible", n_threads,
                       NB_POOL_MAX_THREADS);
    nb_pool *pool;
    NB_TRY(NB_ALLOC(&pool, 1, err));
    pool->n_threads = n_threads;
    nb_status s = NB_ALLOC(&pool->threads, n_threads, err);
    if (s == NB_OK)
        s = NB_ALLOC(&pool->workers, n_threads, err);
    for (int i = 1; s == NB_OK && i < n_threads; i++) {
        pool->workers[i] = (worker){.pool = pool, .index = i};
        const int e = pthread_create(&pool->threads[i], NULL, worker_main, &pool->workers[i]);
        if (e != 0)
            s = nb_fail_errno(err, e, "starting thread %d of %d", i, n_threads);
        else
            pool->n_started++;
    }
    if (s != NB_OK) {
        nb_pool_close(pool);
        return s;
    }
    *out = pool;
    return NB_OK;
}

static void announce(nb_pool *pool)
{
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->n_asleep) > 0)
        futex_wake_all(&pool->generation);
}

void nb_pool_close(nb_pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store(&pool->stop, true);
    announce(pool);
    for (int i = 1; i <= pool->n_started; i++)
        pthread_join(pool->threads[i], NULL);
    nb_free(pool->threads);
    nb_free(pool->workers);
    nb_free(pool);
}

int nb_pool_n_threads(const nb_pool *pool)
{
    return pool->n_threads;
}

void nb_pool_run(nb_pool *pool, int64_t n_chunks, nb_task_fn *task, void *context)
{
    assert(n_chunks >= 0 && n_chunks <= INT32_MAX);
    if (n_chunks <= 1 || pool->n_threads == 1) {
        const uint64_t env = nb_fpenv_enter();
        for (int64_t chunk = 0; chunk < n_chunks; chunk++)
            task(context, chunk, 0);
        nb_fpenv_leave(env);
        return;
    }
    pool->task = task;
    pool->context = context;
    pool->n_chunks = n_chunks;
    atomic_store(&pool->n_left, (uint32_t)n_chunks);
    atomic_store_explicit(&pool->n_unclaimed, (uint32_t)n_chunks, memory_order_release);
    announce(pool);
    work(pool, 0);
    int spins = 0;
    uint32_t left;
    while ((left = atomic_load_explicit(&pool->n_left, memory_order_acquire)) > 0) {
        if (++spins < SPINS) {
            cpu_relax();
            continue;
        }
        atomic_store(&pool->caller_asleep, true);
        left = atomic_load(&pool->n_left);
        if (left > 0)
            futex_wait(&pool->n_left, left);
        atomic_store(&pool->caller_asleep, false);
    }
}
