/* See pool.h. */
#define _GNU_SOURCE
#include "base/pool.h"

#include "base/clock.h"
#include "base/fpenv.h"

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* About 50 us of spinning on a 3.6 GHz core before a waiter sleeps: longer than the serial code
 * between two parallel steps of a forward pass, short enough not to burn a shared machine. */
#define SPINS 4000

/* A wait longer than this many spins is timed: it may be for a thread that has lost its CPU. */
#define STALL_SPINS 500

typedef struct {
    nb_pool *pool;
    int index;
} worker;

/* Whether threads keep losing their CPUs to strangers. The caller's long waits are added up over a
 * window; if they make a good part of it, and the system took a CPU from this process meanwhile
 * (uneven chunks make waits, too), one thread less runs for a while: then the stranger has a CPU,
 * and nobody waits for half-done chunks. */
typedef struct {
    nb_switches_fn *lost; /* NULL: off */
    double window_start, stalled;
    double last;         /* when the last stall ended */
    long switches;       /* involuntary ones, at the window's start or before */
    long last_switches;  /* and when the last stall ended */
    double hold, resume; /* how long one thread less, and until when */
} backoff;

#define WINDOW_SECONDS 0.015
/* A thread is worth its waits until they cost this share of what one thread does. */
#define STALLED_SHARE 0.80
#define HOLD_FIRST    0.200
#define HOLD_LONGEST  1.600

/* Chunks [front, back) of a share, in one word: front << 32 | back. */
typedef struct {
    _Alignas(NB_CACHE_LINE) _Atomic uint64_t span;
} share;

