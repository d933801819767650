/* The thread pool: one per program, passed down. Work is handed out in chunks from an atomic
 * counter, so a thread that loses its CPU to a stranger delays one chunk, not half of the work.
 *
 * Waiting spins for a bounded time and then sleeps on a futex. Tasks must not depend on which
 * thread runs which chunk: results may depend on the chunk index only. */
#ifndef NB_BASE_POOL_H
#define NB_BASE_POOL_H

#include "base/alloc.h"

typedef struct nb_pool nb_pool;

#define NB_POOL_MAX_THREADS 256

/* `n_threads` counts the caller, so 1 starts none. */
nb_status nb_pool_open(nb_pool **out, int n_threads, nb_err *err);
void nb_pool_close(nb_pool *pool); /* NULL is fine */
int nb_pool_n_threads(const nb_pool *pool);

/* Whether fewer threads run while strangers keep taking CPUs from them: one that is descheduled in
 * the middle of a chunk makes all others wait, so that a single busy neighbour may cost more than
 * the thread is worth. All threads are tried again after a fifth of a second, then after twice
 * that, up to 1.6 s. Off at first. */
void nb_pool_back_off(nb_pool *pool, bool on);
/* The same by another count of CPUs lost so far; NULL: off. For tests. */
typedef long nb_switches_fn(void);
void nb_pool_back_off_by(nb_pool *pool, nb_switches_fn *lost);
/* Threads that take part at the moment: at most n_threads. */
int nb_pool_n_active(const nb_pool *pool);
/* Runs so far that called the other threads: what a step costs in synchronisation. */
int64_t nb_pool_n_runs(const nb_pool *pool);

/* Runs task(context, chunk, thread) for every chunk in [0, n_chunks), on all threads including
 * the caller's; returns when all are done. `thread` is in [0, n_threads): index scratch with it.
 * Each task runs under the contract's floating-point environment (round to nearest, subnormals
 * kept); the caller's is restored. Not re-entrant: one caller at a time, no nested runs. */
typedef void nb_task_fn(void *context, int64_t chunk, int thread);
void nb_pool_run(nb_pool *pool, int64_t n_chunks, nb_task_fn *task, void *context);

/* The same for up to NB_POOL_MAX_STAGES stages in one run: chunks of a stage start when all chunks
 * of the stages before have ended. Cheaper than runs of their own: no thread is called or waited
 * for in between, except for chunks under way. */
#define NB_POOL_MAX_STAGES 4
typedef struct {
    int64_t n_chunks;
    nb_task_fn *task;
    /* Called for a chunk that would have to wait for the stages before: to fetch from memory, while
     * it waits, what it will read. NULL: nothing. */
    nb_task_fn *fetch;
    /* Each thread takes chunks that follow each other, from a share of its own, and helps out at
     * the other end of another's when that is used up: for chunks that stream through memory. One
     * stage of a run at most. */
    bool in_streams;
} nb_stage;
void nb_pool_run_stages(nb_pool *pool, const nb_stage *stages, int n_stages, void *context);

#endif