struct nb_pool {
    int n_threads;
    int n_started;
    pthread_t *threads;
    worker *workers;
    /* The job; written by the caller only while no chunk is claimable. */
    nb_stage stages[NB_POOL_MAX_STAGES];
    int64_t n_chunks; /* of all stages */
    uint32_t n_shares;
    void *context;
    int64_t n_runs;
    backoff back;
    /* Chunks not yet claimed. A worker that was descheduled between looking and claiming may find
     * the count of a later job; then its claim is one on that job, which it reads only afterwards.
     * So nobody has to wait for workers that never showed up: a run ends when its chunks are done.
     */
    _Alignas(NB_CACHE_LINE) _Atomic uint32_t n_unclaimed;
    _Alignas(NB_CACHE_LINE) _Atomic uint32_t n_left;     /* chunks not yet finished; a futex */
    _Alignas(NB_CACHE_LINE) _Atomic uint32_t generation; /* a new value announces work; a futex */
    _Atomic uint32_t n_active; /* threads with a lower index take part; a futex */
    atomic_int n_asleep;       /* on generation */
    atomic_int n_asleep_left;  /* on n_left */
    atomic_bool stop;
    share shares[NB_POOL_MAX_THREADS]; /* of the stage in streams */
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

static void deal_shares(nb_pool *pool, int64_t n_chunks)
{
    const uint32_t n = atomic_load_explicit(&pool->n_active, memory_order_relaxed);
    pool->n_shares = n;
    for (uint32_t i = 0; i < n; i++)
        atomic_store_explicit(&pool->shares[i].span,
                              (uint64_t)(n_chunks * i / n) << 32 |
                                  (uint64_t)(n_chunks * (i + 1) / n),
                              memory_order_relaxed);
}

/* A chunk for who has claimed one: there are as many claims as chunks, so one is left somewhere. */
static int64_t take(nb_pool *pool, int thread)
{
    for (uint32_t i = 0;; i++) {
        const bool own = i == 0;
        _Atomic uint64_t *at = &pool->shares[((uint32_t)thread + i) % pool->n_shares].span;
        uint64_t span = atomic_load_explicit(at, memory_order_relaxed);
        while (span >> 32 < (uint32_t)span) {
            const uint64_t left = own ? span + ((uint64_t)1 << 32) : span - 1;
            if (atomic_compare_exchange_weak_explicit(at, &span, left, memory_order_relaxed,
                                                      memory_order_relaxed))
                return own ? (int64_t)(span >> 32) : (int64_t)(uint32_t)span - 1;
        }
    }
}

/* Waits until at most `most` chunks of the job are unfinished. Gives the seconds beyond a short
 * spin, for the caller's thread. */
static double await(nb_pool *pool, uint32_t most)
{
    double start = 0;
    int spins = 0;
    while (atomic_load_explicit(&pool->n_left, memory_order_acquire) > most) {
        if (++spins == STALL_SPINS)
            start = nb_clock();
        if (spins < SPINS) {
            cpu_relax();
            continue;
        }
        /* The count of sleepers is raised before the futex looks at the word, and who finishes a
         * chunk changes the word before he looks at the count: one of the two sees the other. */
        atomic_fetch_add(&pool->n_asleep_left, 1);
        const uint32_t left = atomic_load(&pool->n_left);
        if (left > most)
            futex_wait(&pool->n_left, left);
        atomic_fetch_sub(&pool->n_asleep_left, 1);
    }
    return spins < STALL_SPINS ? 0 : nb_clock() - start;
}

/* Claims and runs chunks until none of the current job is left. */
static double work(nb_pool *pool, int thread)
{
    double stalled = 0;
    const uint64_t env = nb_fpenv_enter();
    uint32_t seen = atomic_load_explicit(&pool->n_unclaimed, memory_order_acquire);
    while (seen != 0) {
        if (!atomic_compare_exchange_weak_explicit(&pool->n_unclaimed, &seen, seen - 1,
                                                   memory_order_acquire, memory_order_acquire)) {
            continue;
        }
        /* The claim holds the job open: its description cannot change before the chunk ends. All
         * chunks before this one are claimed, too, so the stages before it will end. */
        int64_t chunk = pool->n_chunks - (int64_t)seen, before = 0;
        int stage = 0;
        for (; chunk >= pool->stages[stage].n_chunks; stage++) {
            chunk -= pool->stages[stage].n_chunks;
            before += pool->stages[stage].n_chunks;
        }
        const nb_stage *its = &pool->stages[stage];
        if (its->in_streams)
            chunk = take(pool, thread);
        if (before > 0) {
            const uint32_t most = (uint32_t)(pool->n_chunks - before);
            if (its->fetch != NULL && atomic_load(&pool->n_left) > most)
                its->fetch(pool->context, chunk, thread);
            stalled += await(pool, most);
        }
        its->task(pool->context, chunk, thread);
        atomic_fetch_sub(&pool->n_left, 1);
        if (atomic_load(&pool->n_asleep_left) > 0)
            futex_wake_all(&pool->n_left);
        seen = atomic_load_explicit(&pool->n_unclaimed, memory_order_acquire);
    }
    nb_fpenv_leave(env);
    return stalled;
}

static void *worker_main(void *argument)
{
    const worker *me = argument;
    nb_pool *pool = me->pool;
    uint32_t seen = 0;
    for (;;) {
        uint32_t now, n_active;
        while ((n_active = atomic_load(&pool->n_active)) <= (uint32_t)me->index)
            futex_wait(&pool->n_active, n_active);
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
        (void)work(pool, me->index);
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
    atomic_store(&pool->n_active, (uint32_t)n_threads);
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

static void set_active(nb_pool *pool, uint32_t n)
{
    atomic_store(&pool->n_active, n);
    futex_wake_all(&pool->n_active);
}

void nb_pool_close(nb_pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store(&pool->stop, true);
    set_active(pool, (uint32_t)pool->n_threads);
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

int nb_pool_n_active(const nb_pool *pool)
{
    return (int)atomic_load(&((nb_pool *)(uintptr_t)pool)->n_active);
}

int64_t nb_pool_n_runs(const nb_pool *pool)
{
    return pool->n_runs;
}

/* ---- giving way ---- */

static long involuntary_switches(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_nivcsw : 0;
}

void nb_pool_back_off_by(nb_pool *pool, nb_switches_fn *lost)
{
    pool->back = (backoff){.lost = lost, .hold = HOLD_FIRST};
    set_active(pool, (uint32_t)pool->n_threads);
}

void nb_pool_back_off(nb_pool *pool, bool on)
{
    nb_pool_back_off_by(pool, on ? involuntary_switches : NULL);
}

/* After a run in which the caller waited for `stalled` seconds, most often 0. */
static void give_way(nb_pool *pool, double stalled)
{
    backoff *b = &pool->back;
    const uint32_t n_active = atomic_load_explicit(&pool->n_active, memory_order_relaxed);
    if (n_active < (uint32_t)pool->n_threads && nb_clock() >= b->resume) {
        b->window_start = 0;
        set_active(pool, (uint32_t)pool->n_threads);
    }
    if (stalled == 0)
        return;
    const double now = nb_clock();
    const long so_far = b->lost();
    if (now - stalled - b->window_start > 3 * WINDOW_SECONDS) { /* a window begins */
        /* What came before did not stall: the holds may be short again after a quiet time. */
        if (now - b->resume > 2 * b->hold)
            b->hold = HOLD_FIRST;
        b->window_start = now - stalled;
        b->stalled = 0;
        /* A CPU was lost before this stall began, since the last one unless that is long ago. */
        b->switches = now - stalled - b->last < 0.1 ? b->last_switches : so_far - 1;
    }
    b->last = now;
    b->last_switches = so_far;
    b->stalled += stalled;
    const double elapsed = now - b->window_start;
    if (elapsed < WINDOW_SECONDS || n_active <= 1)
        return;
    if (b->stalled * n_active > STALLED_SHARE * elapsed && so_far - b->switches >= 2) {
        b->resume = now + b->hold;
        b->hold = 2 * b->hold < HOLD_LONGEST ? 2 * b->hold : HOLD_LONGEST;
        set_active(pool, n_active - 1);
    }
    b->window_start = now;
    b->stalled = 0;
    b->switches = so_far;
}

/* ---- runs ---- */

void nb_pool_run_stages(nb_pool *pool, const nb_stage *stages, int n_stages, void *context)
{
    assert(n_stages >= 0 && n_stages <= NB_POOL_MAX_STAGES);
    int64_t n_chunks = 0;
    for (int i = 0; i < n_stages; i++) {
        assert(stages[i].n_chunks >= 0 && stages[i].n_chunks <= INT32_MAX - n_chunks);
        n_chunks += stages[i].n_chunks;
    }
    if (n_chunks <= 1 || pool->n_threads == 1) {
        const uint64_t env = nb_fpenv_enter();
        for (int i = 0; i < n_stages; i++) {
            for (int64_t chunk = 0; chunk < stages[i].n_chunks; chunk++)
                stages[i].task(context, chunk, 0);
        }
        nb_fpenv_leave(env);
        return;
    }
    for (int i = 0; i < n_stages; i++) {
        pool->stages[i] = stages[i];
        if (stages[i].in_streams)
            deal_shares(pool, stages[i].n_chunks);
    }
    pool->context = context;
    pool->n_chunks = n_chunks;
    pool->n_runs++;
    atomic_store(&pool->n_left, (uint32_t)n_chunks);
    atomic_store_explicit(&pool->n_unclaimed, (uint32_t)n_chunks, memory_order_release);
    announce(pool);
    const double stalled = work(pool, 0) + await(pool, 0);
    if (pool->back.lost != NULL)
        give_way(pool, stalled);
}

void nb_pool_run(nb_pool *pool, int64_t n_chunks, nb_task_fn *task, void *context)
{
    nb_pool_run_stages(pool, &(nb_stage){.n_chunks = n_chunks, .task = task}, 1, context);
}
